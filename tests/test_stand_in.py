"""Promises of runs on CUDA, on a stand-in for its libraries: the provider's own calls, of which nothing is computed."""

from __future__ import annotations

import importlib.util
import itertools
import json
import os
import platform
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnxruntime as ort
import pytest
import toy_encoder

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
SOURCE = Path(__file__).parents[1] / "src"
# shapes that are new, changed, known, and of the graph without cached keys
BATCHES = "200x3,700x2,200x3,1500x1,250x4,200x2"
MAKE = """
import sys
from voxstrata import Device, open_model
from voxstrata.engine import CudaEncoder, Runtime
from voxstrata.store import StoreSpec
try:
    CudaEncoder(open_model(sys.argv[1]), StoreSpec(("final",)), Runtime(Device.parse(sys.argv[2]), tokens=100_000))
except Exception as e:
    print(type(e).__name__, e)
"""
REPEATED = 3  # batches of each shape, one after the other
SHAPES = ((200, 9), (400, 5), (1500, 1))  # computed positions, windows
ENCODE = f"""
import ctypes, json, sys
import numpy as np
from voxstrata import Device, open_model
from voxstrata.engine import CudaEncoder, Runtime
from voxstrata.store import StoreSpec
mark = ctypes.CDLL("libcudart.so.13").stand_in_mark
spec = StoreSpec(("layer_02", "final"), **json.loads(sys.argv[2]))
encoder = CudaEncoder(open_model(sys.argv[1]), spec, Runtime(Device("cuda"), tokens=2000))
for frames, windows in {SHAPES}:
    for i in range({REPEATED}):
        mark(f"BEGIN {{frames}}/{{i}}".encode())
        rows = encoder.stored_rows([np.full(frames * 320 - 16000, 0.1, np.float32)] * windows, frames)
        assert len(rows.rows[0]) == windows and rows.finite == [True, True]
        del rows
        mark(b"END")
assert encoder.host_memory == "pinned"
"""
FAMILY = """
import ctypes, sys
import numpy as np
from voxstrata import Device, open_model
from voxstrata.engine import Runtime
from voxstrata.engine.making import make_encoder
from voxstrata.store import StoreSpec
mark = ctypes.CDLL("libcudart.so.13").stand_in_mark
encoder = make_encoder(open_model(sys.argv[1]), StoreSpec(("layer_01", "final")), Runtime(Device("cuda"), tokens=200))
for i in range(3):
    mark(f"BEGIN {i}".encode())
    rows = encoder.stored_rows([np.full(16000, 0.1, np.float32)] * 3, 49)
    assert [len(own) for own in rows.rows[0]] == [49] * 3 and rows.finite == [True, True]
    del rows
    mark(b"END")
assert encoder.host_memory == "pinned"
"""


@pytest.fixture(scope="module")
def script(shared: Path) -> Path:
    """What runs a command on the stand-in."""
    found = shared.parent / "tools" / "gpu" / "stand_in" / "run.sh"
    if not found.exists():
        pytest.skip(f"{found} is absent: the stand-in is not part of the project")
    if not (Path(ort.__file__).parent / "capi" / "libonnxruntime_providers_cuda.so").exists():
        pytest.skip("this onnxruntime has no CUDA provider")
    if not str(getattr(ort, "cuda_version", "")).startswith("13") or platform.machine() != "x86_64":
        pytest.skip("the stand-in is for CUDA 13 on x86-64")
    if importlib.util.find_spec("nvidia") is not None:
        pytest.skip("NVIDIA's own libraries are installed, and would be loaded instead")
    if shutil.which("g++") is None:
        pytest.skip("the stand-in is built with g++")
    return found


@pytest.fixture(scope="module")
def calls() -> Any:
    """The module `gpu_calls`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        import gpu_calls

        yield gpu_calls


@pytest.fixture(scope="module")
def ran(script: Path, half_model: Path, calls: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What BATCHES asked for: calls by batch, operators, stderr."""
    log = tmp_path_factory.mktemp("calls") / "calls.log"
    arguments = ["--model", str(half_model), "--batches", BATCHES, "--tokens", "1500", "--frames", "200"]
    code, found, said = calls.stand_in(script, SOURCE, log, arguments)
    assert code == 0, said  # a signal is a fault: the host touched the device's memory
    return dict(calls.counted(log)), found, said


def test_no_shape_costs_a_plan(ran: Any) -> None:
    """Neither at first nor when it comes again: cuDNN makes each in tenths of a second."""
    batches = {name: counts for name, counts in ran[0].items() if name[0] in "01"}
    assert len(batches) == 2 * len(BATCHES.split(","))
    assert all(counts["GEMM"] > 10 for counts in batches.values())
    for counts in ran[0].values():
        assert {what for what in counts if what.startswith(("PLAN", "EXECUTE", "REFUSED", "ERROR"))} == set()


def test_attention_is_the_flash_kernel_and_layer_norms_add(ran: Any) -> None:
    for name, counts in ran[0].items():
        kernels = Counter({what: n for what, n in counts.items() if what.startswith("kernel ")})
        if name[0] in "01":
            assert sum(n for what, n in kernels.items() if "flash_fwd" in what and "combine" not in what) == 3
            assert not any("softmax" in what.lower() for what in kernels)


def test_nothing_is_on_the_cpu_but_arithmetic_of_shapes(ran: Any) -> None:
    for events in ran[1]["profiles"].values():
        assert {e["op_name"] for e in events} >= {"MatMul", "MultiHeadAttention", "SkipLayerNormalization"}
        for e in events:
            assert not e["op_name"].startswith("Memcpy")
            if e["provider"] != "CUDAExecutionProvider":
                kinds = {kind for tensor in e["output_type_shape"] for kind in tensor}
                assert kinds == {"int64"}, e


def test_bfloat16_is_had_for_the_whole_encoder(script: Path, tiny_model: Path, calls: Any, tmp_path: Path) -> None:
    arguments = ["--model", str(tiny_model), "--batches", "200x3", "--tokens", "1500", "--frames", "200"]
    code, found, said = calls.stand_in(script, SOURCE, tmp_path / "log", [*arguments, "--device", "cuda:bfloat16"])
    assert code == 0, said
    for events in found["profiles"].values():
        kinds = {(e["op_name"], next(iter(e["input_type_shape"][0]))) for e in events if e["provider"][:4] == "CUDA"}
        for op in ("MatMul", "MultiHeadAttention", "SkipLayerNormalization", "BiasGelu"):
            assert (op, "bfloat16") in kinds
        assert all(set(t) == {"int64"} for e in events if e["provider"][:4] != "CUDA" for t in e["output_type_shape"])


def test_the_provider_has_nothing_to_warn_of(ran: Any) -> None:
    assert ran[2] == ""


@pytest.fixture
def made(script: Path, half_model: Path, tmp_path: Path) -> Callable[..., str]:
    """What making an encoder says on a device, with settings of the stand-in."""

    def run(device: str, **settings: str) -> str:
        environment = os.environ | {"PYTHONPATH": str(SOURCE), "STAND_IN_LOG": str(tmp_path / "log")} | settings
        command = ["sh", str(script), sys.executable, "-c", MAKE, str(half_model), device]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout

    return run


def test_what_is_missing_is_named_before_the_work(made: Callable[..., str]) -> None:
    assert made("cuda") == ""
    other = made("cuda:1")
    assert other.startswith("InputError cuda:1 could not be started")
    assert "nvidia-smi -L" in other
    missing = made("cuda", STAND_IN_NO_CUDNN="1")
    assert "cudnn" in missing.lower()
    assert "pip install 'voxstrata[gpu]'" in missing
    for said in (other, missing, made("tensorrt")):
        assert said.startswith("InputError")
        assert "export" not in said
        assert "--tokens" not in said
    for device in ("cuda", "cuda:bfloat16"):  # a CPU could not load the latter's graph
        loading, running = (made(device, STAND_IN_MB=megabytes) for megabytes in ("1", "30"))
        assert f"memory of {device} is free; nvidia-smi" in loading
        assert "--tokens" in running
        assert "export" not in loading + running


def asked(script: Path, log: Path, code: str, *arguments: object) -> dict[str, list[str]]:
    """What was asked for in each batch that the code marks, in order, and under "" before, between and after them."""
    environment = os.environ | {"PYTHONPATH": str(SOURCE), "STAND_IN_LOG": str(log)}
    command = ["sh", str(script), sys.executable, "-c", code, *map(str, arguments)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr  # a host that reads device memory ends with a signal
    batches: dict[str, list[str]] = {"": []}
    name = ""
    for line in (line.split(" ", 2)[2] for line in log.read_text(encoding="utf-8").splitlines()):
        if line.startswith("MARK"):
            name = line.removeprefix("MARK ").removeprefix("BEGIN ").removeprefix("END")
        else:
            batches.setdefault(name, []).append(line)
    return batches


def copied(batch: list[str], way: str) -> list[tuple[int, str]]:
    """Bytes of each copy, and the kind of the host's memory. way: H2D or D2H."""
    copies = [dict(x.split("=") for x in line.split()[2:] if "=" in x) for line in batch if f"COPY {way}" in line]
    return [(int(copy["bytes"]), copy["from" if way == "H2D" else "to"]) for copy in copies]


@pytest.mark.parametrize("kept", ["{}", '{"every": 4}', '{"pool": "mean"}'])
def test_a_batch_of_a_known_shape_asks_for_what_it_was_designed_to(
    script: Path, half_model: Path, tmp_path: Path, kept: str
) -> None:
    """Nothing is made anew, and nothing waited for but copies and runs."""
    batches = asked(script, tmp_path / "log", ENCODE, half_model, kept)
    assert len(batches) == 1 + len(SHAPES) * REPEATED
    every, pool = json.loads(kept).get("every", 1), "pool" in kept
    # host memory is locked once, for the largest batch: what goes in, what comes out
    assert sum(line.startswith("LOCK") for batch in batches.values() for line in batch) == 2
    for (frames, windows), i in itertools.product(SHAPES, range(1, REPEATED)):
        batch = batches[f"{frames}/{i}"]
        events = Counter(line.split()[0] for line in batch)
        assert not {"LOCK", "ALLOCATE", "ALLOCATE_HOST", "FREE", "PLAN", "STREAM", "ERROR"} & events.keys()
        # samples and the places of rows are uploaded, each waited for, with means their weights, too; each of three
        # runs is waited for twice, on its own stream and on CUDA's default one
        assert events["SYNC"] == 2 + (every > 1 or pool) + 3 * 2
        # rows alone leave the device, for memory that is locked, and a value of each output that says if all are finite
        rows, width = windows * (1 if pool else -(-(frames - 50) // every)), 4 if pool else 2
        assert sorted(copied(batch, "D2H")) == sorted([(rows * 32 * width, "pinned")] * 2 + [(2 * width, "pinned")])
        assert max(size for size, memory in copied(batch, "H2D") if memory == "pageable") <= 8 * windows * frames


def test_rows_of_other_families_arrive_in_locked_memory_that_is_used_again(script: Path, tmp_path: Path) -> None:
    batches = asked(script, tmp_path / "log", FAMILY, toy_encoder.write_toy(tmp_path / "model"))
    assert sum(line.startswith("LOCK") for batch in batches.values() for line in batch) == 1
    for batch in (batches["1"], batches["2"]):
        events = {line.split()[0] for line in batch}
        assert not {"LOCK", "ALLOCATE", "ALLOCATE_HOST", "FREE", "PLAN", "STREAM", "ERROR"} & events
        # rows of each output, and whether each is finite; before them features, which are made one by one
        rows = 3 * 49 * toy_encoder.D * 2
        assert sorted(copied(batch, "D2H")) == sorted(
            [(rows, "pinned")] * 2 + [(2 * 2, "pinned")] + [(4 * 16_000, "pageable")] * 3
        )
