"""Load the encoder of a Whisper checkpoint: a Hugging Face folder, a hub id, or OpenAI's .pt.

Weights are read from safetensors or by torch.load(weights_only=True), neither of which can run code.
"""

import hashlib
import json
import pickle
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from transformers import WhisperConfig, WhisperFeatureExtractor
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from voxstrata.base.errors import InputError
from voxstrata.encoders.frames import SAMPLE_RATE, WINDOW_FRAMES
from voxstrata.exporters.hub import check_source, download, first_line
from voxstrata.exporters.weights import EncoderShape

_OPENAI_NAMES = (  # OpenAI's module names → Hugging Face's
    (r"^blocks\.", "layers."),
    (r"\.attn\.query\.", ".self_attn.q_proj."),
    (r"\.attn\.key\.", ".self_attn.k_proj."),
    (r"\.attn\.value\.", ".self_attn.v_proj."),
    (r"\.attn\.out\.", ".self_attn.out_proj."),
    (r"\.attn_ln\.", ".self_attn_layer_norm."),
    (r"\.mlp\.0\.", ".fc1."),
    (r"\.mlp\.2\.", ".fc2."),
    (r"\.mlp_ln\.", ".final_layer_norm."),
    (r"^ln_post\.", "layer_norm."),
    (r"^positional_embedding$", "embed_positions.weight"),
)


@dataclass(frozen=True)
class Checkpoint:
    """A Whisper encoder in float32.

    name: hub id, or name of the folder or file. revision: commit, for a hub id. config: what the checkpoint's
    config.json says, or the `dims` of OpenAI's .pt.
    """

    name: str
    revision: str | None
    config: WhisperConfig
    encoder: WhisperEncoder
    extractor: WhisperFeatureExtractor

    @property
    def shape(self) -> EncoderShape:
        c = self.config
        return EncoderShape(c.encoder_layers, c.d_model, c.encoder_attention_heads, c.num_mel_bins)

    def state(self) -> dict[str, NDArray[np.float32]]:
        """The encoder's tensors by Hugging Face name."""
        return {k: v.numpy() for k, v in self.encoder.state_dict().items()}

    def features(self, audio: NDArray[np.float32]) -> torch.Tensor:
        """Log-mel [1, n_mels, 3000] of samples at 16 kHz, padded to 30 s."""
        found = self.extractor(audio, sampling_rate=SAMPLE_RATE, return_tensors="pt")["input_features"]
        assert isinstance(found, torch.Tensor)
        return found

    def sha256(self) -> str:
        """Hash of names, shapes and float32 values. It is the same in whatever kind of file the encoder lies."""
        h = hashlib.sha256()
        for name, value in sorted(self.state().items()):
            h.update(f"{name} {value.shape}\n".encode())
            h.update(np.ascontiguousarray(value, "<f4").tobytes())
        return h.hexdigest()


def load_checkpoint(source: str, revision: str | None = None) -> Checkpoint:
    """Load an encoder.

    source: a folder with config.json and weights (of the whole model or the encoder alone), an OpenAI .pt file, or a
    hub id. revision: branch, tag or commit of a hub id.

    Raises InputError when nothing is there, when it is not Whisper, when tensors are missing or have the wrong shape,
    and when a file would run code to load.
    """
    check_source(source, revision)
    path = Path(source)
    if path.is_dir():
        return _from_folder(path, path.resolve().name, None)
    if path.is_file():
        return _from_openai(path)
    folder = download(source, revision)
    return _from_folder(folder, source, folder.name)  # a snapshot's folder is named by its commit


def _from_folder(folder: Path, name: str, revision: str | None) -> Checkpoint:
    config, tensors = _read_config(folder), _read_weights(folder)
    prefix = next((p for p in ("model.encoder.", "encoder.", "") if p + "conv1.weight" in tensors), None)
    if prefix is None:
        raise InputError(f"{folder}: the weights hold no Whisper encoder (no conv1.weight)")
    state = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
    return _checkpoint(folder, name, revision, config, state, bare=prefix == "")


def _read_config(folder: Path) -> WhisperConfig:
    file = folder / "config.json"
    try:
        raw = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{folder}: no config.json; a checkpoint folder has one beside its weights") from None
    except (OSError, ValueError) as e:
        raise InputError(f"{file}: not readable as JSON ({e})") from e
    kind = raw.get("model_type") if isinstance(raw, dict) else None
    if kind != "whisper":
        raise InputError(f"{folder}: model_type is {kind!r}, not 'whisper'; only Whisper encoders can be exported")
    try:
        return WhisperConfig.from_dict(raw)
    except Exception as e:
        raise InputError(f"{file}: not a usable Whisper configuration ({first_line(e)})") from e


def _read_weights(folder: Path) -> dict[str, torch.Tensor]:
    tensors: dict[str, torch.Tensor] = {}
    safe, bins = sorted(folder.glob("model*.safetensors")), sorted(folder.glob("pytorch_model*.bin"))
    if not safe and not bins:
        raise InputError(f"{folder}: no weights (model.safetensors or pytorch_model.bin)")
    for weights in [f for f in safe if "fp32" not in f.name] or safe or bins:
        if weights.suffix == ".bin":
            tensors |= _tensors(_torch_load(weights))
            continue
        try:
            tensors |= load_file(weights)
        except Exception as e:
            raise InputError(f"{weights}: not readable as weights ({first_line(e)}); fetch the file again") from e
    return tensors


def _from_openai(path: Path) -> Checkpoint:
    loaded = _torch_load(path)
    dims, tensors = loaded.get("dims"), loaded.get("model_state_dict")
    if not isinstance(dims, dict) or not isinstance(tensors, dict):
        raise InputError(
            f"{path}: not an OpenAI Whisper checkpoint (needs 'dims' and 'model_state_dict'); "
            "for Hugging Face weights give the folder that holds them"
        )
    try:
        config = WhisperConfig(
            d_model=dims["n_audio_state"],
            encoder_layers=dims["n_audio_layer"],
            encoder_attention_heads=dims["n_audio_head"],
            encoder_ffn_dim=4 * dims["n_audio_state"],
            num_mel_bins=dims["n_mels"],
            max_source_positions=dims["n_audio_ctx"],
            decoder_layers=dims["n_text_layer"],
            decoder_attention_heads=dims["n_text_head"],
            decoder_ffn_dim=4 * dims["n_text_state"],
            max_target_positions=dims["n_text_ctx"],
            vocab_size=dims["n_vocab"],
        )
    except KeyError as e:
        raise InputError(f"{path}: 'dims' lacks {e}") from e
    except Exception as e:  # transformers 5 checks types
        raise InputError(f"{path}: 'dims' do not describe a Whisper model ({first_line(e)})") from e
    state = {k.removeprefix("encoder."): v for k, v in _tensors(tensors).items() if k.startswith("encoder.")}
    for pattern, replacement in _OPENAI_NAMES:
        state = {re.sub(pattern, replacement, name): value for name, value in state.items()}
    return _checkpoint(path, path.name, None, config, state, bare=False)


def _torch_load(path: Path) -> dict[str, Any]:
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as e:
        raise InputError(
            f"{path}: refused, loading it would need more than tensors (it may run code); "
            "convert it to safetensors where you trust it"
        ) from e
    except Exception as e:
        raise InputError(f"{path}: not readable as a torch checkpoint ({first_line(e)}); fetch it again") from e
    if not isinstance(loaded, dict):
        raise InputError(f"{path}: holds a {type(loaded).__name__}, not a dictionary of tensors")
    return loaded


def _tensors(loaded: dict[Any, Any]) -> dict[str, torch.Tensor]:
    return {k: v for k, v in loaded.items() if isinstance(k, str) and isinstance(v, torch.Tensor)}


def _checkpoint(
    path: Path, name: str, revision: str | None, config: WhisperConfig, state: dict[str, torch.Tensor], *, bare: bool
) -> Checkpoint:
    """The encoder with its weights. bare: it was saved without the model around it."""
    if config.max_source_positions != WINDOW_FRAMES or config.activation_function != "gelu":
        raise InputError(
            f"{path}: {config.max_source_positions} positions and activation {config.activation_function!r}; "
            f"Whisper encoders have {WINDOW_FRAMES} and 'gelu'"
        )
    try:
        with torch.device("meta"):
            encoder = WhisperEncoder(config)
    except Exception as e:
        raise InputError(f"{path}: the configuration describes no Whisper encoder ({first_line(e)})") from e
    expected = encoder.state_dict()
    if bare:  # other tensors may lie beside it
        state = {k: v for k, v in state.items() if k in expected}
    encoder.load_state_dict(_fitting(path, state, expected), assign=True)
    encoder.eval().requires_grad_(False)
    return Checkpoint(name, revision, config, encoder, _extractor(path, config.num_mel_bins))


def _fitting(path: Path, state: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The tensors in float32. Raises InputError unless names and shapes are as expected and all values finite."""
    missing = sorted(set(expected) - set(state))
    wrong = [k for k in expected if k in state and state[k].shape != expected[k].shape]
    if missing or wrong:
        first = (missing or wrong)[0]
        found = "is missing" if missing else f"is {tuple(state[first].shape)}, not {tuple(expected[first].shape)}"
        raise InputError(
            f"{path}: weights do not fit config.json: encoder tensor {first} {found} "
            f"({len(missing) + len(wrong)} in all)"
        )
    unused = sorted(set(state) - set(expected))
    if unused:
        raise InputError(f"{path}: more encoder tensors than config.json describes, e.g. {unused[0]}")
    state = {k: v.to(torch.float32) for k, v in state.items()}
    bad = next((k for k, v in state.items() if not torch.isfinite(v).all()), None)
    if bad:
        raise InputError(f"{path}: encoder tensor {bad} holds NaN or infinite values")
    return state


def _extractor(path: Path, n_mels: int) -> WhisperFeatureExtractor:
    file = path / "preprocessor_config.json"
    if not file.is_file():  # beside an OpenAI .pt or in a bare folder; the feature size says everything
        return WhisperFeatureExtractor(feature_size=n_mels)
    try:
        extractor = WhisperFeatureExtractor.from_pretrained(path)
    except Exception as e:
        raise InputError(f"{file}: not a usable feature extractor ({first_line(e)})") from e
    if extractor.feature_size != n_mels:
        raise InputError(f"{file}: it makes {extractor.feature_size} mel bins, the encoder takes {n_mels}")
    return extractor
