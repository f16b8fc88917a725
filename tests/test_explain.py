"""explain: cosines of a plain loop, maxima whose means are SeqSim, times and words where they belong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from stores import Utterance, make_store
from test_cli import run

from voxstrata.base.errors import InputError, UsageError
from voxstrata.retrieval import Ragged, seqsim
from voxstrata.store import EmbeddingStore, StoreSpec, open_store
from voxstrata.studies.explain import measure as explain_module
from voxstrata.studies.explain.measure import explain, match_frames, read_words, word_at
from voxstrata.studies.explain.result import Explanation

pytest.importorskip("matplotlib", reason="plots need the extra `plot`")
from matplotlib.figure import Figure

from voxstrata.studies.explain.figures import _apart
from voxstrata.studies.explain.matches import Word

D = 8


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> EmbeddingStore:
    rng = np.random.default_rng(0)
    frames = {name: rng.standard_normal((n, D)).astype(np.float32) for name, n in (("a", 50), ("b", 75), ("c", 3))}
    frames["b"][60:70] = 3 * frames["a"][20:30]  # what a says from 0.4 to 0.6 s, b says from 1.2 to 1.4 s
    utterances = {name: Utterance(x, "en", "g") for name, x in frames.items()}
    return make_store(tmp_path_factory.mktemp("explain") / "s.zarr", utterances)


def test_cosines_and_figures_are_those_of_a_float64_loop_and_of_seqsim(store: EmbeddingStore) -> None:
    (match,) = match_frames(store, "a", "b", ["final"])
    x, y = (store.frames(name, "final").astype(np.float64) for name in "ab")
    cosine = np.array([[p @ q / np.sqrt((p @ p) * (q @ q)) for q in y] for p in x])
    assert match.cosine.shape == (50, 75)
    np.testing.assert_allclose(match.cosine, cosine, atol=1e-6)
    p, r = np.mean([max(row) for row in cosine]), np.mean([max(column) for column in cosine.T])
    assert (match.precision, match.recall) == pytest.approx((p, r), abs=1e-6)
    assert match.f1 == pytest.approx(2 * p * r / (p + r), abs=1e-6)
    assert match.mean == pytest.approx(cosine.mean(), abs=1e-6)
    x32, y32 = (Ragged.from_list([store.frames(name, "final")]) for name in "ab")
    assert match.f1 == pytest.approx(float(seqsim(x32, y32).f1[0, 0]), abs=1e-6)


def test_swapping_the_utterances_swaps_precision_and_recall(store: EmbeddingStore) -> None:
    (there,), (back,) = match_frames(store, "a", "b"), match_frames(store, "b", "a")
    assert (there.precision, there.recall) == pytest.approx((back.recall, back.precision), abs=1e-6)


def write_timings(folder: Path) -> Path:
    (folder / "t.tsv").write_text("id\tword\tbegin\tend\na\tdoor\t0.4\t0.6\nb\tpuerta\t1.2\t1.4\n", encoding="utf-8")
    return folder / "t.tsv"


def test_what_is_said_twice_is_found_at_its_time_with_its_word(store: EmbeddingStore, tmp_path: Path) -> None:
    table = explain(store, "a", "b", words=write_timings(tmp_path)).maxima.to_pylist()
    assert len(table) == 50 + 75
    said = [row for row in table if row["id"] == "a" and row["word"] == "door"]
    assert [row["frame"] for row in said] == list(range(20, 30))
    for row in said:
        assert row["cosine"] == pytest.approx(1, abs=1e-6)
        assert row["best_frame"] == row["frame"] + 40
        assert row["seconds"] == pytest.approx(0.02 * row["frame"] + 0.01)
        assert row["best_seconds"] == pytest.approx(row["seconds"] + 0.8)
        assert (row["best_id"], row["best_word"]) == ("b", "puerta")
    assert {row["word"] for row in table if row["id"] == "b"} == {None, "puerta"}


def test_stored_means_of_frames_have_their_own_seconds(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    utterances = {name: Utterance(rng.standard_normal((6, D)).astype(np.float32)) for name in "ab"}
    store = make_store(tmp_path / "s.zarr", utterances, spec=StoreSpec(("final",), dtype="float32", every=4))
    table = explain(store, "a", "b").maxima
    np.testing.assert_allclose(table["seconds"].to_numpy()[:6], [0.04, 0.12, 0.20, 0.28, 0.36, 0.44])


def test_a_pause_has_no_word() -> None:
    words = [Word("one", 0.1, 0.2), Word("two", 0.3, 0.4)]
    assert [word_at(words, t) for t in (0.05, 0.1, 0.2, 0.25, 0.39, 0.5)] == [None, "one", None, None, "two", None]


class TestTimings:
    LENGTHS = {"a": 1.0, "b": 1.5}  # noqa: RUF012

    @pytest.mark.parametrize(
        ("rows", "message"),
        [
            ("a\tx\t0.5\tsoon", r"line 2: begin '0.5' and end 'soon' must be numbers of seconds"),
            ("a\tx\t\t1", r"line 2: begin None and end '1' must be numbers"),
            ("a\tx\t0.5\t0.5", r"line 2: 'x' from 0.5 to 0.5 s does not lie within 'a', which lasts 1.00 s"),
            ("a\tx\t200\t450", r"line 2: 'x' from 200 to 450 s does not lie within 'a'.*give seconds"),
            ("a\tx\tnan\t1", r"line 2: 'x' from nan to 1 s does not lie within"),
            ("z\tx\t0\t1", r"no row of 'a' or 'b'; name the utterances by the store's ids"),
        ],
    )
    def test_bad_timings_name_the_line(self, tmp_path: Path, rows: str, message: str) -> None:
        path = tmp_path / "t.tsv"
        path.write_text(f"id\tword\tbegin\tend\n{rows}\n", encoding="utf-8")
        with pytest.raises(InputError, match=message):
            read_words(path, self.LENGTHS)

    def test_a_missing_file_or_column_is_named(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match=r"t\.tsv: cannot be read: No such file"):
            read_words(tmp_path / "t.tsv", self.LENGTHS)
        (tmp_path / "t.csv").write_text("id,word,start,end\n", encoding="utf-8")
        with pytest.raises(InputError, match=r"t\.csv: no column 'begin'; found: 'id', 'word', 'start', 'end'"):
            read_words(tmp_path / "t.csv", self.LENGTHS)
        (tmp_path / "t.TextGrid").touch()
        with pytest.raises(InputError, match=r"t\.TextGrid: not a table; name one \(\.tsv, \.csv"):
            read_words(tmp_path / "t.TextGrid", self.LENGTHS)

    def test_words_come_in_order_of_time_and_others_are_passed_over(self, tmp_path: Path) -> None:
        path = tmp_path / "t.jsonl"
        rows = [("a", "two", 0.5, 1.05), ("z", "x", 7, 9), ("a", "one", 0, 0.5)]  # 1.05: aligners round up
        path.write_text(
            "\n".join(json.dumps(dict(zip(("id", "word", "begin", "end"), r, strict=True))) for r in rows),
            encoding="utf-8",
        )
        assert read_words(path, self.LENGTHS) == {"a": [Word("one", 0, 0.5), Word("two", 0.5, 1.05)]}


def test_words_may_be_where_the_recording_goes_on_behind_its_last_frame(store: EmbeddingStore, tmp_path: Path) -> None:
    """Encoders with long strides leave as much as a stride without a frame."""
    longer = open_store(store.files.root)
    at = longer.utterances.column_names.index("seconds")
    longer.utterances = longer.utterances.set_column(at, "seconds", pa.array([1.9] * len(longer)))
    (tmp_path / "t.tsv").write_text("id\tword\tbegin\tend\nb\tlast\t1.4\t1.85\n", encoding="utf-8")
    words = {row["word"] for row in explain(longer, "a", "b", words=tmp_path / "t.tsv").maxima.to_pylist()}
    assert words == {None, "last"}
    with pytest.raises(InputError, match=r"does not lie within 'b', which lasts 1.50 s"):
        explain(store, "a", "b", words=tmp_path / "t.tsv")


def test_what_cannot_be_explained_is_refused(store: EmbeddingStore, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match=r"no utterance 'nobody', it holds e\.g\."):
        match_frames(store, "a", "nobody")
    with pytest.raises(UsageError, match="unknown output 'layer_77'; known: final"):
        match_frames(store, "a", "b", ["layer_77"])
    monkeypatch.setattr(explain_module, "CELLS", 50 * 75 - 1)
    with pytest.raises(InputError, match=r"'a' has 50 frames and 'b' has 75: too many to draw, at most 61 × 61"):
        match_frames(store, "a", "b")


def test_a_store_of_pooled_vectors_is_refused(tmp_path: Path) -> None:
    utterances = {name: Utterance(np.ones((4, D), np.float32)) for name in "ab"}
    pooled = make_store(tmp_path / "p.zarr", utterances, spec=StoreSpec(("final",), dtype="float32", pool="mean"))
    with pytest.raises(UsageError, match="holds pooled vectors, no frames"):
        match_frames(pooled, "a", "b")


def test_the_command_draws_seconds_and_words_and_writes_what_it_prints(
    store: EmbeddingStore, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[Figure] = []
    save = Figure.savefig

    def spy(self: Figure, *args: Any, **kwargs: Any) -> None:
        drawn.append(self)
        save(self, *args, **kwargs)

    monkeypatch.setattr(Figure, "savefig", spy)
    args = ("explain", store.files.root, "a", "b", "--outputs", "final", "--words", write_timings(tmp_path))
    assert run(*args, "-o", tmp_path / "why", "--quiet") == 0
    out, err = capsys.readouterr()
    (match,) = match_frames(store, "a", "b")
    row = pq.read_table(tmp_path / "why" / "explain.parquet")
    assert row["f1"].to_pylist() == [match.f1]
    assert f"{match.f1:#.4g}" in out
    assert "precision: mean over the frames of a" in out
    assert "a = a (en, 50 frames of 20 ms)\nb = b (en, 75 frames of 20 ms)\n" in out
    assert err == ""
    assert json.loads(row.schema.metadata[b"voxstrata"])["plan"] == store.about["plan"]
    with np.load(tmp_path / "why" / "explain.npz") as stored:
        np.testing.assert_array_equal(stored["final"], match.cosine)
    assert "puerta" in pq.read_table(tmp_path / "why" / "maxima.parquet")["best_word"].to_pylist()

    (image_axes,) = [axes for axes in drawn[0].findobj(lambda artist: hasattr(artist, "get_images")) if axes.images]
    assert image_axes.get_xlim() == pytest.approx((0, 1.5))
    assert image_axes.get_ylim() == pytest.approx((0, 1.0))
    dots = np.asarray(image_axes.collections[1].get_offsets())
    np.testing.assert_allclose(dots[20:30], [[1.21 + 0.02 * i, 0.41 + 0.02 * i] for i in range(10)])
    texts = {text.get_text() for text in drawn[0].findobj(lambda artist: hasattr(artist, "get_text"))}
    assert {"door", "puerta"} <= texts
    assert (tmp_path / "why" / "explain.png").read_bytes().startswith(b"\x89PNG")


def ranked_store(folder: Path) -> EmbeddingStore:
    """A sentence a, its translation b, another recording of b, and three other sentences: one nearer to a than b is."""
    rng = np.random.default_rng(4)
    a = rng.standard_normal((20, D))
    near, nearer, far = (a + noise * rng.standard_normal((20, D)) for noise in (0.6, 0.3, 5.0))
    made = {
        "a": ("en", "s1", a), "b": ("es", "s1", near), "b2": ("es", "s1", a), "c": ("es", "s2", nearer),
        "d": ("es", "s3", far), "e": ("de", "s4", a), "f": ("es", "s5", rng.standard_normal((20, D))),
    }  # fmt: skip
    utterances = {i: Utterance(x.astype(np.float32), language, group) for i, (language, group, x) in made.items()}
    return make_store(folder / "ranked.zarr", utterances)


def test_it_says_where_b_ranks_and_who_is_ahead(tmp_path: Path) -> None:
    store = ranked_store(tmp_path)
    result = explain(store, "a", "b")
    (row,) = result.table.to_pylist()
    ragged = {i: Ragged.from_list([store.frames(i, "final")]) for i in store.ids}
    f1 = {i: float(seqsim(ragged["a"], ragged[i]).f1[0, 0]) for i in ("b", "c", "d", "f")}  # not b2, a translation, too
    assert sorted(f1, key=f1.__getitem__, reverse=True)[:2] == ["c", "b"]
    assert (row["rank"], row["candidates"], row["best_id"]) == (2, 4, "c")
    assert row["best_f1"] == pytest.approx(f1["c"], abs=1e-6)
    assert "2 of 4" in str(result)
    (row,) = explain(store, "a", "b2").table.to_pylist()
    assert (row["rank"], row["best_id"]) == (1, "c")
    lone = explain(store, "a", "e")
    assert lone.table["rank"].to_pylist() == [None]
    assert "b is not ranked among others (all of de): there are none." in str(lone)


@pytest.mark.parametrize(
    ("ranks", "best"), [((9, 2, 5), "layer_01"), ((None, None, None), "final")], ids=["ranked", "not"]
)
def test_what_all_speech_shares_is_not_the_best_match(ranks: tuple[int | None, ...], best: str) -> None:
    rows = [
        {"output": o, "f1": f1, "mean_cosine": any_two, "rank": rank, "candidates": 10}
        for o, f1, any_two, rank in zip(
            ("layer_00", "layer_01", "final"), (0.9, 0.6, 0.5), (0.8, 0.3, 0.1), ranks, strict=True
        )
    ]
    table = pa.Table.from_pylist(rows).replace_schema_metadata({Explanation.key: json.dumps({"a": "x", "b": "y"})})
    answer = Explanation(table, table).finding().answer
    assert f"at {best}, the best of these outputs" in answer
    assert ("y ranks 2 of 10 for x" in answer) == (ranks[0] is not None)


def test_more_candidates_than_one_pair_is_worth_are_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("voxstrata.studies.explain.ranking.MOST_CANDIDATES", 2)
    result = explain(ranked_store(tmp_path), "a", "b")
    assert "there are 3, more than 2." in str(result)
    assert len(result.tables()) == 1


def test_a_saved_result_comes_back_with_its_picture(store: EmbeddingStore, tmp_path: Path) -> None:
    measured = explain(store, "a", "b", words=write_timings(tmp_path))
    measured.save(tmp_path / "why")
    loaded = Explanation.load(tmp_path / "why")
    assert str(loaded) == str(measured)
    assert loaded.to_markdown() == (tmp_path / "why" / "explain.md").read_text(encoding="utf-8")
    loaded.save(tmp_path / "again")
    for name in ("explain.png", "explain.parquet", "maxima.parquet", "explain.npz"):
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "why" / name).read_bytes(), name
    (tmp_path / "why" / "explain.npz").unlink()  # it may be large
    assert Explanation.load(tmp_path / "why").table == measured.table
    with pytest.raises(InputError, match="holds something else"):
        measured.save(tmp_path)


def test_json_alone_goes_to_standard_output(
    store: EmbeddingStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("explain", store.files.root, "a", "c", "-o", tmp_path / "why", "--json") == 0
    out, err = capsys.readouterr()
    assert (json.loads(out)["rows"][0]["frames_b"], err) == (3, "")
    assert run("explain", store.files.root, "a", "nobody", "-o", tmp_path / "other") == 2
    assert not (tmp_path / "other").exists()


def test_labels_of_short_words_do_not_touch_and_the_others_stand_at_their_middle() -> None:
    begins = [0.1, 1.0, 1.1, 1.15, 3.0]
    words = [Word(str(n), begin, begin + 0.1) for n, begin in enumerate(begins)]
    places = np.array(_apart(words, 0.3, 4.0))
    np.testing.assert_allclose(places[[0, 4]], [0.15, 3.05])
    np.testing.assert_allclose(places[1:4], np.mean([1.05, 1.15, 1.2]) + np.array([-0.3, 0, 0.3]))
    crowd = [Word("x", n / 50, (n + 1) / 50) for n in range(40)]
    np.testing.assert_allclose(_apart(crowd, 0.3, 12.0), 0.15 + 0.3 * np.arange(40))  # none before the axis begins
    late = [Word(str(n), 3.8, 3.9) for n in range(3)]
    np.testing.assert_allclose(_apart([Word("x", 3.0, 3.2), *late], 0.3, 4.0), [2.95, 3.25, 3.55, 3.85])
