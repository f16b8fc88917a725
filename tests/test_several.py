"""Promises of several stores as one: it reads and compares as one store that holds all, and refuses what differs."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from planted import plant
from stores import Utterance, make_store
from test_cli import run

from voxstrata.base.errors import InputError, UsageError
from voxstrata.retrieval.all_pairs import similarity
from voxstrata.retrieval.finished import read_similarity
from voxstrata.retrieval.selection import select
from voxstrata.store import EmbeddingStore, StoreSpec, open_store
from voxstrata.studies.align.measure import AlignOptions, align
from voxstrata.studies.explain.measure import explain
from voxstrata.studies.retrieve.measure import RetrievalOptions, retrieve

SPEC = StoreSpec(("final",), dtype="float32")


def frames(seed: int, n: int) -> np.ndarray:
    """Frames near those of other seeds that are equal modulo 100."""
    rng, noise = np.random.default_rng(seed % 100), np.random.default_rng(seed)
    return (rng.standard_normal((n, 8)) + 0.8 * noise.standard_normal((n, 8))).astype(np.float32)


ALL = {f"{x}{i}": Utterance(frames(i + 100 * k, 4 + i % 5), x, f"g{i}") for k, x in enumerate("abc") for i in range(12)}


def chosen(wanted: Callable[[str], bool]) -> dict[str, Utterance]:
    return {name: utterance for name, utterance in ALL.items() if wanted(name)}


@pytest.fixture(params=["frames", "pooled"])
def stores(tmp_path: Path, request: pytest.FixtureRequest) -> tuple[EmbeddingStore, list[Path]]:
    """One store of everything, and three of parts of it: some of a, all of b with the rest of a, all of c."""
    spec = replace(SPEC, pool="mean") if request.param == "pooled" else SPEC
    parts = (
        lambda name: name[0] == "a" and int(name[1:]) < 5,
        lambda name: name[0] == "b" or (name[0] == "a" and int(name[1:]) >= 5),
        lambda name: name[0] == "c",
    )
    paths = [tmp_path / f"{i}.zarr" for i in range(3)]
    for path, wanted in zip(paths, parts, strict=True):
        make_store(path, chosen(wanted), spec=spec)
    return make_store(tmp_path / "whole.zarr", ALL, spec=spec), paths


# --- reading ---


def test_a_set_reads_as_its_stores_do(stores: tuple[EmbeddingStore, list[Path]]) -> None:
    whole, paths = stores
    several = open_store(paths)
    assert several.ids == [name for path in paths for name in open_store(path).ids]
    assert sorted(several.ids) == sorted(whole.ids)
    assert len(several) == 36
    assert several.complete
    assert several.outputs == ("final",)
    assert several.row_seconds == whole.row_seconds
    assert several.utterances.drop(["row_start"]).sort_by("id") == whole.utterances.drop(["row_start"]).sort_by("id")
    rng = np.random.default_rng(0)
    for index in (np.arange(36), np.arange(36)[::-1], rng.permutation(36), rng.choice(36, 50), np.arange(0)):
        theirs = [whole.index(several.ids[i]) for i in index]
        assert several.length[index].tolist() == whole.length[theirs].tolist()
        np.testing.assert_array_equal(several.pooled("final", index), whole.pooled("final", theirs))
        if whole.has_frames:
            for ours, expected in zip(several.ragged("final", index), whole.ragged("final", theirs), strict=True):
                np.testing.assert_array_equal(ours, expected)
    np.testing.assert_array_equal(several.pooled("final"), several.pooled("final", np.arange(36)))
    if whole.has_frames:
        seen = []
        for indices, rows, offsets in several.units("final"):
            seen += indices.tolist()
            for k, i in enumerate(indices):
                np.testing.assert_array_equal(rows[offsets[k] : offsets[k + 1]], whole.frames(several.ids[i], "final"))
        assert seen == list(range(36))
    assert repr(several).startswith(f"<EmbeddingStore {paths[0]} + {paths[1]} + {paths[2]}: 36 of 36 utterances")
    for call, message in (
        (lambda: several.ragged("layer_09", [0]), "no output 'layer_09'"),
        (lambda: several.pooled("layer_09"), "no output 'layer_09'"),
        (lambda: several.index("z"), "no utterance 'z'"),
        (lambda: several.pooled("final", [36]), "index 36 out of range"),
        (lambda: several.array("final"), "several stores have no one array"),
    ):
        with pytest.raises(UsageError, match=message):
            call()


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded, use of fork:DeprecationWarning")
def test_a_set_goes_to_workers_and_says_what_xarray_takes(stores: tuple[EmbeddingStore, list[Path]]) -> None:
    from torch.utils.data import DataLoader

    several = open_store(stores[1])
    again = pickle.loads(pickle.dumps(several))
    assert again.ids == several.ids
    np.testing.assert_array_equal(again.pooled("final"), several.pooled("final"))
    with pytest.raises(UsageError, match="several stores have no one array; call to_xarray of each"):
        several.to_xarray()
    data = several.to_torch("final")
    for method in ("fork", "spawn") if stores[0].has_frames else ("fork",):  # spawning takes seconds
        how = {"num_workers": 1, "multiprocessing_context": method, "timeout": 120}
        batches = DataLoader(data, batch_size=9, collate_fn=data.collate, **how)
        assert [name for batch in batches for name in batch["id"]] == several.ids


def test_a_path_does_where_a_store_is_asked_for(tmp_path: Path) -> None:
    store, path = make_store(tmp_path / "s.zarr", ALL), tmp_path / "s.zarr"
    assert select(str(path), "a").ids == select(store, "a").ids
    assert retrieve(path, options=RetrievalOptions(bootstrap=0)).table.num_rows
    assert explain(str(path), "a0", "b0").table.equals(explain(store, "a0", "b0").table)
    with pytest.raises(InputError, match=r"ipa\.parquet"):  # the store was opened
        align(path, tmp_path)


def test_one_path_in_a_list_is_that_store(stores: tuple[EmbeddingStore, list[Path]]) -> None:
    assert open_store([stores[1][0]]).files.root == str(stores[1][0])
    with pytest.raises(UsageError, match="no store is named"):
        open_store([])


def test_stores_that_differ_or_share_ids_are_refused(tmp_path: Path) -> None:
    a = chosen(lambda name: name[0] == "a")
    make_store(tmp_path / "a.zarr", a)
    make_store(tmp_path / "model.zarr", chosen(lambda name: name[0] == "b"), weights_sha256="2" * 64)
    make_store(tmp_path / "every.zarr", chosen(lambda name: name[0] == "b"), spec=replace(SPEC, every=2))
    make_store(tmp_path / "pooled.zarr", chosen(lambda name: name[0] == "b"), spec=replace(SPEC, pool="mean"))
    make_store(tmp_path / "same.zarr", chosen(lambda name: name in ("a3", "b1")))
    make_store(tmp_path / "other.zarr", chosen(lambda name: name[0] == "b"), spec=replace(SPEC, outputs=("layer_01",)))
    for name, message in (
        ("model", r"a.zarr and .*model.zarr cannot be compared: they hold states of different encoders, made-up"),
        ("every", r"cannot be compared: every is 1 in the first, 2 in the second; extract both"),
        ("pooled", r"pooled.zarr: holds pooled vectors, others frames; give stores of one kind"),
        ("same", r"a.zarr and .*same.zarr share 1 id, e.g. 'a3'; leave one store out"),
        ("a", r"share 12 ids"),
        ("other", r"no output is in all of them"),
    ):
        with pytest.raises(InputError, match=message):
            open_store([tmp_path / "a.zarr", tmp_path / f"{name}.zarr"])


# --- comparing ---


def rows_by_key(table: Any) -> dict[tuple[str, ...], dict[str, Any]]:
    keys = [f.name for f in table.schema if str(f.type) == "string" and f.name != "store"]
    rows = {tuple(str(row[k]) for k in keys): row for row in table.to_pylist()}
    assert len(rows) == len(table)
    return rows


def assert_equal_tables(ours: Any, theirs: Any) -> None:
    """The same rows in any order; figures equal but for the order of their sums."""
    left, right = rows_by_key(ours), rows_by_key(theirs)
    assert left.keys() == right.keys()
    for key, row in left.items():
        for name, value in row.items():
            if name != "store":
                expected = right[key][name]
                assert value == (
                    pytest.approx(expected, rel=1e-5, abs=1e-7) if isinstance(value, float) else expected
                ), (key, name)


def test_retrieval_equals_that_on_one_store_and_names_all(stores: tuple[EmbeddingStore, list[Path]]) -> None:
    whole, paths = stores
    options = RetrievalOptions(bootstrap=50)
    ours, theirs = retrieve(open_store(paths), options=options), retrieve(whole, options=options)
    assert_equal_tables(ours.table, theirs.table)
    assert set(ours.table["store"].to_pylist()) == {"0.zarr + 1.zarr + 2.zarr"}
    assert [one["store"] for one in (ours.store or {})["stores"]] == ["0.zarr", "1.zarr", "2.zarr"]
    assert "0.zarr" in json.dumps(ours.store)


def test_similarity_equals_that_on_one_store(tmp_path: Path) -> None:
    whole = make_store(tmp_path / "whole.zarr", ALL)
    paths = [tmp_path / "ab.zarr", tmp_path / "c.zarr"]
    make_store(paths[0], chosen(lambda name: name[0] in "ab"))
    make_store(paths[1], chosen(lambda name: name[0] == "c"))
    several = open_store(paths)
    for x, y in (("a,b", "c"), ("a,c", "b"), ("a,b,c", None)):
        for store, folder in ((whole, "one"), (several, "many")):
            sides = select(store, x.split(",")), select(store, y) if y else None
            similarity(*sides, "final", tmp_path / f"{folder}-{x}-{y}", top=3)
        one, many = (read_similarity(tmp_path / f"{name}-{x}-{y}").top for name in ("one", "many"))
        keys = [(direction, "ascending") for direction in ("direction", "query", "rank")]
        one, many = (table.sort_by(keys).select(["direction", "query", "candidate", "rank"]) for table in (one, many))
        assert many == one
    # frames of several stores are another matter than those of one: the folder of one is not taken for the other's
    with pytest.raises(InputError, match="cannot resume: x store is"):
        similarity(select(several, ["a", "b"]), select(several, "c"), "final", tmp_path / "one-a,b-c", top=3)


def test_the_same_utterances_on_both_sides_are_found_in_every_store(tmp_path: Path) -> None:
    """Whichever way the stores are named, and whatever their place among the others."""
    paths = [tmp_path / f"{letter}.zarr" for letter in "abc"]
    for path in paths:
        make_store(path, chosen(lambda name, path=path: name[0] == path.name[0]))
    several, turned, last = open_store(paths), open_store(paths[::-1]), open_store(paths[2])
    for x, y in ((several, last), (last, several), (several, several), (several, turned)):
        with pytest.raises(UsageError, match=r"share 12 utterances, e.g. 'c\d+'"):
            similarity(select(x, "c"), select(y, "c"), "final", tmp_path / "shared")
    similarity(select(several, "c"), select(turned, "a"), "final", tmp_path / "apart")


def test_frames_are_known_by_the_plans_of_all_stores_that_they_are_from(tmp_path: Path) -> None:
    paths = [tmp_path / f"{letter}.zarr" for letter in "abc"]
    for path in paths:
        make_store(path, chosen(lambda name, path=path: name[0] == path.name[0]))
    a, b, c = (open_store(path).about["plan"] for path in paths)
    assert len({a, b, c}) == 3
    several = open_store(paths)
    for languages, plans in (("a", a), ("c", c), (["b", "c"], [b, c]), (None, [a, b, c])):
        assert select(several, languages).identity()["store"] == plans


def test_align_equals_that_on_one_store(tmp_path: Path) -> None:
    planted = plant(tmp_path / "phonetics", 3)
    rows = planted.store.utterances.to_pylist()
    every = {
        row["id"]: Utterance(planted.store._frames["sound"][i], row["language"], row["group"])
        for i, row in enumerate(rows)
    }
    whole = make_store(tmp_path / "whole.zarr", every)
    paths = [tmp_path / "0.zarr", tmp_path / "1.zarr"]
    for path, even in zip(paths, (True, False), strict=True):
        make_store(path, {name: u for name, u in every.items() if (int(name[1:]) % 2 == 0) == even})
    options = AlignOptions(bootstrap=0)
    ours, theirs = (align(store, planted.phonetics, options=options).table for store in (open_store(paths), whole))
    assert_equal_tables(ours, theirs)


# --- the command line ---


def test_commands_take_several_stores(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for letter in "abc":
        make_store(tmp_path / f"{letter}.zarr", chosen(lambda name, letter=letter: name[0] == letter))
    a, b, c = (tmp_path / f"{letter}.zarr" for letter in "abc")
    assert run("retrieve", a, b, c, "-o", tmp_path / "r", "--bootstrap", 0, "--json") == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["store"] == [str(a), str(b), str(c)]
    assert {row["source"] for row in printed["rows"]} >= {"a", "b", "c"}
    assert (
        run(
            "similarity",
            a,
            "--join",
            b,
            "--join",
            c,
            "--x",
            "a,b",
            "--y",
            "c",
            "--outputs",
            "final",
            "-o",
            tmp_path / "s",
        )
        == 0
    )
    assert len(pq.read_table(tmp_path / "s" / "rows.parquet")) == 24
    assert run("align", a, b, "--phonetics", tmp_path / "none", "-o", tmp_path / "al") == 3
    assert "none" in capsys.readouterr().err
    assert run("retrieve", a, a, "-o", tmp_path / "r2") == 3
    assert "share 12 ids" in capsys.readouterr().err
