"""The GPU kernel without a GPU: right in the interpreter, and compiled for Hopper to the code it is meant to be."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

import pytest

from voxstrata.base.errors import UsageError
from voxstrata.retrieval.kernels.gpu import TILES, Triton

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


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_compiled_for_hopper_it_multiplies_by_warpgroups_and_keeps_its_registers(dtype: str, tmp_path: Path) -> None:
    """For compute capability 9.0: bulk copies feed warpgroup products, one of which stays under way; next to no spills.

    Shared memory: a block of threads can have 227 KiB.
    """
    numbers("torch"), numbers("triton")
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from voxstrata.retrieval.kernels.gpu.programs import maxima

    tile = TILES[dtype]
    element = {"float16": "fp16", "bfloat16": "bf16"}[dtype]
    constants = {"d": 1280, "X_BLOCK": tile.x, "Y_BLOCK": tile.y, "D_BLOCK": tile.d, "GROUP": 8, "PRECISION": "tf32"}
    types = {
        "x_rows": f"tensordesc<{element}[{tile.x}, {tile.d}]>",
        "y_rows": f"tensordesc<{element}[{tile.y}, {tile.d}]>",
        **dict.fromkeys(("x_offsets", "strips", "y_pieces", "piece_of_block"), "*i32"),
        **dict.fromkeys(("row_max", "column_max"), "*fp32"),
        **dict.fromkeys(("x_frames", "y_frames", "strip_count", "block_count"), "i32"),
        **dict.fromkeys(constants, "constexpr"),
    }
    source = ASTSource(maxima, types, {(maxima.arg_names.index(name),): value for name, value in constants.items()})
    options = {"num_warps": tile.warps, "num_stages": tile.stages}
    compiled = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)

    assert "wgmma.mma_async" in compiled.asm["ptx"]
    assert "cp.async.bulk.tensor" in compiled.asm["ptx"]
    assert re.search(r"wgmma\.wait_group\.sync\.aligned\s+1", compiled.asm["ptx"])
    assert compiled.metadata.shared <= 227 << 10
    (tmp_path / "maxima.cubin").write_bytes(compiled.asm["cubin"])
    command = [triton.knobs.nvidia.cuobjdump.path, "--dump-resource-usage", tmp_path / "maxima.cubin"]
    report = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert int(re.findall(r"Function maxima:\s+REG:\d+ STACK:(\d+)", report)[0]) <= 64  # bytes a thread


@pytest.mark.skipif(find_spec("triton") is not None, reason="triton is installed")
def test_without_triton_the_error_names_it() -> None:
    with pytest.raises(UsageError, match=r"the GPU kernel needs (torch|triton): pip install"):
        Triton()
