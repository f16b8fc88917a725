"""What `voxstrata phonetics` left in its folder, read back for those who control for sound."""

import io
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from voxstrata.base.errors import InputError
from voxstrata.base.opening import parse_json
from voxstrata.base.plain import counted
from voxstrata.base.recognised import mistaken
from voxstrata.base.result import renamed
from voxstrata.evaluation.metrics import Float64
from voxstrata.retrieval.selection import Selection
from voxstrata.store.files import Files
from voxstrata.studies.phonetics.measure import GIVEN
from voxstrata.studies.phonetics.pairs import EARLIER
from voxstrata.studies.phonetics.result import Phonetics

_IPA, _DISTANCES = (Phonetics.files[name] for name in ("ipa", "distances"))


class PhoneticsFolder:
    """What `voxstrata phonetics` wrote, read from its folder.

    settings: of that run. segments: by id, how many an utterance has. texts: by id, what espeak-ng read; those whose
    IPA was given are not in it.
    """

    def __init__(self, folder: str) -> None:
        files = Files(folder)
        if not (files.exists(_IPA) and files.exists(_DISTANCES)):
            lacks, mend = f"no {_IPA} or {_DISTANCES} in it", "`voxstrata phonetics CORPUS -o phonetics` makes one"
            raise InputError(mistaken(folder, "a folder of `voxstrata phonetics`", mend, lacks))
        self.folder = folder
        ipa = pq.read_table(io.BytesIO(files.read(_IPA)))
        self._distances = pq.ParquetFile(io.BytesIO(files.read(_DISTANCES)))
        schemas = (ipa.schema, self._distances.schema_arrow)
        found, others = ((schema.metadata or {}).get(Phonetics.key.encode()) for schema in schemas)
        if found is None or found != others:
            raise InputError(f"{folder}: {_IPA} and {_DISTANCES} are not of one run; run `voxstrata phonetics` again")
        self.settings: dict[str, Any] = parse_json(found)
        earlier = next(iter(EARLIER)) in schemas[1].names
        self._names = tuple(EARLIER if earlier else EARLIER.values())  # of languages, then of utterances
        rows = ipa.select(["id", "segments", "voice", "text"]).to_pylist()
        self.segments = {row["id"]: row["segments"] for row in rows}
        self.texts = {row["id"]: row["text"] for row in rows if row["voice"] != GIVEN}

    def check_texts(self, texts: Mapping[str, str | None]) -> None:
        """Raise InputError where espeak-ng read something else than what the store says was spoken; texts: by id."""
        other = [name for name, text in texts.items() if text is not None and self.texts.get(name) not in (None, text)]
        if other:
            name = other[0]
            raise InputError(
                f"{self.folder}: made from other texts than the store's, of {counted(len(other), 'utterance')}; "
                f"{name!r} is {self.texts[name]!r} there and {texts[name]!r} in the store. Run `voxstrata phonetics` "
                "on the corpus as it was extracted; where the newer text is right, `voxstrata phonetics --ipa "
                f"{self.folder}/{_IPA}` into another folder takes its IPA as given"
            )

    def distances(self, x: Selection, y: Selection, column: str) -> Float64:
        """Phonetic distances of x (N) to y (M): (N, M) float64, NaN where the table has null."""
        found = np.full((len(x.ids), len(y.ids)), np.nan)
        filled = np.zeros(found.shape, bool)
        for group in range(self._distances.num_row_groups):
            if not (self._may_hold(group, x, y) or self._may_hold(group, y, x)):
                continue
            table = renamed(self._distances.read_row_group(group, [*self._names, column]), EARLIER)
            for a, b, matrix, done in ((x, y, found, filled), (y, x, found.T, filled.T)):
                two = (pc.field("source") == a.language) & (pc.field("target") == b.language)
                part = table.filter(two)
                i, j = (
                    pc.fill_null(pc.index_in(part[name].cast(pa.string()), pa.array(ids)), -1).to_numpy()
                    for name, ids in (("query", a.ids), ("candidate", b.ids))
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
        sides = dict(zip(self._names, (x.language, y.language), strict=False))
        found = [(held.column(names.index(name)).statistics, language) for name, language in sides.items()]
        return all(not (s and s.has_min_max) or s.min <= language <= s.max for s, language in found)
