"""`extract` to S3, killed at random instants, with a server that fails: the objects must be those of an untouched run.

The server is moto's, in a process of its own. Each `--every`-th request fails: refused (503, 500, 429), cut off before
it is served, or its answer lost. In every second work the server is cut off for `--away` seconds besides. Two runs
share each work as parts; they are killed one at a time, and at the end one run without a part does what is left,
waiting for the leases of the dead (here 3 s instead of 30).

Exit status 1 if an object differs or a run fails that nobody killed.

    python benchmarks/kills_s3.py --kills 20
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from _common import say
from _work import DONE, Process, differing, model_and_sounds, warm

from voxstrata.base.folders import scratch_folder
from voxstrata.store import leases

TESTS = Path(__file__).parents[1] / "tests"
LEASE_SECONDS = 3.0
FAILURES = (503, 500, "cut", 429, "lost")


def serve(folder: Path, every: int) -> None:
    """The server, until it is killed. While `folder/away` is there, it answers nobody."""
    import itertools

    sys.path.insert(0, str(TESTS))
    import boto3
    from s3_server import S3Server

    server = S3Server()
    boto3.client("s3", endpoint_url=server.url).create_bucket(Bucket="bucket")
    number, ways = itertools.count(1), itertools.cycle(FAILURES)

    def how(_: Any) -> int | str | None:
        if (folder / "away").exists():
            return "cut"
        return next(ways) if (folder / "failing").exists() and next(number) % every == 0 else None

    server.fail = how
    (folder / "url.partial").write_text(server.url)
    (folder / "url.partial").rename(folder / "url")
    signal.pause()


def objects(store: str) -> dict[str, bytes]:
    """What the bucket holds of a store, by name."""
    import boto3

    client, found = boto3.client("s3"), dict[str, bytes]()
    for page in client.get_paginator("list_objects_v2").paginate(Bucket="bucket", Prefix=f"{store}/"):
        for entry in page.get("Contents", ()):
            body = client.get_object(Bucket="bucket", Key=entry["Key"])["Body"]
            found[entry["Key"].removeprefix(f"{store}/")] = body.read()
    return found


def ended(process: Process, patience: float = 300.0) -> int | None:
    """Wait for a run."""
    end = time.monotonic() + patience
    while process.poll() is None and time.monotonic() < end:
        time.sleep(0.005)
    return process.code


def main() -> int:
    """Run and print."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--kills", type=int, default=20)
    p.add_argument("--every", type=int, default=20, help="requests from one that fails to the next")
    p.add_argument("--away", type=float, default=4.0, help="seconds for which the server answers nobody")
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--serve", type=Path, help=argparse.SUPPRESS)
    args = p.parse_args()
    keys = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_DEFAULT_REGION": "us-east-1"}
    os.environ.update(keys)
    if args.serve:
        serve(args.serve, args.every)
    warm()
    leases.LEASE_SECONDS = LEASE_SECONDS
    rng, begin, faults = np.random.default_rng(args.seed), time.perf_counter(), list[str]()
    fell, works, identical, wrong, cuts = Counter[str](), 0, 0, 0, 0
    with scratch_folder("kills-s3") as scratch:
        folder = Path(scratch)
        command = [sys.executable, __file__, "--serve", str(folder), "--every", str(args.every)]
        server = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        try:
            model, sounds = model_and_sounds(folder)
            while not (folder / "url").exists():
                time.sleep(0.05)
            os.environ.update({"AWS_ENDPOINT_URL": (folder / "url").read_text()})

            def run(store: str, *part: str) -> Process:
                arguments = ["extract", str(sounds), str(model), "-o", f"s3://bucket/{store}", "--outputs", "final"]
                return Process([*arguments, "--threads", "1", "--tokens", "1500", *part], folder / "log.txt")

            whole = run("whole")
            start = time.perf_counter()
            if ended(whole) not in DONE:
                raise SystemExit(whole.said())
            seconds, expected = time.perf_counter() - start, objects("whole")
            say(f"{seconds:.1f} s, {len(expected)} objects")
            (folder / "failing").touch()
            while sum(fell.values()) < args.kills and len(faults) < 10:
                works += 1
                store = f"work-{works}"
                running = {k: run(store, "--part", f"{k}/2") for k in (1, 2)}
                if works % 2:
                    time.sleep(rng.uniform(0, seconds))
                    (folder / "away").touch()
                    cuts += 1
                    time.sleep(args.away)
                    (folder / "away").unlink()
                for _ in range(int(rng.integers(1, 4))):
                    time.sleep(rng.uniform(0, seconds))
                    part = int(rng.integers(1, 3))
                    running[part].send(signal.SIGKILL)
                    if ended(running[part]) == -signal.SIGKILL:
                        units = sum(name.startswith("units/") for name in objects(store))
                        fell["before the first unit" if not units else "first units" if units < 5 else "later"] += 1
                    running[part] = run(store, "--part", f"{part}/2")
                for part, process in running.items():
                    if ended(process) not in DONE:
                        faults.append(f"work {works}, part {part}: {process.code}: {process.said()[-600:]}")
                last = run(store)
                if ended(last) not in DONE:
                    faults.append(f"work {works}: {last.code}: {last.said()[-600:]}")
                count, names = differing(expected, objects(store))
                wrong, identical = wrong + count, identical + (not names)
                if names:
                    faults.append(f"work {works}: {count} bytes differ: {', '.join(names[:6])}")
        finally:
            server.kill()
            server.wait()
    for fault in faults:
        say(fault)
    head = ["kills", *fell, "works", "cut off in", "identical", "bytes lost or changed"]
    row = [sum(fell.values()), *fell.values(), works, cuts, identical, wrong]
    for cells in (head, ["---"] * len(head), row):
        print("| " + " | ".join(map(str, cells)) + " |")
    print(f"every {args.every}th request fails; {time.perf_counter() - begin:.0f} s, seed {args.seed}")
    return int(bool(faults))


if __name__ == "__main__":
    sys.exit(main())
