"""Every container that libsndfile and PyAV write and read, beside what the ffmpeg program makes of it."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import soxr

from voxstrata.audio.decode import decode, probe

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
# How many samples at 16 kHz ours may be longer; all others are as long as ffmpeg's. The header counts what an encoder
# adds: in GSM the rest of a block, elsewhere two frames of the codec at the most, filled with zeros. Of ALAC in CAF
# ffmpeg leaves out the end.
LONGER = {"gsm.wav": 320, "mkv": 2048, "webm": 640, "51.webm": 640, "mp3.wav": 1152, "alac.caf": 4096}
# libsndfile decodes opus with libopus; ffmpeg's own decoder is far from the sound that was written.
OTHER_DECODER = {"opus"}


def ffmpeg() -> str:
    try:
        import imageio_ffmpeg
    except ImportError:
        program = shutil.which("ffmpeg")
        return program or pytest.skip("there is no ffmpeg here; pip install imageio-ffmpeg")
    return str(imageio_ffmpeg.get_ffmpeg_exe())


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A sound of 1.7 s that rises in pitch, in every container."""
    pytest.importorskip("av")
    folder = tmp_path_factory.mktemp("containers")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        from fuzz import write_seeds
    return {name: folder / name for name in write_seeds(folder, 1.7)}


def test_all_lengths_and_samples_are_those_of_ffmpeg(corpus: dict[str, Path]) -> None:
    program, compared = ffmpeg(), 0
    different: dict[str, tuple[int, int, float]] = {}
    for name, path in corpus.items():
        info = probe(path)
        command = [program, "-v", "error", "-i", str(path), "-map", "0:a:0", "-f", "f32le"]
        command += ["-ar", str(info.source_rate), "-ac", str(info.channels), "-"]
        done = subprocess.run(command, capture_output=True)
        if done.returncode or not done.stdout:
            continue  # not a format of ffmpeg's
        compared += 1
        theirs = np.frombuffer(done.stdout, np.float32).reshape(-1, info.channels).mean(axis=1)
        theirs = soxr.resample(theirs, info.source_rate, 16_000, quality="HQ")
        ours = decode(path, info)
        size = len(ours) + len(theirs)
        product = np.fft.irfft(np.fft.rfft(ours, size) * np.conj(np.fft.rfft(theirs, size)), size)
        late = int(product.argmax())
        late -= size if late > size // 2 else 0
        both = min(len(ours) - max(late, 0), len(theirs) - max(-late, 0))
        a, b = ours[max(late, 0) :][:both], theirs[max(-late, 0) :][:both]
        error = float(np.sqrt(np.mean((a - b) ** 2)) / np.std(b))
        longer = len(ours) - len(theirs)
        if late or not 0 <= longer <= LONGER.get(name, 0) or (error > 1e-3 and name not in OTHER_DECODER):
            different[name] = (late, longer, error)
    assert different == {}
    assert compared >= 30
