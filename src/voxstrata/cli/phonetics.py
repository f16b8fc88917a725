"""voxstrata phonetics"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from voxstrata.cli.console import FAILURES_SHOWN, PARTIAL, Line, aligned, count_progress, json_option, print_json, steps
from voxstrata.cli.options import names


@click.command()
@click.argument("corpus", type=click.Path(path_type=Path))
@click.option(
    "-o",
    "--output",
    "folder",
    required=True,
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder for ipa.parquet, distances.parquet and phonetics.parquet; what an earlier run left there is replaced.",
)
@click.option("--split", help="train, dev or test of a FLEURS folder. [default: all]")
@click.option("--languages", help="Languages to take, e.g. en,es. [default: all]")
@click.option(
    "--ipa",
    type=click.Path(path_type=Path),
    help="Table with the columns id and ipa (.tsv, .csv, .jsonl, .parquet): used instead of espeak-ng for these ids.",
)
@click.option(
    "--voice",
    "voices",
    multiple=True,
    metavar="LANGUAGE=VOICE",
    help="espeak-ng voice of a language, e.g. en=en-gb; may be repeated. [default: by the language's code]",
)
@click.option(
    "--normalize",
    type=click.Choice(["longer", "mean", "none"]),
    default="longer",
    show_default=True,
    help="Divide the edit distance by the longer string's segments, by the mean of both, or not.",
)
@json_option
def phonetics(
    corpus: Path,
    folder: Path,
    split: str | None,
    languages: str | None,
    ipa: Path | None,
    voices: tuple[str, ...],
    normalize: str,
    as_json: bool,
) -> int:
    """How alike the translations in CORPUS sound.

    Texts become IPA by espeak-ng; the distance is PanPhon's feature edit distance. For every pair of translations its
    rank among the source's non-translations, by whole sentences and by the closest pair of words. Only text is read, no
    audio. `voxstrata align` takes the folder.

    \b
    Example:
      voxstrata phonetics speech.tsv -o phonetics
    """
    from voxstrata.base.errors import UsageError
    from voxstrata.corpus import read_corpus
    from voxstrata.phonology.ipa import read_ipa
    from voxstrata.studies.phonetics.measure import measure_phonetics

    pairs = [voice.partition("=") for voice in voices]
    wrong = ["".join(parts) for parts in pairs if not (parts[0] and parts[2])]
    if wrong:
        raise UsageError(f"--voice {wrong[0]}: give LANGUAGE=VOICE, such as en=en-gb")
    with Line() as line:
        report = measure_phonetics(
            read_corpus(corpus, split),
            folder,
            given=read_ipa(ipa) if ipa else None,
            voices={language: voice for language, _, voice in pairs},
            languages=names(languages),
            normalize=normalize,
            say=steps(line),
            progress=count_progress(line, "language pairs"),
        )
    if report.left_out:
        click.echo(f"{len(report.left_out)} utterances are left out:", err=True)
        for name, reason in list(report.left_out.items())[:FAILURES_SHOWN]:
            click.echo(f"  {name}: {reason}", err=True)
        click.echo("fill their text in the manifest, or give IPA (--ipa), to take them in", err=True)
    if as_json:
        print_json(report.to_dict())
    else:
        click.echo(phonetics_text(report))
    return PARTIAL if report.left_out else 0


def phonetics_text(report: Any) -> str:
    """The report as a table in plain text, with its notes."""
    rows = []
    for d in report.directions:
        low, high = d.candidates
        pool = str(low) if low == high else f"{low} to {high}"
        rows.append(
            [
                f"{d.source} → {d.target}",
                str(d.pairs),
                pool,
                f"{d.distance:.3f}",
                f"{d.others:.3f}",
                f"{d.quantile:.3f}",
                f"{d.like_length:.3f}",
                f"{100 * d.closest:.1f}",
                f"{100 * d.chance:.1f}",
                f"{d.word_quantile:.3f}",
                f"{100 * d.word_closest:.1f}",
            ]
        )
    header = ["direction", "pairs", "pool", "distance", "others", "quantile", "like length", "closest %", "chance %"]
    header += ["word quantile", "word closest %"]
    voices = ", ".join(f"{language} {voice}" for language, voice in report.settings["voices"].items())
    blocks = [
        f"{report.utterances} utterances; " + (f"voices: {voices}" if voices else "IPA as given"),
        aligned(header, rows),
        "distance: mean of translations, others: of non-translations; quantile: median share of a sentence's\n"
        "non-translations that sound closer than its translation (0.5: sound says nothing); like length: the same\n"
        f"among the {report.settings['neighbours_in_length']} nearest in length to it; closest: translation first of "
        "the pool; word: the same by the closest pair of words.",
    ]
    if report.notes:
        blocks.append("\n".join(f"note: {note}" for note in report.notes))
    blocks.append(f"{report.folder}: ipa.parquet, distances.parquet, phonetics.parquet")
    return "\n\n".join(blocks)
