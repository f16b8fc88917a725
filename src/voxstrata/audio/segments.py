"""Segments of long recordings: a file is opened once for all of them, and decoded about once.

A file is decoded in blocks, from fixed places on. So a block's samples never depend on which blocks were asked for
before, and a run that is resumed stores the same bytes. Decoding may begin

- at every block, where seeking is exact: PCM, float, μ-law, A-law, ALAC, and FLAC that states its length;
- every ten minutes in Ogg. The second before is decoded and dropped, after which Vorbis and Opus give what they give
  when decoded from the front (`tests/test_segments.py` compares every bit);
- at the front alone, for all else: mp3 (after a seek libmpg123 misses bits that lie in earlier frames, and says so on
  stderr), ADPCM, GSM, and what PyAV reads. Segments that are asked for in order still cost one pass over the file.

A decoder may drop what is damaged without a word, and then all that follows lies elsewhere. So Ogg and mp3 files are
read once more before, but not decoded: segments behind the first bad page of an Ogg file are refused, and all segments
of an mp3 file that holds fewer frames than its header counts. Damage in a block costs all segments in that block.
"""

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager
from typing import Self

import numpy as np
import soundfile

from voxstrata.audio import containers, readers
from voxstrata.audio.info import AudioInfo
from voxstrata.audio.readers import UNKNOWN_FRAMES, Samples, SequentialFile
from voxstrata.audio.source import Source
from voxstrata.base.errors import AudioError, GoneError, UnreachableError, error_text, refuse_fault_here

_BLOCK_VALUES = 1 << 17  # of all channels; 8 s of 16 kHz mono. A jump to another place decodes up to one block too much
_CACHED_BYTES = 64 << 20  # of decoded blocks, of all files: segments overlap, and threads take them almost in order
_OPEN_FILES = 16
_OGG_STRETCH_SECONDS = 600  # a seek reads about 75 kB, 6 % of ten minutes of speech at 16 kbit/s
_EXACT_SUBTYPES = ("PCM_", "FLOAT", "DOUBLE", "ULAW", "ALAW", "ALAC_")


class _LongFile:
    """One file, decoded in blocks of `block_frames`. Not for two threads at once: they take `lock`.

    users: threads that hold it. lossy: known once it was opened.
    """

    def __init__(self, source: Source, info: AudioInfo) -> None:
        self.source, self.users, self.lock, self.lossy = source, 0, threading.Lock(), False
        self._size, self._here, self._kept = info.size_bytes, source, ExitStack()
        self.block_frames = max(1, _BLOCK_VALUES // info.channels)
        self._rate, self._channels = info.source_rate, info.channels
        self._file: SequentialFile | None = None  # None for what PyAV reads
        self._read: Callable[[], Samples] | None = None  # the next block; shorter at the end of the file, then empty
        self._close: Callable[[], None] = lambda: None
        self.tolerance: Callable[[], int] = lambda: 0  # frames that a lossy file may end too early
        self._stretch: int | None = None  # decoding may begin at every n-th block; None: at the first alone
        self._begun, self._next = 0, 0  # the blocks where decoding began, and that `_read` gives
        self._last = np.empty((0, info.channels), np.float32)  # the block before
        self._whole_until: float | None = None  # seconds of an Ogg file before damage
        self._counted = False  # whether an mp3, or a FLAC of unknown length, was found to be all there
        self._damage: dict[int, tuple[int, str]] = {}  # by where decoding began: the block where it failed, and why

    def close(self) -> None:
        """Let go of the file; the next block opens it again."""
        self._close()
        self._file = self._read = None
        self._close = lambda: None

    def release(self) -> None:
        """Let go of the file and of what was fetched; no block is read after that."""
        self.close()
        self._kept.close()

    def _fetch(self) -> Source:
        """Where the file is read from: where it is, or, when that is far, what was fetched of it, once."""
        if self._here is self.source and self.source.is_remote:
            self._here = self._kept.enter_context(self.source.fetched(self._size))
            if (size := self._here.size()) != self._size:
                raise AudioError(
                    f"{self.source.name}: {size} bytes, but {self._size} when it was probed: the file has changed "
                    "since; plan the extraction again"
                )
        return self._here

    def block(self, k: int) -> Samples:
        """Frames k · block_frames … of all channels, float32 (frames, channels). Raises AudioError.

        What failed once fails again, without a second try: thousands of segments may follow the damage.
        """
        where, why = self._damage.get(self._begin(k), (k + 1, ""))
        if k >= where:
            raise AudioError(why)
        try:
            read = self._go_to(k)
            while self._next <= k:
                self._last = read()
                self._next += 1
        except (UnreachableError, GoneError, FileNotFoundError):  # it may be there later
            self.close()
            raise
        except Exception as error:
            self.close()
            readers.reread_after(error, self.source)
            refuse_fault_here(error, self.source.name)
            if isinstance(error, AudioError):
                why = str(error)
            elif isinstance(error, soundfile.SoundFileError):
                at = self._next * self.block_frames / self._rate
                why = f"{self.source.name}: decoding broke off after about {at:.2f} s: truncated or damaged; "
                why += "re-encode it or remove it"
            else:
                why = f"{self.source.name}: {error_text(error)}; re-encode it or remove it"
            self._damage[self._begin(k)] = (self._next, why)
            raise AudioError(why) from None
        return self._last

    def refuse_behind_damage(self, end: int) -> None:
        """Raise AudioError where frames before `end` may not be those that were recorded there."""
        if self._whole_until is not None and end / self._rate > self._whole_until:
            raise AudioError(
                f"{self.source.name}: a page is damaged or missing after {self._whole_until:.2f} s, and what follows "
                "may lie elsewhere; fetch the file again or re-encode it"
            )

    def _begin(self, k: int) -> int:
        """The block where decoding begins to get block `k`."""
        return 0 if self._stretch is None else k - k % self._stretch

    def _go_to(self, k: int) -> Callable[[], Samples]:
        """What reads on, from where decoding begins to get block `k` or later."""
        if self._read is None:
            self._read = self._open()
        begin = self._begin(k)
        if self._next == k + 1 and self._begun == begin:
            return self._read  # it is the last one
        if self._next > k or (self._begun != begin and (self.lossy or self._next != k)):
            if begin and self._file is not None:
                self._begun = self._next = begin
                first = begin * self.block_frames
                lead = min(first, self._rate) if self.lossy else 0
                self._file.seek(first - lead)
                if lead:
                    _read(self._file, lead)
            else:
                self.close()
                self._read = self._open()
        return self._read

    def _open(self) -> Callable[[], Samples]:
        """Open the file at its front; returns what reads the next block."""
        self._begun = self._next = 0
        source = self._fetch()
        file = readers.open_soundfile(source, source.size())
        if file and file.format == "OGG" and self._whole_until is None:
            with source.open() as raw:
                self._whole_until = containers.ogg_whole_until(raw)
        if file and not self._counted and (file.format == "MP3" or file.frames == UNKNOWN_FRAMES):
            file = readers.past_the_stated_end(source, file)
            lost = file.frames - file.counted_frames
            if file.format == "MP3" and not file.length_is_guessed and lost > readers.tolerance_frames(file):
                stated, counted = file.frames / self._rate, file.counted_frames / self._rate
                file.close()
                raise AudioError(
                    f"{self.source.name}: header says {stated:.2f} s, the file holds {counted:.2f} s, so segments "
                    "may lie elsewhere: truncated or damaged; re-encode it or remove it"
                )
            self._counted = True
        if file is None:
            self.lossy = True
            return self._av_reader()
        self._file, self._close, self.lossy = file, file.close, file.format in ("OGG", "MP3")
        tolerance = readers.tolerance_frames(file)
        self.tolerance = lambda: tolerance
        if file.format == "OGG":
            self._stretch = max(1, round(_OGG_STRETCH_SECONDS * self._rate / self.block_frames))
        elif file.subtype.startswith(_EXACT_SUBTYPES) and file.frames != UNKNOWN_FRAMES:
            self._stretch = 1
        return lambda: _read(file, self.block_frames)

    def _av_reader(self) -> Callable[[], Samples]:
        decoder = readers.av_blocks(self._fetch(), None)
        self._close = decoder.close
        self.tolerance = lambda: readers.av_tolerance_frames(decoder, self._rate)
        rest = np.empty((0, self._channels), np.float32)

        def read() -> Samples:
            nonlocal rest
            pieces, held = [rest], len(rest)
            while held < self.block_frames and (following := next(decoder, None)):
                piece, rate = following
                if rate != self._rate:
                    raise AudioError(
                        f"{self.source.name}: header says {self._rate} Hz, decoding gives {rate} Hz; convert it to flac"
                    )
                pieces.append(piece)
                held += len(piece)
            whole = np.concatenate(pieces)
            rest = whole[self.block_frames :].copy()
            return whole[: self.block_frames]

        return read


def _read(file: SequentialFile, frames: int) -> Samples:
    found: Samples = file.read(frames, dtype="float32", always_2d=True)
    return found


class SegmentReader:
    """The long files of a run, shared by its threads. Memory and open files are bounded whatever is asked for."""

    def __init__(self) -> None:
        self._lock = threading.Lock()  # for what follows; each file has a lock of its own for decoding
        self._files: OrderedDict[Source, _LongFile] = OrderedDict()  # the one used last is last; so for blocks
        self._blocks: OrderedDict[tuple[Source, int], Samples] = OrderedDict()
        self._cached = 0  # bytes of `_blocks`
        self._headers: OrderedDict[Source, Future[AudioInfo]] = OrderedDict()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the files and the blocks."""
        for file in self._files.values():
            file.release()
        self._files.clear()
        self._blocks.clear()
        self._cached = 0

    def blocks(self, source: Source, info: AudioInfo) -> Iterator[Samples]:
        """A segment at the rate of its file in blocks of all channels, float32 (frames, channels).

        info: what `probe` said of the segment. Raises AudioError for damage inside of it, and for a file that ends
        before it does; lossy files may, by as much as `decode` lets them differ from their header.
        """
        first, end, done = info.first_frame, info.first_frame + info.source_frames, 0
        with self._used(source, info) as file:
            for k in range(first // file.block_frames, -(-end // file.block_frames)):
                begin = k * file.block_frames
                block = self._block(file, k)[max(0, first - begin) : end - begin]
                file.refuse_behind_damage(end)
                done += len(block)
                yield block
            missing = info.source_frames - done
            if missing and missing > file.tolerance():
                rate = info.source_rate
                raise AudioError(
                    f"{source.name}: decoding ended at {(first + done) / rate:.2f} s, the segment goes on to "
                    f"{end / rate:.2f} s: truncated or damaged; re-encode it or remove it"
                )

    def header(self, source: Source, probe: Callable[[Source], AudioInfo]) -> AudioInfo:
        """What `probe` says of a file, which is asked once for the segments that follow each other in it."""
        with self._lock:
            header = self._headers.get(source)
            if mine := header is None:
                header = self._headers[source] = Future()
                if len(self._headers) > _OPEN_FILES:
                    self._headers.popitem(last=False)
        if mine:
            try:
                header.set_result(probe(source))
            except BaseException as error:
                header.set_exception(error)
        return header.result()

    @contextmanager
    def _used(self, source: Source, info: AudioInfo) -> Iterator[_LongFile]:
        with self._lock:
            file = self._files.pop(source, None) or _LongFile(source, info)
            self._files[source] = file
            file.users += 1
            idle = [s for s, f in self._files.items() if not f.users]
            dropped = [self._files.pop(s) for s in idle[: max(0, len(self._files) - _OPEN_FILES)]]
            gone = {other.source for other in dropped}
            for key in [key for key in self._blocks if key[0] in gone]:
                self._cached -= self._blocks.pop(key).nbytes
        try:
            for other in dropped:
                other.release()
            yield file
        finally:
            with self._lock:
                file.users -= 1

    def _block(self, file: _LongFile, k: int) -> Samples:
        key = (file.source, k)
        with file.lock:  # who waits here finds the block in the cache
            with self._lock:
                if key in self._blocks:
                    self._blocks.move_to_end(key)
                    return self._blocks[key]
            block = file.block(k)
            with self._lock:
                self._blocks[key] = block
                self._cached += block.nbytes
                while self._cached > _CACHED_BYTES and len(self._blocks) > 1:
                    self._cached -= self._blocks.popitem(last=False)[1].nbytes
            return block
