"""The oldest versions that pyproject.toml admits are those that `make test-lower-bounds` installs."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
EXTRAS = ("export", "anyaudio", "xarray")
HIGHER = {"huggingface-hub"}  # transformers asks for more than we do


def numbers(version: str) -> tuple[int, ...]:
    found = [int(part) for part in version.split(".")]
    return tuple(found + [0] * (4 - len(found)))


def test_lower_bounds_are_those_that_are_tested() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    needed = [*project["dependencies"], *(line for name in EXTRAS for line in extras[name])]
    bounds = dict(re.match(r"([\w-]+)>=([\d.]+)", line).groups() for line in needed)  # type: ignore[union-attr]
    lines = (ROOT / "constraints-lowest.txt").read_text(encoding="utf-8").splitlines()
    pinned = dict(line.split("==") for line in lines if not line.startswith("#"))
    assert pinned.keys() == bounds.keys()
    for name, bound in bounds.items():
        # to the digits of the bound: "24.6" is met by the first release of that line
        assert numbers(pinned[name]) >= numbers(bound)
        assert name in HIGHER or pinned[name].startswith(bound), (name, pinned[name], bound)


def test_what_is_not_safe_is_not_admitted() -> None:
    """torch before 2.6 runs code from weights, numcodecs before 0.16.6 unpickles, onnxruntime before 1.24.1 reads any
    file as weights."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    for name, least in (
        ("torch", "2.6"),
        ("numcodecs", "0.16.6"),
        ("onnxruntime", "1.24.1"),
        ("onnxruntime-gpu", "1.24.1"),
    ):
        found = re.findall(rf'"{name}>=([\d.]+)', text)
        assert found
        assert all(numbers(version) >= numbers(least) for version in found)
