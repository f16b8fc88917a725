"""For tests of conformers: random weights that show every fault, and graphs beside what transformers computes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import torch

from voxstrata.exporters.families import family_of
from voxstrata.exporters.original import CheckpointFiles, Original

LENGTHS = (0, 1, 1600, 1759, 16_000, 52_003)  # samples; of the first two, more than the shortest
TOLERANCE = 2e-4  # relative L2


def randomised(module: torch.nn.Module, seed: int = 1) -> Any:
    """With weights of which none is 0 or 1, so that whatever is left out or in the wrong place is seen."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in module.named_parameters():
            if p.ndim > 1:
                p.normal_(0, 1.2 / p[0].numel() ** 0.5, generator=generator)
            elif name.endswith("weight"):
                p.uniform_(0.5, 1.5, generator=generator)
            else:
                p.normal_(0, 0.2, generator=generator)
        for name, buffer in module.named_buffers():
            if name.endswith("running_mean"):
                buffer.normal_(0, 0.3, generator=generator)
            elif name.endswith("running_var"):
                buffer.uniform_(0.5, 2.0, generator=generator)
    return module.eval()


def checkpoint(module: Any, **settings: Any) -> CheckpointFiles:
    """As a folder with this module's files is found. settings: of config.json, changed; None leaves a key out."""
    config = {**module.config.to_dict(), **settings}
    config = {k: v for k, v in config.items() if k not in settings or v is not None}
    return CheckpointFiles("random", None, Path("random"), config, {}, module.state_dict())


def loaded(module: Any, **settings: Any) -> Original:
    files = checkpoint(module, **settings)
    family = family_of(files.config["model_type"])
    assert family is not None
    return family.load(files)


def sounds(samples: int) -> np.ndarray:
    """Two recordings of that length, loud and quiet, [2, samples]."""
    t = np.arange(samples) / 16_000
    noise = np.random.default_rng(samples).standard_normal((2, samples))
    tones = np.stack([np.sin(700 * t + 300 * np.sin(2 * t)), np.sin(1900 * t)])
    return (np.array([[0.2], [0.001]]) * (tones + 0.3 * noise)).astype(np.float32)


class Graphs:
    """An original's graphs, run."""

    def __init__(self, original: Original, folder: Path, outputs: tuple[str, ...] = ()) -> None:
        self.outputs = outputs or original.family.names
        original.write_encoder(folder / "encoder.onnx", folder / "encoder.onnx_data", self.outputs)
        (folder / "features.onnx").write_bytes(original.feature_graph())
        for name in ("encoder", "features"):
            onnx.checker.check_model(str(folder / f"{name}.onnx"), full_check=True)
        self._sessions = [
            ort.InferenceSession(folder / f"{name}.onnx", providers=["CPUExecutionProvider"])
            for name in ("features", "encoder")
        ]

    def features(self, audio: np.ndarray) -> np.ndarray:
        return np.asarray(self._sessions[0].run(None, {"audio": audio})[0])

    def states(self, audio: np.ndarray) -> dict[str, np.ndarray]:
        """Every output of recordings [batch, samples]."""
        found = self._sessions[1].run(self.outputs, {"features": self.features(audio)})
        return dict(zip(self.outputs, found, strict=True))


def difference(got: np.ndarray, want: torch.Tensor | np.ndarray) -> float:
    """Relative L2; infinite for another shape, NaN for NaN."""
    wanted = np.asarray(want, np.float64)
    return float(np.linalg.norm(got - wanted) / np.linalg.norm(wanted)) if got.shape == wanted.shape else np.inf
