"""How good a retrieval is: metrics beside chance, intervals, hubness, CKA, AUC. Arrays in, figures out."""

from voxstrata.evaluation.bootstrap import Resamples
from voxstrata.evaluation.cka import linear_cka
from voxstrata.evaluation.hubness import csls, ratio_margin
from voxstrata.evaluation.metrics import Evaluation, MeanEvaluation, evaluate, positives_from_groups
from voxstrata.evaluation.neighbours import mutual_neighbours

__all__ = ["Evaluation", "MeanEvaluation", "Resamples", "csls", "evaluate", "linear_cka"]
__all__ += ["mutual_neighbours", "positives_from_groups", "ratio_margin"]
