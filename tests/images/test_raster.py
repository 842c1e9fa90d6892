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
