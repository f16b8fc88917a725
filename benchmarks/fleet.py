"""A thousand workers on one store, simulated: claims, stragglers, workers that are lost and that come late.

Simulated are time, storage and encoder. What decides who works on what is the package's own: `Part.order`, `taken`,
and the leases of `voxstrata.store.leases` on a made-up object store by a made-up clock. A worker claims its next unit
when it begins to encode one, as the pipeline does; a lost worker leaves both claimed and unfinished. All units are due:
where all other workers had left before a lost one's leases ended, one more run does the rest, and that counts.

Utilisation is the time for which units were encoded that counted, over workers × time until the last was committed;
"of those there" leaves out the time before a worker came and after it was lost.

    python benchmarks/fleet.py                       # a million units, and what breaks it
"""

from __future__ import annotations

import argparse
import heapq
import itertools
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from types import SimpleNamespace

import numpy as np
from _common import say

from voxstrata.store import leases as leases_module
from voxstrata.store import part as part_module
from voxstrata.store.leases import Leases
from voxstrata.store.part import Part, taken

NAMES_PER_LIST = 1000  # of one list request of s3 and gs


@dataclass(frozen=True)
class Fleet:
    """What is simulated.

    unit_seconds: of a usual worker, on average; units differ by `spread` (lognormal), workers by `uneven` (normal).
    stragglers: share of workers that take three times as long. lost: share that ends at a random instant.
    late: share that comes within the first fifth of the time. request, listed: seconds of a request and of one that
    lists a thousand names. lease: seconds. ahead: whether the next unit is claimed while one is encoded.
    """

    name: str = "as it is"
    workers: int = 1000
    units: int = 1_000_000
    unit_seconds: float = 20.0
    spread: float = 0.2
    uneven: float = 0.05
    stragglers: float = 0.01
    lost: float = 0.02
    late: float = 0.05
    request: float = 0.03
    listed: float = 0.1
    lease: float = 30.0
    one_by_one: bool = False
    seed: int = 0


class Clock:
    """The time of whoever acts now."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


class Bucket:
    """The made-up object store: leases by name, and which units are committed. Each request takes its time."""

    def __init__(self, fleet: Fleet, clock: Clock) -> None:
        self.fleet, self.clock, self.root = fleet, clock, "made-up"
        self.leases: dict[str, tuple[str, float, Worker]] = {}
        self.committed: set[int] = set()
        self.requests: Counter[str] = Counter()
        self.worker: Worker | None = None  # who asks

    def _ask(self, kind: str, seconds: float | None = None) -> None:
        self.requests[kind] += 1
        self.clock.now += self.fleet.request if seconds is None else seconds

    def create(self, name: str, data: bytes) -> bool:
        self._ask("claim")
        if name in self.leases:
            self.requests["refused"] += 1
            return False
        assert self.worker is not None
        self.leases[name] = (data.decode().split()[0], self.clock.now, self.worker)
        return True

    def read(self, name: str) -> bytes:
        """A lease says how often its holder has rewritten it, while that lived."""
        self._ask("look at a claim")
        if name not in self.leases:
            raise FileNotFoundError(name)
        owner, made, worker = self.leases[name]
        beats = int((min(self.clock.now, worker.lost_at) - made) / (self.fleet.lease / leases_module._BEATS_PER_LEASE))
        return f"{owner} {beats}".encode()

    def remove(self, name: str) -> None:
        self.requests["drop"] += 1  # by the thread that commits: nobody waits
        self.leases.pop(name, None)

    def done(self, unit: int) -> bool:
        self._ask("is it done")
        return unit in self.committed

    def left(self) -> set[int]:
        pages = -(-max(1, len(self.committed)) // NAMES_PER_LIST)
        self.requests["list"] += pages
        self.clock.now += pages * self.fleet.listed
        return set(range(self.fleet.units)) - self.committed


class Claimed:
    """What `taken` sees of a worker's claims: the package's leases."""

    def __init__(self, bucket: Bucket, worker: Worker) -> None:
        self._leases, self._bucket, self._worker = Leases(bucket, bucket.fleet.lease), bucket, worker  # type: ignore[arg-type]
        self._leases._beating = SimpleNamespace()  # type: ignore[assignment]  # no thread: Bucket.read counts beats

    def take(self, unit: int) -> bool:
        self._bucket.worker = self._worker
        return self._leases.take(f"claims/{unit:06d}")

    def drop(self, unit: int) -> None:
        self._leases.drop(f"claims/{unit:06d}")


class Worker:
    """One worker: what it claims next, and when it is gone."""

    def __init__(self, number: int, bucket: Bucket, slow: float, comes: float, lost_at: float) -> None:
        self.number, self.bucket, self.slow, self.comes, self.lost_at = number, bucket, slow, comes, lost_at
        self.claims = Claimed(bucket, self)
        self.part = Part(number, bucket.fleet.workers)
        self.waited = 0.0
        self.holding: int | None = None

    def units(self) -> Iterator[int]:
        """As `Extraction.claimed` gives them."""
        left = None if self.bucket.fleet.one_by_one else self.bucket.left
        return taken(self.part.order(range(self.bucket.fleet.units)), self.claims, self.bucket.done, left)  # type: ignore[arg-type]


@dataclass
class Outcome:
    """What came of it. seconds: until the last unit was committed. twice: units encoded for nothing."""

    fleet: Fleet
    seconds: float = 0.0
    useful: float = 0.0
    there: float = 0.0
    twice: int = 0
    unfinished: int = 0
    left_at: float = 0.0
    tail: float = 0.0
    requests: Counter[str] | None = None

    @property
    def utilisation(self) -> float:
        return self.useful / (self.fleet.workers * self.seconds)


def simulate(fleet: Fleet) -> Outcome:
    """One run of a fleet."""
    rng, clock = np.random.default_rng(fleet.seed), Clock()
    for module in (leases_module, part_module):
        module.time = clock  # type: ignore[attr-defined]
    bucket = Bucket(fleet, clock)
    ideal = fleet.units * fleet.unit_seconds / fleet.workers
    cost = fleet.unit_seconds * rng.lognormal(-(fleet.spread**2) / 2, fleet.spread, fleet.units)
    n = fleet.workers
    slow = np.maximum(0.7, rng.normal(1, fleet.uneven, n))
    slow[rng.random(n) < fleet.stragglers] *= 3
    comes = np.where(rng.random(n) < fleet.late, rng.uniform(0, 0.2 * ideal, n), rng.uniform(0, 30, n))
    lost = np.where(rng.random(n) < fleet.lost, rng.uniform(0, ideal, n), np.inf)
    workers = [Worker(k + 1, bucket, slow[k], comes[k], max(comes[k], lost[k])) for k in range(n)]
    outcome = Outcome(fleet)
    order = itertools.count()
    # (when, tie, what, worker, unit, its iterator): a unit ends, or a worker looks for work
    events: list[tuple[float, int, str, Worker, int, Iterator[int] | None]] = []

    def at(when: float, what: str, worker: Worker, unit: int = -1, units: Iterator[int] | None = None) -> None:
        heapq.heappush(events, (when, next(order), what, worker, unit, units))

    for worker in workers:
        at(worker.comes, "look", worker)
    quarter = 0.0
    while events:
        when, _, what, worker, unit, units = heapq.heappop(events)
        if when >= worker.lost_at:
            continue
        clock.now = when
        if what == "look":
            units = worker.units()
            begins, held = when, next(units, None)
        else:  # a unit is committed; the next was claimed meanwhile
            if unit in bucket.committed:
                outcome.twice += 1
            else:
                bucket.committed.add(unit)
                outcome.useful += cost[unit] * worker.slow
                outcome.seconds = max(outcome.seconds, when)
                if len(bucket.committed) == fleet.units - fleet.workers:
                    quarter = when
            worker.claims.drop(unit)
            held = worker.holding
            begins = max(when, worker.ready)  # type: ignore[has-type]
            if held is None:  # what it asked for then had no end yet, or was all there is
                clock.now = begins
                held = next(units, None) if units is not None else None
                begins = clock.now
        begins = max(begins, clock.now) if what == "look" else begins
        if held is None:  # nothing that it may take: looks twice, then leaves, as `share` does
            outcome.left_at = max(outcome.left_at, begins)
            if len(bucket.committed) < fleet.units and not worker.waited:
                worker.waited = 1.0
                at(begins + 1.0, "look", worker)
            continue
        worker.waited = 0.0
        ends = begins + cost[held] * worker.slow
        clock.now = begins  # the next one is claimed while this one is encoded
        worker.holding = next(units, None) if units is not None else None
        worker.ready = clock.now
        at(ends, "end", worker, held, units)
    outcome.unfinished = fleet.units - len(bucket.committed)
    if outcome.unfinished:  # one more run, which waits for the leases, and does them
        rest = sorted(set(range(fleet.units)) - bucket.committed)
        outcome.useful += float(cost[rest].sum())
        outcome.seconds = max(outcome.seconds, outcome.left_at) + fleet.lease + float(cost[rest].sum()) / fleet.workers
        outcome.seconds += float(cost[rest].max())
    outcome.there = sum(max(0.0, min(w.lost_at, outcome.seconds) - w.comes) for w in workers)
    outcome.tail = outcome.seconds - quarter
    outcome.requests = bucket.requests
    return outcome
