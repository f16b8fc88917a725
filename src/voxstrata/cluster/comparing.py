"""`similarity` on Ray: tile rows, done by workers on whatever machine."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from voxstrata.base.folders import leaving_no_empty_folder
from voxstrata.base.progress import SILENT, Progress, Reporter
from voxstrata.cluster.actors import Workers, connected, on_actors
from voxstrata.cluster.node import refuse_unseen, same_everywhere
from voxstrata.retrieval.all_pairs import LOOK_AGAIN, Comparison, SimilarityReport, prepare_similarity
from voxstrata.retrieval.kernels import choose_kernel
from voxstrata.retrieval.kernels.base import Kernel
from voxstrata.retrieval.selection import Selection, select
from voxstrata.store.several import open_store


@dataclass(frozen=True)
class Side:
    """What a side of a comparison is made of: utterances of stores, by language, or by id."""

    stores: tuple[str, ...]
    languages: str | None = None
    ids: tuple[str, ...] | None = None

    def selection(self) -> Selection:
        return select(open_store(list(self.stores)), self.languages, self.ids)

    def everywhere(self) -> Side:
        """With paths that hold on every node."""
        return replace(self, stores=tuple(map(same_everywhere, self.stores)))


def similarity_on_ray(
    x: Side,
    y: Side | None,
    folders: Mapping[str, str | Path],
    *,
    kernel: Kernel,
    workers: Workers,
    overwrite: bool = False,
    reporter: Reporter = SILENT,
    **settings: Any,
) -> dict[str, SimilarityReport]:
    """`similarity` of some outputs, each into a folder of its own, by workers on Ray; reports by output.

    Planned and merged here; tile rows are computed there. Settings and errors are those of `similarity`, and InputError
    for a cluster that does not answer, or whose nodes do not see stores or folder.
    """
    if workers.gpus is None:
        workers = replace(workers, gpus=float(kernel.name.startswith("triton")))
    reports = {}
    with connected(workers.address) as ray, ExitStack() as stack:
        workers = workers.settled(ray.nodes(), reporter)
        sides = x.selection(), None if y is None else y.selection()
        how: dict[str, Any] = {"x": x.everywhere(), "y": None if y is None else y.everywhere(), "kernel": kernel.name}
        how |= {"threads": workers.threads, **settings}
        for output, folder in folders.items():
            stack.enter_context(leaving_no_empty_folder(Path(folder)))
            reporter.step(f"comparing {output}")
            begin, done = time.perf_counter(), _Done()
            run = prepare_similarity(*sides, output, folder, kernel=kernel, overwrite=overwrite, **settings)
            rows, there = len(run.plan.tiles.rows), {"output": output, "folder": same_everywhere(folder)}
            if left := run.pending() or _left(run):
                again = partial(_left, run)
                for more in on_actors(ray, workers, _rows_of, how | there, left, reporter, again):
                    done += more or _Done()
                    reporter.progress(Progress("comparing", rows - len(left) + done.rows, rows, "tile rows"))
            reports[output] = _report(run, done, time.perf_counter() - begin)
    return reports


def _left(run: Comparison) -> list[int]:
    """Tile rows that are still to be done when the workers have done theirs: what other runs are at, and what was
    damaged. None once the final table is there."""
    while not run.merged():
        run.merge()
        if rows := run.pending():
            time.sleep(LOOK_AGAIN)
            return rows
    return []


@dataclass(frozen=True)
class _Done:
    """What was done: tile rows, pairs, busy seconds by stage."""

    rows: int = 0
    pairs: int = 0
    stages: Mapping[str, float] = field(default_factory=dict)

    def __add__(self, other: _Done) -> _Done:
        stages = {k: self.stages.get(k, 0.0) + other.stages.get(k, 0.0) for k in {**self.stages, **other.stages}}
        return _Done(self.rows + other.rows, self.pairs + other.pairs, stages)

    def since(self, before: _Done) -> _Done:
        stages = {k: seconds - before.stages.get(k, 0.0) for k, seconds in self.stages.items()}
        return _Done(self.rows - before.rows, self.pairs - before.pairs, stages)


def _rows_of(
    x: Side, y: Side | None, output: str, folder: str, kernel: str, threads: int, **settings: Any
) -> Callable[[Sequence[int]], _Done]:
    """What a worker calls with tile rows."""
    os.environ["NUMBA_NUM_THREADS"] = str(threads)  # by which the kernels go
    for store in (*x.stores, *(y.stores if y else ())):
        refuse_unseen("store", [store])
    refuse_unseen("folder", [folder])
    sides = x.selection(), None if y is None else y.selection()
    run = prepare_similarity(*sides, output, folder, kernel=choose_kernel(kernel), **settings)

    def compute(rows: Sequence[int]) -> _Done:
        before = _Done(*run.so_far())
        run.compute(rows)
        return _Done(*run.so_far()).since(before)

    return compute


def _report(run: Comparison, done: _Done, seconds: float) -> SimilarityReport:
    own = run.report()
    stages = {stage: round(busy, 3) for stage, busy in (done + _Done(*run.so_far())).stages.items()}
    return replace(own, resumed_rows=own.rows_done - done.rows, pairs=done.pairs, seconds=seconds, stages=stages)
