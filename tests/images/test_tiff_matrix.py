"""TIFF in all combinations of layout, compression, predictor, type and byte order, whole and cut, as they were written.

What was written is the truth, once tifffile itself reads it back with imagecodecs in its plainest way.
"""

import json
import re
import subprocess
import sys
from contextlib import suppress

import numpy as np
import tifffile

from autoseg.core.errors import UnreadableFile
from autoseg.images.readers import read_image, read_labels
from tests.images.examples import check_cells, matrix_cells

GRAY, WHITE, COLORS = {"photometric": "minisblack"}, {"photometric": "miniswhite"}, {"photometric": "rgb"}
ALPHA = {"extrasamples": ["unassalpha"]}
CONTIGUOUS, PLANAR = {"planarconfig": "contig"}, {"planarconfig": "separate"}
LAYOUTS = {  # shape, axis of the channels, options
    "plane": ((33, 47), None, GRAY),
    "white is zero": ((33, 47), None, WHITE),
    "stack": ((3, 33, 47), None, GRAY),
    "rgb": ((33, 47, 3), -1, COLORS),
    "rgba": ((33, 47, 4), -1, {**COLORS, **ALPHA}),
    "rgb in planes": ((3, 33, 47), 0, {**COLORS, **PLANAR}),
    "rgba in planes": ((4, 33, 47), 0, {**COLORS, **ALPHA, **PLANAR}),
    "two contiguous": ((33, 47, 2), -1, {**GRAY, **CONTIGUOUS}),
    "five in planes": ((5, 33, 47), 0, {**GRAY, **PLANAR}),
    "stack of rgb": ((3, 33, 47, 3), -1, COLORS),
    "palette": ((33, 47), None, {"photometric": "palette"}),
}
SEGMENTS = {"one strip": {}, "strips": {"rowsperstrip": 7}, "tiles": {"tile": (16, 32)}}
CODECS = ("none", "lzw", "zlib", "zstd", "packbits", "lzma", "jpeg2000", "png", "webp", "jpegxl", "lerc")
LOSSLESS = {"webp": {"lossless": True}, "jpegxl": {"lossless": True}}
TYPES = ("bool", "u1", "i1", "u2", "i2", "u4", "i4", "u8", "f2", "f4", "f8")
CONTAINERS = {"little": {"byteorder": "<"}, "big": {"byteorder": ">"}, "64 bits": {"byteorder": ">", "bigtiff": True}}
DAMAGES = ("", "cut", "empty")
CELLS = (LAYOUTS, SEGMENTS, CODECS, TYPES, (False, True), CONTAINERS, DAMAGES)


def numbers(shape, kind, random):
    if np.dtype(kind).kind == "f":
        return random.normal(0, 100, shape).astype(kind)
    limits = np.iinfo("u1" if kind == "bool" else kind)
    low, high = (0, 1) if kind == "bool" else (max(limits.min, -30000), min(limits.max, 60000))
    return random.integers(low, high, shape, endpoint=True).astype(kind)


def written(path, layout, segments, codec, kind, predictor, container):
    """What was written to the file, or None if the format or the codec has no such file."""
    shape, _, options = LAYOUTS[layout]
    random = np.random.default_rng(0)
    array = numbers(shape, kind, random)
    if layout == "palette":
        if kind not in ("u1", "u2"):
            return None
        options = {**options, "colormap": random.integers(0, 65535, (3, 2 ** (8 * array.itemsize))).astype(np.uint16)}
    options = {**options, **SEGMENTS[segments], **CONTAINERS[container], "metadata": None}
    options["compression"] = None if codec == "none" else codec
    try:
        tifffile.imwrite(path, array, predictor=predictor, compressionargs=LOSSLESS.get(codec), **options)
        is_kept = np.array_equal(tifffile.imread(path), array)
    except Exception:  # whatever a codec says on what it does not have
        return None
    return array if is_kept else None


def ordered(array, layout):
    """The array as (c, z, y, x)."""
    axis = LAYOUTS[layout][1]
    channels = array[None] if axis is None else np.moveaxis(array, axis, 0)
    return channels.reshape(len(channels), -1, *channels.shape[-2:])


def damage(path, kind):
    """Shortens the last strip or tile of the first page by a tenth, or empties it."""
    with tifffile.TiffFile(path, mode="r+") as file:
        tags = file.pages[0].tags
        tag = tags.get("StripByteCounts") or tags.get("TileByteCounts")
        counts = [*np.atleast_1d(tag.value).tolist()]
        counts[-1] = 0 if kind == "empty" else counts[-1] - counts[-1] // 10 - 1
        tag.overwrite(counts)


def outcome(path, layout, array):
    """ "equal", "wrong", or what a refusal says."""
    try:
        if layout == "palette":
            is_equal = np.array_equal(read_labels(path).array[0], array)
        else:
            is_equal = np.array_equal(read_image([path]).array, ordered(array, layout).astype(np.float32))
    except UnreadableFile as error:
        return str(error)
    return "equal" if is_equal else "wrong"


def test_every_combination_is_read_as_written_or_refused_for_what_is_missing(tmp_path):
    path = tmp_path / "case.tif"

    def check(cell):
        layout, *options, kind_of_damage = cell
        if (array := written(path, layout, *options)) is None:
            return "not written"
        if not kind_of_damage:
            assert outcome(path, layout, array) == "equal"
            return "equal"
        damage(path, kind_of_damage)
        if (found := outcome(path, layout, array)) == "equal":
            assert is_whole(path, array)
            return "equal though cut"
        assert re.search(r"cut short|damaged|cannot be decoded", found)
        return kind_of_damage

    counts = check_cells(matrix_cells(71, *CELLS), check)
    assert counts["equal"] >= 150
    assert counts["cut"] >= 150
    assert counts["empty"] >= 140


def is_whole(path, array):
    """Whether tifffile still finds all numbers: some streams end with marks and checksums that it can do without."""
    with suppress(Exception):
        return np.array_equal(tifffile.imread(path), array)
    return False


READ_WITHOUT_CODECS = """
import json, sys
sys.modules["imagecodecs"] = None
import numpy as np
from pathlib import Path
from tests.images.test_tiff_matrix import outcome
for line in sys.stdin:
    path, layout = json.loads(line)
    print(outcome(Path(path), layout, np.load(path + ".npy")))
"""


def test_without_imagecodecs_every_combination_is_read_or_the_extra_is_named(tmp_path):
    lines = []
    for number, (layout, *options) in enumerate(matrix_cells(67, *CELLS[:-1])):
        path = tmp_path / f"{number}.tif"
        if (array := written(path, layout, *options)) is not None:
            np.save(f"{path}.npy", array)
            lines.append(json.dumps((str(path), layout)))
    child = subprocess.run(
        [sys.executable, "-c", READ_WITHOUT_CODECS], input="\n".join(lines), check=True, capture_output=True, text=True
    )
    answers = child.stdout.splitlines()
    wrong = [answer for answer in answers if answer != "equal" and "autosegkit[tiff]" not in answer]
    assert not wrong
    assert len(answers) == len(lines)
    assert 50 <= answers.count("equal") <= len(lines) - 50
