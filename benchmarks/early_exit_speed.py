"""How fast a sweep transcribes with all exits, beside transformers' loop, and whether it makes its tokens.

python benchmarks/early_exit_speed.py CHECKPOINT CORPUS [--clips 32] [--peer 8] [--max-new-tokens 224] [--seed 0]

The sweep: `clips` recordings drawn by the seed, encoded once and decoded for every exit, loops stopped. The peer, which
is slow: `peer` of them, of one language, as one batch, which transformers encodes and decodes anew for each exit, with
`generate` as all its models have it (Whisper's own, with which sweeps were made before, starts anew within a window at
some exits, and is slower). Both greedy, in float32 on the CPU, with as many threads as OMP_NUM_THREADS says.

Prints seconds per transcript by the clock and by the processor, and their ratio; and of the peer's transcripts, how
many the sweep's decoder makes with the same tokens when loops go on. Exit code 1 below 99.5 %.
"""

from __future__ import annotations

import argparse
import sys
import time
from functools import partial

import numpy as np
import torch
from transformers import GenerationMixin

from voxstrata.cli.console import aligned
from voxstrata.corpus import read_corpus
from voxstrata.early_exit.checkpoint import ended_early, load_transcriber, quiet_transformers, spectrograms
from voxstrata.early_exit.decoder import Ask
from voxstrata.early_exit.decoding import Decoding, in_float32, language_tokens, make_decoder, prompt
from voxstrata.early_exit.exits import every_exit
from voxstrata.early_exit.recordings import find_recordings, read_recording
from voxstrata.early_exit.states import ExitNorms, encode_layers

BATCH = 8  # recordings that a sweep has in work


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint")
    parser.add_argument("corpus")
    parser.add_argument("--clips", type=int, default=32)
    parser.add_argument("--peer", type=int, default=8)
    parser.add_argument("--max-new-tokens", type=int, default=224)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    transcriber, corpus = load_transcriber(args.checkpoint), read_corpus(args.corpus)
    infos, _ = find_recordings(corpus)
    languages = corpus.table["language"].to_pylist()
    known = getattr(transcriber.model.generation_config, "lang_to_id", None)
    usable = [i for i in infos if known or str(languages[i]).startswith("en")]
    rows = sorted(np.random.default_rng(args.seed).permutation(usable)[: args.clips].tolist())
    tokens = language_tokens(transcriber, [languages[i] for i in rows], Decoding())
    model = in_float32(transcriber.model)
    starts = {i: prompt(model.generation_config, tokens.get(str(languages[i])), "transcribe") for i in rows}
    exits = every_exit(transcriber.encoder.shape.layers)
    norms = ExitNorms(model.model.encoder.layer_norm)
    audio = {i: read_recording(corpus, i, infos[i]) for i in rows}

    def swept(some: list[int], stop: bool) -> dict[tuple[str, int], tuple[int, ...]]:
        found = {}
        how = Decoding(max_new_tokens=args.max_new_tokens, stop_loops=stop)
        for a in range(0, len(some), BATCH):
            batch = some[a : a + BATCH]
            features = spectrograms(transcriber.encoder, [audio[i] for i in batch])
            layers = encode_layers(model, features, {at.after for at in exits}).layers
            where = [(at, n, i) for at in exits for n, i in enumerate(batch)]
            asks = [Ask(partial(norms, at, layers[at.after][n]), starts[i]) for at, n, i in where]
            for n, decoded in make_decoder(model, str, how).decode(asks):
                found[str(where[n][0]), where[n][2]] = decoded.ids
        return found

    def generated(some: list[int]) -> dict[tuple[str, int], tuple[int, ...]]:
        found = {}
        end = model.generation_config.eos_token_id
        given = torch.tensor([starts[i] for i in some])
        for at in exits:
            features = spectrograms(transcriber.encoder, [audio[i] for i in some])
            with ended_early(model, at), quiet_transformers(), torch.inference_mode():
                ids = GenerationMixin.generate(
                    model, features, decoder_input_ids=given, max_new_tokens=args.max_new_tokens, num_beams=1,
                    do_sample=False,
                )[:, given.shape[1] :].tolist()  # fmt: skip
            for i, own in zip(some, ids, strict=True):
                found[str(at), i] = tuple(own[: own.index(end)] if end in own else own)
        return found

    def timed(make: object, *given: object) -> tuple[dict[tuple[str, int], tuple[int, ...]], float, float]:
        clock, processor = time.perf_counter(), time.process_time()
        found = make(*given)  # type: ignore[operator]
        return found, (time.perf_counter() - clock) / len(found), (time.process_time() - processor) / len(found)

    common = max(sorted(set(starts.values())), key=list(starts.values()).count)
    few = [i for i in rows if starts[i] == common][: args.peer]
    swept(few[:1], True)  # warm
    ours, *fast = timed(swept, rows, True)
    theirs, *slow = timed(generated, few)
    table = [
        ["sweep", len(ours), *(f"{s:.3f}" for s in fast), f"{np.mean([len(ids) for ids in ours.values()]):.1f}"],
        ["transformers", len(theirs), *(f"{s:.3f}" for s in slow),
         f"{np.mean([len(ids) for ids in theirs.values()]):.1f}"],
    ]  # fmt: skip
    print(f"{args.checkpoint}, {len(exits)} exits, {torch.get_num_threads()} threads")
    print(aligned(["", "transcripts", "s each, clock", "processor", "tokens each"], [list(map(str, r)) for r in table]))
    print(f"times as fast: {slow[0] / fast[0]:.1f} by the clock, {slow[1] / fast[1]:.1f} by the processor")
    kept = swept(few, False)
    same = sum(kept[at] == theirs[at] for at in theirs)
    print(f"same tokens, loops going on: {same} of {len(theirs)} transcripts")
    for at in theirs:
        if kept[at] != theirs[at]:
            first = next((n for n, (a, b) in enumerate(zip(kept[at], theirs[at], strict=False)) if a != b), None)
            print(f"  {at[0]}, {corpus.table['id'][at[1]]}: differ from token {first} of {len(theirs[at])}")
    sys.exit(same < 0.995 * len(theirs))


if __name__ == "__main__":
    main()
