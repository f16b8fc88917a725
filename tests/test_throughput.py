"""`voxstrata plan` and `voxstrata bench`: what a corpus will take, known beforehand."""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import soundfile
from conftest import sound
from test_cli import run

from voxstrata.corpus import Corpus, probe_corpus, read_corpus
from voxstrata.encoders import Context, open_model
from voxstrata.engine import CudaEncoder, Device, Encoder, Runtime, extract, planning
from voxstrata.engine import measuring as throughput
from voxstrata.engine.bench import Bench
from voxstrata.engine.estimating import estimate
from voxstrata.engine.extraction import share
from voxstrata.engine.measuring import Record, bench, measure, recorded
from voxstrata.engine.run import Extraction
from voxstrata.engine.synthetic import MIXES
from voxstrata.store import StoreSpec
from voxstrata.store import plan as plans


@pytest.fixture(scope="module")
def corpus(make_corpus: Callable[..., Path]) -> Path:
    rng = np.random.default_rng(3)
    return make_corpus({f"{'en' if i % 3 else 'de'}/{i}": float(rng.uniform(0.2, 5)) for i in range(12)} | {"en/l": 31})


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def measured(tiny_model: Path, cache: Path) -> Record:
    """A record of the tiny model on one thread, stored in `cache`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(cache))
        return bench(open_model(tiny_model), runtime=Runtime(threads=1), seconds=0.3)


# ---- plan


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"dtype": "float32", "outputs": "layer_01,final"},
        {"every": 5},
        {"pool": "mean"},
        {"context": Context("padded")},
    ],
)
def test_storage_is_told_to_the_byte(
    corpus: Path, tiny_model: Path, tmp_path: Path, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plans, "CHUNK_BYTES", 1 << 12)  # several chunks and units
    model = open_model(tiny_model)
    how = StoreSpec(**settings), Runtime(unit_megabytes=0.1)
    told = estimate(read_corpus(corpus), model, *how)
    done = extract(corpus, model, tmp_path / "s.zarr", *how)
    group = "pooled" if "pool" in settings else "frames"
    sizes = {o: sum(f.stat().st_size for f in (tmp_path / "s.zarr" / group / o / "c").rglob("*") if f.is_file())
             for o in told.outputs}  # fmt: skip
    assert set(sizes.values()) == {told.bytes_per_output}
    assert told.bytes == sum(sizes.values())
    assert told.units == done.units > (1 if group == "frames" else 0)
    assert told.flops == done.flops
    assert told.audio_seconds == pytest.approx(done.audio_seconds)


def test_units_are_larger_on_a_gpu_unless_their_size_is_given(
    corpus: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plans, "CHUNK_BYTES", 1 << 12)
    monkeypatch.setattr(planning, "UNIT_MEGABYTES", 0.1)

    def units(kind: str, megabytes: float | None = None) -> int:
        runtime = Runtime(Device(kind), unit_megabytes=megabytes)
        return estimate(read_corpus(corpus), open_model(tiny_model), runtime=runtime).units

    assert units("cpu") > units("cuda") == units("tensorrt")
    assert units("cuda", 0.1) == units("cpu")


def test_extract_and_plan_make_the_same_units_on_a_gpu(
    corpus: Path, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("onnx")
    monkeypatch.setattr(plans, "CHUNK_BYTES", 1 << 12)
    monkeypatch.setattr(planning, "UNIT_MEGABYTES", 0.1)
    monkeypatch.setattr(
        sys.modules["voxstrata.engine.extraction"],  # by name: the package's attribute is the function
        "make_encoder",
        lambda model, spec, *_: CudaEncoder(model, spec, Runtime(Device("cpu"), tokens=3000)),
    )
    done = extract(corpus, tiny_model, tmp_path / "s.zarr", runtime=Runtime(Device("cuda")))
    assert run("plan", corpus, tiny_model, "--device", "cuda", "--json") == 0
    assert json.loads(capsys.readouterr().out)["units"] == done.units
    assert run("plan", corpus, tiny_model, "--json") == 0
    assert json.loads(capsys.readouterr().out)["units"] > done.units


def test_plan_without_a_measurement_says_how_to_get_one(
    corpus: Path, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert run("plan", corpus, tiny_model, "--threads", 3) == 0
    out = capsys.readouterr().out
    assert f"voxstrata bench {tiny_model} --device cpu --threads 3" in out
    assert "13 of 13 readable" in out
    assert run("plan", corpus, tiny_model, "--threads", 3, "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert told["seconds"] is None
    assert "--threads 3" in told["bench"]


def test_plan_tells_the_time_by_the_measured_rate_of_its_context(
    corpus: Path, tiny_model: Path, measured: Record, cache: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    for mode, rate in measured.contexts.items():
        assert run("plan", corpus, tiny_model, "--threads", 1, "--context", mode, "--json") == 0
        told = json.loads(capsys.readouterr().out)
        assert told["seconds"] == pytest.approx(told["flops"] * rate.seconds / rate.flops)
        assert told["bench"] is None
    times = []
    for outputs in ("final", "layer_00"):
        assert run("plan", corpus, tiny_model, "--threads", 1, "--outputs", outputs, "--json") == 0
        times.append(json.loads(capsys.readouterr().out)["seconds"])
    assert 0 < times[1] < times[0]  # shallow outputs spare the blocks above them
    assert run("plan", corpus, tiny_model, "--threads", 1) == 0
    said = r"^expected: about (\d+ s|less than a second), [\d.]+ MB on disk, on this machine \(cpu, 1 thread;"
    assert re.search(said, capsys.readouterr().out, re.M)


def test_plan_names_what_cannot_be_read(tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    soundfile.write(tmp_path / "a.wav", sound(1, 0), 16_000)
    (tmp_path / "b.wav").write_bytes(b"no audio")
    assert run("plan", tmp_path, tiny_model) == 4
    out, err = capsys.readouterr()
    assert "1 of 2 readable" in out
    assert "b: " in err


def test_plan_refuses_what_extract_refuses(corpus: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("plan", corpus, tiny_model, "--outputs", "layer_99") == 2
    assert run("plan", corpus, tiny_model, "--long", "error") == 3
    assert run("plan", corpus, tiny_model, "--pooled", "--every", 5) == 2
    assert "31.0 s" in capsys.readouterr().err


def test_the_earlier_name_of_pooled_still_works_and_says_how_long(
    corpus: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = []
    for name in (["--pooled"], ["--pool", "mean"], ["--pool"], []):
        assert run("plan", corpus, tiny_model, *name, "--json") == 0
        out, err = capsys.readouterr()
        said.append((json.loads(out), err.count("--pool mean is called --pooled now, and goes in 0.3")))
    (pooled, none), (earlier, one), (bare, also), (frames, _) = said
    assert (none, one, also) == (0, 1, 1)
    assert pooled == earlier == bare != frames
    assert run("plan", "--pool", corpus, tiny_model) == 2
    assert "it is called --pooled now" in capsys.readouterr().err


# ---- bench


def test_a_record_is_found_for_its_model_device_and_threads_alone(
    tiny_model: Path, measured: Record, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    model = open_model(tiny_model)
    assert recorded(model, Runtime(threads=1)) == measured
    assert recorded(model, Runtime(threads=2)) is None
    assert recorded(model, Runtime(Device("cuda"), 1)) is None
    monkeypatch.setattr(throughput, "cpu_name", lambda: "another CPU")
    assert recorded(model, Runtime(threads=1)) is None


def test_a_damaged_record_is_none(
    tiny_model: Path, measured: Record, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    path = throughput.record_path(measured.about)
    path.parent.mkdir(parents=True)
    for text in ("{", "{}", '{"about": {}, "sgemm_rate": 1, "contexts": {"padded": {}}}'):
        path.write_text(text, encoding="utf-8")
        assert recorded(open_model(tiny_model), Runtime(threads=1)) is None


def test_what_was_measured_adds_up(tiny_model: Path, measured: Record) -> None:
    assert list(measured.contexts) == ["padded", "bucketed", "trimmed"]
    assert measured.sgemm_rate is not None
    for t in measured.contexts.values():
        assert t.clips >= throughput.TRIAL_CLIPS
        assert t.efficiency == pytest.approx(t.flops / t.seconds / measured.sgemm_rate)  # all outputs: all layers
        assert t.stored_bytes == pytest.approx(t.audio_seconds * 50 * 32 * 2 * 5, rel=0.01)
        assert {"decode", "log_mel", "encode", "write"} <= set(t.stages)
    assert measured.contexts["padded"].tokens == 1500 * measured.contexts["padded"].clips


def test_a_trial_that_takes_all_the_time_is_the_measurement_of_bench(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    runs: list[int] = []

    def counted(run: Extraction, encoder: Encoder) -> Any:
        runs.append(len(run.plan.corpus))
        return share(run, encoder)

    monkeypatch.setattr(throughput, "share", counted)
    bench(open_model(tiny_model), runtime=Runtime(threads=6), seconds=0)
    assert runs == [6, 6, 6]  # one in each context, a recording for every thread
    runs.clear()
    measure(open_model(tiny_model), "bucketed", MIXES["prompts"], runtime=Runtime(threads=1), seconds=0)
    assert runs == [4, 4]


def test_on_a_gpu_every_shape_is_encoded_once_before_what_is_timed(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A rate is that of a run that lasts: what is made for a shape is made by then, by the encoder that is timed."""
    pytest.importorskip("onnx")
    runs: list[tuple[int, Encoder, set[tuple[int, int]]]] = []
    encode, reports = CudaEncoder.stored_rows, []

    def seen(self: CudaEncoder, audio: Any, frames: int, kept: Any = None) -> Any:
        runs[-1][2].add((frames, len(audio)))
        return encode(self, audio, frames, kept)

    def counted(run: Extraction, encoder: Encoder) -> Any:
        runs.append((len(run.plan.corpus), encoder, set()))
        reports.append(share(run, encoder))
        return reports[-1]

    def on_cpu(model: Any, spec: StoreSpec, runtime: Runtime) -> CudaEncoder:
        return CudaEncoder(model, spec, Runtime(Device("cpu"), tokens=3000))

    monkeypatch.setattr(CudaEncoder, "stored_rows", seen)
    monkeypatch.setattr(throughput, "share", counted)
    monkeypatch.setattr(throughput, "make_encoder", on_cpu)
    gpu = Runtime(Device("cuda"))
    found = measure(open_model(tiny_model), "bucketed", MIXES["fleurs"], "final", gpu, seconds=0)
    clips, encoders, shapes = zip(*runs, strict=True)
    # two batches for each of two callers: of the mean of 12 s and a second more four windows of 650 positions
    assert clips == (16, 16, 16, 16)
    assert len(set(encoders)) == 1
    assert shapes[0] == shapes[1] != set()
    assert shapes[2] == shapes[3]
    assert found.seconds == reports[3].seconds
    # what the disk has no room for is not measured
    runs.clear()
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=0))
    monkeypatch.setattr(throughput, "MAX_STORE_BYTES", 7.5 * 600 * 32 * 2)
    measure(open_model(tiny_model), "bucketed", MIXES["fleurs"], "final", gpu, seconds=0)
    assert {clips for clips, *_ in runs} == {7}


def test_bench_reads_the_headers_of_a_corpus_once(
    corpus: Path, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(throughput, "bench", partial(bench, seconds=0.0))
    probed: list[Path] = []

    def counted(read: Corpus, **settings: Any) -> Any:
        probed.append(read.root)
        return probe_corpus(read, **settings)

    for module in (sys.modules["voxstrata.corpus"], planning):
        monkeypatch.setattr(module, "probe_corpus", counted)
    assert run("bench", tiny_model, "--threads", 1, "--corpus", corpus) == 0
    assert probed.count(corpus) == 1


def test_bench_prints_rates_and_what_a_corpus_takes(
    corpus: Path, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(throughput, "bench", partial(bench, seconds=0.0))
    monkeypatch.setattr(throughput, "sgemm_rate", lambda threads: 1e11)
    assert run("bench", tiny_model, "--threads", 1, "--corpus", corpus, "--outputs", "final", "--json") == 0
    out, err = capsys.readouterr()
    told = json.loads(out)
    assert err.endswith(": folders taken for languages: de (German), en (English)\n")
    assert set(told["corpus"]) == {"padded", "bucketed", "trimmed"}
    bucketed = told["contexts"]["bucketed"]
    assert bucketed["outputs"] == ["final"]
    assert bucketed["audio_hours_per_hour"] == pytest.approx(bucketed["audio_seconds"] / bucketed["seconds"])
    assert json.loads(Path(told["record"]).read_text(encoding="utf-8"))["contexts"]["bucketed"]["mix"] == "fleurs"
    command = ("bench", tiny_model, "--threads", 1, "--corpus", corpus, "--outputs", "final", "-o", tmp_path / "speed")
    assert run(*command) == 0
    out = capsys.readouterr().out
    assert "audio-hours per hour" in out
    assert "would take" in out
    assert "bench.parquet, estimates.parquet, bench.md, bench.png" in out
    saved = Bench.load(tmp_path / "speed")
    assert saved.table["context"].to_pylist() == saved.estimates["context"].to_pylist() == list(told["contexts"])
    assert saved.settings["checkpoint"] == open_model(tiny_model).card.checkpoint
    assert run(*command) == 3  # before two minutes of work
    assert "holds an earlier result" in capsys.readouterr().err
    assert run("report", tmp_path / "speed") == 0
    assert "bench.parquet" in capsys.readouterr().out


def test_bench_says_when_other_work_was_running(measured: Record) -> None:
    assert "load average 7.5" in replace(measured, load=7.5).to_text()
    assert "load average" not in replace(measured, load=0.2).to_text()


@pytest.mark.parametrize(
    ("name", "mean", "limits"), [("prompts", 4.6, (1, 29)), ("fleurs", 12, (2, 30)), ("long", 27.5, (25, 30))]
)
def test_mixes_have_the_lengths_they_are_named_for(name: str, mean: float, limits: tuple[float, float]) -> None:
    lengths = MIXES[name].lengths(1000)
    assert lengths.mean() == pytest.approx(mean, rel=0.02)
    assert lengths.min() >= limits[0]
    assert lengths.max() <= limits[1]
    assert MIXES[name].lengths(20).mean() == pytest.approx(mean, rel=0.06)  # few clips have the same mix
