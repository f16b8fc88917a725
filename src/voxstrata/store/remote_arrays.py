"""The arrays of a store on an object store, as zarr reads and writes them: each request is tried again."""

from collections.abc import AsyncIterator
from typing import Any, Self

from zarr.storage import FsspecStore, WrapperStore

from voxstrata.base.remote import patiently_async


class PatientStore(WrapperStore[FsspecStore]):
    """zarr's store of that URL, whose requests are tried again as `patiently` does. Raises what it raises."""

    @classmethod
    def of(cls, url: str, *, read_only: bool) -> Self:
        """That of a URL."""
        store = FsspecStore.from_url(url, {"use_listings_cache": False}, read_only=read_only)
        if hasattr(store.fs, "retries"):  # s3fs
            store.fs.retries = store.fs.max_concurrency = 1  # else it asks for the size before each read
        return cls(store)

    def _name(self, key: str) -> str:
        return f"{self._store.fs.unstrip_protocol(self._store.path)}/{key}"

    async def get(self, key: str, *args: Any, **kwargs: Any) -> Any:
        return await patiently_async(self._name(key), lambda: self._store.get(key, *args, **kwargs))

    async def get_partial_values(self, prototype: Any, key_ranges: Any) -> Any:
        ranges = list(key_ranges)
        name = self._name(ranges[0][0] if ranges else "")
        return await patiently_async(name, lambda: self._store.get_partial_values(prototype, ranges))

    async def exists(self, key: str) -> bool:
        return await patiently_async(self._name(key), lambda: self._store.exists(key))

    async def set(self, key: str, *args: Any, **kwargs: Any) -> None:
        await patiently_async(self._name(key), lambda: self._store.set(key, *args, **kwargs))

    async def set_if_not_exists(self, key: str, *args: Any, **kwargs: Any) -> None:
        await patiently_async(self._name(key), lambda: self._store.set_if_not_exists(key, *args, **kwargs))

    async def delete(self, key: str) -> None:
        await patiently_async(self._name(key), lambda: self._store.delete(key))

    async def delete_dir(self, prefix: str) -> None:
        await patiently_async(self._name(prefix), lambda: self._store.delete_dir(prefix))

    async def is_empty(self, prefix: str) -> bool:
        return await patiently_async(self._name(prefix), lambda: self._store.is_empty(prefix))

    async def list(self) -> AsyncIterator[str]:
        for name in await self._listed("", self._store.list):
            yield name

    async def list_prefix(self, prefix: str) -> AsyncIterator[str]:
        for name in await self._listed(prefix, lambda: self._store.list_prefix(prefix)):
            yield name

    async def list_dir(self, prefix: str) -> AsyncIterator[str]:
        for name in await self._listed(prefix, lambda: self._store.list_dir(prefix)):
            yield name

    async def _listed(self, prefix: str, listing: Any) -> Any:
        async def whole() -> Any:
            return [name async for name in listing()]

        return await patiently_async(self._name(prefix), whole)
