"""An exit that says nothing, loops, or says the same of everything: counted, shown, and never chosen unnamed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import pyarrow as pa
import pytest

pytest.importorskip("torch")
pytest.importorskip("jiwer")

from test_transcribe import row
from transcribers import heard as said
from transcribers import scored

from voxstrata.base.errors import UsageError
from voxstrata.early_exit.costs import COSTS_SCHEMA
from voxstrata.early_exit.decoding import Transcripts
from voxstrata.early_exit.exits import EarlyExit
from voxstrata.early_exit.figures import NO_EXIT
from voxstrata.early_exit.rates import both_parts
from voxstrata.early_exit.result import EarlyExits, side_by_side
from voxstrata.early_exit.scoring import Scoring, others_of, split_groups, units_of
from voxstrata.early_exit.sweeping import early_exits
from voxstrata.early_exit.transcript import Transcript

SILENT, WHOLE = EarlyExit(3, "without"), EarlyExit(6)
# 24 sentences of 5 words of 4 letters each; no two share a letter at one place
ALPHABET = "abcdefghijklmnopqrstuvwx"
SENTENCES = [
    " ".join("".join(ALPHABET[(n + 5 * word + letter) % 24] for letter in range(4)) for word in range(5))
    for n in range(24)
]
LOOP = " ".join(["pog"] * 55)


def swept(
    heard: dict[EarlyExit, Callable[[str], str]], folder: Path, scoring: Scoring, language: str = "ast"
) -> EarlyExits:
    """24 recordings of 6 s in a language that the model has no name for, and what each exit makes of each sentence."""
    rows = tuple(row(f"u{n:02d}", language, text, f"g{n:02d}") for n, text in enumerate(SENTENCES))
    texts = {at: tuple(decoded(hear(text)) for text in SENTENCES) for at, hear in heard.items()}
    parts = split_groups(rows, scoring)
    table = scored(Transcripts(rows, texts, {}, (6.0,) * 24), parts, scoring, False, folder, {"ast"})
    settings = {"checkpoint": "made-up", "layers": 6, "scoring": asdict(scoring), "notes": [], "failures": {},
                "decoding": {"task": "transcribe", "max_new_tokens": 224}}  # fmt: skip
    return early_exits(table, *both_parts(table, scoring), settings)


def decoded(text: str) -> Transcript:
    """As the decoder gives it: a loop is told, and its first copy kept in `cut`."""
    (plain,) = said(text)
    before, loop, _ = text.partition(LOOP)
    return replace(plain, cut=f"{before}pog", looped=True, ended=False) if loop else plain


def of(result: EarlyExits, at: EarlyExit, language: str = "ast", part: str = "test") -> dict[str, object]:
    (found,) = [r for r in result.table.to_pylist() if (r["after"], r["norm"]) == (at.after, at.norm)
                and (r["language"], r["part"]) == (language, part)]  # fmt: skip
    return dict(found)


def mishear(text: str) -> str:
    """The first of four letters of every word is wrong: no word is right, three letters in four are."""
    return " ".join("z" + word[1:] for word in text.split())


def looping(text: str) -> str:
    return f"{mishear(text)} {LOOP}"


def test_saying_nothing_is_not_chosen_over_an_encoder_that_loops(tiny_transcriber: Path) -> None:
    """What was seen on a language that the model never saw: block 3 without LayerNorm is silent, 100 % wrong, and the
    whole encoder, which hears three letters in four, over 200 %, since it repeats itself to the end of the tokens."""
    heard = {SILENT: lambda text: "", WHOLE: looping}
    by_cut = swept(heard, tiny_transcriber, Scoring("light", resamples=100))
    whole, silent = of(by_cut, WHOLE), of(by_cut, SILENT)
    assert float(str(whole["rate"])) > 2
    assert whole["cut_rate"] == pytest.approx((5 + 4) / 24, abs=0.01)  # 5 letters of 24 places, and " pog"
    assert (silent["rate"], silent["cut_rate"], silent["no_better_than"]) == (1, 1, "nothing")
    choice = by_cut.choices.to_pylist()[0]
    assert EarlyExit(choice["after"], choice["norm"]) == WHOLE
    assert (choice["chosen_by"], choice["unit"]) == ("cut_rate", "character")
    assert "ast: with its loops the chosen exit is worse than saying nothing" in str(by_cut)
    shown = side_by_side(by_cut.transcripts, "t")
    assert f"| 6 | 9/24 | {mishear(SENTENCES[0])} pog … (loop cut) |" in shown
    assert "pog pog" not in shown

    plain = swept(heard, tiny_transcriber, Scoring("light", resamples=100, choose_by="plain"))
    choice = plain.choices.to_pylist()[0]
    assert (choice["after"], choice["norm"], choice["rate"], choice["dev_rate"]) == (None,) * 4
    assert (choice["chosen_by"], choice["no_better_than"]) == ("rate", "nothing")
    assert choice["original"] == whole["rate"]  # still told


def test_where_no_exit_says_something_it_is_said_everywhere(tiny_transcriber: Path, tmp_path: Path) -> None:
    heard = {SILENT: lambda text: "", WHOLE: lambda text: "zzzz " * 5 + "yyyy"}
    result = swept(heard, tiny_transcriber, Scoring("light", resamples=50))
    result.save(tmp_path / "out")
    assert result.tables()[0].rows[0][2] == "none"
    for text in (str(result), (tmp_path / "out" / "early_exit.md").read_text(encoding="utf-8"), result._repr_html_()):
        assert f"ast: {NO_EXIT}" in " ".join(text.split())
    drawn = " ".join(t.get_text() for axes in result.figures()["early_exit"].axes for t in axes.texts)
    assert NO_EXIT in drawn.replace("\n", " ")
    assert EarlyExits.load(tmp_path / "out").choices.equals(result.choices)
    assert max(map(len, str(result).splitlines())) <= 80


def test_the_phrase_of_a_hallucination_is_chance(tiny_transcriber: Path) -> None:
    """All sentences end alike, and one exit says that end of every one: better than saying nothing, and as right of any
    other recording. The other exit mishears a word of it, and is a transcript."""
    scoring = Scoring("light", resamples=200)
    texts = [f"{word} so good night" for word in SENTENCES]
    rows = tuple(row(f"u{n:02d}", "ast", text, f"g{n:02d}") for n, text in enumerate(texts))
    heard = {
        EarlyExit(0): said(*["so good night"] * 24),
        EarlyExit(1): said(*(t.replace("good", "gold") for t in texts)),
    }
    table = scored(Transcripts(rows, heard, {}), split_groups(rows, scoring), scoring, False, tiny_transcriber, {"ast"})
    dev, _ = both_parts(table, scoring)
    (scope,) = dev.scopes
    constant, hearing = dev.rate(scope)
    assert constant < 1
    assert dev.rate(scope, "chance")[0] == constant  # each text is held against once
    assert dev.rate(scope, "chance")[1] > hearing
    assert dev.no_better_than(scope) == ["chance", None]


def test_others_are_near_in_length_and_of_another_group_and_text() -> None:
    texts = ["aa", "bb", "cccccc", "dddddd", "aa", "ee", "same", "same"]
    groups = ["1", "2", "3", "4", "5", "6", "7", "8"]
    languages = ["en"] * 6 + ["fr"] * 2
    rows = [row(str(n), lang, text, g) for n, (lang, text, g) in enumerate(zip(languages, texts, groups, strict=True))]
    found = others_of(rows, ["dev"] * 8, texts)
    assert found[6:] == [None, None]  # nothing but the same text
    assert (found[2], found[3]) == (3, 2)
    assert all(texts[j or 0] != texts[i] and len(texts[j or 0]) == 2 for i, j in enumerate(found) if i in (0, 1, 4, 5))
    assert others_of(rows[:2], ["dev", "test"], texts[:2]) == [None, None]  # a part of its own each
    twins = [row("a", "en", "x", "g"), row("b", "en", "y", "g")]
    assert others_of(twins, ["dev"] * 2, ["x", "y"]) == [None, None]  # one group


def test_kinds_of_errors_and_words_that_nobody_said(tiny_transcriber: Path) -> None:
    """Reference of 5 words in 6 s: one is wrong, one is left out, three stand at the end that nobody said."""

    def hear(text: str) -> str:
        first, _, *rest = text.split()
        return " ".join(["zzzz", *rest, "yyyy", "yyzz", "zzyy"]) if first else ""

    result = swept({WHOLE: hear}, tiny_transcriber, Scoring("light", resamples=20))
    found = of(result, WHOLE)
    kinds = [found[f"word_{kind}"] for kind in ("substitutions", "deletions", "insertions")]
    assert kinds == pytest.approx([1 / 5, 1 / 5, 3 / 5])
    assert found["wer"] == pytest.approx(1)
    assert found["hallucinated_per_minute"] == pytest.approx(3 * 10)
    assert [found[f"hallucinated_per_minute_{end}"] for end in ("low", "high")] == pytest.approx([30, 30])
    assert (found["empty"], found["looping"]) == (0, 0)
    characters = sum(float(str(found[f"character_{kind}"])) for kind in ("substitutions", "deletions", "insertions"))
    assert characters == pytest.approx(found["cer"])


def test_empty_and_looping_shares_have_the_intervals_of_their_groups(tiny_transcriber: Path) -> None:
    """A quarter of the recordings get silence, a quarter a loop: binomial shares."""
    place = {text: n for n, text in enumerate(SENTENCES)}

    def hear(text: str) -> str:
        return "..." if place[text] % 4 == 0 else looping(text) if place[text] % 4 == 1 else text

    result = swept({WHOLE: hear}, tiny_transcriber, Scoring("light", dev_share=0.5, resamples=4000))
    tests = [r for r in result.transcripts.to_pylist() if r["part"] == "test"]
    found = of(result, WHOLE)
    for name, kind in (("empty", 0), ("looping", 1)):
        share = sum(int(r["id"][1:]) % 4 == kind for r in tests) / len(tests)
        assert found[name] == share
        deviation = (share * (1 - share) / len(tests)) ** 0.5
        width = float(str(found[f"{name}_high"])) - float(str(found[f"{name}_low"]))
        assert width == pytest.approx(2 * 1.96 * deviation, rel=0.25)


def test_the_unit_is_the_languages_and_can_be_asked_for(tiny_transcriber: Path) -> None:
    rows = [row("1", "ast", "esto ye"), row("2", "es", "esto es"), row("3", "ja", "これは")]
    units, why = units_of(rows, Scoring(), {"ast", "ja"})
    assert units == {"ast": "character", "es": "word", "ja": "character"}
    assert why.keys() == {"ast"}
    assert "knows none of its spelling" in why["ast"]
    for unit in ("word", "character"):
        assert units_of(rows, Scoring(unit=unit), {"ast"}) == (dict.fromkeys(("ast", "es", "ja"), unit), {})
    with pytest.raises(UsageError, match="unknown unit 'letter'; known: auto, word, character"):
        units_of(rows, Scoring(unit="letter"))
    with pytest.raises(UsageError, match="unknown choice 'best'; known: cut, plain"):
        units_of(rows, Scoring(choose_by="best"))


def test_hallucinated_characters_are_not_added_to_words(tiny_transcriber: Path) -> None:
    """en: 2 words inserted in 6 s; ja: 3 characters. "all" is over the language with words."""
    rows = tuple(
        row(f"{lang}{n}", lang, text, f"g{n}") for n in range(6) for lang, text in (("en", f"a {n}"), ("ja", f"か{n}"))
    )
    texts = tuple(f"{r['text']} so so" if r["language"] == "en" else f"{r['text']}ですよ" for r in rows)
    scoring = Scoring("light", resamples=20)
    table = scored(
        Transcripts(rows, {EarlyExit(0): said(*texts)}, {}, (6.0,) * 12), split_groups(rows, scoring), scoring, False,
        tiny_transcriber,
    )  # fmt: skip
    _, test = both_parts(table, scoring)
    rates = {language: test.rate((language, script), "hallucinated_per_minute")[0]
             for language, script in (("en", "LATIN"), ("ja", "CJK"), ("all", "all"))}  # fmt: skip
    assert rates == pytest.approx({"en": 20, "ja": 30, "all": 20})


@pytest.mark.parametrize(("timed", "cost"), [(True, "seconds for a recording"), (False, "GFLOP for a recording")])
def test_errors_stand_against_what_an_exit_costs(tiny_transcriber: Path, timed: bool, cost: str) -> None:
    result = swept({SILENT: lambda text: "", WHOLE: mishear}, tiny_transcriber, Scoring("light", resamples=20))
    costs = [
        {"after": at.after, "norm": at.norm, "parameters": 1, "bytes": 4, "tokens": 9.0, "encoder_flops": n * 10**9,
         "decoder_flops": 2e9, "encoder_seconds": 0.5 * n if timed else None, "decoder_seconds": 0.25}
        for n, at in ((3, SILENT), (6, WHOLE))
    ]  # fmt: skip
    result = replace(result, costs=pa.Table.from_pylist(costs, COSTS_SCHEMA))
    axes = result.figures()["early_exit_speed"].axes[0]
    assert axes.get_xlabel().startswith(cost)
    points = {(float(x), round(float(y), 1)) for line in axes.lines if line.get_marker() not in ("None", "")
              for x, y in line.get_xydata()}  # fmt: skip
    at = (1.75, 3.25) if timed else (5.0, 8.0)
    assert points == {(at[0], 100.0), (at[1], round(100 * float(str(of(result, WHOLE)["cut_rate"])), 1))}
