"""Speech2Text (fairseq S2T): transcribes or translates, from a filter bank of which every bin is normalised.

Its blocks are built like Whisper's. What is before them is not: Kaldi's filter bank, convolutions with gates, and
positions that count from 2 in a recording without padding.
"""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import Speech2TextConfig, Speech2TextFeatureExtractor
from transformers.models.speech_to_text.modeling_speech_to_text import Speech2TextEncoder

from voxstrata.base.errors import InputError
from voxstrata.encoders.family import Family, Output, Step
from voxstrata.encoders.frames import SAMPLE_RATE
from voxstrata.encoders.outputs import output_names
from voxstrata.exporters.cpu_graph import CpuBuilder
from voxstrata.exporters.filter_bank import FRAME, HOP, kaldi_filter_bank, kaldi_mel_filters, standardised
from voxstrata.exporters.graph import MICROSOFT, GraphBuilder
from voxstrata.exporters.original import CheckpointFiles, Original
from voxstrata.exporters.reading import brief, known_keys
from voxstrata.exporters.strict import axes, check_floats, check_stated, count_blocks, load_module, tensors_below
from voxstrata.exporters.weights import EncoderShape, WeightsFile

MODEL_TYPES = ("speech_to_text",)
TITLE = "Speech2Text"

_KINDS: dict[type, str] = {
    int: "d_model encoder_layers encoder_attention_heads encoder_ffn_dim max_source_positions num_conv_layers "
    "conv_channels input_feat_per_channel input_channels pad_token_id",
    bool: "scale_embedding",
    str: "activation_function",
    list: "conv_kernel_sizes",
}
_SIZES = {
    "d_model": ("layer_norm.weight", 0),
    "conv_channels": ("conv.conv_layers.0.weight", 0),
    "input_feat_per_channel": ("conv.conv_layers.0.weight", 1),
    "encoder_ffn_dim": ("layers.0.fc1.weight", 0),
}
# what the graphs compute, and so what the settings must say where they say anything
_COMPUTED = {"activation_function": "relu", "input_channels": 1}
_EXTRACTED = {
    "sampling_rate": SAMPLE_RATE, "do_ceptral_normalize": True, "normalize_means": True, "normalize_vars": True,
    "dither": 0, "feature_extractor_type": "Speech2TextFeatureExtractor",
}  # fmt: skip
_MOST_POSITIONS = 1 << 17  # 20 minutes of features; a table of positions is made of them
_MOST_CONVOLUTIONS = 8
_OVERLAP_SECONDS = 4
_STEADY = 1e-10  # added to deviations, so that a bin that never changes is 0 and not 0 / 0


def load(files: CheckpointFiles) -> Original:
    """The encoder in a whole model or alone. Raises InputError where it is none, naming file and value."""
    file = files.folder / "config.json"
    try:
        config = Speech2TextConfig(**known_keys(file, files.config, _KINDS))
    except InputError:
        raise
    except Exception as e:
        raise InputError(f"{file}: not a usable Speech2Text configuration ({e})") from e
    stated = {key: getattr(config, key) for key in (*_SIZES, *_COMPUTED, "encoder_layers", "max_source_positions")}
    for key, value in _COMPUTED.items():
        if stated[key] != value:
            raise InputError(f"{file}: {key} is {brief(stated[key])}; Speech2Text's encoders have {value!r}")
    extracted = _EXTRACTED | dict.fromkeys(("num_mel_bins", "feature_size"), config.input_feat_per_channel)
    for key, value in extracted.items():
        if files.preprocessor.get(key, value) != value:
            raise InputError(
                f"{files.folder}: the preprocessor's {key} is {brief(files.preprocessor[key])}, but the exported "
                f"filter bank has {value!r}; correct it"
            )
    kernels, positions = config.conv_kernel_sizes, config.max_source_positions
    if not 0 < len(kernels) <= _MOST_CONVOLUTIONS or not all(type(k) is int and k > 0 for k in kernels):
        raise InputError(f"{file}: conv_kernel_sizes is {brief(kernels)}, not a few whole numbers; correct it")
    if not 8 << len(kernels) <= positions <= _MOST_POSITIONS:
        raise InputError(f"{file}: max_source_positions is {positions}, not {8 << len(kernels)} to {_MOST_POSITIONS}")
    prefixes = ("model.encoder.", "encoder.", "")
    prefix, state = tensors_below(files.folder, files.tensors, prefixes, "conv.conv_layers.0.weight", TITLE)
    state.pop("embed_positions.weights", None)  # older checkpoints hold the table, which is made
    check_floats(files.folder, state)
    check_stated(files.folder, stated, axes(state, _SIZES) | {"encoder_layers": count_blocks(state)})
    heads = config.encoder_attention_heads
    if not 0 < heads <= config.d_model or config.d_model % heads:
        raise InputError(f"{file}: encoder_attention_heads is {heads}, which does not divide {config.d_model}")
    encoder = load_module(files.folder, partial(Speech2TextEncoder, config), state, TITLE, alone=prefix != "")
    return _SpeechToText(config, encoder)


@dataclass(frozen=True)
class _SpeechToText:
    config: Speech2TextConfig
    encoder: Any

    @property
    def layers(self) -> int:
        return int(self.config.encoder_layers)

    @property
    def d_model(self) -> int:
        return int(self.config.d_model)

    @property
    def heads(self) -> int:
        return int(self.config.encoder_attention_heads)

    @property
    def mels(self) -> int:
        return int(self.config.input_feat_per_channel)

    @property
    def family(self) -> Family:
        c, layers = self.config, self.layers
        hop = HOP << len(c.conv_kernel_sizes)
        window = c.max_source_positions * HOP // hop * hop
        outputs = [
            Output(
                name, f"residual stream after block {k}" if k else "input of the first block", k if k < layers else None
            )
            for k, name in enumerate(output_names(layers)[:-1])
        ]
        stem, block = self._flops()
        return Family(
            name=TITLE,
            input="filter_bank",
            normalisation="mean 0 and variance 1 of every bin over the recording, of a long one over each piece",
            features=self.mels,
            steps=(Step(FRAME, HOP), *(Step(k, 2, k // 2 * 2) for k in c.conv_kernel_sizes)),
            window=window,
            overlap=min(_OVERLAP_SECONDS * SAMPLE_RATE, window // 4) // hop * hop,
            contexts=("exact",),
            masks="padding is masked, and positions count what is not; batches hold recordings of one length",
            norm="pre",
            outputs=(*outputs, Output("final", "the last block's state through the final LayerNorm", layers)),
            stem_flops=stem,
            block_flops=block,
        )

    def _flops(self) -> tuple[tuple[int, int, int], tuple[int, int, int]]:
        d, kernels, stem = self.d_model, self.config.conv_kernel_sizes, 0
        wide, width = self.config.conv_channels, self.mels
        for i, kernel in enumerate(kernels):
            last = i == len(kernels) - 1
            stem += (2 * kernel * width * (2 * d if last else wide)) << (len(kernels) - 1 - i)
            width = wide // 2
        return (0, stem, 0), (0, 8 * d**2 + 4 * d * int(self.config.encoder_ffn_dim), 4 * d)

    def state(self) -> dict[str, NDArray[np.float32]]:
        return {name: value.numpy() for name, value in self.encoder.state_dict().items()}

    def features(self, audio: NDArray[np.float32]) -> torch.Tensor:
        """Where a bin never changes the extractor divides 0 by 0; here it is 0."""
        extractor = Speech2TextFeatureExtractor(feature_size=self.mels, num_mel_bins=self.mels)
        with np.errstate(invalid="ignore"):
            found = extractor(audio, sampling_rate=SAMPLE_RATE, return_tensors="pt")["input_features"]
        assert isinstance(found, torch.Tensor)
        return torch.nan_to_num(found)

    def hidden_states(self, audio: NDArray[np.float32]) -> dict[str, torch.Tensor]:
        states: list[torch.Tensor] = []

        def keep_output(_: torch.nn.Module, __: tuple[Any, ...], output: Any) -> None:
            states.append(output[0] if isinstance(output, tuple) else output)

        with torch.inference_mode(), ExitStack() as stack:
            handles = [self.encoder.layers[0].register_forward_pre_hook(lambda _, args: states.append(args[0]))]
            handles += [layer.register_forward_hook(keep_output) for layer in self.encoder.layers]
            for handle in handles:
                stack.callback(handle.remove)
            states.append(self.encoder(self.features(audio)).last_hidden_state)
        return dict(zip(output_names(self.layers), states, strict=True))

    def feature_graph(self) -> bytes:
        b = GraphBuilder()
        bank = kaldi_filter_bank(b, "audio", kaldi_mel_filters(self.mels), "bank")
        standardised(b, bank, "features", outside=_STEADY)
        audio = b.tensor("audio", np.float32, ["batch", "samples"])
        return b.model(
            "speech_to_text_features", [audio], [b.tensor("features", np.float32, ["batch", "time", self.mels])]
        )

    def write_encoder(self, path: Path, weights: Path, outputs: Sequence[str]) -> None:
        shape = EncoderShape(self.layers, self.d_model, self.heads, self.mels)
        frames = self.family.frames(self.family.window)
        with torch.inference_mode():  # as a recording without padding has them
            table = self.encoder.embed_positions(torch.zeros(1, frames, dtype=torch.long))[0].numpy()
        with WeightsFile(weights, self.state(), shape, "float32") as file:
            path.write_bytes(_Builder(file, float(self.encoder.embed_scale), table).graph(outputs))


class _Builder(CpuBuilder):
    """Whisper's nodes for a CPU without cached keys, with a ReLU, after convolutions with gates."""

    def __init__(self, file: WeightsFile, scale: float, positions: NDArray[np.float32]) -> None:
        super().__init__(file)
        self.scale, self.positions = scale, positions

    def graph(self, outputs: Sequence[str]) -> bytes:
        names = output_names(self.shape.layers)[:-1]
        deepest = names if "final" in outputs else names[: max(names.index(output) for output in outputs) + 1]
        self.encoder([n if n in outputs else f"{n}/residual" for n in deepest], outputs, norm_every=False)
        returned = [self.tensor(n, np.float32, ["batch", "frames", self.shape.d_model]) for n in outputs]
        features = self.tensor("features", np.float32, ["batch", "time", self.shape.n_mels])
        return self.model("speech_to_text_encoder", [features], returned)

    def prepare(self, x: str, frames: str) -> None:
        pass

    def stem(self, first: str) -> tuple[str, str]:
        x, i = self.node("Transpose", ["features"], "features/bins", perm=[0, 2, 1]), 0
        while (module := f"conv.conv_layers.{i}") + ".weight" in self.weights:
            kernel = self.weights.value(f"{module}.weight").shape[2]
            parts = [x, self.weight(f"{module}.weight"), self.weight(f"{module}.bias")]
            x = self.node("Conv", parts, module, kernel_shape=[kernel], pads=[kernel // 2] * 2, strides=[2])
            kept, gate = self.split(x, [f"{module}/kept", f"{module}/gate"], f"{module}/halves", axis=1)
            x = self.node("Mul", [kept, self.node("Sigmoid", [gate], f"{module}/open")], f"{module}/gated")
            i += 1
        x = self.node("Transpose", [x], "conv/frames", perm=[0, 2, 1])
        x = self.node("Mul", [x, self.constant("embed_scale", np.array(self.scale, np.float32))], "conv/scaled")
        frames = self.node("Shape", [x], "frames", start=1, end=2)
        self.initializers["embed_positions"] = self.weights.put("embed_positions", self.positions)
        positions = self.node("Slice", ["embed_positions", "zero", frames, "zero"], "positions")
        return self.node("Add", [x, positions], first), frames

    def attention(self, x: str, normed: str, block: int) -> tuple[str, str]:
        m = f"layers.{block}"
        parts = [self.linear(normed, f"{m}.self_attn.{p}_proj") for p in "qkv"]
        about = {"domain": MICROSOFT, "num_heads": self.shape.heads, "scale": 1.0}
        return x, self.node("MultiHeadAttention", parts, f"{m}/heads", **about)

    def mlp(self, x: str, block: str) -> str:
        return self.linear(self.node("Relu", [self.linear(x, f"{block}.fc1")], f"{block}.fc1/relu"), f"{block}.fc2")
