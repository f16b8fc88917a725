"""Writing a model folder: graphs, weights, silence cache and card, validated before the folder appears."""

import json
import warnings
from collections.abc import Collection, Sequence
from dataclasses import asdict
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import onnx
import onnxruntime

from voxstrata.base.folders import new_folder
from voxstrata.base.progress import Reporter
from voxstrata.corpus import Corpus
from voxstrata.encoders import card as layout
from voxstrata.encoders.card import ModelCard, write_card
from voxstrata.encoders.outputs import output_names, select_outputs
from voxstrata.exporters.bucket_silence import make_silence
from voxstrata.exporters.checkpoint import Checkpoint
from voxstrata.exporters.cpu_graph import cpu_encoder_graph
from voxstrata.exporters.graph import OPSET
from voxstrata.exporters.log_mel import log_mel_graph
from voxstrata.exporters.silence_cache import calibration_recordings
from voxstrata.exporters.spec import ExportSpec
from voxstrata.exporters.standard_graph import encoder_graph
from voxstrata.exporters.validation import validate
from voxstrata.exporters.weights import WeightsFile


def write_model(
    checkpoint: Checkpoint,
    target: Path,
    spec: ExportSpec,
    corpus: Corpus | None,
    reporter: Reporter,
    replaced: Collection[str] = (),
) -> None:
    """Write the new folder `target`; corpus: what the silence cache is calibrated on. Errors as of `export`.

    replaced: names of files of an earlier model that may be there.
    """
    outputs = select_outputs(spec.outputs, output_names(checkpoint.shape.layers))
    reporter.step(
        "silence cache: without recordings" if corpus is None else f"silence cache: calibrated on {spec.calibrate}"
    )
    recordings = None if corpus is None else calibration_recordings(corpus, reporter)
    silence, provenance = make_silence(checkpoint, recordings, spec.silence_keys, reporter)
    with new_folder(target, replaced) as folder:
        reporter.step("writing the graphs")
        _write_graphs(folder, checkpoint, spec, outputs)
        silence.save(folder / layout.SILENCE)
        del silence
        with warnings.catch_warnings():  # of settings for generating text, which this folder is not for
            warnings.simplefilter("ignore", UserWarning)
            checkpoint.config.save_pretrained(folder)
        checkpoint.extractor.save_pretrained(folder)
        reporter.step("validating against PyTorch")
        weights_sha256 = checkpoint.sha256()  # before the weights go
        validation = validate(folder, checkpoint, outputs, spec.dtype, spec.norm_every, reporter)
        card = ModelCard(
            format=layout.BY_BUCKET_FORMAT if "buckets" in provenance else layout.MODEL_FORMAT,
            checkpoint=checkpoint.name,
            revision=checkpoint.revision,
            weights_sha256=weights_sha256,
            **asdict(checkpoint.shape),
            dtype=spec.dtype,
            opset=OPSET,
            outputs=outputs,
            final_norm="every" if spec.norm_every else "final",
            silence=provenance,
            validation=validation,
            tools=tool_versions(),
        )
        stamp(folder, (*layout.ENCODER_GRAPHS[card.dtype], layout.LOG_MEL), card)
        write_card(folder, card)


def _write_graphs(folder: Path, checkpoint: Checkpoint, spec: ExportSpec, outputs: Sequence[str]) -> None:
    """The encoder's graphs, which share one file of weights, and the log-mel's."""
    int8, names = spec.dtype == "int8", layout.ENCODER_GRAPHS[spec.dtype]
    dtype = "float32" if int8 else spec.dtype
    with WeightsFile(folder / layout.WEIGHTS, checkpoint.state(), checkpoint.shape, dtype) as weights:
        chosen: dict[str, Any] = {"outputs": outputs, "norm_every": spec.norm_every}
        make = {
            layout.ENCODER: partial(encoder_graph, weights, cached=False, **chosen),
            layout.CACHED: partial(encoder_graph, weights, cached=True, **chosen),
            layout.CPU: partial(cpu_encoder_graph, weights, int8=int8, **chosen),
        }
        for name in names:
            (folder / name).write_bytes(make[name]())
    for name in names:
        onnx.checker.check_model(str(folder / name))
    (folder / layout.LOG_MEL).write_bytes(log_mel_graph(checkpoint.extractor.mel_filters))


def tool_versions() -> dict[str, str]:
    """What a model was made with."""
    found = {package: version(package) for package in ("voxstrata", "torch", "transformers", "onnx")}
    return found | {"onnxruntime": onnxruntime.__version__}


def stamp(folder: Path, names: Sequence[str], card: ModelCard) -> None:
    """Put the card into the metadata of every graph, so that a graph alone says what it is."""
    for name in names:
        model = onnx.load(str(folder / name), load_external_data=False)
        onnx.helper.set_model_props(model, {"voxstrata": json.dumps(card.to_dict(), sort_keys=True)})
        (folder / name).write_bytes(model.SerializeToString())
