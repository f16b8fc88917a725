"""What a sweep over exits leaves behind: tables in Parquet, transcripts side by side to read, a picture."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from math import nan
from os import PathLike
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from voxstrata.base.errors import UsageError
from voxstrata.early_exit.rates import ALL, Choice, Interval, choices_table
from voxstrata.early_exit.scoring import DEV, TEST

TRANSCRIPTS, ERRORS, CHOICES, READ, SUMMARY, PICTURE = (
    "transcripts.parquet", "errors.parquet", "choices.parquet", "transcripts.md", "early_exit.md", "early_exit.png",
)  # fmt: skip
DPI = 150


def write_results(
    folder: Path, title: str, table: pa.Table, rates: pa.Table, choices: Sequence[Choice], about: Mapping[str, Any]
) -> None:
    """Write all files of a sweep; `about`, what the figures come from, goes into the metadata of the tables."""
    folder.mkdir(parents=True, exist_ok=True)
    note = {b"voxstrata": json.dumps(about, ensure_ascii=False).encode()}
    pq.write_table(table.replace_schema_metadata(note), folder / TRANSCRIPTS)
    pq.write_table(rates.replace_schema_metadata(note), folder / ERRORS)
    pq.write_table(choices_table(choices).replace_schema_metadata(note), folder / CHOICES)
    (folder / READ).write_text(side_by_side(table, title), encoding="utf-8")
    (folder / SUMMARY).write_text(summary(title, rates, choices, about), encoding="utf-8")
    plot_errors(rates, folder / PICTURE, title)


def exit_name(after: int, final_norm: bool) -> str:
    """Short: "4" with the LayerNorm, "4 no LN" without."""
    return f"{after}" if final_norm else f"{after} no LN"


def side_by_side(table: pa.Table, title: str) -> str:
    """Markdown: for every utterance the text, then what each exit heard, with its errors."""
    blocks, seen = [f"# {title}: transcripts by exit"], None
    for r in table.to_pylist():
        if r["id"] != seen:
            seen = r["id"]
            head = f"## {_cell(r['id'])}\n\n{r['language']}, {r['part']} part: {_cell(r['reference'])}\n"
            blocks.append(f"{head}\n| k | errors | transcript |\n|---|---:|---|")
        unit = r["unit"]
        errors = f"{r[f'{unit}_errors']}/{r[f'{unit}s']}"
        blocks[-1] += f"\n| {exit_name(r['after'], r['final_norm'])} | {errors} | {_cell(r['transcript'])} |"
    return "\n\n".join(blocks) + "\n"


def _cell(text: str) -> str:
    """On one line, with nothing that Markdown reads: transcripts may hold anything."""
    flat = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    for c in "\\`*_[]<>|#":
        flat = flat.replace(c, f"\\{c}")
    return flat or "(nothing)"


def choice_rows(choices: Sequence[Choice]) -> tuple[list[str], list[list[str]]]:
    """Header and rows of the table of choices, in percent."""
    header = [
        "language", "script", "unit", "utterances (groups)", "chosen k", "on dev", "on test", "whole encoder",
        "difference",
    ]  # fmt: skip
    rows = [
        [
            c.language, c.script.lower(), c.unit, f"{c.utterances} ({c.groups})",
            exit_name(c.chosen.after, c.chosen.final_norm), f"{100 * c.dev_rate:.1f}",
            _interval(c.rate), _interval(c.original), _interval(c.difference, "+"),
        ]
        for c in choices
    ]  # fmt: skip
    return header, rows


def _interval(v: Interval, sign: str = "") -> str:
    point, low, high = (None if x is None else f"{100 * x:{sign}.1f}" for x in v)
    return f"{point}" if low is None else f"{point} [{low}, {high}]"


def explanation(about: Mapping[str, Any]) -> str:
    """What the figures mean, in words; then what a reader must know of this run, a line each."""
    scoring, decoding = about["scoring"], about["decoding"]
    text = (
        "Error rates in %: words, or characters where the language's script has no spaces; normalizer "
        f"{scoring['normalizer']!r}. "
        f"The exit was chosen on the development part ({100 * scoring['dev_share']:.0f} % of the groups, seed "
        f"{scoring['seed']}), everything else is of the test part. In brackets 95 % bootstrap intervals over groups "
        "(of the language; for 'all', of the part, translations together). "
        f"'difference' is the chosen exit minus the whole encoder (k = {about['layers']}), paired. "
        f"'{ALL}' is the mean of the languages' rates, each language weighing the same. "
        f"Greedy decoding, task {decoding['task']}, at most {decoding['max_new_tokens']} tokens."
    )
    return "\n".join([text, *(f"- {note}" for note in about["notes"])])


def summary(title: str, rates: pa.Table, choices: Sequence[Choice], about: Mapping[str, Any]) -> str:
    """Markdown: the choices, then WER and CER of every exit on both parts."""
    header, rows = choice_rows(choices)
    text = [f"# {title}", explanation(about), _markdown(header, rows)]
    for part in (DEV, TEST):
        text.append(f"## Every exit, {part} part")
        table = [
            [
                r["language"], r["script"].lower(), exit_name(r["after"], r["final_norm"]),
                f"{100 * r['wer']:.1f}", f"{100 * r['cer']:.1f}",
                _interval((r["rate"], r["low"], r["high"])), f"{r['utterances']} ({r['groups']})",
            ]
            for r in rates.to_pylist() if r["part"] == part
        ]  # fmt: skip
        names = ["language", "script", "k", "WER", "CER", "rate chosen by", "utterances (groups)"]
        text.append(_markdown(names, table))
    if about["failures"]:
        lines = [f"- {_cell(f'{name}: {reason}')}" for name, reason in about["failures"].items()]
        text.append("## Not transcribed\n\n" + "\n".join(lines))
    return "\n\n".join(text) + "\n"


def _markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(cells) + " |" for cells in [header, ["---"] * len(header), *rows]]
    return "\n".join(lines)


def plot_errors(rates: pa.Table, path: str | PathLike[str], title: str) -> None:
    """PNG: the test part's error rate by k, a panel for each language, with intervals."""
    try:
        from matplotlib.figure import Figure
        from matplotlib.ticker import MaxNLocator
    except ImportError as error:
        raise UsageError("plots need matplotlib; install it with: pip install 'voxstrata[plot]'") from error
    rows = [r for r in rates.to_pylist() if r["part"] == TEST]
    scopes = list(dict.fromkeys((r["language"], r["script"]) for r in rows))
    columns = min(len(scopes), 3)
    lines = -(-len(scopes) // columns)
    figure = Figure(figsize=(max(5.0, 3.6 * columns), 2.9 * lines + 1.2), layout="constrained")
    for axes, scope in zip(figure.subplots(lines, columns, squeeze=False).flat, scopes, strict=False):
        for norm, colour, marker in ((True, "C0", "o"), (False, "C1", "s")):
            mine = [r for r in rows if (r["language"], r["script"]) == scope and r["final_norm"] == norm]
            x = [r["after"] for r in mine]
            low, high = ([nan if r[end] is None else 100 * r[end] for r in mine] for end in ("low", "high"))
            axes.fill_between(x, low, high, color=colour, alpha=0.15, lw=0)
            label = f"{'with' if norm else 'without'} final LayerNorm"
            axes.plot(x, [100 * r["rate"] for r in mine], color=colour, marker=marker, markersize=4, label=label)
        first = next(r for r in rows if (r["language"], r["script"]) == scope)
        unit = {"word": "WER", "character": "CER"}.get(first["unit"], "WER or CER")
        name = f"{ALL}, mean over languages" if scope[0] == ALL else f"{scope[0]}, {scope[1].lower()}"
        axes.set_title(f"{name} ({first['utterances']} utterances)", fontsize=9)
        axes.set_ylabel(f"{unit} (%)", fontsize=9)
        axes.set_xlabel("encoder ends after block k", fontsize=9)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        highest = max(r["high"] or r["rate"] for r in rows if (r["language"], r["script"]) == scope)
        axes.set_ylim(0, max(106 * highest, 1))  # markers at the top stay whole
        axes.grid(axis="y", alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    for axes in figure.axes[len(scopes) :]:
        axes.set_visible(False)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2, fontsize=9, frameon=False)
    figure.suptitle(f"{title}: errors by exit, test part, 95 % intervals", fontsize=11)
    figure.savefig(path, format="png", dpi=DPI)
