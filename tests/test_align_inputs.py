"""Controlled retrieval takes phonetics of its own texts only; every figure is printed with pool, chance, interval."""

from __future__ import annotations

import re
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from planted import Planted, plant
from stores import MadeUpStore, ends

from voxstrata import InputError
from voxstrata.corpus import Corpus
from voxstrata.corpus.table import CORPUS_SCHEMA
from voxstrata.phonology.ipa import read_ipa
from voxstrata.studies.align.measure import AlignOptions, align
from voxstrata.studies.align.result import Alignment
from voxstrata.studies.phonetics.measure import measure_phonetics

pytest.importorskip("panphon")
pytest.importorskip("phonemizer")

TEXTS = {"en0": "It rains.", "en1": "The hotel is closed.", "es0": "Llueve.", "es1": "El hotel está cerrado."}


def corpus(texts: dict[str, str]) -> Corpus:
    ids = list(texts)
    columns = {
        "id": ids,
        "path": [f"{i}.wav" for i in ids],
        "language": [i[:2] for i in ids],
        "group": [i[2:] for i in ids],
        "text": list(texts.values()),
        "speaker": [None] * len(ids),
    }
    return Corpus(Path("/"), pa.table(columns, schema=CORPUS_SCHEMA))


def store_of(texts: dict[str, str]) -> MadeUpStore:
    rng = np.random.default_rng(0)
    table = corpus(texts).table.append_column("seconds", pa.array([1.0, 2.0, 1.1, 2.2]))
    return MadeUpStore(table, {"final": [rng.standard_normal((5, 8)).astype(np.float32) for _ in texts]})


def test_phonetics_of_other_texts_with_the_same_ids_are_refused(tmp_path: Path) -> None:
    newer = TEXTS | {"es1": "El hotel está cerrado hoy."}
    measure_phonetics(corpus(newer), tmp_path / "ph")
    with pytest.raises(InputError, match=r"of 1 utterance; 'es1' is 'El hotel está cerrado hoy.'.*--ipa"):
        align(store_of(TEXTS), tmp_path / "ph", options=AlignOptions(bootstrap=0))
    align(store_of(newer), tmp_path / "ph", options=AlignOptions(bootstrap=0))
    # the way out that the message names: the newer text's IPA, taken as given
    measure_phonetics(corpus(newer), tmp_path / "given", given=read_ipa(tmp_path / "ph" / "ipa.parquet"))
    align(store_of(TEXTS), tmp_path / "given", options=AlignOptions(bootstrap=0))


def test_tables_of_two_runs_are_refused(tmp_path: Path) -> None:
    measure_phonetics(corpus(TEXTS), tmp_path / "a")
    measure_phonetics(corpus(TEXTS | {"en0": "It pours."}), tmp_path / "b")
    shutil.copy(tmp_path / "b" / "distances.parquet", tmp_path / "a")
    with pytest.raises(InputError, match="not of one run"):
        align(store_of(TEXTS), tmp_path / "a", options=AlignOptions(bootstrap=0))
    table = pq.read_table(tmp_path / "b" / "ipa.parquet")
    for name in ("ipa.parquet", "distances.parquet"):
        table = pq.read_table(tmp_path / "b" / name)
        metadata = {k: v for k, v in table.schema.metadata.items() if b"phonetics" not in k}
        pq.write_table(table.replace_schema_metadata(metadata), tmp_path / "b" / name)
    with pytest.raises(InputError, match="not of one run"):
        align(store_of(TEXTS), tmp_path / "b", options=AlignOptions(bootstrap=0))


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Planted:
    return plant(tmp_path_factory.mktemp("one"), 0)


@pytest.fixture(scope="module")
def result(planted: Planted) -> Alignment:
    options = AlignOptions("pooled_cosine", bootstrap=200)
    return align(planted.store, planted.phonetics, "meaning,speaker", options=options)


def test_what_removing_means_changes_is_paired_by_resample(result: Alignment) -> None:
    rows = {
        (r["system"], r["states"], r["metric"], ends(r)[0]): r
        for r in result.table.to_pylist()
        if r["control"] == "all"
    }
    for source in ("a", "b", "mean"):
        raw = rows["meaning", "raw", "recall@1", source]
        centred = rows["meaning", "means removed", "recall@1", source]
        change = rows["meaning", "means removed", "recall@1_change", source]
        assert change["value"] == pytest.approx(centred["value"] - raw["value"])
        assert change["low"] <= change["value"] <= change["high"]
        # nearly the same hits: unpaired, the interval would be wider than either
        assert change["high"] - change["low"] < 0.8 * (raw["high"] - raw["low"])
    assert rows["speaker", "means removed", "recall@1_change", "mean"]["value"] < 0


UNKNOWN, ONE = "speakers are unknown, or have fewer than 10", "has one speaker alone"
SPEAKER, SOME = (
    "mean of its speaker in its language",
    "or of its language where the speaker is unknown or has fewer than 10",
)


@pytest.mark.parametrize(
    ("speakers", "said"),
    [
        (lambda language, at: None, [UNKNOWN]),
        (lambda language, at: f"{language}{at}", [UNKNOWN]),
        (lambda language, at: language, [ONE]),
        (lambda language, at: f"{language}{at % 2}", [SPEAKER]),
        (lambda language, at: language if at else None, [SPEAKER, SOME]),
        (lambda language, at: language if language == "a" else None, [SPEAKER, SOME]),
    ],
    ids=["unknown", "too rare", "one", "two", "one unknown", "one in a, unknown in b"],
)
def test_the_note_says_whose_mean_is_removed(
    planted: Planted, speakers: Callable[[str, int], str | None], said: list[str]
) -> None:
    table = planted.store.utterances
    names, seen = [], Counter[str]()
    for language in table["language"].to_pylist():
        names.append(speakers(language, seen[language]))
        seen[language] += 1
    table = table.set_column(table.column_names.index("speaker"), "speaker", pa.array(names, pa.string()))
    frames = list(planted.store.pooled("meaning", np.arange(len(table)))[:, None])
    store = MadeUpStore(table.drop(["status"]), {"meaning": frames})
    note = align(store, planted.phonetics, options=AlignOptions("pooled_cosine", bootstrap=0)).tables()[0].note
    assert [text for text in (UNKNOWN, ONE, SPEAKER, SOME) if text in note] == said


def test_the_picture_cuts_a_bar_that_flattens_it_says_so_and_holds_its_legends(result: Alignment) -> None:
    def drawn(table: pa.Table) -> tuple[list[str], float, str]:
        figure = Alignment(table).figures()["align"]
        figure.draw_without_rendering()
        legends = [axes.get_legend() for axes in figure.axes if axes.get_legend()]
        assert len(legends) == 3
        for text in (*legends, *(axes.title for axes in figure.axes)):
            box = text.get_window_extent()
            assert figure.bbox.x0 <= box.x0 <= box.x1 <= figure.bbox.x1
            assert figure.bbox.y0 <= box.y0 <= box.y1 <= figure.bbox.y1
        slope = figure.axes[2]
        return [text.get_text() for text in slope.texts], slope.get_ylim()[1], figure.get_suptitle()

    texts, top, title = drawn(result.table)
    assert (texts, "cut" in title, "blue" in title) == ([], False, False)
    rows = result.table.to_pylist()
    for row in rows:
        if (row["system"], row["metric"], row["level"]) == ("meaning", "log_odds_per_sd", "mean"):
            row["high"] = 99.0
        if (row["control"], row["metric"], row["source"]) == ("unlike", "recall@1", "a"):
            row["value"] = None
    wide = pa.Table.from_pylist(rows, schema=result.table.schema)
    texts, cut, title = drawn(wide)
    assert texts == ["↑ 99.0"]
    assert cut < 10 * top
    assert "a bar with a number is cut" in title
    assert "mean over 2 directions (blue in b: over 1)" in title


def test_the_printed_tables_hold_every_mean_with_its_interval_pool_and_chance(result: Alignment) -> None:
    means = [
        r for r in result.table.to_pylist() if r["level"] == "mean" and (r["states"] == "raw" or r["control"] == "all")
    ]
    assert len(means) == 4 * 11 + 2 * 2  # by system: five controls, two changes, the fits; and with means removed
    terminal, page = str(result), result.to_markdown()
    page = page[: page.index("## Whole pools, a → b")]
    for row in means:
        scale, places = (100, 1) if row["metric"].startswith("recall") else (1, 2)
        value, low, high = (f"{round(scale * row[n], places) + 0.0:.{places}f}" for n in ("value", "low", "high"))
        interval = f"[{low}, {high}]"
        assert f"{value}<br>{interval} |" in page
        assert value in terminal
        assert interval in terminal
    assert max(map(len, terminal.splitlines())) < 125
    pools = [re.split(r" {2,}", line) for line in terminal.splitlines() if line.startswith(("pool  ", "chance  "))]
    assert [line[1:3] for line in pools[:2]] == [["160", "160"], ["0.6", "0.6"]]
    assert pools[2][-2:] == ["10", "10"]  # nothing behind them
