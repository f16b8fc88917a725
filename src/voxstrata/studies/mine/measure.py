"""Mined pairs of a store, or of what `similarity` left, and how many of them are translations."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from voxstrata.base.errors import InputError, UsageError
from voxstrata.base.plain import counted
from voxstrata.base.progress import SILENT, Progress, Reporter
from voxstrata.base.result import STORE
from voxstrata.encoders.outputs import OutputChoice, depth_order, select_outputs
from voxstrata.retrieval.finished import read_similarity, similarity_folders
from voxstrata.retrieval.mining import (
    PLAIN_SCORE,
    MinedPositions,
    NearestLists,
    lists_of_pooled,
    lists_of_similarity,
    mine_lists,
)
from voxstrata.retrieval.selection import Selection, refuse_incomparable, selection_of
from voxstrata.store.several import AnyStore
from voxstrata.studies.mine.judging import MiningOptions, PairJudge
from voxstrata.studies.mine.result import CURVE_SCHEMA, PAIRS_SCHEMA, MinedPairs

_DEFAULT = MiningOptions()


@dataclass(frozen=True, eq=False)
class _Source:
    """One output of two sets: what `mine_lists` takes, and who stands where (tables of id, language, group)."""

    output: str
    lists: NearestLists
    x: pa.Table
    y: pa.Table


def mine(
    x: Selection | AnyStore,
    y: Selection | AnyStore | None = None,
    outputs: OutputChoice = "all",
    options: MiningOptions = _DEFAULT,
    reporter: Reporter = SILENT,
) -> MinedPairs:
    """Mine x and y, or x with itself, by cosine of mean-pooled states, for every output asked for.

    x, y: parts of stores (`select`), or stores, by path or opened, which are taken whole.
    All pairs are compared, block by block, and no more is held than both sides' pooled states and the nearest of each.
    Raises UsageError for unknown outputs, sets that share an utterance and one utterance with itself, InputError for
    stores of different models or settings, for a pooled state without direction, and where a ratio margin has no
    meaning.
    """
    x, y = selection_of(x), None if y is None else selection_of(y)
    names = depth_order(select_outputs(outputs, x.store.outputs))
    for name in names:
        refuse_incomparable(x, y, name)
    if y is None and len(x) < 2:
        raise UsageError(f"{x.store.files.root}: one utterance has no other to be paired with; choose more")
    sides = [_labels(side) for side in (x, x if y is None else y)]

    def sources() -> Iterator[_Source]:
        for output in names:
            yield _Source(output, lists_of_pooled(x, y, output, options.k), *sides)

    about = {"similarity": "pooled_cosine", "weights_sha256": x.store.model.weights_sha256, "store": x.store.name}
    found = _mined(sources(), len(names), options, about, reporter)
    return _with_about(found, {STORE: json.dumps(x.store.about)})


def mine_similarity(
    folders: str | Path | Sequence[str | Path], options: MiningOptions = _DEFAULT, reporter: Reporter = SILENT
) -> MinedPairs:
    """Mine what `similarity` left, by SeqSim's F1: a folder for each output of the same two sets, or one that
    holds these.

    Raises UsageError where lists are shorter than k, InputError where a folder holds no finished comparison, or one of
    other sets or another encoder than the first.
    """
    given = [folders] if isinstance(folders, str | Path) else folders
    folders = [one for folder in given for one in similarity_folders(folder) or [str(folder)]]
    first = read_similarity(folders[0])

    def sources() -> Iterator[_Source]:
        for folder in folders:
            found = read_similarity(folder)
            if found.x["id"] != first.x["id"] or found.y["id"] != first.y["id"]:
                raise InputError(f"{folder}: of other sets than {folders[0]}; mine them one by one")
            if found.weights_sha256 != first.weights_sha256:
                raise InputError(f"{folder}: of another encoder than {folders[0]}; mine them one by one")
            if options.k > found.plan["top"]:
                raise UsageError(
                    f"{folder}: lists of {found.plan['top']}, {counted(options.k, 'neighbour')} wanted; ask for fewer, "
                    f"or run `voxstrata similarity --top {options.k}`"
                )
            yield _Source(found.plan["output"], lists_of_similarity(found), found.x, found.y)

    about = {"similarity": "seqsim_f1", "weights_sha256": first.weights_sha256, "candidates": first.plan["candidates"]}
    return _mined(sources(), len(folders), options, about, reporter)


def _labels(side: Selection) -> pa.Table:
    return side.store.table(["id", "language", "group"]).take(pa.array(side.indices))


def _with_about(found: MinedPairs, about: dict[str, str]) -> MinedPairs:
    tables = (found.table, found.curve)
    return MinedPairs(*(t.replace_schema_metadata({**(t.schema.metadata or {}), **about}) for t in tables))


def _mined(
    sources: Iterator[_Source], count: int, options: MiningOptions, about: dict[str, Any], reporter: Reporter
) -> MinedPairs:
    pairs, curves = [], []
    judge: PairJudge | None = None
    reporter.progress(Progress("mining", 0, count, "outputs"))
    for n, source in enumerate(sources, start=1):
        judge = judge or PairJudge(source.x, source.y, source.lists.itself, options)
        mined = mine_lists(source.lists, options.score, options.k, options.strategy)
        threshold = judge.threshold(mined)
        rows = judge.curve(options.score, mined, threshold)
        if options.score != PLAIN_SCORE:  # the control: what the neighbours add
            rows += judge.curve(PLAIN_SCORE, mine_lists(source.lists, PLAIN_SCORE, options.k, options.strategy))
        curves += [{"output": source.output, **row} for row in rows]
        pairs.append(_pair_table(source, mined, int(np.count_nonzero(mined.score >= threshold))))
        reporter.progress(Progress("mining", n, count, "outputs"))
    assert judge is not None
    settings = {**about, **vars(options), "neighbours": options.k, **judge.about}
    metadata = {MinedPairs.key: json.dumps(settings, ensure_ascii=False)}
    table, curve = pa.concat_tables(pairs), pa.Table.from_pylist(curves, schema=CURVE_SCHEMA)
    return MinedPairs(table.replace_schema_metadata(metadata), curve.replace_schema_metadata(metadata))


def _pair_table(source: _Source, mined: MinedPositions, kept: int) -> pa.Table:
    """The first `kept` pairs with their ids, as PAIRS_SCHEMA."""
    x, y = (pa.array(positions[:kept]) for positions in (mined.x, mined.y))
    sides = {"x": source.x.take(x), "y": source.y.take(y)}
    columns: dict[str, Any] = {"output": pa.repeat(source.output, kept)}
    columns |= {name: side["id"] for name, side in sides.items()}
    columns |= {name: getattr(mined, name)[:kept] for name in ("score", "similarity")}
    for name, ranks in (("rank", mined.rank), ("back_rank", mined.back_rank)):
        columns[name] = pa.array(ranks[:kept], mask=ranks[:kept] == 0)
    columns |= {"mean": mined.mean[:kept], "back_mean": mined.back_mean[:kept]}
    columns |= {f"{name}_language": side["language"] for name, side in sides.items()}
    columns |= {f"{name}_group": side["group"] for name, side in sides.items()}
    return pa.table(columns).select(PAIRS_SCHEMA.names).cast(PAIRS_SCHEMA)
