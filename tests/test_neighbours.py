"""Mutual nearest neighbours: the agreement by definition, beside what random matchings reach."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
from stores import ends
from test_retrieval_table import FakeStore, fake_store

from voxstrata.base.errors import InputError, UsageError
from voxstrata.evaluation import linear_cka, mutual_neighbours
from voxstrata.evaluation.neighbours import PERMUTATIONS
from voxstrata.studies.retrieve import Retrieval, RetrievalOptions, retrieve


def by_definition(x: np.ndarray, y: np.ndarray, k: int) -> float:
    """A loop over rows without ties: the share of the k nearest in x that are among the k nearest in y."""

    def nearest(states: np.ndarray, i: int) -> set[int]:
        cosine = [float(states[i] @ z / np.linalg.norm(states[i]) / np.linalg.norm(z)) for z in states]
        return set(sorted((j for j in range(len(states)) if j != i), key=lambda j: -cosine[j])[:k])

    return float(np.mean([len(nearest(x, i) & nearest(y, i)) / k for i in range(len(x))]))


def noisy(n: int, noise: float, seed: int = 0, width: int = 16) -> tuple[np.ndarray, np.ndarray]:
    """n random rows of 16, and the same in other directions of `width`, with noise."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((n, 16))
    return x, x @ np.linalg.qr(rng.standard_normal((width, 16)))[0].T + noise * rng.standard_normal((n, width))


@pytest.mark.parametrize("k", [1, 3, 10])
def test_it_equals_its_definition(k: int) -> None:
    x, y = noisy(30, 0.7)
    found = mutual_neighbours(x, y, k, permutations=0)
    assert found.shares.mean() == pytest.approx(by_definition(x, y, k))
    assert found.chance == k / 29 < found.shares.mean() < 1


def test_points_on_a_circle() -> None:
    """At 0, 10, 30, 60, 100 degrees each has one nearest; moved past each other, two of five keep theirs."""
    here, there = np.radians([0, 10, 30, 60, 100]), np.radians([0, 10, 90, 60, 130])
    x, y = (np.stack([np.cos(a), np.sin(a)], axis=1) for a in (here, there))
    # nearest in x: 1, 0, 1, 2, 3; in y: 1, 0, 3, 2, 2
    assert mutual_neighbours(x, y, 1, permutations=0).shares.tolist() == [1, 1, 0, 1, 0]


def test_turned_and_stretched_states_agree_wholly_and_at_the_smallest_p() -> None:
    x, y = noisy(40, 0, width=64)
    found = mutual_neighbours(x, 7 * y, 5)
    assert found.shares.tolist() == [1.0] * 40
    assert len(found.null) == PERMUTATIONS
    assert found.null.max() < 1


def test_chance_is_the_mean_over_all_matchings_and_the_null_draws_from_them() -> None:
    x, y = noisy(7, 1.0, seed=3)
    every = [by_definition(x, y[list(p)], 2) for p in itertools.permutations(range(7))]
    found = mutual_neighbours(x, y, 2, permutations=4000)
    assert found.chance == pytest.approx(np.mean(every))
    for share in (0.025, 0.5, 0.9, 0.975):  # sampled from 5,040 matchings, in steps of 1/14
        assert found.null.mean() == pytest.approx(found.chance, abs=0.01)
        assert np.quantile(found.null, share) == pytest.approx(np.quantile(every, share), abs=1 / 14 + 1e-9)
    assert np.isin(found.null.round(9), np.round(every, 9)).all()


def test_unrelated_states_agree_by_chance_at_any_width_where_cka_grows() -> None:
    rng = np.random.default_rng(0)
    agreement, cka = {}, {}
    for width in (4, 1024):
        pairs = [rng.standard_normal((2, 50, width)) for _ in range(20)]
        found = [mutual_neighbours(x, y, 10, seed=n) for n, (x, y) in enumerate(pairs)]
        agreement[width] = np.mean([f.shares.mean() for f in found])
        cka[width] = np.mean([linear_cka(x, y).value for x, y in pairs])
        assert agreement[width] == pytest.approx(10 / 49, abs=0.01)
        p = [np.mean(f.null >= f.shares.mean()) for f in found]
        assert sum(share < 0.05 for share in p) <= 4  # of 20: more happens once in 400 times
    assert cka[1024] > cka[4] + 0.5


def test_states_that_do_not_differ_agree_by_chance_whatever_their_order() -> None:
    """Places by position would be the same places in both sets."""
    rng = np.random.default_rng(1)
    same = np.repeat(rng.standard_normal((1, 512)), 30, axis=0) * rng.uniform(0.5, 2, (30, 1))
    found = mutual_neighbours(same, same, 4)
    np.testing.assert_allclose(found.shares, 4 / 29)
    np.testing.assert_allclose(found.null, 4 / 29)
    three = np.eye(3)[[0, 0, 0, 1, 1, 1, 2, 2, 2]]  # of 2 neighbours both are the others of its kind, in any order
    assert mutual_neighbours(three, three[:, ::-1], 2, permutations=0).shares.tolist() == [1.0] * 9
    np.testing.assert_allclose(mutual_neighbours(three, three, 1, permutations=0).shares, 0.5)


def test_what_has_no_neighbours() -> None:
    x, y = noisy(5, 1)
    found = mutual_neighbours(x, y, 4)
    assert math.isnan(found.chance)
    assert np.isnan(found.shares).all()
    assert np.isnan(found.null).all()
    for bad in (0.0, np.nan, np.inf):
        y[3] = bad
        with pytest.raises(InputError, match="row 3 is zero, NaN or infinite"):
            mutual_neighbours(x, y, 2)
    with pytest.raises(InputError, match=r"as many rows, not \(5, 16\) and \(4, 16\)"):
        mutual_neighbours(x, y[:4], 2)
    with pytest.raises(UsageError, match="k is 0"):
        mutual_neighbours(x, x, 0)
    with pytest.raises(UsageError, match="0 neighbours"):
        RetrievalOptions(neighbours=0)


def rows_of(found: Retrieval, metric: str) -> dict[tuple[str, str, str], dict[str, Any]]:
    return {(r["output"], *ends(r)): r for r in found.table.to_pylist() if r["metric"] == metric}


def planted(noise: float) -> FakeStore:
    """40 sentences in three languages; `layer_02` is of no meaning at all."""
    store = fake_store(groups=40, noise=noise)
    rng = np.random.default_rng(9)
    store.frames["layer_02"] = [rng.standard_normal(x.shape).astype(np.float16) for x in store.frames["layer_02"]]
    return store


def test_retrieve_finds_agreement_where_it_is_planted() -> None:
    found = retrieve(planted(0.4), similarities="pooled_cosine", options=RetrievalOptions(["raw"], neighbours=5))
    rows = rows_of(found, "mutual_knn@5")
    assert len(rows) == 3 * (6 + 3 + 1)
    assert {row["similarity"] for row in rows.values()} == {"pooled_cosine"}
    mean, noise = rows["final", "mean", "mean"], rows["layer_02", "mean", "mean"]
    for row in rows.values():
        assert row["chance"] == pytest.approx(5 / 39)
        assert row["null_low"] < row["null_mean"] < row["null_high"]
        assert row["null_mean"] == pytest.approx(5 / 39, abs=0.005)
        assert row["candidates"] == 40
        assert row["low"] < row["value"] < row["high"]
    assert mean["p"] == 1 / 1001
    assert mean["value"] > 2 * mean["null_high"]
    assert noise["p"] > 0.01
    assert noise["below_best_low"] > 0
    there, back = rows["final", "en", "uk"], rows["final", "uk", "en"]
    assert {k: v for k, v in there.items() if k not in ("source", "target")} == {
        k: v for k, v in back.items() if k not in ("source", "target")
    }
    # of three pairs the mean varies less than each
    assert mean["null_high"] - mean["null_low"] < 0.75 * (there["null_high"] - there["null_low"])
    assert (found.settings["mutual_knn_k"], found.settings["mutual_knn_permutations"]) == (5, 1000)
    text = found.to_markdown()
    assert "Mutual nearest neighbours of pooled states" in text
    assert f"| {100 * mean['value']:.1f} [" in text
    assert "| 0.000999 |" in text


def test_too_few_sentences_or_no_permutations_give_no_figure() -> None:
    few = retrieve(fake_store(), similarities="pooled_cosine", options=RetrievalOptions(["raw"]))
    assert {(r["value"], r["p"], r["queries"]) for r in rows_of(few, "mutual_knn@10").values()} == {(None, None, 0)}
    assert "mutual_knn@10" in few.to_markdown()
    none = retrieve(planted(0.4), similarities="pooled_cosine", options=RetrievalOptions(["raw"], permutations=0))
    row = rows_of(none, "mutual_knn@10")["final", "mean", "mean"]
    assert (row["p"], row["null_low"]) == (None, None)
    assert row["value"] > row["chance"]
