"""Mined pairs: planted ones are found both ways, hubs fool the plain similarity alone, and precision is counted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from stores import Utterance, make_store
from test_cli import run

from voxstrata.base.errors import InputError, UsageError
from voxstrata.retrieval.all_pairs import similarity
from voxstrata.retrieval.kernels.float32 import Float32
from voxstrata.retrieval.mining import NearestLists, mine_lists
from voxstrata.retrieval.selection import select
from voxstrata.store import EmbeddingStore, StoreSpec
from voxstrata.studies.mine.judging import MiningOptions
from voxstrata.studies.mine.measure import mine, mine_similarity
from voxstrata.studies.mine.result import MinedPairs

D = 24


def unit(*parts: tuple[int, float]) -> np.ndarray:
    row = np.zeros(D)
    for axis, value in parts:
        row[axis] = value
    return row / np.linalg.norm(row)


def hubs() -> dict[str, Utterance]:
    """English and Spanish sentences 0 … 7, translations at a cosine of 0.7; a Spanish hub that is at 0.75 to every
    English sentence, and an English stray that is nearest to it: the best pair by cosine, and no translation."""
    made = {}
    for i in range(8):
        made[f"en-{i}"] = (unit((i, 1.0), (20, 1.0)), "en", f"g{i}")
        made[f"es-{i}"] = (unit((i, 0.8), (20, 0.19), (10 + i, 0.5692)), "es", f"g{i}")
    made["es-hub"] = (unit(*((i, 0.125) for i in range(8)), (20, 1.0)), "es", "hub")
    made["en-stray"] = (unit(*((i, 0.125) for i in range(8)), (20, 1.0), (21, 0.1)), "en", "stray")
    return {
        name: Utterance(np.repeat(row[None], 2, axis=0).astype(np.float32), language, group)
        for name, (row, language, group) in made.items()
    }


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> EmbeddingStore:
    return make_store(tmp_path_factory.mktemp("mining") / "s.zarr", hubs())


def pairs(found: MinedPairs) -> set[tuple[str, str]]:
    return set(zip(found.table["x"].to_pylist(), found.table["y"].to_pylist(), strict=True))


TRANSLATIONS = {(f"en-{i}", f"es-{i}") for i in range(8)}


def test_a_hub_fools_the_cosine_and_neither_the_margin_nor_csls(store: EmbeddingStore) -> None:
    x, y = select(store, "en"), select(store, "es")
    plain = mine(x, y, "final", MiningOptions("raw", bootstrap=0))
    assert pairs(plain) == {("en-stray", "es-hub")}  # every other English sentence has the hub for its best
    for score in ("ratio_margin", "csls"):
        found = mine(x, y, "final", MiningOptions(score, neighbours=4, bootstrap=0))
        assert pairs(found) == TRANSLATIONS | {("en-stray", "es-hub")}
        control = [row for row in found.curve.to_pylist() if row["score"] == "raw"]
        assert (control[-1]["judged"], control[-1]["correct"]) == (1, 0)
        if score == "ratio_margin":  # and the wrong pair comes last
            assert {(row["x"], row["y"]) for row in found.table.slice(0, 8).to_pylist()} == TRANSLATIONS
            assert found.curve.to_pylist()[0]["average_precision"] == 1
    both = mine(x, y, "final", MiningOptions(strategy="max", bootstrap=0))
    assert pairs(both) == TRANSLATIONS | {("en-stray", "es-hub")}


def by_hand(cosine: np.ndarray, k: int, score: str) -> np.ndarray:
    """Scores of all pairs by the papers' formulas, from a whole matrix."""
    r = np.sort(cosine, axis=1)[:, -k:].mean(axis=1)[:, None]
    s = np.sort(cosine, axis=0)[-k:].mean(axis=0)[None]
    return {"ratio_margin": cosine / ((r + s) / 2), "csls": 2 * cosine - r - s, "raw": cosine}[score]


def best_in_lists(scores: np.ndarray, cosine: np.ndarray, k: int) -> np.ndarray:
    near = np.argsort(-cosine, axis=1, kind="stable")[:, :k]
    return np.array([row[np.argmax(s[row])] for s, row in zip(scores, near, strict=True)])


@pytest.mark.parametrize("score", ["ratio_margin", "csls", "raw"])
def test_pairs_are_those_of_the_papers_on_a_whole_matrix(score: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    shape, k = (13, 11), 3
    states = {f"a{i:02d}": ("a", rng.standard_normal(D) + 1) for i in range(shape[0])}
    states |= {f"b{i:02d}": ("b", rng.standard_normal(D) + 1) for i in range(shape[1])}
    made = {name: Utterance(row[None].astype(np.float32), side) for name, (side, row) in states.items()}
    store = make_store(tmp_path / "s.zarr", made)
    x, y = select(store, "a"), select(store, "b")
    u, v = (np.array([states[name][1] for name in side.ids]) for side in (x, y))
    cosine = (u / np.linalg.norm(u, axis=1, keepdims=True)) @ (v / np.linalg.norm(v, axis=1, keepdims=True)).T
    scores = by_hand(cosine, k, score)
    there, back = best_in_lists(scores, cosine, k), best_in_lists(scores.T, cosine.T, k)
    expected = {(i, j): scores[i, j] for i, j in enumerate(there) if back[j] == i}
    found = mine(x, y, "final", MiningOptions(score, k, bootstrap=0)).table.to_pylist()
    assert {(row["x"], row["y"]): row["score"] for row in found} == pytest.approx(
        {(x.ids[i], y.ids[j]): s for (i, j), s in expected.items()}, abs=1e-6
    )
    assert [row["score"] for row in found] == sorted((row["score"] for row in found), reverse=True)
    for row in found:
        i, j = x.ids.index(row["x"]), y.ids.index(row["y"])
        assert row["rank"] == 1 + (cosine[i] > cosine[i, j] + 1e-9).sum()
        assert row["back_rank"] == 1 + (cosine[:, j] > cosine[i, j] + 1e-9).sum()
        assert row["similarity"] == pytest.approx(cosine[i, j], abs=1e-6)
    # the maximum: from the best down, each utterance once
    every = {(i, j) for i, j in enumerate(there)} | {(i, j) for j, i in enumerate(back)}
    taken: set[Any] = set()
    greedy = set()
    for i, j in sorted(every, key=lambda p: -scores[p]):
        if ("x", i) not in taken and ("y", j) not in taken:
            taken |= {("x", i), ("y", j)}
            greedy.add((x.ids[i], y.ids[j]))
    assert pairs(mine(x, y, "final", MiningOptions(score, k, "max", bootstrap=0))) == greedy
    assert len(greedy) > len(expected)


def test_copies_on_both_sides_pull_the_margin_of_a_true_pair_to_one(tmp_path: Path) -> None:
    """The known failure: with as many copies as neighbours, a pair does not stand out from them."""
    rng = np.random.default_rng(0)
    meaning = rng.standard_normal((6, D)).astype(np.float32)
    made = {f"{lang}-{i}": Utterance(meaning[i][None], lang, f"g{i}") for lang in ("en", "es") for i in range(6)}
    for lang in ("en", "es"):
        made |= {f"{lang}-0-copy{n}": Utterance(meaning[0][None], lang, "g0") for n in range(3)}
    store = make_store(tmp_path / "s.zarr", made)
    x, y = select(store, "en"), select(store, "es")
    assert pairs(mine(x, y, "final", MiningOptions(threshold=1.06, bootstrap=0))) == {
        (f"en-{i}", f"es-{i}") for i in range(1, 6)
    }
    everything = mine(x, y, "final", MiningOptions(bootstrap=0)).table.to_pylist()
    assert [row["score"] for row in everything if row["x_group"] == "g0"] == pytest.approx([1.0], abs=1e-6)


def test_seqsim_lists_are_mined_as_similarity_left_them(store: EmbeddingStore, tmp_path: Path) -> None:
    """Frames of an utterance are equal here, so SeqSim is the cosine of the means."""
    x, y = select(store, "en"), select(store, "es")
    similarity(x, y, "final", tmp_path / "r", top=9, kernel=Float32(), tile_frames=6)
    for strategy in ("intersection", "max"):
        how = MiningOptions(strategy=strategy, bootstrap=0)
        pooled, found = mine(x, y, "final", how), mine_similarity([tmp_path / "r"], how)
        assert pairs(found) == pairs(pooled)
        assert found.table["score"].to_pylist() == pytest.approx(pooled.table["score"].to_pylist(), abs=1e-5)
    assert found.settings["similarity"] == "seqsim_f1"
    with pytest.raises(UsageError, match=r"lists of 9, 16 neighbours wanted; .*--top 16"):
        mine_similarity([tmp_path / "r"], MiningOptions(neighbours=16))
    similarity(y, x, "final", tmp_path / "other", top=9, kernel=Float32())
    with pytest.raises(InputError, match="of other sets than"):
        mine_similarity([tmp_path / "r", tmp_path / "other"], MiningOptions())


def test_a_set_with_itself_gives_each_pair_once(store: EmbeddingStore, tmp_path: Path) -> None:
    everything = select(store)
    found = mine(everything, None, "final", MiningOptions("csls", 3, bootstrap=0))
    assert len({frozenset(pair) for pair in pairs(found)}) == len(found.table)
    assert {frozenset(pair) for pair in pairs(found)} >= {frozenset(pair) for pair in TRANSLATIONS}
    last = [row for row in found.curve.to_pylist() if row["score"] == "csls"][-1]
    assert last["possible"] == 8
    assert last["chance"] == pytest.approx(16 / (18 * 17))  # 16 of 18 utterances have one partner among 17
    similarity(everything, None, "final", tmp_path / "r", top=5, kernel=Float32())
    assert pairs(mine_similarity([tmp_path / "r"], MiningOptions("csls", 3, bootstrap=0))) == pairs(found)
    used = mine(everything, None, "final", MiningOptions("csls", 3, "max", bootstrap=0)).table
    names = used["x"].to_pylist() + used["y"].to_pylist()
    assert len(names) == len(set(names))


def test_precision_and_recall_are_counted_where_groups_are_known() -> None:
    """Six pairs, the highest score first: right, right, wrong, unknown, right and wrong at one score."""
    from voxstrata.retrieval.mining import MinedPositions
    from voxstrata.studies.mine.judging import PairJudge

    x_groups = ["a", "b", "c", None, "d", "e"]
    y_groups = ["a", "b", "z", "y", "d", "q", "e", "e"]

    def side(groups: list[str | None]) -> pa.Table:
        n = len(groups)
        ids = [str(i) for i in range(n)]
        return pa.table({"id": ids, "language": ["en"] * n, "group": pa.array(groups, pa.string())})

    judge = PairJudge(side(x_groups), side(y_groups), False, MiningOptions(bootstrap=200))
    at = np.arange(6)
    score = np.array([1.5, 1.4, 1.3, 1.2, 1.1, 1.1])
    mined = MinedPositions(at, at, score, score, at + 1, at + 1, score, score)
    rows = judge.curve("ratio_margin", mined, 1.3)
    chosen, *others = rows
    assert (chosen["threshold"], chosen["pairs"], chosen["judged"], chosen["correct"]) == (1.3, 3, 3, 2)
    assert (chosen["precision"], chosen["recall"]) == (pytest.approx(2 / 3), pytest.approx(2 / 4))
    assert chosen["precision_low"] <= 2 / 3 <= chosen["precision_high"]
    assert chosen["f1"] == pytest.approx(2 * (2 / 3) * 0.5 / (2 / 3 + 0.5))
    assert [row["judged"] for row in others] == [1, 2, 3, 3, 5]  # the last two have one score
    assert others[-1]["possible"] == 4  # a, b, d, and e once
    assert others[-1]["chance"] == pytest.approx((1 + 1 + 1 + 2) / (5 * 8))
    # right ones at ranks 1, 2, and with the run of equal scores 3 of 5
    assert others[-1]["average_precision"] == pytest.approx((1 + 1 + 3 / 5) / 4)


def test_a_threshold_is_chosen_on_half_of_the_groups_and_judged_on_the_other(tmp_path: Path) -> None:
    rng = np.random.default_rng(5)
    meaning, made = rng.standard_normal((60, D)), {}
    held = set(np.random.default_rng(0).permutation(60)[:30].tolist())  # for development; far noisier than the others
    for language in ("en", "es"):
        for i in range(60):
            row = meaning[i] + (1.2 if i in held else 0.3) * rng.standard_normal(D)
            made[f"{language}-{i:02d}"] = Utterance(row[None].astype(np.float32), language, f"g{i:02d}")
    store = make_store(tmp_path / "s.zarr", made)
    found = mine(select(store, "en"), select(store, "es"), "final", MiningOptions(threshold="best", bootstrap=100))
    rows = {row["part"]: row for row in found.curve.to_pylist() if row["chosen"]}
    assert set(rows) == {"all", "development", "test"}
    assert found.settings["development_groups"] == 30
    assert rows["all"]["correct"] == rows["development"]["correct"] + rows["test"]["correct"]
    everything = mine(select(store, "en"), select(store, "es"), "final", MiningOptions(bootstrap=0)).table.to_pylist()
    assert rows["all"]["pairs"] == len(found.table) < len(everything)
    assert rows["development"]["recall"] < 0.8 < rows["test"]["recall"]
    assert found.table["score"].to_pylist()[-1] >= rows["all"]["threshold"]
    [summary, _] = found.tables()
    assert summary.rows[0][3].startswith(f"{100 * rows['test']['precision']:.1f}")
    assert "highest F1 on 30 groups" in summary.note
    # no other threshold does better on the development groups
    best = 0.0
    for n in range(1, len(everything) + 1):
        own = [row for row in everything[:n] if int(row["x_group"][1:]) in held]
        right = sum(row["x_group"] == row["y_group"] for row in own)
        best = max(best, 2 * right / (len(own) + 30))
    assert rows["development"]["f1"] == pytest.approx(best)


def test_without_groups_pairs_are_mined_and_nothing_is_claimed(tmp_path: Path) -> None:
    made = {name: Utterance(u.frames, u.language) for name, u in hubs().items()}
    store = make_store(tmp_path / "s.zarr", made, spec=StoreSpec(("final",), pool="mean"))
    found = mine(select(store, "en"), select(store, "es"))
    assert pairs(found) >= TRANSLATIONS
    assert found.figures() == {}
    assert "nothing says how many pairs are right" in found.to_markdown()
    assert set(found.curve["precision"].to_pylist()) == {None}
    with pytest.raises(UsageError, match="0 are on both sides; give a number"):
        mine(select(store, "en"), select(store, "es"), options=MiningOptions(threshold="best"))


def test_one_utterance_with_itself_is_refused(store: EmbeddingStore) -> None:
    with pytest.raises(UsageError, match="one utterance has no other to be paired with"):
        mine(select(store, ids=["en-1"]), options=MiningOptions("raw", strategy="max"))


def test_a_ratio_of_negative_neighbourhoods_is_refused() -> None:
    lists = NearestLists(*[np.array([[0], [1]], np.int32), np.array([[-0.5], [0.4]])] * 2, itself=False)
    with pytest.raises(InputError, match="the ratio margin needs neighbours of positive mean"):
        mine_lists(lists, "ratio_margin", 1)
    assert mine_lists(lists, "csls", 1).x.tolist() == [0, 1]


@pytest.mark.parametrize(
    ("bad", "message"),
    [({"score": "cosine"}, "known: ratio_margin, csls, raw"), ({"strategy": "fwd"}, "known: intersection, max"),
     ({"threshold": "good"}, "give a number, or 'best'"), ({"neighbours": 0}, "0 neighbours")],
)  # fmt: skip
def test_impossible_options_are_refused(bad: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        MiningOptions(**bad)


def test_the_command_mines_stores_and_folders(
    store: EmbeddingStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    where = store.files.root
    sides = ("--x", "en", "--y", "es")
    assert run("mine", where, *sides, "-o", tmp_path / "m", "--threshold", 1.7, "--bootstrap", 20) == 0
    out = capsys.readouterr().out
    assert "Chance: precision 9.9 %" in " ".join(out.split())
    saved = MinedPairs.load(tmp_path / "m")
    assert pairs(saved) == TRANSLATIONS
    assert saved.settings["neighbours"] == 4
    assert (tmp_path / "m" / "mined.png").read_bytes().startswith(b"\x89PNG")
    assert run("mine", where, "--x", "en", "--y", "es", "-o", tmp_path / "m") == 3
    assert "--overwrite" in capsys.readouterr().err
    assert run("similarity", where, "--outputs", "final", "--x", "en", "--y", "es", "-o", tmp_path / "sim") == 0
    capsys.readouterr()
    assert run("mine", tmp_path / "sim", "-o", tmp_path / "s", "--json", "--bootstrap", 0) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["settings"]["similarity"] == "seqsim_f1"
    assert {(row["x"], row["y"]) for row in found["rows"]} >= TRANSLATIONS
    assert run("mine", tmp_path / "sim", "-o", tmp_path / "t", "--x", "en") == 2
    assert run("mine", where, where, where, "-o", tmp_path / "t") == 2
    assert run("mine", where, "-o", tmp_path / "t", "--threshold", "good") == 2
    assert not (tmp_path / "t").exists()
    assert run("report", tmp_path) == 0
    assert "mine: " in (tmp_path / "report.html").read_text(encoding="utf-8")
