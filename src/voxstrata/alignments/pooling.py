"""The states of spans, taken from a store unit by unit."""

from collections.abc import Iterator
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from voxstrata.alignments.gathering import Spans
from voxstrata.store import EmbeddingStore

_ROWS = 1 << 14  # of a store, read at once beside one utterance


def span_states(store: EmbeddingStore, output: str, spans: Spans, members: range, pooled: bool) -> NDArray[np.generic]:
    """States of some spans: their means over rows, (spans, d) float32; or their rows one after the other, as stored."""
    rows = spans.rows[members.start : members.stop]
    count = len(members) if pooled else int(rows.sum())
    array = store.array(output)
    out = np.empty((count, array.shape[1]), np.float32 if pooled else array.dtype)
    at = 0
    for begin, end in _runs(store, spans, members):
        parent, place = np.unique(spans.parent[begin:end], return_inverse=True)
        read, offsets = store.ragged(output, parent)
        rows = spans.rows[begin:end]
        before = np.cumsum(rows) - rows  # rows of the spans before
        index = np.arange(rows.sum()) + np.repeat(offsets[place] + spans.first[begin:end] - before, rows)
        taken = read[index]
        if pooled:
            taken = np.add.reduceat(taken.astype(np.float32), before, axis=0) / rows[:, None].astype(np.float32)
        out[at : at + len(taken)] = taken
        at += len(taken)
    return out


def _runs(store: EmbeddingStore, spans: Spans, members: range) -> Iterator[tuple[int, int]]:
    """Runs of spans, [begin, end), whose utterances have about _ROWS rows together."""
    parent = spans.parent[members.start : members.stop]
    new = np.append(True, parent[1:] != parent[:-1])
    read = np.cumsum(np.where(new, store.length[parent], 0), dtype=np.int64)
    cuts = np.flatnonzero(new[1:] & (np.diff(read // _ROWS) > 0)) + 1
    edges = [0, *cuts.tolist(), len(parent)]
    for a, b in pairwise(edges):
        yield members.start + a, members.start + b
