"""Scopes, parts and intervals of error rates: languages weigh alike, whatever stray texts and failures there are."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("jiwer")

from test_transcribe import planted, row
from transcribers import heard as said
from transcribers import scored

from voxstrata.base.errors import InputError
from voxstrata.early_exit.decoding import Transcripts
from voxstrata.early_exit.exits import EarlyExit
from voxstrata.early_exit.normalization import normalizer
from voxstrata.early_exit.rates import OVERALL, Rates, both_parts, choose_exits, rates_table
from voxstrata.early_exit.result import EarlyExits
from voxstrata.early_exit.scoring import Scoring, scripts_of, split_groups
from voxstrata.early_exit.sweeping import early_exits

LIGHT = Scoring("light", 0.5, 0, 400)
SETTINGS = {"checkpoint": "made-up", "scoring": asdict(LIGHT), "layers": 2, "notes": ["en: one", "two"],
            "decoding": {"task": "transcribe", "max_new_tokens": 9}, 
            "failures": {"u7": "bad.wav: not audio"}}  # fmt: skip


def test_a_stray_text_in_another_script_counts_with_its_language(tiny_transcriber: Path) -> None:
    """One Cyrillic text among English ones, wholly misheard: a language weighs by its texts, a stray by itself."""
    texts = [("en", "a b c d", "a b c d")] * 9 + [("en", "да нет", "x y")] + [("ru", "да нет", "да нет")] * 10
    texts += [("ja", "ドアが", "ドアが")] * 9 + [("ja", "OK", "no")]
    rows = tuple(row(f"{lang}{n}", lang, text, f"g{n % 10}") for n, (lang, text, _) in enumerate(texts))
    table = scored(
        Transcripts(rows, {EarlyExit(0): said(*(heard for *_, heard in texts))}, {}), ["test"] * 30, LIGHT, False,
        tiny_transcriber,
    )  # fmt: skip
    rates = Rates(table, "test", LIGHT)
    assert rates.scopes == [("en", "LATIN"), ("ja", "CJK"), ("ru", "CYRILLIC")]
    assert rates.rate(("en", "LATIN"))[0] == pytest.approx(2 / (9 * 4 + 2))  # not the 100 % of a scope of its own
    assert rates.rate(("ja", "CJK"))[0] == pytest.approx(2 / (9 * 3 + 2))  # characters, of the stray one, too
    assert rates.rate(OVERALL)[0] == pytest.approx((2 / 38 + 2 / 29 + 0) / 3)
    assert {r["unit"] for r in table.to_pylist() if r["language"] == "ja"} == {"character"}
    assert scripts_of(rows) == {"en": ("LATIN", {"CYRILLIC": 1}), "ru": ("CYRILLIC", {}), "ja": ("CJK", {"LATIN": 1})}


def test_texts_without_letters_have_no_say_in_the_script() -> None:
    rows = [row("1", "ru", "42"), row("2", "ru", "7"), row("3", "ru", "да"), row("4", "xx", "5")]
    assert scripts_of(rows) == {"ru": ("CYRILLIC", {}), "xx": ("NONE", {})}


def test_all_is_over_languages_of_both_parts(tiny_transcriber: Path) -> None:
    """es failed wholly in the development part: it has no choice, and weighs in neither part's mean."""
    errors: dict[tuple[str, EarlyExit], Callable[[int], int]] = {
        (lang, EarlyExit(k)): (lambda g, e=e: e) for lang, e in (("en", 1), ("es", 8), ("fr", 3)) for k in (0, 1)
    }
    rows, heard = planted(errors, 10, ("en", "es", "fr"))
    parts = split_groups(rows, LIGHT)
    kept = [i for i, r in enumerate(rows) if not (r["language"] == "es" and parts[i] == "dev")]
    left = Transcripts(
        tuple(rows[i] for i in kept), {at: tuple(t[i] for i in kept) for at, t in heard.texts.items()}, {}
    )
    table = scored(left, [parts[i] for i in kept], LIGHT, False, tiny_transcriber)
    dev, test = both_parts(table, LIGHT)
    assert [s[0] for s in dev.scopes] == ["en", "fr"]
    assert [s[0] for s in test.scopes] == ["en", "es", "fr"]
    assert dev.rate(OVERALL).tolist() == test.rate(OVERALL).tolist() == pytest.approx([0.2, 0.2])
    assert choose_exits(dev, test)["language"].to_pylist() == ["en", "fr", "all"]
    by_key = {
        (r["part"], r["language"], r["after"]): r for r in rates_table([("dev", dev), ("test", test)]).to_pylist()
    }
    assert by_key["test", "es", 0]["rate"] == pytest.approx(0.8)  # still told
    assert by_key["test", "all", 0]["utterances"] == 10
    english = [i for i, r in enumerate(rows) if (r["language"] == "en") == (parts[i] == "dev")]
    apart = Transcripts(
        tuple(rows[i] for i in english), {at: tuple(t[i] for i in english) for at, t in heard.texts.items()}, {}
    )
    with pytest.raises(InputError, match="no language has a transcribed recording in both parts"):
        both_parts(scored(apart, [parts[i] for i in english], LIGHT, False, tiny_transcriber), LIGHT)


def test_a_language_of_few_groups_has_an_interval_of_its_own_groups(tiny_transcriber: Path) -> None:
    """A language of 2 groups beside one of 30: none of its resamples is empty; those of all without it are counted."""
    scoring = Scoring("light", 0.5, 0, 4000)
    rows = tuple(row(f"en{g}", "en", "a b", f"g{g:02d}") for g in range(30))
    rows += tuple(row(f"ca{g}", "ca", "a b", f"c{g}") for g in range(2))
    texts = (*("a b" if g % 2 else "a x" for g in range(30)), "a b", "a x")
    table = scored(Transcripts(rows, {EarlyExit(0): said(*texts)}, {}), ["test"] * 32, scoring, False, tiny_transcriber)
    rates = Rates(table, "test", scoring)
    samples = rates.samples(("ca", "LATIN"))[:, 0]
    assert not np.isnan(samples).any()
    # two draws of two groups that err 0 and 1/2: mean 0, 1/4, 1/2 with chances 1/4, 1/2, 1/4
    assert [np.mean(np.isclose(samples, v)) for v in (0, 0.25, 0.5)] == pytest.approx([0.25, 0.5, 0.25], abs=0.03)
    assert rates.incomplete / 4000 == pytest.approx((30 / 32) ** 32, abs=0.02)  # neither of ca's groups in 32 draws
    whole = rates.samples(OVERALL)[:, 0]
    assert not np.isnan(whole).any()
    assert whole.mean() == pytest.approx(0.25, abs=0.01)
    (told,) = {r["incomplete_resamples"] for r in rates_table([("test", rates)]).to_pylist() if r["language"] == "all"}
    assert told == rates.incomplete


def test_a_single_group_has_no_interval(tiny_transcriber: Path, tmp_path: Path) -> None:
    rows = (row("a", "en", "a b", "g"), row("b", "en", "a b", "g"), row("c", "en", "a b", "h"))
    table = scored(
        Transcripts(rows, {EarlyExit(0): said("a x", "a b", "a b")}, {}), ["test", "test", "dev"], LIGHT, False,
        tiny_transcriber,
    )  # fmt: skip
    dev, test = both_parts(table, LIGHT)
    result = early_exits(table, dev, test, SETTINGS)
    assert {(r["low"], r["high"]) for r in result.table.to_pylist()} == {(None, None)}
    first = choose_exits(dev, test).to_pylist()[0]
    assert [first[f"difference{end}"] for end in ("", "_low", "_high")] == [0.0, None, None]
    assert result.tables()[0].rows[0][-3:] == ["25.0", "25.0", "+0.0"]
    assert list(result.figures()) == ["early_exit", "early_exit_kinds", "early_exit_shares"]  # draws the points


def test_the_normalizer_is_named_and_a_missing_table_of_spellings_changes_its_name(
    tiny_transcriber: Path, tmp_path: Path
) -> None:
    with_table, without = (normalizer("whisper", True, folder) for folder in (tiny_transcriber, tmp_path))
    assert (with_table.name, with_table("Colour")) == ("whisper english", "color")
    assert (without.name, without("Colour")) == ("whisper english without spellings", "colour")
    assert normalizer("whisper", False, tmp_path).name == "whisper basic"
    for text, message in (("{", "not JSON"), (json.dumps(["colour"]), "not a table of spellings")):
        (tmp_path / "normalizer.json").write_text(text, encoding="utf-8")
        with pytest.raises(InputError, match=f"normalizer.json: {message}"):
            normalizer("whisper", True, tmp_path)


def test_a_saved_result_comes_back_with_its_notes_and_failures(tiny_transcriber: Path, tmp_path: Path) -> None:
    errors: dict[tuple[str, EarlyExit], Callable[[int], int]] = {("en", EarlyExit(k)): lambda g: g % 2 for k in (0, 2)}
    rows, heard = planted(errors, 8, ("en",))
    table = scored(heard, split_groups(rows, LIGHT), LIGHT, False, tiny_transcriber)
    measured = early_exits(table, *both_parts(table, LIGHT), SETTINGS)
    measured.save(tmp_path / "out")
    found = EarlyExits.load(tmp_path / "out")
    assert [t.equals(m) for t, m in ((found.table, measured.table), (found.choices, measured.choices))] == [True, True]
    assert found.transcripts.equals(measured.transcripts)
    note = found.tables()[0].note
    assert note.splitlines()[1:] == ["- en: one", "- two"]
    assert "each language weighing the same" in note
    text = (tmp_path / "out" / "early_exit.md").read_text(encoding="utf-8")
    assert text == found.to_markdown() == measured.to_markdown()
    assert "bad.wav: not audio" in text
    assert (found.store, found.failures) == (None, {"u7": "bad.wav: not audio"})
    assert sorted(p.name for p in (tmp_path / "out").glob("*.png")) == [
        f"{name}.png"
        for name in EarlyExits.captions
        if name != "early_exit_speed"  # no costs were told
    ]
