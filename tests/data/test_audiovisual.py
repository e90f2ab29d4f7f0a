"""Sound and picture files become the stated numbers, and a run trains on them as on any features."""

from __future__ import annotations

import gc
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from tolerances import FP64, RESAMPLED_LOG, RESNET18_FP64, STFT_FP32

from pgm_fast.data import Loader, Normalizer, check, load
from pgm_fast.errors import ConfigError, DataError
from pgm_fast.methods.components import build_encoders

soundfile = pytest.importorskip("soundfile")
Image = pytest.importorskip("PIL.Image")

RATE = 8000
OPTIONS = {"sample_rate": RATE, "n_fft": 64, "hop": 32, "max_steps": 35, "frames": 3, "image_size": 8}
LABELS = ("angry", "sad")


def write(folder, per_split=(("train", 16), ("test", 8)), seed=0):
    """Two classes: a low or a high tone, dark or bright pictures. Returns id -> (signal, pictures)."""
    rng = np.random.default_rng(seed)
    held = {}
    for split, count in per_split:
        lines = ["id,label"]
        for k in range(count):
            name, label = f"{split}_{k:02d}", k % 2
            time = np.arange(1000 + 10 * k) / RATE
            signal = 0.5 * np.sin(2 * np.pi * (400 + 1600 * label) * time) + 0.01 * rng.standard_normal(len(time))
            pictures = [rng.integers(0, 100, (12, 10 + step, 3)).astype(np.uint8) + 120 * label for step in range(5)]
            (folder / "AudioWAV").mkdir(parents=True, exist_ok=True)
            soundfile.write(folder / "AudioWAV" / f"{name}.wav", signal, RATE, subtype="FLOAT")
            (folder / "frames" / name).mkdir(parents=True, exist_ok=True)
            for step, picture in enumerate(pictures):
                Image.fromarray(picture.astype(np.uint8)).save(folder / "frames" / name / f"{step:03d}.png")
            lines.append(f"{name},{LABELS[label]}")
            held[name] = (signal.astype(np.float32), pictures)
        (folder / f"{split}.csv").write_text("\n".join(lines) + "\n")
    return held


@pytest.fixture
def media(tmp_path):
    return tmp_path / "media", write(tmp_path / "media")


@pytest.mark.parametrize("kind", ["EPS", "TIFF", "PPM", "ICO"])
def test_a_picture_of_another_format_is_refused_by_its_content_and_runs_nothing(media, monkeypatch, kind):
    folder, _ = media
    started = []
    monkeypatch.setattr("subprocess.Popen.__init__", lambda self, command, *_, **__: started.append(command))
    monkeypatch.setattr("subprocess.Popen.__del__", lambda self: None)
    Image.new("RGB", (24, 20)).save(folder / "frames" / "train_00" / "000.png", format=kind)
    assert any("train_00/000.png" in str(problem) for problem in check(folder, media=OPTIONS))
    with pytest.raises(DataError, match="train_00/000.png"):
        for rows in load(folder, media=OPTIONS).modalities.values():
            rows[:]
    assert not started


def spectrogram(signal):
    """The stated formula, one window at a time, in float64."""
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(64) / 64)
    padded = np.pad(signal.astype(np.float64), 32, mode="reflect")
    steps = 1 + len(signal) // 32
    spectra = [np.abs(np.fft.rfft(window * padded[32 * t : 32 * t + 64])) for t in range(steps)]
    return np.log(np.array(spectra) + 1e-7)


def test_rows_hold_the_log_spectrogram_and_the_evenly_spaced_frames(media):
    folder, held = media
    features = load(folder, media=OPTIONS)
    assert list(features.modalities) == ["audio", "video"] and features.class_names == list(LABELS)
    assert {m: s.kind for m, s in features.spec.modalities.items()} == {"audio": "spectrogram", "video": "frames"}
    audio, video = features.modalities["audio"], features.modalities["video"]
    assert audio.shape[1:] == (35, 33) and video.shape[1:] == (3, 3 * 8 * 8)
    for row in (3, 15, 20):
        signal, pictures = held[features.ids[row]]
        wanted = spectrogram(signal)[:35]
        assert features.lengths["audio"][row] == len(wanted)
        # where there is next to no sound the logarithm magnifies rounding: magnitudes are compared
        np.testing.assert_allclose(np.exp(audio[row, : len(wanted)]), np.exp(wanted), rtol=0, atol=STFT_FP32)
        assert not audio[row, len(wanted) :].any()
        for step, k in enumerate((0, 2, 4)):
            picture = Image.fromarray(pictures[k].astype(np.uint8))
            width = max(8, round(picture.width * 8 / min(picture.size)))
            height = max(8, round(picture.height * 8 / min(picture.size)))
            resized = np.asarray(picture.resize((width, height), Image.Resampling.BICUBIC))
            top, left = (height - 8) // 2, (width - 8) // 2
            middle = resized[top : top + 8, left : left + 8]
            np.testing.assert_array_equal(video[row, step].reshape(3, 8, 8), middle.transpose(2, 0, 1))
    order = np.array([7, 2, 2])
    np.testing.assert_array_equal(video[order], np.stack([video[7], video[2], video[2]]))


def test_another_rate_and_more_channels_are_the_same_sound(tmp_path):
    held = write(tmp_path, (("train", 6),))
    name, (signal, _) = next(iter(held.items()))
    before = load(tmp_path, media=OPTIONS).modalities["audio"][0]
    fine = np.interp(np.arange(2 * len(signal)) / 2, np.arange(len(signal)), signal)
    soundfile.write(tmp_path / "AudioWAV" / f"{name}.wav", np.stack([fine, fine], 1), 2 * RATE, subtype="FLOAT")
    after = load(tmp_path, media=OPTIONS).modalities["audio"][0]
    loud = before > np.log(1.0)
    assert loud.any() and after.shape == before.shape
    assert np.abs(after - before)[loud].max() < RESAMPLED_LOG


def test_frames_are_standardised_per_colour_and_batches_do_not_depend_on_residence(media):
    folder, _ = media
    features = load(folder, media=OPTIONS)
    normalizer = Normalizer.fit(features)
    pixels = np.asarray(features.modalities["video"])[features.rows("train")].reshape(-1, 3, 64).astype(np.float64)
    mean = normalizer.mean["video"].reshape(3, 64)
    np.testing.assert_allclose(mean, np.repeat(pixels.mean((0, 2))[:, None], 64, 1), rtol=FP64, atol=0)
    np.testing.assert_allclose(normalizer.scale["video"].reshape(3, 64)[:, 0], pixels.std((0, 2)), rtol=FP64, atol=0)
    for resident in ("always", "never"):
        loader = Loader(features, "train", batch_size=5, shuffle=True, normalizer=normalizer, resident=resident)
        batches = list(loader.batches(1))
        if resident == "always":
            kept = batches
    for a, b in zip(kept, batches, strict=True):
        assert all(torch.equal(a.inputs[m], b.inputs[m]) for m in a.inputs)


def test_a_sample_may_lack_a_modality_but_not_both(media):
    folder, _ = media
    (folder / "AudioWAV" / "train_03.wav").unlink()
    features = load(folder, media=OPTIONS)
    row = list(features.ids).index("train_03")
    assert features.presence[row].tolist() == [False, True] and features.presence.sum() == 2 * len(features) - 1
    for picture in (folder / "frames" / "train_03").iterdir():
        picture.unlink()
    with pytest.raises(DataError, match="no modality is present"):
        load(folder, media=OPTIONS)


def test_what_is_wrong_is_named(media):
    folder, _ = media
    (folder / "AudioWAV" / "train_05.wav").write_bytes(b"RIFF no sound")
    (folder / "frames" / "test_02" / "002.png").write_bytes(b"no picture")
    problems = [str(p) for p in check(folder, media=OPTIONS) if p.severity == "error"]
    assert len(problems) == 2
    assert "train_05.wav: audio of train.csv, row 5: cannot be read" in problems[0]
    assert "test_02/002.png: video of test.csv, row 2: cannot be read" in problems[1]
    with pytest.raises(ConfigError, match="media has no setting 'image'.*did you mean image_size"):
        load(folder, media={"image": 8})
    with pytest.raises(ConfigError, match="media.frames=0 is not allowed; it takes a number of at least 1"):
        load(folder, media={"frames": 0})
    with pytest.raises(ConfigError, match="media.hop=2.5 has the wrong type; it takes one as 353 is"):
        load(folder, media={"hop": 2.5})
    with pytest.raises(DataError, match="takes no options, got {'frames': 2}.*of sounds and pictures media is"):
        load(folder, options={"frames": 2})
    (folder / "test.csv").write_text("test_00\n")
    with pytest.raises(DataError, match=r"test\.csv: line 1 is 'test_00', id,label is needed"):
        load(folder, media=OPTIONS)


def test_a_picture_that_breaks_off_is_refused_when_it_is_read(media):
    folder, _ = media
    broken = folder / "frames" / "train_00" / "000.png"
    broken.write_bytes(broken.read_bytes()[:100])
    features = load(folder, media=OPTIONS)
    with pytest.raises(DataError, match=r"000\.png: cannot be decoded"):
        features.modalities["video"][0]


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_sound_that_is_not_finite_is_refused_by_name_before_anything_is_trained(media, tmp_path, bad):
    from pgm_fast.train import fit

    folder, held = media
    signal = held["train_03"][0].copy()
    signal[200] = bad
    soundfile.write(folder / "AudioWAV" / "train_03.wav", signal, RATE, subtype="FLOAT")
    with pytest.raises(DataError, match=r"train_03\.wav: cannot be decoded: it holds NaN or infinity; replace"):
        fit(data=str(folder), out=str(tmp_path / "run"), **{"media": OPTIONS, "model.dim": 8})
    assert not (tmp_path / "run").exists()


def test_resnet_reads_pictures_and_spectrograms_and_nothing_else(media):
    pytest.importorskip("transformers")
    from pgm_fast.methods import ModelConfig

    folder, _ = media
    features = load(folder, media=OPTIONS)
    model = ModelConfig(dim=16, dropout=0.0)
    encoders = build_encoders(features.spec, model, None).eval()
    loader = Loader(features, "test", batch_size=4, normalizer=Normalizer.fit(features))
    batch = next(loader.batches(0))
    video, frames = encoders["video"].double(), batch.inputs["video"].double()
    with torch.no_grad():
        whole = video(frames, None)
        features_of_frames = [video.net(frames[:, t].view(-1, 3, 8, 8)).pooler_output.flatten(1) for t in range(3)]
        mean_of_features = video.out(torch.stack(features_of_frames).mean(0))
        audio = encoders["audio"](batch.inputs["audio"], batch.lengths["audio"])
    torch.testing.assert_close(whole, mean_of_features, rtol=0, atol=RESNET18_FP64)
    assert audio.shape == (4, 16) and audio.isfinite().all()
    vectors = load("digits").spec
    with pytest.raises(ConfigError, match="resnet18, which reads"):
        build_encoders(vectors, ModelConfig(encoder="resnet18"), None)


def test_a_run_trains_on_files_and_is_applied_to_others(media, tmp_path):
    pytest.importorskip("transformers")
    from pgm_fast.train import evaluate, fit, predict

    folder, _ = media
    settings = {
        "model.dim": 8, "train.epochs": 2, "train.batch_size": 8, "train.lr": 3e-3, "train.plots": False,
        "train.logger": [], "media": OPTIONS,
    }  # fmt: skip
    report = fit(method="pgm", data=str(folder), out=str(tmp_path / "run"), **settings)
    assert set(report["test"]["unimodal"]) == {"audio", "video"}
    write(tmp_path / "other", (("train", 4), ("test", 4)), seed=1)
    predictions = predict(tmp_path / "run", data=str(tmp_path / "other"))
    assert predictions.logits.shape == (8, 2)
    assert evaluate(tmp_path / "run")["fused"]["accuracy"] == report["test"]["fused"]["accuracy"]


DRAWN = {**OPTIONS, "frame_choice": "random", "augment": True, "fit": "squash", "picture_statistics": "imagenet"}


def by_row(loader, epoch, start=0):
    """Row of the feature set -> its values by modality."""
    found = {}
    for batch in loader.batches(epoch, start):
        for k, row in enumerate(batch.index.tolist()):
            found[row] = {m: x[k, : batch.lengths[m][k]] for m, x in batch.inputs.items()}
    return found


def alike(one, two, modality="video"):
    return {row: torch.equal(one[row][modality], two[row][modality]) for row in one}


def test_what_training_draws_is_of_the_seed_the_epoch_and_the_row_alone(media):
    folder, _ = media
    features = load(folder, media=DRAWN)
    settings = {"shuffle": True, "augment": True}
    loader = Loader(features, "train", batch_size=4, **settings)
    first, second = by_row(loader, 0), by_row(loader, 1)
    assert not any(alike(first, second).values()) and all(alike(first, second, "audio").values())
    assert all(alike(first, by_row(Loader(features, "train", batch_size=7, **settings), 0)).values())
    assert not any(alike(first, by_row(Loader(features, "train", batch_size=4, seed=1, **settings), 0)).values())
    tail = by_row(loader, 1, start=2)
    assert len(tail) == len(second) - 8 and all(alike(tail, second).values())
    assert not loader.resident
    with pytest.raises(ConfigError, match="resident='always' would keep pictures that are drawn anew"):
        Loader(features, "train", batch_size=4, resident="always", **settings)
    in_order = Loader(features, "train", batch_size=4)
    assert all(alike(by_row(in_order, 0), by_row(in_order, 1)).values()) and in_order.resident


def test_processes_give_what_a_thread_gives_and_name_a_broken_file(media):
    folder, _ = media
    features = load(folder, media=DRAWN)
    settings = {"shuffle": True, "augment": True, "batch_size": 4, "normalizer": Normalizer.fit(features)}
    thread = Loader(features, "train", **settings)
    processes = Loader(features, "train", workers=1, **settings)
    state = torch.get_rng_state()
    next(processes.batches(0))  # an epoch that is left is none that is waited for
    assert torch.equal(torch.get_rng_state(), state)  # or a run would draw other masks with processes than without
    for epoch, start in ((1, 0), (2, 2)):
        wanted, found = list(thread.batches(epoch, start)), list(processes.batches(epoch, start))
        assert [b.index.tolist() for b in wanted] == [b.index.tolist() for b in found]
        for a, b in zip(wanted, found, strict=True):
            assert all(torch.equal(a.inputs[m], b.inputs[m]) for m in a.inputs)
    broken = folder / "AudioWAV" / "train_00.wav"
    whole = broken.read_bytes()
    broken.write_bytes(b"RIFF no sound")
    with pytest.raises(DataError, match=r"^\S*train_00\.wav: cannot be decoded: [^\n]*$"):
        list(processes.batches(3))
    broken.write_bytes(whole)
    assert len(list(processes.batches(3))) == len(processes)
    children = multiprocessing.active_children()
    assert children
    del processes
    gc.collect()
    for child in children:
        child.join(10)
        assert not child.is_alive()


@pytest.mark.slow
def test_a_run_that_is_stopped_with_its_processes_goes_on_as_if_it_were_not(media, tmp_path):
    pytest.importorskip("transformers")
    folder, _ = media
    settings = [f"media.{key}={str(value).lower()}" for key, value in DRAWN.items()]
    settings += ["model.dim=8", "train.epochs=12", "train.batch_size=8", "train.plots=false", "train.logger=[]"]
    settings += ["train.patience=0", "train.workers=2", "train.threads=1"]
    train = [sys.executable, "-m", "pgm_fast", "train", "--method", "joint", "--data", str(folder), "--out"]
    run = subprocess.Popen([*train, str(tmp_path / "stopped"), *settings], start_new_session=True)
    metrics = tmp_path / "stopped" / "metrics.jsonl"
    while run.poll() is None and not (metrics.exists() and metrics.read_text()):
        time.sleep(0.1)
    os.killpg(run.pid, signal.SIGINT)  # as Ctrl-C at a terminal: to the processes too
    assert run.wait() == 0
    assert json.loads(metrics.read_text().splitlines()[-1])["epoch"] < 12
    subprocess.run([sys.executable, "-m", "pgm_fast", "resume", str(tmp_path / "stopped")], check=True)
    subprocess.run([*train, str(tmp_path / "whole"), *settings, "train.workers=0"], check=True)
    scores = [json.loads((tmp_path / name / "report.json").read_text())["test"] for name in ("stopped", "whole")]
    assert scores[0] == scores[1]
    weights = [
        torch.load(tmp_path / name / "checkpoints" / "best.pt", weights_only=True)["model"]
        for name in ("stopped", "whole")
    ]
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[1])


def test_one_picture_is_the_one_in_the_middle(media):
    folder, _ = media
    five = load(folder, media={**OPTIONS, "frames": 5}).modalities["video"]
    one = load(folder, media={**OPTIONS, "frames": 1}).modalities["video"]
    np.testing.assert_array_equal(one[:, 0], five[:, 2])


def listed(folder, lines):
    """A folder with sounds and pictures ``<id>.png`` of four ids and these lines in its lists."""
    (folder / "sound").mkdir(parents=True, exist_ok=True)
    (folder / "stills").mkdir(exist_ok=True)
    for k in range(4):
        soundfile.write(folder / "sound" / f"c{k}.wav", np.full(400, 0.1), RATE)
        Image.fromarray(np.full((9, 9, 3), 50 * k, np.uint8)).save(folder / "stills" / f"c{k}.png")
    (folder / "train.txt").write_text("\n".join(lines) + "\n")
    (folder / "test.txt").write_text(lines[-1] + "\n")
    return folder


@pytest.mark.parametrize(
    "lines",
    [
        [f"c{k},{'ab'[k % 2]}" for k in range(4)],
        ["id,start,label", *(f"c{k},{k},{'ab'[k % 2]}" for k in range(4))],
        ["label,id", *(f"{'ab'[k % 2]},c{k}" for k in range(4))],
        [f"{'ab'[k % 2]}&c{k}&good&0&{k}" for k in range(4)],
    ],
    ids=["two columns", "named columns", "turned", "AVE"],
)
def test_lists_as_they_are_published(tmp_path, lines):
    folder = listed(tmp_path, lines)
    header = f"{lines[0]}\n" if len(lines) > 4 else ""
    (folder / "test.txt").write_text(f"{header}{lines[-1]}\n")
    features = load(folder, media=OPTIONS)
    assert features.ids.tolist() == ["c0", "c1", "c2", "c3", "c3#2"] and features.class_names == ["a", "b"]
    assert features.labels.tolist() == [0, 1, 0, 1, 1]
    # a picture that is called as its id is a frame of its own, and an id twice is two samples of the same files
    assert [int(x) for x in features.modalities["video"][:, 0, 0]] == [0, 50, 100, 150, 150]
    found = [(p.severity, p.message) for p in check(folder, media=OPTIONS) if p.key.startswith("id")]
    assert [severity for severity, _ in found] == ["warning", "note"] and "in two splits, first 'c3'" in found[0][1]


def test_columns_without_names_are_refused_and_named_ones_are_columns(tmp_path):
    lines = [f"c{k},{k // 2},{'ab'[k % 2]}" for k in range(4)]
    with pytest.raises(
        DataError, match=r"line 1 is 'c0,0,a', id,label is needed; of 3 columns the first line must say"
    ):
        load(listed(tmp_path, lines), media=OPTIONS)
    listed(tmp_path, ["id,person,label", *lines])
    (tmp_path / "test.txt").write_text("id,person,label\nc0,0,a\n")
    assert not [p for p in check(tmp_path, media=OPTIONS, resplit="all", resplit_by="person") if p.severity == "error"]


def test_files_that_are_not_read_are_named_and_the_advice_works(tmp_path):
    folder = listed(tmp_path, [f"c{k},{'ab'[k % 2]}" for k in range(4)])
    for k in range(4):
        (folder / "stills" / f"c{k}.png").rename(folder / "stills" / f"other{k}.png")
    with pytest.raises(
        DataError, match=r"video: 4 files \(first: stills/other0.png\) is not read.*data.ignore=\[video\]"
    ):
        load(folder, media=OPTIONS)
    assert list(load(folder, media=OPTIONS, ignore=["video"]).modalities) == ["audio"]
    assert list(load(folder, media=OPTIONS, ignore=["stills"]).modalities) == ["audio"]
    for k in range(4):
        (folder / "stills" / f"other{k}.png").rename(folder / "stills" / f"c{k}.mp4")
    with pytest.raises(DataError, match=r"c0\.mp4.*convert them"):
        load(folder, media=OPTIONS)
    (folder / "train_old.txt").write_text("c0,a\n")
    with pytest.raises(DataError, match=r"are all lists of the train split.*data.ignore=\[video,train_old.txt\]"):
        load(folder, media=OPTIONS, ignore=["video"])
    assert len(load(folder, media=OPTIONS, ignore=["video", "train_old.txt"])) == 5


@pytest.mark.parametrize("ignore", [[], ["rate-1"], ["rate-9"]])
def test_of_several_folders_with_files_of_an_id_one_is_read_and_said(media, ignore):
    folder, held = media
    (folder / "frames").rename(folder / "rate-1")
    for name in held:
        (folder / "rate-9" / name).mkdir(parents=True)
        Image.fromarray(np.zeros((9, 9, 3), np.uint8)).save(folder / "rate-9" / name / "000.png")
    found = [p.message for p in check(folder, media=OPTIONS, ignore=ignore) if p.key == "video"]
    files = load(folder, media=OPTIONS, ignore=ignore).modalities["video"].sources()
    assert {file.parent.parent.name for file in files} == {"rate-9" if ignore == ["rate-1"] else "rate-1"}
    assert len(found) == (not ignore) and (ignore or "data.ignore=[rate-9]" in found[0])
