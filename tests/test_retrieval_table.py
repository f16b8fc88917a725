"""The retrieval table: every output, similarity, score and direction, as brute force finds them."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from stores import MadeUpStore, ends
from test_retrieval import Utterances, loop
from test_tiles import Seen

from voxstrata.base.errors import InputError, UsageError
from voxstrata.encoders.outputs import depth_order
from voxstrata.retrieval.kernels.base import FloatMatrix, Packed
from voxstrata.retrieval.kernels.float32 import Float32
from voxstrata.store import EmbeddingStore
from voxstrata.studies.retrieve import Retrieval, RetrievalOptions, retrieve


@dataclass
class FakeStore:
    """A store in memory: entries of (id, language, group, status) and, per output, an array for each."""

    entries: list[tuple[str, str | None, str | None, str]]
    frames: dict[str, Utterances]
    has_frames: bool = True
    __class__ = property(lambda _: EmbeddingStore)  # type: ignore[assignment]  # so that isinstance takes it for one
    files: ClassVar = MadeUpStore.files
    name: ClassVar = MadeUpStore.name
    about: ClassVar = MadeUpStore.about
    reads: list[tuple[str, tuple[int, ...]]] = field(default_factory=list)

    def output(self, name: str) -> str:
        return name

    @property
    def outputs(self) -> tuple[str, ...]:
        return tuple(self.frames)

    @property
    def ids(self) -> list[str]:
        return [entry[0] for entry in self.entries]

    @property
    def utterances(self) -> pa.Table:
        columns = zip(*self.entries, strict=True)
        names = ["id", "language", "group", "status"]
        return pa.table({n: pa.array(c, pa.string()) for n, c in zip(names, columns, strict=True)})

    def table(self, columns: Sequence[str]) -> pa.Table:
        return self.utterances.select(list(columns))

    @property
    def length(self) -> npt.NDArray[np.int64]:
        return np.array([len(states) for states in next(iter(self.frames.values()))])

    def ragged(
        self, output: str, indices: npt.NDArray[np.int64]
    ) -> tuple[npt.NDArray[np.floating], npt.NDArray[np.int64]]:
        assert self.has_frames
        self.reads.append((output, tuple(indices.tolist())))
        chosen = [self.frames[output][i] for i in indices]
        return np.concatenate(chosen), np.cumsum([0, *map(len, chosen)], dtype=np.int64)

    def pooled(self, output: str, indices: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        return np.array([self.frames[output][i].mean(axis=0, dtype=np.float64) for i in indices], np.float32)


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


def table_of(*args: Any, **options: Any) -> pa.Table:
    return retrieve(*args, **options).table


def unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def test_retrieve_reports_every_output_similarity_score_and_direction_as_brute_force_does() -> None:
    store = fake_store()
    table = table_of(store, options=RetrievalOptions(bootstrap=0))
    assert list(dict.fromkeys(table["output"].to_pylist())) == ["layer_02", "layer_10", "final"]
    # Six directions, three pairs, one mean: of 4 similarities × 3 scores × (3 recalls, mrr, skew), neighbours, CKAs.
    assert len(table) == 3 * (6 + 3 + 1) * (4 * 3 * 5 + 1 + 2)
    members = {
        language: [i for i, entry in enumerate(store.entries) if entry[1] == language] for language in ("en", "uk")
    }
    for output, (source, target) in itertools.product(store.outputs, [("en", "uk"), ("uk", "en")]):
        queries, pool = ([store.frames[output][i] for i in members[side]] for side in (source, target))
        f1, precision, recall = loop(queries, pool)
        means = [np.array([x.astype(float).mean(axis=0) for x in side]) for side in (queries, pool)]
        expected = {
            "seqsim_f1": f1,
            "seqsim_precision": precision,
            "seqsim_recall": recall,
            "pooled_cosine": unit(means[0]) @ unit(means[1]).T,
        }
        for similarity, scores in expected.items():
            local = 2 * scores - scores.mean(axis=1, keepdims=True) - scores.mean(axis=0)  # 6 neighbours, fewer than 10
            for score, matrix in (("raw", scores), ("csls", local)):
                ranks = [1 + sum(row > row[i]) for i, row in enumerate(matrix)]
                figures = {"recall@1": np.mean(np.array(ranks) == 1), "mrr": np.mean(1 / np.array(ranks))}
                chances = {"recall@1": 1 / 6, "mrr": sum(1 / r for r in range(1, 7)) / 6}
                for metric, value in figures.items():
                    chosen = {"output": output, "similarity": similarity, "score": score, "metric": metric}
                    row = _only(table, **chosen, source=source, target=target)
                    assert row["value"] == pytest.approx(value)
                    assert (row["chance"], row["queries"], row["candidates"]) == (pytest.approx(chances[metric]), 6, 6)
                    assert row["low"] is row["high"] is None


def test_a_pair_is_the_mean_of_its_directions() -> None:
    table = table_of(fake_store(), outputs=["final"], similarities=["seqsim_precision"])
    chosen = {"score": "raw", "metric": "mrr"}
    there = _only(table, source="en", target="uk", **chosen)
    back = _only(table, source="uk", target="en", **chosen)
    both = _only(table, "pair", source="en", target="uk", **chosen)
    assert there["value"] != back["value"]
    assert both["value"] == pytest.approx((there["value"] + back["value"]) / 2)
    assert (both["queries"], both["candidates"]) == (12, 6)


def test_cka_compares_the_sentences_both_languages_hold() -> None:
    store = fake_store(languages=("en", "es"), groups=9)
    store.entries.append(("en-4-again", "en", "g4", "done"))  # a second recording, averaged with the first
    for states in store.frames.values():
        states.append(np.ones((1, 8), np.float16))
    store.entries[0] = ("en-0", "en", "only in English", "done")
    table = table_of(store, outputs=["final"], similarities=["pooled_cosine"])
    pooled = {
        name: x.astype(float).mean(axis=0) for (name, *_), x in zip(store.entries, store.frames["final"], strict=True)
    }
    pooled["en-4"] = (pooled["en-4"] + pooled["en-4-again"]) / 2
    x, y = (np.array([pooled[f"{language}-{g}"] for g in range(1, 9)]) for language in ("en", "es"))
    x, y = x - x.mean(axis=0), y - y.mean(axis=0)
    expected = np.linalg.norm(x.T @ y) ** 2 / (np.linalg.norm(x.T @ x) * np.linalg.norm(y.T @ y))
    mean = _only(table, "mean", similarity="linear_cka", metric="cka")
    assert (mean["source"], mean["target"]) == (None, None)
    directions = [
        _only(table, similarity="linear_cka", metric="cka", source=source, target=target)
        for source, target in (("en", "es"), ("es", "en"))
    ]
    for row in (*directions, mean):
        assert row["value"] == pytest.approx(expected, rel=1e-5)
        assert row["candidates"] == 8
        assert 0 < row["chance"] < 1
    debiased = _only(table, similarity="linear_cka", metric="cka_debiased", source="en", target="es")
    assert debiased["value"] < expected
    assert debiased["chance"] == 0


def test_intervals_hold_the_value_and_differences_are_paired() -> None:
    store = fake_store(groups=40, noise=1.2)
    store.frames["layer_10"] = store.frames["final"]  # equal outputs: their difference is 0 in every resample
    table = table_of(store, similarities=["pooled_cosine"], options=RetrievalOptions(ks=[1]))
    figures = table.filter(pc.is_in(table["metric"], value_set=pa.array(["recall@1", "mrr", "mutual_knn@10"])))
    assert all(row["low"] <= row["value"] <= row["high"] for row in figures.to_pylist())
    others = table.filter(
        pc.invert(pc.is_in(table["metric"], value_set=pa.array(["recall@1", "mrr", "mutual_knn@10"])))
    )
    assert others["low"].null_count == others["below_best"].null_count == len(others)
    chosen = {"similarity": "pooled_cosine", "score": "raw", "metric": "recall@1", "level": "mean"}
    rows = {output: _only(table, output=output, **chosen) for output in store.outputs}
    best = max(row["value"] for row in rows.values())
    for row in rows.values():
        assert row["below_best"] == pytest.approx(best - row["value"])
    same = [rows["final"][c] - rows["layer_10"][c] for c in ("below_best", "below_best_low", "below_best_high")]
    assert same == [0, 0, 0]
    winner = max(rows, key=lambda output: rows[output]["value"])
    assert (rows[winner]["below_best_low"], rows[winner]["below_best_high"]) == (0, 0)
    worst = min(rows, key=lambda output: rows[output]["value"])
    assert rows[worst]["below_best_low"] < rows[worst]["below_best"] < rows[worst]["below_best_high"]
    assert json.loads(table.schema.metadata[b"voxstrata_retrieval"])["bootstrap_groups"] == 40


def test_more_sentences_give_narrower_intervals_and_more_recordings_do_not() -> None:
    def width(store: FakeStore) -> float:
        table = table_of(
            store, outputs=["final"], similarities=["pooled_cosine"], options=RetrievalOptions(scores=["raw"], ks=[1])
        )
        row = _only(table, "mean", metric="recall@1")
        return float(row["high"]) - float(row["low"])

    few, many = fake_store(("en", "es"), groups=20, noise=1.2), fake_store(("en", "es"), groups=180, noise=1.2)
    twice = fake_store(("en", "es"), groups=20, noise=1.2)
    twice.entries += [(f"{name}-again", *rest) for name, *rest in twice.entries]
    for states in twice.frames.values():
        states += states
    assert width(many) < 0.6 * width(few)
    assert width(twice) > 0.8 * width(few)


def test_a_ratio_that_does_not_exist_is_null() -> None:
    store = fake_store(languages=("en", "es"))
    for i, (_, language, _, _) in enumerate(store.entries):
        for states in store.frames.values():
            states[i] = np.full((1, 8), 1 if language == "en" else -1, np.float16) + states[i][:1] / 100
    table = table_of(store)
    part = table.filter(pc.equal(table["score"], "ratio_margin"))
    assert part["value"].null_count == part["low"].null_count == len(part)
    assert "ratio_margin" in str(Retrieval(table))
    assert _only(table, "mean", output="final", score="csls", similarity="seqsim_f1", metric="mrr")["value"] > 0


def _only(table: pa.Table, level: str = "direction", **conditions: str) -> dict[str, Any]:
    for column, value in {"level": level, **conditions}.items():
        table = table.filter(pc.equal(table[column], value))
    (row,) = table.to_pylist()
    return row


def test_mean_rows_average_all_directions_and_keep_the_range_of_pools() -> None:
    store = fake_store()
    store.entries.append(("en-extra", "en", "nobody's", "done"))
    for states in store.frames.values():
        states.append(np.ones((1, 8), np.float16))
    table = table_of(store, outputs=["final"], similarities=["pooled_cosine"], options=RetrievalOptions(ks=[1]))
    part = table.filter((pc.field("metric") == "recall@1") & (pc.field("score") == "raw")).to_pylist()
    directions, mean = [row for row in part if row["level"] == "direction"], part[-1]
    assert (mean["level"], mean["source"], mean["target"], len(directions)) == ("mean", None, None, 6)
    assert mean["value"] == pytest.approx(sum(row["value"] for row in directions) / 6)
    assert mean["chance"] == pytest.approx((2 / 7 + 4 / 6) / 6)
    assert (mean["candidates"], mean["candidates_max"], mean["queries"]) == (6, 7, 36)
    assert mean["queries_without_partner"] == 2  # the extra sentence, asked of two languages
    for text in (Retrieval(table).to_markdown(), str(Retrieval(table))):
        caption = "6 directions; pool of 6–7 candidates (all), 6 queries each; chance: recall@1 14.3–16.7 %"
        assert caption in " ".join(text.split())


def test_only_finished_utterances_with_language_and_group_take_part() -> None:
    store = fake_store(languages=("en", "es"))
    extra = [("a", "en", "g0", "failed"), ("b", "es", None, "done"), ("c", None, "g1", "done")]
    store.entries.extend(extra)
    for states in store.frames.values():
        states.extend(np.full((1, 8), np.nan, np.float16) for _ in extra)
    assert table_of(store).equals(table_of(fake_store(languages=("en", "es"))))


def test_a_language_without_partners_gives_null_and_leaves_the_means_alone() -> None:
    store = fake_store(languages=("en", "es"), groups=12)
    plain = table_of(store, options=RetrievalOptions(ks=[1]))
    store.entries += [("ru-1", "ru", "other", "done"), ("ru-2", "ru", "another", "done")]
    for states in store.frames.values():
        states += [np.ones((1, 8), np.float16)] * 2
    table = table_of(store, options=RetrievalOptions(ks=[1]))
    row = _only(table, output="final", similarity="seqsim_f1", score="raw", metric="recall@1", source="ru", target="en")
    assert (row["value"], row["chance"], row["queries"], row["queries_without_partner"]) == (None, None, 0, 2)
    counts = ("queries", "queries_without_partner")
    for got, expected in zip(_means(table), _means(plain), strict=True):
        assert {k: v for k, v in got.items() if k not in counts} == {
            k: v for k, v in expected.items() if k not in counts
        }
    assert Retrieval(table).to_markdown() == Retrieval(plain).to_markdown()


def test_a_pool_of_translations_alone_has_no_figures_and_is_named() -> None:
    """Found at 100 % beside chance of 100 %, it would only lift the means."""
    store = fake_store(languages=("en", "es"), groups=12)
    plain = table_of(store, options=RetrievalOptions(ks=[1]))
    lone = store.entries[0][2]
    store.entries += [("ru-1", "ru", lone, "done"), ("ru-2", "ru", lone, "done")]  # one sentence, recorded twice
    for states in store.frames.values():
        states += [states[0], states[0]]
    table = table_of(store, options=RetrievalOptions(ks=[1]))
    rows = {
        ends(r): r
        for r in table.to_pylist()
        if (r["output"], r["similarity"], r["score"], r["metric"]) == ("final", "seqsim_f1", "raw", "recall@1")
    }
    assert (rows["en", "ru"]["value"], rows["en", "ru"]["chance"], rows["en", "ru"]["queries"]) == (None, None, 0)
    assert (rows["ru", "en"]["value"], rows["ru", "en"]["queries"]) == (1.0, 2)  # queries they can be
    assert rows["ru", "en"]["chance"] == pytest.approx(1 / 12)
    before = [r for r in plain.to_pylist() if r["metric"] == "recall@1" and r["output"] == "final"
              and (r["similarity"], r["score"]) == ("seqsim_f1", "raw")]  # fmt: skip
    found = {ends(r): r["value"] for r in before}
    four = [found["en", "es"], found["es", "en"], 1.0, rows["ru", "es"]["value"]]
    assert rows["mean", "mean"]["value"] == pytest.approx(np.mean(four))
    assert "any answer is right: en → ru, es → ru." in Retrieval(table).to_markdown()
    assert "any answer is right" not in Retrieval(plain).to_markdown()


def _means(table: pa.Table) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = table.filter(pc.equal(table["level"], "mean")).to_pylist()
    return rows


def test_order_of_the_corpus_does_not_matter() -> None:
    store = fake_store()
    order = np.random.default_rng(6).permutation(len(store.entries))
    shuffled = FakeStore(
        [store.entries[i] for i in order],
        {output: [states[i] for i in order] for output, states in store.frames.items()},
    )
    got, expected = table_of(shuffled), table_of(store)
    for name in got.column_names:
        a, b = got[name], expected[name]
        if pa.types.is_floating(a.type):  # sums run in another order
            np.testing.assert_allclose(a.to_numpy(), b.to_numpy(), rtol=1e-6, atol=1e-12)
        else:
            assert a.equals(b)


def test_blocks_of_frames_give_what_whole_languages_give_and_no_more_is_read_at_a_time() -> None:
    whole, cut = fake_store(), fake_store()
    small = Float32()
    small.block_frames = 5  # of 12 in each language
    expected, got = (
        table_of(whole, options=RetrievalOptions(kernel=Float32())),
        table_of(cut, options=RetrievalOptions(kernel=small)),
    )
    for name in got.column_names:
        a, b = got[name], expected[name]
        if pa.types.is_floating(a.type):
            np.testing.assert_allclose(a.to_numpy(), b.to_numpy(), rtol=1e-6, atol=1e-12)
        else:
            assert a.equals(b)
    lengths = cut.length
    assert max(int(lengths[list(indices)].sum()) for _, indices in cut.reads) <= 5
    # three outputs; each language once to check it, then both sides of three pairs
    assert len(cut.reads) > len(whole.reads) == 3 * (3 + 3 * 2)


def test_frames_are_read_by_pair_of_languages_and_none_for_pooled() -> None:
    store = fake_store()
    seen = Seen()
    retrieve(store, outputs=["final"], reporter=seen)
    assert len(store.reads) == 3 + 6  # each language to check it, both sides of three pairs
    told = [(p.stage, p.done, p.total) for p in seen.all]
    expected = [("checking frames", n, 3) for n in (1, 2, 3)] + [("retrieving", n, 3) for n in (0, 1, 2, 3)]
    assert told == expected
    store.reads.clear()
    store.has_frames = False
    for similarities in ("pooled_cosine", None):  # the second: whatever the store has the states for
        table = table_of(store, similarities=similarities)
        assert not store.reads
        assert set(table["similarity"].to_pylist()) == {"pooled_cosine", "linear_cka"}
    with pytest.raises(UsageError, match="pooled states only"):
        retrieve(store, similarities="seqsim_f1")


def test_unknown_names_list_the_known_ones() -> None:
    store = fake_store()
    with pytest.raises(UsageError, match=r"unknown output 'layer_99'; known: final, layer_10, layer_02"):
        retrieve(store, outputs=["layer_99"])
    with pytest.raises(UsageError, match=r"unknown language 'xx'; known: en, es, uk"):
        retrieve(store, languages=["en", "xx"])
    with pytest.raises(UsageError, match=r"unknown similarity 'dtw'; known: seqsim_f1"):
        retrieve(store, similarities=["dtw"])
    with pytest.raises(UsageError, match=r"unknown output selection \(empty\)"):
        retrieve(store, outputs=[])
    with pytest.raises(UsageError, match="unknown score 'cls'; known: raw, csls, ratio_margin"):
        retrieve(store, options=RetrievalOptions(scores=["cls"]))
    with pytest.raises(UsageError, match="at least one k"):
        retrieve(store, options=RetrievalOptions(ks=[0]))
    with pytest.raises(UsageError, match="bootstrap is -1"):
        retrieve(store, options=RetrievalOptions(bootstrap=-1))


def test_sentences_that_stand_in_several_groups_are_named_by_text_and_groups() -> None:
    class Texts(FakeStore):
        @property
        def utterances(self) -> pa.Table:
            texts = ["Yes.", "Yes.", "No.", None, "", ""]
            of = {f"g{g}": text for g, text in enumerate(texts)}
            table = super().utterances
            groups = dict.fromkeys(table["group"].to_pylist())
            text = dict(zip(groups, of.values(), strict=True))
            said = [
                text[g] if lang == "en" else f"{lang} {g}"
                for g, lang in zip(*(table[n].to_pylist() for n in ("group", "language")), strict=True)
            ]
            return table.append_column("text", pa.array(said, pa.string()))

    made = fake_store(languages=("en", "es"))
    heard: list[str] = []
    listener = Seen()
    listener.warn = heard.append  # type: ignore[method-assign]
    retrieve(Texts(made.entries, made.frames), outputs=["final"], reporter=listener)
    groups = list(dict.fromkeys(group for _, _, group, _ in made.entries))[:2]
    assert len(heard) == 1
    assert heard[0].startswith(
        f"en: 2 groups share a sentence with another group, e.g. 'Yes.' in {', '.join(groups)}; each"
    )
    assert "voxstrata relabel" in heard[0]

    class Words(Texts):
        about: ClassVar = {**Texts.about, "spans": {}}

    retrieve(Words(made.entries, made.frames), outputs=["final"], reporter=listener)
    assert "groups share a word with" in heard[1]  # words of a sentence: no manifest could give them other groups
    assert "`voxstrata spans --group word` does" in heard[1]
    assert "relabel" not in heard[1]


def test_a_corpus_that_cannot_be_retrieved_says_what_was_found() -> None:
    one = fake_store(languages=("en",))
    with pytest.raises(InputError, match=r"at least 2 languages: of 6 utterances 6 are done.*en: 6"):
        retrieve(one)
    folder = fake_store(languages=("en", "es"))
    folder.entries = [(i, lang, None, status) for i, lang, _, status in folder.entries]
    with pytest.raises(InputError, match=r"^no utterance has a group, .* a manifest with a column group, or add it"):
        retrieve(folder)
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
    with pytest.raises(InputError, match=r"every pool holds one sentence \(en → es, es → en\).*add other sentences"):
        retrieve(fake_store(languages=("en", "es"), groups=1))
    broken = fake_store(languages=("en", "es"))
    broken.frames["final"][3][0] = np.nan
    with pytest.raises(InputError, match="output final: utterance 'es-1': frame 0"):
        retrieve(broken)
    with pytest.raises(InputError, match="output final, en and es: utterance 'es-1': the pooled state"):
        retrieve(broken, similarities=["pooled_cosine"])


@pytest.mark.parametrize("value", [0.0, np.nan, np.inf])
def test_a_bad_frame_of_the_last_output_and_language_is_found_before_any_comparison(value: float) -> None:
    class Forbidden(Float32):
        def compare(self, x: Packed, y: Packed) -> tuple[FloatMatrix, FloatMatrix]:
            raise AssertionError("the comparison began")

    store = fake_store()
    store.frames["final"][-3][-1] = value  # the last of uk, itself the last of the languages
    with pytest.raises(InputError, match="output final: utterance 'uk-5': frame 2 is zero, NaN or infinite"):
        retrieve(store, options=RetrievalOptions(kernel=Forbidden()))


def test_outputs_stand_in_depth_order() -> None:
    names = ["final", "layer_10", "layer_02", "layer_100", "final"]
    assert depth_order(names) == ["layer_02", "layer_10", "layer_100", "final"]


def test_text_tables_hold_means_intervals_chance_and_the_best_output() -> None:
    table = table_of(fake_store(groups=14, noise=1.2), similarities=["seqsim_f1", "pooled_cosine"])
    means = {(r["output"], r["similarity"], r["score"], r["metric"]): r for r in _means(table)}

    def interval(row: dict[str, Any], prefix: str = "") -> str:
        low, high, value = (row[f"{prefix}{end}"] for end in ("low", "high", "value"))
        return f"{100 * value:.1f} [{100 * low:.1f}, {100 * high:.1f}]"

    lines = Retrieval(table).to_markdown().splitlines()
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines if line.startswith("|")]
    assert rows[0] == ["output", "recall@1", "below the best", "recall@5", "recall@10", "mrr", "hubness"]
    metrics = ("recall@1", "recall@5", "recall@10", "mrr")
    expected = [interval(means["layer_02", "seqsim_f1", "raw", metric]) for metric in metrics]
    assert [rows[2][i] for i in (0, 1, 3, 4, 5)] == ["layer_02", *expected]
    assert rows[5][:4] == ["chance", "7.1", "", "35.7"]
    best = next(row for row in rows if row[:2] == ["pooled_cosine", "csls"])
    values = {o: means[o, "pooled_cosine", "csls", "recall@1"]["value"] for o in ("layer_02", "layer_10", "final")}
    assert best[2] == max(values, key=lambda output: values[output])
    assert best[3] == interval(means[best[2], "pooled_cosine", "csls", "recall@1"])
    assert best[5] == sorted(values, key=lambda output: -values[output])[1]
    caption = "6 directions; pool of 14 candidates (all), 14 queries each; chance: recall@1 7.1 %, recall@5 35.7 %"
    under = [line for line in lines if caption in line]
    assert len(under) == 3  # of both similarities, and of the best outputs
    assert "95 % bootstrap intervals" in under[1]
    plain = str(Retrieval(table))
    assert caption in " ".join(plain.split())
    assert expected[0] in plain
    tables = [block for block in plain.split("\n\n") if "  " in block]
    assert len(tables) == 2
    for block in tables:
        assert len({len(line.rstrip()) for line in block.splitlines() if "  " in line}) <= 2  # chance ends in a dash
    assert "[" not in retrieve(fake_store(), options=RetrievalOptions(bootstrap=0)).to_markdown()
    with pytest.raises(InputError, match="mean"):
        Retrieval(table.filter(pc.equal(table["source"], "en"))).to_markdown()


def test_a_best_output_that_is_at_chance_is_called_so() -> None:
    """Of outputs that hold nothing but noise one is always the best; it is no answer."""

    def best(noise: float, bootstrap: int) -> set[str]:
        options = RetrievalOptions(bootstrap=bootstrap)
        shown = retrieve(fake_store(groups=14, noise=noise), similarities=["pooled_cosine"], options=options).tables()[
            1
        ]
        return {str(row[2]) for row in shown.rows}

    assert all(name.endswith(" (chance)") for name in best(1000.0, 200))
    assert not any(name.endswith(" (chance)") for name in (*best(0.1, 200), *best(0.1, 0)))


def test_a_retrieval_is_saved_shown_and_loaded(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="plots need the extra `plot`")
    found = retrieve(fake_store(), "layer_02,final", options=RetrievalOptions(bootstrap=20))
    written = [path.name for path in found.save(tmp_path / "r")]
    pictures = [f"{name}.{suffix}" for name in ("recall_by_layer", "languages") for suffix in ("png", "pdf")]
    assert written == ["retrieval.parquet", "ranks.parquet", "retrieval.md", *pictures]
    loaded = Retrieval.load(tmp_path / "r")
    assert loaded.table.equals(found.table, check_metadata=True)
    assert set(loaded.table["store"].to_pylist()) == {"made-up.zarr"}
    assert loaded.store == MadeUpStore.about
    assert loaded.settings["bootstrap_groups"] == 6
    assert loaded.ranks.equals(found.ranks)
    assert loaded.title == "made-up, bucketed, on made-up.zarr"
    assert set(loaded.figures()) == set(loaded.pictures) == set(Retrieval.captions) - {"negatives"}
    titles = [table.title for table in loaded.tables()]
    assert titles[:3] == ["seqsim_f1", "Best output", "seqsim_precision"]
    assert len(titles) == 7
    for text in (str(loaded), loaded._repr_html_()):  # the answer in short
        text = " ".join(text.split())
        assert all(shown in text for shown in ("made-up, bucketed", "seqsim_f1", "Best output", "pool of 6 candidates"))
        assert "Linear CKA" not in text
    assert loaded.to_markdown() == (tmp_path / "r" / "retrieval.md").read_text(encoding="utf-8")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").write_text("years of work")
    with pytest.raises(InputError, match="holds something else"):
        found.save(tmp_path / "other")
