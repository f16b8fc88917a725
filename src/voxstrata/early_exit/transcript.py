"""What is known of one transcript, and when it repeats itself without end."""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

LOOP_TOKENS, LOOP_COPIES = 16, 5  # no loop is shorter, and none has fewer copies
_LONGEST_PERIOD = 44  # of which 5 copies fit into the 224 tokens at which OpenAI's code cuts a transcript


@dataclass(frozen=True)
class Transcript:
    """What one exit makes of one recording.

    text: as decoded, without special tokens. cut: the same with its loop cut to one copy; `text` where there is none.
    tokens: how many were decoded, without prompt and end. ended: by the model; else it was stopped, in a loop or at the
    most tokens that a transcript may have. looped: it repeats itself (`find_loop`).
    avg_logprob: the mean natural log-probability of its tokens and the end, after suppression. no_speech: the
    probability of Whisper's token for no speech; None where the model has none. temperature: at which it was drawn.
    language: Whisper's code of the language in the prompt ("es"), announced or detected; None: it knows English alone.
    encoder_seconds, decoder_seconds: its share of the time in which it was made; None where the states were stored.
    """

    text: str
    cut: str
    tokens: int
    ended: bool
    looped: bool
    avg_logprob: float
    no_speech: float | None
    temperature: float = 0.0
    language: str | None = None
    encoder_seconds: float | None = None
    decoder_seconds: float = 0.0


class LoopWatch:
    """Follows one transcript token by token and tells when it repeats itself.

    A loop is an end that is periodic: n tokens, n up to 44, that stand there 5 times in a row or more, in at least 16
    tokens together. So a single token needs 16 copies, two tokens 8, four or more 5. The last copy is whole.
    """

    def __init__(self) -> None:
        self.ids: list[int] = []
        self._same = np.zeros(_LONGEST_PERIOD, np.int64)  # [n - 1]: how long the end has equalled what is n before
        self._needed = np.maximum(LOOP_TOKENS, LOOP_COPIES * np.arange(1, _LONGEST_PERIOD + 1))

    def add(self, token: int) -> int | None:
        """Take a token; how many tokens make the transcript with one copy of its loop, None where there is no loop."""
        before = np.full(_LONGEST_PERIOD, -1)
        recent = self.ids[: -_LONGEST_PERIOD - 1 : -1]
        before[: len(recent)] = recent
        self.ids.append(token)
        self._same = np.where(before == token, self._same + 1, 0)
        periods = np.arange(1, _LONGEST_PERIOD + 1)
        found = np.flatnonzero(self._same + periods >= self._needed)
        return len(self.ids) - int(self._same[found[0]]) if len(found) else None


def find_loop(ids: Sequence[int]) -> int | None:
    """How many of these tokens come before the second copy of the first loop in them; None where there is no loop.

    What follows a loop does not count: a model that has looped says nothing reliable after it.
    """
    watch = LoopWatch()
    return next((kept for token in ids if (kept := watch.add(token)) is not None), None)


def compression_ratio(text: str) -> float:
    """Bytes over bytes compressed by zlib, as OpenAI's whisper measures repetition (`whisper/utils.py`)."""
    data = text.encode()
    return len(data) / len(zlib.compress(data))
