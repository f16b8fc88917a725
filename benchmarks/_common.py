"""What the benchmarks share: equal cores and threads, a subset of a corpus, facts about the machine, the report."""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from voxstrata.corpus import Corpus
from voxstrata.encoders import ModelFolder
from voxstrata.engine.budget import BLAS_THREADS
from voxstrata.engine.measuring import cpu_name
from voxstrata.studies.drift.measure import sample

if TYPE_CHECKING:
    from voxstrata.exporters.checkpoint import Checkpoint

PACKAGES = ("voxstrata", "onnxruntime", "torch", "transformers", "numpy", "zarr", "optimum", "optimum-onnx")
PACKAGES += ("ctranslate2", "zarrs")


@dataclass(frozen=True)
class Table:
    """One table of a report, as text: `rows` have as many cells as `header`."""

    caption: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]


def parser(doc: str | None, threads: int = 2) -> argparse.ArgumentParser:
    """Arguments every benchmark takes."""
    p = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--model", required=True, metavar="CHECKPOINT", help="Whisper checkpoint (folder, hub id or .pt)")
    p.add_argument("--corpus", required=True, metavar="CORPUS", help="folder of audio or manifest to measure on")
    p.add_argument("--calibrate", required=True, metavar="CORPUS2", help="other recordings, for the silence cache")
    p.add_argument("--threads", type=int, default=threads, help="cores and threads, for every system alike")
    p.add_argument("--out", type=Path, default=Path("bench"), help="folder for the report (JSON and Markdown)")
    return p


def pin(threads: int) -> None:
    """Confine this process to the first `threads` cores it may use, with as many threads for every library."""
    if hasattr(os, "sched_setaffinity"):
        cores = sorted(os.sched_getaffinity(0))
        if len(cores) < threads:
            sys.exit(f"--threads {threads}: this process may use {len(cores)} cores")
        os.sched_setaffinity(0, cores[:threads])
    limit_threads(threads)


def limit_threads(threads: int) -> None:
    """So many threads for every library: BLAS and OpenMP read it once, when they load, so the program starts again."""
    wanted = dict.fromkeys(BLAS_THREADS, str(threads))
    if any(os.environ.get(k) != v for k, v in wanted.items()):
        os.execve(sys.executable, sys.orig_argv, os.environ | wanted)


def subset(corpus: Corpus, clips: int | None) -> Corpus:
    """`clips` recordings, drawn with a fixed seed, translations together as far as they go; None: all of them."""
    if clips is not None and clips > len(corpus):
        sys.exit(f"--clips {clips}: the corpus has {len(corpus)}")
    return sample(corpus, clips).take(range(min(clips or len(corpus), len(corpus))))


def exported(args: argparse.Namespace, folder: Path) -> tuple[Checkpoint, ModelFolder]:
    """The checkpoint, and its export into `folder`, with the defaults but a calibrated cache."""
    # not at the top: this brings in torch, which would weigh on what memory.py measures
    from voxstrata.cli.console import TerminalReporter
    from voxstrata.exporters import ExportSpec, export
    from voxstrata.exporters.checkpoint import load_checkpoint

    with TerminalReporter(always=True) as reporter:
        model = export(args.model, folder, ExportSpec(calibrate=args.calibrate), reporter=reporter)
    return load_checkpoint(args.model), model


def peak_mib() -> float:
    """The most physical memory this process has held."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM")) / 1024


def say(text: str) -> None:
    """Progress, on stderr."""
    print(text, file=sys.stderr, flush=True)


def environment(threads: int) -> dict[str, Any]:
    """Facts about machine and software; none tells the date."""
    blas = np.show_config(mode="dicts")["Build Dependencies"]["blas"]  # type: ignore[call-overload]
    return {
        "cpu": cpu_name(),
        "cores": sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": threads,
        "load_1min": round(os.getloadavg()[0], 2),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "blas": f"{blas['name']} {blas['version']}",
        **{name: found for name in PACKAGES if (found := _version(name))},
    }


def _version(package: str) -> str | None:
    """The installed version; ONNX Runtime goes by several names."""
    for name in (package, f"{package}-gpu"):
        try:
            return version(name)
        except PackageNotFoundError:
            continue
    return None


def write_report(
    name: str,
    title: str,
    args: argparse.Namespace,
    facts: dict[str, Any],
    results: dict[str, Any],
    tables: Sequence[Table],
    notes: Sequence[str],
    show: bool = True,
) -> None:
    """Write `name`.json (all figures) and `name`.md (the tables) into `--out`, and print the latter if `show`."""
    args.out.mkdir(parents=True, exist_ok=True)
    settings = {k: str(v) if isinstance(v, Path) else v for k, v in sorted(vars(args).items()) if k != "out"}
    report = {"title": title, "environment": facts, "settings": settings, "results": results}
    report["tables"] = [asdict(t) for t in tables]
    report["notes"] = list(notes)
    (args.out / f"{name}.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    parts = [f"# {title}", _facts(facts), "Settings: " + _facts(settings)]
    for t in tables:
        parts += [t.caption, _markdown(t)]
    parts += ["\n".join(f"- {note}" for note in notes)]
    text = "\n\n".join(parts) + "\n"
    (args.out / f"{name}.md").write_text(text, encoding="utf-8")
    if show:
        print(text, end="")


def _facts(facts: dict[str, Any]) -> str:
    return ", ".join(f"{k} {v}" for k, v in facts.items()) + "."


def _markdown(table: Table) -> str:
    lines = [table.header, ["---"] * len(table.header), *table.rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)
