"""voxstrata words"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from voxstrata.cli.console import (
    FAILURES_SHOWN,
    PARTIAL,
    Line,
    TerminalReporter,
    aligned,
    count_progress,
    json_option,
    print_json,
    run_options,
    steps,
)
from voxstrata.cli.extract import resume_hint
from voxstrata.cli.options import bootstrap_option

if TYPE_CHECKING:
    from voxstrata.studies.words.measure import WordReport

SHOWN = 15  # of either kind, in words.md
PAIRS = "word_pairs.parquet"


@click.command(short_help="Sound or meaning, word by word.")
@click.argument("word_list", metavar="LIST")
@click.argument("model", type=click.Path(path_type=Path))
@click.option(
    "-o",
    "--output",
    "folder",
    required=True,
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder for the spoken words, their store, and the results.",
)
@click.option("--outputs", default="all", show_default=True, help="Outputs to compare, e.g. layer_03,final.")
@click.option(
    "--near",
    type=float,
    default=0.01,
    show_default=True,
    help="Words of different meaning sound alike up to this quantile of their phonetic distances.",
)
@click.option(
    "--far",
    type=float,
    default=0.5,
    show_default=True,
    help="Words sound unlike from this quantile on; synonyms and random pairs are taken there.",
)
@bootstrap_option("meanings")
@run_options
@json_option
def words(
    word_list: str,
    model: Path,
    folder: Path,
    outputs: str,
    near: float,
    far: float,
    bootstrap: int,
    device: str,
    threads: int | None,
    as_json: bool,
) -> int:
    """Sound or meaning, word by word: how close are synonyms, and near-homophones, of two languages in MODEL?

    LIST is a table (.tsv, .csv, .jsonl, .parquet) of form, language, meaning, and optionally ipa, and path to a
    recording; words without recordings are spoken by espeak-ng. "example" is a list of English, Spanish, German and
    Russian that comes along. Writes words.parquet (AUC against random pairs, with intervals), word_pairs.parquet
    (every pair), words.md and words.png.

    \b
    Example:
      voxstrata words example base -o words
    """
    import matplotlib  # noqa: F401  (missing: say so before minutes of work, not after)

    from voxstrata.encoders import open_model
    from voxstrata.engine import Device
    from voxstrata.studies.words.measure import measure_words
    from voxstrata.studies.words.word_list import read_word_list

    with resume_hint(), Line() as line, TerminalReporter() as reporter:
        report = measure_words(
            read_word_list(word_list),
            open_model(model),
            folder,
            outputs=outputs,
            near=near,
            far=far,
            bootstrap=bootstrap,
            device=Device.parse(device),
            threads=threads,
            say=steps(line),
            speaking=count_progress(line, "words spoken"),
            extracting=reporter,
        )
    checkpoint = open_model(model).card.checkpoint
    write_words(report, folder, checkpoint)
    if as_json:
        print_json(
            {
                "results": str(folder),
                "settings": report.settings,
                "failed": report.failures,
                "rows": report.table.to_pylist(),
            }
        )
    else:
        click.echo(f"{checkpoint}: AUC against random pairs (chance 0.5)\n")
        click.echo(aligned(*auc_cells(report)))
        click.echo(f"\n{caption(report)}\n")
        click.echo(f"{folder}: words.parquet, {PAIRS}, words.md, words.png, words.zarr")
    if report.failures:
        click.echo(f"failed recordings: {len(report.failures)}", err=True)
        for name, reason in list(report.failures.items())[:FAILURES_SHOWN]:
            click.echo(f"  {name}: {reason}", err=True)
    return PARTIAL if report.failures else 0


def write_words(report: WordReport, folder: Path, checkpoint: str) -> None:
    """Tables, the summary and the picture."""
    import pyarrow.parquet as pq

    from voxstrata.studies.words.figures import plot_words

    pq.write_table(report.table, folder / "words.parquet")
    pq.write_table(report.pairs, folder / PAIRS)
    header, rows = auc_cells(report)
    lines = [f"# {checkpoint}: words", "", "AUC against random pairs, chance 0.5:", "", *_pipes(header, rows), ""]
    lines += [caption(report), ""]
    for kind, order in (("near_homophones", "the closest in sound"), ("synonyms", "in the order of the list")):
        lines += [f"## {kind.replace('_', '-').capitalize()}, {order}", "", *_listed(report, kind), ""]
    (folder / "words.md").write_text("\n".join(lines), encoding="utf-8")
    sounds = f"alike, unlike: {thresholds(report)}"
    plot_words(report.table, folder / "words.png", f"{checkpoint}: words", basis(report), sounds)


def auc_cells(report: WordReport) -> tuple[list[str], list[list[str]]]:
    """Header and rows: outputs by depth, then the controls; all pairs of languages together."""
    from voxstrata.encoders.outputs import depth_order
    from voxstrata.studies.words.measure import ALL, CONTROLS, SIMILARITIES
    from voxstrata.studies.words.pairs import KINDS

    known = {(r["output"], r["similarity"], r["kind"]): r for r in report.table.to_pylist() if r["language_a"] == ALL}
    header = ["output", *(f"{kind.replace('_', '-')} {s}" for kind in KINDS for s in SIMILARITIES)]
    rows = [
        [output, *(_interval(known[output, s, kind]) for kind in KINDS for s in SIMILARITIES)]
        for output in depth_order(key[0] for key in known if key[0] is not None)
    ]
    for control in CONTROLS:
        cells = [cell for kind in KINDS for cell in (_interval(known[None, control, kind]), "")]
        rows.append([f"({control} alone)", *cells])
    return header, rows


def caption(report: WordReport) -> str:
    """What the figures stand on, in full sentences."""
    intervals = " In brackets: 95 % bootstrap intervals over meanings." if report.settings["bootstrap"] else ""
    return (
        f"{basis(report)}. Each pair is compared with random pairs of its own two languages. Synonyms and random pairs "
        f"sound unlike, near-homophones alike: {thresholds(report)}.{intervals}"
    )


def basis(report: WordReport) -> str:
    """Words, languages, who spoke, and how many pairs."""
    from voxstrata.studies.words.measure import ALL
    from voxstrata.studies.words.pairs import KINDS

    settings = report.settings
    whole = {r["kind"]: r for r in report.table.to_pylist() if r["language_a"] == ALL and r["output"]}
    pairs = [f"{whole[k]['pairs']} {k.replace('_', '-')} of {whole[k]['meanings']} meanings" for k in KINDS]
    drawn = max(row["random_pairs"] for row in whole.values())
    spoken = settings["spoken"]
    speaker = f"spoken by espeak-ng ({spoken['variant']})" if spoken else "recorded"
    languages = ", ".join(settings["languages"])
    return f"{settings['words']} words ({languages}), {speaker}; {', '.join(pairs)}, {drawn} random pairs"


def thresholds(report: WordReport) -> str:
    """What sounds alike and unlike."""
    s = report.settings
    return (
        f"phonetic distance ≤ {s['near_distance']:.3f}, or ≥ {s['far_distance']:.3f} (quantiles {s['near']:g} and "
        f"{s['far']:g} of words of different meaning)"
    )


def _interval(row: dict[str, Any]) -> str:
    if row["auc"] is None:
        return "–"
    return f"{row['auc']:.3f}" + (f" [{row['low']:.3f}, {row['high']:.3f}]" if row["low"] is not None else "")


def _pipes(header: list[str], rows: list[list[str]], left: int = 1) -> list[str]:
    """A GitHub table, the first `left` columns to the left."""
    rule = ["---"] * left + ["---:"] * (len(header) - left)
    return [f"| {' | '.join(cells)} |" for cells in (header, rule, *rows)]


def _listed(report: WordReport, kind: str) -> list[str]:
    """The first pairs of a kind, near-homophones by distance."""
    import pyarrow.compute as pc

    pairs = report.pairs.filter(pc.equal(report.pairs["kind"], kind))
    if kind == "near_homophones":
        pairs = pairs.sort_by("phonetic_distance")
    body = [
        [
            *(f"{r[f'form_{s}']} ({r[f'language_{s}']}, {r[f'ipa_{s}']}, “{r[f'meaning_{s}']}”)" for s in "ab"),
            f"{r['phonetic_distance']:.3f}",
        ]
        for r in pairs.slice(0, SHOWN).to_pylist()
    ]
    more = [f"… {len(pairs) - SHOWN} more in {PAIRS}"] if len(pairs) > SHOWN else []
    return [*_pipes(["word", "other word", "distance"], body, left=2), "", *more]
