"""Which silence cache: faithfulness to `padded` against the number of cached keys, for every kind of cache.

Prompts are encoded by the exported graphs, `padded` and then with each cache; the caches are made from other
recordings (`--calibrate`). The columns: keys given to the graph beside m = 300 computed ones; mean over all frames of
the cosine to the same frame of the padded run; for `final` also the clip with the lowest mean; seconds of the encoder
graph alone for 4 windows of 300 positions (`padded`: of 1500).
Exit status 1 when the cache that `export` makes by default falls below 0.995 in any output's mean.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median

import numpy as np
from _common import Table, environment, exported, parser, pin, say, subset, write_report
from matplotlib.figure import Figure
from numpy.typing import NDArray

from voxstrata.audio.decode import decode
from voxstrata.audio.units import FRAMES_PER_SECOND, SAMPLES_PER_FRAME, WINDOW_FRAMES, encoder_frames
from voxstrata.corpus import read_corpus
from voxstrata.engine import Encoder
from voxstrata.exporters import ExportSpec
from voxstrata.exporters.silence import calibrated_silence, pure_silence
from voxstrata.model import Context, ModelFolder, Silence

LEVELS = (-1.5, -1.25, -1.0, -0.75, -0.5, -0.25, 0.0)  # log-mel of silence, from digital to behind loud speech
SHOWN_LEVELS = (-1.5, -1.0, -0.75, -0.5)
KMEANS = (16, 32, 64, 96, 128)  # keys per layer and head
CONTIGUOUS = 16  # neighbouring positions to one key
FRAMES, BATCH, REPEATS = 300, 4, 7  # of the timing
THRESHOLD = 0.995  # mean frame cosine

States = dict[str, NDArray[np.float32]]


@dataclass(frozen=True)
class Clip:
    """A prompt: samples at 16 kHz, valid frames, log-mel level of its padding, padded states [frames, d]."""

    name: str
    audio: NDArray[np.float32]
    frames: int
    level: float
    padded: States


@dataclass(frozen=True)
class Row:
    """A cache and how faithful it is: mean cosine over all frames by output, worst clip of `final`."""

    cache: str
    keys: int
    cosine: dict[str, float]
    worst: float
    worst_id: str
    encode_seconds: float


@dataclass(frozen=True)
class WithCache(ModelFolder):
    """The exported model with another silence cache."""

    cache: Silence

    def silence(self) -> Silence:
        return self.cache


def contiguous(silence: Silence, size: int) -> Silence:
    """Every `size` neighbouring positions in one group, counted from the end of the window."""
    group = (np.arange(silence.key.shape[2])[::-1] // size).astype(np.int16)
    return replace(silence, group=np.broadcast_to(group, silence.key.shape[:3]).copy())


def encode_seconds(encoder: Encoder, clips: Sequence[Clip], frames: int) -> float:
    """Median seconds of the encoder graph for BATCH windows of `frames` computed positions."""
    speech = (FRAMES - FRAMES_PER_SECOND) * SAMPLES_PER_FRAME
    audio = [clips[i % len(clips)].audio[:speech] for i in range(BATCH)]
    times = []
    for _ in range(REPEATS + 1):
        before = encoder.seconds["encode"]
        encoder.run(audio, frames)
        times.append(encoder.seconds["encode"] - before)
    return median(times[1:])  # the first one allocates


def read_clips(encoder: Encoder, corpus: str, clips: int) -> list[Clip]:
    """Decode the prompts and run them `padded`; recordings over 30 s are refused."""
    chosen = subset(read_corpus(corpus), clips)
    found = []
    for i, name in enumerate(chosen.table["id"].to_pylist()):
        audio = decode(chosen.absolute(i))
        frames = encoder_frames(len(audio))
        if frames > WINDOW_FRAMES:
            sys.exit(f"{chosen.absolute(i)}: over 30 s; measure on recordings that fit one window")
        states = encoder.run([audio], WINDOW_FRAMES)
        padded = {o: s[0, :frames] for o, s in zip(encoder.outputs, states, strict=True)}
        # behind the speech stands the log-mel's floor, which depends on the loudest cell of the recording
        found.append(Clip(name, audio, frames, float(encoder.log_mel([audio], WINDOW_FRAMES).min()), padded))
    return found


def measure(cache: str, keys: int, parts: Sequence[tuple[Encoder, Sequence[Clip]]]) -> Row:
    """Encode every clip with the encoder it comes with, one at a time, and compare with `padded`."""
    total: dict[str, float] = {}
    worst, worst_id, frames = np.inf, "", 0
    for encoder, clips in parts:
        for clip in clips:
            states = encoder.run([clip.audio], encoder.context.frames_computed(clip.frames))
            for output, (state, *_) in zip(encoder.outputs, states, strict=True):
                a, b = state[: clip.frames].astype(np.float64), clip.padded[output]
                cosine = (a * b).sum(1) / (np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1))
                total[output] = total.get(output, 0.0) + float(cosine.sum())
                if output == "final" and cosine.mean() < worst:
                    worst, worst_id = float(cosine.mean()), clip.name
            frames += clip.frames
    positions = WINDOW_FRAMES if encoder.context.mode == "padded" else FRAMES
    row = Row(cache, keys, {o: t / frames for o, t in total.items()}, worst, worst_id, 0.0)
    say(f"{cache}: {keys} keys, final {row.cosine['final']:.5f}")
    return replace(row, encode_seconds=encode_seconds(encoder, clips, positions))


def draw(rows: Sequence[Row], path: Path, title: str) -> None:
    """Keys against what is lost of `final`: a point for each cache, labels of crowded ones moved down."""
    figure = Figure(figsize=(8, 5.5), layout="constrained")
    axes = figure.subplots()
    axes.set_xscale("symlog", linthresh=16)
    axes.set_xticks([0, 16, 32, 64, 128, 256, 512, 1200], ["0", "16", "32", "64", "128", "256", "512", "1200"])
    axes.minorticks_off()
    axes.set_yscale("log")
    axes.set(xlabel=f"cached keys beside m = {FRAMES}", ylabel="1 − mean frame cosine of final to padded", title=title)
    axes.grid(alpha=0.3, which="both")
    lost = {row.cache: 1 - row.cosine["final"] for row in rows}
    for kind in ("trimmed", "pure", "calibrated"):
        own = [row for row in rows if row.cache.startswith(kind)]
        axes.plot([r.keys for r in own], [lost[r.cache] for r in own], "o", label=kind)
    axes.legend()
    low, high = np.log(axes.get_ylim())
    points = 72 * figure.get_figheight() * 0.8 / (high - low)  # of height per unit of log
    for side in (True, False):  # labels left of the points at the right edge, right of the others
        label = np.inf  # height of the label above, in points
        for row in sorted((r for r in rows if (r.keys > WINDOW_FRAMES // 2) is side), key=lambda r: -lost[r.cache]):
            at = points * (np.log(lost[row.cache]) - low)
            label = min(at, label - 11)
            axes.annotate(
                row.cache.rpartition(", ")[2],
                (row.keys, lost[row.cache]),
                (-12 if side else 12, label - at),
                textcoords="offset points",
                ha="right" if side else "left",
                va="center",
                fontsize=8,
                arrowprops={"arrowstyle": "-", "color": "0.6", "shrinkA": 0, "relpos": (float(side), 0.5)},
            )
    figure.savefig(path, dpi=150)


def main() -> int:
    p = parser(__doc__)
    p.add_argument("--clips", type=int, default=60, help="prompts to measure on")
    args = p.parse_args()
    pin(args.threads)
    facts = environment(args.threads)
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="voxstrata-bench-") as folder:
        checkpoint, model = exported(args, Path(folder))
        chosen = {r["name"]: None for r in model.card.silence["recordings"]}
        calibration = read_corpus(args.calibrate)
        ids = calibration.table["id"].to_pylist()
        recordings = [(name, decode(calibration.absolute(ids.index(name)))) for name in chosen]

        padded = Encoder(model, context=Context("padded"), threads=args.threads)
        clips = read_clips(padded, args.corpus, args.clips)
        rows.append(measure("padded", 0, [(padded, clips)]))
        trimmed = Encoder(model, context=Context("trimmed"), threads=args.threads)
        rows.append(measure("trimmed", 0, [(trimmed, clips)]))

        def cached(silence: Silence) -> Encoder:
            return Encoder(WithCache(model.path, model.card, silence), threads=args.threads)

        def add(cache: str, silence: Silence) -> None:
            rows.append(measure(cache, silence.for_frames(FRAMES).key.shape[2], [(cached(silence), clips)]))

        for level in SHOWN_LEVELS:
            add(f"pure, level {level}", pure_silence(checkpoint, 0, level)[0])
        nearest = [min(LEVELS, key=lambda level: abs(level - c.level)) for c in clips]
        parts = []
        for level in sorted(set(nearest)):
            own = [c for c, n in zip(clips, nearest, strict=True) if n == level]
            parts.append((cached(pure_silence(checkpoint, 0, level)[0]), own))
        rows.append(measure(f"pure, nearest of {len(LEVELS)} levels", WINDOW_FRAMES - FRAMES, parts))
        whole, _ = calibrated_silence(checkpoint, recordings, 0)
        add("calibrated, all positions", whole)
        add(f"calibrated, {CONTIGUOUS} neighbours to one", contiguous(whole, CONTIGUOUS))
        for groups in KMEANS:
            add(f"calibrated, k-means {groups}", calibrated_silence(checkpoint, recordings, groups)[0])

    layers = model.card.layers
    shown = (f"layer_{layers // 2:02d}", f"layer_{layers:02d}", "final")
    header = ["cache", "cached keys", *shown, "worst clip of final", f"encode s, {BATCH} windows"]
    cells = [
        [
            r.cache,
            str(r.keys),
            *(f"{r.cosine[o]:.5f}" for o in shown),
            f"{r.worst:.4f} {r.worst_id}",
            f"{r.encode_seconds:.3f}",
        ]
        for r in rows
    ]
    default = next(r for r in rows if r.cache == f"calibrated, k-means {ExportSpec().silence_keys}")
    lowest = min(default.cosine, key=default.cosine.__getitem__)
    levels = [c.level for c in clips]
    write_report(
        "silence",
        f"Silence caches, {checkpoint.name}",
        args,
        facts,
        {"rows": [asdict(r) for r in rows], "pad_levels": levels},
        [Table(f"{len(clips)} prompts, caches calibrated on {len(recordings)} other recordings:", header, cells)],
        [
            f"Pad levels of the prompts: {min(levels):.2f} to {max(levels):.2f}, median {median(levels):.2f}.",
            "Condensed caches keep a masked key for a group whose positions are all computed.",
            f"Default of `export` ({default.cache}): lowest mean {default.cosine[lowest]:.5f} ({lowest}), "
            f"asked {THRESHOLD}.",
        ],
    )
    draw(rows[1:], args.out / "silence.png", f"Silence caches, {checkpoint.name}, {len(clips)} prompts")
    return int(not all(cosine >= THRESHOLD for cosine in default.cosine.values()))


if __name__ == "__main__":
    sys.exit(main())
