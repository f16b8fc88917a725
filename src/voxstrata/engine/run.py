"""An extraction in three: prepared once, worked on by whoever takes units, finished by whoever finds all committed."""

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow.compute as pc

from voxstrata.base.errors import InputError
from voxstrata.base.folders import leaving_no_empty_folder
from voxstrata.base.progress import SILENT, Reporter
from voxstrata.corpus import Corpus, read_corpus
from voxstrata.encoders import ModelFolder, open_model
from voxstrata.engine.encoder import Encoder
from voxstrata.engine.making import make_encoder
from voxstrata.engine.pipeline import CommitStage, DecodeStage, EncodeStage
from voxstrata.engine.planning import Long, plan_corpus, refuse_long
from voxstrata.engine.retrying import reopen_failed
from voxstrata.engine.runtime import Runtime
from voxstrata.engine.sink import UnitSink
from voxstrata.engine.tally import Tally
from voxstrata.store.checked import about_store
from voxstrata.store.claims import Claims
from voxstrata.store.files import Files, patient_lock
from voxstrata.store.labels import as_planned
from voxstrata.store.part import Part, taken
from voxstrata.store.plan import Plan
from voxstrata.store.planned import PLAN, PROBE, read_plan, refuse_other_units
from voxstrata.store.spec import StoreSpec
from voxstrata.store.writer import StoreWriter, compare_settings, refuse_foreign, refuse_spans

_NOTICES = 10  # of recordings that did not fail, said after a run


@dataclass(frozen=True)
class Worked:
    """What a worker did: all that need travel from it, beside the numbers of units.

    units: committed. samples: at 16 kHz, encoded. flops: arithmetic that took (see `voxstrata.engine.budget`).
    seconds: wall. stages: busy seconds of each stage; they overlap, and some add up threads.
    """

    units: int = 0
    samples: int = 0
    flops: int = 0
    seconds: float = 0.0
    stages: dict[str, float] = field(default_factory=dict)

    def __add__(self, other: "Worked") -> "Worked":
        """Of both together; `seconds` as if one came after the other."""
        stages = {k: self.stages.get(k, 0.0) + other.stages.get(k, 0.0) for k in self.stages | other.stages}
        return Worked(
            self.units + other.units,
            self.samples + other.samples,
            self.flops + other.flops,
            self.seconds + other.seconds,
            stages,
        )


def prepare(
    corpus: Corpus | str | Path,
    model: ModelFolder | str | Path,
    out: str | Path,
    spec: StoreSpec | None = None,
    runtime: Runtime | None = None,
    reporter: Reporter = SILENT,
    *,
    long: Long = "window",
    allow_overflow: bool = False,
    durable: bool = True,
    retry_failed: bool = False,
) -> "Extraction":
    """Make the plan and the arrays of the store `out`, unless it has them; the parameters are those of `extract`.

    One process prepares a store while others that come to it wait; headers are read once, and kept in the store. Who
    comes later waits for nobody.
    runtime: its device and its units' size. Raises what `extract` raises before any encoding.
    """
    corpus = read_corpus(corpus)
    model = open_model(model)
    runtime = runtime or Runtime()
    spec = (spec or StoreSpec()).for_model(model.card, runtime.device)
    files = Files(out, durable=durable)
    with writing(files):
        refuse_foreign(files)
        refuse_spans(files)
        if not _prepared(files):
            with leaving_no_empty_folder(Path(files.local or "/")), patient_lock(files, reporter.step):
                if not _prepared(files):  # since the look before
                    if files.exists(PLAN):  # an older version began it
                        compare_settings(files, model.card, spec)
                        corpus = as_planned(files, corpus)
                    plan = plan_corpus(corpus, model, spec, runtime, reporter, long=long)
                    return Extraction(StoreWriter(files, plan, model.card), model, allow_overflow)
        compare_settings(files, model.card, spec)
        plan = read_plan(files, corpus)
        if runtime.unit_megabytes is not None:
            refuse_other_units(files, plan, model.card.d_model, runtime.unit_megabytes)
        if long == "error":
            refuse_long(plan.corpus, plan.probed, plan.family)
        writer = StoreWriter(files, plan, model.card, stored=True)
        if retry_failed:
            reopen_failed(writer, reporter)
        return Extraction(writer, model, allow_overflow)


def _prepared(files: Files) -> bool:
    """Whether a store has its plan, and what the headers said: these never change, so who reads them needs no lock."""
    return files.exists(PLAN) and files.exists(PROBE)


def open_run(
    store: str | Path,
    model: ModelFolder | str | Path,
    corpus: Corpus | str | Path | None = None,
    *,
    allow_overflow: bool = False,
    durable: bool = True,
) -> "Extraction":
    """An extraction that was prepared, for a worker: the plan is read from the store.

    model: that which the store was prepared with. corpus: where its files lie by now, if not where they lay then;
    recordings in tar or Parquet files, or in memory, need it.

    Raises InputError for a store that is not prepared, another model or other recordings.
    """
    model = open_model(model)
    corpus = None if corpus is None else read_corpus(corpus)
    files = Files(store, durable=durable)
    with writing(files):
        refuse_foreign(files)
        if not files.exists(PLAN):
            raise InputError(f"{store}: not prepared yet; `voxstrata extract` with --prepare does it")
        compare_settings(files, model.card, StoreSpec.from_dict(about_store(files)["spec"]))
        writer = StoreWriter(files, read_plan(files, corpus), model.card, stored=True)
        return Extraction(writer, model, allow_overflow)


class Extraction:
    """A store with a plan, whose units are worked on here and perhaps elsewhere. For one thread.

    plan: what is where. order: all units in the order in which they are best done.
    """

    def __init__(self, writer: StoreWriter, model: ModelFolder, allow_overflow: bool = False) -> None:
        self.writer, self.model, self.plan = writer, model, writer.plan
        self.order = working_order(self.plan)
        self._claims = Claims(writer.files)
        self._sink = UnitSink(writer, allow_overflow)
        self._tally: Tally | None = None
        self.given_up: dict[int, str] = {}  # units left to a later run, since a recording could not be read, and why

    def encoder(self, runtime: Runtime | None = None) -> Encoder:
        """What encodes units of this store. Raises what `Encoder` raises, and InputError for another arithmetic."""
        encoder = make_encoder(self.model, self.plan.spec, runtime or Runtime())
        compare_settings(self.writer.files, self.model.card, encoder.spec)
        return encoder

    def pending(self) -> list[int]:
        """The units that are not committed, in working order."""
        done = self.writer.done()
        return [unit for unit in self.order if unit not in done]

    def claimed(self, part: Part | None = None) -> Iterator[int]:
        """The pending units that no other run is at, each claimed just before it is given: first those of a part, in
        working order, then those of the others from the end. `work` drops the claims."""
        left = set(self.pending()) - self.given_up.keys()
        pieces = (unit for unit in (part or Part()).order(self.order) if unit in left)

        def free() -> set[int]:
            # who is no part waits, and takes what the dead held: it looks at each claim
            return left - self.writer.marked() - (self._claims.held() if part else set())

        return taken(pieces, self._claims, self.writer.committed, free)

    def given(self, units: Iterable[int]) -> Iterator[int]:
        """Those of these units that are not committed, for a worker that is told which to do: each is claimed just
        before it is given if nobody has it, and done all the same if somebody has. `work` drops the claims."""
        for unit in units:
            if not self.writer.committed(unit):
                self._claims.take(unit)
                yield unit

    def work(
        self, encoder: Encoder, units: Iterable[int], reporter: Reporter = SILENT, keep_going: bool = False
    ) -> Worked:
        """Decode, encode and commit units, overlapped. The next is asked for just before its decoding begins.

        keep_going: a unit of which a recording cannot be read now, through no fault of its own, is given up (see
        `given_up`) and the others are done; by default UnreachableError is raised.
        The reporter is told how far the whole store is. Raises InputError for values that cannot be stored, and what
        the encoder raises; units that are committed by then stay.
        """
        begin, held = time.perf_counter(), set[int]()
        before = encoder.seconds | self._sink.seconds
        if self._tally is None:
            self._tally = Tally(self.writer, self.model)
        tally, encoded, flops, done = self._tally, self._tally.encoded, self._tally.flops, 0
        tally.begin(reporter)

        def begun() -> Iterator[int]:
            for unit in units:
                held.add(unit)
                yield unit

        def committed(unit: int) -> None:
            nonlocal done
            done += 1
            held.discard(unit)
            self._claims.drop(unit)

        def given_up(unit: int, why: str) -> None:
            self.given_up[unit] = why
            held.discard(unit)
            self._claims.drop(unit)

        try:
            with (
                DecodeStage(self.plan, begun(), encoder, keep_going) as decoding,
                CommitStage(self._sink, committed, given_up) as committing,
                EncodeStage(encoder) as encoding,
            ):
                for batch, rows in encoding.encoded(decoding):
                    committing.put(batch, rows)
                    del rows  # the committing thread's: not to be held here while the next ones are waited for
                    tally.add(batch, reporter)
                committing.settle()
        finally:
            self._sink.discard()
            for unit in held:
                self._claims.drop(unit)
        _tell(decoding.notices, self.plan, reporter)
        busy = decoding.seconds | encoder.seconds | self._sink.seconds
        stages = {stage: seconds - before.get(stage, 0.0) for stage, seconds in busy.items()}
        return Worked(done, tally.encoded - encoded, tally.flops - flops, time.perf_counter() - begin, stages)

    def extract_unit(self, unit: int, encoder: Encoder, reporter: Reporter = SILENT) -> Worked:
        """Decode, encode and commit one unit, whoever else may be at it: the bytes are the same.

        While it is at it, runs that share the work leave this unit to it. Raises what `work` raises.
        """
        self._claims.take(unit)
        return self.work(encoder, [unit], reporter)

    def finish(self) -> tuple[dict[int, str], int]:
        """Once no unit is pending: complete the store; all failures by index, and how many values overflowed.

        A pure function of plan and markers, so several runs may do it. Raises InputError while units are pending.
        """
        with writing(self.writer.files), patient_lock(self.writer.files):
            return self.writer.finish()


@contextmanager
def writing(files: Files) -> Iterator[None]:
    """Make an InputError of what the system says while a store is written."""
    try:
        yield
    except OSError as e:
        raise InputError(
            f"{files.root}: cannot write ({e}); the units that are committed are safe: mend it and run the same "
            "command to go on"
        ) from e


def working_order(plan: Plan) -> list[int]:
    """All units, those with the longest windows first.

    What memory a run needs it needs at the start, and smaller batches fit into that. The units of a language stay in
    order, since segments of one file are read in the order in which they lie there: an earlier unit counts as long as
    the later ones.
    """
    begin = plan.unit_begin
    language = pc.dictionary_encode(plan.corpus.table["language"].combine_chunks(), null_encoding="encode")
    code = np.asarray(language.indices.to_numpy())
    goes_on = np.append(code[begin[1:-1] - 1] == code[begin[1:-1]], False).tolist()
    longest = np.minimum(np.maximum.reduceat(plan.samples, begin[:-1]), plan.family.window).tolist()
    for unit in reversed(range(plan.units)):
        if goes_on[unit]:
            longest[unit] = max(longest[unit], longest[unit + 1])
    return sorted(range(plan.units), key=lambda unit: (-longest[unit], unit))


def _tell(notices: list[str], plan: Plan, reporter: Reporter) -> None:
    """Warn of recordings that did not fail."""
    notices = sorted(set(notices))  # segments of one file say the same
    for notice in notices[:_NOTICES]:
        reporter.warn(plan.corpus.without_root(notice))
    if (more := len(notices) - _NOTICES) > 0:
        reporter.warn(f"and {more} more notes of this kind")
