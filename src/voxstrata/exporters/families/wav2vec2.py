"""wav2vec 2.0, XLS-R and MMS; HuBERT; WavLM; UniSpeech, UniSpeech-SAT and data2vec-audio: samples in, 20 ms a frame.

They are one encoder in variants. All have convolutions over samples, a projection, a convolution that gives positions,
and blocks of attention. What varies is where they normalise, and WavLM's biases of attention.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from numpy.typing import NDArray

from voxstrata.base.errors import InputError
from voxstrata.encoders.family import Family, Output, Step
from voxstrata.encoders.frames import SAMPLE_RATE
from voxstrata.exporters.families._speech_graph import SpeechLayout, Values, sample_graph, write_speech_graph
from voxstrata.exporters.original import CheckpointFiles
from voxstrata.exporters.pytorch import block_states
from voxstrata.exporters.reading import brief, known_keys
from voxstrata.exporters.strict import (
    axes,
    check_floats,
    check_stated,
    configured,
    count_blocks,
    load_module,
    tensors_below,
)
from voxstrata.exporters.weights import EncoderShape

TITLE = "wav2vec 2.0, XLS-R, MMS, HuBERT, WavLM, UniSpeech, data2vec-audio"
_CLASSES = {  # what transformers calls them: model_type, and how its classes begin
    "wav2vec2": "Wav2Vec2",
    "hubert": "Hubert",
    "wavlm": "WavLM",
    "unispeech": "UniSpeech",
    "unispeech-sat": "UniSpeechSat",
    "data2vec-audio": "Data2VecAudio",
}
MODEL_TYPES = tuple(_CLASSES)

_MASKED = "masked_spec_embed"  # stands for frames that training hides
# Longer than what any was trained on (16 to 20 s), and about 2 GB of memory for each thread. The biases of WavLM's
# attention, which grow with the square, take another 1 GB at 60 s, so it has 30.
_WINDOW_SECONDS = 60
_WAVLM_WINDOW_SECONDS = 30
_OVERLAP_SECONDS = 2
_LEAST_HOP = 80  # samples; published encoders have 320, and memory grows with the square of the frames

# Keys of config.json that say something about the encoder, by type.
_KEYS = {
    int: "hidden_size num_hidden_layers num_attention_heads intermediate_size num_conv_pos_embeddings "
    "num_conv_pos_embedding_groups conv_pos_kernel_size num_buckets max_bucket_distance adapter_attn_dim",
    float: "layer_norm_eps",
    bool: "conv_bias do_stable_layer_norm conv_pos_batch_norm feat_proj_layer_norm add_adapter",
    str: "feat_extract_norm feat_extract_activation hidden_act",
    list: "conv_dim conv_stride conv_kernel",
}
# where tensors show a size of the configuration: tensor and axis
_SIZES = {
    "hidden_size": ("feature_projection.projection.weight", 0),
    "intermediate_size": ("encoder.layers.0.feed_forward.intermediate_dense.weight", 0),
    "num_attention_heads": ("encoder.layers.0.attention.gru_rel_pos_const", 1),
    "num_buckets": ("encoder.layers.0.attention.rel_attn_embed.weight", 0),
    "adapter_attn_dim": ("encoder.layers.0.adapter_layer.linear_1.weight", 0),
}
_WEIGHT_NORM = {"weight_g": "parametrizations.weight.original0", "weight_v": "parametrizations.weight.original1"}


def load(files: CheckpointFiles) -> "SpeechEncoder":
    """The encoder in these files. Raises InputError, naming file, value and mend, for one that cannot be loaded."""
    file, kind = files.folder / "config.json", str(files.config["model_type"])
    normalised = _reads_normalised(files)
    # weights show neither; data2vec-audio has but one kind of blocks and norms
    needed = "num_attention_heads" + (" feat_extract_norm do_stable_layer_norm" if kind != "data2vec-audio" else "")
    known = known_keys(file, {key: value for key, value in files.config.items() if value is not None}, _KEYS, needed)
    _check_convolutions(file, known)
    adapted = known.pop("add_adapter", False)
    mark = "feature_extractor.conv_layers.0.conv.weight"
    prefix, state = tensors_below(files.folder, files.tensors, (f"{kind.replace('-', '_')}.", ""), mark, TITLE)
    state = {_spelled(k): v for k, v in state.items() if not (adapted and k.startswith("adapter."))}
    # modules have the tensor that stands for masked frames only where training masks some
    masking = {"mask_time_prob": 0.05 if _MASKED in state else 0.0, "mask_feature_prob": 0.0}
    config = configured(file, getattr(transformers, f"{_CLASSES[kind]}Config"), known | masking)
    for key in ("hidden_act", "feat_extract_activation"):
        if (activation := getattr(config, key)) != "gelu":
            raise InputError(f"{file}: {key} is {brief(activation)}; only encoders with 'gelu' can be exported")
    check_floats(files.folder, {k: v for k, v in state.items() if not k.endswith("num_batches_tracked")})
    found = {"num_hidden_layers": count_blocks(state, "encoder.layers.")} | axes(state, _SIZES)
    if kind == "data2vec-audio":
        found["num_conv_pos_embeddings"] = count_blocks(state, "encoder.pos_conv_embed.layers.")
    check_stated(files.folder, {key: getattr(config, key, None) for key in found}, found)
    make = partial(getattr(transformers, f"{_CLASSES[kind]}Model"), config)
    module = load_module(files.folder, make, state, _CLASSES[kind], alone=prefix != "")
    return SpeechEncoder(kind, module, normalised, adapted)


def _reads_normalised(files: CheckpointFiles) -> bool:
    """Whether the encoder takes samples of mean 0 and variance 1. Raises InputError where that is not known."""
    found, file = files.preprocessor, files.folder / "preprocessor_config.json"
    if not found:
        raise InputError(
            f"{file}: missing or empty, and it says whether samples are normalised, on which every state depends; take "
            "the file that the encoder's makers published"
        )
    expected = {"feature_extractor_type": "Wav2Vec2FeatureExtractor", "sampling_rate": SAMPLE_RATE, "feature_size": 1}
    for key, value in expected.items():
        if found.get(key, value) != value:
            raise InputError(f"{file}: {key} is {brief(found[key])}, but this encoder takes {value}; correct the file")
    normalised = found.get("do_normalize")
    if not isinstance(normalised, bool):
        raise InputError(
            f"{file}: it does not say whether samples are normalised (do_normalize is {brief(normalised)}), and every "
            "state depends on it; take the file that the encoder's makers published"
        )
    return normalised


def _check_convolutions(file: Path, config: Mapping[str, Any]) -> None:
    """Raises InputError unless convolutions over samples are described by sizes, and frames are some way apart."""
    for key in ("conv_dim", "conv_stride", "conv_kernel"):
        sizes = config.get(key, [1])
        if not sizes or not all(type(size) is int and size > 0 for size in sizes):
            raise InputError(f"{file}: {key} is {brief(sizes)}, not a list of whole numbers above 0; correct it")
    hop = math.prod(config.get("conv_stride", [_LEAST_HOP]))
    if not _LEAST_HOP <= hop <= _OVERLAP_SECONDS * SAMPLE_RATE:
        raise InputError(f"{file}: conv_stride makes one frame of {brief(hop)} sample{'s' * (hop != 1)}; correct it")


def _spelled(name: str) -> str:
    """A tensor's name as torch now spells it: weight norm was rewritten as a parametrization."""
    before, _, last = name.rpartition(".")
    return f"{before}.{_WEIGHT_NORM[last]}" if last in _WEIGHT_NORM else name


@dataclass(frozen=True)
class SpeechEncoder:
    """An encoder of one of the MODEL_TYPES; see `Original`.

    module: transformers' own, in float32. normalised: its samples have mean 0 and variance 1. adapted: the checkpoint
    has a convolutional adapter after the encoder, which is left out.
    """

    kind: str
    module: Any
    normalised: bool
    adapted: bool

    @property
    def layers(self) -> int:
        return int(self.module.config.num_hidden_layers)

    @property
    def d_model(self) -> int:
        return int(self.module.config.hidden_size)

    @property
    def heads(self) -> int:
        return int(self.module.config.num_attention_heads)

    @property
    def layout(self) -> SpeechLayout:
        """As transformers made the module: what a configuration says that it ignores does not count."""
        convs, positions = self.module.feature_extractor.conv_layers, self._positional()
        return SpeechLayout(
            strides=tuple(conv.conv.stride[0] for conv in convs),
            group_norm=isinstance(convs[0].layer_norm, torch.nn.GroupNorm),
            pre_norm=type(self.module.encoder).__name__.endswith("StableLayerNorm"),
            eps=self.module.config.layer_norm_eps,
            groups=positions[0].groups,
        )

    def _positional(self) -> list[Any]:
        """The convolutions that give positions: one, or a stack in data2vec-audio."""
        embed = self.module.encoder.pos_conv_embed
        return [layer.conv for layer in embed.layers] if hasattr(embed, "layers") else [embed.conv]

    @property
    def family(self) -> Family:
        layout, layers, d = self.layout, self.layers, self.d_model
        steps = tuple(
            Step(conv.conv.kernel_size[0], conv.conv.stride[0]) for conv in self.module.feature_extractor.conv_layers
        )
        hop, window = math.prod(layout.strides), _WAVLM_WINDOW_SECONDS if self.kind == "wavlm" else _WINDOW_SECONDS
        config, adapter = self.module.config, getattr(self.module.config, "adapter_attn_dim", None) or 0
        per_frame = 8 * d * d + 4 * d * (config.intermediate_size + adapter)
        return Family(
            name=self.kind,
            input="samples",
            normalisation=(
                "mean 0 and variance 1 of each recording, or of each piece of one that is cut"
                if self.normalised
                else "none"
            ),
            features=1,
            steps=steps,
            window=window * SAMPLE_RATE // hop * hop,
            overlap=_OVERLAP_SECONDS * SAMPLE_RATE // hop * hop,
            contexts=("exact",),
            masks=_masks(layout.group_norm),
            norm="pre" if layout.pre_norm else "post",
            outputs=_outputs(layers, layout.pre_norm, self.adapted),
            stem_flops=self._stem_flops(),
            block_flops=(0, per_frame, 4 * d),
        )

    def _stem_flops(self) -> tuple[int, int, int]:
        """Of the convolutions over samples, the projection and the positional convolutions."""
        fixed, each, outputs, per_frame = 0, 0, 1, 1  # a convolution gives `outputs` + `per_frame` · (n - 1)
        for layer in reversed(self.module.feature_extractor.conv_layers):
            conv = layer.conv
            cost = 2 * conv.weight.numel()
            fixed, each = fixed + cost * (outputs - per_frame), each + cost * per_frame
            outputs, per_frame = (outputs - 1) * conv.stride[0] + conv.kernel_size[0], per_frame * conv.stride[0]
        linear = self.module.feature_projection.projection.weight.numel()
        return fixed, each + 2 * (linear + sum(conv.weight.numel() for conv in self._positional())), 0

    def state(self) -> dict[str, NDArray[np.float32]]:
        named = self.module.state_dict().items()
        return {name: value.numpy() for name, value in named if value.is_floating_point() and name != _MASKED}

    def features(self, audio: NDArray[np.float32]) -> torch.Tensor:
        extractor = transformers.Wav2Vec2FeatureExtractor(do_normalize=self.normalised)
        found = extractor(audio, sampling_rate=SAMPLE_RATE, return_tensors="pt")["input_values"]
        assert isinstance(found, torch.Tensor)
        return found

    def hidden_states(self, audio: NDArray[np.float32]) -> dict[str, torch.Tensor]:
        """Taken by hooks: what `output_hidden_states` gives last of a pre-norm encoder differs between versions."""
        states, last = block_states(self.module, self.module.encoder.layers, self.features(audio))
        if not self.layout.pre_norm:
            states.pop()  # of the last block, whose LayerNorm is the encoder's last
        return dict(zip(self.family.names, [*states, last], strict=True))

    def feature_graph(self) -> bytes:
        return sample_graph(self.normalised)

    def write_encoder(self, path: Path, weights: Path, outputs: Sequence[str]) -> None:
        shape = EncoderShape(self.layers, self.d_model, self.heads, 1)
        write_speech_graph(path, weights, self._values(), shape, self.layout, outputs)

    def _values(self) -> dict[str, Values]:
        """The tensors that the graph is made of, as `write_speech_graph` names them."""
        state, embed = self.state(), self.module.encoder.pos_conv_embed
        for i, conv in enumerate(self._positional()):
            m = f"encoder.pos_conv_embed.convs.{i}"
            # the weight as the module computes it: weight norm is folded
            state |= {f"{m}.weight": conv.weight.detach().numpy(), f"{m}.bias": conv.bias.numpy()}
            if hasattr(embed, "layers"):  # whose LayerNorms learn nothing
                state |= {f"{m}.layer_norm.weight": np.ones(self.d_model, np.float32)}
                state |= {f"{m}.layer_norm.bias": np.zeros(self.d_model, np.float32)}
        norm = getattr(embed, "batch_norm", None)
        if norm is not None:
            scale = norm.weight / torch.sqrt(norm.running_var + norm.eps)
            shift = norm.bias - norm.running_mean * scale
            m = "encoder.pos_conv_embed.convs.0.norm"
            state |= {f"{m}.weight": scale.numpy(), f"{m}.bias": shift.numpy()}
        attention = self.module.encoder.layers[0].attention
        if hasattr(attention, "rel_attn_embed"):
            # beyond the largest distance all share a bucket, and beyond the window none comes
            furthest = min(attention.max_distance, self.family.frames(self.family.window))
            buckets = attention._relative_positions_bucket(torch.arange(-furthest, furthest + 1))
            state["encoder.positions"] = attention.rel_attn_embed.weight[buckets].T.numpy()
        return state


def _masks(group_norm: bool) -> str:
    """What masks mean."""
    why = (
        "the first convolution is normalised over all time, so that padding would change every state"
        if group_norm
        else "transformers would mask what pads a batch"
    )
    return f"none: a recording sees the whole of itself and is batched with those of exactly its length; {why}"


def _outputs(layers: int, pre_norm: bool, adapted: bool) -> tuple[Output, ...]:
    """The outputs of an encoder with so many blocks."""
    first = "what the first block takes: projected frames and their positions"
    found = [Output("layer_00", first + ("" if pre_norm else ", normalised"), 0)]
    for k in range(1, layers + pre_norm):
        meaning = f"residual stream after block {k}" if pre_norm else f"block {k} after its last LayerNorm"
        # of the last block, transformers 4 gives the normalised state in its place, 5 the residual stream
        found.append(Output(f"layer_{k:02d}", meaning, k if k < layers else None))
    meaning = f"last_hidden_state{' before the convolutional adapter' if adapted else ''}: "
    meaning += f"LayerNorm of layer_{layers:02d}" if pre_norm else f"block {layers} after its last LayerNorm"
    return (*found, Output("final", meaning, None if pre_norm else layers))
