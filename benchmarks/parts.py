"""Two processes of one thread (`--part 1/2`, `--part 2/2`) beside one process of two threads on the same corpus.

Taken in turns, so that other work on the machine meets both. Seconds are from the first unit to the last, of the slower
part. Exit status 1 where the stores differ in a byte, or the two are slower than 0.95 of the one.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from _common import Table, environment, pin, say, write_report

from voxstrata.base.folders import scratch_folder

MARK = 0.95
COMMAND = "from voxstrata.cli import main; main()"


def contents(store: Path) -> dict[str, bytes]:
    """Every file of a store."""
    return {str(p.relative_to(store)): p.read_bytes() for p in store.rglob("*") if p.is_file()}


def start(store: Path, args: argparse.Namespace, *options: str) -> subprocess.Popen[bytes]:
    command = [
        "extract",
        args.corpus,
        args.exported,
        "-o",
        str(store),
        "--json",
        "--unit-mb",
        str(args.unit_mb),
        *options,
    ]
    # warnings of the recordings are the same each time
    return subprocess.Popen(
        [sys.executable, "-c", COMMAND, *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )


def finished(process: subprocess.Popen[bytes]) -> dict[str, Any]:
    out, _ = process.communicate()
    if process.returncode not in (0, 4):
        sys.exit(f"a run ended with {process.returncode}: {out.decode()[-500:]}")
    return dict(json.loads(out))


def measured(folder: Path, args: argparse.Namespace, ways: list[list[str]]) -> tuple[float, dict[str, bytes]]:
    """Audio seconds per second of processes started at once on a prepared store, and the bytes they wrote."""
    store = folder / "s.zarr"
    shutil.rmtree(store, ignore_errors=True)
    finished(start(store, args, "--prepare"))
    reports = [finished(p) for p in [start(store, args, *options) for options in ways]]
    rate = sum(r["audio_seconds"] for r in reports) / max(r["seconds"] for r in reports)
    return rate, contents(store)


def main() -> int:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--exported", required=True, help="model that `voxstrata export` made")
    p.add_argument("--corpus", required=True, help="folder of audio or manifest to measure on")
    p.add_argument("--unit-mb", type=float, default=16, help="small enough that both have several")
    p.add_argument("--repeats", type=int, default=3)
    p.add_argument("--out", type=Path, default=Path("bench"), help="folder for the report (JSON and Markdown)")
    args = p.parse_args()
    pin(2)
    one, two = [["--threads", "2"]], [["--threads", "1", "--part", f"{i}/2"] for i in (1, 2)]
    rates: list[tuple[float, float]] = []
    same = True
    with scratch_folder("parts") as folder:
        for i in range(args.repeats):
            turn = (one, two)[:: 1 if i % 2 else -1]
            first, second = (measured(Path(folder), args, ways) for ways in turn)
            (alone, expected), (shared, found) = (first, second) if turn[0] is one else (second, first)
            same &= found == expected
            rates.append((alone, shared))
            say(f"{i + 1}/{args.repeats}: one {alone:.1f}, two {shared:.1f} audio-h/h, ratio {shared / alone:.3f}")
    ratio = statistics.median(shared / alone for alone, shared in rates)
    rows = [[f"{a:.1f}", f"{b:.1f}", f"{b / a:.3f}"] for a, b in rates]
    header = ["one process, audio-h/h", "two processes", "ratio"]
    table = Table("In turns:", header, rows)
    results = {"rates": rates, "ratio": ratio, "same_bytes": same}
    notes = [f"Median ratio {ratio:.3f}; the mark is {MARK}.", f"The stores {'are byte-equal' if same else 'DIFFER'}."]
    write_report("parts", "Two processes beside one", args, environment(2), results, [table], notes)
    return 0 if same and ratio >= MARK else 1


if __name__ == "__main__":
    sys.exit(main())
