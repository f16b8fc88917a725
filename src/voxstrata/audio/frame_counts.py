"""How many samples the frames of a FLAC or mp3 file hold, counted by their headers without decoding.

libsndfile stops where the format changes midway, and drops what is damaged, without a word. The count shows it.
"""

import re
from typing import BinaryIO, NamedTuple

# Kilobits per second of MPEG layer III, and of II in MPEG 2, by the header's index 1 … 14 (ISO 11172-3 and 13818-3,
# section 2.4.2.3).
_MPEG1_KBITS = (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320)
_MPEG2_KBITS = (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160)
_MPEG1_LAYER2_KBITS = (32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384)
# Sync, block size and rate that are in use, channels and sample size, number (RFC 9639, section 9.1).
_FLAC_FRAME = re.compile(rb"\xff[\xf8\xf9][\x10-\xff]", re.DOTALL)
_FLAC_RATES = dict(enumerate((88200, 176400, 192000, 8000, 16000, 22050, 24000, 32000, 44100, 48000, 96000), 1))
_FLAC_BITS = {1: 8, 2: 12, 4: 16, 5: 20, 6: 24, 7: 32}
_READ_BYTES = 1 << 20


class Kind(NamedTuple):
    """What must be the same in all frames of one sound, or a decoder that began with the first stops or misreads."""

    rate: int
    channels: int
    bits: int = 0  # per sample, where that matters


def flac_samples(file: BinaryIO) -> dict[Kind, int]:
    """Samples per channel in the frames of a FLAC file, by kind; the first is the header's.

    libFLAC believes the header about the rate, and stops where a second stream begins. Bytes of a frame may look like
    the header of another, so those count alone that a frame with the next number follows.
    """
    file.seek(0)
    head = file.read(26)
    first = Kind(int.from_bytes(head[18:21]) >> 4, (head[20] >> 1 & 7) + 1, (int.from_bytes(head[20:22]) >> 4 & 31) + 1)
    samples = {first: 0}
    last: dict[Kind, tuple[int, int, bool]] = {}  # number, samples, whether it was counted
    at, block = 0, head
    while block:
        file.seek(at)
        block = file.read(_READ_BYTES)
        whole = len(block) < _READ_BYTES
        for match in _FLAC_FRAME.finditer(block, 0, len(block) if whole else len(block) - 16):
            frame = _flac_frame(block[match.start() : match.start() + 16], first)
            if frame is None:
                continue
            kind, number, length, step = frame
            before = last.get(kind)
            follows = before is not None and number == before[0] + (step or before[1])
            if before and follows:
                samples[kind] = samples.get(kind, 0) + length + (0 if before[2] else before[1])
            last[kind] = (number, length, follows)
        at += len(block) if whole else len(block) - 15
        block = b"" if whole else block
    return samples


def _flac_frame(head: bytes, first: Kind) -> tuple[Kind, int, int, int] | None:
    """Kind, number, samples and what the next number is greater by (0: by the samples), if `head` is a frame's header.

    RFC 9639, section 9.1.
    """
    if len(head) < 5:  # the last bytes of the file look like a header's first
        return None
    size_code, rate_code, assignment = head[2] >> 4, head[2] & 15, head[3] >> 4
    lead = 8 - (head[4] ^ 0xFF).bit_length()  # ones in front: the bytes of the number, coded as in UTF-8
    if assignment > 10 or head[3] & 1 or lead in (1, 8):
        return None
    at = 4 + max(1, lead)
    number = head[4] & (0x7F >> lead)
    for byte in head[5:at]:
        number = number << 6 | byte & 0x3F
    length = 192 if size_code == 1 else 576 << size_code - 2 if size_code < 6 else 1 << size_code
    for code, width in ((6, 1), (7, 2)):
        if size_code == code:
            length = int.from_bytes(head[at : at + width]) + 1
            at += width
    rate = _FLAC_RATES.get(rate_code, first.rate)
    for code, width, unit in ((12, 1, 1000), (13, 2, 1), (14, 2, 10)):
        if rate_code == code:
            rate = int.from_bytes(head[at : at + width]) * unit
            at += width
    if len(head) <= at or _crc8(head[:at]) != head[at]:
        return None
    channels = assignment + 1 if assignment < 8 else 2
    bits = _FLAC_BITS.get(head[3] >> 1 & 7, first.bits)
    return Kind(rate, channels, bits), number, length, 1 - (head[1] & 1)


def _crc8(data: bytes) -> int:
    crc = 0
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = (crc << 1 ^ 0x107) if crc & 0x80 else crc << 1
    return crc


def mp3_samples(file: BinaryIO) -> tuple[dict[Kind, int], int]:
    """Samples per channel in an mp3 file's frames of layers II and III, by kind, the first one first; those in a frame.

    Each header gives the length of its frame, so one leads to the next. Tags and junk between frames are skipped; after
    them, and where the kind changes, a header counts only if another of its kind follows at the end of its frame. A
    frame with a Xing header counts. Not counted are frames of free format.
    """
    window = _Window(file)
    samples: dict[Kind, int] = {}
    current, end, longest = None, -1, 0
    at = window.find(b"\xff", 0)
    while at >= 0:
        frame = _mp3_frame(window.read(at, 4))
        if frame and (at != end or frame.kind != current):
            after = _mp3_frame(window.read(at + frame.bytes, 4))
            frame = frame if after and after.kind == frame.kind else None
        if frame:
            current, end, longest = frame.kind, at + frame.bytes, max(longest, frame.samples)
            samples[current] = samples.get(current, 0) + frame.samples
        at = window.find(b"\xff", max(at + 1, end))
    return samples, longest


class _Mp3Frame(NamedTuple):
    kind: Kind
    bytes: int
    samples: int


def _mp3_frame(head: bytes) -> _Mp3Frame | None:
    """What the header `head` of four bytes says; None if it is none (ISO 11172-3, section 2.4.1.3)."""
    if len(head) < 4 or head[0] != 0xFF or head[1] & 0xE0 != 0xE0:  # 11 bits of sync
        return None
    version, layer, kbits, rate = head[1] >> 3 & 3, head[1] >> 1 & 3, head[2] >> 4, head[2] >> 2 & 3
    if version == 1 or layer not in (1, 2) or kbits in (0, 15) or rate == 3:
        return None
    hertz = (44_100, 48_000, 32_000)[rate] >> {3: 0, 2: 1, 0: 2}[version]  # MPEG 1, 2 and 2.5
    samples = 576 if version != 3 and layer == 1 else 1152
    table = _MPEG2_KBITS if version != 3 else _MPEG1_KBITS if layer == 1 else _MPEG1_LAYER2_KBITS
    padding = head[2] >> 1 & 1
    kind = Kind(hertz, 1 if head[3] >> 6 == 3 else 2)
    return _Mp3Frame(kind, samples // 8 * 1000 * table[kbits - 1] // hertz + padding, samples)


class _Window:
    """The bytes of a file by their offsets, of which one block is held."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self._begin, self._block = file, 0, b""

    def read(self, at: int, size: int) -> bytes:
        """Fewer bytes only where the file ends."""
        if not self._begin <= at <= at + size <= self._begin + len(self._block):
            self._file.seek(at)
            self._begin, self._block = at, self._file.read(_READ_BYTES)
        at -= self._begin
        return self._block[at : at + size]

    def find(self, byte: bytes, at: int) -> int:
        """Offset of the next `byte` from `at` on, or -1."""
        while self.read(at, 1):
            found = self._block.find(byte, at - self._begin)
            if found >= 0:
                return self._begin + found
            at = self._begin + len(self._block)
        return -1
