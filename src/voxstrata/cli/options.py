"""Options that several commands share. Those that belong together reach the command as one object."""

import functools
import os
import re
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, TypeVar, cast

import click

import voxstrata as vs
from voxstrata.base.progress import PROGRESS
from voxstrata.base.remote import is_url, shown
from voxstrata.cli.saying import say_wrapped
from voxstrata.cluster.actors import LOCAL, Workers
from voxstrata.store.part import Part
from voxstrata.store.plan import UNIT_MEGABYTES

F = TypeVar("F", bound=Callable[..., Any])


class _Here(click.Path):
    """A path on this machine; a URL, of which a folder of that name would be made, is refused."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if is_url(value):
            self.fail(f"{shown(value)}: a URL; only corpora and stores may have one, give a path on this machine")
        return super().convert(value, param, ctx)


PATH, FOLDER = _Here(path_type=Path), _Here(file_okay=False, path_type=Path)


class _Place(click.Path):
    """A path, or a URL as it is written: a Path would make one slash of its two."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        return value if is_url(value) else super().convert(value, param, ctx)


PLACE = _Place(path_type=Path)


def completing(*names: str) -> Callable[[click.Context, click.Parameter, str], list[str]]:
    """What a shell is offered for an option that takes some of these, with commas between them."""

    def complete(ctx: click.Context, parameter: click.Parameter, incomplete: str) -> list[str]:
        before, comma, last = incomplete.rpartition(",")
        return [f"{before}{comma}{name}" for name in names if name.startswith(last)]

    return complete


class AtLeast(click.IntRange):
    """A number that 32 bits hold, which is more than anybody asks for: help names the lower end alone."""

    def __init__(self, least: int) -> None:
        super().__init__(least, 1 << 31)

    def _describe_range(self) -> str:
        return f"x>={self.min}"


COUNT = AtLeast(1)

corpus = click.argument("corpus", type=PLACE)
model = click.argument("model", type=PATH)
stores = click.argument("stores", metavar="STORE...", nargs=-1, required=True, type=click.Path())
outputs = click.option(
    "--outputs",
    default="all",
    shell_complete=completing("all", "final", "-1"),
    help="Encoder outputs with commas between them, e.g. layer_03,layer_06,final. In short: 3 is layer_03, 2-5 are "
    "four layers, -1 is the last output.",
)
languages = click.option("--languages", help="Languages to take, e.g. en,es. [default: all]")
kernel = click.option(
    "--kernel",
    shell_complete=completing("int16", "float32", "triton", "triton-float16", "triton-bfloat16", "triton-float32"),
    help="What compares frames: int16, float32, or triton (CUDA; rows in float16, or as triton-bfloat16 and "
    "triton-float32 say). [default: int16 where the CPU has AVX2]",
)
overwrite = click.option(
    "--overwrite",
    is_flag=True,
    help="Replace what this command left there, with whatever settings; anything else there is refused all the same.",
)


def _json_alone(ctx: click.Context, option: click.Parameter, value: bool) -> bool:
    """Where nobody looks on, JSON comes without a log of progress, unless one is asked for."""
    if value and not sys.stderr.isatty():
        os.environ.setdefault(PROGRESS, "none")
    return value


as_json = click.option(
    "--json", "as_json", is_flag=True, callback=_json_alone, help="Print the result as JSON, and nothing else."
)


def _earlier_pool(ctx: click.Context, option: click.Parameter, value: str | None) -> str | None:
    """What 0.1.0 called `--pooled`: everywhere else a pool is what a query's candidates are."""
    if value not in (None, "mean"):
        raise vs.UsageError(f"--pool {value}: it is called --pooled now, without a value")
    if value:
        say_wrapped("warning: --pool mean is called --pooled now, and goes in 0.3", err=True)
    return value


_READING = (
    click.option("--split", help="train, dev, test, … of a folder that has them; Common Voice needs one."),
    click.option(
        "--columns", metavar="WHAT=NAME,…",
        help="What a table's columns are, e.g. text=sentence,language=lang. [default: by their names]",
    ),
    click.option(
        "--channel", type=click.IntRange(0, 9999),
        help="Take one channel; 0 is the first. [default: the average of all]",
    ),
    click.option(
        "--lengths", type=click.Choice(["headers", "manifest"]), default="headers",
        help="Where the lengths of recordings come from: `manifest` takes its durations and reads no header before "
        "decoding; for millions of files.",
    ),
)  # fmt: skip
_STORING = (
    outputs,
    click.option(
        "--context", "mode", type=click.Choice(["bucketed", "padded", "trimmed", "exact"]),
        help="What the encoder sees beyond the speech; `voxstrata drift` measures the difference. [default: the own of "
        "the model's family: bucketed for Whisper, padded for OWSM, exact, which is nothing, for others]",
    ),
    click.option("--dtype", type=click.Choice(["float16", "float32"]), default="float16", help="Of the stored frames."),
    click.option(
        "--pooled", is_flag=True, help="Keep one vector an utterance, the mean over its frames, instead of frames."
    ),
    click.option(
        "--pool", is_flag=False, flag_value="mean", hidden=True, callback=_earlier_pool, help="Now --pooled."
    ),
    click.option(
        "--every", type=int, default=1,
        help="Keep the mean of every N frames; N divides those of a window (1500 for Whisper).",
    ),
)  # fmt: skip
_PLANNING = (
    click.option(
        "--long", type=click.Choice(["window", "error"]), default="window",
        help="Recordings longer than the encoder's window (Whisper: 30 s): cut into windows, or refuse.",
    ),
    click.option(
        "--unit-mb", type=click.FloatRange(min=0, min_open=True),
        help="Megabytes of one unit (shard) over all outputs, and so of the buffer, rounded down to a power of two of "
        "rows and at least 1 MB of each output; a longer recording takes more. "
        f"[default: {UNIT_MEGABYTES}; on a GPU what eight of its large batches fill, up to 4096]",
    ),
)  # fmt: skip
_DEVICES = completing("cpu", "cuda", "cuda:bfloat16", "tensorrt")
_RUNNING = (
    click.option(
        "--device",
        default="cpu",
        shell_complete=_DEVICES,
        help="cpu, cuda, cuda:1, tensorrt, …; a GPU is never assumed.",
    ),
    click.option("--threads", type=COUNT, help="Threads for inference and decoding. [default: all cores]"),
)
THREADS = ("OMP_NUM_THREADS", "NUMBA_NUM_THREADS")  # of the environment: what libraries and our kernels go by
_ON_RAY = (
    click.option(
        "--ray", metavar="[ADDRESS]", is_flag=False, flag_value=LOCAL,
        help="Have workers on Ray do it: of the cluster at ADDRESS (auto, HOST:PORT), or on this machine (--ray=local, "
        "or --ray as the last word).",
    ),
    click.option("--workers", type=COUNT, help="With --ray: how many. [default: as many as there is room for]"),
    click.option(
        "--gpus-per-worker", "gpus", type=click.FloatRange(min=0),
        help="With --ray: GPUs of each; 0.5 for two workers on one. [default: 1 where the device is a GPU]",
    ),
)  # fmt: skip


def out(help: str, name: str = "folder", **settings: Any) -> Callable[[F], F]:
    """Where results go: `-o/--out`, required unless the settings say otherwise."""
    return click.option("-o", "--out", name, help=help, **{"required": True, "type": FOLDER, **settings})


def reading(f: F) -> F:
    """How a corpus is read; the command gets it as `reading`, the keywords of `read_corpus`."""

    @functools.wraps(f)
    def with_reading(*args: Any, columns: str | None, **others: Any) -> Any:
        reading = {name: others.pop(name) for name in ("split", "channel", "lengths")}
        return f(*args, reading={**reading, "columns": column_names(columns)}, **others)

    return _with(_READING, cast(F, with_reading))


def column_names(text: str | None) -> dict[str, str]:
    """`text=sentence,language=lang` as a dictionary."""
    columns: dict[str, str] = {}
    for part in text.split(",") if text else []:
        what, _, name = (each.strip() for each in part.partition("="))
        if not (what and name):
            raise vs.UsageError(f"--columns {part}: give WHAT=NAME, such as text=sentence")
        if what in columns:
            raise vs.UsageError(f"--columns {text}: {what} is given twice; choose one column")
        columns[what] = name
    return columns


def storing(f: F) -> F:
    """What is kept of a corpus; the command gets it as `spec`, a StoreSpec."""

    @functools.wraps(f)
    def with_spec(*args: Any, outputs: str, mode: Any, dtype: Any, pooled: bool, every: int, **others: Any) -> Any:
        pool: Literal["mean"] | None = "mean" if others.pop("pool") or pooled else None
        spec = vs.StoreSpec(outputs, dtype, pool, every)
        spec = spec if mode is None else replace(spec, context=vs.Context(mode))
        return f(*args, spec=spec, **others)

    return _with(_STORING, cast(F, with_spec))


def planning(f: F) -> F:
    """How a corpus is planned: `long` and `unit_mb`."""
    return _with(_PLANNING, f)


def running(f: F) -> F:
    """Where and how wide graphs run; the command gets it as `runtime`, a Runtime."""

    @functools.wraps(f)
    def with_runtime(*args: Any, device: str, threads: int | None, **others: Any) -> Any:
        return f(*args, runtime=vs.Runtime(vs.Device.parse(device), threads), **others)

    return _with(_RUNNING, cast(F, with_runtime))


def on_ray(f: F) -> F:
    """Where others do the work; the command gets it as `workers`, a Workers, or None where it does the work itself."""

    @functools.wraps(f)
    def with_workers(*args: Any, ray: str | None, workers: int | None, gpus: float | None, **others: Any) -> Any:
        if ray is None and (workers is not None or gpus is not None):
            raise vs.UsageError("--workers and --gpus-per-worker are of --ray; add it, or leave them out")
        if ray is not None and not re.fullmatch(rf"{LOCAL}|auto|ray://\S+|[^\s/]+:\d+", ray):
            raise vs.UsageError(
                f"--ray {ray}: no address; write auto, HOST:PORT or ray://HOST:PORT, or --ray=local for this machine"
            )
        return f(*args, workers=None if ray is None else Workers(ray, workers, None, gpus), **others)

    return _with(_ON_RAY, cast(F, with_workers))


def limit_threads(count: int | None) -> None:
    """For the rest of the command; None leaves all as it is. Libraries that are loaded are told, others read it."""
    if count is None:
        return
    from threadpoolctl import threadpool_limits

    for name in THREADS[: 1 + (THREADS[1] in os.environ)]:
        os.environ[name] = str(count)
    click.get_current_context().call_on_close(threadpool_limits(count).restore_original_limits)


threads = click.option(
    "--threads", type=COUNT, expose_value=False, callback=lambda ctx, option, count: limit_threads(count),
    help="Threads that compute. [default: all cores]",
)  # fmt: skip


def running_several(f: F) -> F:
    """As `running`, on one device or several; the command also gets them as `devices`."""
    device = click.option(
        "--device",
        default="cpu",
        shell_complete=_DEVICES,
        help="cpu, cuda, cuda:1, cuda:bfloat16, tensorrt, …; several as cuda:0,1,2,3: a process each. A GPU is never "
        "assumed.",
    )

    @functools.wraps(f)
    def with_runtime(*args: Any, device: str, threads: int | None, **others: Any) -> Any:
        devices = vs.Device.parse_several(device)
        return f(*args, runtime=vs.Runtime(devices[0], threads), devices=devices, **others)

    return _with((device, *_RUNNING[1:]), cast(F, with_runtime))


def part(f: F) -> F:
    """The share of one of several runs; the command gets it as `part`, a Part, or None where it works alone."""
    option = click.option(
        "--part",
        metavar="I/N",
        help="Work beside N - 1 other runs: do this share, then what others have not begun, and end. [default: that of "
        "the Slurm array task, if it is one; none with --ray]",
    )

    @functools.wraps(f)
    def with_part(*args: Any, part: str | None, **others: Any) -> Any:
        share = None if part is None else Part.parse(part)
        if part is None and click.get_current_context().params.get("ray") is None:  # else Ray shares the work out
            share = Part.of_slurm(os.environ)
        return f(*args, part=share, **others)

    return option(cast(F, with_part))


def _with(options: tuple[Callable[[F], F], ...], f: F) -> F:
    for option in reversed(options):
        f = option(f)
    return f


def bootstrap(drawn: str, least: int = 0) -> Callable[[F], F]:
    """How many resamples of what is drawn ("groups", "meanings") the intervals are made of."""
    none = "" if least else "; 0 for none"
    return click.option(
        "--bootstrap", type=click.IntRange(min=least), default=1000,
        help=f"Resamples of the {drawn} for the 95 % intervals{none}.",
    )  # fmt: skip
