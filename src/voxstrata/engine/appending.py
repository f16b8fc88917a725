"""Append: the recordings of a corpus that a finished store does not hold, as new units behind its own."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from voxstrata.audio.info import AudioInfo, Stated
from voxstrata.base.errors import InputError
from voxstrata.base.plain import counted
from voxstrata.base.progress import SILENT, Reporter
from voxstrata.corpus import Corpus, probe_corpus, read_corpus
from voxstrata.encoders import ModelFolder, open_model
from voxstrata.engine.extraction import ExtractReport, report
from voxstrata.engine.making import make_encoder
from voxstrata.engine.planning import Long, plan_corpus
from voxstrata.engine.run import Extraction
from voxstrata.engine.runtime import Runtime
from voxstrata.store.appender import StoreAppender
from voxstrata.store.reader import EmbeddingStore
from voxstrata.store.several import AnyStore, open_store, place_of
from voxstrata.store.writer import compare_settings, read_plans, refuse_spans


def append(
    store: AnyStore,
    corpus: Corpus | str | Path,
    model: ModelFolder | str | Path,
    runtime: Runtime | None = None,
    reporter: Reporter = SILENT,
    *,
    long: Long = "window",
    allow_overflow: bool = False,
) -> ExtractReport:
    """Add the recordings of a corpus to a finished store, with the settings that the store was made with.

    store: its path, or opened; what is open does not grow: open it anew.
    Recordings whose id, length and size the store holds already are passed over, so a corpus that has grown can be
    given whole; so are those that it holds as failed, with a warning where they can be read now. Those that are new are
    in the store all at once, when all are encoded. A run that ended before goes on when it is called again. The other
    parameters are as those of `extract`. The report is of what is added.

    Raises UsageError or InputError before any encoding: for a store that is not finished or that another process
    writes, another model or device than the store's, an id of the store with another recording, a recording longer than
    a unit of the store, an append of other recordings that was begun. During it as `extract`.
    """
    store = place_of(store)
    corpus, model = read_corpus(corpus), open_model(model)
    runtime = runtime or Runtime()
    opened = open_store(store)
    refuse_spans(opened.files)
    spec = opened.spec.for_model(model.card, runtime.device)
    compare_settings(opened.files, model.card, spec)
    encoder = make_encoder(model, spec, runtime)
    probed = probe_corpus(corpus, reporter=reporter)
    try:
        with opened.files.lock():
            opened = open_store(store)  # as it is now that nobody else writes
            new = _new_rows(opened, corpus, probed.infos(), reporter)
            if not new:
                return _nothing_new(opened, len(corpus))
            unit_rows = read_plans(opened.files, opened.about)[0]["unit_rows"]
            how: dict[str, Any] = {"long": long, "probed": probed.take(new), "unit_rows": unit_rows}
            plan = plan_corpus(corpus.take(new), model, spec, runtime, reporter, **how)
            run = Extraction(StoreAppender(opened, plan, model.card), model, allow_overflow)
            left = run.pending()
            worked = run.work(encoder, left, reporter)
            done = report(run, worked, plan.units - len(left), 0, *run.writer.finish())
            return replace(done, passed_over=len(corpus) - len(new))
    except OSError as e:
        raise InputError(
            f"{store}: cannot write ({e}); what is encoded is safe: mend it and run the same command to go on"
        ) from e


def _new_rows(
    store: EmbeddingStore, corpus: Corpus, infos: Sequence[AudioInfo | Stated | None], reporter: Reporter
) -> list[int]:
    """Rows of the corpus whose ids the store does not hold. Raises InputError where it holds another recording."""
    family = store.model.family
    held = {row["id"]: row for row in store.utterances.to_pylist()}
    new, other, mended = [], [], []
    for i, row in enumerate(corpus.table.select(["id", "offset", "channel"]).to_pylist()):
        there, info = held.get(row["id"]), infos[i]
        if there is None:
            new.append(i)
        elif info is not None and not there["samples"]:  # nothing is known of what failed when it was probed
            if not family.frames(info.samples):
                continue  # it is as short as it was
            mended.append((row["id"], there["failure"]))
        elif info is not None:  # what is in the store may be gone by now
            here = {**row, "samples": info.samples}
            if isinstance(info, AudioInfo) and there["size_bytes"] is not None:  # None: lengths are the manifest's
                here["size_bytes"] = info.size_bytes
            here["offset"], there["offset"] = here["offset"] or None, there.get("offset") or None  # 0 s: no offset
            differing = [name for name, value in here.items() if there.get(name) != value]
            other += [(row["id"], name, there.get(name), here[name]) for name in differing[:1]]
    if other:
        name, what, there, here = other[0]
        raise InputError(
            f"{store.files.root}: holds other recordings under {len(other)} of these ids, e.g. {name!r}: {what} is "
            f"{there} there, {here} here; give them ids of their own, or leave them out"
        )
    if mended:
        name, reason = mended[0]
        reporter.warn(
            f"{store.files.root}: passed over: {counted(len(mended), 'recording')} that can be read now, e.g. "
            f"{name!r}, since the store holds them as failed ({reason}); give them ids of their own, or extract all "
            "into a new store"
        )
    return new


def _nothing_new(store: EmbeddingStore, passed_over: int) -> ExtractReport:
    return ExtractReport(store.files.root, 0, 0, {}, 0, 0, 0.0, 0.0, {}, 0, 0, passed_over=passed_over)
