"""What a marker says is there when the power fails: what was not fsynced is dropped, by a benchmark that does that."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="the calls are logged by LD_PRELOAD"),
    pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler"),
]
BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


def cut_power(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(BENCHMARKS / "power_cut.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.long
def test_a_few_power_cuts_lose_nothing_that_was_said_to_be_done() -> None:
    done = cut_power("--instants", "9", "--works", "extract", "append", "relabel")
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.real
@pytest.mark.timeout(7200)
def test_a_hundred_power_cuts_of_everything() -> None:
    done = cut_power("--instants", "100")
    assert done.returncode == 0, done.stdout + done.stderr
