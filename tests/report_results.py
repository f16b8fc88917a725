"""Results as commands write them, of made-up figures: those that take too long to measure in a quick test."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from voxstrata.engine.bench import Bench
from voxstrata.engine.estimating import Estimate
from voxstrata.engine.measuring import Record, Throughput
from voxstrata.studies.drift.result import DRIFT_SCHEMA, LOST, Drift
from voxstrata.studies.words.result import WordComparison
from voxstrata.studies.words.table import WORDS_SCHEMA

NASTY = "<script>alert('x')</script> & “quotes”"


def write_words(folder: Path) -> None:
    rng = np.random.default_rng(1)
    kinds = ("synonyms", "near_homophones")
    keys = [(o, s, k, *pair) for o in ("layer_00", "final") for s in ("seqsim_f1", "pooled_cosine")
            for k in kinds for pair in (("all", "all"), ("de", "en"))]  # fmt: skip
    keys += [(None, c, k, "all", "all") for c in ("phonetic", "duration") for k in kinds]
    rows = [dict(zip(WORDS_SCHEMA.names, (*key, *rng.random(3), 0.5, 20, 300, 9), strict=True)) for key in keys]
    pair = {f"{side}_{name}": name for name in ("form", "language", "ipa", "meaning") for side in "xy"}
    pairs = [{"kind": kind, "phonetic_distance": 0.5, **pair} for kind in kinds]
    settings = {"words": 12, "languages": ["de", "en"], "near": 0.01, "near_distance": 0.1, "far": 0.5,
                "far_distance": 0.4, "bootstrap": 9, "spoken": None, "tools": {"espeak-ng": "1.52"}}  # fmt: skip
    about = {WordComparison.key: json.dumps(settings)}
    table = pa.Table.from_pylist(rows, WORDS_SCHEMA).replace_schema_metadata(about)
    WordComparison(table, pa.Table.from_pylist(pairs)).save(folder)
    (folder / "words.png").unlink()


def write_exits(folder: Path) -> None:
    """Three exits heard 12 sentences; exit 1 is best on the development part, the whole encoder on the test part."""
    pytest.importorskip("jiwer")
    from voxstrata.early_exit.rates import Rates
    from voxstrata.early_exit.scoring import TRANSCRIPT_SCHEMA, Scoring
    from voxstrata.early_exit.sweeping import early_exits

    wrong = {("dev", 0): 7, ("dev", 1): 1, ("dev", 2): 3, ("test", 0): 8, ("test", 1): 5, ("test", 2): 2}
    counts: dict[str, object] = dict.fromkeys((f.name for f in TRANSCRIPT_SCHEMA if f.type == pa.int32()), 1)
    rows = [
        {**counts, "id": f"u{n}", "language": "en", "script": "LATIN", "group": f"g{n}", "part": part, "after": k,
         "norm": "with", "reference": "ten words", "transcript": NASTY, "reference_normalized": "ten words",
         "transcript_normalized": "", "cut": NASTY, "looped": False, "empty": False, "seconds": 2.0,
         "word_errors": wrong[part, k], "cut_word_errors": wrong[part, k], "words": 10, "character_errors": 3,
         "characters": 9, "unit": "word", "chance_errors": 20, "chance_length": 10}
        for n, part in enumerate(["dev", "test"] * 6) for k in range(3)
    ]  # fmt: skip
    scoring = Scoring("light", 0.5, 0, 20)
    table = pa.Table.from_pylist(rows, TRANSCRIPT_SCHEMA)
    dev, test = (Rates(table, part, scoring) for part in ("dev", "test"))
    about = {"checkpoint": "made-up", "revision": None, "weights_sha256": "2" * 64, "layers": 2, "corpus": "c",
             "utterances": 12, "decoding": {"task": "transcribe", "max_new_tokens": 9}, "scoring": asdict(scoring),
             "notes": [], "failures": {}, "tools": {}}  # fmt: skip
    early_exits(table, dev, test, about).save(folder)


def write_drift(folder: Path) -> None:
    figures = {"cosine": 0.9876543210123, "worst": 0.9, "worst_id": "en-3", "frames": 1665, "frame_q001": 0.42,
               "frame_worst": -0.0123, "frame_worst_id": "es-4", "frame_worst_at": 17, "below_09": 0.0062,
               "below_05": 0.0035, "share_beyond": [0.5 * lost < 0.1 for lost in LOST]}  # fmt: skip
    recall = {"seqsim_f1_recall": 0.25, "seqsim_f1_change": -1 / 3, "pooled_cosine_recall": 0.5,
              "pooled_cosine_change": 0.125}  # fmt: skip
    rows = [
        {"context": mode, "output": output, **figures, **recall}
        for mode in ("bucketed", "trimmed") for output in ("layer_00", "final")
    ]  # fmt: skip
    settings = {"checkpoint": "made-up", "weights_sha256": "4" * 64, "clips": 8, "failed": 0, "failures": {},
                "audio_seconds": 33.3, "seconds": {"padded": 9.0, "bucketed": 2.0, "trimmed": 1.5},
                "speed": {"bucketed": 5.94, "trimmed": 6.22}, "candidates": [7, 8], "chance": 0.13,
                "no_retrieval": None}  # fmt: skip
    table = pa.Table.from_pylist(rows, DRIFT_SCHEMA)
    Drift(table.replace_schema_metadata({Drift.key: json.dumps(settings)})).save(folder)


def write_bench(path: Path, folder: Path | None = None) -> None:
    """What `bench --json --corpus` prints, and, where a folder is given, what `bench -o` leaves there."""
    modes = {
        mode: Throughput(
            mode, "fleurs", ("layer_00", "final"), 40 + n, 480.0, 8.0 / (n + 1), 9000, 10**12, 10**9, {}, 0.5
        )
        for n, mode in enumerate(("padded", "bucketed", "trimmed"))
    }
    about = {"format": 1, "model": {"weights_sha256": "3" * 64, "dtype": "float32", "silence_sha256": "1" * 64},
             "cpu": "made-up", "cores": 2, "device": "cpu", "threads": 2}  # fmt: skip
    e = Estimate(12, {}, 3600.0, 3, 12, 7, 10**12, 180_000, ("final",), "padded", 10**9, 10**9, None)
    corpus = {mode: replace(e, context=mode, seconds=60.5 + n) for n, mode in enumerate(modes)}
    record = Record(about, 0.25, 5e10, modes)
    printed = {**record.with_rates(), "corpus": {mode: asdict(expected) for mode, expected in corpus.items()}}
    path.write_text(json.dumps(printed), encoding="utf-8")
    if folder is not None:
        Bench.of(record, corpus, "made-up").save(folder)
