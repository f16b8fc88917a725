"""What a corpus holds, in numbers: what a person checks before hours of work."""

from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from voxstrata.base.plain import counted
from voxstrata.corpus.table import Corpus

_SHOWN = 8  # languages that the text names
_NO_GROUPS = "none named, so `voxstrata retrieve` will find no translations"


@dataclass(frozen=True)
class CorpusSummary:
    """Counts of a corpus.

    recordings: rows. files: sound files that they are, or are stretches of. languages: rows by language, most first;
    without_language: those that name none. groups: of translations; translated: those in several languages.
    texts: rows with one. speakers: different ones.
    """

    recordings: int
    files: int
    languages: dict[str, int]
    without_language: int
    groups: int
    translated: int
    texts: int
    speakers: int

    @classmethod
    def of(cls, corpus: Corpus) -> "CorpusSummary":
        """Count."""
        table = corpus.table
        counted = pc.value_counts(table["language"].combine_chunks()).to_pylist()
        languages = {each["values"]: int(each["counts"]) for each in counted}
        nameless = languages.pop(None, 0)
        pairs = table.select(["group", "language"]).drop_null().group_by(["group", "language"]).aggregate([])
        by_group = pairs.group_by("group").aggregate([("language", "count")])
        return cls(
            recordings=len(corpus),
            files=table.group_by(["path", "member"]).aggregate([]).num_rows,
            languages=dict(sorted(languages.items(), key=lambda each: (-each[1], each[0]))),
            without_language=nameless,
            groups=_distinct_values(table["group"]),
            translated=int(pc.sum(pc.greater(by_group["language_count"], 1)).as_py() or 0),
            texts=len(corpus) - table["text"].null_count,
            speakers=_distinct_values(table["speaker"]),
        )

    def to_text(self) -> str:
        """A line a kind."""
        named = [f"{name} {count}" for name, count in self.languages.items()]
        shown = ", ".join(named[:_SHOWN]) + (", …" if len(named) > _SHOWN else "")
        unnamed = ""
        if self.languages and self.without_language:
            unnamed = f"; {counted(self.without_language, 'recording')} without one"
        parts = f", of {counted(self.files, 'file')}" if self.files < self.recordings else ""
        groups = f"{self.groups:,}, {self.translated:,} of them in several languages"
        lines = {
            "recordings": f"{self.recordings:,}{parts}",
            "languages": f"{len(self.languages)}: {shown}{unnamed}" if self.languages else "none named",
            "groups": groups if self.groups else _NO_GROUPS,
            "texts": f"{self.texts:,}" if self.texts else "none",
            "speakers": f"{self.speakers:,}" if self.speakers else "none named",
        }
        return "\n".join(f"  {name:<12}{line}" for name, line in lines.items())


def _distinct_values(column: pa.ChunkedArray) -> int:
    return int(pc.count_distinct(column, mode="only_valid").as_py())
