"""What headers say of recordings, and of the segments in them."""

import math
from dataclasses import dataclass, replace

from voxstrata.audio.source import Recording
from voxstrata.base.errors import AudioError
from voxstrata.encoders.frames import SAMPLE_RATE

# A segment may end this much after its file, and is cut: as Kaldi's extract-segments has it (--max-overshoot=0.5).
OVERSHOOT_SECONDS = 0.5
_SHORTEST_SECONDS = 0.1  # of what may be a segment in another unit: Kaldi's --min-segment-length
WHOLE_WITHIN_SECONDS = 0.01  # manifests state the lengths of whole files, rounded


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


@dataclass(frozen=True)
class Stated:
    """The length that a manifest states of a recording whose header is not read before it is decoded."""

    samples: int  # at 16 kHz


def resampled_length(frames: int, rate: int) -> int:
    """Samples at 16 kHz that `frames` samples at `rate` per second become: ceil(frames * 16000 / rate)."""
    return -(-frames * SAMPLE_RATE // rate)


def part_of(recording: Recording, whole: AudioInfo) -> AudioInfo:
    """What `probe` says of a recording in a file of which it says `whole`.

    A segment is the frames round(offset · rate) … round((offset + duration) · rate) of the file; what goes beyond the
    end of the file by up to half a second is cut. If that leaves the whole file to 0.01 s, it is no segment.

    Raises AudioError for a channel that the file has not; for times that are negative or not finite; for a segment
    without samples; for one that begins after the end of the file, or ends more than half a second after it.
    """
    name, rate, channel = recording.source.name, whole.source_rate, recording.channel
    if channel is not None and not 0 <= channel < whole.channels:
        raise AudioError(f"{name}: no channel {channel}: it has {whole.channels}, and 0 is the first; correct the row")
    if not recording.is_segment:
        return whole
    offset, length = recording.offset or 0.0, whole.source_frames / rate
    duration = max(0.0, length - offset) if recording.duration is None else recording.duration
    if not math.isfinite((offset + duration) * rate) or offset < 0:
        raise AudioError(f"{name}: no segment: offset {offset:g} s, duration {duration:g} s; correct the row")
    first, end = round(offset * rate), round((offset + duration) * rate)
    if first >= whole.source_frames or end > whole.source_frames + OVERSHOOT_SECONDS * rate:
        ends = "" if recording.duration is None else f" and ends at {offset + duration:g} s"
        raise AudioError(
            f"{name}: the segment begins at {offset:g} s{ends}, the file ends at {length:.2f} s; "
            + _unit_hint(recording, length, rate)
        )
    end = min(end, whole.source_frames)
    if end <= first:
        raise AudioError(f"{name}: the segment at {offset:g} s has {duration:g} s, no samples; correct the row")
    if first == 0 and whole.source_frames - end <= WHOLE_WITHIN_SECONDS * rate:
        return whole
    samples = resampled_length(end - first, rate)
    return replace(whole, samples=samples, source_frames=end - first, first_frame=first, is_segment=True)


def _unit_hint(segment: Recording, length: float, rate: int) -> str:
    """What to do about a segment that is not in its file of `length` seconds."""
    duration, longest = segment.duration or 0.0, length + OVERSHOOT_SECONDS
    end = (segment.offset or 0.0) + duration
    units = [
        name
        for name, per_second in (("milliseconds", 1000), ("samples", rate))
        if end / per_second <= longest and duration / per_second >= _SHORTEST_SECONDS
    ]
    return f"times are seconds, are these {' or '.join(units)}?" if units else "correct the row or fetch the file again"
