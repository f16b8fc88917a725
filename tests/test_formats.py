"""Promises of read_corpus() for corpora as others keep them: ids, stretches, texts, languages, and what is said."""

from __future__ import annotations

import gzip
import json
import math
import textwrap
from pathlib import Path
from typing import Any

import click
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile

from voxstrata.base.errors import InputError, UsageError
from voxstrata.cli.app import main
from voxstrata.corpus import Corpus, probe_corpus, read_corpus
from voxstrata.corpus.languages import language_name
from voxstrata.corpus.summary import CorpusSummary

FAULTS = Path(__file__).parents[2] / "shared" / "data" / "faults"


def write(path: Path, content: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(textwrap.dedent(content), encoding="utf-8")
    return path


def audio(root: Path, *names: str, seconds: float = 0.5) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(root / name, np.zeros(int(seconds * 16_000)), 16_000, format="WAV")


def column(corpus: Corpus, name: str) -> list[Any]:
    values: list[Any] = corpus.table[name].to_pylist()
    return values


def all_there(corpus: Corpus) -> bool:
    return not probe_corpus(corpus).failures


def run(*args: object) -> int:
    with pytest.raises(SystemExit) as exited:
        main.main([str(a) for a in args], prog_name="voxstrata")
    return int(exited.value.code or 0)


# -- stretches of a recording


@pytest.mark.parametrize(
    "table",
    [
        "path\toffset\tduration\na.wav\t0\t2\na.wav\t20.5\t1.25\nb.wav\t\t\n",
        "path\tstart\tend\na.wav\t0\t2\na.wav\t20.5\t21.75\nb.wav\t\t\n",
        "path\tstart_time\tend_time\tdur\na.wav\t0.0\t2.0\t9\na.wav\t20.5\t21.75\t9\nb.wav\t\t\t9\n",
    ],
)
def test_a_row_may_be_a_stretch_of_a_recording(tmp_path: Path, table: str) -> None:
    corpus = read_corpus(write(tmp_path / "m.tsv", table))
    assert column(corpus, "offset") == [0, 20.5, None]
    assert column(corpus, "duration") == [2, 1.25, None]
    assert column(corpus, "id") == ["a@0-2", "a@20.5-21.75", "b"]
    assert not corpus.recording(2).is_segment


def test_an_end_minus_a_start_is_what_a_person_computes(tmp_path: Path) -> None:
    corpus = read_corpus(write(tmp_path / "m.tsv", "path\tstart\tend\na.wav\t0.1\t0.3\n"))
    assert column(corpus, "duration") == [0.2]  # 0.3 - 0.1 is 0.19999999999999998


def test_the_same_stretches_in_jsonl_and_parquet(tmp_path: Path) -> None:
    rows = [{"path": "a.wav", "offset": 1.5, "duration": 2}, {"path": "b.wav"}]
    jsonl = write(tmp_path / "m.jsonl", "\n".join(map(json.dumps, rows)))
    pq.write_table(
        pa.table({"path": ["a.wav", "b.wav"], "offset": [1.5, math.nan], "duration": [2.0, math.nan]}),
        tmp_path / "m.parquet",
    )
    for path in (jsonl, tmp_path / "m.parquet"):
        corpus = read_corpus(path)
        assert column(corpus, "offset") == [1.5, None]
        assert column(corpus, "duration") == [2, None]


def test_a_duration_alone_is_the_recordings_and_not_a_stretch(tmp_path: Path) -> None:
    corpus = read_corpus(write(tmp_path / "m.tsv", "path\tduration\na.wav\t3.2\n"))
    assert column(corpus, "duration") == [None]
    assert column(corpus, "given_duration") == ["3.2"]
    assert any("duration stands without an offset" in note for note in corpus.notes)
    ends = read_corpus(write(tmp_path / "e.tsv", "path\tend\na.wav\t3.2\n"))
    assert ends.notes[1:] == ["end stands without a start, and is not used"]
    chosen = read_corpus(tmp_path / "m.tsv", columns={"duration": "duration"})
    assert column(chosen, "duration") == [3.2]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("-1\t2", r"start '-1' is no time in a recording; write seconds"),
        ("3\t2", r"end '2' is not after the start, 3"),
        ("2\t2", r"end '2' is not after the start, 2"),
        ("one\t2", r"start 'one' is no number; write seconds"),
        ("1\t1,5", r"end '1,5' is no number; write seconds"),
        ("nan\t2", r"start 'nan' is no time"),
        ("0\tinf", r"end 'inf' is no time"),
    ],
)
def test_a_bad_time_names_file_line_value_and_fix(tmp_path: Path, row: str, message: str) -> None:
    path = write(tmp_path / "m.tsv", f"path\tstart\tend\na.wav\t0\t1\nb.wav\t{row}\n")
    with pytest.raises(InputError, match=r"m\.tsv, line 3: " + message):
        read_corpus(path)


def test_a_duration_of_nothing_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "m.jsonl", '{"path": "a.wav", "offset": 1, "duration": 0}\n')
    with pytest.raises(InputError, match=r"m\.jsonl, line 1: duration '0' is no length"):
        read_corpus(path)


def test_a_channel_is_a_column_or_an_option(tmp_path: Path) -> None:
    path = write(tmp_path / "m.tsv", "path\tchannel\na.wav\t0\na.wav\t1\nb.wav\t\n")
    corpus = read_corpus(path)
    assert column(corpus, "channel") == [0, 1, None]
    assert column(corpus, "id") == ["a#0", "a#1", "b"]
    assert column(read_corpus(path, channel=1), "channel") == [1, 1, 1]
    with pytest.raises(InputError, match=r"m\.tsv, line 2: channel 'left' is no channel; write 0 for the first"):
        read_corpus(write(tmp_path / "m.tsv", "path\tchannel\na.wav\tleft\n"))


def test_the_segments_of_a_long_file_are_read() -> None:
    if not FAULTS.is_dir():
        pytest.skip("shared/data/faults is not here")
    for name in ("seg.tsv", "seg.jsonl"):
        corpus = read_corpus(FAULTS / "07_segments" / name)
        assert [(r["id"], r["offset"], r["duration"]) for r in corpus.table.to_pylist()] == [
            ("s0", 0, 2),
            ("s1", 20, 2),
        ]


# -- what is missing


def test_nan_is_nothing_in_jsonl_and_parquet(tmp_path: Path) -> None:
    jsonl = write(
        tmp_path / "m.jsonl",
        '{"path": "a.wav", "group": 7.0, "text": "x"}\n{"path": "b.wav", "group": NaN, "text": NaN}\n',
    )
    pq.write_table(
        pa.table({"path": ["a.wav", "b.wav"], "group": [7.0, math.nan], "text": ["x", None]}), tmp_path / "m.parquet"
    )
    for path in (jsonl, tmp_path / "m.parquet"):
        corpus = read_corpus(path)
        assert column(corpus, "group") == ["7", None]  # a column of integers with a gap, as pandas writes it
        assert column(corpus, "text") == ["x", None]


def test_floats_that_are_not_whole_stay_as_they_are(tmp_path: Path) -> None:
    pq.write_table(pa.table({"path": ["a.wav", "b.wav"], "group": [7.0, 7.5]}), tmp_path / "m.parquet")
    assert column(read_corpus(tmp_path / "m.parquet"), "group") == ["7.0", "7.5"]


def test_the_words_for_nothing_are_no_group_but_may_be_texts_and_languages(tmp_path: Path) -> None:
    rows = ["path\tgroup\ttext\tlanguage", "a.wav\tnan\tnull\tnan", "b.wav\tNone\tNone\tNone", "c.wav\tg\tx\ten"]
    corpus = read_corpus(write(tmp_path / "m.tsv", "\n".join(rows)))
    assert column(corpus, "group") == [None, None, "g"]
    assert column(corpus, "text") == ["null", "None", "x"]  # German for zero
    assert column(corpus, "language") == ["nan", None, "en"]  # Min Nan
    assert "group: None, nan in 2 rows is taken as missing" in corpus.notes


def test_nan_groups_of_the_faults_equal_null() -> None:
    if not FAULTS.is_dir():
        pytest.skip("shared/data/faults is not here")
    nan, null = (read_corpus(FAULTS / "06_nan_group" / f"{name}.jsonl") for name in ("nan", "null"))
    assert nan.table == null.table
    assert column(nan, "group") == ["g1", "g1", None, None, None, None]


# -- columns


def test_columns_that_are_not_used_are_named_with_a_guess_and_kept(tmp_path: Path) -> None:
    rows = ["path\tsentence\tlang\tage\tseconds\tstatus\tsentance", "a.wav\tHello.\ten\tfifties\t9\tok\t?"]
    corpus = read_corpus(write(tmp_path / "m.tsv", "\n".join(rows)))
    assert "ignored: sentence (did you mean text? --columns text=sentence)" in corpus.notes
    assert "ignored: lang (did you mean language? --columns language=lang)" in corpus.notes
    assert (
        "kept with the data, not used: age, seconds (as given_seconds), status (as given_status), sentance"
        in corpus.notes
    )
    assert corpus.extra == ["sentence", "lang", "age", "given_seconds", "given_status", "sentance"]
    assert corpus.table["given_seconds"].to_pylist() == ["9"]
    assert column(corpus, "text") == [None]

    corpus = read_corpus(tmp_path / "m.tsv", columns={"text": "sentence", "language": "lang"})
    assert (column(corpus, "text"), column(corpus, "language")) == (["Hello."], ["en"])
    assert "sentence" not in corpus.extra
    assert not any(note.startswith("ignored") for note in corpus.notes)


def test_a_misspelt_column_is_guessed(tmp_path: Path) -> None:
    corpus = read_corpus(write(tmp_path / "m.tsv", "path\tlangauge\tSpeaker-ID\na.wav\ten\tanna\n"))
    assert "ignored: langauge (did you mean language? --columns language=langauge)" in corpus.notes
    corpus = read_corpus(write(tmp_path / "n.tsv", "path\tlangauge\tSpeaker-ID\tsegment\na.wav\ten\tanna\t1\n"))
    assert "kept with the data, not used: segment" in corpus.notes  # no misspelt segment_id
    assert "ignored: Speaker-ID (did you mean speaker? --columns speaker=Speaker-ID)" in corpus.notes


@pytest.mark.parametrize("roles", [("group", "text"), ("text", "group"), ("path", "id"), ("id", "path")])
def test_one_column_serves_two_roles(tmp_path: Path, roles: tuple[str, str]) -> None:
    path = write(tmp_path / "m.csv", "clip,sentence,words\na.wav,s00,Hello.\n")
    column_of, held = ("clip", "a.wav") if "path" in roles else ("words", "Hello.")
    corpus = read_corpus(path, columns={"path": "clip", **dict.fromkeys(roles, column_of)})
    assert [column(corpus, role) for role in roles] == [[held], [held]]
    assert any(note.startswith("ignored: sentence (did you mean text?") for note in corpus.notes) is (
        "text" not in roles
    )


def test_the_column_path_serves_as_id_too(tmp_path: Path) -> None:
    corpus = read_corpus(write(tmp_path / "m.csv", "path\na.wav\n"), columns={"id": "path"})
    assert (column(corpus, "id"), column(corpus, "path")) == (["a.wav"], ["a.wav"])


def test_a_chosen_column_replaces_the_one_of_that_name(tmp_path: Path) -> None:
    path = write(tmp_path / "m.tsv", "path\ttext\tclean\na.wav\t<noise> hi\thi\n")
    corpus = read_corpus(path, columns={"text": "clean"})
    assert column(corpus, "text") == ["hi"]
    assert column(corpus, "given_text") == ["<noise> hi"]


def test_a_table_without_paths_says_what_to_type(tmp_path: Path) -> None:
    path = write(tmp_path / "m.csv", "wav,sentence,age\na.wav,Hi,30\n")
    alike = "go the same way, after commas"
    said = rf"no column 'path'; found: .*choose it: --columns path=wav; id, language, group, text, speaker {alike}$"
    with pytest.raises(InputError, match=said):  # whether "sentence" is the text, nobody knows
        read_corpus(path)
    said = rf"choose it: --columns path=wav,text=sentence; id, language, group, speaker {alike}$"
    with pytest.raises(InputError, match=said):
        read_corpus(path, columns={"text": "sentence"})
    corpus = read_corpus(path, columns={"path": "wav", "text": "sentence"})
    assert (column(corpus, "path"), column(corpus, "text")) == (["a.wav"], ["Hi"])


def test_columns_that_cannot_be_chosen_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "m.tsv", "path\ttext\na.wav\tx\n")
    with pytest.raises(UsageError, match=r"txet is nothing we read; choose of id, path, language"):
        read_corpus(path, columns={"txet": "text"})
    with pytest.raises(UsageError, match=r"no column 'sentence'; found: 'path', 'text'"):
        read_corpus(path, columns={"text": "sentence"})
    named = write(tmp_path / "n.tsv", "file\ttext\na.wav\tx\n")
    with pytest.raises(UsageError, match=r"file is nothing we read; the other way round: --columns path=file$"):
        read_corpus(named, columns={"file": "path"})
    audio(tmp_path / "folder", "a.wav")
    with pytest.raises(UsageError, match=r"a folder of audio has no columns"):
        read_corpus(tmp_path / "folder", columns={"text": "sentence"})


def test_lists_and_bytes_in_columns_that_nobody_reads(tmp_path: Path) -> None:
    pq.write_table(
        pa.table({"path": ["a.wav"], "words": [["a", "b"]], "wave": [b"\xff"], "n": [3]}), tmp_path / "m.parquet"
    )
    corpus = read_corpus(tmp_path / "m.parquet")
    assert corpus.table["words"].to_pylist() == ['["a", "b"]']
    assert corpus.extra == ["words", "n"]
    assert "left out, as they hold bytes: wave" in corpus.notes


def test_a_table_is_what_it_holds_not_what_it_is_called(tmp_path: Path) -> None:
    pq.write_table(pa.table({"path": ["a.wav"], "text": ["x"]}), tmp_path / "parquet.tsv")
    write(tmp_path / "tabs.csv", "path\ttext\na.wav\tx\n")
    write(tmp_path / "commas.tsv", "path,text\na.wav,x\n")
    write(tmp_path / "lines.json", '{"path": "a.wav", "text": "x"}\n')
    write(tmp_path / "list.txt", "path\ttext\na.wav\tx\n")
    (tmp_path / "z.tsv.gz").write_bytes(gzip.compress(b"path\ttext\na.wav\tx\n"))
    for path in sorted(tmp_path.iterdir()):
        corpus = read_corpus(path)
        assert (column(corpus, "path"), column(corpus, "text")) == (["a.wav"], ["x"]), path.name


def test_a_damaged_gzip_is_named(tmp_path: Path) -> None:
    whole = gzip.compress(b"path\ttext\n" + b"a.wav\tx\n" * 1000)
    (tmp_path / "m.tsv.gz").write_bytes(whole[:-20])
    with pytest.raises(InputError, match=r"m\.tsv\.gz: a damaged gzip file"):
        read_corpus(tmp_path / "m.tsv.gz")


# -- formats

CV_HEADER = "client_id\tpath\tsentence_id\tsentence\tup_votes\tage\tlocale"


def common_voice(root: Path, language: str, names: tuple[str, ...] = ("train", "dev")) -> None:
    for i, split in enumerate(names):
        clips = [f"common_voice_{language}_{i}{k}.mp3" for k in range(2)]
        audio(root, *(f"clips/{clip}" for clip in clips))
        lines = [f'c{k}\t{clip}\ts{k}\tHe said "{split}" {k}.\t2\t\t{language}' for k, clip in enumerate(clips)]
        write(root / f"{split}.tsv", "\n".join([CV_HEADER, *lines]) + "\n")


def test_a_common_voice_table(tmp_path: Path) -> None:
    common_voice(tmp_path, "pt")
    corpus = read_corpus(tmp_path / "train.tsv")
    assert corpus.notes[0] == "read as a Common Voice table"
    assert column(corpus, "id") == ["common_voice_pt_00", "common_voice_pt_01"]
    assert column(corpus, "text") == ['He said "train" 0.', 'He said "train" 1.']
    assert column(corpus, "language") == ["pt", "pt"]
    assert column(corpus, "speaker") == ["c0", "c1"]
    assert corpus.table["up_votes"].to_pylist() == ["2", "2"]
    assert corpus.root == tmp_path / "clips"
    assert all_there(corpus)


def test_a_common_voice_folder_needs_a_split(tmp_path: Path) -> None:
    common_voice(tmp_path, "pt")
    write(tmp_path / "reported.tsv", "sentence_id\tsentence\tlocale\treason\n")
    with pytest.raises(UsageError, match=r"a Common Voice folder: name a split; choose one: --split dev, train$"):
        read_corpus(tmp_path)
    with pytest.raises(UsageError, match=r"no validated\.tsv; choose one: --split dev, train$"):
        read_corpus(tmp_path, split="validated")
    corpus = read_corpus(tmp_path, split="dev")
    assert column(corpus, "id") == ["common_voice_pt_10", "common_voice_pt_11"]
    assert all_there(corpus)


def test_common_voice_in_several_languages_is_one_corpus(tmp_path: Path) -> None:
    for language in ("pt", "rm-sursilv"):
        common_voice(tmp_path / language, language)
    corpus = read_corpus(tmp_path, split="train")
    assert column(corpus, "language") == ["pt", "pt", "rm-sursilv", "rm-sursilv"]
    assert column(corpus, "path")[2] == "rm-sursilv/clips/common_voice_rm-sursilv_00.mp3"
    assert all_there(corpus)


def test_a_covost_table_takes_the_language_from_the_clips(tmp_path: Path) -> None:
    audio(tmp_path, "clips/common_voice_fr_17.mp3", "clips/common_voice_fr_18.mp3")
    rows = [
        "path\tsentence\ttranslation\tclient_id",
        "common_voice_fr_17.mp3\tOui.\tYes.\tx",
        "common_voice_fr_18.mp3\tNon.\tNo.\ty",
    ]
    corpus = read_corpus(write(tmp_path / "covost_v2.fr_en.train.tsv", "\n".join(rows)))
    assert corpus.notes[0] == "read as a CoVoST table"
    assert column(corpus, "id") == ["common_voice_fr_17", "common_voice_fr_18"]
    assert column(corpus, "language") == ["fr", "fr"]
    assert column(corpus, "text") == ["Oui.", "Non."]
    assert corpus.table["translation"].to_pylist() == ["Yes.", "No."]
    assert column(corpus, "speaker") == ["x", "y"]
    assert all_there(corpus)


@pytest.mark.parametrize("name", ["manifest.json", "manifest.jsonl"])
def test_a_nemo_manifest(tmp_path: Path, name: str) -> None:
    audio(tmp_path, "wav/a.wav", "wav/b.wav", seconds=4)
    rows = [
        {"audio_filepath": "wav/a.wav", "offset": 0.5, "duration": 1.25, "text": "one", "lang": "en", "speaker": 3},
        {
            "audio_filepath": f"{tmp_path}/wav/a.wav",
            "offset": 2,
            "duration": 2.0,
            "text": "",
            "lang": "en",
            "pnc": "yes",
        },
        {"audio_filepath": "wav/b.wav", "offset": 0, "duration": 4.0, "text": "dos", "lang": "es"},
    ]
    corpus = read_corpus(write(tmp_path / name, "\n".join(map(json.dumps, rows))))
    assert corpus.notes[0] == "read as a NeMo manifest"
    assert column(corpus, "path") == ["wav/a.wav", "wav/a.wav", "wav/b.wav"]
    assert column(corpus, "id") == ["wav/a@0.5-1.75", "wav/a@2-4", "wav/b"]
    assert column(corpus, "offset") == [0.5, 2, 0]
    assert column(corpus, "duration") == [1.25, 2, 4]
    assert column(corpus, "text") == ["one", None, "dos"]
    assert column(corpus, "language") == ["en", "en", "es"]
    assert column(corpus, "speaker") == ["3", None, None]
    assert corpus.table["pnc"].to_pylist() == [None, "yes", None]


def kaldi(root: Path) -> Path:
    """A recipe's data/train with two recordings, three segments, and paths from the recipe's folder."""
    audio(root, "audio/talk1.wav", "audio/talk2.wav", seconds=10)
    data = root / "data" / "train"
    write(data / "wav.scp", "talk1 audio/talk1.wav\ntalk2\taudio/talk2.wav\n")
    write(data / "segments", "anna-1 talk1 0.5 2.75\nanna-2 talk1 3 -1\nbert-1 talk2 1.0 4.0\n")
    write(data / "text", "anna-1 good  morning all\nbert-1 kaixo\nghost boo\n")
    write(data / "utt2spk", "anna-1 anna\nanna-2 anna\nbert-1 bert\n")
    write(data / "utt2lang", "anna-1 en\nanna-2 en\nbert-1 eu\n")
    write(data / "utt2dur", "anna-1 2.25\n")
    write(data / "spk2gender", "anna f\nbert m\n")
    return data


def test_a_kaldi_data_folder(tmp_path: Path) -> None:
    corpus = read_corpus(kaldi(tmp_path))
    assert corpus.notes[0] == "read as a Kaldi data folder"
    assert column(corpus, "id") == ["anna-1", "anna-2", "bert-1"]
    assert column(corpus, "path") == ["audio/talk1.wav", "audio/talk1.wav", "audio/talk2.wav"]
    assert corpus.root == tmp_path
    assert column(corpus, "offset") == [0.5, 3, 1]
    assert column(corpus, "duration") == [2.25, None, 3]  # an end of -1 is the recording's
    assert column(corpus, "text") == ["good  morning all", None, "kaixo"]
    assert column(corpus, "speaker") == ["anna", "anna", "bert"]
    assert column(corpus, "language") == ["en", "en", "eu"]
    assert corpus.table["utt2dur"].to_pylist() == ["2.25", None, None]
    assert f"the paths of wav.scp begin at {tmp_path}" in corpus.notes
    assert "text names 1 that segments has not, such as ghost" in corpus.notes
    assert "not read: spk2gender" in corpus.notes


def test_a_kaldi_folder_without_segments_has_whole_recordings(tmp_path: Path) -> None:
    audio(tmp_path, "x/a.wav")
    write(tmp_path / "wav.scp", f"utt1 {tmp_path}/x/a.wav\n")
    write(tmp_path / "text", "utt1 hello\n")
    corpus = read_corpus(tmp_path)
    assert [(r["id"], r["path"], r["text"], r["offset"]) for r in corpus.table.to_pylist()] == [
        ("utt1", "x/a.wav", "hello", None)
    ]
    assert all_there(corpus)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        (
            "wav.scp",
            "a sph2pipe -f wav a.sph |\n",
            r"wav\.scp, line 1: a is a command .*sph2pipe -f wav a\.sph > a\.wav$",
        ),
        ("wav.scp", "a raw.ark:17\n", r"wav\.scp, line 1: a is no file of its own"),
        ("wav.scp", "a a.wav\na b.wav\n", r"wav\.scp, line 2: 'a' stands in line 1, too"),
        ("wav.scp", "\n", r"wav\.scp: has no entries"),
        ("segments", "u talk9 0 1\n", r"segments, line 1: no recording 'talk9' in wav\.scp"),
        ("segments", "u talk1 2 1\n", r"segments, line 1: 2 to 1 s is no stretch"),
        ("segments", "u talk1 0 1\nv talk1 -1 1\n", r"segments, line 2: -1 to 1 s is no stretch"),
        ("segments", "u talk1 0\n", r"segments, line 1: '0' is no start and end"),
        ("segments", "u talk1 nan 1\n", r"segments, line 1: nan to 1 s is no stretch"),
    ],
)
def test_a_bad_kaldi_line_is_named(tmp_path: Path, file: str, content: str, message: str) -> None:
    data = kaldi(tmp_path)
    write(data / file, content)
    with pytest.raises(InputError, match=message):
        read_corpus(data)


@pytest.mark.parametrize("name", ["metadata.csv", "metadata.jsonl"])
def test_a_hugging_face_audio_folder(tmp_path: Path, name: str) -> None:
    audio(tmp_path, "a.wav", "sub/b.wav", "unnamed.wav")
    rows = [
        {"file_name": "a.wav", "transcription": "One, two", "speaker_id": "7", "accent": "x"},
        {"file_name": "sub/b.wav", "transcription": "three", "speaker_id": "8", "accent": ""},
    ]
    lines = ["file_name,transcription,speaker_id,accent", 'a.wav,"One, two",7,x', "sub/b.wav,three,8,"]
    write(tmp_path / name, "\n".join(lines if name.endswith("csv") else map(json.dumps, rows)))
    for source in (tmp_path, tmp_path / name):
        corpus = read_corpus(source)
        assert "Hugging Face audio folder" in corpus.notes[0]
        unnamed = f"1 audio file is not named by {name}, and left out, such as {tmp_path / 'unnamed.wav'}"
        assert (unnamed in corpus.notes) == (source == tmp_path)
        assert column(corpus, "id") == ["a", "sub/b"]
        assert column(corpus, "text") == ["One, two", "three"]
        assert column(corpus, "speaker") == ["7", "8"]
        assert corpus.table["accent"].to_pylist() == ["x", None]
        assert all_there(corpus)


def test_files_and_languages_that_no_table_names_are_counted(tmp_path: Path) -> None:
    folder = tmp_path / "hub"
    audio(folder, "de/a.wav", "de/b.wav", "en/a.wav", "en/b.wav")
    write(folder / "de" / "metadata.csv", "file_name,text\na.wav,ja\n")
    lost = f"not named by de/metadata.csv, and left out, such as {folder / 'de' / 'b.wav'}"
    assert f"3 audio files are {lost}" in read_corpus(folder).notes
    assert f"1 audio file is {lost}" in read_corpus(folder, split="de").notes
    voices = tmp_path / "voices"
    for language in ("eu", "fr", "pt"):
        common_voice(voices / language, language)
    (voices / "fr" / "clips").rename(voices / "fr" / "sounds")
    (voices / "pt" / "train.tsv").unlink()
    corpus = read_corpus(voices, split="train")
    assert set(column(corpus, "language")) == {"eu"}
    assert corpus.notes[-2:] == ["fr is left out: it has no folder clips", "pt is left out: it has no train.tsv"]
    data = kaldi(tmp_path / "recipe")
    assert not any("not named" in note for note in read_corpus(data).notes)
    audio(data, "more.wav")
    assert any("1 audio file is not named by wav.scp" in note for note in read_corpus(data).notes)


def test_splits_of_an_audio_folder_are_read_together_or_one(tmp_path: Path) -> None:
    for split in ("test", "train"):
        audio(tmp_path / split, "0.wav")
        write(tmp_path / split / "metadata.csv", f"file_name,text\n0.wav,{split}\n")
    corpus = read_corpus(tmp_path)
    assert column(corpus, "id") == ["test/0", "train/0"]
    assert column(corpus, "path") == ["test/0.wav", "train/0.wav"]
    assert all_there(corpus)
    assert column(read_corpus(tmp_path, split="train"), "text") == ["train"]
    with pytest.raises(UsageError, match=r"no split 'dev'; choose of test, train"):
        read_corpus(tmp_path, split="dev")


# -- folders


LANGUAGES = """en EN pt-BR es_419 cmn_hans_cn zh-CN nan-tw rm-sursilv ckb_iq yue_hant_hk nb_no fil_ph ast tok eng_Latn
English german Spanish mandarin"""
OTHERS = """dev-clean test-clean val dev train test valid wav_16k wav flac raw clips audio interviews data 84 s01 p225
fr_en xx en-clean BOB en_ - speech noise"""


@pytest.mark.parametrize("name", LANGUAGES.split())
def test_codes_and_names_of_languages_are_known(name: str) -> None:
    assert language_name(name)


@pytest.mark.parametrize("name", [*OTHERS.split(), "", "en "])
def test_other_folder_names_are_no_languages(name: str) -> None:
    assert language_name(name) is None


def test_a_folder_says_which_folders_are_languages(tmp_path: Path) -> None:
    audio(tmp_path, "ast/a.wav", "English/b.wav", "val/c.wav", "dev-clean/d.wav")
    corpus = read_corpus(tmp_path)
    assert dict(zip(column(corpus, "path"), column(corpus, "language"), strict=True)) == {
        "ast/a.wav": "ast", "English/b.wav": "English", "val/c.wav": None, "dev-clean/d.wav": None,
    }  # fmt: skip
    assert "folders taken for languages: English, ast (Asturian)" in corpus.notes
    assert "folders that are no language code or name: dev-clean, val" in corpus.notes


def test_a_folder_that_holds_a_manifest_says_so(tmp_path: Path) -> None:
    audio(tmp_path, "a.wav")
    manifest = write(tmp_path / "speech.tsv", "path\ttext\na.wav\tHi\n")
    write(tmp_path / "results.tsv", "layer\trecall\n1\t0.5\n")
    notes = [note for note in read_corpus(tmp_path).notes if "manifest" in note]
    assert notes == [f"speech.tsv is a manifest, and was not read: name {manifest} in place of the folder"]
    (tmp_path / "a.wav").unlink()
    with pytest.raises(InputError, match=r"no audio file in it, but a manifest; name that: .*speech\.tsv"):
        read_corpus(tmp_path)


# -- what commands say


def test_a_corpus_is_counted(tmp_path: Path) -> None:
    rows = ["path\tlanguage\tgroup\ttext\tspeaker\tstart\tend"]
    rows += [
        "a.wav\ten\tg1\tx\tanna\t0\t1",
        "a.wav\ten\tg2\ty\tanna\t1\t2",
        "b.wav\tes\tg1\tz\tluis\t\t",
        "c.wav\t\tg1\t\t\t\t",
    ]
    counted = CorpusSummary.of(read_corpus(write(tmp_path / "m.tsv", "\n".join(rows))))
    assert counted == CorpusSummary(4, 3, {"en": 2, "es": 1}, 1, groups=2, translated=1, texts=3, speakers=2)
    assert counted.to_text().splitlines() == [
        "  recordings  4, of 3 files",
        "  languages   2: en 2, es 1; 1 recording without one",
        "  groups      2, 1 of them in several languages",
        "  texts       3",
        "  speakers    2",
    ]


def test_plan_counts_and_notes_before_the_work(
    tmp_path: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    audio(tmp_path, "a.wav")
    path = write(tmp_path / "m.tsv", "path\tsentence\tlang\na.wav\tHi\ten\n")
    assert run("plan", path, tiny_model) == 0
    out = capsys.readouterr().out
    assert f"{path}: read as a manifest\n  recordings  1\n  languages   none named\n" in out
    assert "\n  ignored: sentence (did you mean text? --columns text=sentence)\n" in out
    assert run("plan", path, tiny_model, "--json", "--columns", "text=sentence,language=lang", "--channel", "0") == 0
    out, err = capsys.readouterr()
    found = json.loads(out)["corpus"]
    assert (found["languages"], found["texts"], err) == ({"en": 1}, 1, "")


def test_extract_counts_and_notes_before_the_work(
    tmp_path: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    audio(tmp_path, "a.wav")
    path = write(tmp_path / "m.tsv", "path\tgroup\tage\na.wav\tg\t30\n")
    assert run("extract", path, tiny_model, "-o", tmp_path / "s.zarr", "--outputs", "final") == 0
    err = capsys.readouterr().err
    assert "  groups      1, 0 of them in several languages\n" in err
    assert "  kept with the data, not used: age\n" in err
    table = pq.read_table(tmp_path / "s.zarr" / "utterances.parquet")
    assert table["age"].to_pylist() == ["30"]


@pytest.mark.parametrize("bad", ["text", "text=", "=x", "text=a,text=b"])
def test_columns_that_cannot_be_parsed_are_a_usage_error(
    tmp_path: Path, tiny_model: Path, bad: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path / "m.tsv", "path\na.wav\n")
    assert run("plan", path, tiny_model, "--columns", bad) == 2
    assert "--columns" in capsys.readouterr().err


@pytest.mark.parametrize(
    "command", [["plan"], ["extract", "-o", "x.zarr"], ["drift"], ["words", "-o", "x"]], ids=lambda c: str(c[0])
)
def test_arguments_in_the_other_order_are_named(
    tmp_path: Path, tiny_model: Path, command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path / "m.tsv", "path\na.wav\n")
    name, *options = command
    assert run(name, tiny_model, path, *options) == 2
    assert f"the order is the other: voxstrata {name} {path} {tiny_model}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("command", "order"),
    [
        ("append m.tsv MODEL STORE", "append STORE m.tsv MODEL"),
        ("append m.tsv STORE MODEL", "append STORE m.tsv MODEL"),
        ("append STORE MODEL m.tsv", "append STORE m.tsv MODEL"),
        ("relabel m.tsv STORE", "relabel STORE m.tsv"),
        ("spans m.tsv STORE -o x", "spans STORE m.tsv"),
        ("explain a b STORE -o x", "explain STORE a b"),
        ("align ph --phonetics STORE -o x", "align STORE --phonetics ph"),
    ],
)
def test_a_store_behind_other_arguments_is_named(
    tmp_path: Path, tiny_model: Path, command: str, order: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "s.zarr").mkdir()
    (tmp_path / "s.zarr" / "zarr.json").touch()
    names = {"m.tsv": write(tmp_path / "m.tsv", "path\na.wav\n"), "MODEL": tiny_model, "STORE": tmp_path / "s.zarr"}
    assert run(*(names.get(word, word) for word in command.split())) == 2
    wanted = " ".join(str(names.get(word, word)) for word in order.split())
    assert f"the order is the other: voxstrata {wanted} …" in capsys.readouterr().err


def test_what_makes_the_phonetics_that_align_asks_for_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("align", "speech.zarr", "-o", "a") == 2
    said = "Missing option '--phonetics'. `voxstrata phonetics CORPUS -o phonetics` makes it.\n"
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("command", [["sweep", "-o", "x"], ["check"]], ids=lambda c: str(c[0]))
def test_a_corpus_in_the_checkpoints_place_is_named(
    tmp_path: Path, command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("jiwer")
    path = write(tmp_path / "m.tsv", "path\na.wav\n")
    name, *options = command
    assert run("early-exit", name, path, "openai/whisper-base", *options) == 2
    assert f"voxstrata early-exit {name} openai/whisper-base {path}" in capsys.readouterr().err


def test_every_command_that_reads_a_corpus_takes_the_same_choices() -> None:
    context = click.Context(main)
    commands = {name: main.get_command(context, name) for name in ("plan", "extract", "drift", "phonetics", "bench")}
    group = main.get_command(context, "early-exit")
    assert isinstance(group, click.Group)
    commands |= {name: group.commands[name] for name in ("sweep", "check")}
    for name, command in commands.items():
        assert command is not None
        assert {"split", "columns", "channel"} <= {p.name for p in command.params}, name
