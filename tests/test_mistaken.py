"""An argument that is mistaken for another ends in an error that says what was given, and what takes it."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from stores import Utterance, make_store
from test_cli import run

import voxstrata as vs
from voxstrata.alignments.files import read_alignments
from voxstrata.base.errors import InputError
from voxstrata.base.opening import read_regular
from voxstrata.base.recognised import RESULT_FILES, recognised
from voxstrata.base.result import read_parquet
from voxstrata.cli.similarity import chosen_ids
from voxstrata.corpus.rows import read_table
from voxstrata.report.html import page
from voxstrata.report.registry import RESULTS
from voxstrata.retrieval.finished import read_similarity
from voxstrata.studies.phonetics.folder import PhoneticsFolder
from voxstrata.studies.retrieve import Retrieval
from voxstrata.studies.words.word_list import read_word_list

# of each kind of thing what it is called, and what takes it
THINGS = {
    "store": ("a store", "STORE"),
    "model": ("a model", "MODEL"),
    "checkpoint": ("a checkpoint", "`voxstrata export`"),
    "similarity": ("a folder of `voxstrata similarity`", "`voxstrata retrieve` and `mine`"),
    "phonetics": ("results of `voxstrata phonetics`", "--phonetics"),
    "aligned": ("results of `voxstrata align`", "`voxstrata report`"),
    "report.html": ("a page of `voxstrata report`", "a browser"),
    "speech.tsv": ("a table", "CORPUS"),
}
# of each place what reads it, what it wants, and the thing that is right there
PLACES: dict[str, tuple[Callable[[Path], Any], str, str]] = {
    "store": (vs.open_store, "a voxstrata store", "store"),
    "verify": (vs.verify, "a voxstrata store", "store"),
    "model": (vs.open_model, "a model", "model"),
    "corpus": (vs.read_corpus, "a corpus", "speech.tsv"),
    "phonetics": (lambda path: PhoneticsFolder(str(path)), "a folder of `voxstrata phonetics`", "phonetics"),
    "similarity": (read_similarity, "a folder of `voxstrata similarity`", "similarity"),
    "list": (read_word_list, "a table", "speech.tsv"),
    "ids": (chosen_ids, "a ", ""),
    "alignments": (lambda path: read_alignments(path, "words"), "", "speech.tsv"),
    "results": (Retrieval.load, "a folder with retrieval.parquet", ""),
}


@pytest.fixture(scope="module")
def things(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a thing of each kind, by its name in THINGS: the files by which it is known, and no more."""
    root = tmp_path_factory.mktemp("things")
    make_store(root / "store", {"a": Utterance(np.ones((2, 8), np.float32))})
    files = ("model/card.json", "model/config.json", "checkpoint/config.json", "similarity/plan.json")
    files += ("similarity/rows.parquet", "phonetics/phonetics.parquet", "aligned/align.parquet")
    for name in files:
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_text("{}")
    (root / "report.html").write_text(page("title", "inside"))
    (root / "speech.tsv").write_text("path\tlanguage\na.wav\ten\n")
    return root


def test_things_are_recognised_by_their_files(things: Path) -> None:
    for name, (what, taker) in THINGS.items():
        known = recognised(things / name)
        assert known is not None
        assert known.what == what
        assert taker in known.belongs
    assert recognised(things) is None
    assert recognised(things / "none") is None
    assert recognised("s3://bucket/speech.zarr") is None


def test_every_kind_of_result_is_recognised() -> None:
    assert {kind.first_file(): kind.command for kind in RESULTS} == RESULT_FILES


@pytest.mark.parametrize("thing", THINGS)
@pytest.mark.parametrize("place", PLACES)
def test_a_thing_in_another_place_is_named_with_what_takes_it(place: str, thing: str, things: Path) -> None:
    read, wanted, right = PLACES[place]
    if thing == right or (place == "alignments" and not (things / thing).is_dir()):
        return
    with pytest.raises(InputError) as refusal:
        read(things / thing)
    what, taker = THINGS[thing]
    said = str(refusal.value)
    assert said.startswith(f"{things / thing}: {what}, not {wanted}")
    assert taker in said.rpartition(" (")[2]


@pytest.mark.parametrize("place", [name for name in PLACES if name not in ("results", "ids", "model")])
def test_what_is_not_there_is_said_to_be_missing(place: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nowhere: no such (file or )?folder"):
        PLACES[place][0](tmp_path / "nowhere")


def test_a_folder_of_nothing_known_is_still_a_folder(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is a folder, not a regular file; name a file"):
        read_regular(tmp_path)


def test_swapped_store_and_phonetics_are_put_in_order(things: Path, capsys: pytest.CaptureFixture[str]) -> None:
    swapped = (things / "phonetics", "--phonetics", things / "store", "-o", things / "out")
    for command in (("align", *swapped), ("retrieve", *swapped, "--negatives", "sound")):
        assert run(*command) == 2
        said = capsys.readouterr().err
        assert f"{things / 'store'} is a store and {things / 'phonetics'} is none: the order is the other" in said
        assert f"voxstrata {command[0]} {things / 'store'} --phonetics {things / 'phonetics'}" in said
    assert not (things / "out").exists()


@pytest.mark.parametrize("fifo", ["zarr.json", "page.html"])
def test_a_fifo_is_recognised_as_nothing_and_not_waited_for(fifo: str, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / fifo)
    for path in (tmp_path, tmp_path / fifo):
        assert recognised(path) is None
        for read in (vs.open_model, vs.verify, vs.read_corpus):
            with pytest.raises(InputError):
                read(path)


def test_a_table_is_told_that_it_is_a_fifo(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "list")
    with pytest.raises(InputError, match="is a FIFO"):
        read_table(tmp_path / "list")


def test_of_gzipped_files_tables_alone_are_tables(tmp_path: Path) -> None:
    (tmp_path / "speech.tar.gz").touch()
    (tmp_path / "speech.tsv.gz").touch()
    assert recognised(tmp_path / "speech.tar.gz") is None
    assert recognised(tmp_path / "speech.tsv.gz") is not None


def test_a_manifest_beside_a_checkpoint_is_named(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "manifest.tsv").write_text("path\tlanguage\na.wav\ten\n")
    with pytest.raises(InputError, match=r"but a manifest; name that: .*manifest\.tsv$"):
        vs.read_corpus(tmp_path)


def test_a_folder_of_the_right_command_lacks_a_file(things: Path) -> None:
    with pytest.raises(InputError, match=r"aligned/other\.parquet: missing; `voxstrata align` writes it$"):
        read_parquet(things / "aligned" / "other.parquet", "align")


@pytest.mark.parametrize("name", ["ids.tsv", "ids.csv"])
def test_a_list_of_ids_may_be_called_as_a_table(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text("en/1\nen/2\n")
    assert chosen_ids(tmp_path / name) == ("en/1", "en/2")


def test_why_no_alignment_can_be_read_is_told_beside_a_checkpoint_too(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "a.TextGrid").write_text("none")
    with pytest.raises(InputError, match=r"none of its files can be read; the first: .*a\.TextGrid: "):
        read_alignments(tmp_path, "words")


def test_what_follows_a_list_without_a_comma_is_told(things: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for command in (("retrieve",), ("align", "--phonetics", things / "phonetics")):
        # as click sorts them: what follows an option's value is a store, wherever it stands
        assert run(*command, "-o", things / "out", things / "store", "--languages", "en", "fr") == 2
        said = " ".join(capsys.readouterr().err.split())
        assert "fr: no such store; a list has commas between its items: --languages en,fr" in said
