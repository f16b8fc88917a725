"""What extracting a corpus will take, from the headers of its recordings alone."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from voxstrata.corpus import Corpus
from voxstrata.encoders import ModelFolder
from voxstrata.encoders.frames import SAMPLE_RATE
from voxstrata.engine.budget import EncoderSize, Work
from voxstrata.engine.measuring import Record
from voxstrata.engine.planning import Long, Probed, plan_corpus
from voxstrata.engine.sessions import Device
from voxstrata.store.shard import shard_bytes
from voxstrata.store.spec import StoreSpec


@dataclass(frozen=True)
class Estimate:
    """What `extract` would do with the same options.

    recordings: of the corpus. failures: why headers cannot be read, by id. audio_seconds: of the others.
    windows: of at most 30 s. tokens: computed positions. flops: see `voxstrata.engine.budget`. rows: of every output.
    bytes_per_output, bytes: of the shards on disk, to the byte when every recording can be read and no 1 MB chunk is
    all zeros; the files beside them are not counted.
    seconds: expected wall time at the rate that was measured on this machine; None where it was not.
    """

    recordings: int
    failures: dict[str, str]
    audio_seconds: float
    units: int
    windows: int
    tokens: int
    flops: int
    rows: int
    outputs: tuple[str, ...]
    mode: str
    bytes_per_output: int
    bytes: int
    seconds: float | None

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form."""
        return asdict(self)


def estimate(
    corpus: Corpus,
    model: ModelFolder,
    spec: StoreSpec,
    record: Record | None = None,
    *,
    long: Long = "window",
    unit_megabytes: float | None = None,
    device: Device | None = None,
    probed: Probed | None = None,
) -> Estimate:
    """Plan the extraction of `corpus` as `spec` says, on `device` (by default the CPU).

    probed: what `probe_corpus` returned, where headers were read already.
    The time is the arithmetic at the operations per second that `record` (of `bench`) reached in that context.
    Raises what planning raises: InputError for a corpus of which nothing can be read.
    """
    plan, _ = plan_corpus(corpus, model, spec, long=long, unit_megabytes=unit_megabytes, device=device, probed=probed)
    work = Work.of(plan, EncoderSize.of(model, spec.outputs))
    seconds = None
    if record:
        seconds = work.flops / record.modes[spec.context.mode].flops_per_second
    row_bytes = model.card.d_model * spec.stored_dtype.itemsize
    per_output = sum(
        shard_bytes(plan.rows_used(unit), row_bytes, plan.chunk_rows, plan.unit_rows) for unit in range(plan.units)
    )
    ids, reasons = (plan.utterances[c].to_pylist() for c in ("id", "failure"))
    return Estimate(
        recordings=len(ids),
        failures={str(i): r for i, r in zip(ids, reasons, strict=True) if r is not None},
        audio_seconds=int(plan.samples.sum()) / SAMPLE_RATE,
        units=plan.units,
        windows=work.windows,
        tokens=work.tokens,
        flops=work.flops,
        rows=int(plan.length.sum()),
        outputs=spec.outputs,
        mode=spec.context.mode,
        bytes_per_output=per_output,
        bytes=per_output * len(spec.outputs),
        seconds=seconds,
    )
