"""Several encoders side by side: each as it is by itself, on the same utterances, on one axis of depth."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from planted import Planted, plant
from stores import MadeUpStore, Utterance, card, family, make_store
from test_cli import run
from test_several import assert_equal_tables

from voxstrata.base.errors import InputError, UsageError
from voxstrata.base.figures import spread
from voxstrata.base.progress import Reporter
from voxstrata.encoders.context import Context
from voxstrata.encoders.family import Family
from voxstrata.store import StoreSpec, open_store
from voxstrata.store.several import open_by_encoder
from voxstrata.studies.align.measure import AlignOptions, align
from voxstrata.studies.compared.figures import plot_recall_by_depth
from voxstrata.studies.compared.measure import align_each, retrieve_each
from voxstrata.studies.compared.result import ComparedAlignment, ComparedRetrieval
from voxstrata.studies.retrieve.measure import RetrievalOptions, retrieve

pytest.importorskip("matplotlib", reason="plots need the extra `plot`")
from matplotlib.text import Text

OPTIONS = RetrievalOptions(bootstrap=40)
IDS = [f"{language}-{g}" for language in ("en", "es", "uk") for g in range(12)]


class Held(MadeUpStore):
    """A store in memory whose outputs hold any frames, of an encoder of any family. strength: of meaning, by output."""

    def __init__(
        self, checkpoint: str, layers: int, strength: Mapping[str, float], declared: Family | None = None, *,
        d: int = 8, ids: Sequence[str] = IDS, rows: pa.Table | None = None, seed: int = 0,
    ) -> None:  # fmt: skip
        table = pa.table(
            {
                "id": list(ids),
                "language": [name[:2] for name in ids],
                "group": [f"g{name[3:]}" for name in ids],
                "seconds": [1.0 + int(name[3:]) for name in ids],
            }
        )
        super().__init__(table if rows is None else rows, {o: self._made(ids, d, s, seed) for o, s in strength.items()})
        changes = {"checkpoint": checkpoint, "layers": layers, "weights_sha256": checkpoint.encode().hex()}
        self.model = card(d, **changes, outputs=tuple(strength), **({"family": declared} if declared else {}))
        self.spec = StoreSpec(tuple(strength), context=Context(self.model.family.contexts[0]))
        self.name = f"{checkpoint}.zarr"
        self.files = SimpleNamespace(root=f"somewhere/{checkpoint}.zarr", local=None)
        self.about = {"model": self.model.to_dict(), "spec": self.spec.to_dict(), "plan": "0" * 64}
        self.row_seconds = self.model.family.seconds_per_frame

    @staticmethod
    def _made(ids: Sequence[str], d: int, strength: float, seed: int) -> list[np.ndarray]:
        def frames(name: str) -> np.ndarray:
            group = int(name[3:])
            meaning = np.random.default_rng(group).standard_normal((4 + group % 5, d))
            noise = np.random.default_rng([seed, *name.encode()]).standard_normal(meaning.shape)
            return (strength * meaning + noise).astype(np.float32)

        return [frames(name) for name in ids]


def encoders() -> list[Any]:
    """Three encoders of several families, numbers of blocks, widths and frame rates."""
    layers = [f"layer_{k:02d}" for k in range(5)]
    whisper = {name: 0.15 * k for k, name in enumerate([*layers, "final"])}
    speech = {name: 0.8 - 0.3 * k for k, name in enumerate(["layer_00", "layer_01", "final"])}
    slow = {"layer_01": 0.3, "final": 0.5}
    return [
        Held("whisper-a", 4, whisper),
        Held("speech-bb", 2, speech, family("Sounds", tuple(speech)), d=5, seed=1),
        Held("slow-cccc", 2, slow, family("Slow", (*slow, "layer_02"), hop=1280, norm="pre", repeats=2), d=6, seed=2),
    ]


class Heard(Reporter):
    def __init__(self) -> None:
        self.warnings: list[str] = []

    def warn(self, text: str) -> None:
        self.warnings.append(text)


def of(table: pa.Table, encoder: str) -> pa.Table:
    """Rows of one encoder, without the columns that a comparison adds."""
    own = pa.Table.from_pylist([r for r in table.to_pylist() if r["encoder"] == encoder], table.schema)
    return own.drop([n for n in own.column_names if n in ("encoder", "family", "depth") or n.startswith("behind")])


# --- figures ---


def test_every_encoder_has_the_figures_that_it_has_alone() -> None:
    stores = encoders()
    found = retrieve_each(stores, options=OPTIONS)
    for store in stores:
        assert_equal_tables(of(found.table, store.model.checkpoint), retrieve(store, options=OPTIONS).table)
    assert set(found.table["family"].to_pylist()) == {"Whisper", "Sounds", "Slow"}
    assert found.title == "3 encoders: whisper-a, speech-bb, slow-cccc"
    assert [s["model"]["checkpoint"] for s in found.stores] == ["whisper-a", "speech-bb", "slow-cccc"]


def test_depth_is_the_share_of_blocks_passed() -> None:
    table = retrieve_each(encoders(), similarities="pooled_cosine", options=OPTIONS).table
    depths = {(r["encoder"], r["output"]): r["depth"] for r in table.to_pylist()}
    whisper = {"layer_00": 0, "layer_01": 0.25, "layer_02": 0.5, "layer_03": 0.75, "layer_04": 1, "final": 1}
    assert depths == {
        **{("whisper-a", output): depth for output, depth in whisper.items()},
        ("speech-bb", "layer_00"): 0, ("speech-bb", "layer_01"): 0.5, ("speech-bb", "final"): 1,
        ("slow-cccc", "layer_01"): 0.5, ("slow-cccc", "final"): 1,
    }  # fmt: skip


def test_behind_is_below_best_of_one_store_with_all_outputs() -> None:
    """Outputs of two encoders held as outputs of one store: what `retrieve` calls below_best must be behind."""
    strengths = {"layer_00": 0.2, "layer_01": 0.7, "layer_02": 0.4, "final": 0.5}
    whole = retrieve(Held("whole", 2, strengths), options=OPTIONS).table.to_pylist()
    parts = [
        Held("first", 2, {name: strengths[name] for name in ("layer_00", "layer_01")}),
        Held("second one", 2, {name: strengths[name] for name in ("layer_02", "final")}),
    ]
    found = retrieve_each(parts, options=OPTIONS).table.to_pylist()
    key = ("output", "similarity", "score", "source", "metric")
    expected = {tuple(r[k] for k in key): r for r in whole if r["level"] == "mean"}
    compared = 0
    for row in found:
        if row["level"] != "mean":
            assert row["behind"] is None
            continue
        one = expected.pop(tuple(row[k] for k in key))
        for name in ("", "_low", "_high"):
            assert row[f"behind{name}"] == pytest.approx(one[f"below_best{name}"])
        compared += row["behind"] is not None and row["behind"] > 0
    assert not expected
    assert compared > 20


def test_what_one_encoder_lacks_takes_no_part_in_any() -> None:
    full, short = encoders()[0], Held("speech-bb", 2, {"final": 0.5}, ids=[i for i in IDS if i not in ("en-3", "uk-7")])
    heard = Heard()
    found = retrieve_each([full, short], options=OPTIONS, reporter=heard)
    fewer = Held("whisper-a", 4, {o: 0.15 * k for k, o in enumerate(full.outputs)}, ids=short.ids)
    assert_equal_tables(of(found.table, "whisper-a"), retrieve(fewer, options=OPTIONS).table)
    assert found.settings["not_in_all"] == {"whisper-a": 2}
    assert found.settings["utterances"] == 34
    assert "2 utterances of whisper-a left out: not in every store, or not done in one." in heard.warnings
    failed = Held("speech-bb", 2, {"final": 0.5})
    status = ["failed" if name in ("en-3", "uk-7") else "done" for name in IDS]
    failed.utterances = failed.utterances.drop(["status"]).append_column("status", pa.array(status))
    again = retrieve_each([full, failed], options=OPTIONS).table
    assert of(again, "whisper-a").equals(of(found.table, "whisper-a"))


def test_outputs_asked_for_are_those_that_each_has() -> None:
    table = retrieve_each(encoders(), "layer_04,final", options=OPTIONS).table
    held = {(r["encoder"], r["output"]) for r in table.to_pylist()}
    finals = {(name, "final") for name in ("whisper-a", "speech-bb", "slow-cccc")}
    assert held == {("whisper-a", "layer_04"), *finals}
    with pytest.raises(UsageError, match="speech-bb has none of layer_04; it has layer_00, layer_01, final"):
        retrieve_each(encoders(), "layer_04")
    with pytest.raises(UsageError, match=r"unknown output 'layer_09'; known: layer_00, .*layer_04, final"):
        retrieve_each(encoders(), "layer_09")


def test_a_store_of_pooled_states_leaves_the_similarity_that_all_have() -> None:
    pooled = encoders()[1]
    pooled.has_frames, pooled.row_seconds = False, None
    heard = Heard()
    found = retrieve_each([encoders()[0], pooled], options=OPTIONS, reporter=heard)
    assert set(found.table["similarity"].to_pylist()) == {"pooled_cosine", "linear_cka"}
    assert any("Rows differ in length: 20 ms (whisper-a), pooled (speech-bb)." in text for text in heard.warnings)
    with pytest.raises(UsageError, match="pooled states only"):
        retrieve_each([encoders()[0], pooled], similarities="seqsim_f1")


def test_the_note_says_what_differs() -> None:
    heard = Heard()
    text = retrieve_each(encoders(), options=OPTIONS, reporter=heard).to_markdown()
    for sentence in (
        "Rows differ in length: 20 ms (whisper-a, speech-bb), 80 ms (slow-cccc).",
        "Contexts differ: bucketed (whisper-a), exact (speech-bb, slow-cccc).",
        "slow-cccc gives a state of final for every 2 rows; each stands 2 times.",
    ):
        assert sentence in text
        assert any(sentence in said for said in heard.warnings)
    alike = [Held("one", 2, {"final": 0.5}), Held("other", 2, {"final": 0.4})]
    assert retrieve_each(alike, options=OPTIONS).settings["differences"] == []


def test_encoders_of_one_checkpoint_are_told_apart_by_their_stores() -> None:
    stores = [Held("same", 2, {"final": 0.5}), Held("same", 2, {"final": 0.5}), Held("other", 2, {"final": 0.5})]
    stores[0].name, stores[0].spec = "b.zarr", replace(stores[0].spec, context=Context("padded"))
    names = [a["encoder"] for a in retrieve_each(stores, options=OPTIONS).settings["encoders"]]
    assert names == ["same (b.zarr)", "same (same.zarr)", "other"]


def test_one_checkpoint_told_two_tasks_is_two_encoders() -> None:
    stores = [
        Held("told", 2, {"final": 0.5}, family("Told", ("final",), prefix=("language=<eng>", f"task={task}")))
        for task in ("<asr>", "<st_deu>")
    ]
    stores[0].name = "asr.zarr"
    found = retrieve_each(stores, options=OPTIONS)
    assert found.settings["differences"] == [
        "Tokens before the speech differ: language=<eng> task=<asr> (told (asr.zarr)), "
        "language=<eng> task=<st_deu> (told (told.zarr))."
    ]
    contexts = [row[5] for row in found.tables()[1].rows]
    assert contexts == ["exact, language=<eng>, task=<asr>", "exact, language=<eng>, task=<st_deu>"]


# --- refusals ---


def changed(store: Any, column: str, name: str, value: Any) -> Any:
    rows = store.utterances.to_pylist()
    for row in rows:
        if row["id"] == name:
            row[column] = value
    store.utterances = pa.Table.from_pylist(rows, store.utterances.schema)
    return store


def test_stores_of_other_corpora_are_refused() -> None:
    first, second, _ = encoders()
    apart = Held("speech-bb", 2, {"final": 0.5}, ids=[f"{name}0" for name in IDS if int(name[3:]) > 1])
    with pytest.raises(InputError) as refusal:
        retrieve_each([first, apart])
    for part in (f"{first.files.root} and {apart.files.root} hold no utterance", "extract one manifest with each"):
        assert part in str(refusal.value)
    for column, value, message in (
        ("group", "g4", "group of 1 utterance differs, e.g. of 'es-3' it is 'g3' and 'g4'; extract one corpus"),
        ("group", None, "group of 1 utterance differs, e.g. of 'es-3' it is 'g3' and None"),
        ("language", "en", "language of 1 utterance differs"),
        ("seconds", 4.2, "seconds of 1 utterance differs, e.g. of 'es-3' it is 4.0 and 4.2"),
    ):
        with pytest.raises(InputError, match=message):
            retrieve_each([first, changed(encoders()[1], column, "es-3", value)])
    near = changed(encoders()[1], "seconds", "es-3", 4.05)  # a header's length and a manifest's
    retrieve_each([first, near], "final", options=OPTIONS)
    with pytest.raises(UsageError, match="one encoder alone"):
        retrieve_each([second])


def test_bad_frames_of_the_last_encoder_are_found_before_the_first_is_measured() -> None:
    first, second, _ = encoders()
    second._frames["final"][3][0, 0] = np.nan

    class Stop(Heard):
        def step(self, text: str) -> None:
            raise AssertionError(text)

    with pytest.raises(InputError, match=r"speech-bb.zarr, output final: .*'en-3'"):
        retrieve_each([first, second], options=OPTIONS, reporter=Stop())


# --- controlled retrieval ---


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Planted:
    return plant(tmp_path_factory.mktemp("planted") / "phonetics", 3)


def planted_encoders(planted: Planted) -> list[Any]:
    """The outputs "meaning" and "sound" as `final` of two encoders."""
    stores = []
    for kind, declared in (("meaning", None), ("sound", family("Sounds", ("final",), hop=640))):
        store = Held(kind, 2, {"final": 0.5}, declared)
        store.utterances, store._frames = planted.store.utterances, {"final": planted.store._frames[kind]}
        stores.append(store)
    return stores


def test_align_of_each_equals_that_of_each_alone(planted: Planted) -> None:
    stores, options = planted_encoders(planted), AlignOptions("pooled_cosine", bootstrap=20)
    found = align_each(stores, planted.phonetics, options=options)
    for store in stores:
        alone = align(store, planted.phonetics, options=options).table.to_pylist()
        own = [row for row in alone if row["system"] == "final"]
        assert of(found.table, store.model.checkpoint).to_pylist() == own
    baselines = [row for row in alone if row["system"] != "final"]
    rest = [row for row in found.table.to_pylist() if row["encoder"] is None]
    assert [{k: row[k] for k in baselines[0]} for row in rest] == baselines
    unlike = {
        r["encoder"]: r["value"]
        for r in found.table.to_pylist()
        if (r["level"], r["control"], r["metric"], r["states"]) == ("mean", "unlike", "recall@1", "raw")
    }
    assert unlike["meaning"] > 0.5 > unlike["sound"]
    text = found.to_markdown()
    assert "Rows differ in length: 20 ms (meaning), 40 ms (sound)." in text
    assert "no encoder | phonemes" in text


def test_what_one_encoder_lacks_takes_no_part_in_align_either(planted: Planted) -> None:
    options = AlignOptions("pooled_cosine", bootstrap=0)
    whole, other = planted_encoders(planted)
    lacking = planted_encoders(planted)[0]
    other = changed(other, "status", "a00", "failed")
    found = of(align_each([whole, other], planted.phonetics, options=options).table, "meaning")
    expected = align(changed(lacking, "status", "a00", "failed"), planted.phonetics, options=options).table
    assert found.to_pylist() == [row for row in expected.to_pylist() if row["system"] == "final"]


def test_the_picture_of_align_has_a_curve_of_each_in_every_panel(planted: Planted, tmp_path: Path) -> None:
    result = align_each(
        planted_encoders(planted), planted.phonetics, options=AlignOptions("pooled_cosine", bootstrap=20)
    )
    names = {path.name for path in result.save(tmp_path)}
    assert names == {"compared_align.parquet", "compared_align.md", "align_by_depth.png", "align_by_depth.pdf"}
    assert str(ComparedAlignment.load(tmp_path)) == str(result)
    panels = result.figures()["align_by_depth"].axes
    assert len(panels) == 3
    for axes in panels:
        assert {"meaning", "sound", "chance"} <= {line.get_label() for line in axes.get_lines()}


# --- the picture ---


def test_the_picture_holds_the_tables_figures_on_one_axis_of_depth(tmp_path: Path) -> None:
    result = retrieve_each(encoders(), options=OPTIONS)
    names = {"compared.parquet", "compared.md", "recall_by_depth.png", "recall_by_depth.pdf"}
    assert {p.name for p in result.save(tmp_path)} == names
    assert str(ComparedRetrieval.load(tmp_path)) == str(result)
    (axes,) = result.figures()["recall_by_depth"].axes
    rows = [
        r for r in result.table.to_pylist()
        if (r["similarity"], r["score"], r["metric"], r["level"]) == ("seqsim_f1", "raw", "recall@1", "mean")
    ]  # fmt: skip
    lines = {line.get_label(): line for line in axes.get_lines()}
    hollow = [line for line in axes.get_lines() if line.get_markerfacecolor() == "white"]
    for encoder, on_the_line in (
        ("whisper-a", [f"layer_{k:02d}" for k in range(5)]),
        ("speech-bb", ["layer_00", "layer_01", "final"]),  # declares no layer_02: `final` is the last block's own
        ("slow-cccc", ["layer_01"]),
    ):
        own = [r for r in rows if r["encoder"] == encoder and r["output"] in on_the_line]
        np.testing.assert_allclose(lines[encoder].get_xdata(), [r["depth"] for r in own])
        np.testing.assert_allclose(lines[encoder].get_ydata(), [100 * r["value"] for r in own])
    finals = [r for r in rows if r["output"] == "final" and r["encoder"] != "speech-bb"]
    assert sorted(float(line.get_ydata()[0]) for line in hollow) == pytest.approx(
        sorted(100 * r["value"] for r in finals)
    )
    assert all(line.get_xdata()[0] == 1 for line in hollow)
    level = [line for line in axes.get_lines() if line.get_linestyle() == "--"]
    assert list(level[-1].get_ydata()) == pytest.approx([100 / 12] * 2)
    for part in ("pool of 12 candidates", "95 % bootstrap intervals", "hollow:"):
        assert part in " ".join(result.figures()["recall_by_depth"].get_suptitle().split())
    drawn = plot_recall_by_depth(result.table, result.settings, "t", "pooled_cosine", "mrr")
    assert drawn.axes[0].get_ylabel() == "mrr (%) by pooled_cosine: up is better"
    with pytest.raises(UsageError, match="unknown similarity 'cosine'; the table holds: seqsim_f1"):
        plot_recall_by_depth(result.table, result.settings, "t", "cosine")


def test_five_encoders_of_like_figures_have_labels_apart_and_in_the_picture() -> None:
    stores = [
        Held(f"organisation/encoder-{n}{'-large' * n}", 3, {"layer_00": 0.1, "layer_02": 0.5, "final": 0.6})
        for n in range(5)
    ]
    figure = retrieve_each(stores, options=OPTIONS).figures()["recall_by_depth"]
    figure.draw_without_rendering()
    texts = figure.axes[0].texts
    boxes = sorted((Text.get_window_extent(t) for t in texts), key=lambda box: box.y0)
    assert len(boxes) == 6  # chance, too
    assert all(above.y0 >= below.y1 for below, above in pairwise(boxes))
    width, height = figure.bbox.width, figure.bbox.height
    assert all(box.x1 <= width and box.y1 <= height and box.y0 >= 0 for box in boxes)
    assert len({t.get_color() for t in texts}) == 6


def test_labels_move_no_further_than_they_must() -> None:
    rng = np.random.default_rng(0)
    assert spread([0.9, 0.1, 0.5], 0.1) == pytest.approx([0.9, 0.1, 0.5])
    assert spread([0.5, 0.5], 0.1) == pytest.approx([0.45, 0.55])
    assert spread([], 0.1) == []
    for _ in range(200):
        at = rng.random(rng.integers(1, 8))
        places = np.array(spread(at, 0.1))
        order = np.argsort(at, kind="stable")
        assert (np.diff(places[order]) >= 0.1 - 1e-9).all()
        assert abs(places.mean() - at.mean()) < 1e-9  # touching labels share the way equally


# --- the command line ---


def utterances(languages: str, seed: int, d: int) -> dict[str, Utterance]:
    rng = np.random.default_rng(seed)
    return {
        f"{x}{g}": Utterance(rng.standard_normal((4 + g % 3, d)).astype(np.float32), x, f"g{g}")
        for x in languages
        for g in range(5)
    }


def test_commands_compare_stores_of_several_encoders(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spec = StoreSpec(("layer_00", "final"), dtype="float32", context=Context("exact"))
    declared = family("Sounds", spec.outputs, hop=320)
    outputs = {"outputs": spec.outputs, "layers": 3}
    make_store(tmp_path / "a.zarr", utterances("a", 0, 8))
    make_store(tmp_path / "b.zarr", utterances("b", 1, 8))
    changes = {"weights_sha256": "2" * 64, "checkpoint": "other", "family": declared, "silence": {}}
    make_store(tmp_path / "ab.zarr", utterances("ab", 2, 6), spec=spec, **changes, **outputs)
    a, b, ab = (tmp_path / f"{name}.zarr" for name in ("a", "b", "ab"))
    assert [store.name for store in open_by_encoder([a, ab, b])] == ["a.zarr + b.zarr", "ab.zarr"]
    assert run("retrieve", a, ab, b, "-o", tmp_path / "study" / "both", "--bootstrap", 9, "--json") == 0
    printed = json.loads(capsys.readouterr().out)
    assert {(row["encoder"], row["family"]) for row in printed["rows"]} == {("made-up", "Whisper"), ("other", "Sounds")}
    assert run("retrieve", a, ab, b, "-o", tmp_path / "study" / "both", "--bootstrap", 9, "--overwrite") == 0
    out, err = capsys.readouterr()
    assert "2 encoders: made-up, other" in out
    assert "compared.parquet, compared.md, recall_by_depth.png" in out
    assert "Contexts differ" in err
    assert run("retrieve", a, b, "-o", tmp_path / "study" / "one", "--bootstrap", 9) == 0
    assert run("report", tmp_path / "study") == 0
    page = (tmp_path / "study" / "report.html").read_text()
    assert "Best output of each encoder" in page
    assert "results are of 2 different encoders" in page
    assert "recall_by_depth.png: not in the folder" not in page
    capsys.readouterr()
    # what compares states of two encoders with each other is refused, and both are named
    for command in (
        ("similarity", a, ab, "--outputs", "final", "-o", tmp_path / "s"),
        ("similarity", a, "--join", ab, "--outputs", "final", "-o", tmp_path / "s"),
    ):
        assert run(*command) == 3
        err = capsys.readouterr().err
        assert "made-up (Whisper" in err
        assert "other (Sounds" in err
    with pytest.raises(InputError, match=r"different encoders, made-up \(Whisper, 1 block, d = 8\) and other \(Sounds"):
        open_store([a, ab])


def test_one_encoder_in_several_contexts_is_compared(tmp_path: Path) -> None:
    """Of one corpus; of parts of one the settings are to blame."""
    plain = StoreSpec(("final",), dtype="float32")
    make_store(tmp_path / "bucketed.zarr", utterances("ab", 0, 8), spec=plain)
    make_store(tmp_path / "padded.zarr", utterances("ab", 0, 8), spec=replace(plain, context=Context("padded")))
    make_store(tmp_path / "c.zarr", utterances("c", 0, 8), spec=replace(plain, context=Context("padded")))
    bucketed, padded, c = (tmp_path / f"{name}.zarr" for name in ("bucketed", "padded", "c"))
    found = retrieve_each(open_by_encoder([bucketed, padded]), options=OPTIONS)
    assert [a["encoder"] for a in found.settings["encoders"]] == ["made-up (bucketed.zarr)", "made-up (padded.zarr)"]
    with pytest.raises(InputError, match="context mode is bucketed in the first, padded in the second"):
        retrieve_each(open_by_encoder([bucketed, c]), options=OPTIONS)
    make_store(tmp_path / "trimmed.zarr", utterances("c", 0, 8), spec=replace(plain, context=Context("trimmed")))
    with pytest.raises(
        InputError, match=r"trimmed\.zarr cannot be compared: context mode is bucketed in the first, trim"
    ):
        retrieve_each(open_by_encoder([bucketed, padded, tmp_path / "trimmed.zarr"]), options=OPTIONS)
    pair = open_by_encoder([bucketed, padded, c])
    assert [store.name for store in pair] == ["bucketed.zarr", "padded.zarr + c.zarr"]
    assert retrieve_each(pair, options=OPTIONS).settings["not_in_all"] == {"made-up (padded.zarr + c.zarr)": 5}
