"""Promises of Context, Silence and the model folder: fixed buckets, faithful keys, no damaged model in use."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from voxstrata.base.errors import InputError, UsageError
from voxstrata.encoders import Context, ModelCard, Silence, open_model
from voxstrata.encoders.card import write_card
from voxstrata.encoders.outputs import names_one, output_names, select_output, select_outputs
from voxstrata.encoders.silence import load_silence
from voxstrata.engine import CpuEncoder
from voxstrata.store import StoreSpec

MODEL_FILES = (
    "card.json",
    "config.json",
    "encoder_cached.onnx",
    "encoder_cpu.onnx",
    "encoder_model.onnx",
    "encoder_model.onnx_data",
    "log_mel.onnx",
    "preprocessor_config.json",
    "silence.npz",
)


@given(frames=st.integers(1, 1500), tail=st.integers(0, 2000), mode=st.sampled_from(["bucketed", "trimmed"]))
def test_the_smallest_edge_that_holds_speech_and_tail_is_computed(frames: int, tail: int, mode: str) -> None:
    context = Context(mode, tail)  # type: ignore[arg-type]
    fitting = [m for m in context.edges if m >= min(frames + tail, 1500)]
    assert context.frames_computed(frames) == min(fitting)
    assert context.frames_computed(frames) in context.shapes()
    assert Context("padded").frames_computed(frames) == 1500


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"mode": "cached"}, "unknown context 'cached'; choose one of padded, bucketed, trimmed"),
        ({"tail": -1}, "cannot be negative"),
        ({"edges": ()}, "end with 1500"),
        ({"edges": (100, 200)}, "end with 1500"),
        ({"edges": (200, 100, 1500)}, "ascend"),
        ({"edges": (100, 100, 1500)}, "ascend"),
    ],
)
def test_impossible_contexts_are_usage_errors(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Context(**arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize("context", [Context(), Context("padded"), Context("trimmed", 7, (90, 1500))])
def test_contexts_survive_json(context: Context) -> None:
    assert Context.from_dict(json.loads(json.dumps(context.to_dict()))) == context


def test_outputs_are_selected_in_depth_order() -> None:
    names = output_names(3)
    assert names == ("layer_00", "layer_01", "layer_02", "layer_03", "final")
    assert select_outputs("all", names) == names
    assert select_outputs("final, layer_01", names) == ("layer_01", "final")
    assert select_outputs("3", names) == ("layer_03",)
    assert select_outputs("-1,1-2", names) == ("layer_01", "layer_02", "final")
    assert select_outputs(["-5", "0003"], names) == ("layer_00", "layer_03")
    assert select_outputs("layer_3,layer_1", names) == ("layer_01", "layer_03")
    assert select_outputs([3, -1, "0"], names) == ("layer_00", "layer_03", "final")
    assert select_outputs(np.int64(3), names) == select_outputs(-2, names) == ("layer_03",)
    for several in ({3, 1}, {"3": 0, "1": 0}.keys(), (n for n in ("1", 3)), np.array([1, 3]), np.array(["1", "3"])):
        assert select_outputs(several, names) == ("layer_01", "layer_03")
    assert select_outputs("-1", names[:2]) == ("layer_01",)  # of those that are there
    for wrong, message in (
        ("layer_04", "'layer_04'.*layer_03, final"),
        ("", "unknown output ''"),
        ([], "empty"),
        ("final,final", "twice"),
        ("-1,final", "twice"),
        ("4", "unknown output 'layer_04'"),
        ("2-4", "unknown output 'layer_04'"),
        ("3-2", "unknown output '3-2'"),
        ("-6", "unknown output '-6'"),
        ("-0", "unknown output '-0'"),
        ("1-", "unknown output '1-'"),
        ("layer_1-2", "unknown output 'layer_1-2'"),
        ("layer_-1", "unknown output 'layer_-1'"),
        (4, "unknown output 'layer_04'"),
        ("layer_3,layer_03", "twice"),
        (None, "no output None; give names or numbers"),
        (True, "no output True"),
        (1.5, "no output 1.5"),
        ([1, None], "no output None"),
    ):
        with pytest.raises(UsageError, match=message):
            select_outputs(wrong, names)


@pytest.mark.parametrize("wanted", ["layer_03", "layer_3", "3", 3, -2, "-2", "3-3", np.int64(3)])
def test_one_output_is_found_however_it_is_spelt(wanted: str | int) -> None:
    names = output_names(3)
    assert select_output(wanted, names) == "layer_03"
    assert names_one(wanted, select_outputs(wanted, names))
    assert select_outputs(StoreSpec(wanted).outputs, names) == ("layer_03",)


def test_several_outputs_are_not_one() -> None:
    with pytest.raises(UsageError, match="'2-3' are 2 outputs; name one of layer_02, layer_03"):
        select_output("2-3", output_names(3))
    assert not names_one(["final"], ("final",))  # a list has an output for each name
    assert not names_one("all", ("final",))


def silence(first: int = 1400, groups: int = 9) -> Silence:
    rng = np.random.default_rng(0)
    shape = (2, 3, 1500 - first)
    key, value = (rng.standard_normal((*shape, 4)).astype(np.float16) for _ in range(2))
    return Silence(first, key, value, rng.integers(0, groups, shape).astype(np.int16) if groups else None)


def test_uncondensed_keys_are_those_of_the_positions_that_follow() -> None:
    cache = silence(groups=0)
    keys = cache.for_frames(1425)
    np.testing.assert_array_equal(keys.key, cache.key[:, :, 25:])
    np.testing.assert_array_equal(keys.value, cache.value[:, :, 25:])
    assert not keys.bias.any()


@settings(deadline=None)
@given(frames=st.integers(1400, 1499))
def test_condensed_keys_are_the_means_of_their_groups(frames: int) -> None:
    cache = silence()
    keys = cache.for_frames(frames)
    assert cache.group is not None
    for layer in range(2):
        for head in range(3):
            for group in range(9):
                members = np.flatnonzero(cache.group[layer, head, frames - 1400 :] == group) + frames - 1400
                if len(members):
                    for found, all_of in ((keys.key, cache.key), (keys.value, cache.value)):
                        expected = all_of[layer, head, members].astype(np.float64).mean(axis=0)
                        np.testing.assert_allclose(found[layer, head, group], expected, rtol=1e-5, atol=1e-6)
                    assert keys.bias[layer, head, group] == pytest.approx(np.log(len(members)))
                else:  # such a key must get no attention at all, in float16 either
                    assert np.exp(np.float16(keys.bias[layer, head, group])) == 0


def test_a_cache_that_begins_after_the_bucket_is_an_input_error(tiny_model: Path) -> None:
    with pytest.raises(InputError, match="begins at frame 1400, a bucket ends at 1399"):
        silence().for_frames(1399)
    with pytest.raises(InputError, match="begins at frame 75, a bucket ends at 50"):
        CpuEncoder(open_model(tiny_model), StoreSpec(context=Context(edges=(50, 1500))))


@pytest.mark.parametrize("groups", [0, 9])
def test_silence_survives_saving(groups: int, tmp_path: Path) -> None:
    cache = silence(groups=groups)
    cache.save(tmp_path / "s.npz")
    loaded = load_silence(tmp_path / "s.npz")
    assert isinstance(loaded, Silence)
    assert loaded.sha256() == cache.sha256()
    assert (loaded.group is None) == (groups == 0)


def cut(data: bytes) -> bytes:
    return data[: len(data) // 2]


@pytest.mark.parametrize("damage", [cut, lambda _: b"", lambda _: b"PK\x03\x04 and no more"])
def test_a_damaged_silence_file_is_an_input_error(damage: Callable[[bytes], bytes], tmp_path: Path) -> None:
    path = tmp_path / "s.npz"
    silence().save(path)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(InputError, match=r"s\.npz: not a readable silence cache"):
        load_silence(path)
    path.unlink()
    with pytest.raises(InputError, match=r"s\.npz: not a readable silence cache"):
        load_silence(path)


def test_a_silence_file_that_ends_early_is_an_input_error(tmp_path: Path) -> None:
    cache = silence(groups=0)
    replace(cache, key=cache.key[:, :, 1:], value=cache.value[:, :, 1:]).save(tmp_path / "s.npz")
    with pytest.raises(InputError, match="does not reach frame 1500"):
        load_silence(tmp_path / "s.npz")


@pytest.fixture
def model(tiny_model: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(tiny_model, tmp_path / "model"))


def test_a_model_folder_holds_what_the_card_says(model: Path) -> None:
    assert sorted(p.name for p in model.iterdir()) == sorted(MODEL_FILES)
    card = open_model(model).card
    assert (card.layers, card.d_model, card.heads, card.n_mels, card.dtype) == (3, 32, 4, 80, "float32")
    assert ModelCard.from_dict(json.loads(json.dumps(card.to_dict()))) == card


@pytest.mark.parametrize("name", MODEL_FILES)
@pytest.mark.parametrize("at", [0.1, 0.5, 0.9])
def test_one_changed_byte_is_an_input_error_naming_the_file(model: Path, name: str, at: float) -> None:
    data = bytearray((model / name).read_bytes())
    data[int(at * len(data))] ^= 1
    (model / name).write_bytes(data)
    with pytest.raises(InputError, match=name.replace(".", r"\.")):
        open_model(model)


@pytest.mark.parametrize("name", MODEL_FILES)
def test_a_missing_file_is_an_input_error_naming_it(model: Path, name: str) -> None:
    (model / name).unlink()
    with pytest.raises(InputError, match=name.replace(".", r"\.")):
        open_model(model)


def test_another_format_is_an_input_error_saying_so(model: Path) -> None:
    write_card(model, replace(open_model(model).card, format=99))
    with pytest.raises(InputError, match="model format 99, this version reads the formats 3 and 4"):
        open_model(model)


@pytest.mark.parametrize("text", ["", "[]", "null", "{", '{"format": 1}', "\udcff"])
def test_a_card_that_is_none_is_an_input_error(model: Path, text: str) -> None:
    (model / "card.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(InputError, match="model"):
        open_model(model)


def test_a_graph_that_is_no_graph_is_an_input_error_naming_it(model: Path) -> None:
    card = open_model(model).card
    (model / "log_mel.onnx").write_bytes(b"no graph")
    write_card(model, card)
    with pytest.raises(InputError, match=r"log_mel\.onnx: no graph that `voxstrata export` writes"):
        CpuEncoder(open_model(model))


def test_a_checkpoint_is_not_a_model_and_is_told_so(tiny_checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="a checkpoint, not a model; name the folder"):
        open_model(tiny_checkpoint)
    with pytest.raises(InputError, match="no such folder"):
        open_model(tmp_path / "none")


def test_a_store_is_not_a_model_and_is_told_so(tmp_path: Path) -> None:
    (tmp_path / "zarr.json").write_text('{"attributes": {"voxstrata": {}}}')
    said = r"a store, not a model; name the folder that `voxstrata export` made \(stores are given as STORE\)$"
    with pytest.raises(InputError, match=said):
        open_model(tmp_path)
