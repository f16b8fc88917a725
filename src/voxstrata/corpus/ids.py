"""Ids of recordings that have none, made of their paths."""

import os
from collections.abc import Mapping

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from voxstrata.base.columns import all_differ, encoded, slices

_TAIL = 6  # characters of a path in which its suffix is looked for


def made_ids(columns: Mapping[str, pa.ChunkedArray]) -> pa.ChunkedArray:
    """The ids that are given, and others made of the paths.

    columns: `path`, and where there are such `id`, `offset`, `duration`, `channel`. A missing id becomes the path
    without its suffix, or the whole path where that would name two files, and where one file is several recordings
    what part they are behind it: `talk@12.5-17`, `talk#1`.
    """
    paths = columns["path"]
    stems = _stems(paths)
    made = stems if all_differ(stems) else _of_shared(paths, columns)
    return pc.coalesce(columns["id"], made) if "id" in columns else made


def _of_shared(paths: pa.ChunkedArray, columns: Mapping[str, pa.ChunkedArray]) -> pa.ChunkedArray:
    """Where paths repeat, or files differ by their suffix alone."""
    codes, files = encoded(paths)
    stems = _stems(pa.chunked_array([files])).combine_chunks()
    counts = pc.value_counts(stems)
    shared = pc.is_in(stems, counts.field(0).filter(pc.greater(counts.field(1), 1)))
    names = pc.if_else(shared, files, stems).take(pa.array(codes))
    there = [name for name in ("offset", "duration", "channel") if name in columns]
    repeated = np.bincount(codes, minlength=len(files))[codes] > 1
    if not there or not repeated.any():
        return pa.chunked_array([names])
    parts = [columns.get(name, pa.chunked_array([pa.nulls(len(paths))])) for name in ("offset", "duration", "channel")]
    written: list[pa.Array] = []
    for offsets, durations, channels, again in slices([*parts, pa.chunked_array([pa.array(repeated)])]):
        texts = (_part(*row) if row[3] else "" for row in zip(offsets, durations, channels, again, strict=True))
        written.append(pa.array(texts, pa.string()))
    return pc.binary_join_element_wise(names, pa.chunked_array(written), "")


def _part(offset: float | None, duration: float | None, channel: int | None, _: bool) -> str:
    """Which part of a file a recording is: "@12.5-17", "#1", or nothing."""
    text = ""
    if offset is not None or duration is not None:
        begin = offset or 0.0
        text = f"@{_seconds(begin)}" + (f"-{_seconds(begin + duration)}" if duration is not None else "")
    return text if channel is None else f"{text}#{channel}"


def _seconds(value: float) -> str:
    """To the microsecond, as short as that goes: "12.5"."""
    return f"{value:.6f}".rstrip("0").rstrip(".")


def _stems(paths: pa.ChunkedArray) -> pa.ChunkedArray:
    """The paths without their suffixes."""
    tails = pc.unique(pc.utf8_slice_codeunits(paths, -_TAIL)).to_pylist()
    lengths = {_suffix_length(tail) for tail in tails}
    if len(lengths) == 1 and (length := lengths.pop()):  # one kind of file, as most corpora are
        return pc.utf8_slice_codeunits(paths, 0, -length)
    pieces = [pa.array(map(_stem, own), pa.string()) for (own,) in slices([paths])]
    return pa.chunked_array(pieces, pa.string())


def _suffix_length(tail: str) -> int:
    """Of the suffix of a path that ends so, with its dot; 0 where that is not to be seen from its end."""
    dot = tail.rfind(".")
    plain = 0 < dot < len(tail) - 1 and tail[dot - 1] not in "./" and "/" not in tail[dot:]
    return len(tail) - dot if plain else 0


def _stem(path: str) -> str:
    """The path without its suffix."""
    stem, suffix = os.path.splitext(path)
    return path if suffix == "." else stem
