"""What a release rests on: versions that agree, formats that are documented, workflows that test what is promised."""

from __future__ import annotations

import re
import runpy
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

from voxstrata.early_exit import checkpoint, journal
from voxstrata.encoders.card import BY_BUCKET_FORMAT, MODEL_FORMAT
from voxstrata.engine import measuring
from voxstrata.retrieval import folder
from voxstrata.store.fingerprint import SECOND
from voxstrata.store.spec import STORE_SCHEMA

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def test_the_formats_page_has_the_numbers_that_are_written() -> None:
    page = (ROOT / "docs" / "formats.md").read_text(encoding="utf-8")
    rows = [re.split(r" *\| *", line.strip("| ")) for line in page.splitlines() if line.startswith("| ")]
    written = {row[0]: row[2] for row in rows if len(row) == 5}
    assert written.pop("what is written") == "now written"
    assert written == {
        "model folder": f"{MODEL_FORMAT}; with silence keys for each bucket {BY_BUCKET_FORMAT}",
        "store": str(STORE_SCHEMA),
        "plan of a store": f"`{SECOND}…`",
        "folder of `similarity`": str(folder._SCHEMA),
        "early-exit checkpoint": str(checkpoint._FORMAT),
        "transcripts of a sweep": str(journal._FORMAT),
        "record of `bench`": str(measuring.FORMAT),
    }


def test_the_formats_page_names_every_key_of_a_card(tiny_model: Path) -> None:
    import json

    page = (ROOT / "docs" / "formats.md").read_text(encoding="utf-8").split("## The model card")[1].split("## ")[0]
    keys = set(json.loads((tiny_model / "card.json").read_text(encoding="utf-8")))
    assert keys - set(re.findall(r"`(\w+)`", page)) == set()


def test_the_citation_is_of_the_last_version_that_the_changelog_names() -> None:
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    numbered = re.findall(r"^## (\d\S*)", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.M)
    assert cited["version"] == numbered[0]
    assert cited["license"] == PROJECT["license"]
    here, released = (tuple(map(int, text.split(".")[:3])) for text in (PROJECT["version"], numbered[0]))
    assert here == released or (here > released and PROJECT["version"].endswith(".dev0"))
    needed = {"cff-version", "message", "title", "abstract", "type", "authors", "version", "license", "keywords"}
    assert needed <= cited.keys()


def _release(root: Path, package: str, cited: str, heading: str) -> Path:
    (root / "pyproject.toml").write_text(f'[project]\nversion = "{package}"\n')
    (root / "CITATION.cff").write_text(f"cff-version: 1.2.0\nversion: {cited}\n")
    (root / "CHANGELOG.md").write_text(f"# Changelog\n\n## {heading}\n\n## 0.1.0\n")
    return root


def test_a_tag_is_released_only_where_all_name_its_version(tmp_path: Path) -> None:
    problems = runpy.run_path(str(ROOT / ".github" / "check_version.py"))["problems"]
    assert problems("v1.2.3", _release(tmp_path, "1.2.3", "1.2.3", "1.2.3")) == []
    assert problems("v1.2.3rc1", _release(tmp_path, "1.2.3rc1", '"1.2.3rc1"', "1.2.3rc1")) == []
    wrong = problems("v1.2.3", _release(tmp_path, "1.2.2", "0.1.0", "Unreleased"))
    assert [line.split(" says ")[0] for line in wrong] == [
        "pyproject.toml", "CITATION.cff", "the first heading of CHANGELOG.md"
    ]  # fmt: skip
    assert problems("1.2.3", tmp_path) == ["1.2.3: write it as v1.2.3, or v1.2.3rc1"]


def test_workflows_test_the_pythons_that_the_package_names() -> None:
    named = {c.rsplit(" ", 1)[1] for c in PROJECT["classifiers"] if re.search(r"Python :: 3\.\d+$", c)}
    least = PROJECT["requires-python"].removeprefix(">=")
    assert min(named, key=lambda v: int(v[2:])) == least
    jobs = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8"))["jobs"]
    matrices = {name: job["strategy"]["matrix"] for name, job in jobs.items() if "strategy" in job}
    assert {name: set(m["python"]) for name, m in matrices.items()} == dict.fromkeys(
        ["test", "install", "windows"], named
    )
    assert matrices["test"]["os"] == matrices["install"]["os"] == ["ubuntu-latest", "macos-latest"]
    assert jobs["windows"]["runs-on"] == "windows-latest"


def test_on_windows_itself_the_import_says_what_to_do() -> None:
    code = "import sys; sys.platform = 'win32'; import voxstrata"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stderr.splitlines()[-1].startswith(
        "ImportError: voxstrata runs on Linux and macOS; on Windows use WSL 2"
    )


@pytest.mark.parametrize("image", ["cpu", "cuda"])
def test_an_image_is_made_of_files_that_docker_is_sent(image: str) -> None:
    ignored = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    sent = {line.removeprefix("!").rstrip("/") for line in ignored if line.startswith("!")}
    text = (ROOT / "docker" / f"{image}.Dockerfile").read_text(encoding="utf-8")
    copied = [word for line in re.findall(r"^COPY (?!--from)(.*)$", text, re.M) for word in line.split()[:-1]]
    assert copied
    assert set(copied) <= sent
    assert all((ROOT / name).exists() for name in copied)
    wheel = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert {"README.md", "hatch_build.py", *wheel["license-files"]} <= set(copied)
    (extras,) = re.findall(r"^ARG EXTRAS=(.*)$", text, re.M)
    assert set(extras.split(",")) <= PROJECT["optional-dependencies"].keys()
