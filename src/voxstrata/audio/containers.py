"""What libsndfile hides about a file's length, read from the container's own bytes.

A header may state a wrong length. libsndfile does not tell: it returns no more samples than the header states, and if
the file is shorter, it reports the shorter length as the stated one. So the functions here read the header themselves.
They know the RIFF family (wav, RF64), AIFF, AU, W64, SPHERE, CAF, Ogg, FLAC and mp3. For other containers libsndfile is
believed.
"""

from __future__ import annotations

import io
import math
import re
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, BinaryIO, NamedTuple

if TYPE_CHECKING:
    from typing_extensions import Buffer

# Some writers count header bytes as data, pad the file to a disk block, or append a tag that is no chunk.
CHUNK_SLACK_BYTES = 4096
# Where sox and ffmpeg cannot go back to fill in the size of a wav, they leave 0x7FFFF000 … 0xFFFFFFFF in it. It means
# "until the file ends".
_STREAMED_BYTES = 0x7FFF_0000
_OGG_PAGE_BYTES = 27 + 255 + 255 * 255  # the largest page: header, segment table, 255 segments
# Kilobits per second of MPEG layer III by the header's index 1 … 14 (ISO 11172-3 and 13818-3, section 2.4.2.3).
_MPEG1_KBITS = (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320)
_MPEG2_KBITS = (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160)
_SPHERE_NUMBER = re.compile(rb"^(\w+) -\S+ (\d+)\s*$", re.MULTILINE)

_CHUNKED = {  # form and type: byte order of the sizes, name of the chunk that holds the samples
    (b"RIFF", b"WAVE"): ("<", b"data"),
    (b"RF64", b"WAVE"): ("<", b"data"),
    (b"RIFX", b"WAVE"): (">", b"data"),
    (b"FORM", b"AIFF"): (">", b"SSND"),
    (b"FORM", b"AIFC"): (">", b"SSND"),
}


@dataclass(frozen=True)
class SampleChunk:
    """Where a file made of chunks (wav, AIFF) keeps its samples. All numbers are bytes.

    start: the first byte of the samples. declared: what the header says that the chunk holds. held: what lies between
    `start` and the end of the chunk or of the file. unclaimed: what follows and is no chunk itself.
    """

    start: int
    declared: int
    held: int
    unclaimed: int

    @property
    def streamed(self) -> bool:
        """The writer could not fill in the size; the samples go on to the end of the file."""
        return (self.declared == 0 and self.unclaimed > 0) or (
            self.declared >= _STREAMED_BYTES and self.held < self.declared
        )

    @property
    def present(self) -> int:
        """Bytes of samples in the file, whatever the header says."""
        return self.held + self.unclaimed

    @property
    def lies(self) -> bool:
        """Whether the declared size is wrong by more than what careless writers leave."""
        slack = min(CHUNK_SLACK_BYTES, self.declared // 20)
        return not self.streamed and (self.declared - self.held > slack or self.unclaimed > slack)


def sample_chunk(file: BinaryIO, size: int) -> SampleChunk | None:
    """Find the sample chunk of a wav, RF64 or AIFF file of `size` bytes; None for any other file."""
    file.seek(0)
    head = file.read(12)
    if (head[:4], head[8:12]) not in _CHUNKED:
        return None
    order, wanted = _CHUNKED[head[:4], head[8:12]]
    wide = None  # RF64 keeps the true size of the data chunk in a chunk of its own
    at = 12
    while at + 8 <= size:
        file.seek(at)
        name, declared = struct.unpack(order + "4sI", file.read(8))
        if name == b"ds64" and at + 24 <= size:
            wide = struct.unpack("<QQ", file.read(16))[1]
        if name == wanted:
            if declared == 0xFFFF_FFFF and wide:
                declared = wide
            held = min(declared, size - at - 8)
            end = at + 8 + held + held % 2
            return SampleChunk(at + 8, declared, held, _unclaimed(file, order, end, size))
        at += 8 + declared + declared % 2
    return None


def _unclaimed(file: BinaryIO, order: str, at: int, size: int) -> int:
    """Bytes from `at` to the end of the file that are not well-formed chunks."""
    while at + 8 <= size:
        file.seek(at)
        name, length = struct.unpack(order + "4sI", file.read(8))
        after = at + 8 + length
        if not all(32 <= byte < 127 for byte in name) or after > size:
            break
        at = after + length % 2
    return max(0, size - at)


def with_sample_size(data: bytes, chunk: SampleChunk) -> bytes:
    """The little-endian wav `data` with the true size written into its data chunk."""
    return data[: chunk.start - 4] + struct.pack("<I", chunk.present) + data[chunk.start :]


def stated_file_size(file: BinaryIO) -> int | None:
    """Size in bytes of an AU, W64 or SPHERE file by its header; None for other files, and where it is not stated."""
    file.seek(0)
    head = file.read(1024)
    if head[:4] in (b".snd", b"dns.") and len(head) >= 24:
        start, data = struct.unpack(">II" if head[0] == ord(".") else "<II", head[4:12])
        return None if data == 0xFFFF_FFFF else start + data
    if head[:4] == b"riff" and head[24:28] == b"wave" and len(head) >= 40:
        (whole,) = struct.unpack("<Q", head[16:24])
        return int(whole) if 40 < whole < 2**62 else None  # beyond: written to a pipe
    if head[:8] == b"NIST_1A\n":
        fields = {name: int(value) for name, value in _SPHERE_NUMBER.findall(head)}
        factors = [fields.get(name) for name in (b"sample_count", b"sample_n_bytes", b"channel_count")]
        if head[8:16].strip().isdigit() and None not in factors:
            return int(head[8:16]) + math.prod(f for f in factors if f is not None)
    return None


def caf_is_cut(file: BinaryIO, size: int) -> bool:
    """Whether `file` is a CAF file of `size` bytes whose header says that its samples go on beyond its end."""
    file.seek(0)
    at = 8 if file.read(4) == b"caff" else size
    while at + 12 <= size:
        file.seek(at)
        name, length = struct.unpack(">4sq", file.read(12))
        at += 12 + length
        if name == b"data" or length < 0:  # -1: "until the file ends"
            break
    return at > size


def ogg_streams(data: bytes) -> int:
    """How many logical streams follow one another in the Ogg file `data`. libsndfile reads only the first.

    Streams that play together, such as those of a video, count as one: they all begin before any other page.
    """
    streams, at, began = 0, 0, False
    while data[at : at + 4] == b"OggS" and at + 27 <= len(data):
        begins = bool(data[at + 5] & 2)
        streams += begins and not began
        began = begins
        segments = data[at + 26]
        at += 27 + segments + sum(data[at + 27 : at + 27 + segments])
    return streams


def ogg_is_cut(file: BinaryIO, size: int) -> bool:
    """Whether an Ogg file of `size` bytes ends inside a page.

    A missing end-of-stream flag alone is no damage, because recorders of live streams leave it out. No header states
    the length, so a file that is cut exactly between two pages is taken for a whole one.
    """
    file.seek(max(0, size - _OGG_PAGE_BYTES))
    tail = file.read()
    at = tail.rfind(b"OggS")
    if at < 0 or at + 27 > len(tail):
        return True
    segments = tail[at + 26]
    table = tail[at + 27 : at + 27 + segments]
    return at + 27 + segments + sum(table) > len(tail)


def _after_id3(data: bytes) -> int:
    """Offset of the first byte after an ID3v2 tag, whose size is four bytes of 7 bits; 0 if there is no tag."""
    if data[:3] != b"ID3" or len(data) < 10:
        return 0
    a, b, c, d = data[6:10]
    return 10 + (a << 21 | b << 14 | c << 7 | d)


def flac_without_length(data: bytes) -> bytes:
    """The FLAC file `data` with 0, "unknown", as the number of samples (36 bits of its STREAMINFO block).

    libsndfile then decodes to the end of the stream, instead of to where the header says that it ends.
    """
    at = _after_id3(data)
    if data[at : at + 4] != b"fLaC" or len(data) < at + 26:
        return data
    count = at + 21  # magic 4, block header 4, block and frame sizes 10, then 20 + 3 + 5 bits before the count
    return data[:count] + bytes([data[count] & 0xF0, 0, 0, 0, 0]) + data[count + 5 :]


def mp3_stated_frames(file: BinaryIO) -> int | None:
    """MPEG frames that the Xing or Info header in the first frame of an mp3 file counts; None without a count."""
    file.seek(0)
    at = _after_id3(file.read(10))
    file.seek(at)
    first = file.read(1500)  # the longest MPEG layer III frame has 1441 bytes
    for tag in (b"Xing", b"Info"):
        at = first.find(tag)
        if at >= 0 and len(first) >= at + 12 and first[at + 7] & 1:
            return int.from_bytes(first[at + 8 : at + 12])
    return None


def mp3_frames(data: bytes) -> tuple[int, int]:
    """Layer III frames in the mp3 file `data`, with that of the Xing header, and samples per frame.

    Each header gives the length of its frame, so one leads to the next. Tags and junk between frames are skipped; after
    them a header counts only if another follows at the end of its frame. Not counted are frames whose MPEG version or
    rate differs from the first one's, and frames of free format.
    """
    count, end, samples = 0, -1, 0
    kind: tuple[int, int] | None = None
    at = data.find(b"\xff", _after_id3(data))
    while at >= 0:
        frame = _mp3_frame(data, at)
        if frame and kind in (None, frame.kind):
            after = None if at == end else _mp3_frame(data, at + frame.bytes)
            if at == end or (after and after.kind == frame.kind):
                count, kind, samples = count + 1, frame.kind, frame.samples
                end = at + frame.bytes
        at = data.find(b"\xff", max(at + 1, end))
    return count, samples


class _Mp3Frame(NamedTuple):
    kind: tuple[int, int]  # bits of MPEG version and layer, and of the sample rate: the same in all frames
    bytes: int
    samples: int


def _mp3_frame(data: bytes, at: int) -> _Mp3Frame | None:
    """What the header at offset `at` of `data` says; None if there is none (ISO 11172-3, section 2.4.1.3)."""
    if at + 4 > len(data) or data[at] != 0xFF or data[at + 1] & 0xE6 != 0xE2:  # 11 bits of sync; layer III
        return None
    version, kbits, rate = data[at + 1] >> 3 & 3, data[at + 2] >> 4, data[at + 2] >> 2 & 3
    if version == 1 or kbits in (0, 15) or rate == 3:
        return None
    hertz = (44_100, 48_000, 32_000)[rate] >> {3: 0, 2: 1, 0: 2}[version]  # MPEG 1, 2 and 2.5
    samples = 1152 if version == 3 else 576
    bits = 1000 * (_MPEG1_KBITS if version == 3 else _MPEG2_KBITS)[kbits - 1]
    padding = data[at + 2] >> 1 & 1
    return _Mp3Frame((data[at + 1] & 0x1E, rate), samples // 8 * bits // hertz + padding, samples)


class EndlessFile(io.BytesIO):
    """Bytes that pretend to be a hundred times as long as they are.

    For an mp3 without a frame count libsndfile guesses the length, from the file's size and the bit rate of the first
    frames, and stops decoding there. With the pretended size it decodes to the real end. A read at the real end finds
    the end. A read beyond it, where libsndfile looks for an ID3v1 tag, finds zeros.
    """

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        if whence == io.SEEK_END:
            return super().seek(100 * len(self.getbuffer()) + offset)
        return super().seek(offset, whence)

    def readinto(self, buffer: Buffer, /) -> int:
        if self.tell() <= len(self.getbuffer()):
            return super().readinto(buffer)
        view = memoryview(buffer)
        view[:] = bytes(len(view))
        super().seek(len(view), io.SEEK_CUR)
        return len(view)
