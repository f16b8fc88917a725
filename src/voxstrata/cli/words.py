"""voxstrata words"""

from __future__ import annotations

from pathlib import Path

import click

from voxstrata.cli.console import PARTIAL, TerminalReporter, json_option, print_failures, print_json, run_options
from voxstrata.cli.extract import resume_hint
from voxstrata.cli.options import bootstrap_option, outputs_option


@click.command(short_help="Sound or meaning, word by word.")
@click.argument("word_list", metavar="LIST")
@click.argument("model", type=click.Path(path_type=Path))
@click.option(
    "-o",
    "--out",
    "folder",
    required=True,
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder for the spoken words, their store, and the results.",
)
@outputs_option
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
    from voxstrata.engine import Device, Runtime
    from voxstrata.studies.words.measure import WordOptions, measure_words
    from voxstrata.studies.words.word_list import read_word_list

    options, runtime = WordOptions(near, far, bootstrap), Runtime(Device.parse(device), threads)
    with resume_hint(), TerminalReporter() as reporter:
        entries = read_word_list(word_list)
        result = measure_words(entries, open_model(model), folder, outputs, options, runtime, reporter)
    written = result.save(folder)
    if as_json:
        found = {"settings": result.settings, "failed": result.failures, "rows": result.table.to_pylist()}
        print_json({"results": str(folder), **found})
    else:
        click.echo(f"{result}\n\n{folder}: {', '.join([path.name for path in written])}, words.zarr")
    print_failures(result.failures, f"in {folder / 'words.zarr'}")
    return PARTIAL if result.failures else 0
