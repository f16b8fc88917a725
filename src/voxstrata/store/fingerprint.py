"""The fingerprint of a plan: SHA-256 over everything that decides the content of the store but the model.

Where the recordings lie (`path`) is left out, so that a corpus may move; their sizes stand for their bytes.
"""

import hashlib
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

SECOND = "v2-"  # what the fingerprints of this form begin with; those of 0.1.0 are 64 digits
_COLUMNS = ("id", "language", "group", "text", "speaker", "samples", "size_bytes")


def fingerprint_of(settings: dict[str, Any], layout: Sequence[Any], utterances: pa.Table) -> str:
    """Of the settings of a store, of unit rows, chunk rows and first utterances, and of a plan's table."""
    h = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    h.update(json.dumps([int(x) for x in layout[:2]]).encode())
    h.update(np.asarray(layout[2], "<i8").tobytes())
    for name in _COLUMNS:
        _feed(h, utterances[name])
    # from 0 s on is from the beginning: what ends elsewhere has other samples
    offset = utterances["offset"]
    _feed(h, pc.if_else(pc.equal(offset, 0.0), None, offset))
    _feed(h, utterances["channel"])
    return SECOND + h.hexdigest()


def _feed(h: Any, column: pa.ChunkedArray) -> None:
    """The rows of a column, however it is cut into chunks: first lengths or validity, then values."""
    if pa.types.is_string(column.type):
        for chunk in column.chunks:
            h.update(pc.fill_null(pc.binary_length(chunk), -1).to_numpy().astype("<i4").tobytes())
        for chunk in column.chunks:
            there = chunk.drop_null()
            if len(there):
                _, offsets, data = there.buffers()
                begin, end = np.frombuffer(offsets, np.int32)[[there.offset, there.offset + len(there)]].tolist()
                h.update(memoryview(data)[begin:end] if data else b"")
        return
    kind = "<f8" if pa.types.is_floating(column.type) else "<i8"
    for chunk in column.chunks:
        h.update(chunk.is_valid().to_numpy(zero_copy_only=False).tobytes())
    for chunk in column.chunks:
        h.update(pc.fill_null(chunk, 0).to_numpy(zero_copy_only=False).astype(kind).tobytes())


def first_fingerprint_of(settings: dict[str, Any], layout: Sequence[Any], utterances: pa.Table) -> str:
    """The same as 0.1.0 and development versions after it made it, so that their stores can be resumed."""
    h = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    h.update(f"{layout[0]} {layout[1]} {layout[2].tolist()}".encode())
    for row in zip(*(utterances[c].to_pylist() for c in _COLUMNS), strict=True):
        h.update(json.dumps(row).encode())
    parts = [[value or None for value in utterances["offset"].to_pylist()]]
    parts.append(utterances["channel"].to_pylist())
    if any(value is not None for part in parts for value in part):  # stores without were made before there were any
        h.update(json.dumps(parts).encode())
    return h.hexdigest()
