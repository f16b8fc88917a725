"""Decodes through FFmpeg in a process of its own: `python pyav_child.py FD`; `pyav.py` is the other end.

Damaged files make FFmpeg crash, and some whole files do. Here that costs the recording and not the run. Imports nothing
of voxstrata, so that it starts in a tenth of a second, and ends when the other end of the socket FD is gone.

Requests are JSON. `{"do": "open", "path": …}`: the answer says what the header says. If the path is null, the file's
bytes come in the next message. `{"do": "more"}`: the answer is a block. `{"do": "close"}` has no answer. An answer
begins with three numbers (HEAD): rate, channels and the longest frame of a lossy codec so far. Then come the block's
samples, packed float32; none at the end. If the rate is 0, JSON follows: the header, or an error.
"""

import errno
import io
import json
import os
import re
import resource
import select
import struct
import sys
import threading
from collections.abc import Generator
from multiprocessing.connection import Connection
from typing import Any

import av

HEAD = struct.Struct("<3I")
BLOCK_FRAMES = 1 << 14  # small, so that no header makes us allocate much
# Containers that state a duration. For the others (raw aac, amr, ac3 …) FFmpeg guesses it from the bit rate.
_TIMED_CONTAINERS = {"mov", "matroska", "asf", "caf"}
_LATE_SECONDS = 0.04  # of sound that begins later it is not known whether the duration counts the time before
# Read without a frame of sound, before the file is taken to end there: FFmpeg looks for more in gigabytes of zeros.
_SILENT_BYTES = 1 << 28
_DATA_BYTES = 1 << 30  # of memory: a header may ask for more than there is
_FAULTY_PACKETS = 100  # allowed before the first frame, where a container has no index: padding, the rest of a frame


class _Refused(Exception):
    """`kind` is one that `pyav.py` knows; `more` is what its message needs."""

    def __init__(self, kind: str, **more: Any) -> None:
        self.answer = {"error": kind, **more}


def main() -> None:
    """Answer requests until there are no more."""
    connection = Connection(int(sys.argv[1]))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _, most = resource.getrlimit(resource.RLIMIT_DATA)
    limit = _DATA_BYTES if most == resource.RLIM_INFINITY else min(_DATA_BYTES, most)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, most))
    _end_with(connection)
    answers = _answers(None)
    ready: bytes | None = None  # decoded while the other end works
    while True:
        try:
            request = json.loads(connection.recv_bytes())
            if request["do"] != "more":
                answers.close()
            if request["do"] == "open":
                path = request["path"]
                answers, ready = _answers(path if path is not None else io.BytesIO(connection.recv_bytes())), None
            if request["do"] != "close":
                connection.send_bytes(ready or next(answers))
            ready = next(answers) if request["do"] == "more" else None
        except (EOFError, OSError):  # the other end is gone
            return


def _end_with(connection: Connection) -> None:
    """End this process, whatever it is at, when the other end hangs up."""

    def watch() -> None:
        poll = select.poll()
        poll.register(connection.fileno(), 0)
        poll.poll()
        os._exit(0)

    threading.Thread(target=watch, daemon=True).start()


def _answers(what: str | io.BytesIO | None) -> Generator[bytes, None, None]:
    try:
        if what is not None:
            with open(what, "rb") if isinstance(what, str) else what as file:
                yield from _header_and_blocks(_Watched(file))
        while True:
            yield HEAD.pack(1, 1, 0)
    except _Refused as refusal:
        answer = refusal.answer
    except MemoryError:  # FFmpeg's, too
        answer = {"error": "memory"}
    except av.FFmpegError:
        answer = {"error": "not audio"}
    except OSError as error:  # of the disk or the network; a damaged header may ask for a place before the file's first
        kind = "not audio" if error.errno in (None, errno.EINVAL) else "system"
        answer = {"error": kind, "number": error.errno, "text": error.strerror}
    except Exception as error:
        answer = {"error": "failed", "text": re.sub(r" at 0x[0-9a-f]+", "", f"{type(error).__name__}: {error}")}
    while True:
        yield _json(answer)


class _Watched:
    """A file as PyAV reads it, which seems to end where so much of it was no sound."""

    def __init__(self, file: Any) -> None:
        self._file, self.quiet = file, 0  # bytes read since the last frame of sound
        self.seek, self.tell, self.name = file.seek, file.tell, getattr(file, "name", "")

    def read(self, size: int) -> bytes:
        data: bytes = self._file.read(size) if self.quiet <= _SILENT_BYTES else b""
        self.quiet += len(data)
        return data


def _json(answer: dict[str, Any]) -> bytes:
    return HEAD.pack(0, 0, 0) + json.dumps(answer).encode()


def _header_and_blocks(file: "_Watched") -> Generator[bytes, None, None]:
    # Only this file is read: a playlist has no protocol to fetch by what it names.
    with av.open(file, metadata_errors="ignore", options={"protocol_whitelist": "-"}) as container:
        if not container.streams.audio:
            raise _Refused("not audio")
        stream = container.streams.audio[0]
        if stream.codec_context is None:
            av.logging.set_level(av.logging.INFO)  # or nothing is dumped
            named = re.search(r"Audio: (\w+)(?: \(([^)]*)\))?", container.dumps_format())
            av.logging.set_level(None)
            codec = named and (named[2] if named[1] == "none" else named[1])
            raise _Refused("no decoder", codec=codec)
        timed = not _TIMED_CONTAINERS.isdisjoint(container.format.name.split(","))
        rate, channels = stream.codec_context.sample_rate, stream.codec_context.channels
        yield _json(
            {"frames": _stated_frames(container, stream) if timed else None, "rate": rate, "channels": channels}
        )
        lossy = not stream.codec_context.codec.lossless
        parts: list[bytes] = []
        held = largest = 0
        for frame in _packed_frames(container, stream, 0 if timed else _FAULTY_PACKETS):
            file.quiet = 0
            rate, channels = frame.sample_rate, frame.layout.nb_channels
            largest = max(largest, frame.samples) if lossy else 0
            parts.append(bytes(frame.planes[0])[: 4 * frame.samples * channels])
            held += frame.samples
            if held >= BLOCK_FRAMES:
                yield HEAD.pack(rate, channels, largest) + b"".join(parts)
                parts, held = [], 0
        if held:
            yield HEAD.pack(rate, channels, largest) + b"".join(parts)


def _stated_frames(container: Any, stream: Any) -> int | None:
    """Frames of the audio stream by the header; None where it states only how long the whole file plays."""
    rate: int = stream.codec_context.sample_rate
    if stream.duration is not None:
        return int(stream.duration * stream.time_base * rate + 0.5)
    late = (stream.start_time or 0) * stream.time_base > _LATE_SECONDS
    if container.duration is None or late or len(container.streams) > 1:
        return None
    return int(container.duration / av.time_base * rate + 0.5)


def _packed_frames(container: Any, stream: Any, allowed: int) -> Generator[Any, None, None]:
    """The stream's frames as packed float32: PyAV crashes on planes, where there are more than eight or just eight.

    allowed: faulty packets before the first frame.
    """
    first: tuple[int, int] | None = None
    setup: tuple[str, str] | None = None
    converter: Any = None
    done, seconds = 0, 0.0
    for packet in container.demux(stream):
        try:
            frames = packet.decode()
        except av.FFmpegError:
            if first is None and allowed > 0:
                allowed -= 1
                continue
            if done == 0 or first is None:
                raise
            raise _Refused("broken off", seconds=seconds) from None
        for frame in frames:
            seconds += frame.samples / frame.sample_rate
            first = first or (frame.sample_rate, frame.layout.nb_channels)
            if (frame.sample_rate, frame.layout.nb_channels) != first:
                continue  # not the same sound; counted
            done += frame.samples
            if setup != (frame.format.name, frame.layout.name):
                setup = (frame.format.name, frame.layout.name)
                converter = av.AudioResampler(format="flt", layout=frame.layout, rate=frame.sample_rate)
            yield from converter.resample(frame)
    if first and abs(seconds - done / first[0]) > 1e-6:
        raise _Refused("changes", rate=first[0], channels=first[1], seconds=done / first[0], whole=seconds)


if __name__ == "__main__":
    main()
