"""The weights of an encoder's graphs, which lie in one file that all graphs share.

Names are those of Hugging Face's state dict (`conv1.weight`, `layers.0.self_attn.q_proj.weight`, …). Values are as
products take them: the weight of a linear layer is [in, out], the transpose of PyTorch's, and the scale of attention's
logits is part of the query projection, which spares a multiplication in every run.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from voxstrata.encoders.card import ENCODER, ModelFolder
from voxstrata.exporters.graph import onnx_package

if TYPE_CHECKING:
    import onnx

_ALIGNMENT = 4096  # tensors start on page boundaries, so that runtimes can map the file
_LINEAR = tuple(f"{module}.weight" for module in ("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"))


@dataclass(frozen=True)
class EncoderShape:
    """Sizes of a Whisper encoder."""

    layers: int
    d_model: int
    heads: int
    n_mels: int

    @property
    def head_dim(self) -> int:
        return self.d_model // self.heads


class WeightsFile(AbstractContextManager["WeightsFile"]):
    """Writes the weights of a checkpoint into a new file, each when a graph first asks for it. Used as a context.

    state: Hugging Face's state dict of the encoder, as arrays. dtype: of the file.
    """

    def __init__(self, path: Path, state: Mapping[str, NDArray[Any]], shape: EncoderShape, dtype: str) -> None:
        self.shape = shape
        self.dtype = np.dtype(dtype)
        self._path = path
        self._state = state
        self._tensors: dict[str, onnx.TensorProto] = {}
        self._file = path.open("wb")

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def __contains__(self, name: object) -> bool:
        return name in self._state

    def value(self, name: str) -> NDArray[Any]:
        """A weight as graphs take it."""
        value = self._state[name]
        if name.endswith(_LINEAR):
            value = value.T
        return value * self.shape.head_dim**-0.5 if ".q_proj." in name else value

    def tensor(self, name: str) -> onnx.TensorProto:
        """The initializer `name`, which says where in the file the values lie."""
        return self._tensors[name] if name in self._tensors else self.put(name, self.value(name).astype(self.dtype))

    def put(self, name: str, value: NDArray[Any]) -> onnx.TensorProto:
        """Write a tensor that is not the checkpoint's own, in its own dtype."""
        onnx = onnx_package()
        if name not in self._tensors:
            self._file.seek(-(-self._file.tell() // _ALIGNMENT) * _ALIGNMENT)
            place = {"location": self._path.name, "offset": self._file.tell(), "length": value.nbytes}
            self._file.write(value.tobytes())
            tensor_type = onnx.helper.np_dtype_to_tensor_dtype(value.dtype)
            tensor = onnx.TensorProto(name=name, data_type=tensor_type, dims=value.shape)
            tensor.data_location = onnx.TensorProto.EXTERNAL
            for key, entry in place.items():
                tensor.external_data.add(key=key, value=str(entry))
            self._tensors[name] = tensor
        return self._tensors[name]


class StoredWeights:
    """The weights of an exported model, whose plain graph lists the names and places of all."""

    def __init__(self, model: ModelFolder) -> None:
        onnx, card = onnx_package(), model.card
        self.shape = EncoderShape(card.layers, card.d_model, card.heads, card.n_mels)
        self.dtype = np.dtype(card.dtype)
        listed = onnx.load(model.path / ENCODER, load_external_data=False).graph.initializer
        self._tensors = {t.name: t for t in listed if t.data_location == onnx.TensorProto.EXTERNAL}

    def __contains__(self, name: object) -> bool:
        return name in self._tensors

    def tensor(self, name: str) -> onnx.TensorProto:
        """As of `WeightsFile`."""
        return self._tensors[name]


Weights = WeightsFile | StoredWeights
