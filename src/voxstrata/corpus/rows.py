"""Tables of strings: TSV, CSV, JSON lines and Parquet, told apart by their content, with where each row stands."""

import codecs
import csv
import io
import json
import math
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv

from voxstrata.base.columns import SLICE, slices, without_empty
from voxstrata.base.errors import InputError
from voxstrata.base.opening import open_regular, open_unpacked, parse_json, read_regular
from voxstrata.base.parquet import parquet_file, read_parquet_table
from voxstrata.base.plain import counted
from voxstrata.base.recognised import mistaken
from voxstrata.corpus.table import Row, string_column

SUFFIXES = (".tsv", ".csv", ".jsonl", ".parquet")
Places = Iterator[tuple[str, Row]]  # where a row stands ("line 3"), and its values
_GZIP = b"\x1f\x8b"
_EXACT = float(1 << 53)  # floats below hold every whole number
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
        """The values of `column`."""
        values: list[str | None] = self.column(name, extra).to_pylist()
        return values

    def column(self, name: str, extra: bool = False) -> pa.ChunkedArray:
        """A column as strings; null where nothing, null or NaN is written.

        Whole numbers are written as such, also where the column is of floats (as pandas makes it of integers when some
        are missing). extra: nobody reads them, so lists and objects are written as JSON, and the name may stand twice.
        """
        if name in self.twice and not extra:
            raise InputError(f"{self.path}: column {name!r} stands twice in the header; remove one")
        values = self.columns[name]
        if isinstance(values, pa.ChunkedArray):
            if pa.types.is_floating(values.type) and values.type.bit_width > 16:
                return _of_floats(values)
            if not (pa.types.is_floating(values.type) or pa.types.is_nested(values.type)):
                return without_empty(self._cast(name, values))
            values = values.to_pylist()
        return string_column(name, self._as_strings(name, values, extra), self.place, self.path)

    def numbers(self, name: str) -> pa.ChunkedArray | None:
        """A column of float64; None where Arrow cannot tell of all its values which number they are."""
        values = self.columns[name]
        if name in self.twice or not isinstance(values, pa.ChunkedArray):
            return None
        kind = values.type
        if pa.types.is_floating(kind):
            return pc.if_else(pc.is_nan(values), None, values).cast(pa.float64()) if kind.bit_width > 16 else None
        try:
            if pa.types.is_integer(kind):
                return values.cast(pa.float64())
            return without_empty(values).cast(pa.float64()) if pa.types.is_string(kind) else None
        except pa.ArrowInvalid:
            return None

    def _as_strings(self, name: str, values: Sequence[Any], extra: bool) -> Sequence[str | None]:
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

    def _cast(self, name: str, column: pa.ChunkedArray) -> pa.ChunkedArray:
        try:
            column = column.cast(pa.string())
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
            # Told, not passed over: values that are no text, or a type (lists, structs) of which Arrow makes none.
            raise InputError(f"{self.path}: {name} cannot be read as strings: {error}; write it again") from None
        try:
            column.validate(full=True)  # Arrow checks bytes that are cast, not bytes that are called strings
        except pa.ArrowInvalid:
            for i in range(0, len(column), SLICE):
                try:
                    column.slice(i, SLICE).to_pylist()
                except UnicodeDecodeError as error:
                    bad = bytes(error.object)
                    raise InputError(
                        f"{self.path}: not UTF-8: byte 0x{bad[error.start]:02x} in the {name} {bad[:40]!r}; "
                        "write it again as UTF-8"
                    ) from None
            raise
        return column


def read_table(path: Path) -> StringTable:
    """A TSV, CSV, JSON lines or Parquet file, also gzipped; which one, its content says, and its name only in doubt.

    TSV is read without quoting, so quotation marks are text; CSV with the quoting of RFC 4180. Text is UTF-8, with or
    without a byte order mark. Blank lines are passed over. Spaces around a column's name do not count.

    Raises InputError, naming file, place and fix: for another kind of file, lines of unequal length, what is not UTF-8,
    a column's name with a line break.
    """
    try:
        named = path.exists() or path.suffix.lower() in SUFFIXES
        kind = _kind(path) if named and not path.is_dir() else None
        if kind is None:
            raise InputError(mistaken(path, "a table", f"name one ({', '.join(SUFFIXES)})"))
        table = {"tsv": _tsv, "csv": _csv, "jsonl": _jsonl, "parquet": _parquet}[kind](path)
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from None
    if broken := [name for name in table.columns if "\n" in name]:
        raise InputError(f"{path}: the name of a column, {broken[0]!r}, holds a line break; rename it")
    return table


def is_table(path: Path) -> bool:
    """Whether a file holds a table, or is called as if it did."""
    return path.is_file() and _kind(path) is not None


def table_header(path: Path) -> list[str]:
    """The names of a table's columns, of JSON lines the first line's keys; none where `path` is no table."""
    try:
        kind = _kind(path)
        if kind == "parquet":
            with parquet_file(path) as file:
                return [name.strip() for name in file.schema_arrow.names]
        first = _first_line(path) or ""
        if kind == "jsonl":
            record = parse_json(first)
            return list(record) if isinstance(record, dict) else []
        if kind == "csv":
            return [name.strip() for name in next(csv.reader([first]), [])]
        return [name.strip() for name in first.split("\t")] if kind and first else []
    except (InputError, OSError, ValueError, EOFError, zlib.error, csv.Error, pa.ArrowException):
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
    return _decoded(path, _unpacked(path))


def _unpacked(path: Path) -> bytes:
    data = read_regular(path)
    if not data.startswith(_GZIP):
        return data
    with open_unpacked(path) as file:
        return file.read()


def _decoded(path: Path, data: bytes) -> str:
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
                f"{path}, line {line}: {counted(len(row), 'field')} where {fields} are expected; TSV is read without "
                "quoting: take tabs and line breaks out of the texts, or save as CSV"
            )
        yield line, row


def _first_line(path: Path) -> str | None:
    """The first line that is not blank; None where there is none that UTF-8 can read."""
    with open_regular(path) as raw:
        zipped = raw.read(2) == _GZIP
    with open_unpacked(path) if zipped else open_regular(path) as file:
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
    with open_regular(path) as file:
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
    data = _unpacked(path)
    return _plain_lines(path, data, "\t") or _under_header(path, tsv_rows(path, _decoded(path, data)))


def _csv(path: Path) -> StringTable:
    data = _unpacked(path)
    plain = None if b'"' in data else _plain_lines(path, data, ",")
    return plain or _under_header(path, _csv_rows(path, _decoded(path, data)))


def _plain_lines(path: Path, data: bytes, delimiter: str) -> StringTable | None:
    """A table that Arrow reads as it is written, at many times the speed: none of its lines is blank, and none is
    longer or shorter than the first. None for others: these are read line by line, which says what is wrong where."""
    data = data.removeprefix(codecs.BOM_UTF8)
    first, end, _ = data.partition(b"\n")
    lines = data.count(b"\n") + (not data.endswith(b"\n"))
    if lines < 2 or not first.strip() or data.count(b"\r") != data.count(b"\r\n") or b"\0" in data:
        return None
    try:
        names, twice = _distinct(first.removesuffix(b"\r").decode().split(delimiter))
        table = pa.csv.read_csv(
            pa.BufferReader(pa.py_buffer(data).slice(len(first) + len(end))),
            pa.csv.ReadOptions(column_names=names),
            pa.csv.ParseOptions(delimiter=delimiter, quote_char=False, double_quote=False),
            pa.csv.ConvertOptions(column_types=dict.fromkeys(names, pa.string()), strings_can_be_null=False),
        )
    except (pa.ArrowInvalid, UnicodeDecodeError):
        return None
    if len(table) != lines - 1 or table.column_names != names:
        return None
    return StringTable(path, dict(zip(names, table.columns, strict=True)), range(2, lines + 1), twice=twice)


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


def _csv_rows(path: Path, text: str) -> Iterator[tuple[int, list[str]]]:
    """Line number and fields of each line that is not blank; all have as many fields as the first."""
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    fields = 0
    try:
        for row in filter(None, reader):
            fields = fields or len(row)
            if len(row) != fields:
                raise InputError(
                    f"{path}, line {reader.line_num}: {counted(len(row), 'field')} where {fields} are expected; "
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
            record = parse_json(content)
        except ValueError as error:
            raise InputError(f"{path}, line {line}: not JSON: {error}; write one object per line") from None
        if not isinstance(record, dict):
            raise InputError(f"{path}, line {line}: a {type(record).__name__}; write one JSON object per line")
        records.append(record)
        lines.append(line)
    names = dict.fromkeys(name for record in records for name in record)
    return StringTable(path, {name: [record.get(name) for record in records] for name in names}, lines, records=records)


def _parquet(path: Path) -> StringTable:
    try:
        table = read_parquet_table(path)
    except pa.ArrowException as error:  # damaged or no Parquet
        raise InputError(f"{path}: not a parquet table of strings: {error}; write it again") from None
    names, twice = _distinct(table.column_names)
    return StringTable(path, dict(zip(names, table.columns, strict=True)), range(1, len(table) + 1), "row", twice)


def _of_floats(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Floats as Python writes them; whole numbers where all are."""
    column = pc.if_else(pc.is_nan(column), None, column)
    whole = pc.all(pc.and_(pc.is_finite(column), pc.equal(pc.floor(column), column))).as_py()
    if whole and pc.max(pc.abs(column)).as_py() < _EXACT:
        return column.cast(pa.int64()).cast(pa.string())
    pieces = ([None if v is None else str(int(v) if whole else v) for v in piece] for (piece,) in slices([column]))
    return pa.chunked_array([pa.array(piece, pa.string()) for piece in pieces], pa.string())


def _string(value: Any) -> str | None:
    """What JSON or Arrow holds as a string; None where that is empty."""
    if value is None or isinstance(value, str):
        return value or None
    if isinstance(value, bool | list | dict):
        return json.dumps(value, ensure_ascii=False, default=str)
    return str(value)
