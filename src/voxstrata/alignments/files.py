"""A file of alignments, or a folder of them, one for each recording."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from voxstrata.alignments.ctm import read_ctm
from voxstrata.alignments.textgrid import read_textgrid
from voxstrata.alignments.tier import SpeechAlignment
from voxstrata.alignments.timestamps import read_timestamp_lines, read_timestamps
from voxstrata.base.errors import InputError, refuse_fault_here
from voxstrata.base.plain import counted
from voxstrata.base.progress import SILENT, Progress, Reporter
from voxstrata.base.recognised import mistaken

ALIGNMENT_SUFFIXES = (".textgrid", ".json", ".ctm", ".jsonl")  # of one recording the first two, of many the others


@dataclass(frozen=True, eq=False)
class AlignmentFiles:
    """What a file or folder holds. unreadable: of files of a single recording, by its name, why they cannot be read."""

    alignments: list[SpeechAlignment]
    unreadable: dict[str, str]


_GIVE = "give TextGrid, CTM or JSON files"


def read_alignments(source: str | Path, tier: str, reporter: Reporter = SILENT) -> AlignmentFiles:
    """All alignments in a file or folder; of their tiers the one asked for alone is kept.

    A file of one recording (.TextGrid, .json) is named like it: the path below the folder, without the suffix. Those of
    many recordings (.ctm, .jsonl) name them inside. In a folder, a file of one recording that cannot be read costs that
    recording alone.

    Raises InputError where there is none, where two are of one recording, for a file that cannot be read, and where
    none of them has the tier, naming those that are there.
    """
    source = Path(source)
    if not source.exists():
        raise InputError(mistaken(source, "alignments", _GIVE))
    paths = sorted(_found(source)) if source.is_dir() else [source]
    if not paths:
        none = f"holds no file that ends in {', '.join(ALIGNMENT_SUFFIXES)}"
        raise InputError(mistaken(source, "alignments", _GIVE, none))
    alignments: list[SpeechAlignment] = []
    unreadable: dict[str, str] = {}
    places: dict[tuple[str, str | None], str] = {}
    tiers: dict[str, int] = {}
    for n, path in enumerate(paths, start=1):
        name = path.relative_to(source).with_suffix("").as_posix() if source.is_dir() else path.stem
        for found in _readable(path, name, unreadable if source.is_dir() and _is_of_one(path) else None):
            if (first := places.setdefault((found.name, found.channel), found.where)) != found.where:
                raise InputError(f"{first} and {found.where}: both are of {found.name!r}; give one of them")
            tiers |= {held: tiers.get(held, 0) + 1 for held in found.tiers}
            kept = found.tier(tier)
            alignments.append(replace(found, tiers={} if kept is None else {tier: kept}))
        reporter.progress(Progress("reading alignments", n, len(paths), "files"))
    if not any(found.tiers for found in alignments):
        if not alignments:
            none = f"none of its files can be read; the first: {next(iter(unreadable.values()))}"
            raise InputError(mistaken(source, "alignments", f"{none}; {_GIVE}"))
        held = ", ".join(f"{name!r} ({counted(count, 'recording')})" for name, count in sorted(tiers.items())) or "none"
        raise InputError(f"{source}: no tier of intervals is called {tier!r}; there are: {held}")
    return AlignmentFiles(alignments, unreadable)


def _readable(path: Path, name: str, unreadable: dict[str, str] | None) -> list[SpeechAlignment]:
    """The alignments of a file; none where it cannot be read and may be noted as that."""
    try:
        return list(_read(path, name))
    except InputError as e:
        if unreadable is None:
            raise
        unreadable[name] = str(e)
        return []
    except OSError as e:
        refuse_fault_here(e, str(path))
        raise InputError(f"{path}: cannot be read: {e.strerror or e}") from None


def _found(folder: Path) -> Iterator[Path]:
    for path in folder.rglob("*"):
        if path.suffix.lower() in ALIGNMENT_SUFFIXES and not path.name.startswith(".") and path.is_file():
            yield path


def _is_of_one(path: Path) -> bool:
    return path.suffix.lower() in ALIGNMENT_SUFFIXES[:2]


def _read(path: Path, name: str) -> Iterator[SpeechAlignment]:
    suffix = path.suffix.lower()
    if suffix == ".textgrid":
        yield read_textgrid(path, name)
    elif suffix == ".json":
        yield read_timestamps(path, name)
    elif suffix == ".ctm":
        yield from read_ctm(path)
    elif suffix == ".jsonl":
        yield from read_timestamp_lines(path)
    else:
        raise InputError(f"{path}: no alignment by its name; such names end in {', '.join(ALIGNMENT_SUFFIXES)}")
