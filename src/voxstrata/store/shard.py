"""A shard's bytes: rows as they lie in memory, then zarr's index of the chunks.

Zarr v3's sharding codec without compression (zarr-specs, codecs/sharding-indexed): chunk after chunk, then for every
chunk of the shard its offset and length as little-endian uint64, both 2⁶⁴ - 1 for a chunk that is not there, then the
CRC-32C of that index. Our chunks are whole rows, so the chunks in order are the rows in order, and a shard is written
without taking it apart. zarr reads it as its own: tests/test_shard.py.
"""

from __future__ import annotations

import google_crc32c
import numpy as np
from numpy.typing import NDArray

MISSING = np.uint64(2**64 - 1)
_CRC_BYTES = 4


def shard_bytes(rows: int, row_bytes: int, chunk_rows: int, shard_rows: int) -> int:
    """Size in bytes of a shard of which `rows` rows are used: whole chunks, index, checksum."""
    return -(-rows // chunk_rows) * chunk_rows * row_bytes + 16 * (shard_rows // chunk_rows) + _CRC_BYTES


def shard_parts(block: NDArray[np.generic], chunk_rows: int, shard_rows: int) -> list[memoryview | bytes]:
    """The file of a shard in pieces to be written one after the other, `block`'s rows without a copy.

    block: (rows, d), the shard's first rows; the rest of its last chunk is zeros, chunks beyond are not there.
    """
    rows, d = block.shape
    little = np.ascontiguousarray(block, block.dtype.newbyteorder("<"))
    chunk_bytes = chunk_rows * d * block.dtype.itemsize
    used = -(-rows // chunk_rows)
    index = np.full((shard_rows // chunk_rows, 2), MISSING, "<u8")
    index[:used, 0] = np.arange(used) * chunk_bytes
    index[:used, 1] = chunk_bytes
    table = index.tobytes()
    checksum = int(google_crc32c.value(table)).to_bytes(_CRC_BYTES, "little")
    return [little.reshape(-1).view(np.uint8).data, bytes(used * chunk_bytes - little.nbytes), table, checksum]
