"""From Whisper checkpoints to ONNX models: graphs with per-layer outputs, a silence cache, a card.

`export` is loaded when it is first used: the graphs that a GPU runs are built without torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from voxstrata.exporters.exporting import ExportSpec, export

__all__ = ["ExportSpec", "export"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'voxstrata.exporters' has no attribute {name!r}")
    from voxstrata.exporters import exporting

    return getattr(exporting, name)
