"""What `bench` found, as one result: how fast this machine runs a model, and what a corpus would take."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Self

import pyarrow as pa

from voxstrata.base.figures import STYLES, Figure, new_figure, set_title
from voxstrata.base.finding import Finding
from voxstrata.base.plain import counted
from voxstrata.base.result import Result
from voxstrata.base.tables import TextTable, clock
from voxstrata.engine.estimating import Estimate
from voxstrata.engine.measuring import Record

BENCH_SCHEMA = pa.schema(
    [("context", pa.string())]
    + [(name, pa.float64()) for name in ("audio_hours_per_hour", "efficiency", "audio_seconds", "seconds")]
    + [(name, pa.int64()) for name in ("clips", "tokens", "flops", "stored_bytes")]
    + [("outputs", pa.list_(pa.string()))]
)
ESTIMATES_SCHEMA = pa.schema(
    [("context", pa.string()), ("recordings", pa.int64()), ("audio_seconds", pa.float64())]
    + [(name, pa.int64()) for name in ("units", "tokens", "bytes")]
    + [("seconds", pa.float64())]
)


@dataclass(frozen=True, eq=False, repr=False)
class Bench(Result):
    """How fast this machine runs a model.

    table: a row per context (BENCH_SCHEMA). audio_hours_per_hour: of audio, by wall time. efficiency: arithmetic over
    that of matrix products in the same time, as a fraction; null on GPUs. The others as in `Throughput`.
    estimates: a row per context, what a corpus would take (ESTIMATES_SCHEMA); empty where none was named.

    `settings` hold checkpoint (None where a redirected `bench --json` is read), model (hashes of weights and silence
    cache, dtype), machine, software, device, threads, load, sgemm_rate.
    """

    table: pa.Table
    estimates: pa.Table

    command = "bench"
    question = "How fast is this machine?"
    files: ClassVar = {"table": "bench.parquet", "estimates": "estimates.parquet"}
    key = "voxstrata_bench"
    markdown = "bench.md"
    captions: ClassVar = {"bench": "Hours of audio in an hour, by context"}

    @classmethod
    def of(cls, record: Record, estimates: Mapping[str, Estimate], checkpoint: str | None = None) -> Self:
        """From what was measured. estimates: what a corpus would take, by context; {} without one."""
        found = [{**asdict(t), "audio_hours_per_hour": t.audio_hours_per_hour} for t in record.contexts.values()]
        expected = [asdict(e) for e in estimates.values()]
        settings = {"checkpoint": checkpoint, **record.about, "load": record.load, "sgemm_rate": record.sgemm_rate}
        table = pa.Table.from_pylist(found, schema=BENCH_SCHEMA)
        note = {cls.key: json.dumps(settings, ensure_ascii=False)}
        return cls(table.replace_schema_metadata(note), pa.Table.from_pylist(expected, schema=ESTIMATES_SCHEMA))

    @classmethod
    def of_json(cls, printed: Mapping[str, Any]) -> Self:
        """From what `bench --json` printed; 0.1.0 wrote "mode" for "context"."""
        found = {}
        for name, held in (printed["corpus"] or {}).items():
            own = {key: value for key, value in held.items() if key != "mode"}
            found[name] = Estimate(**{**own, "context": name, "outputs": tuple(own["outputs"])})
        return cls.of(Record.from_dict(dict(printed)), found)

    @property
    def title(self) -> str:
        s = self.settings
        whose = f"{s['checkpoint']} on " if s["checkpoint"] else ""
        return f"{whose}{s['cpu']}, {s['device']}, {counted(s['threads'], 'thread')}"

    def finding(self) -> Finding:
        rates = sorted(self.table.to_pylist(), key=lambda row: -float(row["audio_hours_per_hour"]))
        said = [f"{row['context']}: {row['audio_hours_per_hour']:.1f} hours of audio in an hour" for row in rates]
        takes = {row["context"]: row["seconds"] for row in self.estimates.to_pylist()}
        fastest = rates[0]["context"]
        corpus = f" The corpus would take {clock(takes[fastest])} in {fastest}." if takes.get(fastest) else ""
        return Finding(f"{'; '.join(said)}.{corpus}")

    def tables(self) -> list[TextTable]:
        body = []
        for row in self.table.to_pylist():
            efficiency = None if row["efficiency"] is None else 100 * row["efficiency"]
            counts = [row[name] for name in ("clips", "audio_seconds", "seconds", "stored_bytes")]
            body.append([row["context"], row["audio_hours_per_hour"], efficiency, *counts])
        header = ["context", "audio-hours per hour", "efficiency (%)"]
        header += ["clips", "audio_seconds", "seconds", "stored_bytes"]
        note = (
            f"Made-up recordings, {counted(len(self.table['outputs'][0]), 'output')}. Audio-hours per hour are hours "
            "of audio done in an hour, also called RTFx. efficiency: arithmetic over that of matrix products in the "
            f"same time. Load average before: {self.settings['load']}."
        )
        found = [TextTable("How fast this machine is", header, body, note)]
        if len(self.estimates):
            rows = [list(row.values()) for row in self.estimates.to_pylist()]
            found.append(TextTable("What the corpus would take", ESTIMATES_SCHEMA.names, rows))
        return found

    def figures(self) -> dict[str, Figure]:
        rows = self.table.to_pylist()[::-1]
        figure = new_figure(7.0, 1.6 + 0.55 * len(rows))
        axes = figure.subplots()
        rates = [row["audio_hours_per_hour"] for row in rows]
        bars = axes.barh([row["context"] for row in rows], rates, color=STYLES[0][0], height=0.6)
        axes.bar_label(bars, [f"{rate:.1f}" for rate in rates], padding=4, fontsize=9)
        axes.axvline(1, color="black", linestyle="--", linewidth=1.2, label="as long as the audio lasts")
        axes.set_xlim(0, 1.12 * max(1.0, *rates))
        axes.set_xlabel("hours of audio done in an hour (RTFx): longer is faster")
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(fontsize=9, frameon=False, loc="lower right")
        about = f"{counted(len(rows[0]['outputs']), 'output')}; made-up recordings"
        set_title(figure, f"Speed by context: {self.title}", about)
        return {"bench": figure}
