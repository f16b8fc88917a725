"""Mining: pairs of utterances that stand out from their neighbours on both sides, found in lists of the nearest.

As miners of parallel text and speech do it: Artetxe and Schwenk 2019 (arXiv 1811.01136), whose code is in LASER; CSLS
of Conneau et al. 2018 (arXiv 1710.04087). A list of the nearest of every utterance is all it takes, so no matrix of all
pairs is ever held.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from voxstrata.base.errors import InputError, UsageError
from voxstrata.base.plain import counted
from voxstrata.retrieval.candidates import nearest_lists
from voxstrata.retrieval.finished import FoundSimilarity
from voxstrata.retrieval.folder import BACKWARD, FORWARD
from voxstrata.retrieval.selection import Selection

PLAIN_SCORE = "raw"  # the similarity itself
MINING_SCORES = {"ratio_margin": 4, "csls": 10, PLAIN_SCORE: 4}  # with the number of neighbours in the papers
STRATEGIES = ("intersection", "max")

_Float64 = NDArray[np.float64]
_Int32 = NDArray[np.int32]


@dataclass(frozen=True, eq=False)
class NearestLists:
    """The nearest of every utterance on the other side, best first.

    forward: int32 (x, k), positions in y, -1 where there are fewer; similarity: float64 (x, k), NaN there. back,
    back_similarity: (y, k), the same of y in x; of a set compared with itself those of x again, and `itself` is true.
    """

    forward: _Int32
    similarity: _Float64
    back: _Int32
    back_similarity: _Float64
    itself: bool

    def first(self, k: int) -> "NearestLists":
        """The lists cut to k."""
        if k > self.forward.shape[1]:
            raise UsageError(
                f"{counted(k, 'neighbour')} of lists of {self.forward.shape[1]}; ask for fewer, or make longer lists"
            )
        back, similarity = self.back[:, :k], self.back_similarity[:, :k]
        return NearestLists(self.forward[:, :k], self.similarity[:, :k], back, similarity, self.itself)


@dataclass(frozen=True, eq=False)
class MinedPositions:
    """Pairs, the highest score first. x, y: int64 (n,), positions; of a set with itself x < y. All others (n,).

    score: float64. similarity: float64, the one that the score is made of. rank: int64, from 1, of y among the nearest
    of x, back_rank of x among those of y; 0 where it is not on that list. mean, back_mean: float64, of the k nearest of
    x and of y.
    """

    x: NDArray[np.int64]
    y: NDArray[np.int64]
    score: _Float64
    similarity: _Float64
    rank: NDArray[np.int64]
    back_rank: NDArray[np.int64]
    mean: _Float64
    back_mean: _Float64


def lists_of_pooled(x: Selection, y: Selection | None, output: str, k: int) -> NearestLists:
    """The k nearest by cosine of mean-pooled states, exactly. Pooled states of both sides are held in memory.

    Raises InputError naming an utterance whose mean has no direction.
    """
    forward, backward = nearest_lists(x, y, output, k)
    there = _filled(forward.table(FORWARD), len(x), k)
    return NearestLists(*there, *(there if y is None else _filled(backward.table(BACKWARD), len(y), k)), y is None)


def lists_of_similarity(found: FoundSimilarity) -> NearestLists:
    """The lists that `similarity` left, by SeqSim's F1."""
    top, k = found.top, found.plan["top"]
    sides = []
    for direction, asked, pool in ((FORWARD, found.x, found.y), (BACKWARD, found.y, found.x)):
        part = top.filter(pc.equal(top["direction"], direction))
        place = {
            name: pc.index_in(part[name], value_set=ids["id"]) for name, ids in (("query", asked), ("candidate", pool))
        }
        sides.append(_filled(pa.table({**place, "f1": part["f1"], "rank": part["rank"]}), len(asked), k))
    return NearestLists(*sides[0], *(sides[0] if found.itself else sides[1]), found.itself)


def _filled(part: pa.Table, queries: int, k: int) -> tuple[_Int32, _Float64]:
    """A table of lists, by query and best first, as arrays (queries, k): positions, and similarities."""
    query = np.asarray(part["query"], np.int64)
    starts = np.flatnonzero(np.diff(query, prepend=-1))
    rank = np.arange(len(query)) - np.repeat(starts, np.diff(starts, append=len(query)))
    positions, scores = np.full((queries, k), -1, np.int32), np.full((queries, k), np.nan)
    positions[query, rank] = np.asarray(part["candidate"])
    scores[query, rank] = np.asarray(part["f1"])
    return positions, scores


def mine_lists(lists: NearestLists, score: str, k: int, strategy: str = STRATEGIES[0]) -> MinedPositions:
    """Pairs of which either is the best of the other ("intersection"), or that no better pair has taken ("max").

    With s the similarity and r(x) the mean of those of x's k nearest, r(y) of y's: ratio_margin is
    s / ((r(x) + r(y)) / 2), csls 2 s - r(x) - r(y), raw s. The best of an utterance is the one with the highest score
    among its k nearest. "max": the best pairs of both directions together, from the highest score down, each utterance
    once. An utterance is in one pair at the most. Ties: the nearer, then the lower position.

    Raises UsageError where the lists are shorter than k, InputError where a ratio has no meaning because r(x) + r(y) is
    not positive.
    """
    lists = lists.first(k)
    with np.errstate(invalid="ignore"):
        mean, back_mean = (np.nanmean(s, axis=1) for s in (lists.similarity, lists.back_similarity))
    there = _scores(score, lists.similarity, mean[:, None] + back_mean[lists.forward], lists.forward)
    back = _scores(score, lists.back_similarity, back_mean[:, None] + mean[lists.back], lists.back)
    best, back_best = _best(there, lists.forward), _best(back, lists.back)
    x = np.arange(len(best))
    if strategy == "intersection":
        mutual = back_best[best] == x
        pairs = np.stack([x[mutual], best[mutual]], axis=1)
    else:
        pairs = np.concatenate([np.stack([x, best], 1), np.stack([back_best, np.arange(len(back_best))], 1)])
    if lists.itself:
        pairs = np.sort(pairs, axis=1)
    pairs = np.unique(pairs, axis=0)
    found = _described(pairs, lists, mean, back_mean, score)
    order = np.argsort(-found.score, kind="stable")  # of equal scores the lower position stays ahead
    if strategy == "max":
        order = order[_free(found.x[order], found.y[order] + (0 if lists.itself else len(mean)))]
    return MinedPositions(*(column[order] for column in vars(found).values()))


def _scores(score: str, similarity: _Float64, neighbours: _Float64, positions: _Int32) -> _Float64:
    """Scores of lists, (n, k), -inf where they end. neighbours: r(x) + r(y)."""
    held = positions >= 0
    if score == "ratio_margin":
        if (neighbours[held] <= 0).any():
            raise InputError("the ratio margin needs neighbours of positive mean similarity; use csls")
        found = similarity / (neighbours / 2)
    else:
        found = 2 * similarity - neighbours if score == "csls" else similarity
    return np.where(held, found, -np.inf)


def _best(scores: _Float64, positions: _Int32) -> NDArray[np.int64]:
    return np.take_along_axis(positions, scores.argmax(axis=1)[:, None], axis=1)[:, 0].astype(np.int64)


def _described(
    pairs: NDArray[np.int64], lists: NearestLists, mean: _Float64, back_mean: _Float64, score: str
) -> MinedPositions:
    x, y = pairs[:, 0], pairs[:, 1]
    at, back_at = lists.forward[x] == y[:, None], lists.back[y] == x[:, None]
    rank, back_rank = (np.where(a.any(axis=1), a.argmax(axis=1) + 1, 0) for a in (at, back_at))
    similarity = np.where(
        rank > 0, lists.similarity[x, rank - 1], lists.back_similarity[y, back_rank - 1]
    )  # the same on both lists
    scores = _scores(score, similarity[:, None], (mean[x] + back_mean[y])[:, None], np.zeros((len(x), 1), np.int32))
    return MinedPositions(x, y, scores[:, 0], similarity, rank, back_rank, mean[x], back_mean[y])


def _free(x: NDArray[np.int64], y: NDArray[np.int64]) -> NDArray[np.int64]:
    """Which pairs, taken in their order, have neither utterance in a pair taken before."""
    taken: set[int] = set()
    kept = []
    for n, (a, b) in enumerate(zip(x.tolist(), y.tolist(), strict=True)):
        if a not in taken and b not in taken:
            taken |= {a, b}
            kept.append(n)
    return np.array(kept, np.int64)


def group_codes(sides: Sequence[pa.ChunkedArray]) -> tuple[list[NDArray[np.int64]], list[str]]:
    """The group of every utterance of each side as a number, -1 where it has none; and the groups by number."""
    every = pc.unique(pa.chunked_array([chunk for side in sides for chunk in side.chunks], pa.string())).drop_null()
    names = every.take(pc.sort_indices(every))
    codes = [np.asarray(pc.fill_null(pc.index_in(side, value_set=names), -1), np.int64) for side in sides]
    return codes, names.to_pylist()
