"""The order-aware score: equals its definition, and finds what SeqSim cannot, the order of the frames."""

from __future__ import annotations

import itertools

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_retrieval_table import FakeStore

from voxstrata.base.errors import InputError, UsageError
from voxstrata.retrieval import Ragged, seqsim
from voxstrata.retrieval.kernels.float32 import Float32
from voxstrata.retrieval.kernels.monotone import Monotone
from voxstrata.studies.retrieve import RetrievalOptions, retrieve

Utterances = list[npt.NDArray[np.floating]]


def random(lengths: list[int], d: int = 8, seed: int = 0) -> Utterances:
    rng = np.random.default_rng(seed)
    return [rng.standard_normal((t, d)).astype(np.float32) for t in lengths]


def cosines(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    a, b = (z.astype(np.float64) / np.linalg.norm(z.astype(np.float64), axis=1, keepdims=True) for z in (x, y))
    return a @ b.T


def over_all_paths(s: np.ndarray) -> float:
    """The best of every monotone path, each step weighed by how many frames it goes on."""

    def paths(i: int, j: int) -> list[float]:
        if (i, j) == (0, 0):
            return [2 * s[0, 0]]
        found = []
        for di, dj in ((1, 0), (0, 1), (1, 1)):
            if i >= di and j >= dj:
                found += [total + (di + dj) * s[i, j] for total in paths(i - di, j - dj)]
        return found

    return max(paths(s.shape[0] - 1, s.shape[1] - 1)) / sum(s.shape)


def loop(s: np.ndarray) -> float:
    """The recurrence in float64."""
    reached = np.full((s.shape[0] + 1, s.shape[1] + 1), -np.inf)
    for i, j in itertools.product(range(1, s.shape[0] + 1), range(1, s.shape[1] + 1)):
        here = s[i - 1, j - 1]
        before = 0.0 if i == j == 1 else reached[i - 1, j - 1]
        reached[i, j] = max(reached[i - 1, j] + here, reached[i, j - 1] + here, before + 2 * here)
    return float(reached[-1, -1]) / sum(s.shape)


def scores(xs: Utterances, ys: Utterances, kernel: Monotone | None = None) -> np.ndarray:
    kernel = kernel or Monotone()
    there, back = kernel.compare(kernel.pack(Ragged.from_list(xs)), kernel.pack(Ragged.from_list(ys)))
    np.testing.assert_array_equal(there, back)
    assert there.dtype == np.float32
    return there


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.integers(1, 20), min_size=1, max_size=5),
    st.lists(st.integers(1, 20), min_size=1, max_size=5),
    st.sampled_from([1, 2, 3, 7, 16, 2048]),
    st.integers(0, 1000),
)
def test_it_equals_the_recurrence_at_any_block_size(x: list[int], y: list[int], block_rows: int, seed: int) -> None:
    """Small blocks cut utterances of x anywhere."""
    xs, ys = random(x, seed=seed), random(y, seed=seed + 1)
    if seed % 3 == 0:  # all cosines negative
        xs, ys = [np.abs(a) for a in xs], [-np.abs(a) for a in ys]
    got = scores(xs, ys, Monotone(block_rows))
    np.testing.assert_allclose(got, [[loop(cosines(a, b)) for b in ys] for a in xs], rtol=0, atol=1e-6)


@pytest.mark.parametrize("shape", [(1, 1), (1, 4), (4, 1), (3, 4), (5, 5)])
def test_it_is_the_best_of_all_paths(shape: tuple[int, int]) -> None:
    (x,), (y,) = random([shape[0]], seed=3), random([shape[1]], seed=4)
    assert scores([x], [y])[0, 0] == pytest.approx(over_all_paths(cosines(x, y)), abs=1e-6)


def test_by_hand() -> None:
    """a b against a a b: all find their own, in order. Against b a only one step of four can."""
    a, b = np.eye(2, dtype=np.float32)[:, None]
    x, slow, turned = np.concatenate([a, b]), np.concatenate([a, a, b]), np.concatenate([b, a])
    assert scores([x], [x, slow, turned])[0].tolist() == [1.0, 1.0, 0.25]
    assert scores([a], [x])[0, 0] == pytest.approx(2 / 3)  # 2 · 1 + 0, of weight 3


def test_it_is_symmetric_and_at_most_what_any_order_allows() -> None:
    xs, ys = random([1, 5, 30, 12], seed=1), random([7, 1, 22], seed=2)
    got = scores(xs, ys)
    np.testing.assert_allclose(got, scores(ys, xs).T, rtol=0, atol=1e-6)
    any_order = seqsim(Ragged.from_list(xs), Ragged.from_list(ys), Float32())
    t1, t2 = np.array([len(x) for x in xs])[:, None], np.array([len(y) for y in ys])
    assert (got <= (t1 * any_order.precision + t2 * any_order.recall) / (t1 + t2) + 1e-6).all()


def test_order_alone_decides() -> None:
    """Frames are shuffled: SeqSim and pooled states are what they were, the monotone score is not."""
    rng = np.random.default_rng(5)
    (x,), (noise,) = random([40], 32, seed=6), random([40], 32, seed=7)
    y = x + 0.3 * noise
    shuffled = y[rng.permutation(40)]
    both = seqsim(Ragged.from_list([x]), Ragged.from_list([y, shuffled]), Float32())
    np.testing.assert_allclose(both.f1[0, 0], both.f1[0, 1], atol=1e-6)
    inorder, outoforder = scores([x], [y, shuffled])[0]
    assert inorder > 0.9
    assert outoforder < 0.5


def test_single_pairs_are_those_of_whole_blocks() -> None:
    kernel = Monotone(16)
    x, y = (kernel.pack(Ragged.from_list(random(t, seed=n))) for n, t in enumerate(([3, 1, 40], [20, 5])))
    whole = kernel.compare(x, y)[0]
    i, j = np.nonzero(np.array([[1, 0], [0, 1], [1, 1]]))
    np.testing.assert_allclose(kernel.compare_pairs(x, y, i, j)[0], whole[i, j], rtol=0, atol=1e-6)
    assert len(kernel.compare_pairs(x, y, i[:0], j[:0])[0]) == 0


def test_a_frame_without_direction_is_named() -> None:
    with pytest.raises(InputError, match="utterance 1: frame 2 is zero"):
        Monotone().pack(Ragged.from_list([*random([4]), np.float32([[1] * 8, [1] * 8, [0] * 8])]))


def ordered_store() -> FakeStore:
    """12 sentences of eight words; for each there is another of the same words turned round, both in two languages."""
    rng = np.random.default_rng(0)
    entries: list[tuple[str, str | None, str | None, str]] = []
    frames = []
    for g in range(12):
        words = rng.standard_normal((8, 16))
        for name, spoken in ((f"g{g}", words), (f"g{g} turned", words[::-1])):
            for language in ("en", "es"):
                entries.append((f"{language} {name}", language, name, "done"))
                frames.append((spoken + 0.02 * rng.standard_normal(spoken.shape)).astype(np.float32))
    return FakeStore(entries, {"final": frames})


def test_retrieve_by_order() -> None:
    """Who ignores order can tell a sentence from its turned form by the noise alone."""
    how = RetrievalOptions(["raw", "csls"], [1], kernel=Float32())
    found = retrieve(ordered_store(), similarities="seqsim_f1,monotone,pooled_cosine", options=how)
    recall = {
        row["similarity"]: row
        for row in found.table.to_pylist()
        if (row["metric"], row["score"], row["level"]) == ("recall@1", "raw", "mean")
    }
    assert list(recall) == ["seqsim_f1", "monotone", "pooled_cosine"]
    ordered, bag = recall["monotone"], recall["seqsim_f1"]
    assert (ordered["value"], ordered["low"], ordered["high"], ordered["chance"]) == (1, 1, 1, pytest.approx(1 / 24))
    assert 0.2 < bag["value"] < 0.8
    assert bag["high"] < 1
    assert "monotone" in found.to_markdown()
    alone = retrieve(ordered_store(), similarities="monotone", options=RetrievalOptions(["raw"], [1]))
    assert alone.settings["kernel"] is None
    assert {row["value"] for row in alone.table.to_pylist() if row["metric"] == "recall@1"} == {1.0}


def test_it_is_asked_for_by_name() -> None:
    plain = retrieve(ordered_store(), options=RetrievalOptions(["raw"], [1], bootstrap=0))
    assert "monotone" not in plain.table["similarity"].to_pylist()
    store = ordered_store()
    store.has_frames = False
    with pytest.raises(UsageError, match="monotone compare frames"):
        retrieve(store, similarities="monotone")
