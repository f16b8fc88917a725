"""Transcripts that repeat themselves until the tokens run out."""

import re

_LOOP = re.compile(r"(\S.{0,80}?)(?:\W*\1){3,}\W*$", re.DOTALL)


def without_loop(text: str) -> str:
    """The text with a repetition at its end said once; as it is where there is none."""
    found = _LOOP.search(text)
    return text[: found.end(1)] if found else text
