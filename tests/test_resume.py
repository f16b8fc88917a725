"""The promise of resuming: whatever stopped a run, running it again gives the bytes of an uninterrupted one."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from kills import committed, contents, kill_and_resume, run

from voxstrata.engine import Runtime
from voxstrata.store import StoreSpec

SETTINGS = (StoreSpec("layer_01,final"), Runtime(threads=1, tokens=1500))
LANGUAGES = ["ca", "de", "en", "es", "fi", "fr"]  # a unit each
UNITS = len(LANGUAGES)


@pytest.fixture(scope="module")
def corpus(make_corpus: Callable[..., Path]) -> Path:
    root = make_corpus({f"{language}/{i}": 0.3 + 0.3 * i for language in LANGUAGES for i in range(4)})
    (root / "ca" / "bad.wav").write_text("not audio")
    return root


@pytest.mark.long  # tests/test_kills.py has fewer
def test_twenty_kills_each_followed_by_a_resume_leave_no_trace(corpus: Path, tiny_model: Path, tmp_path: Path) -> None:
    kill_and_resume(corpus, tiny_model, tmp_path, SETTINGS, kills=20, seed=0)


def test_an_interrupt_leaves_whole_units_and_no_trace_after_resuming(
    corpus: Path, tiny_model: Path, tmp_path: Path
) -> None:
    assert run(corpus, tiny_model, tmp_path / "whole.zarr", SETTINGS, lambda: None) == 0
    expected = contents(tmp_path / "whole.zarr")
    for units in (0, 3):
        store = tmp_path / f"{units}.zarr"

        def stop(store: Path = store, units: int = units) -> int | None:
            return signal.SIGINT if (store / "plan.json").exists() and committed(store) >= units else None

        assert run(corpus, tiny_model, store, SETTINGS, stop, hold_at=units) != 0
        left = contents(store)
        assert units <= sum(name.startswith("units/") for name in left) < UNITS
        # an interrupt, unlike a kill, has time to tidy up: only whole files of the store are left
        assert set(left) <= set(expected)
        assert all(left[name] == expected[name] for name in left if name.startswith(("units/", "plan")))
        assert run(corpus, tiny_model, store, SETTINGS, lambda: None) == 0
        assert contents(store) == expected


def test_shards_that_a_copy_lost_are_refused_by_name_and_written_again(
    corpus: Path, tiny_model: Path, tmp_path: Path
) -> None:
    from voxstrata import open_store
    from voxstrata.base.errors import InputError
    from voxstrata.engine import extract

    store = tmp_path / "s.zarr"
    extract(corpus, tiny_model, store, *SETTINGS)
    expected = contents(store)
    missing, cut = store / "frames" / "final" / "c" / "3" / "0", store / "frames" / "layer_01" / "c" / "5" / "0"
    missing.unlink()
    cut.write_bytes(cut.read_bytes()[:1000])
    opened = open_store(store)
    with pytest.raises(InputError, match="c/3/0: missing; run the same extraction again"):
        opened.ragged("final", [i for i in range(len(opened)) if opened.status[i] == 1])
    with pytest.raises(InputError, match="c/5/0: damaged"):
        opened.pooled("layer_01")
    report = extract(corpus, tiny_model, store, *SETTINGS)
    assert report.resumed_units == UNITS - 2
    assert contents(store) == expected


def test_a_second_run_takes_over_when_the_first_is_killed(corpus: Path, tiny_model: Path, tmp_path: Path) -> None:
    from voxstrata.base.progress import Reporter
    from voxstrata.engine import extract
    from voxstrata.engine.extraction import ExtractReport

    assert run(corpus, tiny_model, tmp_path / "whole.zarr", SETTINGS, lambda: None) == 0
    store, reports, left = tmp_path / "s.zarr", list[ExtractReport](), threading.Event()

    class Left(Reporter):
        def step(self, text: str) -> None:
            if "with other runs at them" in text:
                left.set()

    second = threading.Thread(target=lambda: reports.append(extract(corpus, tiny_model, store, *SETTINGS, Left())))

    def stop() -> int | None:
        if committed(store) and not second.ident:
            second.start()
        return signal.SIGKILL if left.is_set() else None

    assert run(corpus, tiny_model, store, SETTINGS, stop, hold_at=1) == -signal.SIGKILL
    second.join()
    assert reports[0].pending_units == 0
    assert contents(store) == contents(tmp_path / "whole.zarr")
