"""SeqSim between utterances, on their unpooled frames.

Sources: BERTScore without IDF (Zhang et al. 2020, arXiv 1904.09675), applied to the frames of a speech
encoder as in Ma et al. 2024 (arXiv 2407.01130). The formulas follow public descriptions of both; the text of
the second paper was not available to us.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from voxstrata.base.plain import counted, shown_as
from voxstrata.retrieval.kernels.base import Kernel
from voxstrata.retrieval.kernels.float32 import Float32
from voxstrata.retrieval.ragged import Ragged, check_width


@dataclass(frozen=True, eq=False)
class SeqSim:
    """Similarities of N utterances to M others, each (N, M) float32 in [-1, 1] up to rounding."""

    f1: npt.NDArray[np.float32]
    precision: npt.NDArray[np.float32]
    recall: npt.NDArray[np.float32]

    def __repr__(self) -> str:
        return shown_as(self, f"of {self.f1.shape[0]} × {counted(self.f1.shape[1], 'utterance')}")


def seqsim(x: Ragged, y: Ragged, kernel: Kernel | None = None) -> SeqSim:
    """SeqSim of every utterance of `x` (N) to every utterance of `y` (M); rows need not be of unit length.

    For one pair, S holds the cosines of all frames of x to all frames of y. Precision is the mean over the
    frames of x of the largest S in the row, recall the mean over the frames of y of the largest S in the
    column, F1 their `harmonic` mean. Swapping x and y swaps precision and recall, so one call serves both
    directions.
    """
    check_width(x.rows, y.rows, "utterances")
    kernel = kernel or Float32()
    precision, recall = kernel.compare(kernel.pack(x), kernel.pack(y))
    return SeqSim(harmonic(precision, recall), precision, recall)


def harmonic(precision: npt.NDArray[np.float32], recall: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """F1 = 2PR / (P + R) where P and R are both positive, min(P, R) elsewhere; same shape as the inputs.

    Cosines can be negative, where the formula is no mean: it has a pole at P = -R (P = 0.5, R = -0.4 gives
    -4), and of two negative values it follows the better, not the worse. The minimum is the limit of the
    formula as either value falls to 0, so F1 stays continuous, never falls when P or R rises, and lies
    between P and R.
    """
    f1 = np.minimum(precision, recall)
    positive = f1 > 0
    low, high = f1[positive], np.maximum(precision, recall)[positive]
    # The ratio lies in [0.5, 1): nothing underflows, and exchanging P and R changes no bit.
    f1[positive] = 2 * low * (high / (low + high))
    return f1
