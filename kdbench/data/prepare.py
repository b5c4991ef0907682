"""Making prepared data sets: ``kdbench data prepare | verify`` as functions that return data."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tarfile import TarError
from typing import Any
from urllib.error import URLError
from zipfile import BadZipFile

import numpy as np
from torchvision.datasets.utils import check_integrity

from kdbench.data import imagenet
from kdbench.data.about import ABOUT, how_to_get
from kdbench.data.arrays import (
    MANIFEST,
    Arrays,
    canonical_order,
    check,
    classes_hash,
    folder_of,
    holdout,
    load,
    paired,
    prepare_command,
    sample_digests,
)
from kdbench.data.beside import Beside, scan_beside
from kdbench.data.decode import decode, decode_beside, examine
from kdbench.data.embedded import EMBEDDED
from kdbench.data.folders import Folder, scan
from kdbench.data.images import Size
from kdbench.data.kinds import IGNORE, KINDS
from kdbench.data.listing import Row, known_hash, row_of
from kdbench.data.manifest import ImageFiles, Manifest, find, is_streamed
from kdbench.data.maps import check_depth, check_masks, classes_of
from kdbench.data.public import LOCAL, SOURCES, Local
from kdbench.data.workers import usable_cores
from kdbench.errors import Unreadable, UserError
from kdbench.paths import cache_dir, expanded

FOLDER, STREAMED = "folder", "streamed"
SIZE = 64
"""Side of the images of a folder, where none is asked for."""
READER = 2
"""Version of how image files and folders are read: 1 knew neither orientation, nor 16 bits, nor validation splits."""
WRITE_ERRORS = {
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.ENOTDIR,
    errno.EEXIST,
}
READ_ERRORS = {errno.EIO, errno.ESTALE, errno.EMFILE, errno.ENFILE, errno.ENOMEM}


def verify(name: str, root: str | Path | None = None) -> Row:
    """Read, check and hash a prepared data set, and what it is paired with.

    Raises:
        UserError: it is missing, corrupt, or differs from the known content hash or from what was prepared.
    """
    known = known_hash(name)
    arrays = find(name, root, known)
    if isinstance(arrays, Manifest):
        arrays.verify()
        return row_of(arrays, "verified" if known else "intact", arrays.content_hash)
    told = []
    if not known and arrays.folder and "sha256" not in arrays.prepared:
        told.append("no hash was kept when it was made: later changes are not seen")
    for other in arrays.pairs:
        try:
            partner = load(other, root)
        except UserError:
            told.append(f"its pairs with {other} are not checked: that is not here")
        else:
            paired(arrays, partner)
    return row_of(arrays, "verified" if known else "intact", arrays.content_hash, *told)


def prepare(
    kind: str,
    root: str | Path | None = None,
    source: str | Path | None = None,
    *,
    name: str | None = None,
    size: int | Size | None = None,
    stream: bool = False,
) -> Row:
    """Make the prepared data set `kind` under `root`; the same one that is there already is checked and left as it is.

    Args:
        kind: a public data set (downloaded by torchvision, or made of a copy at hand), or ``folder`` for a folder of
            images.
        root: see `kdbench.paths.data_root`.
        source: for ``folder``, the images: of classes, as ``train/CLASS/*`` with ``test/CLASS/*`` and perhaps
            ``val/CLASS/*`` (which alone is the test split), or as ``CLASS/*`` (a fifth of each class becomes the test
            split, chosen by content); or with masks or depth maps beside them, see `kdbench.data.beside`. For `LOCAL`
            and ImageNet, the copy at hand. Else the download folder, by default ``downloads`` in the cache folder,
            where archives that lie there are not downloaded again.
        name: for ``folder``, what to call the result (default ``folder``, or ``streamed``).
        size: for ``folder``, height and width (one number: both) that images are resized to cover, then centre-cropped.
            By default 64 for images of classes; those with maps beside them stay as large as they are.
        stream: for ``folder``, leave the images where they are, and write down what is known of them; see
            `kdbench.data.manifest`. ImageNet's always stay there.

    Raises:
        UserError: unknown kind, no network and no archive, unreadable images, nowhere to write, or what is there was
            made from other images or in another size.
    """
    if kind in EMBEDDED:
        return row_of(load(kind), "embedded", known_hash(kind))
    if isinstance(size, int):
        size = size, size
    if kind == FOLDER:
        name = name or (STREAMED if stream else FOLDER)
        if name in ABOUT:
            raise UserError(f"'{name}' is the name of a public data set: give the folder another --name.")
        if source is None:
            raise UserError("no images given: say where they are with --source DIR.")
        if stream and size is not None:
            raise UserError(
                "streamed images stay as large as they are: leave out --size, and give dataset.views.size to each run."
            )
        if size is not None and min(size) < 1:
            raise UserError(f"size={size[0]}x{size[1]} is no image size: give positive numbers of pixels.")
    elif kind not in ABOUT:
        raise UserError(f"unknown data set '{kind}': choose one of {', '.join([*ABOUT, FOLDER])}.")
    elif name is not None or size is not None or stream:
        raise UserError(f"name, size and stream are for a folder of images: leave them out for {kind}.")
    stream = stream or kind == imagenet.NAME
    final = folder_of(name or kind, root)
    images = expanded(source, "--source") if source else cache_dir() / "downloads"
    if os.path.exists(final):
        if stream or is_streamed(final.name, root):
            return _streamed_already(final, root, images, stream)
        arrays = load(final.name, root)
        if kind == FOLDER:
            _check_request(arrays, images, size)
        return row_of(arrays, "already prepared", arrays.content_hash)
    if kind != FOLDER and kind not in SOURCES and not ((kind in LOCAL or stream) and source):
        raise UserError(how_to_get(kind, final))

    with _writing(final.parent):
        final.parent.mkdir(parents=True, exist_ok=True)
    if stream:
        return _stream(images, final)
    told: list[str] = []
    made: dict[str, Any] = {}
    if kind in SOURCES:
        arrays = _fetch(kind, images)
    else:
        local = LOCAL.get(kind)
        folder = _scanned(images) if local is None else scan_beside(images)
        if folder is None:
            raise UserError(f"{images} is not laid out as {kind} is: {how_to_get(kind, final)}")
        size = local.size if local else size or _default(folder)
        arrays, told = _read_folder(folder, images, size, local)
        made = {"reader": READER, "size": size, "images": folder.digest()}
    arrays = replace(arrays, name=final.name, folder=final)
    check(arrays)
    known = known_hash(arrays.name)
    if known and arrays.content_hash != known:
        raise UserError(
            f"what was downloaded for {kind} has the content hash {arrays.content_hash}, not the known {known}: its "
            f"source has changed; set sha256 in conf/dataset/{kind}.yaml to null to accept it."
        )
    _write(arrays, final, made)
    return row_of(arrays, "prepared", arrays.content_hash, *told)


def _write(arrays: Arrays, final: Path, made: Mapping[str, Any]) -> None:
    """Write arrays into a new folder.

    Args:
        made: what the data were made of, for ``meta.json``.
    """
    kind = arrays.kind
    classes = {"classes": list(arrays.classes)} if kind.named else {}
    with _new_folder(final, {**arrays.meta, **classes, "prepared": {**_hashes(arrays), **made}}) as partial:
        for split in arrays.splits:
            images, labels = arrays.split(split)
            np.save(partial / f"{split}_{kind.inputs}.npy", images)
            np.save(partial / f"{split}_{kind.targets}.npy", labels)


def _hashes(data: Arrays | Manifest) -> dict[str, str]:
    return {"sha256": data.content_hash, "classes_sha256": classes_hash(data.classes)}


@contextmanager
def _new_folder(final: Path, meta: Mapping[str, Any]) -> Iterator[Path]:
    """``NAME.partial`` to write into, which is renamed at the end: a folder without that ending is complete."""
    partial = final.with_name(final.name + ".partial")
    with _writing(final.parent):
        shutil.rmtree(partial, ignore_errors=True)
        try:
            partial.mkdir()
            yield partial
            (partial / "meta.json").write_text(json.dumps(meta, indent=1) + "\n", encoding="utf-8")
            partial.rename(final)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise _unwritable(folder, error) from error


def _unwritable(folder: Path, error: OSError) -> UserError:
    why = error.strerror or error
    return UserError(f"cannot write to {folder} ({why}): free some space there, or choose another folder.")


def _tell_of_the_disk(error: OSError, folder: Path) -> None:
    """Raise what became of reading from or writing to `folder`, if that is what went wrong."""
    file = error.filename
    if error.errno in READ_ERRORS or (isinstance(file, str) and os.path.exists(file) and not os.access(file, os.R_OK)):
        raise Unreadable(file or folder, error) from error
    if error.errno in WRITE_ERRORS:
        raise _unwritable(folder, error) from error


def _sound(path: Path, md5: str) -> bool:
    try:
        return check_integrity(path, md5)
    except OSError as error:
        raise Unreadable(path, error) from error


# --- public data sets -------------------------------------------------------------------------------------------------


def _fetch(kind: str, downloads: Path) -> Arrays:
    source = SOURCES[kind]
    try:
        downloads.mkdir(parents=True, exist_ok=True)
        return source.read(downloads)
    except (RuntimeError, OSError, ValueError, EOFError, LookupError, AssertionError, TarError, BadZipFile) as error:
        if isinstance(error, OSError) and not isinstance(error, URLError):
            _tell_of_the_disk(error, downloads)
        lacking = [a for a in source.archives() if not _sound(downloads / a.path, a.md5)]
        reason = " ".join(str(error).split()) or type(error).__name__
        if not lacking:
            raise UserError(
                f"what was unpacked from the archives of {kind} in {downloads} cannot be read ({reason}): delete "
                f"everything there but the archives and run {prepare_command(kind)} again."
            ) from error
        files = ", ".join(f"{downloads / a.path} (md5 {a.md5}, from {a.url})" for a in lacking)
        raise UserError(
            f"{kind} could not be downloaded ({reason}): without network, put {files} there by hand and run "
            f"{prepare_command(kind)} again."
        ) from error


# --- folders of images ------------------------------------------------------------------------------------------------


def _scanned(source: Path) -> Folder | Beside:
    return scan_beside(source) or scan(source)


def _default(folder: Folder | Beside) -> Size | None:
    """The size of images where none is asked for; None: their own."""
    return None if isinstance(folder, Beside) else (SIZE, SIZE)


def _check_request(arrays: Arrays, source: Path, size: Size | None) -> None:
    """Whether a prepared folder is what the images in `source` give.

    Raises:
        UserError: it has another size, or was made from other images.
    """
    anew = f"give another --name, or delete {arrays.folder} to make it anew"
    folder = _scanned(source)
    size = size or _default(folder)
    height, width = there = arrays.train_images.shape[1:3]
    if size != there and not (size is None and arrays.prepared.get("size") is None):
        asked = "their own size" if size is None else "x".join(map(str, size))
        same = height if height == width else f"{height}x{width}"
        raise UserError(f"{arrays.folder} has images of {height}x{width}, not {asked}: give --size {same}, or {anew}.")
    if arrays.prepared.get("reader") == READER:
        if folder.digest() != arrays.prepared.get("images"):
            raise UserError(f"{arrays.folder} was made from other images than {source} has: {anew}.")
        return
    today = _read_folder(folder, source, size)[0]
    if (today.content_hash, today.classes) != (arrays.content_hash, arrays.classes):
        raise UserError(
            f"{arrays.folder} was made from other images than {source} has, or by an older kdbench, which read some "
            f"otherwise: {anew}."
        )


def _read_folder(
    folder: Folder | Beside, source: Path, size: Size | None, local: Local | None = None
) -> tuple[Arrays, list[str]]:
    """The data set that a folder of images gives, and what a user should know of it."""
    counts: Counter[str] = Counter()
    told = list(folder.notes)
    meta: dict[str, Any] = {}
    if isinstance(folder, Beside):
        task, classes = folder.task, folder.classes
        parts = decode_beside(task, folder.files, size, counts)
        if task == "segmentation":
            classes, ignore = (local.classes, local.ignore) if local else (folder.classes, IGNORE)
            if not classes:
                classes = classes_of(folder, parts, told)
            check_masks(folder, parts, len(classes), ignore)
            meta = {"ignore_index": ignore}
        else:
            check_depth(folder, parts)
    else:
        task, classes = "classification", folder.classes
        parts = decode(folder.files, size or (SIZE, SIZE), counts)
    labelled = KINDS[task].classes
    if "all" in parts:
        images, labels = parts["all"]
        order = canonical_order(sample_digests(images, labels))
        images, labels = images[order], labels[order]
        held = holdout(labels if labelled else np.zeros(len(labels), dtype=np.int64), round(len(labels) / 5))
        if not held.any():
            raise UserError(f"{source} has {len(labels)} images: give 3 or more, of which some become the test split.")
        parts = {"train": (images[~held], labels[~held]), "test": (images[held], labels[held])}
    shown = "own size" if size is None else f"resized to cover {size[0]}x{size[1]}, centre crop"
    text = local.source if local else f"images of {source.resolve().name}, {shown}"
    arrays = Arrays("", *parts["train"], *parts["test"], classes, {**meta, "source": text}, task=task)
    if "val" in parts:
        arrays = replace(arrays, val_images=parts["val"][0], val_labels=parts["val"][1])
    told += [*(f"{n} images {what}" for what, n in sorted(counts.items())), *_repeated(arrays)]
    if folder.left_out:
        told.append(_left_out(folder))
    return arrays, told


def _stream(source: Path, final: Path) -> Row:
    """Write down what is known of a folder of labelled images."""
    folder = _labelled(source, final.name)
    counts: Counter[str] = Counter()
    n = sum(map(len, folder.files.values()))
    # below some hundred files, processes cost more than they save
    found = examine(folder.files, counts, workers=usable_cores() if n >= 256 else 0)
    where = source.resolve()
    files, labels = {}, {}
    for split, images in folder.files.items():
        paths = [path.relative_to(source).as_posix() for path, _ in images]
        files[split] = ImageFiles.of(where, final, paths, found[split])
        labels[split] = np.array([label for _, label in images], dtype=np.int64)
    if "all" in files:
        whole, targets = files["all"], labels["all"]
        order = canonical_order(whole.sample_digests(targets))
        held = holdout(targets[order], round(len(targets) / 5))
        if not held.any():
            raise UserError(f"{source} has {len(targets)} images: give 3 or more, of which some become the test split.")
        parts = {"train": order[~held], "test": order[held]}
        files = {split: whole[index] for split, index in parts.items()}
        labels = {split: targets[index] for split, index in parts.items()}
    text = f"images of {where.name}, streamed"
    manifest = Manifest(final.name, files, labels, folder.classes, {}, final)
    meta = {"classes": list(folder.classes), "source": text, "images": str(where), "prepared": _hashes(manifest)}
    with (
        _new_folder(final, meta) as partial,
        (partial / MANIFEST).open("w", encoding="utf-8", errors="surrogateescape", newline="") as file,
    ):
        manifest.write(file)
    told = [*folder.notes, *(f"{n} images {what}" for what, n in sorted(counts.items())), *_repeated(manifest)]
    if folder.left_out:
        told.append(_left_out(folder))
    return row_of(manifest, "prepared", manifest.content_hash, f"its images stay in {where}", *told)


def _labelled(source: Path, name: str) -> Folder:
    """The images of classes in a folder, to be streamed as the data set `name`."""
    if name == imagenet.NAME:
        return imagenet.scanned(source)
    folder = _scanned(source)
    if isinstance(folder, Beside):
        raise UserError(f"{source} holds {folder.task} data, and only images of classes are streamed: drop --stream.")
    return folder


def _streamed_already(final: Path, root: str | Path | None, source: Path, stream: bool) -> Row:
    """What was prepared as a streamed folder, if it is what is asked for and every file of it is as it was.

    Raises:
        UserError: it is not.
    """
    anew = f"give another --name, or delete {final} to make it anew"
    if not (stream and is_streamed(final.name, root)):
        how = "without" if stream else "with"
        raise UserError(f"{final} was prepared {how} --stream, which is another thing: {anew}.")
    manifest = find(final.name, root)
    assert isinstance(manifest, Manifest)
    there = {
        (path, label)
        for split, files in manifest.files.items()
        for path, label in zip(files.paths, manifest.labels[split].tolist(), strict=True)
    }
    folder = _labelled(source, final.name)
    asked = {(p.relative_to(source).as_posix(), k) for files in folder.files.values() for p, k in files}
    if there != asked or manifest.classes != folder.classes or Path(manifest.meta["images"]) != source.resolve():
        raise UserError(f"{final} was made of other images than {source} has: {anew}.")
    manifest.verify()
    return row_of(manifest, "already prepared", manifest.content_hash)


def _left_out(folder: Folder | Beside) -> str:
    return "left out: " + ", ".join(f"{n} {what}" for what, n in folder.left_out.most_common())


def _repeated(data: Arrays | Manifest) -> Iterator[str]:
    """Images that stand under several labels, or in more than one split: either makes a measure wrong."""
    pixels: dict[str, list[bytes]] = {}
    labels: dict[bytes, set[int]] = {}
    for split in data.splits:
        images, targets = data.split(split)
        nothing = np.zeros(len(images), dtype=np.int64)
        pixels[split] = (
            images.sample_digests(nothing) if isinstance(images, ImageFiles) else sample_digests(images, nothing)
        )
        if data.kind.classes:
            for digest, label in zip(pixels[split], targets.tolist(), strict=True):
                labels.setdefault(digest, set()).add(label)
    several = sum(len(labels.get(digest, ())) > 1 for digests in pixels.values() for digest in digests)
    if several:
        yield f"{several} images have the same pixels as one of another class"
    for split, judged in (("train", "val"), ("train", "test"), ("val", "test")):
        seen = set(pixels.get(split, ()))
        leaked = sum(digest in seen for digest in pixels.get(judged, ()))
        if leaked:
            yield f"{leaked} {judged} images have the same pixels as one of the {split} split"
