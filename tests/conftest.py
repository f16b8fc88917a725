"""Fixtures: tiny random-weight Whisper checkpoints, exported models, and small corpora of made-up sounds."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if "PYTEST_XDIST_WORKER" in os.environ:
    # A process for every core: BLAS threads of all of them would only wait for each other. Read when numpy loads.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import numpy as np
import pytest
import soundfile

from voxstrata.base.progress import Progress, Reporter

if TYPE_CHECKING:
    from planted import Planted

SHARED = Path(__file__).parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def shared() -> Path:
    """Real weights and real speech; tests that need them skip where they are absent."""
    if not SHARED.is_dir():
        pytest.skip(f"{SHARED} is absent: real weights and speech are not part of the project")
    return SHARED


class Heard(Reporter):
    """Keeps what it is told of progress."""

    def __init__(self) -> None:
        self.heard: list[Progress] = []

    def progress(self, progress: Progress) -> None:
        self.heard.append(progress)


def sound(seconds: float, seed: int, rate: int = 16_000) -> np.ndarray:
    """A made-up voiced sound, float32, of a pitch and rhythm of its own."""
    rng = np.random.default_rng(seed)
    t = np.arange(max(1, round(seconds * rate))) / rate
    pitch = rng.uniform(90, 250) * (1 + 0.1 * np.sin(2 * np.pi * rng.uniform(0.3, 2) * t))
    phase = 2 * np.pi * np.cumsum(pitch) / rate
    tone = sum(rng.uniform(0, 1) / k * np.sin(k * phase) for k in range(1, 9))
    rhythm = 0.55 + 0.45 * np.sin(2 * np.pi * rng.uniform(2, 5) * t)
    return (0.1 * rhythm * tone + 0.001 * rng.standard_normal(len(t))).astype(np.float32)


@pytest.fixture(autouse=True)
def progress_as_it_was() -> Iterator[None]:
    """Options for progress that a test parses end with it: they stand in the environment, for other processes."""
    before = os.environ.get("VOXSTRATA_PROGRESS")
    yield
    os.environ.pop("VOXSTRATA_PROGRESS", None)
    os.environ.update({} if before is None else {"VOXSTRATA_PROGRESS": before})


@pytest.fixture(scope="session", autouse=True)
def no_waiting_for_the_disk() -> Iterator[None]:
    """No power is cut here. What is synced, and when, is tested by those that watch the calls."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda _: None)
        yield


@pytest.fixture(scope="session", autouse=True)
def quick_fonts() -> Iterator[int]:
    """Pictures take half as long where a PDF holds no TrueType. Gives what users have in its place."""
    from voxstrata.base import figures

    chosen = figures.PDF_FONTS
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(figures, "PDF_FONTS", 3)
        yield chosen


@pytest.fixture(scope="session", autouse=True)
def few_silence_buckets() -> Iterator[None]:
    """Models that tests export in this process have silence for 5 buckets, not 32, which would take 8 s each."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("voxstrata.encoders.silence.DEFAULT_EDGES", (75, 150, 200, 400, 1000, 1500))
        yield


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole random-weight Whisper (3 encoder layers, d = 32, 80 mels) as a Hugging Face folder."""
    torch = pytest.importorskip("torch")
    from transformers import WhisperConfig, WhisperFeatureExtractor, WhisperForConditionalGeneration

    torch.set_num_threads(1)  # on a model this small more threads only wait for each other
    torch.manual_seed(7)
    config = WhisperConfig(
        vocab_size=64, d_model=32, encoder_layers=3, decoder_layers=1, encoder_attention_heads=4,
        decoder_attention_heads=4, encoder_ffn_dim=128, decoder_ffn_dim=64, num_mel_bins=80,
        max_target_positions=32, pad_token_id=0, bos_token_id=1, eos_token_id=2, decoder_start_token_id=1,
        suppress_tokens=None, begin_suppress_tokens=None,
    )  # fmt: skip
    model = WhisperForConditionalGeneration(config)
    with torch.no_grad():  # the default 0.02 leaves attention all but uniform; these weights make it choose
        for name, p in model.model.encoder.named_parameters():
            if p.ndim == 2 and "embed" not in name:
                p.normal_(0, 0.3)
            elif name.endswith("bias"):
                p.normal_(0, 0.1)
    folder = tmp_path_factory.mktemp("checkpoint") / "tiny"
    model.save_pretrained(folder)
    WhisperFeatureExtractor().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_weights(tiny_checkpoint: Path) -> dict[str, Any]:
    """The tensors of the whole tiny checkpoint."""
    from safetensors.torch import load_file

    return dict(load_file(tiny_checkpoint / "model.safetensors"))


@pytest.fixture
def without_weights(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    """A copy of the tiny checkpoint without its weights, to be filled or spoilt."""
    copy = tmp_path / "checkpoint"
    shutil.copytree(tiny_checkpoint, copy, ignore=shutil.ignore_patterns("*.safetensors"))
    return copy


@pytest.fixture(scope="session")
def tiny_model(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny checkpoint exported: float32, all outputs, pure silence."""
    from voxstrata.exporters import export

    target = tmp_path_factory.mktemp("model") / "tiny"
    export(str(tiny_checkpoint), target)
    return target


@pytest.fixture(scope="session")
def half_model(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model in float16."""
    from voxstrata.exporters import ExportSpec, export

    target = tmp_path_factory.mktemp("model") / "half"
    export(str(tiny_checkpoint), target, ExportSpec(dtype="float16"))
    return target


@pytest.fixture(scope="session")
def uncondensed(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with one cached key per silent position."""
    from voxstrata.exporters import ExportSpec, export

    target = tmp_path_factory.mktemp("model") / "uncondensed"
    export(str(tiny_checkpoint), target, ExportSpec(silence_keys=0))
    return target


@pytest.fixture(scope="session")
def huge(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with a final LayerNorm that leaves the range of float16."""
    import torch
    from safetensors.torch import load_file, save_file

    from voxstrata.exporters import export

    folder = tmp_path_factory.mktemp("huge")
    shutil.copytree(tiny_checkpoint, folder / "checkpoint")
    file = folder / "checkpoint" / "model.safetensors"
    tensors = load_file(file)
    tensors["model.encoder.layer_norm.weight"] = torch.full((32,), 1e5)
    save_file(tensors, file, metadata={"format": "pt"})
    export(str(folder / "checkpoint"), folder / "model")
    return folder / "model"


@pytest.fixture(scope="session")
def tiny_transcriber(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny checkpoint's encoder under a decoder of 267 tokens, with tokenizer: a folder that can transcribe."""
    from transcribers import write_transcriber

    return write_transcriber(tmp_path_factory.mktemp("transcriber") / "tiny", tiny_checkpoint)


@pytest.fixture(scope="session")
def make_corpus(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Make a corpus: `make_corpus({"en/a": 1.3, …})` writes wavs of so many seconds and returns their folder."""

    def make(lengths: dict[str, float], rate: int = 16_000) -> Path:
        root = tmp_path_factory.mktemp("corpus")
        for i, (name, seconds) in enumerate(lengths.items()):
            path = root / f"{name}.wav"
            path.parent.mkdir(parents=True, exist_ok=True)
            soundfile.write(path, sound(seconds, i, rate), rate, subtype="FLOAT")
        return root

    return make


@pytest.fixture(scope="session")
def planted_corpora(tmp_path_factory: pytest.TempPathFactory) -> list[Planted]:
    """Twenty corpora in which meaning, sound, speaker and duration are planted, by seed; a mean frame per utterance."""
    from planted import plant

    root = tmp_path_factory.mktemp("planted")
    return [plant(root / str(seed), seed).pooled() for seed in range(20)]
