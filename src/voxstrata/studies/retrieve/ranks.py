"""Where the translation of each query stood: what recall and MRR are made of, a row per query."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from voxstrata.evaluation.metrics import BoolMatrix

_NAME = pa.dictionary(pa.int32(), pa.string())  # few names in many rows
RANKS_SCHEMA = pa.schema(
    [(name, _NAME) for name in ("output", "similarity", "score", "source", "target", "query", "group")]
    + [(name, pa.int32()) for name in ("rank", "partners", "candidates")]
)


def rank_table(
    names: tuple[str, str, str, str, str],
    ids: Sequence[str],
    groups: npt.NDArray[np.str_],
    positives: BoolMatrix,
    ranks: npt.NDArray[np.int64],
) -> pa.Table:
    """Ranks of one direction, as RANKS_SCHEMA.

    names: output, similarity, score, source, target. ids, groups: (N,) of the source language's utterances. positives:
    (N, M), translations. ranks: (queries,) of those that have one, as `best_ranks` gives them.
    """
    asked = np.flatnonzero(positives.any(axis=1))
    codes, zeros = np.arange(len(asked), dtype=np.int32), np.zeros(len(asked), np.int32)
    columns = [(zeros, [name]) for name in names]
    columns += [(codes, [ids[i] for i in asked.tolist()]), (codes, groups[asked].tolist())]
    named = [pa.DictionaryArray.from_arrays(index, pa.array(texts, pa.string())) for index, texts in columns]
    counts = (ranks, positives[asked].sum(axis=1), np.full(len(asked), positives.shape[1]))
    return pa.table([*named, *(pa.array(count.astype(np.int32)) for count in counts)], schema=RANKS_SCHEMA)


def all_ranks(tables: Sequence[pa.Table]) -> pa.Table:
    """The ranks of all directions in one table."""
    return pa.concat_tables([RANKS_SCHEMA.empty_table(), *tables]).unify_dictionaries()
