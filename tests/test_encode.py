"""What `encode` gives of samples in memory is what `extract` stores of the same samples in files, bit by bit."""

from __future__ import annotations

import pickle
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from conftest import sound

import voxstrata as vs
from voxstrata.engine.model import SpeechModel

ONE = vs.Runtime(threads=1)


@pytest.fixture(scope="module")
def recordings() -> dict[str, tuple[np.ndarray, int]]:
    """Samples and rate by id: short, longer than two windows, integers, stereo, other rates, beyond [-1, 1]."""

    def whole(x: np.ndarray, kind: str) -> np.ndarray:
        return (x * np.iinfo(kind).max).astype(kind)

    stereo = np.stack([sound(2.3, 5, 44_100), sound(2.3, 6, 44_100)], axis=1)
    return {
        "one-frame": (sound(0.01, 0), 16_000),
        "long": (sound(61.7, 1), 16_000),
        "window": (sound(30.0, 2), 16_000),
        "int16": (whole(sound(3.1, 3), "int16"), 16_000),
        "int32": (whole(sound(1.7, 4), "int32"), 16_000),
        "stereo": (whole(stereo, "int16"), 44_100),
        "telephone": (sound(4.2, 7, 8_000), 8_000),
        "loud": (50 * sound(1.1, 8), 16_000),
        "alike": (sound(3.1, 9), 16_000),
    }


@pytest.fixture(scope="module")
def corpus(recordings: dict[str, tuple[np.ndarray, int]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same as files."""
    root = tmp_path_factory.mktemp("recordings")
    subtypes = {"float32": "FLOAT", "int16": "PCM_16", "int32": "PCM_32"}
    for name, (samples, rate) in recordings.items():
        soundfile.write(root / f"{name}.wav", samples, rate, subtype=subtypes[samples.dtype.name])
    return root


SPECS = [
    vs.StoreSpec(),
    vs.StoreSpec(("layer_00", "layer_02"), dtype="float32"),
    vs.StoreSpec(("final",), every=25, context=vs.Context("trimmed")),
    vs.StoreSpec(("layer_01", "final"), pool="mean", context=vs.Context("trimmed", tail=0)),
    vs.StoreSpec(("final",), dtype="float32", context=vs.Context("padded")),
]


@pytest.mark.parametrize("spec", SPECS, ids=["default", "float32", "every", "pool", "padded"])
def test_encode_gives_what_extract_stores(
    spec: vs.StoreSpec, tiny_model: Path, corpus: Path, recordings: dict[str, tuple[np.ndarray, int]], tmp_path: Path
) -> None:
    vs.extract(corpus, tiny_model, tmp_path / "store.zarr", spec, vs.Runtime(threads=2))
    store = vs.open_store(tmp_path / "store.zarr")
    model = vs.open_model(tiny_model)
    samples, rates = zip(*recordings.values(), strict=True)
    several = model.encode(samples, rates, spec=spec, runtime=vs.Runtime(threads=2))
    assert [list(states) for states in several] == [list(store.outputs)] * len(recordings)
    for (name, (x, rate)), states in zip(recordings.items(), several, strict=True):
        alone = model.encode(x, rate, spec=spec, runtime=ONE)
        for output in store.outputs:
            want = store.frames(name, output) if store.has_frames else store.pooled(output, [store.index(name)])[0]
            for got in (states[output], alone[output]):
                assert (got.dtype, got.shape) == (want.dtype, want.shape)
                np.testing.assert_array_equal(got, want)


def test_other_models_agree_with_their_stores(tiny_checkpoint: Path, corpus: Path, tmp_path: Path) -> None:
    """8 bits, where a window's states would depend on its batch if it had one; a norm on every output."""
    from voxstrata.exporters import export

    export(str(tiny_checkpoint), tmp_path / "int8", vs.ExportSpec(dtype="int8", norm_every=True))
    vs.extract(corpus, tmp_path / "int8", tmp_path / "store.zarr", runtime=ONE)
    store = vs.open_store(tmp_path / "store.zarr")
    names = ["int16", "alike"]
    audio = [soundfile.read(corpus / f"{name}.wav", dtype="float32")[0] for name in names]
    for name, states in zip(names, vs.open_model(tmp_path / "int8").encode(audio, 16_000), strict=True):
        for output in store.outputs:
            np.testing.assert_array_equal(states[output], store.frames(name, output))


def test_double_precision_and_lists_are_samples(tiny_model: Path) -> None:
    model, x = vs.open_model(tiny_model), sound(0.5, 1)
    want = model.encode(x, 16_000, ["final"], runtime=ONE)["final"]
    for same in (x.astype(np.float64), x[:, None], x[::-1][::-1]):
        np.testing.assert_array_equal(model.encode(same, np.int64(16_000), ["final"], runtime=ONE)["final"], want)
    (listed,) = model.encode([x.tolist()], [16_000.0], ["final"], runtime=ONE)
    np.testing.assert_array_equal(listed["final"], want)


def test_no_recordings_give_no_states(tiny_model: Path) -> None:
    assert vs.open_model(tiny_model).encode([], 16_000, runtime=ONE) == []


def test_threads_share_a_model(tiny_model: Path) -> None:
    model, audio = vs.open_model(tiny_model), [sound(0.3 + i / 10, i) for i in range(8)]
    specs = [vs.StoreSpec(("final",)), vs.StoreSpec(pool="mean"), vs.StoreSpec(every=5, dtype="float32")]
    work = [(x, spec) for x in audio for spec in specs]
    want = [vs.open_model(tiny_model).encode(x, 16_000, spec=spec, runtime=ONE) for x, spec in work]
    with ThreadPoolExecutor(6) as pool:
        found = list(pool.map(lambda w: model.encode(w[0], 16_000, spec=w[1], runtime=ONE), work))
    for got, expected in zip(found, want, strict=True):
        assert got.keys() == expected.keys()
        for output in got:
            np.testing.assert_array_equal(got[output], expected[output])


def test_sessions_are_made_once(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many calls, outputs, dtypes and contexts: on a CPU log-mel and one graph."""
    from voxstrata.engine.encoder import Encoder

    made, make = [], Encoder._make_session

    def counting(self: Encoder, name: str) -> Any:
        made.append(name)
        return make(self, name)

    monkeypatch.setattr(Encoder, "_make_session", counting)
    model = vs.open_model(tiny_model)
    assert made == []  # nothing is loaded before it is needed
    for spec in SPECS:
        for outputs in (["final"], ["layer_01"]):
            model.encode(sound(0.2, 1), 16_000, outputs, spec=spec, runtime=ONE)
    assert sorted(made) == ["encoder_cpu.onnx", "log_mel.onnx"]


def test_threads_are_kept_from_call_to_call(tiny_model: Path) -> None:
    model, x = vs.open_model(tiny_model), sound(0.2, 1)

    def ours() -> set[int | None]:
        return {thread.ident for thread in threading.enumerate() if thread.name.startswith("encode")}

    before = ours()
    for _ in range(3):
        model.encode(x, 16_000, runtime=ONE)
        after = ours() - before
        assert len(after) == 1
    model.encode(x, 16_000, runtime=ONE)
    assert ours() - before == after


def test_channels_that_cancel_each_other_out_are_said(tiny_model: Path) -> None:
    x = sound(0.5, 1)
    with pytest.warns(UserWarning, match=r"the recording: its channels are opposite .*; give one, samples\[:, 0\]"):
        vs.open_model(tiny_model).encode(np.stack([x, -x], axis=1), 16_000, runtime=ONE)


def test_a_used_model_can_be_sent_to_another_process(tiny_model: Path) -> None:
    model, x = vs.open_model(tiny_model), sound(0.2, 1)
    want = model.encode(x, 16_000, runtime=ONE)
    again = pickle.loads(pickle.dumps(model))
    assert isinstance(again, SpeechModel)
    assert again == model
    np.testing.assert_array_equal(again.encode(x, 16_000, runtime=ONE)["final"], want["final"])


@pytest.mark.parametrize(
    ("samples", "rate", "error", "match"),
    [
        (np.zeros(0, np.float32), 16_000, vs.InputError, "the recording: holds no samples"),
        (np.full(99, np.nan, np.float32), 16_000, vs.InputError, "the recording: 99 of 99 samples are NaN or infinite"),
        (np.array([0, np.inf]), 16_000, vs.InputError, "1 of 2 samples are NaN or infinite"),
        (np.array([0, 1e300]), 16_000, vs.InputError, "1 of 2 samples are NaN or infinite"),
        (np.array([0, 1e12]), 16_000, vs.InputError, r"is 1e\+12, beyond"),
        (np.zeros((2, 16_000), np.float32), 16_000, vs.InputError, r"shape \(2, 16000\); give \(frames,\) or"),
        (np.zeros((4, 4, 4), np.float32), 16_000, vs.InputError, r"shape \(4, 4, 4\)"),
        (np.float32(0.5), 16_000, vs.InputError, r"shape \(\)"),
        (np.zeros(9, np.uint8), 16_000, vs.InputError, "type uint8; give floats"),
        (np.zeros(9, bool), 16_000, vs.InputError, "type bool"),
        (np.zeros(9, np.complex64), 16_000, vs.InputError, "type complex64"),
        ("speech.wav", 16_000, vs.InputError, "type <U10"),
        ([0.1, 0.2], 16_000, vs.InputError, r"recording 0: samples of shape \(\)"),
        ([np.ones(9, np.float32), np.full(9, np.nan)], 16_000, vs.InputError, "recording 1: 9 of 9 samples are NaN"),
        ([[[0.1], [0.2, 0.3]]], 16_000, vs.InputError, "recording 0: no array of numbers"),
        (np.zeros(9, np.float32), 0, vs.UsageError, "a rate of 0"),
        (np.zeros(9, np.float32), 900_000, vs.InputError, "a sample rate of 900000 Hz"),
        (np.zeros(9, np.float32), 16_000.5, vs.InputError, "a rate of 16000.5"),
        (np.zeros(9, np.float32), float("nan"), vs.UsageError, "a rate of nan"),
        (np.zeros(9, np.float32), "16000", vs.UsageError, "a rate of '16000'"),
        (np.zeros(9, np.float32), None, vs.UsageError, "a rate of None"),
        (np.zeros(9, np.float32), 10**400, vs.UsageError, "a rate of 1000"),
        ([np.zeros(9, np.float32)] * 2, [16_000], vs.UsageError, "1 rate for 2 recordings"),
    ],
    ids=str,
)
def test_bad_input_is_refused_by_name(tiny_model: Path, samples: Any, rate: Any, error: type, match: str) -> None:
    with pytest.raises(error, match=match):
        vs.open_model(tiny_model).encode(samples, rate, runtime=ONE)


def test_unknown_outputs_are_refused(tiny_model: Path) -> None:
    with pytest.raises(vs.UsageError, match="layer_77"):
        vs.open_model(tiny_model).encode(sound(0.1, 1), 16_000, ["layer_77"])


def test_states_beyond_float16_are_refused(huge: Path) -> None:
    model, x = vs.open_model(huge), [sound(0.2, 1), sound(0.3, 1)]
    with pytest.raises(vs.InputError, match="recording 0: final reaches beyond float16"):
        model.encode(x, 16_000, runtime=ONE)
    wide = model.encode(x, 16_000, spec=vs.StoreSpec(dtype="float32"), runtime=ONE)
    assert np.abs(wide[0]["final"]).max() > 65504
