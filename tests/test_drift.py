"""Drift compares modes on the same recordings, and its figures are those of a plain loop."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import soundfile
from conftest import sound

from voxstrata import Context, InputError, extract, open_model, open_store, read_corpus
from voxstrata.cli import main
from voxstrata.corpus import Corpus
from voxstrata.store import StoreSpec
from voxstrata.studies.drift.measure import measure_drift, sample


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    root = tmp_path_factory.mktemp("drift")
    rows = ["path\tlanguage\tgroup"]
    for g in range(4):
        for j, language in enumerate(("en", "es")):
            soundfile.write(root / f"{language}{g}.wav", sound(0.4 + 0.7 * g, 10 * g + j), 16_000, subtype="FLOAT")
            rows.append(f"{language}{g}.wav\t{language}\tg{g}")
    (root / "m.tsv").write_text("\n".join(rows), encoding="utf-8")
    return read_corpus(root / "m.tsv")


def test_figures_are_those_of_a_plain_loop(corpus: Corpus, tiny_model: Path, tmp_path: Path) -> None:
    report = measure_drift(corpus, open_model(tiny_model), clips=None)
    assert report.clips == 8
    assert report.candidates == (4, 4)
    assert report.chance == pytest.approx(1 / 4)
    for mode in ("padded", "trimmed"):
        extract(corpus, tiny_model, tmp_path / f"{mode}.zarr", StoreSpec(dtype="float32", context=Context(mode)))
    a, b = open_store(tmp_path / "padded.zarr"), open_store(tmp_path / "trimmed.zarr")
    for output in a.outputs:
        per_utterance = {}
        for i in a.ids:
            x, y = a.frames(i, output).astype(np.float64), b.frames(i, output).astype(np.float64)
            per_utterance[i] = [p @ q / np.sqrt((p @ p) * (q @ q)) for p, q in zip(x, y, strict=True)]
        means = {i: float(np.mean(c)) for i, c in per_utterance.items()}
        (row,) = [r for r in report.rows if (r.mode, r.output) == ("trimmed", output)]
        assert row.cosine == pytest.approx(float(np.mean(np.concatenate(list(per_utterance.values())))), abs=1e-6)
        assert row.worst == pytest.approx(min(means.values()), abs=1e-6)
        assert means[row.worst_id] == pytest.approx(row.worst, abs=1e-6)
        for similarity, value in row.recall.items():
            assert row.change[similarity] == pytest.approx(value - report.recall_padded[output][similarity])
    closest = {m: min(r.cosine for r in report.rows if r.mode == m) for m in ("bucketed", "trimmed")}
    assert closest["bucketed"] > closest["trimmed"]  # what the cache is for


def test_a_corpus_without_translations_says_so_and_still_measures(corpus: Corpus, tiny_model: Path) -> None:
    table = corpus.table.set_column(3, "group", pa.nulls(len(corpus), pa.string()))
    report = measure_drift(Corpus(corpus.root, table), open_model(tiny_model), outputs="final", clips=None)
    assert report.candidates is None
    assert report.no_retrieval
    assert all(r.recall == {} for r in report.rows)
    assert all(0 < r.cosine <= 1 + 1e-9 for r in report.rows)


def test_a_sample_takes_whole_groups_whatever_the_order(corpus: Corpus) -> None:
    part = sample(corpus, 4)
    groups = part.table["group"].to_pylist()
    assert len(part) == 4
    assert all(groups.count(g) == 2 for g in groups)
    backwards = Corpus(corpus.root, corpus.table.take(pa.array(range(len(corpus))[::-1])))
    assert sorted(sample(backwards, 4).table["id"].to_pylist()) == sorted(part.table["id"].to_pylist())
    assert sample(corpus, None) is corpus


def test_an_unreadable_recording_is_counted_and_left_out(tiny_model: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.wav").write_bytes(b"RIFF")
    for i in range(2):
        soundfile.write(tmp_path / f"good{i}.wav", sound(0.5, i), 16_000)
    report = measure_drift(read_corpus(tmp_path), open_model(tiny_model), outputs="final")
    assert (report.clips, report.failed, report.audio_seconds) == (2, 1, 1.0)
    assert list(report.failures) == ["bad"]
    (tmp_path / "good0.wav").unlink()
    (tmp_path / "good1.wav").unlink()
    with pytest.raises(InputError, match=r"bad\.wav"):
        measure_drift(read_corpus(tmp_path), open_model(tiny_model), outputs="final")


def test_recordings_that_all_fail_at_decoding_are_refused_naming_the_first(tiny_model: Path, tmp_path: Path) -> None:
    for i in range(2):  # headers in order, so that they are planned
        soundfile.write(tmp_path / f"{i}.wav", np.full(8000, np.nan, np.float32), 16_000, subtype="FLOAT")
    with pytest.raises(InputError, match=r"none of the 2 recordings can be decoded; the first: 0\.wav: 8000 of 8000"):
        measure_drift(read_corpus(tmp_path), open_model(tiny_model), outputs="final")


def test_the_command_exits_4_and_names_what_failed(
    tiny_model: Path, make_corpus: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    root = make_corpus({"a": 0.5, "b": 0.7})

    def run() -> int:
        with pytest.raises(SystemExit) as e:
            main.main(["drift", str(root), str(tiny_model), "--outputs", "final"], prog_name="voxstrata")
        return int(e.value.code or 0)

    assert run() == 0
    assert capsys.readouterr().err == ""
    (root / "bad.wav").write_bytes(b"not audio at all")
    assert run() == 4
    out, err = capsys.readouterr()
    assert "2 recordings" in out
    assert re.search(r"failed recordings: 1\n  bad: bad\.wav: not audio", err)
