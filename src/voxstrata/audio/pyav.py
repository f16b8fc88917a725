"""PyAV, an extra, reads what libsndfile does not. FFmpeg crashes on some files, so it runs in a process beside ours.

Each thread that needs one has its own, started for its first file and kept for the next ones.
"""

import errno
import importlib.util
import json
import os
import signal
import struct
import subprocess
import sys
import threading
import weakref
from collections.abc import Iterator
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from voxstrata.audio.source import FileSource, Source
from voxstrata.base.errors import AudioError
from voxstrata.base.plain import counted

HANG_SECONDS = 300  # without an answer: only a decoder that will never answer takes so long
_CHILD = Path(__file__).with_name("pyav_child.py")
_HEAD_BYTES = 12
_MORE = b'{"do": "more"}'

Samples = npt.NDArray[np.float32]

_of_thread = threading.local()


class _DiedError(Exception):
    """The process has ended or hangs; the text says how."""


class _KilledError(_DiedError):
    """It was killed, which nobody does but a machine that is out of memory."""


class _Child:
    """A process that decodes, see `pyav_child.py`."""

    def __init__(self) -> None:
        self.used_before = False  # for another file
        self.owner = os.getpid()
        self.connection, theirs = Pipe()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-P", os.fspath(_CHILD), str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
                process_group=0,  # Ctrl-C is for us
            )
        self._end = weakref.finalize(self, _end, self._process, self.connection, self.owner)

    def end(self) -> None:
        self._end()

    def tell(self, *messages: bytes) -> None:
        try:
            for message in messages:
                self.connection.send_bytes(message)
        except OSError:
            raise self._death() from None

    def ask(self, *messages: bytes) -> bytes:
        """The answer. Whatever interrupts waiting for it ends the process, since the answer would go to the next."""
        try:
            self.tell(*messages)
            busy = self._cpu_seconds()
            if not self.connection.poll(HANG_SECONDS):
                if (now := self._cpu_seconds()) is not None and busy is not None and now - busy < HANG_SECONDS / 10:
                    raise TimeoutError(errno.ETIMEDOUT, f"the disk gave no answer for {HANG_SECONDS} s")
                raise _DiedError(f"gave no answer for {HANG_SECONDS} s")
            return self.connection.recv_bytes()
        except TimeoutError:
            self.end()
            raise
        except (EOFError, OSError):
            raise self._death() from None
        except BaseException:
            self.end()
            raise

    def _cpu_seconds(self) -> float | None:
        """What the process has computed for so far; None where that is not known."""
        try:
            fields = Path(f"/proc/{self._process.pid}/stat").read_text(encoding="utf-8", errors="replace")
            user, system = fields.rpartition(")")[2].split()[11:13]
            return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")
        except (OSError, ValueError):
            return None

    def _death(self) -> _DiedError:
        code = self._process.wait()
        self.end()
        if code == -signal.SIGKILL:
            return _KilledError("FFmpeg's process was killed: out of memory")
        return _DiedError(
            f"ended by signal {-code} ({signal.Signals(-code).name})" if code < 0 else f"ended with exit code {code}"
        )


def _end(process: "subprocess.Popen[bytes]", connection: Connection, owner: int) -> None:
    if os.getpid() == owner:  # not in a fork of it
        connection.close()
        process.kill()
        process.wait()


def _take() -> _Child:
    children: list[_Child] = _of_thread.__dict__.setdefault("idle", [])
    while children:
        child = children.pop()
        if child.owner == os.getpid():
            return child
    return _Child()


def _give_back(child: _Child) -> None:
    child.used_before = True
    _of_thread.__dict__.setdefault("idle", []).append(child)


class AvBlocks(Iterator[tuple[Samples, int]]):
    """Blocks of the first audio stream of `source`, float32 of shape (frames, channels), each with its rate.

    stated: the seconds of the header, for messages. Close it, or take all its blocks.
    """

    def __init__(self, source: Source, stated: float | None = None) -> None:
        if importlib.util.find_spec("av") is None:
            raise AudioError(
                f"{source.name}: not a format libsndfile reads. If it is audio, pip install 'voxstrata[anyaudio]' "
                "(PyAV) or convert it to flac; if not, remove it"
            )
        self.codec_frame = 0  # of a lossy codec, the longest so far
        self._source, self._stated, self._blocks = source, stated, 0
        self._child: _Child | None = _take()
        self.header: dict[str, Any] = json.loads(self._ask(*self._opening())[_HEAD_BYTES:])

    def __next__(self) -> tuple[Samples, int]:
        if self._child is None:
            raise StopIteration
        answer = self._ask(_MORE)
        if len(answer) == _HEAD_BYTES:
            self.close()
            raise StopIteration
        rate, channels, self.codec_frame = struct.unpack("<3I", answer[:_HEAD_BYTES])
        self._blocks += 1
        return np.frombuffer(answer, np.float32, offset=_HEAD_BYTES).reshape(-1, channels), rate

    def close(self) -> None:
        """Let go of the file."""
        child, self._child = self._child, None
        if child and not child.connection.closed:
            try:
                child.tell(b'{"do": "close"}')
                _give_back(child)
            except _DiedError:  # nobody waits for it
                pass

    def _opening(self) -> list[bytes]:
        path = os.fspath(self._source.path.absolute()) if isinstance(self._source, FileSource) else None
        content = [] if path else [self._source.read()]
        return [json.dumps({"do": "open", "path": path}).encode(), *content]

    def _ask(self, *request: bytes) -> bytes:
        assert self._child is not None
        try:
            answer = self._child.ask(*request)
        except _DiedError as death:
            if not self._child.used_before:
                self._child = None
                if isinstance(death, _KilledError):
                    raise MemoryError(str(death)) from None
                if "exit code" in str(death):
                    raise AudioError(
                        f"{self._source.name}: PyAV does not start here ({death}); pip install --force-reinstall av"
                    ) from None
                raise AudioError(
                    f"{self._source.name}: FFmpeg's process {death} while it decoded this file: damaged, or FFmpeg is; "
                    "convert it to flac or wav, or remove it"
                ) from None
            # An earlier file may have broken it.
            self._child = _Child()
            answer = self._again(request)
        if answer[:4] == bytes(4) and (error := json.loads(answer[_HEAD_BYTES:])).get("error"):
            self.close()
            raise self._refusal(error)
        return answer

    def _again(self, request: tuple[bytes, ...]) -> bytes:
        if request != (_MORE,):
            return self._ask(*request)
        self._ask(*self._opening())
        for _ in range(self._blocks):
            self._ask(_MORE)
        return self._ask(_MORE)

    def _refusal(self, error: dict[str, Any]) -> Exception:
        name, kind = self._source.name, error["error"]
        if kind == "system":  # the disk's fault or the network's
            return OSError(error["number"], error["text"], name)
        if kind == "changes":
            return changes_midway(name, error["rate"], error["channels"], error["seconds"], error["whole"])
        if kind == "no decoder":
            codec = f"codec {error['codec']}" if error["codec"] else "its codec"
            return AudioError(f"{name}: {codec} cannot be decoded here; convert it to flac or wav, or remove it")
        if kind == "broken off":
            return broken_off(name, error["seconds"], self._stated)
        if kind == "memory":
            return AudioError(
                f"{name}: FFmpeg needs over 1 GB of memory for it: damaged; convert it to flac or wav, or remove it"
            )
        if kind == "failed":
            return AudioError(f"{name}: FFmpeg failed ({error['text']}); convert it to flac or wav, or remove it")
        return not_audio(name)


def broken_off(name: str, seconds: float, stated: float | None) -> AudioError:
    """Why a recording of which no more than `seconds` can be decoded is refused."""
    header = f"header says {stated:.2f} s, " if stated else ""
    return AudioError(
        f"{name}: {header}decoding broke off after about {seconds:.2f} s: truncated or damaged; "
        "re-encode it or remove it"
    )


def changes_midway(name: str, rate: int, channels: int, seconds: float, whole: float) -> AudioError:
    """Why a recording is refused of which `seconds` of `whole` seconds are as it begins."""
    return AudioError(
        f"{name}: its format changes midway: of {whole:.2f} s the first {seconds:.2f} s are at {rate} Hz with "
        f"{counted(channels, 'channel')}; split it, or re-encode it at one rate"
    )


def not_audio(name: str) -> AudioError:
    """Why a recording is refused that nothing reads."""
    return AudioError(f"{name}: not audio that libsndfile or FFmpeg can read; convert it to flac or wav, or remove it")
