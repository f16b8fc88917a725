"""Promises of the path of accelerators, run here with the CPU as the device: the same calls, other addresses."""

from __future__ import annotations

import mmap
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from conftest import sound
from kills import contents

pytest.importorskip("onnx")

from voxstrata.base.errors import InputError
from voxstrata.encoders import Context, open_model
from voxstrata.encoders.card import CACHED, ENCODER, LOG_MEL, WEIGHTS
from voxstrata.encoders.frames import SAMPLES_PER_FRAME
from voxstrata.encoders.silence import BucketSilence
from voxstrata.engine import CpuEncoder, CudaEncoder, Device, Encoder, ExtractReport, Runtime, extract
from voxstrata.engine.encoder import PROVIDERS
from voxstrata.engine.page_lock import host_array, page_lock
from voxstrata.engine.reductions import gathering, reduce_states
from voxstrata.exporters import ExportSpec, export
from voxstrata.exporters.cuda_graph import cuda_encoder_graph, cuda_log_mel
from voxstrata.exporters.reductions import reduction_graph
from voxstrata.store import StoreSpec, open_store

EXTRACT = sys.modules["voxstrata.engine.extraction"]  # the package's attribute of that name is the function
CPU = Device("cpu")
REDUCTIONS: list[dict[str, Any]] = [{}, {"dtype": "float32"}, {"every": 4}, {"pool": "mean"}]
# Float16 keeps 11 bits; means are float32 here and float64 in the expectation. Models in float16 differ by more: fused
# attention rounds to it less often.
TOLERANCE = {"float16": 5e-4, "float32": 1e-6}


def expected(states: np.ndarray, spec: StoreSpec) -> np.ndarray:
    """What is stored of a window's valid states, in float64; with `pool` their sum."""
    x = states.astype(np.float64)
    if spec.pool:
        return x.sum(axis=0, keepdims=True)
    return np.stack([x[i : i + spec.every].mean(axis=0) for i in range(0, len(x), spec.every)])


@pytest.mark.parametrize(
    ("half", "mode"), [(False, "bucketed"), (False, "padded"), (False, "trimmed"), (True, "bucketed")]
)
@pytest.mark.parametrize("kept", REDUCTIONS)
def test_stored_rows_are_those_of_the_plain_path(
    tiny_model: Path, half_model: Path, half: bool, mode: Any, kept: dict[str, Any]
) -> None:
    model, context = open_model(half_model if half else tiny_model), Context(mode)
    outputs = ("layer_00", "layer_02", "final")
    spec = StoreSpec(outputs, context=context, **kept)
    device = CudaEncoder(model, spec, Runtime(CPU, tokens=3000))
    frames = context.frames_computed(150)
    audio = [sound(seconds, i) for i, seconds in enumerate((3.0, 2.101)[: device.batch_size(frames)])]
    plain = CpuEncoder(model, spec).run(audio, frames)
    encoders: list[Encoder] = [device, CpuEncoder(model, spec)]
    for found in (encoder.stored_rows(audio, frames) for encoder in encoders):
        assert found.finite == [True, True, True]
        for rows, states in zip(found.rows, plain, strict=True):
            for got, state, samples in zip(rows, states, audio, strict=True):
                want = expected(state[: -(-len(samples) // SAMPLES_PER_FRAME)], spec)
                assert got.dtype == (np.float64 if spec.pool else spec.stored_dtype)
                assert got.shape == want.shape
                error = np.linalg.norm(got - want) / np.linalg.norm(want)
                assert error <= (2e-3 if half else TOLERANCE[str(spec.stored_dtype)])
    assert {"copy_in", "log_mel", "encode", "copy_out"} <= device.seconds.keys()


@pytest.mark.parametrize(("fixed", "tolerance"), [(True, 0), (False, 1e-5)])
def test_rows_depend_on_no_neighbour(tiny_model: Path, fixed: bool, tolerance: float) -> None:
    """Bit for bit where shapes are fixed; otherwise libraries may take another algorithm for other numbers of rows."""
    spec = StoreSpec(("layer_01", "final"), dtype="float32")
    device = CudaEncoder(open_model(tiny_model), spec, Runtime(CPU, tokens=800), cuda_graphs=fixed)
    audio = [sound(2.9, 1), 0.9 * sound(3.0, 2), 1e-3 * sound(1.0, 3), sound(0.02, 4)]
    together = device.stored_rows(audio, 200)
    for i, samples in enumerate(audio):
        alone = device.stored_rows([samples], 200)
        for a, b in zip(together.rows, alone.rows, strict=True):
            np.testing.assert_allclose(a[i], b[0], rtol=0, atol=tolerance)


@pytest.mark.parametrize(("fixed", "rows"), [(True, [7, 7, 7, 1]), (False, [7, 1, 3, 1])])
def test_a_bucket_has_one_shape_for_cuda_graphs_and_takes_its_silence_once(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch, fixed: bool, rows: list[int]
) -> None:
    shapes, uploads = [], []
    bind, for_frames = ort.IOBinding.bind_input, BucketSilence.for_frames

    def seen(self: Any, name: str, kind: str, index: int, dtype: Any, shape: Sequence[int], pointer: int) -> None:
        if name == "log_mel":
            shapes.append(tuple(shape))
        bind(self, name, kind, index, dtype, shape, pointer)

    def uploaded(self: BucketSilence, frames: int) -> Any:
        uploads.append(frames)
        return for_frames(self, frames)

    monkeypatch.setattr(ort.IOBinding, "bind_input", seen)
    spec = StoreSpec(("final",))
    device = CudaEncoder(open_model(tiny_model), spec, Runtime(CPU, tokens=1500), cuda_graphs=fixed)
    monkeypatch.setattr(BucketSilence, "for_frames", uploaded)
    for windows in (7, 1, 3):
        device.stored_rows([sound(1.0, i) for i in range(windows)], 200)
    device.stored_rows([sound(29.5, 1)], 1500)
    # bound once for each shape
    assert shapes == [*((n, 80, 400) for n in dict.fromkeys(rows[:3])), (rows[3], 80, 3000)]
    assert uploads == [200]


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("name", [CACHED, ENCODER])
@pytest.mark.parametrize("outputs", [("layer_00",), ("layer_00", "layer_01"), ("layer_02", "final"), ("layer_03",)])
def test_the_graph_holds_nothing_that_no_output_needs(
    tiny_model: Path, outputs: tuple[str, ...], name: str, fused: bool
) -> None:
    import onnx

    model = open_model(tiny_model)
    graph = onnx.load_model_from_string(cuda_encoder_graph(model, outputs, cached=name == CACHED, fused=fused)).graph
    assert [o.name for o in graph.output] == list(outputs)
    made = {output: node for node in graph.node for output in node.output if output}
    needed, open_ = set(outputs), list(outputs)
    while open_:
        inputs = made[open_.pop()].input
        open_ += [i for i in inputs if i in made and i not in needed]
        needed.update(inputs)
    assert set(made) <= needed
    assert {i.name for i in graph.initializer} <= needed
    # an engine binds the silence cache whatever the outputs are
    assert [i.name for i in graph.input][1:] == ["silence_key", "silence_value", "silence_bias"] * (name == CACHED)


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("fused", [True, False])
def test_the_weights_are_the_files(tiny_model: Path, half_model: Path, half: bool, fused: bool) -> None:
    """All of them, where the exported graph says that they lie; what else the graph holds is no weight."""
    import onnx

    model = open_model(half_model if half else tiny_model)
    stored = onnx.load(model.path / ENCODER, load_external_data=False).graph.initializer
    weights = {i.name: i for i in stored if i.external_data}
    built = onnx.load_model_from_string(cuda_encoder_graph(model, ("final",), cached=True, fused=fused)).graph
    assert {i.name: i for i in built.initializer if i.external_data} == weights
    assert max(np.prod(i.dims, dtype=int) for i in built.initializer if not i.external_data) <= 8
    size = (model.path / WEIGHTS).stat().st_size
    assert max(sum(int(e.value) for e in i.external_data if e.key != "location") for i in weights.values()) == size


def test_what_no_output_needs_is_not_computed(tiny_model: Path) -> None:
    audio = [sound(1.0, 1)]
    spec = StoreSpec(("layer_00", "layer_01"), dtype="float32")
    device = CudaEncoder(open_model(tiny_model), spec, Runtime(CPU, tokens=600))
    plain = CpuEncoder(open_model(tiny_model), StoreSpec(spec.outputs)).run(audio, 200)
    for rows, states in zip(device.stored_rows(audio, 200).rows, plain, strict=True):
        np.testing.assert_allclose(rows[0], states[0, :50], atol=2e-5)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_fused_attention_is_the_attention(tiny_model: Path, half_model: Path, uncondensed: Path, dtype: str) -> None:
    models = {"float32": (tiny_model, uncondensed), "float16": (half_model,)}[dtype]
    allowed = {"float32": 2e-6, "float16": 3e-3}[dtype]
    for path in models:
        model = open_model(path)
        spec = StoreSpec(model.card.outputs, dtype="float32")
        fused, plain = (CudaEncoder(model, spec, Runtime(CPU, tokens=3000), fused_attention=f) for f in (True, False))
        assert (fused.fused_attention, plain.fused_attention) == (True, False)
        for frames, seconds in ((200, (3.0, 0.7)), (700, (11.0, 12.5)), (1500, (29.7, 28.0))):
            audio = [sound(s, i) for i, s in enumerate(seconds)]
            a, b = fused.stored_rows(audio, frames), plain.stored_rows(audio, frames)
            for found, want in zip(a.rows, b.rows, strict=True):
                for x, y in zip(found, want, strict=True):
                    assert np.linalg.norm(x - y) <= allowed * np.linalg.norm(y)


def test_a_model_with_every_layer_normalised_keeps_that_on_the_device(tiny_checkpoint: Path, tmp_path: Path) -> None:
    export(str(tiny_checkpoint), tmp_path / "model", ExportSpec(norm_every=True))
    model, audio, outputs = open_model(tmp_path / "model"), [sound(1.0, 1)], ("layer_00", "layer_02", "final")
    spec = StoreSpec(outputs, dtype="float32")
    plain = CpuEncoder(model, spec).run(audio, 200)
    for fused in (True, False):
        device = CudaEncoder(model, spec, Runtime(CPU, tokens=600), fused_attention=fused)
        for rows, states in zip(device.stored_rows(audio, 200).rows, plain, strict=True):
            np.testing.assert_allclose(rows[0], states[0, :50], atol=2e-5)


@pytest.mark.parametrize("name", [CACHED, ENCODER])
def test_every_block_is_fused_and_no_logits_are_left(tiny_model: Path, name: str) -> None:
    import onnx

    built = cuda_encoder_graph(open_model(tiny_model), ("final",), cached=name == CACHED, fused=True)
    model = onnx.load_model_from_string(built)
    kinds = [n.op_type for n in model.graph.node]
    assert kinds.count("MultiHeadAttention") == 3
    assert kinds.count("Softmax") == 0
    # the flash kernel wants one head size for all, a multiple of 8, and nothing that is added to the logits
    fused = [n for n in model.graph.node if n.op_type == "MultiHeadAttention"]
    assert all(len(n.input) == 3 for n in fused)
    # weights hold what heads are padded by; nothing is padded or cut between the products
    made = {output: n for n in model.graph.node for output in n.output}
    for attention in fused:
        query, key, value = (made[part] for part in attention.input)
        if name == CACHED:  # computed ones, and then those that are cached
            assert (key.op_type, value.op_type) == ("Concat", "Concat")
            key, value = made[key.input[0]], made[value.input[0]]
        # the values' bias is theirs: behind attention it is as right, but float16 states are farther from float64
        assert [n.op_type for n in (query, key, value)] == ["Add", "MatMul", "Add"]
        assert [made[n.input[0]].op_type for n in (query, value)] == ["MatMul", "MatMul"]
        assert [n.op_type for n in model.graph.node if attention.output[0] in n.input] == ["MatMul"]
    constants = {i.name: onnx.numpy_helper.to_array(i) for i in model.graph.initializer if not i.external_data}
    padding = constants.get("columns/shape")
    assert (padding is None) if name == ENCODER else (padding.tolist() == [32, 4, 8])  # d = 8 in each head, to 16
    assert kinds.count("Conv") == 0
    assert (kinds.count("SkipLayerNormalization"), kinds.count("LayerNormalization")) == (6, 1)


def test_the_devices_log_mel_is_the_first_columns_of_the_models(tiny_model: Path) -> None:
    audio = sound(2.0, 3)[None, : 100 * SAMPLES_PER_FRAME]
    (whole,) = ort.InferenceSession(tiny_model / LOG_MEL).run(None, {"audio": audio})
    (cut,) = ort.InferenceSession(cuda_log_mel(open_model(tiny_model))).run(None, {"audio": audio, "columns": [150]})
    np.testing.assert_allclose(cut, whole[:, :, :150], rtol=0, atol=1e-5)  # a product adds in another order


def test_a_gpus_graphs_are_built_without_torch() -> None:
    code = "import sys, voxstrata.exporters.cuda_graph; print(*sorted({'torch', 'onnx'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "\n"


def test_threads_do_not_mix_their_batches(tiny_model: Path) -> None:
    spec = StoreSpec(("final",))
    model = open_model(tiny_model)
    device = CudaEncoder(model, spec, Runtime(CPU, tokens=600))
    batches = [[sound(0.5 + 0.1 * (i + j) % 2, 10 * i + j) for j in range(1 + i % 3)] for i in range(12)]
    with ThreadPoolExecutor(device.concurrency) as pool:
        at_once = list(pool.map(partial(device.stored_rows, frames=200), batches))
    alone = CudaEncoder(model, spec, Runtime(CPU, tokens=600))
    for batch, got in zip(batches, at_once, strict=True):
        for a, b in zip(got.rows[0], alone.stored_rows(batch, 200).rows[0], strict=True):
            np.testing.assert_array_equal(a, b)


def test_nothing_is_queued_that_a_run_reads(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`bind_cpu_input` queues a copy on a stream that another caller's run may take: it is for the host's."""
    queued = set()
    bind = ort.IOBinding.bind_cpu_input

    def seen(self: Any, name: str, array: np.ndarray) -> None:
        queued.add(name)
        bind(self, name, array)

    monkeypatch.setattr(ort.IOBinding, "bind_cpu_input", seen)
    for kept in REDUCTIONS:
        device = CudaEncoder(open_model(tiny_model), StoreSpec(("final",), **kept), Runtime(CPU, tokens=600))
        device.stored_rows([sound(1.0, 1)], 200)
    assert queued == {"columns"}


def test_no_other_thread_asks_the_device_while_a_cuda_graph_is_recorded(tiny_model: Path) -> None:
    """Each caller's first batch of a bucket is recorded; CUDA then fails what others ask, and the recording."""
    device = CudaEncoder(open_model(tiny_model), StoreSpec(("final",)), Runtime(CPU, tokens=600), cuda_graphs=True)
    recording = threading.Event()
    others: list[bool] = []
    upload, fetch = device._upload, device._fetch
    session, run = ort.InferenceSession, ort.InferenceSession.run_with_iobinding
    recorded = set()

    def watched(step: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            others.append(recording.is_set())
            found = step(*arguments)
            others.append(recording.is_set())
            return found

        return call

    def running(self: Any, binding: Any, options: Any = None) -> None:
        graph = options and options.get_run_config_entry("gpu_graph_id")
        if not graph or graph in recorded:
            run(self, binding, options)
            return
        recorded.add(graph)
        recording.set()
        time.sleep(0.05)
        run(self, binding, options)
        recording.clear()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(session, "run_with_iobinding", running)
        patch.setattr(device, "_upload", watched(upload))
        patch.setattr(device, "_fetch", watched(fetch))
        with ThreadPoolExecutor(2) as pool:
            done = [pool.submit(device.stored_rows, [sound(1.0, i)], 100 + 100 * (i % 3)) for i in range(12)]
            assert all(d.result().finite == [True] for d in done)
    assert 3 <= len(recorded) <= 6
    assert len(others) == 48
    assert not any(others)


def test_memory_that_runs_out_is_told_with_what_to_do(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    device = CudaEncoder(open_model(tiny_model), StoreSpec(("final",)), Runtime(CPU, tokens=600))

    def full(*_: Any) -> None:
        raise RuntimeError("Failed to allocate memory")

    with monkeypatch.context() as patch:
        patch.setattr(ort.OrtValue, "ortvalue_from_shape_and_type", full)
        with pytest.raises(InputError, match=r"3 windows of 200 .*Failed to allocate.*--tokens"):
            device.stored_rows([sound(1.0, 1)] * 3, 200)
    device.stored_rows([sound(1.0, 1)], 200)
    for step in ("run_with_iobinding", "io_binding"):
        with monkeypatch.context() as patch:
            patch.setattr(ort.InferenceSession, step, full)
            with pytest.raises(InputError, match="Failed to allocate"):
                device.stored_rows([sound(0.5, 1)], 300)


def on_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let `extract` take the path of accelerators, with the CPU as the device."""
    monkeypatch.setattr(EXTRACT, "make_encoder", CudaEncoder)


@pytest.mark.parametrize("kept", REDUCTIONS)
def test_a_store_holds_the_same_on_either_path(
    tiny_model: Path,
    make_corpus: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    kept: dict[str, Any],
) -> None:
    corpus = make_corpus({"en/a": 1.3, "en/b": 0.02, "en/c": 4.4, "de/d": 2.0, "de/long": 35.03})
    extract(corpus, tiny_model, tmp_path / "plain.zarr", StoreSpec("layer_02,final", **kept))
    on_device(monkeypatch)
    report = extract(
        corpus, tiny_model, tmp_path / "device.zarr", StoreSpec("layer_02,final", **kept), Runtime(tokens=2000)
    )
    assert report.failed == 0
    plain, device = open_store(tmp_path / "plain.zarr"), open_store(tmp_path / "device.zarr")
    for output in ("layer_02", "final"):
        if kept.get("pool"):
            np.testing.assert_allclose(device.pooled(output), plain.pooled(output), rtol=1e-4, atol=1e-4)
            continue
        for name in plain.ids:
            a, b = device.frames(name, output).astype(np.float64), plain.frames(name, output).astype(np.float64)
            assert a.shape == b.shape
            assert np.linalg.norm(a - b) <= 1e-3 * np.linalg.norm(b)


@pytest.mark.parametrize("kept", [{}, {"every": 4}])
def test_a_run_that_fails_on_the_device_is_resumed_to_the_same_bytes(
    tiny_model: Path,
    make_corpus: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    kept: dict[str, Any],
) -> None:
    corpus = make_corpus({f"{language}/{i}": 0.4 + 0.3 * i for language in ("en", "de", "es") for i in range(5)})
    on_device(monkeypatch)

    def run(name: str) -> ExtractReport:
        return extract(corpus, tiny_model, tmp_path / name, StoreSpec("layer_01,final", **kept), Runtime(tokens=400))

    assert run("whole.zarr").failed == 0
    fetch, left = CudaEncoder._fetch, iter(range(9))

    def failing(self: CudaEncoder, *arguments: Any) -> Any:
        if next(left, None) is None:
            raise RuntimeError("CUDA failure 2: out of memory")
        return fetch(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(CudaEncoder, "_fetch", failing)
        with pytest.raises(InputError, match="out of memory"):
            run("s.zarr")
    assert 0 < run("s.zarr").resumed_units < 3
    assert contents(tmp_path / "s.zarr") == contents(tmp_path / "whole.zarr")


def test_overflow_is_found_on_the_device_too(
    huge: Path, make_corpus: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus = make_corpus({"en/a": 1.0})
    plain = extract(corpus, huge, tmp_path / "plain.zarr", allow_overflow=True)
    on_device(monkeypatch)
    with pytest.raises(InputError, match=r"^en/a: final reaches beyond float16 \(65504\); use --dtype float32"):
        extract(corpus, huge, tmp_path / "s.zarr")
    report = extract(corpus, huge, tmp_path / "s.zarr", allow_overflow=True)
    assert report.overflows == plain.overflows > 0


def test_infinities_of_float16_arithmetic_are_no_overflow_of_what_is_stored(
    huge: Path, make_corpus: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """TensorRT computes a float32 model in float16: what is infinite there may hide any number."""
    on_device(monkeypatch)
    monkeypatch.setattr(Device, "arithmetic", lambda *_: "float16")
    with pytest.raises(InputError, match=r"^en/a: the encoder's final holds values that are not finite; float16 arith"):
        extract(make_corpus({"en/a": 1.0}), huge, tmp_path / "s.zarr", allow_overflow=True)


@pytest.mark.parametrize("stored", ["float32", "float16"])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e6])
def test_one_value_that_is_not_finite_is_told_of_its_output_alone(bad: float, stored: Any) -> None:
    spec = StoreSpec(("layer_00", "final"), dtype=stored)
    session = ort.InferenceSession(reduction_graph(spec.outputs, np.float32, 4, stored, means=False))
    states = np.random.default_rng(0).standard_normal((2, 5, 4)).astype(np.float32)
    index, weights = gathering([(0, 5), (0, 3)], 5, spec)
    assert weights is None

    def finite(broken: np.ndarray) -> list[bool]:
        feeds = {"index": index, "layer_00": states, "final": broken}
        return [bool(v == 0) for v in session.run(["finite"], feeds)[0]]

    assert finite(states) == [True, True]
    broken = states.copy()
    broken[1, 2, 3] = bad
    assert finite(broken) == [True, bad == 1e6 and stored == "float32"]
    broken[1, 2, 3], broken[1, 3, 0] = 0, bad  # after the valid frames: nobody's
    assert finite(broken) == [True, True]


@pytest.mark.parametrize(("means", "casts"), [(False, []), (True, ["float32"])])
def test_on_the_device_rows_are_checked_in_their_own_type_and_means_are_products(means: bool, casts: list[str]) -> None:
    """CUDA has no fast sum over the middle of three dimensions, and a cast of all rows takes as long as their copy."""
    import onnx

    built = reduction_graph(("final",), np.float16, 4, np.float16, means=means)
    nodes = onnx.shape_inference.infer_shapes(onnx.load_model_from_string(built)).graph.node
    types = {f"{np.dtype(t)}": int(onnx.helper.np_dtype_to_tensor_dtype(np.dtype(t))) for t in ("float16", "float32")}
    made = ("stored/final", "finite")
    found = [node.attribute[0].i for node in nodes if node.op_type == "Cast" and node.output[0] not in made]
    assert found == [types[c] for c in casts]
    (summed,) = [node for node in nodes if node.op_type == "ReduceSum"]
    assert list(summed.input) == ["final/nought"]  # over all: no axes
    assert [node.op_type for node in nodes].count("MatMul") == means


def test_states_are_reduced_to_hand_worked_rows() -> None:
    first = np.array([[1, 2], [3, 6], [8, 70_000], [9, 9]], np.float32)  # the last is after the speech
    second = np.array([[5, -2], [4, 4], [4, np.nan], [4, 4]], np.float32)
    kept = {
        "frames": (StoreSpec(dtype="float32"), [[1, 2], [3, 6], [8, 70_000]], [[5, -2]]),
        "half": (StoreSpec(), [[1, 2], [3, 6], [8, np.inf]], [[5, -2]]),
        "every": (StoreSpec(dtype="float32", every=2), [[2, 4], [8, 70_000]], [[5, -2]]),
        "pool": (StoreSpec(pool="mean"), [[12, 70_008]], [[5, -2]]),
    }
    for name, (spec, *rows) in kept.items():
        found = reduce_states([np.stack([first, second])], [3, 1], spec)
        for got, want in zip(found.rows[0], rows, strict=True):
            np.testing.assert_array_equal(got, want)
            assert got.dtype == (np.float64 if spec.pool else spec.stored_dtype)
        assert found.finite == [name != "half"]
    assert reduce_states([first[None], second[None]], [2], StoreSpec()).finite == [True, True]
    assert reduce_states([first[None], second[None]], [3], StoreSpec(dtype="float32")).finite == [True, False]


def test_rows_are_gathered_by_hand_worked_places() -> None:
    index, weights = gathering([(0, 3), (0, 1)], 10, StoreSpec(("final",), every=2))
    assert weights is not None
    np.testing.assert_array_equal(index, [[0, 1], [2, 2], [10, 10]])
    np.testing.assert_array_equal(weights[:, 0], [[0.5, 0.5], [1, 0], [1, 0]])
    index, _ = gathering([(4, 3), (1, 2)], 10, StoreSpec(("final",), every=2))  # frames before those are not kept
    np.testing.assert_array_equal(index, [[4, 5], [6, 6], [11, 12]])
    index, weights = gathering([(0, 2), (0, 3)], 10, StoreSpec(("final",), pool="mean"))
    assert weights is not None
    np.testing.assert_array_equal(index, [[0, 1, 1], [10, 11, 12]])
    np.testing.assert_allclose(weights[:, 0], [[1 / 2, 1 / 2, 0], [1 / 3, 1 / 3, 1 / 3]], rtol=1e-7)


class Driver:
    """Stands for CUDA's driver: notes what it is asked for, and answers `refused` with an error."""

    def __init__(self, refused: str = "") -> None:
        self.calls: list[tuple[str, tuple[Any, ...]]] = []
        self._refused = refused

    def __getattr__(self, name: str) -> Callable[..., int]:
        def call(*arguments: Any) -> int:
            self.calls.append((name, arguments))
            return 100 * (name == self._refused)

        return call


def test_pages_are_locked_while_their_array_lives(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = Driver()
    monkeypatch.setattr("ctypes.CDLL", lambda _: driver)
    array = host_array(1000, np.float16)
    array[:] = 7
    begin = array.ctypes.data
    assert begin % mmap.PAGESIZE == 0
    assert page_lock(array, 3)
    name, (pointer, size, _) = driver.calls[-1]
    assert (name, pointer.value, size.value) == ("cuMemHostRegister_v2", begin, 2000)
    assert dict(driver.calls)["cuDeviceGet"][1].value == 3
    view = array[:10]
    del array
    assert driver.calls[-1][0] == "cuMemHostRegister_v2"  # a view still holds it
    del view
    assert (driver.calls[-1][0], driver.calls[-1][1][0].value) == ("cuMemHostUnregister", begin)


@pytest.mark.parametrize(("locked", "told"), [([True, True], "pinned"), ([True, False], "pageable")])
def test_memory_counts_as_pinned_when_all_of_it_is(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch, locked: list[bool], told: str
) -> None:
    device = CudaEncoder(open_model(tiny_model), StoreSpec(("final",)), Runtime(CPU, tokens=1500))
    assert device.host_memory == "pageable"
    device.device, device.host_memory = Device("cuda"), "pinned"  # as it begins on a GPU
    answers = iter(locked)  # samples, stored rows
    monkeypatch.setattr("voxstrata.engine.device_rows.page_lock", lambda *_: next(answers))
    device.stored_rows([sound(1.0, 1)], 200)
    assert device.host_memory == told


@pytest.mark.parametrize("refused", ["cuInit", "cuDevicePrimaryCtxRetain", "cuMemHostRegister_v2"])
def test_pages_that_cannot_be_locked_serve_as_they_are(monkeypatch: pytest.MonkeyPatch, refused: str) -> None:
    driver = Driver(refused)
    monkeypatch.setattr("ctypes.CDLL", lambda _: driver)
    assert not page_lock(host_array(10, np.float32), 0)
    assert driver.calls[-1][0] == refused  # nothing is asked for after it, and nothing given back

    def missing(_: str) -> None:
        raise OSError

    monkeypatch.setattr("ctypes.CDLL", missing)
    assert not page_lock(host_array(10, np.float32), 0)


@pytest.mark.parametrize("provider", ["cuda", "tensorrt"])
def test_the_installed_provider_knows_every_option(tiny_model: Path, provider: str) -> None:
    library = Path(ort.__file__).parent / "capi" / f"libonnxruntime_providers_{provider}.so"
    if not library.exists():
        pytest.skip(f"this onnxruntime has no {library.name}")
    encoder = CudaEncoder(open_model(tiny_model), StoreSpec(("final",)), Runtime(CPU), cuda_graphs=True)
    encoder.device = Device(provider, 1)
    (name, options), *behind = encoder._providers(encoder._encoder_session(200))
    assert name == PROVIDERS[provider]
    assert options["device_id"] == 1
    assert [n for n, _ in behind] == [PROVIDERS[p] for p in ("cuda", "cpu") if p != provider]
    with library.open("rb") as f, mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ) as text:
        assert [key for key in options if text.find(key.encode() + b"\0") < 0] == []
        assert text.find(b"no_such_option\0") < 0
    # graphs are recorded of the encoder alone: the others' shapes or addresses change
    assert "enable_cuda_graph" not in encoder._providers(LOG_MEL)[0][1]
    assert encoder._providers(LOG_MEL)[0][0] == PROVIDERS["cuda"]


def test_a_missing_package_is_named_with_its_extra(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(InputError, match=r"pip install 'voxstrata\[gpu\]'"):
        CudaEncoder(open_model(tiny_model), StoreSpec(("final",)), Runtime(CPU))
