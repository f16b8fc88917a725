"""The report: one file that needs nothing else, whose numbers are the stored ones, and which a browser shows whole."""

from __future__ import annotations

import base64
import csv
import hashlib
import html
import json
import re
import shutil
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from planted import plant
from report_pages import BROWSER, CLICKS, PHONE, PROBE, Page, Table, browse
from report_results import NASTY, write_bench, write_drift, write_exits, write_words
from stores import Utterance, make_store
from test_cli import run

import voxstrata as vs
from voxstrata.base.tables import TextTable
from voxstrata.report.html import page as whole_page
from voxstrata.report.page import write_report
from voxstrata.report.registry import RESULTS
from voxstrata.studies.align.measure import AlignOptions, align
from voxstrata.studies.retrieve import RetrievalOptions, evaluate_similarity

pytest.importorskip("panphon")
pytest.importorskip("matplotlib")


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with results of every command, and a store."""
    root = tmp_path_factory.mktemp("desk") / "study"
    root.mkdir()
    rng = np.random.default_rng(0)
    utterances = {
        f"{language}-{g}": Utterance(rng.standard_normal((5 + g, 8)).astype(np.float32), language, f"g{g}")
        for language in ("en", "es", "uk")
        for g in range(7)
    }
    make_store(root / "speech.zarr", utterances)
    assert run("retrieve", root / "speech.zarr", "-o", root / "retrieval", "--bootstrap", "30") == 0
    assert run("explain", root / "speech.zarr", "en-3", "es-3", "-o", root / "why") == 0
    planted = plant(root / "phonetics", 0)
    options = AlignOptions("pooled_cosine", bootstrap=20)
    align(planted.store, planted.phonetics, options=options).save(root / "deep" / "aligned")
    write_words(root / "words")
    write_exits(root / "exits")
    write_drift(root / "drift")
    write_bench(root / "bench.json")
    sides = ("--outputs", "final", "--x", "en", "--y", "es")
    assert run("similarity", root / "speech.zarr", *sides, "-o", root / "en-es") == 0
    assert run("report", root, "-o", root.parent / "page.html") == 0
    return root


@pytest.fixture(scope="module")
def page(study: Path) -> Page:
    return Page((study.parent / "page.html").read_text(encoding="utf-8"))


def tables(page: Page, section: str) -> dict[str, Table]:
    return {table.title: table for table in page.sections[section]}


def assert_shows(table: Table, expected: list[dict[str, Any]]) -> None:
    """Every cell: floats whole to the last bit and shown to four digits, the rest as they are."""
    assert len(table.rows) == len(expected) > 0
    for cells, row in zip(table.rows, expected, strict=True):
        for name, (shown, value) in zip(table.header, cells, strict=True):
            stored = row[name.removesuffix(" (%)")]
            if isinstance(stored, float):
                stored *= 100 if name.endswith(" (%)") else 1
                assert float(value if value is not None else shown) == stored
                assert float(shown) == pytest.approx(stored, rel=6e-4)
            else:
                assert shown == {"None": "–", "True": "yes", "False": "no"}.get(str(stored), str(stored))


def stored(path: Path) -> list[dict[str, Any]]:
    return pq.read_table(path).to_pylist()


class TestNumbers:
    def test_all_results_are_found(self, page: Page, study: Path) -> None:
        assert [name for name in page.sections if name] == [  # in the order of the questions
            "retrieve: retrieval/retrieval.parquet", "align: deep/aligned/align.parquet",
            "phonetics: phonetics/phonetics.parquet", "words: words/words.parquet",
            "early-exit sweep: exits/errors.parquet", "similarity: en-es/top.parquet", "explain: why/explain.parquet",
            "drift: drift/drift.parquet", "bench: bench.json", "extract: speech.zarr",
        ]  # fmt: skip
        contents = page.sections[""][0]
        assert contents.header == ["result", "command", "checkpoint", "encoder, SHA-256"]
        whose = {cells[0][0]: cells[2][0] for cells in contents.rows}
        assert len(whose) == 10
        assert whose["phonetics/phonetics.parquet"] == "no encoder takes part"
        assert whose["en-es/top.parquet"] == whose["speech.zarr"] == "made-up"  # by the weights
        assert whose["bench.json"] == "not named by the command"

    def test_tables_as_stored_are_the_parquets(self, page: Page, study: Path) -> None:
        rows = stored(study / "retrieval/retrieval.parquet")
        raw = [r for r in rows if r["metric"] == "recall@1" and r["score"] == "raw"]
        found = tables(page, "retrieve: retrieval/retrieval.parquet")
        one = found[f"recall@1 at every level, as stored ({len(raw)} of {len(rows)} rows)"]
        assert {"value (%)", "chance (%)", "candidates", "queries", "level"} <= set(one.header)
        assert_shows(one, raw)
        rows = stored(study / "deep/aligned/align.parquet")
        means = [r for r in rows if r["level"] == "mean"]
        found = tables(page, "align: deep/aligned/align.parquet")
        no_shares = ("log_odds_per_sd", "log_odds_per_sd_given_duration", "discrimination")
        for title, expected in (
            ("Means", [r for r in means if r["metric"] not in no_shares]),
            ("Means of the fits", [r for r in means if r["metric"] in no_shares]),
        ):
            one = found[f"{title}, as stored ({len(expected)} of {len(rows)} rows)"]
            assert [name.removesuffix(" (%)") for name in one.header] == list(rows[0])
            assert_shows(one, expected)
        rows = stored(study / "words/words.parquet")
        *_, whole, control, pairs = page.sections["words: words/words.parquet"]
        assert_shows(whole, [r for r in rows if r["source"] == "all" and r["output"]])
        assert_shows(control, [r for r in rows if r["output"] is None])
        assert_shows(pairs, [r for r in rows if r["source"] != "all"])
        assert "chance" in whole.header
        rows = stored(study / "why/explain.parquet")
        assert_shows(page.sections["explain: why/explain.parquet"][0], rows)
        rows = stored(study / "exits/errors.parquet")
        _, _, test, kinds, dev, _, choice, heard = page.sections["early-exit sweep: exits/errors.parquet"]
        assert_shows(choice, stored(study / "exits/choices.parquet"))
        assert_shows(test, [r for r in rows if r["part"] == "test"])
        assert_shows(kinds, [r for r in rows if r["part"] == "test"])
        assert_shows(dev, [r for r in rows if r["part"] == "dev"])
        assert_shows(heard, stored(study / "exits/transcripts.parquet"))
        rows = stored(study / "phonetics/phonetics.parquet")
        near = page.sections["phonetics: phonetics/phonetics.parquet"][1]
        assert f"(50 of {len(rows)} rows)" in near.title
        by_pair = {(r["query"], r["candidate"]): r for r in rows}
        at = [near.header.index(name) for name in ("query", "candidate")]
        assert_shows(near, [by_pair[cells[at[0]][0], cells[at[1]][0]] for cells in near.rows])
        distances = [float(cells[near.header.index("distance")][1] or "nan") for cells in near.rows]
        assert distances == sorted(r["distance"] for r in rows)[:50]

    def test_retrievals_means_and_chance(self, page: Page, study: Path) -> None:
        rows = stored(study / "retrieval/retrieval.parquet")
        means = {
            (r["similarity"], r["output"], r["metric"]): r
            for r in rows if r["level"] == "mean" and r["score"] == "raw"
        }  # fmt: skip
        for similarity in ("seqsim_f1", "seqsim_precision", "seqsim_recall", "pooled_cosine"):
            table = tables(page, "retrieve: retrieval/retrieval.parquet")[similarity]
            r = means[similarity, "final", "recall@1"]
            value, low, high = (f"{100 * r[name] + 1e-9:.1f}" for name in ("value", "low", "high"))
            assert [cell for cell, _ in table.rows[0][:2]] == ["final", f"{value} [{low}, {high}]"]
            assert [cell for cell, _ in table.rows[-1][:2]] == ["chance", f"{100 / 7:.1f}"]
            assert "pool of 7 candidates" in table.note

    def test_aligns_means_pools_and_chance(self, page: Page, study: Path) -> None:
        rows = stored(study / "deep/aligned/align.parquet")
        table = tables(page, "align: deep/aligned/align.parquet")["Whole pools, mean over directions"]
        whole = {
            r["system"]: r
            for r in rows
            if (r["level"], r["states"], r["control"], r["metric"]) == ("mean", "raw", "all", "recall@1")
        }
        assert table.header[:2] == ["system", "all"]
        shown = {cells[0][0]: cells[1][0] for cells in table.rows}
        assert list(shown) == [*whole, "pool", "chance"]
        for system, r in whole.items():
            assert shown[system] == "\n[".join((f"{100 * r['value']:.1f}", f"{100 * r['low']:.1f}")) + (
                f", {100 * r['high']:.1f}]"
            )
        assert (shown["pool"], shown["chance"]) == ("160", f"{100 / 160:.1f}")

    def test_phonetics_by_direction(self, page: Page, study: Path) -> None:
        rows = [r for r in stored(study / "phonetics/phonetics.parquet") if r["source"] == "a"]
        table = page.sections["phonetics: phonetics/phonetics.parquet"][0]
        cells = dict(zip(table.header, table.rows[0], strict=True))
        expected = {
            "distance": np.mean([r["distance"] for r in rows]),
            "quantile": 100 * np.median([r["quantile"] for r in rows]),
            "like length": 100 * np.median([r["quantile_like_length"] for r in rows]),
            "closest": 100 * np.mean([r["rank"] == 1 for r in rows]),
            "chance": 100 / 160,
        }
        assert (cells["word quantile"][0], cells["word closest"][0]) == ("–", "–")  # no word is long enough
        assert [cells[name][0] for name in ("direction", "pairs", "pool")] == ["a → b", "160", "160"]
        for name, value in expected.items():
            assert float(cells[name][1] or cells[name][0]) == pytest.approx(value, rel=1e-12)

    def test_the_exit_is_chosen_on_dev_and_reported_on_test(self, page: Page) -> None:
        summary, *_, table, _ = page.sections["early-exit sweep: exits/errors.parquet"]
        for cells, shown in zip(table.rows, summary.rows, strict=True):  # en, and the mean over the one language
            row = {name: cell for name, (cell, _) in zip(table.header, cells, strict=True)}
            brief = {name: cell for name, (cell, _) in zip(summary.header, shown, strict=True)}
            assert (brief["chosen"], brief["on dev"], brief["on test"][:4]) == ("1", "10.0", "50.0")
            assert brief["difference"].split() == ["+30.0", "[+30.0,", "+30.0]"]
            assert (row["after"], row["dev_rate (%)"], row["rate (%)"]) == ("1", "10.00", "50.00")
            assert (row["original (%)"], row["difference (%)"], row["utterances"]) == ("20.00", "30.00", "6")

    def test_drift_with_pool_and_chance(self, page: Page) -> None:
        frames, brief, table = page.sections["drift: drift/drift.parquet"]
        row = dict(zip(table.header, table.rows[0], strict=True))
        assert row["cosine"] == ("0.9877", "0.9876543210123")
        assert float(row["seqsim_f1_change (%)"][1] or 0) == 100 * (-1 / 3)
        assert [cell for cell, _ in frames.rows[0][2:]] == ["0.9877", "0.4200", "-0.0123", "0.620 %", "0.350 %"]
        assert "-0.0123, is of es-4, bucketed, layer_00, frame 17" in frames.note
        shown = {name: cell for name, (cell, _) in zip(brief.header, brief.rows[0], strict=True)}
        assert (shown["worst"], shown["seqsim_f1"]) == ("0.9000", "25.0 (-33.3)")
        assert "pool of 7–8 (all recordings), chance 13.0 %" in brief.note
        assert "trimmed 6.22 ×" in brief.note

    def test_stores_by_language(self, page: Page) -> None:
        table = page.sections["extract: speech.zarr"][0]
        assert [[c for c, _ in row[:5]] for row in table.rows] == [[n, "7", "7", "0", "0"] for n in ("en", "es", "uk")]
        assert float(table.rows[0][5][0]) == pytest.approx(sum(range(5, 12)) * 0.02)

    def test_settings_and_fingerprints(self, page: Page, study: Path) -> None:
        text = page.text["retrieve: retrieval/retrieval.parquet"]
        assert "bootstrap_resamples30" in text.replace("\n", "")
        assert hashlib.sha256((study / "retrieval/retrieval.parquet").read_bytes()).hexdigest() in text
        assert "0" * 64 in text  # the encoder's
        about = json.loads(pq.read_schema(study / "retrieval/retrieval.parquet").metadata[b"voxstrata"])
        assert about["plan"] in text
        assert "4 different encoders" in page.sections[""][0].note


class TestOneFile:
    def test_nothing_is_loaded_from_elsewhere(self, page: Page, study: Path) -> None:
        inside = ("#run-", "data:image/png;base64,", "data:application/pdf;base64,")
        assert all(r.startswith(inside) for r in page.references)
        text = (study.parent / "page.html").read_text(encoding="utf-8")
        assert not {"link", "iframe", "object", "embed", "base"} & {tag for tag, _ in page.tags}
        (script,) = re.findall(r"<script>(.*?)</script>", text, re.S)  # our own, which alone may run
        allowed = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        (policy,) = [a["content"] or "" for tag, a in page.tags if tag == "meta" and "http-equiv" in a]
        assert policy.split("; ") == [
            "default-src 'none'", "img-src data:", "style-src 'unsafe-inline'", f"script-src 'sha256-{allowed}'",
            "base-uri 'none'", "form-action 'none'",
        ]  # fmt: skip
        assert "url(" not in text
        assert "@import" not in text
        assert NASTY in page.text["early-exit sweep: exits/errors.parquet"]  # as text

    def test_every_picture_is_there_whole(self, page: Page, study: Path) -> None:
        found = [base64.b64decode(source.partition("base64,")[2], validate=True) for source in page.images]
        assert sorted(found) == sorted(p.read_bytes() for p in study.rglob("*.png"))
        assert len(found) == 9
        assert "words.png: not in the folder" in page.text["words: words/words.parquet"]
        prefix = "data:application/pdf;base64,"
        saved = {a["download"]: a["href"] or "" for tag, a in page.tags if tag == "a" and "download" in a}
        for path in study.rglob("*.pdf"):
            if path.name != "words.pdf":  # whose picture was removed
                assert base64.b64decode(saved[path.name].removeprefix(prefix)) == path.read_bytes()
        assert len(saved) == 9

    def test_phones_get_their_width_and_tables_a_box(self, page: Page) -> None:
        names = {a.get("name"): a.get("content") for tag, a in page.tags if tag == "meta"}
        assert "width=device-width" in (names["viewport"] or "")
        assert all(table.boxed for section in page.sections.values() for table in section)

    def test_the_same_results_give_the_same_bytes(self, study: Path, tmp_path: Path) -> None:
        assert run("report", study, "-o", tmp_path / "again.html") == 0
        assert (tmp_path / "again.html").read_bytes() == (study.parent / "page.html").read_bytes()


@pytest.mark.skipif(BROWSER is None, reason="no Chromium or Chrome on the PATH")
class TestInABrowser:
    def test_no_error_and_every_first_cell(self, page: Page, study: Path) -> None:
        document, console = browse(study.parent / "page.html")
        assert console == []
        seen = Page(document)
        for section, expected in page.sections.items():
            first = [table.rows[0][0] for table in seen.sections[section]]
            assert first == [table.rows[0][0] for table in expected]
        rows = stored(study / "retrieval/retrieval.parquet")
        assert seen.sections["retrieve: retrieval/retrieval.parquet"][0].rows[0][0][0] == rows[0]["output"]

    def test_tables_sort_and_are_saved_and_so_are_pictures(self, study: Path, tmp_path: Path) -> None:
        run_of = "align: deep/aligned/align.parquet"
        page = (study.parent / "page.html").read_text(encoding="utf-8")
        probe = CLICKS.replace("RUN", run_of).replace("COLUMN", "1").replace("PAGE", html.escape(page))
        (tmp_path / "clicks.html").write_text(probe, encoding="utf-8")
        document, console = browse(tmp_path / "clicks.html", "--virtual-time-budget=100000")
        assert console == []
        said = json.loads(html.unescape(re.findall(r"<pre>(.+?)</pre>", document, re.S)[-1]))
        table = Page(page).sections[run_of][0]
        figures = [(float(cells[1][0].split("\n")[0]), cells[0][0]) for cells in table.rows[:-2]]
        rising = [name for _, name in sorted(figures, key=lambda pair: pair[0])]
        assert [order for order, _ in said["orders"]] == ["ascending", "descending", "none"]
        assert said["orders"][0][1] == [*rising, "pool", "chance"]  # what others are held against stays last
        assert [dict(map(reversed, figures))[name] for name in said["orders"][1][1][:-2]] == sorted(
            (value for value, _ in figures), reverse=True
        )
        assert said["orders"][2][1] == [cells[0][0] for cells in table.rows]
        names = [name for name, _ in said["saved"]]
        assert names[0] == "align.png"
        assert said["saved"][0][1].startswith("data:image/png;base64,")
        assert len(names) == 1 + len(Page(page).sections[run_of])
        found = list(csv.reader(said["texts"][-2].splitlines()))
        rows = [r for r in stored(study / "deep/aligned/align.parquet") if r["level"] == "mean"]
        rows = [r for r in rows if r["metric"] in ("recall@1", "recall@1_change", "recall@1_if_unlike")]
        at = found[0].index("value (%)")
        assert [float(line[at]) for line in found[1:]] == [100 * r["value"] for r in rows]  # whole

    def test_what_a_spreadsheet_would_run_is_text(self, tmp_path: Path) -> None:
        assert BROWSER is not None
        table = TextTable("t", ["name", "value"], [["=1+1", -0.123456789], ['a "b", c', None]])
        inside = f'<section data-run="x">{table.to_html()}</section>'
        probe = CLICKS.replace("RUN", "x").replace("COLUMN", "0").replace("PAGE", html.escape(whole_page("t", inside)))
        (tmp_path / "clicks.html").write_text(probe, encoding="utf-8")
        document, _ = browse(tmp_path / "clicks.html", "--virtual-time-budget=100000")
        said = json.loads(html.unescape(re.findall(r"<pre>(.+?)</pre>", document, re.S)[-1]))
        assert said["begins"] == [[0xEF, 0xBB, 0xBF]]  # without it some spreadsheets take it for no UTF-8
        assert said["texts"] == ['name,value\r\n\'=1+1,-0.123456789\r\n"a ""b"", c",–\r\n']

    def test_errors_would_be_seen(self, study: Path, tmp_path: Path) -> None:
        text = (study.parent / "page.html").read_text(encoding="utf-8")
        (tmp_path / "bad.html").write_text(text.replace("<h1>", '<img src="https://a.invalid/x.png"><h1>'), "utf-8")
        assert len(browse(tmp_path / "bad.html")[1]) == 1

    def test_every_figure_is_drawn_on_a_phone(self, study: Path, tmp_path: Path) -> None:
        text = (study.parent / "page.html").read_text(encoding="utf-8")
        probe = PROBE.replace("WIDTH", str(PHONE)).replace("PHONE", str(PHONE)).replace("PAGE", html.escape(text))
        (tmp_path / "phone.html").write_text(probe, encoding="utf-8")
        document, console = browse(tmp_path / "phone.html", "--virtual-time-budget=100000")
        assert console == []
        found = re.search(r"<pre>(.+?)</pre>", document, re.S)
        assert found is not None
        said = json.loads(html.unescape(found[1]))
        sizes = [struct.unpack(">II", p.read_bytes()[16:24]) for p in study.rglob("*.png")]  # of the header
        assert sorted((w, h) for w, h, _ in said["images"]) == sorted(sizes)
        assert all(width > 300 for _, _, width in said["images"])
        client, whole = said["page"]
        assert whole == client <= PHONE  # the page itself does not scroll sideways
        assert max(said["boxes"]) <= client
        assert max(said["links"]) <= client
        assert said["scrolling"] > 0


def test_lines_of_a_note_that_begin_with_a_dash_are_a_list() -> None:
    found = TextTable("t", ["a"], [["1"]], "First.\nSecond.\n- one: <b>\n- two - three\nLast.").to_html()
    assert found.endswith(
        '<p class="note">First.\nSecond.</p>\n<ul class="note"><li>one: &lt;b&gt;</li><li>two - three</li></ul>\n'
        '<p class="note">Last.</p>\n'
    )
    assert "note" not in TextTable("t", ["a"], [["1"]]).to_html()


class TestBadInput:
    def test_json_names_runs_and_files(self, study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert run("report", study, "-o", tmp_path / "p.html", "--json") == 0
        out, err = capsys.readouterr()
        assert err == ""
        runs = {r["path"]: r for r in json.loads(out)["runs"]}
        assert runs["retrieval/retrieval.parquet"]["checkpoint"] == "made-up"
        files = {"phonetics.parquet", "ipa.parquet", "distances.parquet"}
        assert set(runs["phonetics/phonetics.parquet"]["sha256"]) == files

    def test_recall_by_a_comparisons_lists_is_an_encoders(self, study: Path, tmp_path: Path) -> None:
        """The command keeps the encoder's weights, not its name."""
        evaluate_similarity(study / "en-es", RetrievalOptions(bootstrap=0)).save(tmp_path / "found")
        (run,) = vs.write_report(tmp_path).runs
        assert run.whose == "not named by the command"
        assert run.weights_sha256 == vs.open_store(study / "speech.zarr").model.weights_sha256

    def test_a_stores_page_lies_beside_it(self, study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        store = shutil.copytree(study / "speech.zarr", tmp_path / "speech.zarr")
        held = sorted(store.rglob("*"))
        assert vs.write_report(store).out == str(tmp_path / "speech.html")
        monkeypatch.chdir(store)
        assert vs.write_report(".").out == str(tmp_path / "speech.html")
        assert sorted(store.rglob("*")) == held

    def test_nothing_to_report(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert run("report", tmp_path) == 3
        said = capsys.readouterr().err
        assert f"{tmp_path}: holds no result and no store" in said
        assert f"To make one: `voxstrata retrieve STORE -o {tmp_path}/retrieval`" in said
        assert ".parquet" not in said
        for kind in RESULTS:  # each command once, and no file
            assert len(re.findall(rf"\b{kind.command}[,.]", said)) == 1
        assert run("report", tmp_path / "none") == 3
        assert "no such folder" in capsys.readouterr().err
        (tmp_path / "report.html").touch()
        assert run("report", tmp_path / "report.html") == 3
        said = f"{tmp_path}/report.html: a file, not a folder; give its folder: {tmp_path}\n"
        assert said in capsys.readouterr().err
        (tmp_path / "report.html").unlink()
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize(
        ("name", "content", "message"),
        [
            ("retrieval.parquet", b"PAR1 no", "retrieval.parquet: cannot be read as Parquet"),
            ("recall_by_layer.png", b"\x89PNG\r\n\x1a\n cut", "recall_by_layer.png: not a whole PNG"),
            ("drift.parquet", b"{", "drift.parquet: cannot be read as Parquet"),
            ("bench-a.json", b'{"rows": []}', "bench-a.json: not what `voxstrata bench --json` prints"),
        ],
    )
    def test_damaged_files(
        self, study: Path, tmp_path: Path, name: str, content: bytes, message: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        shutil.copytree(study / "retrieval", tmp_path / "r")
        (tmp_path / "r" / name).write_bytes(content)
        assert run("report", tmp_path) == 3
        assert message in capsys.readouterr().err
        assert not (tmp_path / "report.html").exists()

    @pytest.mark.parametrize("lost", ["value", "candidates", "output", "rows"])
    def test_a_table_of_another_form(
        self, study: Path, tmp_path: Path, lost: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        table = pq.read_table(study / "retrieval/retrieval.parquet")
        pq.write_table(
            table.slice(0, 0) if lost == "rows" else table.drop_columns(lost), tmp_path / "retrieval.parquet"
        )
        assert run("report", tmp_path) == 3
        assert f"error: {tmp_path / 'retrieval.parquet'}: " in capsys.readouterr().err

    @pytest.mark.parametrize(("lost", "named"), [("cosine", "drift.parquet"), ("rows", "explain.parquet")])
    def test_a_result_of_another_form(
        self, study: Path, tmp_path: Path, lost: str, named: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        (source,) = study.rglob(named)
        shutil.copytree(source.parent, tmp_path / "r")
        table = pq.read_table(source)
        pq.write_table(table.slice(0, 0) if lost == "rows" else table.drop_columns(lost), tmp_path / "r" / named)
        assert run("report", tmp_path) == 3
        assert f"error: {tmp_path / 'r' / named}: not as `voxstrata" in capsys.readouterr().err

    def test_tables_of_others_are_left_out_and_named(
        self, study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        shutil.copytree(study / "why", tmp_path / "why")
        pq.write_table(pa.table({"a": [1]}), tmp_path / "phonetics.parquet")
        assert run("report", tmp_path) == 0
        assert "left out: phonetics.parquet" in capsys.readouterr().err
        assert "phonetics.parquet" in (tmp_path / "report.html").read_text(encoding="utf-8")

    def test_a_page_of_another_is_not_replaced(
        self, study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        (tmp_path / "mine.html").write_text("<h1>mine</h1>", encoding="utf-8")
        assert run("report", study / "why", "-o", tmp_path / "mine.html") == 3
        assert "is no page of `voxstrata report`" in capsys.readouterr().err
        assert run("report", study / "why", "-o", tmp_path / "new.html") == 0
        assert run("report", study / "why", "-o", tmp_path / "new.html") == 0  # its own it replaces


def test_links_are_not_followed(tmp_path: Path) -> None:
    for name in ("mine", "elsewhere"):
        (tmp_path / name).mkdir()
        write_bench(tmp_path / name / "bench.json")
    (tmp_path / "mine" / "all").symlink_to("/")  # of which none would come back for minutes
    (tmp_path / "mine" / "theirs").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "mine" / "bench-2.json").symlink_to(tmp_path / "elsewhere" / "bench.json")
    found = write_report(tmp_path / "mine")
    assert [run.path for run in found.runs] == ["bench.json"]
    (tmp_path / "named").symlink_to(tmp_path / "mine")  # but who names a link means it
    assert [run.path for run in write_report(tmp_path / "named").runs] == ["bench.json"]
