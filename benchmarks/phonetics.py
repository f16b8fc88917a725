"""Phonetic distances of all pairs of two sets of sentences, beside PanPhon's own.

The sentences are made up: 5 to 30 words each (read sentences of FLEURS have about 20), drawn by Zipf's law from a
vocabulary for each set, words of 2 to 10 segments. Compilation is timed apart, before the rest. PanPhon has one
function for one pair, in Python; it is timed on `--sample` pairs drawn at random, and its time for all pairs is
extrapolated from these. Exit status 1 when a distance of the sample differs from PanPhon's by more than 1e-6.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from _common import Table, environment, pin, say, write_report
from panphon.distance import Distance

from voxstrata.phonology.closest_words import Words, closest_words
from voxstrata.phonology.feature_distance import Phones, feature_distances

SEGMENTS = (
    "a e i o u p b t d k ɡ m n ɲ s z f v x tʃ l r ɾ j w",
    "a ɛ i ɔ u ɨ pʲ p bʲ b tʲ t d k ɡ m n nʲ s z ʃ ʒ f v x ts l ɫ r j",
)
WORDS, LENGTHS = (5, 30), (2, 10)  # words of a sentence, segments of a word: smallest, largest
TOLERANCE = 1e-6


def sentences(segments: list[str], count: int, types: int, rng: np.random.Generator) -> list[str]:
    """So many sentences of made-up words."""
    words = ["".join(rng.choice(segments, n)) for n in rng.integers(LENGTHS[0], LENGTHS[1] + 1, types)]
    often = 1 / np.arange(1, types + 1)
    sizes = rng.integers(WORDS[0], WORDS[1] + 1, count)
    return [" ".join(rng.choice(words, n, p=often / often.sum())) for n in sizes]


def timed(repeats: int, work: Callable[[], Any]) -> tuple[float, Any]:
    """Wall seconds of the fastest turn, and what it returned."""
    best, found = np.inf, None
    for _ in range(repeats):
        begin = time.perf_counter()
        found = work()
        best = min(best, time.perf_counter() - begin)
    return best, found


def main() -> int:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--sentences", type=int, default=1000, help="in each of the two sets")
    p.add_argument("--types", type=int, default=5000, help="words in each vocabulary")
    p.add_argument("--sample", type=int, default=300, help="pairs that PanPhon is timed on")
    p.add_argument("--repeats", type=int, default=3, help="turns of ours, of which the fastest counts")
    p.add_argument("--threads", type=int, default=2, help="cores and threads")
    p.add_argument("--out", type=Path, default=Path("bench"), help="folder for the report (JSON and Markdown)")
    args = p.parse_args()
    pin(args.threads)
    rng = np.random.default_rng(0)
    n = args.sentences
    x, y = (sentences(segments.split(), n, args.types, rng) for segments in SEGMENTS)
    compiling, _ = timed(1, lambda: (distances(x[:2], y[:2]), words(x[:2], y[:2])))
    say(f"compiled in {compiling:.1f} s")
    cutting, (a, b) = timed(1, lambda: (Phones.from_ipa(x), Phones.from_ipa(y)))
    whole, found = timed(args.repeats, lambda: feature_distances(a, b))
    say(f"sentences {whole:.2f} s")
    by_word, _ = timed(args.repeats, lambda: words(x, y))
    say(f"closest words {by_word:.2f} s")
    panphon = Distance()
    panphon.feature_edit_distance_div_maxlen(x[0], y[0])  # loads its table
    at = rng.integers(n, size=(args.sample, 2))
    one, theirs = timed(1, lambda: [panphon.feature_edit_distance_div_maxlen(x[i], y[j]) for i, j in at])
    worst = float(np.abs(found[at[:, 0], at[:, 1]] - np.array(theirs)).max())
    pairs = n * n
    rows = [
        ["cut into segments", "–", f"{cutting:.2f}", "–"],
        ["whole sentences", f"{pairs:,}", f"{whole:.2f}", f"{pairs / whole:,.0f}"],
        ["closest words", f"{pairs:,}", f"{by_word:.2f}", f"{pairs / by_word:,.0f}"],
        ["PanPhon, whole sentences", f"{args.sample:,}", f"{one:.2f}", f"{args.sample / one:,.1f}"],
    ]
    facts = environment(args.threads) | {name: version(name) for name in ("panphon", "numba")}
    segments = float(np.mean([*a.lengths, *b.lengths]))
    hours = one / args.sample * pairs / 3600
    write_report(
        "phonetics",
        "Phonetic distances of all pairs",
        args,
        facts,
        {"compiling": compiling, "cutting": cutting, "sentences": whole, "words": by_word, "panphon": one,
         "worst": worst, "mean_segments": segments},
        [Table(f"{n:,} × {n:,} sentences of {segments:.0f} segments on average:", ["", "pairs", "s", "pairs/s"], rows)],
        [
            f"All pairs by PanPhon would take {hours:.1f} hours on one core, extrapolated from the sample.",
            f"Largest difference from PanPhon on the sample: {worst:.1e}, allowed {TOLERANCE:.0e}.",
            f"Compiling, or loading what was compiled before: {compiling:.1f} s, PanPhon's table included.",
        ],
    )  # fmt: skip
    return int(not worst <= TOLERANCE)


def distances(x: list[str], y: list[str]) -> np.ndarray:
    return feature_distances(Phones.from_ipa(x), Phones.from_ipa(y))


def words(x: list[str], y: list[str]) -> np.ndarray:
    return closest_words(Words.of(x), Words.of(y)).distance


if __name__ == "__main__":
    sys.exit(main())
