"""The demo: the whole way without a network, and honest about its weights."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
from test_cli import run

from voxstrata.demo import corpus as demo_corpus
from voxstrata.demo import encoder as demo
from voxstrata.demo import run as demo_run

pytest.importorskip("espeakng_loader", reason="espeakng-loader is in the extra `demo`")


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three sentences in two languages, and no hub."""
    monkeypatch.setattr(demo_run, "LANGUAGES", ("en", "de"))
    monkeypatch.setattr(demo, "hub_answers", lambda: False)
    monkeypatch.setattr(demo, "_is_cached", lambda: False)
    monkeypatch.setattr(demo_run, "write_demo_corpus", partial(demo_corpus.write_demo_corpus, sentences=3))


@pytest.mark.usefixtures("short")
def test_offline_it_ends_with_table_and_pictures_and_says_the_weights_are_random(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "demo"
    assert run("demo", "-o", folder) == 0
    out, _ = capsys.readouterr()
    assert "RANDOM-WEIGHT" in out
    assert "pool of 6" in out
    assert "they say nothing about Whisper" in out
    for name in ("recall_by_layer.png", "languages.png", "retrieval.parquet"):
        assert (folder / "results" / name).stat().st_size > 1000
    assert run("info", folder / "demo.zarr") == 0
    assert "12 done" in capsys.readouterr().out
    (folder / "results" / "languages.png").unlink()
    assert run("demo", "-o", folder) == 0  # its own folder it makes anew
    assert (folder / "results" / "languages.png").exists()


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
