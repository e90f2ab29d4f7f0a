"""Tables: ``.csv``, ``.tsv`` and ``.parquet``, see :mod:`.columns` for what their columns mean."""

from __future__ import annotations

from pathlib import Path

from ..archives import UNREADABLE, require_free
from ..raw import Problem, Raw, RefusedData, Request, listing, one_line
from .arrow import arrays_of_columns, import_arrow
from .columns import INDEX, interpret_table, require_unique

__all__ = ["read_parquet", "read_text_table"]

DELIMITERS = {".csv": ",", ".tsv": "\t"}
# A cell of one character and its comma become a number of eight bytes, in Arrow and in the array.
GROWTH = 8
NUMBER = 8  # bytes
BATCH = 1 << 14  # rows of a Parquet file between two looks at what is free
BLOCK = 64 << 20  # bytes of text that are parsed at once: a line must fit into one
LONGEST_LINE = 16 << 20  # bytes of the first line
EMPTY = ["", "NA", "N/A", "NaN", "nan", "null", "NULL", "None", "-"]  # cells of columns of numbers


def read_text_table(path: Path, request: Request) -> Raw:
    """``.csv`` (commas) or ``.tsv`` (tabs), UTF-8, the first line names the columns."""
    import_arrow(path)
    csv = import_arrow(path, "pyarrow.csv")
    import pyarrow as pa

    delimiter = DELIMITERS.get(path.suffix.lower(), ",")
    try:
        require_free(GROWTH * path.stat().st_size)
        names = _header(path, delimiter)
        table = csv.read_csv(
            path,
            read_options=csv.ReadOptions(block_size=BLOCK),
            parse_options=csv.ParseOptions(delimiter=delimiter, newlines_in_values=True),
            convert_options=csv.ConvertOptions(
                null_values=EMPTY, column_types={name: pa.string() for name in ("id", "ids", *INDEX) if name in names}
            ),
        )
    except UnicodeDecodeError as error:
        raise RefusedData(Problem(str(path), "", None, f"not UTF-8 ({one_line(error)}); save it as UTF-8")) from None
    except (pa.ArrowException, *UNREADABLE) as error:
        raise RefusedData(Problem(str(path), "", None, f"not readable as a table: {one_line(error)}")) from None
    return _interpret(path, table, request)


def read_parquet(path: Path, request: Request) -> Raw:
    """``.parquet``: columns as in a text table, and lists of numbers, or of lists of them, as modalities."""
    import_arrow(path)
    parquet = import_arrow(path, "pyarrow.parquet")
    import pyarrow as pa

    try:
        with parquet.ParquetFile(path) as file:
            schema = file.schema_arrow
            require_free(file.metadata.num_rows * file.metadata.num_columns * NUMBER)
            # as places in the list of different texts: one text in a million rows stays one
            texts = [field.name for field in schema if field.type in (pa.string(), pa.large_string())]
        require_unique(schema.names)
        wanted = [name for name in schema.names if name not in request.ignore]
        with parquet.ParquetFile(path, read_dictionary=texts) as file:
            batches, size = [], 0
            for batch in file.iter_batches(BATCH, columns=wanted, use_threads=False):
                batches.append(batch)
                size += batch.nbytes  # how long lists are is known once they are read
                require_free(size)
        table = pa.Table.from_batches(batches, batches[0].schema if batches else pa.schema([]))
        table.validate(full=True)
    except (pa.ArrowException, *UNREADABLE) as error:
        message = f"not a readable Parquet file ({one_line(error)}); truncated? Write it again"
        raise RefusedData(Problem(str(path), "", None, message)) from None
    return _interpret(path, table, request, schema.names)


def _interpret(path: Path, table, request: Request, known: list[str] | None = None) -> Raw:
    known = table.column_names if known is None else known
    if not table.num_rows:
        raise RefusedData(Problem(str(path), "", None, f"no rows; columns are {listing(known)}"))
    return interpret_table(path, arrays_of_columns(path, table, request), request, known)


def _header(path: Path, delimiter: str) -> list[str]:
    """Names of the columns. Raises ValueError where the first line cannot be one of names."""
    import csv

    with open(path, "rb") as file:
        line = file.readline(LONGEST_LINE + 1)
    if len(line) > LONGEST_LINE:
        raise ValueError(f"its first line is longer than {LONGEST_LINE >> 20} MB")
    names = next(csv.reader([line.decode("utf-8-sig")], delimiter=delimiter), [])
    if len(names) < 2:
        shown = names[0][:60] if names else ""
        raise ValueError(
            f"its first line {shown!r} is one column: they are parted by commas in .csv, by tabs in .tsv; write it so"
        )
    if all(_is_number(name) for name in names):
        raise ValueError(f"its first line holds numbers ({listing(names)}): write one before it that names the columns")
    require_unique(names)
    return names


def _is_number(name: str) -> bool:
    try:
        float(name)
    except ValueError:
        return not name
    return True
