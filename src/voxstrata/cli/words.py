"""voxstrata words"""

from pathlib import Path

import click

import voxstrata as vs
from voxstrata.cli import options
from voxstrata.cli.console import PARTIAL, TerminalReporter, print_failures, save_and_print
from voxstrata.cli.corpora import refuse_swapped
from voxstrata.cli.interrupts import resume_hint, units_kept


@click.command(short_help="Sound or meaning, word by word.")
@click.argument("word_list", metavar="LIST", type=click.Path())
@options.model
@options.out("Folder for the spoken words, their store, and the results.")
@options.outputs
@click.option(
    "--near",
    type=float,
    default=0.01,
    help="Words of different meaning sound alike up to this quantile of their phonetic distances.",
)
@click.option(
    "--far",
    type=float,
    default=0.5,
    help="Words sound unlike from this quantile on; synonyms and random pairs are taken there.",
)
@options.bootstrap("meanings")
@options.running
@options.overwrite
@options.as_json
def words(
    word_list: str,
    model: Path,
    folder: Path,
    outputs: str,
    near: float,
    far: float,
    bootstrap: int,
    runtime: vs.Runtime,
    overwrite: bool,
    as_json: bool,
) -> int:
    """Sound or meaning, word by word: how close are synonyms, and near-homophones, of two languages in MODEL?

    LIST is a table (.tsv, .csv, .jsonl, .parquet) of form, language, meaning, and optionally ipa, and path to a
    recording; words without recordings are spoken by espeak-ng. "example" is a list of English, Spanish, German and
    Russian that comes along. MODEL may be a store that `voxstrata spans` made: then the words are those that are spoken
    in its sentences. Writes words.parquet (AUC against random pairs, with intervals), word_pairs.parquet
    (every pair), words.md and words.png.

    \b
    Example:
      voxstrata words example base -o words
    """
    import matplotlib  # noqa: F401  (missing: say so before minutes of work, not after)

    from voxstrata.studies.words.measure import WordOptions, measure_words
    from voxstrata.studies.words.result import WordComparison
    from voxstrata.studies.words.word_list import read_word_list

    refuse_swapped(word_list, model)
    WordComparison.refuse_earlier(folder, overwrite)
    how = WordOptions(near, far, bootstrap)
    with resume_hint(units_kept(folder / "words.zarr")), TerminalReporter() as reporter:
        entries = read_word_list(word_list)
        result = measure_words(entries, model, folder, outputs, how, runtime, reporter, overwrite)
        save_and_print(result, folder, as_json, reporter, failed=result.failures)
    print_failures(result.failures, f"in {folder / 'words.zarr'}")
    return PARTIAL if result.failures else 0
