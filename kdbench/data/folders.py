"""What a folder of images holds: splits, classes and files, and what of it is left out."""

from __future__ import annotations

import os
import re
import stat
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from unicodedata import normalize

from kdbench.data.images import endings, is_image
from kdbench.errors import Unreadable, UserError
from kdbench.text import some

SPLIT_OF = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}
"""What folders of splits are called, in small letters and without ``_set``, ``-images`` or the like behind it."""
LITTER = {"__macosx", "thumbs.db", "desktop.ini", "@eadir", "$recycle.bin", "system volume information"}
"""What systems put into people's folders, in small letters, beside what begins with a dot."""

SHOWN = 5
"""How many of many names stand in a sentence."""

Files = list[tuple[Path, int]]
"""Image files with their labels."""


@dataclass
class Folder:
    """A folder of images.

    Attributes:
        classes: their names, composed (NFC) and sorted: their order does not depend on the file system.
        files: ``train``, ``test`` and perhaps ``val``, or ``all`` where nothing is split.
        left_out: how much of what is not read.
        notes: what else a user should know.
    """

    classes: tuple[str, ...] = ()
    files: dict[str, Files] = field(default_factory=dict)
    left_out: Counter[str] = field(default_factory=Counter)
    notes: list[str] = field(default_factory=list)

    def digest(self) -> str:
        """64 hex digits for splits, classes and what the files hold; where they lie and their names have no part in it.

        Raises:
            UserError: a file cannot be read.
        """
        lines = [
            f"{split} {self.classes[label]} {digest_of(path)}"
            for split, files in self.files.items()
            for path, label in files
        ]
        return sha256("\n".join(sorted(lines)).encode()).hexdigest()


def scan(source: Path, tops: Collection[str] | None = None) -> Folder:
    """Find the images below `source`: ``SPLIT/CLASS/*`` or ``CLASS/*``, at any depth.

    What begins with a dot, litter of systems and files that are no images are left out, and counted.

    Args:
        tops: of the folders in `source` these alone are looked at, if they are given.

    Raises:
        UserError: it is no such folder, or part of it cannot be read.
    """
    if not is_folder(source):
        raise UserError(f"{source} is no folder: give --source a folder of images.")
    folder = Folder()
    there = folders_in(source, folder.left_out)
    if tops is not None:
        there = {name: path for name, path in there.items() if name in tops}
    splits = splits_in(source, there, folder.notes)
    if not splits:
        folder.classes = _classes(source, there)
        folder.files["all"] = _files(source, there, folder)
        inside = set.intersection(*(set(folders_in(path, Counter())) for path in there.values()))
        if len(inside) > 1:
            folder.notes.append(
                f"each of {listed(there)} is a class, though all of them hold folders {listed(inside)}: if those are "
                "the classes, call the folders above them train and test"
            )
        return folder
    found = {split: folders_in(splits[split], folder.left_out) for split in ("train", "test", "val") if split in splits}
    folder.classes = _classes(splits["train"], found["train"])
    for split, folders in found.items():
        folder.files[split] = _files(splits[split], folders, folder)
    for name, path in there.items():
        if path not in splits.values():
            if not found["train"].keys().isdisjoint(folders_in(path, Counter())):
                raise UserError(
                    f"{source} has {_shown(name)}/ with the same classes as train/, but that is the name of no split: "
                    "call it val or test, or move it away."
                )
            folder.left_out[f"folder {_shown(name)}/"] += 1
    return folder


def splits_in(source: Path, tops: dict[str, Path], notes: list[str]) -> dict[str, Path]:
    """The folder of each split, at least of ``train`` and ``test``; nothing where nothing is split.

    Args:
        notes: is told where a validation split alone is the test split.
    """
    splits: dict[str, Path] = {}
    for name, path in tops.items():
        split = split_of(name)
        if split in splits:
            raise UserError(f"{splits[split].name}/ and {name}/ in {source} are both the {split} split: merge them.")
        if split:
            splits[split] = path
    if splits and "train" not in splits:
        raise UserError(
            f"{source} has {listed(path.name for path in splits.values())} but no train/: add it, or, if these are "
            "classes, put all class folders into train/ and test/."
        )
    if len(splits) == 1:
        raise UserError(f"{source} has train/ but neither test/ nor val/: add one, laid out alike.")
    if splits and "test" not in splits:
        splits["test"] = splits.pop("val")
        notes.append(f"{splits['test'].name}/ is the test split, for there is no test/")
    return splits


def split_of(name: str) -> str | None:
    """The split that a folder is called after, if any."""
    return SPLIT_OF.get(re.sub(r"[\W_]*(set|split|data|images)$", "", name.casefold()))


def is_folder(path: Path) -> bool:
    try:
        return stat.S_ISDIR(path.stat().st_mode)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        raise Unreadable(path, error) from error


def entries(folder: Path, left_out: Counter[str]) -> list[Path]:
    """What lies in a folder, sorted; what is hidden and litter is left out."""
    try:
        names = sorted(os.listdir(folder))
    except OSError as error:
        raise Unreadable(folder, error) from error
    kept = []
    for name in names:
        if name.startswith("."):
            left_out["hidden"] += 1
        elif name.casefold() in LITTER:
            left_out[name] += 1
        else:
            kept.append(folder / name)
    return kept


def folders_in(folder: Path, left_out: Counter[str]) -> dict[str, Path]:
    """The folders in a folder, by their composed names; files beside them are left out."""
    found: dict[str, Path] = {}
    for path in entries(folder, left_out):
        if not is_folder(path):
            left_out[f"{_ending(path)} outside of class folders"] += 1
            continue
        name = normalize("NFC", path.name)
        if name in found:
            raise UserError(
                f"{folder} has two folders called {_shown(name)} ({found[name].name!a} and {path.name!a}): merge them."
            )
        try:
            name.encode()
        except UnicodeEncodeError:
            raise UserError(f"{folder} has a folder {name!a}, whose name is no UTF-8: rename it.") from None
        found[name] = path
    return found


def _classes(folder: Path, folders: dict[str, Path]) -> tuple[str, ...]:
    if len(folders) < 2:
        raise UserError(f"{folder} holds {len(folders)} class folders: at least two are needed, one folder per class.")
    return tuple(sorted(folders))


def _files(split: Path, folders: dict[str, Path], folder: Folder) -> Files:
    """Every image file below the class folders of a split, with its label."""
    differing = set(folder.classes).symmetric_difference(folders)
    if differing and not folders and any(is_image(path) for path in entries(split, Counter())):
        raise UserError(
            f"{split} holds images and no class folders: sort them into folders as in train/ (those of ImageNet's "
            "validation set torchvision.datasets.ImageNet(ROOT, split='val') sorts from the archives of its makers)."
        )
    if differing:
        raise UserError(f"{split} and train/ differ in the classes {first_of(sorted(differing))}: make them the same.")
    files: Files = []
    for label, name in enumerate(folder.classes):
        path = folders[name]
        files += [(image, label) for image in files_below(path, folder.left_out, holders_of(path))]
    empty = set(folder.classes) - {folder.classes[label] for _, label in files}
    if empty:
        raise UserError(f"{split} has no images of {listed(empty)}: add some ({', '.join(sorted(endings()))}).")
    return files


def files_below(
    folder: Path, left_out: Counter[str], holders: set[tuple[int, int]], wanted: Callable[[Path], bool] = is_image
) -> Iterator[Path]:
    """The image files below a folder. Links are followed, but not back to one of the folders that hold this one.

    Args:
        left_out: counts the others.
        holders: the folders that hold this one, see `holders_of`.
        wanted: which files are meant.
    """
    if _identity(folder) in holders:
        left_out["linked in a circle"] += 1
        return
    for path in entries(folder, left_out):
        try:
            mode = path.stat().st_mode
        except OSError:  # a link that leads nowhere, say: its reason is told with those of all broken files
            mode = stat.S_IFREG
        if stat.S_ISDIR(mode):
            yield from files_below(path, left_out, {*holders, _identity(folder)}, wanted)
        elif stat.S_ISREG(mode) and wanted(path):
            yield path
        else:
            left_out[_ending(path)] += 1


def holders_of(folder: Path) -> set[tuple[int, int]]:
    """The folders that hold this one, however it is reached."""
    return {_identity(parent) for parent in (*folder.parents, *folder.resolve().parents)}


def _identity(folder: Path) -> tuple[int, int]:
    try:
        found = folder.stat()
    except OSError as error:
        raise Unreadable(folder, error) from error
    return found.st_dev, found.st_ino


def _ending(path: Path) -> str:
    return _shown(path.suffix.lower()) or "without ending"


def digest_of(path: Path) -> str:
    try:
        return sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise Unreadable(path, error) from error


def first_of(names: Sequence[str]) -> str:
    return some([*map(_shown, names)], SHOWN)


def listed(names: Iterable[str]) -> str:
    return ", ".join(map(_shown, sorted(names)))


def _shown(name: str) -> str:
    """A name as it is, or escaped where one could not see or print what is in it."""
    return name if name.isprintable() and name == name.strip() else ascii(name)
