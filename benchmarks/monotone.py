"""What order costs: processor time of the monotone alignment beside the SeqSim kernels, in one run.

All pairs of random frames, of the shapes T and d of `seqsim.py`; packing is not counted. Contestants take turns,
`--repeats` times; the table gives medians and ranges. Processor time, so that a busy machine matters little.
Exit status 1 when a score is off the recurrence in float64 by more than 1e-6, on sampled pairs.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from statistics import median

import numpy as np
from _common import Table, environment, pin, write_report
from seqsim import SAMPLED, random_side

from voxstrata.retrieval import Ragged
from voxstrata.retrieval.kernels import choose_kernel
from voxstrata.retrieval.kernels.base import Kernel
from voxstrata.retrieval.kernels.monotone import Monotone

SHAPES = ((24, 200, 384), (8, 500, 1280))  # utterances per side, frames of each, d
ALLOWED = 1e-6


def recurrence(a: np.ndarray, b: np.ndarray) -> float:
    """The score of one pair in float64."""
    a, b = (z / np.linalg.norm(z, axis=1, keepdims=True) for z in (a.astype(np.float64), b.astype(np.float64)))
    s = a @ b.T
    reached = np.full((len(a) + 1, len(b) + 1), -np.inf)
    reached[0, 0] = 0
    for i in range(1, len(a) + 1):
        for j in range(1, len(b) + 1):
            here = s[i - 1, j - 1]
            around = reached[i - 1, j], reached[i, j - 1], reached[i - 1, j - 1] + here
            reached[i, j] = here + max(around)
    return float(reached[-1, -1]) / (len(a) + len(b))


def largest_error(x: Ragged, y: Ragged, got: np.ndarray, rng: np.random.Generator) -> float:
    """Largest difference from float64 over SAMPLED pairs."""
    worst = 0.0
    for i, j in zip(rng.integers(0, len(x), SAMPLED).tolist(), rng.integers(0, len(y), SAMPLED).tolist(), strict=True):
        a, b = (side.rows[side.offsets[k] : side.offsets[k + 1]] for side, k in ((x, i), (y, j)))
        worst = max(worst, abs(float(got[i, j]) - recurrence(a, b)))
    return worst


def main() -> int:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--threads", type=int, default=2)
    p.add_argument("--repeats", type=int, default=5)
    p.add_argument("--out", type=Path, default=Path("bench"), help="folder for the report (JSON and Markdown)")
    args = p.parse_args()
    pin(args.threads)
    facts, rng = environment(args.threads), np.random.default_rng(0)
    kernels: dict[str, Kernel] = {
        "monotone": Monotone(),
        "float32": choose_kernel("float32"),
        "int16": choose_kernel("int16"),
    }
    tables, results, wrong = [], [], False
    for n, frames, d in SHAPES:
        x, y = (random_side(rng, np.full(n, frames), d) for _ in range(2))
        packed = {name: (kernel.pack(x), kernel.pack(y)) for name, kernel in kernels.items()}
        first = {name: kernel.compare(*packed[name])[0] for name, kernel in kernels.items()}  # compiles them, too
        error = largest_error(x, y, first["monotone"], rng)
        what = f"{n} × {n} utterances, T = {frames}, d = {d}"
        spent: dict[str, list[float]] = {name: [] for name in kernels}  # nanoseconds for each pair of frames
        for _ in range(args.repeats):
            for name, kernel in kernels.items():
                begin = time.process_time()
                kernel.compare(*packed[name])
                spent[name].append(1e9 * (time.process_time() - begin) / len(x.rows) / len(y.rows))
        ours = median(spent["monotone"])
        rows = [
            [name, f"{median(t):.1f} ({min(t):.1f}–{max(t):.1f})", f"{ours / median(t):.1f}"]
            for name, t in spent.items()
        ]
        header = ["kernel", "ns for each pair of frames", "monotone takes ×"]
        tables.append(Table(f"{what}; largest error of monotone {error:.1e}:", header, rows))
        results.append({"shape": [n, frames, d], "nanoseconds": spent, "error": error})
        wrong = wrong or not error <= ALLOWED
    write_report("monotone", "Monotone alignment beside SeqSim", args, facts, {"results": results}, tables, [])
    return int(wrong)


if __name__ == "__main__":
    sys.exit(main())
