"""Cross-lingual retrieval on the stored states: similarity, recall beside chance, table and plots."""

from __future__ import annotations

from voxstrata.retrieval.bootstrap import Resamples
from voxstrata.retrieval.cka import CKA, linear_cka
from voxstrata.retrieval.evaluate import (
    Estimate,
    Evaluation,
    MeanEvaluation,
    best_ranks,
    chance_at_k,
    chance_mrr,
    evaluate,
    positives_from_groups,
)
from voxstrata.retrieval.hubness import chance_skew, csls, k_occurrence, k_occurrence_skew, ratio_margin
from voxstrata.retrieval.plots import plot_language_matrix, plot_recall_by_layer
from voxstrata.retrieval.pooled import mean_pool, pooled_cosine
from voxstrata.retrieval.ragged import Ragged
from voxstrata.retrieval.seqsim import SeqSim, seqsim
from voxstrata.retrieval.summary import to_markdown, to_terminal
from voxstrata.retrieval.table import SCORES, SIMILARITIES, retrieve

__all__ = [
    "CKA",
    "SCORES",
    "SIMILARITIES",
    "Estimate",
    "Evaluation",
    "MeanEvaluation",
    "Ragged",
    "Resamples",
    "SeqSim",
    "best_ranks",
    "chance_at_k",
    "chance_mrr",
    "chance_skew",
    "csls",
    "evaluate",
    "k_occurrence",
    "k_occurrence_skew",
    "linear_cka",
    "mean_pool",
    "plot_language_matrix",
    "plot_recall_by_layer",
    "pooled_cosine",
    "positives_from_groups",
    "ratio_margin",
    "retrieve",
    "seqsim",
    "to_markdown",
    "to_terminal",
]
