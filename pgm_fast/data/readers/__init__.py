"""One reader per format: each turns a source into a :class:`~pgm_fast.data.raw.Raw`, or refuses it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ...errors import did_you_mean
from ..raw import Problem, Raw, RefusedData, Request
from ..synthetic import read_synthetic
from .audiovisual import read_audiovisual
from .digits import read_digits
from .generic import read_folder, read_npy, read_npz, read_safetensors
from .hdf5 import read_hdf5
from .lists import find_lists
from .matlab import read_matlab
from .published import is_lsmi, read_avmnist, read_lsmi, read_mmsa, read_multibench, read_pickle
from .saved import is_saved, read_saved
from .tables import read_parquet, read_text_table
from .tars import has_tars, read_tars
from .torch_files import read_pt

__all__ = ["EMBEDDED", "FORMATS", "Format", "read"]

EMBEDDED = {"digits": read_digits, "synthetic": read_synthetic}


@dataclass(frozen=True)
class Format:
    """A format that is read.

    Attributes:
        read: its reader.
        suffixes: of its files, in small letters; none for folders, and for files that another format tells apart.
        folder: whether it is a folder; with ``suffixes`` it may be either.
        holds: what a folder or a file with one of the suffixes must be besides, None for any.
    """

    read: Callable[[Path, Request], Raw]
    suffixes: tuple[str, ...] = ()
    folder: bool = False
    holds: Callable[[Path], bool] | None = None

    def fits(self, path: Path) -> bool:
        """Whether a path that exists is of this format, by its name and, where that leaves it open, by its content."""
        named = self.folder if path.is_dir() else path.suffix.lower() in self.suffixes
        return named and (self.holds is None or self.holds(path))


# The first that fits is taken.
FORMATS = {
    "npz": Format(read_npz, (".npz",)),
    "npy": Format(read_npy, (".npy",)),
    "lsmi": Format(read_lsmi, (".pt", ".pth"), holds=is_lsmi),
    "pt": Format(read_pt, (".pt", ".pth")),
    "safetensors": Format(read_safetensors, (".safetensors",)),
    "csv": Format(read_text_table, (".csv", ".tsv")),
    "parquet": Format(read_parquet, (".parquet", ".pq")),
    "hdf5": Format(read_hdf5, (".h5", ".hdf5")),
    "matlab": Format(read_matlab, (".mat",)),
    "pickle": Format(read_pickle, (".pkl", ".pickle", ".p")),
    "mmsa": Format(read_mmsa),
    "multibench": Format(read_multibench),
    "avmnist": Format(
        read_avmnist, folder=True, holds=lambda path: (path / "image").is_dir() and (path / "audio").is_dir()
    ),
    "datasets": Format(read_saved, folder=True, holds=is_saved),
    "av": Format(read_audiovisual, folder=True, holds=lambda path: "train" in find_lists(path)),
    "webdataset": Format(read_tars, (".tar",), folder=True, holds=has_tars),
    "folder": Format(read_folder, folder=True),
}


def read(request: Request) -> Raw:
    """Read ``request.source``, an embedded name or a path. Raises RefusedData: missing, unknown or unreadable."""
    if request.format not in ("auto", *FORMATS):
        close = did_you_mean(request.format, list(FORMATS))
        message = f"unknown format '{request.format}'{close}; one of auto, {', '.join(FORMATS)}"
        raise RefusedData(Problem(request.source, "", None, message))
    if request.format == "auto" and request.source in EMBEDDED:
        if request.source != "synthetic":
            _require_no_options(request)
        return EMBEDDED[request.source](request)
    path = Path(request.source).expanduser()
    if not path.exists():
        raise RefusedData(Problem(request.source, "", None, _missing(path)))
    if path.is_file() and not path.stat().st_size:
        raise RefusedData(Problem(request.source, "", None, "not readable: an empty file, of 0 bytes; write it again"))
    format = _detect(path) if request.format == "auto" else FORMATS[request.format]
    if not (format.folder if path.is_dir() else format.suffixes or not format.folder):
        kind = "folder" if format.folder else "file"
        raise RefusedData(Problem(request.source, "", None, f"format '{request.format}' is a {kind}, and this is none"))
    _require_no_options(request)
    return format.read(path, request)


def _require_no_options(request: Request) -> None:
    if request.options:
        message = f"takes no options, got {dict(request.options)}; they are for 'synthetic'"
        raise RefusedData(Problem(request.source, "options", None, f"{message}, and of sounds and pictures media is"))


def _detect(path: Path) -> Format:
    for format in FORMATS.values():
        if format.fits(path):
            return format
    suffixes = dict.fromkeys(suffix for format in FORMATS.values() for suffix in format.suffixes)
    message = f"unknown kind of file '{path.suffix.lower()}'; {', '.join(suffixes)} and folders are read"
    message = f"{message}; rename it, or name its format by data.format, one of {', '.join(FORMATS)}"
    raise RefusedData(Problem(str(path), "", None, message))


def _missing(path: Path) -> str:
    folder = path.parent if path.parent.is_dir() else None
    if folder is None:
        return f"no such file, nor its folder {path.parent}"
    close = did_you_mean(path.name, sorted(p.name for p in folder.iterdir()) + list(EMBEDDED))
    return f"no such file or folder{close}; embedded sets are {', '.join(EMBEDDED)}"
