"""Similarity and bench in the report: their numbers are the stored ones, and recall@1 is what `retrieve` finds."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from report_pages import Page
from report_results import write_bench
from stores import Utterance, ends, make_store
from test_cli import run

from voxstrata.store import open_store
from voxstrata.studies.retrieve import RetrievalOptions, retrieve

GROUPS, SHARED = 9, 6


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """en and es share SHARED of GROUPS sentences, whose frames are alike; en against es, and all against all."""
    root = tmp_path_factory.mktemp("study")
    rng = np.random.default_rng(4)
    meaning = rng.standard_normal((2 * GROUPS, 8))
    utterances = {
        f"{language}-{g}": Utterance(
            (meaning[g + shift] + rng.standard_normal((20, 8))).astype(np.float32), language, f"g{g + shift}"
        )
        for language, shift in (("en", 0), ("es", GROUPS - SHARED))
        for g in range(GROUPS)
    }
    make_store(root / "speech.zarr", utterances)
    store = ("similarity", root / "speech.zarr", "--outputs", "final")
    assert run(*store, "--x", "en", "--y", "es", "-o", root / "en-es") == 0
    assert run(*store, "-o", root / "all", "--candidates", "12") == 0
    write_bench(root / "bench-2.json")
    assert run("report", root) == 0
    return root


@pytest.fixture(scope="module")
def page(study: Path) -> Page:
    return Page((study / "report.html").read_text(encoding="utf-8"))


def values(cells: list[tuple[str, str | None]]) -> list[str]:
    """Cells whole: as stored where the page rounds."""
    return [shown if whole is None else whole for shown, whole in cells]


def percent(value: float) -> str:
    return f"{100 * value:.1f}"


def test_recall_of_the_best_candidates_is_what_retrieve_finds(page: Page, study: Path) -> None:
    best = page.sections["similarity: en-es/top.parquet"][0]
    assert best.header[1:7] == ["queries", "without partner", "pool", "F1 of the best", "recall@1", "chance"]
    options = RetrievalOptions(scores=("raw",), ks=(1,), bootstrap=0)
    store = open_store(study / "speech.zarr")
    rows = retrieve(store, ["final"], similarities=["seqsim_f1"], options=options).table.to_pylist()
    for cells, direction, (source, target) in zip(
        best.rows, ("en → es", "es → en"), (("en", "es"), ("es", "en")), strict=False
    ):
        (found,) = [r for r in rows if (*ends(r), r["metric"]) == (source, target, "recall@1")]
        expected = [direction, str(SHARED), str(GROUPS - SHARED), str(GROUPS)]
        assert values(cells)[:4] == expected
        assert values(cells)[5:7] == [percent(found["value"]), percent(found["chance"])]
        assert found["value"] > 1 / GROUPS
        top = pq.read_table(study / "en-es" / "top.parquet").to_pylist()
        mean = np.mean([r["f1"] for r in top if r["rank"] == 1 and r["query"].startswith(source)])
        assert float(values(cells)[4]) == pytest.approx(mean)


def test_a_set_with_itself_counts_no_utterance_as_its_own_candidate(page: Page, study: Path) -> None:
    best, misses, stored = page.sections["similarity: all/top.parquet"]
    (cells,) = best.rows
    _, queries, without, pool, _, recall, chance, *_ = values(cells)
    assert (queries, without, pool) == (str(2 * SHARED), str(2 * GROUPS - 2 * SHARED), str(2 * GROUPS - 1))
    assert chance == percent(1 / (2 * GROUPS - 1))
    top = {
        r["query"]: r["candidate"] for r in pq.read_table(study / "all" / "top.parquet").to_pylist() if r["rank"] == 1
    }
    group_of = {i: int(i[3:]) + (GROUPS - SHARED) * i.startswith("es") for i in top}
    shared = [i for i in top if GROUPS - SHARED <= group_of[i] < GROUPS]
    assert recall == percent(float(np.mean([group_of[i] == group_of[top[i]] for i in shared])))
    kept = json.loads((study / "all" / "candidates.json").read_text(encoding="utf-8"))["forward"]
    shares = ("exact_top1_among_candidates", "translation_among_candidates")
    assert misses.header == ["direction", *(f"{name} (%)" if name in shares else name for name in kept)]
    expected = [100 * value if name in shares else value for name, value in kept.items()]
    assert values(misses.rows[0]) == ["en, es, among themselves", *map(str, expected)]
    rows = pq.read_table(study / "all" / "top.parquet").slice(0, len(stored.rows)).to_pylist()
    rows = [{**row, "direction": "en, es, among themselves"} for row in rows]
    assert [values(cells) for cells in stored.rows] == [[str(value) for value in r.values()] for r in rows]


def test_bench_with_what_the_corpus_would_take(page: Page) -> None:
    fast, corpus = page.sections["bench: bench-2.json"]
    assert values(fast.rows[1])[:4] == ["bucketed", "120.0", "50.0", "41"]
    assert values(corpus.rows[2]) == ["trimmed", "12", "3600.0", "3", "7", "1000000000", "62.5"]
    text = page.text["bench: bench-2.json"]
    assert "3" * 64 in text
    assert "made-up" in text


def test_settings_and_fingerprints_of_a_similarity(page: Page, study: Path) -> None:
    plan = json.loads((study / "en-es" / "plan.json").read_text(encoding="utf-8"))
    text = page.text["similarity: en-es/top.parquet"]
    assert plan["fingerprint"] in text
    assert plan["x store"] in text
    assert "0" * 64 in text  # the encoder's


def test_an_unfinished_similarity_is_named(study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_bench(tmp_path / "bench.json")
    (tmp_path / "s").mkdir()
    for name in ("plan.json", "rows.parquet", "columns.parquet"):
        (tmp_path / "s" / name).write_bytes((study / "en-es" / name).read_bytes())
    assert run("report", tmp_path) == 0
    assert "left out: s/plan.json: no top.parquet beside it" in capsys.readouterr().err
    (tmp_path / "s" / "top.parquet").write_bytes(b"PAR1")
    assert run("report", tmp_path) == 3
    assert "top.parquet: damaged" in capsys.readouterr().err
    (tmp_path / "bench.json").write_text('{"contexts": {}}', encoding="utf-8")
    (tmp_path / "s" / "top.parquet").unlink()
    assert run("report", tmp_path) == 3
    assert "bench.json: not what `voxstrata bench --json` prints" in capsys.readouterr().err
