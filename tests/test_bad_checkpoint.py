"""What is not a usable Whisper checkpoint is refused in words that name the file, and no code in it runs."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
from checkpoint_files import PREFIX, State, openai_checkpoint, sharded

import voxstrata as vs
from voxstrata.base.errors import InputError

torch = pytest.importorskip("torch")
safetensors_torch = pytest.importorskip("safetensors.torch")

from voxstrata.exporters.checkpoint import load_checkpoint  # noqa: E402


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


def test_an_exported_model_is_refused_as_that(tiny_model: Path, tmp_path: Path) -> None:
    said = r"an exported model already, not a checkpoint; name the checkpoint that it was made from$"
    refused(tiny_model, said)
    with pytest.raises(InputError, match=said):
        vs.export(str(tiny_model), tmp_path / "x")


def test_a_revision_of_a_local_folder_is_refused(tiny_checkpoint: Path) -> None:
    with pytest.raises(InputError, match="is a local folder: --revision is for hub ids"):
        load_checkpoint(str(tiny_checkpoint), revision="main")


def test_another_architecture_is_refused(without_weights: Path) -> None:
    edit_config(without_weights, model_type="wav2vec2")
    refused(without_weights, "model_type is 'wav2vec2', not 'whisper'")


def test_no_config_is_refused(without_weights: Path) -> None:
    (without_weights / "config.json").unlink()
    refused(without_weights, "no config.json")


@pytest.mark.parametrize("text", ["{", "\xff", "[]", "null"])
def test_a_broken_config_is_refused(without_weights: Path, text: str) -> None:
    (without_weights / "config.json").write_bytes(text.encode("latin-1"))
    refused(without_weights, "config.json: (not readable as JSON|holds no JSON object)")


def test_no_weights_are_refused(without_weights: Path) -> None:
    refused(without_weights, "no weights")


def test_truncated_safetensors_are_refused(without_weights: Path, tiny_checkpoint: Path) -> None:
    whole = (tiny_checkpoint / "model.safetensors").read_bytes()
    for cut in (0, 5, 1000, len(whole) - 1):
        (without_weights / "model.safetensors").write_bytes(whole[:cut])
        refused(without_weights, "model.safetensors: not readable as weights")


def test_a_truncated_bin_is_refused(without_weights: Path, tiny_weights: State) -> None:
    torch.save(tiny_weights, without_weights / "pytorch_model.bin")
    data = (without_weights / "pytorch_model.bin").read_bytes()
    (without_weights / "pytorch_model.bin").write_bytes(data[: len(data) // 2])
    refused(without_weights, "pytorch_model.bin: not readable as a torch checkpoint")


def test_a_missing_tensor_is_refused(without_weights: Path, tiny_weights: State) -> None:
    left = {k: v for k, v in tiny_weights.items() if k != PREFIX + "layers.2.fc1.weight"}
    safetensors_torch.save_file(left, without_weights / "model.safetensors")
    refused(without_weights, r"encoder tensor layers\.2\.fc1\.weight is missing \(1 in all\)")


def test_a_missing_shard_is_refused(without_weights: Path, tiny_weights: State, tiny_checkpoint: Path) -> None:
    sharded(without_weights, tiny_weights, tiny_checkpoint)
    index = json.loads((without_weights / "model.safetensors.index.json").read_text())["weight_map"]
    (without_weights / index[PREFIX + "layers.1.fc1.weight"]).unlink()
    name = index[PREFIX + "layers.1.fc1.weight"]
    refused(without_weights, rf"model\.safetensors\.index\.json: the shards {name} it names are missing")


def test_a_misshapen_tensor_is_refused(without_weights: Path, tiny_weights: State) -> None:
    wrong = tiny_weights | {PREFIX + "conv2.bias": torch.zeros(31)}
    safetensors_torch.save_file(wrong, without_weights / "model.safetensors")
    refused(without_weights, r"encoder tensor conv2\.bias is \(31,\), not \(32,\)")


def test_more_layers_than_the_config_says_are_refused(without_weights: Path, tiny_weights: State) -> None:
    safetensors_torch.save_file(tiny_weights, without_weights / "model.safetensors")
    edit_config(without_weights, encoder_layers=2)
    refused(without_weights, r"encoder_layers is 2, they have 3")


def test_weights_without_an_encoder_are_refused(without_weights: Path, tiny_weights: State) -> None:
    decoder = {k: v for k, v in tiny_weights.items() if "decoder" in k}
    safetensors_torch.save_file(decoder, without_weights / "model.safetensors")
    refused(without_weights, "no Whisper encoder")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_refused(without_weights: Path, tiny_weights: State, value: float) -> None:
    bad = {k: v.clone() for k, v in tiny_weights.items()}
    bad[PREFIX + "layers.0.self_attn.k_proj.weight"][3, 4] = value
    safetensors_torch.save_file(bad, without_weights / "model.safetensors")
    refused(without_weights, r"layers\.0\.self_attn\.k_proj\.weight holds NaN or infinite values")


def test_another_window_is_refused(without_weights: Path, tiny_weights: State) -> None:
    safetensors_torch.save_file(tiny_weights, without_weights / "model.safetensors")
    edit_config(without_weights, max_source_positions=750)
    refused(without_weights, "750 positions")


@pytest.mark.parametrize("changes", [{"encoder_attention_heads": 5}, {"d_model": "wide"}])
def test_an_impossible_config_is_refused(without_weights: Path, tiny_weights: State, changes: dict[str, Any]) -> None:
    safetensors_torch.save_file(tiny_weights, without_weights / "model.safetensors")
    edit_config(without_weights, **changes)
    refused(
        without_weights, "attention_heads is 5, which does not divide d_model 32|d_model is 'wide', not a whole number"
    )


@pytest.mark.parametrize(("text", "match"), [("{", "not readable as JSON"), ('{"feature_size": 128}', "128 mel bins")])
def test_a_wrong_preprocessor_is_refused(without_weights: Path, tiny_weights: State, text: str, match: str) -> None:
    safetensors_torch.save_file(tiny_weights, without_weights / "model.safetensors")
    (without_weights / "preprocessor_config.json").write_text(text)
    refused(without_weights, match)


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
def test_code_in_a_pickle_does_not_run(without_weights: Path, tiny_weights: State, name: str, form: str) -> None:
    mark, file = without_weights.parent / "ran", without_weights / name
    content = (openai_checkpoint(tiny_weights) if name == "x.pt" else tiny_weights) | {"extra": Touch(mark)}
    if form == "zip":
        torch.save(content, file)
    else:
        file.write_bytes(pickle.dumps({"extra": Touch(mark)}))
    refused(file if name == "x.pt" else without_weights, "refused, .* convert it to safetensors")
    assert not mark.exists()
    if form == "bare pickle":  # the trap works: trusting the file would have run it
        pickle.loads(file.read_bytes())
        assert mark.exists()


@pytest.mark.filterwarnings("ignore:Detected pickle protocol:UserWarning")
def test_a_pt_that_is_not_openais_is_refused(tmp_path: Path, tiny_weights: State) -> None:
    file = tmp_path / "x.pt"
    torch.save(tiny_weights, file)
    refused(file, "not an OpenAI Whisper checkpoint")
    torch.save([1, 2], file)
    refused(file, "holds a list, not a dictionary")
    whole = openai_checkpoint(tiny_weights)
    torch.save(whole | {"dims": {k: v for k, v in whole["dims"].items() if k != "n_mels"}}, file)
    refused(file, "'dims' lacks 'n_mels'")
    torch.save(whole | {"dims": whole["dims"] | {"n_audio_state": "wide"}}, file)
    refused(file, "do not describe|d_model is wide, they have 32")
    torch.save(whole | {"model_state_dict": {5: 6}}, file)
    refused(file, "encoder_layers is 3, they have 0")


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
