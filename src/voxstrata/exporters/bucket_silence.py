"""Make the silence cache bucket by bucket, from runs whose speech ends just before the bucket does.

Some silent positions become registers: their activation is massive, and much attention is paid to them. Which ones do
depends on where the speech ends. A cache from speech of other lengths lacks some of them; then frames of the speech
become registers themselves, and have little in common with what they are in the padded run. So every bucket has keys
from runs of its own lengths (docs/contexts.md has the figures).
"""

from collections import deque
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from voxstrata.base.progress import SILENT, Progress, Reporter
from voxstrata.encoders.frames import FRAMES_PER_SECOND, SAMPLE_RATE, SAMPLES_PER_FRAME
from voxstrata.encoders.silence import EMPTY_GROUP_LOGIT, BucketSilence, Silence, SilenceKeys, silence_buckets
from voxstrata.exporters.babble import babble
from voxstrata.exporters.checkpoint import Checkpoint
from voxstrata.exporters.pytorch import each_attention
from voxstrata.exporters.silence_cache import (
    QUERIES,
    PaddedRuns,
    Queries,
    Recordings,
    chosen_recordings,
    condense,
    listed,
    run_on_recordings,
    run_on_silence,
)

_NEW_RUNS = 2  # for each bucket
RUNS = 2 * _NEW_RUNS  # of which a bucket's keys are the mean: the last ones, of its own lengths and the bucket's before
BABBLES, BABBLE_SECONDS = 8, 4  # sounds that are made up for a pure cache, and their length

_Sums = dict[int, tuple[torch.Tensor, ...]]  # by layer the keys and values of runs added up, (heads, 1500, head_dim)


def make_silence(
    checkpoint: Checkpoint, recordings: Recordings | None, groups: int, reporter: Reporter = SILENT
) -> tuple[Silence | BucketSilence, dict[str, Any]]:
    """The cache that `export` writes, and what the card says of it.

    recordings: None for a pure cache: what stands before the silence is made up. groups: keys per layer, head and
    bucket; 0 keeps one key per position, which is one cache for all lengths, and if pure from silence alone.
    Raises InputError as `chosen_recordings` and `condense` do.
    """
    if not groups:
        runs = run_on_silence(checkpoint) if recordings is None else run_on_recordings(checkpoint, recordings, reporter)
        return condense(runs, 0)
    if recordings is None:
        sounds = [babble(seed, BABBLE_SECONDS * SAMPLE_RATE) for seed in range(BABBLES)]
        provenance: dict[str, Any] = {"kind": "pure", "before": f"{BABBLES} made-up sounds"}
    else:
        chosen = chosen_recordings(recordings)
        sounds = [audio for _, audio in chosen]
        provenance = {"kind": "calibrated", "recordings": listed(chosen)}
    silence = silence_by_bucket(checkpoint, sounds, groups, reporter)
    about = {"groups": groups, "first": silence.first, "buckets": silence.buckets.tolist(), "sha256": silence.sha256()}
    return silence, provenance | about


def silence_by_bucket(
    checkpoint: Checkpoint, sounds: Sequence[NDArray[np.float32]], groups: int, reporter: Reporter
) -> BucketSilence:
    """A cache from sounds at 16 kHz.

    groups: keys per layer, head and bucket, condensed as `condense` does. A bucket's keys are the mean, position by
    position, over RUNS padded runs, whose speech ends a second (the default tail) before the bucket does, or earlier.
    A run's speech begins with one of the sounds; as many as it takes to be long enough follow.
    Raises InputError as `condense` does.
    """
    buckets = silence_buckets()
    asked: deque[Queries] = deque(maxlen=RUNS)
    total: _Sums = {}
    pair: _Sums = {}  # over the last _NEW_RUNS
    found = []
    run = 0
    for i, bucket in enumerate(buckets):
        reporter.progress(Progress("silence cache", i, len(buckets), "buckets"))
        longest = bucket - FRAMES_PER_SECOND
        before, new = (buckets[i - 1] - FRAMES_PER_SECOND, _NEW_RUNS) if i else (0, RUNS)
        total, pair = pair, {}
        for left, frames in zip(
            range(new - 1, -1, -1), np.linspace(before, longest, new + 1)[1:].astype(int), strict=True
        ):
            features = checkpoint.features(_speech(sounds, run, int(frames) * SAMPLES_PER_FRAME))
            asked.append(_run(checkpoint, features, bucket, [total, pair] if left < _NEW_RUNS else [total]))
            run += 1
        found.append(_condensed(total, Queries.of(asked), bucket, groups))
    k, v, bias = (np.stack(parts) for parts in zip(*found, strict=True))
    return BucketSilence(np.array(buckets, np.int64), k, v, bias)


def _run(checkpoint: Checkpoint, features: torch.Tensor, bucket: int, sums: Sequence[_Sums]) -> Queries:
    """One padded run, whose keys and values are added to each of `sums`; returns queries of the bucket's positions.

    Layer by layer: those of all layers of a large model would be half a gigabyte more.
    """
    sampled = []

    def take(layer: int, query: torch.Tensor, *kv: torch.Tensor) -> None:
        sampled.append(Queries.sample(query[None, :, :bucket], kv[0][None], QUERIES // RUNS))
        for each in sums:
            if layer in each:
                for added_up, more in zip(each[layer], kv, strict=True):
                    added_up.add_(more)
            else:
                each[layer] = tuple(t.clone() for t in kv)

    each_attention(checkpoint.encoder, features, take)
    return Queries(torch.cat([q.query for q in sampled]), torch.cat([q.log_total for q in sampled]))


def _condensed(
    total: _Sums, queries: Queries, bucket: int, groups: int
) -> tuple[NDArray[np.float16], NDArray[np.float16], NDArray[np.float32]]:
    """Keys, values and bias of a bucket, from sums over RUNS runs; layer by layer as in `_run`."""
    layers = []
    for layer in range(len(total)):
        key, value = (t[None, :, bucket:] / RUNS for t in total[layer])
        keys = condense(PaddedRuns(key, value, queries.of_layer(layer), {}), groups)[0].for_frames(bucket)
        layers.append(_filled(keys, groups))
    key16, value16 = (
        np.concatenate([getattr(keys, part).astype(np.float16) for keys in layers]) for part in ("key", "value")
    )
    return key16, value16, np.concatenate([keys.bias for keys in layers])


def _speech(sounds: Sequence[NDArray[np.float32]], run: int, samples: int) -> NDArray[np.float32]:
    """The recordings one after another, again and again, beginning with one that is another in every run."""
    begin = run % len(sounds)
    return np.resize(np.concatenate([*sounds[begin:], *sounds[:begin]]), samples)


def _filled(keys: SilenceKeys, groups: int) -> SilenceKeys:
    """With as many keys as `groups`: the last groups may be empty."""
    more = [(0, 0), (0, 0), (0, groups - keys.bias.shape[2])]
    k, v = (np.pad(a, [*more, (0, 0)]) for a in (keys.key, keys.value))
    return SilenceKeys(k, v, np.pad(keys.bias, more, constant_values=EMPTY_GROUP_LOGIT))
