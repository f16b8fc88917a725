"""Units of a store that was prepared, done by a worker on whatever machine."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from voxstrata.audio.source import FileSource
from voxstrata.cluster.node import refuse_unseen
from voxstrata.corpus import read_corpus
from voxstrata.encoders import ModelFolder
from voxstrata.encoders.frames import SAMPLE_RATE
from voxstrata.engine.encoder import Encoder
from voxstrata.engine.run import Extraction, Worked, open_run, writing
from voxstrata.engine.runtime import Runtime
from voxstrata.store.markers import read_marker
from voxstrata.store.plan import Plan
from voxstrata.store.several import AnyStore, place_of

_LOOKED_AT = 16  # recordings by which a worker finds out whether it sees the corpus


class ExtractUnits:
    """Extracts units of a store that `prepare` has made: a class for `map_batches` of Ray Data, with an actor pool.

    Called with a batch that has a column `unit`, of numbers from `Extraction.pending()`. The frames go to the store.
    What comes back are figures, a row a unit in the order given: `unit`, `utterances` (of it), `failed` (of these), all
    int64; `audio_seconds` and `seconds`, float64, the latter wall seconds of the batch, shared out by audio.

    Within a batch decoding, encoding and writing overlap. A unit that is committed is passed over. Model and store are
    opened once, at the first call, which raises InputError where this node does not see them or the recordings; calls
    raise what `extract` raises, too.
    """

    def __init__(
        self,
        store: AnyStore,
        model: ModelFolder | str | Path,
        runtime: Runtime | None = None,
        *,
        corpus: str | Path | None = None,
        reading: Mapping[str, Any] | None = None,
        allow_overflow: bool = False,
        durable: bool = True,
    ) -> None:
        """store, model, corpus: absolute paths that hold on every node, or URLs; of a store or model that is opened its
        own. runtime: what a worker may use there.

        corpus, and the keywords of `read_corpus` for it in `reading`: needed where recordings lie in tar or Parquet
        files, or elsewhere than when the store was prepared. allow_overflow, durable: as for `extract`.
        """
        self._store, self._corpus = place_of(store), corpus
        self._model = str(model.path if isinstance(model, ModelFolder) else model)
        self._runtime, self._reading = runtime or Runtime(), dict(reading or {})
        self._how: dict[str, bool] = {"allow_overflow": allow_overflow, "durable": durable}
        self._opened: tuple[Extraction, Encoder] | None = None

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, NDArray[Any]]:
        units = [int(unit) for unit in batch["unit"]]
        worked = self.work(units)
        run, _ = self._open()
        audio = np.array([run.plan.samples[run.plan.members(unit)].sum() / SAMPLE_RATE for unit in units])
        markers = [read_marker(run.writer.files, unit) for unit in units]
        return {
            "unit": np.array(units, np.int64),
            "utterances": np.array([len(run.plan.members(unit)) for unit in units], np.int64),
            "failed": np.array([len(marker["failed"]) if marker else 0 for marker in markers], np.int64),
            "audio_seconds": audio,
            "seconds": audio / max(audio.sum(), 1e-9) * worked.seconds,
        }

    def work(self, units: Sequence[int]) -> Worked:
        """Do these units, but for those that are committed."""
        run, encoder = self._open()
        with writing(run.writer.files):
            return run.work(encoder, run.given(units))

    def _open(self) -> tuple[Extraction, Encoder]:
        if self._opened is None:
            refuse_unseen("store", [self._store])
            refuse_unseen("model", [self._model])
            corpus = None
            if self._corpus is not None:
                refuse_unseen("corpus", [self._corpus])
                corpus = read_corpus(self._corpus, **self._reading)
            run = open_run(self._store, self._model, corpus, **self._how)
            refuse_unseen("recording", _some_files(run.plan))
            self._opened = run, run.encoder(self._runtime)
        return self._opened


def _some_files(plan: Plan) -> list[Path]:
    """Files of a few recordings that could be read when the store was prepared, from all over the corpus."""
    readable = int(plan.unit_begin[-1])
    rows = sorted(set(np.linspace(0, readable - 1, _LOOKED_AT).astype(int).tolist()))
    sources = [plan.corpus.recording(row).source for row in rows]
    return [source.path for source in sources if isinstance(source, FileSource)]
