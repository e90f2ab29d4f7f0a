"""Archives of sounds and pictures: a row is what it is in a folder of files, and a broken archive ends in one error."""

from __future__ import annotations

import io
import json
import tarfile

import numpy as np
import pytest

from pgm_fast.data import check, load
from pgm_fast.errors import DataError
from pgm_fast.train.run.fingerprints import differences, fingerprint

soundfile = pytest.importorskip("soundfile")
Image = pytest.importorskip("PIL.Image")

RATE = 8000
OPTIONS = {"sample_rate": RATE, "n_fft": 64, "hop": 32, "max_steps": 35, "frames": 2, "image_size": 8}
LABELS = ("angry", "sad")


def sound(seed):
    file = io.BytesIO()
    soundfile.write(file, 0.1 * np.random.default_rng(seed).standard_normal(500 + 10 * seed), RATE, format="WAV")
    return file.getvalue()


def picture(seed):
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 255, (9, 12, 3), np.uint8)).save(file, "PNG")
    return file.getvalue()


def samples(first=0, rows=10):
    return {
        f"clips/{k:04d}": {
            "wav": sound(k),
            "0.png": picture(k),
            "1.png": picture(100 + k),
            "json": json.dumps({"label": LABELS[k % 2], "person": f"p{k // 2}", "take": k, "more": [k]}).encode(),
        }
        for k in range(first, first + rows)
    }


def write(path, content, format=tarfile.PAX_FORMAT):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=format) as archive:
        for key, files in content.items():
            for extension, data in files.items():
                member = tarfile.TarInfo(f"{key}.{extension}")
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))


@pytest.fixture
def archives(tmp_path):
    write(tmp_path / "tars" / "train-0000.tar", samples(0, 6))
    write(tmp_path / "tars" / "train-0001.tar", samples(6, 4), tarfile.GNU_FORMAT)
    write(tmp_path / "tars" / "test" / "0000.tar", samples(20, 6), tarfile.USTAR_FORMAT)
    return tmp_path / "tars"


def test_rows_are_those_of_the_same_files_in_a_folder(archives, tmp_path):
    folder = tmp_path / "folder"
    for split, content in (("train", samples(0, 10)), ("test", samples(20, 6))):
        lines = ["id,person,label"]
        for key, files in content.items():
            name = key.removeprefix("clips/")
            (folder / "frames" / name).mkdir(parents=True)
            (folder / f"{name}.wav").write_bytes(files["wav"])
            for k in range(2):
                (folder / "frames" / name / f"{k}.png").write_bytes(files[f"{k}.png"])
            said = json.loads(files["json"])
            lines.append(f"{name},{said['person']},{said['label']}")
        (folder / f"{split}.csv").write_text("\n".join(lines))
    packed, plain = load(archives, media=OPTIONS), load(folder, media=OPTIONS)
    assert [*packed.ids] == [f"clips/{name}" for name in plain.ids] and packed.class_names == plain.class_names
    assert np.array_equal(packed.labels, plain.labels) and np.array_equal(packed.split, plain.split)
    assert np.array_equal(packed.lengths["audio"], plain.lengths["audio"])
    for name in ("audio", "video"):
        assert np.array_equal(packed.modalities[name][:], plain.modalities[name][:])
    people = load(archives, media=OPTIONS, resplit="all", resplit_by="person")
    kept = dict(zip(people.ids, people.split, strict=True))
    assert all(kept[f"clips/{k:04d}"] == kept[f"clips/{k + 1:04d}"] for k in range(0, 10, 2))


def test_a_changed_file_in_an_archive_is_other_data(archives):
    before = fingerprint(load(archives, media=OPTIONS))
    assert differences(load(archives, media=OPTIONS), before) == []
    file = archives / "train-0001.tar"
    content = bytearray(file.read_bytes())
    content[content.index(b"data", content.index(b"WAVE")) + 100] ^= 1
    file.write_bytes(content)
    assert differences(load(archives, media=OPTIONS), before) == ["modality audio"]


@pytest.mark.parametrize("label", ["cls", "json", "number"])
def test_a_single_archive_is_split_and_its_labels_are_read(tmp_path, label):
    content = samples(0, 10)
    for k, files in enumerate(content.values()):
        if label == "cls":
            files["cls"] = f"{k % 3}\n".encode()
        elif label == "number":
            files["json"] = json.dumps(k % 3).encode()
    write(tmp_path / "a.tar", content)
    features = load(tmp_path / "a.tar", media=OPTIONS)
    wanted = [k % 2 for k in range(10)] if label == "json" else [k % 3 for k in range(10)]
    assert features.labels.tolist() == wanted and set(features.split) == {"train", "valid", "test"}
    if label != "number":
        scores = load(tmp_path / "a.tar", media=OPTIONS, label="take", task="regression").labels
        assert scores.tolist() == [*range(10)]


def test_archives_that_count_anew_and_rows_without_sound(tmp_path):
    content = samples(0, 5)
    del content["clips/0003"]["wav"]
    for split in ("train", "val", "test"):
        write(tmp_path / f"{split}-0000.tar", content)
    features = load(tmp_path, media=OPTIONS)
    assert features.ids[[0, 5]].tolist() == [f"{tmp_path / split}-0000.tar/clips/0000" for split in ("train", "val")]
    assert features.presence[:, 0].tolist() == [k % 5 != 3 for k in range(15)]


def test_long_names_are_whole(tmp_path):
    for format in (tarfile.PAX_FORMAT, tarfile.GNU_FORMAT):
        write(tmp_path / "a.tar", {f"{'d' * 90}/{'n' * 90}ä{key[-1]}": x for key, x in samples().items()}, format)
        assert load(tmp_path / "a.tar", media=OPTIONS).ids[3] == f"{'d' * 90}/{'n' * 90}ä3"


def test_what_is_not_read_is_named_and_the_advice_works(tmp_path):
    content = samples()
    for files in content.values():
        files |= {"txt": b"a caption", "mp4": b"", "far.wav": files["wav"]}
    write(tmp_path / "a.tar", content)
    ignore = []
    for reason in (r"far\.wav, clips/0000\.wav are all its sound", r"txt: 10 files", r"mp4: 10 files .*convert them"):
        with pytest.raises(DataError, match=reason) as caught:
            load(tmp_path / "a.tar", media=OPTIONS, ignore=ignore)
        ignore = str(caught.value).split("data.ignore=[")[1].split("]")[0].split(",")
    assert len(load(tmp_path / "a.tar", media=OPTIONS, ignore=ignore)) == 10
    content["clips/0002"] = {"wav": content["clips/0002"]["wav"]}
    write(tmp_path / "a.tar", content)
    with pytest.raises(DataError, match=r"label of a\.tar, row 2: clips/0002 has no label"):
        load(tmp_path / "a.tar", media=OPTIONS, ignore=ignore)
    assert len(load(tmp_path / "a.tar", media=OPTIONS, ignore=[*ignore, "json"], task="retrieval")) == 10
    content["clips/0002"] |= {"json": b'{"label": 3}'}
    write(tmp_path / "a.tar", content)
    with pytest.raises(DataError, match="some labels are numbers, some are text"):
        load(tmp_path / "a.tar", media=OPTIONS, ignore=ignore)


def test_archives_without_a_split_among_others_are_named(archives):
    write(archives / "latest.tar", samples(40, 3))
    with pytest.raises(DataError, match=r"no split in its name, latest\.tar.*data\.ignore=\[latest\.tar\]"):
        load(archives, media=OPTIONS)
    assert len(load(archives, media=OPTIONS, ignore=["latest.tar"])) == 16


def head(name, size=b"", kind=b"0"):
    member = tarfile.TarInfo(name)
    block = bytearray(member.tobuf(tarfile.USTAR_FORMAT))
    block[156:157] = kind
    block[124 : 124 + len(size)] = size
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def pax(text):
    return head("x", b"%011o\0" % len(text), b"x") + text.ljust(512, b"\0")


BROKEN = {
    "a link": (head("clips/x.wav", kind=b"2"), "a link"),
    "another name of a file": (head("clips/x.wav", kind=b"1"), "a link"),
    "a device": (head("clips/x.wav", kind=b"4"), "of another kind"),
    "sparse": (head("clips/x.wav", kind=b"S"), "of another kind"),
    "sparse, as POSIX has it": (pax(b"22 GNU.sparse.major=1\n") + head("clips/x.wav"), "of another kind"),
    "negative": (head("clips/x.wav", b"\xff" * 12), "has -1 bytes"),
    "negative, as POSIX has it": (pax(b"11 size=-9\n") + head("clips/x.wav"), "has -9 bytes"),
    "no end": (head("clips/x.wav", b"%011o\0" % (1 << 30)), "has 1073741824 bytes, of which"),
    "long remarks": (head("x", b"%011o\0" % (1 << 20), b"x") + bytes(1 << 20), "1048576 bytes of remarks"),
    "no remarks": (pax(b"999999999 path=a\n"), "that are none"),
    "no sum": (head("clips/x.wav")[:-1] + b"1", "bad checksum"),
    "twice": (head("clips/0000.wav"), "in it twice"),
}


@pytest.mark.parametrize("name", list(BROKEN))
def test_a_broken_archive_ends_in_one_error(tmp_path, name):
    write(tmp_path / "a.tar", samples())
    whole = (tmp_path / "a.tar").read_bytes()
    more, reason = BROKEN[name]
    (tmp_path / "a.tar").write_bytes(
        whole.rstrip(b"\0").ljust(-(-len(whole.rstrip(b"\0")) // 512) * 512, b"\0") + more + bytes(1024)
    )
    with pytest.raises(DataError, match=rf"a\.tar: not readable: .*{reason}") as caught:
        load(tmp_path / "a.tar", media=OPTIONS)
    assert "\n" not in str(caught.value)


def test_an_archive_cut_anywhere_or_glued_to_another_is_refused(tmp_path):
    write(tmp_path / "a.tar", samples(0, 6))
    whole = (tmp_path / "a.tar").read_bytes()
    end = len(whole.rstrip(b"\0"))
    for size in [*range(0, end, 700), end]:
        (tmp_path / "a.tar").write_bytes(whole[:size])
        with pytest.raises(DataError, match=r"a\.tar: not readable"):
            load(tmp_path / "a.tar", media=OPTIONS)
    (tmp_path / "a.tar").write_bytes(whole + whole)
    with pytest.raises(DataError, match="goes on behind its end"):
        load(tmp_path / "a.tar", media=OPTIONS)


def test_files_in_an_archive_that_cannot_be_decoded_are_named(tmp_path):
    content = samples()
    content["clips/0004"]["wav"] = b"RIFF no sound"
    content["clips/0007"]["1.png"] = b"no picture"
    write(tmp_path / "a.tar", content)
    problems = [str(p) for p in check(tmp_path / "a.tar", media=OPTIONS) if p.severity == "error"]
    assert len(problems) == 2
    assert "a.tar: clips/0004.wav: audio of a.tar, row 4: cannot be read" in problems[0]
    assert "a.tar: clips/0007.1.png: video of a.tar, row 7: cannot be read" in problems[1]
