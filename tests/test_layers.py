"""Rooms: each has one floor, imports run downward only, and what CONTRIBUTING and docs/architecture.md say is true."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "voxstrata"
PAGES = [ROOT / "CONTRIBUTING.md", ROOT / "docs" / "architecture.md"]


def _floors() -> list[list[str]]:
    """The rooms as the picture in the docs stacks them, from the ground up."""
    picture = re.search(r"^```rooms\n(.*?)^```", PAGES[1].read_text(encoding="utf-8"), re.M | re.S)
    assert picture, "docs/architecture.md shows no rooms"
    return [line.split() for line in reversed(picture[1].splitlines())]


# A room imports rooms of lower floors alone; rooms on one floor know nothing of each other.
FLOORS = _floors()
FLOOR = {room: i for i, floor in enumerate(FLOORS) for room in floor}
# A study is a room of its own. Of these one may look into another: what align holds against is what phonetics measured.
STUDIES = {"retrieve", "align", "phonetics", "words", "explain", "drift", "compared", "mine"}
BESIDE = {("align", "phonetics"), ("retrieve", "phonetics"), ("drift", "retrieve"), ("compared", "retrieve")}
BESIDE |= {("compared", "align")}
MODULES = sorted(p for p in SOURCE.rglob("*.py") if p.parent != SOURCE)


@cache
def imported(path: Path) -> list[list[str]]:
    """The modules of this package that a file imports, in parts: `voxstrata.store.plan` is ["store", "plan"]."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}: a relative import"
            # of a package its modules, not the package itself: `from voxstrata.retrieval.kernels.gpu import programs`
            within = SOURCE.parent / (node.module or "").replace(".", "/")
            inner = [a.name for a in node.names if (within / f"{a.name}.py").exists() or (within / a.name).is_dir()]
            names = [f"{node.module}.{name}" for name in inner] + [node.module or ""] * (len(inner) < len(node.names))
        found += [name.split(".")[1:] for name in names if name.split(".")[0] == "voxstrata"]
    return [parts for parts in found if parts]


def test_every_room_has_a_floor() -> None:
    rooms = {path.name for path in SOURCE.iterdir() if path.is_dir() and path.name != "__pycache__"}
    assert rooms == set(FLOOR)
    assert {p.name for p in (SOURCE / "studies").iterdir() if p.is_dir() and p.name != "__pycache__"} == STUDIES


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(SOURCE)))
def test_imports_run_downward(path: Path) -> None:
    room, *inner = path.relative_to(SOURCE).parts
    for parts in imported(path):
        if parts[0] != room:
            assert FLOOR[parts[0]] < FLOOR[room], f"{path.name} ({room}) imports {'.'.join(parts)}"
        elif room == "studies" and inner[0] in STUDIES and parts[1] != inner[0]:
            assert (inner[0], parts[1]) in BESIDE, f"the study {inner[0]} imports {'.'.join(parts)}"


def test_modules_do_not_import_each_other_in_a_circle() -> None:
    names = {".".join(p.relative_to(SOURCE).with_suffix("").parts).removesuffix(".__init__"): p for p in MODULES}
    graph = {name: {".".join(parts) for parts in imported(path)} & set(names) for name, path in names.items()}
    done: set[str] = set()

    def visit(name: str, above: tuple[str, ...]) -> None:
        assert name not in above, f"a circle: {' → '.join([*above[above.index(name) :], name])}"
        if name not in done:
            for other in graph[name]:
                visit(other, (*above, name))
            done.add(name)

    for name in names:
        visit(name, ())


def test_the_table_of_rooms_names_each_once() -> None:
    rows = re.findall(r"^\| `(\w+)` \|", PAGES[1].read_text(encoding="utf-8"), re.M)
    assert sorted(rows) == sorted(FLOOR)


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_files_that_the_pages_name_exist(page: Path) -> None:
    named = re.findall(r"`((?:src|tests|docs|benchmarks)/[\w./-]+)`", page.read_text(encoding="utf-8"))
    assert named
    assert [name for name in named if not (ROOT / name).exists()] == []
