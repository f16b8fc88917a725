"""The silence cache: keys and values of the positions after the speech, and their condensed form.

In the 30 s window, speech attends to the silence after it. If the cache holds the keys and values that the silent
positions would have computed, these positions need not be computed, and attention is the same. Silent positions vary
little between recordings, so one cache serves all.

In the condensed form, the keys of a layer and head are grouped by k-means. A group becomes one key and one value, their
means. The logarithm of the group's size is added to the attention logit, because Σ exp(q·kᵢ) ≈ g · exp(q·k̄) for g
nearly equal keys.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from voxstrata.base.errors import InputError
from voxstrata.base.opening import load_arrays, open_regular
from voxstrata.encoders.context import DEFAULT_EDGES
from voxstrata.encoders.frames import WINDOW_FRAMES

# The logit of a group that has no member at positions ≥ m: exp() of it is exactly 0 in float16 and float32.
EMPTY_GROUP_LOGIT = -1e4
FIRST_CACHED = DEFAULT_EDGES[0]  # encoder frames: the shortest bucket is where cached positions begin


def check_groups(groups: int) -> None:
    """Raises InputError for a number of groups that a new cache cannot have; 0 is none, one key per position."""
    positions = WINDOW_FRAMES - FIRST_CACHED
    if not 0 <= groups <= positions:
        raise InputError(f"{groups} silence keys: choose 1 … {positions}, or 0 to keep all positions")


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

    def keys(self, frames: int) -> int:
        """How many keys per layer and head stand for the positions `frames` … 1499."""
        return WINDOW_FRAMES - frames if self.group is None or frames == WINDOW_FRAMES else int(self.group.max()) + 1

    def check(self, frames: int) -> None:
        """Raises InputError when the cache begins only after `frames`."""
        if frames < self.first:
            raise InputError(f"the silence cache begins at frame {self.first}, a bucket ends at {frames}")

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

    @classmethod
    def load(cls, path: Path, sizes: tuple[int, int, int] | None = None) -> Self:
        """Read what `save` wrote; sizes: the model's layers, heads and head_dim, which it must have.

        Raises InputError for a missing or damaged file.
        """
        try:
            with open_regular(path) as file:
                z = load_arrays(file)
            silence = cls(int(z["first"]), z["key"], z["value"], z.get("group"))
        except (OSError, TypeError, ValueError, KeyError) as e:
            raise InputError(f"{path}: not a readable silence cache ({e}); export the model again") from e
        silence._check(path, sizes)
        return silence

    def _check(self, path: Path, sizes: tuple[int, int, int] | None) -> None:
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
