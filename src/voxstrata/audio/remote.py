"""Sound files on object stores and web servers: headers by ranged reads, and fetched once to be decoded."""

import io
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, cast

from voxstrata.audio.source import FileSource, Source
from voxstrata.base.errors import AudioError, GoneError, InputError, UnreachableError
from voxstrata.base.folders import scratch_folder
from voxstrata.base.remote import T, open_remote, patiently, shown

_BLOCK_BYTES = 1 << 16  # the first read of a header
_MOST_BLOCK_BYTES = 8 << 20  # each that goes on from there is twice as long as the one before
_PIECES = 8  # kept of a file whose header is read
_IN_MEMORY_BYTES = 32 << 20  # larger recordings are fetched to a temporary file


@dataclass(frozen=True)
class RemoteSource(Source):
    """A sound file by its URL. What signs the URL is in no message. Each request is tried again as `patiently` does.

    Raises AudioError for an object that is not there or may not be read; UnreachableError where no server answers.
    """

    url: str = field(repr=False)
    _pieces: list[tuple[int, bytes]] = field(default_factory=list, init=False, repr=False, compare=False)
    is_remote = True

    @property
    def name(self) -> str:
        return shown(self.url)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.url,)

    def _ask(self, action: Callable[[Any, str], T]) -> T:
        try:
            fs, path = open_remote(self.url)
            return patiently(self.url, lambda: action(fs, path))
        except FileNotFoundError:
            raise GoneError(f"{self.name}: no such object; correct the path or remove the row") from None
        except (UnreachableError, AudioError):
            raise
        except (InputError, OSError) as error:
            raise AudioError(str(error)) from None

    def size(self) -> int:
        about = self._ask(lambda fs, path: fs.info(path))
        if about["type"] == "directory":
            raise AudioError(f"{self.name}: is a folder, not a recording; name an object in it")
        size = len(self.read()) if about["size"] is None else int(about["size"])  # None: a server that does not say
        if not size:
            raise AudioError(f"{self.name}: is empty (0 bytes); upload it again or remove it")
        return size

    def open(self) -> BinaryIO:
        return cast(BinaryIO, io.BufferedReader(_RangedFile(self), _BLOCK_BYTES))

    def read(self) -> bytes:
        return bytes(self._ask(lambda fs, path: fs.cat_file(path)))

    def for_library(self) -> BinaryIO:
        return self.open()

    @contextmanager
    def fetched(self, size: int = 0) -> Iterator[Source]:
        if (size or self.size()) <= _IN_MEMORY_BYTES:
            yield _Fetched(self.name, self.read())
            return
        with scratch_folder("remote") as folder:
            local = os.path.join(folder, "recording")
            self._ask(lambda fs, path: fs.get_file(path, local))
            yield _FetchedFile(Path(local), self.name)

    def piece(self, begin: int, count: int) -> bytes:
        """Up to `count` bytes from a place on, out of what was read before or with one request."""
        for at, data in self._pieces:
            if at <= begin < at + len(data):
                return data[begin - at : begin - at + count]
        before = next((data for at, data in self._pieces if at + len(data) == begin), b"")
        wanted = max(count, _BLOCK_BYTES, min(2 * len(before), _MOST_BLOCK_BYTES))
        data = self._ask(lambda fs, path: bytes(fs.cat_file(path, start=begin, end=begin + wanted)))
        if len(data) > wanted:  # a server that knows no ranges sends all
            self._pieces[:] = [(0, data)]
            return data[begin : begin + count]
        self._pieces[_PIECES - 1 :] = []
        self._pieces.insert(0, (begin, data))
        return data[:count]


class _RangedFile(io.RawIOBase):
    """A remote file that can seek, read in pieces."""

    def __init__(self, source: RemoteSource) -> None:
        self._source, self._size, self._at = source, source.size(), 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._at = offset + (0, self._at, self._size)[whence]
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer: Any) -> int:
        count = min(len(buffer), self._size - self._at)
        if count <= 0:
            return 0
        data = self._source.piece(self._at, count)
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)


@dataclass(frozen=True)
class _Fetched(Source):
    """The bytes of a remote file."""

    called: str
    data: bytes = field(repr=False)

    @property
    def name(self) -> str:
        return self.called

    def size(self) -> int:
        return len(self.data)

    def open(self) -> BinaryIO:
        return io.BytesIO(self.data)


@dataclass(frozen=True)
class _FetchedFile(FileSource):
    """A remote file in a temporary one."""

    called: str

    @property
    def name(self) -> str:
        return self.called
