"""voxstrata relabel"""

from pathlib import Path

import click

import voxstrata as vs
from voxstrata.cli import options
from voxstrata.cli.console import print_json
from voxstrata.cli.corpora import refuse_swapped_store
from voxstrata.cli.saying import say_wrapped


@click.command(short_help="Change a store's texts, languages, groups, speakers.")
@click.argument("store", type=click.Path())
@click.argument("manifest", type=options.PLACE)
@click.option(
    "--columns",
    metavar="WHAT=NAME,…",
    callback=lambda _, __, text: options.column_names(text),
    help="What a table's columns are, e.g. text=sentence,language=lang. [default: by their names]",
)
@options.as_json
def relabel(store: str, manifest: Path, columns: dict[str, str], as_json: bool) -> None:
    """Change labels of STORE's utterances to those of MANIFEST, without encoding anything again.

    MANIFEST is a table (.tsv, .csv, .jsonl, .parquet) with a column id and those that are to change: language, group,
    text, speaker, or columns of your own. A table with paths is read as `voxstrata extract` does. Utterances and
    columns that it does not name stay as they are. An empty value empties the label. Recordings need not be there. What
    is replaced is kept in STORE/history.

    \b
    Example:
      voxstrata relabel speech.zarr corrected.tsv
    """
    refuse_swapped_store(store, manifest)
    report = vs.relabel(store, manifest, columns=columns)
    if as_json:
        print_json(report.to_dict())
    else:
        say_wrapped(report.to_text(), indent="  ")
