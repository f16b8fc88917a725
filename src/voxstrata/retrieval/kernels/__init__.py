"""Kernels that compute SeqSim's two sums of maxima, all with one interface (`base`)."""

from voxstrata.base.choices import chosen
from voxstrata.base.errors import UsageError
from voxstrata.retrieval.kernels.base import Kernel

KERNELS = ("int16", "float32", "triton")


def choose_kernel(name: str | None = None) -> Kernel:
    """The kernel of that name; by default int16 where the CPU has AVX2, float32 elsewhere. A GPU is never assumed.

    "triton" has float16 rows; "triton-bfloat16" and "triton-float32" name others, as `Kernel.name` does.

    Raises UsageError for an unknown name, and for one that this machine cannot run.
    """
    import numba

    from voxstrata.retrieval.kernels.fixed_point import available
    from voxstrata.retrieval.kernels.float32 import Float32
    from voxstrata.retrieval.kernels.gpu import Triton
    from voxstrata.retrieval.kernels.int16 import Int16

    name, _, dtype = (name or ("int16" if available() else "float32")).partition("-")
    if name == "triton":
        return Triton(dtype or "float16")
    [name] = chosen("kernel", [f"{name}-{dtype}" if dtype else name], KERNELS)
    if numba.config.DISABLE_JIT:
        raise UsageError("the kernels are compiled by numba, which NUMBA_DISABLE_JIT turns off; unset it")
    kernels: dict[str, type[Kernel]] = {"int16": Int16, "float32": Float32}
    return kernels[name]()
