"""A number for each of millions of strings."""

from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray


def hash_strings(text: NDArray[np.uint8], offsets: NDArray[np.int32], out: NDArray[np.uint64]) -> None:
    """FNV-1a (64 bits; Fowler, Noll, Vo) of the strings text[offsets[i] : offsets[i + 1]], into `out`."""
    _compiled()(text, offsets, out)


@cache
def _compiled() -> Any:
    from voxstrata.base.compiled import jit  # numba takes half a second to load, and small corpora do without

    return jit(_fnv_1a)


def _fnv_1a(text: NDArray[np.uint8], offsets: NDArray[np.int32], out: NDArray[np.uint64]) -> None:
    for i in range(len(out)):
        h = np.uint64(14695981039346656037)
        for k in range(offsets[i], offsets[i + 1]):
            h = (h ^ np.uint64(text[k])) * np.uint64(1099511628211)
        out[i] = h
