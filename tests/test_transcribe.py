"""Transcribing with every exit: error rates are the textbook's, the choice sees no test data, bad input is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import soundfile
from conftest import sound
from test_cli import run
from transcribers import heard as said
from transcribers import scored

pytest.importorskip("torch")
pytest.importorskip("jiwer")

from voxstrata.base.errors import InputError, UsageError
from voxstrata.corpus import read_corpus
from voxstrata.early_exit.checking import check_exits
from voxstrata.early_exit.checkpoint import load_transcriber
from voxstrata.early_exit.decoding import Decoding, Transcripts, transcribe_recordings, whisper_language
from voxstrata.early_exit.exits import EarlyExit
from voxstrata.early_exit.normalization import normalizer
from voxstrata.early_exit.rates import Rates, choose_exits
from voxstrata.early_exit.result import side_by_side
from voxstrata.early_exit.scoring import Scoring, script_of, split_groups
from voxstrata.early_exit.states import EncodedStates

Rows = tuple[dict[str, str | None], ...]


def row(name: str, language: str, text: str, group: str | None = None) -> dict[str, str | None]:
    return {"id": name, "language": language, "text": text, "group": group}


def edits(a: list[str], b: list[str]) -> int:
    """Levenshtein distance, the table filled by hand."""
    d = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        last, d[0] = d[0], i
        for j, y in enumerate(b, 1):
            last, d[j] = d[j], min(d[j] + 1, d[j - 1] + 1, last + (x != y))
    return d[-1]


TEXTS = [
    ("en", "The colour of the door", "the color of a door is"),  # the checkpoint's normalizer.json says color
    ("es", "¿Dónde está la puerta?", "donde esta puerta"),
    ("ja", "ドアが開いています。", "ドア が 開きます"),
    ("es", "Sí.", ""),
]


def test_errors_are_edit_distances(tiny_transcriber: Path) -> None:
    rows = tuple(row(str(i), language, text) for i, (language, text, _) in enumerate(TEXTS))
    heard = Transcripts(rows, {EarlyExit(0): said(*(t for *_, t in TEXTS))}, {})
    table = scored(heard, ["dev"] * 4, Scoring("light"), False, tiny_transcriber).to_pylist()
    plain = [  # lower case without punctuation, by hand
        ("the colour of the door", "the color of a door is"),
        ("dónde está la puerta", "donde esta puerta"),
        ("ドアが開いています", "ドア が 開きます"),
        ("sí", ""),
    ]
    for r, (a, b) in zip(table, plain, strict=True):
        assert (r["word_errors"], r["words"]) == (edits(a.split(), b.split()), len(a.split()))
        if r["language"] == "ja":
            a, b = a.replace(" ", ""), b.replace(" ", "")
        assert (r["character_errors"], r["characters"]) == (edits(list(a), list(b)), len(a))
    assert [r["unit"] for r in table] == ["word", "word", "character", "word"]
    assert [r["script"] for r in table] == ["LATIN", "LATIN", "CJK", "LATIN"]
    whisper = scored(heard, ["dev"] * 4, Scoring("whisper"), False, tiny_transcriber).to_pylist()
    assert whisper[0]["reference_normalized"] == "the color of the door"


def test_the_light_normalizer_keeps_marks_and_whispers_does_not(tiny_transcriber: Path) -> None:
    hindi = "नमस्ते।"
    assert normalizer("light", False, tiny_transcriber)(hindi) == "नमस्ते"
    assert normalizer("whisper", False, tiny_transcriber)(hindi) != "नमस्ते"


def test_scripts() -> None:
    texts = ["Привет, OK", "日本のカメラ", "ราคา 5 บาท", "ελληνικά", "한국어 문자", "42"]
    assert [script_of(t) for t in texts] == ["CYRILLIC", "CJK", "THAI", "GREEK", "HANGUL", "NONE"]


def planted(
    errors: dict[tuple[str, EarlyExit], Callable[[int], int]], groups: int, languages: tuple[str, ...]
) -> tuple[Rows, Transcripts]:
    """Ten-word sentences; each exit mishears as many words as `errors` says for a group."""
    rows = tuple(row(f"{lang}{g}", lang, " ".join("abcdefghij"), f"g{g}") for lang in languages for g in range(groups))
    exits = sorted({at for _, at in errors}, key=lambda a: a.rank)
    texts = {
        at: said(*(" ".join("x" if n < errors[r["language"] or "", at](int((r["group"] or "")[1:])) else w
                           for n, w in enumerate("abcdefghij")) for r in rows))
        for at in exits
    }  # fmt: skip
    return rows, Transcripts(rows, texts, {})


def test_the_choice_is_made_on_dev_and_reported_on_test(tiny_transcriber: Path) -> None:
    """An exit that shines on dev alone is chosen, and the test figures say what it is worth."""
    scoring = Scoring("light", 0.5, 3, 200)
    parts_of = dict(zip([f"g{g}" for g in range(20)], split_groups([row(f"{g}", "en", "a", f"g{g}") for g in range(20)],
                                                                  scoring), strict=True))  # fmt: skip

    def flatters(g: int) -> int:
        return 0 if parts_of[f"g{g}"] == "dev" else 5

    errors = {("en", EarlyExit(0)): flatters, ("en", EarlyExit(1)): lambda g: 2}
    rows, heard = planted(errors, 20, ("en",))
    parts = split_groups(rows, scoring)
    table = scored(heard, parts, scoring, False, tiny_transcriber)
    chosen = choose_exits(*(Rates(table, part, scoring) for part in ("dev", "test"))).to_pylist()[0]
    figures = {n: [chosen[f"{n}{end}"] for end in ("", "_low", "_high")] for n in ("rate", "original", "difference")}
    assert EarlyExit(chosen["after"], chosen["norm"]) == EarlyExit(0)
    assert chosen["dev_rate"] == 0
    assert figures["rate"] == [0.5, 0.5, 0.5]  # the same in every group, so in every resample
    assert figures["original"] == [0.2, 0.2, 0.2]
    assert figures["difference"] == pytest.approx([0.3, 0.3, 0.3])
    assert (chosen["utterances"], chosen["groups"]) == (10, 10)


def test_ties_go_to_the_original_and_all_is_the_mean_over_languages(tiny_transcriber: Path) -> None:
    scoring = Scoring("light", 0.5, 0, 50)
    errors = {(lang, EarlyExit(k, n)): (lambda g, e=e: e) for lang, e in (("en", 1), ("es", 4))
              for k in (0, 1) for n in ("with", "without")}  # fmt: skip
    rows, heard = planted(errors, 8, ("en", "es"))
    table = scored(heard, split_groups(rows, scoring), scoring, False, tiny_transcriber)
    choices = choose_exits(*(Rates(table, part, scoring) for part in ("dev", "test"))).to_pylist()
    assert [EarlyExit(c["after"], c["norm"]) for c in choices] == [EarlyExit(1)] * 3
    assert [round(c["rate"], 9) for c in choices] == [0.1, 0.4, 0.25]
    assert [(c["utterances"], c["groups"]) for c in choices] == [(4, 4), (4, 4), (8, 4)]


def test_intervals_resample_whole_groups(tiny_transcriber: Path) -> None:
    """With all recordings of a group alike, more of them per group must not narrow the interval."""
    scoring = Scoring("light", 0.5, 1, 2000)

    def width(copies: int) -> float:
        rows = tuple(row(f"{g}-{c}", "en", "a b", f"g{g:02d}") for g in range(40) for c in range(copies))
        texts = tuple("a b" if int((r["group"] or "")[1:]) % 2 else "a x" for r in rows)
        table = scored(
            Transcripts(rows, {EarlyExit(0): said(*texts)}, {}), ["test"] * len(rows), scoring, False, tiny_transcriber
        )
        samples = Rates(table, "test", scoring).samples(("en", "LATIN"))[:, 0]
        return float(np.std(samples))

    # the mean of 40 groups that are 0 or 1/2 with equal share: standard error 0.25 / √40
    assert width(1) == pytest.approx(0.25 / 40**0.5, rel=0.1)
    assert width(5) == pytest.approx(width(1), rel=1e-9)


def test_the_split_keeps_groups_together_whatever_the_order() -> None:
    rows = [row(f"{lang}{g}", lang, "a", f"g{g}") for g in range(10) for lang in ("en", "es")]
    parts = split_groups(rows, Scoring(dev_share=0.3, seed=5))
    assert sum(p == "dev" for p in parts) == 6
    assert all(a == b for a, b in zip(parts[0::2], parts[1::2], strict=True))
    backward = split_groups(rows[::-1], Scoring(dev_share=0.3, seed=5))
    assert backward[::-1] == parts


def test_a_language_that_one_part_lacks() -> None:
    rows = [row(f"en{g}", "en", "a", f"g{g}") for g in range(6)] + [row("ca", "ca", "a", "g0")]
    with pytest.raises(InputError, match="ca: 1 utterance, which falls into"):
        split_groups(rows, Scoring())
    with pytest.raises(UsageError, match="between 0 and 1"):
        split_groups(rows, Scoring(dev_share=1.0))


def test_whispers_language_codes() -> None:
    known = {f"<|{c}|>": i for i, c in enumerate(("en", "es", "zh", "tl", "he"))}
    names = ("es", "es_419", "es-MX", "Spanish", "spa-ES", "eng", "cmn_hans_cn", "fil_ph", "iw", "ast", "xx_es")
    want = ("es", "es", "es", "es", "es", "en", "zh", "tl", "he", None, None)
    assert [whisper_language(n, known) for n in names] == [c and f"<|{c}|>" for c in want]


def test_transcripts_hold_no_markup(tiny_transcriber: Path) -> None:
    heard = Transcripts((row("a|b", "en", "x"),), {EarlyExit(0): said("<b>|\n# loud*"), EarlyExit(1): said("")}, {})
    text = side_by_side(scored(heard, ["dev"], Scoring("light"), False, tiny_transcriber), "t")
    assert "| 0 | 2/1 | \\<b\\>\\| \\# loud\\* |" in text
    assert "| 1 | 1/1 | (nothing) |" in text


# ---- with a model


@pytest.fixture(scope="module")
def speech(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four sentences in en and ja, one recording too long, one not audio."""
    root = tmp_path_factory.mktemp("asr")
    lines = ["id\tpath\tlanguage\tgroup\ttext"]
    for g in range(4):
        for j, (language, text) in enumerate((("en", f"Door {g} is open"), ("ja", f"ドア{g}が開く"))):
            soundfile.write(root / f"{language}{g}.wav", sound(0.6 + 0.4 * g, 10 * g + j), 16_000)
            lines.append(f"{language}{g}\t{language}{g}.wav\t{language}\ts{g}\t{text}")
    soundfile.write(root / "long.wav", np.zeros(16_000 * 31, np.float32), 16_000)
    (root / "broken.wav").write_text("no audio")
    lines += [f"{n}\t{n}.wav\ten\ts0\tnever heard" for n in ("long", "broken")]
    (root / "speech.tsv").write_text("\n".join(lines), encoding="utf-8")
    return root / "speech.tsv"


def without_times(found: Transcripts) -> Transcripts:
    texts = {at: tuple(replace(t, encoder_seconds=None, decoder_seconds=0.0) for t in of)
             for at, of in found.texts.items()}  # fmt: skip
    return replace(found, texts=texts)


def test_a_batch_equals_its_members_and_the_last_exit_is_the_original(speech: Path, tiny_transcriber: Path) -> None:
    transcriber, exits = load_transcriber(str(tiny_transcriber)), (EarlyExit(1, "without"), EarlyExit(3))
    corpus = read_corpus(speech)
    one, many = (
        transcribe_recordings(transcriber, corpus, exits, Decoding(max_new_tokens=12, batch=b)) for b in (1, 4)
    )  # fmt: skip
    assert without_times(one) == without_times(many)
    assert {k: v.split(",")[0] for k, v in one.failures.items() if k == "long"} == {"long": "31.0 s"}
    assert sorted(one.failures) == ["broken", "long"]
    assert [r["id"] for r in one.rows] == corpus.table["id"].to_pylist()[:8]
    # by transformers alone
    from transformers import AutoTokenizer, WhisperForConditionalGeneration

    model = WhisperForConditionalGeneration.from_pretrained(tiny_transcriber).eval()
    audio = soundfile.read(speech.parent / "ja2.wav", dtype="float32")[0]
    features = transcriber.encoder.extractor(audio, sampling_rate=16_000, return_tensors="pt")["input_features"]
    ids = model.generate(features, language="ja", task="transcribe", max_new_tokens=12)
    text = AutoTokenizer.from_pretrained(tiny_transcriber).decode(ids[0], skip_special_tokens=True).strip()
    assert one.texts[EarlyExit(3)][5].text == text
    assert one.texts[EarlyExit(1, "without")][5].text != text


def test_the_sweep_writes_what_it_prints(
    speech: Path, tiny_transcriber: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    options = ("--blocks", "1", "--max-new-tokens", "8", "--bootstrap", "50", "--choose-by", "plain")
    assert run("early-exit", "sweep", tiny_transcriber, speech, "-o", out, *options, "--json") == 4  # two failed
    said = json.loads(capsys.readouterr().out)
    assert sorted(said["failures"]) == ["broken", "long"]
    assert {(r["after"], r["norm"]) for r in said["rates"]} == {(k, n) for k in (1, 3) for n in ("with", "without")}
    table = pq.read_table(out / "transcripts.parquet")
    assert json.loads(table.schema.metadata[b"voxstrata"])["decoding"]["max_new_tokens"] == 8
    assert len(table) == 8 * 4
    rates = pq.read_table(out / "errors.parquet").to_pylist()
    assert rates == said["rates"]
    for r in rates:  # every rate again, from the transcripts
        mine = [t for t in table.to_pylist() if (t["part"], t["language"], t["after"], t["norm"])
                == (r["part"], r["language"], r["after"], r["norm"])]  # fmt: skip
        if r["language"] != "all":
            assert r["wer"] == sum(t["word_errors"] for t in mine) / sum(t["words"] for t in mine)
            assert r["cer"] == sum(t["character_errors"] for t in mine) / sum(t["characters"] for t in mine)
            assert r["rate"] == (r["cer"] if r["language"] == "ja" else r["wer"])
    whole = {(r["part"], r["language"], r["after"], r["norm"]): r["rate"] for r in rates}
    verdicts = {(r["language"], r["after"], r["norm"]): r["no_better_than"] for r in rates if r["part"] == "dev"}
    chosen = pq.read_table(out / "choices.parquet").to_pylist()
    assert chosen == said["choices"]
    assert {c["language"] for c in chosen} >= {"all", "ja"}
    for c in chosen:  # every choice again, from the rates
        mine = {at[1:]: verdict for at, verdict in verdicts.items() if at[0] == c["language"]}
        errors = {at: whole["dev", c["language"], *at] for at, verdict in mine.items() if verdict is None}
        assert c["original"] == whole["test", c["language"], 3, "with"]
        if not errors:  # a random decoder's words may be worse than none
            assert (c["after"], c["rate"], c["no_better_than"] in mine.values()) == (None, None, True)
            continue
        assert c["dev_rate"] == errors[c["after"], c["norm"]] == min(errors.values())
        assert c["rate"] == whole["test", c["language"], c["after"], c["norm"]]
        assert c["difference"] == pytest.approx(c["rate"] - c["original"])
    assert (out / "early_exit.png").read_bytes().startswith(b"\x89PNG")
    assert "31.0 s" in (out / "early_exit.md").read_text(encoding="utf-8")


def test_check_agrees_and_would_have_seen_a_wrong_layer(
    speech: Path, tiny_transcriber: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ("early-exit", "check", tiny_transcriber, speech, "--clips", "2", "--max-new-tokens", "6")
    assert run(*arguments, "--blocks", "2", "--json") == 0
    said = json.loads(capsys.readouterr().out)
    assert said["agrees"]
    assert [(r["after"], r["equal"]) for r in said["rows"]] == [(k, 2) for k in (2, 2, 3, 3)]

    from voxstrata.early_exit import checking as transcribe_check

    right = transcribe_check.write_early_exit
    monkeypatch.setattr(transcribe_check, "write_early_exit", lambda t, f, at: right(t, f, EarlyExit(1, at.norm)))
    assert run(*arguments, "--blocks", "2") == 3


def test_bad_input_is_refused_before_transcribing(
    speech: Path, tiny_transcriber: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setattr(EncodedStates, "states", lambda *_: pytest.fail("transcribed"))
    good = [line for line in speech.read_text(encoding="utf-8").splitlines() if "never" not in line]

    def refused(code: int, message: str, *options: str, change: Callable[[str], str] = lambda s: s) -> None:
        manifest = speech.parent / "changed.tsv"
        manifest.write_text(change("\n".join(good)), encoding="utf-8")
        assert run("early-exit", "sweep", tiny_transcriber, manifest, "-o", tmp_path / "x", *options) == code
        assert message in capsys.readouterr().err

    refused(3, "no text for en1; give it in", change=lambda s: s.replace("Door 1 is open", ""))
    refused(3, "the text of en1 holds no letter", change=lambda s: s.replace("Door 1 is open", "..."))
    refused(3, "no language for en1", change=lambda s: s.replace("en1.wav\ten", "en1.wav\t"))
    refused(2, "no block 4 to end after: the encoder has 3, so give 0 to 3", "--blocks", "1,4")
    refused(2, "knows no language 'ast'; announce it as one it knows (--language ast=es): en, es, ja",
            change=lambda s: s.replace("\tja\t", "\tast\t"))  # fmt: skip
    refused(2, "the corpus has no language 'fr', but en, ja", "--language", "fr=es")
    refused(2, "knows no language 'fr'", "--language", "fr")
    refused(2, "'one' is no list of numbers", "--blocks", "one")
    refused(2, "'summarize' is not one of 'transcribe', 'translate'", "--task", "summarize")


def test_an_unseen_language_is_announced_as_another(speech: Path, tiny_transcriber: Path, tmp_path: Path) -> None:
    manifest = speech.parent / "ast.tsv"
    lines = [line for line in speech.read_text(encoding="utf-8").splitlines() if "never" not in line]
    manifest.write_text("\n".join(lines).replace("\tja\t", "\tast\t"), encoding="utf-8")
    transcriber, at = load_transcriber(str(tiny_transcriber)), (EarlyExit(2),)
    decoding = Decoding(prompts=(("ast", "ja"),), max_new_tokens=8)
    one = transcribe_recordings(transcriber, read_corpus(manifest), at, decoding)
    other = transcribe_recordings(transcriber, read_corpus(speech), at, Decoding(max_new_tokens=8))
    assert without_times(one).texts == without_times(other).texts


def test_a_language_that_the_model_has_no_name_for_is_scored_in_characters(
    speech: Path, tiny_transcriber: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest = speech.parent / "unnamed.tsv"
    lines = [
        line for line in speech.read_text(encoding="utf-8").splitlines() if "never" not in line and "ja" not in line
    ]
    manifest.write_text("\n".join(lines).replace("\ten\t", "\tast\t"), encoding="utf-8")
    options = ("--language", "ast=en", "--blocks", "3", "--max-new-tokens", "4", "--bootstrap", "20", "--json")
    for unit, more in (("character", ()), ("word", ("--unit", "word"))):
        assert run("early-exit", "sweep", tiny_transcriber, manifest, "-o", tmp_path / "out", *options, *more) == 0
        said = json.loads(capsys.readouterr().out)
        assert said["units"] == {"ast": unit}
        assert {c["unit"] for c in said["choices"]} == {r["unit"] for r in said["rates"]} == {unit}
        assert any("knows none of its spelling" in note for note in said["notes"]) == (unit == "character")


def test_an_english_only_model(tiny_transcriber: Path, speech: Path) -> None:
    transcriber = load_transcriber(str(tiny_transcriber))
    config = transcriber.model.generation_config
    config.is_multilingual = False
    del config.lang_to_id, config.task_to_id
    with pytest.raises(UsageError, match=r"transcribes English alone, not ja"):
        transcribe_recordings(transcriber, read_corpus(speech), (EarlyExit(3),), Decoding())
    corpus = read_corpus(speech)
    english = type(corpus)(corpus.root, corpus.table.take([0, 2]))
    assert len(transcribe_recordings(transcriber, english, (EarlyExit(3),), Decoding(max_new_tokens=4)).rows) == 2
    with pytest.raises(UsageError, match="not translating"):
        check_exits(transcriber, english, (EarlyExit(3),), Decoding(task="translate"))


def test_a_folder_without_tokenizer(tiny_transcriber: Path, speech: Path, tmp_path: Path) -> None:
    from shutil import copytree, ignore_patterns

    bare = tmp_path / "bare"
    copytree(tiny_transcriber, bare, ignore=ignore_patterns("*token*", "vocab*", "merges*"))
    with pytest.raises(InputError, match="no usable tokenizer"):
        transcribe_recordings(load_transcriber(str(bare)), read_corpus(speech), (EarlyExit(3),), Decoding())
