"""What augmentation needs to know about a configuration: how far to turn, which axes, how much to cut beforehand."""

from __future__ import annotations

import math
from dataclasses import dataclass

from autoseg.planning.lateral import LateralSwap
from autoseg.planning.plan import Configuration

LARGEST_TURN_2D_DEGREES = 180.0
LARGEST_TURN_OBLONG_2D_DEGREES = 15.0
LARGEST_TURN_3D_DEGREES = 30.0

OBLONG_RATIO = 1.5
"""A 2D patch whose sides differ by more than this factor is turned a little only (nnU-Net v2)."""

DUMMY_2D_RATIO = 3.0
"""A 3D patch this many times wider than its first axis is long is transformed slice by slice (nnU-Net v2)."""

SMALLEST_SCALE_OF_MARGIN = 0.85
"""The patch is enlarged by 1/0.85 for scaling, although factors down to 0.7 and up to 1.4 are drawn (nnU-Net v2)."""


@dataclass(frozen=True, slots=True)
class AugmentationSpec:
    """How the patches of one configuration are augmented; axes in the plan's order.

    Attributes:
        patch_size: voxels that the network gets.
        initial_patch_size: voxels to cut from a case, so that turned patches are filled.
        largest_turn: angles are drawn from [-largest_turn, largest_turn], radians.
        is_dummy_2d: whether slices along the first axis are turned and scaled in their plane only.
        mirror_axes: spatial axes (0 = first axis of the patch) that may be mirrored.
        masked_channels: channels that are 0 where labels are negative (outside the nonzero mask).
        first_stage_values: label values of a cascade's first stage, each of which becomes a channel; empty without one.
        swap: labels that change places where a patch is mirrored from left to right; None if there are none.
    """

    patch_size: tuple[int, ...]
    initial_patch_size: tuple[int, ...]
    largest_turn: float
    is_dummy_2d: bool
    mirror_axes: tuple[int, ...]
    masked_channels: tuple[int, ...]
    first_stage_values: tuple[int, ...] = ()
    swap: LateralSwap | None = None


def augmentation_spec(
    configuration: Configuration, first_stage_values: tuple[int, ...] = (), swap: LateralSwap | None = None
) -> AugmentationSpec:
    """The augmentation of a configuration's patches.

    Args:
        configuration: to train.
        first_stage_values: in a cascade the label values of its first stage.
        swap: `lateral_swap` of the configuration.

    Source: nnU-Net v2, `nnUNetTrainer.configure_rotation_dummyDA_mirroring_and_inital_patch_size`.
    """
    patch_size = configuration.patch_size
    is_dummy_2d = len(patch_size) == 3 and max(patch_size) / patch_size[0] > DUMMY_2D_RATIO
    turn = largest_turn(patch_size, is_dummy_2d)
    initial = initial_patch_size(patch_size, turn)
    return AugmentationSpec(
        patch_size=patch_size,
        initial_patch_size=(patch_size[0], *initial[1:]) if is_dummy_2d else initial,
        largest_turn=turn,
        is_dummy_2d=is_dummy_2d,
        mirror_axes=configuration.mirror_axes,
        masked_channels=tuple(i for i, is_masked in enumerate(configuration.use_nonzero_mask) if is_masked),
        first_stage_values=first_stage_values,
        swap=swap,
    )


def largest_turn(patch_size: tuple[int, ...], is_dummy_2d: bool) -> float:
    """The largest angle of rotation, radians."""
    if len(patch_size) == 3 and not is_dummy_2d:
        return math.radians(LARGEST_TURN_3D_DEGREES)
    is_oblong = len(patch_size) == 2 and max(patch_size) / min(patch_size) > OBLONG_RATIO
    return math.radians(LARGEST_TURN_OBLONG_2D_DEGREES if is_oblong else LARGEST_TURN_2D_DEGREES)


def initial_patch_size(patch_size: tuple[int, ...], turn: float) -> tuple[int, ...]:
    """Voxels to cut so that a patch turned about one axis by up to `turn` (at most 90 degrees counts) is filled.

    Source: nnU-Net v2, `compute_initial_patch_size.py`.
    """
    turn = min(turn, math.pi / 2)
    sine, cosine = math.sin(turn), math.cos(turn)
    n = len(patch_size)
    largest = [float(size) for size in patch_size]
    # Signs as in the source: one of the two axes of a turn gets the sum, the other the difference. Turns go about the
    # first, second and third axis in 3D; the second has the opposite sense.
    for first, second in ((1, 2), (2, 0), (0, 1)) if n == 3 else ((0, 1),):
        a, b = patch_size[first], patch_size[second]
        largest[first] = max(largest[first], abs(cosine * a + sine * b))
        largest[second] = max(largest[second], abs(cosine * b - sine * a))
    return tuple(int(size / SMALLEST_SCALE_OF_MARGIN) for size in largest)
