"""voxstrata early-exit"""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

import voxstrata as vs
from voxstrata.base.plain import counted
from voxstrata.base.tables import terminal_width
from voxstrata.cli import options
from voxstrata.cli.console import PARTIAL, TerminalReporter, print_failures, print_json, say_written
from voxstrata.cli.corpora import read_and_note, refuse_swapped_checkpoint
from voxstrata.cli.interrupts import resume_hint, transcripts_kept
from voxstrata.cli.saying import say, say_wrapped
from voxstrata.store.part import Part


@click.group(short_help="Whisper checkpoints whose encoder ends after block k.")
def early_exit() -> None:
    """Whisper checkpoints whose encoder ends after block k, under the unchanged decoder.

    `sweep` measures which k transcribes best, `write` makes the checkpoint, `check` compares checkpoints with a plain
    decoding loop. CHECKPOINT is a Hugging Face folder with decoder and tokenizer, or a hub id.

    \b
    Example:
      voxstrata early-exit sweep openai/whisper-base speech.tsv -o exits
      voxstrata early-exit write openai/whisper-base -k 4 -o base-4
    """


class _TorchDevice(click.ParamType):  # type: ignore[type-arg]
    name = "device"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        device = vs.Device.parse(value)
        if device.kind == "tensorrt" or device.bfloat16:
            self.fail("PyTorch runs the decoder, in the checkpoint's own type; choose cpu, cuda or cuda:1")
        return str(device)


_revision = click.option("--revision", help="Branch, tag or commit of a hub id.")
_blocks = click.option("--blocks", help="Blocks to end after, e.g. 3,4,6. [default: every one, and 0]")


def _decoding(f: options.F) -> options.F:
    f = click.option(
        "--language",
        "languages",
        multiple=True,
        metavar="LANG[=AS]",
        help="How the model is told the language: es for all recordings, ast=es for those in ast, auto where it "
        "detects it; several with commas. [default: the corpus's own languages]",
    )(f)
    return click.option(
        "--task",
        type=click.Choice(["transcribe", "translate"]),
        default="transcribe",
        help="Translating is into English: the corpus's text then is the English one.",
    )(f)


@early_exit.command()
@click.argument("checkpoint", type=click.Path())
@options.out("New checkpoint folder.", "target", type=options.PATH)
@click.option("-k", "--after", required=True, type=int, help="The block to end after; 0 ends before the first.")
@click.option("--final-norm/--no-final-norm", default=True, help="The encoder's final LayerNorm.")
@click.option("--refitted", type=options.PATH, help="Folder fits/ of a sweep: the LayerNorm is the one refitted there.")
@_revision
@options.overwrite
@options.as_json
def write(
    checkpoint: str,
    target: Path,
    after: int,
    final_norm: bool,
    refitted: Path | None,
    revision: str | None,
    overwrite: bool,
    as_json: bool,
) -> None:
    """Write the checkpoint of CHECKPOINT that ends after block k.

    transformers loads it like any other, and so does what builds on it. Without the LayerNorm the weights are folded
    into a slightly wider model of the same architecture.

    \b
    Example:
      voxstrata early-exit write openai/whisper-base -k 4 --no-final-norm -o base-4
    """
    from voxstrata.early_exit.checkpoint import load_transcriber, write_early_exit
    from voxstrata.early_exit.exits import EarlyExit

    if refitted and not final_norm:
        raise click.UsageError("--refitted is about the LayerNorm; leave --no-final-norm out")
    at, fit = EarlyExit(after, "refitted" if refitted else "with" if final_norm else "without"), None
    with TerminalReporter() as reporter:
        source: Any = checkpoint
        if refitted:
            from voxstrata.early_exit.companions import refit_of

            source = load_transcriber(checkpoint, revision, reporter)
            fit = refit_of(refitted, source, after)
        how: dict[str, Any] = {"fit": fit, "revision": revision, "overwrite": overwrite}
        card = write_early_exit(source, target, at, **how, reporter=reporter)
    if as_json:
        print_json({"out": str(target), "card": asdict(card)})
        return
    wider = f", {counted(card.added_channels, 'channel')} wider and one block longer" if card.added_channels else ""
    say_wrapped(f"{target}: {card.checkpoint}, {at} of {counted(card.layers, 'block')}{wider}")
    say_wrapped(f"its encoder differs from the original's layer_{after:02d} by {card.relative_l2:.1e} (relative L2)")


@early_exit.command(short_help="Transcribe with the encoder ended after every block.")
@click.argument("checkpoint", type=click.Path())
@options.corpus
@options.out("Folder for the results.", type=options.PATH)
@_blocks
@click.option(
    "--norm",
    default="with,without",
    shell_complete=options.completing("with", "without", "refitted", "mapped"),
    help="What states go through: with, without (the final LayerNorm); refitted, mapped are controls, fitted first.",
)
@_decoding
@click.option(
    "--english-of-group",
    is_flag=True,
    help="For translate: a recording's reference is the English text of its group, its own text what was said.",
)
@click.option(
    "--normalizer",
    type=click.Choice(["whisper", "light"]),
    default="whisper",
    help="Of texts before scoring; light keeps combining marks, which Indic scripts need.",
)
@click.option(
    "--unit",
    type=click.Choice(["auto", "word", "character"]),
    default="auto",
    help="Errors are counted in; auto: characters where the script has no spaces, or the model has no such language.",
)
@click.option(
    "--choose-by",
    type=click.Choice(["cut", "plain"]),
    default="cut",
    help="Errors that choose k: of transcripts with endless repetitions cut, or as they are.",
)
@click.option(
    "--decoding",
    "policy",
    type=click.Choice(["greedy", "whisper"]),
    default="greedy",
    help="greedy: the best token each time; whisper: with OpenAI's fallbacks to other temperatures.",
)
@click.option(
    "--loops",
    type=click.Choice(["stop", "keep"]),
    default="stop",
    help="A transcript that repeats itself: stop it there, or go on to its end or --max-new-tokens.",
)
@click.option("--dev-share", default=0.5, help="Share of the groups on which k is chosen.")
@click.option("--seed", default=0, help="Of the split and the bootstrap.")
@click.option("--bootstrap", "resamples", type=options.COUNT, default=1000, help="Resamples for 95 % intervals.")
@click.option("--max-new-tokens", type=options.COUNT, default=224, help="Per transcript.")
@click.option("--batch", type=options.COUNT, default=8, help="Recordings at a time.")
@options.reading
@click.option("--device", type=_TorchDevice(), default="cpu", help="PyTorch's device: cpu, cuda, cuda:1, …")
@options.threads
@_revision
@options.part
@options.overwrite
@options.as_json
def sweep(
    checkpoint: str,
    corpus: Path,
    folder: Path,
    blocks: str | None,
    norm: str,
    languages: tuple[str, ...],
    task: str,
    english_of_group: bool,
    max_new_tokens: int,
    batch: int,
    policy: str,
    loops: str,
    reading: dict[str, Any],
    device: str,
    revision: str | None,
    part: Part | None,
    overwrite: bool,
    as_json: bool,
    **scoring: Any,
) -> int:
    """Transcribe CORPUS with the encoder ended after every block; choose k on one part, report it on the other.

    CORPUS needs texts and languages. Writes early_exit.md (figures), early_exit.png and other pictures, transcripts.md
    (of every k side by side), errors.parquet, choices.parquet, transcripts.parquet and costs.parquet. A k that is no
    better than saying nothing is not chosen.

    Each transcript is also a line of transcripts.jsonl, so the same command goes on after a stop, and scores anew with
    other --normalizer, --unit, --choose-by, --seed, --dev-share or --bootstrap. Several runs at once share the work.

    \b
    Example:
      voxstrata early-exit sweep openai/whisper-base speech.tsv -o exits --language ast=es
    """
    import jiwer  # noqa: F401  (missing: say so at once)

    from voxstrata.base.choices import chosen
    from voxstrata.early_exit.checkpoint import load_transcriber
    from voxstrata.early_exit.companions import load_companions, with_english_texts
    from voxstrata.early_exit.decoding import Decoding
    from voxstrata.early_exit.exits import NORMS
    from voxstrata.early_exit.scoring import Scoring
    from voxstrata.early_exit.sweeping import sweep as run

    if english_of_group and task != "translate":
        raise click.UsageError("--english-of-group is for --task translate")
    norms = chosen("norm", norm, NORMS)
    refuse_swapped_checkpoint(checkpoint, corpus)
    found = read_and_note(corpus, reading)
    if english_of_group:
        found = with_english_texts(found)
        say_wrapped(f"{corpus}: {found.notes[-1]}", err=True)
    decoding = Decoding(task, _prompts(languages, found), max_new_tokens, batch, policy, loops == "stop")
    how: dict[str, Any] = {"blocks": _numbers(blocks), "norms": norms, "scoring": Scoring(**scoring), "device": device}
    how |= {"part": part, "overwrite": overwrite}
    with TerminalReporter() as reporter, resume_hint(transcripts_kept(reporter)):
        reporter.step(f"loading {checkpoint}")
        result = run(
            load_transcriber(checkpoint, revision, reporter), found, folder, decoding=decoding, **how, reporter=reporter
        )
    if result is None:
        left = "other runs have batches in work; the run that finds all transcribed scores them"
        print_json({"out": None, "left": left}) if as_json else say_wrapped(f"{folder}: {left}")
        return 0
    if as_json:
        tables = {"choices": result.choices.to_pylist(), "rates": result.table.to_pylist()}
        beside = {kind.folder: kind.table.to_pylist() for kind in load_companions(folder)}
        print_json({**result.settings, "out": str(folder), "resumed": result.resumed, **tables, **beside})
    else:
        say(result)
        for other in load_companions(folder):
            say(f"\n{other}")
        if result.resumed:
            say(f"there already (transcripts.jsonl): {counted(result.resumed, 'transcript')}")
        names = [
            result.markdown,
            "transcripts.md",
            *(f"{name}.png" for name in result.captions),
            *result.files.values(),
        ]
        names += [f"{other.folder}/" for other in load_companions(folder)]
        say_written(folder, names)
    print_failures(result.failures, "in early_exit.md")
    return PARTIAL if result.failures else 0


@early_exit.command(short_help="Compare written checkpoints with a plain decoding loop.")
@click.argument("checkpoint", type=click.Path())
@options.corpus
@_blocks
@_decoding
@click.option("--clips", type=options.COUNT, default=4, help="Recordings to compare on.")
@click.option("--max-new-tokens", type=options.COUNT, default=48, help="Per recording.")
@options.reading
@options.threads
@_revision
@options.as_json
def check(
    checkpoint: str,
    corpus: Path,
    blocks: str | None,
    languages: tuple[str, ...],
    task: str,
    clips: int,
    max_new_tokens: int,
    reading: dict[str, Any],
    revision: str | None,
    as_json: bool,
) -> int:
    """Compare the tokens of written checkpoints with a plain loop that feeds the decoder layer_k of our ONNX graph.

    Checkpoints are written with their weights as stored (float16 stays float16); both ways compute in float32.
    Exit code 3 when tokens differ where the loop's best logit led clearly (by 0.01 or more).

    \b
    Example:
      voxstrata early-exit check openai/whisper-base speech.tsv
    """
    from voxstrata.early_exit.checking import check_exits, checks_table
    from voxstrata.early_exit.checkpoint import load_transcriber
    from voxstrata.early_exit.decoding import Decoding
    from voxstrata.early_exit.exits import every_exit

    refuse_swapped_checkpoint(checkpoint, corpus)
    found = read_and_note(corpus, reading)
    found = found.take(range(min(clips, len(found))))
    decoding = Decoding(task, _prompts(languages, found), max_new_tokens)
    with TerminalReporter() as reporter:
        reporter.step(f"loading {checkpoint}")
        transcriber = load_transcriber(checkpoint, revision, reporter)
        exits = every_exit(transcriber.encoder.shape.layers, _numbers(blocks))
        checks, failures = check_exits(transcriber, found, exits, decoding, reporter=reporter)
    agree = all(check.agrees for check in checks)
    if as_json:
        rows = [asdict(check) for check in checks]
        print_json({"checkpoint": checkpoint, "rows": rows, "failures": failures, "agrees": agree})
    else:
        say(checks_table(checks).to_text(terminal_width()))
    print_failures(failures, "with --json")
    return (PARTIAL if failures else 0) if agree else 3


def _numbers(text: str | None) -> list[int] | None:
    """A comma-separated choice of blocks; None stays None."""
    if text is None:
        return None
    try:
        return [int(n) for n in text.split(",")]
    except ValueError:
        raise click.BadParameter(f"{text!r} is no list of numbers like 3,4,6", param_hint="--blocks") from None


def _prompts(languages: tuple[str, ...], corpus: Any) -> tuple[tuple[str, str], ...]:
    """What each corpus language is announced as: of `LANG=AS` one, of a bare `AS` every one."""
    found = sorted({str(n) for n in corpus.table["language"].to_pylist() if n is not None})
    prompts: dict[str, str] = {}
    for text in (each.strip() for given in languages for each in given.split(",")):
        name, equals, other = text.partition("=")
        if equals and name not in found:
            raise click.BadParameter(
                f"{text!r}: the corpus has no language {name!r}, but {', '.join(found)}", param_hint="--language"
            )
        prompts |= {name: other} if equals else dict.fromkeys(found, name)
    return tuple(sorted(prompts.items()))
