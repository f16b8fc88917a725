"""Promises of spans: whose rows a word has, what is left out and said, and that a store of words is a store."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
from conftest import sound
from kills import contents
from stores import Utterance, card, make_store
from test_cli import run

import voxstrata as vs
from voxstrata.alignments.gathering import rows_of
from voxstrata.alignments.grouping import word_of
from voxstrata.base.progress import Progress, Reporter
from voxstrata.cli.info import _command
from voxstrata.corpus import Corpus, Probed
from voxstrata.encoders.family import Step
from voxstrata.encoders.whisper import WHISPER
from voxstrata.store import StoreSpec, StoreWriter, make_plan
from voxstrata.store.verify import verify

STEP = 0.02  # seconds of a row of Whisper's; row r sees most of what is at r * STEP
WIDTH = 16


def vector(word: str) -> np.ndarray:
    """The state that is planted for a word: whole numbers, so that means are exact."""
    return np.random.default_rng(list(word.encode())).integers(-40, 40, WIDTH).astype(np.float32)


def spoken(words: Sequence[tuple[str, int]], seed: int | None = None) -> np.ndarray:
    """Rows of words of 3 n rows each: the word's vector, and what differs from row to row and is 0 in the mean.

    seed: for vectors of chance instead.
    """
    rows = []
    for n, (word, length) in enumerate(words):
        state = vector(word) if seed is None else np.random.default_rng((seed, n)).integers(-40, 40, WIDTH)
        rows += [state + wave for _ in range(length // 3) for wave in (-1, 0, 1)]
    return np.stack(rows).astype(np.float32)


def timed(words: Sequence[tuple[str, int]]) -> list[dict[str, Any]]:
    """Words as whisper's timestamps have them."""
    ends = np.cumsum([length for _, length in words]) * STEP
    starts = ends - [length * STEP for _, length in words]
    return [
        {"word": w, "start": a, "end": b} for (w, _), a, b in zip(words, starts.tolist(), ends.tolist(), strict=True)
    ]


def aligned(folder: Path, tiers: dict[str, list[dict[str, Any]]]) -> Path:
    """A JSON file of words for each name."""
    for name, words in tiers.items():
        path = folder / f"{name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"segments": [{"words": words}]}))
    return folder


SENTENCES = {
    "en0": [("water", 6), ("", 3), ("red", 3), ("door", 9)],
    "en1": [("red", 12), ("moon", 3), ("water", 3)],
    "es0": [("door", 3), ("sil", 6), ("moon", 6)],
    "es1": [("water", 9), ("red", 6)],
}


@pytest.fixture
def made(tmp_path: Path) -> tuple[Path, Path]:
    """A store of SENTENCES, in which a word has the same vector wherever it is spoken, and their alignments."""
    held = {name: Utterance(spoken(words), name[:2], f"g{name[2:]}") for name, words in SENTENCES.items()}
    make_store(tmp_path / "s.zarr", held, spec=StoreSpec(("final",)))
    return tmp_path / "s.zarr", aligned(tmp_path / "json", {name: timed(words) for name, words in SENTENCES.items()})


def make(made: tuple[Path, Path], target: str = "words.zarr", **how: Any) -> tuple[vs.Any, Any]:
    """The store of spans, and the report."""
    store, alignments = made
    report = vs.spans(store, alignments, store.parent / target, **how)
    return vs.open_store(store.parent / target), report


# --- whose rows ---


@pytest.mark.parametrize("every", [1, 4])
@pytest.mark.parametrize(("steps", "middle"), [(WHISPER.steps, 0.0), ((Step(400, 320),), 199.5)])
def test_a_row_is_of_the_span_that_holds_the_middle_of_what_it_sees(steps: Any, middle: float, every: int) -> None:
    kind, rng = replace(WHISPER, steps=steps), np.random.default_rng(every)
    samples, frames = 16_000, 50
    rows = -(-frames // every)
    edges = np.sort(rng.integers(0, samples + 1, (400, 2)), axis=1)
    edges[:20, 1] = np.minimum(edges[:20, 0] + rng.integers(0, 200, 20), samples)  # short ones
    edges[20:40, 1] = samples
    edges[40:60] = edges[40:60] // 320 * 320  # where rows begin
    of = np.full(len(edges), samples), np.full(len(edges), rows)
    first, count, short = rows_of(edges[:, 0], edges[:, 1], *of, kind, every)
    centres = [np.mean([middle + 320 * (r * every + k) for k in range(every)]) for r in range(rows)]
    assert short.any()
    assert not short.all()
    for (begin, end), a, n, lone in zip(edges.tolist(), first.tolist(), count.tolist(), short, strict=True):
        own = [r for r in range(rows) if begin <= centres[r] and (centres[r] < end or end == samples)]
        assert lone == (not own)
        if own:
            assert list(range(a, a + n)) == own
        else:
            assert n == 1
            away = np.abs(np.array(centres) - (begin + end) / 2)
            assert away[a] == away.min()


def test_neighbours_share_no_row_and_lose_none() -> None:
    edges = np.sort(np.random.default_rng(0).choice(np.arange(1, 32_000), 20, replace=False))
    begin, end = np.append(0, edges), np.append(edges, 32_000)
    first, rows, short = rows_of(begin, end, np.full(21, 32_000), np.full(21, 100), WHISPER, 1)
    assert (first[1:][~short[1:]] >= (first + rows)[:-1][~short[1:]]).all()
    assert rows[~short].sum() == 100


@pytest.mark.parametrize("outputs", ["final", ("layer_00", "final")])
def test_a_words_vector_is_the_mean_of_its_rows(tmp_path: Path, outputs: Any) -> None:
    names = (outputs,) if isinstance(outputs, str) else outputs
    held = {name: Utterance(spoken(words), name[:2]) for name, words in SENTENCES.items()}
    make_store(tmp_path / "s.zarr", held, spec=StoreSpec(names), outputs=names)
    alignments = aligned(tmp_path / "json", {name: timed(words) for name, words in SENTENCES.items()})
    store, report = make((tmp_path / "s.zarr", alignments))
    said = {
        f"{name}:{n}": w for name, words in SENTENCES.items() for n, (w, _) in enumerate(words) if w not in ("", "sil")
    }
    assert dict(zip(store.ids, store.table(["text"])["text"].to_pylist(), strict=True)) == said
    for output in names:
        assert np.array_equal(store.pooled(output), np.stack([vector(said[i]) for i in store.ids]))
    assert store.pooled(names[0]).dtype == np.float32
    assert (report.spans, report.utterances, report.counts["silences"]) == (len(said), 4, 2)


def test_frames_are_the_utterances_own(made: tuple[Path, Path]) -> None:
    store, _ = make(made, pool="frames")
    source = vs.open_store(made[0])
    for row in store.utterances.to_pylist():
        whole = source.frames(row["parent"], "final")
        own = store.frames(row["id"], "final")
        assert np.array_equal(own, whole[row["first_row"] : row["first_row"] + row["rows"]])
        assert np.array_equal(own.mean(axis=0, dtype=np.float64), vector(row["text"]))
        assert own.dtype == np.float16


def test_rows_that_are_means_of_frames_are_pooled_too(tmp_path: Path) -> None:
    words = [("water", 12), ("red", 12)]  # rows here; of 4 frames each
    make_store(tmp_path / "s.zarr", {"a": Utterance(spoken(words))}, spec=StoreSpec(("final",), every=4))
    times = [{**w, "start": 4 * w["start"], "end": 4 * w["end"]} for w in timed(words)]
    store, _ = make((tmp_path / "s.zarr", aligned(tmp_path / "json", {"a": times})))
    assert np.array_equal(store.pooled("final"), np.stack([vector("water"), vector("red")]))
    assert store.about["spans"]["every"] == 4


def test_spans_say_whose_they_are(made: tuple[Path, Path]) -> None:
    store, _ = make(made)
    row = next(row for row in store.utterances.to_pylist() if row["id"] == "en0:3")
    known = {name: row[name] for name in ("parent", "path", "language", "group", "text", "row_count", "status", "rows")}
    assert known == {
        "parent": "en0", "path": "en0.wav", "language": "en", "group": "door", "text": "door", "row_count": 1,
        "status": "done", "rows": 9,
    }  # fmt: skip
    times = [row[name] for name in ("from_second", "to_second", "offset", "duration", "seconds")]
    assert times == pytest.approx([0.24, 0.42, 0.24, 0.18, 0.18])


# --- what is left out, and said ---


def test_what_is_mended_or_left_out_is_counted(tmp_path: Path) -> None:
    store = tmp_path / "s.zarr"
    make_store(store, {name: Utterance(spoken([("red", 15)])) for name in "abcde"})  # 0.3 s each
    spans = {
        "a": [("red", 0.0, 0.2), ("moon", 0.105, 0.11), ("door", 0.15, 0.2), ("<eps>", 0.2, 0.25), ("SP", 0.25, 0.3)],
        "b": [("red", 0.0, 0.35), ("no times", 0.35, None)],
        "c": [("red", 0.0, 0.1), ("far", 0.35, 0.41)],
        "d": [("sil", 0.0, 0.3)],
        "e": [("red", 0.3, 0.3), ("moon", 0.3, 0.3)],
        "stranger": [("red", 0.0, 0.1)],
    }
    tiers = {n: [{"word": w, "start": s, "end": e} for w, s, e in words] for n, words in spans.items()}
    words, report = make((store, aligned(tmp_path / "json", tiers)))
    expected = {"silences": 3, "untimed": 1, "cut": 0, "clipped": 1, "overlapping": 2, "short": 3, "early": 0}
    assert report.counts == expected
    assert words.ids == ["a:0", "a:1", "a:2", "b:0", "e:0", "e:1"]
    assert report.strangers == ["stranger"]
    assert report.left_out["c"].startswith("'far' ends 0.11 s after the end: an alignment of another recording")
    assert report.left_out["d"].startswith("nothing is spoken in its tier 'words'")
    rows = {row["id"]: (row["first_row"], row["rows"]) for row in words.utterances.to_pylist()}
    assert rows == {"a:0": (0, 10), "a:1": (5, 1), "a:2": (8, 2), "b:0": (0, 15), "e:0": (14, 1), "e:1": (14, 1)}
    text = report.to_text()
    assert "  spans that hold the middle of no frame, and have the nearest: 3" in text
    assert "alignments of no utterance: 1, e.g. 'stranger'" in text


def test_times_in_milliseconds_overlap_by_rounding_alone(tmp_path: Path) -> None:
    """A CTM's begin and length are each up to half a millisecond off, and so is the next begin: 1.5 ms in all."""
    make_store(tmp_path / "s.zarr", {name: Utterance(spoken([("red", 15)])) for name in "ab"})
    (tmp_path / "a.ctm").write_text(
        "a 1 0.000 0.101 red\na 1 0.100 0.1005 door\nb 1 0.000 0.103 red\nb 1 0.100 0.1 door\n"
    )
    _, report = make((tmp_path / "s.zarr", tmp_path / "a.ctm"))
    assert report.spans == 4
    assert report.counts["overlapping"] == 1  # of b, by 3 ms


def test_a_textgrid_of_another_recording_is_told_by_its_length(tmp_path: Path) -> None:
    make_store(tmp_path / "s.zarr", {name: Utterance(spoken([("red", 15)])) for name in "abc"})
    grid = (
        'File type = "ooTextFile"\n"TextGrid"\n0\n{0}\n<exists>\n1\n"IntervalTier"\n"words"\n0\n{0}\n1\n0\n0.1\n"red"\n'
    )
    folder = tmp_path / "grids"
    folder.mkdir()
    for name, seconds in (("a", 0.3), ("b", 0.7), ("c", 0.1)):
        (folder / f"{name}.TextGrid").write_text(grid.format(seconds))
    store, report = make((tmp_path / "s.zarr", folder))
    assert store.ids == ["a:0", "c:0"]
    assert report.left_out["b"].startswith("its alignment is of 0.70 s, the recording of 0.30 s: another one")
    assert report.counts["early"] == 1
    assert make((tmp_path / "s.zarr", folder), "t.zarr", tolerance=0.5)[0].ids == ["a:0", "b:0", "c:0"]


def test_utterances_without_alignment_are_listed_and_the_rest_is_done(
    made: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    store, alignments = made
    (alignments / "en1.json").unlink()
    (alignments / "es0.json").write_text("{}")
    (alignments / "es1.json").write_text(json.dumps({"tiers": {"phones": {"type": "interval", "entries": []}}}))
    words = store.parent / "w.zarr"
    assert run("spans", store, alignments, "-o", words) == 4
    out, err = capsys.readouterr()
    assert "3 spans of 1 utterance, the mean state of each" in out
    assert "utterances without spans: 3\n" in err
    assert "  en1: no alignment\n" in err
    assert "es0.json: no timestamps" in err
    assert "  es1: no tier 'words' in " in err
    assert run("spans", store, alignments, "-o", words, "--json") == 4
    assert set(json.loads(capsys.readouterr().out)["left_out"]) == {"en1", "es0", "es1"}
    assert verify(words).sound


# --- which alignment is whose ---


Row = tuple[str, str, float | None, float | None, int | None]


def located(store: Path, rows: Sequence[Row]) -> None:
    """A store of utterances of 0.6 s: id, path, and which part of the file they are (offset, duration, channel)."""
    ids, paths, offsets, durations, channels = zip(*rows, strict=True)
    columns = {"id": ids, "path": paths, "offset": pa.array(offsets, pa.float64())}
    columns |= {"duration": pa.array(durations, pa.float64()), "channel": pa.array(channels, pa.int32())}
    samples = pa.array([9600] * len(ids))
    probed = Probed.of_columns({"samples": samples, "is_segment": [False] * len(ids)}, {})
    spec = StoreSpec(("final",), dtype="float32")
    plan = make_plan(Corpus(store.parent, pa.table(columns)), probed, spec, WIDTH)
    writer = StoreWriter(store, plan, card(WIDTH))
    writer.commit(0, {"final": np.ones((30 * len(ids), WIDTH), np.float32)}, {})
    writer.finish()


@pytest.mark.parametrize(
    ("names", "way"),
    [
        (("en/a-1", "es/a-1"), "ids"),
        (("speech/one", "speech/two"), "paths"),
        (("one", "mfa/speaker/two"), "names of files"),
    ],
)
def test_alignments_are_found_by_id_by_path_or_by_the_files_name(names: Any, way: str, tmp_path: Path) -> None:
    located(
        tmp_path / "s.zarr",
        [(f"{x}/a-1", f"speech/{f}.wav", None, None, None) for x, f in (("en", "one"), ("es", "two"))],
    )
    alignments = aligned(tmp_path / "json", {name: timed([("red", 30)]) for name in names})
    store, report = make((tmp_path / "s.zarr", alignments))
    assert sorted(store.ids) == ["en/a-1:0", "es/a-1:0"]
    assert report.found_by == way


def test_a_name_that_two_files_have_is_nobodys(tmp_path: Path) -> None:
    located(
        tmp_path / "s.zarr",
        [(f"u{n}", path, None, None, None) for n, path in enumerate(("en/a.wav", "es/a.wav", "b.wav"))],
    )
    store, report = make((tmp_path / "s.zarr", aligned(tmp_path / "json", {n: timed([("red", 30)]) for n in "ab"})))
    assert store.ids == ["u2:0"]
    assert report.left_out == {"u0": "no alignment", "u1": "no alignment"}
    (tmp_path / "json" / "b.json").unlink()
    with pytest.raises(
        vs.InputError, match="no alignment is of any of its utterances, by id, path or name of the file"
    ):
        make((tmp_path / "s.zarr", tmp_path / "json"), "t.zarr")


def test_parts_of_a_file_take_their_own_share_of_its_alignment(tmp_path: Path) -> None:
    located(tmp_path / "s.zarr", [("t1", "talk.wav", 1.0, 0.6, None), ("t2", "talk.wav", 1.6, 0.6, None)])
    words = [("before", 0.5, 0.9), ("one", 1.0, 1.3), ("cut", 1.3, 1.9), ("two", 1.95, 2.25), ("after", 2.4, 2.5)]
    spans = [{"word": w, "start": s, "end": e} for w, s, e in words]
    store, report = make((tmp_path / "s.zarr", aligned(tmp_path / "json", {"talk": spans})))
    rows = {
        row["id"]: [row[n] for n in ("text", "from_second", "to_second", "offset")]
        for row in store.utterances.to_pylist()
    }
    assert rows == {"t1:1": ["one", 0.0, pytest.approx(0.3), 1.0], "t2:3": ["two", pytest.approx(0.35), 0.6, 1.95]}
    assert (report.counts["cut"], report.counts["clipped"]) == (1, 1)
    # by their ids, times count from their own beginnings
    own = aligned(tmp_path / "own", {"t1": [{"word": "one", "start": 0.0, "end": 0.3}]})
    store, _ = make((tmp_path / "s.zarr", own), "t.zarr")
    assert store.table(["offset"])["offset"].to_pylist() == [1.0]


def test_channels_of_a_ctm_go_to_channels_of_utterances(tmp_path: Path) -> None:
    held = [("mean", "a.wav", None, None, None), ("left", "b.wav", None, None, 0), ("right", "b.wav", None, None, 1)]
    located(tmp_path / "s.zarr", [*held, ("third", "b.wav", None, None, 2)])
    ctm = tmp_path / "x.ctm"
    ctm.write_text("a A 0.0 0.3 x\na B 0.0 0.3 y\nb 1 0.0 0.3 l\nb 2 0.0 0.3 r\n")
    store, report = make((tmp_path / "s.zarr", ctm))
    assert dict(zip(store.ids, store.table(["text"])["text"].to_pylist(), strict=True)) == {
        "left:0": "l",
        "right:0": "r",
    }
    assert (
        report.left_out["mean"] == "'a' is aligned in channels A and B, and the utterance is the mean of all channels"
    )
    assert report.left_out["third"] == "it is channel 2 (the first is 0), and 'b' is aligned in 1 and 2"


# --- which spans say the same ---


@pytest.mark.parametrize(
    ("label", "word"),
    [
        (" Hello,", " hello"),
        ("¿Dónde?", "dónde"),
        ("STRASSE", "strasse"),
        ("o'clock", "o'clock"),
        ("...", "..."),
        ("ʔ", "ʔ"),
    ],
)
def test_words_are_compared_without_case_and_punctuation(label: str, word: str) -> None:
    assert word_of(label) == word if label[0] != " " else word_of(label.strip()) == word.strip()


def test_groups_are_words_labels_sentences_or_meanings(tmp_path: Path) -> None:
    said = {"en0": [("Red,", 6), ("moon", 6)], "es0": [("red", 6), ("Luna", 6)]}
    held = {name: Utterance(spoken(words), name[:2], "g7" if name == "en0" else None) for name, words in said.items()}
    make_store(tmp_path / "s.zarr", held)
    made = tmp_path / "s.zarr", aligned(tmp_path / "json", {name: timed(words) for name, words in said.items()})
    table = tmp_path / "list.tsv"
    table.write_text("form\tlanguage\tmeaning\nMoon\ten\tthe moon\nluna\tes\tthe moon\nred\tes\ta net\n")
    expected = {
        "word": ["red", "moon", "red", "luna"],
        "label": ["Red,", "moon", "red", "Luna"],
        "sentence": ["g7 red", "g7 moon", None, None],
    }
    for group, groups in expected.items():
        store, report = make(made, f"{group}.zarr", group=group)
        assert store.table(["group"])["group"].to_pylist() == groups
        assert report.ungrouped == groups.count(None)
    store, report = make(made, "meanings.zarr", meanings=table)
    assert store.table(["group"])["group"].to_pylist() == [None, "the moon", "a net", "the moon"]
    assert (report.groups, report.shared, report.ungrouped, report.group) == (2, 1, 1, "list.tsv")
    table.write_text("form\tlanguage\tmeaning\nmoon\ten\tthe moon\nMoon!\ten\tmonth\n")
    with pytest.raises(vs.InputError, match=r"list.tsv, line 3: 'Moon!' .en. means 'month' here and 'the moon' above"):
        make(made, "other.zarr", meanings=table)


# --- a store of spans is a store ---


def test_the_same_word_is_found_in_every_recording_and_chance_finds_chance(tmp_path: Path) -> None:
    rng, words = np.random.default_rng(1), [f"w{n}" for n in range(40)]
    said = {
        f"{x}{n}": [(w, 3 * int(rng.integers(1, 4))) for w in rng.permutation(words)]
        for x in ("en", "es")
        for n in range(3)
    }
    alignments = aligned(tmp_path / "json", {name: timed(spoken_words) for name, spoken_words in said.items()})
    for name, chance in (("same", False), ("random", True)):
        held = {i: Utterance(spoken(w, seed=n if chance else None), i[:2]) for n, (i, w) in enumerate(said.items())}
        make_store(tmp_path / f"{name}.zarr", held)
        for pool in ("mean", "frames"):
            store, report = make((tmp_path / f"{name}.zarr", alignments), f"{name}-{pool}.zarr", pool=pool)
            assert (report.groups, report.shared) == (40, 40)
            similarity = "pooled_cosine" if pool == "mean" else "seqsim_f1"
            rows = vs.retrieve(
                store, similarities=similarity, options=vs.RetrievalOptions(bootstrap=0)
            ).table.to_pylist()
            (found,) = (
                r
                for r in rows
                if r["level"] == "mean"
                and r["score"] == "raw"
                and r["metric"] == "recall@1"
                and r["similarity"] == similarity
            )
            assert found["chance"] == pytest.approx(3 / 120)
            # of 240 queries, 6 at chance: more than 18 has a probability below 1e-4
            assert found["value"] < 18 / 240 if chance else found["value"] == 1


def test_similarity_and_export_take_pooled_spans(tmp_path: Path, made: tuple[Path, Path]) -> None:
    store, _ = make(made)
    x, y = vs.select(store, "en"), vs.select(store, "es")
    vs.similarity(x, y, "final", tmp_path / "similar", top=1)
    top = pq.read_table(tmp_path / "similar" / "top.parquet").to_pylist()
    said = dict(zip(store.ids, store.table(["text"])["text"].to_pylist(), strict=True))
    best = {said[row["query"]]: (said[row["candidate"]], row["f1"]) for row in top if row["direction"] == "forward"}
    assert set(best) == {"water", "red", "door", "moon"}
    for word, (candidate, score) in best.items():
        assert candidate == word
        assert score == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize(("pool", "rows"), [("mean", 256), ("frames", 3 * 256)])
def test_an_interrupted_run_goes_on_to_the_same_bytes(
    pool: str, rows: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unit = 1 << (rows * WIDTH * 4 - 1).bit_length()  # bytes: of 256 spans, or of 341
    monkeypatch.setattr("voxstrata.store.plan.CHUNK_BYTES", unit // 4)
    monkeypatch.setattr("voxstrata.store.plan.UNIT_MEGABYTES", unit / 2**20)
    words = [(f"w{n}", 3) for n in range(700)]
    make_store(tmp_path / "s.zarr", {"a": Utterance(spoken(words))})
    alignments = aligned(tmp_path / "json", {"a": timed(words)})
    made = tmp_path / "s.zarr", alignments

    class Interrupting(Reporter):
        def progress(self, progress: Progress) -> None:
            if progress.stage == "pooling" and progress.done >= 512:
                raise KeyboardInterrupt

    make(made, "whole.zarr", pool=pool)
    with pytest.raises(KeyboardInterrupt):
        make(made, "cut.zarr", reporter=Interrupting(), pool=pool)
    assert len(list((tmp_path / "cut.zarr" / "units").iterdir())) == 2
    kept = (tmp_path / "cut.zarr" / "units" / "000000.json").stat().st_mtime_ns
    _, report = make(made, "cut.zarr", pool=pool)
    assert (report.units, report.resumed) == (3, 2)
    assert (tmp_path / "cut.zarr" / "units" / "000000.json").stat().st_mtime_ns == kept
    assert contents(tmp_path / "cut.zarr") == contents(tmp_path / "whole.zarr")
    assert verify(tmp_path / "cut.zarr").sound


def test_other_spans_in_the_same_place_are_refused(made: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    make(made)
    with pytest.raises(vs.InputError, match="cannot resume: group is word there, label here"):
        make(made, group="label")
    with pytest.raises(vs.InputError, match=r"s\.zarr: holds utterances, no spans; choose another name"):
        make(made, "s.zarr")
    with pytest.raises(vs.UsageError, match="holds pooled vectors, no frames"):
        make((made[0].parent / "words.zarr", made[1]), "t.zarr")
    make(made, "frames.zarr", pool="frames")
    two = vs.open_store([made[0], made[0].parent / "frames.zarr"])
    with pytest.raises(vs.UsageError, match="spans are taken from one store at a time"):
        vs.spans(two, made[1], made[0].parent / "t.zarr")
    words = json.loads((made[1] / "en0.json").read_text())
    words["segments"][0]["words"][0]["end"] -= 0.02
    (made[1] / "en0.json").write_text(json.dumps(words))
    with pytest.raises(vs.InputError, match="cannot resume: samples of 'en0:0' is 1920 there, 1600 here"):
        make(made)


def test_a_store_of_spans_says_what_it_is_and_takes_no_recordings(
    made: tuple[Path, Path], tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make(made)
    words = made[0].parent / "words.zarr"
    assert run("info", words, "--json") == 0
    said = json.loads(capsys.readouterr().out)["spans"]
    assert {name: said[name] for name in ("store", "tier", "pool", "group")} == {
        "store": "s.zarr", "tier": "words", "pool": "mean", "group": "word",
    }  # fmt: skip
    make(made, "labels.zarr", group="label")
    command = _command(vs.open_store(made[0].parent / "labels.zarr"))
    assert command.endswith(" --group label"), "without the group the command would be refused"
    soundfile.write(tmp_path / "a.wav", sound(0.5, 0), 16_000)
    assert run("append", words, tmp_path, tiny_model) == 3
    assert "holds spans of s.zarr; append to that, and make the spans anew" in capsys.readouterr().err


def test_words_of_a_list_are_found_in_sentences_and_compared(tmp_path: Path) -> None:
    """The vector of a word is that of its meaning, so synonyms are closest; how it sounds plays no part."""
    rng = np.random.default_rng(3)
    meanings = [f"m{n}" for n in range(30)]
    rows = ["form\tlanguage\tmeaning\tipa"]
    said: dict[str, list[tuple[str, int]]] = {}
    for language in ("en", "es"):
        for m in meanings:
            ipa = "".join(rng.choice(list("pbtdkszmnfaeiou"), 5))
            rows.append(f"{language}{m}\t{language}\t{m}\t{ipa}")
        rows.append(f"unsaid\t{language}\tnothing\tpa")
        said[language] = [(m, 6) for m in rng.permutation(meanings)]
    (tmp_path / "list.tsv").write_text("\n".join(rows), encoding="utf-8")
    make_store(tmp_path / "s.zarr", {name: Utterance(spoken(words), name) for name, words in said.items()})
    names = {x: [{**w, "word": f" {x.upper()}{w['word']}."} for w in timed(words)] for x, words in said.items()}
    make((tmp_path / "s.zarr", aligned(tmp_path / "json", names)))
    command = ("words", tmp_path / "list.tsv", tmp_path / "words.zarr", "-o", tmp_path / "out", "--bootstrap", 0)
    assert run(*command) == 0
    table = pq.read_table(tmp_path / "out" / "words.parquet")
    found = {(r["output"], r["similarity"], r["kind"]): r for r in table.to_pylist() if r["source"] == "all"}
    assert found["final", "pooled_cosine", "synonyms"]["auc"] == 1
    assert found["final", "seqsim_f1", "synonyms"]["auc"] == 1
    assert found["final", "pooled_cosine", "near_homophones"]["auc"] < 0.9
    assert json.loads(table.schema.metadata[b"voxstrata_words"])["words"] == 60
    (tmp_path / "list.tsv").write_text("\n".join([*rows, "enM0\ten\tm7\tpa"]), encoding="utf-8")
    assert run(*command, "--overwrite") == 3  # two meanings of one word
