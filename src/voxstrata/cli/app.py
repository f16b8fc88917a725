"""The command `voxstrata`: its commands, and how errors become messages and exit codes."""

import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.metadata import version
from typing import Any, NoReturn

import click

from voxstrata.base.errors import VoxstrataError

INTERRUPTED = 130
_COMMANDS = (
    "export", "bench", "plan", "extract", "info", "verify", "relabel", "append", "convert", "retrieve", "similarity",
    "explain", "drift", "phonetics", "align", "words", "early-exit", "report", "demo",
)  # fmt: skip


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
        assert isinstance(command, click.Command)
        return command

    def main(self, args: Sequence[str] | None = None, **options: Any) -> NoReturn:  # type: ignore[override]
        """Run a command and exit: 0 done, 2 usage, 3 input, 4 done but for some recordings, 130 interrupted."""
        try:
            result = super().main(args, **{**options, "standalone_mode": False})
        except click.ClickException as e:
            e.show()
            sys.exit(e.exit_code)
        except (KeyboardInterrupt, click.Abort) as e:
            hint = str(e.__cause__ or e)  # click makes an Abort of an interrupt
            click.echo("interrupted" + (f": {hint}" if hint else ""), err=True)
            sys.exit(INTERRUPTED)
        except VoxstrataError as e:
            click.echo(f"error: {e}", err=True)
            sys.exit(e.exit_code)
        except OSError as e:  # a full disk, a folder that may not be written: the message names the file
            click.echo(f"error: {e}", err=True)
            sys.exit(3)
        except ModuleNotFoundError as e:
            extra = {"torch": "export", "transformers": "export", "onnx": "export", "safetensors": "export"}
            extra |= {"matplotlib": "plot", "espeakng_loader": "demo", "jiwer": "asr", "ray": "ray"}
            name = (e.name or "").split(".")[0]
            if name not in extra:
                raise
            click.echo(f"error: {name} is not installed; pip install 'voxstrata[{extra[name]}]'", err=True)
            sys.exit(3)
        sys.exit(result if isinstance(result, int) else 0)


@click.group(cls=_Lazy, context_settings=_SETTINGS)
@click.version_option(version("voxstrata"), prog_name="voxstrata")
def main() -> None:
    """Per-layer speech-encoder embeddings at corpus scale, and cross-lingual retrieval on them.

    \b
    voxstrata export openai/whisper-base -o base        a checkpoint becomes an ONNX model
    voxstrata extract speech.tsv base -o speech.zarr    a corpus becomes a store of embeddings
    voxstrata retrieve speech.zarr -o results           the store becomes tables and pictures

    Exit codes: 0 done, 2 wrong usage, 3 unusable input, 4 done but some recordings failed, 130 interrupted.
    """
