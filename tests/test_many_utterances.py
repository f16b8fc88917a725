"""Promises of stores with many utterances: what is read of a part is what the whole table says."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from stores import Utterance, make_store

from voxstrata.base import columns as columns_module
from voxstrata.base import parquet
from voxstrata.base.errors import InputError, UsageError
from voxstrata.cli.app import main
from voxstrata.retrieval.selection import select
from voxstrata.store import EmbeddingStore, checked, open_store, utterances
from voxstrata.store.claims import Claims
from voxstrata.store.files import Files

N = 60


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A store in row groups of 7 rows, whose ids are not kept in an index."""
    monkeypatch.setattr(checked, "GROUP_ROWS", 7)
    monkeypatch.setattr(utterances, "_INDEXED", 10)
    monkeypatch.setattr(utterances, "_LOOKED_UP", 3)
    rng = np.random.default_rng(0)
    spoken = {
        f"u{i}": Utterance(
            rng.standard_normal((1 + i % 7, 8)).astype(np.float32), [None, "en", "de"][i % 3], f"g{i % 5}"
        )
        for i in range(N)
    }
    make_store(tmp_path / "s.zarr", spoken)
    return tmp_path / "s.zarr"


def test_some_columns_are_those_of_the_whole_table(path: Path) -> None:
    assert pq.read_metadata(path / "utterances.parquet").num_row_groups == -(-N // 7)
    whole = open_store(path).utterances
    store = open_store(path)
    assert store.columns == whole.column_names
    for names in (["language"], ["status", "id"], ["row_start"], ["language", "failure"], whole.column_names):
        assert store.table(names).equals(whole.select(names))
    assert "utterances" not in store.__dict__


def test_a_column_that_repeats_is_its_values_and_a_number_for_each_row(path: Path) -> None:
    languages = open_store(path).utterances["language"].to_pylist()
    for read_before in ((), ("seconds",), ("language",)):
        store = open_store(path)
        store.table(read_before) if read_before else None
        codes, names = store.codes("language")
        assert names.to_pylist() == ["de", "en"] or names.to_pylist() == ["en", "de"]
        assert [[*names.to_pylist(), None][code] for code in codes] == languages
    assert store.table(["language"])["language"].type == pa.string()


def test_ids_are_found_whether_or_not_there_is_an_index(path: Path) -> None:
    store = open_store(path)
    ids = store.utterances["id"].to_pylist()
    for turn in range(8):  # the first of them read through the ids, the others ask the index
        i = (17 * turn) % N
        assert store.index(ids[i]) == i
        assert store.indices([ids[3], 5, ids[i], ids[3]]).tolist() == [3, 5, i, 3]
        for unknown in (["no"], [ids[0], "no"]):
            with pytest.raises(UsageError, match=r"s\.zarr: no utterance 'no', it holds e\.g\. 'u"):
                store.indices(unknown)
        with pytest.raises(UsageError, match="index 60 out of range"):
            store.indices([ids[0], N])
    assert store.indices([]).tolist() == []


def test_a_selection_reads_the_columns_that_it_needs(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = open_store(path).utterances.to_pylist()
    monkeypatch.setattr(EmbeddingStore, "utterances", property(lambda self: pytest.fail("all columns are read")))
    chosen = select(open_store(path), "de")
    expected = [i for i, row in enumerate(whole) if row["language"] == "de"]
    assert chosen.indices.tolist() == expected
    assert chosen.ids == [whole[i]["id"] for i in expected]
    assert chosen.groups.tolist() == [whole[i]["group"] for i in expected]
    assert select(open_store(path), ids=["u7", "u3"]).ids == [r["id"] for r in whole if r["id"] in ("u3", "u7")]
    found = CliRunner().invoke(main, ["info", str(path), "--json"])
    assert found.exit_code == 0, found.output
    about = json.loads(found.stdout)
    assert {name: entry["utterances"] for name, entry in about["languages"].items()} == {
        "(none)": 20,
        "en": 20,
        "de": 20,
    }
    seconds = sum(row["seconds"] for row in whole if row["language"] == "en")
    assert about["languages"]["en"]["seconds"] == pytest.approx(seconds)
    assert (about["status"], about["failures"]) == ({"done": N}, {})


def test_a_damaged_page_is_found_where_its_column_is_read(path: Path) -> None:
    file = path / "utterances.parquet"
    place = pq.read_metadata(file).row_group(3).column(0).data_page_offset + 30
    data = bytearray(file.read_bytes())
    data[place] ^= 4
    file.write_bytes(data)
    with pytest.raises(InputError, match=r"utterances\.parquet: damaged"):
        open_store(path).table(["id"])
    with pytest.raises((OSError, pa.ArrowException)), pq.ParquetFile(file, page_checksum_verification=True) as table:
        table.read(["id"])  # as a part of a file in an object store is read


def test_strings_whose_hashes_are_the_same_are_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    values = [*(f"v{i % 40}" for i in range(50)), *(f"w{i}" for i in range(50))]
    column = pa.chunked_array([pa.array(["gone", *values[:30]]).slice(1), pa.array([], pa.string()), values[30:]])
    expected = [values.count(value) > 1 for value in values]
    assert columns_module.repeated(column).tolist() == expected

    def few(text: np.ndarray, offsets: np.ndarray, out: np.ndarray) -> None:
        out[:] = np.diff(offsets) % 2

    monkeypatch.setattr(columns_module, "hash_strings", few)
    assert columns_module.repeated(column).tolist() == expected


def test_a_large_parquet_file_is_held_in_one_piece_a_column(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # batches of a few rows take much more memory than they hold, and what has pieces is taken from by a copy of all
    rows = 1000
    table = pa.table(
        {
            "id": [f"u{i}" for i in range(rows)],
            "text": [None if i % 3 else "x" * (i % 50) for i in range(rows)],
            "kind": pa.array([f"k{i % 3}" for i in range(rows)]).dictionary_encode(),
            "seconds": np.arange(rows) / 8,
            "words": [[str(i)] * (i % 3) for i in range(rows)],
        }
    )
    pq.write_table(table, tmp_path / "m.parquet", row_group_size=70)
    monkeypatch.setattr(parquet, "_DICTIONARIES", 0)
    monkeypatch.setattr(parquet, "_BATCH", 16)
    monkeypatch.setattr(parquet, "_PIECE", 5000)
    found = parquet.read_parquet_table(tmp_path / "m.parquet")
    assert found.equals(table)
    assert found.schema.equals(table.schema)
    assert [column.num_chunks for column in found.columns] == [1] * 5
    assert parquet.read_parquet_table(tmp_path / "m.parquet", ["seconds", "id"]).equals(table.select(["seconds", "id"]))


def test_who_is_at_the_units_is_asked_of_claims_that_are_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # of 10 million utterances there are 200,000 units, and most have no claim
    opened = []

    def opening(path: Path, *how: int) -> int:
        opened.append(Path(path).name)
        return real(path, *how)

    with Claims(Files(tmp_path)) as claims:
        assert claims.take(7)
        real = os.open
        monkeypatch.setattr(os, "open", opening)
        assert list(claims.holders(range(1000))) == [7]
        assert opened == ["000007"]
        assert claims.holders([3]) == {}


def test_languages_that_are_empty_are_counted_with_those_that_are_null(tmp_path: Path) -> None:
    spoken = {name: Utterance(np.ones((2, 8), np.float32), language) for name, language in (("a", ""), ("b", None))}
    make_store(tmp_path / "s.zarr", {**spoken, "c": Utterance(np.ones((2, 8), np.float32), "en")})
    about = json.loads(CliRunner().invoke(main, ["info", str(tmp_path / "s.zarr"), "--json"]).stdout)
    counted = {name: (own["utterances"], own["done"]) for name, own in about["languages"].items()}
    assert counted == {"(none)": (2, 2), "en": (1, 1)}
