"""voxstrata demo"""

from pathlib import Path

import click

from voxstrata.cli import options
from voxstrata.cli.console import TerminalReporter
from voxstrata.cli.saying import say


@click.command(short_help="The whole way once, on a small spoken corpus.")
@options.out("Folder to fill.", type=options.PATH, required=False, default=Path("demo"))
@click.option("--threads", type=options.COUNT, help="Threads. [default: all cores]")
def demo(folder: Path, threads: int | None) -> None:
    """The whole way once: speak a small parallel corpus, export an encoder, extract, retrieve.

    Works offline: without the hub, a random-weight encoder stands in for openai/whisper-tiny, and the demo says so.

    \b
    Example:
      voxstrata demo -o demo
    """
    import matplotlib  # noqa: F401  (missing: say so before minutes of work, not after)

    from voxstrata.demo.run import MADE, run_demo

    with TerminalReporter(always=True) as reporter:
        made = run_demo(folder, threads=threads, reporter=reporter)
    say(f"\n{made.retrieval}\n{made.encoder.meaning}\n")
    for path, what in MADE.items():
        say(f"  {folder / path}: {what}")
