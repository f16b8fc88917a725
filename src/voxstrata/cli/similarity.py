"""voxstrata similarity"""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

import voxstrata as vs
from voxstrata.base.opening import read_regular
from voxstrata.base.plain import counted, rate_text
from voxstrata.base.recognised import A_TABLE, refuse_mistaken
from voxstrata.cli import options
from voxstrata.cli.console import TerminalReporter, clock, print_json, print_left_out, quiet_ray
from voxstrata.cli.interrupts import resume_hint, rows_kept
from voxstrata.cli.saying import say_wrapped

if TYPE_CHECKING:
    from voxstrata.cluster.actors import Workers
    from voxstrata.retrieval.all_pairs import SimilarityReport
    from voxstrata.retrieval.selection import Selection
    from voxstrata.store import EmbeddingStore
    from voxstrata.store.part import Part


@click.command(short_help="SeqSim of all pairs: the best candidates of each.")
@click.argument("store", type=click.Path())
@click.argument("other", required=False, type=click.Path())
@click.option(
    "--join",
    multiple=True,
    metavar="STORE",
    type=click.Path(),
    help="Another store: with STORE it is one. May be repeated.",
)
@options.out(
    "Folder to make or to resume: a path or s3://…, gs://…. Several outputs have a subfolder each.", type=click.Path()
)
@options.outputs
@click.option("--x", "x_languages", help="Languages of the first set, e.g. en,es. [default: all]")
@click.option(
    "--y",
    "y_languages",
    help="Languages of the second set, of OTHER or of STORE. [default: all of OTHER; without OTHER there is no second "
    "set, and the first is compared with itself]",
)
@click.option("--x-ids", type=options.PATH, help="File naming the first set's utterances, one id a line.")
@click.option("--y-ids", type=options.PATH, help="The same for the second set.")
@click.option("--top", type=options.COUNT, default=10, help="Candidates kept per query.")
@click.option(
    "--matrix",
    shell_complete=options.completing("f1", "precision", "recall"),
    help="Keep whole matrices, too: some of f1,precision,recall.",
)
@click.option(
    "--candidates",
    type=options.COUNT,
    help="Compare each query's N nearest by mean-pooled cosine only; what that misses is measured and reported.",
)
@click.option(
    "--sample",
    type=options.COUNT,
    default=200,
    help="Queries per direction to measure --candidates on, by exact search.",
)
@options.overwrite
@options.kernel
@click.option("--tile-frames", type=options.COUNT, help="Frames per side of a tile; bounds memory.")
@options.part
@options.on_ray
@click.option(
    "--threads",
    type=options.COUNT,
    help="Threads that compute; with --ray cores of each worker. [default: all cores; with --ray its node's share]",
)
@options.as_json
def similarity(
    store: str,
    other: str | None,
    join: tuple[str, ...],
    folder: str,
    outputs: str,
    x_languages: str | None,
    y_languages: str | None,
    x_ids: Path | None,
    y_ids: Path | None,
    matrix: str | None,
    candidates: int | None,
    kernel: str | None,
    overwrite: bool,
    part: Part | None,
    workers: Workers | None,
    threads: int | None,
    as_json: bool,
    **limits: Any,
) -> None:
    """SeqSim of all pairs of two sets of utterances, or of one set with itself.

    The sets are parts of STORE, or of STORE and OTHER; --join makes several stores one. Writes each utterance's best
    candidates to top.parquet; the frames need not fit in memory. Several outputs, and `all`, get a folder
    each within OUT. When the folder exists the run resumes it.

    \b
    Example:
      voxstrata similarity speech.zarr --outputs layer_06 --x en --y es -o en-es
    """
    from voxstrata.cluster.comparing import Side, similarity_on_ray
    from voxstrata.encoders.outputs import names_one, select_outputs
    from voxstrata.retrieval.all_pairs import compare_outputs
    from voxstrata.retrieval.kernels import choose_kernel
    from voxstrata.retrieval.selection import refuse_bad_frames, refuse_incomparable

    if workers is None:
        options.limit_threads(threads)
    if workers is not None and part is not None:
        raise vs.UsageError("--ray shares the work out by itself: leave out --part")
    opened = vs.open_store([store, *join])
    x = _selection(opened, x_languages, x_ids)
    y = None
    if other is not None or y_languages is not None or y_ids is not None:
        y = _selection(opened if other is None else vs.open_store(other), y_languages, y_ids)
        if other is not None:
            print_left_out(y.store)
    print_left_out(opened)
    names = select_outputs(outputs, opened.outputs)
    alone = names_one(outputs, names)
    folders = {name: folder if alone else f"{folder.rstrip('/')}/{name}" for name in names}
    by = choose_kernel(kernel)
    how: dict[str, Any] = {"matrix": matrix or (), "candidates": candidates or 0}
    how |= {"overwrite": overwrite, **limits}
    with TerminalReporter() as reporter, resume_hint(rows_kept(folders.values(), overwrite)):
        if len(folders) > 1:  # what a later output would be refused for is refused before the first takes its time
            for name in folders:
                refuse_incomparable(x, y, name)
            refuse_bad_frames([x] if y is None else [x, y], list(folders), by.block_frames, reporter)
        if workers is None:
            reports = compare_outputs(x, y, folders, kernel=by, part=part, **how, reporter=reporter)
        else:
            first, second = (store, *join), (store, *join) if other is None else (other,)
            sides = (
                Side(first, x_languages, chosen_ids(x_ids)),
                None if y is None else Side(second, y_languages, chosen_ids(y_ids)),
            )
            with quiet_ray():
                workers = replace(workers, threads=threads)
                reports = similarity_on_ray(*sides, folders, kernel=by, workers=workers, **how, reporter=reporter)
    if as_json:
        found = {name: asdict(report) for name, report in reports.items()}
        print_json(found[names[0]] if alone else found)
    else:
        for report in reports.values():
            _print(report)


def _selection(store: EmbeddingStore, languages: str | None, ids: Path | None) -> Selection:
    return vs.select(store, languages, chosen_ids(ids))


def chosen_ids(file: Path | None) -> tuple[str, ...] | None:
    """The ids that a file names, one a line."""
    if file is None:
        return None
    from voxstrata.corpus.manifest import names_recordings
    from voxstrata.corpus.rows import table_header

    right = "" if names_recordings(table_header(file)) else A_TABLE.what  # a list may be called ids.tsv
    refuse_mistaken(file, "a list of ids", "write one id on each line", right)
    try:
        named = tuple(line.strip() for line in read_regular(file).decode("utf-8").splitlines() if line.strip())
    except (OSError, UnicodeDecodeError) as e:
        raise vs.InputError(f"{file}: cannot be read as a list of ids ({e})") from e
    if not named:
        raise vs.InputError(f"{file}: holds no id; write one on each line")
    return named


def _print(report: SimilarityReport) -> None:
    resumed = f", {report.resumed_rows} of them by other runs" if report.resumed_rows else ""
    rows = f"{report.rows_done} of {counted(report.rows, 'tile row')} done{resumed}"
    say_wrapped(f"{report.out}: {report.x} × {counted(report.y, 'utterance')}, {rows}")
    if report.pairs:
        busy = "  ".join(f"{k} {v:.1f} s" for k, v in report.stages.items())
        rate = rate_text(report.pairs / report.seconds)
        say_wrapped(
            f"{counted(report.pairs, 'pair')} in {clock(report.seconds)}: {rate} pairs/s "
            f"({report.kernel})\nseconds by stage (all but compare and wait overlap): {busy}"
        )
    for direction, found in (report.candidates or {}).items():
        share, queries = found["translation_among_candidates"], found["queries_with_translation"]
        translation = (
            ""
            if share is None
            else f"; the translation for {100 * share:.1f} % of {counted(queries, 'query', 'queries')}"
        )
        say_wrapped(
            f"candidates, {direction}: hold the exact best for {100 * found['exact_top1_among_candidates']:.1f} % of "
            f"{counted(found['sampled'], 'sampled query', 'sampled queries')}{translation}"
        )
    finished = f"{report.out}/top.parquet: the best candidates of every query"
    say_wrapped(finished if report.merged else "top.parquet is written by the run that finds all tile rows done")
