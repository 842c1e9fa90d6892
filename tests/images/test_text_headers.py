"""NRRD and MetaImage: headers that say things twice, in vain or in another unit, and text in place of voxels."""

import numpy as np
import pytest
import SimpleITK

from autoseg.core.errors import UnreadableFile
from autoseg.images.readers import read_image


def nrrd_of(array, *fields):
    lines = ["NRRD0005", f"type: {array.dtype.name}", f"dimension: {array.ndim}", "endian: little"]
    lines += [f"sizes: {' '.join(map(str, array.shape[::-1]))}", *fields]
    return "\n".join([*lines, "", ""]).encode() + array.tobytes()


SERIES = np.arange(2 * 3 * 4, dtype=np.uint8).reshape(2, 3, 4)


@pytest.mark.parametrize(
    "fields",
    [
        ("spacings: 1 2 nan", "kinds: domain domain time"),
        ("space dimension: 2", "space directions: (1,0) (0,2) none", "space origin: (0,0)"),
    ],
)
def test_pictures_along_an_axis_that_is_none_in_space_are_no_volume(tmp_path, fields):
    (tmp_path / "case.nrrd").write_bytes(nrrd_of(SERIES, "encoding: raw", *fields))
    with pytest.raises(UnreadableFile, match="4D"):
        read_image([tmp_path / "case.nrrd"])
    found = read_image([tmp_path / "case.nrrd"], four_d=True)
    assert np.array_equal(found.array, SERIES[:, None])
    assert found.geometry.shape == found.array.shape[1:]


@pytest.mark.parametrize(
    ("fields", "what"),
    [
        (("spacings: 1 2 3", "axis mins: 10 20 30"), "axis mins"),
        (("spacings: 5 5 5", "space: LPS", "space directions: (1,0,0) (0,2,0) (0,0,3)"), "its spacings"),
        (("spacings: 1 2 3", 'units: "um" "um" "um"'), "lengths in um"),
        (("spacings: 1 2 3", 'space units: "um" "um" "um"'), "space units were not used"),
    ],
)
def test_what_a_header_says_twice_or_in_vain_is_noted(tmp_path, fields, what):
    (tmp_path / "case.nrrd").write_bytes(nrrd_of(SERIES, "encoding: raw", *fields))
    assert [what in note for note in read_image([tmp_path / "case.nrrd"]).notes] == [True]


MHA = ["ObjectType = Image", "NDims = 3", "DimSize = 4 3 2", "ElementType = MET_UCHAR", "ElementSpacing = 1 2 3"]


def test_comments_and_own_fields_of_metaimage_may_be_repeated(tmp_path):
    extra = ["Comment = a", "Comment = b", "0008|0060 = CT", "0008|0060 = MR", "TransformMatrix = 1 0 0 0 1 0 0 0 1"]
    header = "\n".join([*MHA, *extra, "ElementDataFile = LOCAL", ""])
    (tmp_path / "case.mha").write_bytes(header.encode() + SERIES.tobytes())
    found = read_image([tmp_path / "case.mha"])
    assert np.array_equal(found.array[0], SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(tmp_path / "case.mha"))))
    assert found.notes == ()
    (tmp_path / "case.mha").write_bytes(header.replace("Comment", "Offset").encode() + SERIES.tobytes())
    with pytest.raises(UnreadableFile, match="'Offset' twice"):
        read_image([tmp_path / "case.mha"])


@pytest.mark.parametrize("name", ["case.nrrd", "case.mha"])
def test_text_that_may_be_cut_inside_its_last_number_is_noted(tmp_path, name):
    text = " ".join(map(str, SERIES.ravel() + 60))
    header = nrrd_of(SERIES[:0], "encoding: text", "spacings: 1 2 3").replace(b"4 3 0", b"4 3 2")
    if name == "case.mha":
        header = "\n".join([*MHA, "BinaryData = False", "ElementDataFile = LOCAL", ""]).encode()
    for content, is_noted in ((text + "\n", False), (text, True), (text[:-1], True)):
        (tmp_path / name).write_bytes(header + content.encode())
        assert any("ends right behind a digit" in note for note in read_image([tmp_path / name]).notes) == is_noted
    (tmp_path / name).write_bytes(header + text.replace(" 70 ", " 7_0 ").encode())
    with pytest.raises(UnreadableFile, match="numbers"):
        read_image([tmp_path / name])


def test_numbers_of_a_header_are_those_of_every_reader(tmp_path):
    (tmp_path / "case.nrrd").write_bytes(nrrd_of(SERIES, "encoding: raw", "spacings: 1_0 2 3"))
    with pytest.raises(UnreadableFile, match="numbers"):
        read_image([tmp_path / "case.nrrd"])


@pytest.mark.parametrize("ending", [".mha", ".nrrd", ".gipl", ".nii"])
def test_the_first_voxels_may_look_like_line_ends_or_blanks(tmp_path, ending):
    path = tmp_path / f"case{ending}"
    for start in [bytes([first, second]) for first in range(256) for second in (0, 9, 10, 13, 32)]:
        array = np.frombuffer(start + bytes(range(22)), np.uint8).reshape(2, 3, 4)
        SimpleITK.WriteImage(SimpleITK.GetImageFromArray(array), str(path), useCompression=False)
        assert np.array_equal(read_image([path]).array[0], array), start


@pytest.mark.parametrize(
    ("field", "name"),
    [
        ("Distanc\reUnits = um", "DistanceUnits"),
        ("Distance\x85Units = um", "DistanceUnits"),
        ("Offset =\x0b 1 2 3", "Offset"),
    ],
)
def test_control_characters_in_a_field_that_is_read_are_damage(tmp_path, field, name):
    """They were passed over, so that the field counted as whole."""
    path = tmp_path / "case.mha"
    header = "\n".join([*MHA, "Comment = \x07 ring", field, "ElementDataFile = LOCAL", ""])
    path.write_bytes(header.encode("latin-1") + SERIES.tobytes())
    with pytest.raises(UnreadableFile, match="damaged header"):
        read_image([path])
    path.write_bytes(
        header.replace(field, f"{name} = {'mm' if 'Units' in name else '1 2 3'}\r").encode() + SERIES.tobytes()
    )
    assert np.array_equal(read_image([path]).array[0], SERIES)


@pytest.mark.parametrize("character", ["\x0c", "\r"])
def test_control_characters_in_a_field_of_nrrd_are_damage(tmp_path, character):
    path = tmp_path / "case.nrrd"
    path.write_bytes(nrrd_of(SERIES, "encoding: raw", f"spacings:{character} 1 2 3"))
    with pytest.raises(UnreadableFile, match="damaged header"):
        read_image([path])


@pytest.mark.parametrize(("unit", "is_known"), [('"um"', True), (" um ", True), ('"um', False), ('um"', False)])
def test_half_a_quotation_is_no_unit(tmp_path, unit, is_known):
    path = tmp_path / "case.mha"
    path.write_bytes(
        "\n".join([*MHA, f"DistanceUnits = {unit}", "ElementDataFile = LOCAL", ""]).encode() + SERIES.tobytes()
    )
    if is_known:
        assert read_image([path]).geometry.spacing_mm == pytest.approx((3e-3, 2e-3, 1e-3))
    else:
        with pytest.raises(UnreadableFile, match="not a known unit"):
            read_image([path])


def test_two_fields_that_a_damaged_line_end_joined_are_refused(tmp_path):
    """`ElementSpacing` would count as not stated."""
    path = tmp_path / "case.mha"
    header = "\n".join([*MHA, "ElementDataFile = LOCAL", ""]).replace(
        "MET_UCHAR\nElementSpacing", "MET_UCHAR\rElementSpacing"
    )
    path.write_bytes(header.encode() + SERIES.tobytes())
    with pytest.raises(UnreadableFile, match="a line end within a line"):
        read_image([path])
