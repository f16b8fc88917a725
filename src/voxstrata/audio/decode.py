"""Any recording as 16 kHz mono float32, and its length from the header alone.

soundfile reads wav, flac, ogg (vorbis, opus), mp3 and what else libsndfile knows. PyAV, an extra, reads the rest (m4a,
mp4, webm, aac, wma …).
"""

from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from voxstrata.audio import readers
from voxstrata.audio.gather import Gathered
from voxstrata.audio.readers import UNKNOWN_FRAMES, Samples, open_soundfile
from voxstrata.audio.source import Recording, Source, recording_of
from voxstrata.base.errors import AudioError
from voxstrata.encoders.frames import SAMPLE_RATE

# Laboratories sample at up to 768 kHz. Under 1 kHz there is no speech.
_MIN_SOURCE_RATE, _MAX_SOURCE_RATE = 1_000, 768_000


@dataclass(frozen=True)
class AudioInfo:
    """What a recording's header says, and how many samples `decode` will return for it."""

    samples: int  # at 16 kHz
    source_rate: int  # samples per second
    source_frames: int  # samples per channel at the source rate
    channels: int
    size_bytes: int  # of the file
    first_frame: int = 0  # at the source rate; where a segment begins in its file
    is_segment: bool = False  # less than the whole file


def resampled_length(frames: int, rate: int) -> int:
    """Samples at 16 kHz that `frames` samples at `rate` per second become: ceil(frames * 16000 / rate)."""
    return -(-frames * SAMPLE_RATE // rate)


def probe(what: Recording | Source | str | Path) -> AudioInfo:
    """Read a recording's length, rate and channel count from its header.

    `samples` is ceil(source_frames * 16000 / source_rate), and `decode` returns exactly that many. Some headers state
    no length (flac or wav written to a pipe, mp3 without a Xing header, raw aac, webm from a browser). Such a file is
    decoded once, block by block, to count its frames.

    Raises AudioError if the file is missing, unreadable, empty, not audio, without samples or of a rate outside 1 … 768
    kHz; if a wav, AIFF, AU, W64 or SPHERE file has another size than its header says; if a CAF file is cut, or an Ogg
    file inside a page. `decode` finds the other headers that are wrong.
    """
    source = recording_of(what).source
    size = source.size()
    file = open_soundfile(source, size)
    if file is None:
        stated, rate, channels = readers.av_header(source)
        if stated is not None:
            return _info(source, stated, rate, channels, size)
        frames = 0
        with closing(readers.av_blocks(source, None)) as blocks:
            for block, rate in blocks:  # noqa: B007  the decoder's rate; that of HE-AAC is twice the header's
                frames += len(block)
        return _info(source, frames, rate, channels, size)
    with file:
        frames = file.frames
        if file.length_is_guessed or frames == UNKNOWN_FRAMES:
            frames = sum(len(block) for block in readers.soundfile_blocks(source, file, None))
        return _info(source, frames, file.samplerate, file.channels, size)


def decode(
    what: Recording | Source | str | Path, expected: AudioInfo | None = None, notices: list[str] | None = None
) -> Samples:
    """Decode a recording to 16 kHz mono.

    Channels are averaged and the result is resampled by soxr at quality "HQ"; 16 kHz mono is returned bit by bit.
    Integer formats are scaled to [-1, 1). Float files are not scaled, even where they go beyond [-1, 1]. Of several
    audio streams in a container the first is taken. The same file always gives the same samples.

    expected: what `probe` said of this file, with which it is compared; if None, it is probed again.
    notices: gets a sentence if the channels cancel each other out.

    Returns float32 (expected.samples,). Raises AudioError for all that `probe` refuses; for damaged data, several Ogg
    streams one after another, and samples that are NaN, infinite or beyond ±1e10; and when the decoded length is not
    the header's. In lossy formats it may differ by LOSSY_CODEC_FRAMES frames of the codec; then it is cut or filled
    with zeros.
    """
    source = recording_of(what).source
    expected = expected or probe(what)
    stated = expected.source_frames / expected.source_rate
    size = source.size()
    if size != expected.size_bytes:
        raise AudioError(
            f"{source.name}: {size} bytes, but {expected.size_bytes} when it was probed: "
            "the file has changed since; plan the extraction again"
        )
    sound = Gathered(source, expected.samples, stated)
    file = open_soundfile(source, size)
    if file is None:
        with closing(readers.av_blocks(source, stated)) as blocks:
            for block, rate in blocks:
                sound.add(block, _mono(block), rate)
        tolerance = readers.av_tolerance_frames(blocks, sound.rate)
    else:
        tolerance = readers.tolerance_frames(file)
        with readers.past_the_stated_end(source, file) as file:
            for block in readers.soundfile_blocks(source, file, stated):
                sound.add(block, _mono(block), file.samplerate)
    if sound.cancelled and notices is not None:
        notices.append(
            f"{source.name}: its channels are opposite to each other, and their average is silence; "
            "choose one with --channel 0"
        )
    return sound.result(tolerance)


def _info(source: Source, frames: int, rate: int, channels: int, size: int) -> AudioInfo:
    if not _MIN_SOURCE_RATE <= rate <= _MAX_SOURCE_RATE:
        raise AudioError(
            f"{source.name}: header gives a sample rate of {rate} Hz, "
            f"outside {_MIN_SOURCE_RATE} … {_MAX_SOURCE_RATE}; correct the header or remove the file"
        )
    if frames <= 0:
        raise AudioError(f"{source.name}: holds no samples; record it again or remove it")
    return AudioInfo(resampled_length(frames, rate), rate, frames, channels, size)


def _mono(block: Samples) -> Samples:
    """Average of the channels of a (frames, channels) block."""
    if block.shape[1] == 1:
        return block[:, 0]
    with np.errstate(over="ignore", invalid="ignore"):  # infinities are refused once all is decoded
        average: Samples = block.mean(axis=1, dtype=np.float32)
    return average
