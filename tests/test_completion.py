"""Shells complete what may be typed: commands, options, their values, and paths."""

from __future__ import annotations

import shutil
import subprocess

import click
import pytest
from click.shell_completion import BashComplete, CompletionItem
from test_cli import run

from voxstrata.cli.app import main


def completed(*words: str) -> list[CompletionItem]:
    *before, incomplete = words
    return BashComplete(main, {}, "voxstrata", "_VOXSTRATA_COMPLETE").get_completions(before, incomplete)


def test_commands_options_and_values_are_completed() -> None:
    assert {"retrieve", "report"} <= {item.value for item in completed("re")}
    assert "--pool" in {item.value for item in completed("retrieve", "--po")}
    assert [item.value for item in completed("retrieve", "--pool", "sh")] == ["shared-first"]
    assert [item.value for item in completed("retrieve", "--negatives", "sound,le")] == ["sound,length"]
    assert [item.value for item in completed("bench", "base", "--device", "c")] == ["cpu", "cuda", "cuda:bfloat16"]
    # half a command is no error, even where an option stands twice
    assert completed("retrieve", "-o", "a", "-o", "b", "--po")


def commands() -> list[tuple[str, ...]]:
    with click.Context(main) as context:
        found = []
        for name in main.list_commands(context):
            command = main.get_command(context, name)
            nested = list(command.commands) if isinstance(command, click.Group) else []
            found += [(name, other) for other in nested] or [(name,)]
    return found


@pytest.mark.parametrize("command", commands(), ids=" ".join)
def test_the_first_argument_is_completed_as_a_path_unless_it_is_none(command: tuple[str, ...]) -> None:
    if command == ("demo",):
        return  # takes none
    found = completed(*command, "")
    if command == ("completion",):
        assert [item.value for item in found] == ["bash", "zsh", "fish"]
    else:
        assert {item.type for item in found} <= {"file", "dir"}
        assert found


@pytest.mark.parametrize("command", commands(), ids=" ".join)
def test_where_results_go_is_completed_as_a_path(command: tuple[str, ...]) -> None:
    with click.Context(main) as context:
        found = main.get_command(context, command[0])
        if isinstance(found, click.Group):
            found = found.commands[command[1]]
    assert found is not None
    if any("-o" in parameter.opts for parameter in found.params):
        assert {item.type for item in completed(*command, "-o", "")} <= {"file", "dir"}


def test_it_says_where_to_put_it_and_bash_takes_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("completion") == 0
    assert 'eval "$(voxstrata completion bash)"' in capsys.readouterr().out
    if shutil.which("bash") is None:
        pytest.skip("no bash")
    assert run("completion", "bash") == 0
    script = capsys.readouterr().out + "\ncomplete -p voxstrata\n"
    done = subprocess.run(["bash"], input=script, capture_output=True, text=True, check=True)
    assert "-F _voxstrata_completion voxstrata" in done.stdout
