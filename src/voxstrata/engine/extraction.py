"""Extraction: plan a corpus, then decode, encode and write it unit by unit, overlapped, resumable."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from voxstrata.audio.decode import AudioInfo
from voxstrata.base.errors import InputError, UsageError
from voxstrata.corpus import Corpus, probe_corpus, read_corpus
from voxstrata.encoders import Context, ModelFolder, open_model
from voxstrata.encoders.frames import SAMPLE_RATE, SAMPLES_PER_FRAME, WINDOW_SAMPLES
from voxstrata.engine.budget import EncoderSize, sgemm_rate
from voxstrata.engine.cpu_encoder import Encoder
from voxstrata.engine.cuda_encoder import DeviceEncoder
from voxstrata.engine.decoding import DecodeAhead
from voxstrata.engine.planning import Long, plan_corpus, store_spec
from voxstrata.engine.reductions import Reduced
from voxstrata.engine.sessions import Device
from voxstrata.engine.sink import UnitSink
from voxstrata.store.files import Files
from voxstrata.store.plan import Plan, Window
from voxstrata.store.spec import StoreSpec
from voxstrata.store.writer import PLAN, StoreWriter, refuse_foreign

# Encoded, not yet placed; and waiting for a thread that encodes. Little to hold, enough to keep those threads busy
# while a unit is written.
BATCHES_IN_FLIGHT = 4
BATCHES_WAITING = 2
BATCHES_AHEAD = 2  # of audio, decoded before the encoder asks for it
# Of audio among which windows are sorted into batches. Recordings are held from their first window to their last,
# and a unit may hold hours of them when states are pooled or averaged.
BATCHES_SORTED = 8


@dataclass(frozen=True)
class Progress:
    """How far a run is. audio_seconds count what this run has to do, not what an earlier one did."""

    units: int
    units_total: int
    audio_seconds: float
    audio_seconds_total: float
    failed: int


@dataclass(frozen=True)
class ExtractReport:
    """What a run did.

    utterances, failed: of the whole store; failures: reason by id. audio_seconds: encoded in this run.
    flops: arithmetic of what was encoded in this run (see `voxstrata.engine.budget`).
    seconds: wall seconds of this run, from the first unit to the last. stages: busy seconds of each stage; they
        overlap, and `decode`, `log_mel` and `encode` add up threads.
    resumed_units: committed by an earlier run. overflows: values of the whole store that are beyond float16.
    sgemm_rate, efficiency: float32 matrix products in operations per second on the same threads just before the run,
        and flops / (seconds × sgemm_rate); None unless asked for.
    """

    store: str
    utterances: int
    failed: int
    failures: dict[str, str]
    units: int
    resumed_units: int
    audio_seconds: float
    seconds: float
    stages: dict[str, float]
    overflows: int
    flops: int
    sgemm_rate: float | None
    efficiency: float | None

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form."""
        return asdict(self)


def extract(
    corpus: Corpus | str | Path,
    model: ModelFolder | str | Path,
    store: str | Path,
    *,
    outputs: str | Sequence[str] = "all",
    context: Context | None = None,
    dtype: Literal["float16", "float32"] = "float16",
    pool: Literal["mean"] | None = None,
    every: int = 1,
    long: Long = "window",
    device: Device | None = None,
    threads: int | None = None,
    tokens: int | None = None,
    unit_megabytes: float | None = None,
    allow_overflow: bool = False,
    efficiency: bool = False,
    progress: Callable[[Progress], None] = lambda _: None,
    probing: Callable[[int, int], None] | None = None,
) -> ExtractReport:
    """Extract the embeddings of a corpus into a store; resumes the store when it exists.

    Parameters
    ----------
    outputs, dtype, pool, every, context
        What is kept and in which context it is computed: see `StoreSpec` and `Context`.
    long
        "window" cuts recordings over 30 s into windows, "error" refuses the corpus naming them.
    threads
        for ONNX Runtime and for decoding; by default the cores this process may use.
    tokens
        batch size × computed positions; by default what suits the device.
    efficiency
        also measure this machine's rate of matrix products, for the report; on the CPU, about a second.
    progress, probing
        called after every batch, and, with recordings probed and their number, while headers are read.
    unit_megabytes
        size of one unit over all outputs: of the buffer in memory, and so of shards. A recording that needs more is a
        unit by itself; with `pool` a unit is 256 utterances. By default 128, on a GPU what eight batches
        fill, up to 4096.

    Raises
    ------
    UsageError, InputError
        before any encoding: unknown outputs, efficiency asked of a GPU, unusable model or corpus, a store that
        something else made.
        During it: no space, float16 overflow. What is committed stays; the same call resumes.
    """
    corpus = corpus if isinstance(corpus, Corpus) else read_corpus(corpus)
    model = model if isinstance(model, ModelFolder) else open_model(model)
    if efficiency and device and device.kind != "cpu":
        raise UsageError("efficiency is measured against the CPU's sgemm rate; leave it out on a GPU")
    spec = store_spec(model, outputs=outputs, context=context, dtype=dtype, pool=pool, every=every, device=device)
    try:
        # What can be known is known before minutes of reading headers: a store that is another's or in use, a device
        # that does not start.
        files = Files(store)
        refuse_foreign(files)
        if files.exists(PLAN):
            with files.lock():
                pass
        encoder = make_encoder(model, spec, device or Device(), threads, tokens)
        probed = probe_corpus(corpus, progress=probing)
        plan, infos = plan_corpus(
            corpus, model, spec, long=long, unit_megabytes=unit_megabytes, device=device, probed=probed
        )
        limit = sgemm_rate(encoder.threads) if efficiency else None
        with files.lock(), ExitStack() as stack:
            writer = StoreWriter(store, plan, model.card)
            return _run(corpus, infos, encoder, writer, allow_overflow, progress, stack, limit)
    except OSError as e:
        raise InputError(
            f"{store}: cannot write ({e}); the units that are committed are safe: mend it and run the same "
            "command to go on"
        ) from e


def make_encoder(
    model: ModelFolder, spec: StoreSpec, device: Device, threads: int | None, tokens: int | None
) -> Encoder | DeviceEncoder:
    """What encodes for `extract` on that device."""
    if device.kind == "cpu":
        half = spec.stored_dtype == np.float16 and spec.every == 1  # else they are averaged first
        return Encoder(model, spec.outputs, spec.context, device=device, threads=threads, tokens=tokens, half=half)
    return DeviceEncoder(model, spec, device=device, threads=threads, tokens=tokens)


def batches(plan: Plan, unit: int, encoder: Encoder | DeviceEncoder) -> Iterator[tuple[int, list[Window]]]:
    """A unit's windows in batches of equal computed positions: (positions, windows).

    A function of the plan and the token budget alone, so that a resumed run batches as an uninterrupted one.
    """
    by_frames: dict[int, list[Window]] = {}
    samples, members = 0, plan.members(unit)
    for u in members:
        for w in plan.windows(u):
            by_frames.setdefault(plan.spec.context.frames_computed(w.frames), []).append(w)
        samples += int(plan.samples[u])
        if samples < BATCHES_SORTED * encoder.tokens * SAMPLES_PER_FRAME and u != members[-1]:
            continue
        for frames in sorted(by_frames, reverse=True):
            windows, size = by_frames[frames], encoder.batch_size(frames)
            for i in range(0, len(windows), size):
                yield frames, windows[i : i + size]
        by_frames, samples = {}, 0


def _run(
    corpus: Corpus,
    infos: Sequence[AudioInfo | None],
    encoder: Encoder | DeviceEncoder,
    writer: StoreWriter,
    allow_overflow: bool,
    progress: Callable[[Progress], None],
    stack: ExitStack,
    limit: float | None,
) -> ExtractReport:
    begin = time.perf_counter()
    plan = writer.plan
    done = writer.done()
    # The longest windows first: what memory a run needs it needs at the start, and smaller batches fit into that.
    longest = [int(plan.samples[plan.unit_begin[u] : plan.unit_begin[u + 1]].max()) for u in range(plan.units)]
    todo = sorted(set(range(plan.units)) - done, key=lambda u: (-min(longest[u], WINDOW_SAMPLES), u))
    total = sum(int(plan.samples[plan.unit_begin[u] : plan.unit_begin[u + 1]].sum()) for u in todo) / SAMPLE_RATE
    rows = {name: i for i, name in enumerate(corpus.table["id"].to_pylist())}
    corpus_row = [rows[name] for name in plan.utterances["id"].to_pylist()]
    failed = len(writer.failures(done)[0])
    sink = UnitSink(writer, encoder.model.card.d_model, allow_overflow)

    def decoding_order() -> Iterator[tuple[int, int, AudioInfo]]:
        for unit in todo:
            seen = set()
            for _, windows in batches(plan, unit, encoder):
                for w in windows:
                    info = infos[corpus_row[w.utterance]]
                    if w.utterance not in seen and info is not None:
                        seen.add(w.utterance)
                        yield w.utterance, corpus_row[w.utterance], info

    ahead = (encoder.concurrency + BATCHES_AHEAD) * encoder.tokens * SAMPLES_PER_FRAME
    audio = DecodeAhead(corpus, decoding_order(), encoder.threads, ahead)
    stack.callback(audio.close)
    # One thread places and writes, in order. Leaving the stack lets it finish what it is at: after an interrupt
    # a unit is committed whole or not at all.
    worker = ThreadPoolExecutor(1, thread_name_prefix="sink")
    stack.callback(worker.shutdown, wait=True, cancel_futures=True)
    in_flight: list[Future[None]] = []

    def settle(keep: int) -> None:
        while len(in_flight) > keep:
            in_flight.pop(0).result()

    # Batches are encoded at once, each on a thread of its own; they are placed, and units committed, in order.
    pool = ThreadPoolExecutor(encoder.concurrency, thread_name_prefix="encode")
    stack.callback(pool.shutdown, wait=True, cancel_futures=True)
    following: deque[Callable[[], None]] = deque()

    def proceed(keep: int) -> None:
        while len(following) > keep:
            following.popleft()()

    def put(unit: int, windows: list[Window], encoding: Future[list[NDArray[Any]]] | Future[Reduced]) -> None:
        states = encoding.result()
        settle(BATCHES_IN_FLIGHT - 1)
        in_flight.append(worker.submit(sink.put, unit, windows, states))

    def commit(unit: int, failures: dict[int, str]) -> None:
        settle(0)  # a batch that could not be placed must stop the run before its unit is committed
        in_flight.append(worker.submit(sink.commit, unit, failures))

    size, flops = EncoderSize.of(encoder.model, plan.spec.outputs), 0
    encoded = passed = 0.0  # seconds of audio; recordings that fail are passed, not encoded
    for position, unit in enumerate(todo):
        failures: dict[int, str] = {}
        held: dict[int, NDArray[np.float32]] = {}
        left = {u: len(plan.windows(u)) for u in plan.members(unit)}
        for frames, windows in batches(plan, unit, encoder):
            batch, samples = [], []
            for w in windows:
                if w.utterance not in held and w.utterance not in failures:
                    result = audio.get(w.utterance)
                    if isinstance(result, str):
                        failures[w.utterance] = corpus.without_root(result)
                    else:
                        held[w.utterance] = result
                if w.utterance in held:
                    batch.append(w)
                    samples.append(held[w.utterance][w.sample : w.sample + w.samples])
                    left[w.utterance] -= 1
                    if not left[w.utterance]:
                        del held[w.utterance]
            if batch:
                longest_kept = max(w.frames for w in batch)
                encoding: Future[list[NDArray[Any]]] | Future[Reduced]
                if isinstance(encoder, DeviceEncoder):
                    encoding = pool.submit(encoder.run_reduced, samples, frames)
                else:
                    encoding = pool.submit(encoder.run, samples, frames, keep=longest_kept)
                following.append(partial(put, unit, batch, encoding))
                proceed(keep=encoder.concurrency + BATCHES_WAITING)
            flops += sum(size.window_flops(frames, plan.spec.context, w.frames) for w in batch)
            encoded += sum(len(x) for x in samples) / SAMPLE_RATE
            passed += sum(w.samples for w in windows) / SAMPLE_RATE
            progress(Progress(position, len(todo), passed, total, failed + len(failures)))
        following.append(partial(commit, unit, failures))
        failed += len(failures)
    proceed(keep=0)
    settle(0)
    reasons, overflows = writer.finish()
    progress(Progress(len(todo), len(todo), total, total, len(reasons)))
    ids = plan.utterances["id"].to_pylist()
    seconds = time.perf_counter() - begin
    return ExtractReport(
        store=writer.files.root,
        utterances=len(ids),
        failed=len(reasons),
        failures={str(ids[i]): reason for i, reason in sorted(reasons.items())},
        units=plan.units,
        resumed_units=len(done),
        audio_seconds=encoded,
        seconds=seconds,
        stages={k: round(v, 3) for k, v in (audio.seconds | encoder.seconds | sink.seconds).items()},
        overflows=overflows,
        flops=flops,
        sgemm_rate=limit,
        efficiency=flops / (seconds * limit) if limit else None,
    )
