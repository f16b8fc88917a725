"""Pools of retrieval: all recordings, or of the sentences that two languages share the first recording of each."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from stores import Utterance, ends, make_store
from test_cli import run
from test_retrieval_table import FakeStore, fake_store

from voxstrata.base.errors import InputError, UsageError
from voxstrata.studies.retrieve import Retrieval, RetrievalOptions, evaluate_similarity, retrieve

ALL, FIRST = RetrievalOptions(ks=[1]), RetrievalOptions(ks=[1], pool="shared-first")


def planted() -> FakeStore:
    """One frame each, along an axis of its own for every sentence.

    The first recording of g0 in English, by id, is spoilt; it does not come first in the store. A Spanish sentence that
    English lacks equals that of g1.
    """
    axes = {"en-0-again": (0, "g0"), "en-1": (1, "g1"), "en-0": (7, "g0"), "en-2": (2, "g2"), "en-3": (3, "g3")}
    axes |= {f"es-{i}": (i, f"g{i}") for i in range(4)} | {"es-thief": (1, "Spanish alone")}
    entries: list[tuple[str, str | None, str | None, str]] = [(i, i[:2], g, "done") for i, (_, g) in axes.items()]
    return FakeStore(entries, {"final": [np.eye(8, dtype=np.float16)[[axis]] for axis, _ in axes.values()]})


def recall(found: Retrieval, similarity: str = "seqsim_f1") -> dict[tuple[str, str], dict[str, Any]]:
    return {
        ends(row): row
        for row in found.table.to_pylist()
        if (row["similarity"], row["score"], row["metric"]) == (similarity, "raw", "recall@1")
    }


@pytest.mark.parametrize("similarity", ["seqsim_f1", "seqsim_precision", "pooled_cosine"])
def test_the_first_of_each_shared_sentence_stands_alone(similarity: str) -> None:
    """`all`: a thief is in the pool, and a second recording may be found. `shared-first`: neither."""
    figures = {
        ALL.pool: {("en", "es"): (3 / 5, 1 / 5, 5, 5), ("es", "en"): (1, (2 / 5 + 3 / 5) / 4, 4, 5)},
        FIRST.pool: {("en", "es"): (3 / 4, 1 / 4, 4, 4), ("es", "en"): (3 / 4, 1 / 4, 4, 4)},
    }
    for options in (ALL, FIRST):
        rows = recall(retrieve(planted(), options=options), similarity)
        for direction, expected in figures[options.pool].items():
            row = rows[direction]
            got = (row["value"], row["chance"], row["queries"], row["candidates"])
            assert got == pytest.approx(expected), (options.pool, direction)
            assert row["low"] <= row["value"] <= row["high"]
            assert row["queries_without_partner"] == (options is ALL and direction[0] == "es")
    assert rows["en", "es"]["low"] < 3 / 4 < rows["en", "es"]["high"]  # one of four sentences is missed


def test_where_each_sentence_has_one_recording_everywhere_the_pools_are_one() -> None:
    of_all, of_first = (retrieve(fake_store(), options=options).table for options in (ALL, FIRST))
    assert set(of_all["pool"].to_pylist()) == {"all"}
    assert set(of_first["pool"].to_pylist()) == {"shared-first"}
    assert of_all.drop_columns("pool").equals(of_first.drop_columns("pool"))


def test_each_pair_of_languages_has_the_sentences_that_it_shares() -> None:
    """uk has g0 … g5, en g0 … g3, es g2 … g5."""
    store = fake_store()
    kept = {"uk": range(6), "en": range(4), "es": range(2, 6)}
    store.entries = [
        (name, language, group if int(name[-1]) in kept[language or ""] else f"{language} {group}", status)
        for name, language, group, status in store.entries
    ]
    rows = recall(retrieve(store, "final", options=FIRST))
    pools = {direction: row["candidates"] for direction, row in rows.items() if direction[0] != direction[1]}
    assert {pools[d] for d in (("uk", "en"), ("en", "uk"), ("uk", "es"), ("es", "uk"))} == {4}
    assert {pools[d] for d in (("en", "es"), ("es", "en"))} == {2}
    assert (rows["mean", "mean"]["candidates"], rows["mean", "mean"]["candidates_max"]) == (2, 4)
    assert rows["mean", "mean"]["chance"] == pytest.approx((4 / 4 + 2 / 2) / 6)


def test_languages_that_share_no_sentence_or_one_have_no_figures() -> None:
    store = fake_store(("en", "es"))
    plain = recall(retrieve(store, "final", options=FIRST))
    for name, group in (("ru-0", "g0"), ("ru-1", "Russian"), ("uk-0", "Ukrainian"), ("uk-1", "also Ukrainian")):
        store.entries.append((name, name[:2], group, "done"))
        for states in store.frames.values():
            states.append(np.ones((1, 8), np.float16))
    found = retrieve(store, "final", options=FIRST)
    rows = recall(found)
    assert found.settings["only_translations"] == ["en → ru", "es → ru", "ru → en", "ru → es"]
    assert (rows["en", "ru"]["value"], rows["en", "ru"]["queries"], rows["en", "ru"]["candidates"]) == (None, 0, 1)
    assert (rows["uk", "es"]["value"], rows["uk", "es"]["queries"], rows["uk", "es"]["candidates"]) == (None, 0, 0)
    for column in ("value", "low", "high", "chance", "queries", "candidates", "candidates_max"):
        assert rows["mean", "mean"][column] == plain["mean", "mean"][column]
    assert retrieve(store, "final", options=ALL).settings["only_translations"] == []
    with pytest.raises(InputError, match=r"every pool holds one sentence \(en → ru, ru → en\)"):
        retrieve(store, "final", "en,ru", options=FIRST)


def test_every_text_and_picture_says_which_pool_it_is(tmp_path: Path) -> None:
    for options, pool in ((ALL, "all"), (FIRST, "shared-first")):
        found = retrieve(fake_store(("en", "es")), options=options)
        assert found.settings["pool"] == pool
        first, best, *others, cka, mutual = found.tables()
        for table in (first, best, *others):
            assert f"pool of 6 candidates ({pool})" in table.note
        assert f"Pool {pool}: " in best.note
        assert all(f"its recordings (pool {pool})" in table.note for table in (cka, mutual))
        assert found.stored()[0].header[-1] == "pool"
        for figure in found.figures().values():
            assert f"({pool})" in " ".join(figure.get_suptitle().split())
    # tables of versions that knew one pool
    older = Retrieval(found.table.drop_columns("pool"))
    assert "pool of 6 candidates (all)" in older.to_markdown()
    assert "pool" not in older.stored()[0].header


def test_the_command_takes_a_pool_and_lists_have_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rng = np.random.default_rng(0)
    made = {
        f"{language}-{n}": Utterance(rng.standard_normal((3, 8)).astype(np.float32), language, f"g{n // 2}")
        for language in ("en", "es")
        for n in range(6)
    }
    make_store(tmp_path / "s.zarr", made)
    options = ("--bootstrap", 0, "--json")
    assert run("retrieve", tmp_path / "s.zarr", "-o", tmp_path / "r", "--pool", "shared-first", *options) == 0
    row = json.loads(capsys.readouterr().out)["rows"][0]
    assert (row["pool"], row["candidates"]) == ("shared-first", 3)
    assert (
        run("similarity", tmp_path / "s.zarr", "--outputs", "final", "--x", "en", "--y", "es", "-o", tmp_path / "p")
        == 0
    )
    found = evaluate_similarity(tmp_path / "p")
    assert set(found.table["pool"].to_pylist()) == {found.settings["pool"]} == {"all"}
    assert "Pool all: " in " ".join(str(found).split())
    with pytest.raises(UsageError, match="its lists were made of all recordings; for pool shared-first"):
        evaluate_similarity(tmp_path / "p", FIRST)
    assert run("retrieve", tmp_path / "p", "-o", tmp_path / "f", "--pool", "shared-first") == 2
    with pytest.raises(UsageError, match=r"unknown pool 'some'; known: all, shared-first"):
        RetrievalOptions(pool="some")
