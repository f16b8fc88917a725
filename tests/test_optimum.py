"""Where optimum reaches: it loads our folder, agrees with us at 30 s, and its validator takes our graph."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from conftest import sound

torch = pytest.importorskip("torch")
pytest.importorskip("optimum.exporters.onnx", reason="optimum-onnx is not installed", exc_type=ImportError)

from optimum.exporters.onnx import main_export, validate_model_outputs  # noqa: E402
from optimum.exporters.onnx.base import OnnxConfig  # noqa: E402
from optimum.exporters.onnx.convert import AtolError, OutputMatchError  # noqa: E402
from optimum.onnxruntime import ORTModelForCustomTasks, ORTModelForSpeechSeq2Seq  # noqa: E402
from optimum.utils import DummyAudioInputGenerator, NormalizedConfig  # noqa: E402
from transformers import WhisperForConditionalGeneration  # noqa: E402

from voxstrata.early_exit.checkpoint import write_early_exit  # noqa: E402
from voxstrata.early_exit.exits import EarlyExit  # noqa: E402
from voxstrata.exporters.checkpoint import load_checkpoint  # noqa: E402
from voxstrata.exporters.pytorch import hidden_states  # noqa: E402

ALL = ("layer_00", "layer_01", "layer_02", "layer_03", "final")

pytestmark = [
    # optimum 2.1 still exports through TorchScript, and tracing Whisper warns about its shape checks
    pytest.mark.filterwarnings("ignore:You are using the legacy TorchScript-based ONNX export:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:The feature will be removed:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning"),
    pytest.mark.filterwarnings("ignore:Exporting aten..index operator of advanced indexing:UserWarning"),
]


# ---- the folder opens in optimum


@pytest.mark.parametrize("io_binding", [False, True])
def test_optimum_loads_the_folder_and_returns_every_output(tiny_model: Path, io_binding: bool) -> None:
    """Bound outputs are optimum's default on GPUs; it works their size out from the names of the axes."""
    model = ORTModelForCustomTasks.from_pretrained(
        tiny_model, file_name="encoder_model.onnx", use_io_binding=io_binding
    )
    session = ort.InferenceSession(tiny_model / "encoder_model.onnx")
    for batch, frames in ((1, 40), (2, 1500), (3, 7)):
        x = np.random.default_rng(frames).uniform(-1, 1.5, (batch, 80, 2 * frames)).astype(np.float32)
        got = model(log_mel=torch.from_numpy(x))
        assert tuple(got) == ALL
        for name, want in zip(ALL, session.run(ALL, {"log_mel": x}), strict=True):
            np.testing.assert_allclose(got[name].numpy(), want, atol=1e-5)


# ---- optimum's own export


@pytest.fixture(scope="module")
def optimums(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """optimum's own export of the tiny checkpoint."""
    folder = tmp_path_factory.mktemp("optimum")
    main_export(str(tiny_checkpoint), folder, task="automatic-speech-recognition", do_validation=False)
    return folder


def test_optimums_export_equals_ours_at_30_seconds(optimums: Path, tiny_model: Path, tiny_checkpoint: Path) -> None:
    extractor = load_checkpoint(str(tiny_checkpoint)).extractor
    x = extractor([sound(2.0, 1), sound(30.0, 2)], sampling_rate=16_000, return_tensors="np")["input_features"]
    (theirs,) = ort.InferenceSession(optimums / "encoder_model.onnx").run(["last_hidden_state"], {"input_features": x})
    (ours,) = ort.InferenceSession(tiny_model / "encoder_model.onnx").run(["final"], {"log_mel": x})
    assert np.linalg.norm(ours - theirs) < 1e-5 * np.linalg.norm(theirs)


def test_optimums_export_has_a_fixed_window_and_one_state(optimums: Path) -> None:
    """Why the graph is ours. When this fails, optimum has learnt to do it and the docs need a look."""
    graph = onnx.load(optimums / "encoder_model.onnx").graph

    def axes(value: onnx.ValueInfoProto) -> list[str | int]:
        return [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]

    assert {v.name: axes(v) for v in graph.input} == {"input_features": ["batch_size", 80, 3000]}
    assert {v.name: axes(v) for v in graph.output} == {"last_hidden_state": ["batch_size", 1500, 32]}


# ---- optimum's validator on our graph


class LogMel(DummyAudioInputGenerator):  # type: ignore[misc]
    """Random log-mel under our input's name."""

    SUPPORTED_INPUT_NAMES = ("log_mel",)


class Declaration(OnnxConfig):  # type: ignore[misc]
    """Our encoder graph, declared as optimum declares models."""

    NORMALIZED_CONFIG_CLASS = NormalizedConfig.with_args(feature_size="num_mel_bins", allow_new=True)
    DUMMY_INPUT_GENERATOR_CLASSES = (LogMel,)

    @property
    def inputs(self) -> dict[str, dict[int, str]]:
        return {"log_mel": {0: "batch", 2: "time"}}

    @property
    def outputs(self) -> dict[str, dict[int, str]]:
        return {name: {0: "batch", 1: "time // 2"} for name in ALL}


class Reference(torch.nn.Module):  # type: ignore[misc]
    """Hugging Face's encoder under our names: its own forward takes 30 s only and has no `layer_L`."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.encoder = load_checkpoint(str(folder)).encoder

    def forward(self, log_mel: Any) -> Mapping[str, Any]:
        return hidden_states(self.encoder, log_mel)


def validate(checkpoint: Path, model: Path, outputs: tuple[str, ...], mel_frames: int, atol: float = 1e-4) -> None:
    reference = Reference(checkpoint)
    validate_model_outputs(
        Declaration(reference.encoder.config), reference, model / "encoder_model.onnx", list(outputs), atol,
        input_shapes={"nb_max_frames": mel_frames, "batch_size": 2}, use_subprocess=False,
    )  # fmt: skip


@pytest.mark.parametrize("mel_frames", [10, 700, 3000])
def test_optimums_validator_accepts_our_graph(tiny_checkpoint: Path, tiny_model: Path, mel_frames: int) -> None:
    validate(tiny_checkpoint, tiny_model, ALL, mel_frames)


def test_optimums_validator_would_have_seen_a_difference(
    tiny_checkpoint: Path, tiny_model: Path, tmp_path: Path
) -> None:
    graph = onnx.load(tiny_model / "encoder_model.onnx")
    bias = next(t for t in graph.graph.initializer if t.name == "layers.1.fc2.bias")
    bias.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(bias) + np.float32(0.01), bias.name))
    onnx.save(graph, tmp_path / "encoder_model.onnx")
    validate(tiny_checkpoint, tmp_path, ("layer_00", "layer_01"), 10)
    with pytest.raises(AtolError, match=r"- layer_02: max diff"):
        validate(tiny_checkpoint, tmp_path, ALL, 10)
    graph.graph.output.pop()
    onnx.save(graph, tmp_path / "encoder_model.onnx")
    with pytest.raises(OutputMatchError, match="final"):
        validate(tiny_checkpoint, tmp_path, ALL, 10)


# ---- early-exit checkpoints


@pytest.mark.parametrize(("after", "final_norm"), [(0, True), (2, True), (2, False)])
def test_optimum_transcribes_with_an_early_exit(
    after: int, final_norm: bool, tiny_transcriber: Path, tmp_path: Path
) -> None:
    """Exported by optimum and run by ONNX Runtime, the checkpoint says what it says in transformers."""
    folder = tmp_path / "exit"
    write_early_exit(str(tiny_transcriber), folder, EarlyExit(after, "with" if final_norm else "without"))
    extractor = load_checkpoint(str(folder)).extractor
    x = extractor([sound(2.0, 1), sound(7.0, 5)], sampling_rate=16_000, return_tensors="pt")["input_features"]
    options = {"language": "es", "task": "transcribe", "max_new_tokens": 16}
    want = WhisperForConditionalGeneration.from_pretrained(folder).eval().generate(x, **options)
    # what from_pretrained(folder, export=True) does, in a folder of ours: optimum leaves its own to the collector
    main_export(str(folder), tmp_path / "onnx", task="automatic-speech-recognition-with-past", do_validation=False)
    got = ORTModelForSpeechSeq2Seq.from_pretrained(tmp_path / "onnx").generate(x, **options)
    assert got.tolist() == want.tolist()
    assert len(set(got.flatten().tolist())) > 3
