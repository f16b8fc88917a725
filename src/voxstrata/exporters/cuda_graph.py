"""The exported graphs as an accelerator runs them: without what nobody reads, and without a way over the host."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from voxstrata.base.errors import InputError
from voxstrata.encoders.card import ModelCard

CONTRIB = "com.microsoft"


def onnx_package() -> Any:
    """The package onnx. Raises InputError naming the extra where it is missing."""
    try:
        import onnx
    except ImportError:
        raise InputError(
            "running on a GPU needs the package onnx, to adapt graphs; pip install 'voxstrata[gpu]'"
        ) from None
    return onnx


def cut_log_mel(path: Path) -> bytes:
    """The log-mel graph with one input more, `columns` int64 [1]: how many of the first mel frames it returns."""
    onnx = onnx_package()
    model = onnx.load(path)
    for node in model.graph.node:
        node.output[:] = ["log_mel/all" if o == "log_mel" else o for o in node.output]
    for name, number in (("cut/first", 0), ("cut/axis", 2)):
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.array([number], np.int64), name))
    model.graph.input.append(onnx.helper.make_tensor_value_info("columns", onnx.TensorProto.INT64, [1]))
    operands = ["log_mel/all", "cut/first", "columns", "cut/axis"]
    model.graph.node.append(onnx.helper.make_node("Slice", operands, ["log_mel"], name="cut"))
    return bytes(model.SerializeToString())


def encoder_graph(path: Path, outputs: Sequence[str], card: ModelCard, *, fused: bool) -> bytes:
    """An exported encoder graph with these outputs alone: no node, and no weight, that none of them needs.

    ONNX Runtime itself runs every node, whatever is asked for. Weights stay in their file beside `path`.
    fused: attention is `com.microsoft.MultiHeadAttention`, which on CUDA and in float16 never holds the logits.
    """
    onnx = onnx_package()
    model = onnx.load(path, load_external_data=False)
    if fused:
        _fuse_attention(onnx, model, card)
    graph = model.graph
    needed = set(outputs)
    nodes = []
    for node in reversed(graph.node):  # in topological order, so whoever needs a node's output has been seen
        if needed.intersection(node.output):
            needed.update(node.input)
            nodes.append(node)
    _replace(graph, "node", nodes[::-1])
    _replace(graph, "initializer", [i for i in graph.initializer if i.name in needed])
    _replace(graph, "output", [o for o in graph.output if o.name in outputs])
    return bytes(model.SerializeToString())


def _replace(graph: Any, field: str, items: Sequence[Any]) -> None:
    graph.ClearField(field)
    getattr(graph, field).extend(items)


def _fuse_attention(onnx: Any, model: Any, card: ModelCard) -> None:
    """Put one node in the place of every block's attention.

    Its flash kernel takes nothing that is added to the logits. So the logarithms of the silence groups' sizes are one
    more dimension of the keys, 0 for computed keys, where every query has 1; heads are padded to a multiple of 8.
    """
    helper, graph = onnx.helper, model.graph
    heads, dim = card.heads, card.d_model // card.heads
    cached = any(i.name == "silence_key" for i in graph.input)
    wide = -(-(dim + 1) // 8) * 8 if cached else dim
    made: list[Any] = []

    def node(op: str, inputs: Sequence[str], name: str, **attributes: Any) -> str:
        made.append(helper.make_node(op, inputs, [name], name=name, **attributes))
        return name

    def constant(name: str, value: Any) -> None:
        graph.initializer.append(onnx.numpy_helper.from_array(np.array(value), name))

    def widened(x: str, name: str, fill: str, have: int = dim) -> str:
        """The last of four dimensions filled up to `wide`, and joined with the one before."""
        pads = f"fused/pads_{wide - have}"
        if not any(i.name == pads for i in graph.initializer):
            constant(pads, np.array([0] * 7 + [wide - have], np.int64))
        x = node("Pad", [x, pads, fill], f"{name}/padded")
        return node("Reshape", [x, "fused/flat"], f"{name}/flat")

    if cached:
        for name, shape in (("split", [0, 0, heads, dim]), ("flat", [0, 0, heads * wide])):
            constant(f"fused/{name}", np.array(shape, np.int64))
        for name, numbers in (("axis3", [3]), ("zero", [0]), ("dim", [dim]), ("ones", [1, 1])):
            constant(f"fused/{name}", np.array(numbers, np.int64))
        constant("fused/split_wide", np.array([0, 0, heads, wide], np.int64))
        constant("fused/join", np.array([0, 0, card.d_model], np.int64))
        for name, number in (("0.0", 0), ("1.0", 1)):
            constant(f"fused/{name}", np.array(number, card.dtype))
        # [layers, heads, keys, dim] to [layers, keys, heads · wide]
        key = node("Transpose", ["silence_key/cast"], "fused/silence_key", perm=[0, 2, 1, 3])
        value = node("Transpose", ["silence_value/cast"], "fused/silence_value", perm=[0, 2, 1, 3])
        bias = node("Transpose", ["silence_bias/cast"], "fused/silence_bias/lkh", perm=[0, 2, 1])
        bias = node("Unsqueeze", [bias, "fused/axis3"], "fused/silence_bias")
        key = node("Concat", [key, bias], "fused/silence_key/biased", axis=3)
        silence = {
            "key": widened(key, "fused/silence_key", "fused/0.0", dim + 1),
            "value": widened(value, "fused/silence_value", "fused/0.0"),
        }
        node("Concat", ["batch", "fused/ones"], "fused/batch", axis=0)

    nodes: list[Any] = []
    for old in graph.node:
        block, _, last = old.name.rpartition("/")
        if last != "joined":
            nodes.append(old)
            continue
        m = f"{block}.self_attn"
        q, k, v = f"{m}.q_proj", f"{m}.k_proj/matmul", f"{m}.v_proj"
        if cached:
            layer = f"layer_index_{block.removeprefix('layers.')}"
            parts = []
            for x, name, fill in ((q, "query", "fused/1.0"), (k, "key", "fused/0.0"), (v, "value", "fused/0.0")):
                x = node("Reshape", [x, "fused/split"], f"{block}/fused/{name}")
                x = widened(x, f"{block}/fused/{name}", fill)
                if name in silence:
                    one = node("Gather", [silence[name], layer], f"{block}/fused/silence_{name}", axis=0)
                    one = node("Expand", [one, "fused/batch"], f"{block}/fused/silence_{name}/batch")
                    x = node("Concat", [x, one], f"{block}/fused/{name}/all", axis=1)
                parts.append(x)
            q, k, v = parts
        joined = f"{block}/fused" if cached else old.output[0]
        node("MultiHeadAttention", [q, k, v], joined, domain=CONTRIB, num_heads=heads, scale=1.0)
        if cached:
            x = node("Reshape", [joined, "fused/split_wide"], f"{block}/fused/heads")
            x = node("Slice", [x, "fused/zero", "fused/dim", "fused/axis3"], f"{block}/fused/cut")
            node("Reshape", [x, "fused/join"], old.output[0])
        nodes += made
        made.clear()
    _replace(graph, "node", nodes)
    model.opset_import.append(helper.make_opsetid(CONTRIB, 1))
