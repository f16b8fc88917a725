"""From a corpus and a model to a plan: for `extract`, which carries it out, and for `estimate`, which only tells."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from voxstrata.audio.decode import AudioInfo
from voxstrata.base.errors import InputError
from voxstrata.corpus import Corpus, probe_corpus
from voxstrata.encoders import Context, ModelFolder
from voxstrata.encoders.frames import SAMPLE_RATE, WINDOW_SAMPLES
from voxstrata.encoders.outputs import select_outputs
from voxstrata.engine.sessions import DEFAULT_TOKENS, Device
from voxstrata.store.plan import MAX_UNIT_BYTES, UNIT_MEGABYTES, Plan, make_plan
from voxstrata.store.spec import StoreSpec

# Batches stay within a unit, and a GPU's are large: 128 MB of large-v3 with all outputs is one or two windows.
GPU_UNIT_BATCHES = 8

Probed = tuple[list[AudioInfo | None], dict[int, str]]  # what `probe_corpus` returns
Long = Literal["window", "error"]


def store_spec(
    model: ModelFolder,
    *,
    outputs: str | Sequence[str] = "all",
    context: Context | None = None,
    dtype: Literal["float16", "float32"] = "float16",
    pool: Literal["mean"] | None = None,
    every: int = 1,
    device: Device | None = None,
) -> StoreSpec:
    """What is kept of every utterance, checked. Raises UsageError for unknown outputs and impossible settings."""
    # TensorRT computes a float32 graph in float16 (see DeviceEncoder), which is another result
    arithmetic: Literal["float16", "float32"]
    arithmetic = "float16" if model.card.dtype == "float16" or (device and device.kind == "tensorrt") else "float32"
    chosen = select_outputs(outputs, model.card.outputs)
    return StoreSpec(chosen, dtype, pool, every, context or Context(), arithmetic)


def plan_corpus(
    corpus: Corpus,
    model: ModelFolder,
    spec: StoreSpec,
    *,
    long: Long = "window",
    unit_megabytes: float | None = None,
    device: Device | None = None,
    probed: Probed | None = None,
) -> tuple[Plan, list[AudioInfo | None]]:
    """Plan the extraction of a corpus from what its headers say.

    unit_megabytes: of one unit over all outputs; by default `default_unit_megabytes`.
    probed: what `probe_corpus` returned; by default headers are read now.

    Returns the plan and what probing said of every row of the corpus. Raises InputError when nothing can be read, or,
    with `long="error"`, when a recording is over 30 s.
    """
    infos, unreadable = probed or probe_corpus(corpus)
    if unit_megabytes is None:
        unit_megabytes = default_unit_megabytes(spec, model.card.d_model, device)
    if long == "error":
        _refuse_long(corpus, infos)
    return make_plan(corpus, infos, unreadable, spec, model.card.d_model, unit_megabytes=unit_megabytes), infos


def default_unit_megabytes(spec: StoreSpec, d_model: int, device: Device | None) -> float:
    """Of one unit over all outputs: UNIT_MEGABYTES, on a GPU what GPU_UNIT_BATCHES fill if that is more."""
    if device is None or device.kind == "cpu":
        return UNIT_MEGABYTES
    rows = GPU_UNIT_BATCHES * DEFAULT_TOKENS[device.kind] / spec.every
    filled = rows * d_model * spec.stored_dtype.itemsize * len(spec.outputs) / 2**20
    return min(max(filled, UNIT_MEGABYTES), MAX_UNIT_BYTES / 2**20)


def _refuse_long(corpus: Corpus, infos: Sequence[AudioInfo | None]) -> None:
    long = [i for i, info in enumerate(infos) if info and info.samples > WINDOW_SAMPLES]
    if long:
        first = infos[long[0]]
        assert first is not None
        raise InputError(
            f"{corpus.absolute(long[0])}: {first.samples / SAMPLE_RATE:.1f} s, over the 30 s window "
            f"({len(long)} recordings are); use --long window, or cut them"
        )
