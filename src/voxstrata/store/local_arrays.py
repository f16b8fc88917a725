"""The arrays of a store on a local disk, as zarr reads and writes them: what is written is whole and lasts."""

import asyncio
import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

from zarr.core.buffer import Buffer
from zarr.storage import LocalStore

from voxstrata.base.opening import check_regular


class LocalArrays(LocalStore):
    """zarr's store of a local folder, whose files are written by `write(name, data)`: zarr's own does not fsync."""

    def __init__(self, root: Path, write: Callable[[str, bytes], None], *, read_only: bool = False) -> None:
        super().__init__(root, read_only=read_only)
        self._write = write

    def with_read_only(self, read_only: bool = False) -> Self:
        return type(self)(self.root, self._write, read_only=read_only)

    async def get(self, key: str, *args: Any, **options: Any) -> Buffer | None:
        with contextlib.suppress(OSError):  # not there, which zarr answers; a stranger's FIFO would be waited for
            check_regular(self.root / key)
        return await super().get(key, *args, **options)

    async def set(self, key: str, value: Buffer) -> None:
        self._check_writable()
        await asyncio.to_thread(self._write, key, value.to_bytes())

    async def set_if_not_exists(self, key: str, value: Buffer) -> None:
        if not await self.exists(key):  # who makes arrays holds the store's lock
            await self.set(key, value)
