"""A sweep makes a plain loop's tokens, whatever shares its steps; loops, draws and fallbacks are as said."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")

import torch
from conftest import sound

from voxstrata.early_exit import decoder as module
from voxstrata.early_exit.checkpoint import Transcriber, ended_early, load_transcriber, spectrograms
from voxstrata.early_exit.decoder import Ask, Decoded, Decoder
from voxstrata.early_exit.decoding import in_float32, prompt
from voxstrata.early_exit.exits import EarlyExit, every_exit
from voxstrata.early_exit.policies import GREEDY, Policy, policy
from voxstrata.early_exit.states import ExitNorms, encode_layers
from voxstrata.early_exit.transcript import compression_ratio, find_loop


@pytest.fixture(scope="module")
def transcriber(tiny_transcriber: Path) -> Transcriber:
    return load_transcriber(str(tiny_transcriber))


@pytest.fixture(scope="module")
def features(transcriber: Transcriber) -> torch.Tensor:
    return spectrograms(transcriber.encoder, [sound(0.5 + 0.7 * n, n) for n in range(3)])


def plain_loop(model: Any, features: torch.Tensor, at: EarlyExit, start: Sequence[int], most: int) -> list[int]:
    """transformers' own modules, the encoder ended early, all tokens anew at each step."""
    settings, ids = model.generation_config, list[int]()
    with torch.inference_mode(), ended_early(model, at):
        states = model.model.encoder(features).last_hidden_state
        while len(ids) < most:
            given = torch.tensor([[*start, *ids]])
            logits = model.proj_out(model.model.decoder(given, encoder_hidden_states=states).last_hidden_state)[0, -1]
            logits[settings.suppress_tokens] = -torch.inf
            if not ids:
                logits[settings.begin_suppress_tokens] = -torch.inf
            if int(logits.argmax()) == settings.eos_token_id:
                break
            ids.append(int(logits.argmax()))
    return ids


def asks_of(
    model: Any, features: torch.Tensor, exits: Sequence[EarlyExit], start: tuple[int | None, ...]
) -> tuple[list[Ask], list[tuple[EarlyExit, int]]]:
    found = encode_layers(model, features, {at.after for at in exits}).layers
    norms = ExitNorms(model.model.encoder.layer_norm)
    where = [(at, n) for at in exits for n in range(len(features))]
    return [Ask(partial(norms, at, found[at.after][n]), start, f"{at} {n}") for at, n in where], where


def decoded(model: Any, asks: Sequence[Ask], how: Policy = GREEDY, most: int = 40, stop: bool = False) -> list[Decoded]:
    found = dict(Decoder(model, how, bytes_text, new_tokens=most, stop_loops=stop).decode(asks))
    return [found[i] for i in range(len(asks))]


def bytes_text(ids: Sequence[int]) -> str:
    return bytes(i % 256 for i in ids).decode("latin1")


def test_every_exit_makes_the_plain_loops_tokens_whoever_shares_the_steps(
    transcriber: Transcriber, features: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = in_float32(transcriber.model)
    start = prompt(model.generation_config, "<|en|>", "transcribe")
    asks, where = asks_of(model, features, every_exit(3), start)
    want = [plain_loop(model, features[n : n + 1], at, start, 20) for at, n in where]
    for places in (5, 64):  # so that some wait, or none
        monkeypatch.setattr(module, "_MOST_PLACES", places)
        found = decoded(model, asks, most=20)
        assert [list(d.ids) for d in found] == want
        assert [d.ended for d in found] == [len(ids) < 20 for ids in want]
    assert len({tuple(ids) for ids in want}) > 12  # an exit, or a recording, taken for another would show


def test_log_probabilities_are_those_of_the_tokens(transcriber: Transcriber, features: torch.Tensor) -> None:
    """The mean over tokens and the end, of the softmax without suppressed tokens; no speech is the first softmax's."""
    model = in_float32(transcriber.model)
    settings, at = model.generation_config, EarlyExit(2)
    start = prompt(settings, "<|es|>", "transcribe")
    (found,) = decoded(model, asks_of(model, features[:1], [at], start)[0], most=6)
    with torch.inference_mode(), ended_early(model, at):
        states = model.model.encoder(features[:1]).last_hidden_state
        given = torch.tensor([[*start, *found.ids]])
        logits = model.proj_out(model.model.decoder(given, encoder_hidden_states=states).last_hidden_state)[0]
    logits = logits.clone()
    first = logits[0].softmax(-1)[settings.no_timestamps_token_id - 1]
    logits[:, settings.suppress_tokens] = -torch.inf
    logits[len(start) - 1, settings.begin_suppress_tokens] = -torch.inf
    said = logits[len(start) - 1 :].log_softmax(-1)
    ids = [*found.ids, settings.eos_token_id][: len(said)] if found.ended else found.ids
    total = sum(float(said[i, token]) for i, token in enumerate(ids))
    assert found.avg_logprob == pytest.approx(total / (len(found.ids) + 1), abs=1e-4)
    assert found.no_speech == pytest.approx(float(first), abs=1e-6)


def test_a_language_left_open_is_the_likeliest(transcriber: Transcriber, features: torch.Tensor) -> None:
    model = in_float32(transcriber.model)
    settings = model.generation_config
    start = prompt(settings, "<|en|>", "transcribe")
    open_start = (start[0], None, *start[2:])
    asks, where = asks_of(model, features, every_exit(3, [1]), open_start)
    known = sorted(settings.lang_to_id.values())
    for found, (at, n) in zip(decoded(model, asks, most=5), where, strict=True):
        with torch.inference_mode(), ended_early(model, at):
            states = model.model.encoder(features[n : n + 1]).last_hidden_state
            hidden = model.model.decoder(torch.tensor([start[:1]]), encoder_hidden_states=states).last_hidden_state
        best = known[int(model.proj_out(hidden)[0, -1, known].argmax())]
        assert found.language == best
        assert list(found.ids) == plain_loop(model, features[n : n + 1], at, (start[0], best, *start[2:]), 5)


def test_layers_are_transformers_hidden_states_in_one_pass(
    transcriber: Transcriber, features: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = in_float32(transcriber.model)
    want = model.model.encoder(features, output_hidden_states=True).hidden_states  # the last is normed
    runs = []
    forward = type(model.model.encoder).forward
    monkeypatch.setattr(
        type(model.model.encoder), "forward", lambda *given, **named: runs.append(1) or forward(*given, **named)
    )
    found = encode_layers(model, features, [0, 2, 3])
    assert runs == [1]
    assert sorted(found.layers) == sorted(found.seconds) == [0, 2, 3]
    for k in (0, 2):
        torch.testing.assert_close(found.layers[k], want[k])
    torch.testing.assert_close(ExitNorms(model.model.encoder.layer_norm)(EarlyExit(3), found.layers[3]), want[3])
    assert len(model.model.encoder.layers) == 3
    assert list(encode_layers(model, features, [0]).layers) == [0]


# ---- loops

LOOPS = {
    "nothing repeats": (list(range(60)), None),
    "one token, 15 times": ([1, 2, *[7] * 15], None),
    "one token, 16 times": ([1, 2, *[7] * 16, 3, 4], 3),
    "two tokens, 7 times and a half": ([5, *[8, 9] * 7, 8], None),
    "two tokens, 8 times": ([5, *[8, 9] * 8], 3),
    "six tokens, 4 times": ([1, 2, *list(range(10, 16)) * 4, 3], None),
    "six tokens, 5 times": ([1, 2, *list(range(10, 16)) * 5, 3], 8),
    "five digits said again": ([4, 4, 4, 4, 4], None),
    "44 tokens, 5 times": (list(range(44)) * 5, 44),
    "nothing": ([], None),
}


@pytest.mark.parametrize("name", LOOPS)
def test_what_a_loop_is(name: str) -> None:
    ids, kept = LOOPS[name]
    assert find_loop(ids) == kept


def test_a_loop_is_stopped_where_it_is_known_and_cut_alike(
    transcriber: Transcriber, features: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model that says 1 2 3, then 65 66 for ever."""

    def logits(self: module.DecoderModel, hidden: torch.Tensor) -> torch.Tensor:
        return torch.zeros(len(hidden), 267)

    script, right = [1, 2, 3, *[65, 66] * 30], module.LoopWatch.add
    monkeypatch.setattr(module.DecoderModel, "logits", logits)
    monkeypatch.setattr(module.LoopWatch, "add", lambda self, token: right(self, script[len(self.ids)]))
    model = in_float32(transcriber.model)
    start = prompt(model.generation_config, "<|en|>", "transcribe")
    asks, _ = asks_of(model, features[:1], [EarlyExit(3)], start)
    (stopped,), (kept,) = (decoded(model, asks, stop=stop) for stop in (True, False))
    assert list(stopped.ids) == script[: 3 + 16]
    assert list(kept.ids) == script[:40]
    assert stopped.kept == kept.kept == 5
    assert not stopped.ended


# ---- fallbacks


def test_compression_ratio_is_openais() -> None:
    text = "ha " * 50
    assert compression_ratio(text) == len(text.encode()) / len(zlib.compress(text.encode())) > 2.4


CASES = [  # compression above 2.4?, looped, mean log-probability, no speech: good?, silent?
    (False, False, -0.5, 0.1, True, False),
    (True, False, -0.5, 0.1, False, False),
    (False, True, -0.5, 0.1, False, False),
    (False, False, -1.1, 0.1, False, False),
    (False, False, -1.1, 0.7, True, True),
    (False, False, -0.9, 0.7, True, False),
    (True, False, -1.1, 0.7, True, True),
    (False, False, -1.1, None, False, False),
]


@pytest.mark.parametrize("case", CASES)
def test_when_openais_whisper_falls_back(case: tuple[bool, bool, float, float | None, bool, bool]) -> None:
    """As `decode_with_fallback` and what follows it in whisper/transcribe.py (20250625) decide."""
    repeats, looped, logprob, silence, good, silent = case
    text = "la " * 40 if repeats else "Open the door, please."
    whisper = policy("whisper")
    assert whisper.good(text, looped, logprob, silence) == good
    assert whisper.silent(logprob, silence) == silent
    assert policy("greedy").good(text, looped, logprob, silence)
    assert not policy("greedy").silent(logprob, silence)


def test_each_temperature_is_tried_until_one_is_good_and_the_likeliest_draw_stays(
    transcriber: Transcriber, features: torch.Tensor
) -> None:
    model = in_float32(transcriber.model)
    start = prompt(model.generation_config, "<|en|>", "transcribe")
    asks, _ = asks_of(model, features, every_exit(3, [1]), start)
    never = Policy("never", (0.0, 0.5, 1.0), 5, compression=2.4, logprob=1.0)  # no log-probability is above 0
    tried = decoded(model, asks, never, most=6)
    assert {d.temperature for d in tried} == {1.0}
    assert {d.temperature for d in decoded(model, asks, policy("greedy"), most=6)} == {0.0}
    alone = [decoded(model, [ask], never, most=6)[0] for ask in asks]  # draws do not depend on the company
    assert [d.ids for d in alone] == [d.ids for d in tried]
    single = Policy("never", (0.0, 0.5, 1.0), 1, compression=2.4, logprob=1.0)
    one = decoded(model, asks, single, most=6)
    assert [d.avg_logprob for d in one] != [d.avg_logprob for d in tried]
    assert all(a.avg_logprob <= b.avg_logprob + 1e-4 for a, b in zip(one, tried, strict=True))  # none ends before 6


def test_draws_follow_the_softmax(transcriber: Transcriber, features: torch.Tensor) -> None:
    """The first token of 400 draws at temperature 1, against the softmax: within four standard deviations."""
    model = in_float32(transcriber.model)
    settings = model.generation_config
    start = prompt(settings, "<|en|>", "transcribe")
    (ask,), _ = asks_of(model, features[:1], [EarlyExit(0)], start)
    hot = Policy("hot", (8.0,), 1)
    found = decoded(model, [Ask(ask.states, start, str(n)) for n in range(400)], hot, most=1)
    with torch.inference_mode():
        hidden = model.model.decoder(torch.tensor([start]), encoder_hidden_states=ask.states()[None]).last_hidden_state
        logits = model.proj_out(hidden)[0, -1]
    logits = logits.clone()
    logits[[*settings.suppress_tokens, *settings.begin_suppress_tokens]] = -torch.inf
    p = (logits / 8).softmax(-1).numpy()
    counts = np.bincount([d.ids[0] for d in found], minlength=len(p))
    assert counts[p == 0].sum() == 0
    half = np.argsort(-p)[: int(np.searchsorted(np.cumsum(np.sort(p)[::-1]), 0.5)) + 1]
    share = p[half].sum()
    assert abs(counts[half].sum() / 400 - share) < 4 * (share * (1 - share) / 400) ** 0.5
    assert 0.3 < share < 0.8
