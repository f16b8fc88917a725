"""Every picture of the docs, and the tables that the docs show of the prompts, made again by one command.

Each step is a command that a user could type; `--dry-run` prints them. The last are scripts of this folder. Results are
left in `--out`, a folder for each step with its tables (Markdown and Parquet) and pictures; pictures that the docs show
are copied to `--images`. A step whose result is there is left out, so a run that was stopped goes on.

    make figures BASE=whisper-base TINY_EN=whisper-tiny.en      # complete checkpoints, with decoder and tokenizer

`--groups 60` takes so many sentences, drawn with a fixed seed. `--skip silence,workers` leaves steps out.
"""

from __future__ import annotations

import argparse
import csv
import random
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from _common import say

DATA = Path(__file__).parents[2] / "shared" / "data"
PROGRAMS = {"voxstrata": (sys.executable, "-c", "from voxstrata.cli import main; main()"), "python": (sys.executable,)}


@dataclass(frozen=True)
class Step:
    """A command, the file that shows that it is done, and the pictures that the docs show, by name."""

    name: str
    command: tuple[str, ...]
    result: str
    pictures: dict[str, str] = field(default_factory=dict)


def steps(args: argparse.Namespace, prompts: Path) -> Iterator[Step]:
    """All of them, in order."""
    at = args.out
    base, tiny, store, sound = at / "base", at / "tiny.en", at / "prompts.zarr", at / "phonetics"

    def step(folder: str, result: str, *words: object, pictures: dict[str, str] | None = None) -> Step:
        line = ("voxstrata", *map(str, words), "-o", str(at / folder))
        return Step(folder, line, f"{folder}/{result}", pictures or {})

    def script(name: str, result: str, *words: object, pictures: dict[str, str]) -> Step:
        line = ("python", str(Path(__file__).with_name(f"{name}.py")), *map(str, words), "--out", str(at / name))
        return Step(name, line, f"{name}/{result}", pictures)

    calibrate = ("--calibrate", args.calibrate) if args.calibrate else ()
    yield step("base", "card.json", "export", args.base, *calibrate)
    yield step("tiny.en", "card.json", "export", args.tiny_en, *calibrate)
    yield step("drift", "drift.md", "drift", prompts, base, pictures={"drift.png": "drift.png"})
    yield step("prompts.zarr", "", "extract", prompts, base)
    yield step("tiny.en.zarr", "", "extract", prompts, tiny)
    drawn = {"recall_by_layer.png": "prompts_recall_by_layer.png", "languages.png": "prompts_languages.png"}
    yield step("retrieve", "retrieval.md", "retrieve", store, pictures=drawn)
    yield step("published", "retrieval.md", "retrieve", store, "--pool", "shared-first")
    drawn = {"recall_by_depth.png": "prompts_recall_by_depth.png"}
    yield step("compared", "compared.md", "retrieve", store, at / "tiny.en.zarr", pictures=drawn)
    yield step("phonetics", "phonetics.md", "phonetics", prompts)
    near = ("--similarity", "pooled_cosine", "--negatives", "sound,length,words", "--phonetics", sound)
    yield step("hard", "retrieval.md", "retrieve", store, *near)
    for x, y in (pair.split("-") for pair in args.mine.split(",")):
        two = ("--outputs=-2", "--x", x, "--y", y)  # of whisper-base layer_06
        yield step(f"{x}-{y}", "", "similarity", store, *two, "--top", 16)
        yield step(f"mined-{x}-{y}", "mine.md", "mine", at / f"{x}-{y}")
        yield step(f"mined-pooled-{x}-{y}", "mine.md", "mine", store, *two)
    yield step("align", "align.md", "align", store, "--phonetics", sound, pictures={"align.png": "prompts_align.png"})
    pair = (*args.explain.split(","), "--outputs", "2,-2,-1")  # of whisper-base layer_02, layer_06, final
    yield step("explain", "explain.md", "explain", store, *pair, pictures={"explain.png": "explain.png"})
    yield step("words", "words.md", "words", "example", base, pictures={"words.png": "words.png"})
    sweep = ("early-exit", "sweep", args.base, prompts)
    drawn = {name: f"prompts_{name}" for name in ("early_exit.png", "early_exit_kinds.png", "early_exit_shares.png")}
    yield step("exits", "early_exit.md", *sweep, "--norm", args.norms, pictures=drawn)
    drawn = {"early_exit.png": "prompts_translate.png"}
    translating = ("--task", "translate", "--english-of-group", "--norm", "with")
    yield step("translate", "early_exit.md", *sweep, *translating, pictures=drawn)
    drawn = {"early_exit.png": "prompts_softer.png"}
    yield step("softer", "early_exit.md", *sweep, "--norm", "with,refitted,mapped", pictures=drawn)
    drawn = {"languages.png": "prompts_heard.png"}
    heard = ("--language", "auto", "--norm", "with")
    yield step("heard", "languages/languages.md", *sweep, *heard, pictures=drawn)
    yield step("demo", "results/recall_by_depth.png", "demo", pictures={"recall_by_depth.png": "laboratory.png"})
    if args.calibrate:
        common = ("--model", args.base, "--corpus", prompts, "--calibrate", args.calibrate, "--clips", 60)
        yield script("silence", "silence.md", *common, pictures={"silence.png": "silence.png"})
    figure = ("--wait", 1, "--figure", at / "workers" / "workers.png")
    yield script("workers", "workers.md", *figure, pictures={"workers.png": "workers.png"})


def written(args: argparse.Namespace) -> Path:
    """The manifest of the prompts that take part."""
    with args.prompts.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    names = sorted({row["group"] for row in rows})
    chosen = set(random.Random(0).sample(names, args.groups) if args.groups else names)
    path = args.out / "prompts.tsv"
    with path.open("w", encoding="utf-8", newline="") as file:
        table = csv.DictWriter(file, list(rows[0]), delimiter="\t", lineterminator="\n")
        table.writeheader()
        for row in rows:
            if row["group"] in chosen:
                table.writerow({**row, "path": str((args.prompts.parent / row["path"]).resolve())})
    return path


def main() -> int:
    """Run what is missing; 1 where a command fails."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--base", required=True, help="complete checkpoint of whisper-base")
    p.add_argument("--tiny-en", required=True, help="complete checkpoint of whisper-tiny.en")
    p.add_argument("--prompts", type=Path, default=DATA / "prompts" / "prompts.tsv")
    p.add_argument("--calibrate", type=Path, help="recordings for the silence caches, e.g. ../shared/data/assorted")
    p.add_argument("--norms", default="with,without")
    p.add_argument("--explain", default="en/vm-opts,es/vm-opts", metavar="A,B", help="ids of two to explain")
    p.add_argument("--mine", default="en-es,ru-uk", metavar="X-Y,X-Y,...", help="languages to mine pairs of")
    p.add_argument("--skip", default="", metavar="STEP,STEP,...", help="leave out these steps")
    p.add_argument("--groups", type=int, help="take so many sentences alone, drawn with a fixed seed")
    p.add_argument("--out", type=Path, default=Path("figures"))
    p.add_argument("--images", type=Path, help="copy the docs' pictures here, e.g. docs/images")
    p.add_argument("--dry-run", action="store_true")
    args = p.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    for step in steps(args, written(args)):
        line, (program, *words) = shlex.join(step.command), step.command
        if step.name in args.skip.split(","):
            say(f"{step.name}: left out")
        elif args.dry_run or (not step.result.endswith("/") and (args.out / step.result).exists()):
            say(line if args.dry_run else f"{step.name}: is there")
        else:
            begin = time.monotonic()
            say(line)
            code = subprocess.run([*PROGRAMS[program], *words], check=False).returncode
            if code:
                say(f"{step.name}: exit code {code}")
                return 1
            say(f"{step.name}: {time.monotonic() - begin:.0f} s")
        for picture, name in step.pictures.items():
            found = (args.out / step.result).parent / picture
            if args.images and found.exists():
                args.images.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(found, args.images / name)
    return 0


if __name__ == "__main__":
    sys.exit(main())
