"""One encoder is one encoder, whatever container its weights come in; what is not an encoder is refused in words."""

from __future__ import annotations

import json
import pickle
import shutil
import types
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pytest

from voxstrata.errors import InputError

torch = pytest.importorskip("torch")
safetensors_torch = pytest.importorskip("safetensors.torch")
from huggingface_hub.errors import LocalEntryNotFoundError, OfflineModeIsEnabled, RepositoryNotFoundError  # noqa: E402

from voxstrata.exporters.checkpoint import Checkpoint, load_checkpoint  # noqa: E402
from voxstrata.exporters.graph import WeightsFile, encoder_graph  # noqa: E402
from voxstrata.model.names import output_names  # noqa: E402

State = dict[str, Any]
PREFIX = "model.encoder."


@pytest.fixture(scope="module")
def weights(tiny_checkpoint: Path) -> State:
    """The whole tiny model's tensors."""
    tensors: State = safetensors_torch.load_file(tiny_checkpoint / "model.safetensors")
    return tensors


def encoder_only(weights: Mapping[str, Any], prefix: str) -> State:
    return {prefix + k.removeprefix(PREFIX): v for k, v in weights.items() if k.startswith(PREFIX)}


def openai_checkpoint(weights: Mapping[str, Any], mels: int = 80) -> dict[str, Any]:
    """The encoder under OpenAI's names, written out by hand, with the dims of the tiny checkpoint."""
    e = encoder_only(weights, "")
    tensors = {
        "encoder.positional_embedding": e["embed_positions.weight"],
        "encoder.ln_post.weight": e["layer_norm.weight"],
        "encoder.ln_post.bias": e["layer_norm.bias"],
        "decoder.token_embedding.weight": torch.zeros(64, 32),
    }
    for conv in ("conv1", "conv2"):
        for part in ("weight", "bias"):
            tensors[f"encoder.{conv}.{part}"] = e[f"{conv}.{part}"]
    layers = len({k.split(".")[1] for k in e if k.startswith("layers.")})
    for n in range(layers):
        for theirs, ours in (
            ("attn.query", "self_attn.q_proj"),
            ("attn.key", "self_attn.k_proj"),
            ("attn.value", "self_attn.v_proj"),
            ("attn.out", "self_attn.out_proj"),
            ("attn_ln", "self_attn_layer_norm"),
            ("mlp.0", "fc1"),
            ("mlp.2", "fc2"),
            ("mlp_ln", "final_layer_norm"),
        ):
            for part in ("weight", "bias"):
                if theirs != "attn.key" or part == "weight":  # the key projection has no bias
                    tensors[f"encoder.blocks.{n}.{theirs}.{part}"] = e[f"layers.{n}.{ours}.{part}"]
    d = e["conv1.weight"].shape[0]
    dims = {
        "n_mels": mels, "n_vocab": 64, "n_audio_ctx": 1500, "n_audio_state": d, "n_audio_head": d // 8,
        "n_audio_layer": layers, "n_text_ctx": 32, "n_text_state": d, "n_text_head": 4, "n_text_layer": 1,
    }  # fmt: skip
    return {"dims": dims, "model_state_dict": tensors}


@pytest.fixture
def folder(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    """A copy of the tiny checkpoint without weights, to be spoilt."""
    copy = tmp_path / "checkpoint"
    shutil.copytree(tiny_checkpoint, copy, ignore=shutil.ignore_patterns("*.safetensors"))
    return copy


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


def sharded(folder: Path, weights: State, tiny: Path) -> str:
    from transformers import WhisperForConditionalGeneration

    WhisperForConditionalGeneration.from_pretrained(tiny).save_pretrained(folder, max_shard_size="40KB")
    assert len(list(folder.glob("model-*.safetensors"))) > 2
    return str(folder)


def two_precisions(folder: Path, weights: State, tiny: Path) -> str:
    """As openai/whisper-large-v3 has them: the fp32 shards beside the weights are not to be mixed in."""
    safetensors_torch.save_file(weights, folder / "model.safetensors")
    wrong = {k: v + 1 for k, v in weights.items()}
    safetensors_torch.save_file(wrong, folder / "model.fp32-00001-of-00001.safetensors")
    return str(folder)


def only_fp32_named(folder: Path, weights: State, tiny: Path) -> str:
    safetensors_torch.save_file(weights, folder / "model.fp32-00001-of-00001.safetensors")
    return str(folder)


def pytorch_bin(folder: Path, weights: State, tiny: Path) -> str:
    torch.save(weights, folder / "pytorch_model.bin")
    return str(folder)


def openai_pt(folder: Path, weights: State, tiny: Path) -> str:
    torch.save(openai_checkpoint(weights), folder / "tiny.pt")
    return str(folder / "tiny.pt")


def graph_bytes(checkpoint: Checkpoint, folder: Path) -> tuple[bytes, bytes]:
    folder.mkdir()
    file = WeightsFile(folder / "weights", np.dtype("float32"))
    graph = encoder_graph(
        checkpoint.state(), checkpoint.shape, file,
        outputs=output_names(checkpoint.shape.layers), cached=True, norm_every=False, metadata={},
    )  # fmt: skip
    file.close()
    return graph.SerializeToString(), (folder / "weights").read_bytes()


@pytest.mark.parametrize(
    "container",
    [
        bare_folder, encoder_prefix, model_encoder_prefix, without_preprocessor, sharded, two_precisions,
        only_fp32_named, pytorch_bin, openai_pt,
    ],
)  # fmt: skip
def test_every_container_gives_the_same_encoder(
    container: Callable[[Path, State, Path], str], folder: Path, weights: State, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    whole = load_checkpoint(str(tiny_checkpoint))
    other = load_checkpoint(container(folder, weights, tiny_checkpoint))
    assert other.sha256() == whole.sha256()
    assert other.shape == whole.shape
    np.testing.assert_array_equal(other.extractor.mel_filters, whole.extractor.mel_filters)
    # the graph and its weights are the same bytes, so the outputs are the same too
    assert graph_bytes(other, tmp_path / "a") == graph_bytes(whole, tmp_path / "b")


def test_the_loaded_encoder_is_hugging_faces_own(tiny_checkpoint: Path) -> None:
    from transformers import WhisperModel

    theirs = WhisperModel.from_pretrained(tiny_checkpoint).eval().encoder
    ours = load_checkpoint(str(tiny_checkpoint)).encoder
    x = torch.randn(1, 80, 3000, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        torch.testing.assert_close(ours(x).last_hidden_state, theirs(x).last_hidden_state, rtol=0, atol=1e-5)


def test_half_precision_weights_load_as_float32(folder: Path, weights: State) -> None:
    half = {k: v.half() for k, v in weights.items()}
    safetensors_torch.save_file(half, folder / "model.safetensors")
    state = load_checkpoint(str(folder)).state()
    assert {v.dtype for v in state.values()} == {np.dtype("float32")}
    np.testing.assert_array_equal(state["conv1.weight"], half[PREFIX + "conv1.weight"].float().numpy())


def test_one_changed_weight_changes_the_hash(folder: Path, weights: State, tiny_checkpoint: Path) -> None:
    changed = {k: v.clone() for k, v in weights.items()}
    changed[PREFIX + "layers.1.fc2.bias"][3] += 1e-6
    safetensors_torch.save_file(changed, folder / "model.safetensors")
    assert load_checkpoint(str(folder)).sha256() != load_checkpoint(str(tiny_checkpoint)).sha256()


def test_openai_dims_fill_the_whole_configuration(tmp_path: Path, weights: State) -> None:
    torch.save(openai_checkpoint(weights), tmp_path / "x.pt")
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
def hub(folder: Path, weights: State, monkeypatch: pytest.MonkeyPatch) -> FakeHub:
    safetensors_torch.save_file(weights, folder / "model.safetensors")
    return FakeHub(folder, monkeypatch)


def test_a_hub_id_loads_at_its_revision(hub: FakeHub, tiny_checkpoint: Path) -> None:
    got = load_checkpoint("someone/tiny", revision="refs/pr/3")
    assert hub.asked == [("list", "someone/tiny", "refs/pr/3"), ("download", "someone/tiny", "refs/pr/3")]
    assert (got.name, got.revision) == ("someone/tiny", "refs/pr/3")
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


def test_a_hub_without_safetensors_serves_its_bin(hub: FakeHub, weights: State) -> None:
    (hub.folder / "model.safetensors").unlink()
    torch.save(weights, hub.folder / "pytorch_model.bin")
    load_checkpoint("someone/tiny")
    assert "pytorch_model.bin" in hub.allow


def test_a_cached_copy_serves_offline(hub: FakeHub) -> None:
    hub.list_error = OfflineModeIsEnabled("offline mode")
    assert load_checkpoint("someone/tiny", revision="main").name == "someone/tiny"
    assert hub.asked[-1] == ("cached", "someone/tiny", "main")


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


def test_an_impossible_hub_id_is_said() -> None:
    with pytest.raises(InputError, match=r"models/a--b: no such folder or file, and not a hub id"):
        load_checkpoint("models/a--b")


# ---- bad input


def edit_config(folder: Path, **changes: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))


def refused(source: Path | str, match: str) -> None:
    with pytest.raises(InputError, match=match) as e:
        load_checkpoint(str(source))
    assert str(source) in str(e.value)  # the message names the file
    assert "\n" not in str(e.value)


def test_nothing_there_is_refused(tmp_path: Path) -> None:
    refused(tmp_path / "absent", "no such folder or file, and not a hub id")
    refused("whisper-base.pt", "no such folder or file")


def test_a_revision_of_a_local_folder_is_refused(tiny_checkpoint: Path) -> None:
    with pytest.raises(InputError, match="is a local folder: --revision is for hub ids"):
        load_checkpoint(str(tiny_checkpoint), revision="main")


def test_another_architecture_is_refused(folder: Path) -> None:
    edit_config(folder, model_type="wav2vec2")
    refused(folder, "model_type is 'wav2vec2', not 'whisper'")


def test_no_config_is_refused(folder: Path) -> None:
    (folder / "config.json").unlink()
    refused(folder, "no config.json")


@pytest.mark.parametrize("text", ["{", "\xff", "[]", "null"])
def test_a_broken_config_is_refused(folder: Path, text: str) -> None:
    (folder / "config.json").write_bytes(text.encode("latin-1"))
    refused(folder, "not readable as JSON|model_type is None")


def test_no_weights_are_refused(folder: Path) -> None:
    refused(folder, "no weights")


def test_truncated_safetensors_are_refused(folder: Path, tiny_checkpoint: Path) -> None:
    whole = (tiny_checkpoint / "model.safetensors").read_bytes()
    for cut in (0, 5, 1000, len(whole) - 1):
        (folder / "model.safetensors").write_bytes(whole[:cut])
        refused(folder, "model.safetensors: not readable as weights")


def test_a_truncated_bin_is_refused(folder: Path, weights: State) -> None:
    torch.save(weights, folder / "pytorch_model.bin")
    data = (folder / "pytorch_model.bin").read_bytes()
    (folder / "pytorch_model.bin").write_bytes(data[: len(data) // 2])
    refused(folder, "pytorch_model.bin: not readable as a torch checkpoint")


def test_a_missing_tensor_is_refused(folder: Path, weights: State) -> None:
    left = {k: v for k, v in weights.items() if k != PREFIX + "layers.2.fc1.weight"}
    safetensors_torch.save_file(left, folder / "model.safetensors")
    refused(folder, r"encoder tensor layers\.2\.fc1\.weight is missing \(1 in all\)")


def test_a_missing_shard_is_refused(folder: Path, weights: State, tiny_checkpoint: Path) -> None:
    sharded(folder, weights, tiny_checkpoint)
    index = json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]
    (folder / index[PREFIX + "layers.1.fc1.weight"]).unlink()
    refused(folder, r"encoder tensor .* is missing|no Whisper encoder")


def test_a_misshapen_tensor_is_refused(folder: Path, weights: State) -> None:
    wrong = weights | {PREFIX + "conv2.bias": torch.zeros(31)}
    safetensors_torch.save_file(wrong, folder / "model.safetensors")
    refused(folder, r"encoder tensor conv2\.bias is \(31,\), not \(32,\)")


def test_more_layers_than_the_config_says_are_refused(folder: Path, weights: State) -> None:
    safetensors_torch.save_file(weights, folder / "model.safetensors")
    edit_config(folder, encoder_layers=2)
    refused(folder, r"more encoder tensors than config\.json describes, e\.g\. layers\.2")


def test_weights_without_an_encoder_are_refused(folder: Path, weights: State) -> None:
    decoder = {k: v for k, v in weights.items() if "decoder" in k}
    safetensors_torch.save_file(decoder, folder / "model.safetensors")
    refused(folder, "no Whisper encoder")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_refused(folder: Path, weights: State, value: float) -> None:
    bad = {k: v.clone() for k, v in weights.items()}
    bad[PREFIX + "layers.0.self_attn.k_proj.weight"][3, 4] = value
    safetensors_torch.save_file(bad, folder / "model.safetensors")
    refused(folder, r"layers\.0\.self_attn\.k_proj\.weight holds NaN or infinite values")


def test_another_window_is_refused(folder: Path, weights: State) -> None:
    safetensors_torch.save_file(weights, folder / "model.safetensors")
    edit_config(folder, max_source_positions=750)
    refused(folder, "750 positions")


@pytest.mark.parametrize("changes", [{"encoder_attention_heads": 5}, {"d_model": "wide"}])
def test_an_impossible_config_is_refused(folder: Path, weights: State, changes: dict[str, Any]) -> None:
    safetensors_torch.save_file(weights, folder / "model.safetensors")
    edit_config(folder, **changes)
    refused(folder, "not a usable Whisper configuration|describes no Whisper encoder|positions")


@pytest.mark.parametrize(
    ("text", "match"), [("{", "not a usable feature extractor"), ('{"feature_size": 128}', "128 mel bins")]
)
def test_a_wrong_preprocessor_is_refused(folder: Path, weights: State, text: str, match: str) -> None:
    safetensors_torch.save_file(weights, folder / "model.safetensors")
    (folder / "preprocessor_config.json").write_text(text)
    refused(folder, match)


class Touch:
    """Unpickling it makes a file: the mark that code has run."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.mark,)


@pytest.mark.parametrize("name", ["x.pt", "pytorch_model.bin"])
@pytest.mark.parametrize("form", ["zip", "bare pickle"])
# torch remarks on the pickle protocol of a bare pickle before it refuses it
@pytest.mark.filterwarnings("ignore:Detected pickle protocol:UserWarning")
def test_code_in_a_pickle_does_not_run(folder: Path, weights: State, name: str, form: str) -> None:
    mark, file = folder.parent / "ran", folder / name
    content = (openai_checkpoint(weights) if name == "x.pt" else weights) | {"extra": Touch(mark)}
    if form == "zip":
        torch.save(content, file)
    else:
        file.write_bytes(pickle.dumps({"extra": Touch(mark)}))
    refused(file if name == "x.pt" else folder, "refused, .* convert it to safetensors")
    assert not mark.exists()
    if form == "bare pickle":  # the trap works: trusting the file would have run it
        pickle.loads(file.read_bytes())
        assert mark.exists()


@pytest.mark.filterwarnings("ignore:Detected pickle protocol:UserWarning")
def test_a_pt_that_is_not_openais_is_refused(tmp_path: Path, weights: State) -> None:
    file = tmp_path / "x.pt"
    torch.save(weights, file)
    refused(file, "not an OpenAI Whisper checkpoint")
    torch.save([1, 2], file)
    refused(file, "holds a list, not a dictionary")
    whole = openai_checkpoint(weights)
    torch.save(whole | {"dims": {k: v for k, v in whole["dims"].items() if k != "n_mels"}}, file)
    refused(file, "'dims' lacks 'n_mels'")
    torch.save(whole | {"dims": whole["dims"] | {"n_audio_state": "wide"}}, file)
    refused(file, "do not describe|describes no Whisper encoder")
    torch.save(whole | {"model_state_dict": {5: 6}}, file)
    refused(file, "is missing")


@pytest.mark.parametrize("data", [b"", b"not a checkpoint at all", b"PK\x03\x04 broken"])
def test_a_pt_that_is_no_checkpoint_is_refused(tmp_path: Path, data: bytes) -> None:
    file = tmp_path / "x.pt"
    file.write_bytes(data)
    refused(file, "not readable as a torch checkpoint|refused")


def test_safetensors_given_instead_of_their_folder_is_refused(tiny_checkpoint: Path) -> None:
    with pytest.raises(
        InputError, match=r"not an OpenAI Whisper checkpoint|not readable as a torch checkpoint|refused"
    ):
        load_checkpoint(str(tiny_checkpoint / "model.safetensors"))


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
