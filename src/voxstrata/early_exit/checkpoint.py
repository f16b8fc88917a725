"""Early exit: a Whisper checkpoint whose encoder ends after block k, under the unchanged decoder.

With the final LayerNorm the checkpoint is the original's own tensors, fewer of them. Without it, see `fold_norm`.
Both are folders of the unchanged architecture: transformers loads them, and so does what builds on transformers.
"""

import copy
import json
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from transformers import WhisperConfig, WhisperForConditionalGeneration
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from voxstrata.base.errors import InputError, UsageError
from voxstrata.base.folders import check_vacant, new_folder
from voxstrata.base.progress import SILENT, Reporter
from voxstrata.early_exit.exits import EarlyExit, check_exit
from voxstrata.early_exit.fitting import Fit
from voxstrata.early_exit.fold_norm import MEAN_SCALE, fold_away_final_norm
from voxstrata.early_exit.generation import read_generation_config
from voxstrata.encoders.frames import SAMPLE_RATE
from voxstrata.exporters.checkpoint import Checkpoint, check_sizes, load_checkpoint, load_folder
from voxstrata.exporters.hub import first_line
from voxstrata.exporters.pytorch import hidden_states

_FORMAT = 2
_CARD = "early_exit.json"
_TOLERANCE = 1e-3  # relative L2 of the written encoder from the original's layer_k; measured values are far below
_TEXT_FILES = (
    "generation_config.json", "tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt",
    "normalizer.json", "added_tokens.json", "special_tokens_map.json", "processor_config.json",
)  # fmt: skip
_DECODER = "model.decoder."
_DECODER_SIZES = {
    "vocab_size": ("embed_tokens.weight", 0),
    "d_model": ("embed_tokens.weight", 1),
    "max_target_positions": ("embed_positions.weight", 0),
    "decoder_ffn_dim": ("layers.0.fc1.weight", 0),
}
_WRITTEN = (_CARD, "config.json", "model*.safetensors*", "preprocessor_config.json", *_TEXT_FILES)


@dataclass(frozen=True)
class EarlyExitCard:
    """What a written checkpoint is; lies in it as early_exit.json.

    checkpoint, revision, weights_sha256: the original (the hash is of its encoder, as in `ModelCard`), of `layers`
    encoder blocks. added_channels: how much wider than the original its residual streams are (0 with the LayerNorm).
    relative_l2: of its encoder's output from the original's layer_k (or LayerNorm of it), ‖a - b‖ / ‖b‖ over a made-up
    sound padded to 30 s, both in float32.
    """

    format: int
    checkpoint: str
    revision: str | None
    weights_sha256: str
    layers: int
    after: int
    norm: str
    added_channels: int
    relative_l2: float
    tools: dict[str, str]


@dataclass(frozen=True)
class Transcriber:
    """A whole Whisper checkpoint: the encoder in float32, the model as stored, and the folder with the other files."""

    encoder: Checkpoint
    model: WhisperForConditionalGeneration
    folder: Path


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """No progress bars and no remarks of transformers', which a user of this package can do nothing about."""
    log = transformers.logging
    level, bars = log.get_verbosity(), log.is_progress_bar_enabled()
    log.set_verbosity_error()
    log.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            # of settings that every published Whisper has in config.json, too
            warnings.filterwarnings("ignore", message="Moving the following attributes in the config")
            yield
    finally:
        log.set_verbosity(level)
        if bars:
            log.enable_progress_bar()


def load_transcriber(source: str, revision: str | None = None, reporter: Reporter = SILENT) -> Transcriber:
    """Load a whole model: a Hugging Face folder, or a hub id of which `revision` picks a branch, tag or commit.

    reporter: warned of weights that are not read, and of generation settings that had to be found elsewhere.
    Raises InputError for all that `load_checkpoint` refuses, and for a checkpoint without decoder.
    """
    path = Path(source)
    if path.is_file():
        raise InputError(
            f"{path}: a file, but early exit needs a Hugging Face folder with decoder and tokenizer; "
            "transformers' convert_openai_to_hf.py makes one of an OpenAI .pt"
        )
    encoder, tensors, folder = load_folder(source, revision, _TEXT_FILES, reporter)
    with quiet_transformers():
        model = _whole_model(source, encoder.config, tensors)
        model.generation_config = read_generation_config(folder, encoder.config, reporter)
    return Transcriber(encoder, model, folder)


def _whole_model(
    source: str, config: WhisperConfig, tensors: dict[str, torch.Tensor]
) -> WhisperForConditionalGeneration:
    """The model of the tensors, each as stored, or in the configuration's dtype where it states one."""
    head = "proj_out.weight"  # tied to the token embeddings
    state = {k if k.startswith("model.") or k == head else f"model.{k}": v for k, v in tensors.items()}
    decoder = {k.removeprefix(_DECODER): v for k, v in state.items() if k.startswith(_DECODER)}
    if "embed_tokens.weight" not in decoder:
        raise InputError(
            f"{source}: the checkpoint holds no decoder; early exit needs a whole model, which can transcribe"
        )
    check_sizes(Path(source), config, decoder, _DECODER_SIZES, "decoder")
    dtype = config.dtype or decoder["embed_tokens.weight"].dtype
    try:
        with torch.device("meta"):
            model = WhisperForConditionalGeneration(config)
        fit = model.load_state_dict({k: v.to(dtype) for k, v in state.items()}, strict=False, assign=True)
        missing = sorted(set(fit.missing_keys) - {head})
    except Exception as e:
        raise InputError(f"{source}: not loadable as a whole Whisper model ({first_line(e)})") from e
    if missing:
        raise InputError(f"{source}: the checkpoint holds no tensor {missing[0]}; early exit needs a whole model")
    model.tie_weights()
    return model.eval().requires_grad_(False)


def spectrograms(encoder: Checkpoint, audio: Any) -> torch.Tensor:
    """Spectrograms [clips, mels, frames] float32 of the samples of one clip, or of each in a list."""
    features: torch.Tensor = encoder.extractor(audio, sampling_rate=SAMPLE_RATE, return_tensors="pt")["input_features"]
    return features


@contextmanager
def ended_early(model: WhisperForConditionalGeneration, at: EarlyExit) -> Iterator[None]:
    """Let the encoder of `model` end early for a while, exactly: the LayerNorm, where dropped, is the identity."""
    encoder = model.model.encoder
    layers, norm = encoder.layers, encoder.layer_norm
    encoder.layers = layers[: at.after]
    if at.norm == "without":
        encoder.layer_norm = torch.nn.Identity()
    try:
        yield
    finally:
        encoder.layers, encoder.layer_norm = layers, norm


def write_early_exit(
    source: str | Transcriber,
    out: str | Path,
    at: EarlyExit,
    *,
    fit: Fit | None = None,
    revision: str | None = None,
    overwrite: bool = False,
    reporter: Reporter = SILENT,
) -> EarlyExitCard:
    """Write the checkpoint of `source` that ends after block `at.after` into the new folder `out`.

    The folder holds config.json, model.safetensors (dtype of the original; float32 without the LayerNorm), what the
    original has of tokenizer, feature extractor and generation settings, and the card. It appears only when its
    encoder, loaded back, agrees with the original's layer_k. overwrite: an earlier one in `out` is replaced, if
    nothing else is in the folder. fit: what a refitted LayerNorm is; a mapped exit cannot be written, since no weights
    of this architecture map the residual stream.

    Raises InputError for an unusable checkpoint or an `out` that exists, UsageError for a block that is not there, and
    for an exit that cannot be written.
    """
    if at.norm == "mapped" or (at.norm == "refitted" and fit is None):
        raise UsageError(f"{at} cannot be written as a checkpoint; with, without and, given its fit, refitted can")
    target = Path(out)
    replaced = _WRITTEN if overwrite else ()
    check_vacant(target, replaced)
    if isinstance(source, str):
        reporter.step(f"loading {source}")
        source = load_transcriber(source, revision, reporter)
    layers = source.encoder.shape.layers
    check_exit(at, layers)
    with new_folder(target, replaced) as folder:
        reporter.step(f"writing {at}")
        model = shortened(source.model, at, fit)
        with quiet_transformers():
            model.save_pretrained(folder)
        source.encoder.extractor.save_pretrained(folder)
        for name in _TEXT_FILES:
            if (source.folder / name).is_file() and not (folder / name).exists():
                shutil.copyfile(source.folder / name, folder / name)
        reporter.step("comparing its encoder with the original's")
        difference = _relative_l2(folder, source.encoder, at, fit)
        if not difference <= _TOLERANCE:
            raise InputError(
                f"{source.encoder.name}, {at}: the written encoder differs from the original's layer_{at.after:02d} by "
                f"{difference:.1e} (relative L2), more than {_TOLERANCE:.0e}; nothing was written"
            )
        origin = _FORMAT, source.encoder.name, source.encoder.revision, source.encoder.sha256(), layers
        added = model.config.d_model - source.model.config.d_model
        tools = {p: version(p) for p in ("voxstrata", "torch", "transformers")}
        card = EarlyExitCard(*origin, **asdict(at), added_channels=added, relative_l2=difference, tools=tools)
        (folder / _CARD).write_text(json.dumps(asdict(card), indent=1) + "\n", encoding="utf-8")
    return card


def shortened(
    model: WhisperForConditionalGeneration, at: EarlyExit, fit: Fit | None = None
) -> WhisperForConditionalGeneration:
    """A new model of the unchanged architecture that ends early; shares no tensors with `model`. fit: if refitted."""
    config = copy.deepcopy(model.config)
    config.encoder_layers = config.num_hidden_layers = at.after
    config.name_or_path = ""  # a path of this machine helps nobody
    blocks, kept = "model.encoder.layers.", tuple(f"model.encoder.layers.{n}." for n in range(at.after))
    held = model.state_dict().items()
    state = {k: v.clone() for k, v in held if k.startswith(kept) or not k.startswith(blocks)}
    if fit is not None:
        norm = {"weight": fit.scale, "bias": fit.bias}
        names = {f"model.encoder.layer_norm.{name}": values for name, values in norm.items()}
        state |= {name: torch.from_numpy(values).to(state[name].dtype) for name, values in names.items()}
    if at.norm == "without":
        state, config = fold_away_final_norm(state, config)
    config.dtype = state["model.encoder.conv1.weight"].dtype
    with torch.device("meta"):
        short = WhisperForConditionalGeneration(config)
    short.load_state_dict(state, assign=True)
    short.tie_weights()
    short.generation_config = copy.deepcopy(model.generation_config)
    return short.eval().requires_grad_(False)


def _relative_l2(folder: Path, original: Checkpoint, at: EarlyExit, fit: Fit | None) -> float:
    """How far the encoder in `folder` is from the original's, as `EarlyExitCard` says it."""
    rng = np.random.default_rng(0)
    seconds = np.arange(4 * SAMPLE_RATE) / SAMPLE_RATE
    voice = sum(np.sin(2 * np.pi * 140 * k * seconds) / k for k in range(1, 20)) * np.sin(2 * np.pi * seconds) ** 2
    audio = (0.1 * voice + 0.003 * rng.standard_normal(len(seconds))).astype(np.float32)
    features = spectrograms(original, audio)
    want = hidden_states(original.encoder, features)[f"layer_{at.after:02d}"]
    written: WhisperEncoder = load_checkpoint(str(folder)).encoder
    with torch.inference_mode():
        got = written(features).last_hidden_state
        if fit is not None:
            want = torch.from_numpy(fit.refitted(want[0].numpy())).to(want)[None]
        elif at.norm == "with":
            want = original.encoder.layer_norm(want)
        else:
            got = narrowed(got, want.shape[-1])
    return float(torch.linalg.vector_norm(got - want) / torch.linalg.vector_norm(want))


def narrowed(output: torch.Tensor, d_model: int) -> torch.Tensor:
    """The original's layer_k [batch, frames, d_model] from the wide encoder's output [batch, frames, D]."""
    plus, minus = output[..., d_model, None], output[..., d_model + 1, None]
    return output[..., :d_model] + (plus - minus) / (2 * MEAN_SCALE) - (plus + minus) / 2
