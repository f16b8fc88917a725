"""Who is told what a long piece of work is doing: one object for every function that takes minutes."""

from dataclasses import dataclass

# The environment variable that says how progress is shown, and what it may be.
PROGRESS, PROGRESS_KINDS = "VOXSTRATA_PROGRESS", ("auto", "bar", "log", "none")


@dataclass(frozen=True)
class Progress:
    """How far a piece of work is.

    stage: what is being done, such as "reading headers".
    done, total: how many of its `unit`s are finished, of how many. Where a run goes on with what another left, they are
        of the whole, and its first report comes before it has done anything: rate and time left are of this run alone.
    work, work_total: the same as an amount that takes even time, from which the time that is left is estimated;
        without them it is estimated from `done` and `total`.
    rated, rate_unit: an amount done so far, and what so much of it in a second is called, such as "audio-h/h".
    failed: items that failed so far.
    """

    stage: str
    done: int
    total: int
    unit: str = ""
    work: float | None = None
    work_total: float | None = None
    rated: float | None = None
    rate_unit: str = ""
    failed: int = 0

    @property
    def share(self) -> float:
        """How much of the work is done, 0 to 1."""
        done, total = (self.done, self.total) if self.work is None else (self.work, self.work_total)
        return done / total if total else 1.0


class Reporter:
    """Whom a function tells what it does. This one keeps silent; a subclass prints, logs, or draws.

    Called from the thread that called the function.
    """

    def step(self, text: str) -> None:
        """A step begins, such as "exporting the encoder"."""

    def progress(self, progress: Progress) -> None:
        """A step has come further. Comes often: whoever shows it chooses when."""

    def warn(self, text: str) -> None:
        """Something the user should know and that does not stop the work."""


SILENT = Reporter()
