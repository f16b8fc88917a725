"""Recall, reciprocal rank, chance and bootstrap intervals, against enumeration, sorting and ranx."""

from __future__ import annotations

import importlib.util
import itertools
import json
import math
import os
import subprocess
import sys
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from voxstrata.base.errors import InputError, UsageError
from voxstrata.evaluation import MeanEvaluation, Resamples, evaluate, positives_from_groups
from voxstrata.evaluation.bootstrap import percentile_interval
from voxstrata.evaluation.metrics import best_ranks, chance_at_k, chance_mrr


@given(st.integers(1, 6), st.data())
def test_chance_is_the_figure_of_all_orders(candidates: int, data: st.DataObject) -> None:
    k = data.draw(st.integers(1, 8))
    counts = data.draw(st.lists(st.integers(1, candidates), min_size=1, max_size=3))
    orders = list(itertools.permutations(range(candidates)))
    first = [[min(order[:p]) for order in orders] for p in counts]  # places from 0 of the first of p positives
    recall = [sum(place < k for place in places) / len(orders) for places in first]
    reciprocal = [sum(1 / (place + 1) for place in places) / len(orders) for places in first]
    assert chance_at_k(np.array(counts), candidates, k) == pytest.approx(sum(recall) / len(counts))
    assert chance_mrr(np.array(counts), candidates) == pytest.approx(sum(reciprocal) / len(counts))


def test_chance_of_a_large_pool_equals_the_binomials() -> None:
    pool, p = 5_000, 3
    expected = 1 - math.comb(pool - p, 10) / math.comb(pool, 10)
    assert chance_at_k(np.array([p]), pool, 10) == pytest.approx(expected, rel=1e-9)
    ranks = range(1, pool - p + 2)
    expected = math.fsum(math.comb(pool - r, p - 1) / r for r in ranks) / math.comb(pool, p)
    assert chance_mrr(np.array([p]), pool) == pytest.approx(expected, rel=1e-9)
    none = np.array([], np.int64)
    assert math.isnan(chance_at_k(none, 10, 1))
    assert math.isnan(chance_mrr(none, 10))


@given(st.data())
def test_figures_equal_sorting_every_row_with_positives_last_among_equals(data: st.DataObject) -> None:
    n, m = data.draw(st.integers(1, 6)), data.draw(st.integers(1, 6))
    k = data.draw(st.integers(1, 7))
    scores = np.array(data.draw(st.lists(st.integers(-2, 2), min_size=n * m, max_size=n * m)), np.float32)
    scores = scores.reshape(n, m)
    groups_x = data.draw(st.lists(st.integers(0, 3), min_size=n, max_size=n))
    groups_y = data.draw(st.lists(st.integers(0, 3), min_size=m, max_size=m))
    places = []
    for row, group in zip(scores.tolist(), groups_x, strict=True):
        if group in groups_y:
            order = sorted(range(m), key=lambda j: (-row[j], groups_y[j] == group))
            places.append(next(i for i, j in enumerate(order, start=1) if groups_y[j] == group))
    found = evaluate(scores, positives_from_groups(groups_x, groups_y), [k])
    assert (found.queries, found.queries_without_partner) == (len(places), n - len(places))
    assert found.candidates == found.candidates_max == m
    assert found.metrics == (f"recall@{k}", "mrr")
    if places:
        expected = [sum(p <= k for p in places) / len(places), sum(1 / p for p in places) / len(places)]
        assert found.values.tolist() == pytest.approx(expected)
    else:
        assert np.isnan(found.values).all()


RANX = """
import json, sys, ranx
qrels, run, metrics = json.load(sys.stdin)
found = ranx.evaluate(ranx.Qrels(qrels), ranx.Run(run), metrics, threads=1)
print(json.dumps({metric: float(value) for metric, value in found.items()}))
"""


@pytest.mark.long  # ranx compiles itself first
def test_recall_and_mrr_equal_those_of_ranx() -> None:
    if importlib.util.find_spec("ranx") is None:
        pytest.skip("ranx is no dependency; install it to compare with it")
    rng = np.random.default_rng(0)
    positives = positives_from_groups(rng.integers(0, 12, 40), rng.integers(0, 12, 60))
    scores = rng.standard_normal(positives.shape) + positives  # without ties, which ranx breaks as it pleases
    asked = np.flatnonzero(positives.any(axis=1))
    qrels = {f"q{i}": {f"d{j}": 1 for j in np.flatnonzero(positives[i])} for i in asked}
    run = {f"q{i}": {f"d{j}": s for j, s in enumerate(scores[i].tolist())} for i in asked}
    metrics = ["hit_rate@1", "hit_rate@5", "hit_rate@10", "mrr"]
    # A process of its own, where numba does not compile: that takes ranx minutes.
    out = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", RANX],
        input=json.dumps([qrels, run, metrics]),
        env=os.environ | {"NUMBA_DISABLE_JIT": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    theirs = json.loads(out.stdout.splitlines()[-1])
    assert evaluate(scores, positives).values.tolist() == pytest.approx([theirs[m] for m in metrics], abs=1e-12)


def test_perfect_and_reversed_scores() -> None:
    positives = np.eye(5, dtype=bool)
    perfect = np.eye(5, dtype=np.float32)
    assert evaluate(perfect, positives).values.tolist() == [1, 1, 1, 1]
    assert evaluate(-perfect, positives, [1, 4, 5]).values.tolist() == [0, 0, 1, 1 / 5]


def test_equal_scores_earn_nothing() -> None:
    assert best_ranks(np.zeros((2, 4), np.float32), np.eye(2, 4, dtype=bool)).tolist() == [4, 4]
    # Two recordings of one sentence tie with each other, which costs nothing.
    assert best_ranks(np.array([[1.0, 1.0, 0.0]]), np.array([[True, True, False]])).tolist() == [1]


def test_ranking_takes_blocks_not_copies_of_the_matrix() -> None:
    rng = np.random.default_rng(1)
    scores = rng.standard_normal((4000, 4000), np.float32)
    positives = np.eye(4000, dtype=bool)
    expected = [1 + sum(row >= row[i]) - 1 for i, row in ((i, scores[i]) for i in (0, 1047, 1048, 3999))]
    tracemalloc.start()
    ranks = best_ranks(scores, positives)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert ranks[[0, 1047, 1048, 3999]].tolist() == expected
    assert peak < scores.nbytes / 2


def test_a_resample_weighs_every_recording_by_how_often_its_sentence_was_drawn() -> None:
    rng = np.random.default_rng(2)
    groups = np.array(["c", "a", "b", "a", "e", "c", "a"])
    values = rng.standard_normal((7, 2))
    resamples = Resamples(np.unique(groups), 50, seed=4)
    draws = np.random.default_rng(4)
    for mean in resamples.means(values, groups):
        drawn = [["a", "b", "c", "e"][i] for i in draws.integers(4, size=4)]
        rows = [values[i] for name in drawn for i in np.flatnonzero(groups == name)]
        np.testing.assert_allclose(mean, np.mean(rows, axis=0), rtol=1e-12)


def test_a_resample_without_any_query_is_left_out_of_the_interval() -> None:
    resamples = Resamples([0, 1], 400)
    means = resamples.means(np.array([[1.0], [3.0]]), [0, 0])  # group 1 has no value: a quarter draws it twice
    missing = np.isnan(means[:, 0]).mean()
    assert 0.15 < missing < 0.35
    assert percentile_interval(means).tolist() == [[2.0], [2.0]]
    assert np.isnan(percentile_interval(np.full((5, 1), np.nan))).all()


def test_the_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    # 60 sentences of 3 recordings that hit or miss together: per recording the interval would be far too narrow.
    rng = np.random.default_rng(3)
    truth, covered, runs = 0.3, 0, 200
    groups = np.repeat(np.arange(60), 3)
    resamples = Resamples(groups, 300)
    for _ in range(runs):
        hits = (rng.random(60) < truth).repeat(3)[:, None].astype(float)
        low, high = percentile_interval(resamples.means(hits, groups))[:, 0]
        covered += low <= truth <= high
    assert 0.88 <= covered / runs <= 0.99


def test_intervals_come_with_groups_and_are_the_same_every_time() -> None:
    rng = np.random.default_rng(5)
    groups = np.repeat([f"g{i}" for i in range(20)], 2)
    positives = positives_from_groups(groups, groups)
    scores = rng.standard_normal(positives.shape) + 1.5 * positives
    found = evaluate(scores, positives, groups=groups, resamples=Resamples(groups, 500))
    estimate = found.estimates["recall@1"]
    assert estimate.low < estimate.value < estimate.high
    again = evaluate(scores, positives, groups=groups, resamples=Resamples(np.unique(groups)[::-1], 500))
    assert np.array_equal(found.samples, again.samples)
    assert math.isnan(evaluate(scores, positives).estimates["recall@1"].low)
    with pytest.raises(InputError, match="group of each row, 40 in all"):
        evaluate(scores, positives, resamples=Resamples(groups))
    with pytest.raises(InputError, match="'g19' is not among"):
        evaluate(scores, positives, groups=groups, resamples=Resamples(groups[:-2]))
    with pytest.raises(UsageError, match="at least 1"):
        Resamples(groups, 0)
    with pytest.raises(InputError, match="no groups"):
        Resamples([])


def test_a_mean_takes_directions_with_queries_alone() -> None:
    positives = np.eye(2, dtype=bool)
    resamples = Resamples([0, 1], 100)
    forward = evaluate(np.array([[0.9, 0.1], [0.8, 0.2]]), positives, [1], [0, 1], resamples)  # one hit
    backward = evaluate(np.array([[0.9, 0.1], [0.1, 0.9]]), positives, [1], [0, 1], resamples)  # two hits
    empty = evaluate(np.ones((3, 9)), np.zeros((3, 9), bool), [1], [0, 1, 1], resamples)
    mean = MeanEvaluation()
    for direction in (forward, empty, backward):
        mean.add(direction)
    result = mean.result()
    assert (result.values[0], result.chance[0], result.queries, result.queries_without_partner) == (0.75, 0.5, 4, 3)
    assert (result.candidates, result.candidates_max) == (2, 2)
    np.testing.assert_allclose(result.samples, (forward.samples + backward.samples) / 2)
    with pytest.raises(UsageError, match="different metrics"):
        mean.add(evaluate(np.ones((2, 2)), positives, [2]))
    with pytest.raises(UsageError, match="at least one direction"):
        MeanEvaluation().result()


def test_a_mean_in_a_resample_is_over_the_directions_it_has_queries_of() -> None:
    resamples = Resamples(["a", "b"], 200)
    positives = positives_from_groups(["a", "b"], ["a", "b"])
    both = evaluate(np.eye(2), positives, [1], ["a", "b"], resamples)
    one = evaluate(np.array([[0.0, 1.0]]), positives[:1], [1], ["a"], resamples)  # only a is asked, and missed
    mean = MeanEvaluation()
    mean.add(both)
    mean.add(one)
    without_a = np.isnan(one.samples[:, 0])
    assert 0.1 < without_a.mean() < 0.4
    assert mean.result().samples[:, 0].tolist() == np.where(without_a, 1.0, 0.5).tolist()


def test_what_cannot_be_ranked_is_refused() -> None:
    eye = np.eye(2, dtype=bool)
    with pytest.raises(InputError, match="NaN"):
        evaluate(np.array([[np.nan, 1], [1, 1]]), eye)
    with pytest.raises(InputError, match="one shape"):
        evaluate(np.ones((2, 3)), eye)
    with pytest.raises(UsageError, match="k is 0"):
        evaluate(np.ones((2, 2)), eye, [0])
    with pytest.raises(InputError, match="without a group"):
        positives_from_groups(["a", None], ["a", "b"])
    with pytest.raises(InputError, match="never be equal"):
        positives_from_groups(["1"], [1])
