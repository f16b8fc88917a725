"""How fast this machine runs this model: extraction of made-up recordings, for each context, and the record of it."""

import hashlib
import json
import os
import platform
import shutil
import subprocess
from dataclasses import asdict, dataclass, fields
from importlib.metadata import version
from pathlib import Path
from typing import Any, Self, get_args

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from voxstrata.base.errors import InputError
from voxstrata.base.finding import percent_text
from voxstrata.base.folders import scratch_folder
from voxstrata.base.opening import read_json_file
from voxstrata.base.plain import counted, rate_text
from voxstrata.base.progress import SILENT, Reporter
from voxstrata.base.tables import aligned
from voxstrata.encoders import Context, ModelFolder
from voxstrata.encoders.context import Mode
from voxstrata.encoders.frames import SAMPLE_RATE
from voxstrata.encoders.outputs import OutputChoice, select_outputs, spelt_outputs
from voxstrata.engine.budget import sgemm_rate
from voxstrata.engine.extraction import ExtractReport, share
from voxstrata.engine.making import make_encoder
from voxstrata.engine.run import prepare, writing
from voxstrata.engine.runtime import Runtime, available_threads
from voxstrata.engine.synthetic import MIXES, LengthMix, write_made_up
from voxstrata.store.files import Files
from voxstrata.store.spec import StoreSpec

SECONDS = 90.0  # about how long all measurements together may take
TRIAL_CLIPS = 4  # to learn how many clips fill the time
GPU_TRIAL_BATCHES = 2  # of every caller
MAX_CLIPS = 4000
MAX_STORE_BYTES = 2 << 30  # of the temporary store of one measurement
GPU_STORE_BYTES = 16 << 30  # on a GPU: its units have up to 4 GB, and one alone overlaps with nothing
BUSY_LOAD = 1.0  # of other work before the measurement, that the reader should hear of
FORMAT = 2  # of the record


@dataclass(frozen=True)
class Throughput:
    """What one measurement gave.

    seconds: wall seconds from the first unit to the last. tokens: computed positions. flops: arithmetic that
    `outputs` need (`voxstrata.engine.budget`). stored_bytes: of the rows. stages: busy seconds, overlapping, over all
    threads. efficiency: flops / (seconds × sgemm rate); None on GPUs.
    """

    context: Mode
    mix: str
    outputs: tuple[str, ...]
    clips: int
    audio_seconds: float
    seconds: float
    tokens: int
    flops: int
    stored_bytes: int
    stages: dict[str, float]
    efficiency: float | None

    @property
    def audio_hours_per_hour(self) -> float:
        return self.audio_seconds / self.seconds

    @property
    def flops_per_second(self) -> float:
        return self.flops / self.seconds


@dataclass(frozen=True)
class Record:
    """What `voxstrata bench` stores: on which machine, software, model and settings, and a measurement per context.

    load: processes that ran on the machine in the minute before (the load average).
    """

    about: dict[str, Any]
    load: float
    sgemm_rate: float | None
    contexts: dict[str, Throughput]

    def with_rates(self) -> dict[str, Any]:
        """JSON-ready form, with each context's rates; `from_dict` restores it."""
        d = asdict(self)
        for name, t in self.contexts.items():
            rates = {"audio_hours_per_hour": t.audio_hours_per_hour, "flops_per_second": t.flops_per_second}
            d["contexts"][name] |= rates
        return d

    def to_text(self) -> str:
        """Machine, rates and stages, in tables."""
        rows = []
        for name, t in self.contexts.items():
            rates = [rate_text(t.audio_hours_per_hour), f"{3600 * t.stored_bytes / t.audio_seconds / 1e9:.2f}"]
            efficiency = "" if t.efficiency is None else percent_text(t.efficiency)
            rows.append([name, *rates, efficiency, str(t.clips), f"{t.seconds:.1f}"])
        header = ["context", "audio-hours per hour", "GB per audio-hour", "efficiency", "clips", "seconds"]
        stages = {stage: None for t in self.contexts.values() for stage in t.stages}
        busy = [
            [name, *(percent_text(t.stages.get(s, 0.0) / t.seconds) for s in stages)]
            for name, t in self.contexts.items()
        ]
        outputs = next(iter(self.contexts.values())).outputs
        limit = f", sgemm {self.sgemm_rate / 1e9:.0f} GFLOP/s" if self.sgemm_rate else ""
        lines = [
            f"on {self.about['cpu']}, {self.about['device']}, {self.about['threads']} of "
            f"{counted(self.about['cores'], 'core')}{limit}",
            f"{counted(len(outputs), 'output')} as float16, made-up sound of mean 12 s",
            "",
            aligned(header, rows),
            "",
            "busy time of the stages by wall time (they overlap; those of threads that decode and encode are added up)",
            aligned(["context", *stages], busy),
        ]
        if self.load > BUSY_LOAD:
            lines.append(f"other work was running (load average {self.load}): these rates are too low")
        return "\n".join(lines)

    @classmethod
    def from_dict(cls, d: dict[str, Any]) -> Self:
        """From `asdict` or `with_rates`; 0.1.0 wrote "modes" and "mode"."""
        contexts = {}
        for name, found in d["contexts" if "contexts" in d else "modes"].items():
            held = {**found, "context": name, "outputs": tuple(found["outputs"])}
            contexts[name] = Throughput(**{f.name: held[f.name] for f in fields(Throughput)})
        return cls(d["about"], d["load"], d["sgemm_rate"], contexts)


def measure(
    model: ModelFolder,
    mode: Mode,
    mix: LengthMix,
    outputs: OutputChoice = "all",
    runtime: Runtime | None = None,
    *,
    seconds: float,
    limit: float | None = None,
    again: bool = True,
) -> Throughput:
    """Extract made-up recordings for about `seconds`: a trial, then as many as fit.

    On a GPU all is done twice with one encoder, and the second time counts. What is loaded, allocated or chosen for a
    shape (computed positions, windows) is so by then: the rate is that of a run that lasts.

    limit: the sgemm rate, for the efficiency. again: at least as many once more when the trial took all the time;
    else the trial is the measurement. Uses the system's temporary folder (TMPDIR), at most about 2 GB, on a GPU 16 GB
    or half of what is free there.
    """
    runtime = runtime or Runtime()
    context = Context(mode)
    spec = StoreSpec(spelt_outputs(outputs), context=context).for_model(model.card, runtime.device)
    row_bytes = model.card.d_model * spec.stored_dtype.itemsize * len(spec.outputs)
    family = model.card.family
    encoder, mean = make_encoder(model, spec, runtime), mix.mean / family.seconds_per_frame
    gpu = runtime.device.kind != "cpu"
    turns = 2 if gpu else 1
    with scratch_folder("bench") as folder:
        room = min(GPU_STORE_BYTES, shutil.disk_usage(folder).free // 2) if gpu else 0
        most = min(MAX_CLIPS, int(max(MAX_STORE_BYTES, room) / (mean * row_bytes)))
        least = runtime.thread_count  # a batch for every thread
        if gpu:
            whole = encoder.batch_size(context.frames_computed(round(mean), family.frames(family.window)))
            least = min(most, GPU_TRIAL_BATCHES * encoder.concurrency * whole)
        least = max(TRIAL_CLIPS, least)

        def run(name: str, clips: int) -> tuple[ExtractReport, NDArray[np.float64]]:
            lengths = mix.lengths(clips)
            corpus, store = write_made_up(folder / name, lengths), folder / f"{name}.zarr"
            for _ in range(turns):
                shutil.rmtree(store, ignore_errors=True)
                with writing(Files(store)):
                    report = share(prepare(corpus, model, store, spec, runtime), encoder)
            shutil.rmtree(store)
            return report, lengths

        report, lengths = run("trial", least)
        left = seconds - turns * report.seconds
        if again or left > turns * report.seconds:
            clips = int(np.clip(max(0.0, left) * least / (turns * report.seconds), least, max(least, most)))
            report, lengths = run("main", clips)
    frames = family.frames(np.round(lengths * SAMPLE_RATE).astype(np.int64))
    return Throughput(
        mode,
        mix.name,
        tuple(spec.outputs),
        report.utterances,
        report.audio_seconds,
        report.seconds,
        sum(context.frames_computed(int(n), family.frames(family.window)) for n in frames),
        report.flops,
        int(frames.sum()) * row_bytes,
        report.stages,
        report.flops / (report.seconds * limit) if limit else None,
    )


def bench(
    model: ModelFolder,
    outputs: OutputChoice = "all",
    runtime: Runtime | None = None,
    reporter: Reporter = SILENT,
    *,
    seconds: float = SECONDS,
) -> Record:
    """Measure every context on the FLEURS-like mix, and store the record where `recorded` finds it."""
    runtime, outputs = runtime or Runtime(), select_outputs(outputs, model.card.outputs)
    limit, load = None, round(os.getloadavg()[0], 2)
    if runtime.device.kind == "cpu":
        reporter.step("matrix products")
        limit = sgemm_rate(runtime.thread_count)
    contexts: dict[str, Throughput] = {}
    own = [mode for mode in get_args(Mode) if mode in model.card.family.contexts]
    each = seconds / len(own)
    for mode in own:
        reporter.step(mode)
        contexts[mode] = measure(model, mode, MIXES["fleurs"], outputs, runtime, seconds=each, limit=limit, again=False)
    record = Record(about(model, runtime), load, limit, contexts)
    path = record_path(record.about)
    Files(path.parent).write(path.name, (json.dumps(asdict(record), indent=1) + "\n").encode())
    return record


def recorded(model: ModelFolder, runtime: Runtime) -> Record | None:
    """What `bench` stored for this model, machine, software, device and number of threads; None when it did not."""
    path = record_path(about(model, runtime))
    try:
        return Record.from_dict(read_json_file(path))
    except (InputError, OSError, ValueError, KeyError, TypeError):
        return None


def about(model: ModelFolder, runtime: Runtime) -> dict[str, Any]:
    """What a measurement holds for: model, machine, software, device, threads."""
    card, device = model.card, runtime.device
    return {
        "format": FORMAT,
        "model": {
            "weights_sha256": card.weights_sha256,
            "dtype": card.dtype,
            "silence_sha256": card.silence.get("sha256"),
        },
        "cpu": cpu_name(),
        "cores": available_threads(),
        "device": device.kind if device.kind == "cpu" else f"{device.kind}:{device.index} {_gpu_name(device.index)}",
        "threads": runtime.thread_count,
        "voxstrata": version("voxstrata"),
        "onnxruntime": onnxruntime.__version__,
    }


def record_path(about: dict[str, Any]) -> Path:
    """Where the record lies: XDG_CACHE_HOME or ~/.cache, then voxstrata/bench/."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    key = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()
    return cache / "voxstrata" / "bench" / f"{key[:16]}.json"


def cpu_name() -> str:
    """The processor as the system names it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    facts = {k.strip(): v.strip() for k, v in (line.split(":", 1) for line in reversed(lines) if ":" in line)}
    name = facts.get("model name", platform.machine())
    return f"{name} (family {facts.get('cpu family')}, model {facts.get('model')})"


def _gpu_name(index: int) -> str:
    """The GPU as its driver names it; empty where nvidia-smi is not there to ask."""
    command = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader", f"--id={index}"]
    try:
        return subprocess.run(command, check=True, capture_output=True, text=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""
