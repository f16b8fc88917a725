"""voxstrata align"""

from __future__ import annotations

from pathlib import Path

import click

from voxstrata.cli.console import TerminalReporter, json_option, print_json, print_left_out
from voxstrata.cli.options import bootstrap_option, outputs_option


@click.command(short_help="Retrieval where sound, duration, speaker cannot help.")
@click.argument("store")
@click.option("--phonetics", required=True, help="Folder that `voxstrata phonetics` wrote for the store's corpus.")
@click.option(
    "-o",
    "--out",
    "folder",
    required=True,
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder for align.parquet, align.md, align.png and align.pdf; what an earlier run left there is replaced.",
)
@outputs_option
@click.option("--languages", help="Languages to take, e.g. en,es. [default: all]")
@click.option(
    "--similarity",
    type=click.Choice(["seqsim_f1", "pooled_cosine"]),
    help="The score that ranks the candidates. [default: seqsim_f1; pooled_cosine where the store is pooled]",
)
@click.option(
    "--by",
    type=click.Choice(["like-length", "sentence", "word"]),
    default="like-length",
    show_default=True,
    help="What a pair's phonetic distance is set beside: that of non-translations of like length, or of all "
    "non-translations (sentence), or the same by the closest pair of words.",
)
@click.option(
    "--quantile",
    type=click.FloatRange(0, 1),
    default=0.5,
    show_default=True,
    help="A pair sounds unlike when at least this share of the non-translations sounds closer.",
)
@click.option(
    "--closest",
    type=click.IntRange(min=1),
    default=9,
    show_default=True,
    help="Hard negatives of a pool: the non-translations that sound closest to the query.",
)
@bootstrap_option("groups")
@json_option
def align(
    store: str,
    phonetics: str,
    folder: Path,
    outputs: str,
    languages: str | None,
    similarity: str | None,
    by: str,
    quantile: float,
    closest: int,
    bootstrap: int,
    as_json: bool,
) -> None:
    """Retrieval where sound, duration, speaker and language cannot help, for every output in STORE.

    recall@1 is measured on all pairs; on pairs that sound no closer than non-translations; among hard negatives, the
    non-translations that sound closest; and with the means of speaker and language removed. Retrievers that see
    phonemes or durations alone stand beside it. A logistic regression says how much closeness in sound helps.

    \b
    Example:
      voxstrata phonetics speech.tsv -o phonetics
      voxstrata align speech.zarr --phonetics phonetics -o aligned
    """
    from voxstrata.store import open_store
    from voxstrata.studies.align.measure import AlignOptions
    from voxstrata.studies.align.measure import align as run
    from voxstrata.studies.align.result import Alignment

    opened = open_store(store)
    print_left_out(opened)
    Alignment.refuse_foreign(folder)
    options = AlignOptions(similarity, by, quantile, closest, bootstrap)
    with TerminalReporter() as reporter:
        result = run(opened, phonetics, outputs, languages, options, reporter)
    for reason, count in result.settings["left_out"].items():
        click.echo(f"{count} utterances take no part: {reason}", err=True)
    written = result.save(folder)
    if as_json:
        rows = result.table.to_pylist()
        print_json({"store": store, "results": str(folder), "settings": result.settings, "rows": rows})
    else:
        click.echo(f"{result}\n\n{folder}: {', '.join(path.name for path in written)}")
