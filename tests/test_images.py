"""Image files of every depth, mode and orientation, against what a person sees in them."""

from __future__ import annotations

import io
import os
import struct
import zlib
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from kdbench.data.images import BY_CONTENT, BY_ENDING, endings, is_image, read_image

LEVELS = np.arange(256).reshape(16, 16)
"""Every grey level once; times 257 as 16 bits, over 255 as floats."""
RNG = np.random.default_rng(0)


def read(path: Path, size: int = 16) -> tuple[NDArray[np.int64], list[str]]:
    """Pixels, and what was said of them."""
    notes: Counter[str] = Counter()
    return read_image(path, (size, size), notes).astype(np.int64), list(notes)


def grey(path: Path, size: int = 16) -> NDArray[np.int64]:
    """One channel of an image whose three are equal."""
    pixels, _ = read(path, size)
    assert np.array_equal(pixels, pixels[..., :1].repeat(3, axis=2))
    return pixels[..., 0]


def tiff(
    path: Path, values: NDArray[Any], *, order: str = "<", photometric: int = 1, form: int = 1, **more: int
) -> Path:
    """An uncompressed TIFF of one strip: `values` (H, W) or (H, W, 3) in their own depth."""
    bits, channels = more.get("bits", values.dtype.itemsize * 8), 1 if values.ndim == 2 else values.shape[2]
    data = values.astype(values.dtype.newbyteorder(order)).tobytes() if "bits" not in more else twelve(values)
    height, width = values.shape[:2]
    entries = {256: width, 257: height, 258: bits, 259: 1, 262: photometric, 273: 0, 277: channels, 278: height}
    entries |= {279: len(data), 339: form} | ({284: more["planes"]} if "planes" in more else {})
    if channels > 1:
        data = struct.pack(f"{order}{channels}H", *[bits] * channels) + data
    tail = 8 + 2 + 12 * len(entries) + 4
    extra = 2 * channels if channels > 1 else 0
    entries[273] = tail + extra
    ifd = struct.pack(f"{order}H", len(entries))
    for tag, value in sorted(entries.items()):
        if tag == 258 and channels > 1:
            ifd += struct.pack(f"{order}HHII", tag, 3, channels, tail)
        elif tag in (273, 279):
            ifd += struct.pack(f"{order}HHII", tag, 4, 1, value)
        else:
            ifd += struct.pack(f"{order}HHIHH", tag, 3, 1, value, 0)
    magic = b"II" if order == "<" else b"MM"
    path.write_bytes(magic + struct.pack(f"{order}HI", 42, 8) + ifd + b"\0\0\0\0" + data)
    return path


def twelve(values: NDArray[Any]) -> bytes:
    """Pairs of 12-bit values in three bytes, as TIFF packs them."""
    first, second = values.reshape(-1, 2).astype(int).T
    return np.stack([first >> 4, (first & 15) << 4 | second >> 8, second & 255], 1).astype(np.uint8).tobytes()


def png(path: Path, width: int, height: int, bits: int, colour: int, rows: bytes, *chunks: tuple[bytes, bytes]) -> Path:
    header = (b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0))
    out = b"\x89PNG\r\n\x1a\n"
    for kind, data in (header, *chunks, (b"IDAT", zlib.compress(rows)), (b"IEND", b"")):
        out += struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    path.write_bytes(out)
    return path


# --- depth ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", ["png", "tif", "pgm", "jp2"])
def test_sixteen_bits_are_scaled_not_clipped(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"x.{ending}"
    Image.fromarray((LEVELS * 257).astype(np.uint16)).save(path)
    assert np.array_equal(grey(path), LEVELS)
    assert read(path)[1] == ["with 16 bits, of which 0..65535 became 0..255"]


@pytest.mark.parametrize("order", ["<", ">"])
def test_both_byte_orders_of_tiff(tmp_path: Path, order: str) -> None:
    assert np.array_equal(grey(tiff(tmp_path / "x.tif", (LEVELS * 257).astype(np.uint16), order=order)), LEVELS)


def test_a_tiff_says_which_value_is_white(tmp_path: Path) -> None:
    wide = (LEVELS * 257).astype(np.uint16)
    assert np.array_equal(grey(tiff(tmp_path / "w.tif", wide, photometric=0)), 255 - LEVELS)
    floats = (LEVELS / 255).astype(np.float32)
    assert np.array_equal(grey(tiff(tmp_path / "f.tif", floats, photometric=0, form=3)), 255 - LEVELS)
    narrow = np.rint(LEVELS * (4095 / 255)).astype(np.uint16)
    assert np.array_equal(grey(tiff(tmp_path / "n.tif", narrow, bits=12)), LEVELS)


def test_sixteen_bits_of_colour(tmp_path: Path) -> None:
    colour = np.stack([LEVELS, LEVELS[::-1], LEVELS.T], -1)
    wide = (colour * 257).astype(">u2")
    rows = b"".join(b"\0" + row.tobytes() for row in wide)
    assert np.array_equal(read(png(tmp_path / "x.png", 16, 16, 16, 2, rows))[0], colour)
    path = tiff(tmp_path / "x.tif", (colour * 257).astype(np.uint16), photometric=2)
    assert np.array_equal(read(path)[0], colour)


def test_floats_are_0_to_1(tmp_path: Path) -> None:
    for ending in ("tif", "pfm"):
        path = tmp_path / f"x.{ending}"
        Image.fromarray((LEVELS / 255).astype(np.float32)).save(path)
        assert np.array_equal(grey(path), LEVELS)


def bad(values: Any) -> Any:
    return lambda path: Image.fromarray(values).save(path)


REFUSED: dict[str, tuple[str, Any]] = {
    "floats beyond 1": ("floats 0..255, of which only 0..1", bad(LEVELS.astype(np.float32))),
    "negative floats": ("floats -1..254", bad((LEVELS - 1).astype(np.float32))),
    "no number": ("nan", bad(np.where(LEVELS > 3, LEVELS / 255, np.nan).astype(np.float32))),
    "32-bit integers": ("does not say which value is white", bad((LEVELS * 257).astype(np.int32))),
    "64-bit floats": ("of a kind that is read", lambda p: tiff(p, LEVELS / 255, form=3)),
    "signed 16 bits": ("does not say which value is white", lambda p: tiff(p, LEVELS.astype(np.int16), form=2)),
    "planes": (
        "separate planes",
        lambda p: tiff(p, np.stack([LEVELS] * 3, -1).astype(np.uint16), photometric=2, planes=2),
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_has_no_defensible_meaning_is_refused(tmp_path: Path, case: str) -> None:
    what, write = REFUSED[case]
    write(tmp_path / "x.tif")
    with pytest.raises(ValueError, match=what):
        read(tmp_path / "x.tif")


# --- modes ------------------------------------------------------------------------------------------------------------


def test_transparency_lies_on_white(tmp_path: Path) -> None:
    colour = RNG.integers(0, 256, (16, 16, 3))
    alpha = LEVELS
    expected = colour * (alpha / 255)[..., None] + 255 * (1 - alpha / 255)[..., None]
    Image.fromarray(np.dstack([colour, alpha]).astype(np.uint8)).save(tmp_path / "rgba.png")
    pixels, notes = read(tmp_path / "rgba.png")
    assert np.abs(pixels - expected).max() <= 1
    assert notes == ["with transparency, laid on white"]
    Image.fromarray(np.dstack([colour[..., 0], alpha]).astype(np.uint8)).save(tmp_path / "la.png")
    assert np.abs(grey(tmp_path / "la.png") - expected[..., 0]).max() <= 1

    opaque = np.dstack([colour, np.full_like(alpha, 255)]).astype(np.uint8)
    Image.fromarray(opaque).save(tmp_path / "opaque.png")
    assert np.array_equal(read(tmp_path / "opaque.png")[0], colour)
    assert read(tmp_path / "opaque.png")[1] == []
    Image.fromarray(np.dstack([colour, alpha * 0]).astype(np.uint8)).save(tmp_path / "all.png")
    assert np.array_equal(read(tmp_path / "all.png")[0], colour)  # 32-bit images whose last byte nobody filled

    palette = Image.fromarray((LEVELS % 4).astype(np.uint8))
    palette.putpalette([9, 8, 7, 60, 50, 40, 200, 0, 0, 0, 0, 250])
    colours = np.array([[9, 8, 7], [60, 50, 40], [200, 0, 0], [0, 0, 250]])
    palette.save(tmp_path / "p.png")
    assert np.array_equal(read(tmp_path / "p.png")[0], colours[LEVELS % 4])
    for name in ("t.png", "t.gif"):
        palette.save(tmp_path / name, transparency=2)
        seen = np.where((LEVELS % 4 == 2)[..., None], 255, colours[LEVELS % 4])
        assert np.array_equal(read(tmp_path / name)[0], seen)


def test_print_colours_and_one_bit(tmp_path: Path) -> None:
    Image.new("CMYK", (16, 16), (255, 0, 0, 0)).save(tmp_path / "cyan.tif")
    assert np.array_equal(read(tmp_path / "cyan.tif")[0][0, 0], [0, 255, 255])
    Image.new("CMYK", (16, 16), (0, 0, 0, 255)).save(tmp_path / "black.jpg", quality=100)
    assert read(tmp_path / "black.jpg")[0].max() <= 2
    Image.fromarray(LEVELS % 3 == 0).save(tmp_path / "bit.png")
    assert np.array_equal(grey(tmp_path / "bit.png"), np.where(LEVELS % 3 == 0, 255, 0))


# --- orientation ------------------------------------------------------------------------------------------------------

# What is seen, from what is stored (EXIF 2.32, Orientation): in 6, "the 0th row is the visual right-hand side of the
# image, and the 0th column is the visual top", so it is turned clockwise.
SEEN: dict[int, Any] = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: lambda a: np.rot90(a, 1),
}


@pytest.mark.parametrize("ending", ["png", "tif", "webp", "16.png"])
def test_all_eight_orientations(tmp_path: Path, ending: str) -> None:
    stored = RNG.integers(0, 256, (16, 16, 3))
    for orientation, seen in SEEN.items():
        path = tmp_path / f"{orientation}.{ending}"
        exif = Image.Exif()
        exif[0x0112] = orientation
        values = (stored[..., 0] * 257).astype(np.uint16) if ending == "16.png" else stored.astype(np.uint8)
        options: dict[str, Any] = {"lossless": True} if ending == "webp" else {}
        Image.fromarray(values).save(path, exif=exif, **options)
        expected = seen(stored if ending != "16.png" else stored[..., :1].repeat(3, axis=2))
        assert np.array_equal(read(path)[0], expected), orientation


def test_sides_are_exchanged_before_the_crop(tmp_path: Path) -> None:
    lying = np.zeros((10, 40, 3), np.uint8)
    lying[:, :10] = 255  # the left end, which is the top of what is seen
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(lying).save(tmp_path / "x.png", exif=exif)
    assert read(tmp_path / "x.png", 10)[0].max() == 0  # neither end is in the middle square
    Image.fromarray(lying[:, :20]).save(tmp_path / "y.png", exif=exif)  # the middle ten rows: five of each
    assert grey(tmp_path / "y.png", 10)[:, 0].tolist() == [255] * 5 + [0] * 5


def test_damaged_exif_is_told(tmp_path: Path) -> None:
    Image.fromarray(LEVELS.astype(np.uint8)).save(tmp_path / "x.png", exif=b"Exif\0\0MM\0*\0\0\0\x08\0\x09broken")
    pixels, notes = read(tmp_path / "x.png")
    assert np.array_equal(pixels[..., 0], LEVELS)
    assert notes == ["with damaged EXIF data, whose orientation is not known"]


# --- files ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["JPEG", "PNG", "GIF", "WEBP", "AVIF", "BMP", "TIFF", "PPM", "JPEG2000", "QOI"])
def test_content_counts_not_the_ending(tmp_path: Path, form: str) -> None:
    image = Image.new("RGB", (16, 16), (200, 100, 50))
    for name in ("x.jpg", "x.jfif", "x", "x.dat"):
        image.save(tmp_path / name, form)
        assert is_image(tmp_path / name)
        assert np.abs(read(tmp_path / name)[0] - [200, 100, 50]).max() <= 4


def test_what_is_no_image(tmp_path: Path) -> None:
    for name, text in (("notes.txt", b"P1 is a note"), ("a.json", b"{}"), ("none", b""), ("x.dat", b"\n" * 99)):
        (tmp_path / name).write_bytes(text)
        assert not is_image(tmp_path / name)
    for name in ("zero.png", "zero.JPG"):  # meant as one: to be told, not left out
        (tmp_path / name).write_bytes(b"")
        assert is_image(tmp_path / name)
        with pytest.raises(ValueError, match="no image of a kind that is read"):
            read(tmp_path / name)
    (tmp_path / "leads.nowhere").symlink_to(tmp_path / "gone")
    assert is_image(tmp_path / "leads.nowhere")
    with pytest.raises(ValueError, match="No such file"):
        read(tmp_path / "leads.nowhere")


def test_no_decoder_starts_a_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "bin" / "gs"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\ntouch {tmp_path}/started\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")
    script = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 20 20\n%%EndComments\nshowpage\n"
    for name in ("x.png", "x.eps", "x", "x.iim"):
        (tmp_path / name).write_bytes(script)
        with pytest.raises(ValueError, match="no image"):
            read(tmp_path / name)
    assert not is_image(tmp_path / "x.eps")
    assert not (tmp_path / "started").exists()
    started_by_pillow = {"EPS", "IPTC", "WMF", "GRIB", "BUFR", "HDF5", "MPEG"}
    assert not started_by_pillow & {*BY_CONTENT, *BY_ENDING, *endings().values()}


def test_the_first_frame_is_taken_and_told(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (16, 16), colour) for colour in ("red", "blue")]
    for name in ("x.gif", "x.tif", "x.webp", "x.png"):
        frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:])
        pixels, notes = read(tmp_path / name)
        assert np.abs(pixels - [255, 0, 0]).max() <= 8
        assert notes == ["with several frames or pages, of which the first is taken"]


def test_bombs_and_ribbons_are_refused(tmp_path: Path) -> None:
    png(tmp_path / "bomb.png", 60_000, 60_000, 8, 2, b"")
    with pytest.raises(ValueError, match="decompression bomb"):
        read(tmp_path / "bomb.png")
    Image.new("1", (60_000, 1)).save(tmp_path / "ribbon.png")
    with pytest.raises(ValueError, match="60000x1 cannot be resized to cover 64x64"):
        read(tmp_path / "ribbon.png", 64)


def test_truncated_files_are_refused(tmp_path: Path) -> None:
    out = io.BytesIO()
    Image.fromarray(RNG.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(out, "JPEG")
    (tmp_path / "x.jpg").write_bytes(out.getvalue()[:-500])
    with pytest.raises(ValueError, match="truncated"):
        read(tmp_path / "x.jpg")
