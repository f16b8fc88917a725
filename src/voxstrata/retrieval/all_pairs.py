"""All pairs of two sets of utterances, or of one set with itself, at corpus scale.

Pairs are computed in tiles: a block of x against a block of y. A tile row (one block of x, every block of y) is the
unit of work, of recovery and of distribution: it is done when its commit marker exists, and two workers never write
one file. Of one set with itself only tiles on and above the diagonal are computed, since P(X, Y) = R(Y, X).
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from voxstrata.base.errors import InputError, UsageError
from voxstrata.retrieval.candidates import CandidateSets, measure_recall, nearest_pooled
from voxstrata.retrieval.folder import Results
from voxstrata.retrieval.kernels import choose
from voxstrata.retrieval.kernels.base import FloatMatrix, Kernel, Packed, compare_some
from voxstrata.retrieval.read_ahead import read_ahead
from voxstrata.retrieval.selection import Selection
from voxstrata.retrieval.similarities import harmonic
from voxstrata.retrieval.tileplan import TilePlan, make_plan
from voxstrata.retrieval.topk import TopK


@dataclass(frozen=True)
class Progress:
    """How far a run is: pairs of utterances and of frames it has compared, of those it has to do."""

    pairs: int
    pairs_total: int
    frame_pairs: int
    frame_pairs_total: int


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

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form."""
        return asdict(self)


def similarity(
    x: Selection,
    y: Selection | None,
    output: str,
    folder: str | Path,
    *,
    kernel: Kernel | None = None,
    part: tuple[int, int] = (1, 1),
    progress: Callable[[Progress], None] = lambda _: None,
    **settings: Any,
) -> SimilarityReport:
    """SeqSim of all pairs of x and y, or of x with itself (y None), into a folder; resumes what is there.

    Parameters
    ----------
    output
        encoder output whose frames are compared.
    kernel
        by default the fastest of this machine; all parts of one comparison need the same.
    top
        candidates kept per query, by F1, in `top.parquet`: of every x (direction "forward") and of every y
        ("backward"; a set compared with itself has "forward" only). An utterance is no candidate of itself.
    matrix
        of "f1", "precision", "recall": which are also kept whole, (x, y) float32 in `matrix.zarr`.
    candidates
        compare only each query's so many nearest by mean-pooled cosine, and measure their recall. 0: all pairs.
    sample
        queries per direction that this recall is measured on, by exact search.
    tile_frames
        frames per side of a tile; `kernel.block_frames` by default. Bounds memory.
    part
        (i, n): this run takes every n-th tile row from the i-th on, i from 1. The run that finds all rows done writes
        the final table.

    Raises
    ------
    UsageError, InputError
        before any comparison: impossible settings; pooled stores, or stores of other models or contexts; a folder that
        holds something else or the result of other settings; frames that are zero, NaN or infinite, naming the
        utterance. Of a single set the last are found in the first tile row.
    """
    kernel = kernel or choose()
    if not 1 <= part[0] <= part[1]:
        raise UsageError(f"part {part[0]}/{part[1]}: the first number runs from 1 to the second")
    plan = make_plan(x, y, output, kernel, **settings)
    try:
        run = _Run(plan, kernel, folder, progress)
    except OSError as e:
        raise InputError(f"{folder}: cannot begin ({e}); mend it, or choose another folder") from e
    try:
        return run.go(part)
    except OSError as e:
        raise InputError(
            f"{folder}: cannot go on ({e}); the tile rows that are committed are safe: mend it and run the same again"
        ) from e


class _Run:
    """One process' share of a plan."""

    def __init__(
        self, plan: TilePlan, kernel: Kernel, folder: str | Path, progress: Callable[[Progress], None]
    ) -> None:
        self.plan, self.kernel = plan, kernel
        self.seconds: dict[str, float] = defaultdict(float)  # by stage; each stage has one thread
        self.results = Results(folder, plan, self._find if plan.candidates else None)
        self.sets: CandidateSets | None = self.results.candidates()
        self._progress = progress

    def go(self, part: tuple[int, int]) -> SimilarityReport:
        begin = time.perf_counter()
        plan = self.plan
        done = self.results.done()
        todo = [row for row in range(part[0] - 1, plan.rows, part[1]) if row not in done]
        pairs, computed = self._compute(todo) if todo else (0, 0)
        recall = self._merge()
        finished = self.results.done()
        return SimilarityReport(
            folder=self.results.files.root,
            kernel=plan.kernel,
            x=len(plan.x),
            y=len(plan.other),
            rows=plan.rows,
            rows_done=len(finished),
            resumed_rows=len(finished) - computed,
            pairs=pairs,
            seconds=time.perf_counter() - begin,
            stages={name: round(value, 3) for name, value in self.seconds.items()},
            merged=self.results.merged,
            candidates=recall,
        )

    def _find(self) -> CandidateSets:
        plan = self.plan
        with _naming([plan.x, plan.other], plan.output):
            return nearest_pooled(plan.x, plan.y, plan.output, plan.candidates)

    def _load(self, block: tuple[Selection, int, int]) -> Packed:
        side, begin, end = block
        with _naming([side], self.plan.output):
            with self._stage("read"):
                frames = side.ragged(self.plan.output, begin, end)
            with self._stage("pack"):
                return self.kernel.pack(frames)

    def _compute(self, todo: Sequence[int]) -> tuple[int, int]:
        """Compute and commit tile rows; pairs of utterances compared, and rows."""
        plan, x, other = self.plan, self.plan.x, self.plan.other
        if plan.y is not None:  # what only a later row would read: better refused now than after hours
            for row in todo[1:]:
                self._load((x, plan.x_begin[row], plan.x_begin[row + 1]))

        def blocks(rows: Sequence[int]) -> Iterator[tuple[Selection, int, int]]:
            for row in rows:
                yield x, plan.x_begin[row], plan.x_begin[row + 1]
                for column in plan.columns(row):
                    if plan.y is not None or column != row:
                        yield other, plan.y_begin[column], plan.y_begin[column + 1]

        total = sum((self._work(row, plan.columns(row)) for row in todo), np.zeros(2, np.int64))
        past = np.zeros(2, np.int64)
        computed = 0
        packed = read_ahead(self._load, blocks(todo))
        with ThreadPoolExecutor(1, thread_name_prefix="place") as worker:
            for n, row in enumerate(todo, start=1):
                with self.results.lock(row):
                    if self.results.committed(row):  # by another run, since this one began
                        total -= self._work(row, plan.columns(row))
                        packed = read_ahead(self._load, blocks(todo[n:]))
                        continue
                    forward = TopK(len(x), plan.top)
                    backward = forward if plan.y is None else TopK(len(plan.y), plan.top)
                    left = self._next(packed)
                    placing: Future[None] | None = None
                    for column in plan.columns(row):
                        right = left if plan.y is None and column == row else self._next(packed)
                        with self._stage("compare"):
                            precision, recall = self._compare(row, column, left, right)
                        del right  # the block after next is about to be read
                        if placing:
                            placing.result()
                        placing = worker.submit(self._place, row, column, forward, backward, precision, recall)
                        past += self._work(row, range(column, column + 1))
                        self._progress(Progress(int(past[0]), int(total[0]), int(past[1]), int(total[1])))
                    assert placing is not None
                    placing.result()
                    del left
                    self.results.commit(row, forward, None if plan.y is None else backward)
                    computed += 1
        return int(past[0]), computed

    def _work(self, row: int, columns: range) -> NDArray[np.int64]:
        """Pairs of utterances and of frames that neighbouring tiles compare, int64 (2,)."""
        if self.sets is not None:
            return sum((self._work_on_candidates(row, column) for column in columns), np.zeros(2, np.int64))
        x_begin, y_begin = self.plan.x_begin, self.plan.y_begin
        x = self.plan.x.lengths[x_begin[row] : x_begin[row + 1]]
        y = self.plan.other.lengths[y_begin[columns.start] : y_begin[columns.stop]]
        return np.array([len(x) * len(y), x.sum() * y.sum()])

    def _work_on_candidates(self, row: int, column: int) -> NDArray[np.int64]:
        xs, ys = self.plan.spans(row, column)
        wanted = self._wanted(row, column)
        assert wanted is not None
        either = wanted[0] | wanted[1]
        return np.array([either.sum(), self.plan.x.lengths[xs] @ either @ self.plan.other.lengths[ys]])

    def _wanted(self, row: int, column: int) -> tuple[NDArray[np.bool_], NDArray[np.bool_]] | None:
        """Pairs of a tile that candidate mode looks at: for x as queries, and for y as queries."""
        if self.sets is None:
            return None
        forward, backward = self.sets.wanted(*self.plan.spans(row, column))
        # a tile on the diagonal holds each pair twice
        return forward, np.zeros_like(backward) if self.plan.y is None and row == column else backward

    def _compare(self, row: int, column: int, left: Packed, right: Packed) -> tuple[FloatMatrix, FloatMatrix]:
        wanted = self._wanted(row, column)
        if wanted is None:
            return self.kernel.compare(left, right)
        return compare_some(self.kernel, left, right, wanted[0] | wanted[1])

    def _place(
        self, row: int, column: int, forward: TopK, backward: TopK, precision: FloatMatrix, recall: FloatMatrix
    ) -> None:
        """Put a tile's scores where they belong."""
        with self._stage("place"):
            xs, ys = self.plan.spans(row, column)
            f1 = harmonic(precision, recall)
            wanted = self._wanted(row, column)
            own = self.plan.y is None and row == column
            allowed = ~np.eye(len(f1), dtype=bool) if own and wanted is None else wanted and wanted[0]
            forward.update(xs.start, ys.start, f1, precision, recall, allowed)
            if not own:
                backward.update(ys.start, xs.start, f1.T, recall.T, precision.T, wanted and wanted[1].T)
            for name in self.plan.matrix:
                scores = {"f1": f1, "precision": precision, "recall": recall}
                self.results.put(name, xs, ys, scores[name])
                if self.plan.y is None and not own:
                    swapped = {"f1": f1, "precision": recall, "recall": precision}
                    self.results.put(name, ys, xs, swapped[name].T)

    def _merge(self) -> dict[str, Any] | None:
        """The final table, when every row is there; the recall of candidates."""
        plan, sets = self.plan, self.sets

        def recall() -> dict[str, Any]:
            assert sets is not None
            begins = (plan.x_begin, plan.y_begin)
            return measure_recall(plan.x, plan.y, sets, plan.sample, begins, self._load, self.kernel)

        with self._stage("merge"):
            return self.results.merge(recall if sets is not None else None)

    def _next(self, packed: Iterator[Packed]) -> Packed:
        with self._stage("wait"):
            return next(packed)

    def _stage(self, name: str) -> _Stage:
        return _Stage(self.seconds, name)


@contextmanager
def _naming(sides: Sequence[Selection], output: str) -> Iterator[None]:
    """Say where the utterance lies that an error names."""
    try:
        yield
    except InputError as e:
        stores = " and ".join(dict.fromkeys(side.store.files.root for side in sides))
        raise InputError(f"{stores}, output {output}: {e}") from e


class _Stage:
    """Adds the time spent inside to a stage."""

    def __init__(self, seconds: dict[str, float], name: str) -> None:
        self._seconds, self._name = seconds, name

    def __enter__(self) -> None:
        self._begin = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        self._seconds[self._name] += time.perf_counter() - self._begin
