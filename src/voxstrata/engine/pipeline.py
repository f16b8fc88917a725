"""The way of the audio through a run: decode → encode → commit.

Batches pass from one stage to the next in the order of the plan, and every stage holds a bounded number of them, so
that memory does not grow with the corpus.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass

from voxstrata.audio.info import AudioInfo, Stated
from voxstrata.audio.readers import Samples
from voxstrata.base.errors import UnreachableError
from voxstrata.base.spool import Spool
from voxstrata.encoders.context import Context
from voxstrata.engine.decoding import DecodeAhead, Stage
from voxstrata.engine.encoder import Encoder, Kept
from voxstrata.engine.reductions import StoredRows
from voxstrata.engine.sink import UnitSink
from voxstrata.store.plan import Plan, Window

# Encoded, not yet placed; and waiting for a thread that encodes. Little to hold, enough to keep those threads busy
# while a unit is written.
BATCHES_IN_FLIGHT = 4
BATCHES_WAITING = 2
BATCHES_AHEAD = 2  # of audio, decoded before the encoder asks for it
UNITS_AHEAD = 2  # begun before the encoder asks for them: whoever begins a unit keeps other workers from it
# Of audio among which windows are sorted into batches. Recordings are held from their first window to their last,
# and a unit may hold hours of them when states are pooled or averaged.
BATCHES_SORTED = 8


@dataclass(frozen=True)
class Batch:
    """Windows of one unit that are encoded together.

    frames: computed positions of each. windows: those of recordings that could be decoded, perhaps none.
    samples: of all windows, of failed recordings too, each counted once. failures: why recordings could not be
    decoded, by utterance, each told once. last: whether its unit is complete with it. unreachable: why its unit is
    given up, since this machine cannot read a recording now; no other batch of the unit follows.
    """

    unit: int
    frames: int
    windows: Sequence[Window]
    samples: int
    failures: Mapping[int, str]
    last: bool
    unreachable: str | None = None


def batches(plan: Plan, unit: int, encoder: Encoder) -> Iterator[tuple[int, list[Window]]]:
    """A unit's windows in batches of equal computed positions: (positions, windows).

    A function of the plan and the token budget alone, so that a resumed run batches as an uninterrupted one.
    """
    windows, samples, members = list[Window](), 0, plan.members(unit)
    for u in members:
        windows += plan.windows(u)
        samples += int(plan.samples[u])
        if samples >= BATCHES_SORTED * encoder.tokens * plan.family.hop or u == members[-1]:
            yield from equal_batches(windows, plan.spec.context, encoder)
            windows, samples = [], 0


def equal_batches(windows: Iterable[Window], context: Context, encoder: Encoder) -> Iterator[tuple[int, list[Window]]]:
    """Windows in batches of equal computed positions, the longest first: (positions, windows).

    In the context `exact` they are equal to the sample.
    """
    exact, by_length = context.mode == "exact", dict[int, list[Window]]()
    family = encoder.model.card.family
    whole = family.frames(family.window)
    for w in windows:
        by_length.setdefault(w.samples if exact else context.frames_computed(w.frames, whole), []).append(w)
    for length in sorted(by_length, reverse=True):
        frames = family.frames(length) if exact else length
        own, size = by_length[length], encoder.batch_size(frames)
        for i in range(0, len(own), size):
            yield frames, own[i : i + size]


def kept(windows: Iterable[Window]) -> list[Kept]:
    """Which frames of each window are."""
    return [(w.skip, w.frames) for w in windows]


class DecodeStage(DecodeAhead):
    """The first stage: the batches of `units` with their audio, for each window its samples.

    A unit is asked for when the first of its recordings is about to be decoded, ahead of the encoder.
    """

    def __init__(self, plan: Plan, units: Iterable[int], encoder: Encoder, keep_going: bool = False) -> None:
        """keep_going: a unit of which a recording is unreachable is given up; by default that ends the run."""
        self._plan, self._units, self._encoder, self._keep_going = plan, units, encoder, keep_going
        self._given_up: int | None = None  # the unit whose recordings are not decoded any more
        self._begun: deque[int] = deque()  # units whose batches have not been asked for
        self._left = 0  # recordings of the last of them that are not being decoded yet
        ahead = (encoder.concurrency + BATCHES_AHEAD) * encoder.tokens * plan.family.hop
        super().__init__(plan.corpus, self._recordings(), encoder.threads, ahead)

    def _recordings(self) -> Iterator[tuple[int, int, AudioInfo | Stated]]:
        """Recordings in the order of the plan: that in which batches ask for them, but for segments, which batches take
        longest first, and which are decoded in the order in which they lie in their file."""
        for unit in self._units:
            self._begun.append(unit)
            members = self._plan.members(unit)
            for self._left, u in zip(range(len(members) - 1, -1, -1), members, strict=True):
                if unit == self._given_up:
                    self._left = 0
                    break
                info = self._plan.probed.info(u)
                assert info is not None, "what cannot be probed is in no unit"
                yield u, u, info

    def _may_go_on(self) -> bool:
        return self._left > 0 or len(self._begun) < UNITS_AHEAD

    def __iter__(self) -> Iterator[tuple[Batch, list[Samples]]]:
        while self._begun:  # with the last recording of a unit the next unit is begun
            unit = self._begun.popleft()
            try:
                yield from self._unit(unit)
            except UnreachableError as error:
                if not self._keep_going:
                    self._plan.corpus.refuse_gone()  # which says more
                    raise
                self._given_up = unit
                self.drop(self._plan.members(unit))
                yield Batch(unit, 0, [], 0, {}, False, str(error)), []

    def _unit(self, unit: int) -> Iterator[tuple[Batch, list[Samples]]]:
        left = {u: len(self._plan.windows(u)) for u in self._plan.members(unit)}
        asked: set[int] = set()
        held: dict[int, Samples | Spool] = {}  # from a recording's first window to its last
        todo = list(batches(self._plan, unit, self._encoder))
        for n, (frames, windows) in enumerate(todo, 1):
            failures = {}
            for u in dict.fromkeys(w.utterance for w in windows if w.utterance not in asked):
                found = self.get(u)
                if isinstance(found, str):
                    self._plan.corpus.refuse_gone()
                    failures[u] = self._plan.corpus.without_root(found)
                else:
                    held[u] = found
                asked.add(u)
            readable = [w for w in windows if w.utterance in held]
            audio = [held[w.utterance][w.sample : w.sample + w.samples] for w in readable]
            for w in readable:
                left[w.utterance] -= 1
                if not left[w.utterance]:
                    del held[w.utterance]
            samples = sum(map(self._plan.new_samples, windows))
            yield Batch(unit, frames, readable, samples, failures, n == len(todo)), audio


class EncodeStage(Stage):
    """The second stage: as many batches at once as the encoder takes, each on a thread of its own."""

    def __init__(self, encoder: Encoder) -> None:
        super().__init__(encoder.concurrency, "encode")
        self._encoder = encoder

    def encoded(self, decoded: DecodeStage) -> Iterator[tuple[Batch, StoredRows]]:
        """The batches with what is stored of them, in the same order. Raises what the encoder raises."""
        waiting: deque[tuple[Batch, Future[StoredRows]]] = deque()
        for batch, audio in decoded:
            waiting.append((batch, self._pool.submit(self._encode, batch, audio)))
            if len(waiting) > self._encoder.concurrency + BATCHES_WAITING:
                yield _finished(*waiting.popleft())
        while waiting:
            yield _finished(*waiting.popleft())

    def _encode(self, batch: Batch, audio: list[Samples]) -> StoredRows:
        return self._encoder.stored_rows(audio, batch.frames, kept(batch.windows)) if audio else StoredRows([], [])


def _finished(batch: Batch, encoding: Future[StoredRows]) -> tuple[Batch, StoredRows]:
    """Waits. A function, so that no variable holds the rows while others work with them."""
    return batch, encoding.result()


class CommitStage(Stage):
    """The last stage: one thread places rows and writes units, in order.

    Leaving it lets that thread finish: after an interrupt a unit is committed whole or not at all.
    """

    def __init__(self, sink: UnitSink, committed: Callable[[int], None], given_up: Callable[[int, str], None]) -> None:
        """Called on that thread: committed with each unit after its commit, given_up with one without, and why."""
        super().__init__(1, "sink")
        self._sink, self._committed, self._given_up = sink, committed, given_up
        self._failures: dict[int, str] = {}  # of the unit
        self._in_flight: deque[Future[None]] = deque()

    def put(self, batch: Batch, rows: StoredRows) -> None:
        """Have a batch placed, and its unit committed when it is the last. Raises what earlier ones failed with."""
        # a batch that could not be placed must stop the run before its unit is committed
        self.settle(keep=0 if batch.last else BATCHES_IN_FLIGHT - 1)
        self._in_flight.append(self._pool.submit(self._take, batch, rows))

    def settle(self, keep: int = 0) -> None:
        """Wait until at most `keep` batches are not placed yet. Raises what they failed with."""
        while len(self._in_flight) > keep:
            self._in_flight.popleft().result()

    def _take(self, batch: Batch, rows: StoredRows) -> None:
        if batch.unreachable is not None:
            self._sink.discard()
            self._failures = {}
            self._given_up(batch.unit, batch.unreachable)
            return
        if batch.windows:
            self._sink.put(batch.unit, batch.windows, rows)
        self._failures.update(batch.failures)
        if batch.last:
            self._sink.commit(batch.unit, self._failures)
            self._failures = {}
            self._committed(batch.unit)
