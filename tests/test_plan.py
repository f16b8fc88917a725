"""Promises of make_plan(): a pure function of the corpus as a set, whose rows and units never clash."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from voxstrata.audio.decode import AudioInfo
from voxstrata.base.errors import InputError, UsageError
from voxstrata.corpus import Corpus, Probed
from voxstrata.corpus.table import CORPUS_SCHEMA
from voxstrata.encoders import Context
from voxstrata.encoders.whisper import WHISPER
from voxstrata.engine.pipeline import BATCHES_SORTED, batches
from voxstrata.store import Plan, StoreSpec, make_plan

# 4096 float32 values and 8 outputs make units of 128 rows at 16 MB: small enough to fill many of them.
D_MODEL, MEGABYTES, UNIT_ROWS = 4096, 16, 128
SPEC = StoreSpec(tuple(f"layer_{k:02d}" for k in range(8)), dtype="float32")


@dataclass(frozen=True)
class Recording:
    id: str
    language: str | None
    samples: int | None  # None: cannot be read


def plan_of(
    recordings: Sequence[Recording], spec: StoreSpec = SPEC, megabytes: float = MEGABYTES, root: str = "/data"
) -> Plan:
    columns = {
        "id": [r.id for r in recordings],
        "path": [f"{r.id}.wav" for r in recordings],
        "language": [r.language for r in recordings],
        "group": [f"g-{r.id}" for r in recordings],
        "text": [f"text of {r.id}" for r in recordings],
        "speaker": [None for _ in recordings],
    }
    infos = [None if r.samples is None else AudioInfo(r.samples, 16_000, r.samples, 1, 44) for r in recordings]
    failures = {i: f"{root}/{r.id}.wav: no" for i, r in enumerate(recordings) if r.samples is None}
    corpus = Corpus(Path(root), pa.table(columns, schema=CORPUS_SCHEMA))
    return make_plan(corpus, Probed.of(infos, failures), spec, D_MODEL, unit_megabytes=megabytes)


def random_recordings(n: int, seed: int = 0) -> list[Recording]:
    rng = np.random.default_rng(seed)
    return [Recording(f"u{i}", str(rng.choice(["en", "de", "fr"])), int(rng.integers(1, 40_000))) for i in range(n)]


def places(plan: Plan) -> dict[str, tuple[int, int]]:
    ids = plan.utterances["id"].to_pylist()
    return {name: (int(a), int(n)) for name, a, n in zip(ids, plan.start, plan.length, strict=True)}


recordings_strategy = st.lists(
    st.tuples(
        st.sampled_from([None, "", "en", "de", "fr"]),
        st.one_of(st.none(), st.integers(1, 400), st.integers(1, 100_000)),
    ),
    min_size=1,
    max_size=60,
).map(lambda rows: [Recording(f"u{i}", language, samples) for i, (language, samples) in enumerate(rows)])


def test_order_of_the_corpus_does_not_matter() -> None:
    recordings = [*random_recordings(200), Recording("bad", "en", None)]
    shuffled = [recordings[i] for i in np.random.default_rng(1).permutation(len(recordings))]
    a, b = plan_of(recordings), plan_of(shuffled)
    assert a.fingerprint() == b.fingerprint()
    assert places(a) == places(b)
    assert a.unit_begin.tolist() == b.unit_begin.tolist()


@settings(max_examples=60, deadline=None)
@given(recordings=recordings_strategy, every=st.sampled_from([1, 5, 1500]))
def test_rows_never_overlap_and_units_keep_to_themselves(recordings: list[Recording], every: int) -> None:
    if all(r.samples is None for r in recordings):
        with pytest.raises(InputError, match="no recording of"):
            plan_of(recordings)
        return
    plan = plan_of(recordings, replace(SPEC, every=every))
    rows = plan.utterances.to_pylist()
    known = [r for r in recordings if r.samples is not None]
    # every utterance once; those without audio last, in no unit
    assert sorted(r["id"] for r in rows) == sorted(r.id for r in recordings)
    assert int(plan.unit_begin[0]) == 0
    assert int(plan.unit_begin[-1]) == len(known)
    assert all(r["failure"] for r in rows[len(known) :])
    assert not any(r["failure"] for r in rows[: len(known)])
    assert not plan.length[len(known) :].any()
    owner = np.full(plan.units * plan.unit_rows, -1)
    samples = {r.id: r.samples for r in known}
    for unit in range(plan.units):
        members = plan.members(unit)
        assert len(members) > 0
        assert len({rows[u]["language"] or "" for u in members}) == 1
        for u in members:
            frames = -(-samples[rows[u]["id"]] // 320)
            assert int(plan.length[u]) == -(-frames // every)
            place = slice(int(plan.start[u]), int(plan.start[u] + plan.length[u]))
            assert unit * plan.unit_rows <= place.start
            assert place.stop <= (unit + 1) * plan.unit_rows
            assert (owner[place] == -1).all()
            owner[place] = u
    assert plan.unit_rows % plan.chunk_rows == 0
    assert plan.fingerprint() == plan_of(recordings, replace(SPEC, every=every)).fingerprint()


@settings(max_examples=60, deadline=None)
@given(samples=st.integers(1, 5_000_000))
def test_windows_cover_a_recording_without_gap(samples: int) -> None:
    plan = plan_of([Recording("a", None, samples)], replace(SPEC, every=1500))
    windows = plan.windows(0)
    assert [w.sample for w in windows] == list(range(0, samples, 480_000))
    assert sum(w.samples for w in windows) == samples
    assert sum(w.frames for w in windows) == int(plan.frames[0]) == -(-samples // 320)
    assert [w.frame for w in windows] == np.cumsum([0, *(w.frames for w in windows[:-1])]).tolist()


def test_longest_come_first_within_a_language() -> None:
    plan = plan_of(random_recordings(100))
    rows = plan.utterances.to_pylist()
    keys = [(r["language"], -math.ceil(r["samples"] / 320), r["id"]) for r in rows]
    assert keys == sorted(keys)


def test_a_recording_longer_than_a_unit_is_a_unit_by_itself_and_leaves_the_others_as_they_are() -> None:
    recordings = random_recordings(60)
    without, plan = plan_of(recordings), plan_of([*recordings, Recording("long", "en", 320 * 1000)])
    assert UNIT_ROWS < 1000 <= plan.unit_rows < 1000 + plan.chunk_rows
    assert places(plan)["long"][1] == 1000

    def members(p: Plan) -> list[list[str]]:
        names = p.utterances["id"].to_pylist()
        return [[names[i] for i in p.members(u)] for u in range(p.units)]

    assert ["long"] in members(plan)
    assert [m for m in members(plan) if m != ["long"]] == members(without)
    assert all(plan.rows_used(u) <= UNIT_ROWS for u, m in enumerate(members(plan)) if m != ["long"])


def test_a_recording_over_the_largest_unit_fails_alone() -> None:
    day = Recording("day", "en", 24 * 3600 * 16_000)  # a header may claim anything
    plan = plan_of([Recording("short", "en", 100), day])
    short, failed = plan.utterances.to_pylist()
    assert (short["id"], short["failure"], plan.length.tolist()) == ("short", None, [1, 0])
    assert "86400 s is more than the" in failed["failure"]
    assert "--every or --pooled" in failed["failure"]
    assert plan.unit_rows == UNIT_ROWS
    with pytest.raises(InputError, match="86400 s is more than"):
        plan_of([day])
    assert plan_of([day], replace(SPEC, every=1500)).length[0] == 24 * 120


@pytest.mark.parametrize("spec", [StoreSpec(("final",), pool="mean"), StoreSpec(("final",), every=10**9)])
def test_a_recording_that_claims_to_last_for_centuries_fails_alone(spec: StoreSpec) -> None:
    """Little is stored of it, but every window would be listed: 9 kB of Matroska may say 31,688 years."""
    plan = plan_of([Recording("good", "en", 16_000), Recording("liar", "en", 16 * 10**15)], spec)
    assert plan.samples.tolist() == [16_000, 0]
    assert plan.utterances["failure"].to_pylist() == [
        None,
        "1000000000000 s is more than the 1048576 s that a recording may last; correct its header or row, or cut it",
    ]


@pytest.mark.parametrize("megabytes", [0, -1, 1e9])
def test_impossible_unit_sizes_are_usage_errors(megabytes: float) -> None:
    with pytest.raises(UsageError, match="units of"):
        plan_of([Recording("a", None, 100)], megabytes=megabytes)


def test_fingerprint_does_not_depend_on_where_the_corpus_lies() -> None:
    recordings = [*random_recordings(10), Recording("bad", "en", None)]
    assert plan_of(recordings, root="/here").fingerprint() == plan_of(recordings, root="/there").fingerprint()


def test_fingerprint_tells_apart_all_that_decides_the_content() -> None:
    base = random_recordings(10)
    samples = base[3].samples
    assert samples is not None
    plans = [
        plan_of(base),
        plan_of(base[:-1]),
        plan_of([*base[:3], replace(base[3], samples=samples + 1), *base[4:]]),
        plan_of([*base[:3], replace(base[3], samples=None), *base[4:]]),
        plan_of([*base[:3], replace(base[3], language="xx"), *base[4:]]),
        plan_of([*base[:3], replace(base[3], id="other"), *base[4:]]),
        plan_of(base, replace(SPEC, dtype="float16")),
        plan_of(base, replace(SPEC, pool="mean")),
        plan_of(base, replace(SPEC, every=5)),
        plan_of(base, replace(SPEC, outputs=SPEC.outputs[:4])),
        plan_of(base, replace(SPEC, context=Context("padded"))),
        plan_of(base, replace(SPEC, context=Context("trimmed"))),
        plan_of(base, replace(SPEC, context=Context(tail=51))),
        plan_of(base, megabytes=2 * MEGABYTES),
    ]
    first = plans[0]
    for column, value in {"text": "t", "group": "g", "speaker": "s"}.items():
        table = first.corpus.table
        table = table.set_column(table.schema.get_field_index(column), column, pa.array([value] * 10))
        plans.append(replace(first, corpus=replace(first.corpus, table=table)))
    sizes = [replace(info, size_bytes=45) for info in first.probed.infos() if info]
    plans.append(replace(first, probed=Probed.of(sizes, {})))
    assert len({p.fingerprint() for p in plans}) == len(plans)


def test_pooled_plans_give_every_utterance_one_row() -> None:
    plan = plan_of([*random_recordings(600), Recording("bad", "en", None)], replace(SPEC, pool="mean"))
    assert plan.start[:600].tolist() == list(range(600))
    assert plan.length.tolist() == [1] * 600 + [0]
    assert plan.unit_begin.tolist() == [0, 256, 512, 600]


class Budget:
    """What batches() asks of an encoder."""

    tokens = 3000
    model = SimpleNamespace(card=SimpleNamespace(family=WHISPER))

    def batch_size(self, frames: int) -> int:
        return max(1, self.tokens // frames)


@settings(max_examples=30, deadline=None)
@given(recordings=recordings_strategy.filter(lambda rs: any(r.samples for r in rs)))
def test_batches_hold_every_window_once_and_keep_to_the_token_budget(recordings: list[Recording]) -> None:
    plan = plan_of(recordings)
    seen = []
    for unit in range(plan.units):
        for frames, windows in batches(plan, unit, Budget()):  # type: ignore[arg-type]
            assert frames * len(windows) <= max(Budget.tokens, 1500)
            assert {SPEC.context.frames_computed(w.frames) for w in windows} == {frames}
            seen += windows
    expected = [w for u in range(int(plan.unit_begin[-1])) for w in plan.windows(u)]
    assert sorted(seen, key=lambda w: (w.utterance, w.sample)) == expected


def test_audio_held_for_batching_does_not_grow_with_the_unit() -> None:
    seconds = np.random.default_rng(0).uniform(31, 200, 256)  # one pooled unit: 8 hours
    recordings = [Recording(f"u{i}", "en", int(s * 16_000)) for i, s in enumerate(seconds)]
    plan = plan_of(recordings, replace(SPEC, pool="mean"))
    left = {u: len(plan.windows(u)) for u in plan.members(0)}
    held: set[int] = set()
    most = 0
    for _, windows in batches(plan, 0, Budget()):  # type: ignore[arg-type]
        held |= {w.utterance for w in windows}
        most = max(most, sum(int(plan.samples[u]) for u in held))
        for w in windows:
            left[w.utterance] -= 1
        held = {u for u in held if left[u]}
    assert plan.units == 1
    assert most <= BATCHES_SORTED * Budget.tokens * 320 + 200 * 16_000
