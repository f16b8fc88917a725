"""What else computes SeqSim's precision and recall of all pairs: each from equal-length sides (N, T, d), unit rows.

Every function takes x and y as float32 arrays and returns a call that gives precision and recall, (N, M) each. What can
be prepared once (packing, conversion, compilation) is outside that call. Where a library has one direction only it is
called twice. None is asked for a tensor of all pairs: that would be gigabytes.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch

Call = Callable[[], tuple[Any, Any]]


def torch_einsum(x: np.ndarray, y: np.ndarray, threads: int) -> Call:
    """One utterance of x with all of y at a time."""
    a, b = torch.from_numpy(x), torch.from_numpy(y)

    def call() -> tuple[Any, Any]:
        precision, recall = [], []
        for one in a:
            s = torch.einsum("td,mud->mtu", one, b)
            precision.append(s.amax(2).mean(1))
            recall.append(s.amax(1).mean(1))
        return torch.stack(precision), torch.stack(recall)

    return call


def jax_jit(x: np.ndarray, y: np.ndarray, threads: int) -> Call:
    """The same under one jit; XLA takes as many threads as the process has cores."""
    import jax
    import jax.numpy as jnp

    @jax.jit
    def both(a: Any, b: Any) -> Any:
        def one(u: Any) -> tuple[Any, Any]:
            s = jnp.einsum("td,mud->mtu", u, b)
            return s.max(2).mean(1), s.max(1).mean(1)

        return jax.lax.map(one, a)

    a, b = jnp.asarray(x), jnp.asarray(y)
    return lambda: jax.block_until_ready(both(a, b))


def maxsim_fast(x: np.ndarray, y: np.ndarray, threads: int) -> Call:
    """Twice: each utterance as the query of all of the other side."""
    from maxsim_fast import maxsim_scores

    def call() -> tuple[Any, Any]:
        precision = np.array([maxsim_scores(u, y) for u in x]) / x.shape[1]
        recall = np.array([maxsim_scores(v, x) for v in y]).T / y.shape[1]
        return precision, recall

    return call


def numkong(x: np.ndarray, y: np.ndarray, threads: int) -> Call:
    """Twice, pair by pair, on threads; its score is a sum of angular distances, of candidates screened in int8."""
    from numkong import maxsim_pack, maxsim_packed

    a, b = ([maxsim_pack(u, dtype="float32") for u in side] for side in (x, y))

    def call() -> tuple[Any, Any]:
        with ThreadPoolExecutor(threads) as pool:
            precision = list(pool.map(lambda u: [maxsim_packed(u, v) for v in b], a))
            recall = list(pool.map(lambda v: [maxsim_packed(v, u) for u in a], b))
        return 1 - np.array(precision) / x.shape[1], 1 - np.array(recall).T / y.shape[1]

    return call


def faiss_knn(x: np.ndarray, y: np.ndarray, threads: int) -> Call:
    """Twice: all frames of one side against one utterance of the other, the nearest by inner product."""
    import faiss

    faiss.omp_set_num_threads(threads)

    def one_way(queries: np.ndarray, others: np.ndarray) -> np.ndarray:
        n, t, d = queries.shape
        flat = queries.reshape(n * t, d)
        best = [faiss.knn(flat, v, 1, metric=faiss.METRIC_INNER_PRODUCT)[0].reshape(n, t).mean(1) for v in others]
        return np.stack(best, axis=1)

    return lambda: (one_way(x, y), one_way(y, x).T)


def bert_score_core(x: np.ndarray, y: np.ndarray, threads: int) -> Call:
    """`greedy_cos_idf`, one utterance of x with all of y as a batch; its masks are all ones, its weights equal."""
    from bert_score.utils import greedy_cos_idf

    a, b = torch.from_numpy(x), torch.from_numpy(y).clone()  # it scales its rows in place
    m = len(b)

    def ones(side: torch.Tensor) -> torch.Tensor:
        return torch.ones(m, side.shape[1])

    def call() -> tuple[Any, Any]:
        precision, recall = [], []
        for one in a:
            hypothesis = one.repeat(m, 1, 1)
            p, r, _ = greedy_cos_idf(b, ones(b), ones(b), hypothesis, ones(a), ones(a))
            precision.append(p)
            recall.append(r)
        return torch.stack(precision), torch.stack(recall)

    return call


PEERS: dict[str, Callable[[np.ndarray, np.ndarray, int], Call]] = {
    "torch einsum + amax": torch_einsum,
    "jax jit": jax_jit,
    "maxsim-fast, twice": maxsim_fast,
    "numkong, twice": numkong,
    "faiss k = 1, twice": faiss_knn,
    "bert-score's core": bert_score_core,
}
