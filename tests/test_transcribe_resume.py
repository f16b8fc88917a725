"""A stopped sweep goes on to the results of an undisturbed one, and takes no other run's transcripts for its own."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import soundfile
from conftest import sound
from test_cli import run

pytest.importorskip("torch")
pytest.importorskip("jiwer")

from voxstrata.early_exit import decoder, states
from voxstrata.early_exit.decoder import Ask, Decoder
from voxstrata.early_exit.result import EarlyExits
from voxstrata.store.claims import Claims
from voxstrata.store.files import Files

OPTIONS = ("--blocks", "3", "--max-new-tokens", "6", "--bootstrap", "20", "--batch", "2")
RESULTS = (
    "transcripts.parquet", "errors.parquet", "choices.parquet", "costs.parquet", "transcripts.md", "early_exit.md",
)  # fmt: skip


@pytest.fixture(autouse=True)
def no_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing takes longer than all else here; and no clock runs, whose seconds would differ."""
    monkeypatch.setattr(EarlyExits, "figures", lambda _: {})
    for module in (states, decoder):
        monkeypatch.setattr(module, "perf_counter", lambda: 0.0)


def write_speech(folder: Path) -> Path:
    """A manifest of eight recordings of two languages, and of one that is none."""
    lines = ["id\tpath\tlanguage\tgroup\ttext"]
    for g in range(4):
        for j, language in enumerate(("en", "es")):
            soundfile.write(folder / f"{language}{g}.wav", sound(0.5 + 0.2 * g, 10 * g + j), 16_000)
            lines.append(f"{language}{g}\t{language}{g}.wav\t{language}\ts{g}\tDoor {g} is open")
    (folder / "bad.wav").write_bytes(b"no audio")
    lines.append("bad\tbad.wav\tes\ts0\tnever heard")
    (folder / "speech.tsv").write_text("\n".join(lines), encoding="utf-8")
    return folder / "speech.tsv"


@pytest.fixture
def speech(tmp_path: Path) -> Path:
    return write_speech(tmp_path)


@pytest.fixture
def heard(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many transcripts each batch that was decoded has."""
    sizes: list[int] = []
    right = Decoder.decode

    def spy(self: Decoder, asks: Sequence[Ask]) -> Iterator[Any]:
        sizes.append(len(asks))
        return right(self, asks)

    monkeypatch.setattr(Decoder, "decode", spy)
    return sizes


def test_a_stopped_sweep_goes_on_and_leaves_the_same_results(
    speech: Path, tiny_transcriber: Path, tmp_path: Path, heard: list[int], monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    arguments = ("early-exit", "sweep", tiny_transcriber, speech, *OPTIONS)
    assert run(*arguments, "-o", whole) == 4
    assert sum(heard) == 8 * 2
    journal = (whole / "transcripts.jsonl").read_bytes()
    assert len(journal.splitlines()) == 1 + 8 * 2

    spied = Decoder.decode

    def stop(self: Decoder, asks: Sequence[Ask]) -> Iterator[Any]:
        found = spied(self, asks)
        if len(heard) < 3:
            yield from found
            return
        yield next(found)
        raise KeyboardInterrupt

    heard.clear()
    monkeypatch.setattr(Decoder, "decode", stop)
    assert run(*arguments, "-o", cut) == 130
    assert not (cut / "early_exit.md").exists()
    left = (cut / "transcripts.jsonl").read_bytes()
    assert len(left.splitlines()) == 1 + 2 * 4 + 1
    (cut / "transcripts.jsonl").write_bytes(left[:-9])  # as a kill in the middle of a line leaves it

    heard.clear()
    monkeypatch.setattr(Decoder, "decode", spied)
    capsys.readouterr()
    assert run(*arguments, "-o", cut) == 4
    assert "there already (transcripts.jsonl): 8 transcripts" in capsys.readouterr().out
    assert sum(heard) == 8 * 2 - 2 * 4  # the batch with the broken line is decoded again
    for name in RESULTS:
        assert (cut / name).read_bytes() == (whole / name).read_bytes(), name
    assert sorted((cut / "transcripts.jsonl").read_bytes().splitlines()) == sorted(journal.splitlines())


def test_scoring_anew_needs_no_decoding_and_other_settings_are_refused_by_name(
    speech: Path, tiny_transcriber: Path, tmp_path: Path, heard: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    out = ("-o", tmp_path / "out")
    arguments = ("early-exit", "sweep", tiny_transcriber, speech, *OPTIONS)
    assert run(*arguments, *out) == 4
    journal = (tmp_path / "out" / "transcripts.jsonl").read_bytes()
    heard.clear()
    capsys.readouterr()
    assert run(*arguments[:-1], 1, *out, "--normalizer", "light", "--seed", "2", "--json") == 4  # and batches of 1
    said = json.loads(capsys.readouterr().out)
    assert (said["scoring"]["normalizer"], said["normalizers"]) == ("light", {"en": "light", "es": "light"})
    assert said["resumed"] == 16
    speech.write_text(speech.read_text(encoding="utf-8").replace("Door 1 is open", "Door one is open"), "utf-8")
    assert run(*arguments, *out) == 4  # a corrected text: the recordings are the same
    assert heard == []

    other_tokens = [9 if given == "6" else given for given in arguments[2:]]

    def refused(message: str, *command: object) -> None:
        assert run("early-exit", "sweep", *command) == 3
        assert message in capsys.readouterr().err
        assert (tmp_path / "out" / "transcripts.jsonl").read_bytes() == journal

    refused("max_new_tokens 6, now max_new_tokens 9:", *other_tokens, *out)
    refused("task transcribe, now task translate", *arguments[2:], *out, "--task", "translate")
    refused("prompts {}, now prompts {'en': 'ja', 'es': 'ja'}", *arguments[2:], *out, "--language", "ja")
    with Claims(Files(tmp_path / "out")) as other:
        other.take(0)
        message = "of a run at work with max_new_tokens 6, now max_new_tokens 9"
        refused(message, *other_tokens, *out, "--overwrite")
    other = tmp_path / "other"
    shutil.copytree(tiny_transcriber, other)
    settings = json.loads((other / "generation_config.json").read_text(encoding="utf-8"))
    settings["suppress_tokens"] = settings["suppress_tokens"][1:]
    (other / "generation_config.json").write_text(json.dumps(settings), encoding="utf-8")
    refused("model_sha256", other, *arguments[3:], *out)
    speech.write_text(speech.read_text(encoding="utf-8").replace("en3\t", "en33\t"), encoding="utf-8")
    refused("corpus_sha256", *arguments[2:], *out)
    assert heard == []


def test_a_replaced_recording_is_heard_again(
    speech: Path, tiny_transcriber: Path, tmp_path: Path, heard: list[int]
) -> None:
    arguments = ("early-exit", "sweep", tiny_transcriber, speech, *OPTIONS, "-o", tmp_path / "out")
    assert run(*arguments) == 4
    soundfile.write(speech.parent / "bad.wav", sound(0.7, 99), 16_000)
    heard.clear()
    assert run(*arguments) == 0
    assert sum(heard) <= 2 * 6  # batches of es change with it; en's are known
    assert len((tmp_path / "out" / "transcripts.jsonl").read_text(encoding="utf-8").splitlines()) == 1 + 9 * 2


def test_a_run_that_was_refused_binds_nobody_and_a_foreign_file_is_left_alone(
    speech: Path, tiny_transcriber: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    arguments = (
        "early-exit",
        "sweep",
        tiny_transcriber,
        speech,
        "--max-new-tokens",
        "4",
        "--bootstrap",
        "9",
        "-o",
        out,
    )
    assert run(*arguments, "--language", "es=fr") == 2
    assert run(*arguments, "--blocks", "3") == 4
    for text in ("hello\nthere\n", '{"a": 1}\n{"id": "x"}\n', "[1]\n[2]\n"):
        (out / "transcripts.jsonl").write_text(text, encoding="utf-8")
        capsys.readouterr()
        assert run(*arguments) == 3
        assert "no transcripts of a sweep" in capsys.readouterr().err
        assert (out / "transcripts.jsonl").read_text(encoding="utf-8") == text


def test_what_the_figures_depend_on_is_told_and_stored(
    speech: Path, tiny_transcriber: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """No table of spellings, a stray text in another script, a language that failures left in one part."""
    bare = tmp_path / "bare"
    shutil.copytree(tiny_transcriber, bare)
    (bare / "normalizer.json").unlink()
    lines = speech.read_text(encoding="utf-8").replace("\tes\ts1\tDoor 1 is open", "\tes\ts1\tДверь").splitlines()
    parts: dict[str, str] = {}
    out = tmp_path / "first"
    assert run("early-exit", "sweep", bare, speech, *OPTIONS, "-o", out, "--json") == 4
    for r in pq.read_table(out / "transcripts.parquet").to_pylist():
        parts[r["group"].removeprefix("group ")] = r["part"]
    development, test = (sorted(g for g, part in parts.items() if part == p)[0] for p in ("dev", "test"))
    lines += [f"ja1\tbad.wav\tja\t{development}\tドア", f"ja2\ten0.wav\tja\t{test}\tドア"]
    speech.write_text("\n".join(lines), encoding="utf-8")
    capsys.readouterr()
    assert run("early-exit", "sweep", bare, speech, *OPTIONS, "-o", tmp_path / "out") == 4
    printed = " ".join(capsys.readouterr().out.split())
    about = json.loads(pq.read_table(tmp_path / "out" / "errors.parquet").schema.metadata[b"voxstrata"])
    english, script, japanese, *more = about["notes"]
    assert english.startswith("en: the checkpoint's folder has no normalizer.json")
    assert script == "es: scored as latin, the script of most of its texts; 1 text in cyrillic counted with them"
    assert japanese == "ja: no recording of the dev part was transcribed, so no k is chosen, and 'all' is without it"
    assert more == []
    assert all(note in printed for note in about["notes"])
    assert about["normalizers"] == {
        "en": "whisper english without spellings",
        "es": "whisper basic",
        "ja": "whisper basic",
    }
    assert all(note in (tmp_path / "out" / "early_exit.md").read_text(encoding="utf-8") for note in about["notes"])
