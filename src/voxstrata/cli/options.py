"""Options that several commands share: what is kept of a corpus, in which context it is computed, intervals."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar, cast

import click

from voxstrata.store.plan import UNIT_MEGABYTES

F = TypeVar("F", bound=Callable[..., Any])

outputs_option = click.option(
    "--outputs",
    default="all",
    show_default=True,
    help="Encoder outputs with commas between them, e.g. layer_03,layer_06,final.",
)

_STORING = (
    outputs_option,
    click.option(
        "--context",
        "mode",
        type=click.Choice(["bucketed", "padded", "trimmed"]),
        default="bucketed",
        show_default=True,
        help="What the encoder sees beyond the speech; `voxstrata drift` measures the difference.",
    ),
    click.option(
        "--dtype",
        type=click.Choice(["float16", "float32"]),
        default="float16",
        show_default=True,
        help="Of the stored frames.",
    ),
    click.option("--pool", type=click.Choice(["mean"]), help="Keep one vector per utterance instead of frames."),
    click.option(
        "--every", type=int, default=1, show_default=True, help="Keep the mean of every N frames; N divides 1500."
    ),
)

_PLANNING = (
    click.option(
        "--long",
        type=click.Choice(["window", "error"]),
        default="window",
        show_default=True,
        help="Recordings over 30 s: cut into 30 s windows, or refuse.",
    ),
    click.option("--split", help="train, dev or test of a FLEURS folder. [default: all]"),
    click.option(
        "--unit-mb",
        type=click.FloatRange(min=0, min_open=True),
        help="Megabytes of one unit (shard) over all outputs, and so of the buffer, rounded down to a power of two of "
        "rows and at least 1 MB of each output; a longer recording takes more. "
        f"[default: {UNIT_MEGABYTES}; on a GPU what eight of its large batches fill, up to 4096]",
    ),
)


def storing_options(f: F) -> F:
    """What is kept of a corpus; the command gets it as `spec`, a StoreSpec."""

    @functools.wraps(f)
    def with_spec(*args: Any, outputs: str, mode: Any, dtype: Any, pool: Any, every: int, **others: Any) -> Any:
        from voxstrata.encoders import Context
        from voxstrata.store import StoreSpec

        return f(*args, spec=StoreSpec(outputs, dtype, pool, every, Context(mode)), **others)

    return _with(_STORING, cast(F, with_spec))


def planning_options(f: F) -> F:
    """How a corpus is planned: `long`, `split` and `unit_mb`."""
    return _with(_PLANNING, f)


def _with(options: tuple[Callable[[F], F], ...], f: F) -> F:
    for option in reversed(options):
        f = option(f)
    return f


def bootstrap_option(drawn: str) -> Callable[[F], F]:
    """How many resamples of what is drawn ("groups", "meanings") the intervals are made of."""
    return click.option(
        "--bootstrap",
        type=click.IntRange(min=0),
        default=1000,
        show_default=True,
        help=f"Resamples of the {drawn} for the 95 % intervals; 0 for none.",
    )


def names(text: str | None) -> list[str] | None:
    """A comma-separated choice; None stays None."""
    return [n.strip() for n in text.split(",")] if text else None
