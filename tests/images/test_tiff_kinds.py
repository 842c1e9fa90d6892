"""TIFF files whose numbers have more than one reading, that need codecs, or that lack some of their numbers."""

import json
import struct
import subprocess
import sys
import zlib

import imagecodecs
import numpy as np
import pytest
import tifffile
from PIL import Image

from autoseg.core.errors import UnreadableFile
from autoseg.images.formats.files import verify_file
from autoseg.images.readers import read_image, read_labels

STACK = np.random.default_rng(0).integers(0, 255, (5, 32, 48)).astype(np.uint8)
PLANE = STACK[0]
GRAY = {"photometric": "minisblack", "metadata": None}


def saved(path, array, **options):
    tifffile.imwrite(path, array, **options)
    return path


def by_hand(path, data, bits=8, compression=1, size=(48, 32), byte_count=None, **tags):
    """A gray TIFF of one strip, written byte by byte."""
    entries = {256: size[0], 257: size[1], 258: bits, 259: compression, 262: 1, 273: 8, 277: 1, 278: size[1]}
    entries |= {279: len(data) if byte_count is None else byte_count, **{int(tag[1:]): tags[tag] for tag in tags}}
    data += b"\0" * (len(data) % 2)
    directory = b"".join(struct.pack("<HHII", tag, 4, 1, entries[tag]) for tag in sorted(entries))
    head = b"II*\0" + struct.pack("<I", 8 + len(data))
    path.write_bytes(head + data + struct.pack("<H", len(entries)) + directory + bytes(4))
    return path


@pytest.mark.parametrize("bits", [1, 2, 4, 6, 12, 14])
def test_packed_numbers_are_as_stored(tmp_path, bits):
    numbers = np.random.default_rng(bits).integers(0, 2**bits, (32, 47))
    rows = ["".join(f"{number:0{bits}b}" for number in row) for row in numbers]
    length = -(-47 * bits // 8)
    data = b"".join(int(row.ljust(8 * length, "0"), 2).to_bytes(length, "big") for row in rows)
    path = by_hand(tmp_path / "case.tif", data, bits, size=(47, 32))
    assert (read_image([path]).array == numbers).all()
    assert (read_labels(path).array == numbers).all()


@pytest.mark.parametrize("dtype", [np.int8, np.float16, np.int32])
@pytest.mark.parametrize("options", [{}, {"compression": "lzw"}, {"compression": "zlib", "predictor": True}])
def test_rare_types_are_as_stored(tmp_path, dtype, options):
    array = (PLANE.astype(np.int16) - 127).astype(dtype)
    path = saved(tmp_path / "case.tif", array, tile=(16, 16), **GRAY, **options)
    assert (read_image([path]).array == array).all()


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int8])
@pytest.mark.parametrize("layout", [{}, {"tile": (16, 16)}, {"planarconfig": "separate"}])
def test_four_colors_stay_in_their_places(tmp_path, dtype, layout):
    colors = np.random.default_rng(0).integers(0, 120, (4, 32, 48)).astype(dtype)
    array = colors if layout.get("planarconfig") else np.moveaxis(colors, 0, -1)
    options = {"photometric": "rgb", "extrasamples": ("unassalpha",), "compression": "lzw", **layout}
    path = saved(tmp_path / "case.tif", array, **options)
    assert (read_image([path]).array[:, 0] == colors).all()


def test_zero_that_stands_for_white_stays_zero_with_a_note(tmp_path):
    path = saved(tmp_path / "case.tif", PLANE > 99, photometric="miniswhite", compression="lzw")
    assert (read_labels(path).array == (PLANE > 99)).all()
    assert "0 stands for white" in read_image([path]).notes[0]


@pytest.mark.parametrize("widest", [255, 65535])
def test_a_palette_gives_colors_to_images_and_numbers_to_labels(tmp_path, widest):
    colors = np.random.default_rng(0).integers(0, widest, (3, 256)).astype(np.uint16)
    path = saved(tmp_path / "case.tif", STACK, photometric="palette", colormap=colors)
    assert (read_labels(path).array == STACK).all()
    volume = read_image([path])
    assert (volume.array == (colors >> 8 if widest > 255 else colors)[:, STACK]).all()
    assert any("palette" in note for note in volume.notes)


def test_a_palette_of_one_bit_has_two_colors(tmp_path):
    path, mask = tmp_path / "case.tif", np.arange(48).reshape(6, 8) % 3 == 0
    colors = (1, 10, 2, 20, 3, 30)  # red, green and blue of 0 and 1
    tifffile.imwrite(path, mask, photometric="minisblack", extratags=[(320, "H", 6, colors, True)])
    with tifffile.TiffFile(path, mode="r+b") as file:
        file.pages[0].tags["PhotometricInterpretation"].overwrite(3)
    assert np.array_equal(
        read_image([path]).array[:, 0], np.where(mask, [[[10]], [[20]], [[30]]], [[[1]], [[2]], [[3]]])
    )
    assert np.array_equal(read_labels(path).array[0], mask)


def test_a_palette_of_five_numbers_is_damage(tmp_path):
    path = tmp_path / "case.tif"
    tifffile.imwrite(path, PLANE, photometric="minisblack", extratags=[(320, "H", 5, (1, 2, 3, 4, 5), True)])
    with tifffile.TiffFile(path, mode="r+b") as file:
        file.pages[0].tags["PhotometricInterpretation"].overwrite(3)
    with pytest.raises(UnreadableFile, match="palette"):
        read_image([path])


def test_a_palette_without_colors_gives_numbers_with_a_note(tmp_path):
    path = by_hand(tmp_path / "case.tif", PLANE.tobytes(), _262=3)
    volume = read_image([path])
    assert (volume.array == PLANE).all()
    assert "has no colors" in volume.notes[0]


def test_a_lookup_table_of_imagej_is_for_the_screen_alone(tmp_path):
    colors = np.random.default_rng(0).integers(0, 65535, (3, 256)).astype(np.uint16)
    path = saved(
        tmp_path / "case.tif", STACK, imagej=True, metadata={"axes": "ZYX"}, photometric="palette", colormap=colors
    )
    volume = read_image([path])
    assert (volume.array == STACK).all()
    assert "lookup table" in volume.notes[0]


@pytest.mark.parametrize(
    ("stated", "is_noted"),
    [({"cf": 0, "c0": -32768, "c1": 1}, True), ({"cf": 4, "c0": 1.5}, True), ({"cf": 0, "c0": 0, "c1": 1}, False)],
)
def test_a_calibration_of_imagej_is_noted(tmp_path, stated, is_noted):
    volume = read_image([saved(tmp_path / "case.tif", STACK, imagej=True, metadata={"axes": "ZYX", **stated})])
    assert (volume.array == STACK).all()
    assert any("calibration" in note for note in volume.notes) == is_noted


@pytest.mark.parametrize("value", [1, 6])
def test_an_orientation_that_is_not_followed_is_noted(tmp_path, value):
    path = saved(tmp_path / "case.tif", PLANE, extratags=[(274, 3, 1, value, True)], **GRAY)
    notes = read_image([path]).notes
    assert [f"orientation tag ({value})" in note for note in notes] == [True] * (value > 1)


def test_time_points_taken_as_slices_are_noted(tmp_path):
    path = saved(tmp_path / "case.tif", STACK, imagej=True, metadata={"axes": "TYX"})
    assert "time points" in read_image([path]).notes[0]


def test_other_kinds_of_colors_are_noted(tmp_path):
    inks = np.moveaxis(STACK[:4], 0, -1)
    volume = read_image([saved(tmp_path / "case.tif", inks, photometric="separated")])
    assert (volume.array[:, 0] == STACK[:4]).all()
    assert "SEPARATED" in volume.notes[0]


def test_compression_that_may_lose_detail_is_noted(tmp_path):
    volume = read_image([saved(tmp_path / "case.tif", PLANE, compression="jpeg2000", **GRAY)])
    assert (volume.array == PLANE).all()
    assert "may have lost" in volume.notes[0]


@pytest.mark.parametrize(("compression", "name"), [("group4", "CCITT"), ("group3", "CCITT")])
def test_compression_whose_decoder_hides_what_is_missing_is_refused(tmp_path, compression, name):
    Image.fromarray(PLANE > 99).save(tmp_path / "case.tif", compression=compression)
    with pytest.raises(UnreadableFile, match=name):
        read_labels(tmp_path / "case.tif")


@pytest.mark.parametrize("name", ["case.ome.tif", "case.tif"])
def test_the_full_resolution_of_a_pyramid_is_read_with_a_note(tmp_path, name):
    with tifffile.TiffWriter(tmp_path / name) as file:
        file.write(STACK, photometric="minisblack", metadata={"axes": "ZYX"}, subifds=2)
        file.write(STACK[:, ::2, ::2], photometric="minisblack", subfiletype=1)
        file.write(STACK[:, ::4, ::4], photometric="minisblack", subfiletype=1)
    volume = read_image([tmp_path / name])
    assert (volume.array == STACK).all()
    assert "2 smaller copies" in volume.notes[0]


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("subfiletype", [1, 4])
def test_previews_and_masks_are_left_out_with_a_note(tmp_path, first, subfiletype):
    with tifffile.TiffWriter(tmp_path / "case.tif") as file:
        for is_picture in (not first, first):
            array = PLANE if is_picture else PLANE[::2, ::2] > 99
            file.write(array, subfiletype=0 if is_picture else subfiletype, **GRAY)
    volume = read_image([tmp_path / "case.tif"])
    assert (volume.array == PLANE).all()
    assert "left out" in volume.notes[0]


def test_the_picture_below_a_preview_is_read(tmp_path):
    with tifffile.TiffWriter(tmp_path / "case.tif") as file:
        file.write(PLANE[::4, ::4], subfiletype=1, subifds=1, **GRAY)
        file.write(PLANE, subfiletype=0, **GRAY)
    assert (read_image([tmp_path / "case.tif"]).array == PLANE).all()


@pytest.mark.parametrize("other", [STACK[:2, :20], STACK[:2, ::2, ::2], STACK[:2].astype(np.uint16)])
@pytest.mark.parametrize("options", [{}, {"metadata": {"axes": "ZYX"}}])
def test_several_images_are_refused_with_their_sizes(tmp_path, other, options):
    with tifffile.TiffWriter(tmp_path / "case.ome.tif", ome=bool(options)) as file:
        file.write(STACK, photometric="minisblack", **options)
        file.write(other, photometric="minisblack", **options)
    with pytest.raises(UnreadableFile, match=f"2 images .*5 x 32 x 48.*{' x '.join(map(str, other.shape))}"):
        read_image([tmp_path / "case.ome.tif"])


def test_two_images_of_one_size_are_refused(tmp_path):
    with tifffile.TiffWriter(tmp_path / "case.ome.tif", ome=True) as file:
        file.write(STACK, photometric="minisblack", metadata={"axes": "ZYX"})
        file.write(STACK[:2], photometric="minisblack", metadata={"axes": "ZYX"})
    with pytest.raises(UnreadableFile, match=r"2 images .*5 x 32 x 48.*2 x 32 x 48"):
        read_image([tmp_path / "case.ome.tif"])


def test_a_picture_below_another_is_no_slice(tmp_path):
    with tifffile.TiffWriter(tmp_path / "case.tif") as file:
        file.write(PLANE, subifds=1, **GRAY)
        file.write(STACK[1], **GRAY)
    with pytest.raises(UnreadableFile, match="one below the other"):
        read_image([tmp_path / "case.tif"])


def test_pages_stored_in_different_ways_are_named_as_such(tmp_path):
    with tifffile.TiffWriter(tmp_path / "case.tif") as file:
        file.write(PLANE, **GRAY)
        file.write(STACK[1], compression="lzw", **GRAY)
    with pytest.raises(UnreadableFile, match="stored in different ways"):
        read_image([tmp_path / "case.tif"])


def test_a_preview_may_be_a_jpeg(tmp_path):
    with tifffile.TiffWriter(tmp_path / "case.tif") as file:
        file.write(PLANE, **GRAY)
        file.write(PLANE[::2, ::2], compression="jpeg", subfiletype=1, **GRAY)
    assert (read_image([tmp_path / "case.tif"]).array == PLANE).all()


def test_what_is_no_tiff_is_not_called_damaged(tmp_path):
    Image.fromarray(PLANE).save(tmp_path / "case.png")
    (tmp_path / "case.png").rename(tmp_path / "case.tif")
    with pytest.raises(UnreadableFile, match="is a PNG picture"):
        read_image([tmp_path / "case.tif"])


@pytest.mark.parametrize("codec", [34676, 12345])
def test_a_compression_that_nothing_reads_is_not_called_damaged(tmp_path, codec):
    with pytest.raises(UnreadableFile, match="cannot be decoded") as error:
        read_image([by_hand(tmp_path / "case.tif", PLANE.tobytes(), compression=codec)])
    assert "store it again" in error.value.do


def with_description(path, text):
    """A plain stack of five pages under a description of something else."""
    return saved(path, STACK, description=text, **GRAY)


def test_pages_that_a_description_does_not_mention_are_not_dropped(tmp_path):
    path = with_description(tmp_path / "case.tif", "ImageJ=1.54\nimages=3\nslices=3\n")
    with pytest.raises(UnreadableFile, match="5 pages where its description mentions 3"):
        read_image([path])
    path = saved(tmp_path / "case.ome.tif", STACK, metadata={"axes": "ZYX"}, photometric="minisblack")
    path.write_bytes(path.read_bytes().replace(b'SizeZ="5"', b'SizeZ="4"'))
    with pytest.raises(UnreadableFile):
        read_image([path])


def test_one_file_of_an_image_in_several_is_refused(tmp_path):
    path = saved(tmp_path / "case.ome.tif", STACK, metadata={"axes": "ZYX"}, photometric="minisblack")
    text = tifffile.tiffcomment(path).replace('SizeZ="5"', 'SizeZ="9"')
    text = text.replace(
        "</Pixels>", '<TiffData IFD="0" FirstZ="5"><UUID FileName="next.ome.tif">u</UUID></TiffData></Pixels>'
    )
    with pytest.raises(UnreadableFile, match=r"5 of the 9 pages .*next\.ome\.tif"):
        read_image([saved(tmp_path / "case.ome.tif", STACK, description=text, **GRAY)])


def test_channels_that_do_not_fit_the_pages_are_not_slices(tmp_path):
    text = '<OME><Image><Pixels DimensionOrder="XYZCT" SizeX="48" SizeY="32" SizeZ="1" SizeC="5" SizeT="1">'
    path = with_description(tmp_path / "case.ome.tif", text + '<TiffData IFD="9"/></Pixels></Image></OME>')
    with pytest.raises(UnreadableFile, match="channels"):
        read_image([path])


@pytest.mark.parametrize("options", [{"rowsperstrip": 8}, {"tile": (16, 16)}])
def test_missing_strips_and_tiles_are_no_zeros(tmp_path, options):
    path = saved(tmp_path / "case.tif", PLANE, compression="zlib", **GRAY, **options)
    with tifffile.TiffFile(path, mode="r+") as file:
        name = "TileByteCounts" if "tile" in options else "StripByteCounts"
        tag = file.pages[0].tags[name]
        tag.overwrite([*tag.value[:-2], 0, 0])
    with pytest.raises(UnreadableFile, match=r"2 of . strips or tiles of page 0 are missing"):
        verify_file(path)


def packbits(data):
    return b"".join(bytes([257 - len(part)]) + part[:1] for part in (data[i : i + 48] for i in range(0, len(data), 48)))


CODECS = {
    1: bytes,
    5: imagecodecs.lzw_encode,
    8: zlib.compress,
    32773: packbits,
    34925: imagecodecs.lzma_encode,
    50000: imagecodecs.zstd_encode,
}


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("rows", [32, 31, 16])
def test_rows_missing_under_right_checksums_are_counted(tmp_path, codec, rows):
    pixels = np.full((rows, 48), 3, np.uint8)
    path = by_hand(tmp_path / "case.tif", CODECS[codec](pixels.tobytes()), compression=codec)
    if rows == 32:
        assert (read_image([path]).array == 3).all()
        return
    with pytest.raises(UnreadableFile, match=f"is cut short: page 0 holds {rows * 48} .*{32 * 48}"):
        read_image([path])


@pytest.mark.parametrize("codec", [5, 8, 34925, 50000])
def test_blank_pictures_are_whole_however_small(tmp_path, codec):
    data = CODECS[codec](bytes(2048 * 2048))
    path = by_hand(tmp_path / "case.tif", data, compression=codec, size=(2048, 2048))
    assert not read_image([path]).array.any()


READ_WITHOUT_CODECS = """
import json, sys
sys.modules["imagecodecs"] = None
from pathlib import Path
from autoseg.core.errors import UnreadableFile
from autoseg.images.readers import read_image
found = {}
for path in map(Path, sys.argv[1:]):
    try:
        found[path.stem] = read_image([path]).array.sum().item()
    except UnreadableFile as error:
        found[path.stem] = str(error)
print(json.dumps(found))
"""


def test_without_imagecodecs_files_are_read_or_the_extra_is_named(tmp_path):
    plain = {"none": {}, "deflate": {"compression": "zlib"}, "packbits": {"compression": "packbits"}}
    needy = {name: {"compression": name} for name in ("lzw", "zstd", "jpeg2000")}
    needy["floats"] = {"compression": "zlib", "predictor": True}
    paths = [
        saved(tmp_path / f"{name}.tif", PLANE.astype(np.float32) if name == "floats" else PLANE, **GRAY, **options)
        for name, options in {**plain, **needy}.items()
    ]
    paths.append(by_hand(tmp_path / "twelve.tif", bytes(72 * 32), bits=12))
    command = [sys.executable, "-c", READ_WITHOUT_CODECS, *map(str, paths)]
    found = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
    assert {name: found[name] for name in plain} == dict.fromkeys(plain, PLANE.sum())
    for name in (*needy, "twelve"):
        assert "autosegkit[tiff]" in found[name]
        assert "copy the file again" not in found[name]
