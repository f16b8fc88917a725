"""Promises of candidate mode: exact scores on the pooled nearest only, and an honest count of what that misses."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from kills import contents
from stores import Utterance, make_store
from test_tiles import Counting, order, read_top, similarity, utterances

from voxstrata.base.errors import InputError, UsageError
from voxstrata.retrieval import Ragged, seqsim
from voxstrata.retrieval.all_pairs import prepare_similarity
from voxstrata.retrieval.kernels.float32 import Float32
from voxstrata.retrieval.selection import Selection, select
from voxstrata.store import EmbeddingStore
from voxstrata.store.claims import Claims
from voxstrata.store.files import Files
from voxstrata.store.part import Part

PER_LANGUAGE = 20


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> EmbeddingStore:
    return make_store(tmp_path_factory.mktemp("candidates") / "s.zarr", utterances(PER_LANGUAGE))


def exact(x: Selection, y: Selection) -> np.ndarray:
    """F1 of all pairs, by the in-memory function."""
    frames = [[side.store.frames(int(i), "final") for i in side.indices] for side in (x, y)]
    return seqsim(Ragged.from_list(frames[0]), Ragged.from_list(frames[1]), Float32()).f1


def pooled(x: Selection, y: Selection) -> np.ndarray:
    """Cosines of the mean frames, in float64."""
    means = [
        np.array([side.store.frames(int(i), "final").astype(float).mean(axis=0) for i in side.indices])
        for side in (x, y)
    ]
    a, b = (m / np.linalg.norm(m, axis=1, keepdims=True) for m in means)
    return a @ b.T


def groups(side: Selection) -> list[str]:
    return [name.split("-")[1] for name in side.ids]


@pytest.mark.parametrize("itself", [True, False])
@pytest.mark.parametrize("tile_frames", [40, 100_000])
def test_scores_are_exact_and_only_the_pooled_nearest_get_one(
    store: EmbeddingStore, tmp_path: Path, itself: bool, tile_frames: int
) -> None:
    x = select(store, None if itself else ["en"])
    y = None if itself else select(store, ["es"])
    report = similarity(x, y, "final", tmp_path / "r", top=3, candidates=5, tile_frames=tile_frames)
    other = x if y is None else y
    f1, cosine = exact(x, other), pooled(x, other)
    if itself:
        np.fill_diagonal(cosine, -np.inf)
    compared = set()
    assert report.candidates is not None
    assert set(report.candidates) == ({"forward"} if itself else {"forward", "backward"})
    for direction, queries, others, scores, nearness in (
        ("forward", x, other, f1, cosine),
        ("backward", other, x, f1.T, cosine.T),
    ):
        if direction not in report.candidates:
            continue
        nearest = np.argsort(-nearness, axis=1, kind="stable")[:, :5]
        wanted = []
        for q, row in enumerate(nearest):
            best = sorted(row.tolist(), key=lambda c: (-scores[q, c], c))[:3]
            wanted += [(queries.ids[q], rank, others.ids[c]) for rank, c in enumerate(best, start=1)]
            compared |= {(q, c) if direction == "forward" else (c, q) for c in row.tolist()}
        found = read_top(tmp_path / "r", direction)
        assert order(found) == wanted
        place = {name: i for i, name in enumerate(queries.ids)}, {name: i for i, name in enumerate(others.ids)}
        expected = [scores[place[0][row["query"]], place[1][row["candidate"]]] for row in found]
        np.testing.assert_allclose([row["f1"] for row in found], expected, atol=1e-6)
        # what it says of itself is what exact search says
        best_of_all = np.argmax(np.where(np.isinf(nearness), -np.inf, scores), axis=1)
        hits = [best_of_all[q] in nearest[q] for q in range(len(queries))]
        translated = [any(groups(others)[c] == g for c in nearest[q]) for q, g in enumerate(groups(queries))]
        assert report.candidates[direction] == {
            "sampled": len(queries),
            "exact_top1_among_candidates": pytest.approx(np.mean(hits)),
            "queries_with_translation": len(queries),
            "translation_among_candidates": pytest.approx(np.mean(translated)),
        }
        assert 0 < np.mean(hits) < 1  # the case tells something
    # a pair on a diagonal tile is compared from both ends, any other once
    assert len({tuple(sorted(p)) if itself else p for p in compared}) <= report.pairs <= len(compared)


def test_as_many_candidates_as_there_are_is_exact_search(store: EmbeddingStore, tmp_path: Path) -> None:
    x, y = select(store, ["en"]), select(store, ["es"])
    report = similarity(x, y, "final", tmp_path / "all", top=4, candidates=PER_LANGUAGE)
    similarity(x, y, "final", tmp_path / "exact", top=4)
    for direction in ("forward", "backward"):
        assert order(read_top(tmp_path / "all", direction)) == order(read_top(tmp_path / "exact", direction))
        assert report.candidates is not None
        assert report.candidates[direction]["exact_top1_among_candidates"] == 1
        assert report.candidates[direction]["translation_among_candidates"] == 1


def test_a_match_that_pooling_cannot_see_is_missed_and_the_report_says_so(tmp_path: Path) -> None:
    e = np.eye(4, dtype=np.float32)
    # the frames of query and translation are equal but for a small part, and that part decides their means
    query = np.stack([e[0], -e[0] + 0.1 * e[1], e[2], -e[2]])
    translation = np.stack([e[0], -e[0] - 0.1 * e[1], e[2], -e[2]])
    decoy = np.stack([e[1]])
    store = make_store(
        tmp_path / "s.zarr",
        {
            "q": Utterance(query, "en", "g"),
            "translation": Utterance(translation, "es", "g"),
            "decoy": Utterance(decoy, "es", None),
        },
    )
    x, y = select(store, ["en"]), select(store, ["es"])
    similarity(x, y, "final", tmp_path / "exact", top=1)
    report = similarity(x, y, "final", tmp_path / "fast", top=1, candidates=1)
    assert order(read_top(tmp_path / "exact", "forward")) == [("q", 1, "translation")]
    assert order(read_top(tmp_path / "fast", "forward")) == [("q", 1, "decoy")]
    assert report.candidates == {
        "forward": {
            "sampled": 1,
            "exact_top1_among_candidates": 0.0,
            "queries_with_translation": 1,
            "translation_among_candidates": 0.0,
        },
        "backward": {
            "sampled": 2,
            "exact_top1_among_candidates": 1.0,
            "queries_with_translation": 1,
            "translation_among_candidates": 1.0,
        },
    }


def test_a_sample_stands_for_all_and_is_always_the_same(store: EmbeddingStore, tmp_path: Path) -> None:
    x, y = select(store, ["en"]), select(store, ["es"])
    reports = [
        similarity(x, y, "final", tmp_path / str(n), top=1, candidates=5, sample=8, tile_frames=frames).candidates
        for n, frames in enumerate((40, 100_000))
    ]
    assert reports[0] == reports[1]
    assert reports[0] is not None
    assert reports[0]["forward"]["sampled"] == 8
    assert reports[0]["forward"]["exact_top1_among_candidates"] * 8 % 1 == 0
    assert reports[0]["forward"]["queries_with_translation"] == PER_LANGUAGE  # of all: it needs no exact search


def test_candidates_save_work(store: EmbeddingStore, tmp_path: Path) -> None:
    x, y = select(store, ["en"]), select(store, ["es"])
    kernel = Counting()
    similarity(x, y, "final", tmp_path / "r", top=1, candidates=1, sample=1, kernel=kernel)
    assert kernel.frame_pairs < 0.4 * x.lengths.sum() * y.lengths.sum()


def test_parts_and_resuming_give_the_whole(store: EmbeddingStore, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"top": 2, "candidates": 4, "sample": 5, "tile_frames": 60}
    sides = (select(store, ["en"]), select(store, ["es"]))
    whole = similarity(*sides, "final", tmp_path / "whole", **settings)
    parts = []
    prepare_similarity(*sides, "final", tmp_path / "parts", kernel=Float32(), **settings)
    for i, row in ((2, 0), (1, 1)):
        with Claims(Files(tmp_path / "parts")) as other:  # a run that has one row of the other part in work
            other.take(row if i == 2 else 999)
            parts.append(similarity(*sides, "final", tmp_path / "parts", part=Part(i, 2), **settings))
    assert whole.candidates is not None
    assert [p.candidates for p in parts] == [None, whole.candidates]
    assert contents(tmp_path / "parts") == contents(tmp_path / "whole")
    again = similarity(*sides, "final", tmp_path / "whole", **settings)
    assert again.pairs == 0
    assert again.candidates == whole.candidates  # reported always


def test_utterances_without_groups_have_no_translation_to_find(tmp_path: Path) -> None:
    lonely = {name: replace(u, group=None) for name, u in utterances(4).items()}
    store = make_store(tmp_path / "s.zarr", lonely)
    report = similarity(select(store), None, "final", tmp_path / "r", top=1, candidates=2)
    assert report.candidates is not None
    assert report.candidates["forward"]["queries_with_translation"] == 0
    assert report.candidates["forward"]["translation_among_candidates"] is None
    assert len(pq.read_table(tmp_path / "r" / "top.parquet")) == 8


def test_impossible_settings_and_means_without_direction_are_refused(store: EmbeddingStore, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--top 10 of --candidates 3: raise --candidates, or lower --top"):
        similarity(select(store), None, "final", tmp_path / "r", candidates=3)
    with pytest.raises(UsageError, match="leave out the matrix"):
        similarity(select(store), None, "final", tmp_path / "r", candidates=20, matrix=["f1"])
    frames = np.stack([np.eye(8)[0], -np.eye(8)[0]]).astype(np.float32)
    spoilt = make_store(tmp_path / "s.zarr", {**utterances(2), "zero mean": Utterance(frames)})
    with pytest.raises(InputError, match=r"s.zarr, output final: utterance 'zero mean': the pooled state is zero"):
        similarity(select(spoilt), None, "final", tmp_path / "r", top=1, candidates=1)
