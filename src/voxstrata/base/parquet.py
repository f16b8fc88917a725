"""Parquet files of strangers: a few KB may say that they are 10⁹ rows, or the same long text a million times.

Real tables have rows that differ, so what a file may hold grows with its size.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from voxstrata.base.errors import InputError
from voxstrata.base.opening import check_regular

_FREE_VALUES, _VALUES_A_BYTE = 1 << 24, 256  # ten constant columns of ten million rows, in 400 kB
_FREE_ROWS, _ROWS_A_BYTE = 1 << 21, 16
_FREE_BYTES, _BYTES_A_BYTE = 1 << 28, 200
_DICTIONARIES = 1 << 24  # bytes of a file up to which repeated strings stay dictionaries until their size is known
_BATCH = 1 << 14  # rows decoded at once in larger files
_PIECE = 1 << 26  # bytes of batches that are copied together: each of its own takes more room than it holds


def parquet_file(source: str | Path | BinaryIO, name: object = None, **how: Any) -> pq.ParquetFile:
    """A Parquet file, opened: a regular one whose metadata do not promise more than it can hold.

    name: what messages call a source in memory. how: as of
    `pq.ParquetFile`. Raises InputError; pa.ArrowException or OSError where it is damaged.
    """
    if isinstance(source, str | Path):
        check_regular(source)
    file = pq.ParquetFile(source, **how)
    try:
        _check(file, source if name is None else name, _size(source))
    except BaseException:
        file.close()
        raise
    return file


def read_parquet_table(
    source: str | Path | BinaryIO, columns: Sequence[str] | None = None, name: object = None
) -> pa.Table:
    """All rows of a Parquet file, or some of its columns, as `pq.read_table` reads them. Raises as `parquet_file`, and
    InputError before more is decoded than such a file may hold."""
    size, name = _size(source), source if name is None else name
    most = max(_FREE_BYTES, _BYTES_A_BYTE * size)
    with parquet_file(source, name) as file:
        schema = file.schema_arrow
        if size > _DICTIONARIES:
            return _in_batches(file, columns, most, name)
        strings = [f.name for f in schema if pa.types.is_string(f.type) or pa.types.is_binary(f.type)]
        nested = any(c not in schema.names or pa.types.is_nested(schema.field(c).type) for c in columns or schema.names)
        if nested:  # whose strings no dictionary is kept of
            return _in_batches(file, columns, most, name)
    if not isinstance(source, str | Path):
        source.seek(0)
    with pq.ParquetFile(source, read_dictionary=strings) as file:
        table = file.read(columns)
    if sum(map(_decoded_bytes, table.columns)) > most:
        raise _too_much(name, f"more than {most} bytes")
    for i, field in enumerate(table.schema):
        kind = schema.field(field.name).type if schema.names.count(field.name) == 1 else pa.string()
        if field.type != kind and pa.types.is_dictionary(field.type) and not pa.types.is_dictionary(kind):
            table = table.set_column(i, field.with_type(kind), table.column(i).cast(kind))
    return table.replace_schema_metadata(schema.metadata)


def _size(source: str | Path | BinaryIO) -> int:
    if isinstance(source, str | Path):
        return os.stat(source).st_size
    size = source.seek(0, os.SEEK_END)
    source.seek(0)
    return size


def _check(file: pq.ParquetFile, name: object, size: int) -> None:
    about = file.metadata
    rows = about.num_rows
    if rows > max(_FREE_ROWS, _ROWS_A_BYTE * size):
        raise _too_much(name, f"{rows} rows")
    values = 0
    for group in range(about.num_row_groups):
        chunks = about.row_group(group)
        values += sum(chunks.column(i).num_values for i in range(chunks.num_columns))
    if values > max(_FREE_VALUES, _VALUES_A_BYTE * size):
        raise _too_much(name, f"{values} values")


def _too_much(name: object, what: str) -> InputError:
    return InputError(f"{name}: would unpack to {what}, far more than tables of its size hold; write it again")


def _in_batches(file: pq.ParquetFile, columns: Sequence[str] | None, most: int, name: object) -> pa.Table:
    pieces, batches, decoded, joined = list[pa.Table](), list[pa.RecordBatch](), 0, 0
    for batch in file.iter_batches(_BATCH, columns=columns):
        decoded += sum(_decoded_bytes(pa.chunked_array([column])) for column in batch.columns)
        if decoded > most:
            raise _too_much(name, f"more than {most} bytes")
        batches.append(batch)
        if decoded - joined > _PIECE:
            pieces.append(pa.Table.from_batches(batches).combine_chunks())
            batches, joined = [], decoded
    if not pieces and not batches:
        return file.read(columns)
    table = pa.concat_tables([*pieces, *([pa.Table.from_batches(batches)] if batches else [])])
    schema, pieces, batches, whole = table.schema, [], [], list[pa.ChunkedArray]()
    for _ in schema:  # each column in one chunk, which is taken from without another copy; one after another
        whole.append(pa.table([table.column(0)], ["_"]).combine_chunks().column(0))
        table = table.remove_column(0)
    return pa.table(whole, schema).replace_schema_metadata(file.schema_arrow.metadata)


def _decoded_bytes(column: pa.ChunkedArray) -> int:
    """Of a column once its strings are written out."""
    if not pa.types.is_dictionary(column.type):
        return int(column.nbytes)
    total = 0
    for chunk in column.chunks:
        kind = chunk.dictionary.type
        if pa.types.is_string(kind) or pa.types.is_binary(kind):
            lengths = pc.binary_length(chunk.dictionary).cast(pa.int64())
            total += pc.sum(pc.take(lengths, chunk.indices)).as_py() or 0
        total += 8 * len(chunk)
    return total
