"""voxstrata explain"""

from __future__ import annotations

from pathlib import Path

import click

from voxstrata.cli.console import json_option, print_json
from voxstrata.cli.options import names, outputs_option


@click.command(short_help="Why two utterances match, frame by frame.")
@click.argument("store")
@click.argument("a")
@click.argument("b")
@outputs_option
@click.option(
    "-o",
    "--out",
    "folder",
    required=True,
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder for picture, tables and cosines; an earlier result there is replaced.",
)
@click.option(
    "--words",
    type=click.Path(path_type=Path),
    help="Table (.tsv, .csv, .jsonl, .parquet) of when words are spoken: id, word, begin, end in seconds.",
)
@json_option
def explain(store: str, a: str, b: str, outputs: str, folder: Path, words: Path | None, as_json: bool) -> None:
    """Why utterances A and B of STORE match: their frame × frame cosines, and the maxima that SeqSim averages.

    Writes explain.png and explain.md to read; explain.parquet, precision, recall and F1; maxima.parquet, for every
    frame when and how well it is matched; explain.npz, the cosines of every output.

    \b
    Example:
      voxstrata explain speech.zarr en-7 es-7 --outputs layer_06,final -o why
    """
    from voxstrata.store import open_store
    from voxstrata.studies.explain.measure import explain as run

    chosen = None if outputs == "all" else names(outputs)
    result = run(open_store(store), a, b, chosen, words)
    written = result.save(folder)
    if as_json:
        print_json({"store": store, "results": str(folder), "rows": result.table.to_pylist()})
    else:
        click.echo(result)
        click.echo(f"\n{folder}: {', '.join(path.name for path in written)}")
