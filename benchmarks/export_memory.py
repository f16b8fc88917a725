"""Peak memory of an export, beside the size of the float32 weights.

Encoders of Whisper's shapes with random weights, in float32, as Hugging Face saves them. Each export runs in a process
of its own. The peak is VmHWM, the most physical memory the process has held, mapped files included; it is set back at
every step, so that the table shows where it is reached. Linux only. The first row is the process with everything
imported, which no size of the model changes.

Exit status 1 when the peak of one of MARKED is more than `--mark` times its weights.

    python benchmarks/export_memory.py --shapes small medium
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

from voxstrata.base.folders import scratch_folder
from voxstrata.base.progress import Reporter

MARK = 2.5  # × the float32 weights
MARKED = ("medium", "large-v3")  # of smaller ones Python and PyTorch take more than the weights


def write_checkpoint(shape: str, folder: str) -> None:
    """Random weights of a shape, and their size in bytes, printed."""
    import torch
    from mixes import SHAPES
    from transformers import WhisperConfig, WhisperFeatureExtractor
    from transformers.models.whisper.modeling_whisper import WhisperEncoder

    d, layers, heads, mels = SHAPES[shape]
    torch.manual_seed(0)
    encoder = WhisperEncoder(
        WhisperConfig(
            d_model=d, encoder_layers=layers, encoder_attention_heads=heads, encoder_ffn_dim=4 * d, num_mel_bins=mels
        )
    )
    encoder.save_pretrained(folder)
    WhisperFeatureExtractor(feature_size=mels).save_pretrained(folder)
    print(sum(p.numel() * p.element_size() for p in encoder.parameters()))


class Peaks(Reporter):
    """The peak of each step. `begin` ends the one before."""

    def __init__(self) -> None:
        self.found: dict[str, float] = {}
        self._step = "everything imported"

    def step(self, text: str) -> None:
        status = Path("/proc/self/status").read_text(encoding="ascii")
        self.found[self._step] = next(int(x.split()[1]) for x in status.splitlines() if x.startswith("VmHWM")) / 1024
        Path("/proc/self/clear_refs").write_text("5")  # VmHWM begins anew
        self._step = text.partition(":")[0].partition(" /")[0]


def child(checkpoint: str, target: str, dtype: str, calibrate: str, silence_keys: str) -> None:
    """One export; prints the peaks of its steps as JSON."""
    from voxstrata.exporters import ExportSpec, export, writing  # noqa: F401  the last imports PyTorch

    peaks = Peaks()
    peaks.step("beginning")
    spec = ExportSpec(dtype=dtype, calibrate=calibrate or None, silence_keys=int(silence_keys))
    export(checkpoint, target, spec, reporter=peaks)
    peaks.step("done")
    print(json.dumps(peaks.found))


def run(what: str, *arguments: str) -> str:
    command = [sys.executable, __file__, what, *arguments]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()[-1]


def main() -> int:
    from _common import Table, environment, limit_threads, say, write_report  # not in the process that is measured
    from mixes import SHAPES

    from voxstrata.exporters import ExportSpec

    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--shapes", nargs="+", choices=[*SHAPES], default=["medium"])
    p.add_argument("--dtype", default="float32", choices=["float32", "float16", "int8"])
    p.add_argument("--calibrate", default="", help="recordings for the silence cache; by default it is the pure one")
    keys = "of the silence cache; 0 spares 66 runs of the encoder, which take long"
    p.add_argument("--silence-keys", type=int, default=ExportSpec.silence_keys, help=keys)
    p.add_argument("--mark", type=float, default=MARK, help="of MARKED, × the float32 weights")
    p.add_argument("--threads", type=int, default=2)
    p.add_argument("--out", type=Path, default=Path("bench"), help="folder for the report (JSON and Markdown)")
    args = p.parse_args()
    if not Path("/proc/self/clear_refs").exists():
        sys.exit("peak memory is read from /proc, which this system does not have")
    limit_threads(args.threads)
    results, tables, over = [], [], []
    for shape in args.shapes:
        with scratch_folder("export-memory") as folder:
            say(f"making {shape}")
            weights = int(run("checkpoint", shape, f"{folder}/checkpoint")) / 2**20
            say(f"exporting {shape}")
            how = [args.dtype, args.calibrate, str(args.silence_keys)]
            steps = json.loads(run("child", f"{folder}/checkpoint", f"{folder}/model", *how))
        peak = max(steps.values())
        over += [shape] * (shape in MARKED and peak > args.mark * weights)
        results.append({"shape": shape, "weights_mib": weights, "peak_mib": peak, "ratio": peak / weights} | steps)
        rows = [[step, f"{mib:.0f}", f"{mib / weights:.2f}"] for step, mib in [*steps.items(), ("the whole", peak)]]
        caption = f"{shape}, {weights:.0f} MiB of float32 weights, exported as {args.dtype}:"
        tables.append(Table(caption, ["step", "peak RSS MiB", "× weights"], rows))
    write_report(
        "export_memory",
        "Peak memory of an export",
        args,
        environment(args.threads),
        {"exports": results},
        tables,
        [f"{shape}: over {args.mark} × its weights" for shape in over] or [f"The mark is {args.mark} × the weights."],
    )
    return int(bool(over))


if __name__ == "__main__":
    if sys.argv[1:2] == ["child"]:
        child(*sys.argv[2:])
    elif sys.argv[1:2] == ["checkpoint"]:
        write_checkpoint(*sys.argv[2:])
    else:
        sys.exit(main())
