"""What an interrupted command says is kept is what lies there, and a run that goes on counts against the whole."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from conftest import Heard
from stores import Utterance, make_store
from test_cli import run

import voxstrata as vs
from voxstrata.base.errors import InputError
from voxstrata.base.progress import SILENT, Progress, Reporter
from voxstrata.base.showing import TerminalReporter
from voxstrata.cli.interrupts import appended_kept, resume_hint, rows_kept, transcripts_kept, units_kept
from voxstrata.retrieval.folder import Results
from voxstrata.retrieval.kernels.float32 import Float32

GO_ON = "kept; the same command goes on from there"
NOTHING = "nothing was written yet; the same command begins again"


class Stop(Reporter):
    """Interrupts once so many units of a stage are told to be done."""

    def __init__(self, stage: str, after: int) -> None:
        self.stage, self.after = stage, after

    def progress(self, progress: Progress) -> None:
        if progress.stage == self.stage and progress.done >= self.after:
            raise KeyboardInterrupt


@pytest.fixture(scope="module")
def corpora(make_corpus: Callable[..., Path]) -> tuple[Path, Path]:
    """A corpus of three languages, a unit each, and one with two more."""
    some = {f"{language}/{n}": 0.5 + n / 10 for language in ("de", "en", "es") for n in range(2)}
    return make_corpus(some), make_corpus({**some, "fr/0": 0.7, "it/0": 0.8})


RUNTIME = vs.Runtime(threads=1, unit_megabytes=1e-6)


def test_an_extraction_that_goes_on_counts_against_the_whole(
    corpora: tuple[Path, Path], tiny_model: Path, tmp_path: Path
) -> None:
    store = tmp_path / "s.zarr"
    assert units_kept(store)() == NOTHING
    with pytest.raises(KeyboardInterrupt):
        vs.extract(corpora[0], tiny_model, store, None, RUNTIME, Stop("extracting", 0))
    assert units_kept(store)() == "no unit is done yet; the same command begins with the first"
    with pytest.raises(KeyboardInterrupt):
        vs.extract(corpora[0], tiny_model, store, None, RUNTIME, Stop("extracting", 2))
    kept = len(list((store / "units").iterdir()))
    assert kept in (1, 2)  # what is encoded is committed a little later
    assert units_kept(store)() == f"{kept} of 3 units {'is' if kept == 1 else 'are'} {GO_ON}"
    seen = Heard()
    vs.extract(corpora[0], tiny_model, store, None, RUNTIME, seen)
    told = [p for p in seen.heard if p.stage == "extracting"]
    assert {p.total for p in told} == {3}
    assert (told[0].done, told[0].rated) == (kept, 0)  # before anything is encoded: none of it counts for the rate
    assert told[0].work is not None
    assert told[0].work > 0
    assert (told[-1].done, told[-1].share) == (3, 1)
    assert all(b.done >= a.done for a, b in pairwise(told))
    assert units_kept(store)() == f"3 of 3 units are {GO_ON}"


def test_an_append_that_is_interrupted_says_what_of_it_is_kept(
    corpora: tuple[Path, Path], tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    store = tmp_path / "s.zarr"
    vs.extract(corpora[0], tiny_model, store, None, RUNTIME)
    kept = appended_kept(store)
    assert kept() == NOTHING

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("voxstrata.store.appender.StoreAppender.finish", stop)
        command = ("append", store, corpora[1], tiny_model, "--unit-mb", "1e-6", "--threads", "1")
        assert run(*command) == 130
    assert capsys.readouterr().err.splitlines()[-1] == f"interrupted: 2 of 2 units are {GO_ON}"
    vs.append(store, corpora[1], tiny_model, RUNTIME)
    assert kept() == "all is added already; the same command finds nothing new"


def test_a_comparison_that_is_interrupted_says_what_of_all_outputs_is_kept(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    states = {
        f"{language}-{n}": Utterance(rng.standard_normal((6, 8)).astype(np.float32), language)
        for language in ("en", "es")
        for n in range(4)
    }
    store = make_store(tmp_path / "s.zarr", states)
    sides, how = (vs.select(store, "en"), vs.select(store, "es")), {"kernel": Float32(), "tile_frames": 6}
    folders = [tmp_path / "final", tmp_path / "layer_01"]
    assert rows_kept(folders)() == NOTHING
    with pytest.raises(KeyboardInterrupt):
        vs.similarity(*sides, "final", folders[0], **how, reporter=Stop("comparing", 9))
    assert rows_kept(folders)() == f"2 of 8 tile rows are {GO_ON}"  # of four pairs each; the third was not whole
    assert rows_kept(folders, overwrite=True)() == "the same command goes on from what is kept"  # may be another's
    assert rows_kept(["s3://no-such-bucket/final"])() == "the same command goes on from what is kept"  # not looked at
    seen = Heard()
    vs.similarity(*sides, "final", folders[0], **how, reporter=seen)
    assert {p.total for p in seen.heard} == {16}
    assert [p.done for p in seen.heard] == list(range(8, 17))
    assert [p.rated for p in seen.heard] == list(range(9))  # of this run alone
    assert rows_kept(folders[:1])() == f"4 of 4 tile rows are {GO_ON}"


def test_a_recording_that_is_there_by_now_is_not_said_to_be_missing_without_the_way_to_it(
    tiny_model: Path, make_corpus: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    corpus = make_corpus({"en/0": 0.5, "en/1": 0.6})
    table = tmp_path / "speech.tsv"
    lost, there = tmp_path / "en1.wav", corpus / "en" / "0.wav"
    table.write_text(f"path\tlanguage\n{there}\ten\n{lost}\ten\n")
    command = ("extract", table, tiny_model, "-o", tmp_path / "s.zarr", "--threads", 1)
    hint = "what failed in an earlier run was not looked at again: --retry-failed does"
    assert run(*command) == 4
    assert hint not in capsys.readouterr().out
    shutil.copy(there, lost)
    assert run(*command) == 4
    assert hint in capsys.readouterr().out
    assert run(*command, "--retry-failed") == 4  # its place in the plan is missing, too
    out, err = capsys.readouterr()
    assert hint not in out
    assert "extract the corpus into a new store" in " ".join(err.split())


def test_a_comparison_that_is_watched_asks_for_no_more_markers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a bucket each is a request."""
    rng, asked, marker = np.random.default_rng(0), list[int](), Results._marker
    states = {f"{n}": Utterance(rng.standard_normal((6, 8)).astype(np.float32), "en") for n in range(4)}
    store = make_store(tmp_path / "s.zarr", states)
    monkeypatch.setattr(Results, "_marker", lambda of, row: asked.append(row) or marker(of, row))
    for name, reporter in (("alone", SILENT), ("watched", Heard())):
        asked.append(-1)
        vs.similarity(store, None, "final", tmp_path / name, kernel=Float32(), tile_frames=6, reporter=reporter)
    half = len(asked) // 2
    assert half > 4
    assert asked[:half] == asked[half:]


def test_a_sweep_says_how_many_transcripts_are_kept() -> None:
    reporter = TerminalReporter()
    kept = transcripts_kept(reporter)
    assert kept().startswith("nothing new is transcribed yet")
    reporter.progress(Progress("states for softer exits", 1, 4, "recordings"))
    assert kept().startswith("nothing new is transcribed yet")
    told = Progress("transcribing", 12, 60, "transcripts")
    for done, said in ((12, "12 of 60 transcripts are"), (1, "1 of 60 transcripts is")):
        reporter.progress(replace(told, done=done))
        assert kept() == f"{said} {GO_ON}"


def test_a_store_that_cannot_be_looked_at_does_not_hide_the_interrupt() -> None:
    def unreachable() -> str:
        raise InputError("s3://bucket/s.zarr: does not answer")

    with pytest.raises(KeyboardInterrupt, match="goes on from what is kept"), resume_hint(unreachable):
        raise KeyboardInterrupt
