"""Which encoder the demo takes: whisper-tiny where it can be had, else the two that are in the package."""

import urllib.request
from dataclasses import dataclass
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path

from voxstrata.base.errors import InputError
from voxstrata.base.progress import Reporter

HUB_CHECKPOINT = "openai/whisper-tiny"
HUB_SECONDS = 5.0  # how long the hub may take to answer before the demo goes on without it
LANGUAGES = ("en", "es", "de", "ru", "tr")
LABORATORY = ("transcriber", "translator")
RANDOM_SEED = 0


@dataclass(frozen=True)
class DemoEncoders:
    """The encoders the demo found: what to export, and what that means for the figures.

    laboratory: the small ones of the package, which know the laboratory's sentences alone. exported: no PyTorch is
    here to export them with, so the models that come along are taken.
    """

    checkpoints: tuple[str, ...]
    laboratory: bool
    meaning: str
    exported: bool = False


def hub_answers() -> bool:
    """Whether the hub serves the checkpoint's config within HUB_SECONDS."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return False
    url = f"{constants.ENDPOINT}/{HUB_CHECKPOINT}/resolve/main/config.json"
    try:
        with urllib.request.urlopen(url, timeout=HUB_SECONDS) as answer:
            return bool(answer.status == 200)
    except (OSError, ValueError):
        return False


def find_encoders(folder: Path, reporter: Reporter) -> DemoEncoders:
    """whisper-tiny from the hub or its local cache; else the two of the laboratory, written to `folder`."""
    from voxstrata.exporters.hub import download

    exporting = all(map(_installed, ("torch", "transformers", "huggingface_hub")))
    found = exporting and _is_cached()
    if exporting and not found and hub_answers():
        try:
            reporter.step(f"fetching {HUB_CHECKPOINT}")
            download(HUB_CHECKPOINT)
            found = True
        except InputError as e:
            reporter.step(str(e))
    if found:
        meaning = "real weights, on synthetic speech: the figures say how this encoder aligns espeak-ng's voices"
        return DemoEncoders((HUB_CHECKPOINT,), False, f"{HUB_CHECKPOINT}, {meaning}, not people.")
    why = f"{HUB_CHECKPOINT} could not be had from the hub"
    if not exporting:
        why = "PyTorch is not here to export a checkpoint (extra `export`)"
    meaning = (
        f"{why}: these are two SMALL\n"
        "encoders of the package. They began alike and heard the same synthetic speech;\n"
        "one learned to transcribe, one to transcribe and translate. The figures show\n"
        "what the instruments see of that; they say nothing about Whisper."
    )
    return DemoEncoders(tuple(map(str, write_laboratory_encoders(folder))), True, meaning, not exporting)


def write_laboratory_encoders(folder: Path) -> list[Path]:
    """The laboratory's whole models, float16, as Hugging Face folders `folder/transcriber` and `folder/translator`.

    What they were trained on, and by which command: docs/laboratory.md.
    """
    return [_copy_of("encoders", name, folder / name) for name in LABORATORY]


def write_laboratory_model(name: str, target: Path) -> Path:
    """The exported model of one of LABORATORY, all outputs, as a folder: what `voxstrata export` made of it."""
    return _copy_of("models", name, target)


def _copy_of(kind: str, name: str, target: Path) -> Path:
    target.mkdir(parents=True, exist_ok=True)
    for file in (files("voxstrata.demo") / kind / name).iterdir():
        (target / file.name).write_bytes(file.read_bytes())
    return target


def _installed(package: str) -> bool:
    try:
        return find_spec(package) is not None
    except (ImportError, ValueError):  # blocked
        return False


def _is_cached() -> bool:
    """Whether the hub's local cache holds the checkpoint."""
    from huggingface_hub import try_to_load_from_cache

    found = [try_to_load_from_cache(HUB_CHECKPOINT, name) for name in ("config.json", "model.safetensors")]
    return all(isinstance(f, str) for f in found)


def write_random_checkpoint(path: Path) -> None:
    """An encoder of whisper-tiny's shape with seeded random weights, as a Hugging Face folder."""
    import torch
    from transformers import WhisperConfig, WhisperFeatureExtractor
    from transformers.models.whisper.modeling_whisper import WhisperEncoder

    torch.manual_seed(RANDOM_SEED)
    config = WhisperConfig(
        d_model=384, encoder_layers=4, encoder_attention_heads=6, encoder_ffn_dim=1536, num_mel_bins=80
    )
    WhisperEncoder(config).save_pretrained(path)
    WhisperFeatureExtractor(feature_size=80).save_pretrained(path)
