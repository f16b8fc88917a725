"""A store of random frames, in the layout extraction writes, without audio or a model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from voxstrata.audio.decode import AudioInfo
from voxstrata.audio.units import SAMPLE_RATE, SAMPLES_PER_FRAME
from voxstrata.corpus import Corpus
from voxstrata.corpus.table import SCHEMA
from voxstrata.model.card import ModelCard
from voxstrata.store import StoreSpec, StoreWriter, make_plan

OUTPUT = "final"


def make_store(path: Path, lengths: Mapping[str, NDArray[np.int64]], d: int, seed: int = 0) -> None:
    """Write utterances of so many frames each, by language, as float16; utterance i of a language is of group i.

    Frames are normal and independent, so that no shortcut through repeated or similar frames is possible.
    """
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
        schema=SCHEMA,
    )
    infos = [AudioInfo(n * SAMPLES_PER_FRAME, SAMPLE_RATE, n * SAMPLES_PER_FRAME, 1, 44) for *_, n in rows]
    plan = make_plan(Corpus(Path("/"), table), infos, {}, StoreSpec((OUTPUT,)), d)
    card = ModelCard(
        1, "random frames", None, "0" * 64, 1, d, 1, 80, "float32", 17, (OUTPUT,), "final", {"sha256": "0" * 64}, {}, {}
    )
    writer = StoreWriter(path, plan, card)
    rng = np.random.default_rng(seed)
    for unit in range(plan.units):
        writer.commit(unit, {OUTPUT: rng.standard_normal((plan.unit_rows, d), np.float32).astype(np.float16)}, {})
    writer.finish()
