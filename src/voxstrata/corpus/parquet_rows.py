"""Recordings whose bytes are in the rows of a Parquet file, read from there without unpacking."""

import bisect
import io
import threading
from collections import deque
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO

import pyarrow as pa

from voxstrata.audio.source import Source
from voxstrata.base.errors import AudioError, GoneError, InputError, is_fault_here, refuse_fault_here
from voxstrata.base.parquet import parquet_file
from voxstrata.corpus.table import Pack

_BLOCK_BYTES = 16 << 20  # of audio that is read at once, where a row group holds more
_KEPT_BYTES = 64 << 20  # of audio that stays in memory, so that threads a few rows apart read it once
_OPEN_FILES = 2
_BUFFER_BYTES = 1 << 20  # read from the disk at once; without it Arrow reads a whole row group


@dataclass(frozen=True)
class ParquetPack(Pack):
    """A Parquet file with the bytes of recordings in `column`; a member is the number of a row, from 0."""

    path: Path
    column: str

    def source(self, member: str) -> Source:
        return ParquetSource(self.path, self.column, int(member))

    def position(self, member: str) -> int:
        return int(member)


@dataclass(frozen=True)
class ParquetSource(Source):
    """The recording in one row of a Parquet file."""

    path: Path
    column: str
    row: int

    @property
    def name(self) -> str:
        return f"{self.path}[{self.row}]"

    def size(self) -> int:
        return len(self.read())

    def open(self) -> BinaryIO:
        return io.BytesIO(self.read())

    def read(self) -> bytes:
        """Raises AudioError where the file cannot be read, or the row holds no bytes."""
        try:
            status = self.path.stat()
            data = _rows_of(self.path, self.column, status.st_mtime_ns, status.st_size).bytes(self.row)
        except FileNotFoundError:
            raise GoneError(f"{self.name}: no such file; correct the path or bring it back") from None
        except (OSError, pa.ArrowException, InputError) as error:
            refuse_fault_here(error, self.name)
            raise AudioError(f"{self.name}: cannot be read: {error}; fetch the file again") from None
        if not data:
            raise AudioError(f"{self.name}: holds no audio bytes; fetch the file again or remove the row")
        return data


@lru_cache(maxsize=_OPEN_FILES)
def _rows_of(path: Path, column: str, changed: int, size: int) -> "_Rows":
    """The open file; `changed` and `size` tell a file from one that was put in its place."""
    return _Rows(path, column)


class _Rows:
    """One column of bytes, read block by block in the order of the rows; any other order costs more reading."""

    def __init__(self, path: Path, column: str) -> None:
        self._file, self._column = parquet_file(path, buffer_size=_BUFFER_BYTES), column
        self._lock = threading.Lock()
        self._begin = [0]  # first row of each row group, and the number of all rows
        for group in range(self._file.num_row_groups):
            self._begin.append(self._begin[-1] + self._file.metadata.row_group(group).num_rows)
        self._blocks: deque[tuple[int, pa.Array]] = deque()  # with the first row of each, the oldest first
        self._group, self._next = -1, 0  # what is being read, and the row that comes next
        self._damaged: dict[int, tuple[int, Exception]] = {}  # by row group: the row that cannot be read, and why

    def bytes(self, row: int) -> bytes | None:
        with self._lock:
            block = next((b for b in self._blocks if b[0] <= row < b[0] + len(b[1])), None) or self._read_to(row)
            value: bytes | None = block[1][row - block[0]].as_py()
            return value

    def _read_to(self, row: int) -> tuple[int, pa.Array]:
        """The block that holds `row`. Those before it in its row group are read, too."""
        group = bisect.bisect_right(self._begin, row) - 1
        if group in self._damaged and row >= self._damaged[group][0]:  # not to read all before it once more
            raise self._damaged[group][1]
        if group != self._group or row < self._next:
            self._batches = self._file.iter_batches(
                self._block_rows(group), row_groups=[group], columns=[self._column], use_threads=False
            )
            self._group, self._next = group, self._begin[group]
        while self._next <= row:
            try:
                block = self._next, audio_bytes(next(self._batches).column(0))
            except (OSError, pa.ArrowException, StopIteration) as error:
                self._group = -1
                if is_fault_here(error):
                    raise
                self._damaged[group] = (self._next, pa.ArrowInvalid(f"damaged: {error}"))
                raise self._damaged[group][1] from None
            self._blocks.append(block)
            self._next += len(block[1])
            while len(self._blocks) > 2 and sum(array.nbytes for _, array in self._blocks) > _KEPT_BYTES:
                self._blocks.popleft()
        return block

    def _block_rows(self, group: int) -> int:
        about = self._file.metadata.row_group(group)
        columns = (about.column(i) for i in range(about.num_columns))
        size = sum(
            int(c.total_uncompressed_size) for c in columns if f"{c.path_in_schema}.".startswith(f"{self._column}.")
        )
        return max(1, int(about.num_rows) * _BLOCK_BYTES // max(size, 1))


def audio_bytes(column: pa.Array) -> pa.Array:
    """The bytes of a column of audio: of its own, or of its field "bytes"; null where either is."""
    if not pa.types.is_struct(column.type):
        return column
    return column.flatten()[column.type.get_field_index("bytes")]
