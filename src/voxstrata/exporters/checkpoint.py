"""Load the encoder of a Whisper checkpoint: a Hugging Face folder, a hub id, or OpenAI's .pt.

Weights are read from safetensors or by torch.load(weights_only=True), neither of which can run code.
"""

import hashlib
import pickle
import re
from collections.abc import Mapping, Sequence
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
from voxstrata.base.progress import SILENT, Reporter
from voxstrata.encoders.frames import SAMPLE_RATE, WINDOW_FRAMES
from voxstrata.exporters.hub import check_source, download, first_line
from voxstrata.exporters.reading import MERGE, read_config, read_extractor, weight_files
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
_FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
# where the encoder's tensors show a size of the configuration: tensor and axis
_SIZES = {
    "d_model": ("conv1.weight", 0),
    "num_mel_bins": ("conv1.weight", 1),
    "encoder_ffn_dim": ("layers.0.fc1.weight", 0),
}


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


def load_checkpoint(source: str, revision: str | None = None, reporter: Reporter = SILENT) -> Checkpoint:
    """Load an encoder.

    source: a folder with config.json and weights (of the whole model or the encoder alone), an OpenAI .pt file, or a
    hub id. revision: branch, tag or commit of a hub id. reporter: warned of weights beside those that are read.

    Raises InputError when nothing is there, when it is not Whisper, when tensors are missing or have the wrong shape,
    when weights are quantised or an adapter alone, and when a file would run code to load.
    """
    check_source(source, revision)
    if Path(source).is_file():
        return _from_openai(Path(source))
    return load_folder(source, revision, reporter=reporter)[0]


def load_folder(
    source: str, revision: str | None = None, also: Sequence[str] = (), reporter: Reporter = SILENT
) -> tuple[Checkpoint, dict[str, torch.Tensor], Path]:
    """The encoder of a Hugging Face folder or hub id, all tensors of its files, and the folder.

    also: further files to fetch from the hub. Raises InputError as `load_checkpoint` does.
    """
    check_source(source, revision)
    folder, name, commit = Path(source), Path(source).resolve().name, None
    if not folder.is_dir():
        folder = download(source, revision, also)
        name, commit = source, folder.name  # a snapshot's folder is named by its commit
    config = read_config(folder)
    files, notes = weight_files(folder)
    tensors = _read_weights(files)
    for note in notes:
        reporter.warn(note)
    prefix = next((p for p in ("model.encoder.", "encoder.", "") if p + "conv1.weight" in tensors), None)
    if prefix is None:
        raise InputError(f"{folder}: the weights hold no Whisper encoder (no conv1.weight)")
    state = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
    return _checkpoint(folder, name, commit, config, state, bare=prefix == ""), tensors, folder


def _read_weights(files: Sequence[Path]) -> dict[str, torch.Tensor]:
    tensors: dict[str, torch.Tensor] = {}
    for weights in files:
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
    check_sizes(path, config, state, _SIZES)
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
    return Checkpoint(name, revision, config, encoder, read_extractor(path, config.num_mel_bins))


def check_sizes(
    path: Path,
    config: WhisperConfig,
    state: Mapping[str, torch.Tensor],
    sizes: Mapping[str, tuple[str, int]],
    part: str = "encoder",
) -> None:
    """Raises InputError unless the configuration's sizes are those of the weights, and these are plain floats.

    Comes before anything is made of that size: a configuration may claim any. sizes: by the configuration's name, a
    tensor and the axis that has it. part: "encoder" or "decoder", whose tensors `state` holds.
    """
    odd = next((k for k, v in state.items() if v.dtype not in _FLOATS), None)
    if odd is not None:
        raise InputError(
            f"{path}: {part} tensor {odd} holds {str(state[odd].dtype).removeprefix('torch.')}, quantised values that "
            "are no weights without their scales; take the checkpoint's float weights"
        )
    lora = next((k for k in state if "lora_" in k), None)
    if lora is not None:
        raise InputError(f"{path}: {part} tensor {lora} is an adapter's; {MERGE}")
    found = {f"{part}_layers": len({k.split(".")[1] for k in state if k.startswith("layers.")})}
    found |= {k: state[t].shape[axis] for k, (t, axis) in sizes.items() if t in state and state[t].ndim > axis}
    for key, size in found.items():
        stated = getattr(config, key)
        if stated != size or not (size or key == f"{part}_layers"):
            raise InputError(f"{path}: the configuration does not fit the weights: {key} is {stated}, they have {size}")
    heads = getattr(config, f"{part}_attention_heads")
    if not isinstance(heads, int) or heads < 1 or config.d_model % heads:
        raise InputError(f"{path}: {part}_attention_heads is {heads}, which does not divide d_model {config.d_model}")


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
