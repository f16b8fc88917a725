"""Utterances of unequal length, as flat rows and offsets: what every similarity takes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
import numpy.typing as npt

from voxstrata.base.errors import InputError
from voxstrata.base.plain import counted, shown_as

FloatArray = npt.NDArray[np.floating]

_DTYPES = ("float16", "bfloat16", "float32")


@dataclass(frozen=True, eq=False)
class Ragged:
    """Utterances of unequal length, one after the other, without padding.

    rows: (frames, d) float16, bfloat16 (of ml_dtypes, as jax has it) or float32.
    offsets: (n + 1,) int64; utterance i is `rows[offsets[i]:offsets[i + 1]]`.
    names: what error messages call each utterance; its index when empty. where: what they say before that.
    Raises InputError on another dtype or shape, on offsets that do not cover the rows, on an empty utterance.
    """

    rows: FloatArray
    offsets: npt.NDArray[np.int64]
    names: Sequence[str] = ()
    where: str = ""

    def __repr__(self) -> str:
        frames, d = self.rows.shape
        return shown_as(self, f"of {counted(len(self.offsets) - 1, 'utterance')}: {counted(frames, 'frame')}, d={d}")

    def __post_init__(self) -> None:
        check_matrix(self.rows, "rows")
        if self.offsets.ndim != 1 or self.offsets.dtype != np.int64:
            shape = self.offsets.shape
            raise InputError(f"offsets must be a flat int64 array, not {self.offsets.dtype} of shape {shape}")
        if len(self.offsets) < 2:
            raise InputError("no utterances: offsets must hold at least a start and an end")
        if self.offsets[0] != 0 or self.offsets[-1] != len(self.rows):
            ends = f"{self.offsets[0]} to {self.offsets[-1]}"
            raise InputError(f"offsets must run from 0 to {len(self.rows)}, the number of rows, not from {ends}")
        check_names(self.names, len(self))
        for i in np.flatnonzero(self.lengths <= 0).tolist():
            name = name_of(self.names, i, "utterance")
            raise InputError(f"{name} has {self.lengths[i]} frames; leave out utterances without frames")

    @classmethod
    def from_list(cls, utterances: Sequence[FloatArray], names: Sequence[str] = ()) -> Self:
        """Join arrays of shape (frames, d), float16, bfloat16 or float32, copying them."""
        if not utterances:
            raise InputError("no utterances: the list is empty")
        check_names(names, len(utterances))
        for i, utterance in enumerate(utterances):
            name = name_of(names, i, "utterance")
            check_matrix(utterance, name)
            if utterance.shape[1] != utterances[0].shape[1]:
                raise InputError(
                    f"{name} has d = {utterance.shape[1]}, "
                    f"the first d = {utterances[0].shape[1]}; take all from one output of one model"
                )
        offsets = np.cumsum([0, *map(len, utterances)], dtype=np.int64)
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
        rows, bad = unit_rows(self.rows)
        self._refuse(bad)
        return replace(self, rows=rows)

    def check(self) -> None:
        """Raise InputError as `unit` does, without making the unit rows."""
        self._refuse(_squared_lengths(self.rows)[1])

    def _refuse(self, bad: int | None) -> None:
        if bad is not None:
            i = int(np.searchsorted(self.offsets, bad, side="right")) - 1
            raise InputError(
                f"{self.where}{name_of(self.names, i, 'utterance')}: frame {bad - self.offsets[i]} is zero, NaN or "
                "infinite and has no cosine; extract the utterance again or leave it out"
            )


def unit_rows(rows: FloatArray) -> tuple[npt.NDArray[np.float32], int | None]:
    """Rows scaled to unit length (float32), and the first row for which that is impossible."""
    if rows.dtype.name == "bfloat16":  # for which numpy's own loops are missing
        rows = rows.astype(np.float32)
    squares, bad = _squared_lengths(rows)
    if bad is not None:
        return np.empty((0, rows.shape[1]), np.float32), bad
    unit = np.empty(rows.shape, np.float32)
    np.divide(rows, np.sqrt(squares)[:, None], out=unit, casting="same_kind")
    return unit, None


def _squared_lengths(rows: FloatArray) -> tuple[npt.NDArray[np.float64], int | None]:
    """Squared length of each row, and the first row that is zero, NaN or infinite."""
    if rows.dtype.name == "bfloat16":
        rows = rows.astype(np.float32)
    # In float64 no square of a float32 overflows or vanishes: every usable row has a finite, positive length.
    squares = np.einsum("ij,ij->i", rows, rows, dtype=np.float64)
    bad = np.flatnonzero(~np.isfinite(squares) | (squares == 0))
    return squares, int(bad[0]) if bad.size else None


def check_matrix(matrix: FloatArray, label: str) -> None:
    if matrix.ndim != 2 or matrix.dtype.name not in _DTYPES:
        raise InputError(
            f"{label}: expected a {', '.join(_DTYPES[:-1])} or {_DTYPES[-1]} array of shape (frames, d), "
            f"got {matrix.dtype} of shape {matrix.shape}"
        )


def check_width(x: FloatArray, y: FloatArray, what: str) -> None:
    """Raise InputError where the rows of x and y are not of one d."""
    if x.shape[1] != y.shape[1]:
        widths = f"d = {x.shape[1]} and of d = {y.shape[1]}"
        raise InputError(f"{what} of {widths} cannot be compared; take both from one output of one model")


def check_names(names: Sequence[str], count: int) -> None:
    if names and len(names) != count:
        raise InputError(
            f"{counted(len(names), 'name')} for {counted(count, 'utterance')}; give one name each, or none"
        )


def name_of(names: Sequence[str], i: int, label: str) -> str:
    return f"{label} {names[i]!r}" if names else f"{label} {i}"
