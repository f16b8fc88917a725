"""Arrays that are too long to be held: they lie in a temporary file, and slices of them are read."""

import os
import weakref
from tempfile import TemporaryFile
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray


class Spool:
    """An array (length, *row) of zeros at first, in a file without a name that goes when the process does.

    It lies where temporary files do (TMPDIR). Rows that nobody has put take no room there. Raises OSError, such as for
    no space.
    """

    def __init__(self, length: int, row: tuple[int, ...] = (), dtype: DTypeLike = np.float32) -> None:
        self._row, self._dtype = row, np.dtype(dtype)
        self._row_bytes = int(np.prod(row, dtype=np.int64)) * self._dtype.itemsize
        with TemporaryFile(buffering=0) as file:
            self._fd = os.dup(file.fileno())
        weakref.finalize(self, os.close, self._fd)
        self.resize(length)

    def __len__(self) -> int:
        return self._length

    def resize(self, length: int) -> None:
        """Cut the end, or have zeros follow it."""
        self._length = length
        os.ftruncate(self._fd, length * self._row_bytes)

    def put(self, begin: int, rows: NDArray[Any]) -> None:
        """Write rows from `begin` on, cast to the array's type."""
        data = np.ascontiguousarray(rows, self._dtype).reshape(-1).view(np.uint8)
        at = begin * self._row_bytes
        while len(data):
            done = os.pwrite(self._fd, data.data, at)
            data, at = data[done:], at + done

    def __getitem__(self, rows: slice) -> NDArray[Any]:
        """Some rows that follow each other, read anew."""
        begin, end, _ = rows.indices(self._length)
        found = np.zeros((max(0, end - begin), *self._row), self._dtype)
        data, at = found.reshape(-1).view(np.uint8), begin * self._row_bytes
        while len(data) and (done := os.preadv(self._fd, [data.data], at)):
            data, at = data[done:], at + done
        return found
