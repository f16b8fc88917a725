"""What extraction_gpu.py stands on: its model, idle time, rates of matrix products, correctness, what tables hold."""

from __future__ import annotations

import argparse
import subprocess
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from _common import Table, environment, say, write_report
from numpy.typing import NDArray
from transformers import WhisperConfig, WhisperFeatureExtractor
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from voxstrata.base.folders import scratch_folder
from voxstrata.encoders import Context, ModelFolder
from voxstrata.encoders.frames import SAMPLE_RATE, SAMPLES_PER_FRAME, WINDOW_FRAMES
from voxstrata.encoders.silence import Silence
from voxstrata.engine import CudaEncoder, Device, Runtime
from voxstrata.engine.runtime import available_threads
from voxstrata.engine.synthetic import made_up
from voxstrata.exporters import ExportSpec, export, writing
from voxstrata.exporters.checkpoint import Checkpoint, load_checkpoint
from voxstrata.exporters.pytorch import hidden_states
from voxstrata.exporters.silence_cache import condense, run_on_silence
from voxstrata.store import StoreSpec

NOT_MEASURED = "not measured"
TOLERANCE = 1e-2  # relative L2 of float16 states, as at export
COSINE = 0.98  # of `bucketed`, mean over frames: the cache is the pure one
MM_SIDE = 8192
Found = tuple[NDArray[np.float32], list[NDArray[Any]]]  # a recording's samples, and its rows by output


@dataclass
class Bench:
    """What the sections share, and what they found."""

    args: argparse.Namespace
    device: Device
    model: ModelFolder
    checkpoint: Checkpoint
    work: Path
    begin: float  # on the clock of time.perf_counter; making the model counts, too
    tables: dict[str, list[Sequence[str]]] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    results: dict[str, Any] = field(default_factory=dict)
    rates: dict[str, float] = field(default_factory=dict)

    @property
    def torch_device(self) -> str:
        return "cpu" if self.device.kind == "cpu" else f"cuda:{self.device.index}"

    @property
    def three(self) -> tuple[str, ...]:
        names = self.model.card.outputs
        return names[len(names) // 2], names[-2], "final"

    def specs(self) -> dict[str, StoreSpec]:
        every = self.model.card.outputs
        return {
            "three outputs, frames": StoreSpec(self.three),
            "all outputs, pooled": StoreSpec(every, pool="mean"),
            "all outputs, frames": StoreSpec(every),
        }

    def encoder(self, spec: StoreSpec, **changes: Any) -> CudaEncoder:
        runtime = Runtime(self.device, self.args.threads, changes.pop("tokens", self.args.tokens))
        return CudaEncoder(self.model, spec, runtime, **changes)

    def cell(self, value: float | None, form: str) -> str:
        """A measured figure; of a CPU there is none."""
        return NOT_MEASURED if value is None or self.device.kind == "cpu" else format(value, form)

    def check(self, promise: bool, problem: str) -> None:
        if not promise:
            self.problems.append(problem)

    def add(self, caption: str, header: Sequence[str], *rows: Sequence[str]) -> None:
        self.tables.setdefault(caption, [header]).extend(rows)

    def ask(self, questions: Sequence[tuple[str, Callable[[], None]]], publish: Callable[[], None]) -> None:
        """One after the other, `publish` after each; those that fail or come after `--seconds` are problems."""
        for title, question in questions:
            if time.perf_counter() - self.begin > self.args.seconds:
                self.check(False, f"{title}: not reached within {self.args.seconds:.0f} s")
            else:
                say(f"{time.perf_counter() - self.begin:.0f} s: {title}")
                try:
                    question()
                except Exception as error:  # those after it are still worth their device time
                    traceback.print_exc()
                    self.check(False, f"{title}: {type(error).__name__}: {str(error).splitlines()[:1]}")
                if self.device.kind != "cpu":
                    torch.cuda.empty_cache()  # the rest is ONNX Runtime's
            publish()


def benched(
    args: argparse.Namespace,
    name: str,
    title: str,
    shape: Sequence[int],
    run: Callable[[Bench, Callable[[], None]], None],
) -> int:
    """A script: makes the model, has `run` find what there is to find, and reports it, as it comes and at the end.

    args: the script's; `device` among them. shape: d_model, layers, heads, mel bins. run: is given what writes the
    report, `name`.json and `name`.md in `--out`. Returns the exit status: 1 when there is a problem.
    """
    device, begin = Device.parse(args.device), time.perf_counter()
    facts = environment(args.threads or available_threads())
    if device.kind != "cpu" and torch.cuda.is_available():
        facts = gpu_facts(device) | facts
    facts["model"] = f"{shape[1]} layers of {shape[0]}"
    with scratch_folder(name.replace("_", "-")) as folder:
        say("making the model")
        b = Bench(args, device, *random_model(shape, folder), folder, begin)

        def publish() -> None:
            write_report(
                name,
                title,
                args,
                facts | {"host memory": b.results.get("host_memory")},
                b.results | {"matmul_flops_per_second": b.rates, "problems": b.problems},
                [Table(caption, rows[0], rows[1:]) for caption, rows in b.tables.items()],
                [f"PROBLEM: {x}" for x in b.problems] or ["No problem found."],
                show=False,
            )

        run(b, publish)
    print((args.out / f"{name}.md").read_text(encoding="utf-8"), end="")
    return int(bool(b.problems))


class Idle:
    """Samples how much of the time a kernel runs."""

    PERIOD = 0.2  # seconds

    def __init__(self, device: Device) -> None:
        self._samples: list[float] = []
        self._process = None
        if device.kind != "cpu":
            query = ["nvidia-smi", "--query-gpu=utilization.gpu", "--format=csv,noheader,nounits"]
            query += [f"--loop-ms={1000 * self.PERIOD:.0f}", smi_id(device)]
            with suppress(OSError):  # no nvidia-smi
                self._process = subprocess.Popen(query, stdout=subprocess.PIPE, text=True)

    def __enter__(self) -> Idle:
        return self

    def __exit__(self, *_: object) -> None:
        if self._process:
            self._process.terminate()
            with suppress(ValueError):  # "[N/A]" where the driver does not tell
                self._samples = [float(x) for x in self._process.communicate()[0].split()]

    def share(self, seconds: float) -> float | None:
        """What is left of the last so many seconds; None where nvidia-smi does not tell."""
        last = self._samples[-max(1, int(seconds / self.PERIOD)) :]
        return 1 - mean(last) / 100 if last else None


def random_model(shape: Sequence[int], folder: Path) -> tuple[ModelFolder, Checkpoint]:
    """Random weights, exported in float16."""
    d, layers, heads, mels = shape
    torch.manual_seed(0)
    config = WhisperConfig(
        d_model=d, encoder_layers=layers, encoder_attention_heads=heads, encoder_ffn_dim=4 * d, num_mel_bins=mels
    )
    WhisperEncoder(config).save_pretrained(folder / "checkpoint")
    WhisperFeatureExtractor(feature_size=mels).save_pretrained(folder / "checkpoint")
    source = str(folder / "checkpoint")

    # validation takes minutes on a CPU; `correctness` does as much on the device
    def nothing_tried(_: Path, __: Checkpoint, outputs: Sequence[str], *___: Any) -> dict[str, Any]:
        none = dict.fromkeys(outputs, 0.0)
        return {"outputs": none, "outputs_cached": none, "lengths_seconds": [], "cached_lengths_seconds": []}

    # one padded run, not 66, and its keys for every length: nothing of these weights depends on where speech ends
    def one_run(of: Checkpoint, _: Any, groups: int, __: Any) -> tuple[Silence, dict[str, Any]]:
        return condense(run_on_silence(of), groups)

    with patch.object(writing, "validate", nothing_tried), patch.object(writing, "make_silence", one_run):
        model = export(source, folder / "model", ExportSpec(dtype="float16"))
    return model, load_checkpoint(source)


def smi_id(device: Device) -> str:
    """nvidia-smi's option for a device, which it numbers by place on the bus, whatever CUDA_VISIBLE_DEVICES says."""
    return f"--id=GPU-{torch.cuda.get_device_properties(device.index).uuid}"


def gpu_facts(device: Device) -> dict[str, Any]:
    """What a report says of the device and its software."""
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader", smi_id(device)]
    driver = None
    with suppress(OSError):  # no nvidia-smi: the report says None
        driver = subprocess.run(query, capture_output=True, text=True, check=False).stdout.strip() or None
    return {
        "gpu": torch.cuda.get_device_name(device.index),
        "driver": driver,
        "CUDA": torch.version.cuda,
        "cuDNN": torch.backends.cudnn.version(),
    }


def correctness(b: Bench) -> None:
    """`padded` and `bucketed` beside PyTorch in float32 on the same device."""
    outputs = b.model.card.outputs
    lengths = [round(s * SAMPLE_RATE) for s in (1.0, 6.3, 14.2, 24.9)]
    runs = {}
    for mode in ("padded", "bucketed"):
        spec = StoreSpec(outputs, dtype="float32", context=Context(mode))
        runs[mode] = b.encoder(spec, tokens=2 * WINDOW_FRAMES)
    worst, cosines = 0.0, []
    encoder = b.checkpoint.encoder.to(b.torch_device)
    for i, samples in enumerate(lengths):
        clip, frames = made_up(i, samples), -(-samples // SAMPLES_PER_FRAME)
        features = b.checkpoint.extractor(clip, sampling_rate=SAMPLE_RATE, return_tensors="pt")["input_features"]
        want = {
            k: v[0, :frames].double().cpu().numpy()
            for k, v in hidden_states(encoder, features.to(b.torch_device)).items()
        }
        padded = runs["padded"].stored_rows([clip], WINDOW_FRAMES).rows
        bucket = Context("bucketed").frames_computed(frames)
        bucketed = runs["bucketed"].stored_rows([clip], bucket).rows
        for name, rows in zip(outputs, padded, strict=True):
            worst = max(worst, float(np.linalg.norm(rows[0] - want[name]) / np.linalg.norm(want[name])))
        x, y = bucketed[-1][0].astype(np.float64), want["final"]
        cosines.append(float(np.mean((x * y).sum(1) / np.linalg.norm(x, axis=1) / np.linalg.norm(y, axis=1))))
    b.checkpoint.encoder.to("cpu")
    b.results["host_memory"] = runs["padded"].host_memory
    b.check(worst <= TOLERANCE, f"padded is off PyTorch by {worst:.1e} (relative L2)")
    b.check(min(cosines) >= COSINE, f"bucketed has a mean cosine of {min(cosines):.4f} to PyTorch's padded")
    b.add(
        f"Beside PyTorch in float32, {len(lengths)} clips, {len(outputs)} outputs:",
        ("context", "what", "found", "allowed"),
        ("padded", "largest relative L2", f"{worst:.1e}", f"{TOLERANCE:.0e}"),
        ("bucketed", "least mean cosine of `final`", f"{min(cosines):.4f}", f"{COSINE}"),
    )
    b.results["correctness"] = {"padded_relative_l2": worst, "bucketed_cosines": cosines}


def rates(b: Bench) -> None:
    """torch.mm, the best of three times ten."""
    for dtype in ("bfloat16", "float16"):
        side = 64 if b.device.kind == "cpu" else MM_SIDE
        x, y = (torch.randn((side, side), device=b.torch_device).to(getattr(torch, dtype)) for _ in range(2))
        best = float("inf")
        for _ in range(4):  # the first warms up
            _synchronize(b)
            begin = time.perf_counter()
            for _ in range(10):
                torch.mm(x, y)
            _synchronize(b)
            best = min(best, time.perf_counter() - begin)
        rate = 20 * side**3 / best
        b.rates[dtype] = max(rate, b.rates.get(dtype, 0))
        header = ("dtype", "TFLOP/s")
        b.add(f"torch.mm, {MM_SIDE}³, at the start and at the end:", header, (dtype, b.cell(rate / 1e12, ".0f")))


def apart(b: Bench, what: str, encoder: CudaEncoder, found: Sequence[Found]) -> float:
    """Largest relative L2 of rows made among others to those of the recording by itself, which are the same but for
    rounding. More than TOLERANCE, or half of what lies between two recordings, is a problem of `what`."""

    def run(audio: NDArray[np.float32]) -> list[NDArray[np.float64]]:
        bucket = encoder.context.frames_computed(-(-len(audio) // SAMPLES_PER_FRAME))
        return [rows.astype(np.float64) for (rows,) in encoder.stored_rows([audio], bucket).rows]

    off = []
    for (audio, among), (other, _) in zip(found, [*found[1:], *found[:1]], strict=True):
        for mine, alone, unlike in zip(among, run(audio), run(np.resize(other, len(audio))), strict=True):
            error = float(np.linalg.norm(mine - alone))
            off.append(error / float(np.linalg.norm(alone)))
            right = off[-1] <= TOLERANCE and (len(found) == 1 or error <= 0.5 * np.linalg.norm(unlike - alone))
            b.check(bool(right), f"{what}: rows of a recording among others are not those of it by itself")
    return float(np.max(off))  # NaN stays NaN


def _synchronize(b: Bench) -> None:
    if b.device.kind != "cpu":
        torch.cuda.synchronize(b.torch_device)
