"""Names as a paper writes them, and what sets the data and the protocol of a table apart from those that ship."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from kdbench import shipped
from kdbench.report.settings import shown
from kdbench.results.record import Record, canonical_json, flatten
from kdbench.settings import RUN

DATA = {
    "CartPole-v1": "CartPole",
    "Pendulum-v1": "Pendulum",
    "bccd": "BCCD",
    "camvid": "CamVid",
    "cifar10": "CIFAR-10",
    "cifar100": "CIFAR-100",
    "cifar10_15k": "CIFAR-10 (15k)",
    "clean_features": "Clean features",
    "clean_labels": "Clean labels",
    "digits": "Digits",
    "digits_m": "Digits-M",
    "facades": "Facades",
    "fashion_mnist": "Fashion-MNIST",
    "imagenet": "ImageNet",
    "mnist": "MNIST",
    "mnist_m": "MNIST-M",
    "omniglot": "Omniglot",
    "relevant_features": "Relevant features",
    "relevant_largest": "Largest features",
    "relevant_per_sample": "Relevant features (per sample)",
    "relevant_per_set": "Relevant features (per set)",
    "rgbd_room": "RGB-D room",
    "shapes_boxes": "Shapes (boxes)",
    "shapes_depth": "Shapes (depth)",
    "shapes_masks": "Shapes (masks)",
    "stl10": "STL-10",
    "svhn": "SVHN",
    "tiny_imagenet": "Tiny ImageNet",
    "usps": "USPS",
}
"""The data sets that ship, as people write them."""

_NETWORKS = (
    (r"^(torchvision|timm)/", ""),
    (r"^fpn-", "FPN-"),
    (r"resnet(?=\d)", "ResNet-"),
    (r"^wrn-", "WRN-"),
    (r"^vgg(?=\d)", "VGG-"),
    (r"^mobilenetv2-", "MobileNetV2×"),
    (r"^mobilenet", "MobileNet"),
    (r"^shufflenet", "ShuffleNet"),
    (r"(?<=Net)v(?=\d)", "V"),
    (r"^lenet-?(?=\d)", "LeNet-"),
    (r"^linear$", "Linear"),
    (r"^plane(?=\d)", "Plane-"),
    (r"^conv(?=\d)", "Conv-"),
    (r"^mlp-", "MLP-"),
    (r"^fc-", "FC-"),
    (r"^cnn-", "CNN-"),
    (r"(?<=\d)x(?=\d)", "×"),
)


def data_name(name: str) -> str:
    return DATA.get(name, name)


def network_name(name: str) -> str:
    """``resnet8x4`` is ResNet-8×4, ``mobilenetv2-0.5`` MobileNetV2×0.5; what is not known stays as it is."""
    for pattern, text in _NETWORKS:
        name = re.sub(pattern, text, name)
    return name


def cut(record: Record) -> str:
    """Which part of a data set was trained on, as in ``20 classes, 200 images each``; empty where all of it was."""
    config = record.config.get("dataset")
    dataset: Mapping[str, Any] = config if isinstance(config, Mapping) else {}
    classes, per_class = dataset.get("classes") is not None, dataset.get("per_class")
    parts = [f"{record.dataset.num_classes} classes"] if classes else []
    if per_class is not None:
        parts.append(f"{shown(per_class)} images {'each' if classes else 'a class'}")
    if subset := dataset.get("subset"):
        by = "each run" if subset["seed"] == RUN else f"seed {subset['seed']}"
        drawn = f" by {by}" if subset["order"] == "drawn" else ""
        parts.append(f"{subset['n']} images, {subset['order']}{drawn}")
    if sees := dataset.get("sees"):
        parts.append(f"{sees} features")
    if size := dataset.get("size"):
        parts.append(f"{size}×{size}")
    if crops := dataset.get("views"):
        more = [f"{key} {shown(crops[key])}" for key in ("jitter", "cycle") if crops[key]]
        if augment := crops.get("randaugment"):
            more.append(f"RandAugment {augment['ops']}×{augment['magnitude']}")
        parts.append(" ".join([f"crops of {crops['size']}×{crops['size']}", *more]))
    if affine := dataset.get("affine"):
        parts.append(" ".join(f"{key} {shown(value)}" for key, value in affine.items() if value))
    if mix := dataset.get("mix"):
        parts.append(" ".join(f"{key} {shown(alpha)}" for key, alpha in mix.items() if alpha))
    return ", ".join(parts)


def protocol_names(records: Sequence[Record]) -> dict[str, str]:
    """The protocol of each record, by the cell's id, and where its values are not those that ship under its name.

    Of names that do not ship what differs between records of one name is told.
    """
    found: dict[str, dict[str, dict[str, str]]] = defaultdict(dict)  # by name, and by all values
    for record in records:
        values = _flat(record)
        found[record.cell.protocol].setdefault(canonical_json(values), values)
    names: dict[tuple[str, str], str] = {}
    for name, configs in found.items():
        base = {key: shown(value) for key, value in flatten(shipped.composed("protocol", name)).items()}
        for key, values in configs.items():
            # keys that came after the record have the values that it was made with
            others = [base] if base else list(configs.values())
            told = sorted(part for part, value in values.items() if any(other.get(part) != value for other in others))
            names[name, key] = ", ".join([name, *(f"{part}={values[part]}" for part in told)])
    return {record.cell.id: names[record.cell.protocol, canonical_json(_flat(record))] for record in records}


def _flat(record: Record) -> dict[str, str]:
    protocol = record.config["protocol"]
    flat = flatten(protocol) if isinstance(protocol, Mapping) else {}
    return {key: shown(value) for key, value in flat.items() if key != "name"}
