"""Drift: what a cheaper context costs, on the user's own checkpoint and audio.

Every context is extracted as a user would extract it, into a temporary store, and compared with `padded`.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from voxstrata.base.errors import InputError, UsageError
from voxstrata.base.folders import scratch_folder
from voxstrata.base.plain import counted
from voxstrata.base.progress import SILENT, Reporter
from voxstrata.corpus import Corpus, read_corpus
from voxstrata.corpus.summary import CorpusSummary
from voxstrata.encoders import Context, ModelFolder, open_model
from voxstrata.encoders.context import Mode
from voxstrata.encoders.outputs import OutputChoice, select_outputs
from voxstrata.engine import Runtime, extract
from voxstrata.evaluation.levels import MEAN
from voxstrata.store import EmbeddingStore, StoreSpec, open_store
from voxstrata.studies.drift.result import BELOW, DRIFT_SCHEMA, LOST, PADDED, QUANTILE, RETRIEVED_BY, Drift
from voxstrata.studies.retrieve import RetrievalOptions, retrieve

CONTEXTS: tuple[Mode, ...] = ("padded", "bucketed", "trimmed")  # the first is the reference


def measure_drift(
    corpus: Corpus | str | Path,
    model: ModelFolder | str | Path,
    *,
    clips: int | None = 100,
    outputs: OutputChoice = "all",
    runtime: Runtime | None = None,
    against: ModelFolder | str | Path | None = None,
    reporter: Reporter = SILENT,
) -> Drift:
    """Extract `clips` recordings (whole groups of translations, drawn with a fixed seed; None: all) in every context.

    corpus, model, against: paths, or what `read_corpus` and `open_model` gave.
    `against`: another export of the same checkpoint, whose `padded` is the reference, to learn what int8 or float16
    cost; by default the model itself.
    Raises UsageError for other families than Whisper, InputError when no recording can be read, or `against` has other
    weights or outputs.
    """
    corpus, model = read_corpus(corpus), open_model(model)
    reference = model if against is None else open_model(against)
    for given in (reference, model):
        if not given.card.whisper:
            raise UsageError(
                f"{given.path}: drift compares the contexts of Whisper; {given.card.family.name} has "
                f"{' and '.join(given.card.family.contexts)} alone"
            )
    if reference.card.weights_sha256 != model.card.weights_sha256 or reference.card.final_norm != model.card.final_norm:
        raise InputError(f"{reference.path} and {model.path} are not exports of the same encoder; export both from one")
    outputs = select_outputs(outputs, model.card.outputs)
    missing = set(outputs) - set(reference.card.outputs)
    if missing:
        raise InputError(f"{reference.path} lacks {', '.join(sorted(missing))}; name the outputs that both have")
    drawn = sample(corpus, clips)
    too_few = _too_few(corpus, drawn)
    if too_few:
        reporter.warn(f"{too_few}: recall will not be measured")
    corpus = drawn
    stores: dict[str, EmbeddingStore] = {}
    seconds: dict[str, float] = {}
    with scratch_folder("drift") as folder:
        for context in CONTEXTS:
            reporter.step(f"extracting {counted(len(corpus), 'recording')}, {context}")
            path = Path(folder) / f"{context}.zarr"
            encoder = reference if context == PADDED else model
            spec = StoreSpec(outputs, "float32", context=Context(context))
            # what is to be said of recordings is the same in each context
            report = extract(corpus, encoder, path, spec, runtime or Runtime(), _ProgressAlone(reporter))
            stores[context], seconds[context] = open_store(path), report.seconds
            if report.failed == len(corpus):  # not at probing, which the plan would have refused
                first = next(iter(report.failures.values()))
                raise InputError(f"{corpus.where}: no recording of {len(corpus)} can be decoded; the first: {first}")
        recall, retrieval = _retrieved(stores, reporter)
        if too_few:
            retrieval["no_retrieval"] = too_few
        reporter.step("comparing frames with the padded run")
        rows = []
        for context in CONTEXTS:
            for output in stores[context].outputs:
                row: dict[str, Any] = {"context": context, "output": output}
                if context != PADDED:
                    row |= frame_figures(stores[PADDED], stores[context], output)
                here, before = (recall.get(m, {}).get(output, {}) for m in (context, PADDED))
                for similarity, value in here.items():
                    change = value - before[similarity] if context != PADDED else None
                    row |= {f"{similarity}_recall": value, f"{similarity}_change": change}
                rows.append(row)
        padded = stores[PADDED]
        audio = float(padded.utterances["seconds"].to_numpy()[padded.status == 1].sum())
    settings: dict[str, Any] = {"checkpoint": model.card.checkpoint, "weights_sha256": model.card.weights_sha256}
    settings["corpus"] = Path(corpus.root).name
    settings |= {"clips": len(corpus) - report.failed, "failed": report.failed, "failures": report.failures}
    settings |= {"audio_seconds": audio, "seconds": seconds}
    settings |= {"speed": {context: seconds[PADDED] / seconds[context] for context in CONTEXTS[1:]}, **retrieval}
    table = pa.Table.from_pylist(rows, schema=DRIFT_SCHEMA)
    return Drift(table.replace_schema_metadata({Drift.key: json.dumps(settings, ensure_ascii=False)}))


class _ProgressAlone(Reporter):
    """Passes on how far the work is, no steps and no warnings."""

    def __init__(self, reporter: Reporter) -> None:
        self.progress = reporter.progress  # type: ignore[method-assign]


def _too_few(corpus: Corpus, drawn: Corpus) -> str:
    """Why nothing can be retrieved among the recordings drawn while it could among all; empty where that is not so."""
    among, of = CorpusSummary.of(drawn).translated, CorpusSummary.of(corpus).translated
    if among > 1 or of < 2:
        return ""
    what = f"the {counted(len(drawn), 'recording')} drawn have {counted(among, 'sentence')} in several languages"
    return f"{what}, of {of} in the corpus; --clips with a larger number draws more"


def sample(corpus: Corpus, clips: int | None) -> Corpus:
    """About `clips` recordings: whole groups, so that translations stay together, drawn with a fixed seed."""
    if clips is None or clips >= len(corpus):
        return corpus
    ids, groups = corpus.table["id"].to_pylist(), corpus.table["group"].to_pylist()
    members: dict[tuple[bool, str], list[int]] = {}
    for i, (name, group) in enumerate(zip(ids, groups, strict=True)):
        members.setdefault((group is None, group or name), []).append(i)
    keys = sorted(members)
    chosen: list[int] = []
    for k in np.random.default_rng(0).permutation(len(keys)):
        if len(chosen) >= clips:
            break
        chosen += members[keys[k]]
    return corpus.take(sorted(chosen))


def frame_figures(reference: EmbeddingStore, other: EmbeddingStore, output: str) -> dict[str, Any]:
    """What the table says of the frames' cosines, and the lowest utterance mean. Both stores hold the same plan."""
    worst, worst_id, frame_worst = np.inf, "", np.inf
    found: list[NDArray[np.float64]] = []
    row: dict[str, Any] = {}
    for (indices, a, offsets), (_, b, _) in zip(reference.units(output), other.units(output), strict=True):
        norm = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
        cosine = np.einsum("ij,ij->i", a, b, dtype=np.float64) / norm
        found.append(cosine)
        means = np.add.reduceat(cosine, offsets[:-1]) / np.diff(offsets)
        low = int(np.argmin(means))
        if means[low] < worst:
            worst, worst_id = float(means[low]), reference.ids[int(indices[low])]
        at = int(np.argmin(cosine))
        if cosine[at] < frame_worst:
            frame_worst = float(cosine[at])
            whose = int(np.searchsorted(offsets, at, side="right")) - 1
            row |= {"frame_worst_id": reference.ids[int(indices[whose])], "frame_worst_at": at - int(offsets[whose])}
    cosines = np.sort(np.concatenate(found))
    row |= {"cosine": float(cosines.mean()), "worst": worst, "worst_id": worst_id, "frames": len(cosines)}
    row |= {"frame_worst": frame_worst, "frame_q001": float(np.quantile(cosines, QUANTILE, method="inverted_cdf"))}
    row |= {name: float(np.searchsorted(cosines, below)) / len(cosines) for name, below in BELOW.items()}
    return row | {"share_beyond": (np.searchsorted(cosines, 1 - np.array(LOST)) / len(cosines)).tolist()}


def _retrieved(
    stores: dict[str, EmbeddingStore], reporter: Reporter
) -> tuple[dict[str, dict[str, dict[str, float]]], dict[str, Any]]:
    """Mean recall@1 by context, output and similarity, and what it was retrieved from; empty without translations."""
    recall: dict[str, dict[str, dict[str, float]]] = {}
    found: dict[str, Any] = {"candidates": None, "chance": None, "pool": None, "no_retrieval": None}
    options = RetrievalOptions(scores=("raw",), ks=(1,), bootstrap=0)
    for context, store in stores.items():
        reporter.step(f"retrieval, {context}")
        try:
            table = retrieve(store, similarities=RETRIEVED_BY, options=options, reporter=_ProgressAlone(reporter)).table
        except InputError as e:
            return {}, {**found, "no_retrieval": str(e)}
        means = table.filter((pc.field("level") == MEAN) & (pc.field("metric") == "recall@1")).to_pylist()
        recall[context] = {}
        for row in means:
            recall[context].setdefault(row["output"], {})[row["similarity"]] = row["value"]
        first = means[0]
        found |= {
            "candidates": [first["candidates"], first["candidates_max"]],
            "chance": first["chance"],
            "pool": options.pool,
        }
    return recall, found
