"""The command line: what it prints, what it exits with, what it imports."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from collections.abc import Callable
from importlib import import_module
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import click
import numpy as np
import pyarrow.parquet as pq
import pytest
import soundfile
from conftest import sound

import voxstrata as vs
from voxstrata.base.plain import counted, rate_text, size_in_words, time_in_words
from voxstrata.base.progress import Progress
from voxstrata.base.result import Result
from voxstrata.base.tables import TextTable
from voxstrata.cli.app import main
from voxstrata.cli.console import TerminalReporter, aligned, clock
from voxstrata.cli.info import _print_model
from voxstrata.engine.extraction import ExtractReport

COMMANDS = [
    "export", "bench", "plan", "extract", "info", "relabel", "append", "convert", "retrieve", "similarity", "mine",
    "explain", "drift", "phonetics", "align", "words", "early-exit", "report", "demo",
]  # fmt: skip


def run(*args: object) -> int:
    """Run a command as the shell would; returns the exit code."""
    with pytest.raises(SystemExit) as e:
        main.main([str(a) for a in args], prog_name="voxstrata")
    return int(e.value.code or 0)


def test_a_command_that_is_misspelt_is_guessed(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("extrac", "speech.tsv", "base") == 2
    assert "No such command 'extrac'. Did you mean 'extract'?" in capsys.readouterr().err
    assert run("nonsense") == 2
    assert "mean" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("typed", "told"),
    [
        (["plan", "x", "--debug"], "voxstrata --debug … plan"),
        (["early-exit", "check", "x", "y", "--progress", "log"], "voxstrata --progress … early-exit"),
        (["--quiet", "extract", "x"], "voxstrata extract … --quiet"),
        (["--nonsense"], "No such option '--nonsense'"),
        (["--progres", "log", "extract", "a"], "Did you mean '--progress'?"),
        (["--blocks", "3", "early-exit", "sweep"], "voxstrata early-exit … --blocks"),
        (["plan", "--nonsense"], "No such option '--nonsense'"),
    ],
)
def test_an_option_on_the_wrong_side_of_the_command(
    typed: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*typed) == 2
    assert told in capsys.readouterr().err


@pytest.fixture(scope="module")
def parallel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A parallel corpus of three groups in two languages, as a manifest."""
    root = tmp_path_factory.mktemp("parallel")
    rows = ["id\tpath\tlanguage\tgroup\ttext"]
    for g in range(3):
        for j, language in enumerate(("en", "es")):
            name = f"{language}-{g}"
            soundfile.write(root / f"{name}.flac", sound(0.6 + 0.3 * g, 10 * g + j), 16_000)
            rows.append(f"{name}\t{name}.flac\t{language}\tg{g}\tsentence {g}")
    (root / "speech.tsv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    return root / "speech.tsv"


@pytest.fixture(scope="module")
def store(parallel: Path, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("store") / "speech.zarr"
    assert run("extract", parallel, tiny_model, "-o", path) == 0
    return path


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself_with_an_example(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(command, "--help") == 0
    text = capsys.readouterr().out
    assert "Example:" in text
    assert f"voxstrata {command} " in text.split("Example:")[1]


@pytest.mark.parametrize("group", [[], ["early-exit"]])
def test_the_list_of_commands_cuts_no_sentence_short(group: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*group, "--help") == 0
    listed = capsys.readouterr().out.split("Commands:")[1].strip().splitlines()
    assert [line for line in listed if not line.endswith(".") or line.endswith("...")] == []


def test_info_gives_the_worst_difference_of_all_graphs(tiny_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for kind in ("outputs", "outputs_cached"):
        assert run("info", tiny_model, "--json") == 0
        card = json.loads(capsys.readouterr().out)
        card["validation"][kind]["final"] = 0.5
        _print_model("tiny", card)
        assert "worst difference 5.0e-01" in capsys.readouterr().out


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_is_described(command: str) -> None:
    with click.Context(main) as context:
        found = main.get_command(context, command)
        assert found is not None
        undescribed = [p.name for p in found.params if isinstance(p, click.Option) and not p.help]
    assert undescribed == []


def test_checkpoint_to_pictures(
    tiny_checkpoint: Path, parallel: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, store, results = tmp_path / "model", tmp_path / "s.zarr", tmp_path / "results"
    assert run("export", tiny_checkpoint, "-o", model, "--json") == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["card"]["layers"] == 3
    assert err == ""  # --json: nothing but the object
    assert run("extract", parallel, model, "-o", store, "--json") == 0
    out, err = capsys.readouterr()
    report = json.loads(out)
    assert (report["utterances"], report["failed"], report["resumed_units"]) == (6, 0, 0)
    assert err == ""  # not a terminal: no progress
    assert run("extract", parallel, model, "-o", store, "--json") == 0
    again = json.loads(capsys.readouterr().out)
    assert again["resumed_units"] == again["units"] > 0
    assert again["audio_seconds"] == 0
    assert run("info", store, "--json") == 0
    about = json.loads(capsys.readouterr().out)
    assert about["complete"]
    assert about["languages"]["en"]["utterances"] == 3
    assert run("retrieve", store, "-o", results) == 0
    out = capsys.readouterr().out
    assert "pool of 3" in out
    assert "33.3" in out  # chance of recall@1
    for name in ("recall_by_layer.png", "languages.png"):
        assert (results / name).read_bytes().startswith(b"\x89PNG")
    table = pq.read_table(results / "retrieval.parquet")
    assert set(table["output"].to_pylist()) == {"layer_00", "layer_01", "layer_02", "layer_03", "final"}
    assert set(table["store"].to_pylist()) == {"s.zarr"}
    stored = json.loads(table.schema.metadata[b"voxstrata"])
    assert stored["model"]["weights_sha256"] == about["model"]["weights_sha256"]
    assert "chance" in (results / "retrieval.md").read_text(encoding="utf-8")


def test_info_on_a_model_and_a_store(tiny_model: Path, store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("info", tiny_model) == 0
    assert "3 layers, d = 32" in capsys.readouterr().out
    assert run("info", store) == 0
    out = capsys.readouterr().out
    assert "6 done" in out
    assert "bucketed, tail 1 s, pure silence" in out


def test_retrieve_narrowed_to_outputs_languages_and_similarity(
    store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    args = ("--outputs", "layer_02", "--languages", "es,en", "--similarity", "pooled_cosine", "--json")
    assert run("retrieve", store, "-o", tmp_path / "r", *args) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert {r["output"] for r in rows} == {"layer_02"}
    assert {r["similarity"] for r in rows} == {"pooled_cosine", "linear_cka"}


def test_retrieve_tries_the_folder_before_the_work(
    store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: object, **__: object) -> None:
        raise AssertionError("the work began")

    monkeypatch.setattr("voxstrata.studies.retrieve.retrieve", never)
    (tmp_path / "file").write_text("")
    assert run("retrieve", store, "-o", tmp_path / "file" / "sub") == 3
    assert (
        "file/sub: results cannot be written here (Not a directory); choose another folder" in capsys.readouterr().err
    )


def test_a_pooled_store_is_retrieved_by_cosine(
    parallel: Path, tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("extract", parallel, tiny_model, "-o", tmp_path / "p.zarr", "--pooled", "--outputs", "final") == 0
    capsys.readouterr()
    assert run("retrieve", tmp_path / "p.zarr", "-o", tmp_path / "r", "--json") == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert {r["similarity"] for r in rows} == {"pooled_cosine", "linear_cka"}


class TestExitCodes:
    def test_wrong_usage_is_2(
        self, parallel: Path, tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        target = ("-o", tmp_path / "s.zarr")
        assert run("extract", parallel, tiny_model, *target, "--no-such-option") == 2
        assert run("extract", parallel, tiny_model, *target, "--outputs", "layer_77") == 2
        assert "layer_77" in capsys.readouterr().err
        assert run("extract", parallel, tiny_model, *target, "--out", tmp_path / "other.zarr") == 2
        assert "--out is given 2 times" in capsys.readouterr().err
        assert run("early-exit", "sweep", parallel, parallel, *target, "--seed", "1", "--seed", "1") == 2
        assert "--seed is given 2 times" in capsys.readouterr().err
        assert run("--progress", "none", "--progress", "log", "info", parallel) == 2
        assert "--progress is given 2 times" in capsys.readouterr().err
        assert run("extract", parallel, tiny_model, "-o", tmp_path / "s.zarr", "--output", "final") == 2
        assert run("extract", parallel, tiny_model, *target, "--device", "tpu") == 2
        assert run("extract", parallel, tiny_model, *target, "--every", "7") == 2
        assert not (tmp_path / "s.zarr").exists()

    def test_unusable_input_is_3(
        self, parallel: Path, tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert run("info", tmp_path / "nothing") == 3
        assert run("extract", parallel, tmp_path, "-o", tmp_path / "s.zarr") == 3
        assert run("extract", tmp_path / "missing.tsv", tiny_model, "-o", tmp_path / "s.zarr") == 3
        assert run("retrieve", tiny_model, "-o", tmp_path / "r") == 3
        assert run("export", tmp_path / "missing.pt", "-o", tmp_path / "m") == 3
        err = capsys.readouterr().err
        assert err.count("error: ") == 5
        assert "Traceback" not in err

    def test_some_failed_recordings_are_4(
        self, tiny_model: Path, make_corpus: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        corpus = make_corpus({"en/a": 0.5, "en/b": 0.7})
        (corpus / "en" / "c.wav").write_bytes(b"not audio at all")
        assert run("extract", corpus, tiny_model, "-o", tmp_path / "s.zarr") == 4
        out, err = capsys.readouterr()
        assert "2 of 3 utterances" in out
        assert "c.wav" in err
        assert run("info", tmp_path / "s.zarr") == 0
        assert "1 failed" in capsys.readouterr().out

    def test_an_interrupt_is_130(
        self,
        tiny_model: Path,
        parallel: Path,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        extract = ("extract", parallel, tiny_model, "-o", tmp_path / "s.zarr", "--unit-mb", "1e-6", "--threads", "1")

        def interrupted(where: str, after: int) -> str:
            """What is said when the call after so many of a method is interrupted."""
            owner, name = where.rsplit(".", 1)
            module, cls = owner.rsplit(".", 1)
            own, calls = getattr(getattr(import_module(module), cls), name), count()

            def call(*args: Any, **how: Any) -> Any:
                if next(calls) >= after:
                    raise KeyboardInterrupt
                return own(*args, **how)

            with monkeypatch.context() as patch:
                patch.setattr(where, call)
                assert run(*extract) == 130
            return capsys.readouterr().err.strip().splitlines()[-1]

        said = interrupted("voxstrata.engine.run.StoreWriter._create", 0)
        assert said == "interrupted: nothing was written yet; the same command begins again"
        assert not (tmp_path / "s.zarr" / "plan.json").exists()
        said = interrupted("voxstrata.engine.cpu_encoder.CpuEncoder.encode", 0)
        assert said == "interrupted: no unit is done yet; the same command begins with the first"
        said = interrupted("voxstrata.engine.pipeline.CommitStage.put", 2)
        assert said == "interrupted: 1 of 2 units is kept; the same command goes on from there"
        assert run(*extract) == 0

    def test_a_missing_package_names_its_extra(
        self, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setitem(sys.modules, "matplotlib", None)
        assert run("retrieve", store, "-o", tmp_path / "r") == 3
        assert "voxstrata[plot]" in capsys.readouterr().err
        assert not (tmp_path / "r").exists()


def test_recordings_over_30_s_can_be_refused(
    tiny_model: Path, tmp_path: Path, make_corpus: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    corpus = make_corpus({"en/short": 1.0, "en/long": 31.0})
    assert run("extract", corpus, tiny_model, "-o", tmp_path / "s.zarr", "--long", "error") == 3
    assert "long.wav: 31.0 s" in capsys.readouterr().err
    assert not (tmp_path / "s.zarr").exists()


def test_help_waits_for_no_heavy_import_and_extraction_needs_no_torch(
    tiny_model: Path, parallel: Path, tmp_path: Path
) -> None:
    blocked = (
        "import sys\nfor m in ('torch', 'transformers', 'onnx', 'matplotlib', 'safetensors'): sys.modules[m] = None\n"
    )
    call = "from voxstrata.cli.app import main\nmain.main(sys.argv[1:], prog_name='voxstrata')"
    for args in (["export", "--help"], ["extract", parallel, tiny_model, "-o", tmp_path / "s.zarr"]):
        done = subprocess.run(
            [sys.executable, "-c", blocked + call, *args], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
    assert "6 of 6 utterances" in done.stdout


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def test_progress_shows_rate_eta_and_failures_at_once_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal, pipe = Terminal(), io.StringIO()
    for stream in (terminal, pipe):
        now = [1000.0]
        monkeypatch.setattr("time.monotonic", lambda now=now: now[0])
        with TerminalReporter(stream=stream) as reporter:
            now[0] += 60  # models are loaded: no throughput
            reporter.progress(_extracting(0, 600.0, 0))
            now[0] += 10
            reporter.progress(_extracting(2, 4200.0, 3))
            shown = stream.getvalue()
    text = terminal.getvalue().split("\r")[-2]
    assert "extracting 2/8 units (29 %)" in text  # 4200 s of 14 400
    assert "360 audio-h/h" in text  # an hour in ten seconds
    assert "ETA 0:00:28" in text  # 10 200 s left
    assert "failed 3" in text
    assert terminal.getvalue().endswith("\r\x1b[2K")  # nothing stays behind
    assert shown == pipe.getvalue() == "0:01:00  extracting 0/8 units (4 %)\n"  # a line a minute


def test_a_log_has_a_line_a_minute_and_a_line_on_a_terminal_stays_within_it(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    monkeypatch.setenv("COLUMNS", "20")
    told = {}
    for asked, stream in (("auto", io.StringIO()), ("log", Terminal()), ("none", Terminal()), ("bar", io.StringIO())):
        monkeypatch.setenv("VOXSTRATA_PROGRESS", asked)
        now[0] = 0.0
        with TerminalReporter(stream=stream) as reporter:
            for done in range(9):  # every 20 s
                reporter.progress(_extracting(done, 1800.0 * done, 0))
                now[0] += 20
        told[asked] = stream.getvalue()
    lines, asked_for = told["auto"].splitlines(), told["log"].splitlines()
    assert [line[:7] for line in lines] == ["0:00:20", "0:01:20", "0:02:20"]  # at first two seconds of silence
    assert [line[:7] for line in asked_for] == ["0:00:00", "0:01:00", "0:02:00"]
    assert "extracting 3/8 units (38 %)  90 audio-h/h  ETA 0:01:40" in asked_for[1]  # 5400 s of 14 400 in a minute
    assert told["none"] == ""
    assert told["bar"].split("\r\x1b[2K")[1] == "extracting 0/8 unit"  # 20 columns, at once


def test_a_wide_table_comes_in_pieces_that_name_their_rows() -> None:
    table = TextTable("t", ["name", "kind", "first", "second"], [["a", "x", 1, 2], ["a", "y", 3, 4]])
    assert (
        table.to_text()
        == table.to_text(25)
        == "name  kind  first  second\na     x         1       2\na     y         3       4"
    )
    assert table.to_text(24).split("\n\n") == [
        "name  kind  first\na     x         1\na     y         3",
        "name  kind  second\na     x          2\na     y          4",
    ]


def _extracting(done: int, audio: float, failed: int) -> Progress:
    return Progress("extracting", done, 8, "units", audio, 14400.0, audio, "audio-h/h", failed)


def test_progress_counts_things_where_there_is_no_work_and_begins_anew_with_each_stage(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    terminal, now = Terminal(), [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    reporter = TerminalReporter(stream=terminal)
    for stage in ("reading headers", "comparing"):
        for done, seconds in ((1, 100.0), (2, 0.1), (5, 1.9)):  # 4 in 2 s; what comes too often is not shown
            now[0] += seconds
            reporter.progress(Progress(stage, done, 9))
    shown = terminal.getvalue().split("\r\x1b[2K")[1:]
    assert shown == [f"{s} {t}" for s in ("reading headers", "comparing") for t in ("1/9", "5/9  ETA 0:00:02")]


def test_logs_have_the_steps_of_long_work_terminals_all_and_warnings_are_for_everyone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    told = {}
    for name, stream, always, asked in (
        ("tty", Terminal(), False, "auto"),
        ("pipe", io.StringIO(), False, "auto"),
        ("demo", io.StringIO(), True, "auto"),
        ("quiet", Terminal(), True, "none"),
    ):
        now[0] = 0.0
        monkeypatch.setenv("VOXSTRATA_PROGRESS", asked)
        with TerminalReporter(always, stream) as reporter:
            now[0] = 1.0
            reporter.step("reading")
            now[0] = 62.0
            reporter.step("comparing")
            reporter.warn("left out: a.wav")
        told[name] = stream.getvalue().replace("\r\x1b[2K", "")
    assert told["tty"] == told["demo"] == "0:00:01  reading\n0:01:02  comparing\nleft out: a.wav\n"
    assert told["pipe"] == "0:01:02  comparing\nleft out: a.wav\n"  # what takes two seconds needs no log
    assert told["quiet"] == "left out: a.wav\n"


def test_a_notebook_has_lines_and_a_bar_in_one_place(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[str] = []
    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])

    class Handle:
        def update(self, html: str) -> None:
            shown.append(html)

    def display(html: str, display_id: bool) -> Handle:
        assert display_id
        assert not shown  # once: then it is updated
        shown.append(html)
        return Handle()

    shell = SimpleNamespace(kernel=object())
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: shell))
    monkeypatch.setitem(sys.modules, "IPython.display", SimpleNamespace(HTML=str, display=display))
    reporter = vs.progress_bar()
    reporter.step("reading <b>")
    for done in (0, 2, 8):
        now[0] += 10
        reporter.progress(_extracting(done, 1800.0 * done, 0))
        reporter.progress(_extracting(done, 1800.0 * done, 0))  # too soon to be shown, but the end is
    assert len(shown) == 5
    assert shown[0] == "0:00:00  reading &lt;b&gt;<br>"
    assert 'max="1" value="0.2500"' in shown[2]
    assert "extracting 2/8 units (25 %)  360 audio-h/h  ETA 0:00:30" in shown[2]
    assert 'value="1.0000"' in shown[4]


def test_outside_of_a_notebook_the_bar_is_the_command_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(vs.progress_bar(), TerminalReporter)
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: None))  # imported, and not running
    assert isinstance(vs.progress_bar(), TerminalReporter)


def test_numbers_are_said_as_people_say_them() -> None:
    said = [
        counted(0, "utterance"),
        counted(1, "utterance"),
        counted(2, "query", "queries"),
        counted(1, "query", "queries"),
    ]
    assert said == ["0 utterances", "1 utterance", "2 queries", "1 query"]
    times = {0.3: "less than a second", 40: "40 s", 59.7: "1 min", 240: "4 min", 3599: "1 h", 11_400: "3 h 10 min"}
    assert {seconds: time_in_words(seconds) for seconds in times} == times
    rates = {1234.4: "1,234", 64.6: "65", 9.96: "10", 9.94: "9.9", 0.996: "1.0", 0.434: "0.43", 0.0: "0.00"}
    assert {rate: rate_text(rate) for rate in rates} == rates
    assert (counted(1, "frame"), counted(15_271, "frame")) == ("1 frame", "15,271 frames")
    sizes = {0: "0 bytes", 999: "999 bytes", 8_300_000: "8.3 MB", 41e9: "41 GB", 9.96e6: "10 MB", 2e15: "2000 TB"}
    assert {size: size_in_words(size) for size in sizes} == sizes


def test_titles_and_notes_of_results_fit_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Longer than a line are the ids of `explain`; no word is broken, so that they can be copied."""
    monkeypatch.setattr("voxstrata.base.result.terminal_width", lambda: 80)
    ids = ["en/vm-nomore-spoken-by-a-person", "es/vm-nomore-spoken-by-another"]

    class Told(Result):
        title = f"Why {ids[0]} and {ids[1]} match: made-up, bucketed"

        def tables(self) -> list[TextTable]:
            return [TextTable(f"Where {ids[1]} ranks for {ids[0]}, and the best of the others", ["a"], [[1]], title)]

        def figures(self) -> dict[str, Any]:
            return {}

    title = Told.title
    shown = str(Told())  # type: ignore[abstract]
    assert max(map(len, shown.splitlines())) <= 80
    assert shown.count(ids[0]) == shown.count(ids[1]) == 3
    monkeypatch.setattr("voxstrata.base.result.terminal_width", lambda: None)
    assert str(Told()).splitlines()[0] == title  # type: ignore[abstract]


def test_reports_fit_80_columns() -> None:
    stages = dict.fromkeys(("decode", "log_mel", "encode", "reduce", "place", "commit", "wait", "copy"), 1234.5)
    report = ExtractReport("speech.zarr", 1, 0, {}, 1, 0, 36000.0, 720.0, stages, 0, 10**15, 1e12)
    lines = report.to_text().splitlines()
    assert lines[0] == "speech.zarr: 1 of 1 utterance in 1 unit"
    assert max(map(len, lines[:-1])) < 80
    assert all(stage in report.to_text() for stage in stages)


def test_info_fits_the_terminal_and_keeps_the_hash_whole_elsewhere(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("info", tiny_model, "--json") == 0
    card = json.loads(capsys.readouterr().out)
    card["outputs"] = [f"layer_{k:02d}" for k in range(33)]
    _print_model("tiny", card)
    assert card["weights_sha256"] in capsys.readouterr().out
    terminal = Terminal()
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr("sys.stdout", terminal)
    _print_model("tiny", card)
    lines = terminal.getvalue().splitlines()
    assert max(map(len, lines)) <= 80
    assert f"  encoder SHA-256  {card['weights_sha256'][:16]}… (whole with --json)" in lines
    assert "layer_32" in terminal.getvalue()


def test_clock_and_columns() -> None:
    assert clock(3725.4) == "1:02:05"
    assert aligned(["a", "bb"], [["xxx", "1"]]) == "a    bb\nxxx   1"


def test_float16_store_holds_what_info_says(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from voxstrata import open_store

    s = open_store(store)
    rows = sum(len(s.frames(i, "final")) for i in s.ids)
    assert run("info", store, "--json") == 0
    assert json.loads(capsys.readouterr().out)["bytes_per_output"] == rows * 32 * np.dtype("float16").itemsize
