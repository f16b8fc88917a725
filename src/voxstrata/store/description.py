"""What a store says of itself to readers that know nothing of this project: attributes, coordinates, README.md."""

import os
from pathlib import Path
from typing import Any

from voxstrata.encoders.card import ModelCard
from voxstrata.encoders.family import Output
from voxstrata.encoders.frames import SAMPLE_RATE
from voxstrata.store.spec import StoreSpec

README = "README.md"
# For xarray: which arrays along the utterances are coordinates; `utterance` is one by its name, its dimension's.
COORDINATES = {"coordinates": "start length status"}
ARRAY_MEANINGS = {
    "utterance": "id of each utterance, as in utterances.parquet",
    "start": "first row of each utterance in the arrays of the embeddings",
    "length": "number of rows of each utterance; rows of no utterance are zeros",
    "status": "0 pending, 1 done, 2 failed; while a run is going on or was cut short, 0 for what can be read already",
}


def output_attributes(output: str, card: ModelCard, spec: StoreSpec) -> dict[str, Any]:
    """What an array of embeddings holds, with its units, in words and numbers that JSON can hold."""
    own = card.family.output(output)
    model = {"model": card.checkpoint, "encoder_weights_sha256": card.weights_sha256}
    about = {"long_name": _meaning(own), "units": "1", "hidden_states_index": own.hidden_states, **model}
    if spec.pool:
        return about | {"cell_methods": "row: mean", "valid_rows": "row i of utterance i, where status[i] is 1"}
    seconds = spec.every * card.family.hop / SAMPLE_RATE
    return about | {
        "seconds_per_row": seconds,
        "rows_per_second": 1 / seconds,
        "frames_per_row": spec.every,
        "valid_rows": "start[i] to start[i] + length[i] - 1 of utterance i, where status[i] is 1; others are zeros",
    }


def _meaning(output: Output) -> str:
    """What an output is, in words."""
    if output.repeats == 1:
        return output.meaning
    return f"{output.meaning}; it has one state for {output.repeats} frames, which is there {output.repeats} times"


def corpus_root(root: Path | str, store: Path | None) -> str:
    """Where a corpus lies: its URL, or its path, relative to its store, or absolute where that is no local one."""
    if isinstance(root, str):
        return root
    real = os.path.realpath(root)
    return real if store is None else os.path.relpath(real, os.path.realpath(store))


def store_readme(card: ModelCard, spec: StoreSpec) -> str:
    """The text of README.md in a store: what lies there, and how to read it without this project."""
    array, last = f"{spec.group}/{spec.outputs[-1]}", spec.outputs[-1]
    rows = [card.family.output(o) for o in spec.outputs]
    index = ["–" if o.hidden_states is None else f"`[{o.hidden_states}]`" for o in rows]
    outputs = "\n".join(f"| `{o.name}` | {_meaning(o)} | {i} |" for o, i in zip(rows, index, strict=True))
    row = f"A row is {spec.every * card.family.hop * 1000 / SAMPLE_RATE:g} ms of speech."
    if spec.pool:
        row = "A row is an utterance: the mean over its frames."
    return f"""# Embeddings of speech

States of the encoder of `{card.checkpoint}` ({card.layers} layers, d = {card.d_model}), in a zarr v3 group.
`utterances.parquet` says whose they are: an utterance a row, with its language, text, and where its states lie.
Made by voxstrata.

## Read

In Python, in this folder, with `zarr` and `pyarrow`:

```python
import pyarrow.parquet as pq, zarr
done = [u for u in pq.read_table("utterances.parquet").to_pylist() if u["status"] == "done"]
first, count = done[0]["row_start"], done[0]["row_count"]
{last} = zarr.open_group(".", mode="r")["{array}"][first : first + count]
print(done[0]["id"], {last}.shape, {last}.dtype)
```

- `row_start`, `row_count`: in rows of the arrays. {row} Rows of no utterance are zeros.
- `status`: `done`; `failed`, then `failure` says why, and its rows are zeros; `pending` until the run that makes the
  store has come to its end.
- `path`: below the folder of the corpus. The attribute `corpus_root` in `zarr.json` says where that is, seen from here.

xarray opens the group with ids, `start`, `length` and `status` as coordinates.

## What each array is

`hidden_states` is which of the states that transformers gives equals it.

| `{spec.group}/…` | is | `hidden_states` |
|---|---|---|
{outputs}

The attributes of each array say the same; those of the group have the model, what was stored, and in which context.
"""
