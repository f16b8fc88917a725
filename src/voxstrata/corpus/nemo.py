"""NeMo manifests: JSON lines with the keys audio_filepath, duration, text, and others such as offset and lang.

As described in NVIDIA NeMo's documentation, "Preparing Custom ASR Data" (docs.nvidia.com/nemo-framework/user-guide,
ASR, datasets). Paths are absolute, or relative to the manifest's folder. A row without an offset is a whole recording.
"""

from pathlib import Path

from voxstrata.corpus.formats import Reading
from voxstrata.corpus.manifest import Names, read_manifest
from voxstrata.corpus.rows import table_header
from voxstrata.corpus.table import Corpus

_NAMES: Names = {
    "path": ("audio_filepath",),
    "language": ("lang", "source_lang"),
    "speaker": ("speaker", "speaker_id"),
    "id": ("id", "utt_id"),
}


def is_nemo(path: Path) -> bool:
    """Whether `path` is a table with a column audio_filepath."""
    return path.is_file() and "audio_filepath" in table_header(path)


def read_nemo(path: Path, reading: Reading) -> Corpus:
    """The recordings of a NeMo manifest. Raises what `read_manifest` raises."""
    return read_manifest(path, reading, names=_NAMES)
