"""Several runs over one comparison: shares, stealing, waiting, kills, and what a power cut or a mix-up leaves."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import zarr
from kills import PROCESSES, compare, contents
from stores import make_store
from test_cli import run
from test_tiles import SETTINGS, Meanwhile, Seen, Stop, similarity, utterances

from voxstrata.base.errors import InputError, UsageError
from voxstrata.retrieval import all_pairs, tileplan
from voxstrata.retrieval import folder as folder_module
from voxstrata.retrieval.all_pairs import prepare_similarity
from voxstrata.retrieval.finished import read_similarity
from voxstrata.retrieval.kernels.float32 import Float32
from voxstrata.retrieval.selection import select
from voxstrata.store import EmbeddingStore
from voxstrata.store.claims import Claims
from voxstrata.store.files import Files
from voxstrata.store.part import Part

ROWS = 5  # tile rows of `few` with SETTINGS


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> EmbeddingStore:
    return make_store(tmp_path_factory.mktemp("few") / "s.zarr", utterances(7))


@pytest.fixture(autouse=True)
def small_chunks_and_impatience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tileplan, "MIN_CHUNK_UTTERANCES", 2)
    monkeypatch.setattr(all_pairs, "LOOK_AGAIN", 0.05)


@pytest.fixture
def whole(few: EmbeddingStore, tmp_path: Path) -> dict[str, bytes]:
    """The files of one undisturbed run."""
    report = similarity(select(few), None, "final", tmp_path / "whole", **SETTINGS)
    assert report.rows == ROWS
    return contents(tmp_path / "whole")


@contextmanager
def held(folder: Path, *rows: int) -> Iterator[None]:
    """Another run that has these rows in work."""
    with Claims(Files(folder)) as other:
        assert all(map(other.take, rows))
        yield


# --- shares ---


def test_a_part_does_its_share_then_what_nobody_has_begun_and_ends(
    few: EmbeddingStore, tmp_path: Path, whole: dict[str, bytes]
) -> None:
    folder, sides = tmp_path / "r", (select(few), None, "final")
    prepare_similarity(*sides, folder, kernel=Float32(), **SETTINGS)
    with held(folder, 1, 3):
        first = similarity(*sides, folder, part=Part(1, 2), **SETTINGS)
        assert (first.rows_done, first.merged) == (3, False)
    second = similarity(*sides, folder, part=Part(2, 2), **SETTINGS)
    assert (second.rows_done, second.resumed_rows, second.merged) == (ROWS, 3, True)
    assert first.pairs + second.pairs == similarity(*sides, tmp_path / "again", **SETTINGS).pairs
    assert contents(folder) == whole
    assert similarity(*sides, folder, part=Part(99, 99), **SETTINGS).pairs == 0  # more parts than tile rows


def test_a_part_begins_with_its_own_rows_and_steals_from_the_end(few: EmbeddingStore, tmp_path: Path) -> None:
    order: list[int] = []

    class Noting(Float32):
        def compare(self, x: Any, y: Any) -> Any:
            done = {int(path.parent.name) for path in (tmp_path / "r").glob("units/*/done.json")}
            order.extend(sorted(done - set(order)))
            return super().compare(x, y)

    similarity(select(few), None, "final", tmp_path / "r", kernel=Noting(), part=Part(2, 3), **SETTINGS)
    own, of_part_3, of_part_1 = [1, 4], [2], [3]  # and 0 of part 1, after which nothing is compared
    assert order == own + of_part_3 + of_part_1


def test_a_run_without_a_part_waits_for_others_and_takes_over_what_they_leave(
    few: EmbeddingStore, tmp_path: Path, whole: dict[str, bytes]
) -> None:
    folder, other = tmp_path / "r", Claims(Files(tmp_path / "r"))

    class Watching(Seen):
        def __init__(self) -> None:
            super().__init__()
            self.steps: list[str] = []

        def step(self, text: str) -> None:
            self.steps.append(text)
            if self.steps.count(text) == 3:  # it has looked again
                other.drop(2)

    prepare_similarity(select(few), None, "final", folder, kernel=Float32(), **SETTINGS)
    assert other.take(2)
    seen = Watching()
    report = similarity(select(few), None, "final", folder, reporter=seen, **SETTINGS)
    assert seen.steps == ["comparing final", *["waiting for 1 tile row that other runs compute"] * 3]
    assert report.merged
    assert contents(folder) == whole


def test_an_output_waits_only_after_work_was_looked_for_in_every_other(tmp_path: Path) -> None:
    from voxstrata.retrieval.all_pairs import compare_outputs

    store = make_store(tmp_path / "s.zarr", utterances(7))
    folders = {"final": tmp_path / "a"}
    prepare_similarity(select(store), None, "final", tmp_path / "a", kernel=Float32(), **SETTINGS)
    with held(tmp_path / "a", 0):
        report = compare_outputs(select(store), None, folders, kernel=Float32(), part=Part(1, 1), **SETTINGS)
    assert report["final"].rows_done == ROWS - 1


def test_the_slurm_task_is_the_part(
    few: EmbeddingStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["similarity", few.files.root, "--outputs", "final", "-o", tmp_path / "r", "--tile-frames", 24, "--json"]
    for name, value in {"ID": "9", "MIN": "5", "STEP": "4", "COUNT": "3"}.items():
        monkeypatch.setenv(f"SLURM_ARRAY_TASK_{name}", value)
    prepare_similarity(select(few), None, "final", tmp_path / "r", tile_frames=24)
    with held(tmp_path / "r", 0, 2, 3):
        assert run(*command) == 0  # a part ends where a run alone waits
    report = json.loads(capsys.readouterr().out)
    assert (report["rows_done"], report["merged"]) == (2, False)
    assert Part.of_slurm(os.environ) == Part(2, 3)
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "17")  # --array=5,9,17: further on than its count
    assert Part.of_slurm(os.environ) == Part(1, 3)
    monkeypatch.setenv("SLURM_ARRAY_TASK_COUNT", "many")
    assert run(*command) == 2
    assert "SLURM_ARRAY_TASK_COUNT=many: no task of a Slurm array" in capsys.readouterr().err
    with pytest.raises(UsageError, match="part 4/3"):
        Part(4, 3)


# --- claims, and a folder that is made anew ---


def test_who_computes_a_row_needs_no_lock_of_the_folder(
    few: EmbeddingStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare_similarity(select(few), None, "final", tmp_path / "r", **SETTINGS)
    with monkeypatch.context() as patch:
        patch.setattr(folder_module, "patient_lock", lambda *_: pytest.fail("the lock is taken"))
        runs = [prepare_similarity(select(few), None, "final", tmp_path / "r", **SETTINGS) for _ in range(2)]
        assert runs[0].compute(range(3)) == 3
        assert runs[1].compute(range(ROWS)) == ROWS - 3
    assert runs[1].merge() == []


class Waits(Exception):
    """Who would have to wait for the folder's lock."""


@contextmanager
def meanwhile(at: int, do: Callable[[], object]) -> Iterator[list[str]]:
    """Do something else just before the `at`-th request for a file; the requests that were made, in order."""
    asked: list[str] = []
    originals = {name: getattr(Files, name) for name in ("exists", "read", "write", "remove", "remove_folder", "names")}
    originals["clear"] = Files.clear
    take = Claims.take

    def ask(what: str) -> None:
        asked.append(what)
        if len(asked) == at + 1:
            restore()
            do()

    def restore() -> None:
        for name, original in originals.items():
            setattr(Files, name, original)
        Claims.take = take  # type: ignore[method-assign]

    def hooked(name: str) -> Callable[..., Any]:
        def request(self: Files, *given: Any, **how: Any) -> Any:
            ask(f"{name} {given}")
            return originals[name](self, *given, **how)

        return request

    def taking(self: Claims, number: int) -> bool:
        ask(f"take {number}")
        return take(self, number)

    for name in originals:
        setattr(Files, name, hooked(name))
    Claims.take = taking  # type: ignore[method-assign]
    try:
        yield asked
    finally:
        restore()


def test_no_row_is_computed_in_a_folder_that_is_made_anew_meanwhile(
    few: EmbeddingStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock = folder_module.patient_lock
    other = {**SETTINGS, "top": 1, "overwrite": True}
    outcomes, at = set(), 0
    while True:  # who claims a row, at each request of who makes the folder anew
        folder = tmp_path / f"a{at}"
        run = prepare_similarity(select(few), None, "final", folder, **SETTINGS)
        claimed: list[bool | str] = []
        with ExitStack() as holding:

            def claim(holding: ExitStack = holding, run: Any = run, claimed: list[Any] = claimed) -> None:
                def refused(*_: Any) -> Any:
                    raise Waits

                with monkeypatch.context() as patch:
                    patch.setattr(folder_module, "patient_lock", refused)
                    try:
                        claimed.append(holding.enter_context(run._results.claim(0)))
                    except Waits:
                        claimed.append("waits")

            with meanwhile(at, claim) as asked:
                try:
                    prepare_similarity(select(few), None, "final", folder, **other)
                except InputError:
                    outcome = "refused"
                else:
                    outcome = "made anew"
            assert (claimed, outcome) in (
                ([True], "refused"), (["waits"], "made anew"), (["waits"], "refused"), ([], "made anew"),
            ), (at, asked[at:][:1])  # fmt: skip
            outcomes.add((*claimed, outcome))
        if not claimed:
            break
        at += 1
    assert {(True, "refused"), ("waits", "made anew")} <= outcomes
    outcomes, at = set(), 0
    while True:  # who makes it anew, at each request of who claims a row
        folder = tmp_path / f"b{at}"
        run = prepare_similarity(select(few), None, "final", folder, **SETTINGS)
        made: list[str] = []

        def make(folder: Path = folder, made: list[str] = made) -> None:
            with monkeypatch.context() as patch:
                patch.setattr(folder_module, "patient_lock", lock)
                try:
                    prepare_similarity(select(few), None, "final", folder, **other)
                    made.append("made anew")
                except InputError:
                    made.append("refused")

        with meanwhile(at, make):
            try:
                with run._results.claim(0) as mine:
                    got = "claimed" if mine else "not claimed"
            except InputError:
                got = "told"
        outcomes.add((got, *made))
        if not made:
            break
        at += 1
    assert outcomes == {("told", "made anew"), ("claimed", "refused"), ("claimed",)}


# --- kills ---


def test_four_parts_at_once_and_kills_among_them_leave_what_one_run_makes(
    few: EmbeddingStore, tmp_path: Path, whole: dict[str, bytes]
) -> None:
    rng, kills = np.random.default_rng(0), 0
    for n in range(100):
        folder = tmp_path / str(n)

        def started(i: int, folder: Path = folder) -> Any:
            child = PROCESSES.Process(target=compare, args=(few.files.root, str(folder), SETTINGS, Part(i + 1, 4)))
            child.start()
            return child

        running = [started(i) for i in range(4)]
        for _ in range(2):
            time.sleep(float(rng.uniform(0, 0.3)))
            i = int(rng.integers(4))
            running[i].kill()
            running[i].join()
            kills += running[i].exitcode == -signal.SIGKILL
            running[i] = started(i)
        for child in running:
            child.join()
            assert child.exitcode == 0
        assert similarity(select(few), None, "final", folder, **SETTINGS).merged
        assert contents(folder) == whole
        if kills >= 3:
            return
    pytest.fail("no kill met a running process")


# --- what reaches the disk, and what is read back ---


def test_all_of_a_tile_row_has_reached_the_disk_before_its_marker_appears(
    few: EmbeddingStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, synced, markers = tmp_path / "r", set(), 0
    fsync, replace = os.fsync, Path.replace

    def noting(fd: int) -> None:
        fsync(fd)
        synced.add(os.readlink(f"/proc/self/fd/{fd}"))

    def moving(self: Path, target: Path) -> Path:
        nonlocal markers
        if str(self) in synced:
            synced.add(str(target))
        if target.name == "done.json":
            markers += 1
            there = {str(path) for path in folder.rglob("*") if "claims" not in path.parts and path != self}
            assert there - synced - {str(folder / ".voxstrata-lock")} == set()
            assert str(self) in synced
            assert any("/c/" in path for path in there)
        return replace(self, target)

    monkeypatch.setattr(os, "fsync", noting)
    monkeypatch.setattr(Path, "replace", moving)
    similarity(select(few), None, "final", folder, **SETTINGS)
    assert markers == ROWS


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-9])


def emptied(path: Path) -> None:
    path.write_bytes(b"")


def zeroed(path: Path) -> None:
    path.write_bytes(bytes(path.stat().st_size))


def flipped(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)


HARM = (cut, emptied, zeroed, flipped, Path.unlink)


@pytest.mark.parametrize("harm", HARM)
@pytest.mark.parametrize("name", ["done.json", "top.parquet"])
def test_a_row_whose_marker_or_part_is_damaged_is_computed_again(
    few: EmbeddingStore, tmp_path: Path, whole: dict[str, bytes], name: str, harm: Callable[[Path], None]
) -> None:
    for part in (None, Part(1, 2)):
        folder = Path(shutil.copytree(tmp_path / "whole", tmp_path / str(part)))
        (folder / "top.parquet").unlink()
        harm(folder / "units" / "000003" / name)
        report = similarity(select(few), None, "final", folder, part=part, **SETTINGS)
        assert report.merged
        assert report.resumed_rows == ROWS - 1
        assert contents(folder) == whole


@pytest.mark.parametrize("harm", HARM)
@pytest.mark.parametrize("name", ["rows.parquet", "top.parquet"])
def test_a_damaged_table_is_named_and_the_same_command_makes_it_anew(
    few: EmbeddingStore, tmp_path: Path, whole: dict[str, bytes], name: str, harm: Callable[[Path], None]
) -> None:
    folder = tmp_path / "whole"
    harm(folder / name)
    if (folder / name).exists():
        with pytest.raises(InputError, match=rf"{name}: .*run `voxstrata similarity` again"):
            read_similarity(folder)
    assert similarity(select(few), None, "final", folder, **SETTINGS).pairs == 0
    assert contents(folder) == whole


@pytest.mark.parametrize("harm", HARM[:-1])
def test_a_damaged_plan_is_named_by_who_reads_and_by_who_resumes(
    few: EmbeddingStore, tmp_path: Path, whole: dict[str, bytes], harm: Callable[[Path], None]
) -> None:
    harm(tmp_path / "whole" / "plan.json")
    before = contents(tmp_path / "whole")
    for call in (
        lambda: read_similarity(tmp_path / "whole"),
        lambda: similarity(select(few), None, "final", tmp_path / "whole", overwrite=True, **SETTINGS),
    ):
        with pytest.raises(InputError, match=r"plan.json: damaged .*remove the folder"):
            call()
    assert contents(tmp_path / "whole") == before


def test_what_another_comparison_left_is_noticed(few: EmbeddingStore, tmp_path: Path, whole: dict[str, bytes]) -> None:
    ours, other = tmp_path / "whole", tmp_path / "other"
    similarity(select(few, ids=few.ids[::-1][:-1]), None, "final", other, **SETTINGS)
    for name in ("top.parquet", "rows.parquet"):
        shutil.copyfile(other / name, ours / name)
        with pytest.raises(InputError, match=rf"whole/{name}: of another comparison than plan.json"):
            read_similarity(ours)
        similarity(select(few), None, "final", ours, **SETTINGS)
        assert contents(ours) == whole
    shutil.rmtree(ours / "units")
    (ours / "top.parquet").unlink()
    shutil.copytree(other / "units", ours / "units")
    assert similarity(select(few), None, "final", ours, **SETTINGS).resumed_rows == 0
    assert contents(ours) == whole
    (ours / "top.parquet").unlink()
    shutil.rmtree(ours / "matrix.zarr")
    shutil.copytree(other / "matrix.zarr", ours / "matrix.zarr")
    with pytest.raises(InputError, match=r"whole/matrix.zarr: of another comparison; remove the folder"):
        similarity(select(few), None, "final", ours, **SETTINGS)


def test_a_flipped_byte_in_a_matrix_is_never_read_as_scores(
    few: EmbeddingStore, tmp_path: Path, whole: dict[str, bytes]
) -> None:
    chunks = [name for name in whole if name.startswith("matrix.zarr/f1/c/")]
    assert len(chunks) > 4
    for name in chunks[::3]:
        flipped(tmp_path / "whole" / name)
        with pytest.raises(ValueError, match=r"(?i)checksum"):
            zarr.open_group(tmp_path / "whole" / "matrix.zarr", mode="r")["f1"][:]
        (tmp_path / "whole" / name).write_bytes(whole[name])


def test_damaged_candidates_are_named(few: EmbeddingStore, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"top": 2, "candidates": 4, "sample": 5, "tile_frames": 24}
    similarity(select(few), None, "final", tmp_path / "r", **settings)
    expected = contents(tmp_path / "r")
    for harm in HARM[:-1]:
        harm(tmp_path / "r" / "candidates.json")
        similarity(select(few), None, "final", tmp_path / "r", **settings)
        assert contents(tmp_path / "r") == expected
    shutil.rmtree(tmp_path / "r" / "units")
    (tmp_path / "r" / "top.parquet").unlink()
    for harm in HARM[:-1]:
        (tmp_path / "r" / "candidates.npz").write_bytes(expected["candidates.npz"])
        harm(tmp_path / "r" / "candidates.npz")
        with pytest.raises(InputError, match=r"candidates.npz: damaged .*remove the folder"):
            similarity(select(few), None, "final", tmp_path / "r", **settings)


def test_a_folder_that_the_version_before_began_is_finished(
    few: EmbeddingStore, tmp_path: Path, whole: dict[str, bytes]
) -> None:
    """Without checksums, and with nothing that says of which plan a table or a marker is."""
    old = tmp_path / "whole"
    for path in [*old.glob("*.parquet"), *old.glob("units/*/*.parquet")]:
        pq.write_table(pq.read_table(path).replace_schema_metadata(None), path, compression="zstd")
    for path in old.glob("units/*/done.json"):
        path.write_text(json.dumps({"row": int(path.parent.name)}))
    finished = pq.read_table(old / "top.parquet")
    assert read_similarity(old).top.equals(finished)
    (old / "top.parquet").unlink()
    (old / "units" / "000002" / "done.json").unlink()
    report = similarity(select(few), None, "final", old, **SETTINGS)
    assert (report.resumed_rows, report.merged) == (ROWS - 1, True)
    assert pq.read_table(old / "top.parquet").equals(finished)


def test_a_stop_while_a_folder_is_cleared_leaves_no_plan_without_its_matrix(
    few: EmbeddingStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sides = (select(few), None, "final")
    remove, clear = Files.remove, Files.clear
    for stop_at in ("remove", "clear"):
        folder = tmp_path / stop_at

        def stopped(self: Files, *args: Any, stop_at: str = stop_at, **named: Any) -> None:
            if stop_at == "clear":
                shutil.rmtree(self.local / "matrix.zarr")  # type: ignore[operator]
            raise Stop

        def failing() -> None:
            monkeypatch.setattr(Files, stop_at, stopped)  # noqa: B023
            raise RuntimeError("the first comparison")

        with pytest.raises(Stop):
            similarity(*sides, folder, kernel=Meanwhile(failing), **SETTINGS)
        monkeypatch.setattr(Files, "remove", remove)
        monkeypatch.setattr(Files, "clear", clear)
        assert similarity(*sides, folder, **SETTINGS).merged
