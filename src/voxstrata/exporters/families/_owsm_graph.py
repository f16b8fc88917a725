"""OWSM's encoders as ONNX graphs, node by node: log-mel, and the E-Branchformer from ESPnet's tensors.

What differs from `_owsm_pytorch`, and gives the same: the merging convolution and what is added to it are one
convolution, a feed-forward's half is part of its weights, and attention to a text of one token is a constant.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from voxstrata.exporters.families._owsm_pytorch import LAYER_NORM_EPS, Tensors, linear, positions, prompt_states
from voxstrata.exporters.families._owsm_settings import OwsmSettings
from voxstrata.exporters.filter_bank import espnet_filter_bank
from voxstrata.exporters.graph import MICROSOFT, GraphBuilder
from voxstrata.exporters.weights import WeightsFile


def owsm_feature_graph(t: Tensors, settings: OwsmSettings) -> bytes:
    """`audio` [batch, samples] to `features` [batch, time, n_mels], normalised log-mel."""
    b = GraphBuilder()
    x = espnet_filter_bank(b, "audio", t["frontend.logmel.melmat"].numpy(), settings.win_length, "log_mel")
    mean, deviation = (b.constant(name, t[f"normalize.{name}"].numpy()) for name in ("mean", "std"))
    b.node("Div", [b.node("Sub", [x, mean], "centred"), deviation], "features")
    audio = b.tensor("audio", np.float32, ["batch", "samples"])
    return b.model("owsm_features", [audio], [b.tensor("features", np.float32, ["batch", "time", settings.n_mels])])


def owsm_encoder_graph(
    t: Tensors, settings: OwsmSettings, weights: WeightsFile, outputs: Sequence[str], frames: int
) -> bytes:
    """`features` [batch, time, n_mels] to the outputs [batch, frames, d_model], at most `frames` of them."""
    b = _OwsmBuilder(t, settings, weights)
    b.encoder(outputs, frames)
    features = b.tensor("features", np.float32, ["batch", "time", settings.n_mels])
    states = [b.tensor(name, np.float32, ["batch", "frames", settings.blocks.d_model]) for name in outputs]
    return b.model("owsm_encoder", [features], states)


class _OwsmBuilder(GraphBuilder):
    def __init__(self, t: Tensors, settings: OwsmSettings, weights: WeightsFile) -> None:
        super().__init__()
        self.t, self.settings, self.weights = t, settings, weights
        self.skipped = 2 if settings.prompt else 0  # tokens before the speech
        self.memory = prompt_states(t, settings) if settings.prompt else None
        for name, value in (("zero", 0), ("one", 1)):
            self.ints(name, value)

    def encoder(self, outputs: Sequence[str], frames: int) -> None:
        s = self.settings
        deepest = s.blocks.layers if "final" in outputs else max(int(name.removeprefix("layer_")) for name in outputs)
        x = self.stem(frames)
        self.output(x, "layer_00", outputs)
        for k in range(deepest):
            x = self.block(x, f"encoder.encoders.{k}")
            self.output(x, f"layer_{k + 1:02d}", outputs)
            if k + 1 in s.conditioned and k + 1 < deepest:
                said = self.node("Softmax", [self.linear(x, "ctc.ctc_lo", f"said/{k}")], f"said/{k}/softmax", axis=-1)
                said = self.linear(said, "encoder.conditioning_layer", f"conditioning/{k}")
                x = self.node("Add", [x, said], f"conditioned/{k}")
        if "final" in outputs:
            self.output(self.norm(x, "encoder.after_norm"), "final", outputs)

    def output(self, x: str, name: str, outputs: Sequence[str]) -> None:
        """The state without the tokens before the speech, if it is asked for."""
        if name in outputs:
            last = self.ints("last", np.iinfo(np.int64).max)
            self.node("Slice", [x, self.ints("skipped", self.skipped), last, "one"], name)

    def stem(self, frames: int) -> str:
        """Convolutions, tokens, positions: what the first block takes."""
        s = self.settings
        x = self.node("Unsqueeze", ["features", "one"], "features/channel")
        for i in range(s.convolutions):
            m = f"encoder.embed.conv.{2 * i}"
            x = self.node("Conv", [x, *self.pair(m)], m, kernel_shape=[3, 3], strides=[2, 2])
            x = self.node("Relu", [x], f"{m}/relu")
        x = self.node("Transpose", [x], "subsampled/frames", perm=[0, 2, 1, 3])
        flat = self.node("Reshape", [x, self.ints("joined", 0, 0, -1)], "subsampled")
        scale = math.sqrt(s.blocks.d_model)
        x = self.linear(flat, s.embed_out, scale=scale)
        if s.prompt:
            language, task, _ = s.prompt.ids
            told = self.t["embed.weight"][[language, task]]
            told = linear(self.t, "embed_proj", told) if "embed_proj.weight" in self.t else told
            batch = self.node("Shape", [x], "batch", start=0, end=1)
            batch = self.node("Concat", [batch, "one", "one"], "batch/shape", axis=0)
            told = self.node("Expand", [self.put("prefix", told[None] * scale), batch], "prefix/batch")
            x = self.node("Concat", [told, x], "told", axis=1)
        table = self.put("positions", positions(frames + self.skipped, s.blocks.d_model))
        length = self.node("Shape", [x], "length", start=1, end=2)
        table = self.node("Slice", [table, "zero", length, "zero"], "positions/cut")
        return self.node("Add", [x, table], "placed")

    def block(self, x: str, m: str) -> str:
        x = self.feed_forward(x, f"{m}.norm_ff_macaron", f"{m}.feed_forward_macaron")
        heads, gated = self.attention(self.norm(x, f"{m}.norm_mha"), m), self.gating(self.norm(x, f"{m}.norm_mlp"), m)
        both = self.node("Concat", [heads, gated], f"{m}/both", axis=-1)
        merged = self.linear(self.over_time(both, f"{m}.depthwise_conv_fusion", adding=True), f"{m}.merge_proj")
        x = self.node("Add", [x, merged], f"{m}/merged")
        x = self.feed_forward(x, f"{m}.norm_ff", f"{m}.feed_forward")
        if self.memory is not None and f"{m}.norm_cross_attn.weight" in self.t:
            # all attention goes to the one token there is
            value = linear(self.t, f"{m}.cross_attn.linear_v", self.memory)
            told = self.put(f"{m}.cross_attn", linear(self.t, f"{m}.cross_attn.linear_out", value))
            x = self.node("Add", [x, told], f"{m}/crossed")
        return self.norm(x, f"{m}.norm_final")

    def feed_forward(self, x: str, norm: str, m: str) -> str:
        """LayerNorm, two layers, half of which is added."""
        y = self.linear(self.norm(x, norm), f"{m}.w_1")
        y = self.node("Mul", [y, self.node("Sigmoid", [y], f"{m}/sigmoid")], f"{m}/swish")
        return self.node("Add", [x, self.linear(y, f"{m}.w_2", scale=0.5)], f"{m}/added")

    def attention(self, x: str, m: str) -> str:
        parts = [self.linear(x, f"{m}.attn.linear_{part}") for part in "qkv"]
        heads = self.settings.blocks.heads
        joined = self.node("MultiHeadAttention", parts, f"{m}.attn", domain=MICROSOFT, num_heads=heads)
        return self.linear(joined, f"{m}.attn.linear_out")

    def gating(self, x: str, m: str) -> str:
        m = f"{m}.cgmlp"
        y = self.node("Gelu", [self.linear(x, f"{m}.channel_proj1.0")], f"{m}/gelu")
        kept, gate = self.split(y, [f"{m}/kept", f"{m}/gate"], f"{m}/halves", axis=-1)
        gate = self.over_time(self.norm(gate, f"{m}.csgu.norm"), f"{m}.csgu.conv")
        return self.linear(self.node("Mul", [kept, gate], f"{m}/gated"), f"{m}.channel_proj2")

    def over_time(self, x: str, m: str, *, adding: bool = False) -> str:
        """Each channel's own convolution. adding: with what it is given added to it."""
        weight = self.t[f"{m}.weight"].clone()
        padding = (weight.shape[-1] - 1) // 2
        if adding:
            weight[:, :, padding] += 1
        x = self.node("Transpose", [x], f"{m}/channels", perm=[0, 2, 1])
        given = [x, self.put(f"{m}.weight", weight), self.put(f"{m}.bias", self.t[f"{m}.bias"])]
        kernel, pads = [weight.shape[-1]], [padding, padding]
        x = self.node("Conv", given, m, kernel_shape=kernel, pads=pads, group=len(weight))
        return self.node("Transpose", [x], f"{m}/frames", perm=[0, 2, 1])

    def linear(self, x: str, m: str, name: str = "", scale: float = 1.0) -> str:
        """A layer, times `scale`; called like its module or `name`."""
        weight, bias = (self.t[f"{m}.{part}"] * scale for part in ("weight", "bias"))
        y = self.node("MatMul", [x, self.put(f"{m}.weight", weight.T)], f"{name or m}/matmul")
        return self.node("Add", [y, self.put(f"{m}.bias", bias)], name or m)

    def norm(self, x: str, m: str) -> str:
        return self.node("LayerNormalization", [x, *self.pair(m)], m, axis=-1, epsilon=LAYER_NORM_EPS)

    def pair(self, m: str) -> list[str]:
        """Weight and bias of a module."""
        return [self.put(f"{m}.{part}", self.t[f"{m}.{part}"]) for part in ("weight", "bias")]

    def put(self, name: str, value: torch.Tensor) -> str:
        """A tensor in the file of weights."""
        array: NDArray[np.float32] = value.numpy()
        self.initializers[name] = self.weights.put(name, np.ascontiguousarray(array))
        return name
