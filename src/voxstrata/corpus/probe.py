"""The lengths of a whole corpus, from headers, in parallel."""

import os
from concurrent.futures import ThreadPoolExecutor

from voxstrata.audio.decode import AudioInfo, probe
from voxstrata.base.errors import AudioError, error_text
from voxstrata.base.progress import SILENT, Progress, Reporter
from voxstrata.corpus.table import Corpus

_SLICE = 4096  # probes handed to the threads at once: bounds memory, and the wait after an interrupt


def probe_corpus(
    corpus: Corpus, workers: int | None = None, reporter: Reporter = SILENT
) -> tuple[list[AudioInfo | None], dict[int, str]]:
    """Probe every recording of `corpus`; a bad one never stops the others. The reporter is told after each.

    workers: threads; by default four more than there are cores, at most 32, since disks take most of the time.
    Returns one AudioInfo per row, None where probing failed, and the reasons of the failures by row index.
    """

    def attempt(i: int) -> AudioInfo | str:
        try:
            return probe(corpus.recording(i))
        except AudioError as error:
            return str(error)
        except Exception as error:  # a decoder's bug on one file must not cost the corpus
            return f"{corpus.recording(i).source.name}: {error_text(error)}; re-encode it or remove it"

    infos: list[AudioInfo | None] = []
    failures: dict[int, str] = {}
    total = len(corpus)
    with ThreadPoolExecutor(workers or min(32, (os.cpu_count() or 1) + 4)) as pool:
        for start in range(0, total, _SLICE):
            for outcome in pool.map(attempt, range(start, min(start + _SLICE, total))):
                if isinstance(outcome, str):
                    failures[len(infos)] = outcome
                    infos.append(None)
                else:
                    infos.append(outcome)
                reporter.progress(Progress("reading headers", len(infos), total, "recordings", failed=len(failures)))
    return infos, failures
