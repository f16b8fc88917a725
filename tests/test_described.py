"""Promises of what a store says of itself: other tools find and read its frames without us; old stores go on."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import duckdb
import numpy as np
import polars
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import xarray
import zarr
from hf_reference import Reference
from stores import without_checksums
from test_store import Stop, StopAfter, contents

from voxstrata.corpus import read_corpus
from voxstrata.encoders import Context, open_model
from voxstrata.encoders.outputs import describe
from voxstrata.engine import Runtime, extract
from voxstrata.handover.converting import convert
from voxstrata.store import StoreSpec, open_store
from voxstrata.store.description import store_readme

PLACED = pa.schema([("row_start", pa.int64()), ("row_count", pa.int32()), ("status", pa.string())])
SPEC = StoreSpec(("layer_01", "layer_03", "final"), dtype="float32", context=Context("padded"))


@pytest.fixture(scope="module")
def corpus(make_corpus: Callable[..., Path]) -> Path:
    """Three languages, so three units, and one recording that cannot be read."""
    root = make_corpus({f"{language}/{i}": 0.4 + 0.3 * i for language in ("de", "en", "fr") for i in range(3)})
    (root / "en" / "bad.wav").write_text("not audio")
    return root


@pytest.fixture(scope="module")
def written(corpus: Path, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("store") / "s.zarr"
    extract(corpus, tiny_model, path, SPEC)
    return path


def cut_short(corpus: Path, model: Path, store: Path) -> None:
    """Extract, but for the last of the three units; with one thread the first is committed by then."""
    with pytest.raises(Stop):
        extract(corpus, model, store, SPEC, Runtime(threads=1), StopAfter(2))


# --- the table of utterances ---


def test_the_table_says_where_rows_are_and_what_has_become_of_them(written: Path) -> None:
    table, root = pq.read_table(written / "utterances.parquet"), zarr.open_group(written, mode="r")
    assert pa.schema([table.schema.field(name) for name in PLACED.names]) == PLACED
    np.testing.assert_array_equal(table["row_start"], root["start"][:])
    np.testing.assert_array_equal(table["row_count"], root["length"][:])
    status = dict(zip(table["id"].to_pylist(), table["status"].to_pylist(), strict=True))
    assert status.pop("en/bad") == "failed"
    assert len(status) == 9
    assert set(status.values()) == {"done"}
    assert table.equals(open_store(written).utterances)


def test_before_the_end_of_a_run_the_table_says_pending(corpus: Path, tiny_model: Path, tmp_path: Path) -> None:
    cut_short(corpus, tiny_model, tmp_path / "s.zarr")
    stored = pq.read_table(tmp_path / "s.zarr" / "utterances.parquet")
    said = dict(zip(stored["id"].to_pylist(), stored["status"].to_pylist(), strict=True))
    assert said.pop("en/bad") == "failed"
    assert set(said.values()) == {"pending"}
    ours = open_store(tmp_path / "s.zarr").utterances
    assert set(ours["status"].to_pylist()) == {"pending", "done", "failed"}  # the units' markers know more
    assert ours.drop(["status"]).equals(stored.drop(["status"]))


def test_duckdb_and_polars_find_frames_without_zarr(written: Path) -> None:
    """In an array of float32 that is read whole, as any tool may."""
    store, rows = open_store(written), zarr.open_group(written, mode="r")["frames/final"][:]
    where = f"from '{written}/utterances.parquet' where language = 'fr' and status = 'done' and seconds > 0.5"
    by_duckdb = duckdb.sql(f"select id, row_start, row_count {where} order by id").fetchall()
    table = polars.scan_parquet(written / "utterances.parquet")
    chosen = table.filter(language="fr", status="done").filter(polars.col("seconds") > 0.5).sort("id")
    by_polars = chosen.select("id", "row_start", "row_count").collect().rows()
    assert [name for name, *_ in by_duckdb] == ["fr/1", "fr/2"]
    assert by_polars == by_duckdb
    for name, start, count in by_duckdb:
        np.testing.assert_array_equal(rows[start : start + count], store.frames(name, "final"))


def test_the_root_and_the_path_lead_to_the_recording(corpus: Path, tiny_model: Path, tmp_path: Path) -> None:
    """From the store, so that both may move together; also where a link leads to the store, and with a manifest."""
    desk = tmp_path / "desk"
    shutil.copytree(corpus, desk / "corpus")
    (desk / "lists").mkdir()
    (desk / "lists" / "m.tsv").write_text("path\n../corpus/de/0.wav\n../corpus/fr/1.wav\n")
    (tmp_path / "link").symlink_to(desk)
    extract(desk / "lists" / "m.tsv", tiny_model, tmp_path / "link" / "s.zarr", StoreSpec("final"))
    desk.rename(tmp_path / "moved")
    store = tmp_path / "moved" / "s.zarr"
    root = zarr.open_group(store, mode="r").attrs["corpus_root"]
    assert root == "../corpus"
    paths = pq.read_table(store / "utterances.parquet")["path"].to_pylist()
    assert {(store / root / path).resolve() for path in paths} == {
        tmp_path / "moved" / "corpus" / name for name in ("de/0.wav", "fr/1.wav")
    }


def test_a_finished_store_keeps_its_columns_and_paths_when_extract_runs_again(
    make_corpus: Callable[..., Path], tiny_model: Path, tmp_path: Path
) -> None:
    """With another manifest of the same recordings, and after the corpus has moved."""
    corpus = read_corpus(make_corpus({"a": 0.5, "b": 0.3}))
    with_mood = replace(corpus, table=corpus.table.append_column("mood", pa.array(["glad", "sad"])))
    extract(with_mood, tiny_model, tmp_path / "s.zarr", StoreSpec("final"))
    before = contents(tmp_path / "s.zarr")
    extract(corpus, tiny_model, tmp_path / "s.zarr", StoreSpec("final"))
    assert contents(tmp_path / "s.zarr") == before
    (tmp_path / "moved" / "deeper").mkdir(parents=True)
    for name in "ab":
        shutil.copy(corpus.root / f"{name}.wav", tmp_path / "moved" / "deeper")
    (tmp_path / "moved" / "m.tsv").write_text("id\tpath\ttune\na\tdeeper/a.wav\tla\nb\tdeeper/b.wav\tlo\n")
    extract(tmp_path / "moved" / "m.tsv", tiny_model, tmp_path / "s.zarr", StoreSpec("final"))
    assert contents(tmp_path / "s.zarr") == before


def test_a_column_of_the_users_own_makes_room_for_ours(make_corpus: Callable[..., Path], tiny_model: Path) -> None:
    corpus = read_corpus(make_corpus({"a": 0.5, "b": 0.3}))
    path, table = corpus.root / "s.zarr", corpus.table
    for name in ("status", "seconds", "row_start", "mood"):
        table = table.append_column(name, pa.array([f"{name} of a", f"{name} of b"]))
    corpus = replace(corpus, table=table)
    extract(corpus, tiny_model, path, StoreSpec("final"))
    row = pq.read_table(path / "utterances.parquet").to_pylist()[1]
    assert (row["id"], row["given_status"], row["given_seconds"], row["mood"]) == (
        "b", "status of b", "seconds of b", "mood of b",
    )  # fmt: skip
    assert (row["status"], row["seconds"], row["row_start"], row["given_row_start"]) == (
        "done", 0.3, 25, "row_start of b",
    )  # fmt: skip


def test_no_two_columns_of_the_users_own_get_one_name(
    make_corpus: Callable[..., Path], tiny_model: Path, tmp_path: Path
) -> None:
    """Nothing is overwritten where the name that makes room is taken, too, whichever comes first."""
    root = make_corpus({"a": 0.3})
    own = ["given_path", "final", "status", "given_final", "given_status", "given_frame", "frame"]
    lines = ["\t".join(["audio", *own, "path"]), "\t".join(["other.wav", *(f"my {n}" for n in own), "a.wav"])]
    (root / "m.tsv").write_text("\n".join(lines), encoding="utf-8")
    table = read_corpus(root / "m.tsv").table
    for name in ("seconds", "given_seconds"):
        table = table.append_column(name, pa.array([f"my {name}"]))
    corpus = replace(read_corpus(root / "m.tsv"), table=table)
    extract(corpus, tiny_model, tmp_path / "s.zarr", StoreSpec("final"))
    convert(tmp_path / "s.zarr", tmp_path / "out", "hf")
    expected = sorted(["other.wav", *(f"my {name}" for name in (*own, "seconds", "given_seconds"))])
    for file in (tmp_path / "s.zarr" / "utterances.parquet", tmp_path / "out" / "data" / "train-00000.parquet"):
        (row,) = pq.read_table(file).to_pylist()
        assert row["path"] == "a.wav"
        assert sorted(v for v in row.values() if isinstance(v, str) and v.startswith(("my", "other"))) == expected


# --- attributes ---


def test_attributes_name_the_hidden_state_that_transformers_gives(
    written: Path, corpus: Path, tiny_checkpoint: Path
) -> None:
    import soundfile
    import torch

    samples, _ = soundfile.read(corpus / "fr" / "2.wav", dtype="float32")
    reference = Reference(tiny_checkpoint)
    with torch.inference_mode():
        states = reference.encoder(reference.log_mel(samples), output_hidden_states=True).hidden_states
    store, found = open_store(written), {}
    for name in SPEC.outputs:
        attributes = zarr.open_group(written, mode="r")[f"frames/{name}"].attrs
        frames = store.frames("fr/2", name)
        near = [i for i, s in enumerate(states) if np.allclose(s[0, : len(frames)], frames, atol=1e-3)]
        found[name] = (attributes["hidden_states_index"], near)
        assert attributes["seconds_per_row"] == 0.02
        assert attributes["rows_per_second"] == 50
        assert attributes["units"] == "1"
        assert attributes["model"] == store.model.checkpoint
        assert attributes["encoder_weights_sha256"] == store.model.weights_sha256
    assert found == {"layer_01": (1, [1]), "layer_03": (None, []), "final": (3, [3])}


def test_words_for_outputs_say_where_the_layer_norm_is() -> None:
    assert describe("layer_00", 6, "final") == ("input of the first block, before the final LayerNorm", 0)
    assert describe("layer_02", 6, "every") == ("residual stream after block 2, through the final LayerNorm", None)
    assert describe("layer_06", 6, "every")[1] == describe("final", 6, "every")[1] == 6


def test_seconds_of_a_row_follow_from_the_frames_it_is_the_mean_of(
    corpus: Path, tiny_model: Path, tmp_path: Path
) -> None:
    extract(corpus, tiny_model, tmp_path / "s.zarr", StoreSpec("final", every=5))
    attributes = zarr.open_group(tmp_path / "s.zarr", mode="r")["frames/final"].attrs
    assert (attributes["seconds_per_row"], attributes["rows_per_second"], attributes["frames_per_row"]) == (0.1, 10, 5)


# --- xarray ---


def test_xarray_opens_the_group_with_coordinates(written: Path) -> None:
    store = open_store(written)
    with xarray.open_zarr(written) as root:
        assert set(root.coords) == {"utterance", "start", "length", "status"}
        assert root["utterance"].values.tolist() == store.ids
        one = root.sel(utterance="fr/1")
        assert one["length"].item() == len(store.frames("fr/1", "final"))
        with xarray.open_zarr(written, group="frames") as frames:
            assert frames["layer_03"].attrs["long_name"] == "residual stream after block 3, before the final LayerNorm"
            states = frames["layer_03"].isel(row=slice(one["start"].item(), one["start"].item() + one["length"].item()))
            np.testing.assert_array_equal(states.values, store.frames("fr/1", "layer_03"))
    with xarray.open_datatree(written, engine="zarr") as tree:
        assert tree["frames"]["final"].dims == ("row", "d_model")


# --- README.md ---


@pytest.mark.parametrize("pool", [None, "mean"])
def test_the_readme_reads_the_store_in_five_lines(
    corpus: Path, tiny_model: Path, tmp_path: Path, pool: str | None, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    extract(corpus, tiny_model, tmp_path / "s.zarr", StoreSpec("layer_02,final", pool=pool))
    monkeypatch.chdir(tmp_path / "s.zarr")
    (block,) = re.findall(r"^```python\n(.*?)^```", Path("README.md").read_text(encoding="utf-8"), re.M | re.S)
    assert len(block.splitlines()) == 5
    assert "voxstrata" not in block
    exec(block, read := {})
    store = open_store(tmp_path / "s.zarr")
    i = next(i for i, row in enumerate(store.utterances.to_pylist()) if row["status"] == "done")
    expected = store.pooled("final", [i]) if pool else store.frames(i, "final")
    np.testing.assert_array_equal(read["final"], expected)
    assert capsys.readouterr().out == f"{store.ids[i]} {expected.shape} {expected.dtype}\n"


def test_the_readme_names_every_output(written: Path, tiny_model: Path) -> None:
    text = (written / "README.md").read_text(encoding="utf-8")
    assert text == store_readme(
        open_model(tiny_model).card, SPEC.for_model(open_model(tiny_model).card, Runtime().device)
    )
    assert "| `layer_03` | residual stream after block 3, before the final LayerNorm | – |" in text
    assert "through the final LayerNorm | `[3]` |" in text
    assert "A row is 20 ms of speech." in text


# --- stores that were made before ---


def as_before(store: Path) -> None:
    """Make a store what it was in version 0.1.0: no checksums, headers, README.md or ids in zarr, fewer columns."""
    without_checksums(store)
    (store / "probe.parquet").unlink()
    (store / "README.md").unlink()
    shutil.rmtree(store / "utterance")
    for file in store.rglob("zarr.json"):
        root = json.loads(file.read_text())
        consolidated = root.get("consolidated_metadata") or {"metadata": {}}
        consolidated["metadata"].pop("utterance", None)
        for node in (root, *consolidated["metadata"].values()):
            node["attributes"] = {k: v for k, v in node["attributes"].items() if k == "voxstrata"}
        file.write_text(json.dumps(root, indent=2))
    table = pq.read_table(store / "utterances.parquet")
    newer = [*PLACED.names, "member", "offset", "duration", "channel"]
    pq.write_table(table.drop(newer), store / "utterances.parquet", compression="zstd")


def test_a_store_made_before_is_read_as_one_made_now(written: Path, tmp_path: Path) -> None:
    old = Path(shutil.copytree(written, tmp_path / "s.zarr"))
    as_before(old)
    then, now = open_store(old), open_store(written)
    assert "row_start" not in pq.read_table(old / "utterances.parquet").column_names
    assert then.utterances.equals(now.utterances.drop(["member", "offset", "duration", "channel"]))
    assert repr(then).partition(":")[2] == repr(now).partition(":")[2]
    for name in ("de/0", "fr/2"):
        np.testing.assert_array_equal(then.frames(name, "final"), now.frames(name, "final"))


def test_a_run_begun_before_is_finished_now(corpus: Path, tiny_model: Path, written: Path, tmp_path: Path) -> None:
    old = tmp_path / "s.zarr"
    cut_short(corpus, tiny_model, old)
    as_before(old)
    assert not open_store(old).complete
    assert 1 <= extract(corpus, tiny_model, old, SPEC).resumed_units < 3
    then, now = open_store(old), open_store(written)
    assert then.complete
    assert then.utterances.equals(now.utterances)
    arrays, made_now = (dict(zarr.open_group(path, mode="r").members(max_depth=None)) for path in (old, written))
    for name, array in arrays.items():
        if isinstance(array, zarr.Array):
            np.testing.assert_array_equal(array[:], made_now[name][:], name)
    assert "frames/final" in arrays
