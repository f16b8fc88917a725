"""Towers made from Whisper that pool: Qwen2-Audio, Audio Flamingo 3 and Music Flamingo.

The blocks are Whisper's. Two things differ: padding is masked, so that a recording's states depend on its own frames
alone, and after the blocks two neighbouring frames become their mean, which is what the final LayerNorm normalises.
The silence after the recording is seen by one frame: the convolutions of the last one reach into it.
"""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import Qwen2AudioEncoder, Qwen2AudioEncoderConfig, WhisperFeatureExtractor

from voxstrata.base.errors import InputError
from voxstrata.encoders.family import Family, Output, Step
from voxstrata.encoders.frames import SAMPLE_RATE, SAMPLES_PER_FRAME, WINDOW_FRAMES, WINDOW_SAMPLES, encoder_frames
from voxstrata.encoders.outputs import output_names
from voxstrata.exporters.cpu_graph import UncachedBuilder
from voxstrata.exporters.log_mel import unpadded_log_mel_graph
from voxstrata.exporters.original import CheckpointFiles, ShapedOriginal
from voxstrata.exporters.reading import known_keys, read_extractor
from voxstrata.exporters.strict import axes, check_floats, check_stated, count_blocks, load_module, tensors_below
from voxstrata.exporters.weights import EncoderShape, WeightsFile

MODEL_TYPES = (
    "qwen2_audio", "qwen2_audio_encoder", "audioflamingo3", "audioflamingo3_encoder", "musicflamingo",
    "musicflamingo_encoder",
)  # fmt: skip
TITLE = "Qwen2-Audio, Audio Flamingo 3"

_KINDS = {
    int: "num_mel_bins d_model encoder_layers encoder_attention_heads encoder_ffn_dim max_source_positions hidden_size "
    "num_hidden_layers num_attention_heads intermediate_size",
    str: "activation_function",
}
# Flamingo's names of Qwen2-Audio's settings
_RENAMED = {
    "hidden_size": "d_model",
    "num_hidden_layers": "encoder_layers",
    "num_attention_heads": "encoder_attention_heads",
    "intermediate_size": "encoder_ffn_dim",
}
_DEFAULTS = {
    "num_mel_bins": 128, "d_model": 1280, "encoder_layers": 32, "encoder_attention_heads": 20, "encoder_ffn_dim": 5120,
    "max_source_positions": WINDOW_FRAMES, "activation_function": "gelu",
}  # fmt: skip
_SIZES = {
    "d_model": ("conv1.weight", 0),
    "num_mel_bins": ("conv1.weight", 1),
    "encoder_ffn_dim": ("layers.0.fc1.weight", 0),
    "max_source_positions": ("embed_positions.weight", 0),
}


def load(files: CheckpointFiles) -> "PooledTower":
    """The encoder in a whole model or alone. Raises InputError where it is none, naming file and value."""
    file, kind = files.folder / "config.json", str(files.config["model_type"])
    part = files.config.get("audio_config", files.config if kind.endswith("_encoder") else {})
    known = known_keys(file, part if isinstance(part, dict) else {}, _KINDS)
    own = {_RENAMED[key]: value for key, value in known.items() if key in _RENAMED and _RENAMED[key] not in known}
    settings: dict[str, Any] = _DEFAULTS | {key: value for key, value in known.items() if key not in _RENAMED} | own
    if settings["max_source_positions"] != WINDOW_FRAMES or settings["activation_function"] != "gelu":
        raise InputError(
            f"{file}: {settings['max_source_positions']} positions and activation "
            f"{settings['activation_function']!r}; encoders made from Whisper have {WINDOW_FRAMES} and 'gelu'"
        )
    prefixes = ("audio_tower.", "model.audio_tower.", "")
    prefix, state = tensors_below(files.folder, files.tensors, prefixes, "conv1.weight", TITLE)
    check_floats(files.folder, state)
    check_stated(files.folder, settings, axes(state, _SIZES) | {"encoder_layers": count_blocks(state)})
    heads = settings["encoder_attention_heads"]
    if not 0 < heads <= settings["d_model"] or settings["d_model"] % heads:
        raise InputError(f"{file}: encoder_attention_heads is {heads}, which does not divide {settings['d_model']}")
    make = _flamingo(file, settings) if "flamingo" in kind else _qwen(settings)
    encoder = load_module(files.folder, make, state, TITLE, alone=prefix != "")
    shape = EncoderShape(settings["encoder_layers"], settings["d_model"], heads, settings["num_mel_bins"])
    extractor = read_extractor(files.folder, shape.n_mels)
    name = "Audio Flamingo 3" if "flamingo" in kind else "Qwen2-Audio"
    return PooledTower(name, shape, settings["encoder_ffn_dim"], encoder, extractor)


def _qwen(settings: dict[str, Any]) -> Callable[[], torch.nn.Module]:
    return partial(Qwen2AudioEncoder, Qwen2AudioEncoderConfig(**settings))


def _flamingo(file: Path, settings: dict[str, Any]) -> Callable[[], torch.nn.Module]:
    try:
        from transformers import AudioFlamingo3Encoder, AudioFlamingo3EncoderConfig
    except ImportError as e:
        raise InputError(f"{file}: Audio Flamingo 3 needs transformers 5; pip install 'transformers>=5'") from e
    theirs = {ours: key for key, ours in _RENAMED.items()}
    config = AudioFlamingo3EncoderConfig(**{theirs.get(key, key): value for key, value in settings.items()})
    return partial(AudioFlamingo3Encoder, config)


@dataclass(frozen=True)
class PooledTower(ShapedOriginal):
    """An `Original`: see there. ffn_dim: width of the blocks' MLPs."""

    name: str
    shape: EncoderShape
    ffn_dim: int
    encoder: torch.nn.Module
    extractor: WhisperFeatureExtractor

    @property
    def family(self) -> Family:
        d, layers = self.d_model, self.layers
        outputs = [
            Output(
                name, f"residual stream after block {k}" if k else "input of the first block", k if k < layers else None
            )
            for k, name in enumerate(output_names(layers)[:-1])
        ]
        final = (
            "output of the encoder: the mean of two frames of the residual stream after the last block, through the "
            "final LayerNorm; where frames are odd in number, the last is of one frame alone, which the model drops"
        )
        return Family(
            name=self.name,
            input="log_mel",
            normalisation="logarithm of the mel power, at least its maximum less 8, (x + 4) / 4, of each window",
            features=self.shape.n_mels,
            steps=(Step(kernel=1, stride=SAMPLES_PER_FRAME),),
            window=WINDOW_SAMPLES,
            overlap=0,
            contexts=("exact",),
            masks="padding is masked, so frames attend to the recording's alone; batches hold recordings of one length",
            norm="pre",
            outputs=(*outputs, Output("final", final, layers, repeats=2)),
            stem_flops=(0, 12 * self.shape.n_mels * d + 6 * d**2, 0),
            block_flops=(0, 8 * d**2 + 4 * d * self.ffn_dim, 4 * d),
        )

    def state(self) -> dict[str, NDArray[np.float32]]:
        return {k: v.numpy() for k, v in self.encoder.state_dict().items()}

    def features(self, audio: NDArray[np.float32]) -> torch.Tensor:
        """Log-mel [1, n_mels, 2 · frames + 1]: of the recording, and a column of the silence after it, which its last
        frame sees. After a whole window it sees zeros."""
        columns = 2 * encoder_frames(len(audio)) + 1
        return torch.nn.functional.pad(self._extract(audio)[0], (0, 1))[:, :, :columns]

    def _extract(self, audio: NDArray[np.float32]) -> tuple[torch.Tensor, torch.Tensor]:
        """Log-mel [1, n_mels, 3000] and its mask, as the model's processor makes them."""
        found = self.extractor(
            audio, sampling_rate=SAMPLE_RATE, padding="max_length", return_attention_mask=True, return_tensors="pt"
        )
        return found["input_features"], found["attention_mask"]

    def hidden_states(self, audio: NDArray[np.float32]) -> dict[str, torch.Tensor]:
        log_mel, mask = self._extract(audio)
        frames = (int(mask.sum()) - 1) // 2 + 1
        states: list[torch.Tensor] = []

        def keep(_: torch.nn.Module, args: tuple[Any, ...]) -> None:
            states.append(args[0])

        def keep_output(_: torch.nn.Module, __: tuple[Any, ...], output: Any) -> None:
            states.append(output[0] if isinstance(output, tuple) else output)

        blocks: Any = self.encoder.layers
        with torch.inference_mode(), ExitStack() as stack:
            handles = [blocks[0].register_forward_pre_hook(keep)]
            handles += [block.register_forward_hook(keep_output) for block in blocks]
            for handle in handles:
                stack.callback(handle.remove)
            if self.name == "Qwen2-Audio":  # the model around it makes this mask
                hidden = torch.zeros(1, 1, WINDOW_FRAMES, WINDOW_FRAMES)
                hidden[..., frames:] = float("-inf")
                pooled = self.encoder(log_mel, attention_mask=hidden).last_hidden_state
            else:
                pooled = self.encoder(log_mel, input_features_mask=mask).last_hidden_state
            norm: Any = self.encoder.layer_norm
            last = norm(states[-1][:, frames - 1 : frames]) if frames % 2 else pooled[:, :0]
        final = torch.cat([pooled[:, : frames // 2].repeat_interleave(2, dim=1), last], dim=1)
        named = zip(output_names(self.layers), [*(s[:, :frames] for s in states), final], strict=True)
        return dict(named)

    def feature_graph(self) -> bytes:
        return unpadded_log_mel_graph(self.extractor.mel_filters)

    def write_encoder(self, path: Path, weights: Path, outputs: Sequence[str]) -> None:
        with WeightsFile(weights, self.state(), self.shape, "float32") as file:
            path.write_bytes(_PooledBuilder(file).graph(outputs))


class _PooledBuilder(UncachedBuilder):
    """Whisper's nodes for a CPU, without cached keys, and the pooling."""

    features = "features"
    zeros = (1, 0)  # the features end with a column of what comes after the recording

    def graph(self, outputs: Sequence[str]) -> bytes:
        names = output_names(self.shape.layers)
        # one that is returned as it is has the output's own name
        residuals = [n if n in outputs else f"{n}/residual" for n in names[:-1]]
        self.encoder(residuals, [n for n in outputs if n != "final"], norm_every=False)
        if "final" in outputs:
            self._pooled(residuals[-1])
        returned = [self.tensor(n, np.float32, ["batch", "frames", self.shape.d_model]) for n in outputs]
        inputs = [self.tensor("features", np.float32, ["batch", self.shape.n_mels, "columns"])]
        return self.model("pooled_whisper_encoder", inputs, returned)

    def _pooled(self, x: str) -> None:
        """The mean of each two frames, an odd last one with itself, through the LayerNorm, and each twice again."""
        d, two = self.shape.d_model, self.ints("two", 2)
        odd = self.node("Mod", [self.frames, two], "frames/odd")
        pads = self.node("Concat", [self.ints("no_pads", 0, 0, 0, 0), odd, "zero"], "pool/pads", axis=0)
        x = self.node("Pad", [x, pads], "pool/even", mode="edge")
        x = self.node("Reshape", [x, self.ints("pairs", 0, -1, 2, d)], "pool/pairs")
        x = self.node("ReduceMean", [x, two], "pool", keepdims=1)
        x = self.layer_norm(x, "layer_norm")
        x = self.node("Expand", [x, self.ints("twice", 1, 1, 2, d)], "pool/twice")
        x = self.node("Reshape", [x, self.ints("flat_pairs", 0, -1, d)], "pool/frames")
        self.node("Slice", [x, "zero", self.frames, self.ints("one", 1)], "final")
