"""Reading and writing through SimpleITK, with nibabel for NIfTI files that it refuses.

The only place where ITK's axis order (x, y, z; direction cosines in columns) and NIfTI's affine (RAS) are converted.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autoseg.core.geometry import SLICE_SPACING_OF_2D, Geometry
from autoseg.images.compare import compare_geometry
from autoseg.images.formats.pixels import FOUR_D_REMEDY, Pixels
from autoseg.images.image_errors import first_line, refused
from autoseg.images.volume import is_plane

LARGEST_SHEAR = 1e-2
"""Cosine between two axes up to which a sheared grid is straightened: 1 voxel in 100, as converters' rounding makes."""

_EXACT_SHEAR = 1e-6
"""Cosines below are the rounding of single precision and not worth a note."""

_NIFTI_ENDINGS = (".nii", ".nii.gz")
_NIFTI_UNITS = {1: 1e3, 2: 1.0, 3: 1e-3}
"""Millimeters per unit of the header's code for meters, millimeters and micrometers; others count as millimeters."""


def simpleitk() -> Any:
    """The module SimpleITK, with ITK's own warnings on stderr switched off; what they say is checked here."""
    import SimpleITK

    module: Any = SimpleITK
    module.ProcessObject_SetGlobalWarningDisplay(False)
    return module


def read_itk(path: Path, four_d: bool) -> Pixels:
    """Voxels of a NIfTI, NRRD, MetaImage or GIPL file.

    2D images become one slice with a spacing of 999 times the larger pixel edge, as in nnU-Net v2
    (imageio/simpleitk_reader_writer.py). Components of vector voxels become channels.

    Args:
        path: a file that `verify_file` accepted.
        four_d: whether a fourth axis holds channels.

    Raises:
        UnreadableFile: the library refuses it, or it has more axes than it may.
    """
    sitk = simpleitk()
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    try:
        reader.ReadImageInformation()
        _refuse_axes(_squeezed(reader.GetSize()), four_d, reader.GetNumberOfComponents(), path)
        through_nibabel = _is_shadowed(path) or _hides_non_finite(reader, path)
        array = _load_nibabel(path)[1] if through_nibabel else sitk.GetArrayFromImage(reader.Execute())
    except RuntimeError as error:
        if path.name.lower().endswith(_NIFTI_ENDINGS):
            return read_nibabel(path, four_d)
        raise refused(path, "cannot be read", why=f"SimpleITK says: {first_line(error)}") from error
    if reader.GetNumberOfComponents() > 1 and array.ndim > reader.GetDimension():
        array = np.moveaxis(array, -1, 0)
        shape = _spatial(array.shape[1:])
    else:
        shape = _spatial(array.shape)
    geometry = _from_itk(reader, shape)
    return Pixels(array.reshape(-1, *shape), geometry, _orientation_notes(reader, geometry))


def _is_shadowed(path: Path) -> bool:
    """Whether `x.nii` lies beside `x.nii.gz`: ITK then takes the header of the second and the voxels of the first."""
    return path.name.endswith(".nii.gz") and path.with_name(path.name.removesuffix(".gz")).exists()


def _hides_non_finite(reader: Any, path: Path) -> bool:
    """Whether ITK would read NaN and infinite voxels as 0 without a word, as it does with floats in NIfTI."""
    sitk = simpleitk()
    return path.name.lower().endswith(_NIFTI_ENDINGS) and reader.GetPixelID() in (sitk.sitkFloat32, sitk.sitkFloat64)


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
        raise refused(path, "cannot be read", why=f"nibabel says: {first_line(error)}") from error


def read_nibabel(path: Path, four_d: bool) -> Pixels:
    """Voxels of a NIfTI file through nibabel: NIfTI-2, and grids with a small shear, which are straightened.

    Raises:
        UnreadableFile: nibabel refuses it too, it has more axes than it may, or its grid is sheared too much.
    """
    image, array = _load_nibabel(path)
    _refuse_axes(_squeezed(image.shape), four_d, 1, path)
    shape = _spatial(array.shape)
    unit = _NIFTI_UNITS.get(int(image.header["xyzt_units"]) % 8, 1.0)
    geometry, shear = _from_affine(np.asarray(image.affine[:3]) * unit, shape, image.ndim == 2)
    if shear > LARGEST_SHEAR:
        raise refused(
            path,
            f"has sheared axes: the cosine between two of them is {shear:.3g}, at most {LARGEST_SHEAR} is straightened",
            do="resample it onto a grid with right angles (and its labels with it), or remove the case",
        )
    note = f"axes are sheared by {shear:.2g} and were straightened"
    return Pixels(array.reshape(-1, *shape), geometry, (note,) if shear > _EXACT_SHEAR else ())


def write_itk(path: Path, array: NDArray[Any], geometry: Geometry) -> None:
    """Writes (z, y, x) or (c, z, y, x) voxels; one channel on a grid marked as 2D (`is_plane`) becomes a 2D image.

    Several channels become vector voxels, or in NIfTI, whose vectors few programs read, a fourth axis.
    """
    sitk = simpleitk()
    channels = array if array.ndim == 4 else array[None]
    is_nifti = path.name.lower().endswith(_NIFTI_ENDINGS)
    is_flat = is_plane(geometry) and not (is_nifti and len(channels) > 1)
    images = [_to_itk(sitk, channel[0] if is_flat else channel, geometry) for channel in channels]
    join = sitk.JoinSeries if is_nifti else sitk.Compose
    sitk.WriteImage(join(images) if len(images) > 1 else images[0], str(path), useCompression=True)


def _squeezed(size: tuple[int, ...]) -> tuple[int, ...]:
    """Sizes without trailing axes of one entry beyond the third."""
    while len(size) > 3 and size[-1] == 1:
        size = size[:-1]
    return size


def _refuse_axes(size: tuple[int, ...], four_d: bool, components: int, path: Path) -> None:
    if len(size) > 4 or (len(size) == 4 and components > 1):
        raise refused(
            path,
            f"has {len(size) + (components > 1)} axes; at most x, y, z and channels are understood",
            do="split it into one 3D file per channel and time point",
        )
    if len(size) < 2:
        raise refused(path, f"is 1D ({size[0]} voxels) where an image is due")
    if len(size) == 4 and not four_d:
        raise refused(path, f"is 4D ({' x '.join(map(str, size))}) where a 3D image is due", do=FOUR_D_REMEDY)


def _spatial(shape: tuple[int, ...]) -> tuple[int, int, int]:
    """Voxels (z, y, x) of an array with axes (..., z, y, x) or (y, x)."""
    z, y, x = (1, *shape)[-3:] if len(shape) == 2 else shape[-3:]
    return z, y, x


def _orientation_notes(reader: Any, geometry: Geometry) -> tuple[str, ...]:
    """Says so when a NIfTI header holds two orientations, sform and qform, and the other one is a different grid."""
    if not reader.HasMetaDataKey("sform_code") or reader.GetMetaData("sform_code") == "0" or is_plane(geometry):
        return ()
    rows = [[float(part) for part in reader.GetMetaData(f"srow_{axis}").split()] for axis in "xyz"]
    unit = _NIFTI_UNITS.get(int(reader.GetMetaData("xyzt_units")) % 8, 1.0)
    affine = np.array(rows) * unit
    if np.linalg.norm(affine[:, :3], axis=0).all() and np.isfinite(affine).all():
        stated, _ = _from_affine(affine, geometry.shape, is_2d=False)
        if compare_geometry(geometry, stated) in ("identical", "rounding"):
            return ()
    return ("its header states two different grids; its sform was not followed, but its qform and pixdim",)


def _from_itk(image: Any, shape: tuple[int, int, int]) -> Geometry:
    """The grid of an ITK image or of a reader that has read its header."""
    dimensions = image.GetDimension()
    steps, origin = image.GetSpacing()[:3], image.GetOrigin()[:3]
    columns = np.array(image.GetDirection()).reshape(dimensions, dimensions)[:3, :3]
    if dimensions == 2:
        steps = (*steps, SLICE_SPACING_OF_2D * max(steps))
        origin = (*origin, 0.0)
        columns = np.block([[columns, np.zeros((2, 1))], [np.zeros((1, 2)), np.ones((1, 1))]])
    return _geometry(shape, steps, origin, columns)


def _geometry(shape: tuple[int, int, int], steps: Any, origin: Any, columns: NDArray[np.float64]) -> Geometry:
    """The grid with spacings, origin and direction columns given in the order x, y, z."""
    x, y, z = (float(step) for step in steps)
    right, back, up = (float(position) for position in origin)
    (zx, zy, zz), (yx, yy, yz), (xx, xy, xz) = columns.T[::-1].tolist()
    return Geometry(shape, (z, y, x), (right, back, up), (zx, zy, zz, yx, yy, yz, xx, xy, xz))


def _to_itk(sitk: Any, array: NDArray[Any], geometry: Geometry) -> Any:
    """The ITK image of (z, y, x) voxels, or of the (y, x) pixels of a plane."""
    image = sitk.GetImageFromArray(np.ascontiguousarray(array))
    columns = np.array(geometry.direction).reshape(3, 3)[::-1].T
    image.SetSpacing(geometry.spacing_mm[::-1][: array.ndim])
    image.SetOrigin(geometry.origin_mm[: array.ndim])
    image.SetDirection(columns[: array.ndim, : array.ndim].ravel().tolist())
    return image


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
    return _geometry(shape, spacing, to_lps @ affine[:, 3], columns), shear
