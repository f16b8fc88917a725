"""How speed and cost move with the length of recordings, the size of the model, and the number of outputs.

Encoders of Whisper's shapes with random weights, exported with the defaults (pure silence cache) and so validated
against PyTorch: a failed validation ends the run. Recordings are made-up sound in three mixes of lengths: telephone
prompts (mean 4.6 s), FLEURS-like read sentences (log-normal, mean 12 s), and 25 to 30 s. Every cell is one measurement
of `voxstrata.engine.measuring.measure`: `extract()` into a temporary store for about `--seconds`, at least 4 clips
and a trial of as many, whichever is longer; the table says how many seconds of audio each cell was.

A core-hour is an hour of one core: threads / audio-hours per hour. Efficiency is the arithmetic the outputs need /
(wall × sgemm); sgemm is measured before and after every cell, and the mean taken. No cell is repeated.
"""

from __future__ import annotations

import argparse
import gc
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from _common import Table, environment, pin, say, write_report
from transformers import WhisperConfig, WhisperFeatureExtractor
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from voxstrata.base.folders import scratch_folder
from voxstrata.encoders import ModelFolder
from voxstrata.encoders.context import Mode
from voxstrata.engine import Runtime
from voxstrata.engine.budget import sgemm_rate
from voxstrata.engine.measuring import Throughput, measure
from voxstrata.engine.synthetic import MIXES
from voxstrata.exporters import export

# d_model, layers, heads, mel bins
SHAPES = {
    "tiny": (384, 4, 6, 80),
    "base": (512, 6, 8, 80),
    "small": (768, 12, 12, 80),
    "medium": (1024, 24, 16, 80),
    "large-v3": (1280, 32, 20, 128),
}
CONTEXTS: tuple[Mode, ...] = ("bucketed", "padded")


def random_encoder(shape: str, folder: Path) -> ModelFolder:
    """An exported encoder of one of SHAPES with seeded random weights."""
    d, layers, heads, mels = SHAPES[shape]
    torch.manual_seed(0)
    config = WhisperConfig(
        d_model=d, encoder_layers=layers, encoder_attention_heads=heads, encoder_ffn_dim=4 * d, num_mel_bins=mels
    )
    WhisperEncoder(config).save_pretrained(folder / "checkpoint")
    WhisperFeatureExtractor(feature_size=mels).save_pretrained(folder / "checkpoint")
    model = export(str(folder / "checkpoint"), folder / "model")
    gc.collect()
    return model


def cells(t: Throughput, threads: int) -> list[str]:
    """Figures of one measurement, as the tables show them."""
    return [
        f"{t.audio_hours_per_hour:.1f}",
        f"{threads / t.audio_hours_per_hour:.3f}",
        f"{3600 * t.stored_bytes / t.audio_seconds / 1e9:.2f}",
        f"{t.efficiency:.0%}",
        f"{t.audio_seconds:.0f}",
    ]


def main() -> int:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--shapes", nargs="+", choices=[*SHAPES], default=[*SHAPES], help="sizes to measure")
    p.add_argument("--outputs-of", choices=[*SHAPES], default="base", help="the size that outputs are varied on")
    p.add_argument("--seconds", type=float, default=20, help="of each measurement")
    p.add_argument("--threads", type=int, default=2)
    p.add_argument("--out", type=Path, default=Path("bench"), help="folder for the report (JSON and Markdown)")
    args = p.parse_args()
    pin(args.threads)
    torch.set_num_threads(args.threads)
    facts = environment(args.threads)
    by_size, by_outputs = [], []
    rates: list[float] = []
    results: list[dict[str, Any]] = []

    def one(shape: str, model: ModelFolder, mode: Mode, mix: str, outputs: str) -> Throughput:
        before = sgemm_rate(args.threads)
        t = measure(model, mode, MIXES[mix], outputs, Runtime(threads=args.threads), seconds=args.seconds)
        rates.append((before + sgemm_rate(args.threads)) / 2)
        t = replace(t, efficiency=t.flops / (t.seconds * rates[-1]))
        say(f"{shape} {mix} {mode}, {len(t.outputs)} outputs: {t.audio_hours_per_hour:.1f} audio-hours per hour")
        results.append({"shape": shape, "sgemm_flops_per_second": rates[-1], **vars(t)})
        return t

    try:
        for shape in dict.fromkeys([*args.shapes, args.outputs_of]):
            with scratch_folder("mixes") as folder:
                say(f"exporting {shape}")
                model = random_encoder(shape, Path(folder))
                if shape in args.shapes:
                    for mix in MIXES:
                        for mode in CONTEXTS:
                            t = one(shape, model, mode, mix, "all")
                            by_size.append([shape, f"{mix}, mean {MIXES[mix].mean} s", mode, *cells(t, args.threads)])
                if shape == args.outputs_of:
                    names = model.card.outputs
                    for chosen in ("final", ",".join((names[len(names) // 2], names[-2], "final")), "all"):
                        t = one(shape, model, "bucketed", "fleurs", chosen)
                        by_outputs.append([shape, str(len(t.outputs)), *cells(t, args.threads)])
    finally:  # what took an hour is not lost to a full disk in the last shape
        figures = [
            "audio-hours per hour (RTFx)",
            "core-hours per audio-hour",
            "GB per audio-hour",
            "efficiency",
            "seconds of audio",
        ]
        write_report(
            "mixes",
            "Length mixes, model sizes, numbers of outputs",
            args,
            facts,
            {"measurements": results},
            [
                Table("All outputs as float16:", ["size", "lengths", "context", *figures], by_size),
                Table("`bucketed`, fleurs, by number of outputs:", ["size", "outputs", *figures], by_outputs),
            ],
            # none where the first model already failed, whose error must not be hidden by one of ours
            [f"sgemm {min(rates) / 1e9:.0f}–{max(rates) / 1e9:.0f} GFLOP/s."] if rates else [],
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
