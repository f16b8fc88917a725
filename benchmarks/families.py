"""Extraction with an encoder that takes samples, beside transformers' own loop: real speech, random weights.

The encoder has the shape of a published one (`--shape`), by default XLS-R-300M's. Ours extracts all layers of all clips
into a store. Theirs is the loop that a user would write: clips sorted by length, padded to the longest of their batch,
masked where the encoder takes masks, all hidden states kept as float16: eager and SDPA, one clip and eight at a time.

Neither counts the loading of the model. Every system runs once in turn, `--repeats` times. Stored states are compared
with transformers' on some clips, each by itself. Exit status 1: they differ, or ours is below `MARK` times the best of
theirs.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import voxstrata  # noqa: F401  # isort: skip  # before onnxruntime, whose telemetry it turns off

import numpy as np
import torch
import transformers
from _common import Table, environment, peak_mib, pin, say, subset, write_report

from voxstrata.audio.decode import decode
from voxstrata.base.folders import scratch_folder
from voxstrata.corpus import Corpus, read_corpus
from voxstrata.encoders import ModelFolder, open_model
from voxstrata.encoders.frames import SAMPLE_RATE
from voxstrata.engine import Runtime, extract
from voxstrata.engine.budget import sgemm_rate
from voxstrata.exporters import export
from voxstrata.store import StoreSpec, open_store

MARK = 1.3
TOLERANCE = 2e-3  # relative L2 of float16-stored states
CHECKED = 4  # clips whose stored states are compared
BATCHES = (1, 8)

_LARGE = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096}
_STABLE = _LARGE | {"do_stable_layer_norm": True}
_NORMED = {"feat_extract_norm": "layer", "conv_bias": True}
# as published: transformers' name, what its configuration sets, whether samples are normalised
SHAPES: dict[str, tuple[str, dict[str, Any], bool]] = {
    "xls-r-300m": ("Wav2Vec2", _STABLE | _NORMED, True),
    "wav2vec2-base": ("Wav2Vec2", {}, True),
    "hubert-base": ("Hubert", {}, True),
    "hubert-large": ("Hubert", _STABLE | _NORMED, True),
    "wavlm-base-plus": ("WavLM", {}, False),
    "wavlm-large": ("WavLM", _STABLE | {"feat_extract_norm": "layer"}, True),
}


def prepared(shape: str, folder: Path) -> tuple[Path, ModelFolder]:
    """A random-weight checkpoint of that shape, and its export; what is in the folder already is used."""
    checkpoint, model = folder / "checkpoint", folder / "model"
    if not checkpoint.exists():
        name, settings, normalised = SHAPES[shape]
        torch.manual_seed(0)
        made = getattr(transformers, f"{name}Model")(getattr(transformers, f"{name}Config")(**settings))
        made.save_pretrained(checkpoint)
        transformers.Wav2Vec2FeatureExtractor(do_normalize=normalised).save_pretrained(checkpoint)
    if not model.exists():
        say("exporting")
        export(str(checkpoint), model)
    return checkpoint, open_model(model)


def run_ours(corpus: Corpus, model: ModelFolder, store: Path, threads: int) -> tuple[float, dict[str, float]]:
    """Extract anew: wall seconds from the first unit to the last, and busy ones by stage."""
    shutil.rmtree(store, ignore_errors=True)
    done = extract(corpus, model, store, StoreSpec(), Runtime(threads=threads))
    if done.failed:
        sys.exit(f"measure on clips that can be read: {next(iter(done.failures.values()))}")
    return done.seconds, dict(done.stages)


class Theirs:
    """The loop in transformers."""

    def __init__(self, checkpoint: Path) -> None:
        self.model = transformers.AutoModel.from_pretrained(checkpoint).eval()
        self.extractor = transformers.AutoFeatureExtractor.from_pretrained(checkpoint)
        self.masked = self.model.config.feat_extract_norm == "layer"

    def states(self, audio: Sequence[np.ndarray[Any, Any]]) -> list[tuple[torch.Tensor, ...]]:
        """All hidden states of each recording."""
        how = {"padding": True, "return_attention_mask": self.masked, "return_tensors": "pt"}
        got = self.extractor(list(audio), sampling_rate=SAMPLE_RATE, **how)
        with torch.inference_mode():
            found = self.model(**got, output_hidden_states=True).hidden_states
        frames = self.model._get_feat_extract_output_lengths(torch.tensor([len(x) for x in audio]))
        return [tuple(state[row, :n] for state in found) for row, n in enumerate(frames.tolist())]

    def run(self, attention: str, batch: int, corpus: Corpus, order: Sequence[int]) -> tuple[float, dict[str, float]]:
        """Wall seconds of all clips."""
        self.model.set_attn_implementation(attention)
        begin = time.perf_counter()
        for at in range(0, len(order), batch):
            for clip in self.states([decode(corpus.recording(row)) for row in order[at : at + batch]]):
                kept = [state.half().numpy() for state in clip]
        assert kept
        return time.perf_counter() - begin, {}


def difference(store: Path, theirs: Theirs, corpus: Corpus, rows: Sequence[int]) -> dict[str, float]:
    """Largest relative L2 of stored states to transformers' of the recording by itself, by output."""
    opened, ids = open_store(store), corpus.table["id"].to_pylist()
    family = opened.model.family
    worst: dict[str, float] = defaultdict(float)
    for row in rows:
        (states,) = theirs.states([decode(corpus.recording(row))])
        for output in family.outputs:
            if output.hidden_states is not None:
                want = states[output.hidden_states].double().numpy()
                off = opened.frames(ids[row], output.name).astype(np.float64) - want
                worst[output.name] = max(worst[output.name], float(np.linalg.norm(off) / np.linalg.norm(want)))
    return dict(worst)


def main() -> int:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--corpus", required=True, help="folder of audio or manifest to measure on")
    p.add_argument("--shape", choices=list(SHAPES), default="xls-r-300m")
    p.add_argument("--clips", type=int, default=16, help="measure on so many clips")
    p.add_argument("--repeats", type=int, default=3)
    p.add_argument("--threads", type=int, default=2, help="cores and threads, for every system alike")
    p.add_argument("--model", type=Path, help="folder in which checkpoint and export are kept for the next run")
    p.add_argument("--out", type=Path, default=Path("bench"), help="folder for the report (JSON and Markdown)")
    args = p.parse_args()
    pin(args.threads)
    facts = environment(args.threads)
    torch.set_num_threads(args.threads)
    corpus = subset(read_corpus(args.corpus), args.clips)
    lengths = [len(decode(corpus.recording(row))) for row in range(len(corpus))]
    order = sorted(range(len(corpus)), key=lengths.__getitem__)
    audio_seconds = sum(lengths) / SAMPLE_RATE
    runs: dict[str, list[tuple[float, dict[str, float]]]] = defaultdict(list)
    rates = []
    with scratch_folder("families") as folder:
        work = Path(folder)
        checkpoint, model = prepared(args.shape, args.model or work)
        theirs = Theirs(checkpoint)
        systems: dict[str, Callable[[], tuple[float, dict[str, float]]]] = {
            "voxstrata": partial(run_ours, corpus, model, work / "store.zarr", args.threads)
        }
        kinds = ("eager",) if "wavlm" in args.shape else ("eager", "sdpa")  # WavLM has attention of its own
        for attention in kinds:
            for batch in BATCHES:
                theirs.run(attention, batch, corpus, order[-batch:])  # warm-up
                name = f"transformers {attention}, batch {batch}"
                systems[name] = partial(theirs.run, attention, batch, corpus, order)
        for repeat in range(args.repeats):
            rates.append(sgemm_rate(args.threads))
            for name, run in systems.items():
                runs[name].append(run())
                say(f"repeat {repeat + 1} of {args.repeats}: {name} {runs[name][-1][0]:.1f} s")
        off = difference(work / "store.zarr", theirs, corpus, order[:: -(-len(order) // CHECKED)])
    walls = {name: [wall for wall, _ in own] for name, own in runs.items()}
    best = min((name for name in walls if name != "voxstrata"), key=lambda name: median(walls[name]))
    ratio = median(walls[best]) / median(walls["voxstrata"])
    flops = sum(model.card.family.flops(model.card.family.frames(n), model.card.layers) for n in lengths)
    rows = [
        [
            f"{name} (baseline)" if name == best else name,
            f"{median(own):.1f} ({min(own):.1f}–{max(own):.1f})",
            f"{audio_seconds / median(own):.2f}",
            f"{median(walls[best]) / median(own):.2f}",
            f"{flops / median(own) / median(rates):.0%}",
            ", ".join(f"{k} {v:.1f}" for k, v in runs[name][0][1].items()),
        ]
        for name, own in sorted(walls.items(), key=lambda item: median(item[1]))
    ]
    header = ["system", "wall s", "audio-hours per hour (RTFx)", "× baseline", "efficiency", "stage seconds"]
    caption = f"{len(corpus)} clips, {audio_seconds / 60:.1f} minutes, all {len(model.card.outputs)} outputs:"
    checked = [[name, f"{value:.1e}"] for name, value in off.items()]
    write_report(
        "families",
        f"Extraction speed, an encoder of {args.shape}'s shape",
        args,
        facts,
        {"walls": walls, "audio_seconds": audio_seconds, "ratio": ratio, "flops": flops, "relative_l2": off}
        | {"sgemm_flops_per_second": rates, "peak_mib": peak_mib()},
        [
            Table(caption, header, rows),
            Table(
                f"Stored states beside transformers' on {CHECKED} clips, allowed {TOLERANCE:.0e}:",
                ["output", "largest relative L2"],
                checked,
            ),
        ],
        [
            f"Mark: {MARK} × the best of transformers; found {ratio:.2f}.",
            f"Limit: numpy sgemm, {median(rates) / 1e9:.0f} GFLOP/s.",
            "The wall of voxstrata includes decoding and writing, of transformers decoding and the cast to float16. "
            "Random weights; neither counts the loading of the model.",
        ],
    )
    return int(not all(value <= TOLERANCE for value in off.values()) or ratio < MARK)


if __name__ == "__main__":
    sys.exit(main())
