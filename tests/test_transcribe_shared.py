"""Several runs over one sweep, kills and power cuts among them, leave the results of one undisturbed run."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_cli import run
from test_transcribe_resume import OPTIONS, RESULTS, heard, no_picture, write_speech
from transcribers import heard as said

pytest.importorskip("torch")
pytest.importorskip("jiwer")

from voxstrata.audio.decode import AudioInfo
from voxstrata.early_exit import decoder, decoding, states
from voxstrata.early_exit.exits import EarlyExit
from voxstrata.early_exit.journal import open_journal
from voxstrata.early_exit.result import EarlyExits
from voxstrata.store.claims import Claims
from voxstrata.store.files import Files

__all__ = ["heard", "no_picture"]  # fixtures

TEXTS = 8 * 2


@pytest.fixture(autouse=True)
def impatience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoding, "_LOOK_AGAIN", 0.05)


Command = tuple[object, ...]


@pytest.fixture(scope="module")
def command(tiny_transcriber: Path, tmp_path_factory: pytest.TempPathFactory) -> Command:
    speech = write_speech(tmp_path_factory.mktemp("speech"))
    return ("early-exit", "sweep", tiny_transcriber, speech, *OPTIONS)


@pytest.fixture(scope="module")
def undisturbed(command: Command, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(EarlyExits, "figures", lambda _: {})
        for module in (states, decoder):
            patch.setattr(module, "perf_counter", lambda: 0.0)
        assert run(*command, "-o", folder) == 4
    assert sorted(p.name for p in folder.iterdir()) == sorted((*RESULTS, "transcripts.jsonl"))
    return folder


@pytest.fixture
def whole(undisturbed: Path, tmp_path: Path) -> dict[str, bytes]:
    """The files of one undisturbed run, of which there is a copy in `whole`."""
    shutil.copytree(undisturbed, tmp_path / "whole")
    return results(undisturbed)


def header(whole: dict[str, bytes]) -> bytes:
    """What a run of these settings writes before all else."""
    return whole["transcripts.jsonl"].splitlines(keepends=True)[0]


def results(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_part_takes_its_own_batches_then_those_of_others_and_ends_where_they_are_in_work(
    command: Command, whole: dict[str, bytes], tmp_path: Path, heard: list[int],
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    out = tmp_path / "out"
    heard.clear()
    with Claims(Files(out)) as other:
        assert other.take(1)
        # that makes the folder: as another run of these settings leaves it
        (out / "transcripts.jsonl").write_bytes(header(whole))
        assert run(*command, "-o", out, "--part", "2/2") == 0
        assert "other runs have batches in work" in capsys.readouterr().out
        assert sum(heard) == TEXTS - 2 * 2
        assert not (out / "early_exit.md").exists()
        assert run(*command, "-o", out, "--part", "2/2", "--json") == 0
        assert json.loads(capsys.readouterr().out)["out"] is None
    heard.clear()
    assert run(*command, "-o", out, "--part", "1/2") == 4
    assert sum(heard) == 2 * 2
    assert results(out) == whole


def test_a_run_without_a_part_takes_over_what_another_leaves(
    command: Command, whole: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, other, looks = tmp_path / "out", Claims(Files(tmp_path / "out")), 0
    assert other.take(3)
    (out / "transcripts.jsonl").write_bytes(header(whole))

    def sleep(seconds: float) -> None:
        nonlocal looks
        looks += 1
        if looks == 2:
            other.drop(3)

    monkeypatch.setattr(decoding.time, "sleep", sleep)
    assert run(*command, "-o", out) == 4
    assert looks == 2
    assert results(out) == whole


def test_a_slurm_task_is_a_part(
    command: Command, whole: dict[str, bytes], tmp_path: Path, heard: list[int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    out = tmp_path / "out"
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "3")
    monkeypatch.setenv("SLURM_ARRAY_TASK_COUNT", "4")
    heard.clear()
    with Claims(Files(out)) as other:
        assert all(map(other.take, (0, 1, 2)))
        (out / "transcripts.jsonl").write_bytes(header(whole))
        assert run(*command, "-o", out) == 0
    assert sum(heard) == 2 * 2


def _sweep(command: tuple[str, ...], part: str | None) -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    os.dup2(1, 2)
    EarlyExits.figures = lambda _: {}  # type: ignore[method-assign]
    states.perf_counter = decoder.perf_counter = lambda: 0.0  # type: ignore[assignment]
    os._exit(run(*command, *([] if part is None else ["--part", part])))


@pytest.mark.long
def test_four_parts_at_once_and_kills_among_them_give_the_results_of_one_run(
    command: Command, whole: dict[str, bytes], tmp_path: Path
) -> None:
    processes = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload(["voxstrata.early_exit.sweeping", "test_cli"])
    out, rng, kills = tmp_path / "out", np.random.default_rng(0), 0

    def started(i: int) -> Any:
        arguments = (*map(str, command), "-o", str(out))
        child = processes.Process(target=_sweep, args=(arguments, f"{i + 1}/4"))
        child.start()
        return child

    running = [started(i) for i in range(4)]
    while kills < 2 and any(child.exitcode is None for child in running):
        if list(out.glob("lots/*")):
            i = int(rng.integers(4))
            running[i].kill()
            running[i].join()
            kills += running[i].exitcode == -signal.SIGKILL
            running[i] = started(i)
        time.sleep(float(rng.uniform(0, 0.5)))
    for child in running:
        child.join()
        assert child.exitcode in (0, 4)
    assert kills
    assert run(*command, "-o", out) == 4
    assert results(out) == whole


GARBAGE: dict[str, Callable[[bytes], bytes]] = {
    "half a line": lambda data: data[:-20],
    "zeros": lambda data: data + bytes(5000),
    "a line cut by zeros": lambda data: data[:-20] + bytes(20),
    "noise": lambda data: data[:-20] + b"\xff\n\x00{\n]" + bytes(range(256)),
    "zeros alone": lambda data: bytes(len(data)),
    "nothing": lambda data: b"",
}


@pytest.mark.parametrize("how", GARBAGE)
@pytest.mark.parametrize("where", ["transcripts.jsonl", "lots/000002.0123.jsonl"])
def test_an_end_that_a_power_cut_garbled_is_dropped(
    command: Command, whole: dict[str, bytes], tmp_path: Path, how: str, where: str
) -> None:
    out = tmp_path / "whole"
    for name in whole:
        (out / name).unlink()
    (out / "lots").mkdir()
    if where != "transcripts.jsonl":
        (out / "transcripts.jsonl").write_bytes(header(whole))
    (out / where).write_bytes(GARBAGE[how](whole["transcripts.jsonl"]))
    assert run(*command, "-o", out) == 4
    assert results(out) == whole


def test_damage_in_the_middle_is_named_by_its_line(
    command: Command, whole: dict[str, bytes], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "whole" / "transcripts.jsonl"
    lines = whole["transcripts.jsonl"].splitlines(keepends=True)
    for damaged in (bytes(30) + b"\n", lines[4].replace(b'"after": 3', b'"after": 1'), b"\n", b'{"id": "en0"}\n'):
        changed = b"".join([*lines[:4], damaged, *lines[5:]])
        path.write_bytes(changed)
        assert run(*command, "-o", tmp_path / "whole") == 3
        assert "transcripts.jsonl: line 5 is damaged" in capsys.readouterr().err
        assert path.read_bytes() == changed
    path.write_bytes(b"".join([*lines[:4], *lines[5:]]))  # as the message says
    assert run(*command, "-o", tmp_path / "whole") == 4
    assert results(tmp_path / "whole") == whole


def test_a_folder_that_the_version_before_began_goes_on(
    command: Command, whole: dict[str, bytes], tmp_path: Path, heard: list[int]
) -> None:
    """Lines without checksums, in the order in which they came, the last cut by a kill."""
    lines = []
    for line in whole["transcripts.jsonl"].splitlines():
        entry = json.loads(line)
        del entry["crc32"]
        lines.append(json.dumps(entry, ensure_ascii=False).encode() + b"\n")
    out = tmp_path / "old"
    out.mkdir()
    (out / "transcripts.jsonl").write_bytes(b"".join([lines[0], *lines[:6:-1]])[:-7])
    heard.clear()
    assert run(*command, "-o", out) == 4
    assert 0 < sum(heard) < TEXTS
    assert results(out) == whole


def test_a_recording_that_fails_is_tried_once_by_runs_at_work_and_again_by_a_later_one(
    command: Command, whole: dict[str, bytes], tmp_path: Path, heard: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    out, right, fail = tmp_path / "out", decoding.prompt, True

    def failing(settings: Any, token: str | None, task: str) -> Any:
        start = right(settings, token, task)
        return ("no token",) if fail and token == "<|es|>" else start

    monkeypatch.setattr(decoding, "prompt", failing)
    with Claims(Files(out)) as other:
        assert other.take(0)
        (out / "transcripts.jsonl").write_bytes(header(whole))
        assert run(*command, "-o", out, "--part", "1/2") == 0
    lines = [json.loads(line) for path in out.glob("lots/*.jsonl") for line in path.read_bytes().splitlines()[1:]]
    assert {line["id"] for line in lines if "failure" in line} == {"es0", "es1", "es2", "es3"}
    fail = False
    heard.clear()
    assert run(*command, "-o", out) == 4
    assert sum(heard) == TEXTS - 2 * 2  # all but the batch of en that was done
    assert results(out) == whole


@pytest.mark.parametrize("more", [0, 1])
def test_where_locks_hold_on_one_machine_alone_no_transcript_is_lost(
    more: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    info, at = AudioInfo(1600, 16_000, 1600, 1, 44), EarlyExit(1, "without")
    names = [f"r{i}" for i in range(3 + more)]
    with open_journal(tmp_path, {"model": "m"}) as here:
        with here.claim(0) as mine:
            assert mine
            for name in names[:2]:
                here.add(name, info, at, *said(f"text of {name}"))
            with monkeypatch.context() as patch:
                patch.setattr(Claims, "take", lambda *_: True)  # on another machine, nothing is known of our claims
                with open_journal(tmp_path, {"model": "m"}) as there:
                    assert there.resumed == 2
            assert not (tmp_path / "lots").exists()
            for name in names[2:]:
                here.add(name, info, at, *said(f"text of {name}"))
        # as after a kill: what is on the disk alone
        shutil.copytree(tmp_path, tmp_path / "copy")
        with open_journal(tmp_path / "copy", {"model": "m"}) as left:
            assert tuple(left.find(name, info, at) for name in names) == said(*(f"text of {name}" for name in names))
            assert left.failure("r0", info) is None


def test_a_file_that_has_grown_since_it_was_read_is_not_put_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    info, at = AudioInfo(1600, 16_000, 1600, 1, 44), EarlyExit(1, "without")
    with open_journal(tmp_path, {"model": "m"}) as here, here.claim(0):
        here.add("a", info, at, *said("first"))
        write = Files.write

        def writing(self: Files, name: str, *parts: bytes) -> None:
            write(self, name, *parts)
            if name == "transcripts.jsonl":  # what was read until then is in it
                here.add("b", info, at, *said("second"))

        with monkeypatch.context() as patch:
            patch.setattr(Claims, "take", lambda *_: True)
            patch.setattr(Files, "write", writing)
            with open_journal(tmp_path, {"model": "m"}):
                pass
        assert len(list((tmp_path / "lots").iterdir())) == 1
