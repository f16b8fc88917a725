"""What the README promises of `bucketed`, on real weights and all real prompts. Tens of minutes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from voxstrata import read_corpus
from voxstrata.exporters import ExportSpec, export
from voxstrata.studies.drift.measure import measure_drift

pytestmark = [pytest.mark.real, pytest.mark.timeout(7200)]
BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


def test_bucketed_stays_close_to_padded_and_retrieves_alike(shared: Path, tmp_path: Path) -> None:
    calibrated = ExportSpec(calibrate=shared / "assorted")  # recordings that are not measured
    model = export(str(shared / "whisper-base-encoder"), tmp_path / "base", calibrated)
    drift = measure_drift(read_corpus(shared / "prompts" / "prompts.tsv"), model, clips=None)
    print(f"\n{drift}")
    bucketed = [r for r in drift.table.to_pylist() if r["context"] == "bucketed"]
    assert len(bucketed) == 8
    assert min(r["cosine"] for r in bucketed) >= 0.995
    changes = [r[f"{similarity}_change"] for r in bucketed for similarity in ("seqsim_f1", "pooled_cosine")]
    assert max(map(abs, changes)) <= 0.02


@pytest.mark.parametrize("script", ["memory.py", "extraction.py"])
def test_benchmarks_that_hold_a_promise_hold_it(script: str, shared: Path, tmp_path: Path) -> None:
    given = {
        "--model": shared / "whisper-base-encoder",
        "--corpus": shared / "prompts" / "prompts.tsv",
        "--calibrate": shared / "assorted",
        "--out": tmp_path,
    }
    arguments = [str(a) for pair in given.items() for a in pair]
    small = ["--clips", "100", "--repeats", "1", "--baseline-clips", "16"] if script == "extraction.py" else []
    done = subprocess.run([sys.executable, BENCHMARKS / script, *arguments, *small], check=False)
    report = json.loads((tmp_path / script.replace(".py", ".json")).read_text(encoding="utf-8"))
    assert report  # written whether or not the promise held
    assert done.returncode == 0
