"""The result store: a folder of records, one file each, written once."""

from __future__ import annotations

import hashlib
import os
import re
from collections import defaultdict
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from kdbench.errors import UserError
from kdbench.files import check_room, tracked_by_git, write_atomic, writing_to
from kdbench.paths import CHOOSE_RESULTS
from kdbench.results.record import Record, dump, parse

RECORD_BYTES = 4096
"""A record takes at least that: one of a few epochs on a few hundred test images."""


_FIND = "the column `cells` of each table's CSV has the ids, --results DIR names another store"


class RecordExistsError(UserError):
    """The cell already has a record; raised instead of overwriting it."""


def file_name(record: Record) -> str:
    """``METHOD-PAIR-DATASET-PROTOCOL-sSEED-ID.json``; the names are for people, the id is what counts."""
    cell = record.cell
    names = re.sub(r"[^A-Za-z0-9._-]+", "_", f"{cell.method}-{cell.pair}-{cell.dataset}-{cell.protocol}")
    return f"{names.lstrip('.')[:150]}-s{cell.seed}-{cell.id}.json"


class Store:
    """Records under ``root/records``. Any number of processes may write to one store at the same time."""

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)
        self.folder = self.root / "records"
        self.locks = self.root / ".locks"

    def write(self, record: Record, overwrite: bool = False) -> Path:
        """Store a record, whole or not at all, and return its path.

        Raises:
            RecordExistsError: the cell has a record and `overwrite` is false.
            UserError: the folder cannot be written or the disk is full.
        """
        path = self.folder / file_name(record)
        with writing_to(self.folder, CHOOSE_RESULTS):
            self.folder.mkdir(parents=True, exist_ok=True)
            others = [other for other in self._files(f"-{record.cell.id}.json") if other != path]
            if not overwrite and others:
                raise _exists(record, others[0])
            try:
                write_atomic(path, dump(record), overwrite)
            except FileExistsError:
                raise _exists(record, path) from None
            for other in others:
                other.unlink(missing_ok=True)
        return path

    def get(self, cell_id: str) -> Record | None:
        """The record of a cell, or None.

        Raises:
            UserError: its file is broken, edited, or not the only one.
        """
        if not re.fullmatch("[0-9a-f]{16}", cell_id):
            raise ValueError(f"{cell_id!r} is not a cell id")
        found = _read(self._files(f"-{cell_id}.json"))
        return found[0] if found else None

    def find(self, named: str) -> Path:
        """The file of a record by its cell's id, the unique beginning of one, the file's name or its path.

        Raises:
            UserError: there is none, or more than one.
        """
        if named.endswith(".json"):
            for path in (Path(named), self.folder / Path(named).name):
                if path.is_file():
                    return path
            raise UserError(f"there is no record {named}, nor one of that name in {self.folder}: {_FIND}.")
        if not re.fullmatch("[0-9a-f]{1,16}", named):
            raise UserError(f"'{named}' is no cell's id, which has 16 digits of 0-9 and a-f: {_FIND}.")
        found = [path for path in self._files(".json") if path.stem.rpartition("-")[2].startswith(named)]
        if not found:
            raise UserError(f"no cell in {self.folder} has an id that begins with {named}: {_FIND}.")
        if len(found) > 1:
            shown = ", ".join(path.stem for path in found[:3]) + (", ..." if len(found) > 3 else "")
            raise UserError(f"{named} is the beginning of {len(found)} cells' ids ({shown}): give more of its digits.")
        return found[0]

    @staticmethod
    def read(path: Path) -> Record:
        """The record in a file; raises `UserError` if it is broken, edited or misnamed."""
        return _read([path])[0]

    def check_replaceable(self, cell_ids: Sequence[str]) -> None:
        """Raises `UserError` if git tracks records of these cells: whoever cloned them has no other copy to compare."""
        mine = {cell_id: self._files(f"-{cell_id}.json") for cell_id in cell_ids}
        tracked = tracked_by_git([path for paths in mine.values() for path in paths])
        if tracked:
            names = ", ".join(path.name for path in tracked[:3]) + (", ..." if len(tracked) > 3 else "")
            what = f"{len(tracked)} records" if len(tracked) > 1 else "a record"
            raise UserError(
                f"force=true would replace {what} that git tracks in {self.folder} ({names}): name another store with "
                "paths.results=DIR, or say force=replace."
            )

    def fingerprint(self, cell_id: str) -> str | None:
        """Of whatever lies in the place of a cell's record, good or bad, by its bytes; None where nothing does."""
        contents = [path.read_bytes() for path in self._files(f"-{cell_id}.json")]
        return hashlib.sha256(b"".join(contents)).hexdigest() if contents else None

    def lock(self, cell_id: str) -> Path:
        """The file that whoever trains a cell for this store holds a lock on; git does not see it.

        Raises:
            UserError: the folder cannot be written.
        """
        with writing_to(self.root, CHOOSE_RESULTS):
            self.locks.mkdir(parents=True, exist_ok=True)
        if not (self.locks / ".gitignore").exists():
            with suppress(OSError):
                write_atomic(self.locks / ".gitignore", "*\n", overwrite=True)
        return self.locks / f"{cell_id}.lock"

    def load(self) -> list[Record]:
        """All records, in the order of their cells' names, seeds and ids, whatever the order on disk.

        Hidden files (and so whatever a killed process left behind) are passed over.

        Raises:
            UserError: a file is broken, foreign, edited, of another schema version, misnamed, or shares its cell with
                another; all such files are named.
        """
        return sorted(_read(self._files()), key=_order)

    def check_writable(self, records: int = 1) -> None:
        """Fail now rather than after hours of training; also removes what processes killed long ago left behind.

        Raises:
            UserError: so many records could not be written.
        """
        what = "the records" if records > 1 else "a record"
        check_room(self.folder, records * RECORD_BYTES, what, CHOOSE_RESULTS)

    def _files(self, suffix: str = "") -> list[Path]:
        try:
            names = sorted(os.listdir(self.folder))
        except FileNotFoundError:
            return []
        except OSError as error:
            raise UserError(
                f"Cannot read the store {self.folder} ({error.strerror}): name a folder that you may read."
            ) from error
        return [self.folder / name for name in names if name.endswith(suffix) and not name.startswith(".")]


def _order(record: Record) -> tuple[str | int, ...]:
    cell = record.cell
    return (cell.dataset, cell.pair, cell.protocol, cell.method, cell.seed, cell.id)


def _exists(record: Record, path: Path) -> RecordExistsError:
    return RecordExistsError(
        f"Cell {record.cell.id} ({record.cell.method}, seed {record.cell.seed}) already has the record {path}: "
        "run again with force=true if it is to be trained again."
    )


def _read(paths: list[Path]) -> list[Record]:
    problems: list[str] = []
    cells: dict[str, list[Path]] = defaultdict(list)
    records: list[Record] = []
    for path in paths:
        try:
            if path.suffix != ".json":
                raise ValueError("is not a kdbench record")
            record = parse(path.read_bytes())
            cells[record.cell.id].append(path)
            if path.name != file_name(record):
                raise ValueError(f"should be called {file_name(record)}")
        except OSError as error:
            problems.append(f"{path} cannot be read ({error.strerror})")
        except ValueError as error:
            problems.append(f"{path} {error}")
        else:
            records.append(record)
    problems += [
        f"cell {cell} has {len(claims)} records ({', '.join(map(str, claims))})"
        for cell, claims in cells.items()
        if len(claims) > 1
    ]
    if problems:
        raise UserError(
            f"The store has {len(problems)} bad file(s): {'; '.join(problems)}: "
            "restore each from git or move it out of the folder, and run its cell again."
        )
    return records
