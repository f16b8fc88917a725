"""Options of mining, and mined pairs held against the groups that are known."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from voxstrata.base.choices import chosen
from voxstrata.base.errors import InputError, UsageError
from voxstrata.base.tables import distinct, known
from voxstrata.evaluation.bootstrap import LEVEL, RESAMPLES, Resamples, percentile_interval
from voxstrata.evaluation.metrics import Float64
from voxstrata.retrieval.mining import MINING_SCORES, STRATEGIES, MinedPositions, group_codes
from voxstrata.studies.mine.result import ALL_GROUPS, DEV_GROUPS, TEST_GROUPS

BEST_THRESHOLD = "best"  # in the place of a threshold: the one of highest F1 on the development groups
POINTS = 50  # of a curve
_SEED = 0  # of the groups for development


@dataclass(frozen=True)
class MiningOptions:
    """How pairs are mined.

    score: "ratio_margin", "csls" or "raw", the similarity itself. neighbours: k of the score; by default that of its
    paper, 4 for the ratio margin and for raw, 10 for CSLS. strategy: "intersection", pairs of which either is the best
    of the other, or "max", the best pairs first, each utterance once.
    threshold: pairs with a lower score are left out; "best" for the one of highest F1 on half of the known groups, and
    figures of the other half. By default all are kept.
    bootstrap: resamples of the groups for the intervals; 0 for none.

    Raises UsageError for what none of these allows.
    """

    score: str = "ratio_margin"
    neighbours: int | None = None
    strategy: str = STRATEGIES[0]
    threshold: float | str | None = None
    bootstrap: int = RESAMPLES

    def __post_init__(self) -> None:
        chosen("score", [self.score], tuple(MINING_SCORES))
        chosen("strategy", [self.strategy], STRATEGIES)
        if isinstance(self.threshold, str) and self.threshold != BEST_THRESHOLD:
            raise UsageError(f"threshold {self.threshold!r}: give a number, or {BEST_THRESHOLD!r}")
        if self.k < 1:
            raise UsageError(f"{self.k} neighbours; give at least 1")
        if self.bootstrap < 0:
            raise UsageError(f"bootstrap is {self.bootstrap}; give a number of resamples, or 0 for no intervals")

    @property
    def k(self) -> int:
        """How many neighbours are looked at."""
        return MINING_SCORES[self.score] if self.neighbours is None else self.neighbours


@dataclass(frozen=True, eq=False)
class _Judged:
    """Those of the mined pairs whose groups are known, the highest score first, all (n,).

    score: float64. group: int64, of the first of each. right: bool, whether both have it.
    """

    score: Float64
    group: NDArray[np.int64]
    right: NDArray[np.bool_]

    @cached_property
    def last(self) -> NDArray[np.bool_]:
        """Where a run of equal scores ends: those are kept or left out together."""
        return np.append(self.score[1:] != self.score[:-1], True)[: len(self.score)]


class PairJudge:
    """Holds mined pairs against the groups of two sides, the same for every output.

    x, y: tables of id, language and group. about: what the figures stand on, as results store it.
    Raises UsageError where the best threshold is asked for and fewer than 4 groups are on both sides.
    """

    def __init__(self, x: pa.Table, y: pa.Table, itself: bool, options: MiningOptions) -> None:
        self._asked = options.threshold
        (self._x, self._y), names = group_codes([x["group"], y["group"]])
        first, second = (np.bincount(side[side >= 0], minlength=len(names)) for side in (self._x, self._y))
        right, every = (first * second).sum(), first.sum() * second.sum()
        self._possible = np.minimum(first, second)  # right pairs of each group, an utterance in one at the most
        if itself:
            right, every = (first * (first - 1)).sum(), first.sum() * (first.sum() - 1)
            self._possible = first // 2
        self._chance = float(right / every) if every else None
        shared = np.flatnonzero(self._possible)
        development = shared[:0]
        if options.threshold == BEST_THRESHOLD:
            if len(shared) < 4:
                raise UsageError(
                    f"the best threshold is chosen on known groups, and {len(shared)} are on both sides; give a "
                    "number, or groups to the corpus"
                )
            development = np.random.default_rng(_SEED).permutation(shared)[: len(shared) // 2]
        self._parts = {ALL_GROUPS: np.ones(len(names), bool)}
        if len(development):
            dev = np.isin(np.arange(len(names)), development)
            self._parts |= {DEV_GROUPS: dev, TEST_GROUPS: ~dev}
        resampled = options.bootstrap if len(shared) else 0
        self._resamples = Resamples(np.arange(len(names)), resampled) if resampled else None
        self.about: dict[str, Any] = {"one_set_with_itself": itself}
        for name, side in (("x", x), ("y", y)):
            languages = [language for language in distinct(side, "language") if language is not None]
            self.about |= {f"{name}_utterances": len(side), f"{name}_languages": languages}
        self.about |= {
            "shared_groups": len(shared),
            "development_groups": len(development),
            "development_seed": _SEED if len(development) else None,
            "bootstrap_resamples": resampled,
            "bootstrap_level": LEVEL,
        }

    def threshold(self, mined: MinedPositions) -> float:
        """The score from which on pairs are kept: as asked for, or of the highest F1 on the development groups; of
        equals the highest.

        Raises InputError where no threshold keeps a right pair there.
        """
        if self._asked != BEST_THRESHOLD:
            return -np.inf if self._asked is None else float(self._asked)
        judged, dev = self._judged(mined), self._parts[DEV_GROUPS]
        held = dev[judged.group]
        f1 = 2 * np.cumsum(judged.right & held) / (np.cumsum(held) + self._possible[dev].sum())
        if not f1[judged.last].any():
            raise InputError("no mined pair of the development groups is right, so no threshold is best; give a number")
        return float(judged.score[judged.last][np.argmax(f1[judged.last])])

    def curve(self, score: str, mined: MinedPositions, threshold: float = -np.inf) -> list[dict[str, Any]]:
        """Rows of one output and score, without the output: of the threshold, if there is one, then of others."""
        judged = self._judged(mined)
        ends = np.unique(np.ceil(len(mined.score) * np.arange(1, POINTS + 1) / POINTS).astype(np.int64))
        at = np.unique(mined.score[ends - 1])[::-1].tolist() if len(mined.score) else [np.inf]
        points = [(part, threshold, True) for part in self._parts] if threshold > -np.inf else []
        points += [(ALL_GROUPS, other, False) for other in at]
        precision = np.cumsum(judged.right) / np.arange(1, len(judged.right) + 1)
        run = np.searchsorted(np.flatnonzero(judged.last), np.arange(len(judged.last)))
        total = int(self._possible.sum())
        found = float(precision[judged.last][run][judged.right].sum()) / total if total else None
        about = {"score": score, "average_precision": found, "chance": self._chance if total else None}
        return [
            {**about, "chosen": given, "threshold": cut, "pairs": int(np.count_nonzero(mined.score >= cut)),
             **self._figures(judged, part, cut)}
            for part, cut, given in points
        ]  # fmt: skip

    def _judged(self, mined: MinedPositions) -> _Judged:
        a, b = self._x[mined.x], self._y[mined.y]
        both = (a >= 0) & (b >= 0)
        return _Judged(mined.score[both], a[both], (a == b)[both])

    def _figures(self, judged: _Judged, part: str, threshold: float) -> dict[str, Any]:
        """Of the pairs at and above a threshold, of the groups of one part."""
        groups = self._parts[part]
        held = (judged.score >= threshold) & groups[judged.group]
        right, every = (np.bincount(judged.group[h], minlength=len(groups)) for h in (held & judged.right, held))
        counts = np.stack([right, every, self._possible], axis=1)[groups].astype(np.float64)
        correct, total, possible = counts.sum(axis=0).astype(int).tolist()
        row: dict[str, Any] = {"part": part, "judged": total, "correct": correct, "possible": possible}
        if not possible:
            return row
        row |= {"precision": correct / total if total else None, "recall": correct / possible}
        row |= {"f1": 2 * correct / (total + possible)}
        if self._resamples is not None:
            sums = self._resamples.means(counts, np.flatnonzero(groups))
            below = sums[:, 1:]
            ratios = np.divide(sums[:, :1], below, out=np.full_like(below, np.nan), where=below > 0)
            for name, ends in zip(("precision", "recall"), percentile_interval(ratios).T, strict=True):
                if row[name] is not None:
                    row |= {f"{name}_low": known(float(ends[0])), f"{name}_high": known(float(ends[1]))}
        return row
