"""The encoder as ONNX Runtime's CPU provider runs it fastest: the states of `standard_graph` from other nodes.

What differs, and why (benchmarks/graphs.py times the whole of it beside the standard graph):

- Attention is `com.microsoft.MultiHeadAttention`, which on a CPU never holds the matrix of scores, as long as nothing
  is added to the logits. `blocks` says how cached keys are given to it all the same.
- Widths that are a multiple of 4 KiB get 16 zeros more. Rows so far apart share few places in a cache, which costs
  matrix products up to a third of their speed.
- An input says how many positions each block has to compute, so that the last one spares what nobody will read.
- Every output can be had as float16 instead, cast while it is in cache: numpy's own cast is slow.
- What is added before a GELU is left to ONNX Runtime, which fuses the two. Its SkipLayerNormalization, the residual sum
  and the LayerNorm in one, is slower than the two apart.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from voxstrata.encoders.outputs import as_float16
from voxstrata.exporters.blocks import EncoderBuilder, residual_names
from voxstrata.exporters.graph import MICROSOFT
from voxstrata.exporters.weights import WeightsFile

_ALIASED = 1024  # float32 numbers: 4 KiB, after which addresses fall into the same places of a first-level cache
CACHE_LINE = 16  # float32 numbers


def cpu_encoder_graph(weights: WeightsFile, *, outputs: Sequence[str], norm_every: bool, int8: bool = False) -> bytes:
    """Build the encoder with cached keys, for a CPU; inputs and outputs are float32. Arguments as of `encoder_graph`.

    `int8`: the blocks' linear layers have weights of 8 bits, one scale per column, and quantise what they multiply
    when they run, with one scale for all of it: a window's states then depend on what else is in the batch.

    The graph has one input more: `positions` int64 [layers], how many of the positions from the first block k has to
    compute, at least 1 and no more than the block before. `layer_k` is [batch, positions[k - 1], d_model]; keys and
    values of block k are taken from all positions that the block before computed. After the outputs come the same as
    float16, under the names that `as_float16` gives them; what does not fit becomes infinite.
    """
    assert weights.dtype == np.float32, "the CPU's attention takes float32 alone"
    b = (_Int8Builder if int8 else CpuBuilder)(weights)
    layers, d_model = b.shape.layers, b.shape.d_model
    b.encoder(residual_names(layers, outputs, norm_every), outputs, norm_every)
    halves = [b.cast(n, as_float16(n), np.float16) for n in outputs]
    returned = [b.tensor(n, np.float32, ["batch", None, d_model]) for n in outputs]
    returned += [b.tensor(n, np.float16, ["batch", None, d_model]) for n in halves]
    inputs = [*b.declared_inputs(cached=True), b.tensor("positions", np.int64, [layers])]
    return b.model("whisper_encoder_cpu", inputs, returned)


def is_aliased(width: int) -> bool:
    """Whether zeros are put after each row of `width` numbers."""
    return width % _ALIASED == 0


class CpuBuilder(EncoderBuilder):
    """Nodes of the CPU's graph. Weights are reshaped and padded by nodes, which ONNX Runtime computes once, when the
    graph is loaded, so that all graphs share one copy of the weights on disk."""

    weights: WeightsFile

    def __init__(self, weights: WeightsFile) -> None:
        super().__init__(weights)
        s = self.shape
        self._padded: set[str] = set()  # tensors of which there is a copy with spread rows
        self.wide_heads = s.heads * (s.head_dim + 1)
        self.ints("axis1", 1)
        self.ints("axis3", 3)
        self.ints("heads", 0, s.heads, s.head_dim)
        self.ints("flat", 0, self.wide_heads)
        self.ints("one_more", 0, 0, 0, 0, 0, 1)

    def prepare(self, x: str, frames: str) -> None:
        """Cached keys and values and `positions`, each split by blocks."""
        s = self.shape
        keys = self.biased_keys()
        self.batch_shape(x, "ones", 2)
        self._silence: dict[str, list[str]] = {}
        for part, t, width in (("key", keys, s.head_dim + 1), ("value", "silence_value", s.head_dim)):
            found = self._by_block(self.joined_heads(t, part, width), f"silence_{part}")
            self._silence[part] = [self.node("Expand", [one, "batch/expand"], f"{one}/batch") for one in found]
        self._ends = self._by_block("positions", "positions")

    def _by_block(self, x: str, name: str) -> list[str]:
        return self.split(x, [f"{name}/{k}" for k in range(self.shape.layers)], f"{name}/split", axis=0)

    def attention(self, x: str, normed: str, block: int) -> tuple[str, str]:
        m, end = f"layers.{block}", self._ends[block]
        x, asking = (self.node("Slice", [t, "zero", end, "axis1"], f"{t}/kept") for t in (x, normed))
        q, key = (self.wide(t, f"{m}.self_attn.{p}_proj") for t, p in ((asking, "q"), (normed, "k")))
        value = self.linear(normed, f"{m}.self_attn.v_proj")
        key = self.node("Concat", [key, self._silence["key"][block]], f"{m}/keys", axis=1)
        value = self.node("Concat", [value, self._silence["value"][block]], f"{m}/values", axis=1)
        about = {"domain": MICROSOFT, "num_heads": self.shape.heads, "scale": 1.0}
        return x, self.node("MultiHeadAttention", [q, key, value], f"{m}/heads", **about)

    def product(self, x: str, weight: str, name: str) -> str:
        """Both are padded where d_model is aliased."""
        if is_aliased(self.shape.d_model):
            padded = f"{x}/spread"
            if x not in self._padded:
                self._padded.add(x)
                self.node("Pad", [x, self.ints("spread/pads", 0, 0, 0, 0, 0, CACHE_LINE)], padded)
            x, weight = padded, self._more_rows(weight)
        return super().product(x, weight, name)

    def _more_rows(self, weight: str) -> str:
        return self.node("Pad", [weight, self.ints("more_rows", 0, 0, CACHE_LINE, 0)], f"{weight}/rows")

    def wide(self, x: str, module: str) -> str:
        """Queries or keys with one dimension more per head, see `blocks`."""
        s = self.shape
        w = self.node("Reshape", [self.weight(f"{module}.weight"), "heads"], f"{module}.weight/heads")
        w = self.node("Pad", [w, "one_more"], f"{module}.weight/wide")
        w = self.node("Reshape", [w, "flat"], f"{module}.weight/flat")
        y = self.product(x, w, f"{module}/matmul")
        if not module.endswith(".q_proj"):
            return y
        self.ints("per_head", s.heads, s.head_dim)
        self.ints("joined_heads", -1)
        self.constant("one_per_head", np.ones((s.heads, 1), np.float32))
        bias = self.node("Reshape", [self.weight(f"{module}.bias"), "per_head"], f"{module}.bias/heads")
        bias = self.node("Concat", [bias, "one_per_head"], f"{module}.bias/wide", axis=1)
        return self.node("Add", [y, self.node("Reshape", [bias, "joined_heads"], f"{module}.bias/flat")], module)

    def mlp(self, x: str, block: str) -> str:
        """A padded hidden state is zero where it is padded: GELU(0) = 0."""
        first, bias, second = (self.weight(f"{block}.{n}") for n in ("fc1.weight", "fc1.bias", "fc2.weight"))
        if is_aliased(len(self.weights.value(bias))):
            self.ints("more_columns", 0, 0, 0, CACHE_LINE)
            self.ints("more", 0, CACHE_LINE)
            first = self.node("Pad", [first, "more_columns"], f"{first}/columns")
            bias = self.node("Pad", [bias, "more"], f"{bias}/more")
            second = self._more_rows(second)
        h = self.product(x, first, f"{block}.fc1/matmul")
        h = self.node("Gelu", [self.node("Add", [h, bias], f"{block}.fc1")], f"{block}.fc1/gelu")
        y = self.node("MatMul", [h, second], f"{block}.fc2/matmul")
        return self.node("Add", [y, self.weight(f"{block}.fc2.bias")], f"{block}.fc2")


class _Int8Builder(CpuBuilder):
    """The same with linear layers in 8 bits."""

    mlp = EncoderBuilder.mlp

    def linear(self, x: str, module: str) -> str:
        weight, bias = f"{module}.weight", f"{module}.bias"
        offset = self.weights.value(bias) if bias in self.weights else None
        return self._quantised(x, module, self.weights.value(weight), offset)

    def wide(self, x: str, module: str) -> str:
        s = self.shape
        w = self.weights.value(f"{module}.weight").reshape(s.d_model, s.heads, s.head_dim)
        wide = np.pad(w, ((0, 0), (0, 0), (0, 1))).reshape(s.d_model, self.wide_heads)
        bias = None
        if module.endswith(".q_proj"):
            heads = self.weights.value(f"{module}.bias").reshape(s.heads, s.head_dim)
            bias = np.pad(heads, ((0, 0), (0, 1)), constant_values=1).ravel()
        return self._quantised(x, module, wide, bias)

    def _quantised(self, x: str, module: str, weight: NDArray[np.float32], bias: NDArray[np.float32] | None) -> str:
        """x · weight + bias, weight [in, out] in steps of its columns' largest value / 127."""
        scale = np.abs(weight).max(axis=0) / 127
        scale[scale == 0] = 1
        steps = np.rint(weight / scale).astype(np.int8)
        w, s = self._put(f"{module}.weight/int8", steps), self._put(f"{module}.weight/scale", scale)
        offset = [] if bias is None else [self._put(f"{module}.bias/int8", bias)]
        return self.node("DynamicQuantizeMatMul", [x, w, s, "", *offset], module, domain=MICROSOFT)

    def _put(self, name: str, value: NDArray[np.float32] | NDArray[np.int8]) -> str:
        self.initializers[name] = self.weights.put(name, value)
        return name
