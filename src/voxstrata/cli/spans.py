"""voxstrata spans"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

import voxstrata as vs
from voxstrata.cli import options
from voxstrata.cli.console import FAILURES_SHOWN, PARTIAL, TerminalReporter, print_json, print_left_out
from voxstrata.cli.corpora import refuse_swapped_store
from voxstrata.cli.interrupts import resume_hint, units_kept
from voxstrata.cli.saying import say, say_wrapped


@click.command(short_help="The words or phones of a store, as a store.")
@click.argument("store", type=click.Path())
@click.argument("alignments", type=options.PATH)
@options.out("The store to make or to resume: a path or s3://…, gs://….", "target", type=click.Path())
@click.option("--tier", default="words", help="What is taken of the alignments, such as words or phones.")
@options.outputs
@click.option(
    "--frames", "pool", flag_value="frames", default="mean", type=str, show_default=False,
    help="Keep the frames of a span, instead of one vector, their mean.",
)  # fmt: skip
@click.option(
    "--group", type=click.Choice(["word", "label", "sentence"]), default="word",
    help="Spans that retrieval takes for the same: of one word (in lower case, without punctuation around it), of one "
    "label as written, or of one word in one group of utterances.",
)  # fmt: skip
@click.option(
    "--meanings", type=options.PATH, help="Table of form, language, meaning: spans of one meaning are the same."
)
@click.option(
    "--tolerance", type=click.FloatRange(min=0), default=0.1, help="Seconds by which spans may reach beyond utterances."
)
@options.as_json
def spans(store: str, alignments: Path, target: str, as_json: bool, **how: Any) -> int:
    """Take the words or phones of STORE's utterances, and write their states as a store of its own.

    ALIGNMENTS say when each was spoken: a folder of TextGrid or JSON files (whisper, whisperX, transformers, MFA),
    named like the utterances or their files; or a CTM or JSON lines file. Every command reads what is written as a
    store of utterances. Silence is left out. After an interrupt the same command goes on.

    \b
    Example:
      voxstrata spans speech.zarr aligned -o words.zarr
    """
    refuse_swapped_store(store, alignments)
    opened = vs.open_store(store)
    with resume_hint(units_kept(target)), TerminalReporter() as reporter:
        report = vs.spans(opened, alignments, target, **how, reporter=reporter)
    print_left_out(opened)
    if as_json:
        print_json(report.to_dict())
    else:
        say_wrapped(report.to_text(), indent="  ")
    if report.left_out:
        say(f"utterances without spans: {len(report.left_out)}", err=True)
        shown = list(report.left_out.items())[:FAILURES_SHOWN]
        for name, reason in shown:
            say_wrapped(f"  {name}: {reason}", err=True, indent="    ")
        if len(shown) < len(report.left_out):
            say(f"  … and {len(report.left_out) - len(shown)} more, all with --json", err=True)
    return PARTIAL if report.left_out else 0
