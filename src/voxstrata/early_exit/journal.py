"""Transcripts as they are made, one line each, so that a run that was stopped goes on where it was."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import torch

from voxstrata.audio.decode import AudioInfo
from voxstrata.base.errors import InputError
from voxstrata.base.opening import parse_json, read_regular
from voxstrata.corpus import Corpus
from voxstrata.early_exit.checkpoint import Transcriber
from voxstrata.early_exit.exits import EarlyExit
from voxstrata.early_exit.result import JOURNAL
from voxstrata.store.files import Files

_FORMAT = 1


class Journal:
    """The texts that are there, by recording and exit, and where new ones are written. See `open_journal`.

    A text counts for a recording of the same id, size and length alone: one that was replaced is transcribed again.
    resumed: how many texts an earlier run left.
    """

    def __init__(self, file: IO[bytes], texts: dict[tuple[str, int, int, EarlyExit], str]) -> None:
        self._file, self._texts = file, texts
        self.resumed = len(texts)

    @property
    def empty(self) -> bool:
        """Whether there is no text yet."""
        return not self._texts

    def find(self, name: str, info: AudioInfo, at: EarlyExit) -> str | None:
        """The text of recording `name`, None where it was not transcribed."""
        return self._texts.get((name, info.size_bytes, info.samples, at))

    def add(self, name: str, info: AudioInfo, at: EarlyExit, text: str) -> None:
        """Write a text; a process that is killed after this has not lost it."""
        self._texts[name, info.size_bytes, info.samples, at] = text
        line = {"id": name, "bytes": info.size_bytes, "samples": info.samples, "after": at.after,
                "final_norm": at.final_norm, "text": text}  # fmt: skip
        self._file.write(json.dumps(line, ensure_ascii=False).encode() + b"\n")
        self._file.flush()


@contextmanager
def open_journal(folder: Path, settings: Mapping[str, Any], overwrite: bool = False) -> Iterator[Journal]:
    """Make or go on with transcripts.jsonl in `folder`; for this process alone.

    settings: what decides the texts, the file's first line. overwrite: transcripts of other settings are thrown away.
    A file without a transcript does not stay behind an error. A last line that a killed run left half-written is
    dropped.
    Raises InputError when the file is of other settings (naming these), is not ours, or is in use.
    """
    path = folder / JOURNAL
    header = {"format": _FORMAT, **json.loads(json.dumps(settings))}
    with Files(folder).lock():
        data = read_regular(path) if path.exists() else b""
        whole = data[: data.rfind(b"\n") + 1]
        texts: dict[tuple[str, int, int, EarlyExit], str] = {}
        try:
            first, *rest = [parse_json(line) for line in whole.splitlines()] or [header]
            for line in rest:
                at = EarlyExit(line["after"], line["final_norm"])
                texts[line["id"], line["bytes"], line["samples"], at] = line["text"]
            if overwrite and first != header:
                rest, texts = [], {}
            if rest:
                _refuse_others(path, first, header)
            else:
                whole = b""  # nothing was transcribed: a header binds nobody
        except (ValueError, TypeError, KeyError, AttributeError) as e:
            raise InputError(f"{path}: no transcripts of a sweep ({e}); remove it, or choose another folder") from e
        with path.open("r+b" if path.exists() else "wb") as file:
            file.truncate(len(whole))
            file.seek(len(whole))
            if not whole:
                file.write(json.dumps(header, ensure_ascii=False).encode() + b"\n")
                file.flush()
            journal = Journal(file, texts)
            try:
                yield journal
            except BaseException:
                if journal.empty:
                    path.unlink()
                raise


def _refuse_others(path: Path, found: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    differ = [key for key in {**found, **wanted} if found.get(key) != wanted.get(key)]
    if differ:
        was, now = ({key: settings.get(key) for key in differ} for settings in (found, wanted))
        raise InputError(
            f"{path}: transcripts of a run with {_shown(was)}, now {_shown(now)}: to go on with them give the same "
            "checkpoint, corpus and decoding; else choose another folder, or give --overwrite"
        )


def _shown(settings: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {str(value)[:60]}" for key, value in settings.items())


def corpus_hash(corpus: Corpus) -> str:
    """Which recordings are named as what: of ids, paths and languages; a reference may be corrected."""
    rows = corpus.table.select(["id", "path", "language"]).to_pylist()
    return hashlib.sha256(json.dumps([list(row.values()) for row in rows]).encode()).hexdigest()


def model_hash(transcriber: Transcriber) -> str:
    """Of all that makes text: every tensor as stored, generation settings, tokenizer."""
    h = hashlib.sha256()
    for name, value in sorted(transcriber.model.state_dict().items()):
        h.update(f"{name} {tuple(value.shape)} {value.dtype}\n".encode())
        h.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    settings = transcriber.model.generation_config.to_dict()
    settings.pop("transformers_version", None)
    h.update(json.dumps(settings, sort_keys=True, default=str).encode())
    for name in ("tokenizer.json", "vocab.json", "merges.txt"):
        file = transcriber.folder / name
        h.update(file.read_bytes() if file.is_file() else b"")
    return h.hexdigest()
