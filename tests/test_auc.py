"""AUC of pairs against others: Mann–Whitney within strata, and a bootstrap that draws groups, not pairs."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from voxstrata.evaluation import Resamples
from voxstrata.evaluation.roc import AUC, Scored, auc


def scored(rng: np.random.Generator, n: int, names: int, shift: float = 0.0, same: bool = False) -> Scored:
    first = rng.integers(names, size=n)
    second = first if same else (first + rng.integers(1, names, size=n)) % names
    groups = np.array([f"g{i}" for i in range(names)])[np.stack([first, second], axis=1)]
    return Scored(np.round(rng.standard_normal(n) + shift, 1), groups)  # rounded: ties occur


def beaten(x: float, y: float) -> float:
    return float(x > y) + 0.5 * float(x == y)


def test_value_is_the_mean_share_of_beaten_references_of_the_own_stratum() -> None:
    rng = np.random.default_rng(0)
    strata = [(scored(rng, n, 6, shift=0.7), scored(rng, m, 6)) for n, m in ((7, 30), (3, 11))]
    wins = [np.mean([beaten(x, y) for y in reference.values]) for pairs, reference in strata for x in pairs.values]
    assert auc(strata, None).value == pytest.approx(np.mean(wins))
    ((pairs, reference), _) = strata
    plain = np.mean([beaten(x, y) for x, y in product(pairs.values, reference.values)])
    assert auc([(pairs, reference)], None).value == pytest.approx(plain)


def test_strata_are_not_compared_with_each_other() -> None:
    groups = np.array([["a", "b"]] * 4)
    low, high = (Scored(np.arange(4.0) + base, groups) for base in (0, 100))
    assert auc([(low, low), (high, high)], None).value == 0.5
    empty = Scored(np.empty(0), np.empty((0, 2), np.str_))
    assert auc([(low, low), (high, empty), (empty, low)], None).value == 0.5
    assert np.isnan(auc([(empty, low)], None).value)


@pytest.mark.parametrize("same", [True, False])
def test_interval_is_that_of_pairs_written_out_as_often_as_their_groups_were_drawn(same: bool) -> None:
    rng = np.random.default_rng(1)
    names = 5
    strata = [(scored(rng, 6, names, 0.5, same), scored(rng, 12, names)) for _ in range(2)]
    resamples = Resamples([f"g{i}" for i in range(names)], 200, seed=3)
    draws = resamples.drawn(resamples.groups)
    samples = []
    for draw in draws:
        times = dict(zip(resamples.groups.tolist(), draw.tolist(), strict=True))

        def copies(s: Scored, times: dict[str, int] = times) -> list[float]:
            out = []
            for value, (a, b) in zip(s.values, s.groups.tolist(), strict=True):
                out += [float(value)] * (times[a] if a == b else times[a] * times[b])
            return out

        wins = []
        for pairs, reference in strata:
            others = copies(reference)
            if others:
                wins += [np.mean([beaten(x, y) for y in others]) for x in copies(pairs)]
        if wins:
            samples.append(np.mean(wins))
    found = auc(strata, resamples)
    assert (found.low, found.high) == pytest.approx(tuple(np.percentile(samples, [2.5, 97.5])))


def test_blocks_of_resamples_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(2)
    strata = [(scored(rng, 9, 8, 0.3), scored(rng, 40, 8))]
    resamples = Resamples([f"g{i}" for i in range(8)], 50)
    whole = auc(strata, resamples)
    monkeypatch.setattr("voxstrata.evaluation.roc.WEIGHTS_AT_ONCE", 100)
    assert auc(strata, resamples) == whole


def test_pairs_that_share_groups_widen_the_interval() -> None:
    """A thousand pairs of ten words are no thousand observations."""
    rng = np.random.default_rng(4)
    reference = scored(rng, 500, 200)
    values = rng.standard_normal(1000)
    word = 2 * rng.standard_normal(10)
    few = np.repeat(np.arange(10), 100)
    names = np.array([f"g{i}" for i in range(200)])

    def width(of: np.ndarray, scores: np.ndarray) -> float:
        groups = np.stack([names[of], names[of]], axis=1)
        found = auc([(Scored(scores, groups), reference)], Resamples(names, 300))
        return found.high - found.low

    assert width(few, values + word[few]) > 2 * width(np.arange(1000) % 200, values)


def test_nothing_to_compare_is_no_number() -> None:
    found = auc([], Resamples(["a"], 3))
    assert all(np.isnan(v) for v in (found.value, found.low, found.high))
    assert isinstance(found, AUC)
