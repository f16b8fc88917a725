"""Which alignment is of which utterance: by id, or by the name of the recording's file."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from os.path import splitext
from typing import Any

import pyarrow as pa

from voxstrata.alignments.files import AlignmentFiles
from voxstrata.alignments.tier import SpeechAlignment
from voxstrata.base.errors import InputError
from voxstrata.base.tables import first_few

BY_ID, BY_PATH, BY_STEM = "ids", "paths", "names of files"  # by which they are found, in this order where they tie


@dataclass(frozen=True, eq=False)
class Matched:
    """of: the alignment of each utterance that has one, by index. reasons: why others have none, by index.

    way: by what they were found. strangers: names of alignments that are of no utterance.
    """

    of: dict[int, SpeechAlignment]
    reasons: dict[int, str]
    way: str
    strangers: list[str]

    @property
    def of_files(self) -> bool:
        """Whether times count from the beginning of the file, where an utterance is a part of one."""
        return self.way != BY_ID


def match_alignments(files: AlignmentFiles, utterances: pa.Table, indices: Sequence[int], where: str) -> Matched:
    """Find the alignment of each utterance: by id, path or name of its file, by whichever most are found.

    utterances: columns id, path, member and channel of a store. indices: those that are to have one.
    Raises InputError where none is found.
    """
    known = utterances.take(pa.array(indices, pa.int64())).to_pylist()
    named: dict[str, list[SpeechAlignment]] = defaultdict(list)
    for alignment in files.alignments:
        named[alignment.name].append(alignment)
    names = [*named, *(name for name in files.unreadable if name not in named)]
    ways = [(way, _found_by(way, known, names)) for way in (BY_ID, BY_PATH, BY_STEM)]
    way, found = max(ways, key=lambda each: len(each[1]))  # of equals the first
    if not found:
        own, theirs = ", ".join(sorted({repr(row["id"]) for row in known})[:3]), first_few(sorted(map(repr, names)), 3)
        raise InputError(
            f"{where}: no alignment is of any of its utterances, by id, path or name of the file: it holds {own}, the "
            f"alignments are of {theirs}; name them like the utterances"
        )
    of, reasons = dict[int, SpeechAlignment](), dict[int, str]()
    for n, (i, row) in enumerate(zip(indices, known, strict=True)):
        if n not in found:
            reasons[i] = "no alignment"
        elif (name := found[n]) in named:
            chosen = _of_channel(named[name], row["channel"])
            if isinstance(chosen, str):
                reasons[i] = chosen
            else:
                of[i] = chosen
        else:
            reasons[i] = files.unreadable[name]
    used = set(found.values())
    return Matched(of, reasons, way, [name for name in names if name not in used])


def _path(row: Mapping[str, Any]) -> str:
    return splitext(str(row["member"] or row["path"]))[0]


def _stem(name: str) -> str:
    return name.rsplit("/", 1)[-1]


def _found_by(way: str, known: Sequence[Mapping[str, Any]], names: Sequence[str]) -> dict[int, str]:
    """The name of its alignment for each place in `known` that has one. What a name of a file may mean is none's."""
    if way == BY_ID:
        held = set(names)
        return {n: row["id"] for n, row in enumerate(known) if row["id"] in held}
    paths = [_path(row) for row in known]
    if way == BY_PATH:
        held = set(names)
        return {n: path for n, path in enumerate(paths) if path in held}
    meant, files = _single((_stem(name), name) for name in names), _single((_stem(path), path) for path in paths)
    return {n: meant[s] for n, path in enumerate(paths) if (s := _stem(path)) in meant and s in files}


def _single(pairs: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Keys that stand for one value alone."""
    values: dict[str, set[str]] = defaultdict(set)
    for key, value in pairs:
        values[key].add(value)
    return {key: held.pop() for key, held in values.items() if len(held) == 1}


def _of_channel(alignments: Sequence[SpeechAlignment], channel: int | None) -> SpeechAlignment | str:
    """That of an utterance's channel; or why there is none."""
    if channel is None:
        if len(alignments) == 1:
            return alignments[0]
        held = " and ".join(sorted(str(a.channel) for a in alignments))
        return f"{alignments[0].name!r} is aligned in channels {held}, and the utterance is the mean of all channels"
    for alignment in alignments:
        if alignment.channel is None or _number(alignment.channel) == channel:
            return alignment
    held = " and ".join(sorted(str(a.channel) for a in alignments))
    return f"it is channel {channel} (the first is 0), and {alignments[0].name!r} is aligned in {held}"


def _number(channel: str) -> int | None:
    """Channels of CTM are "1", "2" or "A", "B"; the first is 0 here."""
    if channel.isdecimal():
        return int(channel) - 1
    return ord(channel.upper()) - ord("A") if len(channel) == 1 and channel.isalpha() else None
