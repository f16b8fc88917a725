"""Decode ahead of the encoder, on threads, within a bound on memory."""

import time
from collections import defaultdict
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Self

from voxstrata.audio.decode import AudioInfo, decode_to_slice
from voxstrata.audio.info import Stated
from voxstrata.audio.readers import Samples
from voxstrata.audio.segments import SegmentReader
from voxstrata.base.errors import AudioError, GoneError, UnreachableError, error_text, gone, refuse_fault_here
from voxstrata.base.spool import Spool
from voxstrata.corpus import Corpus


class Stage:
    """Has threads of its own. Leaving it as a context finishes what these are at, and drops what waits."""

    def __init__(self, threads: int, name: str) -> None:
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix=name)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)


class DecodeAhead(Stage):
    """Decodes recordings in a given order, which is about the one in which they will be asked for.

    `order` gives (key, row of the corpus, what probing said); each is asked for once.
    `ahead`: samples at 16 kHz that are decoded ahead at the most, yet always at least one recording. Where one is asked
    for before others that precede it, these are decoded, too, and held until it is their turn.
    """

    def __init__(
        self, corpus: Corpus, order: Iterable[tuple[int, int, AudioInfo | Stated]], workers: int, ahead: int
    ) -> None:
        self.seconds: dict[str, float] = defaultdict(float)  # decode: over all threads; wait: the encoder's for audio
        self.notices: list[str] = []  # what is to be said of recordings that did not fail
        super().__init__(workers, "decode")
        self._corpus, self._order = corpus, iter(order)
        self._segments = SegmentReader()
        self._pending: dict[int, tuple[int, Future[tuple[Samples | Spool | str, float]]]] = {}
        self._limit, self._ahead = ahead, 0
        self._fill()

    def __exit__(self, *exception: object) -> None:
        super().__exit__(*exception)
        self._segments.close()

    def _fill(self, wanted: int | None = None) -> None:
        """Have recordings decoded up to the limit, and in any case up to the one that is wanted."""
        while (
            (self._ahead < self._limit and self._may_go_on())
            or not self._pending
            or (wanted is not None and wanted not in self._pending)
        ):
            if (following := next(self._order, None)) is None:
                break
            key, row, info = following
            self._pending[key] = info.samples, self._pool.submit(self._decode, row, info)
            self._ahead += info.samples

    def _may_go_on(self) -> bool:
        """Whether another recording may be decoded before it is asked for."""
        return True

    def _decode(self, row: int, info: AudioInfo | Stated) -> tuple[Samples | Spool | str, float]:
        begin = time.perf_counter()
        result: Samples | Spool | str
        try:
            result = decode_to_slice(self._corpus.recording(row), info, self._segments, self.notices)
        except UnreachableError:  # an outage: what is read later must not be stored as failed
            raise
        except (GoneError, FileNotFoundError) as e:
            name = self._corpus.recording(row).source.name
            if isinstance(info, AudioInfo):
                raise gone(name) from e
            self._corpus.refuse_gone()
            result = str(e) if isinstance(e, GoneError) else f"{name}: no such file; correct the path or remove the row"
        except AudioError as e:
            result = str(e)
        except Exception as e:  # a decoder's bug on one file must not cost the corpus
            name = self._corpus.recording(row).source.name
            refuse_fault_here(e, name)
            result = f"{name}: {error_text(e)}; re-encode it or remove it"
        return result, time.perf_counter() - begin

    def drop(self, keys: Iterable[int]) -> None:
        """Have these not decoded any more, so far as they wait for it; the order must not give them again."""
        for key in keys:
            if (waiting := self._pending.pop(key, None)) is not None:
                waiting[1].cancel()
                self._ahead -= waiting[0]
        self._fill()

    def get(self, key: int) -> Samples | Spool | str:
        """The samples of a recording, float32 at 16 kHz, to be sliced, or why there are none."""
        begin = time.perf_counter()
        self._fill(key)
        samples, future = self._pending.pop(key)
        self._ahead -= samples
        result, busy = future.result()
        self.seconds["decode"] += busy
        self.seconds["wait"] += time.perf_counter() - begin
        self._fill()
        return result
