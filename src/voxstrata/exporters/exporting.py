"""Export: checkpoint in, validated model folder out, or nothing."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path

import numpy as np
import onnx
import onnxruntime

from voxstrata.audio.decode import decode
from voxstrata.base.errors import AudioError, InputError, UsageError
from voxstrata.corpus import read_corpus
from voxstrata.encoders import card as layout
from voxstrata.encoders.card import ModelCard, ModelFolder, open_model, write_card
from voxstrata.encoders.frames import SAMPLE_RATE
from voxstrata.encoders.outputs import output_names, select_outputs
from voxstrata.encoders.silence import Silence
from voxstrata.exporters.checkpoint import Checkpoint, load_checkpoint
from voxstrata.exporters.cpu_graph import cpu_encoder_graph
from voxstrata.exporters.log_mel import log_mel_graph
from voxstrata.exporters.silence_cache import (
    CALIBRATION_RECORDINGS,
    CALIBRATION_SECONDS,
    calibrated_silence,
    pure_silence,
)
from voxstrata.exporters.standard_graph import OPSET, WeightsFile, encoder_graph
from voxstrata.exporters.validation import TOLERANCE, validate


@dataclass(frozen=True)
class ExportSpec:
    """What to export.

    outputs: names (`layer_00` … `final`) or "all".
    dtype: "float32" or "float16", of weights, arithmetic and outputs; or "int8", of the weights of linear layers,
        for CPUs alone.
    norm_every: apply the final LayerNorm to every layer (for early exit), not to `final` alone.
    calibrate: a corpus (folder or manifest) from which the silence cache is calibrated; None: pure silence.
    silence_keys: cached keys per layer and head, by k-means; 0 keeps one key per position.
    """

    outputs: str | Sequence[str] = "all"
    dtype: str = "float32"
    norm_every: bool = False
    calibrate: str | Path | None = None
    silence_keys: int = 32


def export(
    source: str,
    target: str | Path,
    spec: ExportSpec | None = None,
    *,
    revision: str | None = None,
    say: Callable[[str], None] = lambda _: None,
    warn: Callable[[str], None] = lambda _: None,
) -> ModelFolder:
    """Export the encoder of `source` (see `load_checkpoint`) into the new folder `target`.

    The folder appears only when every graph agrees with PyTorch. `say` hears what is being done, `warn` which
    recordings cannot serve calibration.

    Raises InputError for an unusable checkpoint or calibration corpus, an existing target, or a failed
    validation; UsageError for unknown outputs or dtype.
    """
    spec = spec or ExportSpec()
    target = Path(target)
    if spec.dtype not in TOLERANCE:
        raise UsageError(f"unknown dtype {spec.dtype!r}; choose one of {', '.join(TOLERANCE)}")
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise InputError(f"{target}: exists already; remove it or choose another folder")
    say(f"loading {source}")
    checkpoint = load_checkpoint(source, revision)
    outputs = select_outputs(spec.outputs, output_names(checkpoint.shape.layers))
    if spec.calibrate is None:
        say("silence cache: pure")
        silence, account = pure_silence(checkpoint, spec.silence_keys)
    else:
        say(f"silence cache: calibrated on {spec.calibrate}")
        silence, account = calibrated_silence(checkpoint, _recordings(spec.calibrate, warn), spec.silence_keys)
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".partial", dir=target.parent))
    try:
        _write(partial, checkpoint, spec, outputs, silence)
        say("validating against PyTorch")
        validation = validate(partial, checkpoint, outputs, spec.dtype, spec.norm_every)
        s = checkpoint.shape
        card = ModelCard(
            format=layout.FORMAT,
            checkpoint=checkpoint.name,
            revision=checkpoint.revision,
            weights_sha256=checkpoint.sha256(),
            layers=s.layers,
            d_model=s.d_model,
            heads=s.heads,
            n_mels=s.n_mels,
            dtype=spec.dtype,
            opset=OPSET,
            outputs=outputs,
            final_norm="every" if spec.norm_every else "final",
            silence=account,
            validation=validation,
            tools={p: version(p) for p in ("voxstrata", "torch", "transformers", "onnx")}
            | {"onnxruntime": onnxruntime.__version__},
        )
        _stamp(partial, card)
        write_card(partial, card)
        partial.chmod(0o755)  # mkdtemp keeps others out
        if target.exists():
            target.rmdir()
        partial.rename(target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return open_model(target)


def _stamp(folder: Path, card: ModelCard) -> None:
    """Put the card into the metadata of every graph, so that a graph alone says what it is."""
    for name in (*layout.encoder_graphs(card.dtype), layout.LOG_MEL):
        model = onnx.load(str(folder / name), load_external_data=False)
        onnx.helper.set_model_props(model, {"voxstrata": json.dumps(card.to_dict(), sort_keys=True)})
        (folder / name).write_bytes(model.SerializeToString())


def _write(folder: Path, checkpoint: Checkpoint, spec: ExportSpec, outputs: Sequence[str], silence: Silence) -> None:
    int8 = spec.dtype == "int8"
    weights = WeightsFile(folder / layout.WEIGHTS, np.dtype("float32" if int8 else spec.dtype))
    args = checkpoint.state(), checkpoint.shape, weights
    norm_every = spec.norm_every
    make = {
        layout.ENCODER: partial(encoder_graph, *args, outputs=outputs, cached=False, norm_every=norm_every),
        layout.CACHED: partial(encoder_graph, *args, outputs=outputs, cached=True, norm_every=norm_every),
        layout.CPU: partial(cpu_encoder_graph, *args, outputs=outputs, norm_every=norm_every, int8=int8),
    }
    graphs = layout.encoder_graphs(spec.dtype)
    try:
        for name in graphs:
            (folder / name).write_bytes(make[name]().SerializeToString())
    finally:
        weights.close()
    for name in graphs:
        onnx.checker.check_model(str(folder / name))
    log_mel = log_mel_graph(checkpoint.extractor.mel_filters)
    onnx.save(log_mel, str(folder / layout.LOG_MEL))
    silence.save(folder / layout.SILENCE)
    checkpoint.config.save_pretrained(folder)
    checkpoint.extractor.save_pretrained(folder)


def _recordings(
    source: str | Path, warn: Callable[[str], None]
) -> list[tuple[str, np.ndarray[tuple[int, ...], np.dtype[np.float32]]]]:
    """The beginnings of evenly spaced recordings of a corpus; `warn` hears of those that cannot be decoded."""
    longest = round(CALIBRATION_SECONDS[1] * SAMPLE_RATE)  # all that is used of a recording
    corpus = read_corpus(source)
    ids = corpus.table["id"].to_pylist()
    found = []
    for i in np.linspace(0, len(corpus) - 1, min(len(corpus), 2 * CALIBRATION_RECORDINGS)).astype(int):
        try:
            found.append((str(ids[i]), decode(corpus.absolute(int(i)))[:longest].copy()))
        except AudioError as e:
            warn(f"not calibrated on {e}")
    return found
