"""Spoken-translation retrieval by output, beside pool size and chance."""

from voxstrata.studies.retrieve.figures import plot_language_matrix, plot_recall_by_layer
from voxstrata.studies.retrieve.measure import SCORES, SIMILARITIES, retrieve
from voxstrata.studies.retrieve.text import to_markdown, to_terminal

__all__ = [
    "SCORES",
    "SIMILARITIES",
    "plot_language_matrix",
    "plot_recall_by_layer",
    "retrieve",
    "to_markdown",
    "to_terminal",
]
