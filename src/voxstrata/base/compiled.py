"""Compiling with numba, and how many threads compiled code takes."""

import os
from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba

Function = TypeVar("Function", bound=Callable[..., Any])


def jit(function: Function) -> Function:
    """Compile with numba on first use: without the GIL, and kept on disk where some folder for that can be written.

    Comparisons may assume that no value is NaN, without which maxima of floats do not vectorise; sums keep their order.
    """
    options = {"nogil": True, "fastmath": {"nnan", "nsz"}}
    try:
        return cast(Function, numba.njit(cache=True, **options)(function))
    except RuntimeError:  # no folder to cache in
        return cast(Function, numba.njit(**options)(function))


def thread_count() -> int:
    """Threads a kernel takes: NUMBA_NUM_THREADS, else OMP_NUM_THREADS, else the cores this process may use."""
    for variable in ("NUMBA_NUM_THREADS", "OMP_NUM_THREADS"):
        if os.environ.get(variable, "").isdecimal():
            return max(1, int(os.environ[variable]))
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
