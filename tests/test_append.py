"""Promises of append: a store grows to what extraction at once would have made, and a kill leaves what was there."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
import zarr
from conftest import sound
from kills import contents
from test_cli import run

from voxstrata.base.errors import InputError
from voxstrata.base.progress import Progress, Reporter
from voxstrata.corpus import Corpus, read_corpus
from voxstrata.engine import Runtime, extract
from voxstrata.engine.appending import append
from voxstrata.engine.run import prepare
from voxstrata.retrieval.all_pairs import similarity
from voxstrata.retrieval.selection import select
from voxstrata.store import EmbeddingStore, StoreSpec, open_store
from voxstrata.store.appender import StoreAppender
from voxstrata.store.files import Files
from voxstrata.store.relabel import relabel
from voxstrata.store.writer import StoreWriter

FRAMES = StoreSpec("layer_01,final")
SPECS = {"frames": FRAMES, "every": replace(FRAMES, every=5), "pooled": replace(FRAMES, pool="mean")}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    """Languages en, es, de, three recordings each, and two that cannot be read: en-bad and de-bad."""
    root = tmp_path_factory.mktemp("speech")
    rows = ["id\tpath\tlanguage\tgroup"]
    for k, language in enumerate(("en", "es", "de")):
        for i in range(3):
            name = f"{language}-{i}"
            soundfile.write(root / f"{name}.wav", sound(0.4 + 0.3 * i + 0.1 * k, 3 * k + i), 16_000)
            rows.append(f"{name}\t{name}.wav\t{language}\tg{i}")
    for language in ("en", "de"):
        (root / f"{language}-bad.wav").write_text("not audio")
        rows.append(f"{language}-bad\t{language}-bad.wav\t{language}\tg9")
    (root / "speech.tsv").write_text("\n".join(rows), encoding="utf-8")
    return read_corpus(root / "speech.tsv")


def part(corpus: Corpus, *names: str) -> Corpus:
    """The recordings whose ids begin with one of these."""
    return corpus.take([i for i, name in enumerate(corpus.table["id"].to_pylist()) if name.startswith(names)])


def assert_same(store: EmbeddingStore, whole: EmbeddingStore) -> None:
    """Byte-equal states of every utterance, and a table that is equal but for the order, and where the rows are."""
    assert sorted(store.ids) == sorted(whole.ids)
    assert store.complete
    assert store.outputs == whole.outputs
    for name in whole.ids:
        i, j = store.index(name), whole.index(name)
        assert store.status[i] == whole.status[j]
        assert store.length[i] == whole.length[j]
        if whole.status[j] == 1:
            for output in whole.outputs:
                states = [
                    s.pooled(output, [k]) if s.spec.pool else s.ragged(output, [k])[0]
                    for s, k in ((store, i), (whole, j))
                ]
                assert states[0].dtype == states[1].dtype
                np.testing.assert_array_equal(*states)
    tables = [s.utterances.drop(["row_start"]).sort_by("id") for s in (store, whole)]
    assert tables[0] == tables[1]


@pytest.mark.parametrize("kind", SPECS)
def test_append_makes_what_extraction_at_once_makes_but_for_the_order(
    corpus: Corpus, tiny_model: Path, tmp_path: Path, kind: str
) -> None:
    extract(corpus, tiny_model, tmp_path / "whole.zarr", SPECS[kind])
    extract(part(corpus, "en", "es-0"), tiny_model, tmp_path / "s.zarr", SPECS[kind])
    whole, before = open_store(tmp_path / "whole.zarr"), open_store(tmp_path / "s.zarr").ids
    old = contents(tmp_path / "s.zarr")
    report = append(tmp_path / "s.zarr", part(corpus, "de", "en"), tiny_model)
    assert (report.passed_over, report.utterances, report.failed) == (4, 4, 1)
    assert "not audio" in report.failures["de-bad"]
    append(tmp_path / "s.zarr", corpus, tiny_model)  # grown, given whole
    store = open_store(tmp_path / "s.zarr")
    assert_same(store, whole)
    assert store.ids[: len(before)] == before
    for output in whole.outputs:
        np.testing.assert_array_equal(
            store.pooled(output)[store.index("de-2")], whole.pooled(output)[whole.index("de-2")]
        )
    # no shard that was there is written again
    assert all(
        contents(tmp_path / "s.zarr")[name] == data
        for name, data in old.items()
        if "/c/" in name and name[:6] in ("frames", "pooled")
    )
    # without voxstrata
    group = zarr.open_group(tmp_path / "s.zarr", mode="r")
    table = pq.read_table(tmp_path / "s.zarr" / "utterances.parquet")
    assert table["status"].to_pylist() == store.utterances["status"].to_pylist()
    assert group["utterance"][:].tolist() == table["id"].to_pylist() == store.ids
    for row in table.to_pylist():
        if row["status"] == "done":
            rows = group[f"{store.spec.group}/final"][row["row_start"] : row["row_start"] + row["row_count"]]
            there = (
                store.pooled("final", [store.index(row["id"])]) if store.spec.pool else store.frames(row["id"], "final")
            )
            np.testing.assert_array_equal(rows, there)
    alone = zarr.open_group(tmp_path / "s.zarr", mode="r", use_consolidated=False)
    for name, array in group.arrays():
        np.testing.assert_array_equal(alone[name][:], array[:])
    assert alone[f"{store.spec.group}/final"].shape == group[f"{store.spec.group}/final"].shape


def test_units_of_an_appended_store_hold_every_done_utterance_once(
    corpus: Corpus, tiny_model: Path, tmp_path: Path
) -> None:
    extract(part(corpus, "en"), tiny_model, tmp_path / "s.zarr", FRAMES)
    append(tmp_path / "s.zarr", part(corpus, "de", "es"), tiny_model)
    store, seen = open_store(tmp_path / "s.zarr"), []
    for indices, rows, offsets in store.units("final"):
        for k, i in enumerate(indices):
            np.testing.assert_array_equal(rows[offsets[k] : offsets[k + 1]], store.frames(int(i), "final"))
        seen += indices.tolist()
    assert seen == np.flatnonzero(store.status == 1).tolist()
    assert len(seen) == 9


def test_xarray_opens_an_appended_store(corpus: Corpus, tiny_model: Path, tmp_path: Path) -> None:
    import xarray

    for kind in ("frames", "pooled"):
        path = tmp_path / f"{kind}.zarr"
        extract(part(corpus, "en"), tiny_model, path, SPECS[kind])
        append(path, part(corpus, "es"), tiny_model)
        store = open_store(path)
        with xarray.open_zarr(path) as root, xarray.open_zarr(path, group=kind) as states:
            assert root["utterance"].values.tolist() == store.ids
            start = int(root["start"].sel(utterance="es-1"))
            array = states["final"]
            assert array.dims == ("row", "d_model")
            length = int(root["length"].sel(utterance="es-1"))
            there = store.pooled("final", [store.index("es-1")]) if kind == "pooled" else store.frames("es-1", "final")
            np.testing.assert_array_equal(array[start : start + length].values, there)
        ours = store.to_xarray()["final"]
        if kind == "pooled":
            assert (ours.dims, ours.dtype) == (("utterance", "d_model"), np.float32)
            assert not ours.sel(utterance="en-bad").any()
            np.testing.assert_array_equal(ours.sel(utterance="es-1"), store.pooled("final", [store.index("es-1")])[0])


def test_the_first_extraction_still_resumes_and_mends_its_own(corpus: Corpus, tiny_model: Path, tmp_path: Path) -> None:
    path = tmp_path / "s.zarr"
    extract(part(corpus, "en", "es"), tiny_model, path, FRAMES)
    append(path, part(corpus, "de"), tiny_model)
    expected = contents(path)
    report = extract(part(corpus, "en", "es"), tiny_model, path, FRAMES)
    assert (report.utterances, report.resumed_units, report.units) == (7, 2, 2)
    assert contents(path) == expected
    (path / "frames/final/c/1/0").unlink()
    assert extract(part(corpus, "en", "es"), tiny_model, path, FRAMES).resumed_units == 1
    assert contents(path) == expected
    with pytest.raises(
        InputError, match=r"3 utterances were not in the corpus that made it, e.g. 'de-0'; `voxstrata append "
    ):
        extract(part(corpus, "en", "es", "de-0", "de-1", "de-2"), tiny_model, path, FRAMES)


def test_labels_change_before_and_after_an_append(corpus: Corpus, tiny_model: Path, tmp_path: Path) -> None:
    path = tmp_path / "s.zarr"
    extract(part(corpus, "en"), tiny_model, path, FRAMES)
    relabel(path, pa.table({"id": ["en-0"], "group": ["G0"], "mood": ["glad"]}))
    append(path, part(corpus, "es"), tiny_model)
    relabel(path, pa.table({"id": ["en-1", "es-1"], "group": ["G1", "G1"]}))
    append(path, part(corpus, "de"), tiny_model)
    extract(part(corpus, "en"), tiny_model, path, FRAMES)
    store = open_store(path)
    groups = dict(zip(store.ids, store.utterances["group"].to_pylist(), strict=True))
    assert {k: groups[k] for k in ("en-0", "en-1", "en-2", "es-0", "es-1", "de-1")} == {
        "en-0": "G0", "en-1": "G1", "en-2": "g2", "es-0": "g0", "es-1": "G1", "de-1": "g1",
    }  # fmt: skip
    assert [m for m in store.utterances["mood"].to_pylist() if m] == ["glad"]
    assert store.about["relabelled"] == 2


def test_paths_lead_from_the_first_corpus(corpus: Corpus, tiny_model: Path, tmp_path: Path) -> None:
    other = tmp_path / "elsewhere"
    other.mkdir()
    soundfile.write(other / "new.wav", sound(0.5, 99), 16_000)
    extract(part(corpus, "en"), tiny_model, tmp_path / "s.zarr", FRAMES)
    append(tmp_path / "s.zarr", other, tiny_model)
    attributes = zarr.open_group(tmp_path / "s.zarr", mode="r").attrs
    for row in open_store(tmp_path / "s.zarr").utterances.to_pylist():
        assert (tmp_path / "s.zarr" / str(attributes["corpus_root"]) / row["path"]).exists(), row["path"]


def test_a_whole_file_may_be_given_as_a_stretch_from_0_s(corpus: Corpus, tiny_model: Path, tmp_path: Path) -> None:
    path, whole = tmp_path / "s.zarr", part(corpus, "en-0", "en-1")
    extract(whole, tiny_model, path, FRAMES)
    table = whole.table.drop(["offset", "duration"])
    table = table.append_column("offset", pa.array([0.0, 0.0])).append_column("duration", pa.array([0.4, 0.7]))
    stated = Corpus(corpus.root, table)
    assert extract(stated, tiny_model, path, FRAMES).resumed_units == 1
    report = append(path, stated, tiny_model)
    assert (report.passed_over, report.utterances) == (2, 0)


class Warnings(Reporter):
    def __init__(self) -> None:
        self.warnings: list[str] = []

    def warn(self, text: str) -> None:
        self.warnings.append(text)


def test_what_failed_and_can_be_read_now_is_passed_over_and_said(
    corpus: Corpus, tiny_model: Path, tmp_path: Path
) -> None:
    shutil.copytree(corpus.root, tmp_path / "c")
    path, moved, heard = tmp_path / "s.zarr", read_corpus(tmp_path / "c" / "speech.tsv"), Warnings()
    extract(part(moved, "en"), tiny_model, path, FRAMES)
    shutil.copy(tmp_path / "c" / "en-0.wav", tmp_path / "c" / "en-bad.wav")
    report = append(path, part(moved, "en", "es"), tiny_model, reporter=heard)
    assert (report.passed_over, report.utterances) == (4, 3)
    (warning,) = heard.warnings
    assert "passed over: 1 recording that can be read now, e.g. 'en-bad'" in warning
    assert open_store(path).utterances["failure"][open_store(path).index("en-bad")].as_py() in warning


def test_results_of_what_was_there_before_an_append_go_on(corpus: Corpus, tiny_model: Path, tmp_path: Path) -> None:
    path, folder = tmp_path / "s.zarr", tmp_path / "pairs"
    extract(part(corpus, "en", "es"), tiny_model, path, FRAMES)

    def compare(languages: str) -> int:
        return similarity(select(open_store(path), languages), None, "final", folder, top=1).pairs

    assert compare("en") > 0
    append(path, part(corpus, "de"), tiny_model)
    assert compare("en") == 0
    first, added = (select(open_store(path), language).identity()["store"] for language in ("en", "de"))
    both = select(open_store(path)).identity()["store"]
    assert both == [first, added]
    assert first != added


# --- what is refused ---


def test_what_cannot_be_added_is_refused_before_any_encoding(
    corpus: Corpus, tiny_model: Path, uncondensed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "s.zarr"
    extract(part(corpus, "en"), tiny_model, path, FRAMES, Runtime(unit_megabytes=1))
    before = contents(path)
    other = corpus.root / "other.tsv"
    other.write_text("id\tpath\nen-1\tde-2.wav\nen-2\tde-0.wav\nnew\tde-1.wav\n", encoding="utf-8")
    with pytest.raises(
        InputError, match=r"other recordings under 2 of these ids, e.g. 'en-1': samples is 11200 there, 19200 here"
    ):
        append(path, other, tiny_model)
    with pytest.raises(InputError, match=r"cannot resume: .*silence.* there .* here"):
        append(path, part(corpus, "de"), uncondensed)
    with pytest.raises(InputError, match="no such file or folder; `voxstrata extract` makes one"):
        append(tmp_path / "none.zarr", part(corpus, "de"), tiny_model)
    with pytest.raises(InputError, match="no recording of 1 can be read"):
        append(path, part(corpus, "de-bad"), tiny_model)
    with Files(path).lock(), pytest.raises(InputError, match=r"another run .* is writing this store"):
        append(path, part(corpus, "de"), tiny_model)
    # 16384 rows of 20 ms are a unit of this store
    long = corpus.root / "long.wav"
    soundfile.write(long, np.zeros(16_384 * 320 + 1, np.float32), 16_000, subtype="PCM_16")
    table = pa.table({"id": ["long", "short"], "path": ["long.wav", "de-1.wav"]})
    with pytest.raises(InputError, match=r"1 recording is longer than the 327 s that a unit .*, e.g. 'long'; cut it"):
        append(path, Corpus(corpus.root, table), tiny_model)
    assert contents(path) == before


def test_a_store_that_is_not_finished_is_refused(
    corpus: Corpus, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "s.zarr"
    with pytest.raises(Killed):
        extract(part(corpus, "en", "es"), tiny_model, path, FRAMES, reporter=StopAfter(1))
    with pytest.raises(InputError, match="not finished; run its extraction to the end"):
        append(path, part(corpus, "de"), tiny_model)

    def killed(_: object) -> None:
        raise Killed

    with monkeypatch.context() as patch:  # all units are there, their status is not written yet
        patch.setattr(StoreWriter, "finish", killed)
        with pytest.raises(Killed):
            extract(part(corpus, "en", "es"), tiny_model, path, FRAMES)
    with pytest.raises(InputError, match="not finished; run its extraction to the end"):
        append(path, part(corpus, "de"), tiny_model)
    assert not (path / "appended").exists()
    extract(part(corpus, "en", "es"), tiny_model, path, FRAMES)
    append(path, part(corpus, "de"), tiny_model)
    assert (open_store(path).status > 0).all()


def test_nothing_new_is_nothing_to_do(
    corpus: Corpus, tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "s.zarr"
    extract(part(corpus, "en"), tiny_model, path, FRAMES)
    before = contents(path)
    report = append(path, part(corpus, "en"), tiny_model)
    assert report.to_text() == f"{path}: there already: 4 recordings, nothing is new"
    assert contents(path) == before
    assert run("append", path, corpus.root / "speech.tsv", tiny_model) == 4  # de-bad
    out, err = capsys.readouterr()
    assert f"{path}: there already: 4 recordings\n" in out
    assert "6 of 7 utterances in 2 units" in out
    assert "de-bad" in err
    assert run("append", path, corpus.root / "speech.tsv", tiny_model, "--json") == 0
    assert json.loads(capsys.readouterr().out)["passed_over"] == 11


# --- kills ---


class Killed(BaseException):
    """A process that ends: nothing catches it."""


def units_of(store: EmbeddingStore) -> list[list[int]]:
    """Utterances of each unit; of a pooled store none."""
    return [indices.tolist() for indices, *_ in store.units("final")] if store.has_frames else []


class StopAfter(Reporter):
    """Ends the process once so many units are encoded."""

    def __init__(self, units: int) -> None:
        self.units = units

    def progress(self, progress: Progress) -> None:
        if progress.stage == "extracting" and progress.done >= self.units:
            raise Killed


def kill_at(monkeypatch: pytest.MonkeyPatch, write: int) -> None:
    """End the process in its `write`-th write of a file, with half of it written."""
    count, whole, longer = 0, Files.write, StoreAppender._write_longer

    def counted() -> bool:
        nonlocal count
        count += 1
        return count == write

    def cut(self: Files, name: str, *parts: Any) -> None:
        if counted():
            assert self.local is not None
            target = self.local / f"{name}.partial"
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(b"".join(bytes(p) for p in parts)[:100])
            raise Killed
        whole(self, name, *parts)

    def cut_longer(self: StoreAppender, name: str, *args: Any) -> None:
        longer(self, name, *args)
        if counted():  # after it: the chunk is there, its metadata are not
            raise Killed

    monkeypatch.setattr(Files, "write", cut)
    monkeypatch.setattr(StoreAppender, "_write_longer", cut_longer)


@pytest.mark.long
@pytest.mark.parametrize(("kind", "second"), [("frames", False), ("pooled", True)])
def test_a_kill_at_any_write_leaves_the_store_as_it_was_and_the_same_command_goes_on(
    corpus: Corpus, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, second: bool
) -> None:
    def made(path: Path) -> Path:
        extract(part(corpus, "en"), tiny_model, path, SPECS[kind])
        if second:
            append(path, part(corpus, "es-0"), tiny_model)
        return path

    added, old, whole = part(corpus, "de", "es"), made(tmp_path / "old.zarr"), tmp_path / "whole.zarr"
    before = open_store(old)
    states, units = before.pooled("final"), units_of(before)
    append(shutil.copytree(old, whole), added, tiny_model)
    kills = 0
    for write in range(1, 100):
        path = Path(shutil.copytree(old, tmp_path / f"{write}.zarr"))
        with monkeypatch.context() as patch:
            kill_at(patch, write)
            try:
                append(path, added, tiny_model)
            except Killed:
                kills += 1
            else:
                break
        now = open_store(path)
        assert now.ids == before.ids
        assert now.complete
        assert now.utterances == before.utterances
        np.testing.assert_array_equal(now.pooled("final"), states)
        assert units_of(now) == units
        group = zarr.open_group(path, mode="r")
        assert group["status"].shape == (len(before),)
        assert group["utterance"][:].tolist() == before.ids
        assert (
            extract(part(corpus, "en"), tiny_model, path, SPECS[kind]).units == 1
        )  # the first command has nothing to do
        append(path, added, tiny_model)
        assert contents(path) == contents(whole)
    # plan; shards of 2 outputs and a marker for each unit; 4 arrays along the utterances, cut and whole; metadata of 6
    # and of their group; table; root
    assert kills == 1 + 3 * (2 if kind == "frames" else 1) + 2 * 4 + 7 + 2


def test_another_append_takes_the_place_of_one_without_a_unit_and_not_of_one_with_units(
    corpus: Corpus, tiny_model: Path, tmp_path: Path
) -> None:
    path = tmp_path / "s.zarr"
    extract(part(corpus, "en"), tiny_model, path, FRAMES)
    with pytest.raises(Killed):
        append(path, part(corpus, "de", "es"), tiny_model, reporter=StopAfter(1))
    assert list((path / "appended").iterdir()) == [path / "appended" / "0001.json"]
    while len(list((path / "units").iterdir())) < 2:  # the interrupt may come before the first is committed
        with pytest.raises(Killed):
            append(path, part(corpus, "de", "es"), tiny_model, reporter=StopAfter(1))
    with pytest.raises(
        InputError, match=r"an append of other recordings was begun .* remove appended/0001.json in the store"
    ):
        append(path, part(corpus, "es"), tiny_model)
    (path / "appended" / "0001.json").unlink()
    append(path, part(corpus, "es"), tiny_model)
    fresh = tmp_path / "fresh.zarr"
    extract(part(corpus, "en"), tiny_model, fresh, FRAMES)
    append(fresh, part(corpus, "es"), tiny_model)
    assert_same(open_store(path), open_store(fresh))


def test_a_run_that_ends_after_an_append_leaves_the_store_as_it_is(
    corpus: Corpus, tiny_model: Path, tmp_path: Path
) -> None:
    store = tmp_path / "s.zarr"
    extract(part(corpus, "en"), tiny_model, store, FRAMES)
    late = prepare(part(corpus, "en"), tiny_model, store, FRAMES)
    for language in ("es", "de"):  # the second writes chunks of the names that the extraction gave them
        append(store, part(corpus, language), tiny_model)
    before = contents(store)
    late.finish()
    assert contents(store) == before
