"""One bad recording costs itself; a checkpoint in float16, and more tokens than positions, are compared as they are."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from conftest import sound
from test_cli import run

pytest.importorskip("torch")
pytest.importorskip("jiwer")

import torch
from safetensors.torch import load_file, save_file

from voxstrata.audio.source import Recording
from voxstrata.base.errors import InputError, UnreachableError
from voxstrata.corpus import Corpus, read_corpus
from voxstrata.early_exit import checking as transcribe_check
from voxstrata.early_exit import decoder, states
from voxstrata.early_exit import decoding as module
from voxstrata.early_exit import recordings as transcribe_audio
from voxstrata.early_exit.checking import check_exits
from voxstrata.early_exit.checkpoint import load_transcriber
from voxstrata.early_exit.decoding import Decoding, transcribe_recordings
from voxstrata.early_exit.exits import EarlyExit
from voxstrata.early_exit.recordings import find_recordings, read_recording

EXITS = (EarlyExit(1), EarlyExit(3))
DECODING = Decoding(max_new_tokens=5, batch=3)


@pytest.fixture(autouse=True)
def no_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    for timed in (states, decoder):
        monkeypatch.setattr(timed, "perf_counter", lambda: 0.0)


@pytest.fixture(scope="module")
def speech(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    root = tmp_path_factory.mktemp("failing")
    lines = ["id\tpath\tlanguage\ttext"]
    for n in range(5):
        soundfile.write(root / f"{n}.wav", sound(0.4 + 0.1 * n, n), 16_000)
        lines.append(f"u{n}\t{n}.wav\ten\tDoor {n}")
    (root / "m.tsv").write_text("\n".join(lines), encoding="utf-8")
    return read_corpus(root / "m.tsv")


def test_whatever_a_decoder_raises_costs_one_recording(
    speech: Corpus, tiny_transcriber: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    transcriber = load_transcriber(str(tiny_transcriber))
    undisturbed = transcribe_recordings(transcriber, speech, EXITS, DECODING)
    for function, bad in (("decode", "2.wav"), ("probe", "0.wav")):
        right = getattr(transcribe_audio, function)

        def broken(recording: Recording, *rest: Any, right: Any = right, bad: str = bad) -> Any:
            if recording.source.name.endswith(bad):
                raise RuntimeError("a bug of a library's")
            return right(recording, *rest)

        monkeypatch.setattr(transcribe_audio, function, broken)
    found = transcribe_recordings(transcriber, speech, EXITS, DECODING)
    message = ".wav: RuntimeError: a bug of a library's; re-encode it or remove it"
    assert found.failures == {"u0": f"0{message}", "u2": f"2{message}"}
    assert [r["id"] for r in found.rows] == ["u1", "u3", "u4"]
    for at in EXITS:
        assert found.texts[at] == tuple(undisturbed.texts[at][i] for i in (1, 3, 4))
    rows, failures = check_exits(transcriber, speech, EXITS[:1], DECODING)
    assert (rows[0].recordings, rows[0].equal, sorted(failures)) == (3, 3, ["u0", "u2"])


def test_a_recording_on_which_the_model_fails_costs_neither_its_batch_nor_the_run(
    speech: Corpus, tiny_transcriber: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    transcriber = load_transcriber(str(tiny_transcriber))
    undisturbed = transcribe_recordings(transcriber, speech, EXITS, DECODING)
    bad = read_recording(speech, 3, find_recordings(speech)[0][3])
    right = module.EncodedStates.states

    def failing(self: Any, read: Sequence[Any], blocks: Any) -> Any:
        if any(np.array_equal(one, bad) for one in read):
            raise IndexError("index out of range")
        return right(self, read, blocks)

    monkeypatch.setattr(module.EncodedStates, "states", failing)
    found = transcribe_recordings(transcriber, speech, EXITS, DECODING)
    assert found.failures == {"u3": "3.wav: IndexError: index out of range; re-encode it or remove it"}
    for at in EXITS:
        assert found.texts[at] == tuple(text for n, text in enumerate(undisturbed.texts[at]) if n != 3)
    monkeypatch.setattr(module.EncodedStates, "states", lambda *_: [][0])
    with pytest.raises(InputError, match=r"no recording can be transcribed; the first: u\d: .*IndexError"):
        transcribe_recordings(transcriber, speech, EXITS, DECODING)


def test_silence_does_not_loop_whatever_its_tokens_do(
    speech: Corpus, tiny_transcriber: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Looping:
        def __init__(self, silent: bool) -> None:
            self.silent = silent

        def decode(self, asks: Sequence[Any]) -> Iterator[tuple[int, decoder.Decoded]]:
            ids = (5,) * 20
            for n in range(len(asks)):
                yield n, decoder.Decoded(ids, False, 1, -1.5, 0.9, 0.0, None, self.silent, 0.0)

    transcriber = load_transcriber(str(tiny_transcriber))
    for silent in (True, False):
        monkeypatch.setattr(module, "make_decoder", lambda *_, silent=silent: Looping(silent))
        found = transcribe_recordings(transcriber, speech, EXITS, DECODING)
        for text in (text for texts in found.texts.values() for text in texts):
            assert (text.looped, text.text == "") == (not silent, silent)


def test_a_header_that_states_less_than_there_is_is_refused_by_name(tiny_transcriber: Path, tmp_path: Path) -> None:
    """40 s under a header of 5 s: nothing is cut in silence."""
    long = (0.1 * np.random.default_rng(0).standard_normal(40 * 16_000)).astype(np.float32)
    soundfile.write(tmp_path / "a.wav", long, 16_000, subtype="PCM_16")
    soundfile.write(tmp_path / "a.flac", long, 16_000)
    wav, flac = (bytearray((tmp_path / f"a.{suffix}").read_bytes()) for suffix in ("wav", "flac"))
    at = wav.find(b"data")
    wav[at + 4 : at + 8] = struct.pack("<I", 2 * 5 * 16_000)
    flac[18:26] = (int.from_bytes(flac[18:26], "big") >> 36 << 36 | 5 * 16_000).to_bytes(8, "big")
    (tmp_path / "a.wav").write_bytes(wav)
    (tmp_path / "a.flac").write_bytes(flac)
    soundfile.write(tmp_path / "good.wav", sound(0.5, 1), 16_000)
    (tmp_path / "m.tsv").write_text(
        "id\tpath\tlanguage\nwav\ta.wav\ten\nflac\ta.flac\ten\ngood\tgood.wav\ten", encoding="utf-8"
    )
    transcriber = load_transcriber(str(tiny_transcriber))
    found = transcribe_recordings(transcriber, read_corpus(tmp_path / "m.tsv"), EXITS[:1], DECODING)
    assert [r["id"] for r in found.rows] == ["good"]
    assert all(found.failures[name].split(",")[0] == f"a.{name}: header says 5.00 s" for name in ("wav", "flac"))


def test_check_leaves_out_what_it_cannot_compare_and_says_so(
    speech: Corpus, tiny_transcriber: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    soundfile.write(tmp_path / "long.wav", np.full(31 * 16_000, 0.1, np.float32), 16_000)
    (tmp_path / "bad.wav").write_bytes(b"no audio")
    soundfile.write(tmp_path / "good.wav", sound(0.5, 1), 16_000)
    manifest = tmp_path / "m.tsv"
    manifest.write_text("path\tlanguage\nlong.wav\ten\nbad.wav\ten\ngood.wav\tes\n", encoding="utf-8")
    arguments = ("early-exit", "check", tiny_transcriber, manifest, "--blocks", "3", "--max-new-tokens", "5")
    assert run(*arguments, "--json") == 4
    said = json.loads(capsys.readouterr().out)
    assert sorted(said["failures"]) == ["bad", "long"]
    assert [(r["recordings"], r["equal"]) for r in said["rows"]] == [(1, 1), (1, 1)]
    assert run(*arguments) == 4
    assert "31.0 s, more than Whisper's window" in capsys.readouterr().err
    assert run(*arguments, "--clips", "2") == 3
    assert "no recording can be transcribed; the first: long: 31.0 s" in capsys.readouterr().err


def test_a_recording_on_which_the_model_fails_does_not_end_the_check(
    speech: Corpus, tiny_transcriber: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    transcriber = load_transcriber(str(tiny_transcriber))
    three = Corpus(speech.root, speech.table.slice(0, 3))
    right, calls = transcribe_check.generated, []

    def failing(*arguments: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:  # the second recording at the first exit
            raise IndexError("index out of range")
        return right(*arguments)

    monkeypatch.setattr(transcribe_check, "generated", failing)
    rows, failures = check_exits(transcriber, three, EXITS, DECODING)
    assert failures == {"u1": "1.wav: IndexError: index out of range; re-encode it or remove it"}
    assert [(r.recordings, r.equal) for r in rows] == [(2, 2), (2, 2)]
    assert len(calls) == 5  # it is not tried again
    monkeypatch.setattr(transcribe_check, "generated", lambda *_: [][0])
    with pytest.raises(InputError, match=r"no recording can be transcribed; the first: u0: .*IndexError"):
        check_exits(transcriber, three, EXITS, DECODING)


def test_no_more_tokens_are_asked_for_than_the_decoder_has_positions(
    speech: Corpus, tiny_transcriber: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """64 positions, 4 of them the prompt's: the loop and generate both stop at 60."""
    transcriber = load_transcriber(str(tiny_transcriber))
    one = Corpus(speech.root, speech.table.slice(0, 1))
    monkeypatch.setattr(transcriber.model.generation_config, "suppress_tokens", [
        *transcriber.model.generation_config.suppress_tokens, transcriber.model.generation_config.eos_token_id
    ])  # never ends by itself  # fmt: skip
    (row,), _ = check_exits(transcriber, one, EXITS[1:], Decoding(max_new_tokens=500))
    assert (row.tokens, row.equal, row.margin) == (60, 1, None)


def test_a_float16_checkpoint_is_checked_as_it_is_written(
    speech: Corpus, tiny_transcriber: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import shutil

    half = tmp_path / "half"
    shutil.copytree(tiny_transcriber, half)
    weights = {name: value.half() for name, value in load_file(half / "model.safetensors").items()}
    save_file(weights, half / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((half / "config.json").read_text(encoding="utf-8"))
    (half / "config.json").write_text(json.dumps(config | {"dtype": "float16"}), encoding="utf-8")
    transcriber = load_transcriber(str(half))
    written, right = [], transcribe_check.write_early_exit

    def spy(source: Any, target: Path, at: EarlyExit) -> Any:
        card = right(source, target, at)
        written.append({value.dtype for value in load_file(target / "model.safetensors").values()})
        return card

    monkeypatch.setattr(transcribe_check, "write_early_exit", spy)
    two = Corpus(speech.root, speech.table.slice(0, 2))
    transcribe_recordings(transcriber, two, EXITS[:1], DECODING)  # decodes in float32, and leaves the weights alone
    rows, _ = check_exits(transcriber, two, (EarlyExit(1), EarlyExit(1, "without")), DECODING)
    assert written == [{torch.float16}, {torch.float32}]
    assert [(r.equal, r.recordings) for r in rows] == [(2, 2), (2, 2)]
    assert transcriber.model.dtype == torch.float16


def test_an_outage_fails_no_recording(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in "ab":
        soundfile.write(tmp_path / f"{name}.wav", sound(0.5, 1), 16_000)
    corpus = read_corpus(tmp_path)
    found, failures = transcribe_audio.find_recordings(corpus)
    assert (len(found), failures) == (2, {})

    def unreachable(recording: Recording, *_: Any) -> Any:
        raise UnreachableError(f"{recording.source.name}: no answer")

    monkeypatch.setattr(transcribe_audio, "probe", unreachable)
    monkeypatch.setattr(transcribe_audio, "decode", unreachable)
    with pytest.raises(UnreachableError):
        transcribe_audio.find_recordings(corpus)
    with pytest.raises(UnreachableError):
        transcribe_audio.read_recording(corpus, 0, found[0])
