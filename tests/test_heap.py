"""What is freed goes back to the system."""

from __future__ import annotations

import subprocess
import sys

import pytest

# In a process of its own: what others freed before would count here. glibc keeps such holes once a block of their size
# was freed, which is what happens first.
BLOCKS = """
from pathlib import Path
import numpy as np
from voxstrata.base.heap import large_blocks_returned

MIB = 1 << 20

def resident():
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * 4096 / MIB

np.ones(24 * MIB, np.uint8)
with large_blocks_returned():
    before = resident()
    blocks = [np.ones(size, np.uint8) for _ in range(24) for size in (8 * MIB, MIB)]
    made = resident() - before
    held = blocks[1::2]
    del blocks
    print(len(held), made, resident() - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="/proc is Linux's")
def test_blocks_between_others_are_returned() -> None:
    done = subprocess.run([sys.executable, "-c", BLOCKS], capture_output=True, text=True, check=True)
    held, made, left = map(float, done.stdout.split())
    assert held == 24
    assert made > 210  # of 216 MiB
    assert left < 60  # the 24 that are held, and little else
