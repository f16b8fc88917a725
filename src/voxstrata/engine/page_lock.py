"""Host memory that a GPU copies to and from at full speed: page-locked by the CUDA driver.

ONNX Runtime's own page-locked memory is reached from Python only by registering its CUDA library as a plugin
(`OrtEpDevice.memory_info`), which also changes how every later session finds its provider.
"""

import ctypes
import mmap
import threading
import weakref
from collections import deque
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

DRIVER = "libcuda.so.1"
PORTABLE = 1  # CU_MEMHOSTREGISTER_PORTABLE: for every context, that of ONNX Runtime included


def host_array(size: int, dtype: DTypeLike) -> NDArray[Any]:
    """A flat array on pages of its own."""
    memory = mmap.mmap(-1, max(1, size * np.dtype(dtype).itemsize), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    return np.frombuffer(memory, dtype, size)


def page_lock(array: NDArray[Any], index: int) -> bool:
    """Lock the pages of `array` (of `host_array`) for CUDA device `index`, for as long as it lives.

    False where the driver cannot: copies then go through memory of its own, slower, with the same result.
    """
    try:
        driver = ctypes.CDLL(DRIVER)
    except OSError:
        return False
    device, context = ctypes.c_int(), ctypes.c_void_p()
    pointer = ctypes.c_void_p(array.ctypes.data)
    done = bool(
        driver.cuInit(ctypes.c_uint(0)) == 0
        and driver.cuDeviceGet(ctypes.byref(device), ctypes.c_int(index)) == 0
        # the context that CUDA's runtime, and so ONNX Runtime, works in
        and driver.cuDevicePrimaryCtxRetain(ctypes.byref(context), device) == 0
        and driver.cuCtxSetCurrent(context) == 0
        and driver.cuMemHostRegister_v2(pointer, ctypes.c_size_t(array.nbytes), ctypes.c_uint(PORTABLE)) == 0
    )
    if done:
        weakref.finalize(array, driver.cuMemHostUnregister, pointer)
    return done


class HostRing:
    """Host memory for what comes from a GPU batch by batch, in pieces that are used again: fresh pages take longer to
    make than to fill.

    size: bytes of a piece. pieces: how many there are at most; whoever needs more gets memory of their own, so that
    somebody who keeps all results does not lock all memory.
    """

    def __init__(self, size: int, pieces: int) -> None:
        self.size, self._left = size, pieces
        self._free: deque[NDArray[np.uint8]] = deque()  # given back by dying arrays, on any thread: it takes no lock
        self._lock = threading.Lock()

    def take(self, make: Callable[[int], NDArray[np.uint8]]) -> NDArray[np.uint8]:
        """A piece, flat. It is free again once neither this array nor a view of it is left. make: makes a new one."""
        with self._lock:
            try:
                piece = self._free.pop()
            except IndexError:
                if not self._left:
                    return np.empty(self.size, np.uint8)
                self._left -= 1
                piece = make(self.size)
        # through a memoryview, so that views of it have it as their base, and not the piece
        lent = np.frombuffer(piece.data, np.uint8)
        weakref.finalize(lent, self._free.append, piece).atexit = False
        return lent
