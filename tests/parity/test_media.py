"""Sound and pictures as the published recipes take them, against the formulas written a second time in float64.

The values are those of the presets: 160000 samples of 22 050 Hz, windows of 512 that overlap by 353, frames drawn by
numpy's generator of seed 999, ImageNet's colours.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from tolerances import COLOURS_FP32, EPS, STANDARDISED_CLIP, STFT_512_FP32, frequency

from pgm_fast import presets
from pgm_fast.data import Loader, MediaConfig, Normalizer, load
from pgm_fast.data.pictures import random_part
from pgm_fast.data.spectra import fitted, log_spectrum, steps_of

soundfile = pytest.importorskip("soundfile")
Image = pytest.importorskip("PIL.Image")

RATE = 22050
FP32 = EPS[torch.float32]


def media(preset):
    return MediaConfig(**presets.read(preset, "train")["media"])


def sound(samples, seed=0):
    """Louder than 1 in places, so that it is clipped."""
    rng = np.random.default_rng(seed)
    time = np.arange(samples) / RATE
    return (1.1 * np.sin(2 * np.pi * 440 * time) + 0.2 * rng.standard_normal(samples)).astype(np.float32)


def tukey(size, share=0.25):
    """Periodic: a window of one more, whose last value is left out."""
    place = np.arange(size) / size
    rise, fall = place < share / 2, place > 1 - share / 2
    window = np.ones(size)
    window[rise] = 0.5 * (1 - np.cos(2 * np.pi * place[rise] / share))
    window[fall] = 0.5 * (1 - np.cos(2 * np.pi * (1 - place[fall]) / share))
    return window


def density(signal, rate, size=512, hop=159):
    """|X|^2 / (rate * sum of squares of the window), twice but for the ends, of windows without their mean."""
    window = tukey(size)
    steps = 1 + (len(signal) - size) // hop
    parts = np.stack([signal[t * hop : t * hop + size] for t in range(steps)])
    found = np.abs(np.fft.rfft((parts - parts.mean(1, keepdims=True)) * window)) ** 2
    found[:, 1:-1] *= 2
    return found / (rate * np.square(window).sum())


@pytest.mark.parametrize("preset", ["dimml/crema-d", "dimml/ave"])
def test_a_clip_of_di_mml_is_its_power_spectrogram_standardised(preset):
    config = media(preset)
    clip = sound(50_000)
    found = log_spectrum(fitted(clip, RATE, config), config)
    assert found.shape == (1004, 257) == (steps_of(50_000, config), 257)
    whole = np.concatenate([clip] * 4)[:160_000].clip(-1, 1).astype(np.float64)
    power = density(whole, RATE)
    wanted = np.log(power + 1e-7)
    mean, deviation = wanted.mean(), wanted.std()
    # the logarithm magnifies the rounding of what is next to nothing: powers are compared, whose transform loses 8 eps
    # of the largest magnitude, and the logarithm and its scale 8 of themselves
    again = np.exp(found.astype(np.float64) * (deviation + 1e-9) + mean) - 1e-7
    bound = 16 * FP32 * (np.sqrt(power * power.max()) + power * np.abs(wanted).max()) + (16 * FP32) ** 2 * power.max()
    assert (np.abs(again - power) <= bound + 1e-7 * 16 * FP32 * np.abs(wanted).max()).all()
    assert (
        abs(found.mean(dtype=np.float64)) < STANDARDISED_CLIP
        and abs(found.std(dtype=np.float64) - 1) < STANDARDISED_CLIP
    )


def test_a_clip_of_dmil_is_three_seconds_of_log_magnitudes():
    config = media("dmil/crema-d")
    clip = sound(40_000)
    found = log_spectrum(fitted(clip, RATE, config), config)
    assert found.shape == (1 + 3 * RATE // 353, 257)
    whole = np.concatenate([clip, clip])[: 3 * RATE].clip(-1, 1).astype(np.float64)
    padded = np.pad(whole, 256, mode="reflect")
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(512) / 512)
    wanted = np.array([np.abs(np.fft.rfft(window * padded[353 * t : 353 * t + 512])) for t in range(len(found))])
    np.testing.assert_allclose(np.exp(found.astype(np.float64)) - 1e-7, wanted, rtol=0, atol=STFT_512_FP32)


@pytest.fixture
def clips(tmp_path):
    """Two ids of each split with 9 and 12 pictures of unequal sides, and a sound of 0.1 s."""
    rng = np.random.default_rng(0)
    held = {}
    for split in ("train", "val", "test"):
        lines = []
        for k, count in enumerate((9, 12)):
            name = f"{split}{k}"
            pictures = [rng.integers(0, 256, (30, 40, 3), np.uint8) for _ in range(count)]
            (tmp_path / "frames" / name).mkdir(parents=True)
            for step, picture in enumerate(pictures):
                Image.fromarray(picture).save(tmp_path / "frames" / name / f"{step:02d}.png")
            soundfile.write(tmp_path / f"{name}.wav", sound(2205, k).clip(-1, 1), RATE, subtype="FLOAT")
            held[name] = pictures
            lines.append(f"{name},{k}")
        (tmp_path / f"{split}.csv").write_text("\n".join(lines) + "\n")
    return tmp_path, held


def normalised(picture):
    means, deviations = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    return ((np.asarray(picture, np.float64) / 255 - means) / deviations).transpose(2, 0, 1)


@pytest.mark.parametrize(("preset", "frames"), [("dimml/crema-d", 3), ("dimml/ave", 4)])
def test_evaluation_shows_the_seeded_frames_squashed_in_imagenet_s_colours(clips, preset, frames):
    folder, held = clips
    features = load(folder, media=media(preset))
    [batch] = Loader(features, "test", batch_size=2, normalizer=Normalizer.fit(features)).batches(0)
    for k, name in enumerate(features.ids[batch.index.numpy()]):
        np.random.seed(999)
        taken = sorted(np.random.choice(len(held[name]), size=frames, replace=False))
        wanted = np.stack(
            [normalised(Image.fromarray(held[name][n]).resize((224, 224), Image.Resampling.BILINEAR)) for n in taken]
        )
        found = batch.inputs["video"][k].numpy().reshape(frames, 3, 224, 224)
        np.testing.assert_allclose(found, wanted, rtol=0, atol=COLOURS_FP32)
    assert batch.inputs["audio"].shape == (2, 1004, 257)


def test_training_shows_a_part_of_them_and_a_mirrored_one_every_other_time():
    """Widths and heights in the bounds, uniform logarithms of their ratio, uniform areas, as RandomResizedCrop's."""
    across, down = 400, 300
    ramps = np.stack([*np.meshgrid(np.arange(across), np.arange(down)), np.zeros((down, across))], -1)
    rng, areas, ratios, mirrored = np.random.default_rng(0), [], [], 0
    for _ in range(400):
        part = np.asarray(random_part(Picture(ramps), 2, rng).array)
        (left, right), (top, bottom) = part[0, [0, -1], 0], part[[0, -1], 0, 1]
        mirrored += left > right
        width, height = abs(right - left) + 1, bottom - top + 1
        assert 0 <= min(left, right) and max(left, right) < across and 0 <= top and bottom < down
        areas.append(width * height / (across * down))
        ratios.append(math.log(width / height))
    assert abs(mirrored / 400 - 0.5) < frequency(0.5, 400)
    rounding = 1 / 70  # of a side, which is at least sqrt(0.08 * 3/4 * 300 * 400) = 84 pixels
    assert min(areas) > 0.08 * (1 - 2 * rounding) and max(areas) < 1.0
    assert max(map(abs, ratios)) < math.log(4 / 3) + 2 * rounding
    # those that do not fit are drawn again: below half of the picture nearly all do, and halves of that are as likely
    small = [area for area in areas if area < 0.5]
    assert abs(np.mean([area < 0.29 for area in small]) - 0.5) < frequency(0.5, len(small))
    inside = [ratio for ratio, area in zip(ratios, areas, strict=True) if area < 0.5]
    assert abs(np.mean([ratio < 0 for ratio in inside]) - 0.5) < frequency(0.5, len(inside))


class Picture:
    """What is asked of Pillow, on exact numbers: corners instead of scaled values."""

    def __init__(self, array):
        self.array, self.size = array, (array.shape[1], array.shape[0])

    def crop(self, box):
        left, top, right, bottom = box
        return Picture(self.array[top:bottom, left:right])

    def resize(self, size, resampling):
        assert resampling == Image.Resampling.BILINEAR and size == (2, 2)
        return Picture(self.array[[0, -1]][:, [0, -1]])

    def transpose(self, how):
        assert how == Image.Transpose.FLIP_LEFT_RIGHT
        return Picture(self.array[:, ::-1])
