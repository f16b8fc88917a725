"""Load the encoder of a Whisper checkpoint: a Hugging Face folder, a hub id, or OpenAI's .pt.

Weights are read from safetensors or by torch.load(weights_only=True), neither of which can run code.
"""

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import WhisperConfig, WhisperFeatureExtractor
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from voxstrata.base.errors import InputError
from voxstrata.base.progress import SILENT, Reporter
from voxstrata.encoders.frames import SAMPLE_RATE, WINDOW_FRAMES
from voxstrata.exporters.finding import FoundCheckpoint, find_checkpoint, tensor_dict, torch_load
from voxstrata.exporters.hub import check_source, first_line
from voxstrata.exporters.reading import brief, read_extractor
from voxstrata.exporters.strict import axes, check_floats, check_stated, count_blocks, load_module
from voxstrata.exporters.towers import Tower, tower_prefix
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
        return load_openai(Path(source))
    return load_folder(source, revision, reporter=reporter)[0]


def load_folder(
    source: str, revision: str | None = None, also: Sequence[str] = (), reporter: Reporter = SILENT
) -> tuple[Checkpoint, dict[str, torch.Tensor], Path]:
    """The encoder of a Hugging Face folder or hub id, all tensors of its files, and the folder.

    also: further files to fetch from the hub. Raises InputError as `load_checkpoint` does.
    """
    found = find_checkpoint(source, revision)
    if (kind := found.model_type) != "whisper":
        raise InputError(
            f"{found.folder}: model_type is {brief(kind)}, not 'whisper'; this needs Whisper's encoder and decoder"
        )
    found.fetch(also)
    tensors = dict(found.tensors(reporter))
    return tower_checkpoint(found, Tower(None, "whisper", found.config), tensors), tensors, found.folder


def tower_checkpoint(found: FoundCheckpoint, tower: Tower, tensors: Mapping[str, torch.Tensor]) -> Checkpoint:
    """The Whisper encoder in a checkpoint, in whatever model it lies. Raises InputError as `load_checkpoint` does."""
    folder = found.folder
    config = tower.config(found.description)
    if tower.kind == found.model_type == "whisper":
        prefix = next((p for p in ("model.encoder.", "encoder.", "") if p + "conv1.weight" in tensors), None)
        if prefix is None:
            raise InputError(f"{folder}: the weights hold no Whisper encoder (no conv1.weight)")
    else:
        prefix = tower_prefix(folder, tensors, found.config)
    state = {k.removeprefix(prefix): tensors[k] for k in tensors if k.startswith(prefix)}
    return _checkpoint(folder, found.name, found.revision, config, state, bare=prefix == "")


def load_openai(path: Path) -> Checkpoint:
    """The encoder in OpenAI's .pt. Raises InputError as `load_checkpoint` does."""
    loaded = torch_load(path)
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
    state = {k.removeprefix("encoder."): v for k, v in tensor_dict(tensors).items() if k.startswith("encoder.")}
    for pattern, replacement in _OPENAI_NAMES:
        state = {re.sub(pattern, replacement, name): value for name, value in state.items()}
    return _checkpoint(path, path.name, None, config, state, bare=False)


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
    encoder = load_module(path, partial(WhisperEncoder, config), state, "Whisper", alone=not bare)
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
    check_floats(path, state, part)
    found = {f"{part}_layers": count_blocks(state)} | axes(state, sizes)
    check_stated(path, {key: getattr(config, key) for key in found}, found)
    heads = getattr(config, f"{part}_attention_heads")
    if not isinstance(heads, int) or heads < 1 or config.d_model % heads:
        raise InputError(f"{path}: {part}_attention_heads is {heads}, which does not divide d_model {config.d_model}")
