"""The exported graphs as an accelerator runs them: without what nobody reads, and without a way over the host."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from voxstrata.errors import InputError


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


def only_outputs(path: Path, outputs: Sequence[str]) -> bytes:
    """An encoder graph with these outputs alone: no node, and no weight, that none of them needs.

    ONNX Runtime itself runs every node, whatever is asked for. Weights stay in their file beside `path`.
    """
    model = onnx_package().load(path, load_external_data=False)
    graph = model.graph
    needed = set(outputs)
    nodes = []
    for node in reversed(graph.node):  # in topological order, so whoever needs a node's output has been seen
        if needed.intersection(node.output):
            needed.update(node.input)
            nodes.append(node)
    kept = {
        "node": nodes[::-1],
        "initializer": [i for i in graph.initializer if i.name in needed],
        "output": [o for o in graph.output if o.name in outputs],
    }
    for field, items in kept.items():
        copies = list(items)
        graph.ClearField(field)
        getattr(graph, field).extend(copies)
    return bytes(model.SerializeToString())
