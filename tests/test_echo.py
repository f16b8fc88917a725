"""Wrong words of translations: those that carry the source's sounds over are found alike, all others are not."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

pytest.importorskip("jiwer")
pytest.importorskip("panphon")
pytest.importorskip("phonemizer")

from voxstrata.base.errors import InputError
from voxstrata.early_exit.echo import ECHO_SCHEMA, echo_rates, echoes, words_of
from voxstrata.early_exit.echo_result import MISSED, RIGHT, WRONG, WrongWords
from voxstrata.early_exit.scoring import Scoring

SPANISH = [
    "el perro duerme en la cocina", "mañana compramos manzanas verdes", "la ventana está rota",
    "llueve sobre el puente", "mi hermano trabaja de noche",
    "necesito zapatos nuevos", "el cuchillo corta queso", "hay mucha nieve arriba",
]  # fmt: skip
ENGLISH = [
    "the dog sleeps in the kitchen", "tomorrow we buy green apples", "the window is broken", "it rains on the bridge",
    "my brother works at night", "i need new shoes", "the knife cuts cheese", "there is much snow above",
]  # fmt: skip
HEARD = [  # what an ear that knows English alone writes of the Spanish
    "el pero dwermay in la coseena", "manyana comprahmos mansanas verdess", "la ventahna estah rotah",
    "yoo ay vay sobray el pwentay", "me ermahno trabaha day nochay", "neseseeto sapatos nwevos",
    "el coocheeyo cortah kesso", "eye moocha nee a vay ahreeba",
]  # fmt: skip
RUSSIAN = ["собака спит на кухне", "завтра мы купим яблоки"]


def scored(heard: list[str], language: str = "es", reference: list[str] = ENGLISH, after: int = 1) -> pa.Table:
    return pa.Table.from_pylist([
        {"id": f"{language}{i}", "language": language, "group": f"g{i}", "after": after, "norm": "with",
         "reference_normalized": right, "transcript_normalized": said}
        for i, (right, said) in enumerate(zip(reference, heard, strict=True))
    ])  # fmt: skip


SOURCES = {f"es{i}": text for i, text in enumerate(SPANISH)} | {f"ru{i}": text for i, text in enumerate(RUSSIAN)}


def rate(table: pa.Table, kind: str, language: str = "es", after: int = 1) -> dict[str, Any]:
    found = [r for r in echo_rates(table, Scoring(resamples=200)).to_pylist()
             if (r["language"], r["kind"], r["after"]) == (language, kind, after)]  # fmt: skip
    assert len(found) == 1
    return found[0]


def test_words_that_carry_the_sounds_over_are_alike_and_others_are_not() -> None:
    """Exit 1 writes down what it hears; exit 2 says English sentences that have nothing to do with these."""
    others = [ENGLISH[(i + 3) % len(ENGLISH)] for i in range(len(ENGLISH))]
    table, notes = echoes(pa.concat_tables([scored(HEARD), scored(others, after=2)]), SOURCES)
    assert notes == []
    heard, guessed = rate(table, WRONG), rate(table, WRONG, after=2)
    assert heard["closer"] > 0.75
    assert heard["low"] > 0.7
    assert heard["distance"] < heard["null"] - 0.05
    assert heard["beyond_low"] > 0
    assert guessed["low"] < 0.5 < guessed["high"]
    assert guessed["beyond_low"] < 0 < guessed["beyond_high"]


def test_right_words_are_not_wrong_ones_and_a_word_of_both_is_wrong() -> None:
    found = words_of("the dog sleeps in the kitchen", "the dog dog slips the kitchen")
    assert found == {WRONG: {"dog", "slips"}, RIGHT: {"the", "kitchen"}, MISSED: {"sleeps", "in"}}
    assert words_of("open it", "")[MISSED] == {"open", "it"}


def test_closer_is_counted_by_hand_from_all_distances() -> None:
    """With PanPhon's own distance, a pair of words at a time, against sentences of other groups alone."""
    from panphon.distance import Distance

    from voxstrata.phonology.ipa import transcribe

    table, _ = echoes(scored(HEARD), SOURCES)
    row = next(r for r in table.to_pylist() if r["word"] == "trabaha")
    said = [t.ipa.split() for t in transcribe(SPANISH, "es")]
    measure = Distance()
    least = []
    for words in said:
        candidates = [w for w in [*words, *(a + b for a, b in pairwise(words))] if len(measure.fm.ipa_segs(w)) >= 3]
        least.append(min(measure.feature_edit_distance_div_maxlen(row["ipa"], w) for w in candidates))
    others = np.array([d for i, d in enumerate(least) if i != 4])
    assert row["distance"] == pytest.approx(least[4], abs=1e-6)
    assert row["null"] == pytest.approx(others.mean(), abs=1e-6)
    assert row["closer"] == ((least[4] < others).sum() + (least[4] == others).sum() / 2) / len(others)


def test_a_loop_counts_once() -> None:
    looped = [HEARD[0] + " pog" * 200, *HEARD[1:]]
    table, _ = echoes(scored(looped), SOURCES)
    assert [r["word"] for r in table.to_pylist()].count("pog") == 1


def test_words_in_the_sources_own_script_are_read_by_its_voice() -> None:
    table, _ = echoes(scored(["собака slept", "nothing"], "ru", ENGLISH[:2]), SOURCES)
    row = next(r for r in table.to_pylist() if r["word"] == "собака")
    assert row["foreign_script"]
    assert row["distance"] == 0
    assert rate(table, WRONG, "ru")["foreign_script"] == 1


def test_what_cannot_be_compared_is_named() -> None:
    with pytest.raises(InputError, match="tlh: espeak-ng has no voice"):
        echoes(scored(HEARD, "tlh"), {f"tlh{i}": t for i, t in enumerate(SPANISH)})
    with pytest.raises(InputError, match="source_text"):
        echoes(scored(HEARD), {})
    some, notes = echoes(pa.concat_tables([scored(HEARD), scored(["a"], "fr", ["b"])]), SOURCES | {"fr0": "le chat"})
    assert set(some["language"].to_pylist()) == {"es"}
    assert "fr: a single group" in notes[0]
    assert some.schema == ECHO_SCHEMA


@pytest.mark.parametrize("languages", [("es",), ("es", "ru")])
def test_the_legend_of_wrong_words_stays_on_the_picture(languages: tuple[str, ...]) -> None:
    pytest.importorskip("matplotlib")
    shares = {"recordings": 5, "closer": 0.5, "low": 0.4, "high": 0.6}
    rows = [
        {"language": language, "after": k, "norm": norm, "kind": kind, **shares}
        for language in languages for norm in ("with", "without") for k in (0, 1) for kind in (WRONG, MISSED)
    ]  # fmt: skip
    about = {WrongWords.key: json.dumps({"checkpoint": "c", "corpus": "d"})}
    table = pa.Table.from_pylist(rows).replace_schema_metadata(about)
    figure = WrongWords(table, pa.table({})).figures()["wrong_words"]
    figure.draw_without_rendering()
    (legend,) = figure.legends
    box = legend.get_window_extent()
    assert box.x0 >= 0
    assert box.x1 <= figure.bbox.x1
