"""What controlled retrieval found: one table of figures, shown as tables and a picture, saved and loaded."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Self

import pyarrow as pa

from voxstrata.base.figures import Figure
from voxstrata.base.finding import Finding, SmallCurve, in_hundred, percent_text
from voxstrata.base.plain import counted
from voxstrata.base.result import Result
from voxstrata.base.tables import TextTable, in_percent, with_interval
from voxstrata.evaluation.levels import pool_sizes, with_level
from voxstrata.retrieval.recordings import POOL_MEANS, SHARED_FIRST
from voxstrata.studies.align import table as names
from voxstrata.studies.align.figures import plot_alignment
from voxstrata.studies.align.pools import POOL_ALL, POOL_CLOSEST, POOL_MATCHED, POOL_RANDOM, POOL_UNLIKE
from voxstrata.studies.align.states import CENTRED, RAW

# Columns of the two tables: header, the figure (states, control, metric), whether percent.
_WHOLE = (
    ("all", (RAW, POOL_ALL, names.RECALL), True),
    ("means removed", (CENTRED, POOL_ALL, names.RECALL), True),
    ("removed − all", (CENTRED, POOL_ALL, names.CHANGE), True),
    ("if unlike", (RAW, names.FIT, names.AT_ZERO), True),
    ("log-odds/SD", (RAW, names.FIT, names.SLOPE), False),
    ("given duration", (RAW, names.FIT, names.GIVEN_DURATION), False),
    ("discrimination", (RAW, names.FIT, names.DISCRIMINATION), False),
)
_CONTROLLED = (
    ("matched", (RAW, POOL_MATCHED, names.RECALL), True),
    ("unlike", (RAW, POOL_UNLIKE, names.RECALL), True),
    ("unlike − matched", (RAW, POOL_UNLIKE, names.CHANGE), True),
    ("random", (RAW, POOL_RANDOM, names.RECALL), True),
    ("closest", (RAW, POOL_CLOSEST, names.RECALL), True),
    ("closest − random", (RAW, POOL_CLOSEST, names.CHANGE), True),
)

_OTHERS = {  # what a pair is set beside to say whether it sounds unlike, by `AlignOptions.by`
    "like-length": "the other sentences of like length",
    "sentence": "the other sentences",
    "word": "the other sentences, by the closest pair of words,",
}


@dataclass(frozen=True, eq=False, repr=False)
class Alignment(Result):
    """Retrieval under controls.

    table: one row per (system, states, control, level, source, target, metric), columns as in ALIGN_SCHEMA; a figure
    that does not exist is null. pool: "shared-first", what `retrieve` calls these recordings.
    - system: outputs by depth, then the retrievers "phonemes" and "durations", which see nothing else.
    - states: "raw" or, for outputs, "means removed".
    - control: the kind of pool (see `hits_by_pool`), or "fit".
    - metric: recall@1. recall@1_change, paired: of "unlike" from "matched", of "closest" from "random", and under "all"
      of means removed from raw. For "fit" log_odds_per_sd, log_odds_per_sd_given_duration, recall@1_if_unlike and
      discrimination.
    - level: "direction", or "mean", the unweighted mean over directions, without source and target.
    low, high: 95 % bootstrap intervals over
    groups.
    """

    table: pa.Table

    command = "align"
    question = "What is left without sound?"
    files: ClassVar = {"table": "align.parquet"}
    key = "voxstrata_align"
    markdown = "align.md"
    captions: ClassVar = {"align": "How many translations come first in whole and in controlled pools, beside chance"}
    brief = 2
    dpi = 220  # for print

    @property
    def title(self) -> str:
        about = self.store
        whose = f"{about['model']['checkpoint']}, {about['spec']['context']['mode']}" if about else "unknown encoder"
        return f"{whose}, on {self.settings['store']}" if self.settings.get("store") else whose

    @classmethod
    def load(cls, folder: str | Path) -> Self:
        found = super().load(folder)
        return replace(found, table=with_level(found.table))

    def finding(self) -> Finding:
        """Of the output that is best in whole pools, what is left in controlled ones."""
        found = names.figures_of(self.table)
        outputs = [name for name in names.systems(self.table) if name not in (names.PHONEMES, names.DURATIONS)]

        def of(system: str, pool: str) -> dict[str, Any]:
            return found[system, RAW, pool, names.RECALL]

        best = max(outputs, key=lambda name: of(name, POOL_ALL)["value"] or 0.0)
        shares = {pool: percent_text(*(of(best, pool)[name] for name in ("value", "low", "high")))
                  for pool in (POOL_ALL, POOL_UNLIKE, POOL_MATCHED, POOL_CLOSEST, POOL_RANDOM)}  # fmt: skip
        chance = {pool: percent_text(of(best, pool)["chance"]) for pool in shares}
        sound = percent_text(of(names.PHONEMES, POOL_ALL)["value"])
        said = [f"{best}: {shares[POOL_ALL]} of the translations come first in whole pools, by sound alone {sound}."]
        control = POOL_CLOSEST if of(best, POOL_UNLIKE)["value"] is None else POOL_UNLIKE
        if control == POOL_UNLIKE:
            unlike = of(best, POOL_UNLIKE)
            if unlike["low"] is not None:
                above = unlike["low"] > unlike["chance"]
                said.append("Sound alone does not explain it." if above else "Without sound it is not above chance.")
            said.append(
                f"Where they sound unlike, {shares[POOL_UNLIKE]}, beside {shares[POOL_MATCHED]} in pools that are "
                f"matched; chance is {chance[POOL_UNLIKE]}."
            )
        else:
            said.append("No direction has enough pairs that sound unlike.")
        said.append(
            f"Against what sounds closest, {shares[POOL_CLOSEST]}, beside {shares[POOL_RANDOM]} against random ones; "
            f"chance is {chance[POOL_CLOSEST]}."
        )
        rows = [of(name, control) for name in outputs]
        value, low, high, level = (in_hundred([row[n] for row in rows]) for n in ("value", "low", "high", "chance"))
        what = "unlike in sound" if control == POOL_UNLIKE else "against what sounds closest"
        curve = SmallCurve(f"recall@1 (%), {what}", outputs, value, low, high, level, best=outputs.index(best))
        return Finding(" ".join(said), curve)

    def tables(self) -> list[TextTable]:
        both = self._of(None, None, (self._note_on_whole_pools(), self._note_on_controls()))
        for direction in names.directions(self.table):
            both += self._of(*direction, folded=True)
        return both

    def stored(self) -> list[TextTable]:
        return names.stored_means(self.table)

    def figures(self) -> dict[str, Figure]:
        return {"align": plot_alignment(self.table, self.title, self.settings)}

    def _of(
        self, source: str | None, target: str | None, notes: tuple[str, str] = ("", ""), folded: bool = False
    ) -> list[TextTable]:
        """Both tables of one direction, or of the mean: a row per system, then pool sizes and chance.

        Intervals stand in brackets on a line of their own, below their figure.
        """
        title = "mean over directions" if source is None else f"{source} → {target}"
        found, systems = names.figures_of(self.table, source, target), names.systems(self.table)
        tables = []
        for kind, columns, note in zip(("Whole", "Controlled"), (_WHOLE, _CONTROLLED), notes, strict=True):
            body = [[name, *(_cell(found.get((name, *at)), percent) for _, at, percent in columns)] for name in systems]
            pools, chances = ["pool"], ["chance"]
            for _, at, _ in columns:
                row = found.get((systems[0], *at)) if names.RECALL in at else None
                pools.append(pool_sizes(row) if row else "")
                chances.append("" if row is None or row["chance"] is None else in_percent(row["chance"]))
            header, rows = ["system", *(name for name, *_ in columns)], [*body, pools, chances]
            tables.append(TextTable(f"{kind} pools, {title}", header, rows, note, folded))
        return tables

    def _note_on_whole_pools(self) -> str:
        """What the columns mean under these settings."""
        s = self.settings
        number = f"the mean over {counted(len(names.directions(self.table)), 'direction')}"
        intervals = f"In brackets: 95 % bootstrap intervals over {counted(s['bootstrap_groups'], 'group')}."
        return "\n".join(
            [
                f"recall@1 in percent: how often the translation scores best, by {s['similarity']}; {number}.",
                *([intervals] if s["bootstrap_resamples"] else []),
                f"- all: the whole pool, {SHARED_FIRST}: {POOL_MEANS[SHARED_FIRST]}.",
                f"- means removed: the same, after the mean of {self._cells()} is taken from every frame.",
                "- The next four ask whether pairs that sound close are found more often. Closeness is how much closer "
                "the translation sounds than other sentences do, in standard deviations (SD). A logistic regression "
                "predicts from it which translations 'all' finds.",
                "- if unlike: the recall that it predicts for translations that sound no closer than other sentences.",
                "- log-odds/SD: how much one standard deviation of closeness helps (the slope). 0: not at all.",
                "- given duration: the same slope where the regression also knows how alike both durations are. Rather "
                "read this one: the slope before it credits sound with what duration does.",
                "- discrimination: how well closeness tells what is found from what is missed (Tjur's coefficient, "
                "less what the directions alone tell). 0: not at all.",
                f"- Rows {names.PHONEMES} and {names.DURATIONS}: retrievers that see phonemes or durations, and "
                "nothing else.",
            ]
        )

    def _cells(self) -> str:
        """Whose mean is removed: speakers' or languages', and why."""
        s = self.settings
        least = counted(s["smallest_cell"], "utterance")
        rare = f"where the speaker is unknown or has fewer than {least}"
        if "means_removed" not in s:  # what earlier versions saved tells less
            one_or_none = f"its language (each has one speaker, or none who is known and has {least})"
            return (
                one_or_none if s["cells_are_languages"] else f"its speaker in its language, or of its language {rare}"
            )
        languages = [(of["speakers"], of["of_no_such_speaker"]) for of in s["means_removed"].values()]
        if all(speakers == 0 for speakers, _ in languages):
            return f"its language (speakers are unknown, or have fewer than {least})"
        if all(cell == (1, 0) for cell in languages):
            return "its language, which has one speaker alone: language and speaker cannot be told apart"
        some_rare = any(rest for _, rest in languages)
        return "its speaker in its language" + (f", or of its language {rare}" if some_rare else "")

    def _note_on_controls(self) -> str:
        s = self.settings
        return "\n".join(
            [
                "- unlike: the pairs that sound unlike, as queries and as candidates; no others take part. A pair "
                f"sounds unlike when at least {100 * s['unlike_quantile']:g} % of {_OTHERS[s['by']]} sound closer to "
                "the query than its translation does.",
                "- matched: what unlike is to be compared with. Pools of the same size and durations, drawn from all "
                "pairs, whatever they sound like; the mean over all draws.",
                f"- unlike and matched are {self._directions_of_unlike()}.",
                f"- closest: the translation among {counted(s['closest'], 'hard negative')}, other sentences that "
                "sound closest to the query.",
                "- random: what closest is to be compared with. As many other sentences of like duration, drawn at "
                "random; the mean over all draws.",
            ]
        )

    def _directions_of_unlike(self) -> str:
        """What the mean over unlike pairs is over."""
        least = self.settings["smallest_pool"]
        if not (enough := names.directions_with_unlike_pairs(self.table)):
            return f"empty here, as no direction has {counted(least, 'such pair')}"
        return f"means over {counted(enough, 'direction')} with {counted(least, 'such pair')} or more"


def _cell(row: dict[str, Any] | None, percent: bool) -> str:
    """A figure, and its interval on the line below; z: no minus before a zero."""
    names = ("value", "low", "high")
    return "" if row is None else with_interval(row, names, "z.1f" if percent else "z.2f", 100 if percent else 1, "\n")
