"""What `convert` writes is what the store holds, as each format's own library reads it; a kill leaves nothing half."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb
import kaldiio
import numpy as np
import pandas
import polars
import pyarrow.parquet as pq
import pytest
import soundfile
from conftest import Heard, sound
from safetensors import safe_open
from test_cli import run
from test_store import contents

from voxstrata.base.errors import InputError, UsageError
from voxstrata.base.folders import new_folder
from voxstrata.engine import Runtime, extract
from voxstrata.handover import formats
from voxstrata.handover.converting import convert
from voxstrata.handover.formats import FORMS
from voxstrata.store import EmbeddingStore, StoreSpec, open_store

OUTPUTS = ("layer_01", "final")
Read = Callable[[Path, str], dict[str, np.ndarray]]


@pytest.fixture(scope="module")
def store(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> EmbeddingStore:
    """Eight utterances in two languages and of none, with texts and a column of the user's; one that cannot be read."""
    root = tmp_path_factory.mktemp("corpus")
    lines = ["id\tpath\tlanguage\tgroup\ttext\tspeaker"]
    for i in range(8):
        soundfile.write(root / f"{i}.wav", sound(0.35 + 0.2 * i, i), 16_000)
        language = ("en", "es", "")[i % 3]
        text = ("Where is it?", "¿Dónde está?", "")[i % 3]
        lines.append(f"{language or 'x'}-{i}\t{i}.wav\t{language}\tg{i // 2}\t{text}\tAnna B.")
    (root / "bad.wav").write_text("not audio")
    lines.append("bad\tbad.wav\ten\t\t\t")
    (root / "m.tsv").write_text("\n".join(lines), encoding="utf-8")
    extract(root / "m.tsv", tiny_model, root / "s.zarr", StoreSpec(OUTPUTS), Runtime(unit_megabytes=0.01))
    return open_store(root / "s.zarr")


@pytest.fixture(scope="module")
def done(store: EmbeddingStore) -> list[str]:
    return [row["id"] for row in store.utterances.to_pylist() if row["status"] == "done"]


# --- each format, read by its own library ---


def by_frame(rows: list[tuple[Any, ...]], dtype: str = "float16") -> dict[str, np.ndarray]:
    """Rows of id, frame, vector in any order as arrays by id."""
    found: dict[str, dict[int, Any]] = {}
    for name, frame, vector in rows:
        found.setdefault(name, {})[frame] = vector
    return {name: np.array([f[k] for k in range(len(f))], dtype) for name, f in found.items()}


def with_duckdb(folder: Path, output: str) -> dict[str, np.ndarray]:
    return by_frame(duckdb.sql(f"select id, frame, {output} from '{folder}/**/frames.parquet'").fetchall())


def with_polars(folder: Path, output: str) -> dict[str, np.ndarray]:
    scanned = polars.scan_parquet(folder / "**" / "frames.parquet").select("id", "frame", output)
    return by_frame(scanned.collect().rows())


def with_pandas(folder: Path, output: str) -> dict[str, np.ndarray]:
    frames = pandas.concat(pandas.read_parquet(f) for f in sorted(folder.rglob("frames.parquet")))
    return {name: np.stack(part.sort_values("frame")[output].to_list()) for name, part in frames.groupby("id")}


def with_lance(folder: Path, output: str) -> dict[str, np.ndarray]:
    import lance

    found: dict[str, np.ndarray] = {}
    for path in sorted(folder.rglob("frames.lance")):
        table = lance.dataset(path).to_table(columns=["id", "frame", output])
        found |= by_frame(list(zip(*(column.to_pylist() for column in table.columns), strict=True)))
    return found


def with_numpy(folder: Path, output: str) -> dict[str, np.ndarray]:
    found = {}
    for file in sorted(folder.rglob(f"{output}.npy")):
        rows = np.load(file, mmap_mode="r")
        assert isinstance(rows, np.memmap)
        for u in pq.read_table(file.with_name("utterances.parquet")).to_pylist():
            found[u["id"]] = np.array(rows[u["row_start"] : u["row_start"] + u["row_count"]])
    return found


def with_safetensors(folder: Path, output: str) -> dict[str, np.ndarray]:
    found = {}
    for table in sorted(folder.rglob("utterances.parquet")):
        for u in pq.read_table(table).to_pylist():
            with safe_open(table.with_name(f"{output}-{u['shard']:05d}.safetensors"), "np") as file:
                found[u["id"]] = file.get_tensor(u["id"])
    return found


def with_kaldiio(folder: Path, output: str) -> dict[str, np.ndarray]:
    scps = sorted(folder.rglob(f"{output}/feats.scp")) or sorted(folder.rglob("feats.scp"))
    return {name: matrix for scp in scps for name, matrix in kaldiio.load_scp(str(scp)).items()}


def with_datasets(folder: Path, output: str) -> dict[str, np.ndarray]:
    import datasets

    found = {}
    for name in datasets.get_dataset_config_names(str(folder)):
        read = datasets.load_dataset(str(folder), name, split="train", cache_dir=str(folder.parent / "cache"))
        for row in read.with_format("numpy", dtype=np.float16):
            found[str(row["id"])] = row[output]
    return found


READERS: list[tuple[str, Read]] = [
    ("parquet", with_duckdb),
    ("parquet", with_polars),
    ("parquet", with_pandas),
    ("lance", with_lance),
    ("npy", with_numpy),
    ("safetensors", with_safetensors),
    ("kaldi", with_kaldiio),
    ("hf", with_datasets),
]
EACH = pytest.mark.parametrize(("to", "read"), READERS, ids=[read.__name__ for _, read in READERS])


@pytest.fixture(params=[15_000])
def in_several_runs(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """At most so many bytes at once: 117 frames of both outputs, of 424."""
    monkeypatch.setattr(formats, "RUN_BYTES", request.param)
    monkeypatch.setattr(formats, "SHARD_BYTES", request.param)


def need(to: str) -> None:
    if (package := FORMS[to].package) is not None:
        pytest.importorskip(package)
    if to == "hf":
        pytest.importorskip("datasets")


@EACH
@pytest.mark.parametrize("by_language", [False, True])
@pytest.mark.usefixtures("in_several_runs")
def test_frames_are_those_of_the_store(
    store: EmbeddingStore, done: list[str], tmp_path: Path, to: str, read: Read, by_language: bool
) -> None:
    need(to)
    report = convert(store, tmp_path / "out", to, by_language=by_language)
    assert (report.utterances, report.left_out) == (8, 1)
    for output in OUTPUTS:
        found = read(tmp_path / "out", output)
        assert sorted(found) == sorted(done)
        for name, frames in found.items():
            expected = store.frames(name, output)
            assert frames.dtype == ("float32" if to == "kaldi" else "float16")
            np.testing.assert_array_equal(frames, expected)
    assert report.rows == sum(len(store.frames(name, "final")) for name in done)
    assert report.files == sorted(contents(tmp_path / "out"))
    assert report.size_bytes == sum(map(len, contents(tmp_path / "out").values()))


def pooled_by_duckdb(folder: Path) -> dict[str, Any]:
    return dict(duckdb.sql(f"select id, final from '{folder}/utterances.parquet'").fetchall())


def pooled_by_lance(folder: Path) -> dict[str, Any]:
    import lance

    return {row["id"]: row["final"] for row in lance.dataset(folder / "utterances.lance").to_table().to_pylist()}


def pooled_by_numpy(folder: Path) -> dict[str, Any]:
    ids = pq.read_table(folder / "utterances.parquet")["id"].to_pylist()
    return dict(zip(ids, np.load(folder / "final.npy", mmap_mode="r"), strict=True))


def pooled_by_kaldiio(folder: Path) -> dict[str, Any]:
    return dict(kaldiio.load_scp(str(folder / "pooled.scp")))


def pooled_by_datasets(folder: Path) -> dict[str, Any]:
    import datasets

    read = datasets.load_dataset(str(folder), split="train", cache_dir=str(folder.parent / "cache"))
    return {row["id"]: row["final"] for row in read}


@pytest.mark.parametrize(
    ("to", "read"),
    [
        ("parquet", pooled_by_duckdb),
        ("lance", pooled_by_lance),
        ("npy", pooled_by_numpy),
        ("safetensors", lambda folder: with_safetensors(folder, "final")),
        ("kaldi", pooled_by_kaldiio),
        ("hf", pooled_by_datasets),
    ],
)
@pytest.mark.parametrize("in_several_runs", [400], indirect=True)  # three vectors
@pytest.mark.usefixtures("in_several_runs")
def test_pooled_states_are_those_of_the_store(
    store: EmbeddingStore, done: list[str], tmp_path: Path, to: str, read: Callable[[Path], dict[str, Any]]
) -> None:
    need(to)
    convert(store, tmp_path / "out", to, "final", pooled=True)
    found = read(tmp_path / "out")
    assert sorted(found) == sorted(done)
    for name, vector in found.items():
        np.testing.assert_array_equal(np.array(vector, np.float32), store.pooled("final", [store.index(name)])[0])


def test_a_pooled_store_gives_what_it_holds(store: EmbeddingStore, tiny_model: Path, tmp_path: Path) -> None:
    corpus = Path(store.files.root).parent / "m.tsv"
    extract(corpus, tiny_model, tmp_path / "p.zarr", StoreSpec("final", pool="mean"))
    report = convert(tmp_path / "p.zarr", tmp_path / "out", "npy")
    assert (report.pooled, report.rows) == (True, 8)
    pooled = open_store(tmp_path / "p.zarr")
    expected = pooled.pooled("final", np.flatnonzero(pooled.status == 1))
    np.testing.assert_array_equal(np.load(tmp_path / "out" / "final.npy"), expected)


# --- what is known of the utterances ---


@pytest.mark.parametrize("to", FORMS)
def test_metadata_go_along(store: EmbeddingStore, done: list[str], tmp_path: Path, to: str) -> None:
    need(to)
    convert(store, tmp_path / "out", to, "final")
    about = json.loads((tmp_path / "out" / "voxstrata.json").read_text(encoding="utf-8"))
    assert about["store"] == store.about
    assert (about["outputs"], about["pooled"], about["seconds_per_row"]) == (["final"], False, 0.02)
    file = next((tmp_path / "out").glob("data/*.parquet" if to == "hf" else "utterances.parquet"))
    assert json.loads(pq.read_schema(file).metadata[b"voxstrata"]) == about
    kept = ["id", "language", "group", "text", "speaker", "path", "seconds", "row_count"]
    here, there = ({r["id"]: r for r in t.select(kept).to_pylist()} for t in (pq.read_table(file), store.utterances))
    assert here == {name: there[name] for name in done}


def test_a_row_of_parquet_says_of_whom_it_is(store: EmbeddingStore, tmp_path: Path) -> None:
    """And the table of utterances finds an utterance's rows without reading the others'."""
    convert(store, tmp_path / "out", "parquet", "final")
    frames, utterances = f"'{tmp_path}/out/frames.parquet'", f"'{tmp_path}/out/utterances.parquet'"
    counted = duckdb.sql(f"select language, count(*) from {frames} group by language").fetchall()
    expected: dict[str | None, int] = {}
    for row in store.utterances.to_pylist():
        expected[row["language"]] = expected.get(row["language"], 0) + row["row_count"]
    assert dict(counted) == expected
    query = f"select row_start, row_count from {utterances} where id = 'es-4'"
    ((start, count),) = duckdb.sql(query).fetchall()
    rows = pq.read_table(tmp_path / "out" / "frames.parquet")["final"].to_pylist()[start : start + count]
    np.testing.assert_array_equal(np.array(rows, np.float16), store.frames("es-4", "final"))


def test_folders_of_languages_are_partitions(store: EmbeddingStore, tmp_path: Path) -> None:
    convert(store, tmp_path / "out", "parquet", "final", by_language=True)
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        "language=__HIVE_DEFAULT_PARTITION__", "language=en", "language=es", "voxstrata.json",
    ]  # fmt: skip
    read = f"read_parquet('{tmp_path}/out/*/utterances.parquet', hive_partitioning = true)"
    by_duckdb = dict(duckdb.sql(f"select id, language from {read}").fetchall())
    by_polars = dict(
        polars.scan_parquet(tmp_path / "out" / "*" / "utterances.parquet", hive_partitioning=True)
        .select("id", "language").collect().rows()
    )  # fmt: skip
    expected = {r["id"]: r["language"] for r in store.utterances.to_pylist() if r["status"] == "done"}
    assert by_duckdb == by_polars == expected


def test_some_languages_and_outputs_are_taken(store: EmbeddingStore, tmp_path: Path) -> None:
    report = convert(store, tmp_path / "out", "safetensors", "final", languages="es")
    assert report.files == ["final-00000.safetensors", "utterances.parquet", "voxstrata.json"]
    assert set(with_safetensors(tmp_path / "out", "final")) == {"es-1", "es-4", "es-7"}
    assert report.left_out == 0


@pytest.mark.parametrize(("umask", "file", "place"), [(0o022, 0o644, 0o755), (0o077, 0o600, 0o700)])
def test_others_may_read_what_the_umask_lets_them(
    store: EmbeddingStore, tmp_path: Path, umask: int, file: int, place: int
) -> None:
    """The library writes its files for their owner alone, and so is a temporary folder made."""
    before = os.umask(umask)
    try:
        convert(store, tmp_path / "out", "safetensors", "final", by_language=True)
    finally:
        os.umask(before)
    made = [tmp_path / "out", *(tmp_path / "out").rglob("*")]
    assert {path.stat().st_mode & 0o777 for path in made if path.is_file()} == {file}
    assert {path.stat().st_mode & 0o777 for path in made if path.is_dir()} == {place}


def test_kaldi_gets_a_data_folder(store: EmbeddingStore, tmp_path: Path) -> None:
    convert(store, tmp_path / "out", "kaldi", "final", languages="en,es")
    lines = {
        name: dict(line.split(" ", 1) for line in (tmp_path / "out" / name).read_text("utf-8").splitlines())
        for name in ("feats.scp", "text", "utt2spk", "spk2utt", "utt2lang", "utt2num_frames", "utt2dur")
    }
    assert list(lines["feats.scp"]) == sorted(["en-0", "en-3", "en-6", "es-1", "es-4", "es-7"])
    assert lines["text"]["es-4"] == "¿Dónde está?"
    assert lines["utt2spk"]["en-0"] == "Anna_B."
    assert lines["spk2utt"] == {"Anna_B.": "en-0 en-3 en-6 es-1 es-4 es-7"}
    assert lines["utt2lang"]["en-3"] == "en"
    assert lines["utt2num_frames"]["en-3"] == str(len(store.frames("en-3", "final")))
    assert lines["utt2dur"]["en-3"] == "0.95"


def test_kaldi_ids_have_no_blanks(tiny_model: Path, make_corpus: Callable[..., Path], tmp_path: Path) -> None:
    extract(make_corpus({"a b": 0.3, "c": 0.4}), tiny_model, tmp_path / "s.zarr", StoreSpec("final"))
    convert(tmp_path / "s.zarr", tmp_path / "out", "kaldi")
    store = open_store(tmp_path / "s.zarr")
    np.testing.assert_array_equal(with_kaldiio(tmp_path / "out", "final")["a_b"], store.frames("a b", "final"))
    names = pq.read_table(tmp_path / "out" / "utterances.parquet").select(["id", "kaldi_id"]).to_pylist()
    assert {row["id"]: row["kaldi_id"] for row in names} == {"a b": "a_b", "c": "c"}
    extract(make_corpus({"a b": 0.3, "a_b": 0.4}), tiny_model, tmp_path / "t.zarr", StoreSpec("final"))
    with pytest.raises(InputError, match="two ids are 'a_b' there"):
        convert(tmp_path / "t.zarr", tmp_path / "twice", "kaldi")
    assert not (tmp_path / "twice").exists()


# --- bounded memory, whole or not at all ---


@pytest.mark.parametrize("to", FORMS)
def test_no_run_is_larger_than_it_may_be(
    store: EmbeddingStore, tmp_path: Path, to: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    need(to)
    limit, longest = 80 * 32 * 2, int(store.length.max())  # 80 rows of one output
    monkeypatch.setattr(formats, "RUN_BYTES", limit)
    monkeypatch.setattr(formats, "SHARD_BYTES", limit)
    opened, rows = open_store(store.files.root), []
    read = opened.ragged

    def ragged(output: str, indices: Any) -> Any:
        found = read(output, indices)
        rows.append((len(found[0]), len(indices)))
        return found

    monkeypatch.setattr(opened, "ragged", ragged)
    convert(opened, tmp_path / "out", to, "final")
    assert sum(n for n, _ in rows) == store.length.sum()
    assert max(n for n, _ in rows) == longest > 80
    assert all(n <= 80 for n, utterances in rows if utterances > 1)
    assert any(utterances > 1 for _, utterances in rows)


@pytest.mark.parametrize(("to", "by_language"), [*((to, False) for to in FORMS), ("kaldi", True), ("lance", True)])
def test_an_earlier_conversion_is_replaced_and_nothing_else(
    store: EmbeddingStore, tmp_path: Path, to: str, by_language: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    need(to)
    out = tmp_path / "out"
    for pooled in (True, False):
        convert(store, out, to, pooled=pooled, by_language=by_language, overwrite=not pooled)
    before = contents(out)
    folder = max((path.parent for path in out.rglob("*") if path.is_file()), key=lambda p: len(p.parts))  # the deepest
    for mine in (folder / "notes.txt", folder / "mine.npy", folder / "mine"):
        mine.mkdir() if mine.name == "mine" else mine.write_text("mine")
        with pytest.raises(InputError, match=rf"something else \({mine.relative_to(out)}\), which is not overwritten"):
            convert(store, out, "npy", "final", overwrite=True)
        mine.rmdir() if mine.name == "mine" else mine.unlink()
    assert contents(out) == before
    assert run("convert", store.files.root, "-o", out, "--to", "npy", "--outputs", "final") == 3
    assert "exists already" in capsys.readouterr().err
    assert run("convert", store.files.root, "-o", out, "--to", "npy", "--outputs", "final", "--overwrite") == 0
    assert sorted(p.name for p in out.iterdir()) == ["final.npy", "utterances.parquet", "voxstrata.json"]
    assert [p.name for p in tmp_path.iterdir()] == ["out"]
    (out / "voxstrata.json").unlink()
    with pytest.raises(InputError, match="holds something else"):
        convert(store, out, "npy", overwrite=True)


KILLED = """
import os, signal, sys
from voxstrata.handover import formats, share
from voxstrata.handover.converting import convert
formats.RUN_BYTES = formats.SHARD_BYTES = 4_000
runs = share.Share.runs
def killed(self, limit):
    for k, run in enumerate(runs(self, limit)):
        if k == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        yield run
share.Share.runs = killed
convert(sys.argv[1], sys.argv[2], sys.argv[3])
"""


@pytest.mark.parametrize("to", ["parquet", "hf"])
def test_a_killed_conversion_leaves_nothing_that_the_next_does_not_remove(
    store: EmbeddingStore, tmp_path: Path, to: str
) -> None:
    convert(store, tmp_path / "whole", to)
    desk = tmp_path / "desk"
    desk.mkdir()
    command = [sys.executable, "-c", KILLED, store.files.root, str(desk / "out"), to]
    assert subprocess.run(command, check=False).returncode == -signal.SIGKILL
    (left,) = desk.iterdir()
    assert left.name.startswith(".out.")
    assert contents(left)
    (desk / ".other.abcd1234.partial").mkdir()  # another's
    convert(store, desk / "out", to)
    assert sorted(p.name for p in desk.iterdir()) == [".other.abcd1234.partial", "out"]
    assert contents(desk / "out") == contents(tmp_path / "whole")


def test_a_run_that_goes_on_is_not_swept_away(tmp_path: Path) -> None:
    def two_at_once() -> None:
        with new_folder(tmp_path / "out") as mine:
            (mine / "file").write_text("late")
            with new_folder(tmp_path / "out") as other:
                (other / "file").write_text("first")
            assert (mine / "file").read_text() == "late"

    with pytest.raises(OSError, match="not empty"):
        two_at_once()
    assert (tmp_path / "out" / "file").read_text() == "first"
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_an_error_leaves_nothing(store: EmbeddingStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(np.lib.format, "write_array_header_1_0", fail)
    with pytest.raises(OSError, match="no space"):
        convert(store, tmp_path / "out", "npy")
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_is_refused_before_the_work(
    store: EmbeddingStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("")
    root = Path(store.files.root)
    refused: list[tuple[type[Exception], str, tuple[Any, ...], dict[str, Any]]] = [
        (InputError, "exists already", (tmp_path / "full", "npy"), {}),
        (UsageError, "unknown format 'h5'; known: parquet, npy", (tmp_path / "out", "h5"), {}),
        (UsageError, "unknown output 'layer_02'", (tmp_path / "out", "npy", "layer_02"), {}),
        (UsageError, "unknown language 'fr'; known: en, es", (tmp_path / "out", "npy"), {"languages": "fr"}),
        (UsageError, "inside the store", (root / "out", "npy"), {}),
    ]
    for error, message, args, options in refused:
        with pytest.raises(error, match=message):
            convert(store, *args, **options)
    monkeypatch.setattr("voxstrata.handover.converting.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"lance is not installed; pip install 'voxstrata\[lance\]'"):
        convert(store, tmp_path / "out", "lance")
    assert not (tmp_path / "out").exists()
    assert not (root / "out").exists()


def test_the_command_says_what_it_wrote(
    store: EmbeddingStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = store.files.root
    assert run("convert", root, "-o", tmp_path / "a", "--to", "npy", "--outputs", "final", "--json") == 0
    out, err = capsys.readouterr()
    about = json.loads(out)
    assert about["files"] == ["final.npy", "utterances.parquet", "voxstrata.json"]
    assert (about["to"], about["utterances"], about["left_out"]) == ("npy", 8, 1)
    assert err == f"{root}: 1 utterance is failed and takes no part\n"
    assert run("convert", root, "-o", tmp_path / "b", "--to", "parquet", "--pooled", "--by-language") == 0
    assert "pooled states of 8 utterances (layer_01, final)" in capsys.readouterr().out
    assert run("convert", root, "-o", tmp_path / "b", "--to", "parquet") == 3
    assert run("convert", root, "-o", tmp_path / "c", "--to", "parquet", "--languages", "fr") == 2
    assert run("convert", root, "-o", tmp_path / "c", "--to", "h5") == 2


def test_progress_is_told(store: EmbeddingStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(formats, "RUN_BYTES", 15_000)
    heard = Heard()
    convert(store, tmp_path / "out", "npy", by_language=True, reporter=heard)
    assert {p.total for p in heard.heard} == {8}
    assert [p.done for p in heard.heard] == sorted({p.done for p in heard.heard})
    assert len(heard.heard) > 3
    assert heard.heard[-1].share == 1
