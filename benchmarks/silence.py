"""Which silence cache: the frontier of the encoder's time against the drift of its states.

A subset of the corpus, drawn with a fixed seed (`--clips`), is encoded `padded` and then with each cache; the caches
are made from other recordings (`--calibrate`). Choose here; what was chosen is reported on other clips by
silence_default.py.

Faithfulness: mean over all frames of the cosine to the same frame of the padded run; for `final` also the clip with the
lowest mean. Time: that of the encoder's graph for the CPU alone, all outputs, as the engine runs it (each thread a
batch of its own, so many batches at once), for windows of several numbers of computed positions m, as a ratio to no
cache. It depends on the number of cached keys alone, so it is measured for some numbers of keys, which take turns (the
least of all repeats counts), and interpolated between them.
All are caches for all lengths; `export` makes a calibrated one bucket by bucket, each as here.
Exit status 1 when the one with the default number of keys misses a mark (`final` 0.995, worst clip 0.98).
"""

from __future__ import annotations

import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from _common import Table, environment, exported, parser, pin, say, subset, write_report
from _silence import MEAN, WORST, Clip, Summary, WithCache, calibration, marks, measure, padded_clip, shown
from _silence_families import Condenser
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from voxstrata.base.folders import scratch_folder
from voxstrata.corpus import read_corpus
from voxstrata.encoders import Context, ModelFolder, Silence
from voxstrata.encoders.frames import FRAMES_PER_SECOND, WINDOW_FRAMES
from voxstrata.engine import CpuEncoder, Runtime
from voxstrata.exporters import ExportSpec
from voxstrata.exporters.checkpoint import Checkpoint
from voxstrata.exporters.silence_cache import PURE_LEVEL, condense, run_on_recordings, run_on_silence
from voxstrata.store import StoreSpec

LEVELS = (-1.5, -1.25, -1.0, -0.75, -0.5, -0.25, 0.0)  # log-mel of silence, from digital to behind loud speech
KEYS = (16, 32, 64, 96)  # per layer and head
RUNS = (64, 32, 16, 8, 4)  # neighbouring positions to one key
EDGES = (75, 150, 300, 600)  # computed positions: 1.5 to 12 s
TIMED = (8, 16, 32, 64, 96, 192, 384)  # numbers of cached keys, besides none and all
TURNS, REPEATS = 3, 5

KMEANS = ("k-means", "…")  # how the names of calibrated k-means families begin
PACKAGE = "… in logits, weighted"  # what `export` does, with a calibrated cache bucket by bucket
Seconds = dict[int, dict[int, float]]  # by m and number of cached keys, of one window


@dataclass(frozen=True)
class Row:
    """A cache: family and size in words, most cached keys beside each m of EDGES, time of the encoder as a ratio to no
    cache for each, and how faithful it is."""

    family: str
    size: str
    keys: dict[int, int]
    time: dict[int, float]
    near: Summary


def window_seconds(model: ModelFolder, context: Context, threads: int) -> dict[int, list[float]]:
    """Seconds of the graph for one window, by m: one for each repeat and thread, the first ones left out."""
    encoder = CpuEncoder(model, StoreSpec(context=context), Runtime(threads=threads))
    noise = np.random.default_rng(0).standard_normal(max(EDGES) * 320, np.float32) / 10
    found = {}
    for m in EDGES:
        batch, speech = encoder.batch_size(m), m - FRAMES_PER_SECOND
        log_mel = encoder.log_mel([noise[: speech * 320]] * batch, m)

        def turn(
            _: int, m: int = m, batch: int = batch, speech: int = speech, log_mel: np.ndarray = log_mel
        ) -> list[float]:
            times = []
            for _ in range(REPEATS + 1):
                begin = time.perf_counter()
                encoder.encode(log_mel, m, keep=speech)
                times.append((time.perf_counter() - begin) / batch)
            return times[1:]

        with ThreadPoolExecutor(encoder.concurrency) as pool:
            found[m] = [s for times in pool.map(turn, range(encoder.concurrency)) for s in times]
    return found


def time_keys(model: ModelFolder, condenser: Condenser, threads: int) -> Seconds:
    """Least seconds of a window by m and number of cached keys; the numbers of keys take turns."""
    caches: dict[int, Silence | None] = {0: None} | {n: condenser.keys(n) for n in TIMED} | {-1: condenser.whole}
    times: dict[int, dict[int, list[float]]] = {m: defaultdict(list) for m in EDGES}
    for turn in range(TURNS):
        say(f"timing, turn {turn + 1} of {TURNS}")
        for keys, cache in caches.items():
            cached = WithCache(model.path, model.card, cache) if cache else model
            context = Context("bucketed" if cache else "trimmed")
            for m, seconds in window_seconds(cached, context, threads).items():
                times[m][keys if keys >= 0 else WINDOW_FRAMES - m] += seconds
    return {m: {keys: min(s) for keys, s in by_keys.items()} for m, by_keys in times.items()}


def ratio(seconds: Seconds, m: int, keys: int) -> float:
    """Time with so many cached keys as a ratio to none, interpolated."""
    known = sorted(seconds[m])
    return float(np.interp(keys, known, [seconds[m][k] for k in known]) / seconds[m][0])


def condensed(c: Condenser) -> Iterator[tuple[str, str, Silence]]:
    """Family, size and cache of every way to condense."""
    for run in RUNS:
        yield "contiguous groups", f"{run} to one", c.contiguous(run)
    families: dict[str, Callable[[int], Silence]] = {
        "contiguous, longer far away": c.geometric,
        "k-means of keys": c.keys,
        "… weighted": c.weighted,
        "… in logits": c.unweighted,
        PACKAGE: c.package,
        "… in logits, weighted, with values": c.with_values,
        "… in logits, weighted, fitted": c.fitted,
        "… in logits, weighted, each bucket": c.each_bucket,
        "… in logits, weighted, bands": c.banded,
    }
    for family, make in families.items():
        for keys in KEYS:
            yield family, str(keys), make(keys)


def nearest_level(
    checkpoint: Checkpoint, model: ModelFolder, clips: Sequence[Clip], outputs: Sequence[str], threads: int
) -> Summary:
    """Every clip with the pure cache whose level is nearest to that of its own padding."""
    found = []
    for level in LEVELS:
        own = [c for c in clips if min(LEVELS, key=lambda at: abs(at - c.level)) == level]
        if own:
            cached = WithCache(model.path, model.card, condense(run_on_silence(checkpoint, level), 0)[0])
            found += measure(CpuEncoder(cached, StoreSpec(outputs), Runtime(threads=threads)), own)
    return Summary.of(found)


def tables(rows: Sequence[Row], seconds: Seconds, outputs: Sequence[str], caption: str) -> list[Table]:
    """Rows of their own for what is not k-means; k-means families by number of keys; the time."""
    apart = [
        [
            f"{r.family}{', ' if r.size else ''}{r.size}",
            str(r.keys[EDGES[2]]),
            *(f"{r.near.cosine[o]:.5f}" for o in outputs),
            f"{r.near.worst:.4f} {r.near.worst_id}",
            *(f"{r.time[m]:.3f}" for m in EDGES),
        ]
        for r in rows
        if not r.family.startswith(KMEANS)
    ]
    families = dict.fromkeys(r.family for r in rows if r.family.startswith(KMEANS))
    by_size = [
        [family, *(f"{r.near.cosine['final']:.5f} / {r.near.worst:.4f}" for r in rows if r.family == family)]
        for family in families
    ]
    timed = sorted(seconds[EDGES[0]])[:-1]
    timing = [
        [str(m), *(f"{1000 * seconds[m][k]:.1f}" for k in timed), f"{1000 * seconds[m][WINDOW_FRAMES - m]:.1f}"]
        for m in EDGES
    ]
    header = ["cache", "keys", *outputs, "worst clip of final", *(f"time, m = {m}" for m in EDGES)]
    return [
        Table(f"{caption}; keys at m = {EDGES[2]}; time of the encoder as a ratio to no cache:", header, apart),
        Table(
            "Calibrated, k-means by number of keys: mean of `final` / worst clip:",
            ["calibrated", *(f"{k} keys" for k in KEYS)],
            by_size,
        ),
        Table("Milliseconds of one window, by m and cached keys:", ["m", *map(str, timed), "all"], timing),
    ]


def draw(rows: Sequence[Row], seconds: Seconds, path: Path, title: str) -> None:
    """What is lost of `final`, mean and worst clip: against keys and time at the shortest windows; k-means closely."""
    m = EDGES[0]
    figure = Figure(figsize=(11, 9), layout="constrained")
    grid = figure.subplots(2, 2)
    families = list(dict.fromkeys(r.family for r in rows))
    whole = next(r for r in rows if r.family == "calibrated")
    drifts: list[tuple[str, float, Callable[[Row], float]]] = [
        ("1 − mean frame cosine of final to padded", MEAN, lambda r: 1 - r.near.cosine["final"]),
        ("1 − mean frame cosine of final, worst clip", WORST, lambda r: 1 - r.near.worst),
    ]
    # a colour for each way of k-means; the others in grey, hollow
    styles: dict[str, dict[str, Any]] = {}
    for i, family in enumerate(f for f in families if f.startswith(KMEANS)):
        styles[family] = {"color": f"C{i}", "marker": "osD^v<>P"[i % 8], "markersize": 6, "linewidth": 1}
    styles[PACKAGE] |= {"color": "black", "linewidth": 2.5, "markersize": 9, "zorder": 3}
    for i, family in enumerate(f for f in families if f not in styles):
        styles[family] = {"color": "0.45", "marker": "XsD^vo>h*"[i % 9], "markersize": 7, "markerfacecolor": "white"}
    for (label, mark, lost), (left, right) in zip(drifts, grid, strict=True):
        for family in families:
            own = [r for r in rows if r.family == family]
            left.plot([r.keys[m] for r in own], [lost(r) for r in own], label=family, **styles[family])
            if family.startswith(KMEANS):
                right.plot(range(len(own)), [lost(r) for r in own], **styles[family])
        left.axhline(1 - mark, color="0.3", linestyle="--", linewidth=1)
        left.annotate(
            f"the mark, {mark}", (1, 1 - mark), (-4, 3), ("axes fraction", "data"), "offset points", ha="right"
        )
        right.axhline(lost(whole), color="0.3", linestyle=":", linewidth=1)
        right.annotate(
            "all positions", (1, lost(whole)), (-4, 3), ("axes fraction", "data"), "offset points", ha="right"
        )
        times = [next(r.time[m] for r in rows if r.family == PACKAGE and r.size == str(k)) for k in KEYS]
        right.set_xticks(range(len(KEYS)), [f"{k} keys\n× {t:.2f}" for k, t in zip(KEYS, times, strict=True)])
        left.set_ylabel(label)
        left.set_yscale("log")
        left.set_xscale("symlog", linthresh=16, linscale=0.4)
        known = [k for k in sorted(seconds[m]) if k != 8]  # beside 0 there is no room
        left.set_xticks(known, [f"{k}\n{ratio(seconds, m, k) - 1:+.0%}" for k in known])
        left.xaxis.set_minor_locator(NullLocator())
        left.set_xlim(-1, 2000)
        right.set_ylabel(f"{label} (axis cut)", fontsize=9)
        for axes in (left, right):
            axes.grid(alpha=0.3, which="both")
    grid[1][0].set_xlabel(f"cached keys at m = {m}, and what they add to the time of the encoder")
    grid[1][1].set_xlabel("calibrated, k-means: cached keys and time")
    figure.legend(*grid[0][0].get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize=9)
    figure.suptitle(title)
    figure.savefig(path, dpi=110)


def main() -> int:
    p = parser(__doc__)
    p.add_argument("--clips", type=int, default=60, help="prompts to measure on")
    args = p.parse_args()
    pin(args.threads)
    facts = environment(args.threads)
    rows: list[Row] = []
    with scratch_folder("silence") as folder:
        checkpoint, model = exported(args, Path(folder))
        recordings = calibration(model, args.calibrate)
        condenser = Condenser(run_on_recordings(checkpoint, recordings))
        seconds = time_keys(model, condenser, args.threads)

        outputs = shown(model.card.layers)
        chosen = subset(read_corpus(args.corpus), args.clips)
        padded = CpuEncoder(model, StoreSpec(outputs, context=Context("padded")), Runtime(threads=args.threads))
        with ThreadPoolExecutor(padded.concurrency) as pool:
            clips = list(pool.map(lambda row: padded_clip(padded, chosen, row), range(len(chosen))))

        def add(family: str, size: str, near: Summary, keys: dict[int, int]) -> None:
            rows.append(Row(family, size, keys, {m: ratio(seconds, m, n) for m, n in keys.items()}, near))
            say(f"{family} {size}: final {near.cosine['final']:.5f}, worst {near.worst:.4f}")

        def try_cache(family: str, size: str, silence: Silence) -> None:
            encoder = CpuEncoder(
                WithCache(model.path, model.card, silence), StoreSpec(outputs), Runtime(threads=args.threads)
            )
            keys = {m: silence.for_frames(m).key.shape[2] for m in EDGES}
            add(family, size, Summary.of(measure(encoder, clips)), keys)

        trimmed = CpuEncoder(model, StoreSpec(outputs, context=Context("trimmed")), Runtime(threads=args.threads))
        add("no cache (trimmed)", "", Summary.of(measure(trimmed, clips)), dict.fromkeys(EDGES, 0))
        pure = Condenser(run_on_silence(checkpoint))
        try_cache("pure", "all positions", pure.whole)
        try_cache("pure, k-means of keys", "64", pure.keys(64))
        for keys in (32, 64):
            try_cache("pure, … in logits, weighted", str(keys), pure.package(keys))
        near = nearest_level(checkpoint, model, clips, outputs, args.threads)
        add(f"pure, nearest of {len(LEVELS)} levels", "all positions", near, {m: WINDOW_FRAMES - m for m in EDGES})
        try_cache("calibrated", "all positions", condenser.whole)
        for family, size, silence in condensed(condenser):
            try_cache(family, size, silence)

    default = next(r for r in rows if r.family == PACKAGE and r.size == str(ExportSpec().silence_keys))
    levels = [c.level for c in clips]
    verdict = marks(default.near.cosine["final"], default.near.worst)
    write_report(
        "silence",
        f"Silence caches, {checkpoint.name}",
        args,
        facts,
        {"rows": [asdict(r) for r in rows], "window_seconds": seconds, "pad_levels": levels},
        tables(
            rows, seconds, outputs, f"{len(clips)} prompts, caches calibrated on {len(recordings)} other recordings"
        ),
        [
            f"Pad levels of the prompts: {min(levels):.2f} to {max(levels):.2f}, median {median(levels):.2f}; "
            f"`pure` is at {PURE_LEVEL}.",
            "Condensed caches keep a masked key for a group whose positions are all computed.",
            f"Default of `export`, {default.size} keys: marks of `final`, mean {MEAN} / worst clip {WORST}: {verdict}.",
        ],
    )
    draw(rows, seconds, args.out / "silence.png", f"Silence caches, {checkpoint.name}, {len(clips)} prompts")
    return int("MISSED" in verdict)


if __name__ == "__main__":
    sys.exit(main())
