"""voxstrata export"""

from pathlib import Path

import click

import voxstrata as vs
from voxstrata.base.plain import counted
from voxstrata.base.tables import terminal_width
from voxstrata.cli import options
from voxstrata.cli.console import TerminalReporter, print_json
from voxstrata.cli.saying import say


@click.command(short_help="Turn a CHECKPOINT into an ONNX model.")
@click.argument("checkpoint", type=click.Path())
@options.out("New model folder.", "target", type=options.PATH)
@click.option("--revision", help="Branch, tag or commit of a hub id.")
@options.outputs
@click.option(
    "--dtype",
    type=click.Choice(["float32", "float16", "int8"]),
    default="float32",
    help="Number type of weights, arithmetic and outputs. float16 is for GPUs. int8, for CPUs, is that of the linear "
    "layers' weights alone.",
)
@click.option(
    "--calibrate",
    type=options.PATH,
    help="Corpus of which 16 recordings calibrate the silence cache, in place of made-up sounds. Give recordings that "
    "you will not measure on. [default: made-up sounds]",
)
@click.option(
    "--silence-keys",
    type=click.IntRange(min=0),
    default=32,
    help="Cached keys of each attention head; 0 keeps one for every silent position.",
)
@click.option(
    "--prefix",
    help="Language and task that OWSM-CTC is told before the speech, as in `<eng>,<asr>`. [default: <nolang>,<asr>]",
)
@click.option("--norm-every-layer", is_flag=True, help="Apply the final LayerNorm to every layer, as for early exit.")
@options.overwrite
@options.as_json
def export(
    checkpoint: str,
    target: Path,
    revision: str | None,
    outputs: str,
    dtype: str,
    calibrate: Path | None,
    silence_keys: int,
    prefix: str | None,
    norm_every_layer: bool,
    overwrite: bool,
    as_json: bool,
) -> None:
    """Turn a CHECKPOINT into an ONNX model with per-layer outputs.

    CHECKPOINT is a Hugging Face folder (the whole model or its encoder), a hub id, or an OpenAI .pt file. Its family is
    Whisper, or another that docs/encoders.md lists; --dtype, --calibrate, --silence-keys and --norm-every-layer are
    for Whisper alone. Every output is validated against PyTorch before the folder appears.

    \b
    Example:
      voxstrata export openai/whisper-base -o base --calibrate some_speech/
      voxstrata export facebook/wav2vec2-xls-r-300m -o xlsr
    """
    tokens = tuple(prefix.split(",")) if prefix else ()
    spec = vs.ExportSpec(outputs, dtype, norm_every_layer, calibrate, silence_keys, tokens)
    with TerminalReporter() as reporter:
        card = vs.export(checkpoint, target, spec, revision=revision, overwrite=overwrite, reporter=reporter).card
    if as_json:
        print_json({"out": str(target), "card": card.to_dict()})
        return
    table = card.validation_table()
    say(
        f"{target}: {card.checkpoint} ({card.family.name}), {counted(card.layers, 'layer')}, d = {card.d_model}, "
        f"{dtype}"
    )
    say(f"\n{table.title}:\n\n{table.to_text(terminal_width())}")
