"""What the first stage of a cascade predicted, as an input of the second: on its grid, one channel per label value."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from autoseg.core.errors import GeometryMismatch
from autoseg.data.model import LabelSet
from autoseg.images.crop import slices
from autoseg.images.resample import resample_labels
from autoseg.preprocessing.placement import Placement
from autoseg.preprocessing.store import StoredCase


def prepare_previous(labels: NDArray[Any], placement: Placement) -> NDArray[np.signedinteger[Any]]:
    """A label map of the first stage on the grid of the prepared image, resampled as labels are.

    Args:
        labels: training values (z, y, x) on the grid of the file.
        placement: of the prepared image.

    Returns:
        (z, y, x) in the plan's order as int8, or int16 where values exceed 127.

    Raises:
        GeometryMismatch: the label map is not on the grid of the file.

    Source: nnU-Net v2 inference/data_iterators.py (at prediction; in training nnU-Net resamples logits instead, which
    networks then never see again).
    """
    if labels.shape != placement.geometry.shape:
        raise GeometryMismatch(
            f"the label map of the first stage is {labels.shape} voxels, the image {placement.geometry.shape}",
            do="predict with the first stage again",
        )
    kind = np.int8 if labels.max(initial=0) <= np.iinfo(np.int8).max else np.int16
    cropped = labels.transpose(placement.axis_order)[slices(placement.box)].astype(kind)
    spacings = placement.cropped_spacing_mm, placement.prepared_spacing_mm
    return np.ascontiguousarray(resample_labels(cropped, placement.prepared_shape, *spacings))


def one_hot(previous: NDArray[Any], labels: LabelSet) -> NDArray[np.float32]:
    """One channel (n, z, y, x) per foreground value, ascending, 1 where `previous` (z, y, x) has it and 0 elsewhere."""
    channels = np.empty((len(labels.foreground_values), *previous.shape), np.float32)
    for channel, value in zip(channels, labels.foreground_values, strict=True):
        np.equal(previous, value, out=channel, casting="unsafe")
    return channels


def network_input(stored: StoredCase, labels: LabelSet) -> NDArray[np.float32]:
    """What the network of a stored case's configuration gets: its image, in a cascade with the first stage's channels.

    Returns:
        (c, z, y, x); without a first stage the stored image itself.
    """
    image = np.asarray(stored.image, np.float32)
    return image if stored.previous is None else np.concatenate([image, one_hot(stored.previous, labels)])
