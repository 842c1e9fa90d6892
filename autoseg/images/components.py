"""Connected components of masks; voxels that touch by a face, an edge or a corner belong together."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

Mask = NDArray[np.bool_]


@dataclass(frozen=True, slots=True, eq=False)
class Components:
    """The connected pieces of a mask.

    Attributes:
        numbers: 1 to n inside the bounding box of the mask, 0 outside the mask.
        box: of the mask in the whole array.
        sizes: voxels of each piece, in the order of the numbers.
    """

    numbers: NDArray[np.int32]
    box: tuple[slice, ...]
    sizes: NDArray[np.int64]


def components(mask: Mask) -> Components:
    """The pieces of a mask of any number of axes.

    Source: nnU-Net v2 postprocessing/remove_connected_components.py (neighbors by faces, edges and corners).
    """
    box = next(iter(ndimage.find_objects(mask.astype(np.uint8))), None)
    if box is None:
        nothing = (slice(0, 0),) * mask.ndim
        return Components(np.zeros((0,) * mask.ndim, np.int32), nothing, np.zeros(0, np.int64))
    numbers, count = ndimage.label(mask[box], np.ones((3,) * mask.ndim), output=np.int32)
    sizes = np.bincount(numbers.reshape(-1), minlength=count + 1)[1:]
    return Components(numbers, box, sizes.astype(np.int64))


def keep_components(mask: Mask, found: Components, is_kept: NDArray[np.bool_]) -> Mask:
    """The mask with only some of its pieces.

    Args:
        mask: that the pieces were found in.
        found: its pieces.
        is_kept: (pieces,), in the order of their numbers.
    """
    if is_kept.all():
        return mask
    kept = np.zeros_like(mask)
    kept[found.box] = np.concatenate([[False], is_kept])[found.numbers]
    return kept
