"""Stores of several encoders beside each other: whose they are, and whether they are of one corpus."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from voxstrata.base.errors import InputError
from voxstrata.base.plain import counted
from voxstrata.encoders.family import Output
from voxstrata.encoders.outputs import depth_fraction
from voxstrata.store import EmbeddingStore
from voxstrata.store.several import refuse_different

_SAME_SECONDS = 0.1  # lengths from headers and from manifests differ by less


@dataclass(frozen=True, eq=False)
class StoredEncoder:
    """An encoder as a store holds its states. label: its name, which no other that it is compared with has."""

    label: str
    store: EmbeddingStore

    def depth(self, output: str) -> float:
        """From 0, the input of the first block, to 1, the end of the last."""
        return depth_fraction(output, self.store.model.layers)

    def apart(self, output: str) -> bool:
        """Whether an output is no block's own: `final` of an encoder that normalises, or adapts, behind its blocks.

        Such an encoder has the last block's states, too; in others these are `final`.
        """
        return output == "final" and f"layer_{self.store.model.layers:02d}" in self.store.model.family.names

    def declared(self, output: str) -> Output:
        return self.store.model.family.output(output)

    def about(self) -> dict[str, Any]:
        """What a reader must know to compare it with others, JSON-ready."""
        store, card = self.store, self.store.model
        found: dict[str, Any] = {"encoder": self.label, "family": card.family.name, "store": store.name}
        found |= {"checkpoint": card.checkpoint, "weights_sha256": card.weights_sha256}
        found |= {"layers": card.layers, "d_model": card.d_model, "norm": card.family.norm, "dtype": card.dtype}
        found |= {"row_seconds": store.row_seconds, "context": store.spec.context.mode, "outputs": list(store.outputs)}
        found |= {"prefix": list(card.family.prefix)}
        found |= {"apart": [name for name in store.outputs if self.apart(name)]}
        repeats = {name: self.declared(name).repeats for name in store.outputs}
        return found | {"repeats": {name: n for name, n in repeats.items() if n > 1}}


def name_encoders(stores: Sequence[EmbeddingStore]) -> list[StoredEncoder]:
    """Stores by the names of their checkpoints, and of the stores where two have one checkpoint."""
    names = [store.model.checkpoint for store in stores]
    for others in ([store.name for store in stores], [store.files.root for store in stores]):
        names = [
            name if names.count(name) == 1 else f"{store.model.checkpoint} ({other})"
            for name, store, other in zip(names, stores, others, strict=True)
        ]
    return [StoredEncoder(name, store) for name, store in zip(names, stores, strict=True)]


def differences(encoders: Sequence[StoredEncoder]) -> list[str]:
    """What a reader of their figures side by side must know, in sentences."""
    about = [encoder.about() for encoder in encoders]
    found = []
    steps = ["pooled" if a["row_seconds"] is None else f"{1000 * a['row_seconds']:g} ms" for a in about]
    if len(set(steps)) > 1:
        found.append(
            f"Rows differ in length: {_by_value(encoders, steps)}. The level of SeqSim depends on the number of "
            "rows, so levels of different encoders say nothing; recall is within one encoder."
        )
    contexts = [a["context"] for a in about]
    if len(set(contexts)) > 1:
        found.append(f"Contexts differ: {_by_value(encoders, contexts)}.")
    prefixes = [" ".join(a["prefix"]) or "none" for a in about]
    if len(set(prefixes)) > 1:
        found.append(f"Tokens before the speech differ: {_by_value(encoders, prefixes)}.")
    for encoder, a in zip(encoders, about, strict=True):
        for output, n in a["repeats"].items():
            found.append(f"{encoder.label} gives a state of {output} for every {n} rows; each stands {n} times.")
    return found


def _by_value(encoders: Sequence[StoredEncoder], values: Sequence[str]) -> str:
    """Who has which value: "20 ms (a, b), 80 ms (c)"."""
    who: dict[str, list[str]] = {}
    for encoder, value in zip(encoders, values, strict=True):
        who.setdefault(value, []).append(encoder.label)
    return ", ".join(f"{value} ({', '.join(names)})" for value, names in who.items())


def common_utterances(encoders: Sequence[StoredEncoder]) -> tuple[list[str], dict[str, int]]:
    """Ids that are done everywhere, sorted; and by label how many of an encoder's are not among them.

    Raises InputError where there is none, and where an id is not the same recording, language and group everywhere.
    """
    tables = [encoder.store.table(["id", "status", "language", "group", "seconds"]) for encoder in encoders]
    done = [table.filter(pc.equal(table["status"], "done")).drop(["status"]) for table in tables]
    ids = reduce(
        lambda held, table: held.filter(pc.is_in(held, table["id"].combine_chunks())),
        done[1:],
        done[0]["id"].combine_chunks(),
    )
    if not len(ids):
        own = done[0]["id"].combine_chunks()
        rest = zip(encoders[1:], done[1:], strict=True)
        apart = next((e for e, t in rest if not pc.any(pc.is_in(t["id"], own)).as_py()), None)
        x, y = encoders[0].store, (apart or encoders[1]).store
        if x.model.weights_sha256 == y.model.weights_sha256:
            refuse_different(x, y)  # parts of one corpus, it seems
        held = [x, y] if apart else [e.store for e in encoders]
        raise InputError(
            f"{' and '.join(store.files.root for store in held)} hold no utterance in common, and hold states of "
            "different encoders. These stand side by side on one corpus: extract one manifest with each"
        )
    first, *others = (table.filter(pc.is_in(table["id"], ids)).sort_by("id") for table in done)
    for encoder, table in zip(encoders[1:], others, strict=True):
        _refuse_other_recordings(encoders[0].store, encoder.store, first, table)
    left = {e.label: len(table) - len(ids) for e, table in zip(encoders, done, strict=True)}
    return first["id"].to_pylist(), {label: number for label, number in left.items() if number}


def _refuse_other_recordings(x: EmbeddingStore, y: EmbeddingStore, first: pa.Table, second: pa.Table) -> None:
    """Rows of the same ids in the same order."""
    for name in ("language", "group", "seconds"):
        if name == "seconds":
            lengths = (np.asarray(table[name].to_pylist(), np.float64) for table in (first, second))
            wrong = np.flatnonzero(np.abs(np.subtract(*lengths)) > _SAME_SECONDS)
        else:
            there, here = (pc.fill_null(table[name].cast(pa.string()), "") for table in (first, second))
            wrong = np.flatnonzero(pc.not_equal(there, here))
        if len(wrong):
            i = int(wrong[0])
            one, two = (table[name][i].as_py() for table in (first, second))
            raise InputError(
                f"{x.files.root} and {y.files.root} are not of one corpus: {name} of "
                f"{counted(len(wrong), 'utterance')} differs, e.g. of {first['id'][i].as_py()!r} it is {one!r} and "
                f"{two!r}; extract one corpus with each encoder, or mend the labels with `voxstrata relabel`"
            )
