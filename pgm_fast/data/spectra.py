"""Sounds as spectrograms: logarithms of magnitudes or of powers, one step per window."""

from __future__ import annotations

import math

import numpy as np
import torch

from .media_settings import MediaConfig

__all__ = ["fitted", "log_spectrum", "steps_of"]

SILENCE = 1e-7  # added before the logarithm
FLAT = 1e-9  # added to the deviation of a clip: of silence it is 0


def fitted(signal: np.ndarray, rate: int, config: MediaConfig) -> np.ndarray:
    """A sound ``[n]`` at ``config.sample_rate``, of ``config.samples`` samples where these are given, clipped."""
    if rate != config.sample_rate:
        from scipy.signal import resample_poly

        common = math.gcd(rate, config.sample_rate)
        signal = resample_poly(signal, config.sample_rate // common, rate // common).astype(np.float32)
    if config.samples:
        signal = np.resize(signal, config.samples)  # repeats it from its beginning
    return signal.clip(-1, 1) if config.clip else signal


def steps_of(samples: int, config: MediaConfig) -> int:
    """Windows of a sound of so many samples at ``config.sample_rate``, at most ``config.max_steps``."""
    samples = config.samples or samples
    if config.spectrum == "magnitude":
        steps = 1 + samples // config.hop
    else:
        steps = 1 + (max(samples, config.n_fft) - config.n_fft) // config.hop
    return min(config.max_steps, steps)


def log_spectrum(signal: np.ndarray, config: MediaConfig) -> np.ndarray:
    """float32 ``[steps, n_fft // 2 + 1]`` of a sound ``[n]`` in float32.

    ``log(s + 1e-7)``, where s is, by ``config.spectrum``,

    - ``magnitude``: ``|STFT|`` with a Hann window of ``n_fft`` samples, centred on every ``hop``-th sample, the signal
      mirrored at its ends;
    - ``power``: the density of ``scipy.signal.spectrogram`` with its own window (Tukey, 0.25) of ``n_fft`` samples, the
      mean of each window taken away, and no window beyond the ends.

    With ``sound_statistics=clip`` the whole has mean 0 and variance 1: ``(x - mean) / (deviation + 1e-9)``.
    """
    if config.spectrum == "magnitude":
        # mirroring needs more samples than half a window
        padded = np.pad(signal, (0, max(0, config.n_fft // 2 + 1 - len(signal))))
        window = torch.hann_window(config.n_fft, device="cpu")
        spectrum = torch.stft(torch.from_numpy(padded), config.n_fft, config.hop, window=window, return_complex=True)
        found = (spectrum.abs() + SILENCE).log().t().numpy()
    else:
        from scipy.signal import spectrogram

        padded = np.pad(signal, (0, max(0, config.n_fft - len(signal))))
        overlap = config.n_fft - config.hop
        power = spectrogram(padded, config.sample_rate, nperseg=config.n_fft, noverlap=overlap)[2]
        found = np.log(power.T + np.float32(SILENCE))
    found = found[: config.max_steps]
    if config.sound_statistics == "clip":
        found = (found - found.mean(dtype=np.float64)) / (found.std(dtype=np.float64) + FLAT)
    return found.astype(np.float32, copy=False)
