"""The pictures of a retrieval table: written, readable in size, and true to the table."""

from __future__ import annotations

import builtins
import struct
from itertools import combinations, permutations
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from voxstrata.base import figures
from voxstrata.base.errors import InputError, UsageError
from voxstrata.base.figures import DPI
from voxstrata.studies.retrieve import ALL_SIMILARITIES
from voxstrata.studies.retrieve.figures import plot_language_matrix, plot_recall_by_layer
from voxstrata.studies.retrieve.result import RETRIEVAL_SCHEMA

pytest.importorskip("matplotlib", reason="plots need the extra `plot`")
from matplotlib.collections import PolyCollection
from matplotlib.figure import Figure


def made_table(languages: int, outputs: int, similarities: tuple[str, ...] = ALL_SIMILARITIES) -> pa.Table:
    """A table as `retrieve` returns it, of the given size, with figures that differ in every direction."""
    rng = np.random.default_rng(0)
    codes = [f"l{i:02d}" for i in range(languages)]
    names = [*(f"layer_{i:02d}" for i in range(outputs - 1)), "final"]
    both = [("pair", *pair) for pair in combinations(codes, 2)]
    rows = []
    for depth, output in enumerate(names):
        for n, similarity in enumerate(similarities):
            values = []
            levels = [("direction", *pair) for pair in permutations(codes, 2)]
            for level, source, target in [*levels, *both, ("mean", None, None)]:
                bump = 0.8 * np.sin(np.pi * depth / outputs) - 0.1 * n
                values.append(float(np.clip(bump + 0.05 * rng.standard_normal(), 0, 1)))
                value = float(np.mean(values[:-1])) if level == "mean" else values[-1]
                counts = {"queries": 70, "queries_without_partner": 0, "candidates": 70, "candidates_max": 70}
                names_of = {"output": output, "similarity": similarity}
                names_of |= {"level": level, "source": source, "target": target}
                figure = {"value": value, "low": value - 0.05, "high": value + 0.04, "chance": 1 / 70}
                rows.append({**names_of, "score": "raw", "metric": "recall@1", **figure, **counts})
                rows.append({**names_of, "score": "csls", "metric": "recall@1", **figure, "value": 0.5, **counts})
    return pa.Table.from_pylist(rows, schema=RETRIEVAL_SCHEMA)


def png_size(path: Path) -> tuple[int, int]:
    head = path.read_bytes()[:24]
    assert head[:8] == b"\x89PNG\r\n\x1a\n"
    width, height = struct.unpack(">II", head[16:24])
    return width, height


def saved(figure: Figure, path: Path) -> tuple[int, int]:
    """Width and height of a figure's PNG."""
    figure.savefig(path, dpi=DPI)
    return png_size(path)


@pytest.mark.parametrize(("languages", "outputs"), [(2, 8), (4, 1), (12, 34)])
def test_the_layer_plot_shows_means_pairs_chance_and_pool(languages: int, outputs: int, tmp_path: Path) -> None:
    table = made_table(languages, outputs)
    figure = plot_recall_by_layer(table, "whisper")
    width, height = saved(figure, tmp_path / "layers.png")
    assert 600 < width < 2500
    assert 400 < height < 1000
    (axes,) = figure.axes
    lines = {line.get_label(): line for line in axes.get_lines()}
    means = table.filter(pc.and_(pc.equal(table["level"], "mean"), pc.equal(table["similarity"], "pooled_cosine")))
    means = means.filter(pc.equal(means["score"], "raw"))
    np.testing.assert_allclose(lines["pooled_cosine"].get_ydata(), 100 * np.array(means["value"]))
    # a line has two ends, where there is one output, too
    np.testing.assert_allclose(lines["chance"].get_ydata(), np.full(max(outputs, 2), 100 / 70))
    assert len(axes.get_lines()) == len(ALL_SIMILARITIES) + 1
    bottom, top = axes.get_ylim()
    assert bottom <= 0
    assert top >= 100 * pc.max(means["high"]).as_py()
    subtitle = " ".join(figure.get_suptitle().split())  # however its lines are broken
    assert "pool of 70 candidates" in subtitle
    assert "recall@1 1.4 %" in subtitle
    assert "95 % bootstrap intervals" in subtitle
    bands = [shape.get_paths()[0].vertices for shape in axes.collections if isinstance(shape, PolyCollection)]
    assert len(bands) == len(ALL_SIMILARITIES)
    edges = np.unique(bands[-1][:, 1].round(6))
    ends = np.unique((100 * np.array([*means["low"].to_pylist(), *means["high"].to_pylist()])).round(6))
    np.testing.assert_allclose(edges, ends, atol=1e-5)


@pytest.mark.parametrize(("languages", "outputs"), [(2, 8), (12, 3)])
def test_the_matrix_shows_every_output_on_one_scale(languages: int, outputs: int, tmp_path: Path) -> None:
    table = made_table(languages, outputs)
    figure = plot_language_matrix(table, "whisper")
    assert 600 <= saved(figure, tmp_path / "matrix.png")[0] < 4000
    panels = [axes for axes in figure.axes if axes.get_title()]
    assert len(panels) == outputs
    assert {image.get_clim() for axes in panels for image in axes.images} == {(0, 100)}
    (row,) = table.filter(
        (pc.field("output") == "final")
        & (pc.field("similarity") == "seqsim_f1")
        & (pc.field("level") == "direction")
        & (pc.field("source") == "l01")
        & (pc.field("target") == "l00")
        & (pc.field("score") == "raw")
    ).to_pylist()
    final = panels[-1]
    assert final.get_title() == "final"
    assert final.images[0].get_array()[1, 0] == pytest.approx(100 * row["value"])
    cells = {text.get_position(): text.get_text() for text in final.texts}
    assert cells[0, 1] == f"{100 * row['value']:.0f}"
    assert len(cells) == languages * (languages - 1)
    assert "pool of 70 candidates" in figure.get_suptitle()


def test_a_table_without_seqsim_is_drawn_too() -> None:
    table = made_table(2, 3, ("pooled_cosine",))
    plot_recall_by_layer(table, "pooled only")
    assert "pooled_cosine" in plot_language_matrix(table, "pooled only").get_suptitle()


def test_a_direction_without_queries_is_a_dash() -> None:
    rows = made_table(3, 1).to_pylist()
    for row in rows:
        if {row["source"], row["target"]} == {"l00", "l02"}:
            row.update(value=None, chance=None, queries=0)
    table = pa.Table.from_pylist(rows, schema=RETRIEVAL_SCHEMA)
    figure = plot_language_matrix(table, "gap")
    cells = {text.get_position(): text.get_text() for text in figure.axes[0].texts}
    assert [cells[2, 0], cells[0, 2]] == ["–", "–"]
    for each in (figure, plot_recall_by_layer(table, "gap")):
        assert "4 directions" in each.get_suptitle()


def test_what_is_not_in_the_table_cannot_be_drawn() -> None:
    table = made_table(2, 2, ("pooled_cosine",))
    with pytest.raises(UsageError, match=r"'recall@10'; the table holds: recall@1"):
        plot_recall_by_layer(table, "t", metric="recall@10")
    with pytest.raises(UsageError, match="the table holds: pooled_cosine"):
        plot_language_matrix(table, "t", similarity="seqsim_f1")
    with pytest.raises(InputError, match="nothing to show"):
        plot_recall_by_layer(table.filter(pc.equal(table["level"], "mean")), "t")


def test_without_matplotlib_the_message_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def no_matplotlib(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    figures._plain.cache_clear()  # an earlier picture has loaded it
    monkeypatch.setattr(builtins, "__import__", no_matplotlib)
    with pytest.raises(UsageError, match=r"pip install 'voxstrata\[plot\]'"):
        plot_recall_by_layer(made_table(2, 2), "t")


def test_a_notebook_shows_a_figure_by_itself() -> None:
    """IPython asks for this method; a figure outside pyplot has no other that it knows."""
    picture = plot_recall_by_layer(made_table(2, 2), "t")._repr_png_()  # type: ignore[attr-defined]
    width, height = struct.unpack(">II", picture[16:24])
    assert picture.startswith(b"\x89PNG")
    assert min(width, height) > 300


def test_a_pdf_holds_its_letters_as_truetype_and_no_date(
    tmp_path: Path, quick_fonts: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Journals refuse Type 3, matplotlib's own choice, which other tests take since it is quicker."""
    monkeypatch.setattr(figures, "PDF_FONTS", quick_fonts)  # as it is for users
    figure = figures.new_figure(2, 2)
    figures.set_title(figure, "abc")
    for name in ("a.pdf", "b.pdf"):
        figures.save_figure(figure, tmp_path / name)
    found = (tmp_path / "a.pdf").read_bytes()
    assert b"/TrueType" in found or b"/CIDFontType2" in found
    assert b"/Type3" not in found
    assert b"/CreationDate" not in found
    assert found == (tmp_path / "b.pdf").read_bytes()
