"""What `voxstrata convert` costs: seconds, megabytes and peak memory, by format.

A store of normal, independent float16 frames. Each conversion is a process of its own, in turns. The peak is VmHWM, the
most physical memory that the process has held, and beside it how much that is above the peak when the store was open
and the format's package was loaded; Linux only.
Formats that are not installed are left out. Files are not fsynced. Exit status 1 when the states in npy, Parquet or hf
are not the store's.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import time
from collections import defaultdict
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from _common import Table, environment, peak_mib, pin, say, write_report
from _synthetic import OUTPUT, make_store
from numpy.typing import NDArray

from voxstrata.base.folders import scratch_folder
from voxstrata.handover.converting import convert
from voxstrata.handover.formats import FORMS
from voxstrata.store import open_store

FRAMES, D = 200, 512


def child(path: str, folder: str, to: str) -> None:
    """One conversion; prints its figures as JSON."""
    store = open_store(path)
    store.utterances, store.start, store.length, store.status  # noqa: B018  # read now
    if package := FORMS[to].package:
        __import__(package)
    before, begin = peak_mib(), time.perf_counter()
    report = convert(store, folder, to)
    seconds, peak = time.perf_counter() - begin, peak_mib()
    print(json.dumps({"seconds": seconds, "mb": report.size_bytes / 1e6, "peak": peak, "above": peak - before}))


def states(folder: Path, to: str) -> NDArray[Any] | None:
    """All rows of what was written; None of formats that only the tests read."""
    if to == "npy":
        rows: NDArray[Any] = np.load(folder / f"{OUTPUT}.npy")
        return rows
    files = {"parquet": folder.glob("frames.parquet"), "hf": folder.glob("data/*.parquet")}.get(to)
    if files is None:
        return None
    columns = [c for file in sorted(files) for c in pq.read_table(file, columns=[OUTPUT])[OUTPUT].chunks]
    flat = [c.flatten() if to == "parquet" else c.flatten().flatten() for c in columns]
    return np.concatenate([c.to_numpy() for c in flat]).reshape(-1, D)


def main() -> int:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--threads", type=int, default=1, help="cores and threads")
    p.add_argument("--utterances", type=int, nargs="+", default=[750, 3000], help=f"of {FRAMES} frames, d = {D}")
    p.add_argument("--formats", nargs="+", choices=list(FORMS), default=list(FORMS))
    p.add_argument("--repeats", type=int, default=3)
    p.add_argument("--out", type=Path, default=Path("bench"), help="folder for the report (JSON and Markdown)")
    args = p.parse_args()
    if not Path("/proc/self/status").exists():
        sys.exit("peak memory is read from /proc, which this system does not have")
    pin(args.threads)
    facts = environment(args.threads)
    forms = [to for to in args.formats if FORMS[to].package is None or find_spec(FORMS[to].package)]
    tables, right, results = [], True, {}
    for n in args.utterances:
        runs = defaultdict(list)
        with scratch_folder("convert") as folder:
            path = Path(folder, "s.zarr")
            make_store(path, {"en": np.full(n, FRAMES)}, D)
            stored = open_store(path)
            held = stored.ragged(OUTPUT, np.arange(n))[0]
            for turn in range(args.repeats):
                for to in forms:
                    say(f"{n} utterances, turn {turn + 1}: {to}")
                    out = Path(folder, to)
                    command = [sys.executable, __file__, "child", str(path), str(out), to]
                    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
                    runs[to].append(json.loads(done.stdout))
                    rows = states(out, to) if turn == 0 else None
                    right &= rows is None or np.array_equal(rows, held)
                    shutil.rmtree(out)
        results[n] = runs
        lines = []
        for to, found in runs.items():
            took = sorted(run["seconds"] for run in found)
            peaks = [f"{max(run[what] for run in found):.0f}" for what in ("peak", "above")]
            span = f"{median(took):.2f} ({took[0]:.2f}–{took[-1]:.2f})"
            lines.append([to, span, f"{found[0]['mb']:.1f}", *peaks])
        caption = f"{n:,} utterances, {held.nbytes / 1e6:.0f} MB of float16:"
        tables.append(Table(caption, ["format", "seconds", "MB", "peak MiB", "of it by converting"], lines))
    notes = ["What was read of npy, Parquet and hf is the store's." if right else "Other states were read."]
    write_report("convert", "Converting a store", args, facts, {"runs": results, "right": right}, tables, notes)
    return 0 if right else 1


if __name__ == "__main__":
    if sys.argv[1:2] == ["child"]:
        child(*sys.argv[2:])
    else:
        sys.exit(main())
