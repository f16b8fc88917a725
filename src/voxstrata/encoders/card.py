"""The model folder and its card.

DIR/
  encoder_model.onnx        log-mel in, hidden states out (named as optimum names an exported encoder)
  encoder_cached.onnx       the same, with the silence cache as inputs
  encoder_cpu.onnx          the latter as a CPU runs it fastest, with operators of ONNX Runtime's own; not in float16
  encoder_model.onnx_data   the weights of all graphs
  log_mel.onnx              waveform in, log-mel out
  silence.npz               the silence cache
  config.json, preprocessor_config.json   as Hugging Face writes them
  card.json                 what the model is, where it came from, how it was validated
"""

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from voxstrata.base.errors import InputError
from voxstrata.base.opening import open_regular, parse_json, read_json_file
from voxstrata.base.tables import TextTable
from voxstrata.encoders.context import Context
from voxstrata.encoders.frames import WINDOW_FRAMES
from voxstrata.encoders.onnx_file import read_onnx
from voxstrata.encoders.outputs import as_float16, output_names
from voxstrata.encoders.silence import Silence

MODEL_FORMAT = 3  # 2 brought encoder_cpu.onnx; 3 its outputs in float16
CARD, LOG_MEL, SILENCE, WEIGHTS = "card.json", "log_mel.onnx", "silence.npz", "encoder_model.onnx_data"
ENCODER, CACHED, CPU = "encoder_model.onnx", "encoder_cached.onnx", "encoder_cpu.onnx"
# far beyond any Whisper: above, a card is damaged
_MOST = {"layers": 1 << 10, "d_model": 1 << 15, "heads": 1 << 10, "n_mels": 1 << 10, "opset": 1 << 10}
# the encoder's graphs in a model of each dtype
ENCODER_GRAPHS = {"float32": (ENCODER, CACHED, CPU), "float16": (ENCODER, CACHED), "int8": (CPU,)}
# what `export` leaves, the card first
MODEL_FILES = (CARD, *ENCODER_GRAPHS["float32"], WEIGHTS, LOG_MEL, SILENCE, "config.json", "preprocessor_config.json")
DTYPES = tuple(ENCODER_GRAPHS)
# of a card what a graph does not depend on: the cache may be made anew
_BESIDE_THE_GRAPH = ("silence", "validation", "tools")
_NODES = 100  # more than any graph has for a block


@dataclass(frozen=True)
class ModelCard:
    """What an exported model is. Every field ends up in each store made with it.

    checkpoint: hub id, or the name of the local folder or file.
    weights_sha256: of the encoder's tensors (name, shape, float32 values), the same whatever file held them.
    dtype: "float32", "float16", or "int8". An int8 model has linear layers in 8 bits and the rest in float32; it has
        only the CPU's graph.
    outputs: names of the graph's outputs, in depth order.
    final_norm: "final" (only `final` is normalised) or "every" (the final LayerNorm is applied to every output).
    silence: kind ("pure" or "calibrated"), groups (0: not condensed), first frame and sha256. A calibrated cache lists
        its recordings by name and SHA-256, of the float32 samples at 16 kHz that were used (at most the first 9 s).
        A pure one states its pad level.
    validation: for every output the largest relative L2 difference from PyTorch, and the lengths that were tried.
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

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form; `from_dict` restores it."""
        return asdict(self) | {"outputs": list(self.outputs)}

    @classmethod
    def from_dict(cls, d: dict[str, Any]) -> Self:
        """Inverse of `to_dict`. Raises KeyError, TypeError or ValueError for what is no card."""
        card = cls(**{**d, "outputs": tuple(d["outputs"])})
        for name, most in _MOST.items():  # nothing is made of a size that cannot be
            value = getattr(card, name)
            if type(value) is not int or not 0 < value <= most:
                raise ValueError(f"{name} is {_short(value)}, not a whole number from 1 to {most}")
        kinds = {"checkpoint weights_sha256 dtype final_norm": str, "silence validation tools": dict}
        for names, kind in kinds.items():
            for name in names.split():
                if not isinstance(getattr(card, name), kind):
                    raise TypeError(f"{name} is {_short(getattr(card, name))}")
        if not isinstance(card.revision, str | None) or not all(isinstance(o, str) for o in card.outputs):
            raise TypeError(f"revision is {_short(card.revision)}, outputs are {_short(card.outputs)}")
        return card

    def check(self) -> None:
        """Raises ValueError for a card that no export writes."""
        if self.d_model % self.heads:
            raise ValueError(f"{self.heads} heads do not divide d_model {self.d_model}")
        if self.dtype not in DTYPES or self.final_norm not in ("final", "every"):
            raise ValueError(f"dtype {_short(self.dtype)} or final_norm {_short(self.final_norm)} is unknown")
        known = output_names(self.layers)
        if not self.outputs or [o for o in known if o in self.outputs] != list(self.outputs):
            raise ValueError(f"outputs are {_short(self.outputs)}, not some of {known[0]} … {known[-1]}, in this order")
        groups, first = (self.silence.get(name) for name in ("groups", "first"))
        if not (type(groups) is int and type(first) is int and groups in range(WINDOW_FRAMES + 1) and first >= 0):
            raise ValueError(f"silence has {_short(groups)} groups from frame {_short(first)}")
        source = self.silence.get("recordings" if self.silence.get("kind") == "calibrated" else "pad_level")
        if not (isinstance(self.silence.get("sha256"), str) and isinstance(source, list | float | int)):
            raise ValueError("silence is without sha256, or without recordings or pad_level")
        for name in ("outputs", "outputs_cached"):
            found = self.validation.get(name)
            if not isinstance(found, dict) or not all(isinstance(found.get(o), float | int) for o in self.outputs):
                raise ValueError(f"validation has {_short(found)} as {name}")
            if not all(isinstance(value, float | int) for value in found.values()):
                raise ValueError(f"validation has {_short(found)} as {name}")
        for name in ("lengths_seconds", "cached_lengths_seconds"):
            if not isinstance(self.validation.get(name), list):
                raise ValueError(f"validation is without {name}")

    def validation_table(self) -> TextTable:
        """For each output how far it is from PyTorch's."""
        v = self.validation
        plain, cached = (", ".join(map(str, v[k])) for k in ("lengths_seconds", "cached_lengths_seconds"))
        rows = [[o, f"{v['outputs'][o]:.1e}", f"{v['outputs_cached'][o]:.1e}"] for o in self.outputs]
        header = ["output", f"plain, {plain} s", f"cached, {cached} s"]
        return TextTable("Largest relative L2 difference from float32 PyTorch", header, rows)

    def identity(self, context: Context) -> dict[str, Any]:
        """What decides the embeddings in a context. Stores in which this differs cannot be compared."""
        identity = {"weights_sha256": self.weights_sha256, "dtype": self.dtype, "final_norm": self.final_norm}
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

    def silence(self) -> Silence:
        """The silence cache."""
        card = self.card
        return Silence.load(self.path / SILENCE, (card.layers, card.heads, card.d_model // card.heads))


def write_card(folder: Path, card: ModelCard) -> None:
    """Write card.json, with hashes of the files beside it and of itself."""
    files = {p.name: _sha256_file(p) for p in sorted(folder.iterdir()) if p.name != CARD}
    d = card.to_dict() | {"files": files}
    text = json.dumps(d | {"sha256": _sha256_card(d)}, indent=1, sort_keys=True)
    (folder / CARD).write_text(text + "\n", encoding="utf-8")


def _sha256_card(d: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(d, sort_keys=True).encode()).hexdigest()


def open_model(path: str | Path) -> ModelFolder:
    """Open an exported model folder.

    Raises InputError when it is no model folder, has another format version, or when a file in it is missing or
    differs from what the export wrote.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; `voxstrata export CHECKPOINT -o {folder}` makes a model")
    try:
        d = read_json_file(folder / CARD)
    except FileNotFoundError:
        hint = " (this looks like a checkpoint: export it first)" if (folder / "config.json").exists() else ""
        raise InputError(f"{folder}: not an exported model, {CARD} is missing{hint}") from None
    except (OSError, ValueError) as e:
        raise InputError(f"{folder / CARD}: unreadable ({e}); export the model again") from e
    found = d.get("format") if isinstance(d, dict) else None
    if found != MODEL_FORMAT:
        raise InputError(
            f"{folder}: model format {_short(found)}, this version reads format {MODEL_FORMAT}; export the checkpoint "
            "again"
        )
    if d.pop("sha256", None) != _sha256_card(d):
        raise InputError(f"{folder / CARD}: damaged or changed since the export; export the model again")
    try:
        files = d.pop("files")
        card = ModelCard.from_dict(d)
        card.check()
        graphs = (*ENCODER_GRAPHS[card.dtype], LOG_MEL)
        if not isinstance(files, dict) or not {*graphs, WEIGHTS, SILENCE} <= files.keys() <= set(MODEL_FILES):
            raise ValueError(f"its files are {_short(files)}")
    except (KeyError, TypeError, ValueError) as e:
        raise InputError(f"{folder / CARD}: incomplete ({e}); export the model again") from e
    for name, expected in files.items():
        file = folder / name
        if not file.is_file():
            raise InputError(f"{file}: missing from the model folder; export the model again")
        if _sha256_file(file) != expected:
            raise InputError(f"{file}: damaged or changed since the export (SHA-256 differs); export it again")
    for name in graphs:
        _check_graph(folder, name, card)
    return ModelFolder(folder, card)


def _check_graph(folder: Path, name: str, card: ModelCard) -> None:
    """Raise InputError unless a graph is one that the exporters write, and the one that the card describes."""
    graph = read_onnx(folder / name)
    size = (folder / WEIGHTS).stat().st_size
    head = card.d_model // card.heads
    keys = (card.layers, card.heads, None)
    inputs: dict[str, tuple[int | None, ...]] = {"log_mel": (None, card.n_mels, None)}
    outputs: dict[str, tuple[int | None, ...]] = dict.fromkeys(card.outputs, (None, None, card.d_model))
    if name in (CACHED, CPU):
        inputs |= {"silence_key": (*keys, head), "silence_value": (*keys, head), "silence_bias": keys}
    if name == CPU:
        inputs["positions"] = (card.layers,)
        outputs |= {as_float16(output): sizes for output, sizes in outputs.items()}
    if name == LOG_MEL:
        inputs, outputs = {"audio": (None, None)}, {"log_mel": (None, card.n_mels, None)}
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
                "has far more nodes": graph.nodes > _NODES * (card.layers + 2),
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
