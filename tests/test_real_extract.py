"""The promises of extraction with whisper-base on real speech."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

pytest.importorskip("torch")

from hf_reference import Reference, relative_l2
from kills import kill_and_resume

from voxstrata.audio.decode import decode
from voxstrata.corpus import Corpus, read_corpus
from voxstrata.encoders import Context, open_model
from voxstrata.encoders.frames import encoder_frames
from voxstrata.engine import CpuEncoder, CudaEncoder, Device, Runtime, extract
from voxstrata.exporters import ExportSpec, export
from voxstrata.store import EmbeddingStore, StoreSpec, open_store

pytestmark = pytest.mark.real


@pytest.fixture(scope="session")
def base(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("real") / "base"
    export(str(shared / "whisper-base-encoder"), target, ExportSpec(calibrate=shared / "assorted"))
    return target


@pytest.fixture(scope="session")
def reference(shared: Path) -> Reference:
    return Reference(shared / "whisper-base-encoder")


@pytest.fixture(scope="session")
def prompts(shared: Path) -> Corpus:
    """40 prompts, ten of each language."""
    corpus = read_corpus(shared / "prompts" / "prompts.tsv")
    rng = np.random.default_rng(2)
    languages = np.array(corpus.table["language"].to_pylist())
    rows = np.concatenate([rng.choice(np.flatnonzero(languages == x), 10, replace=False) for x in np.unique(languages)])
    return Corpus(corpus.root, corpus.table.take(pa.array(rows)))


def assert_equals_pytorch(corpus: Corpus, base: Path, reference: Reference, folder: Path) -> None:
    stores = {}
    for dtype in ("float32", "float16"):
        extract(corpus, base, folder / dtype, StoreSpec(dtype=dtype, context=Context("padded")))  # type: ignore[arg-type]
        stores[dtype] = open_store(folder / dtype)
    assert stores["float32"].complete
    worst = {"float32": ("", 0.0), "float16": ("", 0.0)}
    for i, name in enumerate(corpus.table["id"].to_pylist()):
        for output, expected in reference.padded(decode(corpus.recording(i))).items():
            for dtype, store in stores.items():
                distance = relative_l2(store.frames(name, output), expected)
                worst[dtype] = max(worst[dtype], (f"{name} {output}", distance), key=lambda x: x[1])
    print(worst)
    assert worst["float32"][1] <= 2e-4
    assert worst["float16"][1] <= 2e-3


@pytest.mark.timeout(1800)
def test_padded_prompts_equal_pytorch(prompts: Corpus, base: Path, reference: Reference, tmp_path: Path) -> None:
    assert_equals_pytorch(prompts, base, reference, tmp_path)


@pytest.mark.timeout(1800)
def test_padded_assorted_clips_equal_pytorch(shared: Path, base: Path, reference: Reference, tmp_path: Path) -> None:
    assert_equals_pytorch(read_corpus(shared / "assorted"), base, reference, tmp_path)


def identical(a: EmbeddingStore, b: EmbeddingStore) -> float:
    """The lowest share, over outputs, of identical float16 values in the utterances of `b`."""
    shares = []
    for output in a.outputs:
        x, y = (np.concatenate([s.frames(name, output) for name in b.ids]) for s in (a, b))
        assert x.dtype == np.float16
        assert relative_l2(x, y) <= 1e-4
        shares.append(float(np.mean(x == y)))
    return min(shares)


@pytest.mark.timeout(1800)
def test_order_batch_threads_and_neighbours_change_no_stored_value(prompts: Corpus, base: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(4)
    shuffled = Corpus(prompts.root, prompts.table.take(pa.array(rng.permutation(len(prompts)))))
    some = Corpus(prompts.root, prompts.table.take(pa.array(rng.choice(len(prompts), 9, replace=False))))
    extract(prompts, base, tmp_path / "all")
    whole = open_store(tmp_path / "all")
    shares = {}
    for name, corpus, settings in (
        ("order", shuffled, {}),
        ("one window a batch", prompts, {"tokens": 1}),
        ("large batches", prompts, {"tokens": 12_000}),
        ("one thread", prompts, {"threads": 1}),
        ("three threads", prompts, {"threads": 3}),
        ("neighbours", some, {}),
    ):
        extract(corpus, base, tmp_path / name, runtime=Runtime(**settings))  # type: ignore[arg-type]
        shares[name] = identical(whole, open_store(tmp_path / name))
    print(shares)
    assert min(shares.values()) >= 0.999
    assert shares["order"] == 1


def test_the_path_of_accelerators_gives_the_same_states(prompts: Corpus, base: Path) -> None:
    """With the CPU as the device: its graphs, in float32, whose attention is fused otherwise."""
    model, worst = open_model(base), 0.0
    device = CudaEncoder(model, StoreSpec(model.card.outputs, dtype="float32"), Runtime(Device("cpu"), tokens=6000))
    plain = CpuEncoder(model)
    for first in range(0, len(prompts), 4):
        audio = [decode(prompts.recording(i)) for i in range(first, first + 4)]
        valid = [encoder_frames(len(x)) for x in audio]
        frames = Context().frames_computed(max(valid))
        for rows, states in zip(device.stored_rows(audio, frames).rows, plain.run(audio, frames), strict=True):
            for got, want, n in zip(rows, states, valid, strict=True):
                worst = max(worst, relative_l2(got, want[:n]))
    assert worst <= 1e-5


@pytest.mark.timeout(1800)
def test_twenty_kills_leave_no_trace(prompts: Corpus, base: Path, tmp_path: Path) -> None:
    settings = {"threads": 2, "unit_megabytes": 8, "outputs": "layer_03,final"}
    kill_and_resume(prompts, base, tmp_path, settings, kills=20, seed=1)  # type: ignore[arg-type]
