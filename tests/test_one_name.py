"""What is one thing has one name, in options, JSON, Parquet and Python; and one of a thing is not called several."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from stores import Utterance, make_store
from test_cli import run

from voxstrata.base.result import Result
from voxstrata.corpus import Corpus
from voxstrata.encoders import Context, ModelFolder
from voxstrata.encoders.device import Device
from voxstrata.engine.model import SpeechModel
from voxstrata.handover.converting import convert
from voxstrata.retrieval.all_pairs import similarity
from voxstrata.retrieval.selection import select
from voxstrata.retrieval.similarities import seqsim
from voxstrata.store.relabel import relabel
from voxstrata.store.verify import verify
from voxstrata.studies.drift.result import DRIFT_SCHEMA, Drift
from voxstrata.studies.phonetics.folder import PhoneticsFolder
from voxstrata.studies.phonetics.pairs import DISTANCE_SCHEMA
from voxstrata.studies.phonetics.result import Phonetics
from voxstrata.studies.retrieve import Retrieval
from voxstrata.studies.words.result import WordComparison
from voxstrata.studies.words.table import WORDS_SCHEMA

SOURCE = Path(__file__).parents[1] / "src" / "voxstrata"


def schemas() -> Iterator[tuple[str, set[str]]]:
    """All that are named at the top of a module, and the strings in them; read, since importing all takes long."""
    for text in (path.read_text(encoding="utf-8") for path in sorted(SOURCE.rglob("*.py"))):
        for node in ast.parse(text).body if "_SCHEMA =" in text else ():
            if isinstance(node, ast.Assign) and (name := ast.unparse(node.targets[0])).endswith("_SCHEMA"):
                yield name, {str(part.value) for part in ast.walk(node.value) if isinstance(part, ast.Constant)}


def test_columns_of_results_have_the_names_that_docs_list() -> None:
    found = dict(schemas())
    assert {"WORDS_SCHEMA", "DISTANCE_SCHEMA", "DRIFT_SCHEMA", "BENCH_SCHEMA"} <= found.keys()
    assert {"source", "target"} <= found["WORDS_SCHEMA"] & found["DISTANCE_SCHEMA"]
    other = re.compile(r"mode|(source|target)_(language|word)|language_\w|[^xy]_language")
    assert {name: wrong for name, names in found.items() if (wrong := set(filter(other.fullmatch, names)))} == {}


def with_settings(table: pa.Table, kind: type[Result]) -> pa.Table:
    return table.replace_schema_metadata({kind.key: "{}"})


def saved(folder: Path, kind: type[Result], **tables: pa.Table) -> Result:
    """Tables of an earlier version, as the kind of result loads them."""
    for field, table in tables.items():
        pq.write_table(with_settings(table, kind), folder / kind.files[field])
    return kind.load(folder)


def test_tables_of_0_1_0_are_read_under_todays_names(tmp_path: Path) -> None:
    then = pa.Table.from_pylist([{"mode": "trimmed", "output": "final"}])
    assert saved(tmp_path, Drift, table=then).table.to_pylist() == [{"context": "trimmed", "output": "final"}]
    now = pa.Table.from_pylist([{"context": "padded"}], DRIFT_SCHEMA)
    assert saved(tmp_path, Drift, table=now).table.schema.names == DRIFT_SCHEMA.names

    pairs = {
        "kind": "synonyms",
        "language_a": "en",
        "form_a": "dog",
        "ipa_a": "dɒɡ",
        "language_b": "es",
        "form_b": "perro",
    }
    then = pa.Table.from_pylist([{"output": "final", "language_a": "en", "language_b": "es"}])
    words: Any = saved(tmp_path, WordComparison, table=then, pairs=pa.Table.from_pylist([pairs]))
    assert set(words.table.column_names) < set(WORDS_SCHEMA.names)
    assert words.table.to_pylist() == [{"output": "final", "source": "en", "target": "es"}]
    named = {"x_language": "en", "x_form": "dog", "x_ipa": "dɒɡ", "y_language": "es", "y_form": "perro"}
    assert words.pairs.to_pylist() == [{"kind": "synonyms", **named}]

    then = pa.Table.from_pylist([{"source_language": "en", "target_language": "es", "source": "a", "target": "b"}])
    (tmp_path / "distances.parquet").touch()
    phonetics = saved(tmp_path, Phonetics, table=then, ipa=pa.table({"id": ["a"]}))
    assert phonetics.table.to_pylist() == [{"source": "en", "target": "es", "query": "a", "candidate": "b"}]


@pytest.mark.parametrize("earlier", [False, True])
def test_distances_of_0_1_0_serve_as_todays_do(earlier: bool, tmp_path: Path) -> None:
    frames = np.ones((2, 4), np.float32)
    store = make_store(tmp_path / "s", {f"{x}{n}": Utterance(frames, x, str(n)) for x in ("en", "es") for n in (0, 1)})
    rows = [("en", "es", f"en{i}", f"es{j}", i == j, float(2 * i + j), None) for i in (0, 1) for j in (0, 1)]
    table = pa.table([pa.array(column) for column in zip(*rows, strict=True)], DISTANCE_SCHEMA.names).cast(
        DISTANCE_SCHEMA
    )
    if earlier:
        was = ["source_language", "target_language", "source", "target", *table.column_names[4:]]
        table = table.rename_columns(was)
    ipa = pa.table({"id": store.ids, "segments": [1] * 4, "voice": ["en"] * 4, "text": ["a"] * 4})
    for name, one in (("distances", table), ("ipa", ipa)):
        pq.write_table(with_settings(one, Phonetics), tmp_path / Phonetics.files[name])
    folder = PhoneticsFolder(str(tmp_path))
    en, es = select(store, "en"), select(store, "es")
    assert folder.distances(en, es, "distance").tolist() == [[0, 1], [2, 3]]
    assert folder.distances(es, en, "distance").tolist() == [[0, 2], [1, 3]]


def test_json_says_under_out_what_the_option_names(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rng = np.random.default_rng(0)
    utterances = {f"{x}{n}": Utterance(rng.random((6, 8)), x, str(n)) for x in ("en", "es") for n in range(4)}
    make_store(tmp_path / "s.zarr", utterances)
    commands: dict[str, tuple[object, ...]] = {
        "why": ("explain", tmp_path / "s.zarr", "en0", "es0"),
        "pairs": ("similarity", tmp_path / "s.zarr", "--outputs", "final", "--x", "en", "--y", "es"),
        "npy": ("convert", tmp_path / "s.zarr", "--to", "npy"),
        "report.html": ("report", tmp_path),
    }
    for name, command in commands.items():
        assert run(*command, "-o", tmp_path / name, "--json") == 0
        told = json.loads(capsys.readouterr().out)
        assert told["out"] == str(tmp_path / name)
        assert not told.keys() & {"results", "folder", "page"}


def test_what_public_functions_give_shows_itself_in_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    store = make_store(tmp_path / "s.zarr", {"a": Utterance(np.ones((2, 4)), "en"), "b": Utterance(np.ones((2, 4)))})
    english = select(store, "en")
    corpus = Corpus(Path("speech"), pa.table({"id": ["a", "b"], "path": ["a", "b"], "language": ["es", "en"]}))
    shown: list[tuple[object, str]] = [
        (store["a"], "<utterance a: en, 0.04 s, done>"),
        (english, "<Selection of s.zarr: 2 utterances of en>"),
        (english.frames("final"), "<frames of final, <Selection of s.zarr: 2 utterances of en>>"),
        (store.model, "<ModelCard made-up (Whisper), 1 layer, d=4, float32>"),
        (ModelFolder(Path("base"), store.model), "<ModelFolder base: made-up (Whisper), 1 layer, d=4, float32>"),
        (corpus, "<Corpus speech: 2 recordings, en, es>"),
        (Device("cuda:1"), "Device('cuda:1')"),
        (Context(), "Context(mode='bucketed', tail=50, pad='zero_waveform')"),
        (SpeechModel(Path("base"), store.model), "<SpeechModel base: made-up (Whisper), 1 layer, d=4, float32>"),
        (verify(tmp_path / "s.zarr"), "<VerifyReport s.zarr: sound>"),
        (similarity(english, None, "final", "pairs"), "<SimilarityReport pairs: 2 × 2 utterances>"),
        (convert(store, "made", "npy"), "<ConvertReport made: npy, 2 utterances>"),
        (english.ragged("final", 0, 2), "<Ragged of 2 utterances: 4 frames, d=4>"),
        (seqsim(english.ragged("final", 0, 2), english.ragged("final", 0, 1)), "<SeqSim of 2 × 1 utterance>"),
        (relabel(store, pa.table({"id": ["a"], "speaker": ["Ana"]})), "<RelabelReport s.zarr: changed speaker of 1>"),
    ]
    assert [repr(one) for one, _ in shown] == [text for _, text in shown]


def test_a_result_shows_itself_in_a_line_and_prints_its_tables(tmp_path: Path) -> None:
    class Told(Retrieval):
        title = "a checkpoint of a long name, bucketed,\non a store whose name goes on for more than the line has room"

    table = pa.table({"value": [1.0]})
    long = repr(Told(table))
    assert long.startswith("<Told a checkpoint of a long name, bucketed, on a store whose name goes")
    assert long.endswith("…>")
    assert 70 < len(long) <= 80
    Told.title = "base,\nbucketed"
    assert repr(Told(table)) == "<Told base, bucketed>"


def test_numbers_of_things_are_said_by_counted() -> None:
    """`{len(x)} things` is wrong of one thing. Right are shares of a whole ("of {len(x)} things"), and what is many."""
    many = {"bytes", "samples", "times"}
    wrong = []
    for path in sorted(SOURCE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            parts = node.values if isinstance(node, ast.JoinedStr) else []
            for before, number, text in zip([None, *parts], parts, parts[1:], strict=False):
                if (
                    not (isinstance(number, ast.FormattedValue) and isinstance(text, ast.Constant))
                    or number.format_spec
                ):
                    continue
                noun = re.match(r" (?!of )(?:[a-z-]+ ){0,2}?([a-z-]*[a-z]s)\b", str(text.value))
                share = isinstance(before, ast.Constant) and re.search(r"\bof (the )?$", str(before.value))
                counting = re.match(r"(len|sum|int|Counter)\(", ast.unparse(number.value))
                if noun and counting and not share and noun[1] not in many:
                    wrong.append(f"{path.relative_to(SOURCE)}:{number.lineno}: {ast.unparse(number.value)}{text.value}")
    assert wrong == []
