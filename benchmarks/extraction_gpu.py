"""Extraction on a GPU: audio-hours per hour, share of the matrix product rate, idle time; beside PyTorch.

A random-weight encoder of large-v3's shape (`--shape`), exported in float16; made-up sound of FLEURS-like lengths
(log-normal, mean 12 s). Context `bucketed`. Three things kept: three outputs as frames, all outputs pooled, all outputs
as frames.

Every rate is that of a run that lasts: each shape (positions, windows) of the work has been encoded before the clock
starts, so that what is loaded, allocated, recorded or chosen for a shape is so by then.

Sections, most important first; one that fails or comes too late (`--seconds`) is a problem in the report, not its end,
and the report is written after each:
- correctness: `padded` beside PyTorch in float32, relative L2; `bucketed` beside the same, cosine of frames;
- rates: torch.mm of 8192³ in bfloat16 and float16, at the start and the end;
- the device alone: the batches of `extract` from memory, nothing written. Efficiency is the arithmetic the plan needs
  (`voxstrata.engine.budget`) / (wall × bfloat16 rate). Idle is what is left of nvidia-smi's `utilization.gpu`, the
  share of time with a kernel running, sampled meanwhile. Fill is positions of windows / positions computed: with
  CUDA graphs and on TensorRT batches have one shape per bucket, and what is missing is silence. A row of the largest
  batch of several buckets is held against that of the recording by itself (relative L2);
- the whole of `extract`, from FLAC to a store of `--store-gb` at most, made twice, of which the second is timed; stored
  rows are held against the same;
- PyTorch: Hugging Face's encoder, SDPA, float16 and bfloat16, 30 s windows, log-mel on the GPU, the valid frames of as
  many outputs copied to the host, at every size of `--batches`;
- profile: time on the device by kernel (torch.profiler, which sees ONNX Runtime's kernels as well);
- settings: without fused attention, CUDA graphs, other token budgets.

Exit status 1 when a section fails or a result is off. `--device cpu --small` runs all of it at a small size, on the
path of accelerators with the CPU as the device, and every rate is «not measured».
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _gpu import NOT_MEASURED, Bench, Found, Idle, apart, benched, correctness, rates
from _synthetic import random_plan
from mixes import SHAPES
from numpy.typing import NDArray

from voxstrata.audio.decode import decode
from voxstrata.encoders.frames import SAMPLE_RATE, SAMPLES_PER_FRAME, WINDOW_FRAMES, encoder_frames
from voxstrata.engine import CudaEncoder, Device, Runtime
from voxstrata.engine.budget import EncoderSize, Work
from voxstrata.engine.extraction import share
from voxstrata.engine.pipeline import batches
from voxstrata.engine.planning import default_unit_megabytes
from voxstrata.engine.run import prepare
from voxstrata.engine.synthetic import MIXES, made_up, write_made_up
from voxstrata.store import StoreSpec, open_store

COMPARED = 6  # buckets, and recordings of a store
MARKS = "The marks, three outputs as frames:"
SMALL = (64, 3, 2, 80)  # d_model, layers, heads, mel bins
HEADER = (
    "kept",
    "audio-hours per hour",
    "efficiency",
    "idle",
    "GB/s to the host",
    "fill",
    "relative L2",
    "stage seconds",
)


@dataclass(frozen=True)
class Batch:
    """A batch of `extract`: its samples, computed positions, rows computed."""

    audio: list[NDArray[np.float32]]
    frames: int
    rows: int


def batches_of(b: Bench, encoder: CudaEncoder, lengths: NDArray[np.float64]) -> tuple[list[Batch], int]:
    """The batches of recordings of so many seconds, and the arithmetic they need."""
    frames = np.ceil(lengths * SAMPLE_RATE / SAMPLES_PER_FRAME).astype(np.int64)
    plan = random_plan(
        {"en": frames},
        b.model.card.d_model,
        encoder.spec,
        default_unit_megabytes(encoder.spec, b.model.card.d_model, Device("cuda")),
    )
    found = [
        Batch([made_up(w.utterance, w.samples) for w in windows], m, encoder.windows_computed(len(windows), m))
        for unit in range(plan.units)
        for m, windows in batches(plan, unit, encoder)
    ]
    return found, Work.of(plan, EncoderSize.of(b.model, encoder.outputs)).flops


def alone(b: Bench, spec: StoreSpec, lengths: NDArray[np.float64], **changes: Any) -> list[str]:
    """Cells of HEADER for the batches of `extract` from memory; over again until `--measure` seconds are full."""
    encoder = b.encoder(spec, **changes)
    work, flops = batches_of(b, encoder, lengths)
    passes, bytes_out = 0, 0
    largest = {batch.frames: batch for batch in sorted(work, key=lambda x: len(x.audio))}
    compared = {id(x) for x in sorted(largest.values(), key=lambda x: -len(x.audio))[:COMPARED]}
    among: list[Found] = []
    with ThreadPoolExecutor(encoder.concurrency) as pool:
        # every shape at every caller, who are all at it at once
        for first in {(batch.frames, batch.rows): batch for batch in work}.values():
            for done in [
                pool.submit(encoder.stored_rows, first.audio, first.frames) for _ in range(2 * encoder.concurrency)
            ]:
                done.result()
        encoder.seconds.clear()
        pending: deque[tuple[Batch, Future[Any]]] = deque()

        def take() -> int:
            """Bytes of the batch that was first; a recording of those compared is kept."""
            batch, done = pending.popleft()
            reduced = done.result()
            if id(batch) in compared:
                compared.discard(id(batch))
                among.append((batch.audio[-1], [rows[-1].copy() for rows in reduced.rows]))
            return sum(r.size for rows in reduced.rows for r in rows) * spec.stored_dtype.itemsize

        with Idle(b.device) as idle:
            begin = time.perf_counter()
            while not passes or time.perf_counter() - begin < b.args.measure:
                for batch in work:
                    pending.append((batch, pool.submit(encoder.stored_rows, batch.audio, batch.frames)))
                    while len(pending) > encoder.concurrency + 1:
                        bytes_out += take()
                passes += 1
            while pending:
                bytes_out += take()
            wall = time.perf_counter() - begin
    stages = ", ".join(f"{k} {v:.1f}" for k, v in encoder.seconds.items())
    off = apart(b, f"{spec.outputs}, {spec.pool}, {changes}", encoder, among)
    audio = passes * sum(len(x) for batch in work for x in batch.audio) / SAMPLE_RATE
    computed = sum(batch.rows * batch.frames for batch in work)
    efficiency = passes * flops / (wall * b.rates["bfloat16"]) if b.rates else None
    fill = sum(len(batch.audio) * batch.frames for batch in work) / computed
    idling = idle.share(wall)
    found = {"audio_hours_per_hour": audio / wall, "efficiency": efficiency, "idle": idling, "wall": wall, "off": off}
    b.results.setdefault("device_alone", []).append(
        {"outputs": len(spec.outputs), "pool": spec.pool, **changes, **found, "bytes": bytes_out, "fill": fill}
    )
    return [
        b.cell(audio / wall, ".0f"),
        b.cell(efficiency, ".0%"),
        b.cell(idling, ".0%"),
        b.cell(bytes_out / wall / 1e9, ".2f"),
        f"{fill:.0%}",
        f"{off:.1e}",
        NOT_MEASURED if b.device.kind == "cpu" else stages,
    ]


def device_alone(b: Bench, kept: str) -> None:
    lengths = MIXES["fleurs"].lengths(b.args.clips)
    b.add("The device alone, nothing written:", HEADER, (kept, *alone(b, b.specs()[kept], lengths)))


def whole_extract(b: Bench, kept: str) -> None:
    """`extract`, from FLAC files to a store."""
    spec = b.specs()[kept]
    per_clip = 1 if spec.pool else MIXES["fleurs"].mean * SAMPLE_RATE / SAMPLES_PER_FRAME
    per_clip *= b.model.card.d_model * spec.stored_dtype.itemsize * len(spec.outputs)
    clips = max(4, min(b.args.clips, int(b.args.store_gb * 1e9 / per_clip)))
    lengths = MIXES["fleurs"].lengths(clips)
    with tempfile.TemporaryDirectory(dir=b.work) as folder:
        corpus, path = write_made_up(Path(folder) / "corpus", lengths), Path(folder) / "s.zarr"
        encoder, runtime = b.encoder(spec), Runtime(b.device, b.args.threads, b.args.tokens)
        share(prepare(corpus, b.model, path, spec, runtime), encoder)
        shutil.rmtree(path)
        with Idle(b.device) as idle:
            done = share(prepare(corpus, b.model, path, spec, runtime), encoder)
        store = open_store(path)
        b.check(done.failed == 0 and store.complete, f"extract, {kept}: the store is not complete")
        found, ids = [], corpus.table["id"].to_pylist()
        for row in np.linspace(0, len(corpus) - 1, min(COMPARED, len(corpus))).astype(int).tolist():
            at = store.ids.index(ids[row])
            audio = decode(corpus.recording(row))
            if spec.pool:  # the encoder gives sums
                stored = [store.pooled(o)[at][None] * encoder_frames(len(audio)) for o in spec.outputs]
            else:
                stored = [store.frames(at, o) for o in spec.outputs]
            found.append((audio, stored))
        off = apart(b, f"extract, {kept}", encoder, found)
    efficiency = done.flops / (done.seconds * b.rates["bfloat16"]) if b.rates else None
    speed, idling = done.audio_seconds / done.seconds, idle.share(done.seconds)
    b.results.setdefault("extract", []).append(
        done.to_dict()
        | {"kept": kept, "audio_hours_per_hour": speed, "efficiency": efficiency, "idle": idling, "off": off}
    )
    b.add(
        "The whole of extract, FLAC to store:",
        ("kept", "clips", "audio-hours per hour", "efficiency", "idle", "GB/s written", "relative L2", "stage seconds"),
        (
            kept,
            str(clips),
            b.cell(speed, ".0f"),
            b.cell(efficiency, ".0%"),
            b.cell(idling, ".0%"),
            b.cell(clips * per_clip / done.seconds / 1e9, ".2f"),
            f"{off:.1e}",
            NOT_MEASURED if b.device.kind == "cpu" else ", ".join(f"{k} {v:.1f}" for k, v in done.stages.items()),
        ),
    )


def pytorch(b: Bench, dtype: str) -> None:
    """Hugging Face's encoder at every batch size, three batches each after one that warms up."""
    lengths = MIXES["fleurs"].lengths(b.args.clips)
    kind = getattr(torch, dtype)
    encoder = b.checkpoint.encoder.to(b.torch_device, kind)
    encoder.set_attn_implementation("sdpa")
    wanted = [encoder.config.encoder_layers // 2, -2, -1]  # as many states as `three`, the same copies
    for size in b.args.batches:

        def batch(clips: Sequence[float]) -> None:
            audio = [made_up(i, round(s * SAMPLE_RATE)) for i, s in enumerate(clips)]
            features = b.checkpoint.extractor(
                audio, sampling_rate=SAMPLE_RATE, return_tensors="pt", device=b.torch_device
            )["input_features"].to(b.torch_device, kind)
            with torch.inference_mode():
                states = encoder(features, output_hidden_states=True).hidden_states
                valid = [-(-len(x) // SAMPLES_PER_FRAME) for x in audio]
                for i in wanted:
                    torch.cat([states[i][row, :n] for row, n in enumerate(valid)]).cpu()

        timed = [lengths[np.arange(i * size, (i + 1) * size) % len(lengths)] for i in range(4)]
        try:
            batch(timed[0])
            begin = time.perf_counter()
            for clips in timed[1:]:
                batch(clips)
            seconds = (time.perf_counter() - begin) / 3 / size
            speed = float(lengths.mean()) / seconds
        except torch.OutOfMemoryError:
            speed = None
        b.results.setdefault("pytorch", []).append({"dtype": dtype, "batch": size, "audio_hours_per_hour": speed})
        cell = "out of memory" if speed is None else b.cell(speed, ".0f")
        b.add(
            "PyTorch, SDPA, padded, the same three outputs:",
            ("dtype", "batch", "audio-hours per hour"),
            (dtype, str(size), cell),
        )
    b.checkpoint.encoder.to("cpu", torch.float32)


def setting(b: Bench, **change: Any) -> None:
    """Three outputs as frames in another setting."""
    spec, lengths = b.specs()["three outputs, frames"], MIXES["fleurs"].lengths(b.args.clips)
    name = ", ".join(f"{k} {v}" for k, v in change.items())
    b.add("Settings, three outputs as frames:", ("setting", *HEADER[1:]), (name, *alone(b, spec, lengths, **change)))


def profile(b: Bench) -> None:
    """Time on the device by kernel, over a few batches of the commonest bucket."""
    encoder = b.encoder(b.specs()["three outputs, frames"])
    work, _ = batches_of(b, encoder, MIXES["fleurs"].lengths(b.args.clips))
    batch = max(work, key=lambda x: len(x.audio))
    for _ in range(2):
        encoder.stored_rows(batch.audio, batch.frames)
    kinds = torch.profiler.ProfilerActivity
    with torch.profiler.profile(activities=[kinds.CPU if b.device.kind == "cpu" else kinds.CUDA]) as found:
        begin = time.perf_counter()
        for _ in range(3):
            encoder.stored_rows(batch.audio, batch.frames)
        wall = time.perf_counter() - begin
    rows = [["(the host's clock)", "3", b.cell(wall * 1e3, ".1f")]]
    if b.device.kind != "cpu":
        events = sorted(found.key_averages(), key=lambda e: -e.device_time_total)[:16]
        rows += [[e.key[:80].replace("|", "/"), str(e.count), f"{e.device_time_total / 1e3:.1f}"] for e in events]
    b.add(f"Three batches of {batch.rows} windows, {batch.frames} positions each:", ("kernel", "calls", "ms"), *rows)


def bars(b: Bench) -> None:
    """The marks of the project, one table."""
    ours = [r for r in b.results.get("device_alone", []) if r["outputs"] == 3]
    speeds = [r["audio_hours_per_hour"] for r in b.results.get("pytorch", []) if r["audio_hours_per_hour"]]
    first: dict[str, Any] = ours[0] if ours else {}
    whole: dict[str, Any] = next((r for r in b.results.get("extract", []) if r["kept"].startswith("three")), {})
    ratios = [r["audio_hours_per_hour"] / max(speeds) if r and speeds else None for r in (first, whole)]
    b.tables.pop(MARKS, None)
    b.add(
        MARKS,
        ("what", "mark", "the device alone", "`extract`"),
        (
            "share of the bfloat16 matrix product rate",
            "≥ 50%",
            *(b.cell(r.get("efficiency"), ".0%") for r in (first, whole)),
        ),
        ("× PyTorch, its best dtype and batch", "≥ 3", *(b.cell(r, ".2f") for r in ratios)),
        ("idle", "≤ 5%", *(b.cell(r.get("idle"), ".0%") for r in (first, whole))),
    )


def run(b: Bench, publish: Callable[[], None]) -> None:
    """All sections; `publish` after each."""
    kept = list(b.specs())
    tokens = b.args.tokens or 16 * WINDOW_FRAMES
    changes = ({"fused_attention": False}, {"cuda_graphs": True}, {"tokens": tokens // 2}, {"tokens": 2 * tokens})
    sections: list[tuple[str, Callable[[], None]]] = [
        ("correctness", partial(correctness, b)),
        ("rates", partial(rates, b)),
        *((f"device alone, {k}", partial(device_alone, b, k)) for k in kept),
        *((f"PyTorch {dtype}", partial(pytorch, b, dtype)) for dtype in ("float16", "bfloat16")),
        *((f"extract, {k}", partial(whole_extract, b, k)) for k in kept),
        ("profile", partial(profile, b)),
        *((f"setting {c}", partial(setting, b, **c)) for c in changes),
        ("rates", partial(rates, b)),
    ]

    def with_marks() -> None:
        bars(b)
        publish()

    b.ask(sections, with_marks)


def main(arguments: Sequence[str] | None = None) -> int:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--device", default="cuda", help="cuda, cuda:1, tensorrt, …, or cpu to try the script")
    p.add_argument("--small", action="store_true", help="a small model, few clips")
    p.add_argument("--shape", choices=[*SHAPES], default="large-v3")
    p.add_argument("--clips", type=int, default=2048)
    p.add_argument("--tokens", type=int, help="batch size × computed positions; default: the engine's")
    p.add_argument("--batches", type=int, nargs="+", default=[8, 16, 32, 64], help="of PyTorch")
    p.add_argument("--measure", type=float, default=15, help="seconds of each measurement of the device alone")
    p.add_argument("--store-gb", type=float, default=8, help="size of a store")
    p.add_argument("--seconds", type=float, default=480, help="start no further section after this time")
    p.add_argument("--threads", type=int, help="for decoding; default: all cores")
    p.add_argument("--out", type=Path, default=Path("bench"), help="folder for the report (JSON and Markdown)")
    args = p.parse_args(arguments)
    shape = SHAPES[args.shape]
    if Device.parse(args.device).kind != "cpu" and not torch.cuda.is_available():
        sys.exit("no CUDA device; --device cpu --small runs the script at a small size")
    if args.small:
        shape, args.shape, args.clips, args.tokens, args.measure, args.batches = SMALL, "small", 6, 3000, 0, [2]
    return benched(args, "extraction_gpu", "Extraction on a GPU", shape, run)


if __name__ == "__main__":
    sys.exit(main())
