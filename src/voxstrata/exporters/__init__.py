"""From a Whisper checkpoint to ONNX graphs with per-layer outputs. Needs the extra `export`."""

from voxstrata.exporters.exporting import ExportSpec, export

__all__ = ["ExportSpec", "export"]
