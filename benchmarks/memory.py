"""Peak memory of extraction for a small and a large part of one corpus: it must not grow with the corpus.

Both parts have the same mix of lengths (recordings evenly spaced by length, the longest among them), since the longest
window of a corpus decides the peak: attention needs memory in the square of its positions. Units are small (16 MB), so
that both parts fill several: writing a full unit takes more memory than writing a part of one. The large part is
extracted with units of the default size as well.

Each extraction (`bucketed`, all outputs, float16) runs in a process of its own, at equal settings. The peak is VmHWM,
the most physical memory the process has held, mapped files included; Linux only.
Exit status 1 when, with small units, the large run's peak is more than 10 % above the small one's.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
from _common import Table, environment, exported, parser, pin, say, write_report

from voxstrata.base.folders import scratch_folder
from voxstrata.corpus import Corpus, probe_corpus, read_corpus
from voxstrata.engine import Runtime, extract
from voxstrata.store.plan import UNIT_MEGABYTES

SMALL_UNIT_MEGABYTES = 16
ALLOWED = 1.10  # ratio of the peaks


def spaced_by_length(corpus: Corpus, clips: int) -> Corpus:
    """`clips` recordings evenly spaced from the longest to the shortest."""
    infos = probe_corpus(corpus).infos()
    by_length = np.argsort([-(i.samples if i else 0) for i in infos], kind="stable")
    chosen = by_length[np.linspace(0, len(corpus) - 1, clips).astype(int)]
    return corpus.take(np.sort(chosen))


def child(model: str, corpus: str, clips: str, threads: str, unit_megabytes: str, store: str) -> None:
    """One extraction; prints its figures as JSON."""
    done = extract(
        spaced_by_length(read_corpus(corpus), int(clips)),
        model,
        store,
        runtime=Runtime(threads=int(threads), unit_megabytes=int(unit_megabytes)),
    )
    status = Path("/proc/self/status").read_text(encoding="ascii")
    # not getrusage: its maximum is inherited from the process that started this one
    peak = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM"))
    figures = {"clips": done.utterances - done.failed, "audio_seconds": done.audio_seconds, "units": done.units}
    print(json.dumps(figures | {"seconds": done.seconds, "peak_mib": peak / 1024}))


def main() -> int:
    p = parser(__doc__)
    p.add_argument("--clips", type=int, nargs=2, default=(50, 600), metavar=("SMALL", "LARGE"))
    args = p.parse_args()
    if not Path("/proc/self/status").exists():
        sys.exit("peak memory is read from /proc, which this system does not have")
    pin(args.threads)
    facts = environment(args.threads)
    runs = []
    with scratch_folder("memory") as folder:
        _, model = exported(args, Path(folder) / "model")
        small, large = args.clips
        for clips, unit in ((small, SMALL_UNIT_MEGABYTES), (large, SMALL_UNIT_MEGABYTES), (large, UNIT_MEGABYTES)):
            say(f"extracting {clips} clips in units of {unit} MB")
            settings = [str(model.path), args.corpus, str(clips), str(args.threads), str(unit)]
            command = [sys.executable, __file__, "child", *settings, f"{folder}/{clips}-{unit}.zarr"]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            runs.append({"unit_mb": unit, **json.loads(done.stdout)})
            if runs[-1]["clips"] != clips:
                sys.exit(f"only {runs[-1]['clips']} of {clips} clips could be read; measure on a corpus that is sound")
    ratio = runs[1]["peak_mib"] / runs[0]["peak_mib"]
    rows = [
        [str(r["clips"]), f"{r['audio_seconds'] / 60:.1f}", str(r["unit_mb"]), str(r["units"]), f"{r['peak_mib']:.0f}"]
        for r in runs
    ]
    write_report(
        "memory",
        f"Peak memory of extraction, {model.card.checkpoint}",
        args,
        facts,
        {"runs": runs, "ratio": ratio},
        [
            Table(
                "`bucketed`, all outputs, float16:",
                ["clips", "audio minutes", "MB of a unit", "units", "peak RSS MiB"],
                rows,
            )
        ],
        [f"Ratio of the first two peaks: {ratio:.3f}, allowed {ALLOWED:.2f}."],
    )
    return int(ratio > ALLOWED)


if __name__ == "__main__":
    if sys.argv[1:2] == ["child"]:
        child(*sys.argv[2:])
    else:
        sys.exit(main())
