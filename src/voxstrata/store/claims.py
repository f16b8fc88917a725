"""Who works on which unit, so that no two workers do the same.

Claims save work, they keep nothing right: a unit that two workers do all the same is written whole twice, with the same
bytes, and counts once.
"""

import contextlib
import fcntl
import os
import platform
from collections.abc import Iterable
from typing import Self

from voxstrata.store.files import NO_LOCKS, Files, without_locks
from voxstrata.store.leases import Leases

CLAIMS = "claims"


class Claims:
    """The claims of one worker on numbered pieces of work below a root: units of a store, tile rows of a comparison.

    On a local disk a claim is a lock on a file, and the operating system lets go of it when the process dies, however
    it dies. On an object store it is a lease of so many seconds (`Leases`): that of a worker which died is free once it
    was seen to be idle for that time, by the same Claims asked again and again.
    Leaving it as a context drops what is still held.
    """

    def __init__(self, files: Files, folder: str = CLAIMS, lease_seconds: float | None = None) -> None:
        self._files, self._folder = files, folder
        self._held: dict[int, int] = {}  # file descriptors by number
        self._leases = Leases(files, lease_seconds) if files.local is None else None

    def take(self, number: int) -> bool:
        """Claim a piece of work; False where another worker has it. It is held until `drop`."""
        if self._leases:
            return self._leases.take(self._name(number))
        assert self._files.local is not None
        path = self._files.local / self._name(number)
        while True:
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
            except FileNotFoundError:  # who finishes the whole removes the folder
                continue
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                # the holder before us may have removed the file between our open and our lock
                if path.exists() and os.fstat(fd).st_ino == path.stat().st_ino:
                    break
                os.close(fd)
            except BlockingIOError:
                os.close(fd)
                return False
            except FileNotFoundError:
                os.close(fd)
            except OSError as e:
                os.close(fd)
                raise (without_locks(self._files.local, e) if e.errno in NO_LOCKS else e) from None
        os.ftruncate(fd, 0)
        os.write(fd, f"process {os.getpid()} on {platform.node()}".encode())
        self._held[number] = fd
        return True

    def drop(self, number: int) -> None:
        """Let go of a claim; nothing happens to one that is not held."""
        if self._leases:
            self._leases.drop(self._name(number))
        if (fd := self._held.pop(number, None)) is not None:
            try:
                self._files.remove(self._name(number))
            finally:  # a lock that is left open would hold the piece for as long as this process lives
                os.close(fd)

    def held(self) -> set[int]:
        """What somebody holds, or held when he died, in a few requests; on a local disk nobody knows but by asking."""
        if self._files.local is not None:
            return set()
        return {int(name.split(".")[0]) for name in self._files.names(self._folder)}

    def holders(self, numbers: Iterable[int]) -> dict[int, str]:
        """Who is at pieces of work now, where that is known: on a local disk."""
        found: dict[int, str] = {}
        if self._files.local is None:
            return found
        there = {int(name) for name in self._files.names(self._folder) if name.isdigit()}
        for number in filter(there.__contains__, numbers):
            try:
                fd = os.open(self._files.local / self._name(number), os.O_RDONLY)
            except OSError:
                continue
            try:
                fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                found[number] = os.read(fd, 200).decode(errors="replace")
            finally:
                os.close(fd)
        return found

    def clear(self) -> None:
        """Remove what is left of everybody's claims, once all pieces are done."""
        if self._files.local is None:
            self._files.remove_folder(self._folder)
            return
        for name in self._files.names(self._folder):
            self._files.remove(f"{self._folder}/{name}")
        with contextlib.suppress(OSError):  # not there, or somebody has just looked for work
            (self._files.local / self._folder).rmdir()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._leases:
            self._leases.__exit__()
        for number in list(self._held):
            self.drop(number)

    def _name(self, number: int) -> str:
        return f"{self._folder}/{number:06d}"
