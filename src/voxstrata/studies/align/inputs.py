"""What controlled retrieval stands on: one utterance per sentence and language, and how they sound."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from voxstrata.base.errors import InputError
from voxstrata.evaluation.metrics import Float64
from voxstrata.retrieval.languages import find_sides
from voxstrata.retrieval.selection import Selection
from voxstrata.store import EmbeddingStore
from voxstrata.studies.phonetics.folder import PhoneticsFolder

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
