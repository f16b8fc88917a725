"""Promises of columns: a corpus and a plan made in columns are those that their definition gives row by row."""

from __future__ import annotations

import csv
import io
import math
import os
import warnings
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zarr
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from zarr.codecs import Crc32cCodec

from voxstrata.audio.decode import AudioInfo
from voxstrata.base import columns as columns_module
from voxstrata.base.errors import InputError
from voxstrata.corpus import Corpus, Probed, read_corpus
from voxstrata.corpus.ids import made_ids
from voxstrata.corpus.manifest import read_manifest
from voxstrata.corpus.rows import read_table
from voxstrata.corpus.table import Pack
from voxstrata.engine.budget import EncoderSize, Work
from voxstrata.store import Plan, StoreSpec, make_plan
from voxstrata.store.strings import string_chunk

SPEC = StoreSpec(tuple(f"layer_{k:02d}" for k in range(8)), dtype="float32")
D_MODEL, MEGABYTES, FILL = 4096, 16, 128  # units of 128 rows

LANGUAGES = st.sampled_from([None, "", "en", "é", "\U0001f600", "\uffee"])
# Whatever order strings may have: code points beyond 16 bits come after those that UTF-16 has in surrogates.
TEXT = st.text(st.sampled_from("ab/.~é\uffee\U0001f600"), min_size=1, max_size=4)


class Numbered(Pack):
    """Members that are their positions, but for those called "any"."""

    def source(self, member: str) -> Any:
        raise AssertionError("positions alone are asked for")

    def position(self, member: str) -> int | None:
        return None if member == "any" else int(member)


@st.composite
def corpora(draw: st.DrawFn) -> tuple[Corpus, Probed]:
    ids = draw(st.lists(TEXT, min_size=1, max_size=30, unique=True))
    n = len(ids)
    rows = {
        "path": draw(st.lists(st.sampled_from(["é.wav", "z.wav", "p", "q"]), min_size=n, max_size=n)),
        "language": draw(st.lists(LANGUAGES, min_size=n, max_size=n)),
        "offset": draw(st.lists(st.sampled_from([None, 0.0, 0.5, 2.0]), min_size=n, max_size=n)),
    }
    members = draw(st.lists(st.sampled_from(["any", "3", "20", "100"]), min_size=n, max_size=n))
    member = [m if path in ("p", "q") else None for m, path in zip(members, rows["path"], strict=True)]
    lengths = draw(st.lists(st.none() | st.integers(1, 300) | st.integers(1, 60_000), min_size=n, max_size=n))
    assume(any(lengths))
    segment = draw(st.lists(st.booleans(), min_size=n, max_size=n))
    infos = [None if s is None else AudioInfo(s, 16_000, s, 1, 44, 0, k) for s, k in zip(lengths, segment, strict=True)]
    failures = {i: f"/data/{rows['path'][i]}: no" for i, s in enumerate(lengths) if s is None}
    table = pa.table({"id": ids, **rows, "member": pa.array(member, pa.string())})
    table = table.set_column(3, "offset", pa.array(rows["offset"], pa.float64()))
    # however a table is cut into chunks
    cut = draw(st.integers(0, n))
    table = pa.concat_tables([table.slice(0, cut), table.slice(cut)])
    return Corpus(Path("/data"), table, {"p": Numbered(), "q": Numbered()}), Probed.of(infos, failures)


@settings(max_examples=150, deadline=None)
@given(corpora())
def test_a_plan_is_the_one_that_is_defined_row_by_row(given: tuple[Corpus, Probed]) -> None:
    corpus, probed = given
    rows, infos = corpus.table.to_pylist(), probed.infos()

    def key(i: int) -> tuple[Any, ...]:
        row, info = rows[i], infos[i]
        position = None if row["member"] in (None, "any") else int(row["member"])
        segment = isinstance(info, AudioInfo) and info.is_segment
        place = (row["path"], position or 0, row["offset"] or 0.0) if segment or position is not None else ()
        frames = math.ceil(info.samples / 320) if info else 0
        return info is None, row["language"] or "", place, -frames, row["id"]

    order = sorted(range(len(rows)), key=key)
    unit, used, previous, expected, begins = -1, 0, None, [], []
    for n, i in enumerate(order):
        failed, language, _, negative, _ = key(i)
        if failed:
            expected.append((rows[i]["id"], 0, 0))
            continue
        if unit < 0 or language != previous or used - negative > FILL:
            unit, used, previous = unit + 1, 0, language
            begins.append(n)
        expected.append((rows[i]["id"], (unit, used), -negative))
        used -= negative
    plan = make_plan(corpus, probed, SPEC, D_MODEL, unit_megabytes=MEGABYTES)
    found = zip(plan.utterances["id"].to_pylist(), plan.start.tolist(), plan.length.tolist(), strict=True)
    places = [(name, at and (at[0] * plan.unit_rows + at[1]), length) for name, at, length in expected]
    assert list(found) == places
    assert plan.unit_begin.tolist() == [*begins, sum(info is not None for info in infos)]
    assert plan.probed.infos() == [infos[i] for i in order]
    assert [plan.rows_used(u) for u in range(plan.units)] == plan.used.tolist()


@settings(max_examples=40, deadline=None)
@given(corpora())
def test_work_is_that_of_all_windows(given: tuple[Corpus, Probed]) -> None:
    plan = make_plan(*given, replace(SPEC, pool="mean"), D_MODEL)
    plan = replace(plan, samples=plan.samples * 97)  # some beyond 30 s
    size, context = EncoderSize(3, 64, 128, 80, 5), plan.spec.context
    windows = [w for u in range(len(plan.utterances)) for w in plan.windows(u)]
    assert Work.of(plan, size) == Work(
        len(windows),
        sum(context.frames_computed(w.frames) for w in windows),
        sum(size.window_flops(context.frames_computed(w.frames), context, w.frames) for w in windows),
    )


def old_plan(**more: pa.Array) -> Plan:
    table = {
        "id": ["a", "é", "z/1", "b"],
        "path": ["a.wav", "b.wav", "c.wav", "d.wav"],
        "language": ["en", None, "en", "de"],
        "group": ["1", "1", None, "2"],
        "text": ['x"y', "ü", None, "t"],
        "speaker": pa.nulls(4, pa.string()),
        **more,
    }
    infos = [
        AudioInfo(32_000, 16_000, 32_000, 1, 64_044),
        AudioInfo(16_001, 44_100, 44_104, 2, 99),
        AudioInfo(400, 16_000, 400, 1, 844, 160, True),
        None,
    ]
    probed = Probed.of(infos, {3: "/data/d.wav: no such file"})
    return make_plan(Corpus(Path("/data"), pa.table(table)), probed, StoreSpec(("final",)), 512, unit_megabytes=1)


PARTS = {
    "offset": pa.array([0.0, None, 0.01, None], pa.float64()),
    "duration": pa.array([None, None, 0.025, None], pa.float64()),
    "channel": pa.array([None, 1, None, None], pa.int32()),
}


@pytest.mark.parametrize(
    ("parts", "fingerprint"),
    [  # which voxstrata 0.1.0 gave (of parts, commit 3781fe3)
        ({}, "d9082d6b7d6128a4211faab07f51b6464ce1327343a88574dd503b5c670928be"),
        (PARTS, "9536de4aaf973185ad3b4ec5b90929ca6aa2201061591974fa201276118c66d1"),
    ],
)
def test_a_plan_knows_the_fingerprint_that_an_older_version_gave_it(
    parts: dict[str, pa.Array], fingerprint: str
) -> None:
    plan, other = old_plan(**parts), old_plan(**parts, text=pa.array(["x", "ü", None, "t"]))
    assert plan.is_that_of(fingerprint)
    assert not other.is_that_of(fingerprint)
    assert plan.is_that_of(plan.fingerprint())
    assert not other.is_that_of(plan.fingerprint())


def test_a_fingerprint_does_not_depend_on_how_columns_are_kept() -> None:
    plan = old_plan(**PARTS)
    table = plan.corpus.table
    for cut in range(5):
        pieces = [table.slice(0, cut), table.slice(cut)]
        garbage = pa.chunked_array([pa.array(["qq", "x"]).slice(1), *table["id"].chunks]).slice(1)
        chunked = pa.concat_tables(pieces).set_column(0, "id", garbage)
        assert replace(plan, corpus=replace(plan.corpus, table=chunked)).fingerprint() == plan.fingerprint()
    # bytes that lie behind a null
    seen = pa.array(["hidden" if text is None else text for text in table["text"].to_pylist()])
    text = pa.Array.from_buffers(pa.string(), 4, [pa.py_buffer(bytes([0b1011])), *seen.buffers()[1:]])
    assert text.to_pylist() == table["text"].to_pylist()
    hidden = table.set_column(table.column_names.index("text"), "text", text)
    assert replace(plan, corpus=replace(plan.corpus, table=hidden)).fingerprint() == plan.fingerprint()


NAMES = st.sampled_from(["a", "b.wav", ".", "..", "", "x.y.z", ".c", "d.", "é.flac"])
PATHS = st.lists(
    st.lists(NAMES, min_size=1, max_size=4).map("/".join),
    min_size=1,
    max_size=8,
)  # fmt: skip
NUMBERS = st.none() | st.sampled_from([0.0, 0.5, 12.3456785, 1e-7])


@settings(max_examples=150, deadline=None)
@given(PATHS, st.data())
def test_ids_are_those_that_are_defined_row_by_row(paths: list[str], data: st.DataObject) -> None:
    n = len(paths)
    given = data.draw(st.lists(st.none() | st.just("own"), min_size=n, max_size=n))
    offset, duration = (data.draw(st.lists(NUMBERS, min_size=n, max_size=n)) for _ in range(2))
    channel = data.draw(st.lists(st.none() | st.integers(0, 2), min_size=n, max_size=n))

    def stem(path: str) -> str:
        root, suffix = os.path.splitext(path)
        return path if suffix == "." else root

    def seconds(value: float) -> str:
        return f"{value:.6f}".rstrip("0").rstrip(".")

    shared = [s for s, count in Counter(map(stem, set(paths))).items() if count > 1]
    expected = []
    for name, path, o, d, c in zip(given, paths, offset, duration, channel, strict=True):
        if name is None:
            name = path if stem(path) in shared else stem(path)
            if paths.count(path) > 1:
                if o is not None or d is not None:
                    name += f"@{seconds(o or 0.0)}" + (f"-{seconds((o or 0.0) + d)}" if d is not None else "")
                name += "" if c is None else f"#{c}"
        expected.append(name)
    kinds = {"id": pa.string(), "offset": pa.float64(), "duration": pa.float64(), "channel": pa.int32()}
    values = {"id": given, "offset": offset, "duration": duration, "channel": channel}
    columns = {name: pa.chunked_array([pa.array(values[name], kind)]) for name, kind in kinds.items()}
    cut = data.draw(st.integers(0, n))
    columns["path"] = pa.chunked_array([pa.array(paths[:cut], pa.string()), pa.array(paths[cut:], pa.string())])
    assert made_ids(columns).to_pylist() == expected


@settings(max_examples=150, deadline=None)
@given(PATHS, st.booleans())
def test_paths_begin_at_the_folder_that_holds_all(
    tmp_path_factory: pytest.TempPathFactory, paths: list[str], absolute: bool
) -> None:
    folder = FOLDERS.setdefault("m", tmp_path_factory.mktemp("manifests"))
    if absolute:
        paths = [f"{folder.parent}/{path}" for path in paths]
    paths = [path or "x" for path in paths]
    whole = [os.path.normpath(os.path.join(folder, path)) for path in paths]
    whole = [path[1:] if path.startswith("//") else path for path in whole]  # the same place to Linux
    pq.write_table(pa.table({"path": paths, "id": [str(i) for i in range(len(paths))]}), folder / "m.parquet")
    corpus = read_manifest(folder / "m.parquet")
    assert [os.path.normpath(corpus.root / path) for path in corpus.table["path"].to_pylist()] == whole
    if all(path.startswith(f"{folder}/") for path in whole):
        assert corpus.root == folder
    else:
        assert str(corpus.root) == os.path.commonpath([os.path.dirname(path) for path in whole])


FOLDERS: dict[str, Path] = {}
CELL = st.text(st.sampled_from("a0 \"'\\é\u2028\x0b"), max_size=3)


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.lists(CELL, min_size=2, max_size=2), min_size=1, max_size=5),
    st.sampled_from(["\t", ","]),
    st.sampled_from(["\n", "\r\n", "\n\n"]),
    st.booleans(),
    st.sampled_from(["", "\ufeff"]),
)
def test_text_is_read_as_line_by_line(
    tmp_path_factory: pytest.TempPathFactory, rows: list[list[str]], delimiter: str, end: str, last: bool, mark: str
) -> None:
    folder = FOLDERS.setdefault("t", tmp_path_factory.mktemp("tables"))
    file = folder / ("t.tsv" if delimiter == "\t" else "t.csv")
    lines = [["path", "text"], *rows]
    file.write_bytes((mark + end.join(delimiter.join(line) for line in lines) + end * last).encode())
    text = file.read_bytes().decode("utf-8-sig")
    if delimiter == "\t":
        cut = [line.removesuffix("\r").split("\t") for line in text.split("\n")]
    else:
        try:
            cut = list(csv.reader(io.StringIO(text, newline=""), strict=True))
        except csv.Error:
            with pytest.raises(InputError):
                read_table(file)
            return
    cut = [row for row in cut if row not in ([], [""])]
    if any(len(row) != 2 for row in cut):
        with pytest.raises(InputError):
            read_table(file)
        return
    table = read_table(file)
    assert table.strings("text") == [row[1] or None for row in cut[1:]]
    assert table.strings("path") == [row[0] or None for row in cut[1:]]
    if len(cut) == len(text.removesuffix("\n").split("\n")):  # no line is blank, and none is inside of quotes
        assert [table.place(i) for i in range(len(table))] == [f"line {i + 2}" for i in range(len(cut) - 1)]


@pytest.mark.parametrize(
    ("values", "written"),
    [
        (pa.array([1.0, None, float("nan"), -0.0]), ["1", None, None, "0"]),
        (pa.array([1.5, 2.0, 1e300]), ["1.5", "2.0", "1e+300"]),
        (pa.array([1e300, 2.0]), [str(int(1e300)), "2"]),
        (pa.array([0.1], pa.float32()), [str(float(np.float32(0.1)))]),
        (pa.array([7, None], pa.int8()), ["7", None]),
        (pa.array(["", "x", None], pa.large_string()), [None, "x", None]),
        (pa.array(["b", "", "b"]).dictionary_encode(), ["b", None, "b"]),
        (pa.array([float("inf"), 1.0]), ["inf", "1.0"]),
    ],
)
def test_columns_of_parquet_are_strings_as_they_are_written(
    tmp_path: Path, values: pa.Array, written: list[str | None]
) -> None:
    pq.write_table(pa.table({"x": values}), tmp_path / "t.parquet")
    assert read_table(tmp_path / "t.parquet").strings("x") == written


@pytest.mark.parametrize(
    ("offsets", "read"),
    [
        (pa.array(["1e1", " 2 ", "1_0", None]), [10.0, 2.0, 10.0, None]),
        (pa.array(["0.1", "3", ""]), [0.1, 3.0, None]),
        (pa.array([1, 2, None], pa.int32()), [1.0, 2.0, None]),
        (pa.array([0.1, float("nan")], pa.float32()), [float(np.float32(0.1)), None]),
    ],
)
def test_times_are_numbers_as_python_reads_them(tmp_path: Path, offsets: pa.Array, read: list[float | None]) -> None:
    table = {"id": [str(i) for i in range(len(offsets))], "path": ["x.wav"] * len(offsets), "offset": offsets}
    pq.write_table(pa.table(table), tmp_path / "t.parquet")
    assert read_corpus(tmp_path / "t.parquet").table["offset"].to_pylist() == read


@pytest.mark.parametrize("bad", [pa.array([1.0, -1.0]), pa.array([1.0, float("inf")]), pa.array(["1", "nan"])])
def test_times_that_are_none_are_refused_with_their_row(tmp_path: Path, bad: pa.Array) -> None:
    pq.write_table(pa.table({"id": ["a", "b"], "path": ["x.wav"] * 2, "offset": bad}), tmp_path / "t.parquet")
    with pytest.raises(InputError, match=r"t\.parquet, row 2: offset '.*' is no time in a recording"):
        read_corpus(tmp_path / "t.parquet")


def test_columns_with_more_text_than_one_array_holds_are_taken_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    table = pa.table({"a": [f"{i}" * 5 for i in range(1000)], "b": np.arange(1000)})
    rows = rng.integers(0, 1000, 3000)
    whole = table.take(pa.array(rows))
    monkeypatch.setattr(columns_module, "_MOST_BYTES", 4000)
    found = columns_module.take_rows(table, rows)
    assert found.equals(whole)
    assert max(chunk.nbytes for chunk in found["a"].chunks) < 4000


@pytest.mark.parametrize("values", [["a"], ["", "äöü", "x" * 300, "\0"], [str(i) for i in range(1000)]])
def test_a_chunk_of_strings_is_as_zarr_writes_it(values: list[str]) -> None:
    files: dict[str, Any] = {}
    data = np.array(values, np.dtypes.StringDType())
    store = zarr.storage.MemoryStore(files)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that the type is no part of zarr 3 yet
        zarr.create_array(store, data=data, chunks=(len(values),), compressors=[Crc32cCodec()])
    cut = len(values) // 2
    column = pa.chunked_array([pa.array(["gone", *values[:cut]]).slice(1), pa.array(values[cut:])])
    assert b"".join(string_chunk(column)) == files["c/0"].to_bytes()
