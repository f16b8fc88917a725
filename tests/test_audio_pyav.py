"""Promises of decoding through PyAV: no file takes the process, and nothing is dropped without a word."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pytest
from test_audio import noise

from voxstrata.audio import pyav
from voxstrata.audio.decode import decode, probe
from voxstrata.audio.pyav import AvBlocks
from voxstrata.audio.source import FileSource, Source
from voxstrata.base.errors import AudioError

pytest.importorskip("av")


def write_channels(path: Path, codec: str, rate: int, signal: np.ndarray, layout: str) -> Path:
    """`signal` of shape (frames, channels), float32, in the container that the suffix names."""
    import av

    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate)
        stream.layout = layout
        name = stream.codec_context.format.name
        size = stream.codec_context.frame_size or len(signal)
        for at in range(0, len(signal), size):
            part = signal[at : at + size]
            data = part if "flt" in name else np.round(part * 32767).astype(np.int16)
            array = np.ascontiguousarray(data.T if name.endswith("p") else data.reshape(1, -1))
            frame = av.AudioFrame.from_ndarray(array, format=name, layout=layout)
            frame.sample_rate, frame.pts = rate, at
            for packet in stream.encode(frame):
                container.mux(packet)
        for packet in stream.encode(None):
            container.mux(packet)
    return path


DECODE = "import sys; from voxstrata.audio.decode import decode; decode(sys.argv[1]).tofile(sys.argv[2])"


def decode_apart(path: Path) -> np.ndarray:
    """The samples of `path`, decoded in a process of its own, whose crash is a failure and not the end of the tests."""
    out = path.with_suffix(".f32")
    done = subprocess.run([sys.executable, "-c", DECODE, str(path), str(out)], capture_output=True, text=True)
    assert done.returncode == 0, (done.returncode, done.stderr[-500:])
    return np.fromfile(out, np.float32)


@pytest.mark.parametrize("layout", ["7.1", "hexadecagonal", "22.2"])
def test_many_channels_are_averaged(tmp_path: Path, layout: str) -> None:
    channels = {"7.1": 8, "hexadecagonal": 16, "22.2": 24}[layout]
    signal = np.stack([noise(8_000, seed) for seed in range(channels)], axis=1)
    path = write_channels(tmp_path / "x.mka", "pcm_s16le", 16_000, signal, layout)
    np.testing.assert_allclose(decode_apart(path), signal.mean(axis=1, dtype=np.float64), atol=2e-5)


def test_eight_planes_of_aac_are_averaged(shared: Path) -> None:
    path = shared / "faults" / "01_eight_channels" / "aac71.m4a"
    if not path.is_file():
        pytest.skip(f"{path} is absent")
    assert decode_apart(path).shape == (8_000,)


def alive(pid: int) -> bool:
    """Whether the process runs; one that ended and was not waited for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.fixture
def m4a(tmp_path: Path) -> Path:
    """2 s of noise, AAC at 16 kHz."""
    return write_channels(tmp_path / "good.m4a", "aac", 16_000, noise(32_000)[:, None], "mono")


# The child as it is, but for what a file's name asks of it.
MISBEHAVES = """
import os, signal, sys, time
sys.path.insert(0, {folder!r})
import pyav_child
whole = pyav_child._packed_frames
def packed_frames(container, stream, allowed):
    name = os.path.basename(container.name)
    for i, frame in enumerate(whole(container, stream, allowed)):
        if "crash" in name and i == 20: os.kill(os.getpid(), signal.SIGSEGV)
        while "hang" in name and i == 20: pass
        if "wait" in name and i == 20: time.sleep(1000)
        if "kill" in name and i == 20: os.kill(os.getpid(), signal.SIGKILL)
        if "bomb" in name and i == 20: bytearray(3 << 29)
        if "poison" in name: pyav_child.poisoned = True
        if getattr(pyav_child, "poisoned", False) and "poison" not in name and i == 20: os.abort()
        yield frame
pyav_child._packed_frames = packed_frames
pyav_child.main()
"""


@pytest.fixture
def misbehaving(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """FFmpeg that crashes or hangs on files of such names, or is broken for the next file by one called poison."""
    script = tmp_path / "misbehaving.py"
    script.write_text(MISBEHAVES.format(folder=str(Path(pyav.__file__).parent)))
    monkeypatch.setattr(pyav, "_CHILD", script)
    monkeypatch.setattr(pyav, "_of_thread", type(pyav._of_thread)())


@pytest.mark.usefixtures("misbehaving")
@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("crash", r"FFmpeg's process ended by signal 11 \(SIGSEGV\)"),
        ("hang", "FFmpeg's process gave no answer for 2 s"),
        ("bomb", "FFmpeg needs over 1 GB"),
    ],
)
def test_what_crashes_or_hangs_ffmpeg_costs_its_recording(
    tmp_path: Path, m4a: Path, fault: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = decode(m4a)
    bad = m4a.rename(tmp_path / f"{fault}.m4a")
    info = probe(bad)
    if fault == "hang":
        monkeypatch.setattr(pyav, "HANG_SECONDS", 2)
    with pytest.raises(AudioError, match=rf"{fault}\.m4a: {message} .* convert it to flac or wav"):
        decode(bad, info)
    np.testing.assert_array_equal(decode(bad.rename(m4a)), good)


@pytest.mark.usefixtures("misbehaving")
@pytest.mark.parametrize(("fault", "error"), [("wait", TimeoutError), ("kill", MemoryError)])
def test_a_disk_that_does_not_answer_and_memory_that_is_short_are_no_fault_of_a_recording(
    tmp_path: Path, m4a: Path, fault: str, error: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    if sys.platform != "linux":
        pytest.skip("what a process has computed is told by Linux")
    info, good = probe(m4a), decode(m4a)
    with monkeypatch.context() as patch:
        if fault == "wait":
            patch.setattr(pyav, "HANG_SECONDS", 2)
        with pytest.raises(error):
            decode(m4a.rename(tmp_path / f"{fault}.m4a"), info)
    np.testing.assert_array_equal(decode((tmp_path / f"{fault}.m4a").rename(m4a)), good)


@pytest.mark.usefixtures("misbehaving")
def test_what_an_earlier_file_broke_does_not_cost_the_next(tmp_path: Path, m4a: Path) -> None:
    good = decode(m4a)
    poison = tmp_path / "poison.m4a"
    poison.write_bytes(m4a.read_bytes())
    decode(poison)
    np.testing.assert_array_equal(decode(m4a), good)


@dataclass(frozen=True)
class InMemory(Source):
    content: bytes

    name = "memory.m4a"

    def size(self) -> int:
        return len(self.content)

    def open(self) -> BinaryIO:
        return BytesIO(self.content)


def test_bytes_in_memory_are_decoded_as_the_file_is(m4a: Path) -> None:
    source = InMemory(m4a.read_bytes())
    assert probe(source) == probe(m4a)
    np.testing.assert_array_equal(decode(source), decode(m4a))


def test_files_decoded_at_once_and_in_turns_stay_apart(tmp_path: Path, m4a: Path) -> None:
    paths = [
        write_channels(tmp_path / f"{i}.mka", "pcm_s16le", 16_000, noise(60_000, i)[:, None], "mono") for i in range(6)
    ]
    expected = [np.round(noise(60_000, i) * 32767).astype(np.float32) / 32768 for i in range(6)]
    with ThreadPoolExecutor(3) as pool:
        for got, wanted in zip(pool.map(decode, paths * 3), expected * 3, strict=True):
            np.testing.assert_array_equal(got, wanted)
    first, second = (AvBlocks(FileSource(path)) for path in paths[:2])
    with closing(first), closing(second):
        for (a, _), (b, _) in zip(first, second, strict=True):
            assert len(a) == len(b)
            assert not np.array_equal(a, b)


def test_a_file_that_is_not_read_to_its_end_leaves_nothing_to_the_next(m4a: Path) -> None:
    whole = decode(m4a)
    with closing(AvBlocks(FileSource(m4a))) as blocks:
        next(blocks)
    np.testing.assert_array_equal(decode(m4a), whole)


BUSY = """
import signal, sys
from pathlib import Path
from voxstrata.audio import pyav
from voxstrata.audio.source import FileSource
pyav._CHILD = Path(sys.argv[2])
blocks = pyav.AvBlocks(FileSource(Path(sys.argv[1])))
print(blocks._child._process.pid, flush=True)
"""


@pytest.fixture
def busy(tmp_path: Path, m4a: Path) -> Callable[[str, str], subprocess.Popen[str]]:
    """Starts a program that has opened a file called so, and goes on with `then`; it prints the id of its child."""
    script = tmp_path / "misbehaving.py"
    script.write_text(MISBEHAVES.format(folder=str(Path(pyav.__file__).parent)))

    def start(name: str, then: str) -> subprocess.Popen[str]:
        m4a.rename(tmp_path / name)
        command = [sys.executable, "-c", BUSY + then, str(tmp_path / name), str(script)]
        # a group of its own, to which Ctrl-C goes as a whole
        return subprocess.Popen(command, stdin=-1, stdout=-1, stderr=-1, text=True, process_group=0)

    return start


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT, None])
def test_no_process_is_left_behind(
    busy: Callable[[str, str], subprocess.Popen[str]], end: signal.Signals | None
) -> None:
    process = busy("hang.m4a", "list(blocks)") if end else busy("good.m4a", "next(blocks)")
    assert process.stdout is not None
    child = int(process.stdout.readline())
    if end:
        time.sleep(0.3)  # until the child is at it
        assert alive(child)
        os.killpg(process.pid, end)
    _, errors = process.communicate(timeout=30)
    deadline = time.monotonic() + 20
    while alive(child):
        assert time.monotonic() < deadline, "the child still runs"
        time.sleep(0.05)
    assert errors.count("Traceback") == (1 if end == signal.SIGINT else 0)  # ours alone


def test_ctrl_c_is_for_us_alone(busy: Callable[[str, str], subprocess.Popen[str]]) -> None:
    process = busy(
        "good.m4a", "signal.signal(signal.SIGINT, lambda *_: None); print(1, flush=True); input()\nnext(blocks)"
    )
    assert process.stdout is not None
    assert process.stdin is not None
    process.stdout.readline()
    process.stdout.readline()
    os.killpg(process.pid, signal.SIGINT)
    time.sleep(0.2)
    _, errors = process.communicate("\n", timeout=30)
    assert (process.returncode, errors) == (0, "")


def test_a_thread_that_ends_takes_its_process_along(m4a: Path) -> None:
    pids: list[int] = []

    def take() -> None:
        decode(m4a)
        pids.append(pyav._of_thread.idle[0]._process.pid)

    with ThreadPoolExecutor(1) as pool:
        pool.submit(take).result()
    assert not alive(pids[0])


def test_a_fork_does_not_share_the_process(m4a: Path) -> None:
    whole = decode(m4a)
    pid = os.fork()
    if pid == 0:
        same = np.array_equal(decode(m4a), whole)
        os._exit(0 if same and [child.owner for child in pyav._of_thread.idle] == [os.getpid()] else 1)
    assert os.waitpid(pid, 0)[1] == 0
    np.testing.assert_array_equal(decode(m4a), whole)


def test_a_pyav_that_does_not_start_says_so(tmp_path: Path, m4a: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = tmp_path / "broken.py"
    script.write_text("raise ImportError('libavcodec.so: cannot open shared object file')")
    monkeypatch.setattr(pyav, "_CHILD", script)
    monkeypatch.setattr(pyav, "_of_thread", type(pyav._of_thread)())
    with pytest.raises(AudioError, match=r"good\.m4a: PyAV does not start .* pip install"):
        probe(m4a)


@pytest.mark.parametrize("text", ["ffconcat version 1.0\nfile good.m4a\n", "#EXTM3U\n#EXTINF:1,\ngood.m4a\n"])
def test_a_playlist_does_not_pull_in_its_neighbours(tmp_path: Path, m4a: Path, text: str) -> None:
    (tmp_path / "x.mka").write_text(text)
    with pytest.raises(AudioError, match="not audio"):
        probe(tmp_path / "x.mka")
