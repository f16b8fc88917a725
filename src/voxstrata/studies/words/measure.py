"""Sound or meaning, word by word: are synonyms, or near-homophones, of two languages closer than random pairs?"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from voxstrata.base.errors import InputError, UsageError
from voxstrata.base.folders import make_writable
from voxstrata.base.progress import SILENT, Reporter
from voxstrata.encoders import ModelFolder
from voxstrata.encoders.outputs import select_outputs
from voxstrata.engine import Device, Runtime, extract
from voxstrata.evaluation.bootstrap import RESAMPLES, Resamples
from voxstrata.evaluation.roc import AUC, Scored, auc
from voxstrata.phonology.ipa import tools
from voxstrata.retrieval.pooled import mean_pool, pooled_cosine
from voxstrata.retrieval.ragged import Ragged
from voxstrata.retrieval.similarities import seqsim
from voxstrata.store import EmbeddingStore, StoreSpec, open_store
from voxstrata.studies.words.pairs import FAR, KINDS, NEAR, NORMALIZE, RANDOM, PairSets, WordPairs, make_pairs
from voxstrata.studies.words.word_list import SPEAKER, Entry, voices_needed, with_ipa, word_corpus

SIMILARITIES = ("seqsim_f1", "pooled_cosine")
CONTROLS = ("phonetic", "duration")  # closeness in sound alone, in length alone: of no output
ALL = "all"  # language_a and language_b of the rows over all pairs of languages
KEY = "voxstrata_words"

AUC_SCHEMA = pa.schema(
    [
        ("output", pa.string()),
        ("similarity", pa.string()),
        ("kind", pa.string()),
        ("language_a", pa.string()),
        ("language_b", pa.string()),
        ("auc", pa.float64()),
        ("low", pa.float64()),
        ("high", pa.float64()),
        ("chance", pa.float64()),
        ("pairs", pa.int64()),
        ("random_pairs", pa.int64()),
        ("meanings", pa.int64()),
    ]
)

Matrix = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class WordReport:
    """What was measured.

    table: AUC_SCHEMA, see `measure_words`. pairs: every pair that was compared, with its scores. failures: recordings
    that could not be read, reasons by id. settings: what decides the result. Both tables hold the settings
    (`voxstrata_words`) and the store's description (`voxstrata`) in their schema's metadata.
    """

    table: pa.Table
    pairs: pa.Table
    settings: dict[str, Any]
    failures: dict[str, str]


def measure_words(
    entries: Sequence[Entry],
    model: ModelFolder,
    folder: Path,
    *,
    outputs: str | Sequence[str] = "all",
    near: float = NEAR,
    far: float = FAR,
    bootstrap: int = RESAMPLES,
    device: Device | None = None,
    threads: int | None = None,
    say: Callable[[str], None] = lambda _: None,
    speaking: Callable[[int, int], None] = lambda done, total: None,
    extracting: Reporter = SILENT,
) -> WordReport:
    """Speak the words (those of `read_word_list`) where they have no recordings, encode and compare them.

    Writes the spoken words and words.zarr, the store, to `folder`; a run that was cut short resumes there.

    Returns, for every output, similarity and kind of pair (see `make_pairs`), one row over all pairs of languages and
    one for each: the AUC of how much closer than random pairs of the same two languages the pairs are, with a bootstrap
    interval over meanings (`auc`). The rows without output are controls, in the same form: what closeness in phonetic
    distance (`phonetic`), or in the logarithm of the duration (`duration`), would give alone.

    Raises UsageError and InputError, before anything is spoken, for outputs the model lacks, a language without a
    voice, a list that gives no pairs; after the encoding, when too few recordings could be read.
    """
    if bootstrap < 0:
        raise UsageError(f"bootstrap is {bootstrap}; give a number of resamples, or 0 for no intervals")
    select_outputs(outputs, model.card.outputs)
    voices = voices_needed(entries)
    say(f"IPA of {len(entries)} words")
    entries = with_ipa(entries, voices)
    sets = make_pairs(entries, near, far)
    spoken = sum(not word.paths for word in entries)
    if spoken:
        say(f"speaking {spoken} words by espeak-ng")
    make_writable(folder)
    corpus, owners = word_corpus(entries, folder, voices, speaking)
    say(f"extracting {len(corpus)} recordings")
    found = extract(
        corpus, model, folder / "words.zarr", StoreSpec(outputs), Runtime(device or Device(), threads), extracting
    )
    say("comparing")
    store = open_store(folder / "words.zarr")
    settings = {
        "words": len(entries),
        "languages": list(dict.fromkeys(word.language for word in entries)),
        "near": near,
        "near_distance": sets.near,
        "far": far,
        "far_distance": sets.far,
        "distance": f"panphon feature_edit_distance, equal weights, normalize {NORMALIZE}",
        "bootstrap": bootstrap,
        "spoken": {**asdict(SPEAKER), "voices": voices} if spoken else None,
        "tools": tools() if voices else {},
    }
    owner_of = dict(zip(corpus.table["id"].to_pylist(), owners, strict=True))
    return compare_words(store, entries, owner_of, sets, settings, bootstrap, found.failures)


def compare_words(
    store: EmbeddingStore,
    entries: Sequence[Entry],
    owner_of: Mapping[str, int],
    sets: PairSets,
    settings: dict[str, Any],
    bootstrap: int = RESAMPLES,
    failures: Mapping[str, str] | None = None,
) -> WordReport:
    """The tables of `measure_words`, from a store of the words' recordings.

    owner_of: the word (place in `entries`) of each utterance id. A word's similarity to another is the mean over
    their recordings; words without a readable recording drop out of all pairs.
    """
    recordings = _recordings(store, owner_of, len(entries))
    readable = np.array([len(held) > 0 for held in recordings])
    pairs = [p.where(readable[p.x] & readable[p.y]) for p in sets.pairs]
    for kind in (*KINDS, RANDOM):
        if not any(len(p) for p in pairs if p.kind == kind):
            raise InputError(
                f"no {kind.replace('_', '-')} pairs are left: {int((~readable).sum())} of {len(entries)} words have no "
                "recording that can be read; mend the recordings, or add words"
            )
    meanings = np.array([word.meaning for word in entries])
    resamples = Resamples(meanings[readable], bootstrap) if bootstrap else None
    groups = [np.stack([meanings[p.x], meanings[p.y]], axis=1) for p in pairs]
    rows: list[dict[str, Any]] = []
    columns: dict[str, Matrix] = {}
    seconds = _log_seconds(store, recordings)
    controls = {
        "phonetic": [-p.distance.astype(np.float64) for p in pairs],
        "duration": [-np.abs(seconds[p.x] - seconds[p.y]) for p in pairs],
    }
    for control, scores in controls.items():
        rows += _rows(None, control, pairs, groups, scores, resamples)
    columns["duration"] = np.concatenate(controls["duration"])
    for output in store.outputs:
        for similarity, scores in _scores(store, output, recordings, pairs).items():
            rows += _rows(output, similarity, pairs, groups, scores, resamples)
            columns[f"{output} {similarity}"] = np.concatenate(scores)
    about = {KEY: json.dumps(settings, ensure_ascii=False), "voxstrata": json.dumps(store.about)}
    table = pa.Table.from_pylist(rows, schema=AUC_SCHEMA).replace_schema_metadata(about)
    listed = _pair_table(entries, pairs, columns).replace_schema_metadata(about)
    return WordReport(table, listed, settings, dict(failures or {}))


def _recordings(store: EmbeddingStore, owner_of: Mapping[str, int], words: int) -> list[list[int]]:
    """Indices in the store of each word's readable recordings."""
    held: list[list[int]] = [[] for _ in range(words)]
    for i, name in enumerate(store.ids):
        if store.status[i] == 1:
            held[owner_of[name]].append(i)
    return held


def _log_seconds(store: EmbeddingStore, recordings: Sequence[Sequence[int]]) -> Matrix:
    """Mean over a word's recordings of the logarithm of their seconds, NaN without any; (words,)."""
    seconds = store.utterances["seconds"].to_numpy()
    return np.array([np.log(seconds[list(held)]).mean() if held else math.nan for held in recordings])


def _scores(
    store: EmbeddingStore, output: str, recordings: Sequence[Sequence[int]], pairs: Sequence[WordPairs]
) -> dict[str, list[Matrix]]:
    """Similarity of every pair, for each of SIMILARITIES."""
    sides: dict[str, tuple[npt.NDArray[np.int64], Ragged, npt.NDArray[np.int64]]] = {}
    for language in dict.fromkeys(language for p in pairs for language in p.languages):
        members = [of for p in pairs for of, its in zip((p.x, p.y), p.languages, strict=True) if its == language]
        words = np.unique(np.concatenate(members))
        index = [i for word in words for i in recordings[word]]
        rows, offsets = store.ragged(output, index)
        starts = np.concatenate([[0], np.cumsum([len(recordings[word]) for word in words])[:-1]])
        sides[language] = words, Ragged(rows, offsets, [store.ids[i] for i in index]), starts.astype(np.int64)
    scores: dict[str, list[Matrix]] = {name: [] for name in SIMILARITIES}
    matrices: dict[tuple[str, str], dict[str, Matrix]] = {}
    for p in pairs:
        (xs, x, x_starts), (ys, y, y_starts) = (sides[language] for language in p.languages)
        if p.languages not in matrices:
            found = {"seqsim_f1": seqsim(x, y).f1, "pooled_cosine": pooled_cosine(mean_pool(x), mean_pool(y))}
            matrices = {p.languages: {name: _word_means(m, x_starts, y_starts) for name, m in found.items()}}
        at = np.searchsorted(xs, p.x), np.searchsorted(ys, p.y)
        for name, matrix in matrices[p.languages].items():
            scores[name].append(matrix[at])
    return scores


def _word_means(
    matrix: npt.NDArray[np.float32], x_starts: npt.NDArray[np.int64], y_starts: npt.NDArray[np.int64]
) -> Matrix:
    """Means over the recordings of two words: (recordings, recordings) to (words, words) float64."""
    sums = np.add.reduceat(np.add.reduceat(matrix.astype(np.float64), x_starts, axis=0), y_starts, axis=1)
    x_counts = np.diff(x_starts, append=matrix.shape[0])
    y_counts = np.diff(y_starts, append=matrix.shape[1])
    means: Matrix = sums / (x_counts[:, None] * y_counts)
    return means


def _rows(
    output: str | None,
    similarity: str,
    pairs: Sequence[WordPairs],
    groups: Sequence[npt.NDArray[np.str_]],
    scores: Sequence[Matrix],
    resamples: Resamples | None,
) -> list[dict[str, Any]]:
    """Rows of one (output, similarity): both kinds, over all languages and for every two."""
    scored = {(p.kind, p.languages): Scored(v, g) for p, g, v in zip(pairs, groups, scores, strict=True)}
    languages = list(dict.fromkeys(p.languages for p in pairs))
    rows = []
    for kind in KINDS:
        for a, b, both in [(ALL, ALL, languages), *((*two, [two]) for two in languages)]:
            strata = [(scored[kind, two], scored[RANDOM, two]) for two in both]
            used = [(s, r) for s, r in strata if len(s.values) and len(r.values)]
            found = auc(strata, resamples) if used else AUC(math.nan, math.nan, math.nan)
            rows.append(
                {
                    "output": output,
                    "similarity": similarity,
                    "kind": kind,
                    "language_a": a,
                    "language_b": b,
                    "auc": _known(found.value),
                    "low": _known(found.low),
                    "high": _known(found.high),
                    "chance": 0.5,
                    "pairs": sum(len(s.values) for s, _ in used),
                    "random_pairs": sum(len(r.values) for _, r in used),
                    "meanings": len({str(name) for s, _ in used for name in s.groups.ravel()}),
                }
            )
    return rows


def _pair_table(entries: Sequence[Entry], pairs: Sequence[WordPairs], columns: Mapping[str, Matrix]) -> pa.Table:
    """A row per pair: kind, both words, phonetic distance, and scores ("layer_06 seqsim_f1")."""
    names: dict[str, Any] = {"kind": [p.kind for p in pairs for _ in range(len(p))]}
    for side in ("a", "b"):
        words = [entries[i] for p in pairs for i in (p.x if side == "a" else p.y)]
        names |= {
            f"language_{side}": [word.language for word in words],
            f"form_{side}": [word.form for word in words],
            f"meaning_{side}": [word.meaning for word in words],
            f"ipa_{side}": [word.ipa for word in words],
        }
    names["phonetic_distance"] = np.concatenate([p.distance for p in pairs])
    return pa.table({**names, **columns})


def _known(value: float) -> float | None:
    return None if math.isnan(value) else float(value)
