"""Softer exits: a planted relation is found, a layer that knows nothing stays bad, the last block stays as it is."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from voxstrata.base.errors import InputError, UsageError
from voxstrata.early_exit.exits import EarlyExit, every_exit
from voxstrata.early_exit.fitting import Fit, Fitter, LastNorm, fits_hash, normalized
from voxstrata.early_exit.softer import Place, SofterExits, fit_softer

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


def test_fits_are_known_by_their_hash() -> None:
    fits = fitted()
    assert fits_hash(fits) == fits_hash(fitted())
    fits[1].offset[3] += 1e-3
    assert fits_hash(fits) != fits_hash(fitted())


def test_normalized_is_pytorchs_layernorm() -> None:
    torch = pytest.importorskip("torch")
    x = states(30, 96)[1]
    expected = torch.nn.functional.layer_norm(torch.from_numpy(x), (D,))
    assert np.allclose(normalized(x), expected.numpy())


def test_softer_exits_rank_below_the_models_own_and_the_last_block_has_none() -> None:
    exits = every_exit(2, [1, 2], ("with", "without", "mapped", "refitted"))
    names = [(at.after, at.norm) for at in exits]
    of_first = [(1, "mapped"), (1, "refitted"), (1, "without"), (1, "with")]
    assert names == [*of_first, (2, "without"), (2, "with")]
    assert every_exit(2, [1]) == (EarlyExit(1, "without"), EarlyExit(1), EarlyExit(2, "without"), EarlyExit(2))
    assert every_exit(2, [2], ["refitted"]) == (EarlyExit(2),)
    with pytest.raises(UsageError, match="unknown norm 'soft'; known: mapped, refitted"):
        every_exit(2, norms=["soft"])  # type: ignore[list-item]


ROWS = [Place(n, f"g{g}", "dev" if g < 8 else "test") for n in ("en", "es") for g in range(12)]


def softer(states_of: Callable[[int], dict[int, np.ndarray]]) -> SofterExits:
    about = {"checkpoint": "made-up", "corpus": "c", "failures": {}}
    return fit_softer(lambda rows: ((i, states_of(i)) for i in rows), ROWS, NORM, LAST, about, 50, 0)


def r2_of(result: SofterExits, language: str, after: int, norm: str) -> dict[str, Any]:
    (row,) = [r for r in result.table.to_pylist() if (r["language"], r["after"], r["norm"]) == (language, after, norm)]
    return row


def test_what_a_layer_knows_is_told_on_recordings_that_nothing_was_fitted_on() -> None:
    """Spanish test recordings are of another relation than those fitted on: only held-out figures can tell."""

    def states_of(i: int) -> dict[int, np.ndarray]:
        held = states(150, i)
        if ROWS[i][::2] == ("es", "test"):
            held[1] = np.random.default_rng(i).standard_normal((150, D)) * held[1].std(0) + held[1].mean(0)
        return held

    result = softer(states_of)
    assert r2_of(result, "en", 1, "mapped")["r2"] > 0.99
    assert r2_of(result, "en", 1, "mapped")["r2_layer"] > 0.99
    assert r2_of(result, "es", 1, "mapped")["r2"] < 0
    assert abs(r2_of(result, "en", 0, "mapped")["r2_layer"]) < 0.05
    assert r2_of(result, "en", 2, "with")["r2"] < r2_of(result, "en", 2, "mapped")["r2"]
    row = r2_of(result, "en", 1, "mapped")
    assert (row["recordings"], row["groups"], row["frames"]) == (4, 4, 600)
    assert row["low"] <= row["r2"] <= row["high"]
    both = [r2_of(result, n, 1, "mapped")["r2"] for n in ("en", "es")]
    assert r2_of(result, "all", 1, "mapped")["r2"] == pytest.approx(np.mean(both))


def test_r2_is_one_less_what_is_missed_counted_by_hand() -> None:
    result = softer(lambda i: states(150, i))
    test = [i for i, r in enumerate(ROWS) if r[::2] == ("en", "test")]
    dev = [i for i, r in enumerate(ROWS) if r.part == "dev"]
    usual = np.concatenate([NORM(states(150, i)[LAST].astype(np.float64)) for i in dev]).mean(0)
    y = np.concatenate([NORM(states(150, i)[LAST]) for i in test])
    given = np.concatenate([NORM(states(150, i)[0]) for i in test])
    assert r2_of(result, "en", 0, "with")["r2"] == pytest.approx(r2(y, given, usual), abs=1e-5)


def test_fits_are_saved_and_read_again_and_damage_is_named(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    result = softer(lambda i: states(50, i))
    result.save(tmp_path / "fits")
    again = SofterExits.load(tmp_path / "fits")
    assert fits_hash(again.fits) == fits_hash(result.fits) == again.settings["fits_sha256"]
    assert again.fits[1].matrix.shape == (D, D)
    assert max(len(line) for table in again.tables() for line in table.to_text().splitlines()) <= 80
    other = softer(lambda i: states(50, i + 1000))
    with pytest.raises(InputError, match="not what was fitted"):
        _ = SofterExits(again.table, other.fitted).fits


def test_one_group_is_too_little_to_fit_on() -> None:
    with pytest.raises(InputError, match="two groups"):
        fit_softer(lambda rows: ((i, states(5, i)) for i in rows[:1]), ROWS, NORM, LAST, {}, 50, 0)
