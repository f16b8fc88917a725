"""The one loop that scores pairs of utterances: tile by tile, blocks read ahead, scores handed to a sink.

A tile is a block of x against a block of y; a tile row is one block of x against every block of y. Of a set compared
with itself only tiles on and above the diagonal are computed, since P(X, Y) = R(Y, X).
"""

import time
from abc import ABC, abstractmethod
from collections import defaultdict, deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Protocol, Self

import numpy as np
from numpy.typing import NDArray

from voxstrata.base.progress import SILENT, Progress, Reporter
from voxstrata.retrieval.kernels.base import FloatMatrix, Kernel, Packed, compare_some, runs
from voxstrata.retrieval.ragged import Ragged
from voxstrata.retrieval.similarities import SeqSim, harmonic

BLOCK_UTTERANCES = 2048  # of one block: scores of a tile stay below 100 MiB, however short utterances are


class Utterances(Protocol):
    """One side of a comparison: frames that are read block by block, so that they need not fit in memory."""

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Frames of each utterance, (n,)."""

    def ragged(self, begin: int, end: int) -> Ragged:
        """Frames of the utterances at positions begin … end - 1."""


@dataclass(frozen=True)
class Tiles:
    """Bounds of the blocks of both sides, from 0 to n; itself: whether both are one set."""

    x: Sequence[int]
    y: Sequence[int]
    itself: bool = False

    @classmethod
    def of(cls, x: Utterances, y: Utterances | None, frames: int) -> Self:
        """Blocks of at most `frames` frames; a longer utterance is a block by itself."""
        bounds = [[0, *(end for _, end in runs(s.lengths, frames, BLOCK_UTTERANCES))] for s in (x, y) if s is not None]
        return cls(bounds[0], bounds[-1], y is None)

    @property
    def rows(self) -> range:
        """The tile rows."""
        return range(len(self.x) - 1)

    def columns(self, row: int) -> range:
        """Tiles of a row that are computed."""
        return range(row if self.itself else 0, len(self.y) - 1)

    def spans(self, row: int, column: int) -> tuple[slice, slice]:
        """Positions of a tile's utterances on both sides."""
        return slice(*self.x[row : row + 2]), slice(*self.y[column : column + 2])


class Sink(ABC):
    """Where scores go. A subclass says what becomes of a tile, and which tiles and pairs it wants at all."""

    def row(self, row: int) -> AbstractContextManager[bool]:
        """Entered around a tile row, on the thread that computes; False skips the row."""
        return nullcontext(True)

    def wanted(self, xs: slice, ys: slice) -> NDArray[np.bool_] | None:
        """The pairs (xs, ys) of a tile that are needed; None for all. The scores of others may be NaN."""
        return None

    @abstractmethod
    def put(self, xs: slice, ys: slice, precision: FloatMatrix, recall: FloatMatrix) -> None:
        """Take the scores (xs, ys) of a tile, on a thread of its own, one tile after the other.

        All tiles of a row have been taken when the context of `row` is left.
        """


class Matrices(Sink):
    """Keeps whole matrices in memory: 8 bytes for each pair, whatever the frames take."""

    def __init__(self, x: int, y: int) -> None:
        self.precision, self.recall = np.empty((2, x, y), np.float32)

    def put(self, xs: slice, ys: slice, precision: FloatMatrix, recall: FloatMatrix) -> None:
        self.precision[xs, ys], self.recall[xs, ys] = precision, recall

    def seqsim(self) -> SeqSim:
        """The similarities, each (x, y)."""
        return SeqSim(harmonic(self.precision, self.recall), self.precision, self.recall)


class Stages:
    """Busy seconds by stage; each stage has one thread."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Count the time spent inside."""
        begin = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] += time.perf_counter() - begin


def compare(
    x: Utterances,
    y: Utterances | None,
    kernel: Kernel,
    sink: Sink,
    *,
    tiles: Tiles | None = None,
    rows: Iterable[int] | None = None,
    before: Iterable[int] = (),
    stages: Stages | None = None,
    reporter: Reporter = SILENT,
) -> int:
    """Score every utterance of x against every one of y, or x against itself (y None); each tile goes to `sink` once.

    tiles: by default of `kernel.block_frames` frames a side. Three blocks are in memory at a time: one of x, two of y.
    rows: the tile rows to compute; by default all. before: those that are computed already; they count as done where it
    is told how far all is. stages: where busy seconds are counted: `read`, `pack`, `wait` (for frames), `compare`,
    `place`.

    Returns how many pairs of utterances were compared.
    Raises what reading and `Kernel.pack` raise: InputError for a frame that is zero, NaN or infinite.
    """
    tiles = tiles or Tiles.of(x, y, kernel.block_frames)
    todo = list(tiles.rows if rows is None else rows)
    stage = stages or Stages()
    other = x if y is None else y

    def place(xs: slice, ys: slice, precision: FloatMatrix, recall: FloatMatrix) -> None:
        with stage("place"):
            sink.put(xs, ys, precision, recall)

    def tell() -> None:
        (pairs, frames), (pairs_wanted, frames_wanted) = (there + done).tolist(), total.tolist()
        how = (pairs, pairs_wanted, "pairs", frames, frames_wanted, int(done[0]), "pairs/s")
        reporter.progress(Progress("comparing", *how))

    work = _Work(x, other, tiles, sink)
    there, own = (sum(map(work.of_row, some), np.zeros(2, np.int64)) for some in (before, todo))
    total, done = there + own, np.zeros(2, np.int64)
    tell()
    with _Blocks(x, other, kernel, tiles, stage) as blocks, ThreadPoolExecutor(1, thread_name_prefix="place") as worker:
        blocks.start(todo)
        for n, row in enumerate(todo, start=1):
            with sink.row(row) as needed:
                if not needed:  # others are at it, or were
                    there += work.of_row(row)
                    tell()
                    blocks.start(todo[n:])
                    continue
                left = blocks.take()
                placing: Future[None] | None = None
                for column in tiles.columns(row):
                    right = left if tiles.itself and column == row else blocks.take()
                    xs, ys = tiles.spans(row, column)
                    with stage("compare"):
                        precision, recall = compare_some(kernel, left, right, sink.wanted(xs, ys))
                    del right  # the block after next is about to be read
                    if placing:
                        placing.result()
                    placing = worker.submit(place, xs, ys, precision, recall)
                    done += work.of_tile(row, column)
                    tell()
                assert placing is not None
                placing.result()
                del left  # before the next of its size is waited for
    return int(done[0])


class _Blocks:
    """The blocks of frames that tiles need, in their order, packed; one is loaded ahead. Used as a context."""

    def __init__(self, x: Utterances, y: Utterances, kernel: Kernel, tiles: Tiles, stage: Stages) -> None:
        self._x, self._y, self._kernel, self._tiles, self._stage = x, y, kernel, tiles, stage
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="read")
        self._ahead: deque[Future[Packed]] = deque()

    def start(self, rows: Sequence[int]) -> None:
        """Begin to load what these tile rows need, and nothing else any more."""
        for block in self._ahead:
            block.cancel()
        self._ahead.clear()
        self._left = self._needed(rows)

    def take(self) -> Packed:
        """The next block; while the caller works on it, the one after it is loaded."""
        with self._stage("wait"):
            self._load_ahead()
            return self._ahead.popleft().result()  # bound to no name: the caller alone decides how long it lives

    def _load_ahead(self) -> None:
        while len(self._ahead) < 2 and (block := next(self._left, None)):
            self._ahead.append(self._worker.submit(self._load, block))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        # here, and not wherever the garbage collector would end the thread
        self._worker.shutdown(wait=True, cancel_futures=True)

    def _needed(self, rows: Sequence[int]) -> Iterator[tuple[Utterances, int, int]]:
        tiles = self._tiles
        for row in rows:
            yield self._x, tiles.x[row], tiles.x[row + 1]
            for column in tiles.columns(row):
                if not (tiles.itself and column == row):
                    yield self._y, tiles.y[column], tiles.y[column + 1]

    def _load(self, block: tuple[Utterances, int, int]) -> Packed:
        side, begin, end = block
        with self._stage("read"):
            frames = side.ragged(begin, end)
        with self._stage("pack"):
            return self._kernel.pack(frames)


class _Work:
    """Pairs of utterances, and of frames, that tiles compare: int64 (2,)."""

    def __init__(self, x: Utterances, y: Utterances, tiles: Tiles, sink: Sink) -> None:
        self._x, self._y, self._tiles, self._sink = x.lengths, y.lengths, tiles, sink

    def of_tile(self, row: int, column: int) -> NDArray[np.int64]:
        xs, ys = self._tiles.spans(row, column)
        wanted = self._sink.wanted(xs, ys)
        x, y = self._x[xs], self._y[ys]
        if wanted is None:
            return np.array([len(x) * len(y), x.sum() * y.sum()])
        return np.array([wanted.sum(), x @ wanted @ y])

    def of_row(self, row: int) -> NDArray[np.int64]:
        return sum((self.of_tile(row, column) for column in self._tiles.columns(row)), np.zeros(2, np.int64))
