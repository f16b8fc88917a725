"""Any recording as blocks of samples: libsndfile where it reads the format, else PyAV, an extra."""

import io
from collections.abc import Generator, Iterator
from types import ModuleType

import numpy as np
import numpy.typing as npt
import soundfile

from voxstrata.audio import containers
from voxstrata.audio.source import Source
from voxstrata.base.errors import AudioError

# In source frames. Lossy encoders add silence: AAC up to 2112 frames before the sound and the rest of a block of 1024,
# mp3 up to 1105 + 2304, opus 312 and one packet. Some containers count it as sound and some do not.
LOSSY_TOLERANCE_FRAMES = 4096
UNKNOWN_FRAMES = 2**63 - 1  # libsndfile's SF_COUNT_MAX
# Containers that state a duration. For the others (raw aac, amr, ac3 …) FFmpeg guesses it from the bit rate.
_TIMED_CONTAINERS = {"mov", "matroska", "asf"}
_BLOCK_FRAMES = 1 << 14  # small, so that no header makes us allocate much, and damage is located within a second

Samples = npt.NDArray[np.float32]


class SequentialFile(soundfile.SoundFile):  # type: ignore[misc]
    """A sound file read from front to back.

    soundfile seeks after each read to where it is already. In FLAC that takes time, and it fails at the end of a stream
    of unknown length. Soundfile does not seek in a file that says it cannot.
    """

    length_is_guessed = False
    stated_frames = 0  # of a header whose length libsndfile is not told

    def seekable(self) -> bool:
        return False


def open_soundfile(source: Source, size: int) -> SequentialFile | None:
    """Open `source` with soundfile, after checking what libsndfile hides; None if soundfile cannot read the format."""
    try:
        file = SequentialFile(source.for_library())
    except (soundfile.SoundFileError, TypeError):  # TypeError: the suffix .raw, which has no header
        with source.open() as raw:
            if containers.caf_is_cut(raw, size):
                raise AudioError(
                    f"{source.name}: the file ends inside its samples: truncated; fetch it again"
                ) from None
        return None
    with source.open() as raw:
        if file.format == "OGG" and containers.ogg_is_cut(raw, size):
            file.close()
            raise AudioError(f"{source.name}: the file ends inside an Ogg page: truncated; fetch it again or remove it")
        if file.format == "MP3" and containers.mp3_stated_frames(raw) is None:
            file.close()
            file = SequentialFile(containers.EndlessFile(source.read()))
            file.length_is_guessed = True
            return file
        chunk = containers.sample_chunk(raw, size)
        stated = containers.stated_file_size(raw)
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
        return SequentialFile(io.BytesIO(containers.with_sample_size(source.read(), chunk)))
    if chunk.lies:
        seconds_per_byte = file.frames / file.samplerate / max(chunk.held, 1)
        file.close()
        raise AudioError(
            f"{source.name}: header says {chunk.declared * seconds_per_byte:.2f} s, the file holds "
            f"{chunk.present * seconds_per_byte:.2f} s: truncated or damaged; re-encode it or remove it"
        )
    return file


def past_the_stated_end(source: Source, file: SequentialFile) -> SequentialFile:
    """Make sure that nothing after the end that the header states is lost, since libsndfile stops there.

    A flac file is opened again without its stated length. Other files that go on are refused with an AudioError.
    """
    if file.format not in ("FLAC", "OGG", "MP3"):
        return file
    data = source.read()
    if file.format == "FLAC" and file.frames != UNKNOWN_FRAMES:
        endless = SequentialFile(io.BytesIO(containers.flac_without_length(data)))
        endless.stated_frames = file.frames
        file.close()
        return endless
    if file.format == "OGG" and (streams := containers.ogg_streams(data)) > 1:
        file.close()
        raise AudioError(
            f"{source.name}: {streams} Ogg streams one after another, of which only the first would be read; "
            "split it, or re-encode it to one stream"
        )
    if file.format == "MP3" and not file.length_is_guessed:
        stated = containers.mp3_stated_frames(io.BytesIO(data)) or 0
        counted, samples = containers.mp3_frames(data)
        counted -= 1  # the frame that holds the header
        if (counted - stated) * samples > LOSSY_TOLERANCE_FRAMES:
            rate = file.samplerate
            file.close()
            raise AudioError(
                f"{source.name}: header says {stated * samples / rate:.2f} s, the file holds "
                f"{counted * samples / rate:.2f} s; re-encode it or remove it"
            )
    return file


def soundfile_blocks(source: Source, file: SequentialFile, stated: float | None) -> Iterator[Samples]:
    """Blocks of shape (frames, channels), float32, to the end of the file.

    What cannot be decoded is no damage if it comes right after `file.stated_frames`: it is a tag or stray bytes.
    """
    done = 0
    while True:
        left = file.stated_frames - done
        try:
            block = file.read(min(left, _BLOCK_FRAMES) if left > 0 else _BLOCK_FRAMES, dtype="float32", always_2d=True)
        except soundfile.SoundFileError:
            if done and left == 0:
                return
            raise _broken_off(source, done, file.samplerate, stated) from None
        if not len(block):
            return
        done += len(block)
        yield block


def _broken_off(source: Source, done: int, rate: int, stated: float | None) -> AudioError:
    header = f"header says {stated:.2f} s, " if stated else ""
    return AudioError(
        f"{source.name}: {header}decoding broke off after about {done / rate:.2f} s: "
        "truncated or damaged; re-encode it or remove it"
    )


def _import_av(source: Source) -> ModuleType:
    try:
        import av
    except ImportError:
        raise AudioError(
            f"{source.name}: not a format libsndfile reads. If it is audio, pip install 'voxstrata[anyaudio]' "
            "(PyAV) or convert it to flac; if not, remove it"
        ) from None
    module: ModuleType = av
    return module


def av_header(source: Source) -> tuple[int | None, int, int]:
    """Frames at the source's rate (None where the container does not state them), rate, and channels."""
    av = _import_av(source)
    try:
        with av.open(source.for_library(), metadata_errors="ignore") as container:
            if not container.streams.audio:
                raise _not_audio(source)
            stream = container.streams.audio[0]
            rate, channels = stream.codec_context.sample_rate, stream.codec_context.channels
            if _TIMED_CONTAINERS.isdisjoint(container.format.name.split(",")):
                return None, rate, channels
            if stream.duration is not None:
                return round(stream.duration * stream.time_base * rate), rate, channels
            whole = container.duration
            return None if whole is None else round(whole / av.time_base * rate), rate, channels
    except av.FFmpegError:
        raise _not_audio(source) from None


def av_blocks(source: Source, stated: float | None) -> Generator[tuple[Samples, int], None, None]:
    """Blocks of the first audio stream, float32 of shape (frames, channels), each with its rate."""
    av = _import_av(source)
    done, rate, converter = 0, 1, None
    try:
        with av.open(source.for_library(), metadata_errors="ignore") as container:
            for frame in container.decode(container.streams.audio[0]):
                if converter is None:
                    rate = frame.sample_rate
                    # packed: planes beyond the eighth lie where PyAV does not look, and it crashes
                    converter = av.AudioResampler(format="flt", layout=frame.layout, rate=rate)
                for part in converter.resample(frame):
                    done += part.samples
                    yield part.to_ndarray().reshape(part.samples, -1), rate
    except (av.FFmpegError, ValueError):  # ValueError: rate or channels change inside the stream
        if done == 0:
            raise _not_audio(source) from None
        raise _broken_off(source, done, rate, stated) from None


def _not_audio(source: Source) -> AudioError:
    return AudioError(
        f"{source.name}: not audio that libsndfile or FFmpeg can read; convert it to flac or wav, or remove it"
    )
