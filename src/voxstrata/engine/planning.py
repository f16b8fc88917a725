"""From a corpus and a model to a plan: for `extract`, which carries it out, and for `estimate`, which only tells."""

from typing import Literal

import numpy as np

from voxstrata.base.errors import InputError
from voxstrata.base.plain import counted
from voxstrata.base.progress import SILENT, Reporter
from voxstrata.corpus import Corpus, Probed, probe_corpus
from voxstrata.encoders import Device, ModelFolder
from voxstrata.encoders.family import Family
from voxstrata.encoders.frames import SAMPLE_RATE
from voxstrata.engine.runtime import DEFAULT_TOKENS, Runtime
from voxstrata.store.plan import MAX_UNIT_BYTES, UNIT_MEGABYTES, Plan, make_plan
from voxstrata.store.spec import StoreSpec

# Batches stay within a unit, and a GPU's are large: 128 MB of large-v3 with all outputs is one or two windows.
GPU_UNIT_BATCHES = 8

Long = Literal["window", "error"]


def plan_corpus(
    corpus: Corpus,
    model: ModelFolder,
    spec: StoreSpec | None = None,
    runtime: Runtime | None = None,
    reporter: Reporter = SILENT,
    *,
    long: Long = "window",
    probed: Probed | None = None,
    unit_rows: int | None = None,
) -> Plan:
    """Plan the extraction of a corpus from what its headers say.

    probed: what `probe_corpus` returned; by default headers are read now. unit_rows: of the store that the corpus is
    added to.

    Raises UsageError for unknown outputs, and InputError when nothing can be read, or, with `long="error"`, when a
    recording is longer than the family's window.
    """
    runtime = runtime or Runtime()
    spec = (spec or StoreSpec()).for_model(model.card, runtime.device)
    probed = probed or probe_corpus(corpus, reporter=reporter)
    if long == "error":
        refuse_long(corpus, probed, model.card.family)
    if (megabytes := runtime.unit_megabytes) is None:
        megabytes = default_unit_megabytes(spec, model.card.d_model, runtime.device)
    card = model.card
    return make_plan(corpus, probed, spec, card.d_model, card.family, unit_megabytes=megabytes, unit_rows=unit_rows)


def default_unit_megabytes(spec: StoreSpec, d_model: int, device: Device) -> float:
    """Of one unit over all outputs: UNIT_MEGABYTES, on a GPU what GPU_UNIT_BATCHES fill if that is more."""
    if device.kind == "cpu":
        return UNIT_MEGABYTES
    rows = GPU_UNIT_BATCHES * DEFAULT_TOKENS[device.kind] / spec.every
    filled = rows * d_model * spec.stored_dtype.itemsize * len(spec.outputs) / 2**20
    return min(max(filled, UNIT_MEGABYTES), MAX_UNIT_BYTES / 2**20)


def refuse_long(corpus: Corpus, probed: Probed, family: Family) -> None:
    """Raise InputError where a recording is longer than the family's window."""
    long = np.flatnonzero(probed.samples > family.window)
    if len(long):
        window = family.window / SAMPLE_RATE
        row, samples = int(long[0]), int(probed.samples[long[0]])
        raise InputError(
            f"{corpus.recording(row).source.name}: {samples / SAMPLE_RATE:.1f} s, over the {window:g} s window "
            f"({counted(len(long), 'recording is', 'recordings are')}); use --long window, or cut them"
        )
