"""Damaged recordings in whole runs: each costs itself alone, and the good ones beside it stay what they are.

Small files of every container that libsndfile and PyAV write are damaged: bytes flipped, the header rewritten, cut,
pieces moved, doubled or taken from another file. Runs of `--files` damaged and a few good ones are probed and decoded
on four threads, as `extract` does, each run in a process of its own. Counted are the outcomes of the damaged files by
the words of their reasons. Exit status 1 if a run does not end well, or a good recording is not the same bit for bit.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import resource
import subprocess
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from voxstrata.audio.decode import decode, probe
from voxstrata.base.errors import AudioError, error_text
from voxstrata.base.folders import scratch_folder

_THREADS = 4
# What soundfile writes (container, subtype), then what PyAV does (container, encoder, layout).
BY_SOUNDFILE = {
    "wav": ("WAV", "PCM_16"), "float.wav": ("WAV", "FLOAT"), "ima.wav": ("WAV", "IMA_ADPCM"),
    "gsm.wav": ("WAV", "GSM610"), "rf64": ("RF64", "PCM_24"),
    "aiff": ("AIFF", "PCM_16"), "au": ("AU", "ULAW"), "caf": ("CAF", "PCM_16"),
    "alac.caf": ("CAF", "ALAC_16"), "w64": ("W64", "PCM_16"), "sph": ("NIST", "PCM_16"), "voc": ("VOC", "PCM_16"),
    "flac": ("FLAC", "PCM_16"), "ogg": ("OGG", "VORBIS"), "opus": ("OGG", "OPUS"), "mp3": ("MP3", "MPEG_LAYER_III"),
    "htk": ("HTK", "PCM_16"), "paf": ("PAF", "PCM_16"), "svx": ("SVX", "PCM_16"), "mat": ("MAT5", "PCM_16"),
}  # fmt: skip
BY_PYAV = {
    "m4a": ("mp4", "aac", "mono"), "71.m4a": ("mp4", "aac", "7.1"), "alac.m4a": ("mp4", "alac", "stereo"),
    "pcm.mov": ("mov", "pcm_s16le", "mono"), "mkv": ("matroska", "aac", "mono"),
    "8.mka": ("matroska", "pcm_s16le", "7.1"), "16.mka": ("matroska", "pcm_s16le", "hexadecagonal"),
    "vorbis.mka": ("matroska", "libvorbis", "mono"),
    "webm": ("webm", "libopus", "mono"), "51.webm": ("webm", "libopus", "5.1"), "aac": ("adts", "aac", "mono"),
    "mp2": ("mp2", "mp2", "mono"), "wma": ("asf", "wmav2", "stereo"), "ac3": ("ac3", "ac3", "5.1"),
    "avi": ("avi", "libmp3lame", "mono"), "flv": ("flv", "aac", "mono"), "ts": ("mpegts", "aac", "mono"),
    "tta": ("tta", "tta", "mono"), "wv": ("wv", "wavpack", "mono"), "amr": ("amr", "libopencore_amrnb", "mono"),
    "mp3.wav": ("wav", "libmp3lame", "mono"), "ms.wav": ("wav", "adpcm_ms", "mono"), "oga": ("ogg", "flac", "mono"),
    "spx": ("ogg", "libspeex", "mono"), "nut": ("nut", "aac", "mono"), "bare.mp3": ("mp3", "libmp3lame", "mono"),
}  # fmt: skip


def write_seeds(folder: Path, seconds: float = 0.4) -> dict[str, bytes]:
    """A small sound in every container that can be written here."""
    import av

    folder.mkdir(parents=True, exist_ok=True)
    seeds = {}
    for name, (container, subtype) in BY_SOUNDFILE.items():
        for rate in (16_000, 8_000):
            try:
                soundfile.write(folder / name, _sound(round(seconds * rate)), rate, subtype, format=container)
            except soundfile.SoundFileError:
                continue
            seeds[name] = (folder / name).read_bytes()
            break
    for name, (container, encoder, layout) in BY_PYAV.items():
        for rate in (16_000, 48_000, 8_000):
            try:
                with av.open(str(folder / name), "w", format=container) as file:
                    stream = file.add_stream(encoder, rate=rate, layout=layout)
                    stream.codec_context.open()
                    context = stream.codec_context
                    resampler = av.AudioResampler(context.format.name, layout, rate, context.frame_size or 1024)
                    samples = _sound(round(seconds * rate))[None]
                    frame = av.AudioFrame.from_ndarray(samples.astype(np.float32), "flt", "mono")
                    frame.sample_rate, frame.pts = rate, 0
                    for part in [*resampler.resample(frame), *resampler.resample(None), None]:
                        for packet in stream.encode(part):
                            file.mux(packet)
            except (av.FFmpegError, ValueError):
                continue
            seeds[name] = (folder / name).read_bytes()
            break
    return seeds


def _sound(samples: int) -> np.ndarray:
    """Rises in pitch, so that no part of it is like another."""
    rng = np.random.default_rng(0)
    rising = np.sin(np.pi / 4 * np.arange(samples) ** 2 / samples)
    return 0.3 * rising + 0.003 * rng.standard_normal(samples)


def damage(data: bytes, other: bytes, rng: np.random.Generator) -> bytes:
    """`data` damaged in one to three ways."""
    out = bytearray(data)
    for _ in range(rng.integers(1, 4)):
        size = max(len(out), 1)
        at, to = sorted(int(i) for i in rng.integers(0, size, 2))
        head = int(rng.integers(0, min(size, 600)))
        match rng.integers(0, 9):
            case 0:  # single bytes
                for i in rng.integers(0, size, rng.integers(1, 20)):
                    out[i : i + 1] = rng.bytes(1)
            case 1:  # bits of the header
                for i in rng.integers(0, min(size, 600), rng.integers(1, 8)):
                    out[i : i + 1] = bytes([out[i] ^ (1 << int(rng.integers(0, 8)))]) if out else b""
            case 2:  # a number of the header
                width = int(rng.choice([1, 2, 4, 8]))
                value = [bytes(width), b"\xff" * width, b"\x7f" + b"\xff" * (width - 1), rng.bytes(width)]
                out[head : head + width] = value[rng.integers(0, 4)]
            case 3:
                del out[at:]
            case 4:
                del out[at:to]
            case 5:  # doubled
                out[to:to] = out[at:to]
            case 6:  # a piece of another file
                out[at:to] = other[: to - at]
            case 7:  # noise or zeros over a stretch
                out[at : min(to, at + 400)] = (
                    rng.bytes(min(to, at + 400) - at) if rng.integers(0, 2) else bytes(to - at)
                )
            case 8:  # a name of a chunk, atom or codec
                names = [m.start() for m in re.finditer(rb"[a-zA-Z0-9]{4}", bytes(out[:4000]))] or [0]
                out[(i := int(rng.choice(names))) : i + 4] = rng.choice([b"mp4a", b"data", b"moov", b"fLaC", b"ac-3"])
    return bytes(out)


def _run(folder: Path) -> None:
    """Probe and decode all files of `folder`; print the outcome of each, and peak memory."""
    outcomes: dict[str, str] = {}
    started = 0
    popen = subprocess.Popen

    def counted(*args: Any, **kwargs: Any) -> Any:
        nonlocal started
        started += 1
        return popen(*args, **kwargs)

    subprocess.Popen = counted  # type: ignore[assignment, misc]

    def take(path: Path) -> None:
        try:
            outcomes[path.name] = hashlib.sha256(decode(path, probe(path)).tobytes()).hexdigest()
        except AudioError as error:
            outcomes[path.name] = f"refused: {error}"
        except Exception as error:
            outcomes[path.name] = f"error: {error_text(error)}"

    with ThreadPoolExecutor(_THREADS) as pool:
        list(pool.map(take, sorted(folder.iterdir())))
    peak = [resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    print(json.dumps({"outcomes": outcomes, "peak": peak, "started": started}))


def _kind(outcome: str) -> str:
    """An outcome without names and numbers."""
    if ":" not in outcome:
        return "decoded"
    text = re.sub(r"^(refused|error): \S*?[^:]*: ", r"\1: ", outcome) if outcome.startswith("refused") else outcome
    return re.sub(r"codec .* cannot", "codec … cannot", re.sub(r"\d[\d.]*", "…", text))[:90]


def main() -> int:
    """Run and print."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    p.add_argument("--count", type=int, default=1000, help="damaged files for each seed")
    p.add_argument("--files", type=int, default=250, help="of them in a run")
    p.add_argument("--keep", type=Path, help="folder for files whose decoder died, failed or took long")
    p.add_argument("--run", type=Path, help=argparse.SUPPRESS)
    args = p.parse_args()
    if args.run:
        _run(args.run)
        return 0
    counts: Counter[str] = Counter()
    bad, deaths, peak, begin = 0, 0, [0, 0], time.perf_counter()
    with scratch_folder("fuzz") as scratch:
        seeds = write_seeds(Path(scratch) / "seeds")
        names = sorted(seeds)
        good = {f"good.{name}": seeds[name] for name in ("wav", "flac", "mp3", "m4a", "webm", "71.m4a")}
        expected: dict[str, str] = {}
        for seed in args.seeds:
            rng = np.random.default_rng(seed)
            for run in range(-(-args.count // args.files)):
                folder = Path(scratch) / f"{seed}_{run}"
                folder.mkdir()
                for name, data in good.items():
                    (folder / name).write_bytes(data)
                for i in range(args.files):
                    name, other = rng.choice(names, 2)
                    (folder / f"{i:04d}.{name}").write_bytes(damage(seeds[name], seeds[other], rng))
                done = subprocess.run([sys.executable, __file__, "--run", str(folder)], capture_output=True, text=True)
                if done.returncode:
                    bad += 1
                    print(f"seed {seed}, run {run}: ended with {done.returncode}\n{done.stderr[-2000:]}")
                    continue
                answer = json.loads(done.stdout.splitlines()[-1])
                peak = [max(pair) for pair in zip(peak, answer["peak"], strict=True)]
                deaths += max(0, answer["started"] - _THREADS)
                for name, outcome in sorted(answer["outcomes"].items()):
                    if name in good:
                        if outcome != expected.setdefault(name, outcome) or ":" in outcome:
                            bad += 1
                            print(f"seed {seed}, run {run}: {name}: {outcome}")
                        continue
                    counts[_kind(outcome)] += 1
                    if args.keep and ("FFmpeg's process" in outcome or outcome.startswith("error")):
                        args.keep.mkdir(parents=True, exist_ok=True)
                        (args.keep / f"{seed}_{run}_{name}").write_bytes((folder / name).read_bytes())
    print(f"{counts.total()} damaged files of {len(names)} kinds, {time.perf_counter() - begin:.0f} s")
    print(f"peak memory of a run {peak[0] / 1024:.0f} MB, of a decoder's process {peak[1] / 1024:.0f} MB")
    print(f"decoders' processes that died: {deaths}; runs or good recordings that went wrong: {bad}")
    for kind, count in counts.most_common():
        print(f"{count:6d}  {kind}")
    return int(bad > 0)


if __name__ == "__main__":
    sys.exit(main())
