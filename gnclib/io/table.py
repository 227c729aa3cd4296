"""Resumable tables of results: one row for each finished piece of work, in a file of JSON.

A file says what all of it is about (a set of images, a prior) and holds one table or several. A row has a *key*
(method, problem, image), the *settings* on which it depends (SHA-256 of weights, "code": the version of the method's
code), its *values*, and its *origin*: revision, machine, software. In the file, rows that share settings, origin and
the first part of their key form a group.

*Resuming.* :meth:`Table.fill` computes what is missing: rows whose key or settings are not those of the job. A row
of another revision counts. Where settings have changed, the old rows of that group go with the first new one.

*Processes.* A row is added under a lock and the file is replaced as a whole: a process that is killed at any moment
leaves every finished row, and several processes lose nothing of each other.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Annotated, Any, ClassVar

from filelock import FileLock
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict

from gnclib.io import files, provenance
from gnclib.io.reading import STRICT, check, read_json


def rounded(digits: int) -> Any:
    """The type of a float that is rounded to so many decimal places, for the columns of a :class:`Row`."""
    return Annotated[float, AfterValidator(lambda value: round(value, digits))]


def from_object(cls: type) -> Any:
    """The type of an instance of a class made by :func:`gnclib.io.settings`, which JSON has as an object."""
    return Annotated[cls, BeforeValidator(lambda value: cls(**value) if isinstance(value, dict) else value)]


class Record(BaseModel):
    """Base of what a file is about, and of rows: frozen, and as strict as all that is read."""

    model_config = ConfigDict(**STRICT, frozen=True)


class Origin(Record):
    """Where a row was computed: revision of the code, machine, versions of the software, and what else is known."""

    model_config = ConfigDict(extra="allow")

    revision: str
    machine: str
    software: str

    @classmethod
    def here(cls, device: str = "cpu", packages: Iterable[str] = ("torch",)) -> Origin:
        """The origin of rows that this process computes on `device` with these `packages`."""
        return cls(
            revision=provenance.revision(),
            machine=provenance.machine(device),
            software=provenance.software(*packages),
            OMP_NUM_THREADS=os.environ.get("OMP_NUM_THREADS", ""),
        )


class Row(Record):
    """A row of a table; a subclass declares its columns as fields, those that a group shares, and those that tell its
    rows apart.
    """

    by: ClassVar[tuple[str, ...]] = ()
    key: ClassVar[tuple[str, ...]] = ()
    settings: dict[str, Any]
    made: Origin

    @classmethod
    def columns(cls) -> list[str]:
        """The columns in which the rows of a group differ."""
        return [name for name in cls.model_fields if name not in (*Row.model_fields, *cls.by)]

    def at(self, names: Iterable[str]) -> tuple:
        """The values of these columns."""
        return tuple(getattr(self, name) for name in names)


@dataclass(frozen=True)
class Form:
    """A kind of files: its name in words, the model of what all of a file is about, the rows of each table.

    `shipped` is the file of that kind that comes with the package.
    """

    kind: str
    about: type[Record]
    tables: Mapping[str, type[Row]]
    shipped: Path | None = None

    def load(self, path: str | Path | None = None) -> Content:
        """The content of a file, by default of the one that comes with the package.

        Raises FileNotFoundError, or ValueError, which says why it is not of this form.
        """
        path = self.shipped if path is None else path
        found = read_json(path, self.kind, dict[str, Any])
        content = {name: files.decode(part) for name, part in found.items()}
        try:
            if content.keys() != (wanted := {"about", "columns", *self.tables}):
                raise ValueError(f"it must hold {', '.join(sorted(wanted))}")
            expected = {name: row.columns() for name, row in self.tables.items()}
            if content["columns"] != expected:
                raise ValueError(f"its columns must be {json.dumps(expected)}")
            about = check(content["about"], self.about, "about")
            rows = {name: _rows(content[name], row, name) for name, row in self.tables.items()}
            return Content(about, rows)
        except ValueError as error:
            raise ValueError(f"{path} is no {self.kind}: {error}") from None


@dataclass(frozen=True)
class Content:
    """The content of a file: what it is about, and the rows of each table."""

    about: Any
    rows: dict[str, list[Any]]


@dataclass(frozen=True)
class Job:
    """A row to be computed: the columns that are known beforehand, and what makes the others."""

    given: Mapping[str, Any]
    settings: Mapping[str, Any]  # on which the other columns depend, as JSON data
    compute: Callable[[], Mapping[str, Any]]  # pickled for other processes
    code: int = 1  # version of the method: raise it where a change of the code changes its results

    @property
    def depends(self) -> dict[str, Any]:
        """The settings as they are in the file, the version among them."""
        return files.encode({"code": self.code, **self.settings})


class Table:
    """The tables of one file, which the first row makes, to be filled; device and packages are for their origin."""

    def __init__(
        self,
        path: str | Path,
        form: Form,
        about: Record,
        device: str = "cpu",
        packages: Iterable[str] = ("torch",),
    ):
        self.path, self.form, self.about = Path(path), form, about
        self.origin = Origin.here(device, packages)  # of the rows that are added

    def read(self) -> Content:
        """The content of the file; no rows where there is no file. Raises ValueError if it is of another form or about
        something else.
        """
        if not self.path.is_file():
            return Content(self.about, {name: [] for name in self.form.tables})
        content = self.form.load(self.path)
        theirs, ours = (dict(_flat(about.model_dump())) for about in (content.about, self.about))
        for name in (name for name in ours if theirs[name] != ours[name]):
            raise ValueError(
                f"{self.path} cannot be continued: its {name} is {_short(theirs[name])}, not {_short(ours[name])};"
                " choose another --out"
            )
        return content

    def missing(self, name: str, jobs: Iterable[Job]) -> list[Job]:
        """Those of the jobs whose rows are not in the table `name`, or were made with other settings."""
        form = self.form.tables[name]
        known = {row.at((*form.by, *form.key)): row for row in self.read().rows[name]}

        def is_known(job: Job) -> bool:
            row = known.get(tuple(job.given[column] for column in (*form.by, *form.key)))
            return row and (row.at(job.given), row.settings) == (tuple(job.given.values()), job.depends)

        return [job for job in jobs if not is_known(job)]

    def add(self, name: str, *found: tuple[Job, Mapping[str, Any]]) -> list[Any]:
        """Add what was computed for jobs to the table `name`, all at once, and return the rows as they are in the file.

        They are rounded and have their origin, unless the values name another as "made". Raises ValueError as
        :meth:`read`, and for a row that does not fit its form.
        """
        form = self.form.tables[name]
        rows = [
            check({**job.given, "settings": job.depends, "made": self.origin, **values}, form)
            for job, values in found
        ]
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(self.path.with_name(f".{self.path.name}.lock")):
            content = self.read()
            for row in rows:
                kept = [old for old in content.rows[name] if not _replaces(row, old)]
                content.rows[name] = [*kept, row]
            files.write_text(self.path, dumps(content, self.form))
        return rows

    def fill(self, name: str, jobs: Iterable[Job], workers: int = 1) -> Iterator[Any]:
        """Compute the rows of `jobs` that are missing in the table `name`; yield each one when it is in the file.

        `workers` processes compute; with one, all happens in this process and in the order of the jobs. Raises
        ValueError as :meth:`add`, and RuntimeError if a worker process died.
        """
        if workers == 1:
            for job in jobs:
                if self.missing(name, [job]):  # another process may have added it meanwhile
                    yield from self.add(name, (job, job.compute()))
            return
        with ProcessPoolExecutor(workers, get_context("spawn")) as pool:
            futures = {pool.submit(job.compute): job for job in self.missing(name, jobs)}
            try:
                for future in as_completed(futures):
                    yield from self.add(name, (futures[future], future.result()))
            except BrokenProcessPool:
                raise RuntimeError(
                    f"a worker process died (out of memory?); what is finished is in {self.path}: start again to go on"
                ) from None
            finally:
                pool.shutdown(wait=False, cancel_futures=True)


def _flat(values: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Names and values, those of objects in objects as well."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value)
        else:
            yield name, value


def _replaces(new: Row, old: Row) -> bool:
    """Whether `old` goes when `new` comes: another row for the same key, or one that is out of date."""
    same = new.at(new.key) == old.at(new.key)
    return new.at(new.by) == old.at(new.by) and (same or new.settings != old.settings)


# the file ------------------------------------------------------------------------------------------------------------


class _Group(Record):
    """A group of rows in a file; its other names are the columns that the rows have in common."""

    model_config = ConfigDict(extra="allow")

    settings: dict[str, Any]
    made: Origin
    rows: list[list[Any]]


def _rows(groups: Any, form: type[Row], table: str) -> list[Row]:
    found: dict[tuple, Row] = {}
    for group in check(groups, list[_Group], table):
        if {*group.model_extra} != {*form.by}:
            raise ValueError(f"a group of {table} must name {', '.join(form.by) or 'nothing'}")
        for values in group.rows:
            if len(values) != len(form.columns()):
                raise ValueError(f"a row of {table} lacks values: {_short(values)}")
            columns = group.model_extra | dict(zip(form.columns(), values, strict=True))
            row = check(columns | {"settings": group.settings, "made": group.made}, form, table)
            name = row.at((*form.by, *form.key))
            if name in found:
                raise ValueError(f"the row of {', '.join(map(str, name))} occurs twice")
            found[name] = row
    return list(found.values())


def dumps(content: Content, form: Form) -> str:
    """The text of a file."""
    text: dict[str, Any] = {
        "about": content.about.model_dump(),
        "columns": {name: row.columns() for name, row in form.tables.items()},
    }
    for name, rows in content.rows.items():
        groups: dict[str, dict] = {}
        for row in rows:
            data = files.encode(row.model_dump())
            head = {column: data[column] for column in (*row.by, *Row.model_fields)}
            group = groups.setdefault(json.dumps(head), {**head, "rows": []})
            group["rows"].append([data[column] for column in row.columns()])
        text[name] = list(groups.values())
    return files.dumps(text)


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 80 else f"{text[:80]}..."


def markdown(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A table for readers, as markdown."""
    head = list(head)
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (head, ["---"] * len(head), *rows))
