"""Damaged and hostile files in whole commands: each ends with a sentence and an exit code, none hangs.

Manifests (TSV, CSV, JSON lines, Parquet), lists of ids, the JSON files of checkpoints and models, silence caches, ONNX
graphs and the files of stores are changed at random: bytes flipped, cut or doubled, values replaced by absurd ones
(huge, negative, nested, of another type), keys removed, FIFOs, folders and links to devices put in their place. Where a
model's card has hashes, they are made anew, so that what lies behind them is reached. Every command runs in a process
of its own with a time limit. Exit status 1 if one shows a traceback, hangs, dies by a signal, or ends with a code that
`voxstrata --help` does not list; 70 (nobody foresaw this) is counted as such.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import hashlib
import io
import json
import os
import shutil
import signal
import socket
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import soundfile

from voxstrata.base.folders import scratch_folder
from voxstrata.encoders.card import CARD, MODEL_FILES

_CODES = {0, 2, 3, 4}
_LIMIT = 60  # seconds of a command; the longest take two
_WORDS: list[Any] = [
    0, -1, 1, 2**31, 2**63, 10**18, 10**6, 1e308, -0.5, float("nan"), float("inf"), True, None, "", "x",
    "../../etc/passwd", "/dev/zero", "//server/share", "~nobody", "a\0b", "n" * 300, "é" * 5000, "\ud800", "\x1b[2J",
    "<script>", "$\\frac{$", [], {},
    [[]], {"a": {}}, [1, "a", None], "1" * 5000, "-" + "9" * 400, "nan", "1e999", "=1+1", "\u202ex",
]  # fmt: skip
_HUGE = "9" * 5000
_DEEP = "[" * 100_000


def _bytes(data: bytes, rng: np.random.Generator) -> bytes:
    out = bytearray(data)
    for _ in range(rng.integers(1, 4)):
        size = max(len(out), 1)
        at, to = sorted(int(i) for i in rng.integers(0, size, 2))
        match rng.integers(0, 7):
            case 0:
                for i in rng.integers(0, size, rng.integers(1, 12)):
                    out[i : i + 1] = rng.bytes(1)
            case 1:
                out[at : at + 8] = rng.choice([b"\xff" * 8, bytes(8), b"\x7f" + b"\xff" * 7])
            case 2:
                del out[at:]
            case 3:
                del out[at:to]
            case 4:
                out[to:to] = out[at:to]
            case 5:
                out[at:at] = rng.choice([b"\0", b"\n", b"\t", b",", b'"', b"\xef\xbb\xbf", b"\xff", b"{", b"[" * 3000])
            case 6:
                out[:] = rng.choice([b"", b"\n", b"\0" * 64, b"PAR1", b"\x1f\x8b", b"{", b"[" * 5000, b"null", b"[]"])
    return bytes(out)


def _value(value: Any, rng: np.random.Generator) -> Any:
    """A value of JSON with one of those in it replaced, removed or wrapped."""
    if isinstance(value, dict | list) and value and rng.random() < 0.85:
        keys = list(value) if isinstance(value, dict) else list(range(len(value)))
        key = keys[rng.integers(len(keys))]
        new = dict(value) if isinstance(value, dict) else list(value)
        if rng.random() < 0.1:
            del new[key]
        else:
            new[key] = _value(value[key], rng)
        return new
    if isinstance(value, int) and not isinstance(value, bool) and rng.random() < 0.3:
        return int(value) * int(rng.choice([10, 1000, -1, 2])) + int(rng.integers(-2, 3))
    return _WORDS[rng.integers(len(_WORDS))]


def _json(data: bytes, rng: np.random.Generator) -> bytes:
    value = _value(json.loads(data), rng)
    text = json.dumps(value)
    if rng.random() < 0.05:
        text = text.replace(": 1", ": " + _HUGE, 1)
    if rng.random() < 0.03:
        text = text.replace(": ", ": " + _DEEP, 1)
    return text.encode()


def _structured(path: Path, rng: np.random.Generator) -> None:
    """A file changed as its kind is written."""
    data, kind = path.read_bytes(), path.suffix
    if kind == ".json":
        path.write_bytes(_json(data, rng))
    elif kind == ".jsonl":
        lines = data.splitlines()
        at = int(rng.integers(len(lines)))
        lines[at] = _json(lines[at], rng)
        path.write_bytes(b"\n".join(lines) + b"\n")
    elif kind in (".tsv", ".csv"):
        rows = list(csv.reader(io.StringIO(data.decode()), delimiter="\t" if kind == ".tsv" else ","))
        at, column = int(rng.integers(len(rows))), int(rng.integers(len(rows[0])))
        rows[at][column] = str(_WORDS[rng.integers(len(_WORDS))])
        out = io.StringIO()
        csv.writer(out, delimiter="\t" if kind == ".tsv" else ",").writerows(rows)
        path.write_bytes(out.getvalue().encode("utf-8", "surrogatepass"))
    elif kind == ".parquet":
        table = pq.read_table(path)
        at, n = int(rng.integers(table.num_columns)), len(table)
        new: list[Callable[[], pa.Array]] = [
            lambda: pa.array([float("nan")] * n), lambda: pa.array([1e308] * n), lambda: pa.array([b"\xff"] * n),
            lambda: pa.array([["a"]] * n), lambda: pa.array([{"a": 1}] * n), lambda: pa.nulls(n),
            lambda: pa.array([2**63 - 1] * n), lambda: pa.array([True] * n),
            lambda: pa.array(["a\0b"] * n), lambda: pa.array(["/dev/zero"] * n),
            lambda: pa.DictionaryArray.from_arrays(pa.array([0] * n, pa.int32()), ["x" * 10_000_000]),
        ]  # fmt: skip
        column = new[rng.integers(len(new))]()
        name = table.column_names[at]
        table = table.set_column(at, name, column)
        if rng.random() < 0.1:
            table = pa.concat_tables([table.slice(0, 1)] * 3)
        pq.write_table(table, path, compression="zstd")
    elif kind == ".npz":
        with np.load(path) as held:
            arrays = dict(held)
        name = list(arrays)[rng.integers(len(arrays))]
        a = arrays[name]
        changed = [
            np.atleast_1d(a)[..., :1],
            a.astype(np.float64),
            a[..., None],
            a.ravel(),
            np.zeros(0),
            np.array(10**9),
            a * 1000,
        ]
        arrays[name] = changed[rng.integers(len(changed))] if a.ndim else np.array([3, -5, 10**9, 1.5][rng.integers(4)])
        (np.savez_compressed if rng.random() < 0.3 else np.savez)(path, **arrays)
    elif kind == ".onnx":
        _onnx(path, rng)
    else:
        path.write_bytes(data + str(_WORDS[rng.integers(len(_WORDS))]).encode("utf-8", "surrogatepass") + b"\n")


def _onnx(path: Path, rng: np.random.Generator) -> None:
    import onnx

    model = onnx.load(path, load_external_data=False)
    graph = model.graph
    node = graph.node[rng.integers(len(graph.node))]
    match rng.integers(0, 7):
        case 0:
            node.op_type = str(rng.choice(["Loop", "If", "Scan", "Add", "Tile", "MatMul", "Softmax", "Nothing"]))
        case 1:
            node.domain = str(rng.choice(["com.microsoft", "ai.onnx.ml", "mine"]))
        case 2:
            graph.initializer[rng.integers(len(graph.initializer))].dims[:] = [int(rng.integers(0, 2**40))]
        case 3:
            del graph.node[rng.integers(len(graph.node))]
        case 4:
            tensor = graph.initializer[rng.integers(len(graph.initializer))]
            tensor.external_data.add(key="location", value="../../../../etc/passwd")
            tensor.data_location = onnx.TensorProto.EXTERNAL
        case 5:
            graph.output[0].name = "other"
        case 6:
            body = onnx.helper.make_graph([], "body", [], [])
            node.attribute.append(onnx.helper.make_attribute("body", body))
    path.write_bytes(model.SerializeToString())


def _replaced(path: Path, rng: np.random.Generator) -> None:
    """Something that is no regular file, in a file's place."""
    path.unlink()
    match rng.integers(0, 6):
        case 0:
            os.mkfifo(path)
        case 1:
            path.mkdir()
        case 2:
            path.symlink_to("/dev/zero")
        case 3:
            path.symlink_to(path)
        case 4:
            path.symlink_to("/nowhere")
        case 5:
            with socket.socket(socket.AF_UNIX) as server, contextlib.suppress(OSError):
                server.bind(str(path))


def damage(path: Path, rng: np.random.Generator) -> str:
    """Change a file in one of three ways; returns which."""
    how = str(rng.choice(["bytes", "structured", "structured", "replaced"], p=[0.4, 0.3, 0.2, 0.1]))
    if how == "replaced":
        _replaced(path, rng)
    elif how == "bytes":
        path.write_bytes(_bytes(path.read_bytes(), rng))
    else:
        _structured(path, rng)
    return how


def sign(model: Path) -> None:
    """Make the hashes of a model's card anew, as whoever made a hostile one would."""
    if not (model / CARD).is_file():  # a FIFO in its place would hold this process, which has no time limit
        return
    try:
        card = json.loads((model / CARD).read_text())
        names = [n for n in MODEL_FILES if n != CARD and (model / n).is_file() and (model / n).stat().st_size < 1 << 28]
        card["files"] = {n: hashlib.sha256((model / n).read_bytes()).hexdigest() for n in names}
        card.pop("sha256", None)
        card["sha256"] = hashlib.sha256(json.dumps(card, sort_keys=True).encode()).hexdigest()
        (model / CARD).write_text(json.dumps(card))
    except (OSError, ValueError, TypeError, AttributeError, RecursionError):
        pass


def write_seeds(root: Path) -> None:
    """A small corpus in every form of manifest, a checkpoint, a model, a store, a list of ids."""
    import torch
    from transformers import WhisperConfig, WhisperFeatureExtractor, WhisperForConditionalGeneration

    import voxstrata as vs

    rows = []
    for i, (language, group) in enumerate([("en", "g1"), ("es", "g1"), ("en", "g2"), ("es", "g2")]):
        soundfile.write(root / f"{i}.wav", np.random.default_rng(i).normal(0, 0.1, 16_000), 16_000)
        rows.append({"path": f"{i}.wav", "id": f"u{i}", "language": language, "group": group, "text": "a, b"})
        rows[-1] |= {"offset": "0.1", "duration": "0.5", "channel": "0", "more": "x"}
    for name, delimiter in (("m.tsv", "\t"), ("m.csv", ",")):
        with (root / name).open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]), delimiter=delimiter)
            writer.writeheader()
            writer.writerows(rows)
    (root / "m.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    pq.write_table(pa.Table.from_pylist(rows), root / "m.parquet")
    (root / "ids.txt").write_text("u0\nu2\n")
    config = WhisperConfig(
        vocab_size=64, d_model=16, encoder_layers=2, decoder_layers=1, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=32, decoder_ffn_dim=32, max_target_positions=32, pad_token_id=0,
        bos_token_id=1, eos_token_id=2, decoder_start_token_id=1, suppress_tokens=None, begin_suppress_tokens=None,
    )  # fmt: skip
    torch.manual_seed(0)
    WhisperForConditionalGeneration(config).save_pretrained(root / "checkpoint")
    WhisperFeatureExtractor().save_pretrained(root / "checkpoint")
    vs.export(str(root / "checkpoint"), root / "model")
    vs.extract(vs.read_corpus(root / "m.tsv"), vs.open_model(root / "model"), root / "store.zarr")


def list_cases(root: Path) -> dict[str, tuple[str, list[str]]]:
    """By name: the file to damage, and the command that reads it."""
    cases = {}
    for name in ("m.tsv", "m.csv", "m.jsonl", "m.parquet"):
        cases[f"plan {name}"] = (name, ["plan", name, "model"])
        cases[f"extract {name}"] = (name, ["extract", name, "model", "-o", "new.zarr"])
        cases[f"relabel {name}"] = (name, ["relabel", "store.zarr", name])
    of_final = ["store.zarr", "--outputs", "final"]
    cases["similarity ids.txt"] = ("ids.txt", ["similarity", *of_final, "--x-ids", "ids.txt", "-o", "s"])
    for name in ("config.json", "preprocessor_config.json", "model.safetensors", "generation_config.json"):
        cases[f"export {name}"] = (f"checkpoint/{name}", ["export", "checkpoint", "-o", "new"])
    for name in (CARD, "silence.npz", "config.json", "log_mel.onnx", "encoder_cpu.onnx", "encoder_model.onnx"):
        cases[f"info {name}"] = (f"model/{name}", ["info", "model"])
        cases[f"extract {name}"] = (f"model/{name}", ["extract", "m.tsv", "model", "-o", "new.zarr"])
    for name in ("plan.json", "zarr.json", "utterances.parquet", "units/0.json", "frames/zarr.json"):
        path = root / "store.zarr" / name
        if not path.is_file():
            continue
        cases[f"info {name}"] = (f"store.zarr/{name}", ["info", "store.zarr"])
        cases[f"retrieve {name}"] = (f"store.zarr/{name}", ["retrieve", *of_final, "--bootstrap", "0"])
    return cases


def command(arguments: list[str], folder: Path) -> tuple[str, str]:
    """Run a command in a forked process: how it ended, and what it said on standard error."""
    said = folder / ".stderr"
    pid = os.fork()
    if pid == 0:
        os.setpgrp()
        os.chdir(folder)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        os.dup2(os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), 2)
        code = 99
        try:
            from voxstrata.cli.app import main

            main.main(arguments, prog_name="voxstrata")
        except SystemExit as e:
            code = e.code if isinstance(e.code, int) else 98
        except BaseException:
            import traceback

            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(code)
    begin = time.monotonic()
    while time.monotonic() - begin < _LIMIT:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            break
        time.sleep(0.005)
    else:
        os.killpg(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        return "hang", said.read_text(errors="replace")
    text = said.read_text(errors="replace")
    if os.WIFSIGNALED(status):
        return f"signal {os.WTERMSIG(status)}", text
    code = os.waitstatus_to_exitcode(status)
    return ("traceback" if "Traceback" in text else str(code)), text


def main() -> int:
    """Run and print."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--count", type=int, default=1000, help="commands in all")
    p.add_argument("--seconds", type=float, default=float("inf"), help="begin no command after so long")
    p.add_argument("--only", default="", help="cases whose name holds this")
    p.add_argument("--keep", type=Path, help="folder for the inputs of commands that did not end well")
    args = p.parse_args()
    rng = np.random.default_rng(args.seed)
    ends: Counter[tuple[str, str]] = Counter()
    bad, unforeseen, begin = 0, 0, time.monotonic()
    with scratch_folder("fuzz-inputs") as scratch:
        seeds = Path(scratch) / "seeds"
        seeds.mkdir()
        _in_child(lambda: write_seeds(seeds))
        cases = {name: case for name, case in list_cases(seeds).items() if args.only in name}
        _preload()
        for i in range(args.count):
            if time.monotonic() - begin > args.seconds:
                break
            name = list(cases)[i % len(cases)]
            file, arguments = cases[name]
            work = Path(scratch) / "work"
            shutil.copytree(seeds, work, copy_function=os.link)
            target = work / file
            data = target.read_bytes()
            target.unlink()  # it is linked to the seed
            target.write_bytes(data)
            if file.startswith("model/"):
                card = work / "model" / CARD
                text = card.read_bytes()
                card.unlink()
                card.write_bytes(text)
            how = damage(target, rng)
            if file.startswith("model/"):
                sign(work / "model")
            if arguments[0] == "relabel":  # writes into the store, which is linked to the seed
                shutil.rmtree(work / "store.zarr")
                shutil.copytree(seeds / "store.zarr", work / "store.zarr")
            end, said = command(arguments, work)
            ends[arguments[0], end] += 1
            unforeseen += end == "70"
            if end not in {str(code) for code in _CODES}:
                bad += end != "70"
                print(f"{i}: {name}, {how}: {end}: {said.strip()[-1500:]}", flush=True)
                if args.keep:
                    shutil.copytree(
                        work, args.keep / f"{args.seed}-{i}", symlinks=True, ignore=_no_fifos, dirs_exist_ok=True
                    )
            shutil.rmtree(work)
    for (verb, end), number in sorted(ends.items()):
        print(f"{verb:12} ended with {end:12} {number}")
    print(f"{ends.total()} commands in {time.monotonic() - begin:.0f} s: {bad} bad, {unforeseen} unforeseen")
    return int(bool(bad))


def _no_fifos(folder: str, names: list[str]) -> list[str]:
    return [n for n in names if not (Path(folder, n).is_file() or Path(folder, n).is_dir())]


def _in_child(work: Callable[[], Any]) -> None:
    """What starts threads runs in a process that ends before others are forked."""
    pid = os.fork()
    if not pid:
        code = 1
        try:
            work()
            code = 0
        finally:
            os._exit(code)
    if os.waitpid(pid, 0)[1]:
        raise SystemExit("the seeds could not be made")


def _preload() -> None:
    """What commands import, once for all of them; nothing here starts a thread."""
    import importlib

    for name in (
        "cli.plan", "cli.extract", "cli.info", "cli.export", "cli.relabel", "cli.retrieve", "cli.similarity",
        "exporters.writing", "exporters.checkpoint", "engine.extraction", "studies.retrieve.measure", "base.parquet",
    ):  # fmt: skip
        importlib.import_module(f"voxstrata.{name}")


if __name__ == "__main__":
    sys.exit(main())
