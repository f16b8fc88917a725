"""Promises of lengths that a manifest states: nothing is opened before it is decoded, and states are the same."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
from conftest import sound

from voxstrata.audio import decode as decode_module
from voxstrata.audio.decode import decode
from voxstrata.audio.info import Stated
from voxstrata.audio.segments import SegmentReader
from voxstrata.audio.source import FileSource, Recording
from voxstrata.base.errors import AudioError, InputError, UsageError
from voxstrata.corpus import Corpus, probe_corpus, read_corpus
from voxstrata.engine import Runtime, extract
from voxstrata.store import StoreSpec, make_plan, open_store

SPEC = StoreSpec(("layer_01", "final"), dtype="float32")
Row = tuple[str, float | None, float | None]  # path, offset, duration


def manifest(folder: Path, rows: Sequence[Row], name: str = "m.parquet", **more: list[Any]) -> Path:
    """Rows with ids u0, u1, …"""
    paths, offsets, durations = zip(*rows, strict=True)
    columns = {"id": [f"u{i}" for i in range(len(rows))], "path": list(paths), "duration": list(durations), **more}
    if any(offset is not None for offset in offsets):
        columns["offset"] = list(offsets)
    pq.write_table(pa.table(columns), folder / name)
    return folder / name


def test_planning_opens_no_file(tmp_path: Path) -> None:
    seconds = [1.0, 0.5, 31.0, 12.345]
    path = manifest(tmp_path, [(f"nowhere/{i}.wav", None, s) for i, s in enumerate(seconds)])
    corpus = read_corpus(path, lengths="manifest")
    plan = make_plan(corpus, probe_corpus(corpus), SPEC, 32)
    assert plan.probed.failures == {}
    found = dict(zip(plan.utterances["id"].to_pylist(), plan.samples.tolist(), strict=True))
    assert found == {f"u{i}": round(s * 16_000) for i, s in enumerate(seconds)}
    assert plan.utterances["seconds"].to_pylist() == sorted(seconds, reverse=True)
    assert plan.utterances["size_bytes"].null_count == 4
    assert len(probe_corpus(read_corpus(path)).failures) == 4


@pytest.mark.parametrize(
    ("offset", "duration"), [(None, None), (None, math.nan), (None, 0.0), (0.0, 1e-6), (-1.0, 1.0), (0.0, 1e300)]
)
def test_a_row_without_a_length_fails_alone(offset: float | None, duration: float | None) -> None:
    table = pa.table(
        {
            "id": ["good", "bad"],
            "path": ["a.wav", "b.wav"],
            "offset": pa.array([None, offset], pa.float64()),
            "duration": pa.array([1.0, duration], pa.float64(), from_pandas=False),
        }
    )
    probed = probe_corpus(Corpus(Path("/data"), table, lengths="manifest"))
    assert probed.infos() == [Stated(16_000), None]
    assert "b.wav: a duration of" in probed.failures[1]


def test_a_manifest_without_a_duration_in_every_row_is_refused(tmp_path: Path) -> None:
    path = manifest(tmp_path, [("a.wav", None, 1.0), ("b.wav", None, None)])
    with pytest.raises(InputError, match=r"m\.parquet, row 2: no duration, .* \(--lengths headers\)"):
        read_corpus(path, lengths="manifest")
    (tmp_path / "m.tsv").write_text("path\na.wav\n", encoding="utf-8")
    with pytest.raises(InputError, match=r"m\.tsv: no column of durations"):
        read_corpus(tmp_path / "m.tsv", lengths="manifest")
    (tmp_path / "a.wav").touch()
    with pytest.raises(UsageError, match="a folder of audio has no durations"):
        read_corpus(tmp_path, lengths="manifest")
    with pytest.raises(UsageError, match="unknown lengths 'guess'; choose headers or manifest"):
        read_corpus(tmp_path / "m.tsv", lengths="guess")  # type: ignore[arg-type]


def test_start_and_end_are_a_length_too(tmp_path: Path) -> None:
    (tmp_path / "m.tsv").write_text("path\tstart\tend\na.wav\t1.5\t2.25\na.wav\t\t1\n", encoding="utf-8")
    assert probe_corpus(read_corpus(tmp_path / "m.tsv", lengths="manifest")).samples.tolist() == [12_000, 16_000]


RATES = {"cd": 44_100, "phone": 8_000, "plain": 16_000, "stage": 48_000}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A second of sound and some more at several rates, and four seconds."""
    folder = tmp_path_factory.mktemp("files")
    for seed, (name, rate) in enumerate(RATES.items()):
        soundfile.write(folder / f"{name}.wav", sound(1.25, seed, rate), rate)
    soundfile.write(folder / "talk.flac", sound(4, 9), 16_000)
    return folder


@pytest.mark.parametrize("name", RATES)
def test_samples_are_those_of_the_stretch(files: Path, name: str) -> None:
    """A stretch that is no rounding of anything: exactly what a header-planned segment gives."""
    recording = Recording(FileSource(files / f"{name}.wav"), 0.25, 0.5)
    np.testing.assert_array_equal(decode(recording, Stated(8000)), decode(recording))


@pytest.mark.parametrize(
    ("stated", "kept"), [(1.25, 1.25), (1.2, 1.2), (1.2455, 1.2455), (1.26, 1.25), (1.3, 1.25), (1.0, 1.0)]
)
def test_a_rounded_length_cuts_or_fills_the_very_end(files: Path, stated: float, kept: float) -> None:
    whole, _ = soundfile.read(files / "plain.wav", dtype="float32")
    found = decode(Recording(FileSource(files / "plain.wav"), None, stated), Stated(round(stated * 16_000)))
    assert len(found) == round(stated * 16_000)
    np.testing.assert_array_equal(found[: round(kept * 16_000)], whole[: round(kept * 16_000)])
    assert not found[round(kept * 16_000) :].any()


@pytest.mark.parametrize("stated", [1.31, 1.7, 1.8, 100.0])
def test_a_file_that_ends_before_its_stated_end_is_refused_saying_so(files: Path, stated: float) -> None:
    with pytest.raises(AudioError, match=r"plain\.wav: .*the file ends at 1\.25 s; "):
        decode(Recording(FileSource(files / "plain.wav"), None, stated), Stated(round(stated * 16_000)))


def test_the_header_of_a_long_file_is_read_once_for_its_segments(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    real = decode_module._probe_file
    monkeypatch.setattr(decode_module, "_probe_file", lambda source: asked.append(source) or real(source))
    source = FileSource(files / "talk.flac")
    with SegmentReader() as reader:
        for begin in np.arange(0, 4, 0.25).tolist():
            decode(Recording(source, begin, 0.25), Stated(4000), reader)
    assert asked == [source]


def stretches(files: Path) -> list[Row]:
    rows: list[Row] = [(f"{name}.wav", 0.0, 1.25) for name in RATES]
    rows += [("talk.flac", begin, 0.5) for begin in (0.0, 0.5, 1.75, 3.5)]
    return [(str(files / path), offset, duration) for path, offset, duration in rows]


def test_states_are_those_of_a_run_that_read_headers(files: Path, tiny_model: Path, tmp_path: Path) -> None:
    path = manifest(tmp_path, stretches(files), language=["en"] * 4 + ["de"] * 4)
    for lengths in ("headers", "manifest"):
        corpus = read_corpus(path, lengths=lengths)  # type: ignore[arg-type]
        extract(corpus, tiny_model, tmp_path / f"{lengths}.zarr", SPEC, Runtime(threads=1))
    header, stated = (open_store(tmp_path / f"{lengths}.zarr") for lengths in ("headers", "manifest"))
    assert stated.about["lengths"] == "manifest"
    assert "lengths" not in header.about
    assert sorted(header.ids) == sorted(stated.ids) == sorted(f"u{i}" for i in range(8))
    for name in header.ids:
        for output in header.outputs:
            np.testing.assert_array_equal(stated.frames(name, output), header.frames(name, output))


def test_what_turns_out_otherwise_costs_that_recording_alone(files: Path, tiny_model: Path, tmp_path: Path) -> None:
    rows = [*stretches(files), (str(files / "gone.wav"), 0.0, 1.0), (str(files / "plain.wav"), 0.0, 1.4)]
    report = extract(read_corpus(manifest(tmp_path, rows), lengths="manifest"), tiny_model, tmp_path / "s.zarr", SPEC)
    assert sorted(report.failures) == ["u8", "u9"]
    assert "gone.wav: no such file" in report.failures["u8"]
    assert "the manifest says 1.40 s from 0 s on, the file ends at 1.25 s" in report.failures["u9"]
    store = open_store(tmp_path / "s.zarr")
    assert store.complete
    assert len(store.frames("u7", "final")) == 25


def test_a_store_goes_on_with_the_lengths_that_it_was_begun_with(files: Path, tiny_model: Path, tmp_path: Path) -> None:
    path = manifest(tmp_path, stretches(files))
    extract(read_corpus(path, lengths="manifest"), tiny_model, tmp_path / "s.zarr", SPEC)
    again = extract(read_corpus(path, lengths="manifest"), tiny_model, tmp_path / "s.zarr", SPEC)
    assert again.resumed_units == again.units
    with pytest.raises(InputError, match="give --lengths manifest, or use a new store"):
        extract(read_corpus(path), tiny_model, tmp_path / "s.zarr", SPEC)
