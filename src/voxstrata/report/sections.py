"""Sections of a report: of a saved result, a comparison, a measured speed, a store. Nothing is measured again."""

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any

import pyarrow as pa

from voxstrata.base.errors import InputError
from voxstrata.base.opening import open_regular, read_json_file
from voxstrata.base.result import Result
from voxstrata.base.tables import TextTable, as_stored, distinct
from voxstrata.report.html import definitions, flat, folded, picture
from voxstrata.retrieval.finished import TOP_FILE, FoundSimilarity, read_similarity
from voxstrata.store import open_store
from voxstrata.studies.retrieve.found import evaluate_similarity
from voxstrata.studies.retrieve.options import RetrievalOptions

BENCH_FILES = "bench*.json"
_CANDIDATES_SHOWN = 60


@dataclass(frozen=True)
class Run:
    """What one command left behind.

    command: that wrote it. path: of its first file, below the reported folder. sha256: of its files, by name.
    checkpoint, weights_sha256: of the encoder, or of several with " + " between them; None where no encoder took part
    or its weights are not recorded.
    """

    command: str
    path: str
    sha256: dict[str, str]
    checkpoint: str | None
    weights_sha256: str | None
    html: str = field(repr=False)  # its section, below the heading


def of_result(kind: type[Result], path: Path, folder: Path) -> Run:
    """The run of a result that is saved in `path`, a folder in or below `folder`."""
    first = path / kind.first_file()
    with _as_written_by(kind.command, first):
        result = kind.load(path)
        tables, asked, stores = [*result.tables(), *result.stored()], result.settings, result.stores
        inside = f"<p>{escape(result.title)}</p>\n"
    inside += _pictures(path, {f"{name}.png": caption for name, caption in result.pictures.items()})
    models = [store["model"] for store in stores] or [asked]
    prints = _prints(path, kind.files.values())
    return _run(kind.command, first.relative_to(folder), prints, models, tables, asked, inside=inside, stores=stores)


def of_similarity(path: Path, folder: Path) -> Run:
    """The run of a comparison that `similarity` finished in `path`: recall by its lists, and the lists' beginning."""
    place = path / TOP_FILE
    with _as_written_by("similarity", place):
        found = read_similarity(path)
        result = evaluate_similarity(path, RetrievalOptions(bootstrap=0))
        lists = as_stored(found.top.slice(0, _CANDIDATES_SHOWN), "Candidates, as stored", of=len(found.top))
        models = [{"weights_sha256": found.weights_sha256}]
    prints = _prints(path, FoundSimilarity.files)
    inside = f"<p>{escape(result.title)}</p>\n"
    tables = [*result.tables(), lists]
    return _run("similarity", place.relative_to(folder), prints, models, tables, found.settings, inside=inside)


def of_bench(path: Path, folder: Path) -> Run:
    """The run of what `bench --json` printed into a file."""
    from voxstrata.engine.estimating import Bench  # which brings in ONNX Runtime

    try:
        bench = Bench.from_dict(read_json_file(path))
        tables = bench.tables()
    except (ValueError, LookupError, TypeError, AttributeError) as e:
        raise InputError(
            f"{path}: not what `voxstrata bench --json` prints ({type(e).__name__}: {e}); run that again, or give the "
            "file another name"
        ) from e
    prints = _prints(path.parent, [path.name])
    return _run("bench", path.relative_to(folder), prints, [bench.record.model], tables, bench.record.settings)


def of_store(path: Path, folder: Path) -> Run:
    """The run of an extraction."""
    try:
        store = open_store(path)
        utterances = store.utterances
    except (pa.ArrowException, OSError, ValueError, LookupError) as e:
        raise InputError(f"{path}: the store cannot be read ({e}); extract again, or move it away") from e
    prints = _prints(path, ["utterances.parquet"])
    tables, model = [_by_language(utterances)], store.about["model"]
    return _run("extract", path.relative_to(folder), prints, [model], tables, None, stores=[store.about])


def _by_language(utterances: pa.Table) -> TextTable:
    """Utterances, and seconds of those done."""
    body = []
    rows = utterances.select(["language", "status", "seconds"]).to_pylist()
    for language in sorted(distinct(utterances, "language"), key=str):
        mine = [r for r in rows if r["language"] == language]
        states = [sum(r["status"] == status for r in mine) for status in ("done", "failed", "pending")]
        body.append([language, len(mine), *states, sum(r["seconds"] for r in mine if r["status"] == "done")])
    header = ["language", "utterances", "done", "failed", "pending", "seconds done"]
    return TextTable("Utterances", header, body)


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


def _pictures(path: Path, captions: Mapping[str, str]) -> str:
    missing = [name for name in captions if not (path / name).exists()]
    inside = "".join(picture(path / name, caption) for name, caption in captions.items() if name not in missing)
    return inside + (f'<p class="note">{", ".join(missing)}: not in the folder</p>\n' if missing else "")


def _prints(path: Path, names: Iterable[str]) -> dict[str, str]:
    """SHA-256 of those files that are there."""
    prints = {}
    for file in (path / name for name in names):
        if file.exists():
            with open_regular(file) as f:
                prints[file.name] = hashlib.file_digest(f, "sha256").hexdigest()
    return prints


def _run(
    command: str,
    place: Path,
    sha256: dict[str, str],
    models: Sequence[Mapping[str, Any]],
    tables: Sequence[TextTable],
    asked: Mapping[str, Any] | None,
    *,
    inside: str = "",
    stores: Sequence[Mapping[str, Any]] = (),
) -> Run:
    """Below what is `inside`: tables, settings, fingerprints, in this order. models: those of the stores, or one."""
    prints = [(f"{name}, SHA-256", digest) for name, digest in sha256.items()]
    for n, model in enumerate(models):
        prints += [("checkpoint", str(model["checkpoint"]))] if "checkpoint" in model else []
        prints += [("revision", str(model["revision"]))] if model.get("revision") else []
        prints += [("encoder, SHA-256", model["weights_sha256"])] if "weights_sha256" in model else []
        if stores:
            silence, store = model["silence"].get("sha256"), stores[n]  # Whisper's alone
            prints += [("silence cache, SHA-256", silence)] if silence else []
            prints += [("context", str(store["spec"]["context"]["mode"]))]
            plans = [one["plan"] for one in store.get("stores", [store])]  # of several stores of one encoder, each
            prints += [("extraction's plan (utterances, units, settings)", plan) for plan in plans]
    inside += "".join(table.to_html() for table in tables)
    if asked:
        inside += "<h3>Settings</h3>\n" + definitions(flat(asked))
    inside += "<h3>Fingerprints</h3>\n" + definitions(prints)
    for store in stores:
        whose = f" of {store['model']['checkpoint']}" if len(stores) > 1 else ""
        inside += folded(f"Model and extraction{whose}, all that is stored", definitions(flat(store)))

    def joined(key: str) -> str | None:
        return " + ".join(dict.fromkeys(str(model[key]) for model in models if model.get(key))) or None

    return Run(command, str(place), sha256, joined("checkpoint"), joined("weights_sha256"), inside)
