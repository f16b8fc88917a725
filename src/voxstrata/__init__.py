"""Per-layer speech-encoder embeddings at corpus scale, and the cross-lingual retrieval analysis on them.

>>> import voxstrata as vs
>>> store = vs.open_store("speech.zarr")  # doctest: +SKIP
>>> vs.retrieve(store)  # doctest: +SKIP

Names are loaded when they are first used, so that the import loads no other package.
docs/api.md has an example of each.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from voxstrata.base.errors import AudioError, InputError, UsageError, VoxstrataError
    from voxstrata.base.progress import Progress, Reporter
    from voxstrata.corpus.source import read_corpus
    from voxstrata.encoders.card import open_model
    from voxstrata.encoders.context import Context
    from voxstrata.encoders.device import Device
    from voxstrata.engine.extraction import extract
    from voxstrata.engine.runtime import Runtime
    from voxstrata.exporters.exporting import export
    from voxstrata.exporters.spec import ExportSpec
    from voxstrata.retrieval.all_pairs import similarity
    from voxstrata.retrieval.ragged import Ragged
    from voxstrata.retrieval.selection import select
    from voxstrata.retrieval.similarities import seqsim
    from voxstrata.store.reader import open_store
    from voxstrata.store.spec import StoreSpec
    from voxstrata.studies.align.measure import AlignOptions, align
    from voxstrata.studies.drift.measure import measure_drift as drift
    from voxstrata.studies.explain.measure import explain
    from voxstrata.studies.phonetics.measure import measure_phonetics as phonetics
    from voxstrata.studies.retrieve.found import evaluate_similarity
    from voxstrata.studies.retrieve.measure import RetrievalOptions, retrieve

    __version__: str

# Where each public name is defined; under another name there where a pair is given.
_PLACES: dict[str, str | tuple[str, str]] = {
    "AlignOptions": "studies.align.measure",
    "AudioError": "base.errors",
    "Context": "encoders.context",
    "Device": "encoders.device",
    "ExportSpec": "exporters.spec",
    "InputError": "base.errors",
    "Progress": "base.progress",
    "Ragged": "retrieval.ragged",
    "Reporter": "base.progress",
    "RetrievalOptions": "studies.retrieve.measure",
    "Runtime": "engine.runtime",
    "StoreSpec": "store.spec",
    "UsageError": "base.errors",
    "VoxstrataError": "base.errors",
    "align": "studies.align.measure",
    "drift": ("studies.drift.measure", "measure_drift"),
    "evaluate_similarity": "studies.retrieve.found",
    "explain": "studies.explain.measure",
    "export": "exporters.exporting",
    "extract": "engine.extraction",
    "open_model": "encoders.card",
    "open_store": "store.reader",
    "phonetics": ("studies.phonetics.measure", "measure_phonetics"),
    "read_corpus": "corpus.source",
    "retrieve": "studies.retrieve.measure",
    "select": "retrieval.selection",
    "seqsim": "retrieval.similarities",
    "similarity": "retrieval.all_pairs",
}

__all__ = [
    "AlignOptions",
    "AudioError",
    "Context",
    "Device",
    "ExportSpec",
    "InputError",
    "Progress",
    "Ragged",
    "Reporter",
    "RetrievalOptions",
    "Runtime",
    "StoreSpec",
    "UsageError",
    "VoxstrataError",
    "__version__",
    "align",
    "drift",
    "evaluate_similarity",
    "explain",
    "export",
    "extract",
    "open_model",
    "open_store",
    "phonetics",
    "read_corpus",
    "retrieve",
    "select",
    "seqsim",
    "similarity",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        value: Any = version("voxstrata")
    elif name in _PLACES:
        place = _PLACES[name]
        module, attribute = place if isinstance(place, tuple) else (place, name)
        value = getattr(import_module(f"voxstrata.{module}"), attribute)
    else:
        raise AttributeError(f"module 'voxstrata' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
