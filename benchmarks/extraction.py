"""Speed of extraction beside Hugging Face's PyTorch encoder: same clips, same cores, same threads, one run.

voxstrata (`padded`, `bucketed`, `trimmed`): `extract()` of all outputs as float16 into a store on disk. The wall
time is the whole call's: model check, probing, plan, sessions, decoding, log-mel, encoder, writing.
PyTorch (eager and sdpa, batch 1 and 8): `decode()`, WhisperFeatureExtractor to 30 s, encoder with
`output_hidden_states=True` under inference_mode. Loading the checkpoint and writing are not counted, and a warm-up
batch goes first. It may be timed on a random part of the clips (`--baseline-clips`) and scaled by their number.

Systems take turns, `--repeats` times; the table gives medians and, in brackets, the range.

Efficiency is encoder FLOPs / (wall × sgemm), with sgemm the float32 rate of numpy's matrix product (2048³) in this
process at the same threads. One window of m computed positions that attends to K = m + cached keys costs

    conv1      2 · 2m · 3 · mels · d
    conv2      2 · m · 3 · d · d
    per layer  4 · 2 · m · d²   (query, key, value and output projections)
             + 2 · 2 · m · K · d   (logits, weighted values)
             + 2 · 2 · m · d · ffn   (MLP)

with a multiplication and an addition counted as two. Softmax, LayerNorm, GELU and log-mel are left out.
Exit status 1 when stored `padded` states are off PyTorch's by more than 2e-3 (relative L2, float16 storage).
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median

import numpy as np
import torch
from _common import Table, environment, exported, parser, pin, say, subset, write_report

from voxstrata.audio.decode import decode
from voxstrata.audio.units import SAMPLE_RATE, WINDOW_FRAMES
from voxstrata.corpus import Corpus, probe_corpus, read_corpus
from voxstrata.engine import extract
from voxstrata.exporters.checkpoint import Checkpoint
from voxstrata.exporters.reference import hidden_states
from voxstrata.model import Context, ModelFolder
from voxstrata.store import open_store
from voxstrata.store.plan import Plan, make_plan
from voxstrata.store.spec import StoreSpec

TOLERANCE = 2e-3  # relative L2 of float16-stored states
CHECKED = 4  # clips whose stored states are compared with PyTorch
MODES = ("padded", "bucketed", "trimmed")


@dataclass(frozen=True)
class Run:
    """One timed run: wall seconds and busy seconds of the stages, scaled to all clips."""

    wall: float
    stages: dict[str, float]


def encoder_flops(plan: Plan, checkpoint: Checkpoint, silence_keys: int) -> int:
    """FLOPs of the encoder over all windows of a plan (see the module's docstring).

    silence_keys: cached keys of the model, 0 when there is one for each position.
    """
    shape, context, total = checkpoint.shape, plan.spec.context, 0
    d, ffn = shape.d_model, checkpoint.config.encoder_ffn_dim
    for u in range(len(plan.frames)):
        for window in plan.windows(u):
            m = context.frames_computed(window.frames)
            keys = m
            if context.mode == "bucketed" and m < WINDOW_FRAMES:
                keys += silence_keys or WINDOW_FRAMES - m
            layer = 8 * m * d**2 + 4 * m * keys * d + 4 * m * d * ffn
            total += 12 * m * shape.n_mels * d + 6 * m * d**2 + shape.layers * layer
    return total


def sgemm_rate() -> float:
    """Best float32 FLOP/s of numpy's matrix product at 2048³."""
    n = 2048
    a, b = np.random.default_rng(0).standard_normal((2, n, n), np.float32)
    out = np.empty((n, n), np.float32)
    seconds = []
    for _ in range(8):
        begin = time.perf_counter()
        np.matmul(a, b, out=out)
        seconds.append(time.perf_counter() - begin)
    return 2 * n**3 / min(seconds)


def run_voxstrata(mode: str, corpus: Corpus, model: ModelFolder, work: Path, threads: int) -> Run:
    """Extract into `work/MODE.zarr`, anew."""
    store = work / f"{mode}.zarr"
    shutil.rmtree(store, ignore_errors=True)
    begin = time.perf_counter()
    done = extract(corpus, model.path, store, context=Context(mode), threads=threads, long="error")
    wall = time.perf_counter() - begin
    if done.failed:
        sys.exit(f"measure on clips that can be read: {next(iter(done.failures.values()))}")
    return Run(wall, {"start": wall - done.seconds, **done.stages})


def run_pytorch(attention: str, batch: int, checkpoint: Checkpoint, corpus: Corpus, rows: Sequence[int]) -> Run:
    """Encode the recordings `rows`, padded to 30 s; times are scaled to the whole corpus."""
    checkpoint.encoder.set_attn_implementation(attention)
    seconds: dict[str, float] = defaultdict(float)
    for i in range(0, len(rows), batch):
        begin = time.perf_counter()
        audio = [decode(corpus.absolute(row)) for row in rows[i : i + batch]]
        decoded = time.perf_counter()
        features = checkpoint.extractor(audio, sampling_rate=SAMPLE_RATE, return_tensors="pt")["input_features"]
        extracted = time.perf_counter()
        with torch.inference_mode():
            checkpoint.encoder(features, output_hidden_states=True)
        seconds["decode"] += decoded - begin
        seconds["log_mel"] += extracted - decoded
        seconds["encode"] += time.perf_counter() - extracted
    scale = len(corpus) / len(rows)
    return Run(scale * sum(seconds.values()), {k: scale * v for k, v in seconds.items()})


def differences(store: Path, checkpoint: Checkpoint, corpus: Corpus, rows: Sequence[int]) -> dict[str, float]:
    """Largest relative L2 of stored states to PyTorch's of the padded window, by output."""
    opened, ids = open_store(store), corpus.table["id"].to_pylist()
    off: dict[str, list[float]] = defaultdict(list)
    for row in rows:
        audio = decode(corpus.absolute(row))
        features = checkpoint.extractor(audio, sampling_rate=SAMPLE_RATE, return_tensors="pt")["input_features"]
        for name, states in hidden_states(checkpoint.encoder, features).items():
            got = opened.frames(ids[row], name).astype(np.float64)
            want = states[0, : len(got)].double().numpy()
            off[name].append(np.linalg.norm(got - want) / np.linalg.norm(want))
    return {name: float(np.max(values)) for name, values in off.items()}  # NaN stays NaN


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
) -> None:
    """Write the tables; PyTorch was timed on `timed` of `clips` clips."""
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
                f"{wall:.1f} ({min(all_walls):.1f}–{max(all_walls):.1f})",
                f"{speed:.1f}",
                f"{ratio:.2f}",
                f"{efficiency:.0%}",
                ", ".join(f"{k} {v:.1f}" for k, v in typical.items()),
            ]
        )
    header = ["system", "wall s", "audio-hours per hour", "× baseline", "efficiency", "stage seconds"]
    inputs = {"clips": clips, "audio_seconds": audio_seconds, "sgemm_flops_per_second": list(rates)}
    write_report(
        "extraction",
        f"Extraction speed, {Path(args.model).name}",
        args,
        facts,
        inputs | {"encoder_flops": flops, "systems": systems, "padded_relative_l2": off},
        [
            Table(
                f"{clips} clips, {audio_seconds / 60:.1f} minutes, mean {audio_seconds / clips:.2f} s:", header, rows
            ),
            Table(
                f"Stored `padded` beside PyTorch on {min(CHECKED, timed)} clips, allowed {TOLERANCE:.0e}:",
                ["output", "largest relative L2"],
                [[name, f"{value:.1e}"] for name, value in off.items()],
            ),
        ],
        [
            f"Limit: numpy sgemm, {rate / 1e9:.0f} GFLOP/s ({min(rates) / 1e9:.0f}–{max(rates) / 1e9:.0f}).",
            f"PyTorch was timed on {timed} of {clips} clips, drawn at random, and scaled by their number: padded to "
            "30 s, all cost the same. Its best setting is the baseline.",
            "The wall of voxstrata includes probing, sessions and writing; PyTorch's neither loading nor writing. Its "
            "stages overlap, and decode adds up threads; wait is the encoder's for audio.",
        ],
    )


def main() -> int:
    p = parser(__doc__)
    p.add_argument("--clips", type=int, help="measure on so many clips; default: all")
    p.add_argument("--baseline-clips", type=int, help="time PyTorch on so many of them; default: all")
    p.add_argument("--repeats", type=int, default=3)
    args = p.parse_args()
    pin(args.threads)
    facts = environment(args.threads)
    torch.set_num_threads(args.threads)
    corpus = subset(read_corpus(args.corpus), args.clips)
    part = np.random.default_rng(0).permutation(len(corpus))[: args.baseline_clips].tolist()
    with tempfile.TemporaryDirectory(prefix="voxstrata-bench-") as folder:
        work = Path(folder)
        checkpoint, model = exported(args, work / "model")
        systems: dict[str, Callable[[], Run]] = {}
        for mode in MODES:
            systems[f"voxstrata {mode}"] = partial(run_voxstrata, mode, corpus, model, work, args.threads)
        for attention, batch in (("eager", 1), ("eager", 8), ("sdpa", 1), ("sdpa", 8)):
            run_pytorch(attention, batch, checkpoint, corpus, part[:batch])  # warm-up
            name = f"PyTorch {attention}, batch {batch}"
            systems[name] = partial(run_pytorch, attention, batch, checkpoint, corpus, part)
        runs: dict[str, list[Run]] = defaultdict(list)
        rates = []
        for repeat in range(args.repeats):
            rates.append(sgemm_rate())
            for name, run in systems.items():
                runs[name].append(run())
                say(f"repeat {repeat + 1} of {args.repeats}: {name} {runs[name][-1].wall:.1f} s")
        off = differences(work / "padded.zarr", checkpoint, corpus, part[:CHECKED])

    infos, unreadable = probe_corpus(corpus)
    flops = {}
    for name in systems:
        mode = name.removeprefix("voxstrata ") if name.startswith("voxstrata") else "padded"
        spec = StoreSpec(model.card.outputs, context=Context(mode))
        plan = make_plan(corpus, infos, unreadable, spec, model.card.d_model)
        flops[name] = encoder_flops(plan, checkpoint, model.card.silence["groups"])
    audio_seconds = sum(i.samples for i in infos if i) / SAMPLE_RATE
    report(args, facts, audio_seconds, len(corpus), len(part), runs, rates, flops, off)
    return int(not all(value <= TOLERANCE for value in off.values()))


if __name__ == "__main__":
    sys.exit(main())
