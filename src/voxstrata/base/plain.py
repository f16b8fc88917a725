"""Plain text: numbers of things, and what strangers wrote without what terminals, browsers and pictures would obey.

Imports nothing but `re` and `textwrap`.
"""

import re
from textwrap import fill

# C0 without tab and newline, DEL, C1, marks that turn the direction of text around, halves of surrogate pairs
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def counted(number: int, one: str, many: str = "") -> str:
    """How many of what: "1 utterance", "3 utterances", "2 queries", "15,271 frames"."""
    return f"{number:,} {one if number == 1 else many or one + 's'}"


def rate_text(rate: float) -> str:
    """So much a second or an hour, to two digits or whole: "1,203", "64", "9.6", "0.43"."""
    return f"{rate:,.{0 if rate >= 9.95 else 1 if rate >= 0.995 else 2}f}"


def time_in_words(seconds: float) -> str:
    """As one says it: "3 h 10 min", "4 min", "40 s", "less than a second"."""
    if round(seconds) < 60:
        return f"{round(seconds)} s" if seconds >= 1 else "less than a second"
    minutes = round(seconds / 60)
    hours, rest = divmod(minutes, 60)
    return " ".join([*([f"{hours} h"] if hours else []), *([f"{rest} min"] if rest or not hours else [])])


def size_in_words(size: float) -> str:
    """Bytes to two digits, in powers of a thousand: "41 GB", "8.3 MB"."""
    power = 0
    while size >= 999.5 and power < 4:
        size, power = size / 1000, power + 1
    digits = 1 if power and size < 9.95 else 0
    return f"{size:.{digits}f} {('bytes', 'kB', 'MB', 'GB', 'TB')[power]}"


def wrapped(text: str, width: int | None, indent: str = "") -> str:
    """Text in lines of so many characters, broken between words; None: as it is. indent: before all but the first."""
    if width is None:
        return text
    return "\n".join(
        fill(line, width, break_long_words=False, break_on_hyphens=False, subsequent_indent=indent)
        for line in text.split("\n")
    )


def shown_as(thing: object, text: str, path: str = "") -> str:
    """What Python shows of an object: its class, the last name of a path, and a few whole words, in one line of 80
    characters at most."""
    where = f"{path.rstrip('/').rpartition('/')[2]}: " if path else ""
    line = f"{type(thing).__name__} {where}{' '.join(text.split())}"
    return f"<{line}>" if len(line) <= 78 else f"<{line[:76].rpartition(' ')[0].rstrip(' ,;:')} …>"


def spelt_out(text: object) -> str:
    """Text in which what would move a cursor, colour or reorder what is shown is spelt out."""
    return _CONTROL.sub(lambda found: repr(found[0])[1:-1], str(text))


def escaped_json(text: str) -> str:
    """JSON in which the same characters are escaped; what it says does not change."""
    return _CONTROL.sub(lambda found: f"\\u{ord(found[0]):04x}", text)
