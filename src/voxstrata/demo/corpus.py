"""The demo's corpus: everyday sentences in six languages, spoken by espeak-ng.

The sentences in `demo_sentences.tsv` (columns: group, then one per language) were written and translated for
this project and are under its licence, Apache-2.0. None is a question, whose melody would give translations
away. Every sentence is spoken in every language by the same two voice variants at the same two settings, so
neither voice nor speed tells one sentence from another. Length still does a little, since a long sentence is
long in every language.
"""

import csv
from importlib.resources import files
from pathlib import Path

import soundfile

from voxstrata.base.errors import InputError, UsageError
from voxstrata.corpus import COLUMNS
from voxstrata.phonology.espeak import speak
from voxstrata.phonology.voices import VOICES


def demo_sentences() -> dict[str, dict[str, str]]:
    """The sentences: group ("s01", ...) -> language code -> text, both in the order of the file."""
    with (files("voxstrata.demo") / "demo_sentences.tsv").open(encoding="utf-8") as lines:
        rows = list(csv.DictReader(lines, delimiter="\t"))
    return {row.pop("group"): row for row in rows}


def write_demo_corpus(folder: Path, sentences: int = 40, languages: tuple[str, ...] | None = None) -> Path:
    """Write one recording per sentence, language and voice, and the manifest; return the manifest's path.

    Writes `folder/<language>/<group>-<voice>.flac` (mono, 16 bit, 22 050 samples per second, the pauses as
    espeak-ng leaves them: less than 0.1 s on either side) and `folder/manifest.tsv` with the columns id, path
    (relative to `folder`), language, group, text, speaker. Files of the same names are overwritten.
    The bytes depend on the arguments alone, given the same espeak-ng and libsndfile.

    folder: made when missing. sentences: how many, from the first; 1 to 40. languages: codes, each once; all six by
    default. Raises UsageError when `sentences` is out of range, or a language is unknown or given twice; InputError
    when espeakng-loader is not installed, or `folder` cannot be written.
    """
    texts = demo_sentences()
    if not 1 <= sentences <= len(texts):
        raise UsageError(f"sentences {sentences}: the demo has 1 to {len(texts)}")
    known = tuple(next(iter(texts.values())))
    chosen = known if languages is None else languages
    if not chosen or len(set(chosen)) < len(chosen) or not set(chosen) <= set(known):
        raise UsageError(f"languages {', '.join(chosen) or '(none)'}: give some of {', '.join(known)}, each once")

    rows = []
    try:
        for language in chosen:
            (folder / language).mkdir(parents=True, exist_ok=True)
            for group, by_language in list(texts.items())[:sentences]:
                for voice in VOICES:
                    text = by_language[language]
                    samples, rate = speak(text, f"{language}+{voice.variant}", voice.rate, voice.pitch)
                    path = f"{language}/{group}-{voice.name}.flac"
                    soundfile.write(folder / path, samples, rate, subtype="PCM_16")
                    name, speaker = f"{language}-{group}-{voice.name}", f"{language}-{voice.name}"
                    rows.append((name, path, language, group, text, speaker))
        manifest = folder / "manifest.tsv"
        with manifest.open("w", encoding="utf-8", newline="") as out:
            csv.writer(out, delimiter="\t", lineterminator="\n").writerows([COLUMNS, *rows])
    except (OSError, soundfile.SoundFileError) as error:
        raise InputError(f"{folder}: the demo corpus cannot be written ({error}); choose another folder") from error
    return manifest
