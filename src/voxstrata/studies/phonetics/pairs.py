"""Where pairs of translations stand among non-translations by how they sound."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from voxstrata.base.tables import known

if TYPE_CHECKING:
    from voxstrata.phonology.closest_words import ClosestWords  # which brings in numba

NEIGHBOURS = 20  # non-translations nearest in length that a pair is also ranked among

_BoolMatrix = npt.NDArray[np.bool_]
_Float32 = npt.NDArray[np.float32]
_Row = Mapping[str, Any]  # an utterance: id, language, group, text, voice, ipa, segments, unknown, others

_NAMES = pa.dictionary(pa.int32(), pa.string())
# columns of 0.1.0
EARLIER = {"source_language": "source", "target_language": "target", "source": "query", "target": "candidate"}
DISTANCE_SCHEMA = pa.schema(
    [(name, _NAMES) for name in ("source", "target", "query", "candidate")]
    + [("translation", pa.bool_()), ("distance", pa.float32()), ("word_distance", pa.float32())]
)


@dataclass(frozen=True)
class SoundDirection:
    """How translations of one direction sound beside non-translations; figures over its pairs of translations.

    pairs: of translations. candidates: smallest and largest pool a pair is ranked in, itself and the non-translations.
    distance, others: mean distance of translations, and of non-translations.
    quantile: median share of the source's non-translations that sound closer than the translation, ties half; 0.5
    where sound says nothing. like_length: the same among the NEIGHBOURS non-translations nearest in length to it.
    closest: share of pairs that sound closer than every non-translation; chance: what equals would reach.
    word_quantile, word_closest: as quantile and closest, by the closest pair of words, over the `word_pairs` that have
    one.
    """

    source: str
    target: str
    pairs: int
    candidates: tuple[int, int]
    distance: float
    others: float
    quantile: float
    like_length: float
    closest: float
    chance: float
    word_pairs: int
    word_quantile: float
    word_closest: float


@dataclass(frozen=True, eq=False)
class Compared:
    """All of two languages compared: utterances x (N) and y (M), same (N, M) translations, distance (N, M)."""

    source: str
    target: str
    x: Sequence[_Row]
    y: Sequence[_Row]
    same: _BoolMatrix
    distance: npt.NDArray[np.float32]
    lengths: npt.NDArray[np.int64]  # segments of y
    words: ClosestWords
    x_forms: Sequence[str]
    y_forms: Sequence[str]

    def reversed(self, lengths: npt.NDArray[np.int64]) -> Compared:
        """The other direction; lengths: segments of x."""
        w = self.words
        words = replace(w, distance=w.distance.T, x_words=w.y_words.T, y_words=w.x_words.T)
        there = (self.target, self.source, self.y, self.x, self.same.T, self.distance.T)
        return Compared(*there, lengths, words, self.y_forms, self.x_forms)


def quantiles(
    distances: npt.NDArray[np.floating], same: _BoolMatrix, lengths: npt.NDArray[np.int64] | None = None
) -> npt.NDArray[np.float64]:
    """For each translation (row, column) the share of the row's non-translations that sound closer; NaN elsewhere.

    distances (N, M), same (N, M): which columns translate which rows. Ties count half; NaN distances take no part.
    lengths (M,) of the columns: only the NEIGHBOURS non-translations nearest in length to the translation count, by
    ratio (ties: the earlier column). Without this, sentences of like length sound closer because the edit distance of
    strings of unlike length is at least the cost of their difference.
    """
    found = np.full(distances.shape, np.nan)
    for i, j in zip(*np.nonzero(same & ~np.isnan(distances)), strict=True):
        row = distances[i, non_translations(distances, same, i, j, lengths)]
        if len(row):
            found[i, j] = ((row < distances[i, j]).sum() + (row == distances[i, j]).sum() / 2) / len(row)
    return found


def non_translations(
    distances: npt.NDArray[np.floating], same: _BoolMatrix, i: int, j: int, lengths: npt.NDArray[np.int64] | None
) -> npt.NDArray[np.int64]:
    """Columns that pair (i, j) is ranked among: see `quantiles`."""
    others = np.flatnonzero(~same[i] & ~np.isnan(distances[i]))
    if lengths is None:
        return others
    logs = np.log(np.maximum(lengths, 0.5))
    return others[np.argsort(np.abs(logs[others] - logs[j]), kind="stable")[:NEIGHBOURS]]


def translations(compared: Compared) -> list[dict[str, Any]]:
    """A row for each pair of translations: its distances, its ranks (from 1, ties against it), its quantiles.

    Pairs whose source has no non-translation in the other language are left out: they rank first among themselves.
    """
    same, distance, words = compared.same, compared.distance, compared.words
    by_sentence = quantiles(distance, same)
    by_length = quantiles(distance, same, compared.lengths)
    by_word = quantiles(words.distance, same)
    rows = []
    for i, j in zip(*np.nonzero(same), strict=True):
        others = ~same[i]
        if not others.any():
            continue
        x_word, y_word = words.x_words[i, j], words.y_words[i, j]
        row: dict[str, Any] = {"source": compared.source, "target": compared.target}
        row |= {"query": compared.x[i]["id"], "candidate": compared.y[j]["id"], "group": compared.x[i]["group"]}
        row |= {"non_translations": int(np.count_nonzero(others)), "distance": float(distance[i, j])}
        row["rank"] = 1 + int(np.count_nonzero(distance[i, others] <= distance[i, j]))
        row |= {"quantile": known(by_sentence[i, j]), "quantile_like_length": known(by_length[i, j])}
        row |= {"word_distance": known(words.distance[i, j]), "word_rank": None, "word_quantile": known(by_word[i, j])}
        row |= {"query_word": None, "candidate_word": None}
        if x_word >= 0:
            row["word_rank"] = 1 + int(np.count_nonzero(words.distance[i, others] <= words.distance[i, j]))
            row |= {"query_word": compared.x_forms[x_word], "candidate_word": compared.y_forms[y_word]}
        rows.append(row)
    return rows


def summarise(rows: Sequence[Mapping[str, Any]], others: float) -> SoundDirection:
    """One direction in figures: from its `translations`, and the mean distance of its non-translations, `others`."""
    pools = [row["non_translations"] + 1 for row in rows]
    words = [row for row in rows if row["word_rank"] is not None]
    figures: dict[str, Any] = {"pairs": len(rows), "candidates": (min(pools), max(pools)), "others": others}
    figures |= {"distance": _mean([row["distance"] for row in rows]), "chance": _mean([1 / pool for pool in pools])}
    figures |= {"closest": _mean([row["rank"] == 1 for row in rows]), "word_pairs": len(words)}
    figures["word_closest"] = _mean([row["word_rank"] == 1 for row in words])
    for name, column in (("quantile", "quantile"), ("like_length", "quantile_like_length")):
        figures[name] = _median([row[column] for row in rows])
    figures["word_quantile"] = _median([row["word_quantile"] for row in words])
    return SoundDirection(rows[0]["source"], rows[0]["target"], **figures)


def distance_table(
    languages: tuple[str, str], x: Sequence[_Row], y: Sequence[_Row], same: _BoolMatrix, *distances: _Float32
) -> pa.Table:
    """All distances of two languages, a row per pair of utterances, x by x; columns as in DISTANCE_SCHEMA.

    distances: (N, M) of sentences, then of their closest words.
    """
    n, m = same.shape
    i, j = np.repeat(np.arange(n, dtype=np.int32), m), np.tile(np.arange(m, dtype=np.int32), n)
    zeros = np.zeros(n * m, np.int32)
    columns = [(zeros, [language]) for language in languages]
    columns += [(i, [row["id"] for row in x]), (j, [row["id"] for row in y])]
    named = [pa.DictionaryArray.from_arrays(index, pa.array(names)) for index, names in columns]
    figures = [pa.array(matrix.ravel(), from_pandas=True) for matrix in (same, *distances)]
    return pa.table([*named, *figures], schema=DISTANCE_SCHEMA)


def _mean(values: npt.ArrayLike) -> float:
    array = np.asarray(values, np.float64)
    return float(array.mean()) if array.size else float("nan")


def _median(values: Sequence[float | None]) -> float:
    known = [value for value in values if value is not None]
    return float(np.median(known)) if known else float("nan")
