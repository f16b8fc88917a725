"""voxstrata align"""

from __future__ import annotations

import json
from pathlib import Path

import click

from voxstrata.cli.console import Line, count_progress, json_option, print_json
from voxstrata.cli.options import bootstrap_option, names


@click.command(short_help="Retrieval where sound, duration, speaker cannot help.")
@click.argument("store")
@click.option("--phonetics", required=True, help="Folder that `voxstrata phonetics` wrote for the store's corpus.")
@click.option(
    "-o",
    "--output",
    "folder",
    required=True,
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder for align.parquet, align.md, align.png and align.pdf; what an earlier run left there is replaced.",
)
@click.option("--outputs", help="Outputs to evaluate, e.g. layer_03,final. [default: all in the store]")
@click.option("--languages", help="Languages to take, e.g. en,es. [default: all]")
@click.option(
    "--similarity",
    type=click.Choice(["seqsim_f1", "pooled_cosine"]),
    help="By what outputs retrieve. [default: seqsim_f1; pooled_cosine where the store is pooled]",
)
@click.option(
    "--by",
    type=click.Choice(["like-length", "sentence", "word"]),
    default="like-length",
    show_default=True,
    help="How alike a pair sounds: beside non-translations of like length, beside all, or by the closest words.",
)
@click.option(
    "--quantile",
    type=click.FloatRange(0, 1),
    default=0.5,
    show_default=True,
    help="Pairs are unlike when at least this share of the non-translations sounds closer.",
)
@click.option(
    "--closest",
    type=click.IntRange(min=1),
    default=9,
    show_default=True,
    help="Closest-sounding non-translations beside the translation in a pool.",
)
@bootstrap_option("groups")
@json_option
def align(
    store: str,
    phonetics: str,
    folder: Path,
    outputs: str | None,
    languages: str | None,
    similarity: str | None,
    by: str,
    quantile: float,
    closest: int,
    bootstrap: int,
    as_json: bool,
) -> None:
    """Retrieval where sound, duration, speaker and language cannot help, for every output in STORE.

    recall@1 on all pairs; on pairs that sound no closer than non-translations; among the closest-sounding
    non-translations; with the means of speaker and language removed; beside retrievers that see phonemes or durations
    alone; and a logistic fit of the hits on closeness in sound.

    \b
    Example:
      voxstrata phonetics speech.tsv -o phonetics
      voxstrata align speech.zarr --phonetics phonetics -o aligned
    """
    import matplotlib  # noqa: F401  (missing: say so before minutes of work, not after)
    import pyarrow.parquet as pq

    from voxstrata.base.folders import make_writable
    from voxstrata.store import open_store
    from voxstrata.studies.align.measure import align as run
    from voxstrata.studies.align.text import plot_align, settings, to_markdown, to_terminal

    make_writable(folder)
    opened = open_store(store)
    with Line() as line:
        table = run(
            opened,
            phonetics,
            outputs=names(outputs),
            languages=names(languages),
            similarity=similarity or ("seqsim_f1" if opened.has_frames else "pooled_cosine"),
            by=by,
            quantile=quantile,
            closest=closest,
            bootstrap=bootstrap,
            progress=count_progress(line, "language pairs × outputs"),
        )
    for reason, count in settings(table)["left_out"].items():
        click.echo(f"{count} utterances take no part: {reason}", err=True)
    table = table.replace_schema_metadata({**table.schema.metadata, b"voxstrata": json.dumps(opened.about)})
    pq.write_table(table, folder / "align.parquet")
    title = f"{opened.model.checkpoint}, {opened.spec.context.mode}"
    (folder / "align.md").write_text(to_markdown(table, title), encoding="utf-8")
    for suffix in ("png", "pdf"):
        plot_align(table, folder / f"align.{suffix}", title)
    if as_json:
        print_json({"store": store, "results": str(folder), "settings": settings(table), "rows": table.to_pylist()})
    else:
        click.echo(f"{title}\n\n{to_terminal(table)}\n")
        click.echo(f"{folder}: align.parquet, align.md, align.png, align.pdf")
