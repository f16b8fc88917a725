"""Promises of corpora in Parquet, tars, manifests of lhotse and memory: what is read is what the files hold."""

from __future__ import annotations

import gzip
import io
import json
import pickle
import subprocess
import sys
import tarfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
from conftest import sound
from packed import Spoken, parquet, samples_of, sound_file, speak, tar, unpacked

from voxstrata.audio.decode import decode
from voxstrata.base.errors import AudioError, InputError, UsageError
from voxstrata.corpus import Corpus, parquet_rows, probe_corpus, read_corpus

SPOKEN = speak()


def column(corpus: Corpus, name: str) -> list[Any]:
    values: list[Any] = corpus.table[name].to_pylist()
    return values


def about(corpus: Corpus) -> dict[str, tuple[Any, ...]]:
    rows = corpus.table.select(["id", "language", "text", "speaker"]).to_pylist()
    return {row.pop("id"): tuple(row.values()) for row in rows}


def expected(spoken: list[Spoken] = SPOKEN) -> dict[str, tuple[Any, ...]]:
    return {s.name: (s.language, s.text, s.speaker) for s in spoken}


def same_sound(corpus: Corpus, spoken: list[Spoken] = SPOKEN) -> None:
    """Every recording's bytes are those of its file, also after pickling, and probing fails for none."""
    data = {s.name: s.data for s in spoken}
    probed = probe_corpus(corpus)
    infos, failures = probed.infos(), probed.failures
    assert failures == {}
    assert all(infos)
    for i, name in enumerate(column(corpus, "id")):
        source = corpus.recording(i).source
        assert source.read() == data[name]
        assert source.size() == len(data[name])
        copy = pickle.loads(pickle.dumps(source))
        assert copy.open().read() == data[name]
        assert hash(copy) is not None


# Parquet


def test_parquet_is_read_as_the_hub_serves_it(tmp_path: Path) -> None:
    corpus = read_corpus(parquet(tmp_path / "x.parquet", SPOKEN))
    assert about(corpus) == expected()
    assert column(corpus, "path") == ["x.parquet"] * 5
    assert column(corpus, "member") == ["0", "1", "2", "3", "4"]
    assert column(corpus, "up_votes") == ["0", "1", "2", "3", "4"]
    same_sound(corpus)


def test_shards_in_folders_of_languages_are_one_corpus(tmp_path: Path) -> None:
    nothing = {"locale": pa.nulls(3), "sentence": pa.array(["x"] * 3)}
    parquet(tmp_path / "de_de" / "train-00000-of-00002.parquet", SPOKEN[:3], **nothing)
    parquet(tmp_path / "de_de" / "train-00001-of-00002.parquet", SPOKEN[3:])
    parquet(tmp_path / "en_us" / "test-00000-of-00001.parquet", SPOKEN[:3], **nothing)
    corpus = read_corpus(tmp_path)
    assert column(corpus, "language") == ["de_de"] * 3 + ["de", "en"] + ["en_us"] * 3
    shards = ["de_de/train-00000-of-00002/", "en_us/test-00000-of-00001/"]  # a, b and c are in both
    assert column(corpus, "id") == [*(shards[0] + i for i in "012"), "d", "e", *(shards[1] + i for i in "012")]
    assert any("splits" in note and "test, train" in note for note in corpus.notes)
    train = read_corpus(tmp_path, "train")
    assert column(train, "id") == ["a", "b", "c", "d", "e"]
    same_sound(train)
    with pytest.raises(UsageError, match="split 'dev'"):
        read_corpus(tmp_path, "dev")


def test_fleurs_ids_are_groups(tmp_path: Path) -> None:
    path = parquet(
        tmp_path / "f.parquet",
        SPOKEN,
        id=pa.array([7, 7, 8, 9, 9], pa.int32()),
        raw_transcription=pa.array(list("ABCDE")),
        transcription=pa.array(list("abcde")),
        lang_id=pa.array(["en_us"] * 5),
        lang_group_id=pa.array([1] * 5),
        language=pa.array(["English"] * 5),
    )
    corpus = read_corpus(path)
    assert column(corpus, "group") == ["7", "7", "8", "9", "9"]
    assert column(corpus, "id") == ["a", "b", "c", "d", "e"]
    assert column(corpus, "text") == ["A", "B", "C", "D", "E"]
    assert set(column(corpus, "language")) == {"en_us"}


def test_ids_of_two_shards_that_are_alike_are_refused(tmp_path: Path) -> None:
    parquet(tmp_path / "a.parquet", SPOKEN[:2], id=pa.array(["x", "y"]))
    parquet(tmp_path / "b.parquet", SPOKEN[2:4], id=pa.array(["z", "x"]))
    with pytest.raises(InputError, match=r"'x' \(.*a\.parquet\[0\], .*b\.parquet\[1\]\)"):
        read_corpus(tmp_path)
    assert column(read_corpus(tmp_path, columns={"group": "id"}), "group") == ["x", "y", "z", "x"]


def test_an_id_of_another_name_that_repeats_is_not_taken(tmp_path: Path) -> None:
    corpus = read_corpus(parquet(tmp_path / "a.parquet", SPOKEN[:3], segment_id=pa.array([1, 1, 2])))
    assert column(corpus, "id") == ["a", "b", "c"]
    assert column(corpus, "segment_id") == ["1", "1", "2"]
    assert any("segment_id" in note for note in corpus.notes)
    corpus = read_corpus(parquet(tmp_path / "b.parquet", SPOKEN[:3], segment_id=pa.array([1, 3, 2])))
    assert column(corpus, "id") == ["1", "3", "2"]


def test_times_in_parquet_cut_nothing(tmp_path: Path) -> None:
    """MLS, AMI and TED-LIUM say where a recording was cut from."""
    times = {name: pa.array([0.1] * 5) for name in ("begin_time", "offset", "start", "duration", "end")}
    corpus = read_corpus(parquet(tmp_path / "x.parquet", SPOKEN, **times))
    assert column(corpus, "offset") == column(corpus, "duration") == [None] * 5
    assert column(corpus, "begin_time") == ["0.1"] * 5


def test_a_row_without_bytes_is_the_file_that_it_names(tmp_path: Path) -> None:
    struct = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    unpacked(tmp_path / "clips", SPOKEN)
    rows = [
        {"bytes": None if i in (1, 3) else s.data, "path": f"clips/{s.name}.{s.suffix}"} for i, s in enumerate(SPOKEN)
    ]
    for size in (1, 5):  # statistics say all of a row group, or they do not
        path = parquet(tmp_path / "x.parquet", SPOKEN, size, audio=pa.array(rows, struct))
        corpus = read_corpus(path)
        assert column(corpus, "path") == ["x.parquet", "clips/b.flac", "x.parquet", "clips/d.wav", "x.parquet"]
        assert column(corpus, "member") == ["0", None, "2", None, "4"]
        assert corpus.recording(3).source.read() == SPOKEN[3].data
    nothing = [{"bytes": s.data, "path": None} for s in SPOKEN[:2]] + [{"bytes": b"", "path": None}, None]
    corpus = read_corpus(parquet(tmp_path / "x.parquet", SPOKEN[:4], audio=pa.array(nothing, struct)))
    assert column(corpus, "id") == ["x/0", "x/1", "x/2", "x/3"]
    failures = probe_corpus(corpus).failures
    assert sorted(failures) == [2, 3]
    assert "x.parquet[2]: holds no audio bytes" in failures[2]


@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary(), pa.binary_view()])
def test_a_column_of_bytes_alone_is_read(tmp_path: Path, kind: pa.DataType) -> None:
    audio = pa.array([s.data for s in SPOKEN], pa.binary()).cast(kind)
    corpus = read_corpus(parquet(tmp_path / "x.parquet", SPOKEN, audio=audio))
    assert column(corpus, "id") == [f"x/{i}" for i in range(5)]
    assert [corpus.recording(i).source.read() for i in range(5)] == [s.data for s in SPOKEN]


def test_parquet_of_another_form_is_refused(tmp_path: Path) -> None:
    decoded = pa.array([{"array": [0.0], "path": "a", "sampling_rate": 16_000}] * 5)
    with pytest.raises(InputError, match=r"x\.parquet: audio is struct<array.*Audio\(decode=False\)"):
        read_corpus(parquet(tmp_path / "x.parquet", SPOKEN, audio=decoded))
    path = parquet(tmp_path / "x.parquet", SPOKEN)
    path.write_bytes(path.read_bytes()[:-9])
    parquet(tmp_path / "a.parquet", SPOKEN)
    with pytest.raises(InputError, match=r"x\.parquet: no Parquet file, or damaged"):
        read_corpus(tmp_path)
    pq.write_table(pa.table({"text": ["a"]}), tmp_path / "x.parquet")
    with pytest.raises(InputError, match=r"x\.parquet: has no column of audio"):
        read_corpus(tmp_path)


def test_of_two_columns_of_audio_one_is_chosen(tmp_path: Path) -> None:
    struct = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    target = pa.array([{"bytes": s.data, "path": f"t_{s.name}.wav"} for s in reversed(SPOKEN)], struct)
    table = pq.read_table(parquet(tmp_path / "x.parquet", SPOKEN)).replace_schema_metadata()
    pq.write_table(table.append_column("target", target), tmp_path / "x.parquet")
    corpus = read_corpus(tmp_path / "x.parquet")
    assert column(corpus, "id")[0] == "a"
    assert any("left out" in note and "target" in note for note in corpus.notes)
    corpus = read_corpus(tmp_path / "x.parquet", columns={"path": "target", "text": "up_votes"})
    assert column(corpus, "id")[0] == "t_e"
    assert column(corpus, "text")[0] == "0"
    assert corpus.recording(0).source.read() == SPOKEN[4].data
    pq.write_table(pq.read_table(tmp_path / "x.parquet").rename_columns({"audio": "source"}), tmp_path / "x.parquet")
    with pytest.raises(InputError, match=r"several columns of audio.*--columns path=source"):
        read_corpus(tmp_path / "x.parquet")
    with pytest.raises(InputError, match="no column of audio 'nope'"):
        read_corpus(tmp_path / "x.parquet", columns={"path": "nope"})


def test_a_parquet_of_paths_stays_a_manifest(tmp_path: Path) -> None:
    pq.write_table(pa.table({"path": ["a.wav"], "audio": ["b.wav"]}), tmp_path / "m.parquet")
    assert column(read_corpus(tmp_path / "m.parquet"), "member") == [None]


class Counted(io.FileIO):
    """A file that counts what is read of it."""

    total = 0

    def read(self, size: int | None = -1, /) -> bytes:
        data = super().read(-1 if size is None else size)
        self.total += len(data)
        return data


@pytest.mark.parametrize("rows", [3, 40, 400])
def test_a_parquet_file_is_read_once_in_bounded_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows: int
) -> None:
    rng = np.random.default_rng(0)
    noise = [rng.bytes(4000 + 10 * i) for i in range(400)]
    spoken = [Spoken(f"{i}", "en", "", "", "wav", data) for i, data in enumerate(noise)]
    path = parquet(tmp_path / "x.parquet", spoken, rows)
    for name, value in {"_BLOCK_BYTES": 1 << 16, "_KEPT_BYTES": 1 << 18, "_BUFFER_BYTES": 1 << 14}.items():
        monkeypatch.setattr(parquet_rows, name, value)
    opened, corpus = pq.ParquetFile, read_corpus(path)
    with Counted(path) as file:
        monkeypatch.setattr(pq, "ParquetFile", lambda _, **options: opened(file, **options))
        in_turn = [i for begin in range(0, 400, 8) for i in rng.permutation(range(begin, begin + 8)).tolist()]
        for i in in_turn:  # as eight threads ask for them
            assert corpus.recording(i).source.read() == noise[i]
        assert path.stat().st_size * 0.9 < file.total < path.stat().st_size * 1.2
        held = parquet_rows._rows_of(path, "audio", path.stat().st_mtime_ns, path.stat().st_size)._blocks
        assert sum(block.nbytes for _, block in held) < (1 << 18) + (1 << 17)
        parquet_rows._rows_of.cache_clear()


def test_many_threads_read_what_is_there(tmp_path: Path) -> None:
    spoken = [Spoken(f"{i}", "en", "", "", "wav", bytes([i]) * (99 + i)) for i in range(200)]
    corpus = read_corpus(parquet(tmp_path / "x.parquet", spoken, 7))
    with ThreadPoolExecutor(8) as threads:
        read = list(threads.map(lambda i: corpus.recording(i).source.read(), [*range(200), *reversed(range(200))]))
    assert read == [s.data for s in [*spoken, *reversed(spoken)]]


def test_a_parquet_file_that_changes_is_read_anew(tmp_path: Path) -> None:
    corpus = read_corpus(parquet(tmp_path / "x.parquet", SPOKEN))
    assert corpus.recording(0).source.read() == SPOKEN[0].data
    parquet(tmp_path / "x.parquet", SPOKEN[::-1])
    assert corpus.recording(0).source.read() == SPOKEN[4].data
    (tmp_path / "x.parquet").unlink()
    with pytest.raises(AudioError, match=r"x\.parquet\[1\]: no such file"):
        corpus.recording(1).source.read()


def test_a_damaged_row_group_fails_alone(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    table = pq.read_table(parquet(path, SPOKEN))
    pq.write_table(table, path, row_group_size=2, compression="zstd", use_dictionary=False)
    corpus = read_corpus(path)
    chunk = pq.read_metadata(path).row_group(1).column(1)
    assert chunk.path_in_schema == "audio.bytes"
    data = bytearray(path.read_bytes())
    data[chunk.data_page_offset : chunk.data_page_offset + 20] = b"\xff" * 20
    path.write_bytes(data)
    probed = probe_corpus(corpus)
    infos, failures = probed.infos(), probed.failures
    assert sorted(failures) == [2, 3]
    assert all("damaged" in reason for reason in failures.values())
    assert infos[4] is not None


# Tars


@pytest.mark.parametrize("form", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_a_webdataset_shard_is_read_where_it_lies(tmp_path: Path, form: int) -> None:
    path = tar(tmp_path / "x.tar", samples_of(SPOKEN), form)
    corpus = read_corpus(path)
    assert about(corpus) == expected()
    assert column(corpus, "member") == [f"{s.name}.{s.suffix}" for s in SPOKEN]
    assert column(corpus, "n") == ["[1]"] * 5
    same_sound(corpus)
    assert sorted(tmp_path.iterdir()) == [path]


def test_long_names_folders_and_dots_are_as_webdataset_has_them(tmp_path: Path) -> None:
    wav, long = SPOKEN[0].data, "ä" * 90 + "/" + "b" * 120
    files = {"./x/a.wav": wav, "./x/a.txt": b"one", f"{long}.wav": wav, "x/b.left.wav": wav, "x/b.right.wav": wav}
    files |= {"x/b.txt": b"both", "x/b.left.json": b'{"speaker": "l"}', "x/c.npy": b"1", "x/c.txt": b"no sound"}
    files |= {"x/._a.wav": b"", "README": b""}
    for form in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        corpus = read_corpus(tar(tmp_path / "x.tar", files, form))
        assert dict(zip(column(corpus, "id"), column(corpus, "text"), strict=True)) == {
            "x/a": "one", long: None, "x/b.left": "both", "x/b.right": "both"
        }  # fmt: skip
        assert column(corpus, "speaker") == [None, None, "l", None]
        assert corpus.recording(1).source.read() == wav
    assert any("1 of .npy" in note and "1 of samples without sound" in note for note in corpus.notes)


def test_a_folder_of_shards_is_one_corpus(tmp_path: Path) -> None:
    files = samples_of(SPOKEN)
    three = {name: data for name, data in files.items() if name[0] in "abc"}
    tar(tmp_path / "fr" / "0.tar", {name: data for name, data in three.items() if not name.endswith("json")})
    tar(tmp_path / "fr" / "1.tar", {name: data for name, data in files.items() if name not in three})
    corpus = read_corpus(tmp_path)
    assert column(corpus, "path") == ["fr/0.tar"] * 3 + ["fr/1.tar"] * 2
    assert column(corpus, "language") == ["fr"] * 3 + ["de", "en"]
    same_sound(corpus)
    tar(tmp_path / "fr" / "2.tar", {"b.wav": SPOKEN[1].data})
    with pytest.raises(InputError, match=r"'b' \(.*0\.tar\[b\.flac\], .*2\.tar\[b\.wav\]\)"):
        read_corpus(tmp_path)


def test_a_tar_beside_its_unpacked_recordings_is_not_read(tmp_path: Path) -> None:
    unpacked(tmp_path / "en", SPOKEN[:1])
    tar(tmp_path / "en.tar", samples_of(SPOKEN))
    assert column(read_corpus(tmp_path), "path") == ["en/a.wav"]


def test_what_is_wrong_with_a_tar_is_said(tmp_path: Path) -> None:
    whole = tar(tmp_path / "x.tar", samples_of(SPOKEN)).read_bytes()
    path = tmp_path / "y.tar"
    path.write_bytes(gzip.compress(whole))
    with pytest.raises(InputError, match=r"y\.tar: compressed.*gunzip"):
        read_corpus(path)
    path.rename(tmp_path / "y.tar.gz")
    with pytest.raises(InputError, match="compressed"):
        read_corpus(tmp_path)
    (tmp_path / "y.tar.gz").unlink()
    with tarfile.open(tmp_path / "x.tar") as opened:
        second, last = opened.getmembers()[1], opened.getmembers()[-1]
    for end in (700, second.offset_data + 1, second.offset + 100, last.offset_data + 2):
        path.write_bytes(whole[:end])
        with pytest.raises(InputError, match=r"y\.tar: .*damaged or cut"):
            read_corpus(path)
    path.write_bytes(whole[: second.offset])
    assert any("no mark at its end" in note for note in read_corpus(path).notes)
    spoilt = bytearray(whole)
    spoilt[second.offset + 20] ^= 255  # a name that the header's checksum contradicts
    path.write_bytes(spoilt)
    with pytest.raises(InputError, match="damaged or cut"):
        read_corpus(path)
    path.write_bytes(whole + tar(tmp_path / "z.tar", {"f.wav": SPOKEN[0].data}).read_bytes())
    with pytest.raises(InputError, match="goes on after its end"):
        read_corpus(path)
    path.write_bytes(b"no tar at all" * 100)
    with pytest.raises(InputError, match="no tar"):
        read_corpus(path)
    with tarfile.open(path, "w") as opened:
        for _ in range(2):
            opened.add(tmp_path / "z.tar", "a.wav")
    with pytest.raises(InputError, match=r"holds 'a\.wav' twice"):
        read_corpus(path)
    for name, data in {"a.json": b"{", "a.txt": b"\xff"}.items():
        with pytest.raises(InputError, match=r"y\.tar\[a\..*: not (JSON|UTF-8)"):
            read_corpus(tar(path, {"a.wav": SPOKEN[0].data, name: data}))
    with pytest.raises(InputError, match="holds no recordings"):
        read_corpus(tar(path, {"a.txt": b"x"}))


def test_a_tar_that_is_cut_after_planning_fails_recording_by_recording(tmp_path: Path) -> None:
    path = tar(tmp_path / "x.tar", samples_of(SPOKEN))
    corpus = read_corpus(path)
    path.write_bytes(path.read_bytes()[:3000])
    failures = probe_corpus(corpus).failures
    assert sorted(failures) == [0, 1, 2, 3, 4]
    assert "x.tar[e.wav]: the tar ends inside it" in failures[4]


def test_a_hard_link_is_the_file_it_leads_to(tmp_path: Path) -> None:
    path = tar(tmp_path / "x.tar", {"a.wav": SPOKEN[0].data})
    with tarfile.open(path, "a") as opened:
        link = tarfile.TarInfo("b.wav")
        link.type, link.linkname = tarfile.LNKTYPE, "a.wav"
        opened.addfile(link)
    corpus = read_corpus(path)
    assert column(corpus, "id") == ["a", "b"]
    assert corpus.recording(1).source.read() == SPOKEN[0].data


# Manifests of lhotse


def recording(name: str, path: str, seconds: float, channels: list[int] | None = None, **more: Any) -> dict[str, Any]:
    """As lhotse 1.33 writes it, of a file at 16 kHz."""
    source = {"type": "file", "channels": channels or [0], "source": path}
    length = {"sampling_rate": 16_000, "num_samples": round(seconds * 16_000), "duration": seconds}
    return {"id": name, "sources": [source], **length, "channel_ids": channels or [0], **more}


def supervision(name: str, of: str, start: float, duration: float, **more: Any) -> dict[str, Any]:
    return {"id": name, "recording_id": of, "start": start, "duration": duration, "channel": 0, **more}


def cut(
    name: str, start: float, duration: float, of: dict[str, Any], *said: dict[str, Any], **more: Any
) -> dict[str, Any]:
    where = {"id": name, "start": start, "duration": duration, "channel": 0}
    return {**where, "supervisions": list(said), "recording": of, "type": "MonoCut", **more}


def jsonl(path: Path, items: list[dict[str, Any]]) -> Path:
    text = "".join(json.dumps(item) + "\n" for item in items).encode()
    path.write_bytes(gzip.compress(text) if path.suffix == ".gz" else text)
    return path


def parts(corpus: Corpus) -> list[tuple[Any, ...]]:
    names = ("id", "path", "offset", "duration", "channel")
    return [tuple(row[name] for name in names) for row in corpus.table.to_pylist()]


def test_supervisions_beside_their_recordings_are_utterances(tmp_path: Path) -> None:
    (tmp_path / "talk.wav").write_bytes(sound_file(2.0, 0))
    recordings = [recording("talk", "talk.wav", 2.0), recording("quiet", "quiet.wav", 1.0)]
    about_them = {"text": "Hello.", "language": "en", "speaker": "s1", "gender": "f", "custom": {"snr": 7.5}}
    said = [
        supervision("talk-1", "talk", 0.5, 1.25, **about_them),
        supervision("talk-2", "talk", 0, 2.0, channel=[0], text="All.", alignment={"word": [["All", 0, 2, 1]]}),
    ]
    jsonl(tmp_path / "x_recordings_dev.jsonl.gz", recordings)
    path = jsonl(tmp_path / "x_supervisions_dev.jsonl.gz", said)
    for given in (path, tmp_path / "x_recordings_dev.jsonl.gz", tmp_path):
        corpus = read_corpus(given)
        assert parts(corpus) == [("talk-1", "talk.wav", 0.5, 1.25, None), ("talk-2", "talk.wav", None, None, None)]
        assert about(corpus) == {"talk-1": ("en", "Hello.", "s1"), "talk-2": (None, "All.", None)}
        assert column(corpus, "snr") == ["7.5", None]
        assert "alignment" not in corpus.table.column_names
        assert any("1 recording of x_recordings_dev.jsonl.gz left out" in note for note in corpus.notes)
    assert len(read_corpus(tmp_path, "dev")) == 2
    with pytest.raises(UsageError, match="split 'train'"):
        read_corpus(tmp_path, "train")
    path.unlink()
    assert parts(read_corpus(tmp_path)) == [(n, f"{n}.wav", None, None, None) for n in ("talk", "quiet")]


def test_cuts_are_utterances(tmp_path: Path) -> None:
    stereo, mono = recording("s", "s.wav", 3.0, [0, 1]), recording("m", str(tmp_path / "m.wav"), 2.0)
    two = {**stereo, "sources": [{"type": "file", "channels": [i], "source": f"s{i}.wav"} for i in (0, 1)]}
    said = [
        supervision("2", "s", 1.0, 0.5, text="world", language="en", speaker="p"),
        supervision("1", "s", 0.0, 0.5, text="hello", language="en", speaker="q"),
    ]
    cuts = [
        cut("left", 0.25, 1.5, stereo, *said),
        cut("right", 0, 3.0, stereo, channel=1),
        cut("both", 0, 3.0, stereo, channel=[0, 1], type="MultiCut"),
        cut("own file", 1.0, 2.0, two, channel=1),
        cut("all", 0, 2.0, mono, custom={"topic": "x"}),
        cut("sharp", 0, 2.0, {**mono, "transforms": [resample(16_000)]}),
    ]
    corpus = read_corpus(jsonl(tmp_path / "cuts.jsonl", cuts))
    (tmp_path / "other.wav").touch()
    assert any("1 audio file is not named by cuts.jsonl" in note for note in read_corpus(tmp_path).notes)
    assert parts(corpus) == [
        ("left", "s.wav", 0.25, 1.5, 0),
        ("right", "s.wav", None, None, 1),
        ("both", "s.wav", None, None, None),
        ("own file", "s1.wav", 1.0, 2.0, None),
        ("all", "m.wav", None, None, None),
        ("sharp", "m.wav", None, None, None),
    ]
    assert about(corpus)["left"] == ("en", "hello world", None)
    assert column(corpus, "topic")[4] == "x"


def resample(rate: int) -> dict[str, Any]:
    return {"name": "Resample", "kwargs": {"source_sampling_rate": 16_000, "target_sampling_rate": rate}}


def test_what_is_no_stretch_of_a_file_is_refused_by_name(tmp_path: Path) -> None:
    mono = recording("m", "m.wav", 2.0)
    url = {**mono, "sources": [{"type": "url", "channels": [0], "source": "https://x/y.wav"}]}
    split = {**mono, "sources": [{"type": "file", "channels": [i], "source": f"{i}.wav"} for i in (0, 1)]}
    refused = {
        "MixedCut 'x' is no stretch": {"id": "x", "tracks": [], "type": "MixedCut"},
        "PaddingCut 'x' is no stretch": {"id": "x", "duration": 1, "type": "PaddingCut"},
        "names no recording": cut("x", 0, 1.0, {}),
        "of type 'url'": cut("x", 0, 1.0, url),
        r"changed when it is read \(Speed\)": cut(
            "x", 0, 1.0, {**mono, "transforms": [{"name": "Speed", "kwargs": {"factor": 1.1}}]}
        ),
        r"changed when it is read \(Resample\)": cut("x", 0, 1.0, {**mono, "transforms": [resample(8000)]}),
        r"channels \[0, 1\] in several files": cut("x", 0, 1.0, split, channel=[0, 1], type="MultiCut"),
        "not as lhotse writes it.*num_samples": cut("x", 0, 1.0, {"id": "m", "sources": [], "sampling_rate": 1}),
    }
    for message, item in refused.items():
        path = jsonl(tmp_path / "cuts.jsonl", [cut("fine", 0, 1.0, mono), item])
        with pytest.raises(InputError, match=rf"cuts\.jsonl, line 2: .*{message}"):
            read_corpus(path)
    path = jsonl(tmp_path / "cuts.jsonl.gz", [cut(str(i), 0, 1.0, mono) for i in range(999)])
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(InputError, match=r"cuts\.jsonl\.gz.* damaged gzip file"):
        read_corpus(path)
    with pytest.raises(InputError, match=r"duplicate ids: 'x' \(.*line 1, .*line 2\)"):
        read_corpus(jsonl(tmp_path / "cuts.jsonl", [cut("x", 0, 1.0, mono)] * 2))
    path = jsonl(tmp_path / "supervisions.jsonl", [supervision("1", "other", 0, 1)])
    with pytest.raises(InputError, match=r"supervisions\.jsonl: no manifest of its recordings.*recordings\.jsonl"):
        read_corpus(path)
    jsonl(tmp_path / "recordings.jsonl", [mono])
    with pytest.raises(InputError, match=r"line 1: recording 'other' is not in recordings\.jsonl"):
        read_corpus(path)
    with pytest.raises(InputError, match="holds cuts, and recordings"):
        read_corpus(tmp_path)


def test_a_missing_file_of_a_cut_fails_before_anything_is_encoded(tmp_path: Path) -> None:
    (tmp_path / "here.wav").write_bytes(sound_file(1.0, 0))
    cuts = [cut(name, 0, 1.0, recording(name, f"{name}.wav", 1.0)) for name in ("here", "gone")]
    failures = probe_corpus(read_corpus(jsonl(tmp_path / "cuts.jsonl", cuts))).failures
    assert list(failures) == [1]
    assert "gone.wav: no such file" in failures[1]


def test_paths_of_lhotse_are_from_the_manifest_or_from_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "manifests").mkdir()
    unpacked(tmp_path / "audio", SPOKEN)
    path = jsonl(
        tmp_path / "manifests" / "r.jsonl", [recording("a", "audio/a.wav", 0.3), recording("d", "d.wav", 0.93)]
    )
    (tmp_path / "manifests" / "d.wav").write_bytes(SPOKEN[3].data)
    monkeypatch.chdir(tmp_path)
    corpus = read_corpus(path)
    assert corpus.root == tmp_path
    assert column(corpus, "path") == ["audio/a.wav", "manifests/d.wav"]


# Python


def test_samples_in_memory_are_decoded_bit_by_bit() -> None:
    floats = sound(0.5, 1)
    ints = (sound(0.5, 2) * 32767).astype(np.int16)
    stereo = np.stack([sound(0.5, 3), sound(0.5, 4)], axis=1)
    given = [
        ("f", floats, 16_000),
        ("i", ints, 16_000, {"language": "de", "text": "Ja", "room": 3}),
        (7, stereo.astype(np.float64), 16_000),
        ("list", floats[:99].tolist(), np.int64(16_000)),
        ("slow", floats, 8_000),
    ]
    corpus = read_corpus(iter(given))
    assert column(corpus, "id") == ["f", "i", "7", "list", "slow"]
    assert column(corpus, "member") == ["f", "i", "7", "list", "slow"]
    assert column(corpus, "path") == ["memory"] * 5
    assert about(corpus)["i"] == ("de", "Ja", None)
    assert column(corpus, "room") == [None, "3", None, None, None]
    decoded = [decode(corpus.recording(i)) for i in range(5)]
    np.testing.assert_array_equal(decoded[0], floats)
    np.testing.assert_array_equal(decoded[1], ints.astype(np.float32) / 32768)
    np.testing.assert_array_equal(decoded[2], stereo.mean(axis=1, dtype=np.float32))
    np.testing.assert_array_equal(decoded[3], floats[:99])
    assert len(decoded[4]) == 16_000
    assert column(read_corpus(given, channel=1), "channel") == [1] * 5
    copy = pickle.loads(pickle.dumps(corpus.recording(0)))
    np.testing.assert_array_equal(decode(copy), floats)


@pytest.mark.parametrize(
    ("item", "message"),
    [
        (("a", np.zeros((2, 500), np.float32), 16_000), r"shape \(2, 500\); give \(frames,\) or \(frames, channels\)"),
        (("a", np.zeros(5, np.uint8), 16_000), "type uint8"),
        (("a", np.zeros((5, 1, 1), np.float32), 16_000), "shape"),
        (("a", np.zeros(5, np.float32), 0), "a rate of 0"),
        (("a", np.zeros(5, np.float32), 16_000.5), "a rate of 16000.5"),
        (("a", np.zeros(5, np.float32)), r"item 0: a tuple; give \(id, samples, rate\)"),
        (("a", [[0.1], [0.2, 0.3]], 16_000), "a: no array of numbers"),
        (("a", np.zeros(5, np.float32), None), "a: a rate of None"),
        (("a", np.zeros(5, np.float32), float("nan")), "a: a rate of nan"),
        (("a", np.zeros(5, np.float32), 16_000, "de"), "item 0: its fourth value is a str; give a mapping"),
        ("abc", r"item 0: a str; give \(id, samples, rate\)"),
    ],
)
def test_samples_of_another_form_are_refused(item: Any, message: str) -> None:
    with pytest.raises((InputError, UsageError), match=message):
        read_corpus([item])


def test_ids_in_memory_are_each_their_own() -> None:
    with pytest.raises(InputError, match=r"duplicate ids: 'a' \(item 0, item 1\)"):
        read_corpus([("a", np.zeros(5, np.float32), 16_000)] * 2)
    failures = probe_corpus(read_corpus([("a", np.zeros(0, np.float32), 16_000)])).failures
    assert "holds no samples" in failures[0]


def test_other_objects_are_refused() -> None:
    for wrong in (3, {"a": 1}, None, b"x.tsv"):
        with pytest.raises(UsageError, match="give a path"):
            read_corpus(wrong)
    with pytest.raises(UsageError, match="no split 'train'"):
        read_corpus([], "train")


def test_reading_a_path_imports_no_library_of_others(tmp_path: Path) -> None:
    parquet(tmp_path / "x.parquet", SPOKEN)
    program = (
        "import sys, voxstrata as vs; vs.read_corpus(sys.argv[1]);"
        "assert not {'datasets', 'lhotse', 'webdataset', 'torch'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program, tmp_path / "x.parquet"], check=True)


# All of them


def test_states_of_packed_recordings_are_those_of_their_files(tmp_path: Path, tiny_model: Path) -> None:
    from voxstrata.engine import Runtime, extract
    from voxstrata.store import open_store

    def states(name: str, corpus: Corpus) -> dict[tuple[str, str], bytes]:
        report = extract(corpus, tiny_model, tmp_path / f"{name}.zarr", runtime=Runtime(threads=1))
        assert report.failures == {}
        store = open_store(tmp_path / f"{name}.zarr")
        return {(s.name, output): store.frames(s.name, output).tobytes() for s in SPOKEN for output in store.outputs}

    files = states("files", read_corpus(unpacked(tmp_path / "files", SPOKEN)))
    assert states("parquet", read_corpus(parquet(tmp_path / "x.parquet", SPOKEN))) == files
    assert states("tar", read_corpus(tar(tmp_path / "x.tar", samples_of(SPOKEN)))) == files
    recordings = [recording(s.name, f"files/{s.name}.{s.suffix}", 0.3 + 0.21 * i) for i, s in enumerate(SPOKEN)]
    assert states("lhotse", read_corpus(jsonl(tmp_path / "recordings.jsonl", recordings))) == files
    held = [(s.name, soundfile.read(io.BytesIO(s.data), dtype="float32")[0], 16_000) for s in SPOKEN]
    assert states("memory", read_corpus(held)) == files
    where = pq.read_table(tmp_path / "tar.zarr" / "utterances.parquet", columns=["id", "path", "member"]).to_pylist()
    assert {row["id"]: (row["path"], row["member"]) for row in where} == {
        s.name: ("x.tar", f"{s.name}.{s.suffix}") for s in SPOKEN
    }


def test_an_extraction_reads_a_parquet_file_once_for_lengths_and_once_for_samples(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from voxstrata.engine import Runtime, extract

    lengths = np.random.default_rng(0).permutation(400) / 4000 + 0.02  # in no order, as a plan by length shows
    spoken = [Spoken(f"{i}", "en", "", "", "wav", sound_file(s, i)) for i, s in enumerate(lengths.tolist())]
    path = parquet(tmp_path / "x.parquet", spoken, 25, locale=pa.array(["en"] * 400))
    size = path.stat().st_size
    for name, value in {"_BLOCK_BYTES": size // 20, "_KEPT_BYTES": size // 4, "_BUFFER_BYTES": 1 << 14}.items():
        monkeypatch.setattr(parquet_rows, name, value)
    opened, corpus, files = pq.ParquetFile, read_corpus(path), list[Counted]()

    def counted(source: Any, **options: Any) -> pq.ParquetFile:
        if source != path:  # the store's own tables are such files, too
            return opened(source, **options)
        files.append(Counted(path))  # each its own: two threads may open the file at once, and a position is not shared
        return opened(files[-1], **options)

    monkeypatch.setattr(pq, "ParquetFile", counted)
    report = extract(corpus, tiny_model, tmp_path / "s.zarr", runtime=Runtime(threads=2))
    assert report.failures == {}
    assert 1.8 * size < sum(file.total for file in files) < 3 * size
    parquet_rows._rows_of.cache_clear()
    for file in files:
        file.close()
