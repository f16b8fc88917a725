"""Speed of extraction beside what a user would otherwise run: same clips, same cores, same threads, one run.

voxstrata (`padded`, `bucketed`, `trimmed`, and `bucketed` with 8-bit weights): `extract()` of all outputs as float16
into a store on disk. The wall time is the whole call's: model check, probing, plan, sessions, decoding, log-mel,
encoder, writing.
Our session alone (`bucketed`): the same batches through log-mel and encoder, sessions included, with the audio decoded
beforehand and nothing written.
PyTorch (eager and sdpa, batch 1 and 8, all hidden states), optimum's exported encoder on ONNX Runtime and CTranslate2's
encoder (batch 1 and 8, last state only; pip install optimum-onnx ctranslate2): `decode()`, WhisperFeatureExtractor to
30 s, encoder, float32. Loading and writing are not counted, and a warm-up batch goes first. They may be timed on a
random part of the clips (`--baseline-clips`) and scaled by their number.

Systems take turns, `--repeats` times; the tables give medians and, in brackets, the range.

Efficiency is the arithmetic the plan needs (`voxstrata.engine.budget`, which has the formula) / (wall × sgemm), with
sgemm the float32 rate of numpy's matrix product (2048³) on the same threads, measured at the start of every turn.
Exit status 1 when stored `padded` states are off PyTorch's by more than 2e-3 (relative L2, float16 storage), or a
peer's last state by more than 1e-3, or when the mean frame cosine of stored `bucketed` `final` to it is below 0.98.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import time
from collections import defaultdict, deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from _common import Table, environment, exported, parser, pin, say, subset, write_report
from _peers import Encode, ctranslate2, installed, optimum, pytorch
from numpy.typing import NDArray

from voxstrata.audio.decode import decode
from voxstrata.base.folders import scratch_folder
from voxstrata.corpus import Corpus, read_corpus
from voxstrata.encoders import Context, ModelFolder
from voxstrata.encoders.context import Mode
from voxstrata.encoders.frames import SAMPLE_RATE
from voxstrata.engine import CpuEncoder, Runtime, extract
from voxstrata.engine.budget import EncoderSize, Work, sgemm_rate
from voxstrata.engine.pipeline import batches
from voxstrata.engine.planning import plan_corpus
from voxstrata.exporters import ExportSpec, export
from voxstrata.exporters.checkpoint import Checkpoint
from voxstrata.exporters.pytorch import hidden_states
from voxstrata.store import StoreSpec, open_store

Samples = NDArray[np.float32]

TOLERANCE = 2e-3  # relative L2 of float16-stored states
CHECKED = 8  # clips whose stored states are compared with PyTorch
COSINE = 0.98  # of `final`, mean over the frames of those clips, `bucketed`
PEER_TOLERANCE = 1e-3  # relative L2 of float32 states
MODES: tuple[Mode, ...] = ("padded", "bucketed", "trimmed")
SESSION = "our session alone"
INT8 = "bucketed, 8-bit weights"
KINDS = ("PyTorch", "optimum", "CTranslate2", SESSION)


@dataclass(frozen=True)
class Run:
    """One timed run: wall seconds and busy seconds of the stages, scaled to all clips."""

    wall: float
    stages: dict[str, float]


def run_voxstrata(name: str, corpus: Corpus, model: ModelFolder, work: Path, threads: int) -> Run:
    """Extract into `work/NAME.zarr`, anew, in the context that the name begins with."""
    store, mode = work / f"{name}.zarr", mode_of(name)
    shutil.rmtree(store, ignore_errors=True)
    begin = time.perf_counter()
    done = extract(corpus, model.path, store, StoreSpec(context=Context(mode)), Runtime(threads=threads), long="error")
    wall = time.perf_counter() - begin
    if done.failed:
        sys.exit(f"measure on clips that can be read: {next(iter(done.failures.values()))}")
    return Run(wall, {"start": wall - done.seconds, **done.stages})


def mode_of(name: str) -> Mode:
    """The context in which a system runs; peers have only one."""
    return next((m for m in MODES if m in name), "padded")


def run_session(mode: Mode, corpus: Corpus, model: ModelFolder, audio: Sequence[Samples], threads: int) -> Run:
    """Our session over the batches of `extract`: `audio` holds the samples of every row of the corpus."""
    spec = StoreSpec(context=Context(mode))
    plan = plan_corpus(corpus, model, spec)
    row = {name: i for i, name in enumerate(corpus.table["id"].to_pylist())}
    of = [audio[row[name]] for name in plan.utterances["id"].to_pylist()]
    begin = time.perf_counter()
    encoder = CpuEncoder(model, spec, Runtime(threads=threads))
    pending: deque[Future[Any]] = deque()

    def session(samples: Sequence[Samples], frames: int, keep: int) -> None:
        encoder.encode(encoder.log_mel(samples, frames), frames, keep=keep, half=True)

    with ThreadPoolExecutor(encoder.concurrency) as pool:
        for unit in range(plan.units):
            for frames, windows in batches(plan, unit, encoder):
                samples = [of[w.utterance][w.sample : w.sample + w.samples] for w in windows]
                pending.append(pool.submit(session, samples, frames, max(w.frames for w in windows)))
                if len(pending) > encoder.concurrency:
                    pending.popleft().result()
        for encoding in pending:
            encoding.result()
    return Run(time.perf_counter() - begin, dict(encoder.seconds))


def run_peer(encode: Encode, batch: int, checkpoint: Checkpoint, corpus: Corpus, rows: Sequence[int]) -> Run:
    """Encode the recordings `rows`, padded to 30 s; times are scaled to the whole corpus."""
    seconds: dict[str, float] = defaultdict(float)
    for i in range(0, len(rows), batch):
        begin = time.perf_counter()
        audio = [decode(corpus.recording(row)) for row in rows[i : i + batch]]
        decoded = time.perf_counter()
        features = checkpoint.extractor(audio, sampling_rate=SAMPLE_RATE, return_tensors="np")["input_features"]
        extracted = time.perf_counter()
        encode(features)
        seconds["decode"] += decoded - begin
        seconds["log_mel"] += extracted - decoded
        seconds["encode"] += time.perf_counter() - extracted
    scale = len(corpus) / len(rows)
    return Run(scale * sum(seconds.values()), {k: scale * v for k, v in seconds.items()})


def peers(checkpoint: Checkpoint, work: Path, threads: int) -> dict[str, Encode]:
    """The encoders to hold against, by name; those whose package is not installed are left out."""
    found = {f"PyTorch {a}": pytorch(checkpoint, a) for a in ("eager", "sdpa")}
    for name, make in (("optimum", optimum), ("CTranslate2", ctranslate2)):
        if installed(name):
            say(f"converting for {name}")
            found[name] = make(checkpoint, work / name, threads)
        else:
            say(f"{name} is not installed and not measured")
    return found


def last_states(found: dict[str, Encode], checkpoint: Checkpoint, audio: Samples) -> dict[str, float]:
    """Relative L2 of every peer's last state to PyTorch's, on one recording."""
    features = checkpoint.extractor(audio, sampling_rate=SAMPLE_RATE, return_tensors="np")["input_features"]
    want = found["PyTorch eager"](features).astype(np.float64)
    return {n: float(np.linalg.norm(f(features) - want) / np.linalg.norm(want)) for n, f in found.items()}


def differences(store: Path, checkpoint: Checkpoint, corpus: Corpus, rows: Sequence[int]) -> dict[str, float]:
    """Largest relative L2 of stored states to PyTorch's of the padded window, by output."""
    opened, ids = open_store(store), corpus.table["id"].to_pylist()
    off: dict[str, list[float]] = defaultdict(list)
    for row in rows:
        audio = decode(corpus.recording(row))
        features = checkpoint.extractor(audio, sampling_rate=SAMPLE_RATE, return_tensors="pt")["input_features"]
        for name, states in hidden_states(checkpoint.encoder, features).items():
            got = opened.frames(ids[row], name).astype(np.float64)
            want = states[0, : len(got)].double().numpy()
            off[name].append(np.linalg.norm(got - want) / np.linalg.norm(want))
    return {name: float(np.max(values)) for name, values in off.items()}  # NaN stays NaN


def cosines(
    stores: dict[str, Path], checkpoint: Checkpoint, corpus: Corpus, rows: Sequence[int]
) -> dict[str, list[float]]:
    """Mean frame cosine of stored `final` to PyTorch's of the padded window, by store and recording."""
    ids, found = corpus.table["id"].to_pylist(), defaultdict(list)
    for row in rows:
        audio = decode(corpus.recording(row))
        features = checkpoint.extractor(audio, sampling_rate=SAMPLE_RATE, return_tensors="pt")["input_features"]
        final = hidden_states(checkpoint.encoder, features)["final"][0].double().numpy()
        for name, store in stores.items():
            got = open_store(store).frames(ids[row], "final").astype(np.float64)
            want = final[: len(got)]
            products = (got * want).sum(1) / np.linalg.norm(got, axis=1) / np.linalg.norm(want, axis=1)
            found[name].append(float(products.mean()))
    return found


def report(
    args: argparse.Namespace,
    facts: dict[str, object],
    audio_seconds: float,
    clips: int,
    timed: int,
    runs: dict[str, list[Run]],
    rates: Sequence[float],
    flops: dict[str, int],
    off: dict[str, float],
    off_peers: dict[str, float],
    near: dict[str, list[float]],
) -> None:
    """Write the tables; peers were timed on `timed` of `clips` clips."""
    rate = median(rates)
    walls = {name: median(r.wall for r in own) for name, own in runs.items()}
    best = min((name for name in walls if name.startswith("PyTorch")), key=walls.__getitem__)
    rows, systems = [], {}
    for name, wall in sorted(walls.items(), key=lambda item: item[1]):
        all_walls = [r.wall for r in runs[name]]
        typical = min(runs[name], key=lambda r: abs(r.wall - wall)).stages
        speed, ratio, efficiency = audio_seconds / wall, walls[best] / wall, flops[name] / (wall * rate)
        systems[name] = {
            "wall_seconds": all_walls,
            "audio_hours_per_hour": speed,
            "ratio_to_baseline": ratio,
            "efficiency": efficiency,
            "stage_seconds": typical,
        }
        rows.append(
            [
                f"{name} (baseline)" if name == best else name,
                f"{wall:.1f}" + (f" ({min(all_walls):.1f}–{max(all_walls):.1f})" if len(all_walls) > 1 else ""),
                f"{speed:.1f}",
                f"{ratio:.2f}",
                f"{efficiency:.0%}",
                ", ".join(f"{k} {v:.1f}" for k, v in typical.items()),
            ]
        )
    kinds = [k for k in KINDS if any(name.startswith(k) for name in walls)]
    fastest = {k: min(wall for name, wall in walls.items() if name.startswith(k)) for k in kinds}
    ours = [name for name in walls if name.startswith("voxstrata")]
    faster = [[name, *(f"{fastest[k] / walls[name]:.2f}" for k in kinds)] for name in ours]
    header = ["system", "wall s", "audio-hours per hour (RTFx)", "× baseline", "efficiency", "stage seconds"]
    inputs = {"clips": clips, "audio_seconds": audio_seconds, "sgemm_flops_per_second": list(rates)}
    write_report(
        "extraction",
        f"Extraction speed, {Path(args.model).name}",
        args,
        facts,
        inputs
        | {"encoder_flops": flops, "systems": systems, "padded_relative_l2": off, "peers_relative_l2": off_peers}
        | {"cosine_of_final": near},
        [
            Table(
                f"{clips} clips, {audio_seconds / 60:.1f} minutes, mean {audio_seconds / clips:.2f} s:", header, rows
            ),
            Table("Wall time of the fastest setting of each system, in those of:", ["", *kinds], faster),
            Table(
                f"Stored `padded` beside PyTorch on {min(CHECKED, timed)} clips, allowed {TOLERANCE:.0e}:",
                ["output", "largest relative L2"],
                [[name, f"{value:.1e}"] for name, value in off.items()],
            ),
            Table(
                f"Stored `final` beside PyTorch's, padded, on these clips; `bucketed` at least {COSINE}:",
                ["context", "mean frame cosine", "worst clip"],
                [[name, f"{np.mean(c):.4f}", f"{min(c):.4f}"] for name, c in near.items()],
            ),
            Table(
                f"Last state beside PyTorch eager on one clip, allowed {PEER_TOLERANCE:.0e}:",
                ["system", "relative L2"],
                [[name, f"{value:.1e}"] for name, value in off_peers.items()],
            ),
        ],
        [
            f"Limit: numpy sgemm, {rate / 1e9:.0f} GFLOP/s ({min(rates) / 1e9:.0f}–{max(rates) / 1e9:.0f}).",
            f"Peers were timed on {timed} of {clips} clips, drawn at random, and scaled by their number: padded to "
            "30 s, all cost the same. The best setting of PyTorch is the baseline.",
            "The wall of voxstrata includes probing, sessions and writing; peers' neither loading nor writing. Its "
            "stages overlap; decode, log_mel and encode add up threads; start is the check of the model, headers, plan "
            "and sessions; wait is the encoder's for audio.",
        ],
    )


def main() -> int:
    p = parser(__doc__)
    p.add_argument("--clips", type=int, help="measure on so many clips; default: all")
    p.add_argument("--baseline-clips", type=int, help="time peers on so many of them; default: all")
    p.add_argument("--repeats", type=int, default=3)
    args = p.parse_args()
    pin(args.threads)
    facts = environment(args.threads)
    torch.set_num_threads(args.threads)
    corpus = subset(read_corpus(args.corpus), args.clips)
    part = np.random.default_rng(0).permutation(len(corpus))[: args.baseline_clips].tolist()
    with scratch_folder("extraction") as folder:
        work = Path(folder)
        checkpoint, model = exported(args, work / "model")
        found = peers(checkpoint, work, args.threads)
        off_peers = last_states(found, checkpoint, decode(corpus.recording(part[0])))
        audio = [decode(corpus.recording(i)) for i in range(len(corpus))]
        systems: dict[str, Callable[[], Run]] = {}
        for name in MODES:
            systems[f"voxstrata {name}"] = partial(run_voxstrata, name, corpus, model, work, args.threads)
        say("exporting with 8-bit weights")
        int8 = export(args.model, work / "int8", ExportSpec(dtype="int8", calibrate=args.calibrate))
        systems[f"voxstrata {INT8}"] = partial(run_voxstrata, INT8, corpus, int8, work, args.threads)
        systems[f"{SESSION}, bucketed"] = partial(run_session, "bucketed", corpus, model, audio, args.threads)
        for name, encode in found.items():
            for batch in (1, 8):
                run_peer(encode, batch, checkpoint, corpus, part[:batch])  # warm-up
                systems[f"{name}, batch {batch}"] = partial(run_peer, encode, batch, checkpoint, corpus, part)
        runs: dict[str, list[Run]] = defaultdict(list)
        rates = []
        for repeat in range(args.repeats):
            rates.append(sgemm_rate(args.threads))
            for name, run in systems.items():
                runs[name].append(run())
                say(f"repeat {repeat + 1} of {args.repeats}: {name} {runs[name][-1].wall:.1f} s")
        off = differences(work / "padded.zarr", checkpoint, corpus, part[:CHECKED])
        stores = {name: work / f"{name}.zarr" for name in (*MODES[1:], INT8)}
        near = cosines(stores, checkpoint, corpus, part[:CHECKED])
        flops = {}
        for name in systems:
            plan = plan_corpus(corpus, model, StoreSpec(context=Context(mode_of(name))))
            flops[name] = Work.of(plan, EncoderSize.of(model, model.card.outputs)).flops

    audio_seconds = int(plan.samples.sum()) / SAMPLE_RATE
    report(args, facts, audio_seconds, len(corpus), len(part), runs, rates, flops, off, off_peers, near)
    right = all(v <= TOLERANCE for v in off.values()) and all(v <= PEER_TOLERANCE for v in off_peers.values())
    return int(not right or not np.mean(near["bucketed"]) >= COSINE)


if __name__ == "__main__":
    sys.exit(main())
