"""What commands say of the corpus they are given, before the work."""

from __future__ import annotations

import os
import shlex
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

import voxstrata as vs
from voxstrata.base.remote import is_url, shown
from voxstrata.cli.saying import say, say_wrapped

if TYPE_CHECKING:
    from voxstrata.corpus import Corpus

_WIDTH = 79


def read_and_note(source: Path, reading: Mapping[str, Any]) -> Corpus:
    """Read a corpus, and say on standard error what a person should know of how that was done."""
    corpus = vs.read_corpus(source, **reading)
    for note in corpus.notes[1:]:
        say_wrapped(f"{shown(str(source))}: {note}", err=True)
    return corpus


def tell_corpus(source: Path, corpus: Corpus, err: bool = False) -> None:
    """What a corpus is, what it holds, and what was noted when it was read."""
    from voxstrata.corpus.summary import CorpusSummary

    first, *notes = corpus.notes
    wrapped = textwrap.TextWrapper(
        _WIDTH, initial_indent="  ", subsequent_indent="    ", break_long_words=False, break_on_hyphens=False
    )
    lines = [f"{shown(str(source))}: {first}", CorpusSummary.of(corpus).to_text(), *map(wrapped.fill, notes)]
    say("\n".join(lines), err=err)


def corpus_json(corpus: Corpus) -> dict[str, Any]:
    """Counts and notes of a corpus, for `--json`."""
    from voxstrata.corpus.summary import CorpusSummary

    return asdict(CorpusSummary.of(corpus)) | {"notes": list(corpus.notes)}


def refuse_swapped(corpus: str | Path, model: str | Path, store: str | None = None) -> None:
    """Raises UsageError where a command was given its model first and its corpus, or list of words, second.

    store: the argument before these, of commands that have one.
    """
    if _is_model(Path(corpus)) and not _is_model(Path(model)):
        _refuse(f"{corpus} is a model and {model} is none", *filter(None, [store]), model, corpus)


def refuse_swapped_store(store: str, *others: str | Path, option: str | None = None) -> None:
    """Raises UsageError where a command was given its store behind one of its other arguments.

    option: the one that takes the other argument, where it is no positional one.
    """
    places = [one for one in others if _is_store(one)]
    if len(places) == 1 and not _is_store(store):
        rest = [one for one in (store, *others) if one != places[0]]
        rest.sort(key=lambda one: _is_model(Path(one)))
        _refuse(f"{places[0]} is a store and {store} is none", *places, *filter(None, [option]), *rest)


def refuse_spaced_lists(stores: Sequence[str], **lists: str | None) -> None:
    """Raises UsageError where what follows a list, such as --languages en fr, was taken for a store.

    lists: by the name of its option, what was given.
    """
    given = {name: value for name, value in lists.items() if value not in (None, "all")}
    missing = [one for one in stores[1:] if not is_url(one) and "/" not in one and not os.path.lexists(one)]
    if given and missing:
        typed = " or ".join(f"--{name} {value},{missing[0]}" for name, value in given.items())
        raise vs.UsageError(f"{missing[0]}: no such store; a list has commas between its items: {typed}")


def refuse_swapped_checkpoint(checkpoint: str, corpus: Path) -> None:
    """Raises UsageError where a command was given its corpus first and its checkpoint second."""
    from voxstrata.corpus.rows import is_table

    if is_url(corpus):
        return
    given = Path(checkpoint)
    no_checkpoint = is_table(given) or (given.is_dir() and not (given / "config.json").is_file())
    if no_checkpoint and ((corpus / "config.json").is_file() or not corpus.exists()):
        _refuse(f"{checkpoint} is no checkpoint, and {corpus} may be one", corpus, checkpoint)


def _is_model(path: Path) -> bool:
    from voxstrata.encoders.card import CARD

    return (path / CARD).is_file()


def _is_store(path: str | Path) -> bool:
    return not is_url(path) and (Path(path) / "zarr.json").is_file()


def _refuse(why: str, *arguments: str | Path) -> None:
    command = click.get_current_context().command_path
    raise vs.UsageError(f"{why}: the order is the other: {command} {shlex.join(map(str, arguments))} …")
