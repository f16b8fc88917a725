"""Promises of sharing: however many runs are at a store, and whichever die, its bytes are those of one run alone."""

from __future__ import annotations

import errno
import fcntl
import json
import multiprocessing
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from kills import PROCESSES, committed, contents, extract_part
from test_cli import run

from voxstrata.base.errors import InputError, UsageError
from voxstrata.base.progress import Progress, Reporter
from voxstrata.cluster.units import ExtractUnits
from voxstrata.corpus import read_corpus
from voxstrata.encoders import Device
from voxstrata.engine import Runtime, extract, planning
from voxstrata.engine import run as run_module
from voxstrata.engine.cpu_encoder import CpuEncoder
from voxstrata.engine.devices import extract_on
from voxstrata.engine.pipeline import UNITS_AHEAD, DecodeStage
from voxstrata.engine.run import open_run, prepare
from voxstrata.engine.tally import Tally
from voxstrata.store import StoreSpec, open_store
from voxstrata.store.claims import Claims
from voxstrata.store.files import Files
from voxstrata.store.part import Part

SETTINGS = (StoreSpec("layer_01,final"), Runtime(threads=1, tokens=1500))
LANGUAGES = ["ca", "de", "en", "es", "fi", "fr", "it", "nl", "pl", "pt"]  # a unit each


@pytest.fixture(scope="module")
def corpus(make_corpus: Callable[..., Path]) -> Path:
    root = make_corpus({f"{language}/{i}": 0.3 + 0.2 * i for language in LANGUAGES for i in range(6)})
    (root / "ca" / "bad.wav").write_text("not audio")
    return root


@pytest.fixture(scope="module")
def whole(corpus: Path, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What one run alone writes."""
    store = tmp_path_factory.mktemp("whole") / "s.zarr"
    extract(corpus, tiny_model, store, *SETTINGS)
    return contents(store)


def start(corpus: Path, model: Path, store: Path, part: Part) -> Any:
    child = PROCESSES.Process(target=extract_part, args=(corpus, model, store, SETTINGS, part))
    child.start()
    return child


# --- several runs at once ---


def test_four_parts_at_once_write_the_bytes_of_one_run(
    corpus: Path, tiny_model: Path, whole: dict[str, bytes], tmp_path: Path
) -> None:
    """None of them finds the store prepared."""
    children = [start(corpus, tiny_model, tmp_path / "s.zarr", Part(i, 4)) for i in (1, 2, 3, 4)]
    for child in children:
        child.join()
    assert [child.exitcode for child in children] == [0] * 4
    assert contents(tmp_path / "s.zarr") == whole


@pytest.mark.parametrize("seed", [0, 1])
def test_kills_among_parts_leave_no_trace(
    corpus: Path, tiny_model: Path, whole: dict[str, bytes], tmp_path: Path, seed: int
) -> None:
    rng, store = np.random.default_rng(seed), tmp_path / "s.zarr"
    parts = [Part(i, 3) for i in (1, 2, 3)]
    children, kills = [start(corpus, tiny_model, store, part) for part in parts], 0
    while kills < 5 and committed(store) < len(LANGUAGES):
        time.sleep(rng.uniform(0, 0.3))
        i = int(rng.integers(3))
        children[i].kill()
        children[i].join()
        kills += children[i].exitcode == -signal.SIGKILL
        children[i] = start(corpus, tiny_model, store, parts[i])
    for child in children:
        child.join()
        assert child.exitcode == 0
    assert kills
    extract(corpus, tiny_model, store, *SETTINGS)
    assert contents(store) == whole


def test_a_part_takes_what_no_other_has_begun(
    corpus: Path, tiny_model: Path, whole: dict[str, bytes], tmp_path: Path
) -> None:
    report = extract(corpus, tiny_model, tmp_path / "s.zarr", *SETTINGS, part=Part(7, 9))
    assert report.pending_units == report.others_units == report.resumed_units == 0
    assert contents(tmp_path / "s.zarr") == whole


def test_a_worker_begins_no_more_units_than_it_needs_to_stay_busy(
    corpus: Path, tiny_model: Path, tmp_path: Path
) -> None:
    """Whoever begins a unit keeps others from it: with small ones, audio that fits in memory would be most of them."""
    prepare(corpus, tiny_model, tmp_path / "s.zarr", *SETTINGS)
    run, begun = open_run(tmp_path / "s.zarr", tiny_model), list[int]()
    encoder = CpuEncoder(run.model, run.plan.spec, SETTINGS[1])
    units = (begun.append(unit) or unit for unit in run.order)
    with DecodeStage(run.plan, units, encoder) as decoding:
        assert len(begun) == UNITS_AHEAD
        asked = set[int]()
        for batch, _ in decoding:
            asked.add(batch.unit)
            assert len(begun) <= len(asked) + UNITS_AHEAD
    assert asked == set(begun) == set(run.order)


def test_a_part_begins_with_its_own_units(corpus: Path, tiny_model: Path, tmp_path: Path) -> None:
    prepared = prepare(corpus, tiny_model, tmp_path / "s.zarr", *SETTINGS)
    with Claims(prepared.writer.files) as others:
        held = prepared.order[4]
        others.take(held)
        given = list(prepared.claimed(Part(2, 4)))
    own = prepared.order[1::4]
    assert given[:3] == own
    assert sorted(given) == [unit for unit in sorted(prepared.order) if unit != held]


def test_a_part_ends_where_others_are_at_all_that_is_left(
    corpus: Path, tiny_model: Path, whole: dict[str, bytes], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store, options = tmp_path / "s.zarr", ("--outputs", "layer_01,final", "--threads", 1, "--tokens", 1500)
    command = ("extract", corpus, tiny_model, "-o", store, *options)
    assert run(*command, "--prepare") == 0
    assert f"{store}: prepared, 10 of 10 units to be done" in capsys.readouterr().out
    with Claims(Files(store)) as others:
        assert others.take(3)
        assert run(*command, "--part", "2/2") == 0  # nothing can be said of failures yet
        out = capsys.readouterr().out
        assert f"{store}: done: 9 of 10 units\n" in out
        assert "left to other runs, the last of which completes it: 1 unit" in out
        assert sorted(path.name for path in (store / "units").iterdir()) == [
            f"{i:06d}.json" for i in range(10) if i != 3
        ]
        assert not open_store(store).complete
        assert run("info", store) == 0
        out = capsys.readouterr().out
        assert f"missing          1 of 10 units: 3\n  at work          unit 3: process {os.getpid()} on " in out
        assert f"go on with       voxstrata extract CORPUS MODEL -o {store} --outputs layer_01,final\n" in out
    assert run("info", store, "--json") == 0
    missing = json.loads(capsys.readouterr().out)["missing"]
    assert (missing["units"], missing["ranges"], missing["claimed"]) == (1, "3", {})
    assert run(*command, "--part", "1/2") == 4
    assert contents(store) == whole
    capsys.readouterr()
    assert run("info", store, "--json") == 0
    assert json.loads(capsys.readouterr().out)["missing"] is None


def test_two_that_finish_at_once_write_the_same(
    corpus: Path, tiny_model: Path, whole: dict[str, bytes], tmp_path: Path
) -> None:
    store = tmp_path / "s.zarr"
    first = prepare(corpus, tiny_model, store, *SETTINGS)
    with pytest.raises(InputError, match=r"units/000000\.json: missing or damaged; run the same extraction again"):
        first.finish()
    first.work(first.encoder(SETTINGS[1]), first.claimed())
    runs = [open_run(store, tiny_model) for _ in range(4)]
    found: list[Any] = []
    threads = [threading.Thread(target=lambda r=r: found.extend(r.finish() for _ in range(5))) for r in runs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 20
    assert {str(each) for each in found} == {str(found[0])}
    assert contents(store) == whole


# --- prepared once ---


def test_headers_are_read_once_and_preparing_again_changes_nothing(
    corpus: Path, tiny_model: Path, whole: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, probed = tmp_path / "s.zarr", []
    probe = planning.probe_corpus
    monkeypatch.setattr(planning, "probe_corpus", lambda *args, **how: probed.append(1) or probe(*args, **how))
    assert prepare(corpus, tiny_model, store, *SETTINGS).pending() != []
    before = contents(store)
    again = prepare(corpus, tiny_model, store, *SETTINGS)
    assert contents(store) == before
    worker = open_run(store, tiny_model)
    assert worker.plan.utterances.select(["id", "path", "samples", "failure"]) == again.plan.utterances.select(
        ["id", "path", "samples", "failure"]
    )
    assert worker.plan.fingerprint() == again.plan.fingerprint() == open_store(store).about["plan"]
    encoder = worker.encoder(SETTINGS[1])
    units = [worker.extract_unit(unit, encoder) for unit in reversed(worker.pending())]
    assert [done.units for done in units] == [1] * 10
    assert worker.pending() == []
    worker.finish()
    assert contents(store) == whole
    assert probed == [1]


def test_who_comes_to_a_prepared_store_waits_for_nobody(
    corpus: Path, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = tmp_path / "s.zarr"
    prepare(corpus, tiny_model, store, *SETTINGS)
    monkeypatch.setattr(run_module, "patient_lock", lambda *_: pytest.fail("the lock is taken"))
    assert len(prepare(corpus, tiny_model, store, *SETTINGS).pending()) == 10


def test_what_a_worker_cannot_read_or_write_is_told_in_a_sentence(
    corpus: Path, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, write = tmp_path / "s.zarr", Files.write
    worker, pending = (
        ExtractUnits(store, tiny_model, SETTINGS[1]),
        prepare(corpus, tiny_model, store, *SETTINGS).pending(),
    )
    worker.work(pending[:1])

    def full(self: Files, name: str, *parts: bytes) -> None:
        if name.startswith("units/"):
            raise OSError(errno.ENOSPC, "no space left", name)
        write(self, name, *parts)

    with monkeypatch.context() as patch:
        patch.setattr(Files, "write", full)
        with pytest.raises(InputError, match=r"cannot write .*no space left"):
            worker.work(pending[1:2])
    (store / "zarr.json").write_text("{}")
    with pytest.raises(InputError, match="not a voxstrata store"):
        open_run(store, tiny_model)


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK])
def test_a_file_system_without_locks_is_refused(
    number: int, corpus: Path, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def flock(fd: int, how: int) -> None:
        raise OSError(number, os.strerror(number))

    elsewhere = prepare(corpus, tiny_model, tmp_path / "elsewhere.zarr", *SETTINGS)
    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.raises(InputError, match=r"no locks in this file system .*-o flock"):
        prepare(corpus, tiny_model, tmp_path / "s.zarr", *SETTINGS)
    assert not (tmp_path / "s.zarr").exists()
    with pytest.raises(InputError, match=r"elsewhere\.zarr: no locks in this file system .*-o flock"):
        next(elsewhere.claimed())


def test_a_worker_finds_a_corpus_that_moved_and_is_refused_another(
    corpus: Path, tiny_model: Path, uncondensed: Path, whole: dict[str, bytes], tmp_path: Path
) -> None:
    moved = Path(shutil.copytree(corpus, tmp_path / "c"))
    store = tmp_path / "s.zarr"
    with pytest.raises(InputError, match="not prepared yet"):
        open_run(store, tiny_model)
    prepare(moved, tiny_model, store, *SETTINGS)
    moved = moved.rename(tmp_path / "d")
    lost = open_run(store, tiny_model)
    with pytest.raises(InputError, match="c: no recording is there any more"):
        lost.work(lost.encoder(SETTINGS[1]), lost.claimed())
    with pytest.raises(InputError, match="another model: silence"):
        open_run(store, uncondensed)
    with pytest.raises(InputError, match=r"54 utterances are only in the store"):
        open_run(store, tiny_model, read_corpus(moved).take(range(7)))
    found = open_run(store, tiny_model, moved)
    found.work(found.encoder(SETTINGS[1]), found.claimed())
    found.finish()
    assert {n: d for n, d in contents(store).items() if n != "zarr.json"} == {
        n: d
        for n, d in whole.items()
        if n != "zarr.json"  # which says where the corpus was
    }


def test_a_store_of_an_older_version_is_resumed_with_its_corpus(
    corpus: Path, tiny_model: Path, whole: dict[str, bytes], tmp_path: Path
) -> None:
    store = tmp_path / "s.zarr"
    extract(corpus, tiny_model, store, *SETTINGS)
    (store / "probe.parquet").unlink()
    (store / "units" / "000004.json").unlink()
    with pytest.raises(InputError, match="begun by an older version; go on with `voxstrata extract`"):
        open_run(store, tiny_model)
    assert extract(corpus, tiny_model, store, *SETTINGS).resumed_units == 9
    assert contents(store) == {name: data for name, data in whole.items() if name != "probe.parquet"}


# --- Slurm ---


@pytest.mark.parametrize(
    ("environ", "part"),
    [
        ({}, None),
        ({"TASK_ID": "0", "TASK_MIN": "0", "TASK_STEP": "1", "TASK_COUNT": "4"}, Part(1, 4)),
        ({"TASK_ID": "4", "TASK_MIN": "1", "TASK_STEP": "1", "TASK_COUNT": "4"}, Part(4, 4)),
        ({"TASK_ID": "17", "TASK_MIN": "5", "TASK_STEP": "4", "TASK_COUNT": "4"}, Part(4, 4)),  # 5-17:4
        ({"TASK_ID": "9", "TASK_MIN": "1", "TASK_STEP": "1", "TASK_COUNT": "3"}, Part(3, 3)),  # 1,5,9
    ],
)
def test_a_task_of_a_slurm_array_has_the_part_of_its_place(environ: dict[str, str], part: Part | None) -> None:
    assert Part.of_slurm({f"SLURM_ARRAY_{name}": value for name, value in environ.items()}) == part


def test_with_ray_a_slurm_array_is_no_part(
    corpus: Path, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "1")
    monkeypatch.setenv("SLURM_ARRAY_TASK_COUNT", "2")
    extraction = ("extract", corpus, tiny_model, "-o", tmp_path / "s.zarr", "--ray=local", "--device", "cuda:1")
    comparison = ("similarity", tmp_path / "none.zarr", "-o", tmp_path / "pairs", "--outputs", "final", "--ray=local")
    for command, said in ((extraction, "Ray says which GPU"), (comparison, "none.zarr: no such file or folder")):
        run(*command)
        assert said in capsys.readouterr().err  # what is refused after the part
        assert run(*command, "--part", "1/2") == 2
        assert "leave out --part" in capsys.readouterr().err


def test_a_broken_slurm_variable_is_named_and_an_explicit_part_wins(
    corpus: Path, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "two")
    monkeypatch.setenv("SLURM_ARRAY_TASK_COUNT", "2")
    command = ("extract", corpus, tiny_model, "-o", tmp_path / "s.zarr", "--outputs", "final", "--prepare")
    assert run(*command) == 2
    assert "SLURM_ARRAY_TASK_ID=two SLURM_ARRAY_TASK_COUNT=2: no task of a Slurm array" in capsys.readouterr().err
    assert run(*command, "--part", "1/2") == 0
    for text in ("3/2", "0/2", "1", "1/0", "-1/2"):
        assert run(*command, "--part", text) == 2


# --- several devices ---


def test_devices_are_written_in_short() -> None:
    assert Device.parse_several("cuda:0,1,cuda:3") == [Device("cuda", 0), Device("cuda", 1), Device("cuda", 3)]
    assert Device.parse_several("cpu, cpu") == [Device(), Device()]
    assert Device.parse_several("tensorrt:2") == [Device("tensorrt", 2)]
    for text in ("cpu,1", "cuda:0,", "1,2", ""):
        with pytest.raises(UsageError, match="unknown device"):
            Device.parse_several(text)
    with pytest.raises(UsageError, match="devices of one kind"):
        Device.parse_several("cpu,cuda")


def test_two_processes_of_one_command_write_the_bytes_of_one_and_a_dead_one_is_made_up_for(
    corpus: Path, tiny_model: Path, whole: dict[str, bytes], tmp_path: Path
) -> None:
    class KillOne(Reporter):
        told: list[str]
        last: Progress | None = None

        def __init__(self) -> None:
            self.told = []

        def progress(self, progress: Progress) -> None:
            self.last = progress
            if progress.stage == "extracting" and not self.told:
                self.told.append("kill")
                child = multiprocessing.active_children()[0]
                assert child.pid is not None
                os.kill(child.pid, signal.SIGKILL)

        def warn(self, text: str) -> None:
            self.told.append(text)

    store, reporter = tmp_path / "s.zarr", KillOne()
    report = extract_on([Device(), Device()], corpus, tiny_model, store, *SETTINGS, reporter)
    assert reporter.told == ["kill", "the process on cpu failed: killed by signal 9; the others take its units"]
    assert (report.pending_units, report.failed) == (0, 1)
    assert report.audio_seconds > 0
    assert contents(store) == whole


def test_the_command_takes_several_devices_and_says_what_ended_them(
    corpus: Path, tiny_model: Path, huge: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = tmp_path / "s.zarr"
    assert run("extract", corpus, huge, "-o", store, "--outputs", "final", "--device", "cpu,cpu", "--no-fsync") == 3
    error = capsys.readouterr().err
    assert error.count("the process on cpu failed: ") == 2
    assert "units are not done: " in error
    assert "final reaches beyond float16" in error
    assert run("extract", corpus, tiny_model, "-o", store, "--device", "cpu,cpu", "--efficiency") == 2


def test_a_unit_that_was_done_here_and_by_another_run_counts_once(
    corpus: Path, tiny_model: Path, tmp_path: Path
) -> None:
    told: list[Progress] = []

    class Told(Reporter):
        def progress(self, progress: Progress) -> None:
            told.append(progress)

    run = prepare(corpus, tiny_model, tmp_path / "s.zarr", *SETTINGS)
    run._tally = Tally(run.writer, run.model)
    another = open_run(tmp_path / "s.zarr", tiny_model)
    encoder = run.encoder(SETTINGS[1])
    another.work(encoder, run.order[:2])
    run._tally.tell(Told(), look=True)
    assert (told[-1].done, told[-1].total) == (2, len(LANGUAGES))
    run.work(encoder, run.order[:3], Told())
    assert told[-1].done == 3
    assert told[-1].work == pytest.approx(run._tally._samples_of(run.order[:3]) / 16_000)
    run.work(encoder, run.order[:3], Told())  # once more, which changes nothing
    assert told[-1].done == 3
