"""The public API: `import voxstrata as vs` is quick, and every name it promises is there, once."""

from __future__ import annotations

import importlib
import pkgutil
import subprocess
import sys
from types import ModuleType

import pytest

import voxstrata as vs

HEAVY = {"numpy", "torch", "onnxruntime", "numba", "zarr", "pyarrow", "matplotlib", "click"}
MODULES = sorted(
    m.name
    for m in pkgutil.walk_packages(vs.__path__, "voxstrata.")
    if m.name != "voxstrata.retrieval.kernels.gpu.programs"  # imports triton
)


def test_importing_loads_nothing_heavy() -> None:
    code = f"import sys, voxstrata; print(*sorted({HEAVY!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


@pytest.mark.parametrize("name", vs.__all__)
def test_every_public_name_is_there(name: str) -> None:
    assert getattr(vs, name) is not None
    assert name in dir(vs)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'no_such_name'"):
        vs.no_such_name  # noqa: B018


@pytest.mark.parametrize("name", MODULES)
def test_no_module_is_hidden_behind_a_function_of_its_name(name: str) -> None:
    importlib.import_module(name)
    package, _, last = name.rpartition(".")
    assert isinstance(getattr(sys.modules[package], last), ModuleType)
