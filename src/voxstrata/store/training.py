"""A store as PyTorch trains on it: data sets, batches of like length, and learned weights of layers.

This module alone imports torch; `EmbeddingStore.to_torch` imports it when it is called.
"""

import os
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset, IterableDataset, Sampler, get_worker_info

Example = dict[str, Any]
_RUN_ROWS = 1 << 13  # rows of each output that a stream reads at once


class _States:
    """The states of some utterances of a store, as tensors; what both data sets share.

    lengths: int64 (utterances,), rows of each. outputs: their names.
    """

    def __init__(
        self, store: Any, outputs: Sequence[str], flat: bool, index: NDArray[np.int64], columns: Sequence[str]
    ):
        self.outputs, self.pooled = tuple(outputs), not store.has_frames
        self.lengths: NDArray[np.int64] = store.length[index].astype(np.int64)
        self._flat, self._index, self._columns = flat, index, tuple(dict.fromkeys(["id", *columns]))
        # Arrow, no Python objects: these would be copied page by page in forked workers
        self._known: pa.Table = store.table(self._columns).take(pa.array(index)).combine_chunks()
        self._opened, self._process = store, os.getpid()

    @property
    def _store(self) -> Any:
        """The store, opened anew in a forked worker, where the threads of the one from before are gone."""
        if self._process != os.getpid():
            reopen, where = self._opened.__reduce__()
            self._opened, self._process = reopen(*where), os.getpid()
        return self._opened

    def _items(self, positions: NDArray[np.int64]) -> Iterator[Example]:
        """One after the other; their rows are read in one piece where they lie beside each other."""
        index = self._index[positions]
        if self.pooled:
            read = [self._store.pooled(output, index) for output in self.outputs]
            bounds = [slice(k, k + 1) for k in range(len(index))]
        else:
            read, offsets = [], np.zeros(1, np.int64)
            for output in self.outputs:
                rows, offsets = self._store.ragged(output, index)
                read.append(rows)
            bounds = [slice(a, b) for a, b in pairwise(offsets.tolist())]
        for position, rows in zip(positions.tolist(), bounds, strict=True):
            states = torch.stack([torch.from_numpy(each[rows].copy()) for each in read])
            states = states.squeeze(1) if self.pooled else states
            known = {name: self._known[name][position].as_py() for name in self._columns}
            yield {"index": int(self._index[position]), **known, "states": states[0] if self._flat else states}

    def collate(self, items: Sequence[Example]) -> Example:
        """A batch of items: `states` padded with zeros, `lengths` and `index` as int64 tensors, all else as lists.

        states: (batch, rows of the longest, d), or (batch, outputs, rows, d); pooled (batch, d) or (batch, outputs, d).
        """
        batch: Example = {name: [item[name] for item in items] for name in self._columns}
        states = [item["states"] for item in items]
        batch["index"] = torch.tensor([item["index"] for item in items])
        if self.pooled:
            return batch | {"states": torch.stack(states)}
        lengths = torch.tensor([s.shape[-2] for s in states])
        padded = states[0].new_zeros((len(states), *states[0].shape[:-2], int(lengths.max()), states[0].shape[-1]))
        for row, s in zip(padded, states, strict=True):
            row[..., : s.shape[-2], :] = s
        return batch | {"states": padded, "lengths": lengths}


class StoreDataset(_States, Dataset[Example]):  # type: ignore[misc]
    """Utterances of a store by position; `EmbeddingStore.to_torch` makes it.

    An item: `index` in the store, `id`, the columns asked for, and `states`, (rows, d) in the stored dtype; of several
    outputs (outputs, rows, d), and pooled without rows. Workers may be forked or spawned: each opens the store anew.
    """

    def __len__(self) -> int:
        return len(self._index)

    def __getitem__(self, position: int) -> Example:
        return self.__getitems__([position])[0]

    def __getitems__(self, positions: Sequence[int]) -> list[Example]:
        return list(self._items(np.asarray(positions, np.int64)))

    def batches(self, rows: int, *, shuffle: bool = False, seed: int = 0) -> "LengthBatches":
        """Batches of utterances of like length, for a DataLoader's `batch_sampler`; see `LengthBatches`."""
        return LengthBatches(self.lengths, rows, shuffle=shuffle, seed=seed)


class StoreStream(_States, IterableDataset[Example]):  # type: ignore[misc]
    """The same items in the store's order, read in long runs; each is given once, however many workers share them."""

    def __iter__(self) -> Iterator[Example]:
        worker = get_worker_info()
        first, step = (worker.id, worker.num_workers) if worker else (0, 1)
        number = np.cumsum(self.lengths) // _RUN_ROWS  # of the run that an utterance belongs to
        runs = np.split(np.arange(len(self._index)), np.flatnonzero(np.diff(number)) + 1)
        for run in runs[first::step]:
            yield from self._items(run)


class LengthBatches(Sampler[list[int]]):  # type: ignore[misc]
    """Positions in batches of like length, the longest first, each once; little is padding.

    A batch padded to its longest has at most `rows` rows, or is one utterance that has more.

    lengths: int (utterances,). shuffle: in every epoch batches come in another order, and utterances of one length in
    other company; the same for the same seed. `epoch` counts how often it was begun; set it to go on from there.
    """

    def __init__(
        self, lengths: Sequence[int] | NDArray[np.integer[Any]], rows: int, *, shuffle: bool, seed: int
    ) -> None:
        self.lengths, self.rows, self.shuffle, self.seed = np.asarray(lengths, np.int64), rows, shuffle, seed
        self.epoch = 0
        self._bounds = [0]
        descending = np.sort(self.lengths)[::-1]
        while self._bounds[-1] < len(self.lengths):
            begin = self._bounds[-1]
            self._bounds.append(min(len(self.lengths), begin + max(1, rows // int(descending[begin]))))

    def __len__(self) -> int:
        return len(self._bounds) - 1

    def __iter__(self) -> Iterator[list[int]]:
        rng = np.random.default_rng([self.seed, self.epoch])
        self.epoch += 1
        order = rng.permutation(len(self.lengths)) if self.shuffle else np.arange(len(self.lengths))
        order = order[np.argsort(-self.lengths[order], kind="stable")]
        for k in rng.permutation(len(self)) if self.shuffle else range(len(self)):
            yield order[self._bounds[k] : self._bounds[k + 1]].tolist()


class LayerWeights(torch.nn.Module):  # type: ignore[misc]
    """A weighted sum of layers with learned weights, as SUPERB probes upstream models (arXiv 2105.01051, section 3).

    Weights are the softmax of one number a layer, all 0 at first, so that it begins as their mean. normalize: each row
    is first scaled to mean 0 and variance 1 (s3prl's option of that name).
    """

    def __init__(self, layers: int, *, normalize: bool = False) -> None:
        super().__init__()
        self.scores = torch.nn.Parameter(torch.zeros(layers))
        self.normalize = normalize

    @property
    def weights(self) -> torch.Tensor:
        """(layers,), positive, their sum is 1."""
        return torch.softmax(self.scores, 0)

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        """(batch, layers, …, d) → (batch, …, d), in the dtype of the weights."""
        states = states.to(self.scores.dtype)
        if self.normalize:
            states = torch.nn.functional.layer_norm(states, states.shape[-1:])
        return torch.einsum("l,bl...->b...", self.weights, states)
