"""Promises of relabel: labels change by id, nothing is encoded again, the old are kept, a kill loses neither."""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
from conftest import Heard, sound
from kills import contents
from stores import Utterance, make_store
from test_cli import run

from voxstrata.base.errors import InputError, UsageError
from voxstrata.base.progress import Progress, Reporter
from voxstrata.corpus import Corpus, read_corpus
from voxstrata.engine import extract
from voxstrata.retrieval.all_pairs import similarity
from voxstrata.retrieval.finished import read_similarity
from voxstrata.retrieval.selection import select
from voxstrata.store import StoreSpec, open_store
from voxstrata.store.files import Files
from voxstrata.store.relabel import relabel


def frames(seed: int, n: int = 5) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((n, 4)).astype(np.float32)


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """Ids a0 … a3 (language a) and b0 … b3 (language b), groups g0 … g3."""
    path = tmp_path / "s.zarr"
    make_store(path, {f"{x}{i}": Utterance(frames(i), x, f"g{i}") for i in range(4) for x in "ab"})
    return path


def labels(store: Path, column: str) -> dict[str, Any]:
    opened = open_store(store)
    return dict(zip(opened.ids, opened.utterances[column].to_pylist(), strict=True))


def manifest(folder: Path, text: str) -> Path:
    path = folder / "new.tsv"
    path.write_text(text, encoding="utf-8")
    return path


# --- what changes ---


def test_named_columns_of_named_ids_change_and_all_else_stays(store: Path, tmp_path: Path) -> None:
    before = open_store(store).utterances
    path = manifest(tmp_path, "id\tgroup\tmood\nb2\tG2\tglad\na1\t\t\nb0\tg0\tsad\n")
    report = relabel(store, path)
    assert report.changed == {"group": 2, "mood": 2}
    assert report.examples["group"] == [("a1", "g1", None), ("b2", "g2", "G2")]
    assert (report.utterances, report.named, report.unknown, report.ignored) == (8, 3, [], [])
    was = {"a0": "g0", "a1": "g1", "a2": "g2", "a3": "g3", "b0": "g0", "b1": "g1", "b2": "g2", "b3": "g3"}
    assert labels(store, "group") == was | {"a1": None, "b2": "G2"}
    assert labels(store, "mood") == dict.fromkeys(was) | {"b2": "glad", "b0": "sad"}
    after = open_store(store).utterances
    assert after.drop(["group", "mood"]) == before.drop(["group"])
    # frames and plan are not touched
    rows, _ = open_store(store).ragged("final", [0])
    np.testing.assert_array_equal(rows, frames(int(before["id"][0].as_py()[1])))


def test_what_was_replaced_is_kept_with_the_manifest_it_came_from(store: Path, tmp_path: Path) -> None:
    path = manifest(tmp_path, "id\tgroup\nb2\tG2\na1\tG1\n")
    assert relabel(store, path).record == "history/0001.parquet"
    assert relabel(store, pa.table({"id": ["b2"], "group": ["g2"], "language": ["c"]})).record == "history/0002.parquet"
    first, second = (pq.read_table(store / "history" / f"000{i}.parquet") for i in (1, 2))
    assert first.to_pylist() == [
        {"id": "a1", "column": "group", "old": "g1", "new": "G1"},
        {"id": "b2", "column": "group", "old": "g2", "new": "G2"},
    ]
    assert second.to_pylist() == [
        {"id": "b2", "column": "group", "old": "G2", "new": "g2"},
        {"id": "b2", "column": "language", "old": "b", "new": "c"},
    ]
    about = json.loads(first.schema.metadata[b"voxstrata"])
    assert about["manifest"] == "new.tsv"
    assert about["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert about["when"].endswith("+00:00")
    assert open_store(store).about["relabelled"] == 2


def test_labels_that_are_as_they_were_change_nothing(store: Path, tmp_path: Path) -> None:
    before = contents(store)
    report = relabel(store, manifest(tmp_path, "id\tgroup\nb2\tg2\na1\tg1\n"))
    assert (report.changed, report.record) == ({"group": 0}, None)
    assert contents(store) == before
    assert "relabelled" not in open_store(store).about


@pytest.mark.parametrize("suffix", [".tsv", ".csv", ".jsonl", ".parquet"])
def test_every_kind_of_manifest_does(store: Path, tmp_path: Path, suffix: str) -> None:
    rows = [{"id": "a1", "text": "“one”, two"}, {"id": "b0", "text": None}]
    path = tmp_path / f"new{suffix}"
    if suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif suffix == ".jsonl":
        path.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    else:
        with path.open("w", newline="", encoding="utf-8") as file:
            kind = {"delimiter": "\t"} if suffix == ".tsv" else {}
            csv.writer(file, **kind).writerows([["id", "text"], *([row["id"], row["text"] or ""] for row in rows)])
    assert relabel(store, path).changed == {"text": 1}
    assert labels(store, "text")["a1"] == "“one”, two"


def test_a_corpus_and_a_manifest_without_ids_name_utterances_as_extract_does(store: Path, tmp_path: Path) -> None:
    report = relabel(store, manifest(tmp_path, "path\tgroup\na1.wav\tG1\n"))  # no recording is there
    assert report.changed == {"group": 1}
    corpus = Corpus(tmp_path, pa.table({"id": ["a1"], "path": ["a1.wav"], "speaker": ["s"]}))
    report = relabel(store, corpus)
    assert (report.changed, report.ignored) == ({"speaker": 1}, ["path"])  # language and group are null: unknown there
    assert labels(store, "group")["a1"] == "G1"


def test_what_a_recording_is_and_where_it_lies_is_no_label(store: Path, tmp_path: Path) -> None:
    before = open_store(store).utterances
    names = ("path", "seconds", "samples", "size_bytes", "failure", "status", "offset", "duration", "member", "channel")
    text = "\t".join(("id", *names)) + "\n" + "\t".join(["a1"] + ["7"] * len(names)) + "\n"
    report = relabel(store, manifest(tmp_path, text))
    assert (report.changed, report.ignored) == ({}, list(names))
    assert open_store(store).utterances == before


def test_values_in_memory_are_strings_and_not_a_number_is_unknown(store: Path) -> None:
    relabel(store, pa.table({"id": ["a1", "b0", "b1"], "speaker": [7, 8, None], "take": [1.5, float("nan"), 2.0]}))
    assert {k: v for k, v in labels(store, "speaker").items() if v} == {"a1": "7", "b0": "8"}
    assert {k: v for k, v in labels(store, "take").items() if v} == {"a1": "1.5", "b1": "2"}


def test_words_for_nothing_are_nothing_and_parts_of_recordings_are_no_labels(store: Path, tmp_path: Path) -> None:
    """As in the manifest of an extraction: pandas writes nan where a group is missing."""
    text = "id\tpath\tgroup\tstart\tend\na1\ta.wav\tnan\t0\t1\nb1\ta.wav\tG1\t1\t2\n"
    report = relabel(store, manifest(tmp_path, text))
    assert (report.changed, report.ignored) == ({"group": 2}, ["path", "start", "end"])
    assert {k: labels(store, "group")[k] for k in ("a1", "b1")} == {"a1": None, "b1": "G1"}
    nemo = tmp_path / "nemo.json"
    nemo.write_text(json.dumps({"audio_filepath": "a1.wav", "duration": 1.0, "text": "hello"}) + "\n", encoding="utf-8")
    assert relabel(store, nemo).changed == {"text": 1, "given_duration": 1}  # as extraction keeps it
    assert labels(store, "text")["a1"] == "hello"


def test_columns_are_understood_as_extract_does_or_chosen(store: Path, tmp_path: Path) -> None:
    voices = "id\tclient_id\tpath\tsentence\tgroup\na1\tx\ta1.mp3\tHello.\t\nb0\ty\tb0.mp3\tYes.\t\n"
    report = relabel(store, manifest(tmp_path, voices))
    assert (report.changed, report.ignored) == ({"speaker": 2, "text": 2, "group": 2}, ["path"])
    assert {k: labels(store, "text")[k] for k in ("a1", "b0")} == {"a1": "Hello.", "b0": "Yes."}
    assert labels(store, "group")["a1"] is None  # a column of nothing else empties, too
    path = manifest(tmp_path, "id\tpath\tsaid\tseconds\na1\ta1.wav\tHello, you.\t1\n")
    assert run("relabel", store, path, "--columns", "text=said") == 0
    assert labels(store, "text")["a1"] == "Hello, you."
    assert "said" not in open_store(store).utterances.column_names
    bare = manifest(tmp_path, "utt\ttext\tsaid\na1\t-\tBye.\n")
    assert relabel(store, bare, columns={"id": "utt", "text": "said"}).changed == {"given_text": 1, "text": 1}
    assert labels(store, "text")["a1"] == "Bye."
    for columns, message in (({"text": "x"}, "has no column 'x'"), ({"end": "said"}, "end is not chosen here")):
        with pytest.raises(UsageError, match=message):
            relabel(store, bare, columns={"id": "utt", **columns})
    with pytest.raises(UsageError, match="rename those of a table in memory"):
        relabel(store, pa.table({"id": ["a1"]}), columns={"text": "said"})


def test_ids_that_are_not_there_are_named_and_a_manifest_of_another_corpus_is_refused(
    store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("relabel", store, manifest(tmp_path, "id\tgroup\na1\tG1\nz1\tG1\nz2\tG2\n")) == 0
    out = capsys.readouterr().out
    assert "1 of 8 utterances found in the manifest" in out
    assert "group: 1 changed\n  a1: 'g1' → 'G1'" in out
    assert "2 ids of the manifest are not in the store: 'z1', 'z2'" in out
    assert "what was replaced is in history/0001.parquet" in out
    before = contents(store)
    for text, message in (
        ("id\tgroup\nz1\tG1\n", "none of its ids is in .*; name utterances as it does, like 'a0'"),
        ("id\tgroup\na1\tG1\nb1\tG1\na1\tG2\n", "'a1' stands 2 times; keep one"),
        ("id\tgroup\na1\tG1\n\tG2\n", "row 2 has no id"),
        ("name\tgroup\na1\tG1\n", "no column 'path'"),
    ):
        with pytest.raises(InputError, match=message):
            relabel(store, manifest(tmp_path, text))
    with pytest.raises(InputError, match="not a voxstrata store"):
        relabel(tmp_path, manifest(tmp_path, "id\tgroup\na1\tG1\n"))
    assert contents(store) == before


def test_json_has_the_whole_report(store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("relabel", store, manifest(tmp_path, "id\tgroup\na1\tG1\n"), "--json") == 0
    report = json.loads(capsys.readouterr().out)
    assert report["changed"] == {"group": 1}
    assert report["examples"] == {"group": [["a1", "g1", "G1"]]}


# --- kills and other runs ---


class Killed(BaseException):
    """A process that ends: nothing catches it."""


def kill_at(monkeypatch: pytest.MonkeyPatch, write: int) -> None:
    """End the process in its `write`-th write of a file, with half of it written."""
    count, whole = 0, Files.write

    def cut(self: Files, name: str, *parts: Any) -> None:
        nonlocal count
        count += 1
        if count == write:
            assert self.local is not None
            partial = self.local / f"{name}.partial"
            partial.parent.mkdir(exist_ok=True)
            partial.write_bytes(b"".join(parts)[:100])
            raise Killed
        whole(self, name, *parts)

    monkeypatch.setattr(Files, "write", cut)


@pytest.mark.parametrize("write", [1, 2])
def test_a_kill_at_any_write_leaves_the_old_labels_and_the_same_command_goes_on(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: int
) -> None:
    relabel(store, pa.table({"id": ["a0"], "group": ["first"]}))
    before = open_store(store).utterances
    path = manifest(tmp_path, "id\tgroup\na1\tG1\nb0\tG0\n")
    with monkeypatch.context() as patch:
        kill_at(patch, write)
        with pytest.raises(Killed):
            relabel(store, path)
    assert open_store(store).utterances == before
    assert open_store(store).about["relabelled"] == 1
    # a change of another kind meanwhile takes the place of the one that never counted
    if write == 2:
        assert relabel(store, pa.table({"id": ["a3"], "speaker": ["s"]})).record == "history/0002.parquet"
        assert pq.read_table(store / "history/0002.parquet")["column"].to_pylist() == ["speaker"]
    assert relabel(store, path).changed == {"group": 2}
    assert labels(store, "group")["b0"] == "G0"
    assert sorted(p.name for p in (store / "history").glob("*.parquet"))[-1] == f"000{write + 1}.parquet"


def test_a_store_that_is_being_written_is_left_alone(store: Path, tmp_path: Path) -> None:
    with Files(store).lock(), pytest.raises(InputError, match=r"another run .* is writing this store"):
        relabel(store, manifest(tmp_path, "id\tgroup\na1\tG1\n"))
    assert labels(store, "group")["a1"] == "g1"


# --- extraction that goes on after a relabel ---


@pytest.fixture(scope="module")
def speech(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A manifest of two languages, so two units."""
    root = tmp_path_factory.mktemp("speech")
    rows = ["id\tpath\tlanguage\tgroup\ttext\tspeaker"]
    for i in range(3):
        for language in ("en", "es"):
            soundfile.write(root / f"{language}{i}.wav", sound(0.4 + 0.2 * i, i), 16_000)
            rows.append(f"{language}-{i}\t{language}{i}.wav\t{language}\tg{i}\ttext {i}\t")
    (root / "speech.tsv").write_text("\n".join(rows), encoding="utf-8")
    return root / "speech.tsv"


class StopAfterFirst(Reporter):
    def progress(self, progress: Progress) -> None:
        if progress.stage == "extracting" and progress.done == 1:
            raise Killed


SPEC = StoreSpec("final")
CHANGED = {"en-1": ("de", "G1", "ein Text", "s1")}  # so that it would be in a third unit


def corrected(speech: Path) -> Path:
    lines = speech.read_text(encoding="utf-8").replace(
        "en-1\ten1.wav\ten\tg1\ttext 1\t", "en-1\ten1.wav\tde\tG1\tein Text\ts1"
    )
    path = speech.parent / "corrected.tsv"
    path.write_text(lines, encoding="utf-8")
    return path


@pytest.mark.parametrize("begun", [True, False], ids=["unfinished", "finished"])
@pytest.mark.parametrize("resume_with", ["first", "corrected"])
def test_after_a_relabel_either_manifest_resumes_and_the_new_labels_stay(
    speech: Path, tiny_model: Path, tmp_path: Path, begun: bool, resume_with: str, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, store, new = tmp_path / "whole.zarr", tmp_path / "s.zarr", corrected(speech)
    extract(speech, tiny_model, whole, SPEC)
    relabel(whole, new)
    if begun:
        with pytest.raises(Killed):
            extract(speech, tiny_model, store, SPEC, reporter=StopAfterFirst())
    else:
        extract(speech, tiny_model, store, SPEC)
    assert relabel(store, new).changed == {"language": 1, "group": 1, "text": 1, "speaker": 1}
    report = extract(speech if resume_with == "first" else new, tiny_model, store, SPEC)
    assert report.units == 2
    assert report.failed == 0
    columns = ("language", "group", "text", "speaker")
    assert tuple(labels(store, column)["en-1"] for column in columns) == CHANGED["en-1"]
    assert run("info", store) == 0
    assert "relabelled       changes: 1; what they replaced is in" in capsys.readouterr().out
    assert open_store(store).complete
    kept = {name: data for name, data in contents(store).items() if not name.startswith("history/")}
    assert kept == {name: data for name, data in contents(whole).items() if not name.startswith("history/")}


def test_a_resume_with_other_labels_says_how_to_change_them(speech: Path, tiny_model: Path, tmp_path: Path) -> None:
    store, new = tmp_path / "s.zarr", corrected(speech)
    extract(speech, tiny_model, store, SPEC)
    with pytest.raises(InputError, match=r"language of 'en-1' is 'en' there, 'de' here: `voxstrata relabel .*s.zarr "):
        extract(new, tiny_model, store, SPEC)
    relabel(store, new)
    third = tmp_path / "third.tsv"
    third.write_text(new.read_text(encoding="utf-8").replace("ein Text", "noch ein Text"), encoding="utf-8")
    table = read_corpus(third).table
    with pytest.raises(InputError, match=r"of 'en-1' is .* there, .* here: `voxstrata relabel"):
        extract(Corpus(speech.parent, table), tiny_model, store, SPEC)


# --- results made before a relabel ---


def test_a_folder_of_similarities_takes_the_new_labels_without_comparing_again(store: Path, tmp_path: Path) -> None:
    folder = tmp_path / "pairs"

    def compare() -> Any:
        opened, heard = open_store(store), Heard()
        x, y = (select(opened, ids=[f"{letter}{i}" for i in range(4)]) for letter in "ab")
        return similarity(x, y, "final", folder, top=2, reporter=heard)

    assert compare().pairs == 16
    before = contents(folder)
    relabel(store, pa.table({"id": ["b1", "b2"], "group": ["g2", "g1"]}))
    report = compare()
    assert report.pairs == 0
    assert report.merged
    after = read_similarity(folder)
    assert dict(zip(after.y["id"].to_pylist(), after.y["group"].to_pylist(), strict=True)) == {
        "b0": "g0", "b1": "g2", "b2": "g1", "b3": "g3",
    }  # fmt: skip
    changed = {name for name, data in contents(folder).items() if before[name] != data}
    assert changed == {"columns.parquet"}


@pytest.mark.parametrize("write", [1, 2, 3])
def test_a_kill_while_labels_are_taken_leaves_no_finished_result_with_old_ones(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: int
) -> None:
    folder = tmp_path / "pairs"

    def compare() -> Any:
        x, y = (select(open_store(store), ids=[f"{letter}{i}" for i in range(4)]) for letter in "ab")
        return similarity(x, y, "final", folder, top=2)

    compare()
    relabel(store, pa.table({"id": ["b1", "a2"], "group": ["B1", "A2"]}))
    with monkeypatch.context() as patch:
        kill_at(patch, write)
        with pytest.raises(Killed):
            compare()
    with pytest.raises(InputError, match="has not finished here"):
        read_similarity(folder)
    compare()
    found = read_similarity(folder)
    assert found.y["group"].to_pylist() == ["g0", "B1", "g2", "g3"]
    assert found.x["group"].to_pylist() == ["g0", "g1", "A2", "g3"]


def test_tables_of_retrieval_say_how_often_the_store_was_relabelled(
    store: Path, tmp_path: Path, make_corpus: Callable[..., Path]
) -> None:
    from voxstrata.studies.retrieve.measure import RetrievalOptions, retrieve

    options = RetrievalOptions(bootstrap=0)
    assert "relabelled" not in (retrieve(open_store(store), options=options).store or {})
    relabel(store, pa.table({"id": ["b1"], "group": ["B1"]}))
    assert (retrieve(open_store(store), options=options).store or {})["relabelled"] == 1
