"""Linear CKA against its definitions: Gram matrices, sums over all quadruples, all matchings."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from voxstrata.base.errors import InputError
from voxstrata.evaluation import linear_cka
from voxstrata.evaluation.cka import group_means


def gram_cka(x: np.ndarray, y: np.ndarray) -> float:
    """By n × n Gram matrices and the centring matrix H, as in the paper's definition of HSIC."""
    n = len(x)
    h = np.eye(n) - 1 / n
    k, m = h @ (x @ x.T) @ h, h @ (y @ y.T) @ h
    return float(np.trace(k @ m) / math.sqrt(np.trace(k @ k) * np.trace(m @ m)))


def unbiased_hsic(k: np.ndarray, m: np.ndarray) -> float:
    """The U-statistic over all ordered quadruples of different rows (Song et al. 2012, equation 3)."""
    n = len(k)
    total = sum(k[i, j] * (m[i, j] + m[q, r] - 2 * m[i, q]) for i, j, q, r in itertools.permutations(range(n), 4))
    return float(total) / (n * (n - 1) * (n - 2) * (n - 3))


@pytest.mark.parametrize(("n", "d", "e"), [(5, 3, 3), (7, 20, 4), (30, 8, 50), (2, 3, 3)])
def test_cka_equals_the_gram_matrix_form(n: int, d: int, e: int) -> None:
    rng = np.random.default_rng(n)
    x, y = 5 + rng.standard_normal((n, d)), rng.standard_normal((n, e))
    assert linear_cka(x, y).value == pytest.approx(gram_cka(x, y), rel=1e-9)
    assert linear_cka(x, y).rows == n


def test_debiased_cka_equals_the_sums_over_all_quadruples() -> None:
    rng = np.random.default_rng(1)
    x = 3 + rng.standard_normal((7, 5))
    y = x[:, :4] + 0.5 * rng.standard_normal((7, 4))
    k, m = x @ x.T, y @ y.T
    expected = unbiased_hsic(k, m) / math.sqrt(unbiased_hsic(k, k) * unbiased_hsic(m, m))
    assert linear_cka(x, y).debiased == pytest.approx(expected, rel=1e-9)


def test_chance_is_the_mean_over_all_matchings() -> None:
    rng = np.random.default_rng(2)
    x, y = rng.standard_normal((6, 4)), rng.standard_normal((6, 9))
    found = [linear_cka(x, y[list(order)]) for order in itertools.permutations(range(6))]
    assert found[0].chance == pytest.approx(np.mean([cka.value for cka in found]), rel=1e-9)
    assert np.mean([cka.debiased for cka in found]) == pytest.approx(0, abs=1e-9)


def test_unrelated_states_in_many_dimensions_look_alike_unless_debiased() -> None:
    rng = np.random.default_rng(3)
    cka = linear_cka(rng.standard_normal((50, 512)), rng.standard_normal((50, 512)))
    assert cka.value > 0.85
    assert abs(cka.debiased) < 0.1


def test_rotation_scale_and_shift_do_not_matter() -> None:
    rng = np.random.default_rng(4)
    x = rng.standard_normal((20, 6)).astype(np.float32)
    rotation = np.linalg.qr(rng.standard_normal((6, 6)))[0]
    cka = linear_cka(x, 7 * x @ rotation - 3)
    assert (cka.value, cka.debiased) == (pytest.approx(1), pytest.approx(1))


def test_where_there_is_no_cka() -> None:
    x = np.random.default_rng(5).standard_normal((3, 4))
    assert math.isnan(linear_cka(x, x).debiased)
    assert math.isnan(linear_cka(np.ones((5, 2)), np.ones((5, 2))).value)
    with pytest.raises(InputError, match="as many rows"):
        linear_cka(x, x[:2])
    with pytest.raises(InputError, match="as many rows"):
        linear_cka(x[:1], x[:1])
    x[1, 2] = np.nan
    with pytest.raises(InputError, match="NaN or infinite"):
        linear_cka(x, x)


def test_recordings_of_a_group_are_averaged() -> None:
    states = np.array([[1, 2], [3, 4], [5, 9]], np.float32)
    names, means = group_means(states, np.array(["b", "a", "b"]))
    assert names.tolist() == ["a", "b"]
    assert means.tolist() == [[3, 4], [3, 5.5]]
