"""Files of strangers: what never ends, what unpacks without bound, graphs that are not ours, text that is markup."""

from __future__ import annotations

import gzip
import io
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tarfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from stores import Utterance, make_store
from test_cli import run

from voxstrata.audio.decode import probe
from voxstrata.base import opening, parquet
from voxstrata.base.errors import AudioError, InputError
from voxstrata.base.folders import new_folder, scratch_folder
from voxstrata.base.result import Result
from voxstrata.base.tables import TextTable
from voxstrata.corpus import read_corpus
from voxstrata.corpus.rows import read_table
from voxstrata.encoders import card as layout
from voxstrata.encoders.card import open_model
from voxstrata.encoders.silence import BucketSilence, Silence

ENDLESS = pytest.mark.timeout(120, func_only=True)  # what is read without end would take longer


# ---- regular files alone


def put(path: Path, kind: str) -> Path:
    """Something that is no regular file."""
    path.unlink(missing_ok=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    if kind == "FIFO":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "folder":
        path.mkdir()
    else:
        at = os.open(path.parent, os.O_RDONLY)  # the names of sockets are short
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(f"/proc/self/fd/{at}/{path.name}")
        os.close(at)
    return path


KINDS = ("FIFO", "device", "folder", "socket")


@ENDLESS
@pytest.mark.parametrize("kind", KINDS)
def test_only_regular_files_are_read(kind: str, tmp_path: Path) -> None:
    path = put(tmp_path / "x", kind)
    for read in (opening.read_regular, opening.open_regular, opening.open_unpacked, opening.read_json_file):
        with pytest.raises(InputError, match=f"x: is a {kind}.*, not a regular file"):
            read(path)
    with pytest.raises(InputError, match=kind):
        parquet.read_parquet_table(path)
    with pytest.raises(AudioError):
        probe(path)


@ENDLESS
@pytest.mark.parametrize("kind", ["FIFO", "device", "socket"])
@pytest.mark.parametrize("name", ["m.tsv", "m.csv.gz", "m.jsonl", "m.parquet", "m.tar", "m", "d/en/dev.tsv", "d/a.tar"])
def test_a_corpus_that_is_no_regular_file_is_refused(name: str, kind: str, tmp_path: Path) -> None:
    put(tmp_path / name, kind)
    with pytest.raises(InputError, match=r"not a regular file|no audio file in it"):
        read_corpus(tmp_path / name.split("/")[0])


@ENDLESS
@pytest.mark.parametrize("kind", ["FIFO", "device"])
def test_no_file_of_a_command_is_waited_for(
    kind: str, tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = make_store(tmp_path / "s.zarr", {n: Utterance(np.eye(4, dtype="f4"), "en", "g") for n in "ab"})
    bad, path = put(tmp_path / "bad.tsv", kind), tmp_path / "s.zarr"
    commands = [
        ["similarity", path, "--x-ids", bad, "-o", tmp_path / "o"], ["words", bad, tiny_model, "-o", tmp_path / "o"],
        ["relabel", path, bad], ["export", bad, "-o", tmp_path / "o"], ["plan", bad, tiny_model],
    ]  # fmt: skip
    for command in commands:
        assert run(*command) in (2, 3), command
    for name in (
        "zarr.json",
        "plan.json",
        "utterances.parquet",
        "frames/final/zarr.json",
        "start/zarr.json",
        "start/c/0",
    ):
        copy = tmp_path / "copy.zarr"
        shutil.copytree(path, copy)
        put(copy / name, kind)
        assert run("retrieve", copy, "--outputs", "final", "-o", tmp_path / "o") == 3, name
        shutil.rmtree(copy)
    for name in layout.MODEL_FILES:
        model = tmp_path / "model"
        shutil.copytree(tiny_model, model)
        put(model / name, kind)
        assert run("info", model) == 3, name
        shutil.rmtree(model)
    assert "Traceback" not in capsys.readouterr().err
    assert len(store) == 2


@ENDLESS
def test_a_link_to_itself_and_folders_in_a_circle_end(tmp_path: Path) -> None:
    (tmp_path / "m.tsv").symlink_to(tmp_path / "m.tsv")
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "b").symlink_to(tmp_path / "a")
    (tmp_path / "a" / "c").symlink_to(tmp_path)
    with pytest.raises((InputError, OSError)):
        read_corpus(tmp_path / "m.tsv")
    with pytest.raises(InputError, match="no audio file"):
        read_corpus(tmp_path)
    assert run("report", tmp_path) == 3


# ---- no more than a file bears out


def repeated(path: Path, value: str, rows: int) -> Path:
    """Parquet in which one value is written once and meant often."""
    column = pa.DictionaryArray.from_arrays(pa.array(np.zeros(rows, np.int32)), [value])
    pq.write_table(pa.table({"path": column, "id": column}), path, compression="zstd", row_group_size=rows)
    assert path.stat().st_size < 500_000
    return path


@ENDLESS
@pytest.mark.parametrize(("value", "rows"), [("a.wav", 30_000_000), ("a" * 1_000_000, 1_000_000)])
def test_a_parquet_table_cannot_unpack_to_far_more_than_it_is(value: str, rows: int, tmp_path: Path) -> None:
    path = repeated(tmp_path / "m.parquet", value, rows)
    for read in (read_table, read_corpus, parquet.read_parquet_table):
        with pytest.raises(InputError, match="would unpack to"):
            read(path)


def test_what_is_large_in_batches_is_bounded_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet, "_DICTIONARIES", 0)
    with pytest.raises(InputError, match="would unpack to more than"):
        parquet.read_parquet_table(repeated(tmp_path / "m.parquet", "a" * 100_000, 10_000))


def test_tables_that_are_what_they_say_are_read_as_pyarrow_reads_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    n = 40_000
    table = pa.table(
        {
            "id": [f"{i}" for i in range(n)], "language": ["en", None] * (n // 2), "seconds": np.arange(n) / 7,
            "kind": pa.array(["a", "b"] * (n // 2)).dictionary_encode(), "list": [["x"], []] * (n // 2),
            "bytes": [b"\xff"] * n, "large": pa.array(["l"] * n, pa.large_string()),
        }
    ).replace_schema_metadata({"key": "value"})  # fmt: skip
    for columns in (table.column_names, ["id", "kind"], ["seconds"], []):
        pq.write_table(table.select(columns), tmp_path / "t.parquet", row_group_size=7_000)
        for largest in (1 << 24, 0):
            monkeypatch.setattr(parquet, "_DICTIONARIES", largest)
            wanted = pq.read_table(tmp_path / "t.parquet")
            found = parquet.read_parquet_table(tmp_path / "t.parquet")
            assert found.equals(wanted)
            assert found.schema.equals(wanted.schema, check_metadata=True)
            data = io.BytesIO((tmp_path / "t.parquet").read_bytes())
            assert parquet.read_parquet_table(data, columns[:1]).equals(wanted.select(columns[:1]))


@ENDLESS
@pytest.mark.parametrize("name", ["m.tsv.gz", "cuts.jsonl.gz"])
def test_a_gzipped_table_cannot_unpack_to_far_more_than_it_is(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    with gzip.open(path, "wb", 9) as file:
        for _ in range(200):
            file.write(bytes([32]) * (1 << 20))
    for read in (read_table, read_corpus):
        with pytest.raises(InputError, match=r"unpacks to more than|not a table"):
            read(path)


def npz(folder: Path, member: bytes, compress: bool = False) -> Path:
    import zipfile

    with zipfile.ZipFile(folder / "a.npz", "w", zipfile.ZIP_DEFLATED if compress else zipfile.ZIP_STORED) as packed:
        packed.writestr("a.npy", member)
    return folder / "a.npz"


def member(shape: str, descr: str = "'<f8'", data: bytes = b"") -> bytes:
    header = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}}}".ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode() + data


@ENDLESS
@pytest.mark.parametrize(
    "held",
    [
        member("(1000000000000,)"), member("(-1,)"), member("(1,)", "'|O'", b"\x80\x04N."),
        member("(2,)", data=bytes(8)),
        member("((((1", data=bytes(8)), b"", b"\x93NUMPY\x09\x00", member("(1,)" + "[" * 5000),
    ],
)  # fmt: skip
def test_arrays_are_no_larger_than_their_file(held: bytes, tmp_path: Path) -> None:
    with npz(tmp_path, held).open("rb") as file, pytest.raises(ValueError, match="a "):
        opening.load_arrays(file)


@ENDLESS
def test_an_array_cannot_unpack_to_far_more_than_it_is(tmp_path: Path) -> None:
    size = 1 << 28
    path = npz(tmp_path, member(f"({size},)", "'|u1'", bytes(size)), True)
    with path.open("rb") as file, pytest.raises(ValueError, match="unpacks to"):
        opening.load_arrays(file)


def test_json_of_any_depth_and_length_is_a_value_error() -> None:
    for text in ("[" * 100_000, "9" * 5000, '{"a": ' * 50_000, "\x00", "", "{"):
        with pytest.raises(ValueError):  # noqa: PT011 - the messages are the library's
            opening.parse_json(text)


# ---- a model's graphs are those that `export` writes


Change = Callable[[Any], None]


@pytest.fixture
def model(tiny_model: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_model, tmp_path / "model"))


def sign(model: Path, **changes: Any) -> None:
    """The card with other values, and with the hashes of the files as they are: what a stranger can write."""
    d = json.loads((model / layout.CARD).read_text())
    d |= changes
    names = [p.name for p in model.iterdir() if p.name != layout.CARD]
    d["files"] = {n: layout._sha256_file(model / n) for n in names} if "files" not in changes else changes["files"]
    d.pop("sha256", None)
    (model / layout.CARD).write_text(json.dumps(d | {"sha256": layout._sha256_card(d)}))


def edit(model: Path, name: str, change: Change) -> None:
    onnx = pytest.importorskip("onnx")
    graph = onnx.load(model / name, load_external_data=False)
    change(graph)
    (model / name).write_bytes(graph.SerializeToString())
    sign(model)


def loop(m: Any) -> None:
    from onnx import TensorProto, helper

    none, yes = (helper.make_tensor_value_info(n, TensorProto.BOOL, []) for n in ("in", "out"))
    count = helper.make_tensor_value_info("i", TensorProto.INT64, [])
    body = helper.make_graph([helper.make_node("Identity", ["in"], ["out"])], "endless", [count, none], [yes])
    m.graph.node.append(helper.make_node("Loop", ["", "yes"], [], body=body))


def function(m: Any) -> None:
    from onnx import helper

    m.functions.append(helper.make_function("mine", "f", [], [], [], [helper.make_opsetid("", 20)]))


def hidden(m: Any) -> None:
    from onnx import helper

    m.graph.node[0].attribute.append(helper.make_attribute("body", helper.make_graph([], "g", [], [])))


def elsewhere(location: str) -> Change:
    def change(m: Any) -> None:
        tensor = next(t for t in m.graph.initializer if t.external_data)
        next(e for e in tensor.external_data if e.key == "location").value = location

    return change


def beyond(m: Any) -> None:
    tensor = next(t for t in m.graph.initializer if t.external_data)
    next(e for e in tensor.external_data if e.key == "offset").value = str(1 << 60)


def larger(m: Any) -> None:
    next(t for t in m.graph.initializer if t.external_data).dims[:] = [1 << 40]


def many(m: Any) -> None:
    from onnx import helper

    m.graph.node.extend(helper.make_node("Add", ["log_mel"] * 2, [f"n{i}"]) for i in range(2000))


CHANGES: dict[str, Change] = {
    "loop": loop,
    "function": function,
    "graph in an attribute": hidden,
    "unknown operator": lambda m: setattr(m.graph.node[0], "op_type", "Tile"),
    "another domain": lambda m: setattr(m.graph.node[0], "domain", "mine"),
    "weights of another file": elsewhere("other"),
    "weights above": elsewhere("../../secret"),
    "weights at the root": elsewhere("/etc/passwd"),
    "weights beyond the end": beyond,
    "weights of another size": larger,
    "another output": lambda m: setattr(m.graph.output[0], "name", "other"),
    "another width": lambda m: setattr(m.graph.output[0].type.tensor_type.shape.dim[2], "dim_value", 7),
    "another input": lambda m: setattr(m.graph.input[0].type.tensor_type.shape.dim[1], "dim_value", 128),
    "no card": lambda m: m.ClearField("metadata_props"),
    "training": lambda m: m.training_info.add(),
    "more nodes": many,
}


@pytest.mark.parametrize("what", CHANGES)
def test_a_graph_that_no_export_writes_is_refused_before_it_is_loaded(what: str, model: Path) -> None:
    for name in (layout.CPU, layout.CACHED):
        edit(model, name, lambda m: None)  # as it is, it is read
    assert open_model(model).card.layers == 3
    edit(model, layout.CPU, CHANGES[what])
    with pytest.raises(InputError, match=rf"{layout.CPU}: .*export the model again"):
        open_model(model)


@pytest.mark.parametrize(
    "changes",
    [
        {"layers": 10**6}, {"layers": 4}, {"layers": "3"}, {"layers": True}, {"layers": -1}, {"layers": None},
        {"d_model": 10**9}, {"d_model": 64}, {"heads": 0}, {"heads": 5}, {"n_mels": 10**6}, {"n_mels": 128},
        {"dtype": "float64"}, {"dtype": []}, {"final_norm": 1}, {"outputs": []}, {"outputs": "final"},
        {"outputs": ["layer_99"]}, {"outputs": ["final", "layer_00"]}, {"outputs": [1]}, {"outputs": None},
        {"silence": []}, {"silence": {}}, {"validation": {}}, {"validation": None}, {"tools": 1}, {"revision": 1},
        {"checkpoint": {}}, {"opset": 10**18}, {"files": {}}, {"files": []}, {"files": {"../x": "0"}}, {"more": 1},
        {"weights_sha256": 1}, {"format": 10**30}, {"checkpoint": "a\nerror: b"}, {"revision": "a\nb"},
    ],
    ids=str,
)  # fmt: skip
def test_a_card_is_of_its_graphs_and_of_sizes_that_can_be(changes: dict[str, Any], model: Path) -> None:
    sign(model, **changes)
    with pytest.raises(InputError, match=r"model"):
        open_model(model)


@pytest.mark.parametrize("kind", [None, "", "pure\nnote: all is well", 1])
def test_a_silence_cache_of_an_unknown_kind_is_refused(kind: object, model: Path) -> None:
    sign(model, silence=open_model(model).card.silence | {"kind": kind})
    with pytest.raises(InputError, match="silence is of the kind"):
        open_model(model)


def test_a_silence_cache_is_its_models(model: Path) -> None:
    own = open_model(model).silence()
    assert isinstance(own, BucketSilence)
    key = np.repeat(own.key[0], 50, axis=2)[:, :, :1425]
    whole = Silence(75, key, key, np.zeros(key.shape[:3], "i2"))  # one for all lengths
    whole.save(model / layout.SILENCE)
    sign(model)
    assert open_model(model).silence().for_frames(300).bias == pytest.approx(np.log(1200))
    bad: list[Silence | BucketSilence] = [
        replace(whole, key=whole.key[:1]), replace(whole, value=whole.value[..., :1]), replace(whole, first=-5),
        replace(whole, key=whole.key.astype("f8")), replace(whole, key=whole.key.ravel()), replace(whole, first=1600),
        replace(whole, key=whole.key[:1], value=whole.value[:1], group=whole.group[:1]),
        replace(whole, group=whole.group + np.int16(30_000)), replace(whole, group=whole.group - np.int16(300)),
        replace(whole, group=whole.group.astype("f4")), replace(whole, group=whole.group[0]),
        replace(own, key=own.key[:1]), replace(own, value=own.value[..., :1]), replace(own, key=own.key.ravel()),
        replace(own, bias=own.bias[..., :1]), replace(own, bias=own.bias.astype("f8")),
        replace(own, key=own.key.astype("f4"), value=own.value.astype("f4")),
        replace(own, key=own.key[:, :1], value=own.value[:, :1], bias=own.bias[:, :1]),
        replace(own, buckets=own.buckets[::-1]), replace(own, buckets=own.buckets + 1200),
        replace(own, buckets=own.buckets - 1000), replace(own, buckets=own.buckets.astype("f4")),
        replace(own, buckets=own.buckets[:0], key=own.key[:0], value=own.value[:0], bias=own.bias[:0]),
    ]  # fmt: skip
    for silence in bad:
        silence.save(model / layout.SILENCE)
        sign(model)
        with pytest.raises(InputError, match="silence"):
            open_model(model).silence()


def test_a_file_of_a_model_that_leads_out_of_it_must_still_be_what_export_wrote(model: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(b"secret")
    (model / layout.CPU).unlink()
    (model / layout.CPU).symlink_to(secret)
    with pytest.raises(InputError, match="SHA-256 differs"):
        open_model(model)
    sign(model)
    with pytest.raises(InputError, match="no graph that"):
        open_model(model)


@ENDLESS
@pytest.mark.parametrize(
    "key", ["encoder_layers", "d_model", "encoder_ffn_dim", "max_source_positions", "num_mel_bins"]
)
def test_a_checkpoint_of_absurd_sizes_is_refused_before_anything_is_made_of_them(
    key: str, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    pytest.importorskip("torch")
    from voxstrata.exporters.checkpoint import load_checkpoint

    folder = Path(shutil.copytree(tiny_checkpoint, tmp_path / "checkpoint"))
    config = json.loads((folder / "config.json").read_text())
    for value in (10**6, 10**18, -1, 0):
        (folder / "config.json").write_text(json.dumps(config | {key: value}))
        with pytest.raises(InputError):
            load_checkpoint(str(folder))


# ---- packed corpora that lead elsewhere


def test_members_of_a_tar_are_read_from_the_tar_whatever_they_are_called(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "s.tar", "w") as tar:
        for name in ("/etc/passwd.wav", "../../up.wav", "plain.wav"):
            about = tarfile.TarInfo(name)
            about.size = 4
            tar.addfile(about, io.BytesIO(b"RIFF"))
        link = tarfile.TarInfo("link.wav")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
        fifo = tarfile.TarInfo("fifo.wav")
        fifo.type = tarfile.FIFOTYPE
        tar.addfile(fifo)
    corpus = read_corpus(tmp_path / "s.tar")
    assert len(corpus) == 3
    assert set(corpus.table["path"].to_pylist()) == {"s.tar"}


# ---- what killed commands leave


KILLED = """
import os, sys
from pathlib import Path
from voxstrata.base.folders import new_folder, scratch_folder
with new_folder(Path(sys.argv[1])) as folder, scratch_folder("test") as scratch:
    (folder / "large").write_bytes(bytes(1000))
    (scratch / "large").write_bytes(bytes(1000))
    os.kill(os.getpid(), 9)
"""


def test_what_killed_commands_left_is_removed_by_the_next_that_makes_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    environment = os.environ | {"TMPDIR": str(temporary)}
    for _ in range(2):
        subprocess.run([sys.executable, "-c", KILLED, str(tmp_path / "a")], env=environment)
    assert len([p for p in tmp_path.iterdir() if p.name.startswith(".")]) == 2 - 1  # the second removed the first's
    assert len(list(temporary.iterdir())) == 1
    monkeypatch.setattr("tempfile.tempdir", str(temporary))
    foreign = temporary / "voxstrata-scratch-mine"
    foreign.write_text("no folder of ours")
    with new_folder(tmp_path / "a") as folder, scratch_folder("test") as scratch:
        with new_folder(tmp_path / "d"), scratch_folder("test"):  # those in use stay
            assert folder.is_dir()
            assert scratch.is_dir()
        (folder / "x").write_text("x")
    assert {p.name for p in tmp_path.iterdir()} == {"tmp", "a", "d"}
    assert list(temporary.iterdir()) == [foreign]


def test_temporary_folders_are_made_by_what_clears_up_after_kills() -> None:
    root = Path(__file__).parents[1]
    files = [*(root / "src").rglob("*.py"), *(root / "benchmarks").glob("*.py")]
    found = {p.name for p in files if re.search("TemporaryDirectory|mkdtemp", p.read_text(encoding="utf-8"))}
    # the helper itself, a script that measures the disk that it is told, and one within a folder of the helper's
    assert found == {"folders.py", "durable.py", "extraction_gpu.py"}


# ---- text that acts as markup


NASTY = "<script>x</script> a|b `c` [d](http://e) \"q' \n $\\frac{$"


@dataclass(frozen=True, repr=False)
class Nasty(Result):
    table: pa.Table
    command: ClassVar[str] = "nasty"
    title: ClassVar[str] = NASTY  # type: ignore[assignment]

    def tables(self) -> list[TextTable]:
        return [TextTable(NASTY, ["a", NASTY], [["x", NASTY]], NASTY)]

    def figures(self) -> dict[str, Any]:
        return {}


def test_text_of_strangers_is_no_markup() -> None:
    result = Nasty(pa.table({}))
    for html in (result._repr_html_(), result.tables()[0].to_html()):
        assert "<script" not in html
    markdown = result.to_markdown()
    assert "<script" not in markdown
    assert "](http" not in markdown
    assert "\x1b" not in markdown
    assert "\\x1b[31m" in TextTable("t", ["a"], [["\x1b[31mred\u202e"]]).to_markdown()
    table = result.tables()[0].to_markdown()
    assert len(table.splitlines()) == 3
    assert all(line.replace("\\|", "").count("|") == 3 for line in table.splitlines())
    assert table.count("`") == table.count("\\`") == 4


def test_dollars_in_labels_are_no_formulas(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    from voxstrata.base.figures import new_figure, set_title

    figure = new_figure(12, 9)
    ax = figure.subplots()
    ax.plot([0, 1], [0, 1], label=NASTY)
    ax.set_xticks([0, 1], [NASTY, "$a$"])
    ax.set_yticks([0, 1], ["$\\nothing$", "x_y"])
    ax.annotate(NASTY, (0.5, 0.5))
    sent = ax.annotate("\x1b[31mred\u202e", (0.2, 0.5))  # of which an SVG would be no XML any more
    ax.legend()
    set_title(figure, NASTY)
    figure.savefig(tmp_path / "a.svg", dpi=50)
    figure.savefig(tmp_path / "a.png", dpi=50)
    assert sent.get_text() == "\\x1b[31mred\\u202e"
    assert not any(t.get_parse_math() for t in figure.findobj(type(figure._suptitle)))
    assert "<script" not in (tmp_path / "a.svg").read_text()
