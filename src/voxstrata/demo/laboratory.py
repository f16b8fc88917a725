"""The laboratory's language: sentences of four words in four languages, and who speaks them.

Every meaning is one of 8,000: a quality, who, what they do, and when or where. The words are in
`laboratory_words.tsv` (columns: slot, meaning, then one per language), written for this project and under its licence,
Apache-2.0. Each language has a word order of its own. Some words sound alike in several languages and mean the same
(tigers, Tiger), some mean something else (bald: soon in German), most sound unlike.

Meanings and voices of training, development and test are apart. One language, Italian, has no part in training.
"""

import csv
import hashlib
import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path

import numpy as np
import numpy.typing as npt
import soundfile
import soxr

from voxstrata.base.errors import InputError, UsageError
from voxstrata.corpus import COLUMNS
from voxstrata.encoders.frames import SAMPLE_RATE
from voxstrata.phonology.espeak import speak
from voxstrata.phonology.voices import VOICES, Speaker

SLOTS = ("quality", "who", "does", "when")
TAUGHT = ("en", "es", "de")
LEFT_OUT = "it"
PIVOT = "en"  # what the translator translates into
PARTS = ("train", "dev", "test")
_ORDERS = {
    "en": ("quality", "who", "does", "when"),
    "es": ("when", "does", "who", "quality"),
    "de": ("when", "does", "quality", "who"),
    "it": ("who", "quality", "does", "when"),
}
_OTHERS = {"train": ("m1", "m2", "m4", "m5", "m6", "m7", "f1", "f3", "f4"), "dev": ("m8", "f5")}
_RATES, _PITCHES = (250, 330), (30, 70)  # of voices that are not those of the test part

Meaning = tuple[str, ...]  # one label for each slot, in the order of SLOTS


@dataclass(frozen=True)
class Spoken:
    """A sentence and how it is spoken."""

    meaning: Meaning
    language: str
    speaker: Speaker

    def english(self, word: str) -> str:
        """A word of the sentence in the pivot language."""
        rows = (laboratory_words()[slot][label] for slot, label in zip(SLOTS, self.meaning, strict=True))
        return next(row[PIVOT] for row in rows if row[self.language] == word)

    @property
    def text(self) -> str:
        words = laboratory_words()
        return " ".join(words[slot][self.meaning[SLOTS.index(slot)]][self.language] for slot in _ORDERS[self.language])

    @property
    def group(self) -> str:
        return "-".join(self.meaning)


@cache
def laboratory_words() -> dict[str, dict[str, dict[str, str]]]:
    """The words: slot -> meaning -> language -> form, in the order of the file."""
    words: dict[str, dict[str, dict[str, str]]] = {slot: {} for slot in SLOTS}
    with (files("voxstrata.demo") / "laboratory_words.tsv").open(encoding="utf-8") as lines:
        for row in csv.DictReader(lines, delimiter="\t"):
            words[row.pop("slot")][row.pop("meaning")] = row
    return words


def part_of_meaning(meaning: Meaning) -> str:
    """The part that a meaning belongs to: eight in ten are "train", one "dev", one "test"."""
    digit = hashlib.sha256("-".join(meaning).encode()).digest()[0] % 10
    return {0: "test", 1: "dev"}.get(digit, "train")


def draw_meanings(part: str, count: int, seed: int) -> list[Meaning]:
    """`count` different meanings of a part, drawn with a seed."""
    draw, words = random.Random(f"{part} {seed}"), laboratory_words()
    found: dict[Meaning, None] = {}
    while len(found) < count:
        meaning = tuple(draw.choice(list(words[slot])) for slot in SLOTS)
        if part_of_meaning(meaning) == part:
            found[meaning] = None
    return list(found)


def draw_speaker(part: str, draw: random.Random) -> Speaker:
    """A voice of a part. The test part has the demo's two, speaking faster; the others vary in speed and pitch."""
    if part == "test":
        voice = draw.choice(VOICES)
        return Speaker(voice.name, voice.variant, voice.rate + 130, voice.pitch)
    variant = draw.choice(_OTHERS[part])
    return Speaker(variant, variant, draw.randint(*_RATES), draw.randint(*_PITCHES))


def draw_sentences(part: str, count: int, languages: Sequence[str], seed: int = 0) -> list[Spoken]:
    """`count` meanings of a part in each of the languages, each sentence by a voice drawn for it alone.

    Raises UsageError for a part or a language that the laboratory has not.
    """
    if part not in PARTS or not set(languages) <= set(_ORDERS):
        raise UsageError(f"part {part}, languages {', '.join(languages)}: give one of {', '.join(PARTS)}, and some of "
                         f"{', '.join(_ORDERS)}")  # fmt: skip
    draw = random.Random(f"{part} {seed}")
    return [
        Spoken(meaning, language, draw_speaker(part, draw))
        for meaning in draw_meanings(part, count, seed)
        for language in languages
    ]


def spoken_fast(text: str, language: str, speaker: Speaker) -> npt.NDArray[np.float32]:
    """Samples at 16 kHz, in [-1, 1]."""
    samples, rate = speak(text, f"{language}+{speaker.variant}", speaker.rate, speaker.pitch)
    found: npt.NDArray[np.float32] = soxr.resample(samples.astype(np.float32) / 32768, rate, SAMPLE_RATE)
    return found


def write_laboratory_corpus(folder: Path, said: Sequence[Spoken]) -> Path:
    """Speak sentences into a folder, as 16-bit FLAC of 16 kHz, and write the manifest; return the manifest's path.

    One recording for a meaning in a language. Files of the same names are overwritten. Raises InputError when
    espeakng-loader is not installed, or `folder` cannot be written.
    """
    rows = []
    try:
        for one in said:
            path = f"{one.language}/{one.group}.flac"
            (folder / one.language).mkdir(parents=True, exist_ok=True)
            sound = spoken_fast(one.text, one.language, one.speaker)
            soundfile.write(folder / path, sound, SAMPLE_RATE, subtype="PCM_16")
            name = f"{one.language}-{one.group}"
            rows.append((name, path, one.language, one.group, one.text, f"{one.language}-{one.speaker.name}"))
        manifest = folder / "manifest.tsv"
        with manifest.open("w", encoding="utf-8", newline="") as out:
            csv.writer(out, delimiter="\t", lineterminator="\n").writerows([COLUMNS, *rows])
    except (OSError, soundfile.SoundFileError) as error:
        raise InputError(f"{folder}: the corpus cannot be written ({error}); choose another folder") from error
    return manifest
