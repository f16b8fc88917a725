"""Controlled retrieval: each control finds what was planted and nothing else; unusable inputs say what to do."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from planted import GROUPS, SPEAKERS, Planted, plant
from stores import Utterance, ends, make_store
from test_cli import run

from voxstrata import InputError, UsageError, read_corpus
from voxstrata.retrieval.kernels.float32 import Float32
from voxstrata.retrieval.ragged import Ragged
from voxstrata.retrieval.similarities import seqsim
from voxstrata.studies.align.inputs import find_participants
from voxstrata.studies.align.measure import AlignOptions, align
from voxstrata.studies.align.result import Alignment
from voxstrata.studies.align.states import CENTRED, RAW, StateSimilarity, cell_centres
from voxstrata.studies.align.table import ALIGN_SCHEMA
from voxstrata.studies.phonetics.folder import PhoneticsFolder
from voxstrata.studies.phonetics.measure import measure_phonetics
from voxstrata.studies.retrieve import RetrievalOptions, retrieve

pytest.importorskip("panphon")

SEEDS = 20
Figures = dict[tuple[str, str, str, str], np.ndarray]


def over_seeds(corpora: Iterable[Planted]) -> Figures:
    """The means over directions by system, states, control and metric: (SEEDS, 2) values and chance."""
    found: dict[tuple[str, str, str, str], list[tuple[float, float]]] = defaultdict(list)
    for planted in corpora:
        result = align(planted.store, planted.phonetics, options=AlignOptions("pooled_cosine", bootstrap=0))
        for row in result.table.to_pylist():
            if row["level"] == "mean":
                key = (row["system"], row["states"], row["control"], row["metric"])
                found[key].append((row["value"], row["chance"]))
    return {key: np.array(rows, np.float64) for key, rows in found.items()}


@pytest.fixture(scope="module")
def planted_figures(planted_corpora: list[Planted]) -> Figures:
    return over_seeds(planted_corpora)


def mean(figures: Figures, system: str, control: str, metric: str = "recall@1", states: str = "raw") -> float:
    return float(figures[system, states, control, metric][:, 0].mean())


def error(figures: Figures, system: str, control: str, metric: str, states: str = "raw") -> float:
    """Standard error of that mean."""
    return float(figures[system, states, control, metric][:, 0].std(ddof=1) / np.sqrt(SEEDS))


class TestPlanted:
    def test_meaning_survives_every_control(self, planted_figures: Figures) -> None:
        f = planted_figures
        assert mean(f, "meaning", "all") > 0.25
        for control in ("unlike", "closest"):
            change = mean(f, "meaning", control, "recall@1_change")
            assert abs(change) < max(0.02, 4 * error(f, "meaning", control, "recall@1_change"))
        assert abs(mean(f, "meaning", "fit", "log_odds_per_sd")) < 0.05
        assert mean(f, "meaning", "fit", "recall@1_if_unlike") == pytest.approx(mean(f, "meaning", "all"), abs=0.02)
        assert mean(f, "meaning", "fit", "discrimination") < 0.02
        assert mean(f, "meaning", "all", states="means removed") == pytest.approx(mean(f, "meaning", "all"), abs=0.03)

    def test_sound_does_not_survive_where_it_cannot_help(self, planted_figures: Figures) -> None:
        f = planted_figures
        assert mean(f, "sound", "all") > 0.08
        assert mean(f, "sound", "matched") > 0.12
        chance = f["sound", "raw", "unlike", "recall@1"][:, 1].mean()
        assert mean(f, "sound", "unlike") < 1.5 * chance
        for control in ("unlike", "closest"):
            change = mean(f, "sound", control, "recall@1_change")
            assert change < -4 * error(f, "sound", control, "recall@1_change")
        assert mean(f, "sound", "fit", "log_odds_per_sd") > 0.3
        assert mean(f, "sound", "fit", "recall@1_if_unlike") < mean(f, "sound", "all") / 3
        assert mean(f, "sound", "all", states="means removed") == pytest.approx(mean(f, "sound", "all"), abs=0.02)

    def test_the_retriever_of_phonemes_is_undone_by_both_controls_of_sound(self, planted_figures: Figures) -> None:
        f = planted_figures
        assert mean(f, "phonemes", "all") > 0.25
        assert mean(f, "phonemes", "unlike") < 0.02
        assert mean(f, "phonemes", "closest", "recall@1_change") < -0.01

    def test_speaker_is_what_removing_means_removes(self, planted_figures: Figures) -> None:
        f = planted_figures
        right_speaker = SPEAKERS / GROUPS
        assert mean(f, "speaker", "all") == pytest.approx(right_speaker, rel=0.25)
        assert mean(f, "speaker", "all", states="means removed") == pytest.approx(1 / GROUPS, abs=0.004)
        for control in ("unlike", "closest"):
            change = mean(f, "speaker", control, "recall@1_change")
            assert abs(change) < max(0.02, 4 * error(f, "speaker", control, "recall@1_change"))
        slope = mean(f, "speaker", "fit", "log_odds_per_sd")
        assert abs(slope) < 4 * error(f, "speaker", "fit", "log_odds_per_sd")
        assert abs(slope) < mean(f, "sound", "fit", "log_odds_per_sd") / 4
        # With means removed about two hits a corpus are left, and no slope must come of so few.
        hits = mean(f, "speaker", "all", states="means removed") * 2 * GROUPS
        assert 1 < hits < 4
        slopes = f["speaker", "means removed", "fit", "log_odds_per_sd"][:, 0]
        found = slopes[~np.isnan(slopes)]
        assert abs(found.mean()) < min(0.25, 4 * found.std(ddof=1) / np.sqrt(len(found)))
        assert mean(f, "speaker", "fit", "recall@1_if_unlike") == pytest.approx(mean(f, "speaker", "all"), abs=0.005)
        assert mean(f, "speaker", "fit", "discrimination") < 0.02

    def test_durations_are_what_the_retriever_of_durations_finds_and_no_control_takes_them_for_sound(
        self, planted_figures: Figures
    ) -> None:
        f = planted_figures
        assert mean(f, "duration", "all") > 3 / GROUPS
        for control in ("unlike", "closest"):
            change, of_sound = (mean(f, s, control, "recall@1_change") for s in ("duration", "sound"))
            assert abs(change) < 0.04  # what the strata of duration leave
            assert abs(change) < abs(of_sound) / 2
        assert mean(f, "duration", "all", states="means removed") > 2.5 / GROUPS
        # Distances beside those of non-translations of like length leave a quarter of what sound itself gives;
        # in a fit that holds durations, nothing is left of it, and sound is.
        slope, given = "log_odds_per_sd", "log_odds_per_sd_given_duration"
        assert abs(mean(f, "duration", "fit", slope)) < mean(f, "sound", "fit", slope) / 3
        for system in ("duration", "durations", "meaning"):
            assert abs(mean(f, system, "fit", given)) < max(0.04, 3 * error(f, system, "fit", given)), system
        assert abs(mean(f, "duration", "fit", given)) < mean(f, "sound", "fit", given) / 8
        assert mean(f, "sound", "fit", given) > mean(f, "sound", "fit", slope)
        assert mean(f, "duration", "fit", "recall@1_if_unlike") > 0.7 * mean(f, "duration", "all")
        assert mean(f, "duration", "fit", "discrimination") < 0.03
        assert mean(f, "durations", "all") > 3 / GROUPS  # the retriever that sees nothing else


def test_shuffled_groups_fall_to_chance_under_every_control(tmp_path: Path) -> None:
    figures = over_seeds(plant(tmp_path / str(seed), seed, shuffled=True).pooled() for seed in range(SEEDS))
    checked = 0
    for (system, _, control, metric), rows in figures.items():
        if metric == "recall@1_if_unlike":  # what the fit leaves where sound does not help
            assert rows[:, 0].mean() < 1 / GROUPS + 4 * rows[:, 0].std(ddof=1) / np.sqrt(SEEDS), system
        if metric != "recall@1":
            continue
        value, chance = rows.mean(axis=0)
        margin = max(4 * rows[:, 0].std(ddof=1) / np.sqrt(SEEDS), 0.005)
        # Sound is held against the pairs that these controls choose by it, so what goes by sound or duration may fall
        # below chance there, never above it.
        assert value < chance + margin, (system, control)
        if control == "all":
            assert value > chance - margin, system
        checked += 1
    assert checked == 50  # four outputs with two kinds of states and two retrievers, five controls each


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Planted:
    return plant(tmp_path_factory.mktemp("one"), 0)


def test_whole_pools_reach_what_retrieve_reaches(planted: Planted) -> None:
    options = AlignOptions(bootstrap=200)
    table = align(planted.store, planted.phonetics, ["meaning"], options=options).table.to_pylist()
    retrieval = RetrievalOptions(["raw"], [1], bootstrap=200)
    plain = retrieve(planted.store, "meaning", similarities="seqsim_f1", options=retrieval).table.to_pylist()
    for source, target in (("a", "b"), ("b", "a"), ("mean", "mean")):
        (ours,) = [
            r
            for r in table
            if (r["system"], r["states"], r["control"], *ends(r)) == ("meaning", "raw", "all", source, target)
        ]
        (theirs,) = [r for r in plain if (*ends(r), r["metric"]) == (source, target, "recall@1")]
        for column in ("value", "low", "high", "chance", "queries", "candidates"):
            assert ours[column] == pytest.approx(theirs[column]), column


def test_intervals_of_changes_are_paired_and_hold_their_values(planted: Planted) -> None:
    result = align(planted.store, planted.phonetics, "sound", options=AlignOptions("pooled_cosine", bootstrap=300))
    table = result.table
    assert table.schema.equals(ALIGN_SCHEMA)
    rows = {
        (r["control"], r["metric"]): r
        for r in table.to_pylist()
        if (r["system"], r["states"], r["level"]) == ("sound", "raw", "mean")
    }
    for control, reference in (("unlike", "matched"), ("closest", "random")):
        change = rows[control, "recall@1_change"]
        both = rows[control, "recall@1"], rows[reference, "recall@1"]
        assert change["value"] == pytest.approx(both[0]["value"] - both[1]["value"])
        assert both[0]["candidates"] == both[1]["candidates"]
        assert both[0]["chance"] == both[1]["chance"]
    for row in rows.values():
        assert row["low"] <= row["value"] <= row["high"]
    assert rows["fit", "log_odds_per_sd"]["low"] > 0
    settings = json.loads(table.schema.metadata[b"voxstrata_align"])
    assert settings == result.settings
    assert (settings["by"], settings["unlike_quantile"], settings["closest"]) == ("like-length", 0.5, 9)
    assert settings["means_removed"] == {name: {"speakers": SPEAKERS, "of_no_such_speaker": 0} for name in ("a", "b")}


def test_of_several_recordings_of_a_sentence_one_takes_part(planted: Planted, tmp_path: Path) -> None:
    ids = ["a0", "a1", "a1x", "b0", "b1", "b2"]
    rng = np.random.default_rng(0)
    utterances = {i: Utterance(rng.standard_normal((9, 8)).astype(np.float32), i[0], f"g{i[1]}") for i in ids}
    store = make_store(tmp_path / "s.zarr", utterances)
    words = ["pata kiku", "somi lena", "somi lena", "bata kiku", "rofu daxi", "lumo pesa"]
    measure_phonetics(
        read_corpus(write_manifest(tmp_path, ids)), tmp_path / "ph", given=dict(zip(ids, words, strict=True))
    )
    result = align(store, tmp_path / "ph", options=AlignOptions(bootstrap=0))
    table = result.table
    row = table.to_pylist()[0]
    assert (row["queries"], row["candidates"]) == (2, 2)  # g2 has no partner, a1x is a second recording
    assert result.settings["left_out"] == {"further recordings of a sentence": 1}
    unlike = [r for r in table.to_pylist() if r["control"] == "unlike"]
    assert {r["value"] for r in unlike} == {None}  # too few pairs
    assert "empty here, as no direction has 10 such pairs" in str(result)


def test_what_has_no_figure_is_not_in_the_legend(planted: Planted) -> None:
    def entries(result: Alignment) -> list[str]:
        figure = result.figures()["align"]
        return [text.get_text() for a in figure.axes if a.get_legend() for text in a.get_legend().get_texts()]

    table = align(planted.store, planted.phonetics, options=AlignOptions("pooled_cosine", bootstrap=0)).table
    shown = entries(Alignment(table))
    of_pairs = pc.is_in(table["control"], pa.array(["unlike", "matched"]))
    for name in ("value", "chance", "candidates", "candidates_max"):
        at = table.schema.get_field_index(name)
        table = table.set_column(at, name, pc.if_else(of_pairs, None, table[name]))
    without = entries(Alignment(table))
    assert any("unlike-sounding pairs" in entry for entry in shown)
    assert [entry for entry in without if "pairs" in entry] == []
    assert sum("chance" in entry for entry in shown) == sum("chance" in entry for entry in without) + 1


@pytest.mark.parametrize(
    ("output", "said"),
    [("meaning", "Sound alone does not explain it."), ("sound", "Without sound it is not above chance.")],
)
def test_the_answer_says_whether_sound_alone_explains_it(planted: Planted, output: str, said: str) -> None:
    result = align(planted.store, planted.phonetics, output, options=AlignOptions("pooled_cosine", bootstrap=20))
    assert said in result.finding().answer


def test_what_is_saved_is_what_is_loaded(planted: Planted, tmp_path: Path) -> None:
    result = align(planted.store, planted.phonetics, "meaning", options=AlignOptions("pooled_cosine", bootstrap=20))
    written = result.save(tmp_path / "out")
    assert [path.name for path in written] == ["align.parquet", "align.md", "align.png", "align.pdf"]
    assert all(path.stat().st_size for path in written)
    again = Alignment.load(tmp_path / "out")
    assert again.table.equals(result.table, check_metadata=True)
    assert again.settings == result.settings
    assert again.store == planted.store.about
    assert again.title == f"made-up, bucketed, on {planted.store.name}"
    assert str(again) == str(result)
    assert "all: the whole pool, shared-first" in str(result).replace("\n", " ")
    assert set(result.table["pool"].to_pylist()) == {result.settings["pool"]} == {"shared-first"}
    assert "pool shared-first" in result.figures()["align"].get_suptitle()
    assert again.to_markdown() == written[1].read_text(encoding="utf-8")
    assert "<table>" in again._repr_html_()
    with pytest.raises(InputError, match=r"align\.parquet: missing; `voxstrata align` writes it"):
        Alignment.load(tmp_path)


class TestStreaming:
    """Frames of a language are never together in memory, and blocks change no score."""

    @staticmethod
    def small_blocks(frames: int) -> Float32:
        kernel = Float32()
        kernel.block_frames = frames
        return kernel

    def test_the_frames_read_at_once_are_bounded_by_the_kernels_blocks(self, planted: Planted) -> None:
        options = AlignOptions("seqsim_f1", bootstrap=0, kernel=self.small_blocks(200))
        longest, whole = planted.store.length.max(), planted.store.length.sum() // 2
        assert longest < 200 < whole / 10
        planted.store.most_frames = 0
        align(planted.store, planted.phonetics, ["meaning"], options=options)
        assert longest <= planted.store.most_frames <= 200

    @pytest.mark.parametrize("states", [RAW, CENTRED])
    def test_scores_in_blocks_are_those_of_whole_languages(self, planted: Planted, states: str) -> None:
        (x, y), _ = find_participants(planted.store, PhoneticsFolder(planted.phonetics), None)
        centres = {side.language: cell_centres(side, "sound") for side in (x, y)}
        assert set(centres["a"]) == {1, 2, 3, 4}  # four speakers
        found = StateSimilarity("sound", "seqsim_f1", self.small_blocks(200), centres).matrix(x, y, states)
        whole = []
        for side in (x, y):
            frames = [planted.store.ragged("sound", [i])[0] for i in side.selection.indices]
            if states == CENTRED:
                means = np.stack([f.mean(axis=0) for f in frames])
                frames = [f - means[side.cells == c].mean(axis=0) for f, c in zip(frames, side.cells, strict=True)]
            whole.append(Ragged.from_list([np.asarray(f, np.float32) for f in frames]))
        assert found == pytest.approx(seqsim(*whole).f1, abs=2e-6)


def write_manifest(folder: Path, ids: list[str]) -> Path:
    path = folder / "m.tsv"
    lines = ["id\tpath\tlanguage\tgroup", *(f"{i}\t{i}.wav\t{i[0]}\tg{i[1]}" for i in ids)]
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


class TestUnusable:
    def test_no_phonetics(self, planted: Planted, tmp_path: Path) -> None:
        with pytest.raises(InputError, match="voxstrata phonetics"):
            align(planted.store, tmp_path)

    def test_phonetics_of_another_corpus(self, planted: Planted, tmp_path: Path) -> None:
        ids = ["x0", "x1", "y0", "y1"]
        given = dict(zip(ids, ["pata", "kiku", "somi", "lena"], strict=True))
        measure_phonetics(read_corpus(write_manifest(tmp_path, ids)), tmp_path / "ph", given=given)
        with pytest.raises(InputError, match="holds IPA of no utterance in a, b"):
            align(planted.store, tmp_path / "ph")

    def test_one_sentence_in_common(self, tmp_path: Path) -> None:
        ids = ["a0", "a1", "b0", "b2"]
        frames = np.random.default_rng(0).standard_normal((4, 5, 8)).astype(np.float32)
        store = make_store(
            tmp_path / "s.zarr", {i: Utterance(f, i[0], f"g{i[1]}") for i, f in zip(ids, frames, strict=True)}
        )
        given = dict(zip(ids, ["pata", "kiku", "somi", "lena"], strict=True))
        measure_phonetics(read_corpus(write_manifest(tmp_path, ids)), tmp_path / "ph", given=given)
        with pytest.raises(InputError, match="a pool of one utterance"):
            align(store, tmp_path / "ph")

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"similarity": "cosine"}, "seqsim_f1, pooled_cosine"),
            ({"by": "ear"}, "like-length"),
            ({"quantile": 50}, "share of 0 to 1"),
            ({"closest": 0}, "at least 1"),
            ({"bootstrap": -1}, "resamples"),
        ],
    )
    def test_impossible_settings(self, settings: dict[str, object], message: str) -> None:
        with pytest.raises(UsageError, match=message):
            AlignOptions(**settings)  # type: ignore[arg-type]

    def test_unknown_outputs(self, planted: Planted) -> None:
        with pytest.raises(UsageError, match="layer_77"):
            align(planted.store, planted.phonetics, ["layer_77"])


def test_a_random_weight_encoder_shows_no_meaning_and_the_command_draws_its_table(
    make_corpus: Callable[..., Path], tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Sounds of one length that share nothing across languages: nothing but meaning could match them."""
    groups = 24
    folder = make_corpus({f"{language}/{g:02d}": 0.7 for language in ("a", "b") for g in range(groups)})
    rows = ["id\tpath\tlanguage\tgroup\tipa"]
    rng = np.random.default_rng(0)
    for language in ("a", "b"):
        for g in range(groups):
            ipa = "".join(rng.choice(list("ptkbdɡszmnlaeiou"), 12))
            rows.append(f"{language}/{g:02d}\t{language}/{g:02d}.wav\t{language}\tg{g}\t{ipa}")
    manifest = folder / "m.tsv"
    manifest.write_text("\n".join(rows), encoding="utf-8")
    assert run("extract", manifest, tiny_model, "-o", tmp_path / "s.zarr") == 0
    assert run("phonetics", manifest, "--ipa", manifest, "-o", tmp_path / "ph") == 0
    capsys.readouterr()
    assert run("align", tmp_path / "s.zarr", "--phonetics", tmp_path / "ph", "-o", tmp_path / "out") == 0
    out = capsys.readouterr().out
    assert "chance" in out
    assert "matched" in out
    assert "its language" in out  # no speakers: cells are languages
    for name, magic in (("align.png", b"\x89PNG"), ("align.pdf", b"%PDF")):
        assert (tmp_path / "out" / name).read_bytes().startswith(magic)
    assert "a → b" in (tmp_path / "out" / "align.md").read_text(encoding="utf-8")
    table = pq.read_table(tmp_path / "out" / "align.parquet")
    assert "made-up" not in json.loads(table.schema.metadata[b"voxstrata"])["model"]["checkpoint"]
    found = [
        r
        for r in table.to_pylist()
        if (r["control"], r["metric"]) == ("all", "recall@1") and r["level"] == "mean" and r["system"] != "phonemes"
    ]
    assert len(found) == 11  # five outputs with two kinds of states, durations
    for row in found:
        assert row["chance"] == pytest.approx(1 / groups)
        assert row["value"] < 8 / 48  # of 48 queries at 1 / 24, eight hits or more happen once in 1,000 times
    assert run("align", tmp_path / "s.zarr", "--phonetics", tmp_path, "-o", tmp_path / "none") == 3
    assert run("align", tmp_path / "s.zarr", "--phonetics", tmp_path / "ph", "-o", tmp_path / "p", "--json",
               "--outputs", "final", "--bootstrap", "0") == 0  # fmt: skip
    assert json.loads(capsys.readouterr().out)["settings"]["by"] == "like-length"


def test_languages_and_tables_are_checked_against_each_other(planted: Planted, tmp_path: Path) -> None:
    """A distance that is missing is named, not taken for something else."""
    folder = Path(planted.phonetics)
    (tmp_path / "ph").mkdir()
    for name in ("ipa.parquet", "distances.parquet"):
        table = pq.read_table(folder / name)
        pq.write_table(table.slice(1) if name == "distances.parquet" else table, tmp_path / "ph" / name)
    with pytest.raises(InputError, match="no distance between 'a00' and 'b00'"):
        align(planted.store, tmp_path / "ph")
