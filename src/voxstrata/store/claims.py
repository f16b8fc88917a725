"""Who works on which unit, so that no two workers do the same.

Claims save work, they keep nothing right: a unit that two workers do all the same is written whole twice, with the same
bytes, and counts once.
"""

import contextlib
import fcntl
import os
from typing import Self

from voxstrata.store.files import Files

CLAIMS = "claims"


class Claims:
    """The claims of one worker on numbered pieces of work below a root: units of a store, tile rows of a comparison.

    On a local disk a claim is a lock on a file, and the operating system lets go of it when the process dies, however
    it dies. Leaving it as a context drops what is still held.
    """

    def __init__(self, files: Files, folder: str = CLAIMS) -> None:
        self._files, self._folder = files, folder
        self._held: dict[int, int] = {}  # file descriptors by number

    def take(self, number: int) -> bool:
        """Claim a piece of work; False where another worker has it. It is held until `drop`."""
        if self._files.local is None:
            return True  # to be done: leases by conditional writes
        path = self._files.local / self._folder / f"{number:06d}"
        while True:
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
                break
            except FileNotFoundError:  # who finishes the whole removes the folder
                continue
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(fd)
            return False
        self._held[number] = fd
        return True

    def drop(self, number: int) -> None:
        """Let go of a claim; nothing happens to one that is not held."""
        if (fd := self._held.pop(number, None)) is not None:
            os.close(fd)

    def clear(self) -> None:
        """Remove what is left of everybody's claims, once all pieces are done."""
        for name in self._files.names(self._folder):
            self._files.remove(f"{self._folder}/{name}")
        if self._files.local is not None:
            with contextlib.suppress(OSError):  # not there, or somebody has just looked for work
                (self._files.local / self._folder).rmdir()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for number in list(self._held):
            self.drop(number)
