"""Blocks of mono gathered to samples at 16 kHz as they come: no more is kept than the recording is said to last."""

import numpy as np
import soxr

from voxstrata.audio.pyav import Samples
from voxstrata.audio.source import Source
from voxstrata.base.errors import AudioError
from voxstrata.base.spool import Spool
from voxstrata.encoders.frames import SAMPLE_RATE

# 32-bit integers that were not scaled reach 2**31. From about 1e17 on the log-mel overflows.
_MAX_SAMPLE = 1e10
# Decoding goes on beyond the stated end to tell the true length, but not for longer than this.
_SECONDS_BEYOND = 60.0
# Of the mean energy of the channels, what their average keeps at least. Independent channels keep 1 / channels.
_CANCELLED = 1e-3


class Gathered:
    """The samples of a recording, and what speaks against them.

    samples: at 16 kHz, that `result` returns. stated: seconds, by the header. spooled: they are gathered in a temporary
    file, not in memory.
    """

    def __init__(self, source: Source, samples: int, stated: float, spooled: bool = False) -> None:
        self.frames, self.rate = 0, 0  # so far, at the source rate
        self._source, self._samples, self._stated = source, samples, stated
        self._spool = Spool(samples) if spooled else None
        self._held = np.zeros(min(samples, 1 << 16), np.float32)
        self._at = 0
        self._resampler: soxr.ResampleStream | None = None
        self._not_numbers = 0
        self._loudest, self._loudest_at = 0.0, 0
        self._energy = self._energy_kept = 0.0

    def add(self, block: Samples, rate: int) -> None:
        """The next block (frames, channels), at `rate`; its channels are averaged.

        Raises AudioError where the recording goes on for long after its stated end.
        """
        if not self.rate and rate != SAMPLE_RATE:
            self._resampler = soxr.ResampleStream(rate, SAMPLE_RATE, 1, dtype="float32", quality="HQ")
        self.rate = rate
        with np.errstate(all="ignore"):  # what is not finite is refused once all is decoded
            mono: Samples = block[:, 0] if block.shape[1] == 1 else block.mean(axis=1, dtype=np.float32)
            if block.shape[1] > 1:
                self._energy += float(np.vdot(block, block)) / block.shape[1]
                self._energy_kept += float(np.vdot(mono, mono))
            finite = np.isfinite(mono)
            self._not_numbers += len(mono) - int(np.count_nonzero(finite))
            at = int(np.abs(mono).argmax()) if len(mono) else 0
            if len(mono) and abs(mono[at]) > abs(self._loudest):
                self._loudest, self._loudest_at = float(mono[at]), self.frames + at
        self.frames += len(mono)
        if self.frames / rate > 2 * self._stated + _SECONDS_BEYOND:
            raise AudioError(
                f"{self._source.name}: header says {self._stated:.2f} s, decoding goes on after "
                f"{self.frames / rate:.0f} s: damaged; re-encode it or remove it"
            )
        self._hold(self._resampler.resample_chunk(mono) if self._resampler else mono)

    def _hold(self, samples: Samples) -> None:
        end = min(self._at + len(samples), self._samples)
        if self._spool is not None:
            self._spool.put(self._at, samples[: end - self._at])
            self._at = end
            return
        if end > len(self._held):  # in place: a copy would double what is held
            self._held.resize(min(self._samples, max(end, 2 * len(self._held))), refcheck=False)
        self._held[self._at : end] = samples[: end - self._at]
        self._at = end

    def result(self, tolerance: float) -> Samples | Spool:
        """All samples, filled with zeros or cut by at most `tolerance` frames at the source rate.

        Raises AudioError where there are fewer or more, and for samples that no recorder writes.
        """
        name, rate = self._source.name, max(self.rate, 1)
        if self._not_numbers:
            raise AudioError(
                f"{name}: {self._not_numbers} of {self.frames} samples are NaN or infinite; "
                "write the file again or remove it"
            )
        if abs(self._loudest) > _MAX_SAMPLE:
            raise AudioError(
                f"{name}: the sample at {self._loudest_at / rate:.2f} s is {self._loudest:.3g}, beyond "
                f"±{_MAX_SAMPLE:.0e}: damaged; write the file again or remove it"
            )
        if not self.frames or abs(self.frames / rate - self._stated) * rate > tolerance + 0.5:
            raise AudioError(
                f"{name}: header says {self._stated:.2f} s, decoding gave {self.frames / rate:.2f} s: "
                "truncated or damaged; re-encode it or remove it"
            )
        if self._resampler:
            self._hold(self._resampler.resample_chunk(np.empty(0, np.float32), last=True))
        if self._spool is not None:
            return self._spool
        self._held.resize(self._samples, refcheck=False)
        return self._held

    @property
    def cancelled(self) -> bool:
        """Whether the channels are opposite to each other, so that their average is all but silent."""
        return self._energy_kept < _CANCELLED * self._energy
