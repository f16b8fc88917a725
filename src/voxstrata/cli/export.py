"""voxstrata export"""

from __future__ import annotations

from pathlib import Path

import click

from voxstrata.cli.console import Line, aligned, json_option, print_json, steps


@click.command(short_help="Turn a Whisper CHECKPOINT into an ONNX model.")
@click.argument("checkpoint")
@click.option("-o", "--output", "target", required=True, type=click.Path(path_type=Path), help="New model folder.")
@click.option("--revision", help="Branch, tag or commit of a hub id.")
@click.option("--outputs", default="all", show_default=True, help="Outputs of the graph, e.g. layer_03,layer_06,final.")
@click.option(
    "--dtype",
    type=click.Choice(["float32", "float16", "int8"]),
    default="float32",
    show_default=True,
    help="Of weights, arithmetic and outputs; float16 is for GPUs, int8 (of linear layers' weights) for CPUs.",
)
@click.option(
    "--calibrate",
    type=click.Path(path_type=Path),
    help="Corpus to calibrate the silence cache on (16 of its recordings), which brings `bucketed` closer to `padded`; "
    "recordings you will not measure on. [default: pure silence]",
)
@click.option(
    "--silence-keys",
    type=click.IntRange(min=0),
    default=32,
    show_default=True,
    help="Cached keys per layer and head; 0 keeps one per silent position.",
)
@click.option("--norm-every-layer", is_flag=True, help="Final LayerNorm on every layer, as for early exit.")
@json_option
def export(
    checkpoint: str,
    target: Path,
    revision: str | None,
    outputs: str,
    dtype: str,
    calibrate: Path | None,
    silence_keys: int,
    norm_every_layer: bool,
    as_json: bool,
) -> None:
    """Turn a Whisper CHECKPOINT into an ONNX model with per-layer outputs.

    CHECKPOINT is a Hugging Face folder (the whole model or its encoder), a hub id, or an OpenAI .pt file.
    Every output is validated against PyTorch before the folder appears.

    \b
    Example:
      voxstrata export openai/whisper-base -o base --calibrate some_speech/
    """
    from voxstrata.exporters import ExportSpec
    from voxstrata.exporters import export as run

    spec = ExportSpec(outputs, dtype, norm_every_layer, calibrate, silence_keys)

    def warning(text: str) -> None:
        click.echo(text, err=True)

    with Line() as line:
        model = run(checkpoint, target, spec, revision=revision, say=steps(line), warn=warning)
    if as_json:
        print_json({"model": str(target), "card": model.card.to_dict()})
        return
    v = model.card.validation
    lengths, cached = (", ".join(map(str, v[k])) for k in ("lengths_seconds", "cached_lengths_seconds"))
    click.echo(f"{target}: {model.card.checkpoint}, {model.card.layers} layers, d = {model.card.d_model}, {dtype}")
    click.echo("\nLargest relative L2 difference from float32 PyTorch:\n")
    rows = [[o, f"{v['outputs'][o]:.1e}", f"{v['outputs_cached'][o]:.1e}"] for o in model.card.outputs]
    click.echo(aligned(["output", f"plain, {lengths} s", f"cached, {cached} s"], rows))
