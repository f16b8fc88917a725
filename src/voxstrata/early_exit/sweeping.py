"""The sweep: every exit transcribes a corpus, one is chosen on the development part and reported on the test part."""

import json
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pyarrow as pa

from voxstrata.base.errors import InputError
from voxstrata.base.folders import leaving_no_empty_folder
from voxstrata.base.plain import counted
from voxstrata.base.progress import SILENT, Reporter
from voxstrata.base.result import Result
from voxstrata.corpus import Corpus, read_corpus
from voxstrata.early_exit.checkpoint import Transcriber, load_transcriber
from voxstrata.early_exit.companions import (
    check_sound,
    exit_norms,
    languages_result,
    save_companions,
    softer_exits,
    sound_result,
)
from voxstrata.early_exit.costs import COSTS_SCHEMA, exit_costs
from voxstrata.early_exit.decoding import (
    Decoding,
    check_texts,
    language_tokens,
    model_on,
    new_tokens,
    transcribe_recordings,
    whisper_language,
)
from voxstrata.early_exit.exits import DEV, MEAN_OF_LANGUAGES, PLAIN_NORMS, TEST, ExitNorm, every_exit
from voxstrata.early_exit.journal import corpus_hash, model_hash, open_journal
from voxstrata.early_exit.normalization import ENGLISH_UNMAPPED, SPELLINGS
from voxstrata.early_exit.policies import policy
from voxstrata.early_exit.rates import Rates, both_parts, choose_exits, rates_table
from voxstrata.early_exit.result import JOURNAL, EarlyExits
from voxstrata.early_exit.scoring import Scoring, references, score, scripts_of, split_groups, units_of
from voxstrata.early_exit.states import EncodedStates
from voxstrata.store.files import patient_lock
from voxstrata.store.part import Part


def sweep(
    transcriber: Transcriber | str,
    corpus: Corpus | str | Path,
    out: str | Path,
    *,
    blocks: Sequence[int] | None = None,
    norms: Sequence[ExitNorm] = PLAIN_NORMS,
    decoding: Decoding | None = None,
    scoring: Scoring | None = None,
    device: str = "cpu",
    part: Part | None = None,
    overwrite: bool = False,
    reporter: Reporter = SILENT,
) -> EarlyExits | None:
    """Transcribe `corpus` with the encoder ended after `blocks` (None: each), with `norms`, score, and choose an exit.

    transcriber: a checkpoint, as a folder or hub id, or what `load_transcriber` made of it.
    The result is saved in the folder `out`; what else is found in folders below it (`companions`). Transcripts are
    written there as they come; a run that was stopped goes on when it is asked for again. Checkpoint, corpus, device
    and decoding must be the same then; blocks and scoring may be others, and norms, but that softer ones need their
    fits (`softer_exits`). overwrite: transcripts of another run in the folder are thrown away.
    part: of several runs at once, which share the batches. It ends where the others have not finished theirs, and then
    returns None; without a part the run waits for them, and takes over should they die.

    Everything that can be refused without transcribing is refused before. Raises UsageError for blocks, languages, a
    task or settings that do not exist, InputError for missing texts, for a language that one part lacks, and for a
    folder with something else, or with the transcripts of a run with other settings.
    """
    folder = Path(out)
    EarlyExits.refuse_foreign(folder)
    corpus = read_corpus(corpus)
    transcriber = transcriber if isinstance(transcriber, Transcriber) else load_transcriber(transcriber, None, reporter)
    decoding, scoring = decoding or Decoding(), scoring or Scoring()
    decoding = replace(decoding, max_new_tokens=new_tokens(transcriber.model, decoding))
    english = decoding.task == "translate"
    check_texts(corpus)
    if english:
        check_sound(corpus)
    rows = corpus.table.to_pylist()
    parts = dict(zip(corpus.table["id"].to_pylist(), split_groups(rows, scoring), strict=True))
    used = references(rows, scoring, english, transcriber.folder)
    normalizers = {str(row["language"]): norm.name for row, (norm, _) in zip(rows, used, strict=True)}
    languages = getattr(transcriber.model.generation_config, "lang_to_id", None)  # none: it knows English alone
    foreign = {name for name in normalizers if languages and whisper_language(name, languages) is None and not english}
    units, why = units_of(rows, scoring, foreign)
    language_tokens(transcriber, [row["language"] for row in rows], decoding)  # refuses what would be refused later
    # What decides the states, and so what is fitted; then, what decides the texts.
    of_states: dict[str, Any] = {"model_sha256": model_hash(transcriber), "corpus_sha256": corpus_hash(corpus)}
    of_states["device"] = device
    decides = {**of_states, "task": decoding.task, "prompts": dict(decoding.prompts)}
    decides["max_new_tokens"] = decoding.max_new_tokens
    decides |= {"policy": asdict(policy(decoding.policy)), "stop_loops": decoding.stop_loops, "seed": decoding.seed}
    exits = every_exit(transcriber.encoder.shape.layers, blocks, norms)
    model = model_on(transcriber, device)
    source = EncodedStates(transcriber, model, corpus)
    try:
        with leaving_no_empty_folder(folder), ExitStack() as stack:
            about = _about(transcriber, corpus)
            softer = softer_exits(
                exits,
                folder,
                model,
                source,
                corpus,
                list(parts.values()),
                of_states,
                about,
                scoring,
                overwrite,
                reporter,
            )
            decides |= {"fits_sha256": softer.settings["fits_sha256"]} if softer else {}
            journal = stack.enter_context(open_journal(folder, decides, overwrite))
            found = transcribe_recordings(
                replace(transcriber, model=model), corpus, exits, decoding, device=device, journal=journal, part=part,
                reporter=reporter, norms=exit_norms(model, exits, softer),
            )  # fmt: skip
            if found is None:
                return None
            reporter.step("scoring, with intervals")
            of_rows = [parts[row["id"]] for row in found.rows]
            scores = score(found, of_rows, scoring, english, transcriber.folder, units)
            dev, test = both_parts(scores, scoring)
            settings = {**about, **decides, "utterances": len(found.rows)}
            settings["decoding"] = asdict(decoding) | {"prompts": decides["prompts"]}
            settings |= {"scoring": asdict(scoring), "normalizers": normalizers, "units": units}
            settings["notes"] = [
                *(f"{name}: errors counted in {units[name]}s: {reason}" for name, reason in sorted(why.items())),
                *_notes(found.rows, normalizers, dev, test, scoring),
            ]
            settings["failures"] = dict(sorted(found.failures.items()))
            result = early_exits(scores, dev, test, settings, exit_costs(transcriber, scores), journal.resumed)
            beside: list[Result | None] = [
                languages_result(found, dict(decoding.prompts), languages or {}, settings, scoring)
            ]
            beside += [sound_result(scores, corpus, settings, scoring)] if english else []
            reporter.step(f"writing tables and pictures to {folder}")
            with patient_lock(journal.files):  # others may be as far
                result.save(folder)
                save_companions(folder, beside, softer)
    except OSError as e:
        raise InputError(
            f"{folder}: cannot write ({e}); the transcripts in {JOURNAL} are safe: mend it and run the same command to "
            "go on"
        ) from e
    return result


def _about(transcriber: Transcriber, corpus: Corpus) -> dict[str, Any]:
    """Which checkpoint, corpus and versions."""
    encoder = transcriber.encoder
    about: dict[str, Any] = {"checkpoint": encoder.name, "revision": encoder.revision}
    about |= {"weights_sha256": encoder.sha256(), "layers": encoder.shape.layers, "corpus": Path(corpus.root).name}
    return {**about, "tools": {p: version(p) for p in ("voxstrata", "torch", "transformers", "jiwer")}}


def early_exits(
    scores: pa.Table, dev: Rates, test: Rates, settings: Mapping[str, Any], costs: pa.Table | None = None,
    resumed: int = 0,
) -> EarlyExits:  # fmt: skip
    """The result of a table of `score`, the rates of both its parts, and a table of `exit_costs`."""
    note = {EarlyExits.key: json.dumps(settings, ensure_ascii=False)}
    tables = (
        rates_table([(DEV, dev), (TEST, test)]),
        choose_exits(dev, test),
        scores,
        costs or COSTS_SCHEMA.empty_table(),
    )
    rates, choices, transcripts, costs = (table.replace_schema_metadata(note) for table in tables)
    return EarlyExits(rates, choices, transcripts, costs, resumed)


def _notes(
    rows: Sequence[Mapping[str, str | None]], normalizers: Mapping[str, str], dev: Rates, test: Rates, scoring: Scoring
) -> list[str]:
    """What else the figures depend on: a sentence each."""
    notes = []
    unmapped = sorted(language for language, name in normalizers.items() if name == ENGLISH_UNMAPPED)
    if unmapped:
        notes.append(
            f"{', '.join(unmapped)}: the checkpoint's folder has no {SPELLINGS}, so spellings (colour, color) count as "
            "errors where Whisper's normalizer makes them one; copy the file from the original checkpoint to compare "
            "with others' WER"
        )
    for language, (script, others) in sorted(scripts_of(rows).items()):
        if others:
            held = " and ".join(f"{counted(n, 'text')} in {name.lower()}" for name, n in others.items())
            notes.append(
                f"{language}: scored as {script.lower()}, the script of most of its texts; {held} counted with them"
            )
    for ours, other, part in ((dev, test, TEST), (test, dev, DEV)):
        for language, _ in sorted(set(ours.scopes) - set(other.scopes)):
            notes.append(
                f"{language}: no recording of the {part} part was transcribed, so no k is chosen, and "
                f"'{MEAN_OF_LANGUAGES}' is without it"
            )
    for part, rates in ((DEV, dev), (TEST, test)):
        if rates.incomplete:
            notes.append(
                f"'{MEAN_OF_LANGUAGES}', {part} part: {rates.incomplete} of {scoring.resamples} resamples drew nothing "
                "of some language and are means over the others"
            )
    return notes
