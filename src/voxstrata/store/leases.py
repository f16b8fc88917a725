"""Leases on an object store, which has no locks that die with their holder.

A lease is an object `NAME.<generation>`, made by a conditional write, so by one holder alone. Its holder rewrites it
every few seconds. Who sees it unchanged for the lease time, by a clock of its own, takes the holder for dead and makes
generation + 1, again by a conditional write. No two clocks are compared, and only time counts in which the object could
be looked at: an outage of the store ends no lease. A holder that was taken for dead too early goes on all the same.
"""

import threading
import time
from dataclasses import dataclass
from typing import Protocol, Self
from uuid import uuid4

from voxstrata.base.errors import HeldError

LEASE_SECONDS = 30.0
_BEATS_PER_LEASE = 6
_LOOKS_PER_LEASE = 4  # at the least, before a holder is taken for dead


class LeaseObjects(Protocol):
    """Where leases lie: what `Files` of an object store does for them."""

    root: str

    def create(self, name: str, data: bytes) -> bool: ...
    def read(self, name: str) -> bytes: ...
    def touch(self, name: str, data: bytes) -> None: ...
    def remove(self, name: str) -> None: ...


@dataclass
class _Seen:
    """A lease that another holds. idle: seconds for which its content was seen to stay. moved: whether it changed."""

    generation: int
    content: bytes
    at: float
    idle: float = 0.0
    moved: bool = False


class Leases:
    """The leases of one worker below a root. seconds: after which a holder that does not rewrite counts as dead.

    Leaving it as a context lets go of what is still held.
    """

    def __init__(self, files: LeaseObjects, seconds: float | None = None) -> None:
        self._files, self._seconds = files, LEASE_SECONDS if seconds is None else seconds
        self._owner, self._beats = uuid4().hex, 0
        self._held: dict[str, int] = {}  # generations by name
        self._seen: dict[str, _Seen] = {}
        self._lock, self._stop = threading.Lock(), threading.Event()
        self._beating: threading.Thread | None = None

    def take(self, name: str) -> bool:
        """Take a lease; it is held until `drop`. False where another holds it, or may: then ask again later."""
        seen = self._seen.get(name)
        if seen is None:
            generation = 1
        elif not self._look(name, seen):  # let go of
            del self._seen[name]
            generation = 1
        elif seen.idle >= self._seconds:
            generation = seen.generation + 1
        else:
            return False
        if not self._files.create(_object(name, generation), self._mark()):
            content = self._content(name, generation)
            if content is None:  # let go of just now
                return False
            if not content.startswith(self._owner.encode()):  # else it is ours: the answer was lost, not the request
                self._seen[name] = _Seen(generation, content, time.monotonic())
                return False
        self._seen.pop(name, None)
        with self._lock:
            self._held[name] = generation
            if self._beating is None:
                self._beating = threading.Thread(target=self._beat, name="leases", daemon=True)
                self._beating.start()
        return True

    def wait(self, name: str, holder: str) -> None:
        """Take a lease of one that is dead, waiting for the lease time. Raises HeldError where its holder lives.

        holder: what holds it, for the error.
        """
        while not self.take(name):
            if name in self._seen and self._seen[name].moved:
                raise HeldError(f"{self._files.root}: {holder}; wait for it or stop it")
            time.sleep(min(1.0, self._seconds / _BEATS_PER_LEASE / 2))

    def drop(self, name: str) -> None:
        """Let go of a lease; nothing happens to one that is not held."""
        with self._lock:  # so that no beat brings it back
            for generation in range(self._held.pop(name, 0), 0, -1):
                self._files.remove(_object(name, generation))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for name in list(self._held):
            self.drop(name)

    def _look(self, name: str, seen: _Seen) -> bool:
        """See whether a lease has changed; False where it is gone."""
        content, now = self._content(name, seen.generation), time.monotonic()
        if content is None:
            return False
        if content != seen.content:
            seen.content, seen.idle, seen.moved = content, 0.0, True
        else:
            seen.idle += min(now - seen.at, self._seconds / _LOOKS_PER_LEASE)
        seen.at = now
        return True

    def _content(self, name: str, generation: int) -> bytes | None:
        try:
            return self._files.read(_object(name, generation))
        except FileNotFoundError:
            return None

    def _mark(self) -> bytes:
        self._beats += 1
        return f"{self._owner} {self._beats}".encode()

    def _beat(self) -> None:
        while not self._stop.wait(self._seconds / _BEATS_PER_LEASE):
            for name in list(self._held):
                with self._lock:
                    if name in self._held:
                        self._files.touch(_object(name, self._held[name]), self._mark())


def _object(name: str, generation: int) -> str:
    return f"{name}.{generation}"
