"""JSON with timestamps, as whisper's tools and the Montreal Forced Aligner write it.

openai-whisper and those that write like it: `segments` with `words` of `word`, `start`, `end`; whisperX adds `chars`.
transformers: `chunks` of `text` and `timestamp`. MFA: `tiers` with `entries` of start, end and label.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from voxstrata.alignments.tier import (
    UNNAMED,
    AlignedTier,
    SpeechAlignment,
    TimedLabel,
    make_tier,
    read_text_of,
    text_lines,
)
from voxstrata.base.errors import InputError
from voxstrata.base.opening import JSON_BYTES, parse_json, read_regular

_OF_SEGMENTS = {"words": "word", "chars": "char"}  # what a segment lists, and the key of its text


def read_timestamps(path: Path, name: str) -> SpeechAlignment:
    """The alignment of a JSON file. Raises InputError for another kind of JSON, or times that are none."""
    return _alignment(_parsed(read_text_of(read_regular(path, JSON_BYTES), str(path)), str(path)), name, str(path))


def read_timestamp_lines(path: Path) -> Iterator[SpeechAlignment]:
    """A recording a line: an object as in a JSON file, which has an `id`, too. Raises InputError, naming the line."""
    for where, line in text_lines(path, JSON_BYTES):
        if not line.strip():
            continue
        content = _parsed(line, where)
        name = content.get("id") if isinstance(content, dict) else None
        if not isinstance(name, str) or not name:
            raise InputError(f"{where}: no id; name the utterance in the key 'id'")
        yield _alignment(content, name, where)


def _parsed(text: str, where: str) -> Any:
    try:
        return parse_json(text)
    except ValueError as e:
        raise InputError(f"{where}: not JSON: {e}; write it again") from None


def _alignment(content: Any, name: str, where: str) -> SpeechAlignment:
    try:
        tiers = _tiers_of(content)
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as e:
        wrong = f"no key {e}" if isinstance(e, KeyError) else str(e)
        raise InputError(f"{where}: its timestamps cannot be read: {wrong}; write it again") from None
    if tiers is None:
        raise InputError(
            f"{where}: no timestamps: needs 'segments' (whisper, whisperX), 'chunks' (transformers) or 'tiers' (MFA)"
        )
    return SpeechAlignment(name, tiers, where)


def _tiers_of(content: Any) -> dict[str, AlignedTier] | None:
    """By what tells the formats apart; None where nothing does."""
    if not isinstance(content, dict):
        return None
    if isinstance(held := content.get("tiers"), dict):
        intervals = {name: tier["entries"] for name, tier in held.items() if tier.get("type") == "interval"}
        return {name: _timed((e[2], e[0], e[1]) for e in entries) for name, entries in intervals.items()}
    if isinstance(content.get("chunks"), list):
        return {UNNAMED: _timed((chunk["text"], *chunk["timestamp"]) for chunk in content["chunks"])}
    if isinstance(segments := content.get("segments"), list):
        tiers = {"segments": _timed((part.get("text", ""), *_times(part)) for part in segments)}
        for what, key in _OF_SEGMENTS.items():
            if any(what in part for part in segments):
                items = (item for part in segments for item in part.get(what) or ())
                tiers[what] = _timed((item[key], *_times(item)) for item in items)
        return tiers
    return None


def _times(item: dict[str, Any]) -> tuple[Any, Any]:
    return item.get("start"), item.get("end")


def _timed(items: Iterable[tuple[Any, Any, Any]]) -> AlignedTier:
    """Of label, start and end of each; those that lack a time are counted."""
    spans, untimed = list[TimedLabel](), 0
    for label, start, end in items:
        if start is None or end is None:
            untimed += 1
            continue
        if not isinstance(label, str) or isinstance(start, bool | str) or isinstance(end, bool | str):
            raise TypeError(f"{label!r} from {start!r} to {end!r}: a text and two numbers are due")
        spans.append((float(start), float(end), label))
    return make_tier(spans, untimed)
