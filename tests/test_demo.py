"""The demo: the whole way without a network, and honest about its weights."""

from __future__ import annotations

from pathlib import Path

import pytest
from test_cli import run

from voxstrata.demo import encoder as demo
from voxstrata.demo import run as demo_run

pytest.importorskip("espeakng_loader", reason="espeakng-loader is in the extra `demo`")


@pytest.fixture
def no_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "hub_answers", lambda: False)
    monkeypatch.setattr(demo, "_is_cached", lambda: False)


@pytest.mark.usefixtures("no_hub")
def test_offline_it_compares_the_packages_two_encoders_and_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo_run, "SENTENCES", 3)
    monkeypatch.setattr(demo_run, "TAUGHT", ("en", "de"))
    folder = tmp_path / "demo"
    assert run("demo", "-o", folder) == 0
    out, _ = capsys.readouterr()
    assert "could not be had from the hub" in out
    assert "they say nothing about Whisper" in out
    assert "pool of 3" in out
    for paths in demo_run.MADE_OF_TWO:
        for path in paths.split(", "):
            assert (folder / path).exists(), path
    for name in demo.LABORATORY:
        assert run("info", folder / f"{name}.zarr") == 0
        assert "6 done" in capsys.readouterr().out
    (folder / "results" / "recall_by_depth.png").unlink()
    (folder / "notes.txt").write_text("mine")
    monkeypatch.setattr(demo, "_installed", lambda _: False)  # without PyTorch it is quicker
    assert run("demo", "-o", folder) == 0  # its own it makes anew
    assert (folder / "results" / "recall_by_depth.png").exists()
    assert (folder / "notes.txt").read_text() == "mine"


@pytest.mark.long
@pytest.mark.usefixtures("no_hub")
def test_where_whisper_tiny_can_be_had_it_comes_first(
    tmp_path: Path, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A checkpoint in its place; with it the demo's own sentences, in all their languages."""
    monkeypatch.setattr(demo, "_is_cached", lambda: True)
    monkeypatch.setattr(demo, "HUB_CHECKPOINT", str(tiny_checkpoint))
    monkeypatch.setattr(demo_run, "LANGUAGES", ("en", "de"))
    monkeypatch.setattr(demo_run, "SENTENCES", 3)
    found = demo_run.run_demo(tmp_path / "demo")
    assert not found.encoders.laboratory
    assert "real weights, on synthetic speech" in found.encoders.meaning
    for path in demo_run.MADE:
        assert (tmp_path / "demo" / path).exists(), path


def test_a_folder_with_something_else_is_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    assert run("demo", "-o", tmp_path) == 3
    assert "holds something else" in capsys.readouterr().err
    assert (tmp_path / "thesis.tex").exists()


def test_the_random_checkpoint_is_the_same_every_time(tmp_path: Path) -> None:
    from voxstrata.exporters.checkpoint import load_checkpoint

    for name in ("a", "b"):
        demo.write_random_checkpoint(tmp_path / name)
    a, b = (load_checkpoint(str(tmp_path / n)) for n in ("a", "b"))
    assert a.sha256() == b.sha256()
    assert (a.shape.layers, a.shape.d_model, a.shape.heads, a.shape.n_mels) == (4, 384, 6, 80)


def test_a_hub_that_does_not_answer_is_given_up_within_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    import time

    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # the discard port: nobody listens
    begin = time.monotonic()
    assert not demo.hub_answers()
    assert time.monotonic() - begin < 2 * demo.HUB_SECONDS
