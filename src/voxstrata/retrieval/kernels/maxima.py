"""What the CPU kernels share: the maxima of a block of S while it is in cache."""

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from voxstrata.base.compiled import jit


@intrinsic  # type: ignore[untyped-decorator]
def larger(context: Any, a: Any, b: Any) -> Any:
    """The larger of two numbers of one type, neither NaN. Loops over floats with numba's own max do not vectorise."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        if isinstance(signature.return_type, types.Integer):
            return builder.select(builder.icmp_signed(">", *arguments), *arguments)
        number = arguments[0].type
        maxnum = builder.module.declare_intrinsic("llvm.maxnum", [number], ir.FunctionType(number, [number, number]))
        return builder.call(maxnum, arguments, fastmath=("nnan", "nsz"))

    return a(a, b), generate


@jit
def take_maxima(s: Any, x_bounds: Any, y_bounds: Any, row_max: Any, column_max: Any) -> None:
    """Raise running maxima by a block of S, reading each value once.

    s: (rows, columns). x_bounds: (n + 1,), rows x_bounds[i] … x_bounds[i + 1] - 1 are of utterance i; y_bounds
    (m + 1,) likewise for columns. row_max: (rows, m), column_max: (n, columns), of the type of s.
    """
    for i in range(len(x_bounds) - 1):
        for r in range(x_bounds[i], x_bounds[i + 1]):
            for j in range(len(y_bounds) - 1):
                # Slices, not offsets into s: only so does numba see a loop that can be vectorised.
                values = s[r][y_bounds[j] : y_bounds[j + 1]]
                column = column_max[i][y_bounds[j] : y_bounds[j + 1]]
                best = row_max[r, j]
                for c in range(len(values)):
                    best = larger(best, values[c])
                    column[c] = larger(column[c], values[c])
                row_max[r, j] = best


@jit
def add_rows(values: Any, bounds: Any, sums: Any) -> None:
    """Add rows bounds[i] … bounds[i + 1] - 1 of values (rows, m) to sums[i], in that order; sums (n, m)."""
    for i in range(len(bounds) - 1):
        for r in range(bounds[i], bounds[i + 1]):
            for j in range(values.shape[1]):
                sums[i, j] += values[r, j]


@jit
def add_columns(values: Any, bounds: Any, sums: Any) -> None:
    """Add columns bounds[j] … bounds[j + 1] - 1 of values (n, columns) to sums[:, j], in that order; sums (n, m)."""
    for i in range(len(values)):
        for j in range(len(bounds) - 1):
            for c in range(bounds[j], bounds[j + 1]):
                sums[i, j] += values[i, c]
