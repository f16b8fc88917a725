"""Transcripts as they are made, a line each, so that a run that was stopped goes on, and several runs share the work.

FOLDER/
  transcripts.jsonl    what decides the texts, in the first line; then all that was there when a run began or ended
  lots/                a file for each time that a lot of recordings was begun since; one process alone writes it
  claims/              who has which lot in work

Where locks hold on one machine alone, another's runs may put away a file that is being written: who writes it notices,
and writes its lines again.
Every line has a CRC-32 of the rest of it. A kill costs the line that is being written; a power cut those of the last
seconds: files of lots are brought to the disk every SYNC_SECONDS and when the lot is whole.
"""

import hashlib
import json
import os
import time
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any, get_type_hints
from uuid import uuid4

import torch

from voxstrata.audio.decode import AudioInfo
from voxstrata.base.errors import InputError
from voxstrata.base.folders import sync_path
from voxstrata.base.opening import parse_json, read_regular
from voxstrata.corpus import Corpus
from voxstrata.early_exit.checkpoint import Transcriber
from voxstrata.early_exit.exits import EarlyExit
from voxstrata.early_exit.result import JOURNAL, LOTS
from voxstrata.early_exit.transcript import Transcript
from voxstrata.store.claims import CLAIMS, Claims
from voxstrata.store.files import Files, patient_lock

_FORMAT = 2
_CRC = "crc32"
SYNC_SECONDS = 5.0
_FIELDS = get_type_hints(Transcript)
_Recording = tuple[str, int, int]  # id, bytes, samples: one that was replaced is another


class Journal:
    """The texts that are there, by recording and exit, and where new ones are written. See `open_journal`.

    A text counts for a recording of the same id, size and length alone: one that was replaced is transcribed again.
    resumed: how many texts an earlier run left. failures: reasons that runs at work have written.
    """

    def __init__(self, folder: Path, header: Mapping[str, Any]) -> None:
        self.files, self._folder, self._header = Files(folder), folder, dict(header)
        self._claims = Claims(self.files)
        self._texts: dict[_Recording, dict[EarlyExit, Transcript]] = {}
        self._failures: dict[_Recording, str] = {}
        self._seen: dict[str, int] = {}  # bytes of the files that were read
        self._file: IO[bytes] | None = None
        self._lines: list[bytes] = []  # of the file
        self._path, self._lot, self._synced = folder, 0, 0.0
        self.resumed = 0

    def find(self, name: str, info: AudioInfo, at: EarlyExit) -> Transcript | None:
        """The transcript of recording `name`, None where it was not transcribed."""
        return self._texts.get((name, info.size_bytes, info.samples), {}).get(at)

    def failure(self, name: str, info: AudioInfo) -> str | None:
        """Why another run, or this one, could not transcribe recording `name`."""
        return self._failures.get((name, info.size_bytes, info.samples))

    def add(self, name: str, info: AudioInfo, at: EarlyExit, transcript: Transcript) -> None:
        """Write a transcript; a process that is killed after this has not lost it."""
        recording = (name, info.size_bytes, info.samples)
        self._texts.setdefault(recording, {})[at] = transcript
        self._write(_of_transcript(recording, at, transcript))

    def fail(self, name: str, info: AudioInfo, reason: str) -> None:
        """Write why a recording cannot be transcribed, for the runs at work; a later one tries again."""
        recording = (name, info.size_bytes, info.samples)
        self._failures[recording] = reason
        self._write({**_of(recording), "failure": reason})

    @contextmanager
    def claim(self, lot: int) -> Iterator[bool]:
        """Hold a lot, to transcribe it; False where another run does. What others have written by now is read.

        Raises InputError when the folder was begun anew with other settings.
        """
        with patient_lock(self.files):
            if self._read(JOURNAL, True)[0] != self._header:
                raise InputError(
                    f"{self._folder / JOURNAL}: another run began anew with other settings; ask it, or wait"
                )
            held = self._claims.take(lot)
        self._lot, self._lines = lot, []
        self._path = self._new_path()
        try:
            self.refresh()
            yield held
            if self._file and not self._path.exists():
                self._begin_file()
            self._sync()
        finally:
            if self._file:
                self._file.close()
                self._file = None
            self._claims.drop(lot)

    def refresh(self) -> None:
        """Read what other runs have written meanwhile."""
        for name in (
            *(f"{LOTS}/{each}" for each in self.files.names(LOTS)),
            JOURNAL,
        ):  # a run that ends moves them there
            path = self._folder / name
            try:
                size = path.stat().st_size
                if self._seen.get(name) != size and path != self._path:
                    self._take(self._read(name, name == JOURNAL)[1])
                    self._seen[name] = size
            except FileNotFoundError:
                pass

    def begin(self, overwrite: bool) -> None:
        """Take over what is there; others wait. Raises InputError as `open_journal` does."""
        others = runs_at_work(self._folder)
        names = [JOURNAL, *(f"{LOTS}/{each}" for each in self.files.names(LOTS))]
        for name in names:
            header, lines = self._read(name, name == JOURNAL)
            if header not in (None, self._header) and (lines or others):
                if others or not overwrite:
                    _refuse_others(self._folder / name, header or {}, self._header, others)
                self.files.remove_folder(LOTS)
                self.files.remove(JOURNAL)
                break
        self.refresh()
        self.resumed = sum(map(len, self._texts.values()))
        if not others:
            self._failures.clear()  # a new run tries again
            self._gather()

    def end(self) -> None:
        """Put all texts into one file; without a text, and another run at work, nothing stays behind."""
        self.refresh()
        if not runs_at_work(self._folder):
            self._gather()
            if not self._texts:
                self.files.remove(JOURNAL)
        elif self._texts:
            self._write_all()

    def _gather(self) -> None:
        self._write_all()
        for name in (f"{LOTS}/{each}" for each in self.files.names(LOTS)):
            path = self._folder / name
            with suppress(FileNotFoundError):
                if path == self._path or self._seen.get(name) == path.stat().st_size:  # else there is more in it by now
                    path.unlink()
        with suppress(OSError):
            (self._folder / LOTS).rmdir()
        self._claims.clear()
        self.files.sweep()

    def _write_all(self) -> None:
        lines = [self._header]
        for recording, texts in sorted(self._texts.items()):
            lines += [_of_transcript(recording, at, texts[at]) for at in sorted(texts, key=lambda at: at.rank)]
        data = b"".join(map(_line, lines))
        if not self.files.exists(JOURNAL) or self.files.read(JOURNAL) != data:
            self.files.write(JOURNAL, data)
        self._seen[JOURNAL] = len(data)

    def _write(self, line: Mapping[str, Any]) -> None:
        if self._file is None or not self._path.exists():
            self._begin_file()
        assert self._file
        self._lines.append(_line(line))
        self._file.write(self._lines[-1])
        self._file.flush()
        if time.monotonic() - self._synced > SYNC_SECONDS:
            self._sync()

    def _new_path(self) -> Path:
        return self._folder / LOTS / f"{self._lot:06d}.{uuid4().hex}.jsonl"

    def _begin_file(self) -> None:
        """Begin the file of a lot, again with the lines that it had."""
        if self._file:
            self._file.close()
            self._path = self._new_path()
        self._path.parent.mkdir(exist_ok=True)
        self._file = self._path.open("xb")
        self._file.writelines([_line(self._header), *self._lines])
        self._synced = time.monotonic()

    def _sync(self) -> None:
        if self._file:
            os.fsync(self._file.fileno())
            sync_path(self._path.parent)
            sync_path(self._folder)
            self._synced = time.monotonic()

    def _take(self, lines: list[dict[str, Any]]) -> None:
        for line in lines:
            recording = (line["id"], line["bytes"], line["samples"])
            if "failure" in line:
                self._failures[recording] = line["failure"]
            else:
                at = EarlyExit(line["after"], line["norm"])
                self._texts.setdefault(recording, {}).setdefault(at, Transcript(*(line[name] for name in _FIELDS)))

    def _read(self, name: str, must_be_ours: bool) -> tuple[dict[str, Any] | None, list[dict[str, Any]]]:
        """The first line of a file, None where there is none, and the others but a cut or garbled end.

        Raises InputError for a line within that is damaged, and for a file that is not ours.
        """
        path = self._folder / name
        try:
            data = read_regular(path)
        except FileNotFoundError:
            return None, []
        found: list[dict[str, Any]] = []
        damaged: tuple[int, Exception] | None = None
        for number, line in enumerate(data.strip(b"\0\n").split(b"\n"), start=1):
            try:
                entry = _entry(line, header=not found)
            except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as e:
                if number == 1 and must_be_ours and line:
                    raise InputError(
                        f"{path}: no transcripts of a sweep ({e}); remove it, or choose another folder"
                    ) from e
                damaged = damaged or (number, e)
            else:
                if damaged:
                    raise InputError(
                        f"{path}: line {damaged[0]} is damaged ({damaged[1]}), and others follow; remove this line to "
                        "have its recording transcribed again"
                    )
                found.append(entry)
        return (found[0], found[1:]) if found else (None, [])


def _entry(line: bytes, header: bool) -> dict[str, Any]:
    """A line as it was written. Raises ValueError, TypeError or KeyError for another."""
    entry = dict(parse_json(line))
    crc = entry.pop(_CRC, None)
    if crc is not None and crc != _crc(entry):  # those of 0.1.0 have none
        raise ValueError("its content is not what its checksum says")
    if header:
        if entry.get("format") != _FORMAT:
            raise ValueError("its first line is of another format")
        return entry
    kinds = {"id": str, "bytes": int, "samples": int}
    kinds |= {"failure": str} if "failure" in entry else {"after": int, "norm": str, **_FIELDS}
    for key, kind in kinds.items():
        if not isinstance(entry[key], kind):
            raise TypeError(f"{key} is {entry[key]!r}")
    return entry


def _of(recording: _Recording) -> dict[str, Any]:
    return dict(zip(("id", "bytes", "samples"), recording, strict=True))


def _of_transcript(recording: _Recording, at: EarlyExit, transcript: Transcript) -> dict[str, Any]:
    return {**_of(recording), **asdict(at), **asdict(transcript)}


def _line(entry: Mapping[str, Any]) -> bytes:
    return json.dumps({**entry, _CRC: _crc(entry)}, ensure_ascii=False).encode() + b"\n"


def _crc(entry: Mapping[str, Any]) -> int:
    return zlib.crc32(json.dumps(entry, ensure_ascii=False).encode())


def runs_at_work(folder: Path) -> bool:
    """Whether a run has claimed some of the work in `folder`. To be asked under the folder's lock."""
    files = Files(folder)
    claims = Claims(files)
    for lot in map(int, filter(str.isdigit, files.names(CLAIMS))):
        if not claims.take(lot):
            return True
        claims.drop(lot)
    return False


@contextmanager
def open_journal(folder: Path, settings: Mapping[str, Any], overwrite: bool = False) -> Iterator[Journal]:
    """Make or go on with the transcripts in `folder`; any number of processes may at once.

    settings: what decides the texts. overwrite: transcripts of other settings are thrown away, unless a run is at them.
    A file without a transcript does not stay behind an error. An end that a kill left half-written, or a power cut
    garbled, is dropped.
    Raises InputError when what is there is of other settings (naming these), is not ours, or is damaged within.
    """
    journal = Journal(folder, {"format": _FORMAT, **json.loads(json.dumps(settings))})
    with patient_lock(journal.files):
        journal.begin(overwrite)
    try:
        yield journal
    finally:
        with patient_lock(journal.files):
            journal.end()


def _refuse_others(path: Path, found: Mapping[str, Any], wanted: Mapping[str, Any], at_work: bool) -> None:
    differ = [key for key in {**found, **wanted} if found.get(key) != wanted.get(key)]
    was, now = ({key: settings.get(key) for key in differ} for settings in (found, wanted))
    mend = "wait for it, or choose another folder" if at_work else "else choose another folder, or give --overwrite"
    raise InputError(
        f"{path}: transcripts of a run {'at work ' * at_work}with {_shown(was)}, now {_shown(now)}: to go on with them "
        f"give the same checkpoint, corpus and decoding; {mend}"
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
