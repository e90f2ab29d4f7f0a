"""Files here run under Triton's interpreter only: tests/kernels/test_interpreted.py starts them."""

from __future__ import annotations

import os

collect_ignore_glob = [] if os.environ.get("TRITON_INTERPRET") == "1" else ["test_*.py"]
