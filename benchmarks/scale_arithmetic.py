"""What a corpus far beyond one machine needs, on paper: units, files, bytes, requests, their price, and memory.

Units and bytes are those of voxstrata's own plan of a sample of lengths (log-normal, as FLEURS' are), multiplied up.
Requests are counted as the code makes them on an object store: for each unit a shard of every output, a marker, a
claim with its renewals and its removal; for each recording one read; for each worker a look at the markers now and
then. Nothing is measured here: the rate of a GPU is an assumption (--rate), and prices are those of one list at one
date, which the output names.
"""

from __future__ import annotations

import argparse
import math
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from _common import Table, environment, write_report

from voxstrata.corpus import Corpus, probe_corpus
from voxstrata.encoders import Device
from voxstrata.engine.planning import default_unit_megabytes
from voxstrata.engine.tally import _LOOK_SECONDS, _LOOK_SHARE
from voxstrata.store import StoreSpec, make_plan
from voxstrata.store.leases import _BEATS_PER_LEASE, LEASE_SECONDS
from voxstrata.store.shard import ShardLayout

# Amazon S3 Standard, us-east-1. Check them: https://aws.amazon.com/s3/pricing
PRICES_AS_OF = "January 2025, from memory, unchecked"
PUT, GET, LIST = 0.005 / 1000, 0.0004 / 1000, 0.005 / 1000  # dollars a request
STORED = 0.021  # dollars a gigabyte (10^9 bytes) and month, beyond 500 TB; the first 50 TB cost 0.023
LISTED = 1000  # names that one request lists
LIST_SECONDS = 0.1  # that such a request takes
SAMPLE = 200_000
PLANNED_BYTES = 400  # of memory, an utterance, while a store is prepared (benchmarks/plan_scale.py)
CAPACITY = 10_000_000  # utterances of one store: what benchmarks/plan_scale.py plans


@dataclass(frozen=True)
class Setting:
    """What is stored of a model with d_model `d`."""

    name: str
    d: int
    spec: StoreSpec


def outputs(count: int) -> tuple[str, ...]:
    return tuple(f"layer_{k:02d}" for k in range(count))


SETTINGS = (
    Setting("base, all 8 outputs, every frame", 512, StoreSpec(outputs(8), arithmetic="float16")),
    Setting("large-v3, 3 outputs, every frame", 1280, StoreSpec(outputs(3), arithmetic="float16")),
    Setting("large-v3, 3 outputs, every 10 frames", 1280, StoreSpec(outputs(3), every=10, arithmetic="float16")),
    Setting("large-v3, all 34 outputs, one vector", 1280, StoreSpec(outputs(34), pool="mean", arithmetic="float16")),
)


def needs(setting: Setting, count: int, seconds: float, gpus: int, rate: float) -> dict[str, Any]:
    """By name, for `count` utterances of `seconds` on average, on GPUs that take `rate` audio-hours an hour."""
    drawn = np.random.default_rng(0).lognormal(0, 0.45, SAMPLE)
    table = pa.table(
        {
            "id": np.char.mod("%07d", np.arange(SAMPLE)).tolist(),
            "path": ["x"] * SAMPLE,
            "duration": np.minimum(drawn / drawn.mean() * seconds, 120),
        }
    )
    table = table.set_column(1, "path", table["id"])
    corpus, spec = Corpus(Path("/"), table, lengths="manifest"), setting.spec
    megabytes = default_unit_megabytes(spec, setting.d, Device.parse("cuda"))
    plan = make_plan(corpus, probe_corpus(corpus), spec, setting.d, unit_megabytes=megabytes)
    layout = ShardLayout(plan.chunk_rows, plan.unit_rows, setting.d * spec.stored_dtype.itemsize)
    times = count / SAMPLE
    units = math.ceil(plan.units * times)
    shard_bytes = sum(layout.size(rows) for rows in plan.used.tolist()) * times * len(spec.outputs)
    hours = count * seconds / 3600 / rate / gpus
    unit_seconds = hours * 3600 * gpus / units
    stores = math.ceil(count / CAPACITY)
    # a worker lists the markers of the store that it is at; it never spends more than a twentieth of its time so
    look = math.ceil(units / stores / LISTED)
    looks = hours * 3600 / max(_LOOK_SECONDS, _LOOK_SHARE * look * LIST_SECONDS)
    renewals = unit_seconds // (LEASE_SECONDS / _BEATS_PER_LEASE)
    puts = units * (len(spec.outputs) + 1 + 1 + renewals)
    gets, lists = count + units, looks * look * gpus
    return {
        "stores": stores,
        "units": units,
        "MB of a unit": shard_bytes / units / 1e6,
        "seconds of a unit": unit_seconds,
        "files": units * (len(spec.outputs) + 1),
        "TB": shard_bytes / 1e12,
        "hours": hours,
        "GB/s written, all workers": shard_bytes / 1e9 / (hours * 3600),
        "requests that write, a second": puts / (hours * 3600),
        "requests that read, a second": gets / (hours * 3600),
        "million PUT": puts / 1e6,
        "million GET": gets / 1e6,
        "million LIST": lists / 1e6,
        "$ of requests": puts * PUT + gets * GET + lists * LIST,
        "$ of storage, a month": shard_bytes / 1e9 * STORED,
        "GB of memory to plan a store": CAPACITY * PLANNED_BYTES / 1e9,
    }


def main() -> int:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--utterances", type=int, default=1_000_000_000)
    p.add_argument("--seconds", type=float, default=10, help="of an utterance, on average")
    p.add_argument("--gpus", type=int, default=1000)
    p.add_argument("--rate", type=float, default=500, help="audio-hours an hour of one GPU: an assumption")
    p.add_argument("--out", type=Path, default=Path("bench"), help="folder for the report (JSON and Markdown)")
    args = p.parse_args()
    found = {s.name: needs(s, args.utterances, args.seconds, args.gpus, args.rate) for s in SETTINGS}
    names = list(next(iter(found.values())))
    rows = [[name, *(f"{own[name]:,.{0 if own[name] >= 100 else 1}f}" for own in found.values())] for name in names]
    rows = [[cell.removesuffix(".0") for cell in row] for row in rows]
    notes = [
        f"{args.utterances:,} utterances of {args.seconds:g} s on average, {args.gpus:,} GPUs that take {args.rate:g} "
        "audio-hours an hour each: assumed, not measured.",
        f"Prices as of {PRICES_AS_OF} (Amazon S3 Standard, us-east-1), check them: {PUT * 1000:g} dollars for 1,000 "
        f"PUT or LIST, {GET * 1000:g} for 1,000 GET, {STORED:g} for a GB and month. Traffic inside a region is free.",
        f"A store of {CAPACITY:,} utterances each; `open_store` takes them together.",
    ]
    caption = "What it needs:"
    write_report(
        "scale_arithmetic", "Far beyond one machine, on paper", args, environment(1), found,
        [Table(caption, ["", *found], rows)], notes,
    )  # fmt: skip
    return 0


if __name__ == "__main__":
    sys.exit(main())
