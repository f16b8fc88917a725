"""The quick set: extraction and memory on a small spoken corpus and a random-weight encoder of whisper-tiny's shape,
writing and reading, and the mixes of lengths on that shape.

For a look at this machine in a few minutes, and a check that the benchmarks run; the figures that the docs quote are
made on real weights and speech by the commands in README.md beside this file.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

from voxstrata.base.folders import scratch_folder
from voxstrata.demo.corpus import write_demo_corpus
from voxstrata.demo.encoder import write_random_checkpoint

HERE = Path(__file__).parent
RUNS = {  # scripts that take a checkpoint and a corpus
    "extraction.py": ["--clips", "40", "--repeats", "1", "--baseline-clips", "16"],
    "memory.py": ["--clips", "40", "120"],
}
ALONE = {  # scripts that make what they measure
    "writing.py": ["--megabytes", "512", "--repeats", "3"],
    "mixes.py": ["--shapes", "tiny", "--outputs-of", "tiny", "--seconds", "5"],
}


def main() -> int:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--threads", type=int, default=2)
    p.add_argument("--out", type=Path, default=Path("bench"), help="folder for the reports (JSON and Markdown)")
    args = p.parse_args()
    worst = 0
    with scratch_folder("quick") as folder:
        checkpoint = Path(folder) / "checkpoint"
        write_random_checkpoint(checkpoint)
        corpus = write_demo_corpus(Path(folder) / "corpus", sentences=15, languages=("en", "es", "de", "ru"))
        other = write_demo_corpus(Path(folder) / "other", sentences=10, languages=("tr",))
        given = ["--model", checkpoint, "--corpus", corpus, "--calibrate", other]
        for script, options in [*((s, [*given, *o]) for s, o in RUNS.items()), *ALONE.items()]:
            command = [sys.executable, HERE / script, "--threads", args.threads, "--out", args.out, *options]
            worst = max(worst, abs(subprocess.run([str(c) for c in command], check=False).returncode))  # −9: killed
    return worst


if __name__ == "__main__":
    sys.exit(main())
