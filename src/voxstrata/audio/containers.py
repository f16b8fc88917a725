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
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, BinaryIO

if TYPE_CHECKING:
    from typing_extensions import Buffer

# Some writers count header bytes as data, pad the file to a disk block, or append a tag that is no chunk.
CHUNK_SLACK_BYTES = 4096
# Where sox and ffmpeg cannot go back to fill in the size of a wav, they leave 0x7FFFF000 … 0xFFFFFFFF in it. It means
# "until the file ends".
_STREAMED_BYTES = 0x7FFF_0000
_OGG_PAGE_BYTES = 27 + 255 + 255 * 255  # the largest page: header, segment table, 255 segments
_READ_BYTES = 1 << 20
_PADDING_BYTES = 1 << 26  # of zeros in front of the sound, at the most: a sparse file may begin with gigabytes
_MIRRORED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))
_SPHERE_NUMBER = re.compile(rb"^(\w+) -\S+ (\d+)\s*$", re.MULTILINE)

_CHUNKED = {  # form and type: byte order of the sizes, name of the chunk that holds the samples
    (b"RIFF", b"WAVE"): ("<", b"data"),
    (b"RF64", b"WAVE"): ("<", b"data"),
    (b"RIFX", b"WAVE"): (">", b"data"),
    (b"FORM", b"AIFF"): (">", b"SSND"),
    (b"FORM", b"AIFC"): (">", b"SSND"),
}
# Well-formed as chunks, but more sound, of which nothing would be read: a second file, or samples in a second place.
_NO_CHUNKS = {b"RIFF", b"RIFX", b"RF64", b"FORM", b"data", b"SSND"}


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
        if not all(32 <= byte < 127 for byte in name) or after > size or name in _NO_CHUNKS:
            break
        at = after + length % 2
    return max(0, size - at)


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


def ogg_streams(file: BinaryIO) -> int:
    """How many logical streams follow one another in an Ogg file. libsndfile reads only the first.

    Streams that play together, such as those of a video, count as one: they all begin before any other page.
    """
    streams, at, began = 0, 0, False
    file.seek(0)
    while (page := file.read(27 + 255))[:4] == b"OggS" and len(page) >= 27:
        begins = bool(page[5] & 2)
        streams += begins and not began
        began = begins
        at += 27 + page[26] + sum(page[27 : 27 + page[26]])
        file.seek(at)
    return streams


def ogg_whole_until(file: BinaryIO) -> float:
    """Seconds of an Ogg file of one stream before its first damaged or missing page; infinity where there is none.

    Decoders drop such a page without a word, and what follows moves to its place. Pages are numbered and have a CRC
    (RFC 3533, section 6): that of zlib with the bits of all bytes in the other order.
    """
    at, seconds, rate, expected = 0, 0.0, 0, None
    while len(head := _read_at(file, at, 27)) == 27:
        table = file.read(head[26])
        page = head + table + file.read(sum(table))
        (granule,), (_, number, crc) = struct.unpack("<q", page[6:14]), struct.unpack("<III", page[14:26])
        zeroed = page[:22] + bytes(4) + page[26:]
        if page[:4] != b"OggS" or number != (expected or 0) or _ogg_crc(zeroed) != crc:
            return seconds
        if expected is None:
            body = page[27 + len(table) :]
            rate = 48_000 if body[:8] == b"OpusHead" else int.from_bytes(body[12:16], "little")
        if granule >= 0 and rate:
            seconds = granule / rate
        at, expected = at + len(page), number + 1
    return math.inf


def _read_at(file: BinaryIO, at: int, size: int) -> bytes:
    file.seek(at)
    return file.read(size)


def _ogg_crc(data: bytes) -> int:
    register = zlib.crc32(data.translate(_MIRRORED), 0xFFFF_FFFF) ^ 0xFFFF_FFFF
    return int.from_bytes(register.to_bytes(4, "little").translate(_MIRRORED), "big")


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


def sound_start(file: BinaryIO, size: int) -> int:
    """Offset of the first byte that belongs neither to an ID3v2 tag nor to zeros in front of the sound; 0 where there
    are more of these than any writer leaves."""
    at = padding = 0
    while at < size:
        file.seek(at)
        head = file.read(10)
        if head[:3] == b"ID3" and len(head) == 10:
            a, b, c, d = head[6:10]  # the tag's size, of 7 bits each
            at += 10 + (a << 21 | b << 14 | c << 7 | d)
        elif head[0] == 0:
            block = head + file.read(_READ_BYTES)
            zeros = len(block) - len(block.lstrip(b"\0"))
            at, padding = at + zeros, padding + zeros
            if padding > _PADDING_BYTES:
                return 0
        else:
            return at
    return size


class FileView(io.RawIOBase, BinaryIO):
    """`file`, of `size` bytes, from the byte `start` on; `patch` (offset from there, bytes) replaces what it holds.

    endless: it pretends to be a hundred times as long as it is. For an mp3 without a frame count libsndfile guesses the
    length, from the file's size and the bit rate of the first frames, and stops decoding there. With the pretended size
    it decodes to the real end. A read at the real end finds the end. A read beyond it, where libsndfile looks for an
    ID3v1 tag, finds zeros.
    """

    def __init__(
        self, file: BinaryIO, size: int, start: int = 0, patch: tuple[int, bytes] = (0, b""), endless: bool = False
    ) -> None:
        self.size = size - start
        self._file, self._start, self._endless = file, start, endless
        self._patch_at, self._patch = patch
        self._at = 0

    def close(self) -> None:
        self._file.close()
        super().close()

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        pretended = 100 * self.size if self._endless else self.size
        self._at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: pretended}[whence]
        return self._at

    def readinto(self, buffer: Buffer, /) -> int:
        view = memoryview(buffer).cast("B")
        if self._at > self.size:
            data = bytes(len(view)) if self._endless else b""
        else:
            self._file.seek(self._start + self._at)
            data = self._file.read(min(len(view), self.size - self._at))
            if self._at < self._patch_at + len(self._patch) and self._patch_at < self._at + len(data):
                patched = bytearray(data)
                for i, byte in enumerate(self._patch, self._patch_at - self._at):
                    if 0 <= i < len(patched):
                        patched[i] = byte
                data = bytes(patched)
        view[: len(data)] = data
        self._at += len(data)
        return len(data)


def flac_length_patch(file: BinaryIO) -> tuple[int, bytes] | None:
    """What makes 0, "unknown", of the number of samples (36 bits of STREAMINFO) of a FLAC file.

    libsndfile then decodes to the end of the stream, instead of to where the header says that it ends. None if this is
    no FLAC file.
    """
    file.seek(0)
    head = file.read(26)
    if head[:4] != b"fLaC" or len(head) < 26:
        return None
    count = 21  # magic 4, block header 4, block and frame sizes 10, then 20 + 3 + 5 bits before the count
    return count, bytes([head[count] & 0xF0, 0, 0, 0, 0])


def mp3_stated_frames(file: BinaryIO) -> int | None:
    """MPEG frames that the Xing or Info header in the first frame of an mp3 file counts; None without a count."""
    file.seek(0)
    first = file.read(1500)  # the longest MPEG layer III frame has 1441 bytes
    for tag in (b"Xing", b"Info"):
        at = first.find(tag)
        if at >= 0 and len(first) >= at + 12 and first[at + 7] & 1:
            return int.from_bytes(first[at + 8 : at + 12])
    return None
