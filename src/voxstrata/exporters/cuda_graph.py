"""The graphs that an accelerator runs, built when a run starts: nothing that no output needs, no way over the host.

They are built from an exported model and read its weights where they lie. ONNX Runtime computes every node of a graph,
whatever is asked for, so each set of outputs gets a graph of its own. What is done to weights, nodes say: ONNX Runtime
computes these once, when it loads the graph.

The encoder for CUDA gives the states of `standard_graph` from other nodes:

- Convolutions are products over neighbouring frames side by side. cuDNN makes a plan for each shape that it meets, and
  makes it anew whenever the shape changes; a product needs none. Nor is anything transposed behind them.
- Attention is `com.microsoft.MultiHeadAttention`, whose flash kernel never holds the logits. `blocks` says how cached
  keys are given to it. Its heads must be a multiple of 8 wide; the projections' weights hold the padding, and the bias
  of the queries the 1 that meets the logarithms of the groups' sizes, so nothing is padded or cut in between.
- The bias of the values is added to them. It could move into the output projection's, since attention's weights add up
  to 1, and spare a kernel a block; but in float16 `final` of whisper-base then was up to 1.8 times as far from float64.
- What is added to the residual stream, its bias, the sum and the LayerNorm behind it are one
  `com.microsoft.SkipLayerNormalization`, whose last output is the sum. In the provider's strict mode it adds in float32
  and rounds once.
"""

from collections.abc import Sequence

import numpy as np

from voxstrata.encoders.card import LOG_MEL, ModelFolder
from voxstrata.encoders.outputs import depth, output_names
from voxstrata.exporters.blocks import NORM_EPS, EncoderBuilder, residual_names
from voxstrata.exporters.graph import MICROSOFT, onnx_package
from voxstrata.exporters.log_mel import log_mel_graph
from voxstrata.exporters.standard_graph import encoder_graph
from voxstrata.exporters.weights import StoredWeights, Weights

_HEAD_STEP = 8  # the flash kernel of attention takes heads whose size is a multiple of this
_END = 2**31  # of a slice: whatever is there


def cuda_log_mel(model: ModelFolder) -> bytes:
    """The model's log-mel with one input more, `columns` int64 [1]: how many of the first mel frames are returned.

    Raises InputError when the package onnx is missing, as `cuda_encoder_graph` does.
    """
    onnx = onnx_package()
    constants = onnx.load(model.path / LOG_MEL).graph.initializer
    (filters,) = (onnx.numpy_helper.to_array(c) for c in constants if c.name == "mel_filters")
    return log_mel_graph(filters.T, cuda=True)


def cuda_encoder_graph(
    model: ModelFolder, outputs: Sequence[str], *, cached: bool, fused: bool, bfloat16: bool = False
) -> bytes:
    """The encoder of an exported model with these outputs alone; inputs as of `encoder_graph`.

    Its weights stay in their file in the model's folder.
    fused: for CUDA, with operators of ONNX Runtime's own. Otherwise the operators are standard ones, which TensorRT
    fuses by itself.
    bfloat16: the fused graph computes in it, with weights rounded to it, and returns float32.
    """
    weights, norm_every = StoredWeights(model), model.card.final_norm == "every"
    blocks = depth(outputs, model.card.layers)
    if not fused:
        assert not bfloat16, "the standard graph's convolutions have no bfloat16 in this opset"
        return encoder_graph(weights, outputs=outputs, cached=cached, norm_every=norm_every, blocks=blocks)
    b = (_BFloat16Builder if bfloat16 else _CudaBuilder)(weights, cached)
    b.encoder(residual_names(model.card.layers, outputs, norm_every)[: blocks + 1], outputs, norm_every)
    dtype = np.float32 if bfloat16 else weights.dtype
    returned = [b.tensor(name, dtype, ["batch", None, b.shape.d_model]) for name in outputs]
    return b.model("whisper_encoder_cuda", b.declared_inputs(cached), returned)


class _CudaBuilder(EncoderBuilder):
    """Nodes of the encoder for CUDA. cached: attention also sees cached keys, for which heads are widened."""

    def __init__(self, weights: Weights, cached: bool) -> None:
        super().__init__(weights)
        s = self.shape
        self.cached = cached
        self.wide = -(-(s.head_dim + 1) // _HEAD_STEP) * _HEAD_STEP if cached else s.head_dim
        self.number = self.type_of(weights.dtype)  # ONNX's, of the type in which the graph computes
        # Sums that are not made yet, by name: the product that is added, its bias, and what both are added to.
        self._sums: dict[str, tuple[str, str, str]] = {}
        self._silence: dict[str, str] = {}  # cached keys and values

    def encoder(self, residuals: Sequence[str], outputs: Sequence[str], norm_every: bool) -> None:
        super().encoder(residuals, outputs, norm_every)
        self._plain_sums()
        self._drop_sums(outputs)

    def _plain_sums(self) -> None:
        """Those that nothing normalises."""
        for name, (product, bias, residual) in self._sums.items():
            self.node("Add", [residual, self.node("Add", [product, bias], f"{name}/added")], name)
        self._sums.clear()

    def _drop_sums(self, outputs: Sequence[str]) -> None:
        """Those that nothing needs but the LayerNorm that makes them."""
        used = {i for node in self.nodes for i in node.input} | set(outputs)
        for node in self.nodes:
            if node.op_type == "SkipLayerNormalization" and node.output[-1] not in used:
                del node.output[1:]

    def stem(self, first: str) -> tuple[str, str]:
        d = self.shape.d_model
        x = self.node("Transpose", ["log_mel"], "log_mel/frames", perm=[0, 2, 1])
        # padded in float32: not every type that the encoder computes in can be
        x = self.node("Pad", [x, self.ints("conv1/pads", 0, 1, 0, 0, 1, 0)], "log_mel/padded")
        x = self.computed(x)
        taps = [self._slice(x, i, end, 1, f"conv1/tap{i}") for i, end in enumerate((-2, -1, _END))]
        x = self._convolved("conv1", taps)
        # A stride of two: each pair of frames, and before it the last frame of the pair before, at first zeros.
        self.batch_shape(x, "two_ones", 2)
        pairs = self.node("Reshape", [x, self.ints("pair", 0, -1, 2 * d)], "conv2/pairs")
        nothing = self.node("Expand", [self._zeros("conv2/zeros", 1, 1, d), "batch/expand"], "conv2/nothing")
        ends = self._slice(self._slice(pairs, 0, -1, 1, "conv2/all_but_last"), d, _END, 2, "conv2/ends")
        before = self.node("Concat", [nothing, ends], "conv2/before", axis=1)
        x = self._convolved("conv2", [before, pairs])
        frames = self.node("Shape", [x], "frames", start=1, end=2)
        positions = self.node("Slice", [self.weight("embed_positions.weight"), "zero", frames, "zero"], "positions")
        return self.node("Add", [x, positions], first), frames

    def _convolved(self, module: str, taps: Sequence[str]) -> str:
        """A convolution and its GELU; taps: what it sees of each frame, one after the other [batch, time, …]."""
        x = self.node("Concat", taps, f"{module}/taps", axis=2)
        w = self.node("Transpose", [self.weight(f"{module}.weight")], f"{module}.weight/taps", perm=[2, 1, 0])
        w = self.node("Reshape", [w, self.ints("conv/flat", -1, self.shape.d_model)], f"{module}.weight/flat")
        x = self.node("Add", [self.product(x, w, f"{module}/product"), self.weight(f"{module}.bias")], module)
        return self.node("Gelu", [x], f"{module}/gelu")

    def prepare(self, x: str, frames: str) -> None:
        """Cached keys and values of all blocks: [layers, keys, heads · wide]. All is done in float32 and then cast."""
        if not self.cached:
            return
        s, more = self.shape, self.wide - self.shape.head_dim
        self._zeros("columns", s.d_model, s.heads, more)
        self._zeros("rows", s.heads, more, s.d_model)
        self._zeros("noughts", s.heads, more)
        one = self.constant("one", np.eye(1, more, dtype=np.float32))
        one = self.node("Expand", [one, self.ints("all_heads", s.heads, 1)], "one/heads")
        self._narrow(one, "ones")
        keys, values = (self.biased_keys(), s.head_dim + 1), ("silence_value", s.head_dim)
        for part, (t, width) in (("key", keys), ("value", values)):
            pads = self.ints(f"{part}_pads", *[0] * 7, self.wide - width)
            t = self.joined_heads(self.node("Pad", [t, pads], f"{t}/wide"), part, self.wide)
            self._silence[part] = self._narrow(t, f"silence_{part}/cast")

    def block(self, x: str, k: int, name: str) -> str:
        m = f"layers.{k}"
        x, joined = self.attention(x, self.layer_norm(x, f"{m}.self_attn_layer_norm"), k)
        out = f"{m}.self_attn.out_proj"
        joined = self.product(joined, self._wide_rows(self.weight(f"{out}.weight")), out)
        x = self._sum(x, joined, self.weight(f"{out}.bias"), f"{m}/after_attention")
        h = self.linear(self.layer_norm(x, f"{m}.final_layer_norm"), f"{m}.fc1")
        h = self.product(self.node("Gelu", [h], f"{m}.fc1/gelu"), self.weight(f"{m}.fc2.weight"), f"{m}.fc2")
        return self._sum(x, h, self.weight(f"{m}.fc2.bias"), name)

    def attention(self, x: str, normed: str, block: int) -> tuple[str, str]:
        m = f"layers.{block}"
        q, key, value = (
            self.product(normed, self._wide_columns(module), module)
            for module in (f"{m}.self_attn.{p}_proj" for p in "qkv")
        )
        q = self.node("Add", [q, self._wide_bias(f"{q}.bias", "ones")], f"{q}/biased")
        value = self.node("Add", [value, self._wide_bias(f"{value}.bias", "noughts")], f"{value}/biased")
        if self.cached:
            key = self.with_cached(key, self._silence["key"], "key", block, axis=1)
            value = self.with_cached(value, self._silence["value"], "value", block, axis=1)
        about = {"domain": MICROSOFT, "num_heads": self.shape.heads, "scale": 1.0}
        return x, self.node("MultiHeadAttention", [q, key, value], f"{m}/heads", **about)

    def layer_norm(self, x: str, module: str, name: str = "") -> str:
        """Of a sum that is not made yet, with it."""
        if x not in self._sums:
            return super().layer_norm(x, module, name)
        product, bias, residual = self._sums.pop(x)
        name = name or module
        parts = [product, residual, self.weight(f"{module}.weight"), self.weight(f"{module}.bias"), bias]
        about = {"domain": MICROSOFT, "epsilon": NORM_EPS}
        node = self.onnx.helper.make_node("SkipLayerNormalization", parts, [name, "", "", x], name=name, **about)
        self.nodes.append(node)
        return name

    def _sum(self, residual: str, product: str, bias: str, name: str) -> str:
        """residual + product + bias, called `name`: a node when it is normalised, or at the end."""
        self._sums[name] = product, bias, residual
        return name

    def _wide_bias(self, name: str, more: str) -> str:
        """A projection's bias, with what the dimensions get that each head has more: [heads, dimensions]."""
        bias, s = self.weight(name), self.shape
        if not self.cached:
            return bias
        wide = self.node("Reshape", [bias, self.ints("heads_of_bias", s.heads, s.head_dim)], f"{bias}/heads")
        wide = self.node("Concat", [wide, more], f"{bias}/wide", axis=1)
        return self.node("Reshape", [wide, self.ints("vector", -1)], f"{bias}/flat")

    def _wide_columns(self, module: str) -> str:
        """A projection's weight, with columns of zeros after each head's own."""
        weight, s = self.weight(f"{module}.weight"), self.shape
        if not self.cached:
            return weight
        w = self.node("Reshape", [weight, self.ints("split_columns", 0, s.heads, s.head_dim)], f"{weight}/heads")
        w = self.node("Concat", [w, "columns"], f"{weight}/wide", axis=2)
        return self.node("Reshape", [w, self.ints("joined_columns", 0, -1)], f"{weight}/flat")

    def _wide_rows(self, weight: str) -> str:
        """The output projection's weight, with rows of zeros after each head's own."""
        s = self.shape
        if not self.cached:
            return weight
        w = self.node("Reshape", [weight, self.ints("split_rows", s.heads, s.head_dim, -1)], f"{weight}/heads")
        w = self.node("Concat", [w, "rows"], f"{weight}/wide", axis=1)
        return self.node("Reshape", [w, self.ints("joined_rows", -1, s.d_model)], f"{weight}/flat")

    def computed(self, name: str) -> str:
        return self._narrow(name, f"{name}/cast")

    def _narrow(self, x: str, name: str) -> str:
        """Something in float32 in the type in which the graph computes."""
        return self.node("Cast", [x], name, to=self.number)

    def _zeros(self, name: str, *dims: int) -> str:
        """A constant that takes no room in the graph."""
        zero = self.onnx.helper.make_tensor("value", self.number, [1], [0.0])
        return self.node("ConstantOfShape", [self.ints(f"{name}/shape", *dims)], name, value=zero)

    def _slice(self, x: str, start: int, end: int, axis: int, name: str) -> str:
        return self.node("Slice", [x, *(self.ints(f"at_{n}", n) for n in (start, end, axis))], name)


class _BFloat16Builder(_CudaBuilder):
    """The same in bfloat16, but for what goes in and comes out, which is float32."""

    def __init__(self, weights: Weights, cached: bool) -> None:
        super().__init__(weights, cached)
        self.number = self.onnx.TensorProto.BFLOAT16
        self._rounded: set[str] = set()  # weights

    def encoder(self, residuals: Sequence[str], outputs: Sequence[str], norm_every: bool) -> None:
        states = dict(zip(output_names(self.shape.layers), (f"{n}/bfloat16" for n in residuals), strict=False))
        last = f"{residuals[-1]}/bfloat16"
        EncoderBuilder.encoder(self, list(states.values()), (), norm_every)
        for name in outputs:
            if norm_every or name == "final":
                states[name] = self.layer_norm(states.get(name, last), "layer_norm", f"{name}/normed")
        self._plain_sums()
        for name in outputs:
            self.cast(states[name], name, np.float32)
        self._drop_sums(outputs)

    def weight(self, name: str) -> str:
        weight, rounded = super().weight(name), f"{name}/bfloat16"
        if rounded not in self._rounded:
            self._rounded.add(rounded)
            self._narrow(weight, rounded)
        return rounded
