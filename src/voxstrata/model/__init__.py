"""What an exported model folder holds and how its contexts work. Reading one needs neither torch nor onnx."""

from voxstrata.model.card import ModelCard, ModelFolder, open_model
from voxstrata.model.context import Context
from voxstrata.model.silence import Silence

__all__ = ["Context", "ModelCard", "ModelFolder", "Silence", "open_model"]
