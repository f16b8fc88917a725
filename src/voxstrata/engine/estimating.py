"""What extracting a corpus will take, from the headers of its recordings alone."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from voxstrata.base.plain import counted, shown_as, size_in_words, time_in_words
from voxstrata.base.progress import SILENT, Reporter
from voxstrata.base.tables import aligned
from voxstrata.corpus import Corpus, Probed, read_corpus
from voxstrata.encoders import ModelFolder, open_model
from voxstrata.encoders.frames import SAMPLE_RATE
from voxstrata.engine.budget import Work, arithmetic_of
from voxstrata.engine.measuring import Record
from voxstrata.engine.planning import Long, plan_corpus
from voxstrata.engine.runtime import Runtime
from voxstrata.store.shard import ShardLayout
from voxstrata.store.spec import StoreSpec


@dataclass(frozen=True)
class Estimate:
    """What `extract` would do with the same options.

    recordings: of the corpus. failures: why headers cannot be read, by id. audio_seconds: of the others.
    windows: of at most `window_seconds`, the family's window. tokens: computed positions. flops: see
    `voxstrata.engine.budget`. rows: of every output.
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
    context: str
    bytes_per_output: int
    bytes: int
    seconds: float | None
    window_seconds: float = 30.0

    def __repr__(self) -> str:
        return shown_as(self, f"{counted(self.recordings, 'recording')}: {self.in_words()}")

    def to_text(self) -> str:
        """Recordings, work and storage, in tables; the time is told by `in_words`."""
        readable = self.recordings - len(self.failures)
        about = {
            "recordings": f"{readable:,} of {self.recordings:,} readable, {time_in_words(self.audio_seconds)} of audio",
            "units": f"{self.units:,}",
            "windows": f"{self.windows:,} of at most {self.window_seconds:g} s, {self.context}",
            "tokens": f"{self.tokens:,} positions to compute, {self.flops / 1e12:,.1f} TFLOP",
        }
        rows = [[name, f"{self.rows:,}", f"{self.bytes_per_output / 1e6:,.1f}"] for name in self.outputs]
        rows.append(["all", f"{self.rows * len(self.outputs):,}", f"{self.bytes / 1e6:,.1f}"])
        lines = [f"  {k:<12}{v}" for k, v in about.items()]
        return "\n".join([*lines, "", aligned(["output", "rows", "MB on disk"], rows)])

    def in_words(self) -> str:
        """The expected time, where it is known, and the storage: "3 h 10 min, 41 GB on disk"."""
        size = f"{size_in_words(self.bytes)} on disk"
        return size if self.seconds is None else f"{time_in_words(self.seconds)}, {size}"


def estimate(
    corpus: Corpus | str | Path,
    model: ModelFolder | str | Path,
    spec: StoreSpec | None = None,
    runtime: Runtime | None = None,
    record: Record | None = None,
    reporter: Reporter = SILENT,
    *,
    long: Long = "window",
    probed: Probed | None = None,
) -> Estimate:
    """Plan what `extract` would do with the same corpus, model, spec and runtime.

    corpus, model: paths, or what `read_corpus` and `open_model` gave.
    record: what `bench` measured; the time is the arithmetic at the operations per second that it reached in that
    context. probed: what `probe_corpus` returned, where headers were read already.
    Raises what planning raises: UsageError for unknown outputs, InputError for a corpus of which nothing can be read.
    """
    corpus, model = read_corpus(corpus), open_model(model)
    plan = plan_corpus(corpus, model, spec, runtime, reporter, long=long, probed=probed)
    spec = plan.spec
    work = Work.of(plan, arithmetic_of(model, spec.outputs))
    seconds = work.flops / record.contexts[spec.context.mode].flops_per_second if record else None
    layout = ShardLayout(plan.chunk_rows, plan.unit_rows, model.card.d_model * spec.stored_dtype.itemsize)
    used = zip(*(x.tolist() for x in np.unique(plan.used, return_counts=True)), strict=True)
    per_output = sum(n * layout.size(rows) for rows, n in used)
    reasons = plan.probed.failures
    ids = plan.corpus.table["id"].take(pa.array(list(reasons), pa.int64())).to_pylist()
    return Estimate(
        recordings=len(corpus),
        failures=dict(zip(map(str, ids), reasons.values(), strict=True)),
        audio_seconds=int(plan.samples.sum()) / SAMPLE_RATE,
        units=plan.units,
        windows=work.windows,
        tokens=work.tokens,
        flops=work.flops,
        rows=int(plan.length.sum()),
        outputs=tuple(spec.outputs),
        context=spec.context.mode,
        bytes_per_output=per_output,
        bytes=per_output * len(spec.outputs),
        seconds=seconds,
        window_seconds=plan.family.window / SAMPLE_RATE,
    )
