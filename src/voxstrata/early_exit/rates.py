"""Error rates by language and over all, with bootstrap intervals, and the choice of an exit."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from voxstrata.base.errors import InputError
from voxstrata.base.tables import known
from voxstrata.early_exit.exits import DEV, MEAN_OF_LANGUAGES, TEST, EarlyExit
from voxstrata.early_exit.scoring import Scoring
from voxstrata.evaluation.bootstrap import Resamples, percentile_interval

Scope = tuple[str, str]  # language and script
OVERALL: Scope = (MEAN_OF_LANGUAGES, MEAN_OF_LANGUAGES)  # the mean over languages
_Float64 = NDArray[np.float64]


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
        self._scoring = scoring
        self._counts = {scope: self._counted(rows, scope) for scope in self.scopes}
        groups = {scope: self._counts[scope][1] for scope in self.overall}
        self._jointly = Resamples([g for held in groups.values() for g in held], scoring.resamples, scoring.seed)
        drawn = [self._jointly.drawn(held).any(axis=1) for held in groups.values()]
        self.incomplete = int((~np.all(drawn, axis=0)).sum())

    def _counted(self, rows: Sequence[dict[str, Any]], scope: Scope) -> tuple[_Float64, list[str]]:
        """(utterances, exits, 4): word errors, words, character errors, characters; and the utterances' groups."""
        mine = [r for r in rows if (r["language"], r["script"]) == scope]
        groups = {r["id"]: r["group"] for r in mine}
        place = {name: i for i, name in enumerate(groups)}
        column = {at: i for i, at in enumerate(self.exits)}
        counts = np.zeros((len(groups), len(self.exits), 4))
        names = ("word_errors", "words", "character_errors", "characters")
        for r in mine:
            counts[place[r["id"]], column[EarlyExit(r["after"], r["norm"])]] = [r[name] for name in names]
        return counts, list(groups.values())

    def utterances(self, scope: Scope) -> tuple[int, int]:
        """Number of utterances and of groups."""
        scopes = self.overall if scope == OVERALL else [scope]
        groups = {g for s in scopes for g in self._counts[s][1]}
        return sum(len(self._counts[s][1]) for s in scopes), len(groups)

    def rate(self, scope: Scope, unit: str | None = None) -> _Float64:
        """Errors over reference length, (exits,); unit None is the language's own, words or characters."""
        if scope == OVERALL:
            return np.asarray(np.mean([self.rate(s, unit) for s in self.overall], axis=0))
        totals = self._counts[scope][0].sum(axis=0)
        a = 0 if (unit or self.units[scope]) == "word" else 2
        return np.asarray(totals[:, a] / totals[:, a + 1])

    def samples(self, scope: Scope) -> _Float64:
        """`rate` in every resample, (resamples, exits); NaN where there is a single group to draw from."""
        if self.utterances(scope)[1] < 2:
            return np.full((self._scoring.resamples, len(self.exits)), np.nan)
        if scope == OVERALL:
            return np.asarray(np.nanmean([self._drawn(s, self._jointly) for s in self.overall], axis=0))
        return self._drawn(scope, Resamples(self._counts[scope][1], self._scoring.resamples, self._scoring.seed))

    def _drawn(self, scope: Scope, resamples: Resamples) -> _Float64:
        counts, groups = self._counts[scope]
        a = 0 if self.units[scope] == "word" else 2
        means = resamples.means(counts[:, :, a : a + 2].reshape(len(counts), -1), groups)
        return np.asarray(means[:, 0::2] / means[:, 1::2])


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
    """One row per part, language and exit: WER, CER, and the rate of the language's unit with its interval.

    low, high: null where there is a single group. incomplete_resamples: see `Rates`, 0 for a language.
    """
    rows = []
    for part, rates in parts:
        for scope in [*rates.scopes, OVERALL]:
            low, high = ([known(end) for end in ends] for ends in percentile_interval(rates.samples(scope)))
            wer, cer, rate = rates.rate(scope, "word"), rates.rate(scope, "character"), rates.rate(scope)
            utterances, groups = rates.utterances(scope)
            rows += [
                {"part": part, "language": scope[0], "script": scope[1], **asdict(at),
                 "unit": rates.units.get(scope, "both"), "rate": rate[i], "low": low[i], "high": high[i],
                 "wer": wer[i], "cer": cer[i], "utterances": utterances, "groups": groups,
                 "incomplete_resamples": rates.incomplete if scope == OVERALL else 0}
                for i, at in enumerate(rates.exits)
            ]  # fmt: skip
    return pa.Table.from_pylist(rows, schema=RATES_SCHEMA)


RATES_SCHEMA = pa.schema(
    [(n, pa.string()) for n in ("part", "language", "script")]
    + [("after", pa.int64()), ("norm", pa.string()), ("unit", pa.string())]
    + [(n, pa.float64()) for n in ("rate", "low", "high", "wer", "cer")]
    + [(n, pa.int64()) for n in ("utterances", "groups", "incomplete_resamples")]
)


def choose_exits(dev: Rates, test: Rates) -> pa.Table:
    """For every language of both parts, and for all: the exit with the fewest errors on `dev`, what it does on `test`.

    Of exits that tie, the deepest is taken, then the one with the LayerNorm: the nearest to the original.
    Columns as in CHOICES_SCHEMA. rate, original, difference: error rates of the exit and of the whole encoder (k = L
    with LayerNorm) as fractions, and the first minus the second. Their low and high ends are the 95 % percentile
    bootstrap over the test part's groups, null where there is a single group.
    """
    rows = []
    for scope in [*(s for s in test.scopes if s in dev.scopes), OVERALL]:
        errors = dev.rate(scope)
        best = int(np.flatnonzero(errors == errors.min())[-1])  # exits are sorted by rank
        row: dict[str, Any] = {"language": scope[0], "script": scope[1], "unit": test.units.get(scope, "both")}
        row |= {**asdict(test.exits[best]), "dev_rate": errors[best]}
        values = np.vstack([test.rate(scope), test.samples(scope)])[:, [best, -1]]  # the last exit is the whole encoder
        values = np.column_stack([values, values[:, 0] - values[:, 1]])
        low, high = percentile_interval(values[1:])
        for i, name in enumerate(_FIGURES):
            row |= {name: values[0, i], f"{name}_low": known(low[i]), f"{name}_high": known(high[i])}
        row["utterances"], row["groups"] = test.utterances(scope)
        rows.append(row)
    return pa.Table.from_pylist(rows, schema=CHOICES_SCHEMA)


_FIGURES = ("rate", "original", "difference")
CHOICES_SCHEMA = pa.schema(
    [(n, pa.string()) for n in ("language", "script", "unit")]
    + [("after", pa.int64()), ("norm", pa.string()), ("dev_rate", pa.float64())]
    + [(f"{n}{e}", pa.float64()) for n in _FIGURES for e in ("", "_low", "_high")]
    + [(n, pa.int64()) for n in ("utterances", "groups")]
)
