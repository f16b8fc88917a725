"""Encoders made from Whisper inside other models: the same states, read without running a stranger's code."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoint_files import PREFIX, State, encoder_only
from conftest import sound

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from hf_reference import relative_l2  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402

import voxstrata as vs  # noqa: E402
from voxstrata.base.errors import InputError  # noqa: E402
from voxstrata.base.progress import Reporter  # noqa: E402
from voxstrata.exporters.checkpoint import Checkpoint, load_checkpoint, tower_checkpoint  # noqa: E402
from voxstrata.exporters.families import described_encoder  # noqa: E402
from voxstrata.exporters.finding import find_checkpoint  # noqa: E402
from voxstrata.exporters.pytorch import hidden_states  # noqa: E402
from voxstrata.exporters.towers import Tower  # noqa: E402
from voxstrata.exporters.validation import cpu_session  # noqa: E402

V5 = int(transformers.__version__.split(".")[0]) >= 5
AUDIO = {
    "num_mel_bins": 80, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 128,
}  # fmt: skip
WHISPER = {
    "model_type": "whisper", "num_mel_bins": 80, "d_model": 32, "encoder_layers": 3, "encoder_attention_heads": 4,
    "encoder_ffn_dim": 128,
}  # fmt: skip


class Warnings(Reporter):
    def __init__(self) -> None:
        self.heard: list[str] = []

    def warn(self, message: str) -> None:
        self.heard.append(message)


def loaded(folder: Path) -> Checkpoint:
    found = find_checkpoint(str(folder))
    tower = described_encoder(found.description, found.config)
    assert isinstance(tower, Tower)
    return tower_checkpoint(found, tower, found.tensors(Warnings()))


@pytest.fixture
def ultravox(tmp_path: Path, tiny_checkpoint: Path, tiny_weights: State) -> Path:
    """The tiny encoder in a model like Ultravox, whose code lies beside it and would leave a mark."""
    folder = tmp_path / "ultravox"
    folder.mkdir()
    (folder / "modeling.py").write_text(f"open({str(tmp_path / 'mark')!r}, 'w')\nclass Model: ...\n")
    auto_map = {"AutoConfig": "modeling.Model", "AutoModel": "modeling.Model"}
    write(folder, {"model_type": "ultravox", "auto_map": auto_map, "audio_config": WHISPER, "stack_factor": 8})
    tower = encoder_only(tiny_weights, "audio_tower.")
    save_file(tower | {"multi_modal_projector.linear_1.weight": torch.zeros(4, 4)}, folder / "model.safetensors")
    return folder


def write(folder: Path, config: dict[str, Any]) -> None:
    (folder / "config.json").write_text(json.dumps(config))


def edit(folder: Path, **changes: Any) -> None:
    write(folder, json.loads((folder / "config.json").read_text()) | changes)


# ---- the same graph


def test_voxtrals_states_are_whispers_to_the_bit(tmp_path: Path) -> None:
    torch.manual_seed(1)
    text = transformers.LlamaConfig(
        vocab_size=32, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2
    )
    config = transformers.VoxtralConfig(audio_config=transformers.VoxtralEncoderConfig(**AUDIO), text_config=text)
    model = transformers.VoxtralForConditionalGeneration(config).eval()
    model.save_pretrained(tmp_path)
    found = loaded(tmp_path)
    log_mel = found.features(sound(2.3, 1))
    tower = getattr(model, "model", model).audio_tower
    with torch.inference_mode():
        states = tower(log_mel).last_hidden_state
    assert torch.equal(hidden_states(found.encoder, log_mel)["final"], states)
    assert found.shape.layers == 3


def test_voxtrals_encoder_alone_is_read(tmp_path: Path) -> None:
    torch.manual_seed(1)
    encoder = transformers.VoxtralEncoder(transformers.VoxtralEncoderConfig(**AUDIO)).eval()
    encoder.save_pretrained(tmp_path)
    log_mel = loaded(tmp_path).features(sound(1.0, 2))
    with torch.inference_mode():
        assert torch.equal(
            hidden_states(loaded(tmp_path).encoder, log_mel)["final"], encoder(log_mel).last_hidden_state
        )


@pytest.mark.skipif(not V5, reason="MOSS-Transcribe-Diarize came with transformers 5")
def test_moss_states_are_whispers_to_the_bit(tmp_path: Path) -> None:
    torch.manual_seed(1)
    config = transformers.MossTranscribeDiarizeAudioConfig(**AUDIO)
    encoder = transformers.MossTranscribeDiarizeAudioModel(config).eval()
    encoder.save_pretrained(tmp_path)
    log_mel = loaded(tmp_path).features(sound(1.0, 2))
    with torch.inference_mode():
        assert torch.equal(
            hidden_states(loaded(tmp_path).encoder, log_mel)["final"], encoder(log_mel).last_hidden_state
        )


def test_a_tower_exports_as_the_whisper_that_it_is(ultravox: Path, tiny_model: Path, tmp_path: Path) -> None:
    model = vs.export(str(ultravox), tmp_path / "model")
    own = vs.open_model(tiny_model)
    assert (model.card.weights_sha256, model.card.outputs) == (own.card.weights_sha256, own.card.outputs)
    for name in ("encoder_model.onnx_data", "silence.npz"):
        assert (model.path / name).read_bytes() == (tiny_model / name).read_bytes()
    assert "family" not in json.loads((model.path / "card.json").read_text())
    assert json.loads((model.path / "config.json").read_text())["model_type"] == "whisper"
    assert not (tmp_path / "mark").exists()


@pytest.mark.parametrize("prefix", ["audio_tower.", "model.audio_tower.", "speech.whisper.model.encoder.", ""])
@pytest.mark.parametrize("part", ["audio_config", "audio_encoder_config"])
def test_a_tower_is_found_wherever_it_lies(
    ultravox: Path, tiny_weights: State, tiny_checkpoint: Path, prefix: str, part: str
) -> None:
    write(ultravox, {"model_type": "a_model_of_next_year", part: WHISPER})
    save_file(encoder_only(tiny_weights, prefix), ultravox / "model.safetensors")
    assert loaded(ultravox).sha256() == load_checkpoint(str(tiny_checkpoint)).sha256()


def test_an_unknown_model_around_a_tower_is_warned_of(ultravox: Path, tmp_path: Path) -> None:
    edit(ultravox, model_type="a_model_of_next_year")
    heard = Warnings()
    vs.export(str(ultravox), tmp_path / "model", vs.ExportSpec("layer_00"), reporter=heard)
    assert any("what a_model_of_next_year does with its encoder is not known" in text for text in heard.heard)


def test_shards_of_the_language_model_are_not_asked_for(ultravox: Path, tiny_checkpoint: Path) -> None:
    tensors = load_file(ultravox / "model.safetensors")
    (ultravox / "model.safetensors").rename(ultravox / "model-00001-of-00002.safetensors")
    where = dict.fromkeys(tensors, "model-00001-of-00002.safetensors")
    where |= {"language_model.lm_head.weight": "model-00002-of-00002.safetensors"}
    (ultravox / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))
    assert loaded(ultravox).sha256() == load_checkpoint(str(tiny_checkpoint)).sha256()


# ---- towers that pool


def language_model() -> Any:
    return transformers.Qwen2Config(
        vocab_size=64, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2,
    )  # fmt: skip


def qwen2_audio() -> Any:
    audio = transformers.Qwen2AudioEncoderConfig(
        num_mel_bins=80, d_model=32, encoder_layers=2, encoder_attention_heads=4, encoder_ffn_dim=64
    )
    config = transformers.Qwen2AudioConfig(audio_config=audio, text_config=language_model(), audio_token_index=1)
    return transformers.Qwen2AudioForConditionalGeneration(config)


def audio_flamingo() -> Any:
    audio = transformers.AudioFlamingo3EncoderConfig(**AUDIO | {"num_hidden_layers": 2})
    config = transformers.AudioFlamingo3Config(audio_config=audio, text_config=language_model(), audio_token_id=1)
    return transformers.AudioFlamingo3ForConditionalGeneration(config)


POOLED = [
    qwen2_audio,
    pytest.param(audio_flamingo, marks=pytest.mark.skipif(not V5, reason="Audio Flamingo 3 came with transformers 5")),
]


class Seen(Exception):
    """The audio tower has answered; the language model need not."""


def original_states(model: Any, audio: np.ndarray) -> tuple[list[np.ndarray], np.ndarray]:
    """What the whole model's own forward makes of a recording, with its processor's features and mask: the states
    before and after each block, of the recording's frames, and of the encoder's output as many as the model takes."""
    extractor = transformers.WhisperFeatureExtractor(feature_size=80)
    found = extractor(
        audio, sampling_rate=16_000, padding="max_length", return_attention_mask=True, return_tensors="pt"
    )
    mask, whole = found["attention_mask"], getattr(model, "model", model)
    tower, states, last = whole.audio_tower, [], []
    handles = [tower.layers[0].register_forward_pre_hook(lambda _, args: states.append(args[0]))]

    def keep(_: Any, __: Any, output: Any) -> None:
        states.append(output[0] if isinstance(output, tuple) else output)

    handles += [layer.register_forward_hook(keep) for layer in tower.layers]

    def stop(_: Any, __: Any, output: Any) -> None:
        last.append(output.last_hidden_state)
        raise Seen

    handles.append(tower.register_forward_hook(stop))
    name = "feature_attention_mask" if "Qwen2" in type(model).__name__ else "input_features_mask"
    frames, pooled = tower._get_feat_extract_output_lengths(mask.sum(-1))
    tokens = torch.tensor([[1] * max(1, int(pooled)) + [2]])
    with torch.inference_mode(), pytest.raises(Seen):
        model(input_ids=tokens, attention_mask=torch.ones_like(tokens), **{
            "input_features": found["input_features"], name: mask
        })  # fmt: skip
    for handle in handles:
        handle.remove()
    return [s[0, : int(frames)].numpy() for s in states], last[0][0, : int(pooled)].numpy()


@pytest.mark.parametrize("make", POOLED)
def test_pooled_states_are_the_whole_models_own(make: Callable[[], Any], tmp_path: Path) -> None:
    torch.manual_seed(3)
    model = make().eval()
    with torch.no_grad():  # the default leaves attention all but uniform
        for name, p in model.named_parameters():
            p.normal_(0, 0.3 if p.ndim == 2 else 0.1) if "audio_tower" in name and "embed" not in name else None
    model.save_pretrained(tmp_path / "checkpoint")
    exported = vs.export(str(tmp_path / "checkpoint"), tmp_path / "model")
    family, names = exported.card.family, ("layer_00", "layer_01", "layer_02", "final")
    assert (exported.card.outputs, family.contexts, family.output("final").repeats) == (names, ("exact",), 2)
    features, encoder = (cpu_session(exported.path / name) for name in ("features.onnx", "encoder_model.onnx"))
    for samples in (1, 320, 321, 640, 16_000, 16_001, 33_333, 479_680, 479_999, 480_000):
        audio = np.stack([sound(samples / 16_000, seed)[:samples] for seed in (1, 2)])
        (log_mel,) = features.run(None, {"audio": audio})
        got = dict(zip(names, encoder.run(names, {"features": log_mel}), strict=True))
        assert got["final"].shape == (2, family.frames(samples), 32)
        for row in range(2) if samples < 40_000 else [0]:
            states, pooled = original_states(model, audio[row])
            for name, want in zip(names, states, strict=False):
                assert relative_l2(got[name][row], want) < 2e-4, (name, samples)
            twice = np.repeat(pooled, 2, axis=0)  # an odd last frame is none of the model's
            assert len(twice) == family.frames(samples) // 2 * 2
            if len(twice):
                assert relative_l2(got["final"][row][: len(twice)], twice) < 2e-4, samples


@pytest.mark.skipif(V5, reason="transformers 5 has it")
def test_audio_flamingo_says_which_transformers_it_needs(tmp_path: Path, ultravox: Path) -> None:
    write(ultravox, {"model_type": "audioflamingo3", "audio_config": AUDIO})
    with pytest.raises(InputError, match=r"Audio Flamingo 3 needs transformers 5; pip install 'transformers>=5'"):
        vs.export(str(ultravox), tmp_path / "model")


# ---- what is refused


def refused(folder: Path, match: str) -> None:
    target = folder.parent / "model"
    with pytest.raises(InputError, match=match) as e:
        vs.export(str(folder), target)
    assert "\n" not in str(e.value)
    assert str(folder) in str(e.value)
    assert not target.exists()


def test_a_tower_that_attends_in_blocks_is_refused(ultravox: Path) -> None:
    edit(ultravox, audio_latency_block_size=100)
    refused(ultravox, "audio_latency_block_size is 100: its encoder attends in blocks of its own")


def test_a_tower_that_was_not_saved_is_named(ultravox: Path) -> None:
    edit(ultravox, audio_model_id="openai/whisper-large-v3-turbo")
    save_file({"multi_modal_projector.linear_1.weight": torch.zeros(4, 4)}, ultravox / "model.safetensors")
    refused(ultravox, r"no Whisper encoder .*it may be that of 'openai/whisper-large-v3-turbo', unchanged: export that")


@pytest.mark.parametrize("settings", [{}, {"model_type": "whisper"}, {"model_type": "wav2vec2", "d_model": 32}, None])
def test_a_tower_without_settings_is_refused(ultravox: Path, settings: Any) -> None:
    edit(ultravox, audio_config=settings, audio_model_id="openai/whisper-tiny")
    refused(ultravox, r"describes no Whisper encoder; .* audio_model_id, 'openai/whisper-tiny': export that")


def test_settings_with_a_size_missing_are_refused(ultravox: Path) -> None:
    edit(ultravox, audio_config={k: v for k, v in WHISPER.items() if k != "encoder_layers"})
    refused(ultravox, "the encoder's settings do not say encoder_layers")
    alone = {k: v for k, v in AUDIO.items() if k != "num_attention_heads"}
    write(ultravox, alone | {"model_type": "voxtral_encoder"})
    refused(ultravox, "the encoder's settings do not say num_attention_heads")


def test_two_towers_are_refused(ultravox: Path, tiny_weights: State) -> None:
    both = encoder_only(tiny_weights, "audio_tower.") | encoder_only(tiny_weights, "second_tower.")
    save_file({k: v.clone() for k, v in both.items()}, ultravox / "model.safetensors")
    refused(ultravox, "several Whisper encoders .*save the one that is meant alone")


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"encoder_layers": 10**6}, "encoder_layers is 1000000, they have 3"),
        ({"d_model": 10**9}, "d_model is 1000000000, they have 32"),
        ({"d_model": "32"}, "d_model is '32', not a whole number"),
        ({"max_source_positions": 750}, "750 positions"),
    ],
)
def test_a_nested_configuration_is_held_against_the_weights(ultravox: Path, changes: State, match: str) -> None:
    edit(ultravox, audio_config=WHISPER | changes)
    refused(ultravox, match)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"encoder_layers": 10**6}, "encoder_layers is 1000000, they have 3"),
        ({"hidden_size": 10**9}, "d_model is 1000000000, they have 32"),
        ({"encoder_ffn_dim": True}, "encoder_ffn_dim is True, not a whole number"),
        ({"encoder_attention_heads": 0}, "encoder_attention_heads is 0"),
        ({"max_source_positions": 3000}, "3000 positions"),
        ({"activation_function": "relu"}, "activation 'relu'"),
    ],
)
def test_a_pooled_towers_configuration_is_held_against_the_weights(ultravox: Path, changes: State, match: str) -> None:
    write(ultravox, {"model_type": "qwen2_audio", "audio_config": AUDIO | changes})
    refused(ultravox, match)


# ---- families that are not known


@pytest.mark.parametrize(
    ("config", "match"),
    [
        ({"model_type": "no_such"}, r"config\.json: model_type is 'no_such'; known families: Whisper; "),
        ({}, "model_type is None; known families"),
        ({"model_type": ["whisper"]}, r"model_type is \['whisper'\]; known families"),
        ({"model_type": {"whisper": 1}, "audio_config": 5}, "model_type is {'whisper': 1}; known families"),
        ({"model_type": "qwen2_5_omni"}, "whose encoder is not Whisper's: it attends in chunks of its own"),
        ({"model_type": "qwen3_omni_moe_audio_encoder"}, "whose encoder is not Whisper's: it attends in chunks"),
        ({"model_type": "glmasr"}, "whose encoder is not Whisper's: its positions are rotary"),
        (
            {"model_type": "llama", "architectures": ["LlamaForCausalLM"]},
            r"model_type is 'llama' \('LlamaForCausalLM'\), a decoder of text without an encoder of speech; known",
        ),
    ],
)
def test_what_is_not_known_is_refused_with_a_list(ultravox: Path, config: State, match: str) -> None:
    (ultravox / "model.safetensors").unlink()  # before weights are read
    write(ultravox, config)
    refused(ultravox, match)
    with pytest.raises(InputError) as e:
        vs.export(str(ultravox), ultravox.parent / "model")
    for part in ("Whisper;", "made from Whisper (Voxtral, ", "Qwen2-Audio, Audio Flamingo 3;"):
        assert part in str(e.value)


def test_a_whisper_decoder_alone_is_refused(ultravox: Path, tiny_checkpoint: Path, tiny_weights: State) -> None:
    shutil.copy(tiny_checkpoint / "config.json", ultravox / "config.json")
    edit(ultravox, architectures=["WhisperForCausalLM"])
    decoder = {k: v for k, v in tiny_weights.items() if not k.startswith(PREFIX)}
    save_file(decoder, ultravox / "model.safetensors")
    refused(ultravox, r"the weights hold no Whisper encoder \(no conv1\.weight\)")


@pytest.mark.parametrize("model_type", ["ultravox", "qwen2_audio"])
def test_quantised_weights_and_adapters_are_refused(ultravox: Path, model_type: str) -> None:
    own = json.loads((ultravox / "config.json").read_text()) | {"model_type": model_type}
    write(ultravox, own | {"quantization_config": {"quant_method": "gptq"}})
    refused(ultravox, r"the weights are quantised \('gptq'\)")
    write(ultravox, own)
    tensors = load_file(ultravox / "model.safetensors")
    name = "audio_tower.layers.1.fc1.weight"
    save_file(tensors | {name: tensors[name].to(torch.int8)}, ultravox / "model.safetensors")
    refused(ultravox, r"encoder tensor layers\.1\.fc1\.weight holds int8, quantised values")
    save_file(tensors | {"audio_tower.layers.0.fc1.lora_A.weight": torch.zeros(2, 2)}, ultravox / "model.safetensors")
    refused(ultravox, r"layers\.0\.fc1\.lora_A\.weight is an adapter's; merge it first")
    save_file(tensors | {name: tensors[name] * float("nan")}, ultravox / "model.safetensors")
    refused(ultravox, r"layers\.1\.fc1\.weight holds NaN or infinite values")
    (ultravox / "model.safetensors").unlink()
    (ultravox / "adapter_config.json").write_text('{"base_model_name_or_path": "someone/base"}')
    refused(ultravox, r"holds an adapter \(LoRA\) for 'someone/base'")
