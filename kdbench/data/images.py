"""Image files read as people see them: upright, in 8 bits of red, green and blue, whatever they are stored as.

Pillow reads them, by content. Only formats that it decodes itself are admitted: EPS would start Ghostscript, IPTC opens
whatever lies inside it, and WMF, GRIB or HDF5 go to whoever registered for them.
"""

from __future__ import annotations

import warnings
from collections import Counter
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile, ImageOps
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


def read_square(path: Path, size: int, notes: Counter[str]) -> NDArray[np.uint8]:
    """An image file as (size, size, 3): resized (bilinear) to the shorter side, then centre-cropped.

    Args:
        notes: counts what was assumed, by what is said about it.

    Raises:
        ValueError: it cannot be read; why, in a few words.
    """
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            with _open(path) as file:
                image = _rgb(_upright(file, notes), file, notes)
            short, long = sorted(image.size)
            if size * size * long > MOST_PIXELS * short:
                raise ValueError(f"{image.width}x{image.height} cannot be resized to a shorter side of {size}")
            square = np.asarray(TF.center_crop(TF.resize(image, [size]), [size, size]))
        except PermissionError as error:
            raise ValueError("you may not read it") from error
        except Exception as error:  # a decoder may raise anything at damaged bytes
            raise ValueError(_reason(error)) from error
    if any("EXIF" in str(warning.message) for warning in caught):
        notes["with damaged EXIF data, whose orientation is not known"] += 1
    return square


def _open(path: Path) -> ImageFile.ImageFile:
    by_ending = endings().get(path.suffix.lower())
    return Image.open(path, formats=[name for name in (*BY_CONTENT, by_ending) if name in Image.OPEN])


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
