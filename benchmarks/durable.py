"""What it costs that a commit reaches the disk: the same extraction with and without fsync, on a CPU.

The two take turns, `--repeats` times after one that warms up. The table gives the wall seconds of each, the seconds
that writing took (which overlaps encoding), those of them that the system spent in fsync, and how many calls it made.
Shared machines move from minute to minute: the seconds in fsync, as a share of the run, are the steadier figure.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

from _common import Table, environment, pin, say, write_report

import voxstrata as vs


def main() -> int:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("corpus", type=Path)
    p.add_argument("model", type=Path)
    p.add_argument("--threads", type=int, default=2)
    p.add_argument("--repeats", type=int, default=5)
    p.add_argument("--recordings", type=int, default=200)
    p.add_argument("--unit-mb", type=float, default=8, help="small ones are committed often")
    p.add_argument("--where", type=Path, help="the disk: a folder on it")
    p.add_argument("--out", type=Path, default=Path("bench"), help="folder for the report (JSON and Markdown)")
    args = p.parse_args()
    pin(args.threads)
    facts = environment(args.threads)
    corpus = vs.read_corpus(args.corpus)
    corpus = corpus.take(list(range(min(args.recordings, len(corpus)))))
    spent, fsync = [0.0, 0], os.fsync

    def counted(fd: int) -> None:
        begin = time.perf_counter()
        fsync(fd)
        spent[0] += time.perf_counter() - begin
        spent[1] += 1

    os.fsync = counted
    runs: dict[bool, list[tuple[float, ...]]] = {True: [], False: []}
    runtime = vs.Runtime(threads=args.threads, unit_megabytes=args.unit_mb)
    for repeat in range(args.repeats + 1):
        for durable in (True, False) if repeat % 2 else (False, True):
            spent[:] = [0.0, 0]
            with tempfile.TemporaryDirectory(dir=args.where, prefix="voxstrata-durable-") as folder:
                begin = time.perf_counter()
                report = vs.extract(corpus, args.model, Path(folder) / "s.zarr", runtime=runtime, durable=durable)
                wall = time.perf_counter() - begin
            if repeat:
                runs[durable].append((wall, report.stages["write"], *spent))
            say(f"repeat {repeat}: durable={durable} {wall:.2f} s, fsync {spent[0]:.2f} s in {spent[1]} calls")
    middle = {durable: [median(values) for values in zip(*found, strict=True)] for durable, found in runs.items()}
    rows = [
        [name, *(f"{x:.2f}" for x in middle[durable][:3]), f"{middle[durable][3]:.0f}"]
        for name, durable in (("durable", True), ("no fsync", False))
    ]
    share = middle[True][2] / middle[True][0]
    note = f"{report.units} units; wall {middle[True][0] / middle[False][0]:.3f} ×; in fsync {share:.1%} of the run."
    table = Table(
        f"{len(corpus)} recordings, medians of {args.repeats}, seconds:",
        ["", "wall", "write", "in fsync", "calls"],
        rows,
    )
    write_report(
        "durable",
        "What durable commits cost",
        args,
        facts,
        {"runs": {str(k): v for k, v in runs.items()}},
        [table],
        [note],
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
