"""Corpora on object stores and web servers: folders, manifests and single recordings by URL."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import soundfile
from conftest import sound
from s3_server import S3Server

from voxstrata.audio import remote as audio_remote
from voxstrata.audio.decode import decode, probe
from voxstrata.audio.segments import SegmentReader
from voxstrata.base import remote
from voxstrata.base.errors import AudioError, InputError, UnreachableError, UsageError
from voxstrata.corpus import probe_corpus, read_corpus
from voxstrata.engine import Runtime, extract
from voxstrata.store import StoreSpec, open_store

SECRET = "wJalrXUtnFEMIbPxRfiCYEXAMPLEKEY"
LENGTHS = {"en/a": 0.7, "en/b": 1.1, "es/c": 0.4, "long": 21.0}


@pytest.fixture(scope="module")
def s3() -> Iterator[S3Server]:
    server = S3Server()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in server.environment(SECRET).items():
            patch.setenv(name, value)
        patch.setattr(remote, "_FIRST_WAIT_SECONDS", 0.02)
        remote.open_remote("s3://bucket")[0].makedirs("bucket", exist_ok=True)
        yield server
    server.close()


@pytest.fixture(scope="module")
def folder(s3: S3Server, make_corpus: Callable[..., Path]) -> Path:
    """A corpus on a disk, and the same at s3://bucket/audio."""
    root = make_corpus(LENGTHS)
    for name in ("en/b", "long"):
        samples, rate = soundfile.read(root / f"{name}.wav")
        soundfile.write(root / f"{name}.flac", samples, rate)
        (root / f"{name}.wav").unlink()
    (root / ".hidden.wav").write_bytes(b"")
    fs, _ = remote.open_remote("s3://bucket")
    fs.put(f"{root}/", "bucket/audio", recursive=True)
    return root


def test_a_folder_on_s3_is_the_folder_on_a_disk(s3: S3Server, folder: Path) -> None:
    here, there = read_corpus(folder), read_corpus("s3://bucket/audio/")
    assert there.table == here.table
    assert there.notes == here.notes
    assert there.root == "s3://bucket/audio"
    assert probe_corpus(there).table == probe_corpus(here).table
    for i in range(len(here)):
        assert (decode(there.recording(i)) == decode(here.recording(i))).all()


def test_headers_take_one_ranged_read_and_decoding_one_whole(s3: S3Server, folder: Path) -> None:
    corpus = read_corpus("s3://bucket/audio")
    row = corpus.table["id"].to_pylist().index("long")
    s3.requests.clear()
    info = probe(corpus.recording(row))
    gets = [asked for method, _, asked in s3.requests if method == "GET"]
    assert gets == ["bytes=0-65535"]
    s3.requests.clear()
    decode(corpus.recording(row), info)
    assert [(method, asked) for method, _, asked in s3.requests if method == "GET"] == [("GET", "")]


def test_segments_of_a_remote_file_fetch_it_once(s3: S3Server, folder: Path, tmp_path: Path) -> None:
    rows = [f"s3://bucket/audio/long.flac\t{begin}\t2.0" for begin in range(0, 20, 2)]
    manifest = tmp_path / "m.tsv"
    manifest.write_text("\n".join(["path\toffset\tduration", *rows]))
    corpus = read_corpus(manifest)
    whole, _ = soundfile.read(folder / "long.flac", dtype="float32")
    infos = probe_corpus(corpus).infos()
    s3.requests.clear()
    with SegmentReader() as reader:
        for i, begin in enumerate(range(0, 20, 2)):
            found = decode(corpus.recording(i), infos[i], reader)
            assert (found == whole[begin * 16_000 : (begin + 2) * 16_000]).all()
    assert s3.count("GET", "long.flac") == 1


def test_a_large_recording_is_fetched_to_a_file_that_is_removed(
    s3: S3Server, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audio_remote, "_IN_MEMORY_BYTES", 1000)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    source = audio_remote.RemoteSource("s3://bucket/audio/long.flac")
    assert (decode(source) == soundfile.read(folder / "long.flac", dtype="float32")[0]).all()
    assert not list(tmp_path.iterdir())


def test_manifests_name_recordings_by_url_and_lie_at_urls(s3: S3Server, folder: Path, tmp_path: Path) -> None:
    local = tmp_path / "m.tsv"
    local.write_text("path\ttext\ns3://bucket/audio/en/a.wav\tone\ns3://bucket/audio/es/c.wav\ttwo\n")
    corpus = read_corpus(local)
    assert (corpus.root, corpus.table["path"].to_pylist()) == ("s3://bucket/audio", ["en/a.wav", "es/c.wav"])
    remote.open_remote("s3://bucket")[0].pipe_file(
        "bucket/lists/m.csv", b"path,text\n../audio/en/a.wav,one\ns3://bucket/audio/./es/c.wav,two\n"
    )
    there = read_corpus("s3://bucket/lists/m.csv")
    assert there.root == "s3://bucket/audio"
    assert there.table["text"].to_pylist() == ["one", "two"]
    assert probe_corpus(there).samples.tolist()[0] == round(0.7 * 16_000)
    # beside files on this disk
    local.write_text(f"path\n{folder}/en/a.wav\ns3://bucket/audio/es/c.wav\n")
    mixed = read_corpus(local)
    assert probe_corpus(mixed).samples.tolist() == [round(0.7 * 16_000), round(0.4 * 16_000)]


def test_what_is_not_there_or_not_read_by_url_is_said(s3: S3Server, folder: Path, tmp_path: Path) -> None:
    for url, error, text in (
        ("s3://bucket/nix/", InputError, "s3://bucket/nix: no such object or folder"),
        ("s3://bucket/nix.tsv", InputError, "s3://bucket/nix.tsv: no such object"),
        ("s3://bucket/a.tar", InputError, "s3://bucket/a.tar: tar files are read from disks alone"),
        ("nope://bucket/a", InputError, "nope://bucket/a: Protocol not known: nope"),
    ):
        with pytest.raises(error, match=text):
            read_corpus(url)
    with pytest.raises(UsageError, match="has no splits"):
        read_corpus("s3://bucket/audio", "train")
    remote.open_remote("s3://bucket")[0].pipe_file("bucket/lists/bad.csv", b"path\n/data/x.wav\n")
    with pytest.raises(InputError, match=r"^s3://bucket/lists/bad.csv, line 2: path '/data/x.wav' is one of a disk"):
        read_corpus("s3://bucket/lists/bad.csv")
    with pytest.raises(AudioError, match=r"s3://bucket/nix.wav: no such object; correct the path or remove the row"):
        probe(audio_remote.RemoteSource("s3://bucket/nix.wav"))
    with s3.failing(lambda _: 403), pytest.raises(AudioError, match=r"en/a\.wav: access denied"):
        probe(audio_remote.RemoteSource("s3://bucket/audio/en/a.wav"))


def test_an_extraction_of_a_remote_corpus_is_that_of_the_local_one(
    s3: S3Server, folder: Path, tiny_model: Path, tmp_path: Path
) -> None:
    spec, runtime = StoreSpec(outputs=("final",)), Runtime(threads=1)
    extract(folder, tiny_model, tmp_path / "local.zarr", spec, runtime)
    with s3.failing_every(5, 503, "cut", 500, "lost"):
        extract("s3://bucket/audio", tiny_model, tmp_path / "remote.zarr", spec, runtime)
    here, there = open_store(tmp_path / "local.zarr"), open_store(tmp_path / "remote.zarr")
    assert there.utterances == here.utterances
    for name in here.ids:
        assert (there.frames(name, "final") == here.frames(name, "final")).all()
    # a run that stopped goes on from the store alone, which says where the corpus is
    assert there.root.attrs["corpus_root"] == "s3://bucket/audio"


def test_an_outage_ends_the_run_and_stores_no_recording_as_failed(
    s3: S3Server, folder: Path, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "PATIENCE_SECONDS", 0.2)
    store = tmp_path / "s.zarr"
    spec, runtime = StoreSpec(outputs=("final",)), Runtime(threads=1)
    fetching = "HTTP_RANGE"
    with (
        s3.failing(
            lambda e: (
                503 if e["PATH_INFO"].endswith("c.wav") and fetching not in e and e["REQUEST_METHOD"] == "GET" else None
            )
        ),
        pytest.raises(UnreachableError, match=r"es/c\.wav: no answer"),
    ):
        extract("s3://bucket/audio", tiny_model, store, spec, runtime)
    report = extract("s3://bucket/audio", tiny_model, store, spec, runtime)
    assert report.failed == 0


def test_signed_urls_are_read_and_neither_stored_nor_printed(
    s3: S3Server, folder: Path, tiny_model: Path, tmp_path: Path
) -> None:
    fs, _ = remote.open_remote("s3://bucket")
    signed = [fs.sign(f"bucket/audio/{name}", expiration=600) for name in ("en/a.wav", "en/b.flac", "nix.wav")]
    assert all("Signature=" in url for url in signed)
    manifest = tmp_path / "m.tsv"
    manifest.write_text("\n".join(["path", *signed]))
    s3.requests.clear()
    report = extract(manifest, tiny_model, tmp_path / "s.zarr", StoreSpec(outputs=("final",)), Runtime(threads=1))
    assert report.failed == 1
    assert s3.count("GET", "/bucket/audio/en/a.wav") >= 2
    everything = b"".join(path.read_bytes() for path in (tmp_path / "s.zarr").rglob("*") if path.is_file())
    table = pq.read_table(tmp_path / "s.zarr" / "utterances.parquet")
    for text in (everything.decode("latin-1"), str(table.to_pylist()), str(report), repr(read_corpus(manifest))):
        assert "Signature" not in text
        assert "AKIA" not in text
    assert sorted(table["path"].to_pylist()) == ["en/a.wav", "en/b.flac", "nix.wav"]
    # signed anew, it is the same corpus
    manifest.write_text(manifest.read_text().replace("Expires", "X-Amz-Other=1&Expires"))
    assert extract(manifest, tiny_model, tmp_path / "s.zarr", StoreSpec(outputs=("final",)), Runtime(threads=1))


def test_headers_that_state_no_length_are_read_in_growing_pieces(s3: S3Server, tmp_path: Path) -> None:
    path = tmp_path / "x.mp3"
    soundfile.write(path, sound(60.0, 1), 16_000, format="MP3")
    data = path.read_bytes()
    remote.open_remote("s3://bucket")[0].pipe_file("bucket/mp3/x.mp3", data)
    source = audio_remote.RemoteSource("s3://bucket/mp3/x.mp3")
    with source.open() as file:
        assert file.read() == data
    assert s3.count("GET", "x.mp3") <= np.log2(len(data) / 65536) + 2
    assert probe(source) == probe(path)
    shutil.rmtree(tmp_path)
