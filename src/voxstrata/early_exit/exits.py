"""Where an encoder ends early, and the two parts of a corpus: one to choose an exit on, one to report it on."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from voxstrata.base.choices import chosen
from voxstrata.base.errors import UsageError

DEV, TEST = "dev", "test"  # the parts, as tables name them
MEAN_OF_LANGUAGES = "all"  # in the place of a language: the mean over languages, each of the same weight
ERROR_KINDS = ("substitutions", "deletions", "insertions")

ExitNorm = Literal["mapped", "refitted", "without", "with"]
NORMS: tuple[ExitNorm, ...] = get_args(ExitNorm)  # what is nearer to the original comes later
PLAIN_NORMS: tuple[ExitNorm, ...] = ("without", "with")  # exits of the model itself
SOFTER: tuple[ExitNorm, ...] = ("mapped", "refitted")  # controls, fitted on the development part: see `fitting`


@dataclass(frozen=True)
class EarlyExit:
    """Where the encoder ends: after block `after` (0: before the first), and what its states go through from there.

    norm: "with" is the encoder's own final LayerNorm; "without" hands on the states as they are; "refitted" is the
    LayerNorm with statistics of this layer, "mapped" an affine map to the last layer, then the LayerNorm (`fitting`).
    """

    after: int
    norm: ExitNorm = "with"

    def __str__(self) -> str:
        return f"k = {self.after}, {self.norm}" + " LayerNorm" * (self.norm != "mapped")

    @property
    def rank(self) -> tuple[int, int]:
        """Sorts exits by how near they are to the whole encoder, which is the last."""
        return self.after, NORMS.index(self.norm)


def exit_name(after: int, norm: str) -> str:
    """Short: "4" with the LayerNorm, "4 no LN" without, else "4" and what its states go through."""
    return f"{after}" if norm == "with" else f"{after} no LN" if norm == "without" else f"{after} {norm}"


def check_exit(at: EarlyExit, layers: int) -> None:
    """Raises UsageError for a block that an encoder of `layers` blocks does not have."""
    if not 0 <= at.after <= layers:
        raise UsageError(f"no block {at.after} to end after: the encoder has {layers}, so give 0 to {layers}")


def every_exit(
    layers: int, blocks: Sequence[int] | None = None, norms: Sequence[ExitNorm] = PLAIN_NORMS
) -> tuple[EarlyExit, ...]:
    """Exits after the given blocks (None: after every block, and before the first), each with these norms.

    They come by `rank`. The whole encoder (the last block, with LayerNorm) is always among them: the others are
    compared with it. After the last block softer norms change nothing and are left out. Raises UsageError for a norm
    that does not exist.
    """
    chosen("norm", list(norms), NORMS)
    ends = {*(range(layers + 1) if blocks is None else blocks), layers}
    found = {EarlyExit(k, norm) for k in ends for norm in norms if k < layers or norm in PLAIN_NORMS} | {
        EarlyExit(layers)
    }
    return tuple(sorted(found, key=lambda at: at.rank))
