"""Make the silence cache of a checkpoint, pure or calibrated on recordings, and condense it."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray

from voxstrata.audio.decode import decode
from voxstrata.base.errors import AudioError, InputError
from voxstrata.base.progress import SILENT, Progress, Reporter
from voxstrata.corpus import Corpus
from voxstrata.encoders.frames import FRAMES_PER_SECOND, SAMPLE_RATE, SAMPLES_PER_FRAME, WINDOW_FRAMES
from voxstrata.encoders.silence import FIRST_CACHED, Silence, check_groups
from voxstrata.exporters.checkpoint import Checkpoint
from voxstrata.exporters.pytorch import queries_keys_values

# Log-mel of silence lies between -1.5 (digital silence) and about 0 (after very loud speech): it is 8 decades of power
# below the loudest cell. One level in the middle serves as well as each utterance's own (benchmarks/silence.py).
PURE_LEVEL = -0.75
CALIBRATION_RECORDINGS = 16
# Calibration recordings are cut to lengths spread over this range. So also for early positions there are several
# recordings whose speech has ended by then.
CALIBRATION_SECONDS = (0.5, 9.0)
QUERIES = 480  # sampled per layer and head, over all recordings
_KMEANS_STEPS = 20

Recordings = Sequence[tuple[str, NDArray[np.float32]]]  # name, and samples at 16 kHz


@dataclass(frozen=True)
class Queries:
    """Queries of computed positions, sampled evenly from padded runs.

    query: float32 (layers, heads, queries, head_dim), with the scale of the logits. log_total: float32 (layers, heads,
    queries), the logarithm of the softmax's denominator over the 1500 keys of the query's own run.
    """

    query: torch.Tensor
    log_total: torch.Tensor

    @classmethod
    def sample(cls, query: torch.Tensor, key: torch.Tensor, count: int) -> Self:
        """`count` of a run's queries (layers, heads, n, head_dim). key: the run's (layers, heads, 1500, head_dim)."""
        query = query[:, :, torch.linspace(0, query.shape[2] - 1, count).long()]
        # layer by layer, because all logits of a large model would be gigabytes
        total = [(q @ k.transpose(-1, -2)).logsumexp(-1) for q, k in zip(query, key, strict=True)]
        return cls(query, torch.stack(total))

    @classmethod
    def of(cls, several: Sequence[Self]) -> Self:
        """All of several runs."""
        return cls(torch.cat([q.query for q in several], 2), torch.cat([q.log_total for q in several], 2))

    def of_layer(self, layer: int) -> Self:
        """One layer's, as the only one."""
        return type(self)(self.query[layer : layer + 1], self.log_total[layer : layer + 1])

    def attention(self, key: torch.Tensor) -> torch.Tensor:
        """Mean softmax weight of each key (layers, heads, n, head_dim) over the queries: (layers, heads, n)."""
        by_layer = zip(self.query, key, self.log_total, strict=True)  # as in `sample`
        return torch.stack([(q @ k.transpose(-1, -2) - total[..., None]).exp().mean(1) for q, k, total in by_layer])

    def metric(self) -> torch.Tensor:
        """M (layers, heads, head_dim, head_dim): |(k - c) M|² is the mean square of q·k - q·c over the queries q."""
        moment = self.query.transpose(-1, -2) @ self.query / self.query.shape[2]
        values, vectors = torch.linalg.eigh(moment)
        return vectors * values.clamp(min=0).sqrt()[..., None, :]


@dataclass(frozen=True)
class PaddedRuns:
    """What a cache is made from.

    key, value: float32 (layers, heads, positions, head_dim), of the last positions of the window. queries: of the
    speech before them. provenance: what the card says of their origin.
    """

    key: torch.Tensor
    value: torch.Tensor
    queries: Queries
    provenance: dict[str, Any]

    @property
    def first(self) -> int:
        """The first of the positions."""
        return WINDOW_FRAMES - int(self.key.shape[2])


def run_on_silence(checkpoint: Checkpoint, level: float = PURE_LEVEL) -> PaddedRuns:
    """One run on silence at log-mel `level`."""
    log_mel = torch.full((1, checkpoint.shape.n_mels, 2 * WINDOW_FRAMES), level)
    query, key, value = queries_keys_values(checkpoint.encoder, log_mel)
    provenance = {"kind": "pure", "pad_level": level}
    key, value, queries = key[:, :, FIRST_CACHED:], value[:, :, FIRST_CACHED:], Queries.sample(query, key, QUERIES)
    return PaddedRuns(key, value, queries, provenance)


def calibration_recordings(corpus: Corpus, reporter: Reporter) -> Recordings:
    """The beginnings of evenly spaced recordings of a corpus, by id; `reporter` is warned of those not decodable."""
    longest = round(CALIBRATION_SECONDS[1] * SAMPLE_RATE)  # all that is used of a recording
    ids = corpus.table["id"].to_pylist()
    found = []
    for i in np.linspace(0, len(corpus) - 1, min(len(corpus), 2 * CALIBRATION_RECORDINGS)).astype(int):
        try:
            found.append((str(ids[i]), decode(corpus.recording(int(i)))[:longest].copy()))
        except AudioError as e:
            reporter.warn(f"not calibrated on {e}")
    return found


def run_on_recordings(checkpoint: Checkpoint, recordings: Recordings, reporter: Reporter = SILENT) -> PaddedRuns:
    """Mean keys and values, position by position, over padded runs of recordings, and the queries of their speech.

    Of the recordings at most CALIBRATION_RECORDINGS are used, evenly spaced. Each is cut short and padded. Position p
    is averaged over those that ended a second (the default tail) or more before p. The positions up to there are the
    ones that an extraction computes, so their queries are sampled.
    Raises InputError when fewer than two recordings last half a second.
    """
    shortest, longest = (round(s * FRAMES_PER_SECOND) for s in CALIBRATION_SECONDS)
    chosen = chosen_recordings(recordings)
    cuts = np.linspace(shortest, longest, len(chosen)).astype(int)
    total: list[torch.Tensor] = []
    count = torch.zeros(WINDOW_FRAMES)
    asked = []
    for done, ((_, audio), cut) in enumerate(zip(chosen, cuts, strict=True)):
        reporter.progress(Progress("calibrating", done, len(chosen), "recordings"))
        frames = min(int(cut), len(audio) // SAMPLES_PER_FRAME)
        features = checkpoint.features(audio[: frames * SAMPLES_PER_FRAME])
        begin = frames + FRAMES_PER_SECOND
        count[begin:] += 1
        query, *kv = queries_keys_values(checkpoint.encoder, features)
        asked.append(Queries.sample(query[:, :, :begin], kv[0], -(-QUERIES // len(chosen))))
        total = total or [torch.zeros_like(t) for t in kv]
        for t, new in zip(total, kv, strict=True):
            t[:, :, begin:] += new[:, :, begin:]
    key, value = (t[:, :, FIRST_CACHED:] / count[FIRST_CACHED:, None] for t in total)
    return PaddedRuns(key, value, Queries.of(asked), {"kind": "calibrated", "recordings": listed(chosen)})


def chosen_recordings(recordings: Recordings) -> Recordings:
    """At most CALIBRATION_RECORDINGS, evenly spaced, of those that last half a second.

    Raises InputError when these are fewer than two.
    """
    usable = [r for r in recordings if len(r[1]) >= CALIBRATION_SECONDS[0] * SAMPLE_RATE]
    if len(usable) < 2:
        raise InputError(
            f"calibration needs at least 2 recordings of {CALIBRATION_SECONDS[0]} s or more, found {len(usable)}"
        )
    return [usable[i] for i in np.linspace(0, len(usable) - 1, min(len(usable), CALIBRATION_RECORDINGS)).astype(int)]


def listed(recordings: Recordings) -> list[dict[str, str]]:
    """Names and hashes, for the card."""
    used = [(name, np.ascontiguousarray(audio, "<f4").tobytes()) for name, audio in recordings]
    return [{"name": name, "sha256": hashlib.sha256(samples).hexdigest()} for name, samples in used]


def condense(runs: PaddedRuns, groups: int) -> tuple[Silence, dict[str, Any]]:
    """A cache with `groups` keys per layer and head, or all if 0, and what the card says of it.

    A key that stands for others makes an error: the difference of their logits. It matters as much as attention is paid
    to the key. So k-means groups the keys with the attention they receive as weights, and with the mean square of the
    difference of logits as distance. Both are taken over the sampled queries.
    Raises InputError for more groups than positions, and for values beyond float16.
    """
    check_groups(groups)
    key, value = (t.numpy().astype(np.float16) for t in (runs.key, runs.value))
    if not (np.isfinite(key).all() and np.isfinite(value).all()):
        raise InputError("the silence cache holds values beyond float16; this checkpoint's encoder is not usable")
    group = None
    if groups:
        points, weight = runs.key @ runs.queries.metric(), runs.queries.attention(runs.key)
        found = [kmeans(p, w, groups) for p, w in zip(points, weight, strict=True)]
        group = torch.stack(found).numpy().astype(np.int16)
    silence = Silence(runs.first, key, value, group)
    return silence, runs.provenance | {"groups": groups, "first": runs.first, "sha256": silence.sha256()}


def kmeans(points: torch.Tensor, weight: torch.Tensor, groups: int) -> torch.Tensor:
    """Lloyd's k-means of points (heads, positions, dim) with weights (heads, positions), for each head on its own.

    Returns the group of each point (heads, positions). It starts from evenly spaced positions, so that the same points
    always give the same groups.
    """
    heads, positions, dim = points.shape
    centres = points[:, torch.linspace(0, positions - 1, groups).long()].clone()
    weight = weight / weight.mean(-1, keepdim=True)
    for _ in range(_KMEANS_STEPS):
        nearest = torch.cdist(points, centres).argmin(-1)
        size = torch.zeros(heads, groups).scatter_add_(1, nearest, weight)
        index = nearest[..., None].expand(-1, -1, dim)
        total = torch.zeros_like(centres).scatter_add_(1, index, points * weight[..., None])
        centres = torch.where(size[..., None] > 0, total / size[..., None], centres)
    return torch.cdist(points, centres).argmin(-1)
