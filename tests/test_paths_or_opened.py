"""What a function takes from Python it takes by path or opened alike: stores, models and corpora."""

from __future__ import annotations

import inspect
import typing
from pathlib import Path
from typing import Any

import pytest
from stores import make_store
from test_several import ALL, SPEC, chosen

import voxstrata as vs
from voxstrata.base.errors import UsageError
from voxstrata.corpus import Corpus
from voxstrata.encoders import ModelFolder
from voxstrata.retrieval.selection import Selection
from voxstrata.store import EmbeddingStore
from voxstrata.store.several import open_by_encoder, place_of

OPTIONS = vs.RetrievalOptions(bootstrap=0)
OPENED = {EmbeddingStore, ModelFolder, Corpus, Selection}
FUNCTIONS = [name for name in vs.__all__ if inspect.isfunction(getattr(vs, name))]


def taken(annotation: Any) -> set[Any]:
    """The classes that a parameter takes, those within Sequence[…] and … | None, too."""
    inner = typing.get_args(annotation)
    return set().union(*map(taken, inner)) if inner else {annotation}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_no_function_takes_only_what_is_opened_or_only_its_path(name: str) -> None:
    hints = typing.get_type_hints(getattr(vs, name))
    for parameter, annotation in hints.items():
        classes = taken(annotation)
        if parameter != "return" and classes & OPENED:
            assert {str, Path} <= classes, parameter
        if parameter in ("store", "stores"):
            assert EmbeddingStore in classes, parameter
        if parameter == "model":
            assert ModelFolder in classes, parameter
        if parameter == "corpus":
            assert Corpus in classes, parameter


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Stores of a and b, of c, and of all three by another encoder."""
    folder = tmp_path_factory.mktemp("stores")
    make_store(folder / "ab.zarr", chosen(lambda name: name[0] in "ab"), spec=SPEC)
    make_store(folder / "c.zarr", chosen(lambda name: name[0] == "c"), spec=SPEC)
    make_store(folder / "other.zarr", ALL, spec=SPEC, weights_sha256="2" * 64, checkpoint="another")
    return [folder / f"{name}.zarr" for name in ("ab", "c", "other")]


def test_stores_of_several_encoders_by_path_or_opened(paths: list[Path]) -> None:
    def found(stores: Any) -> Any:
        return vs.retrieve_each(stores, similarities="pooled_cosine", options=OPTIONS)

    by_path = found(paths)
    assert [one["encoder"] for one in by_path.settings["encoders"]] == ["made-up", "another"]
    assert by_path.settings["utterances"] == 36
    for stores in ([str(p) for p in paths], list(map(vs.open_store, paths)), open_by_encoder(paths),
                   [vs.open_store(paths[:2]), paths[2]]):  # fmt: skip
        assert found(stores).table.equals(by_path.table)


def test_what_is_opened_as_several_is_opened_as_one_again(paths: list[Path]) -> None:
    several = vs.open_store(paths[:2])
    assert vs.open_store(several) is several
    again = vs.open_store([several])
    assert [one for one, _ in again.parts] == [one for one, _ in several.parts]
    opened = open_by_encoder([several, paths[2]])
    assert [len(one) for one in opened] == [36, 36]
    assert opened[0] is several  # what it has read is not read again
    assert all(a is b for a, b in zip(open_by_encoder(opened), opened, strict=True))
    assert [len(one) for one in open_by_encoder(str(paths[0]))] == [24]


def test_pairs_are_mined_and_compared_of_paths_too(paths: list[Path], tmp_path: Path) -> None:
    a, c = (vs.open_store(path) for path in paths[:2])
    options = vs.MiningOptions("csls", neighbours=1, bootstrap=0)
    expected = vs.mine(vs.select(a), vs.select(c), options=options)
    for x, y in ((paths[0], str(paths[1])), (a, c), (vs.select(a), paths[1])):
        assert vs.mine(x, y, options=options).table.equals(expected.table)
    report = vs.similarity(paths[0], c, "final", tmp_path / "found")
    assert (report.x, report.y) == (24, 12)
    lists = vs.mine_similarity(tmp_path / "found", options)
    assert lists.table.equals(vs.mine_similarity([tmp_path / "found"], options).table)


def test_what_changes_a_store_takes_an_opened_one(tmp_path: Path) -> None:
    store = make_store(tmp_path / "a.zarr", chosen(lambda name: name[0] == "a"), spec=SPEC)
    (tmp_path / "labels.csv").write_text("id,speaker\na1,Ana\n")
    assert vs.relabel(store, tmp_path / "labels.csv").changed == {"speaker": 1}
    assert vs.verify(store).sound
    assert vs.open_store(store.files.root)["a1"].speaker == "Ana"


def test_several_stores_as_one_are_no_place_to_write_to(paths: list[Path]) -> None:
    assert place_of(vs.open_store([paths[0]])) == place_of(paths[0]) == str(paths[0])
    for change in (vs.verify, lambda store: vs.relabel(store, "labels.csv"), lambda store: vs.append(store, "x", "y")):
        with pytest.raises(UsageError, match=r"ab\.zarr \+ .*c\.zarr: several stores .* give each by itself"):
            change(vs.open_store(paths[:2]))


def test_an_opened_model_and_corpus_are_taken_as_they_are(tiny_model: Path, make_corpus: Any, tmp_path: Path) -> None:
    model, corpus = vs.open_model(tiny_model), vs.read_corpus(make_corpus({"en/a": 1.0, "en/b": 2.0}))
    assert vs.open_model(model) is model
    assert vs.read_corpus(corpus) is corpus
    assert vs.estimate(corpus.root, tiny_model) == vs.estimate(corpus, model)
    with pytest.raises(UsageError, match="this one is read already"):
        vs.read_corpus(corpus, columns={"text": "sentence"})


def test_stores_are_taken_from_whatever_can_be_gone_through(paths: list[Path]) -> None:
    opened = vs.open_store(paths[0])
    assert vs.open_store(opened) is opened
    for several in (paths[:2], iter(paths[:2]), set(paths[:2]), dict.fromkeys(paths[:2])):
        assert len(vs.open_store(several)) == len(opened) + len(vs.open_store(paths[1]))
    for wrong in (None, 3, [None], object()):
        with pytest.raises(UsageError, match="is no store; give its path, an opened store, or a list of them"):
            vs.open_store(wrong)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="no store is named"):
        vs.open_store(iter(()))
