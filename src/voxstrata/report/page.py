"""One page of all results below a folder."""

from __future__ import annotations

import fnmatch
import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from html import escape
from pathlib import Path
from typing import Any

import pyarrow as pa

from voxstrata.base.errors import InputError
from voxstrata.base.progress import SILENT, Reporter
from voxstrata.base.result import STORE, Result, metadata
from voxstrata.base.tables import TextTable
from voxstrata.report.html import GENERATOR, definitions, flat, folded, page, picture
from voxstrata.report.json_kinds import JSON_KINDS, JsonKind
from voxstrata.report.kinds import KINDS, Kind, read, store_tables
from voxstrata.report.registry import RESULTS, first_file
from voxstrata.store import open_store
from voxstrata.store.files import ROOT, Files, root_attributes

PAGE = "report.html"
_FOREIGN = "without the settings that voxstrata stores with results"


@dataclass(frozen=True)
class Run:
    """What one command left behind.

    command: that wrote it. path: of its first file, below the reported folder. sha256: of its files, by name.
    checkpoint, weights_sha256: of the encoder; None where no encoder took part or its weights are not recorded.
    """

    command: str
    path: str
    sha256: dict[str, str]
    checkpoint: str | None
    weights_sha256: str | None
    html: str = field(repr=False)  # its section, below the heading


@dataclass(frozen=True)
class Report:
    """A page that was written. left_out: files with the name of a result that are none, with the reason."""

    page: str
    runs: tuple[Run, ...]
    left_out: dict[str, str]

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form."""
        runs = [{name: value for name, value in asdict(run).items() if name != "html"} for run in self.runs]
        return {"page": self.page, "runs": runs, "left_out": self.left_out}


def write_report(folder: str | Path, target: str | Path | None = None, reporter: Reporter = SILENT) -> Report:
    """Write a page, `folder`/report.html by default, of all results and stores in `folder` and below.

    The same results give the same bytes. Raises InputError where there is nothing to report, for damaged files, and
    where `target` is there and no page of ours; nothing is written then.
    """
    folder = Path(folder)
    target = Path(target) if target else folder / PAGE
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; give the one that holds the results")
    _refuse_foreign(target)
    runs: list[Run] = []
    left_out: dict[str, str] = {}
    for path, files in _folders(folder):
        if ROOT in files:
            if STORE in root_attributes(Files(path)):
                reporter.step(f"store {path}")
                runs.append(_store(path, folder))
            continue
        for kind in (kind for kind in RESULTS if first_file(kind) in files):
            if kind.is_saved_in(path):
                reporter.step(f"{kind.command} {path}")
                runs.append(_result(kind, path, folder))
            else:
                left_out[str((path / first_file(kind)).relative_to(folder))] = _FOREIGN
        _old_kinds(path, files, folder, reporter, runs, left_out)
    if not runs:
        looked_for = ", ".join([*map(first_file, RESULTS), *(kind.file for kind in (*KINDS, *JSON_KINDS))])
        raise InputError(
            f"{folder}: holds no result that voxstrata wrote ({looked_for}) and no store; give the folder that "
            "`voxstrata retrieve` or another command wrote, or one above it"
        )
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(target.name + ".partial")
    partial.write_text(_page(folder, runs, left_out), encoding="utf-8")
    partial.replace(target)
    return Report(str(target), tuple(runs), left_out)


def _folders(folder: Path) -> Iterator[tuple[Path, list[str]]]:
    """A folder and those below, with the names of their files; nothing below a zarr group, which holds nothing of ours.

    Links are followed, but each folder comes once.
    """
    seen: set[Path] = set()
    for here, names, files in os.walk(folder, followlinks=True):
        path = Path(here)
        if path.resolve() in seen:  # a link to a folder above
            names.clear()
            continue
        seen.add(path.resolve())
        names[:] = [] if ROOT in files else sorted(name for name in names if not name.startswith("."))
        yield path, files


def _old_kinds(
    path: Path, files: Sequence[str], folder: Path, reporter: Reporter, runs: list[Run], left_out: dict[str, str]
) -> None:
    for kind in KINDS:
        if kind.file in files:
            reporter.step(f"{kind.command} {path}")
            run = _table(path / kind.file, kind, folder)
            if run is not None:
                runs.append(run)
            else:
                left_out[str((path / kind.file).relative_to(folder))] = _FOREIGN
    for json_kind in JSON_KINDS:
        for name in sorted(fnmatch.filter(files, json_kind.file)):
            if json_kind.end is None or json_kind.end in files:
                reporter.step(f"{json_kind.command} {path}")
                runs.append(_json_result(path / name, json_kind, folder))
            else:
                left_out[str((path / name).relative_to(folder))] = (
                    f"no {json_kind.end} beside it; `voxstrata {json_kind.command}` writes it at its end"
                )


def _refuse_foreign(target: Path) -> None:
    if target.is_dir():
        raise InputError(f"{target}: is a folder; name the page, such as {target / PAGE}")
    if target.exists() and GENERATOR.encode() not in target.read_bytes()[:4096]:
        raise InputError(f"{target}: exists and is no page of `voxstrata report`; choose another name (-o)")


@contextmanager
def _as_written_by(command: str, path: Path) -> Iterator[None]:
    """Whatever goes wrong with a file that is not as its command writes it names the file."""
    try:
        yield
    except InputError as e:
        raise InputError(str(e) if str(path.parent) in str(e) else f"{path}: {e}") from e
    except (pa.ArrowException, LookupError, TypeError, ValueError) as e:
        raise InputError(
            f"{path}: not as `voxstrata {command}` writes it ({type(e).__name__}: {e}); run that again, or take "
            "the file away"
        ) from e


def _result(kind: type[Result], path: Path, folder: Path) -> Run:
    """The run of a saved result."""
    first = path / first_file(kind)
    with _as_written_by(kind.command, first):
        result = kind.load(path)
        tables, asked, store = [*result.tables(), *result.stored()], result.settings, result.store
        title = result.title
    names = {f"{name}.png": caption for name, caption in kind.captions.items()}
    inside = f"<p>{escape(title)}</p>\n" + _pictures(path, names)
    model = asked if store is None else store["model"]
    return _run(
        kind.command, first.relative_to(folder), _prints(path, kind.files.values()), model, inside, tables, asked, store
    )


def _table(path: Path, kind: Kind, folder: Path) -> Run | None:
    """The run of a table; None when it holds no settings of this kind."""
    found = read(path)
    with _as_written_by(kind.command, path):
        asked = metadata(found, kind.key)
        if asked is None:
            return None
        store = metadata(found, STORE)
        tables = kind.tables(found, path.parent)
    prints = _prints(path.parent, [path.name, *kind.beside])
    model = store["model"] if store else {}
    inside = _pictures(path.parent, kind.pictures)
    return _run(kind.command, path.relative_to(folder), prints, model, inside, tables, asked, store)


def _pictures(path: Path, captions: Mapping[str, str]) -> str:
    inside = "".join(picture(path / name, captions[name]) for name in captions if (path / name).exists())
    missing = [name for name in captions if not (path / name).exists()]
    return inside + (f'<p class="note">{", ".join(missing)}: not in the folder</p>\n' if missing else "")


def _prints(path: Path, names: Iterable[str]) -> dict[str, str]:
    """SHA-256 of those files that are there."""
    return {name: _sha256(path / name) for name in names if (path / name).exists()}


def _json_result(path: Path, kind: JsonKind, folder: Path) -> Run:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        missing = kind.keys - set(found)
        if missing:
            raise InputError(f"{path}: not {kind.writes}; give the file another name")
        tables, asked, model = kind.tables(found, path.parent), kind.asked(found), kind.model(found)
    except (pa.ArrowException, ValueError, LookupError, TypeError, AttributeError) as e:
        raise InputError(
            f"{path}: not {kind.writes} ({type(e).__name__}: {e}); run that again, or give the file another name"
        ) from e
    place = path.with_name(kind.end or path.name).relative_to(folder)
    return _run(kind.command, place, _prints(path.parent, [path.name, *kind.beside]), model, "", tables, asked, None)


def _store(path: Path, folder: Path) -> Run:
    try:
        store = open_store(path)
        utterances = store.utterances
    except (pa.ArrowException, OSError, ValueError, LookupError) as e:
        raise InputError(f"{path}: the store cannot be read ({e}); extract again, or move it away") from e
    prints = _prints(path, ["utterances.parquet"])
    place = path.relative_to(folder)
    return _run("extract", place, prints, store.about["model"], "", store_tables(utterances), None, store.about)


def _run(
    command: str,
    place: Path,
    sha256: dict[str, str],
    model: dict[str, Any],
    inside: str,
    tables: Sequence[TextTable],
    asked: dict[str, Any] | None,
    store: dict[str, Any] | None,
) -> Run:
    """Below what is `inside`: tables, settings, fingerprints, in this order."""
    prints = [(f"{name}, SHA-256", digest) for name, digest in sha256.items()]
    if model:
        prints += [("checkpoint", str(model["checkpoint"]))] if "checkpoint" in model else []
        prints += [("revision", str(model["revision"]))] if model.get("revision") else []
        prints += [("encoder, SHA-256", model["weights_sha256"])] if "weights_sha256" in model else []
    if store:
        prints += [
            ("silence cache, SHA-256", str(store["model"]["silence"].get("sha256"))),
            ("context", str(store["spec"]["context"]["mode"])),
            ("extraction's plan (utterances, units, settings)", store["plan"]),
        ]
    inside += "".join(table.to_html() for table in tables)
    if asked:
        inside += "<h3>Settings</h3>\n" + definitions(flat(asked))
    inside += "<h3>Fingerprints</h3>\n" + definitions(prints)
    if store:
        inside += folded("Model and extraction, all that is stored", definitions(flat(store)))
    return Run(command, str(place), sha256, model.get("checkpoint"), model.get("weights_sha256"), inside)


def _page(folder: Path, runs: Sequence[Run], left_out: dict[str, str]) -> str:
    title = f"voxstrata: {folder.resolve().name}"
    contents = [[run.path, run.command, run.checkpoint, run.weights_sha256] for run in runs]
    encoders = {run.weights_sha256 for run in runs} - {None}
    note = f"These results are of {len(encoders)} different encoders." if len(encoders) > 1 else ""
    inside = "<h1>" + escape(title) + "</h1>\n"
    inside += TextTable(
        "What is here", ["result", "voxstrata", "checkpoint", "encoder, SHA-256"], contents, note
    ).to_html()
    inside += "<p>Floats are shown to four digits; the page holds them whole, as stored.</p>\n"
    if left_out:
        inside += "<h3>Left out</h3>\n" + definitions(left_out.items())
    inside += "<ul>\n" + "".join(f'<li><a href="#run-{n}">{escape(r.path)}</a></li>\n' for n, r in enumerate(runs))
    inside += "</ul>\n"
    for n, run in enumerate(runs):
        heading = f"<h2>{escape(run.command)}: {escape(run.path)}</h2>\n"
        inside += f'<section id="run-{n}">\n{heading}{run.html}</section>\n'
    return page(title, inside)


def _sha256(path: Path) -> str:
    with path.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()
