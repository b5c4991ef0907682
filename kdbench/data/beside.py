"""What a folder of images with masks or depth maps beside them holds.

Understood are, with SPLIT one of train, val and test (or other names for them) or left out:

* ``[SPLIT/]images/*`` with ``[SPLIT/]masks/*`` or ``[SPLIT/]depth/*``,
* ``images/SPLIT/*`` with ``masks/SPLIT/*`` or ``depth/SPLIT/*``,
* ``[SPLIT/]NAME.png`` with ``[SPLIT/]NAME_mask.png`` or ``[SPLIT/]NAME_depth.png``,
* ``SPLIT/*`` with ``SPLITannot/*``, masks, as SegNet's CamVid lies there.

An image and its map have the same name but for the ending (and folders below, if there are any). ``classes.txt`` beside
them names the classes of masks, one a line.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from unicodedata import normalize

from kdbench.data.folders import (
    digest_of,
    entries,
    files_below,
    folders_in,
    holders_of,
    is_folder,
    split_of,
    splits_in,
)
from kdbench.data.images import is_image
from kdbench.errors import Unreadable, UserError

MAPS = {"masks": "segmentation", "depth": "depth"}
"""Folders of maps, and the task that they are for."""
ENDINGS = {"masks": "_mask", "depth": "_depth"}
"""How the names of maps may end."""
NAMES = "classes.txt"


@dataclass
class Beside:
    """A folder of images with maps.

    Attributes:
        task: what the maps are for.
        classes: what ``classes.txt`` names, if there is one.
        files: image and map, for ``train``, ``test`` and perhaps ``val``, or ``all`` where nothing is split.
        left_out: how much of what is not read.
        notes: what else a user should know.
    """

    task: str
    classes: tuple[str, ...] = ()
    files: dict[str, list[tuple[Path, Path]]] = field(default_factory=dict)
    left_out: Counter[str] = field(default_factory=Counter)
    notes: list[str] = field(default_factory=list)

    def digest(self) -> str:
        """64 hex digits for splits, class names and what the files hold; their own names have no part in it.

        Raises:
            UserError: a file cannot be read.
        """
        pairs = (
            f"{split} {digest_of(image)} {digest_of(beside)}"
            for split, files in self.files.items()
            for image, beside in files
        )
        return sha256("\n".join([*self.classes, *sorted(pairs)]).encode()).hexdigest()


Place = tuple[str, Path, Path]
"""Which folder of maps it is (a key of `MAPS`), the folder of images, and that of maps."""


def scan_beside(source: Path) -> Beside | None:
    """Find images and their maps below `source`; None where it is no such folder.

    Raises:
        UserError: images without maps or maps without images, both kinds of maps, or what cannot be read.
    """
    if not is_folder(source):
        return None
    notes: list[str] = []
    places = _places(source, notes)
    if not places:
        return None
    kinds = {kind for kind, _, _ in places.values()}
    if len(kinds) > 1:
        raise UserError(f"{source} has masks and depth maps: keep one of them there, and prepare the other for itself.")
    folder = Beside(MAPS[kinds.pop()], notes=notes)
    if folder.task == "segmentation":
        folder.classes = _class_names(source / NAMES)
    for split, place in places.items():
        folder.files[split] = _matched(*place, folder.left_out)
    used = {path.name for place in places.values() for path in place[1:]}
    used |= {path.parent.name for place in places.values() for path in place[1:]}
    for name in folders_in(source, Counter()):
        if name not in used:
            folder.left_out[f"folder {name}/"] += 1
    return folder


def _places(source: Path, notes: list[str]) -> dict[str, Place]:
    """Where images and maps of each split lie; nothing where they do not lie as described above."""
    tops = folders_in(source, Counter())
    if place := _place(source, tops):
        kind, images, maps = place
        if images == maps:
            return {"all": place}
        splits = splits_in(images, folders_in(images, Counter()), notes)
        return {name: (kind, path, maps / path.name) for name, path in splits.items()} or {"all": place}
    splits = {name: path for name, path in tops.items() if split_of(name)}
    found = {name: _place(path, folders_in(path, Counter()), tops) for name, path in splits.items()}
    if not any(found.values()):
        return {}
    places: dict[str, Place] = {}
    for split, path in splits_in(source, splits, notes).items():
        here = found[path.name]
        if here is None:
            raise UserError(f"{path} has no maps beside its images, though another split has: add them.")
        places[split] = here
    return places


def _place(folder: Path, inside: dict[str, Path], beside: dict[str, Path] | None = None) -> Place | None:
    """Where the images and maps of one folder lie.

    Args:
        inside: the folders in it.
        beside: the folders in the one that holds it.
    """
    lower = {name.casefold(): path for name, path in inside.items()}
    kinds = [kind for kind in MAPS if kind in lower]
    if "images" in lower and len(kinds) == 2:
        raise UserError(f"{folder} has masks and depth maps: keep one of them there, and prepare the other for itself.")
    if "images" in lower and kinds:
        return kinds[0], lower["images"], lower[kinds[0]]
    if beside and f"{folder.name}annot" in beside:
        return "masks", folder, beside[f"{folder.name}annot"]
    names = {_key(path, folder) for path in entries(folder, Counter())}
    kinds = [kind for kind in MAPS if any(name + ENDINGS[kind] in names for name in names)]
    return (kinds[0], folder, folder) if kinds else None


def _matched(kind: str, images: Path, maps: Path, left_out: Counter[str]) -> list[tuple[Path, Path]]:
    """Every image with its map, by their names."""

    def wanted(path: Path) -> bool:
        return is_image(path) or (kind == "depth" and path.suffix.lower() == ".npy")

    if not is_folder(maps):
        raise UserError(f"there is no {maps} beside {images}: add it, with the maps of these images.")
    if images == maps:
        paths = [path for path in entries(images, left_out) if not is_folder(path) and wanted(path)]
        lying = {path: path for path in paths if _key(path, images).endswith(ENDINGS[kind])}
        found = _by_key((path for path in paths if path not in lying), images, "")
        targets = _by_key(lying, images, ENDINGS[kind])
    else:
        found = _by_key(files_below(images, left_out, holders_of(images)), images, "")
        targets = _by_key(files_below(maps, left_out, holders_of(maps), wanted), maps, ENDINGS[kind])
    word = "mask" if kind == "masks" else "depth map"
    for what, these, others in ((word, found, targets), ("image", targets, found)):
        lone = sorted(these.keys() - others.keys())
        if lone:
            raise UserError(
                f"{len(lone)} of {len(these)} files have no {what} of the same name, the first is {these[lone[0]]}: "
                "add what is missing, or move them away."
            )
    if not found:
        raise UserError(f"{images} has no images: add some.")
    return [(found[key], targets[key]) for key in sorted(found)]


def _by_key(paths: Iterable[Path], root: Path, ending: str) -> dict[str, Path]:
    """Files by their names below `root`, without `ending`."""
    found: dict[str, Path] = {}
    for path in paths:
        key = _key(path, root).removesuffix(ending)
        if key in found:
            raise UserError(f"{found[key]} and {path} have the same name: move one of them away.")
        found[key] = path
    return found


def _key(path: Path, root: Path) -> str:
    return normalize("NFC", path.relative_to(root).with_suffix("").as_posix())


def _class_names(path: Path) -> tuple[str, ...]:
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except FileNotFoundError:
        return ()
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is no UTF-8 text: save it as such.") from error
    except OSError as error:
        raise Unreadable(path, error) from error
    names = tuple(normalize("NFC", line.strip()) for line in lines if line.strip())
    if len(names) < 2 or len(set(names)) != len(names):
        raise UserError(f"{path} does not name two or more different classes, one a line: mend it or delete it.")
    return names
