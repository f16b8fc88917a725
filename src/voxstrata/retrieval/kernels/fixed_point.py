"""Products of fixed-point rows, compiled: panels of int16 pairs, a register tile in LLVM's own words, maxima in cache.

A thread multiplies a strip of X_WIDTH rows of x by panels of Y_WIDTH rows of y. One instruction (pmaddwd, or vpdpwssd
where the CPU has it: LLVM chooses) multiplies pairs of int16 and adds both products to a 32-bit sum. Neither numba's
loops nor LLVM's vectoriser keep such a tile in registers, hence the builder.

No sum overflows. A unit row u becomes q = rint(s u), so |q| <= s |u| + sqrt(d) / 2 in length, with |u| off 1 by
rounding alone (1e-6). By Cauchy-Schwarz any partial sum of q.r is at most |q| |r| in magnitude, less than 2^31 for
lengths up to 46340; `scale` keeps to that. Maxima are taken within a pair of utterances, so each has its own s.
"""

from typing import Any

import llvmlite.binding
import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from voxstrata.base.compiled import jit
from voxstrata.retrieval.kernels.maxima import add_columns, add_rows, larger, take_maxima

INT16 = 32_767
LONGEST = 46_339  # of a row in fixed point, with 1 to spare: its square is below 2^31
_CHUNK_BYTES = 256 * 1024  # panels of y that are used again for every strip of x: half of a small level-2 cache


def _features() -> frozenset[str]:
    """What numba compiles for: the host's features, unless the user set others."""
    if not numba.config.ENABLE_AVX:
        return frozenset()
    if numba.config.CPU_FEATURES is not None:
        return frozenset(part[1:] for part in numba.config.CPU_FEATURES.split(",") if part.startswith("+"))
    if numba.config.CPU_NAME not in (None, "host"):
        return frozenset()  # a CPU known by name alone
    return frozenset(name for name, there in llvmlite.binding.get_host_cpu_features().items() if there)


# Lanes of a register, rows of x and registers of y in a tile: sums, y and one value of x fill the 32 or 16 registers.
if "avx512bw" in _features():
    LANES, X_WIDTH, Y_REGISTERS, PMADDWD = 16, 12, 2, "llvm.x86.avx512.pmaddw.d.512"
else:
    LANES, X_WIDTH, Y_REGISTERS, PMADDWD = 8, 6, 2, "llvm.x86.avx2.pmadd.wd"
Y_WIDTH = LANES * Y_REGISTERS


def available() -> bool:
    """Whether the CPU that numba compiles for has AVX2."""
    return bool({"avx2", "avx512bw"} & _features())


@jit
def scale(rows: Any) -> Any:
    """The largest factor, float32, by which an utterance's unit rows (n, d) float32 fit int16 and sums fit int32.

    Between 32,767 (some entry is 1) and 46,339 - sqrt(d) / 2 (none is above 0.707).
    """
    largest = np.float32(0)
    for i in range(len(rows)):
        row = rows[i]
        for k in range(len(row)):
            largest = larger(largest, abs(row[k]))
    return np.float32(min(LONGEST - np.sqrt(rows.shape[1]) / 2, INT16 / largest))


@jit
def panels(rows: Any, offsets: Any, scales: Any, width: int) -> Any:
    """Unit rows (n, d) float32 as fixed point: (ceil(n / width), ceil(d / 2), width) int32, each two int16 of a row.

    scales: by utterance, the rows of which begin at offsets. Missing rows and the second half of an odd last pair are
    zeros.
    """
    n, d = rows.shape
    pairs = (d + 1) // 2
    packed = np.zeros(((n + width - 1) // width, pairs, width), np.int32)
    fixed = np.zeros(2 * pairs, np.int16)
    u = 0
    for i in range(n):
        while offsets[u + 1] <= i:
            u += 1
        row = rows[i]
        for k in range(d):
            fixed[k] = np.int16(np.rint(row[k] * scales[u]))
        twos = fixed.view(np.int32)
        panel = packed[i // width]
        t = i % width
        for k in range(pairs):
            panel[k, t] = twos[k]
    return packed


@jit
def effective_frames(rows: Any, offsets: Any) -> Any:
    """T² / Σ c² of each utterance, float64 (n,): T frames, c of them equal in fixed point.

    rows: unit rows (frames, d) float32. Frames are told apart by a 64-bit hash: a collision, one in 10^19 pairs, would
    only send an utterance to the slower path.
    """
    n = len(offsets) - 1
    effective = np.empty(n)
    for i in range(n):
        hashes = np.empty(offsets[i + 1] - offsets[i], np.uint64)
        for t in range(len(hashes)):
            row = rows[offsets[i] + t]
            h = np.uint64(14695981039346656037)  # FNV-1a (Fowler, Noll, Vo), over int16 for bytes
            for k in range(len(row)):
                fixed = np.uint64(np.int64(np.rint(row[k] * np.float32(INT16))))
                h = (h ^ fixed) * np.uint64(1099511628211)
            hashes[t] = h
        hashes.sort()
        squares, first = 0.0, 0
        for t in range(1, len(hashes) + 1):
            if t == len(hashes) or hashes[t] != hashes[first]:
                squares += float(t - first) ** 2
                first = t
        effective[i] = float(len(hashes)) ** 2 / squares
    return effective


@intrinsic  # type: ignore[untyped-decorator]
def _multiply(context: Any, strip: Any, panel: Any, s: Any, column: Any) -> Any:
    """s[:, column:column + Y_WIDTH] = strip.T @ panel: strip (pairs, X_WIDTH), panel (pairs, Y_WIDTH), s int32."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> None:
        arrays = [
            context.make_array(kind)(context, builder, value=value)
            for kind, value in zip(signature.args[:3], arguments[:3], strict=True)
        ]
        x, y, out = (array.data for array in arrays)
        pairs = cgutils.unpack_tuple(builder, arrays[0].shape)[0]
        columns = cgutils.unpack_tuple(builder, arrays[2].shape)[1]
        number = ir.IntType(32)
        register = ir.VectorType(number, LANES)
        halves = ir.VectorType(ir.IntType(16), 2 * LANES)
        pmaddwd = cgutils.get_or_insert_function(builder.module, ir.FunctionType(register, [halves, halves]), PMADDWD)

        def at(base: Any, index: Any, offset: int) -> Any:
            return builder.gep(base, [builder.add(index, context.get_constant(types.intp, offset))])

        def vector(pointer: Any) -> Any:
            return builder.bitcast(pointer, register.as_pointer())

        sums = [
            [cgutils.alloca_once_value(builder, ir.Constant(register, None)) for _ in range(Y_REGISTERS)]
            for _ in range(X_WIDTH)
        ]
        with cgutils.for_range(builder, pairs) as loop:
            from_x = builder.mul(loop.index, context.get_constant(types.intp, X_WIDTH))
            from_y = builder.mul(loop.index, context.get_constant(types.intp, Y_WIDTH))
            ys = [
                builder.bitcast(builder.load(vector(at(y, from_y, v * LANES)), align=4), halves)
                for v in range(Y_REGISTERS)
            ]
            for r, row in enumerate(sums):
                one = builder.insert_element(
                    ir.Constant(register, ir.Undefined), builder.load(at(x, from_x, r)), ir.Constant(number, 0)
                )
                everywhere = builder.shuffle_vector(one, one, ir.Constant(register, None))
                for total, other in zip(row, ys, strict=True):
                    products = builder.call(pmaddwd, [builder.bitcast(everywhere, halves), other])
                    builder.store(builder.add(builder.load(total), products), total)
        for r, row in enumerate(sums):
            begin = builder.add(arguments[3], builder.mul(columns, context.get_constant(types.intp, r)))
            for v, total in enumerate(row):
                builder.store(builder.load(total), vector(at(out, begin, v * LANES)), align=4)

    return types.void(strip, panel, s, types.intp), generate


@jit
def _within(bounds: Any, begin: int, end: int) -> Any:
    """The first utterance with frames in [begin, end), and the bounds of all that have some, counted from begin."""
    first = 0
    while bounds[first + 1] <= begin:
        first += 1
    last = first
    while bounds[last] < end:
        last += 1
    part = np.empty(last - first + 1, np.int64)
    for i in range(len(part)):
        part[i] = min(max(bounds[first + i], begin), end) - begin
    return first, part


@jit
def sums_of_maxima(x: Any, x_bounds: Any, y: Any, y_bounds: Any) -> Any:
    """Sums over the frames of each utterance of the largest product with a frame of the other side's utterances.

    x: `panels` of X_WIDTH; x_bounds (n + 1,): first rows of its utterances, and the number of rows. y: panels of
    Y_WIDTH, y_bounds (m + 1,) likewise. Returns two (n, m) int64: sums over the frames of x, and over those of y.
    """
    rows, columns, n, m = x_bounds[-1], y_bounds[-1], len(x_bounds) - 1, len(y_bounds) - 1
    lowest = np.iinfo(np.int32).min
    per_chunk = max(1, _CHUNK_BYTES // (4 * y.shape[1] * Y_WIDTH))  # panels
    s = np.empty((X_WIDTH, per_chunk * Y_WIDTH), np.int32)
    row_max = np.full((rows, m), lowest, np.int32)
    row_sums, column_sums = np.zeros((n, m), np.int64), np.zeros((n, m), np.int64)
    for first in range(0, len(y), per_chunk):
        panel_count = min(per_chunk, len(y) - first)
        begin = first * Y_WIDTH
        end = min(begin + panel_count * Y_WIDTH, columns)
        j, y_part = _within(y_bounds, begin, end)
        column_max = np.full((n, end - begin), lowest, np.int32)
        for strip in range(len(x)):
            for p in range(panel_count):
                _multiply(x[strip], y[first + p], s, p * Y_WIDTH)
            top, bottom = strip * X_WIDTH, min((strip + 1) * X_WIDTH, rows)
            i, x_part = _within(x_bounds, top, bottom)
            take_maxima(s, x_part, y_part, row_max[top:bottom, j:], column_max[i:])
        add_columns(column_max, y_part, column_sums[:, j:])
    add_rows(row_max, x_bounds, row_sums)
    return row_sums, column_sums
