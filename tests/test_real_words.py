"""On real weights: like sounds are close in every output, and early layers match frames by their place in time."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from voxstrata import extract, open_model, open_store, read_corpus
from voxstrata.exporters import export
from voxstrata.store import StoreSpec
from voxstrata.studies.explain.measure import match_frames
from voxstrata.studies.words.measure import measure_words
from voxstrata.studies.words.table import EVERY_LANGUAGE
from voxstrata.studies.words.word_list import EXAMPLE, read_word_list

pytestmark = [pytest.mark.real, pytest.mark.timeout(1800)]


@pytest.fixture(scope="module")
def base(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("real") / "base"
    export(str(shared / "whisper-base-encoder"), target)
    return target


def test_near_homophones_are_closer_than_random_pairs_in_every_output(base: Path, tmp_path: Path) -> None:
    pytest.importorskip("panphon")
    pytest.importorskip("phonemizer")
    words = [word for word in read_word_list(EXAMPLE) if word.language in ("en", "de")]
    result = measure_words(words, open_model(base), tmp_path / "words", outputs=["layer_00", "layer_03", "final"])
    rows = {
        (row["output"], row["similarity"]): row
        for row in result.table.to_pylist()
        if row["kind"] == "near_homophones" and row["source"] == EVERY_LANGUAGE
    }
    for output in ("layer_00", "layer_03", "final"):
        assert rows[output, "seqsim_f1"]["low"] > rows[None, "duration"]["auc"] > 0.5


def test_an_early_layer_matches_by_time_and_a_late_one_does_not(shared: Path, base: Path, tmp_path: Path) -> None:
    prompts = read_corpus(shared / "prompts" / "prompts.tsv")
    pair = {"en/vm-opts", "es/vm-opts"}
    two = type(prompts)(
        prompts.root, prompts.table.take([i for i, n in enumerate(prompts.table["id"].to_pylist()) if n in pair])
    )
    extract(two, base, tmp_path / "s.zarr", StoreSpec(["layer_02", "layer_06"]))
    early, late = match_frames(open_store(tmp_path / "s.zarr"), *sorted(pair))
    share = []
    for match in (early, late):
        best = match.cosine.argmax(axis=1)
        share.append(float(np.mean(np.abs(best - np.arange(len(best))) <= 2)))
    assert share[0] > 0.9
    assert share[1] < 0.2
