"""A model folder of a family made up for tests: wav2vec 2.0's time axis, no torch, and states that numpy computes too.

A frame of `layer_00` is four means of parts of the 400 samples that it sees; each block adds to a frame the tanh of a
mix of it and its two neighbours. So a state sees a few frames, and pieces of a recording with some overlap give what
the whole gives. `final` alone sees the whole: the mean over all frames is taken from it.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from voxstrata.encoders import card as layout
from voxstrata.encoders.card import ModelCard, write_card
from voxstrata.encoders.family import Family, Output, Step

LAYERS, D, SPAN, HOP = 3, 4, 400, 320
KERNELS, STRIDES = (10, 3, 3, 3, 3, 2, 2), (5, 2, 2, 2, 2, 2, 2)  # wav2vec 2.0's
OUTPUTS = ("layer_00", "layer_01", "layer_02", "layer_03", "final")
_random = np.random.default_rng(3)
FRONT = (_random.standard_normal((D, SPAN)) / 8).astype(np.float32)
MIXES = _random.standard_normal((LAYERS, D, D, 3)).astype(np.float32)

FAMILY = Family(
    name="toy 2.0",
    input="samples",
    normalisation="none",
    features=1,
    steps=tuple(Step(kernel, stride) for kernel, stride in zip(KERNELS, STRIDES, strict=True)),
    window=100 * HOP,
    overlap=8 * HOP,
    contexts=("exact",),
    masks="none",
    norm="pre",
    outputs=tuple(Output(name, f"made up: {name}", None if name == "final" else k) for k, name in enumerate(OUTPUTS)),
    stem_flops=(0, 2 * SPAN * D, 0),
    block_flops=(0, 6 * D * D, 0),
)


def states_of(audio: NDArray[np.float32]) -> dict[str, NDArray[np.float64]]:
    """Every output of a recording by itself, (frames, D): the definition, in float64."""
    frames = (len(audio) - SPAN) // HOP + 1
    x = np.stack([FRONT.astype(np.float64) @ audio[HOP * t : HOP * t + SPAN] for t in range(frames)])
    found = {"layer_00": x}
    for k, mix in enumerate(MIXES.astype(np.float64)):
        around = np.pad(x, ((1, 1), (0, 0)))
        x = x + np.tanh(sum(around[i : i + frames] @ mix[:, :, i].T for i in range(3)))
        found[f"layer_{k + 1:02d}"] = x
    return found | {"final": x - x.mean(axis=0)}


def write_toy(folder: Path, family: Family = FAMILY, outputs: tuple[str, ...] = OUTPUTS, **changes: Any) -> Path:
    """Write the model folder; changes: to its card."""
    folder.mkdir()
    tensors = {"front": FRONT[:, None], **{f"mix_{k}": mix for k, mix in enumerate(MIXES)}}
    stored = [_stored(folder, name, value) for name, value in tensors.items()]
    nodes = [
        helper.make_node("Unsqueeze", ["features", "one"], ["channel"]),
        helper.make_node("Conv", ["channel", "front"], ["x_0"], kernel_shape=[SPAN], strides=[HOP]),
        helper.make_node("Transpose", ["x_0"], ["layer_00"], perm=[0, 2, 1]),
    ]
    for k in range(LAYERS):
        nodes += [
            helper.make_node("Conv", [f"x_{k}", f"mix_{k}"], [f"y_{k}"], kernel_shape=[3], pads=[1, 1]),
            helper.make_node("Tanh", [f"y_{k}"], [f"z_{k}"]),
            helper.make_node("Add", [f"x_{k}", f"z_{k}"], [f"x_{k + 1}"]),
            helper.make_node("Transpose", [f"x_{k + 1}"], [f"layer_{k + 1:02d}"], perm=[0, 2, 1]),
        ]
    nodes += [
        helper.make_node("ReduceMean", [f"x_{LAYERS}"], ["mean"], axes=[2], keepdims=1),
        helper.make_node("Sub", [f"x_{LAYERS}", "mean"], ["centred"]),
        helper.make_node("Transpose", ["centred"], ["final"], perm=[0, 2, 1]),
    ]
    sizes = {name: ["batch", "frames", D] for name in outputs}
    one = numpy_helper.from_array(np.array([1]), "one")
    same = [helper.make_node("Identity", ["audio"], ["features"])]
    card = ModelCard(
        layout.MODEL_FORMAT, "toy", None, "0" * 64, LAYERS, D, 1, 1, "float32", 17, outputs, "final", {},
        {"outputs": dict.fromkeys(outputs, 0.0), "lengths_seconds": [1.0]}, {}, family,
    )  # fmt: skip
    card = replace(card, **changes)
    _write(folder / layout.ENCODER, card, nodes, {"features": ["batch", "samples"]}, sizes, [*stored, one])
    _write(folder / layout.FEATURES, card, same, {"audio": ["batch", "n"]}, {"features": ["batch", "samples"]}, [])
    for name in ("config.json", "preprocessor_config.json"):
        (folder / name).write_text("{}")
    write_card(folder, card)
    return folder


def _stored(folder: Path, name: str, value: NDArray[Any]) -> onnx.TensorProto:
    """A tensor whose values are appended to the file of the weights."""
    file = folder / layout.WEIGHTS
    offset = file.stat().st_size if file.exists() else 0
    data = np.ascontiguousarray(value, np.float32).tobytes()
    with file.open("ab") as f:
        f.write(data)
    tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=value.shape)
    tensor.data_location = TensorProto.EXTERNAL
    for key, found in (("location", file.name), ("offset", offset), ("length", len(data))):
        tensor.external_data.add(key=key, value=str(found))
    return tensor


def _write(
    path: Path,
    card: ModelCard,
    nodes: list[Any],
    inputs: dict[str, list[Any]],
    outputs: dict[str, list[Any]],
    tensors: list[Any],
) -> None:
    def declared(sizes: dict[str, list[Any]]) -> list[Any]:
        return [helper.make_tensor_value_info(name, TensorProto.FLOAT, each) for name, each in sizes.items()]

    graph = helper.make_graph(nodes, "toy", declared(inputs), declared(outputs), tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 10
    helper.set_model_props(model, {"voxstrata": json.dumps(card.to_dict(), sort_keys=True)})
    path.write_bytes(model.SerializeToString())
