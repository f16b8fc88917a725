"""The demo from Python: speak a small corpus, export an encoder, extract, retrieve."""

import shutil
from dataclasses import dataclass
from pathlib import Path

from voxstrata.base.errors import InputError
from voxstrata.base.plain import counted, rate_text
from voxstrata.base.progress import SILENT, Reporter
from voxstrata.demo.corpus import write_demo_corpus
from voxstrata.demo.encoder import LABORATORY, LANGUAGES, DemoEncoders, find_encoders, write_laboratory_model
from voxstrata.demo.laboratory import TAUGHT, draw_sentences, write_laboratory_corpus
from voxstrata.engine import Runtime, extract
from voxstrata.exporters import export
from voxstrata.store import StoreSpec, open_store
from voxstrata.studies.compared.measure import retrieve_each
from voxstrata.studies.compared.result import ComparedRetrieval
from voxstrata.studies.retrieve import Retrieval, retrieve

SENTENCES = 40
MADE = {
    "results/recall_by_layer.png": "recall by layer",
    "results/languages.png": "recall for every pair of languages",
    "results/retrieval.parquet": "every figure, tidy",
    "demo.zarr": "the embeddings; `voxstrata info` describes them",
    "model": "the exported encoder",
    "corpus": "the speech",
}  # what the demo leaves in its folder, and what that is
MADE_OF_TWO = {
    "results/recall_by_depth.png": "recall by depth, both encoders",
    "results/compared.parquet": "every figure, tidy",
    "transcriber.zarr, translator.zarr": "the embeddings",
    "transcriber-model, translator-model": "the exported encoders",
    "transcriber, translator": "the whole checkpoints; `voxstrata early-exit` takes them",
    "corpus": "the speech",
}
_MARKER = ".voxstrata-demo"
_FOLDERS = ["corpus", "results", "model", "demo.zarr", "random-weight-encoder"]  # the last by earlier versions
_FOLDERS += [f"{name}{end}" for name in LABORATORY for end in ("", "-model", ".zarr")]


@dataclass(frozen=True)
class Demo:
    """What the demo found, with which encoders, and what lies in its folder: path to what that is."""

    encoders: DemoEncoders
    retrieval: Retrieval | ComparedRetrieval
    made: dict[str, str]


def run_demo(folder: str | Path, *, threads: int | None = None, reporter: Reporter = SILENT) -> Demo:
    """The whole way once, into a folder; what an earlier demo left there is replaced.

    Works offline: without the hub, two small encoders of the package stand in for openai/whisper-tiny. The corpus is
    then of sentences that are made as those they know, spoken by voices that they do not. Works without PyTorch, too:
    their exported models are in the package.
    Raises InputError where the folder holds something else.
    """
    folder = Path(folder)
    if folder.exists() and any(folder.iterdir()) and not (folder / _MARKER).exists():
        raise InputError(f"{folder}: holds something else; choose another folder")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / _MARKER).touch()
    for made in _FOLDERS:
        if (folder / made).exists():
            shutil.rmtree(folder / made)
    reporter.step("looking for an encoder")
    encoders = find_encoders(folder, reporter)
    reporter.step(encoders.meaning)
    languages = TAUGHT if encoders.laboratory else LANGUAGES
    voices = "" if encoders.laboratory else ", two voices each"
    reporter.step(f"speaking {SENTENCES} sentences in {counted(len(languages), 'language')}{voices}")
    if encoders.laboratory:
        manifest = write_laboratory_corpus(folder / "corpus", draw_sentences("test", SENTENCES, languages))
    else:
        manifest = write_demo_corpus(folder / "corpus", SENTENCES, languages)
    stores = []
    for checkpoint in encoders.checkpoints:
        name = Path(checkpoint).name
        model, store = ("model", "demo.zarr") if not encoders.laboratory else (f"{name}-model", f"{name}.zarr")
        if encoders.exported:
            write_laboratory_model(name, folder / model)
        else:
            export(checkpoint, folder / model, reporter=reporter)
        reporter.step("extracting every layer of every utterance, the means of two frames each (40 ms)")
        # every=2: a quarter of the retrieval's work; the whole way is to take two minutes, not three
        report = extract(
            manifest, folder / model, folder / store, StoreSpec(every=2), Runtime(threads=threads), reporter
        )
        rate = report.audio_seconds / report.seconds
        reporter.step(f"{report.audio_seconds / 60:.0f} minutes of speech: {rate_text(rate)} audio-hours per hour")
        stores.append(open_store(folder / store))
    reporter.step("retrieving translations, layer by layer")
    found = retrieve_each(stores, reporter=reporter) if len(stores) > 1 else retrieve(stores[0], reporter=reporter)
    found.save(folder / "results")
    reporter.step("done")
    return Demo(encoders, found, MADE_OF_TWO if encoders.laboratory else MADE)
