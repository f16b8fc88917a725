"""Why two utterances match, as one result: figures by output, the maxima of every frame, the cosines, a picture."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from voxstrata.base.errors import InputError
from voxstrata.base.figures import Figure
from voxstrata.base.finding import Finding, SmallCurve
from voxstrata.base.opening import load_arrays, open_regular
from voxstrata.base.result import Result, metadata
from voxstrata.base.tables import TextTable
from voxstrata.studies.explain.figures import draw_matches
from voxstrata.studies.explain.matches import Match, SpokenUtterance

SAID = "voxstrata_explain_utterances"  # in the table's metadata: what is said in a and b
_COSINES = "explain.npz"
EXPLAIN_SCHEMA = pa.schema(
    [(name, pa.string()) for name in ("output", "a", "b")]
    + [(name, pa.float64()) for name in ("precision", "recall", "f1", "mean_cosine")]
    + [(name, pa.int64()) for name in ("frames_a", "frames_b", "rank", "candidates")]
    + [("best_id", pa.string()), ("best_f1", pa.float64())]
)


@dataclass(frozen=True, eq=False, repr=False)
class Explanation(Result):
    """Why utterance a matches utterance b.

    table: a row per output, columns as in EXPLAIN_SCHEMA: precision, recall, f1, mean_cosine of all frame pairs,
    frames_a, frames_b; rank of b for a among `candidates`, and the best of the others (`rank_among_others`), null where
    there are none.
    maxima: a row per output, utterance and frame: seconds (its middle), word, cosine (its largest), and where that is:
    best_id, best_frame, best_seconds, best_word. cosines: by output, (frames of a, frames of b) float32; empty where
    their file was removed from the folder.
    """

    table: pa.Table
    maxima: pa.Table
    cosines: Mapping[str, npt.NDArray[np.float32]] = field(default_factory=dict)

    command = "explain"
    question = "Why do two utterances match?"
    files: ClassVar = {"table": "explain.parquet", "maxima": "maxima.parquet"}
    beside = (_COSINES,)
    key = "voxstrata_explain"
    markdown = "explain.md"
    captions: ClassVar = {"explain": "How alike every frame of one is to every frame of the other, by layer"}
    brief = 2

    @property
    def _utterances(self) -> list[SpokenUtterance]:
        held = metadata(self.table, SAID) or {}
        return [SpokenUtterance.from_dict({"id": self.settings[side], **held.get(side, {})}) for side in ("a", "b")]

    @property
    def _of(self) -> str:
        """Of which encoder, in which context."""
        about: dict[str, Any] = self.store or {}
        return f"{about['model']['checkpoint']}, {about['spec']['context']['mode']}"

    @property
    def title(self) -> str:
        return f"Why {self.settings['a']} and {self.settings['b']} match: {self._of}"

    def finding(self) -> Finding:
        """By rank, or by what SeqSim is above any two frames: a high F1 alone may be what all speech shares."""
        rows = self.table.to_pylist()

        def standing(row: dict[str, Any]) -> tuple[float, float]:
            return -float(row.get("rank") or 0), float(row["f1"]) - float(row["mean_cosine"])

        best, a, b = max(rows, key=standing), self.settings["a"], self.settings["b"]
        ranked = best.get("rank") is not None
        where = f"{b} ranks {best['rank']} of {best['candidates']} for {a}" if ranked else f"{a} and {b}"
        answer = (
            f"{where} at {best['output']}{', the best of these outputs' if len(rows) > 1 else ''}: SeqSim is "
            f"{best['f1']:.3f}, where any two of their frames have a cosine of {best['mean_cosine']:.3f} on average."
        )
        names, value, any_two = ([row[n] for row in rows] for n in ("output", "f1", "mean_cosine"))
        curve = SmallCurve(
            "SeqSim", names, value, chance=any_two, chance_name="any two frames", best=rows.index(best), top=1
        )
        return Finding(answer, curve)

    def tables(self) -> list[TextTable]:
        names = ["output", "precision", "recall", "f1", "mean_cosine", "frames_a", "frames_b"]
        rows = self.table.select(names).to_pylist()
        lines = []
        for side, spoken in zip("ab", self._utterances, strict=True):
            frames = f"{rows[0][f'frames_{side}']} frames of {1000 * self.settings['row_seconds']:g} ms"
            said = f": {spoken.text}" if spoken.text else ""
            lines.append(f"{side} = {spoken.id} ({spoken.language or 'language unknown'}, {frames}){said}")
        lines.append(
            "precision: mean over the frames of a of the best cosine in b; recall: mean over the frames of b of the "
            "best in a; f1 = 2PR / (P + R), SeqSim. mean_cosine: of any frame of a with any of b, what speech shares "
            "whatever is said. One pair has no pool: what one F1 is worth shows among those of other pairs "
            "(`voxstrata retrieve`)."
        )
        if "ranked" in self.settings and not self._ranks():
            lines.append(self.settings["ranked"])
        cells = [[row[name] for name in names] for row in rows]
        return [
            TextTable("How well the frames of two utterances match", names, cells, "\n".join(lines)),
            *self._ranks(),
        ]

    def _ranks(self) -> list[TextTable]:
        """Nothing where there are no others, and of results that are older than this table."""
        rows = [row for row in self.table.to_pylist() if row.get("rank") is not None]
        if not rows:
            return []
        cells = [[r["output"], f"{r['rank']} of {r['candidates']}", r["f1"], r["best_id"], r["best_f1"]] for r in rows]
        best = {name: text for name, text in self.settings["best"].items() if text}
        note = "\n".join([self.settings["ranked"], *(f"{name}: {text}" for name, text in best.items())])
        title = f"Where {self.settings['b']} ranks for {self.settings['a']}, and the best of the others"
        return [TextTable(title, ["output", "rank of b", "its f1", "best other", "f1"], cells, note)]

    def figures(self) -> dict[str, Figure]:
        if not self.cosines:
            return {}
        matches = [Match(output, self.cosines[output]) for output in self.table["output"].to_pylist()]
        a, b = self._utterances
        return {"explain": draw_matches(matches, a, b, self.settings["row_seconds"], self.title)}

    def save(self, folder: str | Path) -> list[Path]:
        written, path = super().save(folder), Path(folder) / _COSINES
        arrays: dict[str, Any] = dict(self.cosines)
        np.savez(path, **arrays)
        return [*written, path]

    @classmethod
    def load(cls, folder: str | Path) -> Self:
        path = Path(folder) / _COSINES
        result = super().load(folder)
        return replace(result, cosines=_InFile(path)) if path.exists() else result


class _InFile(Mapping[str, npt.NDArray[np.float32]]):
    """Arrays of an .npz, each read when it is asked for."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __getitem__(self, name: str) -> npt.NDArray[np.float32]:
        return _held(self._path, (name,))[name]

    def __iter__(self) -> Iterator[str]:
        return iter(_held(self._path))

    def __len__(self) -> int:
        return len(list(iter(self)))  # list(self) would ask for the length


def _held(path: Path, names: tuple[str, ...] | None = None) -> dict[str, npt.NDArray[Any]]:
    try:
        with open_regular(path) as file:
            return load_arrays(file, names)
    except ValueError as e:
        raise InputError(f"{path}: damaged ({e}); run `voxstrata explain` again") from e
