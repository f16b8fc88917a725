"""Promises of probe() and decode(): exact lengths from headers, and damage that is noticed."""

from __future__ import annotations

import math
import os
import socket
import struct
from fractions import Fraction
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from voxstrata.audio.decode import AudioInfo, decode, probe
from voxstrata.audio.info import resampled_length
from voxstrata.base.errors import AudioError

DATA = Path(__file__).parents[2] / "shared" / "data"
Array = npt.NDArray[np.float32]


def noise(samples: int, seed: int = 0) -> Array:
    return (0.1 * np.random.default_rng(seed).standard_normal(samples)).astype(np.float32)


def tone(samples: int, rate: int, hertz: float = 440.0) -> Array:
    return (0.5 * np.sin(2 * np.pi * hertz * np.arange(samples) / rate)).astype(np.float32)


def write_av(path: Path, codec: str, rate: int, signal: Array, **options: str) -> Path:
    av = pytest.importorskip("av")
    with av.open(str(path), "w", options=options) as container:
        stream = container.add_stream(codec, rate=rate)
        stream.layout = "mono"
        name = stream.codec_context.format.name
        data = signal if "flt" in name else (signal * 32767).astype(np.int16)
        frame = av.AudioFrame.from_ndarray(data[None], format=name, layout="mono")
        frame.sample_rate, frame.pts = rate, 0
        for packet in [*stream.encode(frame), *stream.encode(None)]:
            container.mux(packet)
    return path


FORMATS = {
    "pcm16.wav": ("WAV", "PCM_16"),
    "pcm24.wav": ("WAV", "PCM_24"),
    "u8.wav": ("WAV", "PCM_U8"),
    "float.wav": ("WAV", "FLOAT"),
    "ulaw.wav": ("WAV", "ULAW"),
    "adpcm.wav": ("WAV", "IMA_ADPCM"),
    "ex.wav": ("WAVEX", "PCM_16"),
    "rf64.wav": ("RF64", "PCM_16"),
    "x.aiff": ("AIFF", "PCM_16"),
    "x.au": ("AU", "PCM_16"),
    "x.flac": ("FLAC", "PCM_16"),
    "x.ogg": ("OGG", "VORBIS"),
    "x.opus": ("OGG", "OPUS"),
    "x.mp3": ("MP3", "MPEG_LAYER_III"),
}


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("rate", [8_000, 16_000, 48_000])
@pytest.mark.parametrize("channels", [1, 2])
def test_the_header_states_the_decoded_length(tmp_path: Path, name: str, rate: int, channels: int) -> None:
    container, subtype = FORMATS[name]
    path = tmp_path / name
    frames = 12_345
    soundfile.write(path, noise(frames * channels).reshape(frames, channels), rate, subtype, format=container)
    info = probe(path)
    assert (info.source_rate, info.channels) == (rate, channels)
    assert info.size_bytes == path.stat().st_size
    if subtype != "IMA_ADPCM":  # fills its last block
        assert info.source_frames == frames
    assert info.samples == math.ceil(Fraction(info.source_frames * 16_000, rate))
    decoded = decode(path, info)
    assert decoded.dtype == np.float32
    assert decoded.shape == (info.samples,)
    np.testing.assert_array_equal(decoded, decode(path))  # deterministic, and `expected` changes nothing


@settings(max_examples=40, deadline=None)
@given(frames=st.integers(1, 5_000), rate=st.integers(1_000, 200_000))
def test_any_length_at_any_rate_follows_the_ceiling_rule(
    tmp_path_factory: pytest.TempPathFactory, frames: int, rate: int
) -> None:
    path = tmp_path_factory.mktemp("rule") / "x.wav"
    soundfile.write(path, noise(frames), rate, "PCM_16")
    assert probe(path).samples == len(decode(path)) == math.ceil(Fraction(frames * 16_000, rate))


@given(frames=st.integers(0, 2**40), rate=st.integers(1, 10**6))
def test_the_length_rule_is_exact_for_huge_counts(frames: int, rate: int) -> None:
    assert resampled_length(frames, rate) == math.ceil(Fraction(frames) * 16_000 / rate)


@pytest.mark.parametrize("name", ["x.wav", "x.flac"])
def test_16_khz_mono_passes_bit_exact(tmp_path: Path, name: str) -> None:
    values = np.random.default_rng(1).integers(-(2**15), 2**15, 40_000, dtype=np.int16)
    soundfile.write(tmp_path / name, values, 16_000, "PCM_16")
    np.testing.assert_array_equal(decode(tmp_path / name), values.astype(np.float32) / 2**15)


def test_float_files_keep_values_beyond_one(tmp_path: Path) -> None:
    values = 3 * noise(20_000) + 2
    soundfile.write(tmp_path / "x.wav", values, 16_000, "FLOAT")
    np.testing.assert_array_equal(decode(tmp_path / "x.wav"), values)


def test_channels_are_averaged(tmp_path: Path) -> None:
    values = np.stack([noise(20_000, seed) for seed in range(3)], axis=1)
    soundfile.write(tmp_path / "x.wav", values, 16_000, "FLOAT")
    expected = values.astype(np.float64).mean(axis=1)
    np.testing.assert_allclose(decode(tmp_path / "x.wav"), expected, atol=1e-7)


@pytest.mark.parametrize("rate", [8_000, 44_100, 48_000])
def test_resampling_keeps_a_tone_in_place(tmp_path: Path, rate: int) -> None:
    soundfile.write(tmp_path / "x.wav", tone(rate, rate), rate, "FLOAT")
    decoded = decode(tmp_path / "x.wav")
    assert len(decoded) == 16_000
    inner = slice(1_000, 15_000)  # the filter rings at both ends
    np.testing.assert_allclose(decoded[inner], tone(16_000, 16_000)[inner], atol=1e-3)


def test_resampling_lets_nothing_fold_back(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "x.wav", tone(44_100, 44_100, hertz=10_000), 44_100, "FLOAT")
    inner = decode(tmp_path / "x.wav")[1_000:15_000]  # above 8 kHz: would sound at 6 kHz
    assert np.abs(inner).max() < 1e-4


@pytest.mark.parametrize(
    ("name", "codec", "rate"),
    [("x.m4a", "aac", 16_000), ("x.m4a", "aac", 44_100), ("x.mp4", "aac", 8_000), ("x.webm", "libopus", 48_000)],
)
def test_containers_of_pyav_give_the_stated_length(tmp_path: Path, name: str, codec: str, rate: int) -> None:
    path = write_av(tmp_path / name, codec, rate, tone(2 * rate, rate))
    info = probe(path)
    assert info.source_rate == rate
    assert abs(info.samples - 32_000) <= 4096 * 16_000 / rate
    decoded = decode(path, info)
    assert decoded.shape == (info.samples,)
    inner = slice(8_000, 24_000)
    spectrum = np.abs(np.fft.rfft(decoded[inner]))
    assert np.argmax(spectrum) == 440  # one bin per hertz in one second
    assert np.std(decoded[inner]) == pytest.approx(0.5 / np.sqrt(2), rel=0.05)


def test_a_container_without_duration_is_counted(tmp_path: Path) -> None:
    path = write_av(tmp_path / "x.webm", "libopus", 48_000, tone(96_000, 48_000), live="1")
    assert b"\x44\x89" not in path.read_bytes()[:400]  # the Duration element of Matroska
    info = probe(path)
    assert abs(info.source_frames - 96_000) <= 960  # an opus packet
    assert len(decode(path, info)) == info.samples


def test_raw_aac_is_counted_not_guessed_from_the_bit_rate(tmp_path: Path) -> None:
    signal = noise(160_000)
    signal[:100_000] = 0  # FFmpeg extrapolates from the first packets' bit rate
    path = write_av(tmp_path / "x.aac", "aac", 16_000, signal)
    assert abs(probe(path).samples - 160_000) <= 4096
    assert len(decode(path)) == probe(path).samples


def wav_bytes(frames: int = 16_000) -> bytearray:
    pcm = (noise(frames) * 32767).astype("<i2").tobytes()
    form = struct.pack("<4sIHHIIHH", b"fmt ", 16, 1, 1, 16_000, 32_000, 2, 16)
    data = struct.pack("<4sI", b"data", len(pcm)) + pcm
    return bytearray(struct.pack("<4sI4s", b"RIFF", 4 + len(form) + len(data), b"WAVE") + form + data)


@pytest.mark.parametrize("size", [0, 0x7FFFF000, 0x80000000, 0xFFFFFFFF])
def test_a_wav_streamed_without_a_size_is_taken_whole(tmp_path: Path, size: int) -> None:
    data = wav_bytes()
    data[40:44] = struct.pack("<I", size)
    path = tmp_path / "x.wav"
    path.write_bytes(data)
    assert probe(path).samples == 16_000
    np.testing.assert_array_equal(decode(path), np.frombuffer(data[44:], "<i2").astype(np.float32) / 2**15)


@pytest.mark.parametrize(
    "after",
    [
        b"LIST" + struct.pack("<I", 6000) + bytes(6000),
        b"id3 " + struct.pack("<I", 3) + b"abc\0" + b"LIST" + struct.pack("<I", 6000) + bytes(6000),
        b"TAG" + bytes(125),
        bytes(400),
    ],
    ids=["list", "odd chunk", "bare tag", "padding"],
)
def test_what_may_follow_the_samples_of_a_wav_is_no_damage(tmp_path: Path, after: bytes) -> None:
    (tmp_path / "x.wav").write_bytes(bytes(wav_bytes()) + after)
    assert len(decode(tmp_path / "x.wav")) == 16_000


@pytest.mark.parametrize("claimed", [8_000, 32_000])
def test_a_wav_header_wrong_by_two_names_both_lengths(tmp_path: Path, claimed: int) -> None:
    data = wav_bytes()
    data[40:44] = struct.pack("<I", 2 * claimed)
    (tmp_path / "x.wav").write_bytes(data)
    with pytest.raises(AudioError, match=rf"x\.wav: header says {claimed / 16_000:.2f} s, .* holds 1\.00 s"):
        decode(tmp_path / "x.wav")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("pcm16.wav", r"header says 5\.00 s, the file holds 2\.\d\d s"),
        ("rf64.wav", r"header says 5\.00 s, the file holds 2\.\d\d s"),
        ("x.aiff", r"header says 5\.00 s, the file holds 2\.\d\d s"),
        # libsndfile before 1.2.2 says nothing where it breaks off: then the frames that are there are told
        (
            "x.flac",
            r"header says 5\.00 s, (decoding broke off after about|the file holds 2\.\d\d s, of which) [12]\.\d\d s",
        ),
        ("x.mp3", r"header says 5\.00 s, decoding gave 2\.\d\d s"),
        ("x.ogg", "ends inside an Ogg page"),
        ("x.opus", "ends inside an Ogg page"),
    ],
)
def test_a_file_cut_in_half_is_truncated(tmp_path: Path, name: str, message: str) -> None:
    path = tmp_path / name
    container, subtype = FORMATS[name]
    soundfile.write(path, noise(80_000), 16_000, subtype, format=container)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(AudioError, match=rf"{name}: .*{message}"):
        decode(path)


def test_a_cut_mp4_with_its_index_in_front_is_truncated(tmp_path: Path) -> None:
    path = write_av(tmp_path / "x.m4a", "aac", 16_000, noise(80_000), movflags="faststart")
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(AudioError, match=r"header says 5\.0\d s, decoding (gave|broke off after about) [123]\."):
        decode(path)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("rate", [16_000, 8_000])
def test_samples_that_are_no_numbers_are_refused(tmp_path: Path, bad: float, rate: int) -> None:
    values = noise(30_000)
    values[20_000] = bad
    soundfile.write(tmp_path / "x.wav", values, rate, "FLOAT")
    with pytest.raises(AudioError, match="1 of 30000 samples are NaN or infinite"):
        decode(tmp_path / "x.wav")


@pytest.mark.parametrize(("value", "shown"), [(3e38, r"3e\+38"), (-2e10, r"-2e\+10")])
def test_a_sample_no_recorder_writes_is_refused_with_its_place(tmp_path: Path, value: float, shown: str) -> None:
    values = noise(30_000)
    values[20_000] = value  # finite, but its square overflows in the log-mel, or comes near
    soundfile.write(tmp_path / "x.wav", values, 16_000, "FLOAT")
    with pytest.raises(AudioError, match=rf"x\.wav: the sample at 1\.25 s is {shown}, beyond ±1e\+10"):
        decode(tmp_path / "x.wav")


def test_channels_whose_sum_overflows_cost_that_recording_alone(tmp_path: Path) -> None:
    values = np.stack([noise(30_000)] * 2, axis=1)
    values[20_000] = 3e38
    soundfile.write(tmp_path / "x.wav", values, 16_000, "FLOAT")
    with pytest.raises(AudioError, match="1 of 30000 samples are NaN or infinite"):
        decode(tmp_path / "x.wav")


def test_floats_scaled_as_32_bit_integers_pass(tmp_path: Path) -> None:
    values = noise(30_000) * 2**31
    values[0] = -(2.0**31)
    soundfile.write(tmp_path / "x.wav", values, 16_000, "FLOAT")
    np.testing.assert_array_equal(decode(tmp_path / "x.wav"), values)


@pytest.mark.parametrize("call", [probe, decode])
def test_what_is_no_recording_says_so(tmp_path: Path, call: object) -> None:
    assert callable(call)
    cases: dict[str, tuple[bytes, str]] = {
        "empty.wav": (b"", r"is empty \(0 bytes\)"),
        "text.wav": (b"hello world\n" * 500, "not audio"),
        "text.txt": (b"hello world\n" * 500, "not audio"),
        "random.wav": (np.random.default_rng(0).bytes(50_000), "not audio"),
        "random.raw": (np.random.default_rng(0).bytes(50_000), "not audio"),
        "none.wav": (bytes(wav_bytes(0)), "holds no samples"),
    }
    pytest.importorskip("av")
    for name, (content, message) in cases.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(AudioError, match=rf"{name}: .*{message}"):
            call(tmp_path / name)
    with pytest.raises(AudioError, match=r"gone\.wav: no such file"):
        call(tmp_path / "gone.wav")
    (tmp_path / "folder.wav").mkdir()
    with pytest.raises(AudioError, match=r"folder\.wav: is a directory"):
        call(tmp_path / "folder.wav")
    os.mkfifo(tmp_path / "pipe.wav")
    with pytest.raises(AudioError, match=r"pipe\.wav: is not a regular file"):
        call(tmp_path / "pipe.wav")


def test_a_playlist_that_calls_itself_audio_fetches_nothing(tmp_path: Path) -> None:
    pytest.importorskip("av")
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setblocking(False)
        address = f"http://127.0.0.1:{server.getsockname()[1]}/x.ts"
        content = f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{address}\n#EXT-X-ENDLIST\n"
        for name in ("x.wav", "x.m3u8"):
            (tmp_path / name).write_text(content)
            with pytest.raises(AudioError, match="not audio"):
                probe(tmp_path / name)
        with pytest.raises(BlockingIOError):
            server.accept()


@pytest.mark.parametrize("name", ["x.flac", "x.opus", "x.mp3"])
def test_a_compressed_file_of_no_samples_is_refused(tmp_path: Path, name: str) -> None:
    pytest.importorskip("av")
    container, subtype = FORMATS[name]
    soundfile.write(tmp_path / name, np.zeros(0), 16_000, subtype, format=container)
    with pytest.raises(AudioError, match=name):
        probe(tmp_path / name)


@pytest.mark.parametrize("rate", [0, 1, 999, 768_001, 2**31 - 1])
def test_an_absurd_sample_rate_is_refused(tmp_path: Path, rate: int) -> None:
    data = wav_bytes()
    data[24:32] = struct.pack("<II", rate, min(2 * rate, 2**32 - 1))
    (tmp_path / "x.wav").write_bytes(data)
    with pytest.raises(AudioError, match=r"x\.wav: (header gives a sample rate of|not audio)"):
        probe(tmp_path / "x.wav")


def test_an_unreadable_file_names_its_permissions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "x.wav").write_bytes(wav_bytes())

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)  # tests may run as root, whom no permission stops
    with pytest.raises(AudioError, match=r"x\.wav: not readable by this user; change its permissions"):
        probe(tmp_path / "x.wav")


def test_without_pyav_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "av", None)
    (tmp_path / "x.m4a").write_bytes(b"\0\0\0\x20ftypM4A " + bytes(100))
    with pytest.raises(AudioError, match=r"voxstrata\[anyaudio\]"):
        probe(tmp_path / "x.m4a")


def test_a_file_changed_since_it_was_probed_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.wav"
    path.write_bytes(wav_bytes(16_000))
    info = probe(path)
    path.write_bytes(wav_bytes(20_000))
    with pytest.raises(AudioError, match="the file has changed since"):
        decode(path, info)


@pytest.mark.real
@pytest.mark.parametrize("folder", ["assorted", "prompts"])
def test_real_headers_agree_with_what_is_decoded_and_with_the_table(folder: str) -> None:
    table = DATA / folder / f"{folder}.tsv"
    if not table.is_file():
        pytest.skip("shared/data is not here")
    header, *lines = [line.split("\t") for line in table.read_text(encoding="utf-8").splitlines()]
    stated = decoded = 0.0
    for line in lines:
        row = dict(zip(header, line, strict=False))
        path = table.parent / row["path"]
        info: AudioInfo = probe(path)
        assert len(decode(path, info)) == info.samples
        assert info.samples / 16_000 == pytest.approx(float(row["seconds"]), abs=0.0051)
        stated += float(row["seconds"])
        decoded += info.samples / 16_000
    assert decoded == pytest.approx(stated, abs=0.005 * len(lines))
