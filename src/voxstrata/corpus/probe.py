"""The lengths of a whole corpus, from headers, in parallel."""

import os
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from voxstrata.audio.decode import probe
from voxstrata.audio.info import AudioInfo, part_of
from voxstrata.audio.source import Recording
from voxstrata.base.columns import encoded, repeated
from voxstrata.base.errors import AudioError, GoneError, UnreachableError, error_text, refuse_fault_here
from voxstrata.base.progress import SILENT, Progress, Reporter
from voxstrata.corpus.probed import PROBED_SCHEMA, Probed
from voxstrata.corpus.table import Corpus
from voxstrata.encoders.frames import SAMPLE_RATE

_NUMBERS = PROBED_SCHEMA.names[:-1]
_MOST_SAMPLES = 1 << 62  # what a duration may make of a recording before it is no length
_SLICE = 4096  # files handed to the threads at once: bounds memory, and the wait after an interrupt


def probe_corpus(corpus: Corpus, workers: int | None = None, reporter: Reporter = SILENT) -> Probed:
    """Probe every recording of `corpus`; a bad one never stops the others. The reporter is told after each file.

    Of a corpus whose lengths are the manifest's no file is opened: see `stated`.

    workers: threads; by default four more than there are cores, at most 32, since disks take most of the time.
    """
    if corpus.lengths == "manifest":
        return stated(corpus)

    def attempt(rows: NDArray[np.int64]) -> list[AudioInfo | str]:
        """The rows of one file."""
        source = corpus.recording(int(rows[0])).source
        try:
            try:
                whole = probe(source)
            except GoneError:
                corpus.refuse_gone()
                whole = probe(source)  # the folder may have been away for an instant
        except AudioError as error:
            return [str(error)] * len(rows)
        except UnreachableError:  # an outage: what is read later must not be stored as failed
            raise
        except Exception as error:  # a decoder's bug on one file must not cost the corpus
            refuse_fault_here(error, source.name)
            return [f"{source.name}: {error_text(error)}; re-encode it or remove it"] * len(rows)
        return [_part(corpus.recording(int(i)), whole) for i in rows]

    order, begins = _rows_by_file(corpus)
    values = {name: np.zeros(len(corpus), np.int64) for name in _NUMBERS}
    failures: dict[int, str] = {}
    done, total = 0, len(corpus)
    with ThreadPoolExecutor(workers or min(32, (os.cpu_count() or 1) + 4)) as pool:
        for start in range(0, len(begins) - 1, _SLICE):
            some = [order[a:b] for a, b in pairwise(begins[start : start + _SLICE + 1].tolist())]
            for rows, outcomes in zip(some, pool.map(attempt, some), strict=True):
                for i, outcome in zip(rows.tolist(), outcomes, strict=True):
                    if isinstance(outcome, str):
                        failures[i] = outcome
                    else:
                        for name, column in values.items():
                            column[i] = getattr(outcome, name)
                    done += 1
                    reporter.progress(Progress("reading headers", done, total, "recordings", failed=len(failures)))
    failed = np.zeros(len(corpus), bool)
    failed[list(failures)] = True
    columns = {n: pa.array(v, mask=failed).cast(PROBED_SCHEMA.field(n).type) for n, v in values.items()}
    return Probed.of_columns(columns, failures)


def stated(corpus: Corpus) -> Probed:
    """The lengths that the rows of a corpus state, in `duration`: the samples round((offset + duration) · 16000) -
    round(offset · 16000). Nothing else is known, and no file is opened.

    A row is a segment where it begins after 0 s, or its file has several rows.
    """
    offset, duration = (corpus.table[name].to_numpy() for name in ("offset", "duration"))
    begin = np.nan_to_num(offset)
    with np.errstate(invalid="ignore", over="ignore"):
        samples = np.rint((begin + duration) * SAMPLE_RATE) - np.rint(begin * SAMPLE_RATE)
    bad = ~((samples > 0) & (samples < _MOST_SAMPLES) & (begin >= 0))
    segments = (begin > 0) | _of_shared_files(corpus)
    failures = {
        int(
            i
        ): f"{corpus.recording(int(i)).source.name}: a duration of {duration[i]:g} s from {begin[i]:g} s on; correct "
        "the row, or take the lengths of headers (--lengths headers)"
        for i in np.flatnonzero(bad)
    }
    known = np.where(bad, 0, samples).astype(np.int64)
    columns = {"samples": pa.array(known, mask=bad), "is_segment": pa.array(segments, mask=bad)}
    return Probed.of_columns(columns, failures)


def _part(recording: Recording, whole: AudioInfo) -> AudioInfo | str:
    try:
        return part_of(recording, whole)
    except AudioError as error:
        return str(error)


def _rows_by_file(corpus: Corpus) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The rows of each sound file, whose header is read once; files in the order of their first rows.

    Returns all rows, int64 (rows,), and where each file begins among them, and their end, int64 (files + 1,).
    """
    file = _files(corpus)
    first = np.full(file.max(initial=-1) + 1, len(file))
    np.minimum.at(first, file, np.arange(len(file)))
    order = np.argsort(first[file], kind="stable")
    begins = np.flatnonzero(np.diff(first[file][order], prepend=-1))
    return order, np.append(begins, len(order))


def _of_shared_files(corpus: Corpus) -> NDArray[np.bool_]:
    """Whether other rows are of the same sound file, bool (rows,)."""
    if corpus.table["member"].null_count == len(corpus):
        return repeated(corpus.table["path"])
    file = _files(corpus)
    return np.asarray(np.bincount(file)[file] > 1)


def _files(corpus: Corpus) -> NDArray[np.int64]:
    """A number for the sound file of each row, the same for the same, int64 (rows,)."""
    file, _ = encoded(corpus.table["path"])
    if corpus.table["member"].null_count == len(corpus):
        return file
    member, names = encoded(corpus.table["member"])
    found = np.unique(file * (len(names) + 1) + member, return_inverse=True)[1]
    return np.asarray(found, np.int64)
