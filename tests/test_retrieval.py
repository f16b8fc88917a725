"""Similarity of utterances and of pooled states."""

from __future__ import annotations

import math
import tracemalloc

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from voxstrata.base.errors import InputError
from voxstrata.retrieval import Ragged, mean_pool, pooled_cosine, seqsim
from voxstrata.retrieval.kernels.float32 import Float32
from voxstrata.retrieval.similarities import harmonic

Utterances = list[npt.NDArray[np.floating]]
ROUNDING = 5e-6  # float32 cosines over d <= 40 and values of at most 1, with room to spare


def loop(xs: Utterances, ys: Utterances) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """SeqSim by definition: a float64 loop over pairs, frames and frames. Returns F1, precision, recall."""
    f1, precision, recall = (np.empty((len(xs), len(ys))) for _ in range(3))
    for i, x in enumerate(xs):
        for j, y in enumerate(ys):
            x64, y64 = x.astype(np.float64), y.astype(np.float64)
            cosines = [[float(a @ b) / math.sqrt(float(a @ a) * float(b @ b)) for b in y64] for a in x64]
            p = sum(max(row) for row in cosines) / len(x)
            r = sum(max(column) for column in zip(*cosines, strict=True)) / len(y)
            precision[i, j], recall[i, j] = p, r
            f1[i, j] = 2 * p * r / (p + r) if min(p, r) > 0 else min(p, r)
    return f1, precision, recall


@st.composite
def two_sides(draw: st.DrawFn) -> tuple[Utterances, Utterances, int]:
    """Two small sets of utterances and a block size; some all-negative, some of repeated or single frames."""
    d = draw(st.integers(1, 40))
    lengths = st.lists(st.one_of(st.just(1), st.integers(1, 40)), min_size=1, max_size=4)
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    dtype = draw(st.sampled_from([np.float16, np.float32]))
    kind = draw(st.sampled_from(["free", "opposed", "repeated"]))

    def utterance(frames: int, sign: float) -> npt.NDArray[np.floating]:
        x = rng.standard_normal((frames, d)) + 0.05 * np.sign(rng.standard_normal((frames, d)))
        if kind == "opposed":
            x = sign * (np.abs(x) + 0.1)
        if kind == "repeated":
            x[:] = x[0]
        return x.astype(dtype)

    xs = [utterance(frames, 1.0) for frames in draw(lengths)]
    ys = [utterance(frames, -1.0) for frames in draw(lengths)]
    return xs, ys, draw(st.sampled_from([1, 2, 7, 16, 64, 2048]))


@settings(max_examples=150, deadline=None)
@given(two_sides())
def test_seqsim_equals_a_float64_loop_at_any_block_size(sides: tuple[Utterances, Utterances, int]) -> None:
    xs, ys, block_rows = sides
    sim = seqsim(Ragged.from_list(xs), Ragged.from_list(ys), Float32(block_rows))
    for got, expected in zip((sim.f1, sim.precision, sim.recall), loop(xs, ys), strict=True):
        assert got.dtype == np.float32
        np.testing.assert_allclose(got, expected, rtol=0, atol=ROUNDING)


@settings(max_examples=40, deadline=None)
@given(two_sides())
def test_swapping_the_sides_swaps_precision_and_recall(sides: tuple[Utterances, Utterances, int]) -> None:
    x, y = Ragged.from_list(sides[0]), Ragged.from_list(sides[1])
    there, back = seqsim(x, y), seqsim(y, x)
    np.testing.assert_allclose(there.precision, back.recall.T, rtol=0, atol=1e-6)
    np.testing.assert_allclose(there.f1, back.f1.T, rtol=0, atol=1e-6)


def test_all_negative_cosines_are_not_lifted_to_zero() -> None:
    x, y = Ragged.from_list([np.ones((3, 4), np.float32)]), Ragged.from_list([-np.ones((2, 4), np.float32)])
    sim = seqsim(x, y)
    assert [sim.f1.item(), sim.precision.item(), sim.recall.item()] == pytest.approx([-1, -1, -1])


def test_utterances_longer_than_a_block_on_both_sides() -> None:
    rng = np.random.default_rng(1)
    xs, ys = ([rng.standard_normal((t, 8)).astype(np.float32) for t in ts] for ts in ((3, 70, 1), (55, 2, 64)))
    sim = seqsim(Ragged.from_list(xs), Ragged.from_list(ys), Float32(32))
    for got, expected in zip((sim.f1, sim.precision, sim.recall), loop(xs, ys), strict=True):
        np.testing.assert_allclose(got, expected, rtol=0, atol=ROUNDING)


def test_f1_is_finite_between_its_parts_and_rises_with_each() -> None:
    axis = np.linspace(-1, 1, 81)
    p, r = np.meshgrid(axis, axis, indexing="ij")
    f1 = harmonic(p, r)
    assert np.isfinite(f1).all()
    assert (f1 >= np.minimum(p, r) - 1e-12).all()
    assert (f1 <= np.maximum(p, r) + 1e-12).all()
    assert (np.diff(f1, axis=0) >= -1e-12).all()
    assert (np.diff(f1, axis=1) >= -1e-12).all()
    step = axis[1] - axis[0]
    assert np.abs(np.diff(f1, axis=0)).max() <= 2 * step + 1e-12  # the steepest slope of the harmonic mean is 2
    # It changes no bit to exchange them: equal candidates stay equal whichever side they stand on.
    rng = np.random.default_rng(0)
    p32, r32 = rng.random((2, 10_000), np.float32)
    np.testing.assert_array_equal(harmonic(p32, r32), harmonic(r32, p32))
    tiny = np.array([1e-30], np.float32)  # whose square is no float32
    assert harmonic(tiny, tiny) == tiny
    # The bare formula gives -4 and divides by zero here.
    assert harmonic(np.array([0.5, 0.5, 0.0]), np.array([-0.4, -0.5, 0.0])).tolist() == [-0.4, -0.5, 0.0]


def test_scale_of_a_frame_does_not_matter() -> None:
    rng = np.random.default_rng(2)
    x = rng.standard_normal((9, 5)).astype(np.float32)
    scaled = x * np.logspace(-30, 30, 9, dtype=np.float32)[:, None]  # squares leave the range of float32
    y = Ragged.from_list([rng.standard_normal((4, 5)).astype(np.float32)])
    plain, extreme = seqsim(Ragged.from_list([x]), y), seqsim(Ragged.from_list([scaled]), y)
    np.testing.assert_allclose(extreme.f1, plain.f1, rtol=0, atol=1e-6)


@pytest.mark.parametrize("threads", [1, 12])
def test_memory_stays_at_a_block_for_each_thread(threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NUMBA_NUM_THREADS", str(threads))
    block_rows, rows, d = 256, 8192, 16
    data = np.random.default_rng(3).standard_normal((rows, d)).astype(np.float32)
    for frames in (64, rows):  # many utterances, and a single one longer than a block
        ragged = Ragged(data, np.arange(0, rows + 1, frames))
        seqsim(Ragged.from_list([data[:9]]), Ragged.from_list([data[:9]]), Float32(block_rows))  # compiled and imported
        tracemalloc.start()
        seqsim(ragged, ragged, Float32(block_rows))
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        inputs = 2 * data.nbytes + 2 * rows * d * 8  # unit rows, and room for one float64 temporary each
        results = 3 * 8 * len(ragged) ** 2 + 3 * 4 * len(ragged) ** 2
        maxima = 2 * 4 * max(block_rows * block_rows // frames, rows)
        assert peak < threads * (block_rows**2 * 4 + maxima) + inputs + results
        assert peak < rows**2 * 4 / 20  # all of S would be 256 MiB


def test_mean_pool_and_pooled_cosine_equal_float64() -> None:
    rng = np.random.default_rng(4)
    xs = [(1000 + rng.standard_normal((t, 6))).astype(np.float16) for t in (1, 3, 1500)]
    pooled = mean_pool(Ragged.from_list(xs))
    expected = np.array([[math.fsum(column) / len(x) for column in x.T.astype(float)] for x in xs])
    assert pooled.dtype == np.float32
    np.testing.assert_allclose(pooled, expected, rtol=1e-7)
    other = rng.standard_normal((4, 6)).astype(np.float32)
    cosines = [[float(a @ b / np.linalg.norm(a) / np.linalg.norm(b)) for b in other.astype(float)] for a in expected]
    np.testing.assert_allclose(pooled_cosine(pooled, other), cosines, rtol=0, atol=1e-6)


@pytest.mark.parametrize("bad", [0.0, np.nan, np.inf])
def test_a_frame_without_direction_is_named(bad: float) -> None:
    utterances = [np.ones((2, 3), np.float32), np.ones((2, 3), np.float32)]
    utterances[1][1] = bad
    with pytest.raises(InputError, match=r"utterance 1: frame 1 is zero, NaN or infinite"):
        Ragged.from_list(utterances).unit()
    with pytest.raises(InputError, match="'second'"):
        seqsim(Ragged.from_list(utterances, ["first", "second"]), Ragged.from_list(utterances[:1]))
    with pytest.raises(InputError, match=r"^utterance 'second': the pooled state is zero, NaN or infinite"):
        pooled_cosine(utterances[0], utterances[1], y_names=["first", "second"])
    with pytest.raises(InputError, match=r"^row of y 1: the pooled state"):
        pooled_cosine(utterances[0], utterances[1])


@pytest.mark.parametrize(
    ("offsets", "message"),
    [
        ([0, 2, 2, 4], "utterance 1 has 0 frames"),
        ([0, 3, 2, 4], "utterance 1 has -1 frames"),
        ([1, 4], "from 1 to 4"),
        ([0, 3], "from 0 to 3"),
        ([0], "no utterances"),
        ([[0, 4]], "flat int64"),
    ],
)
def test_offsets_that_do_not_fit_are_refused(offsets: list[int], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Ragged(np.ones((4, 2), np.float32), np.array(offsets, np.int64))


def test_arrays_that_cannot_be_compared_are_refused() -> None:
    ones = np.ones((2, 3), np.float32)
    with pytest.raises(InputError, match="float64"):
        Ragged.from_list([ones.astype(np.float64)])
    with pytest.raises(InputError, match="utterance 1 has d = 2"):
        Ragged.from_list([ones, ones[:, :2]])
    with pytest.raises(InputError, match="list is empty"):
        Ragged.from_list([])
    with pytest.raises(InputError, match="1 name for 2 utterances"):
        Ragged.from_list([ones, ones], ["a"])
    with pytest.raises(InputError, match="d = 3 and of d = 2"):
        seqsim(Ragged.from_list([ones]), Ragged.from_list([ones[:, :2]]))
    with pytest.raises(InputError, match="d = 3 and of d = 2"):
        pooled_cosine(ones, ones[:, :2])
