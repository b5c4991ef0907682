"""Image files read as people see them: upright, in 8 bits of red, green and blue, whatever they are stored as.

Pillow reads them, by content. Only formats that it decodes itself are admitted: EPS would start Ghostscript, IPTC opens
whatever lies inside it, and WMF, GRIB or HDF5 go to whoever registered for them.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageFile, ImageOps
from torchvision.transforms import functional as TF

BY_CONTENT = (
    "JPEG",
    "PNG",
    "BMP",
    "GIF",
    "PPM",
    "WEBP",
    "TIFF",
    "AVIF",
    "JPEG2000",
    "QOI",
    "PSD",
    "DDS",
    "ICNS",
    "SUN",
)
"""Formats that are known by their first bytes, whatever a file's ending."""
BY_ENDING = (
    "BLP",
    "CUR",
    "DCX",
    "DIB",
    "FLI",
    "FTEX",
    "GBR",
    "ICO",
    "IM",
    "MSP",
    "PCD",
    "PCX",
    "SGI",
    "TGA",
    "XBM",
    "XPM",
)
"""Formats that need their ending, for other files can begin like them (a text can pass for a TGA)."""
SIXTEEN = {("PNG", "I;16"), ("JPEG2000", "I;16"), ("PPM", "I"), ("TIFF", "I;16"), ("TIFF", "I;16B")}
"""Format and mode of grey images of more than 8 bits, where the format says which value is white."""
FLOAT = {("TIFF", "F"), ("PPM", "F")}
BITS, PHOTOMETRIC, PLANES = 258, 262, 284
"""TIFF tags: bits of each channel; 0 where the value 0 is white; 2 where each channel lies in a plane of its own."""
LOSSLESS = {"PNG", "TIFF", "BMP", "GIF", "PPM"}
"""Formats of masks and depth maps: whatever they say is meant."""
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What an EXIF orientation asks for (1: nothing)."""
Size = tuple[int, int]
"""Height and width in pixels."""
MOST_PIXELS = 1 << 27
"""Of an image that was resized: what is longer than this allows is no image to crop a square from."""


@lru_cache(maxsize=1)
def endings() -> dict[str, str]:
    """The endings of admitted formats, as ``.jpg``, with Pillow's name of the format."""
    admitted = {*BY_CONTENT, *BY_ENDING}
    known = {ending: name for ending, name in Image.registered_extensions().items() if name in admitted}
    return {**known, ".mpo": "JPEG"}  # which is what such a file begins as


def is_image(path: Path) -> bool:
    """Whether a file is meant to be read: it has an image's ending or content, or cannot be opened to tell."""
    if path.suffix.lower() in endings():
        return True
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            with _open(path):
                return True
        except OSError as error:
            return error.errno is not None
        except Exception:  # whatever a decoder raises at a file that is not its own
            return False


def read_image(path: Path, size: Size, notes: Counter[str]) -> NDArray[np.uint8]:
    """An image file as (height, width, 3): resized (bilinear) until it covers `size`, then centre-cropped.

    Args:
        size: height and width.
        notes: counts what was assumed, by what is said about it.

    Raises:
        ValueError: it cannot be read; why, in a few words.
    """
    with _told(notes), _open(path) as file:
        return _fitted(_rgb(_upright(file, notes), file, notes), size, TF.InterpolationMode.BILINEAR)


def read_whole(path: Path, content: bytes, notes: Counter[str]) -> Image.Image:
    """An image file as large as it is, of which the `content` is at hand.

    Raises:
        ValueError: it cannot be read; why, in a few words.
    """
    with _told(notes), _open(path, content) as file:
        return _rgb(_upright(file, notes), file, notes)


def upright_size(path: Path) -> Size | None:
    """Height and width of an image file as `read_image` sees it; None where it cannot be read."""
    with suppress(ValueError), _told(Counter()), _open(path) as file:
        width, height = file.size
        return (width, height) if _orientation(file) >= 5 else (height, width)
    return None


def read_with(
    path: Path, beside: Path, read: Callable[[Path], Image.Image], size: Size | None, notes: Counter[str]
) -> tuple[NDArray[np.uint8], NDArray[Any]]:
    """An image file as (height, width, 3), and the map that lies beside it as (height, width), turned and cut alike.

    A map has the size of its image. An image that is turned by its EXIF data, where the map is not, was seen by whoever
    made the map either as it is stored or upright: where the sizes do not tell which, it is refused.

    Args:
        read: reads a map, see `mask_file` and `depth_file`.
        size: height and width, brought about as in `read_image` (nearest pixel for maps); None: as large as it is.

    Raises:
        ValueError: they cannot be read or do not fit together; why, in a few words.
    """
    with _told(notes), _open(path) as file:
        upright = _upright(file, notes)
        image = _rgb(upright, file, notes)
        turn = TURNS.get(_orientation(file))
        stored, seen = file.size, image.size
        target = read(beside)
        known = _orientation(target) in TURNS
        target = ImageOps.exif_transpose(target)
        if turn is not None and not known and target.size in (stored, seen):
            if stored == seen:
                raise ValueError(
                    f"it is turned by its EXIF data, and nothing tells whether {beside.name} is: save it upright"
                )
            if target.size == stored:
                target = target.transpose(turn)
        if target.size != seen:
            shapes = (f"{height}x{width}" for width, height in (target.size, seen))
            raise ValueError("{} is {}, the image {}".format(beside.name, *shapes))
        size = size or (image.height, image.width)
        pixels = _fitted(image, size, TF.InterpolationMode.BILINEAR)
        return pixels, _fitted(target, size, TF.InterpolationMode.NEAREST)


def mask_file(path: Path) -> Image.Image:
    """A mask, of which each pixel holds the index of a class: grey levels, or the indices of a palette.

    Raises:
        ValueError: it is no such file.
    """
    with _open(path) as file:
        if file.format not in LOSSLESS:
            raise ValueError(f"{path.name} is a {file.format}, which does not keep indices: save it as PNG")
        orientation = _orientation(file)
        values = np.asarray(file)
        if file.mode not in ("1", "L", "P", "I", "I;16", "I;16B"):
            raise ValueError(f"{path.name} has colours ({file.mode}): save it with a class index in each pixel")
        if values.min() < 0 or values.max() > 255:
            raise ValueError(f"{path.name} has values {values.min()}..{values.max()}, not class indices of 0..255")
        return _marked(Image.fromarray(values.astype(np.uint8)), orientation)


def depth_file(path: Path) -> Image.Image:
    """A depth map in millimetres, 0 where there is no reading: 16-bit PNG or TIFF, or ``.npy``.

    An array of whole numbers is in millimetres, one of floats in metres; what is not finite there is no reading.

    Raises:
        ValueError: it is no such file.
    """
    if path.suffix.lower() == ".npy":
        orientation = 1
        try:
            values = np.asarray(np.lib.format.open_memmap(path, mode="r"))  # as in `kdbench.data.arrays`
        except Exception as error:  # as there
            raise ValueError(f"{path.name} is no .npy file of numbers ({_reason(error)})") from error
        if values.ndim != 2 or values.dtype.kind not in "uif":
            raise ValueError(f"{path.name} holds {values.dtype} {values.shape}, not numbers of (height, width)")
        if values.dtype.kind == "f":
            values = np.rint(np.where(np.isfinite(values), values, 0) * 1000.0)
    else:
        with _open(path) as file:
            if file.format not in LOSSLESS or file.mode not in ("I", "I;16", "I;16B"):
                raise ValueError(f"{path.name} is a {file.format} of mode {file.mode}: save it as 16-bit PNG, in mm")
            orientation = _orientation(file)
            values = np.asarray(file)
    if values.min() < 0 or values.max() > 65535:
        raise ValueError(f"{path.name} has depths {values.min():g}..{values.max():g} mm, of which 0..65535 are kept")
    return _marked(Image.fromarray(values.astype(np.uint16)), orientation)


def _marked(image: Image.Image, orientation: int) -> Image.Image:
    """`image` with the EXIF orientation of the file that it was read from."""
    if orientation != 1:
        image.getexif()[ExifTags.Base.Orientation] = orientation
    return image


def _orientation(image: Image.Image) -> int:
    try:
        return image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # as `_upright`
        return 1


@contextmanager
def _told(notes: Counter[str]) -> Iterator[None]:
    """Give whatever a decoder raises or warns of in a few words."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            yield
        except PermissionError as error:
            raise ValueError("you may not read it") from error
        except Exception as error:  # a decoder may raise anything at damaged bytes
            raise ValueError(_reason(error)) from error
    if any("EXIF" in str(warning.message) for warning in caught):
        notes["with damaged EXIF data, whose orientation is not known"] += 1


def _fitted(image: Image.Image, size: Size, mode: TF.InterpolationMode) -> NDArray[Any]:
    """Resized until it covers `size`, then centre-cropped."""
    height, width = size
    if height * image.width < width * image.height:  # it is the width that makes it cover
        whole = width * image.height // image.width, width
    else:
        whole = height, height * image.width // image.height
    if whole[0] * whole[1] > MOST_PIXELS:
        raise ValueError(f"{image.width}x{image.height} cannot be resized to cover {height}x{width}")
    return np.asarray(TF.center_crop(TF.resize(image, list(whole), mode), [height, width]))


def _open(path: Path, content: bytes | None = None) -> ImageFile.ImageFile:
    by_ending = endings().get(path.suffix.lower())
    formats = [name for name in (*BY_CONTENT, by_ending) if name in Image.OPEN]
    return Image.open(path if content is None else BytesIO(content), formats=formats)


def _upright(file: ImageFile.ImageFile, notes: Counter[str]) -> Image.Image:
    """The (first) picture of a file, turned as its EXIF orientation says."""
    if getattr(file, "is_animated", False) and file.format != "PSD":  # whose frames are the layers of one picture
        notes["with several frames or pages, of which the first is taken"] += 1
    if file.format == "TIFF" and file.tag_v2.get(PLANES) == 2 and _bits(file) > 8:  # type: ignore[attr-defined]
        raise ValueError("TIFF with more than 8 bits in separate planes: save it interleaved")
    file.load()
    try:
        return ImageOps.exif_transpose(file)
    except Exception:  # viewers, too, show such a picture as it is stored
        notes["with damaged EXIF data, whose orientation is not known"] += 1
        return file


def _rgb(image: Image.Image, file: ImageFile.ImageFile, notes: Counter[str]) -> Image.Image:
    """`image`, which came out of `file`, in 8 bits; what is transparent lies on white."""
    if image.mode[0] in "IF":
        image = _grey(image, file, notes)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        least, most = image.getextrema()[3]  # type: ignore[misc]
        if most == 0:
            notes["transparent all over, of which the colours are taken"] += 1
        elif least < 255:
            notes["with transparency, laid on white"] += 1
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def _grey(image: Image.Image, file: ImageFile.ImageFile, notes: Counter[str]) -> Image.Image:
    """More than 8 bits, or floats, as 8 bits."""
    kind = (file.format or "", image.mode)
    values = np.asarray(image).astype(np.float64)
    if kind in SIXTEEN:
        bits = _bits(file) if file.format == "TIFF" else 16
        white = (1 << bits) - 1
        notes[f"with {bits} bits, of which 0..{white} became 0..255"] += 1
    elif kind in FLOAT:
        white = 1
        if not (values.min() >= 0 and values.max() <= 1):  # also where there is a NaN
            raise ValueError(f"floats {values.min():g}..{values.max():g}, of which only 0..1 is understood")
        notes["of floats, of which 0..1 became 0..255"] += 1
    else:
        raise ValueError(
            f"{file.format} of mode {image.mode} does not say which value is white: save it in 8 or 16 bits"
        )
    if "transparency" in file.info:
        raise ValueError("transparent by a grey level of more than 8 bits: save it with an alpha channel")
    if file.format == "TIFF" and file.tag_v2.get(PHOTOMETRIC) == 0:  # type: ignore[attr-defined]
        values = white - values  # Pillow does so for 8 bits only
    return Image.fromarray(np.rint(values * (255 / white)).astype(np.uint8))


def _bits(tiff: ImageFile.ImageFile) -> int:
    bits = tiff.tag_v2.get(BITS, (1,))  # type: ignore[attr-defined]
    return max(bits) if isinstance(bits, tuple) else int(bits)


def _reason(error: Exception) -> str:
    """One line, in which neither a path nor an object's address stands."""
    if isinstance(error, Image.UnidentifiedImageError):
        return "no image of a kind that is read"
    if isinstance(error, MemoryError):
        return "it does not fit into memory"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return " ".join(str(error).split()) or type(error).__name__
