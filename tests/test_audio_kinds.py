"""Kinds of fault that strangers' files have: decoded whole, or refused with the reason, never stored in part."""

from __future__ import annotations

import io
import re
import struct
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from test_audio import DATA, noise, tone, wav_bytes

from voxstrata.audio.decode import decode, probe
from voxstrata.base.errors import AudioError, error_text

FAULTS = DATA / "faults"
ID3 = b"ID3\x04\0\0\0\0\x10\0" + bytes(2048)


def written(frames: int, rate: int, channels: int, container: str, subtype: str | None = None) -> bytes:
    """A tone as soundfile writes it."""
    file = io.BytesIO()
    soundfile.write(file, np.repeat(tone(frames, rate)[:, None], channels, 1), rate, subtype, format=container)
    return file.getvalue()


def muxed(
    path: Path,
    codec: str,
    rate: int,
    *,
    seconds: float = 1.0,
    start: float = 0.0,
    video: float = 0.0,
    channels: int = 1,
) -> Path:
    """A tone that begins `start` seconds late, beside a video of so many seconds."""
    av = pytest.importorskip("av")
    layout = {1: "mono", 2: "stereo"}[channels]
    with av.open(str(path), "w") as file:
        if video:
            pictures = file.add_stream("libvpx" if path.suffix == ".webm" else "mpeg4", rate=10)
            pictures.width = pictures.height = 32
            pictures.pix_fmt = "yuv420p"
        stream = file.add_stream(codec, rate=rate, layout=layout)
        stream.codec_context.open()
        context = stream.codec_context
        resampler = av.AudioResampler(context.format.name, layout, rate, context.frame_size or 1024)
        frame = av.AudioFrame.from_ndarray(tone(round(seconds * rate), rate)[None], "flt", "mono")
        frame.sample_rate, frame.pts = rate, 0
        packets: list[Any] = []
        for part in [*resampler.resample(frame), *resampler.resample(None)]:
            part.pts += round(start * rate)
            packets += stream.encode(part)
        packets += stream.encode(None)
        for i in range(round(10 * video)):
            picture = av.VideoFrame.from_ndarray(np.full((32, 32, 3), i, np.uint8), "rgb24")
            picture.pts = i
            packets += pictures.encode(picture)
        packets += pictures.encode(None) if video else []
        for packet in sorted(packets, key=lambda packet: (packet.dts or 0) * packet.time_base):
            file.mux(packet)
    return path


def put(path: Path, *parts: bytes) -> Path:
    path.write_bytes(b"".join(parts))
    return path


# --- decoders that stop early ---


def flac_parts(data: bytes, claimed: int | None = None) -> tuple[bytes, bytes]:
    """What comes before the frames, with another number of samples, and the frames."""
    at, last = 4, False
    while not last:
        last = bool(data[at] & 0x80)
        at += 4 + int.from_bytes(data[at + 1 : at + 4], "big")
    head = bytearray(data[:at])
    if claimed is not None:
        (word,) = struct.unpack(">Q", head[18:26])
        head[18:26] = struct.pack(">Q", (word >> 36 << 36) | claimed)
    return bytes(head), data[at:]


@pytest.mark.parametrize(
    ("rate", "channels", "subtype", "whole"),
    [(48_000, 1, "PCM_16", "2.00"), (44_100, 2, "PCM_16", "2.00"), (44_100, 1, "PCM_24", "2.00")],
)
@pytest.mark.parametrize("as_file", [False, True])
def test_a_flac_that_changes_midway_names_both_lengths(
    tmp_path: Path, rate: int, channels: int, subtype: str, whole: str, as_file: bool
) -> None:
    head, frames = flac_parts(written(44_100, 44_100, 1, "FLAC"), 44_100 + rate)
    after = written(rate, rate, channels, "FLAC", subtype)
    path = put(tmp_path / "x.flac", head, frames, after if as_file else flac_parts(after)[1])
    with pytest.raises(AudioError, match=rf"format changes midway: of {whole} s the first 1\.00 s are at 44100"):
        decode(path)


def test_a_flac_after_another_is_not_dropped(tmp_path: Path) -> None:
    path = put(tmp_path / "x.flac", 2 * written(44_100, 44_100, 1, "FLAC"))
    with pytest.raises(AudioError, match=r"header says 1\.00 s, the file holds 2\.00 s, of which 1\.00 s were decoded"):
        decode(path)


@pytest.mark.parametrize("stray", [b"\xff\xf8\xc9", b"\xff\xf9\x19\x00", b"\xff\xf8\xc9\x08\x80"])
def test_a_flac_whose_last_bytes_begin_like_a_frame_is_decoded(tmp_path: Path, stray: bytes) -> None:
    whole = written(16_000, 16_000, 1, "FLAC")
    (tmp_path / "whole.flac").write_bytes(whole)
    (tmp_path / "x.flac").write_bytes(whole + stray)
    np.testing.assert_array_equal(decode(tmp_path / "x.flac"), decode(tmp_path / "whole.flac"))


@pytest.mark.parametrize("first", [(44_100, 1), (44_100, 2), (16_000, 1)])
@pytest.mark.parametrize("then", [(48_000, 1), (22_050, 1), (44_100, 2), (44_100, 1)])
@pytest.mark.parametrize("counted", [True, False])
def test_an_mp3_that_changes_midway_names_both_lengths(
    tmp_path: Path, first: tuple[int, int], then: tuple[int, int], counted: bool
) -> None:
    if first == then:
        return
    parts = [written(rate, rate, channels, "MP3") for rate, channels in (first, then)]
    if not counted:
        parts = [part.replace(b"Xing", b"xxxx").replace(b"Info", b"xxxx") for part in parts]
    path = put(tmp_path / "x.mp3", *parts)
    with pytest.raises(AudioError, match=rf"changes midway: of 2\.[12]\d s the first 1\.[01]\d s are at {first[0]}"):
        decode(path)


@pytest.mark.parametrize("then", [(48_000, 1), (44_100, 2)])
def test_a_raw_aac_that_changes_midway_names_both_lengths(tmp_path: Path, then: tuple[int, int]) -> None:
    parts = [
        muxed(tmp_path / "part.aac", "aac", rate, channels=channels).read_bytes()
        for rate, channels in ((44_100, 1), then)
    ]
    path = put(tmp_path / "x.aac", *parts)
    with pytest.raises(AudioError, match=r"midway: of 2\.0\d s the first 1\.0\d s are at 44100 Hz with 1 channel;"):
        probe(path)


@pytest.mark.parametrize("second", ["file", "chunk"])
def test_a_second_riff_or_data_chunk_is_not_dropped(tmp_path: Path, second: str) -> None:
    data = bytes(wav_bytes())
    path = put(tmp_path / "x.wav", data, data if second == "file" else data[36:])
    with pytest.raises(AudioError, match=r"x\.wav: header says 32000 bytes of samples, the file holds 640\d\d"):
        probe(path)


# --- a container's length ---


@pytest.mark.parametrize(
    ("name", "codec", "rate"),
    [
        ("x.webm", "libopus", 48_000),
        ("x.mkv", "aac", 16_000),
        ("x.mp4", "aac", 16_000),
        ("x.avi", "libmp3lame", 44_100),
    ],
)
@pytest.mark.parametrize(("start", "video"), [(0, 3), (2, 0), (2, 3)])
def test_the_audio_is_as_long_as_itself(
    tmp_path: Path, name: str, codec: str, rate: int, start: float, video: float
) -> None:
    path = muxed(tmp_path / name, codec, rate, start=start, video=video)
    info = probe(path)
    assert info.source_frames / rate == pytest.approx(1, abs=0.07)  # an AAC frame is 64 ms
    assert np.std(decode(path, info)) == pytest.approx(0.5 / np.sqrt(2), rel=0.08)  # with an encoder's delay


@pytest.mark.parametrize("flags", ["frag_keyframe+empty_moov", "dash"])
def test_an_mp4_in_fragments_is_decoded(tmp_path: Path, flags: str) -> None:
    av = pytest.importorskip("av")
    whole = muxed(tmp_path / "whole.m4a", "aac", 16_000, seconds=5)
    with av.open(str(whole)) as source, av.open(str(tmp_path / "x.mp4"), "w", options={"movflags": flags}) as target:
        stream = target.add_stream_from_template(source.streams.audio[0])
        for packet in source.demux(audio=0):
            if packet.dts is not None:
                packet.stream = stream
                target.mux(packet)
    assert len(decode(tmp_path / "x.mp4")) == pytest.approx(80_000, abs=1024)


# --- junk before the first frame ---


@pytest.mark.parametrize("junk", [bytes(5000), 2 * ID3, ID3 + bytes(999)], ids=["zeros", "two tags", "tag and zeros"])
@pytest.mark.parametrize(
    ("container", "subtype"), [("MP3", None), ("FLAC", None), ("WAV", "PCM_16"), ("OGG", "VORBIS")]
)
@pytest.mark.parametrize("counted", [True, False])
def test_what_precedes_the_sound_changes_nothing(
    tmp_path: Path, junk: bytes, container: str, subtype: str | None, counted: bool
) -> None:
    data = written(44_100, 44_100, 1, container, subtype)
    if not counted:
        data = data.replace(b"Xing", b"xxxx").replace(b"Info", b"xxxx")
    plain, behind = put(tmp_path / "plain", data), put(tmp_path / "behind", junk, data)
    assert probe(behind).samples == probe(plain).samples
    np.testing.assert_array_equal(decode(behind), decode(plain))


@pytest.mark.parametrize(("name", "rest"), [("x.mp3", 300), ("x.aac", 200)])
def test_a_stream_that_begins_inside_a_frame_is_decoded(tmp_path: Path, name: str, rest: int) -> None:
    pytest.importorskip("av")
    if name == "x.aac":
        data = muxed(tmp_path / "whole.aac", "aac", 44_100).read_bytes()
    else:
        data = written(44_100, 44_100, 1, "MP3")
    path = put(tmp_path / name, data[rest:])
    assert len(decode(path)) == pytest.approx(16_000, abs=1_300)  # of 26 or 23 ms a frame, the first is lost


def test_failures_hold_no_addresses(tmp_path: Path) -> None:
    assert error_text(ValueError(f"no {object()} here")) == "ValueError: no <object object> here"
    for i in range(4):
        path = put(tmp_path / f"{i}.mp3", bytes(i * 100) + b"\xff\xfb\x90" + np.random.default_rng(i).bytes(3000))
        with pytest.raises(AudioError) as raised:
            decode(path)
        assert not re.search("0x[0-9a-f]{6}", str(raised.value))


# --- codecs ---


@pytest.mark.parametrize("rate", [8_000, 16_000, 44_100])
@pytest.mark.parametrize(("codec", "frame"), [("libmp3lame", None), ("adpcm_ms", 1024), ("adpcm_ima_wav", 1024)])
def test_a_lossy_codec_in_a_wav_is_decoded(tmp_path: Path, rate: int, codec: str, frame: int | None) -> None:
    path = muxed(tmp_path / "x.wav", codec, rate)
    decoded = decode(path)
    mpeg = 1152 if rate >= 32_000 else 576
    longest = 4 * mpeg if frame is None else 2 * frame  # the encoder's delay, the rest of a frame, the tolerance
    assert 0 <= len(decoded) - 16_000 <= longest * 16_000 / rate


def test_a_missing_end_is_no_more_than_two_frames_of_the_codec(tmp_path: Path) -> None:
    """4096 samples were half a second at 8 kHz, filled with zeros."""
    data = bytearray(written(40_000, 8_000, 1, "MP3"))
    at = max(data.find(b"Xing"), data.find(b"Info")) + 8
    count = int.from_bytes(data[at : at + 4], "big")
    data[at : at + 4] = struct.pack(">I", count + 4)  # of 72 ms each
    path = put(tmp_path / "x.mp3", bytes(data))
    with pytest.raises(AudioError, match=r"header says 5\.\d\d s, decoding gave 5\.0\d s"):
        decode(path)


@pytest.mark.parametrize(("tag", "named"), [(b"ac-4", "ac4"), (b"mha1", "mha1"), (b"zzzz", "zzzz")])
def test_a_codec_without_a_decoder_is_named(tmp_path: Path, tag: bytes, named: str) -> None:
    data = muxed(tmp_path / "whole.m4a", "aac", 16_000).read_bytes()
    path = put(tmp_path / "x.m4a", data.replace(b"mp4a", tag).replace(b"esds", b"dac4"))
    with pytest.raises(AudioError, match=rf"x\.m4a: codec {named}\b.* cannot be decoded here; convert it"):
        probe(path)


def test_a_48_bit_wav_cannot_be_decoded_here(tmp_path: Path) -> None:
    pytest.importorskip("av")
    data = wav_bytes(15_999)
    data[28:36] = struct.pack("<IHH", 96_000, 6, 48)
    with pytest.raises(AudioError, match=r"x\.wav: codec .* cannot be decoded here"):
        probe(put(tmp_path / "x.wav", bytes(data)))


# --- length and memory ---


def test_a_header_far_too_short_does_not_decide_what_is_held(tmp_path: Path) -> None:
    """Five minutes behind a header of one second: decoding stops long before its end."""
    head, frames = flac_parts(written(16_000 * 300, 16_000, 1, "FLAC"), 16_000)
    path = put(tmp_path / "x.flac", head, frames)
    with pytest.raises(AudioError, match=r"header says 1\.00 s, decoding goes on after 6[0-9] s"):
        decode(path)


@pytest.mark.parametrize("rate", [8_000, 44_100, 96_000])
def test_resampling_by_blocks_is_that_of_the_whole(tmp_path: Path, rate: int) -> None:
    import soxr

    values = noise(3 * rate + 77)
    soundfile.write(tmp_path / "x.wav", values, rate, "FLOAT")
    whole = soxr.resample(values, rate, 16_000, quality="HQ")
    decoded = decode(tmp_path / "x.wav")
    np.testing.assert_array_equal(decoded[: len(whole)], whole[: len(decoded)])


# --- channels ---


@pytest.mark.parametrize(("second", "said"), [(-1.0, True), (-0.99, True), (-0.5, False), (0.0, False), (1.0, False)])
def test_channels_that_cancel_each_other_are_said(tmp_path: Path, second: float, said: bool) -> None:
    values = np.stack([noise(30_000), second * noise(30_000)], axis=1)
    soundfile.write(tmp_path / "x.wav", values, 16_000, "FLOAT")
    notices: list[str] = []
    decode(tmp_path / "x.wav", notices=notices)
    assert bool(notices) == said
    assert all(re.search(r"x\.wav: its channels are opposite .*--channel 0", text) for text in notices)


def test_silence_in_all_channels_is_not_called_opposite(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "x.wav", np.zeros((30_000, 2)), 16_000)
    notices: list[str] = []
    decode(tmp_path / "x.wav", notices=notices)
    assert notices == []


# --- the small inputs that were found ---


@pytest.mark.parametrize(
    ("name", "samples"),
    [
        ("01_eight_channels/aac71.m4a", 8_000),
        ("01_eight_channels/pcm8.mka", 4_800),
        ("03_mp3_leading_junk/lead_zeros.mp3", None),
        ("04_container_longer_than_audio/video_3s_audio_1s.webm", 16_000),
        ("04_container_longer_than_audio/control.mp4", 16_000),
        ("05_mp3_in_wav/x.wav", None),
        ("09_flac_two_id3/two_id3.flac", 4_800),
    ],
)
def test_found_files_are_decoded(name: str, samples: int | None) -> None:
    path = FAULTS / name
    if not path.is_file():
        pytest.skip(f"{path} is absent")
    decoded = decode(path)
    assert samples in (None, len(decoded))
    assert np.std(decoded) > 0.05


def test_fuzzed_recordings_cost_themselves_alone(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("av")
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "benchmarks"))
    import fuzz

    monkeypatch.setattr(sys, "argv", ["fuzz.py", "--seeds", "7", "--count", "100", "--files", "100"])
    assert fuzz.main() == 0
    printed = capsys.readouterr().out
    assert re.search(r"^100 damaged files of 4\d kinds", printed)
    assert re.search(r"^ +\d+  decoded$", printed, re.M)
    assert "error: " not in printed
