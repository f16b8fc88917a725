"""A laboratory where the answer is known: three small encoders that differ in their training alone.

`--train` speaks the sentences and trains for every seed a base that transcribes. The transcriber and the translator
go on from it, by one order of the same recordings (`_laboratory.py` says how). The state before all training is kept,
too: the untrained one. `--evaluate` asks the package's own commands whether they tell the three apart, on meanings and
voices that took no part in training:

- `align`: recall@1 at every layer on all, unlike and matched pairs,
- `words`: synonyms and near-homophones,
- `early-exit sweep`: error rates by exit, on a language that was taught and on Italian, which was not.

Intervals are over training seeds: mean ± t · s / √n. Both steps take up what is done already in `--out`.
`--ship FOLDER` copies one seed's transcriber and translator there.

Needs the extras `asr`, `demo` and `phonetics`. Training takes some six minutes of one core for each seed.
"""

from __future__ import annotations

import argparse
import csv
import json
import shutil
import sys
from collections.abc import Sequence
from math import sqrt
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import jiwer
import soundfile
import torch
from _common import Table, environment, pin, write_report
from _laboratory import Size, new_model, read_model, speak_examples, train, transcribe, write_model

import voxstrata as vs
from voxstrata.demo.laboratory import (
    LEFT_OUT,
    PIVOT,
    TAUGHT,
    Spoken,
    draw_sentences,
    laboratory_words,
    spoken_fast,
    write_laboratory_corpus,
)
from voxstrata.encoders.frames import SAMPLE_RATE
from voxstrata.phonology.voices import VOICES, Speaker
from voxstrata.studies.align.result import Alignment

SYSTEMS = ("untrained", "transcriber", "translator")
TRAINED = ("base", *SYSTEMS[1:])  # the common beginning, and what goes on from it
DRAWS = 3  # of meanings, with voices; sentences of two draws may be the same, spoken otherwise
TEST_MEANINGS, EXIT_MEANINGS, WORD_RATE = 100, 20, 280
# the 0.975 quantile of Student's t by degrees of freedom
T_QUANTILE = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262}
POOLS = ("all", "unlike", "matched")


def train_all(out: Path, seeds: Sequence[int], size: Size) -> None:
    """Every model that `out` has not yet: `out/<system>-<seed>`, the losses of its training beside the weights."""
    todo = [(system, seed) for seed in seeds for system in TRAINED if not losses_of(out, system, seed)]
    if not todo:
        return
    said = [s for draw in range(DRAWS) for s in draw_sentences("train", size.meanings // DRAWS, TAUGHT, draw)]
    print(f"speaking {len(said)} sentences", flush=True)
    examples = speak_examples(said)
    for system, seed in todo:
        print(f"{system}, seed {seed}", flush=True)
        if system == "base":
            model = new_model(size, seed)
            write_model(model, out / f"untrained-{seed}")
        else:
            model = read_model(out / f"base-{seed}")
        losses = train(model, examples, size, system, seed, lambda text: print(text, flush=True))
        write_model(model, out / f"{system}-{seed}")
        (out / f"{system}-{seed}" / "losses.json").write_text(json.dumps(losses))


def losses_of(out: Path, system: str, seed: int) -> list[float]:
    """The losses of a training that is done; none otherwise."""
    file = out / f"{system}-{seed}" / "losses.json"
    return list(json.loads(file.read_text())) if file.exists() else []


def over_seeds(values: Sequence[float], percent: bool = True) -> str:
    """Mean and 95 % interval of a normal sample."""
    scale, spec = (100, ".1f") if percent else (1, ".3f")
    centre = mean(values)
    if len(values) < 2:
        return f"{scale * centre:{spec}}"
    half = T_QUANTILE[len(values) - 1] * stdev(values) / sqrt(len(values))
    return f"{scale * centre:{spec}} [{scale * (centre - half):{spec}}, {scale * (centre + half):{spec}}]"


def error_rates(out: Path, seeds: Sequence[int], small: bool) -> Table:
    """Word error rates of development and test part, by task and language."""
    rows = []
    for part in ("dev", "test"):
        examples = speak_examples(draw_sentences(part, 4 if small else TEST_MEANINGS, (*TAUGHT, LEFT_OUT)))
        for language in (*TAUGHT, LEFT_OUT):
            heard = [e for e in examples if e.said.language == language]
            announced = "es" if language == LEFT_OUT else None
            for task in ("transcribe", "translate") if language != PIVOT else ("transcribe",):
                wanted = [
                    e.said if task == "transcribe" else Spoken(e.said.meaning, PIVOT, e.said.speaker) for e in heard
                ]
                cells = []
                for system in SYSTEMS[1:]:
                    if task == "translate" and system == "transcriber":
                        cells.append("–")
                        continue
                    models = [read_model(out / f"{system}-{seed}") for seed in seeds]
                    texts = [transcribe(model, heard, task, announced) for model in models]
                    cells.append(over_seeds([jiwer.wer([s.text for s in wanted], text) for text in texts]))
                rows.append([part, language, task, *cells])
    return Table("Word error rates in %, greedy", ["part", "language", "task", *SYSTEMS[1:]], rows)


def store_of(out: Path, system: str, seed: int, manifest: Path) -> Any:
    """The test corpus, encoded by one model."""
    name = f"{system}-{seed}"
    if not (out / "exported" / name / "card.json").exists():
        vs.export(str(out / name), out / "exported" / name)
    vs.extract(manifest, out / "exported" / name, out / "stores" / f"{name}.zarr")
    return vs.open_store(out / "stores" / f"{name}.zarr")


Figures = dict[tuple[str, str, str], list[dict[str, Any]]]  # system, output, pool: a row of `align` for each seed


def aligned(out: Path, seeds: Sequence[int], small: bool) -> Figures:
    """recall@1 of every model on pairs of the taught languages."""
    manifest = write_laboratory_corpus(out / "test", draw_sentences("test", 30 if small else TEST_MEANINGS, TAUGHT))
    vs.phonetics(vs.read_corpus(manifest), out / "phonetics")
    found: Figures = {}
    for system in SYSTEMS:
        for seed in seeds:
            print(f"align: {system}, seed {seed}", flush=True)
            folder = out / "aligned" / f"{system}-{seed}"
            if not (folder / "align.parquet").exists():
                store = store_of(out, system, seed, manifest)
                vs.align(store, out / "phonetics", options=vs.AlignOptions(bootstrap=0)).save(folder)
            alignment = Alignment.load(folder)
            for row in alignment.table.to_pylist():
                if (row["level"], row["states"], row["metric"]) == ("mean", "raw", "recall@1"):
                    key = system, row["system"], row["control"]
                    if row["control"] in POOLS:
                        found.setdefault(key, []).append(row)
    return found


def recall_table(found: Figures, outputs: Sequence[str]) -> Table:
    rows = []
    for system in SYSTEMS:
        for output in outputs:
            cells = [over_seeds([row["value"] for row in found[system, output, pool]]) for pool in POOLS]
            rows.append([system, output, *cells])
    first = [found[SYSTEMS[0], outputs[0], pool][0] for pool in POOLS]
    rows += [
        [f"({control} alone)", "", *(f"{100 * found[SYSTEMS[0], control, p][0]['value']:.1f}" for p in POOLS)]
        for control in ("phonemes", "durations")
    ]
    rows.append(["pool", "", *(f"{r['candidates']}–{r['candidates_max']}" for r in first)])
    rows.append(["chance", "", *(f"{100 * r['chance']:.1f}" for r in first)])
    return Table(
        "recall@1 in %, mean over 6 directions; intervals over training seeds", ["encoder", "output", *POOLS], rows
    )


def difference_table(found: Figures, outputs: Sequence[str]) -> tuple[Table, dict[str, list[float]]]:
    """Translator less transcriber of the same seed; and the differences on unlike pairs, by output."""
    rows, unlike = [], {}
    for output in outputs:
        cells = []
        for pool in POOLS:
            pairs = zip(found["translator", output, pool], found["transcriber", output, pool], strict=True)
            differences = [a["value"] - b["value"] for a, b in pairs]
            cells.append(over_seeds(differences))
            if pool == "unlike":
                unlike[output] = differences
        rows.append([output, *cells])
    caption = "Translator less transcriber of the same seed, recall@1 in points; intervals over training seeds"
    return Table(caption, ["output", *POOLS], rows), unlike


def write_word_list(folder: Path, spoken: bool) -> Path:
    """Every word of the taught languages; the list's path. spoken: alone, by the test part's first voice."""
    speaker = Speaker("m", VOICES[0].variant, WORD_RATE, VOICES[0].pitch)
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "words.tsv").open("w", encoding="utf-8", newline="") as file:
        out = csv.writer(file, delimiter="\t", lineterminator="\n")
        out.writerow(["form", "language", "meaning", *["path"] * spoken])
        for meanings in laboratory_words().values():
            for meaning, forms in meanings.items():
                for language in TAUGHT:
                    path = f"{language}-{meaning}.flac"
                    if spoken:
                        sound = spoken_fast(forms[language], language, speaker)
                        soundfile.write(folder / path, sound, SAMPLE_RATE)
                    out.writerow([forms[language], language, meaning, *[path] * spoken])
    return folder / "words.tsv"


def write_alignment(ctm: Path, manifest: Path) -> None:
    """Which word is when, taken to be as long as it has letters: as the frames are labelled in training."""
    with manifest.open(encoding="utf-8") as rows, ctm.open("w", encoding="utf-8") as out:
        for row in csv.DictReader(rows, delimiter="\t"):
            words = row["text"].split()
            each = soundfile.info(manifest.parent / row["path"]).duration / sum(map(len, words))
            begin = 0.0
            for word in words:
                out.write(f"{row['id']} 1 {begin:.3f} {each * len(word):.3f} {word}\n")
                begin += each * len(word)


def words_table(out: Path, seeds: Sequence[int], outputs: Sequence[str], alone: bool) -> Table:
    """AUC of synonyms and near-homophones at every layer: of words alone, or of those in the test's sentences."""
    from voxstrata.studies.words.measure import WordOptions, measure_spoken_words, measure_words
    from voxstrata.studies.words.result import WordComparison
    from voxstrata.studies.words.table import EVERY_LANGUAGE
    from voxstrata.studies.words.word_list import read_word_list

    where, options = ("words", "words-in-sentences")[not alone], WordOptions(bootstrap=0)
    entries = read_word_list(write_word_list(out / where, alone))
    if not alone:
        write_alignment(out / where / "words.ctm", out / "test" / "manifest.tsv")
    found: dict[tuple[str, str, str], list[float]] = {}
    controls: dict[tuple[str, str], float] = {}
    for system in SYSTEMS:
        for seed in seeds:
            print(f"{where}: {system}, seed {seed}", flush=True)
            name = f"{system}-{seed}"
            folder = out / where / name
            if not (folder / "words.parquet").exists():
                if alone:
                    model = vs.open_model(out / "exported" / name)
                    result = measure_words(entries, model, folder, options=options)
                else:
                    store, spans = vs.open_store(out / "stores" / f"{name}.zarr"), out / where / f"{name}.zarr"
                    vs.spans(store, out / where / "words.ctm", spans, pool="frames")
                    result = measure_spoken_words(entries, vs.open_store(spans), options=options)
                result.save(folder)
            for row in WordComparison.load(folder).table.to_pylist():
                if row["source"] != EVERY_LANGUAGE:
                    continue
                if row["output"] is None:
                    controls[row["similarity"], row["kind"]] = row["auc"]
                elif row["similarity"] == "seqsim_f1":
                    found.setdefault((system, row["output"], row["kind"]), []).append(row["auc"])
    kinds = list(dict.fromkeys(kind for *_, kind in found))
    rows = [
        [system, output, *(over_seeds(found[system, output, kind], percent=False) for kind in kinds)]
        for system in SYSTEMS
        for output in outputs
    ]
    rows += [
        [f"({control} alone)", "", *(f"{controls[control, kind]:.3f}" for kind in kinds)]
        for control in dict.fromkeys(name for name, _ in controls)
    ]
    said = "spoken alone" if alone else "in sentences"
    caption = f"Words {said}: AUC against random pairs, chance 0.5; intervals over training seeds"
    return Table(caption, ["encoder", "output", *kinds], rows)


def exits_table(out: Path, seeds: Sequence[int], small: bool) -> Table:
    """Character error rates on the test part of `sweep`, by exit, in a taught language and the one left out."""
    from voxstrata.early_exit.checkpoint import load_transcriber
    from voxstrata.early_exit.decoding import Decoding
    from voxstrata.early_exit.sweeping import sweep

    said = draw_sentences("test", 4 if small else EXIT_MEANINGS, ("es", LEFT_OUT), seed=1)
    corpus = vs.read_corpus(write_laboratory_corpus(out / "exits" / "corpus", said))
    found: dict[tuple[str, int, str, str], list[float]] = {}
    for system in SYSTEMS[1:]:
        for seed in seeds:
            print(f"exits: {system}, seed {seed}", flush=True)
            name = f"{system}-{seed}"
            decoding = Decoding(prompts=((LEFT_OUT, "es"),), max_new_tokens=48)
            result = sweep(load_transcriber(str(out / name)), corpus, out / "exits" / name, decoding=decoding)
            assert result is not None
            for row in result.table.to_pylist():
                if row["part"] == "test" and row["language"] in ("es", LEFT_OUT):
                    found.setdefault((system, row["after"], row["norm"], row["language"]), []).append(row["cer"])
    exits = sorted({(after, norm) for _, after, norm, _ in found})
    rows = [
        [str(after), norm, *(over_seeds(found[system, after, norm, language])
                             for language in ("es", LEFT_OUT) for system in SYSTEMS[1:])]
        for after, norm in exits
    ]  # fmt: skip
    header = ["k", "LayerNorm", *(f"{language} {system}" for language in ("es", LEFT_OUT) for system in SYSTEMS[1:])]
    return Table(f"Early exit: CER in %; {LEFT_OUT} had no part in training, and is announced as es", header, rows)


def ship(out: Path, seed: int, folder: Path) -> None:
    """One seed's transcriber and translator, without what tells of the training."""
    for system in SYSTEMS[1:]:
        shutil.copytree(out / f"{system}-{seed}", folder / system, dirs_exist_ok=True,
                        ignore=shutil.ignore_patterns("losses.json"))  # fmt: skip


def main() -> int:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--train", action="store_true")
    p.add_argument("--evaluate", action="store_true")
    p.add_argument("--ship", type=Path, metavar="FOLDER", help="copy the models of the first seed there")
    p.add_argument("--seeds", type=int, default=3)
    p.add_argument("--small", action="store_true", help="a few steps and sentences: that all of it runs")
    p.add_argument("--threads", type=int, default=1)
    p.add_argument("--out", type=Path, default=Path("bench/laboratory"))
    args = p.parse_args()
    pin(args.threads)
    torch.set_num_threads(args.threads)
    seeds, size = range(args.seeds), Size(meanings=12, steps=4, d_model=16) if args.small else Size()
    if args.train:
        train_all(args.out, seeds, size)
    if args.ship:
        ship(args.out, 0, args.ship)
    if not args.evaluate:
        return 0
    facts = environment(args.threads)
    found = aligned(args.out, seeds, args.small)
    outputs = list(dict.fromkeys(output for system, output, _ in found if output.startswith(("layer", "final"))))
    differences, unlike = difference_table(found, outputs)
    tables = [recall_table(found, outputs), differences, error_rates(args.out, seeds, args.small)]
    tables += [words_table(args.out, seeds, outputs, alone) for alone in (False, True)]
    tables.append(exits_table(args.out, seeds, args.small))
    losses = {
        f"{system}-{seed}": mean(losses_of(args.out, system, seed)[-100:]) for system in TRAINED for seed in seeds
    }
    last = unlike["final"]
    half = T_QUANTILE[len(last) - 1] * stdev(last) / sqrt(len(last)) if len(last) > 1 else 0.0
    above = mean(last) - half > 0
    notes = [
        "losses, mean of the last 100 steps: " + ", ".join(f"{name} {loss:.3f}" for name, loss in losses.items()),
        "translator less transcriber on unlike pairs, final: "
        + over_seeds(last)
        + (" > 0" if above else ", not above 0"),
    ]
    write_report("laboratory", "A laboratory with known training", args, facts, {"unlike": unlike, "losses": losses},
                 tables, notes)  # fmt: skip
    return 0 if above or args.small else 1


if __name__ == "__main__":
    sys.exit(main())
