"""Extraction: plan a corpus, then decode, encode and write it unit by unit, overlapped, resumable."""

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from voxstrata.base.errors import InputError, UsageError
from voxstrata.base.folders import leaving_no_empty_folder
from voxstrata.base.progress import SILENT, Progress, Reporter
from voxstrata.base.tables import clock
from voxstrata.corpus import Corpus, read_corpus
from voxstrata.encoders import ModelFolder, open_model
from voxstrata.encoders.frames import SAMPLE_RATE, WINDOW_SAMPLES
from voxstrata.engine.budget import EncoderSize, sgemm_rate
from voxstrata.engine.cpu_encoder import CpuEncoder
from voxstrata.engine.cuda_encoder import CudaEncoder
from voxstrata.engine.encoder import Encoder
from voxstrata.engine.pipeline import Batch, CommitStage, DecodeStage, EncodeStage
from voxstrata.engine.planning import Long, plan_corpus
from voxstrata.engine.runtime import Runtime
from voxstrata.engine.sink import UnitSink
from voxstrata.store.files import Files
from voxstrata.store.labels import as_planned
from voxstrata.store.plan import Plan
from voxstrata.store.spec import StoreSpec
from voxstrata.store.writer import PLAN, StoreWriter, refuse_foreign

_NOTICES = 10  # of recordings that did not fail, said after a run


@dataclass(frozen=True)
class ExtractReport:
    """What a run did.

    utterances, failed: of the whole store; failures: reason by id. audio_seconds: encoded in this run.
    flops: arithmetic of what was encoded in this run (see `voxstrata.engine.budget`).
    seconds: wall seconds of this run, from the first unit to the last. stages: busy seconds of each stage; they
        overlap, and `decode`, `log_mel`, `encode` and `reduce` add up threads.
    resumed_units: committed by an earlier run. overflows: values of the whole store that are beyond float16.
    sgemm_rate: float32 matrix products in operations per second on the same threads just before the run; None unless
        asked for. passed_over: recordings that the store held before (`append`; the other figures are of what it adds).
    """

    store: str
    utterances: int
    failed: int
    failures: dict[str, str]
    units: int
    resumed_units: int
    audio_seconds: float
    seconds: float
    stages: dict[str, float]
    overflows: int
    flops: int
    sgemm_rate: float | None = None
    passed_over: int = 0

    @property
    def efficiency(self) -> float | None:
        """flops / (seconds × sgemm_rate), the share of what this machine can do; None where that was not measured."""
        return self.flops / (self.seconds * self.sgemm_rate) if self.sgemm_rate else None

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form."""
        return asdict(self) | {"efficiency": self.efficiency}

    def to_text(self) -> str:
        """In a few lines, but for the failures."""
        lines = [f"{self.store}: {self.utterances - self.failed} of {self.utterances} utterances in {self.units} units"]
        if self.passed_over:
            lines.insert(0, f"{self.store}: {self.passed_over} recordings are there already")
            if not self.units:
                return f"{lines[0]}, nothing is new"
        if self.resumed_units:
            lines[-1] += f", {self.resumed_units} of them by an earlier run"
        if self.resumed_units == self.units:
            lines.append("nothing was left to do")
        else:
            rate = self.audio_seconds / self.seconds
            lines += [
                f"{clock(self.audio_seconds)} of audio in {clock(self.seconds)}: {rate:.0f} audio-hours per hour",
                "busy seconds by stage (they overlap): " + "  ".join(f"{k} {v:.1f} s" for k, v in self.stages.items()),
            ]
            if self.sgemm_rate:
                lines.append(
                    f"efficiency {self.efficiency:.0%}: {self.flops / 1e9:,.0f} GFLOP needed, matrix products run at "
                    f"{self.sgemm_rate / 1e9:.0f} GFLOP/s here"
                )
        if self.overflows:
            lines.append(f"{self.overflows} values beyond float16 were stored as infinities")
        return "\n".join(lines)


def extract(
    corpus: Corpus | str | Path,
    model: ModelFolder | str | Path,
    store: str | Path,
    spec: StoreSpec | None = None,
    runtime: Runtime | None = None,
    reporter: Reporter = SILENT,
    *,
    long: Long = "window",
    allow_overflow: bool = False,
    efficiency: bool = False,
) -> ExtractReport:
    """Extract the embeddings of a corpus into a store; resumes the store when it exists.

    spec: what is kept, in which context it is computed; by default every frame of all outputs as float16, `bucketed`.
    runtime: what the run may use of the machine; by default all cores, no GPU.
    long: "window" cuts recordings over 30 s into windows, "error" refuses the corpus naming them.
    allow_overflow: values beyond float16 are stored as infinities; by default they end the run.
    efficiency: this machine's rate of matrix products is measured, too, for the report: about a second on the CPU.

    Raises UsageError or InputError before any encoding for unknown outputs, efficiency asked of a GPU, an unusable
    model or corpus, and a store that something else made. During it: no space, float16 overflow. What is committed
    stays; the same call resumes.
    """
    corpus = corpus if isinstance(corpus, Corpus) else read_corpus(corpus)
    model = model if isinstance(model, ModelFolder) else open_model(model)
    runtime = runtime or Runtime()
    if efficiency and runtime.device.kind != "cpu":
        raise UsageError("efficiency is measured against the CPU's sgemm rate; leave it out on a GPU")
    spec = (spec or StoreSpec()).for_model(model.card, runtime.device)
    try:
        # What can be known is known before minutes of reading headers: a store that is another's or in use, a device
        # that does not start.
        files = Files(store)
        refuse_foreign(files)
        if files.exists(PLAN):
            with files.lock():
                corpus = as_planned(files, corpus)
        encoder = make_encoder(model, spec, runtime)
        plan = plan_corpus(corpus, model, spec, runtime, reporter, long=long)
        limit = sgemm_rate(encoder.threads) if efficiency else None
        with leaving_no_empty_folder(Path(files.local or "/")), files.lock():
            sink = UnitSink(StoreWriter(store, plan, model.card), allow_overflow)
            return replace(encode_units(encoder, sink, reporter), sgemm_rate=limit)
    except OSError as e:
        raise InputError(
            f"{store}: cannot write ({e}); the units that are committed are safe: mend it and run the same "
            "command to go on"
        ) from e


def make_encoder(model: ModelFolder, spec: StoreSpec, runtime: Runtime) -> Encoder:
    """What encodes on that device. Raises what `Encoder` raises."""
    return (CpuEncoder if runtime.device.kind == "cpu" else CudaEncoder)(model, spec, runtime)


def encode_units(encoder: Encoder, sink: UnitSink, reporter: Reporter) -> ExtractReport:
    """The units that are not committed yet, through the pipeline."""
    begin, writer, plan = time.perf_counter(), sink.writer, sink.plan
    done = writer.done()
    units = _working_order(plan, done)
    tally = _Tally(encoder, plan, units, len(writer.failures(done)[0]), reporter)
    with (
        DecodeStage(plan, units, encoder) as decoding,
        CommitStage(sink) as committing,
        EncodeStage(encoder) as encoding,
    ):
        for batch, rows in encoding.encoded(decoding):
            committing.put(batch, rows)
            del rows  # the committing thread's: not to be held here while the next ones are waited for
            tally.add(batch)
        committing.settle()
    notices = sorted(set(decoding.notices))  # segments of one file say the same
    for notice in notices[:_NOTICES]:
        reporter.warn(plan.corpus.without_root(notice))
    if (more := len(notices) - _NOTICES) > 0:
        reporter.warn(f"and {more} more such recordings")
    failures, overflows = writer.finish()
    seconds, ids = time.perf_counter() - begin, plan.utterances["id"].to_pylist()
    return ExtractReport(
        store=writer.files.root,
        utterances=len(ids),
        failed=len(failures),
        failures={str(ids[i]): reason for i, reason in sorted(failures.items())},
        units=plan.units,
        resumed_units=len(done),
        audio_seconds=tally.encoded / SAMPLE_RATE,
        seconds=seconds,
        stages={k: round(v, 3) for k, v in (decoding.seconds | encoder.seconds | sink.seconds).items()},
        overflows=overflows,
        flops=tally.flops,
    )


def _working_order(plan: Plan, done: set[int]) -> list[int]:
    """The units that are left, those with the longest windows first.

    What memory a run needs it needs at the start, and smaller batches fit into that. The units of a language stay in
    order, since segments of one file are read in the order in which they lie there: an earlier unit counts as long as
    the later ones.
    """
    language, longest = plan.utterances["language"].to_pylist(), [0] * plan.units
    for unit in reversed(range(plan.units)):
        members = plan.members(unit)
        longest[unit] = min(int(plan.samples[members].max()), WINDOW_SAMPLES)
        if unit + 1 < plan.units and language[members[-1]] == language[members[-1] + 1]:
            longest[unit] = max(longest[unit], longest[unit + 1])
    return sorted(set(range(plan.units)) - done, key=lambda unit: (-longest[unit], unit))


class _Tally:
    """Counts the batches that a run has encoded, and tells the reporter.

    encoded: samples. flops: arithmetic they took. Recordings that fail are work that is done, but not encoded.
    """

    def __init__(self, encoder: Encoder, plan: Plan, units: Sequence[int], failed: int, reporter: Reporter) -> None:
        self.encoded = self.flops = 0
        self._size, self._context = EncoderSize.of(encoder.model, plan.spec.outputs), plan.spec.context
        self._units, self._units_total, self._failed, self._reporter = 0, len(units), failed, reporter
        self._samples, self._samples_total = 0, sum(int(plan.samples[plan.members(u)].sum()) for u in units)

    def add(self, batch: Batch) -> None:
        self.encoded += sum(w.samples for w in batch.windows)
        self.flops += sum(self._size.window_flops(batch.frames, self._context, w.frames) for w in batch.windows)
        self._units += batch.last
        self._samples += batch.samples
        self._failed += len(batch.failures)
        audio, total = self._samples / SAMPLE_RATE, self._samples_total / SAMPLE_RATE
        work: dict[str, Any] = {"work": audio, "work_total": total, "rated": audio, "rate_unit": "audio-h/h"}
        units = (self._units, self._units_total, "units")
        self._reporter.progress(Progress("extracting", *units, **work, failed=self._failed))
