"""Who takes part in retrieval: the usable utterances of a store, language by language."""

from collections import Counter
from collections.abc import Collection, Sequence
from itertools import combinations, permutations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from voxstrata.base.choices import chosen
from voxstrata.base.errors import InputError
from voxstrata.base.plain import counted
from voxstrata.base.tables import distinct, first_few
from voxstrata.retrieval.recordings import EVERY_RECORDING, SHARED_FIRST
from voxstrata.retrieval.selection import Selection
from voxstrata.store import EmbeddingStore
from voxstrata.store.writer import SPANS


def find_sides(
    store: EmbeddingStore, languages: str | Sequence[str] | None = None, ids: Collection[str] | None = None
) -> list[Selection]:
    """The utterances that take part, by language: in the order asked for, else sorted by name.

    Those take part that are done and have a language and a group; where `ids` are given, only these.
    Raises UsageError for an unknown language, InputError where there are not two languages, or no group is in two of
    them.
    """
    utterances = store.utterances
    lacking = [name for name in ("language", "group") if utterances[name].null_count == len(utterances)]
    if lacking:
        raise InputError(
            f"no utterance has a {' or a '.join(lacking)}, and these say what translates what: give a manifest with a "
            f"column {' and a column '.join(lacking)}, or add {'them' if lacking[1:] else 'it'} by `voxstrata relabel`"
        )
    known = sorted(language for language in distinct(utterances, "language") if language is not None)
    done = pc.equal(utterances["status"], "done")
    usable = pc.and_(done, pc.and_(pc.is_valid(utterances["language"]), pc.is_valid(utterances["group"])))
    if ids is not None:
        usable = pc.and_(usable, pc.is_in(utterances["id"], pa.array(ids, pa.string())))
    table = utterances.append_column("index", pa.array(np.arange(len(utterances)))).filter(usable)
    sides = []
    for language in chosen("language", languages, known):
        part = table.filter(pc.equal(table["language"], language))
        sides.append(Selection(store, np.asarray(part["index"], np.int64), language))
    counts = ", ".join(f"{side.language}: {len(side)}" for side in sides)
    found = (
        f"of {counted(len(utterances), 'utterance')} {pc.sum(done).as_py() or 0} are done, "
        f"{len(table)} of these have a language and a group ({counts or 'no language'})"
    )
    if languages is None:
        sides = [side for side in sides if len(side)]
    empty = ", ".join(side.language for side in sides if not len(side))
    if empty:
        raise InputError(f"no usable utterance in {empty}: {found}; leave these languages out or finish the extraction")
    if len(sides) < 2:
        mend = "fill the manifest's language and group columns, ask for more languages, or finish the extraction"
        raise InputError(f"retrieval needs utterances of at least 2 languages: {found}; {mend}")
    if not any(set(x.groups) & set(y.groups) for x, y in combinations(sides, 2)):
        mend = "translations of one sentence need the same group in the manifest"
        raise InputError(f"no group occurs in two languages: {found}; {mend}")
    return sides


def equal_sentences(sides: Sequence[Selection]) -> list[str]:
    """For each language whose texts are known a note on sentences that stand in several groups, where there are any.

    Who finds the one in place of the other is right for whoever listens, and wrong in the figures.
    """
    notes = []
    for side in sides:
        table = side.store.utterances
        if "text" not in table.column_names:
            return []
        own = table.select(["text", "group"]).take(pa.array(side.indices))
        own = own.filter(pc.greater(pc.utf8_length(own["text"].cast(pa.string())), 0))
        held = own.group_by(["text", "group"]).aggregate([]).group_by("text").aggregate([("group", "list")])
        found = held.filter(pc.greater(pc.list_value_length(held["group_list"]), 1)).sort_by("text").to_pylist()
        if found:
            groups = sum(len(row["group_list"]) for row in found)
            said, mend = "sentence", "give equal sentences one group (`voxstrata relabel` does)"
            if SPANS in side.store.about:
                said, mend = "word", "give equal words one group (`voxstrata spans --group word` does)"
            notes.append(
                f"{side.language}: {groups} groups share a {said} with another group, e.g. {found[0]['text']!r} in "
                f"{first_few(sorted(found[0]['group_list']))}; each counts as a wrong answer for the others, so "
                f"{mend}"
            )
    return notes


def groups_with_partner(sides: Sequence[Selection]) -> list[str]:
    """Groups that occur in at least two languages, sorted: those of all queries."""
    held = Counter(group for side in sides for group in set(side.groups.tolist()))
    return sorted(group for group, languages in held.items() if languages > 1)


def only_translations(sides: Sequence[Selection], pool: str = EVERY_RECORDING) -> list[str]:
    """Directions whose pool holds nothing but translations of every query. Raises InputError if there is no other."""
    held = [(x, y, set(x.groups.tolist()), set(y.groups.tolist())) for x, y in permutations(sides, 2)]
    shared = [(f"{x.language} → {y.language}", a & b if pool == SHARED_FIRST else b) for x, y, a, b in held if a & b]
    trivial = [direction for direction, sentences in shared if len(sentences) == 1]
    if len(trivial) == len(shared):
        raise InputError(
            f"every pool holds one sentence ({', '.join(trivial)}): whatever is found is right; add other sentences, "
            "or give those that do not translate each other groups of their own"
        )
    return trivial
