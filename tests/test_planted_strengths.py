"""Controls of `align` report how strongly each thing is planted beside meaning, and nothing of the others; 20 seeds."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from planted import GROUPS, SEGMENTS, Planted
from stores import MadeUpStore

from voxstrata.corpus import Corpus
from voxstrata.corpus.table import CORPUS_SCHEMA
from voxstrata.studies.align.measure import AlignOptions, align
from voxstrata.studies.phonetics.measure import measure_phonetics

pytest.importorskip("panphon")
pytestmark = pytest.mark.long  # forty corpora; tests/test_align.py has what is planted in twenty

SEEDS = 20
# how strongly what stands beside meaning
MIXED = {
    "meaning": {"meaning": 1.0},
    "sound": {"meaning": 1.0, "sound": 4.0},
    "more sound": {"meaning": 1.0, "sound": 12.0},
    "voice": {"meaning": 1.0, "speaker": 2.0},
    "more voice": {"meaning": 1.0, "speaker": 4.0},
    "duration": {"meaning": 1.0, "duration": 2.0},
}
PURE = ("meaning", "sound", "duration")
Figures = dict[tuple[str, str, str, str], np.ndarray]


def figures(stores: Callable[[int], tuple[MadeUpStore, str]]) -> Figures:
    """Means over directions by system, states, control and metric: one value for each seed."""
    found: dict[tuple[str, str, str, str], list[float]] = defaultdict(list)
    for seed in range(SEEDS):
        store, phonetics = stores(seed)
        result = align(store, phonetics, options=AlignOptions("pooled_cosine", bootstrap=0))
        for r in result.table.to_pylist():
            if r["level"] == "mean":
                found[r["system"], r["states"], r["control"], r["metric"]].append(r["value"])
    return {key: np.array(values, np.float64) for key, values in found.items()}


@pytest.fixture(scope="module")
def both(planted_corpora: list[Planted], tmp_path_factory: pytest.TempPathFactory) -> tuple[Figures, Figures]:
    """Of the mixtures; and of the planted outputs where every utterance has another's IPA."""
    root, planted = tmp_path_factory.mktemp("other"), planted_corpora

    def mixed(seed: int, mixture: dict[str, dict[str, float]]) -> MadeUpStore:
        """Means of the frames alone, a frame each: they are all that the pooled cosine sees."""
        store = planted[seed].store
        pure = {name: store.pooled(name, np.arange(len(store.utterances))) for name in store.outputs}
        means = {name: sum(w * pure[k] for k, w in added.items()) for name, added in mixture.items()}
        return MadeUpStore(store.utterances.drop(["status"]), {name: list(m[:, None]) for name, m in means.items()})

    def shuffled(seed: int) -> tuple[MadeUpStore, str]:
        store = mixed(seed, {name: {name: 1.0} for name in PURE})
        rng, given = np.random.default_rng(seed), {}
        for name in store.utterances["id"].to_pylist():
            given[name] = " ".join(SEGMENTS[s] for s in rng.integers(len(SEGMENTS), size=int(rng.integers(10, 45))))
        folder = root / str(seed)
        measure_phonetics(Corpus(Path("/"), store.utterances.select(CORPUS_SCHEMA.names)), folder, given=given)
        return store, str(folder)

    return figures(lambda seed: (mixed(seed, MIXED), planted[seed].phonetics)), figures(shuffled)


def clear(values: np.ndarray) -> float:
    """The mean over seeds in standard errors."""
    return float(values.mean() / (values.std(ddof=1) / np.sqrt(len(values))))


def test_the_more_sound_the_more_the_controls_of_sound_report(both: tuple[Figures, Figures]) -> None:
    f, _ = both
    names = ("meaning", "sound", "more sound")
    for metric, sign, control in (("log_odds_per_sd", 1, "fit"), ("recall@1_change", -1, "unlike")):
        none, some, more = (sign * f[name, "raw", control, metric] for name in names)
        assert clear(some - none) > 4, control
        assert clear(more - some) > 4, control
    # Among nine rivals there is less to lose, and sound that drowns meaning costs both pools alike: found, not graded.
    none, _, more = (-f[name, "raw", "closest", "recall@1_change"] for name in names)
    assert abs(clear(none)) < 4 < clear(more)


def test_voices_and_durations_are_not_taken_for_sound(both: tuple[Figures, Figures]) -> None:
    f, _ = both
    sound = {key[2:]: values.mean() for key, values in f.items() if key[:2] == ("more sound", "raw")}
    for name in ("meaning", "voice", "more voice", "duration"):
        slope = f[name, "raw", "fit", "log_odds_per_sd"]
        assert abs(clear(slope)) < 4, name
        assert abs(slope.mean()) < sound["fit", "log_odds_per_sd"] / 4, name
        whole, unlike = (f[name, "raw", *key].mean() for key in (("all", "recall@1"), ("fit", "recall@1_if_unlike")))
        assert unlike == pytest.approx(whole, abs=0.02), name
        given = f[name, "raw", "fit", "log_odds_per_sd_given_duration"]
        assert abs(given.mean()) < sound["fit", "log_odds_per_sd_given_duration"] / 4, name
        for control in ("unlike", "closest"):
            change = f[name, "raw", control, "recall@1_change"]
            assert abs(clear(change)) < 4, (name, control)
            assert abs(change.mean()) < abs(sound[control, "recall@1_change"]) / 2, (name, control)


def test_the_stronger_the_voice_the_more_of_recall_goes_with_the_means(both: tuple[Figures, Figures]) -> None:
    f, _ = both
    left = {n: f[n, "means removed", "all", "recall@1"].mean() / f[n, "raw", "all", "recall@1"].mean() for n in MIXED}
    assert left["more voice"] < left["voice"] - 0.1 < left["meaning"] - 0.2
    for name in ("meaning", "sound", "more sound", "duration"):
        assert left[name] == pytest.approx(1, abs=0.1), name


def test_hits_have_nothing_to_do_with_shuffled_sounds(both: tuple[Figures, Figures]) -> None:
    _, f = both
    for system in PURE:
        whole = f[system, "raw", "all", "recall@1"].mean()
        assert whole > 3 / GROUPS
        assert abs(clear(f[system, "raw", "fit", "log_odds_per_sd"])) < 4, system
        assert f[system, "raw", "fit", "recall@1_if_unlike"].mean() == pytest.approx(whole, abs=0.01), system
        assert f[system, "raw", "fit", "discrimination"].mean() < 0.02, system
        for control in ("unlike", "closest"):
            change = f[system, "raw", control, "recall@1_change"]
            assert abs(change.mean()) < max(0.01, abs(change.mean() / clear(change)) * 4), (system, control)
    heard = f["phonemes", "raw", "all", "recall@1"]
    assert abs(clear(heard - 1 / GROUPS)) < 4
