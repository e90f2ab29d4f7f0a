"""``python -m pgm_fast``, and with several processes ``torchrun --nproc-per-node 2 -m pgm_fast train ...``."""

from .cli import main

if __name__ == "__main__":
    main()
