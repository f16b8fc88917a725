"""How far an extraction is: what was encoded here, and what other runs have committed meanwhile."""

import time
from collections.abc import Iterable
from typing import Any

import numpy as np

from voxstrata.base.progress import Progress, Reporter
from voxstrata.encoders import ModelFolder
from voxstrata.encoders.frames import SAMPLE_RATE
from voxstrata.engine.budget import arithmetic_of
from voxstrata.engine.pipeline import Batch
from voxstrata.store.markers import read_markers
from voxstrata.store.writer import StoreWriter

_LOOK_SECONDS = 5.0  # from one look for what other runs have committed to the next, at the least
_LOOK_SHARE = 20  # so many times what the look took, where that is more


class Tally:
    """Counts the batches that a run has encoded, and tells how far the whole store is.

    encoded: samples. flops: arithmetic they took. Recordings that fail are work that is done, but not encoded.
    """

    def __init__(self, writer: StoreWriter, model: ModelFolder) -> None:
        plan = writer.plan
        self.encoded = self.flops = 0
        self._plan, self._writer = plan, writer
        self._size, self._context = arithmetic_of(model, plan.spec.outputs), plan.spec.context
        done = writer.done()
        self._failed = len(writer.failures(done)[0])
        self._others = set(range(plan.units)) - done  # that other runs may commit
        self._begun = set[int]()  # here, and not counted as theirs
        self._units = len(done)
        self._samples, self._own = self._samples_of(done), 0
        self._samples_total = int(plan.samples.sum())
        self._next_look = time.monotonic() + _LOOK_SECONDS

    def _samples_of(self, units: Iterable[int]) -> int:
        return int(np.add.reduceat(self._plan.samples, self._plan.unit_begin[:-1])[list(units)].sum())

    def begin(self, reporter: Reporter) -> None:
        """Say how far the store is before anything is encoded: from here on rate and time that is left count."""
        self.tell(reporter, self._own)

    def add(self, batch: Batch, reporter: Reporter) -> None:
        """Count a batch that was encoded here."""
        self.encoded += sum(map(self._plan.new_samples, batch.windows))
        self.flops += sum(self._size.window_flops(batch.frames, self._context, w.frames) for w in batch.windows)
        self._own += batch.samples
        if batch.unit in self._others:
            self._others.discard(batch.unit)
            self._begun.add(batch.unit)
        if batch.unit in self._begun:  # else another run has done it, too, and it was counted then
            self._units += batch.last
            self._samples += batch.samples
            self._failed += len(batch.failures)
        if batch.last:
            self._begun.discard(batch.unit)
        self.tell(reporter, self._own)

    def tell(self, reporter: Reporter, rated: int | None = None, *, look: bool = False) -> None:
        """Say how far the store is. rated: samples by which the rate is told, by default those of all runs.

        look: at what other runs have committed, also where that was done a moment ago.
        """
        if (begin := time.monotonic()) >= self._next_look or look:
            theirs = self._others & self._writer.marked()
            self._others -= theirs
            self._units += len(theirs)
            self._samples += self._samples_of(theirs)
            numbers = [self._writer.first_unit + unit for unit in theirs]
            markers = read_markers(self._writer.files, numbers, lambda _: None)
            self._failed += sum(len(marker["failed"]) for marker in markers if marker)
            now = time.monotonic()
            self._next_look = now + max(_LOOK_SECONDS, _LOOK_SHARE * (now - begin))
        audio, total = self._samples / SAMPLE_RATE, self._samples_total / SAMPLE_RATE
        rate = audio if rated is None else rated / SAMPLE_RATE
        work: dict[str, Any] = {"work": audio, "work_total": total, "rated": rate}
        units = (self._units, self._plan.units, "units")
        reporter.progress(Progress("extracting", *units, **work, rate_unit="audio-h/h", failed=self._failed))
