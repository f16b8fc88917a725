"""A store on gs:// over HTTP: gcp-storage-emulator, which knows neither conditions nor ranges."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from voxstrata.corpus import probe_corpus, read_corpus
from voxstrata.engine import Runtime, extract
from voxstrata.store import StoreSpec, open_store
from voxstrata.store import files as remembered
from voxstrata.store.files import Files


@pytest.fixture
def bucket() -> Iterator[str]:
    from gcp_storage_emulator.server import create_server

    server = create_server("127.0.0.1", 0, in_memory=True, default_bucket="bucket")
    server.start()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("STORAGE_EMULATOR_HOST", f"http://127.0.0.1:{server._api._httpd.server_port}")
        patch.setenv("FSSPEC_GS_TOKEN", "anon")
        patch.setenv("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")  # it asks over gRPC, which the emulator has not
        yield "gs://bucket"
    server.stop()


def test_a_store_on_google_storage_is_the_store_on_a_disk(
    bucket: str,
    make_corpus: Callable[..., Path],
    tiny_model: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    corpus = make_corpus({"en/a": 0.6, "es/b": 0.9})
    spec, runtime = StoreSpec(outputs=("final",)), Runtime(unit_megabytes=0.05, threads=1)
    extract(corpus, tiny_model, tmp_path / "s.zarr", spec, runtime)
    for known in (remembered._unconditional, remembered._conditional):
        known.clear()  # another test may have met a server of this address
    with caplog.at_level(logging.WARNING, "voxstrata"):
        extract(corpus, tiny_model, f"{bucket}/s.zarr", spec, runtime)
    assert "no conditional writes here" in caplog.text
    here, there = open_store(tmp_path / "s.zarr"), open_store(f"{bucket}/s.zarr")
    assert there.utterances == here.utterances
    for name in here.ids:
        assert (there.frames(name, "final") == here.frames(name, "final")).all()
    files = Files(bucket)
    assert files.names("s.zarr") == sorted(path.name for path in (tmp_path / "s.zarr").iterdir())
    files._fs.put(f"{corpus}/", "bucket/audio", recursive=True)
    assert probe_corpus(read_corpus(f"{bucket}/audio")).table == probe_corpus(read_corpus(corpus)).table
    capfd.readouterr()  # the emulator prints what it does not find
