"""All pairs of two sets of utterances, or of one set with itself, at corpus scale.

A tile row (see `compare`) is the unit of work, of recovery and of distribution: it is done when its commit marker
exists, and two workers never write one file.
"""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from voxstrata.base.errors import InputError, UsageError
from voxstrata.base.folders import leaving_no_empty_folder
from voxstrata.base.progress import SILENT, Reporter
from voxstrata.retrieval.candidates import CandidateSets, measure_recall, nearest_pooled
from voxstrata.retrieval.compare import Sink, Stages, compare
from voxstrata.retrieval.folder import Results
from voxstrata.retrieval.kernels import choose_kernel
from voxstrata.retrieval.kernels.base import FloatMatrix, Kernel
from voxstrata.retrieval.selection import Selection
from voxstrata.retrieval.similarities import harmonic
from voxstrata.retrieval.tileplan import TilePlan, plan_tiles
from voxstrata.retrieval.topk import TopK


@dataclass(frozen=True)
class SimilarityReport:
    """What a run did.

    x, y: utterances (y as x when a set is compared with itself). rows, rows_done: tile rows of the plan, and how many
    are committed now; resumed_rows: of these by other runs. pairs: compared in this run. seconds: of this run.
    stages: busy seconds; `compare` and `wait` (for frames) alternate, the others overlap with them.
    merged: whether every row is there and the final table is written. candidates: recall of the candidates.
    """

    folder: str
    kernel: str
    x: int
    y: int
    rows: int
    rows_done: int
    resumed_rows: int
    pairs: int
    seconds: float
    stages: dict[str, float]
    merged: bool
    candidates: dict[str, Any] | None


def similarity(
    x: Selection,
    y: Selection | None,
    output: str,
    folder: str | Path,
    *,
    kernel: Kernel | None = None,
    part: tuple[int, int] = (1, 1),
    overwrite: bool = False,
    reporter: Reporter = SILENT,
    **settings: Any,
) -> SimilarityReport:
    """SeqSim of all pairs of x and y, or of x with itself (y None), into a folder; resumes what is there.

    output: encoder output whose frames are compared. kernel: by default the fastest of this machine; all parts of one
    comparison need the same. part: (i, n), this run takes every n-th tile row from the i-th on, i from 1; the run that
    finds all rows done writes the final table. overwrite: a result of other settings in the folder is replaced.

    Settings, all optional:
    top: candidates kept per query, by F1, in `top.parquet`: of every x (direction "forward") and of every y
    ("backward"; a set compared with itself has "forward" only). An utterance is no candidate of itself.
    matrix: of "f1", "precision", "recall", which are also kept whole, (x, y) float32 in `matrix.zarr`.
    candidates: compare only each query's so many nearest by mean-pooled cosine, and measure their recall; 0: all pairs.
    sample: queries per direction that this recall is measured on, by exact search.
    tile_frames: frames per side of a tile, `kernel.block_frames` by default; bounds memory.

    Raises UsageError and InputError before any comparison: for impossible settings; pooled stores, or stores of other
    models or contexts; a folder that holds something else or the result of other settings; frames that are zero, NaN
    or infinite, naming the utterance. Of a single set the last are found in the first tile row.
    """
    kernel = kernel or choose_kernel()
    if not 1 <= part[0] <= part[1]:
        raise UsageError(f"part {part[0]}/{part[1]}: the first number runs from 1 to the second")
    plan = plan_tiles(x, y, output, kernel, **settings)
    with leaving_no_empty_folder(Path(folder)):
        try:
            run = _Run(plan, kernel, folder, reporter, overwrite)
        except OSError as e:
            raise InputError(f"{folder}: cannot begin ({e}); mend it, or choose another folder") from e
        try:
            with run.results.kept_if_used(alone=part == (1, 1)):
                return run.go(part)
        except OSError as e:
            raise InputError(
                f"{folder}: cannot go on ({e}); the tile rows that are committed are safe: mend it and run the same "
                "again"
            ) from e


class _Run:
    """One process' share of a plan."""

    def __init__(self, plan: TilePlan, kernel: Kernel, folder: str | Path, reporter: Reporter, overwrite: bool) -> None:
        self.plan, self.kernel, self._reporter = plan, kernel, reporter
        self.results = Results(folder, plan, self._find if plan.candidates else None, overwrite)
        self.sink = _TileRows(plan, self.results)
        self.stages = Stages()

    def go(self, part: tuple[int, int]) -> SimilarityReport:
        begin, plan, results = time.perf_counter(), self.plan, self.results
        rows, done = plan.tiles.rows, results.done()
        todo = [row for row in rows[part[0] - 1 :: part[1]] if row not in done]
        pairs = self._compute(todo) if todo else 0
        with self.stages("merge"):
            recall = results.merge(None if self.sink.sets is None else self._measure)
        finished = results.done()
        return SimilarityReport(
            folder=results.files.root,
            kernel=plan.kernel,
            x=len(plan.x),
            y=len(plan.other),
            rows=len(rows),
            rows_done=len(finished),
            resumed_rows=len(finished) - self.sink.computed,
            pairs=pairs,
            seconds=time.perf_counter() - begin,
            stages={name: round(value, 3) for name, value in self.stages.seconds.items()},
            merged=results.merged(),
            candidates=recall,
        )

    def _compute(self, todo: Sequence[int]) -> int:
        """Compute and commit tile rows; pairs of utterances compared."""
        plan, tiles = self.plan, self.plan.tiles
        x = plan.x.frames(plan.output)
        if plan.y is not None:  # what only a later row would read: better refused now than after hours
            for row in todo[1:]:
                with self.stages("read"):
                    frames = x.ragged(*tiles.x[row : row + 2])
                with self.stages("pack"):
                    self.kernel.pack(frames)
        y = None if plan.y is None else plan.y.frames(plan.output)
        return compare(
            x, y, self.kernel, self.sink, tiles=tiles, rows=todo, stages=self.stages, reporter=self._reporter
        )

    def _find(self) -> CandidateSets:
        plan = self.plan
        try:
            return nearest_pooled(plan.x, plan.y, plan.output, plan.candidates)
        except InputError as e:
            stores = " and ".join(dict.fromkeys(side.store.files.root for side in (plan.x, plan.other)))
            raise InputError(f"{stores}, output {plan.output}: {e}") from e

    def _measure(self) -> dict[str, Any]:
        plan = self.plan
        assert self.sink.sets is not None
        return measure_recall(plan.x, plan.y, plan.output, self.sink.sets, plan.sample, plan.tiles, self.kernel)


class _TileRows(Sink):
    """Keeps the best of a tile row, and the matrices asked for; commits the row once its tiles are all there."""

    def __init__(self, plan: TilePlan, results: Results) -> None:
        self.plan, self.results = plan, results
        self.sets = results.candidates()
        self.computed = 0

    @contextmanager
    def row(self, row: int) -> Iterator[bool]:
        plan = self.plan
        with self.results.lock(row):
            if self.results.committed(row):  # by another run, since this one began
                yield False
                return
            self._forward = TopK(len(plan.x), plan.top)
            self._backward = self._forward if plan.y is None else TopK(len(plan.y), plan.top)
            yield True
            self.results.commit(row, self._forward, None if plan.y is None else self._backward)
            self.computed += 1

    def wanted(self, xs: slice, ys: slice) -> NDArray[np.bool_] | None:
        both = self._candidates(xs, ys)
        return None if both is None else both[0] | both[1]

    def put(self, xs: slice, ys: slice, precision: FloatMatrix, recall: FloatMatrix) -> None:
        f1 = harmonic(precision, recall)
        wanted, own = self._candidates(xs, ys), self._own(xs, ys)
        allowed = ~np.eye(len(f1), dtype=bool) if own and wanted is None else wanted and wanted[0]
        self._forward.update(xs.start, ys.start, f1, precision, recall, allowed)
        if not own:
            self._backward.update(ys.start, xs.start, f1.T, recall.T, precision.T, wanted and wanted[1].T)
        both = {"f1": (f1, f1), "precision": (precision, recall), "recall": (recall, precision)}
        for name in self.plan.matrix:
            scores, swapped = both[name]
            self.results.put(name, xs, ys, scores)
            if self.plan.y is None and not own:
                self.results.put(name, ys, xs, swapped.T)

    def _own(self, xs: slice, ys: slice) -> bool:
        """Whether a tile compares a block with itself."""
        return self.plan.y is None and xs == ys

    def _candidates(self, xs: slice, ys: slice) -> tuple[NDArray[np.bool_], NDArray[np.bool_]] | None:
        """Pairs of a tile that candidate mode looks at: for x as queries, and for y as queries."""
        if self.sets is None:
            return None
        forward, backward = self.sets.wanted(xs, ys)
        # a tile on the diagonal holds each pair twice
        return forward, np.zeros_like(backward) if self._own(xs, ys) else backward
