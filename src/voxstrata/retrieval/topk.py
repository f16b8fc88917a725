"""The k best candidates of every query, kept while tiles come in any order."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from voxstrata.retrieval.kernels.base import FloatMatrix

_SLICE = 1 << 20  # scores looked at together: bounds memory beside the tile

# Of one tile row; positions on the sides. Kept in the order of queries, best first.
_PART = pa.schema(
    [
        ("direction", pa.string()),
        ("query", pa.int32()),
        ("candidate", pa.int32()),
        ("f1", pa.float32()),
        ("precision", pa.float32()),
        ("recall", pa.float32()),
    ]
)
TOP_SCHEMA = pa.schema(
    [
        ("direction", pa.string()),
        ("query", pa.string()),
        ("rank", pa.int32()),
        ("candidate", pa.string()),
        ("f1", pa.float32()),
        ("precision", pa.float32()),
        ("recall", pa.float32()),
    ]
)


class TopK:
    """The k candidates of highest F1 for each of n queries; of equal F1 the one of lower position wins.

    A candidate must be shown once. The result does not depend on the order in which candidates are shown.
    Memory: 16 n k bytes, and some MiB during an update.
    """

    def __init__(self, n: int, k: int) -> None:
        # F1 and position in one number that sorts as they do: a partition by it has no ties to break.
        self._key = np.zeros((n, k), np.uint64)  # 0: no candidate yet
        self._precision = np.zeros((n, k), np.float32)
        self._recall = np.zeros((n, k), np.float32)

    def update(
        self,
        query: int,
        candidate: int,
        f1: FloatMatrix,
        precision: FloatMatrix,
        recall: FloatMatrix,
        allowed: NDArray[np.bool_] | None = None,
    ) -> None:
        """Show scores (a, b) of a queries from position `query` on to b candidates from `candidate` on.

        allowed: (a, b), the pairs that count; all by default.
        """
        a, b = f1.shape
        positions = np.arange(candidate, candidate + b)
        step = max(1, _SLICE // b)
        for i in range(0, a, step):
            part = slice(i, min(i + step, a))
            key = _keys(f1[part], positions)
            if allowed is not None:
                key[~allowed[part]] = 0
            self._merge(slice(query + part.start, query + part.stop), key, precision[part], recall[part])

    def update_from(self, part: pa.Table) -> None:
        """Show what the `table` of another one holds."""
        query = np.asarray(part["query"])
        if not len(query):
            return
        starts = np.flatnonzero(np.diff(query, prepend=-1))
        rank = np.arange(len(query)) - np.repeat(starts, np.diff(starts, append=len(query)))
        shape = (len(self._key), int(rank.max()) + 1)
        key = np.zeros(shape, np.uint64)
        precision, recall = np.zeros(shape, np.float32), np.zeros(shape, np.float32)
        key[query, rank] = _keys(np.asarray(part["f1"]), np.asarray(part["candidate"]))
        precision[query, rank], recall[query, rank] = np.asarray(part["precision"]), np.asarray(part["recall"])
        self._merge(slice(None), key, precision, recall)

    def table(self, direction: str) -> pa.Table:
        """All candidates kept, as _PART: by query, best first."""
        order = np.argsort(self._key, axis=1)[:, ::-1]
        key = np.take_along_axis(self._key, order, axis=1)
        kept = key > 0
        query, _ = np.nonzero(kept)
        f1, position = _parts(key[kept])
        columns = [
            pa.array([direction]).take(pa.array(np.zeros(len(query), np.int32))),
            query.astype(np.int32),
            position,
            f1,
            np.take_along_axis(self._precision, order, axis=1)[kept],
            np.take_along_axis(self._recall, order, axis=1)[kept],
        ]
        return pa.table(columns, schema=_PART)

    def candidates(self) -> NDArray[np.int32]:
        """Positions kept, int32 (n, k), in no particular order; -1 where there are fewer."""
        return np.where(self._key > 0, _parts(self._key)[1], np.int32(-1))

    def _merge(self, rows: slice, key: NDArray[np.uint64], precision: FloatMatrix, recall: FloatMatrix) -> None:
        k = self._key.shape[1]
        key = np.concatenate([self._key[rows], key], axis=1)
        best = np.argpartition(key, -k, axis=1)[:, -k:]
        self._key[rows] = np.take_along_axis(key, best, axis=1)
        for kept, new in ((self._precision, precision), (self._recall, recall)):
            kept[rows] = np.take_along_axis(np.concatenate([kept[rows], new], axis=1), best, axis=1)


def named(part: pa.Table, queries: Sequence[str], candidates: Sequence[str]) -> pa.Table:
    """One direction of _PART as TOP_SCHEMA: ids for positions, ranks from 1."""
    query = np.asarray(part["query"])
    starts = np.flatnonzero(np.diff(query, prepend=-1))
    rank = np.arange(1, len(query) + 1) - np.repeat(starts, np.diff(starts, append=len(query)))
    columns = [
        part["direction"],
        pa.array(queries, pa.string()).take(part["query"]),
        pa.array(rank.astype(np.int32)),
        pa.array(candidates, pa.string()).take(part["candidate"]),
        *(part[name] for name in ("f1", "precision", "recall")),
    ]
    return pa.table(columns, schema=TOP_SCHEMA)


def _keys(f1: FloatMatrix, positions: NDArray[np.integer]) -> NDArray[np.uint64]:
    """One number per score, never 0: the float's bits made to sort as the float, then the position, reversed."""
    bits = (np.ascontiguousarray(f1) + np.float32(0)).view(np.uint32)  # -0.0 becomes 0.0
    ordered = np.where(bits >> 31, ~bits, bits | np.uint32(1 << 31))
    return (ordered.astype(np.uint64) << np.uint64(32)) | (np.uint64(0xFFFFFFFF) - positions.astype(np.uint64))


def _parts(key: NDArray[np.uint64]) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
    """F1 and position of `_keys`."""
    ordered = (key >> np.uint64(32)).astype(np.uint32)
    bits = np.where(ordered >> 31, ordered & np.uint32(0x7FFFFFFF), ~ordered)
    position = np.uint64(0xFFFFFFFF) - (key & np.uint64(0xFFFFFFFF))
    return bits.view(np.float32), position.astype(np.int64).astype(np.int32)
