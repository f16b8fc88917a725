"""Phonetic distances are PanPhon's own, for any strings, in any normalization, and of words as of sentences."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from voxstrata import InputError, UsageError
from voxstrata.phonology.closest_words import SHORTEST_WORD, Words, closest_words
from voxstrata.phonology.feature_distance import Phones, feature_distances

panphon_distance = pytest.importorskip("panphon.distance")

SEGMENTS = "a e i o u aː ã p b t d k ɡ tʃ dʒ ts m n ɲ ŋ s z ʃ ʒ f v x h l r ɾ ɹ j w ʲ ə ɪ ʊ ɛ ɔ y ø ɨ q ʔ ˥ ǃ 7"
IPA = st.lists(st.lists(st.sampled_from(SEGMENTS.split()), max_size=5).map("".join), max_size=3).map(" ".join)


@pytest.fixture(scope="module")
def panphon() -> panphon_distance.Distance:
    return panphon_distance.Distance()


@settings(max_examples=25, deadline=None)
@given(x=st.lists(IPA, min_size=1, max_size=2), y=st.lists(IPA, min_size=1, max_size=2))
def test_random_strings_have_panphons_distance(panphon: panphon_distance.Distance, x: list[str], y: list[str]) -> None:
    plain = feature_distances(Phones.from_ipa(x), Phones.from_ipa(y), "none")
    longer = feature_distances(Phones.from_ipa(x), Phones.from_ipa(y))
    for (i, a), (j, b) in itertools.product(enumerate(x), enumerate(y)):
        assert plain[i, j] == pytest.approx(panphon.feature_edit_distance(a, b), abs=1e-4)
        assert longer[i, j] == pytest.approx(panphon.feature_edit_distance_div_maxlen(a, b), abs=1e-6)


REAL = (
    "ðæt eɪdʒənt ɪz ɔːlɹɛdi lɔɡd ɔn",
    "ese axɛnte ʝa a siðo aʊtentikaðo",
    "dɑnnyj ʌpʲirɑtʌr uʒy zʌrʲiɡʲistrʲirʌvʌn",
    "ni˧˥χɑʊ˨˩",
    "",
)


def test_sentences_have_panphons_distance(panphon: panphon_distance.Distance) -> None:
    phones = Phones.from_ipa(REAL)
    found = feature_distances(phones, phones)
    expected = [[panphon.feature_edit_distance_div_maxlen(a, b) for b in REAL] for a in REAL]
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert (np.diag(found) == 0).all()


def test_the_mean_normalization_divides_by_the_mean_of_both_lengths() -> None:
    x, y = Phones.from_ipa(["pata"]), Phones.from_ipa(["pa"])  # two segments inserted
    assert x.lengths.tolist() == [4]
    plain = feature_distances(x, y, "none")
    assert feature_distances(x, y, "mean") == pytest.approx(plain / 3)
    assert feature_distances(x, y, "longer") == pytest.approx(plain / 4)


def test_one_feature_of_24_costs_one_24th() -> None:
    found = feature_distances(Phones.from_ipa(["pa"]), Phones.from_ipa(["ba", "pa"]), "none")  # voice alone differs
    assert found.tolist() == [[pytest.approx(1 / 24), 0.0]]


def test_unknown_characters_are_passed_over_and_told() -> None:
    phones = Phones.from_ipa(["pa7ta", "pata"])
    assert phones.unknown == ("7", "")
    assert feature_distances(phones, phones).max() == 0


def test_wrong_normalization_and_no_strings() -> None:
    phones = Phones.from_ipa(["pa"])
    with pytest.raises(UsageError, match="longer, mean, none"):
        feature_distances(phones, phones, "max")
    with pytest.raises(InputError, match="empty"):
        Phones.from_ipa([])


@settings(max_examples=20, deadline=None)
@given(x=st.lists(IPA, min_size=1, max_size=2), y=st.lists(IPA, min_size=1, max_size=2))
def test_the_closest_words_are_those_of_a_plain_loop(
    panphon: panphon_distance.Distance, x: list[str], y: list[str]
) -> None:
    found = closest_words(Words.of(x), Words.of(y))
    x_forms, y_forms = Words.of(x).forms, Words.of(y).forms

    def long(text: str) -> list[str]:
        return [word for word in text.split() if len(panphon.fm.ipa_segs(word)) >= SHORTEST_WORD]

    for (i, a), (j, b) in itertools.product(enumerate(x), enumerate(y)):
        pairs = {(v, w): panphon.feature_edit_distance_div_maxlen(v, w) for v, w in itertools.product(long(a), long(b))}
        if not pairs:
            assert np.isnan(found.distance[i, j])
            assert (found.x_words[i, j], found.y_words[i, j]) == (-1, -1)
            continue
        assert found.distance[i, j] == pytest.approx(min(pairs.values()), abs=1e-6)
        named = (x_forms[found.x_words[i, j]], y_forms[found.y_words[i, j]])
        assert pairs[named] == pytest.approx(min(pairs.values()), abs=1e-6)
