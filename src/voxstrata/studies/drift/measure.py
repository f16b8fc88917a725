"""Drift: what a cheaper context costs, on the user's own checkpoint and audio.

Every mode is extracted as a user would extract it, into a temporary store, and compared with `padded`.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from voxstrata.base.errors import InputError
from voxstrata.corpus import Corpus
from voxstrata.encoders import Context, ModelFolder
from voxstrata.encoders.context import Mode
from voxstrata.encoders.outputs import select_outputs
from voxstrata.engine import Device, Runtime, extract
from voxstrata.store import EmbeddingStore, StoreSpec, open_store
from voxstrata.studies.retrieve import RetrievalOptions, retrieve

ALL_MODES: tuple[Mode, ...] = ("padded", "bucketed", "trimmed")
MODES = ALL_MODES[1:]  # against padded, the reference
RETRIEVED_BY = ("seqsim_f1", "pooled_cosine")


@dataclass(frozen=True)
class DriftRow:
    """One output in one mode.

    cosine: mean over all frames of the cosine to the same frame of the padded run. worst: the lowest mean over
    one utterance, worst_id: whose. recall and change: mean recall@1 over all directions by similarity, as
    fractions, and its difference to padded; empty where the corpus has no translations.
    """

    mode: str
    output: str
    cosine: float
    worst: float
    worst_id: str
    recall: dict[str, float]
    change: dict[str, float]


@dataclass(frozen=True)
class DriftReport:
    """What the modes cost against `padded`.

    clips, audio_seconds: compared. failed: recordings that cannot be read, in any mode; failures: reasons by id.
    seconds: wall, by mode.
    speed: wall seconds of `padded` / of the mode. candidates, chance: of the retrieval, None without one.
    """

    checkpoint: str
    clips: int
    failed: int
    failures: dict[str, str]
    audio_seconds: float
    seconds: dict[str, float]
    speed: dict[str, float]
    rows: tuple[DriftRow, ...]
    recall_padded: dict[str, dict[str, float]]
    candidates: tuple[int, int] | None
    chance: float | None
    no_retrieval: str | None

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form."""
        return asdict(self)


def measure_drift(
    corpus: Corpus,
    model: ModelFolder,
    *,
    clips: int | None = 100,
    outputs: str | Sequence[str] = "all",
    device: Device | None = None,
    threads: int | None = None,
    against: ModelFolder | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> DriftReport:
    """Extract `clips` recordings (whole groups of translations, drawn with a fixed seed; None: all) in every mode.

    `against`: another export of the same checkpoint, whose `padded` is the reference, to learn what int8 or float16
    cost; by default the model itself.
    Raises InputError when no recording can be read, or `against` has other weights or outputs.
    """
    reference = against or model
    if reference.card.weights_sha256 != model.card.weights_sha256 or reference.card.final_norm != model.card.final_norm:
        raise InputError(f"{reference.path} and {model.path} are not exports of the same encoder; export both from one")
    outputs = select_outputs(outputs, model.card.outputs)
    missing = set(outputs) - set(reference.card.outputs)
    if missing:
        raise InputError(f"{reference.path} lacks {', '.join(sorted(missing))}; name the outputs that both have")
    corpus = sample(corpus, clips)
    stores: dict[Mode, EmbeddingStore] = {}
    seconds: dict[str, float] = {}
    with tempfile.TemporaryDirectory(prefix="voxstrata-drift-") as folder:
        for mode in ALL_MODES:
            say(f"extracting {len(corpus)} recordings, {mode}")
            path = Path(folder) / f"{mode}.zarr"
            report = extract(
                corpus,
                reference if mode == "padded" else model,
                path,
                StoreSpec(outputs, "float32", context=Context(mode)),
                Runtime(device or Device(), threads),
            )
            stores[mode], seconds[mode] = open_store(path), report.seconds
            if report.failed == len(corpus):  # not at probing, which the plan would have refused
                first = next(iter(report.failures.values()))
                raise InputError(
                    f"{corpus.root}: none of the {len(corpus)} recordings can be decoded; the first: {first}"
                )
        recall: dict[str, dict[str, dict[str, float]]] = {m: {} for m in stores}
        candidates = chance = no_retrieval = None
        for mode in ALL_MODES:
            say(f"retrieval, {mode}")
            try:
                recall[mode], candidates, chance = _recall(stores[mode])
            except InputError as e:
                no_retrieval = str(e)
                break
        rows = []
        for mode in MODES:
            for output in stores[mode].outputs:
                here = recall[mode].get(output, {})
                before = recall["padded"].get(output, {})
                change = {s: here[s] - before[s] for s in here}
                rows.append(DriftRow(mode, output, *_cosine(stores["padded"], stores[mode], output), here, change))
        padded = stores["padded"]
        audio = float(padded.utterances["seconds"].to_numpy()[padded.status == 1].sum())
    return DriftReport(
        checkpoint=model.card.checkpoint,
        clips=len(corpus) - report.failed,
        failed=report.failed,
        failures=report.failures,
        audio_seconds=audio,
        seconds=seconds,
        speed={m: seconds["padded"] / seconds[m] for m in MODES},
        rows=tuple(rows),
        recall_padded=recall["padded"],
        candidates=candidates,
        chance=chance,
        no_retrieval=no_retrieval,
    )


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
    return Corpus(corpus.root, corpus.table.take(pa.array(sorted(chosen))))


def _cosine(reference: EmbeddingStore, other: EmbeddingStore, output: str) -> tuple[float, float, str]:
    """Mean over frames, lowest utterance mean, and whose it is. Both stores hold the same plan."""
    total, frames, worst, worst_id = 0.0, 0, np.inf, ""
    for (indices, a, offsets), (_, b, _) in zip(reference.units(output), other.units(output), strict=True):
        norm = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
        cosine = np.einsum("ij,ij->i", a, b, dtype=np.float64) / norm
        total += float(cosine.sum())
        frames += len(cosine)
        means = np.add.reduceat(cosine, offsets[:-1]) / np.diff(offsets)
        low = int(np.argmin(means))
        if means[low] < worst:
            worst, worst_id = float(means[low]), reference.ids[int(indices[low])]
    return total / frames, worst, worst_id


def _recall(store: EmbeddingStore) -> tuple[dict[str, dict[str, float]], tuple[int, int], float]:
    options = RetrievalOptions(scores=("raw",), ks=(1,), bootstrap=0)
    table = retrieve(store, similarities=RETRIEVED_BY, options=options).table
    mean = table.filter((pc.field("source") == "mean") & (pc.field("metric") == "recall@1")).to_pylist()
    recall: dict[str, dict[str, float]] = {}
    for row in mean:
        recall.setdefault(row["output"], {})[row["similarity"]] = row["value"]
    return recall, (mean[0]["candidates"], mean[0]["candidates_max"]), mean[0]["chance"]
