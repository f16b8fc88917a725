"""Any recording as 16 kHz mono float32, and its length from the header alone.

soundfile reads wav, flac, ogg (vorbis, opus), mp3 and what else libsndfile knows. PyAV, an extra, reads the rest (m4a,
mp4, webm, aac, wma …).
"""

from contextlib import closing, nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np

from voxstrata.audio import readers
from voxstrata.audio.gather import Gathered
from voxstrata.audio.info import AudioInfo as AudioInfo
from voxstrata.audio.info import Stated, part_of, resampled_length
from voxstrata.audio.readers import UNKNOWN_FRAMES, Samples, open_soundfile
from voxstrata.audio.segments import SegmentReader
from voxstrata.audio.source import Recording, Source, recording_of
from voxstrata.base.errors import AudioError
from voxstrata.base.spool import Spool
from voxstrata.encoders.frames import SAMPLE_RATE

SPOOLED_SECONDS = 600  # longer recordings are not held in memory, where slices of them do
STATED_WITHIN_SECONDS = 0.05  # manifests round lengths, to a tenth of a second at the worst
# Laboratories sample at up to 768 kHz. Under 1 kHz there is no speech.
_MIN_SOURCE_RATE, _MAX_SOURCE_RATE = 1_000, 768_000


def probe(what: Recording | Source | str | Path) -> AudioInfo:
    """Read a recording's length, rate and channel count from its header; of a segment, see `part_of`.

    `samples` is ceil(source_frames * 16000 / source_rate), and `decode` returns exactly that many. Some headers state
    no length (flac or wav written to a pipe, mp3 without a Xing header, raw aac, webm from a browser). Such a file is
    decoded once, block by block, to count its frames.

    Raises AudioError if the file is missing, unreadable, empty, not audio, without samples or of a rate outside 1 … 768
    kHz; if a wav, AIFF, AU, W64 or SPHERE file has another size than its header says; if a CAF file is cut, or an Ogg
    file inside a page. `decode` finds the other headers that are wrong.
    """
    recording = recording_of(what)
    return part_of(recording, _probe_file(recording.source))


def _probe_file(source: Source) -> AudioInfo:
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
    what: Recording | Source | str | Path,
    expected: AudioInfo | Stated | None = None,
    segments: SegmentReader | None = None,
    notices: list[str] | None = None,
) -> Samples:
    """Decode a recording to 16 kHz mono.

    Channels are averaged, unless one is asked for, and the result is resampled by soxr at quality "HQ"; 16 kHz mono is
    returned bit by bit. A segment is cut before, so it gives what a file cut there gives. Integer formats are scaled to
    [-1, 1). Float files are not scaled, even where they go beyond [-1, 1]. Of several audio streams in a container the
    first is taken. The same recording always gives the same samples.

    expected: what `probe` said of this recording, with which it is compared; if None, it is probed again. So it is of
        `Stated`, the length that a manifest states, which the result has: the very end is cut or filled with zeros
        where that differs by no more than rounding.
    segments: what reads segments; one for many of them opens a long file once. By default one for this segment.
    notices: gets a sentence if the channels cancel each other out.

    Returns float32 (expected.samples,). Raises AudioError for all that `probe` refuses; for a file that ends more than
    0.05 s before the end that a manifest states; for damaged data, several Ogg
    streams one after another, and samples that are NaN, infinite or beyond ±1e10; and when the decoded length is not
    the header's. In lossy formats it may differ by LOSSY_CODEC_FRAMES frames of the codec; then it is cut or filled
    with zeros.
    """
    recording = recording_of(what)
    found = _decode(recording, expected or probe(recording), segments, notices, spooled=False)
    assert not isinstance(found, Spool)
    return found


def decode_to_slice(
    recording: Recording, expected: AudioInfo | Stated, segments: SegmentReader | None, notices: list[str] | None
) -> Samples | Spool:
    """As `decode`, for who takes slices alone: more than SPOOLED_SECONDS are in a temporary file, not in memory."""
    return _decode(recording, expected, segments, notices, expected.samples > SPOOLED_SECONDS * SAMPLE_RATE)


def _decode(
    recording: Recording,
    expected: AudioInfo | Stated,
    segments: SegmentReader | None,
    notices: list[str] | None,
    spooled: bool,
) -> Samples | Spool:
    source = recording.source
    if isinstance(expected, Stated):
        return _decode_stated(recording, expected, segments, notices, spooled)
    if source.is_remote and not expected.is_segment:
        with source.fetched(expected.size_bytes) as here:
            return _decode(replace(recording, source=here), expected, segments, notices, spooled)
    stated = expected.source_frames / expected.source_rate
    # a remote file of segments is compared by what reads them, once
    size = expected.size_bytes if source.is_remote else source.size()
    if size != expected.size_bytes:
        raise AudioError(
            f"{source.name}: {size} bytes, but {expected.size_bytes} when it was probed: "
            "the file has changed since; plan the extraction again"
        )
    sound = Gathered(source, expected.samples, stated, spooled)

    def add(block: Samples, rate: int) -> None:
        sound.add(block if recording.channel is None else block[:, [recording.channel]], rate)

    if expected.is_segment:
        with nullcontext(segments) if segments else SegmentReader() as reader:
            for block in reader.blocks(source, expected):
                add(block, expected.source_rate)
        tolerance = expected.source_frames  # the reader has refused what is too short
    elif (file := open_soundfile(source, size)) is None:
        with closing(readers.av_blocks(source, stated)) as blocks:
            for block, rate in blocks:
                add(block, rate)
        tolerance = readers.av_tolerance_frames(blocks, sound.rate)
    else:
        tolerance = readers.tolerance_frames(file)
        with readers.past_the_stated_end(source, file) as file:
            for block in readers.soundfile_blocks(source, file, stated):
                add(block, file.samplerate)
    if sound.cancelled and notices is not None:
        notices.append(
            f"{source.name}: its channels are opposite to each other, and their average is silence; "
            "choose one with --channel 0"
        )
    return sound.result(tolerance)


def _decode_stated(
    recording: Recording, stated: Stated, segments: SegmentReader | None, notices: list[str] | None, spooled: bool
) -> Samples | Spool:
    """A recording of which nothing is known but the length that a manifest states."""
    source = recording.source
    whole = segments.header(source, _probe_file) if segments else _probe_file(source)
    samples = _decode(recording, part_of(recording, whole), segments, notices, spooled)
    missing = stated.samples - len(samples)
    if missing > STATED_WITHIN_SECONDS * SAMPLE_RATE:
        begin = recording.offset or 0.0
        raise AudioError(
            f"{source.name}: the manifest says {stated.samples / SAMPLE_RATE:.2f} s from {begin:g} s on, the file ends "
            f"at {whole.source_frames / whole.source_rate:.2f} s; correct the row or fetch the file again"
        )
    if isinstance(samples, Spool):
        samples.resize(stated.samples)
        return samples
    return np.pad(samples, (0, missing)) if missing > 0 else samples[: stated.samples]


def _info(source: Source, frames: int, rate: int, channels: int, size: int) -> AudioInfo:
    if not _MIN_SOURCE_RATE <= rate <= _MAX_SOURCE_RATE:
        raise AudioError(
            f"{source.name}: header gives a sample rate of {rate} Hz, "
            f"outside {_MIN_SOURCE_RATE} … {_MAX_SOURCE_RATE}; correct the header or remove the file"
        )
    if frames <= 0:
        raise AudioError(f"{source.name}: holds no samples; record it again or remove it")
    return AudioInfo(resampled_length(frames, rate), rate, frames, channels, size)
