"""The program that reads an HDF5 file for :mod:`.apart`, in a process of its own: the HDF5 library may end a process
that reads a broken file, or never come back. It imports h5py and numpy alone.

Standard input is one JSON object, ``{"path", "ignore", "matlab", "memory", "modules"}``. On standard output follow
lines of JSON, an array's with its bytes behind it::

    {"key": "a/b", "shape": [3, 4], "dtype": "<f4", "offset": 2048}   lies in one piece in the file
    {"key": "a/b", "shape": [3, 4], "dtype": "<f4"}                   its bytes follow, rows first
    {"key": "a/b", "rows": 9, "text": ["x", "y"], "more": true}       text, in pieces
    {"key": "a/b", "empty": true}                                     to be ignored
    {"key": "a", "group": true}
    {"key": "a/b", "refused": "a link"}  or  {"key": "", "broken": "..."}
    {"end": true}
"""

import json
import math
import sys

FILTERS = {1: "gzip", 2: "shuffle", 3: "fletcher32", 32000: "lzf"}  # what h5py comes with, by their numbers
PIECE = 16 << 20  # bytes
TEXTS = 256  # that are read at once: each may be as long as the file


class Refused(Exception):
    """Something that is not read; its text says what, and what to do."""


def say(**message):
    sys.stdout.buffer.write(json.dumps(message).encode() + b"\n")
    sys.stdout.buffer.flush()


def main():
    order = json.load(sys.stdin)
    sys.path[:] = order["modules"]
    import h5py

    limit(order["memory"])
    key = ""
    try:
        with h5py.File(order["path"], "r", locking="best-effort") as file:
            for key in file:
                if order["matlab"] and key.startswith("#"):
                    continue
                if key in order["ignore"]:
                    say(key=key, empty=True)
                elif kind_of(h5py, file, key) is not h5py.Group:
                    send(h5py, file, key, order["matlab"])
                else:
                    outer = key
                    say(key=outer, group=True)
                    for name in file[outer]:
                        key = f"{outer}/{name}"
                        if name in order["ignore"]:
                            say(key=key, empty=True)
                        elif kind_of(h5py, file, key) is h5py.Group:
                            raise Refused("a group in a group")
                        else:
                            send(h5py, file, key, order["matlab"])
    except Refused as refused:
        say(key=key, refused=str(refused))
    except Exception as error:
        say(key=key, broken=f"{type(error).__name__}: {' '.join(str(error).split())[:300]}")
    say(end=True)


def limit(memory):
    """Of the address space, above what the imports took."""
    try:
        import resource

        with open("/proc/self/statm", encoding="ascii") as file:
            used = int(file.read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + memory, used + memory))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    except (ImportError, OSError, ValueError):  # a system without such limits
        pass


def kind_of(h5py, file, key):
    """Dataset or group. A link is told by its own kind, and not followed."""
    link = file.get(key, getlink=True)
    if not isinstance(link, h5py.HardLink):
        raise Refused("a link, and links are not followed; store the data itself")
    kind = file.get(key, getclass=True)
    if kind not in (h5py.Dataset, h5py.Group):
        raise Refused("neither a dataset nor a group")
    return kind


def send(h5py, file, key, matlab):
    dataset = file[key]
    properties = dataset.id.get_create_plist()
    if properties.get_layout() == h5py.h5d.VIRTUAL or properties.get_external_count():
        raise Refused("its values are in other files, which are not read; store them in this one")
    filters = [properties.get_filter(k)[0] for k in range(properties.get_nfilters())]
    if not set(filters) <= set(FILTERS) or len(set(filters)) < len(filters):
        names = ", ".join(FILTERS.get(number, f"number {number}") for number in filters[:8])
        known = ", ".join(FILTERS.values())
        raise Refused(f"filters {names}, which are not read; write it again with one of {known}, or none")
    if dataset.shape is None:
        raise Refused("a dataset without values; store numbers or text")
    text = h5py.check_string_dtype(dataset.dtype)
    if text is not None:
        send_text(dataset, key, text)
        return
    if dataset.dtype.kind not in "fiub":
        what = "references" if h5py.check_ref_dtype(dataset.dtype) else f"values of {str(dataset.dtype)[:80]}"
        cells = " (a cell array: save with -v7, or store numbers)" if matlab else ""
        raise Refused(f"{what}{cells}, which are not read; store numbers or text")
    offset = dataset.id.get_offset()
    described = {"key": key, "shape": dataset.shape, "dtype": dataset.dtype.str}
    if matlab:
        described["matlab"] = matlab_class(dataset)
    elif offset is not None and dataset.ndim > 1 and is_as_numpy_has_it(h5py, dataset):
        say(**described, offset=offset)
        return
    say(**described)
    for piece in pieces(dataset):
        sys.stdout.buffer.write(piece.tobytes())
    sys.stdout.buffer.flush()


def is_as_numpy_has_it(h5py, dataset):
    """Whether numbers need no conversion: HDF5 knows of bits to leave out, other exponents, padding."""
    return dataset.dtype.kind in "fiu" and dataset.id.get_type().equal(h5py.h5t.py_create(dataset.dtype))


def matlab_class(dataset):
    kind = dataset.attrs.get("MATLAB_class", b"")
    return kind.decode("latin1") if isinstance(kind, bytes) else ""


def pieces(dataset):
    """Its rows, whole chunks at a time."""
    if dataset.ndim == 0 or not dataset.size:
        yield dataset[()]
        return
    row = math.prod(dataset.shape[1:]) * dataset.dtype.itemsize
    chunk = dataset.chunks[0] if dataset.chunks else 1
    step = chunk * max(1, PIECE // max(1, row * chunk))
    for start in range(0, dataset.shape[0], step):
        yield dataset[start : start + step]


def send_text(dataset, key, info):
    if dataset.ndim > 1:
        raise Refused(f"text of shape {dataset.shape}; store text as [N]")
    values = dataset.asstr("utf-8")
    if dataset.ndim == 0:
        say(key=key, text=str(values[()]))
        return
    rows = dataset.shape[0]
    for start in range(0, rows or 1, TEXTS):
        say(key=key, rows=rows, text=values[start : start + TEXTS].tolist(), more=start + TEXTS < rows)


if __name__ == "__main__":
    main()
