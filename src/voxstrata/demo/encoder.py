"""The demo: a corpus of its own, an encoder, a store, a table and pictures. Works without a network."""

import urllib.request
from dataclasses import dataclass
from pathlib import Path

from voxstrata.base.errors import InputError
from voxstrata.base.progress import Reporter

HUB_CHECKPOINT = "openai/whisper-tiny"
HUB_SECONDS = 5.0  # how long the hub may take to answer before the demo goes on without it
LANGUAGES = ("en", "es", "de", "ru", "tr")
RANDOM_SEED = 0


@dataclass(frozen=True)
class DemoEncoder:
    """The encoder the demo found: what to export, and what that means for the figures."""

    checkpoint: str
    real: bool
    meaning: str


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


def find_encoder(folder: Path, reporter: Reporter) -> DemoEncoder:
    """whisper-tiny from the hub or its local cache; else a random-weight encoder of its shape, written to `folder`."""
    from voxstrata.exporters.hub import download

    found = _is_cached()
    if not found and hub_answers():
        try:
            reporter.step(f"fetching {HUB_CHECKPOINT}")
            download(HUB_CHECKPOINT)
            found = True
        except InputError as e:
            reporter.step(str(e))
    if found:
        meaning = "real weights, on synthetic speech: the figures say how this encoder aligns espeak-ng's voices"
        return DemoEncoder(HUB_CHECKPOINT, True, f"{HUB_CHECKPOINT}, {meaning}, not people.")
    path = folder / "random-weight-encoder"
    write_random_checkpoint(path)
    return DemoEncoder(
        str(path),
        False,
        f"{HUB_CHECKPOINT} could not be had from the hub: this is a RANDOM-WEIGHT encoder of its shape "
        f"(seed {RANDOM_SEED}). Its figures show that the pipeline works and what untrained layers give "
        "(length, rhythm and spectrum alone); they say nothing about Whisper.",
    )


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
