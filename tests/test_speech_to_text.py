"""Speech2Text's graphs give the states of transformers' own encoder, on its own extractor's features."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import soundfile
from conftest import sound

torch = pytest.importorskip("torch")
from transformers import Speech2TextConfig, Speech2TextFeatureExtractor, Speech2TextForConditionalGeneration  # noqa: E402

import voxstrata as vs  # noqa: E402
from voxstrata.base.errors import InputError  # noqa: E402
from voxstrata.base.progress import SILENT  # noqa: E402
from voxstrata.exporters.families import family_of  # noqa: E402
from voxstrata.exporters.finding import find_checkpoint  # noqa: E402
from voxstrata.exporters.original import Original  # noqa: E402

Array = np.ndarray[Any, Any]
NAMES = ("layer_00", "layer_01", "layer_02", "final")
POSITIONS = 400  # feature frames: a window of 4 s
WINDOW = POSITIONS * 160
LENGTHS = (720, 1_600, 1_679, 16_001, WINDOW - 1, WINDOW)  # samples, from two feature frames on


@pytest.fixture(scope="module")
def model() -> Any:
    torch.manual_seed(3)
    config = Speech2TextConfig(
        vocab_size=40, d_model=32, encoder_layers=2, decoder_layers=1, encoder_attention_heads=4, encoder_ffn_dim=48,
        decoder_attention_heads=4, decoder_ffn_dim=32, conv_channels=24, max_source_positions=POSITIONS,
        max_target_positions=32,
    )  # fmt: skip
    made = Speech2TextForConditionalGeneration(config).eval()
    with torch.no_grad():  # the default 0.02 leaves attention all but uniform
        for name, p in made.model.encoder.named_parameters():
            p.normal_(0, 0.3 if p.ndim > 1 else 0.1)
            if "norm.weight" in name:
                p.add_(1)
    return made


@pytest.fixture(scope="module")
def folder(model: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    where = tmp_path_factory.mktemp("speech2text") / "tiny"
    model.save_pretrained(where)
    Speech2TextFeatureExtractor().save_pretrained(where)
    return where


def loaded(folder: Path) -> Original:
    found = find_checkpoint(str(folder))
    module = family_of(found.model_type)
    assert module is not None
    return module.load(found.files(SILENT))


@pytest.fixture(scope="module")
def original(folder: Path) -> Original:
    return loaded(folder)


@pytest.fixture(scope="module")
def sessions(original: Original, tmp_path_factory: pytest.TempPathFactory) -> tuple[ort.InferenceSession, ...]:
    path = tmp_path_factory.mktemp("graphs") / "encoder.onnx"
    original.write_encoder(path, path.with_name("weights"), NAMES)
    onnx.checker.check_model(str(path))
    return tuple(ort.InferenceSession(g, providers=["CPUExecutionProvider"]) for g in (original.feature_graph(), path))


def run(sessions: tuple[ort.InferenceSession, ...], audio: Array) -> dict[str, Array]:
    """Of recordings [batch, samples]."""
    (features,) = sessions[0].run(None, {"audio": audio})
    return dict(zip(NAMES, sessions[1].run(NAMES, {"features": features}), strict=True))


def expected(model: Any, recordings: list[Array]) -> list[dict[str, Array]]:
    """States of recordings in one padded batch, with its mask, from transformers alone."""
    given = Speech2TextFeatureExtractor()(recordings, sampling_rate=16_000, padding=True, return_tensors="pt")
    encoder, last = model.model.encoder, []
    hook = encoder.layer_norm.register_forward_pre_hook(lambda _, args: last.append(args[0]))
    with torch.no_grad():
        states = encoder(**given, output_hidden_states=True).hidden_states
        final = encoder(**given).last_hidden_state
    hook.remove()
    whole = zip(NAMES, [*states[:-1], last[0], final], strict=True)
    frames = [((len(r) - 400) // 160 + 4) // 4 for r in recordings]  # 10 ms, then every second twice
    named = {name: state.numpy() for name, state in whole}
    return [{name: state[i, :n] for name, state in named.items()} for i, n in enumerate(frames)]


def relative(got: Array, want: Array) -> float:
    assert got.shape == want.shape
    return float(np.linalg.norm(got.astype(np.float64) - want) / np.linalg.norm(want.astype(np.float64)))


@pytest.mark.parametrize("samples", LENGTHS)
def test_every_output_is_that_of_transformers(
    model: Any, original: Original, sessions: tuple[ort.InferenceSession, ...], samples: int
) -> None:
    audio = sound(samples / 16_000, seed=samples)[:samples]
    want, got, again = expected(model, [audio])[0], run(sessions, audio[None]), original.hidden_states(audio)
    assert original.family.frames(samples) == len(want["final"])
    for name in NAMES:
        assert relative(got[name][0], want[name]) < 1e-4, name
        assert relative(again[name][0].numpy(), want[name]) < 1e-5, name


def test_in_transformers_own_padded_batch_the_first_state_is_the_same(
    model: Any, sessions: tuple[ort.InferenceSession, ...]
) -> None:
    """But for each one's last frame: transformers convolves what its first convolution makes of the padding."""
    recordings = [sound(seconds, seed=i) for i, seconds in enumerate((0.5, 1.7, 3.1))]
    for audio, want in zip(recordings, expected(model, recordings), strict=True):
        got = run(sessions, audio[None])
        assert relative(got["layer_00"][0, :-1], want["layer_00"][:-1]) < 1e-5


def test_a_recording_in_a_batch_is_itself_alone(sessions: tuple[ort.InferenceSession, ...]) -> None:
    batch = np.stack([sound(0.7, seed=i)[:11_000] * loud for i, loud in enumerate((3.0, 0.01, 1.0))])
    together = run(sessions, batch)
    for i, audio in enumerate(batch):
        for name, alone in run(sessions, audio[None]).items():
            assert relative(together[name][i : i + 1], alone) < 1e-5, name


def test_a_recording_past_the_window_is_cut_into_pieces_of_it(
    model: Any, original: Original, sessions: tuple[ort.InferenceSession, ...]
) -> None:
    audio = sound(9.3, seed=9)
    family, at = original.family, 0
    assert family.window == WINDOW
    for piece in family.pieces(len(audio)):
        part = audio[piece.sample : piece.sample + piece.samples]
        kept = slice(piece.skip, piece.skip + piece.frames)
        got, want = run(sessions, part[None])["final"][0, kept], expected(model, [part])[0]["final"][kept]
        assert piece.frame == at
        assert relative(got, want) < 1e-4
        at += piece.frames
    assert at == family.frames(len(audio))


def test_silence_has_states_where_transformers_divides_by_zero(
    original: Original, sessions: tuple[ort.InferenceSession, ...]
) -> None:
    for samples in (400, 8_000):  # one frame never changes, either
        audio = np.zeros((1, samples), np.float32)
        states = run(sessions, audio)
        assert all(np.isfinite(state).all() for state in states.values())
    alone = original.hidden_states(np.full(400, 0.1, np.float32))
    assert relative(run(sessions, np.full((1, 400), 0.1, np.float32))["final"], alone["final"].numpy()) < 1e-5


def test_the_declaration_says_which_hidden_state_is_which(original: Original) -> None:
    family = original.family
    family.check()
    assert [output.hidden_states for output in family.outputs] == [0, 1, None, 2]
    assert (family.hop, family.shortest, family.contexts) == (640, 400, ("exact",))
    assert type(family).from_dict(family.to_dict()) == family


def test_a_checkpoint_of_the_encoder_alone_is_the_same(model: Any, original: Original, tmp_path: Path) -> None:
    model.model.encoder.save_pretrained(tmp_path / "encoder")
    alone = loaded(tmp_path / "encoder")
    assert alone.state().keys() == original.state().keys()
    for name, value in alone.state().items():
        np.testing.assert_array_equal(value, original.state()[name])


def test_the_table_of_positions_in_an_older_checkpoint_is_left_alone(original: Original, folder: Path) -> None:
    files = find_checkpoint(str(folder)).files(SILENT)
    older = dict(files.tensors) | {"model.encoder.embed_positions.weights": torch.zeros(402, 32)}
    module = family_of("speech_to_text")
    assert module is not None
    assert module.load(replace(files, tensors=older)).state().keys() == original.state().keys()


@pytest.mark.parametrize(
    ("file", "change", "named"),
    [
        ("config.json", {"encoder_layers": 3}, "encoder_layers is 3"),
        ("config.json", {"encoder_ffn_dim": 49}, "encoder_ffn_dim is 49"),
        ("config.json", {"d_model": "32"}, "d_model is '32'"),
        ("config.json", {"encoder_attention_heads": 5}, "encoder_attention_heads is 5"),
        ("config.json", {"activation_function": "gelu"}, "activation_function is 'gelu'"),
        ("config.json", {"max_source_positions": 10**12}, "max_source_positions is 1000000000000"),
        ("config.json", {"conv_kernel_sizes": [5, "5"]}, "conv_kernel_sizes"),
        ("config.json", {"conv_kernel_sizes": [5] * 1000, "num_conv_layers": 1000}, "conv_kernel_sizes"),
        ("config.json", {"input_feat_per_channel": 40}, "input_feat_per_channel|feature_size|num_mel_bins"),
        ("preprocessor_config.json", {"normalize_vars": False}, "normalize_vars"),
        ("preprocessor_config.json", {"sampling_rate": 8000}, "sampling_rate"),
    ],
)
def test_settings_that_do_not_fit_are_refused_by_name(
    folder: Path, tmp_path: Path, file: str, change: dict[str, Any], named: str
) -> None:
    copy = tmp_path / "model"
    shutil.copytree(folder, copy)
    (copy / file).write_text(json.dumps(json.loads((copy / file).read_text()) | change))
    with pytest.raises(InputError, match=named):
        loaded(copy)


def test_a_folder_is_exported_and_extracted(model: Any, folder: Path, tmp_path: Path) -> None:
    vs.export(str(folder), tmp_path / "model", vs.ExportSpec(outputs=("layer_01", "final")))
    audio = {name: sound(seconds, seed=5) for name, seconds in (("whole", 2.0), ("long", 6.1))}
    for name, x in audio.items():
        soundfile.write(tmp_path / f"{name}.wav", x, 16_000, subtype="FLOAT")
    lines = ["id\tpath\tlanguage\tgroup", *(f"{name}\t{name}.wav\ten\t{name}" for name in audio)]
    (tmp_path / "m.tsv").write_text("\n".join(lines) + "\n")
    spec = vs.StoreSpec(dtype="float32")
    vs.extract(tmp_path / "m.tsv", tmp_path / "model", tmp_path / "s.zarr", spec, vs.Runtime(threads=1))
    store = vs.open_store(tmp_path / "s.zarr")
    want = expected(model, [audio["whole"]])[0]
    for name in ("layer_01", "final"):
        assert relative(store.frames("whole", name), want[name]) < 1e-4
    assert len(store.frames("long", "final")) == store.model.family.frames(len(audio["long"]))
