"""What a run on CUDA asks of its libraries, without a GPU: plans, products, copies, waits, and what lands on the CPU.

It needs a stand-in for CUDA's libraries, a script that runs a command with it: device memory that the host may not
touch, every call a line of a log, nothing computed. On it the real CUDA provider of onnxruntime-gpu chooses kernels,
allocates and copies as on a GPU. Of every batch it is counted what was called, at shapes that are new and at shapes
that are known, for the recordings of a manifest and for a mix like FLEURS's.

Then it estimates which share of the rate of matrix products an H200 reaches, from the operators of one batch: the
profile says which ran, with which shapes, and so what they multiply and move. An estimate, not a measurement: its
assumptions stand below, and each time it is made it is made from them alone.

    python benchmarks/gpu_calls.py --stand-in PATH/run.sh --corpus ../shared/data/prompts/prompts.tsv
    python benchmarks/gpu_calls.py --stand-in PATH/run.sh --before OLD_CHECKOUT/src
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np

SHAPE = (1280, 4, 20, 128)  # large-v3's, but for its 32 blocks: d_model, layers, heads, mel bins
BLOCKS = 32
TOKENS = 24_000
FRAMES = 650  # of the batch whose share is estimated
# Of an H200, by published figures: what products of 8192³ reach in bfloat16, what an encoder's reach, the flash kernel
# by the width that it pads heads to, and memory. Kernels do not overlap, and none waits for another.
PRODUCTS, OWN_PRODUCTS, ATTENTION, MEMORY = 700e12, 660e12, 350e12, 4.0e12
FLASH_WIDTHS = (32, 64, 96, 128, 192, 256)
NOTHING_MOVES = ("Reshape", "Shape", "Squeeze", "Unsqueeze")
PRODUCT = ("MatMul", "Gemm", "FusedMatMul")


def encode(args: argparse.Namespace) -> dict[str, Any]:
    """In the process that has the stand-in: all batches twice, then one with a profile of every operator."""
    import onnxruntime as ort

    from voxstrata.encoders import Context, open_model
    from voxstrata.engine import CudaEncoder, Device, Runtime
    from voxstrata.engine import encoder as engine
    from voxstrata.store import StoreSpec

    model = open_model(args.model)
    outputs = model.card.outputs
    spec = StoreSpec((outputs[len(outputs) // 2], outputs[-2], "final"), context=Context("bucketed"), dtype=args.dtype)
    device, noise = Device.parse(args.device), np.random.default_rng(0).standard_normal(480_000).astype(np.float32) / 10
    make = engine.session_options

    def run(encoder: CudaEncoder, frames: int, windows: int) -> None:
        encoder.stored_rows([noise[: min(frames * 320 - 160, len(noise))]] * windows, frames)

    encoder = CudaEncoder(model, spec, Runtime(device, 1, args.tokens))
    for again in (False, True):
        for i, (frames, windows) in enumerate(args.batches):
            name = f"{again:d} {i} {windows} x {frames}"
            mark(f"BEGIN {name}")
            run(encoder, frames, windows)
            mark(f"END {name}")
    profiles: dict[str, list[dict[str, Any]]] = {}
    for blocks in sorted({min(2, model.card.layers), model.card.layers}):
        sessions: list[ort.InferenceSession] = []

        def profiled(threads: int) -> ort.SessionOptions:
            options = make(threads)
            options.enable_profiling, options.profile_file_prefix = True, str(args.out.with_suffix(""))
            return options

        class Kept(CudaEncoder):
            def _make_session(self, name: str, sessions: list[Any] = sessions) -> ort.InferenceSession:
                sessions.append(super()._make_session(name))
                return sessions[-1]

        with patch.object(engine, "session_options", profiled):
            cut = StoreSpec((outputs[blocks],), context=Context("bucketed"), dtype=args.dtype)
            encoder = Kept(model, cut, Runtime(device, 1, args.tokens))
            for _ in range(2):  # the last is the profile's
                run(encoder, args.frames, encoder.batch_size(args.frames))
        profiles[str(blocks)] = [event for session in sessions for event in last_run(session)]
    return {"profiles": profiles, "windows": encoder.batch_size(args.frames)}


def mark(text: str) -> None:
    """A line in the stand-in's log."""
    with suppress(OSError, AttributeError):  # no stand-in
        ctypes.CDLL("libcudart.so.13").stand_in_mark(text.encode())


def last_run(session: Any) -> list[dict[str, Any]]:
    """What ran in a session's last run, with the shapes of each operator."""
    path = Path(session.end_profiling())
    events = json.loads(path.read_text())
    path.unlink()
    ends = [i for i, e in enumerate(events) if e.get("name") == "model_run"]
    begin = ends[-2] if len(ends) > 1 else 0
    found = []
    for e in events[begin:]:
        if e.get("cat") == "Node" and e["name"].endswith("_kernel_time"):
            a = e["args"]
            found.append({k: a.get(k) for k in ("op_name", "provider", "input_type_shape", "output_type_shape")})
    return found


def shapes(tensors: Sequence[dict[str, list[int]]]) -> list[tuple[str, list[int]]]:
    return [next(iter(t.items())) for t in tensors]


def size(tensors: Sequence[dict[str, list[int]]]) -> int:
    """Bytes."""
    width = {"float16": 2, "bfloat16": 2, "float": 4, "int64": 8, "int32": 4, "bool": 1}
    return sum(width.get(kind, 4) * int(np.prod(dims, dtype=np.int64)) for kind, dims in shapes(tensors))


def seconds(event: dict[str, Any]) -> tuple[str, float]:
    """What an operator is, and how long it takes by the assumptions above."""
    op, gets, gives = event["op_name"], event["input_type_shape"], event["output_type_shape"]
    if event["provider"] != "CUDAExecutionProvider" or op in NOTHING_MOVES:
        return "host, or nothing", 0.0
    dims = [d for _, d in shapes(gets)]
    moved = (size(gets) + size(gives)) / MEMORY
    if op == "MultiHeadAttention":
        (batch, m, width), keys, heads = dims[0], dims[1][1], event["heads"]
        padded = next(w for w in FLASH_WIDTHS if w >= width // heads)
        return "attention", 4 * batch * m * keys * heads * padded / ATTENTION
    if op in PRODUCT:
        (_, made), inner = shapes(gives)[0], dims[0][-1]
        kind, rate = ("products", OWN_PRODUCTS) if shapes(gets)[0][0] != "float" else ("products in float32", 5e13)
        return kind, max(2 * int(np.prod(made)) * inner / rate, moved)
    if op == "Conv":
        (_, made), (_, kernel) = shapes(gives)[0], shapes(gets)[1]
        rate = OWN_PRODUCTS if shapes(gets)[0][0] != "float" else 5e13
        return "convolutions", max(2 * int(np.prod(made)) * int(np.prod(kernel[1:])) / rate, moved)
    return op, moved


def estimate(found: dict[str, Any], shape: Sequence[int], frames: int) -> tuple[dict[str, float], float]:
    """Milliseconds of a batch of large-v3 by kind of operator, and the share of the product rate."""
    from voxstrata.encoders import Context
    from voxstrata.engine.budget import EncoderSize

    d, _, heads, mels = shape
    kinds: dict[int, Counter[str]] = {}
    for blocks, events in found["profiles"].items():
        kinds[int(blocks)] = Counter()
        for event in events:
            kind, time = seconds(event | {"heads": heads})
            kinds[int(blocks)][kind] += time * 1e3
    few, more = sorted(kinds)
    whole = {
        k: kinds[few][k] + (kinds[more][k] - kinds[few][k]) / (more - few) * (BLOCKS - few)
        for k in kinds[few] | kinds[more]
    }
    flops = EncoderSize(BLOCKS, d, 4 * d, mels, 32).window_flops(frames, Context("bucketed")) * found["windows"]
    return whole, flops / PRODUCTS / (sum(whole.values()) / 1e3)


def counted(log: Path) -> Iterator[tuple[str, Counter[str]]]:
    """Of every batch that was marked, in the log's order: its name, and how often what was called."""
    found: dict[str, Counter[str]] = {"before": Counter()}
    running = "before"
    for line in log.read_text(errors="replace").splitlines():
        event, _, rest = line.split(" ", 2)[2].partition(" ")
        if event == "MARK":
            edge, _, name = rest.partition(" ")
            running = name if edge == "BEGIN" else "between"
            found.setdefault(running, Counter())
            continue
        counts = found[running]
        counts[event] += 1
        if event in ("PLAN", "EXECUTE", "ERROR", "REFUSED"):
            counts[f"{event} {rest}"] += 1
        if event == "KERNEL" and "name=" in rest:
            counts["kernel " + re.sub(r"[<(].*", "", rest.partition("name=")[2].removeprefix("void "))] += 1
        if event == "COPY":
            counts[rest.partition(" ")[0]] += 1
    yield from found.items()


def stand_in(script: Path, source: Path, log: Path, arguments: Sequence[str]) -> tuple[int, dict[str, Any], str]:
    """Run `encode` there: exit status, what it found, and what it said on stderr."""
    out = log.with_suffix(".json")
    environment = os.environ | {"PYTHONPATH": str(source), "STAND_IN_LOG": str(log)}
    command = ["sh", str(script), sys.executable, __file__, "--child", "--out", str(out), *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    return done.returncode, json.loads(out.read_text()) if out.exists() else {}, done.stderr


def lengths_of(corpus: Path | None) -> dict[str, Any]:
    """Seconds of recordings by name of the mix: FLEURS's are about 12 s long, log-normal, at most 30 s."""
    mixes = {"like FLEURS": np.clip(np.random.default_rng(0).lognormal(np.log(11.3), 0.4, 600), 2, 30)}
    if corpus is not None:
        lines = corpus.read_text(encoding="utf-8").splitlines()
        at = lines[0].split("\t").index("seconds")
        mixes["prompts"] = np.array([float(line.split("\t")[at]) for line in lines[1:]])
    return mixes


def batches_of_lengths(lengths: Any, tokens: int) -> list[tuple[int, int]]:
    """(positions, windows) of the batches of a store of one language, as `extract` makes them."""
    from voxstrata.encoders import Context

    context, found = Context("bucketed"), []
    frames = Counter(context.frames_computed(int(np.ceil(s * 50))) for s in lengths)
    for m in sorted(frames, reverse=True):
        full, rest = divmod(frames[m], max(1, tokens // m))
        found += [(m, max(1, tokens // m))] * full + [(m, rest)] * bool(rest)
    return found


def count(args: argparse.Namespace) -> int:
    from _gpu import random_model

    from voxstrata.base.folders import scratch_folder  # which an older version, counted in a child, may not have

    sources = {"now": Path(__file__).parents[1] / "src"} | ({"before": args.before} if args.before else {})
    failed = 0
    with scratch_folder("gpu-calls") as folder:
        model, _ = random_model(SHAPE, Path(folder))
        for when, source in reversed(sources.items()):
            for mix, lengths in lengths_of(args.corpus).items():
                batches = batches_of_lengths(lengths, TOKENS)
                listed = ",".join(f"{m}x{n}" for m, n in batches)
                log = Path(folder) / "calls.log"
                given = ["--model", str(model.path), "--batches", listed]
                code, found, said = stand_in(args.stand_in, source, log, given)
                print(f"\n{when}, {mix}: {len(batches)} batches of {len(set(batches))} shapes; exit status {code}")
                if not found:
                    print(said[-2000:])
                    failed = 1
                    continue
                report(log)
                whole, share = estimate(found, SHAPE, FRAMES)
                if mix == "like FLEURS":
                    parts = ", ".join(f"{k} {v:.1f}" for k, v in sorted(whole.items(), key=lambda x: -x[1]) if v > 0.05)
                    print(f"  estimate, {found['windows']} x {FRAMES}: {sum(whole.values()):.1f} ms ({parts})")
                    print(f"  estimated share of the product rate: {share:.2f}")
                print(f"  on the CPU, or copied between: {dict(on_host(found)) or 'nothing'}")
    return failed


def on_host(found: dict[str, Any]) -> Counter[str]:
    """Operators that did not run on the device, and copies that were put in between."""
    return Counter(
        e["op_name"]
        for events in found["profiles"].values()
        for e in events
        if e["provider"] != "CUDAExecutionProvider" or e["op_name"].startswith("Memcpy")
    )


def report(log: Path) -> None:
    seen: set[str] = set()
    new, known = Counter[str](), Counter[str]()
    numbers = Counter[str]()
    for name, counts in counted(log):
        if name in ("before", "between"):
            continue
        shape = name.split(" ", 2)[2]
        kind = "known" if shape in seen else "new"
        seen.add(shape)
        (known if kind == "known" else new).update(counts)
        numbers[kind] += 1
    for kind, counts in (("new", new), ("known", known)):
        n = numbers[kind] or 1
        each = ", ".join(f"{counts[e] / n:.1f} {e.lower()}" for e in ("PLAN", "GEMM", "KERNEL", "SYNC", "H2D", "D2H"))
        print(f"  {numbers[kind]} at shapes that are {kind}; each {each}; errors {counts['ERROR']}")


def pairs(text: str) -> list[tuple[int, int]]:
    return [(int(m), int(n)) for m, n in (part.split("x") for part in text.split(","))]


if __name__ == "__main__":
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--stand-in", type=Path, help="the script that runs a command with it")
    p.add_argument("--corpus", type=Path, help="a manifest with a column of seconds")
    p.add_argument("--before", type=Path, help="src of another checkout, counted first")
    # of the process that has the stand-in
    p.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    p.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    p.add_argument("--model", type=Path, help=argparse.SUPPRESS)
    p.add_argument("--batches", type=pairs, help=argparse.SUPPRESS)
    p.add_argument("--device", default="cuda", help=argparse.SUPPRESS)
    p.add_argument("--dtype", default="float16", help=argparse.SUPPRESS)
    p.add_argument("--tokens", type=int, default=TOKENS, help=argparse.SUPPRESS)
    p.add_argument("--frames", type=int, default=FRAMES, help=argparse.SUPPRESS)
    args = p.parse_args()
    if not args.child:
        sys.exit(count(args))
    args.out.write_text(json.dumps(encode(args)))
