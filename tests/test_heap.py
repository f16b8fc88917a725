"""What is freed goes back to the system."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from voxstrata.base.heap import large_blocks_returned

MIB = 1 << 20


def resident() -> float:
    """MiB of physical memory that this process holds."""
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * 4096 / MIB


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="/proc is Linux's")
def test_blocks_between_others_are_returned() -> None:
    """glibc keeps such holes once a block of their size was freed, which is what happens first here."""
    np.ones(24 * MIB, np.uint8)
    with large_blocks_returned():
        before = resident()
        blocks = [np.ones(size, np.uint8) for _ in range(24) for size in (8 * MIB, MIB)]
        assert resident() - before > 150
        held = blocks[1::2]
        del blocks
        assert resident() - before < 60  # 24 of them are held
    assert len(held) == 24
