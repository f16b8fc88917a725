"""What decides how retrieval is judged."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from voxstrata.base.choices import chosen
from voxstrata.base.errors import UsageError
from voxstrata.evaluation.bootstrap import LEVEL, RESAMPLES, Resamples
from voxstrata.evaluation.metrics import KS
from voxstrata.evaluation.neighbours import MUTUAL_NEIGHBOURS, PERMUTATIONS
from voxstrata.retrieval.kernels.base import Kernel
from voxstrata.retrieval.recordings import EVERY_RECORDING, RETRIEVAL_POOLS
from voxstrata.studies.retrieve.negatives import NEGATIVES, SMALL_POOL

SCORES = ("raw", "csls", "ratio_margin")  # made of one similarity


@dataclass(frozen=True)
class RetrievalOptions:
    """How retrieval is judged, and by what it is computed.

    scores: of SCORES. ks: recall@k for each. bootstrap: resamples of the groups for the intervals; 0 for none.
    kernel: what computes SeqSim; by default the fastest of this machine.
    pool: "all" recordings of the target language, or "shared-first", the published protocol: for each pair of languages
        the sentences that both hold, one recording of each, the first by id.
    neighbours: k of mutual nearest neighbours; `permutations` random matchings are its null, 0 for none.
    negatives: of NEGATIVES, in a list or with commas between them. For each, recall@1 is also measured in small pools:
        of every query its translations and pool_size - 1 others, those nearest to it in sound or in length, or those
        that share most words with the translation. phonetics: folder of `voxstrata phonetics`, which "sound" needs.
    Raises UsageError for unknown scores, pools or negatives and impossible numbers.
    """

    scores: Sequence[str] = SCORES
    ks: Sequence[int] = KS
    bootstrap: int = RESAMPLES
    kernel: Kernel | None = None
    pool: str = EVERY_RECORDING
    neighbours: int = MUTUAL_NEIGHBOURS
    permutations: int = PERMUTATIONS
    negatives: str | Sequence[str] = ()
    pool_size: int = SMALL_POOL
    phonetics: str | Path | None = None

    def __post_init__(self) -> None:
        chosen("pool", [self.pool], RETRIEVAL_POOLS)
        object.__setattr__(self, "scores", tuple(chosen("score", self.scores, SCORES)))
        negatives = chosen("negatives", self.negatives, NEGATIVES) if self.negatives else ()
        object.__setattr__(self, "negatives", tuple(negatives))
        if self.pool_size < 2:
            raise UsageError(f"pool size {self.pool_size}: give at least 2, a translation and another")
        if not self.ks or min(self.ks) < 1:
            raise UsageError(f"ks is {self.ks}; give at least one k, each at least 1")
        if self.neighbours < 1 or self.permutations < 0:
            raise UsageError(f"{self.neighbours} neighbours, {self.permutations} permutations; give at least 1 and 0")
        if self.bootstrap < 0:
            raise UsageError(f"bootstrap is {self.bootstrap}; give a number of resamples, or 0 for no intervals")

    def resamples(self, groups: Sequence[str]) -> Resamples | None:
        """Draws of these groups; None where no intervals are asked for."""
        return Resamples(groups, self.bootstrap) if self.bootstrap else None

    def about(self, groups: Sequence[str]) -> dict[str, Any]:
        """What pools and intervals stand on, as results store it."""
        return {
            "pool": self.pool,
            "bootstrap_resamples": self.bootstrap,
            "bootstrap_groups": len(groups),
            "bootstrap_level": LEVEL,
        }
