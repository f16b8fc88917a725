"""Promises of the tile loop and of what stands around it: nothing is read in vain, refusals come before the work."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import zarr
from stores import Utterance, make_store
from test_cli import run

from voxstrata.base.errors import UsageError
from voxstrata.retrieval.compare import Matrices, Tiles, compare
from voxstrata.retrieval.kernels.float32 import Float32
from voxstrata.retrieval.ragged import Ragged
from voxstrata.store import StoreSpec
from voxstrata.studies.retrieve import RetrievalOptions, retrieve

D = 8
BOTH = ("layer_00", "final")


def frames(rng: np.random.Generator) -> np.ndarray:
    return rng.standard_normal((5, D)).astype(np.float32)


def parallel(rng: np.random.Generator, n: int = 4) -> dict[str, Utterance]:
    return {f"{a}-{i}": Utterance(frames(rng), a, f"g{i}") for a in ("en", "es") for i in range(n)}


class Counted:
    """Ten utterances of one frame; notes which blocks are read."""

    def __init__(self, seed: int) -> None:
        self.rows = np.random.default_rng(seed).standard_normal((10, D)).astype(np.float32)
        self.lengths = np.ones(10, np.int64)
        self.read: list[tuple[int, int]] = []

    def ragged(self, begin: int, end: int) -> Ragged:
        self.read.append((begin, end))
        return Ragged(self.rows[begin:end], np.arange(end - begin + 1, dtype=np.int64))


class LastRowAlone(Matrices):
    @contextmanager
    def row(self, row: int) -> Iterator[bool]:
        yield row == 4


def test_tile_rows_that_nobody_wants_read_nothing() -> None:
    x, y = Counted(0), Counted(1)
    sink = LastRowAlone(10, 10)
    pairs = compare(x, y, Float32(), sink, tiles=Tiles(range(0, 11, 2), range(0, 11, 2)))
    assert pairs == 20
    assert (x.read, y.read) == ([(8, 10)], [(b, b + 2) for b in range(0, 10, 2)])
    unit_x, unit_y = (s.rows / np.linalg.norm(s.rows, axis=1, keepdims=True) for s in (x, y))
    np.testing.assert_allclose(sink.precision[8:], (unit_x @ unit_y.T)[8:], atol=1e-6)


def test_an_output_that_the_second_store_lacks_is_refused_before_the_first_is_compared(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = parallel(np.random.default_rng(0))
    first = make_store(tmp_path / "first.zarr", made, spec=StoreSpec(BOTH, dtype="float32"))
    second = make_store(tmp_path / "second.zarr", made, spec=StoreSpec(("layer_00",), dtype="float32"))
    out = tmp_path / "out"
    assert run("similarity", first.files.root, second.files.root, "-o", out) == 2
    assert "no output 'final'" in capsys.readouterr().err
    assert not out.exists()


def test_a_bad_frame_of_a_later_output_is_refused_before_the_first_is_compared(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = parallel(np.random.default_rng(0))
    store = make_store(tmp_path / "s.zarr", made, spec=StoreSpec(BOTH, dtype="float32"))
    array = zarr.open_group(store.files.root, mode="r+")["frames/final"]
    array[int(store.start[store.index("es-2")]) + 3] = 0
    out = tmp_path / "out"
    assert run("similarity", store.files.root, "--x", "en", "--y", "es", "-o", out) == 3
    message = capsys.readouterr().err
    assert "output final" in message
    assert "'es-2': frame 3" in message
    assert not out.exists()


def test_scores_may_be_named_in_one_string(tmp_path: Path) -> None:
    store = make_store(tmp_path / "s.zarr", parallel(np.random.default_rng(0)))
    named = retrieve(store, options=RetrievalOptions(scores="raw,csls", bootstrap=0))
    listed = retrieve(store, options=RetrievalOptions(scores=("raw", "csls"), bootstrap=0))
    assert named.table.equals(listed.table)
    assert set(named.table["score"].to_pylist()) == {"raw", "csls"}
    with pytest.raises(UsageError, match="unknown score 'rwa'"):
        RetrievalOptions(scores="rwa")


def test_similarities_add_up_whether_repeated_or_joined(tmp_path: Path) -> None:
    store = make_store(tmp_path / "s.zarr", parallel(np.random.default_rng(0)))
    tables = []
    for n, asked in enumerate((["seqsim_f1,pooled_cosine"], ["seqsim_f1", "pooled_cosine"])):
        options = [part for name in asked for part in ("--similarity", name)]
        assert run("retrieve", store.files.root, "-o", tmp_path / str(n), "--bootstrap", 0, *options) == 0
        tables.append((tmp_path / str(n) / "retrieval.md").read_text(encoding="utf-8"))
    assert tables[0] == tables[1]
