"""Whisper's decoder over encoder states: many transcripts at once, each at a place of its own.

What costs is reading: weights once for all transcripts of a step, keys and values of the encoder's frames once for
each. So transcripts of all exits and recordings share the steps, one that ends gives its place to the next, and keys
and values of the frames are computed once for each exit of a recording.
"""

import hashlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from time import perf_counter
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention

from voxstrata.early_exit.policies import Policy
from voxstrata.early_exit.transcript import LoopWatch

_PLACE_BYTES = 2**31  # of keys and values held at once; a transcript takes 37 MB in whisper-base
_MOST_PLACES = 64


@dataclass(frozen=True)
class Ask:
    """One transcript to make. states: gives the decoder's input [frames, d_model]; asked when there is a place.

    prompt: what the decoder is given first; None stands for the language that it finds itself, in the place of that
    token. key: seeds the draws, so that they do not depend on what else is decoded.
    """

    states: Callable[[], torch.Tensor]
    prompt: tuple[int | None, ...]
    key: str = ""


@dataclass(frozen=True)
class Decoded:
    """Tokens of one transcript, without prompt and end.

    kept: how many come before the second copy of its loop, None where it does not loop. language: the token that
    stood in the prompt, or was found. silent: the policy takes it for silence, whatever the tokens say. seconds: of its
    own keys and values and of the steps, each shared out equally among the transcripts that it served. The rest as in
    `Transcript`.
    """

    ids: tuple[int, ...]
    ended: bool
    kept: int | None
    avg_logprob: float
    no_speech: float | None
    temperature: float
    language: int | None
    silent: bool
    seconds: float


class DecoderModel:
    """The decoder of transformers' whole Whisper `model`, a token of each row at a time."""

    def __init__(self, model: Any) -> None:
        config, settings = model.config, model.generation_config
        self.decoder, self._head = model.model.decoder, model.proj_out
        self.heads, self.positions = config.decoder_attention_heads, config.max_target_positions
        self.width, self.layers = config.d_model // self.heads, len(self.decoder.layers)
        self.device, self.dtype = model.device, model.dtype
        self.end = int(settings.eos_token_id)
        silent = getattr(settings, "no_timestamps_token_id", None)
        self.no_speech = None if silent is None else int(silent) - 1  # its place in every Whisper vocabulary
        self.languages = sorted((getattr(settings, "lang_to_id", None) or {}).values())
        self.suppressed, self.suppressed_first = (
            torch.tensor(sorted(names or []), dtype=torch.long, device=self.device)
            for names in (settings.suppress_tokens, settings.begin_suppress_tokens)
        )

    def memory(self, states: torch.Tensor) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Of every layer the keys and values [1, heads, frames, width] of states [frames, d_model]."""
        found = []
        for layer in self.decoder.layers:
            a = layer.encoder_attn
            found.append((self._split(a.k_proj(states))[None], self._split(a.v_proj(states))[None]))
        return found

    def _split(self, x: torch.Tensor) -> torch.Tensor:
        """[n, d_model] to [heads, n, width]."""
        return x.unflatten(-1, (self.heads, self.width)).transpose(0, 1).contiguous()

    def bytes_of(self, frames: int) -> int:
        """What `memory` of so many frames takes."""
        return int(2 * self.layers * frames * self.heads * self.width * self.dtype.itemsize)

    def own(self, rows: int, positions: int) -> torch.Tensor:
        """Room for keys and values of the tokens themselves: [layers, 2, rows, heads, positions, width]."""
        shape = self.layers, 2, rows, self.heads, positions, self.width
        return torch.zeros(shape, dtype=self.dtype, device=self.device)

    def step(
        self, ids: Sequence[int], places: Sequence[int], own: torch.Tensor,
        memories: Sequence[list[tuple[torch.Tensor, torch.Tensor]]],
    ) -> torch.Tensor:  # fmt: skip
        """Hidden states [rows, d_model] after token ids[i] at position places[i]; `own` is written there."""
        rows, longest = len(ids), max(places) + 1
        where, at = torch.arange(rows, device=self.device), torch.tensor(places, device=self.device)
        x = self.decoder.embed_tokens(torch.tensor(ids, device=self.device))
        x = x + self.decoder.embed_positions.weight[at]
        seen = (torch.arange(longest, device=self.device) <= at[:, None])[:, None, None]
        for n, layer in enumerate(self.decoder.layers):
            h, a = layer.self_attn_layer_norm(x), layer.self_attn
            q, k, v = (p(h).unflatten(-1, (self.heads, self.width)) for p in (a.q_proj, a.k_proj, a.v_proj))
            own[n, 0, where, :, at], own[n, 1, where, :, at] = k, v
            keys, values = own[n, :, :rows, :, :longest]
            found = scaled_dot_product_attention(q[:, :, None], keys, values, attn_mask=seen)
            x = x + a.out_proj(found.flatten(1))
            h, a = layer.encoder_attn_layer_norm(x), layer.encoder_attn
            q = a.q_proj(h).unflatten(-1, (1, self.heads, 1, self.width))[:, 0]
            found = torch.cat([
                scaled_dot_product_attention(one[None], *memory[n]) for one, memory in zip(q, memories, strict=True)
            ])  # fmt: skip
            x = x + a.out_proj(found.flatten(1))
            x = x + layer.fc2(layer.activation_fn(layer.fc1(layer.final_layer_norm(x))))
        return self.decoder.layer_norm(x)

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """[rows, vocabulary] in float32."""
        scores: torch.Tensor = self._head(hidden).float()
        return scores


@dataclass(eq=False)
class _Try:
    """An ask at one temperature: as many rows as draws."""

    ask: Ask
    place: int  # of the ask
    temperature: int  # which of the policy's
    memory: list[tuple[torch.Tensor, torch.Tensor]] | None
    seconds: float = 0.0  # of earlier temperatures, too
    drafts: list[Decoded] = field(default_factory=list)


@dataclass(eq=False)
class _Row:
    of: _Try
    draws: torch.Generator | None
    given: list[int | None]
    at: int = 0  # position of the token that is given next
    watch: LoopWatch = field(default_factory=LoopWatch)
    logprob: float = 0.0
    no_speech: float | None = None
    kept: int | None = None
    ended: bool = False


class Decoder:
    """Makes transcripts of encoder states, as `policy` says; `text` makes text of tokens, for its tests.

    new_tokens: the most that a transcript may have. stop_loops: one that repeats itself goes no further.
    """

    def __init__(
        self, model: Any, policy: Policy, text: Callable[[Sequence[int]], str], *, new_tokens: int, stop_loops: bool,
        seed: int = 0,
    ) -> None:  # fmt: skip
        self.model, self._policy, self._text = DecoderModel(model), policy, text
        self._new_tokens, self._stop_loops, self._seed = new_tokens, stop_loops, seed

    def decode(self, asks: Iterable[Ask]) -> Iterator[tuple[int, Decoded]]:
        """Each ask's transcript with the place of the ask, as they end. All prompts are of one length.

        What one transcript is does not depend on the others, but for the rounding of wider or narrower products.
        """
        waiting = deque(_Try(ask, i, 0, None) for i, ask in enumerate(asks))
        if not waiting:
            return
        rows, most = list[_Row](), 0
        own = torch.empty(0)
        while waiting or rows:
            while waiting and (not rows or len(rows) + self._draws(waiting[0]) <= most):
                begun = perf_counter()
                new = waiting.popleft()
                if new.memory is None:
                    with torch.inference_mode():
                        states = new.ask.states()
                        new.memory = self.model.memory(states)
                    most = most or max(1, min(_MOST_PLACES, _PLACE_BYTES // self.model.bytes_of(len(states))))
                new.seconds += perf_counter() - begun
                rows += self._rows(new)
            room = len(rows[0].given) + self._new_tokens
            if own.shape[:1] != (self.model.layers,) or own.shape[2] < len(rows):
                grown = self.model.own(max(most, len(rows)), room)
                if own.numel():
                    grown[:, :, : own.shape[2]] = own
                own = grown
            begun = perf_counter()
            with torch.inference_mode():
                self._advance(rows, own)
            share = (perf_counter() - begun) / len(rows)
            for row in rows:
                row.of.seconds += share
            for i in reversed([i for i, row in enumerate(rows) if self._done(row)]):
                row, last = rows[i], rows.pop()
                if row is not last:
                    rows[i] = last
                    own[:, :, i, :, : last.at] = own[:, :, len(rows), :, : last.at]
                if (found := self._finish(row)) is None:
                    continue
                if isinstance(found, _Try):
                    waiting.appendleft(found)
                else:
                    yield row.of.place, found

    def _draws(self, new: _Try) -> int:
        return self._policy.best_of if self._policy.temperatures[new.temperature] > 0 else 1

    def _rows(self, new: _Try) -> list[_Row]:
        rows = []
        for n in range(self._draws(new)):
            draws = None
            if self._policy.temperatures[new.temperature] > 0:
                name = f"{self._seed} {new.temperature} {n} {new.ask.key}".encode()
                seed = int.from_bytes(hashlib.sha256(name).digest()[:8], "big", signed=True)
                draws = torch.Generator().manual_seed(seed)
            rows.append(_Row(new, draws, list(new.ask.prompt)))
        return rows

    def _advance(self, rows: Sequence[_Row], own: torch.Tensor) -> None:
        """A token of every row."""
        given = [row.given[row.at] if row.at < len(row.given) else row.watch.ids[-1] for row in rows]
        memories = [row.of.memory for row in rows]
        hidden = self.model.step(given, [row.at for row in rows], own, memories)  # type: ignore[arg-type]
        asked = [i for i, row in enumerate(rows) if row.at == 0 or row.at >= len(row.given) - 1]
        for row in rows:
            row.at += 1
        if not asked:
            return
        logits = self.model.logits(hidden[asked])
        self._begin(logits, [rows[i] for i in asked])
        ready = [n for n, i in enumerate(asked) if rows[i].at >= len(rows[i].given)]
        if ready:
            self._extend(logits[ready] if len(ready) < len(asked) else logits, [rows[asked[n]] for n in ready])

    def _begin(self, logits: torch.Tensor, rows: Sequence[_Row]) -> None:
        """Of rows that were given their first token: whether there is speech, and in which language, if asked."""
        first = [i for i, row in enumerate(rows) if row.at == 1]
        if not first:
            return
        scores = logits[first]
        if self.model.no_speech is not None:
            for i, p in zip(first, scores.softmax(-1)[:, self.model.no_speech].tolist(), strict=True):
                rows[i].no_speech = p
        if any(None in rows[i].given for i in first):
            best = scores[:, self.model.languages].argmax(-1).tolist()
            for i, n in zip(first, best, strict=True):
                rows[i].given = [self.model.languages[n] if token is None else token for token in rows[i].given]

    def _extend(self, logits: torch.Tensor, rows: Sequence[_Row]) -> None:
        """The next token of every row: the best, or one drawn."""
        logits[:, self.model.suppressed] = -torch.inf
        for i, row in enumerate(rows):
            if not row.watch.ids:
                logits[i, self.model.suppressed_first] = -torch.inf
        logprobs = logits.log_softmax(-1)
        best = logits.argmax(-1).tolist()
        for i, row in enumerate(rows):
            if row.draws is not None:  # Gumbel's way to draw from a softmax
                noise = -torch.empty(logits.shape[-1]).exponential_(generator=row.draws).log()
                temperature = self._policy.temperatures[row.of.temperature]
                best[i] = int((logits[i] / temperature + noise.to(logits.device)).argmax())
        chosen = logprobs.gather(1, torch.tensor(best, device=logits.device)[:, None])[:, 0].tolist()
        for row, token, logprob in zip(rows, best, chosen, strict=True):
            row.logprob += logprob
            if token == self.model.end:
                row.ended = True
            elif (kept := row.watch.add(token)) is not None and row.kept is None:
                row.kept = kept

    def _done(self, row: _Row) -> bool:
        looped = row.kept is not None and self._stop_loops
        return row.ended or looped or len(row.watch.ids) >= self._new_tokens

    def _finish(self, row: _Row) -> Decoded | _Try | None:
        """What comes of a row that is done: the transcript, the next temperature, or nothing before other draws end."""
        ids, of = row.watch.ids, row.of
        average = row.logprob / (len(ids) + 1)
        language = row.given[1] if len(row.given) > 1 else None
        of.drafts.append(
            Decoded(tuple(ids), row.ended, row.kept, average, row.no_speech,
                    self._policy.temperatures[of.temperature], language,
                    self._policy.silent(average, row.no_speech), 0.0)
        )  # fmt: skip
        if len(of.drafts) < self._draws(of):
            return None
        best = max(of.drafts, key=lambda d: d.avg_logprob * (len(d.ids) + 1) / max(len(d.ids), 1))
        good = self._policy.good(self._text(best.ids), best.kept is not None, best.avg_logprob, best.no_speech)
        if good or of.temperature + 1 == len(self._policy.temperatures):
            return replace(best, seconds=of.seconds)
        return _Try(of.ask, of.place, of.temperature + 1, of.memory, of.seconds)
