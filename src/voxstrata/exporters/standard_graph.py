"""The encoder as an ONNX graph, written node by node.

Written rather than traced, because the graph is the product: every residual state is an output, time is dynamic,
attention takes cached keys, and nothing depends on how a version of transformers or torch phrases a layer.
Only standard ONNX operators are used, so that every execution provider can take it; `cpu_graph` has the CPU's own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from voxstrata.encoders.outputs import output_names

OPSET = 20  # the first with Gelu
IR_VERSION = 10  # what opset 20 came with; newer ones only shut out older runtimes
LAYER_NORM_EPS = 1e-5  # torch.nn.LayerNorm's default, which Whisper keeps
# External tensors start on page boundaries, so that runtimes can map the file.
ALIGNMENT = 4096

Array = NDArray[Any]


@dataclass(frozen=True)
class EncoderShape:
    """Sizes of a Whisper encoder."""

    layers: int
    d_model: int
    heads: int
    n_mels: int


class WeightsFile:
    """Writes tensors into one external-data file that several graphs share."""

    def __init__(self, path: Path, dtype: np.dtype[Any]) -> None:
        self.path = path
        self.dtype = dtype
        self._file = path.open("wb")
        self._tensors: dict[str, TensorProto] = {}

    def tensor(self, name: str, array: Array) -> TensorProto:
        """The initializer `name`, its values appended to the file when it is first asked for."""
        if name not in self._tensors:
            a = np.ascontiguousarray(array, dtype=array.dtype if array.dtype.kind == "i" else self.dtype)
            self._file.seek(-(-self._file.tell() // ALIGNMENT) * ALIGNMENT)
            place = {"location": self.path.name, "offset": str(self._file.tell()), "length": str(a.nbytes)}
            self._file.write(a.tobytes())
            proto = TensorProto(name=name, data_type=helper.np_dtype_to_tensor_dtype(a.dtype), dims=a.shape)
            proto.data_location = TensorProto.EXTERNAL
            for key, value in place.items():
                proto.external_data.add(key=key, value=value)
            self._tensors[name] = proto
        return self._tensors[name]

    def close(self) -> None:
        """Flush and close the file."""
        self._file.close()


class GraphBuilder:
    """Collects nodes and initializers under readable, unique names."""

    def __init__(self, weights: WeightsFile | None = None) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: dict[str, TensorProto] = {}
        self._weights = weights

    def node(self, op: str, inputs: Sequence[str], name: str, **attributes: Any) -> str:
        self.nodes.append(helper.make_node(op, list(inputs), [name], name=name, **attributes))
        return name

    def constant(self, name: str, value: Array) -> str:
        self.initializers[name] = onnx.numpy_helper.from_array(value, name)
        return name

    def weight(self, name: str, value: Array) -> str:
        assert self._weights is not None
        self.initializers[name] = self._weights.tensor(name, value)
        return name

    def model(
        self,
        name: str,
        inputs: Sequence[onnx.ValueInfoProto],
        outputs: Sequence[onnx.ValueInfoProto],
    ) -> onnx.ModelProto:
        graph = helper.make_graph(self.nodes, name, inputs, outputs, list(self.initializers.values()))
        versions = {"": OPSET} | {n.domain: 1 for n in self.nodes if n.domain}
        return helper.make_model(
            graph,
            producer_name="voxstrata",
            opset_imports=[helper.make_opsetid(domain, version) for domain, version in versions.items()],
            ir_version=IR_VERSION,
        )


class EncoderBuilder(GraphBuilder):
    """What the graphs of an encoder have in common."""

    def __init__(self, state: Mapping[str, Array], shape: EncoderShape, weights: WeightsFile) -> None:
        super().__init__(weights)
        self.state = state
        self.shape = shape
        self.dtype = helper.np_dtype_to_tensor_dtype(weights.dtype)
        self.head_dim = shape.d_model // shape.heads
        self.ints("zero", 0)

    def ints(self, name: str, *values: int) -> str:
        """A constant int64 vector."""
        return self.constant(name, np.array(values, np.int64))

    def matrix(self, module: str) -> str:
        """A projection's weight, [in, out]."""
        return self.weight(f"{module}.weight", self.state[f"{module}.weight"].T * self._scale(module))

    def bias(self, module: str) -> str:
        return self.weight(f"{module}.bias", self.state[f"{module}.bias"] * self._scale(module))

    def _scale(self, module: str) -> float:
        # the scale of the logits goes into the query projection, one multiplication less per step
        return self.head_dim**-0.5 if module.endswith(".q_proj") else 1.0

    def linear(self, x: str, module: str) -> str:
        y = self.node("MatMul", [x, self.matrix(module)], f"{module}/matmul")
        if f"{module}.bias" in self.state:  # Whisper's key projection has none
            y = self.node("Add", [y, self.bias(module)], module)
        return y

    def layer_norm(self, x: str, module: str, name: str) -> str:
        w = self.weight(f"{module}.weight", self.state[f"{module}.weight"])
        bias = self.weight(f"{module}.bias", self.state[f"{module}.bias"])
        return self.node("LayerNormalization", [x, w, bias], name, axis=-1, epsilon=LAYER_NORM_EPS)

    def stem(self, first: str) -> tuple[str, str]:
        """From `log_mel` to the first residual state, which is called `first`; also the name of its length."""
        x = "log_mel"
        if self.dtype != TensorProto.FLOAT:
            x = self.node("Cast", [x], "log_mel/cast", to=self.dtype)
        for module, stride in (("conv1", 1), ("conv2", 2)):
            w = self.weight(f"{module}.weight", self.state[f"{module}.weight"])
            bias = self.weight(f"{module}.bias", self.state[f"{module}.bias"])
            x = self.node("Conv", [x, w, bias], module, kernel_shape=[3], pads=[1, 1], strides=[stride])
            x = self.node("Gelu", [x], f"{module}/gelu")
        x = self.node("Transpose", [x], "conv2/frames", perm=[0, 2, 1])
        frames = self.node("Shape", [x], "frames", start=1, end=2)
        positions = self.weight("embed_positions.weight", self.state["embed_positions.weight"])
        positions = self.node("Slice", [positions, "zero", frames, "zero"], "embed_positions")
        return self.node("Add", [x, positions], first), frames

    def inputs(self, cached: bool) -> list[onnx.ValueInfoProto]:
        """`log_mel`, and the silence cache."""
        s = self.shape
        shapes: dict[str, list[str | int]] = {"log_mel": ["batch", s.n_mels, "time"]}
        if cached:
            shapes["silence_key"] = shapes["silence_value"] = [s.layers, s.heads, "keys", self.head_dim]
            shapes["silence_bias"] = [s.layers, s.heads, "keys"]
        return [helper.make_tensor_value_info(name, TensorProto.FLOAT, dims) for name, dims in shapes.items()]


def encoder_graph(
    state: Mapping[str, Array],
    shape: EncoderShape,
    weights: WeightsFile,
    *,
    outputs: Sequence[str],
    cached: bool,
    norm_every: bool,
) -> onnx.ModelProto:
    """Build the encoder.

    Parameters
    ----------
    state
        Hugging Face's encoder state dict (`conv1.weight`, `layers.0.self_attn.q_proj.weight`, …) as arrays.
    weights
        Where the weights go, in the graph's dtype.
    outputs
        Which of `output_names(layers)` the graph returns.
    cached
        Whether attention also sees cached keys, given as inputs `silence_key` and `silence_value`
        [layers, heads, keys, head_dim] and `silence_bias` [layers, heads, keys] (float32).
    norm_every
        Apply the final LayerNorm to every `layer_k` that is returned.

    Returns
    -------
    A graph from `log_mel` float32 [batch, n_mels, time], time even and ≤ 3000, to each output
    [batch, time / 2, d_model] in the weights' dtype.
    """
    b = EncoderBuilder(state, shape, weights)
    dtype = b.dtype
    b.ints("split_heads", 0, -1, shape.heads, b.head_dim)
    b.ints("join_heads", 0, -1, shape.d_model)
    x, frames = b.stem("residual_00")
    residual = [x]
    if cached:
        _cached_inputs(b, x, frames, dtype, shape)

    for k in range(shape.layers):
        m = f"layers.{k}"
        a = b.layer_norm(x, f"{m}.self_attn_layer_norm", f"{m}.self_attn_layer_norm")
        q, key, value = (b.linear(a, f"{m}.self_attn.{p}_proj") for p in "qkv")
        q, key, value = (b.node("Reshape", [t, "split_heads"], f"{t}/heads") for t in (q, key, value))
        q, value = (b.node("Transpose", [t], f"{t}/bhtd", perm=[0, 2, 1, 3]) for t in (q, value))
        if cached:
            key = b.node("Transpose", [key], f"{key}/bhtd", perm=[0, 2, 1, 3])
            key = b.node("Concat", [key, _silence(b, "key", k)], f"{m}/keys", axis=2)
            value = b.node("Concat", [value, _silence(b, "value", k)], f"{m}/values", axis=2)
            key = b.node("Transpose", [key], f"{m}/keys/t", perm=[0, 1, 3, 2])
        else:
            key = b.node("Transpose", [key], f"{key}/bhdt", perm=[0, 2, 3, 1])
        logits = b.node("MatMul", [q, key], f"{m}/logits")
        if cached:
            logits = b.node("Add", [logits, _silence_bias(b, k)], f"{m}/logits/biased")
        weighted = b.node("MatMul", [b.node("Softmax", [logits], f"{m}/attention", axis=-1), value], f"{m}/heads")
        joined = b.node("Transpose", [weighted], f"{m}/heads/bthd", perm=[0, 2, 1, 3])
        joined = b.node("Reshape", [joined, "join_heads"], f"{m}/joined")
        x = b.node("Add", [x, b.linear(joined, f"{m}.self_attn.out_proj")], f"{m}/after_attention")
        a = b.layer_norm(x, f"{m}.final_layer_norm", f"{m}.final_layer_norm")
        a = b.node("Gelu", [b.linear(a, f"{m}.fc1")], f"{m}.fc1/gelu")
        x = b.node("Add", [x, b.linear(a, f"{m}.fc2")], f"residual_{k + 1:02d}")
        residual.append(x)

    for name, r in zip(output_names(shape.layers), [*residual, residual[-1]], strict=True):
        if name in outputs:
            if name == "final" or norm_every:
                b.layer_norm(r, "layer_norm", name)
            else:
                b.node("Identity", [r], name)

    # optimum's runtime works out the size of an output axis from its name
    returned = [helper.make_tensor_value_info(n, dtype, ["batch", "time // 2", shape.d_model]) for n in outputs]
    return b.model("whisper_encoder", b.inputs(cached), returned)


def _cached_inputs(b: GraphBuilder, x: str, frames: str, dtype: int, shape: EncoderShape) -> None:
    """Nodes all layers share: the silence inputs in the graph's dtype, the batch size, zeros for computed keys."""
    for part in ("key", "value", "bias"):
        if dtype != TensorProto.FLOAT:
            b.node("Cast", [f"silence_{part}"], f"silence_{part}/cast", to=dtype)
        else:
            b.node("Identity", [f"silence_{part}"], f"silence_{part}/cast")
    batch = b.node("Shape", [x], "batch", start=0, end=1)
    b.constant("ones3", np.ones(3, np.int64))
    b.node("Concat", [batch, "ones3"], "batch/expand", axis=0)
    b.constant("heads_one", np.array([1, shape.heads, 1], np.int64))
    zeros = helper.make_tensor("value", dtype, [1], [0.0])
    b.node("Concat", ["heads_one", frames], "computed/shape", axis=0)
    b.node("ConstantOfShape", ["computed/shape"], "computed/bias", value=zeros)


def _silence(b: GraphBuilder, part: str, layer: int) -> str:
    """One layer's cached keys or values for every member of the batch: [batch, heads, keys, head_dim]."""
    index = b.constant(f"layer_index_{layer}", np.array([layer], np.int64))
    one = b.node("Gather", [f"silence_{part}/cast", index], f"silence_{part}/{layer}", axis=0)
    return b.node("Expand", [one, "batch/expand"], f"silence_{part}/{layer}/batch")


def _silence_bias(b: GraphBuilder, layer: int) -> str:
    """One layer's logit bias, zero for computed keys: [1, heads, 1, frames + keys]."""
    one = b.node("Gather", ["silence_bias/cast", f"layer_index_{layer}"], f"silence_bias/{layer}", axis=0)
    one = b.node("Unsqueeze", [one, b.constant("axis2", np.array([2], np.int64))], f"silence_bias/{layer}/row")
    return b.node("Concat", ["computed/bias", one], f"silence_bias/{layer}/all", axis=3)
