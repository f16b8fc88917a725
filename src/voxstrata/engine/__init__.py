"""The batched runner: audio through ONNX Runtime into a store."""

from voxstrata.engine.device import DeviceEncoder
from voxstrata.engine.encoder import Encoder
from voxstrata.engine.extract import ExtractReport, Progress, extract
from voxstrata.engine.session import Device

__all__ = ["Device", "DeviceEncoder", "Encoder", "ExtractReport", "Progress", "extract"]
