"""What segments of one long recording cost beside decoding it whole: bytes read, seconds, peak memory.

A made-up recording of `--hours` at 8 kHz is written in each format. `--segments` segments lie one after another in it,
with pauses between. Each row is a process of its own: `whole` decodes the file once, block by block; `segments` decodes
them in order by one reader and `--threads` threads, without resampling; `alone` opens the file anew for each of 20.
Bytes are what the process asked the system for (rchar of /proc/self/io; Linux only) after the imports.
Exit status 1 when segments read more than 1.2 times the file.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import soundfile
from _common import Table, environment, peak_mib, pin, say, write_report

from voxstrata.audio.decode import probe
from voxstrata.audio.info import part_of
from voxstrata.audio.segments import SegmentReader
from voxstrata.audio.source import FileSource, Recording
from voxstrata.base.folders import scratch_folder

RATE = 8_000
FORMATS = {"wav": "PCM_16", "flac": "PCM_16", "ogg": "VORBIS", "opus": "OPUS", "mp3": "MPEG_LAYER_III"}
ALLOWED = 1.2  # bytes read / bytes of the file
ALONE = 20


def write(path: Path, hours: float) -> None:
    """Minutes of a tone that wavers, under noise."""
    rng, t = np.random.default_rng(0), np.arange(60 * RATE) / RATE
    minute = (0.1 * np.sin(2 * np.pi * (200 * t + 20 * np.sin(3 * t)))).astype(np.float32)
    container = {"opus": "OGG"}.get(path.suffix[1:], path.suffix[1:].upper())
    with soundfile.SoundFile(path, "w", RATE, 1, FORMATS[path.suffix[1:]], format=container) as file:
        for _ in range(round(60 * hours)):
            for second in np.split(minute + 0.01 * rng.standard_normal(len(t), np.float32), 60):
                file.write(second)


def bytes_read() -> int:
    """By this process so far."""
    return int(Path("/proc/self/io").read_text(encoding="ascii").split()[1])


def child(path: str, how: str, count: str, threads: str) -> None:
    """One way of decoding; prints its figures as JSON."""
    source, read, begin = FileSource(Path(path)), bytes_read(), time.perf_counter()
    if how == "whole":
        with soundfile.SoundFile(path) as file:
            file.seekable = lambda: False
            while len(file.read(1 << 17, dtype="float32")):
                pass
    else:
        whole = probe(source)
        step = whole.source_frames / RATE / int(count)
        rng = np.random.default_rng(0)
        segments = [Recording(source, i * step, step * float(rng.uniform(0.5, 0.9))) for i in range(int(count))]
        infos = [part_of(segment, whole) for segment in segments]
        if how == "segments":
            with SegmentReader() as reader, ThreadPoolExecutor(int(threads)) as pool:
                for _ in pool.map(lambda info: sum(map(len, reader.blocks(source, info))), infos):
                    pass
        else:
            for i in np.linspace(0, len(infos) - 1, ALONE).astype(int):
                with SegmentReader() as reader:
                    sum(map(len, reader.blocks(source, infos[i])))
    seconds = time.perf_counter() - begin
    print(json.dumps({"read": bytes_read() - read, "seconds": seconds, "peak_mib": peak_mib()}))


def main() -> int:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--hours", type=float, default=10)
    p.add_argument("--segments", type=int, default=10_000)
    p.add_argument("--formats", nargs="+", choices=FORMATS, default=[*FORMATS])
    p.add_argument("--threads", type=int, default=2, help="cores and threads")
    p.add_argument("--out", type=Path, default=Path("bench"), help="folder for the report (JSON and Markdown)")
    args = p.parse_args()
    pin(args.threads)
    found: dict[str, dict[str, dict[str, float]]] = {}
    with scratch_folder("segments") as folder:
        for name in args.formats:
            say(f"writing {args.hours:g} h of {name}")
            path = Path(folder) / f"x.{name}"
            write(path, args.hours)
            found[name] = {"file": {"bytes": path.stat().st_size}}
            for how in ("whole", "segments", "alone"):
                say(f"{name}: {how}")
                command = [sys.executable, __file__, "child", str(path), how, str(args.segments), str(args.threads)]
                done = subprocess.run(command, check=True, capture_output=True, text=True)
                found[name][how] = json.loads(done.stdout)
            path.unlink()
    rows = [
        [
            name,
            f"{figures['file']['bytes'] / 2**20:.0f}",
            *(f"{figures[how]['read'] / figures['file']['bytes']:.2f}" for how in ("whole", "segments")),
            *(f"{figures[how]['seconds']:.1f}" for how in ("whole", "segments")),
            f"{figures['alone']['seconds'] / ALONE:.3f}",
            *(f"{figures[how]['peak_mib']:.0f}" for how in ("whole", "segments")),
        ]
        for name, figures in found.items()
    ]
    header = ["format", "MiB", "× read: whole", "segments", "s: whole", "segments", "one alone", "peak MiB", "segments"]
    caption = f"{args.segments} segments of {args.hours:g} h at {RATE // 1000} kHz, mono:"
    write_report(
        "segments",
        "Segments of one long recording",
        args,
        environment(args.threads),
        found,
        [Table(caption, header, rows)],
        [f"Allowed: {ALLOWED} times the file."],
    )
    return int(any(f["segments"]["read"] > ALLOWED * f["file"]["bytes"] for f in found.values()))


if __name__ == "__main__":
    if sys.argv[1:2] == ["child"]:
        child(*sys.argv[2:])
    else:
        sys.exit(main())
