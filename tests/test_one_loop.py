"""There is one loop that scores pairs of utterances, and whoever scores more than a few goes through it."""

from __future__ import annotations

import ast
from pathlib import Path

SOURCE = Path(__file__).parents[1] / "src" / "voxstrata"
# Whoever comes to score pairs block by block stands here.
THROUGH_THE_LOOP = {
    "retrieval/all_pairs.py",
    "retrieval/candidates.py",
    "studies/align/states.py",
    "studies/explain/ranking.py",
    "studies/retrieve/measure.py",
    "studies/words/measure.py",
}
# `compare` asks a kernel by way of `compare_some`; `seqsim` serves arrays in memory.
ASKING_A_KERNEL = {"retrieval/kernels/base.py", "retrieval/similarities.py"}


def calls(path: Path) -> list[tuple[str, str]]:
    """What a module calls: (name of the receiver, empty without one; name of the function)."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            found.append(("", node.func.id))
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            owner = node.func.value
            found.append((getattr(owner, "attr", None) or getattr(owner, "id", ""), node.func.attr))
    return found


def callers(of: set[tuple[str, str]]) -> set[str]:
    return {str(p.relative_to(SOURCE)) for p in SOURCE.rglob("*.py") if of & set(calls(p))}


def test_pairs_are_scored_by_one_loop() -> None:
    known = {p for p in SOURCE.rglob("*.py") if "voxstrata.retrieval.compare import" in p.read_text(encoding="utf-8")}
    asking = callers({("", "compare")}) & {str(p.relative_to(SOURCE)) for p in known}
    assert asking == THROUGH_THE_LOOP
    assert callers({("", "compare_some")}) == {"retrieval/compare.py"}


def test_nobody_else_asks_a_kernel() -> None:
    asked = {(owner, name) for owner in ("kernel", "_kernel") for name in ("compare", "compare_pairs")}
    assert callers(asked) == ASKING_A_KERNEL
