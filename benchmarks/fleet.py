"""A thousand workers on one store, simulated: claims, stragglers, workers that are lost and that come late.

Simulated are time, storage and encoder. What decides who works on what is the package's own: `Part.order`, `taken`,
and the leases of `voxstrata.store.leases` on a made-up object store by a made-up clock. A worker claims its next unit
when it begins to encode one, as the pipeline does; a lost worker leaves both claimed and unfinished. A part does not
wait for the leases of the dead: what these held is left to one more run.

Utilisation is the time for which units were encoded that counted, over workers × time until the last was committed;
"of those there" leaves out the time before a worker came and after it was lost or had left.

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
    unit_seconds: float = 5.0
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
        self.done_units, self.committed = bytearray(fleet.units), 0
        self.looks: dict[bool, tuple[Units, float]] = {}
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
        return bool(self.done_units[unit])

    def left(self, claimed: bool = True) -> Units:
        """What is not committed; with `claimed` also without what the names of claims say is being done.

        Who asks within a second of another sees what that saw.
        """
        pages = 1 + self.committed // NAMES_PER_LIST + claimed * (1 + len(self.leases) // NAMES_PER_LIST)
        self.requests["list"] += pages
        self.clock.now += pages * self.fleet.listed
        seen, when = self.looks.get(claimed, (None, -1.0))
        if seen is None or not when <= self.clock.now < when + 1:
            taken_now = bytearray(self.done_units)
            if claimed:
                for name in self.leases:
                    taken_now[int(name[7:14])] = 1
            seen = Units(bytes(taken_now))
            self.looks[claimed] = seen, self.clock.now
        return seen

    def commit(self, unit: int) -> None:
        self.done_units[unit] = 1
        self.committed += 1


class Units:
    """What is left, by a byte for each unit."""

    def __init__(self, done: bytes) -> None:
        self._done, self._count = done, done.count(0)

    def __len__(self) -> int:
        return self._count

    def __contains__(self, unit: object) -> bool:
        return not self._done[unit]  # type: ignore[index]


class Claimed:
    """What `taken` sees of a worker's claims: the package's leases."""

    def __init__(self, bucket: Bucket, worker: Worker) -> None:
        self._leases, self._bucket, self._worker = Leases(bucket, bucket.fleet.lease), bucket, worker  # type: ignore[arg-type]
        self._leases._beating = SimpleNamespace()  # type: ignore[assignment]  # no thread: Bucket.read counts beats

    def take(self, unit: int) -> bool:
        self._bucket.worker = self._worker
        return self._leases.take(f"claims/{unit:07d}")

    def drop(self, unit: int) -> None:
        self._leases.drop(f"claims/{unit:07d}")


class Worker:
    """One worker: what it claims next, and when it is gone."""

    def __init__(self, number: int, bucket: Bucket, slow: float, comes: float, lost_at: float) -> None:
        self.number, self.bucket, self.slow, self.comes, self.lost_at = number, bucket, slow, comes, lost_at
        self.claims = Claimed(bucket, self)
        self.part = Part(number, bucket.fleet.workers)
        self.looks, self.following, self.ready, self.left_at = 2, None, 0.0, np.inf

    def units(self) -> Iterator[int]:
        """As `Extraction.claimed` gives them."""
        bucket, all_units = self.bucket, range(self.bucket.fleet.units)
        left = bucket.left(claimed=False)
        if not left:
            return iter(())
        pieces = (unit for unit in self.part.order(all_units) if unit in left)
        look = None if bucket.fleet.one_by_one else bucket.left
        return taken(pieces, self.claims, bucket.done, look)  # type: ignore[arg-type]


@dataclass
class Outcome:
    """What came of it. seconds: until the last unit was committed. twice: units encoded for nothing."""

    fleet: Fleet
    seconds: float = 0.0
    useful: float = 0.0
    there: float = 0.0
    twice: int = 0
    unfinished: int = 0
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
            following = next(units, None)
        else:  # a unit is committed; the next was claimed meanwhile
            if bucket.done_units[unit]:
                outcome.twice += 1
            else:
                bucket.commit(unit)
                outcome.useful += cost[unit] * worker.slow
                outcome.seconds = when
                if bucket.committed == fleet.units - fleet.workers:
                    quarter = when
            worker.claims.drop(unit)
            clock.now, following = max(when, worker.ready), worker.following
        if following is None:
            # as `share`: it looks again at once where it got something, then once more a little later, then it leaves
            if bucket.committed < fleet.units and worker.looks:
                worker.looks -= 1
                at(clock.now + (0.0 if worker.looks else 0.5), "look", worker)
            else:
                worker.left_at = clock.now
            continue
        worker.looks = 2
        ends = clock.now + cost[following] * worker.slow
        worker.following = next(units, None) if units is not None else None  # claimed while this one is encoded
        worker.ready = clock.now
        at(ends, "end", worker, following, units)
    outcome.unfinished = fleet.units - bucket.committed
    outcome.there = sum(max(0.0, min(w.lost_at, w.left_at, outcome.seconds) - w.comes) for w in workers)
    outcome.tail = outcome.seconds - quarter
    outcome.requests = bucket.requests
    return outcome


def told(outcome: Outcome) -> list[str]:
    """A row of the table."""
    fleet, r = outcome.fleet, outcome.requests or Counter()
    per = (r["claim"] + r["look at a claim"] + r["is it done"] + r["drop"]) / fleet.units
    cells = [fleet.name, f"{fleet.workers:,}", f"{fleet.units:,}", f"{fleet.unit_seconds:g}"]
    cells += [f"{outcome.utilisation:.3f}", f"{outcome.useful / outcome.there:.3f}", f"{outcome.seconds / 3600:.2f}"]
    cells += [f"{outcome.tail:.0f}", f"{outcome.twice}", f"{outcome.unfinished}", f"{per:.2f}", f"{r['refused']:,}"]
    return [*cells, f"{r['list']:,}"]


HEADER = ["", "workers", "units", "s a unit", "utilisation", "of those there", "hours", "tail, s", "done twice",
          "left to one more run", "requests a unit", "claims refused", "list requests"]  # fmt: skip


def cases(units: int) -> list[Fleet]:
    """A fleet, and what might break it."""
    usual = Fleet(units=units)
    few = replace(usual, units=units // 10)
    return [
        usual,
        replace(few, name="100 units a worker"),
        replace(few, name="units of 1 s", unit_seconds=1.0),
        replace(few, name="units of 50 s", unit_seconds=50.0),
        replace(few, name="10 units a worker", units=10 * few.workers),
        replace(few, name="10 even units a worker, nobody slow or lost", units=10 * few.workers, stragglers=0, lost=0,
                late=0, uneven=0, spread=0),
        replace(few, name="a lease of 5 minutes", lease=300.0),
        replace(few, name="requests of 0.3 s", request=0.3, listed=1.0),
        replace(few, name="a tenth is lost, a tenth slow", lost=0.1, stragglers=0.1),
        replace(few, name="100 workers", workers=100),
        replace(few, name="asked one by one, without lists", one_by_one=True),
    ]  # fmt: skip


def main() -> int:
    """Run and print."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--units", type=int, default=1_000_000)
    p.add_argument("--only", type=int, nargs="+", help="numbers of cases, from 0")
    args = p.parse_args()
    rows = [HEADER, ["---"] * len(HEADER)]
    first = None
    for k, fleet in enumerate(cases(args.units)):
        if args.only and k not in args.only:
            continue
        begin = time.perf_counter()
        outcome = simulate(fleet)
        first = first or outcome
        rows.append(told(outcome))
        say(f"{' '.join(rows[-1])} ({time.perf_counter() - begin:.0f} s)")
    print("\n".join("| " + " | ".join(row) + " |" for row in rows))
    return int(first is not None and first.utilisation < 0.97)


if __name__ == "__main__":
    sys.exit(main())
