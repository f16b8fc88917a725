"""Where an utterance ranks for another among all that it might have been taken for, and which one beats it."""

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from voxstrata.base.errors import InputError
from voxstrata.base.progress import Progress, Reporter
from voxstrata.retrieval.compare import Matrices, compare
from voxstrata.retrieval.kernels.float32 import Float32
from voxstrata.retrieval.selection import Selection
from voxstrata.store import EmbeddingStore
from voxstrata.store.writer import DONE

MOST_CANDIDATES = 1000  # more are not read for one pair; `voxstrata similarity` ranks them
RANKED = ("rank", "candidates", "best_id", "best_f1")


def rank_among_others(
    store: EmbeddingStore, a: int, b: int, outputs: list[str], reporter: Reporter
) -> tuple[dict[str, dict[str, Any]], str]:
    """For each output the rank of utterance b for a by SeqSim's F1, and the best of the others; and what these are.

    The candidates are the utterances that are done and of b's language (all, where it has none), without a itself and
    others of b's group, which are right, too. Others that score as high as b rank ahead of it, as in `retrieve`.
    Without candidates, with more than MOST_CANDIDATES, or where one has a frame without direction, there are no ranks,
    and the text says why.
    """
    table = store.table(["language", "group"])
    language, group = (table[name][b].as_py() for name in ("language", "group"))
    usable = store.status == DONE
    if language is not None:
        usable &= pc.fill_null(pc.equal(table["language"], pa.scalar(language)), False).to_numpy()
    if group is not None:
        usable &= ~pc.fill_null(pc.equal(table["group"], pa.scalar(group)), False).to_numpy()
    usable[[a, b]] = False
    others = np.flatnonzero(usable).astype(np.int64)
    what = f"all of {language}" if language else "all utterances"
    if not len(others) or len(others) > MOST_CANDIDATES:
        why = f"there are {len(others)}, more than {MOST_CANDIDATES}" if len(others) else "there are none"
        return {}, f"b is not ranked among others ({what}): {why}."
    query, candidates = Selection(store, np.array([a])), Selection(store, np.append(others, b))
    found: dict[str, dict[str, Any]] = {}
    for n, output in enumerate(outputs):
        reporter.progress(Progress("ranking among the others", n, len(outputs), "outputs"))
        sink = Matrices(1, len(candidates))
        try:
            compare(query.frames(output), candidates.frames(output), Float32(), sink)
        except InputError as e:
            return {}, f"b is not ranked among others ({what}): {e}."
        *scores, own = sink.seqsim().f1[0].tolist()
        best = int(np.argmax(scores))
        ranked = (1 + sum(score >= own for score in scores), len(candidates), candidates.ids[best], scores[best])
        found[output] = dict(zip(RANKED, ranked, strict=True))
    return found, f"rank: of b for a among {len(candidates)}, {what} but b's own translations; best other: of these."
