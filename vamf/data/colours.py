"""Converts an image file of any mode to 8-bit grey or RGB, upright and without transparency."""

import numpy as np
from PIL import ExifTags, Image
from PIL.TiffImagePlugin import BITSPERSAMPLE, PHOTOMETRIC_INTERPRETATION, TiffImageFile

VERSION = "2"
"""Version of this conversion; pixels that another version cached are not used."""
BACKGROUND = "white"
"""The colour behind transparent pixels."""

TURNED = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""The transposition that turns an image of this EXIF orientation upright."""

GREY_STEP = {"L;2": 85, "L;4": 17}
"""The difference of neighbouring levels of fewer than 8 bits after Pillow has scaled them."""


UNUSED = {"BMP", "DDS", "TGA"}
"""Formats whose writers may leave the alpha of all pixels at 0 although they are opaque."""


def has_range(image: Image.Image) -> bool:
    """Whether the file says which levels are black and white: 32-bit and float files do not.

    Mode I also holds the 16 bits of PPM, and in older versions of Pillow those of PNG.
    """
    return image.mode != "F" and (image.mode != "I" or image.format in ("PNG", "PPM"))


def picture(image: Image.Image, mode: str) -> Image.Image:
    """A newly opened image, upright, on white where it is transparent, in mode L or RGB.

    16-bit grey is scaled by its range. EXIF orientation is applied if it can be read; an embedded
    colour profile is ignored, as in torchvision, so CMYK is converted by Pillow's formula. Of
    several frames or pages the first is used. Levels must have a range (``has_range``).
    """
    _scale_transparency(image)
    image.load()
    turned = TURNED.get(_orientation(image))  # after load: PNG may store it at the end of the file
    image = _opaque(_eight_bits(image) if image.mode.startswith("I") else image)
    if image.mode == "LAB":  # Pillow does not convert LAB to grey
        image = image.convert("RGB")
    image = image.convert(mode)
    return image if turned is None else image.transpose(turned)


def _scale_transparency(image: Image.Image) -> None:
    """Scales a PNG's transparent colour to 8 bits, as Pillow scales the pixels but not this."""
    colour, depth = image.info.get("transparency"), _stored_as(image)
    if isinstance(colour, int) and depth in GREY_STEP:
        image.info["transparency"] = colour * GREY_STEP[depth]
    if isinstance(colour, tuple) and depth == "RGB;16B":
        image.info["transparency"] = tuple(level >> 8 for level in colour)


def _stored_as(image: Image.Image) -> str:
    tiles = getattr(image, "tile", None)
    return str(tiles[0][3]) if tiles and image.format == "PNG" else ""


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # damaged tags raise many types of error; the pixels are intact
        return 1


def _eight_bits(image: Image.Image) -> Image.Image:
    """16-bit grey as L, or LA if one level is transparent; Pillow's own conversion clips."""
    stored, top = np.asarray(image), _highest(image)
    levels = top - stored if _white_is_zero(image) else stored
    scaled = (levels.astype(np.uint32) * 255 + top // 2) // top
    grey, transparent = Image.fromarray(scaled.astype(np.uint8)), image.info.get("transparency")
    if transparent is None:
        return grey
    alpha = np.where(stored == transparent, 0, 255).astype(np.uint8)
    return Image.merge("LA", (grey, Image.fromarray(alpha)))


def _highest(image: Image.Image) -> int:
    """The largest level; only TIFF stores 12 bits, other formats are already scaled to 16."""
    if isinstance(image, TiffImageFile):
        bits = int(image.tag_v2.get(BITSPERSAMPLE, (16,))[0])
        return 2**bits - 1
    return 65535


def _white_is_zero(image: Image.Image) -> bool:
    """Whether 0 is white in a TIFF; Pillow inverts such TIFFs of 8 bits, but not of 16."""
    return isinstance(image, TiffImageFile) and image.tag_v2.get(PHOTOMETRIC_INTERPRETATION) == 0


def _opaque(image: Image.Image) -> Image.Image:
    """The image on ``BACKGROUND``: the colours of transparent pixels are not shown."""
    if image.mode == "La":  # Pillow has no other conversion from it
        image = image.convert("LA")
    if not image.has_transparency_data or _alpha_is_unused(image):
        return image
    image = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, BACKGROUND), image)


def _alpha_is_unused(image: Image.Image) -> bool:
    unset = image.mode == "RGBA" and image.getchannel("A").getextrema() == (0, 0)
    return image.format in UNUSED and unset
