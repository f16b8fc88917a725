"""The silence cache: keys and values of the positions after the speech, and their condensed form.

In the 30 s window, speech attends to the silence after it. If the cache holds the keys and values that the silent
positions would have computed, these positions need not be computed, and attention is the same. Silent positions vary
little between recordings, so one cache serves all.

In the condensed form, the keys of a layer and head are grouped by k-means. A group becomes one key and one value, their
means. The logarithm of the group's size is added to the attention logit, because Σ exp(q·kᵢ) ≈ g · exp(q·k̄) for g
nearly equal keys.

What the silent positions compute depends on where the speech ends before them, above all which of them become
registers, whose activation is massive. A cache made for other lengths lacks some of them, and frames of the speech take
their part. So a cache may hold keys for each bucket apart, from runs whose speech ended just before the bucket's edge.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from voxstrata.base.errors import InputError
from voxstrata.base.opening import load_arrays, open_regular
from voxstrata.encoders.context import DEFAULT_EDGES
from voxstrata.encoders.frames import WINDOW_FRAMES

# The logit of a group that has no member at positions ≥ m: exp() of it is exactly 0 in float16 and float32.
EMPTY_GROUP_LOGIT = -1e4
FIRST_CACHED = DEFAULT_EDGES[0]  # encoder frames: the shortest bucket is where cached positions begin


def silence_buckets() -> tuple[int, ...]:
    """The numbers of computed positions for which a new cache has keys: all default edges but the full window."""
    return DEFAULT_EDGES[:-1]


def check_groups(groups: int) -> None:
    """Raises InputError for a number of groups that a new cache cannot have; 0 is none, one key per position."""
    positions = WINDOW_FRAMES - FIRST_CACHED
    if not 0 <= groups <= positions:
        raise InputError(f"{groups} silence keys: choose 1 … {positions}, or 0 to keep all positions")


def _check_first(first: int, frames: int) -> None:
    if frames < first:
        raise InputError(f"the silence cache begins at frame {first}, a bucket ends at {frames}")


@dataclass(frozen=True)
class SilenceKeys:
    """The cache as the graphs take it, for one number of computed positions.

    key, value: float32 (layers, heads, keys, head_dim). bias: float32 (layers, heads, keys), added to the logits.
    """

    key: NDArray[np.float32]
    value: NDArray[np.float32]
    bias: NDArray[np.float32]

    def feeds(self) -> dict[str, NDArray[np.float32]]:
        """By the names of the graphs' inputs."""
        return {"silence_key": self.key, "silence_value": self.value, "silence_bias": self.bias}


@dataclass(frozen=True)
class Silence:
    """Cached keys and values of the positions first … 1499.

    key, value: float16 (layers, heads, 1500 - first, head_dim).
    group: int16 (layers, heads, 1500 - first), the group of each position; None when the cache is not condensed.
    """

    first: int
    key: NDArray[np.float16]
    value: NDArray[np.float16]
    group: NDArray[np.int16] | None

    @property
    def condensed(self) -> bool:
        """Whether a bucket's keys are few."""
        return self.group is not None

    def keys(self, frames: int) -> int:
        """How many keys per layer and head stand for the positions `frames` … 1499."""
        return WINDOW_FRAMES - frames if self.group is None or frames == WINDOW_FRAMES else int(self.group.max()) + 1

    def check(self, frames: int) -> None:
        """Raises InputError when the cache begins only after `frames`."""
        _check_first(self.first, frames)

    def for_frames(self, frames: int) -> SilenceKeys:
        """Keys and values that stand for the positions `frames` … 1499. Raises InputError as `check` does."""
        self.check(frames)
        k, v = (a[:, :, frames - self.first :].astype(np.float32) for a in (self.key, self.value))
        if self.group is None or frames == WINDOW_FRAMES:  # nothing to condense, or no key at all
            return SilenceKeys(k, v, np.zeros(k.shape[:3], np.float32))
        group = self.group[:, :, frames - self.first :]
        layers, heads, _, dim = k.shape
        groups = self.keys(frames)
        # one segment sum over all (layer, head, group) triples at once
        flat = (np.arange(layers * heads).reshape(layers, heads, 1) * groups + group).ravel()
        order = np.argsort(flat, kind="stable")
        size = np.bincount(flat, minlength=layers * heads * groups)
        full = np.flatnonzero(size)
        begin = np.cumsum(size[full]) - size[full]
        shape = (layers, heads, groups)

        def mean(a: NDArray[np.float32]) -> NDArray[np.float32]:
            out = np.zeros((layers * heads * groups, dim), np.float32)
            out[full] = np.add.reduceat(a.reshape(-1, dim)[order], begin, axis=0) / size[full, None]
            return out.reshape(*shape, dim)

        bias = np.full(layers * heads * groups, EMPTY_GROUP_LOGIT, np.float32)
        bias[full] = np.log(size[full])
        return SilenceKeys(mean(k), mean(v), bias.reshape(shape))

    def sha256(self) -> str:
        """Hash of everything in the cache; stored with every embedding made with it."""
        h = hashlib.sha256(str(self.first).encode())
        for a in (self.key, self.value, self.group):
            if a is not None:
                h.update(np.ascontiguousarray(a).tobytes())
        return h.hexdigest()

    def save(self, path: Path) -> None:
        """Write an .npz file of plain arrays, without pickles."""
        group: dict[str, Any] = {} if self.group is None else {"group": self.group}
        np.savez(path, first=self.first, key=self.key, value=self.value, **group)

    def check_sizes(self, path: Path, sizes: tuple[int, int, int] | None) -> None:
        """Raises InputError, which names `path`, unless all arrays fit each other and the model's `sizes`."""
        key, value, group = self.key, self.value, self.group
        layers, heads, _, dim = key.shape if key.ndim == 4 else (0, 0, 0, 0)
        if not 0 <= self.first <= WINDOW_FRAMES or key.ndim != 4 or key.shape[2] != WINDOW_FRAMES - self.first:
            raise InputError(f"{path}: the silence cache does not reach frame {WINDOW_FRAMES}; export again")
        fits = key.shape == value.shape and key.dtype == value.dtype and key.dtype in (np.float16, np.float32)
        if group is not None:  # the group of a position, by which memory is made
            fits &= group.shape == key.shape[:3] and group.dtype == np.int16
            fits = fits and (not group.size or 0 <= int(group.min()) <= int(group.max()) < WINDOW_FRAMES)
        if not fits or sizes not in (None, (layers, heads, dim)):
            raise InputError(f"{path}: a silence cache of another model, or damaged; export the model again")


@dataclass(frozen=True)
class BucketSilence:
    """Condensed keys and values for each of several numbers of computed positions, the buckets.

    buckets: int64 (buckets,), ascending. key, value: float16 (buckets, layers, heads, groups, head_dim). bias: float32
    (buckets, layers, heads, groups), the logarithms of the groups' sizes.
    """

    buckets: NDArray[np.int64]
    key: NDArray[np.float16]
    value: NDArray[np.float16]
    bias: NDArray[np.float32]
    condensed: ClassVar[bool] = True

    @property
    def first(self) -> int:
        """The least number of computed positions."""
        return int(self.buckets[0])

    def keys(self, frames: int) -> int:
        """How many keys per layer and head stand for the positions `frames` … 1499."""
        return 0 if frames == WINDOW_FRAMES else self.key.shape[3]

    def check(self, frames: int) -> None:
        """Raises InputError when the cache begins only after `frames`."""
        _check_first(self.first, frames)

    def for_frames(self, frames: int) -> SilenceKeys:
        """Keys and values that stand for the positions `frames` … 1499. Raises InputError as `check` does.

        Between buckets those of the nearest one, their sizes scaled to the positions that are left.
        """
        self.check(frames)
        nearest = int(np.abs(self.buckets - frames).argmin())
        keys = self.keys(frames)
        k, v = (a[nearest, :, :, :keys].astype(np.float32) for a in (self.key, self.value))
        left = (WINDOW_FRAMES - frames) / (WINDOW_FRAMES - int(self.buckets[nearest]))
        bias = self.bias[nearest, :, :, :keys]
        return SilenceKeys(k, v, bias if left in (0, 1) else bias + np.float32(np.log(left)))

    def sha256(self) -> str:
        """Hash of everything in the cache; stored with every embedding made with it."""
        h = hashlib.sha256()
        for a in (self.buckets, self.key, self.value, self.bias):
            h.update(np.ascontiguousarray(a).tobytes())
        return h.hexdigest()

    def save(self, path: Path) -> None:
        """Write an .npz file of plain arrays, without pickles."""
        np.savez(path, buckets=self.buckets, key=self.key, value=self.value, bias=self.bias)

    def check_sizes(self, path: Path, sizes: tuple[int, int, int] | None) -> None:
        """Raises InputError, which names `path`, unless all arrays fit each other and the model's `sizes`."""
        buckets, key, bias = self.buckets, self.key, self.bias
        fits = buckets.ndim == 1 and buckets.dtype == np.int64 and len(buckets) > 0 and key.ndim == 5
        fits = fits and buckets[0] >= 0 and bool((np.diff(buckets) > 0).all()) and buckets[-1] < WINDOW_FRAMES
        fits = fits and key.shape == self.value.shape and key.dtype == self.value.dtype == np.float16
        fits = fits and bias.shape == key.shape[:4] and bias.dtype == np.float32 and len(key) == len(buckets)
        if not fits or sizes not in (None, (*key.shape[1:3], key.shape[4])):
            raise InputError(f"{path}: a silence cache of another model, or damaged; export the model again")


def load_silence(path: Path, sizes: tuple[int, int, int] | None = None) -> Silence | BucketSilence:
    """Read what `save` of either form wrote; sizes: the model's layers, heads and head_dim, which it must have.

    Raises InputError for a missing or damaged file.
    """
    found: Silence | BucketSilence
    try:
        with open_regular(path) as file:
            z = load_arrays(file)
        if "buckets" in z:
            found = BucketSilence(z["buckets"], z["key"], z["value"], z["bias"])
        else:
            found = Silence(int(z["first"]), z["key"], z["value"], z.get("group"))
    except (OSError, TypeError, ValueError, KeyError) as e:
        raise InputError(f"{path}: not a readable silence cache ({e}); export the model again") from e
    found.check_sizes(path, sizes)
    return found
