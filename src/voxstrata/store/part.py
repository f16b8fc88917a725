"""The share of one of several runs that do one piece of work together."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
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

    def order(self, pieces: Sequence[int]) -> list[int]:
        """The pieces as this run takes them: every `of`-th in their order, then those of the others from the end."""
        own = list(pieces[self.number - 1 :: self.of])
        mine = set(own)
        return own + [piece for piece in reversed(pieces) if piece not in mine]


def taken(pieces: Sequence[int], claims: Claims, done: Callable[[int], bool]) -> Iterator[int]:
    """The pieces that this run gets to do, each claimed just before it is given. The caller drops the claims."""
    for piece in pieces:
        if not done(piece) and claims.take(piece):
            if done(piece):  # since the look before
                claims.drop(piece)
            else:
                yield piece
