"""Files that carry a checksum of themselves, and say which store they are of.

A JSON file has two keys more than its content, `store` and `checksum`; a Parquet file has them in its metadata. The
checksum is the CRC-32C of the file as it is with eight zeros in the checksum's place. The root group's attributes carry
that of our attributes among them instead: zarr writes that file anew when it makes a copy.
Stores of 0.1.0 have no checksums; their files are taken as they are.
"""

import hashlib
import io
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

import google_crc32c
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from voxstrata.base.errors import InputError
from voxstrata.base.opening import parse_json
from voxstrata.encoders.card import ModelCard
from voxstrata.store.files import GROUP_ROWS, Files, root_attributes
from voxstrata.store.spec import StoreSpec

CHECKSUM, _STORE = "checksum", "store"
_SEALED = (CHECKSUM, _STORE)
ROOT_CHECKSUM = "voxstrata_checksum"  # in the attributes of the root group
_BLANK = b"crc32c:00000000"
_SEAL = re.compile(rb"crc32c:[0-9a-f]{8}")
_SUMMED = ("voxstrata", "corpus_root", "coordinates")
REPAIR = "run `voxstrata verify STORE --repair`, then the same extraction, or get another copy"


def checksum(data: bytes) -> str:
    """The CRC-32C of bytes, as it is written."""
    return f"crc32c:{google_crc32c.value(data):08x}"


def identity(about: Mapping[str, Any], fingerprint: str | None = None) -> str | None:
    """What the files of a store have in common: 16 digits for its model and its plan; None where it has no checksums.

    about: what the store says of itself. fingerprint: of a plan that was appended; its units' markers have their own.
    """
    if not about.get("checksums"):
        return None
    card, spec = ModelCard.from_dict(about["model"]), StoreSpec.from_dict(about["spec"])
    what = [fingerprint or about["plan"], card.format, card.identity(spec.context)]
    return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:16]


def identity_of(files: Files) -> str | None:
    """`identity` of the store that lies there. Raises InputError where what it says of itself is damaged."""
    return identity(about_store(files))


def with_checksum(attributes: Mapping[str, Any]) -> dict[str, Any]:
    """Attributes of a root group with the checksum of ours among them."""
    ours = {key: attributes[key] for key in _SUMMED if key in attributes}
    return {**attributes, ROOT_CHECKSUM: checksum(json.dumps(ours, sort_keys=True).encode())}


def about_store(files: Files) -> dict[str, Any]:
    """What a store says of itself. Raises InputError where that is damaged, or there is none."""
    attributes = root_attributes(files)
    about = attributes.get("voxstrata")
    if not isinstance(about, dict):
        raise InputError(f"{files.root}: not a voxstrata store; `voxstrata extract` makes one")
    if (about.get("checksums") or ROOT_CHECKSUM in attributes) and with_checksum(attributes) != attributes:
        raise InputError(
            f"{files.root}: zarr.json: damaged or changed, the checksum of its attributes is wrong; {REPAIR}"
        )
    return about


def json_bytes(content: Mapping[str, Any], store: str | None) -> bytes:
    """A JSON file of a store."""
    whole = {**content, **({} if store is None else {_STORE: store}), CHECKSUM: _BLANK.decode()}
    return _sealed(json.dumps(whole).encode())


def table_bytes(table: pa.Table, store: str | None) -> bytes:
    """A Parquet file of a store, in groups of rows that can be read by themselves."""
    # a table that was read may have them in its schema, too
    known = {key: value for key, value in (table.schema.metadata or {}).items() if key.decode() not in _SEALED}
    table = table.replace_schema_metadata(known or None)
    buffer = io.BytesIO()
    with pq.ParquetWriter(buffer, table.schema, compression="zstd", write_page_checksum=True) as writer:
        # in one piece: where a column's pieces end must not decide the bytes
        writer.write_table(table.combine_chunks(), row_group_size=GROUP_ROWS)
        # not in the schema, which a table keeps that is read and written again
        writer.add_key_value_metadata({**({} if store is None else {_STORE: store}), CHECKSUM: _BLANK.decode()})
    return _sealed(buffer.getvalue())


def read_json(files: Files, name: str, store: str | None = None) -> dict[str, Any]:
    """What a JSON file of a store says. Raises InputError for one that is missing, damaged, or of another store.

    store: the `identity` that it must have; None takes any, and a file without checksum.
    """
    data = _read(files, name, store)
    try:
        content = parse_json(data)
    except (ValueError, RecursionError) as e:
        raise damaged(files, name, f"no JSON ({type(e).__name__})") from None
    if not isinstance(content, dict):
        raise damaged(files, name, "no JSON object")
    _refuse_stranger(files, name, content.pop(_STORE, None), store)
    content.pop(CHECKSUM, None)
    return content


def checked_table(
    files: Files,
    name: str,
    store: str | None = None,
    columns: Sequence[str] | None = None,
    *,
    pages: bool = False,
    dictionaries: Sequence[str] = (),
) -> pa.Table:
    """A Parquet file of a store, with its metadata. Raises InputError as `read_json` does.

    columns: those that are wanted; by default all. From an object store these alone are fetched, each page with a
    checksum of its own; so it is on a local disk with `pages`, where the file was read whole before. dictionaries:
    columns of strings that repeat, which are given as such.
    """
    part = columns is not None and store is not None and (pages or files.local is None)
    try:
        source = files.open(name) if part else pa.BufferReader(_read(files, name, store))
        with (
            source as data,
            pq.ParquetFile(data, page_checksum_verification=part, read_dictionary=list(dictionaries)) as file,
        ):
            known = file.metadata.metadata or {}
            table = file.read(None if columns is None else list(columns))
    except FileNotFoundError:
        raise damaged(files, name, "missing") from None
    except (pa.ArrowException, OSError, ValueError) as e:
        raise damaged(files, name, f"not readable as Parquet ({e})") from None
    _refuse_stranger(files, name, (known.get(_STORE.encode()) or b"").decode() or None, store)
    # written again it gets its own
    kept = {k: v for k, v in (table.schema.metadata or {}).items() if k.decode() not in (_STORE, CHECKSUM)}
    return table.replace_schema_metadata(kept or None)


def _read(files: Files, name: str, store: str | None) -> bytes:
    """A file's bytes, of which the checksum is right."""
    try:
        data = files.read(name)
    except FileNotFoundError:
        raise damaged(files, name, "missing") from None
    seal = _SEAL.match(data, max(0, data.rfind(_BLANK[:7])))
    if seal is None and store is not None:
        raise damaged(files, name, "damaged, or changed by other software: it has no checksum")
    if seal is not None and _checksum_without(data, seal) != seal.group().decode():
        raise damaged(files, name, "damaged or changed, its checksum is wrong")
    return data


def _refuse_stranger(files: Files, name: str, found: str | None, store: str | None) -> None:
    if store is not None and found != store:
        raise damaged(files, name, "of another store")


def damaged(files: Files, name: str, what: str) -> InputError:
    """What to raise for a file of a store."""
    return InputError(f"{files.root}: {name}: {what}; {REPAIR}")


def _sealed(data: bytes) -> bytes:
    at = data.rindex(_BLANK)
    return data[:at] + checksum(data).encode() + data[at + len(_BLANK) :]


def _checksum_without(data: bytes, seal: re.Match[bytes]) -> str:
    """The checksum of a file with zeros for its seal, without a copy of it."""
    pieces = np.frombuffer(data, np.uint8)
    found = google_crc32c.value(pieces[: seal.start()])
    for piece in (_BLANK, pieces[seal.end() :]):
        found = google_crc32c.extend(found, piece)
    return f"crc32c:{found:08x}"
