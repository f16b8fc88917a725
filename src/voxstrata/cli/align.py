"""voxstrata align"""

from pathlib import Path
from typing import Any

import click

import voxstrata as vs
from voxstrata.base.plain import counted
from voxstrata.cli import options
from voxstrata.cli.console import TerminalReporter, print_left_out, save_and_print
from voxstrata.cli.corpora import refuse_spaced_lists, refuse_swapped_store


class _Phonetics(click.Path):
    def get_missing_message(self, *about: Any, **named: Any) -> str:
        return "`voxstrata phonetics CORPUS -o phonetics` makes it."


@click.command(short_help="Retrieval where sound, duration, speaker cannot help.")
@options.stores
@click.option(
    "--phonetics",
    required=True,
    type=_Phonetics(),
    help="Folder that `voxstrata phonetics` wrote for the store's corpus.",
)
@options.out("Folder for align.parquet, align.md, align.png and align.pdf.")
@options.outputs
@options.languages
@click.option(
    "--similarity",
    type=click.Choice(["seqsim_f1", "pooled_cosine"]),
    help="The score that ranks the candidates. [default: seqsim_f1; pooled_cosine where the store is pooled]",
)
@click.option(
    "--by",
    type=click.Choice(["like-length", "sentence", "word"]),
    default="like-length",
    help="What a pair's phonetic distance is set beside: that of non-translations of like length, or of all "
    "non-translations (sentence), or the same by the closest pair of words.",
)
@click.option(
    "--quantile",
    type=click.FloatRange(0, 1),
    default=0.5,
    help="A pair sounds unlike when at least this share of the non-translations sounds closer.",
)
@click.option(
    "--closest",
    type=options.COUNT,
    default=9,
    help="Hard negatives of a pool: the non-translations that sound closest to the query.",
)
@options.bootstrap("groups")
@options.threads
@options.overwrite
@options.as_json
def align(
    stores: tuple[str, ...],
    phonetics: str,
    folder: Path,
    outputs: str,
    languages: str | None,
    similarity: str | None,
    by: str,
    quantile: float,
    closest: int,
    bootstrap: int,
    overwrite: bool,
    as_json: bool,
) -> None:
    """Retrieval where sound, duration, speaker and language cannot help, for every output in STORE.

    recall@1 is measured on all pairs; on pairs that sound no closer than non-translations; among hard negatives, the
    non-translations that sound closest; and with the means of speaker and language removed. Retrievers that see
    phonemes or durations alone stand beside it. A logistic regression says how much closeness in sound helps.

    Several stores of one model are taken as one; no id may be in two of them. Stores of several models are compared:
    each against itself, on the utterances that all hold, figures side by side by depth (compared_align.parquet,
    compared_align.md, align_by_depth.png and .pdf).

    \b
    Example:
      voxstrata phonetics speech.tsv -o phonetics
      voxstrata align speech.zarr --phonetics phonetics -o aligned
    """
    from voxstrata.store.several import open_by_encoder
    from voxstrata.studies.align.result import Alignment
    from voxstrata.studies.compared.measure import align_each
    from voxstrata.studies.compared.result import ComparedAlignment

    refuse_spaced_lists(stores, outputs=outputs, languages=languages)
    if len(stores) == 1:
        refuse_swapped_store(stores[0], phonetics, option="--phonetics")
    store = stores[0] if len(stores) == 1 else list(stores)
    opened = open_by_encoder(stores)
    for one in opened:
        print_left_out(one)
    kind = Alignment if len(opened) == 1 else ComparedAlignment
    kind.refuse_foreign(folder)
    kind.refuse_earlier(folder, overwrite)
    how = vs.AlignOptions(similarity, by, quantile, closest, bootstrap)
    result: Alignment | ComparedAlignment
    with TerminalReporter() as reporter:
        if len(opened) == 1:
            result = vs.align(opened[0], phonetics, outputs, languages, how, reporter)
        else:
            result = align_each(opened, phonetics, outputs, languages, how, reporter)
        for reason, count in result.settings["left_out"].items():
            reporter.warn(f"{counted(count, 'utterance')} left out: {reason}")
        save_and_print(result, folder, as_json, reporter, store=store)
