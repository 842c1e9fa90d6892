"""Cropping to what is not zero: the air around a body or a skull-stripped brain costs memory and teaches nothing."""

from __future__ import annotations

from types import EllipsisType
from typing import Any

import numpy as np
from numpy.typing import NDArray

Box = tuple[tuple[int, int], ...]
"""For each axis the first voxel inside and the first one behind."""

OUTSIDE = -1
"""Label of voxels outside the nonzero mask: background, known to hold no signal."""


def slices(box: Box) -> tuple[EllipsisType | slice, ...]:
    """The box as an index into the last axes of an array."""
    return (..., *(slice(first, behind) for first, behind in box))


def nonzero_box(image: NDArray[Any]) -> Box:
    """The bounding box of what is not zero in any channel of an image (c, z, y, x); all of it if everything is zero."""
    return _bounding_box(_nonzero(image))


def nonzero_mask(image: NDArray[Any]) -> tuple[NDArray[np.bool_], Box]:
    """The nonzero mask of an image, inside its bounding box, and that box.

    A voxel is in the mask if any channel is nonzero there, or if it lies in a hole that such voxels enclose. An image
    without any nonzero voxel has an empty mask and the whole volume as its box.

    Args:
        image: (c, z, y, x).

    Source: nnU-Net v2 preprocessing/cropping/cropping.py.
    """
    mask = _nonzero(image)
    box = _bounding_box(mask)
    return _fill_holes(mask[slices(box)]), box


def crop_to_nonzero(
    image: NDArray[Any], labels: NDArray[Any] | None
) -> tuple[NDArray[Any], NDArray[np.signedinteger[Any]], Box]:
    """The image (a view), its labels with -1 outside the nonzero mask, and the box that both were cropped to.

    Without labels, the returned ones are 0 inside the mask. Labeled voxels keep their label even where the image is
    zero. The arguments are not changed.

    Args:
        image: (c, z, y, x).
        labels: (z, y, x), or None.

    Source: nnU-Net v2 preprocessing/cropping/cropping.py.
    """
    mask, box = nonzero_mask(image)
    if labels is None:
        cropped: NDArray[np.signedinteger[Any]] = np.zeros(mask.shape, np.int8)
    else:
        inside = labels[slices(box)]
        cropped = inside.astype(np.min_scalar_type(-1 - int(inside.max(initial=0))))  # signed, it must hold -1
    cropped[(cropped == 0) & ~mask] = OUTSIDE
    return image[slices(box)], cropped, box


def _nonzero(image: NDArray[Any]) -> NDArray[np.bool_]:
    mask: NDArray[np.bool_] = image[0] != 0
    for channel in image[1:]:
        mask |= channel != 0
    return mask


def _bounding_box(mask: NDArray[np.bool_]) -> Box:
    box = []
    for axis in range(mask.ndim):
        others = tuple(other for other in range(mask.ndim) if other != axis)
        hit = np.flatnonzero(mask.any(axis=others))
        box.append((int(hit[0]), int(hit[-1]) + 1) if hit.size else (0, mask.shape[axis]))
    return tuple(box)


def _fill_holes(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The mask with enclosed background added.

    Equal to `scipy.ndimage.binary_fill_holes` on the whole volume: around a bounding box there is only background,
    so a hole is background that does not reach the box's border. One connected-component pass replaces its many
    dilations.
    """
    if min(mask.shape) <= 2 or mask.all():  # nothing can be enclosed
        return mask
    from scipy import ndimage  # 0.15 s of imports that planning does not need

    regions, _ = ndimage.label(np.pad(~mask, 1, constant_values=True))
    filled: NDArray[np.bool_] = (regions != regions[0, 0, 0])[1:-1, 1:-1, 1:-1]
    return filled
