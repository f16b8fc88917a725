"""Tables of strings: .tsv, .csv, .jsonl and .parquet files, row by row, with where each row stands."""

import codecs
import csv
import io
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from voxstrata.base.errors import InputError
from voxstrata.corpus.table import Row

SUFFIXES = (".tsv", ".csv", ".jsonl", ".parquet")
Places = Iterator[tuple[str, Row]]  # where a row stands ("line 3"), and its values
Columns = tuple[Sequence[str] | None, Sequence[str]]  # those that are read, and those of them that must be there


def read_rows(path: Path, columns: Sequence[str] | None, required: Sequence[str] = ()) -> Places:
    """The rows of a table, each with its place ("line 3"); of its columns, `columns` alone, as strings; None for all.

    TSV is read without quoting, so quotation marks are text; CSV with the quoting of RFC 4180. Text is UTF-8, with or
    without a byte order mark. Blank lines are passed over; an empty value is None.

    Raises InputError, naming file, place and fix: for another kind of file, a missing column of `required`, a column
    that stands twice, lines of unequal length, what is not UTF-8.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise InputError(f"{path}: not a table ({', '.join(SUFFIXES)}); save it as one of these")
    reader = {".tsv": _tsv, ".csv": _csv, ".jsonl": _jsonl, ".parquet": _parquet}[path.suffix.lower()]
    try:
        yield from reader(path, (columns, required))
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from None


def read_text(path: Path) -> str:
    """A UTF-8 file without its byte order mark, line ends untouched."""
    data = path.read_bytes()
    try:
        return data.removeprefix(codecs.BOM_UTF8).decode("utf-8")
    except UnicodeDecodeError as error:
        at = error.start + (len(codecs.BOM_UTF8) if data.startswith(codecs.BOM_UTF8) else 0)
        line = data.count(b"\n", 0, at) + 1
        raise InputError(
            f"{path}: not UTF-8: byte 0x{data[at]:02x} at offset {at} (line {line}); re-save it as UTF-8"
        ) from None


def tsv_rows(path: Path, text: str, fields: int | None = None) -> Iterator[tuple[int, list[str]]]:
    """Line number and fields of each line; all have `fields` fields, or as many as the first if None."""
    for line, content in enumerate(text.split("\n"), start=1):
        content = content.removesuffix("\r")
        if not content:
            continue
        row = content.split("\t")
        fields = fields or len(row)
        if len(row) != fields:
            raise InputError(
                f"{path}, line {line}: {len(row)} fields where {fields} are expected; TSV is read without "
                "quoting: take tabs and line breaks out of the texts, or save as CSV"
            )
        yield line, row


def _used_columns(path: Path, names: list[str], asked: Columns) -> dict[str, int]:
    """Position of each column we read."""
    names = [name.strip() for name in names]
    columns, required = asked
    if missing := [name for name in required if name not in names]:
        found = ", ".join(map(repr, names))
        raise InputError(f"{path}: no column {missing[0]!r}; found: {found}; name it in the header")
    columns = list(dict.fromkeys(names)) if columns is None else columns
    if twice := [name for name in columns if names.count(name) > 1]:
        raise InputError(f"{path}: column {twice[0]!r} stands twice in the header; remove one")
    return {name: names.index(name) for name in columns if name in names}


def _tsv(path: Path, asked: Columns) -> Places:
    return _under_header(path, tsv_rows(path, read_text(path)), asked)


def _csv(path: Path, asked: Columns) -> Places:
    return _under_header(path, _csv_rows(path), asked)


def _under_header(path: Path, rows: Iterator[tuple[int, list[str]]], asked: Columns) -> Places:
    _, header = next(rows, (0, []))
    if not header:
        raise InputError(f"{path}: is empty; give it a header line and a line for each row")
    used = _used_columns(path, header, asked)
    for line, row in rows:
        yield f"line {line}", {name: row[at] or None for name, at in used.items()}


def _csv_rows(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Line number and fields of each line that is not blank; all have as many fields as the first."""
    reader = csv.reader(io.StringIO(read_text(path), newline=""), strict=True)
    fields = 0
    try:
        for row in filter(None, reader):
            fields = fields or len(row)
            if len(row) != fields:
                raise InputError(
                    f"{path}, line {reader.line_num}: {len(row)} fields where {fields} are expected; "
                    "put texts with commas or line breaks in double quotes"
                )
            yield reader.line_num, row
    except csv.Error as error:
        if "field larger than field limit" in str(error):
            raise InputError(
                f"{path}, line {reader.line_num}: a field of more than {csv.field_size_limit()} characters: "
                "a double quote before it is never closed, or save the table as Parquet or JSONL"
            ) from None
        raise InputError(f"{path}, line {reader.line_num}: {error}; double the quotes inside a text") from None


def _jsonl(path: Path, asked: Columns) -> Places:
    for line, content in enumerate(read_text(path).split("\n"), start=1):
        if not content.strip():
            continue
        try:
            record = json.loads(content)
        except (json.JSONDecodeError, RecursionError) as error:
            raise InputError(f"{path}, line {line}: not JSON: {error}; write one object per line") from None
        if not isinstance(record, dict):
            raise InputError(f"{path}, line {line}: a {type(record).__name__}; write one JSON object per line")
        columns, required = asked
        for name in required:
            if name not in record:
                raise InputError(f"{path}, line {line}: no key {name!r}; found: {', '.join(map(repr, record))}; add it")
        row: Row = {}
        for name in record if columns is None else columns:
            value = record.get(name)
            if value is not None and (isinstance(value, bool) or not isinstance(value, str | int | float)):
                raise InputError(f"{path}, line {line}: {name} is {value!r}; write a string")
            row[name] = None if value is None else str(value) or None
        yield f"line {line}", row


def _parquet(path: Path, asked: Columns) -> Places:
    try:
        with pq.ParquetFile(path) as file:
            names = file.schema_arrow.names
            used = _used_columns(path, names, asked)
            table = file.read(columns=[names[at] for at in used.values()])
        columns = {name: _strings(path, name, table[names[at]]) for name, at in used.items()}
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:  # damaged or no Parquet; a column of no strings
        raise InputError(f"{path}: not a parquet table of strings: {error}; write it again") from None
    for i in range(table.num_rows):
        yield f"row {i + 1}", {name: values[i] or None for name, values in columns.items()}


def _strings(path: Path, name: str, column: pa.ChunkedArray) -> list[str | None]:
    try:
        values: list[str | None] = column.cast(pa.string()).to_pylist()
    except UnicodeDecodeError as error:  # Arrow checks bytes that are cast, not bytes that are called strings
        bad = bytes(error.object)
        raise InputError(
            f"{path}: not UTF-8: byte 0x{bad[error.start]:02x} in the {name} {bad[:40]!r}; write it again as UTF-8"
        ) from None
    return values
