"""What cheaper contexts cost: cosines to the padded run, recall@1 and speed, as one result."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa

from voxstrata.base.figures import STYLES, Figure, new_figure, percent_axis, set_title
from voxstrata.base.finding import Finding, SmallCurve, in_hundred, percent_text
from voxstrata.base.plain import counted
from voxstrata.base.result import Result
from voxstrata.base.tables import TextTable, as_stored, distinct

PADDED = "padded"  # the reference
RETRIEVED_BY = ("seqsim_f1", "pooled_cosine")
BELOW = {"below_09": 0.9, "below_05": 0.5}  # of a mean nothing of these frames is seen
QUANTILE = 0.001
# 1 - cosine at which the share of frames is counted that lose more: from what float16 rounds to the opposite direction
LOST = tuple(float(f"{lost:.4g}") for lost in np.geomspace(1e-6, 2, 64))
DRIFT_SCHEMA = pa.schema(
    [("context", pa.string()), ("output", pa.string())]
    + [("cosine", pa.float64()), ("worst", pa.float64()), ("worst_id", pa.string()), ("frames", pa.int64())]
    + [("frame_q001", pa.float64()), ("frame_worst", pa.float64()), ("frame_worst_id", pa.string())]
    + [("frame_worst_at", pa.int64()), *((name, pa.float64()) for name in BELOW)]
    + [("share_beyond", pa.list_(pa.float64()))]
    + [(f"{similarity}_{what}", pa.float64()) for similarity in RETRIEVED_BY for what in ("recall", "change")]
)


@dataclass(frozen=True, eq=False, repr=False)
class Drift(Result):
    """What the cheaper contexts cost against `padded`.

    table: a row per context and output, with the columns of DRIFT_SCHEMA.
        cosine: mean over all `frames` of the cosine to the same frame of the padded run. worst: the lowest mean over
        one utterance, worst_id: whose. frame_q001: the cosine that 0.1 % of the frames do not exceed. frame_worst: the
        lowest of all, frame_worst_id and frame_worst_at: whose, and which frame of it, from 0. below_09, below_05: the
        fraction of frames below 0.9 and 0.5. share_beyond: the fraction of frames whose 1 - cosine is above each of
        LOST. `..._recall`: recall@1 by that similarity as a fraction, the mean over all directions; `..._change`: less
        that of padded. Null where the corpus has no translations.
        Rows of context "padded" hold recall alone.

    `settings` hold checkpoint, weights_sha256, corpus (its name), clips and audio_seconds (compared), failed and
    failures (recordings that cannot be read in any context: how many, and the reasons by id), seconds (wall, by
    context), speed (wall seconds of padded / of the context), candidates, chance and pool of the retrieval (None
    without one), and no_retrieval, why there is none.
    """

    table: pa.Table

    command = "drift"
    question = "What does a cheaper context cost?"
    files: ClassVar = {"table": "drift.parquet"}
    earlier: ClassVar = {"table": {"mode": "context"}}
    key = "voxstrata_drift"
    markdown = "drift.md"
    captions: ClassVar = {
        "drift": "How near the states are to the padded run's, and recall@1 beside chance, by layer",
        "drift_frames": "How many frames lose how much against the padded run, by layer",
    }
    brief = 2

    @property
    def title(self) -> str:
        s = self.settings
        failed = f"; {s['failed']} more cannot be read" if s["failed"] else ""
        corpus = f" of {s['corpus']}" if s.get("corpus") else ""
        minutes = f"{s['audio_seconds'] / 60:.1f} minutes"
        return f"Drift of {s['checkpoint']}: {counted(s['clips'], 'recording')}{corpus}, {minutes}{failed}"

    def finding(self) -> Finding:
        """Of every context, at the deepest output."""
        s, rows = self.settings, list(self._compared())
        said = []
        for context in dict.fromkeys(r["context"] for r in rows):
            r = next(r for r in reversed(rows) if r["context"] == context)
            lost = f"{percent_text(r['below_05'])} of the frames are below 0.5"
            recall = ""
            if s["candidates"]:
                name = RETRIEVED_BY[0]
                change, share = r[f"{name}_change"], percent_text(r[f"{name}_recall"])
                recall = f", recall@1 changes by {100 * change:+.1f} points to {share}"
            said.append(
                f"{context}, {s['speed'][context]:.1f} times as fast: at {r['output']} the cosine to padded is "
                f"{r['cosine']:.3f}, {lost}{recall}."
            )
        chance = f" Chance is {percent_text(s['chance'])}." if s["candidates"] else ""
        first = [r for r in rows if r["context"] == rows[0]["context"]]
        up = f"frames below 0.9, {rows[0]['context']} (%)"
        curve = SmallCurve(up, [r["output"] for r in first], in_hundred([r["below_09"] for r in first]))
        return Finding(" ".join(said) + chance, curve)

    def _similarities(self) -> tuple[str, ...]:
        return RETRIEVED_BY if self.settings["candidates"] else ()

    def _compared(self) -> Iterator[dict[str, Any]]:
        return (row for row in self.table.to_pylist() if row["context"] != PADDED)

    def tables(self) -> list[TextTable]:
        names = self._similarities()
        frames, utterances = [], []
        for r in self._compared():
            lost = (r["cosine"], r["frame_q001"], r["frame_worst"])
            far = (f"{100 * r[name]:.3f} %" for name in BELOW)
            frames.append([r["context"], r["output"], *(f"{x:.4f}" for x in lost), *far])
            recall = [f"{100 * r[f'{n}_recall']:.1f} ({100 * r[f'{n}_change']:+.1f})" for n in names]
            utterances.append([r["context"], r["output"], f"{r['worst']:.4f}", r["worst_id"], *recall])
        far_names = [f"below {below}" for below in BELOW.values()]
        frame_header = ["context", "output", "mean", f"{100 * QUANTILE} %", "worst", *far_names]
        header = ["context", "output", "worst", "utterance", *names]
        caption = "The worst utterance, and recall@1 in %" if names else "The worst utterance"
        return [
            TextTable("Cosine of frames to the padded run", frame_header, frames, self._frame_note()),
            TextTable(caption, header, utterances, self._note()),
        ]

    def _frame_note(self) -> str:
        low = min(self._compared(), key=lambda r: r["frame_worst"])
        return (
            f"Over {counted(low['frames'], 'frame')}: the mean; the cosine that {100 * QUANTILE} % do not exceed; the "
            f"lowest; the share below. The lowest of all, {low['frame_worst']:.4f}, is of {low['frame_worst_id']}, "
            f"{low['context']}, {low['output']}, frame {low['frame_worst_at']}."
        )

    def _note(self) -> str:
        s = self.settings
        speeds = ", ".join(f"{context} {speed:.2f} ×" for context, speed in s["speed"].items())
        note = "worst: the lowest mean over the frames of one utterance.\n"
        if s["candidates"]:
            pool = "–".join(dict.fromkeys(map(str, s["candidates"])))
            note += (
                "recall@1: mean over directions, in brackets the change from padded in points; "
                f"pool of {pool} ({s.get('pool', 'all')} recordings), chance {percent_text(s['chance'])}.\n"
            )
        else:
            note += f"No retrieval: {s['no_retrieval']}.\n"
        return f"{note}Speed against padded (one run): {speeds}."

    def stored(self) -> list[TextTable]:
        columns = [name for name in self.table.column_names if name != "share_beyond"]
        shares = [name for name in columns if name in BELOW or name.endswith(("_recall", "_change"))]
        return [as_stored(self.table, "Cosines and recall@1 by context and output, as stored", columns, shares=shares)]

    def figures(self) -> dict[str, Figure]:
        return {"drift": self._by_output(), "drift_frames": self._by_frames()}

    def _by_output(self) -> Figure:
        names = self._similarities()
        outputs = distinct(self.table, "output")
        figure = new_figure(max(6.0, 0.5 * len(outputs)) * (1 + len(names)) * 0.8, 4.8)
        axes = figure.subplots(1, 1 + len(names), squeeze=False)[0]
        for (colour, marker), context in zip(STYLES, distinct(self.table, "context"), strict=False):
            rows = [r for r in self.table.to_pylist() if r["context"] == context]
            style: dict[str, Any] = {"color": colour, "marker": marker, "markersize": 4}
            if context != PADDED:
                axes[0].plot(outputs, [r["cosine"] for r in rows], label=f"{context}, mean", **style)
                axes[0].plot(
                    outputs, [r["worst"] for r in rows], linestyle=":", label=f"{context}, worst utterance", **style
                )
            for panel, name in zip(axes[1:], names, strict=True):
                panel.plot(outputs, [100 * r[f"{name}_recall"] for r in rows], label=context, **style)
        axes[0].set_ylabel("cosine to padded: up is nearer")
        lowest = min((r["worst"] for r in self._compared()), default=0.0)
        axes[0].set_ylim(top=1 + 0.04 * (1 - lowest))
        highest = 100 * max((r[f"{name}_recall"] for name in names for r in self.table.to_pylist()), default=0.0)
        for panel, name in zip(axes[1:], names, strict=True):  # one axis: they are compared
            panel.axhline(100 * self.settings["chance"], color="black", linestyle="--", linewidth=1.2, label="chance")
            percent_axis(panel, highest)
            panel.set_ylabel(f"recall@1 by {name} (%): up is better")
        for panel in axes:
            panel.tick_params(axis="x", labelrotation=90)
            panel.spines[["top", "right"]].set_visible(False)
            panel.legend(fontsize=8, frameon=False)
        set_title(figure, self.title)
        figure.supxlabel("encoder output, by depth", fontsize=10)
        return figure

    def _by_frames(self) -> Figure:
        """The share of frames that lose more than 1 - cosine, a panel a context, a curve an output."""
        rows = list(self._compared())
        contexts, outputs = (list(dict.fromkeys(r[name] for r in rows)) for name in ("context", "output"))
        figure = new_figure(5.2 * len(contexts) + 1, 4.6)
        panels = figure.subplots(1, len(contexts), squeeze=False, sharex=True, sharey=True)[0]
        frames = max(r["frames"] for r in rows)
        least = 100 / frames  # one frame
        for panel, context in zip(panels, contexts, strict=True):
            for r in (r for r in rows if r["context"] == context):
                depth = outputs.index(r["output"]) / max(1, len(outputs) - 1)
                look = {"color": (0.9 * depth, 0.25 + 0.4 * depth, 0.75 - 0.75 * depth), "linewidth": 1 + depth}
                share = 100 * np.array(r["share_beyond"])
                panel.plot(LOST, np.where(share > 0, share, np.nan), label=r["output"], **look)
            for below in BELOW.values():
                panel.axvline(1 - below, color="0.4", linestyle=":", linewidth=1)
                panel.annotate(f"cosine {below} ", (1 - below, 1), xycoords=("data", "axes fraction"), rotation=90,
                               ha="right", va="top", fontsize=8, color="0.3")  # fmt: skip
            panel.set(xscale="log", yscale="log", ylim=(least / 2, 100), title=context)
            panel.set_xlabel("1 − cosine to padded: to the right frames are worse")
            for axis in (panel.xaxis, panel.yaxis):
                axis.set_major_formatter(lambda value, _: f"{value:g}")
            panel.grid(alpha=0.3)
            panel.spines[["top", "right"]].set_visible(False)
        panels[0].set_ylabel("frames that lose more (%): lower is better")
        panels[-1].legend(fontsize=8, frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
        set_title(
            figure, self.title, f"Each of {max(r['frames'] for r in rows)} frames against itself in the padded run"
        )
        return figure
