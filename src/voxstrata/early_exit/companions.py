"""What a sweep finds beside error rates, each a result of its own in a folder of the sweep's: softer exits as they were
fitted, the languages that were detected, wrong words of translations by their sound."""

import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch.nn.functional import layer_norm

from voxstrata.base.errors import AudioError, InputError, UsageError
from voxstrata.base.plain import counted
from voxstrata.base.progress import Progress, Reporter
from voxstrata.base.result import Result
from voxstrata.corpus import Corpus
from voxstrata.early_exit.checkpoint import Transcriber
from voxstrata.early_exit.decoding import AUTO, Transcripts, is_english, whisper_language
from voxstrata.early_exit.detected import DetectedLanguages, detected_languages
from voxstrata.early_exit.echo import SOURCE_TEXT, echo_rates, echoes
from voxstrata.early_exit.echo_result import WrongWords
from voxstrata.early_exit.exits import DEV, SOFTER, EarlyExit
from voxstrata.early_exit.fitting import EPSILON, Fit, LastNorm
from voxstrata.early_exit.journal import runs_at_work
from voxstrata.early_exit.recordings import find_recordings
from voxstrata.early_exit.result import JOURNAL
from voxstrata.early_exit.scoring import Scoring, group_of
from voxstrata.early_exit.softer import Place, SofterExits, StatesByLayer, fit_softer
from voxstrata.early_exit.states import EncodedStates, ExitNorms, StatesMap
from voxstrata.encoders.frames import encoder_frames
from voxstrata.phonology.ipa import need, voices
from voxstrata.store.files import Files, patient_lock

COMPANIONS: tuple[type[SofterExits] | type[DetectedLanguages] | type[WrongWords], ...] = (
    SofterExits, DetectedLanguages, WrongWords,
)  # fmt: skip


def with_english_texts(corpus: Corpus) -> Corpus:
    """For translating: the recordings of a corpus that has their English translations, too, by group.

    The English text of the group becomes the recording's text, and its own the column SOURCE_TEXT. Recordings in
    English, and those of groups without any, are left out, which the last note says. Raises InputError where none
    stays.
    """
    rows = corpus.table.to_pylist()
    english = {r["group"]: r["text"] for r in reversed(rows) if r["group"] and r["text"] and _english(r)}
    kept = [i for i, r in enumerate(rows) if r["group"] in english and not _english(r)]
    own = sum(map(_english, rows))
    if not kept:
        raise InputError(
            f"{corpus.where}: {counted(len(rows), 'recording')}, {own} of them in English, and none in "
            "another language has an English text in its group; give the manifest recordings (or texts) in English "
            "with the groups of those that they translate, or leave out --english-of-group"
        )
    found = corpus.take(kept)
    texts = pa.array([english[rows[i]["group"]] for i in kept], pa.string())
    table = found.table.append_column(SOURCE_TEXT, found.table["text"])
    left = [f"{own} in English, whose texts are the references"] if own else []
    if lone := len(rows) - own - len(kept):
        left.append(f"{lone} without an English text in their group")
    notes = [*corpus.notes, f"left out of the sweep: {'; '.join(left)}"]
    return replace(found, table=table.set_column(table.column_names.index("text"), "text", texts), notes=notes)


def _english(row: Mapping[str, Any]) -> bool:
    return row["language"] is not None and is_english(str(row["language"]))


def softer_exits(
    exits: Sequence[EarlyExit], folder: Path, model: Any, source: EncodedStates, corpus: Corpus, parts: Sequence[str],
    decides: Mapping[str, Any], about: Mapping[str, Any], scoring: Scoring, overwrite: bool, reporter: Reporter,
) -> SofterExits | None:  # fmt: skip
    """What was fitted in this sweep's folder: before, or now where an exit asks for it. None where nothing was, or for
    another checkpoint, corpus or device.

    parts: of each row of the corpus. decides: of the settings, what decides the fits beside the development part; about
    is kept with them.
    Raises InputError where transcripts are there, but not the fits that they would have to be made with, and where a
    run is at work with other fits.
    """
    with patient_lock(Files(folder)) if folder.is_dir() else nullcontext():  # another run may be writing them
        saved = _saved(folder)
    if not any(at.norm in SOFTER for at in exits):
        return saved if saved and _made_for(saved, decides) else None
    rows = corpus.table.to_pylist()
    dev = sorted(str(row["id"]) for row, part in zip(rows, parts, strict=True) if part == DEV)
    key = {**decides, "dev_sha256": hashlib.sha256(json.dumps(dev).encode()).hexdigest()}
    if saved and _made_for(saved, key):
        return saved
    if (folder / JOURNAL).exists() and not overwrite:
        raise InputError(
            f"{folder}: holds transcripts that were made without these fits (of refitted or mapped exits, which depend "
            "on checkpoint, corpus, seed and development share); choose another folder, or give --overwrite"
        )
    norm = model.model.encoder.layer_norm
    last = LastNorm(*(value.detach().double().cpu().numpy() for value in (norm.weight, norm.bias)))
    layers = model.config.encoder_layers

    def states(wanted: Sequence[int]) -> Iterator[tuple[int, StatesByLayer]]:
        infos, _ = find_recordings(corpus)
        for n, i in enumerate(wanted):
            reporter.progress(Progress("states for softer exits", n, len(wanted), "recordings"))
            try:
                found = source.states([source.read(i, infos[i])], range(layers + 1)).layers
            except AudioError:  # transcribing names it
                continue
            frames = encoder_frames(infos[i].samples)
            held = {k: state[0][:frames].float().cpu().numpy() for k, state in found.items()}
            if all(np.isfinite(state).all() for state in held.values()):
                yield i, held

    places = [Place(str(r["language"]), group_of(r), part) for r, part in zip(rows, parts, strict=True)]
    found = fit_softer(states, places, last, layers, {**about, **key}, scoring.resamples, scoring.seed)
    folder.mkdir(parents=True, exist_ok=True)
    with patient_lock(Files(folder)):  # of several runs the first one's fits are all runs'
        first = _saved(folder)
        if first and _made_for(first, key):
            return first
        if first and runs_at_work(folder):
            raise InputError(f"{folder}: a run is at work with other fits; wait for it, or choose another folder")
        found.save(folder / SofterExits.folder)
    return found


def _saved(folder: Path) -> SofterExits | None:
    place = folder / SofterExits.folder
    return SofterExits.load(place) if SofterExits.is_saved_in(place) else None


def _made_for(softer: SofterExits, key: Mapping[str, Any]) -> bool:
    return all(softer.settings.get(name) == value for name, value in key.items())


def refit_of(folder: Path, transcriber: Transcriber, after: int) -> Fit:
    """What a sweep's folder `fits` holds for block `after` of this checkpoint.

    Raises InputError where it is of another, UsageError where the encoder has no such block but its last.
    """
    softer = SofterExits.load(folder)
    if softer.settings["weights_sha256"] != transcriber.encoder.sha256():
        raise InputError(f"{folder}: fitted for {softer.settings['checkpoint']}, another encoder; sweep this one")
    if after not in softer.fits:
        raise UsageError(f"nothing is fitted for block {after}; give {min(softer.fits)} to {max(softer.fits)}")
    return softer.fits[after]


def exit_norms(model: Any, exits: Sequence[EarlyExit], softer: SofterExits | None) -> ExitNorms:
    """What the states go through at each of these exits, on the model's device and in its dtype."""
    norm = model.model.encoder.layer_norm
    wanted = [at for at in exits if at.norm in SOFTER]
    fits = softer.fits if softer and wanted else {}
    return ExitNorms(norm, {at: _softened(norm, at, fits[at.after]) for at in wanted})


def _softened(norm: torch.nn.LayerNorm, at: EarlyExit, fit: Fit) -> StatesMap:
    names = ("scale", "bias") if at.norm == "refitted" else ("matrix", "offset")
    a, b = (torch.from_numpy(getattr(fit, name)).to(norm.weight) for name in names)
    if at.norm == "refitted":
        return lambda states: layer_norm(states, a.shape, a, b, EPSILON)
    return lambda states: norm(states @ a + b)


def languages_result(
    found: Transcripts, prompts: Mapping[str, str], known: Mapping[str, int], settings: Mapping[str, Any],
    scoring: Scoring,
) -> DetectedLanguages | None:  # fmt: skip
    """Which languages were detected, of the corpus languages announced as AUTO; None where none was.

    known: `generation_config.lang_to_id`.
    """
    mine = [i for i, row in enumerate(found.rows) if prompts.get(str(row["language"])) == AUTO]
    if not mine:
        return None
    rows = [{"language": found.rows[i]["language"], "group": group_of(found.rows[i])} for i in mine]
    detected = {at: [str(texts[i].language) for i in mine] for at, texts in found.texts.items()}
    tokens = {str(row["language"]): whisper_language(str(row["language"]), known) for row in rows}
    right = {name: token and token.strip("<|>") for name, token in tokens.items()}
    about = {**settings, "languages_known": len(known)}
    return detected_languages(rows, detected, right, about, scoring.resamples, scoring.seed)


def check_sound(corpus: Corpus) -> None:
    """Raises InputError where `sound_result` would lack a package: before the long work."""
    if SOURCE_TEXT in corpus.extra:
        need("panphon")
        voices()


def sound_result(scores: pa.Table, corpus: Corpus, settings: Mapping[str, Any], scoring: Scoring) -> WrongWords | None:
    """Whether wrong words of translations sound like what was said; None where the corpus does not say what was."""
    if SOURCE_TEXT not in corpus.extra:
        return None
    pairs = zip(corpus.table["id"].to_pylist(), corpus.table[SOURCE_TEXT].to_pylist(), strict=True)
    words, notes = echoes(scores, {name: text for name, text in pairs if text})
    note = {WrongWords.key: json.dumps({**settings, "sound_notes": notes}, ensure_ascii=False)}
    return WrongWords(echo_rates(words, scoring).replace_schema_metadata(note), words)


def save_companions(folder: Path, found: Sequence[Result | None], softer: SofterExits | None) -> None:
    """Save what was found beside the sweep's result; what an earlier run found of its kind, and this did not, goes.

    softer: what `softer_exits` gave, which is there already.
    """
    made = {type(result): result for result in found if result is not None}
    for kind in COMPANIONS:
        if kind in made:
            made[kind].save(folder / kind.folder)
        elif not isinstance(softer, kind) and kind.is_saved_in(folder / kind.folder):
            shutil.rmtree(folder / kind.folder)


def load_companions(folder: str | Path) -> list[SofterExits | DetectedLanguages | WrongWords]:
    """What lies beside a sweep's result in `folder`."""
    places = [(kind, Path(folder) / kind.folder) for kind in COMPANIONS]
    return [kind.load(place) for kind, place in places if kind.is_saved_in(place)]
