"""The lengths of a whole corpus, from headers, in parallel."""

import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from voxstrata.audio.decode import probe
from voxstrata.audio.info import AudioInfo, part_of
from voxstrata.audio.source import Recording
from voxstrata.base.errors import AudioError, error_text
from voxstrata.base.progress import SILENT, Progress, Reporter
from voxstrata.corpus.probed import Probed
from voxstrata.corpus.table import Corpus

_SLICE = 4096  # files handed to the threads at once: bounds memory, and the wait after an interrupt


def probe_corpus(corpus: Corpus, workers: int | None = None, reporter: Reporter = SILENT) -> Probed:
    """Probe every recording of `corpus`; a bad one never stops the others. The reporter is told after each.

    workers: threads; by default four more than there are cores, at most 32, since disks take most of the time.
    """

    def attempt(rows: NDArray[np.int64]) -> list[AudioInfo | str]:
        """The rows of one file."""
        source = corpus.recording(int(rows[0])).source
        try:
            whole = probe(source)
        except AudioError as error:
            return [str(error)] * len(rows)
        except Exception as error:  # a decoder's bug on one file must not cost the corpus
            return [f"{source.name}: {error_text(error)}; re-encode it or remove it"] * len(rows)
        return [_part(corpus.recording(int(i)), whole) for i in rows]

    files = _rows_by_file(corpus)
    infos: list[AudioInfo | None] = [None] * len(corpus)
    failures: dict[int, str] = {}
    done, total = 0, len(corpus)
    with ThreadPoolExecutor(workers or min(32, (os.cpu_count() or 1) + 4)) as pool:
        for start in range(0, len(files), _SLICE):
            some = files[start : start + _SLICE]
            for rows, outcomes in zip(some, pool.map(attempt, some), strict=True):
                for i, outcome in zip(rows.tolist(), outcomes, strict=True):
                    if isinstance(outcome, str):
                        failures[i] = outcome
                    else:
                        infos[i] = outcome
                    done += 1
                    reporter.progress(Progress("reading headers", done, total, "recordings", failed=len(failures)))
    return Probed.of(infos, failures)


def _part(recording: Recording, whole: AudioInfo) -> AudioInfo | str:
    try:
        return part_of(recording, whole)
    except AudioError as error:
        return str(error)


def _rows_by_file(corpus: Corpus) -> list[NDArray[np.int64]]:
    """The rows of each sound file, whose header is read once; files in the order of their first rows."""
    file = np.zeros(len(corpus), np.int64)
    for name in ("path", "member"):
        column = corpus.table[name].combine_chunks().dictionary_encode()
        codes = column.indices.fill_null(-1).to_numpy(zero_copy_only=False)
        file = np.unique(file * (len(column.dictionary) + 1) + codes, return_inverse=True)[1]
    order = np.argsort(file, kind="stable")
    rows = np.split(order, np.flatnonzero(np.diff(file[order])) + 1)
    return sorted(rows, key=lambda own: int(own[0])) if len(order) else []
