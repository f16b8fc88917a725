"""The same few recordings, kept in every way that packs them."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
import soundfile
from conftest import sound


class Spoken(NamedTuple):
    """A recording: `data` is the sound file."""

    name: str
    language: str
    text: str
    speaker: str
    suffix: str
    data: bytes


def speak() -> list[Spoken]:
    """Five recordings of two languages and three formats, each of a length of its own."""
    about = [
        ("a", "en", "One.", "s1", "wav"),
        ("b", "en", "Two, «2».", "s2", "flac"),
        ("c", "de", "Drei.", "s1", "ogg"),
        ("d", "de", "Vier", "s3", "wav"),
        ("e", "en", "Five", "s1", "wav"),
    ]
    return [Spoken(*fields, sound_file(0.3 + 0.21 * i, i, fields[-1])) for i, fields in enumerate(about)]


def sound_file(seconds: float, seed: int, suffix: str = "wav", rate: int = 16_000) -> bytes:
    file = io.BytesIO()
    subtype = {"wav": "FLOAT", "flac": "PCM_16", "ogg": "VORBIS"}[suffix]
    soundfile.write(file, sound(seconds, seed, rate), rate, format=suffix.upper(), subtype=subtype)
    return file.getvalue()


def unpacked(folder: Path, spoken: list[Spoken]) -> Path:
    """A manifest of the recordings as files."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for s in spoken:
        (folder / f"{s.name}.{s.suffix}").write_bytes(s.data)
        about = {"id": s.name, "path": f"{s.name}.{s.suffix}", "language": s.language, "text": s.text}
        lines.append(json.dumps({**about, "speaker": s.speaker}))
    (folder / "m.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return folder / "m.jsonl"


def parquet(path: Path, spoken: list[Spoken], rows: int = 2, **columns: pa.Array) -> Path:
    """As the hub serves Common Voice; `rows` in each row group. columns: instead of what stands there, or beside it."""
    audio = pa.array(
        [{"bytes": s.data, "path": f"{s.name}.{s.suffix}"} for s in spoken],
        pa.struct([("bytes", pa.binary()), ("path", pa.string())]),
    )
    table: dict[str, Any] = {
        "client_id": [s.speaker for s in spoken],
        "audio": audio,
        "sentence": [s.text for s in spoken],
        "locale": pa.array([["de", "en"].index(s.language) for s in spoken], pa.int64()),
        "up_votes": list(range(len(spoken))),
    }
    features = {
        "audio": {"sampling_rate": 16_000, "_type": "Audio"},
        "locale": {"names": ["de", "en"], "_type": "ClassLabel"},
    }
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(table | columns).replace_schema_metadata(metadata), path, row_group_size=rows)
    return path


def tar(path: Path, files: dict[str, bytes], form: int = tarfile.GNU_FORMAT) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=form) as opened:
        for name, data in files.items():
            about = tarfile.TarInfo(name)
            about.size = len(data)
            opened.addfile(about, io.BytesIO(data))
    return path


def samples_of(spoken: list[Spoken]) -> dict[str, bytes]:
    """The files of a WebDataset."""
    files: dict[str, bytes] = {}
    for s in spoken:
        files[f"{s.name}.{s.suffix}"] = s.data
        files[f"{s.name}.txt"] = (s.text + "\n").encode()
        files[f"{s.name}.json"] = json.dumps({"speaker": s.speaker, "language": s.language, "n": [1]}).encode()
    return files
