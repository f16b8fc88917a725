"""What a corpus format is to `read_corpus`: how it is recognised, and how it is read."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from voxstrata.corpus.table import Corpus, Lengths


@dataclass(frozen=True)
class Reading:
    """What the caller chose: a split, columns by what they are (`{"text": "sentence"}`), whose lengths count."""

    split: str | None = None
    columns: Mapping[str, str] = field(default_factory=dict)
    lengths: Lengths = "headers"


@dataclass(frozen=True)
class CorpusFormat:
    """One way of keeping a corpus.

    name: as it completes "read as". found: whether a path, which exists, is kept so, by its content. read: reads it.
    splits, columns, durations: whether it has splits, columns, or lengths to choose; where it has none, choosing is
    refused.
    """

    name: str
    found: Callable[[Path], bool]
    read: Callable[[Path, Reading], Corpus]
    splits: bool = False
    columns: bool = False
    durations: bool = False
