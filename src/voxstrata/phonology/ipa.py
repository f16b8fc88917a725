"""Text as IPA, by espeak-ng through phonemizer, or as the user gives it."""

import logging
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

from voxstrata.base.errors import InputError, UsageError
from voxstrata.base.plain import counted
from voxstrata.corpus.manifest import read_manifest
from voxstrata.corpus.rows import read_rows
from voxstrata.phonology.voices import voice_of

_SWITCH = re.compile(r"\(([^)]*)\)")  # espeak-ng reads a foreign word with another voice: "(en)ɡuːɡəl(ru)"
_KANJI = re.compile(r"[\u3400-\u9fff]")
# espeak-ng's symbols that are no IPA segments: a rhotic vowel is two, its reduced vowel is close and central
_AS_IPA = str.maketrans({"ɚ": "əɹ", "ɝ": "ɜɹ", "ᵻ": "ɨ"})
_TWICE = str.maketrans({"ɚ": "ə", "ɝ": "ɜ"})  # before ɹ
_NAMED = 5  # how many offenders a message lists
_NEAR, _ALIKE = 3, 0.7  # how many voices are near a name at the most, and how alike they are spelt at the least


@dataclass(frozen=True)
class Transcription:
    """One text as IPA: words separated by spaces, without stress.

    others: the voices that had to read a part in place of the one asked for, once for each time.
    """

    ipa: str
    others: tuple[str, ...] = ()


def need(module: str) -> Any:
    """Import a package of the extra `phonetics`. Raises InputError that names the extra."""
    try:
        return import_module(module)
    except ImportError:
        raise InputError(
            f"phonetics needs the package {module.split('.')[0]}: pip install 'voxstrata[phonetics]'"
        ) from None


@cache
def _wrapper() -> Any:
    """phonemizer's espeak-ng wrapper, on the library and data of the package espeakng-loader."""
    loader = need("espeakng_loader")
    wrapper = need("phonemizer.backend.espeak.wrapper").EspeakWrapper
    wrapper.set_library(loader.get_library_path())
    wrapper.set_data_path(loader.get_data_path())
    return wrapper


@cache
def voice_names() -> dict[str, str]:
    """espeak-ng's voices: what each is called, by its code, sorted."""
    found: dict[str, str] = {}
    for voice in _wrapper()().available_voices():
        found.setdefault(voice.language, voice.name.strip())
    return dict(sorted(found.items()))


def voices() -> tuple[str, ...]:
    """Codes of espeak-ng's voices, sorted."""
    return tuple(voice_names())


def near_voices(names: Iterable[str]) -> str:
    """For errors, in sentences: voices whose code or name is spelt much like one of these, and how to see all."""
    known = voice_names()
    codes: dict[str, str] = {}
    for code, name in known.items():
        language = name.partition(" (")[0]
        codes |= {code.lower(): code, name.lower(): code, language.lower(): voice_of(language, known) or code}
    close: list[str] = []
    for name in names:  # the code of a language whose voices all carry a region ("en"), then what is misspelt
        close += filter(None, [voice_of(name, known)])
        close += (codes[found] for found in get_close_matches(name.lower(), codes, _NEAR, _ALIKE))
    near = ", ".join(f"{code} ({known[code]})" for code in list(dict.fromkeys(close))[:_NAMED])
    every = f"`voxstrata phonetics --voices` lists all {counted(len(known), 'voice')}"
    return f"{near and f'Near in spelling: {near}. '}{every}"


def tools() -> dict[str, str]:
    """Versions of what makes the IPA."""
    return {"espeak-ng": ".".join(map(str, _wrapper()().version)), "phonemizer": version("phonemizer")}


def choose_voices(languages: Sequence[str], given: Mapping[str, str] | None = None) -> dict[str, str]:
    """espeak-ng voice of each language in which texts are read; `given` ones first. Raises before any work.

    UsageError: a given voice does not exist or is for another language. InputError, naming them: no voice for some.
    """
    given = given or {}
    for language, voice in given.items():
        if language not in languages:
            raise UsageError(
                f"voice {voice!r} is given for {language!r}, in which no text is to be read: the corpus lacks it, it "
                "was not asked for (--languages), or all its IPA is given (--ipa). "
                f"Texts are read in: {', '.join(languages) or 'none'}"
            )
        if voice not in voices():
            raise UsageError(f"espeak-ng has no voice {voice!r}. {near_voices([voice])}")
    found = {language: given.get(language) or voice_of(language, voices()) for language in languages}
    lacking = [language for language, voice in found.items() if voice is None]
    if lacking:
        raise InputError(
            f"espeak-ng speaks no {', '.join(map(repr, lacking))}; give IPA for these (--ipa), choose a voice that "
            f"comes close (--voice {lacking[0]}=CODE), or leave them out (--languages). "
            f"{near_voices(lacking)}"
        )
    return {language: voice for language, voice in found.items() if voice is not None}


def transcribe(texts: Sequence[str], voice: str) -> list[Transcription]:
    """Texts as IPA by an espeak-ng voice (espeak-ng's code, see `voices`), in order; numbers are read out.

    Punctuation and stress are dropped. A text without a pronounceable character gives empty IPA.
    Raises InputError for Japanese with kanji, which espeak-ng cannot read: it says "Chinese letter" for each.
    """
    if voice == "ja":
        kanji = [text for text in texts if _KANJI.search(text)]
        if kanji:
            raise InputError(
                f"{len(kanji)} Japanese texts hold kanji, which espeak-ng cannot read (the first: {kanji[0]!r}); "
                "write them in kana, or give IPA (--ipa)"
            )
    _wrapper()
    backend_of = need("phonemizer.backend").EspeakBackend
    separator = need("phonemizer.separator").Separator(phone="", word=" ")
    quiet = logging.getLogger("voxstrata.phonemizer")
    quiet.addHandler(logging.NullHandler())
    quiet.setLevel(logging.CRITICAL)  # it warns once per run that voices were switched; we count them
    backend = backend_of(voice, language_switch="keep-flags", logger=quiet)
    lines = [" ".join(text.split()) for text in texts]
    spoken = backend.phonemize(lines, separator=separator, strip=True)
    return [
        Transcription(clean(_SWITCH.sub("", line)), tuple(flag for flag in _SWITCH.findall(line) if flag != voice))
        for line in spoken
    ]


def clean(ipa: str) -> str:
    """IPA with espeak-ng's own symbols written as segments, and single spaces between words."""
    ipa = re.sub("[ɚɝ](?=ɹ)", lambda found: found[0].translate(_TWICE), ipa)
    return " ".join(ipa.translate(_AS_IPA).split())


def read_ipa(path: str | Path) -> dict[str, str]:
    """IPA by utterance id from a .tsv, .csv, .jsonl or .parquet table with the columns `id` and `ipa`.

    A manifest with a column `ipa` serves: where ids are missing they are made of the paths, as `read_manifest` does.
    Words are separated by spaces. Empty IPA is no IPA.
    How files are read: see `read_rows`. Raises InputError, naming the file, for anything else, for an id that occurs
    twice, and for a table without any IPA.
    """
    path = Path(path)
    rows = [row for _, row in read_rows(path, ("id", "path", "ipa"), required=("ipa",))]
    if not any(row["ipa"] for row in rows):
        raise InputError(f"{path}: its column ipa is empty; fill it, or leave --ipa out")
    names = [row.get("id") for row in rows]
    if not all(names):
        if not any(row.get("path") for row in rows):
            raise InputError(f"{path}: {names.count(None)} of {len(names)} rows have no id; fill the column id")
        names = read_manifest(path).table["id"].to_pylist()
    twice = [str(name) for name, count in Counter(names).items() if count > 1]
    if twice:
        raise InputError(f"{path}: ids occur twice: {', '.join(twice[:_NAMED])}; keep one row for each")
    ipa = ((str(name), clean(row["ipa"] or "")) for name, row in zip(names, rows, strict=True))
    return {name: text for name, text in ipa if text}
