"""Text of strangers without what terminals, browsers and pictures would obey. Imports nothing but `re`."""

import re

# C0 without tab and newline, DEL, C1, marks that turn the direction of text around, halves of surrogate pairs
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def spelt_out(text: object) -> str:
    """Text in which what would move a cursor, colour or reorder what is shown is spelt out."""
    return _CONTROL.sub(lambda found: repr(found[0])[1:-1], str(text))


def escaped_json(text: str) -> str:
    """JSON in which the same characters are escaped; what it says does not change."""
    return _CONTROL.sub(lambda found: f"\\u{ord(found[0]):04x}", text)
