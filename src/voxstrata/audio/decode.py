"""Any recording as 16 kHz mono float32, and its length from the header alone.

wav, flac, ogg (vorbis, opus), mp3 and whatever else libsndfile reads go through soundfile; everything it
cannot open (m4a, mp4, webm, aac, wma …) goes to PyAV, an extra.
"""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soxr

from voxstrata.audio.readers import (
    LOSSY_TOLERANCE_FRAMES,
    UNKNOWN_FRAMES,
    Samples,
    av_blocks,
    av_header,
    file_size,
    open_soundfile,
    past_the_stated_end,
    soundfile_blocks,
)
from voxstrata.base.errors import AudioError
from voxstrata.encoders.frames import SAMPLE_RATE

# 24-bit converters of laboratories sample at up to 768 kHz; under 1 kHz no speech is left.
MIN_SOURCE_RATE, MAX_SOURCE_RATE = 1_000, 768_000
# Integers scaled as they are reach 2**31; from about 1e17 on the log-mel overflows.
MAX_SAMPLE = 1e10


@dataclass(frozen=True)
class AudioInfo:
    """What a recording's header says, and the number of samples that `decode` will return for it."""

    samples: int  # at 16 kHz
    source_rate: int  # samples per second
    source_frames: int  # samples per channel at the source rate
    channels: int
    size_bytes: int


def resampled_length(frames: int, rate: int) -> int:
    """Samples at 16 kHz that `frames` samples at `rate` per second become: ceil(frames * 16000 / rate)."""
    return -(-frames * SAMPLE_RATE // rate)


def probe(path: str | Path) -> AudioInfo:
    """Read a recording's length, rate and channel count from its header.

    `samples` is ceil(source_frames * 16000 / source_rate), and `decode` returns exactly that many. Where the
    header states no length (flac or wav written to a pipe, mp3 without a Xing header, raw aac, webm from a
    browser) the file is decoded once, block by block, to count its frames.

    Raises AudioError if the file is missing, unreadable, empty, not audio, without samples, of a rate outside
    1 … 768 kHz, a wav, AIFF, AU, W64 or SPHERE file of another size than its header says, a CAF file that is
    cut, or an Ogg file cut inside a page. Other headers that lie are found out by `decode`.
    """
    path = Path(path)
    size = file_size(path)
    file = open_soundfile(path, size)
    if file is None:
        stated, rate, channels = av_header(path)
        if stated is not None:
            return _info(path, stated, rate, channels, size)
        frames = 0
        with closing(av_blocks(path, None)) as blocks:
            for block, rate in blocks:  # noqa: B007  the decoder's rate; that of HE-AAC is twice the header's
                frames += len(block)
        return _info(path, frames, rate, channels, size)
    with file:
        frames = file.frames
        if file.length_is_guessed or frames == UNKNOWN_FRAMES:
            frames = sum(len(block) for block in soundfile_blocks(path, file, None))
        return _info(path, frames, file.samplerate, file.channels, size)


def decode(path: str | Path, expected: AudioInfo | None = None) -> Samples:
    """Decode a recording to 16 kHz mono.

    Channels are averaged, then resampled by soxr at quality "HQ"; 16 kHz mono passes through bit-exact.
    Integer formats are scaled to [-1, 1); float files are kept as they are, beyond [-1, 1] too. Of several
    audio streams in a container the first is taken. The same file always gives the same samples.

    Parameters
    ----------
    expected
        what `probe` said of this file, which it is held to; probed again when None

    Returns
    -------
    float32 array of shape (expected.samples,)

    Raises
    ------
    AudioError
        for all that `probe` refuses, damaged data, several Ogg streams one after another, samples that are NaN,
        infinite or beyond MAX_SAMPLE, and a decoded length other than the header's. Lossy formats may differ
        by LOSSY_TOLERANCE_FRAMES and are then cut or zero-filled.
    """
    path = Path(path)
    if expected is None:
        expected = probe(path)
    stated = expected.source_frames / expected.source_rate
    size = file_size(path)
    if size != expected.size_bytes:
        raise AudioError(
            f"{path}: {size} bytes, but {expected.size_bytes} when it was probed: "
            "the file has changed since; plan the extraction again"
        )
    parts, rate, tolerance = [], expected.source_rate, LOSSY_TOLERANCE_FRAMES
    file = open_soundfile(path, size)
    if file is None:
        with closing(av_blocks(path, stated)) as blocks:
            for block, rate in blocks:  # noqa: B007
                parts.append(_mono(block))
    else:
        rate = file.samplerate
        if file.format not in ("OGG", "MP3"):
            tolerance = 0
        with past_the_stated_end(path, file) as file:
            parts += [_mono(block) for block in soundfile_blocks(path, file, stated)]
    mono = np.concatenate(parts) if parts else np.empty(0, np.float32)
    _refuse_absurd_samples(path, mono, rate)
    if len(mono) == 0 or abs(len(mono) / rate - stated) * rate > tolerance + 0.5:
        raise AudioError(
            f"{path}: header says {stated:.2f} s, decoding gave {len(mono) / rate:.2f} s: "
            "truncated or damaged; re-encode it or remove it"
        )
    if rate != SAMPLE_RATE:
        mono = soxr.resample(mono, rate, SAMPLE_RATE, quality="HQ")
    # soxr rounds the length where the rule takes the ceiling: one sample at most, besides the tolerance.
    if len(mono) < expected.samples:
        mono = np.pad(mono, (0, expected.samples - len(mono)))
    return np.ascontiguousarray(mono[: expected.samples], dtype=np.float32)


def _refuse_absurd_samples(path: Path, mono: Samples, rate: int) -> None:
    if not np.isfinite(mono).all():
        raise AudioError(
            f"{path}: {np.count_nonzero(~np.isfinite(mono))} of {len(mono)} samples are NaN or infinite; "
            "write the file again or remove it"
        )
    loudest = int(np.abs(mono).argmax()) if len(mono) else 0
    if len(mono) and abs(mono[loudest]) > MAX_SAMPLE:
        raise AudioError(
            f"{path}: the sample at {loudest / rate:.2f} s is {mono[loudest]:.3g}, beyond ±{MAX_SAMPLE:.0e}: damaged; "
            "write the file again or remove it"
        )


def _info(path: Path, frames: int, rate: int, channels: int, size: int) -> AudioInfo:
    if not MIN_SOURCE_RATE <= rate <= MAX_SOURCE_RATE:
        raise AudioError(
            f"{path}: header gives a sample rate of {rate} Hz, "
            f"outside {MIN_SOURCE_RATE} … {MAX_SOURCE_RATE}; correct the header or remove the file"
        )
    if frames <= 0:
        raise AudioError(f"{path}: holds no samples; record it again or remove it")
    return AudioInfo(resampled_length(frames, rate), rate, frames, channels, size)


def _mono(block: Samples) -> Samples:
    """Average of the channels of a (frames, channels) block."""
    if block.shape[1] == 1:
        return block[:, 0]
    with np.errstate(over="ignore", invalid="ignore"):  # infinities are refused once all is decoded
        average: Samples = block.mean(axis=1, dtype=np.float32)
    return average
