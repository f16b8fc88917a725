"""Numbered pieces of work on Ray actors.

Ray places the workers, finds out which are lost with their node, and starts them elsewhere; what a lost one had in
flight goes to the next that is free. Only numbers and figures travel: what is worked on, and what comes of it, lie
where every node sees them.
"""

from __future__ import annotations

import logging
import os
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from voxstrata.base.errors import InputError, UsageError, VoxstrataError
from voxstrata.base.plain import counted
from voxstrata.base.progress import Reporter

LOCAL = "local"  # an address: Ray is started on this machine for as long as the run takes
HANDFUL = 8  # pieces that a worker gets at a time, at the most: within a handful it overlaps its stages
_LOSSES = 5  # so often a piece may lose its worker; then it is taken for what kills it
_TICK = 1.0  # seconds

Found = TypeVar("Found")
Maker = Callable[..., Callable[[Sequence[int]], Found]]


@dataclass(frozen=True)
class Workers:
    """Workers on Ray, in the end those that there is room for.

    address: of a cluster, "auto", HOST:PORT or ray://…; LOCAL for Ray on this machine alone.
    number, threads: of workers, and of each; None for what suits. gpus: of each, a part of one may do; None for none
    but where work needs one.
    """

    address: str = LOCAL
    number: int | None = None
    threads: int | None = None
    gpus: float | None = None

    def settled(self, nodes: Sequence[Mapping[str, Any]], reporter: Reporter) -> Workers:
        """With `number` and `threads` that suit these nodes, each described as `ray.nodes()` does.

        By default as many workers as there is room for, each with all cores of a node, or with a GPU's share of them.
        Raises InputError where Ray on this machine alone has no room for a worker; a cluster may get more nodes.
        """
        alive, gpus = [node["Resources"] for node in nodes if node["Alive"]], self.gpus or 0
        fits = [n for n in alive if n.get("CPU", 0) >= (self.threads or 1) and n.get("GPU", 0) >= gpus]
        if not fits:
            wanted = counted(self.threads or 1, "core") + (f" and {gpus:g} GPU{'s' * (gpus > 1)}" if gpus else "")
            has = [
                f"{sum(n.get(kind, 0) for n in alive):g} {name}" for kind, name in (("CPU", "cores"), ("GPU", "GPUs"))
            ]
            lack = f"Ray at {self.address} has no node with {wanted} for a worker; it has {' and '.join(has)} in all"
            if self.address == LOCAL:
                raise InputError(f"{lack}: ask for less")
            reporter.warn(f"{lack}: waiting for a node that joins")
            return replace(self, number=self.number or 1, threads=self.threads or 1, gpus=gpus)
        places = [int(n["GPU"] / gpus + 1e-9) if gpus else 1 for n in fits]  # workers of a node, by GPUs
        threads = self.threads
        if threads is None:
            shares = [int(n["CPU"] / place) for n, place in zip(fits, places, strict=True)]
            threads = min(shares)
            if self.number and not gpus:  # several may have to share a node
                threads = min(threads, int(sum(n["CPU"] for n in fits)) // self.number)
            threads = max(1, threads)
        cores = [int(n["CPU"] // threads) for n in fits]
        room = sum(min(pair) for pair in zip(cores, places, strict=True)) if gpus else sum(cores)
        return replace(self, number=self.number or max(1, room), threads=threads, gpus=gpus)


@contextmanager
def connected(address: str) -> Iterator[Any]:
    """Ray, connected. A connection that is there already is used, and left open.

    Raises InputError where nothing answers at that address, ModuleNotFoundError where Ray is not installed.
    """
    import ray

    if ray.is_initialized():
        yield ray
        return
    how: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if address == LOCAL:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is told to anybody
        how["include_dashboard"] = False
    try:
        ray.init(address, **how)
    except (ConnectionError, ValueError, ImportError, RuntimeError) as e:
        raise InputError(
            f"Ray at {address}: cannot connect ({_last_line(e)}); is the cluster up, and of this version?"
        ) from e
    try:
        yield ray
    finally:
        ray.shutdown()


def on_actors(
    ray: Any,
    workers: Workers,
    work: Maker[Found],
    arguments: Mapping[str, Any],
    pieces: Sequence[int],
    reporter: Reporter,
    more: Callable[[], Sequence[int]] = tuple,
) -> Iterator[Found | None]:
    """What `work(**arguments)` returns for each handful of pieces, as it comes; None about once a second.

    workers: settled. work: picklable, called once a worker. What it returns is called with handfuls, and may be with
    pieces that a lost worker has done already. more: asked for further pieces, for the same workers, when all are done;
    none end it.

    Raises what a worker raised on purpose; InputError for a piece that loses its worker time and again, and where a
    worker cannot start.
    """
    assert workers.number, "settle them first"
    waiting, losses = deque(handfuls(pieces, workers.number)), Counter[int]()
    make = ray.remote(num_cpus=workers.threads, num_gpus=workers.gpus, max_restarts=-1)(_Worker).remote
    actors = [make(work, dict(arguments)) for _ in range(min(workers.number, len(waiting)))]
    # An empty handful asks whether a worker is up.
    busy: dict[Any, tuple[Any, list[int]]] = {actor.do.remote([]): (actor, []) for actor in actors}
    free: list[Any] = []  # kept: what a lost worker was at may come back when nothing else is left
    restarting: list[Any] = []
    asked = time.monotonic()
    try:
        while True:
            if not waiting and not any(handful for _, handful in busy.values()):
                waiting.extend(handfuls(more(), workers.number))
                if not waiting:
                    break
            if time.monotonic() > asked + _TICK:
                busy |= {actor.do.remote([]): (actor, []) for actor in restarting}
                restarting, asked = [], time.monotonic()
            if not busy:
                time.sleep(_TICK)
            done = ray.wait(list(busy), timeout=_TICK)[0] if busy else []
            yield None
            for ref in done:
                actor, handful = busy.pop(ref)
                try:
                    found, error = ray.get(ref)
                except ray.exceptions.RayTaskError:
                    raise  # a fault of ours
                except ray.exceptions.RayError as e:
                    if handful:
                        _count(losses, handful)
                        reporter.warn(f"Ray lost the worker that was at {_named(handful)}: they start elsewhere")
                        waiting.extendleft([piece] for piece in reversed(handful))
                    elif not isinstance(e, ray.exceptions.ActorUnavailableError):
                        raise InputError(f"a worker on Ray cannot start: {_last_line(e)}") from e
                    restarting.append(actor)
                    continue
                if error is not None:
                    raise _ERRORS.get(error[0], VoxstrataError)(error[1])
                if handful:
                    yield found
                free.append(actor)
            while waiting and free:
                actor, handful = free.pop(), waiting.popleft()
                busy[actor.do.remote(handful)] = (actor, handful)
    finally:
        for actor in actors:
            ray.kill(actor)


def handfuls(pieces: Sequence[int], workers: int) -> list[list[int]]:
    """Pieces in their order, HANDFUL at a time: fewer towards the end, so that all workers end together."""
    parts, at = [], 0
    while at < len(pieces):
        size = min(max((len(pieces) - at) // (4 * workers), 1), HANDFUL)
        parts.append(list(pieces[at : at + size]))
        at += size
    return parts


# What is raised on purpose keeps its kind, and so its exit code.
_ERRORS = {kind.__name__: kind for kind in (InputError, UsageError)}


class _Worker:
    """Lives on a node of Ray. Errors for the user are returned: raised, they would come back as tracebacks."""

    def __init__(self, work: Maker[Any], arguments: Mapping[str, Any]) -> None:
        self._make, self._arguments = work, arguments
        self._work: Callable[[Sequence[int]], Any] | None = None

    def do(self, handful: Sequence[int]) -> tuple[Any, tuple[str, str] | None]:
        if not handful:
            return None, None
        try:
            self._work = self._work or self._make(**self._arguments)
            return self._work(handful), None
        except VoxstrataError as e:
            kind = next((name for name, kind in _ERRORS.items() if isinstance(e, kind)), "")
            return None, (kind, str(e))


def _count(losses: Counter[int], handful: Sequence[int]) -> None:
    losses.update(handful)
    if worst := [piece for piece in handful if losses[piece] >= _LOSSES]:
        raise InputError(
            f"{_named(worst)}: {_LOSSES} workers on Ray were lost while they were at it; what lacks most often is "
            "memory: see the logs of Ray on the nodes"
        )


def _named(pieces: Sequence[int]) -> str:
    return f"piece{'s' * (len(pieces) > 1)} {', '.join(map(str, pieces))}"


def _last_line(error: Exception) -> str:
    """Of an error of Ray: above it there are tracebacks and ids."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
