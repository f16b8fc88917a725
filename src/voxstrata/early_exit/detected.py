"""Which language the model hears at each exit, as a result: how often it is the right one, and which it is else."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pyarrow as pa

from voxstrata.base.figures import Figure
from voxstrata.base.finding import Finding, SmallCurve, in_hundred, percent_text
from voxstrata.base.result import Result
from voxstrata.base.tables import TextTable, in_percent, with_interval
from voxstrata.early_exit.exits import MEAN_OF_LANGUAGES, EarlyExit, exit_name
from voxstrata.early_exit.figures import by_language, draw_by_norm, intervals
from voxstrata.early_exit.language_means import LanguageMeans, interval

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_SHOWN = 3  # languages of a row of the confusion that people read


@dataclass(frozen=True, eq=False, repr=False)
class DetectedLanguages(Result):
    """How well the language is detected at each exit, with the decoder's first step.

    table: a row per language and exit, and for the mean over languages (DETECTED_SCHEMA). confusion: how many
    recordings of a language were taken for which (CONFUSION_SCHEMA).
    """

    table: pa.Table
    confusion: pa.Table

    command = "early-exit sweep"
    question = "Is the language heard at an early exit?"
    files: ClassVar = {"table": "languages.parquet", "confusion": "confusion.parquet"}
    key = "voxstrata"
    markdown = "languages.md"
    captions: ClassVar = {"languages": "How often the language is the right one, by exit, beside chance"}
    folder: ClassVar = "languages"  # within the sweep's

    @property
    def store(self) -> None:
        """None: a sweep names its store itself."""

    @property
    def title(self) -> str:
        return f"Languages detected at early exits of {self.settings['checkpoint']}"

    def finding(self) -> Finding | None:
        """Over all languages, with the final LayerNorm."""
        rows = [r for r in self.table.to_pylist() if (r["language"], r["norm"]) == (MEAN_OF_LANGUAGES, "with")]
        rows = [r for r in rows if r["accuracy"] is not None]
        if not rows:
            return None
        said = [
            f"after block {r['after']} it is right in {percent_text(r['accuracy'], r['low'], r['high'])} of the "
            f"recordings, chance {percent_text(r['chance'])}"
            for r in ([rows[0], rows[-1]] if len(rows) > 1 else rows)
        ]
        value, low, high, chance = (in_hundred([r[n] for r in rows]) for n in ("accuracy", "low", "high", "chance"))
        names = [str(r["after"]) for r in rows]
        return Finding(
            f"{'; '.join(said).capitalize()}.", SmallCurve("right (%), by block k", names, value, low, high, chance)
        )

    def tables(self) -> list[TextTable]:
        rows, confused = [], []
        for r in self.table.to_pylist():
            counted = f"{r['utterances']} ({r['groups']})"
            right = with_interval(r, ["accuracy", "low", "high"], ".1f", 100)
            rows.append([r["language"], exit_name(r["after"], r["norm"]), counted, right, in_percent(r["chance"])])
        shares: dict[tuple[str, str], list[tuple[str, float]]] = {}
        for r in self.confusion.to_pylist():
            cell = r["language"], exit_name(r["after"], r["norm"])
            shares.setdefault(cell, []).append((r["detected"], r["share"]))
        for (language, at), found in shares.items():
            top = ", ".join(f"{name} {in_percent(share)}" for name, share in found[:_SHOWN])
            confused.append([language, at, len(found), top])
        header = ["language", "k", "utterances (groups)", "right", "chance"]
        return [
            TextTable("How often the language is the right one", header, rows, self._explanation()),
            TextTable("What was detected", ["language", "k", "languages", "% of recordings, most first"], confused),
        ]

    def _explanation(self) -> str:
        return (
            "right: recordings of which the language's token is the likeliest of all "
            f"{self.settings['languages_known']} at the decoder's first step, in %; in brackets 95 % bootstrap "
            "intervals over groups. chance: the same had detections nothing to do with the recordings: the share of "
            "this language among the detections of all recordings, each corpus language weighing the same. "
            f"'{MEAN_OF_LANGUAGES}' is the mean over languages that the model knows. Both parts are in it: nothing was "
            "chosen."
        )

    def figures(self) -> dict[str, Figure]:
        """The share of right detections by k, a panel for each language, with intervals and chance."""
        rows = [{**r, "script": ""} for r in self.table.to_pylist() if r["accuracy"] is not None]
        if not rows:
            return {}

        def draw(axes: Axes, mine: Sequence[Mapping[str, Any]]) -> None:
            draw_by_norm(axes, rows, mine, ("accuracy", "low", "high"), chance="chance")
            axes.plot([], [], ":", color="#555555", lw=1.2, label="chance: detections shuffled")
            axes.set_ylim(-2, 102)
            axes.set_ylabel("% of recordings: up is better", fontsize=9)

        whose = f"{self.settings['checkpoint']} on {self.settings['corpus']}"
        return {"languages": by_language(rows, draw, f"Right language by exit: {whose}{intervals(rows, 'low')}")}


DETECTED_SCHEMA = pa.schema(
    [("language", pa.string()), ("after", pa.int64()), ("norm", pa.string())]
    + [(n, pa.float64()) for n in ("accuracy", "low", "high", "chance")]
    + [(n, pa.int64()) for n in ("utterances", "groups")]
)
CONFUSION_SCHEMA = pa.schema(
    [("language", pa.string()), ("after", pa.int64()), ("norm", pa.string()), ("detected", pa.string()),
     ("recordings", pa.int64()), ("share", pa.float64())]
)  # fmt: skip


def detected_languages(
    rows: Sequence[Mapping[str, Any]], detected: Mapping[EarlyExit, Sequence[str]], right: Mapping[str, str | None],
    settings: Mapping[str, Any], resamples: int, seed: int,
) -> DetectedLanguages:  # fmt: skip
    """The result of what was detected.

    rows: recordings with `language` and `group`. detected: of each of them, for every exit, a code ("es"). right: by
    language of the corpus the code that is right, None where the model has none: then there is a confusion alone.
    """
    languages = [str(r["language"]) for r in rows]
    groups = [str(r["group"]) for r in rows]
    judged = [i for i, name in enumerate(languages) if right[name] is not None]
    draws = LanguageMeans(languages, groups, resamples, seed)
    found, confused = list[dict[str, Any]](), list[dict[str, Any]]()
    for at, heard in detected.items():
        counts = {name: Counter(code for n, code in zip(languages, heard, strict=True) if n == name)
                  for name in sorted({*languages})}  # fmt: skip
        chance = {name: float(np.mean([of[str(right[name])] / of.total() for of in counts.values()]))
                  for name in sorted({languages[i] for i in judged})}  # fmt: skip
        confused += [
            {"language": name, **asdict(at), "detected": code, "recordings": n, "share": n / of.total()}
            for name, of in counts.items() for code, n in sorted(of.items(), key=lambda pair: (-pair[1], pair[0]))
        ]  # fmt: skip
        own, sentences = [languages[i] for i in judged], [groups[i] for i in judged]
        measured = draws.measure([[heard[i] == right[languages[i]]] for i in judged], own, sentences)
        for name, (accuracy, samples) in measured.items():
            mine = [g for n, g in zip(own, sentences, strict=True) if name in (n, MEAN_OF_LANGUAGES)]
            low, high = interval(samples)
            by_chance = chance.get(name, float(np.mean([*chance.values()])))
            found.append(
                {"language": name, **asdict(at), "accuracy": accuracy, "low": low, "high": high, "chance": by_chance,
                 "utterances": len(mine), "groups": len(set(mine))}
            )  # fmt: skip
    order = {name: n for n, name in enumerate([*sorted({*languages}), MEAN_OF_LANGUAGES])}
    for table in (found, confused):  # what is of one exit, and most often, stays first
        table.sort(key=lambda r: (order[r["language"]], EarlyExit(r["after"], r["norm"]).rank))
    note = {DetectedLanguages.key: json.dumps(settings, ensure_ascii=False)}
    table = pa.Table.from_pylist(found, schema=DETECTED_SCHEMA).replace_schema_metadata(note)
    return DetectedLanguages(table, pa.Table.from_pylist(confused, schema=CONFUSION_SCHEMA))
