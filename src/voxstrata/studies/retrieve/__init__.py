"""Spoken-translation retrieval by output, beside pool size and chance."""

from voxstrata.studies.retrieve.found import FoundRetrieval, evaluate_similarity
from voxstrata.studies.retrieve.measure import ALL_SIMILARITIES, retrieve
from voxstrata.studies.retrieve.options import SCORES, RetrievalOptions
from voxstrata.studies.retrieve.result import Retrieval

__all__ = [
    "ALL_SIMILARITIES",
    "SCORES",
    "FoundRetrieval",
    "Retrieval",
    "RetrievalOptions",
    "evaluate_similarity",
    "retrieve",
]
