"""The model folder and its card.

DIR/ of a Whisper encoder
  encoder_model.onnx        log-mel in, hidden states out (named as optimum names an exported encoder)
  encoder_cached.onnx       the same, with the silence cache as inputs
  encoder_cpu.onnx          the latter as a CPU runs it fastest, with operators of ONNX Runtime's own; not in float16
  encoder_model.onnx_data   the weights of all graphs
  log_mel.onnx              waveform in, log-mel out
  silence.npz               the silence cache
  config.json, preprocessor_config.json   as Hugging Face writes them
  card.json                 what the model is, where it came from, how it was validated
  tensorrt/                 engines for one GPU, if it has run on TensorRT: a folder for each shape

Of other families there are these files alone:
  features.onnx             waveform in, features out
  encoder_model.onnx        features in, hidden states out
  encoder_model.onnx_data, config.json, preprocessor_config.json, card.json
"""

import copy
import hashlib
import json
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Self

from voxstrata.base.errors import InputError, UsageError
from voxstrata.base.opening import open_regular, parse_json, read_json_file
from voxstrata.base.plain import counted
from voxstrata.base.recognised import mistaken
from voxstrata.base.tables import TextTable
from voxstrata.encoders.context import Context
from voxstrata.encoders.family import Family
from voxstrata.encoders.frames import WINDOW_FRAMES
from voxstrata.encoders.onnx_file import FAMILY_OPERATORS, OPERATORS, OnnxFile, read_onnx
from voxstrata.encoders.outputs import as_float16, output_names
from voxstrata.encoders.silence import BucketSilence, Silence, load_silence
from voxstrata.encoders.whisper import NAME, WHISPER, whisper_family

MODEL_FORMAT = 3  # 2 brought encoder_cpu.onnx; 3 its outputs in float16
BY_BUCKET_FORMAT = 4  # the same, with a silence cache for each bucket
CARD, LOG_MEL, SILENCE, WEIGHTS = "card.json", "log_mel.onnx", "silence.npz", "encoder_model.onnx_data"
ENCODER, CACHED, CPU = "encoder_model.onnx", "encoder_cached.onnx", "encoder_cpu.onnx"
FEATURES = "features.onnx"  # of other families
# far beyond any encoder: above, a card is damaged
_MOST = {"layers": 1 << 10, "d_model": 1 << 15, "heads": 1 << 10, "n_mels": 1 << 10, "opset": 1 << 10}
# the encoder's graphs in a Whisper of each dtype
ENCODER_GRAPHS = {"float32": (ENCODER, CACHED, CPU), "float16": (ENCODER, CACHED), "int8": (CPU,)}
_CONFIGS = ("config.json", "preprocessor_config.json")
# what `export` leaves of a Whisper, and of other families, the card first
MODEL_FILES = (CARD, *ENCODER_GRAPHS["float32"], WEIGHTS, LOG_MEL, SILENCE, *_CONFIGS)
FAMILY_FILES = (CARD, ENCODER, WEIGHTS, FEATURES, *_CONFIGS)
ENGINE_CACHE = "tensorrt"
ENGINES = (f"{ENGINE_CACHE}/*", f"{ENGINE_CACHE}/*/*")  # patterns of what lies there
DTYPES = tuple(ENCODER_GRAPHS)
# of a card what a graph does not depend on: the cache may be made anew
_BESIDE_THE_GRAPH = ("silence", "validation", "tools")
_NODES, _TRACED_NODES = 100, 1000  # more than any graph has for a block: one of ours, one that PyTorch traced


@dataclass(frozen=True)
class ModelCard:
    """What an exported model is. Every field ends up in each store made with it.

    checkpoint: hub id, or the name of the local folder or file.
    weights_sha256: of the encoder's tensors (name, shape, float32 values), the same whatever file held them. Of other
        families than Whisper's of their settings, too: strides, heads and activations do not show in tensors.
    n_mels: width of the features; of a log-mel its bins.
    dtype: "float32", "float16", or "int8". An int8 model has linear layers in 8 bits and the rest in float32; it has
        only the CPU's graph. Other families have float32 alone.
    outputs: names of the graph's outputs, in depth order.
    final_norm: "final" (only `final` is normalised) or "every" (the final LayerNorm is applied to every output).
    silence: kind ("pure" or "calibrated"), groups (0: not condensed), first frame and sha256; buckets, by the numbers
        of computed positions, where each has keys of its own (format 4). A calibrated cache lists its recordings by
        name and SHA-256, of the float32 samples at 16 kHz that were used (at most the first 9 s). A pure one states
        what stands before the silence, or without buckets its pad level. {} in other families.
    validation: for every output the largest relative L2 difference from PyTorch, and the lengths that were tried.
    family: the declaration. Whisper's follows from the other fields, and no Whisper's JSON has it.
    """

    format: int
    checkpoint: str
    revision: str | None
    weights_sha256: str
    layers: int
    d_model: int
    heads: int
    n_mels: int
    dtype: str
    opset: int
    outputs: tuple[str, ...]
    final_norm: str
    silence: dict[str, Any]
    validation: dict[str, Any]
    tools: dict[str, str]
    family: Family = WHISPER

    def __post_init__(self) -> None:
        if self.whisper:
            own = whisper_family(self.layers, self.d_model, self.n_mels, self.final_norm)
            object.__setattr__(self, "family", own)

    @property
    def whisper(self) -> bool:
        """Whether it is a Whisper: with its graphs, contexts and silence cache."""
        return self.family.name == NAME

    def __repr__(self) -> str:
        return f"<ModelCard {self._short}>"

    @property
    def _short(self) -> str:
        size = f"{counted(self.layers, 'layer')}, d={self.d_model}"
        return f"{self.checkpoint} ({self.family.name}), {size}, {self.dtype}"

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form; `from_dict` restores it."""
        d = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "family"}
        d = copy.deepcopy(d) | {"outputs": list(self.outputs)}
        return d if self.whisper else d | {"family": self.family.to_dict()}

    @classmethod
    def from_dict(cls, d: dict[str, Any]) -> Self:
        """Inverse of `to_dict`. Raises KeyError, TypeError or ValueError for what is no card."""
        for name, most in _MOST.items():  # nothing is made of a size that cannot be
            value = d[name]
            if type(value) is not int or not 0 < value <= most:
                raise ValueError(f"{name} is {_short(value)}, not a whole number from 1 to {most}")
        declared = {"family": Family.from_dict(d["family"])} if "family" in d else {}
        if any(family.name == NAME for family in declared.values()):
            raise ValueError(f"family is {NAME}, and no card of {NAME} says so")
        card = cls(**{**d, "outputs": tuple(d["outputs"]), **declared})
        kinds = {"checkpoint weights_sha256 dtype final_norm": str, "silence validation tools": dict}
        for names, kind in kinds.items():
            for name in names.split():
                if not isinstance(getattr(card, name), kind):
                    raise TypeError(f"{name} is {_short(getattr(card, name))}")
        if not isinstance(card.revision, str | None) or not all(isinstance(o, str) for o in card.outputs):
            raise TypeError(f"revision is {_short(card.revision)}, outputs are {_short(card.outputs)}")
        for text in (card.checkpoint, card.revision or "", card.family.name):  # printed in lines of their own
            if "\n" in text:
                raise ValueError(f"{_short(text)} is of several lines")
        return card

    def check(self) -> None:
        """Raises ValueError for a card that no export writes."""
        if self.d_model % self.heads:
            raise ValueError(f"{self.heads} heads do not divide d_model {self.d_model}")
        if self.dtype not in (DTYPES if self.whisper else ("float32",)) or self.final_norm not in ("final", "every"):
            raise ValueError(f"dtype {_short(self.dtype)} or final_norm {_short(self.final_norm)} is unknown")
        known = self.family.names
        if not self.outputs or [o for o in known if o in self.outputs] != list(self.outputs):
            raise ValueError(f"outputs are {_short(self.outputs)}, not some of {known[0]} … {known[-1]}, in this order")
        if self.whisper:
            self._check_silence()
        else:
            self._check_family()
        tried = ("outputs", "outputs_cached") if self.whisper else ("outputs",)
        for name in tried:
            found = self.validation.get(name)
            if not isinstance(found, dict) or not all(isinstance(found.get(o), float | int) for o in self.outputs):
                raise ValueError(f"validation has {_short(found)} as {name}")
            if not all(isinstance(value, float | int) for value in found.values()):
                raise ValueError(f"validation has {_short(found)} as {name}")
        for name in ("lengths_seconds", "cached_lengths_seconds")[: len(tried)]:
            if not isinstance(self.validation.get(name), list):
                raise ValueError(f"validation is without {name}")

    def _check_family(self) -> None:
        family, possible = self.family, output_names(self.layers)
        if [name for name in possible if name in family.names] != list(family.names):
            raise ValueError(f"family has the outputs {_short(family.names)}, of {possible[0]} … {possible[-1]}")
        if not {*family.contexts} <= {"exact", "padded"} or family.features != self.n_mels or self.silence:
            raise ValueError("family has a context or a silence cache that are Whisper's, or another width than n_mels")

    def _check_silence(self) -> None:
        groups, first = (self.silence.get(name) for name in ("groups", "first"))
        if not (type(groups) is int and type(first) is int and groups in range(WINDOW_FRAMES + 1) and first >= 0):
            raise ValueError(f"silence has {_short(groups)} groups from frame {_short(first)}")
        buckets = self.silence.get("buckets", [])  # a cache that is one for all lengths has none
        if not isinstance(buckets, list) or not all(type(b) is int for b in buckets):
            raise ValueError(f"silence has {_short(buckets)} as buckets")
        if (self.format == BY_BUCKET_FORMAT) != bool(buckets):
            raise ValueError(f"silence has {_short(buckets)} as buckets in format {self.format}")
        if self.silence.get("kind") not in ("pure", "calibrated"):
            raise ValueError(f"silence is of the kind {_short(self.silence.get('kind'))}")
        kinds = {"recordings": list, "before": str, "pad_level": float | int}
        pure = "before" if buckets else "pad_level"
        source = "recordings" if self.silence.get("kind") == "calibrated" else pure
        if not (isinstance(self.silence.get("sha256"), str) and isinstance(self.silence.get(source), kinds[source])):
            raise ValueError(f"silence is without sha256 or {source}")

    def validation_table(self) -> TextTable:
        """For each output how far it is from PyTorch's."""
        v = self.validation
        header, rows = ["output"], [[o] for o in self.outputs]
        for kind, before in (("plain", ""), ("cached", "cached_")) if self.whisper else (("exact", ""),):
            seconds = v[f"{before}lengths_seconds"]
            header.append(f"{kind}, {counted(len(seconds), 'length')}, {min(seconds):g} to {max(seconds):g} s")
            found = v["outputs_cached" if before else "outputs"]
            rows = [[*row, f"{found[o]:.1e}"] for row, o in zip(rows, self.outputs, strict=True)]
        return TextTable("Largest relative L2 difference from float32 PyTorch", header, rows)

    def identity(self, context: Context) -> dict[str, Any]:
        """What decides the embeddings in a context. Stores in which this differs cannot be compared."""
        identity: dict[str, Any] = {"weights_sha256": self.weights_sha256, "dtype": self.dtype}
        identity["final_norm"] = self.final_norm
        if not self.whisper:
            own = self.family
            return identity | {"family": own.name, "normalisation": own.normalisation, "prefix": list(own.prefix)}
        return identity | ({"silence_sha256": self.silence["sha256"]} if context.mode == "bucketed" else {})


def _sha256_file(path: Path) -> str:
    """SHA-256 of a file's bytes."""
    with open_regular(path) as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


@dataclass(frozen=True)
class ModelFolder:
    """An exported model on disk, checked against its card."""

    path: Path
    card: ModelCard

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.path}: {self.card._short}>"

    def silence(self) -> Silence | BucketSilence:
        """The silence cache. Raises UsageError for other families."""
        card = self.card
        if not card.whisper:
            raise UsageError(f"{self.path}: {card.family.name} has no silence cache; it is Whisper's")
        return load_silence(self.path / SILENCE, (card.layers, card.heads, card.d_model // card.heads))


def write_card(folder: Path, card: ModelCard) -> None:
    """Write card.json, with hashes of the files beside it and of itself."""
    files = {p.name: _sha256_file(p) for p in sorted(folder.iterdir()) if p.name != CARD}
    d = card.to_dict() | {"files": files}
    text = json.dumps(d | {"sha256": _sha256_card(d)}, indent=1, sort_keys=True)
    (folder / CARD).write_text(text + "\n", encoding="utf-8")


def _sha256_card(d: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(d, sort_keys=True).encode()).hexdigest()


def open_model(path: ModelFolder | str | Path) -> ModelFolder:
    """Open an exported model folder; one that is opened already is taken as it is.

    Raises InputError when it is no model folder, has another format version, or when a file in it is missing or
    differs from what the export wrote.
    """
    if isinstance(path, ModelFolder):
        return path
    folder = Path(path)
    mend = "name the folder that `voxstrata export` made"
    if folder.is_file():
        raise InputError(mistaken(folder, "a model", mend, "a file, not a model's folder"))
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; `voxstrata export CHECKPOINT -o {folder}` makes a model")
    try:
        d = read_json_file(folder / CARD)
    except FileNotFoundError:
        raise InputError(mistaken(folder, "a model", mend, f"not an exported model, {CARD} is missing")) from None
    except (OSError, ValueError) as e:
        raise InputError(f"{folder / CARD}: unreadable ({e}); export the model again") from e
    found = d.get("format") if isinstance(d, dict) else None
    if found not in (MODEL_FORMAT, BY_BUCKET_FORMAT):
        raise InputError(
            f"{folder}: model format {_short(found)}, this version reads the formats {MODEL_FORMAT} and "
            f"{BY_BUCKET_FORMAT}; export the checkpoint again"
        )
    if d.pop("sha256", None) != _sha256_card(d):
        raise InputError(f"{folder / CARD}: damaged or changed since the export; export the model again")
    try:
        files = d.pop("files")
        card = ModelCard.from_dict(d)
        card.check()
        graphs = (*ENCODER_GRAPHS[card.dtype], LOG_MEL) if card.whisper else (ENCODER, FEATURES)
        needed = {*graphs, WEIGHTS, *((SILENCE,) if card.whisper else ())}
        known = set(MODEL_FILES if card.whisper else FAMILY_FILES)
        if not isinstance(files, dict) or not needed <= files.keys() <= known:
            raise ValueError(f"its files are {_short(files)}")
    except (KeyError, TypeError, ValueError) as e:
        raise InputError(f"{folder / CARD}: incomplete ({e}); export the model again") from e
    for name, expected in files.items():
        file = folder / name
        if not file.is_file():
            raise InputError(f"{file}: missing from the model folder; export the model again")
        if _sha256_file(file) != expected:
            raise InputError(f"{file}: damaged or changed since the export (SHA-256 differs); export it again")
    operators = OPERATORS if card.whisper else FAMILY_OPERATORS
    read = {name: read_onnx(folder / name, operators) for name in graphs}
    for name, graph in read.items():
        if card.whisper:
            inputs, outputs = _whisper_signature(name, card)
        else:
            inputs, outputs = _signature(name, card, read[FEATURES].outputs.get("features", ()))
        _check_graph(folder, name, card, graph, inputs, outputs)
    return ModelFolder(folder, card)


_Sizes = dict[str, tuple[int | None, ...]]  # by name, None where one is open


def _whisper_signature(name: str, card: ModelCard) -> tuple[_Sizes, _Sizes]:
    """What a graph of a Whisper takes and gives."""
    head = card.d_model // card.heads
    keys = (card.layers, card.heads, None)
    inputs: _Sizes = {"log_mel": (None, card.n_mels, None)}
    outputs: _Sizes = dict.fromkeys(card.outputs, (None, None, card.d_model))
    if name in (CACHED, CPU):
        inputs |= {"silence_key": (*keys, head), "silence_value": (*keys, head), "silence_bias": keys}
    if name == CPU:
        inputs["positions"] = (card.layers,)
        outputs |= {as_float16(output): sizes for output, sizes in outputs.items()}
    if name == LOG_MEL:
        inputs, outputs = {"audio": (None, None)}, {"log_mel": (None, card.n_mels, None)}
    return inputs, outputs


def _signature(name: str, card: ModelCard, features: tuple[int | None, ...]) -> tuple[_Sizes, _Sizes]:
    """What a graph of another family takes and gives; features: the sizes that the first graph declares of them.

    They are [batch, samples] of samples, and of others [batch, frames, width] or [batch, width, frames].
    """
    width = card.family.features
    possible = [(None, None)] if card.family.input == "samples" else [(None, None, width), (None, width, None)]
    sizes: _Sizes = {"features": features if features in possible else possible[0]}
    if name == FEATURES:
        return {"audio": (None, None)}, sizes
    return sizes, dict.fromkeys(card.outputs, (None, None, card.d_model))


def _check_graph(folder: Path, name: str, card: ModelCard, graph: OnnxFile, inputs: _Sizes, outputs: _Sizes) -> None:
    """Raise InputError unless a graph is one that the exporters write, and the one that the card describes."""
    size = (folder / WEIGHTS).stat().st_size
    nodes = _NODES if card.whisper else _TRACED_NODES
    try:
        stamp = parse_json(graph.notes.get("voxstrata", "null"))
        same = all(stamp[key] == value for key, value in card.to_dict().items() if key not in _BESIDE_THE_GRAPH)
    except (ValueError, KeyError, TypeError):
        same = False
    wrong = next(
        (
            what
            for what, differs in {
                "carries another card": not same,
                "takes other inputs": dict(graph.inputs) != inputs,
                "has other outputs": dict(graph.outputs) != outputs,
                "has far more nodes": graph.nodes > nodes * (card.layers + 2),
                f"takes weights from elsewhere than {WEIGHTS}, or beyond its end": any(
                    where != WEIGHTS or end > size for where, end in graph.external.values()
                ),
            }.items()
            if differs
        ),
        None,
    )
    if wrong:
        raise InputError(f"{folder / name}: {wrong}, so it is not the graph of its card; export the model again")


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:60] + "…"
