"""TIFF: pictures and stacks, axes, spacings, compressions, and structures that do not hold what they say."""

import json
import struct
from contextlib import suppress

import numpy as np
import pytest
import tifffile
from PIL import Image

from autoseg.core.errors import LabelFault, UnreadableFile
from autoseg.images.formats.files import verify_file
from autoseg.images.readers import read_image, read_labels
from autoseg.images.volume import plane_geometry

STACK = np.random.default_rng(0).integers(0, 255, (5, 9, 11)).astype(np.uint8)
PLANE = STACK[0]
IMAGEJ = {"imagej": True, "metadata": {"axes": "ZYX", "spacing": 2.0, "unit": "um"}, "resolution": (4.0, 2.0)}


def saved(folder, array, name="case_0000.tif", **options):
    tifffile.imwrite(folder / name, array, **options)
    return folder / name


@pytest.mark.parametrize(
    "options", [{}, {"compression": "zlib"}, {"bigtiff": True}, {"byteorder": ">"}, {"rowsperstrip": 2}, IMAGEJ]
)
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_a_stack_is_a_volume_and_a_page_a_picture(tmp_path, options, dtype):
    stack = read_image([saved(tmp_path, STACK.astype(dtype), **options)])
    assert (stack.array == STACK).all()
    if not options.get("imagej"):
        assert stack.geometry.spacing_mm == (1.0, 1.0, 1.0)
        plane = read_image([saved(tmp_path, PLANE.astype(dtype), **options)])
        assert (plane.array == PLANE).all()
        assert plane.geometry == plane_geometry(PLANE.shape)


def test_tiles_are_read(tmp_path):
    array = np.resize(STACK, (5, 32, 48))
    assert (read_image([saved(tmp_path, array, tile=(16, 16))]).array == array).all()


def test_spacing_comes_from_the_side_car_then_from_the_tags(tmp_path):
    path = saved(tmp_path, STACK, **IMAGEJ)
    assert np.allclose(read_image([path]).geometry.spacing_mm, (2e-3, 0.5e-3, 0.25e-3))
    (tmp_path / "case.json").write_text(json.dumps({"spacing": [50, 4.6, 4.6]}))
    assert read_image([path]).geometry.spacing_mm == (50.0, 4.6, 4.6)
    labels = saved(tmp_path, STACK, name="case.tif")
    assert read_labels(labels).geometry.spacing_mm == (50.0, 4.6, 4.6)
    (tmp_path / "case.json").write_text(json.dumps({"author": "someone"}))
    assumed = read_labels(labels)
    assert assumed.geometry.spacing_mm == (1.0, 1.0, 1.0)
    assert "states no spacing" in assumed.notes[-1]


def test_a_side_car_beside_a_single_page_is_not_followed(tmp_path):
    (tmp_path / "case.json").write_text(json.dumps({"spacing": [1, 2, 3]}))
    assert read_image([saved(tmp_path, PLANE)]).geometry == plane_geometry(PLANE.shape)


@pytest.mark.parametrize("text", ['{"spacing": [1, 2]}', '{"spacing": [1, 2, 0]}', '{"spacing": "wide"}', "{", "[NaN"])
def test_a_side_car_that_cannot_be_true_is_refused_by_its_name(tmp_path, text):
    path = saved(tmp_path, STACK)
    (tmp_path / "case.json").write_text(text)
    with pytest.raises(UnreadableFile, match=r"case\.json"):
        read_image([path])


@pytest.mark.parametrize(
    ("unit", "factor"),
    [
        *[("micron", 1e-3), ("nm", 1e-6), ("mm", 1), ("cm", 10), ("pixel", 1), ("", 1), ("\\u00B5m", 1e-3)],
        *[("nanometers", 1e-6), ("micrometers", 1e-3), ("Millimeters", 1), ("inches", 25.4)],
    ],
)
def test_units_of_imagej_become_millimeters(tmp_path, unit, factor):
    metadata = {"axes": "ZYX", "spacing": 2.0, "unit": unit}
    path = saved(tmp_path, STACK, imagej=True, metadata=metadata, resolution=(4.0, 2.0))
    assert np.allclose(read_image([path]).geometry.spacing_mm, np.array([2.0, 0.5, 0.25]) * factor)


def test_imagej_may_name_another_unit_along_each_axis(tmp_path):
    metadata = {"axes": "ZYX", "spacing": 50.0, "unit": "um", "yunit": "mm", "zunit": "nm"}
    path = saved(tmp_path, STACK, imagej=True, metadata=metadata, resolution=(4.0, 2.0))
    assert np.allclose(read_image([path]).geometry.spacing_mm, (50e-6, 0.5, 0.25e-3))


def test_a_unit_that_is_not_known_is_noted(tmp_path):
    metadata = {"axes": "ZYX", "spacing": 2.0, "unit": "furlong"}
    volume = read_image([saved(tmp_path, STACK, imagej=True, metadata=metadata, resolution=(4.0, 2.0))])
    assert volume.geometry.spacing_mm == (2.0, 0.5, 0.25)
    assert "'furlong' is not known" in volume.notes[-1]
    sizes = {f"PhysicalSize{axis}": 3.0 for axis in "XYZ"} | {f"PhysicalSize{axis}Unit": "thou" for axis in "XYZ"}
    path = saved(tmp_path, STACK.astype(np.uint16), name="case.ome.tif", metadata={"axes": "ZYX", **sizes})
    assert "'thou' is not known" in read_image([path]).notes[-1]
    (tmp_path / "case.ome.json").write_text(json.dumps({"spacing": [3, 2, 1]}))
    assert read_image([path]).notes == ()


@pytest.mark.parametrize("text", ["2,0", "two", "NaN", "-2"])
def test_a_spacing_that_is_no_number_is_not_followed_with_a_note(tmp_path, text):
    path = saved(tmp_path, STACK, metadata=None, description=f"ImageJ=1.53t\nimages=5\nslices=5\nspacing={text}\n")
    volume = read_image([path])
    assert volume.geometry.spacing_mm == (1.0, 1.0, 1.0)
    assert "states no spacing" in volume.notes[-1]


def test_units_of_ome_become_millimeters_axis_by_axis(tmp_path):
    sizes = {"PhysicalSizeX": 0.2, "PhysicalSizeY": 300, "PhysicalSizeYUnit": "nm", "PhysicalSizeZ": 0.001}
    metadata = {"axes": "ZYX", **sizes, "PhysicalSizeZUnit": "mm"}
    path = saved(tmp_path, STACK.astype(np.uint16), name="case.ome.tif", metadata=metadata)
    assert np.allclose(read_image([path]).geometry.spacing_mm, (1e-3, 3e-4, 2e-4))


def test_sizes_that_are_incomplete_or_impossible_are_not_followed(tmp_path):
    half = {"axes": "ZYX", "PhysicalSizeX": 0.2}
    path = saved(tmp_path, STACK.astype(np.uint16), name="case.ome.tif", metadata=half)
    assert read_image([path]).geometry.spacing_mm == (1.0, 1.0, 1.0)
    path = saved(tmp_path, STACK, imagej=True, metadata={"axes": "ZYX", "spacing": -2.0})
    assert read_image([path]).geometry.spacing_mm == (1.0, 1.0, 1.0)


def test_ome_metadata_without_pixels_is_no_spacing(tmp_path):
    path = saved(tmp_path, STACK, name="case.ome.tif", description="<OME></OME>", metadata=None)
    assert read_image([path]).geometry.spacing_mm == (1.0, 1.0, 1.0)


def test_the_resolution_of_a_printer_is_not_a_spacing(tmp_path):
    path = saved(tmp_path, STACK, resolution=(300, 300), resolutionunit="INCH")
    assert read_image([path]).geometry.spacing_mm == (1.0, 1.0, 1.0)


@pytest.mark.parametrize(
    ("array", "options", "shape"),
    [
        (np.stack([PLANE] * 3, -1), {"photometric": "rgb"}, (3, 1, 9, 11)),
        (np.stack([PLANE] * 4, -1), {"photometric": "rgb", "extrasamples": ("unassalpha",)}, (4, 1, 9, 11)),
        (np.stack([PLANE] * 3), {"photometric": "rgb", "planarconfig": "separate"}, (3, 1, 9, 11)),
        (np.stack([STACK] * 3, -1), {"photometric": "rgb"}, (3, 5, 9, 11)),
        (np.stack([STACK] * 2, 1), {"imagej": True, "metadata": {"axes": "ZCYX"}}, (2, 5, 9, 11)),
        (STACK, {"imagej": True, "metadata": {"axes": "TYX"}}, (1, 5, 9, 11)),
    ],
)
def test_color_and_channel_axes_become_channels(tmp_path, array, options, shape):
    volume = read_image([saved(tmp_path, array, **options)])
    assert volume.array.shape == shape
    assert (volume.array == (STACK if shape[1] == 5 else PLANE)).all()


def test_the_alpha_channel_of_gray_is_dropped_with_a_note(tmp_path):
    array = np.stack([PLANE, 255 - PLANE], -1)
    options = {"photometric": "minisblack", "planarconfig": "contig"}
    with_alpha = read_image([saved(tmp_path, array, extrasamples=("unassalpha",), **options)])
    assert (with_alpha.array == PLANE).all()
    assert "alpha" in with_alpha.notes[0]
    two_channels = read_image([saved(tmp_path, array, extrasamples=("unspecified",), **options)])
    assert two_channels.array.shape == (2, 1, 9, 11)


def test_a_fourth_axis_is_channels_or_refused(tmp_path):
    array = np.stack([STACK, 255 - STACK])
    path = saved(tmp_path, array, photometric="minisblack")
    assert (read_image([path], four_d=True).array == array).all()
    with pytest.raises(UnreadableFile, match="several axes"):
        read_image([path])
    with pytest.raises(UnreadableFile, match="several axes"):
        read_image([saved(tmp_path, np.stack([array] * 2), photometric="minisblack")], four_d=True)


def test_several_images_in_one_file_are_refused(tmp_path):
    with tifffile.TiffWriter(tmp_path / "case.tif") as file:
        file.write(PLANE)
        file.write(PLANE[:5].astype(np.uint16))
    with pytest.raises(UnreadableFile, match="2 images"):
        read_image([tmp_path / "case.tif"])


def pillow_stack(path, compression, mode="L"):
    arrays = {"L": STACK, "RGB": np.stack([STACK] * 3, -1), "I;16": STACK.astype(np.uint16) * 200, "1": STACK > 99}[
        mode
    ]
    first, *others = [Image.fromarray(array) for array in arrays]
    first.save(path, save_all=True, append_images=others, compression=compression)
    return arrays


@pytest.mark.parametrize("compression", ["tiff_lzw", "packbits", "tiff_adobe_deflate"])
@pytest.mark.parametrize("mode", ["L", "RGB", "I;16", "1"])
def test_compressions_of_libtiff_are_read(tmp_path, compression, mode):
    arrays = pillow_stack(tmp_path / "case.tif", compression, mode)
    found = read_image([tmp_path / "case.tif"]).array
    assert (found == (np.moveaxis(arrays, -1, 0) if mode == "RGB" else arrays)).all()


def test_palette_labels_are_indices(tmp_path):
    classes = PLANE // 100
    picture = Image.new("P", PLANE.shape[::-1])
    picture.putdata(classes.ravel().tolist())
    picture.putpalette([0, 0, 0, 255, 0, 0, 0, 255, 0])
    for compression in ("tiff_lzw", None):
        picture.save(tmp_path / "case.tif", compression=compression)
        assert (read_labels(tmp_path / "case.tif").array == classes).all()


def test_lossy_compression_inside_tiff_is_refused(tmp_path):
    pillow_stack(tmp_path / "case.tif", "jpeg")
    with pytest.raises(UnreadableFile, match="loss"):
        read_image([tmp_path / "case.tif"])


def test_colored_labels_are_refused(tmp_path):
    with pytest.raises(LabelFault):
        read_labels(saved(tmp_path, np.stack([PLANE, PLANE, 255 - PLANE], -1), photometric="rgb"))


@pytest.mark.parametrize("options", [{}, {"compression": "zlib"}, IMAGEJ, {"bigtiff": True}])
def test_every_cut_of_a_stack_that_loses_something_is_refused(tmp_path, options):
    path = saved(tmp_path, STACK, **options)
    content = path.read_bytes()
    for length in range(1, len(content), 7):
        path.write_bytes(content[:length])
        if length >= len(content) - 32:  # tifffile ends some files with bytes that nothing refers to
            with suppress(UnreadableFile):
                assert (read_image([path]).array == STACK).all()
            continue
        with pytest.raises(UnreadableFile, match="case"):
            verify_file(path)


def pages_dropped(path, keep):
    """Ends the chain of directories after `keep` pages, as a program does that loses the rest."""
    content = bytearray(path.read_bytes())
    (offset,) = struct.unpack_from("<I", content, 4)
    for _ in range(keep):
        (count,) = struct.unpack_from("<H", content, offset)
        link = offset + 2 + 12 * count
        (offset,) = struct.unpack_from("<I", content, link)
    struct.pack_into("<I", content, link, 0)
    path.write_bytes(content)


@pytest.mark.parametrize("kind", ["imagej", "shaped", "ome"])
def test_fewer_pages_than_the_description_announces_are_refused(tmp_path, kind):
    options = {"imagej": IMAGEJ, "shaped": {}, "ome": {"metadata": {"axes": "ZYX"}}}[kind]
    path = saved(tmp_path, STACK, name="case.ome.tif" if kind == "ome" else "case.tif", compression="zlib", **options)
    verify_file(path)
    pages_dropped(path, keep=3)
    with pytest.raises(UnreadableFile, match="announces 5 pages, 3 are there"):
        verify_file(path)


def test_one_directory_may_stand_for_a_stack_stored_in_one_piece(tmp_path):
    path = saved(tmp_path, STACK, name="case.tif", **IMAGEJ)
    pages_dropped(path, keep=1)
    verify_file(path)


def test_descriptions_that_say_nothing_are_ignored(tmp_path):
    for text in ('{"shape": "large"}', '{"shape":', "ImageJ=1\nimages=many\n", '<OME><Pixels SizeX="x"/></OME>'):
        verify_file(saved(tmp_path, STACK, description=text, metadata=None))


def patched_entry(path, tag, value=None, count=None):
    """Changes the value or the count of one entry of the first directory."""
    content = bytearray(path.read_bytes())
    (offset,) = struct.unpack_from("<I", content, 4)
    (entries,) = struct.unpack_from("<H", content, offset)
    for start in range(offset + 2, offset + 2 + 12 * entries, 12):
        if struct.unpack_from("<H", content, start)[0] == tag:
            if count is not None:
                struct.pack_into("<I", content, start + 4, count)
            if value is not None:
                struct.pack_into("<I", content, start + 8, value)
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("tag", "value", "count"),
    [
        (256, 0, None),
        (256, 60000, None),
        (257, 2**31, None),
        (273, 10**6, None),
        (279, 2**31, None),
        (279, 5, None),
        (273, None, 10**9),
        (256, None, 0),
        (277, 5000, None),
    ],
)
def test_impossible_entries_are_refused(tmp_path, tag, value, count):
    path = saved(tmp_path, PLANE, compression=None, metadata=None)
    patched_entry(path, tag, value, count)
    with pytest.raises(UnreadableFile):
        verify_file(path)


def test_chains_that_lead_nowhere_are_refused(tmp_path):
    path = saved(tmp_path, STACK, name="case.tif", metadata=None)
    content = bytearray(path.read_bytes())
    (first,) = struct.unpack_from("<I", content, 4)
    (count,) = struct.unpack_from("<H", content, first)
    for link, target in ((4, 0), (first + 2 + 12 * count, first), (4, len(content) - 1)):
        damaged = bytearray(content)
        struct.pack_into("<I", damaged, link, target)
        path.write_bytes(damaged)
        with pytest.raises(UnreadableFile):
            verify_file(path)
    struct.pack_into("<H", content, first, 65535)
    path.write_bytes(content)
    with pytest.raises(UnreadableFile, match="number of tags"):
        verify_file(path)


def test_what_no_decoder_understands_is_refused(tmp_path):
    path = saved(tmp_path, PLANE, metadata=None, compression="zlib")
    patched_entry(path, 259, 40000)
    with pytest.raises(UnreadableFile, match="cannot be decoded"):
        read_image([path])


@pytest.mark.parametrize("tag", [322, 323])
def test_tiles_without_a_size_are_refused(tmp_path, tag):
    path = saved(tmp_path, np.resize(STACK[0], (32, 48)), tile=(16, 16), metadata=None)
    patched_entry(path, tag, 0)
    with pytest.raises(UnreadableFile):
        verify_file(path)
