"""What retrieval found: one table of figures, shown as tables and pictures, saved and loaded."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import ClassVar, Self

import pyarrow as pa
import pyarrow.compute as pc

from voxstrata.base.figures import Figure
from voxstrata.base.finding import Finding
from voxstrata.base.result import Result
from voxstrata.base.tables import TextTable, as_stored
from voxstrata.evaluation.levels import with_level
from voxstrata.studies.retrieve.figures import plot_language_matrix, plot_negatives, plot_recall_by_layer
from voxstrata.studies.retrieve.ranks import RANKS_SCHEMA
from voxstrata.studies.retrieve.text import SETTINGS_KEY, best_layer, negatives_of, retrieval_metrics, summary_tables

_NAMES = ("store", "output", "similarity", "score", "level", "source", "target", "metric", "pool")
RETRIEVAL_SCHEMA = pa.schema(
    [(name, pa.string()) for name in _NAMES]
    + [(n, pa.float64()) for n in ("value", "low", "high", "chance", "below_best", "below_best_low", "below_best_high")]
    + [(name, pa.float64()) for name in ("p", "null_mean", "null_low", "null_high")]
    + [(name, pa.int64()) for name in ("queries", "queries_without_partner", "candidates", "candidates_max")]
)


@dataclass(frozen=True, eq=False, repr=False)
class Retrieval(Result):
    """Finding translations, for every output and pair of languages.

    table: one row per (output, similarity, score, level, source, target, metric), columns as in RETRIEVAL_SCHEMA,
    outputs by depth; a figure that does not exist is null. pool: of which recordings, "all" or "shared-first". Metrics:
    - recall@k and mrr, for each score: the similarity itself ("raw"), "csls", "ratio_margin";
    - k_occurrence_skew@10, hubness; its queries are all utterances of the source language;
    - mutual_knn@10, with pooled_cosine as its similarity: the share of a sentence's nearest neighbours within one
      language that are its neighbours within the other, of the sentences that CKA has. The same both ways. null_mean,
      null_low, null_high: mean and middle 95 % when sentences are matched at random; p: (1 + how many of these
      matchings agree as well) / (1 + how many there are);
    - sound_recall@1, length_recall@1, words_recall@1, where such hard negatives were asked for: recall@1 with a query's
      translations and pool_size - 1 other candidates for its pool; sound_random_recall@1, …: the same with random
      negatives, the mean over all draws; sound_minus_random, …: the difference, paired. candidates, candidates_max:
      sizes of these pools; queries_without_partner: queries that have a translation and not enough negatives;
    - cka and cka_debiased, with linear_cka as their similarity: linear CKA of the pooled states of the groups that both
      languages hold, averaged over a group's recordings. The same both ways.
    level: "direction"; "pair", the mean of both directions of two languages, with these for source and target; "mean",
    the unweighted mean over all directions with queries (null where one of these is null), without source and target.
    Directions whose pool holds nothing but translations (one
    utterance, mostly) have no figures: any answer is right.

    low, high: 95 % percentile intervals over resamples of the groups, which are the same for every row. Queries are
    resampled, the pool is not. Skew and CKA have no interval: drawing a sentence twice biases both. below_best, at
    level "mean": the best output's value of the same similarity, score and metric minus this one's, and the ends of the
    interval of that difference, paired by resample.

    ranks: of every query of a direction that has figures, by each similarity and score, columns as in RANKS_SCHEMA:
    query, its id; rank, from 1, of its first translation among so many candidates, of which `partners` are
    translations. recall@k is the share of ranks up to k, mrr the mean of 1 / rank. Empty where an earlier version
    saved the result.
    """

    table: pa.Table
    ranks: pa.Table = field(default_factory=RANKS_SCHEMA.empty_table)

    command = "retrieve"
    question = "Which layer finds translations?"
    files: ClassVar = {"table": "retrieval.parquet", "ranks": "ranks.parquet"}
    newer = ("ranks",)
    key = SETTINGS_KEY
    markdown = "retrieval.md"
    captions: ClassVar = {
        "recall_by_layer": "How many translations come first, by layer, beside chance",
        "languages": "How many translations come first, from each language to each",
        "negatives": "The same among a few candidates: hard ones, random ones, and chance",
    }
    brief = 2

    @property
    def title(self) -> str:
        about = self.store
        whose = f"{about['model']['checkpoint']}, {about['spec']['context']['mode']}, " if about else ""
        return f"{whose}on {self.table['store'][0]}"

    def finding(self) -> Finding:
        return best_layer(self.table)

    def tables(self) -> list[TextTable]:
        return summary_tables(self.table)

    def stored(self) -> list[TextTable]:
        first = retrieval_metrics(self.table)[0]
        names = ["output", "similarity", "level", "source", "target", "value", "low", "high", "chance", "queries"]
        names += ["candidates", "candidates_max", *(["pool"] if "pool" in self.table.column_names else [])]
        raw = pc.and_(pc.equal(self.table["metric"], first), pc.equal(self.table["score"], "raw"))
        title = f"{first} at every level, as stored"
        shares = ("value", "low", "high", "chance")
        return [as_stored(self.table.filter(raw), title, names, shares=shares, of=len(self.table))]

    @classmethod
    def load(cls, folder: str | Path) -> Self:
        found = super().load(folder)
        return replace(found, table=with_level(found.table))

    @property
    def pictures(self) -> dict[str, str]:
        return {name: c for name, c in self.captions.items() if name != "negatives" or negatives_of(self.table)}

    def figures(self) -> dict[str, Figure]:
        found = {
            "recall_by_layer": plot_recall_by_layer(self.table, self.title),
            "languages": plot_language_matrix(self.table, self.title),
        }
        return found | ({"negatives": plot_negatives(self.table, self.title)} if negatives_of(self.table) else {})
