"""The data sets that there are: ``kdbench data list`` as a function. What makes and reads them is not imported."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from kdbench.data.about import ABOUT, About
from kdbench.data.arrays import MANIFEST, Arrays, is_name, read
from kdbench.data.kinds import KINDS
from kdbench.data.manifest import Manifest, is_streamed
from kdbench.data.manifest import read as read_manifest
from kdbench.errors import Unreadable, UserError
from kdbench.paths import conf_dir, data_root
from kdbench.shipped import config

FIRST = sorted({MANIFEST, *(f"train_{kind.inputs}.npy" for kind in KINDS.values())})
"""Of these, a folder of prepared data has one, or all of `WHOLE`."""
WHOLE = "images.npy", "labels.npy"


@dataclass(frozen=True)
class Row:
    """One data set, as ``kdbench data`` shows it.

    Attributes:
        status: ``embedded``, ``prepared``, ``already prepared``, ``verified`` (has the known content hash), ``intact``
            (has the hash that was prepared, if one was kept), ``missing``, ``corrupt``, ``unreadable`` (the system does
            not let us) or ``misnamed``.
        folder: where it lies or would lie; None for the embedded ones.
        shape: (H, W, C), of clips (T, H, W, C); None where images are streamed, each of its own size. This and the
            numbers of samples are None unless it is there.
        num_classes: 0 for tasks without classes.
        sha256: its content hash where it was computed (prepare, verify), else the known one (list), if any.
        note: the mend, where it is not well.
        told: what was assumed or left out when it was made, or cannot be known.
    """

    name: str
    status: str
    folder: Path | None
    shape: tuple[int, ...] | None = None
    num_classes: int | None = None
    n_train: int | None = None
    n_val: int | None = None
    n_test: int | None = None
    sha256: str | None = None
    note: str = ""
    told: tuple[str, ...] = ()
    task: str = "classification"
    licence: str = ""


def list_datasets(root: str | Path | None = None) -> list[Row]:
    """The data sets that have a configuration, then those that lie in `root` without one. Nothing is hashed.

    Raises:
        UserError: `root` may not be read.
    """
    root = data_root(root)
    files = (conf_dir() / "dataset").glob("*.yaml")
    names = sorted(path.stem for path in files if "_target_" not in config("dataset", path.stem))  # they need no folder
    return [_listed(name, root) for name in [*names, *sorted(_found(root).difference(names))]]


def _found(root: Path) -> set[str]:
    """The folders in `root` that hold a prepared data set, or that do not let us see whether they do."""
    try:
        names = os.listdir(root)
    except (FileNotFoundError, NotADirectoryError):
        return set()
    except OSError as error:
        raise Unreadable(root, error) from error

    def prepared(folder: Path) -> bool:
        if not os.access(folder, os.R_OK | os.X_OK):
            return True
        whole = all(os.path.exists(folder / file) for file in WHOLE)
        return whole or any(os.path.exists(folder / file) for file in FIRST)

    return {
        name for name in names if not name.endswith(".partial") and os.path.isdir(root / name) and prepared(root / name)
    }


def _listed(name: str, root: Path) -> Row:
    known, about = known_hash(name), ABOUT.get(name, About(""))
    if about.sizes:
        n_train, n_test, classes = about.sizes
        sizes = (classes, n_train, 0, n_test)
        return Row(name, "embedded", None, about.shape, *sizes, known, task=about.task, licence=about.licence)
    folder = root / name
    try:
        found = read_manifest(folder) if is_name(name) and is_streamed(name, root) else read(name, root)
    except UserError as error:
        if isinstance(error, Unreadable):
            status = "unreadable"
        elif not os.path.exists(folder):
            status = "missing"
        else:
            status = "corrupt" if is_name(name) else "misnamed"
        return Row(name, status, folder, sha256=known, note=str(error), task=about.task, licence=about.licence)
    return row_of(found, "prepared", known)


def known_hash(name: str) -> str | None:
    """The content hash in ``conf/dataset/NAME.yaml``, if there is one."""
    return config("dataset", name).get("sha256")


def row_of(arrays: Arrays | Manifest, status: str, sha256: str | None, *told: str) -> Row:
    """A data set that is there."""
    n_train, n_test, *n_val = (len(arrays.split(split)[1]) for split in arrays.splits)
    return Row(
        arrays.name,
        status,
        arrays.folder,
        _shape(arrays),
        len(arrays.classes),
        n_train,
        n_val[0] if n_val else 0,
        n_test,
        sha256,
        told=told,
        task=arrays.task,
        licence=ABOUT[arrays.name].licence if arrays.name in ABOUT else "",
    )


def _shape(arrays: Arrays | Manifest) -> tuple[int, ...] | None:
    """Of an image, or of a clip."""
    if isinstance(arrays, Manifest):
        return None
    height, width, channels = arrays.train_images.shape[1:]
    if arrays.task != "video":
        return height, width, channels
    return arrays.frames, height, width, channels // arrays.frames
