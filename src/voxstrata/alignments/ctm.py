"""CTM files: a word a line, as NIST's scoring tools and Kaldi write them.

`file channel start duration word [confidence]`, times in seconds, `;;` before a comment (NIST SCTK, "infmts.htm").
"""

from collections import defaultdict
from pathlib import Path

from voxstrata.alignments.tier import UNNAMED, SpeechAlignment, TimedLabel, make_tier, text_lines
from voxstrata.base.errors import InputError
from voxstrata.base.plain import counted

_LINE_BYTES = 1 << 16  # the most of one


def read_ctm(path: Path) -> list[SpeechAlignment]:
    """An alignment for each file and channel, in the order of their first words.

    Raises InputError, naming file and line: for other than 5 or 6 fields, times that are none, alternatives (`*`).
    """
    found: dict[tuple[str, str], list[TimedLabel]] = defaultdict(list)
    words: dict[str, str] = {}  # each is kept once, however often it is spoken
    for where, line in text_lines(path, _LINE_BYTES):
        fields = line.split()
        if not fields or fields[0].startswith(";;"):
            continue
        if len(fields) not in (5, 6):
            raise InputError(
                f"{where}: {counted(len(fields), 'field')}; a line of CTM is: file channel start duration word "
                "[confidence]"
            )
        try:
            start, duration = float(fields[2]), float(fields[3])
            if not (start >= 0 and duration >= 0 and start + duration < float("inf")):
                raise ValueError
        except ValueError:
            raise InputError(
                f"{where}: {fields[2]} and {fields[3]} are no start and duration in seconds; correct them, and "
                "leave out alternatives"
            ) from None
        found[fields[0], fields[1]].append((start, start + duration, words.setdefault(fields[4], fields[4])))
    if not found:
        raise InputError(f"{path}: holds no word; a line of CTM is: file channel start duration word [confidence]")
    return [
        SpeechAlignment(name, {UNNAMED: make_tier(spans)}, f"{path}, {name} {channel}", channel)
        for (name, channel), spans in found.items()
    ]
