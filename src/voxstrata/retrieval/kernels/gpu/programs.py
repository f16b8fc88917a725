"""The Triton programs: rows of unit length, maxima of S = X Yᵀ tile by tile, their means per pair of utterances.

Imports triton and so is imported only where a kernel is asked for.
"""

# Parameters are Triton values, for which Python has no types.
# mypy: disable-error-code="untyped-decorator,no-untyped-def"

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["first", "count"])
def scale_rows(
    given, rows, squares, first, count, d: tl.constexpr, width: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr
):
    """Rows scaled to unit length, in the number format of `rows`; added columns are zero.

    given (count, d), float16 or float32. rows (n, width), of which first … first + count - 1 are written. squares (n,)
    float64: their squared lengths; of a row for which that is zero or not finite, the rest means nothing.
    A program takes ROWS rows; COLUMNS is a power of two from width on.

    In float64, in which no square of a float32 overflows or vanishes. To 16 bits by way of float32: few devices convert
    float64 to them.
    """
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, COLUMNS)
    there = (row < count)[:, None]
    x = tl.load(given + row.to(tl.int64)[:, None] * d + column, mask=there & (column < d), other=0.0).to(tl.float64)
    square = tl.sum(x * x, axis=1)
    tl.store(squares + first + row, square, mask=row < count)
    usable = (square > 0) & (square < float("inf"))
    scaled = x * (1 / tl.where(usable, tl.sqrt(square), 1.0))[:, None]
    out = rows + (first + row).to(tl.int64)[:, None] * width + column
    tl.store(out, scaled.to(tl.float32).to(rows.dtype.element_ty), mask=there & (column < width))


@triton.jit(do_not_specialize=["x_frames", "y_frames", "strip_count", "block_count"])
def maxima(
    x_rows,
    y_rows,
    x_offsets,
    strips,
    y_pieces,
    piece_of_block,
    row_max,
    column_max,
    x_frames,
    y_frames,
    strip_count,
    block_count,
    d: tl.constexpr,
    X_BLOCK: tl.constexpr,
    Y_BLOCK: tl.constexpr,
    D_BLOCK: tl.constexpr,
    GROUP: tl.constexpr,
    PRECISION: tl.constexpr,
    DESCRIPTORS: tl.constexpr,
):
    """Largest cosine of every frame of x within every piece of y, and of every frame of y within every utterance of x.

    x_rows (x_frames, d), y_rows (y_frames, d): tensor descriptors with blocks (X_BLOCK, D_BLOCK), (Y_BLOCK, D_BLOCK);
    without DESCRIPTORS pointers to their first values.
    x_offsets (n + 1,), strips (strip_count + 1,): first frames of the utterances of x; first utterances of its strips.
    y_pieces (pieces + 1,), piece_of_block (block_count + 1,): first frames of the pieces of y, first pieces of its
    blocks; a piece is what a block holds of one utterance.
    row_max (pieces, x_frames), column_max (n, y_frames): float32, every element is written.

    One item of work is a strip of x against a block of Y_BLOCK frames of y. The programs walk the list of items with a
    fixed stride; neighbours in the list share blocks of y and, GROUP at a time, strips of x, which then come from L2.
    """
    in_x = tl.arange(0, X_BLOCK)
    in_y = tl.arange(0, Y_BLOCK)
    for item in tl.range(tl.program_id(0), strip_count * block_count, tl.num_programs(0)):
        # Column-major within groups of GROUP strips; the last group may be smaller.
        first_strip = item // (GROUP * block_count) * GROUP
        group = tl.minimum(strip_count - first_strip, GROUP)
        inside = item % (GROUP * block_count)
        strip = first_strip + inside % group
        block = inside // group

        y0 = block * Y_BLOCK
        piece_begin = tl.load(piece_of_block + block)
        piece_end = tl.load(piece_of_block + block + 1)
        utterance = tl.load(strips + strip)
        x_end = tl.load(x_offsets + tl.load(strips + strip + 1))
        # Largest of each column so far, still apart by the 8 rows of a 16 x 8 fragment and by warps: in the layout of
        # a warpgroup product this maximum needs no exchange between threads; that waits for the utterance's end.
        columns = tl.full((X_BLOCK // 16, 8, Y_BLOCK), float("-inf"), tl.float32)
        for x0 in tl.range(tl.load(x_offsets + utterance), x_end, X_BLOCK):
            s = tl.zeros((X_BLOCK, Y_BLOCK), tl.float32)
            for k in tl.range(0, d, D_BLOCK):
                x = _load(x_rows, x0, k, x_frames, d, X_BLOCK, D_BLOCK, DESCRIPTORS)
                y = _load(y_rows, y0, k, y_frames, d, Y_BLOCK, D_BLOCK, DESCRIPTORS)
                s = tl.dot(x, y.T, s, input_precision=PRECISION)

            frames = x0 + in_x
            for piece in tl.range(piece_begin, piece_end):
                begin = tl.load(y_pieces + piece) - y0
                end = tl.load(y_pieces + piece + 1) - y0
                if end - begin == Y_BLOCK:
                    best = tl.max(s, axis=1)
                else:
                    best = tl.max(tl.where(((in_y >= begin) & (in_y < end))[None, :], s, float("-inf")), axis=1)
                tl.store(row_max + piece * x_frames.to(tl.int64) + frames, best, mask=frames < x_end)

            more = True
            while more:
                begin = tl.load(x_offsets + utterance)
                end = tl.load(x_offsets + utterance + 1)
                mine = tl.where(((frames >= begin) & (frames < end))[:, None], s, float("-inf"))
                columns = tl.maximum(columns, _fold(mine, X_BLOCK, Y_BLOCK))
                if end <= x0 + X_BLOCK:
                    best = tl.max(tl.reshape(columns, (X_BLOCK // 2, Y_BLOCK)), axis=0)
                    out = column_max + utterance * y_frames.to(tl.int64) + y0
                    tl.store(out + in_y, best, mask=y0 + in_y < y_frames)
                    columns = tl.full((X_BLOCK // 16, 8, Y_BLOCK), float("-inf"), tl.float32)
                    utterance += 1
                more = (end < x0 + X_BLOCK) & (end < x_end)


@triton.jit
def _load(
    rows, first, k, frames, d: tl.constexpr, BLOCK: tl.constexpr, D_BLOCK: tl.constexpr, DESCRIPTORS: tl.constexpr
):
    """Values (BLOCK, D_BLOCK) from row `first` and column k on; 0 beyond the rows.

    By pointers where no bulk copy engine serves descriptors: of what Triton makes of a descriptor there it does not
    know that rows begin at multiples of 16 bytes, and loads value by value.
    """
    if DESCRIPTORS:
        values = rows.load([first, k])
    else:
        row = first + tl.arange(0, BLOCK)
        column = k + tl.arange(0, D_BLOCK)
        there = (row < frames)[:, None]
        if d % D_BLOCK != 0:
            there = there & (column < d)[None, :]
        values = tl.load(rows + row.to(tl.int64)[:, None] * d + column[None, :], mask=there, other=0.0)
    return values


@triton.jit
def _fold(s, X_BLOCK: tl.constexpr, Y_BLOCK: tl.constexpr):
    """The larger of rows r and r + 8 of every 16 rows: a thread of a warpgroup product holds both."""
    return tl.max(tl.reshape(s, (X_BLOCK // 16, 2, 8, Y_BLOCK)), axis=1)


@triton.jit(do_not_specialize=["x_frames", "y_frames", "stride"])
def means(
    row_max,
    column_max,
    x_offsets,
    y_offsets,
    first_piece,
    precision,
    recall,
    x_frames,
    y_frames,
    stride,
    BLOCK: tl.constexpr,
):
    """Precision and recall of pair (i, j) = (program 0, program 1), written at [i, j] of matrices of `stride` columns.

    first_piece (m + 1,): first piece of every utterance of y. Sums run in one order, from the utterance's first frame.
    """
    i = tl.program_id(0)
    j = tl.program_id(1)
    lanes = tl.arange(0, BLOCK)

    begin = tl.load(x_offsets + i)
    end = tl.load(x_offsets + i + 1)
    total = tl.zeros((BLOCK,), tl.float32)
    for x0 in tl.range(begin, end, BLOCK):
        frames = x0 + lanes
        best = tl.full((BLOCK,), float("-inf"), tl.float32)
        for piece in tl.range(tl.load(first_piece + j), tl.load(first_piece + j + 1)):
            part = tl.load(row_max + piece * x_frames.to(tl.int64) + frames, mask=frames < end, other=float("-inf"))
            best = tl.maximum(best, part)
        total += tl.where(frames < end, best, 0.0)
    tl.store(precision + i * stride.to(tl.int64) + j, tl.sum(total) / (end - begin))

    begin = tl.load(y_offsets + j)
    end = tl.load(y_offsets + j + 1)
    total = tl.zeros((BLOCK,), tl.float32)
    for y0 in tl.range(begin, end, BLOCK):
        frames = y0 + lanes
        total += tl.load(column_max + i * y_frames.to(tl.int64) + frames, mask=frames < end, other=0.0)
    tl.store(recall + i * stride.to(tl.int64) + j, tl.sum(total) / (end - begin))
