"""Voxels of each pair of reference and predicted value, and the one Dice that is computed from such counts."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from autoseg.data.model import LabelSet

Counts = NDArray[np.int64]
"""Voxels (reference value, predicted value), training values 0 to n."""

_VOXELS_AT_ONCE = 1 << 22


def confusion(predicted: NDArray[np.integer], reference: NDArray[np.integer], labels: LabelSet) -> Counts:
    """Voxels of each pair of reference value (row) and predicted value (column), counted in one pass.

    Tables of several cases add up. Regions are unions of rows and columns; names of the rows: `value_names`.

    Args:
        predicted: training values, any shape.
        reference: training values of the same shape; where it holds the ignore value nothing is counted.
        labels: classes, regions and the ignore value.
    """
    size = labels.largest_value + 1
    table = np.zeros(size * size, dtype=np.int64)
    flat_predicted, flat_reference = predicted.reshape(-1), reference.reshape(-1)
    for start in range(0, flat_reference.size, _VOXELS_AT_ONCE):  # counting needs eight bytes per voxel
        block = slice(start, start + _VOXELS_AT_ONCE)
        pairs = flat_reference[block].astype(np.int64) * size + flat_predicted[block]
        table += np.bincount(pairs, minlength=size * size)
    counts = table.reshape(size, size)
    if labels.ignore is not None:
        counts[labels.ignore] = 0
    return counts


def dice(both: int, predicted: int, reference: int) -> float | None:
    """Dice of a class, 2 |P and R| / (|P| + |R|); None where neither prediction nor reference has a voxel of it.

    Args:
        both: voxels in prediction P and reference R.
        predicted: voxels in P.
        reference: voxels in R.
    """
    total = predicted + reference
    return 2 * both / total if total else None


@dataclass(frozen=True, slots=True)
class Overlap:
    """Voxels of a class in a prediction and its reference.

    Attributes:
        both: in prediction and reference.
        prediction: in the prediction.
        reference: in the reference.
    """

    both: int
    prediction: int
    reference: int

    @property
    def dice(self) -> float | None:
        """Twice the common voxels over the sum of voxels."""
        return dice(self.both, self.prediction, self.reference)

    @property
    def iou(self) -> float | None:
        """Common voxels over voxels in either."""
        either = self.prediction + self.reference - self.both
        return self.both / either if either else None


def overlaps(prediction: NDArray[np.integer], reference: NDArray[np.integer], labels: LabelSet) -> dict[str, Overlap]:
    """Voxels that prediction and reference share, for each foreground class, in one pass over the voxels.

    Args:
        prediction: training values, any shape.
        reference: training values of the same shape; where it holds the ignore value nothing is compared.
        labels: classes, regions and the ignore value.
    """
    return overlaps_of(confusion(prediction, reference, labels), labels)


def overlaps_of(counts: Counts, labels: LabelSet) -> dict[str, Overlap]:
    """Voxels that prediction and reference share, for each foreground class, from a table of `confusion`."""
    found = {}
    for name in labels.foreground:
        values = list(labels.classes[name])
        both = counts[np.ix_(values, values)].sum()
        found[name] = Overlap(int(both), int(counts[:, values].sum()), int(counts[values].sum()))
    return found


def value_names(labels: LabelSet) -> tuple[str, ...]:
    """What the rows and columns of a confusion table stand for, one name per training value.

    A value is called after the class that it alone makes up; otherwise after the regions that it belongs to, as what
    is in these and in no other.
    """
    names = []
    for value in range(labels.largest_value + 1):
        owners = {name: values for name, values in labels.classes.items() if value in values}
        own = [name for name, values in owners.items() if len(values) == 1]
        fallback = "not annotated" if value == labels.ignore else f"value {value}"
        names.append(own[0] if own else f"{' and '.join(owners)} only" if owners else fallback)
    return tuple(names)


def shares(counts: Counts) -> NDArray[np.float64]:
    """Each row of a confusion table as shares of its sum: of the voxels of a class, how many were given to which."""
    sums = counts.sum(axis=1, keepdims=True)
    found: NDArray[np.float64] = counts / np.maximum(sums, 1)
    return found
