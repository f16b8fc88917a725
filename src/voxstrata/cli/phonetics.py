"""voxstrata phonetics"""

from pathlib import Path
from typing import Any

import click

import voxstrata as vs
from voxstrata.base.plain import counted
from voxstrata.cli import options
from voxstrata.cli.console import FAILURES_SHOWN, PARTIAL, TerminalReporter, aligned, print_json, say_written
from voxstrata.cli.corpora import read_and_note
from voxstrata.cli.saying import say, say_wrapped


def _list_voices(ctx: click.Context, option: click.Parameter, value: bool) -> None:
    if value and not ctx.resilient_parsing:
        from voxstrata.phonology.ipa import voice_names

        say(aligned(["voice", "name"], list(voice_names().items()), (0, 1)))
        ctx.exit()


@click.command()
@options.corpus
@options.out("Folder for phonetics.parquet, ipa.parquet, distances.parquet, phonetics.md.")
@options.reading
@options.languages
@click.option(
    "--ipa",
    type=options.PATH,
    help="Table with the columns id and ipa (.tsv, .csv, .jsonl, .parquet): used instead of espeak-ng for these ids.",
)
@click.option(
    "--voice",
    "voices",
    multiple=True,
    metavar="LANGUAGE=VOICE",
    help="espeak-ng voice of a language, e.g. en=en-gb,es=es-419. [default: by the language's code]",
)
@click.option(
    "--voices", "list_voices", is_flag=True, is_eager=True, expose_value=False, callback=_list_voices,
    help="List espeak-ng's voices, and do nothing else.",
)  # fmt: skip
@click.option(
    "--normalize",
    type=click.Choice(["longer", "mean", "none"]),
    default="longer",
    help="Divide the edit distance by the longer string's segments, by the mean of both, or not.",
)
@options.threads
@options.overwrite
@options.as_json
def phonetics(
    corpus: Path,
    folder: Path,
    reading: dict[str, Any],
    languages: str | None,
    ipa: Path | None,
    voices: tuple[str, ...],
    normalize: str,
    overwrite: bool,
    as_json: bool,
) -> int:
    """How alike the translations in CORPUS sound.

    Texts become IPA by espeak-ng. The distance of two sentences is PanPhon's feature edit distance. Every pair of
    translations gets its rank among the source's non-translations: by whole sentences, and by the closest pair of
    words. Only text is read, no audio. `voxstrata align` takes the folder.

    \b
    Example:
      voxstrata phonetics speech.tsv -o phonetics
    """
    from voxstrata.phonology.ipa import read_ipa
    from voxstrata.studies.phonetics.result import Phonetics

    pairs = [voice.strip().partition("=") for given in voices for voice in given.split(",")]
    wrong = ["".join(parts) for parts in pairs if not (parts[0] and parts[2])]
    if wrong:
        raise vs.UsageError(f"--voice {wrong[0]}: give LANGUAGE=VOICE, such as en=en-gb")
    Phonetics.refuse_earlier(folder, overwrite)
    with TerminalReporter() as reporter:
        result = vs.phonetics(
            read_and_note(corpus, reading),
            folder,
            given=read_ipa(ipa) if ipa else None,
            voices={language: voice for language, _, voice in pairs},
            languages=languages,
            normalize=normalize,
            reporter=reporter,
        )
    if result.left_out:
        say(f"left out: {counted(len(result.left_out), 'utterance')}", err=True)
        for name, reason in list(result.left_out.items())[:FAILURES_SHOWN]:
            say_wrapped(f"  {name}: {reason}", err=True, indent="    ")
        say("fill their text in the manifest, or give IPA (--ipa), to take them in", err=True)
    if as_json:
        print_json({"out": str(folder), **result.to_dict()})
    else:
        say(result)
        say_written(folder, [*result.files.values(), result.markdown])
    return PARTIAL if result.left_out else 0
