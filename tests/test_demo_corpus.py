"""The demo's sentences are a clean parallel table, its recordings speech of the same bytes every time."""

from __future__ import annotations

import csv
import hashlib
import subprocess
import sys
import unicodedata
from collections import Counter
from itertools import combinations
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import soundfile

from voxstrata.base.errors import InputError, UsageError
from voxstrata.demo.corpus import demo_sentences, write_demo_corpus
from voxstrata.phonology.espeak import speak

try:
    import espeakng_loader  # noqa: F401
except ImportError:
    HAS_ESPEAK = False
else:
    HAS_ESPEAK = True

needs_espeak = pytest.mark.skipif(not HAS_ESPEAK, reason="espeakng-loader (extra 'demo') is not installed")
LANGUAGES = ("en", "es", "de", "ru", "tr", "fi")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demo")
    assert write_demo_corpus(folder) == folder / "manifest.tsv"
    return folder


def manifest_rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "manifest.tsv").open(encoding="utf-8", newline="") as lines:
        return list(csv.DictReader(lines, delimiter="\t"))


def digests(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


def median_f0(samples: npt.NDArray[np.int16], rate: int) -> float:
    """Median over the louder 40 ms frames of the autocorrelation peak between 60 and 350 Hz."""
    size = rate // 25
    frames = samples[: len(samples) // size * size].reshape(-1, size).astype(np.float64)
    energy = (frames**2).sum(axis=1)
    lags = np.arange(rate // 350, rate // 60)
    pitches = []
    for frame in frames[energy > np.median(energy)]:
        correlation = [frame[lag:] @ frame[:-lag] / (size - lag) for lag in lags]
        pitches.append(rate / lags[int(np.argmax(correlation))])
    return float(np.median(pitches))


def test_every_sentence_exists_in_every_language() -> None:
    table = demo_sentences()
    assert list(table) == [f"s{number:02d}" for number in range(1, 41)]
    for group, texts in table.items():
        assert tuple(texts) == LANGUAGES, group
        for text in texts.values():
            assert 4 <= len(text.split()) <= 14, text
            assert text == unicodedata.normalize("NFC", text).strip(), text
            assert text.endswith("."), text
            assert not any(character.isdigit() or character in '"\t' for character in text), text


def test_no_sentence_comes_twice() -> None:
    texts = [text.casefold() for by_language in demo_sentences().values() for text in by_language.values()]
    assert [text for text, times in Counter(texts).items() if times > 1] == []


def test_each_language_keeps_to_its_script() -> None:
    for by_language in demo_sentences().values():
        for language, text in by_language.items():
            scripts = {unicodedata.name(letter).split()[0] for letter in text if letter.isalpha()}
            assert scripts == {"CYRILLIC" if language == "ru" else "LATIN"}, text


def test_few_words_look_alike_across_languages() -> None:
    """Words of four letters and more that two translations share would let sound alone match them."""
    shared = []
    for group, by_language in demo_sentences().items():
        words = {
            language: {word for word in text.casefold().strip(".").replace(",", "").split() if len(word) > 3}
            for language, text in by_language.items()
        }
        shared += [(group, a, b, word) for a, b in combinations(LANGUAGES, 2) for word in words[a] & words[b]]
    assert len(shared) <= 5, shared


@needs_espeak
def test_manifest_lists_every_sentence_in_every_language_by_both_voices(corpus: Path) -> None:
    rows = manifest_rows(corpus)
    table = demo_sentences()
    assert list(rows[0]) == ["id", "path", "language", "group", "text", "speaker"]
    assert {(row["group"], row["language"], row["speaker"]) for row in rows} == {
        (group, language, f"{language}-{voice}") for group in table for language in LANGUAGES for voice in "mf"
    }
    assert len(rows) == len({row["id"] for row in rows}) == 40 * 6 * 2
    for row in rows:
        assert row["text"] == table[row["group"]][row["language"]]
        assert (corpus / row["path"]).is_file()
    assert len(digests(corpus)) == len(rows) + 1


@needs_espeak
def test_recordings_are_audible_unclipped_and_of_plausible_length(corpus: Path) -> None:
    for row in manifest_rows(corpus):
        samples, rate = soundfile.read(corpus / row["path"], dtype="int16")
        assert samples.ndim == 1
        assert 0.5 < len(samples) / rate < 12, row
        level = np.abs(samples.astype(np.int32))
        assert 5000 < level.max() < 32000, row
        loud = np.flatnonzero(level > 100) / rate
        assert loud[0] < 0.1, row
        assert len(samples) / rate - loud[-1] < 0.1, row


@needs_espeak
@pytest.mark.parametrize("language", LANGUAGES)
def test_one_voice_is_lower_and_slower_than_the_other(corpus: Path, language: str) -> None:
    for group in ("s01", "s20"):
        low, rate = soundfile.read(corpus / language / f"{group}-m.flac", dtype="int16")
        high, _ = soundfile.read(corpus / language / f"{group}-f.flac", dtype="int16")
        assert 1.3 * median_f0(low, rate) < median_f0(high, rate)
        assert len(low) > len(high)


@needs_espeak
def test_a_second_run_gives_the_same_bytes(corpus: Path, tmp_path: Path) -> None:
    """The second run starts elsewhere in the corpus, so a state carried from clip to clip would show."""
    write_demo_corpus(tmp_path, sentences=3, languages=("tr", "en"))
    whole, part = digests(corpus), digests(tmp_path)
    assert part.pop("manifest.tsv") != whole["manifest.tsv"]
    assert len(part) == 3 * 2 * 2
    assert part == {path: whole[path] for path in part}


@needs_espeak
def test_another_process_gives_the_same_bytes(corpus: Path, tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from voxstrata.demo import corpus as demo_corpus;"
        "demo_corpus.write_demo_corpus(Path(sys.argv[1]), sentences=1)"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True)
    other = digests(tmp_path)
    del other["manifest.tsv"]
    assert len(other) == 12
    assert other == {path: digests(corpus)[path] for path in other}


@needs_espeak
def test_phonemizer_in_the_same_process_changes_no_sample() -> None:
    """It keeps the library loaded, and with it what espeak-ng remembers of earlier speech."""
    pytest.importorskip("phonemizer")
    from voxstrata.phonology.ipa import transcribe

    text = "Die Kinder bauen eine Burg aus nassem Sand."
    before, _ = speak(text, "de+m3")
    transcribe([text], "de")
    for _ in range(2):
        np.testing.assert_array_equal(speak(text, "de+m3")[0], before)


@needs_espeak
def test_the_library_writes_nothing_to_the_terminal(capfd: pytest.CaptureFixture[str]) -> None:
    speak("Hyvää huomenta.", "fi+f2")
    with pytest.raises(InputError):
        speak("Hello.", "xx")
    assert capfd.readouterr() == ("", "")


@needs_espeak
@pytest.mark.parametrize("voice", ["xx", "en+nobody", "en+", "", "../en"])
def test_an_unknown_voice_is_an_error_that_names_it(voice: str) -> None:
    with pytest.raises(InputError, match=f"voice '{voice.replace('+', '[+]')}'"):
        speak("Hello.", voice)


@needs_espeak
@pytest.mark.parametrize(
    ("code", "file"), [("fr-fr", "roa/fr"), ("en-gb", "gmw/en"), ("vi-vn-x-central", "aav/vi-VN-x-central")]
)
def test_the_code_of_a_language_that_is_no_voices_name_is_spoken_by_its_voice(code: str, file: str) -> None:
    """Of espeak-ng 1.52 these files say `language` and the code."""
    samples, _ = speak("bonjour", f"{code}+m3")
    np.testing.assert_array_equal(samples, speak("bonjour", f"{file}+m3")[0])


@needs_espeak
@pytest.mark.parametrize("text", ["", " ", "..."])
def test_a_text_without_words_is_an_error(text: str) -> None:
    with pytest.raises(InputError, match="no sound"):
        speak(text, "en")


@needs_espeak
def test_rate_and_pitch_do_what_they_say() -> None:
    text = "Die Kinder bauen eine Burg aus nassem Sand."
    samples, rate = speak(text, "de+m3")
    assert samples.dtype == np.int16
    assert len(speak(text, "de+m3", rate=120)[0]) > 1.2 * len(samples)
    assert median_f0(speak(text, "de+m3", pitch=90)[0], rate) > 1.2 * median_f0(samples, rate)


@pytest.mark.parametrize("setting", [{"rate": 79}, {"rate": 451}, {"pitch": -1}, {"pitch": 100}])
def test_rate_or_pitch_out_of_range_is_a_usage_error(setting: dict[str, int]) -> None:
    with pytest.raises(UsageError, match="give"):
        speak("Hello.", "en", **setting)


def test_a_missing_espeakng_loader_is_an_error_that_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "espeakng_loader", None)
    with pytest.raises(InputError, match=r"voxstrata\[demo\]"):
        speak("Hello.", "en")


@pytest.mark.parametrize("sentences", [0, 41])
def test_a_wrong_number_of_sentences_is_a_usage_error(tmp_path: Path, sentences: int) -> None:
    with pytest.raises(UsageError, match=f"sentences {sentences}"):
        write_demo_corpus(tmp_path, sentences=sentences)


@pytest.mark.parametrize("languages", [(), ("en", "xx"), ("en", "en")])
def test_a_wrong_choice_of_languages_is_a_usage_error(tmp_path: Path, languages: tuple[str, ...]) -> None:
    with pytest.raises(UsageError, match="en, es, de, ru, tr, fi"):
        write_demo_corpus(tmp_path, languages=languages)
    assert list(tmp_path.iterdir()) == []


@needs_espeak
def test_a_folder_that_cannot_be_written_is_an_error_that_names_it(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("a file")
    with pytest.raises(InputError, match="taken"):
        write_demo_corpus(tmp_path / "taken", sentences=1)
