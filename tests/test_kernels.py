"""CPU kernels: both equal a float64 loop; the fixed-point one is exact in integers, whatever it is cut into."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import click
import numba
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from voxstrata.base.errors import InputError, UsageError
from voxstrata.retrieval.kernels import KERNELS as KERNEL_NAMES
from voxstrata.retrieval.kernels import choose_kernel, fixed_point, int16
from voxstrata.retrieval.kernels.base import Kernel, Packed, runs
from voxstrata.retrieval.kernels.gpu import TILES
from voxstrata.retrieval.kernels.int16 import Int16
from voxstrata.retrieval.ragged import Ragged

fast = pytest.mark.skipif(not fixed_point.available(), reason="no AVX2: the int16 kernel does not run here")
KERNELS = [pytest.param("float32", 1e-6), pytest.param("int16", 3e-5, marks=fast)]
both = pytest.mark.parametrize(("name", "bar"), KERNELS)

Utterances = list[npt.NDArray[np.floating]]


def loop(xs: Utterances, ys: Utterances) -> tuple[np.ndarray, np.ndarray]:
    """Precision and recall in float64, pair by pair."""
    units = [[u.astype(float) / np.linalg.norm(u.astype(float), axis=1)[:, None] for u in side] for side in (xs, ys)]
    cosines = [[x @ y.T for y in units[1]] for x in units[0]]
    precision = [[s.max(axis=1).mean() for s in row] for row in cosines]
    recall = [[s.max(axis=0).mean() for s in row] for row in cosines]
    return np.array(precision), np.array(recall)


def compare(kernel: Kernel, xs: Utterances, ys: Utterances) -> tuple[np.ndarray, np.ndarray]:
    return kernel.compare(kernel.pack(Ragged.from_list(xs)), kernel.pack(Ragged.from_list(ys)))


def assert_equals_loop(kernel: Kernel, xs: Utterances, ys: Utterances, bar: float) -> None:
    for got, expected in zip(compare(kernel, xs, ys), loop(xs, ys), strict=True):
        assert got.dtype == np.float32
        np.testing.assert_allclose(got, expected, rtol=0, atol=bar)


def noise(lengths: list[int], d: int, seed: int) -> Utterances:
    rng = np.random.default_rng(seed)
    common = rng.standard_normal(d)  # as in real states, whose cosines are far from 0
    return [(common + rng.standard_normal((t, d))).astype(np.float32) for t in lengths]


@st.composite
def two_sides(draw: st.DrawFn) -> tuple[Utterances, Utterances]:
    """Two ragged sets; some all-negative, some with a frame repeated, some in float16."""
    d = draw(st.one_of(st.integers(1, 40), st.integers(1, 1280)))
    lengths = st.lists(st.one_of(st.integers(1, 3), st.integers(1, 90)), min_size=1, max_size=7)
    dtype = draw(st.sampled_from([np.float16, np.float32]))
    kind = draw(st.sampled_from(["free", "opposed", "repeated"]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))

    def utterance(frames: int, sign: float) -> npt.NDArray[np.floating]:
        x = rng.standard_normal((frames, d)) + 0.1
        if kind == "opposed":
            x = sign * (np.abs(x) + 0.1)
        if kind == "repeated":
            x[frames // 2 :] = x[frames // 2]
        return x.astype(dtype)

    xs = [utterance(frames, 1.0) for frames in draw(lengths)]
    return xs, [utterance(frames, -1.0) for frames in draw(lengths)]


@both
# Always the same examples: the bar of int16 holds for rounding errors as chance has them, not for the unluckiest row.
@settings(max_examples=60, deadline=None, derandomize=True)
@given(two_sides())
def test_every_kernel_equals_a_float64_loop(name: str, bar: float, sides: tuple[Utterances, Utterances]) -> None:
    assert_equals_loop(choose_kernel(name), *sides, bar)


@both
def test_utterances_from_one_frame_to_longer_than_a_block(name: str, bar: float) -> None:
    assert_equals_loop(choose_kernel(name), noise([1500, 1, 700], 1280, 1), noise([2, 1500, 40], 1280, 2), bar)
    lengths = [30, 1, 5000, 16, 17]  # 5000 frames are more than a block of either kernel
    assert_equals_loop(choose_kernel(name), noise(lengths, 24, 3), noise(lengths[::-1], 24, 4), bar)


@both
def test_all_negative_cosines_are_not_lifted_to_zero(name: str, bar: float) -> None:
    x, y = (np.abs(side[0]) + 0.1 for side in (noise([40], 20, 1), noise([30], 20, 2)))
    for matrix in compare(choose_kernel(name), [x], [-y]):
        assert matrix.item() < -0.1
    assert_equals_loop(choose_kernel(name), [x, x[:1]], [-y, -y[:1]], bar)


@both
def test_frames_without_direction_are_refused_by_utterance_and_frame(name: str, bar: float) -> None:
    for value in (0, np.nan, np.inf):
        xs = noise([5, 4], 6, 0)
        xs[1][2] = value
        with pytest.raises(InputError, match=r"utterance 'b': frame 2 is zero, NaN or infinite"):
            choose_kernel(name).pack(Ragged.from_list(xs, ["a", "b"]))


@both
def test_the_same_call_gives_the_same_bits_also_beside_others(name: str, bar: float) -> None:
    kernel = choose_kernel(name)
    x, y = (kernel.pack(Ragged.from_list(noise([300, 20, 500, 1, 64], 50, seed))) for seed in (1, 2))
    expected = kernel.compare(x, y)
    with ThreadPoolExecutor(6) as pool:
        for result in pool.map(lambda _: kernel.compare(x, y), range(24)):
            assert [a.tobytes() for a in result] == [a.tobytes() for a in expected]


@both
def test_parts_of_a_set_give_what_the_whole_gives(name: str, bar: float) -> None:
    kernel = choose_kernel(name)
    xs, ys = (noise([300, 20, 500, 1, 64, 33, 90], 50, seed) for seed in (1, 2))
    x, y = (kernel.pack(Ragged.from_list(side)) for side in (xs, ys))
    whole = kernel.compare(x, y)
    for i, j in pairwise([0, 1, 4, 7]):
        for k, m in pairwise([0, 3, 7]):
            for part, full in zip(kernel.compare(x.part(i, j), y.part(k, m)), whole, strict=True):
                np.testing.assert_allclose(part, full[i:j, k:m], rtol=0, atol=2e-7)


@fast
def test_fixed_point_gives_the_same_bits_however_it_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = Int16()
    xs, ys = (noise([300, 20, 500, 17, 64, 33, 90], 50, seed) for seed in (1, 2))
    expected = [matrix.tobytes() for matrix in compare(kernel, xs, ys)]
    for packed, group, threads in ((64, 32, 1), (700, 100, 3), (320, 320, 2)):
        monkeypatch.setattr(int16, "PACKED_FRAMES", packed)
        monkeypatch.setattr(int16, "GROUP_FRAMES", group)
        monkeypatch.setenv("NUMBA_NUM_THREADS", str(threads))
        assert [matrix.tobytes() for matrix in compare(kernel, xs, ys)] == expected


@both
def test_frames_that_repeat_throughout_are_within_the_bar(name: str, bar: float) -> None:
    """Their rounding errors do not average out, whatever the number of frames: 1.25e-5 is their standard deviation."""
    kernel, rng = choose_kernel(name), np.random.default_rng(0)
    xs, ys = ([np.repeat(rng.standard_normal((1, 300)), 200, axis=0) for _ in range(24)] for _ in range(2))
    nearly = [x.copy() for x in xs[:8]]
    for x in nearly:  # sixteen kinds of frame, but nearly all of one
        x[:15] = rng.standard_normal((15, 300))
    xs, ys = ([u.astype(np.float32) for u in side] for side in (xs + nearly, ys))
    assert_equals_loop(kernel, xs, [*ys, *noise([200], 300, 1)], bar)


@fast
def test_effective_frames_count_repeated_ones_less() -> None:
    x = np.random.default_rng(0).standard_normal((4, 30)).astype(np.float32)
    sides = [x, x[[0, 1, 0, 1]], x[[2] * 9], x[[0, 0, 0, 1]], x[:1], np.concatenate([x[:2], x[:2] + 1e-7, x[:2]])]
    packed = Int16().pack(Ragged.from_list(sides))
    np.testing.assert_allclose(packed.effective, [4, 2, 1, 16 / 10, 1, 2])
    np.testing.assert_array_equal(packed.part(1, 4).effective, packed.effective[1:4])
    chosen = packed.take(np.array([4, 1]))
    np.testing.assert_array_equal(chosen.effective, packed.effective[[4, 1]])
    np.testing.assert_array_equal(chosen.rows, np.concatenate([packed.rows[[-7]], packed.rows[4:8]]))
    assert chosen.offsets.tolist() == [0, 1, 5]


@both
def test_some_pairs_are_as_in_the_whole(name: str, bar: float) -> None:
    kernel = choose_kernel(name)
    xs, ys = (noise([300, 20, 500, 1, 64, 33, 90, 2500], 50, seed) for seed in (1, 2))
    x, y = (kernel.pack(Ragged.from_list(side)) for side in (xs, ys))
    whole = kernel.compare(x, y)
    wanted = np.random.default_rng(0).random((8, 8)) < 0.4
    wanted[3, :], wanted[0, 3] = True, True  # with an utterance of one frame
    for some, full in zip(kernel.compare_pairs(x, y, *np.nonzero(wanted)), whole, strict=True):
        assert some.dtype == np.float32
        np.testing.assert_allclose(some, full[wanted], rtol=0, atol=2e-7)
    none = np.empty(0, np.intp)
    assert [len(a) for a in kernel.compare_pairs(x, y, none, none)] == [0, 0]


@fast
def test_nearly_equal_frames_are_within_the_bar() -> None:
    """All frames of one side choose the same frame of the other, so that its rounding errors do not average out."""
    rng = np.random.default_rng(0)
    for eps in (1e-4, 0.05, 0.4):
        xs, ys = (
            [(rng.standard_normal(512) + eps * rng.standard_normal((40, 512))).astype(np.float32) for _ in range(40)]
            for _ in range(2)
        )
        assert_equals_loop(Int16(), xs, ys, 3e-5)


@both
def test_bfloat16_rows_are_taken_as_they_are(name: str, bar: float) -> None:
    ml_dtypes = pytest.importorskip("ml_dtypes")
    xs, ys = ([u.astype(ml_dtypes.bfloat16) for u in noise([40, 1, 17], 33, seed)] for seed in (1, 2))
    assert_equals_loop(choose_kernel(name), xs, ys, bar)


def test_runs_hold_whole_utterances_within_both_bounds() -> None:
    lengths = np.random.default_rng(0).integers(1, 30, 200)
    found = list(runs(lengths, 50, 4))
    assert [i for i, _ in found] == [0, *(j for _, j in found[:-1])]
    assert found[-1][1] == 200
    for (i, j), (_, m) in pairwise(found):
        assert j - i <= 4
        assert lengths[i:j].sum() <= 50
        assert j - i == 4 or lengths[i : j + 1].sum() > 50  # full: one more would not have fitted
        assert m > j
    assert list(runs(np.array([5, 99, 5]), 50, 4)) == [(0, 1), (1, 2), (2, 3)]
    assert list(runs(np.ones(9, np.int64), 50)) == [(0, 9)]


def scales_of(side: Packed) -> np.ndarray:
    """As large as entries of 16 bits and sums of 31 allow."""
    d = side.rows.shape[1]
    largest = np.maximum.reduceat(np.abs(side.rows).max(axis=1), side.offsets[:-1])
    return np.minimum(46_339 - np.sqrt(d) / 2, 32_767 / largest.astype(float)).astype(np.float32)


def integer_sums(x: Packed, y: Packed) -> tuple[np.ndarray, np.ndarray]:
    """What the fixed-point kernel must add up to, in 64-bit integers, pair by pair."""
    fixed = [np.rint(side.rows * np.repeat(scales_of(side), side.lengths)[:, None]).astype(np.int64) for side in (x, y)]
    assert max(np.abs(f).max() for f in fixed) <= 32_767
    assert max((f**2).sum(axis=1).max() for f in fixed) < 2**31
    rows, columns = (np.zeros((len(x), len(y)), np.int64) for _ in range(2))
    for i, (a, b) in enumerate(pairwise(x.offsets)):
        for j, (c, e) in enumerate(pairwise(y.offsets)):
            s = fixed[0][a:b] @ fixed[1][c:e].T
            rows[i, j], columns[i, j] = s.max(axis=1).sum(), s.max(axis=0).sum()
    return rows, columns


def assert_integers_exact(xs: Utterances, ys: Utterances) -> None:
    x, y = (Int16().pack(Ragged.from_list(side)) for side in (xs, ys))
    got = fixed_point.sums_of_maxima(
        fixed_point.panels(x.rows, x.offsets, scales_of(x), fixed_point.X_WIDTH), x.offsets,
        fixed_point.panels(y.rows, y.offsets, scales_of(y), fixed_point.Y_WIDTH), y.offsets,
    )  # fmt: skip
    for sums, expected in zip(got, integer_sums(x, y), strict=True):
        np.testing.assert_array_equal(sums, expected)


@fast
@pytest.mark.parametrize("d", [1, 2, 3, 33, 384, 1280])
def test_no_sum_overflows_at_the_largest_products(d: int) -> None:
    one_hot = np.eye(d, dtype=np.float32)[[0, d // 2, d - 1] * 7]
    constant = np.ones((21, d), np.float32)
    alternating = constant * np.where(np.arange(d) % 2, 1, -1).astype(np.float32)
    pairs_cancel = constant * np.where(np.arange(d) < d / 2, 1, -1).astype(np.float32)  # partial sums go up, then down
    halves = one_hot + 0.999 * np.roll(one_hot, 1, axis=1)
    sides = [one_hot, constant, alternating, pairs_cancel, halves]
    sides += [-side for side in sides]
    assert_integers_exact(sides, sides)
    # 3e-5 is for rounding errors that differ from entry to entry. Here all are equal, and the error is the bound:
    # |q.r / 32767^2 - u.v| <= (|u|_1 + |v|_1) / 2 / 32767 + d / 4 / 32767^2, at most sqrt(d) / 32767 and a little.
    assert_equals_loop(Int16(), sides, sides, np.sqrt(d) / 32767 + d / 4 / 32767**2 + 1e-6)


@fast
@settings(max_examples=60, deadline=None)
@given(two_sides())
def test_fixed_point_sums_are_exact_from_one_frame_up(sides: tuple[Utterances, Utterances]) -> None:
    assert_integers_exact(*sides)


@pytest.mark.long  # a process that compiles the kernels anew
@fast
def test_narrow_registers_give_the_same_bits() -> None:
    """The AVX2 form of the kernel, compiled in a process of its own on a machine that would take AVX-512."""
    if fixed_point.LANES == 8:
        pytest.skip("no AVX-512 here: the AVX2 form is the one that all other tests run")
    program = (
        "import sys, numpy as np; sys.path[:0] = sys.argv[1:]\n"
        "import test_kernels as t; assert t.fixed_point.LANES == 8\n"
        "t.assert_integers_exact(t.noise([40, 1, 300, 17], 35, 1), t.noise([33, 90, 1], 35, 2))"
    )
    features = "+sse4.2,+popcnt,+avx,+avx2,+fma,+bmi,+bmi2"
    subprocess.run(
        [sys.executable, "-c", program, os.path.dirname(__file__)],
        check=True, env=os.environ | {"NUMBA_CPU_NAME": "haswell", "NUMBA_CPU_FEATURES": features},
    )  # fmt: skip


def test_every_name_of_a_kernel_is_listed_and_completed() -> None:
    """Also those that only a GPU's kernel has, by the number formats of its rows."""
    from voxstrata.cli import options

    assert set(KERNEL_NAMES) == {"int16", "float32", "triton", *(f"triton-{dtype}" for dtype in TILES)}
    (option,) = (click.command()(options.kernel(lambda: None))).params
    offered = option.shell_complete(click.Context(click.Command("x")), "")
    assert [item.value for item in offered] == list(KERNEL_NAMES)


def test_the_kernel_is_chosen_by_name_or_by_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    assert choose_kernel("float32").name == "float32"
    assert choose_kernel().name == ("int16" if fixed_point.available() else "float32")
    for name in ("float64", "float32-int8", "triton-int8"):
        with pytest.raises(UsageError, match=rf"unknown kernel '{name}'; known: {', '.join(KERNEL_NAMES)}$"):
            choose_kernel(name)
    monkeypatch.setattr(fixed_point, "_features", lambda: frozenset({"sse2"}))
    assert choose_kernel().name == "float32"
    with pytest.raises(UsageError, match="int16 needs a CPU with AVX2; take float32"):
        choose_kernel("int16")
    monkeypatch.setattr(numba.config, "DISABLE_JIT", 1)
    with pytest.raises(UsageError, match="NUMBA_DISABLE_JIT turns off; unset it"):
        choose_kernel("float32")
