"""The encoder as ONNX Runtime's CPU provider runs it fastest: the same weights and states as `graph`, other nodes.

What differs, and why (benchmarks/graphs.py times the whole of it beside the standard graph):

- Attention is `com.microsoft.MultiHeadAttention`, which on a CPU never holds the matrix of scores: but only as long as
  nothing is added to the logits. So the logarithms of the silence groups' sizes enter as one more dimension of the
  keys, which for queries is always 1.
- Widths that are a multiple of 4 KiB get 16 zeros more: rows so far apart share few cache lines' places, and matrix
  products lose up to a third there.
- An input says how many positions each block has to compute, so that the last one spares what nobody will read.
- Every output can be had as float16 instead, cast while it is in cache: numpy's own cast is slow.
- What is added before a GELU is left to ONNX Runtime, which fuses the two. Its SkipLayerNormalization, the residual sum
  and the LayerNorm in one, is slower than the two apart.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx
from onnx import TensorProto, helper

from voxstrata.encoders.outputs import as_float16, output_names
from voxstrata.exporters.standard_graph import Array, EncoderBuilder, EncoderShape, WeightsFile

CONTRIB = "com.microsoft"
ALIASED = 1024  # float32 numbers: 4 KiB, after which addresses fall into the same places of a first-level cache
CACHE_LINE = 16  # float32 numbers


def spread(width: int) -> int:
    """How many numbers are put after a row of `width`."""
    return CACHE_LINE if width % ALIASED == 0 else 0


def cpu_encoder_graph(
    state: Mapping[str, Array],
    shape: EncoderShape,
    weights: WeightsFile,
    *,
    outputs: Sequence[str],
    norm_every: bool,
    int8: bool = False,
) -> onnx.ModelProto:
    """Build the encoder with cached keys, for a CPU; inputs and outputs are float32. Arguments as of `encoder_graph`.

    `int8`: the blocks' linear layers have weights of 8 bits, one scale per column, and quantise what they multiply
    when they run, with one scale for all of it: a window's states then depend on what else is in the batch.

    The graph has one input more: `positions` int64 [layers], how many of the positions from the first block k has to
    compute, at least 1 and no more than the block before. `layer_k` is [batch, positions[k - 1], d_model]; keys and
    values of block k are taken from all positions that the block before computed. After the outputs come the same as
    float16, under the names that `as_float16` gives them; what does not fit becomes infinite.
    """
    b = (_Int8Builder if int8 else _CpuBuilder)(state, shape, weights)
    assert b.dtype == TensorProto.FLOAT, "the CPU's attention takes float32 alone"
    # a residual state that is returned as it is carries the output's name, so that nothing is copied
    names = [n if n in outputs and not norm_every else f"{n}/residual" for n in output_names(shape.layers)[:-1]]
    x, _ = b.stem(names[0])
    silence_keys, silence_values, ends = b.split_inputs(x)
    for k in range(shape.layers):
        m = f"layers.{k}"
        a = b.layer_norm(x, f"{m}.self_attn_layer_norm", f"{m}.self_attn_layer_norm")
        x, of_queries = (b.node("Slice", [t, "zero", ends[k], "axis1"], f"{t}/kept") for t in (x, a))
        q, key = (b.wide(t, f"{m}.self_attn.{p}_proj") for t, p in ((of_queries, "q"), (a, "k")))
        value = b.linear(a, f"{m}.self_attn.v_proj")
        key = b.node("Concat", [key, silence_keys[k]], f"{m}/keys", axis=1)
        value = b.node("Concat", [value, silence_values[k]], f"{m}/values", axis=1)
        heads = b.node(
            "MultiHeadAttention", [q, key, value], f"{m}/heads", domain=CONTRIB, num_heads=shape.heads, scale=1.0
        )
        x = b.node("Add", [x, b.linear(heads, f"{m}.self_attn.out_proj")], f"{m}/after_attention")
        a = b.layer_norm(x, f"{m}.final_layer_norm", f"{m}.final_layer_norm")
        x = b.node("Add", [x, b.mlp(a, m)], names[k + 1])
    for name, residual in zip(output_names(shape.layers), [*names, names[-1]], strict=True):
        if name in outputs and name != residual:
            b.layer_norm(residual, "layer_norm", name)

    inputs = [*b.inputs(cached=True), helper.make_tensor_value_info("positions", TensorProto.INT64, [shape.layers])]
    halves = [b.node("Cast", [n], as_float16(n), to=TensorProto.FLOAT16) for n in outputs]
    returned = [
        helper.make_tensor_value_info(n, dtype, ["batch", None, shape.d_model])
        for group, dtype in ((outputs, b.dtype), (halves, TensorProto.FLOAT16))
        for n in group
    ]
    return b.model("whisper_encoder_cpu", inputs, returned)


class _CpuBuilder(EncoderBuilder):
    """Nodes of the CPU's graph. Constants are reshaped and padded by nodes, which ONNX Runtime computes once, when the
    graph is loaded, so that all graphs share one copy of the weights on disk."""

    def __init__(self, state: Mapping[str, Array], shape: EncoderShape, weights: WeightsFile) -> None:
        super().__init__(state, shape, weights)
        self._spread: set[str] = set()  # tensors of which a padded copy is made
        self.wide_heads = shape.heads * (self.head_dim + 1)
        self.ints("axis1", 1)
        self.ints("axis3", 3)
        self.ints("heads", 0, shape.heads, self.head_dim)
        self.ints("flat", 0, self.wide_heads)
        self.ints("one_more", 0, 0, 0, 0, 0, 1)

    def split_inputs(self, x: str) -> tuple[list[str], list[str], list[str]]:
        """By layer: cached keys and values as attention takes them, for every member of the batch, and `positions`."""
        s = self.shape
        bias = self.node("Unsqueeze", ["silence_bias", "axis3"], "silence_bias/column")
        keys = self.node("Concat", ["silence_key", bias], "silence_key/biased", axis=3)
        batch = self.node("Shape", [x], "batch", start=0, end=1)
        self.ints("ones", 1, 1)
        self.node("Concat", [batch, "ones"], "batch/expand", axis=0)
        found: list[list[str]] = []
        for name, t, width in (("key", keys, self.wide_heads), ("value", "silence_value", s.d_model)):
            # [layers, heads, keys, dim] to [layers, keys, heads · dim]
            t = self.node("Transpose", [t], f"silence_{name}/lkhd", perm=[0, 2, 1, 3])
            self.ints(f"silence_{name}/joined", 0, 0, width)
            t = self.node("Reshape", [t, f"silence_{name}/joined"], f"silence_{name}/flat")
            layers = self.split(t, f"silence_{name}", s.layers)
            found.append([self.node("Expand", [one, "batch/expand"], f"{one}/batch") for one in layers])
        return found[0], found[1], self.split("positions", "positions", s.layers)

    def split(self, x: str, name: str, parts: int) -> list[str]:
        names = [f"{name}/{k}" for k in range(parts)]
        self.nodes.append(helper.make_node("Split", [x], names, name=f"{name}/split", axis=0, num_outputs=parts))
        return names

    def product(self, x: str, width: int, weight: str, name: str) -> str:
        """[batch, time, width] times [width, out]; both are padded where `width` is aliased."""
        if spread(width):
            padded = f"{x}/spread"
            if x not in self._spread:
                self._spread.add(x)
                self.ints("spread/pads", 0, 0, 0, 0, 0, CACHE_LINE)
                self.node("Pad", [x, "spread/pads"], padded)
            x, weight = padded, self.more_rows(weight)
        return self.node("MatMul", [x, weight], name)

    def more_rows(self, weight: str) -> str:
        self.ints("more_rows", 0, 0, CACHE_LINE, 0)
        return self.node("Pad", [weight, "more_rows"], f"{weight}/rows")

    def linear(self, x: str, module: str) -> str:
        y = self.product(x, self.shape.d_model, self.matrix(module), f"{module}/matmul")
        return self.node("Add", [y, self.bias(module)], module)

    def wide(self, x: str, module: str) -> str:
        """Queries or keys with one dimension more per head: 1 for queries, 0 for computed keys."""
        s = self.shape
        w = self.node("Reshape", [self.matrix(module), "heads"], f"{module}.weight/heads")
        w = self.node("Pad", [w, "one_more"], f"{module}.weight/wide")
        w = self.node("Reshape", [w, "flat"], f"{module}.weight/flat")
        y = self.product(x, s.d_model, w, f"{module}/matmul")
        if not module.endswith(".q_proj"):
            return y
        self.ints("per_head", s.heads, self.head_dim)
        self.ints("joined_heads", -1)
        self.constant("one_per_head", np.ones((s.heads, 1), np.float32))
        bias = self.node("Reshape", [self.bias(module), "per_head"], f"{module}.bias/heads")
        bias = self.node("Concat", [bias, "one_per_head"], f"{module}.bias/wide", axis=1)
        return self.node("Add", [y, self.node("Reshape", [bias, "joined_heads"], f"{module}.bias/flat")], module)

    def mlp(self, x: str, block: str) -> str:
        """fc1, GELU, fc2. A padded hidden state is zero where it is padded: GELU(0) = 0."""
        ffn = len(self.state[f"{block}.fc1.bias"])
        first, bias, second = self.matrix(f"{block}.fc1"), self.bias(f"{block}.fc1"), self.matrix(f"{block}.fc2")
        if spread(ffn):
            self.ints("more_columns", 0, 0, 0, CACHE_LINE)
            self.ints("more", 0, CACHE_LINE)
            first = self.node("Pad", [first, "more_columns"], f"{first}/columns")
            bias = self.node("Pad", [bias, "more"], f"{bias}/more")
            second = self.more_rows(second)
        h = self.product(x, self.shape.d_model, first, f"{block}.fc1/matmul")
        h = self.node("Gelu", [self.node("Add", [h, bias], f"{block}.fc1")], f"{block}.fc1/gelu")
        y = self.node("MatMul", [h, second], f"{block}.fc2/matmul")
        return self.node("Add", [y, self.bias(f"{block}.fc2")], f"{block}.fc2")


class _Int8Builder(_CpuBuilder):
    """The same with linear layers in 8 bits."""

    def linear(self, x: str, module: str) -> str:
        bias = self.state.get(f"{module}.bias")
        return self._quantised(x, module, self.state[f"{module}.weight"].T, bias)

    def wide(self, x: str, module: str) -> str:
        s, is_query = self.shape, module.endswith(".q_proj")
        factor = self._scale(module)
        w = (self.state[f"{module}.weight"].T * factor).reshape(s.d_model, s.heads, self.head_dim)
        wide = np.pad(w, ((0, 0), (0, 0), (0, 1))).reshape(s.d_model, self.wide_heads)
        bias = None
        if is_query:
            heads = (self.state[f"{module}.bias"] * factor).reshape(s.heads, self.head_dim)
            bias = np.pad(heads, ((0, 0), (0, 1)), constant_values=1).ravel()
        return self._quantised(x, module, wide, bias)

    def mlp(self, x: str, block: str) -> str:
        h = self.node("Gelu", [self.linear(x, f"{block}.fc1")], f"{block}.fc1/gelu")
        return self.linear(h, f"{block}.fc2")

    def _quantised(self, x: str, module: str, weight: Array, bias: Array | None) -> str:
        """x · weight + bias, weight [in, out] in steps of its columns' largest value / 127."""
        scale = np.abs(weight).max(axis=0) / 127
        scale[scale == 0] = 1
        w = self.weight(f"{module}.weight/int8", np.rint(weight / scale).astype(np.int8))
        inputs = [x, w, self.weight(f"{module}.weight/scale", scale), ""]
        if bias is not None:
            inputs.append(self.weight(f"{module}.bias/int8", bias))
        return self.node("DynamicQuantizeMatMul", inputs, module, domain=CONTRIB)
