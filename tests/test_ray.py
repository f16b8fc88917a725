"""Extraction on Ray: what comes of it is what one process makes, whatever becomes of the nodes."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import soundfile
from conftest import sound
from kills import committed, contents
from stores import make_store
from test_cli import run
from test_tiles import utterances

import voxstrata as vs
from voxstrata.cluster import comparing
from voxstrata.cluster.actors import HANDFUL, Workers, handfuls, on_actors
from voxstrata.cluster.extracting import extract_on_ray
from voxstrata.engine.run import prepare

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

if TYPE_CHECKING:
    from _nodes import Nodes

SPEC, RUNTIME = vs.StoreSpec("layer_01,final"), vs.Runtime(threads=1, tokens=1500)
LANGUAGES = ["ca", "de", "en", "es", "fi", "fr", "it", "nl", "pl", "pt"]  # a unit each


@pytest.fixture(scope="module")
def cluster() -> Iterator[Nodes]:
    """Two nodes of a core each on this machine, and this process connected to the one that stays."""
    from _nodes import nodes

    with nodes() as found:
        yield found


@pytest.fixture(scope="module")
def corpus(make_corpus: Callable[..., Path]) -> Path:
    root = make_corpus({f"{language}/{i}": 0.3 + 0.2 * i for language in LANGUAGES for i in range(6)})
    (root / "ca" / "0.wav").write_text("not audio")
    (root / "de" / "0.wav").unlink()
    soundfile.write(root / "de" / "0.flac", sound(0.3, 6), 16_000)
    with (root / "de" / "0.flac").open("r+b") as f:  # its header is whole: it fails when it is decoded
        f.seek(-2000, os.SEEK_END)
        f.write(bytes(1000))
    return root


@pytest.fixture(scope="module")
def whole(corpus: Path, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The store that one process makes."""
    store = tmp_path_factory.mktemp("whole") / "s.zarr"
    vs.extract(corpus, tiny_model, store, SPEC, RUNTIME)
    return store


class Told(vs.Reporter):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.warnings, self.heard = list[str](), list[vs.Progress]()

    def warn(self, text: str) -> None:
        self.warnings.append(text)

    def progress(self, progress: vs.Progress) -> None:
        self.heard.append(progress)


def on_ray(corpus: Path, model: Path, store: Path, reporter: vs.Reporter | None = None) -> Any:
    read = vs.read_corpus(corpus)
    workers = Workers(number=2)
    return extract_on_ray(read, model, store, SPEC, RUNTIME, reporter or Told(), workers=workers, source=corpus)


@pytest.mark.long
def test_a_node_killed_in_the_middle_leaves_no_trace(
    cluster: Nodes, corpus: Path, tiny_model: Path, whole: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    from _nodes import watching

    store, settings = tmp_path / "s.zarr", ["--outputs", "layer_01,final", "--threads", 1, "--tokens", 1500]
    cluster.join()
    with watching(lambda: committed(store) >= 3, cluster.kill):
        code = run("extract", corpus, tiny_model, "-o", store, *settings, "--workers", 2, "--json", "--ray")
    assert code == 4
    assert contents(store) == contents(whole)
    report = json.loads(capfd.readouterr().out)  # nothing of Ray's beside it
    assert (report["units"], report["pending_units"], report["failed"]) == (10, 0, 2)
    assert set(report["failures"]) == {"ca/0", "de/0"}
    assert cluster.other is None  # it was killed before the end
    cluster.join()


def test_the_figures_are_those_of_one_process(
    cluster: Nodes, corpus: Path, tiny_model: Path, whole: Path, tmp_path: Path
) -> None:
    alone = vs.extract(corpus, tiny_model, tmp_path / "alone.zarr", SPEC, RUNTIME).to_dict()
    told = Told()
    report = on_ray(corpus, tiny_model, tmp_path / "s.zarr", told).to_dict()
    same = set(alone) - {"out", "seconds", "stages", "efficiency"}
    assert {key: report[key] for key in same} == {key: alone[key] for key in same}
    assert report["stages"].keys() == alone["stages"].keys()
    assert contents(tmp_path / "s.zarr") == contents(whole)
    assert told.warnings == []
    last = told.heard[-1]
    assert (last.stage, last.total, last.unit, last.failed) == ("extracting", 10, "units", 2)
    assert last.share == 1
    resumed = on_ray(corpus, tiny_model, tmp_path / "s.zarr").to_dict()
    assert (resumed["resumed_units"], resumed["audio_seconds"]) == (10, 0)


def test_recordings_that_lie_elsewhere_by_now_are_found(
    cluster: Nodes, corpus: Path, tiny_model: Path, whole: Path, tmp_path: Path
) -> None:
    shutil.copytree(corpus, tmp_path / "before")
    store = tmp_path / "s.zarr"
    prepare(tmp_path / "before", tiny_model, store, SPEC, RUNTIME)
    (tmp_path / "before").rename(tmp_path / "after")
    assert on_ray(tmp_path / "after", tiny_model, store).pending_units == 0
    frames = "frames/final/c/3/0"
    assert contents(store)[frames] == contents(whole)[frames]


def test_tile_rows_of_a_comparison_are_done_on_ray(
    cluster: Nodes, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    from _nodes import watching

    store, settings = make_store(tmp_path / "s.zarr", utterances(7)), ["--outputs", "final", "--tile-frames", 40]
    where, as_json = store.files.root, "--json"
    assert run("similarity", where, "-o", tmp_path / "alone", *settings, as_json) == 0
    alone = json.loads(capfd.readouterr().out)
    assert alone["rows"] == 3
    cluster.join()
    assert run("similarity", where, "-o", tmp_path / "ray", *settings, as_json, "--workers", 2, "--ray") == 0
    report = json.loads(capfd.readouterr().out)
    assert contents(tmp_path / "ray") == contents(tmp_path / "alone")
    same = set(alone) - {"out", "seconds", "stages"}
    assert {key: report[key] for key in same} == {key: alone[key] for key in same}
    assert report["stages"].keys() >= {"read", "pack", "compare", "merge"}

    with watching(lambda: len(list((tmp_path / "killed").glob("units/*/done.json"))) >= 1, cluster.kill):
        assert run("similarity", where, "-o", tmp_path / "killed", *settings, as_json, "--workers", 2, "--ray") == 0
    report = json.loads(capfd.readouterr().out)
    assert contents(tmp_path / "killed") == contents(tmp_path / "alone")
    # what a lost worker had committed but not told of counts as done by others
    assert {key: report[key] for key in same - {"resumed_rows", "pairs"}} == {
        key: alone[key] for key in same - {"resumed_rows", "pairs"}
    }
    assert report["resumed_rows"] <= 1  # of its handful, which is of one row
    assert (report["pairs"] < alone["pairs"]) == (report["resumed_rows"] > 0)
    cluster.join()


@pytest.mark.long
@pytest.mark.filterwarnings("ignore::DeprecationWarning:ray[.]data")  # it sets its own deprecated settings
def test_ray_data_takes_the_class_into_a_pipeline(
    cluster: Nodes, corpus: Path, tiny_model: Path, whole: Path, tmp_path: Path
) -> None:
    import ray.data

    store = tmp_path / "s.zarr"
    extraction = vs.prepare(corpus, tiny_model, store, SPEC, RUNTIME)
    ray.data.DataContext.get_current().enable_progress_bars = False
    done = ray.data.from_items([{"unit": unit} for unit in extraction.pending()], override_num_blocks=5).map_batches(
        vs.ExtractUnits,
        fn_constructor_args=(store, tiny_model, RUNTIME),
        compute=ray.data.ActorPoolStrategy(size=2),
        num_cpus=1,
    )
    figures = {row["unit"]: row for row in done.take_all()}
    extraction.finish()
    assert contents(store) == contents(whole)
    assert sorted(figures) == list(range(10))
    # 6 recordings of 0.3 to 1.3 s in each language; what no header can be read of is in no unit, what breaks off is
    assert [figures[unit]["utterances"] for unit in range(10)] == [5, *[6] * 9]
    assert [figures[unit]["failed"] for unit in range(10)] == [0, 1, *[0] * 8]
    assert figures[5]["audio_seconds"] == pytest.approx(4.8)
    assert all(row["seconds"] > 0 for row in figures.values())


def test_errors_are_those_of_one_process(cluster: Nodes, corpus: Path, huge: Path, tmp_path: Path) -> None:
    with pytest.raises(vs.InputError) as one:
        vs.extract(corpus, huge, tmp_path / "one.zarr", SPEC, RUNTIME)
    with pytest.raises(vs.InputError) as ray:
        on_ray(corpus, huge, tmp_path / "s.zarr")
    end = str(one.value).split(":", 1)[1]  # which recording is met first may differ
    assert "reaches beyond float16" in end
    assert type(ray.value) is vs.InputError
    assert str(ray.value).split(":", 1)[1] == end


@pytest.mark.long
def test_a_piece_that_kills_its_workers_ends_the_run_and_is_named(cluster: Nodes) -> None:
    def maker() -> Callable[[Sequence[int]], list[int]]:
        def work(pieces: Sequence[int]) -> list[int]:
            if 13 in pieces:
                os.kill(os.getpid(), signal.SIGKILL)
            return list(pieces)

        return work

    import ray

    told, done = Told(), list[int]()
    workers = Workers(number=2, threads=1).settled(ray.nodes(), told)
    found = on_actors(ray, workers, maker, {}, range(40), told)
    with pytest.raises(vs.InputError, match=r"^piece 13: 5 workers"):
        done.extend(piece for handful in found for piece in handful or [])
    assert len(told.warnings) == 4
    assert 13 not in done
    assert len(set(done)) == len(done)
    # who is not at 13 goes on with the others meanwhile: he may be at one handful when the run ends
    assert len(set(range(13)) - set(done)) <= len(handfuls(range(40), 2)[0])


class OneLeft:
    """Stands for Ray with two actors: the second is lost with its handful once the first is idle, and finds no place
    to start again."""

    exceptions = SimpleNamespace(
        RayError=ConnectionError, RayTaskError=ZeroDivisionError, ActorUnavailableError=BrokenPipeError
    )

    def __init__(self) -> None:
        self.made, self.got, self.lost = 0, list[list[int]](), False

    def remote(self, **_: Any) -> Any:
        def make(_: Any) -> Any:
            return SimpleNamespace(remote=self._actor)

        return make

    def _actor(self, work: Any, arguments: Any) -> Any:
        number, self.made = self.made, self.made + 1
        done = work(**arguments)

        def do(handful: list[int]) -> Any:
            return SimpleNamespace(actor=number, handful=handful, found=done(handful) if handful else None)

        return SimpleNamespace(do=SimpleNamespace(remote=lambda handful: _Hashable(do(handful))))

    def wait(self, refs: Sequence[Any], timeout: float) -> tuple[list[Any], list[Any]]:
        ready = [
            ref for ref in refs
            if ref.it.actor == 0 or (not self.lost and (not ref.it.handful or [0] in self.got))
        ]  # fmt: skip
        assert ready, "the actor that is idle is asked for nothing"
        return ready[:1], []

    def get(self, ref: Any) -> Any:
        if ref.it.actor == 1 and ref.it.handful:
            self.lost = True
            raise ConnectionError("the node died")
        self.got.append(ref.it.handful)
        return ref.it.found, None

    def kill(self, actor: Any) -> None:
        pass


class _Hashable:
    def __init__(self, it: Any) -> None:
        self.it = it


def test_a_worker_that_had_nothing_left_to_do_takes_what_a_lost_one_was_at() -> None:
    told = Told()
    found = on_actors(OneLeft(), Workers(number=2, threads=1, gpus=0), lambda: list, {}, [0, 1], told)
    assert [handful for handful in found if handful] == [[0], [1]]
    assert len(told.warnings) == 1


class AllWell(OneLeft):
    """Stands for Ray on which nothing is lost."""

    def wait(self, refs: Sequence[Any], timeout: float) -> tuple[list[Any], list[Any]]:
        return list(refs)[:1], []

    def get(self, ref: Any) -> Any:
        return ref.it.found, None


def test_what_is_left_after_all_is_done_by_the_workers_that_are_there() -> None:
    # tile rows that other runs were at, or that turned out damaged
    ray, later = AllWell(), [[2, 3], [3], []]
    workers = Workers(number=2, threads=1, gpus=0)
    found = on_actors(ray, workers, lambda: list, {}, [0, 1], Told(), lambda: later.pop(0))
    assert sorted(handful for handful in found if handful) == [[0], [1], [2], [3], [3]]
    assert ray.made == 2
    assert later == []


def test_a_node_that_does_not_see_what_it_needs_says_so(corpus: Path, tiny_model: Path, tmp_path: Path) -> None:
    moved, store = tmp_path / "moved", tmp_path / "s.zarr"
    shutil.copytree(corpus, moved)
    units = {"unit": np.array(prepare(moved, tiny_model, store, SPEC, RUNTIME).pending())}
    sees = f"node {socket.gethostname()} does not see the "
    with pytest.raises(vs.InputError, match=f"{sees}store {tmp_path}/other.zarr: put it where all nodes see it"):
        vs.ExtractUnits(tmp_path / "other.zarr", tiny_model)(units)
    with pytest.raises(vs.InputError, match=f"{sees}model {tmp_path}/base"):
        vs.ExtractUnits(store, tmp_path / "base")(units)
    shutil.rmtree(moved)
    with pytest.raises(vs.InputError, match=f"{sees}recording {moved}/ca/"):
        vs.ExtractUnits(store, tiny_model)(units)
    assert committed(store) == 0  # not one that is all failures


@pytest.mark.parametrize(("pieces", "workers"), [(0, 3), (1, 4), (100, 1), (1000, 7), (1000, 5000)])
def test_handfuls_are_the_pieces_in_order_and_small_at_the_end(pieces: int, workers: int) -> None:
    parts = handfuls(range(pieces), workers)
    assert [piece for part in parts for piece in part] == list(range(pieces))
    sizes = [len(part) for part in parts]
    assert all(0 < size <= HANDFUL for size in sizes)
    assert sizes == sorted(sizes, reverse=True)
    if workers > 1:
        assert sizes[-workers:] == [1] * len(sizes[-workers:])


def node(cpus: float, gpus: float = 0, alive: bool = True) -> dict[str, Any]:
    """As `ray.nodes()` describes one."""
    return {"Alive": alive, "Resources": {"CPU": cpus, "memory": 1e9, **({"GPU": gpus} if gpus else {})}}


@pytest.mark.parametrize(
    ("asked", "nodes", "number", "threads"),
    [
        ({}, [node(8), node(8), node(8, alive=False)], 2, 8),  # a node, a worker
        ({}, [node(8), node(4)], 3, 4),
        ({"number": 4}, [node(8), node(8)], 4, 4),
        ({"number": 3}, [node(2)], 3, 1),  # the third waits
        ({"threads": 3}, [node(8), node(8)], 4, 3),
        ({"gpus": 1}, [node(32, 8), node(16, 4), node(8)], 12, 4),  # a GPU, a worker
        ({"gpus": 0.5}, [node(32, 8)], 16, 2),
        ({"gpus": 1, "threads": 6}, [node(32, 8)], 5, 6),
        ({"gpus": 2, "number": 1}, [node(32, 8)], 1, 8),
    ],
)
def test_workers_fill_the_nodes(asked: dict[str, Any], nodes: list[Any], number: int, threads: int) -> None:
    workers = Workers(**asked).settled(nodes, Told())
    assert (workers.number, workers.threads) == (number, threads)


def test_without_room_this_machine_refuses_and_a_cluster_waits() -> None:
    with pytest.raises(vs.InputError, match=r"no node with 1 core and 1 GPU for a worker; it has 8 cores and 0 GPUs"):
        Workers(gpus=1).settled([node(8)], Told())
    told = Told()
    assert Workers("auto", gpus=1).settled([node(8)], told).number == 1
    assert "waiting for a node that joins" in told.warnings[0]


def test_workers_that_compare_on_a_gpu_ask_for_one(monkeypatch: pytest.MonkeyPatch) -> None:
    def settled(workers: Workers, *_: Any) -> None:
        raise AssertionError(f"{workers.gpus} GPUs")

    monkeypatch.setattr(Workers, "settled", settled)
    monkeypatch.setattr(comparing, "connected", lambda _: nullcontext(SimpleNamespace(nodes=list)))
    for kernel, gpus in (("triton-float16", 1.0), ("int16", 0.0)):
        with pytest.raises(AssertionError, match=f"^{gpus} GPUs"):
            comparing.similarity_on_ray(
                comparing.Side(()), None, {}, kernel=SimpleNamespace(name=kernel), workers=Workers()
            )


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["--workers", 2], "are of --ray"),
        (["--ray", "speech.tsv"], "--ray speech.tsv: no address"),
        (["--ray=local", "--device", "cuda:1"], "Ray says which GPU"),
        (["--ray=local", "--gpus-per-worker", 1], "to both or to none"),
        (["--ray=local", "--device", "cuda", "--gpus-per-worker", 0], "to both or to none"),
        (["--ray=local", "--part", "1/2"], "leave out --part, --efficiency"),
        (["--ray=local", "--efficiency"], "leave out --part, --efficiency"),
    ],
)
def test_options_that_make_no_sense_are_refused(
    corpus: Path, tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[Any], text: str
) -> None:
    assert run("extract", corpus, tiny_model, "-o", tmp_path / "s.zarr", *options) == 2
    assert text in capsys.readouterr().err
    assert not (tmp_path / "s.zarr").exists()
