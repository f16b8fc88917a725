"""words: lists are read with care, pairs are what they are called, and planted sound and meaning are told apart."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import soundfile
from conftest import sound
from stores import Utterance, make_store
from test_cli import run

from voxstrata.base.errors import InputError, UsageError
from voxstrata.cli.words import words as words_command
from voxstrata.retrieval.kernels.float32 import Float32
from voxstrata.store import EmbeddingStore
from voxstrata.studies.words.measure import WordOptions, _scores, compare_words
from voxstrata.studies.words.pairs import RANDOM_WORDS, WORD_KINDS, PairSets, WordPairs, make_pairs
from voxstrata.studies.words.result import WordComparison
from voxstrata.studies.words.table import EVERY_LANGUAGE
from voxstrata.studies.words.word_list import EXAMPLE, Entry, read_word_list, voices_needed, with_ipa

panphon_distance = pytest.importorskip("panphon.distance")
pytest.importorskip("phonemizer")
pytest.importorskip("espeakng_loader")

CONSONANTS, VOWELS = "ptkbdgmnszfvlr", "aeiou"


def made_up(seed: int, meanings: int = 40, languages: tuple[str, ...] = ("xx", "yy")) -> list[Entry]:
    """Words of three syllables drawn at random; every tenth sounds like a word of the other language."""
    rng = np.random.default_rng(seed)

    def form() -> str:
        return "".join(str(rng.choice(list(letters))) for letters in (CONSONANTS, VOWELS) * 3)

    words = [Entry(form(), language, f"m{i:02d}") for i in range(meanings) for language in languages]
    for i in range(0, len(words) - 2 * len(languages), 10):
        words[i + 1 + len(languages)] = replace(words[i + 1 + len(languages)], form=words[i].form)
    return [replace(word, ipa=word.form) for word in words]


def spoken(
    path: Path, words: list[Entry], seed: int, meaning: float, sound: float, recordings: int = 1
) -> tuple[EmbeddingStore, dict[str, int]]:
    """A store of made-up states: two frames per letter, of noise, the letter's vector and the meaning's vector."""
    rng = np.random.default_rng(seed + 1000)
    letters = {c: rng.standard_normal(24) for c in CONSONANTS + VOWELS}
    meanings = {m: rng.standard_normal(24) for m in sorted({word.meaning for word in words})}
    utterances, owners = {}, {}
    for i, word in enumerate(words):
        for n in range(recordings):
            frames = np.repeat([sound * letters[c] for c in word.form], 2, axis=0) + meaning * meanings[word.meaning]
            frames = frames + rng.standard_normal(frames.shape)
            name = f"{i:03d}-{n}"
            utterances[name] = Utterance(frames.astype(np.float32), word.language, word.meaning)
            owners[name] = i
    return make_store(path, utterances), owners


def whole(table: object) -> dict[tuple[str, str], dict[str, float]]:
    rows = table.filter(pc.equal(table["source"], EVERY_LANGUAGE)).to_pylist()  # type: ignore[attr-defined]
    return {(row["similarity"], row["kind"]): row for row in rows}


@pytest.mark.long
@pytest.mark.parametrize(
    ("meaning", "sound", "synonyms", "homophones"),
    [(0.0, 0.0, False, False), (0.4, 0.0, True, False), (0.0, 0.8, False, True), (0.4, 0.8, True, True)],
)
def test_what_is_planted_is_found_and_nothing_else_over_20_seeds(
    tmp_path: Path, meaning: float, sound: float, synonyms: bool, homophones: bool
) -> None:
    found: dict[str, list[dict[str, float]]] = {kind: [] for kind in WORD_KINDS}
    for seed in range(20):
        words = made_up(seed)
        store, owners = spoken(tmp_path / f"{seed}.zarr", words, seed, meaning, sound)
        result = compare_words(store, words, owners, make_pairs(words), {}, bootstrap=100)
        for kind in WORD_KINDS:
            found[kind].append(whole(result.table)["seqsim_f1", kind])
    for kind, planted in zip(WORD_KINDS, (synonyms, homophones), strict=True):
        mean = np.mean([row["auc"] for row in found[kind]])
        detected = sum(row["low"] > 0.5 for row in found[kind])
        if planted:
            assert mean > 0.7
            assert detected >= 18
        else:
            assert abs(mean - 0.5) < 0.05
            assert sum(row["low"] <= 0.5 <= row["high"] for row in found[kind]) >= 16


def test_shuffled_meanings_fall_to_chance(tmp_path: Path) -> None:
    values = []
    for seed in range(5):
        words = made_up(seed)
        store, owners = spoken(tmp_path / f"{seed}.zarr", words, seed, meaning=0.4, sound=0.8)
        order = np.random.default_rng(seed).permutation(len(words) // 2)
        shuffled = [  # of one language only: a word keeps its sound and gets another's meaning
            replace(word, meaning=words[2 * int(order[i // 2])].meaning) if word.language == "yy" else word
            for i, word in enumerate(words)
        ]
        result = compare_words(store, shuffled, owners, make_pairs(shuffled), {}, bootstrap=0)
        values.append(whole(result.table)["seqsim_f1", "synonyms"]["auc"])
    assert abs(np.mean(values) - 0.5) < 0.1


def test_every_pair_of_three_languages_has_its_own_words_score(tmp_path: Path) -> None:
    """The third language's words, and words that pairs with one language lack, are found by number, not by place."""
    words = made_up(5, meanings=7, languages=("xx", "yy", "zz"))
    store, owners = spoken(tmp_path / "s.zarr", words, 5, meaning=1.0, sound=1.0, recordings=2)
    of = {language: [i for i, w in enumerate(words) if w.language == language] for language in ("xx", "yy", "zz")}
    wanted = {
        ("xx", "yy"): [(of["xx"][0], of["yy"][1])],
        ("xx", "zz"): [(of["xx"][4], of["zz"][2]), (of["xx"][6], of["zz"][0])],
        ("yy", "zz"): [(of["yy"][5], of["zz"][6]), (of["yy"][1], of["zz"][3])],
    }
    pairs = [
        WordPairs("random", both, *np.array(them, np.int64).T, np.zeros(len(them), np.float32))
        for both, them in wanted.items()
    ]
    recordings = [[store.index(name) for name, word in owners.items() if word == i] for i in range(len(words))]
    found = _scores(store, "final", recordings, pairs, Float32())["pooled_cosine"]
    for them, scores in zip(wanted.values(), found, strict=True):
        for (x, y), score in zip(them, scores, strict=True):
            means = [[store.frames(i, "final").mean(axis=0, dtype=float) for i in recordings[w]] for w in (x, y)]
            cosines = [a @ b / np.linalg.norm(a) / np.linalg.norm(b) for a in means[0] for b in means[1]]
            assert score == pytest.approx(np.mean(cosines), abs=1e-5)


def test_frames_are_read_in_blocks_and_give_the_scores_of_whole_languages(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = made_up(2)
    store, owners = spoken(tmp_path / "s.zarr", words, 2, meaning=0.5, sound=0.5, recordings=2)
    whole_languages = compare_words(store, words, owners, make_pairs(words), {}, bootstrap=0)
    kernel, read = Float32(), []
    kernel.block_frames = 60
    ragged = EmbeddingStore.ragged

    def counted(self: EmbeddingStore, output: str, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        rows, offsets = ragged(self, output, indices)
        read.append(len(rows))
        return rows, offsets

    monkeypatch.setattr(EmbeddingStore, "ragged", counted)
    blocks = compare_words(store, words, owners, make_pairs(words), {}, bootstrap=0, kernel=kernel)
    assert 12 <= max(read) <= 60 < store.length.sum() / 10
    for name in ("final seqsim_f1", "final pooled_cosine"):
        assert blocks.pairs[name].to_numpy() == pytest.approx(whole_languages.pairs[name].to_numpy(), abs=2e-6)


def test_pairs_are_what_they_are_called_by_panphons_distance() -> None:
    words = made_up(3, meanings=25, languages=("xx", "yy", "zz"))
    sets = make_pairs(words, near=0.02, far=0.6)
    panphon = panphon_distance.Distance()
    distance = {
        (i, j): panphon.feature_edit_distance_div_maxlen(words[i].ipa, words[j].ipa)
        for i, j in product(range(len(words)), repeat=2)
        if words[i].language < words[j].language
    }
    others = [d for (i, j), d in distance.items() if words[i].meaning != words[j].meaning]
    assert (sets.near, sets.far) == pytest.approx(tuple(np.quantile(others, [0.02, 0.6])), abs=1e-6)
    made: dict[str, set[tuple[int, int]]] = {kind: set() for kind in (*WORD_KINDS, RANDOM_WORDS)}
    for p in sets.pairs:
        made[p.kind] |= set(zip(p.x.tolist(), p.y.tolist(), strict=True))
        for i, j, d in zip(p.x.tolist(), p.y.tolist(), p.distance.tolist(), strict=True):
            assert (words[i].language, words[j].language) == p.languages
            assert d == pytest.approx(distance[i, j], abs=1e-6)
    tolerance = 1e-6
    same = {both for both in distance if words[both[0]].meaning == words[both[1]].meaning}
    assert made["synonyms"] == {both for both in same if distance[both] >= sets.far - tolerance}
    assert made["near_homophones"] == {b for b in set(distance) - same if distance[b] <= sets.near + tolerance}
    assert made[RANDOM_WORDS] == {both for both in set(distance) - same if distance[both] >= sets.far - tolerance}


def test_random_pairs_beyond_the_limit_are_drawn_the_same_every_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("voxstrata.studies.words.pairs.RANDOM_PAIRS", 50)
    words = made_up(0)

    def drawn(sets: PairSets) -> list[tuple[int, int]]:
        return [
            both for p in sets.pairs if p.kind == RANDOM_WORDS for both in zip(p.x.tolist(), p.y.tolist(), strict=True)
        ]

    first = drawn(make_pairs(words))
    assert len(set(first)) == 50
    assert drawn(make_pairs(words)) == first


def test_scores_are_means_over_recordings_and_the_controls_those_of_a_plain_loop(tmp_path: Path) -> None:
    words = made_up(1, meanings=20)
    store, owners = spoken(tmp_path / "s.zarr", words, 1, meaning=0.5, sound=0.5, recordings=2)
    result = compare_words(store, words, owners, make_pairs(words), {}, bootstrap=0)
    places = {(word.language, word.form, word.meaning): i for i, word in enumerate(words)}

    def unit(rows: np.ndarray) -> np.ndarray:
        return rows / np.linalg.norm(rows, axis=-1, keepdims=True)

    for row in result.pairs.slice(0, 60).to_pylist():
        ids = [
            [
                name
                for name, i in owners.items()
                if i == places[row[f"{s}_language"], row[f"{s}_form"], row[f"{s}_meaning"]]
            ]
            for s in "xy"
        ]
        cosines, f1 = [], []
        for a, b in product(*ids):
            x, y = (store.frames(name, "final").astype(np.float64) for name in (a, b))
            s = unit(x) @ unit(y).T
            p, r = s.max(axis=1).mean(), s.max(axis=0).mean()
            f1.append(2 * p * r / (p + r))
            cosines.append(unit(x.mean(axis=0)) @ unit(y.mean(axis=0)))
        assert row["final seqsim_f1"] == pytest.approx(np.mean(f1), abs=1e-5)
        assert row["final pooled_cosine"] == pytest.approx(np.mean(cosines), abs=1e-5)
        seconds = [0.02 * 2 * len(row[f"{s}_form"]) for s in "xy"]
        assert row["duration"] == pytest.approx(-abs(np.log(seconds[0] / seconds[1])))
    near = whole(result.table)["phonetic", "near_homophones"]
    assert near["auc"] == 1.0  # by their definition
    table = result.pairs
    positive = table.filter(pc.equal(table["kind"], "synonyms"))["final seqsim_f1"].to_numpy()
    reference = table.filter(pc.equal(table["kind"], RANDOM_WORDS))["final seqsim_f1"].to_numpy()
    expected = np.mean([(p > reference).mean() + 0.5 * (p == reference).mean() for p in positive])
    assert whole(result.table)["seqsim_f1", "synonyms"]["auc"] == pytest.approx(expected)


class TestLists:
    @pytest.mark.parametrize(
        ("rows", "message"),
        [
            ("a\txx\t", r"line 2: meaning is empty; fill it"),
            ("\txx\tm", r"line 2: form is empty"),
            ("a\txx\tm\nb\tyy\tm\na\txx\tm", r"line 4: 'a' \(xx, 'm'\) stands in line 2 already"),
            ("a\txx\tm\nb\txx\tn", r"2 words, 2 meanings, languages xx: nothing to compare"),
            ("a\txx\tm\nb\tyy\tn", r"nothing to compare; at least two meanings"),
            ("a\txx\tm\nb\tyy\tm", r"2 words, 1 meaning, languages xx, yy: nothing to compare"),
            ("", r"0 words, 0 meanings, languages none: nothing to compare"),
        ],
    )
    def test_a_bad_list_is_refused_naming_line_and_fix(self, tmp_path: Path, rows: str, message: str) -> None:
        path = tmp_path / "l.tsv"
        path.write_text(f"form\tlanguage\tmeaning\n{rows}\n", encoding="utf-8")
        with pytest.raises(InputError, match=message):
            read_word_list(path)

    def test_a_missing_column_file_or_recording_is_named(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match=r"l\.csv: cannot be read: No such file"):
            read_word_list(tmp_path / "l.csv")
        (tmp_path / "l.csv").write_text("form,language,gloss\na,xx,m\n", encoding="utf-8")
        with pytest.raises(InputError, match=r"no column 'meaning'; found: 'form', 'language', 'gloss'"):
            read_word_list(tmp_path / "l.csv")
        (tmp_path / "l.csv").write_text("form,language,meaning,path\na,xx,m,gone.wav\n", encoding="utf-8")
        with pytest.raises(InputError, match=r"line 2: no recording 'gone\.wav'"):
            read_word_list(tmp_path / "l.csv")

    def test_rows_of_one_word_are_its_recordings_and_some_without_are_refused(self, tmp_path: Path) -> None:
        for name in ("1.wav", "2.wav", "3.wav", "4.wav"):
            (tmp_path / name).touch()
        rows = ["form,language,meaning,ipa,path", "a,xx,m,a,1.wav", "b,yy,m,,2.wav", "a,xx,m,a,3.wav", "c,yy,n,,4.wav"]
        path = tmp_path / "l.csv"
        path.write_text("\n".join(rows), encoding="utf-8")
        a, b, c = read_word_list(path)
        assert (a.ipa, a.paths) == ("a", (tmp_path / "1.wav", tmp_path / "3.wav"))
        assert (b.ipa, c.meaning) == (None, "n")
        path.write_text("\n".join([*rows, "d,xx,n,,"]), encoding="utf-8")
        with pytest.raises(InputError, match=r"1 of 4 words have no recording, e\.g\. d \(xx, “n”\)"):
            read_word_list(path)
        path.write_text("\n".join([*rows[:3], "a,xx,m,o,3.wav"]), encoding="utf-8")
        with pytest.raises(InputError, match=r"line 4: ipa 'o' of 'a' is 'a' above; give one"):
            read_word_list(path)

    def test_the_list_that_ships_is_complete_and_each_word_stands_once(self) -> None:
        words = read_word_list(EXAMPLE)
        meanings = {word.meaning for word in words}
        for language in ("en", "es", "de", "ru"):
            assert {word.meaning for word in words if word.language == language} == meanings
            forms = [word.form for word in words if word.language == language]
            assert len(forms) == len(set(forms)) == len(meanings)
            assert all(("Ѐ" <= c.lower() <= "ӿ") == (language == "ru") for form in forms for c in form)

    def test_a_language_without_a_voice_needs_ipa_and_recordings(self) -> None:
        word = Entry("a", "ceb", "m")
        with pytest.raises(InputError, match=r"speaks no 'ceb'; give the words of these languages IPA and recordings"):
            voices_needed([word, Entry("b", "en", "m")])
        assert voices_needed([replace(word, ipa="a", paths=(Path("a.wav"),))]) == {}

    def test_ipa_is_the_users_or_espeak_ngs_and_silence_is_refused(self) -> None:
        words = [Entry("Gift", "de", "poison"), Entry("gift", "en", "gift", ipa="ɡɪft")]
        assert [word.ipa for word in with_ipa(words, {"de": "de"})] == ["ɡɪft", "ɡɪft"]
        with pytest.raises(InputError, match=r"1 word has no sound that PanPhon knows, e\.g\. \? \(de, “q”\), IPA ''"):
            with_ipa([*words, Entry("?", "de", "q")], {"de": "de"})


def test_the_command_has_the_defaults_of_the_function() -> None:
    defaults = {p.name: p.default for p in words_command.params}
    assert (defaults["near"], defaults["far"]) == (WordOptions.near, WordOptions.far)


class TestNoPairs:
    def test_quantiles_out_of_order_are_wrong_usage(self) -> None:
        for near, far in ((0.5, 0.5), (0.0, 0.5), (0.1, 1.0)):
            with pytest.raises(
                UsageError, match=rf"near {near:g} and far {far:g}: give quantiles with 0 < near < far < 1"
            ):
                make_pairs(made_up(0), near, far)

    def test_words_that_all_sound_alike_are_refused(self) -> None:
        same = [replace(word, ipa="pa") for word in made_up(0)]
        with pytest.raises(InputError, match=r"are both 0\.000: the list is too small"):
            make_pairs(same)
        cognates = [replace(word, ipa=f"{'pbtd'[i // 2]}{'aeio'[i // 2]}") for i, word in enumerate(made_up(0, 4))]
        with pytest.raises(InputError, match="all words of one meaning sound alike"):
            make_pairs(cognates, 0.2, 0.8)

    def test_unreadable_recordings_drop_out_until_nothing_is_left(self, tmp_path: Path) -> None:
        words = made_up(0)
        store, owners = spoken(tmp_path / "s.zarr", words, 0, 0.3, 0.3)
        status = store.status.copy()
        sets = make_pairs(words)
        synonyms = {i for p in sets.pairs if p.kind == "synonyms" for i in p.x.tolist()}
        gone = min(synonyms)
        status[store.index(next(name for name, i in owners.items() if i == gone))] = 2
        store.__dict__["status"] = status
        result = compare_words(store, words, owners, sets, {}, bootstrap=0)
        forms = set(result.pairs.filter(pc.equal(result.pairs["x_language"], "xx"))["x_form"].to_pylist())
        assert words[gone].form not in forms
        for i in synonyms:
            status[store.index(next(name for name, n in owners.items() if n == i))] = 2
        with pytest.raises(InputError, match=r"no synonyms pairs are left: \d+ of 80 words have no recording"):
            compare_words(store, words, owners, sets, {}, bootstrap=0)


def short_list(folder: Path, languages: tuple[str, ...] = ("en", "de")) -> Path:
    words = [word for word in read_word_list(EXAMPLE) if word.language in languages][:60]
    path = folder / "list.tsv"
    lines = ["form\tlanguage\tmeaning", *(f"{w.form}\t{w.language}\t{w.meaning}" for w in words)]
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def test_a_list_becomes_speech_tables_and_a_picture(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    args = ("words", short_list(tmp_path), tiny_model, "-o", tmp_path / "w", "--outputs", "layer_00,final")
    assert run(*args, "--bootstrap", "100", "--quiet") == 0
    out, err = capsys.readouterr()
    assert "AUC against random pairs, chance 0.5" in out
    assert "60 words (en, de), spoken by espeak-ng (m3)" in out
    assert err == ""
    table = pq.read_table(tmp_path / "w" / "words.parquet")
    assert set(table["output"].to_pylist()) == {"layer_00", "final", None}
    assert set(table["chance"].to_pylist()) == {0.5}
    settings = json.loads(table.schema.metadata[b"voxstrata_words"])
    assert settings["spoken"]["voices"] == {"en": "en-us", "de": "de"}
    assert settings["bootstrap"] == 100
    shown = next(
        r
        for r in table.to_pylist()
        if (r["output"], r["similarity"], r["kind"], r["source"]) == ("final", "seqsim_f1", "synonyms", EVERY_LANGUAGE)
    )
    assert f"{shown['auc']:.3f} [{shown['low']:.3f}, {shown['high']:.3f}]" in out
    assert shown["low"] <= 0.5 <= shown["high"]  # random weights know no meaning
    assert (tmp_path / "w" / "words.png").read_bytes().startswith(b"\x89PNG")
    assert "Near-homophones, the closest in sound" in (tmp_path / "w" / "words.md").read_text(encoding="utf-8")
    pairs = pq.read_table(tmp_path / "w" / "word_pairs.parquet")
    assert {"final seqsim_f1", "layer_00 pooled_cosine", "phonetic_distance"} <= set(pairs.column_names)
    assert len(list((tmp_path / "w" / "de").glob("*.flac"))) == 30
    result = WordComparison.load(tmp_path / "w")
    assert result.table.equals(table, check_metadata=True)
    assert result.pairs.equals(pairs, check_metadata=True)
    assert (result.settings, result.failures) == (settings, {})
    assert str(result) in out
    assert [path.name for path in result.save(tmp_path / "again")] == [
        "words.parquet", "word_pairs.parquet", "words.md", "words.png", "words.pdf"
    ]  # fmt: skip
    again = WordComparison.load(tmp_path / "again")
    assert again.to_markdown() == (tmp_path / "w" / "words.md").read_text(encoding="utf-8") == result.to_markdown()
    assert again._repr_html_() == result._repr_html_()

    marker = next((tmp_path / "w" / "words.zarr" / "units").iterdir())
    written = marker.stat().st_mtime_ns
    assert run(*args, "--bootstrap", "0", "--json", "--overwrite") == 0  # resumes: nothing is encoded again
    again = json.loads(capsys.readouterr().out)
    assert [r["auc"] for r in again["rows"]] == table["auc"].to_pylist()
    assert again["rows"][0]["low"] is None
    assert marker.stat().st_mtime_ns == written
    args = (*args[:-1], "layer_01", "--bootstrap", "0")
    assert run(*args) == 3
    assert "holds an earlier result (words.parquet)" in capsys.readouterr().err
    assert run(*args, "--overwrite") == 0  # with other settings the store is another, too
    assert WordComparison.load(tmp_path / "w").store["spec"]["outputs"] == ["layer_01"]


def test_recordings_are_taken_where_the_list_names_them(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = ["form\tlanguage\tmeaning\tpath"]
    for n, word in enumerate(w for w in read_word_list(EXAMPLE) if w.language in ("en", "es")):
        if n == 40:
            break
        soundfile.write(tmp_path / f"{n}.wav", sound(0.3 + 0.01 * n, n), 16_000)
        lines.append(f"{word.form}\t{word.language}\t{word.meaning}\t{n}.wav")
    (tmp_path / "0.wav").write_bytes(b"no audio")
    (tmp_path / "l.tsv").write_text("\n".join(lines), encoding="utf-8")
    args = ("words", tmp_path / "l.tsv", tiny_model, "-o", tmp_path / "w", "--outputs", "final", "--bootstrap", "0")
    assert run(*args) == 4
    out, err = capsys.readouterr()
    assert "40 words (en, es), recorded" in out
    assert "failed recordings: 1\n  00000-en-water: 0.wav" in err
    assert not list((tmp_path / "w").glob("*/*.flac"))


def test_bad_input_is_refused_before_anything_is_spoken(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = short_list(tmp_path)
    target = ("-o", tmp_path / "w")
    assert run("words", path, tiny_model, *target, "--outputs", "layer_77") == 2
    assert run("words", path, tiny_model, *target, "--near", "0.9") == 2
    assert run("words", tmp_path / "gone.tsv", tiny_model, *target) == 3
    assert run("words", path, tmp_path / "nomodel", *target) == 3
    path.write_text(path.read_text(encoding="utf-8").replace("\tde\t", "\tceb\t"), encoding="utf-8")
    assert run("words", path, tiny_model, *target) == 3
    assert "espeak-ng speaks no 'ceb'" in capsys.readouterr().err
    assert not (tmp_path / "w").exists()
