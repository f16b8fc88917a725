"""Folders of results: one option replaces what a command left there; what else lies there stays; none is left empty."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from conftest import sound
from kills import contents
from stores import Utterance, make_store
from test_cli import run

import voxstrata as vs
from voxstrata.base.folders import check_vacant, leaving_no_empty_folder, new_folder
from voxstrata.base.result import Result
from voxstrata.studies.align.result import Alignment
from voxstrata.studies.drift.result import Drift
from voxstrata.studies.explain.result import Explanation
from voxstrata.studies.phonetics.result import Phonetics
from voxstrata.studies.retrieve import Retrieval
from voxstrata.studies.words.result import WordComparison


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory, tiny_checkpoint: Path, tiny_model: Path) -> Path:
    """store.zarr with two languages and no translations, so that no study finds anything; empty.tsv; bad.zarr."""
    desk = tmp_path_factory.mktemp("desk")
    rng = np.random.default_rng(0)
    ids = [f"{x}{i}" for i in range(3) for x in "ab"]
    every = {name: Utterance(rng.standard_normal((4, 8)).astype(np.float32), name[0], name) for name in ids}
    make_store(desk / "store.zarr", every)
    zeros = {name: Utterance(np.zeros((4, 8), np.float32), name[0], name[1]) for name in ids}
    make_store(desk / "zeros.zarr", zeros)
    (desk / "empty.tsv").write_text("id\tpath\n", encoding="utf-8")
    (desk / "unreadable.tsv").write_text("id\tpath\tlanguage\ttext\na\tnone.wav\ten\tx\n", encoding="utf-8")
    (desk / "checkpoint").symlink_to(tiny_checkpoint)
    (desk / "model").symlink_to(tiny_model)
    return desk


# Every command that writes a folder, with arguments of which nothing can come.
FAILING: dict[str, list[str]] = {
    "export": ["export", "none"],
    "extract": ["extract", "unreadable.tsv", "model"],
    "convert": ["convert", "store.zarr", "--to", "npy", "--languages", "fr"],
    "retrieve": ["retrieve", "store.zarr"],
    "retrieve, found": ["retrieve", "pairs"],
    "similarity": ["similarity", "zeros.zarr", "--x", "a", "--y", "b", "--outputs", "final"],
    "similarity, two sets": ["similarity", "zeros.zarr", "--x", "a", "--y", "b", "--candidates", "2", "--top", "1"],
    "align": ["align", "store.zarr", "--phonetics", "none"],
    "explain": ["explain", "zeros.zarr", "a0", "b0"],
    "drift": ["drift", "unreadable.tsv", "model"],
    "phonetics": ["phonetics", "unreadable.tsv"],
    "words": ["words", "empty.tsv", "model"],
    "early-exit write": ["early-exit", "write", "checkpoint", "-k", "9"],
    "early-exit sweep": ["early-exit", "sweep", "checkpoint", "unreadable.tsv"],
}


@pytest.mark.parametrize("command", FAILING)
def test_a_command_that_fails_leaves_no_folder(command: str, desk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(desk)
    assert run(*FAILING[command], "-o", "new/deep/folder") in (2, 3)
    assert not (desk / "new").exists()


@pytest.mark.parametrize("command", FAILING)
def test_a_folder_with_something_else_is_left_alone(
    command: str, desk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(desk)
    (tmp_path / "notes.txt").write_text("mine", encoding="utf-8")
    before = contents(tmp_path)
    with_option = ["--overwrite"] if command.split(",")[0] in REPLACING else []
    for options in ([], with_option):
        assert run(*FAILING[command], "-o", tmp_path, *options) in (2, 3)
        assert contents(tmp_path) == before


# What else has a folder of results: the studies, by the class of their results.
STUDIES: dict[str, type[Result]] = {
    "retrieve": Retrieval,
    "align": Alignment,
    "explain": Explanation,
    "drift": Drift,
    "phonetics": Phonetics,
    "words": WordComparison,
}
REPLACING = ("export", "convert", "similarity", "early-exit write", "early-exit sweep", *STUDIES)


def test_an_interrupt_leaves_no_folder(desk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(desk)

    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    for place, command in (
        ("voxstrata.engine.run.StoreWriter", ["extract", "speech.tsv", "model"]),
        ("voxstrata.retrieval.folder.Results._create", ["similarity", "store.zarr", "--outputs", "final"]),
        ("voxstrata.studies.phonetics.measure._measure", ["phonetics", "speech.tsv"]),
        ("voxstrata.studies.retrieve.retrieve", ["retrieve", "store.zarr"]),
        ("voxstrata.exporters.writing._write_graphs", ["export", "checkpoint"]),
    ):
        if "speech.tsv" in command:
            rows = ["id\tpath\tlanguage\tgroup\ttext"]
            for language in ("en", "es"):
                for i in range(2):
                    soundfile.write(desk / f"{language}{i}.wav", sound(0.3, i), 16_000)
                    rows.append(f"{language}{i}\t{language}{i}.wav\t{language}\tg{i}\tla la {i}")
            (desk / "speech.tsv").write_text("\n".join(rows), encoding="utf-8")
        with monkeypatch.context() as patch:
            patch.setattr(place, interrupted)
            assert run(*command, "-o", "new/folder") == 130, command
        assert not (desk / "new").exists(), command


# --- replacing ---


def test_similarity_replaces_results_of_other_settings(
    desk: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "pairs"

    def compare(*options: object) -> int:
        return run("similarity", desk / "store.zarr", "--outputs", "final", "-o", folder, *options)

    assert compare("--top", 2) == 0
    assert compare("--top", 1) == 3
    assert "use the same, a new folder, or --overwrite" in capsys.readouterr().err
    assert compare("--top", 1, "--overwrite") == 0
    fresh = tmp_path / "fresh"
    vs.similarity(vs.select(vs.open_store(desk / "store.zarr")), None, "final", fresh, top=1)
    assert contents(folder) == contents(fresh)


def test_export_replaces_a_model_and_nothing_else(
    tiny_checkpoint: Path, tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_model, folder)
    before = contents(folder)
    assert run("export", tiny_checkpoint, "-o", folder, "--dtype", "int8") == 3
    assert "exists already" in capsys.readouterr().err
    (folder / "notes.txt").write_text("mine", encoding="utf-8")
    assert run("export", tiny_checkpoint, "-o", folder, "--dtype", "int8", "--overwrite") == 3
    assert "holds something else (notes.txt), which is not overwritten" in capsys.readouterr().err
    (folder / "notes.txt").unlink()
    assert contents(folder) == before
    assert run("export", tiny_checkpoint, "-o", folder, "--dtype", "int8", "--overwrite") == 0
    assert vs.open_model(folder).card.dtype == "int8"
    assert not (folder / "encoder_cached.onnx").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_early_exit_write_replaces_a_checkpoint_it_wrote(
    tiny_checkpoint: Path, tiny_transcriber: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "exit"
    for after in (1, 2):
        options = ["--overwrite"] if after == 2 else []
        assert run("early-exit", "write", tiny_transcriber, "-k", after, "-o", folder, *options) == 0
        assert json.loads((folder / "config.json").read_text(encoding="utf-8"))["encoder_layers"] == after
    # a checkpoint that it did not write is somebody's
    (folder / "early_exit.json").unlink()
    assert run("early-exit", "write", tiny_transcriber, "-k", 1, "-o", folder, "--overwrite") == 3
    assert json.loads((folder / "config.json").read_text(encoding="utf-8"))["encoder_layers"] == 2


@pytest.mark.parametrize("command", STUDIES)
def test_a_study_replaces_an_earlier_result_where_it_is_told_to(
    command: str, desk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(desk)
    for name in STUDIES[command].files.values():
        (tmp_path / name).write_text("earlier", encoding="utf-8")
    before = contents(tmp_path)
    assert run(*FAILING[command], "-o", tmp_path) == 3
    first = STUDIES[command].first_file()
    assert f"holds an earlier result ({first}); choose another folder, or --overwrite" in capsys.readouterr().err
    assert run(*FAILING[command], "-o", tmp_path, "--overwrite") in (2, 3)
    assert "earlier result" not in capsys.readouterr().err
    assert contents(tmp_path) == before  # nothing came of it


def test_what_replaces_a_result_leaves_nothing_of_it_and_all_else(
    desk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ("explain", desk / "store.zarr", "a0", "b0", "-o", tmp_path)
    assert run(*command) == 0
    (tmp_path / "notes.txt").write_text("mine", encoding="utf-8")
    before = contents(tmp_path)
    assert run(*command[:3], "b1", *command[4:]) == 3
    assert contents(tmp_path) == before
    with monkeypatch.context() as patch:
        patch.setattr(Explanation, "figures", lambda _: {})
        assert run(*command[:3], "b1", *command[4:], "--overwrite") == 0
    after = contents(tmp_path)
    assert before.keys() - after.keys() == {"explain.png", "explain.pdf"}
    assert [name for name in after if after[name] == before[name]] == ["notes.txt"]


def fill(folder: Path, text: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "card").write_text(text, encoding="utf-8")


def test_a_new_folder_takes_the_place_of_an_old_one_once_it_is_whole(tmp_path: Path) -> None:
    target = tmp_path / "a" / "model"

    def replace(text: str, fail: bool = False) -> None:
        with new_folder(target, ["card"]) as folder:
            fill(folder, text)
            if fail:
                raise RuntimeError

    with pytest.raises(RuntimeError):
        replace("0", fail=True)
    assert list(tmp_path.iterdir()) == []
    replace("1")
    with pytest.raises(RuntimeError):
        replace("2", fail=True)
    assert contents(tmp_path) == {"a/model/card": b"1"}
    replace("3")
    assert contents(tmp_path) == {"a/model/card": b"3"}
    for replaced, message in ((["other"], "not overwritten"), ([], "exists already")):
        with pytest.raises(vs.InputError, match=message):
            check_vacant(target, replaced)


def test_an_old_folder_survives_what_ends_its_replacement_half_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target, rename = tmp_path / "model", Path.rename
    fill(target, "1")

    def interrupted(path: Path, to: Path) -> Path:
        if path.suffix == ".partial":
            raise KeyboardInterrupt
        return rename(path, to)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", interrupted)
        with pytest.raises(KeyboardInterrupt), new_folder(target, ["card"]) as folder:
            fill(folder, "2")
    assert contents(tmp_path) == {"model/card": b"1"}

    # killed between the two renames
    others = [tmp_path / ".notes.20240131.old", tmp_path / ".other.abcd_123.partial"]
    for path in others:
        fill(path, "mine")
    target.rename(tmp_path / ".model.abcd_123.old")
    fill(tmp_path / ".model.abcd_123.partial", "2")
    with pytest.raises(vs.InputError, match="exists already"), new_folder(target):
        pass
    for path in others:  # nobody's leftovers of this folder
        assert contents(path) == {"card": b"mine"}
        shutil.rmtree(path)
    assert contents(tmp_path) == {"model/card": b"1"}
    # killed after them
    fill(tmp_path / ".model.abcd_123.old", "0")
    with pytest.raises(RuntimeError), new_folder(target, ["card"]):
        raise RuntimeError
    assert contents(tmp_path) == {"model/card": b"1"}
    # another process is between them
    with new_folder(target, ["card"]) as folder:
        fill(folder, "2")
        target.rename(folder.with_suffix(".old"))
        with pytest.raises(RuntimeError), new_folder(target, ["card"]):
            raise RuntimeError
        assert not target.exists()
    assert contents(tmp_path) == {"model/card": b"2"}


def test_only_what_was_made_meanwhile_and_is_empty_goes(tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    mine.mkdir()

    def fail(below: str) -> None:
        with leaving_no_empty_folder(mine / "a" / "b"):
            (mine / "a" / "b").mkdir(parents=True)
            fill(mine / below, "")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail("a")
    assert list(contents(tmp_path)) == ["mine/a/card"]
    assert not (mine / "a" / "b").exists()
    (mine / "a" / "card").unlink()
    (mine / "a").rmdir()
    (mine / "card").touch()
    with pytest.raises(RuntimeError):
        fail(".")
    assert [path.name for path in mine.iterdir()] == ["card"]
