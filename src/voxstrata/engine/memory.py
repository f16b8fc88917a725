"""Keep the process's memory where it is needed: glibc's allocator, left alone, grows with the variety of sizes."""

from __future__ import annotations

import ctypes
import sys

_M_MMAP_THRESHOLD, _M_ARENA_MAX = -3, -8  # of glibc's malloc.h
_MMAP_BYTES = 1 << 20
_ARENAS = 2


def give_back_large_blocks() -> None:
    """Let every block of 1 MB or more go back to the system when it is freed, and few arenas share the rest.

    By default glibc raises that threshold to 32 MB as blocks are freed, and keeps a heap per thread: batches of
    every length leave holes that no other batch fits. Does nothing where malloc is another one.
    """
    if sys.platform == "linux":
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
        if mallopt is not None:
            mallopt(_M_MMAP_THRESHOLD, _MMAP_BYTES)
            mallopt(_M_ARENA_MAX, _ARENAS)
