"""Any recording as blocks of samples: libsndfile where it reads the format, else PyAV, an extra."""

import struct
from collections.abc import Iterator
from contextlib import closing

import soundfile

from voxstrata.audio import containers, frame_counts
from voxstrata.audio.pyav import AvBlocks, broken_off, changes_midway, not_audio
from voxstrata.audio.pyav import Samples as Samples
from voxstrata.audio.source import Source
from voxstrata.base.errors import AudioError

# Lossy encoders add silence, before the sound and in the last frame. Some containers count it as sound, some do not.
LOSSY_CODEC_FRAMES = 2
_OGG_PACKET_SECONDS = 0.02  # of opus; vorbis says exactly where its sound ends
_FRAMES_MORE = 4
_SYSTEM_ERROR = 2  # SF_ERR_SYSTEM
UNKNOWN_FRAMES = 2**63 - 1  # libsndfile's SF_COUNT_MAX
_BLOCK_FRAMES = 1 << 14  # small, so that no header makes us allocate much, and damage is located within a second


def tolerance_frames(file: "SequentialFile") -> int:
    """Source frames by which a decoded length may differ from the header's: two frames of a lossy codec."""
    if file.subtype == "MPEG_LAYER_III":
        return LOSSY_CODEC_FRAMES * mpeg_frame(file.samplerate)
    return round(LOSSY_CODEC_FRAMES * _OGG_PACKET_SECONDS * file.samplerate) if file.format == "OGG" else 0


def mpeg_frame(rate: int) -> int:
    """Samples in a frame of MPEG layer III."""
    return 1152 if rate >= 32_000 else 576


class SequentialFile(soundfile.SoundFile):  # type: ignore[misc]
    """A sound file read from front to back.

    soundfile seeks after each read to where it is already. In FLAC that takes time, and it fails at the end of a stream
    of unknown length. Soundfile does not seek in a file that says it cannot.
    """

    length_is_guessed = False
    stated_frames = 0  # of a header whose length libsndfile is not told
    counted_frames = 0  # by the headers of the frames it is packed in, where they were counted
    view: containers.FileView | None = None

    def close(self) -> None:
        super().close()
        if self.view:
            self.view.close()

    def seekable(self) -> bool:
        return False


def open_soundfile(source: Source, size: int) -> SequentialFile | None:
    """Open `source` with soundfile, after checking what libsndfile hides; None if soundfile cannot read the format."""
    start, raw = _from_the_sound_on(source, size)
    with raw:
        file = (_opened(source, size, start) if start else None) or _opened(source, size)
        chunk = containers.sample_chunk(raw, raw.size)
        if file is None:
            if chunk and chunk.lies:  # which FFmpeg lets pass
                raise AudioError(
                    f"{source.name}: header says {chunk.declared} bytes of samples, the file holds {chunk.present}: "
                    "truncated or damaged; re-encode it or remove it"
                )
            if containers.caf_is_cut(raw, raw.size):
                raise AudioError(f"{source.name}: the file ends inside its samples: truncated; fetch it again")
            return None
        if file.format == "OGG" and containers.ogg_is_cut(raw, raw.size):
            file.close()
            raise AudioError(f"{source.name}: the file ends inside an Ogg page: truncated; fetch it again or remove it")
        if file.format == "MP3" and containers.mp3_stated_frames(raw) is None:
            file.close()
            file = _opened(source, size, start, endless=True)
            if file:
                file.length_is_guessed = True
            return file
        stated = containers.stated_file_size(raw)
        size = raw.size
    if stated is not None and abs(stated - size) > min(containers.CHUNK_SLACK_BYTES, stated // 20):
        file.close()
        raise AudioError(
            f"{source.name}: header says {stated} bytes, the file has {size}: truncated or damaged; "
            "re-encode it or remove it"
        )
    if chunk is None:
        return file
    if chunk.declared == 0 and chunk.streamed:
        file.close()
        return _opened(source, start + size, start, (chunk.start - 4, struct.pack("<I", chunk.present)))
    if chunk.lies:
        seconds_per_byte = file.frames / file.samplerate / max(chunk.held, 1)
        file.close()
        raise AudioError(
            f"{source.name}: header says {chunk.declared * seconds_per_byte:.2f} s, the file holds "
            f"{chunk.present * seconds_per_byte:.2f} s: truncated or damaged; re-encode it or remove it"
        )
    return file


def _from_the_sound_on(source: Source, size: int) -> tuple[int, containers.FileView]:
    """Where the sound begins, behind tags and padding, and the file from there on."""
    file = source.open()
    start = containers.sound_start(file, size)
    return start, containers.FileView(file, size, start)


def _opened(
    source: Source, size: int, start: int = 0, patch: tuple[int, bytes] = (0, b""), endless: bool = False
) -> SequentialFile | None:
    """The file as it is, or a `containers.FileView` of it; None if libsndfile cannot read it."""
    view = containers.FileView(source.open(), size, start, patch, endless) if start or patch[1] or endless else None
    try:
        file = SequentialFile(view or source.for_library())
    except (soundfile.SoundFileError, TypeError) as error:  # TypeError: the suffix .raw, which has no header
        if view:
            view.close()
        reread_after(error, source)
        return None
    file.view = view
    return file


def past_the_stated_end(source: Source, file: SequentialFile) -> SequentialFile:
    """Make sure that nothing after the end that the header states is lost, since libsndfile stops there.

    A flac file is opened again without its stated length. Other files that go on are refused with an AudioError, and
    so is an mp3 or flac file whose rate or number of channels changes midway.
    """
    if file.format not in ("FLAC", "OGG", "MP3"):
        return file
    size = source.size()
    start, raw = _from_the_sound_on(source, size)
    with raw:
        if file.format == "OGG":
            if (streams := containers.ogg_streams(raw)) > 1:
                file.close()
                raise AudioError(
                    f"{source.name}: {streams} Ogg streams one after another, of which only the first would be read; "
                    "split it, or re-encode it to one stream"
                )
            return file
        if file.format == "FLAC":
            patch = containers.flac_length_patch(raw)
            if patch is None:  # not where we look for it
                return file
            samples = frame_counts.flac_samples(raw)
            if file.frames != UNKNOWN_FRAMES:
                stated_frames = file.frames
                file.close()
                endless = _opened(source, size, start, patch)
                if endless is None:
                    raise not_audio(source.name)
                file = endless
                file.stated_frames = stated_frames
        else:
            samples, in_frame = frame_counts.mp3_samples(raw)
            stated = containers.mp3_stated_frames(raw)
            counted = next(iter(samples.values()), 0)
            if stated is not None and counted - (1 + stated) * in_frame > tolerance_frames(file):
                rate = file.samplerate
                file.close()
                raise AudioError(
                    f"{source.name}: header says {stated * in_frame / rate:.2f} s, the file holds "
                    f"{(counted - in_frame) / rate:.2f} s; re-encode it or remove it"
                )
    if len(samples) > 1:
        file.close()
        first = next(iter(samples))
        whole = sum(frames / kind.rate for kind, frames in samples.items())
        raise changes_midway(source.name, first.rate, first.channels, samples[first] / first.rate, whole)
    file.counted_frames = next(iter(samples.values()), 0)
    return file


def soundfile_blocks(source: Source, file: SequentialFile, stated: float | None) -> Iterator[Samples]:
    """Blocks of shape (frames, channels), float32, to the end of the file.

    What cannot be decoded is no damage if it comes right after `file.stated_frames`: it is a tag or stray bytes. It is
    damage if fewer frames than `file.counted_frames` were decoded.
    """
    done = 0
    while True:
        left = file.stated_frames - done
        try:
            block = file.read(min(left, _BLOCK_FRAMES) if left > 0 else _BLOCK_FRAMES, dtype="float32", always_2d=True)
        except soundfile.SoundFileError as error:
            reread_after(error, source)
            if not done or left != 0:
                raise broken_off(source.name, done / file.samplerate, stated) from None
            block = ()
        if not len(block):
            break
        done += len(block)
        yield block
    # An mp3's Xing frame holds no sound, nor do the encoder's delay and the rest of its last frame.
    if file.counted_frames - done > (_FRAMES_MORE * mpeg_frame(file.samplerate) if file.format == "MP3" else 0):
        header = f"header says {stated:.2f} s, " if stated else ""
        raise AudioError(
            f"{source.name}: {header}the file holds {file.counted_frames / file.samplerate:.2f} s, of which "
            f"{done / file.samplerate:.2f} s were decoded: truncated or damaged; re-encode it or remove it"
        )


def reread_after(error: Exception, source: Source) -> None:
    """Raise the OSError that libsndfile met where it only says that there was one: a damaged file may also be why."""
    if getattr(error, "code", None) == _SYSTEM_ERROR:
        with source.open() as file:
            while file.read(1 << 20):
                pass


def av_header(source: Source) -> tuple[int | None, int, int]:
    """Frames at the source's rate (None where the container does not state them), rate, and channels."""
    with closing(AvBlocks(source)) as blocks:
        return blocks.header["frames"], blocks.header["rate"], blocks.header["channels"]


def av_blocks(source: Source, stated: float | None) -> AvBlocks:
    """Blocks of the first audio stream, float32 of shape (frames, channels), each with its rate."""
    return AvBlocks(source, stated)


def av_tolerance_frames(blocks: AvBlocks, rate: int) -> int:
    """The same for blocks of PyAV, all taken. Containers round durations to a millisecond."""
    return LOSSY_CODEC_FRAMES * blocks.codec_frame + rate // 1000
