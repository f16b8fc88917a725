"""A model for samples in memory: what `extract` would store of them, for a notebook, a server or a test."""

import os
import threading
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, overload

import numpy as np
from numpy.typing import ArrayLike, NDArray

from voxstrata.audio.decode import decode
from voxstrata.audio.readers import Samples
from voxstrata.base.errors import InputError, UsageError
from voxstrata.base.plain import counted
from voxstrata.corpus.memory import samples_source
from voxstrata.encoders.card import ModelFolder, open_model
from voxstrata.encoders.outputs import OutputChoice, spelt_outputs
from voxstrata.engine.encoder import Encoder
from voxstrata.engine.making import make_encoder
from voxstrata.engine.pipeline import equal_batches, kept
from voxstrata.engine.reductions import StoredRows, all_finite, row_count
from voxstrata.engine.runtime import Runtime
from voxstrata.engine.sink import overflows_of, place_rows
from voxstrata.store.plan import Window, windows_of
from voxstrata.store.spec import StoreSpec

_ENCODERS_KEPT = 2  # of the last settings; on a CPU all share the sessions, on a GPU each has its own

States = dict[str, NDArray[Any]]  # by output


@dataclass(frozen=True, repr=False)
class SpeechModel(ModelFolder):
    """An exported model that encodes samples. What it loads stays loaded; threads may share it."""

    @overload
    def encode(
        self,
        samples: NDArray[Any],
        rate: float,
        outputs: OutputChoice | None = None,
        *,
        spec: StoreSpec | None = None,
        runtime: Runtime | None = None,
    ) -> States: ...

    @overload
    def encode(
        self,
        samples: Sequence[ArrayLike],
        rate: float | Sequence[float],
        outputs: OutputChoice | None = None,
        *,
        spec: StoreSpec | None = None,
        runtime: Runtime | None = None,
    ) -> list[States]: ...

    def encode(
        self,
        samples: NDArray[Any] | Sequence[ArrayLike],
        rate: float | Sequence[float],
        outputs: OutputChoice | None = None,
        *,
        spec: StoreSpec | None = None,
        runtime: Runtime | None = None,
    ) -> States | list[States]:
        """The states of one recording, or of each in a list or tuple, as `extract` would store them.

        samples: (frames,) or (frames, channels), whose average is taken: float32, float64, int16 or int32.
        rate: samples per second, of all recordings or of each; others than 16 kHz are resampled. outputs: names, in
        place of the spec's. spec, runtime: as of `extract`.

        Returns, for each output, the rows (n, d) in the spec's dtype, or with `pool` their mean (d,) in float32.
        Recordings longer than the family's window (Whisper's has 30 s) are cut. Raises UsageError for unknown outputs
        or rates that are no numbers, InputError for samples of another type or shape, too few or none at all, or
        values that are not finite.
        """
        runtime, spec = runtime or Runtime(), spec or StoreSpec()
        if outputs is not None:
            spec = replace(spec, outputs=spelt_outputs(outputs))
        spec = spec.for_model(self.card, runtime.device)
        several = isinstance(samples, list | tuple)
        given: list[Any] = list(samples) if several else [samples]
        rates: list[Any] = list(rate) if isinstance(rate, list | tuple | np.ndarray) else [rate] * len(given)
        if len(rates) != len(given):
            raise UsageError(
                f"{counted(len(rates), 'rate')} for {counted(len(given), 'recording')}; give one for all, or one for "
                "each"
            )
        names = [f"recording {i}" for i in range(len(given))] if several else ["the recording"]
        notices: list[str] = []
        audio = [_decoded(*recording, notices) for recording in zip(names, given, rates, strict=True)]
        for notice in notices:
            warnings.warn(notice, stacklevel=2)
        found = _states(names, audio, *self._encoder(spec, runtime))
        return found if several else found[0]

    @cached_property
    def _encoder(self) -> Callable[[StoreSpec, Runtime], tuple[Encoder, ThreadPoolExecutor]]:
        """What gives the encoder for settings, and its threads, which end when it is dropped."""
        lock, cpu_sessions = threading.Lock(), dict[str, Any]()

        @lru_cache(_ENCODERS_KEPT)
        def make(spec: StoreSpec, runtime: Runtime, process: int) -> tuple[Encoder, ThreadPoolExecutor]:
            encoder = make_encoder(self, spec, runtime, cpu_sessions)
            return encoder, ThreadPoolExecutor(encoder.concurrency, "encode")  # threads begin when there is work

        def ready(spec: StoreSpec, runtime: Runtime) -> tuple[Encoder, ThreadPoolExecutor]:
            with lock:
                return make(spec, runtime, os.getpid())  # in a forked process the threads from before are gone

        return ready

    def __getstate__(self) -> dict[str, Any]:
        """Without sessions, which cannot be pickled."""
        return {"path": self.path, "card": self.card}


def open_speech_model(path: ModelFolder | str | Path) -> SpeechModel:
    """Open an exported model folder; one that is opened already is taken as it is.

    Raises what `voxstrata.encoders.open_model` raises.
    """
    folder = open_model(path)
    return folder if isinstance(folder, SpeechModel) else SpeechModel(folder.path, folder.card)


def _decoded(name: str, samples: ArrayLike, rate: Any, notices: list[str]) -> Samples:
    """Samples at 16 kHz, by the code that decodes files; notices: gets a sentence if channels cancel each other out."""
    heard: list[str] = []
    found = decode(samples_source(name, samples, rate), notices=heard)
    if heard:  # what decode says of it is how to choose one on the command line
        notices.append(
            f"{name}: its channels are opposite to each other, and their average is silence; give one, samples[:, 0]"
        )
    return found


def _states(names: Sequence[str], audio: Sequence[Samples], encoder: Encoder, pool: ThreadPoolExecutor) -> list[States]:
    """What is stored of each recording; as many batches at once as the encoder takes."""
    spec, width, family = encoder.spec, encoder.model.card.d_model, encoder.model.card.family
    frames = [family.frames(len(x)) for x in audio]
    for name, n, x in zip(names, frames, audio, strict=True):
        if not n:
            raise InputError(f"{name}: {family.too_short(len(x))}; give a longer one")
    found = [{o: np.zeros((row_count(n, spec), width), spec.stored_dtype) for o in spec.outputs} for n in frames]
    windows = (w for u, x in enumerate(audio) for w in windows_of(u, len(x), family))
    batches = list(equal_batches(windows, spec.context, encoder))

    def encoded(batch: tuple[int, list[Window]]) -> StoredRows:
        return encoder.stored_rows(
            [audio[w.utterance][w.sample :][: w.samples] for w in batch[1]], batch[0], kept(batch[1])
        )

    for (_, batch), stored in zip(batches, pool.map(encoded, batches), strict=True):
        for output, rows, finite in zip(spec.outputs, stored.rows, stored.finite, strict=True):
            for w, own in zip(batch, rows, strict=True):
                target = place_rows(found[w.utterance][output], w, own, frames[w.utterance], spec)
                if not finite and not all_finite(target):
                    overflows_of(names[w.utterance], output, target, spec, allow=False)
    return [{o: x[0] for o, x in states.items()} for states in found] if spec.pool else found
