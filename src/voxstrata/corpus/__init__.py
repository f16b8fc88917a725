"""What is to be encoded: a table of recordings from a folder, a manifest or a local FLEURS copy."""

from voxstrata.corpus.probe import probe_corpus
from voxstrata.corpus.probed import Probed
from voxstrata.corpus.source import read_corpus
from voxstrata.corpus.table import COLUMNS, Corpus

__all__ = ["COLUMNS", "Corpus", "Probed", "probe_corpus", "read_corpus"]
