"""The GPU's benchmark runs without a GPU, and then reports no rate."""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")

from voxstrata.engine import CudaEncoder, Device
from voxstrata.engine.synthetic import made_up

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The modules `extraction_gpu` and `_gpu`, and a `Bench` over a model of two small blocks."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        import _gpu
        import extraction_gpu

        folder = tmp_path_factory.mktemp("bench")
        model, checkpoint = _gpu.random_model((32, 3, 2, 80), folder)
        args = argparse.Namespace(
            clips=3, tokens=1500, measure=0.0, batches=[1], threads=1, store_gb=1.0, seconds=600.0
        )
        yield extraction_gpu, _gpu, _gpu.Bench(args, Device("cpu"), model, checkpoint, folder, time.perf_counter())


@pytest.mark.long
def test_every_section_runs_and_no_rate_of_a_cpu_is_reported(bench: Any) -> None:
    script, _, b = bench
    published = []
    script.run(b, lambda: published.append(len(b.tables)))
    assert len(published) == 16  # after every section
    assert b.problems == []
    assert b.results["correctness"]["padded_relative_l2"] < 1e-2
    assert [len(rows) for rows in b.tables.values()] == [3, 5, 4, 3, 4, 2, 5, 4]
    for caption, (header, *rows) in b.tables.items():
        for row in rows:
            assert len(row) == len(header), caption
            if "Beside PyTorch" not in caption:
                assert row[-1] == "not measured", caption
    json.dumps(b.results)
    alone = b.results["device_alone"]
    assert [(r["outputs"], r["pool"]) for r in alone[:3]] == [(3, None), (5, "mean"), (5, None)]
    assert all(0 < r["fill"] <= 1 and r["bytes"] > 0 for r in alone)
    assert all(r["off"] < 1e-2 for r in (*alone, *b.results["extract"]))


@pytest.mark.parametrize("section", ["alone", "whole"])
def test_every_shape_is_encoded_before_the_clock_starts(
    bench: Any, section: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    script, gpu, b = bench
    encoded: list[set[tuple[CudaEncoder, int, int]]] = [set()]
    encode = CudaEncoder.stored_rows

    def seen(self: CudaEncoder, audio: Any, frames: int, kept: Any = None) -> Any:
        encoded[-1].add((self, frames, len(audio)))
        return encode(self, audio, frames, kept)

    class Clock(gpu.Idle):
        def __enter__(self) -> Any:
            encoded.append(set())
            return super().__enter__()

        def __exit__(self, *_: object) -> None:
            encoded.append(set())

    monkeypatch.setattr(CudaEncoder, "stored_rows", seen)
    monkeypatch.setattr(script, "Idle", Clock)
    args = argparse.Namespace(**{**vars(b.args), "clips": 40, "tokens": 1400})
    fresh = gpu.Bench(args, b.device, b.model, b.checkpoint, b.work, time.perf_counter())
    {"alone": script.device_alone, "whole": script.whole_extract}[section](fresh, "three outputs, frames")
    before, timed, _ = encoded
    assert len({frames for _, frames, _ in timed}) < len(timed)  # a bucket in several numbers of windows
    assert timed <= before


def test_rows_of_another_recording_are_a_problem(bench: Any) -> None:
    _, gpu, b = bench
    fresh = gpu.Bench(b.args, b.device, b.model, b.checkpoint, b.work, time.perf_counter())
    for kept, spec in fresh.specs().items():
        encoder = fresh.encoder(spec)
        clips = [made_up(i, 30_000) for i in range(2)]
        own = [[rows for (rows,) in encoder.stored_rows([clip], 150).rows] for clip in clips]
        assert gpu.apart(fresh, kept, encoder, list(zip(clips, own, strict=True))) == 0
        assert fresh.problems == []
        gpu.apart(fresh, kept, encoder, list(zip(clips, own[::-1], strict=True)))
        assert len(fresh.problems) == 2 * len(spec.outputs)
        assert fresh.problems.pop().startswith(f"{kept}: rows of a recording")
        fresh.problems.clear()


def test_bytes_that_leave_the_device_are_those_that_are_stored(bench: Any) -> None:
    script, _, b = bench
    lengths = script.MIXES["fleurs"].lengths(3)
    frames = [-(-round(s * 16_000) // 320) for s in lengths]
    b.results.clear()
    script.alone(b, b.specs()["three outputs, frames"], lengths)
    assert b.results["device_alone"][0]["bytes"] == sum(frames) * 3 * 32 * 2
    b.results.clear()
    script.alone(b, b.specs()["all outputs, pooled"], lengths)
    assert b.results["device_alone"][0]["bytes"] == 3 * 5 * 32 * 4


def test_a_section_that_fails_is_a_problem_and_not_the_end(bench: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    script, gpu, b = bench
    failing = gpu.Bench(b.args, b.device, b.model, b.checkpoint, b.work, time.perf_counter())
    for name in ("device_alone", "whole_extract", "pytorch", "profile", "setting", "correctness"):
        monkeypatch.setattr(script, name, lambda *_, **__: None)

    def broken(_: Any) -> None:
        raise RuntimeError("no rate today")

    monkeypatch.setattr(script, "rates", broken)
    script.run(failing, lambda: None)
    assert len(failing.problems) == 2
    assert "no rate today" in failing.problems[0]
    assert list(failing.tables)[-1].startswith("The marks")


def test_sections_that_come_too_late_stand_in_the_report(bench: Any) -> None:
    script, gpu, b = bench
    args = argparse.Namespace(**{**vars(b.args), "seconds": -1.0})
    late = gpu.Bench(args, b.device, b.model, b.checkpoint, b.work, time.perf_counter())
    published: list[int] = []
    script.run(late, lambda: published.append(len(late.problems)))
    assert published == list(range(1, 17))


def test_a_script_reports_as_it_goes_and_a_problem_is_its_exit_status(
    bench: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _, gpu, b = bench
    monkeypatch.setattr(gpu, "random_model", lambda shape, folder: (b.model, b.checkpoint))
    args = argparse.Namespace(**vars(b.args) | {"device": "cpu", "out": tmp_path})
    reports: list[Any] = []

    def run(own: Any, publish: Any) -> None:
        for problem in ("", "no rate today"):
            own.check(not problem, problem)
            publish()
            reports.append(json.loads((tmp_path / "x.json").read_text(encoding="utf-8")))
            own.add("Of rates:", ("what", "rate"), ("mm", "not measured"))

    assert gpu.benched(args, "x", "Rates", (32, 3, 2, 80), run) == 1
    assert [r["results"]["problems"] for r in reports] == [[], ["no rate today"]]
    assert [[t["rows"] for t in r["tables"]] for r in reports] == [[], [[["mm", "not measured"]]]]
    assert "- PROBLEM: no rate today" in capsys.readouterr().out
    assert gpu.benched(args, "x", "Rates", (32, 3, 2, 80), lambda own, publish: publish()) == 0


def test_without_a_device_it_says_what_to_do(bench: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    script, *_ = bench
    monkeypatch.setattr(sys.modules["torch"].cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match="--device cpu --small"):
        script.main(["--device", "cuda"])
