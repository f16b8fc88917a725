"""A column of strings as one chunk of a zarr array, encoded from Arrow: no Python object for each of millions.

Zarr's codec vlen-utf8 (zarr-extensions, codecs/vlen-utf8): the number of strings, then each string's bytes behind their
number, all numbers little-endian uint32; here followed by the codec crc32c's CRC-32C of all that.
"""

import google_crc32c
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc


def string_chunk(column: pa.ChunkedArray) -> list[memoryview | bytes]:
    """The file of a chunk that holds a column of strings, in pieces to be written one after the other."""
    parts: list[memoryview | bytes] = [len(column).to_bytes(4, "little")]
    for chunk in column.chunks:
        lengths = pc.binary_length(chunk).to_numpy().astype("<u4")
        numbers = pa.Array.from_buffers(pa.binary(4), len(chunk), [None, pa.py_buffer(lengths)])
        numbers, strings = numbers.cast(pa.large_binary()), chunk.cast(pa.large_binary())
        joined = pc.binary_join_element_wise(numbers, strings, pa.scalar(b"", pa.large_binary()))
        if len(joined):
            parts.append(memoryview(joined.buffers()[2]))
    checksum = 0
    for part in parts:
        checksum = google_crc32c.extend(checksum, np.frombuffer(part, np.uint8))
    return [*parts, checksum.to_bytes(4, "little")]
