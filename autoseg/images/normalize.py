"""Intensity normalization of one channel of one case."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from autoseg.core.errors import DataRefused, PlanFault

EPSILON = 1e-8
"""Smallest divisor, so that a constant image becomes zeros. Source: nnU-Net v2 default_normalization_schemes.py."""

RGB_MAXIMUM = 255.0

LARGEST_INTENSITY = 1e18
"""The square of a larger one, and so the deviation of an image that holds it, leaves the range of single precision."""


class IntensityRange(Protocol):
    """What the CT normalization needs to know about the foreground of the dataset."""

    @property
    def mean(self) -> float:
        """Mean intensity."""
        ...

    @property
    def std(self) -> float:
        """Standard deviation."""
        ...

    @property
    def percentile_00_5(self) -> float:
        """Lower end of the range kept."""
        ...

    @property
    def percentile_99_5(self) -> float:
        """Upper end of the range kept."""
        ...


Array = NDArray[np.float32]
Normalization = Callable[[Array, NDArray[np.bool_] | None, IntensityRange | None], Array]
"""(channel (z, y, x), mask of the voxels to normalize or None for all, dataset statistics) -> a new array."""


def overflow_of(channel: NDArray[Any]) -> str | None:
    """How many finite voxels are too large to compute with, and in which range they lie, in words; None if none is."""
    lowest, highest = float(channel.min()), float(channel.max())
    if max(-lowest, highest) <= LARGEST_INTENSITY:
        return None
    count = int(np.count_nonzero(np.abs(channel) > LARGEST_INTENSITY))
    return f"{count} of {channel.size} voxels are beyond {LARGEST_INTENSITY:g}; values from {lowest:g} to {highest:g}"


def zscore(image: Array, mask: NDArray[np.bool_] | None, _statistics: IntensityRange | None) -> Array:
    """Zero mean and unit standard deviation; with a mask both are those inside it, and voxels outside stay as they are.

    Source: nnU-Net v2 preprocessing/normalization/default_normalization_schemes.py.
    """
    if mask is None:
        centered: Array = image - image.mean()
        centered /= np.float32(max(image.std(), EPSILON))
        return centered
    normalized = image.copy()
    inside = image[mask]
    if inside.size:
        normalized[mask] = (inside - inside.mean()) / np.float32(max(inside.std(), EPSILON))
    return normalized


def ct(image: Array, _mask: NDArray[np.bool_] | None, statistics: IntensityRange | None) -> Array:
    """Clipped to the 0.5 and 99.5 % percentiles of the dataset's foreground, then scaled by its mean and deviation.

    Raises:
        PlanFault: there are no statistics.

    Source: nnU-Net v2 preprocessing/normalization/default_normalization_schemes.py.
    """
    if statistics is None:
        raise PlanFault(
            "the ct normalization needs the dataset's foreground intensities, and the plan has none",
            do="plan the dataset again",
        )
    normalized = np.clip(image, np.float32(statistics.percentile_00_5), np.float32(statistics.percentile_99_5))
    normalized -= np.float32(statistics.mean)
    normalized /= np.float32(max(statistics.std, EPSILON))
    return normalized


def none(image: Array, _mask: NDArray[np.bool_] | None, _statistics: IntensityRange | None) -> Array:
    """The intensities as they are."""
    return image.copy()


def rescale_0_1(image: Array, _mask: NDArray[np.bool_] | None, _statistics: IntensityRange | None) -> Array:
    """Minimum to 0, maximum to 1."""
    normalized: Array = image - image.min()
    normalized /= np.float32(max(normalized.max(), EPSILON))
    return normalized


def rgb_0_1(image: Array, _mask: NDArray[np.bool_] | None, _statistics: IntensityRange | None) -> Array:
    """Eight-bit colors, 0..255, to 0..1.

    Raises:
        DataRefused: the intensities are not in 0..255.
    """
    if image.min() < 0 or image.max() > RGB_MAXIMUM:
        raise DataRefused(
            f"intensities reach from {image.min():g} to {image.max():g}, eight-bit colors from 0 to 255",
            do="give the channel another name than rgb_to_0_1, so that it is normalized differently",
        )
    normalized = image.copy()
    normalized /= np.float32(RGB_MAXIMUM)
    return normalized


NORMALIZATIONS: dict[str, Normalization] = {
    "zscore": zscore,
    "ct": ct,
    "none": none,
    "rescale_0_1": rescale_0_1,
    "rgb_0_1": rgb_0_1,
}
"""By the name that plans hold."""
