"""How often a transcript is tried, and at which temperature: once, or as OpenAI's whisper falls back."""

from collections.abc import Sequence
from dataclasses import dataclass

from voxstrata.base.choices import chosen
from voxstrata.early_exit.transcript import compression_ratio


@dataclass(frozen=True)
class Policy:
    """A transcript is tried at one temperature after the other until one is good enough; the last stays.

    It is not good enough when it loops, when its compression ratio is above `compression`, or its mean log-probability
    below `logprob`; yet one below `logprob` for which the model says `no_speech` is silence: it is kept, and empty.
    Above temperature 0 the likeliest of `best_of` draws is taken, by log-probability over number of tokens. None
    switches a test off. This is `decode_with_fallback` of openai/whisper (`whisper/transcribe.py`) without timestamps;
    there a loop is not a reason of its own, but runs on until its compression ratio tells.
    """

    name: str
    temperatures: tuple[float, ...] = (0.0,)
    best_of: int = 1
    compression: float | None = None
    logprob: float | None = None
    no_speech: float | None = None

    def silent(self, avg_logprob: float, no_speech: float | None) -> bool:
        """Whether this is silence, whatever the tokens say."""
        if self.no_speech is None or self.logprob is None or no_speech is None:
            return False
        return no_speech > self.no_speech and avg_logprob < self.logprob

    def good(self, text: str, looped: bool, avg_logprob: float, no_speech: float | None) -> bool:
        """Whether no further temperature is tried."""
        if self.silent(avg_logprob, no_speech):
            return True
        bad = self.compression is not None and (looped or compression_ratio(text) > self.compression)
        return not (bad or (self.logprob is not None and avg_logprob < self.logprob))


GREEDY = Policy("greedy")
FALLBACKS = Policy("whisper", (0.0, 0.2, 0.4, 0.6, 0.8, 1.0), 5, 2.4, -1.0, 0.6)
_ALL = {policy.name: policy for policy in (GREEDY, FALLBACKS)}
POLICIES: Sequence[str] = tuple(_ALL)


def policy(name: str) -> Policy:
    """Raises UsageError for one that does not exist."""
    chosen("decoding", [name], POLICIES)
    return _ALL[name]
