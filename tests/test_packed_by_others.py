"""What datasets, webdataset and lhotse themselves write and hold is read: ids, lengths, texts, languages, sounds."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import sound
from packed import Spoken, speak, unpacked

from voxstrata.audio.decode import decode
from voxstrata.audio.source import FileSource
from voxstrata.base.errors import UsageError
from voxstrata.corpus import Corpus, probe_corpus, read_corpus

SPOKEN = speak()


def holds_them(corpus: Corpus, tmp_path: Path, spoken: list[Spoken] = SPOKEN, speakers: bool = True) -> None:
    """The corpus says and holds what the unpacked one does, in its order."""
    names = ["id", "language", "text", *(["speaker"] if speakers else [])]
    files = read_corpus(unpacked(tmp_path / "files", spoken))
    assert corpus.table.select(names).to_pylist() == files.table.select(names).to_pylist()
    probed, expected = probe_corpus(corpus), probe_corpus(files).infos()
    infos, failures = probed.infos(), probed.failures
    assert failures == {}
    assert infos == expected
    for i in range(len(files)):
        recording = pickle.loads(pickle.dumps(corpus.recording(i)))
        np.testing.assert_array_equal(decode(recording), decode(files.recording(i)))


def dataset(folder: Path | None = None, spoken: list[Spoken] = SPOKEN) -> Any:
    """A dataset of the recordings, with their bytes, or of files in `folder`."""
    datasets = pytest.importorskip("datasets", reason="datasets is not installed")
    rows = [
        {"bytes": None, "path": str(folder / f"{s.name}.{s.suffix}")} if folder else
        {"bytes": s.data, "path": f"{s.name}.{s.suffix}"}
        for s in spoken
    ]  # fmt: skip
    made = datasets.Dataset.from_dict(
        {
            "audio": rows,
            "sentence": [s.text for s in spoken],
            "locale": [["de", "en"].index(s.language) for s in spoken],
            "client_id": [s.speaker for s in spoken],
        },
        features=datasets.Features(
            {
                "audio": {"bytes": datasets.Value("binary"), "path": datasets.Value("string")},
                "sentence": datasets.Value("string"),
                "locale": datasets.ClassLabel(names=["de", "en"]),
                "client_id": datasets.Value("string"),
            }
        ),
    )
    return made.cast_column("audio", datasets.Audio(decode=False))


def test_parquet_that_datasets_writes(tmp_path: Path) -> None:
    dataset().to_parquet(tmp_path / "train-00000-of-00001.parquet", batch_size=2)
    holds_them(read_corpus(tmp_path / "train-00000-of-00001.parquet"), tmp_path)


@pytest.mark.parametrize("decode", [False, True])
def test_a_dataset(tmp_path: Path, decode: bool) -> None:
    import_audio = pytest.importorskip("datasets", reason="datasets is not installed").Audio
    made = dataset().cast_column("audio", import_audio(decode=decode))
    holds_them(read_corpus(made), tmp_path)
    assert made.features["audio"].decode == decode
    holds_them(read_corpus(made.select([4, 0, 2])), tmp_path / "some", [SPOKEN[i] for i in (4, 0, 2)])
    made.save_to_disk(str(tmp_path / "saved"))
    datasets = pytest.importorskip("datasets")
    holds_them(read_corpus(datasets.load_from_disk(str(tmp_path / "saved"))), tmp_path / "disk")


def test_a_dataset_of_files(tmp_path: Path) -> None:
    unpacked(tmp_path / "files", SPOKEN)
    corpus = read_corpus(dataset(tmp_path / "files"))
    assert isinstance(corpus.recording(0).source, FileSource)
    assert corpus.root / corpus.table["path"][1].as_py() == tmp_path / "files" / "b.flac"
    holds_them(corpus, tmp_path)


def test_of_a_dataset_dict_a_split_is_chosen(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets", reason="datasets is not installed")
    both = datasets.DatasetDict({"train": dataset(spoken=SPOKEN[:3]), "test": dataset(spoken=SPOKEN[3:])})
    holds_them(read_corpus(both, "test"), tmp_path, SPOKEN[3:])
    with pytest.raises(UsageError, match="choose one of its splits, train, test"):
        read_corpus(both)
    with pytest.raises(UsageError, match="give a path"):
        read_corpus(both["test"].to_iterable_dataset())


def test_shards_that_webdataset_writes(tmp_path: Path) -> None:
    webdataset = pytest.importorskip("webdataset", reason="webdataset is not installed")
    (tmp_path / "shards").mkdir()
    with webdataset.ShardWriter(str(tmp_path / "shards" / "%03d.tar"), maxcount=2, verbose=0) as shards:
        for s in SPOKEN:
            about = {"language": s.language, "speaker": s.speaker}
            shards.write({"__key__": s.name, s.suffix: s.data, "txt": s.text, "json": about, "cls": 3})
    assert len(list((tmp_path / "shards").iterdir())) == 3
    corpus = read_corpus(tmp_path / "shards")
    holds_them(corpus, tmp_path)
    assert corpus.table["cls"].to_pylist() == ["3"] * 5


def cuts(tmp_path: Path) -> Any:
    """A talk of 4 s in stereo: four cuts, and the stretches of samples that they are."""
    lhotse = pytest.importorskip("lhotse", reason="lhotse is not installed")
    import soundfile

    talk = np.stack([sound(4.0, 1), sound(4.0, 2)], axis=1)
    (tmp_path / "audio").mkdir()
    soundfile.write(tmp_path / "audio" / "talk.wav", talk, 16_000, subtype="FLOAT")
    recordings = lhotse.RecordingSet.from_recordings([lhotse.Recording.from_file(tmp_path / "audio" / "talk.wav")])
    supervisions = lhotse.SupervisionSet.from_segments(
        lhotse.SupervisionSegment(
            f"talk-{i}-{channel}", "talk", start, 1.1, channel, f"Said {i}.", "en", f"s{channel}", custom={"snr": i}
        )
        for i, start in enumerate((0.25, 2.5))
        for channel in (0, 1)
    )
    stretches = {
        f"talk-{i}-{channel}": talk[round(start * 16_000) : round((start + 1.1) * 16_000), channel]
        for i, start in enumerate((0.25, 2.5))
        for channel in (0, 1)
    }
    return recordings, supervisions, stretches


def holds_stretches(corpus: Corpus, stretches: dict[str, np.ndarray]) -> None:
    assert corpus.table["id"].to_pylist() == list(stretches)
    assert corpus.table["text"].to_pylist() == ["Said 0.", "Said 0.", "Said 1.", "Said 1."]
    assert corpus.table["speaker"].to_pylist() == ["s0", "s1", "s0", "s1"]
    assert corpus.table["language"].to_pylist() == ["en"] * 4
    assert corpus.table["snr"].to_pylist() == ["0", "0", "1", "1"]
    assert corpus.table["offset"].to_pylist() == [0.25, 0.25, 2.5, 2.5]
    assert corpus.table["duration"].to_pylist() == [1.1] * 4
    assert corpus.table["channel"].to_pylist() == [0, 1, 0, 1]
    for i, samples in enumerate(stretches.values()):
        np.testing.assert_array_equal(decode(corpus.recording(i)), samples)


@pytest.mark.parametrize("suffix", ["jsonl", "jsonl.gz"])
def test_recordings_and_supervisions_that_lhotse_writes(tmp_path: Path, suffix: str) -> None:
    recordings, supervisions, stretches = cuts(tmp_path)
    recordings.to_file(tmp_path / f"corpus_recordings_train.{suffix}")
    supervisions.to_file(tmp_path / f"corpus_supervisions_train.{suffix}")
    holds_stretches(read_corpus(tmp_path / f"corpus_supervisions_train.{suffix}"), stretches)


def test_cuts_that_lhotse_writes_and_holds(tmp_path: Path) -> None:
    recordings, supervisions, stretches = cuts(tmp_path)
    import lhotse

    whole = lhotse.CutSet.from_manifests(recordings, supervisions)
    made = whole.trim_to_supervisions(keep_overlapping=False)
    made.to_file(tmp_path / "cuts.jsonl.gz")
    for corpus in (read_corpus(tmp_path / "cuts.jsonl.gz"), read_corpus(made)):
        holds_stretches(corpus, stretches)
        assert corpus.table["path"].to_pylist()[0].endswith("talk.wav")
    one = read_corpus(whole)
    assert one.table.select(["path", "offset", "duration", "channel"]).to_pylist() == [
        {"path": "talk.wav", "offset": None, "duration": None, "channel": None}
    ]
    held = lhotse.Recording.from_bytes((tmp_path / "audio" / "talk.wav").read_bytes(), "talk")
    memory = read_corpus(lhotse.CutSet.from_cuts([held.to_cut()]))
    np.testing.assert_array_equal(decode(memory.recording(0)), decode(one.recording(0)))
    # parts keep the id of their recording
    moved = read_corpus(lhotse.CutSet.from_cuts([cut.move_to_memory("flac") for cut in made]))
    assert moved.table["id"].to_pylist() == list(stretches)
    for i, samples in enumerate(stretches.values()):
        np.testing.assert_allclose(decode(moved.recording(i)), samples, rtol=0, atol=2**-14)
