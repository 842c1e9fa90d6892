"""Reading and writing through SimpleITK: the part that NIfTI, NRRD, MetaImage and GIPL have in common.

The only place where ITK's axis order (x, y, z; direction cosines in columns) is converted.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from autoseg.core.geometry import SLICE_SPACING_OF_2D, Geometry
from autoseg.images.image_errors import FOUR_D_REMEDY, first_line, unreadable
from autoseg.images.volume import Volume, is_plane


def simpleitk() -> Any:
    """The module SimpleITK, with ITK's own warnings on stderr switched off; what they say is checked here."""
    import SimpleITK

    module: Any = SimpleITK
    module.ProcessObject_SetGlobalWarningDisplay(False)
    return module


def read_itk(path: Path, four_d: bool) -> Volume:
    """Voxels of a verified file. 2D images become one slice; components of vector voxels become channels.

    Args:
        path: a file that its format's `verify` accepted.
        four_d: whether a fourth axis holds channels.

    Raises:
        UnreadableFile: ITK refuses it, or it has more axes than it may.
    """
    try:
        reader = itk_header(path, four_d)
        return itk_volume(reader, voxels(reader))
    except RuntimeError as error:
        raise unreadable(path, "cannot be read", why=f"SimpleITK says: {first_line(error)}") from error


def itk_header(path: Path, four_d: bool) -> Any:
    """An ITK reader that has read the header of a file and found at most four axes.

    Raises:
        RuntimeError: ITK refuses the file.
        UnreadableFile: the image has more axes than it may.
    """
    reader = simpleitk().ImageFileReader()
    reader.SetFileName(str(path))
    reader.ReadImageInformation()
    check_axes(reader.GetSize(), four_d, reader.GetNumberOfComponents(), path)
    return reader


def voxels(reader: Any) -> NDArray[Any]:
    """What a reader reads, with axes (z, y, x), before them a fourth axis, after them components.

    Raises:
        RuntimeError: ITK refuses the file.
    """
    return np.asarray(simpleitk().GetArrayFromImage(reader.Execute()))


def itk_volume(reader: Any, array: NDArray[Any]) -> Volume:
    """The voxels that a reader found, on the grid that its header states.

    2D images get a slice spacing of 999 times the larger pixel edge, as in nnU-Net v2
    (imageio/simpleitk_reader_writer.py).
    """
    if reader.GetNumberOfComponents() > 1 and array.ndim > reader.GetDimension():
        array = np.moveaxis(array, -1, 0)
        shape = spatial(array.shape[1:])
    else:
        shape = spatial(array.shape)
    dimensions = reader.GetDimension()
    steps, origin = reader.GetSpacing()[:3], reader.GetOrigin()[:3]
    columns = np.array(reader.GetDirection()).reshape(dimensions, dimensions)[:3, :3]
    if dimensions == 2:
        steps = (*steps, SLICE_SPACING_OF_2D * max(steps))
        origin = (*origin, 0.0)
        columns = np.block([[columns, np.zeros((2, 1))], [np.zeros((1, 2)), np.ones((1, 1))]])
    return Volume(array.reshape(-1, *shape), geometry_of(shape, steps, origin, columns))


def check_axes(size: Sequence[int], four_d: bool, components: int, path: Path) -> None:
    """Checks the number of axes of an image of `size` voxels (x, y, z, ...) with `components` numbers each.

    Raises:
        UnreadableFile: there are more than three beside channels, or a fourth one that was not to be expected.
    """
    while len(size) > 3 and size[-1] == 1:
        size = size[:-1]
    if len(size) > 4 or (len(size) == 4 and components > 1):
        raise unreadable(
            path,
            f"has {len(size) + (components > 1)} axes; at most x, y, z and channels are understood",
            do="split it into one 3D file per channel and time point",
        )
    if len(size) < 2:
        raise unreadable(path, f"is 1D ({size[0]} voxels) where an image is expected")
    if len(size) == 4 and not four_d:
        raise unreadable(path, f"is 4D ({' x '.join(map(str, size))}) where a 3D image is expected", do=FOUR_D_REMEDY)


def spatial(shape: tuple[int, ...]) -> tuple[int, int, int]:
    """Voxels (z, y, x) of an array with axes (..., z, y, x) or (y, x)."""
    z, y, x = (1, *shape)[-3:] if len(shape) == 2 else shape[-3:]
    return z, y, x


def geometry_of(shape: tuple[int, int, int], steps: Any, origin: Any, columns: NDArray[np.float64]) -> Geometry:
    """The grid of `shape` (z, y, x) with spacings, origin and direction columns given in the order x, y, z."""
    x, y, z = (float(step) for step in steps)
    right, back, up = (float(position) for position in origin)
    (zx, zy, zz), (yx, yy, yz), (xx, xy, xz) = columns.T[::-1].tolist()
    return Geometry(shape, (z, y, x), (right, back, up), (zx, zy, zz, yx, yy, yz, xx, xy, xz))


def itk_image(array: NDArray[Any], geometry: Geometry) -> Any:
    """The ITK image of (z, y, x) voxels, or of the (y, x) pixels of a plane."""
    image = simpleitk().GetImageFromArray(np.ascontiguousarray(array))
    columns = np.array(geometry.direction).reshape(3, 3)[::-1].T
    image.SetSpacing(geometry.spacing_mm[::-1][: array.ndim])
    image.SetOrigin(geometry.origin_mm[: array.ndim])
    image.SetDirection(columns[: array.ndim, : array.ndim].ravel().tolist())
    return image


def write_itk(path: Path, channels: Sequence[Any], join: Literal["Compose", "JoinSeries"] = "Compose") -> None:
    """Writes one image or several joined, as vector voxels (`Compose`) or along a further axis (`JoinSeries`)."""
    sitk = simpleitk()
    image = getattr(sitk, join)(channels) if len(channels) > 1 else channels[0]
    sitk.WriteImage(image, str(path), useCompression=True)


def write_vectors(path: Path, array: NDArray[Any], geometry: Geometry) -> None:
    """Writes (c, z, y, x) voxels, several channels as vectors; a grid marked as 2D (`is_plane`) becomes a 2D image."""
    is_flat = is_plane(geometry)
    write_itk(path, [itk_image(channel[0] if is_flat else channel, geometry) for channel in array])
