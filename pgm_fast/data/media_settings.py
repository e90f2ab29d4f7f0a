"""How sound and picture files become numbers: the settings, which are a section of a run's configuration."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from ..errors import ConfigError, did_you_mean
from ..settings import check_settings, choice, number

__all__ = ["FRAME_CHOICES", "FASTEST", "SLOWEST", "MediaConfig"]

SLOWEST, FASTEST = 1000, 384_000  # samples per second
FRAME_CHOICES = ("even", "seeded", "random")


@dataclass
class MediaConfig:
    """How sound and picture files become numbers."""

    sample_rate: int = number(22050, at_least=SLOWEST, at_most=FASTEST)  # of sounds, in Hz; others are resampled
    samples: int = number(0, at_least=0)  # sounds are repeated or cut to so many at that rate; 0: as long as they are
    clip: bool = False  # what is beyond -1 and 1 in a sound is set to these
    # whose logarithm is taken. magnitude: of torch.stft, ends mirrored; power: density of scipy.signal.spectrogram
    spectrum: str = choice("magnitude", ("magnitude", "power"))
    n_fft: int = number(512, at_least=1)  # samples of a window
    hop: int = number(353, at_least=1)  # samples from one window to the next
    max_steps: int = number(1004, at_least=1)  # spectrograms are cut to so many windows
    # data: by data.standardize; clip: each has mean 0 and variance 1; none: as they are
    sound_statistics: str = choice("data", ("data", "clip", "none"))
    frames: int = number(3, at_least=1)  # pictures of a sample
    # even: evenly spaced; seeded: drawn without repetition by frame_seed, the same for as many pictures;
    # random: in training drawn anew in each epoch, else the middles of equal parts
    frame_choice: str = choice("even", FRAME_CHOICES)
    frame_seed: int = number(999, at_least=0)  # of seeded frames, for numpy's RandomState
    image_size: int = number(224, at_least=1)  # width and height, in pixels
    fit: str = choice("middle", ("middle", "squash"))  # middle: cut out of the scaled picture; squash: all of it
    # training: a part of each picture at random, scaled, and mirrored every other time, as torchvision's
    # RandomResizedCrop and RandomHorizontalFlip; anew in each epoch
    augment: bool = False
    # data: by data.standardize; imagenet: ImageNet's means and deviations of the colours in their place
    picture_statistics: str = choice("data", ("data", "imagenet"))

    @classmethod
    def of(cls, given: MediaConfig | Mapping[str, Any] | None) -> MediaConfig:
        """Checked settings from some of them, defaults for the others.

        Raises:
            ConfigError: a setting that there is not, or a value that it does not take.
        """
        if not isinstance(given, MediaConfig):
            defaults = asdict(cls())
            for key, value in (given or {}).items():
                if key not in defaults:
                    near = did_you_mean(key, defaults)
                    raise ConfigError(f"media has no setting '{key}'{near}; there are {', '.join(defaults)}")
                if type(value) is not type(defaults[key]):
                    raise ConfigError(f"media.{key}={value!r} has the wrong type; it takes one as {defaults[key]!r} is")
            given = cls(**(given or {}))
        check_settings(given, "media")
        return given
