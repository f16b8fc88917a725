"""Promises of decoding through PyAV: no file takes the process, and nothing is dropped without a word."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from test_audio import noise

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
