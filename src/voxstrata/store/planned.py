"""The plan of a store that is there: read back from it, and compared with a corpus that is to go on with it.

A store keeps what the headers of its recordings said, so nobody reads them again: a worker has all it needs from the
store, and a corpus is compared column by column. A file that has changed is found when it is decoded.
"""

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import zarr
from numpy.typing import NDArray

from voxstrata.audio.info import OVERSHOOT_SECONDS, WHOLE_WITHIN_SECONDS
from voxstrata.base.columns import sorted_codes
from voxstrata.base.errors import InputError
from voxstrata.base.plain import counted
from voxstrata.base.remote import is_url
from voxstrata.corpus import Corpus, Probed
from voxstrata.encoders.card import ModelCard
from voxstrata.store.checked import REPAIR, about_store, checked_table, identity, read_json
from voxstrata.store.files import Files, root_attributes, zarr_array
from voxstrata.store.labels import PLANNED_LABELS, as_planned, read_utterances, with_column, with_planned_labels
from voxstrata.store.plan import MEASURED_SCHEMA, PLACED, Plan, make_plan
from voxstrata.store.spec import StoreSpec

PLAN, PROBE, APPENDED = "plan.json", "probe.parquet", "appended"
_RECORDING = ("offset", "duration", "channel")  # which part of a file it is; files may have moved since


def read_plans(files: Files, about: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What is stored of the first plan and of those that were appended, in order.

    Each has "fingerprint", "unit_rows", "first_unit", "first_utterance" and "unit_begin", the last counted from its own
    first utterance. A file in appended/ beyond those that `about` counts is of an append that is not finished.
    """
    store = identity(about)
    first = {"first_unit": 0, "first_utterance": 0, **read_json(files, PLAN, store)}
    plans = [first, *(read_json(files, appended_name(n + 1), store) for n in range(len(about.get("appended", []))))]
    expected = [about["plan"], *(part["plan"] for part in about.get("appended", []))]
    if any(plan.get("fingerprint") != own for plan, own in zip(plans, expected, strict=True)):
        raise InputError(f"{files.root}: {PLAN}: damaged, or of another store; {REPAIR}")
    return plans


def appended_name(number: int) -> str:
    """Where the plan of an append lies, counted from 1."""
    return f"{APPENDED}/{number:04d}.json"


def read_plan(files: Files, corpus: Corpus | None = None) -> Plan:
    """The plan that a store was made with, from the store; of one that was appended to, the first.

    corpus: the same recordings as they are given now, which says where their files lie; by default they lie where they
    did. Recordings in tar or Parquet files, or in memory, need it.

    Raises InputError for a store that an older version began, which keeps no headers, and for other recordings, naming
    what differs.
    """
    about = about_store(files)
    own = identity(about)
    layout = read_json(files, PLAN, own)
    if not files.exists(PROBE):
        raise InputError(f"{files.root}: begun by an older version; go on with `voxstrata extract` and its corpus")
    probed = Probed(checked_table(files, PROBE, own))
    # an append that was cut short may have left rows there that do not count
    stored = _planned_utterances(files, about).slice(0, len(probed))
    corpus = _corpus_of(files, stored) if corpus is None else _as_stored(files, stored, corpus, probed)
    family = ModelCard.from_dict(about["model"]).family
    samples, start, length = (np.asarray(stored[name].to_numpy()) for name in ("samples", "row_start", "row_count"))
    return Plan(
        spec=StoreSpec.from_dict(about["spec"]),
        corpus=corpus,
        probed=probed,
        samples=samples,
        frames=np.where(samples > 0, family.frames(samples), 0),
        start=start,
        length=length,
        unit_begin=np.array(layout["unit_begin"], np.int64),
        unit_rows=layout["unit_rows"],
        chunk_rows=layout["chunk_rows"],
        family=family,
    )


def refuse_other_units(files: Files, plan: Plan, d_model: int, unit_megabytes: float) -> None:
    """Raise InputError where a store's units are of another size than these are to be."""
    here = make_plan(plan.corpus, plan.probed, plan.spec, d_model, plan.family, unit_megabytes=unit_megabytes)
    if here.unit_rows != plan.unit_rows or here.unit_begin.tolist() != plan.unit_begin.tolist():
        raise InputError(f"{files.root}: cannot resume: {_other_units(plan.unit_rows, here, d_model)}")


def refuse_other_plan(files: Files, about: Mapping[str, Any], plan: Plan, d_model: int) -> None:
    """Raise InputError saying how a plan differs from that of a store, which has another fingerprint."""
    _refuse_other_lengths(files, plan.corpus)
    stored, here = _planned_utterances(files, about), plan.utterances
    rows = _rows_as_stored(files, stored, here)
    there, here = stored, here.take(rows)
    lost = pc.and_(here["failure"].is_valid(), pc.greater(there["samples"], 0))
    if (row := pc.index(lost, True).as_py()) >= 0:
        name, reason = here["id"][row], here["failure"][row]
        raise InputError(
            f"{files.root}: cannot resume: {name.as_py()!r} was readable then and is not now: {reason}; mend it and "
            "run again"
        )
    _refuse_other_values(files, there, here, (*PLANNED_LABELS, "samples", "size_bytes", "offset", "channel"))
    unit_rows = read_json(files, PLAN, identity(about))["unit_rows"]
    if unit_rows == plan.unit_rows and (moved := np.flatnonzero(rows != np.arange(len(rows)))).size:
        raise _other_order(files, there["id"][moved[0]].as_py())
    raise InputError(f"{files.root}: cannot resume: {_other_units(unit_rows, plan, d_model)}")


def _planned_utterances(files: Files, about: Mapping[str, Any]) -> pa.Table:
    """The utterances of the first plan, with the labels that it was made with."""
    if appended := about.get("appended"):
        count = appended[0]["first_utterance"]
    else:  # an append that was cut short may have left rows in the table that do not count
        count = zarr_array(zarr.open_group(files.zarr_store(read_only=True), mode="r", zarr_format=3), "start").shape[0]
    return with_planned_labels(files, read_utterances(files)).slice(0, count).replace_schema_metadata(None)


def _corpus_of(files: Files, stored: pa.Table) -> Corpus:
    """The corpus of a store, where it lay."""
    if stored["member"].null_count < len(stored):
        raise InputError(
            f"{files.root}: its recordings lie in tar or Parquet files, or in memory; give the corpus it was made of"
        )
    root = root_attributes(files)["corpus_root"]
    where = root if is_url(root) else Path(os.path.normpath(os.path.join(files.local or "", root)))
    own = [name for name in stored.column_names if name not in (*MEASURED_SCHEMA.names, *PLACED)]
    lengths = root_attributes(files)["voxstrata"].get("lengths", "headers")
    return Corpus(where, stored.select(own), lengths=lengths)


def _as_stored(files: Files, stored: pa.Table, corpus: Corpus, probed: Probed) -> Corpus:
    """A corpus in the order of a store. Raises InputError where it is another one."""
    _refuse_other_lengths(files, corpus)
    corpus = as_planned(files, corpus)
    corpus = corpus.take(_rows_as_stored(files, stored, corpus.table))
    there, here = (_without_whole_lengths(table, probed) for table in (stored, corpus.table))
    _refuse_other_values(files, there, here, (*PLANNED_LABELS, *_RECORDING))
    # what goes by the place in its file was planned in that order, language by language
    segments = np.asarray(probed.table["is_segment"].fill_null(False).to_numpy())
    if segments.any() or corpus.packs:
        in_order, positions = corpus.reading_places(segments)
        path, offset = sorted_codes(corpus.table["path"]), corpus.table["offset"].fill_null(0.0).to_numpy()
        language = sorted_codes(pc.fill_null(stored["language"], ""))
        together = in_order[1:] & in_order[:-1] & (language[1:] == language[:-1])
        back, level = np.zeros(len(together), bool), np.ones(len(together), bool)
        for key in (path, positions, offset):
            back |= level & (key[:-1] > key[1:])
            level &= key[:-1] == key[1:]
        if (moved := np.flatnonzero(together & back)).size:
            raise _other_order(files, stored["id"][moved[0]].as_py())
    return corpus


def _without_whole_lengths(table: pa.Table, probed: Probed) -> pa.Table:
    """Utterances without durations that are those of their whole files, as `part_of` has it."""
    found = probed.table
    over = pc.subtract(
        pc.multiply(table["duration"], pc.cast(found["source_rate"], pa.float64())), found["source_frames"]
    )
    over = pc.divide(over, pc.cast(found["source_rate"], pa.float64()))  # seconds
    fits = pc.and_(pc.greater_equal(over, -WHOLE_WITHIN_SECONDS), pc.less_equal(over, OVERSHOOT_SECONDS))
    whole = pc.fill_null(pc.and_(fits, pc.invert(found["is_segment"])), False)
    return with_column(table, "duration", pc.if_else(whole, None, table["duration"]))


def _refuse_other_lengths(files: Files, corpus: Corpus) -> None:
    """Raise InputError where a store's lengths are from elsewhere than a corpus' are."""
    there = root_attributes(files)["voxstrata"].get("lengths", "headers")
    if there != corpus.lengths:
        raise InputError(
            f"{files.root}: cannot resume: its lengths are those of {there}, here those of {corpus.lengths}; give "
            f"--lengths {there}, or use a new store"
        )


def _rows_as_stored(files: Files, stored: pa.Table, given: pa.Table) -> NDArray[np.int64]:
    """Where each stored utterance stands among the given ones, int64. Raises InputError where these are others."""
    where = f"{files.root}: cannot resume:"
    there, here = (table["id"].combine_chunks() for table in (stored, given))
    if len(added := here.filter(pc.invert(pc.is_in(here, there)))):
        raise InputError(
            f"{where} {counted(len(added), 'utterance was', 'utterances were')} not in the corpus that made it, e.g. "
            f"{pc.min(added).as_py()!r}; `voxstrata append {files.root} CORPUS MODEL` adds recordings to a store that "
            "is finished, or use a new store"
        )
    rows = pc.index_in(there, here)
    if len(gone := there.filter(rows.is_null())):
        raise InputError(
            f"{where} {counted(len(gone), 'utterance is', 'utterances are')} only in the store, e.g. "
            f"{pc.min(gone).as_py()!r}; bring them back or use a new store"
        )
    return np.asarray(rows.to_numpy(), np.int64)


def _refuse_other_values(files: Files, stored: pa.Table, given: pa.Table, columns: Sequence[str]) -> None:
    """Raise InputError for the first column in which two tables of the same utterances differ."""
    for name in columns:
        if name not in stored.column_names:  # stores of 0.1.0 have no parts of files
            stored = stored.append_column(name, pa.nulls(len(stored), given[name].type))
        there, here = stored[name], given[name]
        if name == "offset":  # from 0 s on is from the beginning
            there, here = (pc.if_else(pc.equal(values, 0), None, values) for values in (there, here))
        other = pc.or_(pc.fill_null(pc.not_equal(there, here), False), pc.xor(there.is_null(), here.is_null()))
        if (row := pc.index(other, True).as_py()) >= 0:
            mend = "; use a new store"
            if name in PLANNED_LABELS:
                mend = f": `voxstrata relabel {files.root} MANIFEST` changes labels, or use a new store"
            values = f"is {stored[name][row].as_py()!r} there, {given[name][row].as_py()!r} here"
            raise InputError(f"{files.root}: cannot resume: {name} of {stored['id'][row].as_py()!r} {values}{mend}")


def _other_order(files: Files, name: str) -> InputError:
    return InputError(
        f"{files.root}: cannot resume: the recordings come in another order, from {name!r} on: segments go by the "
        "names of their files; name these as then, or use a new store"
    )


def _other_units(unit_rows: int, plan: Plan, d_model: int) -> str:
    """How a plan's units differ from those of a store that have so many rows."""
    if unit_rows == plan.unit_rows:
        return "the same recordings are cut into units otherwise; give --unit-mb as then, or use a new store"
    # rounded up: a unit's rows are the largest power of two that fits
    row_bytes = d_model * plan.spec.stored_dtype.itemsize * len(plan.spec.outputs)
    there, here = (f"{math.ceil(n * row_bytes * 1e6 / 2**20) / 1e6:.16g}" for n in (unit_rows, plan.unit_rows))
    return f"units of {there} MB there, {here} MB here; give --unit-mb {there}, or use a new store"
