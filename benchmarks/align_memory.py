"""Peak memory of `align` beside that of `similarity`, on the same store: frames need not fit in memory.

Two languages of so many utterances each, random frames in the layout extraction writes, random IPA. `similarity`
compares the languages tile by tile and keeps the best ten. `align` compares them twice, as stored and with means
removed, and holds matrices of utterances × utterances: scores, distances and what its pools are made of. Both take
tiles of so many frames a side.

Each run is a process of its own. The peak is VmHWM, the most physical memory the process has held; Linux only. Some of
it is there before the first frame is read: the column "MiB before" is the peak of a process that imports the same and
opens the store. Exit status 1 when align rises above that by more than similarity does, its matrices (MATRIX_BYTES for
each pair of utterances) and ALLOWED_MIB together.
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
from voxstrata.corpus import Corpus
from voxstrata.corpus.table import CORPUS_SCHEMA
from voxstrata.retrieval.all_pairs import similarity
from voxstrata.retrieval.kernels import choose_kernel
from voxstrata.retrieval.selection import select
from voxstrata.store import open_store
from voxstrata.studies.align.measure import AlignOptions, align
from voxstrata.studies.phonetics.measure import measure_phonetics

# By pair of utterances: distances, durations (float64), two score matrices and F1 (float32), their ranking (int64), and
# what `design_pools` makes on its way.
MATRIX_BYTES = 80
ALLOWED_MIB = 200
SEGMENTS = "pbtdkgmnszfvlrjwaeiou"


def child(what: str, folder: str, frames: str) -> None:
    """One run; prints its figures as JSON."""
    begin = time.perf_counter()
    store, kernel = open_store(f"{folder}/s.zarr"), choose_kernel()
    kernel.block_frames = int(frames)
    if what == "similarity":
        x, y = (select(store, language) for language in ("en", "es"))
        similarity(x, y, OUTPUT, f"{folder}/similar", kernel=kernel, tile_frames=int(frames))
    if what == "align":
        align(store, f"{folder}/phonetics", options=AlignOptions("seqsim_f1", bootstrap=0, kernel=kernel))
    print(json.dumps({"run": what, "seconds": time.perf_counter() - begin, "peak_mib": peak_mib()}))


def make_phonetics(folder: Path) -> None:
    """Distances of random syllables: short ones, as only their number matters here."""
    utterances = open_store(folder / "s.zarr").utterances
    rng = np.random.default_rng(1)
    given = {name: "".join(rng.choice(list(SEGMENTS), 6)) for name in utterances["id"].to_pylist()}
    measure_phonetics(Corpus(Path("/"), utterances.select(CORPUS_SCHEMA.names)), folder / "phonetics", given=given)


def main() -> int:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--threads", type=int, default=2, help="cores and threads")
    p.add_argument("--utterances", type=int, default=2000, help="of each language")
    p.add_argument("--length", type=int, default=30, help="frames of an utterance, about")
    p.add_argument("--d", type=int, default=768, help="values of a frame")
    p.add_argument("--frames", type=int, default=8192, help="of a tile, on either side")
    p.add_argument("--out", type=Path, default=Path("bench"), help="folder for the report (JSON and Markdown)")
    args = p.parse_args()
    if not Path("/proc/self/status").exists():
        sys.exit("peak memory is read from /proc, which this system does not have")
    pin(args.threads)
    facts = environment(args.threads)
    n, t = args.utterances, args.length
    with scratch_folder("align-memory") as folder:
        lengths = {
            name: np.random.default_rng(i).integers(2 * t // 3, 4 * t // 3, n) for i, name in enumerate(("en", "es"))
        }
        say(f"2 × {n} utterances, T ≈ {t}, d = {args.d}")
        make_store(Path(folder) / "s.zarr", lengths, args.d)
        disk = sum(int(of.sum()) for of in lengths.values()) * args.d * 2 / 2**20
        say("phonetics")
        make_phonetics(Path(folder))
        runs: dict[str, dict[str, Any]] = {}
        for what in ("nothing", "similarity", "align"):
            say(what)
            command = [sys.executable, __file__, "child", what, folder, str(args.frames)]
            runs[what] = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
    begin = runs["nothing"]["peak_mib"]
    matrices = n * n * MATRIX_BYTES / 2**20
    rises = {what: run["peak_mib"] - begin for what, run in runs.items()}
    allowed = rises["similarity"] + matrices + ALLOWED_MIB
    rows = [
        [what, f"{run['seconds']:.0f}", f"{begin:.0f}", f"{run['peak_mib']:.0f}", f"{rises[what]:.0f}"]
        for what, run in runs.items()
        if what != "nothing"
    ]
    write_report(
        "align_memory",
        "Peak memory of align beside similarity",
        args,
        facts,
        {"runs": runs, "disk_mib": disk, "matrices_mib": matrices},
        [
            Table(
                f"2 × {n:,} utterances, T ≈ {t}, d = {args.d}: {disk:.0f} MiB of float16 on disk, of which align also "
                f"takes float32 copies ({2 * disk:.0f} MiB), block by block; tiles of {args.frames:,} frames:",
                ["run", "seconds", "MiB before", "peak MiB", "rise"],
                rows,
            )
        ],
        [f"Rise of align: {rises['align']:.0f} MiB, allowed {allowed:.0f}, {matrices:.0f} of it for matrices."],
    )
    return int(rises["align"] > allowed)


if __name__ == "__main__":
    if sys.argv[1:2] == ["child"]:
        child(*sys.argv[2:])
    else:
        sys.exit(main())
