"""Promises of similarity at corpus scale: exact whatever the tiles, resumable, distributable, choosy about input."""

from __future__ import annotations

import itertools
import json
import re
import signal
import sys
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from itertools import count
from pathlib import Path
from threading import Timer
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import zarr
from kills import PROCESSES, compare, contents
from stores import Utterance, make_store
from test_cli import run

from voxstrata.base.errors import InputError, UsageError
from voxstrata.base.progress import Progress, Reporter
from voxstrata.encoders import Context
from voxstrata.retrieval import tileplan
from voxstrata.retrieval.all_pairs import similarity as similarity_of
from voxstrata.retrieval.kernels.base import Packed
from voxstrata.retrieval.kernels.float32 import Float32
from voxstrata.retrieval.ragged import Ragged
from voxstrata.retrieval.selection import select
from voxstrata.retrieval.topk import TopK
from voxstrata.store import EmbeddingStore, StoreSpec, files, open_store
from voxstrata.store.files import Files
from voxstrata.store.part import Part
from voxstrata.studies.mine.judging import MiningOptions
from voxstrata.studies.mine.measure import mine_similarity

D = 8
N = 12  # utterances per language
MATRICES = ("f1", "precision", "recall")
similarity = partial(similarity_of, kernel=Float32())  # whose error is small enough for exact expectations


def utterances(
    per_language: int, languages: tuple[str, ...] = ("en", "es"), longest: int = 12, seed: int = 0
) -> dict[str, Utterance]:
    rng = np.random.default_rng(seed)
    return {
        f"{language}-{i}": Utterance(
            rng.standard_normal((int(rng.integers(1, longest + 1)), D)).astype(np.float32), language, f"g{i}"
        )
        for language in languages
        for i in range(per_language)
    }


def spoilt(per_language: int, name: str, value: float) -> dict[str, Utterance]:
    """`utterances`, the last frame of one of them of this value throughout."""
    made = utterances(per_language)
    made[name].frames[-1] = value
    return made


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> EmbeddingStore:
    return make_store(tmp_path_factory.mktemp("tiles") / "s.zarr", utterances(N))


def oracle(a: np.ndarray, b: np.ndarray) -> tuple[float, float, float]:
    """F1, precision, recall of one pair, in float64, frame by frame."""
    cosines = [[float(x @ y) / np.sqrt(float(x @ x) * float(y @ y)) for y in b.astype(float)] for x in a.astype(float)]
    p = float(np.mean([max(row) for row in cosines]))
    r = float(np.mean([max(row[j] for row in cosines) for j in range(len(b))]))
    return (2 * p * r / (p + r) if min(p, r) > 0 else min(p, r)), p, r


@pytest.fixture(scope="module")
def truth(store: EmbeddingStore) -> np.ndarray:
    """F1, precision and recall of all pairs of the store, (3, n, n) float64."""
    frames = [store.frames(i, "final") for i in range(len(store))]
    return np.moveaxis(np.array([[oracle(a, b) for b in frames] for a in frames]), -1, 0)


def expected_top(
    truth: np.ndarray, queries: np.ndarray, candidates: np.ndarray, ids: list[str], k: int
) -> list[tuple[str, int, str]]:
    """(query, rank, candidate) by a plain sort; an utterance is no candidate of itself."""
    rows = []
    for q in queries.tolist():
        others = [c for c in candidates.tolist() if c != q]
        best = sorted(others, key=lambda c: (-truth[0, q, c], c))[:k]
        rows += [(ids[q], rank, ids[c]) for rank, c in enumerate(best, start=1)]
    return rows


def read_top(folder: Path, direction: str) -> list[dict[str, Any]]:
    return [row for row in pq.read_table(folder / "top.parquet").to_pylist() if row["direction"] == direction]


def order(rows: list[dict[str, Any]]) -> list[tuple[str, int, str]]:
    return [(row["query"], row["rank"], row["candidate"]) for row in rows]


# --- what is computed ---


@pytest.mark.parametrize("tile_frames", [1, 40, 100_000])
def test_two_sets_match_a_float64_loop_whatever_the_tiles(
    store: EmbeddingStore, truth: np.ndarray, tmp_path: Path, tile_frames: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tileplan, "MIN_CHUNK_UTTERANCES", 2)
    x, y = select(store, ["en"]), select(store, ["es"])
    report = similarity(x, y, "final", tmp_path / "r", top=4, matrix=MATRICES, tile_frames=tile_frames)
    assert report.merged
    assert report.pairs == N * N
    assert (report.rows == 1) == (tile_frames == 100_000)
    wanted = truth[:, x.indices[:, None], y.indices]
    root = zarr.open_group(tmp_path / "r" / "matrix.zarr", mode="r")
    for name, values in zip(MATRICES, wanted, strict=True):
        np.testing.assert_allclose(root[name][:], values, atol=1e-6)
    for direction, queries, candidates in (("forward", x, y), ("backward", y, x)):
        rows = read_top(tmp_path / "r", direction)
        assert order(rows) == expected_top(truth, queries.indices, candidates.indices, store.ids, 4)
        for row in rows:
            pair = store.index(row["query"]), store.index(row["candidate"])
            np.testing.assert_allclose([row[n] for n in MATRICES], truth[:, pair[0], pair[1]], atol=1e-6)


@pytest.mark.parametrize("tile_frames", [1, 40, 100_000])
def test_a_set_with_itself_matches_a_float64_loop_and_is_no_match_of_itself(
    store: EmbeddingStore, truth: np.ndarray, tmp_path: Path, tile_frames: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tileplan, "MIN_CHUNK_UTTERANCES", 2)
    x = select(store)
    similarity(x, None, "final", tmp_path / "r", top=5, matrix=MATRICES, tile_frames=tile_frames)
    root = zarr.open_group(tmp_path / "r" / "matrix.zarr", mode="r")
    for name, values in zip(MATRICES, truth, strict=True):
        np.testing.assert_allclose(root[name][:], values, atol=1e-6)
    np.testing.assert_allclose(np.diagonal(root["f1"][:]), 1, atol=1e-6)
    assert order(read_top(tmp_path / "r", "forward")) == expected_top(truth, x.indices, x.indices, store.ids, 5)
    assert read_top(tmp_path / "r", "backward") == []
    assert pq.read_table(tmp_path / "r" / "rows.parquet")["id"].to_pylist() == store.ids


class Counting(Float32):
    """Counts pairs of frames, and packed blocks that are alive."""

    def __init__(self) -> None:
        super().__init__()
        self.frame_pairs = self.alive = self.most_alive = 0

    def pack(self, utterances: Ragged) -> Packed:
        packed = super().pack(utterances)
        self.alive += 1
        self.most_alive = max(self.most_alive, self.alive)
        weakref.finalize(packed, self._gone)
        return packed

    def _gone(self) -> None:
        self.alive -= 1

    def compare(self, x: Packed, y: Packed) -> Any:
        self.frame_pairs += int(x.offsets[-1]) * int(y.offsets[-1])
        time.sleep(0.002)  # long enough for the reader to run as far ahead as it may
        return super().compare(x, y)


def test_a_set_with_itself_costs_half_the_work_and_three_blocks_of_memory(
    store: EmbeddingStore, tmp_path: Path
) -> None:
    kernel = Counting()
    x = select(store)
    report = similarity(x, None, "final", tmp_path / "r", kernel=kernel, tile_frames=12)
    blocks = np.diff(np.add.accumulate(np.concatenate([[0], x.lengths]))[x.blocks(12, 10**6)])
    assert len(blocks) == report.rows > 10
    assert kernel.frame_pairs == (int(blocks.sum()) ** 2 + int((blocks**2).sum())) // 2
    assert 2 <= kernel.most_alive <= 3


def test_two_stores_of_one_model_are_compared_as_one_with_itself(store: EmbeddingStore, tmp_path: Path) -> None:
    again = make_store(tmp_path / "again.zarr", utterances(N))
    similarity(select(store), select(again), "final", tmp_path / "two", matrix=["f1"], tile_frames=30)
    similarity(select(store), None, "final", tmp_path / "one", matrix=["f1"], tile_frames=30)
    two, one = (zarr.open_group(tmp_path / n / "matrix.zarr", mode="r")["f1"][:] for n in ("two", "one"))
    np.testing.assert_allclose(two, one, atol=1e-6)
    # the one thing that tells them apart: here each utterance finds its copy
    assert all(row["candidate"] == row["query"] for row in read_top(tmp_path / "two", "forward") if row["rank"] == 1)


def test_one_store_is_known_by_any_of_its_paths(
    store: EmbeddingStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Path(store.files.root)
    (tmp_path / "link.zarr").symlink_to(folder)
    monkeypatch.chdir(folder.parent)
    for path in (folder.name, f"./{folder.name}", f"{folder}/", tmp_path / "link.zarr"):
        with pytest.raises(UsageError, match="share 24 utterances"):
            similarity(select(store), select(open_store(path)), "final", tmp_path / "r")


def test_ids_choose_a_set(store: EmbeddingStore, truth: np.ndarray, tmp_path: Path) -> None:
    x, y = select(store, ids=["es-3", "en-0", "en-7"]), select(store, ["es"], ["es-1", "es-2", "en-1"])
    assert sorted(y.ids) == ["es-1", "es-2"]
    similarity(x, y, "final", tmp_path / "r", top=1)
    assert order(read_top(tmp_path / "r", "forward")) == expected_top(truth, x.indices, y.indices, store.ids, 1)


# --- the best k ---


def test_equal_scores_go_to_the_lower_position_in_whatever_order_tiles_come() -> None:
    rng = np.random.default_rng(0)
    scores = rng.choice([-1.0, -0.25, -0.0, 0.0, 0.5, 1.0], (30, 40)).astype(np.float32)
    scores[15:] = rng.choice([-1.0, -0.25, -0.0, 0.0], (15, 40))  # where zeros of both signs are the best
    by_sort = np.argsort(-scores, axis=1, kind="stable")[:, :7]
    for tile in (1, 7, 40):
        best = TopK(30, 7)
        corners = [(i, j) for i in range(0, 30, tile) for j in range(0, 40, tile)]
        for n in rng.permutation(len(corners)):
            i, j = corners[n]
            block = scores[i : i + tile, j : j + tile]
            best.update(i, j, block, 2 * block, 3 * block)
        table = best.table("forward")
        np.testing.assert_array_equal(np.asarray(table["candidate"]).reshape(30, 7), by_sort)
        f1 = np.asarray(table["f1"])
        np.testing.assert_array_equal(f1.reshape(30, 7), np.take_along_axis(scores, by_sort, axis=1))
        np.testing.assert_array_equal(np.asarray(table["precision"]), 2 * f1)
        np.testing.assert_array_equal(np.asarray(table["recall"]), 3 * f1)


def test_copies_of_one_recording_rank_by_position(tmp_path: Path) -> None:
    frames = np.eye(D, dtype=np.float32)[:3]  # cosines of 0 and 1 alone: exact in any arithmetic
    store = make_store(tmp_path / "s.zarr", {f"u{i}": Utterance(frames) for i in range(9)})
    for tile_frames in (3, 7, 100):
        folder = tmp_path / str(tile_frames)
        similarity(select(store), None, "final", folder, top=3, tile_frames=tile_frames)
        for i, name in enumerate(store.ids):
            found = [row["candidate"] for row in read_top(folder, "forward") if row["query"] == name]
            assert found == [store.ids[j] for j in range(9) if j != i][:3]


def test_fewer_candidates_than_asked_for_are_all_kept(store: EmbeddingStore, tmp_path: Path) -> None:
    similarity(select(store, ids=["en-1", "en-2", "en-3"]), None, "final", tmp_path / "r", top=10)
    rows = read_top(tmp_path / "r", "forward")
    assert [row["rank"] for row in rows] == [1, 2] * 3


# --- resuming ---

SETTINGS: dict[str, Any] = {"top": 3, "matrix": ["f1", "recall"], "tile_frames": 24}


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> EmbeddingStore:
    return make_store(tmp_path_factory.mktemp("few") / "s.zarr", utterances(7))


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tileplan, "MIN_CHUNK_UTTERANCES", 2)


class Stop(Exception):
    pass


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("itself", [pytest.param(True, marks=pytest.mark.long), False])
def test_stopping_before_or_within_any_write_leaves_no_trace_after_resuming(
    few: EmbeddingStore, tmp_path: Path, itself: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    sides = (select(few, ["en"]), None if itself else select(few, ["es"]))
    similarity(*sides, "final", tmp_path / "whole", **SETTINGS)
    expected = contents(tmp_path / "whole")
    write = Files.write
    stops = 0
    for at in range(1000):
        writes = count()  # chunks are written by several threads

        def stopping(self: Files, name: str, data: bytes, at: int = at, writes: Iterator[int] = writes) -> None:
            if next(writes) == at:
                assert self.local is not None
                (self.local / name).parent.mkdir(parents=True, exist_ok=True)
                (self.local / f"{name}.partial").write_bytes(data[: len(data) // 2])
                raise Stop
            write(self, name, data)

        folder = tmp_path / str(at)
        monkeypatch.setattr(Files, "write", stopping)
        try:
            similarity(*sides, "final", folder, **SETTINGS)
        except Stop:
            stops += 1
        else:
            break
        finally:
            monkeypatch.setattr(Files, "write", write)
        assert not (folder / "top.parquet").exists()
        committed = len(list(folder.glob("units/*/done.json")))
        report = similarity(*sides, "final", folder, **SETTINGS)
        assert report.resumed_rows == committed
        assert report.rows_done == report.rows == len([n for n in expected if n.endswith("done.json")])
        assert contents(folder) == expected
    # each file is written once: tables, plan and markers, and, of the matrices, zarr's metadata and every chunk
    assert any(name.startswith("matrix.zarr/f1/c/") for name in expected)
    assert stops == len(expected)


@pytest.mark.usefixtures("small_chunks")
def test_what_a_killed_run_left_half_written_is_swept_away(few: EmbeddingStore, tmp_path: Path) -> None:
    similarity(select(few), None, "final", tmp_path / "r", **SETTINGS)
    expected = contents(tmp_path / "r")
    (tmp_path / "r" / "top.parquet").unlink()
    (tmp_path / "r" / "claims").mkdir()  # of a run killed after its last commit
    (tmp_path / "r" / "claims" / "000000").touch()
    for name in ("matrix.zarr/f1/c/0/0.5b0f.partial", "units/000001/top.parquet.partial"):
        (tmp_path / "r" / name).write_bytes(b"half")
    similarity(select(few), None, "final", tmp_path / "r", **SETTINGS)
    assert contents(tmp_path / "r") == expected


class Seen(Reporter):
    """Keeps what it is told of progress."""

    def __init__(self) -> None:
        self.all: list[Progress] = []

    def progress(self, progress: Progress) -> None:
        self.all.append(progress)


class Meanwhile(Float32):
    """Does something else during its first comparison, or already when it packs the first block."""

    def __init__(self, something: Callable[[], Any], packing: bool = False) -> None:
        super().__init__()
        self.something: Callable[[], Any] | None = something
        self.packing = packing

    def _now(self) -> None:
        if self.something is not None:
            do, self.something = self.something, None
            do()

    def pack(self, utterances: Ragged) -> Packed:
        if self.packing:
            self._now()
        return super().pack(utterances)

    def compare(self, x: Packed, y: Packed) -> Any:
        self._now()
        return super().compare(x, y)


@pytest.mark.usefixtures("small_chunks")
def test_rows_that_another_run_commits_meanwhile_are_not_computed_again(few: EmbeddingStore, tmp_path: Path) -> None:
    sides = (select(few, ["en"]), select(few, ["es"]))
    similarity(*sides, "final", tmp_path / "whole", **SETTINGS)
    others = []
    kernel = Meanwhile(
        lambda: others.append(similarity(*sides, "final", tmp_path / "r", part=Part(2, 2), **SETTINGS))  # all but row 0
    )
    seen = Seen()
    report = similarity(*sides, "final", tmp_path / "r", kernel=kernel, reporter=seen, **SETTINGS)
    assert report.rows > 2
    assert report.resumed_rows == report.rows - 1
    assert others[0].pairs > 0
    assert not others[0].merged
    assert report.pairs + others[0].pairs == 7 * 7
    assert seen.all[-1].done == seen.all[-1].total == 7 * 7  # of the whole, whoever computed it
    assert seen.all[-1].rated == report.pairs  # by this run
    assert report.merged
    assert contents(tmp_path / "r") == contents(tmp_path / "whole")


@pytest.mark.parametrize("begun", [False, True])
def test_runs_wait_as_long_as_another_one_holds_the_folder(
    few: EmbeddingStore, tmp_path: Path, begun: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that makes it, maybe searching candidates for long, and one that merges or is about to look."""
    an_hour_a_look = SimpleNamespace(sleep=time.sleep, monotonic=count(0, 3600).__next__)
    monkeypatch.setattr(files, "time", an_hour_a_look)
    with ExitStack() as folder:

        def hold() -> None:
            folder.enter_context(Files(tmp_path / "r").lock())
            Timer(0.3, folder.close).start()

        kernel = Meanwhile(hold)
        if not begun:
            hold()
            kernel = Meanwhile(lambda: None)
        report = similarity(select(few), None, "final", tmp_path / "r", kernel=kernel)
    assert report.rows == 1
    assert report.merged


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
def test_kills_at_random_instants_leave_no_trace_after_resuming(few: EmbeddingStore, tmp_path: Path) -> None:
    begin = time.perf_counter()
    similarity(select(few), None, "final", tmp_path / "whole", **SETTINGS)
    seconds = time.perf_counter() - begin
    expected = contents(tmp_path / "whole")
    rng = np.random.default_rng(0)
    killed_in: list[int] = []
    for n in itertools.count():
        folder = tmp_path / str(n)
        child = PROCESSES.Process(target=compare, args=(few.files.root, str(folder), SETTINGS))
        child.start()
        while child.exitcode is None and not (folder.is_dir() and any(folder.iterdir())):
            child.join(0.001)
        child.join(rng.uniform(0, seconds))
        seconds /= 1.2  # should each have come to its end
        child.kill()
        child.join()
        assert child.exitcode in (0, -signal.SIGKILL)
        if child.exitcode:
            killed_in.append(len(list(folder.glob("units/*/done.json"))))
        similarity(select(few), None, "final", folder, **SETTINGS)
        assert contents(folder) == expected
        if len(killed_in) == 3:
            break


@pytest.mark.usefixtures("small_chunks")
def test_results_may_lie_in_an_object_store(few: EmbeddingStore, tmp_path: Path) -> None:
    similarity(select(few), None, "final", tmp_path / "r", **SETTINGS)
    url = "memory://similarity"
    for part in (2, 1):
        similarity(select(few), None, "final", url, part=Part(part, 2), **SETTINGS)
    remote = Files(url)
    for name, data in contents(tmp_path / "r").items():
        assert remote.read(name) == data


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"top": 4}, "top is 3 there, 4 here"),
        ({"matrix": []}, "matrix is"),
        ({"tile_frames": 10}, "x_begin"),
        ({"y": "all"}, "y utterances is 7 there, 6 here"),
        ({"y": None}, "one set with itself is False there, True here"),
        ({"kernel": "other"}, "kernel is float32 there, other here"),
    ],
)
@pytest.mark.usefixtures("small_chunks")
def test_results_of_another_plan_are_refused_naming_the_difference(
    few: EmbeddingStore, tmp_path: Path, change: dict[str, Any], named: str
) -> None:
    sides: dict[str, Any] = {"x": select(few, ["en"]), "y": select(few, ["es"])}
    similarity(**sides, output="final", out=tmp_path / "r", **SETTINGS)
    before = contents(tmp_path / "r")
    if "y" in change:
        some = [name for name in few.ids if name.startswith("es")][:6]
        change = {"y": None if change["y"] is None else select(few, ids=some)}
    if "kernel" in change:
        kernel = Float32()
        kernel.name = change["kernel"]
        change = {"kernel": kernel}
    with pytest.raises(InputError, match="cannot resume") as e:
        similarity(**{**sides, **SETTINGS, **change}, output="final", out=tmp_path / "r")
    assert named in str(e.value)
    assert contents(tmp_path / "r") == before


@pytest.mark.parametrize("itself", [False, True])
def test_a_folder_of_which_nothing_is_committed_takes_the_mended_command(tmp_path: Path, itself: bool) -> None:
    store = make_store(tmp_path / "s.zarr", spoilt(6, "en-3", np.nan))
    y = None if itself else select(store, ["es"])
    for part, kept in ((None, False), (Part(1, 2), True)):  # other runs may be at the second
        with pytest.raises(InputError, match="'en-3': frame"):
            similarity(select(store, ["en"]), y, "final", tmp_path / "r", tile_frames=24, part=part)
        assert (tmp_path / "r" / "plan.json").exists() == kept
        assert (tmp_path / "r").exists() == kept
    good = select(store, ids=[f"en-{i}" for i in range(6) if i != 3])
    for name in ("r", "new"):
        similarity(good, y, "final", tmp_path / name, tile_frames=24)
    assert contents(tmp_path / "r") == contents(tmp_path / "new")


@pytest.mark.parametrize("packing", [False, True])
def test_of_two_plans_for_one_new_folder_one_is_refused(few: EmbeddingStore, tmp_path: Path, packing: bool) -> None:
    sides = (select(few, ["en"]), select(few, ["es"]))

    def other() -> None:
        similarity(*sides, "final", tmp_path / "r", top=2, tile_frames=24)

    def refused() -> None:
        with pytest.raises(InputError, match="cannot resume: top is 1 there, 2 here"):
            other()

    def one() -> Any:
        kernel = Meanwhile(other if packing else refused, packing)
        return similarity(*sides, "final", tmp_path / "r", kernel=kernel, top=1, tile_frames=24)

    if packing:  # while the one looks at its frames, before its first tile row
        with pytest.raises(InputError, match="cannot resume: top is 2 there, 1 here"):
            one()
    else:  # during its first tile row
        assert one().merged
    assert {row["rank"] for row in read_top(tmp_path / "r", "forward")} == ({1, 2} if packing else {1})


def test_without_candidates_their_sample_plays_no_part(few: EmbeddingStore, tmp_path: Path) -> None:
    similarity(select(few), None, "final", tmp_path / "r", sample=5)
    assert similarity(select(few), None, "final", tmp_path / "r", sample=6).pairs == 0


@pytest.mark.parametrize("text", ['{"x', "[1]", "5", ""])
def test_a_damaged_plan_is_named(few: EmbeddingStore, tmp_path: Path, text: str) -> None:
    similarity(select(few), None, "final", tmp_path / "r")
    (tmp_path / "r" / "plan.json").write_text(text)
    with pytest.raises(InputError, match=r"r/plan.json: damaged .*remove the folder"):
        similarity(select(few), None, "final", tmp_path / "r")


def test_a_folder_that_cannot_be_made_is_named_and_nothing_is_said_to_be_safe(
    few: EmbeddingStore, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"file/sub: cannot begin .*choose another folder") as e:
        similarity(select(few), None, "final", tmp_path / "file" / "sub")
    assert "safe" not in str(e.value)


def test_folders_that_hold_something_else_are_left_alone(few: EmbeddingStore, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").write_text("years of work")
    (tmp_path / "file").write_text("")
    for name, message in (("other", "thesis.tex"), ("file", "a file, not a folder")):
        with pytest.raises(InputError, match=message):
            similarity(select(few), None, "final", tmp_path / name)
    assert contents(tmp_path) == {"other/thesis.tex": b"years of work", "file": b""}


# --- what is refused, before the long work ---


class Forbidden(Float32):
    """Must not be asked to compare."""

    def compare(self, x: Packed, y: Packed) -> Any:
        raise AssertionError("the comparison began")


@pytest.mark.parametrize(
    ("spec", "card", "named"),
    [
        ({"context": Context("trimmed")}, {}, ["context mode", "bucketed", "trimmed"]),
        ({"context": Context(tail=10)}, {}, ["context tail", "50", "10"]),
        ({"every": 2}, {}, ["every", "1", "2"]),
        ({"dtype": "float16"}, {}, ["dtype", "float32", "float16"]),
        ({"arithmetic": "float16"}, {}, ["arithmetic", "float32", "float16"]),
        ({}, {"weights_sha256": "abc"}, ["weights_sha256", "000", "abc"]),
        ({}, {"dtype": "float16"}, ["model dtype", "float32", "float16"]),
        ({}, {"silence": {"sha256": "def"}}, ["silence_sha256", "111", "def"]),
    ],
)
def test_stores_made_otherwise_are_refused_naming_field_and_both_values(
    store: EmbeddingStore, tmp_path: Path, spec: dict[str, Any], card: dict[str, Any], named: list[str]
) -> None:
    settings = replace(StoreSpec(("final",), dtype="float32"), **spec)
    other = make_store(tmp_path / "other.zarr", utterances(2), spec=settings, **card)
    with pytest.raises(InputError, match="cannot be compared") as e:
        similarity(select(store), select(other), "final", tmp_path / "r", kernel=Forbidden())
    for text in (*named, store.files.root, other.files.root):
        assert text in str(e.value)
    assert not (tmp_path / "r").exists()


def test_frames_of_another_width_are_refused(store: EmbeddingStore, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    wide = {"a": Utterance(rng.standard_normal((3, D + 1)).astype(np.float32))}
    other = make_store(tmp_path / "other.zarr", wide)
    with pytest.raises(InputError, match="d is 8 in the first, 9 in the second"):
        similarity(select(store), select(other), "final", tmp_path / "r")


@pytest.mark.parametrize("value", [0.0, np.nan, np.inf])
@pytest.mark.parametrize("where", ["x", "y", "itself"])
def test_frames_without_direction_are_refused_by_name_before_any_comparison(
    tmp_path: Path, value: float, where: str
) -> None:
    last = select(make_store(tmp_path / "good.zarr", utterances(6)), ["en"]).ids[-1]
    store = make_store(tmp_path / "s.zarr", spoilt(6, last, value))
    sides = {"x": ("en", "es"), "y": ("es", "en"), "itself": ("en", None)}[where]
    x, y = (None if language is None else select(store, [language]) for language in sides)
    assert x is not None
    # of the columns' side only the blocks before it are compared, once, in the first tile row
    kernel = Forbidden() if where == "x" else Float32()
    tile_frames = 1 if where == "x" else 10**6
    place = f"{store.files.root}, output final: utterance {last!r}: frame {len(store.frames(last, 'final')) - 1}"
    with pytest.raises(InputError, match=f"^{re.escape(place)} is zero, NaN or infinite"):
        similarity(x, y, "final", tmp_path / "r", kernel=kernel, tile_frames=tile_frames)
    assert list((tmp_path / "r").glob("units/*/done.json")) == []


def test_empty_and_overlapping_sets_and_unknown_names_are_refused(store: EmbeddingStore, tmp_path: Path) -> None:
    en = select(store, ["en"])
    none = en.part(np.array([], np.int64))
    cases: list[tuple[type[Exception], str, Callable[[], Any]]] = [
        (InputError, "an empty set", lambda: similarity(en, none, "final", tmp_path / "r")),
        (InputError, "one utterance", lambda: similarity(select(store, ids=["en-1"]), None, "final", tmp_path / "r")),
        (UsageError, "share 12 utterances", lambda: similarity(en, select(store), "final", tmp_path / "r")),
        (UsageError, "no output 'layer_09'", lambda: similarity(en, None, "layer_09", tmp_path / "r")),
        (UsageError, "unknown matrix 'f2'", lambda: similarity(en, None, "final", tmp_path / "r", matrix=["f2"])),
        (UsageError, "top is 0", lambda: similarity(en, None, "final", tmp_path / "r", top=0)),
        (UsageError, "tile_frames is 0", lambda: similarity(en, None, "final", tmp_path / "r", tile_frames=0)),
        (UsageError, "part 4/3", lambda: similarity(en, None, "final", tmp_path / "r", part=Part(4, 3))),
        (UsageError, "unknown language 'xx'; known: en, es", lambda: select(store, ["xx"])),
        (UsageError, "no utterance 'nobody'", lambda: select(store, ids=["nobody"])),
        (InputError, "none is both done and asked for", lambda: select(store, ["es"], ["en-1"])),
    ]
    for kind, message, call in cases:
        with pytest.raises(kind, match=message):
            call()
    assert not (tmp_path / "r").exists()


# --- progress and command line ---


def test_progress_counts_every_pair_of_this_run(store: EmbeddingStore, tmp_path: Path) -> None:
    seen = Seen()
    similarity(select(store), None, "final", tmp_path / "r", tile_frames=30, reporter=seen)
    assert [p.done for p in seen.all] == sorted(p.done for p in seen.all)
    assert seen.all[-1].done == seen.all[-1].total
    assert seen.all[-1].work == seen.all[-1].work_total > 0
    assert all(p.total == seen.all[0].total for p in seen.all)


@pytest.mark.usefixtures("small_chunks")
def test_the_command_compares_in_parts_and_merges(
    store: EmbeddingStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["similarity", store.files.root, "--outputs", "final", "--x", "en", "--y", "es", "-o", tmp_path / "r"]
    command += ["--tile-frames", 60, "--matrix", "f1, recall", "--kernel", "float32", "--json"]
    for part in ("1/2", "2/2"):
        assert run(*command, "--part", part) == 0
        out, err = capsys.readouterr()
        report = json.loads(out)
        assert err == ""  # no terminal: no progress
        assert report["merged"]  # the first found all of the second's not begun
        assert report["pairs"] == (N * N if part == "1/2" else 0)
        assert part == "2/2" or {"compare", "wait", "read", "pack", "place"} <= set(report["stages"])
    table = pq.read_table(tmp_path / "r" / "top.parquet")
    assert len(table) == 2 * N * 10
    assert set(zarr.open_group(tmp_path / "r" / "matrix.zarr", mode="r")) == {"f1", "recall"}
    assert table.column_names == ["direction", "query", "rank", "candidate", "f1", "precision", "recall"]
    assert run(*command[:-1]) == 0
    assert "12 × 12 utterances" in capsys.readouterr().out


def test_all_outputs_have_a_subfolder_each_and_one_alone_has_none(
    store: EmbeddingStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["similarity", store.files.root, "--x", "en", "--y", "es", "--kernel", "float32", "--json"]
    assert run(*command, "-o", tmp_path / "all") == 0
    assert set(json.loads(capsys.readouterr().out)) == set(store.outputs) == {"final"}
    for spelt in ("final", "-1"):
        assert run(*command, f"--outputs={spelt}", "-o", tmp_path / spelt) == 0
        assert contents(tmp_path / "all" / "final") == contents(tmp_path / spelt)
        assert json.loads(capsys.readouterr().out)["out"] == str(tmp_path / spelt)  # one alone: not by output
    similarity(select(store, "en"), select(store, "es"), -1, tmp_path / "python", kernel=Float32())
    assert contents(tmp_path / "all" / "final") == contents(tmp_path / "python")
    mined = ["--neighbours", "4", "--bootstrap", "0", "--json"]
    found = []
    for source in (tmp_path / "all", tmp_path / "final"):
        capsys.readouterr()
        assert run("mine", source, *mined, "-o", tmp_path / "mined", "--overwrite") == 0
        found.append(pq.read_table(tmp_path / "mined" / "pairs.parquet"))
    assert len(found[0]) > 0
    assert found[0] == found[1]
    mined_all = mine_similarity([tmp_path / "all"], MiningOptions(neighbours=4, bootstrap=0))
    assert mined_all.table["x"] == found[0]["x"]
    assert run(*command, "--outputs", "layer_09", "-o", tmp_path / "none") == 2
    assert "unknown output 'layer_09'" in capsys.readouterr().err


def test_the_command_takes_lists_of_ids(
    store: EmbeddingStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "x.txt").write_text("en-1\nen-2\n\n")
    (tmp_path / "none.txt").write_text("\n")
    command = ["similarity", store.files.root, "--outputs", "final", "-o", tmp_path / "r"]
    assert run(*command, "--x-ids", tmp_path / "x.txt", "--y", "es") == 0
    assert "2 × 12 utterances" in capsys.readouterr().out
    assert run(*command, "--x-ids", tmp_path / "none.txt") == 3
    assert "none.txt: holds no id" in capsys.readouterr().err
    assert run(*command, "--part", "half") == 2
    assert "--part half" in capsys.readouterr().err
