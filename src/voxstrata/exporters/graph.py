"""An ONNX graph under construction: nodes, constants and inputs under readable, unique names.

The package onnx is imported when a graph is begun, not with this module. Commands that build no graph do without it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from voxstrata.base.errors import InputError

if TYPE_CHECKING:
    import onnx

OPSET = 20  # the first with Gelu
MICROSOFT = "com.microsoft"  # the domain of ONNX Runtime's own operators
_IR_VERSION = 10  # what opset 20 came with; newer ones only shut out older runtimes

Dims = Sequence[str | int | None]  # of a tensor; a name or None where the size is open


def onnx_package() -> Any:
    """The package onnx. Raises InputError naming the extra where it is missing."""
    try:
        import onnx
    except ImportError:
        raise InputError("a GPU's graphs are built with the package onnx; pip install 'voxstrata[gpu]'") from None
    return onnx


class GraphBuilder:
    """Collects the nodes and constants of one graph. Raises InputError when the package onnx is missing."""

    def __init__(self) -> None:
        self.onnx = onnx_package()
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: dict[str, onnx.TensorProto] = {}

    def node(self, op: str, inputs: Sequence[str], name: str, **attributes: Any) -> str:
        """Add a node; its name is also the name of its output, which is returned."""
        self.nodes.append(self.onnx.helper.make_node(op, list(inputs), [name], name=name, **attributes))
        return name

    def split(self, x: str, names: Sequence[str], name: str, axis: int) -> list[str]:
        """Split `x` along `axis` into equal parts, which are called `names`."""
        parts = {"axis": axis, "num_outputs": len(names)}
        self.nodes.append(self.onnx.helper.make_node("Split", [x], list(names), name=name, **parts))
        return list(names)

    def cast(self, x: str, name: str, dtype: DTypeLike) -> str:
        """`x` in another type."""
        return self.node("Cast", [x], name, to=self.type_of(dtype))

    def constant(self, name: str, value: NDArray[Any]) -> str:
        """A constant. Defining it again under its name is free, so it is defined where it is used."""
        self.initializers[name] = self.onnx.numpy_helper.from_array(value, name)
        return name

    def ints(self, name: str, *values: int) -> str:
        """A constant int64 vector."""
        return self.constant(name, np.array(values, np.int64))

    def tensor(self, name: str, dtype: DTypeLike, dims: Dims) -> onnx.ValueInfoProto:
        """The declaration of an input or output."""
        return self.onnx.helper.make_tensor_value_info(name, self.type_of(dtype), dims)

    def model(self, name: str, inputs: Sequence[onnx.ValueInfoProto], outputs: Sequence[onnx.ValueInfoProto]) -> bytes:
        """The finished graph, serialized."""
        helper = self.onnx.helper
        graph = helper.make_graph(self.nodes, name, inputs, outputs, list(self.initializers.values()))
        versions = {"": OPSET} | {n.domain: 1 for n in self.nodes if n.domain}
        opsets = [helper.make_opsetid(domain, version) for domain, version in versions.items()]
        about = {"producer_name": "voxstrata", "opset_imports": opsets, "ir_version": _IR_VERSION}
        return bytes(helper.make_model(graph, **about).SerializeToString())

    def type_of(self, dtype: DTypeLike) -> int:
        """ONNX's number for a numpy dtype."""
        return int(self.onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype)))
