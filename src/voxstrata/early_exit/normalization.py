"""Texts as they are compared: Whisper's normalizers, or a light one that keeps combining marks."""

import re
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from transformers.models.whisper.english_normalizer import BasicTextNormalizer, EnglishTextNormalizer

from voxstrata.base.choices import chosen
from voxstrata.base.errors import InputError
from voxstrata.base.opening import read_json_file

SPELLINGS = "normalizer.json"
LIGHT, BASIC, ENGLISH = "light", "whisper basic", "whisper english"
ENGLISH_UNMAPPED = "whisper english without spellings"


@dataclass(frozen=True)
class Normalizer:
    """A function from text to text, and its name: one of LIGHT, BASIC, ENGLISH, ENGLISH_UNMAPPED."""

    name: str
    apply: Callable[[str], str]

    def __call__(self, text: str) -> str:
        return self.apply(text).strip()


def normalizer(kind: str, english: bool, folder: Path) -> Normalizer:
    """The normalizer of one language.

    folder: of the checkpoint, whose normalizer.json maps British spellings to American ones for Whisper's English
    normalizer. Without that file nothing is mapped, which the name says.
    Raises UsageError for an unknown kind, InputError for a normalizer.json that is no such table.
    """
    chosen("normalizer", [kind], ("whisper", "light"))
    if kind == "light":
        return Normalizer(LIGHT, _light)
    if not english:
        return Normalizer(BASIC, BasicTextNormalizer())
    spellings = _spellings(folder / SPELLINGS)
    return Normalizer(ENGLISH if spellings else ENGLISH_UNMAPPED, EnglishTextNormalizer(spellings))


def _spellings(file: Path) -> dict[str, str]:
    if not file.is_file():
        return {}
    try:
        found = read_json_file(file)
    except ValueError as e:
        raise InputError(f"{file}: not JSON ({e}); copy it again from the original checkpoint") from e
    if not isinstance(found, dict) or not all(isinstance(word, str) for word in found.values()):
        raise InputError(f"{file}: not a table of spellings (word: word); copy it from the original checkpoint")
    return found


def _light(text: str) -> str:
    kept = (" " if unicodedata.category(c)[0] in "PS" else c for c in unicodedata.normalize("NFKC", text).casefold())
    return re.sub(r"\s+", " ", "".join(kept))
