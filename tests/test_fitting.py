"""Softer exits: a planted relation is found, a layer that knows nothing stays bad, the last block stays as it is."""

from __future__ import annotations

import numpy as np
import pytest

from voxstrata.early_exit.fitting import Fit, Fitter, LastNorm, fit_arrays, fits_hash, fits_of_arrays, normalized

D, LAST = 12, 3
RNG = np.random.default_rng(1)
MATRIX, OFFSET = 2 * np.linalg.qr(RNG.standard_normal((D, D)))[0], RNG.standard_normal(D)
NORM = LastNorm(RNG.uniform(0.5, 2, D) * np.where(np.arange(D) % 4 == 0, -1, 1), RNG.standard_normal(D))


def states(n: int, seed: int) -> dict[int, np.ndarray]:
    """layer_0 says nothing of layer_3, layer_1 is an affine image of it, layer_2 is it in other scales."""
    rng = np.random.default_rng(seed)
    known = rng.standard_normal((n, D)) * np.linspace(1, 3, D) + 3
    scales = np.geomspace(0.01, 100, D)  # channels of very different size
    return {
        0: rng.standard_normal((n, D)),
        1: (known - OFFSET) @ np.linalg.inv(MATRIX) * scales,
        2: known * np.linspace(1, 5, D),
        LAST: known,
    }


def fitted(recordings: int = 20, frames: int = 200) -> dict[int, Fit]:
    fitter = Fitter([0, 1, 2, LAST], LAST, D)
    for n in range(recordings):
        fitter.add({k: v.astype(np.float32) for k, v in states(frames, n).items()}, n % 2)
    return fitter.fit(NORM)


def r2(y: np.ndarray, guess: np.ndarray, mean: np.ndarray) -> float:
    return float(1 - ((y - guess) ** 2).sum() / ((y - mean) ** 2).sum())


def test_a_planted_affine_relation_is_found() -> None:
    fit, new = fitted()[1], states(500, 99)
    assert np.allclose(fit.mapped(new[1]), new[LAST], atol=0.02 * new[LAST].std())
    scales = np.geomspace(0.01, 100, D)
    assert np.allclose(fit.matrix * scales[:, None], MATRIX, atol=0.02)
    assert r2(NORM(new[LAST]), NORM(fit.mapped(new[1])), fit.mean[1]) > 0.999


def test_a_layer_that_does_not_know_stays_bad() -> None:
    fit, new = fitted()[0], states(2000, 98)
    assert abs(r2(new[LAST], fit.mapped(new[0]), fit.mean[0])) < 0.02
    assert r2(NORM(new[LAST]), fit.refitted(new[0]), fit.mean[1]) < 0


def test_a_refitted_layernorm_gives_each_channel_its_usual_mean_and_deviation() -> None:
    fits = fitted()
    every = [states(200, n) for n in range(20)]
    usual = np.concatenate([NORM(s[LAST]) for s in every])
    for k in (0, 1, 2):
        got = np.concatenate([fits[k].refitted(s[k].astype(np.float32)) for s in every])
        assert np.allclose(got.mean(0), usual.mean(0), atol=1e-4)
        assert np.allclose(got.std(0), usual.std(0), rtol=1e-4)
        assert (np.sign(fits[k].scale) == np.sign(NORM.scale)).all()  # channels are not turned over


def test_both_are_the_identity_at_the_last_block() -> None:
    fitter = Fitter([2], LAST, D)
    for n in range(6):
        known = states(100, n)[LAST].astype(np.float32)
        fitter.add({2: known, LAST: known}, n % 2)  # a block 2 that changes nothing
    fit, new = fitter.fit(NORM)[2], states(50, 97)[LAST]
    assert np.allclose(fit.mapped(new), new, atol=1e-5)
    assert np.allclose(fit.refitted(new), NORM(new), atol=1e-4)


def test_with_few_frames_the_map_stays_near_the_identity_instead_of_fitting_noise() -> None:
    rng = np.random.default_rng(5)
    fitter = Fitter([0], LAST, D)
    for n in range(2):
        x = rng.standard_normal((D, D))
        fitter.add({0: x, LAST: x + rng.standard_normal((D, D))}, n)
    fit = fitter.fit(NORM)[0]
    assert fit.ridge >= 1
    assert np.abs(fit.matrix - np.eye(D)).max() < 0.5


def test_the_least_squares_are_numpys() -> None:
    """With the least λ and many frames: the map of numpy's lstsq on centred frames."""
    rng = np.random.default_rng(6)
    x = rng.standard_normal((3000, D)) + 2
    y = x @ MATRIX + OFFSET + 0.1 * rng.standard_normal((3000, D))
    fitter = Fitter([0], LAST, D)
    for n in range(2):
        fitter.add({0: x[n::2], LAST: y[n::2]}, n)
    fit = fitter.fit(NORM)[0]
    expected, *_ = np.linalg.lstsq(np.column_stack([x, np.ones(len(x))]), y, rcond=None)
    assert np.allclose(fit.matrix, expected[:D], atol=2e-3)
    assert np.allclose(fit.offset, expected[D], atol=1e-2)


def test_fits_are_saved_whole_and_known_by_their_hash() -> None:
    fits = fitted()
    again = fits_of_arrays(fit_arrays(fits))
    assert list(again) == [0, 1, 2]
    assert fits_hash(again) == fits_hash(fits)
    arrays = fit_arrays(fits)
    arrays["01.offset"] = arrays["01.offset"] + np.float32(1e-3)
    assert fits_hash(fits_of_arrays(arrays)) != fits_hash(fits)


def test_normalized_is_pytorchs_layernorm() -> None:
    torch = pytest.importorskip("torch")
    x = states(30, 96)[1]
    expected = torch.nn.functional.layer_norm(torch.from_numpy(x), (D,))
    assert np.allclose(normalized(x), expected.numpy())
