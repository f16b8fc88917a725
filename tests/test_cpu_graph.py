"""The CPU's graph keeps what makes it fast, and leaves out only what nobody asked for.

That it computes what PyTorch computes is in test_graph.py, with the other graphs.
"""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from conftest import sound
from onnx import TensorProto, helper

torch = pytest.importorskip("torch")
from test_graph import ALL, build, mel, plain_torch, relative, run, session  # noqa: E402

from voxstrata import Context, Device, InputError, UsageError, open_model  # noqa: E402
from voxstrata.corpus import read_corpus  # noqa: E402
from voxstrata.encoders import ModelFolder  # noqa: E402
from voxstrata.encoders.card import CPU, WEIGHTS  # noqa: E402
from voxstrata.engine import CpuEncoder, CudaEncoder, Runtime  # noqa: E402
from voxstrata.exporters import ExportSpec, export  # noqa: E402
from voxstrata.exporters.checkpoint import Checkpoint  # noqa: E402
from voxstrata.store import StoreSpec  # noqa: E402
from voxstrata.studies.drift.measure import measure_drift  # noqa: E402


def optimised(path: Path, folder: Path) -> Counter[str]:
    """Operators of the graph that ONNX Runtime makes of a file and runs."""
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.optimized_model_filepath = str(folder / "optimised.onnx")
    ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    nodes = onnx.load(folder / "optimised.onnx", load_external_data=False).graph.node
    return Counter(n.op_type for n in nodes)


def test_onnx_runtime_runs_it_fused_and_without_copies(tiny_model: Path, tmp_path: Path) -> None:
    """3 blocks. Exporters and runtimes lose fusions silently."""
    found = optimised(tiny_model / CPU, tmp_path)
    assert found["MultiHeadAttention"] == 3
    assert found["BiasGelu"] == 3
    assert found["Gelu"] == 2  # after the convolutions
    assert found["LayerNormalization"] == 2 * 3 + 1
    assert found["MatMul"] == 6 * 3
    assert found["Softmax"] == found["Identity"] == 0
    assert found["Cast"] == 5  # the outputs, to float16
    # what is done to weights is done when the graph is loaded; two reshapes are the silence cache's
    assert found["Pad"] == 0
    assert found["Reshape"] == 2
    assert found["Transpose"] == 3  # the silence cache's, and that of the convolutions


def test_attention_never_holds_the_scores(tiny_model: Path) -> None:
    """32 windows × 4 heads × 1500² scores would be 1.1 GB."""
    code = """
import resource, sys
import numpy as np, onnxruntime as ort
options = ort.SessionOptions()
options.intra_op_num_threads = 1
options.log_severity_level = 3
graph = ort.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
none = np.zeros((3, 4, 0, 8), np.float32)
feeds = {"log_mel": np.zeros((32, 80, 3000), np.float32), "silence_key": none, "silence_value": none}
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
graph.run(["final"], feeds | {"silence_bias": none[..., 0], "positions": np.full(3, 1500)})
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    if sys.platform != "linux":
        pytest.skip("ru_maxrss is in kilobytes on Linux alone")
    done = subprocess.run(
        [sys.executable, "-c", code, str(tiny_model / CPU)], capture_output=True, text=True, check=True
    )
    assert int(done.stdout) < 500_000


def test_positions_that_a_block_need_not_compute_change_nothing_before_them(tiny_model: Path) -> None:
    graph, x = session(tiny_model / CPU), mel(120, batch=2)
    silence = {i.name: i.shape for i in graph.get_inputs() if i.name.startswith("silence")}
    rng = np.random.default_rng(1)
    feeds = {
        k: rng.standard_normal([9 if n == "keys" else n for n in d]).astype(np.float32) for k, d in silence.items()
    }
    whole = dict(zip(ALL, run(graph, ALL, feeds | {"log_mel": x}), strict=True))
    part = graph.run(ALL, feeds | {"log_mel": x, "positions": np.array([120, 120, 47])})
    for name, got in zip(ALL, part, strict=True):
        kept = 47 if name in ("layer_03", "final") else 120
        assert got.shape == (2, kept, 32)
        assert relative(got, whole[name][:, :kept]) < 1e-6, name


@pytest.mark.parametrize("frames", [1, 130])
def test_widths_that_are_spread_in_memory_give_the_same_states(tmp_path: Path, frames: int) -> None:
    """d and the MLP's width are multiples of 1024, where zeros are put between the rows."""
    from transformers import WhisperConfig, WhisperFeatureExtractor
    from transformers.models.whisper.modeling_whisper import WhisperEncoder

    torch.manual_seed(3)
    config = WhisperConfig(
        d_model=1024, encoder_layers=1, encoder_attention_heads=16, encoder_ffn_dim=2048, vocab_size=8, pad_token_id=0
    )
    encoder = WhisperEncoder(config).eval().requires_grad_(False)
    wide = Checkpoint("wide", None, config, encoder, WhisperFeatureExtractor())
    outputs = ("layer_00", "layer_01", "final")
    graph, x = build(wide, tmp_path, outputs=outputs, name=CPU), mel(frames)
    assert optimised(tmp_path / "graph.onnx", tmp_path)["Pad"] > 0
    want = plain_torch(wide, x)
    for name, got in zip(outputs, run(graph, outputs, {"log_mel": x}), strict=True):
        assert relative(got, want[name]) < 1e-5, name


@pytest.mark.parametrize("mode", ["padded", "bucketed", "trimmed"])
def test_keeping_fewer_positions_or_outputs_keeps_their_states(tiny_model: Path, mode: str) -> None:
    context = Context(mode, edges=(200, 1500))  # type: ignore[arg-type]
    frames, audio = context.frames_computed(120), [sound(2.4, 1), sound(2.0, 2)]
    every = CpuEncoder(open_model(tiny_model), StoreSpec(context=context))
    whole = dict(zip(ALL, every.run(audio, frames), strict=True))
    assert all(s.shape == (2, frames, 32) for s in whole.values())
    for outputs in (ALL, ("layer_00",), ("layer_01",), ("layer_00", "layer_02"), ("layer_03",), ("final",)):
        encoder = CpuEncoder(open_model(tiny_model), StoreSpec(outputs, context=context))
        for name, got in zip(outputs, encoder.run(audio, frames, keep=120), strict=True):
            assert got.shape == (2, 120, 32)
            assert relative(got, whole[name][:, :120]) < 1e-6, (outputs, name)


def test_a_shallow_output_leaves_the_deeper_blocks_out(tiny_model: Path) -> None:
    encoder = CpuEncoder(open_model(tiny_model), StoreSpec(("layer_00", "layer_02")))
    assert encoder._positions(300, 250).tolist() == [300, 250, 1]
    encoder = CpuEncoder(open_model(tiny_model), StoreSpec(("layer_00",)))
    assert encoder._positions(300, 250).tolist() == [1, 1, 1]
    encoder = CpuEncoder(open_model(tiny_model))
    assert encoder._positions(300, 250).tolist() == [300, 300, 250]


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_states_as_float16_are_the_states_cast(tiny_checkpoint: Path, tmp_path: Path, dtype: str) -> None:
    """By the graph where it is the CPU's, the same bits as numpy's."""
    export(str(tiny_checkpoint), tmp_path / "model", ExportSpec(dtype=dtype))  # type: ignore[arg-type]
    model, audio = open_model(tmp_path / "model"), [sound(2.4, 1), sound(2.0, 2)]
    encoder = CpuEncoder(model)
    log_mel = encoder.log_mel(audio, 200)
    for states, half in zip(
        encoder.encode(log_mel, 200, keep=120), encoder.encode(log_mel, 200, keep=120, half=True), strict=True
    ):
        assert states.dtype == np.dtype(dtype)
        assert half.dtype == np.float16
        np.testing.assert_array_equal(half.view(np.uint16), states.astype(np.float16).view(np.uint16))


def test_the_graphs_cast_rounds_as_numpys_does_and_overflows_to_infinity(tmp_path: Path) -> None:
    """Halfway cases, subnormals, the ends of the range: what the stores' bytes and the count of overflows rest on."""
    cast = helper.make_node("Cast", ["x"], ["y"], to=TensorProto.FLOAT16)
    x, y = (
        helper.make_tensor_value_info(n, t, ["n"]) for n, t in (("x", TensorProto.FLOAT), ("y", TensorProto.FLOAT16))
    )
    graph = helper.make_model(
        helper.make_graph([cast], "cast", [x], [y]), opset_imports=[helper.make_opsetid("", 20)], ir_version=10
    )
    halves = np.arange(0x7C00, dtype=np.uint16).view(np.float16).astype(np.float64)  # all that are not negative
    between = (halves[:-1] + halves[1:]) / 2
    ends = [65519.996, 65520.0, 65536.0, 3e38, np.inf, 1e-45]
    values = np.concatenate([halves, between, np.nextafter(between.astype(np.float32), 0), ends]).astype(np.float32)
    values = np.concatenate([values, -values])
    (got,) = session(graph.SerializeToString()).run(None, {"x": values})
    with np.errstate(over="ignore"):
        np.testing.assert_array_equal(got.view(np.uint16), values.astype(np.float16).view(np.uint16))


# ---- 8 bits


@pytest.fixture(scope="module")
def int8_model(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("int8") / "model"
    export(str(tiny_checkpoint), target, ExportSpec(dtype="int8"))
    return target


def test_an_int8_model_has_8_bits_in_every_linear_layer_and_one_graph(int8_model: Path, tmp_path: Path) -> None:
    assert open_model(int8_model).card.dtype == "int8"
    assert {p.name for p in int8_model.glob("encoder_*")} == {CPU, WEIGHTS}
    found = optimised(int8_model / CPU, tmp_path)
    assert found["DynamicQuantizeMatMul"] == 6 * 3
    assert found["MatMul"] == 0
    assert found["MultiHeadAttention"] == 3
    # d = 32: 4 · d² + 8 · d² weights in each of 3 blocks; positions and convolutions stay in float32
    blocks, rest = 3 * 12 * 32**2, 4 * (1500 * 32 + 3 * 80 * 32 + 3 * 32**2)
    assert (int8_model / WEIGHTS).stat().st_size < blocks + rest + 4096 * 80  # each tensor begins on a page


def test_int8_states_do_not_depend_on_the_outputs_chosen_or_the_positions_kept(int8_model: Path) -> None:
    audio = [np.random.default_rng(3).standard_normal(30_000).astype(np.float32)]
    whole = dict(
        zip(
            ("layer_02", "final"),
            CpuEncoder(open_model(int8_model), StoreSpec("layer_02,final")).run(audio, 150),
            strict=True,
        )
    )
    for output, states in whole.items():
        (some,) = CpuEncoder(open_model(int8_model), StoreSpec(output)).run(audio, 150, keep=94)
        np.testing.assert_array_equal(some, states[:, :94])


def test_int8_states_stay_near_float32(tiny_model: Path, int8_model: Path) -> None:
    audio = [sound(2.0, 3)]
    for name, near, want in zip(
        ALL,
        CpuEncoder(open_model(int8_model)).run(audio, 150),
        CpuEncoder(open_model(tiny_model)).run(audio, 150),
        strict=True,
    ):
        assert near.dtype == np.float32
        assert relative(near, want) < (1e-6 if name == "layer_00" else 0.1), name


def test_an_int8_window_has_a_batch_to_itself_and_no_gpu(int8_model: Path) -> None:
    model = open_model(int8_model)
    assert CpuEncoder(model, runtime=Runtime(tokens=10_000)).batch_size(100) == 1
    with pytest.raises(UsageError, match="int8 model runs on CPUs alone"):
        CudaEncoder(model, StoreSpec(("final",)), Runtime(Device("cuda")))


def test_drift_measures_8_bits_against_another_export(
    int8_model: Path, tiny_model: Path, make_corpus: Callable[..., Path]
) -> None:
    corpus = read_corpus(make_corpus({"en/a": 29.5}))  # a full window: no silence cache, whose drift would come between
    int8, whole = open_model(int8_model), open_model(tiny_model)
    drifts = {
        against: {
            (r["context"], r["output"]): r["cosine"]
            for r in measure_drift(corpus, model, against=reference).table.to_pylist()
        }
        for against, model, reference in (("itself", whole, None), ("float32", int8, whole))
    }
    at = ("bucketed", "layer_01")
    assert drifts["itself"][at] == pytest.approx(1, abs=1e-7)
    assert 0.9 < drifts["float32"][at] < 1 - 1e-6
    card = dataclasses.replace(whole.card, weights_sha256="0")
    with pytest.raises(InputError, match="not exports of the same encoder"):
        measure_drift(corpus, int8, against=ModelFolder(whole.path, card))
