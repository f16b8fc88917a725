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
from voxstrata.base.finding import Finding
from voxstrata.base.opening import open_regular, read_json_file
from voxstrata.base.plain import counted, time_in_words
from voxstrata.base.result import Result
from voxstrata.base.tables import TextTable, as_stored, distinct
from voxstrata.engine.bench import Bench
from voxstrata.report.html import definitions, flat, folded, picture, prose
from voxstrata.report.registry import ENCODED
from voxstrata.retrieval.finished import TOP_FILE, FoundSimilarity, read_similarity
from voxstrata.store import open_store
from voxstrata.store.writer import SPANS
from voxstrata.studies.retrieve.found import evaluate_similarity
from voxstrata.studies.retrieve.options import RetrievalOptions

BENCH_FILES = "bench*.json"
_CANDIDATES_SHOWN = 60


@dataclass(frozen=True)
class Run:
    """What one command left behind.

    command: that wrote it. path: of its first file, below the reported folder. sha256: of its files, by name.
    checkpoint, weights_sha256: of the encoder, or of several with " + " between them; None where no encoder took part
    or they are not recorded. question, finding: that it answers, and the answer. html: of its section.
    """

    command: str
    path: str
    sha256: dict[str, str]
    checkpoint: str | None
    weights_sha256: str | None
    question: str
    finding: Finding | None
    html: str = field(repr=False)

    @property
    def whose(self) -> str:
        """The encoder's name; where there is none, why."""
        return self.checkpoint or ("not named by the command" if self.weights_sha256 else "no encoder takes part")


def of_result(kind: type[Result], path: Path, folder: Path) -> Run:
    """The run of a result that is saved in `path`, a folder in or below `folder`."""
    first = path / kind.first_file()
    with _as_written_by(kind.command, first):
        result = kind.load(path)
        tables, stored, asked, stores = result.tables(), result.stored(), result.settings, result.stores
        finding, title = result.finding(), result.title
    inside = _pictures(path, {f"{name}.png": caption for name, caption in result.pictures.items()})
    inside += _tables(tables[: kind.brief]) + _tables([*tables[kind.brief :], *stored], folded=True)
    models = [store["model"] for store in stores] or [asked]
    prints = _prints(path, kind.files.values())
    about = _Section(kind.command, first.relative_to(folder), kind.question, title, finding)
    return _run(about, prints, models, asked, inside, stores)


def of_similarity(path: Path, folder: Path) -> Run:
    """The run of a comparison that `similarity` finished in `path`: recall by its lists, and the lists' beginning."""
    place = path / TOP_FILE
    with _as_written_by("similarity", place):
        found = read_similarity(path)
        result = evaluate_similarity(path, RetrievalOptions(bootstrap=0))
        first = found.top.slice(0, _CANDIDATES_SHOWN)
        first = first.set_column(0, "direction", pa.array(map(result.direction, first["direction"].to_pylist())))
        lists = as_stored(first, "Candidates, as stored", of=len(found.top))
        inside = _tables(result.tables()) + _tables([lists], folded=True)
        models = [{"weights_sha256": found.weights_sha256}]
    prints = _prints(path, FoundSimilarity.files)
    about = _Section("similarity", place.relative_to(folder), result.question, result.title, result.finding())
    return _run(about, prints, models, found.settings, inside)


def of_bench(path: Path, folder: Path) -> Run:
    """The run of what `bench --json` printed into a file."""
    try:
        bench = Bench.of_json(read_json_file(path))
        tables, title, finding = bench.tables(), bench.title, bench.finding()
    except (ValueError, LookupError, TypeError, AttributeError, pa.ArrowException) as e:
        raise InputError(
            f"{path}: not what `voxstrata bench --json` prints ({type(e).__name__}: {e}); run that again, or give the "
            "file another name"
        ) from e
    prints = _prints(path.parent, [path.name])
    about = _Section("bench", path.relative_to(folder), bench.question, title, finding)
    return _run(about, prints, [bench.settings["model"]], bench.settings, _tables(tables))


def of_store(path: Path, folder: Path) -> Run:
    """The run of an extraction, or of `spans`, which makes a store of another one."""
    try:
        store = open_store(path)
        utterances = store.utterances
    except (pa.ArrowException, OSError, ValueError, LookupError) as e:
        raise InputError(f"{path}: the store cannot be read ({e}); extract again, or move it away") from e
    made, what = ("spans", "words or phones") if SPANS in store.about else ("extract", "utterances")
    states, seconds = utterances["status"].to_pylist(), utterances["seconds"].to_pylist()
    done = [s for state, s in zip(states, seconds, strict=True) if state == "done"]
    languages = len(distinct(utterances, "language"))
    answer = (
        f"{len(done)} of {len(states)} {what} are done, {time_in_words(sum(done))} in {counted(languages, 'language')}."
    )
    model = store.about["model"]
    title = f"{model['checkpoint']}, {store.about['spec']['context']['mode']}: {counted(len(store.outputs), 'output')}"
    about = _Section(made, path.relative_to(folder), ENCODED, title, Finding(answer))
    prints = _prints(path, ["utterances.parquet"])
    return _run(about, prints, [model], None, _tables([_by_language(utterances)]), [store.about])


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


def _tables(tables: Sequence[TextTable], folded: bool = False) -> str:
    return "".join(table.to_html(folded) for table in tables)


@dataclass(frozen=True)
class _Section:
    """What stands above a section's figures and tables."""

    command: str
    place: Path
    question: str
    title: str
    finding: Finding | None


def _run(
    about: _Section,
    sha256: dict[str, str],
    models: Sequence[Mapping[str, Any]],
    asked: Mapping[str, Any] | None,
    inside: str,
    stores: Sequence[Mapping[str, Any]] = (),
) -> Run:
    """Whose it is, the answer, then what is `inside`; settings and fingerprints folded. models: those of the stores,
    or one."""
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
    kept = ("<h3>Settings</h3>\n" + definitions(flat(asked))) if asked else ""
    kept += "<h3>Fingerprints</h3>\n" + definitions(prints)
    for store in stores:
        whose = f" of {store['model']['checkpoint']}" if len(stores) > 1 else ""
        kept += folded(f"Model and extraction{whose}, all that is stored", definitions(flat(store)))
    whose = f'<p class="source">{escape(about.title)}<br>{escape(f"{about.command}: {about.place}")}</p>\n'
    answer = f'<p class="answer">{prose(about.finding.answer)}</p>\n' if about.finding else ""
    whole = f"<h2>{escape(about.question)}</h2>\n{whose}{answer}{inside}{folded('Settings and fingerprints', kept)}"

    def joined(key: str) -> str | None:
        return " + ".join(dict.fromkeys(str(model[key]) for model in models if model.get(key))) or None

    place, found = str(about.place), (joined("checkpoint"), joined("weights_sha256"))
    return Run(about.command, place, sha256, *found, about.question, about.finding, whole)
