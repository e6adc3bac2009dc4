"""Pixels of all modes of Pillow, of 16 bits, transparent, turned: right values, by formulas."""

import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageCms

from vamf.data.colours import picture
from vamf.data.image_files import Cut, Unreadable, decode
from vamf.data.image_folder import ImageFolder

RAMP = np.arange(0, 65536, 257, dtype=np.uint16).reshape(16, 16)
"""All levels of 8 bits, as 16 bits say them."""


def one(mode, value):
    return Image.new(mode, (1, 1), value)


def named(mode, value):
    """A pixel of the one value that is transparent."""
    image = one(mode, value)
    image.info["transparency"] = value
    return image


def palette(*colours, **info):
    """The first entry of a palette."""
    image = Image.new("P", (1, 1), 0)
    image.putpalette([level for colour in colours for level in colour])
    image.info.update(info)
    return image


def merged(mode, *levels):
    return Image.merge(mode, [one("L", level) for level in levels])


def on_white(level, alpha):
    return round((level * alpha + 255 * (255 - alpha)) / 255)


RED, HALF_RED = (255, 0, 0), (255, on_white(0, 128), on_white(0, 128))
HALF_GREY = (on_white(40, 128),) * 3
CASES = {
    "1": (one("1", 1), (255, 255, 255)),
    "1 transparent": (named("1", 0), (255, 255, 255)),
    "L": (one("L", 40), (40, 40, 40)),
    "L transparent": (named("L", 40), (255, 255, 255)),
    "LA": (one("LA", (40, 128)), HALF_GREY),
    "LA hidden": (one("LA", (40, 0)), (255, 255, 255)),
    "La": (merged("La", 20, 128), HALF_GREY),
    "P": (palette((10, 20, 30)), (10, 20, 30)),
    "P transparent entry": (palette((10, 20, 30), transparency=0), (255, 255, 255)),
    "P another is transparent": (palette(RED, RED, transparency=1), RED),
    "P transparent bytes": (palette(RED, transparency=b"\x80"), HALF_RED),
    "RGB": (one("RGB", (10, 20, 30)), (10, 20, 30)),
    "RGB transparent": (named("RGB", (10, 20, 30)), (255, 255, 255)),
    "RGBA": (one("RGBA", (255, 0, 0, 128)), HALF_RED),
    "RGBA hidden": (one("RGBA", (10, 20, 30, 0)), (255, 255, 255)),
    "RGBa": (merged("RGBa", 128, 0, 0, 128), HALF_RED),
    "RGBX": (one("RGBX", (10, 20, 30, 0)), (10, 20, 30)),
    "CMYK": (one("CMYK", (255, 51, 0, 51)), (0, 163, 204)),  # (1 - C)(1 - K), and so on
    "YCbCr": (one("YCbCr", (100, 90, 180)), (173, 76, 33)),  # JPEG's: Y + 1.402 (Cr - 128), ...
    "LAB grey": (merged("LAB", 128, 128, 128), (119, 119, 119)),  # L* = 50.2
    "LAB red": (merged("LAB", 138, 128 + 81, 128 + 70), RED),  # L* 54.3, a 80.8, b 69.9 by D50
    "HSV": (one("HSV", (85, 255, 200)), (0, 200, 0)),
}


def luma(rgb):
    return round(0.299 * rgb[0] + 0.587 * rgb[1] + 0.114 * rgb[2])


@pytest.mark.parametrize("name", CASES)
def test_modes(name):
    image, expected = CASES[name]
    mode = name.split()[0]
    assert image.mode == mode
    slack = {"LAB": 6, "RGBa": 2, "YCbCr": 2}.get(mode, 1)
    colours = picture(image.copy(), "RGB")
    assert colours.mode == "RGB" and colours.size == (1, 1)
    assert np.abs(np.array(colours.getpixel((0, 0))) - expected).max() <= slack
    grey = picture(image.copy(), "L")
    assert grey.mode == "L" and abs(grey.getpixel((0, 0)) - luma(expected)) <= slack


def test_palettes_with_alpha():
    image = Image.merge("PA", [palette(RED).getchannel(0), one("L", 128)])
    image.putpalette(RED)
    assert image.mode == "PA"
    assert np.abs(np.array(picture(image, "RGB").getpixel((0, 0))) - HALF_RED).max() <= 1
    image = palette(RED)
    image.putpalette(bytes([255, 0, 0, 128]), "RGBA")
    assert np.abs(np.array(picture(image, "RGB").getpixel((0, 0))) - HALF_RED).max() <= 1


@pytest.mark.parametrize("mode", ["I;16", "I;16L", "I;16B", "I;16N"])
def test_16_bits_in_all_byte_orders(mode):
    image = Image.new(mode, (16, 16))
    for place, level in np.ndenumerate(RAMP):
        image.putpixel(place[::-1], int(level))
    assert np.array(picture(image, "L")).ravel().tolist() == [*range(256)]
    assert np.array(picture(image, "RGB"))[..., 1].ravel().tolist() == [*range(256)]


def write_tiff(path, levels, bits, photometric=1, order="<", sample_format=1):
    """One strip of grey, as the standard says: tags 256 to 279 and 339."""
    if bits == 12:
        packed = "".join(f"{level:012b}" for level in levels.ravel())
        data = int(packed, 2).to_bytes(len(packed) // 8, "big")
    else:
        kind = {1: "u", 2: "i", 3: "f"}[sample_format]
        data = levels.astype(f"{order}{kind}{bits // 8}").tobytes()
    height, width = levels.shape
    tags = {256: width, 257: height, 258: bits, 259: 1, 262: photometric, 273: 8, 277: 1}
    tags |= {278: height, 279: len(data), 339: sample_format}
    entries = b"".join(struct.pack(f"{order}HHII", tag, 4, 1, v) for tag, v in tags.items())
    head = struct.pack(f"{order}2sHI", b"II" if order == "<" else b"MM", 42, 8 + len(data))
    path.write_bytes(head + data + struct.pack(f"{order}H", len(tags)) + entries + bytes(4))


def write_png(path, depth, colour, row, *chunks):
    """One row of pixels, whose bytes are given; colour 0 is grey, 2 RGB."""
    width = len(row) * 8 // depth // (3 if colour == 2 else 1)
    header = struct.pack(">IIBBBBB", width, 1, depth, colour, 0, 0, 0)
    parts = [(b"IHDR", header), *chunks, (b"IDAT", zlib.compress(b"\0" + row)), (b"IEND", b"")]
    content = b"\x89PNG\r\n\x1a\n"
    for kind, data in parts:
        check = struct.pack(">I", zlib.crc32(kind + data))
        content += struct.pack(">I", len(data)) + kind + data + check
    path.write_bytes(content)


def shown(path, mode="L"):
    """Pixels as training sees them, of a file whose size is kept."""
    cut = Cut(size=0, channels=1 if mode == "L" else 3, crop="centre")
    with cut.opened(path) as image:
        return np.array(picture(image, mode)).tolist()


@pytest.mark.parametrize("ending", [".png", ".tif", ".pgm", ".jp2", ".im"])
def test_files_of_16_bit_grey_are_scaled(tmp_path, ending):
    path = tmp_path / f"a{ending}"
    Image.fromarray(RAMP).save(path, **({"irreversible": False} if ending == ".jp2" else {}))
    images, lines = decode([path], Cut(size=16, channels=3, crop="exact"))
    assert lines == [""] and images[0, 2].flatten().tolist() == [*range(256)]


def test_pgm_of_10_bits_is_scaled(tmp_path):
    (tmp_path / "a.pgm").write_bytes(b"P5 3 1 1023\n" + struct.pack(">3H", 0, 512, 1023))
    assert shown(tmp_path / "a.pgm") == [[0, 128, 255]]


@pytest.mark.parametrize(
    ("order", "bits", "photometric"),
    [  # that Pillow reads
        *[("<", 8, 0), ("<", 8, 1), (">", 8, 0), (">", 8, 1)],
        *[("<", 12, 1), ("<", 16, 0), ("<", 16, 1), (">", 16, 1)],
    ],
)
def test_tiff_by_depth_and_by_what_is_white(tmp_path, order, bits, photometric):
    top = 2**bits - 1
    write_tiff(tmp_path / "a.tif", np.array([[0, top // 5, top, 0]]), bits, photometric, order)
    expected = [0, 51, 255, 0] if photometric == 1 else [255, 204, 0, 255]
    assert shown(tmp_path / "a.tif") == [expected]


@pytest.mark.parametrize(
    ("bits", "kind", "mode"), [(32, 1, "I"), (32, 2, "I"), (16, 2, "I"), (32, 3, "F")]
)
def test_levels_without_a_range_are_refused_by_name(tmp_path, bits, kind, mode):
    write_tiff(tmp_path / "a.tif", np.arange(64).reshape(8, 8), bits, sample_format=kind)
    cut = Cut(size=8, channels=3, crop="exact")
    wanted = rf"a\.tif must have levels of 1 to 16 bits.*; got mode {mode} in a TIFF file"
    for look in (cut, cut.check):
        with pytest.raises(Unreadable, match=wanted):
            look(tmp_path / "a.tif")


@pytest.mark.parametrize(
    ("depth", "row", "chunk", "expected"),
    [
        (1, b"\x40", b"\0\1", [0] + [255] + [0] * 6),
        (2, b"\x1b", b"\0\2", [0, 85, 255, 255]),
        (4, b"\x0f\xe0", b"\0\x0e", [0, 255, 255, 0]),
        (8, bytes([0, 15]), b"\0\x0f", [0, 255]),
        (16, struct.pack(">3H", 0, 4000, 4112), struct.pack(">H", 4000), [0, 255, 16]),
    ],
)
def test_the_transparent_level_of_png_at_all_depths(tmp_path, depth, row, chunk, expected):
    write_png(tmp_path / "a.png", depth, 0, row, (b"tRNS", chunk))
    assert shown(tmp_path / "a.png") == [expected]


@pytest.mark.parametrize(("depth", "code"), [(8, "B"), (16, "H")])
def test_the_transparent_colour_of_png(tmp_path, depth, code):
    step = 1 if depth == 8 else 257
    levels = [level * step for level in (10, 20, 30, 40, 50, 60)]
    transparent = struct.pack(">3H", *levels[:3])
    write_png(
        tmp_path / "a.png", depth, 2, struct.pack(f">6{code}", *levels), (b"tRNS", transparent)
    )
    assert shown(tmp_path / "a.png", "RGB") == [[[255, 255, 255], [40, 50, 60]]]


@pytest.mark.parametrize("ending", [".png", ".webp", ".tif", ".gif", ".avif", ".ico"])
def test_files_show_white_where_they_are_transparent(tmp_path, ending):
    """A hidden checkerboard lies behind."""
    if ending not in Image.registered_extensions():
        pytest.skip("this Pillow reads no such files")
    hidden = np.zeros((16, 16, 4), "u1")
    hidden[::2, ::2, :3] = 200
    hidden[4:12, 4:12] = (0, 0, 200, 255)
    lossless = {".webp": {"lossless": True, "exact": True}, ".ico": {"sizes": [(16, 16)]}}
    Image.fromarray(hidden).save(tmp_path / f"a{ending}", **lossless.get(ending, {}))
    found = np.array(shown(tmp_path / f"a{ending}", "RGB"))
    assert np.abs(found[:3] - 255).max() <= 4
    assert np.abs(found[6:10, 6:10] - (0, 0, 200)).max() <= 12


@pytest.mark.parametrize("ending", [".tga", ".dds", ".bmp"])
def test_alpha_that_is_left_at_0_hides_nothing(tmp_path, ending):
    """Some writers of these formats leave it so, where PNG's mean it."""
    pixels = np.full((2, 4, 4), (10, 20, 30, 0), "u1")
    if ending == ".bmp":  # with masks, which Pillow reads and does not write
        masks = struct.pack("<4I", 0xFF0000, 0xFF00, 0xFF, 0xFF000000)
        head = struct.pack("<IiiHHIIiiII", 108, 4, 2, 1, 32, 3, 32, 0, 0, 0, 0)
        head += masks + bytes(108 - len(head) - len(masks))
        body = head + pixels[..., [2, 1, 0, 3]].tobytes()
        (tmp_path / "a.bmp").write_bytes(struct.pack("<2sIII", b"BM", 154, 0, 122) + body)
    else:
        Image.fromarray(pixels).save(tmp_path / f"a{ending}")
    with Image.open(tmp_path / f"a{ending}") as image:
        assert image.mode == "RGBA" and image.getpixel((0, 0)) == (10, 20, 30, 0)
    assert shown(tmp_path / f"a{ending}", "RGB") == [[[10, 20, 30]] * 4] * 2
    pixels[0, 0, 3] = 255  # then it is meant
    Image.fromarray(pixels).save(tmp_path / "a.tga")
    assert shown(tmp_path / "a.tga", "RGB")[1] == [[255, 255, 255]] * 4


SIDES = {"top": np.s_[:16], "bottom": np.s_[-16:], "left": np.s_[:, :16], "right": np.s_[:, -16:]}
FIRST = ["top left", "top right", "bottom right", "bottom left"]
FIRST += ["left top", "right top", "right bottom", "left bottom"]
"""By the standard: which sides of the picture the first row and column are that are stored."""


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("ending", [".png", ".tif", ".webp", ".jpg"])
def test_exif_orientation(tmp_path, ending, orientation):
    row, column = FIRST[orientation - 1].split()
    stored = np.zeros((32, 48), "u1")
    upright = np.zeros((32, 48) if row in ("top", "bottom") else (48, 32), "u1")
    for image, first, second in ((stored, "top", "left"), (upright, row, column)):
        image[SIDES[first]] += 160
        image[SIDES[second]] += 80
    exif = Image.Exif()
    exif[0x0112] = orientation
    extra = {".webp": {"lossless": True}, ".jpg": {"quality": 98}}.get(ending, {})
    Image.fromarray(stored).save(tmp_path / f"a{ending}", exif=exif, **extra)
    found = np.array(shown(tmp_path / f"a{ending}"), int)
    assert found.shape == upright.shape and np.abs(found - upright).max() <= 6


@pytest.mark.parametrize(
    "exif", [b"Exif\0\0no tags", b"Exif\0\0II*\0\xff\xff\xff\x7f", b"\xff" * 9]
)
@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_damaged_exif_does_not_matter(tmp_path, exif):
    Image.new("L", (16, 16), 100).save(tmp_path / "a.jpg", exif=exif)
    assert shown(tmp_path / "a.jpg") == [[100] * 16] * 16


def test_embedded_colour_profiles_are_ignored(tmp_path):
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("XYZ")).tobytes()
    Image.new("RGB", (2, 1), (10, 20, 30)).save(tmp_path / "a.png", icc_profile=profile)
    with Image.open(tmp_path / "a.png") as image:
        assert image.info["icc_profile"] == profile
    assert shown(tmp_path / "a.png", "RGB") == [[[10, 20, 30]] * 2]


def test_the_first_frame_is_the_picture(tmp_path):
    first, second = (Image.new("L", (4, 4), level) for level in (50, 200))
    for ending in ("tif", "gif", "png"):
        first.save(tmp_path / f"a.{ending}", save_all=True, append_images=[second])
        assert shown(tmp_path / f"a.{ending}") == [[50] * 4] * 4


def test_a_folder_of_all_of_them(tmp_path):
    """The pixels that training sees: scaled, on white, upright, and the refused one named."""
    Image.fromarray(RAMP).save(tmp_path / "a.png")
    Image.new("LA", (16, 16), (40, 0)).save(tmp_path / "b.png")
    Image.new("F", (16, 16), 0.5).save(tmp_path / "c.tif")
    data = ImageFolder(root=tmp_path, size=16, channels=1, damaged="skip")
    for memory_gb in (8.0, 0.0):
        images = ImageFolder(**{**vars(data), "memory_gb": memory_gb}).load("train").pixels([0, 1])
        assert images[0].flatten().tolist() == [*range(256)] and (images[1] == 255).all()
    with pytest.raises(ValueError, match=r"1 of 3 files cannot be used: .*c\.tif must have levels"):
        ImageFolder(root=tmp_path, size=16, channels=1).load("train")
