"""The table of a word comparison: its columns and the names in it."""

import pyarrow as pa

WORD_SIMILARITIES = ("seqsim_f1", "pooled_cosine")
PHONETIC_ALONE, DURATION_ALONE = "phonetic", "duration"
WORD_CONTROLS = (PHONETIC_ALONE, DURATION_ALONE)  # in the place of the similarity, of no output
WORD_FIELDS = ("language", "form", "meaning", "ipa")  # of each word of a pair: x_language, y_language, …
EVERY_LANGUAGE = "all"  # source and target of the rows over all pairs of languages

WORDS_SCHEMA = pa.schema(
    [(name, pa.string()) for name in ("output", "similarity", "kind", "source", "target")]
    + [(name, pa.float64()) for name in ("auc", "low", "high", "chance")]
    + [(name, pa.int64()) for name in ("pairs", "random_pairs", "meanings")]
)
