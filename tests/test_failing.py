"""How commands end: errors in a sentence with an exit code, interrupts at any moment in a line, never a traceback."""

from __future__ import annotations

import io
import json
import signal
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
from test_cli import run

from voxstrata.base.choices import chosen
from voxstrata.base.errors import UsageError
from voxstrata.base.plain import escaped_json, spelt_out
from voxstrata.base.progress import Progress
from voxstrata.cli import console, failing
from voxstrata.cli.saying import say

# What a terminal obeys: escape sequences, C1's own, backspaces, carriage returns, and marks that reorder text.
HOSTILE = "a\x1b[2J\x9b31m\b\r\x7fb\u202ec\u2066d\ud800"
PROGRAM = "import sys\nfrom voxstrata.cli import main\nsys.argv = ['voxstrata', *sys.argv[1:]]\nmain()\n"


def test_what_nobody_foresaw_is_a_sentence_that_says_how_to_report_it(capsys: pytest.CaptureFixture[str]) -> None:
    error = None
    try:
        raise ZeroDivisionError("by nothing")
    except ZeroDivisionError as e:
        error = e
    assert failing.tell(error) == 70
    said = capsys.readouterr().err
    assert said.startswith("error: ZeroDivisionError: by nothing\n")
    assert "VOXSTRATA_DEBUG" in said
    assert "Traceback" not in said


def test_the_file_being_worked_on_is_named() -> None:
    scope: dict[str, object] = {"Path": Path}
    code = "def read(path):\n    return 1 // 0\ndef outer(store):\n    read(store / 'plan.json')\n"
    exec(compile(code, f"{failing._OURS}/store/reader.py", "exec"), scope)
    with pytest.raises(ZeroDivisionError) as e:
        scope["outer"](Path("speech.zarr"))  # type: ignore[operator]
    assert failing.unforeseen_text(e.value).startswith("speech.zarr/plan.json: ZeroDivisionError: ")


def test_a_path_with_spaces_that_was_not_quoted_is_recognised(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my own").mkdir()
    (tmp_path / "my own" / "speech.tsv").write_text("path\n")

    def said(*args: str) -> str:
        assert run(*args) in (2, 3)
        return capsys.readouterr().err

    whole = "Did you mean 'my own/speech.tsv'? A path with spaces needs quotes.\n"
    assert said("extract", "my", "own/speech.tsv", "base", "-o", "s.zarr").endswith(whole)  # one argument too many
    assert said("info", "my", "own/speech.tsv").endswith(whole)
    assert said("retrieve", "my", "own/speech.tsv", "-o", "r").endswith(whole)  # takes several: "my" is not there
    assert said("similarity", "my", "own/speech.tsv", "-o", "r", "--outputs", "3").endswith(whole)
    assert "'my own/s.zarr'? A path" in said("extract", "speech.tsv", "base", "-o", "my", "own/s.zarr")  # is to be made
    assert "'my own/speech.tsv'? A path" in said("export", "base", "-o", "b", "--calibrate=my", "own/speech.tsv")
    # what was meant otherwise gets no hint
    assert "quotes" not in said("info", "his", "own/speech.tsv")
    assert "quotes" not in said("extract", "my own/speech.tsv", "base", "-o", "my")  # there is no such model
    (tmp_path / "my").mkdir()
    assert "quotes" not in said("info", "my", "own/speech.tsv")


@pytest.mark.parametrize("typed", [("--out=~/s.zarr",), ("-o", "~/s.zarr")])
def test_a_tilde_that_the_shell_left_makes_no_folder_of_that_name(
    typed: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert run("extract", "speech.tsv", "base", *typed) == 2
    assert f"~/s.zarr: the shell left ~ as it is; give {tmp_path / 'home' / 's.zarr'}\n" in capsys.readouterr().err
    (tmp_path / "~").mkdir()
    (tmp_path / "~" / "s.zarr").touch()  # one that is there is meant
    assert run("info", "~/s.zarr") == 3
    assert "the shell left" not in capsys.readouterr().err


def test_the_package_is_the_program(tmp_path: Path) -> None:
    """`python -m voxstrata`, for whom the shell finds no `voxstrata`."""
    done = subprocess.run([sys.executable, "-m", "voxstrata", "info"], capture_output=True, text=True)
    assert (done.returncode, done.stderr.split("[")[0]) == (2, "Usage: python -m voxstrata info ")
    imported = subprocess.run([sys.executable, "-c", "import voxstrata.__main__"], capture_output=True, text=True)
    assert (imported.returncode, imported.stdout) == (0, "")  # as processes that are spawned may do


def test_of_many_names_an_error_lists_those_that_are_spelt_alike_and_how_many_more_there_are() -> None:
    known = [f"{a}{b}_xx" for a in "abcdef" for b in "klmnop"]  # 36
    with pytest.raises(UsageError) as e:
        chosen("language", "fp_xy", known)
    assert str(e.value).startswith("unknown language 'fp_xy'; known: fp_xx, ")
    names, _, rest = str(e.value).partition(", and ")
    assert rest == "12 more"
    assert len(set(names.partition("known: ")[2].split(", "))) == 24
    with pytest.raises(UsageError, match=r"known: a, b$"):
        chosen("language", "c", ["a", "b"])


def test_whisper_names_a_language_that_is_spelt_alike() -> None:
    pytest.importorskip("torch")
    from voxstrata.early_exit.decoding import Decoding, language_tokens

    known = {f"<|{code}|>": i for i, code in enumerate(("de", "en", "es"))}
    config = SimpleNamespace(lang_to_id=known, task_to_id={"transcribe": 9})
    whisper = SimpleNamespace(model=SimpleNamespace(generation_config=config), encoder=SimpleNamespace(name="base"))
    with pytest.raises(UsageError, match=r"no language 'englisch'.*\(--language englisch=en\): en, de, es$"):
        language_tokens(whisper, ["englisch", "de"], Decoding())  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=r"\(--language aym=es\): en, de, es$"):  # nothing is near that one
        language_tokens(whisper, ["aym", "englisch"], Decoding())  # type: ignore[arg-type]


def test_memory_that_runs_out_is_said_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert failing.tell(MemoryError()) == 70
    assert "not enough memory" in capsys.readouterr().err


@pytest.mark.parametrize("how", ["option", "environment"])
def test_a_traceback_is_shown_to_who_asks(
    how: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("info", tmp_path / "none") == 3
    assert "Traceback" not in capsys.readouterr().err
    if how == "environment":
        monkeypatch.setenv(failing.DEBUG, "1")
    assert run(*["--debug"] * (how == "option"), "info", tmp_path / "none") == 3
    assert "Traceback" in capsys.readouterr().err
    monkeypatch.delenv(failing.DEBUG, raising=False)
    assert run("info", tmp_path / "none") == 3  # it holds for one command
    assert "Traceback" not in capsys.readouterr().err


def test_an_error_in_a_thread_is_a_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(threading, "excepthook", failing.tell_thread)
    thread = threading.Thread(target=lambda: 1 // 0)
    thread.start()
    thread.join()
    said = capsys.readouterr().err
    assert "ZeroDivisionError" in said
    assert "Traceback" not in said


# ---- signals


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize(
    "module", ["voxstrata.cli.app", "click", "numpy", "pyarrow.parquet", "zarr", "voxstrata.cli.info", "json.decoder"]
)
def test_an_interrupt_while_importing_is_a_line(module: str, number: signal.Signals, tmp_path: Path) -> None:
    """The signal comes when the module is looked for, from the very start of the program on."""
    finder = (
        "import os, sys\n"
        "class Finder:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        f"        if name == {module!r}: os.kill(os.getpid(), {int(number)})\n"
        "sys.meta_path.insert(0, Finder())\n"
        f"sys.modules.pop({module!r}, None)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", finder + PROGRAM, "info", str(tmp_path / "none")], capture_output=True, text=True
    )
    assert (done.returncode, done.stderr.strip()) == (128 + number, "interrupted")


def test_the_program_says_what_an_interrupt_cost_and_ends_as_shells_expect(tmp_path: Path) -> None:
    code = (
        "import os, signal\nimport voxstrata as vs\n"
        "def opened(path):\n"
        "    try: os.kill(os.getpid(), signal.SIGTERM)\n"
        "    except KeyboardInterrupt as e: raise KeyboardInterrupt('nothing is lost') from e\n"
        "vs.open_model = opened\n"
    )
    (tmp_path / "card.json").write_text("{}")
    patched = PROGRAM.replace("main()\n", code + "main()\n")
    done = subprocess.run([sys.executable, "-c", patched, "info", str(tmp_path)], capture_output=True, text=True)
    assert (done.returncode, done.stderr.strip()) == (143, "interrupted: nothing is lost")


def test_nobody_reading_the_output_is_no_error() -> None:
    program = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, "extract", "--help"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert program.stdout is not None
    program.stdout.close()
    _, said = program.communicate()
    assert said == ""


# ---- what a terminal is sent


def test_no_control_sequence_reaches_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    say(HOSTILE + "\tzwei\nZeilen é 漢")
    assert capsys.readouterr().out == ("a\\x1b[2J\\x9b31m\\x08\\r\\x7fb\\u202ec\\u2066d\\ud800\tzwei\nZeilen é 漢\n")


def test_errors_failures_and_progress_are_stripped(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert run("info", tmp_path / HOSTILE) == 3
    assert run("info", "--no\x1b[2J") == 2
    console.print_failures({HOSTILE: HOSTILE}, "there")
    with console.TerminalReporter(always=True) as reporter:
        reporter.step(HOSTILE)
        reporter.warn(HOSTILE)
    stream = io.StringIO()
    stream.isatty = lambda: True  # type: ignore[method-assign]
    with console.TerminalReporter(stream=stream) as reporter:
        reporter.progress(Progress(HOSTILE, 1, 2))
    said = capsys.readouterr().err + stream.getvalue().replace("\r\x1b[2K", "")
    assert said == spelt_out(said)
    assert said.count("\\x1b[2J") >= 6


def test_json_says_the_same_without_them(capsys: pytest.CaptureFixture[str]) -> None:
    console.print_json({"id": HOSTILE, "text": "é"})
    out = capsys.readouterr().out
    assert json.loads(out) == {"id": HOSTILE, "text": "é"}
    assert out == spelt_out(out)
    assert "é" in out
    assert json.loads(escaped_json(json.dumps(HOSTILE, ensure_ascii=False))) == HOSTILE
