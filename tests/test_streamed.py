"""Images that are streamed from their files: what is prepared, what is seen of them, and what can go wrong."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections import namedtuple
from collections.abc import Callable, Iterator
from functools import partial
from hashlib import blake2b, sha256
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Kdbench
from omegaconf import OmegaConf
from PIL import Image
from torch import Tensor
from torchvision import transforms
from torchvision.transforms.v2 import functional as TF

from kdbench.data import workers
from kdbench.data.crops import TURN, Crops, jitter_of, jittered, resized_crop_of, view_of
from kdbench.data.datasets import Dataset, DatasetConfig
from kdbench.data.listing import list_datasets
from kdbench.data.manifest import ImageFiles
from kdbench.data.module import ArrayData
from kdbench.data.prepare import prepare, verify
from kdbench.data.sources import source_of
from kdbench.data.streamed import Streamed
from kdbench.engine.cohort import Cohort
from kdbench.errors import UserError
from kdbench.paths import conf_dir
from kdbench.results.record import canonical_json

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
TRAIN, TEST = 10, 4
"""Images of each of two classes."""
SETTINGS: dict[str, Any] = {"name": "photos", "mean": MEAN, "std": STD, "flip": True, "views": {"size": 16}}


def photograph(path: Path, seed: int) -> Path:
    """A JPEG of a size of its own."""
    rng = np.random.default_rng(seed)
    height, width = rng.integers(20, 60, 2)
    coarse = Image.fromarray(rng.integers(0, 256, (6, 6, 3), dtype=np.uint8))
    path.parent.mkdir(parents=True, exist_ok=True)
    coarse.resize((int(width), int(height)), Image.Resampling.BICUBIC).save(path, quality=90)
    return path


def photographs(folder: Path) -> Path:
    for split, n in (("train", TRAIN), ("test", TEST)):
        for i in range(n):
            for k, name in enumerate(("cat", "dog")):
                photograph(folder / split / name / f"{i}.jpg", 1000 * (split == "test") + 2 * i + k)
    return folder


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``photos``, and with ``data``, where they are prepared; not to be changed."""
    folder = tmp_path_factory.mktemp("streamed")
    prepare("folder", folder / "data", photographs(folder / "photos"), name="photos", stream=True)
    return folder


@pytest.fixture
def mine(here: Path, tmp_path: Path) -> Path:
    """Photographs to be changed."""
    return Path(shutil.copytree(here / "photos", tmp_path / "photos"))


def built(here: Path, **more: Any) -> Dataset:
    return DatasetConfig.of({**SETTINGS, "root": str(here / "data"), **more}).build()


def loader(data: Dataset, batch_size: int = 8, *, augment: bool = True, number: int = 0, **more: Any) -> Streamed:
    split = data.train if augment else data.test
    assert isinstance(split.images, ImageFiles)
    settings = {"crops": data.crops, "mean": data.mean, "std": data.std, "flip": data.flip and augment}
    return Streamed(split.images, split.labels, batch_size, 3, augment=augment, workers=number, **settings, **more)


def epoch_of(views: Streamed, epoch: int) -> tuple[Tensor, ...]:
    """All of an epoch: index, images, targets and views."""
    views.set_epoch(epoch)
    batches = list(views)
    assert len(batches) == len(views)
    return tuple(torch.cat([getattr(batch, key) for batch in batches]) for key in ("index", "x", "y", "view"))


# ---- prepared ---------------------------------------------------------------------------------------------------


def test_the_manifest_says_what_the_files_are_and_copies_none(here: Path) -> None:
    folder = here / "data" / "photos"
    assert sorted(path.name for path in folder.iterdir()) == ["manifest.csv", "meta.json"]
    digests: dict[str, list[bytes]] = {"train": [], "test": []}
    lines = iter((folder / "manifest.csv").read_text().splitlines())
    assert next(lines) == "split,path,bytes,digest,label,height,width"
    for line in lines:
        split, name, *numbers = line.split(",")
        content = (here / "photos" / name).read_bytes()
        digest, label = blake2b(content, digest_size=16), ["cat", "dog"].index(name.split("/")[1])
        with Image.open(here / "photos" / name) as image:
            width, height = image.size
        assert numbers == [str(len(content)), digest.hexdigest(), str(label), str(height), str(width)]
        digests[split].append(blake2b(digest.digest() + label.to_bytes(8, "little"), digest_size=16).digest())
    text = "".join(
        f"streamed {split} {len(each)} {sha256(b''.join(sorted(each))).hexdigest()}\n"
        for split, each in digests.items()
    )
    row = verify("photos", here / "data")
    assert row.sha256 == sha256(text.encode()).hexdigest()
    assert (row.status, row.n_train, row.n_val, row.n_test, row.num_classes) == ("intact", 2 * TRAIN, 0, 2 * TEST, 2)
    assert [row.status for row in list_datasets(here / "data") if row.name == "photos"] == ["prepared"]
    # canonical order: by what a file holds and by its label
    data = built(here)
    assert isinstance(data.train.images, ImageFiles)
    assert data.train.images.sample_digests(data.train.labels.numpy()) == sorted(digests["train"])


def test_content_and_not_place_is_what_is_known(here: Path, mine: Path, tmp_path: Path) -> None:
    before = verify("photos", here / "data").sha256
    (mine / "train" / "cat" / "0.jpg").rename(mine / "train" / "cat" / "another name.jpg")
    assert prepare("folder", tmp_path / "data", mine, name="moved", stream=True).sha256 == before
    (mine / "train" / "cat" / "1.jpg").rename(mine / "train" / "dog" / "another class.jpg")
    assert prepare("folder", tmp_path / "data", mine, name="other", stream=True).sha256 != before
    # the same once more is left as it is; other images are not taken for it
    row = prepare("folder", tmp_path / "data", mine, name="other", stream=True)
    assert row.status == "already prepared"
    with pytest.raises(UserError, match=r"other images than .*: give another --name, or delete"):
        prepare("folder", tmp_path / "data", mine, name="moved", stream=True)


def test_without_splits_a_fifth_of_each_class_is_held_out(mine: Path, tmp_path: Path) -> None:
    row = prepare("folder", tmp_path, mine / "train", name="whole", stream=True)
    assert (row.n_train, row.n_test) == (2 * TRAIN - 4, 4)


def test_building_opens_no_image(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("an image was read")

    monkeypatch.setattr(Path, "read_bytes", refuse)
    monkeypatch.setattr(Image, "open", refuse)
    data = built(here, val=4, per_class=5)
    assert (data.spec.shape, data.spec.n_train, data.spec.n_val, data.spec.n_test) == ((3, 16, 16), 10, 4, 2 * TEST)
    assert data.first(4).spec.n_train == 4
    ArrayData(data, 8, 0).train_dataloader()
    with pytest.raises(UserError, match="streamed, and all of them are needed at once"):
        _ = data.train.pixels


# ---- seen -------------------------------------------------------------------------------------------------------


def test_what_is_seen_does_not_depend_on_processes_batches_or_epochs_before(here: Path) -> None:
    data = built(here, views={"size": 16, "jitter": [0.4, 0.4, 0.4, 0.1], "randaugment": {}})
    state = torch.get_rng_state()
    here_and_now, beside = loader(data), loader(data, 7, number=2)
    for epoch in (0, 1):
        want, got = epoch_of(here_and_now, epoch), epoch_of(beside, epoch)
        assert all(map(torch.equal, want, got))
    assert all(map(torch.equal, epoch_of(loader(data), 1), want))  # as after a resume
    assert torch.equal(torch.get_rng_state(), state)  # methods draw from there
    assert want[0].sort().values.tolist() == list(range(2 * TRAIN))
    assert not torch.equal(want[0], epoch_of(here_and_now, 0)[0])
    # an epoch that is broken off leaves nothing for the next
    beside.set_epoch(0)
    next(iter(beside))
    assert all(map(torch.equal, epoch_of(beside, 1), want))
    whole, plain = (epoch_of(loader(data, 3, augment=False, number=number), 0) for number in (0, 1))
    assert all(map(torch.equal, whole, plain))
    assert whole[0].tolist() == list(range(2 * TEST))


def test_pixels_are_those_of_torchvision(here: Path) -> None:
    data = built(here, views={"size": 16, "resize": 20})
    images = data.train.images
    assert isinstance(images, ImageFiles)
    index, x, y, view = epoch_of(loader(data), 0)
    usual = transforms.Compose([transforms.ToTensor(), transforms.Normalize(MEAN, STD)])
    for row, i in enumerate(index.tolist()):
        top, left, height, width, flip, bits, augment, turn = view[row].tolist()
        with Image.open(images.path(i)) as file:
            shown = TF.resized_crop(file.convert("RGB"), top, left, height, width, [16, 16])
        shown = TF.horizontal_flip(shown) if flip else shown
        assert torch.equal(x[row], usual(shown))
        assert y[row] == ["cat", "dog"].index(images.path(i).parent.name)
        assert (bits, augment, turn) == (0, 0, 0)
    assert 0 < int(view[:, 4].sum()) < len(view)
    middle = transforms.Compose([transforms.Resize(20), transforms.CenterCrop(16), usual])
    for row, batch in enumerate(loader(data, 1, augment=False)):
        assert isinstance(data.test.images, ImageFiles)
        with Image.open(data.test.images.path(row)) as file:
            assert torch.equal(batch.x[0], middle(file.convert("RGB")))


def test_another_view_and_samples_that_are_asked_for(here: Path) -> None:
    data = built(here)
    views = loader(data)
    batch = next(iter(views))
    again = batch["again"]
    assert torch.equal(again.index, batch.index)
    assert not torch.equal(again.view, batch.view)
    assert isinstance(data.train.images, ImageFiles)
    sizes = torch.from_numpy(data.train.images.shapes)[batch.index]
    assert torch.equal(again.view, view_of(Crops(size=16), True, 3, 0, batch.index, sizes, draw=1))
    taken = views.take(batch.index)
    assert torch.equal(taken.x, batch.x)
    assert torch.equal(taken["again"].x, again.x)
    plain = views.take(batch.index, plain=True)
    assert plain.view.eq(0).all()
    assert not torch.equal(plain.x, batch.x)


def test_blind_batches_read_nothing(mine: Path, tmp_path: Path) -> None:
    prepare("folder", tmp_path / "data", mine, name="photos", stream=True)
    data = built(tmp_path)
    shutil.rmtree(mine)
    batches = list(loader(data, blind=True, drop_last=True))
    assert [batch.x.shape for batch in batches] == [(8, 0), (8, 0)]


def test_boxes_are_distributed_as_torchvisions() -> None:
    n, sizes, scale, ratio = 1500, (375, 500), (0.08, 1.0), (3 / 4, 4 / 3)
    shapes = torch.tensor([sizes]).expand(n, 2)
    boxes = resized_crop_of(1, 2, torch.arange(n), shapes, scale, ratio)
    part = torch.randperm(n, generator=torch.Generator().manual_seed(0))[:100]
    assert torch.equal(resized_crop_of(1, 2, part, shapes[part], scale, ratio), boxes[part])
    state = torch.get_rng_state()
    torch.manual_seed(0)
    image = torch.empty(3, *sizes)
    theirs = torch.tensor(
        [transforms.RandomResizedCrop.get_params(image, list(scale), list(ratio)) for _ in range(n)]
    ).double()
    torch.set_rng_state(state)
    top, left, height, width = boxes.unbind(1)
    assert bool((top >= 0).all() & (left >= 0).all() & (height > 0).all() & (width > 0).all())
    assert bool((top + height <= sizes[0]).all() & (left + width <= sizes[1]).all())
    error = theirs.std(dim=0) / n**0.5
    assert ((boxes.double().mean(dim=0) - theirs.mean(dim=0)).abs() < 5 * error).all()
    assert (boxes.double().std(dim=0) / theirs.std(dim=0) - 1).abs().max() < 0.08


@pytest.mark.parametrize("sizes", [(10, 1000), (1000, 10), (7, 7)])
def test_where_no_box_fits_it_is_the_middle(sizes: tuple[int, int]) -> None:
    scale = (0.9, 1.0) if sizes[0] != sizes[1] else (1.0, 1.0)
    ratio = (3 / 4, 4 / 3) if sizes[0] != sizes[1] else (2.0, 2.5)  # none of which a square has
    want = transforms.RandomResizedCrop.get_params(torch.empty(3, *sizes), list(scale), list(ratio))
    (box,) = resized_crop_of(0, 0, torch.tensor([5]), torch.tensor([sizes]), scale, ratio).tolist()
    assert box == list(want)


def test_colours_are_jittered_as_by_torchvision() -> None:
    images = torch.randint(0, 256, (24, 3, 6, 5), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    images[0] = 77  # grey, of no hue
    bits = torch.arange(24) * 10**15 + 1
    factors, order = jitter_of(bits, (0.4, 0.3, 0.2, 0.1))
    got = jittered(images, factors, order)
    changes: list[Callable[[Tensor, float], Tensor]] = [
        TF.adjust_brightness,
        TF.adjust_contrast,
        TF.adjust_saturation,
        TF.adjust_hue,
    ]
    for i, image in enumerate(images):
        x = image.float() / 255
        for k in order[i].tolist():
            x = changes[k](x, float(factors[i, k]))
        assert torch.allclose(got[i] / 255, x, atol=1e-5)
    assert len({tuple(each) for each in order.tolist()}) > 8
    many, _ = jitter_of(torch.arange(4000), (0.4, 0.3, 2.0, 0.1))
    least, most = torch.tensor([0.6, 0.7, 0.0, -0.1]), torch.tensor([1.4, 1.3, 3.0, 0.1])
    assert bool((many >= least).all() & (many <= most).all())
    assert torch.allclose(many.mean(dim=0), (least + most) / 2, atol=0.06)
    torch.testing.assert_close(jitter_of(bits[3:5], (0.4, 0.3, 0.2, 0.1))[0], factors[3:5], rtol=0, atol=0)


# ---- trained on -------------------------------------------------------------------------------------------------


def commanded(here: Path) -> tuple[str, ...]:
    return (
        "run",
        "method=[scratch,kd]",
        "dataset=streamed",
        "dataset.name=photos",
        f"dataset.root={here / 'data'}",
        "dataset.views.size=16",
        "protocol.batch_size=8",
        "protocol.eval_every=3",
        "pair.teacher=resnet8x0.25",
        "pair.student=resnet8x0.25",
        "teacher.epochs=1",
        "checkpoint_seconds=0",
        "engine.compile=false",
    )


def test_company_processes_and_an_interruption_change_no_number(
    kd: Kdbench, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from test_grid import all_numbers, other

    common = commanded(here)
    read: list[int] = []
    original = ImageFiles.content

    def counted(self: ImageFiles, i: int, *, hashed: bool) -> bytes:
        read.append(len(self))
        return original(self, i, hashed=hashed)

    together = other(kd, "together", monkeypatch)
    with monkeypatch.context() as patch:
        patch.setattr(ImageFiles, "content", counted)
        assert together(*common, "engine.workers=0", "protocol.epochs=3").code == 0
    # two cells and their teacher read each image of training once an epoch
    assert read.count(2 * TRAIN) == (3 + 1) * 2 * TRAIN
    assert len(together.records()) == 2
    broken = other(kd, "broken", monkeypatch)
    whole_epoch = Cohort.on_train_epoch_end

    def breaks_off(self: Cohort) -> None:
        whole_epoch(self)
        if self.epoch == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Cohort, "on_train_epoch_end", breaks_off)
        assert broken(*common, "engine.workers=1", "protocol.epochs=3", "cohort.max_students=1").code == 130
    assert not broken.records()
    assert broken(*common, "engine.workers=0", "protocol.epochs=3", "cohort.max_students=1").code == 0
    assert all_numbers(broken) == all_numbers(together)


def test_views_that_come_round_again_are_said_once_by_the_teacher(
    kd: Kdbench, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from test_cohort import asked
    from test_grid import numbers, other

    cycle = Crops(size=16, cycle=2)
    index, sizes = torch.arange(6), torch.tensor([[30, 40]]).expand(6, 2)
    first, second, third = (view_of(cycle, True, seed, epoch, index, sizes) for seed, epoch in ((1, 0), (2, 3), (3, 4)))
    assert torch.equal(first, third)
    assert not torch.equal(first[:, :4], second[:, :4])
    assert (first[0, TURN], second[0, TURN]) == (0, 1)

    rows = asked(monkeypatch)
    taught = ("method=kd", "dataset.views.cycle=2", "engine.workers=0", "protocol.epochs=4", "protocol.eval_every=4")
    cached = other(kd, "cached", monkeypatch)
    assert cached(*commanded(here), *taught, "engine.view_cache=true", "seed=[0,1]").code == 0
    # two views of each image, for both seeds, after a look at the test images
    assert sum(rows) == 2 * 2 * TRAIN + 2 * TEST
    rows.clear()
    live = other(kd, "live", monkeypatch)
    assert live(*commanded(here), *taught, "engine.view_cache=false").code == 0
    assert sum(rows) == 4 * 2 * TRAIN + 2 * TEST
    assert numbers(live.record("kd")) == numbers(cached.record("kd"))


# ---- bad input --------------------------------------------------------------------------------------------------


def refused(says: str, act: Callable[[], Any]) -> None:
    with pytest.raises(UserError, match=says) as error:
        act()
    assert "\n" not in str(error.value)


def test_what_is_no_folder_to_stream(mine: Path, tmp_path: Path) -> None:
    def streamed(**more: Any) -> Any:
        return prepare("folder", tmp_path / "data", mine, name="photos", stream=True, **more)

    refused("streamed images stay as large as they are: leave out --size", lambda: streamed(size=64))
    refused("stream are for a folder", lambda: prepare("cifar100", tmp_path / "data", stream=True))
    path = mine / "train" / "dog" / "3.jpg"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    (mine / "test" / "cat" / "0.jpg").write_bytes(b"")
    refused(r"2 of 28 images cannot be read: .*3\.jpg \(.*test/cat/0\.jpg \(.*: mend or remove them", streamed)
    path.write_bytes(whole)
    photograph(mine / "test" / "cat" / "0.jpg", 5)
    (mine / "test" / "bird").mkdir()
    photograph(mine / "test" / "bird" / "0.jpg", 6)
    refused("test and train/ differ in the classes bird: make them the same", streamed)
    shutil.rmtree(mine / "test" / "bird")
    for file in (mine / "test" / "cat").iterdir():
        file.unlink()
    refused("test has no images of cat: add some", streamed)
    shutil.rmtree(mine)
    (mine / "images").mkdir(parents=True)
    (mine / "masks").mkdir()
    for k in range(3):
        photograph(mine / "images" / f"{k}.jpg", k)
        Image.new("L", (3, 3)).save(mine / "masks" / f"{k}.png")
    refused("only images of classes are streamed: drop --stream", streamed)
    assert not (tmp_path / "data" / "photos").exists()


def test_a_file_that_is_not_what_it_was_is_named(mine: Path, tmp_path: Path) -> None:
    prepare("folder", tmp_path / "data", mine, name="photos", stream=True)
    data, path = built(tmp_path), mine / "train" / "cat" / "4.jpg"
    whole = path.read_bytes()
    path.write_bytes(whole[:-3] + b"\0" + whole[-2:])  # of the same size
    changed = (
        r"cat/4\.jpg was changed since it was prepared: put the old file back, or delete .* and run `kdbench data "
        "prepare folder --stream --source DIR --name photos"
    )
    refused(changed, lambda: list(loader(data)))
    refused(changed, lambda: list(loader(data, number=1)))
    refused(changed, lambda: verify("photos", tmp_path / "data"))
    path.unlink()
    refused(r"cat/4\.jpg is not there any more: put it back, or", lambda: list(loader(data)))
    again = partial(prepare, "folder", tmp_path / "data", mine, name="photos", stream=True)
    refused(r"made of other images than .*photos has", again)
    path.write_bytes(whole)
    assert len(list(loader(data))) == 3


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda text: text.replace(",0,", ",1,", 1), "was changed since it was prepared: delete"),
        (lambda text: text.replace("split", "part", 1), r"manifest\.csv cannot be understood \(its first line is not"),
        (
            lambda text: text.replace("\ntest,", "\nexam,"),
            "has the splits train, exam, not train, test and perhaps val",
        ),
        (lambda text: "\n".join(text.splitlines()[:-1]) + "\ntest,x", "cannot be understood"),
        (lambda text: text.replace(",0,", ",2,", 1), "has labels outside of its 2 classes"),
    ],
    ids=["label", "header", "split", "torn", "no class"],
)
def test_a_damaged_manifest_is_told(here: Path, tmp_path: Path, damage: Callable[[str], str], says: str) -> None:
    folder = Path(shutil.copytree(here / "data" / "photos", tmp_path / "data" / "photos"))
    path = folder / "manifest.csv"
    path.write_text(damage(path.read_text()))
    refused(says, lambda: built(tmp_path))


def test_class_names_in_another_order_are_told(here: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(here / "data" / "photos", tmp_path / "data" / "photos"))
    meta = json.loads((folder / "meta.json").read_text())
    (folder / "meta.json").write_text(json.dumps({**meta, "classes": ["dog", "cat"]}))
    refused("was changed since it was prepared", lambda: built(tmp_path))


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"views": None}, "say in which size they are shown, as dataset=streamed dataset.views.size=224"),
        ({"pad": 4}, r"set dataset\.pad=0"),
        ({"size": 8}, r"set dataset\.size=null"),
        ({"affine": {"rotate": 3.0}}, r"set dataset\.affine=null"),
        ({"mean": None}, r"dataset\.mean is not computed: give it, or take ImageNet's"),
        ({"mean": [0.5]}, "for the 3 channels"),
        ({"scenario": {"_target_": "kdbench.data.scenarios.Robust"}}, "set scenario=null, or prepare"),
        ({"sha256": "0" * 64}, r"not the known 000.*dataset\.sha256=null"),
        ({"views": {"size": 0}}, r"bad value 0 for 'dataset\.views\.size'"),
        ({"views": {"size": 16, "sise": 1}}, r"unknown key 'dataset\.views\.sise': choose from size, scale"),
        ({"views": {"size": 16, "scale": [1.0, 0.08]}}, "the smaller number comes first"),
        ({"views": {"size": 16, "scale": [0.5, 2.0]}}, "no crop is larger than its image"),
        ({"views": {"size": 16, "resize": 8}}, "resize=8 is smaller than size=16"),
    ],
)
def test_settings_that_do_not_fit(here: Path, settings: dict[str, Any], says: str) -> None:
    refused(says, lambda: built(here, **settings))


def test_a_setting_that_is_said_and_one_that_is_not_are_the_same() -> None:
    whole = OmegaConf.load(conf_dir() / "dataset" / "streamed.yaml")
    short = {key: value for key, value in whole.items() if key != "views"} | {"views": {"size": 224, "resize": 256}}
    assert canonical_json(source_of(short).identity()) == canonical_json(source_of(whole).identity())  # 1 is 1.0
    assert "views" not in DatasetConfig.of({"name": "digits"}).identity()


def test_streamed_and_not_streamed_are_not_taken_for_each_other(here: Path, tmp_path: Path) -> None:
    from kdbench.data.arrays import load

    photos = here / "photos"
    refused("prepared with --stream, which is another", lambda: prepare("folder", here / "data", photos, name="photos"))
    refused("streams its images from files, and arrays", lambda: load("photos", here / "data"))
    prepare("folder", tmp_path, photos, name="photos", size=8)
    in_memory = DatasetConfig.of({"name": "photos", "root": str(tmp_path), "views": {"size": 8}})
    refused("those of photos lie in memory: leave it out", in_memory.build)
    refused("prepared without --stream", lambda: prepare("folder", tmp_path, photos, name="photos", stream=True))


def test_too_little_shared_memory_is_known_beforehand(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "free")
    monkeypatch.setattr(workers.shutil, "disk_usage", lambda path: usage(2 * 2 * 8 * 3 * 16**2 - 1))
    refused(
        r"2 processes that read images ahead need 0 MB of shared memory.*--shm-size=8g.*engine\.workers",
        lambda: list(loader(built(here), number=2)),
    )
    monkeypatch.setattr(workers.shutil, "disk_usage", lambda path: usage(2 * 2 * 8 * 3 * 16**2))
    assert len(list(loader(built(here), number=2))) == 3


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("DataLoader worker (pid(s) 7) exited unexpectedly"),  # as torch says it
        ConnectionResetError(104, "Connection reset by peer"),  # its batch was announced, and cannot be fetched
        EOFError(),
    ],
    ids=["gone", "reset", "end"],
)
def test_a_death_is_told_however_it_shows(error: Exception) -> None:
    def waits() -> None:
        with workers.told_of_deaths():
            raise error

    refused(r"a process that reads images died.*engine\.workers=1", waits)
    with pytest.raises(RuntimeError, match="no worker"), workers.told_of_deaths():
        raise RuntimeError("no worker")


@pytest.mark.slow  # ten seconds, until torch looks whether its workers live
def test_a_process_that_dies_ends_in_a_sentence(mine: Path, tmp_path: Path) -> None:
    for k in range(30):  # more than is read ahead
        photograph(mine / "train" / "cat" / f"more {k}.jpg", 2000 + k)
    prepare("folder", tmp_path / "data", mine, name="photos", stream=True)
    views = loader(built(tmp_path), 2, number=1)

    def killed() -> Iterator[Any]:
        batches = iter(views)
        yield from islice(batches, 1)
        assert views._loader is not None
        assert views._loader._iterator is not None
        os.kill(views._loader._iterator._workers[0].pid, signal.SIGKILL)  # type: ignore[attr-defined]
        yield from batches

    refused(r"a process that reads images died.*engine\.workers=1", lambda: list(killed()))
