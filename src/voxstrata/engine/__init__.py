"""The batched runner: audio through ONNX Runtime into a store."""

from voxstrata.engine.cpu_encoder import Encoder
from voxstrata.engine.cuda_encoder import DeviceEncoder
from voxstrata.engine.extraction import ExtractReport, Progress, extract
from voxstrata.engine.sessions import Device

__all__ = ["Device", "DeviceEncoder", "Encoder", "ExtractReport", "Progress", "extract"]
