"""What is too long to be held lies in a temporary file, and nothing that is stored shows it."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from voxstrata import verify
from voxstrata.audio.decode import decode, decode_to_slice, probe
from voxstrata.audio.info import Stated
from voxstrata.audio.source import FileSource, Recording
from voxstrata.base.spool import Spool
from voxstrata.corpus import read_corpus
from voxstrata.engine import Runtime, extract
from voxstrata.store import StoreSpec, open_store


def test_a_spool_is_an_array(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    spool, array = Spool(50, (3,), np.float16), np.zeros((50, 3), np.float16)
    for begin, count in ((10, 7), (0, 2), (45, 5), (12, 1)):
        rows = np.random.default_rng(begin).standard_normal((count, 3))
        spool.put(begin, rows)
        array[begin : begin + count] = rows
    for rows in (slice(0, 50), slice(8, 14), slice(44, 99), slice(20, 20), slice(None)):
        np.testing.assert_array_equal(spool[rows], array[rows])
    spool.resize(11)
    spool.resize(20)  # what was cut is zeros
    np.testing.assert_array_equal(spool[:], np.concatenate([array[:11], np.zeros((9, 3))]))
    assert len(spool) == 20
    assert os.listdir(tmp_path) == []  # nothing to be left by a kill


def test_a_long_recording_is_decoded_to_the_same_samples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("voxstrata.audio.decode.SPOOLED_SECONDS", 1)
    soundfile.write(tmp_path / "a.wav", np.random.default_rng(0).uniform(-0.5, 0.5, (60_000, 2)), 24_000)
    whole = Recording(FileSource(tmp_path / "a.wav"))
    samples = decode(whole)
    found = decode_to_slice(whole, probe(whole), None, None)
    assert isinstance(found, Spool)
    np.testing.assert_array_equal(found[:], samples)
    assert len(samples) == 40_000
    stated = decode_to_slice(whole, Stated(40_400), None, None)  # a manifest that rounds up
    np.testing.assert_array_equal(stated[:], np.pad(samples, (0, 400)))
    short = Recording(whole.source, 0.5, 0.4)
    assert isinstance(decode_to_slice(short, probe(short), None, None), np.ndarray)


def contents(store: Path) -> dict[str, bytes]:
    return {str(p.relative_to(store)): p.read_bytes() for p in sorted(store.rglob("*")) if p.is_file()}


@pytest.mark.parametrize("spec", [StoreSpec(), StoreSpec(pool="mean"), StoreSpec(every=3, dtype="float32")])
def test_stores_are_byte_identical_whatever_is_held(
    spec: StoreSpec, make_corpus: Callable[..., Path], tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus = read_corpus(make_corpus({"en/long": 65.0, "de/short": 1.0, "fr/bad": 40.0}))
    soundfile.write(Path(corpus.root) / "fr" / "bad.wav", np.full(640_000, np.nan), 16_000, "FLOAT")
    runtime = Runtime(threads=1, unit_megabytes=0.1)
    assert extract(corpus, tiny_model, tmp_path / "held.zarr", spec, runtime).failed == 1
    monkeypatch.setattr("voxstrata.audio.decode.SPOOLED_SECONDS", 30)
    monkeypatch.setattr("voxstrata.engine.sink._SPOOLED_BYTES", 100_000)
    made: list[int] = []

    class Noted(Spool):
        def __init__(self, length: int, *shape: Any) -> None:
            made.append(length)
            super().__init__(length, *shape)

    monkeypatch.setattr("voxstrata.engine.sink.Spool", Noted)
    assert extract(corpus, tiny_model, tmp_path / "spooled.zarr", spec, runtime).failed == 1
    assert bool(made) == (spec.pool is None)
    assert contents(tmp_path / "spooled.zarr") == contents(tmp_path / "held.zarr")
    assert verify(tmp_path / "spooled.zarr").sound
    assert open_store(tmp_path / "spooled.zarr").complete
