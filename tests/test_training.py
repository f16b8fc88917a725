"""What PyTorch, pandas and xarray get of a store is what the store holds, in workers of either kind, each once."""

from __future__ import annotations

import math
import pickle
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray
import zarr
from stores import Utterance, make_store
from torch.utils.data import DataLoader

import voxstrata as vs
from voxstrata.base.errors import UsageError
from voxstrata.store import EmbeddingStore, StoreSpec, open_store
from voxstrata.store.training import LengthBatches

OUTPUTS = ("layer_00", "layer_01", "final")
LANGUAGES = ("en", "es", None)


def utterances() -> dict[str, Utterance]:
    rng = np.random.default_rng(5)
    lengths = rng.integers(1, 90, 40)
    return {
        f"u{i:02d}": Utterance(rng.standard_normal((n, 8)).astype(np.float32), LANGUAGES[i % 3], f"g{i // 3}")
        for i, n in enumerate(lengths)
    }


def told_apart(store: EmbeddingStore) -> EmbeddingStore:
    """The same, of which each output holds twice what the one before does: none can be taken for another."""
    group = zarr.open_group(store.files.root, mode="r+")
    for k, output in enumerate(OUTPUTS):
        array = group[f"{store.spec.group}/{output}"]
        array[:] = array[:] * 2**k
    return open_store(store.files.root)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> EmbeddingStore:
    """Forty utterances of unequal length in two languages and of none."""
    path = tmp_path_factory.mktemp("store") / "s.zarr"
    return told_apart(make_store(path, utterances(), spec=StoreSpec(OUTPUTS, dtype="float32")))


@pytest.fixture(scope="module")
def pooled(tmp_path_factory: pytest.TempPathFactory) -> EmbeddingStore:
    path = tmp_path_factory.mktemp("store") / "p.zarr"
    return told_apart(make_store(path, utterances(), spec=StoreSpec(OUTPUTS, pool="mean")))


# --- PyTorch ---


@pytest.mark.parametrize(
    ("iterable", "method"),
    [
        *((iterable, method) for iterable in (False, True) for method in ("fork", None)),
        (True, "spawn"),
        pytest.param(False, "spawn", marks=pytest.mark.long),
    ],
)
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded, use of fork:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:This DataLoader will create 2 worker processes:UserWarning")  # on one core
def test_a_loader_gives_every_utterance_once(
    store: EmbeddingStore, iterable: bool, method: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In this process, in two forked workers, in two that are spawned."""
    store.frames(0, "final")  # zarr's threads are there before workers are forked
    data = store.to_torch("final", columns=["language"], iterable=iterable)
    how: dict[str, Any] = {"batch_size": 4} if iterable else {"batch_sampler": data.batches(rows=200)}
    workers: dict[str, Any] = (
        {} if method is None else {"num_workers": 2, "multiprocessing_context": method, "timeout": 120}
    )
    seen: list[str] = []
    for batch in DataLoader(data, collate_fn=data.collate, **how, **workers):
        seen += batch["id"]
        assert batch["states"].dtype == torch.float32
        for name, index, language, length, states in zip(
            *(batch[key] for key in ("id", "index", "language", "lengths", "states")), strict=True
        ):
            assert store.ids[index] == name
            assert store.utterances["language"][int(index)].as_py() == language
            np.testing.assert_array_equal(states[:length], store.frames(name, "final"))
            assert not states[length:].any()
    assert sorted(seen) == sorted(store.ids)


def test_a_stream_is_shared_by_workers(store: EmbeddingStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not all by one: both take turns, and each reads long runs."""
    from torch.utils.data import _utils

    monkeypatch.setattr("voxstrata.store.training._RUN_ROWS", 150)
    stream, shares = store.to_torch("final", iterable=True), []
    for number in range(2):
        info = _utils.worker.WorkerInfo(id=number, num_workers=2, seed=0, dataset=stream)
        monkeypatch.setattr(_utils.worker, "_worker_info", info)
        shares.append([item["index"] for item in stream])
    assert sorted(shares[0] + shares[1]) == list(range(40))
    rows = [int(store.length[share].sum()) for share in shares]
    assert abs(rows[0] - rows[1]) < 2 * 150 + 2 * 90


def test_items_of_several_outputs_are_stacked(store: EmbeddingStore) -> None:
    one, several, listed = (store.to_torch(o)[7] for o in ("layer_01", "layer_00,final", ["final"]))
    n = len(store.frames(7, "final"))
    assert (one["states"].shape, several["states"].shape, listed["states"].shape) == ((n, 8), (2, n, 8), (1, n, 8))
    assert store.to_torch()[0]["states"].shape[0] == 3
    for k, output in enumerate(("layer_00", "final")):
        np.testing.assert_array_equal(several["states"][k], store.frames(7, output))
    data = store.to_torch(["final", "layer_00"])
    assert data.outputs == ("layer_00", "final")  # in depth order
    batch = data.collate([data[0], data[39]])
    assert batch["states"].shape == (2, 2, int(batch["lengths"].max()), 8)


def test_states_of_float16_stay_what_they_are(tmp_path: Path) -> None:
    made = make_store(tmp_path / "h.zarr", utterances(), spec=StoreSpec(("final",), dtype="float16"))
    data = made.to_torch("final")
    assert data.collate([data[0], data[1]])["states"].dtype == torch.float16
    np.testing.assert_array_equal(data[3]["states"], made.frames(3, "final"))


def test_pooled_states_have_no_rows(pooled: EmbeddingStore) -> None:
    data = pooled.to_torch("final")
    batch = data.collate([data[0], data[5]])
    assert "lengths" not in batch
    np.testing.assert_array_equal(batch["states"], pooled.pooled("final", [0, 5]))
    assert pooled.to_torch()[0]["states"].shape == (3, 8)
    assert sorted(item["index"] for item in pooled.to_torch("final", iterable=True)) == list(range(40))


def test_some_utterances_are_taken_by_id_or_index(store: EmbeddingStore) -> None:
    data = store.to_torch("final", ["u07", "u01", 3], columns=["group", "row_count"])
    assert [item["id"] for item in data] == ["u07", "u01", store.ids[3]]
    assert [item["group"] for item in data][:2] == ["g2", "g0"]
    assert [item["row_count"] for item in data] == data.lengths.tolist() == [len(item["states"]) for item in data]
    for args, columns, message in (
        (("layer_02",), (), "unknown output 'layer_02'"),
        (("final", ["u99"]), (), "no utterance 'u99'"),
        (("final",), ("mood",), "unknown column 'mood'"),
    ):
        with pytest.raises(UsageError, match=message):
            store.to_torch(*args, columns=columns)


def test_utterances_that_are_not_done_are_left_out(store: EmbeddingStore, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = open_store(store.files.root)
    status = store.status.copy()
    status[[2, 9]] = 2, 0
    monkeypatch.setattr(opened, "status", status)
    assert [item["index"] for item in opened.to_torch("final")] == [i for i in range(40) if i not in (2, 9)]
    with pytest.raises(UsageError, match="is failed"):
        opened.to_torch("final", [2])


def test_a_pickled_store_is_opened_anew(store: EmbeddingStore) -> None:
    again = pickle.loads(pickle.dumps(store))
    assert repr(again) == repr(store)
    np.testing.assert_array_equal(again.frames(0, "final"), store.frames(0, "final"))


def test_only_to_torch_loads_torch(store: EmbeddingStore) -> None:
    code = (
        "import sys, voxstrata as vs; s = vs.open_store(sys.argv[1]); s.frames(0, 'final'); s.to_pandas(); "
        "print('torch' in sys.modules); s.to_torch('final'); print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code, store.files.root], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "True"]


# --- batches ---


def test_batches_hold_utterances_of_like_length_within_their_bound() -> None:
    lengths = np.random.default_rng(0).integers(1, 500, 1000)
    lengths[0] = 5000  # more than a batch may have
    batches = list(LengthBatches(lengths, 2000, shuffle=False, seed=0))
    assert sorted(i for batch in batches for i in batch) == list(range(1000))
    assert batches[0] == [0]
    longest = [int(lengths[batch].max()) for batch in batches]
    assert all(n * len(batch) <= 2000 for n, batch in zip(longest[1:], batches[1:], strict=True))
    assert all(lengths[a].min() >= lengths[b].max() for a, b in pairwise(batches))
    padded = sum(n * len(batch) for n, batch in zip(longest, batches, strict=True))
    assert padded < 1.05 * lengths.sum()  # in the order given it would be about twice as much
    assert len(LengthBatches(lengths, 2000, shuffle=True, seed=0)) == len(batches)


def test_shuffled_batches_are_others_in_every_epoch_and_the_same_for_a_seed() -> None:
    lengths = np.repeat(np.arange(1, 21), 10)
    first, second = (LengthBatches(lengths, 100, shuffle=True, seed=3) for _ in range(2))
    epochs = [list(first), list(first)]
    assert epochs[0] != epochs[1]
    assert sorted(map(sorted, epochs[0])) != sorted(map(sorted, epochs[1]))  # other company, too
    for epoch in epochs:
        assert sorted(i for batch in epoch for i in batch) == list(range(200))
        assert all(lengths[batch].max() * len(batch) <= 100 for batch in epoch)
    assert [list(second), list(second)] == epochs
    second.epoch = 1
    assert list(second) == epochs[1]
    assert list(LengthBatches(lengths, 100, shuffle=True, seed=4)) != epochs[0]


# --- learned weights of layers ---


def test_layer_weights_are_the_softmax_weighted_sum_of_superb() -> None:
    states = torch.randn(2, 3, 5, 4, generator=torch.Generator().manual_seed(0))
    layers = vs.LayerWeights(3)
    torch.testing.assert_close(layers(states), states.mean(dim=1))
    with torch.no_grad():
        layers.scores.copy_(torch.tensor([0.0, math.log(2), math.log(5)]))  # in the proportion 1 : 2 : 5
    expected = (states[:, 0] + 2 * states[:, 1] + 5 * states[:, 2]) / 8
    torch.testing.assert_close(layers(states), expected)
    torch.testing.assert_close(layers(states.half()), expected, atol=2e-3, rtol=2e-3)
    torch.testing.assert_close(layers(states[:, :, 0]), expected[:, 0])  # pooled
    assert layers(states.half()).dtype == torch.float32


def test_normalized_layers_weigh_alike_whatever_their_scale() -> None:
    states = torch.randn(2, 2, 5, 64, generator=torch.Generator().manual_seed(0))
    scaled = states * torch.tensor([1.0, 100.0])[None, :, None, None] + 7
    layers = vs.LayerWeights(2, normalize=True)
    torch.testing.assert_close(layers(scaled), layers(states), atol=1e-3, rtol=1e-3)
    rows = states[:, 0] - states[:, 0].mean(-1, keepdim=True)
    one = vs.LayerWeights(1, normalize=True)(states[:, :1])
    torch.testing.assert_close(one, rows / rows.square().mean(-1, keepdim=True).sqrt(), atol=1e-3, rtol=1e-3)


def test_layer_weights_learn_which_layer_tells(tmp_path: Path) -> None:
    """Planted: of three layers one holds the label, the others noise."""
    generator = torch.Generator().manual_seed(1)
    label = torch.randint(0, 2, (200,), generator=generator).float()
    states = torch.randn(200, 3, 4, generator=generator)
    states[:, 1] = (label * 2 - 1)[:, None] + 0.1 * states[:, 1]
    layers, probe = vs.LayerWeights(3), torch.nn.Linear(4, 1)
    torch.nn.init.constant_(probe.weight, 0.1)
    optimizer = torch.optim.Adam([*layers.parameters(), *probe.parameters()], lr=0.05)
    for _ in range(100):
        loss = torch.nn.functional.binary_cross_entropy_with_logits(probe(layers(states))[:, 0], label)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    weights = layers.weights.detach()
    assert weights.argmax() == 1
    assert weights[1] > 0.6
    assert weights.sum() == pytest.approx(1)


# --- pandas and xarray ---


def test_pandas_has_the_table_by_id(store: EmbeddingStore) -> None:
    table = store.to_pandas()
    assert table.index.tolist() == store.ids
    assert table.loc["u07", "group"] == "g2"
    spanish = table[table["language"] == "es"]
    assert sorted(spanish.index) == [f"u{i:02d}" for i in range(1, 40, 3)]
    row = table.loc["u07"]
    whole = np.asarray(store.array("final")[:])
    np.testing.assert_array_equal(whole[row.row_start : row.row_start + row.row_count], store.frames("u07", "final"))


def test_xarray_is_lazy_and_has_what_is_known(store: EmbeddingStore) -> None:
    data = store.to_xarray()
    assert data["final"].dims == ("row", "d_model")
    assert not data["final"].variable._in_memory
    assert set(store.utterances.column_names) - {"id"} < set(data.coords)
    one = data[["language", "row_start", "row_count"]].sel(utterance="u07")
    assert one["language"].item() == "es"
    rows = slice(int(one["row_start"]), int(one["row_start"] + one["row_count"]))
    np.testing.assert_array_equal(data["layer_01"].isel(row=rows), store.frames("u07", "layer_01"))
    assert not data["layer_01"].variable._in_memory
    assert data["layer_01"].attrs["hidden_states_index"] is None  # of a model of one block the last


def test_xarray_of_pooled_states_is_selected_by_id(pooled: EmbeddingStore) -> None:
    data = pooled.to_xarray()
    assert isinstance(data, xarray.Dataset)
    np.testing.assert_array_equal(data["final"].sel(utterance="u31"), pooled.pooled("final", [pooled.index("u31")])[0])
    by_language = data["final"].groupby("language").mean()
    spanish = [i for i, language in enumerate(pooled.utterances["language"].to_pylist()) if language == "es"]
    np.testing.assert_allclose(by_language.sel(language="es"), pooled.pooled("final", spanish).mean(axis=0), rtol=1e-5)
