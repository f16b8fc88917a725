"""Sweeps with softer exits, detected languages and sounds: what is planted in the encoder shows in the transcripts."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import soundfile
from conftest import sound
from test_cli import run
from transcribers import write_transcriber

pytest.importorskip("torch")
pytest.importorskip("jiwer")
pytest.importorskip("matplotlib")

import torch

from voxstrata.base.errors import InputError, UsageError
from voxstrata.corpus import Corpus, read_corpus
from voxstrata.early_exit import decoding
from voxstrata.early_exit.checkpoint import (
    Transcriber,
    load_transcriber,
    quiet_transformers,
    shortened,
    spectrograms,
    write_early_exit,
)
from voxstrata.early_exit.companions import with_english_texts
from voxstrata.early_exit.decoding import AUTO, Decoding
from voxstrata.early_exit.exits import NORMS, EarlyExit
from voxstrata.early_exit.result import EarlyExits
from voxstrata.early_exit.scoring import Scoring
from voxstrata.early_exit.softer import SofterExits
from voxstrata.early_exit.sweeping import sweep
from voxstrata.store.claims import Claims
from voxstrata.store.files import Files

GROUPS = 4
SCORING = Scoring("light", resamples=20)


@pytest.fixture(scope="module")
def speech(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    """Four sentences in English and Spanish."""
    root = tmp_path_factory.mktemp("softer")
    lines = ["id\tpath\tlanguage\tgroup\ttext"]
    for g in range(GROUPS):
        for j, (language, text) in enumerate((("en", f"Door {g} is open"), ("es", f"La puerta {g} está abierta"))):
            soundfile.write(root / f"{language}{g}.wav", sound(0.6 + 0.2 * g, 10 * g + j), 16_000)
            lines.append(f"{language}{g}\t{language}{g}.wav\t{language}\ts{g}\t{text}")
    (root / "speech.tsv").write_text("\n".join(lines), encoding="utf-8")
    return read_corpus(root / "speech.tsv")


@pytest.fixture(scope="module")
def shifting(tiny_transcriber: Path, tmp_path_factory: pytest.TempPathFactory) -> Transcriber:
    """The last of three blocks adds a constant to every frame and nothing else: layer_2 knows all that layer_3 does."""
    folder = tmp_path_factory.mktemp("shifting") / "model"
    shutil.copytree(tiny_transcriber, folder)
    found = load_transcriber(str(folder))
    last = found.model.model.encoder.layers[2]
    with torch.no_grad():
        for linear in (last.self_attn.out_proj, last.fc2):
            linear.weight.zero_()
            linear.bias.zero_()
        last.fc2.bias += 4 * torch.randn(32, generator=torch.Generator().manual_seed(3))
    with quiet_transformers():
        found.model.save_pretrained(folder)
    return load_transcriber(str(folder))


def go(transcriber: Transcriber, corpus: Corpus, folder: Path, **how: object) -> EarlyExits:
    given: dict[str, object] = {"norms": NORMS, "blocks": [2], "scoring": SCORING}
    given["decoding"] = Decoding(max_new_tokens=8)
    result = sweep(transcriber, corpus, folder, **(given | how))  # type: ignore[arg-type]
    assert result is not None
    return result


def texts(result: EarlyExits, at: EarlyExit) -> dict[str, str]:
    rows = result.transcripts.to_pylist()
    return {r["id"]: r["transcript"] for r in rows if (r["after"], r["norm"]) == (at.after, at.norm)}


@pytest.fixture(scope="module")
def swept(shifting: Transcriber, speech: Corpus, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, EarlyExits]:
    folder = tmp_path_factory.mktemp("swept") / "exits"
    return folder, go(shifting, speech, folder)


def test_a_mapped_exit_hears_all_that_its_layer_knows(swept: tuple[Path, EarlyExits]) -> None:
    folder, result = swept
    whole = texts(result, EarlyExit(3))
    assert len(whole) == 2 * GROUPS
    assert texts(result, EarlyExit(2, "mapped")) == whole
    assert texts(result, EarlyExit(2)) != whole  # its own LayerNorm does not know the constant
    table = SofterExits.load(folder / "fits").table.to_pylist()
    r2 = {(r["language"], r["norm"]): r["r2"] for r in table if r["after"] == 2}
    assert r2["all", "mapped"] > 0.999 > r2["all", "with"]


def test_controls_are_in_the_tables_and_never_chosen(swept: tuple[Path, EarlyExits]) -> None:
    folder, result = swept
    held = {(r["after"], r["norm"]) for r in result.table.to_pylist()}
    assert held == {(2, "mapped"), (2, "refitted"), (2, "without"), (2, "with"), (3, "without"), (3, "with")}
    assert not {r["norm"] for r in result.choices.to_pylist()} & {"mapped", "refitted"}
    assert (folder / "fits" / "fits.png").exists()
    parameters = {r["norm"]: r["parameters"] for r in result.costs.to_pylist() if r["after"] == 2}
    assert parameters["refitted"] == parameters["with"] == parameters["mapped"] - 32 * 33  # a matrix and an offset


@pytest.mark.long
def test_a_refitted_exit_is_written_as_a_checkpoint_that_says_the_same(
    swept: tuple[Path, EarlyExits], shifting: Transcriber, speech: Corpus, tmp_path: Path
) -> None:
    folder, result = swept
    fits = folder / "fits"
    assert run("early-exit", "write", shifting.folder, "-k", 2, "--refitted", fits, "-o", tmp_path / "k2") == 0
    written = load_transcriber(str(tmp_path / "k2"))
    assert torch.equal(
        written.model.model.encoder.layer_norm.weight, torch.from_numpy(SofterExits.load(fits).fits[2].scale)
    )
    again = go(written, speech, tmp_path / "again", norms=("with",), blocks=[])
    assert texts(again, EarlyExit(2)) == texts(result, EarlyExit(2, "refitted"))
    with pytest.raises(UsageError, match="mapped cannot be written"):
        write_early_exit(shifting, tmp_path / "mapped", EarlyExit(2, "mapped"))
    assert run("early-exit", "write", tmp_path / "k2", "-k", 1, "--refitted", fits, "-o", tmp_path / "k1") != 0


@pytest.mark.long
def test_the_same_fits_serve_a_run_that_goes_on_and_others_are_refused(
    swept: tuple[Path, EarlyExits], shifting: Transcriber, speech: Corpus, tmp_path: Path
) -> None:
    folder, first = swept
    shutil.copytree(folder, tmp_path / "exits")
    again = go(shifting, speech, tmp_path / "exits", blocks=[1, 2])
    assert again.resumed == 6 * 2 * GROUPS
    assert texts(again, EarlyExit(2, "mapped")) == texts(first, EarlyExit(2, "mapped"))
    plain = go(shifting, speech, tmp_path / "exits", norms=("with",), scoring=Scoring("light", seed=5, resamples=20))
    assert plain.resumed == 10 * 2 * GROUPS
    other = Scoring("light", seed=5, resamples=20)
    with pytest.raises(InputError, match="made without these fits"):
        go(shifting, speech, tmp_path / "exits", scoring=other)
    assert SofterExits.load(tmp_path / "exits" / "fits").settings["fits_sha256"] == first.settings["fits_sha256"]
    anew = go(shifting, speech, tmp_path / "exits", scoring=other, overwrite=True)
    assert anew.resumed == 0
    assert anew.settings["fits_sha256"] != first.settings["fits_sha256"]


def test_fits_of_a_run_at_work_are_not_replaced(
    swept: tuple[Path, EarlyExits], shifting: Transcriber, speech: Corpus, tmp_path: Path
) -> None:
    folder = tmp_path / "exits"
    shutil.copytree(swept[0], folder)
    before = SofterExits.load(folder / "fits").settings
    with Claims(Files(folder)) as other:
        other.take(0)
        with pytest.raises(InputError, match="a run is at work with other fits"):
            go(shifting, speech, folder, scoring=Scoring("light", seed=5, resamples=20), overwrite=True)
    assert SofterExits.load(folder / "fits").settings == before


def test_fits_that_are_gone_are_not_made_up_for_transcripts_that_are_there(
    swept: tuple[Path, EarlyExits], shifting: Transcriber, speech: Corpus, tmp_path: Path
) -> None:
    shutil.copytree(swept[0], tmp_path / "exits")
    shutil.rmtree(tmp_path / "exits" / "fits")
    with pytest.raises(InputError, match="made without these fits"):
        go(shifting, speech, tmp_path / "exits")


@pytest.mark.long
def test_another_checkpoints_fits_do_not_stay_with_a_sweep_that_has_none(
    swept: tuple[Path, EarlyExits], tiny_transcriber: Path, speech: Corpus, tmp_path: Path
) -> None:
    shutil.copytree(swept[0], tmp_path / "exits")
    other = load_transcriber(str(tiny_transcriber))
    result = go(other, speech, tmp_path / "exits", norms=("with",), overwrite=True)
    assert "fits_sha256" not in result.settings
    assert not (tmp_path / "exits" / "fits").exists()
    assert go(other, speech, tmp_path / "exits", norms=("with",)).resumed == 2 * 2 * GROUPS


def test_weights_of_half_precision_are_copied_to_float32_once(
    tiny_transcriber: Path, speech: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    transcriber = load_transcriber(str(tiny_transcriber))
    transcriber.model.half()
    copied: list[object] = []

    def counted(value: object, *rest: object) -> object:
        copied.extend([value] * isinstance(value, torch.nn.Module))
        return deepcopy(value, *rest)  # type: ignore[arg-type]

    deepcopy = decoding.copy.deepcopy
    monkeypatch.setattr(decoding.copy, "deepcopy", counted)
    go(transcriber, speech, tmp_path / "exits", norms=("with",))
    assert sum(value is transcriber.model for value in copied) == 1
    assert transcriber.model.dtype == torch.float16


def test_the_language_is_the_one_that_transformers_detects_at_each_exit(
    tiny_checkpoint: Path, speech: Corpus, tmp_path: Path
) -> None:
    transcriber = load_transcriber(str(write_transcriber(tmp_path / "model", tiny_checkpoint, seed=3)))
    decoding = Decoding(prompts=(("en", AUTO), ("es", AUTO)), max_new_tokens=4)
    result = go(transcriber, speech, tmp_path / "exits", norms=("with",), blocks=[1, 2], decoding=decoding)
    codes = {i: name.strip("<|>") for name, i in transcriber.model.generation_config.lang_to_id.items()}
    expected = {}
    for k in (1, 2, 3):
        model = shortened(transcriber.model, EarlyExit(k)).float()
        for i, name in enumerate(speech.table["id"].to_pylist()):
            samples, _ = soundfile.read(speech.recording(i).source.name, dtype="float32")
            with torch.inference_mode():
                found = model.detect_language(spectrograms(transcriber.encoder, samples))
            expected[name, k] = codes[int(found[0])]
    assert {(r["id"], r["after"]): r["told"] for r in result.transcripts.to_pylist()} == expected
    assert {expected["es0", k] for k in (1, 3)} == {"es", "ja"}  # so that the exit matters
    table = pq.read_table(tmp_path / "exits" / "languages" / "languages.parquet").to_pylist()
    for k in (1, 2, 3):
        right = [expected[f"es{g}", k] == "es" for g in range(GROUPS)]
        assert [r["accuracy"] for r in table if (r["language"], r["after"]) == ("es", k)] == [sum(right) / GROUPS]


def test_english_texts_come_from_the_group(speech: Corpus) -> None:
    found = with_english_texts(speech)
    assert found.table["id"].to_pylist() == [f"es{g}" for g in range(GROUPS)]
    assert found.table["text"].to_pylist() == [f"Door {g} is open" for g in range(GROUPS)]
    assert found.table["source_text"].to_pylist() == [f"La puerta {g} está abierta" for g in range(GROUPS)]
    assert found.notes[-1] == f"left out of the sweep: {GROUPS} in English, whose texts are the references"
    alone = with_english_texts(speech.take([0, 1, 3]))  # the group of the third has no English text
    assert alone.table["id"].to_pylist() == ["es0"]
    assert alone.notes[-1].endswith("; 1 without an English text in their group")
    said = rf"^{speech.root}: {GROUPS} recordings, {GROUPS} of them in English, and none in another language has"
    with pytest.raises(InputError, match=said):
        with_english_texts(speech.take(range(0, 2 * GROUPS, 2)))


def test_translating_says_whether_wrong_words_sound_like_what_was_said(
    tiny_transcriber: Path, speech: Corpus, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("panphon")
    pytest.importorskip("phonemizer")
    corpus = Path(speech.root) / "speech.tsv"
    options = ["--task", "translate", "--english-of-group", "--blocks", "2", "--max-new-tokens", 12, "--bootstrap", 20]
    assert run("early-exit", "sweep", tiny_transcriber, corpus, "-o", tmp_path / "exits", *options, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    missed = [r for r in found["sound"] if r["language"] == "es" and r["kind"] == "missed" and r["after"] == 3]
    assert all(r["words"] > 0 and 0 <= r["closer"] <= 1 for r in missed)
    assert (tmp_path / "exits" / "sound" / "wrong_words.png").exists()
    assert run("early-exit", "sweep", tiny_transcriber, corpus, "-o", tmp_path / "x", "--english-of-group") == 2
