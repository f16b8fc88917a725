"""The batched runner: audio through ONNX Runtime into a store."""

from voxstrata.encoders.device import Device
from voxstrata.engine.cpu_encoder import CpuEncoder
from voxstrata.engine.cuda_encoder import CudaEncoder
from voxstrata.engine.encoder import Encoder
from voxstrata.engine.extraction import ExtractReport, extract
from voxstrata.engine.runtime import Runtime

__all__ = ["CpuEncoder", "CudaEncoder", "Device", "Encoder", "ExtractReport", "Runtime", "extract"]
