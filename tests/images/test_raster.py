"""PNG and BMP of every kind of pixel."""

import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from autoseg.core.errors import LabelFault, UnreadableFile
from autoseg.images.formats.files import verify_file
from autoseg.images.readers import read_image, read_labels

GRAY = np.random.default_rng(0).integers(0, 255, (9, 11)).astype(np.uint8)
CLASSES = GRAY // 100
PALETTE = [0, 0, 0, 255, 0, 0, 0, 255, 0]


def save(path, array, **options):
    Image.fromarray(array).save(path, **options)
    return path


def indexed(path, **options):
    picture = Image.fromarray(CLASSES)
    picture = picture.convert("P") if picture.mode != "P" else picture
    picture.putdata(CLASSES.ravel().tolist())
    picture.putpalette(PALETTE)
    picture.save(path, **options)
    return path


@pytest.mark.parametrize(
    ("name", "array"),
    [
        ("case.png", GRAY),
        ("case.bmp", GRAY),
        ("case.png", GRAY > 100),
        ("case.bmp", GRAY > 100),
        ("case.png", GRAY.astype(np.uint16) * 250),
        ("CASE.PNG", GRAY),
    ],
)
def test_gray_pictures_are_one_channel_and_their_own_labels(tmp_path, name, array):
    path = save(tmp_path / name, array)
    assert (read_image([path]).array == array).all()
    assert (read_labels(path).array == array).all()


@pytest.mark.parametrize(("name", "channels"), [("case.png", 3), ("case.png", 4), ("case.bmp", 3)])
def test_colors_become_channels(tmp_path, name, channels):
    array = np.stack([GRAY, 255 - GRAY, GRAY // 2, GRAY // 3][:channels], axis=-1)
    path = save(tmp_path / name, array)
    assert (read_image([path]).array[:, 0] == np.moveaxis(array, -1, 0)).all()
    with pytest.raises(LabelFault, match=f"{channels} channels"):
        read_labels(path)


def test_the_alpha_channel_of_a_gray_picture_is_dropped_with_a_note(tmp_path):
    path = save(tmp_path / "case.png", np.stack([GRAY, np.full_like(GRAY, 255)], axis=-1))
    for found in (read_image([path]), read_labels(path)):
        assert (found.array.reshape(GRAY.shape) == GRAY).all()
        assert "alpha" in found.notes[0]


def test_gray_colors_are_labels(tmp_path):
    alpha = np.full_like(GRAY, 255)
    for channels in ([GRAY, GRAY, GRAY], [GRAY, GRAY, GRAY, alpha]):
        path = save(tmp_path / "case.png", np.stack(channels, axis=-1))
        assert (read_labels(path).array == GRAY).all()


@pytest.mark.parametrize("ending", [".png", ".tif"])
@pytest.mark.parametrize("colors", [1, 3])
def test_masks_in_the_alpha_channel_are_no_values(tmp_path, ending, colors):
    """As drawing programs save them: white or black everywhere, and transparent where there is background."""
    opaque, mask = np.full_like(GRAY, 255), np.where(GRAY > 0, 255, 0).astype(np.uint8)
    for number, (gray, alpha, fault) in enumerate(
        (
            (GRAY, opaque, None),
            (GRAY, opaque // 2, None),
            (GRAY, mask, None),
            (opaque, mask, "transparent pixels with a value above 0"),
            (GRAY, np.roll(mask, 1, 0), "transparent pixels with a value above 0"),
            (opaque * 0, mask, "the value 0 everywhere"),
        )
    ):
        path = save(tmp_path / f"{number}{ending}", np.stack([gray] * colors + [alpha], axis=-1))
        if fault is None:
            assert (read_labels(path).array == gray).all()
        else:
            with pytest.raises(LabelFault, match=fault):
                read_labels(path)
            assert read_image([path]).array.shape == (4 if colors == 3 else 1, 1, *GRAY.shape)


@pytest.mark.parametrize(("name", "options"), [("case.png", {}), ("case.png", {"bits": 2}), ("case.bmp", {})])
def test_a_palette_gives_colors_to_images_and_numbers_to_labels(tmp_path, name, options):
    path = indexed(tmp_path / name, **options)
    assert (read_labels(path).array == CLASSES).all()
    volume = read_image([path])
    assert (volume.array[0, 0] == (CLASSES == 1) * 255).all()
    assert "palette" in volume.notes[0]


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png_bytes(width, height, bits, color, rows: bytes) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, bits, color, 0, 0, 0)
    data = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + data


@pytest.mark.parametrize("kind", [b"IHDR", b"tEXt"])
def test_a_header_that_pillow_passes_over_is_damage(tmp_path, kind):
    """Pillow takes the last of several headers, wherever it stands."""
    path = tmp_path / "case.png"
    whole = png_bytes(4, 2, 8, 0, bytes(10))
    path.write_bytes(whole[:8] + chunk(kind, struct.pack(">IIBBBBB", 4, 2, 8, 255, 0, 0, 0)) + whole[8:])
    with pytest.raises(UnreadableFile, match="does not begin with a header"):
        read_image([path])


def test_two_bit_gray_labels_are_not_stretched(tmp_path):
    path = tmp_path / "case.png"
    path.write_bytes(png_bytes(4, 2, 2, 0, bytes([0, 0b00011011, 0, 0b11100100])))
    assert read_labels(path).array[0].tolist() == [[0, 1, 2, 3], [3, 2, 1, 0]]


def test_sixteen_bit_colors_keep_their_bits(tmp_path):
    colors = np.random.default_rng(0).integers(0, 65536, (5, 7, 3)).astype(">u2")
    rows = b"".join(b"\0" + row.tobytes() for row in colors)
    path = tmp_path / "case.png"
    path.write_bytes(png_bytes(7, 5, 16, 2, rows))
    assert (read_image([path]).array[:, 0] == np.moveaxis(colors, -1, 0)).all()
    gray = np.repeat(colors[..., :1], 3, axis=-1)
    path.write_bytes(png_bytes(7, 5, 16, 2, b"".join(b"\0" + row.tobytes() for row in gray)))
    assert (read_labels(path).array[0] == gray[..., 0]).all()


def test_a_picture_beyond_the_usual_limit_of_pixels_is_read(tmp_path):
    path = tmp_path / "case.png"
    path.write_bytes(png_bytes(20000, 9000, 1, 0, bytes(9000 * 2501)))
    assert read_labels(path).array.shape == (1, 9000, 20000)


@pytest.mark.parametrize(("bits", "color"), [(8, 0), (16, 2), (8, 3)])
def test_valid_checksums_over_too_few_pixels_are_refused(tmp_path, bits, color):
    path = tmp_path / "case.png"
    path.write_bytes(png_bytes(20, 20, bits, color, bytes(40)))
    for read in (read_labels, lambda path: read_image([path])):
        with pytest.raises(UnreadableFile, match=r"case\.png"):
            read(path)


@pytest.mark.parametrize(
    ("width", "height", "bits", "color"), [(0, 5, 8, 0), (5, 5, 7, 0), (5, 5, 8, 5), (60000, 60000, 8, 0)]
)
def test_an_impossible_png_header_is_refused(tmp_path, width, height, bits, color):
    path = tmp_path / "case.png"
    path.write_bytes(png_bytes(width, height, bits, color, bytes(100)))
    with pytest.raises(UnreadableFile):
        verify_file(path)


def test_pillow_refusing_a_file_is_named(tmp_path):
    path = save(tmp_path / "case.bmp", GRAY)
    content = bytearray(path.read_bytes())
    struct.pack_into("<I", content, 14, 41)  # length of the second header
    path.write_bytes(content)
    with pytest.raises(UnreadableFile, match="cannot be decoded"):
        read_image([path])


def test_a_bmp_with_an_impossible_header_is_refused(tmp_path):
    path = save(tmp_path / "case.bmp", GRAY)
    content = path.read_bytes()
    for offset, value in ((18, 0), (18, 2**30), (30, 1), (2, 2**30)):
        damaged = bytearray(content)
        struct.pack_into("<I", damaged, offset, value)
        path.write_bytes(damaged)
        with pytest.raises(UnreadableFile):
            verify_file(path)


PALETTES = {
    "gray": lambda count: np.repeat(np.arange(count)[:, None], 3, 1),
    "black and white": lambda _count: np.array([[0, 0, 0], [255, 255, 255]]),
    "white and black": lambda _count: np.array([[255, 255, 255], [0, 0, 0]]),
    "colors": lambda count: np.random.default_rng(0).integers(0, 255, (count, 3)),
}


def bmp_bytes(rows, bits, height, palette=(), compression=0, width=11):
    """A BMP of rows from the bottom up, or from the top down where the height is negative."""
    colors = b"".join(bytes([*color[::-1], 0]) for color in np.asarray(palette).tolist())
    start = 54 + len(colors)
    data = b"".join(row.ljust(-(-len(row) // 4) * 4, b"\0") for row in rows)
    sizes = struct.pack("<IiiHHIIiiII", 40, width, height, 1, bits, compression, len(data), 0, 0, len(palette), 0)
    return b"BM" + struct.pack("<IHHI", start + len(data), 0, 0, start) + sizes + colors + data


@pytest.mark.parametrize("palette", PALETTES)
@pytest.mark.parametrize("bits", [1, 4, 8])
@pytest.mark.parametrize("is_top_down", [False, True])
def test_indices_of_a_bmp_are_as_stored_whatever_their_palette(tmp_path, palette, bits, is_top_down):
    colors = PALETTES[palette](2**bits)
    numbers = np.random.default_rng(bits).integers(0, min(2**bits, len(colors)), (9, 11))
    rows = ["".join(f"{number:0{bits}b}" for number in row) for row in numbers]
    rows = [int(row.ljust(-(-len(row) // 8) * 8, "0"), 2).to_bytes(-(-len(row) // 8), "big") for row in rows]
    path = tmp_path / "case.bmp"
    path.write_bytes(bmp_bytes(rows if is_top_down else rows[::-1], bits, -9 if is_top_down else 9, colors))
    assert (read_labels(path).array[0] == numbers).all()
    array = read_image([path]).array
    assert (array == (numbers if len(array) == 1 else np.moveaxis(colors[numbers], -1, 0)[:, None])).all()


@pytest.mark.parametrize("bits", [24, 32])
def test_colors_of_a_bmp_are_as_stored(tmp_path, bits):
    colors = np.random.default_rng(0).integers(0, 255, (9, 11, bits // 8)).astype(np.uint8)
    path = tmp_path / "case.bmp"
    path.write_bytes(bmp_bytes([row.tobytes() for row in colors], bits, -9))
    assert (read_image([path]).array[:, 0] == np.moveaxis(colors[..., 2::-1], -1, 0)).all()


def test_five_bits_a_color_are_stretched_with_a_note(tmp_path):
    path = tmp_path / "case.bmp"
    path.write_bytes(bmp_bytes([struct.pack("<11H", *[31 << 10] * 11)] * 9, 16, 9))
    volume = read_image([path])
    assert volume.array[:, 0, 0, 0].tolist() == [255, 0, 0]
    assert "5 and 6 bits" in volume.notes[0]


def test_run_length_encoding_in_bmp_is_refused_by_name(tmp_path):
    path = tmp_path / "case.bmp"
    path.write_bytes(bmp_bytes([bytes([11, 1, 0, 0])] * 9, 8, 9, PALETTES["gray"](256), compression=1))
    with pytest.raises(UnreadableFile, match="run-length"):
        read_image([path])


def test_a_color_beyond_the_palette_is_refused(tmp_path):
    path = indexed(tmp_path / "case.png")
    content = path.read_bytes()
    start = content.index(b"PLTE") - 4
    length = int.from_bytes(content[start : start + 4], "big")
    path.write_bytes(content[:start] + chunk(b"PLTE", bytes(6)) + content[start + 12 + length :])
    with pytest.raises(UnreadableFile, match="uses color 2 of a palette of 2"):
        read_image([path])


def test_chunks_where_pillow_would_not_look_are_refused(tmp_path):
    path = save(tmp_path / "case.png", np.tile(GRAY, (9, 9)))
    content = path.read_bytes()
    head, start = content[8:33], content.index(b"IDAT") - 4
    for first, second in ((content[:start] + head, content[start:]), (content[:-12], content[start:])):
        path.write_bytes(first + (chunk(b"tEXt", b"a\0b") if second[4:8] == b"IDAT" else b"") + second)
        with pytest.raises(UnreadableFile, match="second header, or pixels in two places"):
            verify_file(path)


def test_of_an_animation_the_first_picture_is_read_with_a_note(tmp_path):
    first, second = Image.fromarray(GRAY), Image.fromarray(255 - GRAY)
    first.save(tmp_path / "case.png", save_all=True, append_images=[second])
    volume = read_image([tmp_path / "case.png"])
    assert (volume.array == GRAY).all()
    assert "animation" in volume.notes[0]


@pytest.mark.parametrize(("value", "is_noted"), [(1, False), (3, True), (6, True)])
def test_an_orientation_of_exif_that_is_not_followed_is_noted(tmp_path, value, is_noted):
    pixels = np.arange(48, dtype=np.uint8).reshape(6, 8)
    exif = Image.Exif()
    exif[274] = value
    Image.fromarray(pixels).save(tmp_path / "case.png", exif=exif)
    volume = read_image([tmp_path / "case.png"])
    assert (volume.array[0, 0] == pixels).all()
    assert any("orientation tag" in note for note in volume.notes) == is_noted
