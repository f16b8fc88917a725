"""What CUDA is asked for, batch by batch: the real CUDA provider on a stand-in for CUDA's libraries.

Nothing is computed. The stand-in logs each call, and device memory faults when the host touches it.
"""

from __future__ import annotations

import itertools
import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import onnxruntime as ort
import pytest

pytest.importorskip("onnx")

STAND_IN = Path(__file__).parents[2] / "shared" / "tools" / "gpu" / "stand_in" / "run.sh"
BATCHES = 3  # of each shape, one after the other
SHAPES = ((200, 9), (400, 5), (1500, 1))  # computed positions, windows
ENCODE = f"""
import ctypes, json, sys
import numpy as np
from voxstrata import open_model
from voxstrata.engine import CudaEncoder, Device, Runtime
from voxstrata.store import StoreSpec

mark = ctypes.CDLL("libcudart.so.13").stand_in_mark
spec = StoreSpec(("layer_02", "final"), **json.loads(sys.argv[2]))
encoder = CudaEncoder(open_model(sys.argv[1]), spec, Runtime(Device("cuda"), tokens=2000))
for frames, windows in {SHAPES}:
    for i in range({BATCHES}):
        mark(f"BEGIN {{frames}}/{{i}}".encode())
        rows = encoder.stored_rows([np.full(frames * 320 - 16000, 0.1, np.float32)] * windows, frames)
        assert len(rows.rows[0]) == windows and rows.finite == [True, True]
        del rows
        mark(b"END")
assert encoder.host_memory == "pinned"
"""


@pytest.fixture(scope="module")
def half(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model in float16, for a machine that has the stand-in, and no GPU."""
    if not STAND_IN.exists():
        pytest.skip(f"{STAND_IN} is absent: the stand-in for CUDA's libraries is not part of the project")
    if "CUDAExecutionProvider" not in ort.get_available_providers() or shutil.which("g++") is None:
        pytest.skip("needs onnxruntime-gpu, and g++ to build the stand-in")
    if Path("/dev/nvidiactl").exists():
        pytest.skip("this machine has a CUDA device, whose libraries would be loaded")
    from voxstrata.exporters import ExportSpec, export

    target = tmp_path_factory.mktemp("half") / "model"
    export(str(tiny_checkpoint), target, ExportSpec(dtype="float16"))
    return target


def calls(model: Path, folder: Path, kept: str) -> dict[str, list[str]]:
    """What was asked for in each batch, by the names of ENCODE."""
    log = folder / "log"
    environment = os.environ | {"STAND_IN_LOG": str(log)}
    command = ["sh", str(STAND_IN), sys.executable, "-c", ENCODE, str(model), kept]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr  # a host that reads device memory ends with a signal
    lines = [line.split(" ", 2)[2] for line in log.read_text(encoding="utf-8").splitlines()]
    assert [line for line in lines if line.startswith("ERROR")] == []
    batches: dict[str, list[str]] = {}
    found: list[str] = []  # of the batch, and between batches of nobody
    for line in lines:
        if line.startswith("MARK BEGIN"):
            found = batches[line.removeprefix("MARK BEGIN ")] = []
        elif line.startswith("MARK END"):
            found = []
        else:
            found.append(line)
    return batches


def copied(batch: list[str], way: str) -> list[tuple[int, str]]:
    """Bytes of each copy, and the kind of the host's memory. way: H2D or D2H."""
    lines = [
        dict(part.split("=") for part in line.split()[2:] if "=" in part) for line in batch if f"COPY {way}" in line
    ]
    return [(int(line["bytes"]), line["from" if way == "H2D" else "to"]) for line in lines]


@pytest.mark.parametrize("kept", ["{}", '{"every": 4}', '{"pool": "mean"}'])
def test_a_batch_of_a_known_shape_asks_for_what_it_was_designed_to(half: Path, tmp_path: Path, kept: str) -> None:
    batches = calls(half, tmp_path, kept)
    assert len(batches) == len(SHAPES) * BATCHES
    every, pool = json.loads(kept).get("every", 1), "pool" in kept
    for (frames, windows), i in itertools.product(SHAPES, range(BATCHES)):
        batch = batches[f"{frames}/{i}"]
        asked = Counter(line.split()[0] for line in batch)
        # host memory is locked once, for the largest batch: what goes in, what comes out
        assert asked["LOCK"] == (2 if (frames, i) == (SHAPES[0][0], 0) else 0)
        if i == 0:
            continue
        assert not {"ALLOCATE", "ALLOCATE_HOST", "FREE", "PLAN", "STREAM"} & asked.keys()
        # samples and the places of rows are uploaded, each waited for, with means their weights, too; each of three
        # runs is waited for twice, on its own stream and on CUDA's default one
        assert asked["SYNC"] == 2 + (every > 1 or pool) + 3 * 2
        # rows alone leave the device, for memory that is locked, and a value of each output that says if all are finite
        rows, width = windows * (1 if pool else -(-(frames - 50) // every)), 4 if pool else 2
        assert sorted(copied(batch, "D2H")) == sorted([(rows * 32 * width, "pinned")] * 2 + [(2 * width, "pinned")])
        assert max(size for size, memory in copied(batch, "H2D") if memory == "pageable") <= 8 * windows * frames
