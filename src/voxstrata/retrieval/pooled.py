"""Mean-pooled states and their cosine: the cheap baseline beside SeqSim."""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from voxstrata.base.errors import InputError
from voxstrata.retrieval.ragged import FloatArray, Ragged, check_matrix, check_names, check_width, name_of, unit_rows


def mean_pool(utterances: Ragged) -> npt.NDArray[np.float32]:
    """Mean over the frames of each utterance, (n, d) float32, accumulated in float64."""
    pooled = np.empty((len(utterances), utterances.rows.shape[1]), np.float32)
    for i, (start, end) in enumerate(pairwise(utterances.offsets)):
        pooled[i] = utterances.rows[start:end].mean(axis=0, dtype=np.float64)
    return pooled


def pooled_cosine(
    x: FloatArray, y: FloatArray, x_names: Sequence[str] = (), y_names: Sequence[str] = ()
) -> npt.NDArray[np.float32]:
    """Cosines of the rows of x (N, d) to the rows of y (M, d), (N, M) float32.

    The names are what error messages call the rows.
    Raises InputError for a row that is zero, NaN or infinite.
    """
    sides = ((x, "x", x_names), (y, "y", y_names))
    for matrix, label, names in sides:
        check_matrix(matrix, label)
        check_names(names, len(matrix))
    check_width(x, y, "rows")
    units = []
    for matrix, side, names in sides:
        rows, bad = unit_rows(matrix)
        if bad is not None:
            label = "utterance" if names else f"row of {side}"
            raise InputError(
                f"{name_of(names, bad, label)}: the pooled state is zero, NaN or infinite and has no cosine; "
                "extract the utterance again or leave it out"
            )
        units.append(rows)
    product: npt.NDArray[np.float32] = units[0] @ units[1].T
    return product
