"""A shard's bytes: rows as they lie in memory, then zarr's index of the chunks.

Zarr v3's sharding codec without compression (zarr-specs, codecs/sharding-indexed): chunk after chunk, then for every
chunk of the shard its offset and length as little-endian uint64, both 2⁶⁴ - 1 for a chunk that is not there, then the
CRC-32C of that index. Our chunks are whole rows, so the chunks in order are the rows in order, and a shard is written
without taking it apart, and read with as few requests as its rows allow: benchmarks/writing.py. To zarr it is as if
zarr had written it: tests/test_shard.py.
"""

from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.codecs import BytesCodec, Crc32cCodec, ShardingCodec, ShardingCodecIndexLocation

from voxstrata.base.errors import InputError

MISSING = np.uint64(2**64 - 1)
_CRC_BYTES = 4
_MEND = "delete it and run the same extraction again, it writes what is lost"


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


def is_plain(array: zarr.Array[Any]) -> bool:
    """Whether an array's shards are laid out as here; a copy that other tools made may be compressed."""
    codecs: tuple[Any, ...] = getattr(array.metadata, "codecs", ())
    if len(codecs) != 1 or not isinstance(codecs[0], ShardingCodec):
        return False
    sharding, little = codecs[0], (BytesCodec(endian="little"),)
    return (
        sharding.codecs == little
        and sharding.index_codecs == (*little, Crc32cCodec())
        and sharding.index_location == ShardingCodecIndexLocation.end
        and sharding.chunk_shape[1:] == array.shape[1:]
    )


def read_shard_rows(path: Path, begin: int, chunk_rows: int, shard_rows: int, out: NDArray[Any]) -> None:
    """Read the rows from `begin` of the shard file `path` into `out` (rows, d); zeros for a chunk that is not there.

    Raises InputError for a shard that is damaged or missing.
    """
    end = begin + len(out)
    try:
        f = path.open("rb", buffering=0)
    except FileNotFoundError:
        raise InputError(f"{path}: missing; run the same extraction again, it writes what is lost") from None
    with f:
        table_bytes = 16 * (shard_rows // chunk_rows)
        f.seek(max(0, f.seek(0, 2) - table_bytes - _CRC_BYTES))
        tail = f.read(table_bytes + _CRC_BYTES)
        table = tail[:table_bytes]
        if int.from_bytes(tail[table_bytes:], "little") != google_crc32c.value(table) or len(table) < table_bytes:
            raise InputError(f"{path}: damaged, the checksum of its index is wrong; {_MEND}")
        offsets = np.frombuffer(table, "<u8").reshape(-1, 2)[:, 0]
        row_bytes = out.strides[0]
        first, last = begin // chunk_rows, (end - 1) // chunk_rows
        # runs of chunks that follow each other in the file, as all do in a shard of ours
        follows = offsets[first + 1 : last + 1] == offsets[first:last] + np.uint64(chunk_rows * row_bytes)
        for run in np.split(np.arange(first, last + 1), np.flatnonzero(~follows) + 1):
            a, b = max(begin, int(run[0]) * chunk_rows), min(end, (int(run[-1]) + 1) * chunk_rows)
            target = out[a - begin : b - begin]
            if offsets[run[0]] == MISSING:
                target[:] = 0
                continue
            f.seek(int(offsets[run[0]]) + (a - int(run[0]) * chunk_rows) * row_bytes)
            _fill(f, target.reshape(-1).view(np.uint8).data, path)


def _fill(f: Any, target: memoryview, path: Path) -> None:
    while len(target):
        count = f.readinto(target)
        if not count:
            raise InputError(f"{path}: cut short; {_MEND}")
        target = target[count:]
