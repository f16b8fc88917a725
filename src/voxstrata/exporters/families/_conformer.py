"""Conformer blocks as nodes of an ONNX graph, and what an original conformer gives at every block.

A block is half a feed-forward, attention with relative positions, a convolution module, half a feed-forward, a
LayerNorm. w2v-BERT, Seamless and FastConformer differ in names, in positions and in the convolution's normalisation.
Halves, the scale of attention's logits and batch normalisation are part of the weights.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from voxstrata.base.errors import InputError
from voxstrata.exporters.graph import GraphBuilder
from voxstrata.exporters.hub import first_line
from voxstrata.exporters.original import CheckpointFiles
from voxstrata.exporters.reading import brief
from voxstrata.exporters.weights import WeightsFile

Positions = Literal["relative_key", "relative"]
Settings = TypeVar("Settings")
ACTIVATIONS = ("relu", "gelu", "silu", "swish")


@dataclass(frozen=True)
class BlockNames:
    """What a family calls the modules of a block.

    first, second: of a feed-forward, its LayerNorm, the widening and the narrowing product. attention: LayerNorm,
    query, key, value, output. positions: what distances become keys with; then the biases of the query towards keys
    and towards positions. convolution: LayerNorm, pointwise, depthwise, the normalisation after it, pointwise.
    """

    first: tuple[str, str, str]
    attention: tuple[str, str, str, str, str]
    positions: tuple[str, str, str]
    convolution: tuple[str, str, str, str, str]
    second: tuple[str, str, str]
    last: str


@dataclass(frozen=True)
class ConformerShape:
    """A conformer's sizes, and what its configuration chooses.

    positions: "relative_key" is an embedding per clipped distance (Shaw et al. 2018), which `left` and `right` limit;
    "relative" projects sines of the distance (Dai et al. 2019). causal: the depthwise convolution sees no later frame.
    batch_norm: it is followed by batch normalisation, else by a LayerNorm. epsilon: of every LayerNorm in a block.
    """

    names: BlockNames
    layers: int
    d_model: int
    heads: int
    feed_forward: int
    kernel: int
    positions: Positions
    causal: bool
    batch_norm: bool
    activation: str = "silu"
    epsilon: float = 1e-5
    left: int = 0
    right: int = 0

    @property
    def head_dim(self) -> int:
        return self.d_model // self.heads

    @property
    def flops(self) -> tuple[int, int, int]:
        """Of one block, as `Family.block_flops`."""
        d = self.d_model
        distances = 2 * d if self.positions == "relative" else 0  # 2 n of them are projected
        per_frame = 4 * self.feed_forward + 4 * d + distances + 3 * d + self.kernel
        return 0, 2 * d * per_frame, 2 * d * (1 + 2 + 1)  # keys, 2 n distances, values


class ConformerBuilder(GraphBuilder):
    """Builds a conformer block by block, from the tensors of a module of transformers, by their names."""

    def __init__(self, state: Mapping[str, torch.Tensor], weights: WeightsFile, shape: ConformerShape) -> None:
        super().__init__()
        self.state, self.weights, self.shape = state, weights, shape
        self.ints("split_heads", 0, -1, shape.heads, shape.head_dim)
        self.ints("join_heads", 0, -1, shape.d_model)
        self.length = ""  # vector of the frames' number, once there are any
        self.zero, self.one, self.minus_one = (self.ints(f"int_{n}", n) for n in (0, 1, -1))

    def blocks(self, x: str, layers: str, names: Sequence[str]) -> str:
        """As many blocks as there are names, from their input to the last state. layers: prefix of their modules."""
        if names:
            self._prepare_positions(x)
        for k, name in enumerate(names):
            x = self.block(x, f"{layers}.{k}", name)
        return x

    def block(self, x: str, m: str, name: str) -> str:
        """The block below the prefix `m`, to the state `name`."""
        names = self.shape.names
        x = self._half(x, m, names.first)
        x = self.node("Add", [x, self._attention(x, m)], f"{m}/after_attention")
        x = self.node("Add", [x, self._convolution(x, m)], f"{m}/after_convolution")
        return self.layer_norm(self._half(x, m, names.second), f"{m}.{names.last}", name=name)

    def put(self, name: str, value: torch.Tensor) -> str:
        """A tensor in the file of weights."""
        self.initializers[name] = self.weights.put(name, np.ascontiguousarray(value.numpy(), np.float32))
        return name

    def linear(self, x: str, module: str, scale: float = 1.0) -> str:
        """[batch, time, in] to [batch, time, out], by a linear module or a convolution of one frame."""
        y = self._product(x, module, scale)
        bias = f"{module}.bias"
        return self.node("Add", [y, self.put(bias, self.state[bias] * scale)], module) if bias in self.state else y

    def layer_norm(self, x: str, module: str, epsilon: float | None = None, name: str = "") -> str:
        """LayerNorm over the last dimension, called like its module or `name`."""
        parts = [x, *(self.put(f"{module}.{p}", self.state[f"{module}.{p}"]) for p in ("weight", "bias"))]
        epsilon = self.shape.epsilon if epsilon is None else epsilon
        return self.node("LayerNormalization", parts, name or module, axis=-1, epsilon=epsilon)

    def activate(self, x: str, kind: str) -> str:
        if kind in ("silu", "swish"):
            return self.node("Mul", [x, self.node("Sigmoid", [x], f"{x}/sigmoid")], f"{x}/silu")
        return self.node({"relu": "Relu", "gelu": "Gelu"}[kind], [x], f"{x}/{kind}")

    def gated(self, x: str, axis: int) -> str:
        """One half of `x` times the sigmoid of the other."""
        value, gate = self.split(x, [f"{x}/value", f"{x}/gate"], f"{x}/halves", axis)
        return self.node("Mul", [value, self.node("Sigmoid", [gate], f"{gate}/sigmoid")], f"{x}/gated")

    def feed_forward(self, x: str, widen: str, narrow: str, activation: str, scale: float = 1.0) -> str:
        return self.linear(self.activate(self.linear(x, widen), activation), narrow, scale)

    def adapter(self, x: str, m: str, kernel: int, stride: int, activation: str) -> str:
        """A layer that shortens time: both the sum's parts are convolved, then come attention and a feed-forward."""
        parts = []
        for part in ("residual", "self_attn"):
            y = self.layer_norm(x, f"{m}.{part}_layer_norm")
            y = self.node("Transpose", [y], f"{m}.{part}/bdt", perm=[0, 2, 1])
            pads, strides = [stride // 2] * 2, [stride]
            y = self.conv(y, f"{m}.{part}_conv", kernel_shape=[kernel], pads=pads, strides=strides)
            parts.append(self.node("Transpose", [self.gated(y, 1)], f"{m}.{part}/btd", perm=[0, 2, 1]))
        q, k, v = (self.linear(parts[1], f"{m}.self_attn.linear_{p}", self._logit_scale(p)) for p in "qkv")
        y = self._attend(self._heads(q, [0, 2, 1, 3]), self._heads(k, [0, 2, 3, 1]), v, f"{m}.self_attn")
        x = self.node("Add", [self.linear(y, f"{m}.self_attn.linear_out"), parts[0]], f"{m}/after_attention")
        y = self.layer_norm(x, f"{m}.ffn_layer_norm")
        y = self.feed_forward(y, f"{m}.ffn.intermediate_dense", f"{m}.ffn.output_dense", activation)
        return self.node("Add", [y, x], f"{m}/output")

    def conv(self, x: str, module: str, **attributes: Any) -> str:
        """A convolution, whose attributes are ONNX's."""
        parts = (f"{module}.{p}" for p in ("weight", "bias") if f"{module}.{p}" in self.state)
        return self.node("Conv", [x, *(self.put(p, self.state[p]) for p in parts)], module, **attributes)

    def frames(self, x: str) -> str:
        """The vector of the length of [batch, time, …]."""
        return self.node("Shape", [x], f"{x}/frames", start=1, end=2)

    def _prepare_positions(self, x: str) -> None:
        """What all blocks share, from the first state [batch, T, d_model]: 2 T distances, of keys from their queries,
        1 - T … T."""
        s, self.length = self.shape, self.frames(x)
        frames = self.length
        count = self.node("Squeeze", [frames], "count")
        self.node("Concat", [self.ints("keep_two", 0, 0), frames, self.minus_one], "shift/shape", axis=0)
        self.node("Sub", [frames, self.one], "shift/first")
        one = self.constant("scalar_1", np.array(1, np.int64))
        start, end = self.node("Sub", [one, count], "distances/first"), self.node("Add", [count, one], "distances/end")
        distances = self.node("Range", [start, end, one], "distances")
        if s.positions == "relative_key":
            low, high = self.ints("distance/lowest", -s.left), self.ints("distance/highest", s.right)
            clipped = self.node("Min", [self.node("Max", [distances, low], "distances/low"), high], "distances/clipped")
            self.node("Sub", [clipped, low], "positions")
            return
        # transformers' sines are of the query's distance from the key
        away = self.node("Neg", [self.cast(distances, "distances/float", np.float32)], "distances/away")
        away = self.node("Unsqueeze", [away, self.one], "distances/column")
        steps = torch.arange(0, s.d_model, 2, dtype=torch.float32) / s.d_model
        angle = self.node("Mul", [away, self.put("frequencies", (1 / 10000.0**steps)[None])], "angles")
        waves = [self.node(op, [angle], f"angles/{op.lower()}") for op in ("Sin", "Cos")]
        self.node("Concat", waves, "positions", axis=1)

    def _half(self, x: str, m: str, names: tuple[str, str, str]) -> str:
        """`x`, and half of a feed-forward of it."""
        norm, widen, narrow = (f"{m}.{name}" for name in names)
        y = self.feed_forward(self.layer_norm(x, norm), widen, narrow, self.shape.activation, 0.5)
        return self.node("Add", [x, y], f"{narrow}/added")

    def _attention(self, x: str, m: str) -> str:
        norm, query, key, value, out = (f"{m}.{name}" for name in self.shape.names.attention)
        x = self.layer_norm(x, norm)
        scale = self._logit_scale("q")
        if self.shape.positions == "relative":
            product = self._product(x, query, scale)
            to_keys, to_positions = (
                self._query(product, query, f"{m}.{name}", scale) for name in self.shape.names.positions[1:]
            )
        else:
            to_keys = to_positions = self._heads(self.linear(x, query, scale), [0, 2, 1, 3])
        distant = self.node("MatMul", [to_positions, self._position_keys(m)], f"{m}/by_distance")
        keys = self._heads(self.linear(x, key), [0, 2, 3, 1])
        y = self._attend(to_keys, keys, self.linear(x, value), m, self._shifted(distant))
        return self.linear(y, out)

    def _query(self, product: str, module: str, bias: str, scale: float) -> str:
        """Queries with their own bias and another of every head's, [batch, heads, time, head_dim]."""
        own = self.state.get(f"{module}.bias", torch.zeros(1))
        biased = [product, self.put(bias, (self.state[bias].reshape(-1) + own) * scale)]
        return self._heads(self.node("Add", biased, f"{bias}/added"), [0, 2, 1, 3])

    def _position_keys(self, m: str) -> str:
        """Keys of the distances, [head_dim, 2 T] or [heads, head_dim, 2 T]."""
        name, s = f"{m}.{self.shape.names.positions[0]}", self.shape
        weight = self.state[f"{name}.weight"]
        if s.positions == "relative_key":
            keys = self.node("Gather", [self.put(f"{name}.weight", weight), "positions"], f"{name}/keys", axis=0)
            return self.node("Transpose", [keys], f"{name}/keys/t", perm=[1, 0])
        # sines and cosines take turns in transformers' positions; here the cosines follow the sines
        weight = torch.cat([weight.T[0::2], weight.T[1::2]])
        keys = self.node("MatMul", ["positions", self.put(f"{name}.weight", weight)], f"{name}/keys")
        keys = self.node("Reshape", [keys, self.ints("split_keys", -1, s.heads, s.head_dim)], f"{name}/keys/heads")
        return self.node("Transpose", [keys], f"{name}/keys/t", perm=[1, 2, 0])

    def _shifted(self, x: str) -> str:
        """From [batch, heads, T, 2 T] by distance to [batch, heads, T, T] by key.

        Of row i of T, key j is at distance j - i, in column j - i + T - 1. So in one row of all rows it is at
        i (2 T - 1) + j, counted from T - 1.
        """
        flat = self.node("Reshape", [x, self.ints("one_row", 0, 0, -1)], f"{x}/flat")
        flat = self.node("Slice", [flat, "shift/first", self.minus_one, self.ints("int_2", 2)], f"{x}/from_first")
        rows = self.node("Reshape", [flat, "shift/shape"], f"{x}/rows")
        return self.node("Slice", [rows, self.zero, self.length, self.ints("int_3", 3)], f"{x}/by_key")

    def _attend(self, queries: str, keys: str, values: str, m: str, added: str = "") -> str:
        """[batch, time, d_model], the heads joined. added: to the logits."""
        logits = self.node("MatMul", [queries, keys], f"{m}/logits")
        if added:
            logits = self.node("Add", [logits, added], f"{m}/logits/all")
        attention = self.node("Softmax", [logits], f"{m}/attention", axis=-1)
        weighted = self.node("MatMul", [attention, self._heads(values, [0, 2, 1, 3])], f"{m}/heads")
        return self._joined(weighted)

    def _convolution(self, x: str, m: str) -> str:
        s = self.shape
        norm, first, depthwise, after, second = (f"{m}.{name}" for name in s.names.convolution)
        x = self.gated(self.linear(self.layer_norm(x, norm), first), 2)
        x = self.node("Transpose", [x], f"{depthwise}/bdt", perm=[0, 2, 1])
        left = s.kernel - 1 if s.causal else s.kernel // 2
        weight, bias = self._depthwise(depthwise, after)
        parts = [x, self.put(f"{depthwise}.weight", weight)]
        parts += [] if bias is None else [self.put(f"{depthwise}.bias", bias)]
        about = {"kernel_shape": [s.kernel], "pads": [left, s.kernel - 1 - left], "group": s.d_model}
        x = self.node("Transpose", [self.node("Conv", parts, depthwise, **about)], f"{depthwise}/btd", perm=[0, 2, 1])
        x = x if s.batch_norm else self.layer_norm(x, after)
        return self.linear(self.activate(x, s.activation), second)

    def _depthwise(self, module: str, norm: str) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Weight and bias of the depthwise convolution, with the batch normalisation after it."""
        weight, bias = self.state[f"{module}.weight"], self.state.get(f"{module}.bias")
        if not self.shape.batch_norm:
            return weight, bias
        gain, shift, mean, variance = (
            self.state[f"{norm}.{part}"].double() for part in ("weight", "bias", "running_mean", "running_var")
        )
        gain = gain / torch.sqrt(variance + torch.nn.BatchNorm1d(1).eps)
        shift = shift + gain * ((0 if bias is None else bias) - mean)
        return (weight * gain[:, None, None]).float(), shift.float()

    def _product(self, x: str, module: str, scale: float) -> str:
        weight = f"{module}.weight"
        return self.node("MatMul", [x, self.put(weight, self.state[weight].flatten(1).T * scale)], f"{module}/matmul")

    def _heads(self, x: str, order: list[int]) -> str:
        """[batch, time, d_model] as [batch, time, heads, head_dim], then in that order of axes."""
        return self.node("Transpose", [self.node("Reshape", [x, "split_heads"], f"{x}/heads")], f"{x}/t", perm=order)

    def _joined(self, x: str) -> str:
        """[batch, heads, time, head_dim] as [batch, time, d_model]."""
        x = self.node("Transpose", [x], f"{x}/bthd", perm=[0, 2, 1, 3])
        return self.node("Reshape", [x, "join_heads"], f"{x}/joined")

    def _logit_scale(self, part: str) -> float:
        return 1 / math.sqrt(self.shape.head_dim) if part == "q" else 1.0


def block_states(
    module: torch.nn.Module, blocks: torch.nn.ModuleList, features: torch.Tensor
) -> tuple[list[torch.Tensor], torch.Tensor]:
    """What a module of transformers computes from features [1, …], unmasked: the input of the first block, what every
    block gives, and the last hidden state."""
    states: list[torch.Tensor] = []

    def keep(_: object, given: Any, made: Any = None) -> None:
        found = made if made is not None else given
        states.append(found[0] if isinstance(found, tuple) else found)

    hooks = [block.register_forward_hook(keep) for block in blocks]
    hooks.append(blocks[0].register_forward_pre_hook(keep))
    try:
        with torch.inference_mode():
            last = module(features).last_hidden_state
    finally:
        for hook in hooks:
            hook.remove()
    return states, last


def configured(file: Path, kind: Callable[..., Settings], known: Mapping[str, Any]) -> Settings:
    """A configuration of transformers with these settings. Raises InputError where it does not take them."""
    try:
        return kind(**known)
    except Exception as e:
        raise InputError(f"{file}: not a usable configuration ({first_line(e)})") from e


def check_settings(file: Path, config: Any, wanted: Mapping[str, Sequence[object]]) -> None:
    """Raises InputError, naming file and value, for a setting that is none of those for which there is a graph."""
    for key, values in wanted.items():
        if getattr(config, key) not in values:
            raise InputError(
                f"{file}: {key} is {brief(getattr(config, key))}; this encoder is exported with "
                f"{' or '.join(map(str, values))}"
            )


def check_extractor(files: CheckpointFiles, expected: Mapping[str, object]) -> None:
    """Raises InputError where the feature extractor's settings are not what the feature graph computes."""
    for key, value in expected.items():
        if files.preprocessor.get(key, value) != value:
            raise InputError(
                f"{files.folder}: the feature extractor's {key} is {brief(files.preprocessor[key])}, the encoder takes "
                f"{value!r}; correct the file, or remove it if it belongs to another model"
            )


def arrays(module: torch.nn.Module) -> dict[str, NDArray[np.float32]]:
    """A module's tensors by name, without its counters."""
    return {name: value.numpy() for name, value in module.state_dict().items() if value.is_floating_point()}
