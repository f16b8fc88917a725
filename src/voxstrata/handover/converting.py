"""Convert a store, or some of it, into a form that other tools read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np

from voxstrata.base.choices import chosen
from voxstrata.base.errors import InputError, UsageError
from voxstrata.base.folders import check_vacant, new_folder
from voxstrata.base.plain import counted, shown_as
from voxstrata.base.progress import SILENT, Progress, Reporter
from voxstrata.base.tables import distinct
from voxstrata.encoders.outputs import OutputChoice, select_outputs
from voxstrata.handover.formats import FORMS
from voxstrata.handover.share import ABOUT_FILE, UTTERANCES_FILE, Share
from voxstrata.store.several import AnyStore, open_store
from voxstrata.store.writer import DONE

_NO_LANGUAGE = "__HIVE_DEFAULT_PARTITION__"  # what DuckDB, Polars and Arrow read as null in a folder's name
_BY_OUTPUT = [p.replace("OUTPUT", o) for f in FORMS.values() for p in f.files for o in ("final", "layer_[0-9][0-9]")]
_WRITTEN = (ABOUT_FILE, UTTERANCES_FILE, *dict.fromkeys(_BY_OUTPUT))


@dataclass(frozen=True)
class ConvertReport:
    """What was written.

    utterances, rows: converted. left_out: utterances of the languages asked for that are pending or failed.
    files: below `out`, the folder. size_bytes: of all of them.
    """

    out: str
    to: str
    outputs: tuple[str, ...]
    pooled: bool
    utterances: int
    left_out: int
    rows: int
    size_bytes: int
    files: list[str]

    def __repr__(self) -> str:
        return shown_as(self, f"{self.to}, {counted(self.utterances, 'utterance')}", self.out)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form."""
        return asdict(self)


def convert(
    store: AnyStore,
    out: str | Path,
    to: str,
    outputs: OutputChoice = "all",
    *,
    pooled: bool = False,
    languages: str | Sequence[str] | None = None,
    by_language: bool = False,
    overwrite: bool = False,
    reporter: Reporter = SILENT,
) -> ConvertReport:
    """Write the states of a store, and all that is known of its utterances, in another form.

    store: its path, or opened. out: a folder; it appears whole or not at all.
    to: "parquet", "npy", "safetensors", "lance", "kaldi" or "hf"; docs/convert.md has what each holds.
    pooled: one vector an utterance, the mean over its frames, in place of frames; always so for a pooled store.
    languages: only these. by_language: a folder each, `language=en`. overwrite: an earlier conversion in
    `out`, of any format, is replaced, if nothing else is in the folder.

    Values are the stored ones, bit for bit (Kaldi's are float32). Utterances that are pending or failed are left out.
    Memory beyond an open store, as benchmarks/convert.py measured it on 614 MB: npy and kaldi 80 MiB, parquet and lance
    360, safetensors 520, hf 810; more for an utterance of over 32 MB.

    Raises UsageError for an unknown format, output or language and for a folder inside the store; InputError for a
    folder that holds something, a package that is not installed, and a store in which nothing is done.
    """
    store, target = open_store(store), Path(out)
    (to,) = chosen("format", [to], list(FORMS))
    names = select_outputs(outputs, store.outputs)
    form, pooled = FORMS[to], pooled or not store.has_frames
    if form.package and find_spec(form.package) is None:
        raise InputError(f"{to}: {form.package} is not installed; pip install 'voxstrata[{form.extra}]'")
    if store.files.local is not None and target.resolve().is_relative_to(store.files.local.resolve()):
        raise UsageError(f"{target}: inside the store; choose a folder beside it")
    replaced = (*_WRITTEN, *(f"language=*/{pattern}" for pattern in _WRITTEN)) if overwrite else ()
    check_vacant(target, replaced)
    spoken = np.array([language or "" for language in store.utterances["language"].to_pylist()], object)
    if languages is not None:
        languages = chosen("language", languages, [name for name in distinct(store.utterances, "language") if name])
    taken = np.ones(len(store), bool) if languages is None else np.isin(spoken, languages)
    index = np.flatnonzero(taken & (store.status == DONE))
    if not len(index):
        raise InputError(f"{store.files.root}: none of its utterances is done; run the extraction to its end")
    parts = {language: index[spoken[index] == language] for language in sorted(set(spoken[index]))}
    if not by_language:
        parts = {"default": index}
    about = {
        "voxstrata": version("voxstrata"),
        "format": to,
        "outputs": list(names),
        "pooled": pooled,
        "seconds_per_row": None if pooled else store.row_seconds,
        "languages": languages,
        "store": store.about,
    }
    done = {"utterances": 0, "rows": 0}

    def tell(utterances: int, rows: int) -> None:
        done["utterances"] += utterances
        done["rows"] += rows
        work: dict[str, Any] = {"work": done["rows"], "work_total": total}
        reporter.progress(Progress("converting", done["utterances"], len(index), "utterances", **work))

    total = len(index) if pooled else int(store.length[index].sum())
    with new_folder(target, replaced) as partial:
        below = {name: f"language={quote(name, safe='') or _NO_LANGUAGE}/" if by_language else "" for name in parts}
        for name, members in parts.items():
            share = Share(store, members, names, pooled, about, tell)
            (partial / below[name]).mkdir(exist_ok=True)
            form.write(share, partial / below[name], target.resolve() / below[name])
            share.write_about(partial / below[name])
        share.write_about(partial)  # beside folders of languages, too: by it a conversion is known
        if form.index:
            form.index(below, share, partial)
        files = sorted(str(path.relative_to(partial)) for path in partial.rglob("*") if path.is_file())
        size = sum((partial / name).stat().st_size for name in files)
    left_out = int(taken.sum()) - len(index)
    return ConvertReport(str(target), to, names, pooled, len(index), left_out, done["rows"], size, files)
