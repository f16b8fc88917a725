"""One page of all results below a folder."""

import fnmatch
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from html import escape
from pathlib import Path
from typing import Any

from voxstrata.base.errors import InputError
from voxstrata.base.opening import open_regular
from voxstrata.base.plain import counted, shown_as, spelt_out
from voxstrata.base.progress import SILENT, Reporter
from voxstrata.base.recognised import GENERATOR
from voxstrata.base.result import STORE
from voxstrata.base.tables import TextTable
from voxstrata.report.html import definitions, folded, page, prose
from voxstrata.report.registry import QUESTIONS, RESULTS
from voxstrata.report.sections import BENCH_FILES, Run, of_bench, of_result, of_similarity, of_store
from voxstrata.report.small import small_picture
from voxstrata.retrieval.finished import PLAN_FILE, TOP_FILE, is_similarity
from voxstrata.store.files import ROOT, Files, root_attributes

PAGE = "report.html"
_FOREIGN = "without the settings that voxstrata stores with results"
_SHOWN = ("html", "finding")  # of a run, on the page alone
_UNFINISHED = f"no {TOP_FILE} beside it; `voxstrata similarity` writes it at its end"


@dataclass(frozen=True)
class Report:
    """A page that was written: the file `out`. left_out: files with the name of a result that are none, and why."""

    out: str
    runs: tuple[Run, ...]
    left_out: dict[str, str]

    def __repr__(self) -> str:
        return shown_as(self, f"{counted(len(self.runs), 'result')}", self.out)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form."""
        runs = [{name: value for name, value in asdict(run).items() if name not in _SHOWN} for run in self.runs]
        for run, one in zip(self.runs, runs, strict=True):
            one["answer"] = run.finding.answer if run.finding else None
        return {"out": self.out, "runs": runs, "left_out": self.left_out}


def write_report(folder: str | Path, out: str | Path | None = None, reporter: Reporter = SILENT) -> Report:
    """Write a page, `folder`/report.html by default, of all results and stores in `folder` and below. Of a store alone
    it lies beside the store, as speech.html: nothing but its own belongs into a store.

    The same results give the same bytes. Raises InputError where there is nothing to report, for damaged files, and
    where `out` is there and no page of ours; nothing is written then.
    """
    folder = Path(folder)
    target = Path(out) if out else _default_page(folder)
    if folder.is_file():
        raise InputError(f"{folder}: a file, not a folder; give its folder: {folder.parent}")
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; give the one that holds the results")
    _refuse_foreign(target)
    runs: list[Run] = []
    left_out: dict[str, str] = {}
    for path, files in _folders(folder):
        if ROOT in files:
            if STORE in root_attributes(Files(path)):
                reporter.step(f"store {path}")
                runs.append(of_store(path, folder))
            continue
        for kind in (kind for kind in RESULTS if kind.first_file() in files):
            if kind.is_saved_in(path):
                reporter.step(f"{kind.command} {path}")
                runs.append(of_result(kind, path, folder))
            else:
                left_out[str((path / kind.first_file()).relative_to(folder))] = _FOREIGN
        runs += [of_bench(path / name, folder) for name in sorted(fnmatch.filter(files, BENCH_FILES))]
        if PLAN_FILE in files and is_similarity(path):
            if TOP_FILE in files:
                reporter.step(f"similarity {path}")
                runs.append(of_similarity(path, folder))
            else:
                left_out[str((path / PLAN_FILE).relative_to(folder))] = _UNFINISHED
    if not runs:
        commands = ", ".join(dict.fromkeys(["extract", "similarity", *(kind.command for kind in RESULTS)]))
        raise InputError(
            f"{folder}: holds no result and no store. `voxstrata report` shows what these commands write: {commands}. "
            f"To make one: `voxstrata retrieve STORE -o {folder / 'retrieval'}`"
        )
    ordered = tuple(sorted(_with_checkpoints(runs), key=lambda run: QUESTIONS.index(run.question)))
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(target.name + ".partial")
    partial.write_text(spelt_out(_page(folder, ordered, left_out)), encoding="utf-8")
    partial.replace(target)
    return Report(str(target), ordered, left_out)


def _with_checkpoints(runs: Sequence[Run]) -> list[Run]:
    """Runs that recorded the encoder's weights alone, with the checkpoint that others name for these weights."""
    names = {run.weights_sha256: run.checkpoint for run in runs if run.weights_sha256 and run.checkpoint}
    return [run if run.checkpoint else replace(run, checkpoint=names.get(run.weights_sha256 or "")) for run in runs]


def _folders(folder: Path) -> Iterator[tuple[Path, list[str]]]:
    """A folder and those below, with the names of their files; nothing below a zarr group, which holds nothing of ours.

    Links are not followed: they may lead anywhere, and the page shows what it finds.
    """
    for here, names, files in os.walk(folder):
        path = Path(here)
        names[:] = [] if ROOT in files else sorted(name for name in names if not name.startswith("."))
        yield path, [name for name in files if not (path / name).is_symlink()]


def _default_page(folder: Path) -> Path:
    if not (folder / ROOT).exists():
        return folder / PAGE
    store = folder if folder.name not in ("", "..") else folder.resolve()
    return store.with_name(f"{store.stem}.html")


def _refuse_foreign(target: Path) -> None:
    if target.is_dir():
        raise InputError(f"{target}: is a folder; name the page, such as {target / PAGE}")
    if not target.exists():
        return
    with open_regular(target) as file:
        head = file.read(4096)
    if GENERATOR.encode() not in head:
        raise InputError(f"{target}: exists and is no page of `voxstrata report`; choose another name (-o)")


def _page(folder: Path, runs: Sequence[Run], left_out: dict[str, str]) -> str:
    title = f"What was found: {folder.resolve().name}"
    checkpoints = dict.fromkeys(name for run in runs if run.checkpoint for name in run.checkpoint.split(" + "))
    inside = f"<header><h1>{escape(title)}</h1>\n"
    inside += f'<p class="source">{escape(", ".join(checkpoints) or "no encoder is named")}</p></header>\n'
    cards = "".join(_card(n, run, runs) for n, run in enumerate(runs) if run.finding)
    inside += f'<nav class="cards" aria-label="What was found">\n{cards}</nav>\n' if cards else ""
    encoders = {one for run in runs if run.weights_sha256 for one in run.weights_sha256.split(" + ")}
    note = f"These results are of {counted(len(encoders), 'different encoder')}." if len(encoders) > 1 else ""
    contents = [[run.path, run.command, run.whose, run.weights_sha256 or ""] for run in runs]
    table = TextTable("All results", ["result", "command", "checkpoint", "encoder, SHA-256"], contents, note)
    links = "".join(f'<li><a href="#run-{n}">{escape(r.path)}</a></li>\n' for n, r in enumerate(runs))
    inside += (
        f"<details><summary>All results ({len(runs)})</summary>\n<ul>\n{links}</ul>\n{table.to_html()}</details>\n"
    )
    if left_out:
        inside += folded(f"Left out: {len(left_out)}", definitions(left_out.items()))
    inside += '<p class="note">Shares are in percent. A click on a column sorts by it. Figures are rounded on the page '
    inside += "and whole in its CSV files.</p>\n"
    for n, run in enumerate(runs):
        label = escape(f"{run.command}: {run.path}")
        inside += f'<section id="run-{n}" data-run="{label}">\n{run.html}</section>\n'
    return page(title, inside)


def _card(n: int, run: Run, runs: Sequence[Run]) -> str:
    """The answer in short, which leads to its section. Which of several, where the question is asked more than once."""
    assert run.finding is not None
    several = sum(other.question == run.question for other in runs) > 1
    which = f"<small>{escape(run.path)}</small>\n" if several else ""
    curve = small_picture(run.finding.curve) if run.finding.curve else ""
    whole = f"<b>{escape(run.question)}</b>\n{which}<span>{prose(run.finding.answer)}</span>\n{curve}"
    return f'<a class="card" href="#run-{n}">{whole}</a>\n'
