"""What the C library does with memory that is freed."""

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager

# Parameters of mallopt, from glibc's malloc.h, and the highest values that glibc raises them to by itself (mallopt(3)).
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_HIGHEST = {_TRIM_THRESHOLD: 64 << 20, _MMAP_THRESHOLD: 32 << 20}
_LARGE = 1 << 20  # bytes: states of a second, of a medium encoder, and weights


@contextmanager
def large_blocks_returned() -> Iterator[None]:
    """Blocks of 1 MiB and more go back to the system as soon as they are freed, in the whole process.

    By itself glibc does so up to the first such block that is freed. From then on it keeps blocks of up to 32 MiB, and
    the holes between those that are left add up to hundreds of MiB. Other C libraries are left as they are. Afterwards
    glibc does as if such a block had been freed: nothing brings back what it did before.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        yield
        return
    mallopt(_MMAP_THRESHOLD, _LARGE)
    try:
        yield
    finally:
        for parameter, value in _HIGHEST.items():
            mallopt(parameter, value)
