"""Results: what a study found, in one form for Python, the command line and the report."""

import shutil
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any, ClassVar, Self

import pyarrow as pa
import pyarrow.parquet as pq

from voxstrata.base.errors import InputError
from voxstrata.base.figures import DPI, Figure, new_figure, save_figure
from voxstrata.base.finding import Finding
from voxstrata.base.folders import check_writable, make_writable
from voxstrata.base.opening import parse_json
from voxstrata.base.parquet import read_parquet_table
from voxstrata.base.plain import shown_as, wrapped
from voxstrata.base.recognised import refuse_mistaken, results_of
from voxstrata.base.tables import TextTable, markdown_text, terminal_width

_WIDTH = 80  # characters of a line of notes on a terminal
STORE = "voxstrata"  # in a table's metadata: the description of the store that it was made from


class Result(ABC):
    """What one study found. Subclasses are frozen dataclasses whose fields are Arrow tables, the first named `table`.

    What a subclass says of itself:

    command: which command makes it, such as "retrieve".
    question: that it answers, as a report heads it.
    files: of its tables, by field; the first is the file by which a folder with a saved result is known.
    large: fields whose tables stay in their file, since they may not fit into memory: the field is the file's path.
    earlier: by field, today's names of columns by those of earlier versions; the first is in tables of theirs alone.
    newer: fields whose file earlier versions did not write; without it the field has its default.
    beside: other files of such a folder.
    key: under which the tables' metadata hold the settings.
    markdown: the file of the text.
    captions: of its figures, by the name of their file without suffix.
    formats: in which figures are saved. brief: how many of its tables, the first ones, are shown in short.
    dpi: of figures that are saved as pixels.
    """

    command: ClassVar[str]
    question: ClassVar[str]
    files: ClassVar[Mapping[str, str]]
    large: ClassVar[Collection[str]] = ()
    earlier: ClassVar[Mapping[str, Mapping[str, str]]] = {}
    newer: ClassVar[Collection[str]] = ()
    beside: ClassVar[Collection[str]] = ()
    key: ClassVar[str]
    markdown: ClassVar[str]
    captions: ClassVar[Mapping[str, str]] = {}
    formats: ClassVar[Sequence[str]] = ("png", "pdf")
    brief: ClassVar[int] = 1
    dpi: ClassVar[int] = DPI

    table: pa.Table

    @property
    @abstractmethod
    def title(self) -> str:
        """What was measured on what, in a line."""

    @abstractmethod
    def tables(self) -> list[TextTable]:
        """Everything worth reading, in tables for people; the first is the answer in short."""

    def finding(self) -> Finding | None:
        """The answer to the question in short; None where there is none to give."""
        return None

    def stored(self) -> list[TextTable]:
        """What the report shows beside `tables()`: rows as they are stored, with whole values."""
        return []

    @abstractmethod
    def figures(self) -> dict[str, Figure]:
        """Pictures, by the names that `captions` has. Raises UsageError where matplotlib is missing."""

    @property
    def pictures(self) -> Mapping[str, str]:
        """Captions of the figures that this one has, which may be fewer than its kind can have."""
        return self.captions

    @property
    def settings(self) -> dict[str, Any]:
        """What decided the result, as it is stored in the table's metadata."""
        return metadata(self.table, self.key) or {}

    @property
    def failures(self) -> Mapping[str, str]:
        """Why recordings could not be read, by id."""
        return dict(self.settings.get("failures", {}))

    @property
    def store(self) -> dict[str, Any] | None:
        """The description of the store that it was made from; None where there was none."""
        return metadata(self.table, STORE)

    @property
    def stores(self) -> list[dict[str, Any]]:
        """The descriptions of all stores that it was made from."""
        return [] if self.store is None else [self.store]

    def to_markdown(self) -> str:
        """The title, the answer and all tables, as GitHub reads them."""
        parts, found = ["# " + markdown_text(" ".join(self.title.split("\n")))], self.finding()
        parts += [markdown_text(found.answer)] if found else []
        for table in self.tables():
            parts += ["## " + markdown_text(" ".join(table.title.split("\n"))), table.to_markdown()]
            parts += [markdown_text(table.note)] if table.note else []
        return "\n\n".join(parts) + "\n"

    def save(self, folder: str | Path) -> list[Path]:
        """Write tables, text and figures to a folder; returns their paths. What an earlier run left there is replaced.

        Raises InputError where the folder cannot be written, or holds something that is no result of this kind.
        """
        folder = Path(folder)
        self.refuse_foreign(folder)
        make_writable(folder)
        written = []
        for field, name in self.files.items():
            if field not in self.large:
                pq.write_table(getattr(self, field), folder / name)
            elif getattr(self, field).resolve() != (folder / name).resolve():
                shutil.copyfile(getattr(self, field), folder / name)
            written.append(folder / name)
        (folder / self.markdown).write_text(self.to_markdown(), encoding="utf-8")
        written.append(folder / self.markdown)
        figures = self.figures()
        for name, figure in figures.items():
            for suffix in self.formats:
                save_figure(figure, folder / f"{name}.{suffix}", self.dpi)
                written.append(folder / f"{name}.{suffix}")
        for name in self.captions.keys() - figures.keys():  # an earlier result's
            for suffix in self.formats:
                (folder / f"{name}.{suffix}").unlink(missing_ok=True)
        return written

    @classmethod
    def load(cls, folder: str | Path) -> Self:
        """What `save` wrote. Raises InputError where the folder holds no such result, or a damaged one."""
        folder = Path(folder)
        tables: dict[str, Any] = {
            field: folder / name
            if field in cls.large
            else renamed(read_parquet(folder / name, cls.command), cls.earlier.get(field, {}))
            for field, name in cls.files.items()
            if field not in cls.newer or (folder / name).exists()
        }
        if metadata(tables["table"], cls.key) is None:
            path = folder / cls.first_file()
            raise InputError(f"{path}: without the settings that `voxstrata {cls.command}` stores with its results")
        return cls(**tables)

    @classmethod
    def first_file(cls) -> str:
        """By which a folder with such a result is known."""
        return next(iter(cls.files.values()))

    @classmethod
    def is_saved_in(cls, folder: str | Path) -> bool:
        """Whether a folder holds such a result: its first file, with our settings. Raises InputError where damaged."""
        path = Path(folder) / cls.first_file()
        return path.exists() and metadata(read_parquet(path, cls.command, []), cls.key) is not None

    @classmethod
    def refuse_foreign(cls, folder: str | Path) -> None:
        """Refuse a folder that cannot be written or holds something else: before the work, not after. Makes none.

        Raises InputError; UsageError where matplotlib is missing and figures would be drawn.
        """
        folder = Path(folder)
        if cls.captions:
            new_figure(1, 1)
        check_writable(folder)
        if (
            folder.exists()
            and any(folder.iterdir())
            and not any((folder / name).exists() for name in (*cls.files.values(), *cls.beside))
        ):
            raise InputError(
                f"{folder}: exists and holds something else ({min(f.name for f in folder.iterdir())}), which is not "
                "overwritten; choose a new or empty folder"
            )

    @classmethod
    def refuse_earlier(cls, folder: str | Path, overwrite: bool) -> None:
        """Raise InputError where a folder holds an earlier result of this kind that may not be overwritten."""
        there = [name for name in (*cls.files.values(), cls.markdown) if (Path(folder) / name).exists()]
        if there and not overwrite:
            raise InputError(
                f"{folder}: holds an earlier result ({there[0]}); choose another folder, or --overwrite replaces it"
            )

    def __repr__(self) -> str:
        return shown_as(self, self.title)

    def __str__(self) -> str:
        """The title, the answer and the first tables, as the command line prints them."""
        width, found = terminal_width(), self.finding()
        parts = [wrapped(self.title, width)]
        parts += [wrapped(found.answer, min(width or _WIDTH, _WIDTH))] if found else []
        for table in self.tables()[: self.brief]:
            parts.append(f"{wrapped(table.title, width)}\n{table.to_text(width)}")
            parts += [wrapped(table.note, min(width or _WIDTH, _WIDTH))] if table.note else []
        return "\n\n".join(parts)

    def _repr_html_(self) -> str:
        found = self.finding()
        answer = f"<p>{escape(found.answer)}</p>\n" if found else ""
        return f"<h2>{escape(self.title)}</h2>\n{answer}" + "".join(t.to_html() for t in self.tables()[: self.brief])


def renamed(table: pa.Table, earlier: Mapping[str, str]) -> pa.Table:
    """A table with the names that its columns have now, see `Result.earlier`."""
    if next(iter(earlier), "") not in table.column_names:
        return table
    named = table.rename_columns([earlier.get(name, name) for name in table.column_names])
    return named.replace_schema_metadata(table.schema.metadata)  # which renaming drops


def metadata(table: pa.Table, key: str) -> dict[str, Any] | None:
    """What a table's metadata hold under `key`, from JSON; None where they do not."""
    found = (table.schema.metadata or {}).get(key.encode())
    return None if found is None else dict(parse_json(found))


def read_parquet(path: Path, command: str, columns: Sequence[str] | None = None) -> pa.Table:
    """A Parquet table that `voxstrata COMMAND` wrote, or some of its columns.

    Raises InputError when it is missing or damaged.
    """
    try:
        return read_parquet_table(path, columns)
    except (FileNotFoundError, NotADirectoryError):
        mend = f"`voxstrata {command}` writes it"
        refuse_mistaken(path.parent, f"a folder with {path.name}", mend, results_of(command))
        raise InputError(f"{path}: missing; {mend}") from None
    except (pa.ArrowException, OSError) as e:
        raise InputError(
            f"{path}: cannot be read as Parquet ({e}); run `voxstrata {command}` again, or remove the file"
        ) from e
