"""Promises of alignment files: every format says the same spans, and what is not sound is refused by name."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from voxstrata.alignments.files import read_alignments
from voxstrata.alignments.textgrid import TEXTGRID_BYTES, read_textgrid
from voxstrata.alignments.tier import AlignedTier
from voxstrata.base.errors import InputError

WORDS = [("the", 0.1, 0.25), ('"cat"', 0.25, 0.5), ("sat", 0.7, 1.0)]
EVERY = [("", 0.0, 0.1), *WORDS[:2], ("sil", 0.5, 0.7), WORDS[2]]
POINTS = [("H*", 0.3), ("L%", 0.9)]


def quoted(text: str) -> str:
    return '"' + text.replace('"', '""') + '"'


def long_form() -> str:
    """As Praat writes it."""
    lines = ['File type = "ooTextFile"', 'Object class = "TextGrid"', "", "xmin = 0 ", "xmax = 1 ", "tiers? <exists> "]
    lines += ["size = 2 ", "item []: ", "    item [1]:", '        class = "TextTier" ', '        name = "tones" ']
    lines += ["        xmin = 0 ", "        xmax = 1 ", f"        points: size = {len(POINTS)} "]
    for n, (mark, time) in enumerate(POINTS, start=1):
        lines += [f"        points [{n}]:", f"            number = {time} ", f"            mark = {quoted(mark)} "]
    lines += ["    item [2]:", '        class = "IntervalTier" ', '        name = "words" ']
    lines += ["        xmin = 0 ", "        xmax = 1 ", f"        intervals: size = {len(EVERY)} "]
    for n, (label, start, end) in enumerate(EVERY, start=1):
        lines += [f"        intervals [{n}]:", f"            xmin = {start} ", f"            xmax = {end} "]
        lines += [f"            text = {quoted(label)} "]
    return "\n".join(lines) + "\n"


def short_form() -> str:
    values = ['File type = "ooTextFile"', 'Object class = "TextGrid"', "", "0", "1", "<exists>", "2"]
    values += ['"TextTier"', '"tones"', "0", "1", str(len(POINTS))]
    values += [value for mark, time in POINTS for value in (str(time), quoted(mark))]
    values += ['"IntervalTier"', '"words"', "0", "1", str(len(EVERY))]
    values += [value for label, start, end in EVERY for value in (str(start), str(end), quoted(label))]
    return "\n".join(values) + "\n"


def whisper() -> dict[str, object]:
    words = [{"word": f" {label}", "start": start, "end": end, "probability": 0.9} for label, start, end in WORDS]
    segments = [{"id": 0, "start": 0.1, "end": 0.5, "text": ' the "cat"', "words": words[:2]}]
    return {
        "text": "",
        "segments": [*segments, {"id": 1, "start": 0.7, "end": 1.0, "text": " sat", "words": words[2:]}],
    }


def transformers() -> dict[str, object]:
    return {"text": "", "chunks": [{"text": f" {w}", "timestamp": [start, end]} for w, start, end in WORDS]}


def aligner() -> dict[str, object]:
    entries = [[start, end, label] for label, start, end in EVERY]
    tiers = {"words": {"type": "interval", "entries": entries}, "tones": {"type": "point", "entries": [[0.3, "H*"]]}}
    return {"start": 0, "end": 1.0, "tiers": tiers}


def ctm() -> str:
    lines = [";; made by hand"] + [f"talk 1 {start} {end - start:.2f} {label} 0.98" for label, start, end in WORDS]
    return "\n".join(lines) + "\n"


FORMATS: dict[str, tuple[str, Callable[[], bytes]]] = {
    "TextGrid, long": ("talk.TextGrid", lambda: long_form().encode()),
    "TextGrid, short": ("talk.TextGrid", lambda: short_form().encode()),
    "TextGrid, with a mark": ("t.TEXTGRID", lambda: long_form().replace("\n", "\r\n").encode("utf-8-sig")),
    "TextGrid, UTF-16 big": ("talk.textgrid", lambda: b"\xfe\xff" + long_form().encode("utf-16-be")),
    "TextGrid, UTF-16 little": ("talk.TextGrid", lambda: b"\xff\xfe" + short_form().encode("utf-16-le")),
    "CTM": ("all.ctm", lambda: ctm().encode()),
    "whisper": ("talk.json", lambda: json.dumps(whisper()).encode()),
    "transformers": ("talk.json", lambda: json.dumps(transformers()).encode()),
    "MFA": ("talk.json", lambda: json.dumps(aligner()).encode()),
    "JSON lines": ("all.jsonl", lambda: json.dumps({"id": "talk", **whisper()}).encode() + b"\n\n"),
}  # fmt: skip


def spoken(tier: AlignedTier) -> list[tuple[str, float, float]]:
    """What a tier says, without silence."""
    spans = zip(tier.labels, tier.starts.tolist(), tier.ends.tolist(), strict=True)
    return [(label.strip(), start, round(end, 9)) for label, start, end in spans if label.strip() not in ("", "sil")]


def write(folder: Path, name: str, data: bytes | str) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return path


@pytest.mark.parametrize("kind", FORMATS)
def test_all_formats_say_the_same_spans(kind: str, tmp_path: Path) -> None:
    name, data = FORMATS[kind]
    (found,) = read_alignments(write(tmp_path, name, data()), "words").alignments
    assert found.name == ("t" if name == "t.TEXTGRID" else "talk")
    assert spoken(found.tiers["words"]) == WORDS


def test_silence_and_points_are_where_a_textgrid_has_them(tmp_path: Path) -> None:
    found = read_textgrid(write(tmp_path, "t.TextGrid", long_form()), "t")
    assert list(found.tiers) == ["words"]  # points are no spans
    assert found.seconds == 1
    assert list(found.tiers["words"].labels) == [label for label, _, _ in EVERY]


def test_whisperx_has_characters_and_words_without_times(tmp_path: Path) -> None:
    words = [{"word": "in", "start": 0.0, "end": 0.2, "score": 0.9}, {"word": "1984"}]
    chars = [{"char": "i", "start": 0.0, "end": 0.1}, {"char": "n", "start": 0.1, "end": 0.2}, {"char": " "}]
    content = {"segments": [{"start": 0.0, "end": 0.6, "text": "in 1984", "words": words, "chars": chars}]}
    path = write(tmp_path, "x.json", json.dumps(content))
    for tier, labels, untimed in (("words", ["in"], 1), ("chars", ["i", "n"], 1), ("segments", ["in 1984"], 0)):
        found = read_alignments(path, tier).alignments[0].tiers[tier]
        assert (list(found.labels), found.untimed) == (labels, untimed)


def test_the_last_word_of_transformers_may_have_no_end(tmp_path: Path) -> None:
    chunks = [{"text": " a", "timestamp": [0.0, 0.5]}, {"text": " b", "timestamp": [0.5, None]}]
    (found,) = read_alignments(write(tmp_path, "x.json", json.dumps({"chunks": chunks})), "words").alignments
    assert (list(found.tiers["words"].labels), found.tiers["words"].untimed) == ([" a"], 1)


def test_channels_and_files_of_a_ctm_are_apart_and_in_time(tmp_path: Path) -> None:
    lines = ["a A 1.0 0.5 second", "a A 0.0 0.5 first", "a B 0.2 0.5 other", "b 1 0.0 0.1 else 1.0"]
    found = read_alignments(write(tmp_path, "x.ctm", "\n".join(lines)), "words").alignments
    said = {(a.name, a.channel): list(a.tiers["words"].labels) for a in found}
    assert said == {("a", "A"): ["first", "second"], ("a", "B"): ["other"], ("b", "1"): ["else"]}
    assert np.array_equal(found[0].tiers["words"].starts, [0.0, 1.0])


GRID = short_form()


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("a.TextGrid", GRID.replace("TextGrid", "Pitch"), "it holds 'Pitch' of 'ooTextFile'"),
        ("a.TextGrid", GRID[: GRID.index('"sat"')], "it ends where a text is due"),
        ("a.TextGrid", GRID.replace("0.25\n0.5\n", "0.2\n0.5\n"), "interval 3 of the tier 'words' begins at 0.2 s,"),
        ("a.TextGrid", GRID.replace("0.25\n0.5\n", "0.25\n0.2\n"), "is from 0.25 to 0.2 s, which is no stretch"),
        ("a.TextGrid", GRID.replace("0.7\n1.0\n", '"x"\n1.0\n'), "\"x\" stands where a number is due, in line"),
        ("a.TextGrid", GRID.replace("0.7\n1.0\n", "1.2.3\n1.0\n"), "1.2.3 stands where a number is due, in line"),
        ("a.TextGrid", GRID.replace('"IntervalTier"', '"Matrix"'), "a tier of the class 'Matrix'"),
        ("a.TextGrid", GRID.replace('"TextTier"', '7'), "7 stands where a text is due"),
        ("a.TextGrid", GRID + "3\n", "3 stands behind its last tier"),
        ("a.TextGrid", GRID.replace("<exists>\n2", "<exists>\n2.5"), "2.5 is no number of tiers or intervals"),
        ("a.TextGrid", GRID.replace("<exists>\n2", "<exists>\n1000000000"), "it ends where a text is due"),
        ("a.TextGrid", GRID.replace("cat", "Käse").encode("latin-1"), "not UTF-8, nor UTF-16 with a byte order mark"),
        ("a.TextGrid", b"\xff\xfe" + GRID.encode("utf-16-le") + b"x", "not UTF-16, as its first bytes say"),
        ("a.TextGrid", "", "it ends where a text is due"),
        ("a.ctm", "a 1 0.0 0.5\n", "line 1: 4 fields; a line of CTM is"),
        ("a.ctm", "a 1 0.0 0.5 two words 0.9\n", "line 1: 7 fields"),
        ("a.ctm", ";; x\na 1 * * <ALT_BEGIN>\n", r"line 2: \* and \* are no start and duration"),
        ("a.ctm", "a 1 0.0 -0.5 x\n", "0.0 and -0.5 are no start and duration"),
        ("a.ctm", "a 1 nan 0.5 x\n", "nan and 0.5 are no start and duration"),
        ("a.ctm", "a 1 0 1 Käse\n".encode("latin-1"), "line 1: not UTF-8"),
        ("a.ctm", "a 1 0 1 x\n".encode("utf-16"), "UTF-16; save it again as UTF-8"),
        ("a.ctm", ";; nothing\n", "holds no word"),
        ("a.json", "[1, 2]", "no timestamps: needs 'segments'"),
        ("a.json", '{"text": "x"}', "no timestamps: needs 'segments'"),
        ("a.json", "{", "not JSON"),
        ("a.json", "[" * 100_000, "not JSON: brackets in brackets"),
        ("a.json", '{"chunks": [{"text": "a", "timestamp": [1, 0.5]}]}', "'a' is from 1 to 0.5 s"),
        ("a.json", '{"chunks": [{"text": "a", "timestamp": ["0", 1]}]}', "a text and two numbers are due"),
        ("a.json", '{"chunks": [{"text": "a", "timestamp": [NaN, 1]}]}', "'a' is from nan to 1 s"),
        ("a.json", '{"chunks": [{"timestamp": [0, 1]}]}', "no key 'text'"),
        ("a.json", '{"segments": [3]}', "cannot be read"),
        ("a.jsonl", '{"chunks": []}\n', "line 1: no id; name the utterance in the key 'id'"),
        ("a.jsonl", '{"id": "x", "chunks": []}\nno\n', "line 2: not JSON"),
        ("a.jsonl", '{"id": "x", "chunks": []}\n'.encode("utf-16"), "UTF-16; save it again as UTF-8"),
        ("a.wav", "RIFF", "no alignment by its name"),
    ],
)  # fmt: skip
def test_what_is_not_sound_is_refused_by_name(name: str, data: str | bytes, message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message) as e:
        read_alignments(write(tmp_path, name, data), "words")
    assert str(e.value).startswith(str(tmp_path / name))


def test_a_tier_that_is_not_there_is_answered_with_those_that_are(tmp_path: Path) -> None:
    write(tmp_path, "a.TextGrid", short_form())
    write(tmp_path, "b.TextGrid", short_form().replace('"words"', '"anna - words"'))
    with pytest.raises(InputError, match=r"called 'phones'; there are: 'anna - words' \(1 rec.*'words' \(1 rec"):
        read_alignments(tmp_path, "phones")
    assert [a.name for a in read_alignments(tmp_path, "words").alignments if a.tiers] == ["a"]


def test_in_a_folder_a_bad_file_costs_its_recording_alone(tmp_path: Path) -> None:
    write(tmp_path, "en/good.TextGrid", short_form())
    write(tmp_path, "en/bad.TextGrid", "nonsense")
    write(tmp_path, "en/._good.TextGrid", "what a Mac leaves")
    write(tmp_path, "en/notes.txt", "nothing")
    found = read_alignments(tmp_path, "words")
    assert [a.name for a in found.alignments] == ["en/good"]
    assert list(found.unreadable) == ["en/bad"]
    assert "en/bad.TextGrid: no sound TextGrid" in found.unreadable["en/bad"]


def test_a_folder_without_alignments_or_with_two_of_one_recording_is_refused(tmp_path: Path) -> None:
    write(tmp_path, "x/notes.txt", "nothing")
    with pytest.raises(InputError, match=r"holds no file that ends in .textgrid"):
        read_alignments(tmp_path / "x", "words")
    write(tmp_path, "x/talk.TextGrid", short_form())
    write(tmp_path, "x/talk.json", json.dumps(whisper()))
    with pytest.raises(InputError, match=r"talk.TextGrid and .*talk.json: both are of 'talk'"):
        read_alignments(tmp_path / "x", "words")
    write(tmp_path, "y/bad.json", "{}")
    with pytest.raises(InputError, match="none of its files can be read; the first"):
        read_alignments(tmp_path / "y", "words")
    with pytest.raises(InputError, match="no such file or folder"):
        read_alignments(tmp_path / "z", "words")


def test_files_that_are_none_or_too_large_are_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.TextGrid")
    with pytest.raises(InputError, match="is a FIFO"):
        read_alignments(tmp_path / "a.TextGrid", "words")
    os.truncate(write(tmp_path, "b.TextGrid", short_form()), TEXTGRID_BYTES + 1)
    with pytest.raises(InputError, match="are the most that is read"):
        read_alignments(tmp_path / "b.TextGrid", "words")
