"""voxstrata explain"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from voxstrata.cli.console import aligned, json_option, print_json
from voxstrata.cli.options import names


@click.command(short_help="Why two utterances match, frame by frame.")
@click.argument("store")
@click.argument("a")
@click.argument("b")
@click.option(
    "--output", "--outputs", "outputs", help="Outputs to look at, e.g. layer_06,final. [default: all in the store]"
)
@click.option(
    "-o",
    "folder",
    required=True,
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder for picture and data; what an earlier run left there is replaced.",
)
@click.option(
    "--words",
    type=click.Path(path_type=Path),
    help="Table (.tsv, .csv, .jsonl, .parquet) of when words are spoken: id, word, begin, end in seconds.",
)
@json_option
def explain(store: str, a: str, b: str, outputs: str | None, folder: Path, words: Path | None, as_json: bool) -> None:
    """Why utterances A and B of STORE match: their frame × frame cosines, and the maxima that SeqSim averages.

    Writes explain.png, the time axes in seconds; explain.npz, the cosines of every output; explain.parquet, precision,
    recall and F1; maxima.parquet, for every frame when and how well it is matched.

    \b
    Example:
      voxstrata explain speech.zarr en-7 es-7 --outputs layer_06,final -o why
    """
    from voxstrata.store import open_store

    opened = open_store(store)
    table = write_explanation(opened, a, b, folder, names(outputs), words)
    if as_json:
        print_json({"store": store, "results": str(folder), "rows": table.to_pylist()})
    else:
        click.echo(explain_text(opened, table))
        click.echo(f"\n{folder}: explain.png, explain.npz, explain.parquet, maxima.parquet")


def write_explanation(store: Any, a: str, b: str, folder: Path, outputs: list[str] | None, timings: Path | None) -> Any:
    """Match two utterances and write picture and data; returns the table of precision, recall and F1."""
    import numpy as np
    import pyarrow.parquet as pq

    from voxstrata.base.folders import make_writable
    from voxstrata.studies.explain.figures import Side, plot_matches
    from voxstrata.studies.explain.measure import match_frames, maxima_table, read_words, summary_table

    matches = match_frames(store, a, b, outputs)
    step = store.row_seconds
    lengths = {name: int(store.length[store.index(name)]) * step for name in (a, b)}
    words = read_words(timings, lengths) if timings else {}
    table = summary_table(store, a, b, matches)
    make_writable(folder)
    pq.write_table(table, folder / "explain.parquet")
    pq.write_table(maxima_table(store, a, b, matches, words), folder / "maxima.parquet")
    cosines: dict[str, Any] = {m.output: m.cosine for m in matches}
    np.savez(folder / "explain.npz", **cosines)
    texts = store.utterances["text"]
    x, y = (Side(name, texts[store.index(name)].as_py() or "", words.get(name, ())) for name in (a, b))
    title = f"{store.model.checkpoint}, {store.spec.context.mode}"
    plot_matches(matches, x, y, step, folder / "explain.png", title)
    return table


def explain_text(store: Any, table: Any) -> str:
    """The figures, and what they mean."""
    rows = table.to_pylist()
    lines = []
    for side in ("a", "b"):
        i = store.index(rows[0][side])
        about = store.utterances.slice(i, 1).to_pylist()[0]
        said = f": {about['text']}" if about["text"] else ""
        seconds = rows[0][f"frames_{side}"] * store.row_seconds
        lines.append(f"{side} = {about['id']} ({about['language'] or 'language unknown'}, {seconds:.2f} s){said}")
    body = [[r["output"], *(f"{r[k]:.3f}" for k in ("precision", "recall", "f1", "mean_cosine"))] for r in rows]
    return "\n".join(
        [
            *lines,
            "",
            aligned(["output", "P", "R", "F1", "all pairs"], body),
            "",
            "P: mean over the frames of a of the best cosine in b; R: mean over the frames of b of the best in a;",
            "F1 = 2PR / (P + R), SeqSim. All pairs: mean cosine of any frame of a with any of b, what speech shares",
            "whatever is said. What one F1 is worth shows among those of other pairs: `voxstrata retrieve`.",
        ]
    )
