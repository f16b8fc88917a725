"""Why two utterances match: the cosines of their frames, whose row and column maxima SeqSim averages."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from voxstrata.base.choices import chosen
from voxstrata.base.errors import InputError, UsageError
from voxstrata.corpus.rows import read_rows
from voxstrata.encoders.outputs import depth_order
from voxstrata.retrieval.ragged import Ragged
from voxstrata.retrieval.similarities import harmonic
from voxstrata.store import EmbeddingStore

CELLS = 1 << 24  # largest frame × frame matrix: 64 MiB of float32, two utterances of 80 s


@dataclass(frozen=True)
class Word:
    """A spoken word: what was said, and when, in seconds from the utterance's start."""

    text: str
    begin: float
    end: float


@dataclass(frozen=True, eq=False)
class Match:
    """The frames of utterance a (T1) against those of b (T2) in one output.

    cosine: (T1, T2) float32. precision: mean over the frames of a of the largest cosine in the row; recall: mean over
    the frames of b of the largest in the column; f1: their harmonic mean, SeqSim (see `seqsim`). mean: over the whole
    matrix, what any frame of a has in common with any of b.
    """

    output: str
    cosine: npt.NDArray[np.float32]

    @property
    def precision(self) -> float:
        return float(self.cosine.max(axis=1).mean(dtype=np.float64))

    @property
    def recall(self) -> float:
        return float(self.cosine.max(axis=0).mean(dtype=np.float64))

    @property
    def f1(self) -> float:
        return float(harmonic(np.array([self.precision], np.float32), np.array([self.recall], np.float32))[0])

    @property
    def mean(self) -> float:
        return float(self.cosine.mean(dtype=np.float64))


def match_frames(store: EmbeddingStore, a: str, b: str, outputs: Sequence[str] | None = None) -> list[Match]:
    """Frame × frame cosines of two utterances, for each of `outputs` (all of the store when None), by depth.

    Raises UsageError for an unknown output or utterance, one that is not done, or a store of pooled vectors; InputError
    for a frame without direction, or where a matrix would have more than 2²⁴ cells.
    """
    names = depth_order(chosen("output", outputs, store.outputs))
    i, j = store.index(a), store.index(b)
    rows, columns = int(store.length[i]), int(store.length[j])
    if rows * columns > CELLS:
        side = math.isqrt(CELLS)
        raise InputError(
            f"{store.files.root}: {a!r} has {rows} frames and {b!r} has {columns}: too many to draw, at most "
            f"{side} × {side} are; cut the recordings, or extract them with --every"
        )
    matches = []
    for output in names:
        x, y = (Ragged.from_list([store.frames(k, output)], [name]).unit().rows for k, name in ((i, a), (j, b)))
        matches.append(Match(output, (x @ y.T).astype(np.float32, copy=False)))
    return matches


def read_words(path: Path, utterances: Mapping[str, float]) -> dict[str, list[Word]]:
    """When the words of some utterances are spoken, from a table of id, word, begin, end; by id, in order of time.

    begin, end: seconds from the utterance's start. Rows of other ids are passed over.
    utterances: id -> length in seconds.
    Raises InputError, naming the line, for a time that is no number, lies outside the utterance, or ends before it
    begins, and when the table has none of the ids.
    """
    words: dict[str, list[Word]] = defaultdict(list)
    columns = ("id", "word", "begin", "end")
    for place, row in read_rows(path, columns, required=columns):
        length = utterances.get(row["id"] or "")
        if length is None:
            continue
        try:
            begin, end = float(row["begin"] or ""), float(row["end"] or "")
        except ValueError:
            raise InputError(
                f"{path}, {place}: begin {row['begin']!r} and end {row['end']!r} must be numbers of seconds"
            ) from None
        if not 0 <= begin < end <= length + 0.1:  # aligners round up
            raise InputError(
                f"{path}, {place}: {row['word']!r} from {begin:g} to {end:g} s does not lie within {row['id']!r}, "
                f"which lasts {length:.2f} s; give seconds from the utterance's start"
            )
        words[str(row["id"])].append(Word(row["word"] or "", begin, end))
    if not words:
        raise InputError(
            f"{path}: no row of {' or '.join(map(repr, utterances))}; name the utterances by the store's ids"
        )
    return {name: sorted(found, key=lambda word: word.begin) for name, found in words.items()}


def word_at(words: Sequence[Word], seconds: float) -> str | None:
    """The word that is being spoken, None in a pause."""
    return next((word.text for word in words if word.begin <= seconds < word.end), None)


def summary_table(store: EmbeddingStore, a: str, b: str, matches: Sequence[Match]) -> pa.Table:
    """One row per output: precision, recall, f1, mean cosine of all frame pairs (float64), frames of either utterance.

    The schema's metadata hold what was compared (`voxstrata_explain`) and the store's own description (`voxstrata`).
    """
    rows = [
        {
            "output": m.output,
            "a": a,
            "b": b,
            "precision": m.precision,
            "recall": m.recall,
            "f1": m.f1,
            "mean_cosine": m.mean,
            "frames_a": m.cosine.shape[0],
            "frames_b": m.cosine.shape[1],
        }
        for m in matches
    ]
    return pa.Table.from_pylist(rows).replace_schema_metadata(_about(store, a, b))


def maxima_table(
    store: EmbeddingStore, a: str, b: str, matches: Sequence[Match], words: Mapping[str, Sequence[Word]]
) -> pa.Table:
    """One row per output, utterance and frame: when it is, its largest cosine, and when and what it found there.

    Columns: output, id, frame, seconds (its middle), word, cosine, best_id, best_frame, best_seconds, best_word.
    """
    step = _seconds(store)
    tables = []
    for m in matches:
        for axis, (name, other) in enumerate(((a, b), (b, a))):
            best = m.cosine.argmax(axis=1 - axis)
            frames = np.arange(len(best))
            here, there = (frames + 0.5) * step, (best + 0.5) * step
            spoken, found = words.get(name, ()), words.get(other, ())
            columns = {
                "output": pa.array([m.output] * len(best)),
                "id": pa.array([name] * len(best)),
                "frame": frames,
                "seconds": here,
                "word": pa.array([word_at(spoken, t) for t in here.tolist()], pa.string()),
                "cosine": m.cosine.max(axis=1 - axis),
                "best_id": pa.array([other] * len(best)),
                "best_frame": best,
                "best_seconds": there,
                "best_word": pa.array([word_at(found, t) for t in there.tolist()], pa.string()),
            }
            tables.append(pa.table(columns))
    return pa.concat_tables(tables).replace_schema_metadata(_about(store, a, b))


def _about(store: EmbeddingStore, a: str, b: str) -> dict[str, str]:
    settings = {"a": a, "b": b, "row_seconds": _seconds(store)}
    return {"voxstrata_explain": json.dumps(settings), "voxstrata": json.dumps(store.about)}


def _seconds(store: EmbeddingStore) -> float:
    if store.row_seconds is None:
        raise UsageError(f"{store.files.root}: holds pooled vectors, no frames; extract without --pool")
    return store.row_seconds
