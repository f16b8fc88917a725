"""Corpora, lists and checkpoints of which nothing can come: a message that says what to do, before any work."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from conftest import sound
from stores import Utterance, make_store
from test_cli import run

Check = Callable[..., None]
TEXTS = ("The door is open", "It rains", "Good morning", "Where is the station")


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Check:
    """Run a command, hold its exit code and that its message holds every given part."""

    def check(code: int, parts: tuple[str, ...], *command: object) -> None:
        assert run(*command) == code
        said = capsys.readouterr().err
        assert all(part in said for part in parts), said
        assert "Traceback" not in said

    return check


@pytest.fixture
def corpus(tmp_path: Path) -> Callable[[Callable[[dict[str, str]], dict[str, str] | None]], Path]:
    """Four sentences in en and es, spoken; `change` alters a row or drops it."""

    def make(change: Callable[[dict[str, str]], dict[str, str] | None] = lambda row: row) -> Path:
        columns = ("id", "path", "language", "group", "text")
        lines = ["\t".join(columns)]
        for n, (g, language) in enumerate((g, language) for g in range(4) for language in ("en", "es")):
            name = f"{language}{g}"
            soundfile.write(tmp_path / f"{name}.wav", sound(0.3, n), 16_000)
            row = {"id": name, "path": f"{name}.wav", "language": language, "group": f"g{g}", "text": TEXTS[g]}
            changed = change(row)
            if changed is not None:
                lines.append("\t".join(changed[c] for c in columns))
        (tmp_path / "m.tsv").write_text("\n".join(lines), encoding="utf-8")
        return tmp_path / "m.tsv"

    return make


class TestEarlyExit:
    @pytest.fixture(autouse=True)
    def extras(self, monkeypatch: pytest.MonkeyPatch) -> None:
        pytest.importorskip("torch")
        pytest.importorskip("jiwer")
        from voxstrata.early_exit.result import EarlyExits

        monkeypatch.setattr(EarlyExits, "figures", lambda _: {})  # drawing takes longer than all else

    def sweep(self, tiny_transcriber: Path, manifest: Path, *options: object) -> tuple[object, ...]:
        return ("early-exit", "sweep", tiny_transcriber, manifest, "-o", manifest.parent / "x", *options)

    def test_texts_missing_for_some(self, tiny_transcriber: Path, corpus: Check, refused: Check) -> None:
        manifest = corpus(lambda row: {**row, "text": ""} if row["id"] in ("en1", "es2") else row)
        parts = ("no text for en1, es2", "give it in the manifest's column 'text', or leave these rows out")
        refused(3, parts, *self.sweep(tiny_transcriber, manifest))

    def test_a_language_with_one_utterance(self, tiny_transcriber: Path, corpus: Check, refused: Check) -> None:
        manifest = corpus(lambda row: None if row["language"] == "es" and row["group"] != "g0" else row)
        refused(3, ("es: 1 utterance, which falls into", "give more groups"), *self.sweep(tiny_transcriber, manifest))

    @pytest.mark.parametrize("blocks", ["-1", "4", "1,9"])
    def test_k_out_of_range(self, blocks: str, tiny_transcriber: Path, corpus: Check, refused: Check) -> None:
        command = self.sweep(tiny_transcriber, corpus(), "--blocks", blocks)
        refused(2, ("the encoder has 3, so give 0 to 3",), *command)
        refused(2, ("give 0 to 3",), "early-exit", "check", tiny_transcriber, command[3], "--blocks", blocks)

    def test_a_checkpoint_without_decoder(
        self, tiny_transcriber: Path, corpus: Check, refused: Check, tmp_path: Path
    ) -> None:
        from safetensors.torch import load_file, save_file

        bare = tmp_path / "bare"
        shutil.copytree(tiny_transcriber, bare)
        weights = {name: value for name, value in load_file(bare / "model.safetensors").items() if ".encoder." in name}
        save_file(weights, bare / "model.safetensors", metadata={"format": "pt"})
        parts = ("bare: the checkpoint holds no decoder", "early exit needs a whole model")
        manifest = corpus()
        refused(3, parts, *self.sweep(bare, manifest))
        refused(3, parts, "early-exit", "check", bare, manifest)
        refused(3, parts, "early-exit", "write", bare, "-k", "1", "-o", tmp_path / "out")

    def test_empty_transcripts_are_all_errors_and_no_failure(
        self, tiny_transcriber: Path, corpus: Check, tmp_path: Path, capsys: pytest.CaptureFixture[str],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:  # fmt: skip
        """A model that ends at once hears nothing: every word is deleted, at every exit; ties go to the original."""
        from voxstrata.early_exit.decoder import Decoder

        def ending(self: Decoder, logits: object, rows: Any) -> None:
            for row in rows:
                row.ended = True

        monkeypatch.setattr(Decoder, "_extend", ending)
        manifest = corpus()
        assert run(*self.sweep(tiny_transcriber, manifest, "--blocks", "1", "--bootstrap", "20", "--json")) == 0
        said = json.loads(capsys.readouterr().out)
        assert {r["rate"] for r in said["rates"]} == {1.0}
        assert {(c["after"], c["norm"]) for c in said["choices"]} == {(None, None)}  # none says anything
        assert "(nothing)" in (manifest.parent / "x" / "transcripts.md").read_text(encoding="utf-8")

    def test_identical_sentences_count_each_for_itself(
        self, tiny_transcriber: Path, corpus: Check, capsys: pytest.CaptureFixture[str]
    ) -> None:
        manifest = corpus(lambda row: {**row, "text": "The door is open"})
        options = ("--blocks", "3", "--max-new-tokens", "2", "--bootstrap", "9", "--json")
        assert run(*self.sweep(tiny_transcriber, manifest, *options)) == 0
        rows = json.loads(capsys.readouterr().out)["rates"]
        assert {r["utterances"] for r in rows if r["language"] == "en"} == {2}


class TestSound:
    """phonetics and align."""

    @pytest.fixture(autouse=True)
    def extras(self) -> None:
        pytest.importorskip("panphon")
        pytest.importorskip("phonemizer")
        pytest.importorskip("espeakng_loader")

    def test_a_language_espeak_does_not_know(self, corpus: Check, refused: Check, tmp_path: Path) -> None:
        manifest = corpus(lambda row: {**row, "language": row["language"].replace("es", "xx")})
        parts = ("espeak-ng speaks no 'xx'", "--ipa", "--voice xx=CODE", "--languages")
        refused(3, parts, "phonetics", manifest, "-o", tmp_path / "ph")

    def test_groups_with_one_language(self, corpus: Check, refused: Check, tmp_path: Path) -> None:
        manifest = corpus(lambda row: {**row, "group": row["id"]})
        parts = ("no group occurs in two languages", "need the same group")
        refused(3, parts, "phonetics", manifest, "-o", tmp_path / "ph")

    def store(self, path: Path, group: Callable[[str, int], str], same: bool = False) -> Path:
        rng = np.random.default_rng(0)
        frames = {
            f"{language}{g}": rng.standard_normal((6, 8)).astype(np.float32)
            for language in ("en", "es")
            for g in range(4)
        }
        utterances = {
            name: Utterance(frames[f"{name[:2]}0"] if same else x, name[:2], group(name[:2], int(name[2:])))
            for name, x in frames.items()
        }
        make_store(path, utterances)
        return path

    def test_groups_of_the_store_with_one_language_or_one_sentence(
        self, corpus: Check, refused: Check, tmp_path: Path
    ) -> None:
        assert run("phonetics", corpus(), "-o", tmp_path / "ph") == 0
        options = ("--phonetics", tmp_path / "ph", "-o", tmp_path / "out")
        apart = self.store(tmp_path / "apart.zarr", lambda language, g: f"{language}{g}")
        refused(3, ("no group occurs in two languages", "need the same group"), "align", apart, *options)
        one = self.store(tmp_path / "one.zarr", lambda language, g: "g0" if g == 0 else f"{language}{g}")
        parts = ("a pool of one utterance cannot be searched", "give translations the same group")
        refused(3, parts, "align", one, *options)

    def test_identical_sentences_have_no_closeness_and_tie_against_themselves(
        self, corpus: Check, refused: Check, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """Of a language: refused. Of two groups: told, and nothing is NaN in the table of equal states."""
        manifest = corpus(lambda row: {**row, "text": "The door is open"} if row["language"] == "es" else row)
        refused(
            3,
            ("all sentences of es (4) have the same IPA", "check the text column"),
            "phonetics",
            manifest,
            "-o",
            tmp_path / "no",
        )
        manifest = corpus(lambda row: {**row, "text": TEXTS[0]} if row["id"] == "en1" else row)
        assert run("phonetics", manifest, "-o", tmp_path / "ph") == 0
        assert "en: 2 groups share a sentence" in capsys.readouterr().out
        store = self.store(tmp_path / "same.zarr", lambda _, g: f"g{g}", same=True)
        options = ("--phonetics", tmp_path / "ph", "-o", tmp_path / "out", "--bootstrap", "20", "--json")
        assert run("align", store, *options) == 0
        text = capsys.readouterr().out
        assert "NaN" not in text
        rows = json.loads(text)["rows"]
        (value,) = {r["value"] for r in rows if (r["system"], r["states"], r["control"], r["level"], r["metric"])
                    == ("final", "raw", "all", "mean", "recall@1")}  # fmt: skip
        assert value == 0  # equal states: ties count as wrong

    def test_some_utterances_without_ipa_are_counted(
        self, corpus: Check, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        manifest = corpus(lambda row: {**row, "text": ""} if row["id"] == "en3" else row)
        assert run("phonetics", manifest, "-o", tmp_path / "ph") == 4
        store = self.store(tmp_path / "s.zarr", lambda _, g: f"g{g}")
        capsys.readouterr()
        assert (
            run("align", store, "--phonetics", tmp_path / "ph", "-o", tmp_path / "out", "--bootstrap", "0", "--json")
            == 0
        )
        said = json.loads(capsys.readouterr().out)
        assert said["settings"]["left_out"] == {"without IPA": 1}
        assert {r["candidates"] for r in said["rows"] if (r["control"], r["metric"]) == ("all", "recall@1")} == {3}
