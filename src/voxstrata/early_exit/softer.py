"""Softer exits of one model on one corpus: fitted once, kept beside the sweep's result, and how well they predict.

What is fitted, and why, is in `fitting`. All blocks are fitted, whichever exits are asked for, so that a sweep over
others goes on with the same fits.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from voxstrata.base.errors import InputError
from voxstrata.base.figures import Figure
from voxstrata.base.finding import Finding, SmallCurve
from voxstrata.base.plain import counted
from voxstrata.base.result import Result
from voxstrata.base.tables import TextTable, with_interval
from voxstrata.early_exit.exits import DEV, MEAN_OF_LANGUAGES, TEST, EarlyExit, exit_name
from voxstrata.early_exit.figures import NORM_NAMES, by_language, draw_by_norm, intervals
from voxstrata.early_exit.fitting import FOLDS, Fit, Fits, Fitter, LastNorm, fits_hash
from voxstrata.early_exit.language_means import Floats, LanguageMeans, interval

if TYPE_CHECKING:
    from matplotlib.axes import Axes

StatesByLayer = Mapping[int, npt.NDArray[np.floating[Any]]]  # of one recording: layer to (frames of the speech, d)


class Place(NamedTuple):
    """Where a recording belongs; part: DEV or TEST."""

    language: str
    group: str
    part: str


@dataclass(frozen=True, eq=False, repr=False)
class SofterExits(Result):
    """What was fitted, and how much of what the decoder is used to it gives on recordings that it was not fitted on.

    table: R² on the test part, a row per language and exit, and for the mean over languages (R2_SCHEMA). fitted: a row
    per layer, arrays as lists (`Fit`).

    R² = 1 - Σ‖LN(x_L) - y‖² / Σ‖LN(x_L) - m‖² over the frames of speech, y what the exit gives the decoder, m the mean
    of LN(x_L) over the development part: what one would say knowing nothing of the frame is 0. Below it lies what has
    the right size and the wrong shape: LayerNorms give frames of that size, so unrelated frames come to about -1.
    r2_layer: the same of x_L itself and the map, before the LayerNorm.
    """

    table: pa.Table
    fitted: pa.Table

    command = "early-exit sweep"
    question = "How much of the last layer does an exit give?"
    files: ClassVar = {"table": "fits.parquet", "fitted": "fitted.parquet"}
    key = "voxstrata"
    markdown = "fits.md"
    captions: ClassVar = {"fits": "How much of the last layer an exit gives, test part; 0 is knowing nothing"}
    folder: ClassVar = "fits"  # within the sweep's

    @property
    def store(self) -> None:
        """None: a sweep names its store itself."""

    @property
    def title(self) -> str:
        return f"Softer early exits of {self.settings['checkpoint']}: what was fitted on the development part"

    @cached_property
    def fits(self) -> dict[int, Fit]:
        """By layer. Raises InputError where they are not those that were fitted."""
        found = {}
        for row in self.fitted.to_pylist():
            values = {name: np.array(row[name], np.float32) for name in FITTED}
            values["matrix"] = values["matrix"].reshape(len(values["bias"]), -1)
            values["mean"] = values["mean"].reshape(2, -1)
            found[int(row["after"])] = Fit(**values)
        if fits_hash(found) != self.settings["fits_sha256"]:
            raise InputError(f"{self.files['fitted']}: not what was fitted; run the sweep with --overwrite")
        return found

    def finding(self) -> Finding | None:
        """Of the exit that gives most, over all languages."""
        rows = [r for r in self.table.to_pylist() if r["language"] == MEAN_OF_LANGUAGES]
        if not rows:
            return None
        best = max(rows, key=lambda r: float(r["r2"]))
        plain = next(r["r2"] for r in rows if (r["after"], r["norm"]) == (best["after"], "with"))
        answer = (
            f"Exit {exit_name(best['after'], best['norm'])} gives most: R² is "
            f"{with_interval(best, ['r2', 'low', 'high'], '.2f')}, with the model's own LayerNorm {plain:.2f}. The "
            "whole encoder has 1, knowing nothing of a frame 0."
        )
        held = [r for r in rows if r["norm"] == best["norm"]]
        value, low, high = ([r[name] for r in held] for name in ("r2", "low", "high"))
        up, names = f"R² by block k, {NORM_NAMES[best['norm']]}", [str(r["after"]) for r in held]
        return Finding(answer, SmallCurve(up, names, value, low, high, best=held.index(best), top=1))

    def tables(self) -> list[TextTable]:
        ridges = dict(zip(self.fitted["after"].to_pylist(), self.fitted["ridge"].to_pylist(), strict=True))
        rows, lowest = dict[str, list[list[Any]]](), dict[str, tuple[float, str]]()
        for r in self.table.to_pylist():  # the mean over languages comes last
            name = exit_name(r["after"], r["norm"])
            lowest[name] = min(lowest.get(name, (r["r2"], r["language"])), (r["r2"], r["language"]))
            clips = f"{r['recordings']} ({r['groups']})"
            figures = [with_interval(r, ["r2", "low", "high"], ".2f"), r["r2_layer"] and f"{r['r2_layer']:.2f}"]
            ridge = ridges[r["after"]] if r["norm"] == "mapped" else None
            rows.setdefault(r["language"], []).append([name, clips, *figures, ridge and f"{ridge:g}"])
        header = ["k", "clips (groups)", "R²", "of layer_L", "λ"]
        means = [[*row[:3], "{1} {0:.2f}".format(*lowest[row[0]]), *row[3:]] for row in rows[MEAN_OF_LANGUAGES]]
        every = [[language, *row] for language, held in rows.items() for row in held]
        fitted = self.settings["fitted_on"]
        note = (
            "R² of what the decoder gets, to what the whole encoder gives it (LayerNorm of layer_L), over the frames "
            "of speech of the test part, mean over languages; lowest: of the languages. 1 is the same, 0 no better "
            "than the mean of the development part, -1 about what unrelated frames give. Fitted on "
            f"{counted(fitted['recordings'], 'recording')} of the development part "
            f"({counted(fitted['frames'], 'frame')}), no gradient: 'refitted' gives each channel its usual mean and "
            "deviation, 'mapped' is an affine map from layer_k to layer_L by least squares (ridge λ), then the "
            "LayerNorm. In brackets 95 % bootstrap intervals over groups. A map that few frames were fitted on gives "
            "little, whatever the layer knows."
        )
        title = "How much of the last layer an exit gives"
        shown = TextTable(title, [*header[:3], "lowest", *header[3:]], means, note)
        return [shown, TextTable(f"{title}, by language", ["language", *header], every)]

    def figures(self) -> dict[str, Figure]:
        """R² by k, a panel for each language, with intervals."""
        rows = [{**r, "script": "", "utterances": r["recordings"]} for r in self.table.to_pylist()]

        def draw(axes: Axes, mine: Sequence[Mapping[str, Any]]) -> None:
            draw_by_norm(axes, rows, mine, ("r2", "low", "high"), scale=1)
            axes.axhline(0, color="black", lw=0.8, ls=":", label="chance: knowing nothing of the frame")
            axes.set_ylim(max(-2.5, min(-1.05, *(1.05 * r["r2"] for r in rows))), 1.05)  # what lies below says no more
            axes.set_ylabel("R²: up is better", fontsize=9)

        whose = f"{self.settings['checkpoint']} on {self.settings['corpus']}"
        title = f"How much of the last layer an exit gives: {whose}, test part{intervals(rows, 'low')}"
        return {"fits": by_language(rows, draw, title)}


R2_SCHEMA = pa.schema(
    [("language", pa.string()), ("after", pa.int64()), ("norm", pa.string())]
    + [(n, pa.float64()) for n in ("r2", "low", "high", "r2_layer")]
    + [(n, pa.int64()) for n in ("recordings", "groups", "frames")]
)
FITTED = tuple(field.name for field in fields(Fit))
FITTED_SCHEMA = pa.schema(
    [("after", pa.int64())] + [(n, pa.float32() if n == "ridge" else pa.list_(pa.float32())) for n in FITTED]
)


def fit_softer(
    states: Callable[[Sequence[int]], Iterator[tuple[int, StatesByLayer]]], rows: Sequence[Place],
    norm: LastNorm, layers: int, settings: Mapping[str, Any], resamples: int, seed: int,
) -> SofterExits:  # fmt: skip
    """Fit on the development part, then predict the test part.

    states: of some rows, each with its number; those that cannot be had are left out. rows: all of the corpus. norm:
    the encoder's last, of `layers` blocks. settings: what decides the fits. Raises InputError where a part has nothing.
    """
    dev, test = ([i for i, row in enumerate(rows) if row.part == name] for name in (DEV, TEST))
    halves = {group: n % FOLDS for n, group in enumerate(dict.fromkeys(rows[i].group for i in dev))}
    fitter, on = Fitter(range(layers), layers, len(norm.scale)), dict.fromkeys(("recordings", "frames"), 0)
    used = set()
    for i, held in states(dev):
        half = halves[rows[i].group]
        fitter.add(held, half)
        used.add(half)
        on["recordings"] += 1
        on["frames"] += len(held[layers])
    if len(used) < FOLDS:
        raise InputError("softer exits are fitted on at least two groups of the development part; give more recordings")
    fits = fitter.fit(norm)
    table = r2_table(((i, _missed(held, fits, norm, layers)) for i, held in states(test)), rows, resamples, seed)
    note = {**settings, "fits_sha256": fits_hash(fits), "fitted_on": on}
    table = table.replace_schema_metadata({SofterExits.key: json.dumps(note, ensure_ascii=False)})
    fitted = [{"after": k, **{n: getattr(fit, n).ravel().tolist() for n in FITTED}, "ridge": float(fit.ridge)}
              for k, fit in fits.items()]  # fmt: skip
    return SofterExits(table, pa.Table.from_pylist(fitted, schema=FITTED_SCHEMA))


def _missed(states: StatesByLayer, fits: Fits, norm: LastNorm, layers: int) -> dict[tuple[int, str], tuple[float, ...]]:
    """By layer and norm: squares missed of LN(x_L), squares about the mean, the same two of x_L, and frames."""
    last = states[layers].astype(np.float64)
    usual, found = norm(last), dict[tuple[int, str], tuple[float, ...]]()
    for k, fit in fits.items():
        mapped = fit.mapped(states[k])
        about = float(((usual - fit.mean[1]) ** 2).sum())
        of_last = float(((last - mapped) ** 2).sum()), float(((last - fit.mean[0]) ** 2).sum())
        for name, given in (("mapped", norm(mapped)), ("refitted", fit.refitted(states[k])), ("with", norm(states[k]))):
            found[k, name] = float(((usual - given) ** 2).sum()), about, *of_last, float(len(last))
    return found


def r2_table(
    missed: Iterable[tuple[int, Mapping[tuple[int, str], tuple[float, ...]]]], rows: Sequence[Place],
    resamples: int, seed: int,
) -> pa.Table:  # fmt: skip
    """R2_SCHEMA, of the sums of each recording."""
    held = list(missed)
    if not held:
        raise InputError("no recording of the test part can be read, so nothing says how well softer exits predict")
    languages, groups = [rows[i].language for i, _ in held], [rows[i].group for i, _ in held]
    draws = LanguageMeans(languages, groups, resamples, seed)
    found: list[dict[str, Any]] = []
    for k, name in held[0][1]:
        sums = np.array([of[k, name] for _, of in held])
        r2 = draws.measure(sums[:, :2], languages, groups, _explained)
        of_last = draws.measure(sums[:, 2:4], languages, groups, _explained)
        for language, (value, samples) in r2.items():
            mine = [i for i, n in enumerate(languages) if language in (n, MEAN_OF_LANGUAGES)]
            low, high = interval(samples)
            found.append(
                {"language": language, "after": k, "norm": name, "r2": value, "low": low, "high": high,
                 "r2_layer": of_last[language][0] if name == "mapped" else None, "recordings": len(mine),
                 "groups": len({groups[i] for i in mine}), "frames": int(sums[mine, 4].sum())}
            )  # fmt: skip
    order = {name: n for n, name in enumerate([*sorted({*languages}), MEAN_OF_LANGUAGES])}
    found.sort(key=lambda r: (order[r["language"]], EarlyExit(r["after"], r["norm"]).rank))
    return pa.Table.from_pylist(found, schema=R2_SCHEMA)


def _explained(means: Floats) -> Floats:
    return np.asarray(1 - means[..., 0] / means[..., 1])
