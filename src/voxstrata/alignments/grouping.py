"""Which spans say the same: what retrieval takes for translations of each other."""

import unicodedata
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from voxstrata.base.errors import InputError
from voxstrata.corpus.rows import read_rows

SPAN_GROUPS = ("word", "label", "sentence")


def word_of(label: str) -> str:
    """A label as words are compared: in lower case, without the punctuation at its ends; as it is if nothing else is.

    >>> word_of("¿Dónde?")
    'dónde'
    """
    begin, end = 0, len(label)
    while begin < end and unicodedata.category(label[begin])[0] == "P":
        begin += 1
    while end > begin and unicodedata.category(label[end - 1])[0] == "P":
        end -= 1
    return label[begin:end].casefold() or label


def read_meanings(path: str | Path) -> dict[tuple[str, str], str]:
    """Meanings by language and word, of a table with the columns form, language and meaning, as `voxstrata words` has.

    Raises InputError, naming the line, for an empty field, and for a word with two meanings: which one a span has
    nobody knows.
    """
    table, needed = Path(path), ("form", "language", "meaning")
    meanings: dict[tuple[str, str], str] = {}
    for place, row in read_rows(table, needed, needed):
        form, language, meaning = ((row[name] or "").strip() for name in needed)
        if not (form and language and meaning):
            raise InputError(f"{table}, {place}: form, language or meaning is empty; fill it or remove the row")
        held = meanings.setdefault((language, word_of(form)), meaning)
        if held != meaning:
            raise InputError(
                f"{table}, {place}: {form!r} ({language}) means {meaning!r} here and {held!r} above; keep one of them"
            )
    return meanings


def span_groups(
    how: str, labels: pa.Array, languages: pa.Array, parents: pa.Array, meanings: Mapping[tuple[str, str], str] | None
) -> pa.Array:
    """The group of each span; null for one without: of a parent without group, or a word without meaning.

    labels, languages, parents: of each span, the last the groups of their utterances. how: of SPAN_GROUPS; meanings
    take its place where they are given.
    """
    if how == "label" and meanings is None:
        return labels
    codes, written = _encoded(labels)
    words = [word_of(label) for label in written.to_pylist()]
    own = pa.array(words, pa.string()).take(pa.array(codes))
    if meanings is None:
        return own if how == "word" else pc.binary_join_element_wise(parents, own, " ")
    spoken, names = _encoded(languages)
    both, pair = np.unique(spoken * len(words) + codes, return_inverse=True)
    found = [meanings.get((names[b // len(words)].as_py(), words[b % len(words)])) for b in both.tolist()]
    return pa.array(found, pa.string()).take(pa.array(pair))


def _encoded(values: pa.Array) -> tuple[np.ndarray, pa.Array]:
    encoded = values.dictionary_encode(null_encoding="encode")
    return encoded.indices.to_numpy().astype(np.int64), encoded.dictionary
