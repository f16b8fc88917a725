"""What is stored of encoder states as a small ONNX graph, so that nothing else leaves an accelerator.

It takes the states of a batch as they are, padded windows and silence included, and gives the rows that are stored, one
window's after the other's. A stored row is one frame, or the mean of several; an input says of which.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import DTypeLike

from voxstrata.exporters.graph import GraphBuilder


def reduction_graph(
    outputs: Sequence[str], computed: DTypeLike, d_model: int, stored: DTypeLike, *, means: bool
) -> bytes:
    """The graph, serialized; `computed` is the dtype of the states, `stored` that of the rows.

    Inputs: each of `outputs` [batch, positions, d_model]; `index` int64 [rows, k], the positions of each stored row,
    counted through the batch; with `means` also `weights` float32 [rows, 1, k]. Without `means`, k is 1.
    Outputs: `stored/NAME` [rows, d_model] of each, and `finite` of the same type [outputs, 1], 0 where all of an output
    is finite and NaN otherwise. Means are taken in float32, as products: CUDA has no fast sum over the middle of three
    dimensions.
    Raises InputError when the package onnx is missing.
    """
    # In the stored type, unless what is computed may be beyond it: where there is no product of float16, ONNX Runtime
    # casts what it multiplies, and leaves out the cast before, by which it became infinite.
    checked = np.dtype(np.float32 if np.dtype(computed) == np.float32 else stored)
    b = GraphBuilder()
    b.ints("flat", -1, d_model)
    b.constant("nought", np.array(0, checked))
    inputs, returned = [b.tensor("index", np.int64, ["rows", "k"])], []
    if means:
        inputs.append(b.tensor("weights", np.float32, ["rows", 1, "k"]))
    for name in outputs:
        inputs.append(b.tensor(name, computed, ["batch", "positions", d_model]))
        x = b.node("Reshape", [name, "flat"], f"{name}/flat")
        x = b.node("Gather", [x, "index"], f"{name}/gathered", axis=0)
        if means:
            x = b.node("MatMul", ["weights", b.cast(x, f"{name}/float32", np.float32)], f"{name}/means")
        x = b.node("Reshape", [x, "flat"], f"{name}/rows")
        x = b.cast(x, f"stored/{name}", stored)
        if checked != np.dtype(stored):
            x = b.cast(x, f"{name}/as_computed", checked)
        # 0 · x is 0 for every finite x and NaN for every other, and one NaN makes the sum NaN
        b.node("ReduceSum", [b.node("Mul", [x, "nought"], f"{name}/nought")], f"{name}/finite")
        returned.append(b.tensor(f"stored/{name}", stored, ["rows", d_model]))
    # one small copy to the host, not many
    x = b.node("Concat", [f"{name}/finite" for name in outputs], "finite/checked", axis=0)
    b.cast(x, "finite", stored)
    returned.append(b.tensor("finite", stored, [len(outputs), 1]))
    return b.model("voxstrata_reductions", inputs, returned)
