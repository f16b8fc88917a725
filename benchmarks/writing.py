"""Writing and reading stores beside raw files: the same bytes, the same disk, one shard at a time.

Units of random float16 rows, as extraction leaves them: for every output a block of a unit's rows.

Writing, seconds from the first byte until the operating system has all of them (not fsynced, as in extraction), and
again until `fsync` of every file returned:
- voxstrata: `StoreWriter.commit`
- numpy.memmap: one file of the shard's rows per output and unit, `mode="w+"`, assigned
- zarr-python: `array[a:b] = block` on the same arrays, through its default pipeline or (`--zarrs`) through zarrs'
Reading one output of one language, the store already open:
- voxstrata: `EmbeddingStore.ragged` of the language's utterances
- numpy: `readinto` of the memmap files of that output and language, whole, into one array
- zarr-python: `array[a:b]` of the language's rows, through either pipeline
once from the page cache, and once after the files' pages were dropped (POSIX_FADV_DONTNEED after fsync), which a
virtual machine's disk may still serve from its host's memory; and the same utterances one by one in random order, from
the page cache (raw reads and rows without checksums take the utterance alone, else whole chunks are read).

Contestants take turns, `--repeats` times; the table gives medians and ranges of bytes per second. Exit status 1 when
what is read is not what was written. The project's marks: writing ≥ 0.8 of numpy.memmap, reading ≥ 0.7 of
raw reads.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from statistics import median

import numpy as np
import zarr
from _common import Table, environment, pin, say, write_report
from _synthetic import random_card, random_plan
from numpy.typing import NDArray

from voxstrata.base.folders import scratch_folder
from voxstrata.store import Plan, StoreSpec, StoreWriter, open_store

Read = Callable[[], NDArray[np.float16]]
One = Callable[[int], NDArray[np.float16]]  # an utterance's frames, by index

Write = Callable[[Path, Plan, int, NDArray[np.float16]], None]
Open = Callable[[Path, Plan, int, NDArray[np.int64]], tuple[Read, One]]

OUTPUTS = tuple(f"layer_{k:02d}" for k in range(8))
FRAMES = 300  # of each utterance
PIPELINES = {"zarr-python": "zarr.core.codec_pipeline.BatchedCodecPipeline", "zarrs": "zarrs.ZarrsCodecPipeline"}


def dropped(folder: Path) -> None:
    """Write the files of a folder to disk and drop their pages."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as f:
                os.fsync(f.fileno())
                os.posix_fadvise(f.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def synced(folder: Path) -> None:
    """fsync every file of a folder."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as f:
                os.fsync(f.fileno())


def write_voxstrata(path: Path, plan: Plan, d: int, blocks: NDArray[np.float16]) -> None:
    writer = StoreWriter(path, plan, random_card(d, OUTPUTS))
    for unit in range(plan.units):
        writer.commit(unit, {o: b[: plan.rows_used(unit)] for o, b in zip(OUTPUTS, blocks, strict=True)}, {})
    writer.finish()


def write_memmap(path: Path, plan: Plan, d: int, blocks: NDArray[np.float16]) -> None:
    path.mkdir()
    for unit in range(plan.units):
        rows = plan.rows_used(unit)
        for output, block in zip(OUTPUTS, blocks, strict=True):
            mapped = np.memmap(path / f"{output}-{unit:04d}", np.float16, "w+", shape=(rows, d))
            mapped[:] = block[:rows]
            del mapped


def write_zarr(path: Path, plan: Plan, d: int, blocks: NDArray[np.float16]) -> None:
    group = zarr.create_group(zarr.storage.LocalStore(path))
    arrays = [
        group.create_array(
            f"frames/{output}", shape=(plan.units * plan.unit_rows, d), chunks=(plan.chunk_rows, d),
            shards=(plan.unit_rows, d), dtype="float16", compressors=None, fill_value=0,
        )
        for output in OUTPUTS
    ]  # fmt: skip
    for unit in range(plan.units):
        begin, rows = unit * plan.unit_rows, plan.rows_used(unit)
        for array, block in zip(arrays, blocks, strict=True):
            array[begin : begin + rows] = block[:rows]


def open_voxstrata(path: Path, plan: Plan, d: int, members: NDArray[np.int64]) -> tuple[Read, One]:
    store = open_store(path)
    store.ragged(OUTPUTS[-1], members[:1])  # where utterances begin is read once
    return lambda: store.ragged(OUTPUTS[-1], members)[0], lambda i: store.frames(i, OUTPUTS[-1])


def open_raw(path: Path, plan: Plan, d: int, members: NDArray[np.int64]) -> tuple[Read, One]:
    units = np.unique(plan.start[members] // plan.unit_rows).tolist()

    def read() -> NDArray[np.float16]:
        out, at = np.empty((int(plan.length[members].sum()), d), np.float16), 0
        for unit in units:
            rows = plan.rows_used(unit)
            with (path / f"{OUTPUTS[-1]}-{unit:04d}").open("rb", buffering=0) as f:
                f.readinto(out[at : at + rows].reshape(-1).view(np.uint8).data)
            at += rows
        return out

    def one(i: int) -> NDArray[np.float16]:
        unit, row = divmod(int(plan.start[i]), plan.unit_rows)
        frames = np.empty((int(plan.length[i]), d), np.float16)
        with (path / f"{OUTPUTS[-1]}-{unit:04d}").open("rb", buffering=0) as f:
            f.seek(row * d * 2)
            f.readinto(frames.reshape(-1).view(np.uint8).data)
        return frames

    return read, one


def open_zarr(path: Path, plan: Plan, d: int, members: NDArray[np.int64]) -> tuple[Read, One]:
    array = zarr.open_group(zarr.storage.LocalStore(path, read_only=True), mode="r")[f"frames/{OUTPUTS[-1]}"]
    units = np.unique(plan.start[members] // plan.unit_rows).tolist()
    spans = [(u * plan.unit_rows, u * plan.unit_rows + plan.rows_used(u)) for u in units]
    read = lambda: np.concatenate([array[a:b] for a, b in spans])  # noqa: E731
    return read, lambda i: array[int(plan.start[i]) : int(plan.start[i] + plan.length[i])]


def main() -> int:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--threads", type=int, default=2)
    p.add_argument("--repeats", type=int, default=5)
    p.add_argument("--megabytes", type=int, default=2048, help="of rows, all outputs together")
    p.add_argument("--d", type=int, default=512, help="width of a state")
    p.add_argument("--zarrs", action="store_true", help="also zarr through zarrs (pip install zarrs)")
    p.add_argument("--out", type=Path, default=Path("bench"), help="folder for the report (JSON and Markdown)")
    args = p.parse_args()
    pin(args.threads)
    facts = environment(args.threads)
    count = args.megabytes * 2**20 // (FRAMES * args.d * 2 * len(OUTPUTS))
    plan = random_plan({k: np.full(count // 2, FRAMES) for k in ("en", "es")}, args.d, StoreSpec(tuple(OUTPUTS)))
    rng = np.random.default_rng(0)
    blocks = rng.standard_normal((len(OUTPUTS), plan.unit_rows, args.d), np.float32).astype(np.float16)
    english = np.flatnonzero(np.array(plan.utterances["language"].to_pylist()) == "en")
    size = int(plan.length.sum()) * args.d * 2 * len(OUTPUTS)
    share = int(plan.length[english].sum()) * args.d * 2
    units = np.unique(plan.start[english] // plan.unit_rows).tolist()
    expected = np.concatenate([blocks[-1, : plan.rows_used(u)] for u in units])

    systems: dict[str, tuple[str | None, Write, Open]] = {
        "voxstrata": (None, write_voxstrata, open_voxstrata),
        "numpy": (None, write_memmap, open_raw),
    }
    for name in ("zarr-python", "zarrs")[: 1 + args.zarrs]:
        systems[name] = (PIPELINES[name], write_zarr, open_zarr)
    rates: dict[str, dict[str, list[float]]] = {name: defaultdict(list) for name in systems}
    wrong = False
    with scratch_folder("writing") as folder:
        for repeat in range(args.repeats + 1):  # the first one warms up
            for name, (pipeline, write, opened) in systems.items():
                path = Path(folder) / name
                os.sync()  # what others left to be written
                with zarr.config.set({"codec_pipeline.path": pipeline} if pipeline else {}):
                    begin = time.perf_counter()
                    write(path, plan, args.d, blocks)
                    written = time.perf_counter()
                    synced(path)
                    durable = time.perf_counter()
                    times = {"write": size / (written - begin), "write and fsync": size / (durable - begin)}
                    read, one = opened(path, plan, args.d, english)
                    read()
                    begin = time.perf_counter()
                    got = read()
                    times["read, cached"] = share / (time.perf_counter() - begin)
                    order = np.random.default_rng(repeat).permutation(english).tolist()
                    begin = time.perf_counter()
                    for i in order:
                        one(i)
                    times["one by one"] = share / (time.perf_counter() - begin)
                    dropped(path)
                    begin = time.perf_counter()
                    again = read()
                    times["read, dropped"] = share / (time.perf_counter() - begin)
                wrong = wrong or not (np.array_equal(got, expected) and np.array_equal(again, expected))
                if repeat:
                    for what, rate in times.items():
                        rates[name][what].append(rate)
                say(
                    f"repeat {repeat} of {args.repeats}: {name} "
                    + ", ".join(f"{k} {v / 1e9:.2f}" for k, v in times.items())
                )
                shutil.rmtree(path)
    base = {what: median(values) for what, values in rates["numpy"].items()}
    rows = [
        [name]
        + [
            f"{median(v) / 1e9:.2f} ({min(v) / 1e9:.2f}–{max(v) / 1e9:.2f}), {median(v) / base[what]:.2f} ×"
            for what, v in own.items()
        ]
        for name, own in rates.items()
    ]
    write_report(
        "writing",
        "Writing and reading stores",
        args,
        facts,
        {"bytes": size, "bytes_read": share, "units": plan.units, "bytes_per_second": rates},
        [
            Table(
                f"{size / 1e6:.0f} MB in {plan.units} units of {len(OUTPUTS)} outputs, d = {args.d}; read: "
                f"{share / 1e6:.0f} MB. GB/s, and × raw numpy:",
                ["system", *base],
                rows,
            )
        ],
        ["numpy: `memmap` writes, `readinto` reads of the same rows, a file per output and unit."],
    )
    return int(wrong)


if __name__ == "__main__":
    sys.exit(main())
