"""The plan: which utterance is stored where, made before any encoding, and a pure function of its inputs.

Utterances are sorted by language, then longest first, then id, and packed into units. Segments of a long recording, and
recordings in a Parquet file, come after the others of their language and stay in the order in which they lie in their
file, so that it is read about once. A unit is one shard of
every array, one piece of work, one commit. The corpus' own order plays no part.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from voxstrata.base.columns import scattered, sorted_codes
from voxstrata.base.errors import InputError, UsageError
from voxstrata.base.plain import counted
from voxstrata.corpus import Corpus, Probed
from voxstrata.encoders.family import Family
from voxstrata.encoders.frames import SAMPLE_RATE
from voxstrata.encoders.whisper import WHISPER
from voxstrata.store.fingerprint import SECOND, fingerprint_of, first_fingerprint_of
from voxstrata.store.spec import StoreSpec

CHUNK_BYTES = 1 << 20  # of one inner chunk: what a reader fetches at the least
UNIT_MEGABYTES = 128  # of one unit over all outputs; extraction holds one unit, or one longer recording, in memory
MAX_UNIT_BYTES = 4 << 30  # a recording that needs more fails alone: a header may claim anything
_MOST_SECONDS = 1 << 20  # twelve days. One that lasts longer fails, too: all its windows are listed, whatever is kept
POOLED_UNIT = 256  # utterances

PLACED = (
    "row_start",
    "row_count",
    "status",
)  # columns of `utterances.parquet` that say where the rows are, and whether
# What a plan holds beside the columns of the corpus, and `utterances.parquet` after it. `samples` are at 16 kHz;
# `failure` is why there is nothing.
MEASURED_SCHEMA = pa.schema(
    [("seconds", pa.float64()), ("samples", pa.int64()), ("size_bytes", pa.int64()), ("failure", pa.string())]
)


@dataclass(frozen=True)
class Window:
    """What the encoder takes at once of one utterance, one item of a batch.

    utterance: its index in the plan. sample: where it begins, at 16 kHz. samples: how long it is.
    frames: encoder frames that are kept. frame: the utterance's frames before these. skip: frames that the encoder
    makes before these, and that are not kept.
    """

    utterance: int
    sample: int
    samples: int
    frames: int
    frame: int
    skip: int = 0


def windows_of(utterance: int, samples: int, family: Family = WHISPER) -> list[Window]:
    """The windows that so many samples are encoded in; none of which no frame is kept, as of a short rest."""
    pieces = family.pieces(samples) if samples and family.frames(samples) else ()
    return [Window(utterance, p.sample, p.samples, p.frames, p.frame, p.skip) for p in pieces if p.frames]


@dataclass(frozen=True)
class Plan:
    """Where everything goes.

    corpus: the recordings in storage order; those whose length is unknown (failed) come last.
    probed: what their headers say, in the same order; what cannot be stored is a failure, too.
    samples, frames: int64 (utterances,), 16 kHz samples and valid encoder frames; 0 where failed.
    start, length: int64 and int32 (utterances,), first row and number of rows in the arrays.
    unit_begin: int64 (units + 1,): unit u holds the utterances unit_begin[u] … unit_begin[u + 1] - 1.
    unit_rows: rows of one unit, that is of one shard. chunk_rows: rows of one inner chunk.
    family: of the encoder: how many frames samples have, and what is encoded at once.
    derived: what the store says of itself beside its model and settings, where its states are taken from another store.
    """

    spec: StoreSpec
    corpus: Corpus
    probed: Probed
    samples: NDArray[np.int64]
    frames: NDArray[np.int64]
    start: NDArray[np.int64]
    length: NDArray[np.int32]
    unit_begin: NDArray[np.int64]
    unit_rows: int
    chunk_rows: int
    family: Family = WHISPER
    derived: Mapping[str, Any] = field(default_factory=dict)

    @cached_property
    def utterances(self) -> pa.Table:
        """The corpus with the columns of MEASURED_SCHEMA, in storage order."""
        table, probed = self.corpus.table, self.probed.table
        measured = [
            pa.array(self.samples / SAMPLE_RATE),
            pa.array(self.samples),
            probed["size_bytes"],
            probed["failure"],
        ]
        for about, values in zip(MEASURED_SCHEMA, measured, strict=True):
            table = table.append_column(about, values)
        return table

    @property
    def units(self) -> int:
        return len(self.unit_begin) - 1

    def members(self, unit: int) -> range:
        """Indices of the utterances of a unit."""
        return range(int(self.unit_begin[unit]), int(self.unit_begin[unit + 1]))

    def rows_used(self, unit: int) -> int:
        """Rows of a unit that belong to its utterances; the rest of the shard belongs to nobody."""
        return int(self.used[unit])

    @cached_property
    def used(self) -> NDArray[np.int64]:
        """`rows_used` of every unit, int64 (units,)."""
        last = self.unit_begin[1:] - 1
        return self.start[last] + self.length[last] - np.arange(self.units) * self.unit_rows

    def windows(self, utterance: int) -> list[Window]:
        """The windows that an utterance is encoded in."""
        return windows_of(utterance, int(self.samples[utterance]), self.family)

    def new_samples(self, window: Window) -> int:
        """How many samples of a window no earlier one of its recording holds."""
        return window.samples - (2 * self.family.overlap if window.sample else 0)

    def fingerprint(self) -> str:
        """SHA-256 over everything that decides the content of the store but the model: see `fingerprint_of`."""
        return self._fingerprint

    @cached_property
    def _fingerprint(self) -> str:
        return fingerprint_of({**self.spec.to_dict(), **self.derived}, self._layout, self.utterances)

    def is_that_of(self, fingerprint: str) -> bool:
        """Whether a fingerprint, of this form or of that of 0.1.0, is this plan's."""
        if fingerprint.startswith(SECOND):
            return fingerprint == self.fingerprint()
        return fingerprint == first_fingerprint_of(self.spec.to_dict(), self._layout, self.utterances)

    @property
    def _layout(self) -> tuple[int, int, NDArray[np.int64]]:
        return self.unit_rows, self.chunk_rows, self.unit_begin


def make_plan(
    corpus: Corpus,
    probed: Probed,
    spec: StoreSpec,
    d_model: int,
    family: Family = WHISPER,
    *,
    unit_megabytes: float = UNIT_MEGABYTES,
    unit_rows: int | None = None,
) -> Plan:
    """Plan the extraction of a corpus whose lengths are known.

    probed: what `probe_corpus` returned. A recording that is too short for a frame, or more than a unit may hold, is
    one more failure. unit_rows: of the store that the corpus is added to; by default what the longest recording needs.
    Raises InputError when nothing can be encoded, or a recording is longer than `unit_rows`, UsageError for an
    impossible `unit_megabytes`.
    """
    if not 0 < unit_megabytes * 2**20 <= MAX_UNIT_BYTES:
        raise UsageError(f"units of {unit_megabytes} MB: choose more than 0, at most {MAX_UNIT_BYTES >> 20}")
    row_bytes = d_model * spec.stored_dtype.itemsize
    samples, reasons = _usable_samples(probed, spec, row_bytes, family)
    if not samples.any():
        reason = next(iter(reasons.values()), "it is empty")
        raise InputError(f"{corpus.where}: no recording of {len(corpus)} can be read; the first: {reason}")
    languages = sorted_codes(pc.fill_null(corpus.table["language"], ""))
    frames = np.where(samples > 0, family.frames(samples), 0)
    order = _storage_order(corpus, probed, languages, frames)
    samples, frames, languages = samples[order], frames[order], languages[order]
    corpus, root = corpus.take(order), corpus.root
    known = int(np.count_nonzero(samples))
    length = np.ones(len(order), np.int32) if spec.pool else (-(-frames // spec.every)).astype(np.int32)
    length[known:] = 0
    if spec.pool:
        unit_rows = chunk_rows = POOLED_UNIT
        unit_begin = np.array([*range(0, known, unit_rows), known], np.int64)
        start = np.arange(len(order))
    else:
        chunk_rows, fill = _chunk_and_unit(spec, row_bytes, unit_megabytes)
        # All shards have one shape, so the longest recording sets their rows. Units are still filled to `fill` alone:
        # one long recording, or a header that lies, must not make every unit as large. Unused rows take no space.
        if unit_rows is None:
            unit_rows = max(fill, -(-int(length.max()) // chunk_rows) * chunk_rows)
        elif length.max() > unit_rows:
            seconds = unit_rows * spec.every * family.hop // SAMPLE_RATE
            longer = np.flatnonzero(length > unit_rows)
            raise InputError(
                f"{root}: {counted(len(longer), 'recording is', 'recordings are')} longer than the {seconds} s that a "
                f"unit of the store holds, e.g. {corpus.table['id'][int(longer[0])].as_py()!r}; cut it, or extract "
                "such into a store of their own: retrieve, align and similarity take several stores"
            )
        unit_begin, start = _pack(length, known, languages, min(fill, unit_rows), unit_rows)
    del languages
    start[known:] = 0
    found = probed.take(order).table
    if reasons:
        # a store may be published and a corpus may move: reasons name files as the manifest does
        place = np.empty(len(order), np.int64)
        place[order] = np.arange(len(order))
        named = {int(place[row]): corpus.without_root(reason) for row, reason in reasons.items()}
        found = found.set_column(found.schema.get_field_index("failure"), "failure", scattered(named, len(order)))
    layout = (start, length, unit_begin, unit_rows, chunk_rows)
    return Plan(spec, corpus, Probed(found), samples, frames, *layout, family)


def plan_derived(
    corpus: Corpus, rows: NDArray[np.int64], spec: StoreSpec, d_model: int, family: Family, derived: Mapping[str, Any]
) -> Plan:
    """Plan a store whose states are taken from another store: all utterances, in the order in which they are given.

    corpus: with the duration of each. rows: int64 (utterances,), how many of the other store's each takes, 1 or more;
    pooled they become one. derived: what the store says of that, by which it is told from others.
    """
    seconds = np.asarray(corpus.table["duration"].to_numpy())
    samples = np.maximum(np.rint(seconds * SAMPLE_RATE).astype(np.int64), 1)  # 0 is of what failed
    count = len(corpus)
    chunk_rows, fill = _chunk_and_unit(spec, d_model * spec.stored_dtype.itemsize, UNIT_MEGABYTES)
    if spec.pool:
        length, start, unit_rows = np.ones(count, np.int32), np.arange(count), fill
        unit_begin = np.array([*range(0, count, unit_rows), count], np.int64)
    else:
        length = rows.astype(np.int32)
        unit_rows = max(fill, -(-int(length.max()) // chunk_rows) * chunk_rows)
        unit_begin, start = _pack(length, count, np.zeros(count, np.int64), fill, unit_rows)
    probed = Probed.of_columns({"samples": samples, "is_segment": np.ones(count, bool)}, {})
    layout = (start, length, unit_begin, unit_rows, chunk_rows)
    return Plan(spec, corpus, probed, samples, rows * spec.every, *layout, family, derived)


def _chunk_and_unit(spec: StoreSpec, row_bytes: int, unit_megabytes: float) -> tuple[int, int]:
    """Rows of a chunk, and those that a unit is filled to."""
    chunk_rows = _power_of_two(CHUNK_BYTES / row_bytes)
    return chunk_rows, max(chunk_rows, _power_of_two(unit_megabytes * 2**20 / (row_bytes * len(spec.outputs))))


def _storage_order(
    corpus: Corpus, probed: Probed, languages: NDArray[np.int64], frames: NDArray[np.int64]
) -> NDArray[np.int64]:
    """The rows in the order in which they are stored: what failed last, by language, by place in the file where that
    counts, the longest first, by id in the order of code points.

    languages: a number for each row's, in their order. Returns int64 (rows,).
    """
    order: NDArray[np.int64] = pc.sort_indices(corpus.table["id"]).to_numpy().astype(np.int64)
    in_order, positions = corpus.reading_places(
        probed.table["is_segment"].fill_null(False).to_numpy(zero_copy_only=False)
    )
    keys = [languages + (frames == 0) * (int(languages.max()) + 1)]
    if in_order.any():
        rows = np.flatnonzero(in_order)
        some = corpus.table.select(["path", "offset"]).take(pa.array(rows))
        file, offset = np.zeros(len(corpus), np.int64), np.zeros(len(corpus))
        file[rows], offset[rows] = sorted_codes(some["path"]) + 1, some["offset"].fill_null(0.0).to_numpy()
        keys += [file, np.where(in_order, positions, 0), offset]
    keys.append(-frames)
    # sorted by the last key first, each time keeping the order of what is equal
    for key in reversed(keys):
        order = np.asarray(order[np.argsort(key[order], kind="stable")])
    return order


def _usable_samples(
    probed: Probed, spec: StoreSpec, row_bytes: int, family: Family
) -> tuple[NDArray[np.int64], dict[int, str]]:
    """Samples at 16 kHz by row of the corpus, int64, 0 where a recording fails, and why it does by row."""
    samples, failing = probed.samples, dict[int, str]()
    for i in np.flatnonzero((samples > 0) & (family.frames(samples) == 0)).tolist():
        failing[i] = f"{family.too_short(int(samples[i]))}; leave it out"
    most = _MOST_SECONDS * SAMPLE_RATE
    for i in np.flatnonzero(samples > most).tolist():
        failing[i] = (
            f"{samples[i] / SAMPLE_RATE:.0f} s is more than the {_MOST_SECONDS} s that a recording may last; "
            "correct its header or row, or cut it"
        )
    longest = MAX_UNIT_BYTES // (row_bytes * len(spec.outputs)) * spec.every * family.hop
    for i in [] if spec.pool else np.flatnonzero((samples > longest) & (samples <= most)).tolist():
        failing[i] = (
            f"{samples[i] / SAMPLE_RATE:.0f} s is more than the {longest // SAMPLE_RATE} s a unit of "
            f"{counted(len(spec.outputs), 'output')} holds; cut it, or choose fewer outputs, --every or --pooled"
        )
    if failing:
        samples = samples.copy()
        samples[list(failing)] = 0
    return samples, {**probed.failures, **failing}


def _pack(
    length: NDArray[np.int32], known: int, languages: NDArray[np.int64], fill: int, unit_rows: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Fill units in order, opening a new one when one would exceed `fill` rows or the language changes.

    Of the `known` utterances, which come first. Returns the first utterance of each unit, and their number, and the
    first row of each utterance, 0 of the others; int64.
    """
    begins, start = [0], np.zeros(len(length), np.int64)
    edges = [0, *(np.flatnonzero(languages[1:known] != languages[: known - 1]) + 1).tolist(), known]
    for first, end in pairwise(edges):
        # rows before each utterance of a language, and of all
        before = np.append(0, np.cumsum(length[first:end], dtype=np.int64))
        following = np.searchsorted(before, before[:-1] + fill, "right") - 1  # the first of the unit after its own
        unit, at, own = len(begins) - 1, 0, [0]
        while at < end - first:
            at = max(int(following[at]), at + 1)
            own.append(at)
        rows = np.arange(unit, unit + len(own) - 1) * unit_rows - before[own[:-1]]
        start[first:end] = before[:-1] + np.repeat(rows, np.diff(own))
        begins += (first + at for at in own[1:])
    return np.array(begins, np.int64), start


def _power_of_two(x: float) -> int:
    """The largest power of two ≤ x, at least 1."""
    return 1 << max(0, int(np.floor(np.log2(x))))
