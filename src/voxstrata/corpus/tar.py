"""WebDataset shards: tar files of recordings, each with what is known of it, read where they lie.

The files of a sample have one name up to the first dot, as the library webdataset has it: `talk/3.flac`, `talk/3.txt`
and `talk/3.json` are the sample `talk/3`.
"""

import re
import tarfile
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

from voxstrata.audio.containers import FileView
from voxstrata.audio.source import FileSource, Source
from voxstrata.base.errors import AudioError, InputError
from voxstrata.base.opening import open_regular, parse_json
from voxstrata.corpus.folder import AUDIO_SUFFIXES, files_below, language_folder
from voxstrata.corpus.formats import Reading
from voxstrata.corpus.items import Item, items_corpus
from voxstrata.corpus.manifest import Names
from voxstrata.corpus.table import Corpus, Pack, absolute_root

_MARK_BYTES = 1024  # of zeros, where a tar ends
_SAMPLE_NAME = re.compile(r"((?:.*/)?[^./][^./]*)\.([^/]+)")  # the sample, and which of its files


@dataclass(frozen=True)
class TarSource(Source):
    """A file in a tar: `length` bytes from `offset` on."""

    path: Path
    member: str
    offset: int
    length: int

    @property
    def name(self) -> str:
        return f"{self.path}[{self.member}]"

    def size(self) -> int:
        if FileSource(self.path).size() < self.offset + self.length:
            raise AudioError(f"{self.name}: the tar ends inside it: truncated; fetch it again")
        if self.length == 0:
            raise AudioError(f"{self.name}: is empty (0 bytes); fetch the tar again or leave it out")
        return self.length

    def open(self) -> BinaryIO:
        return FileView(open_regular(self.path), self.offset + self.length, self.offset)

    def for_library(self) -> BinaryIO:
        return self.open()

    def read(self) -> bytes:
        with open_regular(self.path) as file:
            file.seek(self.offset)
            return file.read(self.length)


@dataclass(frozen=True)
class TarPack(Pack):
    """A tar; members by name."""

    members: Mapping[str, TarSource]

    def source(self, member: str) -> Source:
        return self.members[member]


# The names that corpora give these files, and keys of their JSON. Of those on one line the first that is there counts.
_NAMES: Names = {
    "id": (),  # it is the sample's name
    "language": ("language", "lang", "locale"),
    "group": ("group",),
    "text": ("text", "txt", "transcript", "transcription", "sentence"),
    "speaker": ("speaker", "speaker_id", "spk", "client_id"),
}
_TEXTS = {*(name for names in _NAMES.values() for name in names), "cls", "class", "count", "index", "inx", "id", "json"}
_MOST_TEXT = 1 << 20  # bytes
_COMPRESSED = {b"\x1f\x8b": "gunzip", b"BZ": "bunzip2", b"\xfd7": "unxz", b"\x28\xb5": "unzstd"}


def is_tar(path: Path) -> bool:
    """Whether a path is a tar, or a folder of tars in which no audio lies unpacked."""
    return bool(_shards(path)) and not (path.is_dir() and files_below(path, AUDIO_SUFFIXES))


def read_tar(path: Path, reading: Reading) -> Corpus:
    """A WebDataset shard, or all below a folder; recordings are read from the tars by seeking.

    A sample's id is its name, and `a.mix` where it holds several recordings as `a.mix.wav`. Of its other files those of
    text become columns, as do the keys of its JSON. Without a language the first folder of the shards that is called
    like one counts.

    Raises InputError for a shard that is compressed, damaged or cut, and for samples of one name.
    """
    items: list[Item] = []
    packs: dict[str, Pack] = {}
    notes: dict[str, None] = {}
    left: Counter[str] = Counter()
    root = path if path.is_dir() else path.parent
    for shard in _shards(path):
        members, ended = tar_members(absolute_root(shard))
        if not ended:
            notes[f"{shard.name} has no mark at its end: it may be cut; compare its size with the original's"] = None
        language = language_folder(root, shard)
        samples: dict[str, dict[str, TarSource]] = defaultdict(dict)
        for name, member in members.items():
            if match := _SAMPLE_NAME.fullmatch(name):
                samples[match[1]][match[2]] = member
            else:
                left["no suffix"] += 1
        with open_regular(shard) as file:
            for sample, parts in samples.items():
                items += _items(sample, parts, file, language, left)
        packs[str(absolute_root(shard))] = TarPack(members)
    if left:
        kinds = ", ".join(f"{number} of {suffix}" for suffix, number in left.most_common())
        notes[f"files in the shards that are neither sound nor text are left out: {kinds}"] = None
    return items_corpus(path, reading, _NAMES, items, packs, list(notes))


def _items(
    sample: str, parts: Mapping[str, TarSource], file: BinaryIO, language: str | None, left: Counter[str]
) -> Iterator[Item]:
    """The recordings of one sample. Files belong to a recording of their name, or to all."""
    sounds = [part for part in parts if f".{_suffix(part)}" in AUDIO_SUFFIXES]
    values: dict[str, dict[str, Any]] = defaultdict(dict)  # by the part of the name before the suffix
    for part, member in parts.items():
        if part not in sounds:
            if _suffix(part) not in _TEXTS or member.length > _MOST_TEXT:
                left[f".{_suffix(part)}"] += 1
                continue
            file.seek(member.offset)
            values[part.rpartition(".")[0]] |= _values(member, _suffix(part), file.read(member.length))
    for part in sounds:
        member, stem = parts[part], part.rpartition(".")[0]
        name = sample if len(sounds) == 1 else f"{sample}.{stem or part}"
        about = {"language": language} if language else {}
        described = about | values[""] | values[stem]
        yield Item(member.name, name, str(member.path), member.member, values=described)
    if not sounds:
        left["samples without sound"] += 1


def _suffix(part: str) -> str:
    return part.rpartition(".")[2].lower()


def _values(member: TarSource, suffix: str, data: bytes) -> dict[str, Any]:
    try:
        text = data.decode("utf-8-sig").strip()
        if suffix != "json":
            return {suffix: text}
        value = parse_json(text)
    except ValueError as error:
        raise InputError(f"{member.name}: not {'JSON' if suffix == 'json' else 'UTF-8'}: {error}; mend it") from None
    return value if isinstance(value, dict) else {suffix: value}


def _shards(path: Path) -> list[Path]:
    names = files_below(path, {".tar", ".gz", ".tgz"}) if path.is_dir() else [path.name]
    folder = path if path.is_dir() else path.parent
    return [folder / name for name in names if re.search(r"\.(tar(\.\w+)?|tgz)$", name, re.IGNORECASE)]


def tar_members(path: Path) -> tuple[dict[str, TarSource], bool]:
    """The files in a tar, in their order, by name without a leading "./"; and whether the tar has a mark at its end.

    A hard link is the file it leads to; other links are passed over. Raises InputError for a tar that is compressed,
    damaged or cut, holds a name twice or is several tars one after another.
    """
    members: dict[str, TarSource] = {}
    try:
        with open_regular(path) as file:
            if command := next((c for magic, c in _COMPRESSED.items() if file.peek(2).startswith(magic)), None):
                raise InputError(
                    f"{path}: compressed, so that nothing in it can be sought; unpack it to a .tar: {command}"
                )
            with tarfile.open(fileobj=file, mode="r:") as tar:
                for about in tar:
                    tar.members.clear()  # type: ignore[attr-defined]  # tarfile keeps them all, and nobody asks for them
                    name = about.name.removeprefix("./")
                    if name in members and (about.isreg() or about.islnk()):
                        raise InputError(f"{path}: holds {name!r} twice; make the tar again with one of them")
                    if about.islnk() and (target := members.get(about.linkname.removeprefix("./"))):
                        members[name] = replace(target, member=name)
                    elif about.isreg():
                        members[name] = TarSource(path, name, about.offset_data, about.size)
                file.seek(tar.offset)
            rest = file.read(_MARK_BYTES)
            zeros = not rest.strip(b"\0")
            while zeros and (block := file.read(1 << 20)):
                if block.strip(b"\0"):
                    raise InputError(
                        f"{path}: goes on after its end, as tars do that `cat` joined; join them by `tar --concatenate`"
                    )
    except (OSError, tarfile.TarError) as error:
        raise InputError(f"{path}: no tar, damaged or cut ({error}); fetch it again") from None
    if not zeros:
        raise InputError(f"{path}: damaged or cut after {list(members)[-1:]}; fetch it again")
    return members, len(rest) == _MARK_BYTES
