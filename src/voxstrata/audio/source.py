"""Where the bytes of a recording are, and which stretch of them is meant."""

import io
import os
import stat
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, ClassVar

from voxstrata.base.errors import AudioError, GoneError, refuse_fault_here


class Source(ABC):
    """One sound file, wherever its bytes are: on a disk, packed with others in one file, or in memory.

    Equal sources are the same bytes, and sources can be hashed and pickled. is_remote: each read is a request.
    """

    is_remote: ClassVar[bool] = False

    @property
    @abstractmethod
    def name(self) -> str:
        """What messages call it."""

    @abstractmethod
    def size(self) -> int:
        """Bytes. Raises AudioError where nothing can be read, or nothing is there."""

    @abstractmethod
    def open(self) -> BinaryIO:
        """Its bytes from the first on; the file can seek."""

    def read(self) -> bytes:
        """All its bytes."""
        with self.open() as file:
            return file.read()

    @contextmanager
    def fetched(self, size: int = 0) -> Iterator["Source"]:
        """The same bytes where they can be read often: here. size: of the file, where it is known."""
        yield self

    def for_library(self) -> str | BinaryIO:
        """What libsndfile or FFmpeg opens: the path where there is one."""
        return io.BytesIO(self.read())


@dataclass(frozen=True)
class FileSource(Source):
    """A sound file by itself."""

    path: Path

    @property
    def name(self) -> str:
        return str(self.path)

    def size(self) -> int:
        path = self.path
        try:
            status = path.stat()
            if stat.S_ISDIR(status.st_mode):
                raise AudioError(f"{path}: is a directory, not a recording; name a file in it")
            if not stat.S_ISREG(status.st_mode):
                raise AudioError(f"{path}: is not a regular file; copy the audio to one")
            with path.open("rb"):
                pass
        except FileNotFoundError:
            raise GoneError(f"{path}: no such file; correct the path or remove the row") from None
        except PermissionError:
            raise AudioError(f"{path}: not readable by this user; change its permissions") from None
        except (OSError, ValueError) as error:  # ValueError: a NUL in the path
            refuse_fault_here(error, self.name)
            raise AudioError(f"{path}: cannot be opened: {error}") from None
        if status.st_size == 0:
            raise AudioError(f"{path}: is empty (0 bytes); fetch it again or remove it")
        return status.st_size

    def open(self) -> BinaryIO:
        return self.path.open("rb")

    def for_library(self) -> str:
        return os.fspath(self.path)


@dataclass(frozen=True)
class Recording:
    """What is decoded: a whole sound file or a stretch of it.

    offset, duration: seconds; None for the file's own beginning, and for all that follows. channel: the one that is
    taken, 0 is the first; None for the average of all.
    """

    source: Source
    offset: float | None = None
    duration: float | None = None
    channel: int | None = None

    @property
    def is_segment(self) -> bool:
        """Whether it may be less than the whole file."""
        return self.offset is not None or self.duration is not None


def recording_of(what: Recording | Source | str | Path) -> Recording:
    """`what` as a recording: a path or a source is a whole sound file."""
    if isinstance(what, Recording):
        return what
    return Recording(what if isinstance(what, Source) else FileSource(Path(what)))
