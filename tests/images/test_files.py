"""Whole files are accepted, damaged ones are named: every format, many damages."""

import gzip
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autoseg.core.errors import AutoSegError, UnreadableFile
from autoseg.core.geometry import Geometry
from autoseg.images.formats.files import SUPPORTED_ENDINGS, file_ending, files_of, is_image, stem, verify_file
from autoseg.images.readers import read_image
from autoseg.images.volume import Volume, plane_geometry
from autoseg.images.writers import write_image
from tests.images.examples import bit_flips, nifti_bytes, truncations, write_gz

NOISE = np.random.default_rng(0).integers(0, 255, (6, 7, 8)).astype(np.uint8)


def written(folder: Path, ending: str) -> Path:
    """A small whole file of a format."""
    path = folder / f"case{ending}"
    is_picture = ending in (".png", ".bmp")
    array = NOISE[None, :1] if is_picture else NOISE[None]
    write_image(path, Volume(array, plane_geometry((7, 8)) if is_picture else Geometry((6, 7, 8))))
    return path


@pytest.mark.parametrize("ending", [".nii.gz", ".nrrd", ".mha"])
def test_a_compressed_file_is_decompressed_once(tmp_path, ending, monkeypatch):
    voxels = np.random.default_rng(0).integers(0, 9, (1, 40, 50, 60)).astype(np.int16)
    path, produced, opened = tmp_path / f"case{ending}", [0], zlib.decompressobj
    write_image(path, Volume(voxels, Geometry((40, 50, 60))))

    class Counted:
        def __init__(self, *options):
            self.decoder = opened(*options)

        def decompress(self, *arguments):
            block = self.decoder.decompress(*arguments)
            produced[0] += len(block)
            return block

        def __getattr__(self, name):
            return getattr(self.decoder, name)

    monkeypatch.setattr(zlib, "decompressobj", Counted)
    assert (read_image([path]).array == voxels).all()
    assert voxels.nbytes <= produced[0] < voxels.nbytes + 2000  # the header of NIfTI is compressed, too


def test_endings_are_found_whatever_their_case():
    assert file_ending(Path("a/case_0000.NII.GZ")) == ".nii.gz"
    assert stem(Path("a/case.v2_0000.NII.GZ")) == "case.v2_0000"
    assert file_ending(Path("x.nii")) == ".nii"
    assert file_ending(Path("x.ome.tif")) == ".tif"
    assert file_ending(Path("x.txt")) is None
    assert stem(Path("x.txt")) == "x.txt"
    assert file_ending(Path(".png")) is None


@pytest.mark.parametrize("ending", SUPPORTED_ENDINGS)
def test_a_whole_file_is_accepted(tmp_path, ending):
    verify_file(written(tmp_path, ending))


@pytest.mark.parametrize("ending", SUPPORTED_ENDINGS)
def test_every_truncation_is_refused_by_name(tmp_path, ending):
    path = written(tmp_path, ending)
    target = path.with_suffix(".zraw") if ending == ".mhd" else path
    for damaged in truncations(target.read_bytes(), 50):
        target.write_bytes(damaged)
        with pytest.raises(UnreadableFile, match="case"):
            verify_file(path)


def test_every_bit_flip_in_compressed_nifti_is_refused_by_name(tmp_path):
    path = written(tmp_path, ".nii.gz")
    whole, refused = path.read_bytes(), 0
    for damaged in bit_flips(whole, 200, start=10):  # the 10 bytes before hold no data, but a date
        path.write_bytes(damaged)
        try:
            verify_file(path)
        except UnreadableFile as error:
            refused += "case.nii.gz" in str(error)
        else:  # deflate has a few bits that say nothing
            assert gzip.decompress(damaged) == gzip.decompress(whole)
    assert refused > 190


@pytest.mark.parametrize("ending", SUPPORTED_ENDINGS)
def test_a_bit_flip_anywhere_is_refused_or_read_but_never_crashes(tmp_path, ending):
    path = written(tmp_path, ending)
    refusals = []
    for damaged in bit_flips(path.read_bytes(), 120):
        path.write_bytes(damaged)
        try:
            read_image([path])
        except AutoSegError as error:
            refusals.append(str(error))
    assert all("case" in refusal for refusal in refusals)


@pytest.mark.parametrize("ending", [".png", ".nrrd", ".mha", ".mhd"])
def test_checksums_of_compressed_data_find_every_bit_flip_in_them(tmp_path, ending):
    path = written(tmp_path, ending)
    target = path.with_suffix(".zraw") if ending == ".mhd" else path
    content = target.read_bytes()
    start = {".nrrd": content.find(b"\n\n") + 12, ".mha": content.find(b"LOCAL\n") + 8, ".mhd": 2}.get(ending, 0)
    for damaged in bit_flips(content, 100, start=start):
        target.write_bytes(damaged)
        with pytest.raises(UnreadableFile):
            verify_file(path)


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(SUPPORTED_ENDINGS), st.binary(max_size=600))
def test_any_bytes_are_refused_without_a_crash(tmp_path_factory, ending, content):
    path = tmp_path_factory.mktemp("bytes") / f"case{ending}"
    path.write_bytes(content)
    with pytest.raises(UnreadableFile):
        verify_file(path)


def test_missing_empty_and_foreign_files_are_refused(tmp_path):
    (tmp_path / "empty.nii.gz").touch()
    (tmp_path / "folder.nii").mkdir()
    for name, reason in {
        "absent.nii.gz": "No such file",
        "empty.nii.gz": "is empty",
        "folder.nii": "cannot be read",
        "notes.txt": "not supported",
        "photo.JPG": "loss",
    }.items():
        with pytest.raises(UnreadableFile, match=reason):
            verify_file(tmp_path / name)


def test_all_members_of_a_gzip_file_count(tmp_path):
    content = nifti_bytes(NOISE)
    members = [gzip.compress(part, mtime=0) for part in (content[:100], content[100:])]
    path = tmp_path / "case.nii.gz"
    path.write_bytes(b"".join(members) + b"\0" * 2048)
    verify_file(path)
    assert (read_image([path]).array[0] == NOISE).all()
    for damaged in (members[0], members[0] + b"rubbish", members[0] + members[1][:-1]):
        path.write_bytes(damaged)
        with pytest.raises(UnreadableFile):
            verify_file(path)


def test_blocks_larger_than_one_read_are_followed_to_the_end(tmp_path):
    noise = np.random.default_rng(0).integers(0, 255, (30, 256, 256)).astype(np.uint8)
    path = write_gz(tmp_path / "large.nii.gz", nifti_bytes(noise))
    verify_file(path)
    content = bytearray(path.read_bytes())
    content[-1_000_000] ^= 4
    path.write_bytes(content)
    with pytest.raises(UnreadableFile, match="damaged"):
        verify_file(path)


def hostile_nifti(dims=(1500, 1500, 1500)) -> bytes:
    header = bytearray(nifti_bytes(NOISE)[:452])
    struct.pack_into("<8h", header, 40, len(dims), *dims, *[1] * (7 - len(dims)))
    return bytes(header)


def test_a_header_that_promises_gigabytes_is_refused_before_anything_is_allocated(tmp_path):
    (tmp_path / "bomb.nii").write_bytes(hostile_nifti())
    write_gz(tmp_path / "bomb.nii.gz", hostile_nifti())
    for name in ("bomb.nii", "bomb.nii.gz"):
        with pytest.raises(UnreadableFile, match=r"3375000\d\d\d"):
            read_image([tmp_path / name])


def test_more_data_than_the_header_promises_is_refused_but_padding_is_not(tmp_path):
    content = nifti_bytes(NOISE)
    for name, write in {"a.nii": Path.write_bytes, "a.nii.gz": write_gz}.items():
        path = tmp_path / name
        write(path, content + b"\0" * 1000)
        verify_file(path)
        write(path, content + b"\0" * 3_000_000)
        with pytest.raises(UnreadableFile, match="more data"):
            verify_file(path)


def patched(content: bytes, code: str, offset: int, *values) -> bytes:
    changed = bytearray(content)
    struct.pack_into(code, changed, offset, *values)
    return bytes(changed)


@pytest.mark.parametrize("spacing", [0.0, -1.0, float("nan"), float("inf"), 1e-30, 1e30])
def test_an_impossible_spacing_is_refused(tmp_path, spacing):
    path = tmp_path / "case.nii"
    path.write_bytes(patched(nifti_bytes(NOISE), "<f", 84, spacing))
    with pytest.raises(UnreadableFile, match="spacing"):
        verify_file(path)


def test_a_single_slice_may_have_no_spacing_across(tmp_path):
    path = tmp_path / "case.nii"
    path.write_bytes(patched(nifti_bytes(NOISE[:1]), "<f", 88, 0.0))
    verify_file(path)


@pytest.mark.parametrize(
    ("code", "offset", "values"),
    [
        ("<h", 40, (0,)),
        ("<h", 40, (9,)),
        ("<h", 42, (-5,)),
        ("<h", 42, (0,)),
        ("<h", 70, (32,)),
        ("<h", 70, (1,)),
        ("<f", 108, (float("nan"),)),
        ("<f", 108, (12.0,)),
        ("<f", 292, (float("inf"),)),
        ("<4s", 344, (b"ni1\0",)),
    ],
)
def test_an_impossible_nifti_header_is_refused(tmp_path, code, offset, values):
    path = tmp_path / "case.nii"
    path.write_bytes(patched(nifti_bytes(NOISE), code, offset, *values))
    with pytest.raises(UnreadableFile):
        verify_file(path)


def test_nifti_2_and_big_endian_headers_are_understood(tmp_path):
    import nibabel

    affine = np.diag([1.0, 2.0, 3.0, 1.0])
    two = nibabel.Nifti2Image(NOISE.T, affine).to_bytes()
    header = nibabel.Nifti1Header(endianness=">")
    big = nibabel.Nifti1Image(NOISE.T.astype(">i2"), affine, header).to_bytes()
    path = tmp_path / "case.nii"
    for content in (two, big):
        path.write_bytes(content)
        verify_file(path)
        volume = read_image([path])
        assert (volume.array[0] == NOISE).all()
        assert volume.geometry.spacing_mm == (3.0, 2.0, 1.0)
    path.write_bytes(patched(two, "<d", 400, float("nan")))
    with pytest.raises(UnreadableFile, match="position"):
        verify_file(path)


def test_compressed_nifti_without_its_ending_is_explained(tmp_path):
    path = tmp_path / "case.nii"
    path.write_bytes(gzip.compress(nifti_bytes(NOISE), mtime=0))
    with pytest.raises(UnreadableFile, match=r"name it \.nii\.gz"):
        verify_file(path)


NRRD = "NRRD0004\n# comment\ntype: uchar\ndimension: 3\nsizes: 8 7 6\nencoding: raw\nkey:=value\n"


@pytest.mark.parametrize(
    ("header", "data", "is_whole"),
    [
        (NRRD + "\n", NOISE.tobytes(), True),
        (NRRD.replace("\n", "\r\n") + "\r\n", NOISE.tobytes(), True),
        (NRRD + "byte skip: 5\n\n", b"-----" + NOISE.tobytes(), True),
        (NRRD + "byte skip: -1\n\n", b"-" * 5000 + NOISE.tobytes(), True),
        (NRRD + "byte skip: -1\n\n", NOISE.tobytes()[:-9], False),
        (NRRD + "byte skip: two\n\n", NOISE.tobytes(), False),
        (NRRD + "spacings: 1 2 3\n\n", NOISE.tobytes(), True),
        (NRRD + "spacings: 1 nan 3\n\n", NOISE.tobytes(), False),
        (NRRD + "spacings: 1 much 3\n\n", NOISE.tobytes(), False),
        (NRRD + "spacings: nan 1 1\nkinds: list domain domain\n\n", NOISE.tobytes(), True),
        (NRRD + "space directions: (1,0,0) (0,0,0) (0,0,1)\n\n", NOISE.tobytes(), False),
        (NRRD + "space directions: none (0,1,0) (0,0,1)\n\n", NOISE.tobytes(), False),
        (
            NRRD + "space dimension: 2\nspace directions: none (1,0) (0,1)\nkinds: list space space\n\n",
            NOISE.tobytes(),
            True,
        ),
        (NRRD, b"", False),
        (NRRD.replace("8 7 6", "8000 7000 6000") + "\n", NOISE.tobytes(), False),
        (NRRD.replace("8 7 6", "8 7 -6") + "\n", NOISE.tobytes(), False),
        (NRRD.replace("sizes: 8 7 6\n", "") + "\n", NOISE.tobytes(), False),
        (NRRD.replace("uchar", "block") + "\n", NOISE.tobytes(), False),
        (NRRD.replace("raw", "bzip2") + "\n", NOISE.tobytes(), False),
        (NRRD.replace("raw", "gzip") + "\n", gzip.compress(NOISE.tobytes(), mtime=0), True),
        (NRRD.replace("raw", "gzip") + "\n", gzip.compress(NOISE.tobytes()[:-1], mtime=0), False),
        (NRRD.replace("raw", "gzip") + "\n", b"", False),
        (NRRD.replace("raw", "gzip").replace("8 7 6", "9999 999 999") + "\n", gzip.compress(b"0", mtime=0), False),
        (NRRD.replace("raw", "text") + "\n", b"1 " * 336, True),
        (NRRD.replace("raw", "text") + "\n", b"1 " * 300, False),
        (NRRD + "data file: volume.raw\n", b"", True),
        (NRRD + "datafile: ./volume.raw\n\n", b"", True),
        (NRRD + "data file: absent.raw\n", b"", False),
        (NRRD + "data file: ../volume.raw\n", b"", False),
        (NRRD + "data file: /etc/hostname\n", b"", False),
        (NRRD + "data file: LIST\n", b"", False),
        (NRRD + "data file: slice%03d.raw 1 9 1\n", b"", False),
    ],
)
def test_what_an_nrrd_header_promises_is_there(tmp_path, header, data, is_whole):
    (tmp_path / "volume.raw").write_bytes(NOISE.tobytes())
    path = tmp_path / "case.nrrd"
    path.write_bytes(header.encode() + data)
    if is_whole:
        verify_file(path)
        return
    with pytest.raises(UnreadableFile, match=r"case\.nrrd"):
        verify_file(path)


META = "ObjectType = Image\nNDims = 3\nDimSize = 8 7 6\nElementType = MET_UCHAR\nElementSpacing = 1 2 3\n"


@pytest.mark.parametrize(
    ("header", "data", "is_whole"),
    [
        (META + "ElementDataFile = LOCAL\n", NOISE.tobytes(), True),
        (META + "ElementDataFile = LOCAL\r\n", NOISE.tobytes(), True),
        (META + "ElementDataFile = LOCAL\n", NOISE.tobytes()[:-1], False),
        (META + "HeaderSize = -1\nElementDataFile = volume.raw\n", b"", True),
        (META + "ElementDataFile = volume.raw", b"", True),
        (META + "ElementDataFile = absent.raw\n", b"", False),
        (META + "ElementDataFile = LIST\n", b"", False),
        (META + "ElementNumberOfChannels = 3\nElementDataFile = LOCAL\n", NOISE.tobytes() * 3, True),
        (META + "ElementNumberOfChannels = 3\nElementDataFile = LOCAL\n", NOISE.tobytes(), False),
        (META + "CompressedData = True\nElementDataFile = LOCAL\n", zlib.compress(NOISE.tobytes()), True),
        (META + "CompressedData = True\nElementDataFile = LOCAL\n", zlib.compress(NOISE.tobytes()[:-1]), False),
        (META + "BinaryData = False\nElementDataFile = LOCAL\n", b"1 " * 336, True),
        (META.replace("1 2 3", "1 0 3") + "ElementDataFile = LOCAL\n", NOISE.tobytes(), False),
        (META.replace("UCHAR", "STRING") + "ElementDataFile = LOCAL\n", NOISE.tobytes(), False),
        (META.replace("DimSize = 8 7 6\n", "") + "ElementDataFile = LOCAL\n", NOISE.tobytes(), False),
        (META.replace("8 7 6", "8 7.5 6") + "ElementDataFile = LOCAL\n", NOISE.tobytes(), False),
        (META, b"", False),
    ],
)
def test_what_a_metaimage_header_promises_is_there(tmp_path, header, data, is_whole):
    (tmp_path / "volume.raw").write_bytes(NOISE.tobytes())
    path = tmp_path / "case.mhd"
    path.write_bytes(header.encode() + data)
    if is_whole:
        verify_file(path)
        return
    with pytest.raises(UnreadableFile, match=r"case\.mhd"):
        verify_file(path)


def test_a_gipl_file_of_an_unknown_kind_is_refused(tmp_path):
    path = written(tmp_path, ".gipl")
    path.write_bytes(patched(path.read_bytes(), ">H", 8, 144))
    with pytest.raises(UnreadableFile, match="144"):
        verify_file(path)


def test_all_files_that_are_read_for_an_image_belong_to_it(tmp_path):
    for ending, beside in {".nii.gz": [], ".mha": [], ".png": [], ".mhd": ["case.zraw"], ".tif": ["case.json"]}.items():
        image = written(tmp_path / ending, ending)
        assert files_of(image) == (image, *(image.with_name(name) for name in beside))
        assert set(files_of(image)) == set(image.parent.iterdir())
    detached = tmp_path / "detached.nrrd"
    detached.write_text(NRRD + "data file: volume.raw\n")
    assert files_of(detached) == (detached,)
    (tmp_path / "volume.raw").write_bytes(NOISE.tobytes())
    assert files_of(detached) == (detached, tmp_path / "volume.raw")


def test_what_is_no_image_is_only_itself(tmp_path):
    (tmp_path / "folder.nii").mkdir()
    (tmp_path / "notes.txt").touch()
    (tmp_path / "._case.png").touch()
    for name in ("folder.nii", "notes.txt", "._case.png", "absent.mhd"):
        assert not is_image(tmp_path / name)
        assert files_of(tmp_path / name) == (tmp_path / name,)
