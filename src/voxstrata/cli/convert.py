"""voxstrata convert"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

import voxstrata as vs
from voxstrata.base.plain import counted, size_in_words
from voxstrata.cli import options
from voxstrata.cli.console import TerminalReporter, print_json, print_left_out
from voxstrata.cli.saying import say_wrapped

_FORMATS = ["parquet", "npy", "safetensors", "lance", "kaldi", "hf"]


@click.command(short_help="A store in a form that other tools read.")
@click.argument("store", type=click.Path())
@options.out("Folder to make.")
@click.option("--to", type=click.Choice(_FORMATS), required=True, help="The form.")
@options.outputs
@click.option("--pooled", is_flag=True, help="One vector an utterance, the mean over its frames, instead of frames.")
@options.languages
@click.option("--by-language", is_flag=True, help="A folder for each language: language=en, …")
@options.overwrite
@options.as_json
def convert(
    store: str,
    folder: Path,
    to: str,
    outputs: str,
    pooled: bool,
    languages: str | None,
    by_language: bool,
    overwrite: bool,
    as_json: bool,
) -> None:
    """Write the states of STORE in a form that other tools read, with all that is known of the utterances.

    parquet and lance: a row a frame (pooled: a row an utterance). npy: an array an output, to be mapped. safetensors:
    tensors by id. kaldi: a data folder. hf: a data set for datasets.load_dataset, a row an utterance. Values are the
    stored ones, bit for bit. The folder appears whole or not at all.

    \b
    Example:
      voxstrata convert speech.zarr -o frames --to parquet --outputs layer_06 --languages en,es
    """
    opened = vs.open_store(store)
    with TerminalReporter() as reporter:
        how: dict[str, Any] = {
            "pooled": pooled,
            "languages": languages,
            "by_language": by_language,
            "overwrite": overwrite,
        }
        report = vs.convert(opened, folder, to, outputs, **how, reporter=reporter)
    print_left_out(opened)
    if as_json:
        print_json(report.to_dict())
        return
    what = "pooled states" if report.pooled else counted(report.rows, "frame")
    say_wrapped(
        f"{report.out}: {what} of {counted(report.utterances, 'utterance')} ({', '.join(report.outputs)}), "
        f"{size_in_words(report.size_bytes)} in {counted(len(report.files), 'file')}"
    )
