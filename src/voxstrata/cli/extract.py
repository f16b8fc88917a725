"""voxstrata extract"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

import voxstrata as vs
from voxstrata.base.plain import counted
from voxstrata.cli import options
from voxstrata.cli.console import PARTIAL, TerminalReporter, print_failures, print_json, quiet_ray
from voxstrata.cli.corpora import corpus_json, refuse_swapped, tell_corpus
from voxstrata.cli.interrupts import resume_hint, units_kept
from voxstrata.cli.saying import say, say_wrapped
from voxstrata.store.part import Part

if TYPE_CHECKING:
    from voxstrata.cluster.actors import Workers


@click.command()
@options.corpus
@options.model
@options.out("Store to make or to resume: a path or s3://…, gs://…", "store", type=click.Path())
@options.reading
@options.storing
@options.planning
@options.running_several
@options.on_ray
@click.option("--tokens", type=options.COUNT, help="Batch size × computed positions. [default: by device]")
@click.option("--allow-overflow", is_flag=True, help="Store values beyond float16 as infinities.")
@options.part
@click.option(
    "--prepare", "prepare_only", is_flag=True, help="Make the plan and the arrays alone; later runs do the work."
)
@click.option(
    "--no-fsync", is_flag=True, help="Do not wait for the disk at each commit; after a power cut, verify the store."
)
@click.option(
    "--keep-going",
    is_flag=True,
    help="Leave units whose recordings cannot be read now (disk, memory) to a later run, and do the others.",
)
@click.option("--retry-failed", is_flag=True, help="Do units again in which a recording failed that decodes now.")
@click.option("--efficiency", is_flag=True, help="Also report the share of this CPU's matrix product rate (sgemm).")
@options.as_json
def extract(
    corpus: Path,
    model: Path,
    store: str,
    spec: vs.StoreSpec,
    long: Any,
    reading: dict[str, Any],
    unit_mb: float | None,
    runtime: vs.Runtime,
    devices: list[vs.Device],
    workers: Workers | None,
    tokens: int | None,
    allow_overflow: bool,
    part: Part | None,
    prepare_only: bool,
    no_fsync: bool,
    keep_going: bool,
    retry_failed: bool,
    efficiency: bool,
    as_json: bool,
) -> int:
    """Extract the embeddings of CORPUS with MODEL into a zarr store.

    CORPUS is a folder of audio; a manifest (.tsv, .csv, .jsonl, .parquet: path, and optionally id, language, group,
    text, speaker, start, end, channel); or what others keep: FLEURS, Common Voice, CoVoST, NeMo, Kaldi, an audio folder
    of Hugging Face. MODEL is a folder made by `voxstrata export`. When the store exists the run resumes it, and shares
    the work with other runs that are at it.

    \b
    Example:
      voxstrata extract speech.tsv base -o speech.zarr --outputs layer_03,layer_06,final
    """
    from voxstrata.cluster.extracting import extract_on_ray
    from voxstrata.engine.devices import extract_on
    from voxstrata.engine.run import prepare

    refuse_swapped(corpus, model)
    if efficiency and len(devices) > 1:
        raise vs.UsageError("--efficiency is that of one device; leave it out")
    if workers is not None and (efficiency or part is not None or len(devices) > 1):
        raise vs.UsageError("--ray shares the work out by itself: leave out --part, --efficiency and several devices")
    if keep_going and (workers is not None or len(devices) > 1):
        raise vs.UsageError("--keep-going is for a run of one process; leave out --ray, or several devices")
    runtime = replace(runtime, tokens=tokens, unit_megabytes=unit_mb)
    how: dict[str, Any] = {"long": long, "allow_overflow": allow_overflow, "durable": not no_fsync}
    how["retry_failed"] = retry_failed
    opened = vs.open_model(model)
    spec.for_model(opened.card, devices[0])  # what the model has not is refused before a large corpus is read
    with resume_hint(units_kept(store)), TerminalReporter() as reporter:
        reporter.step("reading the corpus")
        read = vs.read_corpus(corpus, **reading)
        if not as_json:
            tell_corpus(corpus, read, err=True)
        if prepare_only:
            run = prepare(read, opened, store, spec, runtime, reporter, **how)
            reporter.clear()
            _tell_prepared(store, run.plan.units, len(run.pending()), as_json)
            return 0
        if workers is not None:
            with quiet_ray():
                about: dict[str, Any] = {"workers": workers, "source": corpus, "reading": reading, **how}
                report = extract_on_ray(read, model, store, spec, runtime, reporter, **about)
        elif len(devices) > 1:
            report = extract_on(devices, read, opened, store, spec, runtime, reporter, part=part, **how)
        else:
            alone: dict[str, Any] = {"efficiency": efficiency, "part": part, "keep_going": keep_going}
            report = vs.extract(read, opened, store, spec, runtime, reporter, **alone, **how)
    if as_json:
        print_json(report.to_dict() | {"corpus": corpus_json(read)})
    else:
        say(report.to_text())
        if report.failed and report.resumed_units == report.units and not retry_failed:
            say_wrapped("what failed in an earlier run was not looked at again: --retry-failed does")
    print_failures(report.failures, f"all in {store}/utterances.parquet")
    return PARTIAL if report.unreachable or (report.failed and not report.pending_units) else 0


def _tell_prepared(store: str, units: int, pending: int, as_json: bool) -> None:
    if as_json:
        print_json({"out": store, "units": units, "pending_units": pending})
    else:
        left = f"{pending} of {counted(units, 'unit')} to be done"
        say_wrapped(f"{store}: prepared, {left}; the same without --prepare does them")
