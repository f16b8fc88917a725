"""Promises of the store: what it refuses, what a reader gets, and that others read it without us."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pytest
import soundfile
import xarray
import zarr
from conftest import sound

from voxstrata.base.errors import InputError, UnreachableError, UsageError
from voxstrata.base.progress import Progress, Reporter
from voxstrata.corpus import Corpus, read_corpus
from voxstrata.encoders import Context, Device, open_model
from voxstrata.encoders.card import write_card
from voxstrata.engine import CpuEncoder, Runtime, extract
from voxstrata.retrieval.selection import select
from voxstrata.store import EmbeddingStore, StoreSpec, open_store
from voxstrata.store.checked import with_checksum
from voxstrata.store.files import Files, patient_lock
from voxstrata.store.part import Part
from voxstrata.store.writer import StoreWriter

OUTPUTS = ("layer_01", "final")


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.fixture(scope="module")
def corpus(make_corpus: Callable[..., Path]) -> Path:
    """Three languages, so three units, and one recording that cannot be read."""
    root = make_corpus({f"{language}/{i}": 0.4 + 0.3 * i for language in ("de", "en", "fr") for i in range(4)})
    (root / "en" / "bad.wav").write_text("not audio")
    return root


@pytest.fixture(scope="module")
def written(corpus: Path, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("store") / "s.zarr"
    extract(corpus, tiny_model, path, StoreSpec(OUTPUTS))
    return path


@pytest.fixture(scope="module")
def store(written: Path) -> EmbeddingStore:
    return open_store(written)


class Stop(Exception):
    """Ends a run when it tells of its progress."""


class StopAfter(Reporter):
    """Stops a run once so many units are encoded."""

    def __init__(self, units: int) -> None:
        self.units = units

    def progress(self, progress: Progress) -> None:
        if progress.stage == "extracting" and progress.done >= self.units:
            raise Stop


# --- what is kept ---


def test_a_spec_is_written_as_people_do_and_resolved_for_a_model_and_device(tiny_model: Path) -> None:
    card = open_model(tiny_model).card
    assert StoreSpec("final, layer_01") == StoreSpec(["final", "layer_01"])
    spec = StoreSpec("final, layer_01", context=Context("padded")).for_model(card, Device())
    assert spec == StoreSpec(OUTPUTS, context=Context("padded"))
    assert spec.for_model(card, Device()) == spec == StoreSpec.from_dict(spec.to_dict())
    assert spec.to_dict()["outputs"] == ["layer_01", "final"]
    assert StoreSpec().for_model(card, Device()).outputs == card.outputs
    kinds = {kind: StoreSpec().for_model(card, Device(kind)).arithmetic for kind in ("cpu", "cuda", "tensorrt")}
    assert kinds == {"cpu": "float32", "cuda": "float32", "tensorrt": "float16"}
    half = replace(card, dtype="float16")
    assert StoreSpec(dtype="float32").for_model(half, Device()).arithmetic == "float16"
    for outputs in ("layer_99", "final,final", "", ()):
        with pytest.raises(UsageError, match="output"):
            StoreSpec(outputs).for_model(card, Device())


# --- reading ---


def test_frames_are_the_rows_that_start_and_length_say(store: EmbeddingStore) -> None:
    whole = {o: zarr.open_group(store.files.root, mode="r")[f"frames/{o}"][:] for o in OUTPUTS}
    for i, name in enumerate(store.ids):
        if name == "en/bad":
            continue
        seconds = 0.4 + 0.3 * int(name[-1])
        for output in OUTPUTS:
            frames = store.frames(name, output)
            assert frames.shape == (int(np.ceil(round(seconds * 50, 6))), 32)
            assert frames.dtype == np.float16
            assert frames.any(axis=1).all()
            np.testing.assert_array_equal(frames, whole[output][store.start[i] : store.start[i] + store.length[i]])
            np.testing.assert_array_equal(frames, store.frames(i, output))


def test_ragged_in_any_order_is_the_frames_one_by_one(store: EmbeddingStore) -> None:
    done = np.flatnonzero(store.status == 1)
    rng = np.random.default_rng(0)
    for indices in (done, done[::-1], rng.permutation(done), rng.choice(done, 30), done[:0]):
        rows, offsets = store.ragged("final", indices)
        assert rows.shape == (int(store.length[indices].sum()), 32)
        assert len(offsets) == len(indices) + 1
        for k, i in enumerate(indices):
            np.testing.assert_array_equal(rows[offsets[k] : offsets[k + 1]], store.frames(int(i), "final"))


def test_units_hold_every_done_utterance_once(store: EmbeddingStore) -> None:
    seen: list[int] = []
    for indices, rows, offsets in store.units("layer_01"):
        assert len({store.utterances["language"][int(i)].as_py() for i in indices}) == 1
        for k, i in enumerate(indices):
            np.testing.assert_array_equal(rows[offsets[k] : offsets[k + 1]], store.frames(int(i), "layer_01"))
        seen += indices.tolist()
    assert seen == np.flatnonzero(store.status == 1).tolist()
    assert len(seen) == 12


def test_pooled_of_frames_is_their_mean_and_of_a_pooled_store_what_it_holds(
    store: EmbeddingStore, corpus: Path, tiny_model: Path, tmp_path: Path
) -> None:
    extract(corpus, tiny_model, tmp_path / "p.zarr", StoreSpec(OUTPUTS, pool="mean"))
    kept = open_store(tmp_path / "p.zarr")
    assert kept.ids == store.ids
    for output in OUTPUTS:
        computed, read = store.pooled(output), kept.pooled(output)
        assert computed.dtype == read.dtype == np.float32
        bad = store.index("en/bad")
        assert np.isnan(computed[bad]).all()
        assert np.isnan(read[bad]).all()
        done = [i for i in range(len(store)) if i != bad]
        np.testing.assert_allclose(computed[done], read[done], rtol=2e-3, atol=2e-3)
        for i in done:
            mean = store.frames(i, output).astype(np.float64).mean(axis=0)
            np.testing.assert_allclose(computed[i], mean, rtol=1e-5, atol=1e-6)
        np.testing.assert_array_equal(kept.pooled(output, done[::-1]), read[done[::-1]])
        assert kept.pooled(output, []).shape == store.pooled(output, []).shape == (0, 32)
    assert kept.row_seconds is None
    with pytest.raises(UsageError, match=r"holds pooled vectors, no frames; extract without --pooled"):
        kept.frames(0, "final")


def test_pooling_reads_a_bounded_number_of_rows_at_once(store: EmbeddingStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """However long the utterances are, and to the same bits."""
    whole, read, rows_at_once = store.pooled("final"), store.ragged, []

    def ragged(output: str, indices: Any) -> Any:
        rows, offsets = read(output, indices)
        rows_at_once.append(len(rows))
        return rows, offsets

    monkeypatch.setattr(store, "ragged", ragged)
    monkeypatch.setattr("voxstrata.store.reader._POOLED_ROWS", 100)
    np.testing.assert_array_equal(store.pooled("final"), whole)
    assert len(rows_at_once) > 1
    assert max(rows_at_once) < 100 + store.length.max()
    done = np.flatnonzero(store.status == 1)[::-1]
    np.testing.assert_array_equal(store.pooled("final", done), whole[done])


def test_metadata_is_a_table_in_index_order(store: EmbeddingStore) -> None:
    table = store.utterances
    names = "id path language group text speaker member offset duration channel seconds samples size_bytes failure"
    assert table.column_names == [*names.split(), "row_start", "row_count", "status"]
    assert [store.index(name) for name in table["id"].to_pylist()] == list(range(13))
    assert len(store) == 13
    rows = {r["id"]: r for r in table.to_pylist()}
    assert rows["fr/2"]["seconds"] == 1.0
    assert rows["fr/2"]["samples"] == 16_000
    assert rows["fr/2"]["path"] == "fr/2.wav"
    assert rows["fr/2"]["language"] == "fr"
    assert rows["en/bad"]["status"] == "failed"
    assert "not audio" in rows["en/bad"]["failure"]
    assert store.row_seconds == 0.02


def test_repr_says_what_it_is(store: EmbeddingStore, written: Path) -> None:
    assert (
        repr(store)
        == f"<EmbeddingStore {written}: 12 of 13 utterances, frames of layer_01, final, d=32, bucketed, tiny>"
    )


def test_a_store_is_a_sequence_of_utterances(store: EmbeddingStore) -> None:
    one = store["fr/2"]
    assert (one.id, one.language, one.seconds, one.status) == ("fr/2", "fr", 1.0, "done")
    assert repr(one) == "<utterance fr/2: fr, 1.00 s, done>"
    assert repr(store["en/bad"]).endswith("failed>")
    np.testing.assert_array_equal(one.frames("final"), store.frames("fr/2", "final"))
    np.testing.assert_array_equal(one.pooled("final"), store.pooled("final")[store.index("fr/2")])
    assert [u.id for u in store] == store.ids == [store[i].id for i in range(-13, 0)]
    np.testing.assert_array_equal(store.frames(-2, "final"), store.frames(store.ids[-2], "final"))


@pytest.mark.parametrize(
    ("short", "name"), [("1", "layer_01"), (1, "layer_01"), ("layer_1", "layer_01"), (-1, "final"), ("-2", "layer_01")]
)
def test_outputs_are_named_in_short_wherever_the_command_line_takes_it(
    store: EmbeddingStore, short: str | int, name: str
) -> None:
    done = np.flatnonzero(store.status == 1)
    pairs = [
        (store.frames(0, short), store.frames(0, name)),
        (store[0].frames(short), store[0].frames(name)),
        (store[0].pooled(short), store[0].pooled(name)),
        (store.pooled(short), store.pooled(name)),
        (store.ragged(short, done)[0], store.ragged(name, done)[0]),
        (store.array(short)[:3], store.array(name)[:3]),
        (next(store.units(short))[1], next(store.units(name))[1]),
        (select(store).frames(short).ragged(0, 2).rows, select(store).frames(name).ragged(0, 2).rows),
    ]
    for asked, expected in pairs:
        np.testing.assert_array_equal(asked, expected)
    assert store.to_torch(short, done).outputs == (name,)
    assert store.to_torch(short, done)[0]["states"].ndim == 2  # one output, however it is spelt
    assert store.to_torch([short], done)[0]["states"].ndim == 3


def test_unknown_utterances_and_outputs_are_usage_errors(store: EmbeddingStore) -> None:
    for call, message in (
        (lambda: store.frames("en/none", "final"), "no utterance 'en/none', it holds e.g."),
        (lambda: store.frames("en-0", "final"), "no utterance 'en-0', it holds e.g. 'en/0'"),
        (lambda: store.frames(13, "final"), "index 13 out of range"),
        (lambda: store.frames(-14, "final"), "index -14 out of range"),
        (lambda: store[13], "index 13 out of range"),
        (lambda: store[1.5], "index 1.5 out of range"),  # type: ignore[index]
        (lambda: store[0:2], r"index slice\(0, 2, None\) out of range"),  # type: ignore[index]
        (lambda: store["nobody"], "no utterance 'nobody'"),
        (lambda: store.ragged("final", [0, 99]), "index 99 out of range"),
        (lambda: store.pooled("final", [-14]), "index -14 out of range"),
        (lambda: store.frames("en/0", "layer_02"), "no output 'layer_02'; it holds layer_01, final"),
        (lambda: store.frames("en/0", 2), "no output '2'; it holds layer_01, final"),
        (lambda: store.frames("en/0", np.int64(2)), "no output '2'; it holds layer_01, final"),
        (lambda: store.frames("en/0", None), "no output None; give names"),  # type: ignore[arg-type]
        (lambda: store.frames("en/0", "all"), r"zarr: 'all' are 2 outputs; name one of layer_01, final"),
        (lambda: store.pooled("0-1"), "no output '0-1'; it holds"),
        (lambda: store.frames("en/bad", "final"), "'en/bad' is failed: .*not audio"),
        (lambda: store.ragged("final", range(13)), "'en/bad' is failed"),
    ):
        with pytest.raises(UsageError, match=message):
            call()


def test_what_is_no_store_is_an_input_error(tmp_path: Path, tiny_model: Path, written: Path) -> None:
    (tmp_path / "file").write_text("x")
    zarr.create_group(tmp_path / "other.zarr")
    with pytest.raises(InputError, match="none: no such file or folder"):
        open_store(tmp_path / "none")
    for path in (tmp_path / "file", tmp_path, tmp_path / "other.zarr", tiny_model):
        with pytest.raises(InputError, match="not a voxstrata store"):
            open_store(path)
    shutil.copytree(written, tmp_path / "s.zarr")
    edit(tmp_path / "s.zarr", schema=7)
    with pytest.raises(InputError, match="store schema 7, this version reads 1"):
        open_store(tmp_path / "s.zarr")
    edit(tmp_path / "s.zarr", schema=1)
    (tmp_path / "s.zarr" / "plan.json").unlink()
    with pytest.raises(InputError, match="creation was interrupted; run the extraction again"):
        open_store(tmp_path / "s.zarr")


def test_plain_zarr_and_xarray_read_it_without_a_warning(store: EmbeddingStore, written: Path) -> None:
    group = zarr.open(written, mode="r")  # warnings are errors here
    assert isinstance(group, zarr.Group)
    assert sorted(name for name, _ in group.arrays()) == ["length", "start", "status", "utterance"]
    assert sorted(name for name, _ in group["frames"].arrays()) == sorted(OUTPUTS)
    array = group["frames/final"]
    assert array.metadata.dimension_names == ("row", "d_model")
    i = store.index("de/3")
    a, b = int(group["start"][i]), int(group["start"][i] + group["length"][i])
    np.testing.assert_array_equal(array[a:b], store.frames("de/3", "final"))
    with xarray.open_zarr(written) as root, xarray.open_zarr(written, group="frames") as frames:
        assert root["status"].dims == ("utterance",)
        assert frames["final"].dims == ("row", "d_model")
        assert frames["final"].dtype == np.float16
        np.testing.assert_array_equal(frames["final"][a:b].values, store.frames("de/3", "final"))
        assert root["status"].values.tolist() == store.status.tolist()


def test_a_store_of_an_unfinished_run_tells_what_is_done(corpus: Path, tiny_model: Path, tmp_path: Path) -> None:
    bad = Path(shutil.copytree(corpus, tmp_path / "c"))
    samples = sound(1.5, 9)
    samples[100] = np.nan
    soundfile.write(bad / "de" / "nan.wav", samples, 16_000, subtype="FLOAT")
    with pytest.raises(Stop):  # in the last of three units: with one thread the first is committed by then
        extract(bad, tiny_model, tmp_path / "s.zarr", StoreSpec(OUTPUTS), Runtime(threads=1), StopAfter(2))
    store = open_store(tmp_path / "s.zarr")
    status = dict(zip(store.ids, store.status.tolist(), strict=True))
    assert not store.complete
    assert status["de/0"] == 1
    assert status["fr/0"] == 0
    assert status["de/nan"] == status["en/bad"] == 2
    rows = {r["id"]: r for r in store.utterances.to_pylist()}
    assert "NaN" in rows["de/nan"]["failure"]
    assert "not audio" in rows["en/bad"]["failure"]
    assert rows["fr/0"]["status"] == "pending"
    assert store.frames("de/0", "final").any()
    with pytest.raises(UsageError, match="'fr/0' is pending; run the extraction to its end"):
        store.frames("fr/0", "final")
    assert np.isnan(store.pooled("final")[store.index("fr/0")]).all()
    assert {store.ids[i][:2] for indices, _, _ in store.units("final") for i in indices} <= {"de", "en"}


# --- refusing to write ---


def edit(path: Path, **changes: Any) -> None:
    """Change what a store says of itself."""
    file = path / "zarr.json"
    d = json.loads(file.read_text())
    d["attributes"]["voxstrata"] |= changes
    d["attributes"] = with_checksum(d["attributes"])
    file.write_text(json.dumps(d))


def refused(match: str, corpus: Path, model: Path, path: Path, **settings: Any) -> None:
    """Extraction must fail with this message and leave every byte as it was."""
    before = contents(path) if path.is_dir() else None
    runtime = Runtime(unit_megabytes=settings.pop("unit_megabytes", None))
    with pytest.raises(InputError, match=match):
        extract(corpus, model, path, StoreSpec(**{"outputs": OUTPUTS, **settings}), runtime)
    if before is not None:
        assert contents(path) == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"outputs": "final"}, r"outputs are layer_01,final there, final here; .* \(--outputs layer_01,final\)"),
        ({"dtype": "float32"}, "dtype is float16 there, float32 here"),
        ({"pool": "mean"}, "pool is None there, mean here"),
        ({"every": 5}, "every is 1 there, 5 here"),
        ({"context": Context("padded")}, "context mode is bucketed there, padded here"),
        ({"context": Context(tail=0)}, "context tail is 50 there, 0 here"),
        ({"context": Context(edges=(75, 1500))}, "context edges is .* there, .75, 1500. here"),
        ({"unit_megabytes": 500}, "units of 128 MB there, [0-9.]+ MB here; give --unit-mb 128, or"),
    ],
)
def test_a_store_of_another_spec_is_refused_naming_what_differs(
    corpus: Path, tiny_model: Path, written: Path, change: dict[str, Any], message: str
) -> None:
    refused(f"cannot resume: .*{message}", corpus, tiny_model, written, **change)


def test_units_of_another_size_are_refused_with_the_size_that_goes_on(
    corpus: Path, tiny_model: Path, tmp_path: Path
) -> None:
    store = tmp_path / "s.zarr"
    first = extract(corpus, tiny_model, store, runtime=Runtime(unit_megabytes=0.7))
    with pytest.raises(InputError, match=r"units of .* MB there") as refusal:
        extract(corpus, tiny_model, store, runtime=Runtime(unit_megabytes=128))
    told = re.search(r"--unit-mb ([0-9.]+)", str(refusal.value))
    assert told
    for size in (float(told[1]), None):  # without a wish it goes on as it is
        again = extract(corpus, tiny_model, store, runtime=Runtime(unit_megabytes=size))
        assert again.resumed_units == first.units


def test_a_store_of_another_corpus_is_refused_naming_what_differs(
    corpus: Path, tiny_model: Path, written: Path, tmp_path: Path
) -> None:
    other = Path(shutil.copytree(corpus, tmp_path / "c"))
    soundfile.write(other / "en" / "new.wav", sound(1, 5), 16_000)
    refused(
        "1 utterance was not in the corpus that made it, e.g. 'en/new'; `voxstrata append ", other, tiny_model, written
    )
    (other / "en" / "new.wav").unlink()
    (other / "fr" / "1.wav").unlink()
    refused(
        "1 utterance is only in the store, e.g. 'fr/1'; bring them back or use a new store", other, tiny_model, written
    )


def test_segments_elsewhere_or_in_another_order_are_refused_for_what_they_are(tiny_model: Path, tmp_path: Path) -> None:
    for name in "ab":
        soundfile.write(tmp_path / f"{name}.wav", np.stack([sound(2, 1), sound(2, 2)], axis=1), 16_000)

    def stretches(offset: float, channel: int, paths: str = "ab") -> Corpus:
        table = {"id": ["x", "y"], "path": [f"{p}.wav" for p in paths], "language": ["en"] * 2}
        parts = {"offset": [offset] * 2, "duration": [0.5] * 2, "channel": pa.array([channel] * 2, pa.int32())}
        return Corpus(tmp_path, pa.table({**table, **parts}))

    store = tmp_path / "s.zarr"
    extract(stretches(0.5, 0), tiny_model, store, StoreSpec(OUTPUTS))
    for given, message in (
        (stretches(0.75, 0), "offset of 'x' is 0.5 there, 0.75 here; use a new store"),
        (stretches(0.5, 1), "channel of 'x' is 0 there, 1 here; use a new store"),
        (stretches(0.5, 0, "ba"), "the recordings come in another order, from 'x' on: segments go by"),
    ):
        with pytest.raises(InputError, match=f"cannot resume: {message}"):
            extract(given, tiny_model, store, StoreSpec(OUTPUTS))


def test_a_file_that_changed_fails_alone_and_only_where_it_is_still_needed(
    corpus: Path, tiny_model: Path, written: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other, path = Path(shutil.copytree(corpus, tmp_path / "c")), Path(shutil.copytree(written, tmp_path / "s.zarr"))
    soundfile.write(other / "fr" / "1.wav", sound(0.8, 5), 16_000, subtype="FLOAT")
    names = sorted(str(p.relative_to(corpus).with_suffix("")) for p in corpus.rglob("*.wav"))
    (other / "m.tsv").write_text("\n".join(["path\tlanguage", *(f"{name}.wav\t{name[:2]}" for name in names)]))
    (other / "fr" / "2.wav").unlink()
    assert extract(other / "m.tsv", tiny_model, path, StoreSpec(OUTPUTS)).resumed_units == 3
    assert contents(path) == contents(written)
    (path / "units" / "000002.json").unlink()
    with pytest.raises(UnreachableError, match=r"fr/2\.wav: is gone, and was there when its header was read"):
        extract(other / "m.tsv", tiny_model, path, StoreSpec(OUTPUTS))
    (other / "fr" / "2.wav").write_bytes(b"")  # the way to do without it
    report = extract(other / "m.tsv", tiny_model, path, StoreSpec(OUTPUTS))
    assert sorted(report.failures) == ["en/bad", "fr/1", "fr/2"]
    sizes = [(folder / "fr" / "1.wav").stat().st_size for folder in (other, corpus)]
    assert f"{sizes[0]} bytes, but {sizes[1]} when it was probed: the file has changed" in report.failures["fr/1"]
    assert report.failures["fr/2"].startswith("fr/2.wav: is empty (0 bytes)")
    np.testing.assert_array_equal(open_store(path).frames("fr/0", "final"), open_store(written).frames("fr/0", "final"))


def test_a_disk_that_is_gone_stops_the_run_and_fails_no_recording(
    corpus: Path, tiny_model: Path, written: Path, tmp_path: Path
) -> None:
    other, path = Path(shutil.copytree(corpus, tmp_path / "c")), Path(shutil.copytree(written, tmp_path / "s.zarr"))
    (path / "units" / "000002.json").unlink()
    read = read_corpus(other)
    shutil.rmtree(other)
    for empty in (False, True):
        if empty:  # where a disk is not mounted
            other.mkdir()
        with pytest.raises(InputError, match=r"c: no recording is there any more.*mount it, and run the same"):
            extract(read, tiny_model, path, StoreSpec(OUTPUTS))
    other.rmdir()
    shutil.copytree(corpus, other)
    extract(read, tiny_model, path, StoreSpec(OUTPUTS))
    assert contents(path) == contents(written)


def test_markers_that_cannot_be_read_count_as_missing(
    corpus: Path, tiny_model: Path, written: Path, tmp_path: Path
) -> None:
    """A power cut may leave them empty or in part."""
    for i, data in enumerate(
        (b"", b"\0" * 40, b'{"unit": 1, "fai', b"[]", b'{"unit": 2, "failed": {}, "overflows": 0}')
    ):
        path = Path(shutil.copytree(written, tmp_path / f"{i}.zarr"))
        status = zarr.open_array(path / "status", mode="r+")
        status[:] = np.where(status[:] == 1, 0, status[:])  # as it is before the end
        (path / "units" / "000001.json").write_bytes(data)
        opened = open_store(path)
        assert [opened.ids[i][:2] for i in np.flatnonzero(opened.status == 0)] == ["en"] * 4
        assert not opened.complete
        assert extract(corpus, tiny_model, path, StoreSpec(OUTPUTS)).resumed_units == 2
        assert contents(path) == contents(written)


def test_a_store_of_another_model_is_refused_naming_what_differs(
    corpus: Path, tiny_model: Path, written: Path, tmp_path: Path
) -> None:
    from voxstrata.encoders.card import ENCODER_GRAPHS, LOG_MEL
    from voxstrata.exporters.writing import stamp

    for key, value in (("weights_sha256", "0" * 64), ("dtype", "float16"), ("final_norm", "every")):
        folder = Path(shutil.copytree(tiny_model, tmp_path / key))
        card = replace(open_model(folder).card, **{key: value})
        stamp(folder, (*ENCODER_GRAPHS[card.dtype], LOG_MEL), card)
        write_card(folder, card)
        refused(f"another model: {key} is .* there .*, {value} here", corpus, folder, written)
    folder = Path(shutil.copytree(tiny_model, tmp_path / "silence"))
    card = open_model(folder).card
    write_card(folder, replace(card, silence=card.silence | {"sha256": "0" * 64}))
    refused("another model: silence_sha256 is", corpus, folder, written)


def test_a_store_is_not_finished_with_graphs_of_another_format(
    corpus: Path, tiny_model: Path, written: Path, tmp_path: Path
) -> None:
    path, card = Path(shutil.copytree(written, tmp_path / "s.zarr")), open_model(tiny_model).card
    edit(path, model=replace(card, format=card.format - 1).to_dict())
    refused(f"its model is of format {card.format - 1}, this one of format {card.format}", corpus, tiny_model, path)


def test_a_store_of_another_schema_is_refused(corpus: Path, tiny_model: Path, written: Path, tmp_path: Path) -> None:
    path = Path(shutil.copytree(written, tmp_path / "s.zarr"))
    edit(path, schema=0)
    refused("its schema is 0, this version writes 1; use a new name", corpus, tiny_model, path)


def test_what_is_no_store_is_left_alone(corpus: Path, tiny_model: Path, written: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    refused("a file, not a store", corpus, tiny_model, tmp_path / "file")
    assert (tmp_path / "file").read_text() == "mine"
    with pytest.raises(InputError, match="cannot write"):
        extract(corpus, tiny_model, tmp_path / "file" / "s.zarr", StoreSpec(OUTPUTS))
    for name in ("notes.txt", ".lock", "film.partial", "plan.json", "zarr.json"):
        folder = tmp_path / f"with {name}"
        folder.mkdir()
        (folder / name).write_text("{}")
        refused("exists and is not a voxstrata store", corpus, tiny_model, folder)
    zarr.create_group(tmp_path / "other.zarr")
    refused("exists and is not a voxstrata store", corpus, tiny_model, tmp_path / "other.zarr")
    headless = Path(shutil.copytree(written, tmp_path / "headless"))
    (headless / "plan.json").unlink()
    refused("holds units of another corpus, model or settings", corpus / "en", tiny_model, headless)


def test_a_store_without_its_plan_is_prepared_again_and_keeps_its_units(
    corpus: Path, tiny_model: Path, written: Path, tmp_path: Path
) -> None:
    for lost in (("plan.json",), ("plan.json", "zarr.json"), ("plan.json", "utterances.parquet", "frames/zarr.json")):
        headless = Path(shutil.copytree(written, tmp_path / str(len(list(tmp_path.iterdir())))))
        for name in lost:
            (headless / name).unlink()
        assert extract(corpus, tiny_model, headless, StoreSpec(OUTPUTS)).resumed_units == 3
        assert contents(headless) == contents(written)


def test_an_empty_folder_becomes_a_store(corpus: Path, tiny_model: Path, written: Path, tmp_path: Path) -> None:
    (tmp_path / "s.zarr").mkdir()
    extract(corpus, tiny_model, tmp_path / "s.zarr", StoreSpec(OUTPUTS))
    assert contents(tmp_path / "s.zarr") == contents(written)


def test_a_second_run_on_the_same_store_does_what_the_first_is_not_at(
    corpus: Path, tiny_model: Path, written: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("voxstrata.engine.pipeline.BATCHES_AHEAD", 0)
    path, seconds = tmp_path / "s.zarr", []

    class Second(Reporter):
        def progress(self, progress: Progress) -> None:
            if progress.stage == "extracting" and progress.work:  # the first report is of no work yet
                report = extract(corpus, tiny_model, path, StoreSpec(OUTPUTS), Runtime(threads=1), part=Part(1, 1))
                seconds.append(report)

    tokens = Runtime(threads=1, tokens=100)  # 2 s are decoded ahead: a unit
    first = extract(corpus, tiny_model, path, StoreSpec(OUTPUTS), tokens, Second())
    assert contents(path) == contents(written)
    assert seconds[0].pending_units > 0
    assert (
        f"left to other runs, the last of which completes it: {seconds[0].pending_units} unit" in seconds[0].to_text()
    )
    assert seconds[0].audio_seconds > 0
    assert first.pending_units == 0
    assert first.others_units > 0
    encoded = first.audio_seconds + sum(report.audio_seconds for report in seconds)
    assert encoded == pytest.approx(3 * (0.4 + 0.7 + 1.0 + 1.3))  # each recording once


def test_the_lock_file_of_a_dead_process_does_not_block(
    corpus: Path, tiny_model: Path, written: Path, tmp_path: Path
) -> None:
    path = Path(shutil.copytree(written, tmp_path / "s.zarr"))
    with Files(path).lock():
        (lock,) = set(contents(path)) - set(contents(written))
    assert contents(path) == contents(written)
    (path / lock).write_text("1\n")
    assert extract(corpus, tiny_model, path, StoreSpec(OUTPUTS)).resumed_units == 3
    assert contents(path) == contents(written)


def test_a_file_that_is_being_written_survives_a_sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that completes the store removes what it takes for a dead run's, while another does a unit once more."""
    files, sync, swept = Files(tmp_path / "s.zarr"), os.fsync, list[int]()

    def sweeping(fd: int) -> None:
        sync(fd)
        if not swept:
            swept.append(fd)
            files.sweep()

    files.write("units/0", b"before")
    monkeypatch.setattr(os, "fsync", sweeping)
    files.write("units/0", b"af", b"ter")
    assert contents(tmp_path) == {"s.zarr/units/0": b"after"}


def test_who_has_the_lock_is_told_once_to_whom_waits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("voxstrata.store.files._SILENT_SECONDS", 0.0)
    files, told = Files(tmp_path / "s.zarr"), list[str]()
    with ThreadPoolExecutor(1) as pool, files.lock():

        def wait() -> None:
            with patient_lock(files, told.append):
                told.append("its turn")

        waiting = pool.submit(wait)
        while not told:
            time.sleep(0.01)
        time.sleep(0.3)  # looks again
        assert not waiting.done()
        held = list(told)
    waiting.result()
    assert f"process {os.getpid()}" in held[0]
    assert told == [held[0], "its turn"]


# --- object stores ---


@pytest.fixture
def remote() -> Iterator[str]:
    yield "memory://voxstrata/s.zarr"
    fsspec.filesystem("memory").store.clear()


def test_an_object_store_holds_the_same_and_resumes(corpus: Path, tiny_model: Path, written: Path, remote: str) -> None:
    with pytest.raises(Stop):
        extract(corpus, tiny_model, remote, StoreSpec(OUTPUTS), Runtime(threads=1), StopAfter(2))
    assert not open_store(remote).complete
    report = extract(corpus, tiny_model, remote, StoreSpec(OUTPUTS))
    assert 1 <= report.resumed_units < 3
    files = fsspec.filesystem("memory")
    found = {p.removeprefix("/voxstrata/s.zarr/"): files.cat_file(p) for p in files.find("/voxstrata/s.zarr")}
    here = contents(written)
    ours, theirs = (json.loads(files.pop("zarr.json")) for files in (here, found))
    assert theirs["attributes"]["corpus_root"] == str(corpus)  # no way leads there from here
    for name in ("corpus_root", "voxstrata_checksum"):
        assert ours["attributes"].pop(name) != theirs["attributes"].pop(name)
    assert (found, theirs) == (here, ours)
    local, there = open_store(written), open_store(remote)
    np.testing.assert_array_equal(there.frames("fr/3", "final"), local.frames("fr/3", "final"))
    assert repr(there).startswith(f"<EmbeddingStore {remote}: 12 of 13 utterances")
    with pytest.raises(InputError, match="dtype is float16 there"):
        extract(corpus, tiny_model, remote, StoreSpec(OUTPUTS, dtype="float32"))


def test_a_file_url_is_a_local_store(corpus: Path, tiny_model: Path, written: Path, tmp_path: Path) -> None:
    extract(corpus, tiny_model, f"file://{tmp_path}/s.zarr", StoreSpec(OUTPUTS))
    assert contents(tmp_path / "s.zarr") == contents(written)


def test_an_unknown_protocol_is_an_input_error(corpus: Path, tiny_model: Path) -> None:
    with pytest.raises(InputError, match="nonsense://"):
        extract(corpus, tiny_model, "nonsense://bucket/s.zarr")


# --- a full disk ---


@pytest.mark.parametrize("writes", [0, 3, 12, 18, 20])
def test_a_full_disk_stops_the_run_and_a_resume_completes_it(
    corpus: Path, tiny_model: Path, written: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, writes: int
) -> None:
    path, room = tmp_path / "s.zarr", [writes]
    to_zarr, to_file = zarr.storage.LocalStore.set, Files.write

    def take() -> None:
        room[0] -= 1
        if room[0] < 0:
            raise OSError(errno.ENOSPC, "No space left on device")

    async def set_(self: Any, key: str, value: Any) -> None:
        take()
        await to_zarr(self, key, value)

    def write(self: Files, name: str, *parts: bytes) -> None:
        take()
        to_file(self, name, *parts)

    with monkeypatch.context() as patch:
        patch.setattr(zarr.storage.LocalStore, "set", set_)
        patch.setattr(Files, "write", write)
        with pytest.raises(InputError, match=r"s\.zarr: cannot write \(.*No space left.*run the same command"):
            extract(corpus, tiny_model, path, StoreSpec(OUTPUTS))
    markers = set(path.glob("units/*.json"))
    report = extract(corpus, tiny_model, path, StoreSpec(OUTPUTS))
    assert report.resumed_units == len(markers)
    assert contents(path) == contents(written)


def test_a_unit_without_its_marker_is_written_again(
    corpus: Path, tiny_model: Path, written: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = Path(shutil.copytree(written, tmp_path / "s.zarr"))
    (path / "units" / "000001.json").unlink()
    (path / "frames" / "final" / "c" / "1" / "0").write_bytes(b"half a shard")
    (path / "frames" / "final" / "c" / "1" / "0.0123456789abcdef.partial").write_bytes(b"left by a kill")
    encoded = []
    log_mel = CpuEncoder.log_mel
    monkeypatch.setattr(
        CpuEncoder, "log_mel", lambda self, audio, frames: encoded.extend(audio) or log_mel(self, audio, frames)
    )
    report = extract(corpus, tiny_model, path, StoreSpec(OUTPUTS))
    assert (report.resumed_units, len(encoded)) == (2, 4)
    assert contents(path) == contents(written)


def test_writers_refuse_by_themselves(corpus: Path, tiny_model: Path, written: Path, tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "notes").touch()
    with pytest.raises(InputError, match="not a voxstrata store"):
        StoreWriter(tmp_path / "x", None, open_model(tiny_model).card)  # type: ignore[arg-type]
