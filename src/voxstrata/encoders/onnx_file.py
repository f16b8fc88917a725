"""What an ONNX file says of itself, read without running, loading or needing anything else.

A graph may come from a stranger, and ONNX Runtime runs what it is given: a Loop without end, operators of libraries it
loads, weights from other folders. So a graph is looked at first, as protocol buffers lie in a file (the field numbers
are those of onnx.proto), and only what the exporters here may write is let through.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from voxstrata.base.errors import InputError
from voxstrata.base.opening import read_regular

# All that the exporters put into graphs: none of them repeats, branches, or reads a file.
_NAMES = """
Add Cast Concat ConstantOfShape Conv Div Expand Gather Gelu Identity LayerNormalization Log MatMul Max Mul Pad ReduceMax
ReduceSum Reshape Shape Slice Softmax Split Sub Transpose Unsqueeze
com.microsoft.DynamicQuantizeMatMul com.microsoft.MultiHeadAttention
"""
_NAMES_OF_OTHERS = """
Abs And AveragePool BatchNormalization CastLike Ceil Clip Constant Cos CumSum Einsum Elu Equal Erf Exp Flatten Floor
GatherElements GatherND Gemm GlobalAveragePool Greater GreaterOrEqual GroupNormalization HardSigmoid
InstanceNormalization IsNaN LeakyRelu Less LessOrEqual LogSoftmax MaxPool Min Mod Neg Not Or Pow Range Reciprocal
ReduceL2 ReduceMean ReduceMin ReduceProd ReduceSumSquare Relu Round ScatterElements ScatterND Sigmoid Sign Sin Size
Softplus Sqrt Squeeze Swish Tanh Tile Trilu Where Xor
com.microsoft.BiasGelu com.microsoft.FusedMatMul com.microsoft.GatedRelativePositionBias com.microsoft.Gelu
com.microsoft.QuickGelu com.microsoft.SkipLayerNormalization
"""
OPERATORS = frozenset(_NAMES.split())  # of Whisper's graphs
FAMILY_OPERATORS = OPERATORS | frozenset(_NAMES_OF_OTHERS.split())  # of other families'
_MOST_BYTES = 1 << 26  # of a graph without its weights; large-v3's have less than one MB
_ITEM_BYTES = {1: 4, 2: 1, 3: 1, 6: 4, 7: 8, 9: 1, 10: 2}  # by ONNX's number of a type: float, uint8, … float16


Wire = int | memoryview  # a field's value


@dataclass(frozen=True)
class OnnxFile:
    """inputs, outputs: their sizes by name, None where one is open. notes: the file's metadata. external: of each
    tensor that lies elsewhere the file's name and the bytes it ends at. nodes: how many."""

    inputs: Mapping[str, tuple[int | None, ...]]
    outputs: Mapping[str, tuple[int | None, ...]]
    notes: Mapping[str, str]
    external: Mapping[str, tuple[str, int]]
    nodes: int


def read_onnx(path: Path, operators: frozenset[str] = OPERATORS) -> OnnxFile:
    """Raises InputError for a file that is damaged, or holds what no exporter here writes; operators: that it may."""
    try:
        return _read(memoryview(read_regular(path, _MOST_BYTES)), operators)
    except (ValueError, IndexError, RecursionError) as e:
        raise InputError(f"{path}: no graph that `voxstrata export` writes ({e}); export the model again") from None


def cut_onnx(path: Path, outputs: Sequence[str]) -> bytes:
    """The graph of a file with these outputs alone, and what they need.

    ONNX Runtime computes every node of a graph, whatever is asked for. Raises InputError as `read_onnx`.
    """
    try:
        data = memoryview(read_regular(path, _MOST_BYTES))
        parts = (_cut(value, outputs) if number == 7 else bytes(raw) for number, value, raw in _raw_fields(data))
        return b"".join(parts)
    except (ValueError, IndexError) as e:
        raise InputError(f"{path}: no graph that `voxstrata export` writes ({e}); export the model again") from None


def _cut(graph: Wire | None, outputs: Sequence[str]) -> bytes:
    """The field of a model that holds its graph, cut."""
    if not isinstance(graph, memoryview):
        raise ValueError("damaged")
    needed, kept, everything = set(outputs), list[memoryview](), list(_raw_fields(graph))
    for number, value, raw in reversed(everything):  # a node comes after those that it takes from
        about = _parts(value) if number in (1, 5, 12, 13) and value is not None else {}
        if number == 1:
            keep = any(_text([name]) in needed for name in about.get(2, []))
            needed |= {_text([name]) for name in about.get(1, [])} if keep else set()
        elif number == 12:
            keep = _text(about.get(1, [])) in outputs
        else:
            keep = number not in (5, 13)
        kept += [raw] if keep else []
    tensors = (raw for number, value, raw in everything if number == 5 and value is not None and _name(value) in needed)
    body = b"".join([*map(bytes, reversed(kept)), *map(bytes, tensors)])
    return bytes([7 << 3 | 2]) + _as_varint(len(body)) + body


def _name(tensor: Wire) -> str:
    return _text(_parts(tensor).get(8, []))


def _as_varint(number: int) -> bytes:
    low = [number >> shift & 127 for shift in range(0, max(1, number.bit_length()), 7)]
    return bytes([*(part | 128 for part in low[:-1]), low[-1]])


def _fields(data: memoryview) -> Iterator[tuple[int, Wire]]:
    """Number and value of each field of a message; fixed numbers are passed over."""
    return ((number, value) for number, value, _ in _raw_fields(data) if value is not None)


def _raw_fields(data: memoryview) -> Iterator[tuple[int, Wire | None, memoryview]]:
    """Number, value and all bytes of each field of a message; fixed numbers have no value."""
    at = 0
    while (begin := at) < len(data):
        key, at = _varint(data, at)
        kind = key & 7
        if kind == 0:
            value, at = _varint(data, at)
            yield key >> 3, value, data[begin:at]
            continue
        size, at = _varint(data, at) if kind == 2 else ({1: 8, 5: 4}.get(kind, -1), at)
        if size < 0 or at + size > len(data):
            raise ValueError("damaged")
        yield key >> 3, data[at : at + size] if kind == 2 else None, data[begin : at + size]
        at += size


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    value = shift = 0
    while shift < 70:
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
        shift += 7
    raise ValueError("damaged")


def _parts(data: Wire) -> dict[int, list[Wire]]:
    if isinstance(data, int):
        raise ValueError("damaged")
    found: dict[int, list[Wire]] = {}
    for number, value in _fields(data):
        found.setdefault(number, []).append(value)
    return found


def _text(values: list[Wire]) -> str:
    value = values[-1] if values else b""
    if isinstance(value, int):
        raise ValueError("damaged")
    return bytes(value).decode("utf-8")


def _number(values: list[Wire]) -> int:
    value = values[-1] if values else 0
    if not isinstance(value, int):
        raise ValueError("damaged")
    return value


def _read(data: memoryview, operators: frozenset[str]) -> OnnxFile:
    model = _parts(data)
    if model.keys() - {1, 2, 3, 4, 5, 6, 7, 8, 14} or len(model.get(7, [])) != 1:
        raise ValueError("it holds functions, training, or no graph")
    graph = _parts(model[7][0])
    if graph.keys() - {1, 2, 5, 10, 11, 12, 13}:
        raise ValueError("its graph holds what ours do not")
    for each in graph.get(1, []):
        node = _parts(each)
        name = ".".join(filter(None, (_text(node.get(7, [])), _text(node.get(4, [])))))
        if name not in operators:
            raise ValueError(f"it has the operator {name[:60]!a}")
        for attribute in map(_parts, node.get(5, [])):
            if attribute.keys() & {6, 11}:
                raise ValueError(f"its {name} has a graph of its own")
            if any(_outside(tensor) for tensor in attribute.get(5, []) + attribute.get(10, [])):
                raise ValueError(f"its {name} takes a constant from another file")
    return OnnxFile(
        dict(map(_declared, graph.get(11, []))),
        dict(map(_declared, graph.get(12, []))),
        {_text(entry.get(1, [])): _text(entry.get(2, [])) for entry in map(_parts, model.get(14, []))},
        dict(filter(None, map(_outside, graph.get(5, [])))),
        len(graph.get(1, [])),
    )


def _declared(data: Wire) -> tuple[str, tuple[int | None, ...]]:
    """Name and sizes of an input or output."""
    about = _parts(data)
    kind = _parts(_parts(about[2][-1])[1][-1]) if 2 in about and 1 in _parts(about[2][-1]) else {}
    shape = _parts(kind[2][-1]) if 2 in kind else {}
    sizes = (_parts(size) for size in shape.get(1, []))
    return _text(about.get(1, [])), tuple(_number(size[1]) if 1 in size else None for size in sizes)


def _outside(data: Wire) -> tuple[str, tuple[str, int]] | None:
    """Of a tensor that lies in another file: its name, that file and where it ends in it; None for others."""
    tensor = _parts(data)
    name, entries = _text(tensor.get(8, [])), [_parts(entry) for entry in tensor.get(13, [])]
    if not entries and not _number(tensor.get(14, [])):
        return None
    place = {_text(entry.get(1, [])): _text(entry.get(2, [])) for entry in entries}
    sizes: list[int] = []
    for size in tensor.get(1, []):  # one by one, or packed
        at = 0
        while not isinstance(size, int) and at < len(size):
            one, at = _varint(size, at)
            sizes.append(one)
        sizes += [size] if isinstance(size, int) else []
    offset, length = (int(place.get(key, "0")[:20]) for key in ("offset", "length"))
    if length != math.prod(sizes) * _ITEM_BYTES.get(_number(tensor.get(2, [])), 0) or offset < 0:
        raise ValueError(f"{name[:60]!a} is {length} bytes, which is not its size")
    return name, (place.get("location", ""), offset + length)
