"""What planning millions of utterances takes: seconds and peak memory of each stage, and whether the plan is right.

A manifest with ids, paths, languages, texts, speakers and durations is made, in random order: Parquet, or what --kind
says (in CSV and JSON lines the texts hold quotation marks and commas). Then one process after another: planned
(manifest → plan → prepared store, as `extract --lengths manifest` does before it encodes), and read (a store of that
size: open, `status`, `start` and `length`, one utterance by id, what `voxstrata info` prints). Processor seconds are
user and system of all threads of the process, which a busy machine disturbs less than wall seconds. No audio is there,
and none is read.

The marks, for ten million: planned in 60 s and 4 GB, opened in 2 s. Exit status 1 where one is missed (--check), or
where the plan of a sample differs from the definition, written down row by row here.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq
from _common import Table, environment, peak_mib, say, write_report

from voxstrata.base.folders import scratch_folder

MARKS = {"plan seconds": 60.0, "plan MB": 4000.0, "open seconds": 2.0}
LANGUAGES = ("cs", "de", "en", "es", "fr", "hi", "it", "ja", "ko", "nl", "pl", "pt", "ru", "sw", "ta", "tr", "uk", "vi")
SAMPLE = 20_000  # utterances whose plan is compared with the definition


def make_manifest(path: Path, count: int) -> str:
    """Utterances in random order, lengths log-normal as those of FLEURS are, rounded to a hundredth of a second.

    What it is written as, the suffix says. Returns the last id.
    """
    rng = np.random.default_rng(0)
    number = pa.array(rng.permutation(count)).cast(pa.string())
    speaker = pc.binary_join_element_wise("spk", pa.array(rng.integers(0, 100_000, count)).cast(pa.string()), "")
    language = pa.array(np.array(LANGUAGES)[rng.integers(0, len(LANGUAGES), count)])
    ids = pc.binary_join_element_wise(language, speaker, number, "-")
    seconds = np.clip(rng.lognormal(np.log(11), 0.45, count), 0.5, 60).round(2)
    columns = {
        "id": ids,
        "path": pc.binary_join_element_wise("clips", language, ids, "/"),
        "language": language,
        "text": pc.binary_join_element_wise("sentence number", number, "of those that were read", " "),
        "speaker": speaker,
        "duration": pa.array(seconds),
    }
    columns["path"] = pc.binary_join_element_wise(columns["path"], "wav", ".")
    table = pa.table(columns)
    if path.suffix == ".parquet":
        pq.write_table(table, path, row_group_size=1 << 20)
    elif path.suffix == ".tsv":
        with path.open("wb") as file:  # Arrow would quote the header
            file.write("\t".join(table.column_names).encode() + b"\n")
            pa.csv.write_csv(
                table, file, pa.csv.WriteOptions(include_header=False, delimiter="\t", quoting_style="none")
            )
    else:
        quoted = pc.binary_join_element_wise('"', columns["text"], '", he read', "")
        table = table.set_column(table.schema.get_field_index("text"), "text", quoted)
        if path.suffix == ".csv":
            pa.csv.write_csv(table, path)
        else:
            with path.open("w", encoding="utf-8") as file:
                for batch in table.to_batches(1 << 16):
                    file.writelines(json.dumps(row) + "\n" for row in batch.to_pylist())
    return str(ids[-1].as_py())


def card() -> Any:
    """That of an encoder as large as whisper-base, of which nothing is there but its size."""
    from voxstrata.encoders.card import ModelCard

    weights, silence = "0" * 64, {"sha256": "1" * 64, "groups": 0}
    outputs = ("layer_03", "layer_06", "final")
    return ModelCard(1, "made-up", None, weights, 6, 512, 8, 80, "float32", 17, outputs, "final", silence, {}, {})


class Stages:
    """Wall and processor seconds, and the peak of this process so far, by stage."""

    def __init__(self) -> None:
        self.found: dict[str, dict[str, float]] = {}

    def of(self, name: str, work: Callable[[], Any]) -> Any:
        wall, processor = time.perf_counter(), time.process_time()
        result = work()
        seconds = {"wall": time.perf_counter() - wall, "processor": time.process_time() - processor}
        self.found[name] = {**seconds, "peak MB": peak_mib() * 1.048576}
        return result


def plan(manifest: Path, store: Path) -> dict[str, Any]:
    """From the manifest to a store without frames."""
    from voxstrata.corpus import probe_corpus, read_corpus
    from voxstrata.engine.budget import EncoderSize, Work
    from voxstrata.store import StoreSpec, StoreWriter, make_plan

    stages, about = Stages(), card()
    spec = StoreSpec(about.outputs)
    stages.of("imports", lambda: None)
    read: list[Any] = [stages.of("read the manifest", lambda: read_corpus(manifest, lengths="manifest"))]
    read.append(stages.of("lengths", lambda: probe_corpus(read[0])))
    found = stages.of("plan", lambda: make_plan(read[0], read[1], spec, about.d_model))
    read.clear()
    stages.of("prepare the store", lambda: StoreWriter(store, found, about))
    stages.of("arithmetic", lambda: Work.of(found, EncoderSize(6, 512, 2048, 80, 0)))
    return {"stages": stages.found, "units": found.units, "rows": int(found.length.sum())}


def read(store: Path, name: str) -> dict[str, Any]:
    """What a reader does first."""
    import voxstrata as vs
    from voxstrata.cli.info import _store

    stages = Stages()
    stages.of("imports", lambda: None)
    opened = stages.of("open", lambda: vs.open_store(store))
    stages.of("status", lambda: opened.status)
    stages.of("start and length", lambda: (opened.start, opened.length))
    stages.of("one utterance by id", lambda: opened.index(name))
    stages.of("info", lambda: _store(opened))
    return {"stages": stages.found}


def wrong(manifest: Path) -> list[str]:
    """Where the plan of a sample is not the one that these lines define."""
    from voxstrata.corpus import probe_corpus, read_corpus
    from voxstrata.store import StoreSpec, make_plan

    corpus = read_corpus(manifest, lengths="manifest")
    rows = corpus.table.select(["id", "language", "duration"]).to_pylist()
    found = make_plan(corpus, probe_corpus(corpus), StoreSpec(card().outputs), card().d_model)
    samples = {row["id"]: round(row["duration"] * 16_000) for row in rows}
    order = sorted(rows, key=lambda row: (row["language"] or "", -math.ceil(samples[row["id"]] / 320), row["id"]))
    place, unit, used, previous, fill = {}, -1, 0, None, 1 << 15  # the largest power of two of rows below 128 MB
    for row in order:
        length = math.ceil(samples[row["id"]] / 320)
        if row["language"] != previous or used + length > fill:
            unit, used, previous = unit + 1, 0, row["language"]
        place[row["id"]] = (unit * found.unit_rows + used, length)
        used += length
    ids = found.utterances["id"].to_pylist()
    there = {name: (int(a), int(n)) for name, a, n in zip(ids, found.start, found.length, strict=True)}
    return [f"{name}: {there[name]}, not {place[name]}" for name in ids if there[name] != place[name]]


def child(stage: str, *arguments: object) -> dict[str, Any]:
    """A stage in a process of its own, so that it has its own peak."""
    command = [sys.executable, __file__, "--stage", stage, *map(str, arguments)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def main() -> int:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--counts", type=int, nargs="+", default=[1_000_000, 10_000_000], help="utterances")
    p.add_argument("--check", action="store_true", help="exit status 1 where a mark is missed")
    p.add_argument("--kind", choices=["parquet", "tsv", "csv", "jsonl"], default="parquet", help="of the manifest")
    p.add_argument("--out", type=Path, default=Path("bench"), help="folder for the report (JSON and Markdown)")
    p.add_argument("--stage", nargs="+", help=argparse.SUPPRESS)
    args = p.parse_args()
    if args.stage:
        stage, *names = args.stage
        first = Path(names[0])
        match stage:
            case "make":
                done = {"last": make_manifest(first, int(names[1]))}
            case "plan":
                done = plan(first, Path(names[1]))
            case _:
                done = read(first, names[1])
        print(json.dumps(done))
        return 0
    facts, results, tables, notes = environment(2), {}, [], []
    with scratch_folder("plan-scale") as folder:
        manifest, store = folder / f"m.{args.kind}", folder / "s.zarr"
        make_manifest(manifest, SAMPLE)
        different = wrong(manifest)
        notes.append(f"Places of {SAMPLE} utterances that are not those of the definition: {len(different)}.")
        for count in args.counts:
            say(f"{count} utterances")
            name = child("make", manifest, count)["last"]
            planned = child("plan", manifest, store / str(count))
            opened = child("read", store / str(count), name)
            results[str(count)] = {"plan": planned, "read": opened}
            for what, of in (("planned", planned), ("read", opened)):
                rows = [[k, *(f"{v:.2f}" for v in s.values())] for k, s in of["stages"].items()]
                total = [sum(s[k] for s in of["stages"].values()) for k in ("wall", "processor")]
                peak = max(s["peak MB"] for s in of["stages"].values())
                rows = [[*row[:3], f"{float(row[3]):.0f}"] for row in rows]
                rows.append(["all", *(f"{x:.2f}" for x in total), f"{peak:.0f}"])
                of |= {"wall": total[0], "processor": total[1], "peak": peak}
                tables.append(Table(f"{count:,} utterances, {what}:", ["", "wall s", "processor s", "peak MB"], rows))
            notes.append(f"{count:,} utterances: {planned['units']:,} units, {planned['rows']:,} rows.")
    largest = results[str(args.counts[-1])]
    found = dict(zip(MARKS, (largest["plan"]["wall"], largest["plan"]["peak"], largest["read"]["wall"]), strict=True))
    notes += [f"{name}: {found[name]:.1f}, the mark for ten million is {mark:g}." for name, mark in MARKS.items()]
    write_report("plan_scale", "Planning millions of utterances", args, facts, results, tables, notes)
    missed = args.check and any(found[name] > mark for name, mark in MARKS.items())
    return int(bool(different) or missed)


if __name__ == "__main__":
    sys.exit(main())
