"""What controlled retrieval stands on: one utterance per sentence and language, their states and how they sound."""

from __future__ import annotations

import io
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from voxstrata.base.errors import InputError
from voxstrata.retrieval.kernels.base import Kernel
from voxstrata.retrieval.languages import find_sides
from voxstrata.retrieval.pooled import pooled_cosine
from voxstrata.retrieval.ragged import Ragged
from voxstrata.retrieval.selection import Selection
from voxstrata.retrieval.similarities import seqsim
from voxstrata.store import EmbeddingStore
from voxstrata.store.files import Files
from voxstrata.studies.phonetics.measure import GIVEN
from voxstrata.studies.phonetics.result import Phonetics

_IPA, _DISTANCES = (Phonetics.files[name] for name in ("ipa", "distances"))
SMALLEST_CELL = 10  # utterances of a speaker in a language below which their mean is the language's
RAW, CENTRED = "raw", "means removed"

Float64 = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Spoken:
    """Utterances of one language that take part, one per group, by group. cells: whose mean is theirs (n,)."""

    side: Selection
    seconds: Float64
    segments: npt.NDArray[np.int64]
    cells: npt.NDArray[np.int64]

    def take(self, at: npt.NDArray[np.int64]) -> Spoken:
        """Some of them, in that order."""
        return Spoken(self.side.part(at), self.seconds[at], self.segments[at], self.cells[at])


class Sounds:
    """What `voxstrata phonetics` wrote, read from its folder.

    settings: of that run. segments: by id, how many an utterance has. texts: by id, what espeak-ng read; those whose
    IPA was given are not in it.
    """

    def __init__(self, folder: str) -> None:
        files = Files(folder)
        if not (files.exists(_IPA) and files.exists(_DISTANCES)):
            raise InputError(
                f"{folder}: no {_IPA} or {_DISTANCES} in it; `voxstrata phonetics CORPUS -o {folder}` makes them"
            )
        self.folder = folder
        ipa = pq.read_table(io.BytesIO(files.read(_IPA)))
        self._distances = pq.ParquetFile(io.BytesIO(files.read(_DISTANCES)))
        found, others = (
            (schema.metadata or {}).get(Phonetics.key.encode()) for schema in (ipa.schema, self._distances.schema_arrow)
        )
        if found is None or found != others:
            raise InputError(
                f"{folder}: {_IPA} and {_DISTANCES} are not of one run of `voxstrata phonetics`; run it again"
            )
        self.settings: dict[str, Any] = json.loads(found)
        ids = ipa["id"].to_pylist()
        self.segments = dict(zip(ids, ipa["segments"].to_pylist(), strict=True))
        read = zip(ids, ipa["voice"].to_pylist(), ipa["text"].to_pylist(), strict=True)
        self.texts = {name: text for name, voice, text in read if voice != GIVEN}

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
                part = table.filter(
                    pc.and_(
                        pc.equal(table["source_language"], a.language), pc.equal(table["target_language"], b.language)
                    )
                )
                if len(part):
                    i, j = (
                        pc.index_in(part[name].cast(pa.string()), pa.array(ids)).to_numpy(zero_copy_only=False)
                        for name, ids in (("source", a.ids), ("target", b.ids))
                    )
                    known = ~(np.isnan(i.astype(np.float64)) | np.isnan(j.astype(np.float64)))
                    at = i[known].astype(np.int64), j[known].astype(np.int64)
                    matrix[at] = part[column].to_numpy(zero_copy_only=False)[known]
                    done[at] = True
        if not filled.all():
            i, j = (int(k[0]) for k in np.nonzero(~filled))
            raise InputError(
                f"{self.folder}: no distance between {x.ids[i]!r} and {y.ids[j]!r}; "
                "run `voxstrata phonetics` on all of the store's corpus"
            )
        return found

    def _may_hold(self, group: int, x: Selection, y: Selection) -> bool:
        """Whether a row group's statistics allow for distances of x to y."""
        held = self._distances.metadata.row_group(group)
        names = self._distances.schema_arrow.names
        for column, side in (("source_language", x), ("target_language", y)):
            found = held.column(names.index(column)).statistics
            if found is not None and found.has_min_max and not found.min <= side.language <= found.max:
                return False
        return True


def participants(
    store: EmbeddingStore, sounds: Sounds, languages: Sequence[str] | None
) -> tuple[list[Spoken], dict[str, int]]:
    """Utterances of each language that take part, and how many do not, by reason.

    Those take part that are done, have language, group and IPA; of several recordings of a sentence in one language the
    one whose id sorts first, so that every pool holds one translation. Raises InputError where the IPA is of other
    texts than the store's, or of no utterance of a language.
    """
    table = store.utterances
    seconds = np.asarray(table["seconds"].to_pylist(), np.float64)
    speakers = table["speaker"].to_pylist()
    sounds.check_texts(dict(zip(table["id"].to_pylist(), table["text"].to_pylist(), strict=True)))
    left_out = {"without IPA": 0, "further recordings of a sentence": 0}
    spoken = []
    for side in find_sides(store, languages):
        heard = [i for i, name in enumerate(side.ids) if name in sounds.segments]
        left_out["without IPA"] += len(side.ids) - len(heard)
        first: dict[str, int] = {}
        for i in sorted(heard, key=lambda i: side.ids[i]):
            first.setdefault(str(side.groups[i]), i)
        left_out["further recordings of a sentence"] += len(heard) - len(first)
        at = np.array([first[group] for group in sorted(first)], np.int64)
        ids = [side.ids[i] for i in at]
        spoken.append(
            Spoken(
                side.part(at),
                seconds[side.indices[at]],
                np.array([sounds.segments[name] for name in ids], np.int64),
                _cells([speakers[i] for i in side.indices[at]]),
            )
        )
    without = [s.side.language for s in spoken if not s.side.ids]
    if without:
        raise InputError(
            f"{sounds.folder}: holds IPA of no utterance in {', '.join(without)}; its ids must be the store's: "
            "run `voxstrata phonetics` on the store's corpus, or leave these languages out"
        )
    return spoken, {reason: count for reason, count in left_out.items() if count}


def _cells(speakers: Sequence[str | None]) -> npt.NDArray[np.int64]:
    """Number of each utterance's cell: its speaker's, or 0, the language's, where few or no utterances name one."""
    names = sorted(name for name, held in Counter(speakers).items() if name is not None and held >= SMALLEST_CELL)
    number = {name: i for i, name in enumerate(names, start=1)}
    return np.array([number.get(name or "", 0) for name in speakers], np.int64)


class States:
    """Similarities of one output between languages, as stored or with means removed."""

    def __init__(self, store: EmbeddingStore, output: str, similarity: str, kernel: Kernel) -> None:
        self._store, self._output, self._similarity, self._kernel = store, output, similarity, kernel

    def centres(self, spoken: Spoken) -> dict[int, npt.NDArray[np.float32]]:
        """What is removed from each cell: the mean over its utterances' mean states, (d,) float32.

        Speakers are cells within their language, so removing their mean removes the language's too; cell 0, of
        utterances whose speaker is unknown or rare, takes the mean of all of the language.
        """
        means = self._store.pooled(self._output, spoken.side.indices).astype(np.float64)
        return {
            int(cell): (means if cell == 0 else means[spoken.cells == cell]).mean(axis=0).astype(np.float32)
            for cell in np.unique(spoken.cells)
        }

    def load(self, spoken: Spoken, centres: Mapping[int, npt.NDArray[np.float32]]) -> dict[str, Ragged]:
        """Rows of each utterance (pooled: one row), as stored and less the centre of its cell."""
        if self._similarity == "pooled_cosine":
            rows: npt.NDArray[np.floating] = self._store.pooled(self._output, spoken.side.indices)
            offsets = np.arange(len(rows) + 1, dtype=np.int64)
        else:
            rows, offsets = self._store.ragged(self._output, spoken.side.indices)
        away = np.repeat(np.stack([centres[int(cell)] for cell in spoken.cells]), np.diff(offsets), axis=0)
        names = spoken.side.ids
        return {RAW: Ragged(rows, offsets, names), CENTRED: Ragged(rows.astype(np.float32) - away, offsets, names)}

    def compare(self, x: Ragged, y: Ragged) -> npt.NDArray[np.float32]:
        """Similarity of every utterance of x (N) to every one of y (M), (N, M); the same both ways."""
        try:
            if self._similarity == "pooled_cosine":
                return pooled_cosine(x.rows, y.rows, x.names, y.names)
            return seqsim(x, y, self._kernel).f1
        except InputError as error:
            raise InputError(f"output {self._output}: {error}") from error
