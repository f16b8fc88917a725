"""Columns of millions of strings, as Arrow holds them: what would take minutes and gigabytes as Python's objects."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from voxstrata.base.hashing import hash_strings

SLICE = 1 << 16  # rows that are taken into Python's objects at once
_MOST_BYTES = (1 << 31) - 1  # of the text in one Arrow array of strings


def as_column(values: Any, kind: pa.DataType | None = None) -> pa.ChunkedArray:
    """Values as one column, by default of strings; what is one of that type already is not copied."""
    kind = kind or pa.string()
    if isinstance(values, pa.Array | pa.ChunkedArray):
        column = values if isinstance(values, pa.ChunkedArray) else pa.chunked_array([values])
        return column if column.type == kind else column.cast(kind)
    return pa.chunked_array([pa.array(values, kind)])


def without_empty(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """A column of strings in which the empty ones are null."""
    empty = pc.equal(pc.binary_length(column), 0)
    return pc.if_else(empty, None, column) if pc.any(empty).as_py() else column


def slices(columns: Sequence[pa.ChunkedArray]) -> Iterator[list[list[Any]]]:
    """Columns as Python's objects, SLICE rows at a time."""
    for begin in range(0, len(columns[0]), SLICE):
        yield [column.slice(begin, SLICE).to_pylist() for column in columns]


def nulls(count: int, kind: pa.DataType) -> pa.Array:
    """So many nulls that take no memory as long as nobody writes there: pages of zeros are the system's own."""
    if not count or not (pa.types.is_string(kind) or pa.types.is_primitive(kind)):
        return pa.nulls(count, kind)
    nothing, zeros = (pa.py_buffer(np.zeros(n, np.uint8)) for n in (count // 8 + 1, 8 * count + 8))
    text = [pa.py_buffer(b"")] if pa.types.is_string(kind) else []
    return pa.Array.from_buffers(kind, count, [nothing, zeros, *text], count)


def all_differ(column: pa.ChunkedArray) -> bool:
    """Whether no value of a column stands twice; none may be null."""
    return len(pc.unique(column)) == len(column) if len(column) < SLICE else not repeated(column).any()


def repeated(column: pa.ChunkedArray) -> NDArray[np.bool_]:
    """Which rows of a column of strings have one that stands more than once, bool (rows,); none may be null.

    By hashes, which take a quarter of the memory that a table of the strings takes; strings whose hashes are the same
    are compared.
    """
    found = np.zeros(len(column), bool)
    hashes = np.empty(len(column), np.uint64)
    begin = 0
    for chunk in column.chunks:
        _, offsets, data = chunk.buffers()
        if len(chunk):
            own = np.frombuffer(offsets, np.int32)[chunk.offset : chunk.offset + len(chunk) + 1]
            text = np.frombuffer(data, np.uint8) if data is not None and data.size else np.zeros(1, np.uint8)
            hash_strings(text, own, hashes[begin : begin + len(chunk)])
        begin += len(chunk)
    ascending = np.sort(hashes)
    twice = np.unique(ascending[1:][ascending[1:] == ascending[:-1]])
    if len(twice):
        at = np.minimum(np.searchsorted(twice, hashes), len(twice) - 1)
        rows = np.flatnonzero(twice[at] == hashes)
        codes, _ = encoded(column.take(pa.array(rows)))
        found[rows] = np.bincount(codes)[codes] > 1
    return found


def encoded(column: pa.ChunkedArray) -> tuple[NDArray[np.int64], pa.Array]:
    """A number for each string, int64 (rows,), and the different strings by number, in the order of their first rows;
    what is null has the number after the last."""
    chunks = column.dictionary_encode().chunks  # which share one dictionary
    names = chunks[-1].dictionary if chunks else pa.array([], column.type)
    codes = [chunk.indices.fill_null(len(names)).to_numpy(zero_copy_only=False) for chunk in chunks]
    return np.concatenate([np.empty(0, np.int64), *codes]), names


def sorted_codes(column: pa.ChunkedArray) -> NDArray[np.int64]:
    """For each string its place among the different strings of the column, by code points, int64 (rows,); none may be
    null."""
    codes, names = encoded(column)
    place = np.empty(len(names), np.int64)
    place[pc.sort_indices(names).to_numpy()] = np.arange(len(names))
    return place[codes]


def places_of(column: pa.ChunkedArray, wanted: Sequence[str]) -> dict[str, int]:
    """The first row of each of some strings in a column; those that it has not are left out."""
    if len(wanted) == 1:
        text = wanted[0].encode()  # `pa.scalar` would import pandas, which takes longer than to look
        offsets = pa.py_buffer(np.array([0, len(text)], np.int32))
        row = pc.index(column, pa.StringArray.from_buffers(1, offsets, pa.py_buffer(text))[0]).as_py()
        return {wanted[0]: row} if row >= 0 else {}
    found = pc.index_in(column, value_set=pa.array(wanted))  # an index of the few that are asked for
    rows = np.flatnonzero(found.is_valid().to_numpy())[::-1]
    return {wanted[n]: row for n, row in zip(found.take(pa.array(rows)).to_pylist(), rows.tolist(), strict=True)}


def take_rows(table: pa.Table, rows: Sequence[int] | NDArray[np.integer[Any]]) -> pa.Table:
    """Some rows of a table, in that order; columns of more text than one array holds come in several."""
    index = pa.array(np.asarray(rows, np.int64))
    columns = {}
    for name in table.column_names:
        column = table[name]
        if column.null_count == len(column) >= len(index):  # nothing to copy
            columns[name] = column.slice(0, len(index))
            continue
        share = column.nbytes / max(1, len(column)) * len(index)  # an estimate: rows may be taken more than once
        if share < _MOST_BYTES / 4 or not pa.types.is_string(column.type):
            columns[name] = column.take(index)
            continue
        step = max(1, int(len(index) / share * _MOST_BYTES / 8))
        large = column.cast(pa.large_string()).combine_chunks()
        pieces = [large.take(index.slice(begin, step)).cast(pa.string()) for begin in range(0, len(index), step)]
        columns[name] = pa.chunked_array(pieces, pa.string())
    return pa.table(columns) if columns else table


def scattered(values: Mapping[int, str], count: int) -> pa.Array:
    """A column of `count` strings with these values in some rows, null elsewhere."""
    rows = sorted(values)
    mask = np.zeros(count, bool)
    mask[rows] = True
    return pc.replace_with_mask(
        pa.nulls(count, pa.string()), pa.array(mask), pa.array([values[i] for i in rows], pa.string())
    )
