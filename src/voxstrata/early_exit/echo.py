"""Whether the wrong words of a translation sound like what was said: an encoder that hears, but does not understand.

The question is that of arXiv 2505.19606v1. The measure is ours: how they judged it was not known to us.

For a word w of a transcript and a source sentence s, D(w, s) is the least normalised phonetic distance
(`feature_distances`) of w to a word of s or to two neighbouring words of s said as one. Of a wrong word (one that the
alignment of least word errors calls a substitution or an insertion) in the translation of s:

    closer = mean over sentences t of [D(w, s) < D(w, t)] + [D(w, s) = D(w, t)] / 2

t are the NULL_SENTENCES sentences of the same language and other groups that are nearest to s in length by ratio: what
sound has no part in, since they were not what was said. 0.5 is chance; 1 is a word nearer to its own sentence than to
any other.
`distance` is the mean of D(w, s), `null` that of D(w, t). A word counts once in a recording: loops do not decide.

Words sound alike for reasons of their own: names, and loan words that are the right translation. So the same is
measured of two others: "right", the words that both have, and "missed", those of the English reference that should have
stood there. `beyond_missed` is the wrong words' `closer` less the missed ones', on the same draws of groups.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

import jiwer
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from voxstrata.base.errors import InputError
from voxstrata.early_exit.decoding import is_english
from voxstrata.early_exit.echo_result import MISSED, NULL_SENTENCES, RIGHT, WRONG
from voxstrata.early_exit.exits import MEAN_OF_LANGUAGES, EarlyExit
from voxstrata.early_exit.language_means import Floats, LanguageMeans, interval
from voxstrata.early_exit.scoring import Scoring, script_of
from voxstrata.phonology.closest_words import Words, closest_words
from voxstrata.phonology.ipa import transcribe, voices
from voxstrata.phonology.voices import voice_of

SOURCE_TEXT = "source_text"  # the corpus column with what was said
_ENGLISH = "en-us"  # the voice


@dataclass(frozen=True)
class _Source:
    """What was said in one recording: its IPA, with two neighbouring words as one, too. words: how many there are."""

    text: str
    group: str
    ipa: str
    words: int


def words_of(reference: str, transcript: str) -> dict[str, set[str]]:
    """The distinct words of a translation by kind; both texts are normalised. A word is wrong where it ever is."""
    found: dict[str, set[str]] = {kind: set() for kind in (WRONG, RIGHT, MISSED)}
    aligned = jiwer.process_words(reference, transcript)
    for chunk in aligned.alignments[0]:
        ours = aligned.references[0][chunk.ref_start_idx : chunk.ref_end_idx]
        theirs = aligned.hypotheses[0][chunk.hyp_start_idx : chunk.hyp_end_idx]
        found[RIGHT if chunk.type == "equal" else WRONG] |= set(theirs)
        found[MISSED] |= set() if chunk.type == "equal" else set(ours)
    found[RIGHT] -= found[WRONG]
    return found


def echoes(transcripts: pa.Table, sources: Mapping[str, str]) -> tuple[pa.Table, list[str]]:
    """Every word of every translation beside what was said (ECHO_SCHEMA), and notes on what could not be compared.

    transcripts: of `score`, translations into English. sources: what was said, by id; recordings without are left out,
    and those in English. English words are read by espeak-ng's voice en-us, words in another script than Latin by that
    of the source: they are the source's own. Words of fewer than SHORTEST_WORD segments do not count.
    Raises InputError where nothing can be compared, or a package is missing.
    """
    rows = [r for r in transcripts.to_pylist() if r["id"] in sources and not is_english(str(r["language"]))]
    notes, tables = [], []
    for language in sorted({str(r["language"]) for r in rows}):
        mine = [r for r in rows if r["language"] == language]
        voice = voice_of(language, voices())
        if voice is None:
            notes.append(f"{language}: espeak-ng has no voice for it, so its sound is not compared")
            continue
        try:
            said = _sources(mine, sources, voice)
        except InputError as e:
            notes.append(f"{language}: {e}")
            continue
        if len({source.group for source in said.values()}) < 2:
            notes.append(f"{language}: a single group, so there is no other sentence to compare with")
            continue
        tables.append(_of_language(mine, said, voice))
    found = pa.concat_tables([pa.Table.from_pylist([], schema=ECHO_SCHEMA), *tables])
    if not len(found):
        why = "; ".join(notes) or f"no recording but in English has a {SOURCE_TEXT}"
        raise InputError(f"no word of a translation can be compared with what was said: {why}")
    return found, notes


ECHO_SCHEMA = pa.schema(
    [(n, pa.string()) for n in ("id", "language", "group")]
    + [("after", pa.int32()), ("norm", pa.string())]
    + [(n, pa.string()) for n in ("kind", "word", "ipa", "nearest")]
    + [(n, pa.float64()) for n in ("distance", "null", "closer")]
    + [("foreign_script", pa.bool_())]
)


def _sources(rows: Sequence[Mapping[str, Any]], sources: Mapping[str, str], voice: str) -> dict[str, _Source]:
    """By id. Raises InputError as `transcribe` does."""
    groups = {str(r["id"]): str(r["group"]) for r in rows}
    texts = [sources[name] for name in groups]
    found = {}
    for (name, group), text, read in zip(groups.items(), texts, transcribe(texts, voice), strict=True):
        words = read.ipa.split()
        pairs = [a + b for a, b in pairwise(words)]
        found[name] = _Source(" ".join(text.lower().split()), group, " ".join([*words, *pairs]), len(words))
    return found


def _of_language(rows: Sequence[Mapping[str, Any]], said: Mapping[str, _Source], voice: str) -> pa.Table:
    kinds = [words_of(r["reference_normalized"], r["transcript_normalized"]) for r in rows]
    forms = sorted({word for of in kinds for words in of.values() for word in words})
    foreign = {word: script_of(word) not in ("LATIN", "NONE") for word in forms}
    ipa = dict[str, str]()
    for other, reader in ((False, _ENGLISH), (True, voice)):
        some = [word for word in forms if foreign[word] == other]
        ipa |= dict(zip(some, ["".join(t.ipa.split()) for t in transcribe(some, reader)] if some else [], strict=True))
    sentences = sorted(said)
    place, y = {name: j for j, name in enumerate(sentences)}, Words.of([said[name].ipa for name in sentences])
    at = {word: i for i, word in enumerate(forms)}
    near = closest_words(Words.of([ipa[word] for word in forms]), y)
    others = {name: _others(name, sentences, said) for name in sentences}
    found = []
    for r, of in zip(rows, kinds, strict=True):
        own, null = place[r["id"]], others[r["id"]]
        about = {name: r[name] for name in ("id", "language", "group", "after", "norm")}
        for kind, words in of.items():
            for word in sorted(words):
                distances = near.distance[at[word]]
                d, apart = float(distances[own]), distances[null].astype(np.float64)
                apart = apart[~np.isnan(apart)]
                if np.isnan(d) or not len(apart):
                    continue
                closer = ((d < apart).sum() + (d == apart).sum() / 2) / len(apart)
                nearest = y.forms[near.y_words[at[word], own]]
                found.append(
                    {**about, "kind": kind, "word": word, "ipa": ipa[word], "nearest": nearest, "distance": d}
                    | {"null": apart.mean(), "closer": closer, "foreign_script": foreign[word]}
                )
    return pa.Table.from_pylist(found, schema=ECHO_SCHEMA)


def _others(name: str, sentences: Sequence[str], said: Mapping[str, _Source]) -> npt.NDArray[np.int64]:
    """The sentences of other groups with other texts that are nearest in number of words."""
    own = said[name]
    apart = [j for j, n in enumerate(sentences) if said[n].group != own.group and said[n].text != own.text]
    lengths = np.log([max(said[sentences[j]].words, 0.5) for j in apart])
    order = np.argsort(np.abs(lengths - np.log(max(own.words, 0.5))), kind="stable")
    return np.array(apart, np.int64)[order[:NULL_SENTENCES]]


def echo_rates(words: pa.Table, scoring: Scoring) -> pa.Table:
    """Of `echoes` a row per language, exit and kind, and for the mean over languages (ECHO_RATES_SCHEMA).

    low, high: 95 % percentile bootstrap over groups of `closer`; null where there is a single group.
    """
    held = words.to_pylist()
    draws = LanguageMeans(*_languages_and_groups(held), scoring.resamples, scoring.seed)
    cells: dict[tuple[EarlyExit, str], list[dict[str, Any]]] = {}
    for r in held:
        cells.setdefault((EarlyExit(r["after"], r["norm"]), r["kind"]), []).append(r)
    names = ("closer", "distance", "null")
    measured: dict[tuple[EarlyExit, str], list[dict[str, tuple[float, Floats]]]] = {
        cell: [draws.measure([[r[name]] for r in rows], *_languages_and_groups(rows)) for name in names]
        for cell, rows in cells.items()
    }
    found = []
    for language in [*sorted({r["language"] for r in held}), MEAN_OF_LANGUAGES]:
        for at in sorted({at for at, _ in cells}, key=lambda at: at.rank):
            for kind in (WRONG, RIGHT, MISSED):
                mine = [r for r in cells.get((at, kind), []) if language in (r["language"], MEAN_OF_LANGUAGES)]
                row = {"language": language, **asdict(at), "kind": kind, "words": len(mine)}
                row |= {f"{name}s": len({r[key] for r in mine}) for name, key in (("recording", "id"), ("group",) * 2)}
                row["foreign_script"] = sum(r["foreign_script"] for r in mine)
                if mine:
                    figures = [of[language] for of in measured[at, kind]]
                    row |= {name: value for name, (value, _) in zip(names, figures, strict=True)}
                    value, samples = figures[0]
                    row["low"], row["high"] = interval(samples)
                    missed = measured.get((at, MISSED), [{}])[0].get(language)
                    if kind == WRONG and missed:
                        row["beyond_missed"] = value - missed[0]
                        row["beyond_low"], row["beyond_high"] = interval(samples - missed[1])
                found.append(row)
    return pa.Table.from_pylist(found, schema=ECHO_RATES_SCHEMA)


def _languages_and_groups(rows: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[str]]:
    return [r["language"] for r in rows], [r["group"] for r in rows]


ECHO_RATES_SCHEMA = pa.schema(
    [("language", pa.string()), ("after", pa.int64()), ("norm", pa.string()), ("kind", pa.string())]
    + [(n, pa.int64()) for n in ("words", "recordings", "groups")]
    + [(n, pa.float64()) for n in ("distance", "null", "closer", "low", "high")]
    + [(n, pa.float64()) for n in ("beyond_missed", "beyond_low", "beyond_high")]
    + [("foreign_script", pa.int64())]
)
