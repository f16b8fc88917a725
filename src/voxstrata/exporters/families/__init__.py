"""The families beyond Whisper, a module each. Adding one is a module here and a test file.

A module defines what `exporters.original.FamilyModule` lists. It is found by being here.
"""

import importlib
import pkgutil
from functools import cache
from typing import cast

from voxstrata.exporters.original import FamilyModule


@cache
def family_modules() -> tuple[FamilyModule, ...]:
    """All of them, by name of the module."""
    names = sorted(module.name for module in pkgutil.iter_modules(__path__) if not module.name.startswith("_"))
    return tuple(cast(FamilyModule, importlib.import_module(f"{__name__}.{name}")) for name in names)


def family_of(model_type: object) -> FamilyModule | None:
    """The module for checkpoints of that `model_type`, or None."""
    return next((module for module in family_modules() if model_type in module.MODEL_TYPES), None)
