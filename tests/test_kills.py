"""Runs killed at random instants end in the bytes of one that nobody touched: a benchmark kills a few here."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from voxstrata.engine.budget import BLAS_THREADS

pytest.importorskip("torch")
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="runs are forked")
BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


def killed(script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(BENCHMARKS / script), *arguments]
    two = dict.fromkeys(BLAS_THREADS, "2")  # threads of BLAS, which a fork would lose
    return subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | two)


@pytest.mark.long
def test_a_few_kills_of_runs_that_share_the_work_change_no_byte() -> None:
    done = killed("kills.py", "--kills", "3", "--works", "extract, 4 parts", "similarity, 3 parts", "--fresh", "0")
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.real
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("script", ["kills.py", "kills_s3.py"])
def test_a_thousand_kills_change_no_byte(script: str) -> None:
    if script == "kills_s3.py":
        pytest.importorskip("moto")
    done = killed(script)
    assert done.returncode == 0, done.stdout + done.stderr
