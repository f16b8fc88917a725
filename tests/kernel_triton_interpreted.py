"""The GPU kernel, in Triton's interpreter: the same programs, run tile by tile in numpy.

Run by test_kernel_triton.py in a process of its own, since Triton binds its functions to the interpreter when it is
first imported. By hand: TRITON_INTERPRET=1 pytest tests/kernel_triton_interpreted.py

bfloat16 is absent here: the interpreter keeps it as bare 16-bit integers and multiplies those. benchmarks/seqsim_gpu.py
checks it on a device.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from voxstrata.base.errors import InputError, UsageError
from voxstrata.retrieval import Ragged
from voxstrata.retrieval.compare import Matrices, Tiles, compare
from voxstrata.retrieval.kernels import choose_kernel
from voxstrata.retrieval.kernels.gpu import TILES, Tile, Triton
from voxstrata.retrieval.kernels.gpu import kernel as gpu

# Rows rounded to 11 bits move no cosine by more than 2 · 2^-11 (Cauchy-Schwarz).
ERROR = {"float32": 1e-6, "float16": 2**-10 + 1e-6}


def kernel(dtype: str = "float32", x: int = 16, y: int = 32, d: int = 16, strip: int = 48, **options: Any) -> Triton:
    return Triton(dtype, tile=Tile(x, y, d, warps=4, stages=2, strip=strip), **options)


def frames(lengths: list[int], d: int, seed: int = 0, dtype: Any = np.float32) -> Ragged:
    rng = np.random.default_rng(seed)
    return Ragged.from_list([rng.standard_normal((n, d)).astype(dtype) for n in lengths])


def by_loop(x: Ragged, y: Ragged) -> np.ndarray:
    """Precision and recall by definition, (2, N, M), in float64."""
    found = np.empty((2, len(x), len(y)))
    unit = [
        [u / np.linalg.norm(u, axis=1, keepdims=True) for u in np.split(r.rows.astype(np.float64), r.offsets[1:-1])]
        for r in (x, y)
    ]
    for i, a in enumerate(unit[0]):
        for j, b in enumerate(unit[1]):
            s = a @ b.T
            found[:, i, j] = s.max(axis=1).mean(), s.max(axis=0).mean()
    return found


def scores(k: Triton, x: Ragged, y: Ragged) -> np.ndarray:
    return np.stack(k.compare(k.pack(x), k.pack(y)))


@pytest.mark.parametrize("dtype", ERROR)
@pytest.mark.parametrize("d", [1, 16, 17, 100])
def test_equals_the_float64_loop_at_any_d(dtype: str, d: int) -> None:
    x, y = frames([1, 5, 33, 16, 70, 2], d), frames([3, 1, 40, 64, 17], d, seed=1)
    found = scores(kernel(dtype), x, y)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, by_loop(x, y), rtol=0, atol=ERROR[dtype])


@pytest.mark.parametrize("n", [1, 15, 16, 17, 32, 33, 48, 49, 65])
def test_every_edge_of_tile_and_strip(n: int) -> None:
    """Tiles of 16 × 32, strips of 48: an utterance ends before, on and after each edge, alone and between others."""
    for lengths in ([n], [n, n], [1, n, 3]):
        x, y = frames(lengths, 9, seed=n), frames([n, 2, n], 9, seed=n + 100)
        np.testing.assert_allclose(scores(kernel(), x, y), by_loop(x, y), rtol=0, atol=1e-6)
        np.testing.assert_allclose(scores(kernel(), y, x), by_loop(y, x), rtol=0, atol=1e-6)


@pytest.mark.parametrize("d", [16, 17, 40])
def test_by_pointers_as_by_descriptors(d: int) -> None:
    """As on devices before compute capability 9.0; rows end within a tile, columns within a step."""
    k, x, y = kernel(), frames([1, 33, 16, 20], d), frames([3, 40, 17], d, seed=1)
    k._descriptors = False
    np.testing.assert_allclose(scores(k, x, y), by_loop(x, y), rtol=0, atol=1e-6)


def test_more_strips_than_one_group_of_the_work_list() -> None:
    x, y = frames([40] * 11, 8), frames([20, 30], 8, seed=1)
    np.testing.assert_allclose(scores(kernel(), x, y), by_loop(x, y), rtol=0, atol=1e-6)


def test_means_of_more_frames_than_one_step_sums() -> None:
    x, y = frames([600, 513], 4), frames([1100, 512], 4, seed=1)
    np.testing.assert_allclose(scores(kernel(x=64, y=256, strip=2048), x, y), by_loop(x, y), rtol=0, atol=1e-6)


@pytest.mark.parametrize("tile", [(16, 16, 16), (32, 16, 32), (16, 64, 16)])
def test_tile_shapes_agree(tile: tuple[int, int, int]) -> None:
    x, y = frames([20, 40, 7], 24), frames([50, 9, 33], 24, seed=1)
    np.testing.assert_allclose(scores(kernel("float32", *tile), x, y), by_loop(x, y), rtol=0, atol=1e-6)


@pytest.mark.parametrize("dtype", ERROR)
def test_all_cosines_negative(dtype: str) -> None:
    """Padding that counted as 0 would win every maximum."""
    x, y = frames([1, 7, 35], 12), frames([2, 33, 5], 12, seed=1)
    x.rows[:] = np.abs(x.rows)
    y.rows[:] = -np.abs(y.rows)
    found = scores(kernel(dtype), x, y)
    assert found.max() < 0
    np.testing.assert_allclose(found, by_loop(x, y), rtol=0, atol=ERROR[dtype])


def test_single_frames_are_plain_cosines() -> None:
    x, y = frames([1] * 18, 8), frames([1] * 7, 8, seed=1)
    cosines = by_loop(x, y)
    np.testing.assert_array_equal(cosines[0], cosines[1])
    np.testing.assert_allclose(scores(kernel(), x, y), cosines, rtol=0, atol=1e-6)


def test_some_pairs_are_as_in_the_whole() -> None:
    x, y = frames([3, 40, 18], 10), frames([9, 1, 33], 10, seed=1)
    i, j = np.array([0, 2, 0]), np.array([2, 1, 0])
    triton = kernel()
    found = triton.compare_pairs(triton.pack(x), triton.pack(y), i, j)
    np.testing.assert_allclose(np.stack(found), by_loop(x, y)[:, i, j], rtol=0, atol=1e-6)


def test_an_utterance_finds_itself() -> None:
    x = frames([3, 40, 18], 10)
    repeated = Ragged.from_list([np.repeat(u, 2, axis=0) for u in np.split(x.rows, x.offsets[1:-1])])
    for other in (x, repeated):
        found = scores(kernel(), x, other)
        np.testing.assert_allclose(found[:, range(3), range(3)], 1, rtol=0, atol=1e-6)


def test_same_call_same_bits() -> None:
    k, x, y = kernel("float16"), frames([30, 5, 61], 20), frames([44, 12], 20, seed=1)
    np.testing.assert_array_equal(scores(k, x, y), scores(k, x, y))


def test_swapping_sides_swaps_precision_and_recall() -> None:
    x, y = frames([30, 5, 61], 20), frames([44, 12], 20, seed=1)
    np.testing.assert_allclose(scores(kernel(), x, y), scores(kernel(), y, x)[::-1].swapaxes(1, 2), rtol=0, atol=1e-6)


def test_a_pair_does_not_depend_on_the_rest_of_the_call() -> None:
    """Neither order, nor neighbours, nor the blocks that memory forces change a score beyond float32 rounding."""
    lengths = [30, 5, 61, 1, 22]
    x, y = frames(lengths, 20), frames([44, 12, 33], 20, seed=1)
    whole = scores(kernel(), x, y)

    order = [3, 0, 4, 2, 1]
    cut = np.split(x.rows, x.offsets[1:-1])
    np.testing.assert_allclose(
        scores(kernel(), Ragged.from_list([cut[i] for i in order]), y), whole[:, order], rtol=0, atol=3e-7
    )

    k = kernel()
    x_packed, y_packed = k.pack(x), k.pack(y)
    part = np.stack(k.compare(x_packed.part(1, 4), y_packed.part(1, 3)))
    np.testing.assert_allclose(part, whole[:, 1:4, 1:3], rtol=0, atol=3e-7)

    small = kernel(scratch_bytes=4096)  # leaves blocks of one utterance a side
    np.testing.assert_allclose(scores(small, x, y), whole, rtol=0, atol=3e-7)


def test_scratch_stays_under_its_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    """For long and for single-frame utterances; what a block asks for is read off its requests to torch."""
    import torch

    bound = 1 << 14
    asked: list[int] = []
    empty = torch.empty

    def counted(shape: tuple[int, ...], **options: Any) -> Any:
        asked.append(4 * int(np.prod(shape)))
        return empty(shape, **options)

    monkeypatch.setattr(torch, "empty", counted)
    for lengths in ([1] * 4, [70] * 3):
        k = kernel(x=64, y=64, strip=128, scratch_bytes=bound)
        packed = k.pack(frames(lengths, 4))
        asked.clear()
        k.compare(packed, packed)
        blocks = np.reshape(asked, (-1, 3))  # row maxima, column maxima, the result
        assert len(blocks) > 1
        assert blocks[:, :2].sum(axis=1).max() <= bound


@pytest.mark.parametrize("value", [0.0, np.nan, np.inf])
@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_a_row_without_direction_is_refused(value: float, dtype: Any) -> None:
    x = frames([3, 4], 5, dtype=dtype)
    x.rows[5] = value
    named = Ragged(x.rows, x.offsets, ["a.wav", "b.wav"])
    with pytest.raises(InputError, match=r"b\.wav.*frame 2"):
        kernel().pack(named)


def test_rows_on_the_device_have_unit_length_and_the_chosen_format() -> None:
    import torch

    x = frames([3, 200], 13)
    x.rows[:3] *= 1e-25  # squares vanish in float32
    x.rows[3:] *= 1e25
    for dtype in ("float32", "float16", "bfloat16"):
        packed = kernel(dtype).pack(x)
        assert packed.rows.dtype == getattr(torch, dtype)
        assert packed.rows.shape == (203, 16)
        assert not packed.rows[:, 13:].any()
        step = torch.finfo(packed.rows.dtype).eps
        np.testing.assert_allclose(packed.rows.double().norm(dim=1).numpy(), 1, rtol=0, atol=step)


@pytest.mark.parametrize("given", ["float16", "float32", "bfloat16"])
def test_packing_in_parts_is_packing_at_once(given: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """7 rows at a time, of which a program takes 4: every row is what float64 makes of it, rounded."""
    ml_dtypes = pytest.importorskip("ml_dtypes")
    dtype = np.dtype(getattr(ml_dtypes, given) if given == "bfloat16" else given)
    x = frames([9, 1, 20], 20, dtype=dtype)
    monkeypatch.setattr(gpu, "STAGING_BYTES", 7 * 20 * (2 if given == "float16" else 4))
    monkeypatch.setattr(gpu, "UNIT_VALUES", 4 * 32)
    exact = x.rows.astype(np.float64)
    exact /= np.linalg.norm(exact, axis=1, keepdims=True)
    packed = kernel().pack(x)
    np.testing.assert_allclose(packed.rows[:, :20].numpy(), exact, rtol=1e-7, atol=0)
    assert not packed.rows[:, 20:].any()
    x.rows[29] = 0
    with pytest.raises(InputError, match=r"utterance 2: frame 19 "):
        kernel().pack(x)


def test_packing_has_a_stream_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every part is launched on it, nothing of a comparison is, and at most two parts are staged at a time."""
    import torch

    told: list[str] = []
    streams = ["compare"]

    @contextmanager
    def stream(one: Any) -> Iterator[None]:
        streams.append("pack" if one is own else "compare")
        yield
        streams.pop()

    class Recorded:
        """A Triton program that says on which stream it was launched."""

        def __init__(self, name: str) -> None:
            self.name, self.program = name, getattr(k._programs, name)

        def __getitem__(self, grid: Any) -> Any:
            told.append(f"{self.name} on {streams[-1]}")
            return self.program[grid]

    k, own, empty = kernel(), SimpleNamespace(synchronize=lambda: told.append("waited")), torch.empty
    k._packing = own
    k._programs = SimpleNamespace(**{name: Recorded(name) for name in ("scale_rows", "maxima", "means")})
    monkeypatch.setattr(torch.cuda, "stream", stream)
    monkeypatch.setattr(torch, "empty", lambda *shape, pin_memory=False, **options: empty(*shape, **options))
    monkeypatch.setattr(gpu, "STAGING_BYTES", 16 * 4 * 8)
    packed = k.pack(frames([40], 8))
    assert told == ["waited", "scale_rows on pack"] * 3
    told.clear()
    k.compare(packed, packed)
    assert told == ["maxima on compare", "means on compare"]


def test_blocks_packed_while_others_are_compared_give_the_same_scores() -> None:
    """By the loop that `similarity` runs: a thread reads and packs, another compares."""

    class Side:
        def __init__(self, whole: Ragged) -> None:
            self.whole, self.lengths = whole, whole.lengths

        def ragged(self, begin: int, end: int) -> Ragged:
            cut = np.split(self.whole.rows, self.whole.offsets[1:-1])
            return Ragged.from_list(cut[begin:end])

    x, y = frames([30, 5, 61, 22], 20), frames([44, 12, 33, 9, 50], 20, seed=1)
    sink = Matrices(len(x), len(y))
    compare(Side(x), Side(y), kernel(), sink, tiles=Tiles([0, 1, 3, 4], [0, 2, 3, 5]))
    np.testing.assert_allclose([sink.precision, sink.recall], by_loop(x, y), rtol=0, atol=1e-6)


def test_comparing_leaves_a_multiprocessor_to_packing() -> None:
    """The interpreter counts as 3; its programs are more than 3 tiles' work."""
    grids, k = [], kernel()

    class Recorded:
        def __getitem__(self, grid: tuple[int, ...]) -> Any:
            grids.append(grid)
            return lambda *_, **__: None

    packed = k.pack(frames([48] * 4, 8))
    k._programs = SimpleNamespace(maxima=Recorded(), means=Recorded())
    k.compare(packed, packed)
    assert grids == [(2,), (4, 4)]


@pytest.mark.parametrize("dtype", TILES)
def test_a_kernel_is_found_by_its_name(dtype: str) -> None:
    """By which runs on other machines make it."""
    assert choose_kernel(Triton(dtype).name).name == f"triton-{dtype}"
    assert choose_kernel("triton").name == "triton-float16"
    with pytest.raises(UsageError, match="not int8"):
        Triton("int8")


def test_rows_may_be_float16_and_read_only() -> None:
    x = frames([9, 20], 8, dtype=np.float16)
    x.rows.setflags(write=False)
    np.testing.assert_allclose(scores(kernel(), x, x), by_loop(x, x), rtol=0, atol=1e-6)


def test_more_than_fits_is_refused_with_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    k = kernel()
    monkeypatch.setattr("voxstrata.retrieval.kernels.gpu.kernel.free_bytes", lambda device: 2 << 30)
    k.pack(frames([10], 8))
    monkeypatch.setattr("voxstrata.retrieval.kernels.gpu.kernel.free_bytes", lambda device: 1 << 30)
    with pytest.raises(InputError, match=r"10 frames × d = 8 need 0\.00 GiB.*1\.00 GiB are free"):
        k.pack(frames([10], 8))


def test_unknown_number_format_and_missing_device(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="float16, bfloat16, float32, not int8"):
        kernel("int8")
    monkeypatch.delenv("TRITON_INTERPRET")
    with pytest.raises(UsageError, match="no CUDA device"):
        kernel()
