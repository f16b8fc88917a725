"""voxstrata retrieve"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from voxstrata.cli.console import Line, count_progress, json_option, kernel_option, print_json, print_left_out
from voxstrata.cli.options import bootstrap_option

RESULT = "retrieval.parquet"  # by which a folder of results is known


@click.command(short_help="Spoken-translation retrieval, layer by layer.")
@click.argument("store")
@click.option(
    "-o",
    "--output",
    "folder",
    required=True,
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder for the results; what an earlier run left there is replaced.",
)
@click.option("--outputs", help="Outputs to evaluate, e.g. layer_03,final. [default: all in the store]")
@click.option("--languages", help="Languages to take, e.g. en,es. [default: all]")
@click.option(
    "--similarity",
    "similarities",
    multiple=True,
    help="seqsim_f1, seqsim_precision, seqsim_recall or pooled_cosine; may be repeated. [default: all]",
)
@bootstrap_option("groups")
@kernel_option
@json_option
def retrieve(
    store: str,
    folder: Path,
    outputs: str | None,
    languages: str | None,
    similarities: tuple[str, ...],
    bootstrap: int,
    kernel: str | None,
    as_json: bool,
) -> None:
    """Spoken-translation retrieval: recall@1, @5, @10 and MRR for every output and pair of languages in STORE.

    Utterances of one `group` are translations of each other. Writes retrieval.parquet, retrieval.md,
    recall_by_layer.png and languages.png; every figure stands beside its pool size and chance. The table also holds
    CSLS and ratio-margin scores, hubness, and linear CKA between languages.

    \b
    Example:
      voxstrata retrieve speech.zarr -o results --outputs layer_03,layer_06,final
    """
    from voxstrata.retrieval.kernels import choose
    from voxstrata.store import open_store
    from voxstrata.studies.retrieve import to_terminal

    opened = open_store(store)
    print_left_out(opened)
    with Line() as line:
        table = write_retrieval(
            opened,
            folder,
            outputs=names(outputs),
            languages=names(languages),
            similarities=similarities or None,
            bootstrap=bootstrap,
            kernel=choose(kernel),
            progress=count_progress(line, "language pairs × outputs"),
            checking=count_progress(line, "checking frames: languages × outputs"),
        )
    if as_json:
        print_json({"store": store, "results": str(folder), "rows": table.to_pylist()})
    else:
        click.echo(to_terminal(table))
        click.echo(f"{folder}: retrieval.parquet, retrieval.md, recall_by_layer.png, languages.png")


def names(text: str | None) -> list[str] | None:
    """A comma-separated choice; None stays None."""
    return [n.strip() for n in text.split(",")] if text else None


def write_retrieval(store: Any, folder: Path, *, similarities: Any = None, **choices: Any) -> Any:
    """Evaluate a store and write table and pictures; returns the table.

    Before the work: plotting is checked for, the folder made and tried.
    """
    import matplotlib  # noqa: F401  (missing: say so before minutes of work, not after)
    import pyarrow as pa
    import pyarrow.parquet as pq

    from voxstrata.base.errors import InputError
    from voxstrata.base.folders import make_writable
    from voxstrata.studies.retrieve import SIMILARITIES, plot_language_matrix, plot_recall_by_layer, to_markdown
    from voxstrata.studies.retrieve import retrieve as run

    make_writable(folder)
    if any(folder.iterdir()) and not (folder / RESULT).exists():
        raise InputError(f"{folder}: exists and holds something else; choose a new or empty folder")
    if similarities is None:
        similarities = SIMILARITIES if store.has_frames else ("pooled_cosine",)
    table = run(store, similarities=similarities, **choices)
    name = Path(store.files.root).name
    table = table.add_column(0, "store", pa.array([name] * len(table)))
    # what the figures come from travels with them
    table = table.replace_schema_metadata({**table.schema.metadata, b"voxstrata": json.dumps(store.about)})
    pq.write_table(table, folder / RESULT)
    title = f"{store.model.checkpoint}, {store.spec.context.mode}"
    (folder / "retrieval.md").write_text(f"# {title}\n\n{to_markdown(table)}", encoding="utf-8")
    plot_recall_by_layer(table, folder / "recall_by_layer.png", title)
    plot_language_matrix(table, folder / "languages.png", title)
    return table
