"""SeqSim on a CUDA device, through Triton with torch as host.

How it works. All frames of a block of utterances lie one after the other, without padding, and S = X Yᵀ is computed as
one matrix product of flat rows, tile by tile with float32 accumulators; each tile is reduced while it is in registers:
- Column maxima: a program takes a strip (whole utterances of x, about `Tile.strip` frames) against one block of frames
  of y and walks down the strip. The running maximum of each column is kept in registers until an utterance of x ends,
  then written once. Its cost, an exchange between threads, is so paid per utterance and not per tile.
- Row maxima: a block of y is cut into pieces where an utterance ends. The maximum of each row over each piece is
  written, a few floats per tile.
- A second program (`programs.means`) merges the pieces of each utterance and takes both means.
S itself never exists outside the registers. The two scratch arrays are a few thousandths of its size, and a call is cut
into blocks of utterances so that they stay under a fixed bound.

Why flat rows rather than a tile grid per pair: at tiles of 128 × 256, pairs of random length near 500 frames would
waste 40 % of the products on padding; here only the last tile of a strip is part empty (about 3 % at strips of 2048
frames). All items of work then cost nearly the same, so that a persistent grid with a fixed stride needs no sorting by
cost. The one price: tiles in which an utterance of y ends are masked, once per piece, before the row maximum.

The same call gives the same bits, and a pair gives the same bits whatever else is in the call: every cosine is summed
over d in one order, maxima are exact, and means run from an utterance's first frame. No atomics.

Number format: float16 by default. Rows of unit length hold values up to 1, mostly near d ** -0.5, where float16 is
eight times finer than bfloat16 and as fast on tensor cores; what falls below its range (6e-8) adds nothing to a cosine.
float32 runs on plain multiply-adds (input_precision="ieee"), far slower, for checks.

Packing scales rows on the device, on a stream of its own, from page-locked memory; `maxima` leaves it a multiprocessor.

State: checked in Triton's interpreter; compiled for compute capabilities 8.0 to 12.0, without spills in a loop and
within their shared memory. For 9.0 the disassembly shows warpgroup products fed by the bulk copy engine. Not run on a
GPU: its speed, and the choice of `TILES`, are not measured.
"""

from voxstrata.retrieval.kernels.gpu.kernel import TILES, Tile, Triton, tile_for

__all__ = ["TILES", "Tile", "Triton", "tile_for"]
