"""Imports run downward only: cli → experiments → retrieval, engine, exporters → store, corpus, model → audio."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "voxstrata"
FLOORS = [
    {"errors", "folders", "text"},
    {"audio"},
    {"model", "corpus", "store"},
    {"exporters", "engine", "retrieval"},
    {"experiments"},
    {"cli"},
]
FLOOR = {room: i for i, floor in enumerate(FLOORS) for room in floor}
# rooms on one floor that lean on each other, in this direction only
BESIDE = {("store", "corpus"), ("store", "model")}
MODULES = sorted(p for p in SOURCE.rglob("*.py") if p.parent != SOURCE)


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(SOURCE)))
def test_imports_run_downward(path: Path) -> None:
    room = path.relative_to(SOURCE).parts[0]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom):
            names = [node.module or ""]
        for name in names:
            parts = name.split(".")
            if parts[0] == "voxstrata" and len(parts) > 1 and parts[1] != room:
                down = FLOOR[parts[1]] < FLOOR[room] or (room, parts[1]) in BESIDE
                assert down, f"{path.name} ({room}) imports {name}"
