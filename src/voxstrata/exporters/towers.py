"""Whisper's encoder inside other models: Voxtral, MOSS-Transcribe-Diarize, Ultravox and what is made like them.

The graph is Whisper's; the settings lie in a part of config.json, some under other names, and the weights below another
prefix. Of code that such a model brings along nothing is run.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import WhisperConfig

from voxstrata.base.errors import InputError
from voxstrata.base.tables import first_few
from voxstrata.exporters.reading import brief, whisper_config

# model_type of an encoder that is Whisper's, and under which names it has the settings of Whisper's that it renames
_RENAMED = {
    "d_model": "hidden_size",
    "encoder_layers": "num_hidden_layers",
    "encoder_attention_heads": "num_attention_heads",
    "encoder_ffn_dim": "intermediate_size",
}
_ENCODERS: dict[str, dict[str, str]] = {
    "whisper": {},
    "voxtral_encoder": _RENAMED,
    "moss_transcribe_diarize_audio": _RENAMED,
}
# models around one, by the encoder that they have where their config.json does not say
_AROUND = {
    "voxtral": "voxtral_encoder",
    "moss_transcribe_diarize": "moss_transcribe_diarize_audio",
    "ultravox": "whisper",
}
_PARTS = ("audio_config", "audio_encoder_config", "speech_config", "speech_encoder_config", "encoder_config")
# by the settings of the model around it what changes Whisper's graph
_CHANGES = {"audio_latency_block_size": "attends in blocks of its own"}
_MARKS = ("conv1.weight", "conv2.weight", "embed_positions.weight", "layer_norm.weight")
# what transformers takes where a setting is absent, and Whisper has another
_DEFAULTS = {"voxtral_encoder": {"num_mel_bins": 128}, "moss_transcribe_diarize_audio": {"num_mel_bins": 80}}


@dataclass(frozen=True)
class Tower:
    """Where the settings of a Whisper encoder lie. around: the `model_type` of the model around it, None where there is
    none. kind: its own. settings: its part of config.json."""

    around: str | None
    kind: str
    settings: Mapping[str, Any]

    @property
    def known(self) -> bool:
        """Whether we know what the model around it does with the encoder."""
        return self.around is None or self.around in _AROUND

    def config(self, file: Path) -> WhisperConfig:
        """The settings as Whisper's. Raises InputError naming the file where they are none."""
        names = {theirs: ours for ours, theirs in _ENCODERS[self.kind].items()}
        ours = _DEFAULTS.get(self.kind, {}) | {names.get(key, key): value for key, value in self.settings.items()}
        missing = [key for key in ("d_model", "encoder_layers", "encoder_attention_heads") if key not in ours]
        if missing and (self.around, self.kind) != (None, "whisper"):  # weights do not show the number of heads
            theirs = [_ENCODERS[self.kind].get(key, key) for key in missing]
            raise InputError(
                f"{file}: the encoder's settings do not say {', '.join(theirs)}; add them from its makers'"
            )
        return whisper_config(file, ours)


def find_tower(file: Path, config: Mapping[str, Any]) -> Tower | None:
    """The Whisper encoder that a config.json describes; None where it describes another encoder, or none.

    Raises InputError where the model around it changes the encoder, or keeps it elsewhere.
    """
    kind = config.get("model_type")
    if isinstance(kind, str) and kind in _ENCODERS:
        return Tower(None, kind, config)
    around = kind if isinstance(kind, str) else None
    for part in [config[key] for key in _PARTS if isinstance(config.get(key), Mapping)]:
        found = part.get("model_type", _AROUND.get(str(around)))
        if isinstance(found, str) and found in _ENCODERS and len(part) > 1:
            return _checked(file, Tower(around or "", found, part), config)
    if around in _AROUND:
        elsewhere = config.get("audio_model_id")
        of = f"; the encoder is that of audio_model_id, {brief(elsewhere)}: export that" if elsewhere else ""
        raise InputError(f"{file}: its audio_config describes no Whisper encoder{of}")
    return None


def _checked(file: Path, tower: Tower, config: Mapping[str, Any]) -> Tower:
    changed = next((key for key in _CHANGES if config.get(key) is not None), None)
    if changed:
        raise InputError(
            f"{file}: {changed} is {brief(config[changed])}: its encoder {_CHANGES[changed]}, which is not Whisper's "
            "graph; nothing of such a model can be exported"
        )
    return tower


def tower_prefix(folder: Path, names: Mapping[str, Any], config: Mapping[str, Any]) -> str:
    """Below which prefix the encoder's tensors lie. Raises InputError where there is no such encoder, or several."""
    found = [n.removesuffix(_MARKS[0]) for n in names if n.endswith(_MARKS[0])]
    found = [prefix for prefix in found if all(prefix + mark in names for mark in _MARKS)]
    if len(found) == 1:
        return found[0]
    if not found:
        elsewhere = config.get("audio_model_id")
        hint = f"; it may be that of {brief(elsewhere)}, unchanged: export that" if elsewhere else ""
        raise InputError(f"{folder}: the weights hold no Whisper encoder (no {_MARKS[0]}){hint}")
    raise InputError(
        f"{folder}: the weights hold several Whisper encoders ({first_few(found)}); save the one that is meant alone"
    )
