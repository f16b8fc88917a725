"""Extraction: plan a corpus, then decode, encode and write it unit by unit, overlapped, resumable."""

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from textwrap import wrap
from typing import Any

from voxstrata.base.errors import UsageError
from voxstrata.base.finding import percent_text
from voxstrata.base.plain import counted, rate_text, shown_as
from voxstrata.base.progress import SILENT, Reporter
from voxstrata.base.tables import clock
from voxstrata.corpus import Corpus, read_corpus
from voxstrata.encoders import ModelFolder, open_model
from voxstrata.encoders.frames import SAMPLE_RATE
from voxstrata.engine.budget import sgemm_rate
from voxstrata.engine.encoder import Encoder
from voxstrata.engine.making import make_encoder
from voxstrata.engine.planning import Long
from voxstrata.engine.run import Extraction, Worked, prepare, writing
from voxstrata.engine.runtime import Runtime
from voxstrata.store.files import Files
from voxstrata.store.part import Part
from voxstrata.store.spec import StoreSpec
from voxstrata.store.writer import refuse_foreign

_LEAST_WAIT, _MOST_WAIT = 0.1, 2.0  # seconds from one look for units of runs that died to the next


@dataclass(frozen=True)
class ExtractReport:
    """What a run did.

    out: the store that was made, resumed or added to.
    utterances, failed: of the whole store; failures: reason by id. audio_seconds: encoded in this run.
    flops: arithmetic of what was encoded in this run (see `voxstrata.engine.budget`).
    seconds: wall seconds of this run, from the first unit to the last. stages: busy seconds of each stage; they
        overlap, and `decode`, `log_mel`, `encode` and `reduce` add up threads.
    resumed_units: committed by an earlier run. overflows: values of the whole store that are beyond float16.
    others_units: committed by other runs meanwhile. pending_units: left to them; while there are any, the store is not
        complete, and `failures` are those that are known.
    sgemm_rate: float32 matrix products in operations per second on the same threads just before the run; None unless
        asked for. passed_over: recordings that the store held before (`append`; the other figures are of what it adds).
    unreachable: by unit, why it is left to a later run (`keep_going`): a recording that could not be read, through no
        fault of its own. They are among `pending_units`.
    """

    out: str
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
    others_units: int = 0
    pending_units: int = 0
    unreachable: dict[int, str] = field(default_factory=dict)

    def __repr__(self) -> str:
        return shown_as(self, f"{counted(self.utterances, 'utterance')}, {self.failed} failed", self.out)

    @property
    def efficiency(self) -> float | None:
        """flops / (seconds × sgemm_rate), the share of what this machine can do; None where that was not measured."""
        return self.flops / (self.seconds * self.sgemm_rate) if self.sgemm_rate else None

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form."""
        return asdict(self) | {"efficiency": self.efficiency}

    def to_text(self) -> str:
        """In a few lines, but for the failures."""
        units = counted(self.units, "unit")
        done = f"{self.utterances - self.failed} of {counted(self.utterances, 'utterance')} in {units}"
        if self.pending_units:  # nothing can be said of utterances yet
            done = f"done: {self.units - self.pending_units} of {units}"
        lines = [f"{self.out}: {done}"]
        if self.passed_over:
            lines.insert(0, f"{self.out}: there already: {counted(self.passed_over, 'recording')}")
            if not self.units:
                return f"{lines[0]}, nothing is new"
        if self.resumed_units:
            lines[-1] += f", {self.resumed_units} of them by an earlier run"
        if self.others_units:
            lines[-1] += f", {self.others_units} by other runs meanwhile"
        if self.unreachable:
            unit, why = next(iter(self.unreachable.items()))
            lines.append(
                f"left: {counted(len(self.unreachable), 'unit')}, since a recording could not be read (unit {unit}: "
                f"{why}); the same command goes on once it can"
            )
        if others := self.pending_units - len(self.unreachable):
            lines.append(f"left to other runs, the last of which completes it: {counted(others, 'unit')}")
        if self.resumed_units == self.units:
            lines.append("nothing was left to do")
        elif not self.audio_seconds:
            lines.append("nothing was left to do here")
        else:
            rate = self.audio_seconds / self.seconds
            took = clock(self.seconds) if self.seconds >= 10 else f"{self.seconds:.1f} s"
            lines += [
                f"{clock(self.audio_seconds)} of audio in {took}: {rate_text(rate)} audio-hours per hour",
                *_stages_text(self.stages),
            ]
            if self.sgemm_rate:
                lines.append(
                    f"efficiency {percent_text(self.efficiency)}: {self.flops / 1e9:,.0f} GFLOP needed, matrix "
                    f"products run at {self.sgemm_rate / 1e9:.0f} GFLOP/s here"
                )
        if self.overflows:
            lines.append(f"{counted(self.overflows, 'value')} beyond float16 stored as infinity")
        return "\n".join(lines)


def _stages_text(stages: Mapping[str, float]) -> list[str]:
    """Busy seconds, in lines that fit a terminal and part no stage from its seconds."""
    each = (f"{name}\xa0{seconds:.1f}\xa0s" for name, seconds in stages.items())
    text = "busy seconds by stage (they overlap): " + ", ".join(each)
    return [line.replace("\xa0", " ") for line in wrap(text, 79, subsequent_indent="  ")]


def extract(
    corpus: Corpus | str | Path,
    model: ModelFolder | str | Path,
    out: str | Path,
    spec: StoreSpec | None = None,
    runtime: Runtime | None = None,
    reporter: Reporter = SILENT,
    *,
    long: Long = "window",
    allow_overflow: bool = False,
    efficiency: bool = False,
    part: Part | None = None,
    durable: bool = True,
    keep_going: bool = False,
    retry_failed: bool = False,
) -> ExtractReport:
    """Extract the embeddings of a corpus into the store `out`; resumes it when it exists, and shares the work with
    other runs that are at it.

    spec: what is kept, in which context it is computed; by default every frame of all outputs as float16, in the own
        context of the model's family (Whisper's is `bucketed`).
    runtime: what the run may use of the machine; by default all cores, no GPU.
    long: "window" cuts recordings longer than the family's window, "error" refuses the corpus naming them.
    allow_overflow: values beyond float16 are stored as infinities; by default they end the run.
    efficiency: this machine's rate of matrix products is measured, too, for the report: about a second on the CPU.
    part: of several runs; it begins with its own share of the units, and does not wait for those of the others.
    durable: what is committed has reached the disk, so that a power cut does not take it back.
    keep_going: a unit of which a recording cannot be read now through no fault of its own (its folder is away, its disk
        fails, no memory) is left to a later run, and the others are done; by default that ends the run.
    retry_failed: units in which a recording failed that can be decoded now are done again, see `reopen_failed`.

    Raises UsageError or InputError before any encoding for unknown outputs, efficiency asked of a GPU, an unusable
    model or corpus, and a store that something else made. During it: no space, float16 overflow. What is committed
    stays; the same call resumes.
    """
    runtime = runtime or Runtime()
    if efficiency and runtime.device.kind != "cpu":
        raise UsageError("efficiency is measured against the CPU's sgemm rate; leave it out on a GPU")
    model = open_model(model)
    corpus = read_corpus(corpus)
    files = Files(out)
    # What can be known is known before minutes of reading headers: a store that is another's, a device that does not
    # start.
    with writing(files):
        refuse_foreign(files)
        encoder = make_encoder(model, (spec or StoreSpec()).for_model(model.card, runtime.device), runtime)
        how: dict[str, Any] = {"long": long, "allow_overflow": allow_overflow, "durable": durable}
        run = prepare(corpus, model, out, spec, runtime, reporter, retry_failed=retry_failed, **how)
        limit = sgemm_rate(encoder.threads) if efficiency else None
        return replace(share(run, encoder, reporter, part, keep_going), sgemm_rate=limit)


def share(
    run: Extraction, encoder: Encoder, reporter: Reporter = SILENT, part: Part | None = None, keep_going: bool = False
) -> ExtractReport:
    """Work on a prepared store beside other runs until nothing is left, and complete it.

    Units that other runs have claimed are waited for, and taken when these die. A part does not wait: it ends when
    other runs are at all that is left, and the last of these completes the store.
    """
    before = len(run.writer.done())
    worked = work_through(run, encoder, reporter, part, patient=part is None, keep_going=keep_going)
    left = run.pending()
    found = run.writer.failures(set(run.order) - set(left)) if left else run.finish()
    return report(run, worked, before, len(left), *found)


def work_through(
    run: Extraction, encoder: Encoder, reporter: Reporter, part: Part | None, patient: bool, keep_going: bool = False
) -> Worked:
    """Work on a prepared store beside other runs until nothing is left, or, not patient, nothing that is free."""
    begin, worked, waited = time.perf_counter(), Worked(), 0.0
    while True:
        more = run.work(encoder, run.claimed(part), reporter, keep_going)
        worked += more
        left = [unit for unit in run.pending() if unit not in run.given_up]
        # looked twice: who only asks who is at a unit holds it for an instant
        if not left or (waited and not more.units and not patient):
            return replace(worked, seconds=time.perf_counter() - begin)
        if more.units:
            waited = 0.0
            continue
        if not waited:
            reporter.step(f"left, with other runs at them: {counted(len(left), 'unit')}")
        waited = min(_MOST_WAIT, 2 * waited or _LEAST_WAIT)
        time.sleep(waited)


def report(
    run: Extraction, worked: Worked, before: int, left: int, failures: Mapping[int, str], overflows: int
) -> ExtractReport:
    """What this run `worked`, and what has become of the store.

    before, left: units that were committed before this run, and that are not. failures, overflows: as `finish` gives.
    """
    ids = run.plan.corpus.table["id"]
    return ExtractReport(
        out=run.writer.files.root,
        utterances=len(ids),
        failed=len(failures),
        failures={ids[i].as_py(): reason for i, reason in sorted(failures.items())},
        units=run.plan.units,
        resumed_units=before,
        audio_seconds=worked.samples / SAMPLE_RATE,
        seconds=worked.seconds,
        stages={stage: round(seconds, 3) for stage, seconds in worked.stages.items()},
        overflows=overflows,
        flops=worked.flops,
        others_units=max(0, run.plan.units - left - before - worked.units),
        pending_units=left,
        unreachable=run.given_up,
    )
