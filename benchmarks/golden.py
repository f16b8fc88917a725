"""Whether two versions of voxstrata write the same bytes: model folders, stores, tiles and their top-k tables.

Each version exports one tiny random-weight checkpoint, extracts one corpus of made-up sounds in several forms, and
compares all pairs of the stores. Every file that it leaves is hashed. Where a file differs between the versions it is
named, and the exit status is 1. Hashes are only worth comparing within one run: another processor rounds otherwise.

    python benchmarks/golden.py --before OLD_CHECKOUT/src --after src
"""

from __future__ import annotations

import argparse
import hashlib
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import soundfile

from voxstrata.base.folders import scratch_folder

EXPORTS = {
    "float32": [],
    "float16": ["--dtype", "float16"],
    "int8": ["--dtype", "int8"],
    "chosen": ["--outputs", "layer_02,final", "--silence-keys", "0"],
    "normed": ["--norm-every-layer", "--calibrate", "{corpus}"],
}
STORES = {
    "bucketed": ["float32"],
    "padded": ["float32", "--context", "padded"],
    "trimmed": ["float32", "--context", "trimmed"],
    "pooled": ["float32", "--pool", "mean"],
    "every_5": ["float32", "--every", "5"],
    "every_5_full": ["float32", "--every", "5", "--dtype", "float32"],
    "full": ["float32", "--dtype", "float32", "--unit-mb", "0.25"],
    "half_model": ["float16"],
    "int8_model": ["int8"],
    "calibrated": ["normed"],
}
SIMILARITIES = {
    "two_sides": ["--x", "en", "--y", "es", "--matrix", "f1,precision,recall", "--tile-frames", "300"],
    "one_side": ["--tile-frames", "300", "--matrix", "f1", "--kernel", "float32"],
    "candidates": ["--x", "en", "--y", "es", "--candidates", "6", "--top", "3"],
}
MAIN = "from voxstrata.cli import main; main()"


def write_checkpoint(folder: Path) -> None:
    """A Whisper of 3 encoder layers, d = 32, with seeded random weights, as a Hugging Face folder."""
    import torch
    from transformers import WhisperConfig, WhisperFeatureExtractor
    from transformers.models.whisper.modeling_whisper import WhisperEncoder

    torch.manual_seed(7)
    shape = {"d_model": 32, "encoder_layers": 3, "encoder_attention_heads": 4, "encoder_ffn_dim": 128}
    encoder = WhisperEncoder(WhisperConfig(**shape, num_mel_bins=80))
    with torch.no_grad():  # the default 0.02 leaves attention all but uniform
        for parameter in encoder.parameters():
            if parameter.ndim == 2:
                parameter.normal_(0, 0.3)
    encoder.save_pretrained(folder)
    WhisperFeatureExtractor().save_pretrained(folder)


def write_corpus(folder: Path) -> Path:
    """24 made-up sounds of 0.5 to 40 s in two languages, and a manifest."""
    folder.mkdir()
    lines = ["id\tpath\tlanguage\tgroup"]
    for i, seconds in enumerate([*np.linspace(0.5, 9, 22), 29.999, 40.0]):
        rng = np.random.default_rng(i)
        t = np.arange(round(seconds * 16_000)) / 16_000
        sound = 0.1 * np.sin(2 * np.pi * rng.uniform(90, 900) * t) + 0.01 * rng.standard_normal(len(t))
        soundfile.write(folder / f"{i}.wav", sound, 16_000)
        lines.append(f"u{i}\t{i}.wav\t{'en' if i % 2 else 'es'}\tg{i // 2}")
    manifest = folder / "speech.tsv"
    manifest.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return manifest


def run(source: Path, *arguments: object, cwd: Path) -> None:
    """One command of the version whose package lies in `source`."""
    environment = os.environ | {"PYTHONPATH": str(source.resolve()), "XDG_CACHE_HOME": str(cwd / "cache")}
    command = [sys.executable, "-c", MAIN, *map(str, arguments)]
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(map(str, arguments))}: exit {done.returncode}\n{done.stderr}")


def write_all(source: Path, folder: Path, checkpoint: Path, manifest: Path) -> dict[str, str]:
    """Everything that is compared; SHA-256 by path."""
    folder.mkdir()
    for name, options in EXPORTS.items():
        options = [option.format(corpus=manifest) for option in options]
        run(source, "export", checkpoint, "-o", f"model_{name}", *options, cwd=folder)
    for name, (model, *options) in STORES.items():
        store = f"{name}.zarr"
        run(source, "extract", manifest, f"model_{model}", "-o", store, "--threads", 2, *options, cwd=folder)
    # the option that names the encoder output was --layer before it was --outputs
    for option in ("--outputs", "--layer"):
        try:
            for name, options in SIMILARITIES.items():
                run(source, "similarity", "bucketed.zarr", option, "layer_02", "-o", name, *options, cwd=folder)
            break
        except SystemExit:
            if option == "--layer":
                raise
    files = [p for p in sorted(folder.rglob("*")) if p.is_file() and "cache" not in p.relative_to(folder).parts]
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", type=Path, required=True, help="src folder of the older version")
    parser.add_argument("--after", type=Path, default=Path(__file__).parents[1] / "src", help="and of the newer")
    arguments = parser.parse_args()
    with scratch_folder("golden") as temporary:
        folder = Path(temporary)
        write_checkpoint(folder / "checkpoint")
        manifest = write_corpus(folder / "corpus")
        before, after = (
            write_all(source, folder / name, folder / "checkpoint", manifest)
            for name, source in (("before", arguments.before), ("after", arguments.after))
        )
    differing = [name for name in sorted(before | after) if before.get(name) != after.get(name)]
    for name in differing:
        print(f"differs: {name}")
    together = hashlib.sha256("".join(f"{n} {h}\n" for n, h in sorted(after.items())).encode()).hexdigest()
    print(f"{len(after)} files, {len(differing)} differ; all together {together}")
    sys.exit(bool(differing))


if __name__ == "__main__":
    main()
