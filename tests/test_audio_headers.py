"""Headers that lie and files that end early or go on: found out where the format allows, and nothing sound refused."""

from __future__ import annotations

import io
import struct
from pathlib import Path

import numpy as np
import pytest
import soundfile
from test_audio import noise

from voxstrata.audio.containers import ogg_streams
from voxstrata.audio.decode import decode, probe
from voxstrata.base.errors import AudioError

TAILS = {
    "ID3v1 tag": b"TAG" + b"a title".ljust(125, b"\0"),
    "newline": b"\n",
    "zero": b"\0",
    "padding": bytes(4096),
    "noise": np.random.default_rng(3).bytes(3000),
}


# --- flac ---


def flac_bytes(path: Path, frames: int = 16_000, claimed: int | None = None) -> bytes:
    soundfile.write(path, noise(frames), 16_000, "PCM_16", format="FLAC")
    data = bytearray(path.read_bytes())
    if claimed is not None:  # the low 36 bits of bytes 18 … 25
        (word,) = struct.unpack(">Q", data[18:26])
        data[18:26] = struct.pack(">Q", (word >> 36 << 36) | claimed)
    return bytes(data)


@pytest.mark.parametrize("tail", TAILS)
@pytest.mark.parametrize("frames", [16_000, 16_384, 40_000])
def test_what_follows_the_last_flac_frame_is_no_damage(tmp_path: Path, tail: str, frames: int) -> None:
    path = tmp_path / "x.flac"
    data = flac_bytes(path, frames)
    sound = decode(path)
    assert len(sound) == frames
    path.write_bytes(data + TAILS[tail])
    np.testing.assert_array_equal(decode(path), sound)


def test_a_flac_streamed_without_a_length_is_counted(tmp_path: Path) -> None:
    path = tmp_path / "x.flac"
    path.write_bytes(flac_bytes(path, claimed=0))
    assert probe(path).samples == len(decode(path)) == 16_000


@pytest.mark.parametrize("claimed", [8_000, 32_000])
def test_a_flac_header_wrong_by_two_names_both_lengths(tmp_path: Path, claimed: int) -> None:
    path = tmp_path / "x.flac"
    path.write_bytes(flac_bytes(path, claimed=claimed))
    expected = probe(path)  # cheap, so it believes the header
    assert expected.samples == claimed
    message = rf"x\.flac: header says {claimed / 16_000:.2f} s, decoding gave 1\.00 s: truncated or damaged"
    with pytest.raises(AudioError, match=message):
        decode(path, expected)
    with pytest.raises(AudioError, match=message):
        decode(path)


def test_a_flac_that_claims_days_costs_no_memory(tmp_path: Path) -> None:
    path = tmp_path / "x.flac"
    path.write_bytes(flac_bytes(path, claimed=2**36 - 1))
    with pytest.raises(AudioError, match=r"decoding gave 1\.00 s"):
        decode(path)


def test_a_damaged_flac_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.flac"
    data = bytearray(flac_bytes(path, frames=160_000))
    data[len(data) // 2] ^= 0xFF
    path.write_bytes(data)
    with pytest.raises(AudioError, match=r"decoding broke off after about [45]\.\d\d s"):
        decode(path)


# --- mp3 ---


def mp3_bytes(path: Path, rate: int = 16_000, seconds: int = 10, mode: str = "VARIABLE") -> tuple[bytes, int, int]:
    """A noise as mp3; where its Xing or Info header keeps the number of MPEG frames, and that number."""
    soundfile.write(path, noise(seconds * rate), rate, format="MP3", bitrate_mode=mode)
    data = path.read_bytes()
    at = max(data.find(b"Xing", 0, 100), data.find(b"Info", 0, 100)) + 8
    return data, at, int.from_bytes(data[at : at + 4])


@pytest.mark.parametrize("rate", [8_000, 16_000, 44_100])  # MPEG 2.5, 2 and 1
@pytest.mark.parametrize("mode", ["CONSTANT", "VARIABLE"])
@pytest.mark.parametrize("factor", [0.5, 0.9, 2])
def test_an_mp3_header_that_counts_wrong_is_found_out(tmp_path: Path, rate: int, mode: str, factor: float) -> None:
    path = tmp_path / "x.mp3"
    data, at, frames = mp3_bytes(path, rate, mode=mode)
    assert decode(path).shape == (160_000,)
    path.write_bytes(data[:at] + struct.pack(">I", int(factor * frames)) + data[at + 4 :])
    expected = probe(path)  # cheap, so it believes the header
    assert expected.samples == pytest.approx(factor * 160_000, abs=4096)
    stated = 10 * factor
    pattern = rf"x\.mp3: header says ({stated - 0.1:.0f}|{stated:.0f})\.\d\d s, .*(holds|gave) 10\.\d\d s"
    with pytest.raises(AudioError, match=pattern):
        decode(path, expected)


def test_an_mp3_appended_to_another_is_not_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "x.mp3"
    data, _, _ = mp3_bytes(path)
    path.write_bytes(data + data)
    with pytest.raises(AudioError, match=r"header says 10\.\d\d s, the file holds 20\.\d\d s"):
        decode(path)


@pytest.mark.parametrize("tail", TAILS)
def test_what_follows_the_last_mp3_frame_is_no_damage(tmp_path: Path, tail: str) -> None:
    path = tmp_path / "x.mp3"
    data, _, _ = mp3_bytes(path)
    sound = decode(path)
    path.write_bytes(b"ID3\x04\0\0\0\0\x10\0" + bytes(2048) + data + TAILS[tail])
    np.testing.assert_array_equal(decode(path), sound)


def test_the_silence_an_mp3_encoder_adds_is_cut_off(tmp_path: Path) -> None:
    signal = np.zeros(48_000, np.float32)
    signal[24_000] = 1
    soundfile.write(tmp_path / "x.mp3", signal, 16_000, format="MP3")
    decoded = decode(tmp_path / "x.mp3")
    assert len(decoded) == 48_000  # neither the encoder's delay nor the padding of the last frame
    assert np.argmax(np.abs(decoded)) == 24_000


def test_an_mp3_whose_header_counts_nothing_is_counted(tmp_path: Path) -> None:
    path = tmp_path / "x.mp3"
    data, at, _ = mp3_bytes(path)
    path.write_bytes(data[: at - 4] + bytes(4) + data[at:])  # flags: no field follows
    assert probe(path).samples == pytest.approx(160_000, abs=4096)
    assert len(decode(path)) == probe(path).samples


def test_an_mp3_without_a_length_header_is_counted(tmp_path: Path) -> None:
    av = pytest.importorskip("av")
    signal = noise(160_000)
    signal[:80_000] *= 1e-3
    soundfile.write(tmp_path / "x.mp3", signal, 16_000, bitrate_mode="VARIABLE", compression_level=0.3)
    with av.open(str(tmp_path / "x.mp3")) as container:  # the packets alone, without the Xing frame
        packets = b"".join(bytes(packet) for packet in container.demux(audio=0))
    bare = tmp_path / "bare.mp3"
    bare.write_bytes(packets)
    assert soundfile.info(bare).frames < 120_000  # what libsndfile believes, and where it would stop
    info = probe(bare)
    assert abs(info.samples - 160_000) <= 4096
    assert np.std(decode(bare, info)[100_000:150_000]) == pytest.approx(0.1, rel=0.1)


# --- ogg ---


@pytest.mark.parametrize("subtype", ["VORBIS", "OPUS"])
def test_chained_ogg_streams_are_refused_not_cut_off(tmp_path: Path, subtype: str) -> None:
    path = tmp_path / "x.ogg"
    soundfile.write(path, noise(48_000), 16_000, subtype, format="OGG")
    data = path.read_bytes()
    assert len(decode(path)) == 48_000
    path.write_bytes(3 * data)
    with pytest.raises(AudioError, match=r"x\.ogg: 3 Ogg streams one after another"):
        decode(path)


def test_ogg_streams_that_play_together_are_one(tmp_path: Path) -> None:
    """A video's streams all begin before the first goes on; here two tracks, page by page."""
    soundfile.write(tmp_path / "x.opus", noise(48_000), 16_000, "OPUS", format="OGG")
    data = (tmp_path / "x.opus").read_bytes()
    begins = [i for i in range(len(data)) if data[i : i + 4] == b"OggS"]
    pages = [data[i:j] for i, j in zip(begins, [*begins[1:], len(data)], strict=True)]
    assert ogg_streams(io.BytesIO(data)) == 1
    assert ogg_streams(io.BytesIO(b"".join(page + page for page in pages))) == 1
    assert ogg_streams(io.BytesIO(b"".join(page + page for page in pages) + data)) == 2


# --- containers that state how many bytes they hold ---

SIZED = {
    "x.au": ("AU", "PCM_16", "BIG"),
    "law.au": ("AU", "ULAW", "BIG"),
    "little.au": ("AU", "PCM_16", "LITTLE"),
    "x.w64": ("W64", "PCM_16", "FILE"),
    "x.sph": ("NIST", "PCM_16", "FILE"),
    "law.sph": ("NIST", "ULAW", "FILE"),
    "x.caf": ("CAF", "PCM_16", "FILE"),
}


@pytest.mark.parametrize("name", SIZED)
def test_a_container_cut_in_half_is_truncated(tmp_path: Path, name: str) -> None:
    container, subtype, endian = SIZED[name]
    path = tmp_path / name
    soundfile.write(path, noise(80_000).reshape(40_000, 2), 16_000, subtype, endian, container)
    assert len(decode(path)) == 40_000
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(AudioError, match=rf"{name}: .*truncated"):
        decode(path)


@pytest.mark.parametrize("name", [name for name in SIZED if name != "x.caf"])  # chunks may follow CAF's samples
def test_a_container_that_goes_on_after_its_stated_size_is_refused(tmp_path: Path, name: str) -> None:
    container, subtype, endian = SIZED[name]
    path = tmp_path / name
    soundfile.write(path, noise(80_000), 16_000, subtype, endian, container)
    path.write_bytes(path.read_bytes() + bytes(40_000))
    with pytest.raises(AudioError, match=rf"{name}: header says \d+ bytes, the file has \d+"):
        probe(path)


def test_an_au_or_caf_that_leaves_its_size_open_is_taken_whole(tmp_path: Path) -> None:
    values = (noise(16_000) * 32767).astype(np.int16)
    soundfile.write(tmp_path / "x.au", values, 16_000, "PCM_16", "BIG", "AU")
    data = bytearray((tmp_path / "x.au").read_bytes())
    data[8:12] = b"\xff" * 4
    (tmp_path / "x.au").write_bytes(data)
    np.testing.assert_array_equal(decode(tmp_path / "x.au"), values / np.float32(2**15))
    pytest.importorskip("av")
    soundfile.write(tmp_path / "x.caf", values, 16_000, "PCM_16", format="CAF")
    data = bytearray((tmp_path / "x.caf").read_bytes())
    at = data.index(b"data")
    data[at + 4 : at + 12] = b"\xff" * 8
    (tmp_path / "x.caf").write_bytes(data)
    assert len(decode(tmp_path / "x.caf")) == 16_000
