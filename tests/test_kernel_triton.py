"""The GPU kernel without a GPU: right in the interpreter, and compiled for every capability to what fits it."""

from __future__ import annotations

import importlib
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any

import pytest

from voxstrata.base.errors import UsageError
from voxstrata.retrieval.kernels.gpu import TILES, Triton, tile_for

TESTS = Path(__file__).with_name("kernel_triton_interpreted.py")


def numbers(package: str) -> tuple[int, ...]:
    """Major and minor version."""
    try:
        return tuple(int(n) for n in version(package).split(".")[:2])
    except PackageNotFoundError:
        pytest.skip(f"{package} is not installed (triton comes with CUDA builds of torch)")


@pytest.mark.long
def test_in_the_interpreter() -> None:
    numbers("torch")
    if numbers("triton") < (3, 7) and numbers("numpy") >= (2, 4):
        pytest.skip("the interpreter of triton before 3.7 fails with numpy 2.4")
    # The interpreter runs on tensors of the CPU; a GPU beside it would be taken for the device.
    environment = os.environ | {"TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""}
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", TESTS],
        env=environment, cwd=TESTS.parents[1], capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stdout + run.stderr
    assert " passed" in run.stdout


# Shared memory that a block of threads can have, KiB: CUDA C++ Programming Guide, technical specifications per
# compute capability.
SHARED = {(8, 0): 163, (8, 6): 99, (8, 9): 99, (9, 0): 227, (10, 0): 227, (12, 0): 99}
# Stack of a thread, bytes. On 9.0 two numbers that are read once per item of work, outside the loops.
ALLOWED_STACK = {(9, 0): 8}
# Compiling takes seconds each: one of every kind is for every day.
CASES = [
    pytest.param(dtype, c, marks=[] if dtype == "float16" and c in ((8, 0), (9, 0)) else pytest.mark.long)
    for dtype in TILES
    for c in SHARED
]


@dataclass(frozen=True)
class Code:
    """What a program becomes: its PTX; per block of threads, shared memory in bytes; per thread, stack in bytes."""

    ptx: str
    shared: int
    stack: int


def compiled(name: str, types: dict[str, str], constants: dict[str, Any], options: dict[str, int], sm: int) -> Code:
    """A program for a compute capability, ahead of time and without a device.

    What does not fit the registers is spilled to the stack, and nothing else here lies there.
    """
    numbers("torch"), numbers("triton")
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    program = getattr(importlib.import_module("voxstrata.retrieval.kernels.gpu.programs"), name)
    known = {(program.arg_names.index(k),): value for k, value in constants.items()}
    # What a launch finds of memory that torch gave: it begins at a multiple of 16 bytes.
    aligned = {(program.arg_names.index(k),): [["tt.divisibility", 16]] for k, kind in types.items() if kind[0] == "*"}
    source = ASTSource(program, types | dict.fromkeys(constants, "constexpr"), known, aligned)
    made = triton.compile(source, target=GPUTarget("cuda", sm, 32), options=options)
    with NamedTemporaryFile(suffix=".cubin") as file:
        file.write(made.asm["cubin"])
        file.flush()
        command = [triton.knobs.nvidia.cuobjdump.path, "--dump-resource-usage", file.name]
        report = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    (stack,) = re.findall(rf"Function {name}:\s+REG:\d+ STACK:(\d+)", report)
    return Code(made.asm["ptx"], made.metadata.shared, int(stack))


def maxima_for(dtype: str, capability: tuple[int, int], d: int = 1280) -> Code:
    tile = tile_for(dtype, capability)
    element = {"float16": "fp16", "bfloat16": "bf16", "float32": "fp32"}[dtype]
    precision = "ieee" if dtype == "float32" else "tf32"
    descriptors = capability >= (9, 0)
    constants = {"d": d, "X_BLOCK": tile.x, "Y_BLOCK": tile.y, "D_BLOCK": tile.d, "GROUP": 8, "PRECISION": precision}
    constants["DESCRIPTORS"] = descriptors
    types = {
        "x_rows": f"tensordesc<{element}[{tile.x}, {tile.d}]>" if descriptors else f"*{element}",
        "y_rows": f"tensordesc<{element}[{tile.y}, {tile.d}]>" if descriptors else f"*{element}",
        **dict.fromkeys(("x_offsets", "strips", "y_pieces", "piece_of_block"), "*i32"),
        **dict.fromkeys(("row_max", "column_max"), "*fp32"),
        **dict.fromkeys(("x_frames", "y_frames", "strip_count", "block_count"), "i32"),
    }
    options = {"num_warps": tile.warps, "num_stages": tile.stages}
    return compiled("maxima", types, constants, options, 10 * capability[0] + capability[1])


def test_every_tile_is_of_a_capability_whose_shared_memory_is_known() -> None:
    assert {c for known in TILES.values() for c in known} <= set(SHARED)
    for other, like in {(7, 5): (8, 0), (8, 9): (8, 0), (10, 3): (10, 0), (11, 0): (10, 0), (12, 1): (12, 0)}.items():
        assert tile_for("float16", other) == TILES["float16"][like]


@pytest.mark.parametrize(("dtype", "capability"), CASES)
def test_it_fits_the_registers_and_the_shared_memory_of_every_capability(
    dtype: str, capability: tuple[int, int]
) -> None:
    code = maxima_for(dtype, capability)
    assert code.stack <= ALLOWED_STACK.get(capability, 0)
    assert code.shared <= SHARED[capability] << 10


@pytest.mark.parametrize("capability", [(8, 0), pytest.param((8, 9), marks=pytest.mark.long)])
def test_before_hopper_rows_are_copied_16_bytes_at_a_time_while_products_run(capability: tuple[int, int]) -> None:
    """Not value by value, through registers, as of tensor descriptors there. Two steps' rows are under way."""
    code, tile = maxima_for("float16", capability), tile_for("float16", capability)
    assert "cp.async.cg.shared.global" in code.ptx
    assert "mma.sync.aligned.m16n8k16" in code.ptx
    assert code.shared >= 2 * 2 * (tile.x + tile.y) * tile.d


@pytest.mark.parametrize(
    "capability", [c if c in ((8, 0), (9, 0)) else pytest.param(c, marks=pytest.mark.long) for c in SHARED]
)
def test_packing_fits_the_registers(capability: tuple[int, int]) -> None:
    constants = {"d": 1280, "width": 1280, "ROWS": 4, "COLUMNS": 2048}
    types = {"given": "*fp16", "rows": "*fp16", "squares": "*fp64", "first": "i32", "count": "i32"}
    code = compiled("scale_rows", types, constants, {"num_warps": 8}, 10 * capability[0] + capability[1])
    assert code.stack == 0
    assert code.shared <= SHARED[capability] << 10


@pytest.mark.parametrize("dtype", ["float16", pytest.param("bfloat16", marks=pytest.mark.long)])
def test_for_hopper_bulk_copies_feed_products_of_warpgroups(dtype: str) -> None:
    """One product stays under way while the next begins."""
    ptx = maxima_for(dtype, (9, 0)).ptx
    assert "wgmma.mma_async" in ptx
    assert "cp.async.bulk.tensor" in ptx
    assert re.search(r"wgmma\.wait_group\.sync\.aligned\s+1", ptx)


@pytest.mark.skipif(find_spec("triton") is not None, reason="triton is installed")
def test_without_triton_the_error_names_it() -> None:
    with pytest.raises(UsageError, match=r"the GPU kernel needs (torch|triton): pip install"):
        Triton()
