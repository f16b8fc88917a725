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
from voxstrata.exporters.pytorch import queries_keys_values
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
    pair: list[torch.Tensor] = []  # keys and values, added up over the last _NEW_RUNS: all runs are twice as large
    found = []
    run = 0
    for i, bucket in enumerate(buckets):
        reporter.progress(Progress("silence cache", i, len(buckets), "buckets"))
        longest = bucket - FRAMES_PER_SECOND
        before, new = (buckets[i - 1] - FRAMES_PER_SECOND, _NEW_RUNS) if i else (0, RUNS)
        total, pair = pair, []
        for left, frames in zip(
            range(new - 1, -1, -1), np.linspace(before, longest, new + 1)[1:].astype(int), strict=True
        ):
            features = checkpoint.features(_speech(sounds, run, int(frames) * SAMPLES_PER_FRAME))
            query, *kv = queries_keys_values(checkpoint.encoder, features)
            asked.append(Queries.sample(query[:, :, :bucket], kv[0], QUERIES // RUNS))
            total = _added(total, kv)
            if left < _NEW_RUNS:
                pair = _added(pair, kv)
            del query, kv  # not to be held while the next run is made
            run += 1
        found.append(_condensed(total, Queries.of(asked), bucket, groups))
        del total
    k, v, bias = (np.stack(parts) for parts in zip(*found, strict=True))
    return BucketSilence(np.array(buckets, np.int64), k, v, bias)


def _condensed(
    total: Sequence[torch.Tensor], queries: Queries, bucket: int, groups: int
) -> tuple[NDArray[np.float16], NDArray[np.float16], NDArray[np.float32]]:
    """Keys, values and bias of a bucket. total: keys and values added up over RUNS runs.

    Layer by layer: what condensing copies, of all layers of a large model, would be gigabytes.
    """
    layers = []
    for k in range(len(total[0])):
        key, value = (t[k : k + 1, :, bucket:] / RUNS for t in total)
        keys = condense(PaddedRuns(key, value, queries.of_layer(k), {}), groups)[0].for_frames(bucket)
        layers.append(_filled(keys, groups))
    key16, value16 = (
        np.concatenate([getattr(keys, part).astype(np.float16) for keys in layers]) for part in ("key", "value")
    )
    return key16, value16, np.concatenate([keys.bias for keys in layers])


def _added(sums: list[torch.Tensor], more: list[torch.Tensor]) -> list[torch.Tensor]:
    """The sums with one more added, in place; of nothing a copy."""
    return [s.add_(t) for s, t in zip(sums, more, strict=True)] if sums else [t.clone() for t in more]


def _speech(sounds: Sequence[NDArray[np.float32]], run: int, samples: int) -> NDArray[np.float32]:
    """The recordings one after another, again and again, beginning with one that is another in every run."""
    begin = run % len(sounds)
    return np.resize(np.concatenate([*sounds[begin:], *sounds[:begin]]), samples)


def _filled(keys: SilenceKeys, groups: int) -> SilenceKeys:
    """With as many keys as `groups`: the last groups may be empty."""
    more = [(0, 0), (0, 0), (0, groups - keys.bias.shape[2])]
    k, v = (np.pad(a, [*more, (0, 0)]) for a in (keys.key, keys.value))
    return SilenceKeys(k, v, np.pad(keys.bias, more, constant_values=EMPTY_GROUP_LOGIT))
