"""Sound and picture files as arrays whose rows are decoded when they are asked for.

Nothing here is random: a row is the same numbers each time it is read, so that features computed from it may be kept.
Needs soundfile, SciPy and Pillow (``pip install "pgm-fast[av]"``).
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch

from .arrays import LazyRows
from .media_files import Place, open_place
from .packages import import_package
from .raw import Problem, RefusedData

__all__ = ["FrameRows", "MediaRows", "SpectrogramRows"]

NEEDED = ("sound and picture files", "av")  # what needs the packages, and their extra
# A header says what decoding takes before anything is decoded, and headers may be made up.
SLOWEST, FASTEST = 1000, 384_000  # samples per second
MOST_SAMPLES = 1 << 28
MOST_PIXELS = 1 << 26
LONGEST = 100  # sides of a picture
# What a picture holds, whatever its name says: of Pillow's other formats some start a program (EPS: Ghostscript).
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")
SILENCE = 1e-7  # added to magnitudes before the logarithm


class MediaRows(LazyRows):
    """Base: one row per sample, from its files. A sample without files reads as zeros.

    Attributes:
        kind: ``frames`` or ``spectrogram``, see :class:`~pgm_fast.data.feature_set.ModalitySpec`.
        lengths: int64 ``[N]``, valid steps of each row, at least 1.
    """

    kind: str
    lengths: np.ndarray

    def sources(self) -> list[Place]:
        """Every file that a row is decoded from, in the order of the rows."""
        raise NotImplementedError

    def unreadable(self, rows: np.ndarray) -> Iterator[tuple[int, Place, str]]:
        """Row, file and reason of every file of these rows whose head cannot be read."""
        raise NotImplementedError

    def decode(self, row: int, steps: int) -> np.ndarray:
        """The first ``steps`` steps of one row, ``[<= steps, d]``."""
        raise NotImplementedError

    def read(self, rows: np.ndarray, steps: int | None = None) -> np.ndarray:
        steps = self.shape[1] if steps is None else min(steps, self.shape[1])
        out = np.zeros((len(rows), steps, self.shape[2]), self.dtype)

        def fill(place: int) -> None:
            block = self.decode(int(rows[place]), steps)
            out[place, : len(block)] = block

        # decoders spend their time outside of the interpreter's lock
        with ThreadPoolExecutor(min(len(rows), os.cpu_count() or 1) or 1) as pool:
            list(pool.map(fill, range(len(rows))))
        return out


class SpectrogramRows(MediaRows):
    """Log-magnitude spectrograms of sound files: float32 ``[N, T, n_fft // 2 + 1]``.

    ``log(|STFT| + 1e-7)`` with a Hann window of ``n_fft`` samples, one step per ``hop`` samples, the signal mirrored at
    its ends. Channels are averaged, and other rates than ``sample_rate`` resampled (polyphase filter).

    Args:
        files: a file per row, None where the sample has no sound.
        sample_rate: in Hz.
        n_fft: window, in samples.
        hop: between steps, in samples.
        max_steps: longer sounds are cut.

    Raises:
        RefusedData: soundfile is not installed.
    """

    kind = "spectrogram"

    def __init__(self, files: Sequence[Place | None], sample_rate: int, n_fft: int, hop: int, max_steps: int):
        self._soundfile = import_package("soundfile", "soundfile", *NEEDED)
        self.files, self.sample_rate, self.n_fft, self.hop = list(files), sample_rate, n_fft, hop
        self.lengths = np.ones(len(self.files), np.int64)
        for row, file in enumerate(self.files):
            if file is not None and isinstance(head := self._head(file), tuple):
                samples, rate = head
                self.lengths[row] = min(max_steps, 1 + math.ceil(samples * sample_rate / rate) // hop)
        self.dtype = np.dtype(np.float32)
        self.shape = (len(self.files), int(self.lengths.max(initial=1)), n_fft // 2 + 1)

    def sources(self) -> list[Place]:
        return [file for file in self.files if file is not None]

    def _head(self, file: Place) -> tuple[int, int] | str:
        try:
            with open_place(file) as stream:
                info = self._soundfile.info(stream)
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

    def decode(self, row: int, steps: int) -> np.ndarray:
        file = self.files[row]
        if file is None:
            return np.zeros((0, self.shape[2]), np.float32)
        if isinstance(reason := self._head(file), str):
            raise _refused(file, reason)
        try:
            with open_place(file) as stream:
                signal, rate = self._soundfile.read(stream, dtype="float32", always_2d=True)
        except Exception as error:
            raise _refused(file, error) from None
        signal = signal.mean(axis=1)
        if not np.isfinite(signal).all():
            raise _refused(file, "it holds NaN or infinity")
        if rate != self.sample_rate:
            from scipy.signal import resample_poly

            common = math.gcd(rate, self.sample_rate)
            signal = resample_poly(signal, self.sample_rate // common, rate // common).astype(np.float32)
        # mirroring needs more samples than half a window
        signal = np.pad(signal, (0, max(0, self.n_fft // 2 + 1 - len(signal))))
        spectrum = torch.stft(
            torch.from_numpy(signal),
            self.n_fft,
            self.hop,
            window=torch.hann_window(self.n_fft, device="cpu"),
            return_complex=True,
        )
        return (spectrum.abs() + SILENCE).log().t().numpy()[: min(steps, int(self.lengths[row]))]


class FrameRows(MediaRows):
    """Pictures of a sample, evenly spaced among those in its folder: uint8 ``[N, T, 3 * size * size]``.

    RGB, the shorter side scaled to ``size`` (bicubic), the middle cut out, channels first within a step.

    Args:
        files: the pictures of each row in their order, empty where the sample has none.
        frames: T, how many are taken; of fewer some are taken more than once.
        size: width and height, in pixels.

    Raises:
        RefusedData: Pillow is not installed.
    """

    kind = "frames"

    def __init__(self, files: Sequence[Sequence[Place]], frames: int, size: int):
        self._image = import_package("PIL.Image", "pillow", *NEEDED)
        places = [np.rint(np.linspace(0, max(len(found) - 1, 0), frames)).astype(int) for found in files]
        self.files = [[found[k] for k in place] if found else [] for found, place in zip(files, places, strict=True)]
        self.size = size
        self.lengths = np.full(len(self.files), frames, np.int64)
        self.dtype = np.dtype(np.uint8)
        self.shape = (len(self.files), frames, 3 * size * size)

    def sources(self) -> list[Place]:
        return [file for files in self.files for file in dict.fromkeys(files)]

    def unreadable(self, rows: np.ndarray) -> Iterator[tuple[int, Place, str]]:
        for row in rows.tolist():
            for file in dict.fromkeys(self.files[row]):
                try:
                    with open_place(file) as stream, self._image.open(stream, formats=FORMATS) as picture:
                        reason = _strange_size(*picture.size)
                except Exception as error:  # whatever a broken file makes of the decoder
                    reason = str(error)
                if reason:
                    yield row, file, reason

    def decode(self, row: int, steps: int) -> np.ndarray:
        block = np.zeros((min(steps, len(self.files[row])), self.shape[2]), np.uint8)
        for step, file in enumerate(self.files[row][:steps]):
            try:
                with open_place(file) as stream, self._image.open(stream, formats=FORMATS) as picture:
                    if reason := _strange_size(*picture.size):
                        raise _refused(file, reason)
                    picture = picture.convert("RGB")
            except RefusedData:
                raise
            except Exception as error:
                raise _refused(file, error) from None
            block[step] = np.asarray(self._cut(picture)).transpose(2, 0, 1).reshape(-1)
        return block

    def _cut(self, picture):
        scale = self.size / min(picture.size)
        width, height = (max(self.size, round(side * scale)) for side in picture.size)
        left, top = (width - self.size) // 2, (height - self.size) // 2
        resized = picture.resize((width, height), self._image.Resampling.BICUBIC)
        return resized.crop((left, top, left + self.size, top + self.size))


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
