"""Promises of leases, on an object store and by a clock that are made up: who holds what, and what is left behind."""

from __future__ import annotations

import threading
from collections.abc import Callable
from types import SimpleNamespace

import numpy as np
import pytest

from voxstrata.store import leases
from voxstrata.store.leases import Leases

SECONDS = 30.0


class Clock:
    now = 0.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


class Objects:
    """An object store in memory. before: called with each request's kind and name."""

    root = "made-up"

    def __init__(self) -> None:
        self.there: dict[str, bytes] = {}
        self.before: Callable[[str, str], object] = lambda kind, name: None

    def create(self, name: str, data: bytes) -> bool:
        self.before("create", name)
        return self.there.setdefault(name, data) is data

    def read(self, name: str) -> bytes:
        self.before("read", name)
        if name not in self.there:
            raise FileNotFoundError(name)
        return self.there[name]

    def touch(self, name: str, data: bytes) -> bool:
        self.before("touch", name)
        self.there[name] = data
        return True

    def remove(self, name: str) -> None:
        self.before("remove", name)
        self.there.pop(name, None)


class Worker(Leases):
    """One whose thread beats when it is told to."""

    def __init__(self, objects: Objects) -> None:
        super().__init__(objects, SECONDS)
        self._beating = SimpleNamespace()  # type: ignore[assignment]

    def beat(self) -> None:
        for name, held in list(self._held.items()):
            self._rewrite(name, held)

    def holds(self, name: str) -> bool:
        return name in self._held

    def late(self, name: str, now: float) -> bool:
        """Whether others may have taken it for dead."""
        held = self._held[name]
        return held.late or now - held.written >= SECONDS


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made_up = Clock()
    monkeypatch.setattr(leases, "time", made_up)
    return made_up


@pytest.fixture
def objects(clock: Clock) -> Objects:
    return Objects()


def wait_for(worker: Leases, name: str, clock: Clock) -> None:
    """Take a lease whose holder does nothing."""
    for _ in range(300):
        if worker.take(name):
            return
        clock.now += 1
    pytest.fail("never taken")


def test_who_was_taken_for_dead_lets_nobody_in_beside_who_took_over(clock: Clock, objects: Objects) -> None:
    slow, second, third = (Worker(objects) for _ in range(3))
    assert slow.take("a")
    wait_for(second, "a", clock)
    slow.drop("a")  # it ends after all
    for _ in range(20):
        assert not third.take("a")
        second.beat()
        clock.now += 5
    second.drop("a")
    assert objects.there == {}
    assert third.take("a") or third.take("a")


def test_who_lets_go_takes_nothing_of_others_along(clock: Clock, objects: Objects) -> None:
    slow, second, third = (Worker(objects) for _ in range(3))
    assert slow.take("a")

    def slow_ends(kind: str, name: str) -> None:
        if (kind, name) == ("create", "a.2"):  # just before it is taken over, and another begins
            objects.before = lambda kind, name: None
            slow.drop("a")
            assert third.take("a")

    objects.before = slow_ends
    wait_for(second, "a", clock)
    second.drop("a")
    assert third.holds("a")
    assert list(objects.there) == ["a.1"]
    assert not Worker(objects).take("a")


def test_of_several_that_died_nothing_is_left(clock: Clock, objects: Objects) -> None:
    for _ in range(4):
        wait_for(Worker(objects), "a", clock)
    last = Worker(objects)
    wait_for(last, "a", clock)
    assert list(objects.there) == [f"a.{n}" for n in range(1, 6)]
    last.drop("a")
    assert objects.there == {}


def test_a_claim_that_was_cleared_away_is_not_brought_back(clock: Clock, objects: Objects) -> None:
    worker = Worker(objects)
    assert worker.take("a")
    objects.there.clear()  # who finishes the whole does that
    worker.beat()
    assert objects.there == {}
    assert not worker.holds("a")
    worker.drop("a")
    # one that another has made since is that one's
    assert worker.take("a")
    objects.there["a.1"] = b"another 1"
    worker.beat()
    worker.drop("a")
    assert objects.there == {"a.1": b"another 1"}


def test_a_request_that_hangs_holds_up_its_own_lease_alone() -> None:
    objects, hangs, goes_on = Objects(), threading.Event(), threading.Event()

    def hang(kind: str, name: str) -> None:
        if (kind, name) == ("touch", "a.1"):
            hangs.set()
            goes_on.wait(20)

    with Leases(objects, 0.3) as worker:
        objects.before = hang
        assert worker.take("a")
        assert hangs.wait(20)
        assert worker.take("b")  # while it hangs
        worker.drop("b")
        assert list(objects.there) == ["a.1"]
        dropping = threading.Thread(target=worker.drop, args=("a",))
        dropping.start()
        dropping.join(0.2)
        assert dropping.is_alive()  # what is being written would come back
        goes_on.set()
        dropping.join(20)
        assert objects.there == {}


@pytest.mark.parametrize("seed", range(100))
def test_no_two_hold_what_neither_was_late_for(seed: int, clock: Clock, objects: Objects) -> None:
    rng, workers = np.random.default_rng(seed), [Worker(objects) for _ in range(4)]
    for _ in range(300):
        worker = workers[int(rng.integers(len(workers)))]
        match int(rng.integers(6)):
            case 0 | 1:
                if not worker.holds("a"):
                    worker.take("a")
            case 2:
                if rng.random() < 0.3:
                    worker.drop("a")
            case 3 | 4:
                worker.beat()
            case _:
                clock.now += float(rng.choice([0.1, 1, 5, 20], p=[0.3, 0.4, 0.2, 0.1]))
        holders = [w for w in workers if w.holds("a") and not w.late("a", clock.now)]
        assert len(holders) <= 1
    for worker in workers:
        worker.drop("a")
    last = Worker(objects)
    wait_for(last, "a", clock)
    last.drop("a")
    assert objects.there == {}
