"""Any recording as 16 kHz mono float32, and its length from the header alone.

wav, flac, ogg (vorbis, opus), mp3 and whatever else libsndfile reads go through soundfile; everything it
cannot open (m4a, mp4, webm, aac, wma …) goes to PyAV, an extra.
"""

from __future__ import annotations

import io
import os
import stat
from collections.abc import Generator, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import numpy as np
import numpy.typing as npt
import soundfile
import soxr

from voxstrata.audio import containers
from voxstrata.audio.units import SAMPLE_RATE
from voxstrata.errors import AudioError

# 24-bit converters of laboratories sample at up to 768 kHz; under 1 kHz no speech is left.
MIN_SOURCE_RATE, MAX_SOURCE_RATE = 1_000, 768_000
# In source frames. AAC starts with up to 2112 frames of priming and fills its last block of 1024, mp3 adds
# up to 1105 + 2304, opus 312 of pre-skip and one packet; containers count these in or leave them out.
LOSSY_TOLERANCE_FRAMES = 4096
# Containers with a written duration. For the rest (raw aac, amr, ac3 …) FFmpeg guesses it from the bit rate.
_TIMED_CONTAINERS = {"mov", "matroska", "asf"}
_UNKNOWN_FRAMES = 2**63 - 1  # libsndfile's SF_COUNT_MAX
_BLOCK_FRAMES = 1 << 14  # small, so that a header cannot make us allocate, and damage is located within a second

Samples = npt.NDArray[np.float32]


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
    1 … 768 kHz, a wav or AIFF whose header disagrees with the file's size, or an Ogg file cut inside a page.
    Other headers that lie are found out by `decode`.
    """
    path = Path(path)
    size = _file_size(path)
    file = _open_soundfile(path, size)
    if file is None:
        return _probe_av(path, size)
    with file:
        frames = file.frames
        if file.length_is_guessed or frames == _UNKNOWN_FRAMES:
            frames = sum(len(block) for block in _soundfile_blocks(path, file, None))
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
        for all that `probe` refuses, damaged data, NaN or infinite samples, and a decoded length other than
        the header's. Lossy formats may differ by LOSSY_TOLERANCE_FRAMES and are then cut or zero-filled.
    """
    path = Path(path)
    if expected is None:
        expected = probe(path)
    size = _file_size(path)
    if size != expected.size_bytes:
        raise AudioError(
            f"{path}: {size} bytes, but {expected.size_bytes} when it was probed: "
            "the file has changed since; plan the extraction again"
        )
    file = _open_soundfile(path, size)
    if file is None:
        mono, rate = _decode_av(path, expected)
        tolerance = LOSSY_TOLERANCE_FRAMES
    else:
        rate = file.samplerate
        tolerance = LOSSY_TOLERANCE_FRAMES if file.format in ("OGG", "MP3") else 0
        if file.format == "FLAC":
            file.close()
            file = _Sequential(io.BytesIO(containers.flac_without_length(path.read_bytes())))
        with file:
            mono = _concatenate([_mono(block) for block in _soundfile_blocks(path, file, expected)])
    if not np.isfinite(mono).all():
        raise AudioError(
            f"{path}: {np.count_nonzero(~np.isfinite(mono))} of {len(mono)} samples are NaN or infinite; "
            "write the file again or remove it"
        )
    stated = expected.source_frames / expected.source_rate
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


def _file_size(path: Path) -> int:
    """Bytes of a readable, non-empty regular file; AudioError for anything else."""
    try:
        status = path.stat()
        if stat.S_ISDIR(status.st_mode):
            raise AudioError(f"{path}: is a directory, not a recording; name a file in it")
        if not stat.S_ISREG(status.st_mode):
            raise AudioError(f"{path}: is not a regular file; copy the audio to one")
        with path.open("rb"):
            pass
    except FileNotFoundError:
        raise AudioError(f"{path}: no such file; correct the path or remove the row") from None
    except PermissionError:
        raise AudioError(f"{path}: not readable by this user; change its permissions") from None
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        raise AudioError(f"{path}: cannot be opened: {error}") from None
    if status.st_size == 0:
        raise AudioError(f"{path}: is empty (0 bytes); fetch it again or remove it")
    return status.st_size


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
    return block[:, 0] if block.shape[1] == 1 else block.mean(axis=1, dtype=np.float32)


def _concatenate(blocks: list[Samples]) -> Samples:
    return np.concatenate(blocks) if blocks else np.empty(0, np.float32)


class _Sequential(soundfile.SoundFile):  # type: ignore[misc]
    """A sound file read from front to back.

    soundfile seeks after each read to where it should be already; in FLAC that costs time, and fails at the
    end of a stream of unknown length. It does not seek in files that are not seekable.
    """

    length_is_guessed = False

    def seekable(self) -> bool:
        return False


def _open_soundfile(path: Path, size: int) -> _Sequential | None:
    """Open `path` with soundfile, past what libsndfile hides; None if soundfile cannot read the format."""
    try:
        file = _Sequential(os.fspath(path))
    except (soundfile.SoundFileError, TypeError):  # TypeError: the suffix .raw, which has no header
        return None
    with path.open("rb") as raw:
        if file.format == "OGG" and containers.ogg_is_cut(raw, size):
            file.close()
            raise AudioError(f"{path}: the file ends inside an Ogg page: truncated; fetch it again or remove it")
        if file.format == "MP3" and not containers.mp3_states_length(raw):
            file.close()
            file = _Sequential(containers.EndlessFile(path.read_bytes()))
            file.length_is_guessed = True
            return file
        chunk = containers.sample_chunk(raw, size)
    if chunk is None:
        return file
    if chunk.declared == 0 and chunk.streamed:
        file.close()
        return _Sequential(io.BytesIO(containers.with_sample_size(path.read_bytes(), chunk)))
    if chunk.lies:
        seconds_per_byte = file.frames / file.samplerate / max(chunk.held, 1)
        file.close()
        raise AudioError(
            f"{path}: header says {chunk.declared * seconds_per_byte:.2f} s, the file holds "
            f"{chunk.present * seconds_per_byte:.2f} s: truncated or damaged; re-encode it or remove it"
        )
    return file


def _soundfile_blocks(path: Path, file: _Sequential, expected: AudioInfo | None) -> Iterator[Samples]:
    """Blocks of shape (frames, channels), float32, to the end of the file."""
    done = 0
    while True:
        try:
            block = file.read(_BLOCK_FRAMES, dtype="float32", always_2d=True)
        except soundfile.SoundFileError:
            raise _broken_off(path, done, file.samplerate, expected) from None
        if not len(block):
            return
        done += len(block)
        yield block


def _broken_off(path: Path, done: int, rate: int, expected: AudioInfo | None) -> AudioError:
    header = f"header says {expected.source_frames / expected.source_rate:.2f} s, " if expected else ""
    return AudioError(
        f"{path}: {header}decoding broke off after about {done / rate:.2f} s: "
        "truncated or damaged; re-encode it or remove it"
    )


def _import_av(path: Path) -> ModuleType:
    try:
        import av
    except ImportError:
        raise AudioError(
            f"{path}: not a format libsndfile reads. If it is audio, pip install 'voxstrata[anyaudio]' "
            "(PyAV) or convert it to flac; if not, remove it"
        ) from None
    module: ModuleType = av
    return module


def _probe_av(path: Path, size: int) -> AudioInfo:
    av = _import_av(path)
    try:
        with av.open(os.fspath(path), metadata_errors="ignore") as container:
            if not container.streams.audio:
                raise _not_audio(path)
            stream = container.streams.audio[0]
            rate, channels = stream.codec_context.sample_rate, stream.codec_context.channels
            duration = None
            if not _TIMED_CONTAINERS.isdisjoint(container.format.name.split(",")):
                if stream.duration is not None:
                    duration = stream.duration * stream.time_base
                elif container.duration is not None:
                    duration = container.duration / av.time_base
    except av.FFmpegError:
        raise _not_audio(path) from None
    if duration is not None:
        return _info(path, round(duration * rate), rate, channels, size)
    frames = 0
    with closing(_av_blocks(path, None)) as blocks:
        for block, rate in blocks:  # noqa: B007  the decoder's rate; that of HE-AAC is twice the header's
            frames += len(block)
    return _info(path, frames, rate, channels, size)


def _decode_av(path: Path, expected: AudioInfo) -> tuple[Samples, int]:
    """Mono samples at the source's rate, and that rate."""
    rate, parts = expected.source_rate, []
    with closing(_av_blocks(path, expected)) as blocks:
        for block, rate in blocks:  # noqa: B007
            parts.append(_mono(block))
    return _concatenate(parts), rate


def _av_blocks(path: Path, expected: AudioInfo | None) -> Generator[tuple[Samples, int], None, None]:
    """Blocks of shape (frames, channels), float32, each with its rate, of the first audio stream."""
    av = _import_av(path)
    done, rate, converter = 0, 1, None
    try:
        with av.open(os.fspath(path), metadata_errors="ignore") as container:
            for frame in container.decode(container.streams.audio[0]):
                if converter is None:
                    rate = frame.sample_rate
                    converter = av.AudioResampler(format="fltp", layout=frame.layout, rate=rate)
                for part in converter.resample(frame):
                    done += part.samples
                    yield part.to_ndarray().T, rate
    except (av.FFmpegError, ValueError):  # ValueError: rate or channels change inside the stream
        if done == 0:
            raise _not_audio(path) from None
        raise _broken_off(path, done, rate, expected) from None


def _not_audio(path: Path) -> AudioError:
    return AudioError(f"{path}: not audio that libsndfile or FFmpeg can read; convert it to flac or wav, or remove it")
