"""SeqSim between utterances, on their unpooled frames, and as its baseline the cosine of mean-pooled states.

Sources: BERTScore without IDF (Zhang et al. 2020, arXiv 1904.09675), applied to the frames of a speech
encoder as in Ma et al. 2024 (arXiv 2407.01130). The formulas follow public descriptions of both; the text of
the second paper was not available to us.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from voxstrata.errors import InputError, UsageError

FloatArray = npt.NDArray[np.floating]
BLOCK_ROWS = 2048  # frames per side of a block of S: 16 MiB of float32, large enough for full matmul speed


@dataclass(frozen=True, eq=False)
class Ragged:
    """Utterances of unequal length, one after the other, without padding.

    rows: (frames, d) float16 or float32.
    offsets: (n + 1,) int64; utterance i is `rows[offsets[i]:offsets[i + 1]]`.
    names: what error messages call each utterance; its index when empty.
    Raises InputError on another dtype or shape, on offsets that do not cover the rows, on an empty utterance.
    """

    rows: FloatArray
    offsets: npt.NDArray[np.int64]
    names: Sequence[str] = ()

    def __post_init__(self) -> None:
        _check_matrix(self.rows, "rows")
        if self.offsets.ndim != 1 or self.offsets.dtype != np.int64:
            raise InputError(
                f"offsets must be a flat int64 array, not {self.offsets.dtype} of shape {self.offsets.shape}"
            )
        if len(self.offsets) < 2:
            raise InputError("no utterances: offsets must hold at least a start and an end")
        if self.offsets[0] != 0 or self.offsets[-1] != len(self.rows):
            raise InputError(
                f"offsets must run from 0 to the {len(self.rows)} rows, "
                f"not from {self.offsets[0]} to {self.offsets[-1]}"
            )
        _check_names(self.names, len(self))
        wrong = np.flatnonzero(self.lengths <= 0)
        if wrong.size:
            i = int(wrong[0])
            raise InputError(
                f"{_name(self.names, i, 'utterance')} has {self.lengths[i]} frames; leave out utterances without frames"
            )

    @classmethod
    def from_list(cls, utterances: Sequence[FloatArray], names: Sequence[str] = ()) -> Ragged:
        """Join arrays of shape (frames, d), float16 or float32, copying them."""
        if not utterances:
            raise InputError("no utterances: the list is empty")
        _check_names(names, len(utterances))
        for i, utterance in enumerate(utterances):
            _check_matrix(utterance, _name(names, i, "utterance"))
            if utterance.shape[1] != utterances[0].shape[1]:
                raise InputError(
                    f"{_name(names, i, 'utterance')} has d = {utterance.shape[1]}, "
                    f"the first d = {utterances[0].shape[1]}; take all from one output of one model"
                )
        offsets = np.zeros(len(utterances) + 1, np.int64)
        np.cumsum([len(utterance) for utterance in utterances], out=offsets[1:])
        return cls(np.concatenate(utterances), offsets, names)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> npt.NDArray[np.int64]:
        """Frames of each utterance, (n,) int64."""
        return np.diff(self.offsets)

    def unit(self) -> Ragged:
        """The same utterances with rows scaled to unit length, float32.

        Raises InputError naming the utterance for a row that has no direction: zero, NaN or infinite.
        """
        rows, bad = _unit_rows(self.rows)
        if bad is not None:
            i = int(np.searchsorted(self.offsets, bad, side="right")) - 1
            frame = bad - self.offsets[i]
            raise InputError(
                f"{_name(self.names, i, 'utterance')}: frame {frame} is zero, NaN or infinite "
                "and has no cosine; extract the utterance again or leave it out"
            )
        return replace(self, rows=rows)


@dataclass(frozen=True, eq=False)
class SeqSim:
    """Similarities of N utterances to M others, each (N, M) float32 in [-1, 1] up to rounding."""

    f1: npt.NDArray[np.float32]
    precision: npt.NDArray[np.float32]
    recall: npt.NDArray[np.float32]


def seqsim(x: Ragged, y: Ragged, block_rows: int = BLOCK_ROWS) -> SeqSim:
    """SeqSim of every utterance of `x` (N) to every utterance of `y` (M); rows need not be of unit length.

    For one pair, S holds the cosines of all frames of x to all frames of y. Precision is the mean over the
    frames of x of the largest S in the row, recall the mean over the frames of y of the largest S in the
    column, F1 their `harmonic` mean. Swapping x and y swaps precision and recall, so one call serves both
    directions.

    Memory: at most block_rows × block_rows float32 of S exist at a time (16 MiB by default), beside float32
    copies of both inputs. An utterance longer than block_rows is taken in pieces; then its running maxima,
    one float32 per frame and utterance of the other side's block, exist too.
    """
    if x.rows.shape[1] != y.rows.shape[1]:
        raise InputError(
            f"utterances of d = {x.rows.shape[1]} and of d = {y.rows.shape[1]} cannot be compared; "
            "take both from one output of one model"
        )
    if block_rows < 1:
        raise UsageError(f"block_rows is {block_rows}; it must be at least 1")
    x, y = x.unit(), y.unit()
    precision = np.empty((len(x), len(y)))
    recall = np.empty((len(x), len(y)))
    buffer = np.empty(min(block_rows, len(x.rows)) * min(block_rows, len(y.rows)), np.float32)
    for i, j in _groups(x.lengths, block_rows):
        for k, m in _groups(y.lengths, block_rows):
            row_max, column_max = _maxima(x, y, slice(i, j), slice(k, m), block_rows, buffer)
            x_starts, y_starts = _starts(x.offsets, i, j), _starts(y.offsets, k, m)
            precision[i:j, k:m] = np.add.reduceat(row_max, x_starts, axis=0, dtype=np.float64)
            recall[i:j, k:m] = np.add.reduceat(column_max, y_starts, axis=1, dtype=np.float64)
    precision /= x.lengths[:, None]
    recall /= y.lengths
    return SeqSim(
        f1=harmonic(precision, recall).astype(np.float32),
        precision=precision.astype(np.float32),
        recall=recall.astype(np.float32),
    )


def harmonic(precision: npt.NDArray[np.float64], recall: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """F1 = 2PR / (P + R) where P and R are both positive, min(P, R) elsewhere; same shape as the inputs.

    Cosines can be negative, where the formula is no mean: it has a pole at P = -R (P = 0.5, R = -0.4 gives
    -4), and of two negative values it follows the better, not the worse. The minimum is the limit of the
    formula as either value falls to 0, so F1 stays continuous, never falls when P or R rises, and lies
    between P and R.
    """
    f1 = np.minimum(precision, recall)
    positive = f1 > 0
    p, r = precision[positive], recall[positive]
    f1[positive] = 2 * p * r / (p + r)
    return f1


def mean_pool(utterances: Ragged) -> npt.NDArray[np.float32]:
    """Mean over the frames of each utterance, (n, d) float32, accumulated in float64."""
    pooled = np.empty((len(utterances), utterances.rows.shape[1]), np.float32)
    for i, (start, end) in enumerate(pairwise(utterances.offsets)):
        pooled[i] = utterances.rows[start:end].mean(axis=0, dtype=np.float64)
    return pooled


def pooled_cosine(
    x: FloatArray, y: FloatArray, x_names: Sequence[str] = (), y_names: Sequence[str] = ()
) -> npt.NDArray[np.float32]:
    """Cosines of the rows of x (N, d) to the rows of y (M, d), (N, M) float32.

    The names are what error messages call the rows.
    Raises InputError for a row that is zero, NaN or infinite.
    """
    for matrix, label, names in ((x, "x", x_names), (y, "y", y_names)):
        _check_matrix(matrix, label)
        _check_names(names, len(matrix))
    if x.shape[1] != y.shape[1]:
        raise InputError(
            f"rows of d = {x.shape[1]} and of d = {y.shape[1]} cannot be compared; "
            "take both from one output of one model"
        )
    units = []
    for matrix, label, names in ((x, "row of x", x_names), (y, "row of y", y_names)):
        rows, bad = _unit_rows(matrix)
        if bad is not None:
            raise InputError(
                f"{_name(names, bad, label)}: the pooled state is zero, NaN or infinite and has no cosine; "
                "extract the utterance again or leave it out"
            )
        units.append(rows)
    product: npt.NDArray[np.float32] = units[0] @ units[1].T
    return product


def _maxima(
    x: Ragged, y: Ragged, xs: slice, ys: slice, block_rows: int, buffer: npt.NDArray[np.float32]
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Largest cosine of each frame of x[xs] within each utterance of y[ys], and the other way round.

    (frames of xs, utterances of ys) and (utterances of xs, frames of ys), float32. Either side is a group of
    `_groups`: whole utterances that fit one block, or a single longer one, cut into several blocks.
    """
    x_first, x_last = int(x.offsets[xs.start]), int(x.offsets[xs.stop])
    y_first, y_last = int(y.offsets[ys.start]), int(y.offsets[ys.stop])
    # Maxima start at -inf: a start of 0 would beat every negative cosine.
    row_max = np.full((x_last - x_first, ys.stop - ys.start), -np.inf, np.float32)
    column_max = np.full((xs.stop - xs.start, y_last - y_first), -np.inf, np.float32)
    x_bounds = [*_starts(x.offsets, xs.start, xs.stop), block_rows]
    y_starts = _starts(y.offsets, ys.start, ys.stop)
    for a in range(x_first, x_last, block_rows):
        xb = x.rows[a : min(a + block_rows, x_last)]
        rows = row_max[a - x_first : a - x_first + len(xb)]
        for b in range(y_first, y_last, block_rows):
            yb = y.rows[b : min(b + block_rows, y_last)]
            columns = column_max[:, b - y_first : b - y_first + len(yb)]
            s = np.matmul(xb, yb.T, out=buffer[: len(xb) * len(yb)].reshape(len(xb), len(yb)))
            np.maximum(rows, np.maximum.reduceat(s, y_starts, axis=1), out=rows)
            # Not reduceat: along axis 0 it walks down columns, which is far slower.
            for i, (start, end) in enumerate(pairwise(x_bounds)):
                np.maximum(columns[i], s[start:end].max(axis=0), out=columns[i])
    return row_max, column_max


def _groups(lengths: npt.NDArray[np.int64], block_rows: int) -> Iterator[tuple[int, int]]:
    """Runs [i, j) of utterances with at most block_rows frames together; a longer utterance stands alone."""
    first, frames = 0, 0
    for i, length in enumerate(lengths):
        if i > first and frames + length > block_rows:
            yield first, i
            first, frames = i, 0
        frames += length
    yield first, len(lengths)


def _starts(offsets: npt.NDArray[np.int64], i: int, j: int) -> npt.NDArray[np.int64]:
    """First rows of utterances i to j, counted from the first row of utterance i."""
    starts: npt.NDArray[np.int64] = offsets[i:j] - offsets[i]
    return starts


def _unit_rows(rows: FloatArray) -> tuple[npt.NDArray[np.float32], int | None]:
    """Rows scaled to unit length (float32), and the first row for which that is impossible."""
    # In float64 no square of a float32 overflows or vanishes: every usable row has a finite, positive length.
    squares = np.einsum("ij,ij->i", rows, rows, dtype=np.float64)
    bad = np.flatnonzero(~np.isfinite(squares) | (squares == 0))
    if bad.size:
        return np.empty((0, rows.shape[1]), np.float32), int(bad[0])
    unit = np.empty(rows.shape, np.float32)
    np.divide(rows, np.sqrt(squares)[:, None], out=unit, casting="same_kind")
    return unit, None


def _check_matrix(matrix: FloatArray, label: str) -> None:
    if matrix.ndim != 2 or matrix.dtype not in (np.float16, np.float32):
        raise InputError(
            f"{label}: expected a float16 or float32 array of shape (frames, d), "
            f"got {matrix.dtype} of shape {matrix.shape}"
        )


def _check_names(names: Sequence[str], count: int) -> None:
    if names and len(names) != count:
        raise InputError(f"{len(names)} names for {count} utterances; give one name each, or none")


def _name(names: Sequence[str], i: int, label: str) -> str:
    return f"{label} {names[i]!r}" if names else f"{label} {i}"
