"""What controlled retrieval stands on: one utterance per sentence and language, and how they sound."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from voxstrata.base.errors import InputError
from voxstrata.base.opening import parse_json
from voxstrata.evaluation.metrics import Float64
from voxstrata.retrieval.languages import find_sides
from voxstrata.retrieval.selection import Selection
from voxstrata.store import EmbeddingStore
from voxstrata.store.files import Files
from voxstrata.studies.phonetics.measure import GIVEN
from voxstrata.studies.phonetics.result import Phonetics

_IPA, _DISTANCES = (Phonetics.files[name] for name in ("ipa", "distances"))
SMALLEST_CELL = 10  # utterances of a speaker in a language below which their mean is the language's


@dataclass(frozen=True, eq=False)
class Participants:
    """The n utterances of one language that take part, one per group, sorted by group.

    logs: (n,) logarithm of the duration, less its mean over all of the language's. segments: (n,) phonetic segments.
    cells: (n,) the number of the cell whose mean may be removed from each: its speaker's, or 0, the whole language's.
    """

    selection: Selection
    logs: Float64
    segments: npt.NDArray[np.int64]
    cells: npt.NDArray[np.int64]

    @property
    def language(self) -> str:
        """Of all of them."""
        return self.selection.language

    @property
    def groups(self) -> npt.NDArray[np.str_]:
        """What each translates, (n,)."""
        return self.selection.groups

    def take(self, at: npt.NDArray[np.int64]) -> Participants:
        """Some of them, in that order."""
        return Participants(self.selection.part(at), self.logs[at], self.segments[at], self.cells[at])


class PhoneticsFolder:
    """What `voxstrata phonetics` wrote, read from its folder.

    settings: of that run. segments: by id, how many an utterance has. texts: by id, what espeak-ng read; those whose
    IPA was given are not in it.
    """

    def __init__(self, folder: str) -> None:
        files = Files(folder)
        if not (files.exists(_IPA) and files.exists(_DISTANCES)):
            raise InputError(f"{folder}: no {_IPA} or {_DISTANCES} in it; `voxstrata phonetics CORPUS` makes them")
        self.folder = folder
        ipa = pq.read_table(io.BytesIO(files.read(_IPA)))
        self._distances = pq.ParquetFile(io.BytesIO(files.read(_DISTANCES)))
        schemas = (ipa.schema, self._distances.schema_arrow)
        found, others = ((schema.metadata or {}).get(Phonetics.key.encode()) for schema in schemas)
        if found is None or found != others:
            raise InputError(f"{folder}: {_IPA} and {_DISTANCES} are not of one run; run `voxstrata phonetics` again")
        self.settings: dict[str, Any] = parse_json(found)
        rows = ipa.select(["id", "segments", "voice", "text"]).to_pylist()
        self.segments = {row["id"]: row["segments"] for row in rows}
        self.texts = {row["id"]: row["text"] for row in rows if row["voice"] != GIVEN}

    def check_texts(self, texts: Mapping[str, str | None]) -> None:
        """Raise InputError where espeak-ng read something else than what the store says was spoken; texts: by id."""
        other = [name for name, text in texts.items() if text is not None and self.texts.get(name) not in (None, text)]
        if other:
            name = other[0]
            raise InputError(
                f"{self.folder}: made from other texts than the store's, of {len(other)} utterances; {name!r} is "
                f"{self.texts[name]!r} there and {texts[name]!r} in the store. Run `voxstrata phonetics` on the corpus "
                f"as it was extracted; where the newer text is right, `voxstrata phonetics --ipa {self.folder}/{_IPA}` "
                "into another folder takes its IPA as given"
            )

    def distances(self, x: Selection, y: Selection, column: str) -> Float64:
        """Phonetic distances of x (N) to y (M): (N, M) float64, NaN where the table has null."""
        found = np.full((len(x.ids), len(y.ids)), np.nan)
        filled = np.zeros(found.shape, bool)
        columns = ["source_language", "target_language", "source", "target", column]
        for group in range(self._distances.num_row_groups):
            if not (self._may_hold(group, x, y) or self._may_hold(group, y, x)):
                continue
            table = self._distances.read_row_group(group, columns)
            for a, b, matrix, done in ((x, y, found, filled), (y, x, found.T, filled.T)):
                two = (pc.field("source_language") == a.language) & (pc.field("target_language") == b.language)
                part = table.filter(two)
                i, j = (
                    pc.fill_null(pc.index_in(part[name].cast(pa.string()), pa.array(ids)), -1).to_numpy()
                    for name, ids in (("source", a.ids), ("target", b.ids))
                )
                known = (i >= 0) & (j >= 0)
                matrix[i[known], j[known]] = part[column].to_numpy()[known]
                done[i[known], j[known]] = True
        if not filled.all():
            i, j = (int(k[0]) for k in np.nonzero(~filled))
            raise InputError(
                f"{self.folder}: no distance between {x.ids[i]!r} and {y.ids[j]!r}; "
                "run `voxstrata phonetics` on all of the store's corpus"
            )
        return found

    def _may_hold(self, group: int, x: Selection, y: Selection) -> bool:
        """Whether a row group's statistics allow for distances of x to y."""
        held, names = self._distances.metadata.row_group(group), self._distances.schema_arrow.names
        sides = {"source_language": x.language, "target_language": y.language}
        found = [(held.column(names.index(name)).statistics, language) for name, language in sides.items()]
        return all(not (s and s.has_min_max) or s.min <= language <= s.max for s, language in found)


def find_participants(
    store: EmbeddingStore,
    phonetics: PhoneticsFolder,
    languages: str | Sequence[str] | None,
    ids: Collection[str] | None = None,
) -> tuple[list[Participants], dict[str, int]]:
    """Utterances of each language that take part, and how many do not, by reason. ids: where given, of these alone.

    Those take part that are done, have language, group and IPA; of several recordings of a sentence in one language the
    one whose id sorts first, so that every pool holds one translation. Raises InputError where the IPA is of other
    texts than the store's, or of no utterance of a language.
    """
    table = store.utterances
    seconds = np.asarray(table["seconds"].to_pylist(), np.float64)
    speakers = table["speaker"].to_pylist()
    phonetics.check_texts(dict(zip(table["id"].to_pylist(), table["text"].to_pylist(), strict=True)))
    left_out = {"without IPA": 0, "further recordings of a sentence": 0}
    found = []
    for side in find_sides(store, languages, ids):
        known = [i for i, name in enumerate(side.ids) if name in phonetics.segments]
        left_out["without IPA"] += len(side.ids) - len(known)
        first: dict[str, int] = {}
        for i in sorted(known, key=lambda i: side.ids[i]):
            first.setdefault(str(side.groups[i]), i)
        left_out["further recordings of a sentence"] += len(known) - len(first)
        selection = side.part(np.array([first[group] for group in sorted(first)], np.int64))
        segments = np.array([phonetics.segments[name] for name in selection.ids], np.int64)
        cells = _cells([speakers[i] for i in selection.indices])
        logs = np.log(seconds[selection.indices])
        found.append(Participants(selection, logs - logs.sum() / max(1, len(logs)), segments, cells))
    without = [p.language for p in found if not len(p.selection)]
    if without:
        raise InputError(
            f"{phonetics.folder}: holds IPA of no utterance in {', '.join(without)}; its ids must be the store's: "
            "run `voxstrata phonetics` on the store's corpus, or leave these languages out"
        )
    return found, {reason: count for reason, count in left_out.items() if count}


def _cells(speakers: Sequence[str | None]) -> npt.NDArray[np.int64]:
    """Number of each utterance's cell: its speaker's, or 0, the language's, where few or no utterances name one."""
    names = sorted(name for name, held in Counter(speakers).items() if name is not None and held >= SMALLEST_CELL)
    number = {name: i for i, name in enumerate(names, start=1)}
    return np.array([number.get(name or "", 0) for name in speakers], np.int64)
