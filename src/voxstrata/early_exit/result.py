"""What a sweep over exits finds, as one result: error rates, the exits chosen, transcripts side by side, a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import nan
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import pyarrow as pa
import pyarrow.compute as pc

from voxstrata.base.figures import STYLES, Figure, new_figure, set_title
from voxstrata.base.result import Result
from voxstrata.base.tables import TextTable, as_stored, with_interval
from voxstrata.early_exit.exits import DEV, MEAN_OF_LANGUAGES, TEST
from voxstrata.store.files import LOCK

if TYPE_CHECKING:
    from matplotlib.axes import Axes

JOURNAL, LOTS = "transcripts.jsonl", "lots"
_SIDE_BY_SIDE = "transcripts.md"
_TRANSCRIPTS_SHOWN = 120  # rows of a report: there is one for every utterance and exit


@dataclass(frozen=True, eq=False, repr=False)
class EarlyExits(Result):
    """Error rates of a corpus transcribed with the encoder ended after every block, and the exits chosen by them.

    table: a row per part, language and exit, and for the mean over languages (RATES_SCHEMA). choices: a row per
    language, and for the mean: the exit with the fewest errors on the development part, and its errors on the test part
    (CHOICES_SCHEMA). transcripts: a row per utterance and exit (TRANSCRIPT_SCHEMA).
    resumed: transcripts that an earlier run had made; not stored.

    `settings` hold what the figures come from: checkpoint, corpus, decoding, scoring, `notes` for the reader, and
    `failures`, why recordings were not transcribed, by id.
    """

    table: pa.Table
    choices: pa.Table
    transcripts: pa.Table
    resumed: int = 0

    command = "early-exit sweep"
    files: ClassVar = {"table": "errors.parquet", "choices": "choices.parquet", "transcripts": "transcripts.parquet"}
    beside = (JOURNAL, LOCK)
    key = "voxstrata"
    markdown = "early_exit.md"
    captions: ClassVar = {"early_exit": "Errors by exit, test part"}

    @property
    def store(self) -> None:
        """None: a sweep starts from recordings."""

    @property
    def title(self) -> str:
        return f"Early exits of {self.settings['checkpoint']}"

    def tables(self) -> list[TextTable]:
        header = ["language", "script", "unit", "utterances (groups)", "chosen k", "on dev", "on test"]
        header += ["whole encoder", "difference"]
        rows = []
        for r in self.choices.to_pylist():
            counted = f"{r['utterances']} ({r['groups']})"
            choice = [exit_name(r["after"], r["norm"]), f"{100 * r['dev_rate']:.1f}"]
            signs = {"rate": ".1f", "original": ".1f", "difference": "+.1f"}
            figures = [with_interval(r, [n, f"{n}_low", f"{n}_high"], spec, 100) for n, spec in signs.items()]
            rows.append([r["language"], r["script"].lower(), r["unit"], counted, *choice, *figures])
        found = [TextTable("The exits chosen", header, rows, self._explanation())]
        names = ["language", "script", "after", "norm", "unit", "rate", "low", "high", "wer", "cer"]
        names += ["utterances", "groups"]
        for part in (TEST, DEV):
            held = self.table.filter(pc.equal(self.table["part"], part))
            found.append(as_stored(held, f"Every exit on the {part} part, as stored", names, of=len(self.table)))
        if self.failures:
            found.append(TextTable("Not transcribed", ["recording", "reason"], list(self.failures.items())))
        return found

    def stored(self) -> list[TextTable]:
        note = "Rates as fractions. after: k. original: the whole encoder. difference: rate less original, paired."
        names = ["id", "language", "part", "after", "norm", "unit", "word_errors", "words"]
        names += ["character_errors", "characters", "reference", "transcript"]
        heard = self.transcripts.slice(0, _TRANSCRIPTS_SHOWN)
        return [
            as_stored(self.choices, "The exits chosen, as stored", note=note),
            as_stored(heard, "Transcripts, as stored", names, of=len(self.transcripts)),
        ]

    def _explanation(self) -> str:
        """What the figures mean, in words; then what a reader must know of this run, a line each."""
        scoring, decoding = self.settings["scoring"], self.settings["decoding"]
        text = (
            "Error rates in %: words, or characters where the language's script has no spaces; normalizer "
            f"{scoring['normalizer']!r}. The exit was chosen on the development part "
            f"({100 * scoring['dev_share']:.0f} % of the groups, seed {scoring['seed']}); everything else is of the "
            "test part. In brackets 95 % bootstrap intervals over groups (of the language; for 'all', of the part, "
            "translations together). 'difference' is the chosen exit minus the whole encoder "
            f"(k = {self.settings['layers']}), paired. '{MEAN_OF_LANGUAGES}' is the mean of the languages' rates, each "
            f"language weighing the same. Greedy decoding, task {decoding['task']}, at most "
            f"{decoding['max_new_tokens']} tokens."
        )
        return "\n".join([text, *(f"- {note}" for note in self.settings["notes"])])

    def figures(self) -> dict[str, Figure]:
        """The test part's error rate by k, a panel for each language, with intervals."""
        rows = [r for r in self.table.to_pylist() if r["part"] == TEST]
        scopes = list(dict.fromkeys((r["language"], r["script"]) for r in rows))
        columns = min(len(scopes), 3)
        lines = -(-len(scopes) // columns)
        figure = new_figure(max(5.0, 3.6 * columns), 2.9 * lines + 1.2)
        panels = figure.subplots(lines, columns, squeeze=False).flat
        for axes, scope in zip(panels, scopes, strict=False):
            _panel(axes, [r for r in rows if (r["language"], r["script"]) == scope])
        for axes in figure.axes[len(scopes) :]:
            axes.set_visible(False)
        handles, labels = figure.axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=2, fontsize=9, frameon=False)
        set_title(figure, f"{self.settings['checkpoint']}: errors by exit, test part, 95 % intervals")
        return {"early_exit": figure}

    def save(self, folder: str | Path) -> list[Path]:
        written = super().save(folder)
        path = Path(folder) / _SIDE_BY_SIDE
        path.write_text(side_by_side(self.transcripts, self.settings["checkpoint"]), encoding="utf-8")
        return [*written, path]


def exit_name(after: int, norm: str) -> str:
    """Short: "4" with the LayerNorm, "4 no LN" without."""
    return f"{after}" if norm == "with" else f"{after} no LN"


def side_by_side(transcripts: pa.Table, title: str) -> str:
    """Markdown: for every utterance the text, then its transcript at each exit, with its errors."""
    blocks, seen = [f"# {title}: transcripts by exit"], None
    for r in transcripts.to_pylist():
        if r["id"] != seen:
            seen = r["id"]
            head = f"## {_plain(r['id'])}\n\n{r['language']}, {r['part']} part: {_plain(r['reference'])}\n"
            blocks.append(f"{head}\n| k | errors | transcript |\n|---|---:|---|")
        unit = r["unit"]
        errors = f"{r[f'{unit}_errors']}/{r[f'{unit}s']}"
        blocks[-1] += f"\n| {exit_name(r['after'], r['norm'])} | {errors} | {_plain(r['transcript'])} |"
    return "\n\n".join(blocks) + "\n"


def _plain(text: str) -> str:
    """On one line, with nothing that Markdown reads: transcripts may hold anything."""
    flat = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    for c in "\\`*_[]<>|#":
        flat = flat.replace(c, f"\\{c}")
    return flat or "(nothing)"


def _panel(axes: Axes, rows: Sequence[Mapping[str, Any]]) -> None:
    """One language's rates by k."""
    from matplotlib.ticker import MaxNLocator

    for norm, (colour, marker) in zip(("with", "without"), STYLES, strict=False):
        mine = [r for r in rows if r["norm"] == norm]
        x = [r["after"] for r in mine]
        low, high = ([nan if r[end] is None else 100 * r[end] for r in mine] for end in ("low", "high"))
        axes.fill_between(x, low, high, color=colour, alpha=0.15, lw=0)
        label = f"{norm} final LayerNorm"
        axes.plot(x, [100 * r["rate"] for r in mine], color=colour, marker=marker, markersize=4, label=label)
    first = rows[0]
    language = first["language"]
    name = "all, mean over languages" if language == MEAN_OF_LANGUAGES else f"{language}, {first['script'].lower()}"
    axes.set_title(f"{name} ({first['utterances']} utterances)", fontsize=9)
    unit = {"word": "WER", "character": "CER"}.get(first["unit"], "WER or CER")
    axes.set_ylabel(f"{unit} (%)", fontsize=9)
    axes.set_xlabel("encoder ends after block k", fontsize=9)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_ylim(0, max(106 * max(r["high"] or r["rate"] for r in rows), 1))  # markers at the top stay whole
    axes.grid(axis="y", alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
