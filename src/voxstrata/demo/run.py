"""The demo from Python: speak a small corpus, export an encoder, extract, retrieve."""

import shutil
from dataclasses import dataclass
from pathlib import Path

from voxstrata.base.errors import InputError
from voxstrata.base.progress import SILENT, Reporter
from voxstrata.demo.corpus import write_demo_corpus
from voxstrata.demo.encoder import LANGUAGES, DemoEncoder, find_encoder
from voxstrata.engine import Runtime, extract
from voxstrata.exporters import export
from voxstrata.store import StoreSpec, open_store
from voxstrata.studies.retrieve import Retrieval, retrieve

MADE = {
    "results/recall_by_layer.png": "recall by layer",
    "results/languages.png": "recall for every pair of languages",
    "results/retrieval.parquet": "every figure, tidy",
    "demo.zarr": "the embeddings; `voxstrata info` describes them",
    "model": "the exported encoder",
    "corpus": "the speech",
}  # what the demo leaves in its folder, and what that is
_MARKER = ".voxstrata-demo"


@dataclass(frozen=True)
class Demo:
    """What the demo found, and with which encoder."""

    encoder: DemoEncoder
    retrieval: Retrieval


def run_demo(folder: str | Path, *, threads: int | None = None, reporter: Reporter = SILENT) -> Demo:
    """The whole way once, into a folder; what an earlier demo left there is replaced.

    Works offline: without the hub, a random-weight encoder stands in for openai/whisper-tiny.
    Raises InputError where the folder holds something else.
    """
    folder = Path(folder)
    if folder.exists() and any(folder.iterdir()) and not (folder / _MARKER).exists():
        raise InputError(f"{folder}: holds something else; choose another folder")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / _MARKER).touch()
    for made in ("corpus", "random-weight-encoder", "model", "demo.zarr", "results"):
        if (folder / made).exists():
            shutil.rmtree(folder / made)
    reporter.step(f"speaking 40 sentences in {len(LANGUAGES)} languages, two voices each")
    manifest = write_demo_corpus(folder / "corpus", languages=LANGUAGES)
    reporter.step("looking for an encoder")
    encoder = find_encoder(folder, reporter)
    reporter.step(encoder.meaning)
    export(encoder.checkpoint, folder / "model", reporter=reporter)
    reporter.step("extracting every layer of every utterance, the means of two frames each (40 ms)")
    # every=2: a quarter of the retrieval's work; the whole way is to take two minutes, not three
    spec, runtime = StoreSpec(every=2), Runtime(threads=threads)
    report = extract(manifest, folder / "model", folder / "demo.zarr", spec, runtime, reporter)
    rate = report.audio_seconds / report.seconds
    reporter.step(f"{report.audio_seconds / 60:.0f} minutes of speech: {rate:.0f} audio-hours per hour")
    reporter.step("retrieving translations, layer by layer")
    found = retrieve(open_store(folder / "demo.zarr"), reporter=reporter)
    found.save(folder / "results")
    reporter.step("done")
    return Demo(encoder, found)
