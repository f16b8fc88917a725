"""Figures of several encoders on one corpus: each is measured against itself, on the utterances that all of them have.

Nothing is computed between two encoders: their states have no common space.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from voxstrata.base.errors import UsageError
from voxstrata.base.plain import counted
from voxstrata.base.progress import SILENT, Reporter
from voxstrata.encoders.outputs import OutputChoice, depth_order, select_outputs
from voxstrata.evaluation.levels import MEAN
from voxstrata.evaluation.metrics import Evaluation
from voxstrata.retrieval.encoders import StoredEncoder, common_utterances, differences, name_encoders
from voxstrata.retrieval.languages import equal_sentences
from voxstrata.store import EmbeddingStore
from voxstrata.store.several import AnyStore, open_by_encoder
from voxstrata.studies.align.measure import AlignOptions, align
from voxstrata.studies.align.states import POOLED
from voxstrata.studies.compared.result import STORES, ComparedAlignment, ComparedRetrieval
from voxstrata.studies.compared.table import BEHIND, with_encoder, without_encoder
from voxstrata.studies.retrieve.measure import (
    MeasuredRetrieval,
    below,
    measure_retrieval,
    possible_similarities,
    prepare_retrieval,
)
from voxstrata.studies.retrieve.options import RetrievalOptions

_DEFAULT = RetrievalOptions()
_BY = ("encoder", "output", "similarity", "score", "metric")


def retrieve_each(
    stores: Sequence[AnyStore],
    outputs: OutputChoice = "all",
    languages: str | Sequence[str] | None = None,
    similarities: str | Sequence[str] | None = None,
    options: RetrievalOptions = _DEFAULT,
    reporter: Reporter = SILENT,
) -> ComparedRetrieval:
    """Finding translations by several encoders, each in its own states; see `retrieve` for what is measured.

    stores: paths or opened stores, of one corpus and of several encoders or settings. Those of one encoder are taken as
    one (`open_by_encoder`). The utterances that all encoders have take part, so queries, pools, chance and resamples
    are the same for all. outputs: of these each encoder gives those that it has. similarities: by default those that
    all stores have the states for.

    Raises what `retrieve` does, InputError for stores that are not of one corpus, and UsageError where an encoder has
    none of the outputs.
    """
    by_encoder = open_by_encoder(stores)
    encoders, ids, settings = _beside(by_encoder, reporter)
    if similarities is None:
        similarities = [
            name for name in possible_similarities(by_encoder[0], None)
            if all(name in possible_similarities(store, None) for store in by_encoder)
        ]  # fmt: skip
    prepared = [
        prepare_retrieval(encoder.store, chosen, languages, similarities, options, reporter, ids)
        for encoder, chosen in zip(encoders, _outputs(encoders, outputs), strict=True)
    ]
    for note in equal_sentences(prepared[0].sides):
        reporter.warn(note)
    measured = []
    for encoder, one in zip(encoders, prepared, strict=True):
        reporter.step(f"retrieval, {encoder.label}")
        measured.append(measure_retrieval(one, options, reporter))
    tables = [with_encoder(m.table, encoder, "output") for m, encoder in zip(measured, encoders, strict=True)]
    table = _with_behind(pa.concat_tables(tables), encoders, measured)
    return ComparedRetrieval(_about(table, by_encoder, ComparedRetrieval.key, {**measured[0].settings, **settings}))


def align_each(
    stores: Sequence[AnyStore],
    phonetics: str | Path,
    outputs: OutputChoice = "all",
    languages: str | Sequence[str] | None = None,
    options: AlignOptions | None = None,
    reporter: Reporter = SILENT,
) -> ComparedAlignment:
    """Retrieval under controls by several encoders, each in its own states; see `align` for what is measured.

    stores, outputs: as in `retrieve_each`. Pools, baselines and resamples are the same for all encoders.
    Raises what `align` does, InputError for stores that are not of one corpus, and UsageError where an encoder has none
    of the outputs.
    """
    by_encoder, options = open_by_encoder(stores), options or AlignOptions()
    if options.similarity is None and not all(store.has_frames for store in by_encoder):
        options = replace(options, similarity=POOLED)
    encoders, ids, settings = _beside(by_encoder, reporter)
    tables: list[pa.Table] = []
    for encoder, chosen in zip(encoders, _outputs(encoders, outputs), strict=True):
        reporter.step(f"controlled retrieval, {encoder.label}")
        found = align(encoder.store, phonetics, chosen, languages, options, reporter, ids=ids)
        own = pc.is_in(found.table["system"], pa.array(encoder.store.outputs))
        tables.append(with_encoder(found.table.filter(own), encoder, "system"))
    settings = {**found.settings, **settings}
    tables.append(without_encoder(found.table.filter(pc.invert(own))))  # phonemes and durations: the same for all
    return ComparedAlignment(_about(pa.concat_tables(tables), by_encoder, ComparedAlignment.key, settings))


def _beside(
    stores: Sequence[EmbeddingStore], reporter: Reporter
) -> tuple[list[StoredEncoder], list[str], dict[str, Any]]:
    """The encoders by their names, the ids that take part, and what the result says of both."""
    if len(stores) < 2:
        raise UsageError("one encoder alone; give stores of two or more, or measure it by itself")
    encoders = name_encoders(stores)
    ids, left_out = common_utterances(encoders)
    said = differences(encoders)
    said += [
        f"{counted(n, 'utterance')} of {name} left out: not in every store, or not done in one."
        for name, n in left_out.items()
    ]
    for sentence in said:
        reporter.warn(sentence)
    about = [encoder.about() for encoder in encoders]
    checkpoint = " + ".join(dict.fromkeys(a["checkpoint"] for a in about))
    settings = {"checkpoint": checkpoint, "utterances": len(ids), "not_in_all": left_out, "differences": said}
    return encoders, ids, {**settings, "encoders": about}


def _outputs(encoders: Sequence[StoredEncoder], asked: OutputChoice) -> list[list[str]]:
    """Of the outputs asked for those that each encoder has."""
    wanted = select_outputs(asked, depth_order(name for encoder in encoders for name in encoder.store.outputs))
    found = [[name for name in encoder.store.outputs if name in wanted] for encoder in encoders]
    for encoder, names in zip(encoders, found, strict=True):
        if not names:
            raise UsageError(
                f"{encoder.label} has none of {', '.join(wanted)}; it has {', '.join(encoder.store.outputs)}"
            )
    return found


def _with_behind(table: pa.Table, encoders: Sequence[StoredEncoder], measured: Sequence[MeasuredRetrieval]) -> pa.Table:
    """With three columns more, filled at level "mean": how far the figure is behind the best output of all encoders,
    and the interval of that, paired by resample.
    """
    means: dict[tuple[str, ...], tuple[Evaluation, int]] = {
        (encoder.label, output, similarity, score, metric): (evaluation, i)
        for encoder, one in zip(encoders, measured, strict=True)
        for output, found in one.means.items()
        for (similarity, score, metrics), evaluation in found.items()
        for i, metric in enumerate(metrics)
    }
    best: dict[tuple[str, ...], Evaluation] = {}
    for (_, _, *what), (evaluation, i) in means.items():
        held = best.get(tuple(what))
        if not math.isnan(evaluation.values[i]) and (held is None or evaluation.values[i] > held.values[i]):
            best[tuple(what)] = evaluation
    averaged = pc.equal(table["level"], MEAN)
    behind: list[tuple[float | None, float | None, float | None]] = []
    for row in table.filter(averaged).select([*_BY, "below_best"]).to_pylist():
        encoder, output, *what = (row[name] for name in _BY)
        known = row["below_best"] is not None
        behind.append(below(best[tuple(what)], *means[encoder, output, *what]) if known else (None, None, None))
    for name, values in zip(BEHIND, zip(*behind, strict=True), strict=True):
        nothing = pa.nulls(len(table), pa.float64())
        filled = pc.replace_with_mask(nothing, averaged.combine_chunks(), pa.array(values, pa.float64()))
        table = table.append_column(name, filled)
    return table


def _about(table: pa.Table, stores: Sequence[EmbeddingStore], key: str, settings: dict[str, Any]) -> pa.Table:
    """The table with its settings, and with the description of every store."""
    texts = {key: settings, STORES: {"stores": [store.about for store in stores]}}
    return table.replace_schema_metadata({k: json.dumps(v, ensure_ascii=False) for k, v in texts.items()})
