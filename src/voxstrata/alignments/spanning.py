"""A store of spans: the states of words or phones, each an utterance, taken from a store of utterances."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from voxstrata.alignments.files import read_alignments
from voxstrata.alignments.gathering import COUNTED, AlignedRecordings, Spans, gather_spans
from voxstrata.alignments.grouping import SPAN_GROUPS, read_meanings, span_groups
from voxstrata.alignments.matching import match_alignments
from voxstrata.alignments.pooling import span_states
from voxstrata.base.choices import chosen
from voxstrata.base.errors import InputError, UsageError
from voxstrata.base.plain import counted, shown_as
from voxstrata.base.progress import SILENT, Progress, Reporter
from voxstrata.base.remote import is_url
from voxstrata.corpus import Corpus
from voxstrata.corpus.table import CORPUS_SCHEMA, PART_SCHEMA, kept_name
from voxstrata.encoders.frames import SAMPLE_RATE
from voxstrata.encoders.outputs import OutputChoice, select_outputs
from voxstrata.store import EmbeddingStore, StoreWriter
from voxstrata.store.files import Files, root_attributes
from voxstrata.store.plan import MEASURED_SCHEMA, PLACED, plan_derived
from voxstrata.store.several import AnyStore, open_store
from voxstrata.store.writer import DONE, SPANS, refuse_foreign

BEYOND_SECONDS = 0.1  # seconds
_STORED = (*MEASURED_SCHEMA.names, *PLACED)  # columns that are a plan's own


@dataclass(frozen=True)
class SpansReport:
    """What `spans` made.

    out: the store of spans. store: of whose utterances they are. spans: in `out`, of so many `utterances`.
    found_by: what alignments were found by: ids, paths, names of files.
    counts: of COUNTED. left_out: utterances without spans, and why. strangers: alignments that are of no utterance.
    ungrouped: spans without a group. shared: groups in two languages or more, of `groups`. resumed: units that were
    there already, of `units`.
    """

    out: str
    store: str
    tier: str
    pool: str
    group: str
    found_by: str
    spans: int
    utterances: int
    counts: dict[str, int]
    left_out: dict[str, str]
    strangers: list[str]
    ungrouped: int
    groups: int
    shared: int
    units: int
    resumed: int
    seconds: float

    def __repr__(self) -> str:
        return shown_as(self, f"{counted(self.spans, 'span')} of {self.store}", self.out)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form."""
        return asdict(self)

    def to_text(self) -> str:
        """In a few lines."""
        what = "the mean state of each" if self.pool == "mean" else "the frames of each"
        lines = [f"{self.out}: {counted(self.spans, 'span')} of {counted(self.utterances, 'utterance')}, {what}"]
        lines.append(f"tier {self.tier!r}; alignments found by {self.found_by}")
        lines += [f"  {COUNTED[name]}: {count}" for name, count in self.counts.items() if count]
        lines.append(f"groups ({self.group}): {self.groups}, in more than one language: {self.shared}")
        if self.ungrouped:
            lines.append(f"  {counted(self.ungrouped, 'span')} without a group: no part of retrieval")
        if self.strangers:
            lines.append(f"alignments of no utterance: {len(self.strangers)}, e.g. {self.strangers[0]!r}")
        return "\n".join(lines)


def make_spans(
    store: AnyStore,
    alignments: str | Path,
    out: str | Path,
    tier: str = "words",
    outputs: OutputChoice = "all",
    *,
    pool: Literal["mean", "frames"] = "mean",
    group: str = "word",
    meanings: str | Path | None = None,
    tolerance: float = BEYOND_SECONDS,
    reporter: Reporter = SILENT,
) -> SpansReport:
    """Make a store of the words or phones of a store's utterances, each an utterance, or resume it.

    store: its path, or opened.
    alignments: a TextGrid, CTM, JSON or JSON lines file, or a folder of such (`read_alignments`); found by id, path or
        name of the file (`match_alignments`). tier: what is taken of them.
    pool: "mean" keeps the mean over a span's rows, float32; "frames" its rows, as they are stored.
    group: what retrieval takes for the same: "word" (label in lower case, without punctuation at its ends), "label"
        (as it is written: phones), "sentence" (the utterance's group and the word). meanings: a table with the columns
        form, language, meaning, which says it instead.
    tolerance: seconds by which spans may reach beyond their utterance.

    A span's id is its utterance's, ":" and its number in the tier; `parent`, `from_second` and `to_second` say which
    utterance and which seconds of it; `first_row` and `rows` which of its rows. Language and speaker are its own.

    Raises UsageError for an unknown output, pool or group and for pooled stores; InputError for alignments that cannot
    be read, none that is of an utterance, and an `out` that holds something else.
    """
    begin = time.perf_counter()
    opened, target = open_store(store), str(out)
    pool, group = chosen("pool", [pool], ("mean", "frames"))[0], chosen("group", [group], SPAN_GROUPS)[0]  # type: ignore[assignment]
    if len(opened.parts) > 1:
        raise UsageError("spans are taken from one store at a time; the stores of spans can be read as one")
    if not opened.has_frames:
        raise UsageError(f"{opened.files.root}: holds pooled vectors, no frames; extract without --pooled")
    if tolerance < 0:
        raise UsageError(f"tolerance is {tolerance}; give 0 or more seconds")
    names = select_outputs(outputs, opened.outputs)
    known = None if meanings is None else read_meanings(meanings)
    files = Files(target)
    refuse_foreign(files)
    reporter.step("reading alignments")
    found = read_alignments(alignments, tier, reporter)
    done = np.flatnonzero(opened.status == DONE)
    if not len(done):
        raise InputError(f"{opened.files.root}: none of its utterances is done; run the extraction to its end")
    matched = match_alignments(
        found, opened.table(["id", "path", "member", "channel"]), done.tolist(), opened.files.root
    )
    spans = gather_spans(matched, tier, _recordings(opened), opened.model.family, opened.spec.every, tolerance)
    if not len(spans):
        reason = next(iter(spans.reasons.values()))
        raise InputError(f"{alignments}: no span of any utterance is left; the first: {reason}")
    how = group if meanings is None else Path(meanings).name
    about = {
        "store": opened.name,
        "source": [opened.about["plan"], *(part["plan"] for part in opened.about.get("appended", []))],
        "tier": tier, "pool": pool, "group": how, "every": opened.spec.every,
    }  # fmt: skip
    _refuse_others(files, about)
    corpus = _corpus_of_spans(opened, spans, group, known)
    spec = replace(opened.spec, outputs=names)
    if pool == "mean":
        spec = replace(spec, pool="mean", every=1)
    plan = plan_derived(corpus, spans.rows, spec, opened.model.d_model, opened.model.family, {SPANS: about})
    with files.lock():
        writer = StoreWriter(files, plan, opened.model)
        there = writer.done()
        pooled = sum(len(plan.members(unit)) for unit in there)
        reporter.progress(Progress("pooling", pooled, len(spans), "spans"))
        for unit in sorted(set(range(plan.units)) - there):
            blocks = {o: span_states(opened, o, spans, plan.members(unit), pool == "mean") for o in names}
            writer.commit(unit, blocks, {}, sum(int(np.isinf(block).sum()) for block in blocks.values()))
            pooled += len(plan.members(unit))
            reporter.progress(Progress("pooling", pooled, len(spans), "spans"))
        writer.finish()
    ids = opened.table(["id"])["id"]
    groups, languages = corpus.table["group"], corpus.table["language"]
    pairs = pa.table({"group": groups, "language": languages}).group_by(["group", "language"]).aggregate([])
    in_languages = Counter(pairs["group"].to_pylist())
    in_languages.pop(None, None)
    return SpansReport(
        out=files.root,
        store=opened.files.root,
        tier=tier,
        pool=pool,
        group=how,
        found_by=matched.way,
        spans=len(spans),
        utterances=len(np.unique(spans.parent)),
        counts=spans.counts,
        left_out={ids[i].as_py(): reason for i, reason in sorted(spans.reasons.items())},
        strangers=matched.strangers,
        ungrouped=groups.null_count,
        groups=len(in_languages),
        shared=sum(count > 1 for count in in_languages.values()),
        units=plan.units,
        resumed=len(there),
        seconds=time.perf_counter() - begin,
    )


def _recordings(store: EmbeddingStore) -> AlignedRecordings:
    table = store.table(["samples", "offset", "duration"])
    part = pc.or_(table["offset"].is_valid(), table["duration"].is_valid()).to_numpy()
    offset = table["offset"].fill_null(0.0).to_numpy()
    return AlignedRecordings(table["samples"].fill_null(0).to_numpy(), store.length.astype(np.int64), offset, part)


def _refuse_others(files: Files, about: Mapping[str, Any]) -> None:
    """Raise InputError where a store lies that is not of these spans."""
    there = root_attributes(files).get("voxstrata")
    if not isinstance(there, dict):
        return
    if SPANS not in there:
        raise InputError(f"{files.root}: holds utterances, no spans; choose another name")
    for key, value in about.items():
        if (held := there[SPANS].get(key)) != value:
            shown = f"{key} is {held} there, {value} here" if key != "source" else "its spans are of another store"
            raise InputError(f"{files.root}: cannot resume: {shown}; use the same or another name")


def _corpus_of_spans(
    store: EmbeddingStore, spans: Spans, group: str, meanings: Mapping[tuple[str, str], str] | None
) -> Corpus:
    """The spans as recordings: each is a part of its utterance's file."""
    parents, at = store.utterances, pa.array(spans.parent)
    own = {name: parents[name].take(at).combine_chunks() for name in parents.column_names if name not in _STORED}
    start, end = spans.begin / SAMPLE_RATE, spans.end / SAMPLE_RATE
    offset = np.round(own["offset"].fill_null(0.0).to_numpy() + start, 9)  # seconds that were written in decimals
    number = pc.cast(pa.array(spans.number), pa.string())
    columns: dict[str, Any] = {
        "id": pc.binary_join_element_wise(own["id"], number, ":"),
        "path": own["path"],
        "language": own["language"],
        "group": span_groups(group, spans.labels, own["language"], own["group"], meanings),
        "text": spans.labels,
        "speaker": own["speaker"],
        "member": own["member"],
        "offset": pa.array(offset),
        "duration": pa.array(np.round(end - start, 9)),
        "channel": own["channel"],
        "parent": own["id"],
        "from_second": pa.array(np.round(start, 9)),
        "to_second": pa.array(np.round(end, 9)),
        "first_row": pa.array(spans.first),
        "rows": pa.array(spans.rows),
    }
    rest = {name: values for name, values in own.items() if name not in (*CORPUS_SCHEMA.names, *PART_SCHEMA.names)}
    table = pa.table(columns)
    for name, values in rest.items():
        table = table.append_column(kept_name(name, table.column_names), values)
    root = root_attributes(store.files).get("corpus_root", ".")
    where = root if is_url(root) else Path(os.path.normpath(os.path.join(store.files.local or "", root)))
    return Corpus(where, table)
