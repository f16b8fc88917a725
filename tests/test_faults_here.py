"""This machine's faults while local files are read: they end the run, and fail no recording."""

from __future__ import annotations

import errno
import io
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
from test_cli import run

from voxstrata.audio.decode import decode, probe
from voxstrata.audio.segments import SegmentReader
from voxstrata.audio.source import FileSource, Recording
from voxstrata.base.errors import AudioError, InputError, UnreachableError
from voxstrata.corpus import parquet_rows, probe_corpus, read_corpus
from voxstrata.early_exit.recordings import find_recordings, read_recording
from voxstrata.engine import Runtime, extract, retrying
from voxstrata.engine.run import prepare
from voxstrata.store import StoreSpec, open_store

LENGTHS = {"a": 0.7, "b": 1.1, "c": 0.4}
FAULTS = [errno.EMFILE, errno.EIO, errno.ESTALE, errno.ENOSPC, errno.ENOMEM]
SPEC, RUNTIME = StoreSpec(outputs=("final",)), Runtime(threads=1)


@pytest.fixture
def corpus(make_corpus: Callable[..., Path]) -> Path:
    return make_corpus(LENGTHS)


def _fail(patch: pytest.MonkeyPatch, number: int) -> None:
    """Have every opening of b.wav fail."""
    right = Path.open

    def wrong(path: Path, *args: Any, **how: Any) -> Any:
        if path.name == "b.wav":
            raise OSError(number, "made to fail", str(path))
        return right(path, *args, **how)

    patch.setattr(Path, "open", wrong)


@pytest.mark.parametrize("number", FAULTS)
def test_a_fault_of_the_machine_ends_the_run_and_the_next_goes_on(
    corpus: Path, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    read = read_corpus(corpus)
    with monkeypatch.context() as patch:
        _fail(patch, number)
        with pytest.raises(InputError, match=r"b\.wav: cannot be read now .*made to fail.*run the same command"):
            probe_corpus(read)
    probed = probe_corpus(read)
    with monkeypatch.context() as patch:
        patch.setattr("voxstrata.engine.planning.probe_corpus", lambda *_, **__: probed)
        _fail(patch, number)
        with pytest.raises(InputError, match=r"b\.wav: cannot be read now .*made to fail"):
            extract(read, tiny_model, tmp_path / "s.zarr", SPEC, RUNTIME)
    assert extract(read, tiny_model, tmp_path / "s.zarr", SPEC, RUNTIME).failed == 0
    assert open_store(tmp_path / "s.zarr").complete


def _bytes(store: Path) -> dict[str, bytes]:
    return {str(p.relative_to(store)): p.read_bytes() for p in sorted(store.rglob("*")) if p.is_file()}


@pytest.mark.parametrize("error", [MemoryError(), TimeoutError("timed out")], ids=lambda e: type(e).__name__)
def test_neither_memory_nor_time_that_runs_out_is_a_recordings_fault(
    corpus: Path, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def wrong(*_: Any, **__: Any) -> Any:
        raise error

    read, store = read_corpus(corpus), tmp_path / "s.zarr"
    with monkeypatch.context() as patch:
        patch.setattr("voxstrata.engine.decoding.decode_to_slice", wrong)
        with pytest.raises(InputError, match=r"cannot be read now \((out of memory|timed out)\)"):
            extract(read, tiny_model, store, SPEC, RUNTIME)
        patch.setattr("voxstrata.corpus.probe.probe", wrong)
        with pytest.raises(InputError, match=r"cannot be read now"):
            probe_corpus(read)
    assert extract(read, tiny_model, store, SPEC, RUNTIME).failed == 0


UNITS = Runtime(threads=1, unit_megabytes=1e-6)  # a chunk each, so that a unit holds few recordings


def _apart(make_corpus: Callable[..., Path]) -> Path:
    """A unit a recording."""
    folder = make_corpus({f"{language}/x": 0.5 for language in ("de", "en", "fr")})
    assert len(read_corpus(folder)) == 3
    return folder


def test_a_recording_that_is_gone_leaves_its_unit_pending(
    make_corpus: Callable[..., Path], tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = _apart(make_corpus)
    read, whole, store = read_corpus(folder), tmp_path / "whole.zarr", tmp_path / "s.zarr"
    extract(read, tiny_model, whole, SPEC, UNITS)
    probed = probe_corpus(read)
    monkeypatch.setattr("voxstrata.engine.planning.probe_corpus", lambda *_, **__: probed)
    (folder / "en").rename(tmp_path / "away")
    with pytest.raises(UnreachableError, match=r"en/x\.wav: is gone, .*run the same command"):
        extract(read, tiny_model, store, SPEC, UNITS)
    done = extract(read, tiny_model, store, SPEC, UNITS, keep_going=True)
    assert (done.pending_units, list(done.unreachable), done.failed) == (1, [1], 0)
    assert "left: 1 unit, since a recording could not be read (unit 1: " in done.to_text()
    assert not open_store(store).complete
    (tmp_path / "away").rename(folder / "en")
    assert extract(read, tiny_model, store, SPEC, UNITS).units == 3
    assert _bytes(store) == _bytes(whole)


def test_what_failed_is_done_again_when_asked_for(
    make_corpus: Callable[..., Path], tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = _apart(make_corpus)
    read, whole, store = read_corpus(folder), tmp_path / "whole.zarr", tmp_path / "s.zarr"
    extract(read, tiny_model, whole, SPEC, UNITS)
    prepare(read, tiny_model, store, SPEC, UNITS)
    sound = {name: (folder / name / "x.wav").read_bytes() for name in ("de", "en")}
    for name, data in sound.items():
        (folder / name / "x.wav").write_bytes(bytes(100) + data[100:])  # of the same size
    assert extract(read, tiny_model, store, SPEC, UNITS).failed == 2
    (folder / "de" / "x.wav").write_bytes(sound["de"])
    assert extract(read, tiny_model, store, SPEC, UNITS).failed == 2
    done = extract(read, tiny_model, store, SPEC, UNITS, retry_failed=True)
    assert (done.failed, done.resumed_units) == (1, 2)  # that of `en` was not touched
    (folder / "en" / "x.wav").write_bytes(sound["en"])
    settings = ("--outputs", "final", "--threads", 1)
    assert run("extract", folder, tiny_model, "-o", store, *settings, "--retry-failed") == 0
    assert _bytes(store) == _bytes(whole)


@pytest.mark.parametrize("fault", [False, True])
def test_a_decoders_bug_fails_again_and_a_fault_of_the_machine_ends_the_look(
    corpus: Path, monkeypatch: pytest.MonkeyPatch, fault: bool
) -> None:
    def wrong(*_: object) -> None:
        raise OSError(errno.EIO, "made to fail") if fault else RuntimeError("a decoder's bug")

    read = read_corpus(corpus)
    looked: Any = SimpleNamespace(corpus=read, probed=probe_corpus(read))
    with SegmentReader() as segments:
        assert retrying._decodes(looked, 1, segments)
        monkeypatch.setattr(retrying, "decode_to_slice", wrong)
        if fault:
            with pytest.raises(UnreachableError, match=r"b\.wav: cannot be read now"):
                retrying._decodes(looked, 1, segments)
        else:
            assert not retrying._decodes(looked, 1, segments)


def test_what_failed_at_its_header_is_named(
    make_corpus: Callable[..., Path], tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, store = _apart(make_corpus), tmp_path / "s.zarr"
    sound = (folder / "en" / "x.wav").read_bytes()
    (folder / "en" / "x.wav").write_bytes(b"RIFF")
    settings = ("--outputs", "final", "--threads", 1)
    assert run("extract", folder, tiny_model, "-o", store, *settings) == 4
    (folder / "en" / "x.wav").write_bytes(sound)
    assert run("extract", folder, tiny_model, "-o", store, *settings, "--retry-failed") == 4
    assert "1 recording, e.g. 'en/x', can be read now" in capsys.readouterr().err


def test_an_unreadable_file_still_fails_alone(corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _fail(monkeypatch, errno.EACCES)
    failures = probe_corpus(read_corpus(corpus)).failures
    assert list(failures) == [1]
    assert "b.wav" in failures[1]


def test_a_fault_of_the_machine_ends_a_sweep(corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read = read_corpus(corpus)
    found, _ = find_recordings(read)
    _fail(monkeypatch, errno.ESTALE)
    with pytest.raises(UnreachableError, match=r"b\.wav: cannot be read now"):
        find_recordings(read)
    with pytest.raises(UnreachableError, match=r"b\.wav: cannot be read now"):
        read_recording(read, 1, found[1])


def test_a_fault_in_a_segment_is_no_damage_of_its_file(corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    segment = Recording(FileSource(corpus / "b.wav"), 0.2, 0.5)
    info, reader = probe(segment), SegmentReader()
    with monkeypatch.context() as patch:
        _fail(patch, errno.EMFILE)
        with pytest.raises(UnreachableError, match=r"b\.wav: cannot be read now"):
            decode(segment, info, reader)
    assert len(decode(segment, info, reader)) == 8000
    reader.close()


def test_a_fault_in_a_parquet_file_is_no_damage_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sound = io.BytesIO()
    soundfile.write(sound, [0.0] * 160, 16_000, format="WAV")
    pq.write_table(pa.table({"audio": [sound.getvalue()]}), tmp_path / "x.parquet")
    source = parquet_rows.ParquetSource(tmp_path / "x.parquet", "audio", 0)

    def wrong(column: Any) -> Any:
        raise OSError(errno.ESTALE, "Stale file handle")

    with monkeypatch.context() as patch:
        patch.setattr(parquet_rows, "audio_bytes", wrong)
        with pytest.raises(UnreachableError, match=r"x\.parquet.*cannot be read now"):
            source.read()
    assert source.read() == sound.getvalue()


def test_what_libsndfile_calls_a_system_error_is_looked_at(corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """libsndfile keeps the number to itself: the file is read once more, by which one knows."""

    def wrong(*_: Any, **__: Any) -> Any:
        raise soundfile.LibsndfileError(2)

    info, source = probe(corpus / "b.wav"), FileSource(corpus / "b.wav")
    monkeypatch.setattr("voxstrata.audio.readers.SequentialFile.read", wrong)
    with pytest.raises(AudioError, match="truncated"):  # the file can be read: it is damaged
        decode(source, info)
    right = FileSource.open

    class Broken(io.BytesIO):
        def read(self, count: int | None = -1, /) -> bytes:
            if count == 1 << 20:
                raise OSError(errno.ESTALE, "Stale file handle")
            return super().read(count)

    def opened(source: FileSource) -> Any:
        with right(source) as file:
            return Broken(file.read())

    monkeypatch.setattr(FileSource, "open", opened)
    with pytest.raises(OSError, match="Stale file handle"):
        decode(source, info)
    read = read_corpus(corpus)
    with pytest.raises(UnreachableError, match=r"b\.wav: cannot be read now .*Stale file"):
        read_recording(read, 1, info)
