"""Sound or meaning, word by word: are synonyms, or near-homophones, of two languages closer than random pairs?"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from voxstrata.alignments.grouping import word_of
from voxstrata.base.errors import InputError, UsageError
from voxstrata.base.folders import leaving_no_empty_folder, make_writable
from voxstrata.base.plain import counted
from voxstrata.base.progress import SILENT, Reporter
from voxstrata.base.result import STORE
from voxstrata.base.tables import known
from voxstrata.encoders import ModelFolder, open_model
from voxstrata.encoders.outputs import OutputChoice, select_outputs
from voxstrata.engine import Runtime, extract
from voxstrata.evaluation.bootstrap import RESAMPLES, Resamples
from voxstrata.evaluation.metrics import Float64
from voxstrata.evaluation.roc import AUC, Scored, auc
from voxstrata.phonology.ipa import tools
from voxstrata.retrieval.compare import Matrices, compare
from voxstrata.retrieval.kernels.base import Kernel, runs
from voxstrata.retrieval.kernels.float32 import Float32
from voxstrata.retrieval.pooled import mean_pool, pooled_cosine
from voxstrata.retrieval.selection import Selection
from voxstrata.store import EmbeddingStore, StoreSpec, open_store
from voxstrata.store.files import Files, root_attributes
from voxstrata.store.several import AnyStore
from voxstrata.studies.words.pairs import DIVISOR, FAR, NEAR, RANDOM_WORDS, WORD_KINDS, PairSets, WordPairs, make_pairs
from voxstrata.studies.words.result import FAILURES, WordComparison
from voxstrata.studies.words.table import (
    DURATION_ALONE,
    EVERY_LANGUAGE,
    WORD_CONTROLS,
    WORD_FIELDS,
    WORD_SIMILARITIES,
    WORDS_SCHEMA,
)
from voxstrata.studies.words.word_list import SPEAKER, Entry, read_word_list, voices_needed, with_ipa, word_corpus

_Int64 = npt.NDArray[np.int64]


@dataclass(frozen=True)
class WordOptions:
    """near, far: quantiles of the phonetic distance up to which words sound alike, from which on unlike (`make_pairs`).

    bootstrap: resamples of the meanings for the intervals; 0 for none.
    """

    near: float = NEAR
    far: float = FAR
    bootstrap: int = RESAMPLES

    def __post_init__(self) -> None:
        if self.bootstrap < 0:
            raise UsageError(f"bootstrap is {self.bootstrap}; give a number of resamples, or 0 for no intervals")


def measure_words(
    entries: Sequence[Entry] | str | Path,
    model: ModelFolder | AnyStore,
    out: str | Path,
    outputs: OutputChoice = "all",
    options: WordOptions | None = None,
    runtime: Runtime | None = None,
    reporter: Reporter = SILENT,
    overwrite: bool = False,
) -> WordComparison:
    """Speak the words of a list where they have no recordings, encode and compare them.

    entries: what `read_word_list` gives, or what it reads: a table's path, or "example". model: a model, or a store
    that `spans` made, by path or opened, whose words as they are spoken in sentences are compared: nothing is written
    then.

    Writes the spoken words and words.zarr, the store, to the folder `out`; a run that was cut short resumes there. The
    result is for the caller to save, there or elsewhere. overwrite: a store of other words, model or settings is
    replaced.

    Raises UsageError and InputError, before anything is spoken, for outputs the model lacks, a language without a
    voice, a list that gives no pairs; after the encoding, when too few recordings could be read.
    """
    options, folder = options or WordOptions(), Path(out)
    entries = read_word_list(entries) if isinstance(entries, str | Path) else entries
    if isinstance(model, EmbeddingStore) or (isinstance(model, str | Path) and _is_store(model)):
        return measure_spoken_words(entries, open_store(model), outputs, options, reporter)
    model = open_model(model)
    names = select_outputs(outputs, model.card.outputs)
    voices = voices_needed(entries)
    reporter.step(f"IPA of {counted(len(entries), 'word')}")
    entries = with_ipa(entries, voices)
    sets = make_pairs(entries, options.near, options.far)
    spoken = sum(not word.paths for word in entries)
    if spoken:
        reporter.step(f"speaking {counted(spoken, 'word')} by espeak-ng")
    with leaving_no_empty_folder(folder):
        make_writable(folder)
        corpus, owners = word_corpus(entries, folder, voices, reporter)
    reporter.step(f"extracting {counted(len(corpus), 'recording')}")
    where, what = folder / "words.zarr", (StoreSpec(names), runtime, reporter)
    try:
        found = extract(corpus, model, where, *what)
    except InputError:
        if not overwrite or not _is_store(where):
            raise
        with (files := Files(where)).lock():
            files.clear()
        found = extract(corpus, model, where, *what)
    reporter.step("comparing")
    store = open_store(where)
    settings = _settings(entries, sets, options)
    settings["spoken"] = {**asdict(SPEAKER), "voices": voices} if spoken else None
    settings["tools"] = tools() if voices else {}
    owner_of = dict(zip(corpus.table["id"].to_pylist(), owners, strict=True))
    return compare_words(store, entries, owner_of, sets, settings, options.bootstrap, found.failures)


def _is_store(path: str | Path) -> bool:
    return "voxstrata" in root_attributes(Files(path))


def measure_spoken_words(
    entries: Sequence[Entry],
    store: EmbeddingStore,
    outputs: OutputChoice = "all",
    options: WordOptions | None = None,
    reporter: Reporter = SILENT,
) -> WordComparison:
    """The same of words as they were spoken in sentences: `store` holds spans, of which those of a form and language of
    the list are its recordings. Words that it does not hold take no part.

    Raises UsageError for outputs that the store lacks, InputError for a list that gives no pairs of what it holds.
    """
    options, names = options or WordOptions(), select_outputs(outputs, store.outputs)
    place: dict[tuple[str, str], Entry] = {}
    for word in entries:
        if (held := place.setdefault((word.language, word_of(word.form)), word)) is not word:
            raise InputError(f"{held} and {word} are one word to spans; keep one meaning of it in the list")
    table = store.table(["id", "language", "text"])
    keys = [
        (language, word_of(text or ""))
        for language, text in zip(*map(pa.ChunkedArray.to_pylist, table.columns[1:]), strict=True)
    ]
    spoken = set(keys)
    said = [word for key, word in place.items() if key in spoken]
    if not said:
        raise InputError(f"{store.files.root}: none of the {len(entries)} words is spoken there, by language and form")
    voices = voices_needed([word for word in said if word.ipa is None])
    reporter.step(f"IPA of {counted(len(said), 'word')}")
    number = {(word.language, word_of(word.form)): n for n, word in enumerate(said)}
    owner_of = {name: number[key] for name, key in zip(store.ids, keys, strict=True) if key in number}
    said = with_ipa(said, voices)
    sets = make_pairs(said, options.near, options.far)
    reporter.step("comparing")
    settings = {**_settings(said, sets, options), "spoken": None, "tools": tools() if voices else {}}
    return compare_words(store, said, owner_of, sets, settings, options.bootstrap, outputs=names)


def _settings(entries: Sequence[Entry], sets: PairSets, options: WordOptions) -> dict[str, Any]:
    settings: dict[str, Any] = {"words": len(entries)}
    settings["languages"] = list(dict.fromkeys(word.language for word in entries))
    settings |= {"near": options.near, "near_distance": sets.near, "far": options.far, "far_distance": sets.far}
    settings["distance"] = f"panphon feature_edit_distance, equal weights, normalize {DIVISOR}"
    return settings | {"bootstrap": options.bootstrap}


def compare_words(
    store: EmbeddingStore,
    entries: Sequence[Entry],
    owner_of: Mapping[str, int],
    sets: PairSets,
    settings: dict[str, Any],
    bootstrap: int = RESAMPLES,
    failures: Mapping[str, str] | None = None,
    kernel: Kernel | None = None,
    outputs: Sequence[str] | None = None,
) -> WordComparison:
    """The result of `measure_words`, from a store of the words' recordings.

    owner_of: the word (place in `entries`) of each utterance id that is one. outputs: by default all that the store
    has. A word's similarity to another is the mean over their recordings; words without a readable recording drop out
    of all pairs. kernel: what compares frames; by default float32, as words are short and few. Frames are read in
    blocks of what it takes at once.
    """
    kernel = kernel or Float32()
    recordings = _recordings(store, owner_of, len(entries))
    readable = np.array([len(held) > 0 for held in recordings])
    pairs = [p.where(readable[p.x] & readable[p.y]) for p in sets.pairs]
    for kind in (*WORD_KINDS, RANDOM_WORDS):
        if not any(len(p) for p in pairs if p.kind == kind):
            raise InputError(
                f"no {kind.replace('_', '-')} pairs are left: {int((~readable).sum())} of {len(entries)} words have no "
                "recording that can be read; mend the recordings, or add words"
            )
    meanings = np.array([word.meaning for word in entries])
    resamples = Resamples(meanings[readable], bootstrap) if bootstrap else None
    groups = [np.stack([meanings[p.x], meanings[p.y]], axis=1) for p in pairs]
    rows: list[dict[str, Any]] = []
    seconds = _log_seconds(store, recordings)
    phonetic = [-p.distance.astype(np.float64) for p in pairs]
    duration = [-np.abs(seconds[p.x] - seconds[p.y]) for p in pairs]
    for control, scores in zip(WORD_CONTROLS, (phonetic, duration), strict=True):
        rows += _rows(None, control, pairs, groups, scores, resamples)
    columns = {DURATION_ALONE: np.concatenate(duration)}
    for output in store.outputs if outputs is None else outputs:
        for similarity, scores in _scores(store, output, recordings, pairs, kernel).items():
            rows += _rows(output, similarity, pairs, groups, scores, resamples)
            columns[f"{output} {similarity}"] = np.concatenate(scores)
    about = {WordComparison.key: json.dumps(settings, ensure_ascii=False), STORE: json.dumps(store.about)}
    listed = _pair_table(entries, pairs, columns).replace_schema_metadata(about)
    about[FAILURES] = json.dumps(dict(failures or {}), ensure_ascii=False)
    return WordComparison(pa.Table.from_pylist(rows, schema=WORDS_SCHEMA).replace_schema_metadata(about), listed)


def _recordings(store: EmbeddingStore, owner_of: Mapping[str, int], words: int) -> list[list[int]]:
    """Indices in the store of each word's readable recordings."""
    held: list[list[int]] = [[] for _ in range(words)]
    for i, name in enumerate(store.ids):
        if store.status[i] == 1 and name in owner_of:
            held[owner_of[name]].append(i)
    return held


def _log_seconds(store: EmbeddingStore, recordings: Sequence[Sequence[int]]) -> Float64:
    """Mean over a word's recordings of the logarithm of their seconds, NaN without any; (words,)."""
    seconds = store.utterances["seconds"].to_numpy()
    return np.array([np.log(seconds[list(held)]).mean() if held else math.nan for held in recordings])


@dataclass(frozen=True, eq=False)
class _Side:
    """Words of one language and their recordings, word by word.

    words: (n,) places in the word list, ascending. recordings: of all of them. starts: (n,) each word's first one.
    """

    words: _Int64
    recordings: Selection
    starts: _Int64

    @classmethod
    def of(cls, store: EmbeddingStore, words: _Int64, recordings: Sequence[Sequence[int]]) -> Self:
        index = np.array([i for word in words for i in recordings[word]], np.int64)
        starts = np.concatenate([[0], np.cumsum([len(recordings[word]) for word in words])[:-1]])
        return cls(words, Selection(store, index), starts.astype(np.int64))

    def pooled(self, output: str, frames: int) -> npt.NDArray[np.float32]:
        """Mean state of each recording, (recordings, d); at most so many frames are read at once."""
        blocks = runs(self.recordings.lengths, frames)
        return np.concatenate([mean_pool(self.recordings.ragged(output, i, j)) for i, j in blocks])


def _scores(
    store: EmbeddingStore, output: str, recordings: Sequence[Sequence[int]], pairs: Sequence[WordPairs], kernel: Kernel
) -> dict[str, list[Float64]]:
    """Similarity of every pair, for each of WORD_SIMILARITIES."""
    sides: dict[str, _Side] = {}
    pooled: dict[str, npt.NDArray[np.float32]] = {}
    for language in dict.fromkeys(language for p in pairs for language in p.languages):
        members = [of for p in pairs for of, its in zip((p.x, p.y), p.languages, strict=True) if its == language]
        sides[language] = _Side.of(store, np.unique(np.concatenate(members)), recordings)
        pooled[language] = sides[language].pooled(output, kernel.block_frames)
    scores: dict[str, list[Float64]] = {name: [np.empty(0)] * len(pairs) for name in WORD_SIMILARITIES}
    for languages in dict.fromkeys(p.languages for p in pairs):
        x, y = (sides[language] for language in languages)
        sink = Matrices(len(x.recordings), len(y.recordings))
        compare(x.recordings.frames(output), y.recordings.frames(output), kernel, sink)
        cosine = pooled_cosine(pooled[languages[0]], pooled[languages[1]])
        for name, matrix in zip(WORD_SIMILARITIES, (sink.seqsim().f1, cosine), strict=True):
            means = _word_means(matrix, x.starts, y.starts)
            for n, p in enumerate(pairs):
                if p.languages == languages:
                    scores[name][n] = means[np.searchsorted(x.words, p.x), np.searchsorted(y.words, p.y)]
    return scores


def _word_means(matrix: npt.NDArray[np.float32], x_starts: _Int64, y_starts: _Int64) -> Float64:
    """Means over the recordings of two words: (recordings, recordings) to (words, words) float64."""
    sums = np.add.reduceat(np.add.reduceat(matrix.astype(np.float64), x_starts, axis=0), y_starts, axis=1)
    x_counts = np.diff(x_starts, append=matrix.shape[0])
    y_counts = np.diff(y_starts, append=matrix.shape[1])
    return np.asarray(sums / (x_counts[:, None] * y_counts))


def _rows(
    output: str | None,
    similarity: str,
    pairs: Sequence[WordPairs],
    groups: Sequence[npt.NDArray[np.str_]],
    scores: Sequence[Float64],
    resamples: Resamples | None,
) -> list[dict[str, Any]]:
    """Rows of one (output, similarity): both kinds, over all languages and for every two."""
    scored = {(p.kind, p.languages): Scored(v, g) for p, g, v in zip(pairs, groups, scores, strict=True)}
    languages = list(dict.fromkeys(p.languages for p in pairs))
    rows = []
    for kind in WORD_KINDS:
        for a, b, both in [(EVERY_LANGUAGE, EVERY_LANGUAGE, languages), *((*two, [two]) for two in languages)]:
            strata = [(scored[kind, two], scored[RANDOM_WORDS, two]) for two in both]
            used = [(s, r) for s, r in strata if len(s.values) and len(r.values)]
            found = auc(strata, resamples) if used else AUC(math.nan, math.nan, math.nan)
            row: dict[str, Any] = {"output": output, "similarity": similarity, "kind": kind}
            row |= {"source": a, "target": b, "chance": 0.5}
            row |= {"auc": known(found.value), "low": known(found.low), "high": known(found.high)}
            row |= {name: sum(len(of[i].values) for of in used) for i, name in enumerate(("pairs", "random_pairs"))}
            rows.append(row | {"meanings": len({str(name) for s, _ in used for name in s.groups.ravel()})})
    return rows


def _pair_table(entries: Sequence[Entry], pairs: Sequence[WordPairs], columns: Mapping[str, Float64]) -> pa.Table:
    """A row per pair: kind, both words, phonetic distance, and scores ("layer_06 seqsim_f1")."""
    names: dict[str, Any] = {"kind": [p.kind for p in pairs for _ in range(len(p))]}
    for side in "xy":
        words = [entries[i] for p in pairs for i in getattr(p, side)]
        for field in WORD_FIELDS:
            names[f"{side}_{field}"] = [getattr(word, field) for word in words]
    names["phonetic_distance"] = np.concatenate([p.distance for p in pairs])
    return pa.table({**names, **columns})
