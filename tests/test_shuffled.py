"""Where groups, or hits, are matched at random, tables fall to chance, over 20 seeds.

Those of `align` in test_align.py and test_planted_strengths.py, those of `words` in test_words_shuffled.py.
"""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from planted import SEGMENTS
from stores import MadeUpStore

from voxstrata.corpus import Corpus
from voxstrata.corpus.table import CORPUS_SCHEMA
from voxstrata.evaluation import Resamples
from voxstrata.evaluation.bootstrap import percentile_interval
from voxstrata.evaluation.logistic import fit_logistic
from voxstrata.studies.phonetics.measure import measure_phonetics
from voxstrata.studies.phonetics.pairs import SoundDirection
from voxstrata.studies.retrieve import RetrievalOptions, retrieve

pytest.importorskip("panphon")

SEEDS = 20


def error(values: list[float]) -> float:
    """Standard error of the mean over seeds."""
    return float(np.std(values, ddof=1) / np.sqrt(len(values)))


def meanings(seed: int, shuffled: bool, groups: int = 30) -> MadeUpStore:
    """Every sentence in two languages, told apart by its meaning; shuffled: matched at random."""
    rng = np.random.default_rng(seed)
    meaning = rng.standard_normal((groups, 16))
    order = rng.permutation(groups) if shuffled else np.arange(groups)
    names = [(language, g) for language in "ab" for g in range(groups)]
    columns = {
        "id": [f"{language}{g:02d}" for language, g in names],
        "path": [f"{language}{g:02d}.wav" for language, g in names],
        "language": [language for language, _ in names],
        "group": [f"g{order[g] if language == 'b' else g}" for language, g in names],
        "text": [None] * len(names),
        "speaker": [None] * len(names),
    }
    table = pa.table(columns, schema=CORPUS_SCHEMA).append_column("seconds", pa.array([1.0] * len(names)))
    frames = [(meaning[g] + 2 * rng.standard_normal((8, 16))).astype(np.float32) for _, g in names]
    return MadeUpStore(table, {"final": frames})


def test_retrieval_of_shuffled_groups_is_chance_by_every_score_and_metric() -> None:
    found: dict[bool, dict[tuple[str, ...], list[tuple[float, float]]]] = {
        True: defaultdict(list),
        False: defaultdict(list),
    }
    for seed, shuffled in ((seed, shuffled) for seed in range(SEEDS) for shuffled in (True, False)):
        for r in retrieve(meanings(seed, shuffled), options=RetrievalOptions(ks=[1, 5], bootstrap=0)).table.to_pylist():
            if r["level"] == "mean" and (r["metric"].startswith("recall") or r["metric"] == "mrr"):
                key = (r["similarity"], r["score"], r["metric"])
                found[shuffled][key].append((r["value"], r["chance"]))
    assert len(found[True]) == 4 * 3 * 3  # similarities, scores, metrics
    for key, pairs in found[True].items():
        values, chances = zip(*pairs, strict=True)
        assert abs(np.mean(values) - chances[0]) < 4 * error(list(values)), key
        assert np.mean([value for value, _ in found[False][key]]) > 1.5 * chances[0], key  # and was found unshuffled


def translations(seed: int, shuffled: bool, folder: Path, groups: int = 40) -> tuple[SoundDirection, SoundDirection]:
    """Phonetics of sentences whose translations keep 70 % of the segments, or of the same matched at random."""
    rng = np.random.default_rng(seed)
    order = rng.permutation(groups) if shuffled else np.arange(groups)
    rows, given = [], {}
    for g in range(groups):
        first = rng.integers(len(SEGMENTS), size=int(rng.integers(8, 24)))
        second = np.where(rng.random(len(first)) < 0.7, first, rng.integers(len(SEGMENTS), size=len(first)))
        for language, sentence, group in (("a", first, g), ("b", second, int(order[g]))):
            name = f"{language}{g:02d}"
            rows.append({"id": name, "path": f"{name}.wav", "language": language, "group": f"g{group}"})
            given[name] = " ".join(
                "".join(SEGMENTS[s] for s in sentence[i : i + 4]) for i in range(0, len(sentence), 4)
            )
    there, back = measure_phonetics(
        Corpus(Path("/"), pa.Table.from_pylist(rows, CORPUS_SCHEMA)), folder, given=given
    ).directions
    return there, back


def test_phonetics_of_shuffled_groups_is_chance(tmp_path: Path) -> None:
    measures = {"quantile": 0.5, "like_length": 0.5, "closest": 1 / 40, "word_quantile": 0.5, "word_closest": 1 / 40}
    found: dict[bool, dict[str, list[float]]] = {True: defaultdict(list), False: defaultdict(list)}
    for seed, shuffled in ((seed, shuffled) for seed in range(SEEDS) for shuffled in (True, False)):
        both = translations(seed, shuffled, tmp_path / f"{seed}{shuffled}")
        for name in measures:
            found[shuffled][name].append(float(np.mean([getattr(d, name) for d in both])))
        found[shuffled]["nearer"].append(float(np.mean([d.others - d.distance for d in both])))
    for name, chance in measures.items():
        assert abs(np.mean(found[True][name]) - chance) < 4 * error(found[True][name]), name
        assert np.mean(found[False][name]) < 0.05 if chance == 0.5 else np.mean(found[False][name]) > 0.5, name
    assert abs(np.mean(found[True]["nearer"])) < 4 * error(found[True]["nearer"])


@pytest.mark.parametrize("planted", [0.0, 0.4, 1.0])
def test_the_fit_reports_the_planted_slope_and_none_of_shuffled_hits(planted: float) -> None:
    """300 pairs in three directions that share their groups; intervals by resampled groups hold the truth."""
    slopes, shuffled, covered, zero = [], [], 0, 0
    for seed in range(SEEDS):
        rng = np.random.default_rng(seed)
        z, strata, groups = rng.standard_normal(300), np.repeat([0, 1, 2], 100), np.tile(np.arange(100), 3)
        hits = rng.random(300) < 1 / (1 + np.exp(-(np.array([-1.5, 0.0, 1.0])[strata] + planted * z)))
        resamples = Resamples(groups, 200, seed)
        weights = np.concatenate([np.ones((1, 300)), resamples.drawn(groups)])
        found = fit_logistic(hits, z[:, None], strata, weights).slopes[:, 0]
        low, high = percentile_interval(found[1:, None])[:, 0]
        slopes.append(float(found[0]))
        covered += low <= planted <= high
        for stratum in range(3):
            hits[strata == stratum] = rng.permutation(hits[strata == stratum])
        found = fit_logistic(hits, z[:, None], strata, weights).slopes[:, 0]
        low, high = percentile_interval(found[1:, None])[:, 0]
        shuffled.append(float(found[0]))
        zero += low <= 0 <= high
    assert np.mean(slopes) == pytest.approx(planted, abs=4 * error(slopes))
    assert np.mean(shuffled) == pytest.approx(0, abs=4 * error(shuffled))
    assert min(covered, zero) >= 16  # of 20 at 95 %: fewer once in 400 times
