"""Manifests of lhotse: cuts, or recordings with their supervisions, as JSON lines or as objects in memory.

Their keys are those of lhotse 1.x (https://lhotse.readthedocs.io). A cut is an utterance, and so is a supervision.
"""

import io
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from voxstrata.audio.source import Source
from voxstrata.base.errors import InputError, UsageError
from voxstrata.base.opening import open_regular, open_unpacked, parse_json
from voxstrata.base.plain import counted
from voxstrata.corpus.folder import unnamed_notes
from voxstrata.corpus.formats import Reading
from voxstrata.corpus.items import DESCRIBED, Item, items_corpus
from voxstrata.corpus.manifest import Names
from voxstrata.corpus.memory import MEMORY, BytesSource
from voxstrata.corpus.table import Corpus
from voxstrata.encoders.frames import SAMPLE_RATE

_SUFFIXES = (".jsonl", ".jsonl.gz")
_STRETCH = ("Cut", "MonoCut", "MultiCut")  # cuts that are a stretch of one recording
_OTHER_CUTS = ("MixedCut", "PaddingCut")
# What a supervision says that is not about its words or speaker.
_WHERE = ("id", "recording_id", "start", "duration", "channel", "alignment", "custom")
LHOTSE_NAMES: Names = {what: () if what == "id" else (what,) for what in DESCRIBED}
Lines = Iterator[tuple[str, dict[str, Any]]]  # where an object stands ("a.jsonl, line 3"), and the object


def is_lhotse(path: Path) -> bool:
    """Whether a file is a manifest of lhotse's, or a folder holds one."""
    return any(_kind(file) for file in _files(path))


def read_lhotse(path: Path, reading: Reading) -> Corpus:
    """A manifest of cuts; or one of supervisions or recordings, with the other beside it; or a folder of these.

    Of `x_supervisions_train.jsonl.gz` the other is `x_recordings_train.jsonl.gz`, as lhotse's recipes name them. Where
    there are supervisions, each is an utterance; otherwise each recording is. Paths are relative to the manifest's
    folder or, where nothing is there, to the working directory, which lhotse takes them from. A split is the end of the
    name: "train" of `x_cuts_train.jsonl`.

    Raises InputError, naming the line, for what is no stretch of one sound file: mixed and padding cuts, recordings
    that are not files, or are changed when they are read (speed, volume), or have their channels in several files.
    """
    files = {file: kind for file in _files(path) if (kind := _kind(file))}
    if reading.split:
        ends = (f"_{reading.split}", f"-{reading.split}")
        files = {file: kind for file, kind in files.items() if _stem(file).endswith(ends)}
        if not files:
            raise UsageError(f"{path}: no manifest of the split {reading.split!r}; name a file, or leave it out")
    kinds = set(files.values())
    if "cuts" in kinds and len(kinds) > 1:
        raise InputError(f"{path}: holds cuts, and recordings or supervisions, too; name the manifest that is meant")
    items: list[Item] = []
    notes: list[str] = []
    if kinds == {"cuts"}:
        for file in files:
            items += [cut_item(cut, place, file.parent) for place, cut in _lines(file)]
    else:
        for recordings, supervisions in dict.fromkeys(_pair(file, kind) for file, kind in files.items()):
            items += _utterances(recordings, supervisions, notes)
    if path.is_dir() and not reading.split and "supervisions" not in kinds:
        notes += unnamed_notes([path], {item.path for item in items}, ", ".join(file.name for file in files))
    return items_corpus(path, reading, LHOTSE_NAMES, items, notes=notes)


def cut_item(cut: Mapping[str, Any], place: str, folder: Path, memory: dict[str, Source] | None = None) -> Item:
    """A cut as an utterance: its stretch of the recording, and what its supervisions say.

    Their texts are joined in the order of time; a language or speaker counts where all name the same. Sound files that
    the cut holds itself are added to `memory`, by its id.
    """
    kind = cut.get("type", "MonoCut")
    if kind not in _STRETCH or "tracks" in cut:
        raise InputError(
            f"{place}: {kind} {cut.get('id')!r} is no stretch of one recording; write its audio by CutSet.save_audios, "
            "and take the cuts that this returns"
        )
    if not (recording := cut.get("recording")):
        raise InputError(f"{place}: cut {cut.get('id')!r} names no recording, features alone; make cuts of recordings")
    supervisions = sorted(cut.get("supervisions") or [], key=lambda s: float(s.get("start", 0)))
    described = [_described(s) for s in supervisions]
    values = dict(cut.get("custom") or {})
    for name in dict.fromkeys(name for about in described for name in about):
        said = [about.get(name) for about in described]
        if name == "text":
            values[name] = " ".join(text for text in said if text)
        elif all(value == said[0] for value in said):
            values[name] = said[0]
    return _item(place, cut, recording, values, folder, memory)


def _utterances(recordings: Path, supervisions: Path | None, notes: list[str]) -> list[Item]:
    folder, of_id = recordings.parent, {}
    for place, recording in _lines(recordings):
        of_id[recording.get("id")] = place, recording
    if supervisions is None:
        return [_item(place, recording, recording, {}, folder, None) for place, recording in of_id.values()]
    items, seen = [], set()
    for place, supervision in _lines(supervisions):
        name = supervision.get("recording_id")
        if name not in of_id:
            raise InputError(f"{place}: recording {name!r} is not in {recordings.name}; add it or remove the line")
        seen.add(name)
        items.append(_item(place, supervision, of_id[name][1], _described(supervision), folder, None))
    if left := len(of_id) - len(seen):
        notes.append(f"{counted(left, 'recording')} of {recordings.name} left out for lack of a supervision")
    return items


def _described(supervision: Mapping[str, Any]) -> dict[str, Any]:
    return {**(supervision.get("custom") or {}), **{k: v for k, v in supervision.items() if k not in _WHERE}}


def _item(
    place: str,
    part: Mapping[str, Any],
    recording: Mapping[str, Any],
    values: dict[str, Any],
    folder: Path,
    memory: dict[str, Source] | None,
) -> Item:
    """`part` is what has the id and says which stretch is meant: a cut, a supervision or the recording itself."""
    try:
        name, length = str(part["id"]), recording["num_samples"] / recording["sampling_rate"]
        start, duration = float(part.get("start", 0)), float(part.get("duration", length))
        channels = part.get("channel", sorted(c for source in recording["sources"] for c in source["channels"]))
        channels = channels if isinstance(channels, list) else [channels]
        sources = [s for s in recording["sources"] if not set(channels).isdisjoint(s["channels"])]
        changes = [
            t["name"]
            for t in recording.get("transforms") or []
            if t["name"] != "Resample" or t["kwargs"]["target_sampling_rate"] < SAMPLE_RATE
        ]
        what = f"recording {recording['id']!r}"
        if changes:
            raise InputError(f"{place}: {what} is changed when it is read ({', '.join(changes)}); {_SAVE}")
        if len(sources) != 1 or (1 < len(channels) < len(sources[0]["channels"])):
            raise InputError(f"{place}: {what} has the channels {channels} in several files, or with others; {_SAVE}")
        kind, where, held = sources[0]["type"], sources[0]["source"], sources[0]["channels"]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"{place}: not as lhotse writes it ({error!r}); write the manifest again") from None
    item = Item(place, name, MEMORY, values=values)
    if kind == "file":
        item.path = _absolute(folder, where)
    elif memory is not None and kind == "memory" and isinstance(where, bytes):
        item.member = name  # the recording's id may be that of the whole, of which this holds a part
        memory[item.member] = BytesSource(item.member, where)
    else:
        raise InputError(f"{place}: {what} is of type {kind!r}, not a file; {_SAVE}")
    if start > 0 or abs(duration - length) * recording["sampling_rate"] > 0.5:
        item.offset, item.duration = start, duration
    if len(channels) == 1 and len(held) > 1:
        item.channel = held.index(channels[0])
    return item


_SAVE = "write the audio by CutSet.save_audios, and take the cuts that this returns"


def _absolute(folder: Path, path: str) -> str:
    there = os.path.normpath(folder.absolute() / path)
    return there if os.path.exists(there) or not os.path.exists(path) else os.path.abspath(path)


def _files(path: Path) -> list[Path]:
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    return [file for file in files if file.name.lower().endswith(_SUFFIXES) and file.is_file()]


def _kind(path: Path) -> str | None:
    """Whether a file holds cuts, recordings or supervisions, by its first line; None if none of them."""
    try:
        first = next((item for _, item in _lines(path)), {})
    except InputError:
        return None
    if first.get("type") in _STRETCH + _OTHER_CUTS or "tracks" in first:
        return "cuts"
    if first.keys() >= {"id", "sources", "sampling_rate", "num_samples"}:
        return "recordings"
    if first.keys() >= {"id", "recording_id", "start", "duration"}:
        return "supervisions"
    return None


def _stem(path: Path) -> str:
    return path.name.removesuffix(".gz").removesuffix(".jsonl")


def _pair(path: Path, kind: str) -> tuple[Path, Path | None]:
    """Recordings and their supervisions, of which `path` is one; None where there are no supervisions."""
    other = "supervisions" if kind == "recordings" else "recordings"
    stem = _stem(path)
    beside = [path.with_name(stem.replace(kind, other) + suffix) for suffix in _SUFFIXES]
    found = next((file for file in beside if kind in stem and _kind(file) == other), None)
    if kind == "recordings":
        return path, found
    if found is None:
        raise InputError(
            f"{path}: no manifest of its recordings beside it; looked for {beside[-1].name}; put it there, or make cuts"
        )
    return found, path


def _lines(path: Path) -> Lines:
    line = 0
    try:
        opened = open_unpacked(path) if path.suffix == ".gz" else open_regular(path)
        with io.TextIOWrapper(opened, encoding="utf-8") as file:
            for line, content in enumerate(file, start=1):
                if content.strip():
                    item = parse_json(content)
                    if not isinstance(item, dict):
                        raise InputError(f"{path}, line {line}: not a JSON object; write the manifest again")
                    yield f"{path}, line {line}", item
    except (OSError, EOFError, ValueError) as error:  # ValueError: no JSON, or not UTF-8
        raise InputError(f"{path}, line {line}: cannot be read ({error}); fetch it or write it again") from None
