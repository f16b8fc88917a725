"""The k best candidates of every query, kept while tiles come in any order."""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from voxstrata.retrieval.kernels.base import FloatMatrix

_SLICE = 1 << 20  # scores looked at together: bounds memory beside the tile

_SCORES = [(name, pa.float32()) for name in ("f1", "precision", "recall")]
# Of one tile row; positions on the sides. Kept in the order of queries, best first.
_PART = pa.schema([("direction", pa.string()), ("query", pa.int32()), ("candidate", pa.int32()), *_SCORES])
_NAMED = [("direction", pa.string()), ("query", pa.string()), ("rank", pa.int32()), ("candidate", pa.string())]
TOP_SCHEMA = pa.schema([*_NAMED, *_SCORES])


class TopK:
    """The k candidates of highest F1 for each of n queries; of equal F1 the one of lower position wins.

    A candidate must be shown once. The result does not depend on the order in which candidates are shown.
    Memory: 16 n k bytes, and some MiB during an update.
    """

    def __init__(self, n: int, k: int) -> None:
        # F1 and position in one number that sorts as they do: a partition by it has no ties to break.
        self._key = np.zeros((n, k), np.uint64)  # 0: no candidate yet
        self._precision, self._recall = np.zeros((2, n, k), np.float32)

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
        positions, step = np.arange(candidate, candidate + b), max(1, _SLICE // b)
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
        rank = _ranks(query)
        shape = (len(self._key), int(rank.max()) + 1)
        key, (precision, recall) = np.zeros(shape, np.uint64), np.zeros((2, *shape), np.float32)
        key[query, rank] = _keys(np.asarray(part["f1"]), np.asarray(part["candidate"]))
        precision[query, rank], recall[query, rank] = part["precision"], part["recall"]
        self._merge(slice(None), key, precision, recall)

    def table(self, direction: str) -> pa.Table:
        """All candidates kept, as _PART: by query, best first."""
        order = np.argsort(self._key, axis=1)[:, ::-1]
        key = np.take_along_axis(self._key, order, axis=1)
        kept = key > 0
        query, _ = np.nonzero(kept)
        f1, position = _parts(key[kept])
        precision, recall = (np.take_along_axis(m, order, axis=1)[kept] for m in (self._precision, self._recall))
        columns = [pa.repeat(direction, len(query)), query.astype(np.int32), position, f1, precision, recall]
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
    rank = pa.array((_ranks(np.asarray(part["query"])) + 1).astype(np.int32))
    query = pa.array(queries, pa.string()).take(part["query"])
    candidate = pa.array(candidates, pa.string()).take(part["candidate"])
    return pa.table([part["direction"], query, rank, candidate, *part.columns[3:]], schema=TOP_SCHEMA)


def _ranks(query: NDArray[np.int32]) -> NDArray[np.int64]:
    """Place of each row among those of its query, from 0; rows of one query stand together."""
    starts = np.flatnonzero(np.diff(query, prepend=-1))
    return np.arange(len(query)) - np.repeat(starts, np.diff(starts, append=len(query)))


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
