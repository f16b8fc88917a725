"""voxstrata demo"""

from __future__ import annotations

import shutil
from pathlib import Path

import click

from voxstrata.cli.console import Line, TerminalReporter, count_progress, steps
from voxstrata.cli.retrieve import write_retrieval


@click.command(short_help="The whole way once, on a small spoken corpus.")
@click.option(
    "-o",
    "--output",
    "folder",
    type=click.Path(path_type=Path),
    default=Path("demo"),
    show_default=True,
    help="Folder to fill.",
)
@click.option("--threads", type=click.IntRange(min=1), help="Threads. [default: all cores]")
def demo(folder: Path, threads: int | None) -> None:
    """The whole way once: speak a small parallel corpus, export an encoder, extract, retrieve.

    Works offline: without the hub, a random-weight encoder stands in for openai/whisper-tiny, and the demo says so.

    \b
    Example:
      voxstrata demo -o demo
    """
    from voxstrata.base.errors import InputError
    from voxstrata.demo.corpus import write_demo_corpus
    from voxstrata.demo.encoder import LANGUAGES, find_encoder
    from voxstrata.engine import Runtime, extract
    from voxstrata.exporters import export
    from voxstrata.store import StoreSpec, open_store
    from voxstrata.studies.retrieve import to_terminal

    marker = folder / ".voxstrata-demo"
    if folder.exists() and any(folder.iterdir()) and not marker.exists():
        raise InputError(f"{folder}: holds something else; choose another folder with -o")
    folder.mkdir(parents=True, exist_ok=True)
    marker.touch()
    for made in ("corpus", "random-weight-encoder", "model", "demo.zarr", "results"):  # by an earlier demo
        if (folder / made).exists():
            shutil.rmtree(folder / made)
    with Line() as line, TerminalReporter() as reporter:
        say = steps(line, always=True)
        say(f"speaking 40 sentences in {len(LANGUAGES)} languages, two voices each")
        manifest = write_demo_corpus(folder / "corpus", languages=LANGUAGES)
        say("looking for an encoder")
        encoder = find_encoder(folder, say)
        say(encoder.meaning)
        export(encoder.checkpoint, folder / "model", say=say)
        say("extracting every layer of every utterance, the means of two frames each (40 ms)")
        report = extract(
            manifest,
            folder / "model",
            folder / "demo.zarr",
            StoreSpec(every=2),  # a quarter of the retrieval's work: the whole way is to take two minutes, not three
            Runtime(threads=threads),
            reporter,
        )
        rate = report.audio_seconds / report.seconds
        say(f"{report.audio_seconds / 60:.0f} minutes of speech: {rate:.0f} audio-hours per hour")
        say("retrieving translations, layer by layer")
        store = open_store(folder / "demo.zarr")
        table = write_retrieval(store, folder / "results", progress=count_progress(line, "language pairs × outputs"))
        say("done")
    click.echo("\n" + to_terminal(table))
    click.echo(encoder.meaning + "\n")
    for path, what in (
        ("results/recall_by_layer.png", "recall by layer"),
        ("results/languages.png", "recall for every pair of languages"),
        ("results/retrieval.parquet", "every figure, tidy"),
        ("demo.zarr", "the embeddings; `voxstrata info` describes them"),
        ("model", "the exported encoder"),
        ("corpus", "the speech"),
    ):
        click.echo(f"  {folder / path}: {what}")
