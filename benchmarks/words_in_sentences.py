"""Do words in sentences find their translations? Words timed by a Whisper itself, their states from a store.

    python benchmarks/words_in_sentences.py CHECKPOINT PROMPTS STORE OUT

CHECKPOINT: a complete Whisper in transformers' form. PROMPTS: the folder of `prompts.tsv`. STORE: its states, as
`voxstrata extract` makes them. Writes timestamps (kept from run to run), the list of meanings, the store of words and
the results. The first 33 groups by name are timed: some fifteen minutes on one core. The list was written after a look
at which words are frequent there, before any figure.
"""

import csv
import json
import sys
from pathlib import Path

import soundfile
import soxr

import voxstrata as vs

GROUPS = 33
MEANINGS = (
    "agent agente, conference conferencia, or o, please favor, enter ingrese, number número, "
    "followed seguido, pound libra, key tecla, decrease disminuir, increase aumentar, volume volumen, "
    "mute mudo, exit salir, password clave, user usuario, extend extender, extended extendida, now ahora, "
    "4 cuatro, 6 seis, 7 siete, 9 nueve, 8 ocho, 5 cinco, 1 uno, 2 dos, 3 tres, to para, by por, the la, "
    "in en, is está, you usted, your su, already ya, incorrect incorrecta, locked bloqueada, no no, "
    "menu menú, last último, of de, has ha, been sido"
)


def time_words(checkpoint: str, prompts: Path, out: Path) -> None:
    """A JSON file of word timestamps for each recording, English and Spanish, unless it is there."""
    with (prompts / "prompts.tsv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    names = sorted({row["group"] for row in rows})[:GROUPS]
    rows = [row for row in rows if row["group"] in names and row["language"] in ("en", "es")]
    left = [row for row in rows if not (out / f"{row['id']}.json").exists()]
    if not left:
        return
    from transformers import pipeline

    transcribe = pipeline("automatic-speech-recognition", model=checkpoint, device="cpu")
    for row in left:
        samples, rate = soundfile.read(prompts / row["path"], dtype="float32")
        how = {"language": row["language"], "task": "transcribe", "max_new_tokens": 120}
        heard = {"array": soxr.resample(samples, rate, 16_000), "sampling_rate": 16_000}
        found = transcribe(heard, return_timestamps="word", generate_kwargs=how)
        path = out / f"{row['id']}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(found, ensure_ascii=False), encoding="utf-8")


def main() -> None:
    checkpoint, prompts, store, out = sys.argv[1], Path(sys.argv[2]), sys.argv[3], Path(sys.argv[4])
    time_words(checkpoint, prompts, out / "times")
    lines = ["form\tlanguage\tmeaning"]
    for english, spanish in (pair.split() for pair in MEANINGS.split(", ")):
        lines += [f"{english}\ten\t{english}", f"{spanish}\tes\t{english}"]
    (out / "list.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    print(vs.spans(store, out / "times", out / "words.zarr", meanings=out / "list.tsv").to_text())
    words = vs.open_store(out / "words.zarr")
    retrieval = vs.retrieve(words)
    retrieval.save(out / "retrieval")
    print(retrieval)
    vs.phonetics(vs.read_corpus(out / "words.zarr" / "utterances.parquet"), out / "phonetics")
    controlled = vs.align(words, out / "phonetics")
    controlled.save(out / "align")
    print(controlled)


if __name__ == "__main__":
    main()
