"""Where an encoder ends early, and the two parts of a corpus: one to choose an exit on, one to report it on."""

from collections.abc import Sequence
from dataclasses import dataclass

from voxstrata.base.errors import UsageError

DEV, TEST = "dev", "test"  # the parts, as tables name them
MEAN_OF_LANGUAGES = "all"  # in the place of a language: the mean over languages, each of the same weight


@dataclass(frozen=True)
class EarlyExit:
    """Where the encoder ends: after block `after` (0: before the first), with or without its final LayerNorm."""

    after: int
    final_norm: bool = True

    def __str__(self) -> str:
        return f"k = {self.after}, {'with' if self.final_norm else 'without'} LayerNorm"


def check_exit(at: EarlyExit, layers: int) -> None:
    """Raises UsageError for a block that an encoder of `layers` blocks does not have."""
    if not 0 <= at.after <= layers:
        raise UsageError(f"no block {at.after} to end after: the encoder has {layers}, so give 0 to {layers}")


def every_exit(layers: int, blocks: Sequence[int] | None = None) -> tuple[EarlyExit, ...]:
    """Exits after the given blocks (None: after every block, and before the first), each with and without LayerNorm.

    The last block is always among them: the others are compared with it.
    """
    chosen = sorted({*(range(layers + 1) if blocks is None else blocks), layers})
    return tuple(EarlyExit(k, norm) for k in chosen for norm in (True, False))
