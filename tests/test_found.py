"""What `similarity` found, judged by `retrieve`: what all scores give where the lists are long enough."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from stores import Utterance, ends, make_store
from test_cli import run
from test_tiles import D, similarity, spoilt

from voxstrata.base.errors import InputError
from voxstrata.evaluation.metrics import chance_mrr
from voxstrata.retrieval.kernels.float32 import Float32
from voxstrata.retrieval.selection import select
from voxstrata.store import EmbeddingStore
from voxstrata.store.part import Part
from voxstrata.studies.retrieve import FoundRetrieval, RetrievalOptions, evaluate_similarity, retrieve

PER_LANGUAGE = 20
COLUMNS = ("value", "low", "high", "chance", "queries", "queries_without_partner", "candidates")


def recordings(noise: float = 1.5) -> dict[str, Utterance]:
    """Noisy copies of one meaning in two languages; one sentence has a second recording, one in each no partner."""
    rng = np.random.default_rng(3)
    meaning = rng.standard_normal((PER_LANGUAGE, 1, D))
    made = {}
    for language in ("en", "es"):
        for i in (*range(PER_LANGUAGE), 0):
            frames = meaning[i] + noise * rng.standard_normal((int(rng.integers(3, 9)), D))
            name = f"{language}-{i}" + ("-again" if f"{language}-{i}" in made else "")
            group = f"{language} alone" if i == PER_LANGUAGE - 1 else f"g{i}"
            made[name] = Utterance(frames.astype(np.float32), language, group)
    return made


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> EmbeddingStore:
    return make_store(tmp_path_factory.mktemp("found") / "s.zarr", recordings())


def rows(found: FoundRetrieval) -> dict[tuple[str, str], dict[str, Any]]:
    return {(row["direction"], row["metric"]): row for row in found.table.to_pylist()}


def test_lists_as_long_as_the_pool_give_what_all_scores_give(store: EmbeddingStore, tmp_path: Path) -> None:
    similarity(select(store, "en"), select(store, "es"), "final", tmp_path / "r", top=PER_LANGUAGE + 1, tile_frames=40)
    found = rows(evaluate_similarity(tmp_path / "r"))
    options = RetrievalOptions(("raw",), kernel=Float32())
    table = retrieve(store, similarities="seqsim_f1", options=options).table.to_pylist()
    plain = {(*ends(row), row["metric"]): row for row in table}
    sides = {"forward": ("en", "es"), "backward": ("es", "en"), "mean": ("mean", "mean")}
    metrics = {
        "recall@1": "recall@1",
        "recall@5": "recall@5",
        "recall@10": "recall@10",
        f"mrr@{PER_LANGUAGE + 1}": "mrr",
    }
    for (direction, names), (ours, theirs) in itertools.product(sides.items(), metrics.items()):
        got, expected = found[direction, ours], plain[*names, theirs]
        for column in COLUMNS:
            assert got[column] == pytest.approx(expected[column], rel=1e-9), (direction, ours, column)
    assert 0.2 < found["forward", "recall@1"]["value"] < 0.9  # the case tells something
    assert found["forward", "recall@1"]["queries_without_partner"] == 1
    assert ("forward", "f1_of_best") in found


def test_short_lists_give_their_own_recalls_and_count_nothing_beyond(store: EmbeddingStore, tmp_path: Path) -> None:
    sides = select(store, "en"), select(store, "es")
    similarity(*sides, "final", tmp_path / "short", top=5, tile_frames=40)
    similarity(*sides, "final", tmp_path / "long", top=PER_LANGUAGE + 1, tile_frames=40)
    short, long = (evaluate_similarity(tmp_path / name) for name in ("short", "long"))
    assert [m for d, m in rows(short) if d == "forward"] == ["recall@1", "recall@5", "mrr@5", "f1_of_best"]
    for direction, metric in itertools.product(("forward", "backward", "mean"), ("recall@1", "recall@5")):
        assert rows(short)[direction, metric] == rows(long)[direction, metric]
    assert rows(short)["forward", "mrr@5"]["value"] < rows(long)["forward", f"mrr@{PER_LANGUAGE + 1}"]["value"]
    assert "not from all scores" in short.to_markdown()


def test_chance_of_short_lists_is_the_mean_over_all_orders() -> None:
    for partners, top in itertools.product((1, 2, 4), (1, 3, 5, 9)):
        right = [order[:partners] for order in itertools.permutations(range(5))]
        firsts = [1 + min(order) for order in right]
        expected = np.mean([1 / first if first <= top else 0.0 for first in firsts])
        assert chance_mrr(np.array([partners]), 5, top) == pytest.approx(expected)
    assert chance_mrr(np.array([1, 3]), 40, 40) == pytest.approx(chance_mrr(np.array([1, 3]), 40))


def test_a_set_with_itself_looks_for_other_recordings(store: EmbeddingStore, tmp_path: Path) -> None:
    everything = select(store)
    similarity(everything, None, "final", tmp_path / "r", top=len(everything) - 1)
    found = evaluate_similarity(tmp_path / "r", RetrievalOptions(bootstrap=0))
    row = rows(found)["forward", "recall@1"]
    assert {direction for direction, _ in rows(found)} == {"forward"}
    pool, lone = len(everything) - 1, 2
    assert (row["candidates"], row["queries"], row["queries_without_partner"]) == (pool, pool + 1 - lone, lone)
    partners = [3] * 4 + [1] * (row["queries"] - 4)  # four recordings of one sentence, two of the others
    assert row["chance"] == pytest.approx(np.mean(partners) / pool)
    frames = {name: store.frames(name, "final").astype(float) for name in store.ids}
    group = dict(zip(store.ids, store.utterances["group"].to_pylist(), strict=True))
    hits = []
    for name in store.ids:
        others = [other for other in store.ids if other != name]
        if group[name] in {group[other] for other in others}:
            best = max(others, key=lambda other: f1(frames[name], frames[other]))
            hits.append(group[best] == group[name])
    assert row["value"] == pytest.approx(np.mean(hits))
    assert row["low"] is None


def f1(x: np.ndarray, y: np.ndarray) -> float:
    a, b = (z / np.linalg.norm(z, axis=1, keepdims=True) for z in (x, y))
    p, r = (a @ b.T).max(axis=1).mean(), (a @ b.T).max(axis=0).mean()
    return float(2 * p * r / (p + r) if min(p, r) > 0 else min(p, r))


def test_equal_scores_count_against_the_query_as_far_as_the_list_goes(tmp_path: Path) -> None:
    frames = np.eye(D, dtype=np.float32)[:3]  # all alike: every score is 1
    made = {"q": Utterance(frames, "en", "g0")} | {f"c{i}": Utterance(frames, "es", f"g{i}") for i in range(4)}
    store = make_store(tmp_path / "s.zarr", made)
    similarity(select(store, "en"), select(store, "es"), "final", tmp_path / "r", top=3)
    found = rows(evaluate_similarity(tmp_path / "r", RetrievalOptions(bootstrap=0)))
    first = store.ids.index("c0") < max(store.ids.index(f"c{i}") for i in (1, 2, 3))
    assert first  # it is on the list, and of the two others there both rank ahead; the fourth candidate is not seen
    assert found["forward", "recall@1"]["value"] == 0
    assert found["forward", "mrr@3"]["value"] == pytest.approx(1 / 3)


def test_a_pool_of_translations_alone_has_no_figures(tmp_path: Path) -> None:
    made = {name: Utterance(np.eye(D, dtype=np.float32)[:2], name[:2], "g") for name in ("en-1", "es-1", "es-2")}
    store = make_store(tmp_path / "s.zarr", made)
    similarity(select(store, "en"), select(store, "es"), "final", tmp_path / "r", top=1)
    found = evaluate_similarity(tmp_path / "r")
    row = rows(found)["forward", "recall@1"]
    assert (row["value"], row["chance"], row["queries"]) == (None, None, 0)
    assert "–" in str(found)


def test_what_candidates_miss_is_said_and_counts_as_not_found(store: EmbeddingStore, tmp_path: Path) -> None:
    sides = select(store, "en"), select(store, "es")
    report = similarity(*sides, "final", tmp_path / "r", top=2, candidates=2)
    found = evaluate_similarity(tmp_path / "r")
    _, misses = found.tables()
    assert report.candidates is not None
    expected = [
        [100 * value if name.endswith("among_candidates") else value for name, value in shares.items()]
        for shares in report.candidates.values()
    ]
    assert [list(row) for row in misses.rows] == [["en → es", *expected[0]], ["es → en", *expected[1]]]
    assert "2 nearest by mean-pooled cosine alone" in found.to_markdown()
    share = report.candidates["forward"]["translation_among_candidates"]
    assert rows(found)["forward", "mrr@2"]["value"] <= share < 1


def test_groups_that_nobody_knows_leave_figures_open(tmp_path: Path) -> None:
    store = make_store(tmp_path / "s.zarr", {f"u{i}": Utterance(np.eye(D, dtype=np.float32)[i:]) for i in range(3)})
    similarity(select(store), None, "final", tmp_path / "r")
    row = rows(evaluate_similarity(tmp_path / "r"))["forward", "recall@1"]
    assert (row["value"], row["queries"], row["queries_without_partner"]) == (None, 0, 3)


def test_an_unfinished_comparison_is_refused(tmp_path: Path) -> None:
    store = make_store(tmp_path / "s.zarr", spoilt(6, "en-3", math.nan))
    with pytest.raises(InputError, match="'en-3': frame"):
        similarity(
            select(store, ["en"]), select(store, ["es"]), "final", tmp_path / "r", tile_frames=24, part=Part(1, 2)
        )
    with pytest.raises(InputError, match="has not finished here; run it again"):
        evaluate_similarity(tmp_path / "r")
    similarity(select(store, ["es"]), None, "final", tmp_path / "whole")
    (tmp_path / "whole" / "top.parquet").write_bytes(b"PAR1")
    with pytest.raises(InputError, match=r"whole/top.parquet: damaged .*run `voxstrata similarity` again"):
        evaluate_similarity(tmp_path / "whole")
    with pytest.raises(InputError, match=r"s\.zarr: a store, not a folder of `voxstrata similarity`"):
        evaluate_similarity(tmp_path / "s.zarr")


def test_the_command_takes_what_similarity_made(
    store: EmbeddingStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sides = ("--x", "en", "--y", "es", "--outputs", "final")
    assert run("similarity", store.files.root, *sides, "-o", tmp_path / "en-es") == 0
    capsys.readouterr()
    assert run("retrieve", tmp_path / "en-es", "-o", tmp_path / "r", "--bootstrap", 50, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    loaded = FoundRetrieval.load(tmp_path / "r")
    assert loaded.table.to_pylist() == found["rows"]
    assert loaded.title == "final: the best 10 of each utterance, en (21) and es (21)"
    assert sorted(path.name for path in (tmp_path / "r").iterdir()) == ["found.md", "found.parquet"]
    assert run("retrieve", tmp_path / "en-es", "-o", tmp_path / "r", "--languages", "en,es") == 2
    assert "were chosen when" in capsys.readouterr().err
