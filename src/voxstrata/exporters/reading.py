"""What a checkpoint's folder says: which files hold its weights, and what its JSON files set.

A folder may come from a stranger. transformers is given only keys that we know, of the type they must have: others can
make it load code (`auto_map`, `_attn_implementation: "owner/kernel"`) or read other files.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import WhisperConfig, WhisperFeatureExtractor

from voxstrata.base.errors import InputError
from voxstrata.base.opening import read_json_file
from voxstrata.base.tables import first_few
from voxstrata.encoders.frames import HOP_LENGTH, N_FFT, SAMPLE_RATE, WINDOW_SECONDS
from voxstrata.exporters.hub import WEIGHT_NAMES, first_line, silent_shards

_ADAPTER = "adapter_config.json"
MERGE = (
    "merge it first (peft: PeftModel.from_pretrained(base, FOLDER).merge_and_unload().save_pretrained(NEW)) and take "
    "the result"
)

# Keys of config.json that are passed on, by type. The rest says nothing about the encoder.
_KEYS = {
    int: "vocab_size num_mel_bins d_model encoder_layers encoder_attention_heads encoder_ffn_dim decoder_layers "
    "decoder_attention_heads decoder_ffn_dim max_source_positions max_target_positions num_hidden_layers max_length "
    "decoder_start_token_id pad_token_id bos_token_id eos_token_id classifier_proj_size median_filter_width "
    "mask_time_length mask_time_min_masks mask_feature_length mask_feature_min_masks",
    float: "encoder_layerdrop decoder_layerdrop dropout attention_dropout activation_dropout init_std mask_time_prob "
    "mask_feature_prob",
    bool: "use_cache is_encoder_decoder scale_embedding use_weighted_layer_sum apply_spec_augment tie_word_embeddings",
    str: "activation_function dtype torch_dtype _name_or_path",
    list: "architectures suppress_tokens begin_suppress_tokens forced_decoder_ids",
}
# What save_pretrained leaves of it, once it has moved it to generation_config.json
_MOVED = ("max_length", None)
_TYPE_NAMES = {int: "a whole number", float: "a number", bool: "true or false", str: "text", list: "a list"}
_DTYPES = ("float32", "float16", "bfloat16")

# What the log-mel graph computes, and so what preprocessor_config.json must say where it says anything.
_PREPROCESSING = {
    "sampling_rate": SAMPLE_RATE,
    "hop_length": HOP_LENGTH,
    "n_fft": N_FFT,
    "chunk_length": WINDOW_SECONDS,
    "padding_value": 0,
    "dither": 0,
    "padding_side": "right",
    "feature_extractor_type": "WhisperFeatureExtractor",
}


def read_json_object(file: Path) -> dict[str, Any]:
    """The object in a JSON file. Raises InputError where it is not readable as one, or larger than 64 MB."""
    try:
        found = read_json_file(file)
    except (OSError, ValueError) as e:
        raise InputError(f"{file}: not readable as JSON ({first_line(e)}); fetch it again") from e
    if not isinstance(found, dict):
        raise InputError(f"{file}: holds no JSON object; fetch it again")
    return found


def weight_files(folder: Path) -> tuple[list[Path], list[str]]:
    """The files that transformers would read weights from, in its order, and notes on what lies beside them.

    That is the file of the exact name, else the shards that the index names, safetensors before torch's own. Shards of
    nothing but a language model are left out.
    Raises InputError when there is neither, or a shard is missing.
    """
    for name in WEIGHT_NAMES:
        file, index = folder / name, folder / f"{name}.index.json"
        if file.is_file():
            return [file], _notes(folder, file.name, [])
        if index.is_file():
            shards = _shards(index, file.suffix)
            return shards, _notes(folder, index.name, [*silent_shards(index), *(shard.name for shard in shards)])
    _refuse_adapter(folder)
    strays = _weights_in(folder)
    if strays:
        raise InputError(
            f"{folder}: holds {first_few(strays)}, but neither {' nor '.join(WEIGHT_NAMES)} nor an index that names "
            f"them; fetch {WEIGHT_NAMES[0]}.index.json, too, or rename a file that is whole to {WEIGHT_NAMES[0]}"
        )
    raise InputError(f"{folder}: no weights ({' or '.join(WEIGHT_NAMES)})")


def _refuse_adapter(folder: Path) -> None:
    if (folder / _ADAPTER).is_file():
        base = brief(read_json_object(folder / _ADAPTER).get("base_model_name_or_path"))
        raise InputError(f"{folder}: holds an adapter (LoRA) for {base}, not a whole checkpoint; {MERGE}")


def _shards(index: Path, suffix: str) -> list[Path]:
    named = read_json_object(index).get("weight_map")
    names = list(named.values()) if isinstance(named, dict) else []
    if not names or not all(isinstance(n, str) and n == Path(n).name and n.endswith(suffix) for n in names):
        raise InputError(f"{index}: its weight_map does not name {suffix} files beside it; fetch it again")
    files = [index.parent / name for name in sorted(set(names) - silent_shards(index))]
    missing = [file.name for file in files if not file.is_file()]
    if missing:
        raise InputError(f"{index}: the shards {first_few(missing)} it names are missing; fetch them again")
    return files


def _weights_in(folder: Path) -> list[str]:
    """Names of files that look like a model's weights or their index."""
    names = sorted(f.name for f in folder.iterdir())
    return [n for n in names if n.startswith(("model", "pytorch_model")) and (".safetensors" in n or ".bin" in n)]


def _notes(folder: Path, read: str, parts: list[str]) -> list[str]:
    """Remarks on weights beside the file `read`, which names the files `parts`."""
    notes, strays = [], [name for name in _weights_in(folder) if name not in (read, *parts)]
    if strays:
        notes.append(f"{folder}: weights are read from {read}; not read: {first_few(strays)}")
    if (folder / _ADAPTER).is_file():
        notes.append(f"{folder}: the adapter (LoRA) beside the weights is not applied; if it is meant, {MERGE}")
    return notes


def read_description(folder: Path) -> dict[str, Any]:
    """config.json as it is. Raises InputError where there is none, or it describes quantised weights."""
    file = folder / "config.json"
    if not file.is_file():
        _refuse_adapter(folder)
        raise InputError(f"{folder}: no config.json; a checkpoint folder has one beside its weights")
    raw = read_json_object(file)
    if raw.get("quantization_config") is not None:
        how = raw["quantization_config"]
        method = how.get("quant_method") if isinstance(how, dict) else how
        raise InputError(
            f"{file}: the weights are quantised ({brief(method)}); load the model in transformers, call "
            "model.dequantize(), save it, and export that"
        )
    if raw.get("transformers_weights") is not None:
        raise InputError(
            f"{file}: transformers_weights names another file of weights; rename that file to {WEIGHT_NAMES[0]} and "
            "remove the key"
        )
    return raw


def known_keys(file: Path, raw: Mapping[str, Any], kinds: Mapping[type, str], needed: str = "") -> dict[str, Any]:
    """Of a stranger's settings those that are known, each of the type that it must have.

    kinds: the known keys by type, divided by spaces; needed: those without which the encoder is not determined.
    Text, lists and token ids may be null. Raises InputError naming file, key and value.
    """
    types = {key: kind for kind, keys in kinds.items() for key in keys.split()}
    known = {key: value for key, value in raw.items() if key in types and (key, value) != _MOVED}
    missing = [key for key in needed.split() if key not in known]
    if missing:
        raise InputError(
            f"{file}: it does not say {' nor '.join(missing)}, on which the states depend; take the config.json that "
            "its makers published"
        )
    for key, value in known.items():
        kind = types[key]
        absent = value is None and (kind in (list, str) or key.endswith("_token_id"))
        fits = type(value) is kind or (kind is float and type(value) is int)
        if not absent and not fits:
            raise InputError(f"{file}: {key} is {brief(value)}, not {_TYPE_NAMES[kind]}; correct it")
        if key in ("dtype", "torch_dtype") and value is not None and value not in _DTYPES:
            raise InputError(f"{file}: {key} is {brief(value)}, not one of {', '.join(_DTYPES)}; correct it")
    return known


def whisper_config(file: Path, raw: Mapping[str, Any]) -> WhisperConfig:
    """The settings of a Whisper model. Raises InputError naming the file where they set what they cannot."""
    known = known_keys(file, raw, _KEYS)
    try:
        return WhisperConfig.from_dict(known)
    except Exception as e:
        raise InputError(f"{file}: not a usable Whisper configuration ({first_line(e)})") from e


def read_preprocessor(folder: Path) -> tuple[Path, dict[str, Any]]:
    """The file with the settings of the feature extractor, and these; {} where there are none."""
    file = folder / "preprocessor_config.json"
    if file.is_file():
        return file, read_json_object(file)
    file = folder / "processor_config.json"  # where transformers 5 puts it
    raw = read_json_object(file).get("feature_extractor") if file.is_file() else None
    return file, raw if isinstance(raw, dict) else {}


def read_extractor(folder: Path, n_mels: int) -> WhisperFeatureExtractor:
    """The feature extractor for so many mel bins; `folder` may have a preprocessor_config.json that says the same.

    Raises InputError where it describes other features than the graphs compute.
    """
    file, raw = read_preprocessor(folder)
    mels = raw.get("feature_size", n_mels)
    if mels != n_mels:
        raise InputError(f"{file}: it makes {brief(mels)} mel bins, the encoder takes {n_mels}")
    for key, expected in _PREPROCESSING.items():
        if raw.get(key, expected) != expected:
            raise InputError(
                f"{file}: {key} is {brief(raw[key])}, but Whisper's encoders take {expected!r}, which is what the "
                "exported log-mel computes; correct the file, or remove it if it belongs to another model"
            )
    labels = {
        "return_attention_mask": bool,
        "processor_class": str,
    }  # kept, for whoever opens the export with HF's code
    more = {k: raw[k] for k, kind in labels.items() if isinstance(raw.get(k), kind)}
    return WhisperFeatureExtractor(feature_size=n_mels, **more)


def brief(value: object) -> str:
    """A value as messages show it, however large it is."""
    try:
        text = repr(value)
    except ValueError:  # a whole number of thousands of digits
        text = "a huge number"
    return text if len(text) <= 60 else text[:60] + "…"
