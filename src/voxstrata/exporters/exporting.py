"""Export: checkpoint in, validated model folder out, or nothing.

This module needs no torch, which takes seconds to import: what is wrong with the arguments is found before.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from voxstrata.base.errors import UsageError
from voxstrata.base.folders import check_vacant
from voxstrata.base.progress import SILENT, Reporter
from voxstrata.corpus import read_corpus
from voxstrata.encoders.card import DTYPES, ModelFolder, open_model
from voxstrata.encoders.silence import check_groups
from voxstrata.exporters.hub import check_source


@dataclass(frozen=True)
class ExportSpec:
    """What to export.

    outputs: names (`layer_00` … `final`) or "all".
    dtype: "float32" or "float16", of weights, arithmetic and outputs; or "int8", of the weights of linear layers,
        for CPUs alone.
    norm_every: apply the final LayerNorm to every layer (for early exit), not to `final` alone.
    calibrate: a corpus (folder or manifest) from which the silence cache is calibrated; None: pure silence.
    silence_keys: cached keys per layer and head, by k-means; 0 keeps one key per position.
    """

    outputs: str | Sequence[str] = "all"
    dtype: str = "float32"
    norm_every: bool = False
    calibrate: str | Path | None = None
    silence_keys: int = 32

    def check(self) -> None:
        """Raises UsageError for an unknown dtype, InputError for more silence keys than there are positions."""
        if self.dtype not in DTYPES:
            raise UsageError(f"unknown dtype {self.dtype!r}; choose one of {', '.join(DTYPES)}")
        check_groups(self.silence_keys)


def export(
    source: str,
    target: str | Path,
    spec: ExportSpec | None = None,
    *,
    revision: str | None = None,
    reporter: Reporter = SILENT,
) -> ModelFolder:
    """Export the encoder of `source` (see `load_checkpoint`) into the new folder `target`.

    The folder appears only when every graph agrees with PyTorch. `reporter` hears of steps, and is warned of recordings
    that cannot serve calibration.

    Raises InputError for an unusable checkpoint or calibration corpus, an existing target, or a failed
    validation; UsageError for unknown outputs or dtype.
    """
    spec, target = spec or ExportSpec(), Path(target)
    spec.check()
    check_vacant(target)
    check_source(source, revision)
    corpus = None if spec.calibrate is None else read_corpus(spec.calibrate)

    from voxstrata.exporters.checkpoint import load_checkpoint
    from voxstrata.exporters.writing import write_model

    reporter.step(f"loading {source}")
    write_model(load_checkpoint(source, revision), target, spec, corpus, reporter)
    return open_model(target)
