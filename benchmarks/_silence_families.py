"""Ways to condense a silence cache, for benchmarks/silence.py: which positions share a key, and what that key is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from voxstrata.encoders.frames import WINDOW_FRAMES
from voxstrata.encoders.silence import EMPTY_GROUP_LOGIT, Silence, SilenceKeys
from voxstrata.exporters.silence_cache import PaddedRuns, condense, kmeans

# Positions after the bucket's edge where one band ends and the next, coarser one begins, and each band's share of keys.
BANDS = ((50, 0.25), (250, 0.25), (WINDOW_FRAMES, 0.5))

Grouping = Callable[[int], torch.Tensor]  # computed positions m to groups (layers, heads, 1500 - m)


@dataclass(frozen=True)
class AtEdge(Silence):
    """A cache condensed anew for every bucket. `group` is not None, so that the engine keeps what it got."""

    condense: Callable[[int], SilenceKeys]

    def for_frames(self, frames: int) -> SilenceKeys:
        return super().for_frames(frames) if frames == WINDOW_FRAMES else self.condense(frames)


class Condenser:
    """Padded runs and the ways to condense them; each method gives a cache of `groups` keys or somewhat fewer."""

    def __init__(self, runs: PaddedRuns) -> None:
        self.runs = runs
        self.whole = condense(runs, 0)[0]
        self.key = torch.from_numpy(self.whole.key.astype(np.float32))
        self.value = torch.from_numpy(self.whole.value.astype(np.float32))
        self.attention = runs.queries.attention(self.key)
        self.points = self.key @ runs.queries.metric()

    def _cache(self, grouping: Grouping, *, fitted: bool = False) -> Silence:
        """The cache of a grouping. Plain: means of keys and of values, the logarithm of the count.

        Fitted: means weighted by attention received, and the logit that gives each group, over the queries, the
        attention that its members received.
        """

        def condense(frames: int) -> SilenceKeys:
            begin = frames - self.whole.first
            group = grouping(frames)
            a = self.attention[:, :, begin:] if fitted else torch.ones(group.shape)
            shape = (*group.shape[:2], int(group.max()) + 1)
            weight = torch.zeros(shape).scatter_add_(2, group, a)

            def mean(t: torch.Tensor) -> torch.Tensor:
                index = group[..., None].expand(*group.shape, t.shape[-1])
                total = torch.zeros(*shape, t.shape[-1]).scatter_add_(2, index, t[:, :, begin:] * a[..., None])
                return total / weight[..., None].clamp(min=1e-30)

            key, value = mean(self.key), mean(self.value)
            bias = weight.clamp(min=1e-30).log()
            if fitted:
                bias -= self.runs.queries.attention(key).clamp(min=1e-30).log()
            bias[weight == 0] = EMPTY_GROUP_LOGIT
            return SilenceKeys(key.numpy(), value.numpy(), bias.numpy())

        w = self.whole
        return AtEdge(w.first, w.key, w.value, np.zeros(w.key.shape[:3], np.int16), condense)

    def _kmeans(self, points: torch.Tensor, groups: int, weight: torch.Tensor | None = None) -> Grouping:
        """k-means over all cached positions, of which every bucket takes those that it needs."""
        weight = torch.ones(points.shape[:3]) if weight is None else weight
        group = torch.stack([kmeans(p, w, groups) for p, w in zip(points, weight, strict=True)])
        return lambda frames: group[:, :, frames - self.whole.first :]

    def contiguous(self, size: int) -> Silence:
        """Every `size` neighbouring positions, counted from the end of the window."""
        return self._cache(lambda frames: self._all_heads(torch.arange(WINDOW_FRAMES - frames).flip(0) // size))

    def geometric(self, groups: int) -> Silence:
        """Runs of neighbours whose length grows by a constant factor with the distance from the bucket's edge."""

        def grouping(frames: int) -> torch.Tensor:
            n = WINDOW_FRAMES - frames
            ends = np.unique(np.rint(np.geomspace(1, n, groups)).astype(int))  # the shortest runs hold one position
            return self._all_heads(torch.from_numpy(np.searchsorted(ends, np.arange(n), side="right")))

        return self._cache(grouping)

    def _all_heads(self, group: torch.Tensor) -> torch.Tensor:
        return group.expand(*self.key.shape[:2], -1).contiguous()

    def package(self, groups: int) -> Silence:
        """What the package does: k-means by the error of the logits, weighted by attention received."""
        return condense(self.runs, groups)[0]

    def keys(self, groups: int) -> Silence:
        """k-means of keys."""
        return self._cache(self._kmeans(self.key, groups))

    def weighted(self, groups: int) -> Silence:
        """k-means of keys, weighted by attention received."""
        return self._cache(self._kmeans(self.key, groups, self.attention))

    def unweighted(self, groups: int) -> Silence:
        """k-means by the error of the logits, every position alike."""
        return self._cache(self._kmeans(self.points, groups))

    def with_values(self, groups: int) -> Silence:
        """The package's k-means of keys and values, each scaled to the same variance per head."""
        share = (self.attention / self.attention.sum(2, keepdim=True))[..., None]
        both = [t - (t * share).sum(2, keepdim=True) for t in (self.points, self.value)]
        both = [t / (t.square() * share).sum((2, 3), keepdim=True).sqrt() for t in both]
        return self._cache(self._kmeans(torch.cat(both, -1), groups, self.attention))

    def fitted(self, groups: int) -> Silence:
        """The package's groups, condensed by attention received."""
        return self._cache(self._kmeans(self.points, groups, self.attention), fitted=True)

    def each_bucket(self, groups: int) -> Silence:
        """The package's k-means, made for every bucket from its own positions."""
        return self._cache(lambda frames: self._band(frames, WINDOW_FRAMES, groups))

    def banded(self, groups: int) -> Silence:
        """The package's k-means within bands of distance from the bucket's edge, more keys per position near it."""

        def grouping(frames: int) -> torch.Tensor:
            parts, begin, made = [], frames, 0
            for reach, share in BANDS:
                end = min(frames + reach, WINDOW_FRAMES)
                if begin < end:
                    count = min(round(share * groups), end - begin)
                    parts.append(self._band(begin, end, count) + made)
                    begin, made = end, made + count
            return torch.cat(parts, 2)

        return self._cache(grouping)

    def _band(self, begin: int, end: int, groups: int) -> torch.Tensor:
        """Groups of the positions begin … end - 1."""
        cut = slice(begin - self.whole.first, end - self.whole.first)
        by_layer = zip(self.points[:, :, cut], self.attention[:, :, cut], strict=True)
        return torch.stack([kmeans(p, w, min(groups, end - begin)) for p, w in by_layer])
