"""Softer exits, fitted on states of the development part without a gradient: a refitted LayerNorm, and an affine map.

They tell "the decoder cannot read this layer" from "the layer does not know": what a LayerNorm of its own, or the best
affine map, brings back was there, in another form. x_k is a frame of layer_k, (d,); z(x) = (x - mean(x)) / std(x) over
its channels, as every LayerNorm has it; LN(x) = g·z(x) + b is the encoder's last one, and L its last block.

refitted: g'·z(x_k) + b', with g' and b' such that each channel has over the development part the mean and the standard
deviation that the decoder is used to, those of LN(x_L): g'_c = g_c · std(z(x_L)_c) / std(z(x_k)_c), and
b'_c = mean(LN(x_L)_c) - g'_c · mean(z(x_k)_c). Statistics of a trained normalisation, taken anew where the data are
others: Li et al. 2016, "Revisiting Batch Normalization for Practical Domain Adaptation" (arXiv 1603.04779).

mapped: LN(x_k + W x_k + c), with W (d, d) and c (d,) minimising Σ ‖x_L - x_k - W x_k - c‖² + λ Σ_ij v_j W_ij², v_j the
sum of squares of channel j of x_k about its mean: the translator of the tuned lens (Belrose et al. 2023, arXiv
2303.08112), which begins at the identity, too, in closed form: by least squares where they train by KL divergence. λ is
the one of RIDGES that predicts one half of the development part's groups best from the other (mean over channels).

Both leave states as they are at k = L. Frames are those of the speech, as stores hold them.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

RIDGES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0, 100.0)
FOLDS = 2  # of the development part's groups
EPSILON = 1e-5  # of Whisper's LayerNorms

_Floats = npt.NDArray[np.float64]
_States = npt.NDArray[np.floating[Any]]


@dataclass(frozen=True, eq=False)
class LastNorm:
    """The encoder's last LayerNorm: scale and bias, (d,)."""

    scale: _Floats
    bias: _Floats

    def __call__(self, states: _States) -> _Floats:
        """(frames, d) → (frames, d)."""
        return normalized(states) * self.scale + self.bias


def normalized(states: _States) -> _Floats:
    """z of each frame: (frames, d) float64 with mean 0 and variance 1 over the channels."""
    x = states.astype(np.float64)
    x -= x.mean(axis=1, keepdims=True)
    return np.asarray(x / np.sqrt((x**2).mean(axis=1, keepdims=True) + EPSILON))


@dataclass(frozen=True, eq=False)
class Fit:
    """What was fitted for one layer, float32.

    scale, bias: g' and b', (d,). matrix: (d, d), the transpose of 1 + W; offset: c, (d,): x_k @ matrix + offset is near
    x_L. ridge: λ, (). mean: x_L's and LN(x_L)'s over the development part, (2, d).
    """

    scale: npt.NDArray[np.float32]
    bias: npt.NDArray[np.float32]
    matrix: npt.NDArray[np.float32]
    offset: npt.NDArray[np.float32]
    ridge: npt.NDArray[np.float32]
    mean: npt.NDArray[np.float32]

    def refitted(self, states: _States) -> _Floats:
        """(frames, d) of layer_k → what the decoder gets."""
        return normalized(states) * self.scale + self.bias

    def mapped(self, states: _States) -> _Floats:
        """(frames, d) of layer_k → as near to layer_L as the map comes; the LayerNorm is still to follow."""
        return states.astype(np.float64) @ self.matrix + self.offset


Fits = Mapping[int, Fit]  # by layer k < L


def fits_hash(fits: Fits) -> str:
    """SHA-256 of all values."""
    h = hashlib.sha256()
    for k, fit in sorted(fits.items()):
        for name, value in vars(fit).items():
            h.update(f"{k} {name} {value.shape}\n".encode() + value.astype("<f4").tobytes())
    return h.hexdigest()


class _Sums:
    """Sums over frames x of one layer; y is what layer L has more than they, z what LayerNorms make of x."""

    def __init__(self, d: int) -> None:
        self.n = 0
        self.x, self.y, self.yy, self.z, self.zz = (np.zeros(d) for _ in range(5))
        self.gram, self.cross = np.zeros((d, d)), np.zeros((d, d))

    def add(self, states: _States, last: _States) -> None:
        x = states.astype(np.float64)
        y, z = last - x, normalized(states)
        self.n += len(x)
        for held, values in ((self.x, x), (self.y, y), (self.yy, y**2), (self.z, z), (self.zz, z**2)):
            held += values.sum(axis=0)
        self.gram += x.T @ x
        self.cross += x.T @ y

    def __add__(self, other: "_Sums") -> "_Sums":
        both = _Sums(len(self.x))
        for name, value in vars(self).items():
            setattr(both, name, value + getattr(other, name))
        return both

    def moments(self) -> tuple[_Floats, _Floats]:
        """Mean and standard deviation of z, (d,) each."""
        mean = self.z / self.n
        return mean, np.sqrt(np.maximum(self.zz / self.n - mean**2, np.finfo(float).tiny))

    def solve(self, ridge: float) -> tuple[_Floats, _Floats]:
        """W, transposed, and c."""
        gram = self.gram - np.outer(self.x, self.x) / self.n
        cross = self.cross - np.outer(self.x, self.y) / self.n
        # channels of one size: some of Whisper's are a thousand times as large as others
        root = np.sqrt(np.maximum(np.diag(gram), np.finfo(float).tiny))
        scaled = gram / np.outer(root, root) + ridge * np.eye(len(root))
        weights = np.linalg.solve(scaled, cross / root[:, None]) / root[:, None]
        return weights, (self.y - self.x @ weights) / self.n

    def missed(self, weights: _Floats, offset: _Floats) -> _Floats:
        """Sums of squares of what a map leaves of y, (d,)."""
        fitted = (weights * (self.gram @ weights)).sum(axis=0)
        both = (weights * (self.cross - np.outer(self.x, offset))).sum(axis=0)
        return np.asarray(self.yy - 2 * offset * self.y + self.n * offset**2 - 2 * both + fitted)


class Fitter:
    """Takes states recording by recording, and fits what is fitted for the layers `blocks` of an encoder of `layers`.

    Memory: FOLDS · 16 · d² bytes for each layer, whatever the number of frames.
    """

    def __init__(self, blocks: Sequence[int], layers: int, d: int) -> None:
        self._last = layers
        self._sums = {k: [_Sums(d) for _ in range(FOLDS)] for k in sorted({*blocks} - {layers})}
        self._of_last = _Sums(d)

    def add(self, states: Mapping[int, _States], fold: int) -> None:
        """The frames of one recording: layer to (frames, d), the last among them. fold: which half it is of."""
        last = states[self._last].astype(np.float64)
        for k, sums in self._sums.items():
            sums[fold].add(states[k], last)
        self._of_last.n += len(last)
        z = normalized(last)
        for held, values in ((self._of_last.x, last), (self._of_last.z, z), (self._of_last.zz, z**2)):
            held += values.sum(axis=0)

    def fit(self, norm: LastNorm) -> dict[int, Fit]:
        """What was fitted for each layer but the last."""
        last_mean, last_std = self._of_last.moments()
        usual = norm.scale * last_mean + norm.bias
        means = np.stack([self._of_last.x / self._of_last.n, usual])
        found = {}
        for k, folds in self._sums.items():
            whole = folds[0] + folds[1]
            mean, std = whole.moments()
            scale = norm.scale * last_std / std
            ridge = _best_ridge(folds)
            weights, offset = whole.solve(ridge)
            values = scale, usual - scale * mean, weights + np.eye(len(weights)), offset, np.array(ridge), means
            found[k] = Fit(*(value.astype(np.float32) for value in values))
        return found


def _best_ridge(folds: Sequence[_Sums]) -> float:
    """The λ with the least squares missed, mean over channels, each to those of the channel; the largest of equals."""
    about = np.maximum(sum(f.yy - f.y**2 / f.n for f in folds), np.finfo(float).tiny)

    def missed(ridge: float) -> float:
        return float(np.mean(sum(folds[1 - i].missed(*folds[i].solve(ridge)) for i in range(FOLDS)) / about))

    return min(reversed(RIDGES), key=missed)
