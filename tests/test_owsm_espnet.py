"""OWSM's encoders against ESPnet's own, where ESPnet is installed: see `espnet_models.py` for how.

Not in the default run, because nothing of the project needs ESPnet. `pytest -m real tests/test_owsm_espnet.py`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import sound

pytest.importorskip("torch")
pytest.importorskip("espnet2", reason="ESPnet is not installed; espnet_models.py says how it is")
from espnet_models import SAMPLE_RATE, WINDOW, config, espnet_features, espnet_states, write_folder
from test_owsm import Graphs, loaded, relative

pytestmark = [pytest.mark.real, pytest.mark.filterwarnings("ignore")]
# what differs from the scaled configurations of v3.1: v4's front end and convolutions, and what else may be set
VARIANTS: dict[str, tuple[str, dict[str, dict[str, Any]]]] = {
    "v3.1": ("owsm", {}),
    "v4": ("owsm", {"encoder_conf": {"input_layer": "conv2d8"}, "frontend_conf": {"n_mels": 128}}),
    "ctc between blocks": (
        "owsm",
        {"encoder_conf": {"interctc_layer_idx": [1], "interctc_use_conditioning": True}},
    ),
    "OWSM-CTC": ("owsm_ctc", {}),
    "one width": ("owsm_ctc", {"promptencoder_conf": {"output_size": 16}}),
    "every block told": ("owsm_ctc", {"encoder_conf": {"use_cross_attention": True}}),
    "no conditioning": ("owsm_ctc", {"encoder_conf": {"interctc_use_conditioning": False}}),
    "deep prompt": ("owsm_ctc", {"promptencoder_conf": {"num_blocks": 3}, "frontend_conf": {"win_length": 512}}),
}  # fmt: skip

TONE = "a loud tone, then nothing"


def sounds() -> dict[str, np.ndarray]:
    """From hardly a frame of 80 ms to the window; and ones that are hard on a logarithm."""
    lengths = (2_240, 2_241, 2_399, 3_520, 16_000, 112_345, WINDOW - 1, WINDOW)
    found = {f"{n} samples": sound(n / SAMPLE_RATE + 0.01, seed=n)[:n] for n in lengths}
    t = np.arange(40_000) / SAMPLE_RATE
    found[TONE] = (0.9 * np.sin(2 * np.pi * 440 * t) * (t < 1)).astype(np.float32)
    found["padded"] = np.pad(found["112345 samples"], (0, WINDOW - 112_345))
    return found


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_output_is_espnets(variant: str, tmp_path: Path) -> None:
    kind, changes = VARIANTS[variant]
    settings = config(kind)
    for part, change in changes.items():
        settings[part] = settings[part] | change
    prefix = ("<deu>", "<asr>") if kind == "owsm_ctc" else ()
    model = write_folder(tmp_path / "model", kind, settings, seed=1)
    original = loaded(tmp_path / "model", prefix)
    graphs = Graphs(original, tmp_path)
    for name, audio in sounds().items():
        want = espnet_states(model, audio, prefix or ("<nolang>", "<asr>"))
        features = espnet_features(model, audio)
        assert relative(original.features(audio)[0].numpy(), features) < 1e-6, name
        got, again = graphs.run(audio[None]), original.hidden_states(audio)
        assert list(want) == list(original.family.names)
        assert {len(state) for state in want.values()} == {original.family.frames(len(audio))}, name
        alone = graphs.encoder.run(graphs.outputs, {"features": features[None]})
        for output, state, encoded in zip(graphs.outputs, want.values(), alone, strict=True):
            assert relative(encoded[0], state) < 1e-5, (name, output)
            assert relative(again[output][0].numpy(), state) < 1e-5, (name, output)
            if name != TONE:  # between its harmonics ESPnet's float32 spectrum is rounding noise, ours is not
                assert relative(got[output][0], state) < 2e-5, (name, output)
