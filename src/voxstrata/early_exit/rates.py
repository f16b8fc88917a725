"""Errors and shares by language and over all, with bootstrap intervals; the choice of an exit that says something."""

from collections.abc import Sequence
from dataclasses import asdict
from math import nan
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from voxstrata.base.errors import InputError
from voxstrata.base.tables import known
from voxstrata.early_exit.exits import DEV, ERROR_KINDS, MEAN_OF_LANGUAGES, PLAIN_NORMS, TEST, EarlyExit
from voxstrata.early_exit.scoring import COUNTS, UNSPACED, Scoring
from voxstrata.evaluation.bootstrap import Resamples, percentile_interval

Scope = tuple[str, str]  # language and script
OVERALL: Scope = (MEAN_OF_LANGUAGES, MEAN_OF_LANGUAGES)  # the mean over languages
NOTHING, CHANCE = "nothing", "chance"  # what an exit may be no better than
_Float64 = NDArray[np.float64]

# Of a table of `score`, as they are summed: numerators and denominators of all measures.
_SUMMED = (
    *("words", "characters", *COUNTS, "cut_word_errors", "cut_character_errors", "empty", "looped"),
    *("chance_errors", "chance_length", "seconds"),
)
_SHARES = (
    *("cut_rate", *(f"{unit}_{kind}" for unit in ("word", "character") for kind in ERROR_KINDS)),
    *("empty", "looping", "hallucinated_per_minute"),
)
_MEASURES = ("rate", *_SHARES)  # with intervals; their definitions: Rates.value


class Rates:
    """Error rates of one part by language, for every exit, with bootstrap over groups.

    scopes: languages with their scripts. overall: those that "all" is the unweighted mean of (None: each).

    Of a language its own groups are drawn, so no resample is without any. For "all" the groups of the part are drawn,
    so that translations stay together; a resample that drew no group of some language is the mean over the others.
    incomplete: how many resamples did.
    """

    def __init__(self, table: pa.Table, part: str, scoring: Scoring, overall: Sequence[Scope] | None = None) -> None:
        rows = [r for r in table.to_pylist() if r["part"] == part]
        if not rows:
            raise InputError(f"no utterance of the {part} part was transcribed; see the failures")
        self.exits = sorted({EarlyExit(r["after"], r["norm"]) for r in rows}, key=lambda at: at.rank)
        self.scopes: list[Scope] = sorted({(r["language"], r["script"]) for r in rows})
        self.overall = self.scopes if overall is None else list(overall)
        self.units = {(r["language"], r["script"]): r["unit"] for r in rows}
        distinct = {self.units[scope] for scope in self.overall}
        self.units[OVERALL] = distinct.pop() if len(distinct) == 1 else "both"
        self.chosen_by = "rate" if scoring.choose_by == "plain" else "cut_rate"
        self._scoring = scoring
        self._counts = {scope: self._counted(rows, scope) for scope in self.scopes}
        groups = {scope: self._counts[scope][1] for scope in self.overall}
        self._alone: dict[Scope, Resamples] = {}
        self._jointly = Resamples([g for held in groups.values() for g in held], scoring.resamples, scoring.seed)
        drawn = [self._jointly.drawn(held).any(axis=1) for held in groups.values()]
        self.incomplete = int((~np.all(drawn, axis=0)).sum())

    def _counted(self, rows: Sequence[dict[str, Any]], scope: Scope) -> tuple[_Float64, list[str]]:
        """(utterances, exits, columns of _SUMMED and a 1, to count by); and the utterances' groups."""
        mine = [r for r in rows if (r["language"], r["script"]) == scope]
        groups = {r["id"]: r["group"] for r in mine}
        place = {name: i for i, name in enumerate(groups)}
        column = {at: i for i, at in enumerate(self.exits)}
        counts = np.ones((len(groups), len(self.exits), len(_SUMMED) + 1))
        for r in mine:
            found = [r[name] or 0 for name in _SUMMED]  # null: seconds, and texts to compare with, may be unknown
            counts[place[r["id"]], column[EarlyExit(r["after"], r["norm"])], :-1] = found
        return counts, list(groups.values())

    def utterances(self, scope: Scope) -> tuple[int, int]:
        """Number of utterances and of groups."""
        scopes = self.overall if scope == OVERALL else [scope]
        groups = {g for s in scopes for g in self._counts[s][1]}
        return sum(len(self._counts[s][1]) for s in scopes), len(groups)

    def rate(self, scope: Scope, measure: str = "rate") -> _Float64:
        """A measure of every exit, (exits,); of OVERALL the mean over languages; NaN where there is none.

        rate, cut_rate: errors over reference length, in the language's unit, as the transcripts are and with loops cut.
        wer, cer, cut_wer, cut_cer: the same in words and in characters. word_substitutions and the like: of the plain
        transcripts, over reference length. empty, looping: shares of transcripts. hallucinated_per_minute: words that
        are inserted, by minute of audio; characters in a script without spaces, and "all" is over the other languages.
        chance: errors against texts of other recordings, over their length.
        """
        if scope == OVERALL:
            values = [self.rate(s, measure) for s in self._averaged(measure)]
            return np.asarray(np.mean(values, axis=0)) if values else np.full(len(self.exits), nan)
        return _ratio(self._columns(scope, measure).sum(axis=0))

    def samples(self, scope: Scope, measure: str = "rate") -> _Float64:
        """`rate` in every resample, (resamples, exits); NaN where there is a single group to draw from."""
        scopes = self._averaged(measure) if scope == OVERALL else [scope]
        if self.utterances(scope)[1] < 2 or not scopes:
            return np.full((self._scoring.resamples, len(self.exits)), nan)
        if scope == OVERALL:
            drawn = np.array([self._drawn(s, measure, self._jointly) for s in scopes])
            known_ones = ~np.isnan(drawn)
            sums, numbers = np.where(known_ones, drawn, 0).sum(axis=0), known_ones.sum(axis=0)
            return _ratio(np.stack([sums, numbers], axis=-1))
        if scope not in self._alone:
            groups = self._counts[scope][1]
            self._alone[scope] = Resamples(groups, self._scoring.resamples, self._scoring.seed)
        return self._drawn(scope, measure, self._alone[scope])

    def above_chance(self, scope: Scope) -> _Float64:
        """Chance less the rate that chooses, then the same in every resample: (1 + resamples, exits)."""
        return _both(self, scope, "chance") - _both(self, scope, self.chosen_by)

    def no_better_than(self, scope: Scope) -> list[str | None]:
        """Of every exit, by the rate that chooses: NOTHING, CHANCE, or None for an exit that transcribes.

        NOTHING: at least as many errors as an empty transcript, which errs in the whole reference. CHANCE: the
        transcripts fit their own recordings no better than those of others: the lower end of `above_chance` is not
        above 0. Where no other text is known, or there is a single group, chance has no say.
        """
        above = self.above_chance(scope)
        low, _ = percentile_interval(above[1:])
        by_chance = np.where(np.isnan(low), above[0], low) <= 0  # NaN is not
        return [
            NOTHING if rate >= 1 else CHANCE if chance else None
            for rate, chance in zip(self.rate(scope, self.chosen_by), by_chance, strict=True)
        ]

    def _averaged(self, measure: str) -> list[Scope]:
        """Of which languages "all" is the mean: words and characters per minute are not added up."""
        return [s for s in self.overall if measure != "hallucinated_per_minute" or s[1] not in UNSPACED]

    def _columns(self, scope: Scope, measure: str) -> _Float64:
        """Numerator and denominator of a measure, (utterances, exits, 2)."""
        unit, one = self.units[scope], len(_SUMMED)
        spoken = "character" if scope[1] in UNSPACED else "word"
        names = {
            "rate": (f"{unit}_errors", f"{unit}s"),
            "cut_rate": (f"cut_{unit}_errors", f"{unit}s"),
            **{f"{cut}{s}er": (f"{cut}{u}_errors", f"{u}s") for cut in ("", "cut_") for s, u in _SHORT.items()},
            "empty": ("empty", ""),
            "looping": ("looped", ""),
            "hallucinated_per_minute": (f"{spoken}_insertions", "seconds"),
            "chance": ("chance_errors", "chance_length"),
        }.get(measure, (measure, f"{measure.partition('_')[0]}s"))  # fmt: skip
        a, b = (_SUMMED.index(name) if name else one for name in names)
        found = self._counts[scope][0][:, :, [a, b]]
        return np.asarray(found / [1, 60 if measure == "hallucinated_per_minute" else 1])  # seconds to minutes

    def _drawn(self, scope: Scope, measure: str, resamples: Resamples) -> _Float64:
        columns, groups = self._columns(scope, measure), self._counts[scope][1]
        return _ratio(resamples.means(columns.reshape(len(columns), -1), groups).reshape(len(resamples), -1, 2))


_SHORT = {"w": "word", "c": "character"}


def _ratio(sums: _Float64) -> _Float64:
    """Numerator over denominator, (…, 2) to (…,); NaN where there is nothing to divide by."""
    found = np.full(sums.shape[:-1], nan)
    np.divide(sums[..., 0], sums[..., 1], out=found, where=sums[..., 1] > 0)
    return found


def _both(rates: Rates, scope: Scope, measure: str) -> _Float64:
    """The measure, then the measure in every resample, (1 + resamples, exits)."""
    return np.vstack([rates.rate(scope, measure), rates.samples(scope, measure)])


def both_parts(table: pa.Table, scoring: Scoring) -> tuple[Rates, Rates]:
    """Rates of the development and the test part of a table of `score`; "all" is over the languages of both.

    Raises InputError when there is none.
    """
    keys = [table[name].to_pylist() for name in ("part", "language", "script")]
    dev, test = ({(lang, script) for p, lang, script in zip(*keys, strict=True) if p == part} for part in (DEV, TEST))
    shared = sorted(dev & test)
    if not shared:
        raise InputError(
            "no language has a transcribed recording in both parts: choosing and reporting need both; mend the "
            "recordings that failed, or give another share or seed"
        )
    return Rates(table, DEV, scoring, shared), Rates(table, TEST, scoring, shared)


def rates_table(parts: Sequence[tuple[str, Rates]]) -> pa.Table:
    """One row per part, language and exit, columns as in RATES_SCHEMA: the measures of `Rates.rate`, as fractions.

    above_chance, no_better_than: see `Rates`. _low, _high (of rate: low, high): ends of intervals, null where there is
    a single group. incomplete_resamples: see `Rates`, 0 for a language.
    """
    rows = []
    for part, rates in parts:
        for scope in [*rates.scopes, OVERALL]:
            utterances, groups = rates.utterances(scope)
            about = {"part": part, "language": scope[0], "script": scope[1], "unit": rates.units[scope]}
            about |= {"utterances": utterances, "groups": groups}
            about["incomplete_resamples"] = rates.incomplete if scope == OVERALL else 0
            found = {name: rates.rate(scope, name) for name in _WITHOUT_INTERVAL}
            for name in (*_MEASURES, "above_chance"):
                values = rates.above_chance(scope) if name == "above_chance" else _both(rates, scope, name)
                low, high = _ends(name)
                found |= {name: values[0]} | dict(zip((low, high), percentile_interval(values[1:]), strict=True))
            for i, (at, verdict) in enumerate(zip(rates.exits, rates.no_better_than(scope), strict=True)):
                figures = {name: known(values[i]) for name, values in found.items()}
                rows.append(about | asdict(at) | figures | {"no_better_than": verdict})
    return pa.Table.from_pylist(rows, schema=RATES_SCHEMA)


def _ends(name: str) -> tuple[str, str]:
    """The names of an interval's ends."""
    return ("low", "high") if name == "rate" else (f"{name}_low", f"{name}_high")


_WITHOUT_INTERVAL = ("wer", "cer", "cut_wer", "cut_cer", "chance")
RATES_SCHEMA = pa.schema(
    [(n, pa.string()) for n in ("part", "language", "script")]
    + [("after", pa.int64()), ("norm", pa.string()), ("unit", pa.string())]
    + [(n, pa.float64()) for n in ("rate", "low", "high", "wer", "cer")]
    + [(n, pa.float64()) for m in (*_SHARES, "above_chance") for n in (m, *_ends(m))]
    + [(n, pa.float64()) for n in ("cut_wer", "cut_cer", "chance")]
    + [("no_better_than", pa.string())]
    + [(n, pa.int64()) for n in ("utterances", "groups", "incomplete_resamples")]
)


def choose_exits(dev: Rates, test: Rates) -> pa.Table:
    """For every language of both parts, and for all: the exit with the fewest errors on `dev`, what it does on `test`.

    An exit that is no better than nothing or than chance on `dev` (`Rates.no_better_than`) is not chosen; where all
    are, `after` and the figures of the exit are null and `no_better_than` says which. Of exits that tie, the deepest is
    taken, then the one with the LayerNorm: the nearest to the original. Columns as in CHOICES_SCHEMA. chosen_by:
    "cut_rate" or "rate". rate, original, difference: error rates of the exit and of the whole encoder (k = L with
    LayerNorm) as fractions, and the first minus the second; with loops cut the same, `cut_` in front. Their low and
    high ends are the 95 % percentile bootstrap over the test part's groups, null where there is a single group.
    on_test_no_better_than: what the chosen exit is no better than on the test part. Softer exits are controls, fitted
    on the development part themselves: none is chosen.
    """
    rows = []
    for scope in [*(s for s in test.scopes if s in dev.scopes), OVERALL]:
        errors, verdicts = dev.rate(scope, dev.chosen_by), dev.no_better_than(scope)
        own = [i for i, at in enumerate(dev.exits) if at.norm in PLAIN_NORMS]
        transcribing = [i for i in own if verdicts[i] is None]
        # exits are sorted by rank
        best = max((i for i in transcribing if errors[i] == errors[transcribing].min()), default=None)
        row: dict[str, Any] = {"language": scope[0], "script": scope[1], "unit": test.units[scope]}
        row["chosen_by"] = dev.chosen_by
        if best is None:
            row["no_better_than"] = NOTHING if {verdicts[i] for i in own} == {NOTHING} else CHANCE
        else:
            row |= {**asdict(test.exits[best]), "dev_rate": dev.rate(scope)[best]}
            row |= {"dev_cut_rate": dev.rate(scope, "cut_rate")[best]}
            row["on_test_no_better_than"] = test.no_better_than(scope)[best]
        for cut in ("", "cut_"):
            both = _both(test, scope, f"{cut}rate")
            original = both[:, -1]  # the last exit is the whole encoder
            mine = np.full(original.shape, nan) if best is None else both[:, best]
            values = np.column_stack([mine, original, mine - original])
            low, high = percentile_interval(values[1:])
            for i, name in enumerate(f"{cut}{n}" for n in _FIGURES):
                row |= {name: known(values[0, i]), f"{name}_low": known(low[i]), f"{name}_high": known(high[i])}
        row["utterances"], row["groups"] = test.utterances(scope)
        rows.append(row)
    return pa.Table.from_pylist(rows, schema=CHOICES_SCHEMA)


_FIGURES = ("rate", "original", "difference")
CHOICES_SCHEMA = pa.schema(
    [(n, pa.string()) for n in ("language", "script", "unit")]
    + [("after", pa.int64()), ("norm", pa.string()), ("chosen_by", pa.string()), ("no_better_than", pa.string())]
    + [("dev_rate", pa.float64()), ("dev_cut_rate", pa.float64())]
    + [(f"{cut}{n}{e}", pa.float64()) for cut in ("", "cut_") for n in _FIGURES for e in ("", "_low", "_high")]
    + [("on_test_no_better_than", pa.string())]
    + [(n, pa.int64()) for n in ("utterances", "groups")]
)
