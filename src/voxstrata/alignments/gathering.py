"""The spans of all utterances that are aligned: which frames each takes, and what is left out."""

from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from voxstrata.alignments.matching import Matched
from voxstrata.alignments.tier import AlignedTier
from voxstrata.encoders.family import Family
from voxstrata.encoders.frames import SAMPLE_RATE

# Labels of silence and noise: Praat's and MFA's, Kaldi's, TIMIT's. Compared in lower case.
SILENCES = frozenset(["", "sil", "sp", "spn", "<eps>", "<sil>", "<silence>", "silence", "pau", "h#", "#", "<noise>"])
# What is counted of spans; `early` of alignments.
COUNTED = {
    "silences": "silences, left out",
    "untimed": "spans without times, left out",
    "cut": "spans cut by the ends of their utterances, left out",
    "clipped": "spans that reach beyond their utterances by no more than the tolerance, and end with them",
    "overlapping": "spans that overlap the one before, whose common frames go to both",
    "short": "spans that hold the middle of no frame, and have the nearest",
    "early": "alignments that end before their recordings by more than the tolerance",
}
# Samples by which spans overlap that do not: a CTM's begins and lengths are rounded to milliseconds, so that an end,
# their sum, lies up to 1.5 ms behind the next begin.
_ROUNDED = 24
_Int64 = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class AlignedRecordings:
    """Utterances of a store, as spans are cut from them. samples, rows: int64 (utterances,), at 16 kHz and stored.

    offset: float64 (utterances,), seconds at which each begins in its file. part: bool, whether it is less than that.
    """

    samples: _Int64
    rows: _Int64
    offset: NDArray[np.float64]
    part: NDArray[np.bool_]


@dataclass(eq=False)
class Spans:
    """Spans in the order of their utterances, then of time.

    parent: int64 (spans,), index of the utterance. number: its place in the utterance's tier, silences counted.
    begin, end: samples at 16 kHz from the utterance's beginning. labels: as written, without blanks at their ends.
    first, rows: of the utterance's rows. counts: what was left out or mended, by what it was.
    reasons: why an utterance has no spans, by index.
    """

    parent: _Int64
    number: _Int64
    begin: _Int64
    end: _Int64
    labels: pa.Array
    first: _Int64
    rows: _Int64
    counts: dict[str, int] = field(default_factory=dict)
    reasons: dict[int, str] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.parent)


def gather_spans(
    matched: Matched, tier: str, recordings: AlignedRecordings, family: Family, every: int, tolerance: float
) -> Spans:
    """The spans of a tier, cut to their utterances.

    A row belongs to the span in which the middle of what it sees lies, start included, end not; a span that reaches the
    end of its utterance has all that are left. A span without any takes the nearest row. tolerance: seconds by which
    spans may reach beyond an utterance. One that reaches farther is of another recording, it seems, and its utterance
    has none; a part of a file leaves out what is not all within it.
    """
    counts, margin = dict.fromkeys(COUNTED, 0), round(tolerance * SAMPLE_RATE)
    reasons, parts = dict(matched.reasons), list[tuple[int, _Int64, _Int64, _Int64]]()
    labels: list[str] = []
    for i in sorted(matched.of):
        alignment = matched.of[i]
        spans = alignment.tiers.get(tier)
        if spans is None:
            reasons[i] = f"no tier {tier!r} in {alignment.where}"
            continue
        counts["untimed"] += spans.untimed
        names = [label.strip() for label in spans.labels]
        number = np.flatnonzero([name.lower() not in SILENCES for name in names])
        counts["silences"] += len(names) - len(number)
        samples, part = int(recordings.samples[i]), bool(matched.of_files and recordings.part[i])
        if not part and alignment.seconds is not None:
            if alignment.seconds * SAMPLE_RATE > samples + margin:
                lengths = f"{alignment.seconds:.2f} s, the recording of {samples / SAMPLE_RATE:.2f} s"
                reasons[i] = f"its alignment is of {lengths}: another one, it seems ({alignment.where})"
                continue
            counts["early"] += alignment.seconds * SAMPLE_RATE < samples - margin
        shift = float(recordings.offset[i]) if part else 0.0
        found = _within(spans, number, samples, shift, part, margin, counts)
        if isinstance(found, str):
            reasons[i] = f"{found} ({alignment.where})"
        elif not len(found[0]):
            reasons[i] = f"nothing is spoken in its tier {tier!r} ({alignment.where})"
        else:
            parts.append((i, *found))
            labels += [names[n] for n in found[0].tolist()]
    parent = np.repeat(np.array([p[0] for p in parts], np.int64), [len(p[1]) for p in parts])
    number, begin, end = map(np.concatenate, zip(*(p[1:] for p in parts), strict=True)) if parts else (parent,) * 3
    of_parent = parent << 40  # samples of an utterance are fewer
    reached = np.maximum.accumulate(of_parent + end)[:-1]
    counts["overlapping"] = int((of_parent[1:] + begin[1:] + _ROUNDED < reached).sum())
    first, rows, short = rows_of(begin, end, recordings.samples[parent], recordings.rows[parent], family, every)
    counts["short"] = int(short.sum())
    return Spans(parent, number, begin, end, pa.array(labels, pa.string()), first, rows, counts, reasons)


def _within(
    spans: AlignedTier, number: _Int64, samples: int, shift: float, part: bool, margin: int, counts: dict[str, int]
) -> tuple[_Int64, _Int64, _Int64] | str:
    """Numbers, begins and ends, in samples, of the spans that lie in an utterance; or why it has none.

    shift: seconds before the utterance that times count. part: spans may be of its neighbours in the file.
    """
    begin, end = (
        np.rint((times[number] - shift) * SAMPLE_RATE).astype(np.int64) for times in (spans.starts, spans.ends)
    )
    if part:
        own = (begin + end >= 0) & (begin + end < 2 * samples)
        whole = (begin >= -margin) & (end <= samples + margin)
        counts["cut"] += int((own & ~whole).sum())
        number, begin, end = (values[own & whole] for values in (number, begin, end))
    elif len(beyond := np.flatnonzero(end > samples + margin)):
        n = int(beyond[0])
        label, over = spans.labels[int(number[n])], (int(end[n]) - samples) / SAMPLE_RATE
        return f"{label.strip()!r} ends {over:.2f} s after the end: an alignment of another recording, it seems"
    counts["clipped"] += int(((begin < 0) | (end > samples)).sum())
    begin = np.clip(begin, 0, samples - 1)
    return number, begin, np.clip(end, begin + 1, samples)  # a sample at the least: nothing has no length


def rows_of(
    begin: _Int64, end: _Int64, samples: _Int64, rows: _Int64, family: Family, every: int
) -> tuple[_Int64, _Int64, NDArray[np.bool_]]:
    """The first row of each span, how many it takes, and whether it is shorter than to hold the middle of one.

    begin, end: samples from the beginning of its utterance, which has so many `samples` and `rows`.
    """
    hop = family.hop * every
    centre = family.first_centre + (every - 1) / 2 * family.hop
    first, last = (np.ceil((edge - centre) / hop).astype(np.int64) for edge in (begin, end))
    last = np.minimum(np.where(end >= samples, rows, last), rows)
    first = np.clip(first, 0, rows)
    short = last <= first
    nearest = np.clip(np.rint(((begin + end) / 2 - centre) / hop).astype(np.int64), 0, rows - 1)
    first = np.where(short, nearest, first)
    return first, np.where(short, 1, last - first), short
