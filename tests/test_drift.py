"""Drift compares modes on the same recordings, and its figures are those of a plain loop."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import numpy as np
import pyarrow as pa
import pytest
import soundfile
from conftest import sound
from test_cli import run

from voxstrata import Context, InputError, Reporter, extract, open_model, open_store, read_corpus
from voxstrata.corpus import Corpus
from voxstrata.store import EmbeddingStore, StoreSpec
from voxstrata.studies.drift.measure import frame_figures, measure_drift, sample
from voxstrata.studies.drift.result import LOST, Drift
from voxstrata.studies.retrieve import RetrievalOptions, retrieve


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
    drift = measure_drift(corpus, open_model(tiny_model), clips=None)
    assert drift.settings["clips"] == 8
    assert drift.settings["candidates"] == [4, 4]
    assert drift.settings["chance"] == pytest.approx(1 / 4)
    by_key = {(r["context"], r["output"]): r for r in drift.table.to_pylist()}
    for mode in ("padded", "trimmed"):
        extract(corpus, tiny_model, tmp_path / f"{mode}.zarr", StoreSpec(dtype="float32", context=Context(mode)))
    a, b = open_store(tmp_path / "padded.zarr"), open_store(tmp_path / "trimmed.zarr")
    for output in a.outputs:
        per_utterance = {}
        for i in a.ids:
            x, y = a.frames(i, output).astype(np.float64), b.frames(i, output).astype(np.float64)
            per_utterance[i] = [p @ q / np.sqrt((p @ p) * (q @ q)) for p, q in zip(x, y, strict=True)]
        means = {i: float(np.mean(c)) for i, c in per_utterance.items()}
        row, padded = by_key["trimmed", output], by_key["padded", output]
        assert row["cosine"] == pytest.approx(float(np.mean(np.concatenate(list(per_utterance.values())))), abs=1e-6)
        assert row["worst"] == pytest.approx(min(means.values()), abs=1e-6)
        assert means[row["worst_id"]] == pytest.approx(row["worst"], abs=1e-6)
        everything = np.concatenate(list(per_utterance.values()))
        assert row["frames"] == len(everything)
        assert row["frame_worst"] == pytest.approx(everything.min(), abs=1e-6)
        assert per_utterance[row["frame_worst_id"]][row["frame_worst_at"]] == pytest.approx(everything.min(), abs=1e-6)
        assert row["frame_q001"] == pytest.approx(np.sort(everything)[-(-len(everything) // 1000) - 1], abs=1e-6)
        for lost, share in zip(LOST, row["share_beyond"], strict=True):
            sure = [np.mean(1 - everything > lost + e) for e in (1e-6, -1e-6)]  # of float32 the last digits vary
            assert sure[0] <= share <= sure[1]
        assert (padded["cosine"], padded["worst"], padded["seqsim_f1_change"]) == (None, None, None)
        for similarity in ("seqsim_f1", "pooled_cosine"):
            change = row[f"{similarity}_recall"] - padded[f"{similarity}_recall"]
            assert row[f"{similarity}_change"] == pytest.approx(change)
    options = RetrievalOptions(scores=("raw",), ks=(1,), bootstrap=0)
    rows = retrieve(b, similarities=["seqsim_f1"], options=options).table.to_pylist()
    (mean,) = [r["value"] for r in rows if (r["level"], r["output"], r["metric"]) == ("mean", "final", "recall@1")]
    assert by_key["trimmed", "final"]["seqsim_f1_recall"] == pytest.approx(mean)
    closest = {m: min(r["cosine"] for (of, _), r in by_key.items() if of == m) for m in ("bucketed", "trimmed")}
    assert closest["bucketed"] > closest["trimmed"]  # what the cache is for


def test_frames_that_turn_are_found_though_the_mean_hides_them() -> None:
    """Two frames of 4000 turned by known angles: the mean does not show them, the figures of frames do."""
    rng = np.random.default_rng(0)
    rows, offsets = rng.standard_normal((2, 2000, 8)), np.array([0, 1200, 2000])
    turned = rows * 3
    for frame, cosine in ((1205, -0.25), (1209, 0.75)):  # the sixth and tenth frame of the second recording of a unit
        x = rows[1, frame]
        aside = np.roll(x, 1) - x * (np.roll(x, 1) @ x) / (x @ x)
        turned[1, frame] = cosine * x / np.linalg.norm(x) + np.sqrt(1 - cosine**2) * aside / np.linalg.norm(aside)

    def store(frames: np.ndarray) -> EmbeddingStore:
        units = [(np.arange(2 * i, 2 * i + 2), frames[i].astype(np.float32), offsets) for i in (0, 1)]
        found = SimpleNamespace(units=lambda output: iter(units), ids=["a", "b", "c", "d"])
        return cast(EmbeddingStore, found)

    row = frame_figures(store(rows), store(turned), "final")
    assert row["frames"] == 4000
    assert row["cosine"] == pytest.approx(1 - (1.25 + 0.25) / 4000, abs=1e-7)
    assert (row["frame_worst"], row["frame_worst_id"], row["frame_worst_at"]) == (pytest.approx(-0.25), "d", 5)
    assert (row["below_09"], row["below_05"]) == (2 / 4000, 1 / 4000)
    assert row["frame_q001"] == pytest.approx(1)  # of 4000 the fourth lowest
    beyond = dict(zip(LOST, row["share_beyond"], strict=True))
    assert [beyond[min(LOST, key=lambda x: abs(x - lost))] * 4000 for lost in (0.01, 0.5, 1.9)] == [2, 1, 0]
    assert (row["worst_id"], row["worst"]) == ("d", pytest.approx(1 - 1.5 / 800))


def test_a_corpus_without_translations_says_so_and_still_measures(corpus: Corpus, tiny_model: Path) -> None:
    table = corpus.table.set_column(3, "group", pa.nulls(len(corpus), pa.string()))
    drift = measure_drift(Corpus(corpus.root, table), open_model(tiny_model), outputs="final", clips=None)
    assert drift.settings["candidates"] is None
    assert f"No retrieval: {drift.settings['no_retrieval']}" in drift.to_markdown()
    rows = drift.table.to_pylist()
    assert [r["context"] for r in rows] == ["padded", "bucketed", "trimmed"]
    assert all(r["seqsim_f1_recall"] is None for r in rows)
    assert all(0 < r["cosine"] <= 1 + 1e-9 for r in rows[1:])


def test_too_few_clips_are_said_before_the_work_and_not_blamed_on_the_corpus(corpus: Corpus, tiny_model: Path) -> None:
    heard: list[str] = []

    class Ears(Reporter):
        def warn(self, text: str) -> None:
            heard.append(text)

    drift = measure_drift(corpus, open_model(tiny_model), outputs="final", clips=2, reporter=Ears())
    why = (
        "the 2 recordings drawn have 1 sentence in several languages, of 4 in the corpus; --clips with a larger number"
    )
    assert drift.settings["no_retrieval"].startswith(why)
    assert [text for text in heard if text.startswith(why)] == [
        f"{drift.settings['no_retrieval']}: recall will not be measured"
    ]


def test_a_saved_result_comes_back_and_shows_what_was_measured(
    corpus: Corpus, tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib")
    manifest, out = corpus.root / "m.tsv", tmp_path / "out"
    assert run("drift", manifest, tiny_model, "--outputs", "layer_02,final", "--clips", "0", "-o", out) == 0
    printed = capsys.readouterr().out
    drift = Drift.load(out)
    for row in drift.table.to_pylist()[2:]:
        at = rf"^{row['context']} +{row['output']} +"
        shown = re.search(rf"{at}(\S+) +(\S+) +(\S+) +(\S+) % +(\S+) %$", printed, re.M)
        assert shown is not None
        wanted = (row["cosine"], row["frame_q001"], row["frame_worst"])
        assert tuple(map(float, shown.groups()[:3])) == pytest.approx(wanted, abs=6e-5)
        far = (100 * row["below_09"], 100 * row["below_05"])
        assert tuple(map(float, shown.groups()[3:])) == pytest.approx(far, abs=6e-4)
        shown = re.search(rf"{at}(\S+) +(\S+) +(\S+) \((\S+)\)", printed, re.M)
        assert shown is not None
        worst, name, recall, change = shown.groups()
        assert float(worst) == pytest.approx(row["worst"], abs=6e-5)
        assert name == row["worst_id"]
        expected = (100 * row["seqsim_f1_recall"], 100 * row["seqsim_f1_change"])
        assert (float(recall), float(change)) == pytest.approx(expected, abs=0.06)
    speed = drift.settings["seconds"]["padded"] / drift.settings["seconds"]["trimmed"]
    assert f"trimmed {speed:.2f} ×" in printed
    assert "pool of 4 (all recordings), chance 25.0 %" in " ".join(printed.split())
    assert (out / "drift.md").read_text(encoding="utf-8") == drift.to_markdown()
    for picture in ("drift.png", "drift_frames.png"):
        assert (out / picture).read_bytes().startswith(b"\x89PNG")
    assert max(map(len, re.findall(r"^(?:mode|bucketed|trimmed) .*$", printed, re.M))) <= 80
    assert run("drift", manifest, tiny_model, "-o", corpus.root) == 3
    assert "holds something else" in capsys.readouterr().err


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
    drift = measure_drift(read_corpus(tmp_path), open_model(tiny_model), outputs="final")
    assert [drift.settings[name] for name in ("clips", "failed", "audio_seconds")] == [2, 1, 1.0]
    assert list(drift.failures) == ["bad"]
    (tmp_path / "good0.wav").unlink()
    (tmp_path / "good1.wav").unlink()
    with pytest.raises(InputError, match=r"bad\.wav"):
        measure_drift(read_corpus(tmp_path), open_model(tiny_model), outputs="final")


def test_recordings_that_all_fail_at_decoding_are_refused_naming_the_first(tiny_model: Path, tmp_path: Path) -> None:
    for i in range(2):  # headers in order, so that they are planned
        soundfile.write(tmp_path / f"{i}.wav", np.full(8000, np.nan, np.float32), 16_000, subtype="FLOAT")
    with pytest.raises(InputError, match=r"no recording of 2 can be decoded; the first: 0\.wav: 8000 of 8000"):
        measure_drift(read_corpus(tmp_path), open_model(tiny_model), outputs="final")


def test_the_command_exits_4_and_names_what_failed(
    tiny_model: Path, make_corpus: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    root = make_corpus({"a": 0.5, "b": 0.7})

    command = ("drift", root, tiny_model, "--outputs", "final", "--quiet")
    assert run(*command) == 0
    assert capsys.readouterr().err == ""
    (root / "bad.wav").write_bytes(b"not audio at all")
    assert run(*command) == 4
    out, err = capsys.readouterr()
    assert "2 recordings" in out
    assert re.search(r"failed recordings: 1\n  bad: bad\.wav: not audio", err)
