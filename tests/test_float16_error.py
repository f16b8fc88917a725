"""How far the graph for CUDA is from float64, with every result rounded as a GPU rounds it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import sound

torch = pytest.importorskip("torch")

from voxstrata.encoders import open_model  # noqa: E402
from voxstrata.encoders.card import ENCODER  # noqa: E402
from voxstrata.engine.synthetic import made_up  # noqa: E402
from voxstrata.exporters import ExportSpec, export  # noqa: E402
from voxstrata.exporters.checkpoint import load_checkpoint  # noqa: E402
from voxstrata.exporters.pytorch import hidden_states  # noqa: E402

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
ALLOWED = 1.5  # times the error of the exported graph


@pytest.fixture(scope="module")
def script() -> Iterator[Any]:
    """The module `float16_error`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        import float16_error

        yield float16_error


def held(found: dict[str, dict[str, float]]) -> None:
    for output, error in found["CUDA"].items():
        assert 0 < error <= ALLOWED * found["exported"][output], (output, found)


def test_the_graph_for_cuda_is_as_near_to_float64_as_the_exported_one(
    script: Any, half_model: Path, tiny_checkpoint: Path
) -> None:
    found = script.worst(open_model(half_model), load_checkpoint(str(tiny_checkpoint)), [sound(2.5, 1)])
    held(found)
    for output, error in found["CUDA"].items():  # three bits less, and so eight times as far
        assert 4 * error < found["CUDA, bfloat16"][output] < 16 * error, (output, found)


def test_every_output_is_rounded_and_float64_is_pytorchs(script: Any, half_model: Path, tiny_checkpoint: Path) -> None:
    model, checkpoint = open_model(half_model), load_checkpoint(str(tiny_checkpoint))
    log_mel = np.random.default_rng(0).standard_normal((1, 80, 400)).astype(np.float32)
    graph = script.rounded((model.path / ENCODER).read_bytes(), model.path)
    for x in script.run(graph, model.card.outputs, {"log_mel": log_mel}).values():
        np.testing.assert_array_equal(x, x.astype(np.float16))
    encoder = checkpoint.encoder.double()
    want = hidden_states(encoder, torch.from_numpy(log_mel).double())
    for name, x in script.states64(encoder, log_mel, None).items():
        np.testing.assert_allclose(x, want[name].numpy(), rtol=0, atol=1e-12)


@pytest.mark.real
def test_of_real_weights_on_speech(script: Any, shared: Path, tmp_path: Path) -> None:
    from voxstrata.audio.decode import decode

    source = str(shared / "whisper-base-encoder")
    model = export(source, tmp_path / "model", ExportSpec(dtype="float16"))
    speech = [decode(p) for p in sorted((shared / "prompts").glob("*/*.flac"))[7::250]]
    held(script.worst(model, load_checkpoint(source), speech))


@pytest.mark.long
def test_of_the_width_of_large_v3(script: Any, tmp_path: Path) -> None:
    import _gpu

    model, checkpoint = _gpu.random_model((1280, 4, 20, 128), tmp_path)
    held(script.worst(model, checkpoint, [made_up(1, 16_000 * 5)]))
