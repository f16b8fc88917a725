"""Leases on an object store, which has no locks that die with their holder.

A lease is an object `NAME.<generation>`, made by a conditional write, so by one holder alone. Its holder rewrites it
every few seconds. Who sees it unchanged for the lease time, by a clock of its own, takes the holder for dead and makes
generation + 1, again by a conditional write. No two clocks are compared, and only time counts in which the object could
be looked at: an outage of the store ends no lease. A holder that was taken for dead too early goes on all the same; its
object then stays until the other lets go of both, so that nobody begins again at the first generation meanwhile.
"""

import threading
import time
from dataclasses import dataclass, field
from typing import Protocol, Self
from uuid import uuid4

from voxstrata.base.errors import HeldError, VoxstrataError

LEASE_SECONDS = 30.0
_BEATS_PER_LEASE = 6
_LOOKS_PER_LEASE = 4  # at the least, before a holder is taken for dead


class LeaseObjects(Protocol):
    """Where leases lie: what `Files` of an object store does for them."""

    root: str

    def create(self, name: str, data: bytes) -> bool: ...
    def read(self, name: str) -> bytes: ...
    def touch(self, name: str, data: bytes) -> bool: ...
    def remove(self, name: str) -> None: ...


@dataclass
class _Seen:
    """A lease that another holds. idle: seconds for which its content was seen to stay. moved: whether it changed."""

    generation: int
    content: bytes
    at: float
    idle: float = 0.0
    moved: bool = False


@dataclass
class _Held:
    """A lease of ours. written: when it last was for sure. late: whether that was ever so long ago that others may have
    taken us for dead. below: owners of the generations before it, who were."""

    generation: int
    written: float
    late: bool = False
    below: dict[int, str] = field(default_factory=dict)


class Leases:
    """The leases of one worker below a root. seconds: after which a holder that does not rewrite counts as dead.

    Leaving it as a context lets go of what is still held.
    """

    def __init__(self, files: LeaseObjects, seconds: float | None = None) -> None:
        self._files, self._seconds = files, LEASE_SECONDS if seconds is None else seconds
        self._owner, self._beats = uuid4().hex, 0
        self._held: dict[str, _Held] = {}
        self._seen: dict[str, _Seen] = {}
        self._dead: dict[str, dict[int, str]] = {}  # owners by generation
        self._changed, self._stop = threading.Condition(), threading.Event()
        self._at = ""  # what the thread is rewriting
        self._beating: threading.Thread | None = None

    def take(self, name: str) -> bool:
        """Take a lease; it is held until `drop`. False where another holds it, or may: then ask again later."""
        seen = self._seen.get(name)
        if seen is None:
            generation = 1
        elif not self._look(name, seen):  # let go of
            del self._seen[name]
            self._dead.pop(name, None)
            generation = 1
        elif seen.idle >= self._seconds:
            generation = seen.generation + 1
            self._dead.setdefault(name, {})[seen.generation] = _owner(seen.content)
        else:
            return False
        begin = time.monotonic()
        if not self._files.create(_object(name, generation), self._mark()):
            content = self._content(name, generation)
            if content is None:  # let go of just now
                return False
            if _owner(content) != self._owner:  # else it is ours: the answer was lost, not the request
                self._seen[name] = _Seen(generation, content, time.monotonic())
                return False
        self._seen.pop(name, None)
        below = {n: owner for n, owner in self._dead.pop(name, {}).items() if n < generation}
        with self._changed:
            self._held[name] = _Held(generation, begin, below=below)
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
        with self._changed:
            held = self._held.pop(name, None)
            self._changed.wait_for(lambda: self._at != name)  # it would come back
        if held is None:
            return
        late = held.late or time.monotonic() - held.written >= self._seconds
        if late and (
            self._owner_of(name, held.generation) != self._owner or self._owner_of(name, held.generation + 1)
        ):  # who took it over removes it
            return
        for generation, owner in sorted(held.below.items()):
            if self._owner_of(name, generation) == owner:
                self._files.remove(_object(name, generation))
        self._files.remove(_object(name, held.generation))

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

    def _owner_of(self, name: str, generation: int) -> str:
        """Empty where there is no such generation."""
        return _owner(self._content(name, generation) or b"")

    def _mark(self) -> bytes:
        self._beats += 1
        return f"{self._owner} {self._beats}".encode()

    def _beat(self) -> None:
        while not self._stop.wait(self._seconds / _BEATS_PER_LEASE):
            for name in list(self._held):
                with self._changed:
                    self._at = name
                    held = self._held.get(name)
                try:
                    if held is not None:
                        self._rewrite(name, held)
                finally:
                    with self._changed:
                        self._at = ""
                        self._changed.notify_all()

    def _rewrite(self, name: str, held: _Held) -> None:
        """Show that its holder lives. One that is gone, since all is done, or another's is not brought back."""
        try:
            ours = self._owner_of(name, held.generation) == self._owner
        except VoxstrataError:  # nobody reaches the store: nor do others
            return
        if not ours:
            with self._changed:
                self._held.pop(name, None)
            return
        begin = time.monotonic()
        if self._files.touch(_object(name, held.generation), self._mark()):
            held.late = held.late or time.monotonic() - held.written >= self._seconds
            held.written = begin


def _owner(content: bytes) -> str:
    return content.decode(errors="replace").partition(" ")[0]


def _object(name: str, generation: int) -> str:
    return f"{name}.{generation}"
