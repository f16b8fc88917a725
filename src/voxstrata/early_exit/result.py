"""What a sweep over exits finds, as one result: errors and their kinds, the exits chosen, transcripts, pictures."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pyarrow as pa
import pyarrow.compute as pc

from voxstrata.base.figures import Figure
from voxstrata.base.finding import Finding, SmallCurve, in_hundred, percent_text
from voxstrata.base.plain import counted
from voxstrata.base.result import Result
from voxstrata.base.tables import TextTable, as_stored, in_percent, with_interval
from voxstrata.early_exit.exits import DEV, ERROR_KINDS, MEAN_OF_LANGUAGES, TEST, exit_name
from voxstrata.early_exit.figures import NO_EXIT, plot_errors, plot_kinds, plot_shares, plot_speed
from voxstrata.store.files import LOCK

JOURNAL, LOTS = "transcripts.jsonl", "lots"
_SIDE_BY_SIDE = "transcripts.md"
_TRANSCRIPTS_SHOWN = 120  # rows of a report: there is one for every utterance and exit
_RATES = {"word": "WER", "character": "CER", "both": "both"}
_LOOPS = {"rate": "of transcripts as they are", "cut_rate": "with loops cut"}
_RATED = ("original", "difference", "cut_original", "cut_difference")  # columns of rates
_THAN = {"nothing": "saying nothing", "chance": "chance"}
_WHY = {"nothing": "", "chance": ": what they say fits other recordings as well"}


@dataclass(frozen=True, eq=False, repr=False)
class EarlyExits(Result):
    """Error rates of a corpus transcribed with the encoder ended after every block, and the exits chosen by them.

    table: a row per part, language and exit, and for the mean over languages (RATES_SCHEMA). choices: a row per
    language, and for the mean: of the exits that say something the one with the fewest errors on the development part,
    and its errors on the test part; or that there is none (CHOICES_SCHEMA). transcripts: a row per utterance and exit
    (TRANSCRIPT_SCHEMA). costs: a row per exit: size, arithmetic, seconds (COSTS_SCHEMA).
    resumed: transcripts that an earlier run had made; not stored.

    `settings` hold what the figures come from: checkpoint, corpus, decoding, scoring, `notes` for the reader, and
    `failures`, why recordings were not transcribed, by id.
    """

    table: pa.Table
    choices: pa.Table
    transcripts: pa.Table
    costs: pa.Table
    resumed: int = 0

    command = "early-exit sweep"
    question = "Where may the encoder end?"
    files: ClassVar = {"table": "errors.parquet", "choices": "choices.parquet", "transcripts": "transcripts.parquet",
                       "costs": "costs.parquet"}  # fmt: skip
    beside = (JOURNAL, LOCK, "fits")
    key = "voxstrata"
    markdown = "early_exit.md"
    captions: ClassVar = {
        "early_exit": "Errors by exit, test part, beside chance and saying nothing",
        "early_exit_kinds": "Kinds of errors by exit, test part",
        "early_exit_shares": "Empty and looping transcripts by exit, test part",
        "early_exit_speed": "Errors against cost by exit, test part",
    }
    brief = 2

    @property
    def store(self) -> None:
        """None: a sweep starts from recordings."""

    @property
    def title(self) -> str:
        return f"Early exits of {self._whose}"

    @property
    def _whose(self) -> str:
        s = self.settings
        return f"{s['checkpoint']} on {s['corpus']}" if s.get("corpus") else str(s["checkpoint"])

    def finding(self) -> Finding:
        """The exit chosen for the mean over languages, or for the only one."""
        row, by = self.choices.to_pylist()[-1], self._by
        cut, layers = "cut_" if by == "cut_rate" else "", self.settings["layers"]
        rate = _RATES[row["unit"]] if row["unit"] != "both" else "errors, WER or CER,"
        share, whole, less = (
            percent_text(*(row[f"{cut}{name}{end}"] for end in ("", "_low", "_high")))
            for name in ("rate", "original", "difference")
        )
        if row["after"] is None:
            answer = (
                f"Nowhere earlier: {NO_EXIT}. The whole encoder, {counted(layers, 'block')}, has {rate} of {whole}."
            )
        elif row["after"] == layers:
            answer = (
                f"Nowhere earlier: the whole encoder, {counted(layers, 'block')}, is chosen. On the test part {rate} "
                f"is {share}."
            )
        else:
            answer = (
                f"After block {exit_name(row['after'], row['norm'])} of {layers}: on the test part {rate} is {share}, "
                f"{less} more than the whole encoder's {whole}."
            )
        sentences, recordings = counted(row["groups"], "sentence"), counted(row["utterances"], "recording")
        answer += f" The test part has {recordings} of {sentences}. Saying nothing errs in 100 %."
        norm = row["norm"] or "with"
        held = [r for r in self.table.to_pylist() if r["part"] == TEST and r["norm"] == norm]
        held = [r for r in held if r["language"] == row["language"]]
        low, high = ("low", "high") if by == "rate" else (f"{by}_low", f"{by}_high")
        value, low_ends, high_ends = (in_hundred([r[name] for r in held]) for name in (by, low, high))
        best = next((i for i, r in enumerate(held) if r["after"] == row["after"]), None)
        names = [exit_name(r["after"], "with") for r in held]
        nothing = [100.0] * len(held)
        up = f"{_RATES[row['unit']]} (%) by block k: down is better"
        return Finding(answer, SmallCurve(up, names, value, low_ends, high_ends, nothing, "saying nothing", best))

    def tables(self) -> list[TextTable]:
        found = [self._chosen(), self._kinds(), *([self._costs()] if len(self.costs) else [])]
        names = ["language", "script", "after", "norm", "unit", "rate", "low", "high", "wer", "cer"]
        names += ["cut_rate", "cut_rate_low", "cut_rate_high", "cut_wer", "cut_cer", "chance", "no_better_than"]
        kinds = ["language", "after", "norm", *(f"{u}_{k}" for u in ("word", "character") for k in ERROR_KINDS)]
        for name in ("empty", "looping", "hallucinated_per_minute"):
            kinds += [name, f"{name}_low", f"{name}_high"]
        for part in (TEST, DEV):
            held = self.table.filter(pc.equal(self.table["part"], part))
            title = f"Every exit on the {part} part, as stored"
            whole, shares = len(self.table), [name for name in (*names[5:-1], *kinds[3:]) if "per_minute" not in name]
            found.append(as_stored(held, title, [*names, "utterances", "groups"], shares=shares, of=whole))
            found.append(as_stored(held, f"{title}: kinds of errors", kinds, shares=shares, of=whole))
        if self.failures:
            found.append(TextTable("Not transcribed", ["recording", "reason"], list(self.failures.items())))
        return found

    def _chosen(self) -> TextTable:
        """A row per language: the exit chosen, or that there is none."""
        cut = "cut_" if self._by == "cut_rate" else ""
        rows = []
        for r in self.choices.to_pylist():
            name = exit_name(r["after"], r["norm"]) if r["after"] is not None else "none"
            dev = r[f"dev_{cut}rate"]
            signs = {"rate": ".1f", "original": ".1f", "difference": "+.1f"}
            figures = [
                with_interval(r, [f"{cut}{n}{e}" for e in ("", "_low", "_high")], spec, 100, apart="\n")
                for n, spec in signs.items()
            ]
            counted = f"{r['language']}\n{r['utterances']} ({r['groups']})"
            rows.append([counted, _RATES[r["unit"]], name, in_percent(dev), *figures])
        header = ["language\n(groups)", "rate", "chosen", "on dev", "on test", "whole\nencoder", "difference"]
        return TextTable(f"The exits chosen, {_LOOPS[self._by]}", header, rows, self._explanation())

    def _costs(self) -> TextTable:
        """A row per exit: what it takes."""
        rows = []
        for r in self.costs.to_pylist():
            seconds = ["–" if r[name] is None else f"{r[name]:.2f}" for name in ("encoder_seconds", "decoder_seconds")]
            work = [f"{r[name] / 1e9:.1f}" for name in ("encoder_flops", "decoder_flops")]
            sizes = [f"{r['parameters'] / 1e6:.1f}", f"{r['bytes'] / 1e6:.0f}"]
            rows.append([exit_name(r["after"], r["norm"]), *sizes, work[0], seconds[0], work[1], seconds[1],
                         f"{r['tokens']:.0f}"])  # fmt: skip
        header = ["exit", "million\nweights", "MB", "encoder\nGFLOP", "s", "decoder\nGFLOP", "s", "tokens"]
        note = "Means for a recording: the encoder of 30 s, the decoder of one transcript. Seconds are of this sweep."
        return TextTable("What an exit costs", header, rows, note)

    def _kinds(self) -> TextTable:
        """Of the chosen exit and of the whole encoder: what is wrong, on the test part."""
        held = {(r["language"], r["script"], r["after"], r["norm"]): r
                for r in self.table.to_pylist() if r["part"] == TEST}  # fmt: skip
        rows = []
        for r in self.choices.to_pylist():
            scope = (r["language"], r["script"])
            for at in dict.fromkeys([(r["after"], r["norm"]), (self.settings["layers"], "with")]):
                if (found := held.get((*scope, *at))) is None:  # none chosen
                    continue
                unit = "word" if found["unit"] == "word" else "character"
                names = ["rate", "cut_rate", *(f"{unit}_{kind}" for kind in ERROR_KINDS), "empty", "looping"]
                spoken = found["hallucinated_per_minute"]
                shares = [in_percent(found[name]) for name in names]
                rows.append([r["language"], exit_name(*at), *shares, "–" if spoken is None else f"{spoken:.1f}"])
        header = ["language", "k", "plain", "loops\ncut", "subst.", "del.", "ins.", "empty", "looping", "halluc.\n/min"]
        note = (
            "Plain errors are substitutions, deletions and insertions, in % of the reference (of 'all', where it is "
            "over words and characters, in characters). empty, looping: % of transcripts that say nothing, and that "
            "repeat themselves until the tokens end. halluc./min: words that the alignment with the reference inserts, "
            "by minute of audio (characters in scripts without spaces)."
        )
        return TextTable(
            f"Kinds of errors of the exits chosen and of the whole encoder, {TEST} part", header, rows, note
        )

    def stored(self) -> list[TextTable]:
        note = "after: k. original: the whole encoder. difference: rate less original, paired."
        names = ["id", "language", "part", "after", "norm", "unit", "word_errors", "words"]
        names += ["character_errors", "characters", "reference", "transcript"]
        shares = [name for name in self.choices.column_names if "rate" in name or name.startswith(_RATED)]
        heard = self.transcripts.slice(0, _TRANSCRIPTS_SHOWN)
        return [
            as_stored(self.choices, "The exits chosen, as stored", shares=shares, note=note),
            as_stored(heard, "Transcripts, as stored", names, of=len(self.transcripts)),
        ]

    @property
    def _by(self) -> str:
        """The rate that chose, "rate" or "cut_rate"."""
        return str(self.choices["chosen_by"][0].as_py())

    def _explanation(self) -> str:
        """What says nothing; what the figures mean, in words; then what a reader must know of this run, a line each."""
        scoring, decoding = self.settings["scoring"], self.settings["decoding"]
        text = (
            f"Error rates in %, WER or CER as the column says, {_LOOPS[self._by]}; normalizer "
            f"{scoring['normalizer']!r}. Saying nothing errs in 100 %. The exit k was chosen on the development part "
            f"({100 * scoring['dev_share']:.0f} % of the groups, seed {scoring['seed']}) of those that are better than "
            "saying nothing, and than their own transcripts held against texts of other recordings; everything else "
            "is of the test part. In brackets 95 % bootstrap intervals over groups (of the language; for 'all', of "
            "the part, translations together). 'difference' is the chosen exit minus the whole encoder (k = "
            f"{self.settings['layers']}), paired. '{MEAN_OF_LANGUAGES}' is the mean of the languages' rates, each "
            f"language weighing the same. Decoding {decoding.get('policy', 'greedy')!r}, task {decoding['task']}, at "
            f"most {counted(decoding['max_new_tokens'], 'token')}."
        )
        if decoding.get("stop_loops"):
            text += " Loops were stopped once found: with them to the last token plain errors would be more."
        verdicts, notes = ([f"- {note}" for note in found] for found in (self._verdicts(), self.settings["notes"]))
        return "\n".join([*verdicts, *[""][: len(verdicts)], text, *notes])  # a list ends with an empty line

    def _verdicts(self) -> list[str]:
        """What says nothing, or no more than chance, called so: a sentence each."""
        found = []
        for r in self.choices.to_pylist():
            language = r["language"]
            if r["after"] is None:
                found.append(f"{language}: {NO_EXIT}{_WHY[r['no_better_than']]}; none is chosen")
                continue
            if than := r["on_test_no_better_than"]:
                found.append(f"{language}: on the test part the chosen exit is no better than {_THAN[than]}")
            if r["rate"] >= 1 > r["cut_rate"]:
                found.append(
                    f"{language}: with its loops the chosen exit is worse than saying nothing "
                    f"({percent_text(r['rate'])} on the test part)"
                )
        return found

    def figures(self) -> dict[str, Figure]:
        """By exit, on the test part, a panel for each language: errors, their kinds, empty and looping transcripts,
        and, where costs are known, errors against cost."""
        rows = [r for r in self.table.to_pylist() if r["part"] == TEST]
        choices = {r["language"]: r for r in self.choices.to_pylist()}
        drawn = {"early_exit": plot_errors, "early_exit_kinds": plot_kinds, "early_exit_shares": plot_shares}
        found = {name: plot(rows, choices, self._whose) for name, plot in drawn.items()}
        if len(self.costs):
            costs = self.costs.to_pylist()
            found["early_exit_speed"] = plot_speed(rows, choices, self._whose, costs)
        return found

    def save(self, folder: str | Path) -> list[Path]:
        written = super().save(folder)
        path = Path(folder) / _SIDE_BY_SIDE
        path.write_text(side_by_side(self.transcripts, self.settings["checkpoint"]), encoding="utf-8")
        return [*written, path]


def side_by_side(transcripts: pa.Table, title: str) -> str:
    """Markdown: for every utterance the text, then its transcript at each exit and its errors, both with loops cut."""
    blocks, seen = [f"# {title}: transcripts by exit"], None
    for r in transcripts.to_pylist():
        if r["id"] != seen:
            seen = r["id"]
            head = f"## {_plain(r['id'])}\n\n{r['language']}, {r['part']} part: {_plain(r['reference'])}\n"
            blocks.append(f"{head}\n| k | errors | transcript |\n|---|---:|---|")
        unit = r["unit"]
        errors = f"{r[f'cut_{unit}_errors']}/{r[f'{unit}s']}"
        said = _plain(r["cut"]) + (" … (loop cut)" if r["looped"] else "")
        blocks[-1] += f"\n| {exit_name(r['after'], r['norm'])} | {errors} | {said} |"
    return "\n\n".join(blocks) + "\n"


def _plain(text: str) -> str:
    """On one line, with nothing that Markdown reads: transcripts may hold anything."""
    flat = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    for c in "\\`*_[]<>|#":
        flat = flat.replace(c, f"\\{c}")
    return flat or "(nothing)"
