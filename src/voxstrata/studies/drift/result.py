"""What cheaper contexts cost: cosines to the padded run, recall@1 and speed, as one result."""

from dataclasses import dataclass
from typing import Any, ClassVar

import pyarrow as pa

from voxstrata.base.figures import STYLES, Figure, new_figure, set_title
from voxstrata.base.result import Result
from voxstrata.base.tables import TextTable, as_stored, distinct

PADDED = "padded"  # the reference
RETRIEVED_BY = ("seqsim_f1", "pooled_cosine")
DRIFT_SCHEMA = pa.schema(
    [("mode", pa.string()), ("output", pa.string())]
    + [("cosine", pa.float64()), ("worst", pa.float64()), ("worst_id", pa.string())]
    + [(f"{similarity}_{what}", pa.float64()) for similarity in RETRIEVED_BY for what in ("recall", "change")]
)


@dataclass(frozen=True, eq=False, repr=False)
class Drift(Result):
    """What the cheaper contexts cost against `padded`.

    table: a row per mode and output, with the columns of DRIFT_SCHEMA.
        cosine: mean over all frames of the cosine to the same frame of the padded run. worst: the lowest mean over one
        utterance, worst_id: whose. `..._recall`: recall@1 by that similarity as a fraction, the mean over all
        directions; `..._change`: less that of padded. Null where the corpus has no translations.
        Rows of mode "padded" hold recall alone.

    `settings` hold checkpoint, weights_sha256, clips and audio_seconds (compared), failed and failures (recordings that
    cannot be read in any mode: how many, and the reasons by id), seconds (wall, by mode), speed (wall seconds of padded
    / of the mode), candidates, chance and pool of the retrieval (None without one), and no_retrieval, why there is
    none.
    """

    table: pa.Table

    command = "drift"
    files: ClassVar = {"table": "drift.parquet"}
    key = "voxstrata_drift"
    markdown = "drift.md"
    captions: ClassVar = {"drift": "Cosine to the padded run, and recall@1, by output"}

    @property
    def title(self) -> str:
        s = self.settings
        failed = f"; {s['failed']} more cannot be read" if s["failed"] else ""
        return f"Drift of {s['checkpoint']}: {s['clips']} recordings, {s['audio_seconds'] / 60:.1f} minutes{failed}"

    def _similarities(self) -> tuple[str, ...]:
        return RETRIEVED_BY if self.settings["candidates"] else ()

    def tables(self) -> list[TextTable]:
        names = self._similarities()
        header = ["mode", "output", "cosine", "worst", "worst utterance", *(f"recall@1 {name}" for name in names)]
        rows = []
        for r in self.table.to_pylist():
            if r["mode"] != PADDED:
                recall = [f"{100 * r[f'{n}_recall']:.1f} ({100 * r[f'{n}_change']:+.1f})" for n in names]
                rows.append([r["mode"], r["output"], f"{r['cosine']:.4f}", f"{r['worst']:.4f}", r["worst_id"], *recall])
        return [TextTable("What cheaper contexts cost", header, rows, self._note())]

    def _note(self) -> str:
        s = self.settings
        speeds = ", ".join(f"{mode} {speed:.2f} ×" for mode, speed in s["speed"].items())
        note = "cosine: mean over frames, to the padded run; worst: the lowest mean over one utterance.\n"
        if s["candidates"]:
            pool = "–".join(dict.fromkeys(map(str, s["candidates"])))
            note += (
                "recall@1 in %, mean over directions, in brackets the change from padded in points; "
                f"pool of {pool} ({s.get('pool', 'all')} recordings), chance {100 * s['chance']:.2f} %.\n"
            )
        else:
            note += f"No retrieval: {s['no_retrieval']}.\n"
        return f"{note}Speed against padded (one run): {speeds}."

    def stored(self) -> list[TextTable]:
        return [as_stored(self.table, "Cosines and recall@1 by mode and output, fractions, as stored")]

    def figures(self) -> dict[str, Figure]:
        names = self._similarities()
        outputs = distinct(self.table, "output")
        figure = new_figure(max(6.0, 0.5 * len(outputs)) * (1 + len(names)) * 0.8, 4.4)
        axes = figure.subplots(1, 1 + len(names), squeeze=False)[0]
        for (colour, marker), mode in zip(STYLES, distinct(self.table, "mode"), strict=False):
            rows = [r for r in self.table.to_pylist() if r["mode"] == mode]
            style: dict[str, Any] = {"color": colour, "marker": marker, "markersize": 4}
            if mode != PADDED:
                axes[0].plot(outputs, [r["cosine"] for r in rows], label=f"{mode}, mean", **style)
                axes[0].plot(outputs, [r["worst"] for r in rows], linestyle=":", label=f"{mode}, worst", **style)
            for panel, name in zip(axes[1:], names, strict=True):
                panel.plot(outputs, [100 * r[f"{name}_recall"] for r in rows], label=mode, **style)
        axes[0].set_ylabel("cosine to padded")
        for panel, name in zip(axes[1:], names, strict=True):
            panel.axhline(100 * self.settings["chance"], color="black", linestyle=":", label="chance")
            panel.set_ylabel(f"recall@1 by {name} (%)")
        for panel in axes:
            panel.tick_params(axis="x", labelrotation=90)
            panel.spines[["top", "right"]].set_visible(False)
            panel.legend(fontsize=8, frameon=False)
        set_title(figure, self.title)
        return {"drift": figure}
