"""words: with meanings, or recordings, matched at random both kinds of pairs fall to chance, over 20 seeds."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from test_words import made_up, spoken, whole

from voxstrata.studies.words.measure import compare_words
from voxstrata.studies.words.pairs import WORD_KINDS, make_pairs
from voxstrata.studies.words.table import WORD_SIMILARITIES

pytest.importorskip("panphon")

SEEDS = 20


def test_shuffled_words_fall_to_chance_and_the_controls_stay(tmp_path: Path) -> None:
    """meanings: a word of yy keeps its sound and gets another's meaning. recordings: it gets another's recording."""
    aucs: dict[tuple[str, str, str], list[float]] = defaultdict(list)
    held: dict[tuple[str, str], int] = defaultdict(int)
    for seed in range(SEEDS):
        words = made_up(seed)
        store, owners = spoken(tmp_path / f"{seed}.zarr", words, seed, meaning=0.4, sound=0.8)
        rng = np.random.default_rng(seed)
        order = rng.permutation(len(words) // 2)
        other = {i: 2 * int(order[i // 2]) + 1 if words[i].language == "yy" else i for i in range(len(words))}
        renamed = [replace(word, meaning=words[other[i]].meaning) for i, word in enumerate(words)]
        for what, entries, owner_of in (
            ("as they are", words, owners),
            ("meanings", renamed, owners),
            ("recordings", words, {name: other[i] for name, i in owners.items()}),
        ):
            result = compare_words(store, entries, owner_of, make_pairs(entries), {}, bootstrap=40)
            for (similarity, kind), row in whole(result.table).items():
                aucs[what, similarity, kind].append(row["auc"])
                if (what, similarity) == ("recordings", "seqsim_f1"):
                    held["recordings", kind] += row["low"] <= 0.5 <= row["high"]

    def mean(what: str, similarity: str, kind: str) -> tuple[float, float]:
        values = aucs[what, similarity, kind]
        return float(np.mean(values)), float(np.std(values, ddof=1) / np.sqrt(SEEDS))

    for similarity in WORD_SIMILARITIES:
        for kind in WORD_KINDS:
            assert mean("as they are", similarity, kind)[0] > 0.65, (similarity, kind)
            value, error = mean("recordings", similarity, kind)
            assert abs(value - 0.5) < 4 * error, (similarity, kind)
        value, error = mean("meanings", similarity, "synonyms")
        assert abs(value - 0.5) < 4 * error
        assert mean("meanings", similarity, "near_homophones")[0] > 0.65  # of sound, which stays
    assert mean("recordings", "phonetic", "near_homophones")[0] == 1.0  # by their definition, whoever speaks
    assert min(held.values()) >= 16  # intervals hold 0.5: of 20 at 95 %, fewer once in 400 times
