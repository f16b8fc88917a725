"""What an exported model folder holds and how its contexts work. Reading one needs neither torch nor onnx."""

from voxstrata.encoders.card import ModelCard, ModelFolder, open_model
from voxstrata.encoders.context import Context
from voxstrata.encoders.device import Device
from voxstrata.encoders.silence import Silence

__all__ = ["Context", "Device", "ModelCard", "ModelFolder", "Silence", "open_model"]
