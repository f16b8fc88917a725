"""A corpus in two made-up languages, and encoders that hold one thing each: meaning, sound, speaker or duration."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from stores import MadeUpStore

from voxstrata.corpus import Corpus
from voxstrata.corpus.table import CORPUS_SCHEMA
from voxstrata.studies.phonetics.measure import measure_phonetics

GROUPS, SPEAKERS = 160, 4
SEGMENTS = tuple("pbtdkɡmnszʃfvxlrjwaeiouyəɛɔ")


@dataclass(frozen=True)
class Planted:
    """store: outputs "meaning", "sound", "speaker", "duration". phonetics: folder of its distances."""

    store: MadeUpStore
    phonetics: str

    def pooled(self) -> Planted:
        """The same with the mean of each utterance's frames for a frame: all that the pooled cosine sees."""
        every = np.arange(len(self.store.utterances))
        frames = {name: list(self.store.pooled(name, every)[:, None]) for name in self.store.outputs}
        return Planted(MadeUpStore(self.store.utterances.drop(["status"]), frames), self.phonetics)


def plant(folder: Path, seed: int, shuffled: bool = False) -> Planted:
    """GROUPS sentences in languages a and b. Every speaker reads the same sentences in both. Translations are of like
    length. Of five sentences two share 20 to 80 % of their segments with their translation; two sound unlike it,
    and one like the translation of another sentence.

    shuffled: translations are matched at random, in store and phonetics alike.
    """
    rng = np.random.default_rng(seed)
    first = [rng.integers(len(SEGMENTS), size=n) for n in rng.integers(10, 45, GROUPS)]
    second = []
    for g, segments in enumerate(first):
        # groups 4, 9, 14, … are false friends in a ring: g sounds like the translation of g - 5
        like, share = (first[(g + 5) % GROUPS], 0.6) if g % 5 == 4 else (segments, rng.uniform(0.2, 0.8) * (g % 5 < 2))
        n = max(8, round(len(segments) * np.exp(0.12 * rng.standard_normal())))
        other = rng.integers(len(SEGMENTS), size=n)
        both = min(n, len(like))
        kept = rng.random(both) < share
        other[:both][kept] = like[:both][kept]
        second.append(other)
    sentences = {"a": [s.tolist() for s in first], "b": [s.tolist() for s in second]}
    d = 48
    meaning = rng.standard_normal((GROUPS, d))
    voice = rng.standard_normal((SPEAKERS, d))
    phone = rng.standard_normal((len(SEGMENTS), d))
    clock = rng.standard_normal((2, d))
    rows, frames = [], {name: [] for name in ("meaning", "sound", "speaker", "duration")}
    order = rng.permutation(GROUPS) if shuffled else np.arange(GROUPS)
    for language, texts in sentences.items():
        for g, text in enumerate(texts):
            group = int(order[g]) if language == "b" else g
            n = len(text)
            rows.append((f"{language}{g:02d}", language, f"g{group:02d}", f"s{g % SPEAKERS}", text))
            noise = rng.standard_normal((4, n, d)).astype(np.float32)
            angle = np.log(n / 8)  # 0 … 2
            frames["meaning"].append(meaning[g] + 7 * noise[0])
            frames["sound"].append(phone[text] + 0.5 * noise[1])
            frames["speaker"].append(voice[g % SPEAKERS] + 3 * noise[2])
            frames["duration"].append(np.cos(angle) * clock[0] + np.sin(angle) * clock[1] + 0.3 * noise[3])
    columns = {
        "id": [row[0] for row in rows],
        "path": [f"{row[0]}.wav" for row in rows],
        "language": [row[1] for row in rows],
        "group": [row[2] for row in rows],
        "text": [None] * len(rows),
        "speaker": [row[3] for row in rows],
    }
    table = pa.table(columns, schema=CORPUS_SCHEMA)
    given = {row[0]: " ".join(SEGMENTS[s] for s in row[4]) for row in rows}  # no word is long enough to count
    measure_phonetics(Corpus(Path("/"), table), folder, given=given)
    seconds = pa.array([len(row[4]) * 0.08 * rng.uniform(0.99, 1.01) for row in rows])  # no two alike
    store = MadeUpStore(
        table.append_column("seconds", seconds),
        {name: [f.astype(np.float32) for f in utterances] for name, utterances in frames.items()},
    )
    return Planted(store, str(folder))
