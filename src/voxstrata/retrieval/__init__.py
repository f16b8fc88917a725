"""Similarities of utterances: SeqSim on frames, cosine of pooled states, for a few or for millions of pairs."""

from voxstrata.retrieval.all_pairs import similarity
from voxstrata.retrieval.pooled import mean_pool, pooled_cosine
from voxstrata.retrieval.ragged import Ragged
from voxstrata.retrieval.selection import Selection, select
from voxstrata.retrieval.similarities import SeqSim, seqsim

__all__ = ["Ragged", "Selection", "SeqSim", "mean_pool", "pooled_cosine", "select", "seqsim", "similarity"]
