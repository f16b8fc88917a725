"""An export is a validated folder or nothing, and its silence cache and card say what they are."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest

torch = pytest.importorskip("torch")
from voxstrata.audio.decode import decode  # noqa: E402
from voxstrata.base.errors import InputError, UsageError  # noqa: E402
from voxstrata.base.progress import Reporter  # noqa: E402
from voxstrata.encoders import ModelCard, open_model  # noqa: E402
from voxstrata.encoders.card import CACHED, CPU, ENCODER, LOG_MEL, MODEL_FILES  # noqa: E402
from voxstrata.exporters import ExportSpec, export, validation, writing  # noqa: E402
from voxstrata.exporters import checkpoint as checkpoint_module  # noqa: E402
from voxstrata.exporters.checkpoint import Checkpoint, load_checkpoint  # noqa: E402
from voxstrata.exporters.log_mel import log_mel_graph  # noqa: E402
from voxstrata.exporters.validation import LENGTHS, TOLERANCE  # noqa: E402
from voxstrata.exporters.weights import WeightsFile  # noqa: E402

ALL = ("layer_00", "layer_01", "layer_02", "layer_03", "final")
Array = np.ndarray[Any, np.dtype[Any]]


@pytest.fixture(scope="module")
def checkpoint(tiny_checkpoint: Path) -> Checkpoint:
    return load_checkpoint(str(tiny_checkpoint))


@pytest.fixture(scope="module")
def speech(make_corpus: Callable[..., Path]) -> Path:
    """Five usable recordings, one too short and one that is not audio."""
    folder = make_corpus({"en/a": 2.0, "en/b": 9.5, "es/c": 0.7, "es/d": 4.0, "ru/e": 12.0, "ru/short": 0.2})
    (folder / "ru" / "broken.wav").write_bytes(b"RIFF of nothing")
    return folder


@pytest.fixture(scope="module")
def calibrated(tiny_checkpoint: Path, speech: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """float16, two outputs, calibrated, 16 keys: everything a default export is not."""
    target = tmp_path_factory.mktemp("model") / "calibrated"
    spec = ExportSpec(outputs="layer_02,final", dtype="float16", calibrate=speech, silence_keys=16)
    export(str(tiny_checkpoint), target, spec)
    return target


class Listening(Reporter):
    def __init__(self) -> None:
        self.steps: list[str] = []
        self.warnings: list[str] = []

    def step(self, text: str) -> None:
        self.steps.append(text)

    def warn(self, text: str) -> None:
        self.warnings.append(text)


def left_in(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


# ---- the folder and its card


def test_the_folder_holds_the_stated_files_and_opens(tiny_model: Path) -> None:
    assert set(left_in(tiny_model)) == {
        "card.json", "config.json", "encoder_cached.onnx", "encoder_cpu.onnx", "encoder_model.onnx",
        "encoder_model.onnx_data", "log_mel.onnx", "preprocessor_config.json", "silence.npz",
    }  # fmt: skip
    assert open_model(tiny_model).path == tiny_model
    assert json.loads((tiny_model / "config.json").read_text())["model_type"] == "whisper"
    assert json.loads((tiny_model / "preprocessor_config.json").read_text())["feature_size"] == 80


def test_the_card_says_what_the_model_is(tiny_model: Path, calibrated: Path, checkpoint: Checkpoint) -> None:
    card = open_model(tiny_model).card
    assert (card.checkpoint, card.revision, card.weights_sha256) == ("tiny", None, checkpoint.sha256())
    assert (card.layers, card.d_model, card.heads, card.n_mels, card.opset) == (3, 32, 4, 80, 20)
    assert (card.dtype, card.outputs, card.final_norm) == ("float32", ALL, "final")
    assert set(card.tools) == {"voxstrata", "torch", "transformers", "onnx", "onnxruntime"}
    assert card.silence["kind"] == "pure"
    assert card.silence["sha256"] == open_model(tiny_model).silence().sha256()
    card = open_model(calibrated).card
    assert (card.dtype, card.outputs) == ("float16", ("layer_02", "final"))
    assert (card.silence["kind"], card.silence["groups"]) == ("calibrated", 16)


@pytest.mark.parametrize("which", ["tiny_model", "calibrated"])
def test_the_card_survives_a_round_trip(which: str, request: pytest.FixtureRequest) -> None:
    card = open_model(request.getfixturevalue(which)).card
    assert ModelCard.from_dict(json.loads(json.dumps(card.to_dict()))) == card


@pytest.mark.parametrize("which", ["tiny_model", "calibrated"])
def test_every_output_has_its_validation_figures(which: str, request: pytest.FixtureRequest) -> None:
    card = open_model(request.getfixturevalue(which)).card
    assert card.validation["lengths_seconds"] == list(LENGTHS)
    assert min(LENGTHS) <= 0.1
    assert max(LENGTHS) == 30
    for graph in ("outputs", "outputs_cached"):
        assert set(card.validation[graph]) == set(card.outputs)
        # a figure of zero would mean that nothing was compared
        assert all(0 < v <= TOLERANCE[card.dtype] for v in card.validation[graph].values())
    assert 0 < card.validation["log_mel_max_abs"] <= 1e-4


def test_calibration_recordings_are_named_by_hash(calibrated: Path, speech: Path) -> None:
    got = {r["name"]: r["sha256"] for r in open_model(calibrated).card.silence["recordings"]}
    want = {}
    for name in ("en/a", "en/b", "es/c", "es/d", "ru/e"):
        samples = decode(speech / f"{name}.wav")[: 9 * 16_000]
        want[Path(name).name] = hashlib.sha256(samples.tobytes()).hexdigest()
    assert {Path(k).stem: v for k, v in got.items()} == want


def test_two_exports_are_byte_identical_and_an_empty_target_is_taken(
    calibrated: Path, tiny_checkpoint: Path, speech: Path, tmp_path: Path
) -> None:
    target = tmp_path / "deep" / "er" / "model"
    target.mkdir(parents=True)
    heard = Listening()
    spec = ExportSpec(outputs=["final", "layer_02"], dtype="float16", calibrate=speech, silence_keys=16)
    export(str(tiny_checkpoint), target, spec, reporter=heard)
    assert left_in(target) == left_in(calibrated)
    assert left_in(target.parent) == ["model"]
    assert [n for n in left_in(target) if (target / n).read_bytes() != (calibrated / n).read_bytes()] == []
    assert any("validating" in step for step in heard.steps)
    (warning,) = heard.warnings
    assert "not calibrated on" in warning
    assert "broken.wav" in warning


# ---- nothing is left behind


@pytest.mark.parametrize(
    ("spec", "error", "match"),
    [
        (ExportSpec(outputs="layer_04"), UsageError, "unknown output 'layer_04'; known: layer_00, .*final"),
        (ExportSpec(outputs=""), UsageError, "unknown output"),
        (ExportSpec(outputs="final,final"), UsageError, "named twice"),
        (ExportSpec(dtype="bfloat16"), UsageError, "unknown dtype 'bfloat16'; choose one of float32, float16"),
        (ExportSpec(silence_keys=1426), InputError, "1426 silence keys: choose 1 … 1425"),
        (ExportSpec(silence_keys=-1), InputError, "-1 silence keys"),
        (ExportSpec(calibrate="absent.tsv"), InputError, "absent.tsv"),
    ],
)
def test_an_impossible_choice_is_refused(
    tiny_checkpoint: Path, tmp_path: Path, spec: ExportSpec, error: type[Exception], match: str
) -> None:
    with pytest.raises(error, match=match):
        export(str(tiny_checkpoint), tmp_path / "model", spec)
    assert left_in(tmp_path) == []


@pytest.mark.parametrize(
    ("source", "target", "spec"),
    [
        ("here", "model", ExportSpec(dtype="bfloat16")),
        ("here", "model", ExportSpec(silence_keys=1426)),
        ("here", "model", ExportSpec(calibrate="absent.tsv")),
        ("here", "here", ExportSpec()),
        ("absent", "model", ExportSpec()),
    ],
)
def test_a_wrong_argument_is_found_before_torch_is_loaded(
    tiny_checkpoint: Path, tmp_path: Path, source: str, target: str, spec: ExportSpec
) -> None:
    """Torch takes seconds to import: this process has it, so another one tries."""
    (tmp_path / "here").symlink_to(tiny_checkpoint)
    code = f"""
import subprocess
import sys
from voxstrata.base.errors import VoxstrataError
from voxstrata.exporters import ExportSpec, export
try:
    export({str(tmp_path / source)!r}, {str(tmp_path / target)!r}, {spec!r})
except VoxstrataError:
    print("torch" in sys.modules)
"""
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"


def test_an_existing_target_is_not_touched(tiny_checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("mine")
    (tmp_path / "file").write_text("mine")
    for name in ("full", "file"):
        with pytest.raises(InputError, match=f"{name}: exists already; remove it or choose another name"):
            export(str(tiny_checkpoint), tmp_path / name)
    assert (tmp_path / "full" / "thesis.txt").read_text() == (tmp_path / "file").read_text() == "mine"


def test_a_calibration_corpus_without_usable_recordings_is_refused(
    tiny_checkpoint: Path, make_corpus: Callable[..., Path], tmp_path: Path
) -> None:
    corpus = make_corpus({"a": 3.0, "b": 0.3})
    (corpus / "c.wav").write_bytes(b"not audio")
    with pytest.raises(InputError, match=r"at least 2 recordings of 0\.5 s or more, found 1"):
        export(str(tiny_checkpoint), tmp_path / "model", ExportSpec(calibrate=corpus))
    assert left_in(tmp_path) == []


def spoil(monkeypatch: pytest.MonkeyPatch, tensor: str, value: float) -> None:
    """Let the graphs' file hold one wrong weight."""
    right = WeightsFile.value

    def wrong(self: WeightsFile, name: str) -> Array:
        array = right(self, name)
        if name == tensor:
            array = array.copy()
            array.flat[5] += value
        return array

    monkeypatch.setattr(WeightsFile, "value", wrong)


@pytest.mark.parametrize(
    ("tensor", "value", "output"),
    [
        ("layers.1.fc2.bias", 0.05, "layer_02"),
        ("layers.2.self_attn.k_proj.weight", 5.0, "layer_03"),
        ("layer_norm.bias", 0.05, "final"),
        ("embed_positions.weight", float("nan"), "layer_00"),
    ],
)
def test_one_wrong_weight_fails_validation_and_leaves_nothing(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tensor: str, value: float, output: str
) -> None:
    spoil(monkeypatch, tensor, value)
    with pytest.raises(InputError, match=f"validation failed: {output} differs from PyTorch .* no model was written"):
        export(str(tiny_checkpoint), tmp_path / "model")
    assert left_in(tmp_path) == []


@pytest.mark.parametrize("dtype", ["float32", pytest.param("float16", marks=pytest.mark.long)])
def test_a_model_is_overwritten_with_what_belongs_to_it(tiny_checkpoint: Path, tmp_path: Path, dtype: str) -> None:
    """Whatever files it has: a float16 model has fewer. Engines of TensorRT are of the old weights."""
    target = tmp_path / "model"
    export(str(tiny_checkpoint), target, ExportSpec("final", dtype))
    for shape in ("9x200", "5x400"):
        (target / "tensorrt" / shape).mkdir(parents=True)
    (target / "tensorrt" / "9x200" / "a.engine").write_bytes(b"built")
    assert export(str(tiny_checkpoint), target, ExportSpec("final"), overwrite=True).card.dtype == "float32"
    assert sorted(p.name for p in target.iterdir()) == sorted(MODEL_FILES)
    (target / "card.json").unlink()  # what it is known by
    with pytest.raises(InputError, match="holds something else"):
        export(str(tiny_checkpoint), target, ExportSpec("final"), overwrite=True)


def test_validation_holds_one_copy_of_the_weights_at_a_time(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PyTorch's go before the first graph is loaded, and each graph's before the next."""
    checkpoints: list[Any] = []
    alive: list[weakref.ref[Any]] = []
    at_load: list[tuple[str, bool, int]] = []
    load, session = checkpoint_module.tower_checkpoint, validation.cpu_session

    def loaded(*arguments: Any) -> Any:
        checkpoints.append(load(*arguments))
        return checkpoints[-1]

    def opened(path: Path, **how: Any) -> Any:
        weightless = all(p.is_meta for p in checkpoints[0].encoder.parameters())
        at_load.append((path.name, weightless, sum(ref() is not None for ref in alive)))
        made = session(path, **how)
        if path.name != LOG_MEL:
            assert how == {"fold": False}  # to make copies of all weights takes twice their memory
            alive.append(weakref.ref(made))
        return made

    monkeypatch.setattr(checkpoint_module, "tower_checkpoint", loaded)
    monkeypatch.setattr(validation, "cpu_session", opened)
    model = export(str(tiny_checkpoint), tmp_path / "model")
    assert at_load == [(LOG_MEL, False, 0), *((name, True, 0) for name in (ENCODER, CACHED, CPU))]
    assert sorted(p.name for p in model.path.iterdir()) == sorted(MODEL_FILES)  # and no states of PyTorch's


def test_validation_makes_no_copy_of_all_weights_before_the_first_block(tiny_model: Path) -> None:
    """ONNX Runtime takes nodes of constants late where they stand first in the file."""
    original = onnx.load(str(tiny_model / CPU), load_external_data=False).graph
    graph = onnx.load_model_from_string(validation._constants_first(tiny_model / CPU)).graph
    weights, alone = {tensor.name for tensor in graph.initializer}, []
    for node in graph.node:
        alone.append(weights.issuperset(node.input))
        weights.update(node.output if alone[-1] else ())
    assert 0 < sum(alone) < len(alone)
    assert alone == sorted(alone, reverse=True)
    assert sorted(n.SerializeToString() for n in graph.node) == sorted(n.SerializeToString() for n in original.node)


@pytest.mark.parametrize("value", [1.01, float("nan")])
def test_a_wrong_log_mel_fails_validation_and_leaves_nothing(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: float
) -> None:
    monkeypatch.setattr(writing, "log_mel_graph", lambda filters: log_mel_graph(filters * value))
    with pytest.raises(InputError, match="validation failed: log-mel differs"):
        export(str(tiny_checkpoint), tmp_path / "model")
    assert left_in(tmp_path) == []


def test_an_interrupt_leaves_nothing(tiny_checkpoint: Path, tmp_path: Path) -> None:
    class Interrupting(Reporter):
        def step(self, text: str) -> None:
            if "validating" in text:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export(str(tiny_checkpoint), tmp_path / "model", reporter=Interrupting())
    assert left_in(tmp_path) == []


# ---- real weights


@pytest.mark.real
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_whisper_base_exports_within_its_tolerances(shared: Path, tmp_path: Path, dtype: str) -> None:
    card = export(str(shared / "whisper-base-encoder"), tmp_path / "base", ExportSpec(dtype=dtype)).card
    assert (card.layers, card.d_model, card.heads, card.n_mels) == (6, 512, 8, 80)
    worst = max(*card.validation["outputs"].values(), *card.validation["outputs_cached"].values())
    print(f"whisper-base {dtype}: largest relative L2 {worst:.1e}, log-mel {card.validation['log_mel_max_abs']:.1e}")
    assert worst < {"float32": 2e-5, "float16": 4e-3}[dtype]


@pytest.mark.real
def test_whisper_base_on_real_speech_matches_pytorch(shared: Path, tmp_path: Path) -> None:
    """The made-up sounds of validation are not speech: real clips through the exported graphs, end to end."""
    folder = export(str(shared / "whisper-base-encoder"), tmp_path / "base", ExportSpec()).path
    checkpoint = load_checkpoint(str(shared / "whisper-base-encoder"))
    mel, encoder = (ort.InferenceSession(folder / n) for n in ("log_mel.onnx", "encoder_model.onnx"))
    names = [o.name for o in encoder.get_outputs()]
    for clip in sorted((shared / "assorted").glob("*.wav"))[:6]:
        audio = decode(clip)[: 30 * 16_000]
        row = np.pad(audio, (0, 480_000 - len(audio)))[None]
        (log_mel,) = mel.run(None, {"audio": row})
        features = checkpoint.extractor(audio, sampling_rate=16_000, return_tensors="pt")["input_features"]
        assert np.abs(log_mel - features.numpy()).max() < 1e-4, clip.name
        with torch.inference_mode():
            theirs = checkpoint.encoder(features, output_hidden_states=True)
        got = dict(zip(names, encoder.run(names, {"log_mel": log_mel}), strict=True))
        for k in range(6):
            want = theirs.hidden_states[k].numpy()
            assert np.linalg.norm(got[f"layer_{k:02d}"] - want) < 2e-4 * np.linalg.norm(want), clip.name
        want = theirs.last_hidden_state.numpy()
        assert np.linalg.norm(got["final"] - want) < 2e-4 * np.linalg.norm(want), clip.name
