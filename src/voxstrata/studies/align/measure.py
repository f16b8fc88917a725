"""Controlled retrieval: what is left of finding translations once sound, duration, speaker and language cannot help."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from voxstrata.base.choices import chosen
from voxstrata.base.errors import InputError, UsageError
from voxstrata.encoders.outputs import depth_order
from voxstrata.evaluation import Evaluation, MeanEvaluation, Resamples
from voxstrata.evaluation.bootstrap import BLOCK, LEVEL, RESAMPLES
from voxstrata.evaluation.logistic import METHOD, fit_logistic
from voxstrata.evaluation.metrics import MEAN
from voxstrata.retrieval.kernels import choose
from voxstrata.retrieval.kernels.base import Kernel
from voxstrata.store import EmbeddingStore
from voxstrata.studies.align.inputs import CENTRED, RAW, SMALLEST_CELL, Sounds, Spoken, States, participants
from voxstrata.studies.align.pools import (
    ALL,
    CANDIDATES,
    CLOSEST,
    CONTROLS,
    MATCHED,
    MISMATCHES,
    RANDOM,
    SMALLEST_POOL,
    UNLIKE,
    Asked,
    Design,
    ahead,
    ask,
    make_design,
)
from voxstrata.studies.align.pools import DURATIONS as DURATION_STRATA
from voxstrata.studies.phonetics.pairs import NEIGHBOURS, non_translations, quantiles

SIMILARITIES = ("seqsim_f1", "pooled_cosine")
CLOSENESS = ("like-length", "sentence", "word")  # by what a pair is unlike, and non-translations are closest
PHONEMES, DURATIONS = "phonemes", "durations"  # retrievers that see nothing else
RECALL, CHANGE = "recall@1", "recall@1_change"
FIT = "fit"  # in the place of the control: the logistic fit over all directions
SLOPE, AT_ZERO, DISCRIMINATION = "log_odds_per_sd", "recall@1_if_unlike", "discrimination"
GIVEN_DURATION = "log_odds_per_sd_given_duration"
KEY = "voxstrata_align"  # of the settings, in the table's metadata
REFERENCE = {UNLIKE: MATCHED, CLOSEST: RANDOM}  # what a control's change is measured from
QUANTILE, CLOSEST_COUNT = 0.5, 9

SCHEMA = pa.schema(
    [(name, pa.string()) for name in ("system", "states", "control", "source", "target", "metric")]
    + [(name, pa.float64()) for name in ("value", "low", "high", "chance")]
    + [(name, pa.int64()) for name in ("queries", "candidates", "candidates_max")]
)

Float64 = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Heard:
    """One direction: groups (N,) of its pairs, design of its pools, scores of the retrievers that see no states.

    closeness (N,): how much closer the pair sounds than its source's non-translations do on average, in their standard
    deviations; NaN where these do not differ.
    """

    source: str
    target: str
    groups: npt.NDArray[np.str_]
    design: Design
    closeness: Float64
    baselines: dict[str, Float64]


@dataclass
class Direction:
    """What one system reached in one direction: figures by control, and hits in the whole pool (N,)."""

    heard: Heard
    figures: dict[str, Evaluation]
    hits: npt.NDArray[np.bool_]


def align(
    store: EmbeddingStore,
    phonetics: str,
    outputs: Sequence[str] | None = None,
    languages: Sequence[str] | None = None,
    similarity: str = "seqsim_f1",
    by: str = "like-length",
    quantile: float = QUANTILE,
    closest: int = CLOSEST_COUNT,
    bootstrap: int = RESAMPLES,
    kernel: Kernel | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> pa.Table:
    """Recall@1 of every output under every control, for every ordered pair of languages and their mean.

    phonetics: folder that `voxstrata phonetics` wrote. Pairs of languages take part with the sentences both hold, one
    recording of each (see `participants`): N queries and N candidates, one of them right.
    by: what decides how alike a pair sounds: its distance beside those of the NEIGHBOURS non-translations nearest in
    length ("like-length"), of all non-translations ("sentence"), or the same by the closest pair of words ("word").
    "sentence" and "word" also pick pairs by their durations, as the retriever "durations" then shows.
    quantile: a pair is unlike when at least this share of the source's non-translations sounds closer. closest: how
    many closest-sounding non-translations stand in a pool (fewer where fewer are there).

    Returns one row per (system, states, control, source, target, metric), columns as in SCHEMA; a figure that does not
    exist is null. system: outputs by depth, then "phonemes" and "durations". states: "raw" or, for outputs, "means
    removed". control: see `pools.ask`, and "fit". metric: recall@1; recall@1_change, paired, of unlike from matched, of
    closest from random, and under "all" of means removed from raw; for "fit" log_odds_per_sd,
    log_odds_per_sd_given_duration, recall@1_if_unlike, discrimination (see `_fit`). Rows with source and target "mean"
    are the unweighted mean over directions. low, high: 95 % bootstrap intervals over groups.

    Raises UsageError for impossible settings, InputError where store and phonetics do not fit together, or where no
    pair of languages shares two sentences.
    """
    outputs = depth_order(chosen("output", outputs, store.outputs))
    _check(store, similarity, by, quantile, closest, bootstrap)
    sounds = Sounds(phonetics)
    spoken, left_out = participants(store, sounds, languages)
    kernel = kernel or choose()
    couples = list(_couples(spoken, sounds, by, quantile, closest))
    if not couples:
        raise InputError(
            "no two languages share two sentences with IPA: a pool of one utterance cannot be searched; "
            "add sentences, or give translations the same group"
        )
    groups = sorted({str(group) for x, *_ in couples for group in x.side.groups})
    resamples = Resamples(groups, bootstrap) if bootstrap else None
    rows: list[dict[str, object]] = []
    total = len(outputs) * len(couples)
    for n, output in enumerate(outputs):
        found: dict[str, list[Direction]] = {RAW: [], CENTRED: []}
        states = States(store, output, similarity, kernel)
        centres = {s.side.language: states.centres(s) for s in spoken}
        for m, (x, y, there, back) in enumerate(couples, start=1):
            a, b = (states.load(side, centres[side.side.language]) for side in (x, y))
            for kind, directions in found.items():
                scores = states.compare(a[kind], b[kind])
                directions += [_direction(scores, there, resamples), _direction(scores.T, back, resamples)]
            progress(n * len(couples) + m, total)
        for raw, centred in zip(found[RAW], found[CENTRED], strict=True):
            centred.figures[ALL] = _with_change(centred.figures[ALL], raw.figures[ALL])
        for kind, directions in found.items():
            rows += _rows(output, kind, directions, resamples)
    for name in (PHONEMES, DURATIONS):
        heard = [direction for _, _, *both in couples for direction in both]
        rows += _rows(name, RAW, [_direction(h.baselines[name], h, resamples) for h in heard], resamples)
    settings = {
        "similarity": similarity,
        "kernel": kernel.name if similarity == "seqsim_f1" else None,
        "by": by,
        "unlike_quantile": quantile,
        "closest": closest,
        "strata": {"durations": DURATION_STRATA, "mismatches": MISMATCHES, "candidates": CANDIDATES},
        "smallest_pool": SMALLEST_POOL,
        "neighbours_in_length": NEIGHBOURS,
        "smallest_cell": SMALLEST_CELL,
        "cells_are_languages": all(len(set(s.cells.tolist())) == 1 for s in spoken),
        "fit": METHOD,
        "bootstrap_resamples": bootstrap,
        "bootstrap_groups": len(groups),
        "bootstrap_level": LEVEL,
        "left_out": left_out,
        "phonetics": sounds.settings,
    }
    table = pa.Table.from_pylist(rows, schema=SCHEMA)
    return table.replace_schema_metadata({KEY: json.dumps(settings, ensure_ascii=False)})


def _check(store: EmbeddingStore, similarity: str, by: str, quantile: float, closest: int, bootstrap: int) -> None:
    for what, value, known in (("similarity", similarity, SIMILARITIES), ("closeness", by, CLOSENESS)):
        if value not in known:
            raise UsageError(f"unknown {what} {value!r}; known: {', '.join(known)}")
    if not 0 <= quantile <= 1:
        raise UsageError(f"quantile is {quantile}; give a share of 0 to 1")
    if closest < 1:
        raise UsageError(f"closest is {closest}; give at least 1 non-translation for each pool")
    if bootstrap < 0:
        raise UsageError(f"bootstrap is {bootstrap}; give a number of resamples, or 0 for no intervals")
    if similarity == "seqsim_f1" and not store.has_frames:
        raise UsageError(
            "seqsim_f1 compares frames, and this store holds pooled states only; "
            "ask for pooled_cosine, or extract again with frames"
        )


def _couples(
    spoken: Sequence[Spoken], sounds: Sounds, by: str, quantile: float, closest: int
) -> Iterator[tuple[Spoken, Spoken, Heard, Heard]]:
    """Pairs of languages that share at least two sentences: these alone, in the same order, and both directions."""
    # Centred over all of the language that takes part, so no direction's labels are used.
    logs = {s.side.language: float(np.log(s.seconds).mean()) for s in spoken}
    for p, q in combinations(spoken, 2):
        _, i, j = np.intersect1d(p.side.groups, q.side.groups, assume_unique=True, return_indices=True)
        if len(i) < 2:
            continue
        x, y = p.take(i), q.take(j)
        distances = sounds.distances(x.side, y.side, "word_distance" if by == "word" else "distance")
        phonemes = distances if by != "word" else sounds.distances(x.side, y.side, "distance")
        x_logs, y_logs = np.log(x.seconds) - logs[p.side.language], np.log(y.seconds) - logs[q.side.language]
        durations = -np.abs(x_logs[:, None] - y_logs)
        both = []
        for a, b, a_logs, b_logs, d, sound, length in (
            (x, y, x_logs, y_logs, distances, phonemes, durations),
            (y, x, y_logs, x_logs, distances.T, phonemes.T, durations.T),
        ):
            lengths = b.segments if by == "like-length" else None
            same = np.eye(len(d), dtype=bool)
            shares = np.diag(quantiles(d, same, lengths))
            both.append(
                Heard(
                    a.side.language,
                    b.side.language,
                    a.side.groups,
                    make_design(d, shares, a_logs, b_logs, quantile, closest),
                    _closeness(d, lengths),
                    {PHONEMES: -sound, DURATIONS: length},
                )
            )
        yield x, y, both[0], both[1]


def _closeness(distances: Float64, lengths: npt.NDArray[np.int64] | None) -> Float64:
    """(N,): (mean distance of the non-translations - the translation's) / their standard deviation; NaN for 0 / 0."""
    found = np.full(len(distances), np.nan)
    same = np.eye(len(distances), dtype=bool)
    for i in range(len(distances)):
        others = distances[i, non_translations(distances, same, i, i, lengths)]
        if len(others) and not np.isnan(distances[i, i]) and others.std() > 0:
            found[i] = (others.mean() - distances[i, i]) / others.std()
    return found


def _direction(scores: npt.NDArray[np.floating], heard: Heard, resamples: Resamples | None) -> Direction:
    if np.isnan(scores).any():
        raise InputError(f"{heard.source} to {heard.target}: scores hold NaN; find the utterance without finite states")
    asked = ask(ahead(scores), heard.design)
    figures = {control: _evaluate(asked[control], heard.groups, resamples) for control in CONTROLS}
    for control, reference in REFERENCE.items():
        figures[control] = _with_change(figures[control], figures[reference])
    return Direction(heard, figures, asked["all"].hits == 1)


def _evaluate(asked: Asked, groups: npt.NDArray[np.str_], resamples: Resamples | None) -> Evaluation:
    """Weighted mean of the hits, with resamples of the groups; nothing where the pool holds fewer than two."""
    samples = np.empty((0, 1))
    if asked.pool < 2:
        count = 0 if resamples is None else len(resamples)
        return Evaluation(
            (RECALL,), np.array([math.nan]), np.array([math.nan]), np.full((count, 1), math.nan), 0, 0, 0, 0
        )
    if resamples is not None:
        sums = resamples.means(np.stack([asked.hits * asked.weights, asked.weights], axis=1), groups[asked.queries])
        samples = sums[:, :1] / sums[:, 1:]
    value = np.array([np.average(asked.hits, weights=asked.weights)])
    n = len(asked.queries)
    return Evaluation((RECALL,), value, np.array([1 / asked.pool]), samples, n, 0, asked.pool, asked.pool)


def _with_change(found: Evaluation, reference: Evaluation) -> Evaluation:
    return replace(
        found,
        metrics=(RECALL, CHANGE),
        values=np.concatenate([found.values, found.values - reference.values]),
        chance=np.append(found.chance, math.nan),
        samples=np.concatenate([found.samples, found.samples - reference.samples], axis=1),
    )


def _rows(
    system: str, states: str, directions: Sequence[Direction], resamples: Resamples | None
) -> list[dict[str, object]]:
    """Rows of one system: each direction, their mean, and the fit."""
    rows: list[dict[str, object]] = []
    for control in CONTROLS:
        mean = MeanEvaluation()
        for d in directions:
            found = d.figures[control]
            mean.add(found)
            rows += _estimates((system, states, control, d.heard.source, d.heard.target), found)
        rows += _estimates((system, states, control, MEAN, MEAN), mean.result())
    return rows + _estimates((system, states, FIT, MEAN, MEAN), _fit(directions, resamples))


def _fit(directions: Sequence[Direction], resamples: Resamples | None) -> Evaluation:
    """Logistic fit of the hits in whole pools on closeness, an intercept for each direction.

    log_odds_per_sd: how much the log-odds of a hit grow per standard deviation of closeness. recall@1_if_unlike: fitted
    recall where every pair sounded like the mean non-translation, mean over directions. discrimination: Tjur's
    coefficient, above what the directions' different recall explains: 0 nothing, at most 1 less that.
    log_odds_per_sd_given_duration: the first, in a fit that also holds how alike the pair's durations are.
    Pairs without closeness take no part, and directions of hits or misses alone none in slopes and discrimination.
    """
    metrics = (SLOPE, GIVEN_DURATION, AT_ZERO, DISCRIMINATION)
    hits = np.concatenate([d.hits for d in directions])
    sound = np.concatenate([d.heard.closeness for d in directions])
    duration = np.concatenate([np.diag(d.heard.baselines[DURATIONS]) for d in directions])
    groups = np.concatenate([d.heard.groups for d in directions])
    strata = np.repeat(np.arange(len(directions)), [len(d.hits) for d in directions])
    known = ~np.isnan(sound)
    hits, groups, strata = hits[known], groups[known], strata[known]
    alone, both = sound[known, None], np.stack([sound, duration], axis=1)[known]
    nothing = np.full(len(metrics), math.nan)
    pools = [len(d.hits) for d in directions]
    if not len(hits):
        return Evaluation(metrics, nothing, nothing, np.empty((0, len(metrics))), 0, 0, min(pools), max(pools))
    weightings = [np.ones((1, len(hits)))]
    if resamples:
        step = max(1, BLOCK // both.size)
        parts = (slice(a, a + step) for a in range(0, len(resamples), step))
        weightings += [resamples.drawn(groups, part).astype(np.float64) for part in parts]
    rows = []
    for weights in weightings:
        one, two = (fit_logistic(hits, predictors, strata, weights) for predictors in (alone, both))
        rows.append(np.stack([one.slopes[:, 0], two.slopes[:, 0], one.at_zero, one.discrimination], axis=1))
    values = np.concatenate(rows)
    return Evaluation(metrics, values[0], nothing, values[1:], len(hits), 0, min(pools), max(pools))


def _estimates(names: tuple[str, str, str, str, str], found: Evaluation) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = []
    for metric, e in found.estimates.items():
        row: dict[str, object] = dict(zip(SCHEMA.names, (*names, metric), strict=False))
        row |= {name: None if math.isnan(v) else v for name, v in vars(e).items()}
        row |= {"queries": found.queries, "candidates": found.candidates, "candidates_max": found.candidates_max}
        rows.append(row)
    return rows
