"""The parts of Whisper's encoder as nodes of a graph: convolutions, blocks, LayerNorms, and the keys of the silence.

`standard_graph`, `cpu_graph` and `cuda_graph` build the encoder from these parts. They differ in the operator of
attention, in what is done to weights and types, and in inputs and outputs.

How the fast operators of attention take the silence cache: they are fast only as long as nothing is added to the
logits, but the logit of a cached key needs the logarithm of its group's size. So keys get one dimension more, which
holds that logarithm for cached keys and 0 for computed ones. Queries have 1 there, so the product adds it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from voxstrata.encoders.outputs import output_names
from voxstrata.exporters.graph import GraphBuilder
from voxstrata.exporters.weights import Weights

if TYPE_CHECKING:
    import onnx

NORM_EPS = 1e-5  # torch.nn.LayerNorm's default, which Whisper keeps


def residual_names(layers: int, outputs: Sequence[str], norm_every: bool) -> list[str]:
    """Names for the residual states. One that is returned as it is has the output's own, so that nothing is copied."""
    return [n if n in outputs and not norm_every else f"{n}/residual" for n in output_names(layers)[:-1]]


class EncoderBuilder(GraphBuilder, ABC):
    """Builds an encoder block by block. What attention looks like is left to subclasses.

    features: the input's name. zeros: columns of zeros that the first convolution sees before the features and after.
    """

    features = "log_mel"
    zeros = (1, 1)

    def __init__(self, weights: Weights) -> None:
        super().__init__()
        self.weights = weights
        self.shape = weights.shape
        self.ints("zero", 0)

    def prepare(self, x: str, frames: str) -> None:
        """Nodes that all blocks share, from the first residual state and the vector of its length. Here none."""

    @abstractmethod
    def attention(self, x: str, normed: str, block: int) -> tuple[str, str]:
        """Of one block, up to the output projection: the residual state that it is added to, and the heads, joined."""

    def encoder(self, residuals: Sequence[str], outputs: Sequence[str], norm_every: bool) -> None:
        """All nodes from `log_mel` to the outputs.

        residuals: how the residual states are called, after the convolutions and after each block that is computed.
        norm_every: the final LayerNorm is applied to every output.
        """
        x, frames = self.stem(residuals[0])
        if len(residuals) > 1:
            self.prepare(x, frames)
        for k, name in enumerate(residuals[1:]):
            x = self.block(x, k, name)
        for name, residual in zip(output_names(self.shape.layers), residuals, strict=False):
            if name in outputs and norm_every:
                self.layer_norm(residual, "layer_norm", name)
            elif name in outputs and name != residual:
                self.node("Identity", [residual], name)
        if "final" in outputs:
            self.layer_norm(x, "layer_norm", "final")

    def stem(self, first: str) -> tuple[str, str]:
        """Convolutions, GELU and positions: the first residual state, called `first`, and the vector of its length."""
        x = self.computed(self.features)
        for module, stride, zeros in (("conv1", 1, self.zeros), ("conv2", 2, (1, 1))):
            parts = [x, self.weight(f"{module}.weight"), self.weight(f"{module}.bias")]
            x = self.node("Conv", parts, module, kernel_shape=[3], pads=zeros, strides=[stride])
            x = self.node("Gelu", [x], f"{module}/gelu")
        x = self.node("Transpose", [x], "conv2/frames", perm=[0, 2, 1])
        frames = self.node("Shape", [x], "frames", start=1, end=2)
        positions = self.weight("embed_positions.weight")
        positions = self.node("Slice", [positions, "zero", frames, "zero"], "embed_positions")
        return self.node("Add", [x, positions], first), frames

    def block(self, x: str, k: int, name: str) -> str:
        """Block `k`, from a residual state to the next, which is called `name`."""
        m = f"layers.{k}"
        x, joined = self.attention(x, self.layer_norm(x, f"{m}.self_attn_layer_norm"), k)
        x = self.node("Add", [x, self.linear(joined, f"{m}.self_attn.out_proj")], f"{m}/after_attention")
        return self.node("Add", [x, self.mlp(self.layer_norm(x, f"{m}.final_layer_norm"), m)], name)

    def mlp(self, x: str, block: str) -> str:
        """fc1, GELU, fc2."""
        return self.linear(self.node("Gelu", [self.linear(x, f"{block}.fc1")], f"{block}.fc1/gelu"), f"{block}.fc2")

    def linear(self, x: str, module: str) -> str:
        """[batch, time, in] to [batch, time, out]."""
        y = self.product(x, self.weight(f"{module}.weight"), f"{module}/matmul")
        if f"{module}.bias" in self.weights:  # Whisper's key projection has none
            y = self.node("Add", [y, self.weight(f"{module}.bias")], module)
        return y

    def product(self, x: str, weight: str, name: str) -> str:
        """[batch, time, d_model] times [d_model, out]."""
        return self.node("MatMul", [x, weight], name)

    def layer_norm(self, x: str, module: str, name: str = "") -> str:
        """LayerNorm over the last dimension, called like its module or `name`."""
        parts = [x, self.weight(f"{module}.weight"), self.weight(f"{module}.bias")]
        return self.node("LayerNormalization", parts, name or module, axis=-1, epsilon=NORM_EPS)

    def weight(self, name: str) -> str:
        """A tensor in the file of weights."""
        self.initializers[name] = self.weights.tensor(name)
        return name

    def computed(self, name: str) -> str:
        """A float32 input in the type in which the graph computes."""
        return name if self.weights.dtype == np.float32 else self.cast(name, f"{name}/cast", self.weights.dtype)

    def batch_shape(self, x: str, ones: str, dims: int) -> str:
        """The vector (batch, 1, 1, …) with `dims` ones, a constant called `ones`."""
        batch = self.node("Shape", [x], "batch", start=0, end=1)
        return self.node("Concat", [batch, self.constant(ones, np.ones(dims, np.int64))], "batch/expand", axis=0)

    def biased_keys(self) -> str:
        """Cached keys with the logit's bias as one dimension more, float32: [layers, heads, keys, head_dim + 1]."""
        bias = self.node("Unsqueeze", ["silence_bias", self.ints("axis3", 3)], "silence_bias/column")
        return self.node("Concat", ["silence_key", bias], "silence_key/biased", axis=3)

    def joined_heads(self, t: str, part: str, width: int) -> str:
        """Cached keys or values [layers, heads, keys, width] as [layers, keys, heads · width], for fast operators."""
        t = self.node("Transpose", [t], f"silence_{part}/lkhd", perm=[0, 2, 1, 3])
        joined = self.ints(f"silence_{part}/joined", 0, 0, self.shape.heads * width)
        return self.node("Reshape", [t, joined], f"silence_{part}/flat")

    def with_cached(self, t: str, cached: str, part: str, block: int, axis: int) -> str:
        """Computed keys or values `t`, and after them the cached ones of a block, for every member of the batch."""
        one = self.node("Gather", [cached, self.ints(f"layer_index_{block}", block)], f"silence_{part}/{block}", axis=0)
        one = self.node("Expand", [one, "batch/expand"], f"silence_{part}/{block}/batch")
        return self.node("Concat", [t, one], f"layers.{block}/{part}s", axis=axis)

    def declared_inputs(self, cached: bool) -> list[onnx.ValueInfoProto]:
        """`log_mel`, and the silence cache."""
        s = self.shape
        shapes: dict[str, list[str | int]] = {"log_mel": ["batch", s.n_mels, "time"]}
        if cached:
            shapes["silence_key"] = shapes["silence_value"] = [s.layers, s.heads, "keys", s.head_dim]
            shapes["silence_bias"] = [s.layers, s.heads, "keys"]
        return [self.tensor(name, np.float32, dims) for name, dims in shapes.items()]
