"""The graphs that an accelerator runs, built when a run starts: nothing that no output needs, no way over the host.

They are built from an exported model and read its weights where they lie. ONNX Runtime computes every node of a graph,
whatever is asked for, so each set of outputs gets a graph of its own.
"""

from collections.abc import Sequence

import numpy as np

from voxstrata.encoders.card import LOG_MEL, ModelFolder
from voxstrata.encoders.outputs import depth
from voxstrata.exporters.blocks import EncoderBuilder, residual_names
from voxstrata.exporters.graph import MICROSOFT, onnx_package
from voxstrata.exporters.log_mel import log_mel_graph
from voxstrata.exporters.standard_graph import encoder_graph
from voxstrata.exporters.weights import StoredWeights, Weights

_HEAD_STEP = 8  # the flash kernel of attention takes heads whose size is a multiple of this


def cuda_log_mel(model: ModelFolder) -> bytes:
    """The model's log-mel with one input more, `columns` int64 [1]: how many of the first mel frames are returned.

    Raises InputError when the package onnx is missing, as `cuda_encoder_graph` does.
    """
    onnx = onnx_package()
    constants = onnx.load(model.path / LOG_MEL).graph.initializer
    (filters,) = (onnx.numpy_helper.to_array(c) for c in constants if c.name == "mel_filters")
    return log_mel_graph(filters.T, columns=True)


def cuda_encoder_graph(model: ModelFolder, outputs: Sequence[str], *, cached: bool, fused: bool) -> bytes:
    """The encoder of an exported model with these outputs alone; inputs as of `encoder_graph`.

    Its weights stay in their file in the model's folder.
    fused: attention is `com.microsoft.MultiHeadAttention`, which on CUDA and in float16 never holds the logits.
    Otherwise the operators are standard ones, which TensorRT fuses by itself.
    """
    weights, norm_every = StoredWeights(model), model.card.final_norm == "every"
    blocks = depth(outputs, model.card.layers)
    if not fused:
        return encoder_graph(weights, outputs=outputs, cached=cached, norm_every=norm_every, blocks=blocks)
    b = _FusedBuilder(weights, cached)
    b.encoder(residual_names(model.card.layers, outputs, norm_every)[: blocks + 1], outputs, norm_every)
    returned = [b.tensor(name, weights.dtype, ["batch", None, b.shape.d_model]) for name in outputs]
    return b.model("whisper_encoder_cuda", b.declared_inputs(cached), returned)


class _FusedBuilder(EncoderBuilder):
    """Attention as one operator. With a silence cache all heads are widened, see `blocks`, to a size it takes."""

    def __init__(self, weights: Weights, cached: bool) -> None:
        super().__init__(weights)
        self.cached = cached
        self.wide = -(-(self.shape.head_dim + 1) // _HEAD_STEP) * _HEAD_STEP

    def prepare(self, x: str, frames: str) -> None:
        """Cached keys and values of all blocks: [layers, keys, heads · wide]."""
        if not self.cached:
            return
        self.batch_shape(x, "ones", 2)
        dim = self.shape.head_dim
        keys = self._filled(self.biased_keys(), dim + 1, 0)
        values = self._filled(self.computed("silence_value"), dim, 0)
        self._silence = {part: self.joined_heads(t, part, self.wide) for part, t in (("key", keys), ("value", values))}

    def attention(self, x: str, normed: str, block: int) -> tuple[str, str]:
        s, m = self.shape, f"layers.{block}"
        q, key, value = (self.linear(normed, f"{m}.self_attn.{p}_proj") for p in "qkv")
        if self.cached:
            q, key, value = (self._widened(t, fill) for t, fill in ((q, 1), (key, 0), (value, 0)))
            key = self.with_cached(key, self._silence["key"], "key", block, axis=1)
            value = self.with_cached(value, self._silence["value"], "value", block, axis=1)
        about = {"domain": MICROSOFT, "num_heads": s.heads, "scale": 1.0}
        joined = self.node("MultiHeadAttention", [q, key, value], f"{m}/heads", **about)
        if self.cached:  # of every head the dimensions that are its own
            heads = self.node("Reshape", [joined, self.ints("wide_heads", 0, 0, s.heads, self.wide)], f"{m}/heads/wide")
            cut = ["zero", self.ints("head_dim", s.head_dim), self.ints("axis3", 3)]
            heads = self.node("Slice", [heads, *cut], f"{m}/heads/cut")
            joined = self.node("Reshape", [heads, self.ints("join_heads", 0, 0, s.d_model)], f"{m}/joined")
        return x, joined

    def _widened(self, x: str, fill: int) -> str:
        """[batch, time, heads · head_dim] to [batch, time, heads · wide], filled up."""
        s = self.shape
        x = self.node("Reshape", [x, self.ints("split_heads", 0, 0, s.heads, s.head_dim)], f"{x}/split")
        x = self._filled(x, s.head_dim, fill)
        return self.node("Reshape", [x, self.ints("flat", 0, 0, s.heads * self.wide)], f"{x}/flat")

    def _filled(self, x: str, width: int, fill: int) -> str:
        """The last of four dimensions, which is `width`, filled up to `wide`."""
        pads = self.ints(f"pads_{self.wide - width}", *[0] * 7, self.wide - width)
        value = self.constant(f"fill_{fill}", np.array(fill, self.weights.dtype))
        return self.node("Pad", [x, pads, value], f"{x}/wide")
