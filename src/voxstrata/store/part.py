"""The share of one of several runs that do one piece of work together."""

import re
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Self

from voxstrata.base.errors import UsageError
from voxstrata.store.claims import Claims


@dataclass(frozen=True)
class Part:
    """Part `number` of `of`, counted from 1. A run does its own pieces first, then what others have not begun.

    Raises UsageError for a number outside 1 … of.
    """

    number: int = 1
    of: int = 1

    def __post_init__(self) -> None:
        if not 1 <= self.number <= self.of:
            raise UsageError(f"part {self.number}/{self.of}: the first number runs from 1 to the second")

    @classmethod
    def parse(cls, text: str) -> Self:
        """From "2/8". Raises UsageError for anything else."""
        if not re.fullmatch(r"\d{1,9}/\d{1,9}", text):
            raise UsageError(f"--part {text}: write it as I/N, like 2/8")
        number, of = text.split("/")
        return cls(int(number), int(of))

    @classmethod
    def of_slurm(cls, environ: Mapping[str, str]) -> Self | None:
        """That of a task of a Slurm job array; None outside of one."""
        names = ("SLURM_ARRAY_TASK_ID", "SLURM_ARRAY_TASK_MIN", "SLURM_ARRAY_TASK_STEP", "SLURM_ARRAY_TASK_COUNT")
        if names[0] not in environ:
            return None
        try:
            task, least, step, count = (
                int(environ.get(name, default)) for name, default in zip(names, "0011", strict=True)
            )
            # an array like 1,5,6 has numbers beyond its count: two tasks then begin at the same pieces, and share them
            return cls((task - least) // step % count + 1, count)
        except (ValueError, ZeroDivisionError) as e:
            given = " ".join(f"{name}={environ[name]}" for name in names if name in environ)
            raise UsageError(f"{given}: no task of a Slurm array; give --part I/N, or unset these") from e

    def order(self, pieces: Sequence[int]) -> Iterator[int]:
        """The pieces as this run takes them: every `of`-th in their order, then those of the others.

        Of these the part that follows comes first, then the next, each from its end: so no two runs that have finished
        their own begin to take the same.
        """
        yield from pieces[self.number - 1 :: self.of]
        for following in range(1, self.of):
            yield from reversed(pieces[(self.number - 1 + following) % self.of :: self.of])


def taken(
    pieces: Iterable[int],
    claims: Claims,
    done: Callable[[int], bool],
    left: Callable[[], Collection[int]] | None = None,
) -> Iterator[int]:
    """The pieces that this run gets to do, each claimed just before it is given. The caller drops the claims.

    done: whether one is. left: all that may still be taken, in a few requests; asked where one was found done or held,
    and again once such pieces have taken as long as asking did, so that who comes late does not ask for each of a
    million.
    """
    known: Collection[int] | None = None
    missed = cost = 0.0  # seconds
    for piece in pieces:
        if known is not None and piece not in known:
            continue
        begin = time.monotonic()
        if done(piece) or not claims.take(piece):
            now = time.monotonic()
            missed += now - begin
            if left is not None and missed >= cost:
                known, missed = left(), 0.0
                cost = time.monotonic() - now
                if not known:
                    return
        elif done(piece):  # since the look before
            claims.drop(piece)
        else:
            yield piece
