"""Sound and picture files as arrays whose rows are decoded when they are asked for.

A row is the same numbers each time it is read, but for pictures that training wants drawn (see :class:`Draw`).
Needs soundfile, SciPy and Pillow (``pip install "pgm-fast[av]"``).
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from .arrays import LazyRows
from .media_files import Place, open_place
from .media_settings import FASTEST, SLOWEST, MediaConfig
from .packages import import_package
from .pictures import IMAGENET, middle, places_of, random_part, squashed
from .raw import Problem, RefusedData
from .spectra import fitted, log_spectrum, steps_of

__all__ = ["Draw", "FrameRows", "MediaRows", "SpectrogramRows"]

NEEDED = ("sound and picture files", "av")  # what needs the packages, and their extra
# A header says what decoding takes before anything is decoded, and headers may be made up.
MOST_SAMPLES = 1 << 28
MOST_PIXELS = 1 << 26
LONGEST = 100  # sides of a picture
# What a picture holds, whatever its name says: of Pillow's other formats some start a program (EPS: Ghostscript).
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")


@dataclass(frozen=True)
class Draw:
    """What is drawn for a row in training: a function of these and of the row's number, whoever reads it and when."""

    seed: int
    epoch: int

    def generator(self, row: int) -> np.random.Generator:
        """Of one row."""
        # the order of an epoch is drawn from (seed, epoch), what is hidden in it from (seed, epoch, 1)
        return np.random.Generator(np.random.PCG64(np.random.SeedSequence([self.seed, self.epoch, 2, row])))


class MediaRows(LazyRows):
    """Base: one row per sample, from its files. A sample without files reads as zeros.

    Attributes:
        kind: ``frames`` or ``spectrogram``, see :class:`~pgm_fast.data.feature_set.ModalitySpec`.
        lengths: int64 ``[N]``, valid steps of each row, at least 1.
        varies: whether a :class:`Draw` changes what is read.
    """

    kind: str
    lengths: np.ndarray
    varies: bool = False

    def sources(self) -> list[Place]:
        """Every file that a row is decoded from, in the order of the rows."""
        raise NotImplementedError

    def unreadable(self, rows: np.ndarray) -> Iterator[tuple[int, Place, str]]:
        """Row, file and reason of every file of these rows whose head cannot be read."""
        raise NotImplementedError

    def decode(self, row: int, steps: int, draw: Draw | None = None) -> np.ndarray:
        """The first ``steps`` steps of one row, ``[<= steps, d]``."""
        raise NotImplementedError

    def read(
        self, rows: np.ndarray, steps: int | None = None, draw: Draw | None = None, threads: int | None = None
    ) -> np.ndarray:
        """The rows with these numbers.

        Args:
            rows: int64 ``[n]``.
            steps: of a row, the first ones; None for all.
            draw: of training; None for what is the same each time.
            threads: that decode; None for one per core, 1 for the calling one.
        """
        steps = self.shape[1] if steps is None else min(steps, self.shape[1])
        out = np.zeros((len(rows), steps, self.shape[2]), self.dtype)

        def fill(place: int) -> None:
            block = self.decode(int(rows[place]), steps, draw)
            out[place, : len(block)] = block

        threads = min(len(rows), threads or os.cpu_count() or 1)
        if threads <= 1:
            for place in range(len(rows)):
                fill(place)
            return out
        # decoders spend their time outside of the interpreter's lock
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(fill, range(len(rows))))
        return out


class SpectrogramRows(MediaRows):
    """Spectrograms of sound files, see :func:`~pgm_fast.data.spectra.log_spectrum`: float32 ``[N, T, n_fft // 2 + 1]``.

    Channels are averaged, and other rates than ``sample_rate`` resampled (polyphase filter).

    Args:
        files: a file per row, None where the sample has no sound.
        config: the settings of sounds.

    Raises:
        RefusedData: soundfile is not installed.
    """

    kind = "spectrogram"

    def __init__(self, files: Sequence[Place | None], config: MediaConfig):
        import_package("soundfile", "soundfile", *NEEDED)
        self.files, self.config = list(files), config
        self.lengths = np.ones(len(self.files), np.int64)
        for row, file in enumerate(self.files):
            if file is not None and isinstance(head := self._head(file), tuple):
                samples, rate = head
                self.lengths[row] = steps_of(math.ceil(samples * config.sample_rate / rate), config)
        self.dtype = np.dtype(np.float32)
        width = config.n_fft // 2 + 1
        self.shape = (len(self.files), int(self.lengths.max(initial=1)), width)
        if config.sound_statistics != "data":
            self.statistics = np.zeros(width), np.ones(width)

    def sources(self) -> list[Place]:
        return [file for file in self.files if file is not None]

    def _head(self, file: Place) -> tuple[int, int] | str:
        import soundfile

        try:
            with open_place(file) as stream:
                info = soundfile.info(stream)
        except Exception as error:  # whatever a broken file makes of the decoder
            return str(error)
        if not SLOWEST <= info.samplerate <= FASTEST:
            return f"has {info.samplerate} samples per second, must have {SLOWEST} to {FASTEST}"
        if info.frames * info.channels > MOST_SAMPLES:
            return f"has {info.frames} samples in {info.channels} channels, of at most {MOST_SAMPLES} together"
        return (info.frames, info.samplerate) if info.frames else "holds no sound"

    def unreadable(self, rows: np.ndarray) -> Iterator[tuple[int, Place, str]]:
        for row in rows.tolist():
            file = self.files[row]
            if file is not None and isinstance(reason := self._head(file), str):
                yield row, file, reason

    def decode(self, row: int, steps: int, draw: Draw | None = None) -> np.ndarray:
        import soundfile

        file = self.files[row]
        if file is None:
            return np.zeros((0, self.shape[2]), np.float32)
        if isinstance(reason := self._head(file), str):
            raise _refused(file, reason)
        try:
            with open_place(file) as stream:
                signal, rate = soundfile.read(stream, dtype="float32", always_2d=True)
        except Exception as error:
            raise _refused(file, error) from None
        signal = signal.mean(axis=1)
        if not np.isfinite(signal).all():
            raise _refused(file, "it holds NaN or infinity")
        return log_spectrum(fitted(signal, rate, self.config), self.config)[: min(steps, int(self.lengths[row]))]


class FrameRows(MediaRows):
    """Pictures of a sample, some of those in its folder: uint8 ``[N, T, 3 * size * size]``, RGB, channels first.

    Args:
        files: the pictures of each row in their order, empty where the sample has none.
        config: the settings of pictures.

    Raises:
        RefusedData: Pillow is not installed.
    """

    kind = "frames"

    def __init__(self, files: Sequence[Sequence[Place]], config: MediaConfig):
        import_package("PIL.Image", "pillow", *NEEDED)
        self.varies = config.augment or config.frame_choice == "random"
        self.files = [list(found) for found in files]
        self.config = config
        self.lengths = np.full(len(self.files), config.frames, np.int64)
        self.dtype = np.dtype(np.uint8)
        pixels = config.image_size**2
        self.shape = (len(self.files), config.frames, 3 * pixels)
        if config.picture_statistics == "imagenet":
            self.statistics = tuple(255.0 * np.repeat(values, pixels) for values in IMAGENET)

    def _taken(self, row: int, rng: np.random.Generator | None) -> list[Place]:
        found, config = self.files[row], self.config
        if not found:
            return []
        places = places_of(len(found), config.frames, config.frame_choice, config.frame_seed, rng)
        return [found[int(place)] for place in places]

    def _readable(self, row: int) -> list[Place]:
        """What may be read of a row, each file once."""
        every = self.config.frame_choice == "random"
        return list(dict.fromkeys(self.files[row] if every else self._taken(row, None)))

    def sources(self) -> list[Place]:
        return [file for row in range(len(self.files)) for file in self._readable(row)]

    def unreadable(self, rows: np.ndarray) -> Iterator[tuple[int, Place, str]]:
        from PIL import Image

        for row in rows.tolist():
            for file in self._readable(row):
                try:
                    with open_place(file) as stream, Image.open(stream, formats=FORMATS) as picture:
                        reason = _strange_size(*picture.size)
                except Exception as error:  # whatever a broken file makes of the decoder
                    reason = str(error)
                if reason:
                    yield row, file, reason

    def decode(self, row: int, steps: int, draw: Draw | None = None) -> np.ndarray:
        from PIL import Image

        rng = draw.generator(row) if draw is not None and self.varies else None
        taken = self._taken(row, rng)[:steps]
        block = np.zeros((len(taken), self.shape[2]), np.uint8)
        for step, file in enumerate(taken):
            try:
                with open_place(file) as stream, Image.open(stream, formats=FORMATS) as picture:
                    if reason := _strange_size(*picture.size):
                        raise _refused(file, reason)
                    picture = picture.convert("RGB")
            except RefusedData:
                raise
            except Exception as error:
                raise _refused(file, error) from None
            block[step] = np.asarray(self._square(picture, rng)).transpose(2, 0, 1).reshape(-1)
        return block

    def _square(self, picture, rng: np.random.Generator | None):
        size = self.config.image_size
        if self.config.augment and rng is not None:
            return random_part(picture, size, rng)
        return squashed(picture, size) if self.config.fit == "squash" else middle(picture, size)


def _strange_size(width: int, height: int) -> str:
    """Why a picture of this size is not decoded; nothing where it is."""
    if width * height > MOST_PIXELS:
        return f"it has {width} x {height} pixels, of at most {MOST_PIXELS}"
    if max(width, height) > LONGEST * min(width, height):
        return f"it has {width} x {height} pixels, one side more than {LONGEST} times the other"
    return ""


def _refused(file: Place, error: Exception | str) -> RefusedData:
    return RefusedData(
        Problem(str(file), "", None, f"cannot be decoded: {error}; replace the file, or leave its row out")
    )
