"""The command `voxstrata`: its commands, and how errors become messages and exit codes."""

import os
import shlex
import sys
from collections import Counter
from collections.abc import Sequence
from difflib import get_close_matches
from importlib import import_module
from importlib.metadata import version
from typing import Any, NoReturn

import click

from voxstrata.base.progress import PROGRESS, PROGRESS_KINDS
from voxstrata.cli.failing import DEBUG, tell, value_of
from voxstrata.cli.stopping import stopped_code

_COMMANDS = (
    "export", "bench", "plan", "extract", "info", "verify", "relabel", "append", "spans", "convert", "retrieve",
    "similarity", "mine", "explain", "drift", "phonetics", "align", "words", "early-exit", "report", "demo",
    "completion",
)  # fmt: skip


def _refuse_repeated(command: click.Command, ctx: click.Context, args: Sequence[str]) -> None:
    """Raises UsageError for an option of one value that is given twice: click would take the last without a word."""
    _, _, order = command.make_parser(ctx).parse_args(args=list(args))
    for parameter, times in Counter(order).items():
        if times > 1 and isinstance(parameter, click.Option) and not (parameter.multiple or parameter.is_flag):
            raise click.UsageError(f"{max(parameter.opts, key=len)} is given {times} times; give it once", ctx)


def _takes(command: click.Command | None, option: str) -> bool:
    """Whether a command has an option, or one of those that it groups."""
    if isinstance(command, click.Group):
        return any(_takes(each, option) for each in command.commands.values())
    return command is not None and any(option in (*each.opts, *each.secondary_opts) for each in command.params)


def _refuse_tilde(ctx: click.Context, args: Sequence[str]) -> None:
    """Raises UsageError for a path whose ~ the shell left as it is, as in `--out=~/store`: it would be a folder."""
    for value in map(value_of, args):
        path = os.path.expanduser(value)
        if path != value and not os.path.exists(value):
            raise click.UsageError(f"{value}: the shell left ~ as it is; give {shlex.quote(path)}", ctx)


_THREADS = ("OMP_NUM_THREADS", "NUMBA_NUM_THREADS")
_SETTINGS = {"help_option_names": ["-h", "--help"], "max_content_width": 110, "show_default": True}


class _Lazy(click.Group):
    """Imports a command's module only when it is asked for: `--help` must not wait for torch."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in _COMMANDS:
            return None
        module = name.replace("-", "_")
        command = getattr(import_module(f"voxstrata.cli.{module}"), module)
        if stopped_code():  # an import that goes on after an interrupt
            raise KeyboardInterrupt
        assert isinstance(command, click.Command)
        for each in (command, *(command.commands.values() if isinstance(command, click.Group) else ())):
            if not any(option.name == "quiet" for option in each.params) and not isinstance(each, click.Group):
                each.params.append(_quiet_option())
        return command

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if not ctx.resilient_parsing:  # a shell that completes has not all of it yet
            try:
                _refuse_repeated(self, ctx, args)
            except click.NoSuchOption as e:
                for name in _COMMANDS:
                    if name in args and _takes(self.get_command(ctx, name), e.option_name):
                        why = f"write {e.option_name} behind the command: voxstrata {name} … {e.option_name}"
                        raise click.UsageError(why, ctx) from e
                raise
        return super().parse_args(ctx, args)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        try:
            found = name, command, rest = super().resolve_command(ctx, args)
        except click.UsageError as e:
            if near := get_close_matches(args[0], _COMMANDS, 1):
                raise click.UsageError(f"{e.message} Did you mean {near[0]!r}?", ctx) from e
            raise
        if ctx.resilient_parsing:
            return found
        while isinstance(command, click.Group) and rest:
            ctx, (name, *rest) = click.Context(command, info_name=name, parent=ctx), rest
            command = command.get_command(ctx, name)
        if command is not None:
            ctx = click.Context(command, info_name=name, parent=ctx)
            try:
                _refuse_repeated(command, ctx, rest)
            except click.NoSuchOption as e:
                if any(e.option_name in option.opts for option in self.params):
                    why = f"write {e.option_name} before the command: voxstrata {e.option_name} … {args[0]} …"
                    raise click.UsageError(why, ctx) from e
                raise
            _refuse_tilde(ctx, rest)
        return found

    def main(self, args: Sequence[str] | None = None, **options: Any) -> NoReturn:  # type: ignore[override]
        """Run a command and exit, with the codes that `--help` lists."""
        typed = sys.argv[1:] if args is None else list(args)
        before = {name: os.environ.get(name) for name in (DEBUG, PROGRESS, *_THREADS)}
        try:
            result = super().main(args, **{**options, "standalone_mode": False})
            code = result if isinstance(result, int) else 0
        except Exception as e:
            code = tell(e, typed)
        except KeyboardInterrupt as e:
            code = tell(e)
        finally:  # what --debug, --progress and --threads changed
            for name, value in before.items():
                os.environ.pop(name, None)
                os.environ.update({} if value is None else {name: value})
        sys.exit(code)


def _debug(ctx: click.Context, option: click.Parameter, value: bool) -> None:
    if value:
        os.environ[DEBUG] = "1"  # processes that are started know it, too


def _progress(ctx: click.Context, option: click.Parameter, value: str | None) -> None:
    if value is not None:
        os.environ[PROGRESS] = value


def _quiet_option() -> click.Option:
    """Of every command."""
    return click.Option(
        ["--quiet", "-q"], is_flag=True, expose_value=False, callback=_quiet,
        help="Show no progress: results, warnings and errors alone.",
    )  # fmt: skip


def _quiet(ctx: click.Context, option: click.Parameter, value: bool) -> None:
    if value:
        os.environ[PROGRESS] = "none"


@click.group(cls=_Lazy, context_settings=_SETTINGS)
@click.version_option(version("voxstrata"), prog_name="voxstrata")
@click.option(
    "--debug", is_flag=True, is_eager=True, expose_value=False, callback=_debug,
    help=f"Show tracebacks of errors; {DEBUG}=1 does the same for every command.",
)  # fmt: skip
@click.option(
    "--progress", type=click.Choice(PROGRESS_KINDS), is_eager=True, expose_value=False, callback=_progress,
    help=f"How progress is shown: a line that is rewritten (bar), a line a minute (log), or none, as `--quiet` "
    f"behind a command. auto is bar on a terminal, else log. {PROGRESS} asks for the same. [default: auto]",
)  # fmt: skip
def main() -> None:
    """Per-layer speech-encoder embeddings at corpus scale, and cross-lingual retrieval on them.

    \b
    voxstrata export openai/whisper-base -o base        a checkpoint becomes an ONNX model
    voxstrata extract speech.tsv base -o speech.zarr    a corpus becomes a store of embeddings
    voxstrata retrieve speech.zarr -o results           the store becomes tables and pictures

    Exit codes: 0 done, 2 wrong usage, 3 unusable input, 4 done but some recordings failed, 70 an error that nobody
    foresaw, 130 interrupted, 143 terminated.
    """
