"""Several stores read as one."""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from itertools import groupby
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn, cast

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from voxstrata.base.columns import all_differ
from voxstrata.base.errors import InputError, UsageError
from voxstrata.base.plain import counted
from voxstrata.store.files import Files
from voxstrata.store.reader import EmbeddingStore

AnyStore = EmbeddingStore | str | Path  # what every function takes for a store: an opened one, or where it lies


def comparable(store: EmbeddingStore) -> dict[str, Any]:
    """What two stores must share for their frames to be comparable, one level deep, JSON-ready."""
    spec = store.spec
    kept = {"arithmetic": spec.arithmetic, "dtype": spec.dtype, "every": spec.every, "d": store.model.d_model}
    context = {f"context {key}": value for key, value in spec.context.to_dict().items()}
    return {**context, **kept, **{f"model {k}": v for k, v in store.model.identity(spec.context).items()}}


def encoder_of(store: EmbeddingStore) -> str:
    """Which encoder a store is of, in words."""
    card = store.model
    return f"{card.checkpoint} ({card.family.name}, {counted(card.layers, 'block')}, d = {card.d_model})"


def refuse_different(x: EmbeddingStore, y: EmbeddingStore) -> None:
    """Raise InputError where two stores hold what cannot be compared, saying what differs."""
    both = f"{x.files.root} and {y.files.root} cannot be compared"
    if x.model.weights_sha256 != y.model.weights_sha256:
        raise InputError(
            f"{both}: they hold states of different encoders, {encoder_of(x)} and {encoder_of(y)}, weights_sha256 "
            f"{x.model.weights_sha256[:12]} and {y.model.weights_sha256[:12]}, which have no common space; extract "
            "both with one encoder. Figures of several encoders, each against itself, stand side by side where "
            "`voxstrata retrieve` or `align` gets stores of one corpus"
        )
    if x.has_frames != y.has_frames:
        pooled = y if x.has_frames else x
        raise InputError(f"{pooled.files.root}: holds pooled vectors, others frames; give stores of one kind")
    there, here = comparable(x), comparable(y)
    for key in there | here:
        if there.get(key) != here.get(key):
            raise InputError(
                f"{both}: {key} is {there.get(key)} in the first, {here.get(key)} in the second; extract both with one "
                "model and the same settings"
            )


class StoreSet(EmbeddingStore):
    """Stores of one model and the same settings, read as one store: the utterances of the first, then of the next.

    outputs: those that all of them hold. start: rows in the arrays of each utterance's own store.
    Raises InputError for stores that cannot be compared, that share an id or hold no output in common, and where some
    hold frames and others pooled states.
    """

    def __init__(self, stores: Sequence[EmbeddingStore]) -> None:
        first = stores[0]
        self.stores = list(stores)
        self.files = cast(Files, SimpleNamespace(root=" + ".join(s.files.root for s in stores), local=None))
        for other in stores[1:]:
            refuse_different(first, other)
        outputs = tuple(name for name in first.outputs if all(name in s.outputs for s in stores))
        if not outputs:
            raise InputError(f"{self.files.root}: no output is in all of them; extract the same outputs")
        self._refuse_shared_ids()
        self.model, self.spec = first.model, replace(first.spec, outputs=outputs)
        own = ("plan", "appended", "relabelled")
        self.about = {key: value for key, value in first.about.items() if key not in own}
        self.about["spec"] = self.spec.to_dict()
        self.about["stores"] = [{"store": s.name, **{k: s.about[k] for k in own if k in s.about}} for s in stores]

    def _refuse_shared_ids(self) -> None:
        if all_differ(pa.chunked_array([c for s in self.stores for c in s.table(["id"])["id"].chunks], pa.string())):
            return
        where: dict[str, EmbeddingStore] = {}
        for store in self.stores:
            twice = [name for name in store.ids if name in where]
            if twice:
                raise InputError(
                    f"{where[twice[0]].files.root} and {store.files.root} share {counted(len(twice), 'id')}, e.g. "
                    f"{twice[0]!r}; leave one store out, or extract one again with ids of its own"
                )
            where |= dict.fromkeys(store.ids, store)

    @property
    def name(self) -> str:
        return " + ".join(store.name for store in self.stores)

    @property
    def parts(self) -> list[tuple[EmbeddingStore, int]]:
        return list(zip(self.stores, self._first[:-1].tolist(), strict=True))

    @cached_property
    def _first(self) -> NDArray[np.int64]:
        """Index of the first utterance of each store, and the number of all."""
        return np.concatenate([[0], np.cumsum([len(store) for store in self.stores], dtype=np.int64)])

    @cached_property
    def start(self) -> NDArray[np.int64]:
        return np.concatenate([store.start for store in self.stores])

    @cached_property
    def length(self) -> NDArray[np.int32]:
        return np.concatenate([store.length for store in self.stores])

    @cached_property
    def status(self) -> NDArray[np.uint8]:
        return np.concatenate([store.status for store in self.stores])

    @cached_property
    def utterances(self) -> pa.Table:
        return self.table(self.columns)

    def table(self, columns: Sequence[str]) -> pa.Table:
        own = [store.table([name for name in columns if name in store.columns]) for store in self.stores]
        return pa.concat_tables(own, promote_options="default").select(list(columns))

    @property
    def columns(self) -> list[str]:
        return list(dict.fromkeys(name for store in self.stores for name in store.columns))

    def array(self, output: str | int) -> NoReturn:
        raise UsageError(f"{self.files.root}: several stores have no one array; open one of them")

    def to_xarray(self) -> NoReturn:
        raise UsageError(
            f"{self.files.root}: several stores have no one array; call to_xarray of each, and join them by "
            "xarray.concat where they are pooled"
        )

    def __reduce__(self) -> tuple[Any, ...]:
        return open_store, ([store.files.root for store in self.stores],)  # in another process they are opened anew

    def _runs(self, index: NDArray[np.int64]) -> Iterator[tuple[EmbeddingStore, NDArray[np.int64]]]:
        """Neighbours that lie in one store, with their indices in it."""
        store = np.searchsorted(self._first, index, "right") - 1
        for k, run in groupby(range(len(index)), store.__getitem__):
            at = list(run)
            yield self.stores[k], index[at] - self._first[k]

    def ragged(
        self, output: str | int, indices: Sequence[int] | NDArray[np.integer[Any]]
    ) -> tuple[NDArray[Any], NDArray[np.int64]]:
        output = self.output(output)
        index = np.asarray(indices, np.int64)
        self._require_done(index)
        rows = [store.ragged(output, own)[0] for store, own in self._runs(index)]
        offsets = np.concatenate([[0], np.cumsum(self.length[index], dtype=np.int64)])
        return np.concatenate(rows) if rows else self.stores[0].ragged(output, [])[0], offsets

    def units(self, output: str | int) -> Iterator[tuple[NDArray[np.int64], NDArray[Any], NDArray[np.int64]]]:
        output = self.output(output)
        for store, first in self.parts:
            for indices, rows, offsets in store.units(output):
                yield indices + first, rows, offsets

    def pooled(
        self, output: str | int, indices: Sequence[int] | NDArray[np.integer[Any]] | None = None
    ) -> NDArray[np.float32]:
        output = self.output(output)
        if indices is None:
            return np.concatenate([store.pooled(output) for store in self.stores])
        index = np.asarray(indices, np.int64)
        self._require_done(index)
        states = [store.pooled(output, own) for store, own in self._runs(index)]
        return np.concatenate(states) if states else self.stores[0].pooled(output, [])


def open_store(store: AnyStore | Iterable[AnyStore]) -> EmbeddingStore:
    """Open a store, local or by URL (s3://, gs://), for reading; or several as one. What is opened already is taken as
    it is.

    Raises InputError when it is not a voxstrata store, or one of another schema; and for several stores of other models
    or settings, or that share an id. UsageError for what is neither a path nor a store, nor some of them.
    """
    if isinstance(store, EmbeddingStore):
        return store
    if isinstance(store, str | Path):
        return EmbeddingStore(store)
    return _as_one([one for given in _several(store) for one, _ in open_store(given).parts])


def place_of(store: AnyStore) -> str:
    """The path or URL of one store, to be written or read whole. Raises UsageError where several were opened as one."""
    if isinstance(store, str | Path):
        return str(store)
    if len(store.parts) > 1:
        raise UsageError(f"{store.files.root}: several stores that were opened as one; give each by itself")
    return store.files.root


def open_by_encoder(stores: AnyStore | Sequence[AnyStore]) -> list[EmbeddingStore]:
    """Open stores; those of one encoder and the same settings are one. In the order in which encoders come first.

    stores: paths, or stores that are opened already; an encoder's only one comes back as it is, with all that it has
    read. Raises what `open_store` does.
    """
    alike: dict[str, list[EmbeddingStore]] = {}
    for store in map(open_store, _several(stores)):
        key = json.dumps([store.has_frames, comparable(store)], sort_keys=True)
        alike.setdefault(key, []).append(store)
    return [same[0] if len(same) == 1 else open_store(same) for same in alike.values()]


def _several(stores: AnyStore | Iterable[AnyStore]) -> list[AnyStore]:
    try:
        given = [stores] if isinstance(stores, str | Path | EmbeddingStore) else list(stores)
    except TypeError:
        raise UsageError(
            f"{type(stores).__name__} is no store; give its path, an opened store, or a list of them"
        ) from None
    if not given:
        raise UsageError("no store is named; give at least one")
    return given


def _as_one(stores: Sequence[EmbeddingStore]) -> EmbeddingStore:
    return stores[0] if len(stores) == 1 else StoreSet(stores)
