"""The command line. Each command lives in a module of its own, loaded when it is called."""

from voxstrata.cli.app import main

__all__ = ["main"]
