"""From Whisper checkpoints to ONNX models: graphs with per-layer outputs, a silence cache, a card.

What a GPU runs is built here, too. Nothing of this room imports torch but what an export needs.
"""

from voxstrata.exporters.exporting import export
from voxstrata.exporters.spec import ExportSpec

__all__ = ["ExportSpec", "export"]
