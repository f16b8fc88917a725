"""The graphs compute what PyTorch computes: every output, any length and batch, any member of the batch alone."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest

torch = pytest.importorskip("torch")
from voxstrata.encoders.card import CACHED, CPU, ENCODER, LOG_MEL, WEIGHTS  # noqa: E402
from voxstrata.encoders.outputs import as_float16  # noqa: E402
from voxstrata.encoders.silence import EMPTY_GROUP_LOGIT  # noqa: E402
from voxstrata.exporters.checkpoint import Checkpoint, load_checkpoint  # noqa: E402
from voxstrata.exporters.cpu_graph import cpu_encoder_graph  # noqa: E402
from voxstrata.exporters.pytorch import hidden_states, queries_keys_values  # noqa: E402
from voxstrata.exporters.standard_graph import encoder_graph  # noqa: E402
from voxstrata.exporters.weights import WeightsFile  # noqa: E402

ALL = ("layer_00", "layer_01", "layer_02", "layer_03", "final")
Array = np.ndarray[Any, np.dtype[Any]]


@pytest.fixture(scope="module")
def checkpoint(tiny_checkpoint: Path) -> Checkpoint:
    return load_checkpoint(str(tiny_checkpoint))


def session(path: Path | bytes) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    return ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def build(
    checkpoint: Checkpoint,
    folder: Path,
    *,
    outputs: Sequence[str] = ALL,
    name: str = ENCODER,
    norm_every: bool = False,
    dtype: str = "float32",
) -> ort.InferenceSession:
    folder.mkdir(parents=True, exist_ok=True)
    with WeightsFile(folder / "weights", checkpoint.state(), checkpoint.shape, dtype) as weights:
        if name == CPU:
            graph = cpu_encoder_graph(weights, outputs=outputs, norm_every=norm_every)
        else:
            graph = encoder_graph(weights, outputs=outputs, cached=name == CACHED, norm_every=norm_every)
    (folder / "graph.onnx").write_bytes(graph.SerializeToString())
    return session(folder / "graph.onnx")


def mel(frames: int, batch: int = 1, n_mels: int = 80, seed: int = 0) -> Array:
    """Random values in the range of real log-mel, [batch, n_mels, 2·frames]."""
    rng = np.random.default_rng(seed)
    return rng.uniform(-1.0, 1.5, (batch, n_mels, 2 * frames)).astype(np.float32)


def relative(got: Array, want: Array) -> float:
    want = want.astype(np.float64)
    return float(np.linalg.norm(got.astype(np.float64) - want) / np.linalg.norm(want))


def run(graph: ort.InferenceSession, outputs: Sequence[str], feeds: dict[str, Array]) -> list[Array]:
    """Run any of the graphs: without a silence cache where none is given, and with every position computed."""
    inputs = {i.name: i.shape for i in graph.get_inputs()}
    feeds = dict(feeds)
    if "positions" in inputs:
        feeds["positions"] = np.full(inputs["positions"], feeds["log_mel"].shape[2] // 2)
    for name in inputs.keys() - feeds.keys():
        feeds[name] = np.zeros([0 if n == "keys" else n for n in inputs[name]], np.float32)
    found: list[Array] = graph.run(outputs, feeds)
    return found


def plain_torch(checkpoint: Checkpoint, x: Array) -> dict[str, Array]:
    """The encoder block by block in float64, straight from Whisper's definition, for [1, n_mels, 2·frames]."""
    f = torch.nn.functional
    w = {k: torch.from_numpy(v).double() for k, v in checkpoint.state().items()}
    shape = checkpoint.shape
    h = f.gelu(f.conv1d(torch.from_numpy(x).double(), w["conv1.weight"], w["conv1.bias"], padding=1))
    h = f.gelu(f.conv1d(h, w["conv2.weight"], w["conv2.bias"], stride=2, padding=1))[0].T
    h = h + w["embed_positions.weight"][: len(h)]
    norm = lambda h, name: f.layer_norm(h, (shape.d_model,), w[f"{name}.weight"], w[f"{name}.bias"])  # noqa: E731
    states = {"layer_00": h}
    for n in range(shape.layers):
        p = f"layers.{n}"
        a = norm(h, f"{p}.self_attn_layer_norm")
        q = a @ w[f"{p}.self_attn.q_proj.weight"].T + w[f"{p}.self_attn.q_proj.bias"]
        k = a @ w[f"{p}.self_attn.k_proj.weight"].T
        v = a @ w[f"{p}.self_attn.v_proj.weight"].T + w[f"{p}.self_attn.v_proj.bias"]
        heads = []
        for q1, k1, v1 in zip(q.chunk(shape.heads, 1), k.chunk(shape.heads, 1), v.chunk(shape.heads, 1), strict=True):
            heads.append(torch.softmax(q1 @ k1.T / q1.shape[1] ** 0.5, -1) @ v1)
        h = h + torch.cat(heads, 1) @ w[f"{p}.self_attn.out_proj.weight"].T + w[f"{p}.self_attn.out_proj.bias"]
        a = f.gelu(norm(h, f"{p}.final_layer_norm") @ w[f"{p}.fc1.weight"].T + w[f"{p}.fc1.bias"])
        h = h + a @ w[f"{p}.fc2.weight"].T + w[f"{p}.fc2.bias"]
        states[f"layer_{n + 1:02d}"] = h
    return {k: v.numpy()[None] for k, v in (states | {"final": norm(h, "layer_norm")}).items()}


# ---- the encoder


@pytest.mark.parametrize("name", [ENCODER, CPU])
@pytest.mark.parametrize("frames", [1, 5, 50, 333, 1500])
def test_every_output_is_whispers_at_any_length(
    tiny_model: Path, checkpoint: Checkpoint, name: str, frames: int
) -> None:
    x = mel(frames, seed=frames)
    got = dict(zip(ALL, run(session(tiny_model / name), ALL, {"log_mel": x}), strict=True))
    for name, want in plain_torch(checkpoint, x).items():
        assert got[name].shape == (1, frames, 32)
        assert got[name].dtype == np.float32
        assert relative(got[name], want) < 1e-5, name


def test_a_full_window_gives_hugging_faces_hidden_states(tiny_model: Path, checkpoint: Checkpoint) -> None:
    x = mel(1500, batch=2)
    got = dict(zip(ALL, session(tiny_model / ENCODER).run(ALL, {"log_mel": x}), strict=True))
    before_norm = []
    hook = checkpoint.encoder.layer_norm.register_forward_pre_hook(lambda _, args: before_norm.append(args[0]))
    with torch.inference_mode():
        theirs = checkpoint.encoder(torch.from_numpy(x), output_hidden_states=True)
    hook.remove()
    for k in range(3):
        assert relative(got[f"layer_{k:02d}"], theirs.hidden_states[k].numpy()) < 1e-5
    assert relative(got["layer_03"], before_norm[0].numpy()) < 1e-5
    assert relative(got["final"], theirs.last_hidden_state.numpy()) < 1e-5
    # Hugging Face's last hidden state is the normalised one, so `layer_L` must differ from it
    assert relative(got["layer_03"], theirs.hidden_states[3].numpy()) > 0.1


@pytest.mark.parametrize("frames", [5, 700, 1500])
def test_the_reference_is_the_plain_definition(checkpoint: Checkpoint, frames: int) -> None:
    """Validation stands on hidden_states, so it is held to the float64 loop itself."""
    x = mel(frames)
    got = hidden_states(checkpoint.encoder, torch.from_numpy(x))
    assert tuple(got) == ALL
    for name, want in plain_torch(checkpoint, x).items():
        assert relative(got[name].numpy(), want) < 1e-5, name
    # and leaves the encoder as it was
    assert checkpoint.config.max_source_positions == 1500
    assert checkpoint.encoder.embed_positions.weight.shape == (1500, 32)


def test_128_mel_bins(tmp_path: Path) -> None:
    from transformers import WhisperConfig, WhisperFeatureExtractor
    from transformers.models.whisper.modeling_whisper import WhisperEncoder

    torch.manual_seed(3)
    config = WhisperConfig(
        d_model=24, encoder_layers=1, encoder_attention_heads=3, encoder_ffn_dim=48, num_mel_bins=128, vocab_size=8,
        pad_token_id=0,
    )  # fmt: skip
    encoder = WhisperEncoder(config).eval().requires_grad_(False)
    wide = Checkpoint("wide", None, config, encoder, WhisperFeatureExtractor(feature_size=128))
    outputs = ("layer_00", "layer_01", "final")
    graph = build(wide, tmp_path, outputs=outputs)
    for frames in (7, 400):
        x = mel(frames, n_mels=128)
        want = plain_torch(wide, x)
        for name, got in zip(outputs, run(graph, outputs, {"log_mel": x}), strict=True):
            assert relative(got, want[name]) < 1e-5, name


@pytest.mark.parametrize("name", [ENCODER, CPU])
def test_one_session_serves_every_batch_and_length_and_a_row_is_the_row_alone(tiny_model: Path, name: str) -> None:
    graph = session(tiny_model / name)
    for batch, frames in ((1, 40), (5, 333), (3, 2), (2, 1500), (1, 40)):
        x = mel(frames, batch, seed=batch)
        x[0] *= 3  # a loud neighbour
        together = run(graph, ALL, {"log_mel": x})
        for row in range(batch):
            for got, alone in zip(together, run(graph, ALL, {"log_mel": x[row : row + 1]}), strict=True):
                assert got.shape == (batch, frames, 32)
                assert relative(got[row], alone[0]) < 1e-6


@pytest.mark.parametrize("name", [ENCODER, CPU])
def test_a_subset_of_outputs_is_the_same_states(
    checkpoint: Checkpoint, tiny_model: Path, tmp_path: Path, name: str
) -> None:
    some = ("layer_01", "final")
    graph = build(checkpoint, tmp_path, outputs=some, name=name)
    halves = tuple(as_float16(n) for n in some) if name == CPU else ()
    assert tuple(o.name for o in graph.get_outputs()) == (*some, *halves)
    x = mel(60)
    whole = run(session(tiny_model / name), some, {"log_mel": x})
    for a, b in zip(run(graph, some, {"log_mel": x}), whole, strict=True):
        assert relative(a, b) < 1e-6


@pytest.mark.parametrize("name", [ENCODER, CPU])
def test_norm_every_puts_the_final_norm_on_every_layer(checkpoint: Checkpoint, tmp_path: Path, name: str) -> None:
    graph = build(checkpoint, tmp_path, norm_every=True, name=name)
    x = mel(60)
    want = plain_torch(checkpoint, x)
    state = checkpoint.state()
    for name, got in zip(ALL, run(graph, ALL, {"log_mel": x}), strict=True):
        h = want["layer_03" if name == "final" else name]
        centred = h - h.mean(-1, keepdims=True)
        normed = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5)
        assert relative(got, normed * state["layer_norm.weight"] + state["layer_norm.bias"]) < 1e-5, name


def test_float16_stays_near_float32(checkpoint: Checkpoint, tmp_path: Path) -> None:
    graph = build(checkpoint, tmp_path, dtype="float16")
    for frames in (5, 300):
        x = mel(frames, batch=2)
        for row in range(2):
            want = plain_torch(checkpoint, x[row : row + 1])
            for name, got in zip(ALL, run(graph, ALL, {"log_mel": x}), strict=True):
                assert got.dtype == np.float16
                assert relative(got[row], want[name][0]) < 1e-2, name


# ---- the form of the files


def test_the_cpus_graph_is_valid_and_has_one_operator_of_onnx_runtimes_own(tiny_model: Path) -> None:
    onnx.checker.check_model(str(tiny_model / CPU), full_check=True)
    nodes = onnx.load(tiny_model / CPU, load_external_data=False).graph.node
    assert {(n.domain, n.op_type) for n in nodes if n.domain} == {("com.microsoft", "MultiHeadAttention")}


@pytest.mark.parametrize("name", [ENCODER, CACHED, LOG_MEL])
def test_only_standard_operators_and_a_valid_graph(tiny_model: Path, name: str) -> None:
    onnx.checker.check_model(str(tiny_model / name), full_check=True)
    model = onnx.load(tiny_model / name, load_external_data=False)
    assert [(o.domain, o.version) for o in model.opset_import] == [("", 20)]
    assert {n.domain for n in model.graph.node} == {""}


def test_all_encoders_share_one_weights_file(tiny_model: Path) -> None:
    places = []
    for name in (ENCODER, CACHED, CPU):
        model = onnx.load(tiny_model / name, load_external_data=False)
        entries = {
            t.name: {e.key: e.value for e in t.external_data} for t in model.graph.initializer if t.external_data
        }
        assert {e["location"] for e in entries.values()} == {WEIGHTS}
        places.append(entries)
    assert places[0] == places[1] == places[2]
    ends = sorted((int(e["offset"]), int(e["length"])) for e in places[0].values())
    assert all(a + n <= b for (a, n), (b, _) in pairwise(ends))  # nothing overlaps
    assert sum(ends[-1]) == (tiny_model / WEIGHTS).stat().st_size


def test_the_graphs_carry_their_origin(tiny_model: Path, checkpoint: Checkpoint) -> None:
    for name in (ENCODER, CACHED, CPU, LOG_MEL):
        kept = json.loads(session(tiny_model / name).get_modelmeta().custom_metadata_map["voxstrata"])
        assert kept["checkpoint"] == "tiny"
        assert kept["weights_sha256"] == checkpoint.sha256()
        assert kept["outputs"] == list(ALL)
        assert {"layers", "d_model", "n_mels", "dtype", "opset", "tools", "validation"} <= set(kept)


# ---- cached keys


def cached_feeds(checkpoint: Checkpoint, x: Array, frames: int) -> dict[str, Array]:
    key, value = (t[:, :, frames:].numpy() for t in queries_keys_values(checkpoint.encoder, torch.from_numpy(x))[1:])
    return {
        "log_mel": x[:, :, : 2 * frames],
        "silence_key": key,
        "silence_value": value,
        "silence_bias": np.zeros(key.shape[:3], np.float32),
    }


@pytest.mark.parametrize("name", [CACHED, CPU])
@pytest.mark.parametrize("frames", [1, 75, 600, 1499])
def test_with_every_key_of_a_padded_run_the_cached_graph_is_that_run(
    tiny_model: Path, checkpoint: Checkpoint, name: str, frames: int
) -> None:
    x = mel(1500)
    x[:, :, 2 * frames] = 0  # what the convolution sees at the cut
    want = plain_torch(checkpoint, x)
    states = run(session(tiny_model / name), ALL, cached_feeds(checkpoint, x, frames))
    for name, got in zip(ALL, states, strict=True):
        assert relative(got, want[name][:, :frames]) < 1e-5, name


@pytest.mark.parametrize("name", [CACHED, CPU])
def test_cached_rows_do_not_touch_each_other(tiny_model: Path, checkpoint: Checkpoint, name: str) -> None:
    graph, feeds = session(tiny_model / name), cached_feeds(checkpoint, mel(1500), 100)
    x = mel(100, batch=3, seed=9)
    x[1] *= 3
    together = run(graph, ALL, feeds | {"log_mel": x})
    for row in range(3):
        for got, alone in zip(together, run(graph, ALL, feeds | {"log_mel": x[row : row + 1]}), strict=True):
            assert relative(got[row], alone[0]) < 1e-6


@pytest.mark.parametrize(("name", "dtype"), [(CACHED, "float32"), (CACHED, "float16"), (CPU, "float32")])
def test_an_empty_group_contributes_exactly_nothing(
    checkpoint: Checkpoint, tmp_path: Path, name: str, dtype: str
) -> None:
    graph = build(checkpoint, tmp_path, name=name, dtype=dtype)
    feeds = cached_feeds(checkpoint, mel(1500), 1490)
    feeds["log_mel"] = mel(40)
    plain = run(graph, ALL, feeds)

    def with_group(key: float, value: float, logit: float) -> list[Array]:
        return run(
            graph,
            ALL,
            feeds
            | {
                "silence_key": np.pad(feeds["silence_key"], ((0, 0), (0, 0), (0, 1), (0, 0)), constant_values=key),
                "silence_value": np.pad(
                    feeds["silence_value"], ((0, 0), (0, 0), (0, 1), (0, 0)), constant_values=value
                ),
                "silence_bias": np.pad(feeds["silence_bias"], ((0, 0), (0, 0), (0, 1)), constant_values=logit),
            },
        )

    empty = with_group(0, 0, EMPTY_GROUP_LOGIT)
    # its value does not matter at all: the weight is exactly zero
    for a, b in zip(with_group(0, 1e4, EMPTY_GROUP_LOGIT), empty, strict=True):
        np.testing.assert_array_equal(a, b)
    tolerance = 1e-6 if dtype == "float32" else 2e-3  # one key more changes the order of the sums
    for a, b in zip(empty, plain, strict=True):
        assert relative(a, b) < tolerance
    assert relative(with_group(0, 1e4, 0.0)[-1], plain[-1]) > 0.1  # a group with a member does count


@pytest.mark.parametrize("name", [CACHED, CPU])
def test_a_group_counts_as_often_as_its_size(tiny_model: Path, checkpoint: Checkpoint, name: str) -> None:
    """One key with logit log 7 is seven equal keys."""
    graph, feeds = session(tiny_model / name), cached_feeds(checkpoint, mel(1500), 1499)
    feeds["log_mel"] = mel(30)
    seven = {k: np.repeat(v, 7, axis=2) for k, v in feeds.items() if k != "log_mel"}
    many = run(graph, ALL, feeds | seven)
    one = run(graph, ALL, feeds | {"silence_bias": np.full_like(feeds["silence_bias"], np.log(7))})
    for a, b in zip(one, many, strict=True):
        assert relative(a, b) < 1e-5
