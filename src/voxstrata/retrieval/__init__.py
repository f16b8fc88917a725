"""Cross-lingual retrieval on the stored states: similarity, recall beside chance, table and plots."""

from __future__ import annotations

from voxstrata.retrieval.evaluate import (
    PairRecall,
    Recall,
    best_ranks,
    chance_at_k,
    evaluate_pair,
    mean_recall,
    positives_from_groups,
    recall_at_k,
)
from voxstrata.retrieval.plots import plot_language_matrix, plot_recall_by_layer
from voxstrata.retrieval.pooled import mean_pool, pooled_cosine
from voxstrata.retrieval.ragged import Ragged
from voxstrata.retrieval.seqsim import SeqSim, seqsim
from voxstrata.retrieval.table import SIMILARITIES, retrieve, to_markdown, to_terminal

__all__ = [
    "SIMILARITIES",
    "PairRecall",
    "Ragged",
    "Recall",
    "SeqSim",
    "best_ranks",
    "chance_at_k",
    "evaluate_pair",
    "mean_pool",
    "mean_recall",
    "plot_language_matrix",
    "plot_recall_by_layer",
    "pooled_cosine",
    "positives_from_groups",
    "recall_at_k",
    "retrieve",
    "seqsim",
    "to_markdown",
    "to_terminal",
]
