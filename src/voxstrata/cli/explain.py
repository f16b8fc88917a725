"""voxstrata explain"""

from pathlib import Path

import click

import voxstrata as vs
from voxstrata.cli import options
from voxstrata.cli.console import TerminalReporter, save_and_print
from voxstrata.cli.corpora import refuse_swapped_store


@click.command(short_help="Why two utterances match, frame by frame.")
@click.argument("store", type=click.Path())
@click.argument("a")
@click.argument("b")
@options.outputs
@options.out("Folder for picture, tables and cosines.")
@click.option(
    "--words",
    type=options.PATH,
    help="Table (.tsv, .csv, .jsonl, .parquet) of when words are spoken: id, word, begin, end in seconds.",
)
@options.overwrite
@options.as_json
def explain(
    store: str, a: str, b: str, outputs: str, folder: Path, words: Path | None, overwrite: bool, as_json: bool
) -> None:
    """Why utterances A and B of STORE match: their frame × frame cosines, and the maxima that SeqSim averages; where B
    ranks for A among all of B's language, and which one is ahead of it.

    Writes explain.png and explain.md to read; explain.parquet, precision, recall and F1; maxima.parquet, for every
    frame when and how well it is matched; explain.npz, the cosines of every output.

    \b
    Example:
      voxstrata explain speech.zarr en-7 es-7 --outputs layer_06,final -o why
    """
    from voxstrata.studies.explain.result import Explanation

    refuse_swapped_store(store, a, b)
    Explanation.refuse_earlier(folder, overwrite)
    with TerminalReporter() as reporter:
        result = vs.explain(vs.open_store(store), a, b, outputs, words, reporter)
        save_and_print(result, folder, as_json, reporter, store=store)
