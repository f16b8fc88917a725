"""A shard's bytes: rows as they lie in memory, each chunk with its checksum, then zarr's index of the chunks.

Zarr v3's sharding codec without compression (zarr-specs, codecs/sharding-indexed): chunk after chunk, each followed by
the CRC-32C of its bytes (codecs/crc32c), then for every chunk of the shard its offset and length as little-endian
uint64, both 2⁶⁴ - 1 for a chunk that is not there, then the CRC-32C of that index. Stores of 0.1.0 have no checksums of
chunks. Our chunks are whole rows, so the chunks in order are the rows in order, and a shard is written and read without
taking it apart: benchmarks/writing.py. To zarr it is as if zarr had written it: tests/test_shard.py.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Self

import google_crc32c
import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.codecs import BytesCodec, Crc32cCodec, ShardingCodec, ShardingCodecIndexLocation

from voxstrata.base.errors import InputError
from voxstrata.base.opening import open_regular
from voxstrata.base.spool import Spool

MISSING = np.uint64(2**64 - 1)
_CRC_BYTES = 4
_MOST_FETCHED = 64 << 20  # bytes of one request to an object store: they are held beside the rows
_MOST_INDEXES = 4096  # kept of an open store
_MEND = "`voxstrata verify STORE --repair`, then the same extraction again, which writes what is lost"


@dataclass(frozen=True)
class ShardLayout:
    """How the shards of an array lie on disk.

    chunk_rows, shard_rows: of a chunk and of a shard. row_bytes: of a row. checksums: whether each chunk has its own.
    """

    chunk_rows: int
    shard_rows: int
    row_bytes: int
    checksums: bool = True

    @classmethod
    def of(cls, array: "zarr.Array[Any]") -> Self | None:
        """That of an array; None where it is another than here: a copy that other tools made may be compressed."""
        codecs: tuple[Any, ...] = getattr(array.metadata, "codecs", ())
        if len(codecs) != 1 or not isinstance(codecs[0], ShardingCodec):
            return None
        sharding, little = codecs[0], (BytesCodec(endian="little"),)
        plain = (
            sharding.codecs in (little, (*little, Crc32cCodec()))
            and sharding.index_codecs == (*little, Crc32cCodec())
            and sharding.index_location == ShardingCodecIndexLocation.end
            and sharding.chunk_shape[1:] == array.shape[1:]
        )
        if not plain or array.shards is None:
            return None
        row_bytes = array.shape[1] * array.dtype.itemsize
        return cls(array.chunks[0], array.shards[0], row_bytes, len(sharding.codecs) > 1)

    @property
    def chunk_bytes(self) -> int:
        """Of a chunk's rows."""
        return self.chunk_rows * self.row_bytes

    @property
    def stored_bytes(self) -> int:
        """Of a chunk with its checksum."""
        return self.chunk_bytes + _CRC_BYTES * self.checksums

    @property
    def chunks(self) -> int:
        """Of a shard."""
        return self.shard_rows // self.chunk_rows

    def size(self, rows: int) -> int:
        """Size in bytes of a shard of which `rows` rows are used: whole chunks, index, checksum."""
        return -(-rows // self.chunk_rows) * self.stored_bytes + 16 * self.chunks + _CRC_BYTES

    def parts(self, block: NDArray[np.generic]) -> list[memoryview | bytes]:
        """The file of a shard in pieces to be written one after the other: for each chunk its rows and its checksum
        (empty where chunks have none), then the index and that of the index.

        block: (rows, d), the shard's first rows, taken without a copy but for the last chunk when it is not full: the
        rest of it is zeros. Chunks beyond are not there.
        """
        rows = np.ascontiguousarray(block, block.dtype.newbyteorder("<")).reshape(-1).view(np.uint8)
        used = -(-len(block) // self.chunk_rows)
        parts: list[memoryview | bytes] = []
        for chunk in range(used):
            piece = rows[chunk * self.chunk_bytes : (chunk + 1) * self.chunk_bytes]
            if len(piece) < self.chunk_bytes:
                piece = np.pad(piece, (0, self.chunk_bytes - len(piece)))
            parts += [piece.data, _crc(piece) if self.checksums else b""]
        return [*parts, *self._index(used)]

    def _index(self, used: int) -> tuple[bytes, bytes]:
        """The index of a shard whose first chunks are used, and its checksum."""
        index = np.full((self.chunks, 2), MISSING, "<u8")
        index[:used, 0] = np.arange(used) * self.stored_bytes
        index[:used, 1] = self.stored_bytes
        table = index.tobytes()
        return table, _crc(table)

    def streamed(self, block: Spool, checksums: list[bytes]) -> Iterator[memoryview | bytes]:
        """As `parts`, of rows that are not in memory: a chunk at a time. checksums: gets those of the chunks."""
        checksums.clear()
        used = -(-len(block) // self.chunk_rows)
        for chunk in range(used):
            rows = block[chunk * self.chunk_rows : (chunk + 1) * self.chunk_rows]
            piece, checksum, *_ = self.parts(rows)
            checksums.append(bytes(checksum))
            yield from (piece, checksum)
        yield from self._index(used)

    def chunk_offsets(self, f: Any, path: "Path | RemoteShard") -> NDArray[np.uint64]:
        """Where each chunk of an open shard file begins, (chunks,); MISSING where it is not there.

        Raises InputError where the index is damaged.
        """
        tail_bytes = 16 * self.chunks + _CRC_BYTES
        if isinstance(f, RemoteShard):
            return self._offsets(f.tail(tail_bytes), f"{path}")
        f.seek(max(0, f.seek(0, os.SEEK_END) - tail_bytes))
        return self._offsets(f.read(tail_bytes), f"{path}")

    def _offsets(self, tail: bytes, where: str) -> NDArray[np.uint64]:
        table = tail[:-_CRC_BYTES]
        if len(table) < 16 * self.chunks or tail[-_CRC_BYTES:] != _crc(table):
            raise InputError(f"{where}: damaged, the checksum of its index is wrong; {_MEND}")
        offsets, sizes = np.frombuffer(table, "<u8").reshape(-1, 2).T
        there = offsets != MISSING
        if (sizes[there] != self.stored_bytes).any():
            raise InputError(f"{where}: damaged, or of another store: its chunks are of another size; {_MEND}")
        return offsets

    def read(self, path: "Path | RemoteShard", begin: int, out: NDArray[Any]) -> None:
        """Read rows of the shard `path`, from `begin` on, into `out` (rows, d); zeros where no chunk is there.

        Each chunk that they lie in is read whole where it has a checksum, and held against it.
        Raises InputError for a shard that is damaged or missing.
        """
        end, others = begin + len(out), np.empty(0, np.uint8)
        with _opened(path) as f:
            offsets = self.chunk_offsets(f, path)
            if isinstance(f, RemoteShard):
                f.expect(offsets[begin // self.chunk_rows : -(-end // self.chunk_rows)], self.stored_bytes)
            for first, last in self._reads(offsets, begin, end):
                a, b = max(begin, first * self.chunk_rows), min(end, last * self.chunk_rows)
                target = out[a - begin : b - begin].reshape(-1).view(np.uint8)
                before = (a - first * self.chunk_rows) * self.row_bytes
                if offsets[first] == MISSING:
                    target[:] = 0
                elif not self.checksums:
                    _fill(f, int(offsets[first]) + before, [target], path)
                else:
                    if len(others) < self.chunk_bytes - len(target):
                        others = np.empty(self.chunk_bytes, np.uint8)
                    whole = [others[:before], target, others[before : self.chunk_bytes - len(target)]]
                    checksum = bytearray(_CRC_BYTES)
                    _fill(f, int(offsets[first]), [*whole, checksum], path)
                    if checksum != _crc(*whole):
                        rows = f"rows {first * self.chunk_rows} to {last * self.chunk_rows - 1}"
                        raise InputError(f"{path}: damaged, the checksum of its {rows} is wrong; {_MEND}")

    def check(self, data: NDArray[np.uint8], rows: int) -> tuple[list[int], int | None]:
        """What is wrong in a shard's file of which `rows` rows are used.

        data: its bytes. Returns the chunks that are damaged, and the `shard_checksum` of what is there (None where
        chunks have no checksums). Raises InputError where the whole of it is of no use.
        """
        used, bad, checksums = -(-rows // self.chunk_rows), [], []
        if len(data) < self.size(rows) - used * self.stored_bytes:
            raise InputError("cut short")
        offsets = self._offsets(bytes(data[-16 * self.chunks - _CRC_BYTES :]), "its index")
        for chunk, offset in enumerate(offsets[:used].tolist()):
            if offset == MISSING:  # of zeros: zarr leaves such a chunk out of a copy
                checksums.append(_crc(np.zeros(self.chunk_bytes, np.uint8)))
                continue
            piece = data[offset : offset + self.stored_bytes]
            whole, own = piece[: self.chunk_bytes], bytes(piece[self.chunk_bytes :])
            if len(piece) < self.stored_bytes or (self.checksums and own != _crc(whole)):
                bad.append(chunk)
            checksums.append(own)
        return bad, int(google_crc32c.value(b"".join(checksums))) if self.checksums else None

    def _reads(self, offsets: NDArray[np.uint64], begin: int, end: int) -> Iterator[tuple[int, int]]:
        """The chunks of some rows, first and one after the last, as they are read at once: one by one, so that a chunk
        is in the processor's cache when it is summed up; those without checksums as they follow each other."""
        first, last = begin // self.chunk_rows, -(-end // self.chunk_rows)
        cut = np.ones(last - first - 1, bool)
        if not self.checksums:
            cut = offsets[first + 1 : last] != offsets[first : last - 1] + np.uint64(self.chunk_bytes)
        edges = [first, *(first + 1 + np.flatnonzero(cut)).tolist(), last]
        return pairwise(edges)


class RemoteShard:
    """A shard on an object store as `ShardLayout.read` takes it: read in few requests, one for chunks side by side.

    name: in errors. fetch: gives the bytes from one place to before another; from the end on where the first is < 0.
    indexes: keeps the bytes of the index by name, so that it is asked for once.
    """

    def __init__(self, name: str, fetch: Callable[[int, int | None], bytes], indexes: dict[str, bytes]) -> None:
        self.name, self._fetch, self._indexes = name, fetch, indexes
        self._spans: list[tuple[int, int]] = []
        self._at, self._held = 0, memoryview(b"")

    def __str__(self) -> str:
        return self.name

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._held = memoryview(b"")

    def tail(self, count: int) -> bytes:
        """The last bytes."""
        if self.name not in self._indexes:
            if len(self._indexes) >= _MOST_INDEXES:
                self._indexes.clear()
            self._indexes[self.name] = self._get(-count, None)
        return self._indexes[self.name]

    def expect(self, offsets: NDArray[np.uint64], stored_bytes: int) -> None:
        """What will be filled from: chunks of `stored_bytes` that begin there."""
        there = offsets[offsets != MISSING].astype(np.int64)
        for run in np.split(there, np.flatnonzero(np.diff(there) != stored_bytes) + 1):
            step = stored_bytes * max(1, _MOST_FETCHED // stored_bytes)
            end = int(run[-1]) + stored_bytes if len(run) else 0
            self._spans += [(a, min(a + step, end)) for a in range(int(run[0]), end, step)] if len(run) else []

    def fill(self, offset: int, views: list[memoryview]) -> int:
        """Read the bytes from an offset into buffers, as os.preadv does; how many."""
        if not self._at <= offset < self._at + len(self._held):
            begin, end = next(span for span in self._spans if span[0] <= offset < span[1])
            self._at, self._held = begin, memoryview(self._get(begin, end))
        piece, done = self._held[offset - self._at :], 0
        for view in views:
            part = piece[done : done + len(view)]
            view.cast("B")[: len(part)] = part
            done += len(part)
        return done

    def _get(self, begin: int, end: int | None) -> bytes:
        try:
            return self._fetch(begin, end)
        except FileNotFoundError:
            raise InputError(f"{self}: missing; run the same extraction again, it writes what is lost") from None


def shard_checksum(parts: list[memoryview | bytes]) -> int:
    """One number for what a shard's parts hold: the CRC-32C of its chunks' checksums, in order."""
    return checksum_of([bytes(part) for part in parts[1:-2:2]])


def checksum_of(chunks: Sequence[bytes]) -> int:
    """`shard_checksum` of the checksums of its chunks."""
    return int(google_crc32c.value(b"".join(chunks)))


def _crc(*pieces: NDArray[np.uint8] | bytes) -> bytes:
    checksum = 0
    for piece in pieces:
        checksum = google_crc32c.extend(checksum, piece)
    return checksum.to_bytes(_CRC_BYTES, "little")


def _opened(path: Path | RemoteShard) -> Any:
    if isinstance(path, RemoteShard):
        return path
    try:
        return open_regular(path).detach()
    except FileNotFoundError:
        raise InputError(f"{path}: missing; run the same extraction again, it writes what is lost") from None


def _fill(f: Any, offset: int, targets: list[Any], path: Path | RemoteShard) -> None:
    """Read a file's bytes from an offset into buffers, one after the other."""
    views = [memoryview(target) for target in targets if len(target)]
    while views:
        count = f.fill(offset, views) if isinstance(f, RemoteShard) else os.preadv(f.fileno(), views, offset)
        if not count:
            raise InputError(f"{path}: cut short; {_MEND}")
        offset += count
        while views and count >= len(views[0]):
            count -= len(views.pop(0))
        if count:
            views[0] = views[0][count:]
