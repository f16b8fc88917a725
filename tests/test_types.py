"""The examples of README and docs pass a type checker: what the package says of its types, a user's editor believes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from test_docs import ROOT, blocks

import voxstrata

IMPORT = "import voxstrata as vs\n"


def write_examples(folder: Path) -> list[Path]:
    """A module for each Python block of the docs; the tutorial's are one, since each goes on from the last."""
    made = []
    every = blocks("python")
    apart = [found for found in every if found[0] != "tutorial.md"]
    together = "\n".join(block for page, block in every if page == "tutorial.md")
    for n, (page, block) in enumerate([*apart, ("tutorial.md", together)]):
        made.append(folder / f"example_{n:02d}_{page.split('.')[0].replace('-', '_')}.py")
        made[-1].write_text(block if IMPORT.strip() in block else IMPORT + block, encoding="utf-8")
    return made


@pytest.mark.long
def test_the_examples_pass_mypy(tmp_path: Path) -> None:
    pytest.importorskip("mypy", reason="it is in the extra `lint`")
    examples = write_examples(tmp_path)
    assert len(examples) > 20
    options = ["--config-file", str(ROOT / "pyproject.toml"), "--ignore-missing-imports", "--no-warn-unused-ignores"]
    command = [sys.executable, "-m", "mypy", *options, *map(str, examples)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_the_package_says_that_it_has_types() -> None:
    assert (Path(voxstrata.__file__).parent / "py.typed").exists()
