"""Ten minutes with a GPU: what is open of extraction on it, the most important first.

A random-weight encoder of large-v3's shape with 4 layers (`--shape`, `--layers`), in float16; windows of noise that
fill their bucket. Four questions, each asked of several settings of the engine:
- right: are the states those of a CPU? Relative L2, of a trained model where `--real` names one;
- new shapes: what does the first batch of a shape cost, and a known shape after another one?
- rate: what share of the matrix product rate does a full batch reach, in which setting?
- callers: how many threads keep the device busy?

One that fails or comes too late (`--seconds`) is a problem in the report, not its end, and the report is written after
every row. Exit status 1 when one fails or a state is off. `--device cpu --small` asks all of them at a small size
through the same code, and leaves every rate «not measured».
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from _gpu import NOT_MEASURED, TOLERANCE, Bench, benched, rates
from mixes import SHAPES
from numpy.typing import NDArray

from voxstrata.encoders import Context, open_model
from voxstrata.encoders.frames import SAMPLE_RATE, SAMPLES_PER_FRAME, WINDOW_FRAMES
from voxstrata.engine import CpuEncoder, CudaEncoder, Runtime
from voxstrata.engine.budget import EncoderSize
from voxstrata.store import StoreSpec

NOISE = np.random.default_rng(0).standard_normal(WINDOW_FRAMES * SAMPLES_PER_FRAME).astype(np.float32) * 0.1
SMALL = (64, 3, 2, 80)  # d_model, layers, heads, mel bins
FRAMES = 650  # of the bucket that a FLEURS-like mix fills most
# Of the CUDA provider: `sdpa_kernel`'s bits say which attention it may take (8: cuDNN's; 0: its own choice).
PROVIDER: dict[str, dict[str, str]] = {
    "cuDNN's attention": {"sdpa_kernel": "8"},
    "the provider's choice of attention": {"sdpa_kernel": "0"},
    "LayerNorm's sums in float16": {"enable_skip_layer_norm_strict_mode": "0"},
}
SETTINGS: dict[str, dict[str, Any]] = {
    "as it is": {},
    **{name: {"provider": options} for name, options in PROVIDER.items()},
    "bfloat16": {"bfloat16": True},
    "the exported graph": {"fused_attention": False},
    "CUDA graphs": {"cuda_graphs": True},
    "padded": {"mode": "padded"},
}
States = list[list[NDArray[np.float64]]]  # by bucket and output, then by window
SHAPES_FEW = ("CUDA graphs", "padded")  # settings in which batches have one shape, or one per bucket


class Variant(CudaEncoder):
    """provider: options laid over those of the CUDA provider."""

    def __init__(self, *args: Any, provider: dict[str, str] | None = None, **settings: Any) -> None:
        self._over = provider or {}
        super().__init__(*args, **settings)

    def _providers(self, name: str) -> list[Any]:
        return [(p, o | self._over if p.startswith("CUDA") else o) for p, o in super()._providers(name)]


def variant(
    b: Bench,
    mode: str = "bucketed",
    dtype: str = "float16",
    tokens: int | None = None,
    bfloat16: bool = False,
    **how: Any,
) -> Variant:
    device = replace(b.device, bfloat16=bfloat16 and b.device.kind == "cuda")
    spec = StoreSpec(b.three, context=Context(mode), dtype=dtype)
    return Variant(b.model, spec, Runtime(device, b.args.threads, tokens or b.args.tokens), **how)


def encode(encoder: CudaEncoder, frames: int, windows: int) -> float:
    """Milliseconds that the encoder took for a batch of windows of noise, each almost as long as `frames`."""
    encoder.seconds["encode"] = 0.0
    encoder.stored_rows([NOISE[: frames * SAMPLES_PER_FRAME - 160]] * windows, frames)
    return encoder.seconds["encode"] * 1e3


def measured(b: Bench, text: str) -> str:
    """Measured figures; of a CPU there are none."""
    return NOT_MEASURED if b.device.kind == "cpu" else text


def asked_of(b: Bench) -> Bench:
    """With the trained model, if one is named."""
    return replace(b, model=open_model(b.args.real)) if b.args.real else b


def states(encoder: CpuEncoder | CudaEncoder) -> States:
    """Windows of unequal length, in three buckets."""
    found = []
    for frames, seconds in ((200, (3.0, 0.7)), (700, (11.0, 12.5, 3.3)), (WINDOW_FRAMES, (29.7, 21.2))):
        audio = [np.roll(NOISE, 9999 * i)[: round(s * SAMPLE_RATE)] for i, s in enumerate(seconds)]
        rows = encoder.stored_rows(audio, frames).rows
        found += [[windows.astype(np.float64) for windows in output] for output in rows]
    return found


def states_of_a_cpu(b: Bench) -> States:
    asked = asked_of(b)
    spec = StoreSpec(asked.three, context=Context("bucketed"), dtype="float32")
    return states(CpuEncoder(asked.model, spec, Runtime(threads=b.args.threads)))


def is_it_right(b: Bench, name: str, wanted: Callable[[], States]) -> None:
    """Off by no more than rounding, and by less than half of what lies between two windows: states of random weights
    are much alike (to bfloat16 too much to tell)."""
    encoder, off = variant(asked_of(b), dtype="float32", **SETTINGS[name]), []
    coarse, near = "bfloat16" in SETTINGS[name], True
    for ours, theirs in zip(states(encoder), wanted(), strict=True):
        for mine, right, other in zip(ours, theirs, [*theirs[1:], theirs[0]], strict=True):
            error, n = np.linalg.norm(mine - right), min(len(right), len(other))
            off.append(float(error / np.linalg.norm(right)))
            apart = np.linalg.norm(right[:n] - other[:n])
            near &= bool(np.linalg.norm(mine[:n] - right[:n]) <= 0.5 * apart)
    worst = float(np.max(off))  # NaN stays NaN
    b.results.setdefault("right", {})[name] = worst
    b.results["host_memory"] = encoder.host_memory
    b.check(coarse or near, f"{name}: states are another window's")
    allowed = (8 if coarse else 1) * TOLERANCE  # bfloat16 has three bits less than float16
    b.check(worst <= allowed, f"{name}: states are off a CPU's by {worst:.1e} (relative L2)")
    caption = "Are the states those of a CPU? Largest relative L2 of three outputs, 7 windows in 3 buckets:"
    b.add(caption, ("setting", "found", "allowed"), (name, f"{worst:.1e}", f"{allowed:.0e}"))


def new_shapes(b: Bench, name: str) -> None:
    """The first batch of a shape, the same again, and known shapes in turns."""
    encoder = variant(b, **SETTINGS[name])
    full = encoder.batch_size(FRAMES)
    shapes = [(FRAMES, full), (FRAMES, max(1, full - 1)), (FRAMES, -(-full // 2))]
    shapes += [(frames, encoder.batch_size(frames)) for frames in (700, 400)]
    encode(encoder, 1400, 2)  # libraries are loaded
    alike = [[encode(encoder, *shape) for _ in range(2 if b.args.small else 5)] for shape in shapes]
    first, steady = [x[0] for x in alike], [median(x[1:]) for x in alike]
    changed = [encode(encoder, *shape) for shape in shapes * 2][len(shapes) :]
    more = float(median(np.subtract(changed, steady)))
    b.results.setdefault("new_shapes", {})[name] = {"first_ms": first, "steady_ms": steady, "changed_more_ms": more}
    b.add(
        f"What does a new shape cost? {', '.join(f'{rows} × {frames}' for frames, rows in shapes)}; ms in the encoder:",
        ("setting", "first", "again", "after another shape, more"),
        (name, *(measured(b, ", ".join(f"{x:.1f}" for x in ms)) for ms in (first, steady)), b.cell(more, "+.1f")),
    )


def how_fast(b: Bench, name: str, times: int) -> None:
    """Full batches of one shape."""
    settings = SETTINGS[name]
    encoder = variant(b, tokens=times * (b.args.tokens or 16 * WINDOW_FRAMES), **settings)
    frames = WINDOW_FRAMES if settings.get("mode") == "padded" else FRAMES
    windows = encoder.batch_size(frames)
    ms = median([encode(encoder, frames, windows) for _ in range(2 if b.args.small else 9)][1:])
    flops = windows * EncoderSize.of(b.model, encoder.outputs).window_flops(frames, encoder.context)
    rate = flops / ms * 1e3
    share = rate / b.rates["bfloat16"] if b.rates else None
    found = {"setting": name, "windows": windows, "frames": frames, "ms": ms, "flops_per_second": rate, "share": share}
    b.results.setdefault("rate", []).append(found)
    b.add(
        "How fast is a full batch? The encoder alone, median of 8; share of torch.mm's bfloat16 rate:",
        ("setting", "batch", "ms", "TFLOP/s", "share"),
        (name, f"{windows} × {frames}", b.cell(ms, ".2f"), b.cell(rate / 1e12, ".0f"), b.cell(share, ".2f")),
    )


def how_many_callers(b: Bench, callers: int) -> None:
    """Full batches from several threads at once."""
    encoder = variant(b)
    windows, batches = encoder.batch_size(FRAMES), 4 if b.args.small else 40
    with ThreadPoolExecutor(callers) as pool:

        def wall(count: int) -> float:
            encoder.seconds.clear()
            begin = time.perf_counter()
            audio = [NOISE[: FRAMES * SAMPLES_PER_FRAME - 160]] * windows
            list(pool.map(lambda _: encoder.stored_rows(audio, FRAMES), range(count)))
            return time.perf_counter() - begin

        wall(2 * callers)  # warms up
        ms = wall(batches) / batches * 1e3
    busy = {stage: seconds / (ms * batches) * 1e3 for stage, seconds in encoder.seconds.items()}
    b.results.setdefault("callers", []).append({"callers": callers, "ms": ms, "busy": busy})
    b.add(
        f"How many callers? {batches} batches of {windows} × {FRAMES}; busy threads by stage:",
        ("callers", "ms a batch", "busy"),
        (str(callers), b.cell(ms, ".1f"), measured(b, ", ".join(f"{k} {v:.2f}" for k, v in busy.items()))),
    )


def run(b: Bench, publish: Callable[[], None]) -> None:
    """All questions; `publish` after each row."""
    wanted = cache(partial(states_of_a_cpu, b))
    steps: list[tuple[str, Callable[[], None]]] = [
        *([("rates", partial(rates, b))] if b.device.kind == "cpu" or torch.cuda.is_available() else []),
        *((f"right, {name}", partial(is_it_right, b, name, wanted)) for name in SETTINGS if name != "padded"),
        *((f"new shapes, {name}", partial(new_shapes, b, name)) for name in SETTINGS if name not in SHAPES_FEW),
        *((f"rate, {name}", partial(how_fast, b, name, 1)) for name in SETTINGS),
        *((f"{n} callers", partial(how_many_callers, b, n)) for n in (2, 3, 4)),
        *((f"rate of twice the batch, {name}", partial(how_fast, b, name, 2)) for name in SETTINGS),
    ]
    b.ask(steps, publish)


def main(arguments: Sequence[str] | None = None) -> int:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--device", default="cuda", help="cuda, cuda:1, …, or cpu to try the script")
    p.add_argument("--small", action="store_true", help="a small model, small batches")
    p.add_argument("--shape", choices=[*SHAPES], default="large-v3")
    p.add_argument("--layers", type=int, default=4, help="of that shape's blocks; rates do not depend on their number")
    p.add_argument("--real", type=Path, metavar="MODEL", help="exported, trained: for whether states are right")
    p.add_argument("--tokens", type=int, help="batch size × computed positions; default: the engine's")
    p.add_argument("--threads", type=int, help="of the CPU that states are compared with; default: all cores")
    p.add_argument("--seconds", type=float, default=540, help="ask no further question after this time")
    p.add_argument("--out", type=Path, default=Path("bench"), help="folder for the report (JSON and Markdown)")
    args = p.parse_args(arguments)
    d, _, heads, mels = SHAPES[args.shape]
    shape = (d, args.layers, heads, mels)
    if args.small:
        shape, args.shape, args.layers, args.tokens = SMALL, "small", SMALL[1], 3000
    return benched(args, "first_ten_minutes", "First ten minutes with a GPU", shape, run)


if __name__ == "__main__":
    sys.exit(main())
