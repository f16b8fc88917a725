"""Promises of read_corpus() and probe_corpus(): what is read, in which order, and what is refused."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
from conftest import Heard

from voxstrata.audio.source import Source
from voxstrata.base.errors import InputError, UsageError
from voxstrata.corpus import COLUMNS, Corpus, probe_corpus, read_corpus

DATA = Path(__file__).parents[2] / "shared" / "data"

ROWS: list[dict[str, str | None]] = [
    {"id": "007", "path": "en/a.wav", "language": "en", "group": "g1", "text": 'He said "go".', "speaker": "01"},
    {"id": "b", "path": "fr/b.wav", "language": "fr", "group": "g1", "text": "Il a dit, « va ».", "speaker": None},
    {"id": "fr/c", "path": "fr/c.wav", "language": None, "group": None, "text": '"Quoted" whole', "speaker": None},
]


def touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def column(corpus: Corpus, name: str) -> list[str | None]:
    values: list[str | None] = corpus.table[name].to_pylist()
    return values


def tsv(rows: list[dict[str, str | None]], end: str = "\n") -> str:
    lines = [["seconds", *COLUMNS], *(["99", *(row[name] or "" for name in COLUMNS)] for row in rows)]
    return "".join("\t".join(line) + end for line in lines)


def csv_(rows: list[dict[str, str | None]]) -> str:
    def cell(value: str | None) -> str:
        return '"' + (value or "").replace('"', '""') + '"'

    return "\r\n".join([",".join(COLUMNS), *(",".join(cell(row[name]) for name in COLUMNS) for row in rows)])


def jsonl(rows: list[dict[str, str | None]]) -> str:
    return "\n".join(json.dumps({**row, "seconds": 99}) for row in rows) + "\n"


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("m.tsv", tsv(ROWS)),
        ("crlf.tsv", tsv(ROWS, "\r\n")),
        ("bom.tsv", "\ufeff" + tsv(ROWS)),
        ("UPPER.TSV", tsv(ROWS)),
        ("m.csv", csv_(ROWS)),
        ("bom.csv", "\ufeff" + csv_(ROWS)),
        ("m.jsonl", jsonl(ROWS)),
        ("bom.jsonl", "\ufeff" + jsonl(ROWS)),
    ],
)
def test_every_manifest_format_gives_the_same_table(tmp_path: Path, name: str, content: str) -> None:
    corpus = read_corpus(write(tmp_path / name, content))
    assert corpus.table.select(COLUMNS).schema == pa.schema([(column, pa.string()) for column in COLUMNS])
    assert corpus.table.select(COLUMNS).to_pylist() == ROWS
    assert corpus.root == tmp_path
    assert len(corpus) == 3
    assert corpus.recording(1).source.path == tmp_path / "fr" / "b.wav"


def test_a_parquet_manifest_gives_the_same_table(tmp_path: Path) -> None:
    table = pa.Table.from_pylist(ROWS).append_column("seconds", pa.array([9.0] * 3))
    table = table.set_column(2, "language", table["language"].dictionary_encode())
    pq.write_table(table, tmp_path / "m.parquet")
    assert read_corpus(tmp_path / "m.parquet").table.select(COLUMNS).to_pylist() == ROWS


def test_numbers_become_strings(tmp_path: Path) -> None:
    corpus = read_corpus(write(tmp_path / "m.jsonl", '{"path": "a.wav", "group": 12, "speaker": null}'))
    assert column(corpus, "group") == ["12"]
    pq.write_table(pa.table({"path": ["a.wav"], "group": [12]}), tmp_path / "m.parquet")
    assert column(read_corpus(tmp_path / "m.parquet"), "group") == ["12"]


def test_path_alone_is_enough_and_ids_come_from_it(tmp_path: Path) -> None:
    corpus = read_corpus(write(tmp_path / "m.tsv", "path\nx/./a.wav\nx/b.flac\nx/b.wav\n\nx/../c.v2.wav\n"))
    assert column(corpus, "path") == ["x/a.wav", "x/b.flac", "x/b.wav", "c.v2.wav"]
    assert column(corpus, "id") == ["x/a", "x/b.flac", "x/b.wav", "c.v2"]
    assert column(corpus, "text") == [None] * 4


def test_an_absolute_path_below_the_root_becomes_relative(tmp_path: Path) -> None:
    corpus = read_corpus(write(tmp_path / "m.tsv", f"path\n{tmp_path}/x/a.wav\n"))
    assert column(corpus, "path") == ["x/a.wav"]


def test_recordings_outside_the_manifests_folder_are_named_from_the_folder_that_holds_all(tmp_path: Path) -> None:
    (tmp_path / "lists").mkdir()
    lines = ["path", f"{tmp_path}/disk/en/a.wav", "../disk/en/b/a.wav", f"{tmp_path}/disk/es/a.wav"]
    corpus = read_corpus(write(tmp_path / "lists" / "m.tsv", "\n".join(lines)))
    assert corpus.root == tmp_path / "disk"
    assert column(corpus, "path") == ["en/a.wav", "en/b/a.wav", "es/a.wav"]
    assert column(corpus, "id") == ["en/a", "en/b/a", "es/a"]
    assert corpus.recording(1).source.path == tmp_path / "disk" / "en" / "b" / "a.wav"


def test_a_recording_elsewhere_changes_no_others_id(tmp_path: Path) -> None:
    home = tmp_path / "project" / "lists"
    home.mkdir(parents=True)
    inner = ["path", "en/a.wav", "es/a.wav"]
    for elsewhere, name in (("../other/b.wav", "../other/b"), (f"{tmp_path}/far/b.wav", "../../far/b")):
        corpus = read_corpus(write(home / "m.tsv", "\n".join([*inner, elsewhere])))
        assert column(corpus, "id") == ["en/a", "es/a", name]
    corpus = read_corpus(write(home / "m.tsv", "\n".join([*inner, "../other/b.wav", f"{tmp_path}/far/b.wav"])))
    assert column(corpus, "id") == ["en/a", "es/a", "../other/b", "../../far/b"]
    assert column(corpus, "path") == [
        "project/lists/en/a.wav",
        "project/lists/es/a.wav",
        "project/other/b.wav",
        "far/b.wav",
    ]
    assert corpus.recording(2).source.path == tmp_path / "project" / "other" / "b.wav"


def test_a_line_separator_inside_a_text_ends_no_row(tmp_path: Path) -> None:
    text = "one\u2028two\x0bthree\x85"
    corpus = read_corpus(write(tmp_path / "m.tsv", f"path\ttext\na.wav\t{text}\n"))
    assert column(corpus, "text") == [text]


def test_csv_texts_may_hold_line_breaks(tmp_path: Path) -> None:
    corpus = read_corpus(write(tmp_path / "m.csv", 'path,text\na.wav,"one\ntwo"\nb.wav,three\n'))
    assert column(corpus, "text") == ["one\ntwo", "three"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("m.tsv", "id\tfile\n1\ta.wav\n", r"no column 'path'; found: 'id', 'file'"),
        ("m.csv", "path;text\na.wav;x\n", r"no column 'path'; found: 'path;text'"),
        ("m.jsonl", '{"path": "a.wav"}\n{"file": "b.wav"}\n', r"line 2: no key 'path'; found: 'file'"),
        ("m.tsv", "path\tpath\na\tb\n", r"column 'path' stands twice"),
        ("m.tsv", "", r"is empty"),
        ("m.csv", "", r"is empty"),
        ("m.jsonl", "\n", r"has no rows"),
        ("m.tsv", "path\ttext\n", r"has no rows"),
        ("m.tsv", "path\ttext\na.wav\tx\n\tx\n", r"line 3: path is empty"),
        ("m.jsonl", '{"path": null}', r"line 1: path is empty"),
        ("m.tsv", "path\ttext\na.wav\tx\nb.wav\n", r"line 3: 1 field where 2 are expected"),
        ("m.csv", "path,text\na.wav,x,y\n", r"line 2: 3 fields where 2 are expected"),
        ("m.csv", 'path,text\na.wav,"x"y\n', r"line 2: .*quotes"),
        ("m.jsonl", '{"path": "a.wav"}\n{"path": \n', r"line 2: not JSON"),
        ("m.jsonl", '["a.wav"]\n', r"line 1: a list; write one JSON object per line"),
        ("m.jsonl", '{"path": "a.wav", "text": ["x"]}\n', r"line 1: text is \['x'\]; write a string"),
        ("m.jsonl", '{"path": "a.wav", "text": "\\ud800"}\n', r"line 1: text '\\ud800' is not valid Unicode"),
        ("m.csv", 'path,"te\nxt"\na.wav,x\n', r"the name of a column, 'te\\nxt', holds a line break"),
        (
            "m.csv",
            'path,language\na.wav,en\nb.wav,"en\nnote: all is well"\n',
            r"line 4: language 'en\\nnote.* a line break",
        ),
        ("m.jsonl", '{"path": "a.wav", "id": "a\\nerror: b"}', r"line 1: id 'a\\nerror: b' holds a line break"),
        ("m.tsv", b"path\ttext\na.wav\tcaf\xe9\n", r"not UTF-8: byte 0xe9 at offset 19 \(line 2\); re-save"),
        ("m.csv", "path,text\na.wav,x\n".encode("utf-16"), r"not UTF-8: byte 0xff at offset 0 \(line 1\)"),
        (
            "m.csv",
            'path,text\na.wav,"' + 200_000 * "x",
            r"line 2: a field of more than 131072 characters: .* never closed",
        ),
        ("m.parquet", b"not parquet at all", r"not a parquet table"),
        ("m.wav", b"", r"not a folder and not a manifest"),
    ],
)
def test_a_bad_manifest_names_file_place_and_fix(tmp_path: Path, name: str, content: str | bytes, message: str) -> None:
    with pytest.raises(InputError, match=rf"{name}.*{message}"):
        read_corpus(write(tmp_path / name, content))


def test_a_parquet_string_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    offsets = pa.py_buffer(np.array([0, 4], np.int32))  # Arrow does not look at the bytes
    text = pa.Array.from_buffers(pa.string(), 1, [None, offsets, pa.py_buffer(b"caf\xe9")])
    pq.write_table(pa.table({"path": ["a.wav"], "text": text}), tmp_path / "m.parquet")
    with pytest.raises(InputError, match=r"m\.parquet: not UTF-8: byte 0xe9 in the text b'caf\\xe9'; write it again"):
        read_corpus(tmp_path / "m.parquet")


def test_spaces_around_a_column_name_matter_in_no_format(tmp_path: Path) -> None:
    pq.write_table(pa.table({"n": [1], " path ": ["a.wav"], "text ": ["hello"]}), tmp_path / "m.parquet")
    write(tmp_path / "m.tsv", "n\t path \ttext \n1\ta.wav\thello\n")
    write(tmp_path / "m.csv", "n, path ,text \n1,a.wav,hello\n")
    for name in ("m.parquet", "m.tsv", "m.csv"):
        corpus = read_corpus(tmp_path / name)
        assert (column(corpus, "path"), column(corpus, "text")) == (["a.wav"], ["hello"])


def test_duplicate_ids_are_named_with_their_lines(tmp_path: Path) -> None:
    lines = ["id\tpath", "x\ta.wav", "y\tb.wav", "x\tc.wav", "b\td.wav", "\tb.flac"]
    with pytest.raises(InputError, match=r"duplicate ids: 'x' \(line 2, line 4\); give every row"):
        read_corpus(write(tmp_path / "m.tsv", "\n".join(lines)))
    many = ["path", *(f"{i}.wav" for i in range(8)), *(f"{i}.wav" for i in range(8))]
    with pytest.raises(InputError, match=r"'0' \(line 2, line 10\); .* and 3 more; give every row"):
        read_corpus(write(tmp_path / "m.tsv", "\n".join(many)))


def test_a_missing_source_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"gone\.tsv: no such file or folder"):
        read_corpus(tmp_path / "gone.tsv")


def test_a_folder_is_every_audio_file_below_it_sorted(tmp_path: Path) -> None:
    touch(
        tmp_path, "en/z.WAV", "en/a.flac", "pt-BR/x/b.mp3", "cmn_hans_cn/c.opus", "interviews/d.m4a",
        "wav/e.wav", "top.ogg", "en/notes.txt", "en/._a.flac", ".cache/f.wav", "en/twin.wav", "en/twin.flac",
    )  # fmt: skip
    corpus = read_corpus(tmp_path)
    assert [(row["id"], row["path"], row["language"]) for row in corpus.table.to_pylist()] == [
        ("cmn_hans_cn/c", "cmn_hans_cn/c.opus", "cmn_hans_cn"),
        ("en/a", "en/a.flac", "en"),
        ("en/twin.flac", "en/twin.flac", "en"),
        ("en/twin.wav", "en/twin.wav", "en"),
        ("en/z", "en/z.WAV", "en"),
        ("interviews/d", "interviews/d.m4a", None),
        ("pt-BR/x/b", "pt-BR/x/b.mp3", "pt-BR"),
        ("top", "top.ogg", None),
        ("wav/e", "wav/e.wav", None),
    ]


def test_links_are_followed_and_loops_end(tmp_path: Path) -> None:
    touch(tmp_path, "store/a.wav", "corpus/en/b.wav")
    os.symlink(tmp_path / "store", tmp_path / "corpus" / "fr")
    os.symlink(tmp_path / "corpus", tmp_path / "corpus" / "en" / "loop")
    assert column(read_corpus(tmp_path / "corpus"), "path") == ["en/b.wav", "fr/a.wav"]


def test_each_real_folder_and_file_comes_once(tmp_path: Path) -> None:
    touch(tmp_path, "corpus/b/x.wav", "corpus/z/y.wav", "far/deep/w.wav", "far/v.wav")
    corpus = tmp_path / "corpus"
    os.symlink(corpus / "z", corpus / "b" / "to_z")  # folders that lead to each other, and have places of their own
    os.symlink(corpus / "b", corpus / "z" / "to_b")
    os.symlink(corpus / "b" / "x.wav", corpus / "a.wav")
    os.symlink(tmp_path / "far", corpus / "one")
    os.symlink(tmp_path / "far" / "deep", corpus / "two")
    os.symlink(corpus, tmp_path / "far" / "back")
    os.symlink("/", corpus / "all")
    os.symlink(tmp_path / "far" / "deep" / "w.wav", tmp_path / "far" / "w.wav")
    os.symlink("self.wav", corpus / "self.wav")  # leads nowhere: it fails alone
    read = read_corpus(corpus)
    assert column(read, "path") == ["b/x.wav", "one/deep/w.wav", "one/v.wav", "self.wav", "z/y.wav"]
    assert "links to files that are there already are left out: a.wav, one/w.wav" in read.notes


def test_a_folder_without_audio_is_refused(tmp_path: Path) -> None:
    touch(tmp_path, "notes.txt")
    with pytest.raises(InputError, match=r"no audio file in it \(looked for .*\.wav"):
        read_corpus(tmp_path)
    (tmp_path / "zarr.json").write_text('{"attributes": {"voxstrata": {}}}', encoding="utf-8")
    with pytest.raises(InputError, match="a store, not a corpus"):
        read_corpus(tmp_path)


def test_a_file_name_that_is_not_unicode_is_refused(tmp_path: Path) -> None:
    try:
        with open(os.path.join(os.fsencode(tmp_path), b"caf\xe9.wav"), "wb"):
            pass
    except OSError:
        pytest.skip("this file system takes Unicode names only")
    with pytest.raises(InputError, match=r"caf\\udce9\.wav.*not valid Unicode; rename the file"):
        read_corpus(tmp_path)


def test_a_file_name_of_two_lines_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a\nerror: b.wav").touch()
    with pytest.raises(InputError, match=r"path 'a\\nerror: b\.wav' holds a line break; rename the file"):
        read_corpus(tmp_path)


def fleurs_line(number: int, name: str, raw: str) -> str:
    return "\t".join([str(number), name, raw, raw.lower(), " | ".join(raw.lower()) + " |", "16000", "FEMALE"])


def fleurs(root: Path, audio: str) -> None:
    """Two languages; `audio` is the folder of the recordings inside a language folder."""
    tables = {
        ("en_us", "dev"): [(12, "100.wav", 'A "tornado".'), (12, "101.wav", 'A "tornado".'), (7, "102.wav", "Rain.")],
        ("fr_fr", "dev"): [(7, "200.wav", "Pluie."), (7, "200.wav", "Pluie encore.")],
        ("fr_fr", "test"): [(40, "300.wav", "Neige.")],
    }
    for (language, split), rows in tables.items():
        touch(root, *(f"{language}/{audio.format(split=split)}/{name}" for _, name, _ in rows))
        write(root / language / f"{split}.tsv", "".join(fleurs_line(*row) + "\n" for row in rows))


@pytest.mark.parametrize("below", ["", "data"])
@pytest.mark.parametrize("audio", ["audio/{split}", "{split}"])
def test_a_fleurs_folder_is_recognised(tmp_path: Path, below: str, audio: str) -> None:
    fleurs(tmp_path / below, audio)
    corpus = read_corpus(tmp_path)
    assert column(corpus, "id") == [
        "en_us/dev/100", "en_us/dev/101", "en_us/dev/102", "fr_fr/dev/200", "fr_fr/test/300",
    ]  # fmt: skip
    assert column(corpus, "group") == ["12", "12", "7", "7", "40"]
    assert column(corpus, "language") == ["en_us"] * 3 + ["fr_fr"] * 2
    assert column(corpus, "text") == ['A "tornado".', 'A "tornado".', "Rain.", "Pluie.", "Neige."]
    assert column(corpus, "speaker") == [None] * 5
    assert all(corpus.recording(i).source.path.is_file() for i in range(5))
    assert not str(column(corpus, "path")[0]).startswith("/")


def test_a_fleurs_split_can_be_chosen(tmp_path: Path) -> None:
    fleurs(tmp_path, "audio/{split}")
    assert column(read_corpus(tmp_path, split="test"), "id") == ["fr_fr/test/300"]
    with pytest.raises(UsageError, match="split 'validation' is not one of FLEURS: train, dev, test"):
        read_corpus(tmp_path, split="validation")
    with pytest.raises(InputError, match=r"no rows in any train\.tsv"):
        read_corpus(tmp_path, split="train")


def test_a_split_of_anything_else_is_a_usage_error(tmp_path: Path) -> None:
    touch(tmp_path, "a.wav")
    for source in (tmp_path, write(tmp_path / "m.tsv", "path\na.wav\n")):
        with pytest.raises(UsageError, match="has no splits; leave out the split 'test'"):
            read_corpus(source, split="test")


def test_fleurs_audio_still_packed_is_refused_with_the_command(tmp_path: Path) -> None:
    fleurs(tmp_path, "audio/{split}")
    (tmp_path / "fr_fr" / "audio" / "test" / "300.wav").unlink()
    (tmp_path / "fr_fr" / "audio" / "test").rmdir()
    with pytest.raises(InputError, match=r"no audio of split 'test'.*unpack audio/test\.tar\.gz"):
        read_corpus(tmp_path)


def test_a_malformed_fleurs_row_names_its_line(tmp_path: Path) -> None:
    fleurs(tmp_path, "audio/{split}")
    with (tmp_path / "en_us" / "dev.tsv").open("a") as file:
        file.write("13\tx.wav\tonly three\n")
    with pytest.raises(InputError, match=r"en_us/dev\.tsv, line 4: 3 fields where 7 are expected"):
        read_corpus(tmp_path)
    write(tmp_path / "en_us" / "dev.tsv", fleurs_line(1, "../../x.wav", "Out.") + "\n")
    with pytest.raises(InputError, match=r"line 1: '\.\./\.\./x\.wav' is not a file name"):
        read_corpus(tmp_path)


def test_one_bad_file_never_stops_the_probing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for i in range(20):
        soundfile.write(tmp_path / f"{i:02}.wav", np.zeros(100 + i), 16_000)
    write(tmp_path / "03.wav", b"")
    corpus = read_corpus(tmp_path)
    (tmp_path / "11.wav").unlink()

    from voxstrata.corpus import probe as module

    real = module.probe

    def sometimes_broken(source: Source) -> object:
        if source.name.endswith("15.wav"):
            raise RuntimeError("a bug in a decoder")
        return real(source)

    monkeypatch.setattr(module, "probe", sometimes_broken)
    monkeypatch.setattr(module, "_SLICE", 7)
    told = Heard()
    probed = probe_corpus(corpus, workers=3, reporter=told)
    infos, failures = probed.infos(), probed.failures
    assert [info.samples if info else None for info in infos] == [
        None if i in (3, 11, 15) else 100 + i for i in range(20)
    ]
    assert sorted(failures) == [3, 11, 15]
    assert "03.wav: is empty" in failures[3]
    assert "11.wav: no such file" in failures[11]
    assert "15.wav: RuntimeError: a bug in a decoder" in failures[15]
    assert [(p.stage, p.done, p.total) for p in told.heard] == [("reading headers", i + 1, 20) for i in range(20)]
    assert told.heard[-1].failed == 3


def test_the_number_of_workers_changes_nothing(tmp_path: Path) -> None:
    for i in range(12):
        soundfile.write(tmp_path / f"{i:02}.flac", np.zeros(1000 + i), 8_000)
    corpus = read_corpus(tmp_path)
    assert probe_corpus(corpus, workers=1) == probe_corpus(corpus, workers=8) == probe_corpus(corpus)


@pytest.mark.real
def test_the_prompts_are_four_translations_of_157_sentences() -> None:
    table = DATA / "prompts" / "prompts.tsv"
    if not table.is_file():
        pytest.skip("shared/data is not here")
    corpus = read_corpus(table)
    assert len(corpus) == 628
    groups = set(zip(column(corpus, "group"), column(corpus, "language"), strict=True))
    assert len(groups) == 157 * 4
    probed = probe_corpus(corpus)
    infos, failures = probed.infos(), probed.failures
    assert not failures
    assert sum(info.samples for info in infos if info) / 16_000 / 60 == pytest.approx(49, abs=0.5)
    folder = read_corpus(table.parent)
    assert sorted(map(str, column(folder, "path"))) == sorted(map(str, column(corpus, "path")))


@pytest.mark.real
def test_every_assorted_clip_is_probed() -> None:
    if not (DATA / "assorted").is_dir():
        pytest.skip("shared/data is not here")
    corpus = read_corpus(DATA / "assorted")
    probed = probe_corpus(corpus)
    infos, failures = probed.infos(), probed.failures
    assert not failures
    assert len(infos) == 35
    assert {"silero_vad_test.mp3", "silero_vad_test.opus"} < set(column(corpus, "id"))
