"""Odd folders are read as transformers reads them, or refused with the true reason; nothing in them loads code."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from checkpoint_files import PREFIX, State, sharded
from test_bad_checkpoint import edit_config, refused
from test_cli import run

from voxstrata.base import opening
from voxstrata.base.errors import InputError, UsageError
from voxstrata.base.progress import Reporter

torch = pytest.importorskip("torch")
safetensors_torch = pytest.importorskip("safetensors.torch")

from transformers import WhisperForConditionalGeneration  # noqa: E402

from voxstrata.early_exit.checkpoint import load_transcriber  # noqa: E402
from voxstrata.early_exit.decoding import Decoding, language_tokens  # noqa: E402
from voxstrata.exporters.checkpoint import load_checkpoint  # noqa: E402

HUGE = 10**9


class Warnings(Reporter):
    """Keeps what it is warned of."""

    def __init__(self) -> None:
        self.heard: list[str] = []

    def warn(self, text: str) -> None:
        self.heard.append(text)


@pytest.fixture
def whole(without_weights: Path, tiny_weights: State) -> Path:
    """The tiny checkpoint, to be spoilt."""
    safetensors_torch.save_file(tiny_weights, without_weights / "model.safetensors", {"format": "pt"})
    return without_weights


def others(weights: State) -> State:
    """Tensors of the same names and shapes with other values."""
    return {k: v + 1 for k, v in weights.items()}


# ---- which files are read


def stale_shards(folder: Path, weights: State, tiny: Path) -> None:
    """Three old shards beside a new index that names others; the old names come last in the alphabet."""
    sharded(folder, weights, tiny)
    names = sorted(weights)
    for n in range(3):
        old = {k: weights[k] + 1 for k in names[n::3]}
        safetensors_torch.save_file(old, folder / f"model-0009{n}-of-00099.safetensors", {"format": "pt"})


def shards_beside_the_whole(folder: Path, weights: State, tiny: Path) -> None:
    sharded(folder, others(weights), tiny)
    safetensors_torch.save_file(weights, folder / "model.safetensors", {"format": "pt"})


def an_index_of_all_but_one(folder: Path, weights: State, tiny: Path) -> None:
    """An index and torch's own file: the former is read."""
    sharded(folder, weights, tiny)
    torch.save(others(weights), folder / "pytorch_model.bin")


def torch_shards(folder: Path, weights: State, tiny: Path) -> None:
    """Torch's own files under an index, beside an old one."""
    names = sorted(weights)
    parts = {f"pytorch_model-0000{n + 1}-of-00002.bin": names[n::2] for n in range(2)}
    for name, keys in parts.items():
        torch.save({k: weights[k] for k in keys}, folder / name)
    index = {"metadata": {}, "weight_map": {k: name for name, keys in parts.items() for k in keys}}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    torch.save(others(weights), folder / "pytorch_model-00003-of-00003.bin")


@pytest.mark.parametrize(
    "make", [stale_shards, shards_beside_the_whole, an_index_of_all_but_one, torch_shards], ids=lambda f: f.__name__
)
def test_the_weights_are_those_transformers_loads(
    make: Any, without_weights: Path, tiny_weights: State, tiny_checkpoint: Path
) -> None:
    make(without_weights, tiny_weights, tiny_checkpoint)
    heard = Warnings()
    ours = load_checkpoint(str(without_weights), reporter=heard).encoder.state_dict()
    theirs = WhisperForConditionalGeneration.from_pretrained(without_weights)
    assert ours.keys() == theirs.model.encoder.state_dict().keys()
    for name, tensor in theirs.model.encoder.state_dict().items():
        assert torch.equal(ours[name], tensor), name
    early = load_transcriber(str(without_weights)).model.state_dict()
    assert {k: torch.equal(v, early[k]) for k, v in theirs.state_dict().items()} == dict.fromkeys(early, True)
    (text,) = heard.heard
    assert "; not read: " in text
    assert str(without_weights) in text


def test_a_folder_with_nothing_beside_its_weights_has_no_notes(whole: Path) -> None:
    heard = Warnings()
    load_checkpoint(str(whole), reporter=heard)
    assert heard.heard == []


def test_shards_that_no_index_names_are_refused(without_weights: Path, tiny_weights: State) -> None:
    safetensors_torch.save_file(tiny_weights, without_weights / "model-00001-of-00001.safetensors")
    refused(without_weights, r"holds model-00001-of-00001\.safetensors, but neither model\.safetensors nor")


@pytest.mark.parametrize(
    "index",
    ["[]", "{}", '{"weight_map": 5}', '{"weight_map": {"a": 5}}', '{"weight_map": {"a": "/etc/x.safetensors"}}',
     '{"weight_map": {"a": "../x.safetensors"}}', '{"weight_map": {"a": "x.bin"}}', "[" * 100_000],
)  # fmt: skip
def test_an_index_that_names_no_shards_is_refused(whole: Path, index: str) -> None:
    (whole / "model.safetensors").rename(whole.parent / "x.safetensors")
    (whole / "model.safetensors.index.json").write_text(index)
    refused(whole, "model.safetensors.index.json: ")


# ---- adapters and quantised weights


def adapter(folder: Path) -> None:
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "openai/whisper-base"}))
    (folder / "adapter_model.safetensors").touch()


def test_an_adapter_beside_the_weights_is_named(whole: Path) -> None:
    adapter(whole)
    heard = Warnings()
    load_checkpoint(str(whole), reporter=heard)
    (text,) = heard.heard
    assert "adapter (LoRA) beside the weights is not applied" in text


def test_an_adapter_alone_is_refused(without_weights: Path) -> None:
    adapter(without_weights)
    refused(without_weights, r"adapter \(LoRA\) for 'openai/whisper-base', not a whole checkpoint; merge it first")
    (without_weights / "config.json").unlink()
    refused(without_weights, "adapter.*merge it first")


def test_an_adapter_among_the_tensors_is_refused(whole: Path, tiny_weights: State) -> None:
    lora = {PREFIX + "layers.0.fc1.lora_A.default.weight": torch.zeros(2, 32)}
    safetensors_torch.save_file(tiny_weights | lora, whole / "model.safetensors")
    refused(whole, "lora_A.* is an adapter's; merge it first")


@pytest.mark.parametrize("dtype", ["int8", "uint8", "float8_e4m3fn", "int32"])
def test_quantised_tensors_are_refused_by_name(whole: Path, tiny_weights: State, dtype: str) -> None:
    """As bitsandbytes and its kin leave them: of the right name and shape, and no weights."""
    kind = getattr(torch, dtype)
    weights = tiny_weights | {k: v.to(kind) for k, v in tiny_weights.items() if k.endswith("fc1.weight")}
    safetensors_torch.save_file(weights, whole / "model.safetensors")
    refused(whole, rf"encoder tensor layers\.\d\.fc1\.weight holds {dtype}, quantised values")


def test_a_quantised_decoder_is_refused_for_early_exit(whole: Path, tiny_weights: State) -> None:
    weights = {k: v.to(torch.int8) if "decoder" in k and "fc1" in k else v for k, v in tiny_weights.items()}
    safetensors_torch.save_file(weights, whole / "model.safetensors")
    load_checkpoint(str(whole))
    with pytest.raises(InputError, match=r"decoder tensor layers\.0\.fc1\..* holds int8"):
        load_transcriber(str(whole))


@pytest.mark.parametrize(
    "setting", [{"quant_method": "bitsandbytes", "load_in_8bit": True}, {}, "someone/module", [[]]]
)
def test_quantised_checkpoints_are_refused(whole: Path, setting: Any) -> None:
    edit_config(whole, quantization_config=setting)
    refused(whole, r"config\.json: the weights are quantised .* model\.dequantize\(\)")


# ---- config.json


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Kernels that transformers' loader of them was asked for."""
    from transformers import modeling_utils
    from transformers.integrations import hub_kernels

    asked: list[str] = []

    def ask(name: str, *_: Any, **__: Any) -> None:
        asked.append(name)
        raise ImportError(name)

    places = [(modeling_utils, "load_and_register_kernel"), (hub_kernels, "load_and_register_attn_kernel")]  # 4.57, 5
    for module, name in (place for place in places if hasattr(*place)):
        monkeypatch.setattr(module, name, ask)
    return asked


@pytest.mark.parametrize(
    "changes",
    [
        {"_attn_implementation": "someone/kernel"},
        {"attn_implementation": "flash_attention_2"},
        {"_attn_implementation": "flash_attention_2", "_flash_attn_2_enabled": True},
        {"attn_implementation": {"encoder": "someone/kernel"}},
        {"_attn_implementation_internal": "someone/kernel@main:attention", "experts_implementation": "someone/kernel"},
        {"auto_map": {"AutoConfig": "someone/code--module.Class"}, "trust_remote_code": True},
        {"custom_pipelines": {"x": {"impl": "module.Class"}}, "custom_generate": "someone/code"},
        {"encoder": {"model_type": "x"}, "text_config": {}, "use_kernels": True, "return_dict": False},
        {"pruned_heads": {"0": [0, 1]}, "chunk_size_feed_forward": HUGE, "output_attentions": "x", "torchscript": True},
        {"max_length": None},  # as save_pretrained leaves it of OpenAI's config.json
    ],
    ids=str,
)
def test_keys_that_say_nothing_about_the_encoder_go_no_further(
    whole: Path, tiny_checkpoint: Path, changes: dict[str, Any], asked: list[str]
) -> None:
    edit_config(whole, **changes)
    found = load_checkpoint(str(whole))
    assert found.sha256() == load_checkpoint(str(tiny_checkpoint)).sha256()
    audio = torch.zeros(16_000).numpy()
    with torch.inference_mode():
        assert found.encoder(found.features(audio)).last_hidden_state.shape == (1, 1500, 32)
    load_transcriber(str(whole))
    assert asked == []
    assert set(changes).isdisjoint(json.loads(found.config.to_json_string(use_diff=True)))


def test_the_trap_for_kernels_works(whole: Path, asked: list[str]) -> None:
    """transformers itself, given such a configuration, asks for the kernel."""
    edit_config(whole, _attn_implementation="someone/kernel")
    with pytest.raises(ImportError):
        WhisperForConditionalGeneration.from_pretrained(whole)
    assert asked == ["someone/kernel"]


def test_weights_under_a_name_of_their_own_are_refused(whole: Path) -> None:
    edit_config(whole, transformers_weights="elsewhere.safetensors")
    refused(whole, "transformers_weights names another file")


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"encoder_layers": 10**6}, "encoder_layers is 1000000, they have 3"),
        ({"d_model": HUGE}, "d_model is 1000000000, they have 32"),
        ({"num_mel_bins": HUGE}, "num_mel_bins is 1000000000, they have 80"),
        ({"encoder_ffn_dim": -1}, "encoder_ffn_dim is -1, they have 128"),
        ({"encoder_attention_heads": 0}, "encoder_attention_heads is 0"),
        ({"encoder_attention_heads": -4}, "encoder_attention_heads is -4"),
        ({"encoder_layers": "3"}, "encoder_layers is '3', not a whole number"),
        ({"encoder_layers": 3.0}, "encoder_layers is 3.0, not a whole number"),
        ({"encoder_layers": True}, "encoder_layers is True, not a whole number"),
        ({"encoder_layers": None}, "encoder_layers is None, not a whole number"),
        ({"d_model": [[32]]}, r"d_model is \[\[32\]\], not a whole number"),
        ({"dropout": "none"}, "dropout is 'none', not a number"),
        ({"torch_dtype": "int4"}, "torch_dtype is 'int4', not one of float32"),
        ({"dtype": {"x": 1}}, "dtype is .*, not text"),
        ({"suppress_tokens": 5}, "suppress_tokens is 5, not a list"),
    ],
)
def test_absurd_sizes_are_refused_before_anything_is_made(whole: Path, changes: dict[str, Any], match: str) -> None:
    edit_config(whole, **changes)
    refused(whole, match)


@pytest.mark.parametrize("key", ["decoder_layers", "vocab_size", "max_target_positions", "decoder_ffn_dim"])
def test_absurd_sizes_of_the_decoder_are_refused(whole: Path, key: str) -> None:
    edit_config(whole, **{key: HUGE})
    with pytest.raises(InputError, match=f"{key} is {HUGE}, they have"):
        load_transcriber(str(whole))


def test_json_beyond_reason_is_refused(whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = whole / "config.json"
    config.write_text('{"model_type": ' + "[" * 100_000 + "]" * 100_000 + "}")
    refused(whole, "not readable as JSON")
    config.write_text('{"model_type": "whisper", "d_model": ' + "9" * 5000 + "}")
    refused(whole, "not readable as JSON")
    monkeypatch.setattr(opening, "JSON_BYTES", 1000)
    refused(whole, "1000 are the most that is read")


# ---- preprocessor_config.json


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("hop_length", 80), ("hop_length", 0), ("hop_length", -160), ("hop_length", "160"), ("hop_length", None),
        ("n_fft", 512), ("n_fft", HUGE), ("n_fft", [[400]]), ("n_fft", 0), ("sampling_rate", 8000),
        ("sampling_rate", {}), ("chunk_length", 15), ("chunk_length", HUGE), ("chunk_length", "x" * 10**6),
        ("padding_value", 1.0), ("padding_side", "left"), ("dither", 0.1),
        ("feature_extractor_type", "Wav2Vec2FeatureExtractor"),
    ],
)  # fmt: skip
def test_another_preprocessing_is_refused(whole: Path, key: str, value: Any) -> None:
    file = whole / "preprocessor_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {key: value}))
    refused(whole, rf"preprocessor_config\.json: {key} is .{{1,70}}, but Whisper's encoders take")


def test_another_preprocessing_in_transformers_5s_place_is_refused(whole: Path) -> None:
    extractor = json.loads((whole / "preprocessor_config.json").read_text())
    (whole / "preprocessor_config.json").unlink()
    (whole / "processor_config.json").write_text(json.dumps({"feature_extractor": extractor}))
    load_checkpoint(str(whole))
    (whole / "processor_config.json").write_text(json.dumps({"feature_extractor": extractor | {"hop_length": 80}}))
    refused(whole, r"processor_config\.json: hop_length is 80")


@pytest.mark.parametrize("value", [128, "80", HUGE, [80]])
def test_other_mels_are_refused(whole: Path, value: Any) -> None:
    (whole / "preprocessor_config.json").write_text(json.dumps({"feature_size": value}))
    refused(whole, "mel bins, the encoder takes 80")


def test_other_keys_of_the_preprocessor_go_no_further(whole: Path, tiny_checkpoint: Path) -> None:
    file = whole / "preprocessor_config.json"
    odd = {
        "auto_map": {"AutoFeatureExtractor": "someone/code--x.Y"},
        "mel_filters": [[0.0]],
        "n_samples": HUGE,
        "_call": 1,
    }
    file.write_text(json.dumps(json.loads(file.read_text()) | odd))
    found, plain = (load_checkpoint(str(folder)).extractor for folder in (whole, tiny_checkpoint))
    assert found.to_dict() == plain.to_dict()


def test_the_command_says_the_true_reason(whole: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (whole / "preprocessor_config.json").write_text(json.dumps({"hop_length": 80}))
    assert run("export", whole, "-o", tmp_path / "model") == 3
    assert "hop_length is 80, but Whisper's encoders take 160" in capfd.readouterr().err
    assert not (tmp_path / "model").exists()


# ---- generation_config.json


@pytest.fixture
def outdated(tiny_transcriber: Path, tmp_path: Path) -> Path:
    """The transcriber with generation settings as transformers wrote them before it told languages apart."""
    folder = tmp_path / "outdated"
    shutil.copytree(tiny_transcriber, folder)
    file = folder / "generation_config.json"
    settings = json.loads(file.read_text())
    new = ("lang_to_id", "task_to_id", "is_multilingual", "no_timestamps_token_id")
    file.write_text(json.dumps({k: v for k, v in settings.items() if k not in new}))
    return folder


@pytest.mark.parametrize("absent", [False, True])
def test_languages_come_from_the_tokenizer_where_settings_are_outdated(
    outdated: Path, tiny_transcriber: Path, absent: bool
) -> None:
    if absent:
        (outdated / "generation_config.json").unlink()
    heard = Warnings()
    found = load_transcriber(str(outdated), reporter=heard)
    want = load_transcriber(str(tiny_transcriber)).model.generation_config
    got = found.model.generation_config
    assert (got.lang_to_id, got.task_to_id) == (want.lang_to_id, want.task_to_id)
    assert (got.is_multilingual, got.no_timestamps_token_id) == (True, want.no_timestamps_token_id)
    assert language_tokens(found, ["ja"], Decoding()) == {"ja": "<|ja|>"}
    assert ["3 languages and both tasks are taken from the tokenizer" in text for text in heard.heard] == [True]


def test_outdated_settings_without_a_tokenizer_are_not_taken_for_english(outdated: Path) -> None:
    (outdated / "tokenizer.json").unlink()
    found = load_transcriber(str(outdated))
    with pytest.raises(InputError, match="names no languages, and the tokenizer lists none; copy"):
        language_tokens(found, ["ja"], Decoding())


def test_outdated_settings_of_an_english_model_stay_english(outdated: Path) -> None:
    """OpenAI's .en models have 51864 tokens, and name languages in their tokenizer all the same."""
    config = json.loads((outdated / "config.json").read_text()) | {"vocab_size": 51864}
    (outdated / "config.json").write_text(json.dumps(config))
    weights = safetensors_torch.load_file(outdated / "model.safetensors")
    name = "model.decoder.embed_tokens.weight"
    more = torch.zeros(51864 - len(weights[name]), weights[name].shape[1])
    weights[name] = torch.cat([weights[name], more])
    weights.pop("proj_out.weight", None)
    safetensors_torch.save_file(weights, outdated / "model.safetensors", {"format": "pt"})
    with pytest.raises(UsageError, match="transcribes English alone"):
        language_tokens(load_transcriber(str(outdated)), ["ja"], Decoding())


@pytest.mark.parametrize("text", ["{", "[]", "[" * 100_000])
def test_broken_generation_settings_are_refused(outdated: Path, text: str) -> None:
    (outdated / "generation_config.json").write_text(text)
    with pytest.raises(InputError, match=r"generation_config\.json: (not readable as JSON|holds no JSON object)"):
        load_transcriber(str(outdated))
