"""Stores on S3: a server on loopback that fails, goes away, ignores conditions; workers that are killed and share."""

from __future__ import annotations

import errno
import itertools
import json
import logging
import signal
import time
from collections.abc import Callable, Iterator
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from kills import PROCESSES, contents, extract_with
from s3_server import S3Server

from voxstrata.audio.remote import RemoteSource
from voxstrata.base import remote
from voxstrata.base.errors import AudioError, InputError, UnreachableError
from voxstrata.engine import Runtime, extract
from voxstrata.store import StoreSpec, leases, open_store
from voxstrata.store import files as store_files
from voxstrata.store.claims import Claims
from voxstrata.store.files import Files, patient_lock
from voxstrata.store.shard import RemoteShard, ShardLayout

SPEC, RUNTIME = StoreSpec(outputs=("layer_03", "final")), Runtime(unit_megabytes=0.05, threads=1)
SECRET = "wJalrXUtnFEMIbPxRfiCYEXAMPLEKEY"


@pytest.fixture(scope="module")
def s3() -> Iterator[S3Server]:
    """One server for all tests here; each uses names of its own."""
    server = S3Server()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in server.environment(SECRET).items():
            patch.setenv(name, value)
        patch.setattr(remote, "_FIRST_WAIT_SECONDS", 0.02)
        patch.setattr(leases, "LEASE_SECONDS", 1.2)
        Files("s3://bucket")._fs.makedirs("bucket", exist_ok=True)
        yield server
    server.close()


@pytest.fixture(scope="module")
def corpus(make_corpus: Callable[..., Path]) -> Path:
    return make_corpus({f"{lang}/{i}": 0.3 + 0.2 * i for lang in ("en", "es", "sw") for i in range(4)})


@pytest.fixture(scope="module")
def on_disk(corpus: Path, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What an uninterrupted extraction leaves on a disk."""
    store = tmp_path_factory.mktemp("disk") / "s.zarr"
    extract(corpus, tiny_model, store, SPEC, RUNTIME)
    return _comparable(contents(store))


def _comparable(found: dict[str, bytes]) -> dict[str, bytes]:
    """All but where the corpus lies, which a store on a disk says relative to itself, and the checksum over that."""
    root = json.loads(found["zarr.json"])
    del root["attributes"]["corpus_root"], root["attributes"]["voxstrata_checksum"]
    return found | {"zarr.json": json.dumps(root, sort_keys=True).encode()}


def _objects(url: str) -> dict[str, bytes]:
    fs, path = remote.open_remote(url)
    return _comparable({name.removeprefix(f"{path}/"): fs.cat_file(name) for name in fs.find(path)})


def _worker(s3: S3Server, corpus: Path, model: Path, store: str) -> BaseProcess:
    """An extraction in a process of its own."""
    given = (s3.environment(SECRET), leases.LEASE_SECONDS, corpus, model, store, (SPEC, RUNTIME))
    child = PROCESSES.Process(target=extract_with, args=given)
    child.start()
    return child


def test_a_store_on_s3_is_the_store_on_a_disk(
    s3: S3Server, corpus: Path, tiny_model: Path, on_disk: dict[str, bytes]
) -> None:
    s3.requests.clear()
    report = extract(corpus, tiny_model, "s3://bucket/plain.zarr", SPEC, RUNTIME)
    assert _objects("s3://bucket/plain.zarr") == on_disk
    assert report.units > 2
    for unit in range(report.units):  # a shard an output, then a marker: one request each
        puts = [path.rsplit("plain.zarr/")[1] for method, path, _ in s3.requests if method == "PUT"]
        shards = [name for name in puts if name.startswith("frames/") and name.endswith(f"/c/{unit}/0")]
        assert sorted(shards) == [f"frames/final/c/{unit}/0", f"frames/layer_03/c/{unit}/0"]
        assert puts.index(f"units/{unit:06d}.json") > max(map(puts.index, shards))


def test_a_server_that_fails_every_seventh_request_costs_nothing(
    s3: S3Server, corpus: Path, tiny_model: Path, on_disk: dict[str, bytes]
) -> None:
    with s3.failing_every(7, 503, 500, "cut", 429, "lost"):
        extract(corpus, tiny_model, "s3://bucket/failing.zarr", SPEC, RUNTIME)
    assert _objects("s3://bucket/failing.zarr") == on_disk


def test_a_server_that_goes_away_in_the_middle_is_waited_for(
    s3: S3Server, corpus: Path, tiny_model: Path, on_disk: dict[str, bytes]
) -> None:
    away: list[float] = []

    def gone(environ: dict[str, Any]) -> str | None:
        if "away.zarr/units/000001" in environ["PATH_INFO"] and not away:
            away.append(time.monotonic())
        return "cut" if away and time.monotonic() - away[0] < 1.5 else None

    with s3.failing(gone):
        extract(corpus, tiny_model, "s3://bucket/away.zarr", SPEC, RUNTIME)
    assert away
    assert _objects("s3://bucket/away.zarr") == on_disk


def test_a_server_that_stays_away_ends_the_run_with_a_sentence_and_the_next_run_goes_on(
    s3: S3Server, corpus: Path, tiny_model: Path, on_disk: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    url = "s3://bucket/gone.zarr"
    monkeypatch.setattr(remote, "PATIENCE_SECONDS", 0.3)
    down = itertools.count()
    with (
        s3.failing(lambda e: "cut" if "gone.zarr/units/000001" in e["PATH_INFO"] or next(down) > 400 else None),
        pytest.raises(InputError, match=r"s3://bucket/gone\.zarr/units/000001\.json: no answer .*run the same command"),
    ):
        extract(corpus, tiny_model, url, SPEC, RUNTIME)
    extract(corpus, tiny_model, url, SPEC, RUNTIME)
    assert _objects(url) == on_disk


@pytest.mark.long
def test_a_killed_run_resumes_and_leaves_the_same_bytes(
    s3: S3Server, corpus: Path, tiny_model: Path, on_disk: dict[str, bytes]
) -> None:
    url = "s3://bucket/killed.zarr"
    for last in ("probe.parquet", "frames/layer_03/c/0/0", "units/000001.json"):  # the request it is killed at
        child = _worker(s3, corpus, tiny_model, url)
        while child.is_alive() and not s3.count("PUT", f"killed.zarr/{last}"):
            time.sleep(0.001)
        child.kill()
        child.join()
        assert child.exitcode == -signal.SIGKILL
    child = _worker(s3, corpus, tiny_model, url)
    child.join()
    assert child.exitcode == 0
    assert _objects(url) == on_disk


def test_two_workers_share_the_units(s3: S3Server, corpus: Path, tiny_model: Path, on_disk: dict[str, bytes]) -> None:
    url = "s3://bucket/shared.zarr"
    workers = [_worker(s3, corpus, tiny_model, url) for _ in range(2)]
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0, 0]
    assert _objects(url) == on_disk
    shards = [path for method, path, _ in s3.requests if method == "PUT" and "/shared.zarr/frames/final/c/" in path]
    assert len(shards) == len(set(shards)) > 2  # no unit was done twice


@pytest.mark.parametrize("damage", [b"", b'{"unit": 1'])
def test_a_damaged_marker_is_a_unit_that_is_done_again(
    s3: S3Server, corpus: Path, tiny_model: Path, on_disk: dict[str, bytes], damage: bytes
) -> None:
    url = f"s3://bucket/marker{len(damage)}.zarr"
    extract(corpus, tiny_model, url, SPEC, RUNTIME)
    Files(url).write("units/000001.json", damage)
    s3.requests.clear()
    report = extract(corpus, tiny_model, url, SPEC, RUNTIME)
    assert (report.pending_units, report.units - report.resumed_units) == (0, 1)
    shards = {path for method, path, _ in s3.requests if method == "PUT" and "/frames/final/c/" in path}
    assert len(shards) == 1
    assert _objects(url) == on_disk


def test_a_claim_is_one_workers_until_it_is_seen_to_be_dead(s3: S3Server) -> None:
    files = Files("s3://bucket/claims")
    ours, theirs = Claims(files), Claims(files)
    assert ours.take(5)
    begin = time.monotonic()
    while time.monotonic() - begin < 2 * leases.LEASE_SECONDS:  # it lives, however often they ask
        assert not theirs.take(5)
        time.sleep(0.05)
    assert theirs.take(6)
    assert ours._leases
    ours._leases._stop.set()  # as if its process had died
    begin = time.monotonic()
    while not theirs.take(5):
        time.sleep(0.05)
        assert time.monotonic() - begin < 20
    theirs.drop(5)
    theirs.drop(6)
    assert files.names("claims") == []


def test_a_claim_that_is_dropped_is_free_at_once(s3: S3Server) -> None:
    files = Files("s3://bucket/dropped")
    with Claims(files) as ours:
        assert ours.take(1)
        theirs = Claims(files)
        assert not theirs.take(1)
    assert theirs.take(1) or theirs.take(1)
    with theirs:
        pass


def test_while_nobody_reaches_the_server_no_claim_dies(s3: S3Server) -> None:
    files = Files("s3://bucket/outage")
    ours, theirs = Claims(files), Claims(files)
    assert ours.take(1)
    assert not theirs.take(1)
    assert not theirs.take(1)
    with s3.failing(lambda _: "cut"):  # neither beats nor looks get through
        time.sleep(1.5 * leases.LEASE_SECONDS)
    assert not theirs.take(1)
    ours.drop(1)


def test_a_store_without_conditions_is_noted_once_and_claims_are_asked_for_before(
    s3: S3Server, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_files, "_unconditional", set())
    monkeypatch.setattr(store_files, "_conditional", set())

    def forget(environ: dict[str, Any]) -> None:
        environ.pop("HTTP_IF_NONE_MATCH", None)

    files = Files("s3://bucket/careless")
    with (
        s3.failing(forget),
        caplog.at_level(logging.WARNING, "voxstrata"),
        Claims(files) as ours,
        Claims(files) as theirs,
    ):
        assert [ours.take(1), theirs.take(1), theirs.take(2), ours.take(2)] == [True, False, True, False]
    assert [record.getMessage().count("no conditional writes") for record in caplog.records] == [1]


def test_a_claim_whose_answer_was_lost_is_ours(s3: S3Server) -> None:
    files = Files("s3://bucket/lost")
    lost = itertools.count()
    with s3.failing(lambda e: "lost" if e["REQUEST_METHOD"] == "PUT" and next(lost) == 0 else None):
        claims = Claims(files)
        assert claims.take(1)
    claims.drop(1)
    assert files.names("claims") == []


def test_the_lock_refuses_while_its_holder_lives_and_is_taken_over_when_it_died(s3: S3Server) -> None:
    files, other = Files("s3://bucket/lock"), Files("s3://bucket/lock")
    with files.lock(), pytest.raises(InputError, match="another run is writing this store"), other.lock():
        pass
    dead = leases.Leases(files)
    assert dead.take(".voxstrata-lock/plan")
    dead._stop.set()
    with other.lock():
        assert files.names() == [".voxstrata-lock"]
    assert files.names() == []


def test_a_lock_that_nobody_may_have_is_not_waited_for(s3: S3Server) -> None:
    files = Files("s3://bucket/denied")
    with s3.failing(lambda _: 403), pytest.raises(InputError, match="access denied"), patient_lock(files):
        pass


def test_large_files_go_up_in_parts(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_files, "_PART_BYTES", 5 << 20)  # S3 takes no smaller parts
    parts = [np.random.default_rng(i).bytes(3 << 20) for i in range(4)] + [b"", b"end"]
    s3.requests.clear()
    number = itertools.count(1)
    with s3.failing(lambda _: 500 if next(number) == 3 else None):
        Files("s3://bucket/large").write("shard", *parts[:3], memoryview(parts[3]), *parts[4:])
    assert s3.count("POST", "/large/shard") == 3  # begun, begun again, made of its parts
    assert s3.count("DELETE", "/large/shard") == 1  # what was begun first is given up: its parts would be paid for
    assert Files("s3://bucket/large").read("shard") == b"".join(parts)


def test_errors_name_the_object_and_no_key(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match=r"s3://nobody: no such bucket .*make it"):
        Files("s3://nobody").write("x", b"x")
    with s3.failing(lambda _: 403), pytest.raises(InputError, match=r"s3://bucket/x/y: access denied .*credentials"):
        Files("s3://bucket/x").read("y")
    with pytest.raises(InputError, match="no credentials in the name of a store") as error:
        Files(f"s3://AKIA:{SECRET}@bucket/x")
    assert SECRET not in str(error.value)
    assert SECRET not in remote.redacted(f"signed with {SECRET}; see https://me:{SECRET}@a.b/?X-Amz-Signature={SECRET}")


def test_a_token_that_ran_out_ends_the_run_and_fails_no_recording(monkeypatch: pytest.MonkeyPatch) -> None:
    class Refused(Exception):
        response: Any = None

    class Bucket:
        def cat_file(self, path: str) -> bytes:
            error = Refused("The provided token has expired.")
            error.response = {"Error": {"Code": code}, "ResponseMetadata": {"HTTPStatusCode": 400}}
            raise PermissionError("The provided token has expired.") from error

    monkeypatch.setattr("voxstrata.audio.remote.open_remote", lambda url: (Bucket(), url))
    code = "ExpiredToken"
    with pytest.raises(UnreachableError, match=r"s3://bucket/a\.wav: the credentials are not valid.*renew them"):
        RemoteSource("s3://bucket/a.wav").read()
    code = "AccessDenied"  # of this object alone
    with pytest.raises(AudioError, match="access denied"):
        RemoteSource("s3://bucket/a.wav").read()


def test_a_full_disk_for_temporary_files_ends_the_run_and_fails_no_recording(monkeypatch: pytest.MonkeyPatch) -> None:
    class Bucket:
        def get_file(self, path: str, local: str) -> None:
            raise OSError(errno.ENOSPC, "No space left on device", local)

    monkeypatch.setattr("voxstrata.audio.remote.open_remote", lambda url: (Bucket(), url))
    with (
        pytest.raises(UnreachableError, match=r"s3://bucket/a\.wav: .*No space left.*TMPDIR"),
        RemoteSource("s3://bucket/a.wav").fetched(1 << 30),
    ):
        pass


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("s3://bucket/a b/ü.wav", "s3://bucket/a b/ü.wav"),
        ("https://a.b/x.wav?id=17", "https://a.b/x.wav?id=17"),
        ("https://me:pw@a.b:8000/x.wav", "https://a.b:8000/x.wav"),
        ("https://a.b/x.wav?X-Amz-Algorithm=A&X-Amz-Credential=B&X-Amz-Signature=C", "https://a.b/x.wav"),
        ("https://a.b/x.wav?AWSAccessKeyId=A&Signature=B&Expires=1", "https://a.b/x.wav"),
        ("https://a.b/x.wav?id=17&token=abc", "https://a.b/x.wav?id=17"),
        (
            "https://c.blob.core.windows.net/x.wav?sv=1&st=2&se=3&sr=b&sp=r&sig=4",
            "https://c.blob.core.windows.net/x.wav",
        ),
        ("/data/a@b?token=c.wav", "/data/a@b?token=c.wav"),
    ],
)
def test_what_signs_a_url_is_not_shown(url: str, expected: str) -> None:
    assert remote.shown(url) == expected


@pytest.mark.parametrize("checksums", [True, False])
def test_neighbouring_chunks_are_one_request_and_the_index_is_asked_for_once(checksums: bool) -> None:
    layout = ShardLayout(chunk_rows=4, shard_rows=64, row_bytes=16, checksums=checksums)
    block = np.random.default_rng(0).standard_normal((50, 8)).astype(np.float16)
    files = Files("memory://ranged")
    files.write("shard", *layout.parts(block))
    asked: list[tuple[int, int | None]] = []

    def fetch(begin: int, end: int | None) -> bytes:
        asked.append((begin, end))
        return files.read_range("shard", begin, end)

    indexes: dict[str, bytes] = {}
    for begin, end in ((0, 50), (5, 6), (17, 43), (3, 5)):
        out = np.empty((end - begin, 8), np.float16)
        layout.read(RemoteShard("shard", fetch, indexes), begin, out)
        assert (out == block[begin:end]).all()
        chunks = begin // 4, -(-end // 4)
        assert asked.pop() == (chunks[0] * layout.stored_bytes, chunks[1] * layout.stored_bytes)
    assert asked == [(-(16 * 16 + 4), None)]


def test_reading_a_store_on_s3_asks_once_for_the_rows_of_neighbours(
    s3: S3Server, corpus: Path, tiny_model: Path
) -> None:
    url = "s3://bucket/read.zarr"
    extract(corpus, tiny_model, url, SPEC, RUNTIME)
    store = open_store(url)
    units = list(store.units("final"))
    s3.requests.clear()
    for indices, rows, _ in units:
        assert (store.ragged("final", indices)[0] == rows).all()
    assert [method for method, _, _ in s3.requests] == ["GET"] * len(units)
