"""`make figures`: its steps are commands that exist, they draw every picture of the docs, and run in small."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import soundfile
from conftest import sound

ROOT = Path(__file__).parents[1]
GROUPS = 6


@pytest.fixture
def speech(tmp_path: Path) -> Path:
    """Sentences in English and Spanish, as the prompts are kept."""
    lines = ["id\tpath\tlanguage\tgroup\ttext\tseconds"]
    for g in range(GROUPS):
        texts = {"en": f"Door {g} is open now", "es": f"La puerta {g} ya está abierta"}
        for j, (language, text) in enumerate(texts.items()):
            path, samples = f"{language}-{g}.wav", sound(0.6 + 0.1 * g, 10 * g + j)
            soundfile.write(tmp_path / path, samples, 16_000)
            lines.append(f"{language}/{g}\t{path}\t{language}\tg{g}\t{text}\t{len(samples) / 16_000:.3f}")
    (tmp_path / "speech.tsv").write_text("\n".join(lines), encoding="utf-8")
    return tmp_path / "speech.tsv"


def figures(speech: Path, *options: object) -> str:
    script = ROOT / "benchmarks" / "figures.py"
    command = [sys.executable, script, "--prompts", speech, "--explain", "en/1,es/1", "--mine", "en-es", *options]
    done = subprocess.run(
        [str(word) for word in command], cwd=speech.parent, text=True, encoding="utf-8",
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    return done.stdout


def test_its_steps_draw_every_picture_that_the_docs_show_and_parse(speech: Path) -> None:
    click = pytest.importorskip("click")
    from voxstrata.cli.app import main

    models = ("--base", "base", "--tiny-en", "tiny.en", "--calibrate", speech)
    said = figures(speech, *models, "--dry-run", "--skip", "drift")
    assert "drift: left out" in said
    drawn = set(re.findall(r'"(\w+\.png)"', (ROOT / "benchmarks" / "figures.py").read_text(encoding="utf-8")))
    drawn |= {f"prompts_{name}" for name in drawn}  # of a sweep, named in the script without the prefix
    pages = [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
    shown = {m for page in pages for m in re.findall(r"images/(\w+\.png)", page.read_text(encoding="utf-8"))}
    assert shown
    assert shown <= drawn, shown - drawn
    lines = [line.split() for line in said.splitlines() if line.startswith("voxstrata ")]
    assert len(lines) > 10
    for words in lines:
        command, rest = main, words[1:]
        while isinstance(command, click.Group):
            command, rest = command.get_command(click.Context(command), rest[0]), rest[1:]
        known = {option for parameter in command.params for option in parameter.opts}
        unknown = {word.split("=")[0] for word in rest if word.startswith("-")} - known
        assert not unknown, (words, unknown)


@pytest.mark.long
@pytest.mark.timeout(900)
def test_it_runs_in_small(speech: Path, tiny_transcriber: Path) -> None:
    for package in ("torch", "jiwer", "panphon", "matplotlib"):
        pytest.importorskip(package)
    from safetensors.torch import load_file, save_file

    other = speech.parent / "other"
    shutil.copytree(tiny_transcriber, other)
    state = load_file(other / "model.safetensors")
    state["model.encoder.layers.0.fc1.bias"] += 0.1
    save_file(state, other / "model.safetensors", {"format": "pt"})
    skipped = "silence,workers,translate"  # scripts of many minutes; the tiny model knows no task but transcribing
    options = ("--base", tiny_transcriber, "--tiny-en", other, "--images", speech.parent / "images", "--groups", 5)
    said = figures(speech, *options, "--calibrate", speech.parent, "--skip", skipped)
    assert "exit code" not in said
    made = {path.name for path in (speech.parent / "images").iterdir()}
    assert {"drift.png", "prompts_recall_by_layer.png", "prompts_early_exit.png", "explain.png", "words.png"} <= made
    assert "retrieve: is there" in figures(speech, *options, "--calibrate", speech.parent, "--skip", skipped)
