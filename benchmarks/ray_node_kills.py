"""Kill one of two Ray nodes in the middle of an extraction, again and again, and hold each store against one process'.

Both nodes are on this machine (`ray.cluster_utils`), a core and a worker each. The raylet of one gets a SIGKILL, and
its workers die with it, a random instant after a number of units, drawn anew each time, are committed. Every other time
a new node joins then, on which Ray may start the lost worker; else what is left is done by the other one.
Exit status 1 when a store is not the one that `extract` makes in one process, byte for byte.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import numpy as np
from _common import environment, say, write_report
from _nodes import Nodes, nodes, watching

from voxstrata.base.folders import scratch_folder
from voxstrata.base.progress import Reporter
from voxstrata.cluster.actors import Workers
from voxstrata.cluster.extracting import extract_on_ray
from voxstrata.corpus import read_corpus
from voxstrata.engine import Runtime, extract
from voxstrata.store import StoreSpec


class Losses(Reporter):
    """Counts the workers that Ray lost, and has a node join for each where asked to."""

    def __init__(self, joining: Nodes | None) -> None:
        self.lost, self._joining = 0, joining

    def warn(self, text: str) -> None:
        self.lost += "lost" in text
        if self._joining is not None:
            self._joining.join()


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def main() -> int:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--exported", required=True, type=Path, help="model that `voxstrata export` made")
    p.add_argument("--corpus", required=True, metavar="CORPUS", help="folder of audio or manifest")
    p.add_argument("--kills", type=int, default=10)
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--out", type=Path, default=Path("bench"), help="folder for the report (JSON and Markdown)")
    args = p.parse_args()
    corpus = read_corpus(args.corpus)
    facts, rng = environment(1), np.random.default_rng(args.seed)
    runtime, rows = Runtime(threads=1, unit_megabytes=1), []
    with scratch_folder("ray-node-kills") as name, nodes() as cluster:
        whole = Path(name) / "whole.zarr"
        spec = StoreSpec(outputs="final")
        units = extract(args.corpus, args.exported, whole, spec, runtime).units
        expected = contents(whole)
        for turn in range(args.kills):
            cluster.join()
            store, at = Path(name) / f"{turn}.zarr", int(rng.integers(1, max(2, units - 2)))
            wait, again = float(rng.uniform(0, 0.5)), turn % 2 == 1

            def ready(store: Path = store, at: int = at) -> bool:
                return len(list(store.glob("units/*.json"))) >= at

            def kill(wait: float = wait, cluster: Nodes = cluster) -> None:
                time.sleep(wait)
                cluster.kill()

            reporter = Losses(cluster if again else None)
            begin = time.perf_counter()
            with watching(ready, kill):
                how = {"workers": Workers(number=2), "source": args.corpus}
                extract_on_ray(corpus, args.exported, store, spec, runtime, reporter, **how)
            row = {
                "units_before_the_kill": at,
                "new_node": again,
                "workers_lost": reporter.lost,
                "seconds": time.perf_counter() - begin,
                "identical": contents(store) == expected,
            }
            rows.append(row)
            say(f"kill {turn + 1} of {args.kills}: {row}")
    same, lost = sum(bool(row["identical"]) for row in rows), sum(bool(row["workers_lost"]) for row in rows)
    notes = [
        f"{len(rows)} nodes were killed in the middle of {units} units; {lost} of them had units in flight.",
        f"Stores that are one process', byte for byte: {same} of {len(rows)}.",
    ]
    write_report("ray_node_kills", "Ray nodes killed", args, facts, {"units": units, "kills": rows}, [], notes)
    return int(same < len(rows))


if __name__ == "__main__":
    sys.exit(main())
