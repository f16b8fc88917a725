"""How far float16 states are from float64, by output: the graph for CUDA, and the exported one beside it.

A GPU rounds the result of every operator to float16, and computes inside it in float32. ONNX Runtime on a CPU has no
float16 kernels for most operators, computes several in float32 and rounds where it likes. So a graph is changed before
it runs here: all is float32, and what a GPU would write in float16 is rounded to it. What it rounds within attention,
the weights between softmax and product, is left out of both. Float64 is PyTorch's, with the checkpoint's own weights.

    SHARED=../shared/data
    python benchmarks/float16_error.py --checkpoint $SHARED/whisper-base-encoder --corpus $SHARED/prompts/prompts.tsv
    python benchmarks/float16_error.py … --model base16 --rows 8 56 95 --cached  # a minute: nothing is exported
    python benchmarks/float16_error.py --shape 1280,4,20,128 --before OLD_CHECKOUT/src
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import voxstrata  # noqa: F401  # isort: skip  # before onnxruntime, whose telemetry it turns off

import numpy as np
import onnx
import onnxruntime as ort
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from voxstrata.audio.decode import decode
from voxstrata.base.folders import scratch_folder
from voxstrata.corpus import read_corpus
from voxstrata.encoders import ModelFolder, open_model
from voxstrata.encoders.outputs import output_names
from voxstrata.encoders.silence import SilenceKeys
from voxstrata.engine.synthetic import made_up
from voxstrata.exporters import ExportSpec, export
from voxstrata.exporters.checkpoint import Checkpoint, load_checkpoint
from voxstrata.exporters.cuda_graph import cuda_encoder_graph

MOVES = (
    "Concat",
    "ConstantOfShape",
    "Expand",
    "Gather",
    "Identity",
    "Pad",
    "Reshape",
    "Slice",
    "Split",
    "Transpose",
    "Unsqueeze",
)
BUILD = """
import sys
from voxstrata.encoders import open_model
from voxstrata.exporters.cuda_graph import cuda_encoder_graph
m = open_model(sys.argv[1])
for cached in (False, True):
    open(f"{sys.argv[2]}/{cached:d}", "wb").write(cuda_encoder_graph(m, m.card.outputs, cached=cached, fused=True))
"""
Feeds = dict[str, NDArray[np.float32]]


def rounded(graph: bytes, folder: Path, kind: int = TensorProto.FLOAT16) -> bytes:
    """A graph in float32, every result of the operators that compute in `kind` rounded to it; its weights lie in
    `folder`."""
    model = onnx.load_model_from_string(graph)
    onnx.load_external_data_for_model(model, str(folder))
    g, narrow, nodes = model.graph, set(), []

    def widened(tensor: TensorProto) -> None:
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float32), tensor.name))

    for tensor in g.initializer:
        if tensor.data_type == kind:
            narrow.add(tensor.name)
            widened(tensor)
    for node in g.node:
        about = {a.name: a for a in node.attribute}
        if node.op_type == "Cast":
            is_narrow = about["to"].i == kind
            about["to"].i = TensorProto.FLOAT if is_narrow else about["to"].i
        elif node.op_type == "ConstantOfShape":
            if is_narrow := about["value"].t.data_type == kind:
                widened(about["value"].t)
        else:
            is_narrow = node.input[0] in narrow and node.op_type != "Shape"
        nodes.append(node)
        if not is_narrow:
            continue
        narrow.update(node.output)
        for i, name in enumerate(node.output if node.op_type not in MOVES else ()):
            if name:
                node.output[i] = f"{name}/exact"
                nodes.append(helper.make_node("Cast", [f"{name}/exact"], [f"{name}/narrow"], to=kind))
                nodes.append(helper.make_node("Cast", [f"{name}/narrow"], [name], to=TensorProto.FLOAT))
    del g.node[:]
    g.node.extend(nodes)
    for output in g.output:
        output.type.tensor_type.elem_type = TensorProto.FLOAT
    return bytes(model.SerializeToString())


def run(graph: bytes, outputs: Sequence[str], feeds: Feeds) -> dict[str, NDArray[np.float64]]:
    """Without optimisation: what rounds must stay."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    session = ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    given = {i.name: feeds[i.name] for i in session.get_inputs()}
    return {n: x.astype(np.float64) for n, x in zip(outputs, session.run(list(outputs), given), strict=True)}


def states64(encoder: Any, log_mel: NDArray[np.float32], silence: SilenceKeys | None) -> dict[str, NDArray[np.float64]]:
    """Every output in float64, as `hidden_states` gives it; with a silence cache after the computed positions.

    encoder: Hugging Face's, in float64.
    """
    gelu, heads = torch.nn.functional.gelu, encoder.config.encoder_attention_heads

    def split(t: torch.Tensor) -> torch.Tensor:
        return t.unflatten(-1, (heads, -1)).transpose(1, 2)

    with torch.inference_mode():
        x = gelu(encoder.conv2(gelu(encoder.conv1(torch.from_numpy(log_mel).double())))).transpose(1, 2)
        states = [x + encoder.embed_positions.weight[: x.shape[1]]]
        for i, layer in enumerate(encoder.layers):
            x, a = states[-1], layer.self_attn
            h = layer.self_attn_layer_norm(x)
            q, k, v = split(a.q_proj(h)), split(a.k_proj(h)), split(a.v_proj(h))
            bias = torch.zeros(k.shape[2], dtype=torch.float64).expand(1, heads, 1, -1)
            if silence is not None:
                own = (torch.from_numpy(t[i]).double() for t in (silence.key, silence.value, silence.bias))
                key, value, more = own
                k, v = (torch.cat([t, c.expand(len(t), -1, -1, -1)], 2) for t, c in ((k, key), (v, value)))
                bias = torch.cat([bias, more[None, :, None]], 3)
            weights = (q @ k.transpose(2, 3) * k.shape[3] ** -0.5 + bias).softmax(3)
            x = x + a.out_proj((weights @ v).transpose(1, 2).flatten(2))
            states.append(x + layer.fc2(gelu(layer.fc1(layer.final_layer_norm(x)))))
        states.append(encoder.layer_norm(states[-1]))
    return {n: s.numpy() for n, s in zip(output_names(len(encoder.layers)), states, strict=True)}


def errors(graph: bytes, model: ModelFolder, feeds: Feeds, want: dict[str, NDArray[np.float64]]) -> dict[str, float]:
    """Relative L2 by output."""
    found = run(graph, model.card.outputs, feeds)
    return {n: float(np.linalg.norm(x - want[n]) / np.linalg.norm(want[n])) for n, x in found.items()}


def worst(
    model: ModelFolder,
    checkpoint: Checkpoint,
    recordings: Sequence[NDArray[np.float32]],
    before: Path | None = None,
    kinds: Sequence[bool] = (False, True),
) -> dict[str, dict[str, float]]:
    """By graph, and by output, the largest error over recordings, with cached keys and without.

    before: the source of another version, whose graph for CUDA is another column. kinds: whether keys are cached.
    """
    folder, outputs = model.path, model.card.outputs
    found: dict[str, dict[str, float]] = {}
    for cached in kinds:
        graphs = {
            name: cuda_encoder_graph(model, outputs, cached=cached, fused=fused)
            for name, fused in (("exported", False), ("CUDA", True))
        }
        wide = cuda_encoder_graph(model, outputs, cached=cached, fused=True, bfloat16=True)
        if before is not None:
            with scratch_folder("float16-error") as made:
                command = [sys.executable, "-c", BUILD, str(folder), str(made)]
                subprocess.run(command, env=os.environ | {"PYTHONPATH": str(before)}, check=True)
                graphs["CUDA, before"] = Path(made, f"{cached:d}").read_bytes()
        ready = {name: rounded(graph, folder) for name, graph in graphs.items()}
        ready["CUDA, bfloat16"] = rounded(wide, folder, TensorProto.BFLOAT16)
        encoder = checkpoint.encoder.double()
        for audio in recordings:
            frames = min(1500, 50 * -(-len(audio) // 16_000) + 50) if cached else 1500
            if cached and frames == 1500:
                continue
            features = checkpoint.extractor(audio, sampling_rate=16_000, return_tensors="np")["input_features"]
            log_mel = np.ascontiguousarray(features[:, :, : 2 * frames], np.float32)
            silence = model.silence().for_frames(frames) if cached else None
            want = states64(encoder, log_mel, silence)
            feeds = {"log_mel": log_mel} | (silence.feeds() if silence else {})
            for name, graph in ready.items():
                for output, error in errors(graph, model, feeds, want).items():
                    row = found.setdefault(name, dict.fromkeys(outputs, 0.0))
                    row[output] = max(row[output], error)
        checkpoint.encoder.float()
    return found


def main() -> int:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--checkpoint", help="by default random weights of --shape")
    p.add_argument("--shape", type=lambda t: tuple(map(int, t.split(","))), default=(1280, 4, 20, 128))
    p.add_argument("--corpus", type=Path, help="recordings; by default made-up sounds")
    p.add_argument("--clips", type=int, default=4, help="how many recordings, evenly spaced")
    p.add_argument("--rows", type=int, nargs="+", help="which recordings of the corpus, in place of --clips")
    p.add_argument("--cached", action="store_true", help="with cached keys alone: windows of 30 s take much longer")
    p.add_argument("--model", type=Path, help="the checkpoint exported in float16; by default it is exported")
    p.add_argument("--before", type=Path, help="src of another checkout")
    args = p.parse_args()
    with scratch_folder("float16-error") as folder:
        if args.checkpoint:
            spec = ExportSpec(dtype="float16")
            model = open_model(args.model) if args.model else export(args.checkpoint, Path(folder) / "model", spec)
            checkpoint = load_checkpoint(args.checkpoint)
        else:
            from _gpu import random_model

            model, checkpoint = random_model(args.shape, Path(folder))
        if args.corpus:
            corpus = read_corpus(args.corpus)
            rows = args.rows or range(0, len(corpus), max(1, len(corpus) // args.clips))[: args.clips]
            recordings = [decode(corpus.recording(row)) for row in rows]
        else:
            recordings = [made_up(i, 16_000 * s) for i, s in enumerate((3, 12, 25))][: args.clips]
        found = worst(model, checkpoint, recordings, args.before, (True,) if args.cached else (False, True))
    print("Largest relative L2 to float64, every result rounded to float16:")
    for name, row in found.items():
        print(f"  {name:13}", " ".join(f"{o} {e:.2e}" for o, e in row.items()))
    base = found.get("CUDA, before", found["exported"])
    ratios = {o: found["CUDA"][o] / base[o] for o in base}
    output = max(ratios, key=ratios.__getitem__)
    print(f"  CUDA over {'before' if 'CUDA, before' in found else 'exported'}: at most {ratios[output]:.2f}, {output}")
    return int(ratios[output] > 1.5)


if __name__ == "__main__":
    sys.exit(main())
