"""How alike translations sound, as one result: a row per pair of translations, all IPA, all distances."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from math import nan
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa

from voxstrata.base.figures import Figure
from voxstrata.base.finding import Finding, SmallCurve, in_hundred, percent_text
from voxstrata.base.plain import counted
from voxstrata.base.result import Result, metadata
from voxstrata.base.tables import Percent, TextTable, as_stored, known
from voxstrata.studies.phonetics.pairs import EARLIER, SoundDirection, summarise

FOUND = "voxstrata_phonetics_found"  # in the table's metadata: what else a reader must know
_CLOSEST = 50  # pairs that the report shows


@dataclass(frozen=True, eq=False, repr=False)
class Phonetics(Result):
    """How alike translations sound.

    table: a row per pair of translations in one direction (see `translations`). ipa: a row per utterance that takes
    part. distances: the Parquet file with a row per two utterances of two languages, a row group per pair of languages
    (DISTANCE_SCHEMA).
    """

    table: pa.Table
    ipa: pa.Table
    distances: Path

    command = "phonetics"
    question = "How alike do translations sound?"
    files: ClassVar = {"table": "phonetics.parquet", "ipa": "ipa.parquet", "distances": "distances.parquet"}
    large = ("distances",)
    earlier: ClassVar = {"table": {**EARLIER, "source_word": "query_word", "target_word": "candidate_word"}}
    key = "voxstrata_phonetics"
    markdown = "phonetics.md"

    @property
    def _found(self) -> dict[str, Any]:
        return metadata(self.table, FOUND) or {"left_out": {}, "notes": [], "others": []}

    @property
    def left_out(self) -> Mapping[str, str]:
        """Why utterances take no part, by id."""
        return dict(self._found["left_out"])

    @property
    def notes(self) -> Sequence[str]:
        """What a reader must know of the IPA and the figures, a sentence each."""
        return list(self._found["notes"])

    @property
    def directions(self) -> list[SoundDirection]:
        """Every direction in figures."""
        others = {(source, target): mean for source, target, mean in self._found["others"]}
        rows: dict[tuple[str, str], list[dict[str, Any]]] = {}
        for row in self.table.to_pylist():
            rows.setdefault((row["source"], row["target"]), []).append(row)
        return [summarise(held, others.get(direction, nan)) for direction, held in rows.items()]

    @property
    def title(self) -> str:
        voices = ", ".join(f"{language} {voice}" for language, voice in self.settings["voices"].items())
        read = f"voices: {voices}" if voices else "IPA as given"
        return f"How alike translations sound: {counted(len(self.ipa), 'utterance')}; {read}"

    def finding(self) -> Finding | None:
        found = sorted((d for d in self.directions if known(d.like_length) is not None), key=lambda d: d.like_length)
        if not found:
            return None
        alike, unlike = found[0], found[-1]
        few = self._takes_all(alike) or self._takes_all(unlike)
        others = "the few other sentences, whatever their length" if few else "other sentences as long"
        answer = (
            f"Translations sound most alike in {alike.source} → {alike.target}: of {others}, "
            f"{percent_text(alike.like_length)} sound closer. Least in {unlike.source} → {unlike.target}: "
            f"{percent_text(unlike.like_length)}. Chance is 50 %."
        )
        shares = in_hundred([d.like_length for d in found])
        half = [50.0] * len(found)
        up = "others that sound closer (%): low is alike"
        names = [f"{d.source} → {d.target}" for d in found]
        return Finding(answer, SmallCurve(up, names, shares, chance=half, best=0, steps=True))

    def _takes_all(self, direction: SoundDirection) -> bool:
        """Whether the sentences nearest in length are all that there are, however long they are."""
        return bool(max(direction.candidates) - 1 <= self.settings["neighbours_in_length"])

    def tables(self) -> list[TextTable]:
        header = ["direction", "pairs", "pool", "distance", "others", "quantile", "like length", "closest", "chance"]
        rows = []
        for d in self.directions:
            pool = "–".join(dict.fromkeys(map(str, d.candidates)))
            shares = (d.quantile, d.like_length, d.closest, d.chance, d.word_quantile, d.word_closest)
            distances = [known(d.distance), known(d.others)]
            rows.append([f"{d.source} → {d.target}", d.pairs, pool, *distances, *map(_percent, shares)])
        note = (
            "distance: mean of translations, others: of non-translations. All else is in percent. quantile: median "
            "share of a sentence's non-translations that sound closer than its translation (50: sound says nothing); "
            f"like length: the same among the {self.settings['neighbours_in_length']} nearest in length to it; "
            "closest: share of translations that sound closest of their pool, beside chance; word: the same by the "
            "closest pair of words."
        )
        if any(map(self._takes_all, self.directions)):
            note += " A pool that has no more others than that gives all of them: length is not held alike there."
        notes = "".join(f"\nnote: {note}" for note in self.notes)
        header += ["word quantile", "word closest"]
        return [TextTable("By direction", header, rows, note + notes)]

    def stored(self) -> list[TextTable]:
        names = ["query", "candidate", "distance", "rank", "non_translations", "quantile", "quantile_like_length"]
        names += ["word_distance", "query_word", "candidate_word"]
        near = self.table.sort_by("distance").slice(0, _CLOSEST)
        title = "The translations that sound most alike, as stored"
        return [as_stored(near, title, names, shares=("quantile", "quantile_like_length"), of=len(self.table))]

    def figures(self) -> dict[str, Figure]:
        return {}

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form: settings and the figures of every direction."""
        directions = [asdict(direction) for direction in self.directions]
        found = {"utterances": len(self.ipa), "left_out": self.left_out, "notes": self.notes}
        return {**found, "settings": self.settings, "directions": directions}


def _percent(share: float) -> Percent | None:
    return None if known(share) is None else Percent(100 * share)
