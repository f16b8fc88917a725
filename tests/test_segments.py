"""Promises of segments: a stretch of a long file gives what a file cut there gives, and the file is read about once."""

from __future__ import annotations

import io
import math
import re
import signal
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pyarrow as pa
import pytest
import soundfile
import soxr
from conftest import sound
from kills import committed, contents, run
from numpy.typing import NDArray
from test_audio import write_av

from voxstrata.audio import segments as module
from voxstrata.audio.decode import decode, probe
from voxstrata.audio.info import AudioInfo
from voxstrata.audio.segments import SegmentReader
from voxstrata.audio.source import FileSource, Recording, Source
from voxstrata.base.errors import AudioError
from voxstrata.corpus import Corpus, probe_corpus
from voxstrata.corpus.table import Pack
from voxstrata.engine import Runtime, extract
from voxstrata.store import StoreSpec, open_store

Times = Sequence[tuple[float, float]]  # offset and duration, seconds


def read_segment(reader: SegmentReader, source: Source, info: AudioInfo) -> NDArray[np.float32]:
    """The average of the channels at the rate of the file."""
    return np.concatenate([block.mean(axis=1, dtype=np.float32) for block in reader.blocks(source, info)])


def segment(path: Path, offset: float | None, duration: float | None = None, channel: int | None = None) -> Recording:
    return Recording(FileSource(path), offset, duration, channel)


def corpus_of(root: Path, rows: Sequence[tuple[str, float | None, float | None]], **columns: list) -> Corpus:
    """(path, offset, duration) of each row."""
    paths, offsets, durations = zip(*rows, strict=True)
    ids = [f"{i:05}" for i in range(len(rows))]
    table = {"id": ids, "path": paths, "offset": pa.array(offsets, pa.float64()), "duration": durations, **columns}
    return Corpus(root, pa.table({"language": ["en"] * len(rows)} | table))


def scattered(seconds: float, count: int, seed: int = 0) -> Times:
    """Segments of 0.05 … 6 s in no order, overlapping, the very ends of the file among them."""
    rng = np.random.default_rng(seed)
    found = [(float(a), float(rng.uniform(0.05, 6))) for a in rng.uniform(0, seconds - 6, count)]
    return [*found, (0.0, 1.03), (seconds - 1.0001, 1.0001)]


# --- which samples ---


def test_the_segments_of_the_found_manifest_are_two_seconds_each(shared: Path) -> None:
    path = shared / "faults" / "07_segments" / "long.wav"
    whole, rate = soundfile.read(path, dtype="float32")
    for begin in (0, 20):
        expected = soxr.resample(whole[begin * rate : (begin + 2) * rate], rate, 16_000, quality="HQ")
        assert probe(segment(path, begin, 2)).samples == 32_000
        np.testing.assert_array_equal(decode(segment(path, begin, 2)), expected)


WRITTEN = {  # by file name: container and subtype
    "pcm16.wav": ("WAV", "PCM_16"),
    "float.wav": ("WAV", "FLOAT"),
    "ulaw.wav": ("WAV", "ULAW"),
    "ima.wav": ("WAV", "IMA_ADPCM"),
    "ms.wav": ("WAV", "MS_ADPCM"),
    "gsm.wav": ("WAV", "GSM610"),
    "g721.au": ("AU", "G721_32"),
    "pcm24.aiff": ("AIFF", "PCM_24"),
    "dwvw.aiff": ("AIFF", "DWVW_16"),
    "alac.caf": ("CAF", "ALAC_16"),
    "x.sph": ("NIST", "PCM_16"),
    "x.flac": ("FLAC", "PCM_16"),
    "x.ogg": ("OGG", "VORBIS"),
    "x.opus": ("OGG", "OPUS"),
    "cbr.mp3": ("MP3", "MPEG_LAYER_III"),
}
BY_OTHER_MEANS = ("vbr.mp3", "bare.mp3", "unknown.flac", "x.m4a", "live.webm")
# samples, blocks of samples, frames, pages of Ogg, frames without a table, FFmpeg
ONE_OF_A_KIND = ("pcm16.wav", "ima.wav", "x.flac", "x.opus", "vbr.mp3", "x.m4a")


@pytest.fixture(scope="module")
def long_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A minute of sound at 16 kHz in every form."""
    av = pytest.importorskip("av")
    folder, x = tmp_path_factory.mktemp("long"), sound(60, 3)
    for name, (container, subtype) in WRITTEN.items():
        soundfile.write(folder / name, x, 16_000, subtype, format=container)
    soundfile.write(folder / "vbr.mp3", x, 16_000, bitrate_mode="VARIABLE", compression_level=0.5)
    with av.open(str(folder / "vbr.mp3")) as container:  # the packets alone, without the Xing frame
        (folder / "bare.mp3").write_bytes(b"".join(bytes(packet) for packet in container.demux(audio=0)))
    data = bytearray((folder / "x.flac").read_bytes())
    data[21:26] = bytes([data[21] & 0xF0, 0, 0, 0, 0])  # the number of samples in STREAMINFO: unknown
    (folder / "unknown.flac").write_bytes(data)
    write_av(folder / "x.m4a", "aac", 16_000, x)
    write_av(folder / "live.webm", "libopus", 48_000, np.repeat(x, 3), live="1")
    return folder


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of half a second of 16 kHz mono, and stretches of five seconds of Ogg: many in a minute."""
    monkeypatch.setattr(module, "_BLOCK_VALUES", 1 << 13)
    monkeypatch.setattr(module, "_OGG_STRETCH_SECONDS", 5)


@pytest.mark.parametrize(
    "name", [n if n in ONE_OF_A_KIND else pytest.param(n, marks=pytest.mark.long) for n in (*WRITTEN, *BY_OTHER_MEANS)]
)
def test_a_segment_is_to_the_bit_that_stretch_of_the_whole_decoded(
    long_files: Path, small_blocks: None, name: str
) -> None:
    """In any order, by one reader for all or by one for each."""
    path = long_files / name
    rate = 48_000 if name == "live.webm" else 16_000
    whole = read_whole(path)
    with SegmentReader() as reader:
        for n, (offset, duration) in enumerate(scattered(60, 14)):
            recording = segment(path, offset, duration)
            info = probe(recording)
            cut = whole[round(offset * rate) : round((offset + duration) * rate)]
            expected = cut if rate == 16_000 else soxr.resample(cut, rate, 16_000, quality="HQ")
            for found in (decode(recording, info, reader), *([] if n % 5 else [decode(recording)])):
                assert len(found) == math.ceil(len(cut) * 16_000 / rate)
                np.testing.assert_array_equal(found[: len(expected)], expected, err_msg=f"{offset} {duration}")


def read_whole(path: Path) -> np.ndarray:
    """All samples of the first channel, read front to back by the library that knows the format."""
    if path.suffix in (".m4a", ".webm"):
        import av

        with av.open(str(path)) as container:
            return np.concatenate([frame.to_ndarray()[0] for frame in container.decode(audio=0)])
    if path.name == "bare.mp3":  # libsndfile guesses its length, and stops there
        return decode(path)
    found = []
    with soundfile.SoundFile(path) as file:
        file.seekable = lambda: False  # soundfile seeks after each read, which fails in some formats
        while len(block := file.read(10_000, dtype="float32")):
            found.append(block)
    return np.concatenate(found)


@pytest.mark.parametrize("name", ["x.ogg", "x.opus"])
def test_ogg_decoded_from_anywhere_is_to_the_bit_what_it_is_from_the_front(
    long_files: Path, small_blocks: None, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """By an open file that has been elsewhere before, at every block."""
    monkeypatch.setattr(module, "_OGG_STRETCH_SECONDS", 0)
    monkeypatch.setattr(module, "_CACHED_BYTES", 0)
    whole, recording = read_whole(long_files / name), segment(long_files / name, 0.5, 1)
    info, source = probe(recording), recording.source
    with SegmentReader() as reader:
        for place in np.random.default_rng(0).permutation(4 * (len(whole) // 8192 - 1)).tolist():
            first = place * 2048
            found = read_segment(reader, source, replace(info, first_frame=first, source_frames=8192))
            np.testing.assert_array_equal(found, whole[first : first + 8192], err_msg=str(first))


@pytest.mark.parametrize("channel", [None, 0, 1, 2])
def test_channels_are_chosen_or_averaged_before_resampling(tmp_path: Path, small_blocks: None, channel: int) -> None:
    x = np.stack([sound(9, seed, 44_100) for seed in range(3)], axis=1)
    soundfile.write(tmp_path / "x.flac", x, 44_100, "PCM_16")
    x = soundfile.read(tmp_path / "x.flac", dtype="float32")[0]
    one = x.mean(axis=1, dtype=np.float32) if channel is None else x[:, channel]
    for offset, duration in [(None, None), (0.77, 3.1), (4.2, None)]:
        first = round((offset or 0) * 44_100)
        end = len(x) if duration is None else round((offset + duration) * 44_100)
        expected = soxr.resample(one[first:end], 44_100, 16_000, quality="HQ")
        found = decode(segment(tmp_path / "x.flac", offset, duration, channel))
        np.testing.assert_array_equal(found[: len(expected)], expected)
        assert len(found) == math.ceil((end - first) * 16_000 / 44_100)


def test_a_channel_that_is_not_there_is_refused_with_their_number(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "x.wav", np.zeros((1000, 2)), 16_000)
    for channel in (2, -1):
        for times in ((None, None), (0.01, 0.02)):
            with pytest.raises(AudioError, match=rf"x\.wav: no channel {channel}: it has 2"):
                probe(segment(tmp_path / "x.wav", *times, channel))


# --- lengths against the header ---


@pytest.fixture
def ten_seconds(tmp_path: Path) -> Path:
    soundfile.write(tmp_path / "x.wav", sound(10, 0), 16_000)
    return tmp_path / "x.wav"


@pytest.mark.parametrize(
    ("offset", "duration", "message"),
    [
        (10.0, 1.0, r"begins at 10 s and ends at 11 s, the file ends at 10\.00 s; correct"),
        (11.0, None, r"begins at 11 s, the file ends at 10\.00 s; correct"),
        (9.0, 1.51, r"begins at 9 s and ends at 10\.51 s, the file ends at 10\.00 s; correct"),
        (
            2000.0,
            3000.0,
            r"ends at 5000 s, the file ends at 10\.00 s; times are seconds, are these milliseconds or samp",
        ),
        (80_000.0, 64_000.0, r"ends at 144000 s, .*, are these samples\?"),
        (-1.0, 3.0, r"offset -1 s, duration 3 s; correct"),
        (math.nan, 3.0, r"offset nan s, duration 3 s"),
        (3.0, math.nan, r"offset 3 s, duration nan s"),
        (3.0, math.inf, r"offset 3 s, duration inf s"),
        (1e308, 1e308, r"offset 1e\+308 s"),
        (3.0, 0.0, r"at 3 s has 0 s, no samples"),
        (3.0, -2.0, r"at 3 s has -2 s, no samples"),
        (0.0, 1e-5, r"at 0 s has 1e-05 s, no samples"),
    ],
)
def test_a_segment_that_is_not_in_its_file_is_refused_by_name(
    ten_seconds: Path, offset: float, duration: float | None, message: str
) -> None:
    with pytest.raises(AudioError, match=r"x\.wav: .*" + message):
        probe(segment(ten_seconds, offset, duration))


@pytest.mark.parametrize("beyond", [0.0, 0.25, 0.5])
def test_up_to_half_a_second_beyond_the_end_is_cut(ten_seconds: Path, beyond: float) -> None:
    info = probe(segment(ten_seconds, 8, 2 + beyond))
    assert (info.samples, info.first_frame, info.is_segment) == (32_000, 128_000, True)
    assert len(decode(segment(ten_seconds, 8, 2 + beyond))) == 32_000


@pytest.mark.parametrize(("offset", "duration"), [(0.0, 10.0), (None, 9.995), (0.0, 10.3), (0.0, None)])
def test_a_row_that_states_the_length_of_its_file_is_the_whole_file(
    ten_seconds: Path, offset: float | None, duration: float | None
) -> None:
    """And it is checked as one: damage behind the segment's end would show."""
    assert probe(segment(ten_seconds, offset, duration)) == probe(ten_seconds)


def test_what_follows_or_precedes_damage_is_read_and_what_touches_it_is_refused(
    tmp_path: Path, small_blocks: None
) -> None:
    soundfile.write(tmp_path / "x.flac", sound(30, 0), 16_000)
    whole = soundfile.read(tmp_path / "x.flac", dtype="float32")[0]
    data = bytearray((tmp_path / "x.flac").read_bytes())
    (tmp_path / "x.flac").write_bytes(data[: len(data) // 2])
    with SegmentReader() as reader:
        for _ in range(2):
            good = segment(tmp_path / "x.flac", 3, 2)
            np.testing.assert_array_equal(decode(good, segments=reader), whole[48_000:80_000])
            for offset in (14, 20):  # across the place where the file ends, and after it
                with pytest.raises(AudioError, match=r"x\.flac: .* truncated or damaged"):
                    decode(segment(tmp_path / "x.flac", offset, 5), segments=reader)


def test_a_lossy_file_may_end_a_little_before_its_header_says(tmp_path: Path, small_blocks: None) -> None:
    """What is missing of an encoder's last block is silence; what is missing of more is truncated."""
    soundfile.write(tmp_path / "x.mp3", sound(30, 0), 16_000)
    data, whole = (tmp_path / "x.mp3").read_bytes(), read_whole(tmp_path / "x.mp3")
    for share, offset in ((0.97, 28), (0.5, 14), (0.5, 20)):
        (tmp_path / "x.mp3").write_bytes(data[: int(share * len(data))])
        assert probe(tmp_path / "x.mp3").source_frames == 480_000  # believes the header
        with pytest.raises(AudioError, match=r"x\.mp3: header says 30\.00 s, the file holds \d\d\.\d\d s, .* trunc"):
            decode(segment(tmp_path / "x.mp3", offset, 2))
    (tmp_path / "x.mp3").write_bytes(data[: int(0.998 * len(data))])  # 0.06 s is gone
    found = decode(segment(tmp_path / "x.mp3", 28, 2))
    np.testing.assert_array_equal(found[:28_000], whole[448_000:476_000])
    assert not found[-500:].any()


@pytest.mark.parametrize("subtype", ["VORBIS", "OPUS"])
def test_segments_behind_a_damaged_ogg_page_are_refused(tmp_path: Path, subtype: str) -> None:
    """The decoder drops the page, and what follows moves forward."""
    path = tmp_path / "x.ogg"
    soundfile.write(path, sound(40, 0), 16_000, subtype, format="OGG")
    before, behind = (decode(segment(path, offset, 2)) for offset in (5, 30))
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0x10
    path.write_bytes(data)
    np.testing.assert_array_equal(decode(segment(path, 5, 2)), before)
    with pytest.raises(AudioError, match=r"x\.ogg: a page is damaged or missing after 1\d\.\d\d s"):
        decode(segment(path, 30, 2))
    assert len(behind) == 32_000


def test_an_mp3_that_lost_frames_gives_no_segments(tmp_path: Path) -> None:
    path = tmp_path / "x.mp3"
    soundfile.write(path, sound(40, 0), 16_000)
    data = path.read_bytes()
    sync = data[len(data) // 4 :].index(data[:2]) + len(data) // 4  # all frames begin alike
    later = data.index(data[:2], sync + 20_000)
    path.write_bytes(data[:sync] + data[later:])
    with pytest.raises(AudioError, match=r"x\.mp3: header says 40\.\d\d s, the file holds 3\d\.\d\d s"):
        decode(segment(path, 30, 2))


def test_a_flac_that_changes_midway_gives_no_segments(tmp_path: Path) -> None:
    path = tmp_path / "x.flac"
    parts = []
    for rate in (16_000, 8_000):
        soundfile.write(path, sound(2, 0), rate)
        parts.append(path.read_bytes())
    whole = bytearray(parts[0])
    whole[21:26] = bytes([whole[21] & 0xF0, 0, 0, 0, 0])  # of unknown length
    path.write_bytes(bytes(whole) + parts[1][parts[1].index(b"\xff\xf8") :])
    with pytest.raises(AudioError, match="changes midway"):
        decode(segment(path, 1, 0.5))


def test_a_decoder_that_broke_off_is_not_asked_again_for_what_follows(
    long_files: Path, small_blocks: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else each of thousands of segments after the damage would decode all that is before it."""
    source = FileSource(long_files / "x.m4a")
    opened = []
    real = module.readers.av_blocks

    def breaking(*args: object) -> Iterator:
        opened.append(args)
        done = 0
        for block, rate in real(*args):  # type: ignore[arg-type]
            if done > 19 * rate:
                raise AudioError("x.m4a: broke off")
            done += len(block)
            yield block, rate

    monkeypatch.setattr(module.readers, "av_blocks", breaking)
    info = probe(Recording(source, 1, 2))
    with SegmentReader() as reader:
        for second in (30, 21, 30, 50, 25):
            with pytest.raises(AudioError, match=r"x\.m4a: broke off"):
                read_segment(reader, source, replace(info, first_frame=second * 16_000))
        assert len(opened) == 1
        assert len(read_segment(reader, source, info)) == 32_000


@pytest.mark.parametrize("subtype", ["VORBIS", "OPUS"])
def test_segments_of_chained_ogg_streams_are_right_or_refused(tmp_path: Path, subtype: str) -> None:
    streams = []
    for seed in range(3):
        soundfile.write(tmp_path / "one.ogg", sound(3, seed), 16_000, subtype, format="OGG")
        streams.append((tmp_path / "one.ogg").read_bytes())
    first = soundfile.read(tmp_path / "one.ogg", dtype="float32")[0]
    (tmp_path / "x.ogg").write_bytes(b"".join([streams[2], *streams[:2]]))
    for offset in (1, 4, 7):
        try:
            found = decode(segment(tmp_path / "x.ogg", offset, 1))
        except AudioError as error:
            assert "x.ogg" in str(error)  # noqa: PT017
        else:
            assert offset == 1
            np.testing.assert_array_equal(found, first[16_000:32_000])


# --- many segments of one file ---


@dataclass(frozen=True)
class Counted(Source):
    """Bytes in memory that count how many of them are read, and how often they are opened."""

    data: bytes = field(repr=False, hash=False, compare=False)
    counts: list[int] = field(default_factory=lambda: [0, 0], hash=False, compare=False)

    @property
    def name(self) -> str:
        return "counted"

    def size(self) -> int:
        return len(self.data)

    def open(self) -> BinaryIO:
        counts = self.counts

        class File(io.BytesIO):
            def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
                counts[0] += (found := super().readinto(buffer))
                return found

            def read(self, size: int | None = -1) -> bytes:
                counts[0] += len(found := super().read(size))
                return found

        return File(self.data)

    def for_library(self) -> BinaryIO:
        self.counts[1] += 1
        return self.open()


@dataclass(frozen=True)
class OnePack(Pack):
    counted: Counted

    def source(self, member: str) -> Source:
        return self.counted


def encoded(seconds: int, rate: int, container: str, subtype: str) -> bytes:
    """A long file of ten-second pieces."""
    piece, file = sound(10, 1, rate), io.BytesIO()
    with soundfile.SoundFile(file, "w", rate, 1, subtype, format=container) as out:
        for _ in range(seconds // 10):
            out.write(piece)
    return file.getvalue()


def consecutive(seconds: int, count: int) -> Times:
    """Segments one after another with pauses between, over the whole length, longer ones towards its end."""
    rng, step = np.random.default_rng(0), seconds / count
    return [
        (i * step + float(rng.uniform(0, 0.3)), step * float(rng.uniform(0.5, 0.6 + 0.3 * i / count)))
        for i in range(count)
    ]


def packed(source: Source, times: Times) -> Corpus:
    """Segments of one source, in no order."""
    count = len(times)
    offset, duration = zip(*times, strict=True)
    same = {"path": ["pack"] * count, "member": ["long"] * count, "language": ["en"] * count}
    table = pa.table({"id": [f"{i:05}" for i in range(count)], **same, "offset": offset, "duration": duration})
    return Corpus(Path("/"), table.take(np.random.default_rng(0).permutation(count)), {"pack": OnePack(source)})


@pytest.mark.parametrize(
    ("container", "subtype", "seconds"),
    [("FLAC", "PCM_16", 3600), ("WAV", "PCM_16", 3600), ("OGG", "VORBIS", 1200), ("MP3", "MPEG_LAYER_III", 600)],
)
def test_segments_of_a_long_file_read_it_about_once(container: str, subtype: str, seconds: int) -> None:
    source = Counted(encoded(seconds, 8_000, container, subtype))
    corpus = packed(source, consecutive(seconds, seconds // 4))
    probed = probe_corpus(corpus)
    infos, failures = probed.infos(), probed.failures
    assert not failures
    assert source.counts[1] == 1  # the header is read once for all
    in_order = np.argsort(corpus.table["offset"].to_numpy()).tolist()
    with SegmentReader() as reader, ThreadPoolExecutor(3) as pool:
        list(pool.map(lambda i: read_segment(reader, source, infos[i]), in_order))
    checked = container in ("OGG", "MP3")  # their frames are counted before, without decoding
    assert source.counts[0] <= (2.2 if checked else 1.2) * source.size()
    assert source.counts[1] <= 2 + checked


@pytest.mark.parametrize(
    ("container", "subtype", "seconds", "count"), [("FLAC", "PCM_16", 3600, 1000), ("MP3", "MPEG_LAYER_III", 1200, 300)]
)
def test_an_extraction_of_segments_reads_their_file_about_once(
    container: str,
    subtype: str,
    seconds: int,
    count: int,
    tiny_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Through plan, batches and threads, whatever the order of the manifest, and though only a minute is cached."""
    monkeypatch.setattr(module, "_CACHED_BYTES", 2 << 20)
    source = Counted(encoded(seconds, 8_000, container, subtype))
    corpus = packed(source, consecutive(seconds, count))
    done = extract(corpus, tiny_model, tmp_path / "s.zarr", StoreSpec("final"), Runtime(threads=2, unit_megabytes=1))
    assert (done.failed, done.units > 2) == (0, True)
    assert source.counts[0] <= (2.2 if container == "MP3" else 1.2) * source.size()


@pytest.mark.real
def test_an_extraction_of_ten_thousand_segments_reads_their_ten_hours_about_once(
    tiny_model: Path, tmp_path: Path
) -> None:
    source = Counted(encoded(36_000, 8_000, "FLAC", "PCM_16"))
    corpus = packed(source, consecutive(36_000, 10_000))
    done = extract(corpus, tiny_model, tmp_path / "s.zarr", StoreSpec("final"))
    assert done.failed == 0
    assert source.counts[0] <= 1.2 * source.size()


def test_blocks_and_open_files_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of many files, all asked for in turn by several threads, no more than the bound are open and cached."""
    monkeypatch.setattr(module, "_CACHED_BYTES", 1 << 20)
    monkeypatch.setattr(module, "_OPEN_FILES", 4)
    for i in range(12):
        soundfile.write(tmp_path / f"{i}.flac", sound(20, i), 16_000)
    whole = [soundfile.read(tmp_path / f"{i}.flac", dtype="float32")[0] for i in range(12)]
    asked = [(i, second) for second in (0, 5, 11) for i in range(12)] * 2
    most = 0

    with SegmentReader() as reader:
        lock = threading.Lock()

        def ask(what: tuple[int, int]) -> None:
            nonlocal most
            i, second = what
            found = decode(segment(tmp_path / f"{i}.flac", second, 4.5), segments=reader)
            np.testing.assert_array_equal(found, whole[i][second * 16_000 :][:72_000])
            with lock:
                most = max(most, len(reader._files))

            with reader._lock:
                held = sum(block.nbytes for block in reader._blocks.values())
            assert held <= (1 << 20) + 3 * (1 << 19)

        with ThreadPoolExecutor(3) as pool:
            list(pool.map(ask, asked))
    assert most <= 4 + 3
    assert not reader._files


# --- through the engine ---


def test_states_of_a_segment_are_those_of_the_cut_file(tiny_model: Path, tmp_path: Path) -> None:
    spec = StoreSpec(dtype="float32")
    for name, rate in (("a.wav", 16_000), ("b.flac", 44_100)):
        soundfile.write(tmp_path / name, sound(70, len(name), rate), rate)
    rows, cut = [], []
    for name, offset, duration in [
        ("a.wav", 0.0, 2.5),
        ("a.wav", 11.3, 0.7),
        ("a.wav", 1.7, 35.0),
        ("b.flac", 3.21, 4.4),
    ]:
        rows.append((name, offset, duration))
        x, rate = soundfile.read(tmp_path / name, dtype="int16")
        piece = f"cut{len(rows)}{Path(name).suffix}"
        soundfile.write(tmp_path / piece, x[round(offset * rate) : round((offset + duration) * rate)], rate)
        cut.append((piece, None, None))
    extract(corpus_of(tmp_path, rows), tiny_model, tmp_path / "segments.zarr", spec)
    extract(corpus_of(tmp_path, cut), tiny_model, tmp_path / "cut.zarr", spec)
    a, b = open_store(tmp_path / "segments.zarr"), open_store(tmp_path / "cut.zarr")
    assert sorted(a.ids) == sorted(b.ids) == [f"{i:05}" for i in range(4)]
    for name in a.ids:
        for output in a.outputs:
            np.testing.assert_array_equal(a.frames(name, output), b.frames(name, output))


LANGUAGES = 8  # a unit each


@pytest.fixture(scope="module")
def talks(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    """Segments of three talks, in formats that seek, that seek with a lead, and that are decoded from the front."""
    root, rows = tmp_path_factory.mktemp("talks"), []
    for seed, name in enumerate(("a.flac", "b.ogg", "c.mp3")):
        soundfile.write(root / name, sound(60, seed), 16_000)
        rows += [(name, *t) for t in scattered(60, 30, seed)]
    rows.append(("a.flac", 59.0, 9.0))
    return corpus_of(root, rows, language=[f"l{i % LANGUAGES}" for i in range(len(rows))])


@pytest.mark.long
def test_a_killed_extraction_of_segments_is_resumed_to_the_byte(
    talks: Corpus, tiny_model: Path, tmp_path: Path
) -> None:
    settings = (StoreSpec("layer_01,final"), Runtime(threads=2, tokens=1500))
    assert run(talks, tiny_model, tmp_path / "whole.zarr", settings, lambda: None) == 0
    expected = contents(tmp_path / "whole.zarr")
    assert committed(tmp_path / "whole.zarr") == LANGUAGES
    table = open_store(tmp_path / "whole.zarr").utterances.to_pylist()
    assert [re.search("the segment .*", r["failure"])[0] for r in table if r["failure"]] == [
        "the segment begins at 59 s and ends at 68 s, the file ends at 60.00 s; correct the row or fetch the file again"
    ]
    for units in (1, 3, 6):
        store = tmp_path / f"{units}.zarr"

        def stop(store: Path = store, units: int = units) -> int | None:
            return signal.SIGKILL if committed(store) >= units else None

        assert run(talks, tiny_model, store, settings, stop, hold_at=units) == -signal.SIGKILL
        assert run(talks, tiny_model, store, settings, lambda: None) == 0
        assert contents(store) == expected
