"""The encoder's graphs on a CPU: the standard one beside the CPU's own, a batch on all threads beside one on each.

Times the encoder alone, on noise, with the silence cache that the model was exported with. The ways take turns,
`--repeats` times; the table gives the efficiency of each one's fastest turn: arithmetic of the windows (every position
of every block; see voxstrata.engine.budget) / (wall × numpy's sgemm rate, the best of one measurement per turn).
Exit status 1 when the graphs' states differ by more than 2e-4 (relative L2).
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import onnxruntime as ort
from _common import Table, environment, pin, say, write_report

from voxstrata.audio.units import WINDOW_FRAMES
from voxstrata.engine.budget import EncoderSize, sgemm_rate
from voxstrata.model import Context, ModelFolder, open_model
from voxstrata.model.card import CACHED, CPU

SHAPES = ((100, 15, 3), (300, 5, 4), (WINDOW_FRAMES, 1, 4))  # positions, windows of a batch on all threads, batches
TOLERANCE = 2e-4
Feeds = dict[str, np.ndarray]


def session(path: Path, threads: int) -> ort.InferenceSession:
    """As the engine makes it, on so many threads."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    options.enable_mem_pattern = False
    return ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def feeds(model: ModelFolder, graph: str, frames: int, batch: int) -> Feeds:
    """Noise in the range of log-mel, and the silence cache."""
    card, keys = model.card, model.silence().for_frames(frames)
    log_mel = np.random.default_rng(0).uniform(-1, 1.5, (batch, card.n_mels, 2 * frames)).astype(np.float32)
    found: Feeds = {"log_mel": log_mel}
    found |= {"silence_key": keys.key, "silence_value": keys.value, "silence_bias": keys.bias}
    return found | ({"positions": np.full(card.layers, frames)} if graph == CPU else {})


def work(run: ort.InferenceSession, fed: Feeds, batches: int, pool: ThreadPoolExecutor | None) -> float:
    """Wall seconds of so many batches, one after the other or on the pool's threads."""
    begin = time.perf_counter()
    if pool:
        list(pool.map(lambda _: run.run(["final"], fed) and None, range(batches)))
    else:
        for _ in range(batches):
            run.run(["final"], fed)
    return time.perf_counter() - begin


def main() -> int:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--exported", required=True, type=Path, help="float32 model that `voxstrata export` made")
    p.add_argument("--threads", type=int, default=2, help="cores and threads")
    p.add_argument("--repeats", type=int, default=5)
    p.add_argument("--out", type=Path, default=Path("bench"), help="folder for the report (JSON and Markdown)")
    args = p.parse_args()
    pin(args.threads)
    model = open_model(args.exported)
    size, pool = EncoderSize.of(model, ["final"]), ThreadPoolExecutor(args.threads)
    sessions = {(g, n): session(model.path / g, n) for g in (CACHED, CPU) for n in (1, args.threads)}
    rows, worst = [], 0.0
    for frames, batch, batches in SHAPES:
        a, b = (sessions[g, 1].run(["final"], feeds(model, g, frames, 1))[0] for g in (CACHED, CPU))
        worst = max(worst, float(np.linalg.norm(a - b) / np.linalg.norm(a)))
        ways: dict[str, Callable[[], float]] = {}
        for g, called in ((CACHED, "standard"), (CPU, "CPU's")):
            together, alone = feeds(model, g, frames, batch), feeds(model, g, frames, 1)
            ways[f"{called}, a batch on {args.threads} threads"] = partial(
                work, sessions[g, args.threads], together, batches, None
            )
            ways[f"{called}, a window on each thread"] = partial(work, sessions[g, 1], alone, batch * batches, pool)
        times, rates = defaultdict(list), []
        for _ in range(args.repeats):
            rates.append(sgemm_rate(args.threads))
            for name, way in ways.items():
                times[name].append(way())
        for name, seconds in times.items():
            per_window = min(seconds) / (batch * batches)
            efficiency = size.window_flops(frames, Context()) / (per_window * max(rates))
            rows.append([str(frames), name, f"{per_window:.4f}", f"{efficiency:.2f}"])
            say(" ".join(rows[-1]))
    write_report(
        "graphs",
        "The encoder's graphs on a CPU",
        args,
        environment(args.threads),
        {"worst_relative_l2": worst},
        [Table("Fastest turns:", ["positions", "graph and threads", "s per window", "efficiency"], rows)],
        [f"States of the two graphs differ by {worst:.1e} (relative L2), allowed {TOLERANCE:.0e}."],
    )
    return int(not worst <= TOLERANCE)


if __name__ == "__main__":
    sys.exit(main())
