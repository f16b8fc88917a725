"""The wheel: it holds the package, and works where nothing else than its own requirements is installed."""

from __future__ import annotations

import os
import re
import runpy
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from conftest import sound

from voxstrata import Context, StoreSpec, open_model
from voxstrata.demo.encoder import LABORATORY, write_laboratory_encoders, write_laboratory_model

ROOT = Path(__file__).parents[1]

# Run in a fresh interpreter: packages that a wheel does not require, with these extras, cannot be imported.
CLOSED = """
import re, sys
from importlib.metadata import distribution, packages_distributions, PackageNotFoundError

site, extras = sys.argv[1], sys.argv[2].split(",")
sys.path.insert(0, site)

def plain(name):
    return re.sub(r"[-_.]+", "-", name).lower()

from packaging.requirements import Requirement

allowed, asked = set(), [("voxstrata", frozenset(extras))]
while asked:
    name, wanted = asked.pop()
    try:
        requires = distribution(name).requires or []
    except PackageNotFoundError:  # onnxruntime in place of onnxruntime-gpu
        continue
    allowed.add(plain(name))
    for line in requires:
        need = Requirement(line)
        if need.marker is None or any(need.marker.evaluate({"extra": extra}) for extra in (wanted or {""})):
            if plain(need.name) not in allowed or need.extras:
                asked.append((need.name, frozenset(need.extras)))
            if len(allowed) > 500:
                raise SystemExit("no end")
owners = {top: {plain(name) for name in names} for top, names in packages_distributions().items()}

class Closed:
    @staticmethod
    def find_spec(name, path=None, target=None):
        owned = owners.get(name.split(".")[0])
        if owned and not owned & allowed:
            raise ModuleNotFoundError(f"{name} is not installed", name=name)

for name in [n for n in sys.modules if n.split(".")[0] == "packaging" and "packaging" not in allowed]:
    del sys.modules[name]
sys.meta_path.insert(0, Closed)
import voxstrata
assert voxstrata.__file__.startswith(site), voxstrata.__file__
"""
DEMO = """
from voxstrata.demo import run
run.SENTENCES, run.TAUGHT = 3, ("en", "de")
"""
COMMAND = """
from voxstrata.cli.app import main
main.main(sys.argv[3:], prog_name="voxstrata")
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("hatchling", reason="builds the wheel; it is in the extra `test`")
    made = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(made)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    (path,) = made.iterdir()
    return path


@pytest.fixture(scope="module")
def site(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


def test_the_wheel_holds_the_package_and_nothing_else(site: Path) -> None:
    found = {path.relative_to(site).as_posix() for path in site.rglob("*") if path.is_file()}
    own = {name for name in found if name.startswith("voxstrata/")}
    source = ROOT / "src"
    there = {path.relative_to(source).as_posix() for path in source.rglob("*") if path.is_file()}
    assert own == {name for name in there if "__pycache__" not in name}
    assert {"voxstrata/py.typed", "voxstrata/demo/models/translator/card.json"} <= own
    (about,) = {name.split("/")[0] for name in found - own}
    assert about.endswith(".dist-info")
    assert (site / about / "licenses" / "LICENSE").exists()


def test_the_index_shows_a_readme_without_links_into_the_repository(site: Path) -> None:
    (metadata,) = site.glob("*.dist-info/METADATA")
    text = metadata.read_text(encoding="utf-8")
    assert "Description-Content-Type: text/markdown" in text
    readme = text.partition("\n\n")[2]
    assert "# voxstrata" in readme
    assert "(A picture: How often each layer of whisper-base finds a sentence's translation.)" in readme
    assert re.findall(r"\]\((?!https?:|#)[^)]*\)|(?:src|href)=", readme) == []


def test_links_lead_to_the_repository_where_it_is_known() -> None:
    pytest.importorskip("hatchling", reason="builds the wheel; it is in the extra `test`")
    alone = runpy.run_path(str(ROOT / "hatch_build.py"))["readme_alone"]
    text = "![a\nb](docs/p.png) [c](docs/d.md#e) [f](https://g.h/i) [j](#k)"
    there = "https://example.org/v"
    assert alone(text, f"{there}/", "1.2") == (
        f"![a\nb]({there}/raw/v1.2/docs/p.png) [c]({there}/blob/v1.2/docs/d.md#e) [f](https://g.h/i) [j](#k)"
    )
    assert alone(text, None, "1.2") == "(A picture: a\nb.) c [f](https://g.h/i) [j](#k)"


def _run_closed(site: Path, extras: str, code: str, *args: object) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [sys.executable, "-c", CLOSED + code + COMMAND, str(site), extras, *map(str, args)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, cwd=site)


def test_demo_and_extraction_need_no_torch(site: Path, tmp_path: Path) -> None:
    """`pip install 'voxstrata[demo]'`: what is asked of a bare machine first. The models come with the package."""
    made = tmp_path / "demo"
    done = _run_closed(site, "demo", DEMO, "demo", "-o", made)
    assert done.returncode == 0, done.stderr
    assert "PyTorch is not here to export a checkpoint" in done.stdout
    assert (made / "results" / "recall_by_depth.png").exists()
    arguments = ("extract", made / "corpus" / "manifest.tsv", made / "transcriber-model", "-o", tmp_path / "s.zarr")
    done = _run_closed(site, "", "", *arguments, "--outputs", "layer_04,final")
    assert done.returncode == 0, done.stderr
    assert "6 of 6 utterances in 2 units" in done.stdout
    # and what is not installed is said, with the extra that brings it
    done = _run_closed(site, "", "", "retrieve", tmp_path / "s.zarr", "-o", tmp_path / "r")
    assert (done.returncode, "pip install 'voxstrata[plot]'" in done.stderr) == (3, True), done.stderr
    done = _run_closed(site, "demo", "", "export", made / "transcriber", "-o", tmp_path / "m")
    assert (done.returncode, "pip install 'voxstrata[export]'" in done.stderr) == (3, True), done.stderr


@pytest.mark.parametrize("name", [LABORATORY[0], pytest.param(LABORATORY[1], marks=pytest.mark.long)])
def test_the_models_in_the_package_are_what_export_makes_of_its_encoders(name: str, tmp_path: Path) -> None:
    """They are files, made once: an export that changes must make them anew."""
    pytest.importorskip("torch")
    from voxstrata.exporters import export

    checkpoints = dict(zip(LABORATORY, write_laboratory_encoders(tmp_path), strict=True))
    fresh = export(str(checkpoints[name]), tmp_path / "fresh")
    shipped = open_model(write_laboratory_model(name, tmp_path / "shipped"))
    assert shipped.card.weights_sha256 == fresh.card.weights_sha256
    assert shipped.card.format == fresh.card.format
    samples = sound(1.7, seed=3)
    # both are rounded to float16; a silence cache is made by k-means, whose last bits depend on the machine
    for spec, most in ((StoreSpec(context=Context("padded")), 2e-3), (StoreSpec(context=Context("bucketed")), 2e-2)):
        new, old = (model.encode(samples, 16_000, spec=spec) for model in (open_model(fresh.path), shipped))
        for output in shipped.card.outputs:
            a, b = old[output].astype(float), new[output].astype(float)
            assert np.linalg.norm(a - b) < most * np.linalg.norm(b)
