"""A store of random frames, in the layout extraction writes, without audio or a model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from voxstrata.audio.decode import AudioInfo
from voxstrata.corpus import Corpus, Probed
from voxstrata.corpus.table import CORPUS_SCHEMA
from voxstrata.encoders.card import ModelCard
from voxstrata.encoders.frames import SAMPLE_RATE, SAMPLES_PER_FRAME
from voxstrata.store import Plan, StoreSpec, StoreWriter, make_plan
from voxstrata.store.plan import UNIT_MEGABYTES

OUTPUT = "final"


def random_card(d: int, outputs: Sequence[str]) -> ModelCard:
    """The card of a model that never was."""
    return ModelCard(
        1, "random frames", None, "0" * 64, 1, d, 1, 80, "float32", 17, tuple(outputs), "final", {"sha256": "0" * 64},
        {}, {},
    )  # fmt: skip


def random_plan(
    lengths: Mapping[str, NDArray[np.int64]], d: int, spec: StoreSpec, unit_megabytes: float = UNIT_MEGABYTES
) -> Plan:
    """A plan of utterances of so many frames each, by language; utterance i of a language is of group i."""
    rows = [
        (f"{language}-{i}", language, f"g{i}", int(n)) for language in lengths for i, n in enumerate(lengths[language])
    ]
    table = pa.table(
        {
            "id": [r[0] for r in rows],
            "path": [f"{r[0]}.wav" for r in rows],
            "language": [r[1] for r in rows],
            "group": [r[2] for r in rows],
            "text": [None] * len(rows),
            "speaker": [None] * len(rows),
        },
        schema=CORPUS_SCHEMA,
    )
    infos = [AudioInfo(n * SAMPLES_PER_FRAME, SAMPLE_RATE, n * SAMPLES_PER_FRAME, 1, 44) for *_, n in rows]
    return make_plan(Corpus(Path("/"), table), Probed.of(infos, {}), spec, d, unit_megabytes=unit_megabytes)


def make_store(path: Path, lengths: Mapping[str, NDArray[np.int64]], d: int, seed: int = 0) -> None:
    """Write a store of `random_plan` with the output OUTPUT, float16.

    Frames are normal and independent, so that no shortcut through repeated or similar frames is possible.
    """
    plan = random_plan(lengths, d, StoreSpec((OUTPUT,)))
    writer = StoreWriter(path, plan, random_card(d, (OUTPUT,)))
    rng = np.random.default_rng(seed)
    for unit in range(plan.units):
        writer.commit(unit, {OUTPUT: rng.standard_normal((plan.unit_rows, d), np.float32).astype(np.float16)}, {})
    writer.finish()
