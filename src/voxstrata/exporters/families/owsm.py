"""OWSM v3.1 and v4, and OWSM-CTC: the open Whisper-style models of ESPnet, from ESPnet's own files.

Their encoder is an E-Branchformer over log-mel, trained on 30 s of sound, which ESPnet pads with zeros. The states of
OWSM-CTC depend on a language and a task, two tokens before the speech.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from voxstrata.base.errors import InputError
from voxstrata.encoders.family import Family, Output, Step
from voxstrata.encoders.frames import SAMPLE_RATE
from voxstrata.exporters.families._owsm_graph import owsm_encoder_graph, owsm_feature_graph
from voxstrata.exporters.families._owsm_pytorch import owsm_log_mel, owsm_states
from voxstrata.exporters.families._owsm_settings import OwsmSettings
from voxstrata.exporters.filter_bank import FFT, HOP
from voxstrata.exporters.original import CheckpointFiles, Original
from voxstrata.exporters.strict import FLOATS
from voxstrata.exporters.weights import EncoderShape, WeightsFile

MODEL_TYPES = ("espnet:e_branchformer", "espnet:e_branchformer_ctc")
TITLE = "OWSM v3.1, v4 and OWSM-CTC (ESPnet)"
_OVERLAP = 4 * SAMPLE_RATE  # samples at each end of a piece: ESPnet's default for long recordings


def load(files: CheckpointFiles) -> Original:
    """The encoder in these files. Raises InputError where config.yaml and weights do not fit, or are no OWSM's."""
    layers = len({name.split(".")[2] for name in files.tensors if name.startswith("encoder.encoders.")})
    settings = OwsmSettings.read(files, layers)
    expected = settings.shapes()
    found = {k: v for k, v in files.tensors.items() if k in expected or k.startswith("encoder.")}
    for name in sorted(expected.keys() | found.keys()):
        if name not in found or name not in expected or found[name].shape != expected[name]:
            have = f"is {tuple(found[name].shape)}" if name in found else "is missing"
            raise InputError(
                f"{files.folder}: weights do not fit config.yaml: tensor {name} {have}, "
                f"the configuration has {expected.get(name, 'none of that name')}"
            )
        if found[name].dtype not in FLOATS or not torch.isfinite(found[name]).all():
            raise InputError(f"{files.folder}: tensor {name} holds other values than finite floats")
    return _Owsm(settings, {name: value.to(torch.float32) for name, value in found.items()})


@dataclass(frozen=True)
class _Owsm:
    settings: OwsmSettings
    tensors: dict[str, torch.Tensor]

    @property
    def layers(self) -> int:
        return self.settings.blocks.layers

    @property
    def d_model(self) -> int:
        return self.settings.blocks.d_model

    @property
    def heads(self) -> int:
        return self.settings.blocks.heads

    @property
    def family(self) -> Family:
        s, prompt = self.settings, self.settings.prompt
        stem, block = self._flops()
        return Family(
            name="OWSM-CTC" if prompt else "OWSM",
            input="log_mel",
            normalisation="natural logarithm of mel power, at least 1e-10; then the training set's mean and deviation",
            features=s.n_mels,
            steps=(Step(FFT, HOP, FFT), *[Step(3, 2)] * s.convolutions),
            window=s.window,
            overlap=_OVERLAP,
            contexts=("padded", "exact"),
            masks="none is used: ESPnet pads recordings with zeros to the window and attends to all of it (padded)",
            norm="post",
            outputs=tuple(self._outputs()),
            stem_flops=stem,
            block_flops=block,
            prefix=prompt.named if prompt else (),
        )

    def _outputs(self) -> list[Output]:
        s = self.settings
        outputs = [Output("layer_00", "convolutions, scaled, with positions: what the first block takes", None)]
        for k in range(1, self.layers + 1):
            meaning = f"block {k}, after the LayerNorm at its end"
            if k in s.conditioned:
                meaning += "; a CTC reads it, and the next block takes it with what that says added"
                if s.ctc_asr_only:
                    alone = s.ctc_asr_only[s.conditioned.index(k)]
                    meaning += "; the CTC learned " + ("transcripts alone" if alone else "translations, too")
            outputs.append(Output(f"layer_{k:02d}", meaning, None))
        return [*outputs, Output("final", "LayerNorm of the last block's state, what the decoder or CTC reads", None)]

    def _flops(self) -> tuple[tuple[int, int, int], tuple[int, int, int]]:
        """Before the blocks and of one block. What the CTC between blocks costs is spread over all of them."""
        s, d = self.settings, self.d_model
        told = 2 if s.prompt else 0
        spectrum = (FFT // 2 + 1) * (2 * FFT + s.n_mels)
        stem = (spectrum << s.convolutions) + d * d * s.subsampled[-1]
        for i, bins in enumerate(s.subsampled):
            stem += (9 * d * (d if i else 1) * bins) << (s.convolutions - 1 - i)
        half = s.gating_units // 2
        linear = 4 * d * s.blocks.units + 4 * d * d + 3 * d * half + half * s.gating_kernel
        linear += 2 * d * s.merge_kernel + 2 * d * d + 2 * d * s.vocabulary * len(s.conditioned) // self.layers
        constant = told * 2 * linear + told**2 * 4 * d  # n frames of speech and the tokens before them
        return (0, 2 * stem, 0), (constant, 2 * linear + told * 8 * d, 4 * d)

    def state(self) -> dict[str, NDArray[np.float32]]:
        return {name: value.numpy() for name, value in self.tensors.items()}

    def features(self, audio: NDArray[np.float32]) -> torch.Tensor:
        return owsm_log_mel(self.tensors, self.settings.win_length, torch.from_numpy(audio)[None])

    def hidden_states(self, audio: NDArray[np.float32]) -> dict[str, torch.Tensor]:
        with torch.inference_mode():
            states = owsm_states(self.tensors, self.settings, self.features(audio))
        return dict(zip(self.family.names, states, strict=True))

    def feature_graph(self) -> bytes:
        return owsm_feature_graph(self.tensors, self.settings)

    def write_encoder(self, path: Path, weights: Path, outputs: Sequence[str]) -> None:
        shape = EncoderShape(self.layers, self.d_model, self.heads, self.settings.n_mels)
        with WeightsFile(weights, {}, shape, "float32") as file:
            frames = self.family.frames(self.settings.window)
            path.write_bytes(owsm_encoder_graph(self.tensors, self.settings, file, outputs, frames))
