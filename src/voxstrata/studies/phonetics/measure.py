"""How alike translations sound: IPA of a corpus, phonetic distances, ranks of translations among non-translations."""

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from itertools import combinations
from math import nan
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from voxstrata.base.choices import chosen
from voxstrata.base.errors import InputError
from voxstrata.base.folders import leaving_no_empty_folder, make_writable
from voxstrata.base.plain import counted
from voxstrata.base.progress import SILENT, Progress, Reporter
from voxstrata.base.tables import first_few
from voxstrata.corpus import Corpus, read_corpus
from voxstrata.phonology.closest_words import SHORTEST_WORD, Words, closest_words
from voxstrata.phonology.feature_distance import NORMALIZATIONS, Phones, feature_distances
from voxstrata.phonology.ipa import choose_voices, need, tools, transcribe
from voxstrata.studies.phonetics.pairs import DISTANCE_SCHEMA, NEIGHBOURS, Compared, distance_table, translations
from voxstrata.studies.phonetics.result import FOUND, Phonetics

GIVEN = "given"  # in the place of the voice, where the user gave the IPA
_NAMED = 5  # characters that a note lists

_Row = dict[str, Any]  # an utterance of the corpus; its IPA, voice, others, segments and unknown are added to it


def measure_phonetics(
    corpus: Corpus | str | Path,
    out: str | Path,
    *,
    given: Mapping[str, str] | None = None,
    voices: Mapping[str, str] | None = None,
    languages: Sequence[str] | None = None,
    normalize: str = "longer",
    reporter: Reporter = SILENT,
) -> Phonetics:
    """Measure how alike translations sound; the result is saved in the folder `out`, in place of an earlier one.

    corpus: its path, or what `read_corpus` gave.
    It needs the folder while it measures: all distances may be more than memory holds.

    Utterances with language and group take part, with their IPA in `given` (by id) or else the text read by espeak-ng
    (`voices`: language to voice, where the default is not wanted). Those without either, or without a segment PanPhon
    knows, are left out; the result names them. Distance: `feature_distances`, normalised as `normalize` says, and that
    of the closest pair of words of at least SHORTEST_WORD segments. No recording is opened.

    Raises UsageError for unknown languages, voices or normalizations, InputError where a language has no voice, where
    fewer than two languages or no group shared by two remain, where all of a language sounds the same, and where the
    folder cannot be written or holds something else.
    """
    chosen("normalization", [normalize], NORMALIZATIONS)
    need("panphon")
    rows, names, left_out = _utterances(read_corpus(corpus), languages, given or {})
    voice_by_language = _transcribe_all(rows, names, given or {}, voices, reporter)
    rows = _with_segments(rows, left_out, reporter)
    _refuse_unrelated(rows, names)
    settings: dict[str, Any] = {"distance": "panphon feature_edit_distance, equal weights", "normalize": normalize}
    settings |= {"shortest_word_segments": SHORTEST_WORD, "neighbours_in_length": NEIGHBOURS}
    settings |= {"voices": voice_by_language, "ipa_given": sum(row["voice"] == GIVEN for row in rows)}
    settings |= {"left_out": len(left_out), "utterances_sha256": _sha256(rows)}
    settings["tools"] = {"panphon": version("panphon"), **(tools() if voice_by_language else {})}
    sides = {name: [row for row in rows if row["language"] == name] for name in names}
    notes = _notes({name: side for name, side in sides.items() if side})
    folder = Path(out)
    Phonetics.refuse_foreign(folder)  # now that the corpus is known to be of use, and before the long part
    metadata = {Phonetics.key: json.dumps(settings, ensure_ascii=False)}
    reporter.step("distances")
    distances = folder / Phonetics.files["distances"]
    partial = distances.with_name(f"{distances.name}.partial")
    with leaving_no_empty_folder(folder):
        make_writable(folder)
        try:
            pairs, others, lone = _measure(sides, normalize, partial, metadata, reporter)
            partial.replace(distances)
        finally:
            partial.unlink(missing_ok=True)
    if lone:
        notes.append(f"{', '.join(lone)}: no figure, since the pool holds one sentence and nothing can sound closer")
    found = json.dumps({"left_out": left_out, "notes": notes, "others": others}, ensure_ascii=False)
    table = pairs.replace_schema_metadata({**metadata, FOUND: found})
    result = Phonetics(table, _ipa_table(rows).replace_schema_metadata(metadata), distances)
    result.save(folder)
    return result


def _utterances(
    corpus: Corpus, languages: Sequence[str] | None, given: Mapping[str, str]
) -> tuple[list[_Row], list[str], dict[str, str]]:
    """Utterances that can take part, their languages, and by id why others cannot. Raises what the study raises."""
    rows = [row for row in corpus.table.to_pylist() if row["language"] is not None and row["group"] is not None]
    known = sorted({row["language"] for row in rows})
    names = chosen("language", languages, known) if rows or languages else []
    rows = [row for row in rows if row["language"] in names]
    if given and not any(row["id"] in given for row in rows):
        raise InputError(f"none of the IPA given is for an utterance of {corpus.where}; ids must be the corpus's")
    left_out = {row["id"]: "no text and no IPA" for row in rows if not row["text"] and row["id"] not in given}
    rows = [row for row in rows if row["id"] not in left_out]
    if left_out and not rows:
        raise InputError(f"{corpus.where}: no utterance has text; fill the manifest's text column, or give IPA (--ipa)")
    _refuse_unrelated(rows, names)
    return rows, names, left_out


def _refuse_unrelated(rows: Sequence[_Row], names: Sequence[str]) -> None:
    counts = Counter(row["language"] for row in rows)
    found = ", ".join(f"{name}: {counts[name]}" for name in names) or "none"
    if len(counts) < 2:
        raise InputError(
            f"utterances with text or IPA, language and group are needed in at least 2 languages; found {found}; "
            "fill the manifest's language, group and text columns, or ask for more languages"
        )
    groups: dict[str, set[str]] = {}
    for row in rows:
        groups.setdefault(row["group"], set()).add(row["language"])
    if not any(len(held) > 1 for held in groups.values()):
        raise InputError(f"no group occurs in two languages (found {found}); translations need the same group")
    if len(groups) < 2:
        raise InputError("only one group has text or IPA: there is no non-translation to compare with; add sentences")


def _transcribe_all(
    rows: list[_Row], names: Sequence[str], ipa: Mapping[str, str], voices: Mapping[str, str] | None, reporter: Reporter
) -> dict[str, str]:
    """Add ipa, voice and others to all rows; returns the voice of every language of which texts were read."""
    spoken = sorted({row["language"] for row in rows if row["id"] not in ipa})
    voice_by_language = choose_voices(spoken, voices) if spoken or voices else {}
    for row in rows:
        row |= {"ipa": ipa.get(row["id"]), "voice": GIVEN, "others": ()}
    for name in names:
        texts = [row for row in rows if row["language"] == name and row["id"] not in ipa]
        if texts:
            voice = voice_by_language[name]
            reporter.step(f"IPA of {counted(len(texts), 'text')} by the voice {voice}")
            for row, found in zip(texts, transcribe([row["text"] for row in texts], voice), strict=True):
                row |= {"ipa": found.ipa, "voice": voice, "others": found.others}
    return voice_by_language


def _with_segments(rows: list[_Row], left_out: dict[str, str], reporter: Reporter) -> list[_Row]:
    """Add segments and unknown characters; rows without a segment go to `left_out`, the others are returned."""
    reporter.step("segments")
    phones = Phones.from_ipa([row["ipa"] for row in rows])
    for row, length, unknown in zip(rows, phones.lengths, phones.unknown, strict=True):
        row["segments"], row["unknown"] = int(length), unknown
        if not length:
            left_out[row["id"]] = f"no segment that PanPhon knows in the IPA {row['ipa']!r} of {row['text']!r}"
    return [row for row in rows if row["segments"]]


def _notes(sides: Mapping[str, list[_Row]]) -> list[str]:
    """Sentences that sound the same but mean different things, unknown characters, and switched voices, by language."""
    notes = []
    for name, side in sides.items():
        groups: dict[str, set[str]] = {}
        for row in side:
            groups.setdefault(row["ipa"], set()).add(row["group"])
        if len(groups) == 1 and len({row["group"] for row in side}) > 1:
            raise InputError(
                f"all sentences of {name} ({len(side)}) have the same IPA, {side[0]['ipa']!r}: nothing can be ranked; "
                "check the text column, or give IPA (--ipa)"
            )
        same = [ipa for ipa, held in groups.items() if len(held) > 1]
        if same:
            count = sum(len(groups[ipa]) for ipa in same)
            first = next(row["text"] or row["ipa"] for row in side if row["ipa"] == same[0])
            notes.append(
                f"{name}: {count} groups share a sentence with another group, e.g. {first!r} in "
                f"{first_few(sorted(groups[same[0]]))}; each counts as a wrong answer for the others, so give equal "
                "sentences one group"
            )
        unknown = Counter("".join(row["unknown"] for row in side))
        if unknown:
            total = sum(unknown.values()) + sum(row["segments"] for row in side)
            shown = " ".join(c for c, _ in unknown.most_common(_NAMED))
            notes.append(
                f"{name}: {100 * sum(unknown.values()) / total:.1f} % of the IPA is unknown to PanPhon and passed over "
                f"({shown})"
            )
        switched = [row for row in side if row["others"]]
        if switched:
            others = Counter(voice for row in switched for voice in set(row["others"]))
            shown = first_few([voice for voice, _ in others.most_common()])
            notes.append(
                f"{name}: espeak-ng read parts of {counted(len(switched), 'sentence')} with the voice {shown} in place "
                f"of {switched[0]['voice']}, e.g. of {switched[0]['text']!r}; spell such words in the letters of "
                f"{name}, or give the IPA of these sentences (--ipa)"
            )
    return notes


def _sha256(rows: Sequence[_Row]) -> str:
    """Of who said what, and how it is pronounced: tables of one run share it."""
    columns = ("id", "language", "group", "text", "ipa")
    return hashlib.sha256(json.dumps([[row[name] for name in columns] for row in rows]).encode()).hexdigest()


def _ipa_table(rows: Sequence[_Row]) -> pa.Table:
    columns = ("id", "language", "group", "text", "voice", "ipa", "segments", "unknown", "switches")
    return pa.Table.from_pylist(
        [{name: len(row["others"]) if name == "switches" else row[name] for name in columns} for row in rows]
    )


def _measure(
    sides: Mapping[str, list[_Row]], normalize: str, path: Path, metadata: dict[str, str], reporter: Reporter
) -> tuple[pa.Table, list[tuple[str, str, float]], list[str]]:
    """Write all distances to `path`, a row group per pair of languages.

    Returns the translations of all directions; by direction (source, target) the mean distance of non-translations;
    and those directions in which nothing but translations is there.
    """
    phones = {name: Phones.from_ipa([row["ipa"] for row in side]) for name, side in sides.items() if side}
    words = {name: Words.of([row["ipa"] for row in side]) for name, side in sides.items() if side}
    couples = list(combinations(phones, 2))
    rows: list[dict[str, Any]] = []
    others: list[tuple[str, str, float]] = []
    lone: list[str] = []
    with pq.ParquetWriter(path, DISTANCE_SCHEMA.with_metadata(metadata)) as writer:
        for n, (a, b) in enumerate(couples, start=1):
            x, y = sides[a], sides[b]
            distance = feature_distances(phones[a], phones[b], normalize)
            word = closest_words(words[a], words[b], normalize)
            same = np.array([row["group"] for row in x])[:, None] == np.array([row["group"] for row in y])[None, :]
            writer.write_table(distance_table((a, b), x, y, same, distance, word.distance))
            if same.any():
                mean = nan if same.all() else float(distance[~same].mean(dtype=np.float64))
                there = Compared(a, b, x, y, same, distance, phones[b].lengths, word, words[a].forms, words[b].forms)
                for direction in (there, there.reversed(phones[a].lengths)):
                    found = translations(direction)
                    if found:
                        rows += found
                        others.append((direction.source, direction.target, mean))
                    else:
                        lone.append(f"{direction.source} → {direction.target}")
            reporter.progress(Progress("distances", n, len(couples), "language pairs"))
    return pa.Table.from_pylist(rows), others, lone
