"""Per-layer speech-encoder embeddings at corpus scale, and the cross-lingual retrieval analysis on them.

>>> import voxstrata as vs
>>> store = vs.open_store("speech.zarr")  # doctest: +SKIP
>>> vs.retrieve(store)  # doctest: +SKIP

Names are loaded when they are first used, so that the import loads no other package.
docs/api.md has an example of each.
"""

from __future__ import annotations

import os
import sys

if sys.platform == "win32":
    raise ImportError("voxstrata runs on Linux and macOS; on Windows use WSL 2, whose Linux runs all of it")

# ONNX Runtime 1.31 looks up a telemetry host and keeps what it would send under the user's cache folder. It reads this
# when it is imported, which happens in modules below this one alone; a user's own setting stays.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

TYPE_CHECKING = False  # `typing` is not imported, nor anything else: an interrupt is answered once this is done
if TYPE_CHECKING:
    from typing import Any

    from voxstrata.alignments.spanning import make_spans
    from voxstrata.base.errors import AudioError as AudioError
    from voxstrata.base.errors import InputError as InputError
    from voxstrata.base.errors import UsageError as UsageError
    from voxstrata.base.errors import VoxstrataError as VoxstrataError
    from voxstrata.base.progress import Progress as Progress
    from voxstrata.base.progress import Reporter as Reporter
    from voxstrata.base.showing import progress_bar as progress_bar
    from voxstrata.cluster.units import ExtractUnits as ExtractUnits
    from voxstrata.corpus.source import read_corpus as read_corpus
    from voxstrata.early_exit.checkpoint import write_early_exit as write_early_exit
    from voxstrata.early_exit.exits import EarlyExit as EarlyExit
    from voxstrata.early_exit.sweeping import sweep as sweep
    from voxstrata.encoders.context import Context as Context
    from voxstrata.encoders.device import Device as Device
    from voxstrata.engine.appending import append as append
    from voxstrata.engine.estimating import estimate as estimate
    from voxstrata.engine.extraction import extract as extract
    from voxstrata.engine.model import open_speech_model
    from voxstrata.engine.run import prepare as prepare
    from voxstrata.engine.runtime import Runtime as Runtime
    from voxstrata.exporters.exporting import export as export
    from voxstrata.exporters.spec import ExportSpec as ExportSpec
    from voxstrata.handover.converting import convert as convert
    from voxstrata.report.page import write_report as write_report
    from voxstrata.retrieval.all_pairs import similarity as similarity
    from voxstrata.retrieval.ragged import Ragged as Ragged
    from voxstrata.retrieval.selection import select as select
    from voxstrata.retrieval.similarities import seqsim as seqsim
    from voxstrata.store.part import Part as Part
    from voxstrata.store.relabel import relabel as relabel
    from voxstrata.store.several import open_by_encoder as open_by_encoder
    from voxstrata.store.several import open_store as open_store
    from voxstrata.store.spec import StoreSpec as StoreSpec
    from voxstrata.store.training import LayerWeights as LayerWeights
    from voxstrata.store.verify import verify as verify
    from voxstrata.studies.align.measure import AlignOptions as AlignOptions
    from voxstrata.studies.align.measure import align as align
    from voxstrata.studies.compared.measure import align_each as align_each
    from voxstrata.studies.compared.measure import retrieve_each as retrieve_each
    from voxstrata.studies.drift.measure import measure_drift
    from voxstrata.studies.explain.measure import explain as explain
    from voxstrata.studies.mine.judging import MiningOptions as MiningOptions
    from voxstrata.studies.mine.measure import mine as mine
    from voxstrata.studies.mine.measure import mine_similarity as mine_similarity
    from voxstrata.studies.phonetics.measure import measure_phonetics
    from voxstrata.studies.retrieve.found import evaluate_similarity as evaluate_similarity
    from voxstrata.studies.retrieve.measure import retrieve as retrieve
    from voxstrata.studies.retrieve.options import RetrievalOptions as RetrievalOptions
    from voxstrata.studies.words.measure import WordOptions as WordOptions
    from voxstrata.studies.words.measure import measure_words

    __version__: str
    drift, open_model, phonetics, spans = measure_drift, open_speech_model, measure_phonetics, make_spans
    words = measure_words

# The public names, by the module that defines them.
_NAMES = {
    "alignments.spanning": "spans",
    "base.errors": "AudioError InputError UsageError VoxstrataError",
    "base.progress": "Progress Reporter",
    "base.showing": "progress_bar",
    "cluster.units": "ExtractUnits",
    "corpus.source": "read_corpus",
    "early_exit.checkpoint": "write_early_exit",
    "early_exit.exits": "EarlyExit",
    "early_exit.sweeping": "sweep",
    "encoders.context": "Context",
    "encoders.device": "Device",
    "engine.appending": "append",
    "engine.estimating": "estimate",
    "engine.extraction": "extract",
    "engine.model": "open_model",
    "engine.run": "prepare",
    "engine.runtime": "Runtime",
    "exporters.exporting": "export",
    "exporters.spec": "ExportSpec",
    "handover.converting": "convert",
    "report.page": "write_report",
    "retrieval.all_pairs": "similarity",
    "retrieval.ragged": "Ragged",
    "retrieval.selection": "select",
    "retrieval.similarities": "seqsim",
    "store.part": "Part",
    "store.relabel": "relabel",
    "store.several": "open_by_encoder open_store",
    "store.spec": "StoreSpec",
    "store.training": "LayerWeights",
    "store.verify": "verify",
    "studies.align.measure": "AlignOptions align",
    "studies.compared.measure": "align_each retrieve_each",
    "studies.drift.measure": "drift",
    "studies.explain.measure": "explain",
    "studies.mine.judging": "MiningOptions",
    "studies.mine.measure": "mine mine_similarity",
    "studies.phonetics.measure": "phonetics",
    "studies.retrieve.found": "evaluate_similarity",
    "studies.retrieve.measure": "retrieve",
    "studies.retrieve.options": "RetrievalOptions",
    "studies.words.measure": "WordOptions words",
}
_PLACES = {name: module for module, names in _NAMES.items() for name in names.split()}
# public under a shorter name
_ALIASES = {
    "drift": "measure_drift",
    "open_model": "open_speech_model",
    "phonetics": "measure_phonetics",
    "spans": "make_spans",
    "words": "measure_words",
}

__all__ = ["__version__", *_PLACES]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        value: Any = version("voxstrata")
    elif name in _PLACES:
        from importlib import import_module

        from voxstrata.base.errors import naming_extras

        with naming_extras():
            value = getattr(import_module(f"voxstrata.{_PLACES[name]}"), _ALIASES.get(name, name))
    else:
        raise AttributeError(f"module 'voxstrata' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return list(__all__)
