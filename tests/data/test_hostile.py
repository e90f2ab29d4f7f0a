"""Files of strangers: whatever their bytes are, they end in data or in one error, and write nothing outside of it."""

from __future__ import annotations

import io
import pickle
import re
import struct
import zipfile

import numpy as np
import pytest
import torch

from pgm_fast.data import MediaConfig, load
from pgm_fast.data.media import MOST_PIXELS, FrameRows, SpectrogramRows
from pgm_fast.data.raw import RefusedData
from pgm_fast.data.readers.pickles import load_pickle
from pgm_fast.errors import ConfigError, PgmFastError
from pgm_fast.train.configure import make_config


@pytest.fixture(scope="module")
def fuzz(script):
    return script("tools/fuzz.py")


def test_files_broken_at_random_end_in_data_or_in_an_error_of_the_package(fuzz):
    assert fuzz.run(160, seed=1) == []


def test_what_is_fuzzed_can_be_read_whole(fuzz, tmp_path):
    for name, (write, read) in fuzz.KINDS.items():
        (tmp_path / f"file{name}").write_bytes(write())
        read(tmp_path / f"file{name}")


def call(module, name, *arguments):
    return b"c" + f"{module}\n{name}\n".encode() + b"(" + b"".join(arguments) + b"tR"


def text(x):
    return b"X" + struct.pack("<I", len(x.encode())) + x.encode()


def number(x):
    return b"\x8a\x08" + struct.pack("<q", x)


def dtype(code):
    return call("numpy", "dtype", text(code))


def array(count, code, data):
    made = call("numpy._core.multiarray", "_reconstruct")
    return made + b"(" + number(1) + b"(" + number(count) + b"t" + dtype(code) + b"\x89" + data + b"tb"


OBJECTS = array(2, "O", b"](" + text("a") + text("b") + b"e")
NUMBERS = array(1, "i8", b"C\x08" + struct.pack("<q", 7))
PICKLES = {
    "numbers over an array of objects": call(
        "numpy._core.numeric", "_frombuffer", OBJECTS, dtype("q"), b"(" + number(2) + b"t"
    ),
    "numbers over another array": call(
        "numpy._core.numeric", "_frombuffer", NUMBERS, dtype("q"), b"(" + number(1) + b"t"
    ),
    "a scalar out of an array": call("numpy._core.multiarray", "scalar", dtype("q"), NUMBERS),
    "an array out of an array": array(1, "q", NUMBERS),
    "more values than bytes": array(3, "q", b"C\x08" + bytes(8)),
    "values of no size": array(2**62, "U0", b"C\x00"),
    "no such character": array(1, "U1", b"C\x04\xff\xff\xff\xff"),
    "a negative size": array(-1, "q", b"C\x00"),
}


@pytest.mark.parametrize("name", PICKLES)
def test_no_array_of_a_pickle_is_a_view_of_anything(name, tmp_path):
    path = tmp_path / "data.pkl"
    path.write_bytes(b"\x80\x04" + PICKLES[name] + b".")
    with pytest.raises(RefusedData):
        load_pickle(path)


# An array whose state is given twice: what shares its memory after the first would be left with freed memory.
TWICE = array(1, "q", b"C\x08" + bytes(8)) + b"(" + number(1) + b"(" + number(1) + b"t" + dtype("q") + b"\x89"
TWICE += b"C\x08" + bytes(8) + b"tb"


@pytest.mark.parametrize("name", [*PICKLES, "filled twice", "made by its type"])
def test_no_array_of_a_torch_file_is_a_view_of_anything(name, tmp_path):
    made = b"cnumpy.ndarray\nchecked\n(" + number(4) + b"t\x81"
    content = {**PICKLES, "filled twice": TWICE, "made by its type": made}[name]
    torch.save({"a": 1}, tmp_path / "whole.pt")
    with zipfile.ZipFile(tmp_path / "whole.pt") as whole, zipfile.ZipFile(tmp_path / "data.pt", "w") as archive:
        for member in whole.namelist():
            own = b"\x80\x02}" + text("a") + re.sub(rb"C(?=[\0\4\x08])", b"U", content) + b"s."
            archive.writestr(member, own if member.endswith("data.pkl") else whole.read(member))
    with pytest.raises(RefusedData, match="refused|not a readable torch file") as caught:
        load(tmp_path / "data.pt")
    assert "unsupported operand" not in str(caught.value)


def test_arrays_of_honest_pickles_are_read_as_they_are(tmp_path):
    path = tmp_path / "data.pkl"
    values = [
        np.arange(6.0).reshape(2, 3),
        np.asfortranarray(np.arange(6, dtype=">i4").reshape(2, 3)),
        np.array(["ä", "text"]),
        np.array(["a", "bc"], dtype=object),
        np.zeros((0, 3), np.float32),
        np.float32(2.5),
    ]
    for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1):
        path.write_bytes(pickle.dumps(values, protocol))
        for found, expected in zip(load_pickle(path), values, strict=True):
            assert np.array_equal(found, expected) and np.asarray(found).dtype.kind == expected.dtype.kind


def npy(header):
    head = header.encode() + b" " * (-(len(header) + 11) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(head)) + head


MEMBERS = {
    "a text": ("readme.txt", b"hello"),
    "more rows than bytes": ("a.npy", npy("{'descr': '<f4', 'fortran_order': False, 'shape': (1099511627776, 4), }")),
    "a header that is no literal": ("a.npy", npy("-" * 9000 + "1")),
}


@pytest.mark.parametrize("name", MEMBERS)
def test_a_strange_member_of_an_archive_is_named(name, tmp_path):
    with zipfile.ZipFile(tmp_path / "data.npz", "w") as archive:
        archive.writestr(*MEMBERS[name])
        file = io.BytesIO()
        np.save(file, np.arange(4) % 2)
        archive.writestr("label.npy", file.getvalue())
    with pytest.raises(PgmFastError, match="not readable"):
        load(tmp_path / "data.npz")


def test_an_archive_that_does_not_fit_into_memory_is_not_unpacked(tmp_path, monkeypatch):
    monkeypatch.setattr("pgm_fast.data.archives.free_bytes", lambda device: 1000)
    monkeypatch.setattr("pgm_fast.data.archives.SMALL", 0)
    np.savez_compressed(tmp_path / "data.npz", a=np.zeros((4000, 4)), label=np.arange(4000) % 2)
    torch.save({"a": torch.zeros(4000, 4), "label": torch.arange(4000) % 2}, tmp_path / "data.pt")
    for name in ("data.npz", "data.pt"):
        with pytest.raises(PgmFastError, match="store them in a folder of .npy files"):
            load(tmp_path / name)


@pytest.mark.parametrize(
    ("size", "reason"), [((1, 20000), "one side more than 100 times"), ((12000, 12000), "of at most")]
)
def test_a_picture_of_a_strange_size_is_not_decoded(size, reason, tmp_path):
    image = pytest.importorskip("PIL.Image")
    assert 12000**2 > MOST_PIXELS
    image.new("1", size).save(tmp_path / "0.png")
    rows = FrameRows([[tmp_path / "0.png"]], MediaConfig(frames=1, image_size=16))
    assert [why for _, _, why in rows.unreadable(np.arange(1)) if reason in why]
    with pytest.raises(RefusedData, match=reason):
        rows.decode(0, 1)


@pytest.mark.parametrize("rate", [1, 2**31 - 1])
def test_a_sound_of_a_strange_rate_is_not_decoded(rate, tmp_path):
    soundfile = pytest.importorskip("soundfile")
    soundfile.write(tmp_path / "0.wav", np.zeros(4000), 16000)
    content = bytearray((tmp_path / "0.wav").read_bytes())
    content[24:28] = struct.pack("<I", rate)
    (tmp_path / "0.wav").write_bytes(content)
    rows = SpectrogramRows([tmp_path / "0.wav"], MediaConfig(sample_rate=16000, n_fft=256, hop=128, max_steps=50))
    with pytest.raises(RefusedData, match=f"has {rate} samples per second, must have 1000 to 384000"):
        rows.decode(0, 50)


@pytest.mark.parametrize(
    "content", [b"out: \xff\n", b"data: " + b"{a: " * 900 + b"1" + b"}" * 900, b"train: {epochs: " + b"9" * 5000 + b"}"]
)
def test_a_broken_configuration_is_one_error(content, tmp_path):
    (tmp_path / "c.yaml").write_bytes(content)
    with pytest.raises(ConfigError, match="c.yaml"):
        make_config(tmp_path / "c.yaml")
