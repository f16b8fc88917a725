"""The encoder's graphs on a CPU: a batch on all threads beside one on each, every graph beside the others, and the
size of a batch.

- standard: `encoder_cached.onnx`, standard operators alone
- CPU's: `encoder_cpu.onnx`, written by hand for ONNX Runtime's CPU provider, with its MultiHeadAttention
- CPU's, Attention of opset 23: the same with the standard's operator in place of ONNX Runtime's own
- optimum's: the encoder of `optimum-cli export onnx`, 30 s windows alone (`--model`; pip install optimum-onnx)
- optimum's, optimised: that through `onnxruntime.transformers.optimizer`, model type "bart" (Whisper's family; "bert",
  "vit" and "clip" fuse the same)

Times the encoder alone, on noise, its last state, with the silence cache that the model was exported with (none for
30 s). The ways take turns, `--repeats` times; the table gives the efficiency of each one's fastest turn: arithmetic of
the windows (every position of every block; see voxstrata.engine.budget) / (wall × numpy's sgemm rate, the best of one
measurement per turn). On each thread a batch holds as many windows as `extract` gives it; a second table varies that
for the CPU's graph. A third counts the nodes of each graph that ONNX Runtime runs.
Exit status 1 when states differ from the standard graph's by more than 2e-4 (relative L2).
"""

from __future__ import annotations

import argparse
import shutil
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import voxstrata  # noqa: F401  # isort: skip  # before onnxruntime, whose telemetry it turns off

import numpy as np
import onnx
import onnxruntime as ort
from _common import Table, environment, pin, say, write_report

from voxstrata.base.folders import scratch_folder
from voxstrata.encoders import Context, ModelFolder, open_model
from voxstrata.encoders.card import CACHED, CPU, WEIGHTS
from voxstrata.encoders.frames import WINDOW_FRAMES
from voxstrata.engine.budget import EncoderSize, sgemm_rate
from voxstrata.engine.encoder import session_options
from voxstrata.engine.runtime import DEFAULT_TOKENS

SHAPES = ((100, 15, 4), (300, 5, 4), (WINDOW_FRAMES, 1, 4))  # positions, windows of a batch on all threads, batches
TOKENS = (125, 250, 500, 1000, 2000)  # budgets of a batch: windows × positions
SWEPT = 80  # windows, for each of them
TOLERANCE = 2e-4
COUNTED = ("MultiHeadAttention", "Attention", "Softmax", "LayerNormalization", "SkipLayerNormalization")
COUNTED += ("BiasGelu", "Gelu", "MatMul", "FusedMatMul", "Transpose", "Reshape", "Add")
Feeds = dict[str, np.ndarray]


@dataclass(frozen=True)
class Graph:
    """A graph, whose inputs and output are called as ours or as optimum's."""

    name: str
    path: Path
    ours: bool = True

    @property
    def output(self) -> str:
        return "final" if self.ours else "last_hidden_state"

    def feeds(self, model: ModelFolder, frames: int, batch: int) -> Feeds:
        """Noise in the range of log-mel, and the silence cache."""
        card, keys = model.card, model.silence().for_frames(frames)
        log_mel = np.random.default_rng(0).uniform(-1, 1.5, (batch, card.n_mels, 2 * frames)).astype(np.float32)
        if not self.ours:
            return {"input_features": log_mel}
        found: Feeds = {"log_mel": log_mel}
        found |= {"silence_key": keys.key, "silence_value": keys.value, "silence_bias": keys.bias}
        return found | ({"positions": np.full(card.layers, frames)} if self.path.name.startswith(CPU) else {})


def with_attention_23(model: ModelFolder, folder: Path) -> Path:
    """The CPU's graph with ONNX's own Attention, in `folder` beside the weights."""
    graph = onnx.load(str(model.path / CPU), load_external_data=False)
    for node in graph.graph.node:
        if node.op_type == "MultiHeadAttention":
            heads = next(a.i for a in node.attribute if a.name == "num_heads")
            new = {"q_num_heads": heads, "kv_num_heads": heads, "scale": 1.0}
            node.CopyFrom(onnx.helper.make_node("Attention", node.input, node.output, name=node.name, **new))
    del graph.opset_import[:]
    graph.opset_import.append(onnx.helper.make_opsetid("", 23))
    graph.ir_version = 11  # what opset 23 came with
    shutil.copy(model.path / WEIGHTS, folder)
    path = folder / f"{CPU}.23.onnx"
    onnx.save(graph, str(path))
    return path


def of_optimum(checkpoint: str, model: ModelFolder, folder: Path) -> tuple[list[Graph], str]:
    """optimum's graph, what ONNX Runtime's transformer optimizer makes of it, and what that says it fused."""
    from _peers import installed, optimum_graph  # which bring in torch
    from onnxruntime.transformers.optimizer import optimize_model

    from voxstrata.exporters.checkpoint import load_checkpoint

    if not installed("optimum"):
        sys.exit("--model: its graph is exported by optimum; pip install optimum-onnx")
    plain = optimum_graph(load_checkpoint(checkpoint), folder / "optimum")
    card, better = model.card, folder / "optimised.onnx"
    optimised = optimize_model(
        str(plain), model_type="bart", num_heads=card.heads, hidden_size=card.d_model, opt_level=0
    )
    fused = {k: n for k, n in optimised.get_fused_operator_statistics().items() if n or "Attention" in k}
    optimised.save_model_to_file(str(better))
    account = "The transformer optimizer fused: " + ", ".join(f"{k} {n}" for k, n in fused.items()) + "."
    return [Graph("optimum's", plain, ours=False), Graph("optimum's, optimised", better, ours=False)], account


def session(path: Path, threads: int, optimised: Path | None = None) -> ort.InferenceSession:
    """As the engine makes it, on so many threads; `optimised`: where to write the graph that is run."""
    options = session_options(threads)
    if optimised:
        options.optimized_model_filepath = str(optimised)
    return ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def nodes(graph: Graph, folder: Path) -> Counter[str]:
    """Operators of the graph that ONNX Runtime makes of a file and runs."""
    path = folder / "run.onnx"
    session(graph.path, 1, path)
    return Counter(n.op_type for n in onnx.load(str(path), load_external_data=False).graph.node)


def work(run: ort.InferenceSession, output: str, fed: Feeds, batches: int, pool: ThreadPoolExecutor | None) -> float:
    """Wall seconds of so many batches, one after the other or on the pool's threads."""
    begin = time.perf_counter()
    if pool:
        list(pool.map(lambda _: run.run([output], fed) and None, range(batches)))
    else:
        for _ in range(batches):
            run.run([output], fed)
    return time.perf_counter() - begin


def windows(frames: int, tokens: int) -> int:
    """In a batch of that budget, as `CpuEncoder.batch_size` has it."""
    return max(1, tokens // frames)


def sweep(model: ModelFolder, run: ort.InferenceSession, repeats: int, pool: ThreadPoolExecutor) -> list[list[str]]:
    """Milliseconds of a window by positions and the budget of a batch on each thread, the fastest of the turns."""
    graph, rows = Graph("CPU's", model.path / CPU), []
    for frames, *_ in SHAPES[:-1]:
        fed = {tokens: graph.feeds(model, frames, windows(frames, tokens)) for tokens in TOKENS}
        times: dict[int, list[float]] = defaultdict(list)
        for _ in range(repeats):
            for tokens in TOKENS:
                batches = -(-SWEPT // windows(frames, tokens))
                seconds = work(run, graph.output, fed[tokens], batches, pool)
                times[tokens].append(seconds / (batches * windows(frames, tokens)))
        rows.append([str(frames), *(f"{1000 * min(times[t]):.1f} ({windows(frames, t)})" for t in TOKENS)])
        say(" ".join(rows[-1]))
    return rows


def main() -> int:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--exported", required=True, type=Path, help="float32 model that `voxstrata export` made")
    p.add_argument("--model", metavar="CHECKPOINT", help="its checkpoint, to export it by optimum, too")
    p.add_argument("--threads", type=int, default=2, help="cores and threads")
    p.add_argument("--repeats", type=int, default=5)
    p.add_argument("--out", type=Path, default=Path("bench"), help="folder for the report (JSON and Markdown)")
    args = p.parse_args()
    pin(args.threads)
    facts = environment(args.threads)
    model, pool = open_model(args.exported), ThreadPoolExecutor(args.threads)
    size = EncoderSize.of(model, ["final"])
    with scratch_folder("graphs") as name:
        folder = Path(name)
        graphs = [Graph("standard", model.path / CACHED), Graph("CPU's", model.path / CPU)]
        graphs.append(Graph("CPU's, Attention of opset 23", with_attention_23(model, folder)))
        notes = [f"Allowed relative L2: {TOLERANCE:.0e}."]
        if args.model:
            theirs, account = of_optimum(args.model, model, folder)
            graphs, notes = graphs + theirs, [*notes, account]
        sessions = {(g.name, n): session(g.path, n) for g in graphs for n in (1, args.threads)}
        counts = {g.name: nodes(g, folder) for g in graphs}
    rows, off = [], dict.fromkeys((g.name for g in graphs), 0.0)
    for frames, batch, batches in SHAPES:
        ways: dict[tuple[str, str], Callable[[], float]] = {}
        want = None
        for g in graphs:
            if not g.ours and frames < WINDOW_FRAMES:
                continue
            each = windows(frames, DEFAULT_TOKENS["cpu"])
            together, alone = g.feeds(model, frames, batch), g.feeds(model, frames, each)
            got = sessions[g.name, 1].run([g.output], alone)[0]
            want = got if want is None else want
            off[g.name] = max(off[g.name], float(np.linalg.norm(got - want) / np.linalg.norm(want)))
            way = partial(work, sessions[g.name, args.threads], g.output, together, batches, None)
            ways[g.name, f"a batch of {batch} on {args.threads}"] = way
            way = partial(work, sessions[g.name, 1], g.output, alone, batch * batches // each, pool)
            ways[g.name, f"a batch of {each} on each"] = way
        times, rates = defaultdict(list), []
        for _ in range(args.repeats):
            rates.append(sgemm_rate(args.threads))
            for which, way in ways.items():
                times[which].append(way())
        for which, seconds in times.items():
            per_window = min(seconds) / (batch * batches)
            efficiency = size.window_flops(frames, Context()) / (per_window * max(rates))
            rows.append([str(frames), *which, f"{per_window:.4f}", f"{efficiency:.2f}"])
            say(" ".join(rows[-1]))
    swept = sweep(model, sessions["CPU's", 1], args.repeats, pool)
    found = [op for op in COUNTED if any(c[op] for c in counts.values())]
    write_report(
        "graphs",
        "The encoder's graphs on a CPU",
        args,
        facts,
        {"relative_l2": off, "nodes": counts},
        [
            Table("Fastest turns:", ["positions", "graph", "threads", "s per window", "efficiency"], rows),
            Table(
                f"The CPU's graph, a batch on each of {args.threads} threads, ms of a window (windows of a batch):",
                ["positions", *(f"{t} tokens" for t in TOKENS)],
                swept,
            ),
            Table(
                "Nodes that ONNX Runtime runs, and relative L2 of the last state to the standard graph's:",
                ["graph", *found, "all", "relative L2"],
                [[n, *(str(c[op]) for op in found), str(c.total()), f"{off[n]:.1e}"] for n, c in counts.items()],
            ),
        ],
        notes,
    )
    return int(not all(v <= TOLERANCE for v in off.values()))


if __name__ == "__main__":
    sys.exit(main())
