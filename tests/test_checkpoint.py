"""One encoder is one encoder, whatever container its weights come in, on disk or on the hub."""

from __future__ import annotations

import json
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoint_files import PREFIX, State, encoder_only, openai_checkpoint, sharded

from voxstrata.base.errors import InputError

torch = pytest.importorskip("torch")
huggingface_hub = pytest.importorskip("huggingface_hub")
safetensors_torch = pytest.importorskip("safetensors.torch")
from huggingface_hub.errors import (  # noqa: E402
    HfHubHTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)

from voxstrata.encoders.outputs import output_names  # noqa: E402
from voxstrata.exporters.checkpoint import Checkpoint, load_checkpoint  # noqa: E402
from voxstrata.exporters.standard_graph import encoder_graph  # noqa: E402
from voxstrata.exporters.weights import WeightsFile  # noqa: E402


def bare_folder(folder: Path, weights: State, tiny: Path) -> str:
    safetensors_torch.save_file(encoder_only(weights, ""), folder / "model.safetensors")
    return str(folder)


def encoder_prefix(folder: Path, weights: State, tiny: Path) -> str:
    safetensors_torch.save_file(encoder_only(weights, "encoder."), folder / "model.safetensors")
    return str(folder)


def model_encoder_prefix(folder: Path, weights: State, tiny: Path) -> str:
    safetensors_torch.save_file(encoder_only(weights, PREFIX), folder / "model.safetensors")
    return str(folder)


def without_preprocessor(folder: Path, weights: State, tiny: Path) -> str:
    (folder / "preprocessor_config.json").unlink()
    return encoder_prefix(folder, weights, tiny)


def two_precisions(folder: Path, weights: State, tiny: Path) -> str:
    """As openai/whisper-large-v3 has them: the fp32 shards beside the weights are not to be mixed in."""
    safetensors_torch.save_file(weights, folder / "model.safetensors")
    wrong = {k: v + 1 for k, v in weights.items()}
    safetensors_torch.save_file(wrong, folder / "model.fp32-00001-of-00001.safetensors")
    return str(folder)


def pytorch_bin(folder: Path, weights: State, tiny: Path) -> str:
    torch.save(weights, folder / "pytorch_model.bin")
    return str(folder)


def openai_pt(folder: Path, weights: State, tiny: Path) -> str:
    torch.save(openai_checkpoint(weights), folder / "tiny.pt")
    return str(folder / "tiny.pt")


def graph_bytes(checkpoint: Checkpoint, folder: Path) -> tuple[bytes, bytes]:
    folder.mkdir()
    with WeightsFile(folder / "weights", checkpoint.state(), checkpoint.shape, "float32") as weights:
        graph = encoder_graph(weights, outputs=output_names(checkpoint.shape.layers), cached=True, norm_every=False)
    return graph, (folder / "weights").read_bytes()


@pytest.mark.parametrize(
    "container",
    [
        bare_folder, encoder_prefix, model_encoder_prefix, without_preprocessor, sharded, two_precisions,
        pytorch_bin, openai_pt,
    ],
)  # fmt: skip
def test_every_container_gives_the_same_encoder(
    container: Callable[[Path, State, Path], str],
    without_weights: Path,
    tiny_weights: State,
    tiny_checkpoint: Path,
    tmp_path: Path,
) -> None:
    whole = load_checkpoint(str(tiny_checkpoint))
    other = load_checkpoint(container(without_weights, tiny_weights, tiny_checkpoint))
    assert other.sha256() == whole.sha256()
    assert other.shape == whole.shape
    np.testing.assert_array_equal(other.extractor.mel_filters, whole.extractor.mel_filters)
    # the graph and its tiny_weights are the same bytes, so the outputs are the same too
    assert graph_bytes(other, tmp_path / "a") == graph_bytes(whole, tmp_path / "b")


def test_the_loaded_encoder_is_hugging_faces_own(tiny_checkpoint: Path) -> None:
    from transformers import WhisperModel

    theirs = WhisperModel.from_pretrained(tiny_checkpoint).eval().encoder
    ours = load_checkpoint(str(tiny_checkpoint)).encoder
    x = torch.randn(1, 80, 3000, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        torch.testing.assert_close(ours(x).last_hidden_state, theirs(x).last_hidden_state, rtol=0, atol=1e-5)


def test_half_precision_weights_load_as_float32(without_weights: Path, tiny_weights: State) -> None:
    half = {k: v.half() for k, v in tiny_weights.items()}
    safetensors_torch.save_file(half, without_weights / "model.safetensors")
    state = load_checkpoint(str(without_weights)).state()
    assert {v.dtype for v in state.values()} == {np.dtype("float32")}
    np.testing.assert_array_equal(state["conv1.weight"], half[PREFIX + "conv1.weight"].float().numpy())


def test_one_changed_weight_changes_the_hash(without_weights: Path, tiny_weights: State, tiny_checkpoint: Path) -> None:
    changed = {k: v.clone() for k, v in tiny_weights.items()}
    changed[PREFIX + "layers.1.fc2.bias"][3] += 1e-6
    safetensors_torch.save_file(changed, without_weights / "model.safetensors")
    assert load_checkpoint(str(without_weights)).sha256() != load_checkpoint(str(tiny_checkpoint)).sha256()


def test_openai_dims_fill_the_whole_configuration(tmp_path: Path, tiny_weights: State) -> None:
    torch.save(openai_checkpoint(tiny_weights), tmp_path / "x.pt")
    config = load_checkpoint(str(tmp_path / "x.pt")).config
    assert (config.d_model, config.encoder_layers, config.encoder_attention_heads) == (32, 3, 4)
    assert (config.encoder_ffn_dim, config.num_mel_bins, config.max_source_positions) == (128, 80, 1500)
    assert (config.decoder_layers, config.decoder_attention_heads, config.decoder_ffn_dim) == (1, 4, 128)
    assert (config.max_target_positions, config.vocab_size) == (32, 64)


# ---- the hub


class FakeHub:
    """A hub that holds the files of one folder and remembers what it was asked."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder, self.asked = folder, []  # type: tuple[Path, list[tuple[str, str, str | None]]]
        self.allow: list[str] = []
        self.list_error: Exception | None = None
        self.download_error: Exception | None = None

        def list_repo_files(_: Any, repo: str, *, revision: str | None = None) -> list[str]:
            self.asked.append(("list", repo, revision))
            if self.list_error:
                raise self.list_error
            return sorted(p.name for p in folder.iterdir())

        def snapshot_download(
            repo: str,
            *,
            revision: str | None = None,
            allow_patterns: list[str] | None = None,
            local_files_only: bool = False,
        ) -> str:
            self.asked.append(("cached" if local_files_only else "download", repo, revision))
            if self.download_error:
                raise self.download_error
            self.allow = allow_patterns or []
            return str(folder)

        monkeypatch.setattr(huggingface_hub.HfApi, "list_repo_files", list_repo_files)
        monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)


def hub_error(kind: type[Exception], text: str) -> Exception:
    try:
        return kind(text, response=types.SimpleNamespace(headers={}, request=None))  # type: ignore[call-arg]
    except TypeError:
        return kind(text)


@pytest.fixture
def hub(without_weights: Path, tiny_weights: State, monkeypatch: pytest.MonkeyPatch) -> FakeHub:
    safetensors_torch.save_file(tiny_weights, without_weights / "model.safetensors")
    return FakeHub(without_weights, monkeypatch)


def test_a_hub_id_loads_at_its_revision(hub: FakeHub, tiny_checkpoint: Path) -> None:
    got = load_checkpoint("someone/tiny", revision="refs/pr/3")
    commit = hub.folder.name  # what config.json was read of is what weights are fetched of
    asked = [(what, "someone/tiny", at) for at in ("refs/pr/3", commit) for what in ("list", "download")]
    assert hub.asked == asked
    assert (got.name, got.revision) == ("someone/tiny", commit)  # the commit, as the hub's cache names it
    assert got.sha256() == load_checkpoint(str(tiny_checkpoint)).sha256()


def test_the_hub_is_asked_for_one_copy_of_the_weights_only(hub: FakeHub) -> None:
    for extra in (
        "model.fp32-00001-of-00002.safetensors", "model.safetensors.index.fp32.json", "pytorch_model.bin",
        "flax_model.msgpack", "tf_model.h5", "model.onnx", "README.md",
    ):  # fmt: skip
        (hub.folder / extra).touch()
    (hub.folder / "model.fp32-00001-of-00002.safetensors").unlink()
    load_checkpoint("someone/tiny")
    assert set(hub.allow) == {"config.json", "preprocessor_config.json", "model.safetensors"}


def test_a_hub_without_safetensors_serves_its_bin(hub: FakeHub, tiny_weights: State) -> None:
    (hub.folder / "model.safetensors").unlink()
    torch.save(tiny_weights, hub.folder / "pytorch_model.bin")
    load_checkpoint("someone/tiny")
    assert "pytorch_model.bin" in hub.allow


def test_the_hub_is_not_asked_for_shards_of_a_language_model(hub: FakeHub, tiny_weights: State) -> None:
    names = [f"model-0000{k}-of-00003.safetensors" for k in (1, 2, 3)]
    encoder = {k: v for k, v in tiny_weights.items() if "encoder" in k}
    safetensors_torch.save_file(encoder, hub.folder / names[0])
    (hub.folder / "model.safetensors").unlink()
    for name in names[1:]:
        (hub.folder / name).touch()
    text = {"language_model.model.norm.weight": names[1], "lm_head.weight": names[2]}
    index = {"weight_map": dict.fromkeys(encoder, names[0]) | text}
    (hub.folder / "model.safetensors.index.json").write_text(json.dumps(index))
    load_checkpoint("someone/tiny")
    assert set(hub.allow) == {"config.json", "preprocessor_config.json", "model.safetensors.index.json", names[0]}


def test_a_cached_copy_serves_offline(hub: FakeHub) -> None:
    hub.list_error = OfflineModeIsEnabled("offline mode")
    assert load_checkpoint("someone/tiny", revision="main").name == "someone/tiny"
    asked = [(what, at) for at in ("main", hub.folder.name) for what in ("list", "cached")]
    assert [(what, at) for what, _, at in hub.asked] == asked


@pytest.mark.parametrize("error", [OfflineModeIsEnabled("offline mode"), ConnectionError("no route"), TimeoutError()])
def test_offline_without_a_copy_is_said(hub: FakeHub, error: Exception) -> None:
    hub.list_error, hub.download_error = error, LocalEntryNotFoundError("nothing cached")
    with pytest.raises(
        InputError, match=r"someone/tiny: no such folder here, the hub cannot be reached .* no copy is cached"
    ):
        load_checkpoint("someone/tiny")


def test_losing_the_hub_midway_is_said(hub: FakeHub) -> None:
    hub.download_error = LocalEntryNotFoundError("connection broke")
    with pytest.raises(InputError, match=r"someone/tiny: .*hub cannot be reached .* no copy is cached"):
        load_checkpoint("someone/tiny")


def test_an_unknown_repository_is_said(hub: FakeHub) -> None:
    hub.list_error = hub_error(RepositoryNotFoundError, "404 Client Error\n\nlong advice")
    with pytest.raises(InputError, match=r"someone/tiny: .*hub refused it .*404.*check the id and --revision$"):
        load_checkpoint("someone/tiny")


def test_a_hub_in_trouble_is_no_refusal(hub: FakeHub) -> None:
    hub.list_error = hub_error(HfHubHTTPError, "503 Server Error")
    hub.download_error = LocalEntryNotFoundError("nothing cached")
    with pytest.raises(InputError, match=r"someone/tiny: .*hub cannot be reached .* no copy is cached"):
        load_checkpoint("someone/tiny")


def test_an_impossible_hub_id_is_said() -> None:
    with pytest.raises(InputError, match=r"models/a--b: no such folder or file, and not a hub id"):
        load_checkpoint("models/a--b")


# ---- real weights


@pytest.mark.real
def test_whisper_base_through_a_pt_is_the_same_encoder(shared: Path, tmp_path: Path) -> None:
    folder = shared / "whisper-base-encoder"
    tensors = {}
    for file in folder.glob("*.safetensors"):
        tensors |= safetensors_torch.load_file(file)
    checkpoint = openai_checkpoint(tensors)
    checkpoint["dims"] |= {"n_audio_head": 8, "n_vocab": 51865}
    torch.save(checkpoint, tmp_path / "base.pt")
    loaded = load_checkpoint(str(tmp_path / "base.pt"))
    assert loaded.sha256() == load_checkpoint(str(folder)).sha256()
    assert loaded.config.vocab_size == 51865
