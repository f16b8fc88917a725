"""voxstrata demo"""

from pathlib import Path

import click

from voxstrata.cli import options
from voxstrata.cli.console import TerminalReporter, print_json
from voxstrata.cli.saying import say, say_wrapped


@click.command(short_help="The whole way once, on a small spoken corpus.")
@options.out("Folder to fill.", type=options.PATH, required=False, default=Path("demo"))
@click.option("--threads", type=options.COUNT, help="Threads. [default: all cores]")
@options.as_json
def demo(folder: Path, threads: int | None, as_json: bool) -> None:
    """The whole way once: speak a small parallel corpus, export an encoder, extract, retrieve.

    Works offline: without the hub, two small encoders of the package stand in for openai/whisper-tiny, one trained to
    transcribe, one to translate, too, and the demo says so. Without PyTorch their exported models are taken.

    \b
    Example:
      voxstrata demo -o demo
    """
    import matplotlib  # noqa: F401  (missing: say so before minutes of work, not after)

    from voxstrata.demo.run import run_demo

    with TerminalReporter(always=not as_json) as reporter:
        made = run_demo(folder, threads=threads, reporter=reporter)
    if as_json:
        about = {"out": str(folder), "made": made.made, "meaning": made.encoders.meaning}
        print_json({**about, "settings": made.retrieval.settings, "rows": made.retrieval.table.to_pylist()})
        return
    say(f"\n{made.retrieval}")
    say_wrapped(f"{made.encoders.meaning}\n")
    say(f"In {folder}:")
    for path, what in made.made.items():
        say_wrapped(f"  {path}: {what}", indent="    ")
