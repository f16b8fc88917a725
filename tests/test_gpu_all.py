"""One script answers what is open about GPUs: every step runs, none stops another, and what it finds fits the docs."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")

from voxstrata.engine import Device

ROOT = Path(__file__).parents[1]
BENCHMARKS = ROOT / "benchmarks"


@pytest.fixture(scope="module")
def scripts() -> Iterator[tuple[Any, Any, Any]]:
    """The modules `first_ten_minutes`, `_gpu` and `gpu_tables`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        import _gpu
        import first_ten_minutes
        import gpu_tables

        yield first_ten_minutes, _gpu, gpu_tables


@pytest.fixture(scope="module")
def bench(scripts: Any, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Any]:
    """Makes a `Bench` over a model of three small blocks."""
    _, gpu, _ = scripts
    folder = tmp_path_factory.mktemp("bench")
    model, checkpoint = gpu.random_model((16, 3, 2, 80), folder)

    def make(seconds: float = 600) -> Any:
        args = argparse.Namespace(tokens=3000, threads=1, real=None, small=True, seconds=seconds)
        return gpu.Bench(args, Device("cpu"), model, checkpoint, folder, time.perf_counter())

    return make


@pytest.mark.long
def test_every_question_is_asked_and_no_rate_of_a_cpu_is_reported(scripts: Any, bench: Callable[..., Any]) -> None:
    first, *_ = scripts
    b, published = bench(), []
    first.run(b, lambda: published.append(sum(map(len, b.tables.values()))))
    assert b.problems == []
    assert set(b.results["right"]) == set(first.SETTINGS) - {"padded"}
    assert max(b.results["right"].values()) < 1e-2
    assert len(published) == len({*published})  # something new after each
    for caption, (header, *rows) in b.tables.items():
        for row in rows:
            assert len(row) == len(header), caption
            if not caption.startswith("Are the states"):
                assert row[-1] == "not measured", caption
    json.dumps(b.results)


def test_states_that_are_off_and_questions_that_fail_are_problems_and_not_the_end(
    scripts: Any, bench: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    first, *_ = scripts
    asked: list[str] = []

    def broken(b: Any, name: str) -> None:
        raise RuntimeError(f"no {name} here")

    monkeypatch.setattr(first, "rates", lambda _: None)
    monkeypatch.setattr(first, "new_shapes", broken)
    monkeypatch.setattr(first, "how_fast", lambda b, name, times: asked.append(name))
    monkeypatch.setattr(first, "how_many_callers", lambda b, n: asked.append(f"{n} callers"))
    encoder, right = first.CpuEncoder, first.is_it_right

    class Off(encoder):  # type: ignore[misc, valid-type]
        def stored_rows(self, audio: Any, frames: int) -> Any:
            return super().stored_rows([np.roll(x, 12_345) for x in audio], frames)

    monkeypatch.setattr(first, "CpuEncoder", Off)
    monkeypatch.setattr(first, "is_it_right", lambda b, name, cpu: right(b, name, cpu) if name == "as it is" else None)
    b = bench()
    first.run(b, lambda: None)
    off, failed, *_ = b.problems
    assert off == "as it is: states are another window's"
    assert "RuntimeError: ['no as it is here']" in failed
    assert asked == [*first.SETTINGS, "2 callers", "3 callers", "4 callers", *first.SETTINGS]


def test_questions_that_come_too_late_stand_in_the_report(scripts: Any, bench: Callable[..., Any]) -> None:
    first, *_ = scripts
    b, published = bench(seconds=-1), []
    first.run(b, lambda: published.append(len(b.problems)))
    assert published == list(range(1, len(published) + 1))


STEPS = ["first_ten_minutes", "seqsim_gpu", "extraction_gpu"]
STUB = """#!/bin/sh
# stands for python: {python} for tables; for a step what the case says
case "$1 $2" in
  *gpu_tables.py*) exec {python} "$@" ;;
  *seqsim_gpu.py*) {seqsim} ;;
esac
echo "$*"
"""


def run_all(folder: Path, seqsim: str, *arguments: str) -> tuple[int, list[list[str]], dict[str, str]]:
    """Exit status, steps and logs of gpu_all.sh with a python that does nothing."""
    stub = folder / "python"
    stub.write_text(STUB.format(python=sys.executable, seqsim=seqsim))
    stub.chmod(0o755)
    out = folder / "out"
    done = subprocess.run(
        [BENCHMARKS / "gpu_all.sh", "--out", out, *arguments],
        env=os.environ | {"PYTHON": str(stub)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (out / "gpu_all.md").read_text(encoding="utf-8") in done.stdout
    steps = json.loads((out / "gpu_all.json").read_text(encoding="utf-8"))["steps"][1:]
    return done.returncode, steps, {p.stem: p.read_text() for p in out.glob("*.log")}


def test_a_step_that_fails_stops_no_other(tmp_path: Path) -> None:
    status, steps, logs = run_all(tmp_path, "echo no device; exit 3", "--device", "cpu", "--small")
    assert status == 1
    assert [name for name, *_ in steps] == STEPS
    assert [result for *_, result in steps] == ["done", "exit status 3: no device", "done"]
    assert "--seconds 144 --device cpu --small" in logs["first_ten_minutes"]  # 0.8 of 30 % of ten minutes
    assert "--device cpu --small" in logs["extraction_gpu"]


def test_a_step_that_does_not_end_is_stopped(tmp_path: Path) -> None:
    status, steps, _ = run_all(tmp_path, "exec sleep 60", "--seconds", "5")
    assert status == 1
    assert [result for *_, result in steps] == ["done", "stopped after 1 s", "done"]


def test_all_steps_done_is_success(tmp_path: Path) -> None:
    status, steps, logs = run_all(tmp_path, "echo", "--real", "trained")
    assert status == 0
    assert [result for *_, result in steps] == ["done"] * 3
    assert logs["first_ten_minutes"].rstrip().endswith("--device cuda --real trained")


def test_every_step_is_on_the_device_that_was_named(tmp_path: Path) -> None:
    _, _, logs = run_all(tmp_path, ":", "--device", "cuda:1")
    assert [logs[name].rstrip().endswith("--device cuda:1") for name in STEPS] == [True] * 3


@pytest.mark.parametrize(
    ("arguments", "before", "seen"),
    [
        ([], None, "0"),
        (["--device", "cuda"], "4,7", "4"),
        (["--device", "cuda:1"], None, "1"),
        (["--device=cuda:1:bfloat16"], "4,7", "7"),
        (["--device", "tensorrt:2"], "4,7", ""),  # there is none
        (["--tiny"], "4,7", ""),
    ],
)
def test_the_kernels_script_sees_one_device_alone(
    tmp_path: Path, arguments: list[str], before: str | None, seen: str
) -> None:
    """For `Triton` takes the first that torch sees."""
    (tmp_path / "torch.py").write_text('import os\nprint(os.environ["CUDA_VISIBLE_DEVICES"])\nraise SystemExit')
    environment = {k: v for k, v in os.environ.items() if k != "CUDA_VISIBLE_DEVICES"} | {"PYTHONPATH": str(tmp_path)}
    environment |= {} if before is None else {"CUDA_VISIBLE_DEVICES": before}
    command = [sys.executable, BENCHMARKS / "seqsim_gpu.py", *arguments]
    assert subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout == f"{seen}\n"
    wrong = subprocess.run(
        [*command, "--device", "cpu:1"], env=environment, capture_output=True, text=True, check=False
    )
    assert (wrong.returncode, wrong.stderr) == (1, "--device cpu:1: choose cuda, cuda:1, …\n") or "--tiny" in arguments


@pytest.mark.parametrize(("arguments", "text"), [(["--speed"], "unknown option"), (["--out"], "a value is missing")])
def test_options_it_does_not_know_are_refused(arguments: list[str], text: str) -> None:
    done = subprocess.run([BENCHMARKS / "gpu_all.sh", *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert text in done.stderr


def test_every_row_of_the_docs_has_one_that_fills_it(scripts: Any) -> None:
    *_, tables = scripts
    for page, cells in tables.CELLS.items():
        _, *rows = tables.table_of(page)
        assert [sum(row[0].startswith(begin) for begin in cells) for row in rows] == [1] * len(rows), page
        assert len(rows) == len(cells)


def test_what_was_measured_fills_the_tables_of_the_docs(scripts: Any, tmp_path: Path) -> None:
    *_, tables = scripts
    alone = {"efficiency": 0.512, "idle": 0.031, "wall": 2.0, "off": 0.0, "bytes": 3e9, "fill": 1.0}
    kept = [(3, None, 9000.0), (34, "mean", 8000.0), (34, None, 1000.0)]
    found = [{"outputs": n, "pool": pool, "audio_hours_per_hour": speed, **alone} for n, pool, speed in kept]
    changed = {**found[0], "cuda_graphs": True, "efficiency": 0.6}
    results = {
        "device_alone": [*found, changed], "pytorch": [{"audio_hours_per_hour": x} for x in (None, 2500.0, 2000.0)],
        "host_memory": "pinned",
    }  # fmt: skip
    (tmp_path / "extraction_gpu.json").write_text(json.dumps({"settings": {"device": "cuda"}, "results": results}))
    shares = [(1280, False, 0.66), (1280, True, 0.6), (1024, False, 0.65), (512, False, 0.55), (384, False, 0.5)]
    figures = {
        "shares": [{"d": d, "ragged": ragged, "share": share} for d, ragged, share in [*shares, (1280, False, 0.7)]],
        "peers": [{"d": 1280, "peer": "flash-maxsim", "seconds": 2.1}],
        "best_tile": {"1280": "128 × 256 × 64, 8, 4, 1"},
        "while_packing": [{"d": 1280, "compare": 1.02, "gigabytes_per_second": 9.87}],
    }  # fmt: skip
    (tmp_path / "seqsim_gpu.json").write_text(json.dumps({"figures": figures}))
    cells = {page: [row[-1] for row in tables.filled(page, tables.reports_in(tmp_path))[1:]] for page in tables.PAGES}
    assert cells["devices"] == [
        "0.51", "3.60", "3%",
        "3 as frames 9,000, 1.50 GB/s; 34 as means 8,000, 1.50 GB/s; 34 as frames 1,000, 1.50 GB/s",
        "cuda_graphs True: 0.60", "pinned",
    ]  # fmt: skip
    assert cells["gpu-retrieval"] == [
        "0.66", "flash-maxsim 2.10×", "0.65, 0.55, 0.50", "0.60", "d = 1280: 128 × 256 × 64, 8, 4, 1",
        "1.02 × the time alone; packs 9.9 GB/s",
    ]  # fmt: skip


def test_what_was_not_measured_says_so(scripts: Any, tmp_path: Path) -> None:
    """A report of a CPU, one that was cut off, and none."""
    *_, tables = scripts
    cpu = {"settings": {"device": "cpu"}, "results": {"host_memory": "pageable"}}
    (tmp_path / "extraction_gpu.json").write_text(json.dumps(cpu))
    (tmp_path / "seqsim_gpu.json").write_text('{"figures": {"sha')
    for page in tables.PAGES:
        assert {row[-1] for row in tables.filled(page, tables.reports_in(tmp_path))[1:]} == {"not measured"}
