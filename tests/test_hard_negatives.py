"""Hard negatives: pools chosen by sound, length or shared words, never by states, beside the mean over random draws."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from stores import MadeUpStore, ends
from test_cli import run

from voxstrata.base.errors import InputError, UsageError
from voxstrata.corpus import Corpus
from voxstrata.corpus.table import CORPUS_SCHEMA
from voxstrata.retrieval.languages import find_sides
from voxstrata.studies.phonetics.measure import measure_phonetics
from voxstrata.studies.retrieve import Retrieval, RetrievalOptions, retrieve
from voxstrata.studies.retrieve.negatives import HardNegatives, SmallPools, text_words

GROUPS = 24
_Row = tuple[str, str, str, str | None, float]  # id, language, group, text, seconds


def made_up(rows: list[_Row], frames: dict[str, list[np.ndarray]]) -> MadeUpStore:
    names = ("id", "language", "group", "text", "seconds")
    table = pa.table(dict(zip(names, map(list, zip(*rows, strict=True)), strict=True)))
    return MadeUpStore(
        table, {output: [states[None].astype(np.float32) for states in f] for output, f in frames.items()}
    )


def planted() -> MadeUpStore:
    """Sentence g takes g + 4 seconds in either language. "meaning" tells sentences apart, "length" knows nothing but
    how long they are, with an error that takes it for that of a neighbour.

    Sentences 3 n, 3 n + 1, 3 n + 2 share two rare words in Spanish; "topic" knows which three they are and no more.
    """
    rng, rows = np.random.default_rng(4), []
    frames: dict[str, list[np.ndarray]] = {"layer_00": [], "layer_01": [], "final": []}
    meaning, topic = rng.standard_normal((GROUPS, 64)), rng.standard_normal((GROUPS // 3, 64))
    for language in ("en", "es"):
        for g in range(GROUPS):
            text = f"el tema{g // 3} es raro{g // 3} aqui{g}" if language == "es" else f"sentence {g}"
            rows.append((f"{language}-{g:02d}", language, f"g{g}", text, float(g + 4)))
            angle = 0.11 * (g + 0.9 * rng.standard_normal())
            frames["layer_00"].append(np.array([math.cos(angle), math.sin(angle)] + 62 * [0.0]))
            frames["layer_01"].append(topic[g // 3] + 0.3 * rng.standard_normal(64))
            frames["final"].append(meaning[g] + 0.1 * rng.standard_normal(64))
    return made_up(rows, frames)


def figures(found: Retrieval, metric: str, source: str = "mean") -> dict[str, dict[str, Any]]:
    return {
        row["output"]: row
        for row in found.table.to_pylist()
        if (row["metric"], ends(row)[0], row["score"], row["similarity"]) == (metric, source, "raw", "pooled_cosine")
    }


def options(negatives: str, **more: Any) -> RetrievalOptions:
    return RetrievalOptions(bootstrap=50, permutations=0, negatives=negatives, **more)


def test_a_small_pool_is_the_mean_over_all_that_may_be_drawn() -> None:
    """Every choice is written out: the nearest, and of those that tie for the last places any."""
    rng = np.random.default_rng(0)
    n, size = 3, 7
    positives = np.eye(5, size, dtype=bool)
    positives[0, 5] = True  # query 0 has two translations
    distances = np.where(positives, np.nan, rng.integers(0, 3, (5, size)).astype(float))
    distances[1, 4] = np.nan  # of unknown distance: never a negative, not at random either
    scores = rng.integers(0, 6, (5, size)).astype(float)  # with ties, which count against the query
    found = SmallPools.of("sound", distances, positives, n).evaluate(scores, positives, np.array(list("abcde")), None)
    hard, random = [], []
    for q in range(5):
        others = [j for j in range(size) if not np.isnan(distances[q, j])]
        best = scores[q, positives[q]].max()
        sets = list(itertools.combinations(others, n))
        total = [sum(distances[q, j] for j in s) for s in sets]
        hits = [all(scores[q, j] < best for j in s) for s in sets]
        random.append(np.mean(hits))
        hard.append(np.mean([hit for hit, t in zip(hits, total, strict=True) if t == min(total)]))
    assert found.values == pytest.approx([np.mean(hard), np.mean(random), np.mean(hard) - np.mean(random)])
    assert found.chance == pytest.approx([(2 / 5 + 4 * 1 / 4) / 5] * 2 + [0])
    assert (found.candidates, found.candidates_max, found.queries) == (4, 5, 5)
    assert 0 < np.mean(hard) < 1  # the case tells something


def test_an_encoder_of_length_alone_is_unmasked_by_negatives_of_like_length() -> None:
    found = retrieve(planted(), options=options("length", pool_size=5))
    hard, random, minus = (figures(found, f"length_{name}") for name in ("recall@1", "random_recall@1", "minus_random"))
    assert random["layer_00"]["value"] > 0.7
    assert hard["layer_00"]["value"] < 0.5
    assert minus["layer_00"]["high"] < -0.2
    assert hard["final"]["value"] == random["final"]["value"] == 1
    assert (minus["final"]["value"], minus["final"]["chance"]) == (0, 0)
    for row in (hard["layer_00"], random["layer_00"]):
        assert (row["chance"], row["candidates"], row["candidates_max"]) == (pytest.approx(1 / 5), 5, 5)
        assert row["queries"] == 2 * GROUPS
    assert minus["layer_00"]["value"] == pytest.approx(hard["layer_00"]["value"] - random["layer_00"]["value"])


def test_an_encoder_of_the_topic_alone_is_unmasked_by_negatives_that_share_words() -> None:
    found = retrieve(planted(), "layer_01,final", options=options("words,length", pool_size=3))
    hard, random = (figures(found, f"words_{name}", "en") for name in ("recall@1", "random_recall@1"))
    assert hard["layer_01"]["value"] < 0.6 < 0.85 < random["layer_01"]["value"]  # one in three of its topic is right
    assert hard["final"]["value"] == 1
    assert set(figures(found, "length_recall@1")) == {"layer_01", "final"}


def test_shared_words_weigh_what_they_tell_and_the_same_text_is_no_negative() -> None:
    texts = {"t": "Das rote Haus!", "a": "das rote Auto", "b": "das blaue Haus", "c": "das HAUS, rote", "d": None,
             "e": "das Das"}  # fmt: skip
    rows: list[_Row] = [("q", "en", "t", "the red house", 1.0)]
    rows += [(name, "de", name, text, 1.0) for name, text in texts.items()]
    store = made_up(rows, {"final": [np.ones(2)] * len(rows)})
    x, y = find_sides(store, ["en", "de"])
    pools = HardNegatives(store, [x, y], ["words"], 2, None)
    distances = dict(zip(y.ids, pools._distances(x, y)["words"][0], strict=True))
    # five different texts; "das" is in all, "rote" in three ("c" is another text than "t"), "haus" in three
    rote, haus, auto = math.log(5 / 3), math.log(5 / 3), math.log(5)
    assert distances["a"] == pytest.approx(1 - rote / (rote + haus + auto))
    assert distances["b"] == pytest.approx(1 - haus / (rote + haus + auto))
    assert distances["c"] == pytest.approx(0)  # the same words in another order
    assert distances["e"] == 1  # nothing but a word that all have
    assert np.isnan([distances[name] for name in ("t", "d")]).all()
    store = made_up([*rows, ("f", "de", "f", "das rote haus", 1.0)], {"final": [np.ones(2)] * (len(rows) + 1)})
    x, y = find_sides(store, ["en", "de"])
    [unlike] = HardNegatives(store, [x, y], ["length"], 2, None)._distances(x, y)["length"]
    distances = dict(zip(y.ids, unlike, strict=True))
    assert np.isnan(distances["f"])  # the very text of the translation: it would be right
    assert distances["c"] == 0
    found = retrieve(store, options=options("length", pool_size=3))
    assert found.settings["negatives"]["candidates_of_the_same_text_left_out"] == 1
    assert found.settings["negatives"]["distances"]["length"].startswith("|ln(")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("¡Hola, Mundo! ¿Qué tal?", ["hola", "mundo", "qué", "tal"]),
        ("don't STRASSE Straße", ["don", "t", "strasse", "strasse"]),
        ("नमस्ते दुनिया", ["नमस्ते", "दुनिया"]),
        ("我爱 ABC", ["我", "爱", "abc"]),
    ],
)
def test_words_of_any_script(text: str, words: list[str]) -> None:
    assert text_words(text) == words


def test_the_order_of_the_corpus_does_not_matter() -> None:
    store = planted()
    order = np.random.default_rng(1).permutation(len(store.utterances))
    shuffled = MadeUpStore(
        store.utterances.drop(["status"]).take(pa.array(order)),
        {output: [store._frames[output][i] for i in order] for output in store.outputs},
    )
    for kind in ("length", "words"):
        one, other = (figures(retrieve(s, options=options(kind)), f"{kind}_recall@1") for s in (store, shuffled))
        assert {o: row["value"] for o, row in one.items()} == pytest.approx({o: r["value"] for o, r in other.items()})


def test_negatives_by_sound_are_those_that_phonetics_measured(tmp_path: Path) -> None:
    """An encoder of sound finds a translation that sounds like it among any but those that sound more alike."""
    pytest.importorskip("panphon")
    rng = np.random.default_rng(2)
    vowels = ["".join(rng.choice(list("aeiou"), 6)) for _ in range(GROUPS)]
    ipa, rows, states = {}, [], []
    code = {c: np.eye(5)[i] for i, c in enumerate("aeiou")}
    for language in ("a", "b"):
        for g, sound in enumerate(vowels):
            # in b, sentence g sounds like g + 1 of a: a false friend for every translation
            said = sound if language == "a" else vowels[(g + 1) % GROUPS]
            name = f"{language}{g:02d}"
            ipa[name] = said
            rows.append((name, language, f"g{g}", None, 1.0))
            states.append(np.concatenate([code[c] for c in said]))
    store = made_up(rows, {"final": states})
    columns = {name: store.utterances[name] for name in ("id", "language", "group", "text")}
    columns |= {"path": [f"{name}.wav" for name in ipa], "speaker": [None] * len(ipa)}
    corpus = Corpus(Path("/"), pa.table({n: columns[n] for n in CORPUS_SCHEMA.names}).cast(CORPUS_SCHEMA))
    measure_phonetics(corpus, tmp_path / "ph", given=ipa)
    found = retrieve(store, options=options("sound", pool_size=2, phonetics=tmp_path / "ph"))
    # the one negative of a query is its false friend, which equals it
    assert figures(found, "sound_recall@1")["final"]["value"] == 0
    assert figures(found, "sound_random_recall@1")["final"]["value"] > 0.2
    assert found.settings["negatives"]["phonetics"]["normalize"] == "longer"
    with pytest.raises(UsageError, match=r"need a folder that `voxstrata phonetics` wrote"):
        retrieve(store, options=options("sound"))


def test_what_cannot_be_asked_is_refused_and_directions_without_enough_have_no_figure() -> None:
    with pytest.raises(UsageError, match="unknown negatives 'states'; known: sound, length, words"):
        options("states")
    with pytest.raises(UsageError, match="pool size 1: give at least 2"):
        options("length", pool_size=1)
    store = planted()
    with pytest.raises(UsageError, match=f"pool size 99: the largest language has {GROUPS} utterances"):
        retrieve(store, options=options("length", pool_size=99))
    bare = store.utterances.drop(["status"]).set_column(3, "text", pa.nulls(2 * GROUPS, pa.string()))
    without = MadeUpStore(bare, store._frames)
    with pytest.raises(InputError, match=r"made-up.zarr: no utterance has text, so no words are shared"):
        retrieve(without, options=options("words"))
    few = MadeUpStore(store.utterances.drop(["status"]).slice(0, GROUPS + 5),
                      {o: f[: GROUPS + 5] for o, f in store._frames.items()})  # fmt: skip
    found = retrieve(few, "final", options=options("length", pool_size=6))
    assert figures(found, "length_recall@1", "en")["final"]["value"] is None  # of 5 Spanish ones 4 are wrong
    assert figures(found, "length_recall@1", "es")["final"]["value"] == 1
    assert figures(found, "length_recall@1", "en")["final"]["queries_without_partner"] == 5


def test_tables_and_pictures_say_pools_chance_and_the_worst_direction(tmp_path: Path) -> None:
    found = retrieve(planted(), "layer_00,layer_01", options=options("length,words", pool_size=5))
    _, table, *_ = found.tables()
    assert table.title == "Hard negatives, seqsim_f1"
    assert [row[:2] for row in table.rows if row[1] == "chance"] == [["length", "chance"], ["words", "chance"]]
    assert table.rows[-1][2] == "20.0"
    assert "pools of 5" in table.note
    assert "→" in table.rows[0][-1]
    assert max(map(len, table.to_text().splitlines())) <= 80
    names = {path.name for path in found.save(tmp_path / "r")}
    assert "negatives.png" in names
    title = found.figures()["negatives"].get_suptitle()
    assert "length: pools of 5" in title
    assert "negatives" in Retrieval.load(tmp_path / "r").figures()
    plain = retrieve(planted(), options=RetrievalOptions(bootstrap=0, permutations=0))
    plain.save(tmp_path / "r")
    assert not (tmp_path / "r" / "negatives.png").exists()
    assert not [m for m in set(plain.table["metric"].to_pylist()) if "random" in m]
    json.dumps(found.settings)


def test_the_command_asks_for_the_folder_before_any_work(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("retrieve", tmp_path, "-o", tmp_path / "o", "--phonetics", tmp_path) == 2
    assert "--phonetics is of --negatives sound" in capsys.readouterr().err
