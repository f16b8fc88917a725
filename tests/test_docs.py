"""What README and docs show works: Python blocks run, commands and their options exist, links lead somewhere."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

import click
import numpy as np
import pytest
import soundfile
from conftest import sound
from stores import Utterance, family, make_store
from test_cli import run

import voxstrata as vs
from voxstrata.cli.app import main

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *sorted((ROOT / "benchmarks").glob("*.md"))]


def blocks(language: str) -> list[tuple[str, str]]:
    """(page, block) for every fenced block of a language."""
    return [(p.name, b) for p in PAGES for b in blocks_of(p, language)]


def blocks_of(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), re.M | re.S)


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory, tiny_checkpoint: Path, tiny_model: Path) -> Path:
    """A folder as the docs assume it: `checkpoint`, its model `base`, `speech.tsv`, `speech.zarr`, its `phonetics`,
    and `speech-other.zarr`, a store of another encoder.
    """
    desk = tmp_path_factory.mktemp("desk")
    shutil.copytree(tiny_checkpoint, desk / "checkpoint")
    shutil.copytree(tiny_model, desk / "base")
    texts = {"en": ["The door is open.", "Where is my red hat?"], "es": ["La puerta está abierta.", "Llueve mucho."]}
    lines = ["id\tpath\tlanguage\tgroup\ttext"]
    for language in ("en", "es"):
        for g in range(2):
            soundfile.write(desk / f"{language}{g}.wav", sound(0.7 + g, g), 16_000)
            lines.append(f"{language}-{7 + g}\t{language}{g}.wav\t{language}\tg{g}\t{texts[language][g]}")
    (desk / "speech.tsv").write_text("\n".join(lines), encoding="utf-8")
    assert run("extract", desk / "speech.tsv", desk / "base", "-o", desk / "speech.zarr") == 0
    rng, outputs = np.random.default_rng(0), ("layer_00", "layer_01", "final")
    made = {
        f"{language}-{7 + g}": Utterance(rng.standard_normal((35 + 50 * g, 6)).astype(np.float32), language, f"g{g}")
        for language in ("en", "es") for g in range(2)
    }  # fmt: skip
    other = {"checkpoint": "other", "weights_sha256": "2" * 64, "layers": 2, "silence": {}}
    spec = vs.StoreSpec(outputs, context=vs.Context("exact"))
    make_store(desk / "speech-other.zarr", made, spec=spec, **other, outputs=outputs, family=family("Sounds", outputs))
    assert run("phonetics", desk / "speech.tsv", "-o", desk / "phonetics") == 0
    return desk


@pytest.mark.parametrize(("page", "block"), [found for found in blocks("python") if found[0] != "tutorial.md"])
def test_python_blocks_run(page: str, block: str, desk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(desk)
    imported = {"vs": vs} if page == "api.md" else {}  # its first block imports it for all
    exec(compile(block, page, "exec"), {"__name__": "docs", **imported})


def test_the_tutorial_runs_from_top_to_bottom(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    scope: dict[str, object] = {"__name__": "docs"}
    for cell in blocks_of(ROOT / "docs" / "tutorial.md", "python"):
        exec(compile(cell.replace('"test", 40,', '"test", 4,'), "tutorial.md", "exec"), scope)  # the site runs it whole
    assert "12 recordings" in capsys.readouterr().out
    assert (tmp_path / "results" / "retrieval.parquet").exists()


def sentences(page: Path) -> list[str]:
    """A page's sentences, without code, tables, headings and pictures; an item of a list ends one, too."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    text = "\n".join("" if line.startswith(("|", "#", "![")) else line for line in text.splitlines())
    text = re.sub(r"\]\([^)]*\)", "]", text)
    parts = re.split(r"\n\s*\n|^\s*(?:-|\d+\.) ", text, flags=re.M)
    return [s for part in parts for s in re.split(r"(?<=[.!?])[*”)]*\s+", " ".join(part.split())) if s]


@pytest.mark.parametrize("name", ["README.md", "docs/tutorial.md", "docs/glossary.md", "docs/howto-*.md"])
def test_no_sentence_for_newcomers_has_over_30_words(name: str) -> None:
    pages = list(ROOT.glob(name))
    assert pages
    assert [(p.name, s) for p in pages for s in sentences(p) if len(s.split()) > 30] == []


def test_the_api_page_names_what_is_public() -> None:
    page = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    named = re.findall(r"^\| \[?`vs\.(\w+)`", page, re.M)
    assert sorted(named) == sorted(vs.__all__)


def commands() -> list[tuple[str, str]]:
    return [
        (page, line.removeprefix("$ ").split("#")[0].strip())
        for page, block in blocks("console")
        for line in block.splitlines()
        if line.startswith("$ voxstrata")
    ]


@pytest.mark.parametrize(("page", "line"), commands())
def test_commands_and_options_exist(page: str, line: str) -> None:
    _, name, *args = shlex.split(line)
    with click.Context(main) as context:
        command = main.get_command(context, name)
        assert command is not None, f"{page}: no command {name}"
        if isinstance(command, click.Group):
            name, *args = args
            command = command.get_command(context, name)
            assert command is not None, f"{page}: no command {name} in: {line}"
        command.make_context(name, args, parent=context)  # raises for an unknown option or a missing argument


def test_make_targets_and_scripts_exist() -> None:
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M)
    text = "\n".join(p.read_text(encoding="utf-8") for p in PAGES)
    named = set(re.findall(r"(?:`|^\$ )make ([\w-]+)", text, re.M))  # as code: prose has the word, too
    assert {"demo", "test"} <= named
    assert named <= set(targets)
    scripts = set(re.findall(r"benchmarks/(\w+\.py)", text))
    assert scripts
    assert [s for s in scripts if not (ROOT / "benchmarks" / s).exists()] == []


def anchors(page: Path) -> set[str]:
    """What the hosting service, and the site, call a page's headings."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    headings = re.findall(r"^#+ (.+)$", re.sub(r"\]\([^)]*\)", "]", text), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_links_lead_somewhere() -> None:
    dead = []
    for page in (*PAGES, *(ROOT / name for name in ("CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md"))):
        text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
        for target, anchor in re.findall(r"\]\(([^)#\s]*)(?:#([^)\s]+))?\)", text):
            place = page.parent / target if target else page
            if "://" not in target and (not place.exists() or (anchor and anchor not in anchors(place))):
                dead.append(f"{page.name}: {target}#{anchor}")
    assert dead == []


def test_every_page_of_the_docs_has_its_place_on_the_site() -> None:
    placed = re.findall(r": ([\w-]+\.md)$", (ROOT / "mkdocs.yml").read_text(encoding="utf-8"), re.M)
    assert len(placed) == len(set(placed))
    assert {page.name for page in (ROOT / "docs").glob("*.md")} <= set(placed)


def test_nothing_is_left_to_fill_in() -> None:
    assert [p.name for p in PAGES if "@@" in p.read_text(encoding="utf-8")] == []


def test_every_test_that_a_method_names_is_there() -> None:
    page = (ROOT / "docs" / "methods.md").read_text(encoding="utf-8")
    named = re.findall(r"`(tests/test_\w+\.py)::(test_\w+)`", page)
    sections = page.split("\n### ")[1:]
    for section in sections:
        for part in ("Formula", "Source", "Assumes", "Fails", "Planted"):
            assert f"- **{part}.** " in section, (section.splitlines()[0], part)
    assert len(named) >= len(sections) > 10
    for file, name in named:
        assert f"def {name}(" in (ROOT / file).read_text(encoding="utf-8"), f"{file}::{name}"
