"""Pairs of words across languages that set meaning apart from sound."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import numpy.typing as npt

from voxstrata.base.errors import InputError, UsageError
from voxstrata.phonology.feature_distance import Phones, feature_distances
from voxstrata.studies.words.word_list import Entry

SYNONYMS, NEAR_HOMOPHONES, RANDOM_WORDS = "synonyms", "near_homophones", "random"
WORD_KINDS = (SYNONYMS, NEAR_HOMOPHONES)  # each against random pairs
NEAR, FAR = 0.01, 0.5  # quantiles of the distance between words of different meaning
RANDOM_PAIRS = 5000  # at most, of any two languages: drawn with a fixed seed
DIVISOR = "longer"  # of a distance: see `normalize` of `feature_distances`
_Indices = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class WordPairs:
    """Pairs of words of two languages, by place in the word list.

    x, y: (n,) int64. distance: (n,) float32, phonetic. languages: of x and of y. kind: one of SYNONYMS,
    NEAR_HOMOPHONES, RANDOM_WORDS.
    """

    kind: str
    languages: tuple[str, str]
    x: _Indices
    y: _Indices
    distance: npt.NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.x)

    def where(self, keep: npt.NDArray[np.bool_]) -> WordPairs:
        """Some of the pairs."""
        return WordPairs(self.kind, self.languages, self.x[keep], self.y[keep], self.distance[keep])


@dataclass(frozen=True, eq=False)
class PairSets:
    """All pairs. near, far: the distances at which words sound alike, or unlike."""

    pairs: list[WordPairs]
    near: float
    far: float

    def counts(self) -> dict[str, int]:
        """Number of pairs by kind."""
        return {kind: sum(len(p) for p in self.pairs if p.kind == kind) for kind in (*WORD_KINDS, RANDOM_WORDS)}


def make_pairs(entries: Sequence[Entry], near: float = NEAR, far: float = FAR, seed: int = 0) -> PairSets:
    """Synonyms, near-homophones and random pairs, for every two languages.

    Distance: PanPhon's feature edit distance over the number of segments of the longer word. The quantiles `near` and
    `far` of the distances between words of different meaning and language say what sounds alike and unlike:
    - synonyms mean the same and sound unlike (distance ≥ that of `far`);
    - random pairs mean different things and sound unlike: synonyms differ from them in meaning, and as little in sound
      as the distance can tell;
    - near-homophones mean different things and sound alike (distance ≤ that of `near`): they differ from random pairs
      in sound, and so in length.
    Of more than RANDOM_PAIRS random pairs of two languages, so many are drawn.

    Raises UsageError unless 0 < near < far < 1, InputError when no synonyms sound unlike, or no two words of
    different meaning and language exist.
    """
    if not 0 < near < far < 1:
        raise UsageError(f"near {near:g} and far {far:g}: give quantiles with 0 < near < far < 1")
    meanings = np.array([word.meaning for word in entries])
    places: dict[str, _Indices] = {
        language: np.flatnonzero([word.language == language for word in entries])
        for language in dict.fromkeys(word.language for word in entries)
    }
    phones = {name: Phones.from_ipa([entries[i].ipa or "" for i in held]) for name, held in places.items()}
    distances = {(a, b): feature_distances(phones[a], phones[b], DIVISOR) for a, b in combinations(places, 2)}
    same = {(a, b): meanings[places[a]][:, None] == meanings[places[b]][None, :] for a, b in distances}
    others = np.concatenate([distance[~same[both]] for both, distance in distances.items()])
    if not len(others):
        raise InputError("no two words of different meaning and language: nothing to compare with; add words")
    at_near, at_far = (float(q) for q in np.quantile(others, [near, far]))
    if at_near >= at_far:
        raise InputError(
            f"the quantiles {near:g} and {far:g} of the phonetic distances are both {at_far:.3f}: the list is too "
            "small to tell alike from unlike; add words, or move --near and --far apart"
        )
    rng = np.random.default_rng(seed)
    sets = []
    for (a, b), distance in distances.items():
        means_same = same[a, b]
        chosen = {
            SYNONYMS: means_same & (distance >= at_far),
            NEAR_HOMOPHONES: ~means_same & (distance <= at_near),
            RANDOM_WORDS: ~means_same & (distance >= at_far),
        }
        for kind, mask in chosen.items():
            i, j = np.nonzero(mask)
            if kind == RANDOM_WORDS and len(i) > RANDOM_PAIRS:
                drawn = np.sort(rng.choice(len(i), RANDOM_PAIRS, replace=False))
                i, j = i[drawn], j[drawn]
            sets.append(WordPairs(kind, (a, b), places[a][i], places[b][j], distance[i, j]))
    found = PairSets(sets, at_near, at_far)
    if not found.counts()[SYNONYMS]:
        raise InputError(
            f"all words of one meaning sound alike across languages (phonetic distance below {at_far:.3f}, "
            f"the quantile {far:g} of different words): no synonyms are left; add words, or lower --far"
        )
    return found
