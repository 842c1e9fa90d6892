"""Which way the axes of a volume run in the body, and turning volumes without loss: axes exchanged and reversed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import permutations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autoseg.core.geometry import Geometry
from autoseg.images.compare import compare_geometry, reoriented
from autoseg.images.volume import Volume

Direction = tuple[float, float, float, float, float, float, float, float, float]
"""As `Geometry.direction`."""

_SIDES = ("LR", "PA", "SI")
"""Letters of the two directions along the world axes x, y, z (in LPS): left and right, back and front, up and down."""


@dataclass(frozen=True, slots=True)
class Turn:
    """Another way to store the same voxels.

    Attributes:
        order: old axis (0 = z) that becomes each new axis.
        flips: for each new axis, whether it runs against the old one.
    """

    order: tuple[int, int, int] = (0, 1, 2)
    flips: tuple[bool, bool, bool] = (False, False, False)

    def view(self, array: NDArray[Any]) -> NDArray[Any]:
        """An array (..., z, y, x) along the new axes; a view, so that what is written into it reaches the array."""
        first = array.ndim - 3
        moved = array.transpose(*range(first), *(first + axis for axis in self.order))
        z, y, x = (slice(None, None, -1 if is_flipped else 1) for is_flipped in self.flips)
        return moved[..., z, y, x]

    def apply(self, volume: Volume) -> Volume:
        """An image or label map along the new axes, at the same places of the world."""
        if self == AS_STORED:
            return volume
        return replace(volume, array=np.ascontiguousarray(self.view(volume.array)), geometry=self.grid(volume.geometry))

    def grid(self, geometry: Geometry) -> Geometry:
        """The grid of `view` for an array on `geometry`."""
        return reoriented(geometry, self.order, self.flips)


AS_STORED = Turn()


def orientation_of(geometry: Geometry) -> str | None:
    """Where the axes x, y, z of a file run to: "LPS" for left, back (posterior) and up (superior).

    Of an oblique grid the nearest direction counts, strongest axis first, as nibabel's `aff2axcodes` has it; of the
    six letters L, R, P, A, S, I one of each pair occurs. None where the file states no orientation.
    """
    if not geometry.has_orientation:
        return None
    along = np.array(geometry.direction).reshape(3, 3)[::-1]  # file axes x, y, z
    weight = np.square(along)
    letters = [""] * 3
    for axis in np.argsort(-weight.max(axis=1), kind="stable").tolist():
        world = int(weight[axis].argmax())
        letters[axis] = _SIDES[world][int(along[axis, world] < 0)]
        weight[:, world] = -1  # every direction of the world is taken once
    return "".join(letters)


def is_orientation(codes: str) -> bool:
    """Whether these are three letters as `orientation_of` gives them."""
    return len(codes) == 3 and all(sum(letter in pair for letter in codes) == 1 for pair in _SIDES)


def direction_along(codes: str) -> Direction:
    """The direction, as `Geometry` has it, of a grid whose axes lie exactly along those of the body."""
    rows = np.zeros((3, 3))
    for row, letter in zip(rows, reversed(codes), strict=True):
        pair = _pair_of(letter)
        row[_SIDES.index(pair)] = 1 - 2 * pair.index(letter)
    return _as_direction(rows)


def direction_among(directions: Sequence[Direction]) -> Direction:
    """The direction in the middle of several, to three digits."""
    rows = np.sum([np.array(direction).reshape(3, 3) for direction in directions], axis=0)
    first, _, last = np.linalg.svd(rows)
    return _as_direction((first @ last).round(3) + 0.0)


def turn_to(geometry: Geometry, codes: str | None, direction: Direction | None = None) -> Turn:
    """How a volume on a grid is turned until its axes run as `codes` say.

    Not at all where an orientation is unknown; nor where a file that is a single slice would have to be stood on edge,
    as it then shows another plane of the body.

    Args:
        geometry: of the volume.
        codes: as `orientation_of` gives them; None to leave everything as it is stored.
        direction: what to turn as near to as whole axes allow, instead of the axes of the body; for data that lie so
            oblique that the nearest axis of the body differs from case to case. Volumes stored as `codes` say stay.
    """
    own = orientation_of(geometry)
    if own is None or codes is None or own == codes:
        return AS_STORED
    if direction is None:
        turn = _nearest(direction_along(codes), direction_along(own))
    else:
        turn = _nearest(direction, geometry.direction)
    return AS_STORED if geometry.shape[0] == 1 and turn.order[0] != 0 else turn


def turn_onto(grid: Geometry, stored: Geometry) -> Turn | None:
    """How a volume stored on one grid is turned until it lies on another; None if they are not of the same voxels.

    Grids of which one has no orientation cannot be told to be turned.
    """
    turn = _nearest(grid.direction, stored.direction)
    if turn != AS_STORED and not (grid.has_orientation and stored.has_orientation):
        return None
    is_same = compare_geometry(grid, turn.grid(stored)) in ("identical", "rounding")
    return turn if is_same else None


def spelled(codes: str | None) -> str:
    """An orientation for people: "L-P-S"."""
    return "-".join(codes) if codes else "in no known orientation"


def stored_and_turned(stored: Geometry, grid: Geometry) -> str:
    """What was done to a volume that was turned from one grid onto another, in words."""
    return f"stored {spelled(orientation_of(stored))}, turned to {spelled(orientation_of(grid))}"


def _nearest(wanted: Direction, stored: Direction) -> Turn:
    """The turn that leaves the smallest angle between the directions of two grids."""
    overlap = np.array(wanted).reshape(3, 3) @ np.array(stored).reshape(3, 3).T
    a, b, c = max(permutations(range(3)), key=lambda order: np.abs(overlap[[0, 1, 2], order]).sum())
    flip_a, flip_b, flip_c = (overlap[[0, 1, 2], [a, b, c]] < 0).tolist()
    return Turn((a, b, c), (flip_a, flip_b, flip_c))


def _as_direction(rows: NDArray[np.float64]) -> Direction:
    a, b, c, d, e, f, g, h, i = rows.ravel().tolist()
    return a, b, c, d, e, f, g, h, i


def _pair_of(letter: str) -> str:
    return next(pair for pair in _SIDES if letter in pair)
