"""What the path of accelerators holds between batches is made once; run here with the CPU as the device."""

from __future__ import annotations

import gc
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from conftest import sound

pytest.importorskip("onnx")

from voxstrata.encoders import open_model
from voxstrata.engine import CudaEncoder, Device, Encoder, Runtime
from voxstrata.engine.device_rows import ROWS_IN_FLIGHT
from voxstrata.engine.page_lock import HostRing, host_array
from voxstrata.engine.pipeline import BATCHES_IN_FLIGHT, BATCHES_WAITING
from voxstrata.store import StoreSpec

CPU = Device("cpu")


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The sizes of all host memory that encoders have made."""
    sizes: list[int] = []

    def counted(size: int, dtype: Any) -> Any:
        sizes.append(size)
        return host_array(size, dtype)

    monkeypatch.setattr("voxstrata.engine.device_rows.host_array", counted)
    return sizes


def test_a_piece_is_lent_again_when_no_view_of_it_is_left() -> None:
    made: list[np.ndarray] = []

    def make(size: int) -> np.ndarray:
        made.append(np.zeros(size, np.uint8))
        return made[-1]

    ring = HostRing(8, 2)
    first = ring.take(make)
    view = first[:4].view(np.float16)[1:]
    del first
    second = ring.take(make)
    assert (len(made), second.ctypes.data) == (2, made[1].ctypes.data)  # the view still holds the first
    view[:] = 7
    own = ring.take(make)  # more than there are pieces: memory of its own, which nobody gets again
    assert (len(made), own.shape, own.dtype) == (2, (8,), np.uint8)
    assert own.ctypes.data not in {piece.ctypes.data for piece in made}
    del own, view
    third = ring.take(make)
    assert (len(made), third.ctypes.data) == (2, made[0].ctypes.data)
    assert list(third[:4].view(np.float16)) == [0, 7]


def test_rows_are_fetched_into_memory_that_is_used_again(tiny_model: Path, made: list[int]) -> None:
    device = CudaEncoder(open_model(tiny_model), StoreSpec(("layer_01", "final")), Runtime(CPU, tokens=600))
    for i in range(5):
        device.stored_rows([sound(1.0 + i, j) for j in range(2)], 300)
    # what goes in and what comes out of the largest batch, here one window of 30 s
    assert made == [4 * 480_000, 2 * (1500 * 32 + 1) * 2]


def test_rows_that_are_held_stay_what_they_are(tiny_model: Path, made: list[int]) -> None:
    model, spec, runtime = open_model(tiny_model), StoreSpec(("final",)), Runtime(CPU, tokens=600)
    device, more = CudaEncoder(model, spec, runtime), 3
    held = [device.stored_rows([sound(1.0, i)], 200).rows[0][0] for i in range(ROWS_IN_FLIGHT + more)]
    assert len(made) == 1 + ROWS_IN_FLIGHT  # beyond, memory that is not kept
    for i, rows in enumerate(held):
        fresh = CudaEncoder(model, spec, runtime).stored_rows([sound(1.0, i)], 200)
        np.testing.assert_array_equal(rows, fresh.rows[0][0])
    made.clear()
    del held, rows
    assert device.stored_rows([sound(1.0, 1)], 200).finite == [True]
    assert made == []


def test_a_pipeline_has_no_more_batches_on_their_way_than_there_are_pieces(tiny_model: Path) -> None:
    device = CudaEncoder(open_model(tiny_model), StoreSpec(("final",)), Runtime(CPU, tokens=600))
    # of those that encode and wait one more is submitted before the first is taken; one is between the two stages
    assert device.concurrency + BATCHES_WAITING + 1 + 1 + BATCHES_IN_FLIGHT <= ROWS_IN_FLIGHT


@pytest.mark.parametrize("cuda_graphs", [False, True])
def test_memory_on_the_device_belongs_to_calls_and_not_to_threads(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch, cuda_graphs: bool
) -> None:
    """Every run of units has threads of its own; a worker that does one unit after the other makes many."""
    allocated = []
    make = ort.OrtValue.ortvalue_from_shape_and_type

    def counted(shape: Any, *where: Any) -> Any:
        allocated.append(shape)
        return make(shape, *where)

    monkeypatch.setattr(ort.OrtValue, "ortvalue_from_shape_and_type", counted)
    spec, runtime = StoreSpec(("final",)), Runtime(CPU, tokens=600)
    device = CudaEncoder(open_model(tiny_model), spec, runtime, cuda_graphs=cuda_graphs)
    for _ in range(4):
        with ThreadPoolExecutor(1) as pool:
            pool.submit(device.stored_rows, [sound(1.0, 1)], 200).result()
    assert len(allocated) == 2  # log-mel, and the states of one output
    with ThreadPoolExecutor(device.concurrency) as pool:
        list(pool.map(partial(device.stored_rows, frames=200), [[sound(1.0, i)] for i in range(8)]))
    assert len(allocated) <= 2 * device.concurrency


def test_what_takes_long_to_make_is_not_made_on_the_thread_that_encodes(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads: dict[str, set[str]] = {}

    def watched(what: str, step: Any) -> Any:
        def call(*arguments: Any) -> Any:
            threads.setdefault(what, set()).add(threading.current_thread().name.partition("_")[0])
            return step(*arguments)

        return call

    device = CudaEncoder(open_model(tiny_model), StoreSpec(("final",)), Runtime(CPU, tokens=1500))
    silence = type(device._silence)
    monkeypatch.setattr(silence, "for_frames", watched("silence", silence.for_frames))
    monkeypatch.setattr(Encoder, "_make_session", watched("session", Encoder._make_session))
    monkeypatch.setattr(device, "_encode", watched("encode", device._encode))
    with ThreadPoolExecutor(2, thread_name_prefix="caller") as pool:
        audio = [sound(1.0, 1)]
        list(pool.map(partial(device.stored_rows, audio), [200, 300, 1500, 200, 1500, 400]))
    assert threads == {"silence": {"caller"}, "session": {"caller"}, "encode": {"device"}}


def test_nothing_holds_an_encoder_that_is_dropped(tiny_model: Path) -> None:
    """Its memory on the device must not wait for the garbage collector, which knows nothing of that memory."""
    gc.collect()
    gc.disable()
    try:
        device = CudaEncoder(open_model(tiny_model), StoreSpec(("final",)), Runtime(CPU, tokens=600))
        rows = device.stored_rows([sound(1.0, 1)], 200).rows[0][0].copy()
        dropped = [weakref.ref(device), weakref.ref(device._idle[0])]
        del device
        assert rows.any()
        assert [ref() for ref in dropped] == [None, None]
    finally:
        gc.enable()
