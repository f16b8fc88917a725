"""All pairs of two sets of utterances, or of one set with itself, at corpus scale.

A tile row (see `compare`) is the unit of work, of recovery and of distribution: it is done when its commit marker
exists, and claims keep two workers from one row. Prepare, compute rows, merge: any process may do each.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from voxstrata.base.errors import InputError
from voxstrata.base.folders import leaving_no_empty_folder
from voxstrata.base.plain import counted, shown_as
from voxstrata.base.progress import SILENT, Reporter
from voxstrata.retrieval.candidates import CandidateSets, measure_recall, nearest_pooled
from voxstrata.retrieval.compare import Sink, Stages, compare
from voxstrata.retrieval.folder import Results
from voxstrata.retrieval.kernels import choose_kernel
from voxstrata.retrieval.kernels.base import FloatMatrix, Kernel
from voxstrata.retrieval.selection import Selection, selection_of
from voxstrata.retrieval.similarities import harmonic
from voxstrata.retrieval.tileplan import TilePlan, plan_tiles
from voxstrata.retrieval.topk import TopK
from voxstrata.store.part import Part
from voxstrata.store.several import AnyStore

LOOK_AGAIN = 1.0  # seconds until a run that waits for others looks again for what is left


@dataclass(frozen=True)
class SimilarityReport:
    """What a run did.

    out: the folder. x, y: utterances (y as x when a set is compared with itself).
    rows, rows_done: tile rows of the plan, and how many are committed now; resumed_rows: of these by other runs.
    pairs: compared in this run. seconds: of this run.
    stages: busy seconds; `compare` and `wait` (for frames) alternate, the others overlap with them.
    merged: whether every row is there and the final table is written. candidates: recall of the candidates.
    """

    out: str
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

    def __repr__(self) -> str:
        return shown_as(self, f"{self.x} × {counted(self.y, 'utterance')}", self.out)


def similarity(
    x: Selection | AnyStore,
    y: Selection | AnyStore | None,
    output: str | int,
    out: str | Path,
    *,
    kernel: Kernel | None = None,
    part: Part | None = None,
    overwrite: bool = False,
    reporter: Reporter = SILENT,
    **settings: Any,
) -> SimilarityReport:
    """SeqSim of all pairs of x and y, or of x with itself (y None), into the folder `out`; resumes what is there.

    x, y: parts of stores (`select`), or stores, by path or opened, which are taken whole.
    output: encoder output whose frames are compared. kernel: by default the fastest of this machine; all runs that
    share a comparison need the same. overwrite: a result of other settings in the folder is replaced.
    part: of several runs at once, of which each takes its own tile rows first, then those that the others have not
    begun, and ends. Without it the run waits for rows that others compute, and takes them over should these die. The
    run that finds all rows done writes the final table.

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
    how: dict[str, Any] = {"kernel": kernel, "part": part, "overwrite": overwrite, "reporter": reporter, **settings}
    x, y = selection_of(x), None if y is None else selection_of(y)
    name = x.store.output(output)
    return compare_outputs(x, y, {name: out}, **how)[name]


def compare_outputs(
    x: Selection,
    y: Selection | None,
    folders: Mapping[str, str | Path],
    *,
    kernel: Kernel | None = None,
    part: Part | None = None,
    overwrite: bool = False,
    reporter: Reporter = SILENT,
    **settings: Any,
) -> dict[str, SimilarityReport]:
    """`similarity` of several outputs, each into a folder of its own; reports by output.

    No run waits for the rows of others before it has looked for work in every folder.
    """
    kernel, runs = kernel or choose_kernel(), {}
    with ExitStack() as stack:
        for output, folder in folders.items():
            stack.enter_context(leaving_no_empty_folder(Path(folder)))
            reporter.step(f"comparing {output}")
            runs[output] = prepare_similarity(x, y, output, folder, kernel=kernel, overwrite=overwrite, **settings)
            runs[output].work(part, reporter)
        while left := [run for run in runs.values() if not run.merged()]:
            if any(run.work(part, reporter) for run in left):
                continue
            if part is not None:
                break  # what others hold is theirs to finish
            rows = sum(len(run.pending()) for run in left)
            reporter.step(f"waiting for {counted(rows, 'tile row')} that other runs compute")
            time.sleep(LOOK_AGAIN)
    return {output: run.report() for output, run in runs.items()}


def prepare_similarity(
    x: Selection,
    y: Selection | None,
    output: str | int,
    folder: str | Path,
    *,
    kernel: Kernel | None = None,
    overwrite: bool = False,
    **settings: Any,
) -> Comparison:
    """Make the folder of a comparison, or open the one that is there; any number of processes may.

    In candidate mode the first searches the candidates meanwhile. Settings and errors are those of `similarity`.
    """
    kernel = kernel or choose_kernel()
    plan = plan_tiles(x, y, output, kernel, **settings)
    try:
        results = Results(folder, plan, partial(_find_candidates, plan) if plan.candidates else None, overwrite)
    except OSError as e:
        raise InputError(f"{folder}: cannot begin ({e}); mend it, or choose another folder") from e
    return Comparison(plan, kernel, results)


class Comparison:
    """One process' share of a comparison that is prepared: tile rows to compute, and the final table when all are done.

    Rows may be computed in any order and by any number of processes; all give the same bytes.
    """

    def __init__(self, plan: TilePlan, kernel: Kernel, results: Results) -> None:
        self.plan, self.kernel, self._results = plan, kernel, results
        self._stages, self._seconds, self._pairs, self._computed = Stages(), 0.0, 0, 0
        self._checked = False

    def pending(self) -> list[int]:
        """Tile rows that are not committed, in order."""
        return self._results.pending()

    def merged(self) -> bool:
        """Whether the final table is there."""
        return self._results.merged()

    def compute(self, rows: Sequence[int], reporter: Reporter = SILENT, before: Iterable[int] = ()) -> int:
        """Compute and commit these tile rows but those that others hold or have committed; how many it did.

        before: tile rows that are committed already. The reporter is told how much of them and of `rows` is done.
        Raises InputError where the folder cannot be written, or was made anew for another plan.
        """
        plan, sink, begin = self.plan, _TileRows(self.plan, self._results), time.perf_counter()
        with self._going_on():
            self._pairs += compare(
                plan.x.frames(plan.output),
                None if plan.y is None else plan.y.frames(plan.output),
                self.kernel,
                sink,
                tiles=plan.tiles,
                rows=rows,
                before=before,
                stages=self._stages,
                reporter=reporter,
            )
        self._computed += sink.computed
        self._seconds += time.perf_counter() - begin
        return sink.computed

    def merge(self) -> list[int]:
        """Write the final table, once no row is pending; nothing happens before, or when it is there.

        A pure function of what the rows left. Returns the rows of these that are damaged, and so pending again.
        """
        begin = time.perf_counter()
        with self._going_on(), self._stages("merge"):
            damaged = self._results.merge(self._measure if self.plan.candidates else None)
        self._seconds += time.perf_counter() - begin
        return damaged

    def work(self, part: Part | None = None, reporter: Reporter = SILENT) -> bool:
        """Compute what this run gets to compute, merge; whether that changed anything. An error leaves no folder in
        which nothing is done, if the run is alone."""
        alone, part = part is None, part or Part()
        with self._results.kept_if_used(alone):
            pending = set(self.pending())
            todo = [row for row in part.order(self.plan.tiles.rows) if row in pending]
            if not self._checked:
                self._refuse_bad_rows(todo[1:])
                self._checked = True
            done = (row for row in self.plan.tiles.rows if row not in pending)
            changed = self.compute(todo, reporter, done) if todo else 0
            return any([changed, self.merge()])

    def report(self) -> SimilarityReport:
        """What this process did until now."""
        plan, rows = self.plan, len(self.plan.tiles.rows)
        done = rows - len(self.pending())
        return SimilarityReport(
            out=self._results.files.root,
            kernel=plan.kernel,
            x=len(plan.x),
            y=len(plan.other),
            rows=rows,
            rows_done=done,
            resumed_rows=done - self._computed,
            pairs=self._pairs,
            seconds=self._seconds,
            stages={name: round(value, 3) for name, value in self._stages.seconds.items()},
            merged=self.merged(),
            candidates=self._results.misses(),
        )

    def so_far(self) -> tuple[int, int, dict[str, float]]:
        """What was computed here until now: tile rows, pairs, and busy seconds by stage."""
        return self._computed, self._pairs, dict(self._stages.seconds)

    def _refuse_bad_rows(self, rows: Sequence[int]) -> None:
        """What only a later row of x would read: better refused now than after hours."""
        if self.plan.y is not None:
            frames, bounds = self.plan.x.frames(self.plan.output), self.plan.tiles.x
            for row in rows:
                with self._stages("read"):
                    block = frames.ragged(*bounds[row : row + 2])
                with self._stages("pack"):
                    self.kernel.pack(block)

    def _measure(self) -> dict[str, Any]:
        plan, sets = self.plan, self._results.candidates()
        assert sets is not None
        return measure_recall(plan.x, plan.y, plan.output, sets, plan.sample, plan.tiles, self.kernel)

    @contextmanager
    def _going_on(self) -> Iterator[None]:
        try:
            yield
        except OSError as e:
            raise InputError(
                f"{self._results.files.root}: cannot go on ({e}); the tile rows that are committed are safe: mend it "
                "and run the same again"
            ) from e


def _find_candidates(plan: TilePlan) -> CandidateSets:
    try:
        return nearest_pooled(plan.x, plan.y, plan.output, plan.candidates)
    except InputError as e:
        stores = " and ".join(dict.fromkeys(side.store.files.root for side in (plan.x, plan.other)))
        raise InputError(f"{stores}, output {plan.output}: {e}") from e


class _TileRows(Sink):
    """Keeps the best of a tile row, and the matrices asked for; commits the row once its tiles are all there."""

    def __init__(self, plan: TilePlan, results: Results) -> None:
        self.plan, self.results = plan, results
        self.sets = results.candidates()
        self.computed = 0

    @contextmanager
    def row(self, row: int) -> Iterator[bool]:
        plan = self.plan
        with self.results.claim(row) as mine:
            if not mine:
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
