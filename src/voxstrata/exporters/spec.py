"""What to export of a checkpoint."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from voxstrata.base.errors import UsageError
from voxstrata.encoders.card import DTYPES
from voxstrata.encoders.outputs import OutputChoice
from voxstrata.encoders.silence import check_groups


@dataclass(frozen=True)
class ExportSpec:
    """What to export.

    outputs: names (`layer_00` … `final`) or "all".
    dtype: "float32" or "float16", of weights, arithmetic and outputs; or "int8", of the weights of linear layers,
        for CPUs alone.
    norm_every: apply the final LayerNorm to every layer (for early exit), not to `final` alone.
    calibrate: a corpus (folder or manifest) from which the silence cache is calibrated; None: from made-up sounds.
    silence_keys: cached keys per layer and head, by k-means; 0 keeps one key per position.
    prefix: tokens that an encoder is told before the speech, where its family has any: OWSM-CTC's language and task.
    """

    outputs: OutputChoice = "all"
    dtype: str = "float32"
    norm_every: bool = False
    calibrate: str | Path | None = None
    silence_keys: int = 32
    prefix: Sequence[str] = ()

    def check(self) -> None:
        """Raises UsageError for an unknown dtype, InputError for more silence keys than there are positions."""
        if self.dtype not in DTYPES:
            raise UsageError(f"unknown dtype {self.dtype!r}; choose one of {', '.join(DTYPES)}")
        check_groups(self.silence_keys)
