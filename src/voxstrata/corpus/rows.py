"""Tables of strings: TSV, CSV, JSON lines and Parquet, told apart by their content, with where each row stands."""

import codecs
import csv
import gzip
import io
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from voxstrata.base.errors import InputError
from voxstrata.corpus.table import Row

SUFFIXES = (".tsv", ".csv", ".jsonl", ".parquet")
Places = Iterator[tuple[str, Row]]  # where a row stands ("line 3"), and its values
_GZIP = b"\x1f\x8b"
_HEAD = 1 << 16  # bytes of a file in which a line may be looked for


@dataclass(frozen=True)
class StringTable:
    """A table as it is written.

    columns: of each name the values: strings, what JSON can hold, or an Arrow column. twice: names that stand more than
    once; the second has another here. lines: where each row stands; numbers of lines, or of rows in Parquet. records:
    of JSON lines, the objects.
    """

    path: Path
    columns: dict[str, Any]
    lines: Sequence[int]
    word: str = "line"
    twice: Sequence[str] = ()
    records: Sequence[dict[str, Any]] = ()

    def __len__(self) -> int:
        return len(self.lines)

    def place(self, i: int) -> str:
        """Where row `i` stands: "line 3"."""
        return f"{self.word} {self.lines[i]}"

    def require(self, name: str, hint: str = "name it in the header") -> None:
        """Raises InputError where the column is not there."""
        if name not in self.columns:
            found = ", ".join(map(repr, self.columns))
            raise InputError(f"{self.path}: no column {name!r}; found: {found}; {hint}")
        for i, record in enumerate(self.records):
            if name not in record:
                found = ", ".join(map(repr, record))
                raise InputError(f"{self.path}, {self.place(i)}: no key {name!r}; found: {found}; add it")

    def strings(self, name: str, extra: bool = False) -> list[str | None]:
        """The values of a column; None where nothing, null or NaN is written.

        Whole numbers are written as such, also where the column is of floats (as pandas makes it of integers when some
        are missing). extra: nobody reads them, so lists and objects are written as JSON, and the name may stand twice.
        """
        if name in self.twice and not extra:
            raise InputError(f"{self.path}: column {name!r} stands twice in the header; remove one")
        values = self.columns[name]
        if isinstance(values, pa.ChunkedArray):
            values = self._of_arrow(name, values)
        kinds = set(map(type, values))
        if kinds <= {str, type(None)}:
            return [value or None for value in values]
        if float in kinds:
            values = [None if isinstance(value, float) and math.isnan(value) else value for value in values]
            if all(value.is_integer() for value in values if isinstance(value, float)):
                values = [int(value) if isinstance(value, float) else value for value in values]
        for i, value in enumerate(values):
            if not extra and isinstance(value, bool | list | dict):
                raise InputError(f"{self.path}, {self.place(i)}: {name} is {value!r}; write a string")
        return [_string(value) for value in values]

    def is_binary(self, name: str) -> bool:
        """Whether a column holds bytes."""
        values = self.columns[name]
        return isinstance(values, pa.ChunkedArray) and "binary" in str(values.type)

    def _of_arrow(self, name: str, column: pa.ChunkedArray) -> list[Any]:
        """Floats, lists and structs stay what they are; all else becomes strings."""
        if not (pa.types.is_floating(column.type) or pa.types.is_nested(column.type)):
            try:
                column = column.cast(pa.string())
            except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
                raise InputError(f"{self.path}: {name} cannot be read as strings: {error}; write it again") from None
        try:
            values: list[Any] = column.to_pylist()
        except UnicodeDecodeError as error:  # Arrow checks bytes that are cast, not bytes that are called strings
            bad = bytes(error.object)
            raise InputError(
                f"{self.path}: not UTF-8: byte 0x{bad[error.start]:02x} in the {name} {bad[:40]!r}; "
                "write it again as UTF-8"
            ) from None
        return values


def read_table(path: Path) -> StringTable:
    """A TSV, CSV, JSON lines or Parquet file, also gzipped; which one, its content says, and its name only in doubt.

    TSV is read without quoting, so quotation marks are text; CSV with the quoting of RFC 4180. Text is UTF-8, with or
    without a byte order mark. Blank lines are passed over. Spaces around a column's name do not count.

    Raises InputError, naming file, place and fix: for another kind of file, lines of unequal length, what is not UTF-8.
    """
    try:
        kind = _kind(path) if path.exists() or path.suffix.lower() in SUFFIXES else None
        if kind is None:
            raise InputError(f"{path}: not a table ({', '.join(SUFFIXES)}); save it as one of these")
        return {"tsv": _tsv, "csv": _csv, "jsonl": _jsonl, "parquet": _parquet}[kind](path)
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from None


def is_table(path: Path) -> bool:
    """Whether a file holds a table, or is called as if it did."""
    return path.is_file() and _kind(path) is not None


def table_header(path: Path) -> list[str]:
    """The names of a table's columns, of JSON lines the first line's keys; none where `path` is no table."""
    try:
        kind = _kind(path)
        if kind == "parquet":
            return [name.strip() for name in pq.read_schema(path).names]
        first = _first_line(path) or ""
        if kind == "jsonl":
            record = json.loads(first)
            return list(record) if isinstance(record, dict) else []
        if kind == "csv":
            return [name.strip() for name in next(csv.reader([first]), [])]
        return [name.strip() for name in first.split("\t")] if kind and first else []
    except (OSError, ValueError, RecursionError, csv.Error, pa.ArrowException):
        return []


def read_rows(path: Path, columns: Sequence[str], required: Sequence[str]) -> Places:
    """The rows of a table, each with its place ("line 3"); of its columns, `columns` alone, as strings or None.

    How files are read, and what is refused: see `read_table`. Also refused are a missing column of `required`, and a
    column that stands twice.
    """
    table = read_table(path)
    for name in required:
        table.require(name)
    found = {name: table.strings(name) for name in columns if name in table.columns}
    for i in range(len(table)):
        yield table.place(i), {name: values[i] for name, values in found.items()}


def read_text(path: Path) -> str:
    """A UTF-8 file without its byte order mark, line ends untouched; a gzipped one unpacked."""
    data = path.read_bytes()
    if data.startswith(_GZIP):
        try:
            data = gzip.decompress(data)
        except (OSError, EOFError) as error:
            raise InputError(f"{path}: a damaged gzip file: {error}; fetch it again") from None
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


def _first_line(path: Path) -> str | None:
    """The first line that is not blank; None where there is none that UTF-8 can read."""
    with path.open("rb") as raw:
        zipped = raw.read(2) == _GZIP
    with gzip.open(path) if zipped else path.open("rb") as file:
        for _ in range(1000):
            line = file.readline(1 << 24)
            if line.strip() or not line:
                break
    try:
        return line.removeprefix(codecs.BOM_UTF8).decode("utf-8").rstrip("\r\n") or None
    except UnicodeDecodeError:
        return None


def _kind(path: Path) -> str | None:
    """How a file holds its table, by its content; what has none to tell is what its name says."""
    named = path.name.lower().removesuffix(".gz").rpartition(".")[2]
    with path.open("rb") as file:
        head = file.read(_HEAD)
    if head.startswith(b"PAR1") or named == "parquet":
        return "parquet"
    text = named in ("tsv", "csv", "jsonl", "json")
    if not text and b"\0" in head and not head.startswith(_GZIP):  # sound, not text
        return None
    first = (_first_line(path) or "").lstrip("\ufeff")
    if first.lstrip().startswith("{") or named in ("jsonl", "json"):
        return "jsonl"
    if "\t" in first:
        return "tsv"
    if "," in first:
        return "csv"
    return named if text else None


def _tsv(path: Path) -> StringTable:
    return _under_header(path, tsv_rows(path, read_text(path)))


def _csv(path: Path) -> StringTable:
    return _under_header(path, _csv_rows(path))


def _under_header(path: Path, rows: Iterator[tuple[int, list[str]]]) -> StringTable:
    _, header = next(rows, (0, []))
    if not header:
        raise InputError(f"{path}: is empty; give it a header line and a line for each row")
    found = list(rows)
    names, twice = _distinct(header)
    values = zip(*(row for _, row in found), strict=True) if found else [()] * len(names)
    return StringTable(path, dict(zip(names, values, strict=True)), [line for line, _ in found], twice=twice)


def _distinct(header: Sequence[str]) -> tuple[list[str], list[str]]:
    """Names without the spaces around them, all different, and those that stand more than once."""
    names: list[str] = []
    twice: list[str] = []
    for name in map(str.strip, header):
        twice += [name] if name in names else []
        names.append(name if name not in names else f"{name}_{names.count(name) + len(twice)}")
    return names, twice


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


def _jsonl(path: Path) -> StringTable:
    records: list[dict[str, Any]] = []
    lines: list[int] = []
    for line, content in enumerate(read_text(path).split("\n"), start=1):
        if not content.strip():
            continue
        try:
            record = json.loads(content)
        except (json.JSONDecodeError, RecursionError) as error:
            raise InputError(f"{path}, line {line}: not JSON: {error}; write one object per line") from None
        if not isinstance(record, dict):
            raise InputError(f"{path}, line {line}: a {type(record).__name__}; write one JSON object per line")
        records.append(record)
        lines.append(line)
    names = dict.fromkeys(name for record in records for name in record)
    return StringTable(path, {name: [record.get(name) for record in records] for name in names}, lines, records=records)


def _parquet(path: Path) -> StringTable:
    try:
        with pq.ParquetFile(path) as file:
            table = file.read()
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:  # damaged or no Parquet
        raise InputError(f"{path}: not a parquet table of strings: {error}; write it again") from None
    names, twice = _distinct(table.column_names)
    return StringTable(path, dict(zip(names, table.columns, strict=True)), range(1, len(table) + 1), "row", twice)


def _string(value: Any) -> str | None:
    """What JSON or Arrow holds as a string; None where that is empty."""
    if value is None or isinstance(value, str):
        return value or None
    if isinstance(value, bool | list | dict):
        return json.dumps(value, ensure_ascii=False, default=str)
    return str(value)
