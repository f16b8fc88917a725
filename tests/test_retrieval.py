"""Similarity, recall and the retrieval table."""

from __future__ import annotations

import itertools
import math
import tracemalloc
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from voxstrata.errors import InputError, UsageError
from voxstrata.retrieval import (
    Ragged,
    best_ranks,
    chance_at_k,
    evaluate_pair,
    mean_pool,
    mean_recall,
    pooled_cosine,
    positives_from_groups,
    recall_at_k,
    retrieve,
    seqsim,
    to_markdown,
    to_terminal,
)
from voxstrata.retrieval.kernels.float32 import Float32
from voxstrata.retrieval.seqsim import harmonic
from voxstrata.retrieval.table import depth_order

Utterances = list[npt.NDArray[np.floating]]
ROUNDING = 5e-6  # float32 cosines over d <= 40 and values of at most 1, with room to spare


def loop(xs: Utterances, ys: Utterances) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """SeqSim by definition: a float64 loop over pairs, frames and frames. Returns F1, precision, recall."""
    f1, precision, recall = (np.empty((len(xs), len(ys))) for _ in range(3))
    for i, x in enumerate(xs):
        for j, y in enumerate(ys):
            x64, y64 = x.astype(np.float64), y.astype(np.float64)
            cosines = [[float(a @ b) / math.sqrt(float(a @ a) * float(b @ b)) for b in y64] for a in x64]
            p = sum(max(row) for row in cosines) / len(x)
            r = sum(max(column) for column in zip(*cosines, strict=True)) / len(y)
            precision[i, j], recall[i, j] = p, r
            f1[i, j] = 2 * p * r / (p + r) if min(p, r) > 0 else min(p, r)
    return f1, precision, recall


@st.composite
def two_sides(draw: st.DrawFn) -> tuple[Utterances, Utterances, int]:
    """Two small sets of utterances and a block size; some all-negative, some of repeated or single frames."""
    d = draw(st.integers(1, 40))
    lengths = st.lists(st.one_of(st.just(1), st.integers(1, 40)), min_size=1, max_size=4)
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    dtype = draw(st.sampled_from([np.float16, np.float32]))
    kind = draw(st.sampled_from(["free", "opposed", "repeated"]))

    def utterance(frames: int, sign: float) -> npt.NDArray[np.floating]:
        x = rng.standard_normal((frames, d)) + 0.05 * np.sign(rng.standard_normal((frames, d)))
        if kind == "opposed":
            x = sign * (np.abs(x) + 0.1)
        if kind == "repeated":
            x[:] = x[0]
        return x.astype(dtype)

    xs = [utterance(frames, 1.0) for frames in draw(lengths)]
    ys = [utterance(frames, -1.0) for frames in draw(lengths)]
    return xs, ys, draw(st.sampled_from([1, 2, 7, 16, 64, 2048]))


@settings(max_examples=150, deadline=None)
@given(two_sides())
def test_seqsim_equals_a_float64_loop_at_any_block_size(sides: tuple[Utterances, Utterances, int]) -> None:
    xs, ys, block_rows = sides
    sim = seqsim(Ragged.from_list(xs), Ragged.from_list(ys), Float32(block_rows))
    for got, expected in zip((sim.f1, sim.precision, sim.recall), loop(xs, ys), strict=True):
        assert got.dtype == np.float32
        np.testing.assert_allclose(got, expected, rtol=0, atol=ROUNDING)


@settings(max_examples=40, deadline=None)
@given(two_sides())
def test_swapping_the_sides_swaps_precision_and_recall(sides: tuple[Utterances, Utterances, int]) -> None:
    x, y = Ragged.from_list(sides[0]), Ragged.from_list(sides[1])
    there, back = seqsim(x, y), seqsim(y, x)
    np.testing.assert_allclose(there.precision, back.recall.T, rtol=0, atol=1e-6)
    np.testing.assert_allclose(there.f1, back.f1.T, rtol=0, atol=1e-6)


def test_all_negative_cosines_are_not_lifted_to_zero() -> None:
    x, y = Ragged.from_list([np.ones((3, 4), np.float32)]), Ragged.from_list([-np.ones((2, 4), np.float32)])
    sim = seqsim(x, y)
    assert [sim.f1.item(), sim.precision.item(), sim.recall.item()] == pytest.approx([-1, -1, -1])


def test_utterances_longer_than_a_block_on_both_sides() -> None:
    rng = np.random.default_rng(1)
    xs, ys = ([rng.standard_normal((t, 8)).astype(np.float32) for t in ts] for ts in ((3, 70, 1), (55, 2, 64)))
    sim = seqsim(Ragged.from_list(xs), Ragged.from_list(ys), Float32(32))
    for got, expected in zip((sim.f1, sim.precision, sim.recall), loop(xs, ys), strict=True):
        np.testing.assert_allclose(got, expected, rtol=0, atol=ROUNDING)


def test_f1_is_finite_between_its_parts_and_rises_with_each() -> None:
    axis = np.linspace(-1, 1, 81)
    p, r = np.meshgrid(axis, axis, indexing="ij")
    f1 = harmonic(p, r)
    assert np.isfinite(f1).all()
    assert (f1 >= np.minimum(p, r) - 1e-12).all()
    assert (f1 <= np.maximum(p, r) + 1e-12).all()
    assert (np.diff(f1, axis=0) >= -1e-12).all()
    assert (np.diff(f1, axis=1) >= -1e-12).all()
    step = axis[1] - axis[0]
    assert np.abs(np.diff(f1, axis=0)).max() <= 2 * step + 1e-12  # the steepest slope of the harmonic mean is 2
    # The bare formula gives -4 and divides by zero here.
    assert harmonic(np.array([0.5, 0.5, 0.0]), np.array([-0.4, -0.5, 0.0])).tolist() == [-0.4, -0.5, 0.0]


def test_scale_of_a_frame_does_not_matter() -> None:
    rng = np.random.default_rng(2)
    x = rng.standard_normal((9, 5)).astype(np.float32)
    scaled = x * np.logspace(-30, 30, 9, dtype=np.float32)[:, None]  # squares leave the range of float32
    y = Ragged.from_list([rng.standard_normal((4, 5)).astype(np.float32)])
    plain, extreme = seqsim(Ragged.from_list([x]), y), seqsim(Ragged.from_list([scaled]), y)
    np.testing.assert_allclose(extreme.f1, plain.f1, rtol=0, atol=1e-6)


def test_memory_stays_at_a_block_whatever_the_corpus() -> None:
    block_rows, rows, d = 256, 8192, 16
    data = np.random.default_rng(3).standard_normal((rows, d)).astype(np.float32)
    for frames in (64, rows):  # many utterances, and a single one longer than a block
        ragged = Ragged(data, np.arange(0, rows + 1, frames))
        tracemalloc.start()
        seqsim(ragged, ragged, Float32(block_rows))
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        inputs = 2 * data.nbytes + 2 * rows * d * 8  # unit rows, and room for one float64 temporary each
        results = 3 * 8 * len(ragged) ** 2 + 3 * 4 * len(ragged) ** 2
        maxima = 2 * 4 * max(block_rows * block_rows // frames, rows) * 4
        assert peak < block_rows**2 * 4 + inputs + results + maxima
        assert peak < rows**2 * 4 / 20  # all of S would be 256 MiB


def test_mean_pool_and_pooled_cosine_equal_float64() -> None:
    rng = np.random.default_rng(4)
    xs = [(1000 + rng.standard_normal((t, 6))).astype(np.float16) for t in (1, 3, 1500)]
    pooled = mean_pool(Ragged.from_list(xs))
    expected = np.array([[math.fsum(column) / len(x) for column in x.T.astype(float)] for x in xs])
    assert pooled.dtype == np.float32
    np.testing.assert_allclose(pooled, expected, rtol=1e-7)
    other = rng.standard_normal((4, 6)).astype(np.float32)
    cosines = [[float(a @ b / np.linalg.norm(a) / np.linalg.norm(b)) for b in other.astype(float)] for a in expected]
    np.testing.assert_allclose(pooled_cosine(pooled, other), cosines, rtol=0, atol=1e-6)


@pytest.mark.parametrize("bad", [0.0, np.nan, np.inf])
def test_a_frame_without_direction_is_named(bad: float) -> None:
    utterances = [np.ones((2, 3), np.float32), np.ones((2, 3), np.float32)]
    utterances[1][1] = bad
    with pytest.raises(InputError, match=r"utterance 1: frame 1 is zero, NaN or infinite"):
        Ragged.from_list(utterances).unit()
    with pytest.raises(InputError, match="'second'"):
        seqsim(Ragged.from_list(utterances, ["first", "second"]), Ragged.from_list(utterances[:1]))
    with pytest.raises(InputError, match="'second'"):
        pooled_cosine(utterances[0], utterances[1], y_names=["first", "second"])


@pytest.mark.parametrize(
    ("offsets", "message"),
    [
        ([0, 2, 2, 4], "utterance 1 has 0 frames"),
        ([0, 3, 2, 4], "utterance 1 has -1 frames"),
        ([1, 4], "from 1 to 4"),
        ([0, 3], "from 0 to 3"),
        ([0], "no utterances"),
        ([[0, 4]], "flat int64"),
    ],
)
def test_offsets_that_do_not_fit_are_refused(offsets: list[int], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Ragged(np.ones((4, 2), np.float32), np.array(offsets, np.int64))


def test_arrays_that_cannot_be_compared_are_refused() -> None:
    ones = np.ones((2, 3), np.float32)
    with pytest.raises(InputError, match="float64"):
        Ragged.from_list([ones.astype(np.float64)])
    with pytest.raises(InputError, match="utterance 1 has d = 2"):
        Ragged.from_list([ones, ones[:, :2]])
    with pytest.raises(InputError, match="list is empty"):
        Ragged.from_list([])
    with pytest.raises(InputError, match="1 names for 2"):
        Ragged.from_list([ones, ones], ["a"])
    with pytest.raises(InputError, match="d = 3 and of d = 2"):
        seqsim(Ragged.from_list([ones]), Ragged.from_list([ones[:, :2]]))
    with pytest.raises(InputError, match="d = 3 and of d = 2"):
        pooled_cosine(ones, ones[:, :2])


@given(st.integers(1, 6), st.data())
def test_chance_is_the_recall_of_all_orders(candidates: int, data: st.DataObject) -> None:
    k = data.draw(st.integers(1, 8))
    counts = data.draw(st.lists(st.integers(1, candidates), min_size=1, max_size=3))
    orders = list(itertools.permutations(range(candidates)))
    shares = [sum(min(order[:p]) < k for order in orders) / len(orders) for p in counts]
    assert chance_at_k(np.array(counts), candidates, k) == pytest.approx(sum(shares) / len(counts))


def test_chance_of_a_large_pool_equals_the_binomials() -> None:
    expected = 1 - math.comb(50_000 - 3, 10) / math.comb(50_000, 10)
    assert chance_at_k(np.array([3]), 50_000, 10) == pytest.approx(expected, rel=1e-9)
    assert math.isnan(chance_at_k(np.array([], np.int64), 10, 1))


@given(st.data())
def test_recall_equals_sorting_every_row_with_positives_last_among_equals(data: st.DataObject) -> None:
    n, m = data.draw(st.integers(1, 6)), data.draw(st.integers(1, 6))
    k = data.draw(st.integers(1, 7))
    scores = np.array(data.draw(st.lists(st.integers(-2, 2), min_size=n * m, max_size=n * m)), np.float32)
    scores = scores.reshape(n, m)
    groups_x = data.draw(st.lists(st.integers(0, 3), min_size=n, max_size=n))
    groups_y = data.draw(st.lists(st.integers(0, 3), min_size=m, max_size=m))
    hits = []
    for row, group in zip(scores.tolist(), groups_x, strict=True):
        if group in groups_y:
            order = sorted(range(m), key=lambda j: (-row[j], groups_y[j] == group))
            hits.append(any(groups_y[j] == group for j in order[:k]))
    recall = recall_at_k(scores, positives_from_groups(groups_x, groups_y), k)
    assert (recall.queries, recall.queries_without_partner) == (len(hits), n - len(hits))
    assert recall.candidates == recall.candidates_max == m
    assert recall.value == pytest.approx(sum(hits) / len(hits)) if hits else math.isnan(recall.value)


def test_perfect_and_reversed_scores() -> None:
    positives = np.eye(5, dtype=bool)
    perfect = np.eye(5, dtype=np.float32)
    assert recall_at_k(perfect, positives, 1).value == 1
    assert [recall_at_k(-perfect, positives, k).value for k in (1, 4, 5)] == [0, 0, 1]


def test_equal_scores_earn_nothing() -> None:
    assert best_ranks(np.zeros((2, 4), np.float32), np.eye(2, 4, dtype=bool)).tolist() == [4, 4]
    # Two recordings of one sentence tie with each other, which costs nothing.
    assert best_ranks(np.array([[1.0, 1.0, 0.0]]), np.array([[True, True, False]])).tolist() == [1]


def test_a_pair_is_evaluated_in_both_directions() -> None:
    positives = np.eye(2, dtype=bool)
    forward = np.array([[0.9, 0.1], [0.8, 0.2]])  # both rows prefer the first column: one hit
    backward = np.array([[0.9, 0.1], [0.1, 0.9]])  # two hits
    (pair,) = evaluate_pair(forward, backward, positives, [1])
    assert (pair.forward.value, pair.backward.value, pair.mean.value) == (0.5, 1.0, 0.75)
    assert (pair.mean.chance, pair.mean.queries, pair.mean.candidates) == (0.5, 4, 2)


def test_what_cannot_be_ranked_is_refused() -> None:
    eye = np.eye(2, dtype=bool)
    with pytest.raises(InputError, match="NaN"):
        recall_at_k(np.array([[np.nan, 1], [1, 1]]), eye, 1)
    with pytest.raises(InputError, match="one shape"):
        recall_at_k(np.ones((2, 3)), eye, 1)
    with pytest.raises(UsageError, match="k is 0"):
        recall_at_k(np.ones((2, 2)), eye, 0)
    with pytest.raises(InputError, match="without a group"):
        positives_from_groups(["a", None], ["a", "b"])
    with pytest.raises(InputError, match="never be equal"):
        positives_from_groups(["1"], [1])
    with pytest.raises(UsageError, match="same k"):
        mean_recall([recall_at_k(np.ones((2, 2)), eye, k) for k in (1, 2)])


@dataclass
class FakeStore:
    """A store in memory: entries of (id, language, group, status) and, per output, an array for each."""

    entries: list[tuple[str, str | None, str | None, str]]
    frames: dict[str, Utterances]
    has_frames: bool = True
    reads: list[tuple[str, tuple[int, ...]]] = field(default_factory=list)

    @property
    def outputs(self) -> tuple[str, ...]:
        return tuple(self.frames)

    @property
    def utterances(self) -> pa.Table:
        columns = zip(*self.entries, strict=True)
        names = ["id", "language", "group", "status"]
        return pa.table({n: pa.array(c, pa.string()) for n, c in zip(names, columns, strict=True)})

    def ragged(
        self, output: str, indices: npt.NDArray[np.int64]
    ) -> tuple[npt.NDArray[np.floating], npt.NDArray[np.int64]]:
        assert self.has_frames
        self.reads.append((output, tuple(indices.tolist())))
        chosen = [self.frames[output][i] for i in indices]
        return np.concatenate(chosen), np.cumsum([0, *map(len, chosen)], dtype=np.int64)

    def pooled(self, output: str, indices: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        return np.array([self.frames[output][i].mean(axis=0) for i in indices], np.float32)


def fake_store(languages: tuple[str, ...] = ("uk", "en", "es"), groups: int = 6, noise: float = 0.6) -> FakeStore:
    """Every group in every language, as noisy copies of one random utterance of 3 frames in 8 dimensions."""
    rng = np.random.default_rng(5)
    meaning = rng.standard_normal((groups, 3, 8))
    entries: list[tuple[str, str | None, str | None, str]] = []
    frames: dict[str, Utterances] = {"final": [], "layer_10": [], "layer_02": []}
    for g in range(groups):
        for language in languages:
            entries.append((f"{language}-{g}", language, f"g{g}", "done"))
            for states in frames.values():
                x = meaning[g] + noise * rng.standard_normal((3, 8))
                states.append(x[: 1 + g % 3].astype(np.float16))
    return FakeStore(entries, frames)


def test_retrieve_reports_every_output_similarity_and_direction_as_brute_force_does() -> None:
    store = fake_store()
    table = retrieve(store)
    assert list(dict.fromkeys(table["output"].to_pylist())) == ["layer_02", "layer_10", "final"]
    assert len(table) == 3 * 4 * (6 + 1) * 2
    members = {
        language: [i for i, entry in enumerate(store.entries) if entry[1] == language] for language in ("en", "uk")
    }
    for output, (source, target) in itertools.product(store.outputs, [("en", "uk"), ("uk", "en")]):
        queries, pool = ([store.frames[output][i] for i in members[side]] for side in (source, target))
        f1, precision, recall = loop(queries, pool)
        means = [np.array([x.astype(float).mean(axis=0) for x in side]) for side in (queries, pool)]
        units = [m / np.linalg.norm(m, axis=1, keepdims=True) for m in means]
        expected = {
            "seqsim_f1": f1,
            "seqsim_precision": precision,
            "seqsim_recall": recall,
            "pooled_cosine": units[0] @ units[1].T,
        }
        for similarity, scores in expected.items():
            hit = float(np.mean(scores.argmax(axis=1) == np.arange(6)))
            chosen = [("output", output), ("similarity", similarity), ("source", source), ("target", target)]
            row = _only(table, [*chosen, ("metric", "recall@1")])
            assert row["value"] == pytest.approx(hit)
            assert (row["chance"], row["queries"], row["candidates"]) == (pytest.approx(1 / 6), 6, 6)


def _only(table: pa.Table, conditions: list[tuple[str, str]]) -> dict[str, object]:
    for column, value in conditions:
        table = table.filter(pc.equal(table[column], value))
    (row,) = table.to_pylist()
    return row


def test_mean_rows_average_all_directions_and_keep_the_range_of_pools() -> None:
    store = fake_store()
    store.entries.append(("en-extra", "en", "nobody's", "done"))
    for states in store.frames.values():
        states.append(np.ones((1, 8), np.float16))
    table = retrieve(store, outputs=["final"], similarities=["pooled_cosine"], ks=[1])
    rows = table.to_pylist()
    directions, mean = rows[:-1], rows[-1]
    assert (mean["source"], mean["target"], len(directions)) == ("mean", "mean", 6)
    assert mean["value"] == pytest.approx(sum(row["value"] for row in directions) / 6)
    assert mean["chance"] == pytest.approx((2 / 7 + 4 / 6) / 6)
    assert (mean["candidates"], mean["candidates_max"], mean["queries"]) == (6, 7, 36)
    assert mean["queries_without_partner"] == 2  # the extra sentence, asked of two languages
    for text in (to_markdown(table), to_terminal(table)):
        assert "6 directions; pool of 6–7 candidates, 6 queries each; chance: recall@1 14.3–16.7 %" in text


def test_only_finished_utterances_with_language_and_group_take_part() -> None:
    store = fake_store(languages=("en", "es"))
    extra = [("a", "en", "g0", "failed"), ("b", "es", None, "done"), ("c", None, "g1", "done")]
    store.entries.extend(extra)
    for states in store.frames.values():
        states.extend(np.full((1, 8), np.nan, np.float16) for _ in extra)
    assert retrieve(store).equals(retrieve(fake_store(languages=("en", "es"))))


def test_a_language_without_partners_gives_null_and_leaves_the_means_alone() -> None:
    store = fake_store(languages=("en", "es"))
    plain = retrieve(store, ks=[1])
    store.entries += [("ru-1", "ru", "other", "done"), ("ru-2", "ru", "another", "done")]
    for states in store.frames.values():
        states += [np.ones((1, 8), np.float16)] * 2
    table = retrieve(store, ks=[1])
    row = _only(table, [("output", "final"), ("similarity", "seqsim_f1"), ("source", "ru"), ("target", "en")])
    assert (row["value"], row["chance"], row["queries"], row["queries_without_partner"]) == (None, None, 0, 2)
    for got, expected in zip(_means(table), _means(plain), strict=True):
        assert [got[c] for c in ("value", "chance", "candidates", "candidates_max")] == [
            expected[c] for c in ("value", "chance", "candidates", "candidates_max")
        ]
    assert to_markdown(table) == to_markdown(plain)


def _means(table: pa.Table) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = table.filter(pc.equal(table["source"], "mean")).to_pylist()
    return rows


def test_order_of_the_corpus_does_not_matter() -> None:
    store = fake_store()
    order = np.random.default_rng(6).permutation(len(store.entries))
    shuffled = FakeStore(
        [store.entries[i] for i in order],
        {output: [states[i] for i in order] for output, states in store.frames.items()},
    )
    assert retrieve(shuffled).equals(retrieve(store))


def test_frames_of_two_languages_are_read_at_a_time_and_none_for_pooled() -> None:
    store = fake_store()
    calls: list[tuple[int, int]] = []
    retrieve(store, outputs=["final"], progress=lambda done, total: calls.append((done, total)))
    assert len(store.reads) == 5  # en, es, uk; then es, uk
    assert calls == [(1, 3), (2, 3), (3, 3)]
    store.reads.clear()
    store.has_frames = False
    table = retrieve(store, similarities=["pooled_cosine"])
    assert not store.reads
    assert set(table["similarity"].to_pylist()) == {"pooled_cosine"}
    with pytest.raises(UsageError, match="pooled states only"):
        retrieve(store)


def test_unknown_names_list_the_known_ones() -> None:
    store = fake_store()
    with pytest.raises(UsageError, match=r"unknown output 'layer_99'; known: final, layer_10, layer_02"):
        retrieve(store, outputs=["layer_99"])
    with pytest.raises(UsageError, match=r"unknown language 'xx'; known: en, es, uk"):
        retrieve(store, languages=["en", "xx"])
    with pytest.raises(UsageError, match=r"unknown similarity 'dtw'; known: seqsim_f1"):
        retrieve(store, similarities=["dtw"])
    with pytest.raises(UsageError, match="no output asked for"):
        retrieve(store, outputs=[])
    with pytest.raises(UsageError, match="at least one k"):
        retrieve(store, ks=[0])


def test_a_corpus_that_cannot_be_retrieved_says_what_was_found() -> None:
    one = fake_store(languages=("en",))
    with pytest.raises(InputError, match=r"at least 2 languages: of 6 utterances 6 are done.*en: 6"):
        retrieve(one)
    apart = fake_store(languages=("en", "es"))
    apart.entries = [(i, lang, f"{lang} {group}", status) for i, lang, group, status in apart.entries]
    with pytest.raises(InputError, match="no group occurs in two languages"):
        retrieve(apart)
    failed = fake_store(languages=("en", "es"))
    failed.entries = [(i, lang, g, "failed" if lang == "es" else s) for i, lang, g, s in failed.entries]
    with pytest.raises(InputError, match=r"no usable utterance in es.*6 are done"):
        retrieve(failed, languages=["en", "es"])
    with pytest.raises(InputError, match="at least 2 languages"):
        retrieve(failed)
    broken = fake_store(languages=("en", "es"))
    broken.frames["final"][3][0] = np.nan
    with pytest.raises(InputError, match="output final, en and es: utterance 'es-1': frame 0"):
        retrieve(broken)


def test_outputs_stand_in_depth_order() -> None:
    names = ["final", "layer_10", "layer_02", "layer_100", "final"]
    assert depth_order(names) == ["layer_02", "layer_10", "layer_100", "final"]


def test_text_tables_hold_the_means_and_line_up() -> None:
    table = retrieve(fake_store(), similarities=["seqsim_f1", "pooled_cosine"])
    means = {(row["output"], row["similarity"], row["metric"]): row["value"] for row in _means(table)}
    expected = [
        f"{100 * means['layer_02', similarity, metric]:.1f}"
        for similarity in ("seqsim_f1", "pooled_cosine")
        for metric in ("recall@1", "recall@5")
    ]
    lines = to_markdown(table).splitlines()
    header = "output, seqsim_f1 recall@1, seqsim_f1 recall@5, pooled_cosine recall@1, pooled_cosine recall@5"
    assert [cell.strip() for cell in lines[0].split("|")[1:-1]] == header.split(", ")
    assert [cell.strip() for cell in lines[2].split("|")[1:-1]] == ["layer_02", *expected]
    caption = "6 directions; pool of 6 candidates, 6 queries each; chance: recall@1 16.7 %, recall@5 83.3 %."
    assert lines[-1].endswith(caption)
    plain = to_terminal(table).splitlines()
    assert plain[2].split() == ["layer_02", *expected]
    assert len({len(line) for line in plain[:5]}) == 1
    assert plain[-1].endswith(caption)
    with pytest.raises(InputError, match="mean"):
        to_markdown(table.filter(pc.equal(table["source"], "en")))
