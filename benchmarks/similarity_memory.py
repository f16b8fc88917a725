"""Peak memory of `voxstrata similarity`: a set with itself, top 10, from a store that need not fit in memory.

Two questions. Is it flat: short, narrow utterances in growing numbers, whole runs with small tiles, so that every size
has many of them. Is it small: real shapes, of which 20,000 utterances of T = 200, d = 512 are 4 GB on disk and a day
of work, stopped after some seconds. By then all buffers have their size, but for the final table's, which the largest
whole run includes.

Frames are random. Each run is a process of its own. The peak is VmHWM, the most physical memory the process has held;
Linux only. Exit status 1 when a peak is over 2 GiB, or when in the largest whole run it rises by more than 10 % between
a tenth of the pairs and the last.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from _common import Table, environment, peak_mib, pin, say, write_report
from _synthetic import OUTPUT, make_store

from voxstrata.base.folders import scratch_folder
from voxstrata.base.progress import Progress, Reporter
from voxstrata.retrieval.all_pairs import similarity
from voxstrata.retrieval.kernels import choose_kernel
from voxstrata.retrieval.selection import select
from voxstrata.store import open_store

SMALL_TILES = 8192  # frames per side, for the stand-ins
ALLOWED_MIB, ALLOWED_RISE = 2048, 1.10


class Enough(Exception):
    """Stops a run."""


def child(store: str, folder: str, kernel: str, tile_frames: str, seconds: str) -> None:
    """One comparison, stopped after some seconds; prints its figures as JSON."""
    begin = time.perf_counter()
    pairs = 0
    tenth = compared = 0.0  # peaks

    class Peaks(Reporter):
        def progress(self, progress: Progress) -> None:
            nonlocal pairs, tenth, compared
            pairs, compared = progress.done, peak_mib()
            if not tenth and progress.share >= 1 / 10:
                tenth = compared
            if time.perf_counter() - begin > float(seconds):
                raise Enough

    whole = True
    try:
        similarity(
            select(open_store(store)),
            None,
            OUTPUT,
            folder,
            kernel=choose_kernel(kernel),
            tile_frames=int(tile_frames) or None,
            reporter=Peaks(),
        )
    except Enough:
        whole = False
    peaks = {"tenth_mib": tenth, "compared_mib": compared, "peak_mib": peak_mib()}
    print(json.dumps({"pairs": pairs, "whole": whole, "seconds": time.perf_counter() - begin, **peaks}))


def main() -> int:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--threads", type=int, default=2, help="cores and threads")
    p.add_argument("--kernel", default=choose_kernel().name, help="how pairs are computed")
    p.add_argument("--utterances", type=int, nargs="+", default=[1000, 4000, 20_000], help="of the stand-ins")
    p.add_argument("--seconds", type=float, default=120, help="after which the real shape is stopped")
    p.add_argument("--out", type=Path, default=Path("bench"), help="folder for the report (JSON and Markdown)")
    args = p.parse_args()
    if not Path("/proc/self/status").exists():
        sys.exit("peak memory is read from /proc, which this system does not have")
    pin(args.threads)
    facts = environment(args.threads)
    shapes = [(n, 30, 64, SMALL_TILES, 1e9) for n in sorted(args.utterances)]
    shapes += [(20_000, 200, 512, 0, args.seconds), (2000, 200, 1280, 0, args.seconds)]
    runs: list[dict[str, Any]] = []
    for n, t, d, tile_frames, seconds in shapes:
        with scratch_folder("similarity-memory") as folder:
            say(f"{n} utterances, T ≈ {t}, d = {d}")
            lengths = np.random.default_rng(0).integers(t // 2, t + t // 2, n, endpoint=True)
            make_store(Path(folder) / "s.zarr", {"en": lengths}, d)
            command = [sys.executable, __file__, "child", f"{folder}/s.zarr", f"{folder}/r", args.kernel]
            done = subprocess.run(
                [*command, str(tile_frames), str(seconds)], check=True, stdout=subprocess.PIPE, text=True
            )
            disk = int(lengths.sum()) * d * 2 / 2**20
            runs.append({"utterances": n, "T": t, "d": d, "disk_mib": disk, **json.loads(done.stdout)})
    largest = runs[len(args.utterances) - 1]
    rise = largest["compared_mib"] / largest["tenth_mib"]
    rows = [
        [
            f"{r['utterances']:,}",
            str(r["T"]),
            str(r["d"]),
            f"{r['disk_mib']:.0f}",
            f"{r['pairs']:,}" + ("" if r["whole"] else " (stopped)"),
            f"{r['seconds']:.0f}",
            f"{r['tenth_mib']:.0f}" if r["whole"] else "–",
            f"{r['compared_mib']:.0f}",
            f"{r['peak_mib']:.0f}",
        ]
        for r in runs
    ]
    write_report(
        "similarity_memory",
        "Peak memory of similarity at corpus scale",
        args,
        facts,
        {"runs": runs, "rise": rise},
        [
            Table(
                f"A set with itself, top 10, {args.kernel}:",
                [
                    *("utterances", "T ≈", "d", "frames on disk, MiB", "pairs compared", "seconds"),
                    *("peak MiB after a tenth", "when all are compared", "in the end"),
                ],
                rows,
            )
        ],
        [
            f"Rise of the peak from a tenth of the pairs to the last, {largest['utterances']:,} utterances: "
            f"{rise:.3f}, allowed {ALLOWED_RISE:.2f}.",
            f"Largest peak: {max(r['peak_mib'] for r in runs):.0f} MiB, allowed {ALLOWED_MIB}.",
        ],
    )
    return int(rise > ALLOWED_RISE or max(r["peak_mib"] for r in runs) > ALLOWED_MIB)


if __name__ == "__main__":
    if sys.argv[1:2] == ["child"]:
        child(*sys.argv[2:])
    else:
        sys.exit(main())
