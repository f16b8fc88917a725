"""Rate by number of workers: measured with real processes and a made-up encoder, simulated to a thousand; a figure.

Measured: processes of one machine share a store with `--part`'s own code: real plan, claims, files and fsyncs. Their
encoder waits a fixed time for each second of audio and gives zeros, so that as many can be had as there are no cores
for. Simulated: `fleet.py`, with its usual fleet, and with its workers all alike.

    python benchmarks/workers.py --out bench --figure docs/images/workers.png
"""

from __future__ import annotations

import argparse
import shutil
import sys
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import soundfile
from _common import Table, environment, say, write_report
from _work import model_and_sounds, warm
from fleet import Fleet, simulate

from voxstrata.base.folders import scratch_folder

PROCESSES = (1, 2, 4, 8, 16)
WORKERS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1000)
UNITS_A_WORKER = 200  # simulated


def work(part: int, parts: int, store: Path, model: Path, wait: float) -> None:
    """One process: its part of the units, with an encoder that waits."""
    from numpy.typing import NDArray

    from voxstrata.encoders.frames import SAMPLE_RATE, encoder_frames
    from voxstrata.engine.cpu_encoder import CpuEncoder
    from voxstrata.engine.encoder import Kept
    from voxstrata.engine.extraction import share
    from voxstrata.engine.reductions import StoredRows
    from voxstrata.engine.run import open_run
    from voxstrata.engine.runtime import Runtime
    from voxstrata.store.part import Part

    class Waiting(CpuEncoder):
        def stored_rows(
            self, audio: Sequence[NDArray[np.float32]], frames: int, kept: Sequence[Kept] | None = None
        ) -> StoredRows:
            time.sleep(wait * sum(map(len, audio)) / SAMPLE_RATE)
            rows = [np.zeros((encoder_frames(len(x)), self.model.card.d_model), self.spec.stored_dtype) for x in audio]
            return StoredRows([rows] * len(self.outputs), [True] * len(self.outputs))

    run = open_run(store, model)
    encoder = Waiting(run.model, run.plan.spec, Runtime(threads=1, tokens=1500))
    (store.parent / f"ready-{part}").touch()
    while not (store.parent / "go").exists():
        time.sleep(0.002)
    share(run, encoder, part=Part(part, parts))
    (store.parent / f"ended-{part}").write_text(str(time.time()))


def write_corpus(folder: Path, units: int = 160) -> Path:
    """Two recordings of a second in each of so many languages, so that each is a unit."""
    folder.mkdir()
    rows = ["path\tlanguage"]
    for k in range(2 * units):
        sound = 0.01 * np.random.default_rng(k).standard_normal(16_000)
        soundfile.write(folder / f"{k}.wav", sound, 16_000)
        rows.append(f"{k}.wav\tx{k // 2}")
    manifest = folder / "speech.tsv"
    manifest.write_text("\n".join(rows) + "\n")
    return manifest


def measure(processes: int, corpus: Path, model: Path, folder: Path, wait: float) -> float:
    """Seconds from the start of the work to the end of its last process."""
    import os

    from voxstrata.engine.run import prepare
    from voxstrata.engine.runtime import Runtime
    from voxstrata.store import StoreSpec

    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    store = folder / "store.zarr"
    children = []
    if (pid := os.fork()) == 0:  # preparing starts threads, which a fork would lose
        prepare(corpus, model, store, StoreSpec("final"), Runtime(threads=1))
        os._exit(0)
    os.waitpid(pid, 0)
    for part in range(1, processes + 1):
        if (pid := os.fork()) == 0:
            code = 1
            try:
                work(part, processes, store, model, wait)
                code = 0
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(code)
        children.append(pid)
    while len(list(folder.glob("ready-*"))) < processes:
        time.sleep(0.01)
    begin = time.time()
    (folder / "go").touch()
    if any(os.waitpid(pid, 0)[1] for pid in children):
        raise SystemExit("a process failed")
    return max(float(path.read_text()) for path in folder.glob("ended-*")) - begin


def draw(path: Path, measured: dict[int, float], simulated: dict[str, dict[int, float]]) -> None:
    """Rates over workers, and the share of the ideal."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4.2), layout="constrained")
    figure.suptitle("Workers on one store: how far more of them go faster (higher is better)", fontsize=11)
    ideal = [1, max(WORKERS)]
    left.plot(ideal, ideal, color="0.6", linewidth=1, label="ideal")
    for name, points in simulated.items():
        for axes, values in ((left, [n * u for n, u in points.items()]), (right, list(points.values()))):
            axes.plot(list(points), values, "--", marker="s", markersize=4, label=f"simulated, {name}")
    for axes, values in ((left, list(measured.values())), (right, [r / n for n, r in measured.items()])):
        axes.plot(list(measured), values, "-", marker="o", color="black", label="measured, made-up encoder")
    right.axhline(0.97, color="0.3", linestyle=":", linewidth=1)
    right.annotate("0.97", (1, 0.97), (-4, -11), ("axes fraction", "data"), "offset points", ha="right")
    for axes in (left, right):
        axes.set_xscale("log")
        axes.set_xticks([1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1000], [str(n) for n in WORKERS], fontsize=8)
        axes.minorticks_off()
        axes.set_xlabel("workers")
        axes.grid(alpha=0.3)
    left.set_yscale("log")
    left.set_ylabel("rate, × that of one worker")
    right.set_ylabel("share of the ideal")
    shares = [r / n for n, r in measured.items()] + [u for points in simulated.values() for u in points.values()]
    right.set_ylim(int(10 * min(shares)) / 10, 1.01)
    left.legend(fontsize=9)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def main() -> int:
    """Run, print and draw."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--wait", type=float, default=0.2, help="seconds of the made-up encoder for a second of audio")
    p.add_argument("--repeats", type=int, default=1)
    p.add_argument("--out", type=Path, default=Path("bench"))
    p.add_argument("--figure", type=Path, default=Path("bench/workers.png"))
    args = p.parse_args()
    warm()
    facts: dict[str, Any] = environment(1)
    with scratch_folder("workers") as scratch:
        model, _ = model_and_sounds(Path(scratch))
        corpus = write_corpus(Path(scratch) / "many")
        seconds = {n: [measure(n, corpus, model, Path(scratch) / "run", args.wait) for _ in range(args.repeats)]
                   for n in PROCESSES}  # fmt: skip
    rates = {n: median(seconds[1]) / median(values) for n, values in seconds.items()}
    say(", ".join(f"{n}: {r:.2f}" for n, r in rates.items()))
    alike: dict[str, Any] = {"stragglers": 0.0, "lost": 0.0, "late": 0.0}
    fleets: dict[str, dict[str, Any]] = {"stragglers, late and lost workers": {}, "all alike": alike}
    simulated = {
        name: {n: simulate(Fleet(workers=n, units=UNITS_A_WORKER * n, **how)).utilisation for n in WORKERS}
        for name, how in fleets.items()
    }
    draw(args.figure, rates, simulated)
    rows = [["measured", str(n), f"{r:.2f}", f"{r / n:.3f}"] for n, r in rates.items()]
    rows += [
        [f"simulated, {k}", str(n), f"{n * u:.1f}", f"{u:.3f}"] for k, us in simulated.items() for n, u in us.items()
    ]
    table = Table("Rate, × that of one worker, and its share of the ideal:", ["", "workers", "rate", "share"], rows)
    notes = [f"Measured: an encoder that waits {args.wait} s for each second of audio and gives zeros; "
             f"median of {args.repeats}.",
             "Seconds: " + ", ".join(f"{n}: {min(v):.1f}–{max(v):.1f}" for n, v in seconds.items()),
             f"Simulated: {UNITS_A_WORKER} units a worker."]  # fmt: skip
    write_report("workers", "Rate by number of workers", args, facts, {"seconds": seconds, "simulated": simulated},
                 [table], notes)  # fmt: skip
    return 0


if __name__ == "__main__":
    sys.exit(main())
