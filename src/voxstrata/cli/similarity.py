"""voxstrata similarity"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from voxstrata.cli.console import Line, clock, json_option, kernel_option, print_json, print_left_out
from voxstrata.cli.extract import resume_hint
from voxstrata.cli.retrieve import names

if TYPE_CHECKING:
    from voxstrata.retrieval.all_pairs import Progress, SimilarityReport
    from voxstrata.retrieval.selection import Selection
    from voxstrata.store import EmbeddingStore


@click.command(short_help="SeqSim of all pairs: the best candidates of each.")
@click.argument("store")
@click.argument("other", required=False)
@click.option("-o", "--output", "folder", required=True, help="Folder to make or to resume: a path or s3://…, gs://…")
@click.option("--layer", required=True, help="Output of the encoder to compare, e.g. layer_06 or final.")
@click.option("--x", "x_languages", help="Languages of the first set, e.g. en,es. [default: all]")
@click.option(
    "--y",
    "y_languages",
    help="Languages of the second set, of OTHER or of STORE. [default: all of OTHER; without OTHER there is no second "
    "set, and the first is compared with itself]",
)
@click.option("--x-ids", type=click.Path(path_type=Path), help="File naming the first set's utterances, one id a line.")
@click.option("--y-ids", type=click.Path(path_type=Path), help="The same for the second set.")
@click.option("--top", type=click.IntRange(min=1), default=10, show_default=True, help="Candidates kept per query.")
@click.option("--matrix", help="Keep whole matrices, too: some of f1,precision,recall.")
@click.option(
    "--candidates",
    type=click.IntRange(min=1),
    help="Compare each query's N nearest by mean-pooled cosine only; what that misses is measured and reported.",
)
@click.option(
    "--sample",
    type=click.IntRange(min=1),
    default=200,
    show_default=True,
    help="Queries per direction on which --candidates is measured, by exact search.",
)
@kernel_option
@click.option("--tile-frames", type=click.IntRange(min=1), help="Frames per side of a tile; bounds memory.")
@click.option("--part", help="I/N: compute every N-th tile row from the I-th on; N runs share the work.")
@json_option
def similarity(
    store: str,
    other: str | None,
    folder: str,
    layer: str,
    x_languages: str | None,
    y_languages: str | None,
    x_ids: Path | None,
    y_ids: Path | None,
    top: int,
    matrix: str | None,
    candidates: int | None,
    sample: int,
    kernel: str | None,
    tile_frames: int | None,
    part: str | None,
    as_json: bool,
) -> None:
    """SeqSim of all pairs of two sets of utterances, or of one set with itself.

    The sets are parts of STORE, or of STORE and OTHER. Writes each utterance's best candidates to top.parquet; the
    frames need not fit in memory. When the folder exists the run resumes it.

    \b
    Example:
      voxstrata similarity speech.zarr --layer layer_06 --x en --y es -o en-es
    """
    from voxstrata.retrieval.all_pairs import similarity as run
    from voxstrata.retrieval.kernels import choose
    from voxstrata.store import open_store

    opened = open_store(store)
    x = _selection(opened, x_languages, x_ids)
    y = None
    if other is not None or y_languages is not None or y_ids is not None:
        y = _selection(opened if other is None else open_store(other), y_languages, y_ids)
        if other is not None:
            print_left_out(y.store)
    print_left_out(opened)
    with Line() as line, resume_hint():
        line.show("planning", force=True)
        report = run(
            x,
            y,
            layer,
            folder,
            top=top,
            matrix=names(matrix) or (),
            candidates=candidates or 0,
            sample=sample,
            kernel=choose(kernel),
            tile_frames=tile_frames,
            part=_part(part),
            progress=tile_progress(line),
        )
    if as_json:
        print_json(report.to_dict())
    else:
        _print(report)


def _selection(store: EmbeddingStore, languages: str | None, ids: Path | None) -> Selection:
    from voxstrata.base.errors import InputError
    from voxstrata.retrieval.selection import select

    named = None
    if ids is not None:
        try:
            named = [line.strip() for line in ids.read_text(encoding="utf-8").splitlines() if line.strip()]
        except (OSError, UnicodeDecodeError) as e:
            raise InputError(f"{ids}: cannot be read as a list of ids ({e})") from e
        if not named:
            raise InputError(f"{ids}: holds no id; write one on each line")
    return select(store, names(languages), named)


def _part(text: str | None) -> tuple[int, int]:
    from voxstrata.base.errors import UsageError

    if text is None:
        return 1, 1
    if not re.fullmatch(r"\d+/\d+", text):
        raise UsageError(f"--part {text}: write it as I/N, like 2/8")
    i, n = text.split("/")
    return int(i), int(n)


def tile_progress(line: Line) -> Callable[[Progress], None]:
    """Show pairs, pairs per second, and an ETA from the frames that are left."""
    begin = time.monotonic()

    def show(p: Progress) -> None:
        seconds = max(time.monotonic() - begin, 1e-9)
        left = seconds * (p.frame_pairs_total - p.frame_pairs) / max(p.frame_pairs, 1)
        line.show(f"pairs {p.pairs}/{p.pairs_total}  {p.pairs / seconds:.0f} pairs/s  ETA {clock(left)}")

    return show


def _print(report: SimilarityReport) -> None:
    resumed = f", {report.resumed_rows} of them by other runs" if report.resumed_rows else ""
    rows = f"{report.rows_done} of {report.rows} tile rows done{resumed}"
    click.echo(f"{report.folder}: {report.x} × {report.y} utterances, {rows}")
    if report.pairs:
        busy = "  ".join(f"{k} {v:.1f} s" for k, v in report.stages.items())
        click.echo(
            f"{report.pairs} pairs in {clock(report.seconds)}: {report.pairs / report.seconds:.0f} pairs/s "
            f"({report.kernel})\nseconds by stage (all but compare and wait overlap): {busy}"
        )
    for direction, found in (report.candidates or {}).items():
        share, queries = found["translation_among_candidates"], found["queries_with_translation"]
        translation = "" if share is None else f"; the translation for {100 * share:.1f} % of {queries} queries"
        click.echo(
            f"candidates, {direction}: hold the exact best for {100 * found['exact_top1_among_candidates']:.1f} % of "
            f"{found['sampled']} sampled queries{translation}"
        )
    if report.merged:
        click.echo(f"{report.folder}/top.parquet: the best candidates of every query")
    else:
        click.echo("top.parquet is written by the run that finds all tile rows done")
