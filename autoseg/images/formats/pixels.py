"""What the format modules hand to the readers: decoded voxels, not yet converted or judged."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from autoseg.core.geometry import Geometry

FOUR_D_REMEDY = (
    "if the fourth axis holds channels, say so in the dataset (Decathlon layout); if it is time, split it into one "
    "file per time point"
)


@dataclass(frozen=True, slots=True, eq=False)
class Pixels:
    """Voxels as a library decoded them.

    Attributes:
        array: axes (c, z, y, x), any numeric type.
        geometry: grid of the last three axes.
        notes: one sentence for each oddity settled.
    """

    array: NDArray[Any]
    geometry: Geometry
    notes: tuple[str, ...] = ()
