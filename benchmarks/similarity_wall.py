"""One million pairs from a store to Parquet: how much of the command's wall time is spent comparing.

1000 × 1000 utterances of two languages, T ≈ 200, d = 512, random frames, top 10 in both directions. The wall time is
that of the whole process `voxstrata similarity`, from its start to its end. Scores in the result are held against a
float64 computation of the same pairs. Exit status 1 when less than 90 % of the time is in the kernel, or a score is
off.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from _common import Table, environment, pin, say, write_report
from _synthetic import OUTPUT, make_store

from voxstrata.base.folders import scratch_folder
from voxstrata.retrieval.kernels import choose_kernel
from voxstrata.store import open_store

ALLOWED_SHARE = 0.90
ALLOWED_ERROR = {"float32": 1e-6, "int16": 3e-5, "triton": 2**-10}
CHECKED = 50  # scores


def worst_error(store: Path, folder: Path) -> float:
    """The largest difference of some scores of the result from float64."""
    frames = open_store(store)
    table = pq.read_table(folder / "top.parquet")
    worst = 0.0
    for i in np.random.default_rng(0).choice(len(table), CHECKED, replace=False).tolist():
        row = table.slice(i, 1).to_pylist()[0]
        x, y = (frames.frames(row[name], OUTPUT).astype(np.float64) for name in ("query", "candidate"))
        s = (x / np.linalg.norm(x, axis=1)[:, None]) @ (y / np.linalg.norm(y, axis=1)[:, None]).T
        precision, recall = s.max(axis=1).mean(), s.max(axis=0).mean()
        expected = {"precision": precision, "recall": recall, "f1": 2 * precision * recall / (precision + recall)}
        worst = max(worst, *(abs(row[name] - value) for name, value in expected.items()))
    return worst


def main() -> int:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--threads", type=int, default=2, help="cores and threads")
    p.add_argument("--kernel", default=choose_kernel().name, help="how pairs are computed")
    p.add_argument("--utterances", type=int, default=1000, help="per side")
    p.add_argument("--out", type=Path, default=Path("bench"), help="folder for the report (JSON and Markdown)")
    args = p.parse_args()
    pin(args.threads)
    facts = environment(args.threads)
    rng = np.random.default_rng(0)
    with scratch_folder("similarity-wall") as name:
        store, folder = Path(name) / "s.zarr", Path(name) / "r"
        say("making the store")
        lengths = {language: rng.integers(150, 250, args.utterances, endpoint=True) for language in ("en", "es")}
        make_store(store, lengths, 512)
        say("comparing")
        command = [Path(sys.executable).with_name("voxstrata"), "similarity", store, "--outputs", OUTPUT]
        command += ["--x", "en", "--y", "es", "-o", folder, "--kernel", args.kernel, "--json"]
        begin = time.perf_counter()
        done = subprocess.run([str(part) for part in command], check=True, stdout=subprocess.PIPE, text=True)
        wall = time.perf_counter() - begin
        report = json.loads(done.stdout)
        error = worst_error(store, folder)
    stages, share = report["stages"], report["stages"]["compare"] / wall
    rest = wall - report["seconds"]
    rows = [[k, f"{v:.2f}", f"{100 * v / wall:.1f}"] for k, v in stages.items()]
    rows += [["start of the process, imports, planning", f"{rest:.2f}", f"{100 * rest / wall:.1f}"]]
    write_report(
        "similarity_wall",
        "One million pairs, from store to Parquet",
        args,
        facts,
        {"wall_seconds": wall, "share": share, "error": error, "report": report},
        [
            Table(
                f"{report['pairs']:,} pairs in {wall:.1f} s ({report['pairs'] / wall:.0f} pairs/s), {args.kernel}. "
                "`compare` and `wait` alternate, `read`, `pack` and `place` run beside them:",
                ["stage", "seconds", "% of the wall time"],
                [*rows, ["whole command", f"{wall:.2f}", "100"]],
            )
        ],
        [
            f"In the kernel: {100 * share:.1f} % of the wall time, at least {100 * ALLOWED_SHARE:.0f} % wanted.",
            f"Largest error of {CHECKED} rows against float64: {error:.1e}, allowed {ALLOWED_ERROR[args.kernel]:.0e}.",
        ],
    )
    return int(share < ALLOWED_SHARE or error > ALLOWED_ERROR[args.kernel])


if __name__ == "__main__":
    sys.exit(main())
