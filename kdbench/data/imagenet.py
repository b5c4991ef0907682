"""ImageNet, the 1000 classes of ILSVRC 2012, in the layout that its users have: ``train/SYNSET/*`` and
``val/SYNSET/*``.

The order of the classes is that of the synsets' names, as of all pretrained networks. timm has the list.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

from kdbench.data.folders import Folder, first_of, scan
from kdbench.errors import UserError

NAME = "imagenet"


@cache
def synsets() -> tuple[str, ...]:
    """The 1000, as ``n01440764``, by class index."""
    from timm.data.imagenet_info import ImageNetInfo  # slow to import

    return tuple(ImageNetInfo("imagenet-1k").label_names())


def scanned(source: Path) -> Folder:
    """The images below `source`; its ``test/``, whose labels nobody has, is not looked at.

    Raises:
        UserError: its classes are not the 1000 synsets, or the validation images are not sorted into theirs.
    """
    folder = scan(source, tops=("train", "val"))
    wrong = sorted(set(folder.classes) ^ set(synsets()))
    if wrong:
        raise UserError(
            f"{source} has {len(folder.classes)} class folders, and not those of the 1000 synsets of ImageNet (they "
            f"differ in {first_of(wrong)}): name each class folder by its synset, or prepare a part of ImageNet under "
            "a name of its own with `kdbench data prepare folder --stream --source DIR --name NAME`."
        )
    return folder
