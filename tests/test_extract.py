"""Promises of extract(): what is stored is what the encoder computes, whatever else is in the corpus."""

from __future__ import annotations

import os
import re
import shutil
import struct
import subprocess
import sys
import tracemalloc
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import soxr
import zarr
from conftest import Heard, sound
from numpy.typing import NDArray

pytest.importorskip("torch")

from hf_reference import Reference, cached_keys, relative_l2

from voxstrata.audio.decode import AudioInfo, decode
from voxstrata.audio.source import Recording
from voxstrata.base.errors import AudioError, InputError, UsageError
from voxstrata.base.progress import Reporter
from voxstrata.encoders import Context, Silence, open_model
from voxstrata.encoders.card import SILENCE, write_card
from voxstrata.engine import CpuEncoder, Device, Runtime, extract
from voxstrata.engine.sink import UnitSink
from voxstrata.store import EmbeddingStore, StoreSpec, open_store, plan

OUTPUTS = ("layer_00", "layer_01", "layer_02", "layer_03", "final")
# seconds and rate; 35 s is two windows
CLIPS = {
    "en/blink": (0.02, 16_000),
    "en/short": (0.51, 16_000),
    "en/cd": (1.37, 44_100),
    "de/phone": (2.9, 8_000),
    "de/odd": (6.003, 22_050),
    "de/stage": (12.25, 48_000),
    "fr/window": (30.0, 16_000),
    "fr/over": (35.0, 16_000),
}


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, np.ndarray]]:
    """A corpus of CLIPS, and its recordings as 16 kHz samples by id."""
    root = tmp_path_factory.mktemp("clips")
    audio = {}
    for seed, (name, (seconds, rate)) in enumerate(CLIPS.items()):
        samples = sound(seconds, seed, rate)
        (root / name).parent.mkdir(exist_ok=True)
        soundfile.write(root / f"{name}.wav", samples, rate, subtype="FLOAT")
        if rate != 16_000:
            samples = soxr.resample(samples, rate, 16_000, quality="HQ")
        audio[name] = samples
    return root, audio


@pytest.fixture(scope="module")
def reference(tiny_checkpoint: Path) -> Reference:
    return Reference(tiny_checkpoint)


@pytest.fixture(scope="module")
def expected_padded(clips: tuple[Path, dict], reference: Reference) -> dict[str, dict[str, np.ndarray]]:
    """What Hugging Face's encoder gives, by recording and output."""
    return {name: reference.padded(audio) for name, audio in clips[1].items()}


@pytest.fixture(scope="module")
def stored(clips: tuple[Path, dict], tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> EmbeddingStore:
    """CLIPS in the default context, float32."""
    path = tmp_path_factory.mktemp("stored") / "s.zarr"
    extract(clips[0], tiny_model, path, StoreSpec(dtype="float32"))
    return open_store(path)


def positions(frames: int) -> int:
    """Computed positions of the default context."""
    edges = [*range(75, 500, 25), *range(500, 1000, 50), *range(1000, 1600, 100)]
    return next(m for m in edges if m >= min(frames + 50, 1500))


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 2e-4), ("float16", 2e-3)])
def test_padded_equals_hugging_face_at_every_length_and_rate(
    clips: tuple[Path, dict],
    tiny_model: Path,
    expected_padded: dict[str, dict[str, np.ndarray]],
    tmp_path: Path,
    dtype: str,
    tolerance: float,
) -> None:
    extract(clips[0], tiny_model, tmp_path / "s.zarr", StoreSpec(dtype=dtype, context=Context("padded")))  # type: ignore[arg-type]
    store = open_store(tmp_path / "s.zarr")
    assert store.outputs == OUTPUTS
    for name in clips[1]:
        for output, expected in expected_padded[name].items():
            found = store.frames(name, output)
            assert found.dtype == dtype
            assert relative_l2(found, expected) <= tolerance, (name, output)


def test_trimmed_equals_the_encoder_on_the_computed_positions_alone(
    clips: tuple[Path, dict], tiny_model: Path, reference: Reference, tmp_path: Path
) -> None:
    extract(clips[0], tiny_model, tmp_path / "s.zarr", StoreSpec(dtype="float32", context=Context("trimmed")))
    store = open_store(tmp_path / "s.zarr")
    for name, audio in clips[1].items():
        frames = -(-len(audio) // 320)
        m = positions(frames)
        if m < 1500:  # else it is the padded reference
            expected = reference.forward(reference.log_mel(audio)[:, :, : 2 * m])
            for output in OUTPUTS:
                assert relative_l2(store.frames(name, output), expected[output][:frames]) <= 2e-4, (name, output)


@pytest.mark.parametrize("model", ["tiny_model", "uncondensed"])
def test_bucketed_equals_attention_over_computed_and_cached_keys(
    clips: tuple[Path, dict], model: str, reference: Reference, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    folder = request.getfixturevalue(model)
    extract(clips[0], folder, tmp_path / "s.zarr", StoreSpec(dtype="float32"))
    store = open_store(tmp_path / "s.zarr")
    silence = dict(np.load(folder / "silence.npz"))
    assert ("buckets" in silence) == (model == "tiny_model")
    for name, audio in clips[1].items():
        for begin in range(0, len(audio), 480_000):
            window = audio[begin : begin + 480_000]
            frames = -(-len(window) // 320)
            m = positions(frames)
            if m == 1500:
                continue  # the padded reference
            expected = reference.forward(reference.log_mel(window)[:, :, : 2 * m], cached_keys(silence, m))
            for output in OUTPUTS:
                found = store.frames(name, output)[begin // 320 :][:frames]
                assert relative_l2(found, expected[output][:frames]) <= 2e-4, (name, begin, output)


def test_bucketed_with_the_keys_of_the_padded_run_is_the_padded_run(
    clips: tuple[Path, dict], uncondensed: Path, reference: Reference, tmp_path: Path
) -> None:
    audio = clips[1]["de/phone"]
    kept: list[np.ndarray] = []
    for layer in reference.encoder.layers:
        for part in (layer.self_attn.k_proj, layer.self_attn.v_proj):
            part.register_forward_hook(lambda _, __, y: kept.append(y[0].detach().unflatten(-1, (4, 8)).numpy()))
    try:
        expected = reference.padded(audio)
    finally:
        for layer in reference.encoder.layers:
            layer.self_attn.k_proj._forward_hooks.clear()
            layer.self_attn.v_proj._forward_hooks.clear()
    key, value = (np.stack(kept[part::2]).transpose(0, 2, 1, 3)[:, :, 75:] for part in (0, 1))
    folder = tmp_path / "model"
    shutil.copytree(uncondensed, folder)
    silence = Silence(75, key, value, None)
    silence.save(folder / SILENCE)
    card = open_model(uncondensed).card
    write_card(folder, replace(card, silence=card.silence | {"sha256": silence.sha256()}))
    states = dict(zip(OUTPUTS, CpuEncoder(open_model(folder)).run([audio], 200), strict=True))
    for output in OUTPUTS:
        # the log-mel ends with the computed positions: the convolutions see nothing behind the last of them
        assert relative_l2(states[output][0, :145], expected[output]) <= 2e-4, output


def test_bucketed_with_one_bucket_of_30_s_is_padded(clips: tuple[Path, dict], tiny_model: Path, tmp_path: Path) -> None:
    for name, context in (("a", Context("padded")), ("b", Context("bucketed", edges=(1500,)))):
        extract(clips[0], tiny_model, tmp_path / name, StoreSpec(context=context))
    a, b = open_store(tmp_path / "a"), open_store(tmp_path / "b")
    for output in OUTPUTS:
        np.testing.assert_array_equal(a.ragged(output, range(len(a)))[0], b.ragged(output, range(len(b)))[0])


def assert_same_values(a: EmbeddingStore, b: EmbeddingStore, ids: list[str]) -> None:
    """Float16 identical in 99.9 % of values, and nowhere further apart than rounding explains."""
    for output in OUTPUTS:
        x = np.concatenate([a.frames(i, output) for i in ids])
        y = np.concatenate([b.frames(i, output) for i in ids])
        assert x.dtype == y.dtype
        assert relative_l2(x, y) <= 1e-4
        if x.dtype == np.float16:
            assert np.mean(x != y) < 0.001


@pytest.fixture(scope="module")
def many(make_corpus: Callable[..., Path]) -> Path:
    rng = np.random.default_rng(5)
    return make_corpus({f"{rng.choice(['en', 'de'])}/{i}": float(rng.uniform(0.1, 4)) for i in range(40)})


@pytest.fixture(scope="module")
def many_stored(many: Path, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> EmbeddingStore:
    path = tmp_path_factory.mktemp("many") / "s.zarr"
    extract(many, tiny_model, path)
    return open_store(path)


def test_units_with_the_longest_windows_come_first(
    many: Path, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log_mel, commit = CpuEncoder.log_mel, UnitSink.commit
    computed: list[int] = []
    longest: list[int] = []

    def seen(self: CpuEncoder, audio: Sequence[NDArray[np.float32]], frames: int) -> object:
        computed.append(max(len(samples) for samples in audio))
        return log_mel(self, audio, frames)

    def committed(self: UnitSink, unit: int, failures: dict[int, str]) -> None:
        longest.append(int(self.plan.samples[self.plan.members(unit)].max()))
        commit(self, unit, failures)

    monkeypatch.setattr(CpuEncoder, "log_mel", seen)
    monkeypatch.setattr(UnitSink, "commit", committed)
    monkeypatch.setattr(plan, "CHUNK_BYTES", 1 << 14)
    extract(many, tiny_model, tmp_path / "s.zarr", runtime=Runtime(unit_megabytes=0.1))
    assert len(longest) > 3
    assert longest == sorted(longest, reverse=True)
    assert computed[0] == max(computed)


def test_rows_of_recordings_that_fail_are_zeros_in_every_unit(
    many: Path, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A unit's memory is that of the unit before."""
    broken = sorted(many.rglob("*.wav"))[::3]

    def decoded(recording: Recording, info: AudioInfo, *rest: object) -> NDArray[np.float32]:
        if recording.source.path in broken:
            raise AudioError(f"{recording.source.name}: broken")
        return decode(recording, info, *rest)

    monkeypatch.setattr("voxstrata.engine.decoding.decode_to_slice", decoded)
    monkeypatch.setattr(plan, "CHUNK_BYTES", 1 << 14)
    done = extract(many, tiny_model, tmp_path / "s.zarr", runtime=Runtime(unit_megabytes=0.1))
    assert done.units > 3
    assert done.failed == len(broken)
    root = zarr.open_group(tmp_path / "s.zarr", mode="r")
    start, length, status = (root[name][:] for name in ("start", "length", "status"))
    for output in OUTPUTS:
        rows = root[f"frames/{output}"][:]
        empty = [not rows[a : a + n].any() for a, n in zip(start, length, strict=True)]
        assert empty == (status == 2).tolist()


def test_progress_counts_units_audio_and_failures_of_the_whole_to_the_end_resumed_or_not(
    make_corpus: Callable[..., Path], tiny_model: Path, tmp_path: Path
) -> None:
    root = make_corpus({"en/a": 3.0, "en/b": 1.0, "de/c": 2.0})
    soundfile.write(root / "en" / "b.wav", np.full(16_000, np.nan, np.float32), 16_000, "FLOAT")
    told = Heard()
    report = extract(root, tiny_model, tmp_path / "s.zarr", reporter=told)
    assert [p.stage for p in told.heard[:3]] == ["reading headers"] * 3
    extracting = told.heard[3:]
    assert {(p.stage, p.total, p.unit, p.work_total, p.rate_unit) for p in extracting} == {
        ("extracting", 2, "units", 6.0, "audio-h/h")
    }
    shares = [p.share for p in extracting]
    assert shares == sorted(shares)
    assert all(p.rated == p.work for p in extracting)
    assert (extracting[-1].done, extracting[-1].work, extracting[-1].failed) == (2, 6.0, 1)
    assert report.audio_seconds == 5.0  # what failed is passed, and not encoded
    (tmp_path / "s.zarr" / "units" / "000000.json").unlink()  # German, which is first
    again = Heard()
    extract(root, tiny_model, tmp_path / "s.zarr", reporter=again)
    first, last = again.heard[0], again.heard[-1]
    assert (first.done, first.total, first.work, first.rated) == (1, 2, 4.0, 0.0)  # nothing was encoded here yet
    assert (last.done, last.total, last.work, last.rated) == (2, 2, 6.0, 2.0)


@pytest.mark.parametrize("change", [{"tokens": 1500}, {"tokens": 20_000}, {"threads": 1}, {"threads": 3}])
def test_batch_size_and_threads_change_no_stored_value(
    many: Path, many_stored: EmbeddingStore, tiny_model: Path, tmp_path: Path, change: dict[str, int]
) -> None:
    extract(many, tiny_model, tmp_path / "s.zarr", runtime=Runtime(**change))  # type: ignore[arg-type]
    assert_same_values(open_store(tmp_path / "s.zarr"), many_stored, many_stored.ids)


def test_log_mel_is_the_same_to_the_bit_for_any_threads_and_neighbours(
    clips: tuple[Path, dict], tiny_model: Path
) -> None:
    windows = [audio for audio in clips[1].values() if len(audio) < 7 * 16_000]
    alone = CpuEncoder(open_model(tiny_model), runtime=Runtime(threads=1))
    expected = np.concatenate([alone.log_mel([audio], 375) for audio in windows])
    for threads in (2, 3, 5):
        np.testing.assert_array_equal(
            CpuEncoder(open_model(tiny_model), runtime=Runtime(threads=threads)).log_mel(windows, 375), expected
        )


def test_float32_values_do_not_depend_on_the_batch_beyond_rounding(
    many: Path, tiny_model: Path, tmp_path: Path
) -> None:
    for tokens in (1500, 20_000):
        extract(many, tiny_model, tmp_path / str(tokens), StoreSpec(dtype="float32"), Runtime(tokens=tokens))
    a, b = open_store(tmp_path / "1500"), open_store(tmp_path / "20000")
    assert_same_values(a, b, a.ids)


def test_neighbours_change_no_stored_value(
    many: Path, many_stored: EmbeddingStore, tiny_model: Path, tmp_path: Path
) -> None:
    lines = ["path\tlanguage"]
    ids = many_stored.ids[::7]
    for name in ids:
        lines.append(f"{name}.wav\t{name[:2]}")
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(many / f"{name}.wav", tmp_path / f"{name}.wav")
    # loud ones beside them: a maximum taken over the batch would show
    for i in range(5):
        soundfile.write(tmp_path / f"loud{i}.wav", 50 * sound(1 + i / 2, 99 + i), 16_000, subtype="FLOAT")
        lines.append(f"loud{i}.wav\t{ids[0][:2]}")
    (tmp_path / "m.tsv").write_text("\n".join(lines))
    extract(tmp_path / "m.tsv", tiny_model, tmp_path / "s.zarr")
    assert_same_values(open_store(tmp_path / "s.zarr"), many_stored, ids)


def test_order_of_the_corpus_changes_no_byte(
    many: Path, many_stored: EmbeddingStore, tiny_model: Path, tmp_path: Path
) -> None:
    shutil.copytree(many, tmp_path / "c")
    names = np.random.default_rng(3).permutation(many_stored.ids)
    (tmp_path / "c" / "m.tsv").write_text("\n".join(["path\tlanguage", *(f"{n}.wav\t{n[:2]}" for n in names)]))
    extract(tmp_path / "c" / "m.tsv", tiny_model, tmp_path / "s.zarr")
    store = open_store(tmp_path / "s.zarr")
    assert store.ids == many_stored.ids
    for output in OUTPUTS:
        np.testing.assert_array_equal(store.array(output)[:], many_stored.array(output)[:])


def test_pool_mean_is_the_mean_of_the_frames(
    clips: tuple[Path, dict], stored: EmbeddingStore, tiny_model: Path, tmp_path: Path
) -> None:
    extract(clips[0], tiny_model, tmp_path / "s.zarr", StoreSpec(pool="mean"))
    store = open_store(tmp_path / "s.zarr")
    assert store.array("final").dtype == np.float32
    for output in OUTPUTS:
        pooled = store.pooled(output)
        assert pooled.shape == (len(CLIPS), 32)
        for i, name in enumerate(store.ids):
            expected = stored.frames(name, output).astype(np.float64).mean(axis=0)
            np.testing.assert_allclose(pooled[i], expected, rtol=1e-4, atol=1e-5)


def test_every_5_is_the_mean_of_each_5_frames_and_of_the_rest(
    clips: tuple[Path, dict], stored: EmbeddingStore, tiny_model: Path, tmp_path: Path
) -> None:
    extract(clips[0], tiny_model, tmp_path / "s.zarr", StoreSpec("layer_02", dtype="float32", every=5))
    store = open_store(tmp_path / "s.zarr")
    assert store.row_seconds == 0.1
    partial = 0
    for name in store.ids:
        frames = stored.frames(name, "layer_02").astype(np.float64)
        expected = np.stack([frames[i : i + 5].mean(axis=0) for i in range(0, len(frames), 5)])
        partial += len(frames) % 5 > 0
        np.testing.assert_allclose(store.frames(name, "layer_02"), expected, rtol=1e-4, atol=1e-5)
    assert partial


def test_chosen_outputs_alone_are_stored_with_the_same_values(
    many: Path, many_stored: EmbeddingStore, tiny_model: Path, tmp_path: Path
) -> None:
    extract(many, tiny_model, tmp_path / "s.zarr", StoreSpec("final,layer_01"))
    store = open_store(tmp_path / "s.zarr")
    assert store.outputs == ("layer_01", "final")
    for output in store.outputs:
        for name in store.ids:
            np.testing.assert_array_equal(store.frames(name, output), many_stored.frames(name, output))
    with pytest.raises(UsageError, match=r"'layer_77'.*layer_03, final"):
        extract(many, tiny_model, tmp_path / "t.zarr", StoreSpec("layer_77"))
    assert not (tmp_path / "t.zarr").exists()


def test_a_float16_model_is_stored_in_float16_without_a_warning(
    half_model: Path, make_corpus: Callable[..., Path], tmp_path: Path
) -> None:
    extract(make_corpus({"a": 0.7, "b": 1.1}), half_model, tmp_path / "s.zarr")
    store = open_store(tmp_path / "s.zarr")
    assert all(np.isfinite(store.frames(name, output)).all() for name in store.ids for output in store.outputs)


def test_long_error_refuses_the_corpus_naming_the_recording(
    clips: tuple[Path, dict], tiny_model: Path, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=r"over\.wav: 35\.0 s.*1 recording is.*--long window"):
        extract(clips[0], tiny_model, tmp_path / "s.zarr", long="error")
    assert not (tmp_path / "s.zarr").exists()


def test_bad_recordings_cost_themselves_alone(
    many: Path, many_stored: EmbeddingStore, tiny_model: Path, tmp_path: Path
) -> None:
    corpus = tmp_path / "c"
    shutil.copytree(many, corpus)
    speech = sound(2.0, 1)
    (corpus / "en" / "text.wav").write_text("not audio at all\n" * 100)
    (corpus / "en" / "empty.wav").touch()
    soundfile.write(corpus / "en" / "none.wav", speech[:0], 16_000)
    soundfile.write(corpus / "en" / "nan.wav", np.where(np.arange(len(speech)) == 777, np.nan, speech), 16_000, "FLOAT")
    soundfile.write(corpus / "en" / "cut.flac", speech, 16_000)
    whole = (corpus / "en" / "cut.flac").read_bytes()
    (corpus / "en" / "cut.flac").write_bytes(whole[: len(whole) // 2])
    (corpus / "en" / "folder.wav").mkdir()
    for name, claimed in (("double", 64_000), ("half", 16_000)):  # of 32 000 samples
        flac = bytearray(whole)
        (word,) = struct.unpack(">Q", flac[18:26])  # STREAMINFO: the low 36 bits are the number of samples
        flac[18:26] = struct.pack(">Q", (word >> 36 << 36) | claimed)
        (corpus / "en" / f"{name}.flac").write_bytes(flac)
        soundfile.write(corpus / "en" / f"{name}-pcm.wav", speech, 16_000, "PCM_16")
        wav = bytearray((corpus / "en" / f"{name}-pcm.wav").read_bytes())
        wav[40:44] = struct.pack("<I", 2 * claimed)  # bytes of the data chunk
        (corpus / "en" / f"{name}-pcm.wav").write_bytes(wav)
    bad = ["text.wav", "empty.wav", "none.wav", "nan.wav", "cut.flac", "missing.wav", "folder.wav"]
    bad += ["double.flac", "half.flac", "double-pcm.wav", "half-pcm.wav"]
    names = [f"{n}.wav" for n in many_stored.ids]
    names[20:20] = [f"en/{n}" for n in bad]
    (corpus / "m.tsv").write_text("\n".join(["path\tlanguage", *(f"{n}\t{n[:2]}" for n in names)]))
    report = extract(corpus / "m.tsv", tiny_model, tmp_path / "s.zarr")
    store = open_store(tmp_path / "s.zarr")
    reasons = {
        "en/text": "not audio",
        "en/empty": r"is empty \(0 bytes\)",
        "en/none": "no samples",
        "en/nan": "1 of 32000 samples are NaN",
        "en/cut": "truncated or damaged",
        "en/missing": "no such file",
        "en/folder": "is a directory",
        "en/double": "header says 4.00 s, decoding gave 2.00 s",
        "en/half": "header says 1.00 s",
        "en/double-pcm": "4.00 s",
        "en/half-pcm": "1.00 s",
    }
    assert report.failed == len(reasons)
    assert set(report.failures) == set(reasons)
    assert store.complete
    for row in store.utterances.to_pylist():
        if row["id"] in reasons:
            assert row["status"] == "failed"
            assert re.search(reasons[row["id"]], row["failure"]), row["failure"]
            assert report.failures[row["id"]] == row["failure"]
            with pytest.raises(UsageError, match=f"{row['id']}' is failed: .*{row['id']}"):
                store.frames(row["id"], "final")
        else:
            assert (row["status"], row["failure"]) == ("done", None)
    assert_same_values(store, many_stored, many_stored.ids)
    # what failed after planning left its rows empty
    nan = store.index("en/nan")
    rows = store.array("final")[int(store.start[nan]) : int(store.start[nan] + store.length[nan])]
    assert len(rows) == 100
    assert not rows.any()


def test_float16_overflow_is_an_error_naming_utterance_and_output(
    huge: Path, make_corpus: Callable[..., Path], tmp_path: Path
) -> None:
    corpus = make_corpus({"en/a": 1.0})
    with pytest.raises(InputError, match=r"^en/a: final reaches .*float16 \(65504\); use --dtype float32"):
        extract(corpus, huge, tmp_path / "s.zarr")
    store = open_store(tmp_path / "s.zarr")
    assert not store.complete
    assert not store.array("final")[:].any()
    report = extract(corpus, huge, tmp_path / "s.zarr", allow_overflow=True)
    extract(corpus, huge, tmp_path / "t.zarr", StoreSpec(dtype="float32"))
    exact = open_store(tmp_path / "t.zarr").frames("en/a", "final")
    with np.errstate(over="ignore"):
        expected = int(np.isinf(exact.astype(np.float16)).sum())
    assert report.overflows == expected > 0
    assert int(np.isinf(open_store(tmp_path / "s.zarr").frames("en/a", "final")).sum()) == expected


def test_states_that_are_not_finite_stop_the_run_before_their_unit(
    many: Path, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encode = CpuEncoder.encode

    def broken(self: CpuEncoder, *args: object, **kwargs: object) -> object:
        states = encode(self, *args, **kwargs)  # type: ignore[arg-type]
        states[1][0, 0, 0] = np.nan
        return states

    monkeypatch.setattr(CpuEncoder, "encode", broken)
    with pytest.raises(InputError, match=r"^(en|de)/\d+: the encoder's layer_01 holds values that are not finite"):
        extract(many, tiny_model, tmp_path / "s.zarr", allow_overflow=True)
    assert not list((tmp_path / "s.zarr").glob("units/*"))


def test_devices_are_parsed() -> None:
    assert Device.parse("cpu") == Device("cpu", 0)
    assert Device.parse("cuda") == Device("cuda", 0)
    assert Device.parse("tensorrt:3") == Device("tensorrt", 3)
    for wrong in ("gpu", "cpu:1", "cuda:", "cuda:x", "CUDA", ""):
        with pytest.raises(UsageError, match="unknown device"):
            Device.parse(wrong)


@pytest.mark.skipif(os.path.exists("/proc/driver/nvidia"), reason="this machine has an NVIDIA driver")
@pytest.mark.parametrize("device", ["cuda", "tensorrt"])
def test_a_device_that_is_not_there_is_an_error_not_the_cpu(
    many: Path, tiny_model: Path, tmp_path: Path, device: str
) -> None:
    with pytest.raises(InputError, match=r"(CUDA|Tensorrt)ExecutionProvider.*--device cpu"):
        extract(many, tiny_model, tmp_path / "s.zarr", runtime=Runtime(Device.parse(device)))
    assert not (tmp_path / "s.zarr").exists()


def test_a_failing_graph_run_names_graph_and_shapes(tiny_model: Path) -> None:
    encoder = CpuEncoder(open_model(tiny_model))
    with pytest.raises(InputError, match=r"encoder_cached\.onnx: onnxruntime failed on log_mel \(1, 80, 200\)"):
        encoder._compute("encoder_cached.onnx", ["final"], {"log_mel": np.zeros((1, 80, 200), np.float32)})


def test_a_header_that_claims_hours_costs_no_memory(
    make_corpus: Callable[..., Path], tiny_model: Path, tmp_path: Path
) -> None:
    corpus = make_corpus({"en/good": 1.0})
    soundfile.write(corpus / "en/liar.flac", sound(2.0, 16_000), 16_000)
    data = bytearray((corpus / "en/liar.flac").read_bytes())
    claimed = 16_000 * 3600 * 20  # samples; STREAMINFO keeps their number in the low 36 bits of bytes 18 … 25
    fields = int.from_bytes(data[18:26], "big") >> 36 << 36
    data[18:26] = (fields | claimed).to_bytes(8, "big")
    (corpus / "en/liar.flac").write_bytes(data)
    tracemalloc.start()
    try:
        report = extract(corpus, tiny_model, tmp_path / "s.zarr")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert set(report.failures) == {"en/liar"}
    states = claimed / 320 * 32 * 2 * 5  # bytes of float16 for five outputs of d = 32
    assert peak < states / 5, (peak, states)
    store = open_store(tmp_path / "s.zarr")
    extract(corpus, tiny_model, tmp_path / "t.zarr", StoreSpec("final"))
    np.testing.assert_array_equal(
        store.frames("en/good", "final"), open_store(tmp_path / "t.zarr").frames("en/good", "final")
    )


_PEAK = """
import sys
from voxstrata.engine import Runtime, extract
from voxstrata.store import plan
plan.CHUNK_BYTES = 1 << 16  # a unit is a chunk at the least, and 50 clips are to fill several
runtime = Runtime(threads=1, tokens=1500, unit_megabytes=0.5)
report = extract(sys.argv[1], sys.argv[2], sys.argv[3], runtime=runtime)
assert report.failed == 0
print(report.utterances, next(l for l in open("/proc/self/status") if l.startswith("VmHWM")).split()[1])
"""


@pytest.mark.long  # two processes and 650 recordings
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_peak_memory_does_not_grow_with_the_corpus(
    make_corpus: Callable[..., Path], tiny_model: Path, tmp_path: Path
) -> None:
    peak = {}
    for count in (50, 600):
        # the same 50 lengths over and over: what a run needs is set by its longest window
        corpus = make_corpus({f"en/{i}": 0.2 + i % 50 / 10 for i in range(count)})
        command = [sys.executable, "-c", _PEAK, str(corpus), str(tiny_model), str(tmp_path / f"{count}.zarr")]
        out = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
        assert int(out[0]) == count
        peak[count] = int(out[1])
    assert peak[600] <= 1.1 * peak[50], peak


def test_channels_that_cancel_each_other_are_said_after_the_run(
    tiny_model: Path, make_corpus: Callable[..., Path], tmp_path: Path
) -> None:
    corpus = make_corpus({"en/good": 1.0})
    left = soundfile.read(corpus / "en" / "good.wav")[0]
    soundfile.write(corpus / "en" / "opposite.wav", np.stack([left, -left], axis=1), 16_000)
    said: list[str] = []

    class Listener(Reporter):
        def warn(self, text: str) -> None:
            said.append(text)

    report = extract(corpus, tiny_model, tmp_path / "s.zarr", reporter=Listener())
    assert report.failed == 0
    assert said == [
        "en/opposite.wav: its channels are opposite to each other, and their average is silence; "
        "choose one with --channel 0"
    ]
