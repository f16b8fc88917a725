"""The rank of every query, beside the figures that are made of it; and tables of earlier versions."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from stores import Utterance, ends, make_store
from test_cli import run
from test_retrieval_table import fake_store

from voxstrata.evaluation.levels import with_level
from voxstrata.store import open_store
from voxstrata.studies.retrieve import Retrieval, RetrievalOptions, retrieve

pytest.importorskip("matplotlib", reason="plots need the extra `plot`")


def test_a_rank_counts_the_wrong_candidates_that_score_as_high(tmp_path: Path) -> None:
    """Held against a plain loop over all candidates; one sentence has two recordings, one no translation."""
    rng = np.random.default_rng(3)
    names = [("en", "g0"), ("en", "g1"), ("en", "alone"), ("es", "g0"), ("es", "g0"), ("es", "g1"), ("es", "g2")]
    frames = {f"{language}-{i}": (language, group, rng.standard_normal((4, 8)).astype(np.float32))
              for i, (language, group) in enumerate(names)}  # fmt: skip
    make_store(tmp_path / "s.zarr", {name: Utterance(f, lang, group) for name, (lang, group, f) in frames.items()})
    options = RetrievalOptions(bootstrap=0, permutations=0, scores=("raw",))
    ranks = retrieve(open_store(tmp_path / "s.zarr"), similarities="pooled_cosine", options=options).ranks.to_pylist()
    mean = {name: f.astype(np.float64).mean(axis=0) for name, (_, _, f) in frames.items()}
    expected = {}
    for query, (language, group, _) in frames.items():
        pool = {name: g for name, (other, g, _) in frames.items() if other != language}
        score = {n: mean[query] @ mean[n] / np.linalg.norm(mean[query]) / np.linalg.norm(mean[n]) for n in pool}
        right = [n for n in pool if pool[n] == group]
        if right:
            best = max(score[n] for n in right)
            rank = 1 + sum(score[n] >= best for n in pool if pool[n] != group)
            expected[query] = (rank, len(right), len(pool), group)
    assert {r["query"]: (r["rank"], r["partners"], r["candidates"], r["group"]) for r in ranks} == expected
    assert len(ranks) == len(expected) == 5  # "alone" and g2 have no translation
    assert {(r["source"], r["target"]) for r in ranks} == {("en", "es"), ("es", "en")}


def test_figures_are_made_of_the_ranks() -> None:
    options = RetrievalOptions(bootstrap=0, permutations=0)
    found = retrieve(fake_store(groups=12, noise=1.0), similarities="pooled_cosine", options=options)
    ranks = found.ranks.to_pylist()
    compared = 0
    for row in found.table.to_pylist():
        if row["level"] != "direction" or not row["metric"].startswith(("recall@", "mrr")):
            continue
        key = ("output", "similarity", "score", "source", "target")
        mine = np.array([r["rank"] for r in ranks if all(r[name] == row[name] for name in key)])
        of = 1 / mine if row["metric"] == "mrr" else mine <= int(row["metric"].removeprefix("recall@"))
        assert row["value"] == pytest.approx(of.mean())
        assert row["queries"] == len(mine)
        compared += 1
    assert compared == 3 * 3 * 6 * 4  # outputs, scores, directions, metrics


def older(table: pa.Table) -> pa.Table:
    """A table as versions before `level` wrote it."""
    sides = [ends(row) for row in table.to_pylist()]
    for name, values in zip(("source", "target"), zip(*sides, strict=True), strict=True):
        table = table.set_column(table.column_names.index(name), name, pa.array(values, pa.string()))
    return table.drop_columns("level")


def test_a_folder_of_an_earlier_version_is_read_and_reported(tmp_path: Path) -> None:
    found = retrieve(fake_store(), "layer_02,final", options=RetrievalOptions(bootstrap=20))
    found.save(tmp_path / "r")
    past = older(found.table)
    assert {"mean", "en ↔ es"} <= set(past["source"].to_pylist())
    pq.write_table(past, tmp_path / "r" / "retrieval.parquet")
    (tmp_path / "r" / "ranks.parquet").unlink()
    for path in (tmp_path / "r").glob("*.pdf"):
        path.unlink()
    loaded = Retrieval.load(tmp_path / "r")
    assert loaded.table.equals(found.table, check_metadata=True)
    assert len(loaded.ranks) == 0
    assert loaded.to_markdown() == found.to_markdown()
    assert with_level(found.table) is found.table
    assert run("report", tmp_path) == 0
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "Which layer finds translations?" in page
    assert "application/pdf" not in page


def test_the_file_is_small_and_read_as_strings(tmp_path: Path) -> None:
    found = retrieve(fake_store(), "final", options=RetrievalOptions(bootstrap=0, permutations=0))
    found.save(tmp_path)
    read = pq.read_table(tmp_path / "ranks.parquet")
    assert read.to_pylist() == found.ranks.to_pylist()
    assert set(read["query"].to_pylist()) == {f"{language}-{g}" for language in ("en", "es", "uk") for g in range(6)}
