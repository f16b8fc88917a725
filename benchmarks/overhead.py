"""What extraction takes beside its own session: `extract()` into a store, and the same batches alone.

The session alone has the audio decoded beforehand and writes nothing; the batches, threads, log-mel and encoder are
those of `extract`, whose wall time is the whole call's: model check, probing, plan, sessions, decoding, writing.
Processor seconds are those of the process, user and system, all threads: a busy machine disturbs them less. Those of
the stages are their threads' own; the rest is reading headers, planning and making sessions. Both `bucketed`, all
outputs as float16. They take turns, `--repeats` times, each the first every other time; the ratio is that of the
medians. The project's mark: at most 1.05.
Exit status 1 when a stored frame is not, bit for bit, what the session gives for the recording by itself.
"""

from __future__ import annotations

import argparse
import functools
import resource
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from _common import Table, environment, pin, say, subset, write_report
from extraction import Run, run_session, run_voxstrata

from voxstrata.audio.decode import decode
from voxstrata.base.folders import scratch_folder
from voxstrata.corpus import Corpus, read_corpus
from voxstrata.encoders import Context, ModelFolder, open_model
from voxstrata.encoders.frames import WINDOW_SAMPLES, encoder_frames
from voxstrata.engine import CpuEncoder, Runtime, cpu_encoder
from voxstrata.engine.decoding import DecodeAhead
from voxstrata.engine.sink import UnitSink
from voxstrata.store import StoreSpec, open_store

CHECKED = 20  # recordings


def off(store: Path, corpus: Corpus, model: ModelFolder) -> list[str]:
    """Of CHECKED recordings those whose stored frames are not the session's."""
    opened, context = open_store(store), Context("bucketed")
    encoder, ids = CpuEncoder(model, StoreSpec(context=context), Runtime(threads=1)), corpus.table["id"].to_pylist()
    wrong = []
    for row in np.random.default_rng(0).permutation(len(corpus))[:CHECKED].tolist():
        audio = decode(corpus.recording(row))[:WINDOW_SAMPLES]
        frames = encoder_frames(len(audio))
        computed = context.frames_computed(frames)
        states = encoder.encode(encoder.log_mel([audio], computed), computed, keep=frames, half=True)
        stored = [opened.frames(ids[row], o)[:frames] for o in encoder.outputs]
        if not all(np.array_equal(a[0], b) for a, b in zip(states, stored, strict=True)):
            wrong.append(ids[row])
    return wrong


class Stages:
    """Processor seconds of the threads that work at each stage, from here on."""

    METHODS = (
        (DecodeAhead, "_decode", "decode"),
        (CpuEncoder, "log_mel", "log_mel"),
        (CpuEncoder, "encode", "encode"),
        (cpu_encoder, "reduce_states", "reduce"),
        (UnitSink, "put", "place"),
        (UnitSink, "commit", "write"),
    )

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._lock = threading.Lock()
        for owner, method, stage in self.METHODS:
            setattr(owner, method, self._timed(getattr(owner, method), stage))

    def _timed(self, method: Callable[..., Any], stage: str) -> Callable[..., Any]:
        @functools.wraps(method)
        def timed(*args: Any, **settings: Any) -> Any:
            begin = time.thread_time()
            try:
                return method(*args, **settings)
            finally:
                with self._lock:
                    self.seconds[stage] += time.thread_time() - begin

        return timed

    def taken(self) -> dict[str, float]:
        """What came together since the last call."""
        taken, self.seconds = dict(self.seconds), defaultdict(float)
        return taken


def processor_seconds() -> float:
    """Of this process since its start, user and system."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def main() -> int:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--exported", required=True, type=Path, help="model that `voxstrata export` made")
    p.add_argument("--corpus", required=True, metavar="CORPUS", help="folder of audio or manifest to measure on")
    p.add_argument("--clips", type=int, help="measure on so many clips; default: all")
    p.add_argument("--threads", type=int, default=2, help="cores and threads")
    p.add_argument("--repeats", type=int, default=3)
    p.add_argument("--out", type=Path, default=Path("bench"), help="folder for the report (JSON and Markdown)")
    args = p.parse_args()
    pin(args.threads)
    facts = environment(args.threads)
    corpus, model = subset(read_corpus(args.corpus), args.clips), open_model(args.exported)
    audio = [decode(corpus.recording(i)) for i in range(len(corpus))]
    engine, session = "voxstrata", "its session alone"
    runs: dict[str, list[Run]] = {engine: [], session: []}
    processor: dict[str, list[float]] = {engine: [], session: []}
    by_stage: dict[str, list[dict[str, float]]] = {engine: [], session: []}
    stages = Stages()
    with scratch_folder("overhead") as name:
        for turn in range(args.repeats):
            for system in (engine, session)[:: 1 if turn % 2 else -1]:
                begin = processor_seconds()
                if system == engine:
                    run = run_voxstrata("bucketed", corpus, model, Path(name), args.threads)
                else:
                    run = run_session("bucketed", corpus, model, audio, args.threads)
                runs[system].append(run)
                processor[system].append(processor_seconds() - begin)
                by_stage[system].append(stages.taken())
                say(f"turn {turn + 1} of {args.repeats}: {system} {run.wall:.1f} s")
        wrong = off(Path(name) / "bucketed.zarr", corpus, model)
    walls = {k: [r.wall for r in own] for k, own in runs.items()}
    ratio, of_processor = (median(f[engine]) / median(f[session]) for f in (walls, processor))
    rows = [
        [
            k,
            *(f"{median(x):.1f} ({min(x):.1f}–{max(x):.1f})" for x in (w, processor[k])),
            ", ".join(f"{stage} {median(t[stage] for t in by_stage[k]):.1f}" for stage in by_stage[k][0]),
        ]
        for k, w in walls.items()
    ]
    write_report(
        "overhead",
        "Extraction beside its own session",
        args,
        facts,
        {
            "clips": len(corpus),
            "wall_seconds": walls,
            "processor_seconds": processor,
            "by_stage": by_stage,
            "ratio": ratio,
            "wrong": wrong,
        },
        [Table(f"{len(corpus)} clips, medians (ranges):", ["", "wall s", "processor s", "of these, by stage"], rows)],
        [
            f"Extraction, × its session alone: wall {ratio:.3f}, processor {of_processor:.3f}; the mark is 1.05.",
            f"Stored frames of {min(CHECKED, len(corpus))} recordings that are not the session's: {len(wrong)}.",
        ],
    )
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
