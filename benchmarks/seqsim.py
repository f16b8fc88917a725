"""Rate of the SeqSim kernels beside sgemm and beside public libraries, on equal cores and threads, in one run.

Two shapes of random frames, all pairs. A rate is 2 · (frames of x) · (frames of y) · d / seconds, for every system as
for sgemm (numpy, 4096³, the limit); packing is not counted, the others get rows of unit length (`_seqsim_peers.py`,
extra `peers`; what is not installed is left out and named). Contestants take turns, `--repeats` times; the tables give
medians and ranges. With `--store`, also all pairs of two of its languages, beside utterances of equal lengths (as many
frames, as many utterances): what raggedness costs. `--avx2` compiles the kernels, and runs sgemm, for a CPU without
AVX-512.
Exit status 1 when a kernel is off a float64 computation on sampled pairs: by more than 1e-6 (float32), 3e-5 (int16).
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from _common import Table, environment, pin, say, write_report
from _seqsim_peers import PEERS

from voxstrata import open_store
from voxstrata.retrieval import Ragged
from voxstrata.retrieval.kernels import choose_kernel
from voxstrata.retrieval.selection import select

SHAPES = ((64, 200, 384), (16, 500, 1280))  # utterances per side, frames of each, d
ALLOWED = {"int16": 3e-5, "float32": 1e-6}
SAMPLED = 20
SGEMM = 4096
AVX2 = {
    "NUMBA_CPU_NAME": "haswell",
    "NUMBA_CPU_FEATURES": "+sse4.2,+popcnt,+avx,+avx2,+fma,+bmi,+bmi2",
    "OPENBLAS_CORETYPE": "Haswell",
}
Calls = dict[str, tuple[float, Callable[[], Any]]]


def random_side(rng: np.random.Generator, lengths: np.ndarray, d: int) -> Ragged:
    rows = rng.standard_normal((int(lengths.sum()), d)).astype(np.float32)
    return Ragged(rows, np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64))


def largest_error(x: Ragged, y: Ragged, got: tuple[Any, Any], rng: np.random.Generator) -> float:
    """Largest difference from a float64 computation, over SAMPLED pairs."""
    worst = 0.0
    for i, j in zip(rng.integers(0, len(x), SAMPLED).tolist(), rng.integers(0, len(y), SAMPLED).tolist(), strict=True):
        a, b = (side.rows[side.offsets[k] : side.offsets[k + 1]].astype(np.float64) for side, k in ((x, i), (y, j)))
        s = (a / np.linalg.norm(a, axis=1, keepdims=True)) @ (b / np.linalg.norm(b, axis=1, keepdims=True)).T
        for mine, exact in zip((g[i, j] for g in got), (s.max(1).mean(), s.max(0).mean()), strict=True):
            worst = max(worst, abs(float(mine) - float(exact)))
    return worst


def take_turns(calls: Calls, repeats: int, what: str) -> dict[str, list[float]]:
    """Gop/s of every system, by repeat."""
    rates: dict[str, list[float]] = {name: [] for name in calls}
    for repeat in range(repeats):
        say(f"{what}: repeat {repeat + 1} of {repeats}")
        for name, (operations, call) in calls.items():
            begin = time.perf_counter()
            call()
            rates[name].append(operations / (time.perf_counter() - begin) / 1e9)
    return rates


def our_calls(x: Ragged, y: Ragged, errors: dict[str, float], rng: np.random.Generator, suffix: str = "") -> Calls:
    """Both kernels on packed sides, checked; the check also compiles them."""
    calls: Calls = {}
    work = 2.0 * len(x.rows) * len(y.rows) * x.rows.shape[1]
    for name in ALLOWED:
        kernel = choose_kernel(name)
        packed = kernel.pack(x), kernel.pack(y)
        errors[name + suffix] = largest_error(x, y, kernel.compare(*packed), rng)
        calls[name + suffix] = (work, lambda kernel=kernel, packed=packed: kernel.compare(*packed))
    return calls


def cells(rates: list[float], limit: float) -> list[str]:
    return [f"{median(rates):.0f} ({min(rates):.0f}–{max(rates):.0f})", f"{median(rates) / limit:.2f}"]


def main() -> int:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--threads", type=int, default=2)
    p.add_argument("--repeats", type=int, default=5)
    p.add_argument("--store", help="store of real frames for the ragged table")
    p.add_argument("--layer", default="layer_06", help="its output to compare")
    p.add_argument("--languages", nargs=2, default=("en", "es"), help="its two languages")
    p.add_argument("--avx2", action="store_true", help="as on a CPU that has AVX2 and no AVX-512")
    p.add_argument("--out", type=Path, default=Path("bench"), help="folder for the report (JSON and Markdown)")
    args = p.parse_args()
    if args.avx2 and not AVX2.items() <= os.environ.items():  # numba and BLAS read it when they are loaded
        os.execve(sys.executable, sys.orig_argv, os.environ | AVX2)
    pin(args.threads)
    torch.set_num_threads(args.threads)
    facts = environment(args.threads)
    rng = np.random.default_rng(0)
    square = rng.standard_normal((SGEMM, SGEMM)).astype(np.float32)
    sgemm: Calls = {"sgemm": (2.0 * SGEMM**3, lambda: square @ square)}
    tables, results, notes, wrong = [], [], [], False

    for n, frames, d in SHAPES:
        x, y = (random_side(rng, np.full(n, frames), d) for _ in range(2))
        errors: dict[str, float] = {}
        calls = sgemm | our_calls(x, y, errors, rng)
        what = f"{n} × {n} utterances, T = {frames}, d = {d}"
        unit = [side.unit().rows.reshape(n, frames, d) for side in (x, y)]
        for name, make in PEERS.items():
            try:
                call = make(*unit, args.threads)
            except ImportError as e:
                notes.append(f"{what}: {name} is not measured, {e.name} is not installed.")
                continue
            errors[name] = largest_error(x, y, call(), rng)
            calls[name] = (2.0 * (n * frames) ** 2 * d, call)
        rates = take_turns(calls, args.repeats, what)
        middle = {name: median(r) for name, r in rates.items()}
        rows = []
        for name, r in rates.items():
            ours = [f"{middle[k] / middle[name]:.2f}" if name in PEERS else "" for k in ALLOWED]
            rows.append([name, *cells(r, middle["sgemm"]), *ours, f"{errors[name]:.1e}" if name in errors else ""])
        header = ["system", "Gop/s", "× sgemm", *(f"{k} is faster ×" for k in ALLOWED), "largest error"]
        tables.append(Table(f"{what}:", header, rows))
        results.append({"shape": [n, frames, d], "rates": rates, "errors": errors})
        wrong = wrong or any(not errors[name] <= ALLOWED[name] for name in ALLOWED)

    if args.store:
        store = open_store(args.store)
        x, y = (s.ragged(args.layer, 0, len(s)) for s in (select(store, [name]) for name in args.languages))
        a, b = (random_side(rng, np.full(len(s), round(len(s.rows) / len(s))), s.rows.shape[1]) for s in (x, y))
        errors = {}
        calls = our_calls(x, y, errors, rng) | our_calls(a, b, errors, rng, ", equal lengths")
        what = f"{args.languages[0]} × {args.languages[1]}, {args.layer}"
        rates = take_turns(calls, args.repeats, what)
        rows = []
        for name in ALLOWED:
            even = rates[f"{name}, equal lengths"]
            share = f"{median(rates[name]) / median(even):.2f}"
            rows.append([name, cells(rates[name], 1)[0], cells(even, 1)[0], share, f"{errors[name]:.1e}"])
            wrong = wrong or not errors[name] <= ALLOWED[name]
        spread = ", ".join(f"{len(s)} utterances of {s.lengths.min()} to {s.lengths.max()} frames" for s in (x, y))
        header = ["kernel", "Gop/s, real lengths", "Gop/s, equal lengths", "ratio", "largest error"]
        tables.append(Table(f"{what}, {store.model.checkpoint}: {spread}, d = {x.rows.shape[1]}:", header, rows))
        results.append({"store": what, "rates": rates, "errors": errors})
    title = "SeqSim kernels" + (", compiled for AVX2" if args.avx2 else "")
    write_report("seqsim_avx2" if args.avx2 else "seqsim", title, args, facts, {"results": results}, tables, notes)
    return int(wrong)


if __name__ == "__main__":
    sys.exit(main())
