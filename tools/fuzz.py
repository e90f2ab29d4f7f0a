"""Reads files that are broken at random: each ends in data or in one of this package's errors.

    python tools/fuzz.py [--count 20000] [--seed 0] [--kinds .pt .png]

Pickles, .npy folders, .npz, .pt, .safetensors, .csv, .parquet, .h5, .mat, saved datasets, sounds, pictures, archives
of them, shards of checkpoints and configurations are written as they should be and then changed: bits flipped, bytes
overwritten by small and extreme numbers, pieces cut out, doubled or swapped. A child process with a limit of its memory
reads them; a signal, another exception or a file that takes longer than ten seconds is printed with the number that
makes it again, and the exit status is 1.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import pickle
import random
import resource
import signal
import sys
import tempfile
import warnings
import zlib
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch

from pgm_fast.data import MediaConfig, load
from pgm_fast.data.media import FrameRows, SpectrogramRows
from pgm_fast.data.readers import apart
from pgm_fast.errors import PgmFastError
from pgm_fast.train.configure import make_config, to_yaml
from pgm_fast.train.run.shards import with_shards

MEMORY = 6 << 30  # bytes of address space, torch's libraries among them
SECONDS = 10
MOST_CHANGES = 4
EXTREMES = [b"\0", b"\1", b"\x7f", b"\x80", b"\xff", b"\xff\xff\xff\xff", b"\0\0\0\x80", b"\xff" * 8, b"\0" * 8]


def arrays() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    split = np.array(["train", "train", "train", "valid", "test"] * 4)
    modalities = {name: rng.normal(size=(20, width)).astype(np.float32) for name, width in (("a", 4), ("b", 3))}
    return {**modalities, "label": np.arange(20) % 2, "split": split, "id": np.array([f"row {k}" for k in range(20)])}


def as_npz() -> bytes:
    file = io.BytesIO()
    np.savez_compressed(file, **arrays())
    return file.getvalue()


def as_npy() -> bytes:
    file = io.BytesIO()
    np.save(file, arrays()["a"])
    return file.getvalue()


def as_pt() -> bytes:
    file = io.BytesIO()
    tensors = {k: torch.from_numpy(x) if x.dtype.kind != "U" else x.tolist() for k, x in arrays().items()}
    torch.save(tensors | {"b": arrays()["b"]}, file)
    return file.getvalue()


def as_safetensors() -> bytes:
    from safetensors.numpy import save

    return save({name: x for name, x in arrays().items() if x.dtype.kind != "U"} | {"split": np.arange(20) % 3})


def as_csv() -> bytes:
    columns = {f"{name}_{k}": x for name in "ab" for k, x in enumerate(arrays()[name].T)}
    columns |= {name: x for name, x in arrays().items() if name not in "ab"}
    lines = [",".join(columns), *(",".join(map(str, row)) for row in zip(*columns.values(), strict=True))]
    return "\n".join(lines).encode()


def as_table():
    import pyarrow

    return pyarrow.table(
        {k: x.tolist() for k, x in arrays().items()} | {"c": [[[1.0, 2.0]] * (k % 3) for k in range(20)]}
    )


def as_parquet() -> bytes:
    from pyarrow import parquet

    file = io.BytesIO()
    parquet.write_table(as_table(), file)
    return file.getvalue()


def as_arrow() -> bytes:
    import pyarrow

    file = io.BytesIO()
    with pyarrow.ipc.new_stream(file, as_table().schema) as stream:
        stream.write_table(as_table())
    return file.getvalue()


def as_hdf5() -> bytes:
    import h5py

    file = io.BytesIO()
    with h5py.File(file, "w") as out:
        for name, x in arrays().items():
            out[name] = x.tolist() if x.dtype.kind == "U" else x
        out.create_dataset("c", data=arrays()["b"], chunks=(7, 2), compression="gzip", shuffle=True, fletcher32=True)
        out.create_dataset("d", data=arrays()["b"], compression="lzf")
    return file.getvalue()


def as_matlab(compressed: bool) -> bytes:
    from scipy.io import savemat

    file = io.BytesIO()
    content = {name: x.astype(object)[:, None] if x.dtype.kind == "U" else x for name, x in arrays().items()}
    savemat(file, content | {"names": np.array(["one", "another"] * 10)}, do_compression=compressed)
    return file.getvalue()


def as_matlab_hdf5() -> bytes:
    import h5py

    def letters(text: str) -> np.ndarray:
        return np.array([[ord(letter)] for letter in text], np.uint16)

    file = io.BytesIO()
    with h5py.File(file, "w", userblock_size=512) as out:
        for name, x in arrays().items():
            if x.dtype.kind == "U":
                cells = [out.create_dataset(f"#refs#/{name}{k}", data=letters(t)) for k, t in enumerate(x)]
                for cell in cells:
                    cell.attrs["MATLAB_class"] = np.bytes_("char")
                x, kind = np.array([[cell.ref for cell in cells]], h5py.ref_dtype).T, "cell"
            else:
                kind = "single" if x.dtype.kind == "f" else "int64"
            out.create_dataset(name, data=(x if x.ndim > 1 else x[:, None]).T).attrs["MATLAB_class"] = np.bytes_(kind)
    return file.getvalue()


def as_pickle() -> bytes:
    rows, rng = {"train": 12, "valid": 4, "test": 4}, np.random.default_rng(0)
    return pickle.dumps(
        {
            split: {
                "text": rng.normal(size=(n, 5, 4)).astype(np.float32),
                "audio": rng.normal(size=(n, 5, 3)).astype(np.float32),
                "labels": rng.normal(size=(n, 1, 1)).astype(np.float32),
                "id": np.array([f"clip {k}" for k in range(n)], dtype=object),
            }
            for split, n in rows.items()
        }
    )


def as_wav() -> bytes:
    import soundfile

    file = io.BytesIO()
    soundfile.write(file, 0.1 * np.random.default_rng(0).normal(size=2000), 16000, format="WAV")
    return file.getvalue()


def as_png() -> bytes:
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (20, 24, 3), np.uint8)).save(file, "PNG")
    return file.getvalue()


def as_tar() -> bytes:
    import tarfile

    file, sound, picture = io.BytesIO(), as_wav()[:400], as_png()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for k in range(6):
            for name, data in (
                (f"ä{k}.wav", sound),
                (f"ä{k}.png", picture),
                (f"ä{k}.json", b'{"label": "%d"}' % (k % 2)),
            ):
                member = tarfile.TarInfo(name)
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))
    return file.getvalue()


def shards() -> dict[str, bytes]:
    """The files of a folder of shards, by name."""
    from torch.distributed.checkpoint import FileSystemWriter, save

    tensors = {
        "model/x": torch.arange(12.0).reshape(4, 3),
        "optimizer/0/step": torch.tensor(3),
        "model/y": torch.ones(5),
    }
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        save(tensors, storage_writer=FileSystemWriter(folder), no_dist=True)
        return {path.name: path.read_bytes() for path in sorted(Path(folder).iterdir())}


def as_entry() -> bytes:
    """What last.pt says of its shards."""
    places = {key: key.split("/") for key in ("model/x", "model/y", "optimizer/0/step")}
    files = {name: zlib.crc32(content) for name, content in WHOLE_SHARDS.items()}
    return json.dumps({"folder": "shards-0", "files": files, "places": places}).encode()


def read_shards(folder: Path, entry: dict, files: dict[str, bytes]) -> None:
    place = folder / "shards-0"
    place.mkdir(exist_ok=True)
    for name, content in files.items():
        (place / name).write_bytes(content)
    with_shards(folder / "last.pt", {"shards": entry, "model": {}})


def read_shards_with(name: str, path: Path) -> None:
    """Shards of which one file is this one, and its checksum right."""
    files = WHOLE_SHARDS | {name: path.read_bytes()}
    entry = json.loads(as_entry()) | {"files": {name: zlib.crc32(content) for name, content in files.items()}}
    read_shards(path.parent, entry, files)


def read_entry(path: Path) -> None:
    try:
        entry = json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        return
    read_shards(path.parent, entry, WHOLE_SHARDS)


WHOLE_SHARDS = shards()


def read_tar(path: Path) -> None:
    features = load(path, media={"n_fft": 256, "hop": 128, "image_size": 16})
    for rows in features.modalities.values():
        rows[:]


def read_folder(path: Path) -> None:
    folder = path.parent / "folder"
    folder.mkdir(exist_ok=True)
    for name, x in arrays().items():
        np.save(folder / f"{name}.npy", x)
    (folder / "a.npy").write_bytes(path.read_bytes())
    load(folder)


def read_saved(path: Path) -> None:
    folder = path.parent / "saved"
    folder.mkdir(exist_ok=True)
    (folder / "data.arrow").write_bytes(path.read_bytes())
    (folder / "state.json").write_text('{"_data_files": [{"filename": "data.arrow"}]}')
    (folder / "dataset_info.json").write_text("{}")
    load(folder)


def read_sound(path: Path) -> None:
    rows = SpectrogramRows([path], MediaConfig(sample_rate=16000, n_fft=256, hop=128, max_steps=50))
    list(rows.unreadable(np.arange(1)))
    rows.decode(0, 50)


def read_picture(path: Path) -> None:
    rows = FrameRows([[path]], MediaConfig(frames=1, image_size=16))
    list(rows.unreadable(np.arange(1)))
    rows.decode(0, 1)


KINDS: dict[str, tuple[Callable[[], bytes], Callable[[Path], object]]] = {
    ".npz": (as_npz, load),
    ".npy": (as_npy, read_folder),
    ".pt": (as_pt, load),
    ".safetensors": (as_safetensors, load),
    ".csv": (as_csv, load),
    ".parquet": (as_parquet, load),
    ".arrow": (as_arrow, read_saved),
    ".h5": (as_hdf5, load),
    ".mat": (lambda: as_matlab(False), load),
    ".7.mat": (lambda: as_matlab(True), load),
    ".73.mat": (as_matlab_hdf5, load),
    ".pkl": (as_pickle, load),
    ".wav": (as_wav, read_sound),
    ".png": (as_png, read_picture),
    ".tar": (as_tar, read_tar),
    ".metadata": (lambda: WHOLE_SHARDS[".metadata"], partial(read_shards_with, ".metadata")),
    ".distcp": (lambda: WHOLE_SHARDS["__0_0.distcp"], partial(read_shards_with, "__0_0.distcp")),
    ".entry": (as_entry, read_entry),
    ".yaml": (lambda: to_yaml(make_config()).encode(), make_config),
}


def changed(content: bytes, draw: random.Random) -> bytes:
    content = bytearray(content)
    for _ in range(draw.randint(1, MOST_CHANGES)):
        # headers are at the beginning or the end: half of the changes go there
        reach = min(len(content), 200) if draw.random() < 0.5 else len(content)
        at = draw.randrange(max(1, reach))
        at = len(content) - 1 - at if draw.random() < 0.25 else at
        kind = draw.randrange(5)
        if kind == 0 and content:
            content[at] ^= 1 << draw.randrange(8)
        elif kind == 1:
            extreme = draw.choice(EXTREMES)
            content[at : at + len(extreme)] = extreme
        elif kind == 2:
            del content[at : at + draw.randint(1, 64)]
        elif kind == 3:
            content[at:at] = content[at : at + draw.randint(1, 64)]
        else:
            other, size = draw.randrange(max(1, len(content))), draw.randint(1, 32)
            content[at : at + size] = content[other : other + size]
    return bytes(content)


def read_all(first: int, count: int, seed: int, names: Sequence[str], report: int) -> None:
    """In the child: files ``first`` to ``count``; each number before it is read, and what went wrong, to ``report``."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    torch.set_num_threads(1)
    apart.SILENCE = SECONDS / 2
    whole = {name: KINDS[name][0]() for name in names}
    with tempfile.TemporaryDirectory() as folder:
        for number in range(first, count):
            os.write(report, f"{number}\n".encode())
            name = names[number % len(names)]
            path = Path(folder) / f"file{name}"
            path.write_bytes(changed(whole[name], random.Random(f"{seed} {number}")))
            signal.alarm(SECONDS)
            try:
                KINDS[name][1](path)
            except PgmFastError:
                pass
            except Exception as error:
                what = " ".join(str(error).split())[:200]
                os.write(report, f"FOUND {number} {name} {type(error).__name__}: {what}\n".encode())
            signal.alarm(0)


def run(count: int, seed: int, names: Sequence[str] = tuple(KINDS)) -> list[str]:
    """What was found in files of these kinds, one after the other."""
    found, first = [], 0
    while first < count:
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(reading)
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, 1)
            os.dup2(null, 2)
            read_all(first, count, seed, names, writing)
            os._exit(0)
        os.close(writing)
        last = first
        with os.fdopen(reading) as lines:
            for line in lines:
                if line.startswith("FOUND"):
                    found.append(line.strip())
                else:
                    last = int(line)
        status = os.waitpid(child, 0)[1]
        if status == 0:
            break
        name = names[last % len(names)]
        found.append(f"FOUND {last} {name} the process ended with status {os.waitstatus_to_exitcode(status)}")
        first = last + 1
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=20000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kinds", nargs="+", choices=list(KINDS), default=list(KINDS))
    arguments = parser.parse_args()
    found = run(arguments.count, arguments.seed, arguments.kinds)
    print("\n".join(found[:50]))
    print(f"{arguments.count} files read, {len(found)} ended in something else than data or an error of this package")
    sys.exit(bool(found))


if __name__ == "__main__":
    main()
