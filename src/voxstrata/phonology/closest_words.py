"""The closest pair of words of two sentences: one shared name is enough to retrieve by."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from voxstrata.base.compiled import jit
from voxstrata.phonology.feature_distance import Phones, feature_distances

SHORTEST_WORD = 3  # segments: "a", "of" sound like something in any language
_BLOCK = 1 << 23  # distances between words held at once: 32 MiB


@dataclass(frozen=True, eq=False)
class Words:
    """The distinct words of sentences. forms: (types,). codes: types by sentence, offsets: (sentences + 1,) int64."""

    forms: list[str]
    phones: Phones
    codes: npt.NDArray[np.int64]
    offsets: npt.NDArray[np.int64]

    @classmethod
    def of(cls, ipa: Sequence[str]) -> Self:
        """Words of IPA sentences (separated by spaces) that have at least SHORTEST_WORD segments."""
        forms = sorted({word for text in ipa for word in text.split()}) or [""]
        phones = Phones.from_ipa(forms)
        long = {word for word, n in zip(forms, phones.lengths, strict=True) if n >= SHORTEST_WORD}
        place = {word: i for i, word in enumerate(forms)}
        held = [sorted({place[word] for word in text.split() if word in long}) for text in ipa]
        offsets = np.concatenate([[0], np.cumsum([len(words) for words in held])]).astype(np.int64)
        return cls(forms, phones, np.array([w for words in held for w in words], np.int64), offsets)


@dataclass(frozen=True, eq=False)
class ClosestWords:
    """distance: (N, M) float32, NaN where a sentence has no word that counts; x_words, y_words: int64, -1 there."""

    distance: npt.NDArray[np.float32]
    x_words: npt.NDArray[np.int64]
    y_words: npt.NDArray[np.int64]


def closest_words(x: Words, y: Words, normalize: str = "longer") -> ClosestWords:
    """For every sentence of x (N) and of y (M) the pair of words, one of each, with the smallest distance."""
    n, m = len(x.offsets) - 1, len(y.offsets) - 1
    best = np.full((len(x.forms), m), np.inf, np.float32)  # of each word of x to each sentence of y
    which = np.full((len(x.forms), m), -1, np.int64)
    step = max(1, _BLOCK // len(y.forms))
    for a in range(0, len(x.forms), step):
        b = min(a + step, len(x.forms))
        _closest_in_rows(
            feature_distances(_part(x.phones, a, b), y.phones, normalize), y.codes, y.offsets, best[a:b], which[a:b]
        )
    distance = np.full((n, m), np.inf, np.float32)
    x_words, y_words = np.full((n, m), -1, np.int64), np.full((n, m), -1, np.int64)
    for i in range(n):
        words = x.codes[x.offsets[i] : x.offsets[i + 1]]
        if len(words):
            at = np.argmin(best[words], axis=0)
            columns = np.arange(m)
            distance[i], y_words[i] = best[words[at], columns], which[words[at], columns]
            x_words[i] = np.where(y_words[i] < 0, -1, words[at])
    distance[np.isinf(distance)] = np.nan
    return ClosestWords(distance, x_words, y_words)


def _part(phones: Phones, a: int, b: int) -> Phones:
    begin, end = phones.offsets[a], phones.offsets[b]
    return Phones(phones.features, phones.codes[begin:end], phones.offsets[a : b + 1] - begin, phones.unknown[a:b])


@jit
def _closest_in_rows(distances: Any, codes: Any, offsets: Any, best: Any, which: Any) -> None:
    """For each row of distances (words, word types) the smallest among the types of each sentence, and which."""
    for i in range(len(distances)):
        for j in range(len(offsets) - 1):
            for k in range(offsets[j], offsets[j + 1]):
                if distances[i, codes[k]] < best[i, j]:
                    best[i, j] = distances[i, codes[k]]
                    which[i, j] = codes[k]
