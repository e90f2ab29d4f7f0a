"""The program that reads an HDF5 file for :mod:`.apart`, in a process of its own: the HDF5 library may end a process
that reads a broken file, or never come back. It imports h5py and numpy alone. Files of MATLAB's version 7.3 are HDF5.

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

PLAIN = ("double", "single", "logical", *(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)))
FILTERS = {1: "gzip", 2: "shuffle", 3: "fletcher32", 32000: "lzf"}  # what h5py comes with, by their numbers
PIECE = 16 << 20  # bytes
TEXTS = 256  # that are read at once: each may be as long as the file
LONGEST = 1 << 16  # characters of a text in a cell array, which many cells may point at


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
                    if order["matlab"]:
                        require_struct(file[outer])
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
    require_stored(h5py, dataset)
    if dataset.shape is None:
        raise Refused("a dataset without values; store numbers or text")
    if matlab:
        send_matlab(h5py, file, dataset, key)
        return
    text = h5py.check_string_dtype(dataset.dtype)
    if text is not None:
        send_text(dataset, key)
        return
    require_numbers(h5py, dataset)
    offset = dataset.id.get_offset()
    described = {"key": key, "shape": dataset.shape, "dtype": dataset.dtype.str}
    if offset is not None and dataset.ndim > 1 and is_as_numpy_has_it(h5py, dataset):
        say(**described, offset=offset)
        return
    say(**described)
    send_bytes(dataset)


def require_stored(h5py, dataset):
    """In this file, through filters that are known."""
    properties = dataset.id.get_create_plist()
    if properties.get_layout() == h5py.h5d.VIRTUAL or properties.get_external_count():
        raise Refused("its values are in other files, which are not read; store them in this one")
    filters = [properties.get_filter(k)[0] for k in range(properties.get_nfilters())]
    if not set(filters) <= set(FILTERS) or len(set(filters)) < len(filters):
        names = ", ".join(FILTERS.get(number, f"number {number}") for number in filters[:8])
        known = ", ".join(FILTERS.values())
        raise Refused(f"filters {names}, which are not read; write it again with one of {known}, or none")


def require_numbers(h5py, dataset):
    if dataset.dtype.kind not in "fiub":
        what = "references" if h5py.check_ref_dtype(dataset.dtype) else f"values of {str(dataset.dtype)[:80]}"
        raise Refused(f"{what}, which are not read; store numbers or text")


def send_bytes(dataset):
    for piece in pieces(dataset):
        sys.stdout.buffer.write(piece.tobytes())
    sys.stdout.buffer.flush()


def is_as_numpy_has_it(h5py, dataset):
    """Whether numbers need no conversion: HDF5 knows of bits to leave out, other exponents, padding."""
    return dataset.dtype.kind in "fiu" and dataset.id.get_type().equal(h5py.h5t.py_create(dataset.dtype))


def matlab_class(item):
    kind = item.attrs.get("MATLAB_class", b"")
    return kind.decode("latin1") if isinstance(kind, bytes) else str(kind)


def require_struct(group):
    if "MATLAB_sparse" in group.attrs:
        raise Refused("a sparse matrix, which is not read; store full(x)")
    if matlab_class(group) not in ("", "struct"):
        raise Refused(f"of class {matlab_class(group)[:80]}, which is not read; store numbers or text")


def send_matlab(h5py, file, dataset, key):
    """Axes are the other way round, text is numbers, and cells are places of other datasets."""
    kind = matlab_class(dataset)
    if kind == "cell":
        send_cells(h5py, file, dataset, key)
    elif kind == "char":
        texts = texts_of(h5py, dataset)
        send_texts(key, len(texts), lambda start: texts[start : start + TEXTS])
    elif kind not in ("", *PLAIN) or "MATLAB_object_decode" in dataset.attrs:
        raise Refused(f"of class {kind[:80]}, which is not read; store numbers or text (cellstr, table2array)")
    else:
        require_numbers(h5py, dataset)
        if (shape := shape_of_empty(dataset)) is not None:
            say(key=key, shape=shape, dtype="<f8")
        else:
            say(key=key, shape=dataset.shape, dtype=dataset.dtype.str, matlab=kind)
            send_bytes(dataset)


def shape_of_empty(dataset):
    """What MATLAB stores in place of values where there are none: the shape. None where there are some."""
    if not dataset.attrs.get("MATLAB_empty", 0):
        return None
    if dataset.size > 32:
        raise Refused("an empty array of more than 32 axes")
    shape = [int(n) for n in dataset[()].reshape(-1)]
    if 0 not in shape:
        raise Refused(f"an empty array of shape {shape}")
    return shape


def send_cells(h5py, file, dataset, key):
    if shape_of_empty(dataset) is not None:
        say(key=key, rows=0, text=[], more=False)
        return
    if h5py.check_ref_dtype(dataset.dtype) is not h5py.Reference or max(dataset.shape, default=1) != dataset.size:
        raise Refused(f"a cell array {dataset.shape}, and columns of text are read")
    cells = dataset[()].reshape(-1)
    send_texts(key, len(cells), lambda start: [text_in(h5py, file, cell) for cell in cells[start : start + TEXTS]])


def text_in(h5py, file, cell):
    inner = file[cell]
    if not isinstance(inner, h5py.Dataset) or inner.shape is None or matlab_class(inner) != "char":
        raise Refused("a cell array of something else than text; store numbers as one array [N, d] or [N, T, d]")
    require_stored(h5py, inner)
    if inner.size > LONGEST:
        raise Refused(f"a text of {inner.size} characters in a cell, of which {LONGEST} are read")
    texts = texts_of(h5py, inner)
    if len(texts) > 1:
        raise Refused("several lines of text in one cell; store one")
    return texts[0] if texts else ""


def texts_of(h5py, dataset):
    """The lines of a matrix of characters, each without the blanks that fill it up."""
    if shape_of_empty(dataset) is not None:
        return []
    if dataset.ndim > 2 or dataset.dtype.kind != "u":
        raise Refused(f"characters of shape {dataset.shape}; store one text per line")
    lines = dataset[()].T.astype("<u2")
    lines = lines.reshape(-1, lines.shape[-1]) if lines.ndim else lines.reshape(1, 1)
    texts = [line.tobytes().decode("utf-16-le") for line in lines]
    return texts if len(texts) == 1 else [text.rstrip(" ") for text in texts]


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


def send_text(dataset, key):
    if dataset.ndim > 1:
        raise Refused(f"text of shape {dataset.shape}; store text as [N]")
    values = dataset.asstr("utf-8")
    if dataset.ndim == 0:
        say(key=key, text=str(values[()]))
    else:
        send_texts(key, dataset.shape[0], lambda start: values[start : start + TEXTS].tolist())


def send_texts(key, rows, read):
    for start in range(0, rows or 1, TEXTS):
        say(key=key, rows=rows, text=read(start), more=start + TEXTS < rows)


if __name__ == "__main__":
    main()
