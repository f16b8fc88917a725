"""wav2vec 2.0 and what was made from it, as graphs that ONNX Runtime's CPU provider runs fast.

What differs from the modules of transformers, and why (benchmarks/families.py times the whole of it):

- Frames stay rows from the first convolution on: a strided convolution gathers the rows that each frame sees and is one
  matrix product, and a LayerNorm takes them as they are. PyTorch turns the tensor around twice for each of them.
- Positional convolutions have one axis more, of length 1: so ONNX Runtime takes its kernels for images, which need no
  copy of the input for each of the 128 taps.
- Attention is `com.microsoft.MultiHeadAttention`, and rows of 4 KiB are spread, as in `exporters.cpu_graph`. No other
  graph shares the weights, so they are spread in the file.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from voxstrata.exporters.cpu_graph import CACHE_LINE, is_aliased
from voxstrata.exporters.graph import MICROSOFT, GraphBuilder
from voxstrata.exporters.weights import EncoderShape, WeightsFile

Values = NDArray[np.float32]

_TORCH_EPS = 1e-5  # what norms of convolutions and adapters keep, whatever the configuration says
_CONV = "feature_extractor.conv_layers.{}"
_SAMPLES_EPS = 1e-7  # of Wav2Vec2FeatureExtractor


@dataclass(frozen=True)
class SpeechLayout:
    """What the weights do not show.

    strides: of the convolutions over samples. group_norm: the first of them is normalised over all its time, channel by
        channel, and the others are not; else each is, frame by frame.
    pre_norm: blocks normalise what they take; else what they give. eps: of the LayerNorms, but for those of
        convolutions and adapters. groups: of the positional convolutions.
    """

    strides: tuple[int, ...]
    group_norm: bool
    pre_norm: bool
    eps: float
    groups: int


def sample_graph(normalised: bool) -> bytes:
    """Graph: `audio` float32 [batch, samples] to `features`, the same, or of mean 0 and variance 1 each."""
    b = GraphBuilder()
    inputs, outputs = ([b.tensor(name, np.float32, ["batch", "samples"])] for name in ("audio", "features"))
    if normalised:
        b.ints("time", 1)
        b.constant("eps", np.array(_SAMPLES_EPS, np.float32))
        centred = b.node("Sub", ["audio", b.node("ReduceMean", ["audio", "time"], "mean")], "centred")
        variance = b.node("ReduceMean", [b.node("Mul", [centred, centred], "squares"), "time"], "variance")
        b.node("Div", [centred, b.node("Sqrt", [b.node("Add", [variance, "eps"], "above_0")], "deviation")], "features")
    else:
        b.node("Identity", ["audio"], "features")
    return b.model("samples", inputs, outputs)


def write_speech_graph(
    path: Path,
    weights: Path,
    state: Mapping[str, Values],
    shape: EncoderShape,
    layout: SpeechLayout,
    outputs: Sequence[str],
) -> None:
    """Write the graph `features` float32 [batch, samples] to outputs [batch, frames, d_model], and its weights.

    state: by the names of transformers' modules, but `encoder.pos_conv_embed.convs.i` for positional convolutions, with
    `.norm.weight` and `.norm.bias` for what each channel of their input is first multiplied by and moved by; and
    `encoder.positions` [heads, 2 · furthest + 1] for the biases of attention by the distance from query to key.
    """
    with WeightsFile(weights, {}, shape, "float32") as file:
        b = _SpeechBuilder(file, state, layout)
        b.encoder(outputs)
        returned = [b.tensor(name, np.float32, ["batch", "frames", shape.d_model]) for name in outputs]
        path.write_bytes(b.model("speech_encoder", [b.tensor("features", np.float32, ["batch", "samples"])], returned))


class _SpeechBuilder(GraphBuilder):
    """The nodes. Tensors are [batch, time, channels] wherever nothing else is said."""

    def __init__(self, file: WeightsFile, state: Mapping[str, Values], layout: SpeechLayout) -> None:
        super().__init__()
        self.file, self.state, self.layout, self.shape = file, state, layout, file.shape
        self._spread: set[str] = set()  # tensors of which there is a copy with spread rows
        self.ints("axis1", 1)
        self.ints("axis2", 2)

    def encoder(self, outputs: Sequence[str]) -> None:
        """All nodes that the outputs need."""
        layers, pre = self.shape.layers, self.layout.pre_norm
        names = [f"layer_{k:02d}" for k in range(layers)] + [f"layer_{layers:02d}" if pre else "final"]
        x = self.stem(names[0])
        last = max(names.index(output) if output in names else layers for output in outputs)
        if last and "encoder.positions" in self.state:
            self.position_bias(x)
        for k in range(last):
            x = self.block(x, k, names[k + 1])
        if pre and "final" in outputs:
            self.norm(x, "encoder.layer_norm", self.layout.eps, name="final")

    def stem(self, name: str) -> str:
        """From samples to what the first block takes, called `name`."""
        if self.layout.group_norm:
            x = self.over_time(self.node("Unsqueeze", ["features", "axis1"], "samples"))
        else:
            x = self.strided(self.node("Unsqueeze", ["features", "axis2"], "samples"), 0)
        for i in range(1, len(self.layout.strides)):
            x = self.strided(x, i)
        if "feature_projection.layer_norm.weight" in self.state:
            x = self.norm(x, "feature_projection.layer_norm", self.layout.eps)
        x = self.linear(x, "feature_projection.projection")
        added = name if self.layout.pre_norm else "positioned"
        x = self.node("Add", [x, self.positions(x)], added)
        return x if self.layout.pre_norm else self.norm(x, "encoder.layer_norm", self.layout.eps, name=name)

    def over_time(self, x: str) -> str:
        """The first convolution, of [batch, 1, samples], each channel normalised over all its time."""
        m = _CONV.format(0)
        x = self.node("Conv", [x, *self.parameters(f"{m}.conv")], m, strides=[self.layout.strides[0]])
        parts = [x, *self.parameters(f"{m}.layer_norm")]
        x = self.node("InstanceNormalization", parts, f"{m}/norm", epsilon=_TORCH_EPS)
        return self.node("Gelu", [self.node("Transpose", [x], f"{m}/rows", perm=[0, 2, 1])], f"{m}/gelu")

    def strided(self, x: str, i: int) -> str:
        """Convolution `i` over samples: all rows that a frame sees as one row, and a product."""
        m = _CONV.format(i)
        weight = self.state[f"{m}.conv.weight"]
        taps = weight.shape[2]
        self.constant("0", np.array(0))
        step, before = (self.constant(str(n), np.array(n)) for n in (self.layout.strides[i], taps - 1))
        time = self.node("Squeeze", [self.node("Shape", [x], f"{m}/shape", start=1, end=2)], f"{m}/time")
        first = self.node("Range", ["0", self.node("Sub", [time, before], f"{m}/end"), step], f"{m}/first")
        first = self.node("Unsqueeze", [first, "axis1"], f"{m}/first/column")
        seen = self.node("Add", [first, self.constant(f"0_to_{taps}", np.arange(taps))], f"{m}/seen")
        x = self.node("Gather", [x, seen], f"{m}/gathered", axis=1)
        joined = weight.transpose(2, 1, 0).reshape(-1, len(weight))
        x = self.node("Reshape", [x, self.ints(f"{m}/joined", 0, -1, len(joined))], f"{m}/rows")
        x = self.node("MatMul", [x, self.put(f"{m}.conv.weight", joined)], f"{m}/product")
        if (bias := f"{m}.conv.bias") in self.state:
            x = self.node("Add", [x, self.put(bias, self.state[bias])], m)
        if f"{m}.layer_norm.weight" in self.state:
            x = self.norm(x, f"{m}.layer_norm", _TORCH_EPS)
        return self.node("Gelu", [x], f"{m}/gelu")

    def positions(self, x: str) -> str:
        """What the positional convolutions make of the frames."""
        i = 0
        while (m := f"encoder.pos_conv_embed.convs.{i}") + ".weight" in self.state:
            if f"{m}.norm.weight" in self.state:
                scale, shift = self.parameters(f"{m}.norm")
                x = self.node("Add", [self.node("Mul", [x, scale], f"{m}/scaled"), shift], f"{m}/shifted")
            x = self.node("Transpose", [x], f"{m}/channels", perm=[0, 2, 1])
            weight, bias = self.state[f"{m}.weight"][:, :, None], self.state[f"{m}.bias"]
            taps = weight.shape[3]
            parts = [self.node("Unsqueeze", [x, "axis2"], f"{m}/image"), self.put(f"{m}.weight", weight)]
            about = {"pads": [0, taps // 2, 0, (taps - 1) // 2], "group": self.layout.groups}
            x = self.node("Conv", [*parts, self.put(f"{m}.bias", bias)], m, **about)
            x = self.node("Squeeze", [x, "axis2"], f"{m}/time")
            x = self.node("Transpose", [x], f"{m}/rows", perm=[0, 2, 1])
            if f"{m}.layer_norm.weight" in self.state:
                x = self.norm(x, f"{m}.layer_norm", _TORCH_EPS)
            x = self.node("Gelu", [x], f"{m}/gelu")
            i += 1
        return x

    def block(self, x: str, k: int, name: str) -> str:
        """Block `k`, whose state is called `name`."""
        m, pre, eps = f"encoder.layers.{k}", self.layout.pre_norm, self.layout.eps
        attended = self.attention(self.norm(x, f"{m}.layer_norm", eps) if pre else x, f"{m}.attention")
        x = self.node("Add", [x, attended], f"{m}/after_attention")
        if not pre:
            x = self.norm(x, f"{m}.layer_norm", eps)
        h = self.norm(x, f"{m}.final_layer_norm", eps) if pre else x
        adapter = f"{m}.adapter_layer" if f"{m}.adapter_layer.norm.weight" in self.state else ""
        called = name if pre and not adapter else f"{m}/after_mlp"
        x = self.node("Add", [x, self.mlp(h, f"{m}.feed_forward")], called)
        if adapter:
            h = self.linear(self.norm(x, f"{adapter}.norm", _TORCH_EPS), f"{adapter}.linear_1")
            h = self.linear(self.node("Relu", [h], f"{adapter}/relu"), f"{adapter}.linear_2")
            x = self.node("Add", [x, h], name)
        return x if pre else self.norm(x, f"{m}.final_layer_norm", eps, name=name)

    def attention(self, x: str, m: str) -> str:
        """Every frame attends to all, with biases of the logits where the encoder has any."""
        parts = [self.linear(x, f"{m}.{part}_proj") for part in "qkv"]
        if "encoder.positions" in self.state:
            parts += ["", "", self.gated_bias(x, m)]
        heads = self.node("MultiHeadAttention", parts, f"{m}/heads", domain=MICROSOFT, num_heads=self.shape.heads)
        return self.linear(heads, f"{m}.out_proj")

    def position_bias(self, x: str) -> None:
        """`position_bias` [1, heads, time, time], which all blocks share, by the distance from query to key.

        Beyond the furthest of the table it is as there.
        """
        table = self.state["encoder.positions"]
        furthest = table.shape[1] // 2
        self.constant("0", np.array(0))
        self.constant("1", np.array(1))
        time = self.node("Squeeze", [self.node("Shape", [x], "time/shape", start=1, end=2)], "time")
        key = self.node("Range", ["0", time, "1"], "key")
        distance = self.node("Sub", [key, self.node("Unsqueeze", [key, "axis1"], "query")], "distance")
        limits = [self.constant(name, np.array(at)) for name, at in (("before", -furthest), ("after", furthest))]
        index = self.node("Add", [self.node("Clip", [distance, *limits], "distance/kept"), "after"], "distance/index")
        bias = self.node("Gather", [self.put("encoder.positions", table), index], "position_bias/heads", axis=1)
        self.node("Unsqueeze", [bias, self.ints("axis0", 0)], "position_bias")

    def gated_bias(self, x: str, m: str) -> str:
        """The bias of one block [batch, heads, time, time]: each query opens it as far as its own gates say.

        WavLM's gates are a · (b · constant - 1) + 2. Both a and b are sigmoids of sums of four projections of a head's
        part of the frame, and a sum of projections is one projection.
        """
        heads, width = self.shape.heads, self.shape.head_dim
        weight, bias = (self.state[f"{m}.gru_rel_pos_linear.{part}"] for part in ("weight", "bias"))
        constant = self.state[f"{m}.gru_rel_pos_const"]
        parts = self.node("Reshape", [x, self.ints("by_head", 0, 0, heads, width)], f"{m}/by_head")
        weight, bias = weight.reshape(2, 4, width).sum(1).T, bias.reshape(2, 4).sum(1)
        gates = self.node("MatMul", [parts, self.put(f"{m}.gates.weight", weight)], f"{m}/gates/product")
        gates = self.node("Add", [gates, self.put(f"{m}.gates.bias", bias)], f"{m}/gates/sum")
        gates = self.node("Sigmoid", [gates], f"{m}/gates")
        a, b = self.split(gates, [f"{m}/gate_a", f"{m}/gate_b"], f"{m}/gates/split", axis=3)
        one, two = (self.constant(f"float_{n}", np.array(n, np.float32)) for n in (1, 2))
        b = self.node("Mul", [b, self.put(f"{m}.gates.constant", constant.reshape(heads, 1))], f"{m}/gate_b/scaled")
        gate = self.node("Mul", [a, self.node("Sub", [b, one], f"{m}/gate_b/moved")], f"{m}/gate/product")
        gate = self.node("Add", [gate, two], f"{m}/gate")
        gate = self.node("Transpose", [gate], f"{m}/gate/heads", perm=[0, 2, 1, 3])
        return self.node("Mul", [gate, "position_bias"], f"{m}/bias")

    def mlp(self, x: str, m: str) -> str:
        """Of which the hidden state is spread as it is made. It is zero where it is padded: GELU(0) = 0."""
        h = self.linear(x, f"{m}.intermediate_dense", spread_out=True)
        return self.linear(self.node("Gelu", [h], f"{m}/gelu"), f"{m}.output_dense", is_spread=True)

    def linear(self, x: str, module: str, *, is_spread: bool = False, spread_out: bool = False) -> str:
        """[batch, time, in] to [batch, time, out].

        is_spread: x has zeros after its rows already, if they are aliased. spread_out: what comes out has.
        """
        weight, bias = self.state[f"{module}.weight"].T, self.state[f"{module}.bias"]
        if is_aliased(len(weight)):
            x = x if is_spread else self.spread(x)
            weight = np.pad(weight, ((0, CACHE_LINE), (0, 0)))
        if spread_out and is_aliased(len(bias)):
            weight, bias = np.pad(weight, ((0, 0), (0, CACHE_LINE))), np.pad(bias, (0, CACHE_LINE))
        y = self.node("MatMul", [x, self.put(f"{module}.weight", weight)], f"{module}/product")
        return self.node("Add", [y, self.put(f"{module}.bias", bias)], module)

    def spread(self, x: str) -> str:
        """A copy with zeros after its rows."""
        if x not in self._spread:
            self._spread.add(x)
            self.node("Pad", [x, self.ints("a_line_more", 0, 0, 0, 0, 0, CACHE_LINE)], f"{x}/spread")
        return f"{x}/spread"

    def norm(self, x: str, module: str, eps: float, name: str = "") -> str:
        """LayerNorm over the channels, called like its module or `name`."""
        return self.node("LayerNormalization", [x, *self.parameters(module)], name or module, epsilon=eps)

    def parameters(self, module: str) -> list[str]:
        """Weight, and bias if there is one, as they are."""
        names = (f"{module}.{part}" for part in ("weight", "bias"))
        return [self.put(name, self.state[name]) for name in names if name in self.state]

    def put(self, name: str, value: Values) -> str:
        """A tensor in the file of weights."""
        self.initializers[name] = self.file.put(name, np.ascontiguousarray(value, np.float32))
        return name
