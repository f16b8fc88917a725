"""Opening files that a user names or a stranger made: regular files alone, and none that unpacks to more than it may.

A FIFO or a device may never end, and a few bytes may say that they are gigabytes.
"""

import gzip
import io
import json
import math
import os
import stat
import zipfile
import zlib
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from voxstrata.base.errors import InputError

JSON_BYTES = 1 << 26  # the most of one description, such as a card or a plan's settings
_FREE_BYTES = 1 << 26  # what anything may unpack to, however small it is
_MOST_RATIO = 200  # beyond that: bytes of text for one of gzip; manifests have 3 to 50
_KINDS = {
    stat.S_IFDIR: "a folder", stat.S_IFIFO: "a FIFO (named pipe)", stat.S_IFCHR: "a device", stat.S_IFBLK: "a device",
    stat.S_IFSOCK: "a socket",
}  # fmt: skip


def check_regular(path: str | Path) -> os.stat_result:
    """Raises InputError where something else than a regular file is there; OSError where nothing can be found."""
    try:
        status = os.stat(path)
    except ValueError as e:  # a NUL in the name
        raise InputError(f"{str(path)!a}: no name of a file ({e})") from None
    if not stat.S_ISREG(status.st_mode):
        kind = _KINDS.get(stat.S_IFMT(status.st_mode), "something else")
        mend = "name a file" if stat.S_ISDIR(status.st_mode) else "copy what it gives to a file, and name that"
        raise InputError(f"{path}: is {kind}, not a regular file; {mend}")
    return status


def open_regular(path: str | Path) -> io.BufferedReader:
    """A regular file's bytes. Raises as `check_regular` does."""
    check_regular(path)
    # what may be put in its place now does not block either
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    if stat.S_ISREG(os.fstat(fd).st_mode):
        return os.fdopen(fd, "rb")
    os.close(fd)
    raise InputError(f"{path}: is no regular file any more")


def read_regular(path: str | Path, most: int | None = None) -> bytes:
    """All bytes of a regular file. Raises as `check_regular` does, and InputError where there are more than `most`."""
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        if most is not None and size > most:
            raise InputError(f"{path}: {size} bytes, where {most} are the most that is read; name another file")
        return file.read()


def parse_json(data: str | bytes) -> Any:
    """As `json.loads`, but whatever is wrong is a ValueError: UTF-8, syntax, depth, numbers of thousands of digits."""
    try:
        return json.loads(data)
    except RecursionError:
        raise ValueError("brackets in brackets, too deep to be read") from None


def read_json_file(path: str | Path) -> Any:
    """What a JSON file holds. Raises as `read_regular` and `parse_json` do."""
    return parse_json(read_regular(path, JSON_BYTES).decode("utf-8"))


def open_unpacked(path: str | Path) -> io.BufferedReader:
    """A gzipped file's bytes, unpacked. Reading raises InputError where the file is damaged, or they are far more than
    such a file may hold."""
    packed = open_regular(path)
    most = max(_FREE_BYTES, _MOST_RATIO * os.fstat(packed.fileno()).st_size)
    return io.BufferedReader(_Bounded(path, gzip.GzipFile(fileobj=packed), packed, most), 1 << 16)


class _Bounded(io.RawIOBase):
    def __init__(self, path: str | Path, file: gzip.GzipFile, packed: BinaryIO, most: int) -> None:
        self._path, self._file, self._packed, self._left, self._most = path, file, packed, most, most

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        try:
            count = self._file.readinto(buffer)
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise InputError(f"{self._path}: a damaged gzip file: {error}; fetch it again") from None
        self._left -= count
        if self._left < 0:
            raise InputError(
                f"{self._path}: unpacks to more than {self._most} bytes; unpack it yourself if you trust it"
            )
        return count

    def close(self) -> None:
        self._file.close()
        self._packed.close()
        super().close()


def load_arrays(file: BinaryIO, names: tuple[str, ...] | None = None) -> dict[str, NDArray[Any]]:
    """The arrays of an .npz file, without pickles. Raises ValueError for anything else than what numpy writes.

    names: which to load, where they are there; None for all. Nothing is made of a size that the file does not bear out.
    """
    found: dict[str, NDArray[Any]] = {}
    try:
        with zipfile.ZipFile(file) as packed:
            for member in packed.infolist():
                name = member.filename.removesuffix(".npy")
                if names is not None and name not in names:
                    continue
                if member.file_size > max(_FREE_BYTES, _MOST_RATIO * member.compress_size):
                    raise ValueError(f"{name} unpacks to {member.file_size} bytes")
                found[name] = _array(name, packed.read(member))
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError, OSError, zlib.error) as e:
        # Zipfile's own for a damaged file: NotImplementedError is an unknown compression, RuntimeError a password.
        raise ValueError(f"no readable .npz file: {e}") from None
    return found


def _array(name: str, data: bytes) -> NDArray[Any]:
    file = io.BytesIO(data)
    try:
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = read(file)
    except Exception as e:  # what numpy's parser of headers may raise is not said anywhere
        raise ValueError(f"{name} is no array: {type(e).__name__}") from None
    if dtype.hasobject or not all(n >= 0 for n in shape):
        raise ValueError(f"{name} holds {dtype} of shape {shape}")
    if math.prod(shape) * dtype.itemsize != len(data) - file.tell():
        raise ValueError(f"{name} is {len(data)} bytes, which is not {dtype} of shape {shape}")
    file.seek(0)
    loaded: NDArray[Any] = np.lib.format.read_array(file, allow_pickle=False)
    return loaded
