"""Promises of checksums: damage is told by name, never returned as data, and mended by `verify --repair` and a run."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zarr
from conftest import Heard
from kills import contents
from stores import Utterance, make_store, without_checksums
from test_cli import run

import voxstrata as vs
from voxstrata.base.errors import UnreachableError
from voxstrata.store import EmbeddingStore, StoreSpec
from voxstrata.store.files import Files

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

D = 8
FRAMES, POOLED = StoreSpec(("final",), dtype="float16"), StoreSpec(("final",), pool="mean")


def utterances(seed: int) -> dict[str, Utterance]:
    """Six in each of two languages, of the same lengths for each seed; together several chunks."""
    rng = np.random.default_rng(seed)
    return {
        f"{language}{i}-{seed}": Utterance(rng.standard_normal((20 + 7 * i, D)).astype(np.float16), language, f"g{i}")
        for language in ("en", "es")
        for i in range(6)
    }


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """frames.zarr and pooled.zarr, and other.zarr, other-pooled.zarr of other utterances with the same shapes."""
    desk = tmp_path_factory.mktemp("whole")
    for seed, names in ((0, ("frames", "pooled")), (1, ("other", "other-pooled"))):
        for name, spec in zip(names, (FRAMES, POOLED), strict=True):
            make_store(desk / f"{name}.zarr", utterances(seed), spec=spec)
    return desk


@pytest.fixture
def store(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole / "frames.zarr", tmp_path / "s.zarr"))


def flip(path: Path, at: int = -20) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 4
    path.write_bytes(data)


# --- what is found ---


def test_a_store_that_is_whole_is_sound(whole: Path) -> None:
    for name in ("frames", "pooled"):
        heard = Heard()
        report = vs.verify(whole / f"{name}.zarr", reporter=heard)
        units = 2 if name == "frames" else 1
        assert (report.sound, report.units, report.pending, report.checksums) == (True, units, 0, True)
        shards = [p for p in (whole / f"{name}.zarr" / name).rglob("c/*/*") if p.is_file()]
        assert report.bytes == sum(p.stat().st_size for p in shards)
        assert [p.done for p in heard.heard] == list(range(1, units + 1))
        assert heard.heard[-1].share == 1


@pytest.mark.parametrize("spec", [FRAMES, POOLED])
def test_random_damage_is_found_and_mended_byte_for_byte(spec: StoreSpec, whole: Path, tmp_path: Path) -> None:
    from flips import harmed

    name = "pooled" if spec.pool else "frames"
    other = whole / ("other-pooled.zarr" if spec.pool else "other.zarr")

    def mend(path: Path) -> None:
        make_store(path, utterances(0), spec=spec)

    assert harmed(whole / f"{name}.zarr", other, tmp_path / "c.zarr", mend, 20, 5, "file") == 0


def test_a_damaged_chunk_costs_the_utterances_in_it_and_is_named_by_them(store: Path) -> None:
    flip(store / "frames" / "final" / "c" / "1" / "0", 3)
    opened = vs.open_store(store)
    assert opened.frames("en5-0", "final").any()
    with pytest.raises(vs.InputError, match=r"final/c/1/0: damaged, the checksum of its rows 0 to \d+ is wrong"):
        opened.frames("es5-0", "final")
    (damage,) = vs.verify(store).damages
    assert (damage.unit, damage.file) == (1, "frames/final/c/1/0")
    assert set(damage.utterances) == {f"es{i}-0" for i in range(6)}  # all lie in its one chunk
    assert run("verify", str(store)) == 3


# but for `status`: without it a store is one whose run has not finished, and the same extraction completes it
@pytest.mark.parametrize("name", ["start", "length", "utterance"])
def test_an_array_along_the_utterances_that_is_gone_is_found_and_mended(name: str, store: Path) -> None:
    chunk = store / name / "c" / "0"
    before = chunk.read_bytes()
    chunk.unlink()
    assert vs.verify(store, repair=True).mended
    assert chunk.read_bytes() == before
    assert not vs.verify(store).damages


def test_a_status_that_is_gone_makes_nothing_pending_that_failed_before(tmp_path: Path) -> None:
    spoken = {**utterances(0), "none": Utterance(np.zeros((0, D), np.float16))}
    store = tmp_path / "s.zarr"
    assert make_store(store, spoken, spec=FRAMES).status.tolist() == [1] * 12 + [2]
    before = contents(store)
    (store / "status" / "c" / "0").unlink()
    with pytest.raises(vs.InputError, match=r"status: damaged, or not of this plan; run `voxstrata verify"):
        _ = vs.open_store(store).status
    assert vs.verify(store, repair=True).mended
    make_store(store, spoken, spec=FRAMES)
    assert contents(store) == before


def test_another_units_shard_is_found(store: Path) -> None:
    shards = [store / "frames" / "final" / "c" / str(k) / "0" for k in (0, 1)]
    shutil.copy(shards[0], shards[1])
    assert [d.what for d in vs.verify(store).damages] == ["of another unit or store"]


def test_a_run_that_is_not_finished_is_pending_not_damaged(store: Path) -> None:
    vs.verify(store)
    (store / "units" / "000001.json").unlink()
    zarr.open_group(store, mode="r+")["status"][:] = np.zeros(12, np.uint8)
    report = vs.verify(store)
    assert (report.sound, report.pending) == (True, 1)


@pytest.mark.parametrize("repair", [False, True])
def test_a_unit_that_is_committed_meanwhile_is_not_damaged(store: Path, repair: bool) -> None:
    zarr.open_group(store, mode="r+")["status"][:] = np.zeros(12, np.uint8)
    marker = (store / "units" / "000001.json").read_bytes()
    (store / "units" / "000001.json").unlink()

    class Commits(vs.Reporter):
        def progress(self, progress: vs.Progress) -> None:
            (store / "units" / "000001.json").write_bytes(marker)

    report = vs.verify(store, repair=repair, reporter=Commits())
    assert (report.sound, report.pending) == (True, 0)
    assert (store / "units" / "000001.json").exists()


@pytest.mark.parametrize("gone", ["units/000001.json", "utterances.parquet", "probe.parquet", "zarr.json", "plan.json"])
def test_an_outage_is_no_damage(gone: str, store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before, read = contents(store), Files.read

    def answers(self: Files, name: str) -> bytes:
        if name == gone:
            raise UnreachableError(f"{name}: no answer")
        return read(self, name)

    monkeypatch.setattr(Files, "read", answers)
    with pytest.raises(UnreachableError):
        vs.verify(store, repair=True)
    assert contents(store) == before


def test_a_copy_by_other_tools_is_verified_through_its_codecs(store: Path, tmp_path: Path) -> None:
    rows = zarr.open_group(store, mode="r")["frames/final"][:]
    root = zarr.open_group(store, mode="r+", use_consolidated=False)
    root.create_array("frames/final", data=rows, chunks=(64, D), overwrite=True)
    about = json.loads((store / "zarr.json").read_text())
    (store / "zarr.json").write_text(json.dumps({**about, "consolidated_metadata": None}))
    report = vs.verify(store)
    assert report.sound, report.to_text()
    rows[0, 0] += 1
    root["frames/final"][:] = rows
    assert [d.what for d in vs.verify(store).damages] == ["of another unit or store"]


def test_a_store_without_checksums_opens_resumes_and_says_so(store: Path) -> None:
    expected = {name: vs.open_store(store).frames(name, "final") for name in utterances(0)}
    without_checksums(store)
    for _ in range(2):
        opened = vs.open_store(store)
        for name, frames in expected.items():
            np.testing.assert_array_equal(opened.frames(name, "final"), frames)
        report = vs.verify(store)
        assert (report.damages, report.checksums) == ((), False)
        assert "no checksums" in report.to_text()
        (store / "units" / "000001.json").unlink()
        make_store(store, utterances(0), spec=FRAMES)
    before = (store / "units" / "000000.json").read_text()
    assert json.loads(before) == {"unit": 0, "failed": {}, "overflows": 0}
    data = (store / "frames" / "final" / "c" / "1" / "0").read_bytes()
    (store / "frames" / "final" / "c" / "1" / "0").write_bytes(data[:-5])
    assert [d.unit for d in vs.verify(store).damages] == [1]


# --- what readers say ---


def _cut(name: str) -> Callable[[Path], None]:
    return lambda store: (store / name).write_bytes((store / name).read_bytes()[:100])


def _emptied(name: str) -> Callable[[Path], None]:
    return lambda store: (store / name).write_bytes(b"")


def _gone(name: str) -> Callable[[Path], None]:
    return lambda store: shutil.rmtree(store / name) if (store / name).is_dir() else (store / name).unlink()


def _flipped(name: str) -> Callable[[Path], None]:
    return lambda store: flip(store / name, len((store / name).read_bytes()) // 2)


def _value(name: str, at: int, value: int) -> Callable[[Path], None]:
    """In a store without checksums."""

    def change(store: Path) -> None:
        without_checksums(store)
        zarr.open_group(store, mode="r+")[name][at] = value

    return change


def _changed_attribute(store: Path) -> None:
    text = (store / "zarr.json").read_text()
    (store / "zarr.json").write_text(text.replace("bucketed", "bucketee"))


# what is done to a store, and the file that errors name
DAMAGES: dict[str, tuple[Callable[[Path], None], str]] = {
    "a cut table": (_cut("utterances.parquet"), "utterances.parquet"),
    "no table": (_gone("utterances.parquet"), "utterances.parquet"),
    "an empty table": (_emptied("utterances.parquet"), "utterances.parquet"),
    "a bit of the table": (_flipped("utterances.parquet"), "utterances.parquet"),
    "an empty length": (_emptied("length/c/0"), "length"),
    "a bit of length": (_flipped("length/c/0"), "length"),
    "a bit of start": (_flipped("start/c/0"), "start"),
    "no start": (_gone("start/c"), "start"),
    "no array start": (_gone("start"), "start"),
    "a status of 200": (_value("status", 3, 200), "status"),
    "another status": (_value("status", 3, 2), "utterances.parquet"),
    "a huge length": (_value("length", 2, 1 << 30), "length"),
    "a negative length": (_value("length", 2, -5), "length"),
    "another start": (_value("start", 2, 7), "start"),
    "no plan": (_emptied("plan.json"), "plan.json"),
    "a bit of the plan": (_flipped("plan.json"), "plan.json"),
    "a bit of the attributes": (_changed_attribute, "zarr.json"),
    "no output": (_gone("frames/final/zarr.json"), "frames/final"),
}
STRANGERS = ("utterances.parquet", "plan.json", "start/c/0", "length/c/0", "zarr.json")


def readings(store: Path, desk: Path) -> dict[str, Callable[[], Any]]:
    """Everything that reads a store."""
    relabelled = pa.table({"id": ["en0-0", "en0-1"], "text": ["x", "x"]})

    def opened() -> EmbeddingStore:
        return vs.open_store(store)

    found = {
        "frames": lambda: opened().frames("en2-0", "final"),
        "ragged": lambda: opened().ragged("final", [0, 1, 2, 3]) and opened().utterances,
        "pooled": lambda: opened().pooled("final") is not None and opened().utterances,
        "to_xarray": lambda: opened().to_xarray(),
        "retrieve": lambda: vs.retrieve(opened()),
        "similarity": lambda: vs.similarity(vs.select(opened(), "en"), None, "final", desk / "similar"),
        "convert": lambda: vs.convert(store, desk / "converted", "npy"),
        "relabel": lambda: vs.relabel(store, relabelled),
    }
    if pytest.importorskip("torch"):
        found["to_torch"] = lambda: opened().to_torch("final")[0]
    return found


@pytest.mark.parametrize("damage", DAMAGES)
def test_every_reader_names_the_file_that_is_damaged(
    damage: str, store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    harm, file = DAMAGES[damage]
    harm(store)
    for name, read in readings(store, tmp_path).items():
        with pytest.raises(vs.InputError, match=file) as error:
            read()
        assert str(store) in str(error.value), name
    for command in (["info", str(store)], ["convert", str(store), "--to", "npy", "-o", str(tmp_path / "x")]):
        assert run(*command) == 3
        assert file in capsys.readouterr().err
    assert not vs.verify(store).sound


@pytest.mark.parametrize("file", STRANGERS)
def test_every_reader_refuses_files_of_another_store(file: str, store: Path, whole: Path, tmp_path: Path) -> None:
    shutil.copy(whole / "other.zarr" / file, store / file)
    if (store / file).read_bytes() == (whole / "frames.zarr" / file).read_bytes():
        return  # the same lengths
    for read in readings(store, tmp_path).values():
        with pytest.raises(vs.InputError):
            read()
    assert not vs.verify(store).sound


def test_labels_that_changed_are_checked_too(store: Path, tmp_path: Path) -> None:
    vs.relabel(store, pa.table({"id": ["en0-0"], "text": ["first"]}))
    vs.relabel(store, pa.table({"id": ["en0-0", "en1-0"], "text": ["second", "x"], "mood": ["glad", None]}))
    assert vs.verify(store).sound
    expected = contents(store)
    flip(store / "utterances.parquet", 900)
    assert vs.verify(store, repair=True).mended
    make_store(store, utterances(0), spec=FRAMES)
    assert contents(store) == expected
    flip(store / "history" / "0001.parquet", 300)
    (damage,) = vs.verify(store).damages
    assert damage.file == "history/0001.parquet"


# --- repair ---


def test_what_verify_repairs_can_be_read_but_for_what_is_lost(store: Path) -> None:
    expected = contents(store)
    flip(store / "frames" / "final" / "c" / "1" / "0", 3)
    flip(store / "status" / "c" / "0", 1)
    report = vs.verify(store, repair=True)
    assert report.mended
    opened = vs.open_store(store)
    assert opened.frames("en5-0", "final").any()
    with pytest.raises(vs.UsageError, match="'es5-0' is pending; run the extraction to its end"):
        opened.frames("es5-0", "final")
    assert pq.read_table(store / "utterances.parquet")["status"].to_pylist() == ["done"] * 6 + ["pending"] * 6
    assert vs.verify(store).sound
    make_store(store, utterances(0), spec=FRAMES)
    assert contents(store) == expected


def test_what_is_no_store_is_refused(tmp_path: Path) -> None:
    for path, said in ((tmp_path, "not a voxstrata store"), (tmp_path / "none", "no such file or folder")):
        for repair in (False, True):
            with pytest.raises(vs.InputError, match=said):
                vs.verify(path, repair=repair)
    assert not any(tmp_path.iterdir())


def test_an_object_store_is_verified_and_repaired(store: Path) -> None:
    import fsspec

    memory = fsspec.filesystem("memory")
    memory.put(str(store), "/verified.zarr", recursive=True)
    assert vs.verify("memory://verified.zarr").sound
    shard = bytearray(memory.cat_file("/verified.zarr/frames/final/c/1/0"))
    shard[5] ^= 1
    memory.pipe_file("/verified.zarr/frames/final/c/1/0", bytes(shard))
    with pytest.raises(vs.InputError, match="frames/final/c/1/0: damaged"):
        vs.open_store("memory://verified.zarr").frames("es0-0", "final")
    assert [d.unit for d in vs.verify("memory://verified.zarr", repair=True).damages] == [1]
    assert vs.open_store("memory://verified.zarr").status.tolist() == [1] * 6 + [0] * 6
    memory.rm("/verified.zarr/frames/final/c/0/0")
    with pytest.raises(vs.InputError, match="frames/final/c/0/0: missing"):
        vs.open_store("memory://verified.zarr").frames("en0-0", "final")


def test_the_command_prints_json_and_ends_with_3_where_there_is_damage(
    store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("verify", str(store), "--json") == 0
    assert json.loads(capsys.readouterr().out)["sound"]
    (store / "units" / "000000.json").unlink()
    assert run("verify", str(store), "--repair", "--json") == 3
    printed = json.loads(capsys.readouterr().out)
    assert (printed["mended"], [d["unit"] for d in printed["damages"]]) == (True, [0])
    assert run("verify", str(store)) == 0
