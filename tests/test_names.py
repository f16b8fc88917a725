"""A name at the top of a module means one thing in the whole package, so that a reader can search for it."""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

SOURCE = Path(__file__).parents[1] / "src" / "voxstrata"
# what every family's module defines, by the protocol `FamilyModule`
PROTOCOL = {"MODEL_TYPES", "TITLE", "load"}


def public_names(source: str) -> Iterator[str]:
    """Functions, classes and constants that a module defines at its top, without those that begin with "_"."""
    for node in ast.parse(source).body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names = [node.name]
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names = [part.id for target in targets for part in ast.walk(target) if isinstance(part, ast.Name)]
        else:
            continue
        yield from (name for name in names if not name.startswith("_"))


def test_public_names_of_every_form_are_found() -> None:
    source = "A, (B, C) = 1, (2, 3)\nD: int = 4\n_E = 5\nJ = K = 6\n"
    source += "def f(x): y = x\nclass G:\n    H = 1\nasync def i(): ...\n"
    assert list(public_names(source)) == ["A", "B", "C", "D", "J", "K", "f", "G", "i"]


def test_a_public_name_is_defined_in_one_module_only() -> None:
    """The command line's modules are named like what they call, so they are left out."""
    where: dict[str, set[str]] = defaultdict(set)
    for path in sorted(SOURCE.rglob("*.py")):
        module = path.relative_to(SOURCE).as_posix()
        if module.startswith("cli/"):
            continue
        family = module.startswith("exporters/families/") and not module.endswith("__init__.py")
        names = set(public_names(path.read_text(encoding="utf-8")))
        assert not family or path.name.startswith("_") or names >= PROTOCOL, f"{module} lacks {PROTOCOL - names}"
        for name in names - (PROTOCOL if family else set()):
            where[name].add(module)
    assert len(where) > 400  # nothing was overlooked
    assert not {name: sorted(modules) for name, modules in where.items() if len(modules) > 1}
