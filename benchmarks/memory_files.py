"""Peak memory of extracting one recording: hours at 8 to 192 kHz, and files that are more than they say.

Each is a corpus of its own, extracted by a process of its own with a small Whisper of random weights (256 wide, one
block, all outputs), all frames and with `--pool mean`. The peak (VmHWM, Linux only) is that process's and, apart, the
largest of the processes that FFmpeg runs in. Shown is what it is above the peak for a recording of 30 seconds.
Exit status 1 where that is more than 300 MB.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import soundfile

from voxstrata.base.folders import scratch_folder
from voxstrata.engine import Runtime, extract
from voxstrata.exporters import export
from voxstrata.store import StoreSpec

ALLOWED_MB = 300
_SECOND = 10  # seconds of sound that are written again and again


def hours(rate: int, channels: int, count: float, kind: str = "FLAC") -> Callable[[Path], None]:
    """A writer of so many hours."""

    def write(path: Path) -> None:
        rng = np.random.default_rng(rate)
        piece = (rng.standard_normal((rate * _SECOND, channels)) * 300).astype(np.int16)
        with soundfile.SoundFile(path, "w", rate, channels, "PCM_16", format=kind) as file:
            for _ in range(round(count * 3600 / _SECOND)):
                file.write(piece)

    return write


def bomb(path: Path) -> None:
    """Half an hour of zeros at 655,350 Hz behind a header that says one second."""
    rate = 655_350
    with soundfile.SoundFile(path, "w", rate, 1, "PCM_16", format="FLAC") as file:
        for _ in range(1800):
            file.write(np.zeros(rate, np.int16))
    data = bytearray(path.read_bytes())
    data[21:26] = bytes([data[21] & 0xF0]) + rate.to_bytes(4, "big")
    path.write_bytes(data)


def sparse(path: Path) -> None:
    """8 GB of nothing."""
    with path.open("wb") as file:
        file.truncate(8 << 30)


def trailing(path: Path) -> None:
    """A second of sound in Matroska, then 8 GB of nothing."""
    import av

    with av.open(str(path), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=16_000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.full((1, 16_000), 500, np.int16), format="s16", layout="mono")
        frame.sample_rate = 16_000
        for packet in [*stream.encode(frame), *stream.encode(None)]:
            container.mux(packet)
    with path.open("ab") as file:
        file.truncate(8 << 30)


def lossy(path: Path) -> None:
    """Three hours of AAC at 48 kHz in MP4."""
    import av

    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=48_000, layout="stereo")
        piece = (np.random.default_rng(0).standard_normal((2, 1024)) * 0.01).astype(np.float32)
        for at in range(0, 3 * 3600 * 48_000, 1024):
            frame = av.AudioFrame.from_ndarray(piece, format="fltp", layout="stereo")
            frame.sample_rate, frame.pts = 48_000, at
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


BASE = "30 s, 16 kHz"
FILES: dict[str, tuple[str, Callable[[Path], None]]] = {
    BASE: ("wav", hours(16_000, 1, 30 / 3600, "WAV")),
    "FLAC bomb: 1 s said, 30 min at 655 kHz": ("flac", bomb),
    "8 GB sparse mp3": ("mp3", sparse),
    "1 s of Matroska, then 8 GB of zeros": ("mka", trailing),
    "3 h, 8 kHz, wav": ("wav", hours(8_000, 1, 3, "WAV")),
    "3 h, 16 kHz": ("flac", hours(16_000, 1, 3)),
    "3 h, 48 kHz, stereo": ("flac", hours(48_000, 2, 3)),
    "3 h, 96 kHz, stereo": ("flac", hours(96_000, 2, 3)),
    "3 h, 192 kHz": ("flac", hours(192_000, 1, 3)),
    "3 h, 48 kHz, stereo, AAC": ("m4a", lossy),
}


def write_checkpoint(path: Path) -> None:
    import torch
    from transformers import WhisperConfig, WhisperFeatureExtractor, WhisperForConditionalGeneration

    torch.manual_seed(0)
    config = WhisperConfig(
        vocab_size=64, d_model=256, encoder_layers=1, decoder_layers=1, encoder_attention_heads=4,
        decoder_attention_heads=4, encoder_ffn_dim=256, decoder_ffn_dim=64, num_mel_bins=80, pad_token_id=0,
        bos_token_id=1, eos_token_id=2, decoder_start_token_id=1, suppress_tokens=None, begin_suppress_tokens=None,
    )  # fmt: skip
    WhisperForConditionalGeneration(config).save_pretrained(path)
    WhisperFeatureExtractor().save_pretrained(path)


def peak_mb(process: str = "self") -> float:
    status = Path(f"/proc/{process}/status").read_text(encoding="utf-8", errors="replace")
    return next((int(line.split()[1]) / 1000 for line in status.splitlines() if line.startswith("VmHWM")), 0.0)


def child(corpus: str, model: str, store: str, pool: str) -> None:
    """One extraction; prints what it took as JSON."""
    begin, said = time.perf_counter(), ""
    # a recording that is good, so that there is something to plan
    soundfile.write(Path(corpus) / "good.wav", np.zeros(16_000), 16_000)
    done = extract(corpus, model, store, StoreSpec(pool="mean" if pool == "mean" else None), Runtime(threads=1))
    said = next(iter(done.failures.values()), "")
    helpers = [p for task in Path("/proc/self/task").iterdir() for p in (task / "children").read_text().split()]
    figures = {"peak": peak_mb(), "helper": max(map(peak_mb, helpers), default=0.0), "said": said}
    print(json.dumps(figures | {"seconds": time.perf_counter() - begin}))


def main() -> int:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--only", nargs="+", default=[""], help="recordings whose names hold one of these texts")
    args = p.parse_args()
    if not Path("/proc/self/status").exists():
        sys.exit("peak memory is read from /proc, which this system does not have")
    worst = 0.0
    with scratch_folder("memory-files") as name:
        folder = Path(name)
        write_checkpoint(folder / "checkpoint")
        export(str(folder / "checkpoint"), folder / "model")
        base: dict[str, float] = {}
        print("| recording | stored | MB above 30 s | FFmpeg's process, MB | seconds | |\n|---|---|---|---|---|---|")
        chosen = [what for what in FILES if what == BASE or any(text in what for text in args.only)]
        for what, (suffix, write) in ((what, FILES[what]) for what in chosen):
            corpus = folder / "corpus"
            corpus.mkdir()
            write(corpus / f"x.{suffix}")
            for pool in ("frames", "mean"):
                store = folder / f"{pool}.zarr"
                command = [sys.executable, __file__, "child", str(corpus), str(folder / "model"), str(store), pool]
                done = subprocess.run(command, capture_output=True, text=True)
                if done.returncode:
                    sys.exit(f"{what}, {pool}: exit {done.returncode}: {done.stderr[-2000:]}")
                found = json.loads(done.stdout.splitlines()[-1])
                above = found["peak"] - base.setdefault(pool, found["peak"])
                worst = max(worst, above, found["helper"])
                told = "refused" if found["said"] else ""
                cells = [what, pool, f"{above:.0f}", f"{found['helper']:.0f}", f"{found['seconds']:.0f}", told]
                print(f"| {' | '.join(cells)} |", flush=True)
                subprocess.run(["rm", "-rf", str(store)], check=True)
            subprocess.run(["rm", "-rf", str(corpus)], check=True)
    print(f"\nThe most: {worst:.0f} MB, allowed {ALLOWED_MB}.")
    return int(worst > ALLOWED_MB)


if __name__ == "__main__":
    if sys.argv[1:2] == ["child"]:
        child(*sys.argv[2:])
    else:
        sys.exit(main())
