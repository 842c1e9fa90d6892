"""NIfTI-1 and -2, plain and gzip-compressed: through SimpleITK, or nibabel where ITK refuses or misreads a file."""

from __future__ import annotations

from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autoseg.core.geometry import SLICE_SPACING_OF_2D, Geometry
from autoseg.images.compare import compare_geometry
from autoseg.images.format import Format
from autoseg.images.formats import headers, itk
from autoseg.images.image_errors import first_line, unreadable
from autoseg.images.volume import Volume, is_plane

LARGEST_SHEAR = 1e-2
"""Cosine between two axes up to which a sheared grid is straightened: 1 voxel in 100, as converters' rounding makes."""

_EXACT_SHEAR = 1e-6
"""Cosines below are the rounding of single precision and not worth a note."""

_UNITS = {1: 1e3, 2: 1.0, 3: 1e-3}
"""Millimeters per unit of the header's code for meters, millimeters and micrometers; others count as millimeters."""

_VOXEL_BYTES = {2: 1, 4: 2, 8: 4, 16: 4, 64: 8, 128: 3, 256: 1, 512: 2, 768: 4, 1024: 8, 1280: 8, 2304: 4}
"""Bytes of a voxel by the header's `datatype`; complex numbers, long doubles and single bits are not supported."""

_NAMES = ("length", "kind", "dims", "steps", "offset", "place", "magic")
"""Fields sizeof_hdr, datatype, dim, pixdim, vox_offset, all from quatern_b to srow_z, and magic of the standards."""


def _header(formats: str, offsets: tuple[int, ...], size: int) -> np.dtype[np.void]:
    return np.dtype({"names": _NAMES, "formats": formats.split(), "offsets": offsets, "itemsize": size})


_NIFTI_1 = _header("i4 i2 8i2 8f4 f4 18f4 S4", (0, 70, 40, 76, 108, 256, 344), 348)
_NIFTI_2 = _header("i4 i2 8i8 8f8 i8 18f8 S4", (0, 12, 16, 104, 168, 352, 4), 540)
"""Type and first byte of the fields, bytes of the header. Source: nifti1.h and nifti2.h of the standards."""


def _verify(path: Path) -> None:
    if not path.name.lower().endswith(".gz"):
        with path.open("rb") as stream:
            layout = _layout(stream.read(_NIFTI_2.itemsize), path)
        headers.verify_data(layout, path)
        return
    with path.open("rb") as stream:
        blocks = headers.inflated(stream, "gzip", path)
        header = b""
        while len(header) < _NIFTI_2.itemsize and (block := next(blocks, b"")):
            header += block
        layout = _layout(header, path)
        promised = layout.offset + layout.promised_bytes
        headers.verify_deflated(chain((header,), blocks), promised, path.stat().st_size, path)


def _fields(header: bytes, path: Path) -> Any:
    for fields, magic in ((_NIFTI_1, b"n+1"), (_NIFTI_2, b"n+2")):
        for layout in (fields, fields.newbyteorder()) if len(header) >= fields.itemsize else ():
            found = np.frombuffer(header, layout, count=1)[0]
            if (found["length"], found["magic"]) == (fields.itemsize, magic):
                return found
    hint = "it is gzip-compressed: name it .nii.gz" if header[:2] == b"\x1f\x8b" else None
    raise unreadable(path, "is not a NIfTI file, or its header is damaged", why=hint)


def _layout(header: bytes, path: Path) -> headers.Layout:
    """The layout that the first 540 bytes of a (decompressed) NIfTI file promise.

    Raises:
        UnreadableFile: these are not such bytes, or what they say cannot be true.
    """
    fields = _fields(header, path)
    headers.check_place(tuple(fields["place"].tolist()), path)
    (count, *dims), (_, *steps) = fields["dims"].tolist(), fields["steps"].tolist()
    kind, offset = int(fields["kind"]), float(fields["offset"])
    if kind not in _VOXEL_BYTES:
        raise unreadable(
            path,
            f"holds voxels of a kind that is not supported (NIfTI datatype {kind}: complex, 1 bit or damaged)",
            do="export it as integers or floats",
        )
    if not 1 <= count <= 7:
        raise unreadable(path, f"has an impossible header: {count} dimensions")
    if not 348 <= offset < 2**31:  # NaN is not
        raise unreadable(path, f"has an impossible header: voxel data at byte {offset}")
    sizes = tuple(dims[:count])
    # a single slice often carries a spacing of 0; there is no second slice for it to misplace
    spacing = tuple(1.0 if size == 1 and step == 0 else step for size, step in zip(sizes[:3], steps, strict=False))
    return headers.checked(headers.Layout(sizes, _VOXEL_BYTES[kind], spacing, int(offset), "raw", path), path)


def _read(path: Path, four_d: bool) -> Volume:
    try:
        reader = itk.itk_header(path, four_d)
        array = _load_nibabel(path)[1] if _is_misread(reader, path) else itk.voxels(reader)
    except RuntimeError:  # ITK refuses NIfTI-2 and sheared axes
        return _read_nibabel(path, four_d)
    volume = itk.itk_volume(reader, array)
    codes = {reader.GetMetaData(key) for key in ("qform_code", "sform_code") if reader.HasMetaDataKey(key)}
    geometry = replace(volume.geometry, has_orientation=bool(codes - {"0"}))
    return replace(volume, geometry=geometry, notes=_orientation_notes(reader, geometry))


def _is_misread(reader: Any, path: Path) -> bool:
    """Whether ITK would read wrong voxels: it turns NaN and infinity of floats in NIfTI into 0.

    With `x.nii` beside `x.nii.gz`, it takes the header of the second and the voxels of the first.
    """
    sitk = itk.simpleitk()
    is_shadowed = path.name.endswith(".nii.gz") and path.with_name(path.name.removesuffix(".gz")).exists()
    return is_shadowed or reader.GetPixelID() in (sitk.sitkFloat32, sitk.sitkFloat64)


def _load_nibabel(path: Path) -> tuple[Any, NDArray[Any]]:
    """The image as nibabel opens it, and its voxels with the fastest axis last.

    Raises:
        UnreadableFile: nibabel refuses it.
    """
    import nibabel
    from nibabel.filebasedimages import ImageFileError
    from nibabel.spatialimages import HeaderDataError

    try:
        image: Any = nibabel.load(path)
        return image, np.asarray(image.dataobj).T
    except (ImageFileError, HeaderDataError, ValueError, OSError) as error:
        raise unreadable(path, "cannot be read", why=f"nibabel says: {first_line(error)}") from error


def _read_nibabel(path: Path, four_d: bool) -> Volume:
    """Voxels of a NIfTI file through nibabel: NIfTI-2, and grids with a small shear, which are straightened.

    Raises:
        UnreadableFile: nibabel refuses it too, it has more axes than it may, or its grid is sheared too much.
    """
    image, array = _load_nibabel(path)
    itk.check_axes(image.shape, four_d, 1, path)
    shape = itk.spatial(array.shape)
    unit = _UNITS.get(int(image.header["xyzt_units"]) % 8, 1.0)
    geometry, shear = _from_affine(np.asarray(image.affine[:3]) * unit, shape, image.ndim == 2)
    if shear > LARGEST_SHEAR:
        raise unreadable(
            path,
            f"has sheared axes: the cosine between two of them is {shear:.3g}, at most {LARGEST_SHEAR} is straightened",
            do="resample it onto a grid with right angles (and its labels with it), or remove the case",
        )
    has_orientation = bool(image.header["qform_code"] or image.header["sform_code"])
    geometry = replace(geometry, has_orientation=has_orientation)
    note = f"axes are sheared by {shear:.2g} and were straightened"
    return Volume(array.reshape(-1, *shape), geometry, (note,) if shear > _EXACT_SHEAR else ())


def _orientation_notes(reader: Any, geometry: Geometry) -> tuple[str, ...]:
    """Says so when a header holds two orientations, sform and qform, and the other one is a different grid."""
    if not reader.HasMetaDataKey("sform_code") or reader.GetMetaData("sform_code") == "0" or is_plane(geometry):
        return ()
    rows = [reader.GetMetaData(f"srow_{axis}").split() for axis in "xyz"]
    affine = np.array(rows, float) * _UNITS.get(int(reader.GetMetaData("xyzt_units")) % 8, 1.0)
    if np.linalg.norm(affine[:, :3], axis=0).all() and np.isfinite(affine).all():
        stated, _ = _from_affine(affine, geometry.shape, is_2d=False)
        if compare_geometry(geometry, stated) in ("identical", "rounding"):
            return ()
    return ("its header states two different grids; its sform was not followed, but its qform and pixdim",)


def _from_affine(affine: NDArray[np.float64], shape: tuple[int, int, int], is_2d: bool) -> tuple[Geometry, float]:
    """The grid nearest to a NIfTI affine (3 x 4, RAS, millimeters), and the largest cosine between two of its axes.

    The straightened axes are the orthonormal matrix nearest to the normalized ones (polar decomposition).
    """
    to_lps = np.diag([-1.0, -1.0, 1.0])
    steps = np.linalg.norm(affine[:, :3], axis=0)
    columns = to_lps @ affine[:, :3] / steps
    shear = float(np.abs(columns.T @ columns - np.eye(3)).max())
    if shear > _EXACT_SHEAR:
        left, _, right = np.linalg.svd(columns)
        columns = left @ right
    spacing = steps.tolist()
    if is_2d:
        spacing[2] = SLICE_SPACING_OF_2D * max(spacing[:2])
    return itk.geometry_of(shape, spacing, to_lps @ affine[:, 3], columns), shear


def _write(path: Path, array: NDArray[Any], geometry: Geometry) -> None:
    """Several channels become a fourth axis: few programs read NIfTI's vectors; it has no 2D images of several."""
    is_flat = is_plane(geometry) and len(array) == 1
    itk.write_itk(
        path, [itk.itk_image(channel[0] if is_flat else channel, geometry) for channel in array], "JoinSeries"
    )


NIFTI = Format(endings=(".nii.gz", ".nii"), verify=_verify, read=_read, write=_write, ending_is_compression=True)
