"""Presets: the constants that the rules are applied with."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Preset:
    """One set of constants; shipped as `configs/presets/<name>.yaml`.

    Attributes:
        description: for people.
        network: kind of network, a key of `networks.NETWORKS`.
        base_features: channels of the finest stage; doubled at every stage.
        largest_features_2d: limit of that doubling in 2D.
        largest_features_3d: the same in 3D.
        reference_elements_2d: feature-map elements of one patch that fit with `reference_batch_2d` patches.
        reference_elements_3d: the same in 3D.
        reference_batch_2d: batch that the 2D reference was measured at.
        reference_batch_3d: batch that the 3D reference was measured at.
        reference_memory_gib: memory that the references were measured at.
        default_memory_gib: memory target when the user names none.
        fits_at_batch: the patch shrinks until this many patches fit; None: until the reference batch fits.
        dataset_share: largest share of all training voxels that one batch may hold.
        encoder_blocks: convolutions or blocks per encoder stage; the last entry repeats.
        decoder_convs: convolutions per decoder level.
        largest_batch_2d: limit of the batch in 2D, or None.
        largest_batch_3d: limit of the batch in 3D, or None.
        mirrored_dimensions: 2, 3 or both: configurations of these dimensions are mirrored.
        guarded: whether our own guards may change what nnU-Net would plan (tiny images, huge 2D batches).
    """

    description: str
    network: str
    base_features: int
    largest_features_2d: int
    largest_features_3d: int
    reference_elements_2d: int
    reference_elements_3d: int
    reference_batch_2d: int
    reference_batch_3d: int
    reference_memory_gib: float
    default_memory_gib: float
    fits_at_batch: int | None
    dataset_share: float
    encoder_blocks: tuple[int, ...]
    decoder_convs: int
    largest_batch_2d: int | None
    largest_batch_3d: int | None
    mirrored_dimensions: tuple[int, ...]
    guarded: bool

    def largest_features(self, dimensions: int) -> int:
        """Limit of the channels per stage."""
        return self.largest_features_2d if dimensions == 2 else self.largest_features_3d

    def reference_elements(self, dimensions: int) -> int:
        """Feature-map elements of one patch at the reference memory and batch."""
        return self.reference_elements_2d if dimensions == 2 else self.reference_elements_3d

    def reference_batch(self, dimensions: int) -> int:
        """Batch that the reference was measured at."""
        return self.reference_batch_2d if dimensions == 2 else self.reference_batch_3d

    def largest_batch(self, dimensions: int) -> int | None:
        """Limit of the batch, or None."""
        return self.largest_batch_2d if dimensions == 2 else self.largest_batch_3d
