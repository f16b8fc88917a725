"""Phonetics: distances of all pairs, where translations rank, and what the command says of unusable corpora."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from test_cli import run

from voxstrata import InputError, UsageError, read_corpus
from voxstrata.studies.phonetics.measure import measure_phonetics
from voxstrata.studies.phonetics.pairs import NEIGHBOURS, quantiles
from voxstrata.studies.phonetics.result import Phonetics

panphon_distance = pytest.importorskip("panphon.distance")
pytest.importorskip("phonemizer")

SENTENCES = {
    "hotel": ("The hotel is closed.", "El hotel está cerrado."),
    "maria": ("Maria is sleeping.", "María duerme."),
    "rain": ("It rains today.", "Hoy llueve."),
    "banana": ("A banana, please.", "¡Una banana, por favor!"),
}


def manifest(folder: Path, rows: list[dict[str, str]], columns: str = "id path language group text") -> Path:
    names = columns.split()
    lines = ["\t".join(names), *("\t".join(row.get(name, "") for name in names) for row in rows)]
    path = folder / "m.tsv"
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def sentences(**changes: dict[str, str]) -> list[dict[str, str]]:
    """A row per sentence and language; `changes` by id."""
    rows = []
    for group, texts in SENTENCES.items():
        for language, text in zip(("en", "es"), texts, strict=True):
            name = f"{language}_{group}"
            row = {"id": name, "path": f"{name}.wav", "language": language, "group": group, "text": text}
            rows.append({**row, **changes.get(name, {})})
    return rows


def test_tables_hold_panphons_distances_and_the_ranks_of_a_plain_loop(tmp_path: Path) -> None:
    report = measure_phonetics(read_corpus(manifest(tmp_path, sentences())), tmp_path / "out")
    assert report.left_out == {}
    ipa = {row["id"]: row for row in pq.read_table(tmp_path / "out" / "ipa.parquet").to_pylist()}
    assert ipa["es_rain"]["ipa"].split()[0] == "oɪ"  # the h is silent
    distances = pq.read_table(tmp_path / "out" / "distances.parquet").to_pylist()
    assert len(distances) == 16
    panphon = panphon_distance.Distance()
    by_pair = {}
    for row in distances:
        source, target = ipa[row["query"]], ipa[row["candidate"]]
        expected = panphon.feature_edit_distance_div_maxlen(source["ipa"], target["ipa"])
        assert row["distance"] == pytest.approx(expected, abs=1e-6)
        assert row["translation"] == (source["group"] == target["group"])
        by_pair[row["query"], row["candidate"]] = by_pair[row["candidate"], row["query"]] = row["distance"]
    pairs = pq.read_table(tmp_path / "out" / "phonetics.parquet")
    assert len(pairs) == 8
    for row in pairs.to_pylist():
        others = [by_pair[row["query"], f"{row['target']}_{g}"] for g in SENTENCES if g != row["group"]]
        assert row["distance"] == by_pair[row["query"], row["candidate"]]
        assert row["rank"] == 1 + sum(d <= row["distance"] for d in others)
        assert row["quantile"] == pytest.approx(sum(d < row["distance"] for d in others) / 3)
    (banana,) = [row for row in pairs.to_pylist() if row["query"] == "en_banana"]
    assert banana["query_word"] == ipa["en_banana"]["ipa"].split()[1]  # the word that both sentences share
    assert banana["candidate_word"] == ipa["es_banana"]["ipa"].split()[1]
    settings = json.loads(pairs.schema.metadata[b"voxstrata_phonetics"])
    assert settings["normalize"] == "longer"
    assert settings["voices"] == {"en": "en-us", "es": "es"}
    assert settings["tools"]["espeak-ng"].startswith("1.")


def test_given_ipa_replaces_espeak_and_its_words_and_segments_count(tmp_path: Path) -> None:
    given = {f"{language}_{g}": "pata kiku" for language in ("en", "es") for g in ("hotel", "rain")}
    given |= {"en_hotel": "pata", "es_hotel": "bata"}
    report = measure_phonetics(read_corpus(manifest(tmp_path, sentences())), tmp_path / "out", given=given)
    ipa = {row["id"]: row for row in pq.read_table(tmp_path / "out" / "ipa.parquet").to_pylist()}
    assert ipa["en_hotel"]["voice"] == "given"
    assert ipa["en_hotel"]["segments"] == 4
    assert ipa["en_banana"]["voice"] == "en-us"
    (row,) = [
        row for row in pq.read_table(tmp_path / "out" / "phonetics.parquet").to_pylist() if row["query"] == "en_hotel"
    ]
    assert row["distance"] == pytest.approx(1 / 24 / 4)
    assert report.settings["ipa_given"] == 4


def test_quantiles_count_ties_half_and_can_be_among_those_of_like_length() -> None:
    rng = np.random.default_rng(3)
    distances = rng.integers(0, 6, (5, 40)).astype(np.float64)
    same = np.zeros((5, 40), bool)
    same[np.arange(5), np.arange(5)] = True
    lengths = rng.integers(5, 60, 40)
    plain, like = quantiles(distances, same), quantiles(distances, same, lengths)
    for i in range(5):
        others = [j for j in range(40) if j != i]
        near = sorted(others, key=lambda j: (abs(np.log(lengths[j] / lengths[i])), j))[:NEIGHBOURS]
        for found, among in ((plain, others), (like, near)):
            share = np.mean([np.sign(distances[i, i] - distances[i, j]) / 2 + 0.5 for j in among])
            assert found[i, i] == pytest.approx(share)
    assert np.isnan(plain[~same]).all()


def test_a_saved_result_comes_back_and_its_table_holds_the_figures_of_plain_loops(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = manifest(tmp_path, sentences(en_rain={"text": "..."}, es_hotel={"text": ""}))
    assert run("phonetics", path, "-o", tmp_path / "out") == 4
    printed = capsys.readouterr().out
    result = Phonetics.load(tmp_path / "out")
    found = result.finding()
    assert found is not None  # the two others of a sentence are all taken for the 20 nearest in length
    assert "of the few other sentences, whatever their length, " in found.answer
    assert "length is not held alike there" in result.tables()[0].note
    assert sorted(result.left_out) == ["en_rain", "es_hotel"]
    assert result.settings["left_out"] == 2
    distances = pq.read_table(result.distances).to_pylist()
    others = np.mean([row["distance"] for row in distances if not row["translation"]])
    rows = result.table.to_pylist()
    for shown in result.tables()[0].rows:
        mine = [row for row in rows if f"{row['source']} → {row['target']}" == shown[0]]
        assert shown[1:3] == [len(mine), "3"]
        expected = [
            np.median([row["quantile"] for row in mine]), np.median([row["quantile_like_length"] for row in mine]),
            np.mean([row["rank"] == 1 for row in mine]), 1 / 3,
            np.median([row["word_quantile"] for row in mine]), np.mean([row["word_rank"] == 1 for row in mine]),
        ]  # fmt: skip
        expected = [np.mean([row["distance"] for row in mine]), others, *(100 * share for share in expected)]
        assert shown[3:] == pytest.approx(expected)
        assert re.search(rf"^{shown[0]} +{len(mine)} +3 +{shown[3]:.4f}", printed, re.M)
    result.save(tmp_path / "copy")
    for name in ("phonetics.parquet", "ipa.parquet", "distances.parquet", "phonetics.md"):
        assert (tmp_path / "copy" / name).read_bytes() == (tmp_path / "out" / name).read_bytes(), name
    assert run("phonetics", path, "-o", tmp_path) == 3
    assert "holds something else" in capsys.readouterr().err


def test_some_missing_texts_cost_those_utterances_alone_and_exit_with_4(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = manifest(tmp_path, sentences(en_rain={"text": ""}, es_hotel={"text": "..."}))
    assert run("phonetics", path, "-o", tmp_path / "out") == 4
    out, err = capsys.readouterr()
    assert "en_rain: no text and no IPA" in err
    assert "es_hotel: no segment" in err
    assert "6 utterances" in out
    assert "chance" in out


UNUSABLE: list[tuple[list[dict[str, Any]], str]] = [
    ([{**row, "text": ""} for row in sentences()], "no utterance has text"),
    ([{**row, "language": row["language"].replace("es", "ceb")} for row in sentences()], "espeak-ng speaks no 'ceb'"),
    ([{**row, "group": row["id"]} for row in sentences()], "no group occurs in two languages"),
    ([row for row in sentences() if row["language"] == "en"], "at least 2 languages"),
    ([row for row in sentences() if row["group"] == "rain"], "only one group"),
    ([{**row, "text": "Hola"} if row["language"] == "es" else row for row in sentences()], "all sentences of es (4)"),
]


@pytest.mark.parametrize(("rows", "message"), UNUSABLE)
def test_unusable_corpora_exit_with_3_and_say_why(
    rows: list[dict[str, str]], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("phonetics", manifest(tmp_path, rows), "-o", tmp_path / "out") == 3
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_ipa_for_other_ids_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="ids must be the corpus's"):
        measure_phonetics(read_corpus(manifest(tmp_path, sentences())), tmp_path / "out", given={"x": "pa"})


def test_equal_sentences_in_two_groups_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = manifest(tmp_path, sentences(en_rain={"text": "Maria is sleeping."}))
    assert run("phonetics", path, "-o", tmp_path / "out") == 0
    assert "en: 2 groups share" in capsys.readouterr().out


def test_a_direction_without_non_translations_has_no_figures_and_is_named(tmp_path: Path) -> None:
    rows = [*sentences(), {"id": "de_rain", "path": "de.wav", "language": "de", "group": "rain", "text": "Es regnet."}]
    report = measure_phonetics(read_corpus(manifest(tmp_path, rows)), tmp_path / "out")
    assert [(d.source, d.target, d.pairs) for d in report.directions] == [
        ("de", "en", 1), ("de", "es", 1), ("en", "es", 4), ("es", "en", 4),
    ]  # fmt: skip
    assert any(note.startswith("en → de, es → de: no figure") for note in report.notes)
    pairs = pq.read_table(tmp_path / "out" / "phonetics.parquet").to_pylist()
    assert all(row["non_translations"] > 0 for row in pairs)
    assert "de" not in {row["target"] for row in pairs}


def test_a_sentence_that_another_voice_had_to_read_is_named_with_both_voices_and_the_mend(tmp_path: Path) -> None:
    rows = sentences(es_hotel={"text": "Compra en Яндекс, por favor."})
    report = measure_phonetics(read_corpus(manifest(tmp_path, rows)), tmp_path / "out")
    (note,) = [note for note in report.notes if "voice" in note]
    assert note.startswith("es: espeak-ng read parts of 1 sentence with the voice en in place of es, e.g. of 'Compra")
    assert note.endswith("spell such words in the letters of es, or give the IPA of these sentences (--ipa)")
    rows = pq.read_table(tmp_path / "out" / "ipa.parquet").to_pylist()
    assert [row["id"] for row in rows if row["switches"]] == ["es_hotel"]


def test_wrong_voice_option_is_2(tmp_path: Path) -> None:
    path = manifest(tmp_path, sentences())
    assert run("phonetics", path, "-o", tmp_path / "out", "--voice", "en") == 2
    assert run("phonetics", path, "-o", tmp_path / "out", "--voice", "en=klingon") == 2
    assert run("phonetics", path, "-o", tmp_path / "out", "--languages", "en,de") == 2
    table = pa.table({"id": ["en_rain"], "ipa": ["ɹeɪnz"]})
    pq.write_table(table, tmp_path / "ipa.parquet")
    options = ("--voice", "en=en-gb", "--ipa", tmp_path / "ipa.parquet", "--json")
    assert run("phonetics", path, "-o", tmp_path / "out", *options) == 0


def test_a_voice_for_a_language_whose_ipa_is_all_given_is_refused_as_what_it_is(tmp_path: Path) -> None:
    given = {f"en_{g}": ipa for g, ipa in zip(SENTENCES, ("pata", "kiku", "somi", "lena"), strict=True)}
    corpus = read_corpus(manifest(tmp_path, sentences()))
    with pytest.raises(UsageError, match=r"given for 'en'.*all its IPA is given \(--ipa\).*read in: es"):
        measure_phonetics(corpus, tmp_path / "out", given=given, voices={"en": "en-gb"})
    assert not (tmp_path / "out").exists()


@pytest.mark.real
def test_the_prompts_are_related_most_where_languages_are(shared: Path, tmp_path: Path) -> None:
    report = measure_phonetics(read_corpus(shared / "prompts" / "prompts.tsv"), tmp_path / "out")
    closest = {(d.source, d.target): d.quantile for d in report.directions}
    assert len(closest) == 12
    assert {min(closest, key=lambda pair: closest[pair])} <= {("ru", "uk"), ("uk", "ru")}
