"""`extract` on Ray."""

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from voxstrata.base.errors import InputError, UsageError
from voxstrata.base.plain import counted
from voxstrata.base.progress import SILENT, Reporter
from voxstrata.cluster.actors import Workers, connected, on_actors
from voxstrata.cluster.node import same_everywhere
from voxstrata.cluster.units import ExtractUnits
from voxstrata.corpus import Corpus
from voxstrata.engine.extraction import ExtractReport, report
from voxstrata.engine.planning import Long
from voxstrata.engine.run import Extraction, Worked, open_run, prepare
from voxstrata.engine.runtime import Runtime
from voxstrata.engine.tally import Tally
from voxstrata.store.spec import StoreSpec

_SEEN_SECONDS = 90.0  # so long a network file system may take until it shows here what was written there


def extract_on_ray(
    corpus: Corpus,
    model: str | Path,
    store: str | Path,
    spec: StoreSpec | None,
    runtime: Runtime,
    reporter: Reporter = SILENT,
    *,
    workers: Workers,
    source: str | Path,
    reading: dict[str, Any] | None = None,
    long: Long = "window",
    allow_overflow: bool = False,
    durable: bool = True,
    retry_failed: bool = False,
) -> ExtractReport:
    """`extract` by workers on Ray: planned and finished here, units done there.

    runtime: of each worker; its threads are cores that Ray reserves. source, reading: what `read_corpus` made the
    corpus of, for workers that cannot do without. The others are those of `extract`.

    Raises what `extract` raises, and InputError for a cluster that does not answer, or whose nodes do not see store,
    model or corpus.
    """
    device = runtime.device
    if device.index:
        raise UsageError(f"device {device}: Ray says which GPU a worker gets; give {device.kind}")
    workers = replace(workers, threads=runtime.threads)
    if workers.gpus is None:
        workers = replace(workers, gpus=float(device.kind != "cpu"))
    if (device.kind == "cpu") != (not workers.gpus):
        raise UsageError(f"device {device}, and {workers.gpus:g} GPUs for each worker: give a GPU to both or to none")
    with connected(workers.address) as ray:
        workers = workers.settled(ray.nodes(), reporter)
        how: dict[str, Any] = {"allow_overflow": allow_overflow, "durable": durable}
        run = prepare(corpus, model, store, spec, runtime, reporter, long=long, retry_failed=retry_failed, **how)
        begin, pending, worked = time.perf_counter(), run.pending(), Worked()
        if _elsewhere(run, store):
            how |= {"corpus": same_everywhere(source), "reading": reading}
        how |= {"store": same_everywhere(store), "model": same_everywhere(model)}
        how["runtime"] = replace(runtime, threads=workers.threads)
        whole = Tally(run.writer, run.model)
        for more in on_actors(ray, workers, _worker_of, how, pending, reporter):
            worked += more or Worked()
            whole.tell(reporter)
        _wait_until_seen(run)
        whole.tell(reporter, look=True)
        found = run.finish()
    worked = replace(worked, seconds=time.perf_counter() - begin)
    return report(run, worked, run.plan.units - len(pending), 0, *found)


def _worker_of(**arguments: Any) -> Any:
    return ExtractUnits(**arguments).work


def _elsewhere(run: Extraction, store: str | Path) -> bool:
    """Whether workers need the corpus, since the store alone does not say where the recordings lie."""
    try:
        there = open_run(store, run.model).plan.corpus
    except InputError:  # in tar or Parquet files
        return True
    here = run.plan.corpus
    return there.root != here.root or not there.table["path"].equals(here.table["path"])


def _wait_until_seen(run: Extraction) -> None:
    """Wait for what workers have committed to show here, too."""
    begin = time.monotonic()
    while left := run.pending():
        if time.monotonic() - begin > _SEEN_SECONDS:
            raise InputError(
                f"{run.writer.files.root}: workers committed {counted(len(left), 'unit that is', 'units that are')} "
                f"not seen here, e.g. unit {left[0]}: is it the same storage on all nodes?"
            )
        time.sleep(1.0)
