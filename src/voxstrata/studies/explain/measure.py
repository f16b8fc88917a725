"""Why two utterances match: the cosines of their frames, whose row and column maxima SeqSim averages."""

import json
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from voxstrata.base.errors import InputError, UsageError
from voxstrata.base.plain import counted
from voxstrata.base.progress import SILENT, Reporter
from voxstrata.base.result import STORE
from voxstrata.corpus.rows import read_rows
from voxstrata.encoders.outputs import OutputChoice, depth_order, select_outputs
from voxstrata.retrieval.ragged import Ragged
from voxstrata.store import EmbeddingStore
from voxstrata.store.several import AnyStore, open_store
from voxstrata.studies.explain.matches import Match, SpokenUtterance, Word
from voxstrata.studies.explain.ranking import RANKED, rank_among_others
from voxstrata.studies.explain.result import EXPLAIN_SCHEMA, SAID, Explanation

CELLS = 1 << 24  # largest frame × frame matrix: 64 MiB of float32, two utterances of 80 s


def match_frames(store: EmbeddingStore, a: str, b: str, outputs: OutputChoice = "all") -> list[Match]:
    """Frame × frame cosines of two utterances, for each of `outputs`, by depth.

    Raises UsageError for an unknown output or utterance, one that is not done, or a store of pooled vectors; InputError
    for a frame without direction, or where a matrix would have more than 2²⁴ cells.
    """
    names = depth_order(select_outputs(outputs, store.outputs))
    i, j = store.index(a), store.index(b)
    rows, columns = int(store.length[i]), int(store.length[j])
    if rows * columns > CELLS:
        side = math.isqrt(CELLS)
        raise InputError(
            f"{store.files.root}: {a!r} has {counted(rows, 'frame')} and {b!r} has {columns}: too many to draw, at "
            f"most {side} × {side} are; cut the recordings, or extract them with --every"
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


def explain(
    store: AnyStore,
    a: str,
    b: str,
    outputs: OutputChoice = "all",
    words: str | Path | None = None,
    reporter: Reporter = SILENT,
) -> Explanation:
    """Why utterances a and b of a store match, in each of `outputs`, and where b ranks for a (`rank_among_others`).

    store: its path, or opened. words: table of when words are spoken (`read_words`).
    Raises what `match_frames` and `read_words` raise.
    """
    store = open_store(store)
    matches = match_frames(store, a, b, outputs)
    if (step := store.row_seconds) is None:
        raise UsageError(f"{store.files.root}: holds pooled vectors, no frames; extract without --pooled")
    seconds = store.table(["seconds"])["seconds"]  # frames need not cover the end
    lengths = {name: seconds[store.index(name)].as_py() for name in (a, b)}
    spoken = read_words(Path(words), lengths) if words else {}
    said = {}
    for side, name in (("a", a), ("b", b)):
        row = store.utterances.slice(store.index(name), 1).to_pylist()[0]
        said[side] = asdict(SpokenUtterance(name, row["text"] or "", row["language"], tuple(spoken.get(name, ()))))
    ranks, ranked = rank_among_others(store, store.index(a), store.index(b), [m.output for m in matches], reporter)
    best = {row["best_id"]: store[row["best_id"]].text for row in ranks.values()}
    settings = {"a": a, "b": b, "row_seconds": step, "ranked": ranked, "best": best}
    about = {Explanation.key: settings, STORE: store.about, SAID: said}
    note = {key: json.dumps(value, ensure_ascii=False) for key, value in about.items()}
    table = _summary(a, b, matches, ranks).replace_schema_metadata(note)
    maxima = _maxima(a, b, matches, step, spoken).replace_schema_metadata(note)
    return Explanation(table, maxima, {match.output: match.cosine for match in matches})


def _summary(a: str, b: str, matches: Sequence[Match], ranks: Mapping[str, Mapping[str, Any]]) -> pa.Table:
    rows = []
    for m in matches:
        figures = {"precision": m.precision, "recall": m.recall, "f1": m.f1, "mean_cosine": m.mean}
        frames = {"frames_a": m.cosine.shape[0], "frames_b": m.cosine.shape[1]}
        ranked = ranks.get(m.output, dict.fromkeys(RANKED))
        rows.append({"output": m.output, "a": a, "b": b, **figures, **frames, **ranked})
    return pa.Table.from_pylist(rows, schema=EXPLAIN_SCHEMA)


def _maxima(a: str, b: str, matches: Sequence[Match], step: float, words: Mapping[str, Sequence[Word]]) -> pa.Table:
    """For every output, utterance and frame of `step` seconds the largest cosine, and where it is."""
    tables = []
    for m in matches:
        for axis, (name, other) in enumerate(((a, b), (b, a))):
            best = m.cosine.argmax(axis=1 - axis)
            frames = np.arange(len(best))
            here, there = (frames + 0.5) * step, (best + 0.5) * step
            columns = {"output": pa.array([m.output] * len(best)), "id": pa.array([name] * len(best)), "frame": frames}
            columns |= {"seconds": here, "word": _words_at(words.get(name, ()), here)}
            columns |= {"cosine": m.cosine.max(axis=1 - axis), "best_id": pa.array([other] * len(best))}
            columns |= {"best_frame": best, "best_seconds": there, "best_word": _words_at(words.get(other, ()), there)}
            tables.append(pa.table(columns))
    return pa.concat_tables(tables)


def _words_at(words: Sequence[Word], seconds: npt.NDArray[np.floating]) -> pa.Array:
    return pa.array([word_at(words, t) for t in seconds.tolist()], pa.string())
