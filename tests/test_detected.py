"""Detected languages: accuracy, chance, intervals and confusion of detections that are planted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from voxstrata.early_exit.detected import DetectedLanguages, detected_languages
from voxstrata.early_exit.exits import MEAN_OF_LANGUAGES, EarlyExit

WHOLE, DEAF, HALF = EarlyExit(2), EarlyExit(0), EarlyExit(1)
ROWS = [{"id": f"{n}{g}", "language": n, "group": f"g{g}"} for n in ("en", "es", "tlh") for g in range(4)]
RIGHT = {"en": "en", "es": "es", "tlh": None}
SETTINGS = {"checkpoint": "made-up", "corpus": "c", "languages_known": 99, "failures": {}}
HEARD = {  # by exit, of four English, four Spanish and four Klingon recordings
    DEAF: ["en"] * 12,
    HALF: ["en", "en", "en", "fr", "es", "es", "en", "pt", "de", "de", "de", "en"],
    WHOLE: ["en"] * 4 + ["es"] * 4 + ["de"] * 4,
}


def result() -> DetectedLanguages:
    return detected_languages(ROWS, HEARD, RIGHT, SETTINGS, 200, 0)


def of(language: str, at: EarlyExit) -> dict[str, Any]:
    (row,) = [r for r in result().table.to_pylist() if (r["language"], r["after"]) == (language, at.after)]
    return row


def test_accuracy_and_chance_are_those_planted() -> None:
    assert [of(n, WHOLE)["accuracy"] for n in ("en", "es", MEAN_OF_LANGUAGES)] == [1, 1, 1]
    assert [of(n, HALF)["accuracy"] for n in ("en", "es", MEAN_OF_LANGUAGES)] == [0.75, 0.5, 0.625]
    assert of("en", HALF)["chance"] == pytest.approx((3 + 1 + 1) / 12)
    assert of("es", HALF)["chance"] == pytest.approx(2 / 12)
    assert of(MEAN_OF_LANGUAGES, HALF)["chance"] == pytest.approx(7 / 24)


def test_an_exit_that_always_says_one_language_is_no_better_than_chance() -> None:
    assert (of("en", DEAF)["accuracy"], of("en", DEAF)["chance"]) == (1, 1)
    assert (of("es", DEAF)["accuracy"], of("es", DEAF)["chance"]) == (0, 0)
    assert of(MEAN_OF_LANGUAGES, DEAF)["accuracy"] == of(MEAN_OF_LANGUAGES, DEAF)["chance"] == 0.5


def test_intervals_are_over_groups_and_a_language_without_a_name_is_in_the_confusion_alone() -> None:
    row = of("en", HALF)
    assert 0 < row["low"] < 0.75 < row["high"] <= 1
    assert (of("en", WHOLE)["low"], of("en", WHOLE)["high"]) == (1, 1)
    assert (row["utterances"], row["groups"]) == (4, 4)
    assert (of(MEAN_OF_LANGUAGES, HALF)["utterances"], of(MEAN_OF_LANGUAGES, HALF)["groups"]) == (8, 4)
    assert "tlh" not in result().table["language"].to_pylist()
    confusion = [r for r in result().confusion.to_pylist() if (r["language"], r["after"]) == ("tlh", 1)]
    assert [(r["detected"], r["recordings"], r["share"]) for r in confusion] == [("de", 3, 0.75), ("en", 1, 0.25)]


def test_a_single_group_has_no_interval() -> None:
    (row, _) = detected_languages(ROWS[:1], {WHOLE: ["en"]}, RIGHT, SETTINGS, 20, 0).table.to_pylist()
    assert (row["accuracy"], row["low"], row["high"]) == (1, None, None)


def test_the_result_is_saved_and_read_again_and_its_tables_fit_a_terminal(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    saved = result()
    saved.save(tmp_path / "languages")
    again = DetectedLanguages.load(tmp_path / "languages")
    assert again.table.equals(saved.table)
    assert again.confusion.equals(saved.confusion)
    assert (tmp_path / "languages" / "languages.png").stat().st_size > 10_000
    text = [line for table in again.tables() for line in table.to_text().splitlines()]
    assert max(map(len, text)) <= 80
    assert any("de 75.0, en 25.0" in line for line in text)
    assert any("62.5 [" in line and "29.2" in line for line in text)
