"""One reader per format: each turns a source into a :class:`~pgm_fast.data.raw.Raw`, or refuses it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from ..raw import Problem, Raw, RefusedData, Request, nearest
from ..synthetic import read_synthetic
from .audiovisual import read_audiovisual
from .digits import read_digits
from .generic import read_folder, read_npz, read_safetensors
from .lists import find_lists
from .published import read_avmnist, read_lsmi, read_mmsa, read_multibench, read_pickle
from .torch_files import load_torch, read_pt

__all__ = ["EMBEDDED", "FORMATS", "read"]

EMBEDDED = {"digits": read_digits, "synthetic": read_synthetic}
FORMATS: dict[str, Callable[[Path, Request], Raw]] = {
    "npz": read_npz,
    "pt": read_pt,
    "safetensors": read_safetensors,
    "folder": read_folder,
    "mmsa": read_mmsa,
    "multibench": read_multibench,
    "lsmi": read_lsmi,
    "avmnist": read_avmnist,
    "av": read_audiovisual,
}
FOLDERS = ("folder", "avmnist", "av")
SUFFIXES = {
    ".npz": read_npz,
    ".safetensors": read_safetensors,
    ".pkl": read_pickle,
    ".pickle": read_pickle,
    ".p": read_pickle,
}


def read(request: Request) -> Raw:
    """Read ``request.source``, an embedded name or a path. Raises RefusedData: missing, unknown or unreadable."""
    if request.format not in ("auto", *FORMATS):
        close = nearest(request.format, list(FORMATS))
        message = f"unknown format '{request.format}'{close}; one of auto, {', '.join(FORMATS)}"
        raise RefusedData(Problem(request.source, "", None, message))
    if request.format == "auto" and request.source in EMBEDDED:
        if request.options and request.source != "synthetic":
            raise RefusedData(
                Problem(request.source, "options", None, f"takes no options, got {dict(request.options)}")
            )
        return EMBEDDED[request.source](request)
    path = Path(request.source).expanduser()
    if not path.exists():
        raise RefusedData(Problem(request.source, "", None, _missing(path)))
    reader = _detect(path) if request.format == "auto" else FORMATS[request.format]
    if request.format != "auto" and path.is_dir() != (request.format in FOLDERS):
        kind = "folder" if request.format in FOLDERS else "file"
        raise RefusedData(Problem(request.source, "", None, f"format '{request.format}' is a {kind}, and this is none"))
    if request.options and reader is not read_audiovisual:
        message = f"takes no options, got {dict(request.options)}; they are for 'synthetic' and sound and picture files"
        raise RefusedData(Problem(request.source, "options", None, message))
    return reader(path, request)


def _detect(path: Path) -> Callable[[Path, Request], Raw]:
    """The reader by what the path is called and, where the name leaves it open, by what it holds."""
    if path.is_dir():
        if (path / "image").is_dir() and (path / "audio").is_dir():
            return read_avmnist
        return read_audiovisual if "train" in find_lists(path) else read_folder
    suffix = path.suffix.lower()
    if suffix in SUFFIXES:
        return SUFFIXES[suffix]
    if suffix in (".pt", ".pth"):
        return read_lsmi if any(str(key).startswith("train_modal_") for key in load_torch(path)) else read_pt
    kinds = ".npz, .pt, .safetensors, .pkl or a folder of .npy are read"
    message = f"unknown kind of file '{suffix}'; {kinds}, or name the format with format="
    raise RefusedData(Problem(str(path), "", None, message))


def _missing(path: Path) -> str:
    folder = path.parent if path.parent.is_dir() else None
    if folder is None:
        return f"no such file, nor its folder {path.parent}"
    close = nearest(path.name, sorted(p.name for p in folder.iterdir()) + list(EMBEDDED))
    return f"no such file or folder{close}; embedded sets are {', '.join(EMBEDDED)}"
