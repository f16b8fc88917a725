"""Manifests: .tsv, .csv, .jsonl and .parquet tables that name recordings."""

from __future__ import annotations

import codecs
import csv
import io
import json
import os
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from voxstrata.corpus.table import COLUMNS, Corpus, Row, absolute_root, build
from voxstrata.errors import InputError

SUFFIXES = (".tsv", ".csv", ".jsonl", ".parquet")
_Places = Iterator[tuple[str, Row]]  # where a row stands ("line 3"), and its values


def read_manifest(path: Path) -> Corpus:
    """Read a manifest with the columns id, path, language, group, text, speaker; only path is required.

    Other columns are ignored, `seconds` too: lengths come from the recordings. Values are strings as written
    ("007" stays); an empty one is null. Paths are relative to the manifest's folder, the corpus root. A
    missing id becomes the path without its suffix (with it, where that would name two recordings).

    TSV is read without quoting, so quotation marks are text; CSV with the quoting of RFC 4180. Text is UTF-8,
    with or without a byte order mark. Blank lines are passed over.

    Raises InputError, naming file, line and fix, for anything else.
    """
    reader = {".tsv": _tsv, ".csv": _csv, ".jsonl": _jsonl, ".parquet": _parquet}[path.suffix.lower()]
    root = absolute_root(path.parent)
    rows: list[Row] = []
    places: list[str] = []
    try:
        for place, row in reader(path):
            rows.append({**row, "path": _relative(path, place, root, row.get("path"))})
            places.append(place)
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from None
    if not rows:
        raise InputError(f"{path}: has no rows; add one row per recording")
    return build(root, rows, places, path)


def _relative(manifest: Path, place: str, root: Path, value: str | None) -> str:
    """The row's path relative to `root`; links are not resolved, so they may lead out of the root."""
    if not value:
        raise InputError(f"{manifest}, {place}: path is empty; name the recording or remove the row")
    full = Path(os.path.normpath(root / value))
    if not full.is_relative_to(root):
        raise InputError(
            f"{manifest}, {place}: path {value!r} lies outside the manifest's folder {root}; "
            "move the manifest to a folder above all recordings"
        )
    return full.relative_to(root).as_posix()


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


def _used_columns(path: Path, names: list[str]) -> dict[str, int]:
    """Position of each column we read."""
    names = [name.strip() for name in names]
    if "path" not in names:
        raise InputError(f"{path}: no column 'path'; found: {', '.join(map(repr, names))}; name it in the header")
    twice = [name for name in COLUMNS if names.count(name) > 1]
    if twice:
        raise InputError(f"{path}: column {twice[0]!r} stands twice in the header; remove one")
    return {name: names.index(name) for name in COLUMNS if name in names}


def _tsv(path: Path) -> _Places:
    rows = tsv_rows(path, read_text(path))
    _, header = next(rows, (0, []))
    if not header:
        raise InputError(f"{path}: is empty; give it a header line and one line per recording")
    used = _used_columns(path, header)
    for line, row in rows:
        yield f"line {line}", {name: row[at] or None for name, at in used.items()}


def _csv(path: Path) -> _Places:
    reader = csv.reader(io.StringIO(read_text(path), newline=""), strict=True)
    try:
        header = next(reader, [])
        if not header:
            raise InputError(f"{path}: is empty; give it a header line and one line per recording")
        used = _used_columns(path, header)
        for row in reader:
            if not row:
                continue
            if len(row) != len(header):
                raise InputError(
                    f"{path}, line {reader.line_num}: {len(row)} fields where {len(header)} are expected; "
                    "put texts with commas or line breaks in double quotes"
                )
            yield f"line {reader.line_num}", {name: row[at] or None for name, at in used.items()}
    except csv.Error as error:
        if "field larger than field limit" in str(error):
            raise InputError(
                f"{path}, line {reader.line_num}: a field of more than {csv.field_size_limit()} characters: "
                "a double quote before it is never closed, or save the table as Parquet or JSONL"
            ) from None
        raise InputError(f"{path}, line {reader.line_num}: {error}; double the quotes inside a text") from None


def _jsonl(path: Path) -> _Places:
    for line, content in enumerate(read_text(path).split("\n"), start=1):
        if not content.strip():
            continue
        try:
            record = json.loads(content)
        except (json.JSONDecodeError, RecursionError) as error:
            raise InputError(f"{path}, line {line}: not JSON: {error}; write one object per line") from None
        if not isinstance(record, dict):
            raise InputError(f"{path}, line {line}: a {type(record).__name__}; write one JSON object per line")
        if "path" not in record:
            raise InputError(f"{path}, line {line}: no key 'path'; found: {', '.join(map(repr, record))}; add it")
        row: Row = {}
        for name in COLUMNS:
            value = record.get(name)
            if value is not None and (isinstance(value, bool) or not isinstance(value, str | int | float)):
                raise InputError(f"{path}, line {line}: {name} is {value!r}; write a string")
            row[name] = None if value is None else str(value) or None
        yield f"line {line}", row


def _parquet(path: Path) -> _Places:
    try:
        with pq.ParquetFile(path) as file:
            names = file.schema_arrow.names
            used = _used_columns(path, names)
            table = file.read(columns=[names[at] for at in used.values()])
        columns = {name: _strings(path, name, table[names[at]]) for name, at in used.items()}
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
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
