"""From a corpus and a model to a plan: for `extract`, which carries it out, and for `estimate`, which only tells."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

from voxstrata.audio.decode import AudioInfo
from voxstrata.audio.units import SAMPLE_RATE, WINDOW_SAMPLES
from voxstrata.corpus import Corpus, probe_corpus
from voxstrata.engine.session import Device
from voxstrata.errors import InputError
from voxstrata.model import Context, ModelFolder
from voxstrata.model.names import select_outputs
from voxstrata.store.plan import GPU_UNIT_MEGABYTES, UNIT_MEGABYTES, Plan, make_plan
from voxstrata.store.spec import StoreSpec

Probed = tuple[list[AudioInfo | None], dict[int, str]]
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
    probing: Callable[[int, int], None] | None = None,
    probed: Probed | None = None,
) -> tuple[Plan, list[AudioInfo | None]]:
    """Read the headers of a corpus and plan its extraction.

    unit_megabytes: of one unit over all outputs; by default what suits the device.
    probed: what `probe_corpus` returned, where that is known already.

    Returns the plan and what probing said of every row of the corpus. Raises InputError when nothing can be read, or,
    with `long="error"`, when a recording is over 30 s.
    """
    infos, unreadable = probed or probe_corpus(corpus, progress=probing)
    if unit_megabytes is None:
        unit_megabytes = UNIT_MEGABYTES if device is None or device.kind == "cpu" else GPU_UNIT_MEGABYTES
    if long == "error":
        _refuse_long(corpus, infos)
    return make_plan(corpus, infos, unreadable, spec, model.card.d_model, unit_megabytes=unit_megabytes), infos


def _refuse_long(corpus: Corpus, infos: Sequence[AudioInfo | None]) -> None:
    long = [i for i, info in enumerate(infos) if info and info.samples > WINDOW_SAMPLES]
    if long:
        first = infos[long[0]]
        assert first is not None
        raise InputError(
            f"{corpus.absolute(long[0])}: {first.samples / SAMPLE_RATE:.1f} s, over the 30 s window "
            f"({len(long)} recordings are); use --long window, or cut them"
        )
