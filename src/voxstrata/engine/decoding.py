"""Decode ahead of the encoder, on threads, within a bound on memory."""

import time
from collections import defaultdict, deque
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Self

from voxstrata.audio.decode import AudioInfo, decode
from voxstrata.audio.readers import Samples
from voxstrata.base.errors import AudioError, error_text
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
    """Decodes recordings in the order they will be asked for.

    `order` gives (key, row of the corpus, what probing said). `get(key)` must be called in that order.
    `ahead`: samples at 16 kHz that are decoded ahead at the most, yet always at least one recording.
    """

    def __init__(self, corpus: Corpus, order: Iterable[tuple[int, int, AudioInfo]], workers: int, ahead: int) -> None:
        self.seconds: dict[str, float] = defaultdict(float)  # decode: over all threads; wait: the encoder's for audio
        self.notices: list[str] = []  # what is to be said of recordings that did not fail
        super().__init__(workers, "decode")
        self._corpus, self._order = corpus, iter(order)
        self._pending: deque[tuple[int, int, Future[tuple[Samples | str, float]]]] = deque()
        self._limit, self._ahead = ahead, 0
        self._fill()

    def _fill(self) -> None:
        while (self._ahead < self._limit or not self._pending) and (following := next(self._order, None)):
            key, row, info = following
            self._pending.append((key, info.samples, self._pool.submit(self._decode, row, info)))
            self._ahead += info.samples

    def _decode(self, row: int, info: AudioInfo) -> tuple[Samples | str, float]:
        begin = time.perf_counter()
        result: Samples | str
        try:
            result = decode(self._corpus.recording(row), info, notices=self.notices)
        except AudioError as e:
            result = str(e)
        except Exception as e:  # a decoder's bug on one file must not cost the corpus
            result = f"{self._corpus.recording(row).source.name}: {error_text(e)}; re-encode it or remove it"
        return result, time.perf_counter() - begin

    def get(self, key: int) -> Samples | str:
        """The samples of the next recording, float32 at 16 kHz, or why there are none."""
        begin = time.perf_counter()
        expected, samples, future = self._pending.popleft()
        assert expected == key, "recordings are taken in the order they were announced"
        result, busy = future.result()
        self.seconds["decode"] += busy
        self.seconds["wait"] += time.perf_counter() - begin
        self._ahead -= samples
        self._fill()
        return result
