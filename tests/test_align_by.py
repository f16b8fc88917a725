"""What decides how alike a pair sounds (`--by`): each choice gives the pools of a plain loop over the distances."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from planted import SEGMENTS
from stores import Utterance, ends, make_store
from test_cli import run

from voxstrata import read_corpus
from voxstrata.store import EmbeddingStore
from voxstrata.studies.align.measure import AlignOptions, align
from voxstrata.studies.phonetics.measure import measure_phonetics
from voxstrata.studies.phonetics.pairs import NEIGHBOURS

pytest.importorskip("panphon")

GROUPS, CLOSEST = 50, 4


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> tuple[EmbeddingStore, Path]:
    """Sentences of two to five words; of five translations one shares a word, one sounds like the source."""
    root = tmp_path_factory.mktemp("by")
    rng = np.random.default_rng(4)

    def words(n: int) -> list[str]:
        return [
            "".join(SEGMENTS[s] for s in rng.integers(len(SEGMENTS), size=int(rng.integers(3, 7)))) for _ in range(n)
        ]

    given, utterances = {}, {}
    meaning = rng.standard_normal((GROUPS, 8))
    for g in range(GROUPS):
        first = words(int(rng.integers(2, 6)))
        second = ([*words(3), first[0]], [word[:-1] + "a" for word in first], *[words(int(rng.integers(2, 6)))] * 3)[
            g % 5
        ]
        for language, sentence in (("a", first), ("b", second)):
            name = f"{language}{g:02d}"
            given[name] = " ".join(sentence)
            frames = meaning[g] + 3 * rng.standard_normal((int(rng.integers(20, 60)), 8))
            utterances[name] = Utterance(frames.astype(np.float32), language, f"g{g:02d}")
    lines = ["id\tpath\tlanguage\tgroup", *(f"{n}\t{n}.wav\t{n[0]}\tg{n[1:]}" for n in given)]
    (root / "m.tsv").write_text("\n".join(lines), encoding="utf-8")
    measure_phonetics(read_corpus(root / "m.tsv"), root / "ph", given=given)
    return make_store(root / "s.zarr", utterances), root / "ph"


def loop(store: EmbeddingStore, folder: Path, by: str, source: str, target: str) -> dict[str, tuple[float, int]]:
    """recall@1 and pool size of one direction: whole pools, unlike pairs, closest-sounding; and the phonemes alone."""
    rows = pq.read_table(folder / "distances.parquet").to_pylist()
    table = {(r["query"], r["candidate"]): r for r in rows} | {(r["candidate"], r["query"]): r for r in rows}
    segments = {r["id"]: r["segments"] for r in pq.read_table(folder / "ipa.parquet").to_pylist()}
    names = {language: [f"{language}{g:02d}" for g in range(GROUPS)] for language in (source, target)}
    column = "word_distance" if by == "word" else "distance"
    distance, whole = (
        [[table[x, y][c] for y in names[target]] for x in names[source]] for c in (column, "distance")
    )  # fmt: skip

    def unit(name: str) -> np.ndarray:
        mean = store.frames(name, "final").mean(axis=0, dtype=np.float64)
        return np.asarray(mean / np.linalg.norm(mean))

    x, y = ([unit(name) for name in names[language]] for language in (source, target))
    score = [[float(p @ q) for q in y] for p in x]

    def found(i: int, among: list[int], scores: list[list[float]]) -> bool:
        return all(scores[i][j] < scores[i][i] for j in among if j != i)

    unlike = []
    for i in range(GROUPS):
        others = [j for j in range(GROUPS) if j != i]
        if by == "like-length":
            own = segments[names[target][i]]
            others = sorted(others, key=lambda j: (abs(np.log(segments[names[target][j]] / own)), j))[:NEIGHBOURS]
        closer = [(distance[i][j] < distance[i][i]) + (distance[i][j] == distance[i][i]) / 2 for j in others]
        if np.mean(closer) >= 0.5:
            unlike.append(i)
    near = [
        sorted((j for j in range(GROUPS) if j != i), key=lambda j: (distance[i][j], j))[:CLOSEST] for i in range(GROUPS)
    ]
    everyone = list(range(GROUPS))
    by_sound = [[-d for d in row] for row in whole]
    return {
        "all": (float(np.mean([found(i, everyone, score) for i in everyone])), GROUPS),
        "unlike": (float(np.mean([found(i, unlike, score) for i in unlike])), len(unlike)),
        "closest": (float(np.mean([found(i, near[i], score) for i in everyone])), CLOSEST + 1),
        "phonemes": (float(np.mean([found(i, everyone, by_sound) for i in everyone])), GROUPS),
    }


@pytest.mark.parametrize("by", ["like-length", "sentence", "word"])
def test_pools_are_those_of_a_plain_loop(by: str, study: tuple[EmbeddingStore, Path]) -> None:
    store, folder = study
    options = AlignOptions("pooled_cosine", by, closest=CLOSEST, bootstrap=0)
    result = align(store, folder, options=options)
    assert result.settings["by"] == by
    rows = {
        (r["system"], r["control"], ends(r)[0]): (r["value"], r["candidates"])
        for r in result.table.to_pylist()
        if (r["states"], r["metric"]) == ("raw", "recall@1")
    }
    for source, target in (("a", "b"), ("b", "a")):
        expected = loop(store, folder, by, source, target)
        assert expected["unlike"][1] >= 10
        for control in ("all", "unlike", "closest"):
            assert rows["final", control, source] == pytest.approx(expected[control]), control
        assert rows["phonemes", "all", source] == pytest.approx(expected["phonemes"])  # whole sentences, whatever `by`


def test_the_choices_differ_here(study: tuple[EmbeddingStore, Path]) -> None:
    """Or the test above would pass with one for another."""
    store, folder = study
    sizes = [loop(store, folder, by, "a", "b") for by in ("like-length", "sentence", "word")]
    assert len({s["unlike"] for s in sizes}) == 3


@pytest.mark.parametrize("by", ["sentence", "word"])
def test_the_command_says_by_what(
    by: str, study: tuple[EmbeddingStore, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store, folder = study
    arguments = (
        "align",
        store.files.root,
        "--phonetics",
        folder,
        "-o",
        tmp_path / "out",
        "--by",
        by,
        "--bootstrap",
        "0",
    )
    assert run(*arguments) == 0
    told = {"sentence": "of the other sentences sound", "word": "by the closest pair of words, sound"}[by]
    for said in (capsys.readouterr().out, (tmp_path / "out" / "align.md").read_text(encoding="utf-8")):
        assert told in " ".join(said.split())
