"""Options that all commands share: who has which, and that they do what they say."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from test_cli import Terminal, run

import voxstrata as vs
from voxstrata.base.showing import TerminalReporter
from voxstrata.cli.app import main
from voxstrata.retrieval.kernels.float32 import thread_count

# What has no such option, and why.
WITHOUT = {
    "json": {"completion"},  # prints a shell's own language
    "overwrite": {
        "extract", "spans",  # resume what is there, and refuse another
        "report",  # a page, made of results that stay
        "demo",  # replaces what an earlier demo left, and nothing else
    },
    "threads": {
        "info", "verify", "relabel", "convert", "spans", "report", "completion",  # read and write
        "explain",  # one pair
        "export", "early-exit write",  # PyTorch once, by OMP_NUM_THREADS
    },
}  # fmt: skip


def every_command() -> Iterator[tuple[str, click.Command]]:
    with click.Context(main) as context:
        for name in main.list_commands(context):
            command = main.get_command(context, name)
            assert command is not None
            if isinstance(command, click.Group):
                yield from ((f"{name} {other}", found) for other, found in command.commands.items())
            else:
                yield name, command


def names(command: click.Command) -> set[str]:
    return {text.lstrip("-") for p in command.params if isinstance(p, click.Option) for text in p.opts}


def test_every_command_has_the_options_that_make_sense() -> None:
    having = {name: names(command) for name, command in every_command()}
    assert len(having) > 20
    for option, without in WITHOUT.items():
        of = {name for name, found in having.items() if option != "overwrite" or {"o", "out"} <= found}
        assert {name for name in of if option not in having[name]} == without & of, option
    assert [name for name, found in having.items() if not {"quiet", "q"} <= found] == []
    assert [name for name, found in having.items() if ("out" in found) != ("o" in found)] == []


def test_no_help_names_a_number_that_nobody_asks_for() -> None:
    for name, command in every_command():
        with click.Context(main) as parent, click.Context(command, info_name=name, parent=parent) as context:
            assert "2147483648" not in command.get_help(context), name


def test_too_large_a_number_is_refused_all_the_same(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("demo", "-o", tmp_path / "d", "--threads", str(1 << 40)) == 2
    assert "--threads" in capsys.readouterr().err


def _reporting(asked: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> str:
    """What a command that works long writes to a terminal."""
    stream = Terminal()

    def verify(*_: object, reporter: vs.Reporter, **__: object) -> None:
        with TerminalReporter(stream=stream) as shown:
            shown.step("reading")
            shown.progress(vs.Progress("verifying", 1, 2))
            shown.warn("mind this")
        raise vs.InputError("enough")

    monkeypatch.setattr(vs, "verify", verify)
    assert run("verify", "s.zarr", *asked) == 3
    return stream.getvalue()


def test_quiet_leaves_warnings_and_errors_alone(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("VOXSTRATA_PROGRESS", raising=False)
    assert "reading" in _reporting((), monkeypatch)
    assert _reporting(("--quiet",), monkeypatch) == "mind this\n"
    assert _reporting(("-q",), monkeypatch) == "mind this\n"
    assert capsys.readouterr().err.count("error: enough") == 3
    assert "VOXSTRATA_PROGRESS" not in os.environ  # the next command of this process is as it was


def test_json_to_a_pipe_comes_without_a_log_unless_one_is_asked_for(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen = []

    def verify(*_: object, **__: object) -> None:
        seen.append(os.environ.get("VOXSTRATA_PROGRESS"))
        raise vs.InputError("enough")

    monkeypatch.setattr(vs, "verify", verify)
    monkeypatch.delenv("VOXSTRATA_PROGRESS", raising=False)
    monkeypatch.setattr("sys.stderr", io.StringIO())
    run("verify", "s.zarr", "--json")
    run("--progress", "log", "verify", "s.zarr", "--json")
    monkeypatch.setattr("sys.stderr", Terminal())
    run("verify", "s.zarr", "--json")
    assert seen == ["none", "log", None]


def test_threads_are_those_of_the_kernels_while_the_command_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    monkeypatch.setenv("NUMBA_NUM_THREADS", "8")
    seen = []
    monkeypatch.setattr(vs, "select", lambda *_: seen.append(thread_count()))
    monkeypatch.setattr("voxstrata.retrieval.finished.is_similarity", lambda _: False)
    monkeypatch.setattr(vs, "open_store", lambda _: None)
    monkeypatch.setattr("voxstrata.cli.mine.print_left_out", lambda _: None)
    run("mine", "s.zarr", "-o", "m", "--threads", "3")
    assert seen
    assert seen[0] == 3
    assert thread_count() == 8


@pytest.mark.parametrize("name", ["cuda", "cuda:1", "cpu"])
def test_a_devices_name_does_wherever_a_device_is_asked_for(name: str) -> None:
    device = vs.Device.parse(name)
    assert vs.Runtime(name) == vs.Runtime(device=device) == vs.Runtime(vs.Device(name))
    assert vs.Runtime(name).device == device
    assert hash(vs.Runtime(name)) == hash(vs.Runtime(device))


def test_an_unknown_device_is_refused_wherever_it_is_named() -> None:
    for make in (vs.Runtime, vs.Device, vs.Device.parse):
        with pytest.raises(vs.UsageError, match="unknown device 'gpu'; choose cpu, cuda"):
            make("gpu")
