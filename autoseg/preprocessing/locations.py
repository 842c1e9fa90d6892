"""Voxels of each class, drawn once per case, that training patches are centered on."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autoseg.data.model import LabelSet

MOST_KEPT = 10_000
"""Voxels kept of each class, or all if there are fewer. Source: nnU-Net v2 preprocessors/default_preprocessor.py."""

SHARE_KEPT = 0.01
"""At least so much of a class is kept, so that large classes are covered too. Source: as above."""

ANNOTATED = -1
"""Key of the voxels that are annotated at all; only in datasets with an ignore label."""

_SEED = 1234


def location_groups(label_set: LabelSet) -> dict[int, tuple[int, ...]]:
    """The label values that each key of the locations stands for.

    A key is the training value of a foreground class or, in a dataset with regions, the position of the region among
    the foreground classes, from 1. With an ignore label, `ANNOTATED` stands for everything else.
    """
    foreground = [label_set.classes[name] for name in label_set.foreground]
    if label_set.has_regions:
        groups = dict(enumerate(foreground, start=1))
    else:
        groups = {values[0]: values for values in sorted(foreground)}
    if label_set.ignore is not None:
        known = {value for values in label_set.classes.values() for value in values} - {label_set.ignore}
        groups[ANNOTATED] = (-1, *sorted(known))
    return groups


def class_locations(labels: NDArray[Any], label_set: LabelSet) -> dict[int, NDArray[np.integer[Any]]]:
    """For each key of `location_groups` that occurs, voxels (n, 3: z, y, x) of it, drawn without replacement.

    The draw is the same for equal label maps.

    Args:
        labels: (z, y, x) as stored, -1 outside the nonzero mask.
        label_set: classes of the dataset.

    Source: nnU-Net v2 preprocessing/preprocessors/default_preprocessor.py.
    """
    random = np.random.RandomState(_SEED)  # nnU-Net's generator, so that the draws are its draws
    kind: type[np.integer[Any]] = np.int16 if max(labels.shape) <= np.iinfo(np.int16).max else np.int32
    flat = labels.reshape(-1)
    locations: dict[int, NDArray[np.integer[Any]]] = {}
    for key, values in location_groups(label_set).items():
        found = np.concatenate([np.flatnonzero(flat == value) for value in values])
        if found.size:
            kept = max(min(MOST_KEPT, found.size), math.ceil(found.size * SHARE_KEPT))
            drawn = found[random.choice(found.size, kept, replace=False)]
            locations[key] = np.stack(np.unravel_index(drawn, labels.shape), axis=1).astype(kind)
    return locations
