"""Rate of Ray actors by their number, on an encoder that takes a fixed time and no processor: what Ray and we cost.

The encoder sleeps so many seconds a batch and gives samples as frames. Planning, and starting Ray and the workers, are
not counted: workers wait for each other once they have opened the store, and the clock runs from then on until the last
unit is committed. A unit is one recording of made-up sound, and one batch. Peer: one actor. All actors are on this
machine; the mark is 0.95 of four times one actor's rate for four.
Exit status 1 when a store differs from that of one process, byte for byte, or four actors miss the mark.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from _common import Table, environment, say, write_report
from numpy.typing import NDArray

from voxstrata.base.folders import scratch_folder
from voxstrata.base.progress import SILENT
from voxstrata.cluster.actors import Workers, connected, on_actors
from voxstrata.corpus import read_corpus
from voxstrata.encoders.frames import SAMPLE_RATE, SAMPLES_PER_FRAME
from voxstrata.engine import CpuEncoder, Runtime
from voxstrata.engine.encoder import Kept
from voxstrata.engine.reductions import StoredRows
from voxstrata.engine.run import open_run, prepare
from voxstrata.store import StoreSpec

MARK = 0.95
SECONDS = 20  # of a recording
RUNTIME = Runtime(threads=1, unit_megabytes=1)


class Sleeping(CpuEncoder):
    """Gives every 320th sample as the value of a frame, after a fixed time."""

    batch_seconds = 0.0

    def stored_rows(
        self, audio: Sequence[NDArray[np.float32]], frames: int, kept: Sequence[Kept] | None = None
    ) -> StoredRows:
        time.sleep(self.batch_seconds)
        rows = [
            np.repeat(samples[::SAMPLES_PER_FRAME, None], self.model.card.d_model, 1).astype(self.spec.stored_dtype)
            for samples in audio
        ]
        return StoredRows([rows] * len(self.outputs), [True] * len(self.outputs))


@dataclass(frozen=True)
class Handful:
    """When a worker began and ended a handful, by the clock of this machine."""

    begin: float
    end: float


def sleeping_worker(
    store: str, model: str, batch_seconds: float, ready: str, number: int
) -> Callable[[Sequence[int]], Handful]:
    """As the worker of `extract_on_ray`, with the encoder that sleeps. ready: where `number` of them meet."""
    run = open_run(store, model)
    encoder = Sleeping(run.model, run.plan.spec, RUNTIME)
    encoder.batch_seconds = batch_seconds
    (Path(ready) / str(os.getpid())).touch()
    while len(list(Path(ready).iterdir())) < number:
        time.sleep(0.01)

    def work(units: Sequence[int]) -> Handful:
        begin = time.time()
        run.work(encoder, run.given(units))
        return Handful(begin, time.time())

    return work


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def main() -> int:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--exported", required=True, type=Path, help="model that `voxstrata export` made")
    p.add_argument("--units", type=int, default=64)
    p.add_argument("--batch-seconds", type=float, default=1.0)
    p.add_argument("--actors", type=int, nargs="+", default=[1, 2, 4])
    p.add_argument("--out", type=Path, default=Path("bench"), help="folder for the report (JSON and Markdown)")
    args = p.parse_args()
    facts, spec = environment(1), StoreSpec(outputs="final")
    results: list[dict[str, Any]] = []
    with scratch_folder("ray-scaling") as name:
        for i in range(args.units):
            (sounds := Path(name) / "sounds").mkdir(exist_ok=True)
            samples = np.random.default_rng(i).uniform(-0.5, 0.5, SECONDS * SAMPLE_RATE)
            soundfile.write(sounds / f"{i}.wav", samples, SAMPLE_RATE)
        corpus = read_corpus(sounds)
        alone = prepare(corpus, args.exported, Path(name) / "alone.zarr", spec, RUNTIME)
        alone.work(Sleeping(alone.model, alone.plan.spec, RUNTIME), alone.given(alone.pending()))
        alone.finish()
        expected = contents(Path(name) / "alone.zarr")
        import ray

        ray.init("local", num_cpus=max(args.actors), include_dashboard=False, log_to_driver=False)
        with connected("local") as ray:
            for number in args.actors:
                store = Path(name) / f"{number}.zarr"
                run = prepare(corpus, args.exported, store, spec, RUNTIME)
                (ready := Path(name) / f"ready-{number}").mkdir()
                how = {"store": str(store), "model": str(args.exported.absolute()), "batch_seconds": args.batch_seconds}
                how |= {"ready": str(ready), "number": number}
                workers = Workers(number=number, threads=1, gpus=0)
                found = [h for h in on_actors(ray, workers, sleeping_worker, how, run.pending(), SILENT) if h]
                run.finish()
                seconds = max(h.end for h in found) - min(h.begin for h in found)
                same = contents(store) == expected
                results.append({"actors": number, "seconds": seconds, "identical": same})
                say(f"{number} actors: {seconds:.1f} s, the store of one process: {same}")
        ray.shutdown()
    one = results[0]["seconds"] * results[0]["actors"]
    for result in results:
        result["of_linear"] = one / (result["seconds"] * result["actors"])
    rows = [[str(r["actors"]), f"{r['seconds']:.1f}", f"{r['of_linear']:.3f}", str(r["identical"])] for r in results]
    table = Table(
        f"{alone.plan.units} units, {args.batch_seconds:g} s a batch:",
        ["actors", "s", "× one actor's rate, by actor", "the store of one process"],
        rows,
    )
    write_report("ray_scaling", "Ray actors by number", args, facts, {"runs": results}, [table], [f"The mark: {MARK}."])
    return int(not all(r["identical"] for r in results) or min(r["of_linear"] for r in results) < MARK)


if __name__ == "__main__":
    sys.exit(main())
