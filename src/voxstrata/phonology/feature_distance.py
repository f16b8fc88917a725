"""Phonetic distance: edit distance over articulatory features, PanPhon's, for all pairs of two sets at once.

PanPhon (Mortensen et al. 2016, "PanPhon: A Resource for Mapping IPA Segments to Articulatory Feature Vectors",
COLING 2016) writes each segment as 24 features of value -1, 0 or 1. This is its `feature_edit_distance`: all features
weigh the same. Replacing a segment costs the mean over features of half the difference, inserting or deleting one the
mean of 1 per specified (non-zero) and 1/2 per unspecified feature. Its weighted variant is left out: the weights of
PanPhon 0.22.2 name 22 features in another order than the 24 they are multiplied with.

Costs are whole multiples of 1/48, so sums are taken in integers and are exact.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from voxstrata.base.compiled import jit, thread_count
from voxstrata.base.errors import InputError, UsageError
from voxstrata.phonology.ipa import need

NORMALIZATIONS = ("longer", "mean", "none")


@cache
def _feature_table() -> Any:
    """PanPhon's table; takes 2 s to load."""
    return need("panphon").FeatureTable()


@lru_cache(maxsize=1 << 16)
def _segments(word: str) -> tuple[tuple[str, ...], str]:
    """Segments of one word, longest first as PanPhon cuts them, and the characters it does not know."""
    table = _feature_table()
    found = table.segs_safe(table.standardize_tones(word, ["¹", "²", "³", "⁴", "⁵"]))
    known = [table.seg_known(segment, normalize=False) for segment in found]
    segments = tuple(s for s, k in zip(found, known, strict=True) if k)
    return segments, "".join(s for s, k in zip(found, known, strict=True) if not k)


@dataclass(frozen=True, eq=False)
class Phones:
    """Strings of segments as PanPhon sees them.

    features: (segment types, 24) int8 in {-1, 0, 1}. codes: (segments,) int32, types of all strings one after the
    other. offsets: (strings + 1,) int64; string i is codes[offsets[i]:offsets[i + 1]].
    unknown: characters of each string that PanPhon does not know and passes over, spaces aside.
    """

    features: npt.NDArray[np.int8]
    codes: npt.NDArray[np.int32]
    offsets: npt.NDArray[np.int64]
    unknown: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> npt.NDArray[np.int64]:
        """Segments of each string, (strings,) int64."""
        return np.diff(self.offsets)

    @classmethod
    def from_ipa(cls, ipa: Sequence[str]) -> Self:
        """Cut IPA strings into segments; spaces between words are passed over.

        Raises InputError without strings, or when PanPhon is not installed.
        """
        if not ipa:
            raise InputError("no IPA: the list is empty")
        types: dict[str, int] = {}
        strings: list[list[int]] = []
        unknown: list[str] = []
        for text in ipa:
            words = [_segments(word) for word in text.split()]
            strings.append([types.setdefault(s, len(types)) for segments, _ in words for s in segments])
            unknown.append("".join(characters for _, characters in words))
        table = _feature_table()
        features = np.array([table.fts(s).numeric() for s in types], np.int8).reshape(len(types), len(table.names))
        offsets = np.concatenate([[0], np.cumsum([len(string) for string in strings])]).astype(np.int64)
        codes = np.array([code for string in strings for code in string], np.int32)
        return cls(features, codes, offsets, tuple(unknown))


def feature_distances(x: Phones, y: Phones, normalize: str = "longer") -> npt.NDArray[np.float32]:
    """Feature edit distance of every string of x (N) to every one of y (M), (N, M) float32; 0 where both are empty.

    normalize: "longer" divides by the number of segments of the longer string (PanPhon's `_div_maxlen`), "mean" by the
    mean of both numbers, "none" leaves the sum of costs. Runs on `thread_count()` threads.
    Raises UsageError for another normalization.
    """
    if normalize not in NORMALIZATIONS:
        raise UsageError(f"unknown normalization {normalize!r}; known: {', '.join(NORMALIZATIONS)}")
    a, b = x.features.astype(np.int32), y.features.astype(np.int32)
    width = max(a.shape[1], b.shape[1])
    if not len(a) or not len(b):  # one side is empty strings only: no segment is ever replaced
        replace = np.zeros((max(1, len(a)), max(1, len(b))), np.int32)
    else:
        replace = np.abs(a[:, None, :] - b[None, :, :]).sum(axis=2, dtype=np.int32)
    x_gap, y_gap = (np.where(f == 0, 1, 2).sum(axis=1, dtype=np.int32) for f in (a, b))
    out = np.empty((len(x), len(y)), np.int32)

    def part(first: int) -> None:
        last = min(first + step, len(x))
        _edit_distances((x.codes, x.offsets, x_gap), (y.codes, y.offsets, y_gap), replace, first, last, out)

    threads = thread_count()
    step = max(1, -(-len(x) // (8 * threads)))
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(part, range(0, len(x), step)))
    lengths = x.lengths[:, None], y.lengths[None, :]
    by: dict[str, Any] = {"longer": np.maximum(*lengths), "mean": (lengths[0] + lengths[1]) / 2, "none": 1.0}
    length = by[normalize]
    distances: npt.NDArray[np.float32] = (out / (2 * max(width, 1) * np.maximum(length, 0.5))).astype(np.float32)
    return distances


@jit
def _edit_distances(strings: Any, others: Any, replace: Any, first: int, last: int, out: Any) -> None:
    """Rows first … last - 1 of the (N, M) int32 edit distances, one row of the table held at a time.

    strings, others: codes, offsets, and what inserting each type costs. replace: what replacing one by another costs.
    """
    (x, x_offsets, x_gap), (y, y_offsets, y_gap) = strings, others
    longest = 0
    for j in range(len(y_offsets) - 1):
        longest = max(longest, y_offsets[j + 1] - y_offsets[j])
    row = np.empty(longest + 1, np.int32)
    gaps = np.empty(len(y), np.int32)
    for k in range(len(y)):
        gaps[k] = y_gap[y[k]]
    for i in range(first, last):
        for j in range(len(y_offsets) - 1):
            begin = y_offsets[j]
            m = y_offsets[j + 1] - begin
            row[0] = 0
            for k in range(m):
                row[k + 1] = row[k] + gaps[begin + k]
            for n in range(x_offsets[i], x_offsets[i + 1]):
                costs = replace[x[n]]
                gap = x_gap[x[n]]
                diagonal = row[0]
                left = row[0] + gap
                row[0] = left
                for k in range(m):
                    above = row[k + 1]
                    best = min(diagonal + costs[y[begin + k]], above + gap)
                    best = min(best, left + gaps[begin + k])
                    diagonal = above
                    row[k + 1] = best
                    left = best
            out[i, j] = row[m]
