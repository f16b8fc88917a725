"""SeqSim on a CUDA device, beside the matrix product rate and the public kernels of the same call; under nine minutes.

All pairs of two sets of random frames, 4096 utterances a side: T = 500 at d = 1280, 1024, 512, 384, and a ragged mix.
A rate is 2 · (frames of x) · (frames of y) · d / seconds of `compare`, results on the host included, packing not. The
limit is torch.mm of 8192 × 8192 × 8192 in the same number format, timed before and after each set. flash-maxsim and
late-interaction-kernels (pip; what is missing is left out) compute one direction and so run twice; they get 512 × 512
of the same utterances, and so do we in that table. While one tile is compared the next one's rows are packed, from the
host's memory on another stream, as `similarity` does: how much either takes from the other is a section of its own.
Exit status 1 when a score is off a float64 computation, when bits differ that should not, or when a section fails; the
report then holds what was reached.

Needs torch built for CUDA, triton and numpy, nothing else that voxstrata depends on. Without a device, --tiny runs our
sections at a small size in Triton's interpreter and leaves every rate «not measured».
"""

# ruff: noqa: E402  (what stands before the imports decides what they bring in)
from __future__ import annotations

import argparse
import json
import os
import platform
import re
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median
from types import ModuleType
from typing import Any

EARLY = argparse.ArgumentParser(add_help=False)
EARLY.add_argument("--tiny", action="store_true", help="small sizes in Triton's interpreter, without a device")
EARLY.add_argument("--device", default="cuda", help="cuda, cuda:1, …")


def visible(device: str, before: str | None) -> str:
    """What CUDA_VISIBLE_DEVICES must say so that `device` alone is there; before: what it says, None: nothing."""
    named = re.fullmatch(r"(cuda|tensorrt)(?::(\d+))?(:bfloat16)?", device)
    if named is None:
        sys.exit(f"--device {device}: choose cuda, cuda:1, …")
    index = int(named[2] or 0)
    if before is None:
        return str(index)
    return ",".join(before.split(",")[index : index + 1])


GIVEN, _ = EARLY.parse_known_args()
TINY = GIVEN.tiny
if TINY:  # Triton reads it when it is imported
    os.environ.update(TRITON_INTERPRET="1", CUDA_VISIBLE_DEVICES="")
else:  # the kernel takes the first device that torch sees
    os.environ["CUDA_VISIBLE_DEVICES"] = visible(GIVEN.device, os.environ.get("CUDA_VISIBLE_DEVICES"))

import numpy as np
import torch

SOURCE = Path(__file__).parents[1] / "src"
for name in ("voxstrata", "voxstrata.retrieval"):
    # Bare packages: their own __init__ would bring in audio and zarr, which machines lent for their GPU often lack.
    package = ModuleType(name)
    package.__path__ = [str(SOURCE.joinpath(*name.split(".")))]
    sys.modules[name] = package

from voxstrata.retrieval.kernels.base import FloatMatrix, Packed
from voxstrata.retrieval.kernels.gpu import TILES, Tile, Triton
from voxstrata.retrieval.ragged import Ragged

NOT_MEASURED = "not measured"
UTTERANCES, PART, FRAMES, SQUARE = (8, 2, 20, 64) if TINY else (4096, 512, 500, 8192)
DIMENSIONS = (24,) if TINY else (1280, 1024, 512, 384)
LONGEST = 40 if TINY else 1500
# Cauchy-Schwarz: rows rounded to p bits move no cosine by more than 2 · 2^-p; the rest is float32 arithmetic.
ALLOWED = {"float32": 1e-6, "float16": 2**-10 + 2e-6, "bfloat16": 2**-7 + 2e-6}
ALLOWED_OF_ARITHMETIC = 5e-6  # against float64 over the rounded rows: sums of 1280 products in float32
CANDIDATES = (  # beside those of `TILES`
    Tile(128, 256, 64, warps=8, stages=3),
    Tile(128, 256, 128, warps=8, stages=2),
    Tile(256, 128, 64, warps=8, stages=4),
    Tile(256, 128, 64, warps=8, stages=3),
    Tile(128, 128, 64, warps=4, stages=3, programs=2),
    Tile(128, 128, 128, warps=8, stages=3),
)
SMALL = Tile(16, 32, 16, warps=4, stages=2, strip=48)  # for the interpreter
PEERS = ("flash-maxsim", "late-interaction-kernels")
RATES = (
    "All pairs: rates in TFLOP/s, share of torch.mm, largest error of sampled scores against float64 on the same rows."
)
RATES_HEADER = ("set", "d", "tile", "pairs", "seconds", "pairs/s", "rate", "torch.mm before, after", "share", "error")


@dataclass
class Report:
    """Tables as they come: each addition rewrites both files, so that a run cut short leaves what it measured."""

    folder: Path
    facts: dict[str, Any]
    tables: dict[str, list[Sequence[str]]] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    figures: dict[str, Any] = field(default_factory=dict)  # what was measured, as numbers

    def add(self, caption: str, header: Sequence[str], *rows: Sequence[str]) -> None:
        """Append rows to the table of that caption."""
        self.tables.setdefault(caption, [header]).extend(rows)
        self.write()

    def check(self, promise: bool, problem: str) -> None:
        if not promise:
            self.problems.append(problem)
            self.write()

    def write(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        found = {"tables": self.tables, "problems": self.problems}
        report = {"environment": self.facts, "figures": self.figures, **found}
        (self.folder / "seqsim_gpu.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
        (self.folder / "seqsim_gpu.md").write_text(self.text(), encoding="utf-8")

    def text(self) -> str:
        parts = ["# SeqSim on a GPU", ", ".join(f"{k} {v}" for k, v in self.facts.items()) + "."]
        for caption, (header, *rows) in self.tables.items():
            parts += [caption, "\n".join("| " + " | ".join(r) + " |" for r in (header, ["---"] * len(header), *rows))]
        parts.append("\n".join(f"- PROBLEM: {p}" for p in self.problems) or "No problem found.")
        return "\n\n".join(parts) + "\n"


def kernel(dtype: str, tile: Tile | None = None) -> Triton:
    return Triton(dtype, tile=SMALL if TINY else tile)


def random_set(dtype: str, lengths: np.ndarray, d: int, seed: int) -> Packed:
    """Gaussian rows of unit length, made on the device: sets of gigabytes would take minutes through numpy."""
    device = torch.device("cpu" if TINY else "cuda:0")
    generator = torch.Generator(device).manual_seed(seed)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    rows = torch.empty((int(offsets[-1]), d), dtype=getattr(torch, dtype), device=device)
    for part in rows.split(1 << 18):
        part.copy_(torch.nn.functional.normalize(torch.randn(part.shape, generator=generator, device=device)))
    return Packed(rows, offsets)


def ragged_lengths(count: int, seed: int) -> np.ndarray:
    """Frames of read sentences, as in FLEURS by our guess: log-normal, median 10.5 s, sigma 0.4, cut to 2 … 30 s."""
    seconds = np.exp(np.random.default_rng(seed).normal(np.log(10.5), 0.4, count)).clip(2, 30)
    return np.round(seconds * (2 if TINY else 50)).astype(np.int64)


def torch_mm(dtype: str) -> float:
    """TFLOP/s of a large square product: the median of three times ten, after a warm-up."""
    a, b = (torch.randn((SQUARE, SQUARE), device="cuda").to(getattr(torch, dtype)) for _ in range(2))
    torch.mm(a, b)
    rates = []
    for _ in range(3):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        for _ in range(10):
            torch.mm(a, b)
        end.record()
        end.synchronize()
        rates.append(10 * 2 * SQUARE**3 / start.elapsed_time(end) / 1e9)
    return median(rates)


def timed(k: Triton, x: Packed, y: Packed) -> tuple[FloatMatrix, FloatMatrix, float]:
    """Precision, recall and seconds of one call; its results are on the host, so nothing is left running."""
    begin = time.perf_counter()
    precision, recall = k.compare(x, y)
    return precision, recall, time.perf_counter() - begin


def flops(x: Packed, y: Packed) -> float:
    return 2.0 * len(x.rows) * len(y.rows) * x.rows.shape[1]


def error_of_arithmetic(x: Packed, y: Packed, precision: FloatMatrix, recall: FloatMatrix) -> float:
    """The largest difference of 32 sampled pairs from float64 over the same rows."""
    rng, worst = np.random.default_rng(0), 0.0
    for _ in range(32):
        i, j = int(rng.integers(len(x))), int(rng.integers(len(y)))
        s = x.part(i, i + 1).rows.double() @ y.part(j, j + 1).rows.double().T
        exact = (s.amax(dim=1).mean().item(), s.amax(dim=0).mean().item())
        worst = max(worst, abs(exact[0] - precision[i, j]), abs(exact[1] - recall[i, j]))
    return worst


def all_pairs(report: Report, dtype: str, d: int, ragged: bool = False, tile: Tile | None = None) -> None:
    k, count = kernel(dtype, tile), UTTERANCES // 2 if ragged else UTTERANCES
    lengths = [ragged_lengths(count, side) if ragged else np.full(count, FRAMES) for side in (1, 2)]
    x, y = (random_set(dtype, of, d, side) for side, of in enumerate(lengths))
    part = (x.part(1, 1 + PART), y.part(1, 1 + PART))
    small = k.compare(*part)  # also compiles
    before = None if TINY else torch_mm(dtype)
    precision, recall, seconds = timed(k, x, y)
    after = None if TINY else torch_mm(dtype)

    name = f"{'ragged' if ragged else f'T = {FRAMES}'}, d = {d}"
    error = error_of_arithmetic(x, y, precision, recall)
    report.check(error <= ALLOWED_OF_ARITHMETIC, f"{name}: a score is off by {error:.1e}")
    cut = slice(1, 1 + PART)
    same = all(np.array_equal(a[cut, cut], b) for a, b in zip((precision, recall), small, strict=True))
    report.check(same, f"{name}: bits of a pair depend on the other pairs of the call")
    report.check(all(map(np.array_equal, small, k.compare(*part))), f"{name}: a repeated call gave other bits")
    pairs, cells = precision.size, [NOT_MEASURED] * 5
    if before and after:
        rate = flops(x, y) / seconds / 1e12
        share = rate / (before + after) * 2
        figure = {"d": d, "ragged": ragged, "tile": brief(k.tile), "share": share}
        report.figures.setdefault("shares", []).append(figure)
        cells = [f"{seconds:.2f}", f"{pairs / seconds:,.0f}", f"{rate:.0f}", f"{before:.0f}, {after:.0f}"]
        cells.append(f"{share:.2f}")
    frames = f"ragged, mean T = {len(x.rows) / len(x):.0f}" if ragged else f"T = {FRAMES}"
    report.add(RATES, RATES_HEADER, [frames, str(d), brief(k.tile), f"{pairs:,}", *cells, f"{error:.1e}"])


def sweep(report: Report, dtype: str, d: int) -> None:
    """Rates of other tiles on a part of the utterances, the better of two calls; the best, if not ours, on all."""
    caption = (
        f"Tiles (frames of x × of y × columns; warps, stages, programs), {PART} × {PART} utterances of T = {FRAMES}."
    )
    rates: dict[Tile, float] = {}
    ours = kernel(dtype).tile
    # the interpreter takes one tile for all
    for tile in dict.fromkeys((ours, *([] if TINY else (*TILES[dtype].values(), *CANDIDATES)))):
        k = kernel(dtype, tile)
        x, y = (random_set(dtype, np.full(PART, FRAMES), d, side) for side in (1, 2))
        try:
            k.compare(x, y)
            rates[tile] = flops(x, y) / min(timed(k, x, y)[2] for _ in range(2)) / 1e12
            cell = NOT_MEASURED if TINY else f"{rates[tile]:.0f}"
        except Exception as error:  # a tile that asks too much of this device
            cell = f"failed: {type(error).__name__}"
        report.add(caption, ("d", "tile", "TFLOP/s"), [str(d), brief(tile), cell])
    best = max(rates, key=lambda tile: rates[tile])
    if not TINY:
        report.figures.setdefault("best_tile", {})[d] = brief(best)
    if best != ours:
        all_pairs(report, dtype, d, tile=best)


def profile(report: Report, dtype: str, d: int) -> None:
    """Where the time of a call goes, by CUDA kernel."""
    k = kernel(dtype)
    x, y = (random_set(dtype, np.full(PART, FRAMES), d, side) for side in (1, 2))
    k.compare(x, y)
    caption, header = "Time on the device in one call, by program.", ("d", "program", "calls", "ms")
    if TINY:
        report.add(caption, header, [str(d), NOT_MEASURED, "", ""])
        return
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as found:
        seconds = timed(k, x, y)[2]
    events = sorted(found.key_averages(), key=lambda e: -e.device_time_total)[:4]
    rows = [[str(d), e.key[:40], str(e.count), f"{e.device_time_total / 1e3:.2f}"] for e in events]
    report.add(caption, header, *rows, [str(d), "the whole call, by the host's clock", "1", f"{seconds * 1e3:.2f}"])


def peers() -> Iterator[tuple[str, Callable[[Any, Any], Any]]]:
    """Public kernels that are installed: sums (N, M) over the rows of a (N, T, d) of their maxima over those of b."""
    try:
        from flash_maxsim import flash_maxsim_batched

        yield "flash-maxsim", flash_maxsim_batched
    except ImportError:
        pass
    try:
        from late_interaction_kernels import maxsim

        yield "late-interaction-kernels", maxsim
    except ImportError:
        pass


def beside_peers(report: Report, dtype: str, d: int) -> None:
    """Others once per direction, on the same rows; their first calls compile and tune."""
    caption = f"Beside public kernels, {PART} × {PART} utterances of T = {FRAMES}, both directions."
    header = ("d", "system", "seconds", "pairs/s", "× ours", "largest difference from ours")
    k = kernel(dtype)
    x, y = (random_set(dtype, np.full(PART, FRAMES), d, side) for side in (1, 2))
    k.compare(x, y)
    precision, recall, ours = timed(k, x, y)
    if TINY:
        report.add(caption, header, [str(d), "ours", *[NOT_MEASURED] * 4])
        return
    pairs = PART * PART
    report.add(caption, header, [str(d), "ours", f"{ours:.3f}", f"{pairs / ours:,.0f}", "1", ""])
    a, b = (side.rows.view(PART, FRAMES, d) for side in (x, y))
    for name, call in peers():
        best = float("inf")
        try:
            for _ in range(3):
                torch.cuda.synchronize()
                begin = time.perf_counter()
                both = call(a, b).cpu().numpy(), call(b, a).T.cpu().numpy()
                best = min(best, time.perf_counter() - begin)
        except Exception as error:  # a peer may refuse this d or this device
            report.add(caption, header, [str(d), name, f"failed: {type(error).__name__}", "", "", ""])
            continue
        off = max(
            float(np.abs(their / FRAMES - own).max()) for their, own in zip(both, (precision, recall), strict=True)
        )
        report.figures.setdefault("peers", []).append({"d": d, "peer": name, "seconds": best / ours})
        cells = [f"{best:.3f}", f"{pairs / best:,.0f}", f"{best / ours:.2f}", f"{off:.1e}"]
        report.add(caption, header, [str(d), f"{name} {_version(name)}, twice", *cells])


def while_packing(report: Report, dtype: str, d: int) -> None:
    """What comparing and packing take alone, and from each other at the same time, on two threads."""
    k, rng = kernel(dtype), np.random.default_rng(0)
    x, y = (random_set(dtype, np.full(PART, FRAMES), d, side) for side in (1, 2))
    few = rng.standard_normal((min(PART, 16) * FRAMES, d), np.float32).astype(np.float16)
    host = Ragged(np.resize(few, (PART * FRAMES, d)), np.arange(PART + 1) * FRAMES)

    def often(call: Callable[[], Any]) -> float:
        """Seconds of one of three calls."""
        begin = time.perf_counter()
        for _ in range(3):
            call()
        return (time.perf_counter() - begin) / 3

    both = partial(k.compare, x, y), partial(k.pack, host)
    for call in both:
        call()  # compiles
    alone = [often(call) for call in both]
    with ThreadPoolExecutor(2) as pool:
        together = list(pool.map(often, both))
    caption = f"Comparing {PART} × {PART} utterances of T = {FRAMES} while as many are packed: seconds."
    header = ("d", "what", "alone", "at the same time", "GB/s from the host, alone and at the same time")
    rates = [f"{host.rows.nbytes / seconds / 1e9:.1f}" for seconds in (alone[1], together[1])]
    rows = [[f"{seconds:.3f}" for seconds in pair] for pair in zip(alone, together, strict=True)]
    if TINY:
        rows, rates = [[NOT_MEASURED] * 2] * 2, [NOT_MEASURED]
    else:
        figure = {
            "d": d,
            "compare": together[0] / alone[0],
            "gigabytes_per_second": host.rows.nbytes / together[1] / 1e9,
        }
        report.figures.setdefault("while_packing", []).append(figure)
    report.add(caption, header, [str(d), "compare", *rows[0], ""], [str(d), "pack", *rows[1], ", ".join(rates)])


def scores(report: Report) -> None:
    """The whole path, packing included, against a float64 loop over the rows as given."""
    rng = np.random.default_rng(0)
    for dtype in ("float32", "float16") if TINY else tuple(ALLOWED):
        k = Triton(dtype, tile=SMALL if TINY else None)
        for d in (1, 100) if TINY else (1, 100, 1280):
            x, y = (
                [rng.standard_normal((n, d)).astype(np.float32) for n in (1, 2, *rng.integers(1, LONGEST, 4), LONGEST)]
                for _ in range(2)
            )
            cases = {
                "random": (x, y),
                "all negative": ([np.abs(u) for u in x], [-np.abs(u) for u in y]),
                "single frames": ([u[:1] for u in x], [u[:1] for u in y]),
                "repeated frames": (x, [np.repeat(u, 2, axis=0) for u in x]),
            }
            for name, (left, right) in cases.items():
                found = k.compare(k.pack(Ragged.from_list(left)), k.pack(Ragged.from_list(right)))
                error = float(np.abs(np.stack(found) - by_loop(left, right)).max())
                caption = "Largest error of precision and recall against a float64 loop, 1 to 1500 frames."
                header = ("rows", "d", "case", "error", "allowed")
                report.add(caption, header, [dtype, str(d), name, f"{error:.1e}", f"{ALLOWED[dtype]:.1e}"])
                report.check(error <= ALLOWED[dtype], f"{dtype}, d = {d}, {name}: off by {error:.1e}")


def by_loop(x: list[np.ndarray], y: list[np.ndarray]) -> np.ndarray:
    unit = [[u / np.linalg.norm(u, axis=1, keepdims=True) for u in map(np.float64, side)] for side in (x, y)]
    products = [[a @ b.T for b in unit[1]] for a in unit[0]]
    return np.array([[[s.max(axis=side).mean() for s in row] for row in products] for side in (1, 0)])


def brief(tile: Tile) -> str:
    return f"{tile.x} × {tile.y} × {tile.d}, {tile.warps}, {tile.stages}, {tile.programs}"


def facts(dtype: str) -> dict[str, Any]:
    found = {"rows": dtype, "system": f"{platform.system()} {platform.machine()}", "python": platform.python_version()}
    found |= {package: _version(package) for package in ("torch", "triton", "numpy", *PEERS)}
    if TINY:
        return {"device": "none: Triton's interpreter", **found}
    device = torch.cuda.get_device_properties(0)
    gib = f"{device.total_memory / 2**30:.0f} GiB"
    multiprocessors = device.multi_processor_count
    return {
        "device": device.name,
        "memory": gib,
        "compute capability": f"{device.major}.{device.minor}",
        "multiprocessors": multiprocessors,
        "tile": brief(kernel(dtype).tile),
        "CUDA": torch.version.cuda,
        **found,
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def main() -> int:
    form = argparse.RawDescriptionHelpFormatter
    p = argparse.ArgumentParser(parents=[EARLY], description=__doc__, formatter_class=form)
    p.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float16"), help="number format of the rows")
    p.add_argument("--seconds", type=float, default=420, help="start no further section after this time")
    p.add_argument("--out", type=Path, default=Path("bench"), help="folder for the report (JSON and Markdown)")
    args = p.parse_args()
    if not TINY and not torch.cuda.is_available():
        sys.exit("no CUDA device; --tiny runs our sections at a small size in Triton's interpreter")
    dtype = "float16" if TINY else args.dtype  # the interpreter cannot multiply bfloat16
    report = Report(args.out, facts(dtype))
    widest = DIMENSIONS[0]
    # What matters most comes first: the time may not reach for all.
    sections = [
        (scores, {}),
        (all_pairs, {"dtype": dtype, "d": widest}),
        (beside_peers, {"dtype": dtype, "d": widest}),
        (while_packing, {"dtype": dtype, "d": widest}),
        (profile, {"dtype": dtype, "d": widest}),
        (all_pairs, {"dtype": dtype, "d": widest, "ragged": True}),
        *((all_pairs, {"dtype": dtype, "d": d}) for d in DIMENSIONS[1:]),
        (sweep, {"dtype": dtype, "d": widest}),
        (sweep, {"dtype": dtype, "d": DIMENSIONS[-1]}),
        (beside_peers, {"dtype": dtype, "d": DIMENSIONS[-1]}),
    ]
    begin = time.perf_counter()
    for section, given in sections:
        title = f"{section.__name__} {', '.join(map(str, given.values()))}".strip()
        if time.perf_counter() - begin > args.seconds:
            report.check(False, f"{title}: not reached within {args.seconds:.0f} s")
            continue
        print(f"{time.perf_counter() - begin:.0f} s: {title}", file=sys.stderr, flush=True)
        try:
            section(report, **given)
        except Exception as error:  # the sections after it are still worth their device time
            traceback.print_exc()
            report.check(False, f"{title}: {type(error).__name__}: {str(error).splitlines()[:1]}")
        if not TINY:
            torch.cuda.empty_cache()
    report.facts["seconds"] = round(time.perf_counter() - begin)
    report.write()
    print(report.text(), end="")
    return 1 if report.problems else 0


if __name__ == "__main__":
    sys.exit(main())
