"""Recordings that can be transcribed: those that fit Whisper's window and can be read."""

from collections.abc import Collection, Mapping

import numpy as np
import numpy.typing as npt

from voxstrata.audio.decode import AudioInfo, decode, probe
from voxstrata.base.errors import (
    AudioError,
    GoneError,
    InputError,
    UnreachableError,
    error_text,
    gone,
    refuse_fault_here,
)
from voxstrata.corpus import Corpus
from voxstrata.encoders.frames import SAMPLE_RATE, WINDOW_SECONDS


def find_recordings(corpus: Corpus) -> tuple[dict[int, AudioInfo], dict[str, str]]:
    """What the header says of each row that can be transcribed; and by id why the others cannot.

    Raises InputError when no row can, UnreachableError where a server does not answer or a disk
    cannot be read.
    """
    found: dict[int, AudioInfo] = {}
    failures: dict[str, str] = {}
    for i, name in enumerate(corpus.table["id"].to_pylist()):
        try:
            info = probe(corpus.recording(i))
            if info.samples > WINDOW_SECONDS * SAMPLE_RATE:
                raise AudioError(f"{info.samples / SAMPLE_RATE:.1f} s, more than Whisper's window of 30 s; cut it")
            found[i] = info
        except UnreachableError:  # an outage costs the run
            raise
        except Exception as e:
            refuse_fault_here(e, corpus.recording(i).source.name)
            failures[str(name)] = failure_reason(corpus, i, e)
    refuse_if_none(corpus, found, failures)
    return found, failures


def refuse_if_none(corpus: Corpus, found: Collection[int], failures: Mapping[str, str]) -> None:
    """Raises InputError when no recording was found, with the first failure."""
    if not found:
        first = next((f"; the first: {name}: {why}" for name, why in failures.items()), "")
        raise InputError(f"{corpus.where}: no recording can be transcribed{first}")


def read_recording(corpus: Corpus, i: int, info: AudioInfo) -> npt.NDArray[np.float32]:
    """The samples of row `i` (info.samples,), at 16 kHz. Raises UnreachableError where a server does not
    answer, else AudioError, whatever the decoder raised."""
    try:
        return decode(corpus.recording(i), info)
    except UnreachableError:
        raise
    except (GoneError, FileNotFoundError) as e:
        raise gone(corpus.recording(i).source.name) from e
    except Exception as e:
        refuse_fault_here(e, corpus.recording(i).source.name)
        raise AudioError(failure_reason(corpus, i, e)) from e


def failure_reason(corpus: Corpus, i: int, error: Exception) -> str:
    """Why a recording failed: our own message, or another's error with what to do."""
    if isinstance(error, AudioError):
        return corpus.without_root(str(error))
    path = str(corpus.table["path"][i].as_py())
    return f"{path}: {error_text(error)}; re-encode it or remove it"
