"""Recordings of strangers: nothing but the file is read, no more of it than it bears out, and in bounded memory."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np
import pytest
import soundfile

from voxstrata.audio import containers, pyav
from voxstrata.audio.decode import decode, probe
from voxstrata.audio.source import FileSource
from voxstrata.base.errors import AudioError
from voxstrata.corpus import read_corpus

pytest.importorskip("av")

PLAYLISTS = {
    "ffconcat.mka": "ffconcat version 1.0\nfile 'secret.wav'\n",
    "ffconcat-safe.mka": "ffconcat version 1.0\nfile '{secret}'\n",
    "hls.m4a": "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nsecret.wav\n#EXT-X-ENDLIST\n",
    "hls-url.aac": "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nfile://{secret}\n#EXT-X-ENDLIST\n",
    "hls-web.aac": "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nhttp://127.0.0.1:9/x.aac\n#EXT-X-ENDLIST\n",
    "pls.m4a": "[playlist]\nFile1={secret}\nNumberOfEntries=1\n",
    "sdp.m4a": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=audio 5004 RTP/AVP 0\n",
    "dash.mp4": '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static" '
    'mediaPresentationDuration="PT1S"><Period><AdaptationSet mimeType="audio/mp4"><Representation id="a" bandwidth="1">'
    "<BaseURL>secret.wav"
    "</BaseURL></Representation></AdaptationSet></Period></MPD>",
}


@pytest.mark.parametrize("name", PLAYLISTS)
def test_a_playlist_reads_nothing_else(name: str, tmp_path: Path) -> None:
    soundfile.write(tmp_path / "secret.wav", np.full(16_000, 0.25), 16_000)
    (tmp_path / name).write_text(PLAYLISTS[name].format(secret=tmp_path / "secret.wav"))
    with pytest.raises(AudioError, match="not audio"):
        decode(tmp_path / name)


@pytest.mark.parametrize(
    "name", ["concat:secret.wav", "file:secret.wav", "data:audio_wav;base64,UklGRg==", "-", "pipe:0"]
)
def test_names_that_are_protocols_are_names(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    soundfile.write("secret.wav", np.full(16_000, 0.25), 16_000)
    with pytest.raises(AudioError, match="no such file"):
        probe(name)
    Path(name).write_bytes(b"\x1aE\xdf\xa3")  # as it is there, it is what is opened
    with pytest.raises(AudioError, match="not audio"):
        probe(name)


class CountedFile(io.FileIO):
    """Counts what is read of all of them."""

    bytes_read = 0

    def read(self, size: int | None = -1, /) -> bytes:
        data = super().read(size) or b""
        CountedFile.bytes_read += len(data)
        return data


class Counting(FileSource):
    def open(self) -> BinaryIO:
        return cast(BinaryIO, CountedFile(self.path))


@pytest.mark.parametrize("suffix", ["mp3", "wav", "flac", "ogg", "bin"])
def test_a_sparse_file_is_not_read_whole(suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / f"x.{suffix}"
    with path.open("wb") as file:
        file.truncate(8 << 30)
    asked: list[int] = []

    def header(source: FileSource) -> None:
        asked.append(source.size())
        raise AudioError("not audio")

    monkeypatch.setattr("voxstrata.audio.readers.av_header", header)
    monkeypatch.setattr(CountedFile, "bytes_read", 0)
    with pytest.raises(AudioError):
        probe(Counting(path))
    assert 0 < CountedFile.bytes_read < 1 << 28
    with path.open("rb") as file:
        assert containers.sound_start(file, 8 << 30) == 0


def test_padding_before_the_sound_is_still_passed_over(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "x.flac", np.linspace(-0.5, 0.5, 16_000), 16_000)
    (tmp_path / "padded.flac").write_bytes(bytes(3 << 20) + (tmp_path / "x.flac").read_bytes())
    np.testing.assert_array_equal(decode(tmp_path / "padded.flac"), decode(tmp_path / "x.flac"))


def test_ffmpeg_does_not_look_for_sound_in_gigabytes_of_zeros(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The process reads a quarter of a gigabyte without a frame, then takes the file to end."""
    import av

    path = tmp_path / "x.mka"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=16_000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.full((1, 16_000), 500, np.int16), format="s16", layout="mono")
        frame.sample_rate = 16_000
        for packet in [*stream.encode(frame), *stream.encode(None)]:
            container.mux(packet)
    alone = decode(path)
    with path.open("ab") as file:
        file.truncate(64 << 30)  # minutes, where it was read whole
    monkeypatch.setattr(pyav, "HANG_SECONDS", 60)
    np.testing.assert_array_equal(decode(path), alone)


PEAK = """
import sys
from pathlib import Path
from voxstrata.audio.decode import decode_to_slice, probe
from voxstrata.audio.source import recording_of
from voxstrata.base.errors import AudioError
def peak():
    return int(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM"))) / 1024
decode_to_slice(recording_of(sys.argv[1]), probe(sys.argv[1]), None, None)
before = peak()
try:
    decode_to_slice(recording_of(sys.argv[2]), probe(sys.argv[2]), None, None)
except AudioError as error:
    print(error)
print(peak() - before)
"""


def rise(path: Path) -> tuple[float, str]:
    """MiB that the peak of a process rises by while it decodes a file, and what is said of it."""
    if not os.path.exists("/proc/self/status"):
        pytest.skip("peak memory is read from /proc")
    soundfile.write(path.with_name("small.flac"), np.zeros(16_000), 16_000)
    command = [sys.executable, "-c", PEAK, str(path.with_name("small.flac")), str(path)]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    return float(said[-1]), " ".join(said[:-1])


def test_a_flac_bomb_is_refused_in_little_memory(tmp_path: Path) -> None:
    """Of 655,350 Hz, ten minutes of zeros in a header that says one second."""
    path, rate = tmp_path / "bomb.flac", 655_350
    with soundfile.SoundFile(path, "w", rate, 1, "PCM_16", format="FLAC") as file:
        for _ in range(70):
            file.write(np.zeros(rate, np.int16))
    data = bytearray(path.read_bytes())
    data[21:26] = bytes([data[21] & 0xF0]) + rate.to_bytes(4, "big")
    path.write_bytes(data)
    grown, said = rise(path)
    assert "header says 1.00 s, decoding goes on after 62 s" in said
    assert grown < 30


def test_hours_are_decoded_in_little_memory(tmp_path: Path) -> None:
    """Two hours at 8 kHz are 461 MB at 16 kHz."""
    path = tmp_path / "hours.flac"
    with soundfile.SoundFile(path, "w", 8000, 1, "PCM_16", format="FLAC") as file:
        for _ in range(120):
            file.write(np.zeros(60 * 8000, np.int16))
    grown, said = rise(path)
    assert said == ""
    assert grown < 50


def test_a_member_of_a_tar_is_not_read_whole(tmp_path: Path, make_corpus: Callable[..., Path]) -> None:
    import tarfile

    folder = make_corpus({"a": 2.0, "b": 3.0})
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        for name in ("a.wav", "b.wav"):
            tar.add(folder / name, name)
    corpus = read_corpus(tmp_path / "x.tar")
    for row, name in enumerate(("a.wav", "b.wav")):
        recording = corpus.recording(row)
        np.testing.assert_array_equal(decode(recording), decode(folder / name))
        with recording.source.open() as file:  # a view, no copy
            assert isinstance(file, containers.FileView)
            assert file.read() == (folder / name).read_bytes()
