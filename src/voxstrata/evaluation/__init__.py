"""How good a retrieval is: metrics beside chance, intervals, hubness, CKA, AUC. Arrays in, figures out."""

from voxstrata.evaluation.bootstrap import Resamples
from voxstrata.evaluation.cka import CKA, linear_cka
from voxstrata.evaluation.hubness import chance_skew, csls, k_occurrence, k_occurrence_skew, ratio_margin
from voxstrata.evaluation.metrics import (
    Evaluation,
    MeanEvaluation,
    MetricEstimate,
    best_ranks,
    chance_at_k,
    chance_mrr,
    evaluate,
    evaluate_ranks,
    positives_from_groups,
)

__all__ = [
    "CKA",
    "Evaluation",
    "MeanEvaluation",
    "MetricEstimate",
    "Resamples",
    "best_ranks",
    "chance_at_k",
    "chance_mrr",
    "chance_skew",
    "csls",
    "evaluate",
    "evaluate_ranks",
    "k_occurrence",
    "k_occurrence_skew",
    "linear_cka",
    "positives_from_groups",
    "ratio_margin",
]
