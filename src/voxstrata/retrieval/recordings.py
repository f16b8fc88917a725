"""Which recordings of two languages are asked and searched: the pool of retrieval."""

import numpy as np
import numpy.typing as npt

from voxstrata.retrieval.selection import Selection

EVERY_RECORDING, SHARED_FIRST = "all", "shared-first"
RETRIEVAL_POOLS = (EVERY_RECORDING, SHARED_FIRST)
POOL_MEANS = {
    EVERY_RECORDING: "every recording of the target language; any recording of the query's sentence is a hit",
    SHARED_FIRST: "the sentences that both languages hold, one recording of each (the first by id), as published "
    "figures have it",
}


def first_recordings(side: Selection) -> Selection:
    """Of several recordings of a sentence the one whose id sorts first; they stay in their order."""
    order = np.argsort(np.array(side.ids))
    _, first = np.unique(side.groups[order], return_index=True)
    return side.part(np.sort(order[first]))


def shared_sentences(x: Selection, y: Selection) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Positions of those whose group the other side holds, too; in the order of either side."""
    return np.flatnonzero(np.isin(x.groups, y.groups)), np.flatnonzero(np.isin(y.groups, x.groups))
