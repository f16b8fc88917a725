"""The command line. Each command lives in a module of its own, loaded when it is called.

Nothing is imported here: `main` answers interrupts, also those that come while modules are being imported.
"""

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn


def main() -> "NoReturn":
    """The program `voxstrata`."""
    from voxstrata.cli.stopping import stoppable

    stoppable(_run)


def _run() -> None:
    import threading

    from voxstrata.cli.app import main as command
    from voxstrata.cli.failing import tell_thread

    threading.excepthook = tell_thread
    command()
