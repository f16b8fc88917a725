"""What results say in a sentence: the planted answer, beside chance; and the small pictures of a report's opening."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pyarrow as pa
import pytest
from report_results import write_bench, write_drift, write_exits, write_words
from test_cli import run
from test_retrieval_plots import made_table

from voxstrata.base.figures import new_figure, percent_axis, set_title
from voxstrata.base.finding import SmallCurve, percent_text
from voxstrata.base.tables import in_percent
from voxstrata.early_exit.figures import plot_errors, plot_kinds
from voxstrata.early_exit.result import EarlyExits
from voxstrata.engine.bench import Bench
from voxstrata.evaluation.levels import pool_sizes
from voxstrata.report.registry import QUESTIONS, RESULTS
from voxstrata.report.small import small_picture
from voxstrata.studies.drift.result import Drift
from voxstrata.studies.retrieve import Retrieval
from voxstrata.studies.retrieve.result import RETRIEVAL_SCHEMA
from voxstrata.studies.retrieve.text import _counted_span
from voxstrata.studies.words.result import WordComparison

pytest.importorskip("matplotlib", reason="plots need the extra `plot`")


def retrieval(change: dict[str, dict[str, Any]]) -> Retrieval:
    """Three outputs whose means are as given, by output."""
    rows = made_table(2, 3, ("pooled_cosine",)).to_pylist()
    for row in rows:
        row["store"] = "made-up.zarr"
        if (row["level"], row["score"]) == ("mean", "raw"):
            row.update(change[row["output"]])
    return Retrieval(pa.Table.from_pylist(rows, schema=RETRIEVAL_SCHEMA))


def test_retrieve_names_the_best_layer_with_chance_and_interval() -> None:
    means = {"layer_00": {"value": 0.1, "low": 0.05, "high": 0.2}, "layer_01": {"value": 0.5, "low": 0.4, "high": 0.6},
             "final": {"value": 0.4, "low": 0.3, "high": 0.5}}  # fmt: skip
    found = retrieval(means).finding()
    assert found.answer == (
        "layer_01: 50.0 % [40.0, 60.0] of the translations come first, by pooled_cosine. "
        "Chance is 1.4 %, of 70 candidates."
    )
    assert found.curve is not None
    assert (found.curve.names, found.curve.value, found.curve.best) == (
        ["layer_00", "layer_01", "final"],
        [10, 50, 40],
        1,
    )
    assert found.curve.chance == pytest.approx([100 / 70] * 3)


def test_retrieve_names_layers_that_may_be_as_good() -> None:
    behind = {"layer_00": {"value": 0.1, "below_best": 0.4, "below_best_low": 0.1},
              "layer_01": {"value": 0.5, "low": 0.4, "below_best": 0.0, "below_best_low": None},
              "final": {"value": 0.4, "below_best": 0.1, "below_best_low": -0.05}}  # fmt: skip
    assert retrieval(behind).finding().answer.endswith("As good, for all that these data can say: final.")


def test_retrieve_says_that_nothing_is_above_chance() -> None:
    by_chance = {"value": 0.02, "low": 0.01, "high": 0.03}
    found = retrieval(dict.fromkeys(("layer_00", "layer_01", "final"), by_chance)).finding()
    assert found.answer.startswith(
        "No layer is above chance. The highest, layer_00, has 2.0 % [1.0, 3.0]. Chance is 1.4 %"
    )


def test_a_sweep_names_the_exit_and_what_it_costs(tmp_path: Path) -> None:
    write_exits(tmp_path)
    result = EarlyExits.load(tmp_path)
    found = result.finding()
    assert found.answer.startswith(
        "After block 1 of 2: on the test part WER is 50.0 % [50.0, 50.0], 30.0 % [30.0, 30.0]"
    )
    said = "The test part has 6 recordings of 6 sentences. Saying nothing errs in 100 %."
    assert found.answer.endswith(said)
    for text in (str(result), result._repr_html_(), result.to_markdown()):  # printed, in a notebook, saved
        assert said in " ".join(text.split())
    assert found.curve is not None
    assert found.curve.best == 1
    assert found.curve.value == pytest.approx([80.0, 50.0, 20.0])


def test_drift_words_and_bench_say_theirs(tmp_path: Path) -> None:
    write_drift(tmp_path / "d")
    drift = Drift.load(tmp_path / "d").finding().answer
    assert "bucketed, 5.9 times as fast: at final the cosine to padded is 0.988, 0.4 % of the frames" in drift
    assert "recall@1 changes by -33.3 points to 25.0 %" in drift
    assert drift.endswith("Chance is 13.0 %.")
    write_words(tmp_path / "w")
    table = WordComparison.load(tmp_path / "w")
    auc = {(r["output"], r["kind"]): r["auc"] for r in table.table.to_pylist()
           if (r["similarity"], r["source"]) == ("seqsim_f1", "all")}  # fmt: skip
    best = max(("layer_00", "final"), key=lambda output: auc[output, "synonyms"])
    assert table.finding().answer.startswith(
        f"{best}: against random pairs, AUC of synonyms {auc[best, 'synonyms']:.2f}"
    )
    write_bench(tmp_path / "bench.json", tmp_path / "b")
    bench = Bench.load(tmp_path / "b")
    assert bench.finding().answer == (
        "trimmed: 180.0 hours of audio in an hour; bucketed: 120.0 hours of audio in an hour; padded: 60.0 hours of "
        "audio in an hour. The corpus would take 0:01:02 in trimmed."
    )
    assert bench.title.startswith("made-up on made-up, cpu, 2 threads")


def test_a_folder_of_bench_is_reported_as_the_redirected_json_is(tmp_path: Path) -> None:
    write_bench(tmp_path / "bench.json", tmp_path / "speed")
    assert {p.name for p in (tmp_path / "speed").iterdir()} == {
        "bench.parquet", "estimates.parquet", "bench.md", "bench.png", "bench.pdf"
    }  # fmt: skip
    told = json.loads((tmp_path / "bench.json").read_text(encoding="utf-8"))
    printed = Bench.of_json(told)
    then = {**told, "modes": told["contexts"], "corpus": {k: {**v, "mode": k} for k, v in told["corpus"].items()}}
    for one in (then, *then["modes"].values(), *then["corpus"].values()):  # as 0.1.0 printed it
        one.pop("contexts", one.pop("context", None))
    assert Bench.of_json(then).table.equals(printed.table)
    assert Bench.of_json(then).estimates.equals(printed.estimates)
    saved = Bench.load(tmp_path / "speed")
    assert saved.table.equals(printed.table)
    assert saved.estimates.equals(printed.estimates)
    assert saved.to_markdown().partition("\n")[2] == printed.to_markdown().partition("\n")[2]  # but for the title
    assert run("report", tmp_path) == 0
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert page.count('data-run="bench: ') == 2
    assert "How fast is this machine?" in page


def test_every_kind_of_result_asks_a_question_of_its_own() -> None:
    assert len(set(QUESTIONS)) == len(QUESTIONS) == len(RESULTS) + 1
    assert all(question.endswith("?") for question in QUESTIONS)


def test_percent_texts() -> None:
    assert percent_text(0.5) == "50.0 %"
    assert percent_text(0.163, 0.141, 0.185) == "16.3 % [14.1, 18.5]"
    assert percent_text(0.163, None, None) == "16.3 %"
    assert percent_text(None) == "–"
    assert percent_text(-0.0) == "0.0 %"


SVG = "{http://www.w3.org/2000/svg}"


def drawn(curve: SmallCurve) -> ElementTree.Element:
    return ElementTree.fromstring(small_picture(curve).replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1))


def test_a_small_picture_has_values_chance_and_the_answer() -> None:
    curve = SmallCurve("recall@1 (%)", ["a", "b", "<c>"], [0, 20, 40], [0, 10, 30], [5, 30, 40], [10] * 3, best=2)
    svg = drawn(curve)
    of = {kind: [e for e in svg.iter() if e.get("class") == kind] for kind in ("line", "dot", "chance", "best", "band")}
    y = [float(e.get("cy") or "nan") for e in of["dot"]]
    assert y[0] > y[1] > y[2]
    assert y[0] - y[1] == pytest.approx(y[1] - y[2])  # one scale, from 0 to 40
    (chance,) = [e for e in of["chance"] if e.tag == f"{SVG}polyline"]  # the other is of the legend
    levels = {float(pair.split(",")[1]) for pair in (chance.get("points") or "").split()}
    assert levels == {round(y[0] - (y[0] - y[1]) / 2, 1)}
    assert float(of["best"][0].get("cy") or "nan") == y[2]
    assert len(of["line"]) == len(of["band"]) == 1
    texts = [e.text for e in svg.iter(f"{SVG}text")]
    assert {"recall@1 (%)", "0", "40", "chance", "a", "<c>"} <= set(texts)
    kinds = drawn(SmallCurve("%", ["en → es", "es → en"], [10, None], steps=True))
    assert [e for e in kinds.iter() if e.get("class") == "line" and e.tag == f"{SVG}polyline"] == []
    assert len([e for e in kinds.iter() if e.get("class") == "dot"]) == 1
    assert len([e for e in drawn(SmallCurve("%", ["final"], [120.0])).iter() if e.get("class") == "dot"]) == 1


def errors(**changes: Any) -> list[dict[str, Any]]:
    """Rows of two languages and three exits; the first errs in 1,200 %."""
    kinds = {f"{unit}_{kind}": 0.2 for unit in ("word", "character") for kind in ("substitutions", "deletions")}
    row = {"script": "LATIN", "norm": "with", "unit": "word", "chance": 1.1, "utterances": 6, "part": "test", **kinds}
    row |= {"word_insertions": 11.6, "character_insertions": 0.1, "cut_wer": 0.9, "cut_cer": 0.9}
    rows = []
    for language in ("en", "es"):
        for after, rate in enumerate((12.0, 0.8, 0.2)):
            own = {"rate": rate, "cut_rate": rate, "low": rate - 0.1, "high": rate + 0.1}
            own |= {"cut_rate_low": rate - 0.1, "cut_rate_high": rate + 0.1}
            rows.append({**row, **own, "language": language, "after": after, **changes})
    return rows


CHOICES = {"en": {"language": "en", "after": 2, "norm": "with", "chosen_by": "rate"}}


def test_errors_end_at_100_percent_on_one_axis_and_more_is_written() -> None:
    for figure in (plot_errors(errors(), CHOICES, "m on c"), plot_kinds(errors(), CHOICES, "m on c")):
        panels = [axes for axes in figure.axes if axes.get_visible()]
        assert {axes.get_ylim() for axes in panels} == {(0, 108)}
        assert "1200" in {text.get_text() for axes in panels for text in axes.texts}
        assert max(tick for axes in panels for tick in axes.get_yticks()) == 100
        assert figure.get_suptitle().split(":")[1].strip().startswith("m on c")
    figure = plot_errors(errors(), CHOICES, "m on c")
    tops = [np.nanmax(np.asarray(line.get_ydata(), float)) for axes in figure.axes for line in axes.get_lines()
            if len(line.get_ydata())]  # fmt: skip
    assert max(tops) < 108


def test_titles_speak_of_intervals_where_there_are_some() -> None:
    none = dict.fromkeys(("low", "high", "cut_rate_low", "cut_rate_high"))
    assert "95 % bootstrap intervals" in " ".join(plot_errors(errors(), CHOICES, "m").get_suptitle().split())
    assert "interval" not in plot_errors(errors(**none), CHOICES, "m").get_suptitle()


def test_a_title_keeps_a_number_and_its_percent_together() -> None:
    for words in range(5, 25):  # wherever the line breaks
        figure = new_figure(6, 4)
        set_title(figure, "word " * words + "chance: recall@1 0.6 %")
        assert re.search(r"0\.6\s?\n", figure.get_suptitle()) is None
        assert " ".join(figure.get_suptitle().split()).endswith("recall@1 0.6 %")


@pytest.mark.parametrize(("highest", "top"), [(0, 20), (16.3, 20), (20.1, 40), (99, 100), (1200, 100)])
def test_an_axis_of_shares_begins_at_0_and_ends_at_100_at_most(highest: float, top: int) -> None:
    axes = new_figure(4, 4).subplots()
    percent_axis(axes, highest)
    low, high = axes.get_ylim()
    assert low <= 0
    assert top <= high <= 1.05 * top
    assert all(tick == int(tick) for tick in axes.get_yticks())


def test_a_share_has_one_form_and_a_small_chance_is_not_called_none() -> None:
    assert [in_percent(x) for x in (0.1634, 1.0, 0.0, -0.0001, None)] == ["16.3", "100.0", "0.0", "0.0", "–"]
    assert percent_text(0.1634, 0.141, 0.185) == "16.3 % [14.1, 18.5]"
    assert [percent_text(x) for x in (0.00031, 0.0000031, 0.0, None)] == ["0.03 %", "0.0003 %", "0.0 %", "–"]
    assert percent_text(0.0002, 0.0, 0.01) == "0.02 % [0.0, 1.0]"
    assert [in_percent(x) for x in (0.00031, 0.00049, 1e-14)] == ["0.03", "0.05", "0.0"]  # the last is rounding


def test_sizes_of_pools_have_commas_from_a_thousand_on() -> None:
    assert pool_sizes({"candidates": 6, "candidates_max": 1012}) == "6–1,012"
    assert pool_sizes({"candidates": 1012, "candidates_max": 1012}) == "1,012"
    one, two = (pa.chunked_array([[n, 1012]]) for n in (1, 1012))
    assert _counted_span(one, "query", "queries") == "1–1,012 queries"
    assert _counted_span(two, "query", "queries") == "1,012 queries"
