"""What a comparison left in its folder, read back."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from voxstrata.base.errors import InputError, UnreachableError
from voxstrata.base.opening import parse_json
from voxstrata.base.recognised import mistaken
from voxstrata.retrieval.tileplan import settings_sha256
from voxstrata.store.checked import checked_table, read_json
from voxstrata.store.files import Files

PLAN_FILE, TOP_FILE, ROWS_FILE, COLUMNS_FILE = "plan.json", "top.parquet", "rows.parquet", "columns.parquet"
TILE_ROWS, DONE_FILE = "units", "done.json"  # a folder for each tile row, and its commit marker
CANDIDATES_FILE, MISSES_FILE = "candidates.npz", "candidates.json"
ABOUT = "voxstrata_similarity"  # in tables' metadata and zarr's attributes: of which plan
COMPARE_AGAIN = "remove the folder and run `voxstrata similarity` again"
_AGAIN = "run `voxstrata similarity` again, which makes it anew"


@dataclass(frozen=True)
class FoundSimilarity:
    """What a finished comparison left in its folder.

    plan: all that decided it. x, y: the utterances of both sides, by position (y as x when a set is compared with
    itself); columns id, language, group, frames. top: the best candidates of every query.
    misses: what the candidates hold of exact search, by direction; None where all pairs were compared.
    """

    plan: dict[str, Any]
    x: pa.Table
    y: pa.Table
    top: pa.Table
    misses: dict[str, Any] | None

    files = (TOP_FILE, PLAN_FILE, ROWS_FILE, COLUMNS_FILE, CANDIDATES_FILE, MISSES_FILE)

    @property
    def settings(self) -> dict[str, Any]:
        """The plan without its tiles, and of the second set only what differs from the first."""
        return {
            name: value
            for name, value in self.plan.items()
            if not name.endswith("_begin") and not (name.startswith("y ") and value == self.plan.get(f"x {name[2:]}"))
        }

    @property
    def weights_sha256(self) -> str:
        """Of the encoder of the first set."""
        return str(self.plan["x model weights_sha256"])

    @property
    def itself(self) -> bool:
        """Whether a set was compared with itself."""
        return bool(self.plan["one set with itself"])


def is_similarity(folder: str | Path) -> bool:
    """Whether a folder was made by `similarity`, finished or not."""
    files = Files(folder)
    return files.exists(PLAN_FILE) and files.exists(ROWS_FILE)


def similarity_folders(folder: str | Path) -> list[str]:
    """The folder, where `similarity` made it; those in it, one for each output; none where it is neither."""
    if is_similarity(folder):
        return [str(folder)]
    return [str(path) for path in sorted(Path(folder).glob("*/")) if is_similarity(path)]


def read_similarity(folder: str | Path) -> FoundSimilarity:
    """What `similarity` left in a folder. Raises InputError where it is unfinished, damaged, or mixed with another."""
    files = Files(folder)
    if not is_similarity(folder):
        what, none = "a folder of `voxstrata similarity`", "holds no result of `voxstrata similarity`"
        raise InputError(mistaken(folder, what, "name the folder that it filled", none))
    if not files.exists(TOP_FILE):
        raise InputError(f"{folder}: `voxstrata similarity` has not finished here; run it again, it will resume")
    try:
        plan = read_tile_plan(files)
        of = str(plan["fingerprint"])
        x = read_result(files, ROWS_FILE, of)
        y = x if plan["one set with itself"] else read_result(files, COLUMNS_FILE, of)
        misses = read_result(files, MISSES_FILE, of) if plan["candidates"] else None
        return FoundSimilarity(plan, x, y, read_result(files, TOP_FILE, of), misses)
    except OSError as e:
        raise InputError(f"{folder}: cannot be read ({e}); mend it, or run `voxstrata similarity` again") from e


def rows_done(folder: str | Path) -> tuple[int, int]:
    """How many tile rows of a comparison are committed, and of how many; (0, 0) where none was begun."""
    files = Files(folder)
    if not files.exists(PLAN_FILE):
        return 0, 0
    done = sum(files.exists(f"{TILE_ROWS}/{row}/{DONE_FILE}") for row in files.names(TILE_ROWS))
    return done, len(read_tile_plan(files)["x_begin"]) - 1


def read_tile_plan(files: Files) -> dict[str, Any]:
    """The plan of a folder, "schema" and "fingerprint" beside it. Raises InputError where it is damaged."""
    where = f"{files.root}/{PLAN_FILE}"
    data = files.read(PLAN_FILE)
    try:
        plan = dict(parse_json(data))
        settings = {key: value for key, value in plan.items() if key not in ("schema", "fingerprint")}
        if plan["fingerprint"] != settings_sha256(settings):
            raise ValueError("its content is not what its fingerprint says")
    except (ValueError, TypeError, KeyError, RecursionError) as e:
        raise InputError(f"{where}: damaged ({e}); {COMPARE_AGAIN}") from e
    return plan


def read_result(files: Files, name: str, plan: str) -> Any:
    """A table, or the object of a JSON file, of a folder whose plan has this fingerprint.

    Those of 0.1.0 have no checksum, and do not say of which plan they are. Raises InputError where it is missing,
    damaged, or of another plan.
    """
    try:
        if name.endswith(".json"):
            return read_json(files, name)
        table = checked_table(files, name)
        about = (table.schema.metadata or {}).get(ABOUT.encode())
        of = plan if about is None else dict(parse_json(about)).get("plan")
    except UnreachableError:  # an outage: nothing is damaged
        raise
    except (InputError, ValueError, TypeError, RecursionError) as e:
        what = "damaged or changed" if files.exists(name) else "missing"
        raise InputError(f"{files.root}/{name}: {what}; {_AGAIN}") from e
    if of != plan:
        raise InputError(f"{files.root}/{name}: of another comparison than {PLAN_FILE}; {_AGAIN}")
    return table
