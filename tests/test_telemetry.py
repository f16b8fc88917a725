"""Nothing is sent, or kept to be sent: ONNX Runtime's telemetry is off in every process."""

from __future__ import annotations

import ast
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SESSION = """
import onnxruntime
from onnx import TensorProto, helper
x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, [1]) for n in "xy")
graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "g", [x], [y])
model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)
session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
print("ready", flush=True)
"""
# stands before libc's getaddrinfo: writes down who is looked up, and finds nobody
SHIM = """
#include <netdb.h>
#include <stdio.h>
#include <stdlib.h>
int getaddrinfo(const char *node, const char *service, const struct addrinfo *hints, struct addrinfo **found) {
    FILE *file = fopen(getenv("LOOKUPS"), "a");
    if (file) { fprintf(file, "%s\\n", node ? node : ""); fclose(file); }
    return EAI_AGAIN;
}
"""

Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def start(tmp_path: Path) -> Start:
    """Start Python in an empty home: `start("home", code, **environment)`."""
    pytest.importorskip("onnx")

    def start(home: str, code: str, **environment: str) -> subprocess.Popen[str]:
        (tmp_path / home).mkdir()
        kept = {k: v for k, v in os.environ.items() if k != "ORT_DISABLE_TELEMETRY" and not k.startswith("XDG_")}
        environment = kept | {"HOME": str(tmp_path / home)} | environment
        return subprocess.Popen([sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, text=True)

    return start


def kept(folder: Path) -> list[str]:
    """What onnxruntime has left in a home."""
    return sorted(path.name for path in folder.rglob("*onnxruntime*"))


def test_nothing_is_kept_for_sending(tmp_path: Path, start: Start) -> None:
    bare, ours = start("bare", SESSION), start("ours", "import voxstrata" + SESSION)
    assert [process.communicate()[0] for process in (bare, ours)] == ["ready\n"] * 2
    if not kept(tmp_path / "bare"):
        pytest.skip("this onnxruntime keeps nothing by itself")
    assert kept(tmp_path / "ours") == []


def test_a_users_own_setting_stays(tmp_path: Path, start: Start) -> None:
    code = "import os, voxstrata; print(os.environ['ORT_DISABLE_TELEMETRY'])"
    assert start("set", code, ORT_DISABLE_TELEMETRY="0").communicate()[0] == "0\n"
    assert start("unset", code).communicate()[0] == "1\n"


def test_nobody_is_looked_up(tmp_path: Path, start: Start) -> None:
    """Watched in C, where onnxruntime asks; for as long as it takes without us, some ten seconds, and two more."""
    if sys.platform != "linux" or not shutil.which("cc"):
        pytest.skip("needs Linux and a C compiler, to stand before getaddrinfo")
    (tmp_path / "shim.c").write_text(SHIM)
    shim, bare, ours = tmp_path / "shim.so", tmp_path / "bare.txt", tmp_path / "ours.txt"
    subprocess.run(["cc", "-shared", "-fPIC", "-o", shim, tmp_path / "shim.c"], check=True)
    wait = "\nimport time\ntime.sleep(60)"
    running = [
        start("bare", SESSION + wait, LD_PRELOAD=str(shim), LOOKUPS=str(bare)),
        start("ours", "import voxstrata" + SESSION + wait, LD_PRELOAD=str(shim), LOOKUPS=str(ours)),
    ]
    try:
        assert [process.stdout.readline() for process in running if process.stdout] == ["ready\n"] * 2
        end = time.monotonic() + 20
        while not bare.exists() and time.monotonic() < end:
            time.sleep(0.1)
        if not bare.exists():
            pytest.skip("this onnxruntime looks nobody up within 20 s")
        time.sleep(2)
        assert not ours.exists()
    finally:
        for process in running:
            process.kill()
            process.communicate()


@pytest.mark.parametrize("path", sorted(ROOT.glob("benchmarks/*.py")), ids=lambda path: path.name)
def test_benchmarks_import_us_before_onnxruntime(path: Path) -> None:
    """Imports at the top of a file, in order."""
    names = []
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Import):
            names += [alias.name.split(".")[0] for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.append(node.module.split(".")[0])
    if "onnxruntime" in names:
        assert "voxstrata" in names[: names.index("onnxruntime")]
