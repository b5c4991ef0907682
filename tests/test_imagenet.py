"""ImageNet as its users have it: its layout and synsets, and libraries' networks that teach on large photographs."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Kdbench
from PIL import Image
from test_cli import one_sentence
from test_streamed import photograph
from torch import Tensor, nn
from torchvision import models as zoo
from torchvision import transforms

from kdbench import shipped
from kdbench.data import imagenet
from kdbench.data.datasets import DatasetConfig
from kdbench.data.prepare import prepare, verify
from kdbench.errors import UserError
from kdbench.protocol import Protocol
from kdbench.teaching.brought import Brought, brought
from kdbench.teaching.teachers import Origin, Teachers

THREE = ("n01440764", "n01443537", "n01484850")


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An ImageNet of three classes, as it is unpacked."""
    monkeypatch.setattr(imagenet, "synsets", lambda: THREE)
    folder = tmp_path / "ilsvrc"
    for split, n in (("train", 2), ("val", 1)):
        for k, synset in enumerate(THREE):
            for i in range(n):
                photograph(folder / split / synset / f"{synset}_{i}.JPEG", 100 * k + 10 * n + i)
    photograph(folder / "test" / "ILSVRC2012_test_00000001.JPEG", 7)
    return folder


# ---- data -------------------------------------------------------------------------------------------------------


def test_synsets_are_those_of_pretrained_networks() -> None:
    from timm.data.imagenet_info import ImageNetInfo

    synsets = imagenet.synsets()
    assert len(synsets) == 1000
    assert list(synsets) == sorted(synsets)  # as of folders
    words = ImageNetInfo("imagenet-1k").label_descriptions()
    theirs = zoo.ResNet34_Weights.IMAGENET1K_V1.meta["categories"]
    same = [name in words[k] for k, name in enumerate(theirs)]
    assert sum(same) == 998  # but for a crane and a maillot, of which there are two
    assert (synsets[0], theirs[0]) == ("n01440764", "tench")


def test_the_usual_layout_is_streamed_from_where_it_is(source: Path, tmp_path: Path) -> None:
    row = prepare("imagenet", tmp_path / "data", source)
    assert (row.name, row.n_train, row.n_test, row.num_classes) == ("imagenet", 6, 3, 3)
    assert row.licence == "non-commercial research"
    assert "val/ is the test split, for there is no test/" in row.told
    assert prepare("imagenet", tmp_path / "data", source).status == "already prepared"
    assert verify("imagenet", tmp_path / "data").status == "intact"
    data = DatasetConfig.of({**shipped.config("dataset", "imagenet"), "root": str(tmp_path / "data")}).build()
    assert data.classes == THREE
    assert data.spec.shape == (3, 224, 224)
    assert data.crops
    assert data.crops.of_test == (224, 256)


def flat(source: Path) -> None:
    for folder in list((source / "val").iterdir()):
        for path in folder.iterdir():
            path.rename(source / "val" / path.name)
        folder.rmdir()


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (flat, r"val holds images and no class folders: sort them into folders as in train/ .*split='val'"),
        (
            lambda source: shutil.rmtree(source / "val" / THREE[1]),
            "the classes n01443537: make them the same",
        ),
        (
            lambda source: [(source / split / THREE[2]).rename(source / split / "shark") for split in ("train", "val")],
            r"3 class folders, and not those of the 1000 synsets .*differ in n01484850, shark\): name each class",
        ),
        (lambda source: shutil.rmtree(source / "val"), r"train/ but neither test/ nor val/"),
    ],
)
def test_what_is_no_imagenet(source: Path, tmp_path: Path, damage: Callable[[Path], object], says: str) -> None:
    damage(source)
    with pytest.raises(UserError, match=says) as error:
        prepare("imagenet", tmp_path / "data", source)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "data" / "imagenet").exists()


def test_without_a_folder_it_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"get imagenet from image-net.org and run .*, where DIR is the folder of"):
        prepare("imagenet", tmp_path / "data")


def test_recipes_are_those_of_their_sources() -> None:
    protocols = {name: Protocol.of(shipped.composed("protocol", name)) for name in shipped.names("protocol")}
    short, long, large = (protocols[name] for name in ("imagenet90", "imagenet100", "imagenet100_512"))
    for protocol, epochs, drops in ((short, 90, (30, 60)), (long, 100, (30, 60, 90)), (large, 100, (30, 60, 90))):
        assert protocol.epochs == epochs
        rates = [protocol.schedule.factor(epoch, epochs) for epoch in range(epochs)]
        assert tuple(k for k in range(1, epochs) if rates[k] < 0.5 * rates[k - 1]) == drops
    assert [(p.batch_size, p.optimizer["lr"]) for p in (short, long, large)] == [(256, 0.1), (256, 0.1), (512, 0.2)]
    assert {(p.optimizer["momentum"], p.optimizer["weight_decay"]) for p in (short, long, large)} == {(0.9, 1e-4)}


# ---- teachers ---------------------------------------------------------------------------------------------------

CLASSES = ("goldfish", "tench")
"""In the order of their folders; the other way round among ImageNet's."""
PIXELS = transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


@pytest.fixture
def photos(alone: Kdbench, monkeypatch: pytest.MonkeyPatch) -> tuple[str, ...]:
    """What chooses large photographs of two of ImageNet's classes."""
    rng = np.random.default_rng(0)
    for split, n in (("train", 6), ("test", 8)):
        for k, name in enumerate(CLASSES):
            for i in range(n):
                coarse = rng.integers(0, 256, (5, 7, 3)) // 2 + 30 * k
                image = Image.fromarray(coarse.astype(np.uint8)).resize((420, 300), Image.Resampling.BICUBIC)
                path = alone.root / "photos" / split / name / f"{i}.jpg"
                path.parent.mkdir(parents=True, exist_ok=True)
                image.save(path, quality=90)
    monkeypatch.setenv("KDBENCH_DATA", str(alone.root / "data"))
    prepare("folder", None, alone.root / "photos", name="photos", stream=True)
    size = ("dataset.views.size=64", "dataset.views.resize=72", "engine.workers=0", "engine.compile=false")
    return "dataset=streamed", "dataset.name=photos", *size


@pytest.fixture
def pretrained(alone: Kdbench, photos: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> float:
    """torchvision's weights for 1000 classes, where its code keeps what it downloads; and what they reach."""
    torch.manual_seed(0)
    net = zoo.shufflenet_v2_x0_5().eval()
    look = transforms.Compose([transforms.Resize(72), transforms.CenterCrop(64), transforms.ToTensor(), PIXELS])
    head, net.fc = net.fc, nn.Identity()

    def embedded(split: str, name: str) -> Tensor:
        paths = sorted((alone.root / "photos" / split / name).iterdir())
        with torch.no_grad():
            found: Tensor = net(torch.stack([look(Image.open(path)) for path in paths]))
        return found

    means = [embedded("train", name).mean(dim=0) for name in CLASSES]  # the nearer one is meant
    with torch.no_grad():
        for row, mean in zip((1, 0), means, strict=True):
            head.weight[row], head.bias[row] = 2000 * mean, -1000 * mean.square().sum()
        logits = torch.cat([head(embedded("test", name)) for name in CLASSES])
    net.fc, goldfish = head, torch.arange(16) < 8
    right = 100 * float(((logits[:, 1] > logits[:, 0]) == goldfish).double().mean())
    saved(net, alone.root, monkeypatch)
    return right


def saved(net: nn.Module, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.save(net.state_dict(), folder / "net.pth")
    name = f"net-{hashlib.sha256((folder / 'net.pth').read_bytes()).hexdigest()[:8]}.pth"
    monkeypatch.setenv("TORCH_HOME", str(folder / "torch"))
    (folder / "torch" / "hub" / "checkpoints").mkdir(parents=True)
    (folder / "net.pth").rename(folder / "torch" / "hub" / "checkpoints" / name)
    # nothing is downloaded where the file lies already
    monkeypatch.setattr(zoo.ShuffleNet_V2_X0_5_Weights.IMAGENET1K_V1.value, "url", f"http://127.0.0.1:9/{name}")


def test_a_pretrained_network_teaches_what_it_knows_of_a_folder(
    alone: Kdbench, photos: tuple[str, ...], pretrained: float
) -> None:
    assert pretrained > 55  # and so below 45, were its classes taken for each other
    result = alone("teacher", "import", "torchvision/shufflenet_v2_x0_5@64", *photos)
    assert result.code == 0, result
    (known,) = [each.card for each in Teachers(alone.results, alone.cache).all() if each.card]
    assert known.accuracy == pytest.approx(pretrained)
    assert known.classes == CLASSES
    assert known.origin
    assert known.origin.source == "torchvision/shufflenet_v2_x0_5.IMAGENET1K_V1"
    own = ("dataset.mean=[0.5,0.5,0.5]", "dataset.std=[0.25,0.25,0.25]")  # its students see other pixels
    few = ("protocol.epochs=1", "protocol.batch_size=4", "pair.student=resnet8")
    taught = alone("run", "method=kd", f"teacher.weights={known.sha256[:12]}", *photos, *own, *few)
    assert taught.code == 0, taught
    record = alone.record("kd")
    assert record.teacher
    assert (record.teacher.sha256, record.teacher.origin) == (known.sha256, known.origin.source)
    assert record.teacher.as_fed == pytest.approx(pretrained, abs=100 / 16 + 0.1)  # in half precision one may turn
    assert record.config["dataset"]["views"]["size"] == 64
    # a record stays where an image is lost, and says which
    (alone.root / "photos" / "train" / "tench" / "0.jpg").unlink()
    lost = alone("run", "method=kd", f"teacher.weights={known.sha256[:12]}", *photos, *own, *few, "seed=1")
    assert lost.code == 1
    (message,) = lost.messages
    assert "0.jpg is not there any more: put it back, or delete" in message
    one_sentence(alone("run", "method=kd", "teacher.weights=000000000000", *photos, *few), "000000000000")
    assert len(alone.records()) == 1


def test_logits_are_found_by_the_names_of_their_classes() -> None:
    known = brought("torchvision/resnet34.IMAGENET1K_V1")
    synsets = imagenet.synsets()
    assert known.rows(synsets) is None
    assert known.rows(known_words()) is None
    assert known.rows(["goldfish", "tench"]) == [1, 0]
    assert known.rows([synsets[7], synsets[3]]) == [7, 3]
    assert known.rows(["mine", "yours"]) is None  # the head has another size, which is told
    assert brought("timm/resnet18.a1_in1k").rows(synsets[5:7]) == [5, 6]
    assert brought("timm/mixer_b16_224.goog_in21k").classes == ()
    says = r"none called 'x' \(it has n01440764, n01443537, n01484850 and 997 more\): name the class folders so"
    with pytest.raises(UserError, match=says):
        known.rows(["x", *synsets[1:]])


def known_words() -> list[str]:
    words: list[str] = zoo.ResNet34_Weights.IMAGENET1K_V1.meta["categories"]
    return words


def test_weights_that_say_nothing_of_their_classes_are_taken_as_they_are() -> None:
    assert Brought("lab.pth", Origin(source="lab.pth"), lambda channels: {}).rows(["a", "b"]) is None
