"""Kernels that compute SeqSim's two sums of maxima, all with one interface (`base`)."""

from voxstrata.base.choices import chosen
from voxstrata.base.errors import UsageError
from voxstrata.retrieval.kernels.base import Kernel

KERNELS = ("int16", "float32", "triton", "triton-float16", "triton-bfloat16", "triton-float32")


def choose_kernel(name: str | None = None) -> Kernel:
    """The kernel of that name; by default int16 where the CPU has AVX2, float32 elsewhere. A GPU is never assumed.

    name: one of KERNELS. "triton" has float16 rows; the longer names say which, as `Kernel.name` does.

    Raises UsageError for an unknown name, and for one that this machine cannot run.
    """
    import numba

    from voxstrata.retrieval.kernels.fixed_point import available
    from voxstrata.retrieval.kernels.float32 import Float32
    from voxstrata.retrieval.kernels.gpu import Triton
    from voxstrata.retrieval.kernels.int16 import Int16

    [name] = chosen("kernel", [name or ("int16" if available() else "float32")], KERNELS)
    name, _, dtype = name.partition("-")
    if name == "triton":
        return Triton(dtype or "float16")
    if numba.config.DISABLE_JIT:
        raise UsageError("the kernels are compiled by numba, which NUMBA_DISABLE_JIT turns off; unset it")
    kernels: dict[str, type[Kernel]] = {"int16": Int16, "float32": Float32}
    return kernels[name]()
