"""Changing the labels of a large store: seconds of `relabel` for a manifest that changes text and group of everyone.

The store is made up: a plan of 2 s recordings and no shards, since labels are all that is read. The manifest is a TSV
file of id, language, group, text and speaker. Exit status 1 when it takes over `--limit` seconds, or the store does not
hold the new labels afterwards.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import pyarrow as pa
from _common import Table, environment, say, write_report
from _synthetic import random_card

from voxstrata.audio.decode import AudioInfo
from voxstrata.base.folders import scratch_folder
from voxstrata.corpus import Corpus, Probed
from voxstrata.store import StoreSpec, StoreWriter, make_plan, open_store
from voxstrata.store.relabel import relabel

D = 512


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--utterances", type=int, default=100_000)
    parser.add_argument("--limit", type=float, default=5.0)
    parser.add_argument("--out", type=Path, default=Path("bench"))
    args = parser.parse_args()
    n = args.utterances
    with scratch_folder("relabel") as folder:
        store, manifest = Path(folder, "s.zarr"), Path(folder, "new.tsv")
        ids = [f"{'en' if i % 2 else 'es'}/{i:07d}" for i in range(n)]
        languages, speakers = [i[:2] for i in ids], [f"s{i % 500}" for i in range(n)]
        columns = {"id": ids, "path": [f"{i}.wav" for i in ids], "language": languages, "speaker": speakers}
        columns |= {
            "group": [f"g{i // 2}" for i in range(n)],
            "text": [f"sentence {i // 2} as it was" for i in range(n)],
        }
        corpus = Corpus(Path("/"), pa.table(columns))
        plan = make_plan(
            corpus, Probed.of([AudioInfo(32_000, 16_000, 32_000, 1, 64_044)] * n, {}), StoreSpec(("final",)), D
        )
        StoreWriter(store, plan, random_card(D, ("final",)))
        lines = [
            f"{i}\t{language}\tnew{k // 2}\tsentence {k // 2} as it ought to be\t{speaker}"
            for k, (i, language, speaker) in enumerate(zip(ids, languages, speakers, strict=True))
        ]
        manifest.write_text("\n".join(["id\tlanguage\tgroup\ttext\tspeaker", *lines]), encoding="utf-8")
        begin = time.perf_counter()
        report = relabel(store, manifest)
        seconds = time.perf_counter() - begin
        groups = open_store(store).utterances["group"].to_pylist()
    right = report.changed == {"language": 0, "group": n, "text": n, "speaker": 0}
    right &= all(g.startswith("new") for g in groups)
    say(f"{n} utterances relabelled in {seconds:.2f} s")
    table = Table("relabel", ["utterances", "labels changed", "seconds"], [[str(n), str(2 * n), f"{seconds:.2f}"]])
    results = {"seconds": seconds, "right": right}
    write_report("relabel", "Changing labels", args, environment(1), results, [table], ["one run, from TSV to store"])
    return 0 if right and seconds <= args.limit else 1


if __name__ == "__main__":
    sys.exit(main())
