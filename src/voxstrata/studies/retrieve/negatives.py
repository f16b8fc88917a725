"""Hard negatives: of every query its translation among the few candidates that sound, length or words make likest.

Nothing here looks at a state. Negatives are chosen by a distance; of candidates that tie for the last places any may
come in, and the hit is the chance of one over all ways to choose them. With a distance that is the same for all this
gives the control, random negatives: its mean over all draws, so none is made.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from voxstrata.base.errors import InputError, UsageError
from voxstrata.base.plain import counted
from voxstrata.evaluation.bootstrap import Resamples
from voxstrata.evaluation.metrics import BoolMatrix, Evaluation, Float64, chance_none_drawn, positives_from_groups
from voxstrata.retrieval.selection import Selection
from voxstrata.store import EmbeddingStore
from voxstrata.studies.phonetics.folder import PhoneticsFolder

NEGATIVES = ("sound", "length", "words")
SMALL_POOL = 10  # a translation and nine others
FORMULAS = {
    "sound": "phonetic distance of query and candidate, as `voxstrata phonetics` measured it",
    "length": "|ln(seconds of the query) - ln(seconds of the candidate)|, each less the mean of its language",
    "words": "1 - shared words of candidate and translation / all their words, each weighing ln(texts / texts with it)",
}
# Scripts that write no spaces, of which each character is taken for a word: Thai, Lao, Burmese, Khmer, kana, Chinese.
_UNSPACED = re.compile("([\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff])")
_WORDS_AT_ONCE = 1024

_Int64 = npt.NDArray[np.int64]


def hard_metrics(kind: str) -> tuple[str, str, str]:
    """Names of the figures of one kind: among hard negatives, among as many random ones, and the difference."""
    return f"{kind}_recall@1", f"{kind}_random_recall@1", f"{kind}_minus_random"


@dataclass(frozen=True, eq=False)
class SmallPools:
    """The pools of one direction and one kind: N queries, M candidates.

    queries: (q,) those that have a translation and enough negatives of known distance. sure, tied, known: (q, M) bool,
    candidates that are surely negatives, that tie for the places left, and of which negatives may be drawn at random.
    places: (q,) int64, how many of the tied come in. partners: (q,) int64, translations, which all are in the pool.
    """

    kind: str
    negatives: int
    queries: _Int64
    sure: BoolMatrix
    tied: BoolMatrix
    known: BoolMatrix
    places: _Int64
    partners: _Int64

    @classmethod
    def of(cls, kind: str, distances: Float64, positives: BoolMatrix, negatives: int) -> Self:
        """distances: (N, M), the smaller the harder; NaN for what is no negative. positives: (N, M) translations."""
        known = ~np.isnan(distances)
        queries = np.flatnonzero(positives.any(axis=1) & (known.sum(axis=1) >= negatives))
        asked, known = distances[queries], known[queries]
        if not len(queries):
            last = np.empty((0, 1))
        else:
            last = np.partition(asked, negatives - 1, axis=1)[:, negatives - 1, None]  # NaN sort behind all
        sure, tied = asked < last, asked == last
        places = negatives - sure.sum(axis=1)
        return cls(kind, negatives, queries, sure, tied, known, places, positives[queries].sum(axis=1))

    def evaluate(
        self,
        scores: npt.NDArray[np.floating],
        positives: BoolMatrix,
        groups: npt.NDArray[np.str_],
        resamples: Resamples | None,
    ) -> Evaluation:
        """Recall@1 of scores (N, M) in these pools, and in as many random negatives; wrong answers that tie win."""
        metrics, size = hard_metrics(self.kind), self.partners + self.negatives
        without = int(positives.any(axis=1).sum()) - len(self.queries)
        if not len(self.queries):
            nothing = np.full(len(metrics), math.nan)
            return Evaluation(metrics, nothing, nothing, np.empty((0, len(metrics))), 0, without, 0, 0)
        asked = scores[self.queries]
        best = np.max(asked, axis=1, where=positives[self.queries], initial=-np.inf, keepdims=True)
        wrong = self.known & (asked >= best)
        hard = ~(wrong & self.sure).any(axis=1) * _none_of(wrong, self.tied, self.places)
        random = _none_of(wrong, self.known, np.full(len(wrong), self.negatives))
        hits = np.stack([hard, random, hard - random], axis=1)
        chance = float(np.mean(self.partners / size))
        samples = np.empty((0, len(metrics)))
        if resamples is not None:
            samples = resamples.means(hits, groups[self.queries])
        return Evaluation(
            metrics, hits.mean(axis=0), np.array([chance, chance, 0.0]), samples, len(hits), without,
            int(size.min()), int(size.max()),
        )  # fmt: skip


def _none_of(wrong: BoolMatrix, among: BoolMatrix, taken: _Int64) -> Float64:
    """Chance that so many of some candidates, drawn without replacement, hold no wrong one, (queries,)."""
    there, bad = among.sum(axis=1), (wrong & among).sum(axis=1)
    return chance_none_drawn(bad[:, None], there[:, None], taken[:, None])


class HardNegatives:
    """Chooses negatives for all pairs of languages of a store, and keeps the pools: they serve every output.

    sides: the utterances that take part, by language. phonetics: folder of `voxstrata phonetics`, for "sound".
    Raises UsageError where that is missing or no pool can be so large, InputError where it is of other texts than the
    store's, and where "words" has no text to go by.
    """

    def __init__(
        self, store: EmbeddingStore, sides: Sequence[Selection], kinds: Sequence[str], pool_size: int, phonetics: Any
    ) -> None:
        if "sound" in kinds and phonetics is None:
            raise UsageError("negatives by sound need a folder that `voxstrata phonetics` wrote (--phonetics)")
        self.kinds, self.pool_size = kinds, pool_size
        self._folder = PhoneticsFolder(str(phonetics)) if "sound" in kinds else None
        self._pools: dict[tuple[str, str], tuple[list[SmallPools], list[SmallPools]]] = {}
        table = store.table(["id", "text", "seconds"])
        texts = table["text"].to_pylist()
        if self._folder is not None:
            self._folder.check_texts(dict(zip(table["id"].to_pylist(), texts, strict=True)))
        self._texts = _Texts({i: texts[i] for side in sides for i in side.indices.tolist()})
        if "words" in kinds and not self._texts.known:
            raise InputError(
                f"{store.files.root}: no utterance has text, so no words are shared; `voxstrata relabel` adds texts"
            )
        seconds = np.asarray(table["seconds"].to_pylist(), np.float64)
        self._logs = np.full(len(seconds), np.nan)
        for side in sides:
            logs = np.log(seconds[side.indices])
            self._logs[side.indices] = logs - logs.mean()
        self._same_text = 0
        most = max(len(x) for x in sides)
        if pool_size > most:
            raise UsageError(
                f"pool size {pool_size}: the largest language has {counted(most, 'utterance')}; give --pool-size "
                f"{most} or less"
            )

    def pools(self, x: Selection, y: Selection) -> tuple[list[SmallPools], list[SmallPools]]:
        """Of queries of x in candidates of y, and of queries of y in candidates of x; by kind."""
        key = (x.language, y.language)
        if key not in self._pools:
            there, back = self._distances(x, y), self._distances(y, x)
            positives = positives_from_groups(x.groups, y.groups)
            self._pools[key] = (
                [SmallPools.of(kind, there[kind], positives, self.pool_size - 1) for kind in self.kinds],
                [SmallPools.of(kind, back[kind], positives.T, self.pool_size - 1) for kind in self.kinds],
            )
        return self._pools[key]

    def about(self) -> dict[str, Any]:
        """What decided the pools, as results store it."""
        found: dict[str, Any] = {"kinds": list(self.kinds), "pool_size": self.pool_size}
        found["distances"] = {kind: FORMULAS[kind] for kind in self.kinds}
        found |= {"random": "mean over all draws", "candidates_of_the_same_text_left_out": self._same_text}
        return found | ({"phonetics": self._folder.settings} if self._folder else {})

    def _distances(self, x: Selection, y: Selection) -> dict[str, Float64]:
        """How unlike queries of x and candidates of y are, by kind, (N, M); NaN for what is no negative: translations,
        candidates with the very text of one, and what is unknown."""
        positives = positives_from_groups(x.groups, y.groups)
        found: dict[str, Float64] = {}
        for kind in self.kinds:
            if kind == "length":
                found[kind] = np.abs(self._logs[x.indices][:, None] - self._logs[y.indices])
            elif kind == "words":
                found[kind] = self._texts.distances(positives, y)
            else:
                found[kind] = self._sound(x, y)
        same = self._texts.same_as_translation(positives, y)
        self._same_text += int(np.count_nonzero(same))
        return {kind: np.where(positives | same, np.nan, matrix) for kind, matrix in found.items()}

    def _sound(self, x: Selection, y: Selection) -> Float64:
        assert self._folder is not None
        found = np.full((len(x), len(y)), np.nan)
        i, j = (np.flatnonzero([name in self._folder.segments for name in side.ids]) for side in (x, y))
        if len(i) and len(j):
            found[np.ix_(i, j)] = self._folder.distances(x.part(i), y.part(j), "distance")
        return found


def text_words(text: str) -> list[str]:
    """The words of a text, without case and punctuation; in scripts without spaces, its characters."""
    plain = unicodedata.normalize("NFKC", text).casefold()
    kept = "".join(c if unicodedata.category(c)[0] in "LMN" else " " for c in plain)
    return _UNSPACED.sub(r" \1 ", kept).split()


class _Texts:
    """The texts of utterances, by their position in the store. known: whether there is any."""

    def __init__(self, texts: Mapping[int, str | None]) -> None:
        self._words = {i: text_words(text) for i, text in texts.items() if text}
        self._words = {i: words for i, words in self._words.items() if words}
        codes: dict[str, int] = {}
        self._code = {i: codes.setdefault(" ".join(words), len(codes)) for i, words in self._words.items()}
        self.known = bool(self._words)

    def same_as_translation(self, positives: BoolMatrix, y: Selection) -> BoolMatrix:
        """Candidates that are no translation by their group, but have the text of one, (N, M) bool."""
        code = np.array([self._code.get(i, -1) for i in y.indices.tolist()])
        alike = (code[:, None] == code) & (code >= 0)
        found = (positives.astype(np.float32) @ alike.astype(np.float32) > 0) & ~positives
        return np.asarray(found, bool)

    def distances(self, positives: BoolMatrix, y: Selection) -> Float64:
        """1 - the overlap of each candidate with the translation it shares most with, (N, M); NaN where a candidate,
        or every translation, has no text."""
        overlap = self._overlap(y)
        found = np.full(positives.shape, np.nan)
        for query in np.flatnonzero(positives.any(axis=1)):
            found[query] = 1 - np.fmax.reduce(overlap[positives[query]], axis=0)
        return found

    def _overlap(self, y: Selection) -> Float64:
        """Shared words / all words of every two texts, weighted, (M, M); 0 where no word weighs anything."""
        held = [set(self._words.get(i, ())) for i in y.indices.tolist()]
        different = {self._code[i]: set(self._words[i]) for i in y.indices.tolist() if i in self._words}
        vocabulary = sorted(set().union(*held))
        place = {word: n for n, word in enumerate(vocabulary)}
        counts = np.zeros(len(vocabulary))
        for words in different.values():
            counts[[place[word] for word in words]] += 1
        weights = np.log(len(different) / np.maximum(counts, 1)) if different else counts
        total = np.array([weights[[place[word] for word in words]].sum() for words in held])
        shared = np.zeros((len(held), len(held)))
        for begin in range(0, len(vocabulary), _WORDS_AT_ONCE):
            width = min(_WORDS_AT_ONCE, len(vocabulary) - begin)
            has = np.zeros((len(held), width))
            for row, words in zip(has, held, strict=True):
                row[[place[w] - begin for w in words if begin <= place[w] < begin + width]] = 1
            shared += (has * weights[begin : begin + width]) @ has.T
        union = total[:, None] + total - shared
        overlap = np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)
        unknown = np.array([not words for words in held])
        overlap[unknown] = overlap[:, unknown] = np.nan
        # what differs by rounding alone is a tie
        return np.asarray(np.round(overlap, 9))
