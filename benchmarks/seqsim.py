"""Rate of the SeqSim kernels beside sgemm and beside torch's einsum with amax, on equal cores and threads, in one run.

Both shapes of random frames, all pairs. A rate is 2 · (frames of x) · (frames of y) · d / seconds, for kernels as for
sgemm (numpy, 4096³, the limit); packing is not counted, torch gets rows of unit length. Contestants take turns,
`--repeats` times; the table gives medians and ranges. torch multiplies one utterance of x with all of y at a time:
its whole tensor of cosines would take gigabytes.
Exit status 1 when a kernel is off a float64 loop on sampled pairs: by more than 1e-6 (float32), 3e-5 (int16).
Other public implementations (jax, faiss, maxsim-fast, numkong, bert-score) are not measured here yet.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import numpy as np
import torch
from _common import Table, environment, pin, say, write_report

from voxstrata.retrieval import Ragged
from voxstrata.retrieval.kernels import KERNELS, choose

SHAPES = ((64, 200, 384), (16, 500, 1280))  # utterances per side, frames of each, d
ALLOWED = {"float32": 1e-6, "int16": 3e-5}
SAMPLED = 20
SGEMM = 4096


def random_side(rng: np.random.Generator, utterances: int, frames: int, d: int) -> Ragged:
    rows = [rng.standard_normal((frames, d)).astype(np.float32) for _ in range(utterances)]
    return Ragged.from_list(rows)


def einsum_amax(x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Precision and recall of x (N, T, d) against y (M, T, d), rows of unit length."""
    precision, recall = [], []
    for one in x:
        s = torch.einsum("td,mud->mtu", one, y)
        precision.append(s.amax(2).mean(1))
        recall.append(s.amax(1).mean(1))
    return torch.stack(precision), torch.stack(recall)


def largest_error(x: Ragged, y: Ragged, got: tuple[np.ndarray, np.ndarray], rng: np.random.Generator) -> float:
    """Largest difference from a float64 computation, over SAMPLED pairs."""
    worst = 0.0
    for i, j in rng.integers(0, len(x), (SAMPLED, 2)).tolist():
        a, b = (side.rows[side.offsets[k] : side.offsets[k + 1]].astype(np.float64) for side, k in ((x, i), (y, j)))
        s = (a / np.linalg.norm(a, axis=1, keepdims=True)) @ (b / np.linalg.norm(b, axis=1, keepdims=True)).T
        for mine, exact in zip((g[i, j] for g in got), (s.max(1).mean(), s.max(0).mean()), strict=True):
            worst = max(worst, abs(float(mine) - float(exact)))
    return worst


def main() -> int:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--threads", type=int, default=2)
    p.add_argument("--repeats", type=int, default=5)
    p.add_argument("--out", type=Path, default=Path("bench"), help="folder for the report (JSON and Markdown)")
    args = p.parse_args()
    pin(args.threads)
    torch.set_num_threads(args.threads)
    facts = environment(args.threads)
    rng = np.random.default_rng(0)
    square = rng.standard_normal((SGEMM, SGEMM)).astype(np.float32)
    tables, results, wrong = [], [], False
    for n, frames, d in SHAPES:
        x, y = random_side(rng, n, frames, d), random_side(rng, n, frames, d)
        work = 2.0 * (n * frames) ** 2 * d
        calls: dict[str, tuple[float, Callable[[], object]]] = {"sgemm": (2.0 * SGEMM**3, lambda: square @ square)}
        errors: dict[str, float] = {}
        for name in KERNELS:
            kernel = choose(name)
            packed = kernel.pack(x), kernel.pack(y)
            errors[name] = largest_error(x, y, kernel.compare(*packed), rng)  # compiles, too
            calls[name] = (work, lambda kernel=kernel, packed=packed: kernel.compare(*packed))
        unit = [torch.from_numpy(side.unit().rows).reshape(n, frames, d) for side in (x, y)]
        got = einsum_amax(*unit)
        errors["torch einsum + amax"] = largest_error(x, y, (got[0].numpy(), got[1].numpy()), rng)
        calls["torch einsum + amax"] = (work, lambda unit=unit: einsum_amax(*unit))
        rates: dict[str, list[float]] = {name: [] for name in calls}
        for repeat in range(args.repeats):
            say(f"{n} × {n} utterances, T = {frames}, d = {d}: repeat {repeat + 1} of {args.repeats}")
            for name, (operations, call) in calls.items():
                begin = time.perf_counter()
                call()
                rates[name].append(operations / (time.perf_counter() - begin) / 1e9)
        limit = median(rates["sgemm"])
        rows = [
            [
                name,
                f"{median(r):.0f} ({min(r):.0f}–{max(r):.0f})",
                f"{median(r) / limit:.2f}",
                f"{errors[name]:.1e}" if name in errors else "",
            ]
            for name, r in rates.items()
        ]
        caption = f"{n} × {n} utterances, T = {frames}, d = {d}:"
        tables.append(Table(caption, ["system", "Gop/s", "× sgemm", "largest error"], rows))
        results.append({"shape": [n, frames, d], "rates": rates, "errors": errors})
        wrong = wrong or any(not errors[name] <= ALLOWED[name] for name in KERNELS)
    write_report("seqsim", "SeqSim kernels", args, facts, {"results": results}, tables, [])
    return int(wrong)


if __name__ == "__main__":
    sys.exit(main())
